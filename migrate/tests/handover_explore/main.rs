//! Explores the hand-over: every order, loss, duplication and delay of messages, every order in
//! which records become durable, and the death of every party and host between any two effects.
//!
//! `HANDOVER_FAULTS=3 cargo test --release --test handover_explore -- --nocapture` goes further
//! than the default bounds.

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
                let withdrawn = matches!(other.ledger.now(), Some(Record::Withdrawn(_)));
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
        "{what}: {} states, {} edges, {} inherent losses{}",
        report.states,
        report.edges,
        report.losses,
        if report.cut_off { ", CUT OFF" } else { "" }
    );
}

fn holds(what: &str, bounds: Bounds) {
    let report = explore(&bounds, inherent);
    show(what, &report);
    if let Some((broken, trace)) = &report.broken {
        panic!("{what}: {broken}\n{}", trace.join("\n"));
    }
    if let Some(trace) = &report.stuck {
        panic!("{what}: the guest never runs again\n{}", trace.join("\n"));
    }
    if let Some(trace) = &report.unknown_loss {
        panic!("{what}: living memory is lost\n{}", trace.join("\n"));
    }
    assert!(!report.cut_off, "{what}: not explored in full");
}

#[test]
fn probe_sizes() {
    let f = |faults, offers| Bounds::new(faults, offers);
    let runs: Vec<(&str, Bounds)> = vec![
        ("f0o1 fine", Bounds { coarse: false, ..f(0, 1) }),
        ("f1o1 fine", Bounds { coarse: false, ..f(1, 1) }),
        ("f2o1", f(2, 1)),
        ("f1o2", f(1, 2)),
        ("f3o1", f(3, 1)),
        ("f1o1 drop", Bounds { drops: true, ..f(1, 1) }),
        ("f2o1 drop", Bounds { drops: true, ..f(2, 1) }),
        ("f2o1 no disks", Bounds { shared: false, ..f(2, 1) }),
        ("f1o1 arbiter", Bounds { arbiter: true, ..f(1, 1) }),
        ("f2o1 arbiter", Bounds { arbiter: true, ..f(2, 1) }),
        ("f2o1 arbiter no disks", Bounds { arbiter: true, shared: false, ..f(2, 1) }),
        ("f2o1 fine", Bounds { coarse: false, ..f(2, 1) }),
        ("f1o2 drop", Bounds { drops: true, ..f(1, 2) }),
        ("f2o2", f(2, 2)),
    ];
    for (what, bounds) in runs {
        let begun = std::time::Instant::now();
        let r = explore(&bounds, inherent);
        show(what, &r);
        println!("    {:?}", begun.elapsed());
        for (kind, trace) in [("STUCK", &r.stuck), ("LOSS", &r.unknown_loss)] {
            if let Some(trace) = trace {
                println!("{kind}\n{}", trace.join("\n"));
            }
        }
        if let Some((what, trace)) = &r.broken {
            println!("BROKEN {what}\n{}", trace.join("\n"));
        }
    }
}
