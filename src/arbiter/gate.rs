//! The right to start a guest, taken at the arbiter before anything of it runs. It blocks, and is
//! for a process that is not confined yet.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use migrate_engine::handover::claim;
use migrate_engine::handover::term::{HostId, Term};
use migrate_engine::port::{Stands, Unanswered};
use uuid::Uuid;

use super::words::{Asked, LINE_MAX, Told, What, line};
use super::{agent, silent};
use crate::api::{ErrorCode, Failure};
use crate::config::{ArbiterConfig, Dirs};

/// A question is given up after this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who wants to start what.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The guest.
    pub guest: Uuid,
    /// Its name.
    pub name: &'a str,
    /// This host.
    pub host: HostId,
    /// Term of the file that the guest continues from.
    pub saved: Option<Term>,
    /// A host that an operator states to be off.
    pub fenced: Option<HostId>,
    /// The first term that journal and disks allow.
    pub lowest: Term,
}

/// Takes the right to start a guest; answers the term of the start. Without an arbiter that is the
/// lowest one. The caller holds the journal's lock, and records the term before the guest runs.
///
/// # Errors
/// `superseded` if the arbiter says that another host has the guest, `arbiter` if it does not
/// answer: then the right may be taken all the same, by this host and for no one else.
pub fn start(dirs: &Dirs, wish: Wish<'_>) -> Result<Term, Failure> {
    if ArbiterConfig::read(&dirs.config.join("host.toml"))?.is_none() {
        return Ok(wish.lowest);
    }
    let mut asking = Asking::begin(dirs, wish.guest)
        .map_err(|e| silent(&Unanswered(format!("it cannot be asked from here: {e}"))))?;
    let stands = asking.ask(What::Read).map_err(|e| silent(&e))?;
    let refused = |why: claim::Refused| {
        let message = format!("guest '{}' is not this host's: {why}", wish.name);
        let remedy = "start it on that host; or see: migrate help arbiter";
        Failure::new(ErrorCode::Superseded, message, remedy)
    };
    let want = claim::start(stands, wish.host, wish.saved, wish.fenced, wish.lowest);
    let want = want.map_err(refused)?;
    let after = asking.ask(What::swap(stands, want)).map_err(|e| silent(&e))?;
    match after {
        Some(now) if now == want => Ok(want.term),
        Some(other) => Err(refused(claim::Refused::Elsewhere(other))),
        None => Err(silent(&Unanswered("it forgot the guest while it was asked".into()))),
    }
}

/// An agent for a moment.
struct Asking {
    child: Child,
    socket: Option<BufReader<UnixStream>>,
    last: u64,
}

impl Asking {
    fn begin(dirs: &Dirs, guest: Uuid) -> io::Result<Self> {
        let (mut command, socket) = agent::command(dirs, guest)?;
        let child = command.spawn()?;
        // What the command holds of the socket must not outlive the agent.
        drop(command);
        let asking = Self { child, socket: Some(BufReader::new(socket)), last: 0 };
        if let Some(socket) = &asking.socket {
            socket.get_ref().set_read_timeout(Some(PATIENCE))?;
        }
        Ok(asking)
    }

    fn ask(&mut self, what: What) -> Stands {
        self.try_ask(what).unwrap_or_else(|error| {
            Err(Unanswered(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("nothing came within {} s", PATIENCE.as_secs())
                }
                _ => format!("the process that asks it is gone ({error})"),
            }))
        })
    }

    fn try_ask(&mut self, what: What) -> io::Result<Stands> {
        self.last += 1;
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        socket.get_mut().write_all(&line(&Asked { id: self.last, what })?)?;
        let mut told = Vec::new();
        socket.take(LINE_MAX as u64).read_until(b'\n', &mut told)?;
        if told.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let told: Told = serde_json::from_slice(&told)?;
        if told.id == self.last {
            Ok(told.stands())
        } else {
            Err(io::ErrorKind::InvalidData.into())
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // The end of its socket is the end of the agent; one that hangs is not waited for.
        self.socket = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_arbiter_the_lowest_term_will_do() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        let wish = Wish {
            guest: Uuid::from_u128(7),
            name: "one",
            host: HostId(1),
            saved: None,
            fenced: None,
            lowest: Term::new(4),
        };
        assert_eq!(start(&dirs, wish).unwrap(), Term::new(4));
        std::fs::create_dir_all(&dirs.config).unwrap();
        std::fs::write(dirs.config.join("host.toml"), "arbiter = \"x\"").unwrap();
        assert_eq!(start(&dirs, wish).unwrap_err().0.code, ErrorCode::Usage);
    }
}
