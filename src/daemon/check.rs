//! What is well and what is not between this host and another, in both directions, each with its
//! remedy. Ports are tried with certificates made for that, as a move has them.
//!
//! | module | what it does |
//! |---|---|
//! | [`paths`] | whether the files that guests here need are there |

mod paths;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use migrate_engine::transport::identity::{Ephemeral, Fingerprint, HostName};
use migrate_engine::transport::quic::socket::path_payload;
use migrate_engine::transport::quic::{ConnectError, ProbeListener, Probed, Settings, probe};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peer::{Answer, Path, Probe, Probing, Request, Tried};
use super::peers::Told;
use super::{Daemon, peers, unexpected};
use crate::api::client::runtime;
use crate::api::host::{CheckLine, HostCheck, HostInfo};
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::guest::facts::VERSION;

/// Clocks that differ by more than this are worth a word.
const CLOCK: Duration = Duration::from_secs(5);
/// Data is sent for this long.
const SAMPLE: Duration = Duration::from_millis(500);
/// How long a port may take to answer.
const CONNECT: Duration = Duration::from_secs(2);
/// How long ports wait to be tried.
const WAIT: Duration = Duration::from_secs(8);
/// How long one waits for its turn to try them.
const TURN: Duration = Duration::from_secs(4);
/// The ports are tried in so many parts: guests that arrive meanwhile need some of them.
const PARTS: u8 = 2;
/// Most ports of a part.
const PORTS_MAX: usize = 64;

fn line(what: &str, ok: bool, found: impl Into<String>, remedy: Option<String>) -> CheckLine {
    CheckLine { what: what.into(), ok, found: found.into(), remedy: remedy.filter(|_| !ok) }
}

fn failed(what: &str, failure: &ErrorBody) -> CheckLine {
    line(what, false, failure.message.clone(), Some(failure.remedy.clone()))
}

/// Looks at everything.
///
/// # Errors
/// The host is not known in the site, or this one has no identity.
pub async fn check(daemon: &Arc<Daemon>, host: &str) -> Result<HostCheck, Failure> {
    daemon.dialler()?;
    let known = daemon.find(host).await?;
    let mut lines = Vec::new();
    match peers::resolve(&known.address).await {
        Ok(address) => {
            lines.push(line("address", true, format!("{} ({address})", known.address), None));
        }
        Err(failure) => lines.push(failed("address", &failure.0)),
    }
    let asked = (Instant::now(), jiff::Timestamp::now());
    let mut error = None;
    match daemon.ask(host, Request::Info).await {
        Ok(told) => {
            answered(&told, asked, &mut lines);
            lines.push(super::cpu::check(daemon, host).await);
            lines.push(paths::check(daemon, host).await);
            match try_ports(daemon, host).await {
                Ok(found) => path("data from here", &found, &mut lines),
                Err(failure) => lines.push(failed("data from here", &failure.0)),
            }
            way_back(daemon, host, &mut lines).await;
        }
        Err(mut failure) => {
            if failure.0.code == ErrorCode::Unreachable {
                failure.0.remedy = unreachable(&known.address);
            }
            lines.push(failed("control from here", &failure.0));
            error = Some(*failure.0);
        }
    }
    lines.push(buffers("UDP buffers here", &daemon.net().advice.clone()));
    // A small buffer costs speed, nothing else.
    let ok = lines.iter().all(|l| l.ok || l.what.starts_with("UDP buffers"));
    Ok(HostCheck { schema: 1, host: host.to_owned(), ok, lines, error })
}

fn unreachable(address: &str) -> String {
    let port = address.rsplit_once(':').map_or(address, |(_, port)| port);
    format!(
        "where {address} is: start the daemon (migrate daemon), and let its UDP port in, e.g.: nft \
         add rule inet filter input udp dport {port} accept"
    )
}

fn buffers(what: &str, advice: &[String]) -> CheckLine {
    let small = !advice.is_empty();
    let found = if small { "smaller than they should be" } else { "as large as they should be" };
    line(what, !small, found, advice.first().cloned())
}

/// How far the clock of a host is from this one's, which asked at `asked`.
fn apart(info: &HostInfo, (began, asked): (Instant, jiff::Timestamp)) -> jiff::SignedDuration {
    // It was read somewhere in between.
    let half = jiff::SignedDuration::try_from(began.elapsed() / 2).unwrap_or_default();
    info.now.duration_since(asked) - half
}

fn answered(told: &Told, asked: (Instant, jiff::Timestamp), lines: &mut Vec<CheckLine>) {
    let Answer::Info(info) = &told.answer else { return };
    let apart = apart(info, asked);
    let rtt = told.round_trip.as_secs_f64() * 1000.0;
    lines.push(line("control from here", true, format!("answers, round trip {rtt:.1} ms"), None));
    lines.push(line("identity", true, format!("{} ({})", told.host.name, told.host.id), None));
    let together = neighbours(&info.version, VERSION);
    let found = format!("{} there, {VERSION} here", info.version);
    lines.push(line("version", together, found, Some("upgrade the older one".into())));
    let found = match apart.as_millis() {
        0 => "the same".to_owned(),
        ms if ms > 0 => format!("{ms} ms ahead of this host's"),
        ms => format!("{} ms behind this host's", ms.unsigned_abs()),
    };
    let remedy = "run a time service on both: systemctl enable --now chronyd";
    lines.push(line("clock there", apart.unsigned_abs() <= CLOCK, found, Some(remedy.into())));
    if let Some(ends) = info.certificate_ends {
        let days = ends.as_second().saturating_sub(info.now.as_second()) / 86_400;
        let remedy = "migrate host invite on the CA's host, then there: migrate host join LINE";
        let good = ends > info.now;
        let found = if good { format!("good for {days} days") } else { format!("ended {ends:.0}") };
        lines.push(line("certificate there", good, found, Some(remedy.into())));
    }
    let kvm = info.kvm_problem.as_deref();
    let remedy =
        "there: modprobe kvm_intel or kvm_amd; its daemon must be allowed to open /dev/kvm";
    lines.push(line("KVM there", kvm.is_none(), kvm.unwrap_or("works"), Some(remedy.into())));
    let mib = info.memory_available_bytes.saturating_sub(info.memory_reserved_bytes) >> 20;
    let found = format!("{mib} MiB, {} CPUs", info.cpus);
    let remedy = "stop or move guests there";
    lines.push(line("room there", mib > 0, found, Some(remedy.into())));
    lines.push(buffers("UDP buffers there", &info.advice));
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

/// What the other host finds when it dials this one.
async fn way_back(daemon: &Arc<Daemon>, host: &str, lines: &mut Vec<CheckLine>) {
    let tried = match daemon.ask(host, Request::ProbeBack).await {
        Ok(Told { answer: Answer::Tried(tried), .. }) => *tried,
        Ok(_) => return,
        Err(failure) => return lines.push(failed("the way back", &failure.0)),
    };
    match &tried.control {
        Ok(rtt) => {
            let found = format!("{} answers, round trip {rtt:.1} ms", tried.address);
            lines.push(line("control from there", true, found, None));
        }
        Err(error) => {
            let mut error = error.clone();
            if error.code == ErrorCode::Unreachable {
                error.remedy = format!(
                    "set advertise in host.toml here to an address at which '{host}' reaches this \
                     host, and let its UDP port in; it dialled {}",
                    tried.address
                );
            }
            lines.push(failed("control from there", &error));
        }
    }
    match &tried.data {
        Ok(found) => path("data from there", found, lines),
        Err(error) => lines.push(failed("data from there", error)),
    }
}

/// Ports as people write them: 7421-7430, 7433.
fn ranges(ports: &[u16]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for port in sorted {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => runs.push((port, port)),
        }
    }
    let run = |(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

fn path(what: &str, found: &Path, lines: &mut Vec<CheckLine>) {
    let closed: Vec<u16> = found.closed.iter().map(|(port, _)| *port).collect();
    let ports = what.replace("data", "data ports");
    let busy = match found.busy[..] {
        [] => String::new(),
        _ => format!("; {} in use, not tried", ranges(&found.busy)),
    };
    if let Some((_, why)) = found.closed.first() {
        let text = format!("{} do not answer: {why}{busy}", ranges(&closed));
        let remedy = format!(
            "let UDP ports {} in where they are, e.g.: nft add rule inet filter input udp dport \
             {{ {} }} accept",
            ranges(&closed),
            ranges(&closed)
        );
        lines.push(line(&ports, false, text, Some(remedy)));
    } else if found.open.is_empty() {
        let remedy = "wait for the moves that go on, or widen data_ports in host.toml";
        lines.push(line(&ports, false, format!("none is free{busy}"), Some(remedy.into())));
    } else {
        let text = format!("{} answer{busy}", ranges(&found.open));
        lines.push(line(&ports, true, text, None));
    }
    if found.payload == 0 {
        return;
    }
    // The last bytes of a search are not looked for.
    let whole = found.payload.saturating_add(32) >= found.promised;
    let text = if whole {
        format!("{} bytes of UDP payload", found.payload)
    } else {
        format!("{} bytes of UDP payload, the route promises {}", found.payload, found.promised)
    };
    let remedy = "set the same MTU on every link between the hosts: ip link set DEV mtu N";
    lines.push(line(&what.replace("data", "datagrams"), whole, text, Some(remedy.into())));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let mbit = found.bytes_per_s as f64 * 8.0 / 1e6;
    let text = format!("{mbit:.0} Mbit/s on one connection, round trip {:.1} ms", found.rtt_ms);
    lines.push(line(&what.replace("data", "speed"), true, text, None));
}

/// Opens a part of the data ports for a moment, for the holder of a certificate.
///
/// # Errors
/// `busy` if somebody tries them already; no socket can be made.
pub async fn listen(
    daemon: &Daemon,
    (prober, seen): (&HostName, SocketAddr),
    asked: &Probe,
) -> Result<Answer, Failure> {
    let peer: Fingerprint = asked.fingerprint.parse().map_err(|e| unexpected("a probe", &e))?;
    let current = || daemon.doors.prober.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever asks for more ports waits for none of those that it had before.
    if let Some((_, end)) = current().take_if(|(name, _)| name == prober) {
        end.notify_one();
    }
    // The one before may be about to give its ports back.
    let turn = Arc::clone(&daemon.doors.probes).acquire_owned();
    let permit = timeout(TURN, turn).await.ok().and_then(Result::ok).ok_or_else(|| {
        let message = "its data ports are being tried by somebody else just now";
        Failure::new(ErrorCode::Busy, message, "try again in a moment").retryable()
    })?;
    let part = usize::from(asked.part % PARTS);
    let of_part = daemon.config.data_ports.clone().enumerate();
    let of_part = of_part.filter(|(i, _)| i % usize::from(PARTS) == part).map(|(_, port)| port);
    let taken = daemon.inbound.ports();
    let (mut busy, free): (Vec<u16>, Vec<u16>) =
        of_part.take(PORTS_MAX).partition(|port| taken.contains(port));
    let cannot = |e: &dyn std::fmt::Display| unexpected("data ports cannot be tried", e);
    let listener = ProbeListener::bind(daemon.config.listen.ip(), free).map_err(|e| cannot(&e))?;
    busy.extend(listener.busy());
    let own = Ephemeral::generate().map_err(|e| cannot(&e))?;
    // IPv4 may come in the clothes of IPv6, whose MTU is looked up in another way.
    let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
    let payload = path_payload(seen, daemon.config.migration_address).unwrap_or(asked.payload);
    let payload = payload.min(asked.payload);
    let (ports, fingerprint) = (listener.ports(), own.fingerprint().to_string());
    // A thread of its own, as the data of guests has.
    let runtime = runtime().map_err(|e| cannot(&e))?;
    let settings = Settings { payload, ..Settings::default() };
    let end = Arc::new(Notify::new());
    *current() = Some((prober.clone(), Arc::clone(&end)));
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                () = listener.serve(&own, peer, &settings, WAIT) => {}
                () = end.notified() => {}
            }
        });
        drop(permit);
    };
    thread::Builder::new().name("probe".into()).spawn(work).map_err(|e| cannot(&e))?;
    Ok(Answer::Probing(Probing { ports, busy, fingerprint, payload }))
}

/// What this host finds when it dials the one that asks.
pub async fn try_back(daemon: &Arc<Daemon>, name: &HostName) -> Tried {
    let control = daemon.ask(name.as_str(), Request::Info).await;
    let control = control.map(|told| told.round_trip.as_secs_f64() * 1000.0).map_err(|f| *f.0);
    let data = match &control {
        Ok(_) => try_ports(daemon, name.as_str()).await.map_err(|f| *f.0),
        Err(error) => Err(error.clone()),
    };
    let address = daemon.known(name.as_str()).map(|known| known.address).unwrap_or_default();
    Tried { address, control, data }
}

/// Tries the data ports of a host from here.
async fn try_ports(daemon: &Arc<Daemon>, host: &str) -> Result<Path, Failure> {
    let mut found = Path::default();
    for part in 0..PARTS {
        let tried = try_some(daemon, host, part, (part == 0).then_some(SAMPLE)).await?;
        found.open.extend(tried.open);
        found.closed.extend(tried.closed);
        found.busy.extend(tried.busy);
        if tried.payload > 0 {
            let (payload, promised) = (tried.payload, tried.promised);
            let (rtt_ms, bytes_per_s) = (tried.rtt_ms, tried.bytes_per_s);
            found = Path { payload, promised, rtt_ms, bytes_per_s, ..found };
        }
    }
    Ok(found)
}

/// Bytes per second that get across to a host on one connection, by a sample of half a second.
/// `None`: no data port answered.
///
/// # Errors
/// The host cannot be asked, or somebody tries its ports already.
pub async fn sample(daemon: &Arc<Daemon>, host: &str) -> Result<Option<u64>, Failure> {
    let found = try_some(daemon, host, 0, Some(SAMPLE)).await?;
    Ok(Some(found.bytes_per_s).filter(|rate| *rate > 0))
}

/// Tries a part of the data ports of a host from here.
async fn try_some(
    daemon: &Arc<Daemon>,
    host: &str,
    part: u8,
    sample: Option<Duration>,
) -> Result<Path, Failure> {
    let local = daemon.config.migration_address;
    let own = Ephemeral::generate().map_err(|e| unexpected("a certificate", &e))?;
    let known = peers::resolve(&daemon.known(host)?.address).await?;
    let payload = path_payload(known, local).unwrap_or(Settings::default().payload);
    let fingerprint = own.fingerprint().to_string();
    let request = Request::Probe(Probe { fingerprint, payload, part });
    let told = daemon.ask(host, request).await?;
    let Answer::Probing(there) = told.answer else {
        return Err(unexpected("the other daemon", &"it answered something else"));
    };
    let ip = told.address.ip();
    let work = move || {
        let runtime = runtime().map_err(|e| unexpected("trying ports", &e))?;
        runtime.block_on(try_part(ip, local, own, there, sample))
    };
    let tried = tokio::task::spawn_blocking(work).await;
    tried.map_err(|e| unexpected("trying ports", &e))?
}

/// Tries the ports that wait: all at once, then the first again with a sample.
async fn try_part(
    ip: IpAddr,
    local: Option<IpAddr>,
    own: Ephemeral,
    there: Probing,
    sample: Option<Duration>,
) -> Result<Path, Failure> {
    let peer: Fingerprint = there.fingerprint.parse().map_err(|e| unexpected("a probe", &e))?;
    let mut found = Path { busy: there.busy, promised: there.payload, ..Path::default() };
    let settings = Settings { connect: CONNECT, ..Settings::default() };
    // The first port answers once: it is the one to sample.
    let first = there.ports.first().copied().filter(|_| sample.is_some());
    let mut ports = JoinSet::new();
    for port in there.ports.into_iter().filter(|p| Some(*p) != first).take(PORTS_MAX) {
        let (own, settings) = (own.clone(), settings.clone());
        ports.spawn(async move {
            let address = SocketAddr::new(ip, port);
            (port, probe(address, local, &own, peer, &settings, None).await)
        });
    }
    while let Some(tried) = ports.join_next().await {
        if let Ok((port, tried)) = tried {
            note(&mut found, port, &tried);
        }
    }
    if let Some(port) = first {
        let settings = Settings { payload: found.promised, ..settings };
        let tried = probe(SocketAddr::new(ip, port), local, &own, peer, &settings, sample).await;
        note(&mut found, port, &tried);
        if let Ok(probed) = tried {
            let micros = u64::try_from(probed.took.as_micros()).unwrap_or(u64::MAX).max(1);
            found.bytes_per_s = probed.arrived.saturating_mul(1_000_000) / micros;
            found.payload = probed.payload;
            found.rtt_ms = probed.round_trip.as_secs_f64() * 1000.0;
        }
    }
    found.open.sort_unstable();
    found.closed.sort_unstable();
    Ok(found)
}

fn note(found: &mut Path, port: u16, tried: &Result<Probed, ConnectError>) {
    match tried {
        Ok(_) => found.open.push(port),
        Err(e) => found.closed.push((port, e.to_string())),
    }
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

    #[test]
    fn ports_are_told_as_ranges() {
        assert_eq!(ranges(&[7423, 7421, 7422, 7425, 65535]), "7421-7423, 7425, 65535");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn what_is_closed_or_small_is_bad_with_a_remedy() {
        let mut found = Path {
            open: vec![1, 3],
            closed: vec![(2, "no answer".into())],
            payload: 1200,
            promised: 1472,
            ..Path::default()
        };
        let told = |found: &Path| {
            let mut lines = Vec::new();
            path("data from here", found, &mut lines);
            lines
        };
        let lines = told(&found);
        let what: Vec<&str> = lines.iter().map(|l| l.what.as_str()).collect();
        assert_eq!(what, ["data ports from here", "datagrams from here", "speed from here"]);
        assert!(!lines[0].ok && lines[0].remedy.as_ref().unwrap().contains("udp dport { 2 }"));
        assert!(!lines[1].ok && lines[1].remedy.as_ref().unwrap().contains("mtu"));
        (found.closed, found.payload) = (Vec::new(), 1452);
        assert!(told(&found).iter().all(|l| l.ok && l.remedy.is_none()));
        (found.open, found.busy) = (Vec::new(), vec![1, 2, 3]);
        assert!(!told(&found)[0].ok);
    }
}
