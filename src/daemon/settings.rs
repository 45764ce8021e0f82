//! `host.toml` in the configuration directory: what this host's user says of it. Everything may
//! be left out. Networks (`[network.NAME]`) are others' matter. Pure but for [`Settings::read`].

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use migrate_engine::transport::identity::{HostName, Rights};
use serde::Deserialize;

use crate::api::moving::{MoveOptions, OnStall};
use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, parse_duration, parse_size};

/// Name of the file.
pub const FILE: &str = "host.toml";
/// UDP port of the daemon, if nothing is said.
pub const CONTROL_PORT: u16 = 7420;
/// UDP ports of receivers, if nothing is said: below the ports that systems give out themselves.
const DATA_PORTS: RangeInclusive<u16> = 7421..=7440;
/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Fewest ports that a receiver can do with: control and a lane.
const FEWEST_PORTS: u16 = 2;

/// What `host.toml` says, checked, with defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of this host, for `host init` and `host join`. Afterwards the certificate has it.
    pub name: Option<HostName>,
    /// Where the daemon listens. An unspecified IPv6 address takes IPv4 too.
    pub listen: SocketAddr,
    /// `HOST:PORT` that other hosts are told.
    pub advertise: Option<String>,
    /// UDP ports of receivers.
    pub data_ports: RangeInclusive<u16>,
    /// The network that guests' data takes: receivers listen on this host's address in it.
    pub migration_network: Option<Network>,
    /// Memory that all guests may have together, bytes; unlimited if absent.
    pub memory: Option<u64>,
    /// Rights of hosts that differ from the usual ones.
    pub rights: BTreeMap<HostName, Rights>,
    /// How guests are moved if the caller does not say.
    pub moves: MoveOptions,
}

/// An IP network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<HostName>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    data_ports: Option<String>,
    migration_network: Option<String>,
    memory: Option<String>,
    #[serde(default)]
    rights: BTreeMap<HostName, Rights>,
    #[serde(default)]
    moves: WrittenMoves,
    #[serde(default, rename = "network")]
    _network: toml::Table,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMoves {
    max_downtime: Option<String>,
    on_stall: Option<OnStall>,
    timeout: Option<String>,
    lanes: Option<u8>,
}

impl Settings {
    /// Reads the file; a missing one says nothing.
    ///
    /// # Errors
    /// `file` if it cannot be read, `bad-definition` with line and key if it is malformed.
    pub fn read(dirs: &Dirs) -> Result<Self, Failure> {
        let path = dirs.config.join(FILE);
        let text = match read_bounded(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => {
                return Err(Failure::new(
                    ErrorCode::File,
                    format!("cannot read {}: {e}", path.display()),
                    "check the file and its permissions",
                ));
            }
        };
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of the file; `whence` names it in errors.
    ///
    /// # Errors
    /// `bad-definition` with line or key.
    pub fn parse(text: &str, whence: &str) -> Result<Self, Failure> {
        let refuse = |what: String| {
            let remedy = "correct the file; 'migrate help files' lists the keys";
            Failure::new(ErrorCode::BadDefinition, format!("{whence}{what}"), remedy)
        };
        let written: Written = toml::from_str(text).map_err(|e| {
            let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
            refuse(format!(", line {line}: {}", e.message().trim_end()))
        })?;
        Self::check(written).map_err(|what| refuse(format!(": {what}")))
    }

    fn check(written: Written) -> Result<Self, String> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), CONTROL_PORT);
        let listen = written.listen.unwrap_or(any);
        if listen.port() == 0 {
            return Err("listen: the port must not be 0, for other hosts must know it".into());
        }
        if let Some(address) = &written.advertise {
            check_address(address).map_err(|e| format!("advertise: {e}"))?;
        }
        let data_ports = written.data_ports.as_deref().map_or(Ok(DATA_PORTS), parse_ports)?;
        if data_ports.contains(&listen.port()) {
            return Err(format!("data_ports contain {}, which listen has", listen.port()));
        }
        let network = written.migration_network.as_deref().map(Network::parse).transpose()?;
        let memory = written.memory.as_deref().map(parse_size).transpose()?;
        Ok(Self {
            name: written.name,
            listen,
            advertise: written.advertise,
            data_ports,
            migration_network: network,
            memory,
            rights: written.rights,
            moves: moves(&written.moves)?,
        })
    }

    /// The first address to try to listen on, and one to fall back to where there is no IPv6.
    pub fn listen_on(&self) -> (SocketAddr, Option<SocketAddr>) {
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.listen.port());
        let any = self.listen.is_ipv6() && self.listen.ip().is_unspecified();
        (self.listen, any.then_some(v4))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            listen: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), CONTROL_PORT),
            advertise: None,
            data_ports: DATA_PORTS,
            migration_network: None,
            memory: None,
            rights: BTreeMap::new(),
            moves: MoveOptions::default(),
        }
    }
}

fn moves(written: &WrittenMoves) -> Result<MoveOptions, String> {
    let ms = |text: &Option<String>, key: &str, default: u64| {
        let Some(text) = text else { return Ok(default) };
        let parsed = parse_duration(text).map_err(|e| format!("{key}: {e}"))?;
        u64::try_from(parsed.as_millis()).map_err(|_| format!("{key}: '{text}' is too long"))
    };
    let usual = MoveOptions::default();
    if written.lanes.is_some_and(|lanes| !(1..=MAX_LANES).contains(&lanes)) {
        return Err(format!("moves.lanes must be 1 to {MAX_LANES}"));
    }
    Ok(MoveOptions {
        max_downtime_ms: ms(&written.max_downtime, "max_downtime", usual.max_downtime_ms)?,
        on_stall: written.on_stall.unwrap_or(usual.on_stall),
        timeout_ms: ms(&written.timeout, "timeout", usual.timeout_ms)?,
        bandwidth_bytes_per_s: None,
        lanes: written.lanes,
    })
}

/// Most data lanes of a move.
pub const MAX_LANES: u8 = 8;

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bad = || format!("data_ports: '{text}' is no range of ports: write for example 7421-7440");
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| bad());
    let (first, last) = (port(first)?, port(last)?);
    if first == 0 || last < first || last - first + 1 < FEWEST_PORTS {
        return Err(bad());
    }
    Ok(first..=last)
}

/// Checks `HOST:PORT`.
///
/// # Errors
/// A sentence.
pub fn check_address(text: &str) -> Result<(), String> {
    let bad = || format!("'{}' is not HOST:PORT", text.escape_default());
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]%_".contains(&b));
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() || !plain || port == 0 || text.len() > 200 {
        return Err(bad());
    }
    Ok(())
}

impl Network {
    fn parse(text: &str) -> Result<Self, String> {
        let bad =
            || format!("migration_network: '{text}' is no network: write for example 10.0.0.0/24");
        let (base, bits) = text.split_once('/').ok_or_else(bad)?;
        let base: IpAddr = base.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        if bits > most { Err(bad()) } else { Ok(Self { base, bits }) }
    }

    /// Whether `ip` is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u8| {
            let shift = u32::from(width.saturating_sub(self.bits));
            a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
        };
        match (self.base, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_defaults_and_everything_can_be_said() {
        assert_eq!(Settings::parse("", "f").unwrap(), Settings::default());
        let text = "name = 'h1'\nlisten = '127.0.0.1:9000'\nadvertise = 'h1.example:9000'\n\
            data_ports = '9001-9008'\nmigration_network = '10.1.0.0/16'\nmemory = '4G'\n\
            [rights]\nh2 = ['observe']\n[moves]\nmax_downtime = '50ms'\non_stall = 'pause'\n\
            timeout = '1h'\nlanes = 2\n[network.lan]\nbridge = 'br0'\n";
        let all = Settings::parse(text, "f").unwrap();
        assert_eq!(all.data_ports, 9001..=9008);
        assert_eq!(all.memory, Some(4 << 30));
        assert_eq!(all.moves.max_downtime_ms, 50);
        assert_eq!((all.moves.timeout_ms, all.moves.lanes), (3_600_000, Some(2)));
        assert_eq!(all.listen_on(), ("127.0.0.1:9000".parse().unwrap(), None));
        let network = all.migration_network.unwrap();
        assert!(network.contains("10.1.200.3".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.0.3".parse().unwrap()));
        assert!(!network.contains("10.2.0.3".parse().unwrap()));
        assert!(!network.contains("::1".parse().unwrap()));
        assert!(Settings::default().listen_on().1.is_some());
    }

    #[test]
    fn nonsense_is_named() {
        for (text, needle) in [
            ("x = 1", "line 1: unknown field"),
            ("\nlisten = '7420'", "line 2"),
            ("listen = '1.2.3.4:0'", "must not be 0"),
            ("advertise = 'host'", "not HOST:PORT"),
            ("advertise = 'a b:1'", "not HOST:PORT"),
            ("data_ports = '7421'", "7421-7440"),
            ("data_ports = '9-8'", "7421-7440"),
            ("data_ports = '5-5'", "7421-7440"),
            ("data_ports = '7000-8000'", "which listen has"),
            ("migration_network = '10.0.0.0/33'", "no network"),
            ("memory = 'much'", "not a size"),
            ("name = 'H 1'", "not a host name"),
            ("[rights]\nh2 = ['fly']", "unknown variant"),
            ("[moves]\nmax_downtime = '300'", "max_downtime"),
            ("[moves]\nlanes = 0", "1 to 8"),
        ] {
            let failure = Settings::parse(text, "f").unwrap_err();
            assert!(failure.0.message.contains(needle), "{text}: {}", failure.0.message);
        }
    }
}
