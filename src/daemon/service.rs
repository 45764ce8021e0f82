//! What the service manager hears of the daemon (`sd_notify(3)`): that it is ready, that it ends,
//! and that it is alive. Without one, nothing is said. It waits for nobody.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Says `READY=1`, and from then on as often as it is wanted that the daemon is alive. All its
/// tasks have one thread: one that blocks it is noticed.
pub fn ready() {
    notify("READY=1\nSTATUS=Guests run on without it.");
    let wanted = |name| std::env::var_os(name);
    let Some(limit) = watchdog(wanted("WATCHDOG_USEC"), wanted("WATCHDOG_PID")) else { return };
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(limit / 3);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            notify("WATCHDOG=1");
        }
    });
}

/// Says `STOPPING=1`.
pub fn stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_encoded_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// The longest silence that is taken for life, if this process is the one that is watched.
fn watchdog(usec: Option<OsString>, pid: Option<OsString>) -> Option<Duration> {
    let ours = std::process::id().to_string();
    if pid.is_some_and(|pid| pid != ours.as_str()) {
        return None;
    }
    let limit = Duration::from_micros(usec?.to_str()?.parse().ok()?);
    (!limit.is_zero()).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_heard_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("migrate-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let readers = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&abstract_name).unwrap()),
        ];
        for (socket, reader) in readers {
            send(&socket, "READY=1").unwrap();
            let mut bytes = [0; 32];
            let len = reader.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"READY=1");
        }
        assert!(send(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }

    #[test]
    fn only_the_watched_process_is_watched() {
        let text = |t: &str| Some(OsString::from(t));
        let ours = text(&std::process::id().to_string());
        assert_eq!(watchdog(text("3000000"), ours.clone()), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), None), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), text("1")), None);
        for bad in ["", "0", "-1", "x"] {
            assert_eq!(watchdog(text(bad), ours.clone()), None);
        }
        assert_eq!(watchdog(None, ours), None);
    }
}
