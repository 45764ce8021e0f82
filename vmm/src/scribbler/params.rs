//! The guest's parameters: parsed from a user's text, checked, rendered as its command line.

use std::fmt::Write as _;
use std::time::Duration;

use super::layout::{HIGH_START, LOG_ENTRIES, LOW_END, MAX_CPUS, PAGES};
use crate::memory::layout::{PAGE_SIZE, ram_ranges};

/// Most pages a second that the guest takes as a number.
const MAX_RATE: u64 = 100_000_000;
/// Tags that would look like the first letter of a line.
const RESERVED_TAGS: &str = "SMV";

/// One parameter, for help texts.
#[derive(Clone, Copy, Debug)]
pub struct ParamDoc {
    /// Its key.
    pub key: &'static str,
    /// What it takes.
    pub allowed: &'static str,
    /// Without it.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

macro_rules! params {
    ($($key:literal, $allowed:literal, $default:literal, $meaning:literal;)*) => {
        /// All parameters that a user may give.
        pub const PARAMS: &[ParamDoc] = &[$(ParamDoc {
            key: $key, allowed: $allowed, default: $default, meaning: $meaning,
        }),*];
    };
}

params! {
    "ws", "a size in whole pages (K, M, G)", "half of RAM", "working set: pages that are rewritten";
    "data", "a size in whole pages (K, M, G)", "0", "pages filled once, then only verified";
    "rate", "pages a second up to 100000000, bytes a second (200MiB/s), or max", "1000",
        "rewrites a second over all CPUs; 0 is idle";
    "pattern", "seq, random or hot", "random", "order in which pages are rewritten";
    "hot", "1 to 99", "10", "percent of the working set that is hot (pattern=hot)";
    "hotp", "0 to 100", "90", "percent of rewrites that go to hot pages";
    "compress", "0 to 100", "0", "percent of each page that repeats one word";
    "seed", "a number (decimal or 0x)", "1", "what all contents and orders derive from";
    "hb", "0, or 100us to 1000s", "10ms", "heartbeat period: one byte each; 0 is none";
    "status", "0, or 1ms to 1000s", "1s", "status line period; 0 is none";
    "poll", "0, or 1ms to 1000s", "50ms", "how often input and power button are looked at";
    "verify", "0, or 1ms to 1000000s", "0", "period of verify sweeps; 0 is on demand only";
    "tag", "one printable ASCII character but S, M, V and comma", ".", "the heartbeat's byte";
    "log", "0 or 1", "0", "record every rewritten page number in a ring";
    "poison", "a page index", "none", "flip one bit of this page (counted from 0) after the fill";
    "tsc_khz", "125000 to 10000000", "from CPUID", "TSC frequency where there is no kvmclock";
}

/// A mistake in the parameters.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParamError {
    /// No such key.
    #[error("scribbler: unknown parameter `{0}`; known are {known}", known = known_keys())]
    Unknown(String),
    /// A word without `=`.
    #[error("scribbler: `{0}` is not of the form key=value")]
    NoValue(String),
    /// The key was given before.
    #[error("scribbler: `{0}` is given twice")]
    Twice(String),
    /// A value that is not allowed.
    #[error("scribbler: {key}={value} is not possible; {key} takes {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Too much memory asked for.
    #[error("scribbler: ws and data take {needed} pages, but only {available} of RAM are free")]
    TooLarge {
        /// Pages asked for.
        needed: u64,
        /// Pages there are.
        available: u64,
    },
    /// Too few pages for the CPUs.
    #[error("scribbler: ws has {pages} pages; it must be 0 or at least two a CPU ({cpus} CPUs)")]
    TooSmall {
        /// Pages of the working set.
        pages: u64,
        /// CPUs.
        cpus: u32,
    },
    /// A number of CPUs the guest cannot use.
    #[error("scribbler: it runs on 1 to {MAX_CPUS} CPUs, not on {0}")]
    Cpus(u32),
}

fn known_keys() -> String {
    PARAMS.iter().map(|p| p.key).collect::<Vec<_>>().join(", ")
}

/// Rewrites a second over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many pages.
    Pages(u64),
    /// As fast as it goes.
    Max,
}

/// Order of rewrites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Ascending addresses.
    Seq,
    /// A full-period permutation.
    Random,
    /// Two permutations, hot and cold pages.
    Hot,
}

/// The parameters; [`PARAMS`] documents them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Params {
    pub ws: Option<u64>,
    pub data: u64,
    pub rate: Rate,
    pub pattern: Pattern,
    pub hot: u8,
    pub hotp: u8,
    pub compress: u8,
    pub seed: u64,
    pub heartbeat: Duration,
    pub status: Duration,
    pub poll: Duration,
    pub verify: Duration,
    pub tag: char,
    pub log: bool,
    pub poison: Option<u64>,
    pub tsc_khz: Option<u64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            ws: None,
            data: 0,
            rate: Rate::Pages(1000),
            pattern: Pattern::Random,
            hot: 10,
            hotp: 90,
            compress: 0,
            seed: 1,
            heartbeat: Duration::from_millis(10),
            status: Duration::from_secs(1),
            poll: Duration::from_millis(50),
            verify: Duration::ZERO,
            tag: '.',
            log: false,
            poison: None,
            tsc_khz: None,
        }
    }
}

impl Params {
    /// Parses `scribbler`, `scribbler:key=value,…` or only `key=value,…`.
    pub fn parse(spec: &str) -> Result<Self, ParamError> {
        let words = match spec.strip_prefix("scribbler") {
            Some("") => "",
            Some(rest) => rest.strip_prefix(':').unwrap_or(spec),
            None => spec,
        };
        let mut params = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        for word in words.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (key, value) =
                word.split_once('=').ok_or_else(|| ParamError::NoValue(word.to_owned()))?;
            let doc = PARAMS
                .iter()
                .find(|p| p.key == key)
                .ok_or_else(|| ParamError::Unknown(key.to_owned()))?;
            if seen.contains(&key) {
                return Err(ParamError::Twice(key.to_owned()));
            }
            seen.push(key);
            params.set(key, value).ok_or_else(|| ParamError::Value {
                key: doc.key,
                value: value.to_owned(),
                allowed: doc.allowed,
            })?;
        }
        Ok(params)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ws" => self.ws = Some(whole_pages(value)?),
            "data" => self.data = whole_pages(value)?,
            "rate" => self.rate = rate(value)?,
            "pattern" => {
                self.pattern = match value {
                    "seq" => Pattern::Seq,
                    "random" => Pattern::Random,
                    "hot" => Pattern::Hot,
                    _ => return None,
                }
            }
            "hot" => self.hot = value.parse().ok().filter(|v| (1..=99).contains(v))?,
            "hotp" => self.hotp = value.parse().ok().filter(|v| *v <= 100)?,
            "compress" => self.compress = value.parse().ok().filter(|v| *v <= 100)?,
            "seed" => self.seed = number(value)?,
            "hb" => self.heartbeat = period(value, Duration::from_micros(100), 1000)?,
            "status" => self.status = period(value, Duration::from_millis(1), 1000)?,
            "poll" => self.poll = period(value, Duration::from_millis(1), 1000)?,
            "verify" => self.verify = period(value, Duration::from_millis(1), 1_000_000)?,
            "tag" => {
                let mut chars = value.chars();
                let tag = chars.next().filter(char::is_ascii_graphic)?;
                if chars.next().is_some() || RESERVED_TAGS.contains(tag) {
                    return None;
                }
                self.tag = tag;
            }
            "log" => {
                self.log = match value {
                    "0" => false,
                    "1" => true,
                    _ => return None,
                }
            }
            "poison" => self.poison = Some(number(value).filter(|v| *v < u64::MAX)?),
            "tsc_khz" => {
                let khz = number(value).filter(|v| (125_000..=10_000_000).contains(v))?;
                self.tsc_khz = Some(khz);
            }
            _ => return None,
        }
        Some(())
    }

    /// Can these parameters run on this machine?
    pub fn fits(&self, memory_bytes: u64, cpus: u32) -> Result<(), ParamError> {
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(ParamError::Cpus(cpus));
        }
        let available = self.available_pages(memory_bytes, cpus);
        let ws = self.ws.map_or(available / 2, |bytes| bytes / PAGE_SIZE);
        let needed = ws.saturating_add(self.data / PAGE_SIZE);
        if available == 0 || needed > available {
            return Err(ParamError::TooLarge { needed, available });
        }
        if ws != 0 && ws < 2 * u64::from(cpus) {
            return Err(ParamError::TooSmall { pages: ws, cpus });
        }
        Ok(())
    }

    /// Pages left for working set and data.
    pub fn available_pages(&self, memory_bytes: u64, cpus: u32) -> u64 {
        let log = if self.log { u64::from(cpus) * LOG_ENTRIES * 8 } else { 0 };
        let first = PAGES + log;
        let ranges = ram_ranges(memory_bytes);
        let bytes = ranges.iter().map(|range| {
            let end = range.gpa + range.len;
            let end = if range.gpa < HIGH_START { end.min(LOW_END) } else { end };
            end.saturating_sub(range.gpa.max(first))
        });
        bytes.sum::<u64>() / PAGE_SIZE
    }

    /// The guest's command line. `pm` is the port of the ACPI `PM1a` event block, if there is
    /// one.
    /// Every value stands there, so that defaults of another version change nothing.
    pub fn command_line(&self, cpus: u32, pm: Option<u16>) -> String {
        let rate = match self.rate {
            Rate::Max => "max".to_owned(),
            Rate::Pages(pages) => pages.to_string(),
        };
        let pattern = match self.pattern {
            Pattern::Seq => "seq",
            Pattern::Random => "random",
            Pattern::Hot => "hot",
        };
        let mut line = format!(
            "cpus={cpus} data={} rate={rate} pattern={pattern} hot={} hotp={} compress={} seed={} \
             hb={}us status={}us poll={}us verify={}us tag={} log={}",
            self.data,
            self.hot,
            self.hotp,
            self.compress,
            self.seed,
            self.heartbeat.as_micros(),
            self.status.as_micros(),
            self.poll.as_micros(),
            self.verify.as_micros(),
            self.tag,
            u8::from(self.log),
        );
        let options = [
            ("ws", self.ws),
            ("poison", self.poison),
            ("tsc_khz", self.tsc_khz),
            ("pm", pm.map(u64::from)),
        ];
        for (key, value) in options {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = write!(line, " {key}={value}");
            }
        }
        line
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok()
        }
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// A number of bytes with K, M or G; whether there was such a suffix.
fn size(text: &str) -> Option<(u64, bool)> {
    let text = text.strip_suffix("iB").unwrap_or(text);
    let shift = match text.chars().next_back()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        _ => return number(text).map(|n| (n, false)),
    };
    let value = number(&text[..text.len() - 1])?;
    value.checked_mul(1 << shift).map(|n| (n, true))
}

fn whole_pages(text: &str) -> Option<u64> {
    let (bytes, _) = size(text)?;
    // Beyond it the guest's own arithmetic would not be exact.
    (bytes.is_multiple_of(PAGE_SIZE) && bytes <= 1 << 48).then_some(bytes)
}

fn rate(text: &str) -> Option<Rate> {
    if text == "max" {
        return Some(Rate::Max);
    }
    let (value, bytes) = size(text.strip_suffix("/s").unwrap_or(text))?;
    let pages = if bytes { value / PAGE_SIZE } else { value };
    (pages <= MAX_RATE).then_some(Rate::Pages(pages))
}

fn period(text: &str, least: Duration, most_secs: u64) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let value: u64 = text[..unit].parse().ok()?;
    let micros = match &text[unit..] {
        "us" => value,
        "ms" => value.checked_mul(1000)?,
        "s" => value.checked_mul(1_000_000)?,
        _ => return None,
    };
    let period = Duration::from_micros(micros);
    (period.is_zero() || (least..=Duration::from_secs(most_secs)).contains(&period))
        .then_some(period)
}

#[cfg(test)]
#[path = "params_tests.rs"]
mod tests;
