//! Why copying ended without a switch.

use std::time::Duration;

use super::compare;
use crate::pump::{SendFail, TalkError};
use crate::unit::UnitIndex;
use crate::wire::Message;

/// Why copying ended without a switch. The guest runs as before.
#[derive(Debug, thiserror::Error)]
pub enum PrecopyError {
    /// Somebody said stop.
    #[error("the copy was cancelled")]
    Cancelled,
    /// It took longer than it may.
    #[error("the copy was given up after {}: the time allowed for it", seconds(.0))]
    TimeUp(Duration),
    /// A round failed.
    #[error(transparent)]
    Send(SendFail),
    /// The conversation failed.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// The target ended it.
    #[error("the target ended the move: {0}")]
    Refused(String),
    /// The target answered something else than what was asked.
    #[error("the target's answer makes no sense here: {0}")]
    Unexpected(String),
    /// The target counted otherwise.
    #[error("round {round}: {sent:?} units and zero units were sent, {found:?} came")]
    Count {
        /// The round.
        round: u32,
        /// Units and zero units sent.
        sent: (u64, u64),
        /// What the target counted.
        found: (u64, u64),
    },
    /// What lies there is not what was sent.
    #[error(
        "memory at the target is not what was sent, in pages {}{}; \
         this is a defect of this program or of a machine: keep the report",
        list(.0),
        if .0.len() < compare::NAMED { "" } else { " and perhaps more" }
    )]
    Differs(Vec<UnitIndex>),
    /// An earlier call was dropped in the middle of a round.
    #[error("the copy was abandoned in the middle of a round: begin again")]
    Abandoned,
}

fn seconds(time: &Duration) -> String {
    format!("{} s", time.as_secs())
}

fn list(units: &[UnitIndex]) -> String {
    units.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl From<SendFail> for PrecopyError {
    fn from(why: SendFail) -> Self {
        match why {
            SendFail::Cancelled => Self::Cancelled,
            other => Self::Send(other),
        }
    }
}

impl PrecopyError {
    /// Whether the same attempt can go on with a new link; see [`Precopy::reconnect`].
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Send(why) => why.is_cut(),
            Self::Talk(why) => why.is_cut(),
            _ => false,
        }
    }

    pub(super) fn unexpected(message: &Message) -> Self {
        match message {
            Message::Refuse { text, .. } | Message::Cancel { text } => {
                Self::Refused(text.to_string())
            }
            // Not the content: a state can be large.
            other => Self::Unexpected(format!("message {}", other.kind())),
        }
    }
}
