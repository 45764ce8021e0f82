//! Requests to functions, and their answers to responses.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use migrate_engine::transport::identity::{HostName, Right, Rights};
use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::info;
use crate::api::host::{
    GuestList, HostInfo, HostList, InviteRequest, Invited, KnownHost, MoveList, MoveRequest,
    RemoveRequest,
};
use crate::api::moving::{MoveEvent, MoveReport};
use crate::api::{ErrorCode, Failure};
use crate::daemon::answers;
use crate::daemon::facts;
use crate::daemon::metrics::Gauges;
use crate::daemon::moves::{outbound, plan};
use crate::daemon::peer::pool;
use crate::daemon::peer::proto::Ask;
use crate::daemon::state::{Daemon, blocking};
use crate::daemon::{check, identity, net};
use crate::guest::moving::feed::{Listener, Next};
use crate::host::registry::{self, Entry};

/// Longest body of a request, in bytes.
const BODY_MAX: usize = 64 << 10;
/// Moves in a list, if nothing is said, and at most.
const LIST: (usize, usize) = (100, 10_000);
/// How long each host may take to say what it is.
const INFO_DEADLINE: Duration = Duration::from_secs(4);

/// What requests work on.
#[derive(Clone)]
struct App {
    daemon: Arc<Daemon>,
    stop: watch::Receiver<bool>,
}

/// The API.
pub fn router(daemon: Arc<Daemon>, stop: watch::Receiver<bool>) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/guests", get(guests))
        .route("/v1/moves", get(moves).post(begin))
        .route("/v1/moves/plan", post(plan_move))
        .route("/v1/moves/{id}", get(report))
        .route("/v1/moves/{id}/events", get(events))
        .route("/v1/moves/{id}/cancel", post(cancel))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{name}/check", get(check_host))
        .route("/v1/hosts/invite", post(invite))
        .route("/v1/hosts/remove", post(remove))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(metrics))
        .fallback(|| async {
            let remedy = "see the API's documentation";
            Rejected(Failure::new(ErrorCode::Usage, "there is no such request", remedy))
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(App { daemon, stop })
}

type Answered<T> = Result<Json<T>, Rejected>;

async fn host(State(app): State<App>) -> Json<HostInfo> {
    Json(info(&app.daemon).await)
}

async fn guests(State(app): State<App>) -> Answered<GuestList> {
    let dirs = app.daemon.dirs.clone();
    let listing = blocking(move || registry::list(&dirs, false)).await?;
    let known = |entry| match entry {
        Entry::Known(info) => Some(*info),
        Entry::Silent { .. } => None,
    };
    let guests = listing.guests.into_iter().filter_map(known).collect();
    Ok(Json(GuestList { schema: 1, guests }))
}

async fn begin(State(app): State<App>, Body(request): Body<MoveRequest>) -> Response {
    answer(outbound::begin(&app.daemon, request).await)
}

async fn plan_move(State(app): State<App>, Body(request): Body<MoveRequest>) -> Response {
    answer(plan::plan(&app.daemon, &request).await)
}

fn answer<T: serde::Serialize>(result: Result<T, Failure>) -> Response {
    match result {
        Ok(answer) => Json(answer).into_response(),
        Err(failure) => Rejected(failure).into_response(),
    }
}

/// Query of the list of moves.
#[derive(Debug, Deserialize)]
struct MovesQuery {
    guest: Option<String>,
    limit: Option<usize>,
}

async fn moves(State(app): State<App>, Query(query): Query<MovesQuery>) -> Answered<MoveList> {
    let daemon = Arc::clone(&app.daemon);
    let limit = query.limit.unwrap_or(LIST.0).min(LIST.1);
    let list = blocking(move || daemon.moves.list(query.guest.as_deref(), limit)).await?;
    Ok(Json(MoveList { schema: 1, moves: list }))
}

async fn report(State(app): State<App>, Path(id): Path<Uuid>) -> Answered<MoveReport> {
    let daemon = Arc::clone(&app.daemon);
    Ok(Json(blocking(move || daemon.moves.report(id)).await?))
}

async fn events(State(app): State<App>, Path(id): Path<Uuid>) -> Response {
    if let Some(moved) = app.daemon.moves.get(id) {
        return lines(moved.listen(), app.stop);
    }
    // Of an earlier move only the end is left.
    let daemon = Arc::clone(&app.daemon);
    let report = match blocking(move || daemon.moves.report(id)).await {
        Ok(report) => report,
        Err(failure) => return Rejected(failure).into_response(),
    };
    let mut line = serde_json::to_vec(&MoveEvent::Result(Box::new(report))).unwrap_or_default();
    line.push(b'\n');
    ([(header::CONTENT_TYPE, "application/x-ndjson")], line).into_response()
}

/// A response of as many lines as there will be, or until the daemon stops.
fn lines(listener: Listener, stop: watch::Receiver<bool>) -> Response {
    let stream = futures_util::stream::unfold((listener, stop), |(mut listener, mut stop)| async {
        let next = tokio::select! {
            next = listener.next() => next,
            _ = stop.wait_for(|stop| *stop) => Next::End,
        };
        match next {
            Next::Line(line) => Some((Ok::<_, std::convert::Infallible>(line), (listener, stop))),
            Next::End => None,
        }
    });
    let json = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (json, axum::body::Body::from_stream(stream)).into_response()
}

async fn cancel(State(app): State<App>, Path(id): Path<Uuid>) -> Response {
    answer(outbound::cancel(&app.daemon, id).await)
}

async fn hosts(State(app): State<App>) -> Answered<HostList> {
    Ok(Json(list_hosts(&app.daemon, true).await?))
}

async fn list_hosts(daemon: &Arc<Daemon>, ask: bool) -> Result<HostList, Failure> {
    let loaded = daemon.identity()?;
    let own = loaded.name().clone();
    let mut tasks = tokio::task::JoinSet::new();
    let mut hosts = loaded.hosts.clone();
    // One that does not know where it is itself still belongs to the site.
    if hosts.get(&own).is_none() {
        let listen = daemon.port().map_or(daemon.settings().listen, |port| port.address);
        hosts.note(&own, Some(daemon.id), &listen.to_string(), identity::now());
    }
    for (name, entry) in hosts.hosts {
        let (daemon, this) = (Arc::clone(daemon), name == own);
        let rights =
            if this { Right::ALL.into_iter().collect() } else { loaded.site.rights(&name) };
        tasks.spawn(async move {
            let asked = if this {
                Some(Ok(info(&daemon).await))
            } else if ask {
                Some(ask_info(&daemon, &name).await)
            } else {
                None
            };
            let (info, error) = match asked {
                Some(Ok(info)) => (Some(info), None),
                Some(Err(failure)) => (None, Some(*failure.0)),
                None => (None, None),
            };
            let (id, address) = (entry.id, entry.address);
            KnownHost {
                name: name.to_string(),
                id,
                address,
                rights: words(rights),
                this,
                info,
                error,
            }
        });
    }
    let mut hosts = tasks.join_all().await;
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(HostList { schema: 1, hosts })
}

fn words(rights: Rights) -> Vec<String> {
    Vec::<Right>::from(rights).iter().map(ToString::to_string).collect()
}

async fn ask_info(daemon: &Arc<Daemon>, name: &HostName) -> Result<HostInfo, Failure> {
    let asked = async {
        let peer = pool::peer(daemon, name).await?;
        peer.ask::<HostInfo>(&Ask::Info, INFO_DEADLINE).await
    };
    tokio::time::timeout(INFO_DEADLINE, asked).await.unwrap_or_else(|_| {
        Err(Failure::new(
            ErrorCode::Unreachable,
            format!("host '{name}' did not answer within {} s", INFO_DEADLINE.as_secs()),
            format!("migrate host check {name}"),
        )
        .retryable())
    })
}

fn host_name(text: &str) -> Result<HostName, Failure> {
    text.parse().map_err(|e: migrate_engine::transport::identity::name::BadName| {
        Failure::new(ErrorCode::Usage, e.to_string(), "see the hosts there are: migrate host ls")
    })
}

async fn check_host(State(app): State<App>, Path(name): Path<String>) -> Response {
    let checked = async { check::check(&app.daemon, &host_name(&name)?).await };
    answer(checked.await)
}

async fn invite(State(app): State<App>, Body(request): Body<InviteRequest>) -> Answered<Invited> {
    let daemon = Arc::clone(&app.daemon);
    Ok(Json(blocking(move || make_invitation(&daemon, &request)).await?))
}

fn make_invitation(daemon: &Arc<Daemon>, request: &InviteRequest) -> Result<Invited, Failure> {
    let loaded = daemon.identity()?;
    let expires = identity::now().plus(Duration::from_millis(request.valid_ms));
    let address = request.address.clone().or_else(|| daemon.hello().address);
    let address = address.unwrap_or_else(|| {
        // The name by which this host knows itself; others may know it too.
        let full = nix::unistd::gethostname().unwrap_or_default();
        format!("{}:{}", full.to_string_lossy(), daemon.hello().port)
    });
    let invitation = identity::invite(&daemon.dirs, &loaded, &address, expires)?;
    let expires = i64::try_from(expires.0).ok().and_then(|s| Timestamp::from_second(s).ok());
    let expires = expires.unwrap_or(Timestamp::MAX);
    Ok(Invited { schema: 1, invitation: invitation.to_string(), expires })
}

async fn remove(State(app): State<App>, Body(request): Body<RemoveRequest>) -> Answered<HostList> {
    answers::remove(&app.daemon, &host_name(&request.name)?)?;
    Ok(Json(list_hosts(&app.daemon, false).await?))
}

async fn reload(State(app): State<App>) -> Answered<serde_json::Value> {
    let daemon = Arc::clone(&app.daemon);
    blocking(move || daemon.reload()).await?;
    if app.daemon.identity().is_ok() {
        net::open(&app.daemon, app.stop)?;
    }
    Ok(Json(serde_json::json!({ "schema": 1 })))
}

async fn metrics(State(app): State<App>) -> Response {
    let work = Arc::clone(&app.daemon);
    let guests = blocking(move || Ok(facts::guests(&work.dirs).len())).await.unwrap_or(0);
    let ends = app.daemon.identity().ok().map(|loaded| loaded.identity.not_after().0);
    let left = |ends: u64| i64::try_from(ends).ok()?.checked_sub(Timestamp::now().as_second());
    let text = app.daemon.metrics.text(Gauges {
        guests,
        moves_running: app.daemon.moves.running().len(),
        reserved_bytes: app.daemon.inbound.reserved(),
        available_bytes: facts::memory().available,
        certificate_seconds: ends.and_then(left),
    });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
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
            Err(rejection) => {
                let remedy = "see the API's documentation";
                Err(Rejected(Failure::new(ErrorCode::Usage, rejection.body_text(), remedy)))
            }
        }
    }
}

/// A failure as a response.
struct Rejected(Failure);

impl From<Failure> for Rejected {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Rejected {
    fn into_response(self) -> Response {
        let status = match self.0.0.code {
            ErrorCode::Usage => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound | ErrorCode::UnknownHost => StatusCode::NOT_FOUND,
            ErrorCode::Unexpected | ErrorCode::File => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::Unreachable => StatusCode::BAD_GATEWAY,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(self.0.0)).into_response()
    }
}
