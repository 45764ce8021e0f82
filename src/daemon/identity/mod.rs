//! This host's identity, and the site it belongs to, as files.
//!
//! | file | what |
//! |---|---|
//! | `host.toml` (configuration) | what the user says: [`Settings`] |
//! | `host.key`, `host.crt`, `ca.crt` (configuration) | key, certificate, the site's CA |
//! | `ca.key` (configuration) | the CA's key, on the CA's host only |
//! | `hosts.json` (state) | hosts of the site and those removed: [`hosts`] |
//! | `invitations.json` (state) | hashes of open invitations |
//!
//! [`init`] and [`join`] are called by the command; it tells a running daemon to read the files
//! again. Everything else is done by the daemon. Keys never leave this host.

mod files;
pub mod hosts;
mod join;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::identity::invitation::{InvitationError, Offer, Secret};
use migrate_engine::transport::identity::name::BadName;
use migrate_engine::transport::identity::{
    Authority, HostIdentity, HostKey, HostName, IdentityError, Invitation, Moment, Site,
};
use serde::Serialize;

use super::settings::Settings;
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, hex, host_id};
use crate::guest::lockfile::LockFile;
use files::Paths;
use hosts::Hosts;
pub use join::{join, resolve};

/// Most open invitations.
const MOST_INVITATIONS: usize = 64;
/// How long another process may take that changes the files.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What [`init`] and [`join`] made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Version of this document.
    pub schema: u32,
    /// Name of this host in its site.
    pub name: String,
    /// It is the site's CA.
    pub ca: bool,
}

/// A CA that the user brings.
#[derive(Clone, Copy, Debug)]
pub struct OwnAuthority<'a> {
    /// Its certificate, PEM.
    pub certificate: &'a Path,
    /// Its key, PKCS#8 PEM.
    pub key: &'a Path,
}

/// Makes this host the first of a new site: its key, its certificate, and the CA. Doing it again
/// under the same name changes nothing.
///
/// # Errors
/// `file` if files cannot be written; `wrong-state` if the host belongs to a site already under
/// another name; `usage` for a bad name.
pub fn init(
    dirs: &Dirs,
    name: Option<&str>,
    own: Option<OwnAuthority<'_>>,
) -> Result<Made, Failure> {
    let settings = Settings::read(dirs)?;
    let name = choose_name(name, &settings)?;
    let paths = Paths::of(dirs);
    let _lock = lock(&paths)?;
    if let Some(made) = already(dirs, &settings, &name)? {
        return Ok(made);
    }
    let now = now();
    let authority = match own {
        None => Authority::generate(name.as_str(), now),
        Some(own) => Authority::from_pem(&files::read(own.certificate)?, &files::read(own.key)?),
    };
    let authority = authority.map_err(failure)?;
    let key = HostKey::generate().map_err(failure)?;
    let request = key.request_pem(&name).map_err(failure)?;
    let chain = authority.sign(&request, &name, now).map_err(failure)?;
    let mut hosts = Hosts { authority: Some(name.clone()), ..Hosts::default() };
    let id = host_id(dirs)?;
    if let Some(address) = &settings.advertise {
        hosts.note(&name, Some(id), address, now);
    }
    write_hosts(&paths, &hosts)?;
    files::write(&paths.authority_key(), authority.key_pem(), 0o600)?;
    files::write(&paths.authority(), authority.certificate_pem(), 0o644)?;
    write_identity(&paths, &key, &chain)?;
    Ok(Made { schema: 1, name: name.to_string(), ca: true })
}

/// Key and certificate, in an order in which a certificate never lacks its key.
fn write_identity(paths: &Paths, key: &HostKey, chain: &str) -> Result<(), Failure> {
    files::write(&paths.key(), &key.pem(), 0o600)?;
    files::write(&paths.certificate(), chain, 0o644)
}

/// The name that is asked for, that of `host.toml`, or the hostname.
fn choose_name(name: Option<&str>, settings: &Settings) -> Result<HostName, Failure> {
    let usage = |e: String| {
        Failure::new(ErrorCode::Usage, e, "choose the name: migrate host init --name NAME")
    };
    if let Some(name) = name {
        return name.parse().map_err(|e: BadName| usage(e.to_string()));
    }
    if let Some(name) = &settings.name {
        return Ok(name.clone());
    }
    let hostname = hostname();
    hostname.parse().map_err(|_| usage(format!("the hostname '{hostname}' is not a host name")))
}

/// First label of the system's hostname, in small letters.
pub fn hostname() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy().to_ascii_lowercase();
    name.split('.').next().unwrap_or_default().to_owned()
}

/// What is there already, if it is what is asked for.
fn already(dirs: &Dirs, settings: &Settings, name: &HostName) -> Result<Option<Made>, Failure> {
    let Some(there) = Loaded::read(dirs, settings)? else { return Ok(None) };
    let have = there.identity.name();
    if have == name && there.authority.is_some() {
        return Ok(Some(Made { schema: 1, name: name.to_string(), ca: true }));
    }
    Err(Failure::new(
        ErrorCode::WrongState,
        format!("this host belongs to a site already, as '{have}'"),
        format!(
            "to leave it, remove it there (migrate host remove {have}) and delete {} here",
            Paths::of(dirs).certificate().display()
        ),
    ))
}

/// Everything about this host's identity, read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Key and certificate.
    pub identity: Arc<HostIdentity>,
    /// Whom we trust with what.
    pub site: Arc<Site>,
    /// The CA, if this host has it.
    pub authority: Option<Arc<Authority>>,
    /// Hosts of the site.
    pub hosts: Hosts,
}

impl Loaded {
    /// Reads the files; `None` if this host has no identity yet.
    ///
    /// # Errors
    /// `file` if something cannot be read or does not fit together.
    pub fn read(dirs: &Dirs, settings: &Settings) -> Result<Option<Self>, Failure> {
        let paths = Paths::of(dirs);
        let Some(chain) = files::read_if_there(&paths.certificate())? else { return Ok(None) };
        let identity = HostIdentity::from_pem(&files::read(&paths.key())?, &chain);
        let identity = Arc::new(identity.map_err(failure)?);
        let authorities = files::read(&paths.authority())?;
        let authority = match files::read_if_there(&paths.authority_key())? {
            Some(key) => Some(Arc::new(Authority::from_pem(&authorities, &key).map_err(failure)?)),
            None => None,
        };
        let hosts = read_hosts(&paths)?;
        let site = Site::from_pem(&authorities, hosts.site_hosts(settings)).map_err(failure)?;
        Ok(Some(Self { identity, site: Arc::new(site), authority, hosts }))
    }

    /// Name of this host.
    pub fn name(&self) -> &HostName {
        self.identity.name()
    }

    /// These hosts in place of those known, written down.
    ///
    /// # Errors
    /// `file`; nothing has changed then.
    pub fn with_hosts(
        &self,
        dirs: &Dirs,
        settings: &Settings,
        hosts: Hosts,
    ) -> Result<Self, Failure> {
        write_hosts(&Paths::of(dirs), &hosts)?;
        let mut site = Site::clone(&self.site);
        site.hosts = hosts.site_hosts(settings);
        Ok(Self { site: Arc::new(site), hosts, ..self.clone() })
    }
}

/// Makes an invitation to this host at `address`, good until `expires`.
///
/// # Errors
/// `wrong-state` if this host does not have the CA; `usage` for a bad address; `busy` if there
/// are too many.
pub fn invite(
    dirs: &Dirs,
    loaded: &Loaded,
    address: &str,
    expires: Moment,
) -> Result<Invitation, Failure> {
    let Some(authority) = &loaded.authority else {
        let holder = loaded.hosts.authority.as_ref();
        let holder = holder.map_or_else(|| "the host that has it".into(), ToString::to_string);
        return Err(Failure::new(
            ErrorCode::WrongState,
            "this host does not have the site's CA, so it cannot let others in",
            format!("invite on {holder}"),
        ));
    };
    let secret = Secret::generate().map_err(failure)?;
    let invitation = Invitation::new(address, authority.fingerprint(), secret, expires);
    let invitation = invitation.map_err(|e| {
        let remedy = "give the address: migrate host invite --address HOST:PORT";
        Failure::new(ErrorCode::Usage, e.to_string(), remedy)
    })?;
    let paths = Paths::of(dirs);
    let _lock = lock(&paths)?;
    let mut offers = read_offers(&paths)?;
    offers.retain(|offer| !offer.is_over(now()));
    if offers.len() >= MOST_INVITATIONS {
        return Err(Failure::new(
            ErrorCode::Busy,
            format!("there are {MOST_INVITATIONS} open invitations"),
            "wait until some have run out, or use them",
        )
        .retryable());
    }
    offers.push(invitation.offer());
    write_offers(&paths, &offers)?;
    Ok(invitation)
}

/// Redeems an invitation: takes it off the list, and signs the request of the host `name`.
/// Answers the chain.
///
/// # Errors
/// The invitation is unknown, used or too late, or the request is none for that name.
pub fn redeem(
    dirs: &Dirs,
    loaded: &Loaded,
    secret: &str,
    request: &str,
    name: &HostName,
) -> Result<String, Failure> {
    let refused = |why: String| {
        let remedy = "make a new invitation: migrate host invite";
        Failure::new(ErrorCode::HostRefused, why, remedy)
    };
    let unknown = || refused("the invitation is not known here, or was used already".into());
    let secret: [u8; 16] =
        hex::decode(secret).and_then(|s| s.try_into().ok()).ok_or_else(unknown)?;
    let secret = Secret::from(secret);
    let authority = loaded.authority.as_ref().ok_or_else(unknown)?;
    if loaded.name() == name {
        let mut failure = refused(format!("'{name}' is the name of the inviting host itself"));
        failure.0.remedy = "choose another: migrate host join LINE --name NAME".into();
        return Err(failure);
    }
    let now = now();
    let paths = Paths::of(dirs);
    let _lock = lock(&paths)?;
    let mut offers = read_offers(&paths)?;
    let mut reason = None;
    let found = offers.iter().position(|offer| match offer.redeem(&secret, now) {
        Ok(()) => true,
        Err(e) => {
            if matches!(e, InvitationError::Expired { .. }) {
                reason = Some(e.to_string());
            }
            false
        }
    });
    let Some(found) = found else { return Err(reason.map_or_else(unknown, refused)) };
    // Signed first: a request that is none does not use the invitation up.
    let chain = authority.sign(request, name, now).map_err(failure)?;
    offers.remove(found);
    write_offers(&paths, &offers)?;
    Ok(chain)
}

/// A request for a new certificate of this host, for the key it has.
///
/// # Errors
/// `file` if the key cannot be read.
pub fn renewal_request(dirs: &Dirs, loaded: &Loaded) -> Result<String, Failure> {
    let key = HostKey::from_pem(&files::read(&Paths::of(dirs).key())?).map_err(failure)?;
    key.request_pem(loaded.name()).map_err(failure)
}

/// Signs a renewal, where the CA is.
///
/// # Errors
/// `wrong-state` where it is not; `host-refused` if the request is not for that name.
pub fn sign_renewal(loaded: &Loaded, request: &str, name: &HostName) -> Result<String, Failure> {
    let authority = loaded.authority.as_ref().ok_or_else(|| {
        Failure::new(ErrorCode::WrongState, "the site's CA is not on this host", "")
    })?;
    authority.sign(request, name, now()).map_err(failure)
}

/// Puts a renewed certificate in place of the old one, if it fits the key and the name.
///
/// # Errors
/// It does not fit, or cannot be written.
pub fn put_renewed(dirs: &Dirs, loaded: &Loaded, chain: &str) -> Result<(), Failure> {
    let paths = Paths::of(dirs);
    let new = HostIdentity::from_pem(&files::read(&paths.key())?, chain).map_err(failure)?;
    if new.name() != loaded.name() || new.not_after() <= loaded.identity.not_after() {
        let message = "the renewed certificate is for another host, or ends no later";
        return Err(Failure::new(ErrorCode::HostRefused, message, "see the CA's host"));
    }
    files::write(&paths.certificate(), chain, 0o644)
}

fn read_hosts(paths: &Paths) -> Result<Hosts, Failure> {
    let Some(text) = files::read_if_there(&paths.hosts())? else { return Ok(Hosts::default()) };
    serde_json::from_str(&text).map_err(|e| damaged(&paths.hosts(), &e))
}

fn write_hosts(paths: &Paths, hosts: &Hosts) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(hosts).map_err(|e| damaged(&paths.hosts(), &e))?;
    files::write(&paths.hosts(), &text, 0o644)
}

fn read_offers(paths: &Paths) -> Result<Vec<Offer>, Failure> {
    let Some(text) = files::read_if_there(&paths.invitations())? else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|e| damaged(&paths.invitations(), &e))
}

fn write_offers(paths: &Paths, offers: &[Offer]) -> Result<(), Failure> {
    let text = serde_json::to_string(offers).map_err(|e| damaged(&paths.invitations(), &e))?;
    files::write(&paths.invitations(), &text, 0o600)
}

fn damaged(path: &Path, error: &serde_json::Error) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!("{} is damaged: {error}", path.display()),
        "restore it from a backup, or remove it: hosts are then learned anew",
    )
}

/// Waits for others who change the files; they are done in no time.
fn lock(paths: &Paths) -> Result<LockFile, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("{}: {why}", paths.lock().display());
        Failure::new(ErrorCode::File, message, "check that the state directory is yours")
    };
    let parent = paths.lock();
    std::fs::create_dir_all(parent.parent().unwrap_or(Path::new("/"))).map_err(|e| failed(&e))?;
    let step = Duration::from_millis(20);
    for _ in 0..LOCK_PATIENCE.as_millis() / step.as_millis() {
        if let Some(lock) = LockFile::take(&paths.lock()).map_err(|e| failed(&e))? {
            return Ok(lock);
        }
        std::thread::sleep(step);
    }
    Err(failed(&"another process changes the identity and does not come to an end"))
}

/// Now, as certificates count.
pub fn now() -> Moment {
    Moment(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0))
}

/// What a key or certificate that cannot be used means.
pub(super) fn failure(error: IdentityError) -> Failure {
    let (code, remedy) = match &error {
        IdentityError::Request { .. } => {
            (ErrorCode::HostRefused, "use the same release of migrate on both hosts")
        }
        _ => (ErrorCode::File, "see the files of the identity: migrate help files"),
    };
    Failure::new(code, error.to_string(), remedy)
}

#[cfg(test)]
mod tests;
