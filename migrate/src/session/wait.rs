//! What a session waits for: work on threads, futures of its own, timers.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::Poll;

use super::edge::Clock;
use crate::handover::effect::Timer;
use crate::handover::term::Millis;

/// Runs `work` on a thread that may block. A panic in it goes on here: the process must not
/// outlive a right that it lost.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

type Job<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Futures that go on beside each other, in the session's own task: no hop to another one lies
/// between a message and whoever waits for it.
pub(super) struct Jobs<T>(Vec<Job<T>>);

impl<T> Jobs<T> {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn start(&mut self, job: impl Future<Output = T> + Send + 'static) {
        self.0.push(Box::pin(job));
    }

    /// The next that is done; never returns if there is none. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> T {
        std::future::poll_fn(|context| {
            for at in 0..self.0.len() {
                if let Poll::Ready(done) = self.0[at].as_mut().poll(context) {
                    drop(self.0.swap_remove(at));
                    return Poll::Ready(done);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The machine's timers.
#[derive(Debug, Default)]
pub(super) struct Timers(Vec<(Timer, Millis)>);

impl Timers {
    /// Sets one, or moves it. For ever means never.
    pub(super) fn set(&mut self, timer: Timer, at: Millis) {
        self.0.retain(|(set, _)| *set != timer);
        if at != Millis(u64::MAX) {
            self.0.push((timer, at));
        }
    }

    /// The next that runs out; never returns if none is set. It is gone then.
    pub(super) async fn next<C: Clock>(&mut self, clock: &C) -> Timer {
        let Some((timer, at)) = self.0.iter().copied().min_by_key(|(_, at)| *at) else {
            return std::future::pending().await;
        };
        clock.sleep_until(at).await;
        self.0.retain(|(set, _)| *set != timer);
        timer
    }
}
