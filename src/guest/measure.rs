//! How fast a guest writes to its memory just now: the dirty log is switched on for a moment, on a
//! thread of its own, and off again. The guest runs on, a little slower. A look, no promise: it
//! says nothing of the next minute, and it ends at once when the guest's owner wants the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use migrate_engine::port::DirtyLog;

use super::inbox::{Answer, Reply};
use crate::api::{DirtyRate, ErrorCode, Failure};

/// How long writes are watched.
const WATCH: Duration = Duration::from_millis(500);
/// How long it may take to get ready: of a large guest only as much memory is looked at as can be
/// re-armed in that time.
const READY: Duration = Duration::from_millis(300);
/// Bytes of a unit.
const UNIT: u64 = 4096;
/// Units that are re-armed at a time: 64 MiB.
const STEP: u64 = 16_384;

/// A measurement that goes on.
#[derive(Debug)]
pub struct Measuring {
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Measuring {
    /// Measures with `log`, of a guest with `units` of memory, and answers `reply`.
    ///
    /// # Errors
    /// No thread can be had. The client is told.
    pub fn start<L: DirtyLog + 'static>(log: L, units: u64, reply: Reply) -> Option<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let work = move || reply.send(measure(log, units, WATCH, &ended).map(Answer::DirtyRate));
        match std::thread::Builder::new().name("measure".into()).spawn(work) {
            Ok(thread) => Some(Self { end, thread }),
            Err(error) => {
                tracing::warn!(%error, "no thread measures how fast the guest writes");
                None
            }
        }
    }

    /// Whether it still has the log.
    pub fn goes_on(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it; the log is free when this returns, within milliseconds.
    pub fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
    }
}

fn given_up() -> Failure {
    let why = "something else was to be done with the guest before its writes were measured";
    Failure::new(ErrorCode::Busy, why, "ask again").retryable()
}

fn measure<L: DirtyLog>(
    mut log: L,
    units: u64,
    watch: Duration,
    ended: &AtomicBool,
) -> Result<DirtyRate, Failure> {
    let failed = |e: L::Error| {
        let why = format!("how fast the guest writes cannot be measured: {e}");
        Failure::new(ErrorCode::Unexpected, why, "see the guest's log")
    };
    log.sync().map_err(failed)?;
    let (began, mut armed) = (Instant::now(), 0);
    while armed < units && began.elapsed() < READY && !ended.load(Ordering::Relaxed) {
        let upto = armed.saturating_add(STEP).min(units);
        log.harvest(armed..upto, &mut |_, _| {}).map_err(failed)?;
        armed = upto;
    }
    let began = Instant::now();
    while let Some(left) = watch.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        if ended.load(Ordering::Relaxed) {
            return Err(given_up());
        }
        std::thread::park_timeout(left);
    }
    log.sync().map_err(failed)?;
    let took = began.elapsed();
    let mut written = 0;
    let mut at = 0;
    while at < armed {
        if ended.load(Ordering::Relaxed) {
            return Err(given_up());
        }
        let upto = at.saturating_add(STEP).min(armed);
        let mut count = |_, word: u64| written += u64::from(word.count_ones());
        log.harvest(at..upto, &mut count).map_err(failed)?;
        at = upto;
    }
    log.stop().map_err(failed)?;
    Ok(rate(written, armed, units, took))
}

/// The rate of the whole guest, if `written` units of the first `armed` of `all` were written.
fn rate(written: u64, armed: u64, all: u64, took: Duration) -> DirtyRate {
    let whole = u128::from(written) * u128::from(all) / u128::from(armed.max(1));
    let scaled = whole.saturating_mul(u128::from(UNIT) * 1_000_000);
    let per_second = scaled / took.as_micros().max(1);
    DirtyRate {
        schema: 1,
        bytes_per_s: u64::try_from(per_second).unwrap_or(u64::MAX),
        over_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        looked_at_bytes: armed.saturating_mul(UNIT),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::ops::Range;

    use super::*;

    /// Everything is written before the first look; then these units, once for each look.
    struct Scripted {
        first: bool,
        found: Vec<u64>,
        written: Range<u64>,
        units: u64,
    }

    impl DirtyLog for Scripted {
        type Error = io::Error;
        fn initially_set(&self) -> bool {
            true
        }
        fn sync(&mut self) -> io::Result<()> {
            let now =
                if std::mem::take(&mut self.first) { 0..self.units } else { self.written.clone() };
            now.for_each(|unit| {
                self.found[usize::try_from(unit / 64).unwrap()] |= 1 << (unit % 64);
            });
            Ok(())
        }
        fn found(&self) -> u64 {
            self.found.iter().map(|w| u64::from(w.count_ones())).sum()
        }
        fn harvest(
            &mut self,
            units: Range<u64>,
            visit: &mut dyn FnMut(u64, u64),
        ) -> io::Result<()> {
            for word in units.start / 64..units.end.div_ceil(64) {
                let found = std::mem::take(&mut self.found[usize::try_from(word).unwrap()]);
                if found != 0 {
                    visit(word * 64, found);
                }
            }
            Ok(())
        }
        fn stop(self) -> io::Result<()> {
            Ok(())
        }
    }

    fn scripted(units: u64, written: Range<u64>) -> Scripted {
        let words = usize::try_from(units.div_ceil(64)).unwrap();
        Scripted { first: true, found: vec![0; words], written, units }
    }

    #[test]
    fn what_was_written_before_does_not_count() {
        let units = 3 * STEP + 100;
        let none = measure(scripted(units, 0..0), units, Duration::from_millis(5), &false.into());
        assert_eq!(none.unwrap().bytes_per_s, 0);
        let some = scripted(units, STEP - 10..STEP + 30);
        let some = measure(some, units, Duration::from_millis(20), &false.into()).unwrap();
        assert_eq!(some.looked_at_bytes, units * UNIT);
        // 40 units in somewhat more than 20 ms.
        assert!(some.bytes_per_s > 0 && some.bytes_per_s <= 40 * UNIT * 50, "{some:?}");
    }

    #[test]
    fn a_part_stands_for_the_whole() {
        let half = rate(100, 5000, 10_000, Duration::from_millis(500));
        assert_eq!((half.bytes_per_s, half.over_ms), (400 * UNIT, 500));
        assert_eq!(rate(0, 0, 0, Duration::ZERO).bytes_per_s, 0);
        assert_eq!(rate(u64::MAX, 1, u64::MAX, Duration::ZERO).bytes_per_s, u64::MAX);
    }

    #[test]
    fn it_gives_way_at_once() {
        let long = Duration::from_hours(1);
        let failure = measure(scripted(64, 0..1), 64, long, &true.into()).unwrap_err();
        assert_eq!((failure.0.code, failure.0.retryable), (ErrorCode::Busy, true));
    }
}
