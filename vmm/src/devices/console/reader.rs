//! Reading a console's output within this process.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::Shared;

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// At the oldest byte that is still there.
    Scrollback,
    /// At the next byte that the guest writes.
    Now,
}

/// Why what was waited for did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// Not before the deadline.
    #[error("it did not appear on the console in time")]
    Deadline,
    /// The console is closed.
    #[error("the console was closed before it appeared")]
    Closed,
}

/// A position in the output. It holds up nobody: bytes that the scrollback has lost are skipped.
pub struct OutputReader {
    shared: Arc<Shared>,
    cursor: u64,
}

impl fmt::Debug for OutputReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputReader").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

impl OutputReader {
    pub(super) fn new(shared: Arc<Shared>, from: Position) -> Self {
        let cursor = {
            let output = shared.output();
            match from {
                Position::Scrollback => output.ring.start(),
                Position::Now => output.ring.end(),
            }
        };
        Self { shared, cursor }
    }

    /// Takes the next bytes, waiting until `deadline` for some. Never empty.
    pub fn read(&mut self, deadline: Instant) -> Result<Vec<u8>, Missed> {
        let mut output = self.shared.output();
        loop {
            self.cursor = self.cursor.max(output.ring.start());
            let new = output.ring.from(self.cursor).unwrap_or_default();
            if !new.is_empty() {
                self.cursor += new.len() as u64;
                return Ok(new.to_vec());
            }
            if output.closed {
                return Err(Missed::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missed::Deadline);
            }
            output.waiting += 1;
            output = self
                .shared
                .grown
                .wait_timeout(output, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            output.waiting -= 1;
        }
    }

    /// Waits until `text` appears, and leaves the reader right behind it. At a miss it is left
    /// where the text could still begin, so that the next call finds it.
    pub fn wait_for(&mut self, text: &[u8], deadline: Instant) -> Result<(), Missed> {
        if text.is_empty() {
            return Ok(());
        }
        let mut window: Vec<u8> = Vec::new();
        loop {
            let before = self.cursor;
            let new = self.read(deadline).inspect_err(|_| self.cursor -= window.len() as u64)?;
            if self.cursor - new.len() as u64 != before {
                window.clear(); // bytes were skipped: nothing spans the gap
            }
            window.extend(&new);
            if let Some(at) = window.windows(text.len()).position(|w| w == text) {
                self.cursor -= (window.len() - at - text.len()) as u64;
                return Ok(());
            }
            // Keep only what a match could still begin in.
            window.drain(..window.len().saturating_sub(text.len() - 1));
        }
    }
}
