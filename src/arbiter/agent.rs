//! A process that asks the arbiter for one guest. It is this program again, with one end of a
//! socket pair as its standard input, and ends when nobody holds the other end any more. It reads
//! `host.toml` itself: whoever asks it knows neither the arbiter's address nor a key.
//!
//! It belongs to nobody: the daemon that started it may end, and the guest's process that asks it
//! gets another one from the daemon if it dies.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use migrate_engine::port::Unanswered;
use migrate_engine::wire::GuestId;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, Semaphore};
use uuid::Uuid;

use super::Shared;
use super::words::{Asked, Lines, Told, What, line};
use crate::config::{ArbiterConfig, Dirs};
use crate::logging;

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "arbiter-agent";
/// Questions that are out at a time; more wait.
const AT_A_TIME: usize = 16;

/// The command that starts an agent for `guest`, and our end of its socket.
///
/// # Errors
/// There is no socket pair to be had.
pub fn command(dirs: &Dirs, guest: Uuid) -> io::Result<(Command, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(SUBCOMMAND)
        .arg(&dirs.config)
        .arg(guest.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null());
    for name in [logging::FILTER, logging::FORMAT, "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Ok((command, ours))
}

/// The agent: `words` are the directory of `host.toml` and the guest.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the arbiter's agent cannot go on");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: impl Iterator<Item = OsString>) -> io::Result<()> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let config = words.next().ok_or_else(wrong)?;
    let guest = words.next().and_then(|w| w.to_str()?.parse::<Uuid>().ok()).ok_or_else(wrong)?;
    // A session of its own: no terminal's signals. Fails only if it has one already.
    let _ = nix::unistd::setsid();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arbiter = named(Path::new(&config));
    let served = runtime.block_on(serve(socket, arbiter, GuestId(guest.into_bytes())));
    runtime.shutdown_background();
    served
}

/// The arbiter that `host.toml` names, or why there is none to ask.
fn named(config: &Path) -> Result<Arc<dyn Shared>, Unanswered> {
    let read = ArbiterConfig::read(&config.join("host.toml"));
    match read.and_then(|config| config.as_ref().map(super::open).transpose()) {
        Ok(Some(arbiter)) => Ok(arbiter),
        Ok(None) => Err(Unanswered("host.toml names none any more".into())),
        Err(failure) => Err(Unanswered(failure.to_string())),
    }
}

async fn serve(
    socket: UnixStream,
    arbiter: Result<Arc<dyn Shared>, Unanswered>,
    guest: GuestId,
) -> io::Result<()> {
    let (mut reader, writer) = tokio::net::UnixStream::from_std(socket)?.into_split();
    let (writer, places) = (Arc::new(Mutex::new(writer)), Arc::new(Semaphore::new(AT_A_TIME)));
    let mut lines = Lines::default();
    while let Some(Asked { id, what }) = lines.next(&mut reader).await? {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let (arbiter, writer) = (arbiter.clone(), Arc::clone(&writer));
        tokio::spawn(async move {
            let stands = match (&arbiter, what) {
                (Err(why), _) => Err(why.clone()),
                (Ok(arbiter), What::Read) => arbiter.read(guest).await,
                (Ok(arbiter), What::Swap { expect, want }) => {
                    arbiter.swap(guest, expect.map(Into::into), want.into()).await
                }
            };
            drop(place);
            tell(&writer, &Told::new(id, stands)).await;
        });
    }
    Ok(())
}

/// Whoever asked may be gone.
async fn tell(writer: &Mutex<OwnedWriteHalf>, told: &Told) {
    let Ok(line) = line(told) else { return };
    let _ = writer.lock().await.write_all(&line).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::remote::Remote;
    use migrate_engine::handover::term::{HostId, Stamp, Term};
    use migrate_engine::port::Arbiter;
    use migrate_engine::session::memory::{Fault, MemoryArbiter};
    use std::time::Duration;

    #[derive(Debug)]
    struct Memory(Arc<MemoryArbiter>);

    impl Arbiter for Memory {
        fn read(&self, guest: GuestId) -> migrate_engine::port::Answer<'_> {
            self.0.read(guest)
        }

        fn swap(
            &self,
            guest: GuestId,
            expect: Option<Stamp>,
            want: Stamp,
        ) -> migrate_engine::port::Answer<'_> {
            self.0.swap(guest, expect, want)
        }
    }

    impl Shared for Memory {
        fn identity(
            &self,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Uuid, Unanswered>> + Send + '_>> {
            Box::pin(std::future::ready(Ok(Uuid::nil())))
        }
    }

    const GUEST: GuestId = GuestId([7; 16]);

    fn agent(memory: &Arc<MemoryArbiter>) -> (UnixStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let shared: Arc<dyn Shared> = Arc::new(Memory(Arc::clone(memory)));
        (ours, tokio::spawn(serve(theirs, Ok(shared), GUEST)))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn questions_go_through_and_an_agent_that_dies_is_replaced() {
        let memory = Arc::<MemoryArbiter>::default();
        let (socket, first) = agent(&memory);
        let remote = Remote::new(socket);
        let stamp = |term| Stamp { term: Term::new(term), host: HostId(5) };
        assert_eq!(remote.read(GUEST).await, Ok(None));
        assert_eq!(remote.swap(GUEST, None, stamp(1)).await, Ok(Some(stamp(1))));
        assert_eq!(remote.swap(GUEST, None, stamp(2)).await, Ok(Some(stamp(1))));
        memory.plan([Fault::Silent]);
        assert!(remote.read(GUEST).await.is_err());

        // One that nobody waits for any more; its answer is not taken for that to the next.
        memory.plan([Fault::AnsweredLate(Duration::from_millis(30))]);
        let late = remote.swap(GUEST, Some(stamp(1)), stamp(3));
        assert!(tokio::time::timeout(Duration::from_millis(5), late).await.is_err());
        memory.plan([Fault::Late(Duration::from_millis(60))]);
        assert_eq!(remote.read(GUEST).await, Ok(Some(stamp(3))));

        first.abort();
        let _ = first.await;
        assert!(remote.read(GUEST).await.is_err());
        assert!(remote.read(GUEST).await.is_err());
        let (socket, second) = agent(&memory);
        remote.replace(socket);
        assert_eq!(remote.read(GUEST).await, Ok(Some(stamp(3))));
        drop(remote);
        second.await.unwrap().unwrap();
    }
}
