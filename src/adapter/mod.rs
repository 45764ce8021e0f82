//! Joins the guest process to the crate `vmm`: opens what a definition names, and makes machines
//! of it. Nothing here decides; nothing else in this package knows `vmm`'s machine types.

mod failure;
mod machine;
mod memory;
mod open;
mod receiver;
mod units;

pub use open::VmmHost;

/// Makes sure that there is a KVM that we may use and that has what is needed.
///
/// # Errors
/// `kvm-missing`, `kvm-permission` or `kvm-capability`, with the mend.
pub fn check_kvm() -> Result<(), crate::api::Failure> {
    vmm::kvm::Kvm::open().map(|_| ()).map_err(|e| failure::kvm(&e))
}

/// This host's CPU, as guests could be shown it without the features that are `hidden`.
///
/// # Errors
/// As for [`check_kvm`]; `unexpected` if KVM then refuses a call.
pub fn host_cpu(hidden: Vec<String>) -> Result<vmm::cpu::host::HostCpu, crate::api::Failure> {
    let kvm = vmm::kvm::Kvm::open().map_err(|e| failure::kvm(&e))?.hiding(hidden);
    vmm::cpu::host::probe(&kvm).map_err(|e| failure::kvm(&e))
}
