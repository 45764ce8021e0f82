//! The last samples of a rate, and what may be expected of the next.

use std::time::Duration;

/// Samples without which nothing is said.
const LEAST: usize = 4;

/// Bytes per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nine of ten samples were at least this fast.
    pub low: u64,
    /// The median.
    pub usual: u64,
}

/// The last samples. Take them over stretches of about equal length, while there was always
/// something to send.
#[derive(Clone, Debug)]
pub struct Window {
    samples: Vec<u64>,
    next: usize,
    capacity: usize,
}

impl Window {
    /// Keeps the last `capacity` samples, at least four.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(LEAST);
        Self { samples: Vec::with_capacity(capacity), next: 0, capacity }
    }

    /// Adds that `bytes` came in `took`. A sample of no time is left out.
    pub fn push(&mut self, bytes: u64, took: Duration) {
        let scaled = u128::from(bytes) * 1_000_000_000;
        let Some(rate) = scaled.checked_div(took.as_nanos()) else { return };
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        match self.samples.get_mut(self.next) {
            Some(oldest) => *oldest = rate,
            None => self.samples.push(rate),
        }
        self.next = (self.next + 1) % self.capacity;
    }

    /// What may be expected; `None` with fewer than four samples.
    pub fn rate(&self) -> Option<Rate> {
        if self.samples.len() < LEAST {
            return None;
        }
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let at = |part: usize| sorted.get((sorted.len() - 1) * part / 100).copied();
        Some(Rate { low: at(10)?, usual: at(50)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_samples_count() {
        let mut window = Window::new(11);
        let second = Duration::from_secs(1);
        for n in 1..=3 {
            window.push(n, second);
            assert_eq!(window.rate(), None);
        }
        window.push(4, Duration::ZERO);
        assert_eq!(window.rate(), None);
        (0..20).for_each(|_| window.push(7, second));
        (100..111).rev().for_each(|n| window.push(n, second));
        assert_eq!(window.rate(), Some(Rate { low: 101, usual: 105 }));
        window.push(1000, Duration::from_millis(500));
        assert_eq!(window.rate(), Some(Rate { low: 101, usual: 105 }));
        (0..11).for_each(|_| window.push(u64::MAX, Duration::from_nanos(1)));
        assert_eq!(window.rate(), Some(Rate { low: u64::MAX, usual: u64::MAX }));
    }
}
