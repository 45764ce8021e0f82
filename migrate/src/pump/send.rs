//! A round at the source.
//!
//! ```text
//! for each stripe:  clear its log → what was found joins `pending`
//!                   take `pending` of the stripe → `in flight`
//!                   leave out what was never touched → the lane's worker
//! worker:           read once → zero? unchanged? → batch → LZ4 or raw → lane
//! ```
//!
//! The log of a stripe is cleared just before the stripe is read, never after, so what the guest
//! writes from then on shows in the next round. What was taken stays owned by the source until
//! the round is acknowledged: [`Source::acknowledge`] lets go of it, [`Source::reclaim`] puts it
//! back.
//!
//! Only the first whole pass asks what was never touched: what the log finds later was written to.
//!
//! A unit that is written again after its stripe was cleared waits for the next round. A unit that
//! is written again *before* its turn costs nothing, since it is re-armed and read only then;
//! hence there is no second look at the log in the middle of a round.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;

use super::audit::Sealed;
use super::cancel::Cancel;
use super::feeder::{Feeder, Progress};
use super::touched::Touched;
use super::worker::{Common, Shared};
use super::{Cause, Shards};
use crate::codec::{BatchFull, Digest, DigestKey, DigestTable, Policy, policy::Limits};
use crate::port::{DirtyLog, ReadUnits};
use crate::track::{SetError, UnitSet};
use crate::transport::link::{Ended, FrameSender, LinkHandle, SendError};
use crate::unit::{Layout, Run};
use crate::wire::Version;
use crate::wire::data::FrameError;

/// A round of at most so many units is sent by one thread: to start others would take longer.
const FEW: u64 = 512;

/// Why a round failed at the source. The guest is unharmed, and `pending` knows what is missing
/// after [`Source::reclaim`].
#[derive(Debug, thiserror::Error)]
pub enum SendFail {
    /// Somebody said stop.
    #[error("the copy was cancelled")]
    Cancelled,
    /// A lane does not carry any more.
    #[error("data lane {lane} failed: {why}")]
    Lane {
        /// Its number.
        lane: usize,
        /// Why.
        why: SendError,
    },
    /// Memory of the guest could not be read.
    #[error("guest memory cannot be read: {0}")]
    Memory(#[source] Cause),
    /// The dirty log failed: what was written is not known.
    #[error("the dirty log failed, so what the guest wrote is not known: {0}")]
    Log(#[source] Cause),
    /// The dirty log reported units that are not there.
    #[error("the dirty log reported units that are not there: {0}")]
    Found(#[from] SetError),
    /// No thread could be had.
    #[error("no thread for a data lane: {0}; is the limit of tasks too low?")]
    Thread(#[source] std::io::Error),
    /// A frame could not be made.
    #[error("a data frame cannot be made (a defect of this program): {0}")]
    Frame(#[from] FrameError),
    /// A batch overflowed.
    #[error("a data frame cannot be made (a defect of this program): {0}")]
    Batch(#[from] BatchFull),
    /// The thread of a lane died.
    #[error("the worker of data lane {0} died (a defect of this program)")]
    Died(usize),
}

impl SendFail {
    /// Whether a new link could go on where this one ended.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Lane { why: SendError::Ended(Ended::Lost(_)), .. })
    }
}

/// What happened in a round. Units, bytes, and times summed over the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Units sent with content; `compressed` + `raw`.
    pub units: u64,
    /// Of these in LZ4 batches.
    pub compressed: u64,
    /// Of these in raw batches.
    pub raw: u64,
    /// Units sent as zeros.
    pub zeros: u64,
    /// Units read and left out: the peer has this content.
    pub same: u64,
    /// Units neither read nor sent: never touched.
    pub untouched: u64,
    /// Frames on the lanes.
    pub frames: u64,
    /// Bytes of these frames, without what the transport adds.
    pub frame_bytes: u64,
    /// Encoded content in them.
    pub payload_bytes: u64,
    /// Raw bytes on which LZ4 was tried.
    pub tried_bytes: u64,
    /// Time that took.
    pub trying: Duration,
    /// Time that workers waited for room in the queue of their lane.
    pub waiting: Duration,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.units += other.units;
        self.compressed += other.compressed;
        self.raw += other.raw;
        self.zeros += other.zeros;
        self.same += other.same;
        self.untouched += other.untouched;
        self.frames += other.frames;
        self.frame_bytes += other.frame_bytes;
        self.payload_bytes += other.payload_bytes;
        self.tried_bytes += other.tried_bytes;
        self.trying += other.trying;
        self.waiting += other.waiting;
    }

    /// Units of which the peer now has the content, however it got it.
    pub fn done(&self) -> u64 {
        self.units + self.zeros + self.same + self.untouched
    }
}

/// How far the round is that goes on now; for progress displays. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<Mutex<Tally>>);

impl Live {
    /// What was done so far in this round, or in the last.
    pub fn tally(&self) -> Tally {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, tally: &Tally) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(tally);
    }

    fn start(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Tally::default();
    }
}

/// The sending ends of a link's lanes, and how units are spread over them.
#[derive(Debug)]
pub struct Lanes {
    pub(super) shards: Shards,
    /// Each with the number of its next frame.
    senders: Vec<(FrameSender, u64)>,
    handle: LinkHandle,
}

impl Lanes {
    /// The lanes of a link; `None` if it has none.
    pub fn new(senders: Vec<FrameSender>, handle: LinkHandle) -> Option<Self> {
        let count = std::num::NonZeroUsize::new(senders.len())?;
        let senders = senders.into_iter().map(|lane| (lane, 0)).collect();
        Some(Self { shards: Shards::new(count), senders, handle })
    }

    #[cfg(test)]
    pub(crate) fn with_shards(mut self, shards: Shards) -> Self {
        self.shards = shards;
        self
    }

    /// Watches and closes the link.
    pub fn handle(&self) -> &LinkHandle {
        &self.handle
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.senders.len()
    }
}

/// How fast a round went for a while: bytes of guest memory, and how long they took.
pub type Sample = (u64, Duration);

/// A region at the source: what is in it, what the peer is known to have of it, and what it has
/// not.
#[derive(Debug)]
pub struct Source<R, L> {
    ram: R,
    log: L,
    region: u16,
    version: Version,
    key: DigestKey,
    layout: Layout,
    /// Not across, and not in a round.
    pending: UnitSet,
    /// Taken by the round that is not acknowledged yet.
    in_flight: UnitSet,
    doubtful: UnitSet,
    shared: Mutex<Shared>,
    live: Live,
    samples: Vec<Sample>,
    /// The log was looked at since it was switched on.
    synced: bool,
    /// A whole pass was acknowledged: what the log finds since then was written to.
    complete: bool,
}

impl<R: ReadUnits, L: DirtyLog> Source<R, L> {
    /// All of it is to be sent. The log was switched on just before, or at any time earlier.
    pub fn new(version: Version, region: u16, ram: R, log: L, key: DigestKey) -> Self {
        let layout = ram.layout();
        let shared = Shared {
            table: DigestTable::new(layout),
            policy: Policy::new(&layout, Limits::default()),
        };
        Self {
            ram,
            log,
            region,
            version,
            key,
            layout,
            pending: UnitSet::full(&layout),
            in_flight: UnitSet::empty(&layout),
            doubtful: UnitSet::empty(&layout),
            shared: Mutex::new(shared),
            live: Live::default(),
            samples: Vec::new(),
            synced: false,
            complete: false,
        }
    }

    /// How the region divides.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Its number in the layout.
    pub fn region(&self) -> u16 {
        self.region
    }

    /// Looks at the log, without clearing it, and says how many units are not across: at most, a
    /// unit that is pending may have been written to again.
    pub fn sync(&mut self) -> Result<u64, SendFail> {
        self.log.sync().map_err(|e| SendFail::Log(e.into()))?;
        self.synced = true;
        let left = self.pending.len() + self.in_flight.len() + self.log.found();
        Ok(left.min(self.layout.units()))
    }

    /// Sends everything that is pending or found, each unit at most once, and the end of the round
    /// on every lane. Blocks: call it on a thread that may, with `runtime` driven by another.
    ///
    /// # Errors
    /// [`SendFail`]; call [`reclaim`](Self::reclaim) then. The link is of no use afterwards, since
    /// the round has no end on it.
    pub fn send_round(
        &mut self,
        round: u32,
        lanes: &mut Lanes,
        cancel: &Cancel,
        runtime: &Handle,
    ) -> Result<Tally, SendFail> {
        // A log that begins with all bits set must be cleared while the first round reads, or the
        // second would read everything again. And a round of nothing would be a round too many.
        if !self.synced || (self.pending.is_empty() && self.log.found() == 0) {
            self.sync()?;
        }
        self.samples.clear();
        self.live.start();
        let few = self.pending.len() + self.log.found() <= FEW;
        let stop = Cancel::new();
        let common = Common {
            ram: &self.ram,
            shared: &self.shared,
            live: &self.live,
            doubtful: &self.doubtful,
            key: &self.key,
            layout: self.layout,
            version: self.version,
            region: self.region,
            round,
            cancel,
            stop: &stop,
            runtime,
        };
        let mut feeder = Feeder {
            common,
            log: &mut self.log,
            pending: &mut self.pending,
            in_flight: &mut self.in_flight,
            // To ask costs a walk over all memory that is allocated.
            touched: (!self.complete).then(Touched::default),
            shards: lanes.shards,
            link: &lanes.handle,
            meter: Progress::new(&mut self.samples),
        };
        if few {
            feeder.send_here(&mut lanes.senders)?;
        } else {
            feeder.send_on_threads(&mut lanes.senders, &stop)?;
        }
        Ok(self.live.tally())
    }

    /// The peer has everything of the last round.
    pub fn acknowledge(&mut self) -> Result<(), SendFail> {
        self.doubtful.subtract(&self.in_flight)?;
        self.in_flight.clear();
        self.complete = true;
        Ok(())
    }

    /// The last round will not be acknowledged: what it took is pending again, and will be sent
    /// whatever the peer may have of it.
    pub fn reclaim(&mut self) -> Result<(), SendFail> {
        self.pending.union(&self.in_flight)?;
        self.doubtful.union(&self.in_flight)?;
        self.in_flight.clear();
        Ok(())
    }

    /// How far a round is, while another thread works on it.
    pub fn live(&self) -> Live {
        self.live.clone()
    }

    /// How fast the last round went, in stretches of about equal length.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// What the peer's table must add up to once the last round is acknowledged.
    pub fn sum(&self) -> Digest {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).table.sum()
    }

    /// The same for a part.
    pub fn sum_of(&self, run: Run) -> Digest {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).table.sum_of(run)
    }

    /// Notes a digest for `unit` that is not that of its content.
    #[cfg(test)]
    pub(crate) fn forge(&self, unit: crate::unit::UnitIndex) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.table.set(unit, Digest(1));
    }

    /// Switches the log off, and keeps what an audit of the frozen memory needs.
    pub fn finish(self) -> Result<Sealed<R>, SendFail> {
        self.log.stop().map_err(|e| SendFail::Log(e.into()))?;
        let shared = self.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Sealed::new(self.ram, self.key, shared.table))
    }
}
