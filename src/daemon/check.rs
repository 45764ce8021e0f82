//! What is well and what is not between this host and another, each with its remedy.

use std::sync::Arc;
use std::time::Duration;

use migrate_engine::transport::quic::socket::path_payload;

use super::peer::{Answer, Request};
use super::peers::Told;
use super::{Daemon, peers};
use crate::api::Failure;
use crate::api::host::{CheckLine, HostCheck};
use crate::guest::facts::VERSION;

/// Clocks that differ by more than this are worth a word.
const CLOCK: Duration = Duration::from_secs(5);

fn line(what: &str, ok: bool, found: impl Into<String>, remedy: Option<String>) -> CheckLine {
    CheckLine { what: what.into(), ok, found: found.into(), remedy }
}

/// Looks at everything.
///
/// # Errors
/// The host is not known here, or this one has no identity.
pub async fn check(daemon: &Arc<Daemon>, host: &str) -> Result<HostCheck, Failure> {
    let known = daemon.known(host)?;
    daemon.dialler()?;
    let mut lines = Vec::new();
    let address = peers::resolve(&known.address).await;
    match &address {
        Ok(address) => {
            lines.push(line("address", true, format!("{} ({address})", known.address), None));
        }
        Err(failure) => lines.push(failed("address", failure)),
    }
    match daemon.ask(host, Request::Info).await {
        Ok(told) => {
            answered(daemon, &told, &mut lines);
            lines.push(super::cpu::check(daemon, host).await);
        }
        Err(failure) => lines.push(failed("control port", &failure)),
    }
    if let Ok(address) = address {
        match path_payload(address, daemon.config.migration_address) {
            Ok(payload) => {
                let found = format!("{payload} bytes of UDP payload");
                lines.push(line("MTU", true, found, None));
            }
            Err(error) => lines.push(line(
                "route",
                false,
                error.to_string(),
                Some(format!("add a route to {}", address.ip())),
            )),
        }
    }
    let advice = daemon.net().advice.clone();
    let small = !advice.is_empty();
    let found = if small { "smaller than they should be" } else { "as large as they should be" };
    lines.push(line("UDP buffers here", !small, found, advice.into_iter().next()));
    let range = &daemon.config.data_ports;
    let found = format!("{}-{}", range.start(), range.end());
    lines.push(line("data ports here", range.len() >= 2, found, None));
    // A small buffer costs speed, nothing else.
    let ok = lines.iter().all(|l| l.ok || l.what.starts_with("UDP buffers"));
    Ok(HostCheck { schema: 1, host: host.to_owned(), ok, lines })
}

fn failed(what: &str, failure: &Failure) -> CheckLine {
    line(what, false, failure.0.message.clone(), Some(failure.0.remedy.clone()))
}

fn answered(daemon: &Daemon, told: &Told, lines: &mut Vec<CheckLine>) {
    let rtt = told.round_trip.as_secs_f64() * 1000.0;
    lines.push(line("control port", true, format!("answers, round trip {rtt:.1} ms"), None));
    lines.push(line("identity", true, format!("{} ({})", told.host.name, told.host.id), None));
    let Answer::Info(info) = &told.answer else { return };
    let same = info.version == VERSION;
    let found = format!("{} there, {VERSION} here", info.version);
    lines.push(line("version", same, found, (!same).then(|| "upgrade the older one".into())));
    let apart = info.now.duration_since(jiff::Timestamp::now()).unsigned_abs();
    let fine = apart <= CLOCK;
    let remedy =
        (!fine).then(|| "run a time service on both: systemctl enable --now chronyd".into());
    lines.push(line("clock", fine, format!("{} ms apart", apart.as_millis()), remedy));
    let mib = info.memory_available_bytes.saturating_sub(info.memory_reserved_bytes) >> 20;
    lines.push(line("room there", mib > 0, format!("{mib} MiB, {} CPUs", info.cpus), None));
    let small = !info.advice.is_empty();
    let found = if small { "smaller than they should be" } else { "as large as they should be" };
    lines.push(line("UDP buffers there", !small, found, info.advice.first().cloned()));
    let back = daemon.net().listen.is_some();
    lines.push(line("control port here", back, daemon.address(), None));
}
