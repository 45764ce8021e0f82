//! The reason of a decision, with its numbers, in plain words.

use std::fmt;
use std::time::Duration;

/// Why a decision was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No rate yet.
    NotMeasured,
    /// No rehearsal yet.
    NotRehearsed,
    /// The first pass goes on.
    FirstPass {
        /// Bytes still to go.
        left: u64,
    },
    /// A switch now would take too long, but rounds shrink.
    TooLong {
        /// Predicted blackout.
        now: Duration,
        /// Longest allowed.
        limit: Duration,
    },
    /// It would fit, and gets better still.
    StillFalling {
        /// Predicted blackout.
        now: Duration,
        /// After one more round.
        next: Duration,
    },
    /// It would fit; a round of little data shows what an exchange with the target costs.
    Untried {
        /// Predicted blackout.
        now: Duration,
    },
    /// It fits, and does not get better.
    Flat {
        /// Predicted blackout.
        now: Duration,
        /// After one more round.
        next: Duration,
        /// Longest allowed.
        limit: Duration,
    },
    /// It fits, and one more round would end too late.
    TimeRunsOut {
        /// Predicted blackout.
        now: Duration,
        /// Longest time for everything.
        timeout: Duration,
    },
    /// It does not fit, and rounds do not shrink.
    NotShrinking {
        /// Bytes that are left after each round.
        left: u64,
        /// Bytes per second that become dirty.
        dirty_rate: u64,
        /// Bytes per second that can be counted on.
        rate: u64,
        /// Predicted blackout.
        now: Duration,
        /// Longest allowed.
        limit: Duration,
    },
    /// It would not fit with nothing left to send.
    CannotFit {
        /// Predicted blackout with no memory to send.
        floor: Duration,
        /// Longest allowed.
        limit: Duration,
        /// The largest part of it.
        part: &'static str,
        /// How long that takes.
        time: Duration,
    },
    /// The time is up.
    OutOfTime {
        /// Longest time for everything.
        timeout: Duration,
    },
}

/// A duration with three digits or so.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        match micros {
            _ if self.0 == Duration::MAX => f.write_str("for ever"),
            0..10_000 => write!(f, "{}.{} ms", micros / 1000, micros / 100 % 10),
            10_000..10_000_000 => write!(f, "{} ms", micros / 1000),
            _ => write!(f, "{} s", micros / 1_000_000),
        }
    }
}

/// A number of bytes.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..0x40_0000 => write!(f, "{} KiB", self.0 >> 10),
            0x40_0000..0x10_0000_0000 => write!(f, "{} MiB", self.0 >> 20),
            _ => write!(f, "{} GiB", self.0 >> 30),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMeasured => f.write_str("the speed of the link is not known yet"),
            Self::NotRehearsed => f.write_str("the rehearsal at the destination is not done yet"),
            Self::FirstPass { left } => {
                write!(f, "the first pass over memory goes on, {} are left", Bytes(left))
            }
            Self::TooLong { now, limit } => write!(
                f,
                "a switch now would stop the guest for {}, more than the {} allowed; \
                 rounds still shrink",
                Time(now),
                Time(limit)
            ),
            Self::StillFalling { now, next } => write!(
                f,
                "a switch now would stop the guest for {}, after another round for {}",
                Time(now),
                Time(next)
            ),
            Self::Untried { now } => write!(
                f,
                "a switch now would stop the guest for {} at most; a small round will show it \
                 better",
                Time(now)
            ),
            Self::Flat { now, next, limit } => write!(
                f,
                "a switch stops the guest for {} of the {} allowed, \
                 and another round would hardly change that ({})",
                Time(now),
                Time(limit),
                Time(next)
            ),
            Self::TimeRunsOut { now, timeout } => write!(
                f,
                "a switch stops the guest for {}, and another round would end after the {} allowed",
                Time(now),
                Time(timeout)
            ),
            Self::NotShrinking { left, dirty_rate, rate, now, limit } => write!(
                f,
                "rounds stopped shrinking: {} are left each time; the guest writes to {}/s, the \
                 link carries {}/s; a switch now would stop the guest for {}, more than the {} \
                 allowed",
                Bytes(left),
                Bytes(dirty_rate),
                Bytes(rate),
                Time(now),
                Time(limit)
            ),
            Self::CannotFit { floor, limit, part, time } => write!(
                f,
                "even with no memory left to send the guest would stop for {}, more than the {} \
                 allowed; {part} takes {} of it; allow a longer blackout to move it",
                Time(floor),
                Time(limit),
                Time(time)
            ),
            Self::OutOfTime { timeout } => {
                write!(f, "the move is not done after the {} allowed", Time(timeout))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        let ms = Duration::from_millis;
        let why = Why::NotShrinking {
            left: 300 << 20,
            dirty_rate: 900 << 20,
            rate: 700 << 20,
            now: ms(440),
            limit: ms(300),
        };
        assert_eq!(
            why.to_string(),
            "rounds stopped shrinking: 300 MiB are left each time; the guest writes to 900 MiB/s, \
             the link carries 700 MiB/s; a switch now would stop the guest for 440 ms, more than \
             the 300 ms allowed"
        );
        let why = Why::CannotFit {
            floor: ms(350),
            limit: ms(300),
            part: "restoring the state",
            time: Duration::from_micros(9_870),
        };
        assert_eq!(
            why.to_string(),
            "even with no memory left to send the guest would stop for 350 ms, more than the \
             300 ms allowed; restoring the state takes 9.8 ms of it; allow a longer blackout to \
             move it"
        );
    }
}
