//! The daemon as a service: the units as systemd reads them, and a systemd that runs them, as the
//! first process of a small host of its own ([`host`]), with real guests.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod host;
mod restarts;
mod units;
