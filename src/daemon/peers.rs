//! Carries questions to other daemons and answers theirs: a session for each, over mutual TLS.
//! Who may ask what is decided here, before anything is done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use migrate_engine::transport::identity::invitation::Secret;
use migrate_engine::transport::identity::{HostName, Right};
use migrate_engine::transport::link::{Close, CloseCode, Control, LinkHandle};
use migrate_engine::transport::quic::{Accepted, ConnectError, HostEndpoint, Session};
use uuid::Uuid;

use super::identity::Known;
use super::peer::{Answer, Question, Reply, Request, VERSIONS, decode};
use super::{Daemon, host_name, unexpected};
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::config::hex;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a session may be silent before its question comes, and after its answer.
const IDLE: Duration = Duration::from_secs(10);

/// What came of a question.
pub struct Told {
    /// The host that answered.
    pub host: HostRef,
    /// Where it was reached.
    pub address: SocketAddr,
    /// Round trip of the session.
    pub round_trip: Duration,
    /// Its answer.
    pub answer: Answer,
}

/// The addresses of `HOST:PORT`.
pub async fn resolve(address: &str) -> Result<SocketAddr, Failure> {
    let unknown = |why: String| {
        Failure::new(
            ErrorCode::Unreachable,
            format!("the address '{address}' cannot be found: {why}"),
            "correct it, or the name service",
        )
    };
    let found = tokio::net::lookup_host(address).await.map_err(|e| unknown(e.to_string()))?;
    let found: Vec<SocketAddr> = found.collect();
    // IPv4 first: hosts with both are more often reached by it.
    let best = found.iter().find(|a| a.is_ipv4()).or(found.first()).copied();
    best.ok_or_else(|| unknown("no address".into()))
}

/// A failed connection, in the terms of the API.
pub fn not_connected(host: &str, error: &ConnectError) -> Failure {
    let code = match error {
        ConnectError::Refused { .. } | ConnectError::RefusedByPeer { .. } => ErrorCode::HostRefused,
        _ => ErrorCode::Unreachable,
    };
    let message = format!("host '{host}' cannot be talked to: {error}");
    let failure =
        Failure::new(code, message, format!("see what is wrong: migrate host check {host}"));
    if code == ErrorCode::Unreachable { failure.retryable() } else { failure }
}

impl Daemon {
    /// What is known of a host.
    pub(super) fn known(&self, name: &str) -> Result<Known, Failure> {
        let unknown = || {
            Failure::new(
                ErrorCode::UnknownHost,
                format!("no host '{name}' is known here"),
                "see the hosts there are: migrate host ls; a new one joins with: migrate host invite",
            )
        };
        let name = host_name(name)?;
        self.files.hosts()?.into_iter().find(|h| h.name == name).ok_or_else(unknown)
    }

    /// Asks another host.
    ///
    /// # Errors
    /// It cannot be reached, is not who it should be, or refuses; its own words then.
    pub(super) async fn ask(&self, name: &str, request: Request) -> Result<Told, Failure> {
        let dialler = self.dialler()?;
        let known = self.known(name)?;
        let address = resolve(&known.address).await?;
        let session = dialler.dial(address, &known.name).await;
        let session = session.map_err(|e| not_connected(name, &e))?;
        let Session { control, handle, .. } = session;
        let answered = tokio::time::timeout(PATIENCE, self.exchange(control, request)).await;
        let round_trip = handle.stats().control.rtt;
        handle.close(Close::new(CloseCode::Done, ""));
        let reply = answered.map_err(|_| {
            let message = format!("host '{name}' did not answer within {} s", PATIENCE.as_secs());
            Failure::new(ErrorCode::Unreachable, message, "see its daemon's log").retryable()
        })??;
        self.files.remember(Known { id: Some(reply.host.id), ..known })?;
        let answer = reply.answer.map_err(|body| Failure(Box::new(body)))?;
        Ok(Told { host: reply.host, address, round_trip, answer })
    }

    async fn exchange(&self, mut control: Control, request: Request) -> Result<Reply, Failure> {
        let question = self.question(request);
        send(&control, &question).await?;
        let lost = |e: &dyn std::fmt::Display| {
            Failure::new(
                ErrorCode::Unreachable,
                format!("the other daemon went away before it answered: {e}"),
                "see its log",
            )
            .retryable()
        };
        let frame = control.receiver.recv().await.map_err(|e| lost(&e))?;
        decode(&frame.ok_or_else(|| lost(&"the session ended"))?)
    }

    /// A question of this host.
    pub(super) fn question(&self, request: Request) -> Question {
        let versions = VERSIONS.to_vec();
        Question { versions, from: self.host_ref(), address: self.address(), request }
    }
}

/// Sends a document.
pub async fn send(control: &Control, document: &impl serde::Serialize) -> Result<(), Failure> {
    let bytes = serde_json::to_vec(document).map_err(|e| unexpected("a document", &e))?;
    let sent = control.sender.send(Bytes::from(bytes)).await;
    sent.map_err(|e| {
        Failure::new(ErrorCode::Unreachable, format!("the other daemon: {e}"), "try again")
    })
}

/// Answers everybody who comes, until the port is closed.
pub async fn answer(daemon: Arc<Daemon>, mut endpoint: HostEndpoint) {
    while let Some(accepted) = endpoint.accept().await {
        match accepted {
            Ok(Accepted::Host(session)) => {
                let Session { peer, address, control, handle } = session;
                let who = Who::Host(peer.name.clone());
                tokio::spawn(conversation(Arc::clone(&daemon), who, address, control, handle));
            }
            Ok(Accepted::Joining(session)) => {
                let Session { address, control, handle, .. } = session;
                let daemon = Arc::clone(&daemon);
                tokio::spawn(conversation(daemon, Who::Stranger, address, control, handle));
            }
            Err(error) => tracing::warn!(%error, "somebody was not let in"),
        }
    }
}

/// Who asks.
enum Who {
    Host(HostName),
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
        Ok(question) => daemon.reply(&who, address, question).await,
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

    async fn reply(self: &Arc<Self>, who: &Who, address: SocketAddr, question: Question) -> Reply {
        let version = match question.version() {
            Ok(version) => version,
            Err(failure) => return self.refusal(failure),
        };
        let answer = match who {
            Who::Stranger => self.to_stranger(address, question),
            Who::Host(name) => {
                let listens = listens(&question.address, address);
                let known =
                    Known { name: name.clone(), id: Some(question.from.id), address: listens };
                let noted = match self.files.remember(known) {
                    Err(failure) if failure.0.code == ErrorCode::HostRefused => Err(failure),
                    _ if question.from.id == self.id => Err(Failure::new(
                        ErrorCode::HostRefused,
                        format!("host '{name}' has the id of {}", self.host_ref().name),
                        "one is a copy of the other: remove host-id from the copy's state directory",
                    )),
                    Err(failure) => {
                        tracing::warn!(%failure, "where a host is was not noted");
                        Ok(())
                    }
                    Ok(()) => Ok(()),
                };
                match noted {
                    Ok(()) => self.to_host(name, question).await,
                    Err(failure) => Err(failure),
                }
            }
        };
        Reply { version, host: self.host_ref(), answer: answer.map_err(|f| *f.0) }
    }

    /// A stranger may do nothing but join.
    fn to_stranger(&self, seen: SocketAddr, question: Question) -> Result<Answer, Failure> {
        let Request::Join { secret, name, request } = question.request else {
            let message = "a host that has not joined may do nothing but join";
            return Err(Failure::new(ErrorCode::HostRefused, message, "migrate host join LINE"));
        };
        let malformed = || {
            Failure::new(ErrorCode::Usage, "the invitation's secret is malformed", "copy it again")
        };
        let secret: [u8; 16] =
            hex::decode(&secret).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)?;
        let taken = self.files.hosts()?.into_iter().any(|h| h.name == name);
        if taken || self.identity().is_some_and(|i| *i.host.name() == name) {
            return Err(Failure::new(
                ErrorCode::NameTaken,
                format!("a host '{name}' is in the site already"),
                "choose another: --name HOST; or remove the old one first: migrate host remove",
            ));
        }
        let chain = self.files.redeem(&Secret::from(secret), &name, &request)?;
        let address = listens(&question.address, seen);
        tracing::info!(host = %name, address, "a host has joined");
        self.files.remember(Known { name, id: Some(question.from.id), address })?;
        Ok(Answer::Joined {
            chain,
            authorities: self.files.authorities()?,
            hosts: self.all_hosts()?,
        })
    }

    /// All hosts, this one included.
    pub(super) fn all_hosts(&self) -> Result<Vec<Known>, Failure> {
        let mut hosts = self.files.hosts()?;
        if let Some(identity) = self.identity() {
            let name = identity.host.name().clone();
            hosts.retain(|h| h.name != name);
            hosts.push(Known { name, id: Some(self.id), address: self.address() });
        }
        Ok(hosts)
    }

    fn may(&self, name: &HostName, right: Right) -> Result<(), Failure> {
        let has = self.identity().is_some_and(|i| i.site.rights(name).has(right));
        if has {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::HostRefused,
            format!("host '{name}' has not the right to '{right}' on {}", self.host_ref().name),
            "grant it in site.json of that host: migrate help files",
        ))
    }

    async fn to_host(
        self: &Arc<Self>,
        name: &HostName,
        question: Question,
    ) -> Result<Answer, Failure> {
        match question.request {
            Request::Info => {
                self.may(name, Right::Observe)?;
                Ok(Answer::Info(Box::new(self.info())))
            }
            Request::Prepare(prepare) => {
                self.may(name, Right::Send)?;
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
            Request::Report(report) => {
                let from = HostRef { name: name.to_string(), ..question.from };
                super::history::keep_from_peer(&self.dirs, &report, &from, self.id)?;
                Ok(Answer::Done)
            }
            Request::Renew { request } => Ok(Answer::Certificate(self.files.sign(name, &request)?)),
            Request::Hosts => Ok(Answer::Hosts(self.all_hosts()?)),
            Request::Join { .. } => {
                let message = "this host has joined already";
                Err(Failure::new(ErrorCode::Usage, message, "nothing to do"))
            }
        }
    }

    /// Tells every host that is known of all others, so that each can reach each.
    pub(super) async fn learn_hosts(&self, from: &str) -> Result<(), Failure> {
        let Answer::Hosts(hosts) = self.ask(from, Request::Hosts).await?.answer else {
            return Ok(());
        };
        let own = self.identity().map(|i| i.host.name().clone());
        let removed = self.files.site()?.removed;
        let others = hosts.into_iter().filter(|h| Some(&h.name) != own.as_ref());
        for host in others.filter(|h| !removed.contains_key(&h.name)) {
            // What it says of itself is better than what others say.
            if !self.files.hosts()?.iter().any(|h| h.name == host.name) {
                self.files.remember(host)?;
            }
        }
        Ok(())
    }

    /// The name of the host with this identity, if it is known.
    pub(super) fn name_of(&self, id: Uuid) -> Option<String> {
        let hosts = self.files.hosts().ok()?;
        hosts.into_iter().find(|h| h.id == Some(id)).map(|h| h.name.to_string())
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
