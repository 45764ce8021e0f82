//! A token that says stop. It stops work at the next unit, also where a queue is full; it never
//! closes a link.

use std::sync::Arc;

use tokio::sync::watch;

/// Says stop to everybody who holds a clone. It cannot be taken back.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Cancel {
    /// Nobody said stop.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Says stop.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether somebody said stop.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until somebody says stop. Safe to drop at any time.
    pub async fn cancelled(&self) {
        let mut watch = self.0.subscribe();
        // The sender lives in `self`: this ends only when it is set.
        let _ = watch.wait_for(|stop| *stop).await;
    }
}

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

/// Says stop when it is dropped, unless it was disarmed: for work on a thread whose owner, a
/// future, may be dropped.
#[derive(Debug)]
pub(crate) struct StopOnDrop(pub(crate) Option<Cancel>);

impl StopOnDrop {
    /// The work is done.
    pub(crate) fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(cancel) = &self.0 {
            cancel.cancel();
        }
    }
}
