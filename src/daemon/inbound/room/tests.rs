use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn claim(n: u8, mib: u64) -> Claim {
    Claim {
        move_id: Uuid::nil(),
        from: Uuid::from_u128(77),
        name: format!("g{n}"),
        uuid: Uuid::from_u128(n.into()),
        memory: mib * MIB,
        cpus: 1,
        disks: vec![],
        ports: 2,
    }
}

fn present(n: u8, mib: u64, untouched: u64) -> Present {
    let Claim { name, uuid, memory, .. } = claim(n, mib);
    Present { name, uuid: Some(uuid), memory, untouched: untouched * MIB, cpus: 1, disks: vec![] }
}

/// A host with so much memory beside its own, and room for the process of one guest.
fn host(mib: u64) -> Host {
    let available = mib * MIB + OVERHEAD + HOSTS_OWN;
    Host { available, ports: (1..=10).collect(), ..Host::default() }
}

fn attempt(n: u8) -> Uuid {
    Uuid::from_u128(1000 + u128::from(n))
}

#[track_caller]
fn refused(room: &mut Room, claim: Claim, host: &Host, code: ErrorCode, parts: &[&str]) {
    let failure = room.reserve(attempt(99), claim, host).unwrap_err();
    assert_eq!(failure.0.code, code, "{failure}");
    for part in parts {
        assert!(failure.to_string().contains(part), "'{part}' is not in: {failure}");
    }
}

#[test]
fn what_running_guests_may_still_touch_is_not_there() {
    let mut room = Room::default();
    let mut host = host(100);
    assert!(room.problems(&claim(1, 100), &host).is_empty());
    host.guests.push(present(9, 200, 30));
    let parts = ["70 MiB", "touch 30 MiB", "256 MiB are the host's own"];
    // The room for a process is on both sides of the comparison.
    let parts = [&format!("has {} MiB", 70 + 64), parts[1], parts[2]];
    refused(&mut room, claim(1, 71), &host, ErrorCode::NoRoom, &parts);
    assert_eq!(room.left(&host), 70 * MIB);
    room.reserve(attempt(1), claim(1, 70), &host).unwrap();
    assert_eq!(room.left(&host), 0);
}

#[test]
fn a_promise_counts_once_from_the_first_page_to_the_running_guest() {
    let mut room = Room::default();
    let before = host(400);
    room.reserve(attempt(1), claim(1, 100), &before).unwrap();
    let left = room.left(&before);
    // Half of it has come.
    assert!(room.started(attempt(1), 7));
    assert_eq!(room.receivers(), [(7, 100 * MIB + OVERHEAD)]);
    let starting = Present { name: "g1".into(), ..Present::default() };
    let half = Host {
        available: before.available - 50 * MIB,
        filled: 50 * MIB,
        guests: vec![starting],
        ..before.clone()
    };
    assert_eq!(room.left(&half), left);
    // It runs, and the promise is not given back yet.
    let guests = vec![present(1, 100, 50)];
    let runs = Host { guests, ..half.clone() };
    assert_eq!(room.left(&runs), left);
    room.release(attempt(1));
    let after = Host { filled: 0, ..runs };
    assert_eq!(room.left(&after), left + OVERHEAD, "its process is there, and seen");
}

#[test]
fn limits_hold_together_with_promises() {
    let gib = 1024;
    let memory = Limits { memory: Some(128 * MIB), ..Limits::default() };
    let mut room = Room::new(memory);
    room.reserve(attempt(1), claim(1, 64), &host(gib)).unwrap();
    let one = Host { guests: vec![present(9, 32, 0)], ..host(gib) };
    let parts = ["128 MiB", "1 run there and 1 arrive", "32 MiB are left", "has 64 MiB"];
    refused(&mut room, claim(2, 64), &one, ErrorCode::NoRoom, &parts);
    room.reserve(attempt(2), claim(2, 32), &one).unwrap();

    let mut room = Room::new(Limits { vcpus: Some(3), ..Limits::default() });
    room.reserve(attempt(1), claim(1, 1), &host(gib)).unwrap();
    let two = Claim { cpus: 2, ..claim(2, 1) };
    refused(&mut room, two, &one, ErrorCode::NoRoom, &["3 vCPUs", "1 vCPUs are left"]);

    let mut room = Room::new(Limits { guests: Some(2), ..Limits::default() });
    room.reserve(attempt(1), claim(1, 1), &host(gib)).unwrap();
    refused(&mut room, claim(2, 1), &one, ErrorCode::NoRoom, &["takes 2 guests"]);
}

#[test]
fn names_identities_and_disks_are_promised_once() {
    let disk = || vec![PathBuf::from("/srv/a.img")];
    let mut room = Room::default();
    let host = Host { guests: vec![Present { disks: disk(), ..present(9, 1, 0) }], ..host(1000) };
    room.reserve(attempt(1), Claim { disks: vec!["/b".into()], ..claim(1, 1) }, &host).unwrap();
    refused(&mut room, claim(1, 1), &host, ErrorCode::Busy, &["g1"]);
    let name = Claim { name: "g1".into(), ..claim(2, 1) };
    refused(&mut room, name, &host, ErrorCode::NameTaken, &["g1", "arriving"]);
    refused(&mut room, claim(9, 1), &host, ErrorCode::AlreadyRunning, &["g9"]);
    let name = Claim { name: "g9".into(), ..claim(2, 1) };
    refused(&mut room, name, &host, ErrorCode::NameTaken, &["g9"]);
    for path in ["/srv/a.img", "/b"] {
        let disks = Claim { disks: vec![path.into()], ..claim(2, 1) };
        refused(&mut room, disks, &host, ErrorCode::DiskLocked, &[path]);
    }
}

#[test]
fn what_was_given_up_is_not_wanted_whenever_that_is_heard() {
    let mut room = Room::default();
    assert!(room.give_up(attempt(1)).is_none());
    let late = room.reserve(attempt(1), claim(1, 1), &host(100)).unwrap_err();
    assert_eq!(late.0.code, ErrorCode::Cancelled);
    room.reserve(attempt(2), claim(1, 1), &host(100)).unwrap();
    assert_eq!(room.give_up(attempt(2)).map(|c| c.name.as_str()), Some("g1"));
    assert!(!room.started(attempt(2), 1));
    for n in 3..=255 {
        room.give_up(attempt(n));
    }
    assert_eq!(room.unwanted.len(), REMEMBERED, "memory is bounded");
}

proptest! {
    /// However moves come and go, no more is promised than there is, and no port or name twice.
    #[test]
    fn what_is_promised_is_there(
        steps in proptest::collection::vec((any::<bool>(), 0u8..12, 0u64..60), 1..80),
    ) {
        const LIMIT: u64 = 100;
        let mut room = Room::new(Limits { memory: Some(LIMIT * MIB), ..Limits::default() });
        let host = host(10_000);
        let mut held: Vec<(Uuid, u8, u64)> = Vec::new();
        for (n, (come, name, memory)) in (0u128..).zip(steps) {
            if come {
                let attempt = Uuid::from_u128(n);
                let promised: u64 = held.iter().map(|h| h.2).sum();
                let fits = promised + memory <= LIMIT
                    && held.iter().all(|h| h.1 != name)
                    && held.len() < 5;
                let got = room.reserve(attempt, claim(name, memory), &host);
                prop_assert_eq!(got.is_ok(), fits);
                if fits {
                    held.push((attempt, name, memory));
                }
            } else if !held.is_empty() {
                let (attempt, ..) = held.remove(usize::from(name) % held.len());
                room.release(attempt);
            }
            let sum = held.iter().map(|h| h.2 * MIB + OVERHEAD).sum::<u64>();
            prop_assert_eq!((room.promised(), room.expected()), (sum, held.len()));
            let ports: Vec<u16> = room.held.values().flat_map(|h| h.ports.clone()).collect();
            let once: BTreeSet<u16> = ports.iter().copied().collect();
            prop_assert_eq!(once.len(), ports.len());
        }
    }
}

#[test]
fn only_the_source_of_an_attempt_has_left_it_behind_by_asking_again() {
    let mut room = Room::default();
    let host = host(1000);
    room.reserve(attempt(1), claim(1, 1), &host).unwrap();
    room.reserve(attempt(2), claim(2, 1), &host).unwrap();
    assert_eq!(room.left_behind(attempt(3), &claim(1, 1)), Some(attempt(1)));
    assert_eq!(room.left_behind(attempt(1), &claim(1, 1)), None, "the same attempt");
    assert_eq!(room.left_behind(attempt(3), &claim(3, 1)), None, "another guest");
    let other = Claim { from: Uuid::from_u128(78), ..claim(1, 1) };
    assert_eq!(room.left_behind(attempt(3), &other), None, "another host");
    // It is not replaced: as long as it is there, the next one is refused.
    refused(&mut room, claim(1, 1), &host, ErrorCode::Busy, &["arriving there already"]);
    room.give_up(attempt(1));
    assert!(room.holds(attempt(1)));
    refused(&mut room, claim(1, 1), &host, ErrorCode::Busy, &[]);
    room.release(attempt(1));
    assert!(!room.holds(attempt(1)));
    room.reserve(attempt(3), claim(1, 1), &host).unwrap();
}
