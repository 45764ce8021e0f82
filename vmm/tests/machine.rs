//! Whole machines on real KVM: they run, stop, are saved and go on elsewhere, and the guest
//! itself says whether its memory is right.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Shape, boot, kvm, restore, resume};
use vm_memory::{Bytes, GuestAddress};
use vmm::config::DirtyTracking;
use vmm::events::GuestEvent;
use vmm::machine::{ClockMode, MachineError};
use vmm::state;

#[test]
fn a_scribbler_survives_pause_and_resume() {
    let Some(kvm) = kvm() else { return };
    for cpus in [1, 2, 5] {
        let (paused, mut host) = boot(&kvm, Shape::new(32, cpus), "ws=8M,rate=max,hb=5ms", vec![]);
        let mut running = resume(paused);
        host.wait("SCRIBBLER-READY");
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(7));
            running = resume(running.pause());
        }
        host.verify();
        drop(running);
    }
}

#[test]
fn a_scribbler_goes_on_in_another_machine() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(32, 2);
    let (paused, mut host) = boot(&kvm, shape, "ws=8M,data=4M,rate=max,pattern=hot,hb=1ms", vec![]);
    let mut running = resume(paused);
    host.wait("SCRIBBLER-READY");
    for cycle in 0..10 {
        std::thread::sleep(Duration::from_millis(20 + cycle));
        let mut old = running.pause();
        let bytes = state::encode(&old.save().unwrap()).unwrap();
        let decoded = state::decode(&bytes).unwrap();
        let (new, report, new_host) = restore(&kvm, shape, &decoded, old.ram(), ClockMode::Account);
        assert!(!report.implausible);
        old.retire();
        running = resume(new);
        host = new_host;
        host.wait(".");
    }
    host.verify();
    host.wait("clk_back=0");
    assert_eq!(host.events.try_next(), None);
    drop(running);
}

/// What comes out of a restore is what went in: saving again at once gives the same registers.
#[test]
fn save_after_restore_is_the_same() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(32, 3);
    let (paused, mut host) = boot(&kvm, shape, "ws=8M,rate=0,hb=100ms", vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let mut first = running.pause();
    let before = first.save().unwrap();
    let (mut second, ..) = restore(&kvm, shape, &before, first.ram(), ClockMode::Account);
    let after = second.save().unwrap();
    for (a, b) in before.vcpus.iter().zip(&after.vcpus) {
        assert_eq!((a.mp_state, &a.regs, &a.sregs), (b.mp_state, &b.regs, &b.sregs));
        assert_eq!((&a.xsave, &a.xcrs, &a.debugregs), (&b.xsave, &b.xcrs, &b.debugregs));
        assert_eq!((&a.cpuid, a.tsc_offset, a.tsc_khz), (&b.cpuid, b.tsc_offset, b.tsc_khz));
        let steady = |m: &&state::v1::MsrEntry| !matches!(m.index, 0x10 | 0x6E0);
        let msrs =
            |s: &state::v1::VcpuState| s.msrs.iter().filter(steady).copied().collect::<Vec<_>>();
        assert_eq!(msrs(a), msrs(b));
    }
    assert_eq!(before.irqchips, after.irqchips);
    assert_eq!(before.serial, after.serial);
    assert!(after.clock.kvmclock_ns >= before.clock.kvmclock_ns);
}

#[test]
fn a_state_of_another_shape_is_refused() {
    let Some(kvm) = kvm() else { return };
    let (mut paused, _host) = boot(&kvm, Shape::new(32, 2), "ws=4M,rate=0", vec![]);
    let state = paused.save().unwrap();
    for (shape, field) in [(Shape::new(64, 2), "memory"), (Shape::new(32, 1), "vCPUs")] {
        let (host, events) = common::host();
        let parts = vmm::machine::Parts {
            config: shape.config(),
            events,
            serial: host.console,
            virtio: vec![],
        };
        let builder = vmm::machine::Builder::new(&kvm, parts).unwrap();
        let error = builder.restore(&state, ClockMode::Account, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(error, MachineError::Shape { .. }), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

type Damage = fn(&mut state::v1::VcpuState);

/// Every part of a vCPU's state, damaged, is refused by name or taken; never a panic.
#[test]
fn damaged_vcpu_states_are_refused() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(16, 1);
    let (mut paused, _host) = boot(&kvm, shape, "ws=4M,rate=0", vec![]);
    let good = paused.save().unwrap();
    let damage: [(&str, Damage); 6] = [
        ("regs", |v| v.regs.truncate(1)),
        ("sregs", |v| v.sregs.push(0)),
        ("xsave", |v| v.xsave.clear()),
        ("events", |v| v.events.truncate(3)),
        ("lapic", |v| v.lapic.truncate(8)),
        ("MSR 0xdead", |v| v.msrs.push(state::v1::MsrEntry { index: 0xDEAD, value: 1 })),
    ];
    for (name, damage) in damage {
        let mut bad = good.clone();
        damage(&mut bad.vcpus[0]);
        let (host, events) = common::host();
        let parts = vmm::machine::Parts {
            config: shape.config(),
            events,
            serial: host.console,
            virtio: vec![],
        };
        let builder = vmm::machine::Builder::new(&kvm, parts).unwrap();
        let error = builder.restore(&bad, ClockMode::Account, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
}

#[test]
fn the_power_button_ends_a_scribbler() {
    let Some(kvm) = kvm() else { return };
    let (paused, mut host) = boot(&kvm, Shape::new(16, 1), "ws=4M,rate=0,poll=20ms", vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    running.controls().press_power_button();
    host.wait("SCRIBBLER-POWEROFF");
    assert_eq!(host.events.next(), Some(GuestEvent::PowerOff));
}

#[test]
fn throttling_slows_a_guest_and_ends() {
    let Some(kvm) = kvm() else { return };
    let (paused, mut host) = boot(&kvm, Shape::new(32, 2), "ws=8M,rate=max", vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let controls = running.controls();
    assert_eq!(controls.cpu_share(), 100);
    controls.set_cpu_share(20).unwrap();
    assert_eq!(controls.cpu_share(), 20);
    // A pause in the middle of a throttled sleep must not wait for it.
    let running = resume(running.pause());
    controls.set_cpu_share(100).unwrap();
    host.verify();
    drop(running);
    controls.set_cpu_share(50).unwrap();
}

#[test]
fn a_poisoned_page_is_found_by_the_guest() {
    let Some(kvm) = kvm() else { return };
    let (paused, mut host) = boot(&kvm, Shape::new(32, 1), "ws=8M,rate=0", vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let paused = running.pause();
    // Any page of the working set: change one byte behind the guest's back.
    let control = scribbler_control(paused.ram());
    let gpa = control.gfn(100) * 4096 + 1000;
    let old: u8 = paused.ram().mem().read_obj(GuestAddress(gpa)).unwrap();
    paused.ram().mem().write_obj(old ^ 4, GuestAddress(gpa)).unwrap();
    let _running = resume(paused);
    host.console.send_input(b"v");
    host.wait("VERIFY BAD");
}

fn scribbler_control(ram: &vmm::memory::GuestRam) -> vmm::scribbler::layout::Control {
    let mut bytes = vec![0; vmm::scribbler::layout::CONTROL_LEN];
    ram.mem().read_slice(&mut bytes, GuestAddress(vmm::scribbler::layout::CONTROL)).unwrap();
    vmm::scribbler::layout::Control::parse(&bytes).unwrap()
}

/// A copy made by harvesting while the guest writes equals its memory, for every kind of log.
#[test]
fn a_copy_by_dirty_log_is_exact() {
    let Some(kvm) = kvm() else { return };
    for tracking in [DirtyTracking::Log, DirtyTracking::Ring, DirtyTracking::PlainLog] {
        let shape = Shape { tracking, ..Shape::new(48, 2) };
        let (paused, mut host) = boot(&kvm, shape, "ws=16M,rate=20000,pattern=random", vec![]);
        let running = resume(paused);
        host.wait("SCRIBBLER-READY");
        let mut log = running.dirty_log().unwrap();
        assert!(running.dirty_log().is_err(), "one log at a time");
        let pages = log.pages();
        let mut copy: Vec<Vec<u8>> = vec![vec![]; usize::try_from(pages).unwrap()];
        let all = if log.initially_set() { 0 } else { pages };
        for number in 0..all {
            copy[usize::try_from(number).unwrap()] = common::page(running.ram(), number);
        }
        for round in 0..6u64 {
            log.sync().unwrap();
            let step = 64 * (1 + round * 7);
            for start in (0..pages).step_by(usize::try_from(step).unwrap()) {
                take(&mut log, start..start + step, running.ram(), &mut copy);
            }
        }
        let mut paused = running.pause();
        paused.save().unwrap();
        log.sync().unwrap();
        take(&mut log, 0..pages, paused.ram(), &mut copy);
        log.sync().unwrap();
        assert_eq!(log.found(), 0, "nothing changes while paused");
        for number in 0..pages {
            let index = usize::try_from(number).unwrap();
            assert!(
                copy[index] == common::page(paused.ram(), number),
                "{tracking:?} page {number}"
            );
        }
        log.stop().unwrap();
        assert!(paused.dirty_log().is_ok());
    }
}

fn take(
    log: &mut vmm::memory::dirty::DirtyLog,
    pages: std::ops::Range<u64>,
    ram: &vmm::memory::GuestRam,
    copy: &mut [Vec<u8>],
) {
    log.harvest(pages, |first, word| {
        for bit in (0..64).filter(|b| word & (1 << b) != 0) {
            copy[usize::try_from(first + bit).unwrap()] = common::page(ram, first + bit);
        }
    })
    .unwrap();
}
