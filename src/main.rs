//! The `migrate` command. Everything is in the library; here the process is set up.

use std::io::Write;
use std::process::ExitCode;

use migrate::arbiter::agent;
use migrate::host::spawn;

fn main() -> ExitCode {
    report_panics();
    // A guest process wants to be alone: nothing is opened, logged or parsed before it.
    if std::env::args_os().nth(1).is_some_and(|word| word == spawn::SUBCOMMAND) {
        return migrate::guest::process::process_main(&migrate::adapter::VmmHost);
    }
    migrate::logging::start(std::env::args_os());
    if std::env::args_os().nth(1).is_some_and(|word| word == agent::SUBCOMMAND) {
        return agent::main(std::env::args_os().skip(2));
    }
    std::panic::catch_unwind(|| migrate::cli::main(std::env::args_os()))
        .unwrap_or(ExitCode::FAILURE)
}

/// A defect of this program is told in a sentence that says where it is.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("no message");
        // Not with eprintln!, which would panic in here if nobody can be told.
        let _ = writeln!(
            std::io::stderr(),
            "migrate: a defect in this program ({what}, at {place})\n  \
             next:  see what your guests do: migrate ls; then report this line"
        );
    }));
}
