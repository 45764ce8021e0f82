//! vCPUs: what the guest sees of its CPU, the registers to and from saved state, the thread.

pub mod kick;
pub mod msrs;
pub mod regs;
pub mod template;
pub mod thread;

pub use thread::{Buses, VcpuError, VcpuThread};
