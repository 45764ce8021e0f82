//! The catalogue of what can be wrong with a destination or with what comes to it. Each cell is
//! tried with real hosts and guests: the move is refused before the guest is stopped, the refusal
//! names the cause, what both sides have and what to do, the guest runs on as if nothing had been,
//! and nothing is left at the destination.
//!
//! Injected are: the host's own settings, files and networks, and its memory, by real means; the
//! kernel's answers, by a filter of system calls; the guest's state on its way, by the guest
//! processes of `host/`, a program of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "the tests of moves use more of it")]
#[path = "../moves/site.rs"]
mod site;

mod catalogue;
mod cpus;
mod disks;
mod hosts;
mod networks;
mod no_trace;
mod states;
