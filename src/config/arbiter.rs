//! The arbiter of this host: the line `arbiter` of `host.toml`, and the files of its TLS.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::networks::read_table;
use crate::api::{ErrorCode, Failure};

/// Most addresses.
const MOST: usize = 9;

/// The lines of `host.toml` that are about the arbiter. Others are others' matter.
#[derive(Debug, Default, Deserialize)]
struct Lines {
    arbiter: Option<String>,
    arbiter_ca: Option<PathBuf>,
    arbiter_cert: Option<PathBuf>,
    arbiter_key: Option<PathBuf>,
}

/// Which arbiter a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArbiterConfig {
    /// Addresses of the etcd servers, `http://HOST:PORT` or `https://HOST:PORT`; at least one.
    pub endpoints: Vec<String>,
    /// Certificates to believe instead of none, PEM; only for `https`.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, PEM; only for `https`.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Display for ArbiterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd {}", self.endpoints.join(","))
    }
}

impl ArbiterConfig {
    /// What the file at `host_toml` says; `None` if there is no arbiter.
    ///
    /// # Errors
    /// `file` if it cannot be read, `usage` with what is wrong with a line.
    pub fn read(host_toml: &Path) -> Result<Option<Self>, Failure> {
        let lines: Lines = read_table(host_toml, "the arbiter of this host")?;
        lines.checked().map_err(|why| {
            let message = format!("{}: {why}", host_toml.display());
            Failure::new(ErrorCode::Usage, message, "correct the file: migrate help arbiter")
        })
    }
}

impl Lines {
    fn checked(self) -> Result<Option<ArbiterConfig>, String> {
        let Self { arbiter, arbiter_ca: ca, arbiter_cert, arbiter_key } = self;
        let Some(line) = arbiter else {
            let stray = ca.is_some() || arbiter_cert.is_some() || arbiter_key.is_some();
            return if stray { Err("there is no line arbiter = \"...\"".into()) } else { Ok(None) };
        };
        let wrong = |why: &str| Err(format!("arbiter = \"{line}\" {why}"));
        let Some(("etcd", addresses)) = line.split_once(' ') else {
            return wrong("is not like \"etcd http://10.0.0.9:2379\"");
        };
        let endpoints: Vec<String> =
            addresses.split(',').map(|a| a.trim().trim_end_matches('/').to_owned()).collect();
        if endpoints.len() > MOST || !endpoints.iter().all(|a| is_address(a)) {
            return wrong("needs addresses like http://10.0.0.9:2379, with commas between them");
        }
        let secure = endpoints.iter().filter(|a| a.starts_with("https://")).count();
        if secure != 0 && secure != endpoints.len() {
            return wrong("mixes http and https");
        }
        let identity = match (arbiter_cert, arbiter_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            _ => return Err("arbiter_cert and arbiter_key go together".into()),
        };
        if secure == 0 && (ca.is_some() || identity.is_some()) {
            return wrong("has TLS files, but its addresses are not https");
        }
        if secure != 0 && ca.is_none() {
            return wrong("needs arbiter_ca = \"FILE\": whose certificates to believe");
        }
        let files = ca.iter().chain(identity.iter().flat_map(|(cert, key)| [cert, key]));
        if let Some(path) = files.into_iter().find(|p| !p.is_absolute()) {
            return Err(format!("the path {} is not absolute", path.display()));
        }
        Ok(Some(ArbiterConfig { endpoints, ca, identity }))
    }
}

/// Scheme, host and port; nothing else, and no user or password.
fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let Some((host, port)) = rest.and_then(|r| r.rsplit_once(':')) else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok_and(|p| p > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Option<ArbiterConfig>, String> {
        toml::from_str::<Lines>(text).unwrap().checked()
    }

    #[test]
    fn a_line_names_the_arbiter() {
        assert_eq!(checked("listen = \"x\"\n[network.lan]\n"), Ok(None));
        let plain = checked("arbiter = \"etcd http://10.0.0.9:2379/\"").unwrap().unwrap();
        assert_eq!(plain.to_string(), "etcd http://10.0.0.9:2379");
        let secure = "arbiter = \"etcd https://a.b:1, https://[fd00::1]:2379\"\n\
                      arbiter_ca = \"/ca\"\narbiter_cert = \"/c\"\narbiter_key = \"/k\"";
        let secure = checked(secure).unwrap().unwrap();
        assert_eq!(secure.endpoints, ["https://a.b:1", "https://[fd00::1]:2379"]);
        assert_eq!(
            (secure.ca, secure.identity),
            (Some("/ca".into()), Some(("/c".into(), "/k".into())))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, needle) in [
            ("arbiter = \"consul http://a:1\"", "is not like"),
            ("arbiter = \"etcd\"", "is not like"),
            ("arbiter = \"etcd a:1\"", "needs addresses"),
            ("arbiter = \"etcd http://a\"", "needs addresses"),
            ("arbiter = \"etcd http://u@a:1\"", "needs addresses"),
            ("arbiter = \"etcd http://a:1,\"", "needs addresses"),
            ("arbiter = \"etcd http://a:1,https://b:1\"", "mixes"),
            ("arbiter = \"etcd https://a:1\"", "arbiter_ca"),
            ("arbiter = \"etcd http://a:1\"\narbiter_ca = \"/ca\"", "not https"),
            ("arbiter = \"etcd https://a:1\"\narbiter_ca = \"ca\"", "not absolute"),
            ("arbiter = \"etcd https://a:1\"\narbiter_cert = \"/c\"", "go together"),
            ("arbiter_ca = \"/ca\"", "there is no line"),
        ] {
            let why = checked(text).unwrap_err();
            assert!(why.contains(needle), "{text}: {why}");
        }
    }
}
