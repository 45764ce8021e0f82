//! Figures for Prometheus, in its text format.

use std::fmt::Write;

use super::{Daemon, history, inbound};
use crate::api::moving::MoveOutcome;

/// Upper ends of the buckets of downtimes, milliseconds.
const BUCKETS: [f64; 9] = [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, 1000.0, 5000.0];
/// Moves that are looked at.
const LOOKED_AT: usize = 5000;

/// The page.
pub fn page(daemon: &Daemon) -> String {
    let mut out = String::new();
    let memory = inbound::memory();
    let guests = crate::host::registry::names(&daemon.dirs).map_or(0, |n| n.len() as u64);
    let gauges: [(&str, &str, u64); 6] = [
        ("migrate_guests", "Guests that have a process.", guests),
        ("migrate_moves_out", "Moves away from here that go on.", daemon.moves.running().into()),
        ("migrate_moves_in", "Moves to here that go on.", daemon.inbound.running().into()),
        ("migrate_memory_bytes", "Memory of the host.", memory.total),
        ("migrate_memory_available_bytes", "Memory that could be had now.", memory.available),
        (
            "migrate_memory_reserved_bytes",
            "Memory promised to guests that arrive.",
            daemon.inbound.reserved(),
        ),
    ];
    for (name, help, value) in gauges {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    moves(daemon, &mut out);
    out
}

fn moves(daemon: &Daemon, out: &mut String) {
    let all = history::list(&daemon.dirs, None, LOOKED_AT);
    let name = "migrate_moves_kept";
    let _ = writeln!(out, "# HELP {name} Moves in the history, by outcome.\n# TYPE {name} gauge");
    for (outcome, word) in [
        (MoveOutcome::Moved, "moved"),
        (MoveOutcome::Kept, "kept"),
        (MoveOutcome::InDoubt, "in-doubt"),
    ] {
        let count = all.iter().filter(|r| r.outcome == Some(outcome)).count();
        let _ = writeln!(out, "{name}{{outcome=\"{word}\"}} {count}");
    }
    let bytes: u64 = all.iter().map(|r| r.udp_bytes).sum();
    let name = "migrate_moves_kept_bytes";
    let help = "UDP payload of the moves in the history.";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {bytes}");
    let times: Vec<f64> = all.iter().filter_map(|r| r.downtime_ms).collect();
    let name = "migrate_downtime_seconds";
    let help = "Downtimes of the moves in the history.";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for end in BUCKETS {
        let count = times.iter().filter(|t| **t <= end).count();
        let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", end / 1000.0);
    }
    let (sum, count) = (times.iter().sum::<f64>() / 1000.0, times.len());
    let _ = writeln!(
        out,
        "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
    );
}
