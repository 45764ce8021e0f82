//! Starts guest processes: this program again, in its hidden form, with a launch document on its
//! standard input ([`crate::api::launch`]) and nothing else in its hands.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use super::{exits, scope, taps};
use crate::api::launch::{LaunchError, LaunchFds, receive_reply, send_launch};
use crate::api::{ErrorCode, Failure, GuestInfo, LaunchReply, LaunchSpec};
use crate::{failpoint, logging};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "guest-process";
/// A guest's log is begun anew when it has grown to this many bytes.
const LOG_MAX: u64 = 1 << 20;
/// A command waits so long for a slow systemd after its guest is ready, then ends.
const SCOPE_GRACE: Duration = Duration::from_millis(200);
/// As much of the log is searched for the last words of a process that died.
const LAST_WORDS: u64 = 4096;

/// A guest process that answered "ready".
#[derive(Debug)]
pub struct Launched {
    /// The guest's facts.
    pub info: GuestInfo,
    /// Its process. Dropping this does not end it.
    pub child: Child,
}

/// A guest process that waits for its guest to arrive from another host.
#[derive(Debug)]
pub struct Receiver {
    /// Where it listens: control, then each lane.
    pub addresses: Vec<SocketAddr>,
    /// Its process. Dropping this does not end it.
    pub child: Child,
}

/// Starts a guest process for `spec`, with the saved file `load` if `spec.load` calls for one, and
/// waits until its guest is ready. With `die_with_parent` it ends with the calling thread.
///
/// # Errors
/// What the guest process says; `timeout` after `deadline`, with the process ended; `unexpected`
/// with its last words if it died.
pub fn launch(
    spec: &LaunchSpec,
    load: Option<&File>,
    deadline: Option<Duration>,
) -> Result<Launched, Failure> {
    match start_process(spec, load, deadline)? {
        (LaunchReply::Ready(info), child) => Ok(Launched { info: *info, child }),
        (_, child) => Err(wrong_reply(child)),
    }
}

/// Starts a guest process that is to receive a guest, as `spec.receive` says.
///
/// # Errors
/// As [`launch`].
pub fn launch_receiver(spec: &LaunchSpec, deadline: Option<Duration>) -> Result<Receiver, Failure> {
    match start_process(spec, None, deadline)? {
        (LaunchReply::Receiving { addresses }, child) => Ok(Receiver { addresses, child }),
        (_, child) => Err(wrong_reply(child)),
    }
}

fn wrong_reply(mut child: Child) -> Failure {
    let _ = child.kill();
    let _ = child.wait();
    let message = "the guest process answered something else than it was asked";
    Failure::new(ErrorCode::Unexpected, message, "use one release of migrate for everything")
}

/// Starts the process; the answer is that of a process that lives.
fn start_process(
    spec: &LaunchSpec,
    load: Option<&File>,
    deadline: Option<Duration>,
) -> Result<(LaunchReply, Child), Failure> {
    spec.dirs.prepare()?;
    spec.dirs.check_socket_paths(&spec.definition.name)?;
    if let Err(e) = exits::prune(&spec.dirs, SystemTime::now()) {
        tracing::warn!("cannot remove old records: {e}");
    }
    let log_path = spec.dirs.guest_log(&spec.definition.name);
    let log = open_log(&log_path).map_err(|e| {
        Failure::new(
            ErrorCode::File,
            format!("cannot open the guest's log {}: {e}", log_path.display()),
            "check that the state directory is yours and not full",
        )
    })?;
    let start_of_log = log.metadata().map_or(0, |m| m.len());
    let taps = taps::make(&spec.definition, &spec.dirs)?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| cannot_start(&e))?;
    let mut child = start(theirs, log).map_err(|e| cannot_start(&e))?;
    // One that ends with its caller has its place beside it.
    let lasting = !spec.die_with_parent;
    let name = &spec.definition.name;
    let scope = lasting.then(|| scope::ask(&spec.dirs, name, child.id())).flatten();

    // A process that died early breaks the socket; why it died is told by its answer or its log.
    let fds = LaunchFds { console: None, load: load.map(AsFd::as_fd), taps: &taps };
    let reply = match send_launch(&ours, spec, fds) {
        Ok(()) | Err(LaunchError::Io(_)) => wait_for_reply(&mut child, deadline),
        Err(other) => Err(NoReply::Broken(other)),
    };
    let ready = matches!(&reply, Ok(reply) if !matches!(reply, LaunchReply::Failed(_)));
    match scope {
        Some(asked) if !ready => asked.withdraw(),
        Some(asked) if spec.receive.is_none() => asked.settle(SCOPE_GRACE),
        // A receiver's caller is the daemon, which lives on.
        _ => {}
    }
    match reply {
        Ok(LaunchReply::Failed(body)) => {
            let _ = child.wait();
            Err(Failure(Box::new(body)))
        }
        Ok(reply) => Ok((reply, child)),
        Err(reply) => {
            let _ = child.kill();
            let status = child.wait();
            let how = status.map(|s| s.to_string()).unwrap_or_default();
            Err(reply.failure(&how, &log_path, start_of_log))
        }
    }
}

/// Why there is no reply.
enum NoReply {
    Broken(LaunchError),
    Late(Duration),
}

impl NoReply {
    fn failure(self, status: &str, log: &Path, start_of_log: u64) -> Failure {
        let look = format!("read its log: {}", log.display());
        match self {
            Self::Late(limit) => Failure::new(
                ErrorCode::Timeout,
                format!("the guest was not ready within {} s and was ended", limit.as_secs()),
                format!("give it longer with --timeout, or {look}"),
            ),
            Self::Broken(LaunchError::Ended) => {
                let words = last_words(log, start_of_log);
                let words = words.map(|w| format!(": {w}")).unwrap_or_default();
                Failure::new(
                    ErrorCode::Unexpected,
                    format!("the guest process ended before its guest was ready ({status}){words}"),
                    look,
                )
            }
            Self::Broken(other) => Failure::new(ErrorCode::Unexpected, other.to_string(), look),
        }
    }
}

fn cannot_start(e: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::Unexpected,
        format!("cannot start a guest process: {e}"),
        "check the limits on processes and open files (ulimit -a)",
    )
}

fn start(socket: UnixStream, log: File) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(SUBCOMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(socket))
        .stdout(Stdio::piped())
        .stderr(log);
    let usual = [logging::FILTER, logging::FORMAT, "RUST_BACKTRACE"];
    for name in usual.iter().chain(failpoint::HANDED_ON) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.spawn()
}

fn wait_for_reply(child: &mut Child, deadline: Option<Duration>) -> Result<LaunchReply, NoReply> {
    let Some(stdout) = child.stdout.take() else {
        return Err(NoReply::Broken(LaunchError::Ended));
    };
    let Some(limit) = deadline else {
        return receive_reply(stdout).map_err(NoReply::Broken);
    };
    // The reading thread ends with the pipe: at the reply, or when the process is killed.
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(receive_reply(stdout)));
    match receiver.recv_timeout(limit) {
        Ok(reply) => reply.map_err(NoReply::Broken),
        Err(_) => Err(NoReply::Late(limit)),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let log = open()?;
    if log.metadata()?.len() < LOG_MAX {
        return Ok(log);
    }
    fs::rename(path, path.with_extension("log.1"))?;
    open()
}

/// The last line of what the log gained since `start`.
fn last_words(path: &Path, start: u64) -> Option<String> {
    let mut log = File::open(path).ok()?;
    let end = log.metadata().ok()?.len();
    let from = start.max(end.saturating_sub(LAST_WORDS));
    log.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    log.take(LAST_WORDS).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let advice = |line: &str| line.starts_with("next:");
    let line = text.lines().rev().map(str::trim).find(|l| !l.is_empty() && !advice(l))?;
    Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_line_of_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        fs::write(&path, "before\n").unwrap();
        assert_eq!(last_words(&path, 7), None);
        fs::write(&path, "before\nfirst\nlast \u{1b}[31mone\n  next:  do\n\n").unwrap();
        assert_eq!(last_words(&path, 7).unwrap(), "last [31mone");
        fs::write(&path, "x".repeat(100_000)).unwrap();
        assert_eq!(last_words(&path, 0).unwrap().len(), 300);
    }

    #[test]
    fn a_long_log_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        File::create(&path).unwrap().set_len(LOG_MAX).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("a.log.1")).unwrap().len(), LOG_MAX);
    }
}
