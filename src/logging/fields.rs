//! The fields of a line of the log, and how they look. Values may come from a peer or a guest:
//! whatever they hold, a line stays one line. No clock, no file: text in, text out.

use std::fmt::{self, Write};

use serde_json::{Map, Value};
use tracing::Level;
use tracing::field::{Field, Visit};

/// Bytes of a message in the journal, its fields included. More of it is cut off.
const MESSAGE_MAX: usize = 16 << 10;

/// Fields in the order in which they were given, the message among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Adds one, unless there is one of that name: what is nearest to the event holds.
    pub fn add(&mut self, name: &'static str, value: Value) {
        // Fields of the `log` crate say where the line was written.
        if !name.starts_with("log.") && !self.0.iter().any(|(known, _)| *known == name) {
            self.0.push((name, value));
        }
    }

    /// Adds those of `outer` that are not here.
    pub fn inherit(&mut self, outer: &Self) {
        for (name, value) in &outer.0 {
            self.add(name, value.clone());
        }
    }

    fn message(&self) -> &str {
        let found = self.0.iter().find(|(name, _)| *name == "message");
        found.and_then(|(_, value)| value.as_str()).unwrap_or_default()
    }

    fn others(&self) -> impl Iterator<Item = &(&'static str, Value)> {
        self.0.iter().filter(|(name, _)| *name != "message")
    }

    /// Message and fields, `message name=value …`.
    pub fn text(&self) -> String {
        let mut text: String = self.message().chars().flat_map(one_line).collect();
        for (name, value) in self.others() {
            let space = if text.is_empty() { "" } else { " " };
            let _ = match value {
                Value::String(value) if is_plain(value) => write!(text, "{space}{name}={value}"),
                Value::String(value) => write!(text, "{space}{name}={value:?}"),
                value => write!(text, "{space}{name}={value}"),
            };
        }
        text
    }

    /// An object of JSON.
    pub fn json(&self, time: &str, level: Level) -> String {
        let mut object = Map::new();
        object.insert("time".into(), time.into());
        object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
        object.insert("message".into(), self.message().into());
        for (name, value) in self.others() {
            object.entry(*name).or_insert_with(|| value.clone());
        }
        Value::Object(object).to_string()
    }

    /// An entry in the journal's own form: the message with its fields for readers, and those in
    /// capitals also as fields to search by.
    pub fn entry(&self, level: Level) -> String {
        let mut text = self.text();
        if text.len() > MESSAGE_MAX {
            text.truncate(text.floor_char_boundary(MESSAGE_MAX));
        }
        let priority = priority(level);
        let mut entry = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=migrate\nMESSAGE={text}\n");
        for (name, value) in self.others().filter(|(name, _)| is_capital(name)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let value: String = value.chars().flat_map(one_line).collect();
            let _ = writeln!(entry, "{name}={value}");
        }
        entry
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), value.into());
    }
}

/// The priority of syslog, which the journal takes.
pub fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Needs no quotes to be one word.
fn is_plain(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    !value.is_empty() && value.chars().all(plain)
}

fn is_capital(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_uppercase())
}

fn one_line(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control();
    c.escape_default().filter(move |_| escaped).chain((!escaped).then_some(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        let mut fields = Fields::default();
        fields.add("message", "a move\nbegins".into());
        fields.add("MOVE", "3f2c".into());
        fields.add("GUEST", "web1".into());
        fields.add("lanes", 4.into());
        fields.add("error", "no\n<0>PRIORITY=0".into());
        fields
    }

    #[test]
    fn a_line_is_one_line() {
        let text = r#"a move\nbegins MOVE=3f2c GUEST=web1 lanes=4 error="no\n<0>PRIORITY=0""#;
        assert_eq!(fields().text(), text);
    }

    #[test]
    fn an_object_has_its_fields_beside_the_message() {
        let json: Value = serde_json::from_str(&fields().json("now", Level::WARN)).unwrap();
        let wanted = serde_json::json!({
            "time": "now", "level": "warn", "message": "a move\nbegins", "MOVE": "3f2c",
            "GUEST": "web1", "lanes": 4, "error": "no\n<0>PRIORITY=0",
        });
        assert_eq!(json, wanted);
    }

    #[test]
    fn an_entry_of_the_journal_has_no_field_that_was_not_meant() {
        let mut fields = fields();
        fields.add("HOST", "x\nPRIORITY=0".into());
        let entry = fields.entry(Level::INFO);
        let names: Vec<_> = entry.lines().map(|l| l.split_once('=').unwrap().0).collect();
        let wanted = ["PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE", "MOVE", "GUEST", "HOST"];
        assert_eq!(names, wanted, "{entry}");
        assert!(entry.starts_with("PRIORITY=6\n") && entry.contains("\nMOVE=3f2c\n"), "{entry}");
        let mut long = Fields::default();
        long.add("message", "ä".repeat(MESSAGE_MAX).into());
        assert!(long.entry(Level::INFO).len() < MESSAGE_MAX + 100);
    }

    #[test]
    fn the_nearest_value_holds() {
        let mut inner = Fields::default();
        inner.add("GUEST", "a".into());
        let mut outer = Fields::default();
        outer.add("GUEST", "b".into());
        outer.add("MOVE", "1".into());
        outer.add("log.target", "x".into());
        inner.inherit(&outer);
        assert_eq!(inner.text(), "GUEST=a MOVE=1");
    }
}
