//! Input on its way to the guest.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::INPUT_ROOM;

/// Told when input comes.
pub trait InputListener: Send + Sync {
    /// There is input to take.
    fn input_ready(&self);
}

/// A bounded queue and who wants to know of it.
#[derive(Default)]
pub(super) struct Input {
    queue: VecDeque<u8>,
    listener: Option<Weak<dyn InputListener>>,
}

impl Input {
    pub(super) fn room(&self) -> usize {
        INPUT_ROOM.saturating_sub(self.queue.len())
    }

    /// Takes what there is room for, and says how much that was.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let n = self.room().min(bytes.len());
        self.queue.extend(&bytes[..n]);
        n
    }

    /// At most `max` bytes, and whether the queue was full before.
    pub(super) fn take(&mut self, max: usize) -> (Vec<u8>, bool) {
        let was_full = self.room() == 0;
        let n = max.min(self.queue.len());
        (self.queue.drain(..n).collect(), was_full && n > 0)
    }

    pub(super) fn set_listener(&mut self, listener: Weak<dyn InputListener>) {
        self.listener = Some(listener);
    }

    pub(super) fn listener(&self) -> Option<Arc<dyn InputListener>> {
        self.listener.as_ref().and_then(Weak::upgrade)
    }
}
