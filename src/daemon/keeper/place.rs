//! The place of a dead guest process: its journal, locked, and the engine's
//! [`Keeper`](migrate_engine::handover::daemon::Keeper), who decides. What the keeper asks for is
//! done here: records are written, OWNER of the disks is taken and what stands beside them read.
//! It runs nothing and says nothing by itself.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use migrate_engine::handover::daemon::{Acting, Keeper};
use migrate_engine::handover::effect::{Effect, Input};
use migrate_engine::handover::journal::{Ledger, Mark, Record};
use migrate_engine::handover::message::{Message, SourceSays, ToTarget};
use migrate_engine::handover::resolve;
use migrate_engine::handover::term::{Beside, BootId, Millis, QuestionId, Stamp, Term};
use migrate_engine::port::Arbiter;
use migrate_engine::wire::GuestId;
use uuid::Uuid;
use vmm::devices::virtio::block::{DiskOpenError, open_disk};

use crate::api::Failure;
use crate::arbiter::within;
use crate::config::{Cache, DiskDefinition, GuestDefinition};
use crate::failpoint;
use crate::guest::disks::{DiskSet, DiskSetError, Part};
use crate::guest::journal::{Journal, JournalError, Whose, record};
use crate::guest::load;

/// How long the arbiter may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The place of a dead process. Its journal is locked as long as this lives.
pub struct Place {
    journal: Journal,
    whose: Whose,
    /// What the guest is made of, if that is known.
    definition: Option<GuestDefinition>,
    /// Open while OWNER of them is held.
    disks: Option<Arc<DiskSet>>,
    arbiter: Option<Arc<dyn Arbiter>>,
    began: Instant,
    keeper: Option<Keeper>,
    /// What is to be done before anything else.
    effects: VecDeque<Effect>,
    /// What stood in the way last: each is told once.
    trouble: String,
}

impl Place {
    /// Takes it. The lock that `journal` holds proves that the process is dead; `marks` are those
    /// that were found since.
    pub fn take(
        journal: Journal,
        whose: Whose,
        marks: Vec<Mark>,
        definition: Option<GuestDefinition>,
        arbiter: Option<Arc<dyn Arbiter>>,
    ) -> Self {
        let ledger = journal.last().map(|r| r.ledger.clone());
        let ledger = ledger.unwrap_or_else(|| Ledger::new(whose.host, whose.boot));
        let question = QuestionId(Uuid::new_v4().as_u128());
        let boot: BootId = whose.boot;
        let (keeper, first) =
            Keeper::adopt(ledger, boot, marks, question, arbiter.is_some(), Millis(0));
        Self {
            journal,
            whose,
            definition,
            disks: None,
            arbiter,
            began: Instant::now(),
            keeper: Some(keeper),
            effects: first.into(),
            trouble: String::new(),
        }
    }

    /// Nothing is left to decide, or another host has a better right.
    pub fn is_settled(&self) -> bool {
        let settled = |k: &Keeper| matches!(k.acting(), Acting::Settled | Acting::Superseded(_));
        self.effects.is_empty() && self.keeper.as_ref().is_none_or(settled)
    }

    /// Does what is to be done; answers what is to be said to the other side.
    pub async fn go_on(&mut self) -> Vec<Message> {
        let mut said = Vec::new();
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                Effect::Send(message) => said.push(message),
                // Its mark is the proof: it was set before the process died, or by the record.
                Effect::Commit(switch) => {
                    said.push(Message::to_target(switch, ToTarget::Says(SourceSays::Ceded)));
                }
                Effect::Record(record) => {
                    match self.record(record) {
                        Ok(()) => {
                            tracing::info!(
                                GUEST = self.whose.name,
                                ?record,
                                "a hand-over is settled"
                            );
                            self.step(Input::Recorded(record));
                        }
                        Err(error) => {
                            self.complain(format!("the journal cannot be written: {error}"));
                            // It stays to be done, when somebody asks or time has passed.
                            self.effects.push_front(effect);
                            return said;
                        }
                    }
                }
                Effect::TakeOwner => {
                    let input = self.take_owner().await;
                    self.step(input);
                }
                Effect::CompareAndSet { expect, want } => self.decide(Some((expect, want))).await,
                Effect::ReadArbiter => self.decide(None).await,
                Effect::StampOffer(term) => {
                    let input = self.reserve(term).await;
                    self.step(input);
                }
                Effect::DropOwner => self.disks = None,
                Effect::Report(notice) => {
                    tracing::info!(GUEST = self.whose.name, ?notice, "a hand-over");
                }
                // Timers are the caller's; NEXT went with the process; nothing is run here.
                _ => {}
            }
        }
        said
    }

    fn record(&mut self, record: Record) -> Result<(), JournalError> {
        let place = |when| format!("keeper.record.{}.{when}", failpoint::kind(&record));
        let failed = |source| JournalError::Io { path: PathBuf::new(), what: "written", source };
        failpoint::at(|| place("before")).written().map_err(failed)?;
        self.journal.step(&self.whose, record, None, failpoint::now())?;
        failpoint::at(|| place("after")).written().map_err(failed)
    }

    /// Takes an input, and does what follows from it.
    pub async fn hear(&mut self, input: Input) -> Vec<Message> {
        let mut said = self.go_on().await;
        self.step(input);
        said.extend(self.go_on().await);
        said
    }

    /// Lets the claim go that the dead process left, by an operator's word.
    ///
    /// # Errors
    /// There is none, or the journal cannot be written.
    pub fn give_up(&mut self, note: &str, peer: Option<&str>) -> Result<(), Failure> {
        let ledger = self.ledger();
        let facts = resolve::Facts {
            ledger: &ledger,
            beside: None,
            memory: resolve::Memory::Gone,
            elsewhere: Term::NONE,
            runs_at: None,
            owned_by: None,
            silent: None,
        };
        let plan = resolve::resolve(resolve::Wish::GiveUp, &facts);
        let plan = plan.map_err(|no| load::refused_claim(&no, peer))?;
        let resolve::Plan::GiveUp(step) = plan else { return Ok(()) };
        self.journal.step(&self.whose, step, None, Timestamp::now())?;
        if let Some(record) = self.journal.last().cloned() {
            self.journal.record(record::Record { note: Some(note.to_owned()), ..record })?;
        }
        (self.keeper, self.disks) = (None, None);
        self.effects.clear();
        Ok(())
    }

    fn ledger(&self) -> Ledger {
        let ledger = self.journal.last().map(|r| r.ledger.clone());
        ledger.unwrap_or_else(|| Ledger::new(self.whose.host, self.whose.boot))
    }

    fn step(&mut self, input: Input) {
        let now = Millis(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
        let Some(keeper) = self.keeper.take() else { return };
        match keeper.step(input, now) {
            Ok((keeper, effects)) => {
                self.keeper = Some(keeper);
                self.effects.extend(effects);
            }
            Err(error) => {
                tracing::error!(GUEST = self.whose.name, %error, "the journal does not allow what was decided");
            }
        }
    }

    /// Asks the arbiter. Silence is no answer: the keeper asks again when time has passed.
    async fn decide(&mut self, swap: Option<(Stamp, Stamp)>) {
        let Some(arbiter) = self.arbiter.clone() else { return };
        let guest = GuestId(self.whose.uuid.into_bytes());
        let answer = match swap {
            Some((expect, want)) => arbiter.swap(guest, Some(expect), want),
            None => arbiter.read(guest),
        };
        match within(PATIENCE, answer).await {
            Ok(Some(stamp)) => self.step(Input::Arbiter(stamp)),
            Ok(None) => tracing::error!(
                GUEST = self.whose.name,
                "a hand-over is not settled: the arbiter knows nothing of the guest (any more)"
            ),
            Err(why) => {
                tracing::warn!(GUEST = self.whose.name, %why, "a hand-over is not settled");
            }
        }
    }

    /// OWNER of every disk keeps everybody else from them; then what stands beside them counts.
    async fn take_owner(&mut self) -> Input {
        let Some(definition) = self.definition.clone() else {
            self.complain(
                "it is not known here which disks the guest has, so whether another host ran it \
                 since cannot be seen"
                    .into(),
            );
            return Input::OwnerBusy;
        };
        let held = self.disks.clone();
        let look = move || -> Result<(Arc<DiskSet>, Beside), DiskSetError> {
            let set = match held {
                Some(set) => set,
                None => Arc::new(shared(&definition)?),
            };
            set.take_owner()?;
            let beside = set.read_beside()?;
            Ok((set, beside))
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok((set, beside))) => {
                self.disks = Some(set);
                Input::OwnerTaken(beside)
            }
            Ok(Err(error)) => {
                self.complain(format!("it waits for the guest's disks: {error}"));
                Input::OwnerBusy
            }
            Err(error) => {
                self.complain(format!("the guest's disks: {error}"));
                Input::OwnerBusy
            }
        }
    }

    /// Nobody else may use this term any more. OWNER is held.
    async fn reserve(&mut self, term: Term) -> Input {
        let Some(set) = self.disks.clone() else { return Input::StampFailed };
        match tokio::task::spawn_blocking(move || set.stamp_offer(term)).await {
            Ok(Ok(())) => Input::OfferStamped,
            Ok(Err(error)) => {
                self.complain(format!("it waits for the guest's disks: {error}"));
                Input::StampFailed
            }
            Err(error) => {
                self.complain(format!("the guest's disks: {error}"));
                Input::StampFailed
            }
        }
    }

    fn complain(&mut self, trouble: String) {
        if self.trouble != trouble {
            tracing::warn!(GUEST = self.whose.name, trouble, "a hand-over is not settled");
            self.trouble = trouble;
        }
    }
}

/// The shared disks of a guest that has no process here, opened to be locked and to read what
/// stands beside them. Those of this host alone tell nothing of others.
fn shared(definition: &GuestDefinition) -> Result<DiskSet, DiskSetError> {
    let disks = definition.disks.iter().filter(|d| d.shared && !d.read_only);
    open(definition.uuid, disks)
}

fn open<'a>(
    guest: Uuid,
    disks: impl Iterator<Item = &'a DiskDefinition>,
) -> Result<DiskSet, DiskSetError> {
    let one = |disk: &'a DiskDefinition| {
        let direct = disk.cache == Cache::None;
        open_disk(&disk.path, disk.read_only, direct).map(|file| (disk, file))
    };
    let opened = disks.map(one).collect::<Result<Vec<_>, DiskOpenError>>()?;
    let parts: Vec<Part<'_>> =
        opened.iter().map(|(definition, file)| Part { definition, file }).collect();
    DiskSet::receive(guest, &parts)
}

/// What keeps a guest with these disks on this host, in the words of its process, if anything is
/// seen. It looks at the disks, and may block.
pub fn obstacle(definition: &GuestDefinition) -> Option<Failure> {
    match open(definition.uuid, definition.disks.iter()) {
        Ok(set) => set.check_movable().err(),
        // Its process has them open, and knows better.
        Err(error) => {
            tracing::debug!(GUEST = definition.name, %error, "the guest's disks cannot be looked at");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrate_engine::handover::effect::Timer;
    use migrate_engine::handover::message::{Body, TargetSays, ToSource};
    use migrate_engine::handover::term::{HostId, Stamp, Switch, SwitchId};
    use migrate_engine::session::memory::{Fault, MemoryArbiter};

    const HERE: HostId = HostId(1);
    const THERE: HostId = HostId(2);

    fn switch() -> Switch {
        let (before, term) = (Term::new(1), Term::new(2));
        Switch { id: SwitchId(5), before, term, from: HERE, to: THERE }
    }

    /// The place of a source that died with this as its last record.
    fn place(dir: &std::path::Path, last: &[Record], definition: Option<GuestDefinition>) -> Place {
        let whose = Whose {
            uuid: Uuid::from_u128(7),
            name: "one".into(),
            host_name: "h1".into(),
            host: HERE,
            boot: BootId(3),
        };
        let mut journal = Journal::take(dir).unwrap();
        for record in last {
            journal.step(&whose, *record, None, Timestamp::UNIX_EPOCH).unwrap();
        }
        Place::take(journal, whose, Vec::new(), definition, None)
    }

    impl Place {
        /// The same, with an arbiter.
        fn under(self, arbiter: Arc<dyn Arbiter>) -> Self {
            let Self { journal, whose, definition, .. } = self;
            Self::take(journal, whose, Vec::new(), definition, Some(arbiter))
        }
    }

    fn heard(what: ToSource) -> Input {
        Input::Heard(Message::to_source(switch(), what))
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn a_target_that_asks_hears_that_the_dead_source_had_given_it_the_guest() {
        let root = tempfile::tempdir().unwrap();
        let owner = Record::Owner { term: Term::new(1) };
        let last = [owner, Record::Offered(switch()), Record::Ceded(switch())];
        let mut place = place(&root.path().join("j"), &last, None);
        block_on(async {
            let said = place.hear(heard(ToSource::Ask)).await;
            let ceded = Body::ToTarget(ToTarget::Says(SourceSays::Ceded));
            assert_eq!(said.last().map(|m| m.body), Some(ceded), "{said:?}");
            assert!(!place.is_settled());
            let ran = ToSource::Says(TargetSays::Ran { durable: true }, None);
            place.hear(heard(ran)).await;
            assert!(place.is_settled());
        });
        assert_eq!(place.journal.last().unwrap().ledger.now(), Some(&Record::Moved(switch())));
    }

    /// The definition of a guest with one shared disk in `dir`, whose record says that `owner` ran
    /// it last.
    fn shared_disk(dir: &std::path::Path, owner: Stamp) -> GuestDefinition {
        let path = dir.join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mut definition = crate::guest::testing::definition("one");
        definition.uuid = Uuid::from_u128(7);
        let cache = Cache::Writeback;
        let (read_only, shared, serial) = (false, true, "s".into());
        definition.disks = vec![DiskDefinition { path, read_only, shared, cache, serial }];
        let disk = &definition.disks[0];
        let file = open_disk(&disk.path, false, false).unwrap();
        let part = Part { definition: disk, file: &file };
        let set = DiskSet::start(definition.uuid, &[part]).unwrap();
        set.stamp_owner(owner).unwrap();
        definition
    }

    /// What the daemon of a dead source decides on hearing that the target never ran the guest,
    /// with `owner` beside the guest's disk.
    fn taken_back(owner: Stamp, knows_disks: bool) -> (bool, Record) {
        let root = tempfile::tempdir().unwrap();
        let definition = shared_disk(root.path(), owner);
        let last = [Record::Owner { term: Term::new(1) }, Record::Offered(switch())];
        let definition = knows_disks.then_some(definition);
        let mut place = place(&root.path().join("j"), &last, definition);
        block_on(async {
            place.hear(heard(ToSource::Says(TargetSays::NeverRan, None))).await;
            place.hear(Input::Timer(Timer::Again)).await;
        });
        (place.is_settled(), *place.journal.last().unwrap().ledger.now().unwrap())
    }

    #[test]
    fn what_stands_beside_the_disks_counts_before_a_guest_is_taken_back() {
        let stamp = |term, host| Stamp { term: Term::new(term), host };
        let (settled, now) = taken_back(stamp(1, HERE), true);
        assert_eq!((settled, now), (true, Record::Owner { term: Term::new(3) }));
        // Somebody said that this host is fenced, and ran the guest elsewhere.
        let (settled, now) = taken_back(stamp(8, HostId(9)), true);
        assert_eq!((settled, now), (true, Record::Offered(switch())), "it owns nothing");
        // Without a look at the disks nothing is decided.
        let (settled, now) = taken_back(stamp(8, HostId(9)), false);
        assert_eq!((settled, now), (false, Record::Offered(switch())));
    }

    #[test]
    fn with_an_arbiter_its_word_decides_for_a_dead_source() {
        let (owner, offered) = (Record::Owner { term: Term::new(1) }, Record::Offered(switch()));
        let guest = GuestId(Uuid::from_u128(7).into_bytes());
        let withdrawn = Record::Withdrawn(switch());
        let ceded = Record::Ceded(switch());
        // What stands there when the target says that it is prepared, and what is recorded then.
        for (stands, wanted) in [
            (switch().held(), Some(ceded)),
            (switch().moved(), Some(ceded)),
            (switch().withdrawn(), Some(withdrawn)),
            (Stamp { term: Term::new(1), host: HostId(9) }, None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let mut place = place(&root.path().join("j"), &[owner, offered], None);
            let arbiter = Arc::<MemoryArbiter>::default();
            arbiter.put(guest, stands);
            place = place.under(Arc::clone(&arbiter) as Arc<dyn Arbiter>);
            block_on(async {
                arbiter.from_now(Some(Fault::Silent));
                place.hear(heard(ToSource::Says(TargetSays::Prepared, None))).await;
                place.hear(Input::Timer(Timer::Again)).await;
                assert!(!place.is_settled(), "silence decides nothing");
                assert_eq!(place.journal.last().unwrap().ledger.now(), Some(&offered));
                arbiter.from_now(None);
                place.hear(Input::Timer(Timer::Again)).await;
            });
            let now = *place.journal.last().unwrap().ledger.now().unwrap();
            assert_eq!(now, wanted.unwrap_or(offered), "{stands:?}");
            let after = if stands == switch().held() { switch().moved() } else { stands };
            assert_eq!(arbiter.stands(guest), Some(after));
        }
    }

    #[test]
    fn a_disk_that_somebody_holds_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let definition = shared_disk(root.path(), Stamp { term: Term::new(1), host: HERE });
        let other = shared(&definition).unwrap();
        other.take_owner().unwrap();
        let last = [Record::Owner { term: Term::new(1) }, Record::Offered(switch())];
        let mut place = place(&root.path().join("j"), &last, Some(definition));
        block_on(async {
            place.hear(heard(ToSource::Says(TargetSays::NeverRan, None))).await;
            assert!(!place.is_settled());
            drop(other);
            place.hear(Input::Timer(Timer::Again)).await;
            assert!(place.is_settled());
        });
    }
}
