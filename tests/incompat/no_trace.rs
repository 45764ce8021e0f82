//! A rehearsal leaves no trace: a machine on which another state was tried before is, byte for
//! byte, the one that it would have been without. What a trace could be: a timer that is armed, an
//! interrupt that pends, registers that KVM keeps, guest memory that KVM or a device writes.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use migrate::adapter::VmmHost;
use migrate::config::{Cache, Dirs, DiskDefinition, GuestDefinition, OnCrash, OnHostStop};
use migrate::guest::disks::tracks::Tracks;
use migrate::guest::machine::{MachineReceiver, MakeMachine, PausedMachine, RunningMachine};
use migrate::guest::process::{OpenMachine, OpenedMachine, Passed};
use migrate::guest::runtime::RuntimeDir;
use migrate::guest::server::Waited;
use migrate_engine::port::{ReadUnits, WriteUnits};
use migrate_engine::unit::Run;
use uuid::Uuid;
use vmm::state::v1::{ClockState, MachineState};

use crate::support::{PATIENCE, kvm};

type Machines = <<VmmHost as OpenMachine>::Opened as OpenedMachine>::Machines;
type Receiver = <Machines as MakeMachine>::Receiver;

/// Time stamp counter and its deadline: they count while a machine stands still.
const COUNTING: [u32; 2] = [0x10, 0x6E0];
/// Bytes of a channel of the timer chip; the last eight are when its count was loaded.
const PIT_CHANNEL: usize = 24;
/// Current count of the LAPIC's timer.
const LAPIC_COUNT: std::ops::Range<usize> = 0x390..0x394;

fn definition(name: &str, disk: &Path) -> GuestDefinition {
    GuestDefinition {
        name: name.into(),
        uuid: Uuid::from_u128(7),
        memory_bytes: 32 << 20,
        huge_pages: false,
        cpus: 2,
        cpu_template: "host".into(),
        cpu: None,
        dirty_ring: false,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        guest: Some("scribbler:ws=4M,rate=max,hb=1ms".into()),
        acpi: true,
        disks: vec![DiskDefinition {
            path: disk.into(),
            read_only: false,
            shared: false,
            cache: Cache::None,
            serial: "d".into(),
        }],
        nets: vec![],
        virtio_console: true,
        rng: true,
        vsock_cid: Some(9),
        console_file: None,
        on_crash: OnCrash::Stop,
        on_host_stop: OnHostStop::Shutdown,
    }
}

/// Memory: every run of it that is allocated, by page.
type Content = Vec<(Run, Vec<Vec<u8>>)>;

/// A guest process' insides, in this process.
struct Inside {
    machines: Machines,
    wait: migrate::guest::server::WaitConsole,
    _dir: RuntimeDir,
}

impl Inside {
    fn new(dirs: &Dirs, name: &str, disk: &Path) -> Self {
        let dir = RuntimeDir::take(name, dirs.guest(name)).unwrap();
        let (events, _) = vmm::events::channel_pair().unwrap();
        let definition = definition(name, disk);
        let opened = VmmHost.open(&definition, &dir, Passed::default(), events).unwrap();
        let (machines, wait) = opened.start(&Tracks::default()).unwrap();
        Self { machines, wait, _dir: dir }
    }
}

/// Content of memory: every run that is allocated.
fn content(ram: &impl ReadUnits) -> Content {
    let (layout, mut all, mut from) = (ram.layout(), Vec::new(), 0);
    while let Ok(Some(run)) = ram.next_touched(from) {
        let read = |unit| {
            let mut page = vec![0; 4096];
            ram.read(layout.unit(unit).unwrap(), &mut page).map_err(|_| "read").unwrap();
            page
        };
        all.push((run, run.range().map(read).collect()));
        from = run.range().end;
    }
    all
}

/// A state without what counts on while its machine stands still.
fn still(state: &[u8]) -> MachineState {
    let mut state = vmm::state::decode(state).unwrap();
    state.clock = ClockState::default();
    for vcpu in &mut state.vcpus {
        vcpu.msrs.retain(|m| !COUNTING.contains(&m.index));
        vcpu.lapic[LAPIC_COUNT].fill(0);
    }
    for channel in 0..3 {
        state.pit[channel * PIT_CHANNEL..][16..PIT_CHANNEL].fill(0);
    }
    state
}

/// The machine that comes of `state`, with this memory: what it says of itself, and its memory.
fn arrives(receiver: Receiver, state: &[u8], memory: &Content) -> (MachineState, Content) {
    let ram = receiver.ram();
    for (run, pages) in memory {
        WriteUnits::write(&ram, *run, &pages.concat()).unwrap();
    }
    let mut paused = receiver.restore(state).unwrap();
    let saved = paused.save_state().unwrap();
    (still(&saved), content(&ram))
}

/// Says what differs, and not everything.
#[track_caller]
fn assert_same(tried: &MachineState, untried: &MachineState) {
    let (a, b) = (format!("{tried:#?}"), format!("{untried:#?}"));
    let lines = a.lines().zip(b.lines()).enumerate();
    let differ: Vec<_> = lines.filter(|(_, (a, b))| a != b).take(40).collect();
    let none = differ.is_empty() && a.len() == b.len();
    assert!(none, "the machine is another one after a rehearsal: {differ:?}");
}

#[test]
fn a_rehearsal_leaves_no_trace() {
    if !kvm() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dirs = Dirs::below(home.path());
    dirs.prepare().unwrap();
    let disk = home.path().join("disk.img");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();

    // Two states of one guest, some work apart.
    let mut source = Inside::new(&dirs, "a", &disk);
    let running = source.machines.boot().unwrap().resume().map_err(|(_, why)| why).unwrap();
    let seen = (source.wait)("SCRIBBLER-READY", PATIENCE, &AtomicBool::new(false));
    assert!(matches!(seen, Waited::Seen), "the guest is ready");
    let mut paused = running.pause();
    let first = paused.save_state().unwrap();
    let running = paused.resume().map_err(|(_, why)| why).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut paused = running.pause();
    let second = paused.save_state().unwrap();
    let memory = content(&paused.units().unwrap());
    assert_ne!(still(&first), still(&second), "this test could not fail");

    let mut target = Inside::new(&dirs, "b", &disk);
    let untried = arrives(target.machines.receiver().unwrap(), &second, &memory);

    let mut receiver = target.machines.receiver().unwrap();
    let ram = receiver.ram();
    // Some of the guest is there already when the state is tried, and nothing else comes to it.
    let begin = WriteUnits::layout(&ram).run(300, 40).unwrap();
    WriteUnits::write(&ram, begin, &vec![0xA5; 40 * 4096]).unwrap();
    let before = content(&ram);
    let rehearsal = receiver.rehearse(&first);
    assert_eq!(rehearsal.problems, [""; 0]);
    assert!(rehearsal.took > Duration::ZERO);
    assert!(content(&ram) == before, "the rehearsal touched the guest's memory");
    ram.zero(begin).unwrap();
    let tried = arrives(receiver, &second, &memory);

    assert_same(&tried.0, &untried.0);
    assert!(tried.1 == untried.1, "its memory is another one after a rehearsal");
    assert_eq!(still(&second).vcpus.len(), tried.0.vcpus.len());
}
