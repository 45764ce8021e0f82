//! Networks by name: the tables `[network.NAME]` of `host.toml`, which say what a network is on
//! this host. Other keys of that file are others' matter.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::api::{ErrorCode, Failure};

/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct HostFile {
    #[serde(default)]
    network: BTreeMap<String, Network>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    bridge: String,
}

/// What the file at `host_toml` says of `what`; one that is missing says nothing.
///
/// # Errors
/// `file` if it cannot be read or understood.
pub(super) fn read_table<T: serde::de::DeserializeOwned>(
    host_toml: &Path,
    what: &str,
) -> Result<T, Failure> {
    let file = |e: &dyn std::fmt::Display| {
        let message = format!("cannot read {what} from {}: {e}", host_toml.display());
        Failure::new(ErrorCode::File, message, "correct the file or its permissions")
    };
    let mut text = String::new();
    match std::fs::File::open(host_toml) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(file(&e)),
        Ok(open) => {
            open.take(FILE_MAX).read_to_string(&mut text).map_err(|e| file(&e))?;
        }
    }
    toml::from_str(&text).map_err(|e| file(&e))
}

/// The bridge that the file at `host_toml` gives the network `name`.
///
/// # Errors
/// `bad-net` if there is no such network, `file` if the file cannot be read or understood.
pub fn bridge_of(host_toml: &Path, name: &str) -> Result<String, Failure> {
    let shown = host_toml.display();
    let HostFile { mut network } = read_table(host_toml, "the networks of this host")?;
    if let Some(found) = network.remove(name) {
        return Ok(found.bridge);
    }
    let known = network.into_keys().collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none".to_owned() } else { known };
    Err(Failure::new(
        ErrorCode::BadNet,
        format!("this host has no network '{name}' (it has: {known})"),
        format!("add to {shown}: [network.{name}] with the line bridge = \"br0\""),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        let none = bridge_of(&path, "lan").unwrap_err().0;
        assert_eq!(none.code, ErrorCode::BadNet);
        assert!(none.message.contains("it has: none"), "{}", none.message);
        let text = "name = 'h1'\n[network.lan]\nbridge = 'br0'\n[network.dmz]\nbridge = 'br1'\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(bridge_of(&path, "lan").unwrap(), "br0");
        let other = bridge_of(&path, "wan").unwrap_err().0;
        assert!(other.message.contains("dmz, lan"), "{}", other.message);
        for bad in ["[network.lan]\n", "[network.lan]\nbrigde = 'x'", "network = 3", "\u{0}"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(bridge_of(&path, "lan").unwrap_err().0.code, ErrorCode::File, "{bad}");
        }
    }
}
