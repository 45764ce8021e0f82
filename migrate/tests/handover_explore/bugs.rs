//! Planted bugs: environments and edges that break one rule of the hand-over. The exploration
//! must find each of them. The machines themselves are the real ones.

use migrate_engine::handover::daemon::Acting;
use migrate_engine::handover::effect::{Input, Timer};
use migrate_engine::handover::journal::{Ledger, Record};
use migrate_engine::handover::message::{
    Body, Message, SourceSays, TargetSays, ToSource, ToTarget,
};
use migrate_engine::handover::source::{self, Setup};
use migrate_engine::handover::term::QuestionId;

use crate::bounds::{Bounds, History, Operator};
use crate::step::Step;
use crate::world::{Host, Packet, Party, boot, id, index};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The last piece, and with it every commit, may precede the durable offer.
    CommitBeforeOffer,
    /// `Receiving` is reported before it is durable.
    EarlyReceiving,
    /// `Withdrawn` is reported before it is durable.
    EarlyWithdrawn,
    /// `Tombstone` is reported before it is durable.
    EarlyTombstone,
    /// *Ceded* is said before the `ceded` mark is set.
    CommitBeforeMark,
    /// The `ceded` mark is reported and never set.
    NoCededMark,
    /// The `ran` mark is reported and never set.
    NoRanMark,
    /// A missing mark is believed also after a reboot.
    MarksOutliveBoot,
    /// The deadline lets the source run on without recording anything.
    ResumeOnTimeout,
    /// A target takes *undecided* for *withdrawn*, and the source takes its silence for that.
    TombstoneOnUndecided,
    /// A source that withdrew is said to have ceded.
    TestimonyForWithdrawn,
    /// A source that kept the guest offers the same term again.
    TermReused,
    /// A daemon keeps the guest under the offered term.
    DaemonKeepsOfferedTerm,
    /// The daemon acts for a process that only sleeps.
    NoJournalLock,
    /// A host starts the guest from disk whatever its journal says.
    NoGate,
    /// A host that ceded the guest starts it after a reboot.
    CededStarts,
    /// A saved file is loaded whatever the journal says.
    LoadInDoubt,
    /// A saved file is loaded although the guest has run since.
    LoadOldFile,
    /// The user's `resume` is obeyed by a source in doubt.
    ResumeInDoubt,
    /// The source's daemon decides on seeing that the target's host lost its memory.
    DecideOnLostMemory,
    /// A source returns from `Ceded` because the target's host does not know that it ran.
    ReturnOnLostMemory,
    /// A target says *not prepared* while data can still arrive.
    NotPreparedTooEarly,
    /// *Not prepared* counts also if it was said before the source's death was proved.
    StaleAnswer,
    /// A reboot loses the journal.
    JournalLost,
    /// With an arbiter, the source withdraws without asking it.
    AbortWithoutArbiter,
    /// With an arbiter, the source cedes without asking it.
    CommitWithoutArbiter,
    /// The arbiter sets without comparing.
    ArbiterOverwrites,
    /// An arbiter that does not answer is taken to have refused.
    SilenceIsNo,
    /// The target writes its term beside the disks only when the guest runs already.
    LateStamp,
    /// A source that withdrew does not write its term beside the disks.
    WithdrawnUnstamped,
    /// What stands beside the disks stops neither a start nor a return.
    DisksIgnored,
    /// Resolve does not compare the memory that is held with the disks.
    ResolveOldMemory,
    /// Resolve does not write its term beside the disks.
    ResolveUnstamped,
    /// Resolve does not take the locks.
    ResolveWithoutLocks,
    /// Resolve asks no other host.
    ResolveAlone,
}

/// Each with the least bounds that show it.
pub const PLANTED: &[(Bug, Bounds)] = &[
    (Bug::CommitBeforeOffer, Bounds::new(0, 1).no_shared_disks()),
    (Bug::EarlyReceiving, Bounds::new(1, 1).no_shared_disks()),
    (Bug::EarlyWithdrawn, Bounds::new(1, 1)),
    (Bug::EarlyTombstone, Bounds::new(2, 1).no_shared_disks()),
    (Bug::CommitBeforeMark, Bounds::new(2, 1)),
    (Bug::NoCededMark, Bounds::new(2, 1)),
    (Bug::NoRanMark, Bounds::new(1, 1)),
    (Bug::MarksOutliveBoot, Bounds::new(1, 1)),
    (Bug::ResumeOnTimeout, Bounds::new(1, 1)),
    (Bug::TombstoneOnUndecided, Bounds::new(1, 1)),
    (Bug::TestimonyForWithdrawn, Bounds::new(0, 1)),
    (Bug::TermReused, Bounds::new(0, 2).no_shared_disks()),
    (Bug::DaemonKeepsOfferedTerm, Bounds::new(2, 1)),
    (Bug::NoJournalLock, Bounds::new(0, 1)),
    (Bug::NoGate, Bounds::new(1, 1)),
    (Bug::CededStarts, Bounds::new(1, 1).no_shared_disks()),
    (Bug::LoadInDoubt, Bounds::new(0, 1).no_shared_disks().commands(2, Operator::Absent, true)),
    (Bug::LoadOldFile, Bounds::new(1, 0).commands(2, Operator::Absent, true)),
    (Bug::ResumeInDoubt, Bounds::new(0, 1).commands(1, Operator::Absent, true)),
    (Bug::DecideOnLostMemory, Bounds::new(2, 1)),
    (Bug::ReturnOnLostMemory, Bounds::new(2, 1)),
    (Bug::NotPreparedTooEarly, Bounds::new(1, 1)),
    (Bug::StaleAnswer, Bounds::new(2, 1)),
    (Bug::JournalLost, Bounds::new(1, 1)),
    (Bug::AbortWithoutArbiter, Bounds::new(0, 1).no_shared_disks().arbiter()),
    (Bug::CommitWithoutArbiter, Bounds::new(0, 1).no_shared_disks().arbiter()),
    (Bug::ArbiterOverwrites, Bounds::new(0, 1).no_shared_disks().arbiter()),
    (Bug::SilenceIsNo, Bounds::new(1, 1).no_shared_disks().arbiter()),
    (Bug::LateStamp, Bounds::new(1, 1).commands(1, Operator::Truthful, false)),
    (Bug::WithdrawnUnstamped, Bounds::new(1, 1).commands(1, Operator::Truthful, false)),
    (Bug::DisksIgnored, Bounds::new(1, 1).commands(1, Operator::Truthful, false)),
    (Bug::ResolveOldMemory, Bounds::new(1, 1).commands(1, Operator::Truthful, false)),
    (Bug::ResolveUnstamped, Bounds::new(1, 1).commands(1, Operator::Truthful, false)),
    (Bug::ResolveWithoutLocks, Bounds::new(0, 1).commands(1, Operator::Lying, false)),
    (
        Bug::ResolveAlone,
        Bounds::new(1, 1).history(History::Receiving).no_shared_disks().commands(
            2,
            Operator::Truthful,
            false,
        ),
    ),
];

/// The ledger after a record that cannot follow.
pub fn forced(host: &Host, record: Record) -> Ledger {
    let now = boot(host.boot);
    let blank = Ledger::new(host.ledger.host(), now);
    let before = record.switch().map_or(record, |s| Record::Owner { term: s.before });
    let owner = blank.apply(before, now).unwrap_or(blank);
    owner.apply(record, now).unwrap_or(owner)
}

impl Bounds {
    /// Words that otherwise change nothing, but not with this bug.
    pub fn has_use_for(&self, message: &Message) -> bool {
        match message.body {
            Body::ToTarget(_) => self.has(Bug::TombstoneOnUndecided),
            Body::ToSource(_) => self.has(Bug::NotPreparedTooEarly),
        }
    }

    /// What a source is begun with.
    pub fn misnumbered(&self, setup: Setup, host: &Host) -> Setup {
        match host.ledger.now() {
            Some(Record::Withdrawn(s)) if self.has(Bug::TermReused) => {
                Setup { owned: s.before, highest: s.before, ..setup }
            }
            _ => setup,
        }
    }
}

impl Step<'_> {
    /// A word is misheard.
    pub fn lies(&self, host: usize, packet: &mut Packet) {
        match &mut packet.message.body {
            Body::ToTarget(ToTarget::Says(says)) => {
                if self.bounds.has(Bug::TombstoneOnUndecided) && *says == SourceSays::Undecided {
                    *says = SourceSays::Withdrawn;
                }
                if self.bounds.has(Bug::TestimonyForWithdrawn) && *says == SourceSays::Withdrawn {
                    *says = SourceSays::Ceded;
                }
            }
            Body::ToSource(ToSource::Says(says, question)) => {
                let lost = *says == TargetSays::LostMemory;
                if self.bounds.has(Bug::DecideOnLostMemory) && lost {
                    *says = TargetSays::NotPrepared;
                }
                if self.bounds.has(Bug::ReturnOnLostMemory) && lost {
                    (*says, *question) = (TargetSays::NeverRan, None);
                }
                if self.bounds.has(Bug::NotPreparedTooEarly) && *says == TargetSays::NotYet {
                    *says = TargetSays::NotPrepared;
                }
                if self.bounds.has(Bug::StaleAnswer) {
                    *question = Some(QuestionId(self.world.hosts[host].asked.into()));
                }
            }
            _ => {}
        }
    }

    /// The bug answers for the journal and the disks.
    pub fn resume_on_timeout(&mut self, host: usize, timer: Timer) {
        let in_doubt = match self.world.hosts[host].source() {
            Some(source::State::InDoubt(switch)) if timer == Timer::Deadline => *switch,
            _ => return,
        };
        self.feed(host, Input::Timer(timer));
        self.world.host(host).queue.clear();
        self.feed(host, Input::Recorded(Record::Withdrawn(in_doubt)));
        self.todo(host).clear();
        self.feed(host, Input::Stamped(in_doubt.term));
    }

    /// What is written in place of `record`.
    pub fn misrecorded(&self, host: usize, record: Record) -> Record {
        let Party::Daemon(keeper, _) = &self.world.hosts[host].party else { return record };
        match (keeper.acting(), record) {
            (Acting::Recording { switch, .. }, Record::Owner { .. })
                if self.bounds.has(Bug::DaemonKeepsOfferedTerm)
                    && switch.from == id(host)
                    && matches!(keeper.ledger().now(), Some(Record::Offered(_))) =>
            {
                Record::Withdrawn(*switch)
            }
            _ => record,
        }
    }

    /// Whether `record` is reported before it is durable.
    pub fn is_early(&self, record: Record) -> bool {
        let early = match record {
            Record::Offered(_) => Bug::CommitBeforeOffer,
            Record::Receiving(_) => Bug::EarlyReceiving,
            Record::Withdrawn(_) => Bug::EarlyWithdrawn,
            Record::Tombstone(_) => Bug::EarlyTombstone,
            _ => return false,
        };
        self.bounds.has(early)
    }

    /// Whether a source's user may let the guest run, against all rules.
    pub fn obeys(&self, host: usize) -> bool {
        self.bounds.has(Bug::ResumeInDoubt)
            && matches!(
                self.world.hosts[host].source(),
                Some(source::State::InDoubt(_) | source::State::Ceded(_))
            )
    }

    /// A reboot.
    pub fn rebooted(&mut self, host: usize) {
        if self.bounds.has(Bug::JournalLost) {
            let h = self.world.host(host);
            h.ledger = Ledger::new(id(host), boot(h.boot));
            debug_assert_eq!(index(h.ledger.host()), host);
        }
    }
}
