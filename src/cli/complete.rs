//! Shell completion: a few lines for each shell that ask this program, so that guests' names are
//! the live ones and options never disagree with the command line.

use std::time::Duration;

use clap::{Arg, Command, CommandFactory};

use super::args::{Cli, Shell};
use super::help::TOPICS;
use super::{Done, OK, Session};
use crate::api::client::runtime;
use crate::host::{exits, registry};

/// How long somebody who has pressed the tab key waits for the daemon.
const PATIENCE: Duration = Duration::from_millis(500);

const BASH: &str = r#"_migrate() {
    local cur=${COMP_WORDS[COMP_CWORD]}
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$(migrate complete-words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "$cur"))
}
complete -o default -F _migrate migrate
"#;

const ZSH: &str = r#"#compdef migrate
_migrate() {
    local -a candidates
    candidates=("${(@f)$(migrate complete-words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    candidates=(${candidates:#})
    if (( ${#candidates} )); then compadd -a candidates; else _files; fi
}
compdef _migrate migrate
"#;

const FISH: &str = r"function __migrate_words
    set -l words (commandline -opc) (commandline -ct)
    migrate complete-words -- $words[2..-1] 2>/dev/null
end
complete -c migrate -a '(__migrate_words)'
";

/// `completions`
pub fn script(session: &Session, shell: Shell) -> Done {
    session.out.print(match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    })?;
    Ok(OK)
}

/// `complete-words`
pub fn words(session: &Session, words: &[String]) -> Done {
    let lines = candidates(words, &|source| names(session, source)).join("\n");
    if !lines.is_empty() {
        session.out.print(&lines)?;
    }
    Ok(OK)
}

/// Where names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Guests with a process.
    Running,
    /// Guests with a process or a record.
    Known,
    /// Guests with a record.
    Ended,
    /// Guests with a definition.
    Defined,
    /// Hosts of the site.
    Hosts,
}

fn names(session: &Session, source: Source) -> Vec<String> {
    let dirs = &session.dirs;
    let running = || registry::names(dirs).unwrap_or_default();
    let ended = || exits::read_all(dirs).unwrap_or_default().into_iter().map(|r| r.name);
    let mut names: Vec<String> = match source {
        Source::Running => running(),
        Source::Known => running().into_iter().chain(ended()).collect(),
        Source::Ended => ended().collect(),
        Source::Defined => {
            let files = std::fs::read_dir(dirs.definitions()).into_iter().flatten().flatten();
            let names = files.filter_map(|f| f.file_name().into_string().ok());
            names.filter_map(|n| n.strip_suffix(".toml").map(str::to_owned)).collect()
        }
        Source::Hosts => hosts(session),
    };
    names.sort();
    names.dedup();
    names
}

/// The other hosts of the site, if the daemon says them before anybody gets impatient.
fn hosts(session: &Session) -> Vec<String> {
    let client = session.daemon();
    let known = runtime().ok().and_then(|runtime| {
        runtime.block_on(async { tokio::time::timeout(PATIENCE, client.hosts()).await.ok()?.ok() })
    });
    let others = known.into_iter().flat_map(|list| list.hosts).filter(|host| !host.this);
    others.map(|host| host.name).collect()
}

/// What the last of `words` may become. Nothing means: a file name, or something free.
fn candidates(words: &[String], names: &dyn Fn(Source) -> Vec<String>) -> Vec<String> {
    let mut root = Cli::command();
    root.build();
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", &[][..]),
    };
    let mut command = &root;
    let mut path = Vec::new();
    let mut positionals = 0;
    let mut value_of: Option<&Arg> = None;
    for word in before {
        if value_of.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            let arg = option(command, word).or_else(|| short_form(&root, &path, word));
            value_of = arg.filter(|arg| arg.get_action().takes_values());
        } else if positionals == 0
            && let Some(found) = command.find_subcommand(word)
        {
            command = found;
            path.push(found.get_name());
        } else {
            positionals += 1;
        }
    }
    let commands = || command.get_subcommands().filter(|c| !c.is_hide_set());
    let all = if let Some(arg) = value_of {
        match (arg.get_id().as_str(), path.first()) {
            ("to", None | Some(&"move")) => names(Source::Hosts),
            _ => possible(arg),
        }
    } else if last.starts_with('-') {
        let short = path.is_empty().then(|| "--to".to_owned());
        options(command).into_iter().chain(short).collect()
    } else if path.is_empty() {
        // A guest begins the short form of a move.
        let commands = commands().filter(|_| positionals == 0).map(|c| c.get_name().to_owned());
        commands.chain(names(Source::Running)).collect()
    } else if command.has_subcommands() {
        commands().map(|c| c.get_name().to_owned()).collect()
    } else {
        arguments(command, &path.join(" "), names)
    };
    all.into_iter().filter(|c| c.starts_with(last)).collect()
}

/// An option of the short form of a move.
fn short_form<'a>(root: &'a Command, path: &[&str], word: &str) -> Option<&'a Arg> {
    root.find_subcommand("move").filter(|_| path.is_empty()).and_then(|found| option(found, word))
}

fn arguments(command: &Command, path: &str, names: &dyn Fn(Source) -> Vec<String>) -> Vec<String> {
    match path {
        "show" => names(Source::Known),
        "rm" => names(Source::Ended),
        "start" => names(Source::Defined),
        "help" => TOPICS.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        _ => command
            .get_positionals()
            .flat_map(|arg| match arg.get_id().as_str() {
                "guest" | "guests" => names(Source::Running),
                "which" => names(Source::Known),
                "host" => names(Source::Hosts),
                _ => possible(arg),
            })
            .collect(),
    }
}

fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        let long = arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
        let short = arg.get_short().is_some_and(|s| word.strip_prefix('-') == Some(&s.to_string()));
        long || short
    })
}

fn options(command: &Command) -> Vec<String> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    visible.filter_map(|arg| arg.get_long().map(|long| format!("--{long}"))).collect()
}

fn possible(arg: &Arg) -> Vec<String> {
    let values = arg.get_possible_values();
    values.into_iter().map(|value| value.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        candidates(&words, &|source| match source {
            Source::Running => vec!["web1".into(), "web2".into()],
            Source::Known => vec!["old".into(), "web1".into()],
            Source::Ended => vec!["old".into()],
            Source::Defined => vec!["db".into()],
            Source::Hosts => vec!["host2".into()],
        })
    }

    #[test]
    fn commands_names_options_and_values() {
        assert_eq!(complete("st"), ["start", "stop"]);
        assert!(complete("").contains(&"run".to_owned()));
        assert!(!complete("").contains(&"guest-process".to_owned()));
        assert_eq!(complete("stop "), ["web1", "web2"]);
        assert_eq!(complete("--json pause web"), ["web1", "web2"]);
        assert_eq!(complete("stop --timeout 5s w"), ["web1", "web2"]);
        assert_eq!(complete("show "), ["old", "web1"]);
        assert_eq!(complete("rm "), ["old"]);
        assert_eq!(complete("start "), ["db"]);
        assert_eq!(complete("stop --ki"), ["--kill"]);
        assert_eq!(complete("load f --clock a"), ["auto", "account"]);
        assert_eq!(complete("completions "), ["bash", "zsh", "fish"]);
        assert_eq!(complete("help e"), ["exit-codes"]);
        assert_eq!(complete("move web1 --to "), ["host2"]);
        assert_eq!(complete("move web1 w"), ["web1", "web2"]);
        assert_eq!(complete("web1 --to h"), ["host2"]);
        assert_eq!(complete("--to h"), ["host2"]);
        assert_eq!(complete("web"), ["web1", "web2"]);
        assert_eq!(complete("web1 "), ["web1", "web2"]);
        assert_eq!(complete("web1 --t"), ["--timeout", "--to"]);
        assert_eq!(complete("host ch"), ["check"]);
        assert_eq!(complete("host check "), ["host2"]);
        assert_eq!(complete("host show "), ["host2"]);
        assert_eq!(complete("report "), ["old", "web1"]);
        assert_eq!(complete("move --on-stall p"), ["pause"]);
        assert!(complete("save web1 --to ").is_empty(), "a file");
        assert!(complete("load ").is_empty(), "a file");
        assert!(complete("run --kernel ").is_empty(), "a file");
    }

    #[test]
    fn no_words_are_no_trouble() {
        assert!(!candidates(&[], &|_| vec![]).is_empty());
    }
}
