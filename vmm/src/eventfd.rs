//! An event counter (eventfd) that both KVM and epoll take.
//!
//! `kvm-ioctls` wants `vmm-sys-util`'s type, everything else wants `AsFd`; this joins them.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd as sys;

/// A non-blocking, close-on-exec event counter. Cloning shares it.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<sys::EventFd>);

impl EventFd {
    /// A counter at zero.
    pub fn new() -> io::Result<Self> {
        sys::EventFd::new(sys::EFD_CLOEXEC | sys::EFD_NONBLOCK).map(|fd| Self(Arc::new(fd)))
    }

    /// Adds one, waking who waits. It fails only when the counter is full, and then whoever
    /// waits has been woken already: there is nothing to report.
    pub fn signal(&self) {
        let _ = self.0.write(1);
    }

    /// Sets the counter to zero; `true` if it was not.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }

    /// For KVM.
    pub fn sys(&self) -> &sys::EventFd {
        &self.0
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is owned by `self.0` and outlives the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
