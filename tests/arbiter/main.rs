//! The arbiter in a real etcd: what it promises by itself, and moves of real guests under it, while
//! it dies, stands still in the very moment of the switch, or is not the same at both ends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the tests of moves use more of it")]
#[path = "../moves/site.rs"]
mod site;

#[allow(dead_code, reason = "the tests of owners use more of it")]
#[path = "../owner/rig.rs"]
mod rig;

mod doubt;
mod etcd;
mod moves;
mod resolve;
mod store;
mod tap;
