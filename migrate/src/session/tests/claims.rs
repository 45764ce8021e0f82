//! An operator's word at a process that holds the memory, while the other side is gone for good.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::fake::World;
use super::pair::{
    Hands, React, SOURCE, Setup, Sides, TARGET, at, block_on, nothing, plan, text_of,
};
use crate::handover::journal::Record;
use crate::handover::resolve::{Refused, Wish};
use crate::handover::term::{HostId, Stamp, Switch, Term};
use crate::session::claim::NotClaimed;
use crate::session::report::{Phase, Reason};
use crate::session::{Claim, Command, Event, source, target};

type Answer = Result<Option<Term>, NotClaimed>;

const RUN: Wish = Wish::RunHere { lose_later_work: false };

fn switch() -> Switch {
    let id = plan(&Setup::default()).switch;
    Switch { id, before: Term::FIRST, term: Term::new(2), from: SOURCE, to: TARGET }
}

async fn claim(to: &mpsc::Sender<Command>, wish: Wish, elsewhere: u64) -> Answer {
    let (answer, mut heard) = mpsc::channel(1);
    let elsewhere = Term::new(elsewhere);
    let claim = Claim { wish, elsewhere, owned_by: None, silent: None, answer };
    to.send(Command::Claim(claim)).await.unwrap();
    heard.recv().await.unwrap()
}

/// Tells when a side comes to a phase, and what there is at hand then.
fn tells(phase: Phase, act: impl Fn(&Hands) + Send + 'static) -> (React, mpsc::Receiver<()>) {
    let (told, heard) = mpsc::channel(8);
    let react = at(phase, move |hands: &Hands| {
        act(hands);
        let _ = told.try_send(());
    });
    (react, heard)
}

/// A source that has given the guest away to a target that is gone, before it heard of it.
async fn ceded(world: &Arc<World>) -> (Sides, mpsc::Sender<Command>) {
    let setup = Setup { times: 10, ..Setup::default() };
    world.faults.plan("T takes OWNER", 1000);
    let (near, mut there) = tells(Phase::Ceded, |hands| {
        hands.cable.sever();
        hands.relay.store(false, std::sync::atomic::Ordering::SeqCst);
        hands.kill_far.notify_one();
    });
    let mut sides = Sides::start_with(&setup, Arc::clone(world), near, nothing());
    there.recv().await;
    assert!((&mut sides.far).await.unwrap().is_none(), "the target is gone");
    let near = sides.hands.near.clone();
    // As long as its host holds a disk it is not fenced, whatever somebody says.
    let held = claim_when_ready(&near, RUN, 0).await;
    assert!(matches!(held, Err(NotClaimed::Held)), "{held:?}");
    world.host_dies(TARGET);
    (sides, near)
}

/// Until the mark is set an operator's word comes too early.
async fn claim_when_ready(to: &mpsc::Sender<Command>, wish: Wish, elsewhere: u64) -> Answer {
    loop {
        match claim(to, wish, elsewhere).await {
            Err(NotClaimed::NotNow) => tokio::time::sleep(Duration::from_millis(5)).await,
            answer => return answer,
        }
    }
}

#[test]
fn a_ceded_source_runs_its_memory_again_under_a_new_term() {
    block_on(async {
        let world = Arc::<World>::default();
        let (sides, to) = ceded(&world).await;
        // Somebody who was asked knows better.
        let no = claim_when_ready(&to, RUN, 9).await;
        assert!(matches!(no, Err(NotClaimed::Refused(Refused::HigherTerm { .. }))), "{no:?}");
        let term = claim(&to, RUN, 2).await.unwrap().unwrap();
        assert!(term > switch().term);
        let (outcome, rights) = sides.near.await.unwrap();
        let source::Outcome::Kept { guest: source::Kept::Running(guest), reason, .. } = outcome
        else {
            panic!("{}", text_of(&outcome))
        };
        assert!(guest.runs());
        assert_eq!(reason, Reason::Operator);
        assert_eq!(rights.ledger.now(), Some(&Record::Owner { term }));
        assert_eq!(world.beside().owner, Stamp { term, host: SOURCE });
        // Locks, then the disks, then the journal, then the guest.
        world.diary.in_order(&["S marks ceded", "S takes NEXT", "S stamps", "S records Owner"]);
    });
}

#[test]
fn a_step_that_fails_leaves_everything_as_it_was() {
    for step in ["S takes OWNER", "S takes NEXT", "S stamps", "S records Owner"] {
        block_on(async {
            let world = Arc::<World>::default();
            let (sides, to) = ceded(&world).await;
            // It has been ready once.
            let no = claim_when_ready(&to, RUN, 9).await;
            assert!(matches!(no, Err(NotClaimed::Refused(_))), "{no:?}");
            world.faults.plan(step, 1);
            let no = claim(&to, RUN, 0).await;
            assert!(matches!(no, Err(NotClaimed::Failed(_))), "{step}: {no:?}");
            assert!(!sides.near.is_finished(), "{step}");
            // And the next try finds what the first has left beside the disks.
            let term = claim(&to, RUN, 0).await;
            let term = term.unwrap_or_else(|e| panic!("{step}: {e}")).unwrap();
            let (outcome, rights) = sides.near.await.unwrap();
            assert!(matches!(outcome, source::Outcome::Kept { .. }), "{step}");
            assert_eq!(rights.ledger.now(), Some(&Record::Owner { term }), "{step}");
        });
    }
}

#[test]
fn old_memory_is_only_given_up() {
    block_on(async {
        let world = Arc::<World>::default();
        let (sides, to) = ceded(&world).await;
        let no = claim_when_ready(&to, RUN, 9).await;
        assert!(matches!(no, Err(NotClaimed::Refused(_))), "{no:?}");
        world.supersede(Stamp { term: Term::new(2), host: HostId(2) });
        let no = claim(&to, RUN, 0).await;
        assert!(matches!(no, Err(NotClaimed::Refused(Refused::OldMemory(_)))), "{no:?}");
        assert_eq!(claim(&to, Wish::GiveUp, 0).await.unwrap(), None);
        let (outcome, rights) = sides.near.await.unwrap();
        assert!(matches!(outcome, source::Outcome::Moved { .. }), "{}", text_of(&outcome));
        assert_eq!(rights.ledger.now(), Some(&Record::Moved(switch())));
    });
}

/// A target that is prepared, and whose source is gone before it has said what becomes of it.
async fn prepared(world: &Arc<World>) -> (Sides, mpsc::Sender<Command>) {
    let setup = Setup { times: 10, ..Setup::default() };
    world.faults.plan("S marks ceded", 1000);
    let (far, mut there) = tells(Phase::Prepared, |hands| {
        hands.relay.store(false, std::sync::atomic::Ordering::SeqCst);
        hands.cable.sever();
    });
    let sides = Sides::start_with(&setup, Arc::clone(world), nothing(), far);
    there.recv().await;
    sides.near.abort();
    // Its locks go with it.
    world.host_dies(SOURCE);
    let far = sides.hands.far.clone();
    (sides, far)
}

#[test]
fn a_prepared_target_runs_by_an_operators_word() {
    block_on(async {
        let world = Arc::<World>::default();
        let (sides, to) = prepared(&world).await;
        let no = claim_when_ready(&to, RUN, 9).await;
        assert!(matches!(no, Err(NotClaimed::Refused(Refused::HigherTerm { .. }))), "{no:?}");
        let term = claim(&to, RUN, 0).await.unwrap().unwrap();
        let (outcome, rights) = sides.far.await.unwrap().unwrap();
        let target::Outcome::Arrived { .. } = outcome else {
            panic!("{}", super::pair::far_text(&outcome))
        };
        assert!(term > switch().term);
        assert_eq!(rights.ledger.now(), Some(&Record::Owner { term }));
        assert_eq!(world.beside().owner, Stamp { term, host: TARGET });
        world.diary.in_order(&["T takes OWNER", "T stamps", "T records Owner"]);
    });
}

#[test]
fn a_prepared_target_is_given_up() {
    block_on(async {
        let world = Arc::<World>::default();
        let (sides, to) = prepared(&world).await;
        loop {
            match claim(&to, Wish::GiveUp, 0).await {
                Err(NotClaimed::NotNow) => tokio::time::sleep(Duration::from_millis(5)).await,
                answer => break assert_eq!(answer.unwrap(), None),
            }
        }
        let (outcome, rights) = sides.far.await.unwrap().unwrap();
        let target::Outcome::NotTaken { reason, .. } = outcome else { panic!() };
        assert_eq!(reason, Reason::Operator);
        assert_eq!(rights.ledger.now(), Some(&Record::Tombstone(switch())));
    });
}

#[test]
fn nobody_is_asked_while_the_guest_runs() {
    block_on(async {
        let setup = Setup { times: 10, ..Setup::default() };
        let (told, mut heard) = mpsc::channel::<Answer>(1);
        let near = at(Phase::Copying, move |hands: &Hands| {
            let (told, near) = (told.clone(), hands.near.clone());
            tokio::spawn(async move {
                let _ = told.send(claim(&near, RUN, 0).await).await;
            });
        });
        let far: React = Box::new(|_: &Event, _: &Hands| {});
        let sides = Sides::start_with(&setup, Arc::default(), near, far);
        let (_, near, _) = sides.ends().await;
        let no = heard.recv().await.unwrap();
        assert!(matches!(no, Err(NotClaimed::NotNow)), "{no:?}");
        assert!(matches!(near.0, source::Outcome::Moved { .. }), "{}", text_of(&near.0));
    });
}
