//! Who may run a guest, on real hosts: every way to start one asks its journal, what is in doubt
//! settles by itself or by an operator, and nobody else's word counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod gates;
mod resolve;
mod rig;
#[path = "../moves/site.rs"]
#[allow(dead_code, reason = "not every test program uses everything")]
mod site;
