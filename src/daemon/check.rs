//! `host check`: looks at everything between two hosts that a move depends on, in both
//! directions, and says for each what is wrong and the exact command that mends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use migrate_engine::transport::identity::{Ephemeral, HostName};
use migrate_engine::transport::quic::socket::path_payload;
use migrate_engine::transport::quic::{DataListener, Settings as LinkSettings, dial};

use super::inbound::listen_ip;
use super::moves::outbound::{payload_to, reachable};
use super::peer::link::{ANSWER_DEADLINE, Peer};
use super::peer::pool;
use super::peer::proto::{Ask, Listening, Probe, Tested};
use super::state::Daemon;
use crate::api::host::{CheckLine, HostCheck, HostInfo};
use crate::api::{ErrorCode, Failure};

/// How long a test of the data path may take.
const PROBE: Duration = Duration::from_secs(8);
/// Clocks that differ by more are told.
const CLOCK: f64 = 2.0;
/// Payload of an Ethernet path, below which something is in the way.
const USUAL_PAYLOAD: u16 = 1400;

fn line(what: &str, ok: bool, found: String, remedy: Option<String>) -> CheckLine {
    CheckLine { what: what.into(), ok, found, remedy: remedy.filter(|_| !ok) }
}

fn failed(what: &str, failure: &Failure) -> CheckLine {
    line(what, false, failure.to_string(), Some(failure.0.remedy.clone()))
}

/// Looks at everything between this host and `name`.
///
/// # Errors
/// `no-identity` or `unknown-host`; everything else is in the answer.
pub async fn check(daemon: &Arc<Daemon>, name: &HostName) -> Result<HostCheck, Failure> {
    let loaded = daemon.identity()?;
    if loaded.hosts.get(name).is_none() {
        return Err(pool::unknown(name));
    }
    let mut lines = Vec::new();
    // A new session: what works now counts, not what did once.
    match pool::dial(daemon, name).await {
        Err(failure) => lines.push(failed("control, from here", &failure)),
        Ok(peer) => {
            let found = format!("{} answers", peer.address);
            lines.push(line("control, from here", true, found, None));
            talk(daemon, &peer, &mut lines).await;
        }
    }
    let advice = daemon.port().map(|port| port.advice).unwrap_or_default();
    lines.push(buffers("UDP buffers, here", &advice));
    let ok = lines.iter().all(|line| line.ok);
    Ok(HostCheck { schema: 1, host: name.to_string(), ok, lines })
}

async fn talk(daemon: &Arc<Daemon>, peer: &Arc<Peer>, lines: &mut Vec<CheckLine>) {
    let before = (Instant::now(), jiff::Timestamp::now());
    let info = peer.ask::<HostInfo>(&Ask::Info, ANSWER_DEADLINE).await;
    match info {
        Ok(info) => about(&info, before, lines),
        Err(failure) => lines.push(failed("what it says of itself", &failure)),
    }
    match probe(daemon, peer).await {
        Ok(tested) => path("data, from here", &tested, lines),
        Err(failure) => lines.push(failed("data, from here", &failure)),
    }
    match peer.ask::<Tested>(&Ask::ProbeBack, 2 * PROBE).await {
        Ok(tested) => {
            path("data, from there", &tested, lines);
            lines.push(buffers("UDP buffers, there", &tested.advice));
        }
        Err(failure) => lines.push(failed("data, from there", &failure)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a difference of clocks for people")]
fn about(info: &HostInfo, before: (Instant, jiff::Timestamp), lines: &mut Vec<CheckLine>) {
    let passed = before.0.elapsed().as_secs_f64();
    // The answer was written somewhere in between.
    let apart = info.now.as_millisecond().saturating_sub(before.1.as_millisecond()) as f64 / 1000.0;
    let apart = apart - passed / 2.0;
    lines.push(line(
        "clock",
        apart.abs() <= CLOCK,
        format!("{apart:+.1} s apart"),
        Some("on both hosts: timedatectl set-ntp true".into()),
    ));
    let own = env!("CARGO_PKG_VERSION");
    lines.push(line(
        "release",
        neighbours(own, &info.version),
        format!("here {own}, there {}", info.version),
        Some("bring both hosts to the same or to neighbouring releases".into()),
    ));
    if let Some(ends) = info.certificate_ends {
        let left = ends.as_second().saturating_sub(info.now.as_second());
        lines.push(line(
            "certificate, there",
            left > 0,
            format!("good for {} days", left / 86_400),
            Some("there: migrate host join LINE, with a new invitation".into()),
        ));
    }
    let free = info.memory_available_bytes.saturating_sub(info.memory_reserved_bytes);
    lines.push(line("room, there", true, format!("{} MiB, {} CPUs", free >> 20, info.cpus), None));
}

/// Whether moves between two releases are promised to work.
fn neighbours(one: &str, other: &str) -> bool {
    let minor = |version: &str| {
        let mut parts = version.split('.');
        Some((parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?))
    };
    match (minor(one), minor(other)) {
        (Some((a, x)), Some((b, y))) => a == b && x.abs_diff(y) <= 1,
        _ => false,
    }
}

fn buffers(what: &str, advice: &[String]) -> CheckLine {
    let found = if advice.is_empty() { "large enough".into() } else { advice.join("; ") };
    let remedy = "see above: sysctl settings in /etc/sysctl.d/60-migrate.conf".to_owned();
    line(what, advice.is_empty(), found, Some(remedy))
}

fn path(what: &str, tested: &Tested, lines: &mut Vec<CheckLine>) {
    let ports: Vec<String> = tested.addresses.iter().map(|a| a.port().to_string()).collect();
    let found = format!("ports {} open, round trip {:.1} ms", ports.join(", "), tested.rtt_ms);
    lines.push(line(what, true, found, None));
    let whole = tested.payload >= tested.expected.min(USUAL_PAYLOAD);
    lines.push(line(
        &what.replace("data", "datagrams"),
        whole,
        format!("{} bytes get through, the route promises {}", tested.payload, tested.expected),
        Some("set the same MTU on every link between the hosts: ip link set DEV mtu 1500".into()),
    ));
}

fn unexpected(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, error.to_string(), "see the daemon's log")
}

/// Listens for a test of the data path, on ports of receivers.
///
/// # Errors
/// No port is free.
pub async fn listen(
    daemon: &Arc<Daemon>,
    peer: &Arc<Peer>,
    probe: &Probe,
) -> Result<Listening, Failure> {
    let settings = daemon.settings();
    let expected = probe.fingerprint.parse().map_err(|e| unexpected(&e))?;
    let ip = listen_ip(daemon, &settings)?;
    let ports = *settings.data_ports.start()..settings.data_ports.end().saturating_add(1);
    let busy = |e: &dyn std::fmt::Display| {
        let remedy = "wait for moves that go on, or widen data_ports in host.toml there";
        Failure::new(ErrorCode::NoRoom, format!("no port to test with there: {e}"), remedy)
    };
    let listener = DataListener::bind(ip, ports, 1).map_err(|e| busy(&e))?;
    let addresses = listener.addresses().map_err(|e| busy(&e))?;
    let own = Ephemeral::generate().map_err(|e| unexpected(&e))?;
    let payload = payload_to(peer.address)?;
    let link = LinkSettings { payload, ..LinkSettings::default() };
    let fingerprint = own.fingerprint().to_string();
    tokio::spawn(async move {
        if let Ok(link) = listener.accept(&own, expected, &link, PROBE).await {
            let _ = tokio::time::timeout(PROBE, link.handle.ended()).await;
        }
    });
    Ok(Listening { addresses, fingerprint, payload })
}

/// Tests the data path from here to `peer`.
///
/// # Errors
/// What did not work.
pub async fn probe(daemon: &Arc<Daemon>, peer: &Arc<Peer>) -> Result<Tested, Failure> {
    let own = Ephemeral::generate().map_err(|e| unexpected(&e))?;
    let payload = payload_to(peer.address)?;
    let ask = Ask::Probe(Probe { fingerprint: own.fingerprint().to_string(), payload });
    let listening: Listening = peer.ask(&ask, ANSWER_DEADLINE).await?;
    let addresses = reachable(&listening.addresses, peer, 1)?;
    let there = listening.fingerprint.parse().map_err(|e| unexpected(&e))?;
    let settings = LinkSettings { payload, ..LinkSettings::default() };
    let (link, advice) = dial(&addresses, None, &own, there, &settings).await.map_err(|error| {
        let ports = daemon.settings().data_ports.clone();
        Failure::new(
            ErrorCode::Unreachable,
            error.to_string(),
            format!(
                "open UDP ports {}-{} on '{}' (its data_ports): e.g. nft add rule inet filter \
                     input udp dport {}-{} accept",
                ports.start(),
                ports.end(),
                peer.name,
                ports.start(),
                ports.end()
            ),
        )
    })?;
    // The path's MTU is found in a few round trips.
    let rtt = peer.rtt().max(Duration::from_millis(20));
    tokio::time::sleep((rtt * 16).min(Duration::from_secs(3))).await;
    let stats = link.handle.stats();
    let expected = addresses.first().and_then(|a| path_payload(*a, None).ok()).unwrap_or(payload);
    let stats = stats.lanes.first().copied().unwrap_or(stats.control);
    Ok(Tested {
        addresses,
        payload: stats.mtu,
        expected: expected.min(listening.payload),
        rtt_ms: stats.rtt.as_secs_f64() * 1000.0,
        advice: advice.iter().map(ToString::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_releases_go_together() {
        for (one, other, together) in [
            ("0.1.0", "0.1.9", true),
            ("0.1.0", "0.2.0", true),
            ("0.3.0", "0.1.0", false),
            ("1.0.0", "0.9.0", false),
            ("1.0.0", "?", false),
        ] {
            assert_eq!(neighbours(one, other), together, "{one} {other}");
        }
    }
}
