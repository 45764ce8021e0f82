//! What a session needs beside the guest and its rights: time, and a way around the link.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Command, Event};
use crate::handover::message::Message;
use crate::handover::term::Millis;

/// The clock of the machines' timers. Figures of reports are measured apart from it.
pub trait Clock: Send + Sync + 'static {
    /// Now. Never goes back.
    fn now(&self) -> Millis;

    /// Returns at that moment or soon after it.
    fn sleep_until(&self, moment: Millis) -> impl Future<Output = ()> + Send;
}

/// Time as the host counts it.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// Begins at 0.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        Millis(u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    async fn sleep_until(&self, moment: Millis) {
        let wait = moment.0.saturating_sub(self.now().0);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

/// The session's connections to its own process.
#[derive(Debug)]
pub struct Outside {
    /// What it is told.
    pub commands: mpsc::Receiver<Command>,
    /// What it tells. Nobody needs to listen.
    pub events: mpsc::UnboundedSender<Event>,
    /// Messages for the other side while the link is gone: the daemons carry them. One that finds
    /// no room is dropped; the machines say again what matters.
    pub messages: mpsc::Sender<Message>,
}
