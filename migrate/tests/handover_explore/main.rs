//! Explores the hand-over: every order, loss, duplication and delay of messages, every order in
//! which records become durable, and the death of every party and host between any two effects.
//!
//! `HANDOVER_FAULTS=3 cargo test --release --test handover_explore -- --nocapture` goes further
//! than the default bounds.

#![expect(
    clippy::unwrap_used,
    clippy::single_match_else,
    clippy::struct_excessive_bools,
    reason = "a test: it may panic, and its bounds are switches"
)]

mod bugs;
mod events;
mod search;
mod world;

use migrate_engine::handover::journal::{Mark, Record};
use search::{Report, explore};
use world::{Bounds, Party, Role, World};

/// The three losses that no rule can avoid (the model's V7, rows 3 to 5): a process holds the
/// current memory, but nobody can prove that it may run.
fn inherent(world: &World) -> bool {
    world.hosts.iter().enumerate().any(|(number, host)| {
        let other = &world.hosts[1 - number];
        let Some(process) = host.process() else { return false };
        match &process.role {
            // The source had durably decided to keep it, and died before it ran on.
            Role::Target(_) => {
                let in_arbiter = world.key.is_some_and(|key| {
                    process.switch().is_some_and(|switch| key == switch.withdrawn())
                });
                let withdrawn =
                    in_arbiter || matches!(other.ledger.now(), Some(Record::Withdrawn(_)));
                withdrawn && !world.daemon_withdrew && other.process().is_none()
            }
            // It ceded, and the target is dead that ran, or was about to, or whose host
            // rebooted: nothing there proves the contrary.
            _ => {
                let ran = other.marks.iter().any(|m| matches!(m, Mark::Ran(_)));
                let owns = other.ledger.owned().is_some();
                let rebooted = other.boot > 0;
                let dead = !matches!(other.party, Party::Process(_));
                dead && (ran || owns || rebooted)
            }
        }
    })
}

fn show(what: &str, report: &Report) {
    println!(
        "{what}: {} states, {} edges, {} states of inherent loss{}",
        report.states,
        report.edges,
        report.losses,
        if report.cut_off { ", CUT OFF" } else { "" }
    );
}

fn holds(bounds: Bounds) {
    let report = explore(&bounds, inherent);
    let what = bounds.to_string();
    show(&what, &report);
    if let Some((broken, trace)) = report.found() {
        panic!("{what}: {broken}\n{}", trace.join("\n"));
    }
    assert!(!report.cut_off, "{what}: not explored in full");
}

/// Faults beyond those of the default run, from `HANDOVER_FAULTS`.
fn more() -> u8 {
    std::env::var("HANDOVER_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn one_move() {
    holds(Bounds { coarse: false, ..Bounds::new(0, 1) });
    holds(Bounds { coarse: false, ..Bounds::new(1, 1) });
    holds(Bounds::new(2 + more(), 1));
}

#[test]
fn two_moves() {
    holds(Bounds::new(0, 2));
    if more() > 0 {
        holds(Bounds::new(more(), 2));
    }
}

#[test]
fn lossy_network() {
    holds(Bounds { drops: true, ..Bounds::new(1 + more(), 1) });
}

#[test]
fn no_shared_disks() {
    let bounds = Bounds { shared: false, ..Bounds::new(2 + more(), 1) };
    holds(bounds);
}

#[test]
fn arbiter() {
    let bounds = Bounds { arbiter: true, ..Bounds::new(2 + more(), 1) };
    holds(bounds);
    let bounds = Bounds { shared: false, ..bounds };
    holds(bounds);
}

/// The checker is worth what it finds.
#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for &(bug, faults, offers, shared) in bugs::PLANTED {
        let bounds = Bounds { bug: Some(bug), shared, ..Bounds::new(faults, offers) };
        let report = explore(&bounds, inherent);
        match report.found() {
            Some((what, trace)) => {
                println!("{bug:?}: {what}, {} steps, {} states", trace.len() - 1, report.states);
            }
            None => {
                println!("{bug:?}: MISSED in {} states", report.states);
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
