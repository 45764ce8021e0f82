//! Makes taps in bridges, for whoever starts guests and has `CAP_NET_ADMIN`. A guest's process has
//! it not: it is handed the descriptor. A tap that is made here is gone with its last descriptor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::tap::{DEVICE, TapError, WANTED, check_name};
use super::tap_ioctl;

/// The kernel puts a number in the place of `%d`.
const NAMES: &str = "migrate%d";

/// Why no tap could be made in a bridge.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// There is no such interface.
    #[error("there is no bridge {0} on this host")]
    Missing(String),
    /// The interface is something else.
    #[error("{0} is not a bridge")]
    NotBridge(String),
    /// `CAP_NET_ADMIN` is missing.
    #[error("this user may not make a tap in a bridge: that needs CAP_NET_ADMIN")]
    Permission,
    /// The guest would send frames that the bridge drops.
    #[error("the guest's MTU of {guest_mtu} is more than that of bridge {bridge} ({bridge_mtu})")]
    Mtu {
        /// The bridge.
        bridge: String,
        /// Its MTU.
        bridge_mtu: u32,
        /// The guest's.
        guest_mtu: u16,
    },
    /// The tap itself.
    #[error(transparent)]
    Tap(TapError),
    /// The kernel refused something else.
    #[error("cannot {what} for bridge {bridge}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The bridge.
        bridge: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A fresh tap, up, in `bridge` of the calling thread's network namespace, with the bridge's MTU.
/// `guest_mac` is the address of the guest behind it, `guest_mtu` the MTU that it is told.
///
/// # Errors
/// [`BridgeError`]; nothing is left behind.
pub fn tap_in_bridge(
    bridge: &str,
    guest_mac: [u8; 6],
    guest_mtu: Option<u16>,
) -> Result<OwnedFd, BridgeError> {
    check_name(bridge).map_err(BridgeError::Tap)?;
    let host = |what: &'static str| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => BridgeError::Permission,
            _ => BridgeError::Host { what, bridge: bridge.to_owned(), source },
        }
    };
    if nix::net::if_::if_nametoindex(bridge).is_err() {
        return Err(BridgeError::Missing(bridge.to_owned()));
    }
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| host("open a control socket")(e.into()))?;
    // No interface has index 0: a bridge says so, anything else does not know the question.
    match tap_ioctl::join_bridge(&control, bridge, 0) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => {
            return Err(BridgeError::Permission);
        }
        _ => return Err(BridgeError::NotBridge(bridge.to_owned())),
    }
    let bridge_mtu = tap_ioctl::mtu(&control, bridge).map_err(host("read the MTU"))?;
    if let Some(guest_mtu) = guest_mtu.filter(|mtu| u32::from(*mtu) > bridge_mtu) {
        return Err(BridgeError::Mtu { bridge: bridge.to_owned(), bridge_mtu, guest_mtu });
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|e| BridgeError::Tap(TapError::Device(e)))?;
    tap_ioctl::attach(&file, NAMES, WANTED).map_err(host("make a tap"))?;
    let name = tap_ioctl::interface(&file).map_err(host("find the new tap"))?.name;
    // A bridge takes the lowest MTU of its ports for its own.
    tap_ioctl::set_mtu(&control, &name, bridge_mtu).map_err(host("set the tap's MTU"))?;
    tap_ioctl::set_address(&control, &name, port_mac(guest_mac))
        .map_err(host("set the tap's address"))?;
    let index = nix::net::if_::if_nametoindex(name.as_str())
        .map_err(|e| host("find the new tap")(e.into()))?;
    tap_ioctl::join_bridge(&control, bridge, index).map_err(host("join the tap"))?;
    tap_ioctl::set_up(&control, &name).map_err(host("switch the tap on"))?;
    Ok(file.into())
}

/// The tap's own address. Not the guest's, whose frames the bridge would take for its own; and
/// high, because a bridge takes the lowest of its ports for its own and must not change it when
/// guests come and go.
fn port_mac(guest: [u8; 6]) -> [u8; 6] {
    let mut port = guest;
    port[0] = if guest[0] == 0xFE { 0xFA } else { 0xFE };
    port
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::devices::tap::Tap;

    fn ip(words: &str) -> String {
        let ran = Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(ran.status.success(), "ip {words}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    #[test]
    fn a_tap_joins_its_bridge_and_goes_with_its_descriptor() {
        // A thread has a network of its own.
        if !nix::unistd::geteuid().is_root() || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            eprintln!("SKIPPED: no network namespace can be made: run this test as root");
            return;
        }
        let refused = |bridge: &str, mtu| tap_in_bridge(bridge, MAC, mtu).unwrap_err().to_string();
        assert_eq!(refused("br0", None), "there is no bridge br0 on this host");
        assert_eq!(refused("lo", None), "lo is not a bridge");
        ip("link add br0 mtu 9000 type bridge");
        ip("link set br0 up");
        assert!(refused("br0", Some(9001)).contains("9001 is more than that of bridge br0 (9000)"));
        assert_eq!(ip("-o link show master br0"), "", "nothing is left of a refusal");

        let one = tap_in_bridge("br0", MAC, Some(9000)).unwrap();
        let two = tap_in_bridge("br0", [0x52, 0x54, 0, 1, 2, 4], None).unwrap();
        let ports = ip("-o link show master br0");
        assert_eq!(ports.lines().count(), 2, "{ports}");
        assert!(ports.contains("fe:54:00:01:02:03") && ports.contains("UP"), "{ports}");
        assert!(ports.lines().all(|l| l.contains("mtu 9000")), "{ports}");
        assert!(ip("-o link show br0").contains("mtu 9000"));
        drop(Tap::from_fd(one).unwrap());
        assert_eq!(ip("-o link show master br0").lines().count(), 1);
        drop(two);
        assert_eq!(ip("-o link show master br0"), "");
    }

    #[test]
    fn a_ports_address_is_no_guests() {
        assert_eq!(port_mac(MAC), [0xFE, 0x54, 0, 1, 2, 3]);
        assert_ne!(port_mac([0xFE, 0, 0, 0, 0, 1]), [0xFE, 0, 0, 0, 0, 1]);
    }
}
