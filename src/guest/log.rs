//! The guest process's log, on standard error. A guest can cause messages as fast as it likes (by
//! resets, by breaking its queues), so only some are written: what is left out is counted. Errors
//! are always written; no guest can repeat those.

use std::io::{self, Stderr, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

use crate::logging;

/// Messages that may be written at once.
const BURST: u64 = 1000;
/// After that, one more each time this has passed: about a megabyte a day.
const EVERY: Duration = Duration::from_secs(10);

/// Starts it. `MIGRATE_LOG` filters.
pub fn start() {
    let limited = Limited { start: Instant::now(), bucket: Mutex::new(Bucket::new()) };
    logging::start_for_guest(limited);
}

/// How many messages may still be written.
#[derive(Debug)]
struct Bucket {
    left: u64,
    filled: Duration,
    omitted: u64,
}

impl Bucket {
    fn new() -> Self {
        Self { left: BURST, filled: Duration::ZERO, omitted: 0 }
    }

    /// Whether a message may be written `now`, and how many were left out before it.
    fn take(&mut self, now: Duration) -> Option<u64> {
        let passed = now.saturating_sub(self.filled).as_secs() / EVERY.as_secs();
        self.left = self.left.saturating_add(passed).min(BURST);
        self.filled += EVERY * u32::try_from(passed).unwrap_or(u32::MAX);
        if self.left == 0 {
            self.omitted = self.omitted.saturating_add(1);
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.omitted))
    }
}

/// Standard error, as often as the bucket allows.
struct Limited {
    start: Instant,
    bucket: Mutex<Bucket>,
}

impl<'a> MakeWriter<'a> for Limited {
    type Writer = OptionalWriter<Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(omitted) = bucket.take(self.start.elapsed()) else {
            return OptionalWriter::none();
        };
        if omitted > 0 {
            let _ = writeln!(io::stderr(), "[{omitted} messages were left out here]");
        }
        OptionalWriter::some(io::stderr())
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        if *meta.level() == Level::ERROR {
            return OptionalWriter::some(io::stderr());
        }
        self.make_writer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let mut bucket = Bucket::new();
        let at = Duration::from_secs;
        let written = (0..BURST * 3).filter(|_| bucket.take(at(1)).is_some()).count();
        assert_eq!(written as u64, BURST);
        assert_eq!(bucket.take(at(9)), None);
        assert_eq!(bucket.take(at(19)), Some(BURST * 2 + 1));
        assert_eq!(bucket.take(at(19)), None);
        // A day of flooding.
        let day = (20..86_400).filter(|s| (0..50).any(|_| bucket.take(at(*s)).is_some())).count();
        assert_eq!(day, 8638);
    }
}
