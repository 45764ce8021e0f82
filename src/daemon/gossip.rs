//! How hosts learn of each other, and of those that were removed: each tells some others what it
//! knows and hears what they know, at its start, when something has happened, and now and then.
//!
//! Nothing here waits for long: a host that does not answer is asked again another time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::identity::{HostName, Removal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::identity::roster::Gossip;
use super::identity::{Known, now};
use super::peer::{Answer, Request};
use super::{Daemon, host_name, unexpected};
use crate::api::host::RemovalOutcome;
use crate::api::{ErrorCode, Failure};

/// How long one host may take.
const ONE: Duration = Duration::from_secs(6);
/// How long all of them may take together.
const ALL: Duration = Duration::from_secs(10);
/// Hosts that are asked at a time.
const AT_A_TIME: usize = 16;
/// Hosts that hear of it now and then.
const SOME: usize = 3;
/// Time between two such rounds: from half to one and a half times this.
const NOW_AND_THEN: Duration = Duration::from_mins(5);

/// `span`, more or less: hosts that started together must not ask together for ever.
fn about(span: Duration) -> Duration {
    span.mul_f64(0.5 + f64::from(Uuid::new_v4().as_bytes()[0]) / 256.0)
}

fn silent(host: &str, wait: Duration) -> Failure {
    let message = format!("host '{host}' did not answer within {} s", wait.as_secs());
    Failure::new(ErrorCode::Unreachable, message, "see its daemon's log").retryable()
}

/// Keeps this host's knowledge of the site fresh, for as long as the daemon runs.
pub async fn refresh(daemon: Arc<Daemon>) {
    loop {
        // At the start, and whenever this host has a new identity.
        daemon.spread().await;
        loop {
            let wake = timeout(about(NOW_AND_THEN), daemon.refresh.notified()).await;
            if wake.is_ok() {
                break;
            }
            let Ok(mut hosts) = daemon.files.hosts() else { continue };
            hosts.sort_by_cached_key(|_| Uuid::new_v4());
            hosts.truncate(SOME);
            daemon.spread_to(hosts).await;
        }
    }
}

impl Daemon {
    /// All hosts, this one included.
    pub(super) fn all_hosts(&self) -> Result<Vec<Known>, Failure> {
        Ok(self.gossip()?.hosts)
    }

    /// What this host knows of the site.
    pub(super) fn gossip(&self) -> Result<Gossip, Failure> {
        let roster = self.files.roster()?;
        let Some(identity) = self.identity() else { return Ok(Gossip::default()) };
        let (name, joined) = (identity.host.name().clone(), identity.host.signed());
        let (id, address, since) = (Some(self.id), self.address(), now());
        let ca = self.files.authority()?.is_some();
        Ok(roster.gossip(Known { name, id, address, since, joined, ca }))
    }

    /// Takes over what another host says.
    pub(super) fn learn(self: &Arc<Self>, said: Gossip) -> Result<(), Failure> {
        // One that names no address of its own is known by where it was seen.
        let hosts = said.hosts.into_iter().filter(|h| !h.address.starts_with(':')).collect();
        if self.files.learn(Gossip { hosts, ..said })? {
            tracing::info!("another host tells of a host that was removed");
            self.go_online()?;
        }
        Ok(())
    }

    /// Tells a host what this one knows, and hears what it knows.
    pub(super) async fn gossip_with(self: &Arc<Self>, host: &str) -> Result<(), Failure> {
        let request = Request::Gossip(Box::new(self.gossip()?));
        let told = timeout(ONE, self.ask(host, request)).await;
        let told = told.map_err(|_| silent(host, ONE))??;
        match told.answer {
            Answer::Gossip(said) => self.learn(*said),
            _ => Err(unexpected("the other daemon", &"it answered something else")),
        }
    }

    /// Tells all hosts, and hears of them. Answers those that were not told, and why.
    pub(super) async fn spread(self: &Arc<Self>) -> BTreeMap<HostName, Failure> {
        self.spread_to(self.files.hosts().unwrap_or_default()).await
    }

    async fn spread_to(self: &Arc<Self>, hosts: Vec<Known>) -> BTreeMap<HostName, Failure> {
        let late = |name: &HostName| silent(name.as_str(), ALL);
        let mut missed: BTreeMap<HostName, Failure> =
            hosts.iter().map(|h| (h.name.clone(), late(&h.name))).collect();
        let mut tasks = JoinSet::new();
        let mut left = hosts.into_iter();
        let all = async {
            loop {
                while tasks.len() < AT_A_TIME
                    && let Some(host) = left.next()
                {
                    let daemon = Arc::clone(self);
                    tasks.spawn(async move {
                        let told = daemon.gossip_with(host.name.as_str()).await;
                        (host.name, told)
                    });
                }
                match tasks.join_next().await {
                    None => return,
                    Some(Ok((name, Ok(())))) => drop(missed.remove(&name)),
                    Some(Ok((name, Err(failure)))) => {
                        tracing::debug!(host = %name, %failure, "it was not told of the hosts");
                        missed.insert(name, failure);
                    }
                    Some(Err(_)) => {}
                }
            }
        };
        let _the_rest_is_missed = timeout(ALL, all).await;
        missed
    }

    /// What is known of a host; asks the others if it is none that is known here.
    pub(super) async fn find(self: &Arc<Self>, name: &str) -> Result<Known, Failure> {
        match self.known(name) {
            Err(failure) if failure.0.code == ErrorCode::UnknownHost => {
                self.spread().await;
                self.known(name)
            }
            known => known,
        }
    }

    /// Removes a host from the site, on the host that has the CA.
    pub(super) fn remove_for_all(self: &Arc<Self>, host: &HostName) -> Result<Removal, Failure> {
        if self.identity().is_some_and(|i| i.host.name() == host) {
            return Err(Failure::new(
                ErrorCode::Usage,
                format!("'{host}' has the site's CA: without it there is no site"),
                "end the other hosts' trust one by one: on each of them, migrate host remove",
            ));
        }
        if self.files.authority()?.is_none() {
            let message = format!("'{}' has not the site's CA", self.host_ref().name);
            return Err(Failure::new(ErrorCode::NoIdentity, message, "ask the CA's host"));
        }
        let removal = self.files.remove(host)?;
        self.go_online()?;
        removal.ok_or_else(|| unexpected("the removal", &"it was not signed"))
    }

    /// Removes a host: from the site if this host or the CA's can, and from this host's trust in
    /// any case. Also answers the hosts that were not told, and why.
    pub(super) async fn remove(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<(RemovalOutcome, BTreeMap<HostName, Failure>), Failure> {
        let host = host_name(name)?;
        if self.identity().is_some_and(|i| *i.host.name() == host) {
            return Err(Failure::new(
                ErrorCode::Usage,
                format!("'{name}' is this host"),
                "remove it on another host: migrate host remove",
            ));
        }
        let outcome = |from_site, silent: BTreeMap<HostName, Failure>, error: Option<Failure>| {
            let not_told = silent.keys().map(ToString::to_string).collect();
            let error = error.map(|failure| *failure.0);
            Ok((RemovalOutcome { host: name.to_owned(), from_site, not_told, error }, silent))
        };
        let found = self.find(name).await;
        let known = match found {
            Ok(known) => Some(known),
            // It may be removed here alone, or not be known by all.
            Err(_) if self.files.roster()?.removed(&host).is_some() => None,
            Err(failure) => return Err(failure),
        };
        if self.files.authority()?.is_some() {
            if known.is_some() || !self.files.roster()?.removals.contains_key(&host) {
                self.remove_for_all(&host)?;
            }
            return outcome(true, self.spread().await, None);
        }
        // Trusted no more from now on, whatever the others say.
        self.files.remove(&host)?;
        self.go_online()?;
        if known.is_some_and(|known| known.ca) {
            return outcome(false, BTreeMap::new(), None);
        }
        match self.ask_authority(Request::Remove { host }).await {
            Ok(Answer::Removed(removal)) => {
                self.learn(Gossip { removals: vec![removal], ..Gossip::default() })?;
                outcome(true, self.spread().await, None)
            }
            Ok(_) => Err(unexpected("the other daemon", &"it answered something else")),
            Err(failure) => outcome(false, BTreeMap::new(), Some(failure)),
        }
    }

    /// Asks what only the CA's host can do.
    ///
    /// # Errors
    /// What the CA's host said; that no host that answers has the CA.
    pub(super) async fn ask_authority(&self, request: Request) -> Result<Answer, Failure> {
        let mut last = None;
        let mut hosts = self.files.hosts()?;
        hosts.sort_by_key(|h| !h.ca);
        for host in hosts {
            let asked = timeout(ONE, self.ask(host.name.as_str(), request.clone())).await;
            match asked {
                Ok(Ok(told)) => return Ok(told.answer),
                // The first word is that of the CA's host, if it is known.
                Ok(Err(failure)) if failure.0.code != ErrorCode::NoIdentity => {
                    last.get_or_insert(failure);
                }
                _ => {}
            }
        }
        Err(last.unwrap_or_else(|| {
            Failure::new(
                ErrorCode::Unreachable,
                "no host answers that has the site's CA",
                "see the hosts there are: migrate host ls",
            )
            .retryable()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_do_not_fall_together() {
        let spans: std::collections::BTreeSet<Duration> =
            (0..100).map(|_| about(NOW_AND_THEN)).collect();
        assert!(spans.len() > 10);
        assert!(spans.iter().all(|s| *s >= NOW_AND_THEN / 2 && *s < NOW_AND_THEN * 3 / 2));
    }
}
