//! The made-up parts of a persistent guest's identity: its uuid and MAC addresses are chosen at
//! its first start and kept beside the definition, which stays as its user wrote it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::definition::NetLink;
use super::file::GuestFile;
use super::names::generate_mac;
use crate::api::{ErrorCode, Failure};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    uuid: Uuid,
    /// By tap; for an interface in a bridge by what it is joined to, and its number there.
    macs: BTreeMap<String, [u8; 6]>,
}

/// Gives `file` the identity kept at `path`, makes what is missing there, and keeps it.
///
/// # Errors
/// `file` if it cannot be read or written durably.
pub fn keep_identity(file: &mut GuestFile, path: &Path) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| {
        Failure::new(
            ErrorCode::File,
            format!("cannot keep the guest's identity in {}: {e}", path.display()),
            "check that the directory is yours and not full",
        )
    };
    let found = match fs::read(path) {
        Ok(bytes) => Some(serde_json::from_slice::<Identity>(&bytes).map_err(|e| {
            Failure::new(
                ErrorCode::File,
                format!("the guest's identity in {} is damaged: {e}", path.display()),
                "write the guest's uuid and MAC addresses into its definition and remove that file",
            )
        })?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(cannot(e)),
    };
    let fresh = || Identity { uuid: Uuid::new_v4(), macs: BTreeMap::new() };
    let mut identity = found.clone().unwrap_or_else(fresh);
    identity.uuid = *file.uuid.get_or_insert(identity.uuid);
    let mut seen: BTreeMap<NetLink, u32> = BTreeMap::new();
    for net in &mut file.nets {
        let link = net.link()?;
        let number = seen.entry(link.clone()).or_default();
        *number += 1;
        let key = match &link {
            NetLink::Tap(name) => name.clone(),
            made => format!("{made} {number}"),
        };
        let kept = identity.macs.entry(key).or_insert_with(generate_mac);
        *kept = *net.mac.get_or_insert(*kept);
    }
    if found.as_ref() != Some(&identity) {
        write_durably(path, &identity).map_err(cannot)?;
    }
    Ok(())
}

fn write_durably(path: &Path, identity: &Identity) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(identity)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_the_definition_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let two = "[[net]]\nbridge = 'b'\n".repeat(2);
        let text = format!("guest = 'scribbler'\n{two}[[net]]\ntap = 't0'");
        let mut first = GuestFile::parse(&text, "a").unwrap();
        keep_identity(&mut first, &path).unwrap();
        let mut second = GuestFile::parse(&text, "a").unwrap();
        keep_identity(&mut second, &path).unwrap();
        assert!(first.uuid.is_some() && first.nets[2].mac.is_some());
        assert_eq!(first, second);
        assert_ne!(first.nets[0].mac, first.nets[1].mac);

        let explicit = format!("{text}\nmac = '52:54:00:00:00:01'");
        let mut third = GuestFile::parse(&explicit, "a").unwrap();
        keep_identity(&mut third, &path).unwrap();
        assert_eq!(third.nets[2].mac, Some([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(third.uuid, first.uuid);
        keep_identity(&mut second, &path).unwrap();
        let mut fourth = GuestFile::parse(&text, "a").unwrap();
        keep_identity(&mut fourth, &path).unwrap();
        assert_eq!(fourth.nets[0].mac, second.nets[0].mac);

        fs::write(&path, "{").unwrap();
        assert!(keep_identity(&mut fourth, &path).unwrap_err().0.message.contains("damaged"));
    }
}
