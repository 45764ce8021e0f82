//! Values of options that have a syntax of their own.

use std::time::Duration;

use migrate_engine::transport::identity::HostName;

use crate::config::{Cache, DiskFile, NetFile, parse_duration, parse_mac};

/// How long `--wait-for` waits if nothing is said.
pub const WAIT_DEFAULT: Duration = Duration::from_mins(1);
/// Slowest rate that is taken, bytes per second.
const RATE_MIN: u64 = 125_000;

/// `--wait-for console:TEXT[,TIME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitFor {
    /// Text on the serial console.
    pub text: String,
    /// Give up after this long.
    pub within: Duration,
}

/// Parses `console:TEXT[,TIME]`. A text may hold commas; what follows the last one counts as a
/// time if it is one.
///
/// # Errors
/// A sentence.
pub fn parse_wait_for(value: &str) -> Result<WaitFor, String> {
    let rest = value.strip_prefix("console:").ok_or_else(|| {
        format!("'{value}' is not something to wait for: write console:TEXT, for example console:login:,2m")
    })?;
    let timed = rest.rsplit_once(',').and_then(|(text, time)| {
        let within = parse_duration(time).ok()?;
        Some(WaitFor { text: text.to_owned(), within })
    });
    let parsed = timed.unwrap_or_else(|| WaitFor { text: rest.to_owned(), within: WAIT_DEFAULT });
    if parsed.text.is_empty() {
        return Err("the text to wait for is empty: write console:TEXT".to_owned());
    }
    Ok(parsed)
}

/// Parses `PATH[,ro][,shared][,cache=none|writeback][,serial=TEXT]`; the path may be written `path=PATH`.
///
/// # Errors
/// A sentence.
pub fn parse_disk(value: &str) -> Result<DiskFile, String> {
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let path = first.strip_prefix("path=").unwrap_or(first);
    if path.is_empty() {
        return Err("the disk has no path: write for example --disk root.img,ro".to_owned());
    }
    let mut disk = DiskFile {
        path: path.into(),
        read_only: false,
        shared: false,
        cache: Cache::None,
        serial: None,
    };
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => disk.read_only = true,
            None if part == "shared" => disk.shared = true,
            Some(("cache", "none")) => disk.cache = Cache::None,
            Some(("cache", "writeback")) => disk.cache = Cache::Writeback,
            Some(("serial", serial)) => disk.serial = Some(serial.to_owned()),
            _ => {
                return Err(format!(
                    "'{part}' is not an option of a disk: there are ro, shared, \
                     cache=none, cache=writeback and serial=TEXT"
                ));
            }
        }
    }
    Ok(disk)
}

/// Parses `tap=NAME[,mac=MAC][,mtu=N]`, or with `bridge=NAME` or `network=NAME` in the tap's place.
///
/// # Errors
/// A sentence.
pub fn parse_net(value: &str) -> Result<NetFile, String> {
    let mut net = NetFile::default();
    for part in value.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) => net.tap = Some(name.to_owned()),
            Some(("bridge", name)) => net.bridge = Some(name.to_owned()),
            Some(("network", name)) => net.network = Some(name.to_owned()),
            Some(("mac", mac)) => net.mac = Some(parse_mac(mac)?),
            Some(("mtu", mtu)) => {
                let bad = |_| format!("'{mtu}' is not an MTU: write a number from 68 to 65535");
                net.mtu = Some(mtu.parse().map_err(bad)?);
            }
            _ => {
                return Err(format!(
                    "'{part}' is not an option of an interface: there are tap=NAME, bridge=NAME, \
                     network=NAME, mac=MAC and mtu=N"
                ));
            }
        }
    }
    let links = [&net.tap, &net.bridge, &net.network];
    let given: Vec<&String> = links.into_iter().flatten().collect();
    if given.len() != 1 || given.iter().any(|name| name.is_empty()) {
        return Err("an interface is joined to one of tap, bridge and network: write for example \
                    --net tap=tap0"
            .to_owned());
    }
    Ok(net)
}

/// Parses a rate, which needs its unit: bits with decimal prefixes (`1Gbit`, `200Mbit`), bytes with
/// decimal (`100MB`) or binary ones (`100MiB`); `/s` may follow. Gives bytes per second.
///
/// # Errors
/// A sentence.
pub fn parse_rate(value: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64, u64); 10] = [
        ("kbit", 1000, 8),
        ("mbit", 1_000_000, 8),
        ("gbit", 1_000_000_000, 8),
        ("kb", 1000, 1),
        ("mb", 1_000_000, 1),
        ("gb", 1_000_000_000, 1),
        ("kib", 1 << 10, 1),
        ("mib", 1 << 20, 1),
        ("gib", 1 << 30, 1),
        ("bit", 1, 8),
    ];
    let bad = || format!("'{value}' is not a rate: write for example 1Gbit or 100MB, per second");
    let text = value.trim().to_ascii_lowercase();
    let text = text.strip_suffix("/s").unwrap_or(&text);
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit_at);
    let (_, times, per) = UNITS.iter().find(|(name, ..)| *name == unit).ok_or_else(bad)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 3 {
        return Err(bad());
    }
    let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| bad())?;
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let large = || format!("'{value}' is too large");
    let bits = whole
        .checked_mul(1000)
        .and_then(|n| n.checked_add(thousandths))
        .and_then(|n| n.checked_mul(*times))
        .ok_or_else(large)?;
    let rate = bits / 1000 / per;
    if rate < RATE_MIN {
        return Err(format!("'{value}' is too slow for a move: write at least 1Mbit"));
    }
    Ok(rate)
}

/// Parses the name of a host.
///
/// # Errors
/// A sentence.
pub fn parse_host(value: &str) -> Result<String, String> {
    value.parse::<HostName>().map(String::from).map_err(|e| e.to_string())
}

/// Parses a share of time, 1 to 100.
///
/// # Errors
/// A sentence.
pub fn parse_percent(value: &str) -> Result<u8, String> {
    let number = value.strip_suffix('%').unwrap_or(value).parse().ok();
    number
        .filter(|n| (1..=100).contains(n))
        .ok_or_else(|| format!("'{value}' is not a share: write a number from 1 to 100"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetLink;
    use proptest::prelude::*;

    #[test]
    fn wait_for() {
        let wait =
            |text: &str, s| Ok(WaitFor { text: text.into(), within: Duration::from_secs(s) });
        assert_eq!(parse_wait_for("console:login:"), wait("login:", 60));
        assert_eq!(parse_wait_for("console:login:,2m"), wait("login:", 120));
        assert_eq!(parse_wait_for("console:a,b"), wait("a,b", 60));
        assert_eq!(parse_wait_for("console:a,5"), wait("a,5", 60));
        assert_eq!(parse_wait_for("console:a,b,5s"), wait("a,b", 5));
        for bad in ["", "login", "console:", "console:,5s", "vsock:1"] {
            assert!(parse_wait_for(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn disks() {
        let disk = parse_disk("a.img,ro,cache=writeback,serial=x").unwrap();
        assert_eq!(
            disk,
            DiskFile {
                path: "a.img".into(),
                read_only: true,
                shared: false,
                cache: Cache::Writeback,
                serial: Some("x".into())
            }
        );
        assert!(parse_disk("a.img,shared").unwrap().shared);
        assert_eq!(parse_disk("path=/a").unwrap().path, std::path::Path::new("/a"));
        for bad in ["", ",ro", "a,rw", "a,cache=x", "a,cache"] {
            assert!(parse_disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nets() {
        let net = parse_net("tap=t0,mac=52:54:00:00:00:01,mtu=1400").unwrap();
        let mac = Some([0x52, 0x54, 0, 0, 0, 1]);
        let tap = Some("t0".into());
        assert_eq!(net, NetFile { tap, mac, mtu: Some(1400), ..NetFile::default() });
        let link = |value: &str| parse_net(value).unwrap().link().unwrap();
        assert_eq!(link("bridge=br0,mtu=1400"), NetLink::Bridge("br0".into()));
        assert_eq!(link("network=lan"), NetLink::Network("lan".into()));
        for bad in [
            "",
            "t0",
            "mac=52:54:00:00:00:01",
            "tap=",
            "tap=a,mtu=x",
            "bridge=br0,tap=t",
            "bridge=",
        ] {
            assert!(parse_net(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!((parse_percent("1"), parse_percent("100%")), (Ok(1), Ok(100)));
        for bad in ["0", "101", "", "x", "-1", "1.5"] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_need_their_unit() {
        for (text, rate) in [
            ("1Gbit", 125_000_000),
            ("2.5gbit/s", 312_500_000),
            ("200Mbit", 25_000_000),
            ("100MB", 100_000_000),
            ("100MiB/s", 104_857_600),
            ("1000kbit", RATE_MIN),
        ] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for bad in
            ["", "1", "1000000000", "1G", "1.Gbit", "1.2345Gbit", "x", "-1Gbit", "9bit", "1 Gbit s"]
        {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert!(parse_rate("99999999999Gbit").unwrap_err().contains("too large"));
    }

    #[test]
    fn hosts() {
        assert_eq!(parse_host("host2.site-a"), Ok("host2.site-a".to_owned()));
        for bad in ["", "Host", "-a", "a..b", "a:7420"] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_value_panics(value in "([0-9.]{0,30}[kMGbitB/s]{0,6}|.{0,60})") {
            let _ = (parse_rate(&value), parse_host(&value));
            let _ = (parse_wait_for(&value), parse_disk(&value), parse_net(&value));
            let _ = parse_percent(&value);
        }
    }
}
