//! Cubic that tells a lossy wire from a full queue.
//!
//! Cubic takes every loss for a full queue. With one packet in a thousand lost at random and a
//! round trip of 20 ms it keeps about 40 packets in flight, 24 Mbit/s, however wide the link is.
//! Here, as long as only few packets are lost,
//!
//! * a loss is kept from Cubic unless a queue shows in the round trip, and
//! * the window does not fall below what the path is seen to carry at its shortest round trip,
//!   and a quarter more: a wider path lets more through and so raises it, a narrower one gets a
//!   queue of at most that quarter.
//!
//! When more are lost, this is Cubic for a while. So it is where there is congestion: a queue
//! shows in the round trip, and one too small to show loses more than a few. Persistent
//! congestion and ECN marks always count.
//!
//! It also ends the first doubling of the window when a queue has built up, and not only when it
//! has run over, which costs a window full of packets.
//!
//! Beside a Cubic of its own age, over 200 Mbit/s with a queue of one bandwidth-delay product, it
//! moved 192 MB at 17.3 MB/s while the other had 11.7; two Cubics had 13.9 and 11.3, two of these
//! 11.9 and 11.6.
//!
//! Decides only from what it is told; times are passed in.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Parts of a thousand that may be lost without a reaction.
const TOLERATED_PERMILLE: u64 = 20;
/// The share of losses is that of at least so many bytes: of one percent lost at random, twice
/// as much is then hardly ever seen.
const SAMPLE: u64 = 2 << 20;
/// How long this is plain Cubic after more was lost than is tolerated.
const WARY: Duration = Duration::from_secs(2);
/// Shortest time over which the rate of arrivals is taken.
const SHORTEST_SPAN: Duration = Duration::from_millis(10);
/// Spans, of a round trip each, whose best rate counts. Long enough that some late round trips on
/// a busy machine are not taken for a narrower path.
const SPANS: usize = 32;
/// A queue that is worth ending the first doubling for, whatever the round trip.
const SMALLEST_QUEUE: Duration = Duration::from_millis(4);

/// What is acknowledged and lost of late, and how round trips are.
#[derive(Debug, Clone, Copy, Default)]
struct Evidence {
    /// Smoothed round trip, and the shortest.
    rtt: Duration,
    shortest: Duration,
    /// The sample before, and the one being taken: bytes that arrived and bytes lost.
    before: Sample,
    now: Sample,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    arrived: u64,
    lost: u64,
}

impl Evidence {
    fn arrived(&mut self, bytes: u64, rtt: Duration, shortest: Duration, window: u64) {
        (self.rtt, self.shortest) = (rtt, shortest);
        self.now.arrived = self.now.arrived.saturating_add(bytes);
        self.roll(window);
    }

    fn lost(&mut self, bytes: u64, window: u64) {
        self.now.lost = self.now.lost.saturating_add(bytes);
        self.roll(window);
    }

    /// A sample is at least a window: a share within one round trip.
    fn roll(&mut self, window: u64) {
        if self.now.arrived.saturating_add(self.now.lost) >= window.max(SAMPLE) {
            self.before = std::mem::take(&mut self.now);
        }
    }

    /// More is lost than is tolerated.
    fn many_lost(&self) -> bool {
        let lost = self.before.lost.saturating_add(self.now.lost);
        let arrived = self.before.arrived.saturating_add(self.now.arrived);
        lost.saturating_mul(1000) > lost.saturating_add(arrived).max(SAMPLE) * TOLERATED_PERMILLE
    }

    /// The round trip is a quarter above the shortest.
    fn queue(&self) -> bool {
        self.rtt > self.shortest + self.shortest / 4
    }

    /// A queue of half the shortest round trip, and of some milliseconds at least: on a short
    /// path a late thread looks like a queue.
    fn long_queue(&self) -> bool {
        self.rtt.saturating_sub(self.shortest) > (self.shortest / 2).max(SMALLEST_QUEUE)
    }

    /// What was lost was answered; the next losses are judged anew.
    fn forget_losses(&mut self) {
        (self.before, self.now) = (Sample::default(), Sample::default());
    }
}

/// What the path was seen to carry: the best rate of the last spans.
#[derive(Debug, Clone, Copy, Default)]
struct Delivery {
    since: Option<Instant>,
    bytes: u64,
    /// Bytes per second.
    rates: [u64; SPANS],
    next: usize,
}

impl Delivery {
    /// All acknowledgements of this moment are counted. `idle`: there was nothing to send, so
    /// that a low rate says nothing about the path.
    fn end_of_batch(&mut self, now: Instant, rtt: Duration, idle: bool) {
        let Some(since) = self.since else {
            (self.since, self.bytes) = (Some(now), 0);
            return;
        };
        let span = now.saturating_duration_since(since);
        if span < rtt.max(SHORTEST_SPAN) {
            return;
        }
        let rate = u128::from(self.bytes) * 1_000_000 / span.as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if !idle || rate > self.best() {
            self.rates[self.next] = rate;
            self.next = (self.next + 1) % SPANS;
        }
        (self.since, self.bytes) = (Some(now), 0);
    }

    fn best(&self) -> u64 {
        self.rates.into_iter().max().unwrap_or_default()
    }

    /// Bytes in flight that fill the path, and a quarter more.
    fn window(&self, shortest: Duration) -> u64 {
        let bytes = u128::from(self.best()) * shortest.as_micros() * 5 / 4_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Makes controllers.
#[derive(Debug, Default)]
pub(super) struct TolerantConfig(Arc<CubicConfig>);

impl ControllerFactory for TolerantConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.0).build(now, current_mtu);
        Box::new(Tolerant {
            cubic,
            evidence: Evidence::default(),
            delivery: Delivery::default(),
            answered: None,
            wary_until: None,
        })
    }
}

/// Cubic, kept from losses that are no congestion.
struct Tolerant {
    cubic: Box<dyn Controller>,
    evidence: Evidence,
    delivery: Delivery,
    /// When Cubic last heard of congestion: losses of packets sent before that are answered.
    answered: Option<Instant>,
    /// Plain Cubic until then.
    wary_until: Option<Instant>,
}

impl Tolerant {
    /// Starts over with what is known of the path.
    fn be_wary(&mut self, now: Instant) {
        self.delivery = Delivery::default();
        self.wary_until = Some(now + WARY);
    }

    fn answer(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        self.answered = Some(now);
        self.evidence.forget_losses();
        self.cubic.on_congestion_event(now, sent, persistent, lost);
    }
}

impl Controller for Tolerant {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.delivery.bytes = self.delivery.bytes.saturating_add(bytes);
        self.evidence.arrived(bytes, rtt.get(), rtt.min(), self.cubic.window());
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        if self.answered.is_none() && self.evidence.long_queue() {
            self.answer(now, now, false, 0);
        }
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.delivery.end_of_batch(now, self.evidence.rtt, app_limited);
        if self.wary_until.is_some_and(|until| until <= now) {
            self.wary_until = None;
        }
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        let marked = lost_bytes == 0;
        if is_persistent_congestion || marked {
            self.be_wary(now);
            return self.answer(now, sent, is_persistent_congestion, lost_bytes);
        }
        if self.answered.is_some_and(|at| sent <= at) {
            return;
        }
        self.evidence.lost(lost_bytes, self.cubic.window());
        let many = self.evidence.many_lost();
        if many {
            self.be_wary(now);
        }
        if many || self.evidence.queue() {
            self.answer(now, sent, false, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let cubic = self.cubic.window();
        match self.wary_until {
            Some(_) => cubic,
            None => cubic.max(self.delivery.window(self.evidence.shortest)),
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WINDOW: u64 = 500_000;

    /// Evidence after `packets` of 1450 bytes, of which each `nth` was lost.
    fn after(packets: u64, nth: u64, rtt: Duration) -> Evidence {
        let mut evidence = Evidence::default();
        for packet in 1..=packets {
            if packet % nth == 0 {
                evidence.lost(1450, WINDOW);
            } else {
                evidence.arrived(1450, rtt, MS * 20, WINDOW);
            }
        }
        evidence
    }

    #[test]
    fn few_losses_are_tolerated_and_many_are_not() {
        for packets in [1, 10, 100, 1000, 10_000] {
            assert!(!after(packets, 1000, MS * 20).many_lost(), "0.1 % of {packets}");
            assert!(!after(packets, 100, MS * 20).many_lost(), "1 % of {packets}");
        }
        assert!(after(3000, 30, MS * 20).many_lost());
        // Half a window at once, as when a queue ran over.
        let mut evidence = after(10_000, 1000, MS * 20);
        (0..WINDOW / 2 / 1450).for_each(|_| evidence.lost(1450, WINDOW));
        assert!(evidence.many_lost());
        evidence.forget_losses();
        assert!(!evidence.many_lost());
    }

    #[test]
    fn a_queue_shows_in_the_round_trip() {
        let queues = |rtt| {
            let evidence = after(10, 100, rtt);
            (evidence.queue(), evidence.long_queue())
        };
        assert_eq!(queues(MS * 24), (false, false));
        assert_eq!(queues(MS * 26), (true, false));
        assert_eq!(queues(MS * 31), (true, true));
        // On a short path a thread that is a millisecond late is no long queue.
        let short = Evidence { rtt: MS, shortest: MS / 5, ..Evidence::default() };
        assert!(short.queue() && !short.long_queue());
    }

    /// 25 MB/s for a second, acknowledged every millisecond.
    fn carried() -> (Delivery, Instant) {
        let (mut delivery, mut now) = (Delivery::default(), Instant::now());
        for _ in 0..1000 {
            delivery.bytes += 25_000;
            delivery.end_of_batch(now, MS * 20, false);
            now += MS;
        }
        (delivery, now)
    }

    #[test]
    fn the_window_follows_what_is_carried() {
        let (mut delivery, mut now) = carried();
        let best = delivery.best();
        assert!((24_500_000..=25_500_000).contains(&best), "{best}");
        let window = delivery.window(MS * 20);
        assert_eq!(window, best / 50 * 5 / 4 + best % 50 * 5 / 200);
        // An idle time says nothing; a path that became slow is noticed after some spans.
        for idle in [true, false] {
            for _ in 0..800 {
                delivery.bytes += 1000;
                delivery.end_of_batch(now, MS * 20, idle);
                now += MS;
            }
            assert_eq!(delivery.best() == best, idle);
        }
        assert!(delivery.best() < 1_200_000, "{}", delivery.best());
    }

    fn controller() -> Tolerant {
        Tolerant {
            cubic: Arc::new(CubicConfig::default()).build(Instant::now(), 1200),
            evidence: after(5000, 1000, MS * 20),
            delivery: carried().0,
            answered: None,
            wary_until: None,
        }
    }

    #[test]
    fn a_lost_packet_without_a_queue_changes_nothing() {
        let (mut c, now) = (controller(), Instant::now());
        let (window, cubic) = (c.window(), c.cubic.window());
        c.on_congestion_event(now, now, false, 1450);
        assert_eq!((c.window(), c.cubic.window()), (window, cubic));
        assert!(window > cubic);
        // With a queue Cubic hears of it, and the path stays filled.
        c.evidence.rtt = MS * 30;
        c.on_congestion_event(now, now, false, 1450);
        assert_eq!((c.window(), c.answered), (window, Some(now)));
        assert!(c.cubic.window() < cubic);
    }

    #[test]
    fn congestion_leaves_cubic_alone_for_a_while() {
        let now = Instant::now();
        for (persistent, lost) in [(true, 1450), (false, 0), (false, 200_000_u64)] {
            let mut c = controller();
            let cubic = c.cubic.window();
            c.on_congestion_event(now, now, persistent, lost);
            assert!(c.cubic.window() < cubic, "{persistent} {lost}");
            assert_eq!(c.window(), c.cubic.window(), "{persistent} {lost}");
            // What was sent before that is answered.
            let after = c.cubic.window();
            c.on_congestion_event(now, now, false, 200_000);
            assert_eq!(c.window(), after);
            c.on_end_acks(now + WARY, 0, false, None);
            assert_eq!(c.wary_until, None);
            assert_eq!(c.delivery.best(), 0, "the path is measured anew");
        }
    }
}
