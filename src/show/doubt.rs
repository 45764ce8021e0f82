//! Guests whose owner is in doubt, in words: what is known, and what will happen next.

use std::fmt::Write;

use migrate_engine::handover::journal::Record as Step;

use super::style::{Style, safe};
use crate::api::resolve::{Asked, Doubt, Doubtful, Standing};
use crate::guest::journal::record::Record;

/// What is known of the guest of a record, and what will happen next, with `other` as the host at
/// the other end of its switch.
pub fn sentences(record: &Record, doubt: Option<Doubt>, other: &str) -> (String, String) {
    let on = format!("{:.0}", record.since);
    let term = record.term();
    let settles = format!(
        "nothing runs it until {other} answers; then it settles by itself, within seconds. If \
         {other} is gone for good: migrate resolve {}",
        record.name
    );
    match (doubt, record.ledger.now()) {
        (Some(Doubt::Offered), _) => {
            let known = format!(
                "it was being moved to {other} when its process or this host died on {on}: \
                 whether it is here or there is not known"
            );
            (known, settles)
        }
        (Some(Doubt::Ceded), _) => {
            let known = format!(
                "it was given to {other} on {on}, which has not confirmed that it runs there"
            );
            (known, settles)
        }
        (Some(Doubt::Receiving), _) => {
            let known = format!(
                "it was to come from {other} on {on}: whether it is here or there is not known"
            );
            (known, settles)
        }
        (None, Some(Step::Moved(_))) => {
            (format!("it was moved to {other} on {on}"), format!("it runs or starts on {other}"))
        }
        (None, Some(Step::Tombstone(_))) => {
            let known = format!("it never ran here: its move from {other} did not succeed");
            (known, format!("it runs or starts on {other}"))
        }
        (None, _) => (
            format!("this host owns it, in term {term}, since {on}"),
            "it runs here, or starts here whenever somebody wants it to".into(),
        ),
    }
}

/// One guest for `show`.
pub fn page(guest: &Doubtful, style: Style) -> String {
    let state = guest.doubt.map_or("elsewhere", |_| "in doubt");
    format!(
        "{}\n  state      {}\n  uuid       {}\n  term       {}\n  known      {}\n  next       {}\n",
        guest.name,
        style.yellow(state),
        guest.uuid,
        guest.term,
        safe(&guest.known),
        safe(&guest.next)
    )
}

/// What stands below the table of `ls`.
pub fn notes(guests: &[Doubtful]) -> String {
    let mut text = String::new();
    for guest in guests {
        let _ = writeln!(
            text,
            "{}: in doubt: {}; {}",
            guest.name,
            safe(&guest.known),
            safe(&guest.next)
        );
    }
    text
}

/// What every host knows, for whoever has to decide.
pub fn standing(standing: &Standing, style: Style) -> String {
    let mut text = page(&standing.here, style);
    let memory = if standing.memory {
        "all of it is held by its process here"
    } else {
        "gone: the guest would start from its disks"
    };
    let _ = writeln!(text, "  memory     {memory}");
    for Asked { host, answer } in &standing.hosts {
        let says = match answer {
            Ok(word) => safe(&word.says),
            Err(error) => style.yellow(&format!("does not answer: {}", safe(&error.message))),
        };
        let _ = writeln!(text, "  {host:<10} {says}");
    }
    text
}
