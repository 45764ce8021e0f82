//! Hosts of one site, each a whole daemon on loopback: how they join, learn of each other, refuse
//! each other, and check what is between them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the tests of moves use more of it")]
#[path = "../moves/site.rs"]
mod site;

mod checked;
mod crafted;
mod known;
mod refused;
mod removed;
mod renewed;
mod strangers;
