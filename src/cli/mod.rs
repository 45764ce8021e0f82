//! The commands. [`main`] parses the command line, runs one command and turns its result into
//! output and an exit code; nothing else here ends the process.

pub mod args;
mod complete;
mod console;
mod control;
mod demo;
mod foreground;
mod help;
mod host;
mod host_cpu;
mod moving;
mod output;
mod resolve;
mod run;
mod save;
mod seam;
mod short;
mod template;
pub mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::api::daemon_client::DaemonClient;
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, Surroundings};

use args::{Cli, Command, Global};
use output::Output;

/// What a command ends with: an exit code, its result being printed.
type Done = Result<u8, Failure>;

/// Exit code of a command that did what it was asked to.
const OK: u8 = 0;

/// What every command works with.
struct Session {
    global: Global,
    dirs: Dirs,
    out: Output,
}

impl Session {
    /// The daemon of this instance.
    fn daemon(&self) -> DaemonClient {
        DaemonClient::new(self.dirs.daemon_socket(), self.start_daemon())
    }

    /// The command that starts it.
    fn start_daemon(&self) -> String {
        if let Some(unit) = start_unit(&self.dirs, Path::exists) {
            return unit.to_owned();
        }
        self.command("daemon")
    }

    /// A command as it is typed to reach this instance from any shell.
    fn command(&self, words: &str) -> String {
        let private = Dirs::below(self.dirs.config.parent().unwrap_or(&self.dirs.config));
        if private == self.dirs {
            let home = self.dirs.config.parent().unwrap_or(&self.dirs.config);
            return format!("MIGRATE_HOME={} migrate {words}", home.display());
        }
        match (self.global.system, self.global.user) {
            (true, _) => format!("migrate --system {words}"),
            (_, true) => format!("migrate --user {words}"),
            _ => format!("migrate {words}"),
        }
    }
}

/// The command that starts the unit of an instance, if one of those paths where it may be
/// installed `exists`. A private instance has none.
fn start_unit(dirs: &Dirs, exists: impl Fn(&Path) -> bool) -> Option<&'static str> {
    let unit = "migrate.service";
    if dirs.config == Path::new("/etc/migrate") {
        let places =
            ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];
        let there = places.iter().any(|place| exists(&Path::new(place).join(unit)));
        return there.then_some("systemctl start migrate");
    }
    let above = dirs.config.parent()?;
    let own = above.join("systemd/user").join(unit);
    let private = Dirs::below(above) == *dirs;
    (!private && exists(&own)).then_some("systemctl --user start migrate")
}

/// Runs the command line `words`, the program's name included.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words = short::expand(words.into_iter().collect());
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error, words.iter().any(|w| w == "--json")),
    };
    let out = Output::new(&cli.global);
    let done = Dirs::resolve(cli.global.instance(), &Surroundings::of_process())
        .and_then(|dirs| dispatch(cli.command, &Session { global: cli.global, dirs, out }));
    ExitCode::from(done.unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.0.code.exit_code()
    }))
}

/// A command line that clap answers itself: help, version, or a usage error.
fn unparsed(error: &clap::Error, json: bool) -> ExitCode {
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked_for || !json {
        // Nothing can be done about a closed stdout here.
        let _ = error.print();
        return ExitCode::from(if asked_for { OK } else { ErrorCode::Usage.exit_code() });
    }
    let text = error.render().to_string();
    let what: Vec<&str> =
        text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).collect();
    let what = what.join(" ");
    let what = what.trim().trim_end_matches("For more information, try '--help'.").trim();
    let message = what.strip_prefix("error: ").unwrap_or(what);
    let failure = Failure::new(ErrorCode::Usage, message, "see: migrate --help");
    let _ = writeln!(io::stdout(), "{}", crate::show::failure::json(&failure));
    ExitCode::from(ErrorCode::Usage.exit_code())
}

fn dispatch(command: Command, session: &Session) -> Done {
    match command {
        Command::Run(args) => run::run(session, *args),
        Command::Start(args) => run::start(session, args),
        Command::Load(args) => run::load(session, args),
        Command::CpuTemplate(args) => template::show(session, args.name.as_deref()),
        Command::Ls(args) => control::ls(session, &args),
        Command::Show(args) => control::show(session, &args.guest),
        Command::Console(args) => console::console(session, &args.guest),
        Command::Pause(args) => control::pause(session, &args.guest),
        Command::Resume(args) => control::resume(session, &args.guest),
        Command::Reset(args) => control::reset(session, &args.guest),
        Command::Stop(args) => control::stop(session, &args),
        Command::Save(args) => save::save(session, &args),
        Command::Rm(args) => control::rm(session, &args.guest),
        Command::Move(args) => moving::start(session, &args),
        Command::Watch(args) => moving::watch(session, &args),
        Command::Cancel(args) => moving::cancel(session, &args),
        Command::History(args) => moving::history(session, &args),
        Command::Report(args) => moving::report(session, &args),
        Command::Resolve(args) => resolve::resolve(session, &args),
        Command::Host(args) => host::host(session, &args.command),
        Command::Daemon(args) => seam::daemon(session, &args),
        Command::Demo(args) => demo::demo(session, &args),
        Command::Throttle(args) => control::throttle(session, &args),
        Command::Completions(args) => complete::script(session, args.shell),
        Command::Help(args) => help::help(session, args.topic.as_deref()),
        Command::CompleteWords(args) => complete::words(session, &args.words),
        Command::GuestProcess => Err(Failure::new(
            ErrorCode::Usage,
            "guest-process is started by the other commands, before anything else happens",
            "use: migrate run",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_unit_is_named_only_where_it_is() {
        let dirs =
            |config: &str| Dirs { config: config.into(), run: "/r".into(), state: "/s".into() };
        let with = |dirs: &Dirs, unit: &str| start_unit(dirs, |path| path == Path::new(unit));
        let system = dirs("/etc/migrate");
        assert_eq!(
            with(&system, "/etc/systemd/system/migrate.service"),
            Some("systemctl start migrate")
        );
        assert_eq!(with(&system, "/home/a/.config/systemd/user/migrate.service"), None);
        let own = dirs("/home/a/.config/migrate");
        assert_eq!(
            with(&own, "/home/a/.config/systemd/user/migrate.service"),
            Some("systemctl --user start migrate")
        );
        assert_eq!(with(&own, "/etc/systemd/system/migrate.service"), None);
        assert_eq!(start_unit(&Dirs::below(Path::new("/p")), |_| true), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_is_documented() {
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
            }
        }
    }

    const GOOD: &[&str] = &[
        "run --guest scribbler",
        "run a --guest scribbler:ws=64M,rate=max -m 128M -c 2 --rm --duration 10s",
        "run --file a.toml --wait-for console:login:,2m --json",
        "run --kernel k --initrd i --cmdline -x --disk d,ro --disk e --net tap=t0",
        "--json ls -a",
        "ls --json",
        "stop a --timeout 5s",
        "stop a --kill",
        "save a --to f --keep-running",
        "load f --as b --clock freeze --paused",
        "--user show a",
        "throttle a 50",
        "help exit-codes",
        "help",
        "completions bash",
        "guest-process",
        "complete-words -- run --",
        "move a b --to host2 --parallel 3 --bandwidth 1Gbit --max-downtime 50ms --timeout 5m",
        "move --to h --all --on-stall pause --detach --yes",
        "move --to h a --dry-run --json",
        "move --to h watch",
        "watch",
        "watch a",
        "cancel 00000000-0000-4000-8000-000000000001",
        "history a -n 5",
        "report a --json",
        "resolve a",
        "resolve a --run-here",
        "resolve a --run-here --fenced host2 --lose-later-work --json",
        "resolve a --give-up --yes",
        "host init --name host1",
        "host init --ca-cert c --ca-key k",
        "host invite --valid 10m --address 10.0.0.1:7420",
        "host join LINE",
        "host ls",
        "host show",
        "host check host2",
        "host remove host2",
        "daemon --system",
        "demo --keep --memory 1G",
    ];

    const BAD: &[&str] = &[
        "",
        "run --duration 10s --guest scribbler",
        "run --rm -i --json --guest scribbler",
        "run A --guest scribbler",
        "run --kernel k --guest scribbler",
        "stop",
        "stop a --timeout 5",
        "save a",
        "load f --clock never",
        "--user --system ls",
        "throttle a 0",
        "frobnicate",
        "move a",
        "move a --to h --all",
        "move a --to H",
        "move a --to h --bandwidth 100",
        "move a --to h --max-downtime 300",
        "move a --to h --on-stall never",
        "move a --to h --parallel 0",
        "move a --to h --dry-run --detach",
        "resolve",
        "resolve a --run-here --give-up",
        "resolve a --fenced host2",
        "resolve a --give-up --lose-later-work",
        "host",
        "host init --ca-cert c",
        "host check",
    ];

    #[test]
    fn the_grammar_is_that_of_the_contract() {
        for good in GOOD {
            let words = std::iter::once("migrate").chain(good.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in BAD {
            let words = std::iter::once("migrate").chain(bad.split(' ').filter(|w| !w.is_empty()));
            let error = Cli::try_parse_from(words).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
    }
}
