//! `run --rm`: the guest's console in the foreground until the guest, the time or the user ends
//! it. The guest process dies with this one, so nothing is left even after `kill -9`.

use std::io::{self, Write};
use std::pin::Pin;
use std::process::Child;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use vmm::scribbler::report::{Event, Parser, Status};

use super::console::{ESCAPE, RawTerminal};
use super::control::{GONE_DEADLINE, STOP_DEADLINE};
use super::output::Output;
use super::values::WaitFor;
use super::{Done, OK, Session};
use crate::api::client::{CallError, GuestClient, runtime};
use crate::api::{ErrorCode, ExitHow, Failure, GuestInfo, StopResult};
use crate::host::registry::{describe, wait_gone};
use crate::host::spawn::Launched;
use crate::show::guest::sentence;
use crate::show::live;

/// How long a scribbler may take to verify its memory.
const VERIFY_DEADLINE: Duration = Duration::from_mins(2);
/// How long it may take to fill its memory; its `--duration` counts from there.
const FILL_DEADLINE: Duration = Duration::from_mins(5);
/// The key that makes a scribbler verify all of its memory.
const VERIFY_KEY: u8 = b'v';

/// What the user asked for.
#[derive(Debug)]
pub struct Plan {
    /// Connect the keyboard.
    pub interactive: bool,
    /// End the guest after this long.
    pub duration: Option<Duration>,
    /// It is a scribbler with this heartbeat: understand what it says.
    pub scribbler: Option<char>,
    /// Say when this text appears.
    pub wait_for: Option<WaitFor>,
}

impl Plan {
    /// When the guest's time is over; a scribbler's begins when its memory is filled.
    fn end(&self, filled: bool) -> Option<Instant> {
        let wait = self.scribbler.is_some() && !filled;
        let extra = if wait { FILL_DEADLINE } else { Duration::ZERO };
        self.duration.map(|d| Instant::now() + extra + d)
    }
}

/// The last document of `run --rm --json`.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    schema: u32,
    r#type: &'static str,
    name: &'a str,
    how: ExitHow,
    /// The user, or a signal, ended it.
    interrupted: bool,
    /// The verdict of the scribbler's last sweep, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
}

/// Attends the guest until it is gone.
pub fn attend(session: &Session, launched: Launched, plan: &Plan) -> Done {
    let Launched { info, child } = launched;
    let client = GuestClient::new(&info.name, session.dirs.guest(&info.name));
    started(session.out, &info, plan)?;
    let raw = if plan.interactive {
        Some(RawTerminal::enter().map_err(|e| {
            let message = format!("the keyboard cannot be connected: {e}");
            Failure::new(
                ErrorCode::Usage,
                message,
                "leave out --interactive, or run it on a terminal",
            )
        })?)
    } else {
        None
    };
    let screen = Screen::new(
        session.out,
        plan.scribbler.filter(|_| !plan.interactive),
        plan.wait_for.as_ref(),
    );
    let watched = runtime().map_err(|e| broken(&client, &e))?.block_on(watch(
        &client,
        child,
        plan,
        session.global.timeout,
        screen,
    ));
    drop(raw);
    let watched = watched?;
    let record = wait_gone(&session.dirs, &client, GONE_DEADLINE)?;
    let how = record.as_ref().map_or(ExitHow::Died, |r| r.how);
    let detail = record.and_then(|r| r.detail);
    finish(session.out, &client, plan, how, detail, &watched)
}

fn started(out: Output, info: &GuestInfo, plan: &Plan) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Started<'a> {
        r#type: &'static str,
        #[serde(flatten)]
        info: &'a GuestInfo,
    }
    if out.json {
        return out.result(&Started { r#type: "started", info }, "");
    }
    let end = if plan.interactive { "Ctrl-]" } else { "Ctrl-C" };
    out.progress(&format!("{}; {end} ends it", sentence(info)));
    Ok(())
}

fn broken(client: &GuestClient, e: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::Unreachable,
        format!("the console of '{}' cannot be used: {e}", client.name()),
        "run it again; the guest ended with this command",
    )
}

/// A process whose console is gone ends within this.
const GONE_ALREADY: Duration = Duration::from_secs(5);

/// What happened while the guest ran.
#[derive(Debug, Default)]
struct Watched {
    interrupted: bool,
    verified: Option<(bool, String)>,
    verify_missing: bool,
    text_missing: Option<String>,
}

fn finish(
    out: Output,
    client: &GuestClient,
    plan: &Plan,
    how: ExitHow,
    detail: Option<String>,
    watched: &Watched,
) -> Done {
    let name = client.name();
    let detail = detail.map(|d| format!(" ({d})")).unwrap_or_default();
    let failed = |message: String| {
        let log =
            "run it again with MIGRATE_LOG=debug and read the guest's log (migrate help files)";
        Err(Failure::new(ErrorCode::Unexpected, message, log))
    };
    if matches!(how, ExitHow::Crashed | ExitHow::Died) {
        return failed(format!("guest '{name}' {}{detail}", describe(how)));
    }
    if let Some((false, line)) = &watched.verified {
        return failed(format!("guest '{name}': {line}"));
    }
    if let Some(text) = &watched.text_missing {
        let message = format!("'{text}' did not appear on the console of '{name}'; it was ended");
        return Err(Failure::new(ErrorCode::Timeout, message, "give it longer: --wait-for …,TIME"));
    }
    if plan.scribbler.is_some() && plan.duration.is_some() && watched.verify_missing {
        let message = format!("guest '{name}' did not verify its memory in time; it was ended");
        return Err(Failure::new(ErrorCode::Timeout, message, "run it again with less memory"));
    }
    let verified = watched.verified.as_ref().map(|(ok, _)| *ok);
    let interrupted = watched.interrupted;
    let document = Outcome { schema: 1, r#type: "result", name, how, interrupted, verified };
    out.result(&document, &format!("{name}: it {}{detail}; nothing of it is left", describe(how)))?;
    Ok(if interrupted { ErrorCode::Interrupted.exit_code() } else { OK })
}

/// What the loop below is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Verifying,
    Stopping,
}

type Stop<'a> = Pin<Box<dyn Future<Output = Result<StopResult, CallError>> + 'a>>;

/// Follows the guest until its process is gone.
async fn watch(
    client: &GuestClient,
    child: Child,
    plan: &Plan,
    timeout: Option<Duration>,
    mut screen: Screen,
) -> Result<Watched, Failure> {
    let lost = |e: io::Error| broken(client, &e);
    let mut gone = wait_in_thread(child);
    let Some(console) = connect(client, &mut gone).await.map_err(lost)? else {
        return Ok(Watched::default());
    };
    let (mut from_guest, mut to_guest) = console.into_split();
    let mut keys = plan.interactive.then(read_keys);
    let mut asked_to_end = signals().map_err(lost)?;
    let mut deadline = plan.end(false);
    let mut wait_until = plan.wait_for.as_ref().map(|w| Instant::now() + w.within);
    let (mut phase, mut watched) = (Phase::Running, Watched::default());
    let mut stop: Option<Stop<'_>> = None;
    let mut buffer = vec![0; 16 << 10];
    let mut console_open = true;

    while stop.is_some() || phase != Phase::Stopping {
        let mut end = false;
        tokio::select! {
            _ = &mut gone => break,
            read = from_guest.read(&mut buffer), if console_open => {
                let n = read.unwrap_or(0);
                console_open = n > 0;
                // Whoever reads our output is gone: so is the purpose.
                end = screen.show(buffer.get(..n).unwrap_or_default(), &mut watched).is_err();
                end |= phase == Phase::Verifying && watched.verified.is_some();
                wait_until = wait_until.filter(|_| !screen.found);
                let filled = std::mem::take(&mut screen.filled) && phase == Phase::Running;
                deadline = if filled { plan.end(true) } else { deadline };
            }
            () = at(deadline), if phase != Phase::Stopping => {
                deadline = None;
                if phase == Phase::Running && plan.scribbler.is_some() {
                    (phase, deadline) = (Phase::Verifying, Some(Instant::now() + VERIFY_DEADLINE));
                    watched.verified = None;
                    press(&mut to_guest, &[VERIFY_KEY]).await;
                } else {
                    watched.verify_missing = phase == Phase::Verifying;
                    end = true;
                }
            }
            () = at(wait_until), if phase != Phase::Stopping => {
                watched.text_missing = plan.wait_for.as_ref().map(|w| w.text.clone());
                end = true;
            }
            Some(bytes) = next_keys(&mut keys) => end = typed(&mut to_guest, &bytes).await,
            Some(()) = asked_to_end.recv() => {
                watched.interrupted = true;
                if phase == Phase::Stopping {
                    // Asked twice: the guest goes at once, with this process.
                    stop = Some(Box::pin(client.stop_async(Duration::ZERO)));
                }
                end = true;
            }
            result = async { match stop.as_mut() { Some(s) => s.await, None => std::future::pending().await } } => {
                stop = None;
                if let Err(e @ (CallError::Refused(_) | CallError::Late(_))) = result {
                    return Err(client.failure(e));
                }
            }
        }
        if end && phase != Phase::Stopping {
            phase = Phase::Stopping;
            screen.ending();
            stop = Some(Box::pin(client.stop_async(timeout.unwrap_or(STOP_DEADLINE))));
        }
    }
    if console_open {
        hear_out(&mut from_guest, &mut screen, &mut watched).await;
    }
    Ok(watched)
}

/// Connects to the guest's console. `None`: it ended already, and how is the news, not that its
/// console is gone.
async fn connect(
    client: &GuestClient,
    gone: &mut oneshot::Receiver<()>,
) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(client.paths().console()).await {
        Ok(console) => Ok(Some(console)),
        Err(_) if tokio::time::timeout(GONE_ALREADY, gone).await.is_ok() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Shows the last words of a guest; its console closes with its process.
async fn hear_out(from_guest: &mut OwnedReadHalf, screen: &mut Screen, watched: &mut Watched) {
    let mut buffer = vec![0; 16 << 10];
    let hear = async {
        while let Ok(n @ 1..) = from_guest.read(&mut buffer).await {
            if screen.show(buffer.get(..n).unwrap_or_default(), watched).is_err() {
                break;
            }
        }
    };
    // A process that hangs at its end is dealt with elsewhere.
    let _ = tokio::time::timeout(Duration::from_secs(2), hear).await;
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn next_keys(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Passes keys on; `true` if the one that ends the guest is among them.
async fn typed(to_guest: &mut OwnedWriteHalf, keys: &[u8]) -> bool {
    let end = keys.contains(&ESCAPE);
    if !end {
        press(to_guest, keys).await;
    }
    end
}

async fn press(to_guest: &mut OwnedWriteHalf, keys: &[u8]) {
    // A console that takes nothing any more ends, and is seen to end, elsewhere.
    let _ = tokio::time::timeout(Duration::from_secs(1), to_guest.write_all(keys)).await;
}

/// Waits for the process in a thread, which also reaps it.
fn wait_in_thread(mut child: Child) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = child.wait();
        let _ = sender.send(());
    });
    receiver
}

/// Reads the keyboard in a thread, which ends with this process.
fn read_keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = nix::unistd::read(io::stdin().as_fd(), &mut buffer) {
            if sender.blocking_send(buffer.get(..n).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// One message for each signal that asks us to end.
fn signals() -> io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(4);
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() && sender.send(()).await.is_ok() {}
        });
    }
    Ok(receiver)
}

/// What of the console is shown, and how.
struct Screen {
    out: Output,
    /// Understands a scribbler.
    parser: Option<Parser>,
    before: Status,
    /// The scribbler has just said that its memory is filled.
    filled: bool,
    /// Text to look for, and the end of what was seen so far.
    wanted: Option<Vec<u8>>,
    tail: Vec<u8>,
    found: bool,
}

impl Screen {
    fn new(out: Output, scribbler: Option<char>, wait_for: Option<&WaitFor>) -> Self {
        Self {
            out,
            parser: scribbler.map(Parser::new),
            before: Status::default(),
            filled: false,
            wanted: wait_for.map(|w| w.text.clone().into_bytes()),
            tail: Vec::new(),
            found: false,
        }
    }

    fn show(&mut self, bytes: &[u8], watched: &mut Watched) -> io::Result<()> {
        self.search(bytes);
        let silent = self.out.json || self.out.quiet;
        let mut stdout = io::stdout().lock();
        let Some(parser) = &mut self.parser else {
            return if silent {
                Ok(())
            } else {
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            };
        };
        for event in parser.feed(bytes) {
            if let Some(line) = live::line(&event, &self.before, self.out.style)
                && !silent
            {
                writeln!(stdout, "{line}")?;
            }
            match event {
                Event::Ready(_) => self.filled = true,
                Event::Status(status) => self.before = status,
                Event::VerifyOk(_) => watched.verified = Some((true, String::new())),
                Event::VerifyBad(sweep) => watched.verified = Some((false, live::bad(&sweep))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks for the wanted text, also across pieces.
    fn search(&mut self, bytes: &[u8]) {
        let Some(wanted) = self.wanted.as_ref().filter(|_| !self.found) else { return };
        self.tail.extend_from_slice(bytes);
        if self.tail.windows(wanted.len()).any(|w| w == wanted) {
            self.found = true;
            self.out.progress(&format!("Seen: {}", String::from_utf8_lossy(wanted)));
        }
        let keep = wanted.len().saturating_sub(1);
        self.tail.drain(..self.tail.len().saturating_sub(keep));
    }

    fn ending(&self) {
        self.out.progress("Stopping the guest …");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::style::Style;

    fn screen(text: &str) -> Screen {
        let wait = WaitFor { text: text.into(), within: Duration::ZERO };
        let out = Output { json: false, quiet: true, style: Style::PLAIN };
        Screen::new(out, Some('.'), Some(&wait))
    }

    #[test]
    fn a_text_is_found_across_pieces() {
        for cut in 0..=12 {
            let mut screen = screen("login:");
            let (a, b) = b"xxlogin: yyy".split_at(cut);
            screen.search(a);
            screen.search(b);
            assert!(screen.found, "{cut}");
        }
        let mut screen = screen("login:");
        screen.search(b"log");
        screen.search(b"-in:");
        assert!(!screen.found);
    }

    #[test]
    fn a_verdict_is_kept() {
        let mut watched = Watched::default();
        screen("x").show(b"\nVERIFY BAD pages=2 errors=1 sweep=1\n", &mut watched).unwrap();
        assert!(matches!(watched.verified, Some((false, why)) if why.contains("1 errors")));
    }

    /// A guest in a directory of its own: its process is a `sleep`, its API answers one stop by
    /// killing that, its console says what it is told to and answers `v` with a verdict.
    fn watched(plan: &Plan, says: &'static str, dies: bool) -> Result<Watched, Failure> {
        use std::io::Read;
        let dir = tempfile::tempdir().unwrap();
        let paths = crate::config::GuestPaths { dir: dir.path().into() };
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let kill = move || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        let console = std::os::unix::net::UnixListener::bind(paths.console()).unwrap();
        let api = std::os::unix::net::UnixListener::bind(paths.api()).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = console.accept().unwrap();
            stream.write_all(says.as_bytes()).unwrap();
            if dies {
                kill().unwrap();
            }
            let mut key = [0];
            while let Ok(1) = stream.read(&mut key) {
                assert_eq!(key, [VERIFY_KEY]);
                stream.write_all(b"\nVERIFY ok pages=1 errors=0 sweep=2\n").unwrap();
            }
        });
        std::thread::spawn(move || {
            let (mut stream, _) = api.accept().unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"POST /v1/stop "));
            kill().unwrap();
            let body = r#"{"schema":1,"how":"killed"}"#;
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                .unwrap();
        });
        let out = Output { json: false, quiet: true, style: Style::PLAIN };
        let screen = Screen::new(out, plan.scribbler, plan.wait_for.as_ref());
        let client = GuestClient::new("a", paths);
        runtime().unwrap().block_on(watch(&client, child, plan, None, screen))
    }

    fn plan() -> Plan {
        Plan { interactive: false, duration: None, scribbler: Some('.'), wait_for: None }
    }

    #[test]
    fn when_the_time_is_over_a_scribbler_verifies_and_is_stopped() {
        let plan = Plan { duration: Some(Duration::from_millis(50)), ..plan() };
        let says = "\nSCRIBBLER-READY cpus=1 pages=1 ws=1 kvmclock=1 fill_ms=1\n\
                    \nVERIFY BAD pages=1 errors=1 sweep=1\n";
        let seen = watched(&plan, says, false).unwrap();
        assert_eq!(seen.verified, Some((true, String::new())), "the later verdict");
        assert!(!seen.interrupted && !seen.verify_missing);
    }

    #[test]
    fn a_guest_that_ends_by_itself_is_heard_to_the_end() {
        let seen = watched(&plan(), "\nVERIFY ok pages=1 errors=0 sweep=1\n", true).unwrap();
        assert_eq!(seen.verified, Some((true, String::new())));
    }

    #[test]
    fn a_text_that_does_not_appear_ends_the_guest() {
        let wait =
            |text: &str| Some(WaitFor { text: text.into(), within: Duration::from_millis(50) });
        let missing = watched(&Plan { wait_for: wait("login:"), ..plan() }, "log", false).unwrap();
        assert_eq!(missing.text_missing.as_deref(), Some("login:"));
        let duration = Some(Duration::from_millis(200));
        let found = Plan { wait_for: wait("log"), duration, scribbler: None, ..plan() };
        assert_eq!(watched(&found, "a log", false).unwrap().text_missing, None);
    }
}
