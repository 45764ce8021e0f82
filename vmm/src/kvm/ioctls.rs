//! The KVM ioctls that `kvm-ioctls` does not wrap. Nothing else: no policy, no state.

#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log, kvm_device_attr,
    kvm_dirty_log, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use nr::{
    KVM_CLEAR_DIRTY_LOG, KVM_GET_DEVICE_ATTR, KVM_GET_DIRTY_LOG, KVM_GET_XSAVE2,
    KVM_HAS_DEVICE_ATTR, KVM_RESET_DIRTY_RINGS, KVM_SET_DEVICE_ATTR, KVM_SET_XSAVE,
};

/// Numbers from include/uapi/linux/kvm.h.
mod nr {
    use super::{
        KVMIO, ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr, kvm_clear_dirty_log,
        kvm_device_attr, kvm_dirty_log, kvm_xsave,
    };

    ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xC0, kvm_clear_dirty_log);
    ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xC7);
    ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xCF, kvm_xsave);
    ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xA5, kvm_xsave);
    ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xE2, kvm_device_attr);
    ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xE1, kvm_device_attr);
    ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xE3, kvm_device_attr);
}

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn too_short(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: buffer too short"))
}

/// Reads the dirty log of `slot`, which has `pages` pages, into `words`.
pub fn get_dirty_log(vm: &VmFd, slot: u32, pages: u64, words: &mut [u64]) -> io::Result<()> {
    if (words.len() as u64) < pages.div_ceil(64) {
        return Err(too_short("KVM_GET_DIRTY_LOG"));
    }
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
    // SAFETY: the kernel writes one bit for each page of the slot, rounded up to 64; the buffer
    // was checked to be as long as the caller says the slot is.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Re-arms the pages of `words` from `first_page` (a multiple of 64) of `slot`. `pages` is a
/// multiple of 64 or reaches the end of the slot.
pub fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u32,
    words: &[u64],
) -> io::Result<()> {
    if (words.len() as u64) < u64::from(pages).div_ceil(64) {
        return Err(too_short("KVM_CLEAR_DIRTY_LOG"));
    }
    let mut log = kvm_clear_dirty_log { slot, num_pages: pages, first_page, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
    // SAFETY: the kernel only reads `pages` bits from the buffer, which was checked to hold them.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) })
}

/// Re-arms every page whose ring entry was marked as collected.
pub fn reset_dirty_rings(vm: &VmFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    check(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) })
}

/// Reads the extended state of a vCPU; `bytes` is what `KVM_CAP_XSAVE2` answered.
pub fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u64; bytes.max(size_of::<kvm_xsave>()).div_ceil(8)];
    // SAFETY: the kernel writes as many bytes as KVM_CAP_XSAVE2 told, which the buffer holds.
    check(unsafe {
        ioctl_with_mut_ptr(vcpu, KVM_GET_XSAVE2(), buffer.as_mut_ptr().cast::<kvm_xsave>())
    })?;
    let mut out: Vec<u8> = buffer.into_iter().flat_map(u64::to_ne_bytes).collect();
    out.truncate(bytes);
    Ok(out)
}

/// Writes the extended state of a vCPU; `bytes` is what `KVM_CAP_XSAVE2` answered here.
pub fn set_xsave(vcpu: &VcpuFd, state: &[u8], bytes: usize) -> io::Result<()> {
    if state.len() < bytes.max(size_of::<kvm_xsave>()) || !state.len().is_multiple_of(8) {
        return Err(too_short("KVM_SET_XSAVE"));
    }
    let words = |c: &[u8]| c.try_into().map_or(0, u64::from_ne_bytes);
    let buffer: Vec<u64> = state.chunks_exact(8).map(words).collect();
    // SAFETY: the kernel reads as many bytes as KVM_CAP_XSAVE2 told, which the buffer holds.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), buffer.as_ptr().cast::<kvm_xsave>()) })
}

fn tsc_offset_attr(value: &mut i64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(value) as u64,
    }
}

/// Whether the vCPU has the TSC-offset attribute.
pub fn has_tsc_offset(vcpu: &VcpuFd) -> bool {
    let mut value = 0;
    let attr = tsc_offset_attr(&mut value);
    // SAFETY: the kernel only looks at group and attribute.
    unsafe { ioctl_with_ref(vcpu, KVM_HAS_DEVICE_ATTR(), &attr) == 0 }
}

/// Guest TSC minus host TSC.
pub fn tsc_offset(vcpu: &VcpuFd) -> io::Result<i64> {
    let mut value = 0;
    let mut attr = tsc_offset_attr(&mut value);
    // SAFETY: the kernel writes eight bytes to `addr`, which points at `value`.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_DEVICE_ATTR(), &mut attr) })?;
    Ok(value)
}

/// Sets guest TSC minus host TSC.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: i64) -> io::Result<()> {
    let attr = tsc_offset_attr(&mut offset);
    // SAFETY: the kernel reads eight bytes from `addr`, which points at `offset`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) })
}

/// The host's TSC, now.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has this instruction; user mode may execute it under Linux.
    unsafe { std::arch::x86_64::_rdtsc() }
}
