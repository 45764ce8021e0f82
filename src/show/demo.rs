//! The proof at the end of a demo, in words.

use std::path::Path;

use serde::Serialize;

use super::style::Style;
use super::units::{bytes, count, millis};
use crate::api::moving::MoveReport;

/// What a demo found out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proof {
    /// Version of this document.
    pub schema: u32,
    /// `result`.
    pub r#type: &'static str,
    /// Everything is as it should be.
    pub ok: bool,
    /// The guest runs at the destination and has no process at the source.
    pub at_destination: bool,
    /// The guest has looked at every page, and none was ever wrong.
    pub verified: bool,
    /// Pages that it looked at.
    pub verified_pages: u64,
    /// Heartbeats that the outside observer saw.
    pub heartbeats: u64,
    /// From the last heartbeat at the source to the first at the destination, as the observer saw
    /// them.
    pub blackout_ms: Option<f64>,
    /// The longest gap between heartbeats that it saw before the move.
    pub usual_gap_ms: f64,
    /// The longest gap that it saw while memory was copied.
    pub copying_gap_ms: f64,
    /// The directory of the two hosts, if it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<std::path::PathBuf>,
    /// The report of the move.
    pub report: MoveReport,
}

/// The proof, a line each.
pub fn proof(proof: &Proof, style: Style) -> String {
    let mark = |ok: bool| if ok { style.green("yes") } else { style.red("NO ") };
    let r = &proof.report;
    let seen = proof.blackout_ms.map_or_else(|| "was not seen to end".to_owned(), millis);
    let equal = |equal: Option<bool>| equal == Some(true);
    let lines = [
        format!("{}  it runs on {}, and nowhere else", mark(proof.at_destination), r.to.name),
        format!(
            "{}  it has looked at all of its {} pages, and every one is as it should be",
            mark(proof.verified),
            count(proof.verified_pages)
        ),
        format!(
            "{}  the digests of all memory agreed at the switch, and afterwards with the source",
            mark(equal(r.digest_equal) && equal(r.audit_equal))
        ),
        format!(
            "{}  it stood still for {seen}, by its heartbeat as an observer outside saw it; for {} \
             by the report",
            mark(proof.blackout_ms.is_some()),
            r.downtime_ms.map_or_else(|| "unknown".to_owned(), millis)
        ),
        format!(
            "     the longest gap between heartbeats was {} before the move, {} while memory was \
             copied",
            millis(proof.usual_gap_ms),
            millis(proof.copying_gap_ms)
        ),
        format!(
            "     {} of RAM moved in {}: {} sent, in {} rounds",
            bytes(r.memory_bytes),
            millis(r.total_ms),
            bytes(r.udp_bytes.max(r.frame_bytes)),
            r.rounds.len()
        ),
    ];
    lines.join("\n")
}

/// What to type next.
pub fn next(base: Option<&Path>, guest: &str, hosts: [&str; 2]) -> String {
    let [source, target] = hosts;
    let commands = match base {
        None => [
            ("migrate demo --keep".to_owned(), "the same, and both hosts stay to play with"),
            (
                "migrate run --rm --duration 10s --guest scribbler".to_owned(),
                "a guest that checks its own memory",
            ),
            ("migrate help moving".to_owned(), "two hosts of your own"),
        ],
        Some(base) => [
            (
                format!("MIGRATE_HOME={}/{target} migrate {guest} --to {source}", base.display()),
                "move it back",
            ),
            (
                format!("MIGRATE_HOME={}/{target} migrate report {guest}", base.display()),
                "everything about the move",
            ),
            (format!("migrate demo --remove {}", base.display()), "end and remove it all"),
        ],
    };
    let width = commands.iter().map(|(c, _)| c.chars().count()).max().unwrap_or(0);
    let mut text = "Next:\n".to_owned();
    for (command, what) in commands {
        let gap = " ".repeat(2 + width - command.chars().count());
        text.extend(["  ", &*command, &*gap, "# ", what, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::report::tests::report;

    fn found() -> Proof {
        Proof {
            schema: 1,
            r#type: "result",
            ok: true,
            at_destination: true,
            verified: true,
            verified_pages: 49_152,
            heartbeats: 5000,
            blackout_ms: Some(39.5),
            usual_gap_ms: 1.25,
            copying_gap_ms: 4.5,
            kept: None,
            report: report(),
        }
    }

    #[test]
    fn the_proof_is_readable() {
        let golden = "\
yes  it runs on host2, and nowhere else
yes  it has looked at all of its 49,152 pages, and every one is as it should be
yes  the digests of all memory agreed at the switch, and afterwards with the source
yes  it stood still for 39.5 ms, by its heartbeat as an observer outside saw it; for 38.2 ms by the \
report
     the longest gap between heartbeats was 1.2 ms before the move, 4.5 ms while memory was copied
     1G of RAM moved in 2.50 s: 600M sent, in 3 rounds";
        assert_eq!(proof(&found(), Style::PLAIN), golden);
        let bad = Proof { verified: false, blackout_ms: None, ..found() };
        let text = proof(&bad, Style::PLAIN);
        assert_eq!(text.matches("NO   it").count(), 2, "{text}");
    }

    #[test]
    fn the_document_names_its_units() {
        let mut value = serde_json::to_value(found()).unwrap();
        let report = value.as_object_mut().unwrap().remove("report").unwrap();
        assert_eq!(report["outcome"], "moved");
        assert_eq!(
            value,
            serde_json::json!({
                "schema": 1, "type": "result", "ok": true, "at_destination": true,
                "verified": true, "verified_pages": 49_152, "heartbeats": 5000,
                "blackout_ms": 39.5, "usual_gap_ms": 1.25, "copying_gap_ms": 4.5
            })
        );
    }

    #[test]
    fn three_commands_follow() {
        let text = next(None, "guest1", ["alpha", "beta"]);
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().nth(1).unwrap().starts_with("  migrate demo --keep  "));
        let text = next(Some(Path::new("/d")), "guest1", ["alpha", "beta"]);
        let first = "  MIGRATE_HOME=/d/beta migrate guest1 --to alpha  # move it back";
        assert_eq!(text.lines().nth(1).unwrap(), first);
        assert!(text.contains("migrate demo --remove /d "), "{text}");
    }
}
