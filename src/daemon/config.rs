//! `host.toml`: how this host's daemon is reached and what it may use. Read once, checked whole.
//! Tables that belong to others (`[network.NAME]`) are left to them.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;

use super::inbound::room::Limits;
use crate::api::{ErrorCode, Failure};
use crate::config::parse_size;

/// Where daemons listen unless told otherwise.
pub const PORT: u16 = 7420;
/// Ports of receivers, outside the range from which the system gives ports away.
const DATA_PORTS: RangeInclusive<u16> = 7421..=7440;

/// How the daemon is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this host, if the file gives one; used by `host init` and `host join`.
    pub name: Option<String>,
    /// Where the control port is bound.
    pub listen: SocketAddr,
    /// How others reach it, `HOST:PORT`, if that is not what they see.
    pub advertise: Option<String>,
    /// UDP ports for the data of guests that arrive.
    pub data_ports: RangeInclusive<u16>,
    /// Address from which guests that leave are sent, if it matters.
    pub migration_address: Option<IpAddr>,
    /// What guests may have of this host.
    pub limits: Limits,
}

#[derive(Debug, Default, Deserialize)]
struct File {
    name: Option<String>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    data_ports: Option<String>,
    migration_address: Option<IpAddr>,
    #[serde(default)]
    limits: FileLimits,
}

/// `[limits]`. A misspelt one must not be no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    memory: Option<String>,
    vcpus: Option<u32>,
    guests: Option<u32>,
    host_memory: Option<String>,
}

impl FileLimits {
    fn limits(self) -> Result<Limits, String> {
        let size = |text: Option<String>| text.as_deref().map(parse_size).transpose();
        let host_memory = size(self.host_memory)?;
        Ok(Limits {
            memory: size(self.memory)?,
            vcpus: self.vcpus,
            guests: self.guests,
            host_memory: host_memory.unwrap_or(Limits::default().host_memory),
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT),
            advertise: None,
            data_ports: DATA_PORTS,
            migration_address: None,
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Reads the file at `path`; one that is missing says nothing.
    ///
    /// # Errors
    /// `file` or `usage` with the line and what is wrong.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|why| {
                let message = format!("{}: {why}", path.display());
                Failure::new(ErrorCode::Usage, message, "correct the file: migrate help files")
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Failure::new(
                ErrorCode::File,
                format!("cannot read {}: {e}", path.display()),
                "check its permissions",
            )),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        let usual = Self::default();
        let data_ports = file.data_ports.as_deref().map(ports).transpose()?;
        Ok(Self {
            name: file.name,
            listen: file.listen.unwrap_or(usual.listen),
            advertise: file.advertise,
            data_ports: data_ports.unwrap_or(usual.data_ports),
            migration_address: file.migration_address,
            limits: file.limits.limits().map_err(|why| format!("[limits]: {why}"))?,
        })
    }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("data_ports = \"{text}\" is not a range of UDP ports like 7421-7440");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let port = |t: &str| t.trim().parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(wrong);
    let range = port(first)?..=port(last)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_what_is_wrong_is_named() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let text = "listen = \"127.0.0.1:9000\"\ndata_ports = \"9001-9004\"\n[network.lan]\n";
        let config = Config::parse(text).unwrap();
        assert_eq!((config.listen.port(), config.data_ports), (9000, 9001..=9004));
        let text = "[limits]\nmemory = \"2G\"\nvcpus = 4\nguests = 3\nhost_memory = \"1G\"\n";
        let limits = Config::parse(text).unwrap().limits;
        assert_eq!((limits.memory, limits.vcpus, limits.guests), (Some(2 << 30), Some(4), Some(3)));
        assert_eq!(limits.host_memory, 1 << 30);
        for bad in [
            "listen = 7",
            "listen = \"host\"",
            "data_ports = \"9-1\"",
            "data_ports = \"x\"",
            "[limits]\nmemory = \"much\"",
            "[limits]\nmemmory = \"1G\"",
        ] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_read(
            text: String, value in "[ -~]{0,24}", first: u16, last: u16,
        ) {
            let _ = Config::parse(&text);
            for key in ["name", "listen", "advertise", "data_ports", "migration_address"] {
                let _ = Config::parse(&format!("{key} = {value:?}"));
            }
            for key in ["memory", "host_memory", "vcpus", "guests"] {
                let _ = Config::parse(&format!("[limits]\n{key} = {value:?}"));
                let _ = Config::parse(&format!("[limits]\n{key} = {value}"));
            }
            let range = Config::parse(&format!("data_ports = \"{first}-{last}\""));
            let fine = 0 < first && first <= last;
            proptest::prop_assert_eq!(range.ok().map(|c| c.data_ports), fine.then_some(first..=last));
        }
    }
}
