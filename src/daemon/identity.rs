//! A host's identity and what it knows of its site, as files.
//!
//! | file | what it is | mode |
//! |---|---|---|
//! | `host.key`, `host.crt` | this host's key; its certificate and those of its issuers | 0600 |
//! | `ca.crt` | the certificates of the site's CA | 0600 |
//! | `ca.key` | the CA's key; only on the CA's host | 0600 |
//! | `site.json` | rights and removed hosts | 0600 |
//! | `hosts.json` | the hosts that are known, and where they listen | 0600 |
//! | `invitations.json` | open invitations, without their secrets | 0600 |
//!
//! The first four are configuration, the others state. Each is replaced as a whole. Nothing here
//! uses a network.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use migrate_engine::transport::identity::invitation::{Offer, Secret};
use migrate_engine::transport::identity::site::Hosts;
use migrate_engine::transport::identity::{
    Authority, HostIdentity, HostKey, HostName, IdentityError, Invitation, Moment, Site,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::config::Dirs;

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
}

/// This host among others.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Key and certificate.
    pub host: Arc<HostIdentity>,
    /// Whom it trusts.
    pub site: Arc<Site>,
}

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    config: PathBuf,
    state: PathBuf,
}

/// Now, as certificates count.
pub fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment(since.map_or(0, |d| d.as_secs()))
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    let message = format!("cannot {what} {}: {error}", path.display());
    Failure::new(ErrorCode::File, message, "check the directory: rights and free space")
}

/// What is wrong with a key, certificate or request.
pub fn bad(error: &IdentityError) -> Failure {
    Failure::new(ErrorCode::NoIdentity, error.to_string(), "make it again: migrate host init")
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
        let Some(key) = self.text("host.key")? else { return Ok(None) };
        let need = |name: &str| {
            self.text(name)?.ok_or_else(|| {
                let path = self.config.join(name);
                failed("read", &path, &"it is missing although host.key is there")
            })
        };
        let host = HostIdentity::from_pem(&key, &need("host.crt")?).map_err(|e| bad(&e))?;
        let site = Site::from_pem(&need("ca.crt")?, self.site()?).map_err(|e| bad(&e))?;
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
        match self.text("host.key")? {
            None => Ok(()),
            Some(_) => Err(Failure::new(
                ErrorCode::FileExists,
                format!("this host has an identity already, in {}", self.config.display()),
                "keep it; for another one, move host.key, host.crt, ca.crt and ca.key away first",
            )),
        }
    }

    /// Keeps a key with its certificate and those of the site's CA. The key comes last: with it
    /// the identity is complete.
    ///
    /// # Errors
    /// Files cannot be written; texts that are no certificates.
    pub fn adopt(&self, key: &HostKey, chain: &str, authorities: &str) -> Result<(), Failure> {
        HostIdentity::from_pem(&key.pem(), chain).map_err(|e| bad(&e))?;
        Site::from_pem(authorities, Hosts::default()).map_err(|e| bad(&e))?;
        self.write_config("ca.crt", authorities)?;
        self.write_config("host.crt", chain)?;
        self.write_config("host.key", &key.pem())
    }

    /// The certificates of the site's CA, PEM.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn authorities(&self) -> Result<String, Failure> {
        Ok(self.text("ca.crt")?.unwrap_or_default())
    }

    /// Rights and removals.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn site(&self) -> Result<Hosts, Failure> {
        Self::read(&self.config.join("site.json"))
    }

    /// Replaces rights and removals.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_site(&self, hosts: &Hosts) -> Result<(), Failure> {
        Self::write(&self.config.join("site.json"), hosts)
    }

    /// The hosts that are known.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn hosts(&self) -> Result<Vec<Known>, Failure> {
        Self::read(&self.state.join("hosts.json"))
    }

    /// Notes where a host is, in place of what was known of it. An identity belongs to one host:
    /// hand-overs know hosts by it, so nobody may take that of another.
    ///
    /// # Errors
    /// `host-refused` for the identity of another host; the file cannot be read or written.
    pub fn remember(&self, host: Known) -> Result<(), Failure> {
        let mut all = self.hosts()?;
        if all.contains(&host) {
            return Ok(());
        }
        let other = all.iter().find(|h| h.id.is_some() && h.id == host.id && h.name != host.name);
        if let Some(other) = other {
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
        let before = all.iter().find(|h| h.name == host.name).and_then(|h| h.id);
        all.retain(|h| h.name != host.name);
        all.push(Known { id: host.id.or(before), ..host });
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Self::write(&self.state.join("hosts.json"), &all)
    }

    /// Forgets a host, and refuses the certificates it has from now on.
    ///
    /// # Errors
    /// Files cannot be read or written.
    pub fn remove(&self, name: &HostName) -> Result<(), Failure> {
        let mut site = self.site()?;
        site.rights.remove(name);
        site.removed.insert(name.clone(), now());
        self.write_site(&site)?;
        let mut all = self.hosts()?;
        all.retain(|h| h.name != *name);
        Self::write(&self.state.join("hosts.json"), &all)
    }

    /// Makes an invitation to `address`, good for `valid`.
    ///
    /// # Errors
    /// This host is not the CA's; the address is none.
    pub fn invite(&self, address: &str, valid: Duration) -> Result<(Invitation, Moment), Failure> {
        let authority = self.authority()?.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoIdentity,
                "only the host that has the site's CA can invite",
                "make the invitation there, or a new site here: migrate host init",
            )
        })?;
        let usage = |e: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::Usage, e.to_string(), "give it: --address HOST:PORT")
        };
        let expires = now().plus(valid);
        let secret = Secret::generate().map_err(|e| bad(&e))?;
        let invitation = Invitation::new(address, authority.fingerprint(), secret, expires)
            .map_err(|e| usage(&e))?;
        let mut open = self.offers()?;
        open.push(invitation.offer());
        Self::write(&self.state.join("invitations.json"), &open)?;
        Ok((invitation, expires))
    }

    fn offers(&self) -> Result<Vec<Offer>, Failure> {
        let mut all: Vec<Offer> = Self::read(&self.state.join("invitations.json"))?;
        all.retain(|offer| !offer.is_over(now()));
        Ok(all)
    }

    /// Signs the certificate of a host that knows the `secret` of an open invitation, which is
    /// used up by it.
    ///
    /// # Errors
    /// No such invitation, or a request for something else.
    pub fn redeem(
        &self,
        secret: &Secret,
        name: &HostName,
        request: &str,
    ) -> Result<String, Failure> {
        let mut open = self.offers()?;
        let refused = |e: &dyn std::fmt::Display| {
            Failure::new(
                ErrorCode::HostRefused,
                e.to_string(),
                "make a new one: migrate host invite",
            )
        };
        let mut last = None;
        let found = open.iter().position(|offer| match offer.redeem(secret, now()) {
            Ok(()) => true,
            Err(e) => {
                last = Some(e);
                false
            }
        });
        let Some(at) = found else {
            use migrate_engine::transport::identity::invitation::InvitationError;
            return Err(refused(&last.unwrap_or(InvitationError::Unknown)));
        };
        let chain = self.sign(name, request)?;
        open.remove(at);
        Self::write(&self.state.join("invitations.json"), &open)?;
        Ok(chain)
    }

    /// Signs a certificate for `name`.
    ///
    /// # Errors
    /// This host is not the CA's, or the request is for something else.
    pub fn sign(&self, name: &HostName, request: &str) -> Result<String, Failure> {
        let authority = self.authority()?.ok_or_else(|| {
            Failure::new(ErrorCode::NoIdentity, "this host has not the site's CA", "ask the CA's")
        })?;
        authority.sign(request, name, now()).map_err(|e| bad(&e))
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
        replace(path, &text).map_err(|e| failed("write", path, &e))
    }

    fn write_config(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.config.join(name);
        replace(&path, text).map_err(|e| failed("write", &path, &e))
    }
}

/// Puts `text` in the place of a file, for its owner only, durably.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn files(root: &tempfile::TempDir, name: &str) -> Files {
        Files::new(&Dirs::below(&root.path().join(name)))
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn a_site_of_two_and_a_removal() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (files(&root, "a"), files(&root, "b"));
        assert!(a.identity().unwrap().is_none());
        a.init(&host("a"), None).unwrap();
        assert_eq!(a.init(&host("a"), None).unwrap_err().0.code, ErrorCode::FileExists);
        let mode = fs::metadata(root.path().join("a/config/host.key")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);

        let (invitation, _) = a.invite("127.0.0.1:1", Duration::from_mins(1)).unwrap();
        let key = HostKey::generate().unwrap();
        let request = key.request_pem(&host("b")).unwrap();
        let wrong = Secret::generate().unwrap();
        assert!(a.redeem(&wrong, &host("b"), &request).is_err());
        assert!(a.redeem(invitation.secret(), &host("c"), &request).is_err(), "another's name");
        let chain = a.redeem(invitation.secret(), &host("b"), &request).unwrap();
        assert!(a.redeem(invitation.secret(), &host("b"), &request).is_err(), "only once");
        b.adopt(&key, &chain, &a.authorities().unwrap()).unwrap();
        assert_eq!(b.identity().unwrap().unwrap().host.name(), &host("b"));
        assert!(b.invite("127.0.0.1:1", Duration::from_mins(1)).is_err(), "not the CA's host");

        let known = Known { name: host("b"), id: Some(Uuid::nil()), address: "x:1".into() };
        a.remember(known.clone()).unwrap();
        a.remember(Known { id: None, address: "y:1".into(), ..known.clone() }).unwrap();
        let there = a.hosts().unwrap();
        assert_eq!(there, [Known { address: "y:1".into(), ..known }], "an id is not forgotten");
        let thief = Known { name: host("c"), id: Some(Uuid::nil()), address: "z:1".into() };
        assert_eq!(a.remember(thief).unwrap_err().0.code, ErrorCode::HostRefused);
        a.remove(&host("b")).unwrap();
        assert!(a.hosts().unwrap().is_empty());
        assert!(a.identity().unwrap().unwrap().site.removed(&host("b")).is_some());
    }
}
