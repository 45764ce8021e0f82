//! Colours: only on a terminal, and not against `NO_COLOR`.

use std::io::IsTerminal;

/// Whether a stream is written with colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { colours: false };
    /// Colours.
    pub const COLOURED: Self = Self { colours: true };

    /// The style for `stream`.
    pub fn of(stream: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self { colours: stream.is_terminal() && !unwanted }
    }

    /// Errors.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// What is well.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What wants a look.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Text from a guest or another process, made safe for a terminal: control characters are
/// replaced.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
