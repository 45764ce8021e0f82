//! The API of a guest process: HTTP/JSON on its Unix socket, in one thread. It decides nothing;
//! it turns requests into commands for the owner and its answers into responses.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequest, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use migrate_engine::session::relay;
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream, unix::SocketAddr};
use tokio::sync::{Semaphore, oneshot};

use super::fdsock::Descriptors;
use super::inbox::{Answer, Command, Inbox};
use super::machine::PausedMachine;
use super::peer;
use crate::api::moving::{Bandwidth, CancelAnswer, MoveStart, PeerGone, Words};
use crate::api::{ErrorCode, Failure, SaveRequest, StopRequest, ThrottleRequest, WaitResult};
use crate::config::hex;

/// Clients that wait for console output at a time; each costs a thread.
const WAITERS: usize = 8;
/// Longest body of a request, in bytes.
const BODY_MAX: usize = 64 << 10;
/// After the end of the guest, clients get this long to read their answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// Waits for text on the serial console, be it there already. Blocks, at most for the duration.
pub type WaitConsole = Arc<dyn Fn(&str, Duration, &AtomicBool) -> Waited + Send + Sync>;

/// How waiting for console output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The text is there.
    Seen,
    /// It did not come in time.
    Late,
    /// The guest ended first.
    Gone,
}

/// The two sockets, bound and owner-only.
#[derive(Debug)]
pub struct Sockets {
    /// `api.sock`.
    pub api: StdListener,
    /// `fd.sock`.
    pub fd: StdListener,
}

/// The running server.
#[derive(Debug)]
pub struct Server {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts serving.
    ///
    /// # Errors
    /// No thread or no reactor can be had.
    pub fn start<P: PausedMachine>(
        sockets: Sockets,
        inbox: Inbox<P>,
        console: WaitConsole,
    ) -> std::io::Result<Self> {
        sockets.api.set_nonblocking(true)?;
        sockets.fd.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(WAITERS)
            .thread_name("api-wait")
            .build()?;
        let (end, ended) = oneshot::channel();
        let thread = std::thread::Builder::new().name("api".into()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(sockets, inbox, console, ended)) {
                tracing::error!(%error, "the API server ended");
            }
            runtime.shutdown_background();
        })?;
        Ok(Self { end, thread })
    }

    /// Lets clients read their last answers, then ends.
    pub fn end(self) {
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

struct App<P: PausedMachine> {
    inbox: Inbox<P>,
    descriptors: Descriptors,
    console: WaitConsole,
    waiters: Arc<Semaphore>,
}

impl<P: PausedMachine> Clone for App<P> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            descriptors: self.descriptors.clone(),
            console: self.console.clone(),
            waiters: self.waiters.clone(),
        }
    }
}

async fn serve<P: PausedMachine>(
    sockets: Sockets,
    inbox: Inbox<P>,
    console: WaitConsole,
    ended: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let api = OwnerOnly(UnixListener::from_std(sockets.api)?);
    let descriptors = Descriptors::default();
    tokio::spawn(descriptors.clone().serve(UnixListener::from_std(sockets.fd)?));
    let app = App { inbox, descriptors, console, waiters: Arc::new(Semaphore::new(WAITERS)) };
    let (tell, told) = oneshot::channel::<()>();
    let server = axum::serve(api, router(app)).with_graceful_shutdown(async move {
        let _ = ended.await;
        let _ = tell.send(());
    });
    let late = async move {
        let _ = told.await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        result = server.into_future() => result,
        () = late => Ok(()),
    }
}

fn router<P: PausedMachine>(app: App<P>) -> Router {
    Router::new()
        .route("/v1/guest", get(|s| simple(s, Command::Info)))
        .route("/v1/cpu", get(|s| simple(s, Command::Cpu)))
        .route("/v1/dirty-rate", post(|s| simple(s, Command::DirtyRate)))
        .route("/v1/pause", post(|s| simple(s, Command::Pause)))
        .route("/v1/resume", post(|s| simple(s, Command::Resume)))
        .route("/v1/reset", post(|s| simple(s, Command::Reset)))
        .route("/v1/stop", post(stop))
        .route("/v1/save", post(save))
        .route("/v1/throttle", put(throttle))
        .route("/v1/wait-console", get(wait_console))
        .route("/v1/move", post(begin_move))
        .route("/v1/move/cancel", post(|s| simple(s, Command::CancelMove)))
        .route("/v1/move/events", get(|s| simple(s, Command::MoveFeed)))
        .route("/v1/move/heard", post(heard))
        .route("/v1/move/peer-gone", post(peer_gone))
        .route("/v1/move/bandwidth", put(bandwidth))
        .fallback(|| async {
            Rejected(Failure::new(
                ErrorCode::Usage,
                "there is no such request",
                "see the API's documentation",
            ))
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(app)
}

type Answered = Result<Response, Rejected>;

async fn ask<P: PausedMachine>(app: &App<P>, command: Command) -> Answered {
    let answer = app.inbox.request(command).await.map_err(|_| gone())?.map_err(Rejected)?;
    Ok(match answer {
        Answer::Info(info) => Json(info).into_response(),
        Answer::Cpu(cpu) => Json(cpu).into_response(),
        Answer::DirtyRate(rate) => Json(rate).into_response(),
        Answer::Stop(result) => Json(result).into_response(),
        Answer::Save(result) => Json(result).into_response(),
        Answer::Done => Json(serde_json::json!({ "schema": 1 })).into_response(),
        Answer::Cancelled(accepted) => Json(CancelAnswer { schema: 1, accepted }).into_response(),
        Answer::Feed(feed) => feed.listen().into_response(),
    })
}

async fn simple<P: PausedMachine>(State(app): State<App<P>>, command: Command) -> Answered {
    ask(&app, command).await
}

async fn stop<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(request): Body<StopRequest>,
) -> Answered {
    let deadline = Duration::from_millis(request.deadline_ms);
    ask(&app, Command::Stop { deadline }).await
}

async fn save<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(request): Body<SaveRequest>,
) -> Answered {
    let refuse = |message: &str| {
        Rejected(Failure::new(
            ErrorCode::Usage,
            message,
            "send the file over fd.sock first, open for writing",
        ))
    };
    let fd = app.descriptors.take(&request.fd_token);
    let file = std::fs::File::from(fd.ok_or_else(|| refuse("no descriptor has that token"))?);
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(refuse("a guest is saved into a regular file only"));
    }
    ask(&app, Command::Save { file, keep_running: request.keep_running }).await
}

async fn throttle<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(request): Body<ThrottleRequest>,
) -> Answered {
    ask(&app, Command::Throttle(request.cpu_share_percent)).await
}

async fn begin_move<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(start): Body<MoveStart>,
) -> Answered {
    ask(&app, Command::Move(Box::new(start))).await
}

async fn heard<P: PausedMachine>(State(app): State<App<P>>, Body(words): Body<Words>) -> Answered {
    let frame = hex::decode(&words.frame).and_then(|frame| relay::decode(&frame));
    let message = frame.ok_or_else(|| usage("that is no word of a hand-over"))?;
    ask(&app, Command::Heard(message)).await
}

async fn peer_gone<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(gone): Body<PeerGone>,
) -> Answered {
    let why = gone.why;
    let end = why.floor_char_boundary(PeerGone::WHY_MAX);
    ask(&app, Command::PeerGone(why[..end].to_owned())).await
}

async fn bandwidth<P: PausedMachine>(
    State(app): State<App<P>>,
    Body(share): Body<Bandwidth>,
) -> Answered {
    ask(&app, Command::Bandwidth(share.bytes_per_s)).await
}

/// Query of `wait-console`.
#[derive(Debug, Deserialize)]
struct WaitQuery {
    text: String,
    timeout_ms: u64,
}

async fn wait_console<P: PausedMachine>(
    State(app): State<App<P>>,
    query: Result<Query<WaitQuery>, axum::extract::rejection::QueryRejection>,
) -> Answered {
    let Query(query) = query.map_err(|e| usage(&e.body_text()))?;
    let Ok(permit) = app.waiters.clone().try_acquire_owned() else {
        let message = "too many clients wait for console output";
        let failure = Failure::new(ErrorCode::Busy, message, "try again later");
        return Err(Rejected(failure.retryable()));
    };
    let console = app.console.clone();
    let given_up = GiveUp::default();
    let flag = given_up.0.clone();
    let wait = move || {
        // Held until the thread is free again, however the request ends.
        let _permit = permit;
        console(&query.text, Duration::from_millis(query.timeout_ms), &flag)
    };
    let seen = match tokio::task::spawn_blocking(wait).await {
        Ok(Waited::Seen) => true,
        Ok(Waited::Late) => false,
        Ok(Waited::Gone) | Err(_) => return Err(gone()),
    };
    Ok(Json(WaitResult { schema: 1, seen }).into_response())
}

/// Ends a wait when its request is dropped, because the client is gone.
#[derive(Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn gone() -> Rejected {
    Rejected(Failure::new(ErrorCode::NotFound, "the guest has ended", "see: migrate ls -a"))
}

fn usage(message: &str) -> Rejected {
    Rejected(Failure::new(ErrorCode::Usage, message, "see the API's documentation"))
}

/// A JSON body; what is wrong with it is told as every other failure.
struct Body<T>(T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: serde::de::DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Rejected;

    async fn from_request(
        request: axum::extract::Request,
        state: &S,
    ) -> Result<Self, Self::Rejection> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(usage(&rejection.body_text())),
        }
    }
}

/// A failure as a response.
struct Rejected(Failure);

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        (status(self.0.0.code), Json(self.0.0)).into_response()
    }
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Usage => StatusCode::BAD_REQUEST,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Unexpected | ErrorCode::File | ErrorCode::BadDisk => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::CONFLICT,
    }
}

/// Accepts only who may command this process. The socket's mode says the same; this holds also
/// where somebody changed it.
struct OwnerOnly(UnixListener);

impl axum::serve::Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok((socket, address)) if peer::may_command(&socket) => return (socket, address),
                Ok(_) => tracing::warn!("another user's connection to the API was refused"),
                Err(error) => {
                    tracing::warn!(%error, "the API cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
