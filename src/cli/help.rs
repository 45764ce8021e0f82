//! `help`: topics, and the long help of commands. Everything works offline.

use clap::CommandFactory;

use super::args::Cli;
use super::{Done, OK, Session};
use crate::api::{ErrorCode, Failure};

/// Topics: name, what it is about, text.
pub const TOPICS: [(&str, &str, &str); 7] = [
    ("exit-codes", "what exit codes and error codes mean", include_str!("topics/exit-codes.txt")),
    ("files", "definitions, directories, sockets, logs", include_str!("topics/files.txt")),
    ("moving", "moving guests while they run", include_str!("topics/moving.txt")),
    ("networking", "ports, trust between hosts, cards", include_str!("topics/networking.txt")),
    ("quickstart", "the first steps", include_str!("topics/quickstart.txt")),
    ("scribbler", "the built-in guest that checks itself", include_str!("topics/scribbler.txt")),
    ("state", "what guests do, saving and loading them", include_str!("topics/state.txt")),
];

/// `help`
pub fn help(session: &Session, topic: Option<&str>) -> Done {
    let Some(topic) = topic else {
        let mut text = Cli::command().render_long_help().to_string();
        text.push_str("\nTopics:\n");
        for (name, about, _) in TOPICS {
            text.extend(["  ", name, ": ", about, "\n"]);
        }
        session.out.print(&text)?;
        return Ok(OK);
    };
    if let Some((_, _, text)) = TOPICS.iter().find(|(name, ..)| *name == topic) {
        session.out.print(text)?;
        return Ok(OK);
    }
    let mut root = Cli::command();
    root.build();
    if let Some(command) = root.find_subcommand_mut(topic) {
        session.out.print(&command.render_long_help().to_string())?;
        return Ok(OK);
    }
    let names: Vec<&str> = TOPICS.iter().map(|(name, ..)| *name).collect();
    Err(Failure::new(
        ErrorCode::Usage,
        format!("there is no help on '{topic}'"),
        format!("topics are {}; commands are listed by: migrate help", names.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn topic(name: &str) -> &'static str {
        TOPICS.iter().find(|(topic, ..)| *topic == name).unwrap().2
    }

    #[test]
    fn topics_are_short_lines_of_text() {
        for (name, _, text) in TOPICS {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{name}: {line}");
            }
            assert!(text.lines().count() > 10, "{name}");
        }
    }

    #[test]
    fn every_error_code_is_explained() {
        let text = topic("exit-codes");
        for code in [
            "unexpected",
            "usage",
            "kvm-missing",
            "kvm-permission",
            "kvm-capability",
            "bad-definition",
            "bad-kernel",
            "no-memory",
            "bad-disk",
            "disk-locked",
            "bad-net",
            "name-taken",
            "already-running",
            "superseded",
            "disk-changed",
            "bad-state-file",
            "state-version",
            "not-found",
            "unreachable",
            "busy",
            "wrong-state",
            "writable-disk",
            "timeout",
            "interrupted",
            "file-exists",
            "file",
            "no-identity",
            "unknown-host",
            "host-refused",
            "no-common-version",
            "no-room",
            "incompatible",
            "local-disk",
            "moved-away",
            "already-there",
            "in-doubt",
            "move-failed",
            "cancelled",
        ] {
            let parsed: ErrorCode =
                serde_json::from_value(serde_json::Value::String(code.into())).unwrap();
            let exit = parsed.exit_code().to_string();
            let line = text.lines().find(|l| l.split_whitespace().next() == Some(code));
            let line = line.unwrap_or_else(|| panic!("{code} is not explained"));
            assert_eq!(line.split_whitespace().nth(1), Some(exit.as_str()), "{line}");
        }
    }

    #[test]
    fn every_parameter_of_the_scribbler_is_explained() {
        for parameter in vmm::scribbler::PARAMS {
            let start = format!("  {}=", parameter.key);
            assert!(topic("scribbler").lines().any(|l| l.starts_with(&start)), "{start}");
        }
    }

    #[test]
    fn every_key_of_a_definition_is_explained() {
        let error = crate::config::GuestFile::parse("x = 1", "t").unwrap_err().0.message;
        let keys: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 15, "{error}");
        for key in keys {
            assert!(topic("files").contains(key), "{key} is not explained");
        }
    }

    /// What users are told of the times is what the program does.
    #[test]
    fn every_time_of_a_move_is_the_real_one() {
        use migrate_engine::handover::source::{LINK_MS, pause_limit};
        use migrate_engine::handover::target::ORPHAN_MS;
        use migrate_engine::session::OPENING_MS;
        use migrate_engine::transport::quic::Settings;

        use crate::api::moving::MoveOptions;
        use crate::daemon;

        let settings = Settings::default();
        let ms = Duration::from_millis;
        let orphan = ms(ORPHAN_MS);
        assert_eq!(daemon::ORPHAN, orphan, "both are told as one");
        let usual = MoveOptions::default();
        let told = [
            (settings.connect, "a connection to the other host is made"),
            (daemon::PATIENCE, "the other host's daemon answers"),
            (daemon::LAUNCH, "the process that is to receive the guest has started"),
            (ms(OPENING_MS), "the two processes have agreed"),
            (settings.idle, "a link on which nothing is heard is lost"),
            (ms(LINK_MS), "a guest that is still copied is not waited for"),
            (orphan, "a receiver whose source does not come"),
            (ms(pause_limit(0, 0)), "or four times --max-downtime"),
            (daemon::LATER, "between two tries to settle"),
            (ms(usual.max_downtime_ms), "longest predicted time for which it may stand still"),
            (ms(usual.timeout_ms), "the copy gives up after this long"),
        ];
        assert_eq!(pause_limit(1000, 0), 4000);
        for (time, what) in told {
            let line = topic("moving").lines().find(|line| line.contains(what));
            let line = line.unwrap_or_else(|| panic!("'{what}' is not in the topic"));
            let words = line.split_once(what).unwrap().0.replace("--max-downtime", "");
            let words = words.replace("--timeout", "").replace("after that", "");
            let number = words.trim().replace(' ', "");
            let found = crate::config::parse_duration(&number);
            assert_eq!(found, Ok(time), "{line}");
        }
    }
}
