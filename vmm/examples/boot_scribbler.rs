//! Boots the scribbler with its console on standard output, pauses, saves, restores.
use std::time::{Duration, Instant};

use vmm::boot::{BootSource, KernelImage};
use vmm::config::{DirtyTracking, MachineConfig, MemoryConfig, VcpuCount};
use vmm::devices::console::{Console, ConsoleConfig};
use vmm::kvm::Kvm;
use vmm::machine::{Builder, Parts};
use vmm::scribbler::Params;

fn main() {
    let kvm = Kvm::open().unwrap();
    let cpus: u32 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1);
    let spec = std::env::args().nth(2).unwrap_or("scribbler".into());
    let params = Params::parse(&spec).unwrap();
    let config = MachineConfig {
        memory: MemoryConfig::new(64 << 20, false).unwrap(),
        vcpus: VcpuCount::try_from(cpus).unwrap(),
        cpu_template: "host".into(),
        dirty_tracking: DirtyTracking::Log,
        generation_id: [1; 16],
    };
    let (events, source) = vmm::events::channel_pair().unwrap();
    let console = Console::new(ConsoleConfig {
        file: Some(std::fs::File::create("/tmp/sc.out").unwrap()),
        ..Default::default()
    })
    .unwrap();
    let port = console.port();
    let parts = Parts { config, events, serial: console, virtio: vec![] };
    let t = Instant::now();
    let builder = Builder::new(&kvm, parts).unwrap();
    eprintln!("builder {:?}", t.elapsed());
    let mut boot = BootSource {
        kernel: KernelImage::Bytes(vmm::scribbler::elf()),
        initrd: None,
        cmdline: params.command_line(cpus, Some(0x600)),
        acpi: true,
    };
    port.write(b"hello\n");
    let paused = builder.boot(&mut boot).unwrap();
    eprintln!("boot {:?}", t.elapsed());
    let mut running = paused.resume().unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        while let Some(e) = source.try_next() {
            eprintln!("EVENT {e:?}");
        }
        let mut paused = running.pause();
        eprintln!("\nstop {:?}", paused.stop_times());
        let t = Instant::now();
        let state = paused.save().unwrap();
        let bytes = vmm::state::encode(&state).unwrap();
        eprintln!(
            "save {:?} {} bytes, {} msrs",
            t.elapsed(),
            bytes.len(),
            state.vcpus[0].msrs.len()
        );
        let r = &state.vcpus[0];
        let q = |i: usize| u64::from_le_bytes(r.regs[i * 8..i * 8 + 8].try_into().unwrap());
        eprintln!(
            "rip {:#x} rsp {:#x} rflags {:#x} mp {} rax {:#x} rbx {:#x}",
            q(16),
            q(6),
            q(17),
            r.mp_state,
            q(0),
            q(1)
        );
        running = paused.resume().unwrap();
    }
}
