//! Answers the questions of other daemons, each only to a host that may ask it.

use std::sync::Arc;

use migrate_engine::transport::identity::HostName;
use serde_json::value::RawValue;

use super::check;
use super::identity;
use super::inbound;
use super::moves::record;
use super::peer::link::{Answerer, Peer};
use super::peer::pool::permit;
use super::peer::proto::{Ask, Carried, Nothing, Renewed, Whereabouts, allowed, raw};
use super::state::{Daemon, blocking};
use crate::api::moving::MoveReport;
use crate::api::{ErrorCode, Failure};

/// Answers hosts of the site.
#[derive(Debug)]
pub struct Answers(pub Arc<Daemon>);

impl Answerer for Answers {
    async fn answer(&self, peer: &Arc<Peer>, ask: Ask) -> Result<Box<RawValue>, Failure> {
        let daemon = &self.0;
        // As of now: rights may have changed, or the host been removed, since the session began.
        let site = daemon.identity()?.site;
        let rights = site.rights(&peer.name);
        if let Err(right) = allowed(&ask, rights) {
            permit(&peer.name, rights, right)?;
        }
        match ask {
            Ask::Prepare(prepare) => raw(&inbound::prepare(daemon, peer, *prepare).await?),
            Ask::Abandon(attempt) => {
                inbound::abandon(daemon, peer, attempt).await?;
                raw(&Nothing {})
            }
            Ask::Words(carried) => {
                heard(daemon, &peer.name, carried).await?;
                raw(&Nothing {})
            }
            Ask::KeepReport(report) => {
                let (daemon, name) = (Arc::clone(daemon), peer.name.clone());
                blocking(move || keep(&daemon, &name, &report)).await?;
                raw(&Nothing {})
            }
            Ask::Whereabouts(attempt) => {
                let known = daemon.moves.report(attempt.move_id).ok();
                let about = known.filter(|r| r.from.name == peer.name.as_str());
                raw(&match about {
                    Some(report) => {
                        inbound::whereabouts(daemon, attempt.attempt, report.uuid).await
                    }
                    None => Whereabouts::Nothing,
                })
            }
            Ask::Info => raw(&super::api::info(daemon).await),
            Ask::Renew(renew) => {
                let loaded = daemon.identity()?;
                let chain = identity::sign_renewal(&loaded, &renew.request, &peer.name)?;
                tracing::info!(host = %peer.name, "a certificate was renewed");
                raw(&Renewed { chain })
            }
            Ask::Hosts(said) => {
                if daemon.merge_hosts(peer, &said)? && daemon.identity()?.authority.is_some() {
                    daemon.spread(&peer.name);
                }
                raw(&daemon.identity()?.hosts)
            }
            Ask::Probe(probe) => raw(&check::listen(daemon, peer, &probe).await?),
            Ask::ProbeBack => raw(&check::probe(daemon, peer).await?),
            Ask::Remove(name) => {
                remove(daemon, &name)?;
                raw(&daemon.identity()?.hosts)
            }
            Ask::Join(_) => Err(Failure::new(
                ErrorCode::WrongState,
                "this host belongs to the site already",
                "see: migrate host ls",
            )),
        }
    }
}

/// Removes a host from the site, as far as this host knows the site, and tells the others.
///
/// # Errors
/// `usage` for this host itself; `unknown-host`; `file`.
pub fn remove(daemon: &Arc<Daemon>, name: &HostName) -> Result<(), Failure> {
    let loaded = daemon.identity()?;
    if name == loaded.name() {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!("'{name}' is this host itself"),
            "remove it on another host",
        ));
    }
    if loaded.hosts.get(name).is_none() && !loaded.hosts.removed.contains_key(name) {
        return Err(super::peer::pool::unknown(name));
    }
    daemon.change_hosts(|hosts| {
        hosts.remove(name, identity::now());
        true
    })?;
    tracing::info!(host = %name, "a host was removed from the site");
    daemon.spread(name);
    Ok(())
}

/// Brings words of the other side to the guest's process here.
async fn heard(daemon: &Arc<Daemon>, from: &HostName, carried: Carried) -> Result<(), Failure> {
    let known = daemon.moves.get(carried.move_id);
    let moved = known.filter(|m| m.peer == *from && m.uuid == carried.guest);
    let moved = moved.ok_or_else(|| super::moves::not_found(carried.move_id))?;
    moved.client.heard(&carried.words).await.map_err(|e| moved.client.failure(e))
}

/// Keeps the source's report of a move, which says more than ours.
fn keep(daemon: &Daemon, from: &HostName, report: &MoveReport) -> Result<(), Failure> {
    record::acceptable(report, from.as_str(), &daemon.host()).map_err(|what| {
        let message = format!("the report is refused: {what}");
        Failure::new(ErrorCode::BadDefinition, message, "use one release of migrate")
    })?;
    if report.from.name != from.as_str() {
        // The source is this host, whose own report stays.
        return Ok(());
    }
    let known = daemon.moves.report(report.move_id)?;
    if known.uuid != report.uuid || known.from != report.from {
        return Err(super::moves::not_found(report.move_id));
    }
    daemon.moves.keep(report);
    Ok(())
}
