//! The migration engine. It knows nothing of KVM: the root crate lends it guests, memory, disks,
//! a journal and an arbiter.

pub mod handover;
