//! Figures for Prometheus, in its text format.

use std::fmt::Write;

use super::{Daemon, history, inbound};
use crate::api::moving::{MoveOutcome, MoveReport};

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
    moves(&history::list(&daemon.dirs, None, LOOKED_AT), &mut out);
    out
}

/// What the reports of moves add up to.
fn moves(all: &[MoveReport], out: &mut String) {
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
    let pauses = |outcome| {
        let of = all.iter().filter(move |r| r.outcome == Some(outcome));
        of.filter_map(|r| r.downtime_ms).collect::<Vec<f64>>()
    };
    let help = "Downtimes of the moves in the history that happened.";
    histogram("migrate_downtime_seconds", help, &pauses(MoveOutcome::Moved), out);
    let help = "How long guests stood still for a switch that was withdrawn.";
    histogram("migrate_withdrawn_pause_seconds", help, &pauses(MoveOutcome::Kept), out);
}

/// A histogram of `times`, in milliseconds.
fn histogram(name: &str, help: &str, times: &[f64], out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for end in BUCKETS {
        let count = times.iter().filter(|t| **t <= end).count();
        let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", end / 1000.0);
    }
    let (sum, count) = (times.iter().fold(0.0, |sum, t| sum + t) / 1000.0, times.len());
    let _ = writeln!(
        out,
        "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{HostRef, MoveOptions, MovePhase};
    use crate::guest::moving::report::About;
    use uuid::Uuid;

    fn report(outcome: MoveOutcome, downtime_ms: Option<f64>) -> MoveReport {
        let host = HostRef { id: Uuid::nil(), name: "h".into() };
        let about = About {
            move_id: Uuid::nil(),
            guest: "g".into(),
            uuid: Uuid::nil(),
            from: host.clone(),
            to: host,
            started: jiff::Timestamp::UNIX_EPOCH,
            options: MoveOptions::default(),
            memory_bytes: 1,
        };
        let outcome = Some(outcome);
        MoveReport { outcome, downtime_ms, udp_bytes: 10, ..about.blank(MovePhase::Ended) }
    }

    #[test]
    fn a_withdrawn_pause_is_no_downtime() {
        let all = [
            report(MoveOutcome::Moved, Some(40.0)),
            report(MoveOutcome::Moved, Some(60.0)),
            report(MoveOutcome::Kept, Some(700.0)),
            report(MoveOutcome::Kept, None),
            report(MoveOutcome::InDoubt, None),
        ];
        let mut page = String::new();
        moves(&all, &mut page);
        for line in [
            "migrate_moves_kept{outcome=\"moved\"} 2",
            "migrate_moves_kept{outcome=\"kept\"} 2",
            "migrate_moves_kept{outcome=\"in-doubt\"} 1",
            "migrate_moves_kept_bytes 50",
            "migrate_downtime_seconds_bucket{le=\"0.05\"} 1",
            "migrate_downtime_seconds_bucket{le=\"+Inf\"} 2",
            "migrate_downtime_seconds_sum 0.1",
            "migrate_downtime_seconds_count 2",
            "migrate_withdrawn_pause_seconds_bucket{le=\"0.3\"} 0",
            "migrate_withdrawn_pause_seconds_bucket{le=\"1\"} 1",
            "migrate_withdrawn_pause_seconds_count 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in:\n{page}");
        }
    }
}
