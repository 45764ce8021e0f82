//! Client of the host daemon's API ([`super::host`]) on its Unix socket: one connection for each
//! call, each with a deadline; events of moves as a stream. It never starts a daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::client::{CallError, LOOK_DEADLINE, decode, encode, escape, exchange};
use super::cpu::{CompareRequest, CpuComparison};
use super::host::{
    GuestList, HostCheck, HostInfo, HostList, InviteRequest, Invited, MoveBegun, MoveList,
    MovePlan, MoveRequest, RemoveRequest,
};
use super::moving::{CancelAnswer, MoveEvent, MoveReport};
use super::{ErrorCode, Failure};

/// How long the daemon may take for a call for which it asks other hosts.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
/// How long a check may take, in which both hosts try every port of the other.
const CHECK_DEADLINE: Duration = Duration::from_mins(1);
/// Longest event that is read, in bytes; the report at the end is the longest.
const EVENT_MAX: usize = 4 << 20;

/// The daemon of one instance.
#[derive(Clone, Debug)]
pub struct DaemonClient {
    socket: PathBuf,
    /// The command that starts it, for people.
    start: String,
}

impl DaemonClient {
    /// The daemon that listens on `socket`; `start` is the command that starts it.
    pub fn new(socket: PathBuf, start: impl Into<String>) -> Self {
        Self { socket, start: start.into() }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// This host, as its daemon describes it.
    ///
    /// # Errors
    /// As for all calls: [`CallError`].
    pub async fn host(&self) -> Result<HostInfo, CallError> {
        self.look("/v1/host").await
    }

    /// The guests that have a process.
    pub async fn guests(&self) -> Result<GuestList, CallError> {
        self.look("/v1/guests").await
    }

    /// Begins a move, which then goes on without us. If the request says that it waits for another
    /// operation, there is no deadline.
    pub async fn begin(&self, request: &MoveRequest) -> Result<MoveBegun, CallError> {
        let deadline = (!request.wait).then_some(ASK_DEADLINE);
        self.call(Method::POST, "/v1/moves", Some(request), deadline).await
    }

    /// What a move would be like.
    pub async fn plan(&self, request: &MoveRequest) -> Result<MovePlan, CallError> {
        self.call(Method::POST, "/v1/moves/plan", Some(request), Some(ASK_DEADLINE)).await
    }

    /// Moves, the latest first; only those of `guest` if there is one.
    pub async fn moves(&self, guest: Option<&str>, limit: u32) -> Result<MoveList, CallError> {
        let guest = guest.map(|g| format!("guest={}&", escape(g))).unwrap_or_default();
        self.look(&format!("/v1/moves?{guest}limit={limit}")).await
    }

    /// All that is known of a move.
    pub async fn report(&self, id: Uuid) -> Result<MoveReport, CallError> {
        self.look(&format!("/v1/moves/{id}")).await
    }

    /// Cancels a move, if it is not too late.
    pub async fn cancel(&self, id: Uuid) -> Result<CancelAnswer, CallError> {
        let path = format!("/v1/moves/{id}/cancel");
        self.call(Method::POST, &path, None::<&()>, Some(ASK_DEADLINE)).await
    }

    /// The hosts of the site.
    pub async fn hosts(&self) -> Result<HostList, CallError> {
        self.call(Method::GET, "/v1/hosts", None::<&()>, Some(ASK_DEADLINE)).await
    }

    /// What is well and what is not between this host and another.
    pub async fn check(&self, host: &str) -> Result<HostCheck, CallError> {
        let path = format!("/v1/hosts/{}/check", escape(host));
        self.call(Method::GET, &path, None::<&()>, Some(CHECK_DEADLINE)).await
    }

    /// What hosts' CPUs have in common.
    pub async fn compare_cpus(&self, request: &CompareRequest) -> Result<CpuComparison, CallError> {
        self.call(Method::POST, "/v1/hosts/cpu", Some(request), Some(ASK_DEADLINE)).await
    }

    /// Makes an invitation.
    pub async fn invite(&self, request: &InviteRequest) -> Result<Invited, CallError> {
        self.call(Method::POST, "/v1/hosts/invite", Some(request), Some(ASK_DEADLINE)).await
    }

    /// Removes a host from the site.
    pub async fn remove(&self, request: &RemoveRequest) -> Result<HostList, CallError> {
        self.call(Method::POST, "/v1/hosts/remove", Some(request), Some(ASK_DEADLINE)).await
    }

    /// Tells the daemon to read its identity and configuration again.
    pub async fn reload(&self) -> Result<serde_json::Value, CallError> {
        self.call(Method::POST, "/v1/reload", None::<&()>, Some(ASK_DEADLINE)).await
    }

    /// The events of a move, from its beginning to its result.
    pub async fn events(&self, id: Uuid) -> Result<MoveEvents, CallError> {
        let open = MoveEvents::open(&self.socket, format!("/v1/moves/{id}/events"));
        let late = |_| Err(CallError::Late(ASK_DEADLINE));
        tokio::time::timeout(ASK_DEADLINE, open).await.unwrap_or_else(late)
    }

    async fn look<R: DeserializeOwned>(&self, path: &str) -> Result<R, CallError> {
        self.call(Method::GET, path, None::<&()>, Some(LOOK_DEADLINE)).await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Option<Duration>,
    ) -> Result<R, CallError> {
        let call = exchange(&self.socket, method, path, encode(body)?);
        match deadline {
            None => call.await,
            Some(limit) => {
                tokio::time::timeout(limit, call).await.unwrap_or(Err(CallError::Late(limit)))
            }
        }
    }

    /// What a failed call means to the user.
    pub fn failure(&self, error: CallError) -> Failure {
        let socket = self.socket.display();
        match error {
            CallError::Refused(body) => Failure(body),
            CallError::Interrupted => {
                Failure::new(ErrorCode::Interrupted, "interrupted", "see: migrate history")
            }
            CallError::Connect(e) if e.kind() == io::ErrorKind::PermissionDenied => Failure::new(
                ErrorCode::Unreachable,
                format!("you may not talk to the daemon at {socket}: {e}"),
                "join its group (for the system's: usermod -aG migrate USER), or use --user",
            ),
            CallError::Connect(e) => Failure::new(
                ErrorCode::Unreachable,
                format!("no daemon of this host answers at {socket}: {e}"),
                format!("start it: {}", self.start),
            )
            .retryable(),
            CallError::Malformed(e) => Failure::new(
                ErrorCode::Unexpected,
                format!("the daemon's answer cannot be read: {e}"),
                "compare versions: migrate --version, and the daemon's: migrate host show",
            ),
            CallError::Lost(_) | CallError::Late(_) => Failure::new(
                ErrorCode::Unreachable,
                format!("the daemon at {socket}: {error}"),
                format!("see whether it runs: migrate host show; if not: {}", self.start),
            )
            .retryable(),
        }
    }
}

/// Ends a connection's task with its user.
#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The events of one move.
#[derive(Debug)]
pub struct MoveEvents {
    body: Incoming,
    /// What has come of lines not yet given out.
    buffer: Vec<u8>,
    /// So much of the buffer has no line end in it.
    searched: usize,
    _connection: Connection,
}

impl MoveEvents {
    pub(super) async fn open(socket: &Path, path: String) -> Result<Self, CallError> {
        let lost = |e: hyper::Error| CallError::Lost(e.to_string());
        let stream = tokio::net::UnixStream::connect(socket).await.map_err(CallError::Connect)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let connection = Connection(tokio::spawn(async move {
            // Its end shows in the body.
            let _ = connection.await;
        }));
        let request = Request::get(path)
            .header("host", "daemon")
            .body(Full::new(Bytes::new()))
            .map_err(|e| CallError::Malformed(e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        if !status.is_success() {
            let body = Limited::new(answer.into_body(), EVENT_MAX).collect().await;
            let body = body.map_err(|e| CallError::Lost(e.to_string()))?.to_bytes();
            return decode(status, &body)
                .and_then(|()| Err(CallError::Malformed(format!("HTTP status {status}"))));
        }
        Ok(Self {
            body: answer.into_body(),
            buffer: Vec::new(),
            searched: 0,
            _connection: connection,
        })
    }

    /// The next event, or `None` at the end. Kinds of events that this version does not know are
    /// left out. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `Lost` if the daemon went away, `Malformed` if it speaks something else.
    pub async fn next(&mut self) -> Result<Option<MoveEvent>, CallError> {
        loop {
            while let Some(line) = self.take_line() {
                if let Some(event) = parse(&line)? {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > EVENT_MAX {
                return Err(CallError::Malformed(format!(
                    "an event of more than {EVENT_MAX} bytes"
                )));
            }
            match self.body.frame().await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(CallError::Lost("in the middle of an event".to_owned())),
                Some(Err(e)) => return Err(CallError::Lost(e.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let rest = self.buffer.get(self.searched..)?;
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let tail = self.buffer.split_off(self.searched + end + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, tail))
    }
}

/// An event from its line; `None` for an empty line and for a kind that is not known.
fn parse(line: &[u8]) -> Result<Option<MoveEvent>, CallError> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(line).map(Some).or_else(|error| {
        const KNOWN: [&str; 7] =
            ["phase", "progress", "round", "rehearsed", "notice", "words", "result"];
        let value: Option<serde_json::Value> = serde_json::from_slice(line).ok();
        let kind = value.as_ref().and_then(|v| v.get("type")?.as_str());
        match kind {
            Some(kind) if !KNOWN.contains(&kind) => Ok(None),
            _ => Err(CallError::Malformed(error.to_string())),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::{MovePhase, Words};

    #[test]
    fn kinds_to_come_are_left_out_and_nonsense_is_not() {
        let notice = parse(br#"{"type":"notice","text":"t","more":1}"#).unwrap().unwrap();
        assert!(matches!(notice, MoveEvent::Notice { text } if text == "t"));
        assert!(parse(b"\n").unwrap().is_none());
        assert!(parse(br#"{"type":"weather","text":"t"}"#).unwrap().is_none());
        for bad in [&b"{"[..], br#"{"type":"notice"}"#, br#"{"text":"t"}"#, b"[1]", b"\xff"] {
            assert!(matches!(parse(bad), Err(CallError::Malformed(_))));
        }
    }

    #[test]
    fn every_failure_says_what_to_type() {
        let client = DaemonClient::new("/run/x/daemon.sock".into(), "migrate daemon --user");
        let failure = |error| client.failure(error).0;
        let absent = failure(CallError::Connect(io::ErrorKind::NotFound.into()));
        assert_eq!(absent.code.exit_code(), 8);
        assert_eq!(absent.remedy, "start it: migrate daemon --user");
        assert!(absent.message.contains("/run/x/daemon.sock"));
        let denied = failure(CallError::Connect(io::ErrorKind::PermissionDenied.into()));
        assert!(denied.remedy.contains("usermod"));
        for error in [CallError::Lost("x".into()), CallError::Late(Duration::from_secs(1))] {
            let body = failure(error);
            assert!(body.retryable && body.code.exit_code() == 8 && !body.remedy.is_empty());
        }
    }

    #[test]
    fn damaged_events_are_refused_or_others() {
        let id = Uuid::nil();
        for event in [
            MoveEvent::Phase { move_id: id, guest: "g".into(), phase: MovePhase::Copying },
            MoveEvent::Progress {
                round: 1,
                done_bytes: 2,
                round_bytes: 3,
                frame_bytes: 4,
                bandwidth_bytes_per_s: 5,
            },
            MoveEvent::Round(Box::default()),
            MoveEvent::Rehearsed { restore_ms: 1.5 },
            MoveEvent::Notice { text: "t".into() },
            MoveEvent::Words(Words { frame: "00".into() }),
        ] {
            crate::guest::testing::hostile_json(&event);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>, kind in "[a-z]{0,8}", more in "[ -~]{0,40}") {
            let _ = parse(&line);
            let _ = parse(format!("{{\"type\":\"{kind}\",{more}}}").as_bytes());
        }
    }
}
