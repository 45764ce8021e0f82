//! The hosts of the site as one host knows them, and how that knowledge spreads. Pure.
//!
//! A host may say where it is itself. Where others are, who was removed and who has the CA, only
//! the CA's host says, or one that was given the right to control.

use std::collections::BTreeMap;

use migrate_engine::transport::identity::{HostName, Moment, site};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::daemon::settings::{Settings, check_address};

/// Most hosts of a site.
pub const MOST: usize = 1024;

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its identity, once it has said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// `HOST:PORT` of its daemon.
    pub address: String,
    /// When this became so; the later word counts.
    pub since: Moment,
}

/// All hosts of the site, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// The host that has the site's CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<HostName>,
    /// By name.
    #[serde(default)]
    pub hosts: BTreeMap<HostName, Entry>,
    /// Hosts that were removed, and when.
    #[serde(default)]
    pub removed: BTreeMap<HostName, Moment>,
}

impl Hosts {
    /// Where `name` is. One that was removed later than it was seen is not known.
    pub fn get(&self, name: &HostName) -> Option<&Entry> {
        self.hosts.get(name).filter(|entry| !self.is_over(name, entry))
    }

    fn is_over(&self, name: &HostName, entry: &Entry) -> bool {
        self.removed.get(name).is_some_and(|removed| entry.since <= *removed)
    }

    /// Notes that `name` has been at `address` since `now`; whether that is news.
    pub fn note(&mut self, name: &HostName, id: Option<Uuid>, address: &str, now: Moment) -> bool {
        let full = self.hosts.len() >= MOST && !self.hosts.contains_key(name);
        if full || check_address(address).is_err() {
            return false;
        }
        let known = self.hosts.get(name);
        if known.is_some_and(|k| k.address == address && (k.id == id || id.is_none())) {
            return false;
        }
        let id = id.or(known.and_then(|k| k.id));
        // A clock that was set back does not make old what is new.
        let since = known.map_or(now, |k| now.max(Moment(k.since.0.saturating_add(1))));
        self.hosts.insert(name.clone(), Entry { id, address: address.to_owned(), since });
        true
    }

    /// Removes `name` at `now`: whoever was signed until now is refused.
    pub fn remove(&mut self, name: &HostName, now: Moment) {
        self.hosts.remove(name);
        self.removed.insert(name.clone(), now);
    }

    /// Takes over what `from` says. `may_tell` means that it may speak of others. Whether
    /// anything changed.
    pub fn merge(&mut self, said: &Self, from: &HostName, may_tell: bool) -> bool {
        let before = self.clone();
        if may_tell {
            for (name, at) in said.removed.iter().take(MOST) {
                let known = self.removed.entry(name.clone()).or_insert(*at);
                *known = (*known).max(*at);
            }
            if said.authority.is_some() {
                self.authority.clone_from(&said.authority);
            }
        }
        for (name, entry) in said.hosts.iter().take(MOST) {
            let newer = self.hosts.get(name).is_none_or(|known| known.since < entry.since);
            let room = self.hosts.len() < MOST || self.hosts.contains_key(name);
            let fits = check_address(&entry.address).is_ok() && room;
            if (may_tell || name == from) && newer && fits {
                self.hosts.insert(name.clone(), entry.clone());
            }
        }
        let gone: Vec<HostName> = self
            .hosts
            .iter()
            .filter(|(name, entry)| self.is_over(name, entry))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.hosts.remove(&name);
        }
        *self != before
    }

    /// What decisions about peers need.
    pub fn site_hosts(&self, settings: &Settings) -> site::Hosts {
        site::Hosts { rights: settings.rights.clone(), removed: self.removed.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_speaks_for_itself_and_the_ca_for_all() {
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let mut mine = Hosts::default();
        assert!(mine.note(&a, None, "10.0.0.1:7420", Moment(10)));
        assert!(!mine.note(&a, None, "10.0.0.1:7420", Moment(20)), "that is no news");

        let mut said = Hosts { authority: Some(b.clone()), ..Hosts::default() };
        said.note(&b, Some(Uuid::from_u128(2)), "10.0.0.2:7420", Moment(5));
        said.note(&c, None, "6.6.6.6:7420", Moment(5));
        said.remove(&a, Moment(50));
        assert!(mine.merge(&said, &b, false));
        assert!(mine.get(&b).is_some() && mine.get(&a).is_some());
        assert!(mine.get(&c).is_none() && mine.authority.is_none());

        assert!(mine.merge(&said, &b, true));
        assert!(mine.get(&a).is_none() && mine.get(&c).is_some());
        assert!(!mine.merge(&said, &b, true));

        // It comes back later.
        assert!(mine.note(&a, None, "10.0.0.9:7420", Moment(60)));
        assert!(!mine.merge(&said, &b, true));
        assert_eq!(mine.get(&a).unwrap().address, "10.0.0.9:7420");
    }

    #[test]
    fn the_later_word_counts_and_nonsense_never() {
        let a = name("a");
        let mut mine = Hosts::default();
        mine.note(&a, None, "new:1", Moment(10));
        let mut old = Hosts::default();
        old.note(&a, None, "old:1", Moment(9));
        assert!(!mine.merge(&old, &a, true));
        assert!(mine.note(&a, None, "newer:1", Moment(3)), "a clock that was set back");
        assert!(mine.get(&a).unwrap().since > Moment(10));
        assert!(!mine.note(&a, None, "no address", Moment(99)));
        let text = r#"{"hosts":{"a":{"address":"\u0000","since":999}}}"#;
        let bad: Hosts = serde_json::from_str(text).unwrap();
        assert!(!mine.merge(&bad, &a, true));
        assert!(serde_json::from_str::<Hosts>(r#"{"hosts":{"A B":{}}}"#).is_err());
        let many: Hosts = Hosts {
            hosts: (0..3000)
                .map(|n| {
                    let entry = Entry { id: None, address: "x:1".into(), since: Moment(1) };
                    (name(&format!("h{n}")), entry)
                })
                .collect(),
            ..Hosts::default()
        };
        mine.merge(&many, &a, true);
        assert!(mine.hosts.len() <= MOST);
    }
}
