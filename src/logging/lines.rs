//! Writes each event as one line, with the fields of the spans around it and of the process. It
//! writes a line with one call, and never fails: a log that cannot be written ends nothing.

use std::io::Write;

use jiff::Timestamp;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::{Fields, priority};
use super::process;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Time, level, message, fields; in colour or not.
    Text {
        /// The level is coloured.
        colour: bool,
    },
    /// One object of JSON on each line, the fields beside the message.
    Json,
    /// The journal has times of its own, and takes the level from a prefix (`sd-daemon(3)`).
    Prefixed,
    /// What the journal's socket takes.
    Entry,
}

/// The log.
#[derive(Debug)]
pub struct Lines<W> {
    style: Style,
    writer: W,
}

impl<W> Lines<W> {
    /// Writes to `writer`.
    pub fn new(style: Style, writer: W) -> Self {
        Self { style, writer }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.inherit(outer);
            }
        }
        fields.inherit(&process::fields());
        let level = *event.metadata().level();
        let line = line(self.style, &fields, level, Timestamp::now());
        let _ = self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes());
    }
}

fn line(style: Style, fields: &Fields, level: Level, now: Timestamp) -> String {
    match style {
        Style::Text { colour: false } => format!("{now:.3} {level:>5} {}\n", fields.text()),
        Style::Text { colour: true } => {
            let colour = match level {
                Level::ERROR => 31,
                Level::WARN => 33,
                Level::INFO => 32,
                Level::DEBUG | Level::TRACE => 34,
            };
            format!("{now:.3} \u{1b}[{colour}m{level:>5}\u{1b}[0m {}\n", fields.text())
        }
        Style::Json => format!("{}\n", fields.json(&format!("{now:.3}"), level)),
        Style::Prefixed => format!("<{}>{}\n", priority(level), fields.text()),
        Style::Entry => fields.entry(level),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(style: Style, events: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let lines = Lines::new(style, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), events);
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_said_in_a_span_has_its_fields() {
        let line = written(Style::Prefixed, || {
            let span = tracing::error_span!("move", MOVE = "m1", GUEST = "web1");
            let task = async { tracing::warn!(GUEST = "web2", error = %"no way", "not settled") };
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(task.instrument(span));
            tracing::info!("outside");
        });
        let wanted = "<4>not settled GUEST=web2 error=\"no way\" MOVE=m1\n<6>outside\n";
        assert_eq!(line, wanted);
    }

    #[test]
    fn each_style_is_one_line() {
        for style in [Style::Text { colour: false }, Style::Text { colour: true }, Style::Json] {
            let line = written(style, || tracing::info!(GUEST = "a\nb", "it\nis"));
            assert_eq!((line.lines().count(), line.ends_with('\n')), (1, true), "{line}");
        }
    }
}
