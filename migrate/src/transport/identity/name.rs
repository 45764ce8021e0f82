//! Names of hosts.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What follows the name in certificates, so that they are of no use anywhere else.
pub const SUFFIX: &str = ".migrate";

/// A host's name within its site: 1 to 63 of `a-z 0-9 - .`, labels neither empty nor with a
/// hyphen at either end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// A text that is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a host name: 1 to 63 of a-z, 0-9, hyphen and dot; no label empty or with a \
     hyphen at its end"
)]
pub struct BadName {
    text: String,
}

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as certificates have it: `host2.migrate`.
    pub fn dns(&self) -> String {
        format!("{}{SUFFIX}", self.0)
    }

    /// The host that a certificate's DNS name means.
    pub fn from_dns(dns: &str) -> Option<Self> {
        dns.strip_suffix(SUFFIX)?.parse().ok()
    }
}

impl FromStr for HostName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= 63 && text.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            let text = text.chars().take(80).flat_map(char::escape_default).collect();
            Err(BadName { text })
        }
    }
}

impl TryFrom<String> for HostName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "host2", "rack-1.host-2", "0"] {
            let name: HostName = good.parse().unwrap();
            assert_eq!(HostName::from_dns(&name.dns()), Some(name));
        }
        for bad in ["", "Host", "-a", "a-", "a..b", ".", "a b", "ä", "a\n", "*", &"a".repeat(64)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
        assert_eq!(HostName::from_dns("host2.example"), None);
        assert_eq!(HostName::from_dns("*.migrate"), None);
        assert!(!"a\u{1b}[2J".parse::<HostName>().unwrap_err().to_string().contains('\u{1b}'));
    }
}
