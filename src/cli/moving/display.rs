//! Where the events of moves are shown: as JSON on stdout, as moving lines on a terminal, or as a
//! line for each step elsewhere.

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use uuid::Uuid;

use super::super::output::Output;
use crate::api::Failure;
use crate::api::moving::{MoveEvent, MoveOptions};
use crate::show::progress::Progress;
use crate::show::style::Style;

/// What a line on a terminal looks like.
const TEMPLATE: &str = "{prefix}  [{bar:20}] {wide_msg}";

/// Where events go.
#[derive(Clone, Debug)]
pub struct Display {
    out: Output,
    mode: Mode,
    /// Several moves share the output: a result is not the last line.
    several: bool,
}

#[derive(Clone, Debug)]
enum Mode {
    Json,
    Quiet,
    Lines,
    Terminal(MultiProgress),
}

impl Display {
    /// As the options and the terminal say.
    pub fn new(out: Output, several: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let mode = if out.json {
            Mode::Json
        } else if out.quiet {
            Mode::Quiet
        } else if io::stderr().is_terminal() && !dumb {
            let target = ProgressDrawTarget::stderr_with_hz(8);
            Mode::Terminal(MultiProgress::with_draw_target(target))
        } else {
            Mode::Lines
        };
        Self { out, mode, several }
    }

    /// Tells people something beside the moving lines.
    pub fn say(&self, words: &str) {
        match &self.mode {
            Mode::Json | Mode::Quiet => {}
            Mode::Lines => {
                let _ = writeln!(io::stderr(), "{words}");
            }
            Mode::Terminal(bars) => {
                // A terminal that is gone is no reason to stop.
                let _ = bars.println(words);
            }
        }
    }

    /// A place for one move.
    pub fn row(&self, guest: &str, to: &str, options: &MoveOptions) -> Row {
        let progress = Progress::new(guest, to, options);
        let bar = match &self.mode {
            Mode::Terminal(bars) => {
                let bar = bars.add(ProgressBar::new(1000));
                if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(progress.title());
                bar.set_message(progress.line());
                Some(bar)
            }
            _ => None,
        };
        Row {
            display: self.clone(),
            guest: guest.to_owned(),
            id: None,
            progress,
            bar,
            no_result: false,
        }
    }
}

/// One move on the display.
#[derive(Debug)]
pub struct Row {
    display: Display,
    guest: String,
    id: Option<Uuid>,
    progress: Progress,
    bar: Option<ProgressBar>,
    /// Whoever asked for the move tells the result.
    no_result: bool,
}

impl Row {
    /// The result is not shown: somebody else has more to say of it.
    pub fn without_result(&mut self) {
        self.no_result = true;
    }

    /// The move has an id.
    pub fn begun(&mut self, id: Uuid) {
        self.id = Some(id);
    }

    /// The events will come again from the beginning.
    pub fn begin_again(&mut self) {
        self.progress.begin_again();
    }

    /// Shows an event.
    ///
    /// # Errors
    /// `file` if stdout cannot be written.
    pub fn show(&mut self, event: &MoveEvent) -> Result<(), Failure> {
        let said = self.progress.take(event);
        if !said.new {
            return Ok(());
        }
        match &self.display.mode {
            Mode::Json if self.no_result && matches!(event, MoveEvent::Result(_)) => {}
            Mode::Json => return self.print(event),
            Mode::Quiet => {}
            Mode::Lines => {
                if let Some(step) = &said.step {
                    self.display.say(step);
                }
            }
            Mode::Terminal(_) => {
                if let Some(bar) = &self.bar {
                    bar.set_position(self.progress.thousandths());
                    bar.set_message(self.progress.line());
                }
            }
        }
        if let Some(notice) = &said.notice {
            self.display.say(&Style::of(&io::stderr()).yellow(notice));
        }
        Ok(())
    }

    /// Says something about this move.
    pub fn say(&self, words: &str) {
        self.display.say(&format!("{}: {words}", self.guest));
    }

    fn print(&self, event: &MoveEvent) -> Result<(), Failure> {
        match document(event, &self.guest, self.id, self.display.several) {
            Some(document) => self.display.out.result(&document, ""),
            None => Ok(()),
        }
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// An event as a line of JSON that names its move; nothing for what only daemons need. Among
/// several moves the result of one is a `guest-result`.
fn document(event: &MoveEvent, guest: &str, id: Option<Uuid>, several: bool) -> Option<Value> {
    if matches!(event, MoveEvent::Words(_)) {
        return None;
    }
    let mut value = serde_json::to_value(event).ok()?;
    let fields = value.as_object_mut()?;
    fields.insert("guest".to_owned(), guest.into());
    if let Some(id) = id {
        fields.insert("move_id".to_owned(), id.to_string().into());
    }
    if several && matches!(event, MoveEvent::Result(_)) {
        fields.insert("type".to_owned(), "guest-result".into());
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{RoundLine, Words};
    use serde_json::json;

    #[test]
    fn every_line_names_its_move() {
        let id = Some(Uuid::nil());
        let notice = MoveEvent::Notice { text: "t".into() };
        assert_eq!(
            document(&notice, "a", id, false).unwrap(),
            json!({"type": "notice", "text": "t", "guest": "a",
                   "move_id": "00000000-0000-0000-0000-000000000000"})
        );
        let round = MoveEvent::Round(Box::default());
        let round = document(&round, "a", id, false).unwrap();
        assert_eq!((&round["type"], &round["round"]), (&json!("round"), &json!(0)));
        let words = MoveEvent::Words(Words { frame: "00".into() });
        assert_eq!(document(&words, "a", id, false), None);
        let _: RoundLine = serde_json::from_value(round).unwrap();
    }
}
