//! Words of a hand-over for guest processes, and answers for those that are gone.
//!
//! A word goes to the process if there is one. If there is none, the engine's
//! [`Keeper`](migrate_engine::handover::daemon::Keeper) settles, under the journal's lock and by
//! the rules for the dead, what the process left open, and answers from what is recorded. There is
//! one keeper for a guest at a time, whoever asks.

pub mod place;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use migrate_engine::handover::effect::{Input, Timer};
use migrate_engine::handover::journal::Record as Step;
use migrate_engine::handover::message::{Body, Message, from_ledger};
use migrate_engine::handover::term::{BootId, HostId};
use migrate_engine::port::Arbiter;
use migrate_engine::session::relay;
use tokio::sync::Notify;
use uuid::Uuid;

use self::place::Place;
use super::peer::{Answer, Request};
use super::{Daemon, moves, unexpected};
use crate::api::client::GuestClient;
use crate::api::moving::{PeerGone, Words};
use crate::api::{ErrorCode, Failure};
use crate::config::{GuestDefinition, hex};
use crate::guest::journal::{self, Journal, JournalError, Whose};
use crate::guest::moving::rights;
use crate::host::{persistent, registry};

/// A switch that is not settled is tried for this long without a pause.
pub const PATIENCE: Duration = Duration::from_mins(2);
/// Time between two looks at a switch that is not settled.
const AGAIN: Duration = Duration::from_millis(300);
/// Time between two looks for switches that are not settled, and have nobody who settles them.
pub const LATER: Duration = Duration::from_secs(2);
/// How long each try takes at most to say a word that is said until it is answered, in turn. Short
/// ones, so that a link or a daemon that is back is noticed soon; and one for hosts that are far.
const TRIES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(4),
];
/// How often a host that does not answer is told of a death. It finds out by its link at last.
const TELLINGS: usize = 8;

/// A keeper's place, shared by those who act for the same guest.
pub type Acting = Arc<tokio::sync::Mutex<Place>>;

/// The places that are taken.
#[derive(Debug, Default)]
pub struct Places {
    taken: Mutex<BTreeMap<Uuid, Weak<tokio::sync::Mutex<Place>>>>,
    /// A host was heard of: what is not settled may be now.
    heard: Notify,
    /// Guests that an operator speaks for, and since when.
    claimed: Mutex<BTreeMap<Uuid, Instant>>,
}

impl Places {
    /// Another host was heard of.
    pub fn heard(&self) {
        self.heard.notify_waiters();
    }

    /// Nobody acts for this guest for a while: an operator speaks for it.
    pub fn make_way(&self, guest: Uuid) {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.retain(|_, since| since.elapsed() < super::doubt::WAY);
        claimed.insert(guest, Instant::now());
    }

    /// The operator has spoken.
    pub fn way_is_free(&self, guest: Uuid) {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest);
    }

    fn is_claimed(&self, guest: Uuid) -> bool {
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        claimed.get(&guest).is_some_and(|since| since.elapsed() < super::doubt::WAY)
    }

    fn is_taken(&self, guest: Uuid) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(&guest).is_some_and(|place| place.strong_count() > 0)
    }
}

/// Who speaks for a guest on this host.
pub enum Speaker {
    /// Its process: it holds the journal.
    Process,
    /// Its process is dead, or there never was one: we do.
    Us(Acting),
}

/// How long the `n`th try in a row may take.
const fn try_limit(n: usize) -> Duration {
    TRIES[n % TRIES.len()]
}

fn message_of(words: &Words) -> Option<Message> {
    hex::decode(&words.frame).and_then(|frame| relay::decode(&frame))
}

fn words_of(message: &Message) -> Option<Words> {
    relay::encode(message).map(|frame| Words { frame: hex::encode(&frame) })
}

/// Whether the host `from` may say this to the host `here`: only the two sides of a switch speak
/// of it, each for itself.
fn may_say(message: &Message, from: Uuid, here: Uuid) -> bool {
    let Message { switch, body } = message;
    let (from, here) = (HostId(from.as_u128()), HostId(here.as_u128()));
    match body {
        Body::ToTarget(_) => (switch.from, switch.to) == (from, here),
        Body::ToSource(_) => (switch.to, switch.from) == (from, here),
    }
}

/// This boot of the host.
pub(super) fn boot() -> Result<BootId, Failure> {
    journal::this_boot().map_err(|e| unexpected("the boot id", &e))
}

impl Daemon {
    /// The process of a guest, if it has one here.
    pub(super) async fn process_of(&self, guest: Uuid) -> Option<GuestClient> {
        for name in registry::names(&self.dirs).ok()? {
            let client = GuestClient::new(&name, self.dirs.guest(&name));
            let info = client.info_async(Duration::from_secs(2)).await;
            if info.is_ok_and(|i| i.uuid == guest) {
                return Some(client);
            }
        }
        None
    }

    /// Who speaks for a guest here. Whoever gets [`Speaker::Us`] has the proof that its process is
    /// dead, and keeps it from being started as long as it holds that.
    ///
    /// # Errors
    /// The journal or the marks cannot be read.
    pub(super) fn speaker(&self, guest: Uuid) -> Result<Speaker, Failure> {
        let mut places = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| place.strong_count() > 0);
        if self.places.is_claimed(guest) {
            return Ok(Speaker::Process);
        }
        if let Some(acting) = places.get(&guest).and_then(Weak::upgrade) {
            return Ok(Speaker::Us(acting));
        }
        let journal = match Journal::take(&self.dirs.journal(&guest)) {
            Ok(journal) => journal,
            Err(JournalError::Held { .. }) => return Ok(Speaker::Process),
            Err(error) => return Err(error.into()),
        };
        let boot = boot()?;
        let marks = rights::marks(&self.dirs.marks(&guest), boot)
            .map_err(|e| unexpected("the marks of the hand-over", &e))?;
        let last = journal.last();
        let whose = Whose {
            uuid: guest,
            name: last.map_or_else(|| guest.to_string(), |r| r.name.clone()),
            host_name: last.map_or_else(|| self.host_ref().name, |r| r.host.clone()),
            host: HostId(self.id.as_u128()),
            boot,
        };
        let definition = self.definition_of(guest, &whose.name);
        let arbiter = self.arbiter.clone().map(|a| a as Arc<dyn Arbiter>);
        let place = Place::take(journal, whose, marks, definition, arbiter);
        let acting = Arc::new(tokio::sync::Mutex::new(place));
        places.insert(guest, Arc::downgrade(&acting));
        Ok(Speaker::Us(acting))
    }

    /// What a guest is made of, if anything here still knows.
    pub(super) fn definition_of(&self, guest: Uuid, name: &str) -> Option<GuestDefinition> {
        let left = || {
            let info = super::inbound::facts::info(&self.dirs.guest(name))?;
            Some(info.definition)
        };
        let kept = || persistent::definition(&self.dirs, name).ok();
        let own = |definition: &GuestDefinition| definition.uuid == guest;
        moves::record::definition_of(&self.dirs, guest)
            .or_else(|| left().filter(own))
            .or_else(|| kept().filter(own))
    }

    /// Whether somebody here acts for a dead process of this guest, and so holds its journal.
    pub(super) fn acts_for(&self, guest: Uuid) -> bool {
        self.places.is_taken(guest)
    }

    /// Delivers a word that the host `from` says; answers what there is to say to it at once.
    pub(super) async fn words_for(
        self: &Arc<Self>,
        from: Uuid,
        guest: Uuid,
        words: Words,
    ) -> Result<Option<Words>, Failure> {
        let Some(message) = message_of(&words) else {
            return Err(unexpected("a word of a hand-over", &"it cannot be read"));
        };
        if !may_say(&message, from, self.id) {
            let what = "a word of a hand-over in which the host that says it has no part";
            let remedy = "see the logs of both daemons";
            return Err(Failure::new(ErrorCode::HostRefused, what, remedy));
        }
        if let Some(client) = self.process_of(guest).await
            && client.heard(&words).await.is_ok()
        {
            return Ok(None);
        }
        let acting = match self.speaker(guest)? {
            Speaker::Us(acting) => acting,
            // The switch is over for it; what is on record stays true.
            Speaker::Process => return Ok(self.on_record(guest, &message)),
        };
        let (said, settled) = {
            let mut place = acting.lock().await;
            (place.hear(Input::Heard(message)).await, place.is_settled())
        };
        if !settled {
            let daemon = Arc::clone(self);
            tokio::spawn(async move { daemon.settle(guest, acting, PATIENCE).await });
        }
        // The answer is what was said last: before it may stand what was to be said anyway.
        Ok(said.iter().rev().find_map(words_of))
    }

    /// The answer to a word about a switch that is settled here.
    fn on_record(&self, guest: Uuid, message: &Message) -> Option<Words> {
        let record = journal::read_durable(&self.dirs.journal(&guest)).ok()??;
        record.ledger.ended(message.switch.id)?;
        from_ledger(&record.ledger, message).as_ref().and_then(words_of)
    }

    /// Carries a word to another host, and what that says to it back to the process. It is the
    /// `tries`th try in a row to say something to that host.
    pub(super) async fn carry(
        self: &Arc<Self>,
        tries: usize,
        host: &str,
        guest: Uuid,
        words: Words,
    ) {
        let limit = try_limit(tries);
        match self.ask_within(limit, host, Request::Words { guest, words }).await {
            Ok(told) => {
                if let Answer::Words(Some(words)) = told.answer
                    && let Some(client) = self.process_of(guest).await
                {
                    let _ = client.heard(&words).await;
                }
            }
            Err(failure) => {
                tracing::warn!(host, %failure, "a word of a hand-over was not delivered");
            }
        }
    }

    /// Settles what the dead process of a guest left open; asks the other side as often as it
    /// takes, for this long. Says whether it is settled.
    pub(super) async fn settle(
        self: &Arc<Self>,
        guest: Uuid,
        acting: Acting,
        patience: Duration,
    ) -> bool {
        let began = Instant::now();
        let mut said = acting.lock().await.go_on().await;
        let mut tries = 0;
        loop {
            for message in std::mem::take(&mut said) {
                let limit = try_limit(tries);
                tries += 1;
                // Not under the place's lock: the other side may be asking us.
                if let Some(heard) = self.tell(limit, guest, &message).await {
                    said.extend(acting.lock().await.hear(Input::Heard(heard)).await);
                }
            }
            if !said.is_empty() {
                continue;
            }
            if acting.lock().await.is_settled() {
                return true;
            }
            if self.places.is_claimed(guest) {
                return false;
            }
            if began.elapsed() >= patience {
                tracing::info!(%guest, "a hand-over is not settled yet");
                return false;
            }
            // Whichever is first; that it was the time is no news.
            let _ = tokio::time::timeout(AGAIN, self.places.heard.notified()).await;
            said = acting.lock().await.hear(Input::Timer(Timer::Again)).await;
        }
    }

    /// Says a word to the other side, and hears what it says to it.
    async fn tell(
        self: &Arc<Self>,
        limit: Duration,
        guest: Uuid,
        message: &Message,
    ) -> Option<Message> {
        let own = HostId(self.id.as_u128());
        let switch = message.switch;
        let other = if switch.from == own { switch.to } else { switch.from };
        let host = self.name_of(Uuid::from_u128(other.0))?;
        let words = words_of(message)?;
        let told = self.ask_within(limit, &host, Request::Words { guest, words }).await.ok()?;
        match told.answer {
            Answer::Words(Some(words)) => message_of(&words),
            _ => None,
        }
    }

    /// Settles what guests left open that have neither a process nor a record of their move here:
    /// after a reboot, for example. Each for as long as it takes: its journal stays locked.
    pub(super) async fn settle_all(self: Arc<Self>) {
        loop {
            for guest in self.open_journals() {
                let Ok(Speaker::Us(acting)) = self.speaker(guest) else { continue };
                let daemon = Arc::clone(&self);
                tokio::spawn(async move {
                    if daemon.settle(guest, acting, Duration::MAX).await {
                        daemon.settled(guest);
                    }
                });
            }
            tokio::time::sleep(LATER).await;
        }
    }

    /// Guests whose journal has an open switch, and that nobody follows.
    fn open_journals(&self) -> Vec<Uuid> {
        let Ok(entries) = std::fs::read_dir(self.dirs.state.join("journal")) else {
            return Vec::new();
        };
        let guests = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let open = |guest: &Uuid| {
            let record = journal::read(&self.dirs.journal(guest)).ok().flatten();
            let now = record.as_ref().and_then(|r| r.ledger.now());
            matches!(now, Some(Step::Offered(_) | Step::Ceded(_) | Step::Receiving(_)))
        };
        let free = |guest: &Uuid| !self.moves.follows(*guest) && !self.places.is_taken(*guest);
        guests.filter(|guest| free(guest) && open(guest)).collect()
    }

    /// Tells the host on the other side of a move that the guest's process here is dead.
    pub(super) async fn tell_of_death(&self, host: &str, guest: Uuid, move_id: Uuid, why: &str) {
        for again in 0..TELLINGS {
            let gone = PeerGone { why: why.to_owned() };
            let request = Request::ProcessGone { guest, move_id, gone };
            let told = self.ask_within(try_limit(again), host, request).await;
            let Err(failure) = told else { return };
            tracing::warn!(MOVE = %move_id, host, %failure, again, "it was not told of the death of a process");
            if failure.0.code != ErrorCode::Unreachable {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The host `from`, on the other side of a move, says that its process is dead.
    pub(super) async fn heard_of_death(
        &self,
        from: &str,
        (guest, move_id): (Uuid, Uuid),
        gone: &PeerGone,
    ) -> Result<(), Failure> {
        let Some(name) = self.moves.guest_with(move_id, guest, from) else {
            let what = "it is not on the other side of such a move";
            return Err(Failure::new(ErrorCode::NotFound, what, "see the logs of both daemons"));
        };
        let why = gone.why[..gone.why.floor_char_boundary(PeerGone::WHY_MAX)].to_owned();
        tracing::warn!(MOVE = %move_id, GUEST = name, from, why, "the other process is dead");
        let client = GuestClient::new(&name, self.dirs.guest(&name));
        client.peer_gone(&PeerGone { why }).await.map_err(|e| client.failure(e))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrate_engine::handover::message::{SourceSays, ToSource, ToTarget};
    use migrate_engine::handover::term::{Switch, SwitchId, Term};

    #[test]
    fn only_the_other_side_of_a_switch_has_a_say() {
        let (source, target, third) = (Uuid::from_u128(4), Uuid::from_u128(5), Uuid::from_u128(6));
        let switch = Switch {
            id: SwitchId(1),
            before: Term::new(2),
            term: Term::new(3),
            from: HostId(4),
            to: HostId(5),
        };
        let to_target = Message::to_target(switch, ToTarget::Says(SourceSays::Withdrawn));
        let to_source = Message::to_source(switch, ToSource::Ask);
        assert!(may_say(&to_target, source, target));
        assert!(may_say(&to_source, target, source));
        for (message, from, here) in [
            (&to_target, third, target),
            (&to_source, third, source),
            // Of a switch between two others, and to the wrong side.
            (&to_target, source, third),
            (&to_target, target, source),
            (&to_source, source, target),
        ] {
            assert!(!may_say(message, from, here), "{message:?} {from} {here}");
        }
    }
}
