//! Named places at which a test of the whole program may do harm: every message, mark, lock and
//! record of a move. A place asks the [hook](install) what becomes of it, and does as it is told.
//!
//! Without the feature `fail-points` there is no hook and nothing is asked: [`at`] is a constant,
//! names are not made, and [`rights`] gives back what it got. It decides nothing itself.

mod rights;

pub use self::rights::rights;

use std::io;
use std::time::Duration;

use crate::session::report::Side;
use crate::wire::Message;

/// What becomes of whatever happens at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It happens.
    Pass,
    /// A message is lost.
    Drop,
    /// A message comes twice.
    Twice,
    /// A message comes so much later, behind what is said meanwhile.
    Later(Duration),
    /// A write fails with this error number.
    Fail(i32),
}

impl Fate {
    /// How often a message goes out now.
    pub const fn times(self) -> usize {
        match self {
            Self::Drop | Self::Later(_) => 0,
            Self::Twice => 2,
            Self::Pass | Self::Fail(_) => 1,
        }
    }

    /// The message is lost.
    pub const fn is_lost(self) -> bool {
        matches!(self, Self::Drop)
    }

    /// For a write.
    ///
    /// # Errors
    /// The one it is to fail with.
    pub fn written(self) -> io::Result<()> {
        match self {
            Self::Fail(number) => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }
}

/// Asked at each place, by its name, on the thread that does the work: it may stop that for a
/// while, or end the process.
pub type Hook = fn(&str) -> Fate;

#[cfg(feature = "fail-points")]
static HOOK: std::sync::OnceLock<Hook> = std::sync::OnceLock::new();

/// Has `hook` asked from now on. The first one stays.
#[cfg(feature = "fail-points")]
pub fn install(hook: Hook) {
    let _ = HOOK.set(hook);
}

/// What becomes of what happens at the place of this name.
#[cfg(feature = "fail-points")]
pub fn at(name: impl FnOnce() -> String) -> Fate {
    HOOK.get().map_or(Fate::Pass, |hook| hook(&name()))
}

/// What becomes of what happens at the place of this name: nothing else.
#[cfg(not(feature = "fail-points"))]
#[inline]
pub fn at(_name: impl FnOnce() -> String) -> Fate {
    Fate::Pass
}

/// The name of a side's process.
pub const fn side(side: Side) -> &'static str {
    match side {
        Side::Source => "source",
        Side::Target => "target",
    }
}

/// What becomes of a message of the link between the two processes. `way`: `send` or `hear`.
pub fn message(from: Side, way: &str, message: &Message) -> Fate {
    at(|| {
        let word = match message {
            Message::FromSource { says, .. } => plain(says),
            Message::FromTarget { says, .. } => plain(says),
            other => other.name().to_owned(),
        };
        format!("{}.{way}.{word}", side(from))
    })
}

/// What becomes of a word that goes, or came, around the link.
pub fn around(from: Side, way: &str, message: &crate::handover::message::Message) -> Fate {
    use crate::handover::message::{Body, ToSource, ToTarget};
    at(|| {
        let word = match message.body {
            Body::ToTarget(ToTarget::Says(says)) => plain(&says),
            Body::ToSource(ToSource::Says(says, _)) => plain(&says),
            Body::ToTarget(ToTarget::Probe(_)) => "Probe".to_owned(),
            Body::ToTarget(other) => plain(&other),
            Body::ToSource(other) => plain(&other),
        };
        format!("{}.{way}.{word}", side(from))
    })
}

/// The name of a variant, without punctuation: `Ran { durable: true }` is `Ran-durable-true`.
pub fn plain(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The name of a variant, without what is in it.
pub fn kind(value: &impl std::fmt::Debug) -> String {
    plain(value).split('-').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::message::{Message as Word, SourceSays, TargetSays, ToSource, ToTarget};
    use crate::handover::term::{HostId, Switch, SwitchId, Term};

    #[test]
    fn names_are_those_of_the_variants() {
        assert_eq!(plain(&TargetSays::Ran { durable: true }), "Ran-durable-true");
        assert_eq!(plain(&SourceSays::Ceded), "Ceded");
        assert_eq!(kind(&ToSource::Says(TargetSays::NeverRan, None)), "Says");
    }

    #[test]
    fn without_a_hook_everything_happens_once() {
        let (from, to) = (HostId(1), HostId(2));
        let (before, term) = (Term::new(1), Term::new(2));
        let switch = Switch { id: SwitchId(3), before, term, from, to };
        let asks = Word::to_source(switch, ToSource::Ask);
        let offers = Word::to_target(switch, ToTarget::Offer);
        for fate in [
            at(String::new),
            message(Side::Source, "send", &Message::Ask { switch }),
            around(Side::Target, "around", &asks),
            around(Side::Source, "around", &offers),
        ] {
            assert_eq!((fate, fate.times()), (Fate::Pass, 1));
            assert!(fate.written().is_ok());
        }
        assert_eq!(Fate::Fail(28).written().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
