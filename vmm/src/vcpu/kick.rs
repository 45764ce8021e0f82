//! Makes a vCPU leave `KVM_RUN`: a signal whose handler sets `immediate_exit`.
//!
//! The handler runs in the vCPU's thread, so there is no race: a signal before `KVM_RUN` makes it
//! return at once, one during it interrupts it.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr;
use std::sync::Once;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks.
pub fn signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUN_PAGE.with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: the pointer is set while the vCPU, and so its mapping, is alive in this
            // thread; a volatile store of one byte is async-signal-safe.
            unsafe { ptr::write_volatile(&raw mut (*page).immediate_exit, 1) };
        }
    });
}

/// Installs the handler, once for the process.
pub fn install() -> std::io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_signal_handler(signal(), on_kick)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()));
    });
    result
}

/// The `kvm_run` page of the vCPU that this thread runs. Dropping it ends the signal's reach.
#[derive(Debug)]
pub struct RunPage(*mut kvm_run);

impl RunPage {
    /// Registers `vcpu` with this thread. The value must not outlive `vcpu`.
    pub fn register(vcpu: &mut VcpuFd) -> Self {
        let page = ptr::from_mut(vcpu.get_kvm_run());
        RUN_PAGE.with(|p| p.set(page));
        Self(page)
    }

    /// Whether `KVM_RUN` will return at once without running the guest.
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the page is mapped while the vCPU lives; the handler writes the same byte from
        // this very thread.
        unsafe { ptr::write_volatile(&raw mut (*self.0).immediate_exit, u8::from(on)) };
    }

    /// Bytes of one access of the last port exit; the exit may carry several (`rep outs`).
    pub fn port_access_size(&self) -> usize {
        // SAFETY: the page is mapped, KVM does not write it outside KVM_RUN, and `io` is the
        // union's field for the port exit that the caller is handling.
        let size = unsafe { (*self.0).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        RUN_PAGE.with(|p| p.set(ptr::null_mut()));
    }
}
