//! The log of the commands and of the daemon, on standard error. A guest's process has its own.
//! It never writes to standard output, which is a command's result.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, time};
use tracing_subscriber::registry::LookupSpan;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Time, level, message, fields.
    Text,
    /// One object of JSON on each line, the fields beside the message.
    Json,
    /// The journal has times of its own, and takes the level from a prefix.
    Journal,
}

/// Starts it for the command line `words`. `MIGRATE_LOG` chooses what is logged, in the syntax of
/// `RUST_LOG`; by default warnings, and what happens too for the daemon. `MIGRATE_LOG_FORMAT` is
/// `text`, `json` or `journald`; by default what standard error leads to decides.
pub fn start(words: impl Iterator<Item = OsString>) {
    let usual = if is_daemon(words) { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("MIGRATE_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let asked = std::env::var_os("MIGRATE_LOG_FORMAT");
    let stderr = fstat(io::stderr().as_fd()).ok().map(|s| (s.st_dev, s.st_ino));
    let journal = std::env::var_os("JOURNAL_STREAM");
    let style = style(asked.as_deref(), leads_to(journal.as_deref(), stderr));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .log_internal_errors(false);
    match style.as_ref().copied().unwrap_or(Style::Text) {
        Style::Text => log.init(),
        Style::Json => log.json().flatten_event(true).init(),
        Style::Journal => log.with_ansi(false).event_format(Prefixed::default()).init(),
    }
    if let Err(unknown) = style {
        tracing::warn!(MIGRATE_LOG_FORMAT = ?unknown, "is none of text, json, journald");
    }
}

/// Whether the command is `daemon`; none of the options before it takes a value that is a word.
fn is_daemon(words: impl Iterator<Item = OsString>) -> bool {
    words.skip(1).find(|w| !w.as_encoded_bytes().starts_with(b"-")).is_some_and(|w| w == "daemon")
}

fn style(asked: Option<&OsStr>, journal: bool) -> Result<Style, OsString> {
    match asked.map(|a| a.to_str().unwrap_or("?")) {
        None | Some("") if journal => Ok(Style::Journal),
        None | Some("" | "text") => Ok(Style::Text),
        Some("json") => Ok(Style::Json),
        Some("journald") => Ok(Style::Journal),
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

/// Lines that begin with their level as `sd-daemon(3)` has it: `<4>` for a warning.
#[derive(Default)]
struct Prefixed(Format<format::Full, time::SystemTime>);

impl<S, N> FormatEvent<S, N> for Prefixed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        let plain = self.0.clone().without_time().with_level(false).with_target(false);
        plain.format_event(context, writer, event)
    }
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
    fn the_style_follows_the_wish_then_the_journal() {
        let asked = |text: &str| style(Some(OsStr::new(text)), true);
        assert_eq!(style(None, true), Ok(Style::Journal));
        assert_eq!(style(None, false), Ok(Style::Text));
        assert_eq!(asked(""), Ok(Style::Journal));
        assert_eq!(asked("text"), Ok(Style::Text));
        assert_eq!(asked("json"), Ok(Style::Json));
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
