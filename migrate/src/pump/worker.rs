//! The work for one lane: units are read once, classified, packed, encoded and sent.

use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::cancel::Cancel;
use super::send::{Live, SendFail, Tally};
use super::touched::Piece;
use crate::codec::{Batch, Choice, Class, Codec, Digest, DigestKey, DigestTable, Policy, classify};
use crate::port::ReadUnits;
use crate::track::UnitSet;
use crate::transport::link::FrameSender;
use crate::unit::{Layout, Run, UnitIndex};
use crate::wire::Version;
use crate::wire::data::{MAX_ZERO_RUNS, Place, put_round_end, put_units, put_zeros};

/// Units that are looked up in the table at a time.
const PART: usize = 16;
/// A digest for each of them, where there is one.
type Digests = [Option<Digest>; PART];

/// What all lanes of a source share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) table: DigestTable,
    pub(super) policy: Policy,
}

/// What is the same for all lanes in a round.
pub(super) struct Common<'a, R> {
    pub(super) ram: &'a R,
    pub(super) shared: &'a Mutex<Shared>,
    pub(super) live: &'a Live,
    /// Units of which it is not known what the peer holds.
    pub(super) doubtful: &'a UnitSet,
    pub(super) key: &'a DigestKey,
    pub(super) layout: Layout,
    pub(super) version: Version,
    pub(super) region: u16,
    pub(super) round: u32,
    pub(super) cancel: &'a Cancel,
    /// The round failed elsewhere.
    pub(super) stop: &'a Cancel,
    pub(super) runtime: &'a Handle,
}

impl<R> Clone for Common<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Common<'_, R> {}

impl<R> Common<'_, R> {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker is given.
pub(super) enum Work {
    /// Send these.
    Pieces(Vec<Piece>),
    /// That was all: send the end of the round.
    End,
}

/// The worker of a lane, for a round.
pub(super) struct Worker<'a, R> {
    common: Common<'a, R>,
    number: usize,
    lane: &'a FrameSender,
    sequence: &'a mut u64,
    batch: Batch,
    zeros: Vec<Run>,
    out: Vec<u8>,
    /// Since the last time it was added to what all share.
    tally: Tally,
    /// Sent over this lane in this round.
    units: u64,
    zero_units: u64,
}

impl<'a, R: ReadUnits> Worker<'a, R> {
    pub(super) fn new(
        common: Common<'a, R>,
        number: usize,
        lane: &'a FrameSender,
        sequence: &'a mut u64,
    ) -> Self {
        let batch = Batch::new(&common.layout);
        let (zeros, out, tally) = (Vec::new(), Vec::new(), Tally::default());
        Self { common, number, lane, sequence, batch, zeros, out, tally, units: 0, zero_units: 0 }
    }

    /// Sends what comes. Only if it is told so, the end of the round.
    pub(super) fn run(mut self, work: &mpsc::Receiver<Work>) -> Result<(), SendFail> {
        loop {
            match work.recv() {
                Ok(Work::Pieces(pieces)) => self.pieces(&pieces)?,
                Ok(Work::End) => break,
                Err(mpsc::RecvError) => return Err(SendFail::Cancelled),
            }
        }
        self.finish()
    }

    /// Sends the end of the round.
    pub(super) fn finish(mut self) -> Result<(), SendFail> {
        self.flush_units()?;
        self.flush_zeros()?;
        let place = self.place();
        put_round_end(self.common.version, place, self.units, self.zero_units, &mut self.out);
        self.send_out()?;
        let tally = std::mem::take(&mut self.tally);
        self.common.live.add(&tally);
        Ok(())
    }

    /// Sends these.
    pub(super) fn pieces(&mut self, pieces: &[Piece]) -> Result<(), SendFail> {
        for piece in pieces {
            for part in piece.run.parts(PART as u64) {
                if self.common.cancel.is_cancelled() || self.common.stop.is_cancelled() {
                    return Err(SendFail::Cancelled);
                }
                if piece.hole { self.hole(part)? } else { self.content(part)? }
            }
        }
        Ok(())
    }

    /// What the peer holds of the units of `part`, as far as that is certain.
    fn known(&mut self, part: Run) -> Digests {
        let mut known = [None; PART];
        self.common.live.add(&std::mem::take(&mut self.tally));
        let shared = self.common.lock();
        for (entry, unit) in known.iter_mut().zip(part.iter()) {
            if !self.common.doubtful.contains(unit) {
                *entry = shared.table.get(unit);
            }
        }
        known
    }

    /// Units that are to be read.
    fn content(&mut self, part: Run) -> Result<(), SendFail> {
        let known = self.known(part);
        let mut new = [None; PART];
        for ((unit, known), new) in part.iter().zip(known).zip(&mut new) {
            if self.batch.is_full() {
                self.flush_units()?;
            }
            let slot = self.batch.slot()?;
            self.common.ram.read(unit, slot).map_err(|e| SendFail::Memory(e.into()))?;
            let (class, digest) = classify(self.common.key, unit, slot, known);
            match class {
                Class::Same => self.tally.same += 1,
                Class::Zero => self.zero(unit)?,
                Class::Data => {
                    self.batch.keep(unit)?;
                    self.tally.units += 1;
                    self.units += 1;
                }
            }
            *new = Some(digest);
        }
        self.set(part, &new);
        Ok(())
    }

    /// Units that are holes: zero, without a look at them.
    fn hole(&mut self, part: Run) -> Result<(), SendFail> {
        let known = self.known(part);
        let mut new = [None; PART];
        for ((unit, known), new) in part.iter().zip(known).zip(&mut new) {
            let digest = self.common.key.digest_of_zeros(unit, self.common.layout.unit_len());
            if known == Some(digest) {
                self.tally.same += 1;
            } else if known.is_none() && !self.common.doubtful.contains(unit) {
                // Never touched here, never sent: the peer's was never touched either.
                self.tally.untouched += 1;
            } else {
                self.zero(unit)?;
                *new = Some(digest);
            }
        }
        self.set(part, &new);
        Ok(())
    }

    fn set(&self, part: Run, digests: &Digests) {
        let mut shared = self.common.lock();
        for (unit, digest) in part.iter().zip(digests) {
            if let Some(digest) = digest {
                shared.table.set(unit, *digest);
            }
        }
    }

    /// Adds a zero unit to the runs of zeros, which ascend.
    fn zero(&mut self, unit: UnitIndex) -> Result<(), SendFail> {
        self.tally.zeros += 1;
        self.zero_units += 1;
        let layout = self.common.layout;
        if let Some(last) = self.zeros.last_mut()
            && last.end() == unit.get()
            && let Ok(longer) = layout.run(last.first().get(), last.count() + 1)
        {
            *last = longer;
            return Ok(());
        }
        if self.zeros.len() >= MAX_ZERO_RUNS {
            self.flush_zeros()?;
        }
        self.zeros.extend(layout.run(unit.get(), 1));
        Ok(())
    }

    fn place(&self) -> Place {
        let Common { region, round, .. } = self.common;
        Place { region, round, sequence: *self.sequence }
    }

    fn flush_units(&mut self) -> Result<(), SendFail> {
        let Some(first) = self.batch.units().first().copied() else { return Ok(()) };
        let choice = self.common.lock().policy.choose(first);
        let wanted = if choice == Choice::Try { Codec::Lz4 } else { Codec::Raw };
        let (raw, count) = (self.batch.raw().len(), self.batch.units().len() as u64);
        let began = Instant::now();
        let place = self.place();
        let sent = put_units(self.common.version, place, &self.batch, wanted, &mut self.out)?;
        if choice == Choice::Try {
            self.tally.tried_bytes += raw as u64;
            self.tally.trying += began.elapsed();
            self.common.lock().policy.observe(first, raw, sent.payload);
        }
        match sent.codec {
            Codec::Lz4 => self.tally.compressed += count,
            Codec::Raw => self.tally.raw += count,
        }
        self.tally.payload_bytes += sent.payload as u64;
        self.batch.clear();
        self.send_out()
    }

    fn flush_zeros(&mut self) -> Result<(), SendFail> {
        if self.zeros.is_empty() {
            return Ok(());
        }
        let place = self.place();
        put_zeros(self.common.version, place, &self.zeros, &mut self.out)?;
        self.zeros.clear();
        self.send_out()
    }

    /// Sends the frame in `out`, waiting for room unless somebody says stop.
    fn send_out(&mut self) -> Result<(), SendFail> {
        // A copy, so that a compressed frame in a queue does not hold a buffer for a raw one.
        let frame = Bytes::copy_from_slice(&self.out);
        let len = frame.len() as u64;
        let (lane, cancel, stop) = (self.lane, self.common.cancel, self.common.stop);
        let began = Instant::now();
        let sent = self.common.runtime.block_on(async {
            tokio::select! {
                biased;
                sent = lane.send(frame) => Some(sent),
                () = cancel.cancelled() => None,
                () = stop.cancelled() => None,
            }
        });
        self.tally.waiting += began.elapsed();
        match sent {
            None => return Err(SendFail::Cancelled),
            Some(Err(why)) => return Err(SendFail::Lane { lane: self.number, why }),
            Some(Ok(())) => {}
        }
        *self.sequence += 1;
        self.tally.frames += 1;
        self.tally.frame_bytes += len;
        Ok(())
    }
}

/// Raw bytes that `workers` compress per second, from what a round measured.
pub(super) fn compress_speed(tally: &Tally, workers: usize) -> Option<u64> {
    if tally.trying < Duration::from_millis(1) {
        return None;
    }
    let bytes = u128::from(tally.tried_bytes) * workers as u128 * 1_000_000_000;
    u64::try_from(bytes / tally.trying.as_nanos()).ok()
}
