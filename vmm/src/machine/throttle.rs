//! The run-time throttle: each vCPU may run for a share of the time.
//!
//! A thread exists only while the share is below 100 %. In every period it makes all vCPUs sleep
//! at once, so that a guest with several vCPUs does not wait on a sleeping one for long.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::vcpu::thread::Kicker;

/// One cycle of running and sleeping.
const PERIOD: Duration = Duration::from_millis(10);

/// Throttle of one machine.
#[derive(Debug)]
pub struct Throttle {
    kickers: Vec<Kicker>,
    ticker: Mutex<Option<Ticker>>,
}

#[derive(Debug)]
struct Ticker {
    share: u8,
    stop: Sender<()>,
    join: JoinHandle<()>,
}

impl Throttle {
    /// Unthrottled.
    pub fn new(kickers: Vec<Kicker>) -> Self {
        Self { kickers, ticker: Mutex::new(None) }
    }

    /// Share of time, 1 to 100 percent.
    pub fn share(&self) -> u8 {
        let ticker = self.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        ticker.as_ref().map_or(100, |t| t.share)
    }

    /// Sets the share; out of range is brought into range. Fails only if no thread can be had.
    pub fn set_share(&self, percent: u8) -> std::io::Result<()> {
        let share = percent.clamp(1, 100);
        let mut slot = self.ticker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = slot.take() {
            old.end();
        }
        if share < 100 {
            *slot = Some(Ticker::start(share, self.kickers.clone())?);
        }
        Ok(())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if let Some(ticker) = self.ticker.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            ticker.end();
        }
    }
}

impl Ticker {
    fn start(share: u8, kickers: Vec<Kicker>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let sleep = PERIOD * u32::from(100 - share) / 100;
        let join = std::thread::Builder::new().name("throttle".into()).spawn(move || {
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                for kicker in &kickers {
                    kicker.sleep(sleep);
                }
            }
        })?;
        Ok(Self { share, stop, join })
    }

    fn end(self) {
        drop(self.stop);
        let _ = self.join.join();
    }
}
