//! First process of the test guest, and its test tools, as one static program that
//! looks at the name it was called by. On some hosts a page fault costs more than a
//! millisecond and a fork more than fifty, so it stays small, keeps to one thread
//! and reuses its buffers.

mod copycheck;
mod first;
mod memcheck;
mod net;
mod parameters;
mod pattern;
mod sys;
mod tick;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// What the tools count in.
const MIB: usize = 1 << 20;

/// What went wrong, for people.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    let name = Path::new(&name).file_name().and_then(|n| n.to_str()).unwrap_or("init");
    let outcome = match name {
        "tick" => tick::run(&args),
        "copycheck" => copycheck::run(&args),
        "memcheck" => memcheck::run(&args),
        "poweroff" => ask_init(sys::SIGUSR2),
        "reboot" => ask_init(sys::SIGTERM),
        "halt" => ask_init(sys::SIGUSR1),
        _ if std::process::id() == 1 => first::Init::start().serve(),
        other => Err(format!("{other}: not a tool of this program")),
    };
    if let Err(e) = outcome {
        eprintln!("{name}: {e}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn ask_init(signal: i32) -> Outcome {
    sys::signal(1, signal).map_err(|e| e.to_string())
}

/// One line to the console in one write.
fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    text.push_str(line);
    text.push('\n');
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stdout().flush();
}

/// Argument `i` as a number.
fn number(args: &[String], i: usize, default: Option<u64>, usage: &str) -> Result<u64, String> {
    match (args.get(i), default) {
        (Some(s), _) => s.parse().map_err(|_| format!("{s}: not a number; {usage}")),
        (None, Some(d)) => Ok(d),
        (None, None) => Err(usage.to_string()),
    }
}
