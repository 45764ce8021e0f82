//! Joins the guest process to the crate `vmm`: opens what a definition names, and makes machines
//! of it. Nothing here decides; nothing else in this package knows `vmm`'s machine types.

mod failure;
mod machine;
mod open;
mod receiver;
mod units;

pub use open::VmmHost;
