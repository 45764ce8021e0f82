//! The report of a move as people read it, with a chart of its rounds and of its switch.

use super::columns::{align, pairs};
use super::outcome::{is_in_doubt, outcome_word};
use super::style::{Style, safe};
use super::units::{bytes, count, micros, millis};
use crate::api::moving::{MoveOutcome, MovePhase, MoveReport, OnStall, TimelineStep};

/// Width of the charts, in characters.
const CHART: u64 = 32;

/// Everything.
pub fn page(report: &MoveReport, style: Style) -> String {
    let mut text = head(report, style);
    text.push_str(&phases(report));
    text.push_str(&rounds(report));
    text.push_str(&switch(report));
    text
}

fn head(r: &MoveReport, style: Style) -> String {
    let outcome = match r.outcome {
        Some(MoveOutcome::Moved) => style.green("moved"),
        Some(MoveOutcome::Kept) => style.yellow(outcome_word(r)),
        _ if is_in_doubt(r) => style.red(outcome_word(r)),
        _ => outcome_word(r).to_owned(),
    };
    let mut rows = vec![
        ("move", r.move_id.to_string()),
        ("guest", format!("{} ({}), {} of RAM", safe(&r.guest), r.uuid, bytes(r.memory_bytes))),
        ("from", safe(&r.from.name)),
        ("to", safe(&r.to.name)),
        ("started", format!("{:.0}", r.started)),
        ("outcome", format!("{outcome} after {}", millis(r.total_ms))),
    ];
    if let Some(error) = &r.error {
        rows.push(("cause", style.red(&safe(&error.message))));
        rows.push(("next", safe(&error.remedy)));
    } else if is_in_doubt(r) {
        let to = safe(&r.to.name);
        let cause = format!("everything is sent, and {to} has not said yet that the guest runs");
        let next = "let both daemons run and reach each other; then it settles by itself";
        rows.extend([("cause", style.red(&cause)), ("next", next.to_owned())]);
    }
    rows.push(("stood still", downtime(r)));
    rows.push(("sent", sent(r)));
    rows.extend(r.limited_by.as_ref().map(|by| ("limited by", safe(by))));
    rows.push(("checked", checked(r, style)));
    rows.push(("asked", asked(r)));
    pairs(&rows)
}

fn downtime(r: &MoveReport) -> String {
    let real = r.downtime_ms.map_or_else(|| "not at all".to_owned(), millis);
    let predicted =
        r.predicted_downtime_ms.map(|ms| format!(", {} predicted", millis(ms))).unwrap_or_default();
    let rehearsed = r
        .rehearsal_restore_ms
        .map(|ms| format!(", restoring rehearsed in {}", millis(ms)))
        .unwrap_or_default();
    format!("{real}{predicted}{rehearsed}")
}

fn sent(r: &MoveReport) -> String {
    let mut parts = vec![format!("{} ({} of frames)", bytes(r.udp_bytes), bytes(r.frame_bytes))];
    parts.extend(r.rtt_ms.map(|ms| format!("round trip {}", millis(ms))));
    parts.extend(r.mtu_bytes.map(|n| format!("datagrams of {n} bytes")));
    let (packets, lost) = r.packets;
    parts.push(format!("{} packets, {} lost", count(packets), count(lost)));
    parts.join(", ")
}

fn checked(r: &MoveReport, style: Style) -> String {
    let verdict = |equal: Option<bool>| match equal {
        Some(true) => style.green("equal"),
        Some(false) => style.red("DIFFERENT"),
        None => "not compared".to_owned(),
    };
    format!(
        "digests at the switch {}; source afterwards {}",
        verdict(r.digest_equal),
        verdict(r.audit_equal)
    )
}

fn asked(r: &MoveReport) -> String {
    let o = &r.options;
    let stall = match o.on_stall {
        OnStall::Wait => "wait",
        OnStall::Pause => "pause",
        OnStall::Cancel => "cancel",
    };
    let bandwidth = o
        .bandwidth_bytes_per_s
        .map(|rate| format!(" --bandwidth {}kB", rate / 1000))
        .unwrap_or_default();
    format!(
        "--max-downtime {}ms --on-stall {stall} --timeout {}s{bandwidth}",
        o.max_downtime_ms,
        o.timeout_ms.div_ceil(1000)
    )
}

/// A phase, in a word.
fn phase_word(phase: MovePhase) -> &'static str {
    match phase {
        MovePhase::Preparing => "preparing",
        MovePhase::Connecting => "connecting",
        MovePhase::Copying => "copying",
        MovePhase::Offering => "offering",
        MovePhase::Stopped => "stopped",
        MovePhase::InDoubt => "in doubt",
        MovePhase::Ceded => "ceded",
        MovePhase::Auditing => "auditing",
        MovePhase::Ended => "ended",
    }
}

fn phases(r: &MoveReport) -> String {
    let shown: Vec<_> = r.phases.iter().filter(|(phase, _)| *phase != MovePhase::Ended).collect();
    if shown.is_empty() {
        return String::new();
    }
    let longest = shown.iter().map(|(_, ms)| whole_micros(*ms)).max().unwrap_or(0);
    let rows: Vec<[String; 3]> = shown
        .iter()
        .map(|(phase, ms)| {
            let bar = "#".repeat(scaled(whole_micros(*ms), longest, CHART));
            [phase_word(*phase).to_owned(), format!("{:>9}", millis(*ms)), bar]
        })
        .collect();
    format!("\nPHASES\n{}", align(&rows, |_, _, cell| cell.to_owned()))
}

fn rounds(r: &MoveReport) -> String {
    if r.rounds.is_empty() {
        return String::new();
    }
    let most = r.rounds.iter().map(|l| l.memory_bytes.max(l.dirty_bytes)).max().unwrap_or(0);
    let mut rows = vec![
        [
            "ROUND",
            "TOOK",
            "MEMORY",
            "FRAMES",
            "PAGES",
            "PACKED",
            "ZERO",
            "SAME",
            "ACROSS",
            "WRITTEN",
            "STOP WOULD BE",
            "",
        ]
        .map(str::to_owned),
    ];
    let mut chart = Vec::new();
    for line in &r.rounds {
        rows.push([
            line.round.to_string(),
            millis(line.took_ms),
            bytes(line.memory_bytes),
            bytes(line.frame_bytes),
            line.pages.to_string(),
            line.compressed_pages.to_string(),
            line.zero_pages.to_string(),
            line.same_pages.to_string(),
            format!("{}/s", bytes(line.bandwidth_bytes_per_s)),
            format!("{}/s", bytes(line.dirty_bytes_per_s)),
            line.predicted_downtime_ms.map_or_else(|| "-".to_owned(), millis),
            safe(&line.advice),
        ]);
        chart.push([
            line.round.to_string(),
            format!(
                "{:<width$}|",
                "#".repeat(scaled(line.memory_bytes, most, CHART)),
                width = usize::try_from(CHART).unwrap_or(0)
            ),
            "+".repeat(scaled(line.dirty_bytes, most, CHART)),
        ]);
    }
    format!(
        "\nROUNDS (the last one with the guest stopped)\n{}\nMemory sent (#) and written again \
         meanwhile (+), up to {}\n{}",
        align(&rows, |_, _, cell| cell.to_owned()),
        bytes(most),
        align(&chart, |_, _, cell| cell.to_owned())
    )
}

fn switch(r: &MoveReport) -> String {
    let mut text = String::new();
    for (side, from) in [
        ("source", "after the guest was asked to stop"),
        ("target", "after the last piece had come"),
    ] {
        let steps: Vec<&TimelineStep> = r.timeline.iter().filter(|s| s.side == side).collect();
        let Some(last) = steps.iter().map(|s| s.at_us).max() else { continue };
        let rows: Vec<[String; 3]> = steps
            .iter()
            .map(|step| {
                let at = rounded(step.at_us, last, CHART - 1);
                let width = usize::try_from(CHART).unwrap_or(0);
                let place = format!("|{:<width$}|", format!("{}*", " ".repeat(at)));
                [format!("{:>9}", micros(step.at_us)), place, safe(&step.step)]
            })
            .collect();
        let rows = align(&rows, |_, _, cell| cell.to_owned());
        text.extend(["\nSWITCH, ", side, ": time ", from, "\n", &rows]);
    }
    text
}

/// `n` of `of` as a part of `width`, rounded; something is never nothing.
fn scaled(n: u64, of: u64, width: u64) -> usize {
    if n == 0 { 0 } else { rounded(n, of, width).max(1) }
}

/// `n` of `of` as a part of `width`, rounded.
fn rounded(n: u64, of: u64, width: u64) -> usize {
    let part = u128::from(n.min(of)) * u128::from(width) + u128::from(of) / 2;
    usize::try_from(part.checked_div(u128::from(of)).unwrap_or(0)).unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from floats saturates"
)]
fn whole_micros(ms: f64) -> u64 {
    (ms * 1000.0) as u64
}

#[cfg(test)]
pub(crate) mod tests;
