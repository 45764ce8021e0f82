//! Planted bugs: environments and edges that break one rule of the hand-over. The exploration
//! must find each of them. The machines themselves are the real ones.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `Offered` is reported before it is durable.
    EarlyOffered,
    /// `Receiving` is reported before it is durable.
    EarlyReceiving,
    /// `Withdrawn` is reported before it is durable.
    EarlyWithdrawn,
    /// `Tombstone` is reported before it is durable.
    EarlyTombstone,
    /// The `ceded` mark is reported and never set.
    NoCededMark,
    /// The `ran` mark is reported and never set.
    NoRanMark,
    /// The deadline lets the source run on without recording anything.
    ResumeOnTimeout,
    /// A missing mark is believed also after a reboot.
    MarksOutliveBoot,
    /// An answer to an earlier question counts.
    StaleAnswer,
    /// A target takes *undecided* for *withdrawn*, and the source takes its silence for that.
    TombstoneOnUndecided,
    /// The daemon acts for a process that only sleeps.
    NoJournalLock,
    /// A host starts the guest from disk whatever its journal says.
    NoGate,
    /// The source's daemon decides on seeing that the target's host lost its memory.
    DecideOnLostMemory,
    /// A source returns from `Ceded` because the target's host does not know that it ran.
    ReturnOnLostMemory,
    /// A target says *not prepared* while data can still arrive.
    NotPreparedTooEarly,
    /// The source withdraws without asking the arbiter.
    NoCompareAndSet,
}

pub const WITHOUT_ARBITER: &[Bug] = &[
    Bug::EarlyOffered,
    Bug::EarlyReceiving,
    Bug::EarlyWithdrawn,
    Bug::EarlyTombstone,
    Bug::NoCededMark,
    Bug::NoRanMark,
    Bug::ResumeOnTimeout,
    Bug::MarksOutliveBoot,
    Bug::StaleAnswer,
    Bug::TombstoneOnUndecided,
    Bug::NoJournalLock,
    Bug::NoGate,
    Bug::DecideOnLostMemory,
    Bug::ReturnOnLostMemory,
];
