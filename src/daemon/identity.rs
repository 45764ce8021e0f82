//! A host's identity and what it knows of its site, as files.
//!
//! | file | what it is | mode |
//! |---|---|---|
//! | `host.pem` | this host's key, its certificate and those of its issuers | 0600 |
//! | `ca.crt` | the certificates of the site's CA | 0600 |
//! | `ca.key` | the CA's key; only on the CA's host | 0600 |
//! | `site.json` | rights, and hosts that this one alone does not trust any more | 0600 |
//! | `hosts.json` | the hosts that are known, and where they listen | 0600 |
//! | `removals.json` | hosts that the CA has removed, signed | 0600 |
//! | `invitations.json` | open invitations, without their secrets | 0600 |
//!
//! The first four are configuration, the others state. Each is replaced as a whole, and key and
//! certificate are one file: whenever a host dies, it comes back with a pair that fits. A new
//! certificate of the CA is written before the host's: either goes with either. Nothing here uses
//! a network.

mod invitations;
mod replace;
pub mod roster;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use migrate_engine::transport::identity::renewal::Renewal;
use migrate_engine::transport::identity::site::Hosts;
use migrate_engine::transport::identity::{
    Authority, HostIdentity, HostKey, HostName, IdentityError, Moment, Removal, Site,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;

pub use replace::Step;
pub use roster::Known;
use roster::{Gossip, MOST, Roster};

/// This host among others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Key and certificate.
    pub host: Arc<HostIdentity>,
    /// Whom it trusts.
    pub site: Arc<Site>,
}

/// So long before its end the CA's certificate is worth a word: all have one from it by then.
const CA_WARNING: std::time::Duration = std::time::Duration::from_hours(90 * 24);
/// Begins a certificate in PEM.
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
/// The file of this host's key and certificate.
const HOST: &str = "host.pem";

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    config: PathBuf,
    state: PathBuf,
}

/// Now, as certificates count.
pub fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |d| d.as_secs());
    Moment(seconds.saturating_add_signed(crate::failpoint::skew_s()))
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("cannot {what} {}: {error}", path.display());
    Failure::new(ErrorCode::File, message, "check the directory: rights and free space")
}

/// What is wrong with a key, certificate or request.
pub fn bad(error: &IdentityError) -> Failure {
    Failure::new(ErrorCode::NoIdentity, error.to_string(), "make it again: migrate host init")
}

/// What is wrong with the age of this host's certificate or of its CA's, in words.
pub fn age_advice(identity: &Identity, now: Moment) -> Option<String> {
    let (host, ends) = (&identity.host, identity.host.not_after());
    let again = "migrate host invite on the CA's host, then here: migrate host join LINE";
    let authority = identity.site.not_after();
    match host.renewal(now) {
        Renewal::TooLate => Some(format!(
            "this host's certificate ended on {ends}, and its clock says {now}: no host talks to \
             it; if the clock is right: {again}"
        )),
        Renewal::ClockWrong => Some(format!(
            "this host's certificate was signed on {}, and its clock says {now}: one of the two \
             clocks is wrong (timedatectl), and no host talks to it",
            host.signed()
        )),
        _ if authority.minus(CA_WARNING) < now => Some(format!(
            "the certificate of the site's CA ends on {authority}, and with it the trust of all \
             hosts: put one with the same name and key that ends later into ca.crt on the CA's host"
        )),
        _ => None,
    }
}

impl Files {
    /// Those of an instance.
    pub fn new(dirs: &Dirs) -> Self {
        Self { config: dirs.config.clone(), state: dirs.state.clone() }
    }

    /// This host's identity; `None` before `host init` and `host join`.
    ///
    /// # Errors
    /// A file is missing, unreadable, or not what it should be.
    pub fn identity(&self) -> Result<Option<Identity>, Failure> {
        let Some(text) = self.text(HOST)? else { return Ok(None) };
        let need = |name: &str| {
            self.text(name)?.ok_or_else(|| {
                let path = self.config.join(name);
                failed("read", &path, &format!("it is missing although {HOST} is there"))
            })
        };
        let host = HostIdentity::from_pem(&text, &text).map_err(|e| bad(&e))?;
        let roster = self.roster()?;
        let hosts = Hosts { rights: self.site()?.rights, removed: roster.all_removed() };
        let site = Site::from_pem(&need("ca.crt")?, hosts).map_err(|e| bad(&e))?;
        Ok(Some(Identity { host: Arc::new(host), site: Arc::new(site) }))
    }

    /// The CA, if this host is its.
    ///
    /// # Errors
    /// As for [`Files::identity`].
    pub fn authority(&self) -> Result<Option<Authority>, Failure> {
        match (self.text("ca.crt")?, self.text("ca.key")?) {
            (Some(certificate), Some(key)) => {
                Authority::from_pem(&certificate, &key).map(Some).map_err(|e| bad(&e))
            }
            _ => Ok(None),
        }
    }

    /// Makes this host the first of a site, with a CA made now or `given` (certificate and key).
    ///
    /// # Errors
    /// It has an identity already; the CA is none; files cannot be written.
    pub fn init(&self, name: &HostName, given: Option<(String, String)>) -> Result<(), Failure> {
        self.refuse_second()?;
        let authority = match given {
            Some((certificate, key)) => Authority::from_pem(&certificate, &key),
            None => Authority::generate(name.as_str(), now()),
        };
        let authority = authority.map_err(|e| bad(&e))?;
        let key = HostKey::generate().map_err(|e| bad(&e))?;
        let request = key.request_pem(name).map_err(|e| bad(&e))?;
        let chain = authority.sign(&request, name, now()).map_err(|e| bad(&e))?;
        self.write_config("ca.key", authority.key_pem())?;
        self.adopt(&key, &chain, authority.certificate_pem())
    }

    /// # Errors
    /// It has an identity.
    pub fn refuse_second(&self) -> Result<(), Failure> {
        match self.text(HOST)? {
            None => Ok(()),
            Some(_) => Err(Failure::new(
                ErrorCode::FileExists,
                format!("this host has an identity already, in {}", self.config.display()),
                "keep it; for another one, move host.pem, ca.crt and ca.key away first",
            )),
        }
    }

    /// Keeps a key with its certificate and those of the site's CA, in place of those that were
    /// there.
    ///
    /// # Errors
    /// Files cannot be written; texts that are no certificates.
    pub fn adopt(&self, key: &HostKey, chain: &str, authorities: &str) -> Result<(), Failure> {
        self.adopt_until(key, chain, authorities, &mut |_, _| false)
    }

    /// The same, but stops where `killed` says so of a step of a file.
    fn adopt_until(
        &self,
        key: &HostKey,
        chain: &str,
        authorities: &str,
        killed: &mut dyn FnMut(&str, Step) -> bool,
    ) -> Result<(), Failure> {
        HostIdentity::from_pem(&key.pem(), chain).map_err(|e| bad(&e))?;
        Site::from_pem(authorities, Hosts::default()).map_err(|e| bad(&e))?;
        let host = format!("{}{chain}", key.pem());
        for (name, text) in [("ca.crt", authorities), (HOST, &host)] {
            if self.text(name)?.as_deref() == Some(text) {
                continue;
            }
            let path = self.config.join(name);
            let written = replace::replace_until(&path, text, &mut |step| killed(name, step));
            written.map_err(|e| failed("write", &path, &e))?;
        }
        Ok(())
    }

    /// Keeps a renewed certificate, if it is one that the site accepts: who answers a request for
    /// it must not be trusted to be the CA. A new certificate of the CA that comes with it is
    /// taken over, if name and key are those of one that is trusted.
    ///
    /// # Errors
    /// `host-refused` for a certificate of somebody else; files cannot be written.
    pub fn renewed(&self, key: &HostKey, chain: &str) -> Result<(), Failure> {
        let Some(now_is) = self.identity()? else { return Ok(()) };
        let renewed = HostIdentity::from_pem(&key.pem(), chain).map_err(|e| bad(&e))?;
        let refused = |why: String| {
            let message = format!("the renewed certificate is not one of this site: {why}");
            Failure::new(ErrorCode::HostRefused, message, "see which host signed it, in its log")
        };
        now_is.site.accept(&renewed, now()).map_err(|refusal| refused(refusal.to_string()))?;
        if renewed.name() != now_is.host.name() {
            return Err(refused(format!("it names {}", renewed.name())));
        }
        // A certificate ends with its CA's at the latest, and so may a new one.
        if renewed.not_after() <= now_is.host.not_after() && self.authority()?.is_none() {
            return Ok(());
        }
        let mut authorities = self.authorities()?;
        let issuers = chain.match_indices(BEGIN).nth(1).map(|(at, _)| &chain[at..]);
        if let Some(issuers) = issuers
            && let Ok(site) = Site::from_pem(issuers, Hosts::default())
            && now_is.site.has_authorities_of(&site)
            && site.has_authorities_of(&now_is.site)
            && site.not_after() > now_is.site.not_after()
        {
            issuers.clone_into(&mut authorities);
        }
        self.adopt(key, chain, &authorities)
    }

    /// Makes the CA's certificate anew when two thirds of its life are over, if the CA was made
    /// here. Whether it did.
    ///
    /// # Errors
    /// Files cannot be read or written.
    pub fn renew_authority(&self) -> Result<bool, Failure> {
        let Some(authority) = self.authority()? else { return Ok(false) };
        if !matches!(authority.renewal(now()), Renewal::Now | Renewal::TooLate) {
            return Ok(false);
        }
        let Some(new) = authority.reissue(now()).map_err(|e| bad(&e))? else { return Ok(false) };
        self.write_config("ca.crt", new.certificate_pem())?;
        Ok(true)
    }

    /// Removes what writers that were killed have left.
    pub fn sweep(&self) {
        replace::sweep(&self.config);
        replace::sweep(&self.state);
    }

    /// The certificates of the site's CA, PEM.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn authorities(&self) -> Result<String, Failure> {
        Ok(self.text("ca.crt")?.unwrap_or_default())
    }

    /// Rights, and this host's own distrust.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn site(&self) -> Result<Hosts, Failure> {
        Self::read(&self.config.join("site.json"))
    }

    /// All that is known of the site.
    ///
    /// # Errors
    /// A file is damaged.
    pub fn roster(&self) -> Result<Roster, Failure> {
        let hosts: Vec<Known> = Self::read(&self.state.join("hosts.json"))?;
        let removals: Vec<Removal> = Self::read(&self.state.join("removals.json"))?;
        let mut roster = Roster {
            hosts: hosts.into_iter().map(|h| (h.name.clone(), h)).collect(),
            removals: removals.into_iter().map(|r| (r.host.clone(), r)).collect(),
            distrusted: self.site()?.removed,
        };
        // A crash may have come between the two files.
        roster.tidy(now());
        Ok(roster)
    }

    /// Removals first: a host must not be known without them.
    fn write_roster(&self, before: &Roster, after: &Roster) -> Result<(), Failure> {
        if before.distrusted != after.distrusted {
            let rights = self.site()?.rights;
            let site = Hosts { rights, removed: after.distrusted.clone() };
            Self::write(&self.config.join("site.json"), &site)?;
        }
        if before.removals != after.removals {
            let removals: Vec<&Removal> = after.removals.values().collect();
            Self::write(&self.state.join("removals.json"), &removals)?;
        }
        if before.hosts != after.hosts {
            let hosts: Vec<&Known> = after.hosts.values().collect();
            Self::write(&self.state.join("hosts.json"), &hosts)?;
        }
        Ok(())
    }

    /// The hosts that are known.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn hosts(&self) -> Result<Vec<Known>, Failure> {
        Ok(self.roster()?.hosts.into_values().collect())
    }

    /// Notes at first hand where a host is, in place of what was known of it. An identity belongs
    /// to one host: hand-overs know hosts by it, so nobody may take that of another.
    ///
    /// # Errors
    /// `host-refused` for the identity of another host; the file cannot be read or written.
    pub fn remember(&self, host: Known) -> Result<(), Failure> {
        let before = self.roster()?;
        if let Some(other) = before.owner_of(host.id, &host.name) {
            return Err(Failure::new(
                ErrorCode::HostRefused,
                format!("host '{}' says that it is '{}': both have one id", host.name, other.name),
                format!(
                    "if it was renamed: migrate host remove {}; if its files were copied: remove \
                     host-id from the copy's state directory",
                    other.name
                ),
            ));
        }
        let mut after = before.clone();
        if after.note(host) { self.write_roster(&before, &after) } else { Ok(()) }
    }

    /// Takes over what another host says of the site; removals that the CA has not signed are
    /// left out. Whether there is a removal that was not known.
    ///
    /// # Errors
    /// Files cannot be read or written.
    pub fn learn(&self, mut said: Gossip) -> Result<bool, Failure> {
        let Some(identity) = self.identity()? else { return Ok(false) };
        let before = self.roster()?;
        said.removals.truncate(MOST);
        // Those that are known need no second look.
        said.removals.retain(|r| {
            before.removals.get(&r.host).is_none_or(|known| known.at < r.at)
                && r.is_signed(&identity.site)
        });
        let mut after = before.clone();
        if after.merge(said, identity.host.name(), now()) {
            self.write_roster(&before, &after)?;
        }
        Ok(before.removals != after.removals)
    }

    /// Removes a host from the site: refuses the certificates that it has. `None` on a host that
    /// has not the CA: it can refuse them for itself, and no more.
    ///
    /// # Errors
    /// Too many were removed lately; files cannot be read or written.
    pub fn remove(&self, name: &HostName) -> Result<Option<Removal>, Failure> {
        let before = self.roster()?;
        let mut after = before.clone();
        // Its certificate may have been signed by a clock that was ahead.
        let known = before.hosts.get(name).map(|h| h.joined).max(before.removed(name));
        let at = known.map_or(now(), |known| known.max(now()));
        let removal = match self.authority()? {
            Some(authority) => Some(authority.remove(name, at).map_err(|e| bad(&e))?),
            None => None,
        };
        let full = before.removals.len() >= MOST && !before.removals.contains_key(name);
        match &removal {
            Some(_) if full => {
                let message =
                    format!("{MOST} hosts were removed in the last 100 days, which is all");
                return Err(Failure::new(ErrorCode::Busy, message, "make a new site"));
            }
            Some(removal) => drop(after.removals.insert(name.clone(), removal.clone())),
            None => drop(after.distrusted.insert(name.clone(), at)),
        }
        after.tidy(now());
        self.write_roster(&before, &after)?;
        Ok(removal)
    }

    /// Signs a certificate for `name`.
    ///
    /// # Errors
    /// This host is not the CA's, or the request is for something else.
    pub fn sign(&self, name: &HostName, request: &str) -> Result<String, Failure> {
        self.sign_at(name, request, now())
    }

    fn sign_at(&self, name: &HostName, request: &str, at: Moment) -> Result<String, Failure> {
        let authority = self.authority()?.ok_or_else(|| {
            Failure::new(ErrorCode::NoIdentity, "this host has not the site's CA", "ask the CA's")
        })?;
        authority.sign(request, name, at).map_err(|e| bad(&e))
    }

    fn text(&self, name: &str) -> Result<Option<String>, Failure> {
        let path = self.config.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path, &e)),
        }
    }

    fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, Failure> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed("read", path, &e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(T::default()),
            Err(e) => Err(failed("read", path, &e)),
        }
    }

    fn write(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|e| failed("write", path, &e))?;
        replace::replace(path, &text).map_err(|e| failed("write", path, &e))
    }

    fn write_config(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.config.join(name);
        replace::replace(&path, text).map_err(|e| failed("write", &path, &e))
    }
}

#[cfg(test)]
mod tests;
