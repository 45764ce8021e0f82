//! What arrives on one lane, checked and written to memory. Nothing a peer sends is believed:
//! every frame is checked against the layout, the lane, the round and its own checksum before a
//! byte is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::recv::RecvError;
use super::{Cause, Shards};
use crate::codec::{Batch, Digest, DigestKey, DigestTable};
use crate::port::WriteUnits;
use crate::transport::link::FrameReceiver;
use crate::unit::{Layout, Run};
use crate::wire::data::{DATA_HEADER, DataFrame, DataHeader, RawRun, UnpackError};
use crate::wire::{Version, WireError};

/// What makes a frame unacceptable.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// It cannot be read.
    #[error("a frame cannot be read: {0}")]
    Wire(#[from] WireError),
    /// Its units do not fit the layout, or do not decode.
    #[error("a frame does not fit: {0}")]
    Unpack(#[from] UnpackError),
    /// A frame for a region that was not announced.
    #[error("a frame is for region {0}, which was not announced")]
    Region(u16),
    /// A frame is missing, or came twice.
    #[error("frame {found} came where frame {expected} was due")]
    Sequence {
        /// The next in order.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// A frame of another round than the one that is open.
    #[error("a frame of round {found} came where round {expected} is open")]
    Round {
        /// The open round.
        expected: u64,
        /// That of the frame.
        found: u32,
    },
    /// A unit on the wrong lane: its order is not guaranteed.
    #[error("units {first}+{count} do not travel on this lane")]
    Lane {
        /// First unit.
        first: u64,
        /// Number of units.
        count: u64,
    },
    /// The sender counted otherwise.
    #[error("{found} units came in round {round}, the sender counted {sent}")]
    Count {
        /// The round.
        round: u32,
        /// What it said.
        sent: u64,
        /// What came.
        found: u64,
    },
    /// Memory cannot be written.
    #[error("memory cannot be written: {0}")]
    Memory(#[source] Cause),
}

/// What all lanes of a target share.
pub(super) struct Place<W> {
    pub(super) ram: W,
    pub(super) layout: Layout,
    pub(super) region: u16,
    pub(super) version: Version,
    pub(super) key: DigestKey,
    pub(super) table: Mutex<DigestTable>,
    /// The first round that is not acknowledged.
    pub(super) open: AtomicU64,
    /// Bytes of memory written.
    pub(super) written: Arc<AtomicU64>,
}

/// What the thread of a lane tells.
pub(super) enum Event {
    /// The lane carried everything of a round.
    RoundEnd {
        round: u32,
        units: u64,
        zeros: u64,
    },
    Failed(RecvError),
}

/// A lane at the target.
pub(super) struct Lane<W> {
    place: Arc<Place<W>>,
    shards: Shards,
    number: usize,
    sequence: u64,
    /// The round whose frames come now, once the first has come.
    round: Option<u32>,
    /// The last round that ended on this link.
    ended: Option<u32>,
    units: u64,
    zeros: u64,
    scratch: Vec<u8>,
}

impl<W: WriteUnits> Lane<W> {
    pub(super) fn new(place: Arc<Place<W>>, shards: Shards, number: usize) -> Self {
        let longest = Batch::new(&place.layout).capacity() * place.layout.unit_len();
        let scratch = vec![0; longest];
        let (round, ended) = (None, None);
        Self { place, shards, number, sequence: 0, round, ended, units: 0, zeros: 0, scratch }
    }

    /// Takes frames until the lane ends. Runs on a thread of its own.
    pub(super) fn run(mut self, frames: &mut FrameReceiver, events: &mpsc::Sender<Event>) {
        let lane = self.number;
        loop {
            let event = match frames.blocking_recv() {
                Ok(Some(frame)) => match self.frame(&frame) {
                    Ok(None) => continue,
                    Ok(Some(event)) => event,
                    Err(why) => Event::Failed(RecvError::Lane { lane, why }),
                },
                Ok(None) => return,
                Err(ended) => Event::Failed(RecvError::Ended(ended)),
            };
            let last = matches!(event, Event::Failed(_));
            if events.blocking_send(event).is_err() || last {
                return;
            }
        }
    }

    /// Takes one frame.
    fn frame(&mut self, frame: &Bytes) -> Result<Option<Event>, LaneError> {
        let version = self.place.version;
        let (header, body) =
            frame.split_first_chunk::<DATA_HEADER>().ok_or(WireError::Short("a data header"))?;
        let header = DataHeader::decode(version, header)?;
        // The checksum covers the header: nothing of it is used before.
        let content = DataFrame::decode(version, &header, body)?;
        let place = header.place;
        if place.region != self.place.region {
            return Err(LaneError::Region(place.region));
        }
        if place.sequence != self.sequence {
            return Err(LaneError::Sequence { expected: self.sequence, found: place.sequence });
        }
        self.check_round(place.round)?;
        self.sequence = self.sequence.saturating_add(1);
        match content {
            DataFrame::Units(units) => self.content(units)?,
            DataFrame::Zeros(runs) => self.zero(&runs)?,
            DataFrame::RoundEnd { units, zeros } => {
                return self.end(place.round, units, zeros).map(Some);
            }
        }
        Ok(None)
    }

    /// Within a link rounds grow by one, and one begins when the last is acknowledged. After a cut
    /// the source may be ahead, since it does not know what was acknowledged.
    fn check_round(&mut self, found: u32) -> Result<(), LaneError> {
        let open = self.place.open.load(Ordering::Acquire);
        let fine = match (self.round, self.ended) {
            (Some(round), _) => round == found && u64::from(found) >= open,
            (None, Some(ended)) => u64::from(found) == open && Some(found) == ended.checked_add(1),
            (None, None) => u64::from(found) >= open,
        };
        if !fine {
            let expected = self.round.map_or(open, u64::from);
            return Err(LaneError::Round { expected, found });
        }
        self.round = Some(found);
        Ok(())
    }

    fn content(&mut self, units: crate::wire::data::Units<'_>) -> Result<(), LaneError> {
        for raw in units.runs() {
            self.run_of(raw)?;
        }
        let place = &self.place;
        let unit_len = place.layout.unit_len();
        let (mut wrong, mut count) = (Ok(()), 0);
        units.unpack(&place.layout, &mut self.scratch, |run, content| {
            if wrong.is_err() {
                return;
            }
            wrong = place.ram.write(run, content).map_err(|e| LaneError::Memory(e.into()));
            let contents = content.chunks_exact(unit_len);
            let digests = contents.zip(run.iter()).map(|(c, unit)| place.key.digest(unit, c));
            place.note(run, digests);
            count += run.count();
        })?;
        wrong?;
        place.written.fetch_add(place.layout.bytes_of(count), Ordering::Relaxed);
        self.units = self.units.saturating_add(count);
        Ok(())
    }

    fn zero(&mut self, runs: &[RawRun]) -> Result<(), LaneError> {
        let checked: Vec<Run> = runs.iter().map(|r| self.run_of(*r)).collect::<Result<_, _>>()?;
        let place = &self.place;
        let unit_len = place.layout.unit_len();
        for run in checked {
            place.ram.zero(run).map_err(|e| LaneError::Memory(e.into()))?;
            place.note(run, run.iter().map(|unit| place.key.digest_of_zeros(unit, unit_len)));
            self.zeros = self.zeros.saturating_add(run.count());
        }
        Ok(())
    }

    /// A run that lies in the layout and belongs on this lane.
    fn run_of(&self, raw: RawRun) -> Result<Run, LaneError> {
        let run = raw.run(&self.place.layout).map_err(UnpackError::from)?;
        if !self.shards.belongs(run, self.number) {
            return Err(LaneError::Lane { first: raw.first, count: raw.count.into() });
        }
        Ok(run)
    }

    fn end(&mut self, round: u32, units: u64, zeros: u64) -> Result<Event, LaneError> {
        for (sent, found) in [(units, self.units), (zeros, self.zeros)] {
            if sent != found {
                return Err(LaneError::Count { round, sent, found });
            }
        }
        (self.units, self.zeros) = (0, 0);
        (self.round, self.ended) = (None, Some(round));
        Ok(Event::RoundEnd { round, units, zeros })
    }
}

impl<W> Place<W> {
    fn note(&self, run: Run, digests: impl Iterator<Item = Digest>) {
        // Hashed in parts outside the lock: lanes must not wait for each other's arithmetic.
        let mut digests = digests;
        for part in run.parts(64) {
            let hashed: Vec<Digest> = digests.by_ref().take(part.iter().len()).collect();
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            for (unit, digest) in part.iter().zip(hashed) {
                table.set(unit, digest);
            }
        }
    }
}
