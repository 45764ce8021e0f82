//! The short form of a move: `migrate [GUEST]... --to HOST` is `migrate move [GUEST]... --to HOST`.

use std::ffi::OsString;

use clap::{Arg, Command, CommandFactory};

use super::args::Cli;

/// The command line with `move` put in if it is the short form: it says `--to`, and its first word
/// that is neither an option nor an option's value is no command. `words` begins with the
/// program's name. A guest named like a command needs `move`.
pub fn expand(mut words: Vec<OsString>) -> Vec<OsString> {
    if is_short(&words) {
        words.insert(1, "move".into());
    }
    words
}

fn is_short(words: &[OsString]) -> bool {
    let texts: Vec<&str> = words.iter().skip(1).map_while(|word| word.to_str()).collect();
    let options = texts.iter().take_while(|text| **text != "--");
    if !options.clone().any(|text| *text == "--to" || text.starts_with("--to=")) {
        return false;
    }
    let mut root = Cli::command();
    root.build();
    let Some(moving) = root.find_subcommand("move") else { return false };
    let mut value = false;
    for text in options {
        if std::mem::take(&mut value) {
            continue;
        }
        if text.starts_with('-') {
            value = takes_value(moving, text);
        } else {
            return root.find_subcommand(text).is_none();
        }
    }
    true
}

/// The option's value is the next word.
fn takes_value(command: &Command, option: &str) -> bool {
    let named = |arg: &&Arg| {
        let long = arg.get_long().is_some_and(|long| option.strip_prefix("--") == Some(long));
        let short =
            arg.get_short().is_some_and(|c| option.strip_prefix('-') == Some(&c.to_string()));
        long || short
    };
    command.get_arguments().find(named).is_some_and(|arg| arg.get_action().takes_values())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(line: &str) -> String {
        let words = std::iter::once("migrate").chain(line.split_whitespace());
        let words = expand(words.map(OsString::from).collect());
        let words: Vec<_> = words.iter().map(|w| w.to_str().unwrap()).collect();
        words[1..].join(" ")
    }

    #[test]
    fn a_move_without_its_name() {
        for short in [
            "web1 --to host2",
            "--to host2",
            "--to=host2 web1 web2",
            "--json --to host2 --all",
            "--timeout 5m web1 --to host2",
            "--to save web1",
            "--bandwidth 1Gbit --to host2",
            "web1 --to host2 -- stop",
        ] {
            assert_eq!(expanded(short), format!("move {short}"));
        }
        for long in [
            "save web1 --to file",
            "move web1 --to host2",
            "--json save web1 --to=file",
            "web1",
            "ls",
            "",
            "web1 -- --to host2",
            "watch --to host2",
            "complete-words -- web1 --to h",
            "--timeout 5m move web1 --to host2",
        ] {
            assert_eq!(expanded(long), long);
        }
    }
}
