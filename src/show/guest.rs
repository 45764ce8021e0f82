//! A guest, in words.

use std::fmt::Write;

use super::style::{Style, safe};
use super::units::{bytes, span};
use crate::api::{ExitRecord, GuestInfo, GuestState};
use crate::config::format_mac;
use crate::host::registry::describe;

/// A state's name, as in JSON.
pub fn state_word(state: GuestState) -> &'static str {
    match state {
        GuestState::Starting => "starting",
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Saving => "saving",
        GuestState::Stopping => "stopping",
        GuestState::Leaving => "leaving",
        GuestState::Arriving => "arriving",
        GuestState::Crashed => "crashed",
        GuestState::Stopped => "stopped",
    }
}

/// How a state's name is painted.
pub fn state_paint(state: GuestState) -> fn(Style, &str) -> String {
    match state {
        GuestState::Running => Style::green,
        GuestState::Crashed => Style::red,
        GuestState::Stopped => Style::dim,
        _ => Style::yellow,
    }
}

/// Seconds since a guest's process started.
pub fn uptime(info: &GuestInfo, now: jiff::Timestamp) -> u64 {
    u64::try_from(now.as_second().saturating_sub(info.started.as_second())).unwrap_or(0)
}

/// One sentence: what it is and what it does.
pub fn sentence(info: &GuestInfo) -> String {
    let plural = if info.cpus == 1 { "" } else { "s" };
    format!(
        "{} is {}: {} CPU{plural}, {} of RAM, process {}",
        info.name,
        state_word(info.state),
        info.cpus,
        bytes(info.memory_bytes),
        info.pid
    )
}

/// Everything, a line each.
pub fn page(info: &GuestInfo, now: jiff::Timestamp, style: Style) -> String {
    let d = &info.definition;
    let mut rows: Vec<(&str, String)> = vec![
        ("state", state_paint(info.state)(style, state_word(info.state))),
        ("uuid", info.uuid.to_string()),
        ("term", info.term.to_string()),
        ("process", format!("{} (version {})", info.pid, info.version)),
        ("started", format!("{:.0} ({} ago)", info.started, span(uptime(info, now)))),
        ("memory", {
            let huge = if d.huge_pages { ", huge pages" } else { "" };
            format!("{}, {} in use{huge}", bytes(info.memory_bytes), bytes(info.memory_used_bytes))
        }),
        ("cpus", format!("{} (template {})", info.cpus, info.cpu_template)),
        ("cpu time", format!("{}.{:03} s", info.cpu_ms / 1000, info.cpu_ms % 1000)),
    ];
    if info.cpu_share_percent < 100 {
        rows.push(("throttled", style.yellow(&format!("to {} %", info.cpu_share_percent))));
    }
    if let Some(crash) = &info.crash {
        rows.push(("crash", style.red(&safe(crash))));
    }
    if let Some(pause) = info.loaded_pause_ms {
        rows.push(("loaded", format!("its clocks were moved by {pause} ms")));
    }
    let boots = [
        ("guest", d.guest.clone()),
        ("kernel", d.kernel.as_ref().map(|p| p.display().to_string())),
        ("initrd", d.initrd.as_ref().map(|p| p.display().to_string())),
    ];
    rows.extend(boots.into_iter().filter_map(|(key, value)| Some((key, value?))));
    if !d.cmdline.is_empty() {
        rows.push(("cmdline", safe(&d.cmdline)));
    }
    for disk in &d.disks {
        let read_only = if disk.read_only { ", read-only" } else { "" };
        rows.push(("disk", format!("{} ({}{read_only})", disk.path.display(), disk.serial)));
    }
    for net in &d.nets {
        rows.push(("net", format!("{}, {}", net.link, format_mac(net.mac))));
    }
    if info.resets > 0 {
        rows.push(("resets", info.resets.to_string()));
    }
    rows.push(("console", info.console.display().to_string()));
    let mut text = format!("{}\n", info.name);
    for (key, value) in rows {
        let _ = writeln!(text, "  {key:<10} {value}");
    }
    text
}

/// The end of a guest, a line each.
pub fn ended_page(record: &ExitRecord) -> String {
    let detail = record.detail.as_deref().map(|d| format!(" ({})", safe(d))).unwrap_or_default();
    format!(
        "{}\n  state      stopped: it {}{detail}\n  uuid       {}\n  term       {}\n  \
         started    {:.0}\n  ended      {:.0}\n  memory     {}\n  cpus       {}\n",
        record.name,
        describe(record.how),
        record.uuid,
        record.term,
        record.started,
        record.ended,
        bytes(record.memory_bytes),
        record.cpus
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::GuestFile;

    pub(crate) fn info(name: &str) -> GuestInfo {
        let text = "guest = 'scribbler:ws=64M'\nuuid = '00000000-0000-4000-8000-000000000001'";
        let mut definition = GuestFile::parse(text, "t").unwrap().finish().unwrap();
        definition.name = name.into();
        GuestInfo {
            schema: 1,
            name: name.into(),
            uuid: definition.uuid,
            state: GuestState::Running,
            term: 4,
            pid: 4711,
            version: "0.1.0".into(),
            started: "2026-01-01T00:00:00Z".parse().unwrap(),
            memory_bytes: 128 << 20,
            memory_used_bytes: (64 << 20) + (1 << 19),
            cpus: 2,
            cpu_ms: 12_345,
            cpu_template: "host".into(),
            cpu_share_percent: 100,
            definition,
            console: "/r/guests/a/console.sock".into(),
            resets: 0,
            crash: None,
            loaded_pause_ms: None,
            disk_tracking: Vec::new(),
        }
    }

    #[test]
    fn a_page_and_a_sentence() {
        let mut info = info("a");
        let golden = "a
  state      running
  uuid       00000000-0000-4000-8000-000000000001
  term       4
  process    4711 (version 0.1.0)
  started    2026-01-01T00:00:00Z (1m 40s ago)
  memory     128M, 64.5M in use
  cpus       2 (template host)
  cpu time   12.345 s
  guest      scribbler:ws=64M
  console    /r/guests/a/console.sock
";
        let now = "2026-01-01T00:01:40Z".parse().unwrap();
        assert_eq!(page(&info, now, Style::PLAIN), golden);
        assert_eq!(sentence(&info), "a is running: 2 CPUs, 128M of RAM, process 4711");
        info.crash = Some("evil \u{1b}[2J text".into());
        assert!(!page(&info, now, Style::PLAIN).contains('\u{1b}'));
    }
}
