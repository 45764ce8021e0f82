//! What a round takes, stripe by stripe, and who sends it: a thread for each lane, or one alone
//! when there is little.

use std::sync::{PoisonError, mpsc};
use std::thread::{Builder, ScopedJoinHandle, scope};
use std::time::{Duration, Instant};

use super::Shards;
use super::cancel::Cancel;
use super::send::{Sample, SendFail};
use super::touched::{Piece, Touched};
use super::worker::{Common, Work, Worker, compress_speed};
use crate::codec::Speeds;
use crate::port::{DirtyLog, ReadUnits};
use crate::track::UnitSet;
use crate::transport::link::{FrameSender, LinkHandle};
use crate::unit::Run;

/// Time between two samples of the speed.
const SAMPLE: Duration = Duration::from_millis(50);

type Join<'s> = ScopedJoinHandle<'s, Result<(), SendFail>>;

/// Waits for all workers. Those that stopped because another failed do not say why.
fn join(workers: Vec<Join<'_>>) -> Result<(), SendFail> {
    let mut all = Ok(());
    for (number, worker) in workers.into_iter().enumerate() {
        let ended = worker.join().unwrap_or(Err(SendFail::Died(number)));
        if ended.is_err() && matches!(all, Ok(()) | Err(SendFail::Cancelled)) {
            all = ended;
        }
    }
    all
}

/// Measures progress.
pub(super) struct Progress<'a> {
    last: Instant,
    done: u64,
    samples: &'a mut Vec<Sample>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(samples: &'a mut Vec<Sample>) -> Self {
        Self { last: Instant::now(), done: 0, samples }
    }
}

/// Clears the log stripe by stripe and hands the workers what there is to do.
pub(super) struct Feeder<'a, R, L> {
    pub(super) common: Common<'a, R>,
    pub(super) log: &'a mut L,
    pub(super) pending: &'a mut UnitSet,
    pub(super) in_flight: &'a mut UnitSet,
    /// `None`: everything that is taken was written to.
    pub(super) touched: Option<Touched>,
    pub(super) shards: Shards,
    pub(super) link: &'a LinkHandle,
    pub(super) meter: Progress<'a>,
}

impl<R: ReadUnits, L: DirtyLog> Feeder<'_, R, L> {
    /// Sends the round with a thread for each lane.
    pub(super) fn send_on_threads(
        &mut self,
        lanes: &mut [(FrameSender, u64)],
        stop: &Cancel,
    ) -> Result<(), SendFail> {
        let common = self.common;
        scope(|scope| {
            let mut queues = Vec::new();
            let mut workers = Vec::new();
            for (number, (lane, sequence)) in lanes.iter_mut().enumerate() {
                let (queue, work) = mpsc::sync_channel(1);
                let worker = Worker::new(common, number, lane, sequence);
                let thread = Builder::new().name(format!("lane-{number}"));
                let spawned = thread.spawn_scoped(scope, move || worker.run(&work));
                workers.push(spawned.map_err(SendFail::Thread)?);
                queues.push(queue);
            }
            // A worker that is gone says why when it is joined.
            let give = |lane: usize, work| {
                let queue = queues.get(lane).ok_or(SendFail::Cancelled)?;
                queue.send(work).map_err(|_| SendFail::Cancelled)
            };
            let fed = self
                .feed(|lane, pieces| give(lane, Work::Pieces(pieces)))
                .and_then(|()| (0..queues.len()).try_for_each(|lane| give(lane, Work::End)));
            if fed.is_err() {
                stop.cancel();
            }
            drop(queues);
            // If a worker failed, that is why the feeder did.
            match (join(workers), fed) {
                (Ok(()), fed) => fed,
                (Err(SendFail::Cancelled), Err(why)) | (Err(why), _) => Err(why),
            }
        })
    }

    /// The same on this thread alone.
    pub(super) fn send_here(&mut self, lanes: &mut [(FrameSender, u64)]) -> Result<(), SendFail> {
        let common = self.common;
        let lanes = lanes.iter_mut().enumerate();
        let mut workers: Vec<_> = lanes
            .map(|(number, (lane, sequence))| Worker::new(common, number, lane, sequence))
            .collect();
        self.feed(|lane, pieces| {
            let worker = workers.get_mut(lane).ok_or(SendFail::Cancelled)?;
            worker.pieces(&pieces)
        })?;
        workers.into_iter().try_for_each(Worker::finish)
    }

    /// Gives each stripe's pieces to its lane.
    fn feed(
        &mut self,
        mut give: impl FnMut(usize, Vec<Piece>) -> Result<(), SendFail>,
    ) -> Result<(), SendFail> {
        for stripe in self.shards.stripes(&self.common.layout) {
            if self.common.cancel.is_cancelled() {
                return Err(SendFail::Cancelled);
            }
            let pieces = self.take(stripe)?;
            if let Some(lane) = self.shards.lane_of(stripe).filter(|_| !pieces.is_empty()) {
                give(lane, pieces)?;
            }
            self.measure();
        }
        Ok(())
    }

    /// Clears the log of a stripe, and takes what there is to send of it.
    fn take(&mut self, stripe: Run) -> Result<Vec<Piece>, SendFail> {
        let mut wrong = Ok(());
        let pending = &mut *self.pending;
        self.log
            .harvest(stripe.range(), &mut |first, word| {
                let added = pending.insert_word(first, word);
                wrong = wrong.and(added);
            })
            .map_err(|e| SendFail::Log(e.into()))?;
        wrong?;
        let mut pieces = Vec::new();
        let mut from = stripe.first().get();
        while let Some(run) = self.pending.next_run(from, stripe.end().saturating_sub(from)) {
            if run.first().get() >= stripe.end() {
                break;
            }
            let (run, _) = run.split(stripe.end() - run.first().get());
            self.pending.remove_run(run);
            self.in_flight.insert_run(run);
            match &mut self.touched {
                Some(touched) => {
                    touched.divide(self.common.ram, run, &mut pieces).map_err(SendFail::Memory)?;
                }
                None => pieces.push(Piece { run, hole: false }),
            }
            from = run.end();
        }
        Ok(pieces)
    }

    /// Takes a sample now and then, and tells the codec's policy what was measured.
    fn measure(&mut self) {
        let took = self.meter.last.elapsed();
        if took < SAMPLE {
            return;
        }
        let wire = self.link.stats().bandwidth();
        let tally = self.common.live.tally();
        let compress = compress_speed(&tally, self.shards.lanes());
        let mut shared = self.common.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.policy.set_speeds(Speeds { wire, compress });
        let done = tally.done() - tally.untouched;
        let bytes = self.common.layout.bytes_of(done - self.meter.done);
        if bytes == 0 {
            // Its time counts with what comes next: a rate of nothing would stand for ever, since
            // small rounds bring no samples.
            return;
        }
        self.meter.samples.push((bytes, took));
        self.meter.done = done;
        self.meter.last = Instant::now();
    }
}
