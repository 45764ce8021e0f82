//! Answers the questions of other daemons, and lets new hosts in. Who may ask what is decided
//! here, before anything is done; and nobody gets more of this host than their share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use migrate_engine::transport::identity::invitation::Secret;
use migrate_engine::transport::identity::verify::Peer;
use migrate_engine::transport::identity::{HostName, Refusal};
use migrate_engine::transport::link::{Close, CloseCode, Control, LinkHandle};
use migrate_engine::transport::quic::{Accepted, HostEndpoint, Session};
use tokio::sync::{Notify, Semaphore};

use super::identity::{Known, now};
use super::peer::{Answer, PATHS_MAX, Question, Reply, Request, VERSIONS, decode};
use super::peers::send;
use super::{Daemon, check};
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::config::hex;
use crate::failpoint::{self, Fate};

/// How long a session may be silent before its question comes, and after its answer.
const IDLE: Duration = Duration::from_secs(10);
/// How long somebody who has not joined may stay.
const STRANGER_STAY: Duration = Duration::from_secs(15);
/// Most that may be here at a time who have not joined.
const STRANGERS: usize = 8;
/// Most sessions of one host at a time.
const SESSIONS_OF_ONE: u32 = 32;

/// How many are served.
#[derive(Debug)]
pub struct Doors {
    strangers: Arc<Semaphore>,
    hosts: Arc<Mutex<BTreeMap<HostName, u32>>>,
    /// One at a time tries the data ports.
    pub probes: Arc<Semaphore>,
    /// Who does it, and what ends it before its time.
    pub prober: Mutex<Option<(HostName, Arc<Notify>)>>,
}

impl Default for Doors {
    fn default() -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            hosts: Arc::default(),
            probes: Arc::new(Semaphore::new(1)),
            prober: Mutex::default(),
        }
    }
}

/// A session that counts against its host's share.
struct Share {
    hosts: Arc<Mutex<BTreeMap<HostName, u32>>>,
    name: HostName,
}

impl Doors {
    /// `None` if the host has its share already.
    fn share(&self, name: &HostName) -> Option<Share> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = hosts.entry(name.clone()).or_default();
        if *count >= SESSIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Share { hosts: Arc::clone(&self.hosts), name: name.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = hosts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                hosts.remove(&self.name);
            }
        }
    }
}

fn too_many(handle: &LinkHandle, address: SocketAddr, who: &str) {
    tracing::warn!(%address, who, "too many at a time: one was sent away");
    handle.close(Close::new(CloseCode::Refused, "too many at a time: try again in a moment"));
}

/// Answers everybody who comes, until the port is closed.
pub async fn answer(daemon: Arc<Daemon>, mut endpoint: HostEndpoint) {
    while let Some(accepted) = endpoint.accept().await {
        match accepted {
            Ok(Accepted::Host(session)) => {
                let Session { peer, address, control, handle } = session;
                let Some(share) = daemon.doors.share(&peer.name) else {
                    too_many(&handle, address, peer.name.as_str());
                    continue;
                };
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    let who = Who::Host(Box::new(peer));
                    conversation(daemon, who, address, control, handle).await;
                    drop(share);
                });
            }
            Ok(Accepted::Joining(session)) => {
                let Session { address, control, handle, .. } = session;
                let Ok(place) = Arc::clone(&daemon.doors.strangers).try_acquire_owned() else {
                    too_many(&handle, address, "somebody who has not joined");
                    continue;
                };
                let daemon = Arc::clone(&daemon);
                tokio::spawn(async move {
                    // At the end of its time everything of it is dropped, which ends the session.
                    let talk = conversation(daemon, Who::Stranger, address, control, handle);
                    let _stayed_too_long = tokio::time::timeout(STRANGER_STAY, talk).await;
                    drop(place);
                });
            }
            Err(error) => tracing::warn!(%error, "somebody was not let in"),
        }
    }
}

/// Who asks.
enum Who {
    Host(Box<Peer>),
    Stranger,
}

async fn conversation(
    daemon: Arc<Daemon>,
    who: Who,
    address: SocketAddr,
    mut control: Control,
    handle: LinkHandle,
) {
    let Ok(Ok(Some(frame))) = tokio::time::timeout(IDLE, control.receiver.recv()).await else {
        handle.close(Close::new(CloseCode::Protocol, "no question came"));
        return;
    };
    let reply = match decode::<Question>(&frame) {
        Ok(question) => match daemon.reply_to(&who, address, question).await {
            Some(reply) => reply,
            None => return,
        },
        Err(failure) => daemon.refusal(failure),
    };
    if let Err(error) = send(&control, &reply).await {
        tracing::warn!(%error, "an answer was not sent");
        return;
    }
    // The side that has received the last word closes.
    let _ = tokio::time::timeout(IDLE, handle.ended()).await;
    handle.close(Close::new(CloseCode::Done, ""));
}

impl Daemon {
    fn refusal(&self, failure: Failure) -> Reply {
        Reply { version: VERSIONS[0], host: self.host_ref(), answer: Err(*failure.0) }
    }

    /// The reply to a question, unless a test loses one of them.
    async fn reply_to(
        self: &Arc<Self>,
        who: &Who,
        address: SocketAddr,
        question: Question,
    ) -> Option<Reply> {
        let asked = question.request.name();
        let fate = failpoint::at(|| format!("daemon.asked.{asked}"));
        if fate == Fate::Twice {
            let _ = self.reply(who, address, question.clone()).await;
        }
        if fate.is_lost() {
            return None;
        }
        let reply = self.reply(who, address, question).await;
        (!failpoint::at(|| format!("daemon.answer.{asked}")).is_lost()).then_some(reply)
    }

    async fn reply(self: &Arc<Self>, who: &Who, address: SocketAddr, question: Question) -> Reply {
        let version = match question.version() {
            Ok(version) => version,
            Err(failure) => return self.refusal(failure),
        };
        let answer = match who {
            Who::Stranger => self.to_stranger(address, question),
            Who::Host(peer) => match self.meet(peer, address, &question) {
                Ok(()) => self.to_host(&peer.name, address, question).await,
                Err(failure) => Err(failure),
            },
        };
        Reply { version, host: self.host_ref(), answer: answer.map_err(|f| *f.0) }
    }

    /// Notes who asks, and says why it may not.
    fn meet(&self, peer: &Peer, address: SocketAddr, question: &Question) -> Result<(), Failure> {
        let name = &peer.name;
        let refused = |message: String, remedy: &str| {
            tracing::warn!(host = %name, "a question was refused: {message}");
            Err(Failure::new(ErrorCode::HostRefused, message, remedy))
        };
        let Some(identity) = self.identity() else { return Ok(()) };
        // It may have been removed since it was let in.
        if let Some(removed) = identity.site.removed(name).filter(|at| peer.signed <= *at) {
            let refusal = Refusal::Removed { host: name.clone(), removed };
            return refused(refusal.to_string(), "migrate host join LINE");
        }
        if question.from.id == self.id {
            return refused(
                format!("host '{name}' has the id of {}", self.host_ref().name),
                "one is a copy of the other: remove host-id from the copy's state directory",
            );
        }
        let rights = identity.site.rights(name);
        if !question.request.is_allowed(rights) {
            let needs = question.request.needs().unwrap_or_default();
            let needs: Vec<String> = needs.iter().map(|r| format!("'{r}'")).collect();
            let message = match needs[..] {
                [] => "this host has joined already".to_owned(),
                _ => format!(
                    "host '{name}' has not the right to {} on {}",
                    needs.join(" or "),
                    self.host_ref().name
                ),
            };
            return refused(message, "grant it in site.json of that host: migrate help networking");
        }
        let listens = listens(&question.address, address);
        let (id, since, joined) = (Some(question.from.id), now(), peer.signed);
        let known = Known { name: name.clone(), id, address: listens, since, joined, ca: false };
        match self.files.remember(known) {
            Err(failure) if failure.0.code == ErrorCode::HostRefused => Err(failure),
            Err(failure) => {
                tracing::warn!(%failure, "where a host is was not noted");
                Ok(())
            }
            Ok(()) => {
                self.places.heard();
                Ok(())
            }
        }
    }

    /// A stranger may do nothing but join.
    fn to_stranger(
        self: &Arc<Self>,
        seen: SocketAddr,
        question: Question,
    ) -> Result<Answer, Failure> {
        let Request::Join { secret, name, request } = question.request else {
            let message = "a host that has not joined may do nothing but join";
            return Err(Failure::new(ErrorCode::HostRefused, message, "migrate host join LINE"));
        };
        let malformed = || {
            Failure::new(ErrorCode::Usage, "the invitation's secret is malformed", "copy it again")
        };
        let secret: [u8; 16] =
            hex::decode(&secret).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
        let roster = self.files.roster()?;
        let id = Some(question.from.id);
        // One that joined and was never heard of since may not have got its answer.
        let again = |known: &Known| known.since.0 == 0 && known.id == id;
        let taken = roster.hosts.get(&name).is_some_and(|known| !again(known));
        if taken || self.identity().is_some_and(|i| *i.host.name() == name) {
            return Err(Failure::new(
                ErrorCode::NameTaken,
                format!("a host '{name}' is in the site already"),
                format!("choose another: --name HOST; or first: migrate host remove {name}"),
            ));
        }
        if let Some(other) = roster.owner_of(id, &name) {
            return Err(Failure::new(
                ErrorCode::HostRefused,
                format!("it has the id of the host '{}'", other.name),
                format!(
                    "if it was renamed: migrate host remove {}; if its files were copied: remove \
                     host-id from the copy's state directory",
                    other.name
                ),
            ));
        }
        let (chain, joined) = self.files.redeem(&Secret::from(secret), &name, &request)?;
        let address = listens(&question.address, seen);
        tracing::info!(host = %name, address, "a host has joined");
        let since = migrate_engine::transport::identity::Moment(0);
        self.files.remember(Known { name, id, address, since, joined, ca: false })?;
        // The others hear of it now, and not when somebody looks for it.
        let daemon = Arc::clone(self);
        tokio::spawn(async move { daemon.spread().await });
        Ok(Answer::Joined {
            chain,
            authorities: self.files.authorities()?,
            hosts: self.all_hosts()?,
        })
    }

    async fn to_host(
        self: &Arc<Self>,
        name: &HostName,
        address: SocketAddr,
        question: Question,
    ) -> Result<Answer, Failure> {
        match question.request {
            Request::Info => Ok(Answer::Info(Box::new(self.info()))),
            Request::Cpu => Ok(Answer::Cpu(Box::new(self.host_cpu().await?))),
            Request::Prepare(prepare) => {
                // Its name as its certificate has it, not as it says.
                let from = HostRef { name: name.to_string(), ..question.from };
                self.prepare(from, *prepare).await
            }
            Request::Abandon { attempt } => {
                self.abandon(attempt).await;
                Ok(Answer::Done)
            }
            Request::Words { guest, words } => {
                Ok(Answer::Words(self.words_for(question.from.id, guest, words).await?))
            }
            Request::ProcessGone { guest, move_id, gone } => {
                self.heard_of_death(name.as_str(), (guest, move_id), &gone).await?;
                Ok(Answer::Done)
            }
            Request::Word { guest } => Ok(Answer::Word(self.word(guest)?)),
            Request::Report(report) => {
                let from = HostRef { name: name.to_string(), ..question.from };
                super::history::keep_from_peer(&self.dirs, &report, &from, self.id)?;
                Ok(Answer::Done)
            }
            Request::Renew { request } => Ok(Answer::Certificate(self.files.sign(name, &request)?)),
            Request::Gossip(said) => {
                self.learn(*said)?;
                Ok(Answer::Gossip(Box::new(self.gossip()?)))
            }
            Request::Remove { host } => {
                let removal = self.remove_for_all(&host)?;
                tracing::info!(%host, by = %name, "a host is removed from the site");
                let daemon = Arc::clone(self);
                tokio::spawn(async move { daemon.spread().await });
                Ok(Answer::Removed(removal))
            }
            Request::Paths { mut paths } => {
                paths.truncate(PATHS_MAX);
                // Storage that hangs keeps nobody else waiting.
                let look = tokio::task::spawn_blocking(move || super::inbound::absent(paths));
                let absent = look.await.map_err(|e| super::unexpected("looking at paths", &e))?;
                Ok(Answer::Absent(absent))
            }
            Request::Probe(probe) => check::listen(self, (name, address), &probe).await,
            Request::ProbeBack => Ok(Answer::Tried(Box::new(check::try_back(self, name).await))),
            Request::Join { .. } => {
                let message = "this host has joined already";
                Err(Failure::new(ErrorCode::Usage, message, "nothing to do"))
            }
        }
    }
}

/// Where a daemon listens that says `said` and is seen at `seen`.
fn listens(said: &str, seen: SocketAddr) -> String {
    match said.strip_prefix(':') {
        Some(port) => match seen.ip().to_canonical() {
            std::net::IpAddr::V6(ip) => format!("[{ip}]:{port}"),
            ip @ std::net::IpAddr::V4(_) => format!("{ip}:{port}"),
        },
        None => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_is_said_or_what_is_seen() {
        let seen: SocketAddr = "[::ffff:192.0.2.7]:40000".parse().unwrap();
        assert_eq!(listens("h1:7420", seen), "h1:7420");
        assert_eq!(listens(":7420", seen), "192.0.2.7:7420");
        assert_eq!(listens(":1", "[2001:db8::1]:9".parse().unwrap()), "[2001:db8::1]:1");
    }
}
