//! What the pumps see of a connection between two processes.
//!
//! A [`Link`] is one control stream in both directions, one *urgent* lane and any number of *bulk*
//! lanes from the dialling to the accepting side. Each of them carries frames in order; between
//! them there is no order at all, except that control goes out before urgent, and urgent before
//! bulk. Every queue is bounded: at most its depth × its frame limit lies in it, and a sender
//! waits when it is full.
//!
//! A frame that was sent is queued, not delivered: what must have arrived is acknowledged by the
//! protocol above. [`LinkHandle::close`] throws away what is still queued, so the side that has
//! *received* the last message closes.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::frame::{self, FrameError};

/// Most bytes of a close reason; longer ones are cut at a character boundary.
pub const REASON_LIMIT: usize = 900;
/// How much later than its streams a link may end.
const REASON_TIME: Duration = Duration::from_secs(1);

/// Limits of one stream of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Most bytes of one frame. The same on both ends, part of the protocol.
    pub frame: usize,
    /// Most frames in the queue of one end; at least 1.
    pub depth: usize,
}

/// Limits of a whole link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLimits {
    /// The control stream, each direction.
    pub control: StreamLimits,
    /// The urgent lane.
    pub urgent: StreamLimits,
    /// Each bulk lane.
    pub bulk: StreamLimits,
}

impl Default for LinkLimits {
    /// Control frames up to 16 MiB (a machine's state), lanes up to 256 KiB a frame; 4 MiB of
    /// queue on a bulk lane.
    fn default() -> Self {
        Self {
            control: StreamLimits { frame: 16 << 20, depth: 4 },
            urgent: StreamLimits { frame: 256 << 10, depth: 4 },
            bulk: StreamLimits { frame: 256 << 10, depth: 16 },
        }
    }
}

/// Why a link was closed, as one side tells the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// Everything was said.
    Done,
    /// The work was cancelled.
    Cancelled,
    /// The peer will not talk to us, or not about this.
    Refused,
    /// We broke the protocol, in the peer's opinion.
    Protocol,
    /// The peer failed.
    Failed,
    /// A code this version does not know.
    Other(u32),
}

impl CloseCode {
    /// The number on the wire.
    pub fn to_u32(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Cancelled => 1,
            Self::Refused => 2,
            Self::Protocol => 3,
            Self::Failed => 4,
            Self::Other(code) => code,
        }
    }

    /// The code with this number.
    pub fn from_u32(code: u32) -> Self {
        match code {
            0 => Self::Done,
            1 => Self::Cancelled,
            2 => Self::Refused,
            3 => Self::Protocol,
            4 => Self::Failed,
            other => Self::Other(other),
        }
    }
}

/// A close with its reason, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The kind of reason, for programs.
    pub code: CloseCode,
    /// At most [`REASON_LIMIT`] bytes, without control characters.
    pub reason: String,
}

impl Close {
    /// A close; the reason is cut and cleaned to what may be shown and sent.
    pub fn new(code: CloseCode, reason: impl AsRef<str>) -> Self {
        Self { code, reason: printable(reason.as_ref()) }
    }

    /// The close that a peer's bytes say. They are untrusted.
    pub fn from_peer(code: u64, reason: &[u8]) -> Self {
        let code = u32::try_from(code).unwrap_or(u32::MAX);
        Self::new(CloseCode::from_u32(code), String::from_utf8_lossy(reason))
    }
}

impl fmt::Display for Close {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.reason.as_str()) {
            (CloseCode::Other(code), "") => write!(f, "close code {code}, no reason given"),
            (code, "") => write!(f, "{code:?}, no reason given"),
            (_, reason) => f.write_str(reason),
        }
    }
}

/// `text` without control characters (a peer must not write to a terminal) and not too long.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > REASON_LIMIT {
            break;
        }
        out.push(c);
    }
    out
}

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Ended {
    /// This side closed it.
    #[error("the link was closed here: {0}")]
    Here(Close),
    /// The peer closed it.
    #[error("the peer closed the link: {0}")]
    Peer(Close),
    /// Nothing was heard for the idle time, or the network refused to carry anything.
    #[error("the link was lost: {0}")]
    Lost(String),
    /// The peer sent what the transport does not allow.
    #[error("the peer broke the link's rules: {0}")]
    Broken(String),
}

/// Why a frame could not be sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// The frame is not allowed on this stream; the link is as before.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The link has ended.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Counters of one connection of a link. All are totals since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Smoothed round trip.
    pub rtt: Duration,
    /// UDP payload sent, repeats and acknowledgements included.
    pub sent_bytes: u64,
    /// UDP payload received.
    pub received_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets given up for lost.
    pub lost_packets: u64,
    /// Bytes given up for lost.
    pub lost_bytes: u64,
    /// Bytes the congestion controller allows in flight.
    pub congestion_window: u64,
    /// UDP payload of a full datagram, in bytes.
    pub mtu: u16,
    /// Content of the frames that the transport took over (sender) or gave out (receiver).
    pub frame_bytes: u64,
    /// Time during which the transport had more to send than it could.
    pub busy: Duration,
    /// Bytes per second while there was always something to send; `None` before that was so.
    pub bandwidth: Option<u64>,
    /// Time since the peer was last heard.
    pub silent: Duration,
}

/// Counters of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The connection of control and urgent frames.
    pub control: LaneStats,
    /// The bulk lanes.
    pub lanes: Vec<LaneStats>,
}

impl LinkStats {
    /// Sum of the bandwidth of all lanes that know theirs, in bytes per second.
    pub fn bandwidth(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|l| l.bandwidth).reduce(u64::saturating_add)
    }

    /// UDP payload sent on all connections.
    pub fn sent_bytes(&self) -> u64 {
        self.lanes.iter().map(|l| l.sent_bytes).fold(self.control.sent_bytes, u64::saturating_add)
    }

    /// Time since the peer was last heard on any connection.
    pub fn silent(&self) -> Duration {
        self.lanes.iter().map(|l| l.silent).fold(self.control.silent, Duration::min)
    }
}

/// What the connections of a link share: how it ended, and their counters.
#[derive(Debug)]
pub(crate) struct Shared {
    ended: watch::Sender<Option<Ended>>,
    stats: Mutex<LinkStats>,
}

impl Shared {
    pub(crate) fn new(lanes: usize) -> Arc<Self> {
        let stats = LinkStats { lanes: vec![LaneStats::default(); lanes], ..LinkStats::default() };
        Arc::new(Self { ended: watch::Sender::new(None), stats: Mutex::new(stats) })
    }

    /// Records the end of the link; the first reason stands.
    pub(crate) fn end(&self, how: Ended) {
        self.ended.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(how);
            }
            first
        });
    }

    pub(crate) async fn ended(&self) -> Ended {
        let mut watch = self.ended.subscribe();
        loop {
            if let Some(how) = watch.borrow_and_update().clone() {
                return how;
            }
            // The sender lives in `self`, so this cannot fail while we wait.
            if watch.changed().await.is_err() {
                return Ended::Lost("the link is gone".into());
            }
        }
    }

    /// How it ended, for whoever finds one of its streams gone: a connection first lets its
    /// streams give out what arrived, and tells the reason after that.
    async fn how_it_ends(&self) -> Ended {
        timeout(REASON_TIME, self.ended()).await.unwrap_or_else(|_| without_reason())
    }

    /// The same on a plain thread.
    fn how_it_ends_blocking(&self) -> Ended {
        let began = Instant::now();
        loop {
            if let Some(how) = self.ended.borrow().clone() {
                return how;
            }
            if began.elapsed() > REASON_TIME {
                return without_reason();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stores the counters of the control connection (`None`) or of a lane.
    pub(crate) fn record(&self, lane: Option<usize>, stats: LaneStats) {
        let mut all = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        match lane {
            None => all.control = stats,
            Some(index) => {
                if let Some(slot) = all.lanes.get_mut(index) {
                    *slot = stats;
                }
            }
        }
    }
}

fn without_reason() -> Ended {
    Ended::Lost("the thread that served this stream is gone without a reason".into())
}

/// Closes the link when the last handle and the last stream of it are dropped.
#[derive(Debug)]
pub(crate) struct Guard(pub(crate) Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.end(Ended::Here(Close::new(CloseCode::Done, "nobody uses the link any more")));
    }
}

/// Watches and closes a link. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LinkHandle(Arc<Guard>);

impl LinkHandle {
    pub(crate) fn new(guard: Arc<Guard>) -> Self {
        Self(guard)
    }

    /// Closes the link at once: what is queued is thrown away, the peer gets code and reason.
    /// Without effect on a link that has ended.
    pub fn close(&self, close: Close) {
        self.0.0.end(Ended::Here(close));
    }

    /// Waits until the link has ended.
    pub async fn ended(&self) -> Ended {
        self.0.0.ended().await
    }

    /// The end, if it has come.
    pub fn has_ended(&self) -> Option<Ended> {
        self.0.0.ended.borrow().clone()
    }

    /// The latest counters; taken ten times a second and once more by each connection right
    /// after its end.
    pub fn stats(&self) -> LinkStats {
        self.0.0.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The sending end of a stream of frames. Dropping it ends the stream after what is queued.
#[derive(Debug)]
pub struct FrameSender {
    queue: mpsc::Sender<Bytes>,
    limit: usize,
    link: Arc<Guard>,
}

impl FrameSender {
    /// Most bytes of one frame.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A frame for a link that has ended is refused at once, also while the queue has room.
    fn check(&self, frame: &Bytes) -> Result<(), SendError> {
        frame::check_len(frame.len(), self.limit)?;
        self.link.0.ended.borrow().clone().map_or(Ok(()), |how| Err(how.into()))
    }

    /// Queues a frame, waiting for room. Safe to cancel: the frame is queued wholly or not.
    ///
    /// # Errors
    /// The frame is empty or too long for the stream, or the link has ended.
    pub async fn send(&self, frame: Bytes) -> Result<(), SendError> {
        self.check(&frame)?;
        match self.queue.send(frame).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.link.0.how_it_ends().await.into()),
        }
    }

    /// The same from a plain thread. Must not be called on a thread of an async runtime.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn blocking_send(&self, frame: Bytes) -> Result<(), SendError> {
        self.check(&frame)?;
        self.queue.blocking_send(frame).map_err(|_| self.link.0.how_it_ends_blocking().into())
    }
}

/// The receiving end of a stream of frames.
#[derive(Debug)]
pub struct FrameReceiver {
    queue: mpsc::Receiver<Bytes>,
    /// Set by the transport when the peer has ended the stream in order.
    finished: Arc<AtomicBool>,
    link: Arc<Guard>,
}

impl FrameReceiver {
    /// The next frame, or `None` when the peer has ended the stream. Safe to cancel.
    ///
    /// # Errors
    /// The link ended before the stream did. Frames that arrived before are given out first.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Ended> {
        match self.queue.recv().await {
            None if !self.is_finished() => Err(self.link.0.how_it_ends().await),
            frame => Ok(frame),
        }
    }

    /// The same from a plain thread. Must not be called on a thread of an async runtime.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn blocking_recv(&mut self) -> Result<Option<Bytes>, Ended> {
        match self.queue.blocking_recv() {
            None if !self.is_finished() => Err(self.link.0.how_it_ends_blocking()),
            frame => Ok(frame),
        }
    }

    fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }
}

/// Both directions of the control stream.
#[derive(Debug)]
pub struct Control {
    /// To the peer.
    pub sender: FrameSender,
    /// From the peer.
    pub receiver: FrameReceiver,
}

/// One end of a link. `L` says which: the dialling side sends data, the accepting side receives.
#[derive(Debug)]
pub struct Link<L> {
    /// Messages, in order, in both directions; before everything else.
    pub control: Control,
    /// Data that somebody waits for; before bulk.
    pub urgent: L,
    /// Bulk data. No order between lanes.
    pub lanes: Vec<L>,
    /// Counters, close, end.
    pub handle: LinkHandle,
}

/// The end that sends data.
pub type SourceLink = Link<FrameSender>;
/// The end that receives data.
pub type TargetLink = Link<FrameReceiver>;

/// The transport's side of a [`FrameSender`].
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) queue: mpsc::Receiver<Bytes>,
    pub(crate) limit: usize,
}

/// The transport's side of a [`FrameReceiver`].
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) queue: mpsc::Sender<Bytes>,
    pub(crate) limit: usize,
    finished: Arc<AtomicBool>,
}

impl Incoming {
    /// The peer has ended the stream in order.
    pub(crate) fn finish(self) {
        self.finished.store(true, Ordering::Release);
    }
}

pub(crate) fn outgoing(link: &Arc<Guard>, limits: StreamLimits) -> (FrameSender, Outgoing) {
    let (queue, rx) = mpsc::channel(limits.depth.max(1));
    let sender = FrameSender { queue, limit: limits.frame, link: Arc::clone(link) };
    (sender, Outgoing { queue: rx, limit: limits.frame })
}

pub(crate) fn incoming(link: &Arc<Guard>, limits: StreamLimits) -> (Incoming, FrameReceiver) {
    let (queue, rx) = mpsc::channel(limits.depth.max(1));
    let finished = Arc::new(AtomicBool::new(false));
    let receiver =
        FrameReceiver { queue: rx, finished: Arc::clone(&finished), link: Arc::clone(link) };
    (Incoming { queue, limit: limits.frame, finished }, receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream's task may end a moment before its connection knows how the link ended.
    #[tokio::test]
    async fn a_reason_that_comes_a_moment_late_is_the_reason() {
        let refused = || Ended::Peer(Close::new(CloseCode::Refused, "no room"));
        let limits = StreamLimits { frame: 100, depth: 1 };
        let shared = Shared::new(0);
        let guard = Arc::new(Guard(Arc::clone(&shared)));
        let (into, mut receiver) = incoming(&guard, limits);
        let (sender, out) = outgoing(&guard, limits);
        drop((into, out));
        let late = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            shared.end(refused());
        };
        let frame = Bytes::from_static(b"x");
        let (heard, sent, ()) = tokio::join!(receiver.recv(), sender.send(frame), late);
        assert_eq!(heard, Err(refused()));
        assert_eq!(sent, Err(refused().into()));
    }

    #[test]
    fn on_a_plain_thread_too() {
        let refused = || Ended::Peer(Close::new(CloseCode::Refused, "no room"));
        let limits = StreamLimits { frame: 100, depth: 1 };
        let shared = Shared::new(0);
        let guard = Arc::new(Guard(Arc::clone(&shared)));
        let (into, mut receiver) = incoming(&guard, limits);
        drop(into);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            shared.end(refused());
        });
        assert_eq!(receiver.blocking_recv(), Err(refused()));
        late.join().unwrap();
    }
}
