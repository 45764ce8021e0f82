//! Where words go: results to stdout, progress and errors for people to stderr, JSON to stdout.

use std::io::{self, Write};

use serde::Serialize;

use super::args::Global;
use crate::api::{ErrorCode, Failure};
use crate::show::failure;
use crate::show::style::Style;

/// How this command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Documents instead of words.
    pub json: bool,
    /// Results only.
    pub quiet: bool,
    /// Of stdout.
    pub style: Style,
}

impl Output {
    /// As the global options say.
    pub fn new(global: &Global) -> Self {
        Self { json: global.json, quiet: global.quiet, style: Style::of(&io::stdout()) }
    }

    /// Prints a command's result: `document` as JSON, or else `words`.
    ///
    /// # Errors
    /// `file` if stdout cannot be written.
    pub fn result(self, document: &impl Serialize, words: &str) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(document).map_err(|e| {
                Failure::new(
                    ErrorCode::Unexpected,
                    format!("cannot write JSON: {e}"),
                    "try it without --json",
                )
            })?;
            return self.print(&line);
        }
        if self.quiet { Ok(()) } else { self.print(words) }
    }

    /// Prints words that are the result themselves, whatever the options say.
    ///
    /// # Errors
    /// `file` if stdout cannot be written.
    #[expect(clippy::unused_self, reason = "callers need not know that no option matters here")]
    pub fn print(self, words: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let line_end = if words.ends_with('\n') { "" } else { "\n" };
        match stdout
            .write_all(format!("{words}{line_end}").as_bytes())
            .and_then(|()| stdout.flush())
        {
            // The reader has seen enough (… | head).
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
                ErrorCode::File,
                format!("cannot write to stdout: {e}"),
                "check where the output goes",
            )),
            _ => Ok(()),
        }
    }

    /// Tells people on stderr how things go.
    pub fn progress(self, words: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(io::stderr(), "{words}");
        }
    }

    /// Reports a failure.
    pub fn failure(self, failed: &Failure) {
        if self.json {
            let _ = writeln!(io::stdout(), "{}", failure::json(failed));
        } else {
            let style = Style::of(&io::stderr());
            let _ = write!(io::stderr(), "{}", failure::lines(failed, style));
        }
    }
}
