//! Explores the hand-over: two or three hosts, every order, loss, duplication and delay of
//! messages, every order in which records become durable, the death of every party and host
//! between any two effects, and operators who say everything at every moment.
//!
//! `HANDOVER_FAULTS=1 cargo test --release --test handover_explore -- --nocapture` goes one fault
//! further than the default bounds.

#![expect(
    clippy::unwrap_used,
    clippy::single_match_else,
    clippy::struct_excessive_bools,
    reason = "a test: it may panic, and its bounds are switches"
)]

mod arbiter;
mod bounds;
mod bugs;
mod check;
mod death;
mod events;
mod operator;
mod search;
mod step;
mod store;
mod walk;
mod words;
mod world;

use std::time::Instant;

use bounds::{Bounds, History, Operator};
use search::{Report, explore, graph};

fn show(what: &str, report: &Report, began: Instant) {
    println!(
        "{what}: {} states, {} edges, {} states of inherent loss, {:.1} s{}",
        report.states,
        report.edges,
        report.losses,
        began.elapsed().as_secs_f64(),
        if report.cut_off { ", CUT OFF" } else { "" }
    );
}

fn holds(bounds: Bounds) {
    let began = Instant::now();
    let report = explore(&bounds);
    let what = bounds.to_string();
    show(&what, &report, began);
    if let Some((broken, trace)) = report.found() {
        panic!("{what}: {broken}, {} steps\n{}", trace.len() - 1, trace.join("\n"));
    }
    assert!(!report.cut_off, "{what}: not explored in full");
}

/// Faults beyond those of the default run, from `HANDOVER_FAULTS`.
fn more() -> u8 {
    std::env::var("HANDOVER_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn one_move() {
    holds(Bounds::new(0, 1).fine());
    holds(Bounds::new(1, 1).fine());
    holds(Bounds::new(2 + more(), 1));
}

#[test]
fn two_moves() {
    holds(Bounds::new(0, 2));
    holds(Bounds::new(2 + more(), 2));
}

#[test]
fn three_hosts() {
    holds(Bounds::new(2 + more(), 1).hosts(3));
    holds(Bounds::new(1 + more(), 2).hosts(3));
}

#[test]
fn old_journals() {
    for history in [History::GivenAway, History::Offered, History::Receiving, History::Buried] {
        holds(Bounds::new(1 + more(), 1).history(history));
        holds(Bounds::new(more(), 2).history(history));
    }
}

#[test]
fn lossy_network() {
    holds(Bounds::new(1, 1).drops());
    holds(Bounds::new(2 + more(), 1).drops());
}

#[test]
fn no_shared_disks() {
    holds(Bounds::new(2 + more(), 1).no_shared_disks());
}

#[test]
fn arbiter_decides() {
    holds(Bounds::new(2 + more(), 1).arbiter());
    holds(Bounds::new(2 + more(), 1).arbiter().no_shared_disks());
}

/// Starts that take the right to run from the gate, and what ends or stops a guest meanwhile.
#[test]
fn chores() {
    holds(Bounds::new(1 + more(), 1).commands(2, Operator::Absent, true));
    holds(Bounds::new(2 + more(), 1).commands(1, Operator::Absent, true));
}

#[test]
fn operators() {
    // Whatever a truthful operator says, a lying one may say too.
    holds(Bounds::new(1 + more(), 1).commands(2, Operator::Lying, false));
    holds(Bounds::new(2 + more(), 1).commands(1, Operator::Lying, false));
    let truthful = Bounds::new(2 + more(), 1).commands(1, Operator::Truthful, false);
    holds(truthful.no_shared_disks());
}

/// An operator who resolves a switch of the past, of which the guest's own host knows nothing.
#[test]
fn operators_and_old_journals() {
    for history in [History::GivenAway, History::Receiving, History::Buried] {
        holds(Bounds::new(1 + more(), 1).history(history).commands(1, Operator::Lying, false));
    }
    holds(Bounds::new(1, more()).history(History::Offered).commands(1, Operator::Lying, false));
}

/// A partition that lets one direction through is nothing else than words that never arrive:
/// every world that it leads to is reached without it, so it leads to nothing forbidden, and an
/// end is reached from there once it is over.
#[test]
fn one_way_partitions() {
    let faults = 1 + more();
    let (whole, all) = graph(&Bounds::new(faults, 1));
    assert!(whole.found().is_none() && !whole.cut_off);
    for cut in [(0, 1), (1, 0)] {
        let began = Instant::now();
        let bounds = Bounds { cut: Some(cut), ..Bounds::new(faults, 1) };
        let (report, part) = graph(&bounds);
        show(&bounds.to_string(), &report, began);
        assert!(report.found().is_none() && !report.cut_off);
        assert!(report.states > 100 && report.states < whole.states);
        for number in 0..part.store.len() {
            assert!(all.store.find(&part.store.world(number)).is_some(), "a new world");
        }
    }
}

/// The checker is worth what it finds. Each bug is shown by the least faults that show it.
#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for &(bug, bounds) in bugs::PLANTED {
        let began = Instant::now();
        let bounds = Bounds { bug: Some(bug), ..bounds };
        let fewer = bounds.faults.checked_sub(1).map(|faults| Bounds { faults, ..bounds });
        let least = fewer.is_none_or(|bounds| explore(&bounds).found().is_none());
        let report = explore(&bounds);
        let (states, spent) = (report.states, began.elapsed().as_secs_f64());
        let found = report.found().map_or_else(
            || "MISSED".to_owned(),
            |(what, trace)| format!("{what}, {} steps", trace.len() - 1),
        );
        println!("{bug:?} ({bounds}): {found}, {states} states, {spent:.1} s");
        if report.found().is_none() || !least {
            missed.push(bug);
        }
    }
    assert!(missed.is_empty(), "not found, or found with fewer faults: {missed:?}");
}
