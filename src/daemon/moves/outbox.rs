//! Words of a hand-over that wait to be carried to the other host: each once, however often it is
//! said meanwhile. A process says a word again until it is answered, several times a second; a host
//! that does not answer takes seconds to be given up. Without this a queue of stale words would
//! stand before the one that settles the switch, long after both hosts can talk again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::api::moving::Words;

/// Different words that may wait. The hand-over says again what got lost.
const MOST: usize = 64;

type Shared = Arc<Mutex<Vec<Words>>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Vec<Words>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where words are put.
pub struct Outbox {
    waiting: Shared,
    sender: mpsc::UnboundedSender<Words>,
}

/// Where they are taken from, in the order in which they were put there first.
pub struct Waiting {
    waiting: Shared,
    receiver: mpsc::UnboundedReceiver<Words>,
}

/// An empty outbox.
pub fn outbox() -> (Outbox, Waiting) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let waiting = Shared::default();
    (Outbox { waiting: Arc::clone(&waiting), sender }, Waiting { waiting, receiver })
}

impl Outbox {
    /// Puts a word, unless the same one waits already.
    pub fn put(&self, words: Words) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < MOST && !waiting.contains(&words) {
            waiting.push(words.clone());
            // Nobody takes them any more: then nobody needs them.
            let _ = self.sender.send(words);
        }
    }
}

impl Waiting {
    /// The next word. `None` once there is none and no more can come.
    pub async fn next(&mut self) -> Option<Words> {
        let words = self.receiver.recv().await?;
        lock(&self.waiting).retain(|w| *w != words);
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words {
        Words { frame: text.to_owned() }
    }

    #[tokio::test]
    async fn each_word_waits_once_and_none_is_lost() {
        let (outbox, mut waiting) = outbox();
        for text in ["ask", "ask", "prepared", "ask", "prepared", "ran"] {
            outbox.put(words(text));
        }
        assert_eq!(waiting.next().await, Some(words("ask")));
        // It is under way, and said again.
        outbox.put(words("ask"));
        for n in 0..2 * MOST {
            outbox.put(words(&n.to_string()));
        }
        drop(outbox);
        let mut rest = Vec::new();
        while let Some(Words { frame }) = waiting.next().await {
            rest.push(frame);
        }
        assert_eq!(rest[..4], ["prepared", "ran", "ask", "0"]);
        assert_eq!(rest.len(), MOST, "memory is bounded");
    }
}
