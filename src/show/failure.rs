//! Failures: for people three lines (what happened, where the guest is, what to type next), for
//! scripts one JSON object.

use serde::Serialize;

use super::guest::state_word;
use super::style::Style;
use crate::api::{ErrorBody, Failure};

/// The three lines.
pub fn lines(failure: &Failure, style: Style) -> String {
    let ErrorBody { message, remedy, guest_state, .. } = &*failure.0;
    let guest = guest_state.map(|s| format!("\n  guest: {}", state_word(s))).unwrap_or_default();
    let next = if remedy.is_empty() { String::new() } else { format!("\n  next:  {remedy}") };
    format!("{} {message}{guest}{next}\n", style.red("migrate:"))
}

/// The JSON object.
pub fn json(failure: &Failure) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        schema: u32,
        error: &'a ErrorBody,
    }
    serde_json::to_string(&Document { schema: 1, error: &failure.0 }).unwrap_or_else(|e| {
        format!(r#"{{"schema":1,"error":{{"code":"unexpected","message":"{e}"}}}}"#)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ErrorCode, GuestState};

    #[test]
    fn both_forms() {
        let failure = Failure::new(ErrorCode::Busy, "a save is in progress", "try again")
            .retryable()
            .with_state(GuestState::Saving);
        assert_eq!(
            lines(&failure, Style::PLAIN),
            "migrate: a save is in progress\n  guest: saving\n  next:  try again\n"
        );
        assert_eq!(
            json(&failure),
            r#"{"schema":1,"error":{"code":"busy","message":"a save is in progress","remedy":"try again","retryable":true,"guest_state":"saving"}}"#
        );
        let failure = Failure::new(ErrorCode::NotFound, "m", "r");
        assert_eq!(lines(&failure, Style::COLOURED), "\u{1b}[31mmigrate:\u{1b}[0m m\n  next:  r\n");
    }
}
