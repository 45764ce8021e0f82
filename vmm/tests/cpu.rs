//! Guests between two hosts of which one can show them less. Both are this machine: the lesser
//! one hides a feature.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Shape, copy_ram, host, kvm, resume};
use vmm::boot::{BootSource, KernelImage};
use vmm::config::MachineConfig;
use vmm::cpu::baseline::common as common_to;
use vmm::cpu::compat::{Lack, missing};
use vmm::cpu::{ARCH_CAPABILITIES, CpuModel, features, host as this};
use vmm::kvm::Kvm;
use vmm::machine::{Builder, ClockMode, MachineError, Parts, Paused};
use vmm::scribbler::{self, Params};

/// Features of which any KVM has one, and that the scribbler does not use.
const SPARE: [&str; 6] = ["clwb", "umip", "clflushopt", "rdseed", "movbe", "popcnt"];

/// Bits of the register that promise nothing: RSBA and RRSBA.
const NOT_WELL: u64 = 1 << 2 | 1 << 19;

fn boot(kvm: &Kvm, config: MachineConfig) -> Result<(Paused, common::Host), MachineError> {
    let (host, events) = host();
    let params = Params::parse("ws=4M,rate=max,hb=5ms").unwrap();
    let mut source = BootSource {
        kernel: KernelImage::Bytes(scribbler::elf()),
        initrd: None,
        cmdline: params.command_line(1, Some(0x600)),
        acpi: true,
    };
    let parts = Parts { config, events, serial: host.console.clone(), virtio: vec![] };
    Ok((Builder::new(kvm, parts)?.boot(&mut source)?, host))
}

/// Saves a guest and tries to bring it back on `to`.
fn bring(
    to: &Kvm,
    config: MachineConfig,
    from: &mut Paused,
) -> Result<(Paused, common::Host), MachineError> {
    let (host, events) = host();
    let state = from.save().unwrap();
    let parts = Parts { config, events, serial: host.console.clone(), virtio: vec![] };
    let mut fill = |ram: &vmm::memory::GuestRam| {
        copy_ram(from.ram(), ram);
        Ok(())
    };
    let (paused, _) = Builder::new(to, parts)?.restore(&state, ClockMode::Account, &mut fill)?;
    Ok((paused, host))
}

fn lesser(kvm: &Kvm) -> (Kvm, String) {
    let offered = features::names(&this::offered(kvm).unwrap());
    let spare = SPARE.into_iter().find(|name| offered.iter().any(|o| o == name));
    let name = spare.expect("a feature to spare").to_owned();
    (kvm.clone().hiding(vec![name.clone()]), name)
}

#[test]
fn a_guest_goes_where_its_cpu_is_and_nowhere_else() {
    let Some(kvm) = kvm() else { return };
    let (lesser, name) = lesser(&kvm);
    let config = Shape::new(32, 1).config();

    // All that this host has: not there.
    let (paused, mut console) = boot(&kvm, config.clone()).unwrap();
    let running = resume(paused);
    console.wait("SCRIBBLER-READY");
    let mut paused = running.pause();
    match bring(&lesser, config.clone(), &mut paused) {
        Err(MachineError::Cpu(Lack::Features(names))) => {
            assert_eq!(names, *std::slice::from_ref(&name));
        }
        other => panic!("{:?}", other.map(|_| "it was restored")),
    }
    let running = resume(paused);
    console.verify();
    drop(running);

    // What both have: to the lesser one and back.
    let offered = [this::offered(&kvm).unwrap(), this::offered(&lesser).unwrap()];
    let base = common_to(&offered.iter().collect::<Vec<&CpuModel>>()).unwrap();
    let config = MachineConfig { cpu_model: Some(base.clone()), ..config };
    let (paused, mut console) = boot(&kvm, config.clone()).unwrap();
    let shown = paused.controls().cpu().model.clone();
    assert!(!features::names(&shown).contains(&name));
    assert_eq!(missing(&shown, &offered[1]), Vec::<String>::new());
    let promised = |model: &CpuModel| model.msr(ARCH_CAPABILITIES) & !NOT_WELL;
    assert_eq!(promised(&shown) & !promised(&base), 0, "no more than the template promises");
    let running = resume(paused);
    console.wait("SCRIBBLER-READY");
    let mut paused = running.pause();
    for to in [&lesser, &kvm, &lesser] {
        let (next, mut console) = bring(to, config.clone(), &mut paused).unwrap();
        assert_eq!(next.controls().cpu().model, shown);
        paused.retire();
        let running = resume(next);
        console.verify();
        paused = running.pause();
    }
}

#[test]
fn a_template_of_another_host_is_refused_by_name() {
    let Some(kvm) = kvm() else { return };
    let (lesser, name) = lesser(&kvm);
    let full = this::offered(&kvm).unwrap();
    let config = MachineConfig { cpu_model: Some(full), ..Shape::new(32, 1).config() };
    match boot(&lesser, config) {
        Err(MachineError::Cpu(Lack::Features(names))) => assert_eq!(names, [name]),
        other => panic!("{:?}", other.map(|_| "it was booted")),
    }
}

#[test]
fn a_host_says_what_it_has() {
    let Some(kvm) = kvm() else { return };
    let cpu = this::probe(&kvm).unwrap();
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let field = |name: &str| {
        let line = text.lines().find(|l| l.split(':').next().map(str::trim) == Some(name));
        line.and_then(|l| l.split_once(':')).unwrap().1.trim().to_owned()
    };
    assert_eq!(cpu.model.vendor(), field("vendor_id"));
    let (family, model, _) = cpu.model.signature();
    assert_eq!((family.to_string(), model.to_string()), (field("cpu family"), field("model")));
    assert!(cpu.tsc_khz > 100_000 && cpu.xsave_bytes >= 4096);
    // Whatever is offered under a name of the kernel is in the kernel's list of this CPU, but for
    // what KVM emulates.
    let flags = field("flags");
    let known: Vec<&str> = flags.split(' ').collect();
    for name in ["sse2", "aes", "avx", "avx2", "avx512f", "popcnt", "clwb", "sha_ni", "xsave"] {
        if features::names(&cpu.model).iter().any(|n| n == name) {
            assert!(known.contains(&name), "{name}");
        }
    }
}
