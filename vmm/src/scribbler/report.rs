//! What the guest says on its serial port, as events.
//!
//! Between heartbeats (one byte each, the `tag`) stand lines; each begins and ends with a line
//! feed and is written in one piece, so the two cannot mix.

use std::collections::BTreeMap;

/// Longest line kept; more is noise of something else.
const MAX_LINE: usize = 4096;

/// One thing the guest said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many heartbeats in a row.
    Heartbeats(u64),
    /// All pages are filled and the CPUs run.
    Ready(Ready),
    /// The regular status.
    Status(Status),
    /// All pages were checked and no error was ever found.
    VerifyOk(Sweep),
    /// A sweep that proves nothing, or finds errors now or before.
    VerifyBad(Sweep),
    /// The first wrong page a CPU has found.
    Mismatch(Mismatch),
    /// The guest stops: a parameter or the machine does not suit it.
    Error(String),
    /// A CPU stopped by an exception.
    Exception(String),
    /// A word of the command line that it does not know.
    Ignored(String),
    /// It switches the machine off.
    PowerOff,
    /// A line that is not the guest's.
    Other(String),
}

/// `SCRIBBLER-READY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// CPUs at work.
    pub cpus: u64,
    /// All pages.
    pub pages: u64,
    /// Those that are rewritten.
    pub ws: u64,
    /// It reads kvmclock (else the bare TSC).
    pub kvmclock: bool,
    /// How long it took to fill them.
    pub fill_ms: u64,
}

/// `S …`, the status line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Milliseconds since its start, in guest time.
    pub t: u64,
    /// Times the working set was rewritten.
    pub rounds: u64,
    /// Pages rewritten.
    pub pages: u64,
    /// Pages found wrong, before rewriting or in a sweep, and registers.
    pub errors: u64,
    /// Sweeps finished.
    pub sweep: u64,
    /// Times a CPU's clock went back.
    pub clk_back: u64,
    /// Times SSE registers were found wrong.
    pub regs: u64,
    /// Heartbeats sent.
    pub hb: u64,
    /// Longest time between two heartbeats since the last status, in microseconds.
    pub gap: u64,
}

/// `VERIFY …`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Pages checked.
    pub pages: u64,
    /// Errors found since the start.
    pub errors: u64,
    /// Errors found by this sweep.
    pub now: u64,
    /// The first wrong page of this sweep (guest page number).
    pub first: Option<u64>,
    /// Number of the sweep.
    pub sweep: u64,
}

/// `MISMATCH …`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest page number.
    pub page: u64,
    /// First wrong 64-bit word.
    pub word: u64,
    /// What it must be.
    pub expected: u64,
    /// What it is.
    pub found: u64,
    /// Version the page should have.
    pub version: u64,
}

/// Incremental parser of the serial output.
#[derive(Debug)]
pub struct Parser {
    tag: u8,
    line: Option<Vec<u8>>,
}

impl Parser {
    /// `tag` is the heartbeat's byte.
    pub fn new(tag: char) -> Self {
        Self { tag: u8::try_from(tag).unwrap_or(b'.'), line: None }
    }

    /// Takes more output; returns what is complete by now.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            match &mut self.line {
                // A line feed ends a line, or an empty one: the next line's start.
                Some(line) if byte == b'\n' && !line.is_empty() => {
                    events.push(parse_line(&String::from_utf8_lossy(line)));
                    self.line = None;
                }
                Some(line) if !line.is_empty() || byte != self.tag => {
                    if byte != b'\n' && line.len() < MAX_LINE {
                        line.push(byte);
                    }
                }
                _ if byte == b'\n' => self.line = Some(Vec::new()),
                _ if byte == self.tag => {
                    self.line = None;
                    if let Some(Event::Heartbeats(count)) = events.last_mut() {
                        *count += 1;
                    } else {
                        events.push(Event::Heartbeats(1));
                    }
                }
                // Output that began in the middle of a line.
                _ => self.line = Some(vec![byte]),
            }
        }
        events
    }
}

fn parse_line(line: &str) -> Event {
    let line = line.trim_end_matches('\r');
    let parsed = match line.split_once(' ').unwrap_or((line, "")) {
        ("S", rest) => status(&fields(rest)).map(Event::Status),
        ("SCRIBBLER-READY", rest) => ready(&fields(rest)).map(Event::Ready),
        ("VERIFY", rest) => match rest.split_once(' ') {
            Some(("ok", rest)) => sweep(&fields(rest)).map(Event::VerifyOk),
            Some(("BAD", rest)) => sweep(&fields(rest)).map(Event::VerifyBad),
            _ => None,
        },
        ("MISMATCH", rest) => mismatch(&fields(rest)).map(Event::Mismatch),
        ("SCRIBBLER-ERROR", rest) => Some(Event::Error(rest.to_owned())),
        ("SCRIBBLER-EXCEPTION", rest) => Some(Event::Exception(rest.to_owned())),
        ("SCRIBBLER-IGNORED", rest) => Some(Event::Ignored(rest.to_owned())),
        ("SCRIBBLER-POWEROFF", _) => Some(Event::PowerOff),
        _ => None,
    };
    parsed.unwrap_or_else(|| Event::Other(line.to_owned()))
}

fn fields(text: &str) -> BTreeMap<&str, u64> {
    let pairs = text.split_ascii_whitespace().filter_map(|word| {
        let (key, value) = word.split_once('=')?;
        let value = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => value.parse().ok()?,
        };
        Some((key, value))
    });
    pairs.collect()
}

fn ready(f: &BTreeMap<&str, u64>) -> Option<Ready> {
    Some(Ready {
        cpus: *f.get("cpus")?,
        pages: *f.get("pages")?,
        ws: *f.get("ws")?,
        kvmclock: *f.get("kvmclock")? != 0,
        fill_ms: *f.get("fill_ms")?,
    })
}

fn status(f: &BTreeMap<&str, u64>) -> Option<Status> {
    Some(Status {
        t: *f.get("t")?,
        rounds: *f.get("rounds")?,
        pages: *f.get("pages")?,
        errors: *f.get("errors")?,
        sweep: *f.get("sweep")?,
        clk_back: *f.get("clk_back")?,
        regs: *f.get("regs")?,
        hb: *f.get("hb")?,
        gap: *f.get("gap")?,
    })
}

fn sweep(f: &BTreeMap<&str, u64>) -> Option<Sweep> {
    Some(Sweep {
        pages: *f.get("pages")?,
        errors: *f.get("errors")?,
        now: f.get("now").copied().unwrap_or(0),
        first: f.get("first").copied(),
        sweep: *f.get("sweep")?,
    })
}

fn mismatch(f: &BTreeMap<&str, u64>) -> Option<Mismatch> {
    Some(Mismatch {
        page: *f.get("page")?,
        word: *f.get("word")?,
        expected: *f.get("expected")?,
        found: *f.get("found")?,
        version: *f.get("version")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "..\nSCRIBBLER-IGNORED quiet\n\nSCRIBBLER-READY cpus=2 pages=12 ws=8 \
        kvmclock=1 fill_ms=4\n...\nMISMATCH page=1357 word=256 expected=0xd2 found=0xf2 version=0\n\
        \nS t=1000 rounds=0 pages=19 errors=1 sweep=0 clk_back=0 regs=0 hb=5 gap=10016\n.\n\
        VERIFY ok pages=12 errors=0 sweep=1\n\nVERIFY BAD pages=12 errors=1 now=1 first=7 \
        sweep=2\n\nSCRIBBLER-POWEROFF\n";

    fn expected() -> Vec<Event> {
        vec![
            Event::Heartbeats(2),
            Event::Ignored("quiet".to_owned()),
            Event::Ready(Ready { cpus: 2, pages: 12, ws: 8, kvmclock: true, fill_ms: 4 }),
            Event::Heartbeats(3),
            Event::Mismatch(Mismatch {
                page: 1357,
                word: 256,
                expected: 0xD2,
                found: 0xF2,
                version: 0,
            }),
            Event::Status(Status {
                t: 1000,
                pages: 19,
                errors: 1,
                hb: 5,
                gap: 10016,
                ..Status::default()
            }),
            Event::Heartbeats(1),
            Event::VerifyOk(Sweep { pages: 12, sweep: 1, ..Sweep::default() }),
            Event::VerifyBad(Sweep { pages: 12, errors: 1, now: 1, first: Some(7), sweep: 2 }),
            Event::PowerOff,
        ]
    }

    #[test]
    fn a_whole_conversation() {
        assert_eq!(Parser::new('.').feed(OUTPUT.as_bytes()), expected());
    }

    #[test]
    fn the_pieces_do_not_matter() {
        let mut parser = Parser::new('.');
        let mut events: Vec<Event> = Vec::new();
        for byte in OUTPUT.bytes() {
            for event in parser.feed(&[byte]) {
                match (events.last_mut(), event) {
                    (Some(Event::Heartbeats(sum)), Event::Heartbeats(more)) => *sum += more,
                    (_, event) => events.push(event),
                }
            }
        }
        assert_eq!(events, expected());
    }

    #[test]
    fn foreign_lines_are_kept() {
        let events = Parser::new('x').feed(b"SeaBIOS\nxx\nS t=1 broken\nx");
        assert_eq!(
            events,
            [
                Event::Other("SeaBIOS".to_owned()),
                Event::Heartbeats(2),
                Event::Other("S t=1 broken".to_owned()),
                Event::Heartbeats(1),
            ]
        );
    }
}
