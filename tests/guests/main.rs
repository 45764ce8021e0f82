//! Whole lives of real guests, seen from outside as their user sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod bad_disks;
mod bad_input;
mod containment;
mod cut_saves;
mod damaged;
mod demo;
mod foreground;
mod leftovers;
mod life;
mod networks;

mod saves;
mod shared;
mod tracking;
mod unprivileged;
