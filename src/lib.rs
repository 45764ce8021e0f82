//! The `migrate` command, the guest process and what joins the crates `vmm` and `migrate`.

pub mod api;
pub mod config;
pub mod guest;
