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
}

/// Each with faults, offers and whether disks are shared: the bounds that show it.
pub const PLANTED: &[(Bug, u8, u8, bool)] = &[
    (Bug::EarlyOffered, 2, 1, false),
    (Bug::EarlyReceiving, 2, 1, false),
    (Bug::EarlyWithdrawn, 2, 1, false),
    (Bug::EarlyTombstone, 2, 1, false),
    (Bug::NoCededMark, 2, 1, false),
    (Bug::NoRanMark, 2, 1, true),
    (Bug::ResumeOnTimeout, 1, 1, false),
    (Bug::MarksOutliveBoot, 2, 1, true),
    (Bug::TombstoneOnUndecided, 1, 1, true),
    (Bug::NoJournalLock, 1, 1, true),
    (Bug::NoGate, 1, 1, true),
    (Bug::DecideOnLostMemory, 2, 1, false),
    (Bug::ReturnOnLostMemory, 2, 1, false),
    (Bug::NotPreparedTooEarly, 1, 1, true),
];
