use proptest::prelude::*;

use super::*;

fn host(free: u64) -> Host {
    Host { free, cpus: 2, guests: Vec::new(), ports: 7421..=7440 }
}

fn claim(n: u128, memory: u64) -> Claim {
    Claim {
        move_id: Uuid::from_u128(n),
        name: format!("g{n}"),
        uuid: Uuid::from_u128(n),
        memory,
        cpus: 1,
        disks: vec![],
        ports: 2,
    }
}

fn code(result: Result<Vec<u16>, Failure>) -> ErrorCode {
    result.unwrap_err().0.code
}

#[test]
fn the_last_of_anything_goes_to_one() {
    let (mut room, host, none) = (Room::default(), host(100 << 20), BTreeSet::new());
    let one = Uuid::from_u128(101);
    let ports = room.reserve(one, claim(1, 60 << 20), &host, &none).unwrap();
    assert_eq!(ports, [7421, 7422]);
    let other = Uuid::from_u128(102);
    assert_eq!(code(room.reserve(other, claim(2, 60 << 20), &host, &none)), ErrorCode::NoRoom);
    assert_eq!(code(room.reserve(other, claim(1, 1), &host, &none)), ErrorCode::Busy);
    let named = Claim { name: "g1".into(), ..claim(2, 1) };
    assert_eq!(code(room.reserve(other, named, &host, &none)), ErrorCode::NameTaken);
    let avoid = BTreeSet::from([7423]);
    assert_eq!(room.reserve(other, claim(2, 1), &host, &avoid).unwrap(), [7424, 7425]);
    room.release(&one);
    room.reserve(one, claim(1, 60 << 20), &host, &none).unwrap();
}

#[test]
fn guests_that_are_here_count() {
    let disk = PathBuf::from("/d");
    let there =
        Present { name: "a".into(), uuid: Some(Uuid::from_u128(5)), disks: vec![disk.clone()] };
    let host = Host { guests: vec![there], ..host(1 << 30) };
    let room = Room::default();
    let only = |claim: &Claim| -> Vec<ErrorCode> {
        room.problems(claim, &host).into_iter().map(|f| f.0.code).collect()
    };
    assert_eq!(only(&claim(5, 1)), [ErrorCode::AlreadyRunning]);
    assert_eq!(only(&Claim { name: "a".into(), ..claim(6, 1) }), [ErrorCode::NameTaken]);
    assert_eq!(only(&Claim { disks: vec![disk], ..claim(6, 2 << 30) }).len(), 2);
    assert!(only(&claim(6, 1 << 30)).is_empty());
}

proptest! {
    #[test]
    fn never_more_is_promised_than_there_is(
        steps in proptest::collection::vec((0u128..8, 0u64..50, any::<bool>(), 1usize..6), 1..80)
    ) {
        let (mut room, host) = (Room::default(), host(100));
        let mut model: BTreeMap<u128, (u64, Vec<u16>)> = BTreeMap::new();
        for (n, memory, release, ports) in steps {
            let attempt = Uuid::from_u128(1000 + n);
            if release {
                room.release(&attempt);
                model.remove(&n);
                continue;
            }
            let wanted = Claim { ports, ..claim(n, memory) };
            if let Ok(ports) = room.reserve(attempt, wanted, &host, &BTreeSet::new()) {
                prop_assert!(model.insert(n, (memory, ports)).is_none());
            }
            let sum: u64 = model.values().map(|(memory, _)| memory).sum();
            prop_assert!(sum <= 100);
            prop_assert_eq!(sum, room.reserved());
            let mut ports: Vec<u16> = model.values().flat_map(|(_, p)| p.clone()).collect();
            let count = ports.len();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(ports.len(), count);
            prop_assert!(ports.iter().all(|p| (7421..=7440).contains(p)));
        }
    }
}
