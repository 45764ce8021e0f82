//! The CPU that the guest knows is not to be had, and what KVM refuses of a vCPU.

use std::fs;

use vmm::cpu::rules::{How, Rule, of};
use vmm::cpu::{CpuModel, Register, features, host};
use vmm::kvm::Kvm;

use crate::catalogue::{Cell, Pair, Undo, cell, odd};
use crate::support::kvm;

const TEMPLATE: &str = "--cpu-template @FILE";
const SAME_CPU: &str = "same kind of CPU";

fn cpu(oddity: &str, parts: [&str; 4]) -> Cell {
    odd(oddity, "incompatible", parts)
}

/// For every register of CPUID that tells of features: one of those that this host has, and that
/// a guest is shown.
fn one_of_each(model: &CpuModel) -> Vec<((u32, u32, Register), String)> {
    let mut found = Vec::new();
    for leaf in &model.leaves {
        let (function, subleaf) = leaf.place();
        let Some(How::Registers(rules)) = of(function, subleaf) else { continue };
        for (register, rule) in Register::ALL.into_iter().zip(rules) {
            let Rule::Bits { and, .. } = rule else { continue };
            // Those of which hiding them takes others along are left: more would be named.
            let alone = |name: &String| {
                let mut less = model.clone();
                features::hide(&mut less, std::slice::from_ref(name));
                vmm::cpu::compat::missing(model, &less) == [name.clone()]
            };
            let bits = (0..32).rev().filter(|bit| leaf.get(register) & and & (1 << bit) != 0);
            let mut features = bits.map(|bit| features::name(function, subleaf, register, bit));
            let found_one = features.find(|name| !name.starts_with("cpuid:") && alone(name));
            if let Some(name) = found_one {
                found.push(((function, subleaf, register), name));
            }
        }
    }
    found
}

/// `host.toml` of beta has these lines more, which are read each time.
fn masked(pair: &Pair, lines: &str) -> Undo {
    let file = pair.beta().dirs().config.join("host.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{before}{lines}")).unwrap();
    Box::new(move |_| fs::write(file, before).unwrap())
}

#[test]
fn features_of_every_leaf() {
    if !kvm() {
        return;
    }
    let model = host::offered(&Kvm::open().unwrap()).unwrap();
    let mut cells = Vec::new();
    for (at, ((leaf, subleaf, register), feature)) in one_of_each(&model).into_iter().enumerate() {
        let name = format!("CPUID {leaf:#x}.{subleaf} {register:?}");
        // Usually the daemon knows of it, and says so before anything begins.
        if at % 4 == 0 {
            let mask = format!("[cpu]\nmask = [\"{feature}\"]\n");
            let known = format!("{name}, known to the daemon");
            let parts = ["beta", &feature, "lacks", TEMPLATE];
            cells.push(cell(&known, "cpu-mismatch", parts, move |pair| masked(pair, &mask)));
        }
        // But it may be that only the guest's process finds out.
        cells.push(Cell {
            name,
            ..cpu(&format!("hide {feature}"), ["CPU or KVM", &feature, "lacks", TEMPLATE])
        });
    }
    assert!(cells.len() >= 8, "{} cells", cells.len());
    Pair::new(&[]).try_all("CPUs: features", cells);
}

#[test]
fn registers_and_clocks() {
    if !kvm() {
        return;
    }
    let pair = Pair::new(&[]);
    let host = pair.site.a.home.done(&["host", "cpu", "alpha"])["hosts"][0].clone();
    let cpu_of = |field: &str| host["cpu"].get(field).unwrap_or(&host[field]).clone();
    let khz = cpu_of("tsc_khz").as_u64().unwrap();
    let vendor = cpu_of("vendor").as_str().unwrap().to_owned();
    let xsave = cpu_of("xsave_bytes").as_u64().unwrap().to_string();
    let (khz, doubled) = (khz.to_string(), (khz * 2).to_string());
    let vcpu = "vCPU 0";
    let cells = vec![
        cpu("state vendor", ["CPU", "OddCPUInc.", &vendor, "same vendor"]),
        cpu("state address-bits", ["physical addresses", "62-bit", "lacks", TEMPLATE]),
        cpu("state layout", ["CPUID 0xd.2", "layout", "lacks", TEMPLATE]),
        cpu("state kvm-leaf", ["0x40000001", "eax.23", "lacks", TEMPLATE]),
        cpu("state second-vcpu", ["0x40000001", "eax.23", "lacks", TEMPLATE]),
        cpu("state tsc", ["TSC", &doubled, &khz, "same TSC frequency"]),
        cpu("state msr-unknown", ["MSR 0xdead", "0x7", "cannot be set", SAME_CPU]),
        cpu("state msr-reserved", ["MSR 0x2ff", "0xffffffff00000c06", "here it is 0x", SAME_CPU]),
        cpu("state msr-address", ["MSR 0xc0000082", "0x8000000000000000", "here", SAME_CPU]),
        cpu("state msr-apic-base", ["MSR 0x1b", "0xffffffffffffffff", "here it is 0x", SAME_CPU]),
        cpu("state msr-efer", ["MSR 0xc0000080", "0x4000000000000000", "here it is", SAME_CPU]),
        cpu("state xsave-longer", ["xsave", "bytes", &xsave, SAME_CPU]),
        cpu("state xsave-shorter", ["xsave", "1024 bytes", &xsave, SAME_CPU]),
        cpu("state xsave-components", ["XSTATE_BV", "0x100", "KVM has 0x", SAME_CPU]),
        cpu("state xcr0", ["XCR0", "0x100", "KVM has 0x", SAME_CPU]),
        cpu("state xcrs", ["XCRs", "more", "than KVM takes", SAME_CPU]),
        cpu("state mp-state", [vcpu, "mp_state 99", "KVM_SET_MP_STATE", SAME_CPU]),
        cpu("state cr4", [vcpu, "cr4 0x40000000000", "KVM_SET_SREGS", SAME_CPU]),
        cpu("state dr7", [vcpu, "dr7 0x10000000", "KVM_SET_DEBUGREGS", SAME_CPU]),
        cpu("state events", [vcpu, "flags 0x80", "KVM_SET_VCPU_EVENTS", SAME_CPU]),
        cpu("state regs-size", ["field regs", "100 bytes", "144", SAME_CPU]),
        cpu("state sregs-size", ["field sregs", "100 bytes", "312", SAME_CPU]),
        cpu("state lapic-size", ["field lapic", "512 bytes", "1024", SAME_CPU]),
        // Calls that fail with these errors: EINVAL, ENOMEM, ENOSPC.
        cpu("call AE90 22", [vcpu, "KVM_SET_CPUID2", "Invalid argument", SAME_CPU]),
        cpu("call AE8F 22", [vcpu, "KVM_SET_LAPIC", "Invalid argument", SAME_CPU]),
        cpu("call AE41 12", [vcpu, "KVM_CREATE_VCPU", "Cannot allocate memory", SAME_CPU]),
        cpu("call AE63 22", ["KVM_SET_IRQCHIP", "refused", "Invalid argument", "dmesg"]),
        cpu("call AE7B 22", ["KVM_SET_CLOCK", "refused", "Invalid argument", "dmesg"]),
        cpu("call AE79 28", ["KVM_IOEVENTFD", "refused", "No space left", "dmesg"]),
    ];
    pair.try_all("CPUs: registers, clocks, calls", cells);
}
