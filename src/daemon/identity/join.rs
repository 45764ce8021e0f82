//! Joining a site: the side of the host that was invited. The CA's host is proved by the
//! fingerprint in the invitation before the secret is said.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::identity::{
    Fingerprint, HostIdentity, HostKey, HostName, Invitation, Rights, Site, site,
};
use migrate_engine::transport::link::CloseCode;
use migrate_engine::transport::quic::hosts::Inviter;
use migrate_engine::transport::quic::{self, ConnectError, Session, dial_to_join};
use serde_json::value::RawValue;

use super::files::{self, Paths};
use super::{Made, choose_name, failure, hosts::Hosts, lock, now, write_hosts, write_identity};
use crate::api::client::runtime;
use crate::api::moving::HostRef;
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, hex, host_id};
use crate::daemon::PROGRAM;
use crate::daemon::peer::link::{Answerer, Peer, greet, not_connected};
use crate::daemon::peer::proto::{Ask, Hello, Join, Joined, VERSIONS};
use crate::daemon::settings::Settings;

/// How long the CA's host may take to sign.
const SIGN_DEADLINE: Duration = Duration::from_secs(20);

/// Joins the site of the host that made the invitation `line`, under `name`, the name in
/// `host.toml`, or the hostname. The files are written when everything is there.
///
/// # Errors
/// `usage` for a damaged line or a bad name; `unreachable` or `host-refused` with the cause;
/// `wrong-state` if this host belongs to a site already and its certificate is good.
pub fn join(dirs: &Dirs, line: &str, name: Option<&str>) -> Result<Made, Failure> {
    let settings = Settings::read(dirs)?;
    let invitation: Invitation = line.parse().map_err(|e| bad_line(&e))?;
    invitation.check_time(now()).map_err(|e| bad_line(&e))?;
    let name = choose_name(name, &settings)?;
    let paths = Paths::of(dirs);
    let _lock = lock(&paths)?;
    may_join(dirs, &settings, &name)?;
    let key = HostKey::generate().map_err(failure)?;
    let hello = Hello {
        versions: VERSIONS.to_vec(),
        program: PROGRAM.into(),
        host: HostRef { id: host_id(dirs)?, name: name.to_string() },
        address: settings.advertise.clone(),
        port: settings.listen.port(),
    };
    let join = Join {
        secret: hex::encode(&invitation.secret().bytes()),
        request: key.request_pem(&name).map_err(failure)?,
    };
    let runtime = runtime().map_err(|e| {
        Failure::new(ErrorCode::Unexpected, format!("no reactor can be had: {e}"), "")
    })?;
    let (inviter, authority, joined) = runtime.block_on(ask(&invitation, &hello, join))?;
    take(&paths, &key, &name, &joined, authority, &inviter, &invitation)?;
    Ok(Made { schema: 1, name: name.to_string(), ca: false })
}

/// A host whose certificate has run out or that was removed may join again.
fn may_join(dirs: &Dirs, settings: &Settings, name: &HostName) -> Result<(), Failure> {
    let Some(there) = super::Loaded::read(dirs, settings)? else { return Ok(()) };
    if there.authority.is_some() {
        return Err(Failure::new(
            ErrorCode::WrongState,
            format!("this host has the CA of a site of its own, as '{}'", there.name()),
            format!("to give that site up, remove {}", Paths::of(dirs).authority_key().display()),
        ));
    }
    if there.name() != name {
        return Err(Failure::new(
            ErrorCode::WrongState,
            format!("this host belongs to a site already, as '{}'", there.name()),
            format!("join under that name, or remove {}", Paths::of(dirs).certificate().display()),
        ));
    }
    Ok(())
}

async fn ask(
    invitation: &Invitation,
    hello: &Hello,
    join: Join,
) -> Result<(HostName, Fingerprint, Joined), Failure> {
    let Session { peer: inviter, address, mut control, handle } = dial(invitation).await?;
    let theirs = greet(&mut control, &handle, hello).await?;
    let name = inviter.name.clone();
    let peer = Peer::new(name, theirs, address, Rights::NONE, control.sender, handle);
    let peer = Arc::new(peer);
    let serving = tokio::spawn(Arc::clone(&peer).serve(control.receiver, Arc::new(Mute)));
    let joined = peer.ask::<Joined>(&Ask::Join(join), SIGN_DEADLINE).await;
    peer.close(CloseCode::Done, "joined");
    let _ = serving.await;
    Ok((inviter.name, inviter.authority, joined?))
}

async fn dial(invitation: &Invitation) -> Result<Session<Inviter>, Failure> {
    let address = invitation.address();
    let settings = quic::Settings::default();
    let mut last = Failure::new(
        ErrorCode::Unreachable,
        format!("the address {address} stands for nothing"),
        "invite again with another address: migrate host invite --address HOST:PORT",
    );
    for one in resolve(address).await? {
        match dial_to_join(one, invitation.authority(), &settings).await {
            Ok(session) => return Ok(session),
            Err(e) => {
                last = not_connected(address, &e);
                if !matches!(e, ConnectError::Unreachable { .. } | ConnectError::Here { .. }) {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Answers nothing: this host is not of the site yet.
struct Mute;

impl Answerer for Mute {
    async fn answer(&self, _: &Arc<Peer>, _: Ask) -> Result<Box<RawValue>, Failure> {
        Err(Failure::new(ErrorCode::WrongState, "this host is just joining", ""))
    }
}

/// Checks everything that the CA's host handed over, then writes it.
fn take(
    paths: &Paths,
    key: &HostKey,
    name: &HostName,
    joined: &Joined,
    authority: Fingerprint,
    inviter: &HostName,
    invitation: &Invitation,
) -> Result<(), Failure> {
    let refuse = |what: &str| {
        Failure::new(ErrorCode::HostRefused, what, "see the log of the inviting host's daemon")
    };
    let identity = HostIdentity::from_pem(&key.pem(), &joined.chain).map_err(failure)?;
    if identity.name() != name {
        return Err(refuse("the certificate that came is for another host"));
    }
    let site = Site::from_pem(&joined.authorities, site::Hosts::default()).map_err(failure)?;
    if !site.fingerprints().any(|print| print == authority) {
        return Err(refuse("the CA that came is not the one of the invitation"));
    }
    let mut hosts = Hosts { authority: Some(inviter.clone()), ..Hosts::default() };
    hosts.merge(&joined.hosts, inviter, true);
    // However the inviting host calls itself: at this address it was reached.
    if hosts.get(inviter).is_none() {
        hosts.note(inviter, None, invitation.address(), now());
    }
    hosts.authority = Some(inviter.clone());
    write_hosts(paths, &hosts)?;
    files::write(&paths.authority(), &joined.authorities, 0o644)?;
    write_identity(paths, key, &joined.chain)
}

fn bad_line(error: &dyn std::fmt::Display) -> Failure {
    let remedy = "paste the whole line that 'migrate host invite' printed";
    Failure::new(ErrorCode::Usage, error.to_string(), remedy)
}

/// The addresses that `HOST:PORT` stands for.
///
/// # Errors
/// `unreachable` if the name is not known.
pub async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Failure> {
    let found = tokio::net::lookup_host(address).await;
    let found: Vec<SocketAddr> = match found {
        Ok(found) => found.collect(),
        Err(e) => {
            return Err(Failure::new(
                ErrorCode::Unreachable,
                format!("the address {address} cannot be looked up: {e}"),
                "check the name, or give an IP address",
            )
            .retryable());
        }
    };
    Ok(found)
}
