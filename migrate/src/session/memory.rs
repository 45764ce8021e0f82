//! An arbiter in the memory of one process, for tests and simulations: it answers at once, late,
//! never, or not although it did what it was asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::handover::term::Stamp;
use crate::port::{Answer, Arbiter, Stands, Unanswered};
use crate::wire::GuestId;

/// What happens to one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: it is answered.
    None,
    /// It is refused: not done, and said so in no time.
    Silent,
    /// It is done, and its answer is lost.
    Lost,
    /// It is neither done nor answered.
    Hangs,
    /// It is done after this time, and answered.
    Late(Duration),
    /// It is done at once, and answered after this time.
    AnsweredLate(Duration),
}

#[derive(Debug, Default)]
struct Inside {
    stands: BTreeMap<[u8; 16], Stamp>,
    faults: VecDeque<Fault>,
    afterwards: Option<Fault>,
    /// Every right that ever stood there, in order.
    past: Vec<Stamp>,
}

/// The arbiter.
#[derive(Debug, Default)]
pub struct MemoryArbiter(Mutex<Inside>);

impl MemoryArbiter {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to the next questions, one after the other.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// What happens to all questions that nothing was planned for. `None`: they are answered.
    pub fn from_now(&self, fault: Option<Fault>) {
        self.lock().afterwards = fault;
    }

    /// What stands there.
    pub fn stands(&self, guest: GuestId) -> Option<Stamp> {
        self.lock().stands.get(&guest.0).copied()
    }

    /// Puts a right there, as somebody else would.
    pub fn put(&self, guest: GuestId, stamp: Stamp) {
        let mut inside = self.lock();
        inside.stands.insert(guest.0, stamp);
        inside.past.push(stamp);
    }

    /// Forgets a guest, as a store that lost its data would.
    pub fn forget(&self, guest: GuestId) {
        self.lock().stands.remove(&guest.0);
    }

    /// Every right that ever stood there, of all guests, in order.
    pub fn past(&self) -> Vec<Stamp> {
        self.lock().past.clone()
    }

    fn next(&self) -> Fault {
        let mut inside = self.lock();
        let planned = inside.faults.pop_front();
        planned.or(inside.afterwards).unwrap_or(Fault::None)
    }

    async fn ask(&self, act: impl FnOnce(&mut Inside) -> Option<Stamp> + Send) -> Stands {
        let unanswered = |why: &str| Err(Unanswered(why.to_owned()));
        match self.next() {
            Fault::None => Ok(act(&mut self.lock())),
            Fault::Silent => unanswered("planned"),
            Fault::Lost => {
                act(&mut self.lock());
                unanswered("its answer was lost")
            }
            Fault::Hangs => std::future::pending().await,
            Fault::Late(time) => {
                tokio::time::sleep(time).await;
                Ok(act(&mut self.lock()))
            }
            Fault::AnsweredLate(time) => {
                let stands = act(&mut self.lock());
                tokio::time::sleep(time).await;
                Ok(stands)
            }
        }
    }
}

impl Arbiter for MemoryArbiter {
    fn read(&self, guest: GuestId) -> Answer<'_> {
        Box::pin(self.ask(move |inside| inside.stands.get(&guest.0).copied()))
    }

    fn swap(&self, guest: GuestId, expect: Option<Stamp>, want: Stamp) -> Answer<'_> {
        Box::pin(self.ask(move |inside| {
            let found = inside.stands.get(&guest.0).copied();
            if found == expect {
                inside.stands.insert(guest.0, want);
                inside.past.push(want);
                return Some(want);
            }
            found
        }))
    }
}
