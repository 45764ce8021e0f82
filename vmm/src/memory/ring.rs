//! Dirty rings: one for each vCPU, filled by KVM, collected here.
//!
//! Layout and protocol: Documentation/virt/kvm/api.rst, section on `KVM_CAP_DIRTY_LOG_RING`.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::VcpuFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::dirty::DirtyError;
use super::layout::PAGE_SIZE;
use crate::kvm::{Vm, ioctls};

/// An entry that KVM filled.
const DIRTY: u32 = 1;
/// An entry that was collected.
const RESET: u32 = 2;

/// The ring of one vCPU.
#[derive(Debug)]
struct Ring {
    base: NonNull<kvm_dirty_gfn>,
    entries: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value alone and is valid in every thread.
unsafe impl Send for Ring {}

impl Ring {
    fn map(vcpu: &VcpuFd, entries: u32) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(entries as usize * size_of::<kvm_dirty_gfn>())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE.cast_signed();
        // SAFETY: the descriptor is open for as long as `vcpu` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice harms nothing.
        let base = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, fd, offset)? };
        Ok(Self { base: base.cast(), entries, next: 0 })
    }

    /// Hands over the next entry that KVM filled, if there is one, and marks it as collected.
    fn take(&mut self) -> Option<(u32, u64)> {
        // SAFETY: the index is below the number of entries mapped.
        let entry = unsafe { self.base.add((self.next % self.entries) as usize) };
        // SAFETY: the flags are the entry's first, aligned word; KVM shares them atomically.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry.as_ptr()).flags) };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: KVM does not touch an entry between filling it and its reset.
        let (slot, offset) = unsafe { ((*entry.as_ptr()).slot, (*entry.as_ptr()).offset) };
        flags.store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some((slot, offset))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.entries as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: exactly what `map` mapped, and nobody else has a pointer into it.
        let _ = unsafe { munmap(self.base.cast(), bytes) };
    }
}

#[derive(Debug, Default)]
struct Inner {
    rings: Vec<Ring>,
    /// Collected by a vCPU whose ring was full, for the next harvest: (slot, page).
    backlog: Vec<(u32, u64)>,
}

/// The rings of a machine.
#[derive(Debug, Default)]
pub struct RingSet(Mutex<Inner>);

impl RingSet {
    /// Maps the ring of a new vCPU.
    pub fn add(&self, vcpu: &VcpuFd, entries: u32) -> io::Result<()> {
        let ring = Ring::map(vcpu, entries)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rings.push(ring);
        Ok(())
    }

    /// Collects every ring, re-arms the pages, and only then hands them over as (slot, page of
    /// the slot): whoever reads a page afterwards sees it as it was when it was re-armed, or
    /// newer and reported again.
    pub fn collect(&self, vm: &Vm, visit: &mut dyn FnMut(usize, u64)) -> Result<(), DirtyError> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.drain(vm)?;
        for (slot, page) in inner.backlog.drain(..) {
            // The upper half of the number is the address space; there is only one.
            visit((slot & 0xFFFF) as usize, page);
        }
        Ok(())
    }

    /// Makes room in the rings, keeping what they held. For a vCPU whose ring is full.
    pub fn relieve(&self, vm: &Vm) -> Result<(), DirtyError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(vm)
    }
}

impl Inner {
    fn drain(&mut self, vm: &Vm) -> Result<(), DirtyError> {
        let before = self.backlog.len();
        for ring in &mut self.rings {
            while let Some(entry) = ring.take() {
                self.backlog.push(entry);
            }
        }
        if self.backlog.len() > before {
            ioctls::reset_dirty_rings(vm.fd())
                .map_err(|source| DirtyError::Log { call: "KVM_RESET_DIRTY_RINGS", source })?;
        }
        // The same page may be dirtied any number of times before it is harvested.
        if self.backlog.len() > 1 << 16 {
            self.backlog.sort_unstable();
            self.backlog.dedup();
        }
        Ok(())
    }
}
