//! The target: lanes into memory, rounds acknowledged, sums told.
//!
//! Each lane has a thread that checks and writes what comes. The conversation about rounds is
//! [`Target::converse`]: it answers what concerns rounds and sums, and hands on every other
//! message. A round is acknowledged when every lane has carried its end and all have counted what
//! the source has; what is acknowledged lies in memory.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

use tokio::sync::mpsc;

use super::Shards;
pub use super::arrive::LaneError;
use super::arrive::{Event, Lane, Place};
use super::talk::{Talk, TalkError};
use crate::codec::{Digest, DigestKey, DigestTable};
use crate::port::WriteUnits;
use crate::transport::link::{Close, CloseCode, Ended, FrameReceiver, LinkHandle};
use crate::unit::{Layout, Run, UnitError};
use crate::wire::control::{Span, Sums};
use crate::wire::{List, Message, Version};

/// Why receiving failed.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// What came on a lane is not acceptable: the peer is broken, or something on the way.
    #[error("data lane {lane}: {why}")]
    Lane {
        /// Its number.
        lane: usize,
        /// Why.
        why: LaneError,
    },
    /// The link ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The conversation failed.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// The source said something that makes no sense now.
    #[error("the source broke the order of rounds: {0}")]
    Order(&'static str),
    /// The lanes carried other numbers than the source says.
    #[error(
        "round {round}: {units} units and {zeros} zero units came, \
         the source sent {sent_units} and {sent_zeros}"
    )]
    Count {
        /// The round.
        round: u32,
        /// What came.
        units: u64,
        /// What came.
        zeros: u64,
        /// What was sent.
        sent_units: u64,
        /// What was sent.
        sent_zeros: u64,
    },
    /// Sums were asked of units that are not there.
    #[error("sums were asked of what is not there: {0}")]
    Span(#[from] UnitError),
    /// Sums were asked of a region that is not there.
    #[error("sums were asked of region {0}, which was not announced")]
    Region(u16),
    /// The link has no lanes.
    #[error("a link without data lanes")]
    NoLanes,
    /// No thread could be had.
    #[error("no thread for a data lane: {0}; is the limit of tasks too low?")]
    Thread(#[source] std::io::Error),
}

impl RecvError {
    /// Whether a new link could go on where this one ended.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Ended(ended) => matches!(ended, Ended::Lost(_)),
            Self::Talk(why) => why.is_cut(),
            _ => false,
        }
    }
}

/// What one round has shown so far.
#[derive(Debug, Default)]
struct Open {
    /// What the source says of the round that is done.
    done: Option<Done>,
    /// The round that was started.
    started: Option<u32>,
    /// The round that lanes ended.
    lanes: Option<u32>,
    ended: usize,
    units: u64,
    zeros: u64,
}

#[derive(Debug)]
struct Done {
    round: u32,
    units: u64,
    zeros: u64,
    sums: Sums,
}

/// How much has arrived; for progress displays. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Written(Arc<AtomicU64>);

impl Written {
    /// Bytes of memory with content written so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A region at the target, on one link after another.
pub struct Target<W> {
    place: Arc<Place<W>>,
    lanes: usize,
    handle: Option<LinkHandle>,
    events: mpsc::Receiver<Event>,
    open: Open,
    verified: Option<u32>,
}

impl<W> std::fmt::Debug for Target<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("lanes", &self.lanes)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

/// Stripes for so many lanes.
fn shards(lanes: usize) -> Result<Shards, RecvError> {
    NonZeroUsize::new(lanes).map(Shards::new).ok_or(RecvError::NoLanes)
}

impl<W: WriteUnits + 'static> Target<W> {
    /// Nothing has come; `ram` is untouched.
    pub fn new(version: Version, region: u16, ram: W, key: DigestKey) -> Self {
        let layout = ram.layout();
        let place = Place {
            ram,
            layout,
            region,
            version,
            key,
            table: Mutex::new(DigestTable::new(layout)),
            open: AtomicU64::new(0),
            written: Arc::default(),
        };
        let events = mpsc::channel(1).1;
        let open = Open::default();
        Self { place: Arc::new(place), lanes: 0, handle: None, events, open, verified: None }
    }

    /// Takes the lanes of a link, the first or one after a cut. Returns when nothing of the link
    /// before can be written to memory any more; that link is closed.
    ///
    /// # Errors
    /// [`RecvError::NoLanes`] or [`RecvError::Thread`].
    pub async fn attach(
        &mut self,
        lanes: Vec<FrameReceiver>,
        handle: LinkHandle,
    ) -> Result<(), RecvError> {
        let shards = shards(lanes.len())?;
        self.attach_sharded(lanes, handle, shards).await
    }

    pub(crate) async fn attach_sharded(
        &mut self,
        lanes: Vec<FrameReceiver>,
        handle: LinkHandle,
        shards: Shards,
    ) -> Result<(), RecvError> {
        self.detach().await;
        self.lanes = lanes.len();
        let (events, receiver) = mpsc::channel(lanes.len().max(1));
        self.events = receiver;
        self.handle = Some(handle);
        for (number, mut frames) in lanes.into_iter().enumerate() {
            let lane = Lane::new(Arc::clone(&self.place), shards, number);
            let events = events.clone();
            Builder::new()
                .name(format!("lane-{number}"))
                .spawn(move || lane.run(&mut frames, &events))
                .map_err(RecvError::Thread)?;
        }
        Ok(())
    }

    /// Closes the link, and returns when nothing of it can be written to memory any more.
    pub async fn detach(&mut self) {
        if let Some(handle) = self.handle.take() {
            handle.close(Close::new(CloseCode::Failed, "the target takes no more on this link"));
        }
        // Each thread holds a sender: the queue ends when the last of them has.
        while self.events.recv().await.is_some() {}
        self.open = Open::default();
    }

    /// Answers what concerns rounds and sums; returns the first other message.
    ///
    /// Safe to drop and call again, except that an answer may be cut off: then the link must end.
    ///
    /// # Errors
    /// [`RecvError`]. If it is not a cut, the peer is not to be trusted with this guest.
    pub async fn converse<T: Talk>(&mut self, talk: &mut T) -> Result<Message, RecvError> {
        loop {
            tokio::select! {
                // Ends that were reported come before what the conversation says of the link.
                biased;
                Some(event) = self.events.recv() => self.event(event)?,
                message = talk.hear() => match message? {
                    Message::RoundStart { round } => self.start(round)?,
                    Message::RoundDone { round, units, zeros, sums } => {
                        self.open.done = Some(Done { round, units, zeros, sums });
                    }
                    Message::AskSums { span, parts } => {
                        let sums = self.sums(span, parts)?;
                        talk.say(&Message::AnswerSums { span, sums }).await?;
                    }
                    other => return Ok(other),
                },
            }
            if let Some(ack) = self.complete()? {
                talk.say(&ack).await?;
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), RecvError> {
        match event {
            Event::Failed(why) => Err(why),
            Event::RoundEnd { round, units, zeros } => {
                // A lane may be faster than the message that starts the round.
                if *self.open.lanes.get_or_insert(round) != round {
                    return Err(RecvError::Order("lanes ended different rounds"));
                }
                self.open.ended += 1;
                self.open.units = self.open.units.saturating_add(units);
                self.open.zeros = self.open.zeros.saturating_add(zeros);
                Ok(())
            }
        }
    }

    fn start(&mut self, round: u32) -> Result<(), RecvError> {
        let open = self.place.open.load(Ordering::Acquire);
        if self.open.started.is_some() {
            return Err(RecvError::Order("a round was started before the last was acknowledged"));
        }
        if u64::from(round) < open {
            return Err(RecvError::Order("a round was started that was acknowledged before"));
        }
        self.open.started = Some(round);
        Ok(())
    }

    /// The acknowledgement, if everything of the round has come.
    fn complete(&mut self) -> Result<Option<Message>, RecvError> {
        if self.open.ended > self.lanes {
            return Err(RecvError::Order("a lane ended a round twice"));
        }
        let Some(done) = &self.open.done else { return Ok(None) };
        if self.open.started != Some(done.round) {
            return Err(RecvError::Order("a round is done that was not started"));
        }
        if self.open.ended < self.lanes {
            return Ok(None);
        }
        if self.open.lanes != self.open.started {
            return Err(RecvError::Order("the lanes ended another round than the one started"));
        }
        let (units, zeros) = (self.open.units, self.open.zeros);
        let (sent_units, sent_zeros, round) = (done.units, done.zeros, done.round);
        if (units, zeros) != (sent_units, sent_zeros) {
            return Err(RecvError::Count { round, units, zeros, sent_units, sent_zeros });
        }
        let sums = match done.sums.as_slice() {
            [] => vec![],
            theirs => {
                let ours = vec![self.sum()];
                self.verified = (theirs == ours).then_some(round);
                ours
            }
        };
        self.open = Open::default();
        self.place.open.store(u64::from(round) + 1, Ordering::Release);
        let sums = sums.try_into().unwrap_or_default();
        Ok(Some(Message::RoundAck { round, units, zeros, sums }))
    }

    fn sums<const MAX: usize>(
        &self,
        span: Span,
        parts: u16,
    ) -> Result<List<Digest, MAX>, RecvError> {
        if span.region != self.place.region {
            return Err(RecvError::Region(span.region));
        }
        let run = span.run(&self.place.layout)?;
        let table = self.place.table.lock().unwrap_or_else(PoisonError::into_inner);
        let sums: Vec<Digest> = equal_parts(run, parts).map(|part| table.sum_of(part)).collect();
        sums.try_into().map_err(|_| RecvError::Order("more sums were asked for than there can be"))
    }

    /// Takes no more data: frames that still come break the link. The guest is about to run.
    pub fn seal(&self) {
        self.place.open.store(u64::MAX, Ordering::Release);
    }

    /// What all units that came add up to.
    pub fn sum(&self) -> Digest {
        self.place.table.lock().unwrap_or_else(PoisonError::into_inner).sum()
    }

    /// Whether the last round that was acknowledged came with the source's sums, and they are ours.
    pub fn is_verified(&self) -> bool {
        let open = self.place.open.load(Ordering::Acquire);
        self.verified.is_some_and(|round| u64::from(round) + 1 == open)
    }

    /// How the region divides.
    pub fn layout(&self) -> Layout {
        self.place.layout
    }

    /// Bytes of memory with content written so far.
    pub fn written(&self) -> u64 {
        self.place.written.load(Ordering::Relaxed)
    }

    /// The same while lanes are at work, for progress displays.
    pub fn live(&self) -> Written {
        Written(Arc::clone(&self.place.written))
    }
}

/// The equal parts of a run, at most `parts`; the last may be shorter. The same on both sides.
pub(crate) fn equal_parts(run: Run, parts: u16) -> impl Iterator<Item = Run> {
    run.parts(run.count().div_ceil(u64::from(parts.max(1))))
}

#[cfg(test)]
mod tests;
