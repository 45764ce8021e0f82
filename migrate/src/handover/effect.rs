//! Everything that goes into a hand-over machine and everything that comes out of it.
//!
//! The edge performs the effects of one step in order, each before the next, and answers those
//! that have an answer with an input, later and in any order; it may deliver other inputs in
//! between. Records of one journal become durable in the order in which they were asked for, and
//! a process does not end before they are.
//! Inputs that a state does not expect (late, duplicated, hostile) change nothing.

use super::journal::{Mark, Record};
use super::message::{Message, Refusal};
use super::term::{Beside, Millis, Stamp, Switch, SwitchId, Term};

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// The time to switch has come. Beside the disks, whose OWNER lock the source holds, stands
    /// this.
    Switch {
        /// Name of the new switch.
        id: SwitchId,
        /// As read just now.
        beside: Beside,
        /// Longest pause, in milliseconds; see [`pause_limit`](super::source::pause_limit).
        pause_ms: u64,
    },
    /// The user cancels the move.
    Cancel,
    /// The guest itself ended, by power-off or by an error.
    GuestEnded,
    /// Copying cannot go on.
    CopyFailed,
    /// The link to the other side is gone.
    LinkLost,
    /// It is back, and streams may flow again.
    LinkBack,
    /// All streams of the switch have ended: nothing more of its data can arrive.
    StreamsEnded,
    /// The other side ended the attempt before it offered anything.
    AttemptEnded,
    /// By an operator's word this host owns the guest: the new term stands beside the disks and in
    /// the journal ([`super::resolve`]).
    Claimed,
    /// By an operator's word this host lets the guest go.
    GivenUp,
    /// A message of the other side.
    Heard(Message),
    /// A timer ran out.
    Timer(Timer),

    /// The offered term stands beside the disks.
    OfferStamped,
    /// The record is durable.
    Recorded(Record),
    /// The record could not be written; it may be there or not. The edge says so only when
    /// trying again makes sense.
    RecordFailed(Record),
    /// The mark is set.
    Marked(Mark),
    /// The mark could not be set; it may be there or not.
    MarkFailed(Mark),
    /// OWNER of every disk is taken, and beside them stands this.
    OwnerTaken(Beside),
    /// OWNER of a disk is held elsewhere; none is kept.
    OwnerBusy,
    /// NEXT of every disk is taken, and beside them stands this.
    NextTaken(Beside),
    /// NEXT of a disk is held elsewhere; none is kept.
    NextBusy,
    /// The term stands beside every disk, acknowledged by the storage.
    Stamped(Term),
    /// It could not be written beside every disk; it may stand beside some.
    StampFailed,
    /// The guest stands still and its devices are drained.
    Paused,
    /// The last round and the saved state have arrived, all but the last piece.
    LastRoundDone,
    /// The guest is restored and the digest agrees.
    Restored,
    /// It is not, or the digest differs.
    RestoreFailed,
    /// The trial restore is done; whether it was accepted.
    Rehearsed(bool),
    /// What stands in the arbiter, as the answer to any of its effects.
    Arbiter(Stamp),
    /// The arbiter did not answer. The change may still be made.
    ArbiterSilent,
    /// The frozen source was compared with what it sent.
    Audited {
        /// Nothing was missed.
        same: bool,
    },
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Say this to the other side. Nothing is known of its arrival.
    Send(Message),
    /// The commit: say *ceded*. Only a process that holds the proof can.
    Commit(Switch),
    /// Tell the other side that the attempt is over; nothing was offered.
    EndAttempt,
    /// Write durably. Answer: [`Input::Recorded`] or [`Input::RecordFailed`].
    Record(Record),
    /// Set a mark. Answer: [`Input::Marked`] or [`Input::MarkFailed`].
    Mark(Mark),
    /// Write the offered term beside the disks. Answer: [`Input::OfferStamped`] or
    /// [`Input::StampFailed`].
    StampOffer(Term),
    /// Write the owner's term beside the disks, under OWNER. Answer: [`Input::Stamped`] or
    /// [`Input::StampFailed`].
    Stamp(Term),
    /// Take OWNER of every disk, or of none. Answer: [`Input::OwnerTaken`] or
    /// [`Input::OwnerBusy`]. Taking what one holds succeeds.
    TakeOwner,
    /// Let OWNER go.
    DropOwner,
    /// Take NEXT of every disk, or of none. Answer: [`Input::NextTaken`] or [`Input::NextBusy`].
    TakeNext,
    /// Let NEXT go.
    DropNext,
    /// Replace what stands in the arbiter if it is still `expect`. Answer: [`Input::Arbiter`]
    /// with what stands there then, or [`Input::ArbiterSilent`].
    CompareAndSet {
        /// The right before.
        expect: Stamp,
        /// The right after.
        want: Stamp,
    },
    /// Read the arbiter. Answers as above.
    ReadArbiter,
    /// Stop the guest and drain its devices. Answer: [`Input::Paused`].
    Pause,
    /// Let the guest run on here (a guest that its user paused stays paused). Abandons a pause or
    /// a last round that is under way: it must not stop the guest afterwards.
    Resume,
    /// Save the state, harvest and send the last round. Answer: [`Input::LastRoundDone`] or
    /// [`Input::CopyFailed`].
    LastRound,
    /// Restore and verify. Answer: [`Input::Restored`] or [`Input::RestoreFailed`].
    Restore,
    /// Run the restored guest.
    Run {
        /// Its user had paused it.
        paused: bool,
    },
    /// Compare the frozen memory with what was sent. Answer: [`Input::Audited`].
    Audit,
    /// Let the frozen memory go. Abandons a restore that is under way.
    Discard,
    /// Wake up then, once. Setting a timer again moves it.
    SetTimer(Timer, Millis),
    /// Tell people and the daemon.
    Report(Notice),
}

/// Why to wake up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The pause has lasted too long.
    Deadline,
    /// Say or try it again.
    Again,
    /// The link has been gone too long.
    Link,
}

/// What people hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notice {
    /// The source keeps the guest.
    Kept(Why),
    /// The guest is the target's now, with certainty.
    Moved {
        /// The frozen source agreed with what was sent.
        audited: bool,
    },
    /// The guest runs here now.
    Arrived,
    /// Nothing is left of the attempt at the target.
    NotTaken(Why),
    /// A cancel came after the point of doubt: the outcome will tell.
    TooLateToCancel,
    /// Another host has a better right: nothing runs here without an operator.
    Superseded,
    /// A durable step does not succeed and is tried again.
    Retrying(Step),
}

/// A step that must succeed before anything else can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Writing the journal.
    Journal,
    /// Setting a runtime mark.
    Mark,
    /// Writing beside the disks.
    Stamp,
    /// Locking the disks.
    Lock,
    /// Hearing the arbiter.
    Arbiter,
}

/// Why a move did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// The user cancelled it.
    Cancelled,
    /// The link was gone too long.
    LinkLost,
    /// The target does not take part.
    Refused(Refusal),
    /// Copying failed.
    CopyFailed,
    /// The pause was not answered in time.
    Deadline,
    /// The target could not restore the guest, or died before it ran.
    NeverRan,
    /// The guest ended.
    GuestEnded,
    /// The journal cannot be written.
    Journal,
    /// The disks' terms cannot be written.
    Stamp,
    /// The arbiter does not answer.
    Arbiter,
    /// The source withdrew.
    Withdrawn,
    /// An operator said so.
    Operator,
}
