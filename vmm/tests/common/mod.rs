//! A scribbler in this process: built, watched through its console, asked to verify itself.

#![allow(dead_code, reason = "each test uses its part")]

pub mod linux;

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::boot::{BootSource, KernelImage};
use vmm::config::{DirtyTracking, MachineConfig, MemoryConfig, VcpuCount};
use vmm::devices::console::{Console, ConsoleConfig, OutputReader, Position};
use vmm::events::EventSource;
use vmm::kvm::Kvm;
use vmm::machine::{Builder, ClockMode, ClockReport, Parts, Paused, Running, VirtioSpec};
use vmm::memory::GuestRam;
use vmm::scribbler::{self, Params};
use vmm::state::v1::MachineState;

/// KVM, or a loud skip where there is none. A KVM that is there but unusable fails the test.
pub fn kvm() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(vmm::kvm::KvmError::Missing(path)) => {
            eprintln!("SKIPPED: {} is missing", path.display());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The host's side of a guest: what outlives the machine.
pub struct Host {
    pub console: Console,
    pub output: OutputReader,
    pub events: EventSource,
}

/// What a test wants of a machine.
#[derive(Clone, Copy)]
pub struct Shape {
    pub mib: u64,
    pub cpus: u32,
    pub tracking: DirtyTracking,
}

impl Shape {
    pub fn new(mib: u64, cpus: u32) -> Self {
        Self { mib, cpus, tracking: DirtyTracking::Log }
    }

    pub fn config(&self) -> MachineConfig {
        MachineConfig {
            memory: MemoryConfig::new(self.mib << 20, false).unwrap(),
            vcpus: VcpuCount::try_from(self.cpus).unwrap(),
            cpu_template: "host".into(),
            cpu_model: None,
            dirty_tracking: self.tracking,
            generation_id: [1; 16],
        }
    }
}

pub fn host() -> (Host, vmm::events::EventSink) {
    let (sink, events) = vmm::events::channel_pair().unwrap();
    let console = Console::new(ConsoleConfig::default()).unwrap();
    let output = console.subscribe(Position::Scrollback);
    (Host { console, output, events }, sink)
}

/// Builds a machine with `virtio` devices around the scribbler that `spec` describes.
pub fn boot(kvm: &Kvm, shape: Shape, spec: &str, virtio: Vec<VirtioSpec>) -> (Paused, Host) {
    let params = Params::parse(spec).unwrap();
    params.fits(shape.mib << 20, shape.cpus).unwrap();
    let mut source = BootSource {
        kernel: KernelImage::Bytes(scribbler::elf()),
        initrd: None,
        cmdline: params.command_line(shape.cpus, Some(0x600)),
        acpi: true,
    };
    boot_source(kvm, shape, &mut source, virtio)
}

/// Builds a machine with `virtio` devices around what `source` describes.
pub fn boot_source(
    kvm: &Kvm,
    shape: Shape,
    source: &mut BootSource,
    virtio: Vec<VirtioSpec>,
) -> (Paused, Host) {
    let (host, events) = host();
    let parts = Parts { config: shape.config(), events, serial: host.console.clone(), virtio };
    (Builder::new(kvm, parts).unwrap().boot(source).unwrap(), host)
}

/// Builds a machine without virtio devices from `state`, its memory copied from `ram`.
pub fn restore(
    kvm: &Kvm,
    shape: Shape,
    state: &MachineState,
    ram: &GuestRam,
    mode: ClockMode,
) -> (Paused, ClockReport, Host) {
    restore_with(kvm, shape, state, ram, mode, vec![])
}

/// Builds a machine with `virtio` devices from `state`, its memory copied from `ram`.
pub fn restore_with(
    kvm: &Kvm,
    shape: Shape,
    state: &MachineState,
    ram: &GuestRam,
    mode: ClockMode,
    virtio: Vec<VirtioSpec>,
) -> (Paused, ClockReport, Host) {
    let (host, events) = host();
    let parts = Parts { config: shape.config(), events, serial: host.console.clone(), virtio };
    let (paused, report) = Builder::new(kvm, parts)
        .unwrap()
        .restore(state, mode, &mut |to| {
            copy_ram(ram, to);
            Ok(())
        })
        .unwrap();
    (paused, report, host)
}

/// Page `number` of RAM, by its place in the RAM file.
pub fn page(ram: &GuestRam, number: u64) -> Vec<u8> {
    let offset = number * 4096;
    let range = ram.ranges().iter().find(|r| offset >= r.offset && offset < r.offset + r.len);
    let gpa = range.map(|r| r.gpa + offset - r.offset).unwrap();
    let mut bytes = vec![0; 4096];
    ram.mem().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// Copies all of RAM.
pub fn copy_ram(from: &GuestRam, to: &GuestRam) {
    let mut chunk = vec![0; 1 << 20];
    for range in from.ranges() {
        for offset in (0..range.len).step_by(chunk.len()) {
            let len = chunk.len().min(usize::try_from(range.len - offset).unwrap());
            from.mem().read_slice(&mut chunk[..len], GuestAddress(range.gpa + offset)).unwrap();
            to.mem().write_slice(&chunk[..len], GuestAddress(range.gpa + offset)).unwrap();
        }
    }
}

pub fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

impl Host {
    /// Waits for `text` on the console.
    pub fn wait(&mut self, text: &str) {
        if let Err(missed) = self.output.wait_for(text.as_bytes(), within(60)) {
            let mut all = self.console.subscribe(Position::Scrollback);
            let seen = all.read(Instant::now()).unwrap_or_default();
            let tail =
                String::from_utf8_lossy(&seen[seen.len().saturating_sub(1500)..]).into_owned();
            panic!("waiting for {text:?}: {missed}; the console ends with:\n{tail}");
        }
    }

    /// Has the guest check every page it owns; panics unless all are right.
    pub fn verify(&mut self) {
        self.console.send_input(b"v");
        self.wait("VERIFY ");
        let mut line = Vec::new();
        while !line.contains(&b'\n') {
            line.extend(self.output.read(within(10)).unwrap());
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(line.starts_with("ok "), "VERIFY {line}");
    }
}

/// Resumes, panicking on failure.
pub fn resume(paused: Paused) -> Running {
    paused.resume().map_err(|(_, e)| e).unwrap()
}
