use super::*;
use migrate_engine::transport::identity::Authority;
use proptest::prelude::*;

const NOW: Moment = Moment(100);

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn host(text: &str, since: u64, joined: u64) -> Known {
    Known {
        name: name(text),
        id: None,
        address: format!("{text}:{}", 1 + since % 1000),
        since: Moment(since),
        joined: Moment(joined),
        ca: false,
    }
}

fn removal(text: &str, at: u64) -> Removal {
    let json = format!(r#"{{"host":"{text}","at":{at},"signature":""}}"#);
    serde_json::from_str(&json).unwrap()
}

fn says(hosts: &[Known], removals: &[Removal]) -> Gossip {
    Gossip { hosts: hosts.to_vec(), removals: removals.to_vec() }
}

#[test]
fn a_removed_host_stays_away_until_it_joins_again() {
    let me = name("a");
    let mut mine = Roster::default();
    assert!(mine.merge(says(&[host("b", 10, 5), host("c", 10, 5)], &[]), &me, NOW));
    assert!(mine.merge(says(&[], &[removal("b", 20)]), &me, NOW));
    assert_eq!(mine.hosts.keys().collect::<Vec<_>>(), [&name("c")]);
    // Somebody who was off then brings its old list; the host itself is as old.
    assert!(!mine.merge(says(&[host("b", 90, 5)], &[]), &me, NOW));
    assert!(!mine.note(host("b", 90, 20)), "signed in the second of the removal");
    // It joins again: old news do not remove it.
    assert!(mine.note(host("b", 95, 30)));
    assert!(!mine.merge(says(&[], &[removal("b", 20)]), &me, NOW));
    assert!(!mine.merge(says(&[], &[removal("b", 15)]), &me, NOW));
    assert!(mine.hosts.contains_key(&name("b")));
    // And is removed again.
    assert!(mine.merge(says(&[], &[removal("b", 40)]), &me, NOW));
    assert!(!mine.hosts.contains_key(&name("b")));
    assert_eq!(mine.removed(&name("b")), Some(Moment(40)));
}

#[test]
fn its_own_word_counts_here_alone() {
    let mut mine = Roster::default();
    mine.note(host("b", 10, 5));
    mine.distrusted.insert(name("b"), Moment(50));
    mine.tidy(NOW);
    assert!(mine.hosts.is_empty());
    assert_eq!(mine.all_removed(), BTreeMap::from([(name("b"), Moment(50))]));
    assert!(mine.gossip(host("a", 1, 1)).removals.is_empty());
    mine.removals.insert(name("b"), removal("b", 40));
    assert_eq!(mine.removed(&name("b")), Some(Moment(50)), "the later of the two");
}

#[test]
fn a_host_is_found_where_it_was_heard_last() {
    let me = name("a");
    let mut mine = Roster::default();
    assert!(mine.note(host("b", 10, 5)));
    assert!(!mine.merge(says(&[host("b", 9, 5)], &[]), &me, NOW), "older");
    assert!(mine.merge(says(&[host("b", 11, 5)], &[]), &me, NOW));
    assert_eq!(mine.hosts[&name("b")].address, "b:12");
    // It says so itself, by a clock that was set back.
    assert!(mine.note(host("b", 7, 5)));
    assert_eq!(mine.hosts[&name("b")].address, "b:8");
    // Nobody can pin an address by a time that never comes.
    assert!(mine.merge(says(&[host("b", u64::MAX, 5)], &[]), &me, NOW));
    assert_eq!(mine.hosts[&name("b")].since, NOW);
    // What is said of oneself by others is nothing.
    assert!(!mine.merge(says(&[host("a", 99, 5)], &[]), &me, NOW));
}

#[test]
fn nonsense_and_theft_are_left_out() {
    let me = name("a");
    let mut mine = Roster::default();
    let one = Some(Uuid::from_u128(1));
    assert!(mine.note(Known { id: one, ..host("b", 10, 5) }));
    let thief = Known { id: one, ..host("c", 10, 5) };
    assert!(!mine.merge(says(&[thief], &[]), &me, NOW));
    let other = Known { id: Some(Uuid::from_u128(2)), ..host("b", 20, 5) };
    assert!(!mine.merge(says(&[other], &[]), &me, NOW), "an identity does not change by hearsay");
    for address in ["", "b", "b:", "b:70000", "b b:1", "b\n:1", &format!("{}:1", "b".repeat(300))] {
        let bad = Known { address: address.into(), ..host("d", 10, 5) };
        assert!(!mine.merge(says(std::slice::from_ref(&bad), &[]), &me, NOW), "{address}");
        assert!(!mine.note(bad));
    }
    let many: Vec<Known> = (0..3000).map(|n| host(&format!("h{n}"), 1, 1)).collect();
    let gone: Vec<Removal> = (0..3000).map(|n| removal(&format!("g{n}"), 1)).collect();
    mine.merge(says(&many, &gone), &me, NOW);
    assert!(mine.hosts.len() <= MOST && mine.removals.len() <= MOST);
}

#[test]
fn a_removal_is_forgotten_when_no_certificate_is_as_old() {
    let mut mine = Roster::default();
    mine.merge(says(&[], &[removal("b", 50)]), &name("a"), NOW);
    mine.distrusted.insert(name("c"), Moment(50));
    mine.tidy(Moment(50).plus(HOST_LIFETIME));
    assert_eq!(mine.all_removed().len(), 2);
    let late = Moment(50).plus(MATTERS);
    mine.tidy(late);
    assert!(mine.all_removed().is_empty());
    assert!(!mine.merge(says(&[], &[removal("b", 50)]), &name("a"), late));
}

#[test]
fn a_real_removal_comes_through_as_it_was_signed() {
    let ca = Authority::generate("test", NOW).unwrap();
    let mut mine = Roster::default();
    let signed = ca.remove(&name("b"), NOW).unwrap();
    mine.merge(says(&[], std::slice::from_ref(&signed)), &name("a"), NOW);
    assert_eq!(mine.gossip(host("a", 1, 1)).removals, [signed]);
}

fn any_gossip() -> impl Strategy<Value = Gossip> {
    let host = (0..4u8, 0..30u64, 0..30u64).prop_map(|(n, s, j)| host(&format!("h{n}"), s, j));
    let removal = (0..4u8, 0..30u64).prop_map(|(n, at)| removal(&format!("h{n}"), at));
    let hosts = proptest::collection::vec(host, 0..6);
    let removals = proptest::collection::vec(removal, 0..4);
    (hosts, removals).prop_map(|(hosts, removals)| Gossip { hosts, removals })
}

proptest! {
    #[test]
    fn what_was_removed_is_the_same_in_any_order(
        mut all in proptest::collection::vec(any_gossip(), 1..5),
    ) {
        let me = name("a");
        let learn = |all: &[Gossip]| {
            let mut roster = Roster::default();
            for said in all {
                roster.merge(said.clone(), &me, NOW);
            }
            roster
        };
        let one = learn(&all);
        all.reverse();
        let other = learn(&all);
        prop_assert_eq!(&one.removals, &other.removals);
        for said in [&one, &other] {
            for host in said.hosts.values() {
                prop_assert!(said.removed(&host.name).is_none_or(|at| at < host.joined));
            }
        }
        // Hearing it again changes nothing.
        let mut again = other.clone();
        for said in &all {
            again.merge(said.clone(), &me, NOW);
        }
        prop_assert_eq!(&again.removals, &other.removals);
    }
}
