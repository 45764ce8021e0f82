//! How a move ended, what one would be like, and which there were: sentences and tables.

use super::style::{Style, safe};
use super::units::{bytes, millis, span};
use crate::api::host::MovePlan;
use crate::api::moving::{MoveOutcome, MovePhase, MoveReport};

/// A move that succeeded, in a sentence or two.
pub fn moved(report: &MoveReport, style: Style) -> String {
    let downtime = report.downtime_ms.map_or_else(String::new, |ms| {
        let predicted = report.predicted_downtime_ms;
        let predicted =
            predicted.map(|ms| format!(" ({} predicted)", millis(ms))).unwrap_or_default();
        format!("; it stood still for {}{predicted}", millis(ms))
    });
    let mut words = style.green(&format!(
        "{} runs on {}: moved in {}, {} sent{downtime}",
        safe(&report.guest),
        safe(&report.to.name),
        millis(report.total_ms),
        bytes(report.udp_bytes.max(report.frame_bytes)),
    ));
    if report.audit_equal == Some(false) {
        words.push('\n');
        words.push_str(&style.red(
            "The source's memory is not what was sent: a defect of dirty tracking. Do not trust \
             this guest's memory; please report it.",
        ));
    }
    words
}

/// A move that did not succeed, in three lines: what happened, where the guest is, what to type.
pub fn not_moved(report: &MoveReport, style: Style) -> String {
    let (guest, from, to) = (safe(&report.guest), safe(&report.from.name), safe(&report.to.name));
    let id = report.move_id;
    // Whoever wrote the cause may have begun like this sentence.
    let same = format!("the guest was not moved to {to}: ");
    let cause = report.error.as_ref().map(|e| safe(&e.message));
    let why = cause.map(|cause| format!(": {}", cause.strip_prefix(&same).unwrap_or(&cause)));
    let why = why.unwrap_or_default();
    let remedy = report.error.as_ref().map(|e| safe(&e.remedy)).filter(|r| !r.is_empty());
    let (what, place, next) = match report.outcome {
        Some(MoveOutcome::Kept) => (
            format!("{guest} was not moved to {to}{why}"),
            format!("runs on {from}, as before"),
            remedy.unwrap_or_else(|| format!("migrate report {id}")),
        ),
        Some(MoveOutcome::Moved) => (
            format!("{guest} was moved to {to}{why}"),
            format!("is on {to}"),
            remedy.unwrap_or_else(|| format!("migrate report {id}")),
        ),
        Some(MoveOutcome::InDoubt) | None => (
            format!("whether {guest} was moved to {to} is not known yet{why}"),
            format!("runs nowhere, or on {to}; it stays safe on both hosts until they have talked"),
            remedy.unwrap_or_else(|| {
                format!("let both daemons run and reach each other, then: migrate watch {id}")
            }),
        ),
    };
    format!("{} {what}\n  guest: {place}\n  next:  {next}\n", style.red("migrate:"))
}

/// What a move would be like.
pub fn plan(plan: &MovePlan, style: Style) -> String {
    let (guest, to) = (safe(&plan.guest), safe(&plan.to.name));
    if plan.already_there {
        return format!("{guest} is on {to} already");
    }
    if !plan.possible {
        let words = style.red(&format!("{guest} -> {to}: not possible"));
        return words + &problems(plan);
    }
    let mut parts = vec![
        format!("{} in use", bytes(plan.memory_bytes)),
        format!("{} free there", bytes(plan.room_bytes)),
    ];
    parts.extend(plan.bandwidth_bytes_per_s.map(|rate| format!("{}/s", bytes(rate))));
    parts.extend(plan.rtt_ms.map(|ms| format!("round trip {}", millis(ms))));
    parts.extend(plan.dirty_bytes_per_s.map(|rate| format!("{}/s written", bytes(rate))));
    parts.extend(plan.predicted_total_ms.map(|ms| format!("about {}", millis(ms))));
    let still = plan.predicted_downtime_ms;
    parts.extend(still.map(|ms| format!("standing still for about {}", millis(ms))));
    let mut words = format!("{guest} -> {to}: {}; {}", style.green("possible"), parts.join(", "));
    if plan.no_end_in_sight {
        words += "\n  no end in sight as it writes now: wait for a quieter time, give more bandwidth, \
                  allow a longer stop (--max-downtime), or: --on-stall pause";
    }
    for basis in &plan.rests_on {
        words.extend(["\n  basis: ", &*safe(basis)]);
    }
    words + &problems(plan)
}

fn problems(plan: &MovePlan) -> String {
    let mut words = String::new();
    for problem in &plan.problems {
        words.extend(["\n  ", &*safe(&problem.message), "\n  next:  ", &*safe(&problem.remedy)]);
    }
    words
}

/// The table of `history`.
pub fn history(moves: &[MoveReport], now: jiff::Timestamp, style: Style) -> String {
    if moves.is_empty() {
        return "No moves. Move a guest: migrate move GUEST --to HOST\n".to_owned();
    }
    let mut rows = vec![
        ["STARTED", "GUEST", "FROM", "TO", "OUTCOME", "TOOK", "STOOD STILL", "SENT", "ID"]
            .map(str::to_owned),
    ];
    rows.extend(moves.iter().map(|m| {
        let ago = u64::try_from(now.as_second().saturating_sub(m.started.as_second()));
        [
            format!("{} ago", span(ago.unwrap_or(0))),
            safe(&m.guest),
            safe(&m.from.name),
            safe(&m.to.name),
            outcome_word(m).to_owned(),
            m.ended.map_or_else(|| "-".to_owned(), |_| millis(m.total_ms)),
            m.downtime_ms.map_or_else(|| "-".to_owned(), millis),
            bytes(m.udp_bytes.max(m.frame_bytes)),
            short(m.move_id),
        ]
    }));
    super::columns::align(&rows, |row, column, text| match (row.checked_sub(1), column) {
        (Some(at), 4) => match moves.get(at).and_then(|m| m.outcome) {
            Some(MoveOutcome::Moved) => style.green(text),
            Some(MoveOutcome::Kept) => style.yellow(text),
            Some(MoveOutcome::InDoubt) => style.red(text),
            None => text.to_owned(),
        },
        _ => text.to_owned(),
    })
}

/// The beginning of an id, which is enough to name it.
pub fn short(id: uuid::Uuid) -> String {
    id.simple().to_string().chars().take(12).collect()
}

/// Whether it is not known now whose the guest is: a move whose switch goes on, or has ended so.
pub fn is_in_doubt(report: &MoveReport) -> bool {
    match report.outcome {
        None => matches!(report.phase, MovePhase::InDoubt | MovePhase::Ceded),
        Some(outcome) => outcome == MoveOutcome::InDoubt,
    }
}

/// How a move ended, in a word.
pub fn outcome_word(report: &MoveReport) -> &'static str {
    match report.outcome {
        // It settles by itself, in milliseconds if the two hosts can talk.
        None if is_in_doubt(report) => "in doubt",
        None => "goes on",
        Some(MoveOutcome::Moved) => "moved",
        Some(MoveOutcome::Kept) => match report.error.as_ref().map(|e| e.code) {
            Some(crate::api::ErrorCode::Cancelled) => "cancelled",
            _ => "stayed",
        },
        Some(MoveOutcome::InDoubt) => "in doubt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::report::tests::report;

    #[test]
    fn a_table_of_moves() {
        let going = MoveReport { outcome: None, ended: None, downtime_ms: None, ..report() };
        let now = "2026-01-01T02:00:00Z".parse().unwrap();
        let golden = "\
STARTED    GUEST  FROM   TO     OUTCOME  TOOK    STOOD STILL  SENT  ID
2h 0m ago  web1   host1  host2  goes on  -       -            600M  000000000000
2h 0m ago  web1   host1  host2  moved    2.50 s  38.2 ms      600M  000000000000
";
        assert_eq!(history(&[going, report()], now, Style::PLAIN), golden);
        assert!(history(&[], now, Style::PLAIN).starts_with("No moves."));
    }

    #[test]
    fn a_defect_of_tracking_is_never_quiet() {
        let wrong = MoveReport { audit_equal: Some(false), ..report() };
        assert!(moved(&wrong, Style::PLAIN).contains("Do not trust this guest's memory"));
    }
}
