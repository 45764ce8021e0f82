//! Words of a hand-over for guest processes, and answers for those that are gone.
//!
//! A word goes to the process if there is one. If there is none, the engine's
//! [`Keeper`](migrate_engine::handover::daemon::Keeper) settles, under the journal's lock and by
//! the rules for the dead, what the process left open, and answers from what is recorded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use migrate_engine::handover::daemon::{Acting, Keeper};
use migrate_engine::handover::effect::{Effect, Input, Timer};
use migrate_engine::handover::message::{Body, Message};
use migrate_engine::handover::term::{Beside, BootId, HostId, Millis, QuestionId};
use migrate_engine::session::relay;
use uuid::Uuid;

use super::peer::{Answer, Request};
use super::{Daemon, unexpected};
use crate::api::client::GuestClient;
use crate::api::moving::Words;
use crate::api::{ErrorCode, Failure};
use crate::config::hex;
use crate::guest::journal::{self, Journal, JournalError, Whose};
use crate::guest::moving::rights;
use crate::host::registry;

/// A switch that is not settled is tried for this long, and again when somebody asks.
const PATIENCE: Duration = Duration::from_mins(2);

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

impl Daemon {
    /// The process of a guest, if it has one here.
    async fn process_of(&self, guest: Uuid) -> Option<GuestClient> {
        for name in registry::names(&self.dirs).ok()? {
            let client = GuestClient::new(&name, self.dirs.guest(&name));
            let info = client.info_async(Duration::from_secs(2)).await;
            if info.is_ok_and(|i| i.uuid == guest) {
                return Some(client);
            }
        }
        None
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
        let Some(mut acting) = self.act_for(guest)? else { return Ok(None) };
        let said = acting.take(Input::Heard(message), self);
        Ok(said.iter().find_map(words_of))
    }

    /// Carries a word to another host, and what that says to it back to the process.
    pub(super) async fn carry(self: &Arc<Self>, host: &str, guest: Uuid, request: Request) {
        match self.ask(host, request).await {
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

    /// The host from which a guest comes, as its journal says.
    pub(super) fn source_of(&self, guest: Uuid) -> Option<String> {
        let record = journal::read(&self.dirs.journal(&guest)).ok()??;
        let switch = record.ledger.now()?.switch()?;
        self.name_of(Uuid::from_u128(switch.from.0))
    }

    /// Takes the place of a guest's process, if it is dead and has a journal.
    fn act_for(self: &Arc<Self>, guest: Uuid) -> Result<Option<Place>, Failure> {
        let dir = self.dirs.journal(&guest);
        let Some(record) = journal::read(&dir)? else { return Ok(None) };
        let journal = match Journal::take(&dir) {
            Ok(journal) => journal,
            // It lives.
            Err(JournalError::Held { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|e| unexpected("the boot id", &e))?;
        let boot = Uuid::parse_str(text.trim()).map_err(|e| unexpected("the boot id", &e))?;
        let boot = BootId(boot.as_u128());
        let marks = rights::marks(&self.dirs.marks(&guest), boot)
            .map_err(|e| unexpected("the marks of the hand-over", &e))?;
        let whose = Whose {
            uuid: guest,
            name: record.name.clone(),
            host_name: record.host.clone(),
            host: HostId(self.id.as_u128()),
            boot,
        };
        let question = QuestionId(Uuid::new_v4().as_u128());
        let began = Instant::now();
        let (keeper, first) = Keeper::adopt(record.ledger, boot, marks, question, false, Millis(0));
        Ok(Some(Place { journal, whose, began, keeper: Some(keeper), first }))
    }

    /// Settles what the process of a guest left open, if it is dead; asks the other side as often
    /// as it takes, within bounds.
    pub(super) async fn settle(self: &Arc<Self>, guest: Uuid) {
        let mut place = match self.act_for(guest) {
            Ok(Some(place)) => place,
            Ok(None) => return,
            Err(failure) => return tracing::warn!(%failure, "a hand-over is not settled"),
        };
        let mut queue: VecDeque<Input> = VecDeque::new();
        let first = std::mem::take(&mut place.first);
        let mut said = place.perform(first, self);
        while place.began.elapsed() < PATIENCE {
            for message in std::mem::take(&mut said) {
                if let Some(heard) = self.tell(guest, &message).await {
                    queue.push_back(Input::Heard(heard));
                }
            }
            if let Some(input) = queue.pop_front() {
                said.extend(place.take(input, self));
                continue;
            }
            if place.is_settled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            said.extend(place.take(Input::Timer(Timer::Again), self));
        }
        tracing::warn!(%guest, "a hand-over is not settled: the other host does not answer");
    }

    /// Says a word to the other side, and hears what it says to it.
    async fn tell(self: &Arc<Self>, guest: Uuid, message: &Message) -> Option<Message> {
        let own = HostId(self.id.as_u128());
        let switch = message.switch;
        let other = if switch.from == own { switch.to } else { switch.from };
        let host = self.name_of(Uuid::from_u128(other.0))?;
        let words = words_of(message)?;
        let told = self.ask(&host, Request::Words { guest, words }).await.ok()?;
        match told.answer {
            Answer::Words(Some(words)) => message_of(&words),
            _ => None,
        }
    }
}

/// The place of a dead process: its journal, locked, and the keeper who decides.
struct Place {
    journal: Journal,
    whose: Whose,
    began: Instant,
    keeper: Option<Keeper>,
    /// What it decided at once, not done yet.
    first: Vec<Effect>,
}

impl Place {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn is_settled(&self) -> bool {
        self.keeper
            .as_ref()
            .is_none_or(|k| matches!(k.acting(), Acting::Settled | Acting::Superseded(_)))
    }

    /// Takes an input; answers what is to be said.
    fn take(&mut self, input: Input, daemon: &Daemon) -> Vec<Message> {
        let first = std::mem::take(&mut self.first);
        let mut said = self.perform(first, daemon);
        said.extend(self.step(input, daemon));
        said
    }

    fn step(&mut self, input: Input, daemon: &Daemon) -> Vec<Message> {
        let now = self.now();
        let Some(keeper) = self.keeper.take() else { return Vec::new() };
        match keeper.step(input, now) {
            Ok((keeper, effects)) => {
                self.keeper = Some(keeper);
                self.perform(effects, daemon)
            }
            Err(error) => {
                tracing::error!(GUEST = self.whose.name, %error, "the journal does not allow what was decided");
                Vec::new()
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, daemon: &Daemon) -> Vec<Message> {
        let mut said = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send(message) => said.push(message),
                Effect::Record(record) => {
                    let done = self.journal.step(&self.whose, record, None, Timestamp::now());
                    let answer = match done {
                        Ok(()) => {
                            tracing::info!(
                                GUEST = self.whose.name,
                                ?record,
                                "a hand-over is settled"
                            );
                            Input::Recorded(record)
                        }
                        Err(error) => {
                            tracing::error!(GUEST = self.whose.name, %error, "the journal cannot be written");
                            // Tried again when somebody asks again.
                            return said;
                        }
                    };
                    said.extend(self.step(answer, daemon));
                }
                // A daemon has no disks open. The next start takes the locks and reads what stands
                // beside them, and is refused if another host ran the guest since.
                Effect::TakeOwner => {
                    said.extend(self.step(Input::OwnerTaken(Beside::NOTHING), daemon));
                }
                // Timers are this module's own; locks go with the open files; nothing is run here.
                _ => {}
            }
        }
        said
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
