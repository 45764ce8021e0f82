//! What the engine tells of a move, as users hear it: phases, rounds, progress, notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use migrate_engine::converge::{Advice, Decision};
use migrate_engine::handover::message::Message;
use migrate_engine::precopy::RoundReport;
use migrate_engine::pump::Live;
use migrate_engine::session::{Event, relay};
use tokio::sync::mpsc;

use super::feed::Feed;
use super::report::{About, ms, per_second, phase};
use crate::api::moving::{MoveEvent, MovePhase, RoundLine, Words};
use crate::config::hex;

/// Time between two looks at how far a round is.
const LOOK: Duration = Duration::from_millis(250);
/// Bytes of a unit.
const PAGE: u64 = 4096;

/// Tells a feed of one move.
pub struct Teller {
    feed: Feed,
    about: Arc<About>,
    live: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    live: Option<Live>,
    round: u32,
    round_bytes: u64,
    /// Frames of finished rounds.
    frames: u64,
    last: Option<(Instant, u64)>,
}

impl Teller {
    /// Tells `feed` of the move that is `about` this.
    pub fn new(feed: Feed, about: Arc<About>) -> Self {
        let live = Progress { round_bytes: about.memory_bytes, ..Progress::default() };
        Self { feed, about, live: Mutex::new(live) }
    }

    /// Tells of a phase.
    pub fn phase(&self, phase: MovePhase) {
        if self.feed.phase() == Some(phase) {
            return;
        }
        let (move_id, guest) = (self.about.move_id, self.about.guest.clone());
        tracing::info!(MOVE = %move_id, GUEST = %guest, ?phase, "move");
        self.feed.tell(&MoveEvent::Phase { move_id, guest, phase });
    }

    fn notice(&self, text: String) {
        tracing::info!(MOVE = %self.about.move_id, GUEST = %self.about.guest, text, "move");
        self.feed.tell(&MoveEvent::Notice { text });
    }

    /// Tells of events until there are no more.
    pub async fn events(&self, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event),
                    None => return,
                },
                _ = look.tick() => self.look(),
            }
        }
    }

    /// Hands on words that must go over the daemons, until there are no more.
    pub async fn words(&self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            if let Some(frame) = relay::encode(&message) {
                self.feed.tell(&MoveEvent::Words(Words { frame: hex::encode(&frame) }));
            }
        }
    }

    fn event(&self, event: Event) {
        match event {
            Event::Phase(now) => match phase(now) {
                // The result says so.
                MovePhase::Ended => {}
                now => self.phase(now),
            },
            Event::Copying(live) => self.progress().live = Some(live),
            Event::Round(report, advice) => self.round(&report, &advice),
            Event::Rehearsed { restore_us, problems } if problems.is_empty() => {
                self.feed.tell(&MoveEvent::Rehearsed { restore_ms: ms(restore_us) });
            }
            Event::Rehearsed { problems, .. } => self.notice(problems.join("; ")),
            // After the move nobody needs it.
            Event::LinkLost(_) if self.feed.phase() >= Some(MovePhase::Auditing) => {}
            Event::LinkLost(why) => self.notice(format!("the link is lost: {why}")),
            Event::TooLateToCancel => {
                self.notice("too late to cancel: the guest is being handed over".into());
            }
            Event::Retrying { step, why } => {
                self.notice(format!(
                    "a step does not succeed and is tried again ({step:?}): {why}"
                ));
            }
            Event::Ran | Event::Filling(_) => {}
            Event::Audited { differing } if differing.is_empty() => {}
            Event::Audited { differing } => self.notice(format!(
                "DEFECT: {} pages of the source differ from what was sent: dirty tracking missed \
                 a write",
                differing.len()
            )),
        }
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn round(&self, report: &RoundReport, advice: &Advice) {
        let line = line(report, advice);
        {
            let mut progress = self.progress();
            progress.round = report.round.saturating_add(1);
            progress.round_bytes = line.dirty_bytes;
            progress.frames += line.frame_bytes;
            progress.last = None;
        }
        self.feed.tell(&MoveEvent::Round(Box::new(line)));
    }

    fn look(&self) {
        let mut progress = self.progress();
        let Some(tally) = progress.live.as_ref().map(Live::tally) else { return };
        let done = tally.done() * PAGE;
        let now = Instant::now();
        let (then, before) = progress.last.replace((now, done)).unwrap_or((now, done));
        let passed = u64::try_from((now - then).as_micros()).unwrap_or(u64::MAX);
        let event = MoveEvent::Progress {
            round: progress.round,
            done_bytes: done.min(progress.round_bytes),
            round_bytes: progress.round_bytes,
            frame_bytes: progress.frames + tally.frame_bytes,
            bandwidth_bytes_per_s: per_second(done.saturating_sub(before), passed),
        };
        drop(progress);
        self.feed.tell(&event);
    }
}

fn line(report: &RoundReport, advice: &Advice) -> RoundLine {
    let tally = &report.tally;
    let us = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
    let memory_bytes = (tally.done() - tally.untouched) * PAGE;
    let dirty_bytes = report.dirty_after * PAGE;
    let predicted = advice.prediction.map(|p| p.blackout.total());
    RoundLine {
        round: report.round,
        took_ms: ms(us),
        memory_bytes,
        frame_bytes: tally.frame_bytes,
        pages: tally.units,
        compressed_pages: tally.compressed,
        zero_pages: tally.zeros,
        same_pages: tally.same,
        untouched_pages: tally.untouched,
        dirty_bytes,
        dirty_bytes_per_s: per_second(dirty_bytes, us),
        bandwidth_bytes_per_s: per_second(memory_bytes, us),
        predicted_downtime_ms: predicted
            .map(|p| ms(u64::try_from(p.as_micros()).unwrap_or(u64::MAX))),
        stalled: advice.decision == Decision::Stalled,
        advice: advice.why.to_string(),
    }
}
