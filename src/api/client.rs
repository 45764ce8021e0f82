//! Client of a guest process's API: blocking calls, each with a deadline, on a Unix socket.
//! Every way in which a call can fail becomes a [`Failure`].

use std::future::Future;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use super::cpu::GuestCpu;
use super::daemon_client::MoveEvents;
use super::moving::{Bandwidth, CancelAnswer, MoveStart, PeerGone, Words};
use super::{
    DirtyRate, ErrorBody, ErrorCode, Failure, GuestInfo, SaveRequest, SaveResult, StopRequest,
    StopResult, ThrottleRequest, WaitResult,
};
use crate::config::GuestPaths;

/// Longest answer that is read, in bytes.
const ANSWER_MAX: usize = 4 << 20;
/// How long a guest process may take to answer a call that only looks.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How long a guest process may take to answer a call that changes its guest.
pub const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// How much longer than asked for a stop or a wait may take to be answered.
const GRACE: Duration = Duration::from_secs(15);

/// Why a call brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent: the process does not listen (any more).
    #[error("it cannot be reached: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke after the request was sent: its effect is unknown.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// No answer in time: the effect is unknown.
    #[error("it did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// An answer that is none.
    #[error("its answer cannot be read: {0}")]
    Malformed(String),
    /// The guest process refused or failed, and says why.
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    /// The caller was interrupted (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

/// One guest process.
#[derive(Clone, Debug)]
pub struct GuestClient {
    name: String,
    paths: GuestPaths,
}

impl GuestClient {
    /// The guest `name` whose runtime directory is `paths`.
    pub fn new(name: impl Into<String>, paths: GuestPaths) -> Self {
        Self { name: name.into(), paths }
    }

    /// Name of the guest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its runtime files.
    pub fn paths(&self) -> &GuestPaths {
        &self.paths
    }

    /// Facts about the guest.
    pub fn info(&self, deadline: Duration) -> Result<GuestInfo, CallError> {
        self.call(Method::GET, "/v1/guest", None::<&()>, Some(deadline))
    }

    /// [`Self::info`] for callers that are asynchronous.
    pub async fn info_async(&self, deadline: Duration) -> Result<GuestInfo, CallError> {
        self.exchange(Method::GET, "/v1/guest", None, Some(deadline)).await
    }

    /// The CPU that the guest is shown.
    pub async fn cpu(&self) -> Result<GuestCpu, CallError> {
        self.exchange(Method::GET, "/v1/cpu", None, Some(LOOK_DEADLINE)).await
    }

    /// How fast the guest writes to its memory, as watched for half a second.
    pub async fn dirty_rate(&self) -> Result<DirtyRate, CallError> {
        self.exchange(Method::POST, "/v1/dirty-rate", None, Some(LOOK_DEADLINE)).await
    }

    /// Pauses the guest.
    pub fn pause(&self, deadline: Duration) -> Result<GuestInfo, CallError> {
        self.call(Method::POST, "/v1/pause", None::<&()>, Some(deadline))
    }

    /// Lets the guest run on.
    pub fn resume(&self, deadline: Duration) -> Result<GuestInfo, CallError> {
        self.call(Method::POST, "/v1/resume", None::<&()>, Some(deadline))
    }

    /// Presses the reset button.
    pub fn reset(&self, deadline: Duration) -> Result<GuestInfo, CallError> {
        self.call(Method::POST, "/v1/reset", None::<&()>, Some(deadline))
    }

    /// Limits the share of time that vCPUs may run.
    pub fn throttle(&self, percent: u8, deadline: Duration) -> Result<GuestInfo, CallError> {
        let body = ThrottleRequest { cpu_share_percent: percent };
        self.call(Method::PUT, "/v1/throttle", Some(&body), Some(deadline))
    }

    /// Ends the guest; answers when it is gone.
    pub fn stop(&self, power_off: Duration) -> Result<StopResult, CallError> {
        block_on(self.stop_async(power_off))
    }

    /// [`Self::stop`] for callers that are asynchronous.
    pub async fn stop_async(&self, power_off: Duration) -> Result<StopResult, CallError> {
        let deadline_ms = u64::try_from(power_off.as_millis()).unwrap_or(u64::MAX);
        let body = encode(Some(&StopRequest { deadline_ms }))?;
        // Whoever wants it killed does not wait long for a process that hangs.
        let grace = if power_off.is_zero() { LOOK_DEADLINE } else { GRACE };
        let deadline = power_off.saturating_add(grace);
        self.exchange(Method::POST, "/v1/stop", body, Some(deadline)).await
    }

    /// Begins to move the guest.
    pub async fn start_move(&self, start: &MoveStart) -> Result<serde_json::Value, CallError> {
        let body = encode(Some(start))?;
        self.exchange(Method::POST, "/v1/move", body, Some(CHANGE_DEADLINE)).await
    }

    /// Cancels the move that goes on.
    pub async fn cancel_move(&self) -> Result<CancelAnswer, CallError> {
        self.exchange(Method::POST, "/v1/move/cancel", None, Some(LOOK_DEADLINE)).await
    }

    /// Hands the process a word of the other side of a hand-over.
    pub async fn heard(&self, words: &Words) -> Result<serde_json::Value, CallError> {
        let body = encode(Some(words))?;
        self.exchange(Method::POST, "/v1/move/heard", body, Some(LOOK_DEADLINE)).await
    }

    /// Tells the process that the other side's is dead.
    pub async fn peer_gone(&self, why: &PeerGone) -> Result<serde_json::Value, CallError> {
        let body = encode(Some(why))?;
        self.exchange(Method::POST, "/v1/move/peer-gone", body, Some(LOOK_DEADLINE)).await
    }

    /// Gives the move that goes on its share of the host's bandwidth.
    pub async fn move_bandwidth(&self, share: Bandwidth) -> Result<serde_json::Value, CallError> {
        let body = encode(Some(&share))?;
        self.exchange(Method::PUT, "/v1/move/bandwidth", body, Some(LOOK_DEADLINE)).await
    }

    /// The events of the move that goes on, or of the last one, from its beginning.
    pub async fn move_events(&self) -> Result<MoveEvents, CallError> {
        let socket = self.paths.api();
        let open = MoveEvents::open(&socket, "/v1/move/events".into());
        let late = |_| Err(CallError::Late(LOOK_DEADLINE));
        tokio::time::timeout(LOOK_DEADLINE, open).await.unwrap_or_else(late)
    }

    /// Writes the guest into the file whose descriptor was handed over as `request.fd_token`.
    /// Not interrupted by Ctrl-C, a lost terminal or SIGTERM: the file gets its name only when the
    /// outcome is known.
    pub fn save(
        &self,
        request: &SaveRequest,
        deadline: Option<Duration>,
    ) -> Result<SaveResult, CallError> {
        let body = encode(Some(request))?;
        let call = self.exchange(Method::POST, "/v1/save", body, deadline);
        runtime().map_err(CallError::Connect)?.block_on(async {
            tokio::pin!(call);
            let mut hangup = signal(SignalKind::hangup()).map_err(CallError::Connect)?;
            let mut terminate = signal(SignalKind::terminate()).map_err(CallError::Connect)?;
            loop {
                tokio::select! {
                    result = &mut call => return result,
                    Ok(()) = tokio::signal::ctrl_c() => {}
                    Some(()) = hangup.recv() => {}
                    Some(()) = terminate.recv() => {}
                }
                // The terminal may be gone.
                let words = "A save cannot be interrupted; waiting for its outcome.";
                let _ = writeln!(io::stderr(), "{words}");
            }
        })
    }

    /// Waits until `text` appears on the guest's serial console.
    pub fn wait_console(&self, text: &str, within: Duration) -> Result<WaitResult, CallError> {
        let timeout_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let path = format!("/v1/wait-console?text={}&timeout_ms={timeout_ms}", escape(text));
        self.call(Method::GET, &path, None::<&()>, Some(within.saturating_add(GRACE)))
    }

    fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        deadline: Option<Duration>,
    ) -> Result<R, CallError> {
        block_on(self.exchange(method, path, encode(body)?, deadline))
    }

    async fn exchange<R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Option<Duration>,
    ) -> Result<R, CallError> {
        let api = self.paths.api();
        let call = exchange(&api, method, path, body);
        match deadline {
            None => call.await,
            Some(limit) => {
                tokio::time::timeout(limit, call).await.unwrap_or(Err(CallError::Late(limit)))
            }
        }
    }

    /// What a failed call means to the user.
    pub fn failure(&self, error: CallError) -> Failure {
        let name = &self.name;
        let says =
            |code, remedy: String| Failure::new(code, format!("guest '{name}': {error}"), remedy);
        match error {
            CallError::Refused(body) => Failure(body),
            CallError::Interrupted => {
                says(ErrorCode::Interrupted, format!("see what it does: migrate show {name}"))
            }
            CallError::Malformed(_) => says(
                ErrorCode::Unexpected,
                format!(
                    "compare versions: migrate --version, and the process's: migrate show {name}"
                ),
            ),
            CallError::Connect(_) | CallError::Lost(_) | CallError::Late(_) => says(
                ErrorCode::Unreachable,
                format!("try again; if it stays so: migrate stop {name} --kill"),
            )
            .retryable(),
        }
    }
}

/// Runs one asynchronous call to its end, or to Ctrl-C.
pub fn block_on<R>(call: impl Future<Output = Result<R, CallError>>) -> Result<R, CallError> {
    runtime().map_err(CallError::Connect)?.block_on(async {
        tokio::select! {
            result = call => result,
            Ok(()) = tokio::signal::ctrl_c() => Err(CallError::Interrupted),
        }
    })
}

/// The runtime of the calling thread.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

pub(super) fn encode(body: Option<&impl Serialize>) -> Result<Option<Vec<u8>>, CallError> {
    let malformed = |e: serde_json::Error| CallError::Malformed(e.to_string());
    body.map(serde_json::to_vec).transpose().map_err(malformed)
}

pub(super) async fn exchange<R: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<R, CallError> {
    let lost = |e: hyper::Error| CallError::Lost(e.to_string());
    let malformed = |e: &dyn std::fmt::Display| CallError::Malformed(e.to_string());
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(CallError::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let mut request = Request::builder().method(method).uri(path).header("host", "guest");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let request = request
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|e| malformed(&e))?;

    let conversation = async {
        let answer = sender.send_request(request).await.map_err(lost)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        // Once the body is there the connection may end as it likes.
        body.map(|body| (status, body.to_bytes())).map_err(|e| CallError::Lost(e.to_string()))
    };
    tokio::pin!(conversation);
    let (status, bytes) = tokio::select! {
        biased;
        done = &mut conversation => done?,
        // The connection only moves while it is polled; its end lets the conversation end.
        _ = connection => conversation.await?,
    };
    decode(status, &bytes)
}

pub(super) fn decode<R: DeserializeOwned>(
    status: StatusCode,
    bytes: &[u8],
) -> Result<R, CallError> {
    if status.is_success() {
        return serde_json::from_slice(bytes).map_err(|e| CallError::Malformed(e.to_string()));
    }
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => Err(CallError::Refused(Box::new(body))),
        Err(_) => Err(CallError::Malformed(format!("HTTP status {status}"))),
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            for digit in [byte >> 4, byte & 15] {
                escaped.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(escape("a b&c=ö~"), "a%20b%26c%3D%C3%B6~");
    }

    #[test]
    fn answers_are_told_apart() {
        let refused = br#"{"code":"busy","message":"m","remedy":"r","retryable":true}"#;
        let error = decode::<WaitResult>(StatusCode::CONFLICT, refused).unwrap_err();
        assert!(matches!(error, CallError::Refused(b) if b.code == ErrorCode::Busy && b.retryable));
        for (status, bytes) in [(200, &b"{"[..]), (500, b"oops"), (204, b"")] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = decode::<WaitResult>(status, bytes).unwrap_err();
            assert!(matches!(error, CallError::Malformed(_)));
        }
        let ok = decode::<WaitResult>(StatusCode::OK, br#"{"schema":1,"seen":true,"new":1}"#);
        assert!(ok.unwrap().seen);
    }

    #[test]
    fn nobody_there_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let client = GuestClient::new("a", GuestPaths { dir: dir.path().into() });
        let error = client.info(LOOK_DEADLINE).unwrap_err();
        assert!(matches!(error, CallError::Connect(_)));
        let failure = client.failure(error);
        assert_eq!(failure.0.code.exit_code(), 8);
        assert!(failure.0.retryable);
    }
}
