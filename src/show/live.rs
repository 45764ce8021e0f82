//! A scribbler's console, for people: beats are counted instead of shown, status lines become
//! sentences, the verdict of a sweep is recognised.

use super::style::{Style, safe};
use super::units::count;

/// Longest line that is kept together; a longer one is shown in pieces.
const LINE_MAX: usize = 4096;

/// What a scribbler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// All pages are written: it runs.
    Ready,
    /// Its line of each second.
    Status(Status),
    /// The verdict of a sweep over all pages.
    Verified {
        /// No page was ever found wrong, and none was left out.
        ok: bool,
        /// The line.
        line: String,
    },
    /// Anything else.
    Line(String),
}

/// A status line's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Guest time since its boot.
    pub t_ms: u64,
    /// Times each page of the working set was written.
    pub rounds: u64,
    /// Pages written.
    pub pages: u64,
    /// Pages found wrong.
    pub errors: u64,
    /// Heartbeats.
    pub beats: u64,
    /// Longest time between two heartbeats since the last line.
    pub gap_us: u64,
}

/// Splits a scribbler's console into what it said.
#[derive(Debug, Default)]
pub struct Listener {
    line: Vec<u8>,
}

impl Listener {
    /// Takes console output; answers what was completed by it.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        for &byte in bytes {
            if byte == b'\n' || self.line.len() >= LINE_MAX {
                said.extend(understand(&String::from_utf8_lossy(&self.line)));
                self.line.clear();
            }
            // A heartbeat stands alone between lines; the same byte in a line is text.
            if byte != b'\n' && byte != b'\r' && !(self.line.is_empty() && byte == b'.') {
                self.line.push(byte);
            }
        }
        said
    }
}

fn understand(line: &str) -> Option<Said> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "" => None,
        "S" => Some(Said::Status(status(rest))),
        "SCRIBBLER-READY" => Some(Said::Ready),
        "VERIFY" => Some(Said::Verified { ok: rest.starts_with("ok "), line: safe(line) }),
        _ => Some(Said::Line(safe(line))),
    }
}

fn status(fields: &str) -> Status {
    let mut status = Status::default();
    for (key, value) in fields.split(' ').filter_map(|f| f.split_once('=')) {
        let field = match key {
            "t" => &mut status.t_ms,
            "rounds" => &mut status.rounds,
            "pages" => &mut status.pages,
            "errors" => &mut status.errors,
            "hb" => &mut status.beats,
            "gap" => &mut status.gap_us,
            _ => continue,
        };
        *field = value.parse().unwrap_or(0);
    }
    status
}

/// A status line as a sentence, with rates since `before`.
pub fn sentence(now: &Status, before: &Status, style: Style) -> String {
    let ms = now.t_ms.saturating_sub(before.t_ms).max(1);
    let rate = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / ms;
    let errors = format!("{} errors", now.errors);
    format!(
        "{:>4}.{} s   {} beats/s   longest gap {}.{} ms   {} pages/s   {} rounds   {}",
        now.t_ms / 1000,
        now.t_ms % 1000 / 100,
        count(rate(now.beats, before.beats)),
        now.gap_us / 1000,
        now.gap_us % 1000 / 100,
        count(rate(now.pages, before.pages)),
        count(now.rounds),
        if now.errors == 0 { errors } else { style.red(&errors) }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONSOLE: &str = "\nSCRIBBLER-READY cpus=2 pages=100 ws=50 kvmclock=1 fill_ms=3\n...\
        \nS t=1000 rounds=2 pages=100 errors=0 sweep=0 clk_back=0 hb=100 gap=10250\n..\
        \nS t=2000 rounds=4 pages=2100 errors=1 sweep=0 clk_back=0 hb=200 gap=9000\n\
        \nVERIFY ok pages=100 errors=0 sweep=1\n..\nVERIFY BAD pages=100 errors=1\n\
        \nSCRIBBLER-POWEROFF\n";

    fn expected() -> Vec<Said> {
        let first =
            Status { t_ms: 1000, rounds: 2, pages: 100, errors: 0, beats: 100, gap_us: 10_250 };
        let second =
            Status { t_ms: 2000, rounds: 4, pages: 2100, errors: 1, beats: 200, gap_us: 9000 };
        vec![
            Said::Ready,
            Said::Status(first),
            Said::Status(second),
            Said::Verified { ok: true, line: "VERIFY ok pages=100 errors=0 sweep=1".into() },
            Said::Verified { ok: false, line: "VERIFY BAD pages=100 errors=1".into() },
            Said::Line("SCRIBBLER-POWEROFF".into()),
        ]
    }

    #[test]
    fn rates_are_those_of_the_last_second() {
        let all = Listener::default().hear(CONSOLE.as_bytes());
        let [_, Said::Status(a), Said::Status(b), ..] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(
            sentence(b, a, Style::PLAIN),
            "   2.0 s   100 beats/s   longest gap 9.0 ms   2,000 pages/s   4 rounds   1 errors"
        );
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cut in 0..CONSOLE.len()) {
            let mut listener = Listener::default();
            let mut said = listener.hear(&CONSOLE.as_bytes()[..cut]);
            said.extend(listener.hear(&CONSOLE.as_bytes()[cut..]));
            prop_assert_eq!(said, expected());
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut line = b"\nS t=".to_vec();
            line.extend(&bytes);
            line.push(b'\n');
            for said in Listener::default().hear(&line) {
                if let Said::Status(status) = said {
                    sentence(&status, &Status::default(), Style::PLAIN);
                }
            }
        }
    }
}
