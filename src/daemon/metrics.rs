//! What is counted, as Prometheus reads it (text format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use super::moves::Direction;
use crate::api::moving::{MoveOutcome, MoveReport};

/// Upper bounds of the downtime histogram, seconds.
const BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Counters since the daemon started.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// By direction and outcome.
    moves: BTreeMap<(&'static str, &'static str), u64>,
    sent_bytes: u64,
    downtimes: [u64; BUCKETS.len()],
    downtime_count: u64,
    downtime_sum: f64,
}

/// What is measured at the moment of reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Guests that have a process.
    pub guests: usize,
    /// Moves that go on.
    pub moves_running: usize,
    /// Memory that is promised, bytes.
    pub reserved_bytes: u64,
    /// Memory that could be had, bytes.
    pub available_bytes: u64,
    /// Seconds until the certificate ends.
    pub certificate_seconds: Option<i64>,
}

impl Metrics {
    /// A move has ended.
    pub fn moved(&self, direction: Direction, report: &MoveReport) {
        let way = match direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        let outcome = match report.outcome {
            Some(MoveOutcome::Moved) => "moved",
            Some(MoveOutcome::Kept) => "kept",
            Some(MoveOutcome::InDoubt) | None => "in-doubt",
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.moves.entry((way, outcome)).or_default() += 1;
        if direction == Direction::In {
            return;
        }
        counts.sent_bytes = counts.sent_bytes.saturating_add(report.udp_bytes);
        if let Some(ms) = report.downtime_ms.filter(|_| outcome == "moved") {
            let seconds = ms / 1000.0;
            for (count, bound) in counts.downtimes.iter_mut().zip(BUCKETS) {
                *count += u64::from(seconds <= bound);
            }
            counts.downtime_count += 1;
            counts.downtime_sum += seconds;
        }
    }

    /// All of it, as text.
    pub fn text(&self, now: Gauges) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP migrate_{name} {help}\n# TYPE migrate_{name} {kind}");
        };
        head(&mut out, "moves_total", "counter", "Moves that ended, by direction and outcome.");
        for ((way, outcome), count) in &counts.moves {
            let _ = writeln!(
                out,
                "migrate_moves_total{{direction=\"{way}\",outcome=\"{outcome}\"}} {count}"
            );
        }
        head(&mut out, "sent_bytes_total", "counter", "UDP payload sent by moves.");
        let _ = writeln!(out, "migrate_sent_bytes_total {}", counts.sent_bytes);
        head(&mut out, "downtime_seconds", "histogram", "Downtime of guests that were moved away.");
        for (bound, count) in BUCKETS.iter().zip(counts.downtimes) {
            let _ = writeln!(out, "migrate_downtime_seconds_bucket{{le=\"{bound}\"}} {count}");
        }
        let all = counts.downtime_count;
        let _ = writeln!(out, "migrate_downtime_seconds_bucket{{le=\"+Inf\"}} {all}");
        let _ = writeln!(out, "migrate_downtime_seconds_sum {}", counts.downtime_sum);
        let _ = writeln!(out, "migrate_downtime_seconds_count {all}");
        let gauges = [
            ("guests", "Guests that have a process.", now.guests as u64),
            ("moves_running", "Moves that go on.", now.moves_running as u64),
            ("reserved_bytes", "Memory promised to guests that arrive.", now.reserved_bytes),
            ("available_bytes", "Memory that could be had.", now.available_bytes),
        ];
        for (name, help, value) in gauges {
            head(&mut out, name, "gauge", help);
            let _ = writeln!(out, "migrate_{name} {value}");
        }
        if let Some(seconds) = now.certificate_seconds {
            head(&mut out, "certificate_seconds", "gauge", "Time until the certificate ends.");
            let _ = writeln!(out, "migrate_certificate_seconds {seconds}");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{HostRef, MoveOptions};
    use uuid::Uuid;

    #[test]
    fn what_was_counted_is_told() {
        let host = HostRef { id: Uuid::nil(), name: "h".into() };
        let guest = ("g", Uuid::nil(), 1);
        let mut report = crate::daemon::moves::record::blank(
            Uuid::nil(),
            guest,
            host.clone(),
            host,
            MoveOptions::default(),
            jiff::Timestamp::UNIX_EPOCH,
        );
        let metrics = Metrics::default();
        (report.outcome, report.udp_bytes) = (Some(MoveOutcome::Moved), 1000);
        report.downtime_ms = Some(30.0);
        metrics.moved(Direction::Out, &report);
        metrics.moved(Direction::In, &report);
        report.outcome = Some(MoveOutcome::Kept);
        metrics.moved(Direction::Out, &report);
        let text = metrics.text(Gauges { guests: 3, ..Gauges::default() });
        for line in [
            "migrate_moves_total{direction=\"out\",outcome=\"moved\"} 1",
            "migrate_moves_total{direction=\"in\",outcome=\"moved\"} 1",
            "migrate_moves_total{direction=\"out\",outcome=\"kept\"} 1",
            "migrate_sent_bytes_total 2000",
            "migrate_downtime_seconds_bucket{le=\"0.025\"} 0",
            "migrate_downtime_seconds_bucket{le=\"0.05\"} 1",
            "migrate_downtime_seconds_bucket{le=\"+Inf\"} 1",
            "migrate_downtime_seconds_count 1",
            "migrate_guests 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // Every sample has its type before it.
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = name.trim_end_matches("_bucket").trim_end_matches("_sum");
            let base = base.trim_end_matches("_count");
            assert!(text.contains(&format!("# TYPE {base} ")), "{line}");
        }
    }
}
