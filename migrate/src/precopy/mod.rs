//! Pre-copy: round after round, until it is best to switch.
//!
//! ```text
//! say RoundStart ─▶ clear, read, send ─▶ say RoundDone ─▶ hear RoundAck
//!      ▲                                                     │
//!      └──── another round ◀── decide ◀── measure ◀── look at the log
//! ```
//!
//! This is the driver around [`converge::decide`]: it measures and does, but what is decided is
//! decided there. It does not pause, save or hand over a guest; the hand-over pauses it and asks
//! for the [last round](Precopy::last_round).
//!
//! Whatever fails, the guest is unharmed. [`Precopy::abandon`] switches the log off, and so does
//! dropping.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::converge::{self, Advice, Costs, Decision, Inputs, Limits, Rate, Why, Window};
use crate::port::{DirtyLog, ReadUnits};
use crate::pump::cancel::StopOnDrop;
use crate::pump::send::Sample;
use crate::pump::{Cancel, Lanes, Live, Sealed, Source, Talk, Tally};
use crate::wire::Message;
use crate::wire::control::Sums;

mod compare;
mod error;

pub use error::PrecopyError;

#[cfg(test)]
mod tests;

/// Samples of the speed that count.
const SAMPLES: usize = 32;
/// A round of fewer bytes says little of the speed: most of its time is the cost of a round.
const LEAST_SAMPLE: u64 = 1 << 20;
/// Small rounds of which the cost of a round is taken.
const SMALL_ROUNDS: usize = 8;
/// Finished rounds that the decision looks at.
const ROUNDS: usize = 16;
/// Pause before a round that has nothing to send, or comes too early: somebody else must come first.
const IDLE: Duration = Duration::from_millis(10);

/// What a round was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundReport {
    /// Its number, from 0.
    pub round: u32,
    /// What was sent.
    pub tally: Tally,
    /// From its start to its acknowledgement.
    pub took: Duration,
    /// Units that the guest wrote meanwhile and that are to be sent again. 0 for the last round.
    pub dirty_after: u64,
    /// Time that looking at the log took.
    pub sync: Duration,
}

/// What to do when rounds do not shrink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStall {
    /// Go on until they do, or the time is up.
    Wait,
    /// Switch all the same.
    Pause,
    /// Give up.
    Cancel,
}

/// How copying ended, while the log still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Hand the guest over now.
    Switch(Advice),
    /// Give up, for the reason in the advice.
    GiveUp(Advice),
}

/// A copy in progress.
#[derive(Debug)]
pub struct Precopy<R, L> {
    /// Away while a thread works on a round.
    source: Option<Source<R, L>>,
    lanes: Option<Lanes>,
    cancel: Cancel,
    next: u32,
    began: Instant,
    /// When the log was looked at last.
    synced: Instant,
    rounds: Vec<converge::Round>,
    window: Window,
    /// What the last small rounds took beside their data, round trip included.
    beside: Vec<Duration>,
    /// Bytes of guest memory, and the time they took, over all rounds.
    total: (u64, Duration),
}

impl<R: ReadUnits + 'static, L: DirtyLog + 'static> Precopy<R, L> {
    /// Nothing is sent yet.
    pub fn new(source: Source<R, L>, lanes: Lanes, cancel: Cancel) -> Self {
        let now = Instant::now();
        Self {
            source: Some(source),
            lanes: Some(lanes),
            cancel,
            next: 0,
            began: now,
            synced: now,
            rounds: Vec::new(),
            window: Window::new(SAMPLES),
            beside: Vec::new(),
            total: (0, Duration::ZERO),
        }
    }

    /// Copies until it is best to switch, or to give up. `costs` is asked after each round what a
    /// switch costs (`None`: not rehearsed yet), and told what an exchange with the target costs
    /// beside data, if small rounds have shown it; `seen` hears of each round and of what is
    /// thought of it.
    ///
    /// # Errors
    /// [`PrecopyError`]. After a [cut](PrecopyError::is_cut) it goes on with another link.
    pub async fn run<T: Talk>(
        &mut self,
        talk: &mut T,
        limits: Limits,
        on_stall: OnStall,
        mut costs: impl FnMut(Option<Duration>) -> Option<Costs> + Send,
        mut seen: impl FnMut(&RoundReport, &Advice) + Send,
    ) -> Result<End, PrecopyError> {
        loop {
            let report = self.round_in_time(talk, limits.timeout).await?;
            let advice = self.advise(&report, limits, costs(self.exchange()))?;
            seen(&report, &advice);
            match (advice.decision, on_stall) {
                (Decision::Switch, _)
                | (Decision::Stalled | Decision::CannotFit { settled: true }, OnStall::Pause) => {
                    return Ok(End::Switch(advice));
                }
                (Decision::KeepCopying, _)
                | (Decision::Stalled, OnStall::Wait)
                | (Decision::CannotFit { settled: false }, OnStall::Pause) => {}
                (Decision::CannotFit { .. } | Decision::GiveUp, _)
                | (Decision::Stalled, OnStall::Cancel) => return Ok(End::GiveUp(advice)),
            }
            // Rounds for which nobody waits only disturb the guest.
            if report.dirty_after == 0 || advice.why == Why::NotRehearsed {
                idle(&self.cancel.clone()).await?;
            }
        }
    }

    /// A round that is cancelled when the time is up, since a link may stand still in its middle.
    async fn round_in_time<T: Talk>(
        &mut self,
        talk: &mut T,
        timeout: Duration,
    ) -> Result<RoundReport, PrecopyError> {
        let left = timeout.saturating_sub(self.began.elapsed());
        let cancel = self.cancel.clone();
        let mut round = std::pin::pin!(self.round(talk));
        tokio::select! {
            biased;
            ended = &mut round => return ended,
            () = tokio::time::sleep(left) => cancel.cancel(),
        }
        // It ends at once, and leaves everything in order.
        match round.await {
            Err(PrecopyError::Cancelled) => Err(PrecopyError::TimeUp(timeout)),
            ended => ended,
        }
    }

    /// One round while the guest runs. If the future is dropped in the middle, the copy has ended
    /// and the log is off.
    ///
    /// # Errors
    /// [`PrecopyError`].
    pub async fn round<T: Talk>(&mut self, talk: &mut T) -> Result<RoundReport, PrecopyError> {
        let mut report = self.carry(talk, false).await?;
        let source = self.source.as_mut().ok_or(PrecopyError::Abandoned)?;
        let looking = Instant::now();
        let left = source.sync()?;
        let layout = source.layout();
        report.sync = looking.elapsed();
        report.dirty_after = left;
        let sent = layout.bytes_of(report.tally.done() - report.tally.untouched);
        let samples = samples_of(source.samples(), sent, report.took);
        self.note(&samples, sent, report.took);
        let round = converge::Round { sent, left: layout.bytes_of(left), took: report.took };
        if self.rounds.len() >= ROUNDS {
            self.rounds.remove(0);
        }
        self.rounds.push(round);
        Ok(report)
    }

    fn note(&mut self, samples: &[Sample], sent: u64, took: Duration) {
        if sent >= LEAST_SAMPLE {
            for (bytes, took) in samples {
                self.window.push(*bytes, *took);
            }
        } else if self.next > 1 {
            let carrying = Duration::from_nanos(nanos_for(sent, self.rate().usual));
            if self.beside.len() >= SMALL_ROUNDS {
                self.beside.remove(0);
            }
            self.beside.push(took.saturating_sub(carrying));
        }
        let (bytes, time) = self.total;
        self.total = (bytes.saturating_add(sent), time.saturating_add(took));
    }

    /// What is thought of going on.
    fn advise(
        &mut self,
        report: &RoundReport,
        limits: Limits,
        costs: Option<Costs>,
    ) -> Result<Advice, PrecopyError> {
        let layout = self.source.as_ref().ok_or(PrecopyError::Abandoned)?.layout();
        let left = layout.bytes_of(report.dirty_after);
        let since = std::mem::replace(&mut self.synced, Instant::now()).elapsed();
        Ok(converge::decide(&Inputs {
            rate: Some(self.rate()),
            left,
            dirty_rate: per_second(left, since),
            costs,
            untried: self.beside.is_empty() && left < LEAST_SAMPLE,
            rounds: &self.rounds,
            elapsed: self.began.elapsed(),
            limits,
        }))
    }

    /// The speed to count on; that of the whole copy, if it is so small that there are no samples.
    fn rate(&self) -> Rate {
        self.window.rate().unwrap_or_else(|| {
            let (bytes, time) = self.total;
            let rate = per_second(bytes.max(1), time);
            Rate { low: rate, usual: rate }
        })
    }

    /// What three of four small rounds took at most beside their data.
    fn exchange(&self) -> Option<Duration> {
        let mut sorted = self.beside.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 3 / 4).copied()
    }

    /// Sends what is left of a guest that stands still, whose state is saved, and compares the
    /// digests of both sides. Only afterwards the target may run it.
    ///
    /// # Errors
    /// [`PrecopyError::Differs`] names the pages that differ; and as for a round.
    pub async fn last_round<T: Talk>(&mut self, talk: &mut T) -> Result<RoundReport, PrecopyError> {
        let source = self.source.as_mut().ok_or(PrecopyError::Abandoned)?;
        let looking = Instant::now();
        source.sync()?;
        let sync = looking.elapsed();
        let report = self.carry(talk, true).await?;
        Ok(RoundReport { sync, ..report })
    }

    /// A round from start to acknowledgement; with sums if it is the last.
    async fn carry<T: Talk>(
        &mut self,
        talk: &mut T,
        last: bool,
    ) -> Result<RoundReport, PrecopyError> {
        let carried = self.try_carry(talk, last).await;
        if carried.is_err()
            && let Some(source) = &mut self.source
        {
            source.reclaim()?;
        }
        carried
    }

    async fn try_carry<T: Talk>(
        &mut self,
        talk: &mut T,
        last: bool,
    ) -> Result<RoundReport, PrecopyError> {
        if self.cancel.is_cancelled() {
            return Err(PrecopyError::Cancelled);
        }
        let began = Instant::now();
        let round = self.next;
        say(talk, &Message::RoundStart { round }, &self.cancel).await?;
        let tally = self.send(round).await?;
        let source = self.source.as_mut().ok_or(PrecopyError::Abandoned)?;
        let ours = source.sum();
        let sums = if last { vec![ours] } else { vec![] };
        let sums: Sums = sums.try_into().unwrap_or_default();
        let Tally { units, zeros, .. } = tally;
        let done = Message::RoundDone { round, units, zeros, sums };
        say(talk, &done, &self.cancel).await?;
        let theirs = acknowledgement(talk, &self.cancel, round, (units, zeros)).await?;
        source.acknowledge()?;
        self.next = round.saturating_add(1);
        if last && theirs.as_slice() != [ours] {
            return Err(PrecopyError::Differs(
                compare::differing(talk, source, &self.cancel).await?,
            ));
        }
        let took = began.elapsed();
        Ok(RoundReport { round, tally, took, dirty_after: 0, sync: Duration::ZERO })
    }

    /// The round's data, sent by threads that may block.
    async fn send(&mut self, round: u32) -> Result<Tally, PrecopyError> {
        let mut source = self.source.take().ok_or(PrecopyError::Abandoned)?;
        let mut lanes = self.lanes.take().ok_or(PrecopyError::Abandoned)?;
        let stop = self.cancel.clone();
        let mut guard = StopOnDrop(Some(stop.clone()));
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            let sent = source.send_round(round, &mut lanes, &stop, &runtime);
            (source, lanes, sent)
        });
        let ended = work.await;
        guard.disarm();
        let (source, lanes, sent) = ended.map_err(|_| PrecopyError::Abandoned)?;
        (self.source, self.lanes) = (Some(source), Some(lanes));
        Ok(sent?)
    }

    /// How far the round is that goes on, for progress displays; `None` in the middle of one: ask
    /// before.
    pub fn live(&self) -> Option<Live> {
        self.source.as_ref().map(Source::live)
    }

    /// Goes on over another link to the same target, after a cut.
    pub fn reconnect(&mut self, lanes: Lanes) {
        self.lanes = Some(lanes);
        // The target may hold the round that was cut, or not. A number never comes twice.
        self.next = self.next.saturating_add(1);
    }

    /// Ends the copy: the log is off, and the guest runs at full speed.
    ///
    /// # Errors
    /// The log could not be switched off in order.
    pub fn abandon(self) -> Result<(), PrecopyError> {
        self.seal().map(drop)
    }

    /// Ends the copy of a guest that stands still for good: the log is off, and what an audit
    /// needs is kept.
    ///
    /// # Errors
    /// The log could not be switched off in order.
    pub fn seal(self) -> Result<Sealed<R>, PrecopyError> {
        let source = self.source.ok_or(PrecopyError::Abandoned)?;
        Ok(source.finish()?)
    }
}

/// The samples of a round; a short one is a sample itself.
fn samples_of(samples: &[Sample], sent: u64, took: Duration) -> Vec<Sample> {
    if samples.is_empty() && sent > 0 { vec![(sent, took)] } else { samples.to_vec() }
}

fn nanos_for(bytes: u64, rate: u64) -> u64 {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

/// Leaves the processor to others for a moment.
async fn idle(cancel: &Cancel) -> Result<(), PrecopyError> {
    tokio::select! {
        () = cancel.cancelled() => Err(PrecopyError::Cancelled),
        () = tokio::time::sleep(IDLE) => Ok(()),
    }
}

/// Says `message`, unless somebody says stop first.
async fn say<T: Talk>(
    talk: &mut T,
    message: &Message,
    cancel: &Cancel,
) -> Result<(), PrecopyError> {
    tokio::select! {
        biased;
        said = talk.say(message) => Ok(said?),
        () = cancel.cancelled() => Err(PrecopyError::Cancelled),
    }
}

/// The next message, unless somebody says stop first.
async fn hear<T: Talk>(talk: &mut T, cancel: &Cancel) -> Result<Message, PrecopyError> {
    tokio::select! {
        biased;
        message = talk.hear() => Ok(message?),
        () = cancel.cancelled() => Err(PrecopyError::Cancelled),
    }
}

/// Waits for the acknowledgement of `round`, and gives the sums that came with it.
async fn acknowledgement<T: Talk>(
    talk: &mut T,
    cancel: &Cancel,
    expected: u32,
    sent: (u64, u64),
) -> Result<Sums, PrecopyError> {
    loop {
        let message = hear(talk, cancel).await?;
        match message {
            Message::RoundAck { round, units, zeros, sums } if round == expected => {
                let found = (units, zeros);
                if found != sent {
                    return Err(PrecopyError::Count { round, sent, found });
                }
                return Ok(sums);
            }
            Message::Progress { .. } => {}
            other => return Err(PrecopyError::unexpected(&other)),
        }
    }
}
