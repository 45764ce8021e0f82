//! The daemon's HTTP API, as [`crate::api::host`] documents it. It turns requests into calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use migrate_engine::transport::identity::HostName;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use uuid::Uuid;

use super::peer::{Answer, Request};
use super::{Daemon, check, cpu, history, metrics, moves};
use crate::api::client::GuestClient;
use crate::api::cpu::{CompareRequest, CpuComparison};
use crate::api::host::{
    GuestList, HostInfo, HostList, InviteRequest, Invited, KnownHost, MoveBegun, MoveList,
    MoveRequest, RemoveRequest,
};
use crate::api::moving::{CancelAnswer, MoveEvent, MoveReport};
use crate::api::resolve::{ResolveRequest, Resolved, Standing};
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::guest::moving::feed::Feed;

/// Longest body of a request, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Reports in a list, unless asked otherwise.
const LISTED: usize = 100;

type App = State<Arc<Daemon>>;
type Answered<T> = Result<Json<T>, Rejected>;

/// Serves until the listener fails.
pub async fn serve(listener: UnixListener, daemon: Arc<Daemon>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/v1/host", get(host))
        .route("/v1/guests", get(guests))
        .route("/v1/moves", get(list).post(begin))
        .route("/v1/moves/plan", post(plan))
        .route("/v1/moves/{id}", get(report))
        .route("/v1/moves/{id}/events", get(events))
        .route("/v1/moves/{id}/cancel", post(cancel))
        .route("/v1/doubts/{guest}", get(standing).post(resolve))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{name}/check", get(look))
        .route("/v1/hosts/cpu", post(compare_cpus))
        .route("/v1/hosts/invite", post(invite))
        .route("/v1/hosts/remove", post(remove))
        .route("/v1/reload", post(reload))
        .route("/metrics", get(figures))
        .fallback(|| async {
            let failure =
                Failure::new(ErrorCode::Usage, "there is no such request", "see the API's docs");
            Rejected(failure)
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(daemon);
    axum::serve(listener, router).await
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
            _ => StatusCode::CONFLICT,
        };
        (status, Json(self.0.0)).into_response()
    }
}

async fn host(State(daemon): App) -> Json<HostInfo> {
    Json(daemon.info())
}

async fn guests(State(daemon): App) -> Answered<GuestList> {
    let mut guests = Vec::new();
    for name in crate::host::registry::names(&daemon.dirs)? {
        let client = GuestClient::new(&name, daemon.dirs.guest(&name));
        guests.extend(client.info_async(Duration::from_secs(2)).await.ok());
    }
    Ok(Json(GuestList { schema: 1, guests }))
}

async fn begin(State(daemon): App, Json(request): Json<MoveRequest>) -> Answered<MoveBegun> {
    let move_id = moves::outbound::begin(&daemon, request).await?;
    Ok(Json(MoveBegun { schema: 1, move_id }))
}

async fn plan(
    State(daemon): App,
    Json(request): Json<MoveRequest>,
) -> Answered<crate::api::host::MovePlan> {
    Ok(Json(moves::plan::plan(&daemon, request).await?))
}

#[derive(Debug, Deserialize)]
struct ListQuery {
    guest: Option<String>,
    limit: Option<usize>,
}

async fn list(State(daemon): App, Query(query): Query<ListQuery>) -> Answered<MoveList> {
    let limit = query.limit.unwrap_or(LISTED).min(10_000);
    let guest = query.guest.as_deref();
    let mut moves = daemon.moves.going_on();
    moves.retain(|r| guest.is_none_or(|g| r.guest == g || r.uuid.to_string() == g));
    let known: Vec<Uuid> = moves.iter().map(|r| r.move_id).collect();
    let ended = history::list(&daemon.dirs, guest, limit);
    moves.extend(ended.into_iter().filter(|r| !known.contains(&r.move_id)));
    moves.truncate(limit);
    Ok(Json(MoveList { schema: 1, moves }))
}

fn no_move(id: Uuid) -> Rejected {
    let message = format!("no move {id} is known here");
    Rejected(Failure::new(
        ErrorCode::NotFound,
        message,
        "see the moves there were: migrate history",
    ))
}

async fn report(State(daemon): App, Path(id): Path<Uuid>) -> Answered<MoveReport> {
    let going_on = daemon.moves.going_on().into_iter().find(|r| r.move_id == id);
    let report = going_on.or_else(|| history::read(&daemon.dirs, id).ok());
    report.map(Json).ok_or_else(|| no_move(id))
}

async fn events(State(daemon): App, Path(id): Path<Uuid>) -> Result<Response, Rejected> {
    if let Some(feed) = daemon.moves.feed(id) {
        return Ok(feed.listen().into_response());
    }
    let report = history::read(&daemon.dirs, id).map_err(|_| no_move(id))?;
    let feed = Feed::default();
    feed.tell(&MoveEvent::Result(Box::new(report)));
    Ok(feed.listen().into_response())
}

async fn cancel(State(daemon): App, Path(id): Path<Uuid>) -> Answered<CancelAnswer> {
    match moves::cancel(&daemon, id).await {
        Some(accepted) => Ok(Json(CancelAnswer { schema: 1, accepted: accepted? })),
        None if history::read(&daemon.dirs, id).is_ok() => {
            Ok(Json(CancelAnswer { schema: 1, accepted: false }))
        }
        None => Err(no_move(id)),
    }
}

async fn standing(State(daemon): App, Path(guest): Path<String>) -> Answered<Standing> {
    Ok(Json(daemon.standing(&guest).await?))
}

async fn resolve(
    State(daemon): App,
    Path(guest): Path<String>,
    Json(request): Json<ResolveRequest>,
) -> Answered<Resolved> {
    Ok(Json(daemon.resolve(&guest, request).await?))
}

async fn hosts(State(daemon): App) -> Answered<HostList> {
    Ok(Json(all_hosts(&daemon).await?))
}

/// The hosts of the site; the others are asked what they say of themselves, all at once.
async fn all_hosts(daemon: &Arc<Daemon>) -> Result<HostList, Failure> {
    let silent = daemon.spread().await;
    listing(daemon, silent).await
}

/// The hosts of the site; those that were `silent` are not asked again.
async fn listing(
    daemon: &Arc<Daemon>,
    mut silent: BTreeMap<HostName, Failure>,
) -> Result<HostList, Failure> {
    let own = daemon.identity().map(|i| i.host.name().clone());
    let mut tasks = tokio::task::JoinSet::new();
    for host in daemon.all_hosts()? {
        let this = Some(&host.name) == own.as_ref();
        let daemon = Arc::clone(daemon);
        let silent = silent.remove(&host.name);
        tasks.spawn(async move {
            let asked = match silent {
                _ if this => Ok(daemon.info()),
                Some(failure) => Err(failure),
                None => ask_info(&daemon, host.name.as_str()).await,
            };
            (host, this, asked)
        });
    }
    let mut hosts = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (host, this, asked) = done.map_err(|e| super::unexpected("asking a host", &e))?;
        let rights = daemon.identity().map(|i| i.site.rights(&host.name));
        let (info, error): (Option<HostInfo>, Option<ErrorBody>) = match asked {
            Ok(info) => (Some(info), None),
            Err(failure) => (None, Some(*failure.0)),
        };
        let rights: Vec<migrate_engine::transport::identity::Right> =
            rights.map(Vec::from).unwrap_or_default();
        hosts.push(KnownHost {
            name: host.name.to_string(),
            id: host.id,
            address: host.address,
            rights: rights.iter().map(ToString::to_string).collect(),
            this,
            info,
            error,
        });
    }
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(HostList { schema: 1, hosts, removal: None })
}

async fn ask_info(daemon: &Daemon, host: &str) -> Result<HostInfo, Failure> {
    match daemon.ask(host, Request::Info).await?.answer {
        Answer::Info(info) => Ok(*info),
        _ => Err(super::unexpected("the other daemon", &"it answered something else")),
    }
}

async fn look(
    State(daemon): App,
    Path(name): Path<String>,
) -> Answered<crate::api::host::HostCheck> {
    Ok(Json(check::check(&daemon, &name).await?))
}

async fn compare_cpus(
    State(daemon): App,
    Json(request): Json<CompareRequest>,
) -> Answered<CpuComparison> {
    Ok(Json(cpu::compare(&daemon, request).await?))
}

async fn invite(State(daemon): App, Json(request): Json<InviteRequest>) -> Answered<Invited> {
    daemon.dialler()?;
    let own = daemon.address();
    let address = match request.address {
        Some(address) => address,
        None if own.starts_with(':') => return Err(no_address().into()),
        None => own,
    };
    let valid = Duration::from_millis(request.valid_ms);
    let (invitation, expires) = daemon.files.invite(&address, valid)?;
    let expires = i64::try_from(expires.0).unwrap_or(i64::MAX);
    let expires = jiff::Timestamp::from_second(expires).unwrap_or(jiff::Timestamp::MAX);
    Ok(Json(Invited { schema: 1, invitation: invitation.to_string(), expires }))
}

fn no_address() -> Failure {
    Failure::new(
        ErrorCode::Usage,
        "this host listens on all its addresses: under which one does the new host reach it?",
        "say it: migrate host invite --address HOST:PORT; or set advertise in host.toml",
    )
}

async fn remove(State(daemon): App, Json(request): Json<RemoveRequest>) -> Answered<HostList> {
    let (removal, silent) = daemon.remove(&request.name).await?;
    let list = listing(&daemon, silent).await?;
    Ok(Json(HostList { removal: Some(removal), ..list }))
}

async fn reload(State(daemon): App) -> Answered<serde_json::Value> {
    daemon.go_online()?;
    daemon.refresh.notify_one();
    daemon.look.notify_one();
    Ok(Json(json!({ "schema": 1 })))
}

async fn figures(State(daemon): App) -> Response {
    let kind = [(axum::http::header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, metrics::page(&daemon)).into_response()
}
