//! A minimal KVM machine: run, pause, save, restore.
//!
//! The crate owns everything that touches KVM: guest memory and its dirty log, vCPUs, devices,
//! boot, and the saved state. It is synchronous and thread-based. It knows nothing of
//! migration, of hosts or of files other than those it is handed: no network, no async runtime.
//!
//! Life of a machine: [`machine::Builder`] → [`machine::Paused`] ⇄ [`machine::Running`]. The
//! handles move by value and are not `Clone`; whoever holds neither cannot run anything.

pub mod boot;
pub mod config;
pub mod cpu;
pub mod devices;
pub mod eventfd;
pub mod events;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod scribbler;
pub mod state;
pub mod vcpu;
