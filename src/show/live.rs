//! A scribbler's console, for people: beats are counted instead of shown, status lines become
//! sentences.

use vmm::scribbler::report::{Event, Status, Sweep};

use super::style::{Style, safe};
use super::units::count;

/// An event as a line, with rates since the status `before`; nothing for a mere heartbeat.
pub fn line(event: &Event, before: &Status, style: Style) -> Option<String> {
    Some(match event {
        Event::Heartbeats(_) => return None,
        Event::Ready(ready) => format!(
            "The scribbler has filled {} pages in {} ms and runs on {} CPUs.",
            count(ready.pages),
            ready.fill_ms,
            ready.cpus
        ),
        Event::Status(status) => status_line(status, before, style),
        Event::VerifyOk(sweep) => style.green(&format!(
            "Every page is as it should be: {} pages looked at, no error ever.",
            count(sweep.pages)
        )),
        Event::VerifyBad(sweep) => style.red(&bad(sweep)),
        Event::Mismatch(m) => style.red(&format!(
            "Page {} is wrong from word {} on: {:#x} instead of {:#x} (version {}).",
            m.page, m.word, m.found, m.expected, m.version
        )),
        Event::Error(text) => style.red(&format!("The scribbler cannot run: {}", safe(text))),
        Event::Exception(text) => style.red(&format!("The scribbler crashed: {}", safe(text))),
        Event::Ignored(text) => format!("The scribbler ignored: {}", safe(text)),
        Event::PowerOff => "The scribbler switches its machine off.".to_owned(),
        Event::Other(text) => safe(text),
    })
}

/// What a sweep found that is not as it should be.
pub fn bad(sweep: &Sweep) -> String {
    let first = sweep.first.map(|page| format!(", the first in page {page}")).unwrap_or_default();
    format!(
        "Memory is wrong: {} errors so far, {} of them in this sweep over {} pages{first}.",
        count(sweep.errors),
        count(sweep.now),
        count(sweep.pages)
    )
}

fn status_line(now: &Status, before: &Status, style: Style) -> String {
    let ms = now.t.saturating_sub(before.t).max(1);
    let rate = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / ms;
    let errors = format!("{} errors", now.errors);
    format!(
        "{:>4}.{} s   {} beats/s   longest gap {}.{} ms   {} pages/s   {} rounds   {}",
        now.t / 1000,
        now.t % 1000 / 100,
        count(rate(now.hb, before.hb)),
        now.gap / 1000,
        now.gap % 1000 / 100,
        count(rate(now.pages, before.pages)),
        count(now.rounds),
        if now.errors == 0 { errors } else { style.red(&errors) }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmm::scribbler::report::Parser;

    #[test]
    fn rates_are_those_of_the_last_second() {
        let before = Status { t: 1000, pages: 100, hb: 100, ..Status::default() };
        let now =
            Status { t: 2000, rounds: 4, pages: 2100, hb: 200, gap: 9000, ..Status::default() };
        assert_eq!(
            line(&Event::Status(now), &before, Style::PLAIN).unwrap(),
            "   2.0 s   100 beats/s   longest gap 9.0 ms   2,000 pages/s   4 rounds   0 errors"
        );
    }

    proptest! {
        #[test]
        fn hostile_output_neither_panics_nor_reaches_the_terminal(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            word in prop::sample::select(vec!["S t=1", "VERIFY BAD ", "SCRIBBLER-ERROR ", ""]),
        ) {
            let mut console = format!("\n{word}").into_bytes();
            console.extend(bytes);
            console.push(b'\n');
            for event in Parser::new('.').feed(&console) {
                let line = line(&event, &Status::default(), Style::PLAIN).unwrap_or_default();
                prop_assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}
