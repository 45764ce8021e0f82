use super::*;
use proptest::prelude::*;
use serde_json::json;

fn question(versions: Vec<u16>) -> Question {
    let from = HostRef { id: Uuid::nil(), name: "a".into() };
    Question { versions, from, address: ":1".into(), request: Request::Info }
}

#[test]
fn the_best_common_version_is_taken() {
    assert_eq!(question(vec![3, 1, 2]).version().unwrap(), 1);
    let none = question(vec![7]).version().unwrap_err();
    assert_eq!(none.0.code, ErrorCode::NoCommonVersion);
    assert!(none.to_string().contains("[7]"));
}

proptest! {
    #[test]
    fn nothing_that_a_peer_says_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        at in 0usize..200,
        value: u8,
    ) {
        let _ = decode::<Question>(&bytes);
        let mut good = serde_json::to_vec(&question(vec![1])).unwrap();
        let at = at % good.len();
        good[at] = value;
        let _ = decode::<Question>(&good);
        let _ = decode::<Reply>(&good);
    }
}

/// One of each request that there is, with the rights of which one is needed: send, receive,
/// observe, control.
fn table() -> Vec<(Request, [bool; 4])> {
    let id = Uuid::nil();
    let host = json!({ "id": id, "name": "a" });
    let report = json!({
        "schema": 1, "move_id": id, "guest": "g", "uuid": id, "from": host, "to": host,
        "started": "2026-01-01T00:00:00Z", "phase": "ended",
        "options": MoveOptions::default(), "total_ms": 0.0,
        "phases": [], "rounds": [], "memory_bytes": 0, "frame_bytes": 0, "udp_bytes": 0,
        "timeline": [], "packets": [0, 0],
    });
    let prepare = json!({
        "move_id": id, "attempt": id, "fingerprint": "", "lanes": 1, "payload": 1200,
        "dry_run": true,
        "definition": crate::guest::testing::definition("g"),
    });
    let join = json!({ "secret": "", "name": "b", "request": "" });
    [
        (json!("info"), [false, false, true, false]),
        (json!("cpu"), [false, false, true, false]),
        (json!({ "prepare": prepare }), [true, false, false, false]),
        (json!({ "abandon": { "attempt": id } }), [true, false, false, false]),
        (json!({ "paths": { "paths": ["/a"] } }), [true, false, false, false]),
        (json!({ "words": { "guest": id, "words": { "frame": "" } } }), [true, true, false, false]),
        (
            json!({ "process-gone": { "guest": id, "move_id": id, "gone": { "why": "" } } }),
            [true, true, false, false],
        ),
        (json!({ "report": report }), [true, true, false, false]),
        (json!({ "renew": { "request": "" } }), [true; 4]),
        (json!({ "gossip": { "hosts": [], "removals": [] } }), [false, false, true, false]),
        (json!({ "remove": { "host": "b" } }), [false, false, false, true]),
        (
            json!({ "probe": { "fingerprint": "", "payload": 1200, "part": 0 } }),
            [true, true, false, false],
        ),
        (json!("probe-back"), [true, true, false, false]),
        (json!({ "join": join }), [false; 4]),
    ]
    .into_iter()
    .map(|(json, needs)| (serde_json::from_value(json).unwrap(), needs))
    .collect()
}

#[test]
fn every_request_needs_a_right() {
    let table = table();
    // A request that is new must stand in the table: this match does not compile without it.
    let kinds: std::collections::BTreeSet<u8> = table
        .iter()
        .map(|(request, _)| match request {
            Request::Info => 0,
            Request::Prepare(_) => 1,
            Request::Abandon { .. } => 2,
            Request::Words { .. } => 3,
            Request::Report(_) => 4,
            Request::Renew { .. } => 5,
            Request::Gossip(_) => 6,
            Request::Remove { .. } => 7,
            Request::Probe(_) => 8,
            Request::ProbeBack => 9,
            Request::Join { .. } => 10,
            Request::ProcessGone { .. } => 11,
            Request::Cpu => 12,
            Request::Paths { .. } => 13,
        })
        .collect();
    assert_eq!(kinds.len(), 14);
    for (request, needs) in table {
        for set in 0..16u8 {
            let has = |bit: usize| set & (1 << bit) != 0;
            let rights = Right::ALL.iter().enumerate().filter(|(bit, _)| has(*bit));
            let rights: Rights = rights.map(|(_, right)| *right).collect();
            let enough = (0..4).any(|bit| has(bit) && needs[bit]);
            assert_eq!(request.is_allowed(rights), enough, "{request:?} with {rights:?}");
        }
    }
}

#[test]
fn a_damaged_request_of_each_kind_is_refused_or_another() {
    for (request, _) in table() {
        crate::guest::testing::hostile_json(&Question { request, ..question(vec![1]) });
    }
}

#[test]
fn a_document_that_is_too_long_is_not_looked_at() {
    let mut long = serde_json::to_vec(&question(vec![1])).unwrap();
    assert!(decode::<Question>(&long).is_ok());
    long.resize(DOCUMENT_MAX + 1, b' ');
    assert!(decode::<Question>(&long).unwrap_err().0.message.contains("bytes"));
}
