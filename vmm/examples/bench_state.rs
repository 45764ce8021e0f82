//! Times what a switch-over spends outside of memory: stopping vCPUs, saving the state, making
//! the machine, restoring the state. Prints medians and 99th percentiles in microseconds.
//!
//! `cargo run --release -p vmm --example bench_state -- [VCPUS] [CYCLES]`

use std::time::{Duration, Instant};

use vmm::boot::{BootSource, KernelImage};
use vmm::config::{DirtyTracking, MachineConfig, MemoryConfig, VcpuCount};
use vmm::devices::console::{Console, ConsoleConfig, Position};
use vmm::kvm::Kvm;
use vmm::machine::{Builder, ClockMode, Parts, Paused, VirtioSpec};
use vmm::scribbler::{self, Params};
use vmm::state;

const MIB: u64 = 64;
const GUEST: &str = "ws=32M,rate=max,hb=10ms";

type Failure = Box<dyn std::error::Error>;

fn parts(vcpus: u32) -> Result<(Parts, Console), Failure> {
    let config = MachineConfig {
        memory: MemoryConfig::new(MIB << 20, false)?,
        vcpus: VcpuCount::try_from(vcpus)?,
        cpu_template: "host".into(),
        cpu_model: None,
        dirty_tracking: DirtyTracking::Log,
        generation_id: [1; 16],
    };
    let (events, _) = vmm::events::channel_pair()?;
    let console = Console::new(ConsoleConfig::default())?;
    let urandom = std::fs::File::open("/dev/urandom")?;
    let virtio = vec![VirtioSpec::Rng(urandom), VirtioSpec::Console(console.port())];
    Ok((Parts { config, events, serial: console.clone(), virtio }, console))
}

fn boot(kvm: &Kvm, vcpus: u32) -> Result<Paused, Failure> {
    let (parts, console) = parts(vcpus)?;
    let mut source = BootSource {
        kernel: KernelImage::Bytes(scribbler::elf()),
        initrd: None,
        cmdline: Params::parse(GUEST)?.command_line(vcpus, None),
        acpi: true,
    };
    let running = Builder::new(kvm, parts)?.boot(&mut source)?.resume().map_err(|(_, e)| e)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    console.subscribe(Position::Scrollback).wait_for(b"SCRIBBLER-READY", deadline)?;
    Ok(running.pause())
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |q: usize| times.get((times.len() - 1) * q / 100).map_or(0, Duration::as_micros);
    println!("{name:28} median {:6} µs   p99 {:6} µs   max {:6} µs", at(50), at(99), at(100));
}

fn main() -> Result<(), Failure> {
    let argument = |n| std::env::args().nth(n).and_then(|a| a.parse().ok());
    let (vcpus, cycles) = (argument(1).unwrap_or(2), argument(2).unwrap_or(200));
    let kvm = Kvm::open()?;
    let mut paused = boot(&kvm, vcpus)?;
    let (mut stop, mut drain, mut save, mut make, mut restore) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut bytes = 0;
    for _ in 0..cycles {
        let running = paused.resume().map_err(|(_, e)| e)?;
        std::thread::sleep(Duration::from_millis(5));
        paused = running.pause();
        stop.push(paused.stop_times().vcpus);
        drain.push(paused.stop_times().devices);
        let start = Instant::now();
        let blob = state::encode(&paused.save()?)?;
        save.push(start.elapsed());
        bytes = blob.len();
        let start = Instant::now();
        let builder = Builder::new(&kvm, parts(vcpus)?.0)?;
        make.push(start.elapsed());
        let start = Instant::now();
        let decoded = state::decode(&blob)?;
        let (copy, _) = builder.restore(&decoded, ClockMode::Account, &mut |_| Ok(()))?;
        restore.push(start.elapsed());
        copy.retire();
    }
    println!("{vcpus} vCPUs at work, {cycles} cycles, state of {bytes} bytes");
    report("stop vCPUs", stop);
    report("drain devices", drain);
    report("save and encode", save);
    report("make an empty machine", make);
    report("decode and restore", restore);
    Ok(())
}
