//! Guests that go from one host to another, seen from outside: by their consoles, by what they find
//! in their memory, and by the processes and files that there are.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod again;
mod bandwidth;
mod cpu;
mod deaths;
mod full_disk;
mod moved;
mod refused;
mod said;
mod site;
mod slow;
mod speed;
