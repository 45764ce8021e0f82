//! The relay's language: conditions as people write them, and requests on its control socket.
//! Text in, values out, and back; nothing is done here.

use std::time::Duration;

use super::model::{Conditions, Counters, Share};

/// Directions that a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Both.
    Both,
    /// From host a to host b.
    AToB,
    /// From host b to host a.
    BToA,
}

impl Which {
    /// Whether direction 0 (a to b) or 1 (b to a) is meant.
    pub fn has(self, direction: usize) -> bool {
        match self {
            Self::Both => true,
            Self::AToB => direction == 0,
            Self::BToA => direction == 1,
        }
    }

    fn read(word: &str) -> Option<Self> {
        match word {
            "both" => Some(Self::Both),
            "a-to-b" => Some(Self::AToB),
            "b-to-a" => Some(Self::BToA),
            _ => None,
        }
    }
}

/// A request on the control socket.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Tell conditions and counters.
    Show,
    /// Let nothing through.
    Cut(Which),
    /// Let everything through again.
    Heal(Which),
    /// Change conditions; each pair is known to be right.
    Set(Which, Vec<(String, String)>),
}

impl Request {
    /// Reads `show`, `cut [DIRECTION]`, `heal [DIRECTION]` or `set [DIRECTION] KEY=VALUE…`.
    ///
    /// # Errors
    /// What is not understood.
    pub fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace().peekable();
        let verb = words.next().unwrap_or_default();
        let which = words.peek().and_then(|w| Which::read(w));
        if which.is_some() {
            words.next();
        }
        let which = which.unwrap_or(Which::Both);
        let rest: Vec<&str> = words.collect();
        match (verb, rest.as_slice()) {
            ("show", []) => Ok(Self::Show),
            ("cut", []) => Ok(Self::Cut(which)),
            ("heal", []) => Ok(Self::Heal(which)),
            ("set", [_, ..]) => {
                let pair = |word: &&str| {
                    let (key, value) =
                        word.split_once('=').ok_or(format!("no KEY=VALUE: {word}"))?;
                    change(&mut Conditions::default(), key, value)?;
                    Ok((key.to_owned(), value.to_owned()))
                };
                Ok(Self::Set(which, rest.iter().map(pair).collect::<Result<_, String>>()?))
            }
            _ => Err(format!("not understood: {line}")),
        }
    }
}

/// Keys that [`change`] knows, with what they take.
pub const KEYS: &str = "delay=10ms jitter=2ms rate=200mbit|none queue=500k loss=0.1% burst=1 \
                        duplicate=1% reorder=1% hold=2ms";

/// Changes one condition.
///
/// # Errors
/// An unknown key, or a value that does not fit it.
pub fn change(conditions: &mut Conditions, key: &str, value: &str) -> Result<(), String> {
    match key {
        "delay" => conditions.delay = duration(value)?,
        "jitter" => conditions.jitter = duration(value)?,
        "hold" => conditions.hold = duration(value)?,
        "rate" => conditions.rate = if value == "none" { None } else { Some(rate(value)?) },
        "queue" => conditions.queue = bytes(value)?,
        "loss" => conditions.loss = share(value)?,
        "duplicate" => conditions.duplicate = share(value)?,
        "reorder" => conditions.reorder = share(value)?,
        "burst" => {
            let burst = value.parse().ok().filter(|b| (1..=10_000).contains(b));
            conditions.burst = burst.ok_or(format!("burst={value}: give 1 to 10000 frames"))?;
        }
        _ => return Err(format!("{key}: unknown; there are {KEYS}")),
    }
    Ok(())
}

/// Number and unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// A number that is finite, not negative, and below 2⁵³.
fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && (0.0..9e15).contains(n))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "number() bounds it")]
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<u64> {
    let (digits, unit) = split(text);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number(digits).map(|n| n * factor).filter(|n| *n < 9e15).map(|n| n.round() as u64)
}

fn duration(text: &str) -> Result<Duration, String> {
    let nanos = scaled(text, &[("us", 1e3), ("ms", 1e6), ("s", 1e9)]);
    let time = nanos.map(Duration::from_nanos).filter(|d| *d <= Duration::from_mins(1));
    time.ok_or(format!("{text}: give a time up to 60s, such as 10ms"))
}

fn rate(text: &str) -> Result<u64, String> {
    let bits = scaled(text, &[("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)]);
    bits.filter(|b| *b >= 1000).ok_or(format!("{text}: give a rate such as 200mbit"))
}

fn bytes(text: &str) -> Result<u64, String> {
    let bytes = scaled(text, &[("", 1.0), ("k", 1024.0), ("m", 1_048_576.0)]);
    bytes.filter(|b| *b <= 1 << 30).ok_or(format!("{text}: give bytes up to 1024m, such as 500k"))
}

fn share(text: &str) -> Result<Share, String> {
    let parts = scaled(text, &[("%", 1e4)]).filter(|p| *p <= 1_000_000);
    let parts = parts.and_then(|p| u32::try_from(p).ok());
    parts.map(Share::of_million).ok_or(format!("{text}: give a share such as 0.1%"))
}

/// One direction as a line of `KEY=VALUE`.
pub fn line(name: &str, conditions: &Conditions, counters: Counters) -> String {
    let percent = |s: Share| f64::from(s.parts()) / 1e4;
    let rate = conditions.rate.map_or("none".to_owned(), |r| format!("{}kbit", r / 1000));
    format!(
        "{name} cut={} delay={}us jitter={}us rate={rate} queue={} loss={}% burst={} \
         duplicate={}% reorder={}% frames={} bytes={} dropped={} lost={} while_cut={} \
         duplicated={} reordered={}",
        if conditions.cut { "yes" } else { "no" },
        conditions.delay.as_micros(),
        conditions.jitter.as_micros(),
        conditions.queue,
        percent(conditions.loss),
        conditions.burst,
        percent(conditions.duplicate),
        percent(conditions.reorder),
        counters.frames,
        counters.bytes,
        counters.dropped,
        counters.lost,
        counters.cut,
        counters.duplicated,
        counters.reordered,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let mut read = Conditions::default();
        for pair in "delay=10ms jitter=500us rate=200mbit queue=500k loss=0.1% burst=3 \
                     duplicate=1% reorder=2.5% hold=1s"
            .split_whitespace()
        {
            let (key, value) = pair.split_once('=').unwrap();
            change(&mut read, key, value).unwrap();
        }
        let wanted = Conditions {
            delay: Duration::from_millis(10),
            jitter: Duration::from_micros(500),
            rate: Some(200_000_000),
            queue: 512_000,
            loss: Share::of_million(1000),
            burst: 3,
            duplicate: Share::of_million(10_000),
            reorder: Share::of_million(25_000),
            hold: Duration::from_secs(1),
            cut: false,
        };
        assert_eq!(read, wanted);
    }

    #[test]
    fn nonsense_is_refused() {
        for (key, value) in [
            ("delay", "10"),
            ("delay", "-1ms"),
            ("delay", "61s"),
            ("delay", "1e3ms"),
            ("rate", "200"),
            ("rate", "0mbit"),
            ("rate", "99999999999999999999gbit"),
            ("queue", "2000m"),
            ("loss", "101%"),
            ("loss", "0.1"),
            ("loss", "%"),
            ("burst", "0"),
            ("mood", "good"),
        ] {
            assert!(change(&mut Conditions::default(), key, value).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn requests_are_read() {
        assert_eq!(Request::read("show"), Ok(Request::Show));
        assert_eq!(Request::read("cut"), Ok(Request::Cut(Which::Both)));
        assert_eq!(Request::read(" heal  a-to-b\n"), Ok(Request::Heal(Which::AToB)));
        let pairs = vec![("loss".to_owned(), "1%".to_owned())];
        assert_eq!(Request::read("set b-to-a loss=1%"), Ok(Request::Set(Which::BToA, pairs)));
        for bad in ["", "cut north", "set", "set loss", "set loss=x", "show me", "halt"] {
            assert!(Request::read(bad).is_err(), "{bad}");
        }
        assert!(Which::BToA.has(1) && !Which::BToA.has(0) && Which::Both.has(1));
    }
}
