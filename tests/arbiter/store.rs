//! What the arbiter in etcd promises: one right for a guest, changed by whoever knows it, kept over
//! its death, and no answer when there is none.

use std::sync::Arc;

use migrate::api::ErrorCode;
use migrate::arbiter::{Shared, open};
use migrate::config::ArbiterConfig;
use migrate_engine::handover::term::{HostId, Stamp, Term};
use migrate_engine::wire::GuestId;

use crate::etcd::{Etcd, there};

const GUEST: GuestId = GuestId([0x11; 16]);
const OTHER: GuestId = GuestId([0x22; 16]);

fn stamp(term: u64, host: u128) -> Stamp {
    Stamp { term: Term::new(term), host: HostId(host) }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn answers(arbiter: &Arc<dyn Shared>) -> Option<Stamp> {
    for _ in 0..100 {
        if let Ok(stands) = arbiter.read(GUEST).await {
            return stands;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("it does not answer: {:?}", arbiter.read(GUEST).await)
}

#[test]
fn a_right_is_changed_by_whoever_knows_it() {
    if !there() {
        return;
    }
    let etcd = Etcd::new();
    let arbiter = open(&etcd.config()).unwrap();
    block_on(async {
        assert_eq!(answers(&arbiter).await, None);
        // Not from what is not there, and only once from nothing.
        assert_eq!(arbiter.swap(GUEST, Some(stamp(1, 5)), stamp(2, 5)).await, Ok(None));
        assert_eq!(arbiter.swap(GUEST, None, stamp(1, 5)).await, Ok(Some(stamp(1, 5))));
        assert_eq!(arbiter.swap(GUEST, None, stamp(9, 6)).await, Ok(Some(stamp(1, 5))));
        assert_eq!(arbiter.read(OTHER).await, Ok(None));
        // Asked twice, it is granted once and stays.
        for _ in 0..2 {
            let moved = arbiter.swap(GUEST, Some(stamp(1, 5)), stamp(2, 6)).await;
            assert_eq!(moved, Ok(Some(stamp(2, 6))));
        }
        // Neither term nor host alone is enough.
        for wrong in [stamp(2, 5), stamp(1, 6), stamp(3, 6)] {
            let kept = arbiter.swap(GUEST, Some(wrong), stamp(8, 8)).await;
            assert_eq!(kept, Ok(Some(stamp(2, 6))), "{wrong:?}");
        }
    });
}

#[test]
fn of_many_at_once_one_gets_it() {
    if !there() {
        return;
    }
    let etcd = Etcd::new();
    block_on(async {
        let arbiter = open(&etcd.config()).unwrap();
        assert_eq!(answers(&arbiter).await, None);
        for round in 0..20 {
            let before = arbiter.read(GUEST).await.unwrap();
            let tries: Vec<_> = (1..=8)
                .map(|host| {
                    // Each has a connection of its own, as hosts have.
                    let arbiter = open(&etcd.config()).unwrap();
                    let want = stamp(round + 1, host);
                    tokio::spawn(async move { (want, arbiter.swap(GUEST, before, want).await) })
                })
                .collect();
            let mut winners = Vec::new();
            for one in tries {
                let (want, got) = one.await.unwrap();
                winners.extend((got.unwrap() == Some(want)).then_some(want));
            }
            assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
            assert_eq!(arbiter.read(GUEST).await, Ok(Some(winners[0])));
        }
    });
}

#[test]
fn it_outlives_its_server_and_says_nothing_without_it() {
    if !there() {
        return;
    }
    let mut etcd = Etcd::new();
    let arbiter = open(&etcd.config()).unwrap();
    block_on(async {
        assert_eq!(answers(&arbiter).await, None);
        assert_eq!(arbiter.swap(GUEST, None, stamp(4, 5)).await, Ok(Some(stamp(4, 5))));
        let identity = arbiter.identity().await.unwrap();
        assert_eq!(open(&etcd.config()).unwrap().identity().await, Ok(identity));
        etcd.kill();
        for _ in 0..2 {
            let why = arbiter.read(GUEST).await.unwrap_err().to_string();
            assert!(why.contains("did not answer: etcd http://127.0.0.1"), "{why}");
            assert!(arbiter.swap(GUEST, Some(stamp(4, 5)), stamp(5, 5)).await.is_err());
        }
        etcd.start();
        assert_eq!(answers(&arbiter).await, Some(stamp(4, 5)));
        assert_eq!(arbiter.identity().await, Ok(identity));
        etcd.stop();
        assert!(arbiter.read(GUEST).await.is_err());
        etcd.go_on();
        assert_eq!(answers(&arbiter).await, Some(stamp(4, 5)));
        let another = Etcd::new();
        let other = open(&another.config()).unwrap();
        assert_eq!(answers(&other).await, None);
        assert_ne!(other.identity().await, Ok(identity));
    });
}

#[test]
fn with_tls_it_answers_those_it_knows_and_is_believed_only_if_known() {
    if !there() {
        return;
    }
    let etcd = Etcd::secure();
    block_on(async {
        let arbiter = open(&etcd.config()).unwrap();
        assert_eq!(answers(&arbiter).await, None);
        assert_eq!(arbiter.swap(GUEST, None, stamp(1, 5)).await, Ok(Some(stamp(1, 5))));
        // Without a certificate; and with a CA that did not sign the server's.
        let nobody = ArbiterConfig { identity: None, ..etcd.config() };
        assert!(open(&nobody).unwrap().read(GUEST).await.is_err());
        let stranger = Etcd::secure();
        let other = ArbiterConfig { ca: stranger.config().ca, ..etcd.config() };
        assert!(open(&other).unwrap().read(GUEST).await.is_err());
        let missing = ArbiterConfig { ca: Some("/nowhere/ca.crt".into()), ..etcd.config() };
        assert_eq!(open(&missing).unwrap_err().0.code, ErrorCode::File);
        assert_eq!(answers(&arbiter).await, Some(stamp(1, 5)));
    });
}
