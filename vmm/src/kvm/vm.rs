//! One KVM machine without vCPUs and devices: memory slots, interrupt controllers, timer.

#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Kvm, KvmError};
use crate::config::DirtyTracking;
use crate::memory::GuestRam;
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// Entries of a vCPU's dirty ring: as many as KVM takes, up to this.
const RING_ENTRIES: u32 = 16_384;
/// Bytes of one entry (`struct kvm_dirty_gfn`).
const RING_ENTRY_BYTES: u32 = 16;

/// How the log of this machine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogMode {
    /// `KVM_GET_DIRTY_LOG` reads, `KVM_CLEAR_DIRTY_LOG` re-arms.
    Manual {
        /// Every page counts as written when the log is switched on.
        initially_set: bool,
    },
    /// `KVM_GET_DIRTY_LOG` reads and re-arms everything at once.
    Plain,
    /// Rings with so many entries each.
    Ring(u32),
}

/// A machine in KVM. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    ram: GuestRam,
    log_mode: LogMode,
}

impl Vm {
    /// Makes a machine with `ram` in its slots, interrupt controllers and a timer chip.
    pub fn new(kvm: &Kvm, ram: GuestRam, tracking: DirtyTracking) -> Result<Self, KvmError> {
        let fd = create(kvm)?;
        let log_mode = enable_log(kvm, &fd, tracking)?;
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(KVM_TSS).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
        // The speaker's port answers in the kernel, so that a guest's beep costs no exit.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(KvmError::call("KVM_CREATE_PIT2"))?;
        let vm = Self { fd: Arc::new(fd), ram, log_mode };
        vm.set_slots(0)?;
        Ok(vm)
    }

    /// The descriptor.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The RAM in its slots; slot `i` is range `i`.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// How its dirty log works.
    pub fn log_mode(&self) -> LogMode {
        self.log_mode
    }

    /// Switches dirty logging of all slots on or off.
    pub fn set_logging(&self, on: bool) -> Result<(), KvmError> {
        self.set_slots(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    fn set_slots(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, range) in (0u32..).zip(self.ram.ranges()) {
            let host = self.ram.mem().get_host_address(GuestAddress(range.gpa)).map_err(|e| {
                KvmError::Call { call: "a memory slot", source: std::io::Error::other(e) }
            })?;
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: range.gpa,
                memory_size: range.len,
                userspace_addr: host as u64,
            };
            // SAFETY: the range is mapped for as long as `self.ram` lives, and `self` keeps it.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}

/// `KVM_CREATE_VM` is interruptible, and a busy host makes it fail with EINTR.
fn create(kvm: &Kvm) -> Result<VmFd, KvmError> {
    for _ in 0..5 {
        match kvm.fd().create_vm() {
            Err(e) if e.errno() == libc::EINTR => {}
            other => return other.map_err(KvmError::call("KVM_CREATE_VM")),
        }
    }
    kvm.fd().create_vm().map_err(KvmError::call("KVM_CREATE_VM"))
}

/// Chooses the way of logging. It must be settled before the first vCPU.
fn enable_log(kvm: &Kvm, fd: &VmFd, tracking: DirtyTracking) -> Result<LogMode, KvmError> {
    let caps = kvm.capabilities();
    if tracking == DirtyTracking::Ring {
        if caps.dirty_ring_bytes == 0 {
            return Err(KvmError::Capability {
                name: "KVM_CAP_DIRTY_LOG_RING",
                why: "dirty_tracking = \"ring\"; \"log\" does without",
            });
        }
        let bytes = caps.dirty_ring_bytes.min(RING_ENTRIES * RING_ENTRY_BYTES);
        enable(fd, KVM_CAP_DIRTY_LOG_RING, u64::from(bytes))
            .map_err(KvmError::call("KVM_CAP_DIRTY_LOG_RING"))?;
        return Ok(LogMode::Ring(bytes / RING_ENTRY_BYTES));
    }
    if tracking == DirtyTracking::PlainLog {
        return Ok(LogMode::Plain);
    }
    let both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    let wanted = caps.manual_dirty_log & both;
    if wanted & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE == 0 {
        return Ok(LogMode::Plain);
    }
    enable(fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, u64::from(wanted))
        .map_err(KvmError::call("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"))?;
    Ok(LogMode::Manual { initially_set: wanted & KVM_DIRTY_LOG_INITIALLY_SET != 0 })
}

fn enable(fd: &VmFd, cap: u32, arg: u64) -> Result<(), kvm_ioctls::Error> {
    let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
    fd.enable_cap(&cap)
}
