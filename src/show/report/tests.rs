//! Golden pages and documents of a report that other tests use as well.

use super::*;
use crate::api::ErrorBody;
use crate::api::ErrorCode;
use crate::api::moving::{HostRef, MoveOptions, RoundLine};
use proptest::prelude::*;
use uuid::Uuid;

/// A move of two rounds and a switch.
pub fn report() -> MoveReport {
    let host = |n: u128, name: &str| HostRef { id: Uuid::from_u128(n), name: name.into() };
    let round = |round, took_ms, memory: u64, dirty: u64, predicted| RoundLine {
        round,
        took_ms,
        memory_bytes: memory << 20,
        frame_bytes: memory << 19,
        pages: memory * 256,
        compressed_pages: memory * 128,
        zero_pages: 12,
        same_pages: 3,
        untouched_pages: 5,
        dirty_bytes: dirty << 20,
        dirty_bytes_per_s: dirty << 19,
        bandwidth_bytes_per_s: 500 << 20,
        predicted_downtime_ms: predicted,
        stalled: false,
        advice: "keep copying".into(),
    };
    let step = |side: &str, step: &str, at_us| TimelineStep {
        side: side.into(),
        step: step.into(),
        at_us,
    };
    MoveReport {
        schema: 1,
        move_id: Uuid::from_u128(0x3f2a),
        guest: "web1".into(),
        uuid: Uuid::from_u128(1),
        from: host(2, "host1"),
        to: host(3, "host2"),
        started: "2026-01-01T00:00:00Z".parse().unwrap(),
        ended: Some("2026-01-01T00:00:03Z".parse().unwrap()),
        phase: MovePhase::Ended,
        outcome: Some(MoveOutcome::Moved),
        error: None,
        options: MoveOptions { bandwidth_bytes_per_s: Some(125_000_000), ..MoveOptions::default() },
        total_ms: 2500.5,
        phases: vec![
            (MovePhase::Preparing, 100.0),
            (MovePhase::Copying, 2300.0),
            (MovePhase::Stopped, 30.5),
            (MovePhase::Ended, 0.0),
        ],
        rounds: vec![
            round(0, 2000.0, 1024, 128, Some(280.0)),
            round(1, 260.0, 128, 8, Some(40.5)),
            round(2, 18.0, 8, 0, None),
        ],
        memory_bytes: 1 << 30,
        frame_bytes: 580 << 20,
        udp_bytes: 600 << 20,
        predicted_parts_ms: Vec::new(),
        predicted_downtime_ms: Some(40.5),
        downtime_ms: Some(38.25),
        rehearsal_restore_ms: Some(4.2),
        limited_by: Some("the link".into()),
        timeline: vec![
            step("source", "vCPUs stopped", 600),
            step("source", "last piece sent", 20_000),
            step("source", "runs at the target", 38_250),
            step("target", "restored", 4_000),
            step("target", "runs", 8_000),
        ],
        digest_equal: Some(true),
        audit_equal: Some(true),
        rtt_ms: Some(0.4),
        mtu_bytes: Some(8952),
        packets: (70_000, 12),
    }
}

const PAGE: &str = "\
move         00000000-0000-0000-0000-000000003f2a
guest        web1 (00000000-0000-0000-0000-000000000001), 1G of RAM
from         host1
to           host2
started      2026-01-01T00:00:00Z
outcome      moved after 2.50 s
stood still  38.2 ms, 40.5 ms predicted, restoring rehearsed in 4.2 ms
sent         600M (580M of frames), round trip 400 us, datagrams of 8952 bytes, 70,000 packets, 12 lost
limited by   the link
checked      digests at the switch equal; source afterwards equal
asked        --max-downtime 300ms --on-stall wait --timeout 1800s --bandwidth 125000kB

PHASES
preparing   100.0 ms  #
copying       2.30 s  ################################
stopped      30.5 ms  #

ROUNDS (the last one with the guest stopped)
ROUND  TOOK      MEMORY  FRAMES  PAGES   PACKED  ZERO  SAME  ACROSS  WRITTEN  STOP WOULD BE
0      2.00 s    1G      512M    262144  131072  12    3     500M/s  64M/s    280.0 ms       keep copying
1      260.0 ms  128M    64M     32768   16384   12    3     500M/s  4M/s     40.5 ms        keep copying
2      18.0 ms   8M      4M      2048    1024    12    3     500M/s  0B/s     -              keep copying

Memory sent (#) and written again meanwhile (+), up to 1G
0  ################################|  ++++
1  ####                            |  +
2  #                               |

SWITCH, source: time after the guest was asked to stop
   600 us  |*                               |  vCPUs stopped
  20.0 ms  |                *               |  last piece sent
  38.2 ms  |                               *|  runs at the target

SWITCH, target: time after the last piece had come
   4.0 ms  |                *               |  restored
   8.0 ms  |                               *|  runs
";

#[test]
fn a_report_is_readable() {
    let text = page(&report(), Style::PLAIN);
    assert_eq!(text, PAGE, "{text}");
}

#[test]
fn a_failure_says_why_and_what_next() {
    let error = ErrorBody {
        code: ErrorCode::NoRoom,
        message: "host2 has 1G left".into(),
        remedy: "make room".into(),
        retryable: true,
        guest_state: None,
    };
    let failed = MoveReport {
        outcome: Some(MoveOutcome::Kept),
        error: Some(error),
        rounds: vec![],
        phases: vec![],
        timeline: vec![],
        downtime_ms: None,
        digest_equal: None,
        audit_equal: None,
        ..report()
    };
    let text = page(&failed, Style::PLAIN);
    for line in [
        "outcome      stayed after 2.50 s",
        "cause        host2 has 1G left",
        "next         make room",
        "stood still  not at all, 40.5 ms predicted, restoring rehearsed in 4.2 ms",
        "checked      digests at the switch not compared; source afterwards not compared",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}:\n{text}");
    }
    assert!(!text.contains("ROUNDS") && !text.contains("SWITCH"));
}

/// The document that scripts read. Fields are only ever added.
#[test]
fn the_document_is_golden() {
    let mut report = report();
    report.rounds.truncate(1);
    report.timeline.truncate(1);
    let value = serde_json::to_value(&report).unwrap();
    let golden = serde_json::json!({
        "schema": 1,
        "move_id": "00000000-0000-0000-0000-000000003f2a",
        "guest": "web1",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "from": {"id": "00000000-0000-0000-0000-000000000002", "name": "host1"},
        "to": {"id": "00000000-0000-0000-0000-000000000003", "name": "host2"},
        "started": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T00:00:03Z",
        "phase": "ended",
        "outcome": "moved",
        "options": {"max_downtime_ms": 300, "on_stall": "wait", "timeout_ms": 1_800_000,
                    "bandwidth_bytes_per_s": 125_000_000},
        "total_ms": 2500.5,
        "phases": [["preparing", 100.0], ["copying", 2300.0], ["stopped", 30.5], ["ended", 0.0]],
        "rounds": [{
            "round": 0, "took_ms": 2000.0, "memory_bytes": 1_073_741_824,
            "frame_bytes": 536_870_912, "pages": 262_144, "compressed_pages": 131_072,
            "zero_pages": 12, "same_pages": 3, "untouched_pages": 5,
            "dirty_bytes": 134_217_728, "dirty_bytes_per_s": 67_108_864,
            "bandwidth_bytes_per_s": 524_288_000, "predicted_downtime_ms": 280.0,
            "advice": "keep copying"
        }],
        "memory_bytes": 1_073_741_824,
        "frame_bytes": 608_174_080,
        "udp_bytes": 629_145_600,
        "predicted_downtime_ms": 40.5,
        "downtime_ms": 38.25,
        "rehearsal_restore_ms": 4.2,
        "limited_by": "the link",
        "timeline": [{"side": "source", "step": "vCPUs stopped", "at_us": 600}],
        "digest_equal": true,
        "audit_equal": true,
        "rtt_ms": 0.4,
        "mtu_bytes": 8952,
        "packets": [70_000, 12]
    });
    assert_eq!(value, golden);
    let back: MoveReport = serde_json::from_value(golden).unwrap();
    assert_eq!(back, report);
}

proptest! {
    #[test]
    fn no_numbers_panic_and_nothing_reaches_the_terminal(
        numbers in prop::array::uniform4(any::<u64>()),
        ms in any::<f64>(),
        text in ".{0,20}",
    ) {
        let [a, b, c, d] = numbers;
        let line = RoundLine {
            took_ms: ms, memory_bytes: a, dirty_bytes: b, frame_bytes: c, pages: d,
            predicted_downtime_ms: Some(ms), advice: text.clone(), ..RoundLine::default()
        };
        let step = |side: &str, at_us| TimelineStep {
            side: side.into(), step: text.clone(), at_us,
        };
        let wild = MoveReport {
            rounds: vec![line.clone(), line],
            timeline: vec![step("source", a), step("target", b), step(&text, c)],
            phases: vec![(MovePhase::Copying, ms), (MovePhase::Stopped, -ms)],
            guest: text.clone(), udp_bytes: a, packets: (b, c), total_ms: ms,
            ..report()
        };
        let page = page(&wild, Style::PLAIN);
        prop_assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
    }
}
