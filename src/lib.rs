//! The `migrate` command, the guest process and what joins the crates `vmm` and `migrate`.

pub mod adapter;
pub mod api;
pub mod arbiter;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod failpoint;
pub mod guest;
pub mod host;
pub mod logging;
pub mod show;
