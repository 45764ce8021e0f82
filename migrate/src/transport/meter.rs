//! Rates and windows from counters. Functions of their arguments; times are passed in.

use std::time::Duration;

/// Smallest window in bytes: what QUIC stacks start with, enough for 1 Gbit/s at 16 ms.
pub const MIN_WINDOW: u64 = 2 << 20;
/// Largest window in bytes: the stream window, which is fixed when a connection is made.
/// 10 Gbit/s at 12 ms. It bounds what a receiver buffers for one lane.
pub const MAX_WINDOW: u64 = 16 << 20;

/// Share of a sample during which there had to be a backlog for the rate to be the link's.
const SATURATED: f64 = 0.9;
/// Weight of a new sample in the smoothed bandwidth.
const WEIGHT: f64 = 0.25;

/// The window for `rate` bytes per second at `rtt`: twice what is in flight then, so that a rate
/// limited by the window doubles. `None` if `current` is near enough to leave it.
pub fn window(rate: u64, rtt: Duration, current: u64) -> Option<u64> {
    let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
    let in_flight = u128::from(rate) * u128::from(micros) / 1_000_000;
    let wanted =
        u64::try_from(in_flight * 2).unwrap_or(u64::MAX).clamp(MIN_WINDOW, MAX_WINDOW);
    (wanted.abs_diff(current) > current / 4).then_some(wanted)
}

/// Totals of a connection at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Since the connection was made.
    pub at: Duration,
    /// Bytes that arrived, as far as known: sent minus lost, or received.
    pub delivered: u64,
    /// Time with a backlog.
    pub busy: Duration,
}

/// Smoothed bandwidth of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Meter {
    last: Totals,
    rate: u64,
    bandwidth: Option<f64>,
}

impl Meter {
    /// Takes the next totals. Samples less than a millisecond apart are ignored.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are estimates; 52 bits of bytes per second are enough"
    )]
    pub fn sample(&mut self, now: Totals) {
        let dt = now.at.saturating_sub(self.last.at);
        if dt < Duration::from_millis(1) {
            return;
        }
        let bytes = now.delivered.saturating_sub(self.last.delivered) as f64;
        let busy = now.busy.saturating_sub(self.last.busy);
        let rate = bytes / dt.as_secs_f64();
        self.rate = rate as u64;
        if busy.as_secs_f64() >= dt.as_secs_f64() * SATURATED {
            let old = self.bandwidth.unwrap_or(rate);
            self.bandwidth = Some(old + (rate - old) * WEIGHT);
        }
        self.last = now;
    }

    /// Bytes per second in the last sample.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Bytes per second over the samples in which there was always something to send. `None`
    /// until there was one: an idle link says nothing about what it could carry.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and an estimate"
    )]
    pub fn bandwidth(&self) -> Option<u64> {
        self.bandwidth.map(|b| b as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, delivered: u64, busy_ms: u64) -> Totals {
        Totals {
            at: Duration::from_millis(ms),
            delivered,
            busy: Duration::from_millis(busy_ms),
        }
    }

    #[test]
    fn an_idle_link_has_a_rate_but_no_bandwidth() {
        let mut meter = Meter::default();
        meter.sample(at(100, 1_000_000, 20));
        assert_eq!((meter.rate(), meter.bandwidth()), (10_000_000, None));
        meter.sample(at(200, 3_000_000, 118));
        assert_eq!(meter.bandwidth(), Some(20_000_000));
        // Idle again: the last saturated figure stands.
        meter.sample(at(300, 3_000_100, 118));
        assert_eq!((meter.rate(), meter.bandwidth()), (1000, Some(20_000_000)));
    }

    #[test]
    fn windows_follow_rate_times_round_trip() {
        let rtt = Duration::from_millis(20);
        // 1 Gbit/s at 20 ms: 2.5 MB in flight.
        assert_eq!(window(125_000_000, rtt, MIN_WINDOW), Some(5_000_000));
        assert_eq!(window(125_000_000, rtt, 5_500_000), None);
        assert_eq!(window(0, rtt, 5_000_000), Some(MIN_WINDOW));
        assert_eq!(window(u64::MAX, Duration::from_secs(1), MIN_WINDOW), Some(MAX_WINDOW));
    }

    #[test]
    fn a_window_limited_rate_climbs_to_the_cap() {
        let (rtt, mut window_now) = (Duration::from_millis(50), MIN_WINDOW);
        for _ in 0..10 {
            let rate = window_now * 20;
            window_now = window(rate, rtt, window_now).unwrap_or(window_now);
        }
        assert_eq!(window_now, MAX_WINDOW);
    }
}
