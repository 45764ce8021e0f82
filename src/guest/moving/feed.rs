//! What happens in a move, kept from its beginning and told to everybody who asks, as lines of
//! JSON. It never waits for a listener.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::watch;

use crate::api::moving::{MoveEvent, MovePhase};

/// Events that are kept. A move of so many rounds forgets the oldest.
const KEPT: usize = 20_000;

/// The events of one move. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Number of events so far.
    count: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    lines: std::collections::VecDeque<Bytes>,
    /// Number of the first of `lines`.
    first: u64,
    ended: bool,
    phase: Option<MovePhase>,
    /// The latest progress, which is told but not kept.
    progress: Option<Bytes>,
}

/// What a listener gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A line, with its end.
    Line(Bytes),
    /// That was the last.
    End,
}

impl Default for Feed {
    fn default() -> Self {
        let state = Mutex::new(State::default());
        Self(Arc::new(Shared { state, count: watch::Sender::new(0) }))
    }
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells an event. Nothing is told after a result.
    pub fn tell(&self, event: &MoveEvent) {
        let mut line = match serde_json::to_vec(event) {
            Ok(line) => line,
            Err(error) => return tracing::error!(%error, "an event cannot be written"),
        };
        line.push(b'\n');
        let line = Bytes::from(line);
        let mut state = self.lock();
        if state.ended {
            return;
        }
        match event {
            MoveEvent::Phase { phase, .. } => state.phase = Some(*phase),
            MoveEvent::Result(report) => {
                state.phase = Some(report.phase);
                state.ended = true;
            }
            _ => {}
        }
        if matches!(event, MoveEvent::Progress { .. }) {
            state.progress = Some(line);
        } else {
            state.progress = None;
            state.lines.push_back(line);
            if state.lines.len() > KEPT {
                state.lines.pop_front();
                state.first += 1;
            }
        }
        drop(state);
        self.0.count.send_modify(|count| *count += 1);
    }

    /// The phase that the move is in.
    pub fn phase(&self) -> Option<MovePhase> {
        self.lock().phase
    }

    /// A listener, which hears everything from the beginning.
    pub fn listen(&self) -> Listener {
        Listener { count: self.0.count.subscribe(), feed: self.clone(), next: 0, shown: None }
    }
}

/// Hears a feed.
#[derive(Debug)]
pub struct Listener {
    feed: Feed,
    count: watch::Receiver<u64>,
    next: u64,
    /// The progress that was told last.
    shown: Option<Bytes>,
}

impl Listener {
    /// The next event. Safe to cancel.
    pub async fn next(&mut self) -> Next {
        loop {
            self.count.borrow_and_update();
            if let Some(next) = self.ready() {
                return next;
            }
            if self.count.changed().await.is_err() {
                return Next::End;
            }
        }
    }

    fn ready(&mut self) -> Option<Next> {
        let state = self.feed.lock();
        self.next = self.next.max(state.first);
        let at = usize::try_from(self.next - state.first).unwrap_or(usize::MAX);
        if let Some(line) = state.lines.get(at) {
            self.next += 1;
            return Some(Next::Line(line.clone()));
        }
        if state.ended {
            return Some(Next::End);
        }
        let progress = state.progress.clone().filter(|p| self.shown.as_ref() != Some(p))?;
        self.shown = Some(progress.clone());
        Some(Next::Line(progress))
    }
}

/// As many lines as there will be, for a client of an HTTP API.
impl IntoResponse for Listener {
    fn into_response(self) -> Response {
        let stream = futures_util::stream::unfold(self, |mut listener| async move {
            match listener.next().await {
                Next::Line(line) => Some((Ok::<_, std::convert::Infallible>(line), listener)),
                Next::End => None,
            }
        });
        ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(text: &str) -> MoveEvent {
        MoveEvent::Notice { text: text.into() }
    }

    fn progress(done_bytes: u64) -> MoveEvent {
        let (round, round_bytes, frame_bytes, bandwidth_bytes_per_s) = (0, 10, 0, 0);
        MoveEvent::Progress { round, done_bytes, round_bytes, frame_bytes, bandwidth_bytes_per_s }
    }

    fn said(listener: &mut Listener) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut lines = Vec::new();
        runtime.block_on(async {
            let wait = std::time::Duration::from_millis(20);
            while let Ok(Next::Line(line)) = tokio::time::timeout(wait, listener.next()).await {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
            }
        });
        lines
    }

    #[test]
    fn everybody_hears_everything_but_only_the_latest_progress() {
        let feed = Feed::default();
        let mut early = feed.listen();
        feed.tell(&notice("one"));
        assert_eq!(said(&mut early).len(), 1);
        feed.tell(&progress(1));
        assert_eq!(said(&mut early).len(), 1);
        feed.tell(&progress(2));
        feed.tell(&progress(3));
        let mut late = feed.listen();
        let lines = said(&mut late);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("one") && lines[1].contains("\"done_bytes\":3"), "{lines:?}");
        assert_eq!(said(&mut early).len(), 1);
        assert_eq!(said(&mut late).len(), 0, "nothing is told twice");
        feed.tell(&notice("two"));
        assert_eq!(said(&mut early).len(), 1);
        for n in 0..KEPT {
            feed.tell(&notice(&n.to_string()));
        }
        assert_eq!(said(&mut late).len(), KEPT, "memory is bounded");
    }
}
