//! The hosts of a site as one host knows them, and how that knowledge spreads.
//!
//! A host speaks for itself: what it says of itself over its own session counts most. What others
//! say of it only helps to find it; who it is, its certificate proves. Removals count whoever
//! brings them, as the CA has signed them. Merging is the same in any order and any number of
//! times, and never brings back what was removed.

use std::collections::BTreeMap;
use std::time::Duration;

use migrate_engine::transport::identity::renewal::HOST_LIFETIME;
use migrate_engine::transport::identity::{HostName, Moment, Removal};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most hosts of a site, and most removals that are kept.
pub const MOST: usize = 1024;
/// Longest address, in bytes.
const ADDRESS_MAX: usize = 260;
/// What hosts say of times later than this from now is taken for now.
const AHEAD: Duration = Duration::from_hours(1);
/// How long a removal matters: the certificates that it refuses have run out by then.
const MATTERS: Duration = HOST_LIFETIME.saturating_add(Duration::from_hours(10 * 24));
/// A host that is heard again is noted again after this long.
const STALE: Duration = Duration::from_hours(1);

/// A host that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Name in the site.
    pub name: HostName,
    /// Identity, once it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where its daemon listens, `HOST:PORT`.
    pub address: String,
    /// When it was last heard there; 0 before it was heard at all. The later word counts.
    #[serde(default = "never")]
    pub since: Moment,
    /// When its certificate was signed. One that was removed later is no host of the site.
    #[serde(default = "never")]
    pub joined: Moment,
    /// It has the site's CA, as it or others say.
    #[serde(default)]
    pub ca: bool,
}

fn never() -> Moment {
    Moment(0)
}

/// What one host tells another of the site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gossip {
    /// The hosts that are known.
    pub hosts: Vec<Known>,
    /// The hosts that were removed.
    pub removals: Vec<Removal>,
}

/// All that a host knows of its site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Hosts, by name.
    pub hosts: BTreeMap<HostName, Known>,
    /// Hosts that the CA has removed.
    pub removals: BTreeMap<HostName, Removal>,
    /// Hosts that this one does not trust any more, by its own word, and since when.
    pub distrusted: BTreeMap<HostName, Moment>,
}

/// Whether a text can be `HOST:PORT`, or `:PORT`.
fn is_address(text: &str) -> bool {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    text.len() <= ADDRESS_MAX && text.bytes().all(|b| b.is_ascii_graphic()) && port.is_some()
}

fn matters(removed: Moment, now: Moment) -> bool {
    removed.plus(MATTERS) > now
}

impl Roster {
    /// When a host was last removed, by the CA or by this host alone.
    pub fn removed(&self, name: &HostName) -> Option<Moment> {
        let signed = self.removals.get(name).map(|removal| removal.at);
        signed.max(self.distrusted.get(name).copied())
    }

    /// All removals, for the handshake.
    pub fn all_removed(&self) -> BTreeMap<HostName, Moment> {
        let names = self.removals.keys().chain(self.distrusted.keys());
        names.filter_map(|name| Some((name.clone(), self.removed(name)?))).collect()
    }

    fn is_over(&self, host: &Known) -> bool {
        self.removed(&host.name).is_some_and(|removed| host.joined <= removed)
    }

    /// Forgets the hosts that were removed since they joined, and removals that do not matter any
    /// more.
    pub fn tidy(&mut self, now: Moment) {
        self.removals.retain(|_, removal| matters(removal.at, now));
        self.distrusted.retain(|_, at| matters(*at, now));
        let over: Vec<HostName> =
            self.hosts.values().filter(|h| self.is_over(h)).map(|h| h.name.clone()).collect();
        for name in over {
            self.hosts.remove(&name);
        }
    }

    /// The other host that has this identity: it belongs to one host.
    pub fn owner_of(&self, id: Option<Uuid>, but: &HostName) -> Option<&Known> {
        self.hosts.values().find(|h| h.id.is_some() && h.id == id && h.name != *but)
    }

    /// Notes what is known at first hand. Whether that is worth writing down.
    pub fn note(&mut self, host: Known) -> bool {
        let full = self.hosts.len() >= MOST && !self.hosts.contains_key(&host.name);
        if full || !is_address(&host.address) || self.is_over(&host) {
            return false;
        }
        let before = self.hosts.get(&host.name);
        let id = host.id.or(before.and_then(|b| b.id));
        let ca = host.ca || before.is_some_and(|b| b.ca);
        if let Some(b) = before {
            let same = (b.id, &b.address, b.joined, b.ca) == (id, &host.address, host.joined, ca);
            if same && b.since.plus(STALE) > host.since && b.since <= host.since {
                return false;
            }
        }
        self.hosts.insert(host.name.clone(), Known { id, ca, ..host });
        true
    }

    /// Takes over what another host says; the removals must have been found to be signed.
    /// Whether anything is new.
    pub fn merge(&mut self, said: Gossip, own: &HostName, now: Moment) -> bool {
        let before = self.clone();
        for removal in said.removals.into_iter().take(MOST) {
            let known = self.removals.get(&removal.host);
            let room = known.is_some() || self.removals.len() < MOST;
            if room && matters(removal.at, now) && known.is_none_or(|known| known.at < removal.at) {
                self.removals.insert(removal.host.clone(), removal);
            }
        }
        self.tidy(now);
        for mut host in said.hosts.into_iter().take(MOST).filter(|h| h.name != *own) {
            let latest = now.plus(AHEAD);
            host.since = if host.since > latest { now } else { host.since };
            host.joined = if host.joined > latest { now } else { host.joined };
            let known = self.hosts.get(&host.name);
            let joined = known.map_or(host.joined, |k| k.joined.max(host.joined));
            let ca = host.ca || known.is_some_and(|k| k.ca);
            let later = known.is_none_or(|k| k.since < host.since);
            let room = known.is_some() || self.hosts.len() < MOST;
            let theft = self.owner_of(host.id, &host.name).is_some()
                || known.is_some_and(|k| k.id.is_some() && host.id.is_some() && k.id != host.id);
            if later && room && !theft && is_address(&host.address) && !self.is_over(&host) {
                let id = host.id.or(known.and_then(|k| k.id));
                self.hosts.insert(host.name.clone(), Known { id, joined, ca, ..host });
            } else if let Some(known) = self.hosts.get_mut(&host.name) {
                (known.joined, known.ca) = (joined, ca);
            }
        }
        *self != before
    }

    /// What to tell others. `own` is this host.
    pub fn gossip(&self, own: Known) -> Gossip {
        let mut hosts: Vec<Known> =
            self.hosts.values().filter(|h| h.name != own.name).cloned().collect();
        hosts.push(own);
        Gossip { hosts, removals: self.removals.values().cloned().collect() }
    }
}

#[cfg(test)]
mod tests;
