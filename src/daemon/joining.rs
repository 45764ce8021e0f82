//! `host init`, `host join`, and the renewal of certificates.

use std::time::Duration;

use migrate_engine::transport::identity::{Fingerprint, HostKey, HostName, Invitation};
use migrate_engine::transport::link::{Close, CloseCode};
use migrate_engine::transport::quic::{Session, Settings, dial_to_join};

use super::config::Config;
use super::identity::{Files, bad, now};
use super::peer::{Answer, Question, Reply, Request, VERSIONS, decode};
use super::{Daemon, host_name, peers, unexpected};
use crate::api::client::runtime;
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, hex, host_id};

/// How long joining may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name to use: the one asked for, or that of `host.toml`, or the hostname.
fn own_name(dirs: &Dirs, asked: Option<&str>) -> Result<(HostName, Config), Failure> {
    let config = Config::read(&dirs.config.join("host.toml"))?;
    let hostname = || nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let name = asked.map(str::to_owned).or_else(|| config.name.clone()).unwrap_or_else(hostname);
    let name = host_name(&name).map_err(|mut failure| {
        failure.0.remedy = "give a name: --name HOST".into();
        failure
    })?;
    Ok((name, config))
}

/// Makes this host the first of a site; answers its name.
///
/// # Errors
/// It has an identity, a name is none, files cannot be written or read.
pub fn init(
    dirs: &Dirs,
    name: Option<&str>,
    ca: Option<(String, String)>,
) -> Result<HostName, Failure> {
    dirs.prepare()?;
    let (name, _) = own_name(dirs, name)?;
    host_id(dirs)?;
    Files::new(dirs).init(&name, ca)?;
    Ok(name)
}

/// Joins the site of an invitation; answers this host's name.
///
/// # Errors
/// The invitation is damaged or over; its host cannot be reached or refuses.
pub fn join(dirs: &Dirs, line: &str, name: Option<&str>) -> Result<HostName, Failure> {
    dirs.prepare()?;
    let files = Files::new(dirs);
    let before = files.identity()?;
    let kept = before.as_ref().map(|i| i.host.name().to_string());
    let (name, config) = own_name(dirs, name.or(kept.as_deref()))?;
    let refused = |e: &dyn std::fmt::Display| {
        Failure::new(ErrorCode::Usage, e.to_string(), "make a new one: migrate host invite")
    };
    let invitation: Invitation = line.parse().map_err(|e| refused(&e))?;
    invitation.check_time(now()).map_err(|e| refused(&e))?;
    // A host that was removed, or whose certificate has run out, joins its site again; to another
    // site it goes only if somebody takes its identity away first.
    let same = |i: &super::identity::Identity| {
        i.site.fingerprints().any(|print| invitation.authority() == print.into())
    };
    if files.authority()?.is_some() || before.is_some_and(|i| !same(&i)) {
        files.refuse_second()?;
    }
    let runtime = runtime().map_err(|e| unexpected("joining", &e))?;
    let joined = async {
        let work = ask_in(dirs, &config, &invitation, &name);
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
            let message = "the host of the invitation did not answer in time";
            Err(Failure::new(ErrorCode::Unreachable, message, "see its daemon's log").retryable())
        })
    };
    runtime.block_on(joined)?;
    Ok(name)
}

async fn ask_in(
    dirs: &Dirs,
    config: &Config,
    invitation: &Invitation,
    name: &HostName,
) -> Result<(), Failure> {
    let files = Files::new(dirs);
    let address = peers::resolve(invitation.address()).await?;
    let session = dial_to_join(address, invitation.authority(), &Settings::default()).await;
    let session = session.map_err(|e| peers::not_connected(invitation.address(), &e))?;
    let Session { peer: inviter, mut control, handle, .. } = session;
    let key = HostKey::generate().map_err(|e| bad(&e))?;
    let request = key.request_pem(name).map_err(|e| bad(&e))?;
    let listen = config.listen;
    let own = if listen.ip().is_unspecified() {
        format!(":{}", listen.port())
    } else {
        listen.to_string()
    };
    let question = Question {
        versions: VERSIONS.to_vec(),
        from: HostRef { id: host_id(dirs)?, name: name.to_string() },
        address: config.advertise.clone().unwrap_or(own),
        request: Request::Join {
            secret: hex::encode(&invitation.secret().bytes()),
            name: name.clone(),
            request,
        },
    };
    peers::send(&control, &question).await?;
    let lost = |e: &dyn std::fmt::Display| {
        let message = format!("the host of the invitation went away: {e}");
        Failure::new(ErrorCode::Unreachable, message, "try again").retryable()
    };
    let frame = control.receiver.recv().await.map_err(|e| lost(&e))?;
    let reply: Reply = decode(&frame.ok_or_else(|| lost(&"the session ended"))?)?;
    handle.close(Close::new(CloseCode::Done, ""));
    let answer = reply.answer.map_err(|body| Failure(Box::new(body)))?;
    let Answer::Joined { chain, authorities, hosts } = answer else {
        return Err(unexpected("joining", &"the answer is to something else"));
    };
    let site = migrate_engine::transport::identity::Site::from_pem(
        &authorities,
        migrate_engine::transport::identity::site::Hosts::default(),
    )
    .map_err(|e| bad(&e))?;
    let prints: Vec<Fingerprint> = site.fingerprints().collect();
    if prints != [inviter.authority] {
        let message = "the host handed over the certificate of another CA than the invitation's";
        return Err(Failure::new(ErrorCode::HostRefused, message, "do not trust that host"));
    }
    for mut host in hosts.into_iter().filter(|h| h.name != *name) {
        if host.name == inviter.name {
            // As it was reached, whatever it thinks of itself.
            invitation.address().clone_into(&mut host.address);
        }
        // Whom it cannot note it finds later.
        if let Err(failure) = files.remember(host) {
            tracing::warn!(%failure, "a host of the site was not noted");
        }
    }
    files.adopt(&key, &chain, &authorities)
}

/// Gets a new certificate for this host from the host that has the CA, or makes it here.
///
/// # Errors
/// Nobody signs it; the one who does is not of this site.
pub(super) async fn renew(daemon: &std::sync::Arc<Daemon>, name: &HostName) -> Result<(), Failure> {
    let key = HostKey::generate().map_err(|e| bad(&e))?;
    let request = key.request_pem(name).map_err(|e| bad(&e))?;
    let chain = if daemon.files.authority()?.is_some() {
        daemon.files.sign(name, &request)?
    } else {
        match daemon.ask_authority(Request::Renew { request }).await? {
            Answer::Certificate(chain) => chain,
            _ => return Err(unexpected("the other daemon", &"it answered something else")),
        }
    };
    daemon.files.renewed(&key, &chain)?;
    daemon.go_online()
}
