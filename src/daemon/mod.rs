//! The host daemon: it knows the host's guests, brings moves about, and talks to the daemons of
//! other hosts. Guests run without it: it may end, crash and come back at any time.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | `host.toml` |
//! | [`identity`] | key, certificate, CA, known hosts: the files |
//! | [`joining`] | `host init` and `host join` |
//! | [`peer`], [`peers`] | what daemons say to each other, and how it is carried |
//! | [`answers`] | what is answered to other daemons, who may ask what, who is let in |
//! | [`gossip`] | how hosts learn of each other, and of those that were removed |
//! | [`moves`] | moves: begun, followed, on record until they end; how one away from here goes |
//! | [`inbound`] | moves to here: room reserved, receivers started, followed, cleared up |
//! | [`keeper`] | answers for guest processes that are gone |
//! | [`arbiter`] | that both ends have the same arbiter; its agents for moves away from here |
//! | [`doubt`] | guests whose owner is in doubt: what is known, what an operator says |
//! | [`autostart`] | starts guests when the host has booted |
//! | [`history`] | reports of moves, as files |
//! | [`cpu`] | what hosts' CPUs have, and have in common |
//! | [`check`] | what is well and what is not between two hosts |
//! | [`api`], [`metrics`] | the HTTP API on the Unix socket |
//! | [`service`] | what systemd hears of the daemon |
//!
//! It never holds a guest's memory, and never decides whose a guest is: the hand-over does.

mod answers;
mod api;
mod arbiter;
mod autostart;
mod check;
pub mod config;
mod cpu;
mod doubt;
mod gossip;
mod history;
pub mod identity;
mod inbound;
pub mod joining;
mod keeper;
mod metrics;
mod moves;
pub mod peer;
mod peers;
mod service;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::transport::identity::HostName;
use migrate_engine::transport::identity::renewal::Renewal;
use migrate_engine::transport::quic::{Dialler, HostEndpoint, Settings};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument;
use uuid::Uuid;

use crate::api::host::HostInfo;
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::arbiter::Shared;
use crate::config::{Dirs, host_id};
use crate::guest::facts::VERSION;
use crate::guest::lockfile::LockFile;
use config::Config;
use identity::{Files, Identity};
// Users are told of these: migrate help moving.
pub use inbound::{LAUNCH, ORPHAN};
pub use keeper::LATER;
pub use peers::PATIENCE;

/// Time between two looks at the certificate's age.
const RENEWAL_LOOK: Duration = Duration::from_hours(1);

/// The daemon. Everything of it is shared by its tasks, which run on one thread.
struct Daemon {
    dirs: Dirs,
    config: Config,
    files: Files,
    id: Uuid,
    started: Timestamp,
    net: RwLock<Net>,
    moves: moves::Moves,
    inbound: inbound::Inbound,
    places: keeper::Places,
    arbiter: Option<Arc<dyn Shared>>,
    doors: answers::Doors,
    /// What the last host said that refused this one as removed, until one lets it in.
    refused: Mutex<Option<String>>,
    /// This host has a new identity: tell the others.
    refresh: tokio::sync::Notify,
    /// Look at the certificates' age.
    look: tokio::sync::Notify,
}

/// This host among others; nothing before it has an identity.
#[derive(Default)]
struct Net {
    identity: Option<Identity>,
    dialler: Option<Dialler>,
    listen: Option<std::net::SocketAddr>,
    advice: Vec<String>,
}

fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the daemon's log")
}

/// Runs the daemon of an instance until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: another one runs, a port is taken, a file is wrong.
pub fn run(dirs: &Dirs) -> Result<(), Failure> {
    crate::failpoint::begin();
    dirs.prepare()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| unexpected("the daemon cannot start", &e))?;
    runtime.block_on(serve(dirs))
}

async fn serve(dirs: &Dirs) -> Result<(), Failure> {
    let lock = dirs.run.join("daemon.lock");
    let held = LockFile::take(&lock).map_err(|e| unexpected("the daemon's lock", &e))?;
    let Some(_lock) = held else {
        return Err(Failure::new(
            ErrorCode::AlreadyRunning,
            format!("a daemon of this instance runs already ({} is locked)", lock.display()),
            "use it: migrate host show",
        ));
    };
    let daemon = Arc::new(Daemon::new(dirs)?);
    daemon.files.sweep();
    let listener = bind(&dirs.daemon_socket())?;
    daemon.go_online()?;
    history::prune(dirs);
    daemon.adopt();
    tokio::spawn(autostart::start_all(Arc::clone(&daemon)));
    tokio::spawn(renew(Arc::clone(&daemon)));
    tokio::spawn(gossip::refresh(Arc::clone(&daemon)));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| unexpected("signals", &e))?;
    service::ready();
    tracing::info!(pid = std::process::id(), "the daemon is ready");
    let served = api::serve(listener, Arc::clone(&daemon));
    tokio::select! {
        ended = served => ended.map_err(|e| unexpected("the API", &e))?,
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    service::stopping();
    tracing::info!("the daemon ends; guests run on");
    // Whoever connects finds nobody, not a socket that hangs.
    let _ = std::fs::remove_file(dirs.daemon_socket());
    Ok(())
}

/// The API's socket, for its owner and, in the system instance, for the group `migrate`.
fn bind(path: &Path) -> Result<UnixListener, Failure> {
    // The lock is ours: what is there is a leftover.
    let _ = std::fs::remove_file(path);
    let failed = |e: std::io::Error| {
        Failure::new(
            ErrorCode::File,
            format!("the socket {} cannot be made: {e}", path.display()),
            "check the directory; a socket's path must be shorter than 108 bytes",
        )
    };
    let listener = UnixListener::bind(path).map_err(failed)?;
    let group = nix::unistd::Group::from_name("migrate").ok().flatten();
    let system = path.starts_with("/run/migrate");
    let mode = match group.filter(|_| system) {
        Some(group) => {
            let given = nix::unistd::chown(path, None, Some(group.gid));
            let above = path.parent().map(|dir| nix::unistd::chown(dir, None, Some(group.gid)));
            if given.is_ok() && matches!(above, Some(Ok(()))) { 0o660 } else { 0o600 }
        }
        None => 0o600,
    };
    if mode == 0o660
        && let Some(dir) = path.parent()
    {
        // To reach the socket, and nothing else of what lies there.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o710)).map_err(failed)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

impl Daemon {
    /// Of an instance; it does nothing yet.
    fn new(dirs: &Dirs) -> Result<Self, Failure> {
        let config = Config::read(&dirs.config.join("host.toml"))?;
        Ok(Self {
            dirs: dirs.clone(),
            inbound: inbound::Inbound::new(config.limits.clone()),
            arbiter: config.arbiter.as_ref().map(crate::arbiter::open).transpose()?,
            config,
            files: Files::new(dirs),
            id: host_id(dirs)?,
            started: Timestamp::now(),
            net: RwLock::default(),
            moves: moves::Moves::default(),
            places: keeper::Places::default(),
            doors: answers::Doors::default(),
            refused: Mutex::default(),
            refresh: tokio::sync::Notify::new(),
            look: tokio::sync::Notify::new(),
        })
    }

    /// This host, as others know it.
    fn host_ref(&self) -> HostRef {
        let name = self.identity().map_or_else(
            || {
                let name = nix::unistd::gethostname().unwrap_or_default();
                name.to_string_lossy().into_owned()
            },
            |i| i.host.name().to_string(),
        );
        HostRef { id: self.id, name }
    }

    fn net(&self) -> std::sync::RwLockReadGuard<'_, Net> {
        self.net.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self) -> Option<Identity> {
        self.net().identity.clone()
    }

    fn dialler(&self) -> Result<Dialler, Failure> {
        self.net().dialler.clone().ok_or_else(|| {
            Failure::new(
                ErrorCode::NoIdentity,
                "this host has no identity yet, so it cannot talk to others",
                "make one: migrate host init (first host), or migrate host join LINE",
            )
        })
    }

    /// Reads the identity and opens the control port, if there is one and it is not open yet.
    fn go_online(self: &Arc<Self>) -> Result<(), Failure> {
        let Some(identity) = self.files.identity()? else { return Ok(()) };
        let mut net = self.net.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(dialler) = &net.dialler {
            dialler.replace(Arc::clone(&identity.host), Arc::clone(&identity.site));
            net.identity = Some(identity);
            return Ok(());
        }
        let (host, site) = (Arc::clone(&identity.host), Arc::clone(&identity.site));
        let endpoint = HostEndpoint::bind(self.config.listen, host, site, Settings::default())
            .map_err(|e| {
                Failure::new(
                    ErrorCode::BadNet,
                    format!("cannot open the control port {}: {e}", self.config.listen),
                    "free the port, or change listen in host.toml",
                )
            })?;
        net.listen = endpoint.local_addr().ok();
        net.advice = endpoint.advice().iter().map(ToString::to_string).collect();
        net.dialler = Some(endpoint.dialler().clone());
        net.identity = Some(identity);
        drop(net);
        tokio::spawn(answers::answer(Arc::clone(self), endpoint));
        Ok(())
    }

    /// How others reach this daemon.
    fn address(&self) -> String {
        if let Some(advertised) = &self.config.advertise {
            return advertised.clone();
        }
        let listen = self.net().listen.unwrap_or(self.config.listen);
        if listen.ip().is_unspecified() {
            format!(":{}", listen.port())
        } else {
            listen.to_string()
        }
    }

    fn info(&self) -> HostInfo {
        let memory = inbound::memory();
        let guests = crate::host::registry::names(&self.dirs).map_or(0, |n| n.len());
        let ends = self.identity().map(|i| i.host.not_after().0);
        let net = self.net();
        HostInfo {
            schema: 1,
            host: {
                drop(net);
                self.host_ref()
            },
            version: VERSION.into(),
            pid: std::process::id(),
            started: self.started,
            listen: self.net().listen.map(|l| l.to_string()),
            certificate_ends: ends
                .and_then(|s| Timestamp::from_second(i64::try_from(s).ok()?).ok()),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            memory_reserved_bytes: self.inbound.reserved(),
            guests: u32::try_from(guests).unwrap_or(u32::MAX),
            moves_running: self.moves.running() + self.inbound.running(),
            advice: self.advice(),
            kvm_problem: kvm_problem(),
            now: Timestamp::now(),
        }
    }

    /// Goes on with the moves that a former daemon left, and settles what guest processes left
    /// that are gone.
    fn adopt(self: &Arc<Self>) {
        for open in moves::record::all(&self.dirs) {
            let open = Arc::new(open);
            let id = open.about.move_id;
            match self.begin_move(&open) {
                Ok(begun) => {
                    tracing::info!(MOVE = %id, GUEST = open.about.guest, "a move is followed again");
                    let span = crate::logging::about_move(Some(id), &open.about.guest);
                    tokio::spawn(Arc::clone(self).adopt_move(open, begun).instrument(span));
                }
                Err(failure) => tracing::error!(MOVE = %id, %failure, "a move is not followed"),
            }
        }
        tokio::spawn(Arc::clone(self).settle_all());
    }

    async fn adopt_move(self: Arc<Self>, open: Arc<moves::record::Open>, begun: moves::Begun) {
        if open.direction == moves::record::Direction::Out {
            return moves::outbound::go_on(self, open, begun).await;
        }
        let name = &open.about.guest;
        let client = crate::api::client::GuestClient::new(name, self.dirs.guest(name));
        let info = client.info_async(Duration::from_secs(5)).await.ok();
        let ours = info.filter(|info| info.uuid == open.about.uuid);
        let promise = ours.map(|info| self.promise_again(&open, info.pid));
        inbound::receive(self, open, begun, promise).await;
    }
}

impl Daemon {
    /// What people should know of this host's standing among others, and of its sockets.
    fn advice(&self) -> Vec<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let age = self.identity().and_then(|i| identity::age_advice(&i, identity::now()));
        refused.into_iter().chain(age).chain(self.net().advice.clone()).collect()
    }
}

/// Why no guest can run here, if so.
fn kvm_problem() -> Option<String> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    opened.err().map(|e| format!("/dev/kvm cannot be opened: {e}"))
}

/// Renews certificates when they are due: the CA's where it is, and the host's.
async fn renew(daemon: Arc<Daemon>) {
    loop {
        if let Err(failure) = look_at_age(&daemon).await {
            tracing::warn!(%failure, "a certificate is due and was not renewed");
        }
        let _ = tokio::time::timeout(RENEWAL_LOOK, daemon.look.notified()).await;
    }
}

async fn look_at_age(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let Some(identity) = daemon.identity() else { return Ok(()) };
    let authority_renewed = daemon.files.renew_authority()?;
    if authority_renewed {
        tracing::info!("the certificate of the site's CA is renewed");
        daemon.go_online()?;
    }
    let here = daemon.files.authority()?.is_some();
    let due = match identity.host.renewal(identity::now()) {
        Renewal::Now => true,
        // The CA's host signs for itself; all others refuse a certificate that has run out.
        Renewal::TooLate => here,
        Renewal::At(_) | Renewal::ClockWrong => false,
    };
    if due || authority_renewed {
        joining::renew(daemon, identity.host.name()).await?;
        tracing::info!("the host's certificate is renewed");
    } else if let Some(advice) = identity::age_advice(&identity, identity::now()) {
        tracing::warn!("{advice}");
    }
    Ok(())
}

/// A host's name, from text.
fn host_name(text: &str) -> Result<HostName, Failure> {
    text.parse().map_err(|e: migrate_engine::transport::identity::name::BadName| {
        Failure::new(ErrorCode::Usage, e.to_string(), "see the hosts there are: migrate host ls")
    })
}
