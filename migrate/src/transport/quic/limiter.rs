//! A bandwidth budget in UDP payload.
//!
//! A token bucket whose balance may go below zero: whoever may send at all sends a whole batch,
//! and the next one waits until the debt is paid. Control and urgent traffic never waits, but is
//! charged too, so that the sum stays at the rate. In any time `t` at most `rate × t`, the depth
//! of the bucket (40 ms of the rate) and one batch (10 ms of it, or one datagram) go out: within
//! 2.5 % over two seconds from about 60 kB/s at 1500-byte datagrams.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What may be saved up while nothing is sent. Long enough that a late wake-up costs no rate.
const DEPTH: Duration = Duration::from_millis(40);
/// What one batch may hold of the rate.
const BATCH: Duration = Duration::from_millis(10);
/// Longest sleep, so that a new rate is soon noticed.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

const NANOS: i128 = 1_000_000_000;

/// The arithmetic: no clock, `now` counts from any fixed moment.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Bytes per second.
    rate: u64,
    /// Bytes × 10⁹ that may be sent; negative is debt.
    balance: i128,
    at: Duration,
}

impl Bucket {
    fn new(rate: u64, now: Duration) -> Self {
        Self { rate: rate.max(1), balance: 0, at: now }
    }

    fn refill(&mut self, now: Duration) {
        let dt = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let rate = i128::from(self.rate);
        let nanos = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
        let earned = rate.saturating_mul(nanos(dt));
        let depth = rate.saturating_mul(nanos(DEPTH));
        self.balance = self.balance.saturating_add(earned).min(depth);
    }

    /// Time until something may be sent; `None` if that is now.
    fn wait(&mut self, now: Duration) -> Option<Duration> {
        self.refill(now);
        if self.balance > 0 {
            return None;
        }
        let nanos = -self.balance / i128::from(self.rate) + 1;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn take(&mut self, bytes: usize, now: Duration) {
        self.refill(now);
        self.balance -= i128::try_from(bytes).unwrap_or(i128::MAX / NANOS) * NANOS;
    }
}

/// One budget, shared by all sockets that have it.
#[derive(Debug)]
pub struct Limiter {
    start: Instant,
    bucket: Mutex<Option<Bucket>>,
    total: AtomicU64,
}

impl Limiter {
    /// A budget of `rate` bytes of UDP payload per second; `None` is no limit.
    pub fn new(rate: Option<u64>) -> Self {
        let bucket = rate.map(|rate| Bucket::new(rate, Duration::ZERO));
        Self { start: Instant::now(), bucket: Mutex::new(bucket), total: AtomicU64::new(0) }
    }

    /// Changes the rate; takes effect within a tenth of a second.
    pub fn set_rate(&self, rate: Option<u64>) {
        let now = self.start.elapsed();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        *bucket = rate.map(|rate| match *bucket {
            Some(mut old) => {
                old.refill(now);
                Bucket { rate: rate.max(1), ..old }
            }
            None => Bucket::new(rate, now),
        });
    }

    /// The rate in bytes per second.
    pub fn rate(&self) -> Option<u64> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).map(|b| b.rate)
    }

    /// How long to sleep before trying again; `None` if bulk may be sent now.
    pub(super) fn wait(&self) -> Option<Duration> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = bucket.as_mut()?.wait(self.start.elapsed())?;
        Some(wait.min(LONGEST_WAIT))
    }

    /// UDP payload sent so far on all sockets that have this budget, repeats included.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Charges what was sent.
    pub(super) fn charge(&self, bytes: usize) {
        self.total.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = bucket.as_mut() {
            bucket.take(bytes, self.start.elapsed());
        }
    }

    /// Most datagrams of `payload` bytes in one batch, at least one.
    pub(super) fn segments(&self, payload: u16) -> usize {
        let Some(rate) = self.rate() else { return usize::MAX };
        let bytes = u128::from(rate) * BATCH.as_millis() / 1000;
        usize::try_from(bytes / u128::from(payload.max(1))).unwrap_or(usize::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A greedy sender that wakes late at random, and an urgent one that never waits: over
        /// every two seconds the sum is at most 5 % above the rate, and over the whole run at
        /// most 5 % below.
        #[test]
        fn the_rate_is_kept_over_any_two_seconds(
            rate in 200_000u64..2_000_000_000,
            late in prop::collection::vec(0u64..8_000, 1..40),
            urgent in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let mut bucket = Bucket::new(rate, Duration::ZERO);
            let batch = usize::try_from(rate / 100).unwrap().clamp(1452, 14_520);
            let (mut late, mut urgent) = (late.iter().cycle(), urgent.iter().cycle());
            let end = Duration::from_secs(5);
            let (mut now, mut sent) = (Duration::ZERO, Vec::new());
            while now < end {
                if *urgent.next().unwrap() {
                    bucket.take(100, now);
                    sent.push((now, 100));
                }
                while bucket.wait(now).is_none() {
                    bucket.take(batch, now);
                    sent.push((now, batch));
                }
                // Timers have a resolution of a millisecond, and wake late.
                let wait = bucket.wait(now).unwrap_or_default();
                let late = Duration::from_micros(*late.next().unwrap());
                now += wait.max(Duration::from_millis(1)) + late;
            }
            let two = Duration::from_secs(2);
            let allowed = usize::try_from(rate * 2 * 105 / 100).unwrap();
            let (mut first, mut sum) = (0, 0);
            for (at, bytes) in &sent {
                sum += bytes;
                while sent[first].0 + two < *at {
                    sum -= sent[first].1;
                    first += 1;
                }
                prop_assert!(sum <= allowed, "{sum} > {allowed} before {at:?}");
            }
            let total: usize = sent.iter().map(|s| s.1).sum();
            let due = u128::from(rate) * now.as_micros() / 1_000_000;
            prop_assert!(total as u128 >= due * 95 / 100, "{total} of {due}");
        }
    }

    #[test]
    fn a_new_rate_keeps_the_debt() {
        let limiter = Limiter::new(Some(1000));
        limiter.charge(1_000_000);
        limiter.set_rate(Some(2000));
        assert_eq!(limiter.wait(), Some(LONGEST_WAIT));
        assert_eq!(limiter.segments(1452), 1);
        limiter.set_rate(None);
        assert_eq!((limiter.wait(), limiter.rate()), (None, None));
        assert_eq!(limiter.segments(1452), usize::MAX);
    }
}
