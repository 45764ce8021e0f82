//! The table of `ls`.

use super::guest::{state_paint, state_word, uptime};
use super::style::{Style, safe};
use super::units::{bytes, span};
use crate::api::ExitRecord;
use crate::host::registry::{Entry, Listing, Silence, describe};

const HEADER: [&str; 7] = ["NAME", "STATE", "CPUS", "MEMORY", "USED", "UPTIME", "VERSION"];

/// The table, or a sentence if there is nothing to show.
pub fn listing(listing: &Listing, now: jiff::Timestamp, style: Style) -> String {
    let ended = listing.ended.as_deref().unwrap_or_default();
    let doubts = super::doubt::notes(&listing.in_doubt);
    if listing.guests.is_empty() && ended.is_empty() {
        if !doubts.is_empty() {
            return doubts;
        }
        return "No guests. Run one: migrate run --guest scribbler\n".to_owned();
    }
    let mut rows = vec![HEADER.map(Cell::from)];
    rows.extend(listing.guests.iter().map(|entry| row(entry, now)));
    rows.extend(ended.iter().map(|record| ended_row(record, now)));
    let mut text = align(&rows, style);
    if listing.guests.iter().any(|e| matches!(e, Entry::Silent { state: Silence::Gone, .. })) {
        text.push_str("gone: killed from outside; what was left of it has been cleared up\n");
    }
    text.push_str(&doubts);
    text
}

/// Text and the way it is painted; its width is that of the text.
struct Cell {
    text: String,
    paint: fn(Style, &str) -> String,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), paint: |_, text| text.to_owned() }
    }
}

/// Columns as wide as their widest cell, two spaces apart; no space at the end of a line.
fn align(rows: &[[Cell; 7]], style: Style) -> String {
    let mut widths = [0; 7];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.text.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut gap = 0;
        for (width, cell) in widths.iter().zip(row) {
            text.extend(std::iter::repeat_n(' ', gap));
            text.push_str(&(cell.paint)(style, &cell.text));
            gap = 2 + width - cell.text.chars().count();
        }
        text.push('\n');
    }
    text
}

fn row(entry: &Entry, now: jiff::Timestamp) -> [Cell; 7] {
    match entry {
        Entry::Known(info) => [
            info.name.as_str().into(),
            Cell { text: state_word(info.state).to_owned(), paint: state_paint(info.state) },
            info.cpus.to_string().into(),
            bytes(info.memory_bytes).into(),
            bytes(info.memory_used_bytes).into(),
            span(uptime(info, now)).into(),
            safe(&info.version).into(),
        ],
        Entry::Silent { name, state } => {
            let word = match state {
                Silence::Unreachable => "unreachable",
                Silence::Gone => "gone",
            };
            let state = Cell { text: word.to_owned(), paint: Style::red };
            [
                name.as_str().into(),
                state,
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
            ]
        }
    }
}

fn ended_row(record: &ExitRecord, now: jiff::Timestamp) -> [Cell; 7] {
    let ago = now.as_second().saturating_sub(record.ended.as_second());
    let ago = span(u64::try_from(ago).unwrap_or(0));
    [
        record.name.as_str().into(),
        Cell { text: format!("{} {ago} ago", describe(record.how)), paint: Style::dim },
        record.cpus.to_string().into(),
        bytes(record.memory_bytes).into(),
        "-".into(),
        "-".into(),
        safe(&record.version).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ExitHow;
    use crate::show::guest::tests::info;

    #[test]
    fn columns_line_up() {
        let mut long = info("a-long-name");
        long.state = crate::api::GuestState::Paused;
        let silent = Entry::Silent { name: "b".into(), state: Silence::Gone };
        let record = ExitRecord {
            schema: 1,
            name: "old".into(),
            uuid: long.uuid,
            term: 1,
            started: long.started,
            ended: "2026-01-01T01:00:00Z".parse().unwrap(),
            how: ExitHow::PoweredOff,
            detail: None,
            version: "0.1.0".into(),
            memory_bytes: 16 << 20,
            cpus: 1,
        };
        let all = Listing {
            in_doubt: vec![],
            schema: 1,
            guests: vec![Entry::Known(Box::new(long)), silent],
            ended: Some(vec![record]),
        };
        let now = "2026-01-01T03:00:10Z".parse().unwrap();
        let golden = "\
NAME         STATE                  CPUS  MEMORY  USED   UPTIME  VERSION
a-long-name  paused                 2     128M    64.5M  3h 0m   0.1.0
b            gone                   -     -       -      -       -
old          powered off 2h 0m ago  1     16M     -      -       0.1.0
gone: killed from outside; what was left of it has been cleared up
";
        assert_eq!(listing(&all, now, Style::PLAIN), golden);
        let coloured = listing(&all, now, Style::COLOURED);
        assert!(coloured.contains("\u{1b}[33mpaused\u{1b}[0m                 2 "), "{coloured}");
        let none = Listing { schema: 1, guests: vec![], ended: None, in_doubt: vec![] };
        assert!(listing(&none, now, Style::PLAIN).starts_with("No guests."));
    }
}
