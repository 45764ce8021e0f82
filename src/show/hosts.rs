//! Hosts, in words.

use super::columns::{align, pairs};
use super::style::{Style, safe};
use super::units::{bytes, span};
use crate::api::host::{HostCheck, HostInfo, HostList, RemovalOutcome};

/// The table of `host ls`.
pub fn listing(list: &HostList, style: Style) -> String {
    if list.hosts.is_empty() {
        return "No hosts. Begin a site: migrate host init\n".to_owned();
    }
    let mut rows = vec![
        ["NAME", "STATE", "ADDRESS", "GUESTS", "CPUS", "MEMORY FREE", "VERSION", "RIGHTS"]
            .map(str::to_owned),
    ];
    for host in &list.hosts {
        let info = host.info.as_ref();
        let known = |f: &dyn Fn(&HostInfo) -> String| info.map_or_else(|| "-".to_owned(), f);
        let state = if host.this {
            "this host"
        } else if info.is_some() {
            "answers"
        } else if host.error.is_some() {
            "silent"
        } else {
            "not asked"
        };
        rows.push([
            safe(&host.name),
            state.to_owned(),
            safe(&host.address),
            known(&|i| i.guests.to_string()),
            known(&|i| i.cpus.to_string()),
            known(&|i| bytes(i.memory_available_bytes.saturating_sub(i.memory_reserved_bytes))),
            known(&|i| safe(&i.version)),
            if host.this { "-".to_owned() } else { safe(&host.rights.join(",")) },
        ]);
    }
    let mut text = align(&rows, |_, column, cell| match (column, cell) {
        (1, "silent") => style.red(cell),
        (1, "answers" | "this host") => style.green(cell),
        _ => cell.to_owned(),
    });
    for host in &list.hosts {
        if let Some(error) = &host.error {
            let (message, remedy) = (safe(&error.message), safe(&error.remedy));
            let name = safe(&host.name);
            text.extend([&*name, ": ", &message, "\n  next:  ", &remedy, "\n"]);
        }
    }
    text
}

/// Everything about a host, a line each.
pub fn page(info: &HostInfo, style: Style) -> String {
    let up = info.now.as_second().saturating_sub(info.started.as_second());
    let mut rows = vec![
        ("name", safe(&info.host.name)),
        ("id", info.host.id.to_string()),
        (
            "daemon",
            format!(
                "process {}, version {}, up {}",
                info.pid,
                safe(&info.version),
                span(u64::try_from(up).unwrap_or(0))
            ),
        ),
        (
            "listens",
            info.listen.as_deref().map_or_else(
                || style.yellow("no: it has no identity yet (migrate host init, or join)"),
                safe,
            ),
        ),
    ];
    if let Some(end) = info.certificate_ends {
        let left = end.as_second().saturating_sub(info.now.as_second());
        let words = match u64::try_from(left) {
            Ok(left) => format!("good for {} more", span(left)),
            Err(_) => style.red("expired"),
        };
        rows.push(("certificate", format!("{words} ({end:.0})")));
    }
    if let Some(problem) = &info.kvm_problem {
        rows.push(("kvm", style.red(&safe(problem))));
    }
    rows.push(("cpus", info.cpus.to_string()));
    rows.push((
        "memory",
        format!(
            "{}, {} available, {} of it promised to guests that arrive",
            bytes(info.memory_total_bytes),
            bytes(info.memory_available_bytes),
            bytes(info.memory_reserved_bytes)
        ),
    ));
    rows.push(("guests", format!("{}, {} moves go on", info.guests, info.moves_running)));
    rows.extend(info.advice.iter().map(|a| ("advice", style.yellow(&safe(a)))));
    pairs(&rows)
}

/// What became of `host remove`.
pub fn removed(host: &str, outcome: Option<&RemovalOutcome>) -> String {
    let host = safe(host);
    match outcome {
        Some(RemovalOutcome { from_site: false, error: None, .. }) => format!(
            "{host} is trusted no more by this host. It has the site's CA: others end their trust \
             in it one by one\n"
        ),
        Some(RemovalOutcome { from_site: false, error: Some(error), .. }) => format!(
            "{host} is trusted no more by this host, but is not removed from the site: {}\n  next:  \
             {}\n  or, on the CA's host:  migrate host remove {host}\n",
            safe(&error.message),
            safe(&error.remedy)
        ),
        Some(RemovalOutcome { not_told, .. }) if !not_told.is_empty() => {
            let names: Vec<String> = not_told.iter().map(|n| safe(n)).collect();
            format!(
                "{host} is no host of this site any more. Not reached now, and told when they come \
                 back: {}\n",
                names.join(", ")
            )
        }
        _ => format!("{host} is no host of this site any more.\n"),
    }
}

/// What `host check` found.
pub fn check(check: &HostCheck, style: Style) -> String {
    let rows: Vec<[String; 3]> = check
        .lines
        .iter()
        .map(|line| {
            let mark = if line.ok { "ok" } else { "BAD" };
            [mark.to_owned(), safe(&line.what), safe(&line.found)]
        })
        .collect();
    let mut text = align(&rows, |_, column, cell| match (column, cell) {
        (0, "ok") => style.green(cell),
        (0, _) => style.red(cell),
        _ => cell.to_owned(),
    });
    for line in check.lines.iter().filter(|line| !line.ok) {
        if let Some(remedy) = &line.remedy {
            text.extend(["  next:  ", &safe(remedy), "\n"]);
        }
    }
    text
}
