//! The network between the two hosts of `scripts/lab`, where the kernel's netem is not there: two
//! taps, each in a network namespace, and between them a path with delay, loss and the like. It
//! carries Ethernet frames and knows nothing of what is in them.
//!
//! ```text
//! lab_relay carry CONTROL NETNS-A/TAP-A NETNS-B/TAP-B SEED [KEY=VALUE…]
//! lab_relay tell CONTROL show | cut [a-to-b|b-to-a] | heal [a-to-b|b-to-a] | set [a-to-b|b-to-a] KEY=VALUE…
//! ```
//!
//! `carry` says `ready` on stdout when frames flow, and runs until it is killed or a tap is gone.

mod carry;
mod model;
mod words;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path as FilePath;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use vmm::devices::tap::Tap;

use carry::Direction;
use model::{Conditions, Path};
use words::Request;

/// Names of the directions.
const NAMES: [&str; 2] = ["a-to-b", "b-to-a"];
/// Longest request and answer.
const MOST: u64 = 64 << 10;
/// `TUN_F_CSUM`: frames may come without a checksum; their header says so, and goes with them.
const CHECKSUM_LATER: u32 = 1;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match work(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab_relay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(args: &[String]) -> Result<()> {
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["carry", control, a, b, seed, conditions @ ..] => {
            let seed = seed.parse().context("SEED must be a number")?;
            carry_all(FilePath::new(control), [a, b], seed, conditions)
        }
        ["tell", control, words @ ..] => tell(FilePath::new(control), &words.join(" ")),
        _ => bail!("usage: see the head of this program's source, or use scripts/lab"),
    }
}

fn carry_all(control: &FilePath, ends: [&str; 2], seed: u64, conditions: &[&str]) -> Result<()> {
    let mut wanted = Conditions::default();
    for word in conditions {
        let (key, value) = word.split_once('=').context("conditions are KEY=VALUE")?;
        words::change(&mut wanted, key, value).map_err(anyhow::Error::msg)?;
    }
    let (a, b) = (open(ends[0])?, open(ends[1])?);
    let listener = UnixListener::bind(control)
        .with_context(|| format!("cannot make the socket {}", control.display()))?;
    let paths = [0, 1].map(|i| Mutex::new(Path::new(wanted.clone(), seed.wrapping_add(i))));
    let start = Instant::now();
    thread::scope(|scope| {
        let [there, back] = &paths;
        let directions =
            [Direction::new(&a, &b, there, start), Direction::new(&b, &a, back, start)];
        for direction in directions {
            scope.spawn(|| {
                let ended = direction.run();
                eprintln!("lab_relay: {ended:?}");
                end();
            });
        }
        println!("ready");
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(&stream, &paths) {
                eprintln!("lab_relay: a request failed: {error:#}");
            }
        }
    });
    Ok(())
}

/// A relay without a tap is no relay; the other threads hold nothing that needs an orderly end.
fn end() {
    let _ours = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
}

/// Opens `NETNS/TAP`, where NETNS is a name below `/run/netns`.
fn open(end: &str) -> Result<Tap> {
    let (netns, tap) = end.split_once('/').context("an end is NETNS/TAP")?;
    let (netns, tap) = (netns.to_owned(), tap.to_owned());
    // A thread of its own: it is the thread that enters a namespace.
    let opened = thread::spawn(move || -> Result<Tap> {
        let file = File::open(FilePath::new("/run/netns").join(&netns))
            .with_context(|| format!("no network namespace {netns}"))?;
        setns(file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter the network namespace {netns}"))?;
        let tap = Tap::open(&tap)?;
        tap.set_offloads(CHECKSUM_LATER)?;
        Ok(tap)
    });
    opened.join().map_err(|_| anyhow::anyhow!("opening a tap panicked"))?
}

/// Answers one request: lines, the last of them `ok` or `error: …`.
fn answer(stream: &UnixStream, paths: &[Mutex<Path>; 2]) -> Result<()> {
    let patience = Some(Duration::from_secs(2));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut line = String::new();
    BufReader::new(stream.take(MOST)).read_line(&mut line)?;
    let text = match Request::read(&line) {
        Ok(request) => apply(&request, paths),
        Err(error) => format!("error: {error}\n"),
    };
    let mut stream = stream;
    stream.write_all(text.as_bytes())?;
    Ok(())
}

fn apply(request: &Request, paths: &[Mutex<Path>; 2]) -> String {
    let mut text = String::new();
    for (i, path) in paths.iter().enumerate() {
        let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
        let mut conditions = path.conditions().clone();
        match request {
            Request::Show => {
                text += &words::line(NAMES[i], &conditions, path.counters());
                text.push('\n');
            }
            Request::Cut(which) if which.has(i) => conditions.cut = true,
            Request::Heal(which) if which.has(i) => conditions.cut = false,
            Request::Set(which, pairs) if which.has(i) => {
                for (key, value) in pairs {
                    // Was read before, so it is right.
                    let _known = words::change(&mut conditions, key, value);
                }
            }
            Request::Cut(_) | Request::Heal(_) | Request::Set(..) => {}
        }
        path.set(conditions);
    }
    text + "ok\n"
}

fn tell(control: &FilePath, request: &str) -> Result<()> {
    let mut stream = UnixStream::connect(control)
        .with_context(|| format!("no relay listens on {}", control.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    stream.take(MOST).read_to_string(&mut text)?;
    match text.trim_end().rsplit('\n').next() {
        Some("ok") => {
            let body = text.trim_end().strip_suffix("ok").unwrap_or_default();
            print!("{body}");
            Ok(())
        }
        _ => bail!("the relay answered: {}", text.trim_end()),
    }
}
