//! What several tests need.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{GuestDefinition, OnCrash, OnHostStop};

/// A document as others may write it: no part of `good` is taken for the whole, changed bytes are
/// refused or read, never a panic, and whatever was read can be written and read again.
pub fn hostile_json<T: Serialize + DeserializeOwned>(good: &T) {
    let good = serde_json::to_vec(good).unwrap();
    assert!(serde_json::from_slice::<T>(&good).is_ok());
    for cut in 0..good.len() {
        assert!(serde_json::from_slice::<T>(&good[..cut]).is_err(), "cut at {cut}");
    }
    // Digits and what JSON is made of more often than others: they change numbers and structure.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(&b"0123456789-.e\"\\[]{},:nt"[..])];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), byte), 1..5);
    let strategy = (changes, prop::collection::vec(any::<u8>(), 0..64));
    let tried = TestRunner::default().run(&strategy, |(changes, noise)| {
        let mut bad = good.clone();
        for (at, value) in changes {
            let at = at.index(bad.len());
            bad[at] = value;
        }
        for bytes in [bad, noise] {
            if let Ok(read) = serde_json::from_slice::<T>(&bytes) {
                let again = serde_json::to_vec(&read).unwrap();
                prop_assert!(serde_json::from_slice::<T>(&again).is_ok());
            }
        }
        Ok(())
    });
    if let Err(failure) = tried {
        panic!("{failure}");
    }
}

/// The smallest guest.
pub fn definition(name: &str) -> GuestDefinition {
    GuestDefinition {
        name: name.into(),
        uuid: uuid::Uuid::from_u128(7),
        memory_bytes: 16 << 20,
        huge_pages: false,
        cpus: 1,
        cpu_template: "host".into(),
        cpu: None,
        dirty_ring: false,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        guest: Some("scribbler:".into()),
        acpi: true,
        disks: vec![],
        nets: vec![],
        virtio_console: false,
        rng: false,
        vsock_cid: None,
        console_file: None,
        on_crash: OnCrash::Stop,
        on_host_stop: OnHostStop::Shutdown,
    }
}

/// A machine that is not one: RAM in a memory file, a state of four bytes, and a log of what was
/// done to it.
pub mod fake {
    use std::fs::File;
    use std::io;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use migrate_engine::port::{DirtyLog, ReadUnits, Rehearsal, WriteUnits};
    use migrate_engine::unit::{Layout, Run, UnitIndex};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use crate::api::{ErrorCode, Failure};
    use crate::guest::machine::{
        Controls, Fill, MachineReceiver, MakeMachine, PausedMachine, RamFile, Restore,
        RunningMachine,
    };

    /// RAM of every fake machine.
    pub const RAM: u64 = 16 << 20;

    /// What a test sees and steers.
    #[derive(Clone, Default)]
    pub struct Strings {
        /// What was done, in order.
        pub done: Arc<Mutex<Vec<String>>>,
        /// The next boot fails.
        pub fail_boot: Arc<AtomicBool>,
        /// Saving the state fails.
        pub fail_save: Arc<AtomicBool>,
        /// Machines that exist.
        pub alive: Arc<AtomicU8>,
        /// Saving the state waits until this is false.
        pub hold_save: Arc<AtomicBool>,
        /// Called when the vCPUs are stopped.
        #[expect(clippy::type_complexity, reason = "a hook of one test")]
        pub on_pause: Arc<Mutex<Option<Box<dyn FnMut() + Send>>>>,
    }

    impl Strings {
        fn did(&self, what: &str) {
            self.done.lock().unwrap().push(what.to_owned());
        }

        /// What was done since the last call.
        pub fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.done.lock().unwrap())
        }
    }

    /// Makes fakes.
    pub struct Fakes(pub Strings);

    /// A fake that stands still.
    #[derive(Debug)]
    pub struct FakePaused(Fake);
    /// A fake that runs.
    #[derive(Debug)]
    pub struct FakeRunning(Fake);

    struct Fake {
        ram: File,
        strings: Strings,
        share: Arc<AtomicU8>,
    }

    impl std::fmt::Debug for Fake {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Fake")
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            self.strings.alive.fetch_sub(1, Ordering::SeqCst);
            self.strings.did("drop");
        }
    }

    impl Fakes {
        fn make(&self) -> FakePaused {
            assert_eq!(self.0.alive.fetch_add(1, Ordering::SeqCst), 0, "two machines at once");
            let ram = memfd_create(c"fake", MFdFlags::MFD_CLOEXEC).unwrap();
            let ram = File::from(ram);
            ram.set_len(RAM).unwrap();
            let share = Arc::new(AtomicU8::new(100));
            FakePaused(Fake { ram, strings: self.0.clone(), share })
        }
    }

    fn failure(what: &str) -> Failure {
        Failure::new(ErrorCode::Unexpected, what, "none")
    }

    /// RAM in units, of which a fake has none.
    #[derive(Clone)]
    pub struct NoRam;

    impl ReadUnits for NoRam {
        type Error = io::Error;
        fn layout(&self) -> Layout {
            Layout::of_bytes(4096, RAM).unwrap()
        }
        fn read(&self, _: UnitIndex, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn next_touched(&self, _: u64) -> io::Result<Option<Run>> {
            Ok(None)
        }
    }

    impl WriteUnits for NoRam {
        type Error = io::Error;
        fn layout(&self) -> Layout {
            Layout::of_bytes(4096, RAM).unwrap()
        }
        fn write(&self, _: Run, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn zero(&self, _: Run) -> io::Result<()> {
            Ok(())
        }
    }

    /// A log in which nothing is ever found.
    pub struct NoLog;

    impl DirtyLog for NoLog {
        type Error = io::Error;
        fn initially_set(&self) -> bool {
            false
        }
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn found(&self) -> u64 {
            0
        }
        fn harvest(&mut self, _: Range<u64>, _: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
            Ok(())
        }
        fn stop(self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Nothing ever comes into a fake.
    pub struct NoReceiver;

    impl MachineReceiver for NoReceiver {
        type Paused = FakePaused;
        type Ram = NoRam;
        fn ram(&self) -> NoRam {
            NoRam
        }
        fn rehearse(&mut self, _: &[u8]) -> Rehearsal {
            Rehearsal { took: Duration::ZERO, problems: vec!["a fake".into()] }
        }
        fn restore(self, _: &[u8]) -> Result<FakePaused, Failure> {
            Err(failure("a fake"))
        }
    }

    impl MakeMachine for Fakes {
        type Paused = FakePaused;
        type Receiver = NoReceiver;

        fn receiver(&mut self) -> Result<NoReceiver, Failure> {
            Ok(NoReceiver)
        }

        fn boot(&mut self) -> Result<FakePaused, Failure> {
            self.0.did("boot");
            if self.0.fail_boot.swap(false, Ordering::SeqCst) {
                return Err(failure("no boot"));
            }
            let machine = self.make();
            machine.0.ram.write_all_at(b"booted", 4096).unwrap();
            Ok(machine)
        }

        fn restore(
            &mut self,
            state: &[u8],
            _how: Restore,
            fill: &mut Fill<'_>,
        ) -> Result<(FakePaused, Duration), Failure> {
            self.0.did("restore");
            assert_eq!(state, b"fake");
            let machine = self.make();
            fill(&mut |at, bytes| machine.0.ram.write_all_at(bytes, at))
                .map_err(|e| e.failure())?;
            Ok((machine, Duration::from_millis(5)))
        }
    }

    impl PausedMachine for FakePaused {
        type Running = FakeRunning;
        type Ram = NoRam;
        type Log = NoLog;

        fn units(&self) -> io::Result<NoRam> {
            Ok(NoRam)
        }

        fn start_log(&self) -> Result<NoLog, Failure> {
            Ok(NoLog)
        }

        fn stop_time(&self) -> Duration {
            Duration::ZERO
        }

        fn resume(self) -> Result<FakeRunning, (Option<Self>, Failure)> {
            self.0.strings.did("resume");
            Ok(FakeRunning(self.0))
        }

        fn save_state(&mut self) -> Result<Vec<u8>, Failure> {
            while self.0.strings.hold_save.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            if self.0.strings.fail_save.load(Ordering::SeqCst) {
                return Err(failure("no save"));
            }
            Ok(b"fake".to_vec())
        }

        fn ram(&self) -> io::Result<RamFile> {
            Ok(RamFile { file: self.0.ram.try_clone()?, bytes: RAM })
        }

        fn controls(&self) -> Box<dyn Controls> {
            Box::new(FakeControls(self.0.share.clone(), self.0.strings.clone()))
        }
    }

    impl RunningMachine for FakeRunning {
        type Paused = FakePaused;

        fn start_log(&self) -> Result<NoLog, Failure> {
            Ok(NoLog)
        }

        fn units(&self) -> io::Result<NoRam> {
            Ok(NoRam)
        }

        fn ram(&self) -> io::Result<RamFile> {
            Ok(RamFile { file: self.0.ram.try_clone()?, bytes: RAM })
        }

        fn controls(&self) -> Box<dyn Controls> {
            Box::new(FakeControls(self.0.share.clone(), self.0.strings.clone()))
        }

        fn pause(self) -> FakePaused {
            self.0.strings.did("pause");
            if let Some(hook) = &mut *self.0.strings.on_pause.lock().unwrap() {
                hook();
            }
            FakePaused(self.0)
        }
    }

    struct FakeControls(Arc<AtomicU8>, Strings);

    impl Controls for FakeControls {
        fn cpu(&self) -> vmm::cpu::Shown {
            vmm::cpu::Shown { tsc_khz: 7, ..Default::default() }
        }

        fn cpu_share(&self) -> u8 {
            self.0.load(Ordering::SeqCst)
        }

        fn set_cpu_share(&self, percent: u8) -> io::Result<()> {
            self.0.store(percent, Ordering::SeqCst);
            Ok(())
        }

        fn press_power_button(&self) {
            self.1.did("button");
        }

        fn announce(&self) -> io::Result<()> {
            self.1.did("announce");
            Ok(())
        }
    }
}
