//! The log: of commands and the daemon ([`start`]), and of guest processes
//! ([`start_for_guest`]). It goes to standard error or to the journal, never to standard output,
//! which is a command's result. Fields in capitals say what a line is about: `MOVE` and `GUEST`.

mod fields;
mod journal;
mod lines;
pub mod process;

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::stat::fstat;
use tracing::{Span, field};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

use journal::{Journal, SOCKET};
use lines::{Lines, Style};

/// What chooses what is logged, in the syntax of `RUST_LOG`.
pub const FILTER: &str = "MIGRATE_LOG";
/// What chooses how it looks: `text`, `json` or `journald`.
pub const FORMAT: &str = "MIGRATE_LOG_FORMAT";

/// How the user would have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Text,
    Json,
    Journal,
}

/// Starts it for the command line `words`. By default warnings are logged, and what happens too
/// for the daemon; what standard error leads to decides how.
pub fn start(words: impl Iterator<Item = OsString>) {
    let usual = if is_daemon(words) { "info" } else { "warn" };
    let asked = std::env::var_os(FORMAT);
    let stderr = fstat(io::stderr().as_fd()).ok().map(|s| (s.st_dev, s.st_ino));
    let stream = std::env::var_os("JOURNAL_STREAM");
    let wish = wish(asked.as_deref(), leads_to(stream.as_deref(), stderr));
    match wish.as_ref().copied().unwrap_or(Wish::Text) {
        Wish::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            begin(usual, Style::Text { colour }, io::stderr);
        }
        Wish::Json => begin(usual, Style::Json, io::stderr),
        Wish::Journal => match Journal::open(Path::new(SOCKET)) {
            Ok(journal) => begin(usual, Style::Entry, journal),
            Err(_) => begin(usual, Style::Prefixed, io::stderr),
        },
    }
    if let Err(unknown) = wish {
        tracing::warn!("{FORMAT}={} is none of text, json, journald", unknown.display());
    }
}

/// Starts that of a guest process, which is a file of its own behind `writer`.
pub fn start_for_guest(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let style = match wish(std::env::var_os(FORMAT).as_deref(), false) {
        Ok(Wish::Json) => Style::Json,
        _ => Style::Text { colour: false },
    };
    begin("info", style, writer);
}

fn begin(usual: &str, style: Style, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(usual));
    let log = tracing_subscriber::registry().with(filter).with(Lines::new(style, writer));
    // There is one already only in a test.
    let _ = log.try_init();
}

/// What the daemon's tasks of a move run in: whatever they log names it. A move that is not known
/// yet is recorded as `MOVE` when it is.
pub fn about_move(id: Option<Uuid>, guest: &str) -> Span {
    // As an error, so that no filter drops the fields.
    let span = tracing::error_span!("move", MOVE = field::Empty, GUEST = guest);
    if let Some(id) = id {
        span.record("MOVE", field::display(id));
    }
    span
}

/// The task runs in [`about_move`], and this is the move.
pub fn is_move(id: Uuid) {
    Span::current().record("MOVE", field::display(id));
}

/// Whether the command is `daemon`; none of the options before it takes a value that is a word.
fn is_daemon(words: impl Iterator<Item = OsString>) -> bool {
    words.skip(1).find(|w| !w.as_encoded_bytes().starts_with(b"-")).is_some_and(|w| w == "daemon")
}

fn wish(asked: Option<&OsStr>, journal: bool) -> Result<Wish, OsString> {
    match asked.map(|a| a.to_str().unwrap_or("?")) {
        None | Some("") if journal => Ok(Wish::Journal),
        None | Some("" | "text") => Ok(Wish::Text),
        Some("json") => Ok(Wish::Json),
        Some("journald") => Ok(Wish::Journal),
        Some(_) => Err(asked.unwrap_or_default().to_owned()),
    }
}

/// Whether `stream`, which is `JOURNAL_STREAM`, is this device and inode. It is inherited also by
/// programs whose standard error leads somewhere else.
fn leads_to(stream: Option<&OsStr>, stderr: Option<(u64, u64)>) -> bool {
    let stream = stream.and_then(OsStr::to_str).and_then(|s| s.split_once(':'));
    let stream = stream.and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    stream.is_some() && stream == stderr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_known_behind_its_options() {
        let is = |line: &str| is_daemon(line.split(' ').map(OsString::from));
        assert!(is("migrate daemon"));
        assert!(is("migrate --system daemon --end-with-parent"));
        assert!(!is("migrate ls daemon"));
        assert!(!is("migrate"));
    }

    #[test]
    fn a_wish_goes_before_the_journal() {
        let asked = |text: &str| wish(Some(OsStr::new(text)), true);
        assert_eq!(wish(None, true), Ok(Wish::Journal));
        assert_eq!(wish(None, false), Ok(Wish::Text));
        assert_eq!(asked(""), Ok(Wish::Journal));
        assert_eq!(asked("text"), Ok(Wish::Text));
        assert_eq!(asked("json"), Ok(Wish::Json));
        assert_eq!(asked("xml"), Err("xml".into()));
    }

    #[test]
    fn the_journal_is_that_of_standard_error() {
        let to = |text: &str| leads_to(Some(OsStr::new(text)), Some((8, 15)));
        assert!(to("8:15"));
        assert!(!to("8:16"));
        assert!(!to("8"));
        assert!(!leads_to(None, None) && !leads_to(Some(OsStr::new("x:y")), None));
    }
}
