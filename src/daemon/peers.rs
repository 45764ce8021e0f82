//! Carries questions to other daemons: a session for each, over mutual TLS.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use migrate_engine::transport::link::{Close, CloseCode, Control};
use migrate_engine::transport::quic::{ConnectError, Session};
use uuid::Uuid;

use super::identity::{Known, now};
use super::peer::{Answer, Question, Reply, Request, VERSIONS, decode};
use super::{Daemon, host_name, unexpected};
use crate::api::moving::HostRef;
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::failpoint::{self, Fate};

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

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
    let failure = Failure::new(code, message, remedy(host, error));
    if code == ErrorCode::Unreachable { failure.retryable() } else { failure }
}

/// What the people on this side can do. The words of a refusal say what is wrong.
fn remedy(host: &str, error: &ConnectError) -> String {
    let word = match error {
        ConnectError::Refused { refusal, .. } => refusal.code(),
        ConnectError::RefusedByPeer { heard, .. } => &heard.code,
        _ => "",
    };
    match word {
        "removed" => {
            "on the CA's host: migrate host invite; on the host that was removed: migrate \
                      host join LINE"
                .into()
        }
        "expired" | "not-yet-valid" => {
            "compare the clocks of both hosts: timedatectl; if they are \
                                        right: migrate host invite on the CA's host, migrate host \
                                        join LINE on the host that is refused"
                .into()
        }
        "unknown-ca" => "let one of the two join the site of the other: migrate host invite, \
                         migrate host join LINE"
            .into(),
        "wrong-name" => {
            format!("correct advertise in host.toml of '{host}', and restart its daemon")
        }
        _ => format!("see what is wrong: migrate host check {host}"),
    }
}

/// What another host refused. Where its words speak of "this host", they say which that is.
fn in_its_words(host: &str, mut body: ErrorBody) -> Failure {
    let named = [format!("'{host}'"), "the destination".to_owned()];
    if !named.iter().any(|name| body.message.contains(name)) {
        body.message = format!("host '{host}': {}", body.message);
    }
    Failure(Box::new(body))
}

/// Whether a message comes that a test may lose.
fn arrives(host: &str, fate: Fate) -> Result<(), Failure> {
    if fate.is_lost() {
        let message = format!("host '{host}' does not answer");
        return Err(Failure::new(ErrorCode::Unreachable, message, "try it again").retryable());
    }
    Ok(())
}

impl Daemon {
    /// What is known of a host.
    pub(super) fn known(&self, name: &str) -> Result<Known, Failure> {
        let parsed = host_name(name)?;
        let mut roster = self.files.roster()?;
        if let Some(known) = roster.hosts.remove(&parsed) {
            return Ok(known);
        }
        let (message, remedy) = match roster.removed(&parsed) {
            Some(removed) => (
                format!("host '{name}' was removed from this site on {removed}"),
                "to let it in again: migrate host invite here or on the CA's host, then migrate \
                 host join LINE there",
            ),
            None => (
                format!("no host '{name}' is known here"),
                "see the hosts there are: migrate host ls; a new one joins with: migrate host invite",
            ),
        };
        Err(Failure::new(ErrorCode::UnknownHost, message, remedy))
    }

    /// Asks another host.
    ///
    /// # Errors
    /// It cannot be reached, is not who it should be, or refuses; its own words then.
    pub(super) async fn ask(&self, name: &str, request: Request) -> Result<Told, Failure> {
        let dialler = self.dialler()?;
        let known = self.known(name)?;
        let address = resolve(&known.address).await?;
        let asked = request.name();
        arrives(name, failpoint::at(|| format!("daemon.ask.{asked}")))?;
        let session = dialler.dial(address, &known.name).await;
        let session = session.map_err(|e| {
            self.note_refusal(name, &e);
            not_connected(name, &e)
        })?;
        self.note_welcome();
        let Session { peer, control, handle, .. } = session;
        let answered = tokio::time::timeout(PATIENCE, self.exchange(control, request)).await;
        let round_trip = handle.stats().control.rtt;
        handle.close(Close::new(CloseCode::Done, ""));
        let reply = answered.map_err(|_| {
            let message = format!("host '{name}' did not answer within {} s", PATIENCE.as_secs());
            Failure::new(ErrorCode::Unreachable, message, "see its daemon's log").retryable()
        })??;
        arrives(name, failpoint::at(|| format!("daemon.answered.{asked}")))?;
        let (since, joined) = (now(), peer.signed);
        self.files.remember(Known { id: Some(reply.host.id), since, joined, ..known })?;
        let answer = reply.answer.map_err(|body| in_its_words(name, body))?;
        Ok(Told { host: reply.host, address, round_trip, answer })
    }

    /// As [`Self::ask`], but all of it may take no longer than `limit`. Who says the same again and
    /// again hears of a link or a daemon that is back sooner by short tries than by one that waits.
    pub(super) async fn ask_within(
        &self,
        limit: Duration,
        name: &str,
        request: Request,
    ) -> Result<Told, Failure> {
        tokio::time::timeout(limit, self.ask(name, request)).await.unwrap_or_else(|_| {
            let what = format!("host '{name}' did not answer within {} s", limit.as_secs());
            Err(Failure::new(ErrorCode::Unreachable, what, "see its daemon's log").retryable())
        })
    }

    /// Keeps what a host says that refuses this one as removed, for the people here.
    fn note_refusal(&self, name: &str, error: &ConnectError) {
        if let ConnectError::RefusedByPeer { heard, .. } = error
            && heard.code == "removed"
        {
            let words = format!("host '{name}' refuses this host: {}", heard.text);
            tracing::warn!("{words}");
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
        }
    }

    fn note_welcome(&self) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

impl Daemon {
    /// The name of the host with this identity, if it is known.
    pub(super) fn name_of(&self, id: Uuid) -> Option<String> {
        let hosts = self.files.hosts().ok()?;
        hosts.into_iter().find(|h| h.id == Some(id)).map(|h| h.name.to_string())
    }
}
