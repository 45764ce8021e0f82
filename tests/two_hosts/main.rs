//! Real guests between the two hosts of the lab, each with its daemon: over links that are cut,
//! bad or of another size, with a shared disk, and with Linux and its connections in them. What is
//! believed is what the guests, the network outside and the storage say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod disks;
mod links;
mod linux;
mod readme;
mod rig;
mod shell;
#[path = "../moves/site.rs"]
#[allow(dead_code, reason = "written for the tests of moves on loopback")]
mod site;
#[path = "../shared_disks/storage.rs"]
mod storage;
mod switch;
