//! Openings, welcomes, and frames onto streams and back.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream};

use crate::transport::{
    frame::{self, Framer},
    link::{Ended, Incoming, Outgoing, Shared},
};

const MAGIC: &[u8; 7] = b"MIGLINK";
const VERSION: u8 = 1;
const WELCOME: u8 = 255;
const OPENING_LEN: usize = 13;
const WELCOME_LEN: usize = 9;

/// Priority of bulk; others are above it.
pub(super) const BULK: i32 = 0;
/// Priority of data that somebody waits for.
pub(super) const URGENT: i32 = 1;
/// Priority of control.
pub(super) const CONTROL: i32 = 2;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Control { lanes: u16 },
    Urgent,
    Bulk { index: u16, lanes: u16 },
    Session,
}

impl Role {
    /// The bytes that a dialler sends first on a stream of this role.
    pub(super) fn opening(self) -> [u8; OPENING_LEN] {
        let (role, index, lanes) = match self {
            Self::Control { lanes } => (0, 0, lanes),
            Self::Urgent => (1, 0, 0),
            Self::Bulk { index, lanes } => (2, index, lanes),
            Self::Session => (3, 0, 0),
        };
        let mut out = [0; OPENING_LEN];
        out[..7].copy_from_slice(MAGIC);
        out[7] = VERSION;
        out[8] = role;
        out[9..11].copy_from_slice(&u16::to_le_bytes(index));
        out[11..13].copy_from_slice(&u16::to_le_bytes(lanes));
        out
    }

    /// Reads the opening of a stream and checks that it is for this role, exactly.
    pub(super) async fn expect(self, stream: &mut RecvStream) -> Result<(), OpenError> {
        let mut got = [0; OPENING_LEN];
        stream.read_exact(&mut got).await?;
        if got == self.opening() {
            Ok(())
        } else {
            Err(OpenError::Rules(format!(
                "an opening for {self:?} was expected; does the peer have another number of lanes?"
            )))
        }
    }
}

/// The bytes that answer an opening.
pub(super) fn welcome() -> [u8; WELCOME_LEN] {
    let mut out = [VERSION; WELCOME_LEN];
    out[..7].copy_from_slice(MAGIC);
    out[8] = WELCOME;
    out
}

/// Waits for the welcome.
pub(super) async fn expect_welcome(stream: &mut RecvStream) -> Result<(), OpenError> {
    let mut got = [0; WELCOME_LEN];
    stream.read_exact(&mut got).await?;
    if got == welcome() {
        Ok(())
    } else {
        Err(OpenError::Rules("its answer is not a welcome".into()))
    }
}

/// Why a stream did not open.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The connection ended.
    Lost(quinn::ConnectionError),
    /// The peer broke the rules.
    Rules(String),
}

impl From<ReadExactError> for OpenError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(ReadError::ConnectionLost(e)) => Self::Lost(e),
            other => Self::Rules(other.to_string()),
        }
    }
}

impl From<quinn::WriteError> for OpenError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(e) => Self::Lost(e),
            other => Self::Rules(other.to_string()),
        }
    }
}

impl From<quinn::ConnectionError> for OpenError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost(error)
    }
}

/// What the streams of one connection count.
#[derive(Debug, Default)]
pub(super) struct Flow(Mutex<FlowState>);

#[derive(Debug, Default)]
struct FlowState {
    frame_bytes: u64,
    busy: Duration,
    busy_since: Option<Instant>,
}

impl Flow {
    fn begin(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy_since = Some(Instant::now());
    }

    fn count(&self, bytes: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).frame_bytes += bytes as u64;
    }

    fn end(&self, bytes: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.frame_bytes += bytes as u64;
        if let Some(since) = state.busy_since.take() {
            state.busy += since.elapsed();
        }
    }

    /// Bytes of frames so far, and the time with a backlog, the present one included.
    pub(super) fn totals(&self) -> (u64, Duration) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = state.busy_since.map(|since| since.elapsed()).unwrap_or_default();
        (state.frame_bytes, state.busy + running)
    }
}

/// Writes queued frames to a stream until the queue ends, then ends the stream.
///
/// A failed write means that the connection is ending, which is somebody else's business.
pub(super) async fn carry_out(mut out: Outgoing, mut stream: SendStream, flow: &Flow) {
    while let Some(body) = out.queue.recv().await {
        // The sender has checked the length already.
        let Ok(header) = frame::header(body.len(), out.limit) else { return };
        let len = body.len();
        flow.begin();
        let written = stream.write_all_chunks(&mut [Bytes::copy_from_slice(&header), body]).await;
        flow.end(len);
        if written.is_err() {
            return;
        }
    }
    let _already_closed = stream.finish();
}

/// Reads frames from a stream into a queue until the peer ends it. A peer that breaks the rules
/// ends the link.
pub(super) async fn carry_in(into: Incoming, mut stream: RecvStream, flow: &Flow, link: &Shared) {
    let mut framer = Framer::new(into.limit);
    let mut pieces: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
    loop {
        let count = match stream.read_chunks(&mut pieces).await {
            Ok(Some(count)) => count,
            Ok(None) => break,
            // The connection's end is reported by its watcher.
            Err(ReadError::ConnectionLost(_)) => return,
            Err(other) => return link.end(Ended::Broken(other.to_string())),
        };
        for piece in &mut pieces[..count] {
            while !piece.is_empty() {
                let frame = match framer.push(piece) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(e) => return link.end(Ended::Broken(e.to_string())),
                };
                flow.count(frame.len());
                if into.queue.send(frame).await.is_err() {
                    // Nobody reads here any more: dropping the stream tells the peer to stop.
                    return;
                }
            }
        }
    }
    match framer.finish() {
        Ok(()) => into.finish(),
        Err(e) => link.end(Ended::Broken(e.to_string())),
    }
}
