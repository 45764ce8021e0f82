//! The real Linux guest of `scripts/guest`, in a machine of this process, with one device of
//! each kind, and its shell.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;
use vmm::boot::{BootSource, KernelImage};
use vmm::devices::console::{Console, ConsoleConfig};
use vmm::devices::tap::Tap;
use vmm::devices::virtio::block::BlockSpec;
use vmm::devices::virtio::block::open::open_disk;
use vmm::devices::virtio::net::NetSpec;
use vmm::events::GuestEvent;
use vmm::kvm::{Backend, Kvm};
use vmm::machine::{ClockMode, Running, VirtioSpec};
use vmm::memory::GuestRam;
use vmm::state::{self, v1::MachineState};

use super::{Host, Shape, boot_source, restore_with, resume, within};

/// Longest time for anything, seconds: a guest that fails rarely hangs, a busy host is slow.
const PATIENCE: u64 = 240;
const DISK: &str = "40M";
const TAP: &str = "tap0";

/// The directory that `scripts/guest/build` made, or a loud skip.
pub fn images() -> Option<PathBuf> {
    let dir = std::env::var_os("MIGRATE_TEST_GUEST");
    if dir.is_none() {
        eprintln!("SKIPPED: MIGRATE_TEST_GUEST is not set: run scripts/test");
    }
    dir.map(PathBuf::from)
}

/// How to boot.
#[derive(Clone, Copy)]
pub struct Boot<'a> {
    pub kernel: &'a str,
    pub acpi: bool,
    pub extra: &'a str,
    /// Longest time to the shell, seconds.
    pub patience: u64,
}

impl Boot<'_> {
    pub const ACPI: Self = Boot { kernel: "vmlinux", acpi: true, extra: "", patience: PATIENCE };

    fn source(self, kvm: &Kvm, images: &Path) -> BootSource {
        let hardware = matches!(kvm.backend(), Backend::Hardware);
        let name = if hardware { "cmdline-generic" } else { "cmdline" };
        let line = fs::read_to_string(images.join(name)).unwrap();
        BootSource {
            kernel: KernelImage::File(File::open(images.join(self.kernel)).unwrap()),
            initrd: Some(File::open(images.join("initramfs.cpio")).unwrap()),
            cmdline: format!("{} guest.shell=plain {}", line.trim(), self.extra),
            acpi: self.acpi,
        }
    }
}

/// A network namespace with a tap in it, whose host end has the address 10.0.2.2.
struct Net(File);

impl Net {
    /// Needs root; `None` without.
    fn new() -> Option<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            let steps = [
                format!("tuntap add {TAP} mode tap"),
                format!("address add 10.0.2.2/24 dev {TAP}"),
                format!("link set {TAP} up"),
            ];
            for step in steps {
                assert!(Command::new("ip").args(step.split(' ')).status().unwrap().success());
            }
            Some(Self(File::open("/proc/thread-self/ns/net").unwrap()))
        });
        made.join().unwrap()
    }

    fn tap(&self) -> Tap {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            Tap::open(TAP).unwrap()
        };
        thread::scope(|s| s.spawn(inside).join().unwrap())
    }
}

/// What the devices of one guest have on the host. It moves along with the guest.
struct Backing {
    dir: TempDir,
    net: Option<Net>,
    hvc: Console,
}

impl Backing {
    fn new() -> Self {
        let net = Net::new();
        if net.is_none() {
            eprintln!("no network namespace, so no network card: run this test as root");
        }
        let hvc = Console::new(ConsoleConfig::default()).unwrap();
        Self { dir: TempDir::new().unwrap(), net, hvc }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn make_disk(&self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/guest/disk");
        assert!(Command::new(script).arg(self.disk()).arg(DISK).status().unwrap().success());
    }

    fn devices(&self) -> Vec<VirtioSpec> {
        let block = BlockSpec {
            file: open_disk(&self.disk(), false, false).unwrap(),
            read_only: false,
            direct: false,
            discard: true,
            serial: "test".into(),
            queues: 1,
            observer: None,
        };
        let mut all = vec![
            VirtioSpec::Block(block),
            VirtioSpec::Rng(File::open("/dev/urandom").unwrap()),
            VirtioSpec::Console(self.hvc.port()),
        ];
        if let Some(net) = &self.net {
            let mac = [0x52, 0x54, 0, 1, 2, 3];
            all.push(VirtioSpec::Net(NetSpec { tap: net.tap(), mac, mtu: None }));
        }
        all
    }
}

/// A guest that stands still, complete with its disk, to be woken any number of times.
pub struct Saved {
    shape: Shape,
    state: MachineState,
    ram: GuestRam,
    disk: Vec<u8>,
}

impl Saved {
    /// A new machine that goes on from here.
    pub fn wake(&self, kvm: &Kvm) -> Linux {
        let backing = Backing::new();
        fs::write(backing.disk(), &self.disk).unwrap();
        let (paused, _, host) = restore_with(
            kvm,
            self.shape,
            &self.state,
            &self.ram,
            ClockMode::Account,
            backing.devices(),
        );
        Linux::new(resume(paused), self.shape, host, backing)
    }
}

/// A running guest with a shell on its console.
pub struct Linux {
    pub host: Host,
    running: Running,
    shape: Shape,
    backing: Backing,
    /// All that the console said, and how much of it was looked at.
    text: String,
    seen: usize,
    marks: u32,
}

impl Linux {
    fn new(running: Running, shape: Shape, host: Host, backing: Backing) -> Self {
        Self { host, running, shape, backing, text: String::new(), seen: 0, marks: 0 }
    }

    /// Boots to the shell.
    pub fn boot(kvm: &Kvm, images: &Path, shape: Shape, how: Boot<'_>) -> Self {
        let backing = Backing::new();
        backing.make_disk();
        let mut source = how.source(kvm, images);
        let (paused, host) = boot_source(kvm, shape, &mut source, backing.devices());
        let mut linux = Self::new(resume(paused), shape, host, backing);
        linux.wait_within("GUEST-READY", how.patience);
        // Until the shell is there, the terminal echoes.
        linux.run("true");
        linux
    }

    /// Ends the machine and keeps what it takes to go on.
    pub fn save(self) -> Saved {
        let mut paused = self.running.pause();
        let state = paused.save().unwrap();
        let ram = paused.ram().clone();
        paused.retire();
        let disk = fs::read(self.backing.disk()).unwrap();
        Saved { shape: self.shape, state, ram, disk }
    }

    /// Goes on in another machine after standing still for `pause`. Also says how long, at
    /// least, no machine ran it. What was typed and not read yet is lost with the old console.
    pub fn moved(self, kvm: &Kvm, pause: Duration, mode: ClockMode) -> (Self, Duration) {
        let mut old = self.running.pause();
        let bytes = state::encode(&old.save().unwrap()).unwrap();
        let start = Instant::now();
        let ram = old.ram().clone();
        // Its disk is free only when it is gone.
        old.retire();
        thread::sleep(pause);
        let saved = state::decode(&bytes).unwrap();
        let devices = self.backing.devices();
        let stood_still = start.elapsed();
        let (new, report, host) = restore_with(kvm, self.shape, &saved, &ram, mode, devices);
        assert!(!report.implausible);
        let running = resume(new);
        // What the old console still holds belongs to the text.
        let mut moved = Self { running, ..self };
        moved.take_in(Instant::now());
        moved.host = host;
        (moved, stood_still)
    }

    pub fn has_network(&self) -> bool {
        self.backing.net.is_some()
    }

    /// The host's side of `hvc0`.
    pub fn hvc(&self) -> &Console {
        &self.backing.hvc
    }

    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Reads what comes until `deadline`, at least what is there.
    fn take_in(&mut self, deadline: Instant) -> bool {
        let Ok(bytes) = self.host.output.read(deadline) else { return false };
        self.text.push_str(&String::from_utf8_lossy(&bytes).replace('\r', ""));
        true
    }

    /// Waits for `text` behind what was waited for before; returns what stood between.
    pub fn wait(&mut self, text: &str) -> String {
        self.wait_within(text, PATIENCE)
    }

    fn wait_within(&mut self, text: &str, seconds: u64) -> String {
        let deadline = within(seconds);
        loop {
            if let Some(at) = self.text[self.seen..].find(text) {
                let between = self.text[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return between;
            }
            if !self.take_in(deadline) {
                let event = self.host.events.try_next();
                panic!("no {text:?}; event {event:?}; the console says:\n{}", self.text);
            }
        }
    }

    /// Whether `text` has come since what was waited for last.
    pub fn said(&mut self, text: &str) -> bool {
        while self.take_in(Instant::now()) {}
        self.text[self.seen..].contains(text)
    }

    /// Types a line.
    pub fn enter(&self, line: &str) {
        let line = format!("{line}\n");
        assert_eq!(self.host.console.send_input(line.as_bytes()), line.len());
    }

    /// Runs a command that must succeed; returns its output.
    pub fn run(&mut self, command: &str) -> String {
        self.marks += 1;
        // The quotes keep an echo of what is typed from looking like the answer.
        self.enter(&format!("{command}; echo mark''{} $?", self.marks));
        let output = self.wait(&format!("mark{} ", self.marks));
        let status = self.wait("\n");
        assert_eq!(status, "0", "{command}: {output}");
        output
    }

    /// Waits for the guest's end.
    pub fn event(&mut self, last_words: &str) -> Option<GuestEvent> {
        self.wait(last_words);
        let deadline = within(PATIENCE);
        loop {
            match self.host.events.try_next() {
                None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                event => return event,
            }
        }
    }
}
