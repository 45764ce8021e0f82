//! The daemon's process: one for each instance, ready when its API answers, stopped by a signal.
//! Guests are not its children in any sense that matters: they outlive it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use migrate_engine::transport::identity::renewal::Renewal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::identity::{self, Loaded};
use super::launcher::Launcher;
use super::moves::adopt;
use super::peer::link::ANSWER_DEADLINE;
use super::peer::pool;
use super::peer::proto::{Ask, Renew, Renewed};
use super::settings::Settings;
use super::state::{Daemon, blocking};
use super::{api, net};
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, host_id};
use crate::guest::lockfile::LockFile;

/// How often ended processes are collected.
const COLLECT: Duration = Duration::from_secs(1);
/// How often certificates and the site are looked at.
const UPKEEP: Duration = Duration::from_mins(10);
/// How long requests get to be answered after the order to stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// How the service runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End when the process that started it ends.
    pub end_with_parent: bool,
}

/// Runs the service until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// `busy` if one runs already for this instance; `file` or `bad-definition` if its files cannot
/// be used.
pub fn run(dirs: &Dirs, options: &Options) -> Result<(), Failure> {
    dirs.prepare()?;
    let lock_path = dirs.run.join("daemon.lock");
    let lock = LockFile::take(&lock_path).map_err(|e| {
        let message = format!("cannot lock {}: {e}", lock_path.display());
        Failure::new(ErrorCode::File, message, "check the runtime directory: migrate help files")
    })?;
    let Some(_lock) = lock else {
        return Err(Failure::new(
            ErrorCode::Busy,
            format!("a daemon of this instance runs already ({})", dirs.run.display()),
            "see it: migrate host show",
        ));
    };
    let settings = Settings::read(dirs)?;
    let loaded = Loaded::read(dirs, &settings)?;
    let id = host_id(dirs)?;
    let daemon = Daemon::new(dirs.clone(), id, settings, loaded, Launcher::processes());
    let runtime = crate::api::client::runtime().map_err(|e| unexpected("no reactor", &e))?;
    let served = runtime.block_on(serve(Arc::new(daemon), options.end_with_parent));
    // Work that blocks (a receiver that is being started) does not keep the daemon.
    runtime.shutdown_background();
    served
}

fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the daemon's log")
}

async fn serve(daemon: Arc<Daemon>, end_with_parent: bool) -> Result<(), Failure> {
    let (stop, stopped) = watch::channel(false);
    let no_signals = |e: std::io::Error| unexpected("no signals", &e);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    let system = daemon.dirs.run == std::path::Path::new("/run/migrate");
    let path = daemon.dirs.daemon_socket();
    let listener = api::bind(&path, system)?;
    match daemon.identity() {
        Ok(_) => net::open(&daemon, stopped.clone())?,
        Err(none) => tracing::warn!("{none}; {}", none.0.remedy),
    }
    adopt::adopt(&daemon).await?;
    tokio::spawn(upkeep(Arc::clone(&daemon)));
    tokio::spawn(collect(Arc::clone(&daemon)));
    let mut ending = stopped.clone();
    let router = api::router(Arc::clone(&daemon), stopped);
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        let _ = ending.wait_for(|stop| *stop).await;
    });
    let server = tokio::spawn(server.into_future());
    tracing::info!(socket = %path.display(), "ready");
    notify("READY=1");
    let parent = std::os::unix::process::parent_id();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let work = Arc::clone(&daemon);
                if let Err(error) = blocking(move || work.reload()).await {
                    tracing::error!(%error, "the files were not read again");
                }
            }
            () = orphaned(parent), if end_with_parent => break,
        }
    }
    tracing::info!("stopping; guests go on");
    notify("STOPPING=1");
    stop.send_replace(true);
    let _ = tokio::time::timeout(FAREWELL, server).await;
    let _ = std::fs::remove_file(path);
    // Peers are told that the daemon stops.
    let closed = async {
        while daemon.port().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, closed).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// Until the process `parent` is not our parent any more.
async fn orphaned(parent: u32) {
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Tells systemd, if it started us.
fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let told = || {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let bytes = socket.as_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&socket)?,
        };
        let datagram = std::os::unix::net::UnixDatagram::unbound()?;
        datagram.send_to_addr(state.as_bytes(), &address)
    };
    if let Err(error) = told() {
        tracing::warn!(%error, "systemd was not told");
    }
}

async fn collect(daemon: Arc<Daemon>) {
    loop {
        tokio::time::sleep(COLLECT).await;
        daemon.launcher.collect();
    }
}

/// Work that recurs: the watchdog hears of us, certificates are renewed, the site is asked about,
/// old reports are removed.
async fn upkeep(daemon: Arc<Daemon>) {
    loop {
        if let Err(error) = renew(&daemon).await {
            tracing::warn!(%error, "the certificate was not renewed; it is tried again");
        }
        if let Ok(loaded) = daemon.identity()
            && let Some(authority) = loaded.hosts.authority.as_ref().filter(|a| *a != loaded.name())
            && let Err(error) = daemon.exchange_hosts(authority).await
        {
            tracing::debug!(%error, "the CA's host was not asked for the hosts of the site");
        }
        let store = daemon.moves.store.clone();
        let pruned = blocking(move || {
            store.prune(SystemTime::now()).map_err(|e| unexpected("old reports", &e))
        });
        if let Err(error) = pruned.await {
            tracing::warn!(%error, "old reports cannot be removed");
        }
        tokio::time::sleep(UPKEEP).await;
    }
}

/// Renews this host's certificate when it is due. One that has run out stops no guest.
async fn renew(daemon: &Arc<Daemon>) -> Result<(), Failure> {
    let Ok(loaded) = daemon.identity() else { return Ok(()) };
    match loaded.identity.renewal(identity::now()) {
        Renewal::At(_) => return Ok(()),
        Renewal::Now => {}
        Renewal::TooLate if loaded.authority.is_some() => {}
        Renewal::TooLate => {
            let message = "this host's certificate has run out: other hosts refuse it";
            let remedy = "join again: migrate host invite there, migrate host join here";
            return Err(Failure::new(ErrorCode::HostRefused, message, remedy));
        }
        Renewal::ClockWrong => {
            let message = "this host's certificate is not valid yet: a clock is wrong";
            let remedy = "set the clock on both hosts: timedatectl set-ntp true";
            return Err(Failure::new(ErrorCode::HostRefused, message, remedy));
        }
    }
    let request = identity::renewal_request(&daemon.dirs, &loaded)?;
    let chain = if loaded.authority.is_some() {
        identity::sign_renewal(&loaded, &request, loaded.name())?
    } else {
        let Some(authority) = &loaded.hosts.authority else {
            return Err(unexpected("renewal", &"it is not known who has the CA"));
        };
        let peer = pool::peer(daemon, authority).await?;
        let ask = Ask::Renew(Renew { request });
        peer.ask::<Renewed>(&ask, ANSWER_DEADLINE).await?.chain
    };
    identity::put_renewed(&daemon.dirs, &loaded, &chain)?;
    daemon.reload()?;
    tracing::info!("the certificate was renewed");
    Ok(())
}
