//! Restores of vCPUs in every activity state: running, halted, waiting for SIPI, and holding an
//! interrupt that came while the machine stood still.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Shape, boot_source, kvm, restore, resume};
use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED};
use vmm::boot::{BootSource, KernelImage};
use vmm::events::GuestEvent;
use vmm::kvm::Kvm;
use vmm::machine::{ClockMode, Paused};
use vmm::scribbler::{self, Params};
use vmm::state::{self, v1::MachineState};

/// A scribbler that uses `used` of the machine's vCPUs; the others never get a SIPI.
fn boot_with_spare(kvm: &Kvm, shape: Shape, spec: &str, used: u32) -> (Paused, common::Host) {
    let mut source = BootSource {
        kernel: KernelImage::Bytes(scribbler::elf()),
        initrd: None,
        cmdline: Params::parse(spec).unwrap().command_line(used, Some(0x600)),
        acpi: true,
    };
    boot_source(kvm, shape, &mut source, vec![])
}

fn activity(state: &MachineState) -> Vec<u32> {
    state.vcpus.iter().map(|v| v.mp_state).collect()
}

fn through_bytes(state: &MachineState) -> MachineState {
    state::decode(&state::encode(state).unwrap()).unwrap()
}

#[test]
fn running_and_waiting_for_sipi() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(32, 3);
    let (paused, mut host) = boot_with_spare(&kvm, shape, "ws=8M,rate=max,hb=1ms", 1);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let mut old = running.pause();
    let saved = old.save().unwrap();
    let waiting = KVM_MP_STATE_UNINITIALIZED;
    assert_eq!(activity(&saved), [KVM_MP_STATE_RUNNABLE, waiting, waiting]);
    let (mut new, _, mut host) =
        restore(&kvm, shape, &through_bytes(&saved), old.ram(), ClockMode::Account);
    old.retire();
    assert_eq!(activity(&new.save().unwrap()), activity(&saved));
    let running = resume(new);
    host.wait(".");
    // A vCPU that waits must also stop at once when asked to.
    let running = resume(running.pause());
    host.verify();
    drop(running);
}

/// The guest's idle vCPU wakes from its timer, which went on while it was saved.
#[test]
fn halted() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(32, 2);
    let (paused, mut host) = common::boot(&kvm, shape, "ws=4M,rate=0,hb=50ms", vec![]);
    let mut running = resume(paused);
    host.wait("SCRIBBLER-READY");
    for attempt in 0.. {
        assert!(attempt < 100, "no vCPU was ever found halted");
        std::thread::sleep(Duration::from_millis(5 + attempt));
        let mut old = running.pause();
        let saved = old.save().unwrap();
        if !activity(&saved).contains(&KVM_MP_STATE_HALTED) {
            running = resume(old);
            continue;
        }
        let (mut new, _, new_host) =
            restore(&kvm, shape, &through_bytes(&saved), old.ram(), ClockMode::Account);
        old.retire();
        host = new_host;
        assert_eq!(activity(&new.save().unwrap()), activity(&saved));
        running = resume(new);
        break;
    }
    host.wait(".");
    host.wait(".");
    host.verify();
    drop(running);
}

/// What is pressed while the machine stands still is in the state that is saved then.
#[test]
fn an_interrupt_that_came_while_paused() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(16, 1);
    let (paused, mut host) = common::boot(&kvm, shape, "ws=4M,rate=0,poll=20ms", vec![]);
    let running = resume(paused);
    host.wait("SCRIBBLER-READY");
    let mut old = running.pause();
    old.controls().press_power_button();
    let saved = old.save().unwrap();
    let (new, _, mut host) =
        restore(&kvm, shape, &through_bytes(&saved), old.ram(), ClockMode::Account);
    old.retire();
    let _running = resume(new);
    host.wait("SCRIBBLER-POWEROFF");
    assert_eq!(host.events.next(), Some(GuestEvent::PowerOff));
}

/// `IA32_MTRR_DEF_TYPE`, and the first variable range's mask, which the guest could have set.
const MTRRS: [(u32, u64); 2] = [(0x2FF, 0xC06), (0x201, 0xFC00_0800)];

#[test]
fn memory_types() {
    let Some(kvm) = kvm() else { return };
    let shape = Shape::new(16, 1);
    let (mut paused, _host) = common::boot(&kvm, shape, "ws=4M,rate=0", vec![]);
    let mut saved = paused.save().unwrap();
    for (index, value) in MTRRS {
        let msr = saved.vcpus[0].msrs.iter_mut().find(|m| m.index == index);
        msr.unwrap_or_else(|| panic!("MSR {index:#x} is not saved")).value = value;
    }
    let (mut new, ..) = restore(&kvm, shape, &saved, paused.ram(), ClockMode::Account);
    let again = new.save().unwrap();
    for (index, value) in MTRRS {
        let msr = again.vcpus[0].msrs.iter().find(|m| m.index == index).unwrap();
        assert_eq!(msr.value, value, "MSR {index:#x}");
    }
}
