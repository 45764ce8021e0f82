//! How a move goes, for people: events in, lines out. No clock, no terminal.

use super::style::safe;
use super::units::{bytes, millis, span};
use crate::api::moving::{MoveEvent, MoveOptions, MovePhase, OnStall, RoundLine};

/// A move as far as its events tell. Also takes the events again from the beginning, as a daemon
/// that was restarted sends them.
#[derive(Clone, Debug)]
pub struct Progress {
    guest: String,
    to: String,
    options: MoveOptions,
    phase: Option<MovePhase>,
    /// The last round that ended.
    round: Option<RoundLine>,
    now: Now,
    /// So much was left when a stall was told of.
    stall_told: Option<u64>,
    /// The events come again from the beginning, and what was seen is to be passed over.
    again: bool,
}

/// The round that goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Now {
    round: u32,
    done: u64,
    all: u64,
    sent: u64,
    bandwidth: u64,
}

/// What an event says to people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// It was not seen before.
    pub new: bool,
    /// For those without an animation.
    pub step: Option<String>,
    /// For everybody.
    pub notice: Option<String>,
}

impl Progress {
    /// A move of `guest` to the host `to`.
    pub fn new(guest: &str, to: &str, options: &MoveOptions) -> Self {
        Self {
            guest: safe(guest),
            to: safe(to),
            options: options.clone(),
            phase: None,
            round: None,
            now: Now::default(),
            stall_told: None,
            again: false,
        }
    }

    /// The events will come again from the beginning.
    pub fn begin_again(&mut self) {
        self.again = true;
    }

    /// Takes what happened next.
    pub fn take(&mut self, event: &MoveEvent) -> Said {
        let said = self.read(event);
        // What is beyond all that was seen ends the repetition.
        self.again &= !said.new || matches!(event, MoveEvent::Words(_));
        said
    }

    fn read(&mut self, event: &MoveEvent) -> Said {
        let new = |step, notice| Said { new: true, step, notice };
        match event {
            MoveEvent::Phase { phase, .. } => {
                if self.again && self.phase.is_some_and(|seen| seen >= *phase) {
                    return Said::default();
                }
                self.phase = Some(*phase);
                new(Some(format!("{}: {}", self.guest, self.phase_words())), None)
            }
            MoveEvent::Progress {
                round,
                done_bytes,
                round_bytes,
                frame_bytes,
                bandwidth_bytes_per_s,
            } => {
                let before = (self.now.round, self.now.sent);
                if self.again && (*round, *frame_bytes) <= before {
                    return Said::default();
                }
                self.now = Now {
                    round: *round,
                    done: *done_bytes,
                    all: *round_bytes,
                    sent: *frame_bytes,
                    bandwidth: *bandwidth_bytes_per_s,
                };
                new(None, None)
            }
            MoveEvent::Round(line) => {
                let seen = self.round.as_ref().map(|seen| seen.round);
                if self.again && seen.is_some_and(|seen| seen >= line.round) {
                    return Said::default();
                }
                let notice = self.stall(line);
                let step = format!("{}: {}", self.guest, round_words(line));
                self.round = Some((**line).clone());
                new(Some(step), notice)
            }
            MoveEvent::Rehearsed { .. } | MoveEvent::Notice { .. } if self.again => Said::default(),
            MoveEvent::Rehearsed { restore_ms } => {
                let words = format!(
                    "{}: {} can run it; restoring its state took {}",
                    self.guest,
                    self.to,
                    millis(*restore_ms)
                );
                new(Some(words), None)
            }
            MoveEvent::Notice { text } => {
                new(None, Some(format!("{}: {}", self.guest, safe(text))))
            }
            MoveEvent::Words(_) | MoveEvent::Result(_) => new(None, None),
        }
    }

    /// What is to be said when rounds do not shrink: at once, and again only when things have
    /// become much better and have then got stuck once more.
    fn stall(&mut self, line: &RoundLine) -> Option<String> {
        let told = self.stall_told.is_some_and(|then| line.dirty_bytes > then / 2);
        if !line.stalled || told {
            return None;
        }
        self.stall_told = Some(line.dirty_bytes);
        let (guest, to) = (&self.guest, &self.to);
        let next = match self.options.on_stall {
            OnStall::Wait => {
                let downtime = line.predicted_downtime_ms.map_or_else(
                    || "--on-stall pause".to_owned(),
                    |ms| format!("--max-downtime {}", rounded_up(ms)),
                );
                format!(
                    "It goes on until they shrink or {} are over. What would end it: migrate \
                     cancel {guest} && migrate move {guest} --to {to} {downtime}",
                    span(self.options.timeout_ms / 1000)
                )
            }
            OnStall::Pause => "It will switch all the same (--on-stall pause).".to_owned(),
            OnStall::Cancel => "It will be cancelled (--on-stall cancel).".to_owned(),
        };
        Some(format!("{guest}: {}. {next}", safe(&line.advice)))
    }

    /// The phase, in words.
    fn phase_words(&self) -> String {
        let to = &self.to;
        match self.phase {
            None => "asking the daemon".to_owned(),
            Some(MovePhase::Preparing) => format!("{to} reserves room and starts a receiver"),
            Some(MovePhase::Connecting) => format!("connecting to {to}"),
            Some(MovePhase::Copying) => "copying memory while it runs".to_owned(),
            Some(MovePhase::Offering) => "almost there: the offer is made durable".to_owned(),
            Some(MovePhase::Stopped) => "stands still; the last pages go over".to_owned(),
            Some(MovePhase::InDoubt) => format!("everything is sent; {to}'s word decides"),
            Some(MovePhase::Ceded) => format!("belongs to {to}; its confirmation is awaited"),
            Some(MovePhase::Auditing) => {
                format!("runs on {to}; comparing once more what was sent")
            }
            Some(MovePhase::Ended) => "over".to_owned(),
        }
    }

    /// How much of the present round is done, in thousandths.
    pub fn thousandths(&self) -> u64 {
        match self.phase {
            None | Some(MovePhase::Preparing | MovePhase::Connecting) => 0,
            Some(MovePhase::Copying) => {
                let done = u128::from(self.now.done.min(self.now.all)) * 1000;
                let part = done.checked_div(u128::from(self.now.all)).unwrap_or(1000);
                u64::try_from(part).unwrap_or(1000)
            }
            Some(_) => 1000,
        }
    }

    /// `web1 → host2`, without the arrow's risk on old terminals.
    pub fn title(&self) -> String {
        format!("{} -> {}", self.guest, self.to)
    }

    /// One line on how it goes now.
    pub fn line(&self) -> String {
        if self.phase != Some(MovePhase::Copying) {
            return self.phase_words();
        }
        let now = self.now;
        let left = now.all.saturating_sub(now.done);
        let mut parts = vec![
            format!("round {}", now.round),
            format!("{} sent", bytes(now.sent)),
            format!("{} left", bytes(left)),
            format!("{}/s", bytes(now.bandwidth)),
        ];
        if let Some(round) = &self.round {
            parts.push(format!("{}/s written", bytes(round.dirty_bytes_per_s)));
            if let Some(ms) = round.predicted_downtime_ms {
                parts.push(format!("stop would be {}", millis(ms)));
            }
        }
        if let Some(seconds) = self.seconds_left(left) {
            parts.push(format!("about {} left", span(seconds)));
        }
        parts.join(", ")
    }

    /// Time until the rounds are small, if they shrink: what is left, sent at what the link has
    /// over what the guest writes.
    fn seconds_left(&self, left: u64) -> Option<u64> {
        let written = self.round.as_ref().map_or(0, |r| r.dirty_bytes_per_s);
        let gain = self.now.bandwidth.checked_sub(written).filter(|gain| *gain > 0)?;
        // More than a day is no prediction.
        Some(left.div_ceil(gain)).filter(|s| *s < 86_400)
    }
}

/// A round that ended, in words.
fn round_words(line: &RoundLine) -> String {
    let predicted = line
        .predicted_downtime_ms
        .map(|ms| format!("; stopping now would take {}", millis(ms)))
        .unwrap_or_default();
    format!(
        "round {} done in {}: {} of memory at {}/s, {} written meanwhile ({}/s){predicted}",
        line.round,
        millis(line.took_ms),
        bytes(line.memory_bytes),
        bytes(line.bandwidth_bytes_per_s),
        bytes(line.dirty_bytes),
        bytes(line.dirty_bytes_per_s),
    )
}

/// A downtime to ask for: somewhat more than is predicted, as it is written on the command line.
fn rounded_up(ms: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast from floats saturates"
    )]
    let ms = (ms.max(0.0) * 1.2).ceil() as u64;
    if ms < 1000 {
        format!("{}ms", ms.div_ceil(100) * 100)
    } else {
        format!("{}s", ms.div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn phase(phase: MovePhase) -> MoveEvent {
        MoveEvent::Phase { move_id: uuid::Uuid::nil(), guest: "web1".into(), phase }
    }

    fn round(round: u32, dirty: u64, predicted: f64) -> MoveEvent {
        MoveEvent::Round(Box::new(RoundLine {
            round,
            took_ms: 1500.0,
            memory_bytes: 1 << 30,
            dirty_bytes: dirty << 20,
            dirty_bytes_per_s: 200 << 20,
            bandwidth_bytes_per_s: 180 << 20,
            predicted_downtime_ms: Some(predicted),
            ..RoundLine::default()
        }))
    }

    fn progress() -> Progress {
        Progress::new("web1", "host2", &MoveOptions::default())
    }

    #[test]
    fn phases_rounds_and_the_line_between() {
        let mut p = progress();
        assert_eq!(p.line(), "asking the daemon");
        assert_eq!(
            p.take(&phase(MovePhase::Copying)).step.unwrap(),
            "web1: copying memory while it runs"
        );
        p.take(&MoveEvent::Progress {
            round: 0,
            done_bytes: 256 << 20,
            round_bytes: 1 << 30,
            frame_bytes: 100 << 20,
            bandwidth_bytes_per_s: 128 << 20,
        });
        assert_eq!(p.line(), "round 0, 100M sent, 768M left, 128M/s, about 6s left");
        assert_eq!(p.thousandths(), 250);
        assert_eq!(
            p.take(&round(0, 300, 900.0)).step.unwrap(),
            "web1: round 0 done in 1.50 s: 1G of memory at 180M/s, 300M written meanwhile \
             (200M/s); stopping now would take 900.0 ms"
        );
        assert_eq!(
            p.line(),
            "round 0, 100M sent, 768M left, 128M/s, 200M/s written, stop would be 900.0 ms",
            "no time left is told while the guest is faster"
        );
        assert_eq!(p.title(), "web1 -> host2");
    }

    #[test]
    fn a_stall_is_told_once_with_the_command_that_helps() {
        let stalled = |number, dirty| {
            let MoveEvent::Round(mut line) = round(number, dirty, 1500.0) else { unreachable!() };
            (line.stalled, line.advice) = (true, "rounds stopped shrinking".into());
            MoveEvent::Round(line)
        };
        let mut p = progress();
        assert_eq!(p.take(&round(0, 300, 1500.0)).notice, None);
        let notice = p.take(&stalled(1, 300)).notice.unwrap();
        assert_eq!(
            notice,
            "web1: rounds stopped shrinking. It goes on until they shrink or 30m 0s are over. What \
             would end it: migrate cancel web1 && migrate move web1 --to host2 --max-downtime 2s"
        );
        assert_eq!(p.take(&round(2, 290, 1480.0)).notice, None);
        assert_eq!(p.take(&stalled(3, 295)).notice, None, "once");
        assert!(p.take(&stalled(4, 100)).notice.is_some(), "again, at another place");
    }

    #[test]
    fn what_was_seen_is_not_told_again() {
        let mut p = progress();
        let events = [phase(MovePhase::Preparing), phase(MovePhase::Copying), round(0, 3, 1.0)];
        for event in &events {
            assert!(p.take(event).new);
        }
        p.begin_again();
        for event in &events {
            assert_eq!(p.take(event), Said::default());
        }
        assert!(p.take(&round(1, 2, 1.0)).new);
    }

    proptest! {
        #[test]
        fn no_numbers_panic(
            numbers in prop::array::uniform5(any::<u64>()),
            predicted in any::<f64>(),
            times in 0..5u32,
        ) {
            let [done_bytes, round_bytes, frame_bytes, bandwidth_bytes_per_s, dirty] = numbers;
            let mut p = progress();
            p.take(&phase(MovePhase::Copying));
            for round in 0..times {
                p.take(&MoveEvent::Progress {
                    round, done_bytes, round_bytes, frame_bytes, bandwidth_bytes_per_s,
                });
                p.take(&MoveEvent::Round(Box::new(RoundLine {
                    round, took_ms: predicted, dirty_bytes: dirty, dirty_bytes_per_s: dirty,
                    predicted_downtime_ms: Some(predicted), ..RoundLine::default()
                })));
                prop_assert!(p.thousandths() <= 1000 && !p.line().is_empty());
            }
        }
    }
}
