//! Makes the taps of a guest that is to start: the privileged side of its networks. The guest's
//! process gets descriptors, and with the last of them the taps are gone; nothing is to clear up.

use std::os::fd::OwnedFd;

use vmm::devices::bridge::{BridgeError, tap_in_bridge};

use crate::api::{ErrorCode, Failure};
use crate::config::{Dirs, GuestDefinition, NetDefinition, NetLink, bridge_of};

/// A tap for each interface of `definition` that is in a bridge, in their order.
///
/// # Errors
/// `bad-net` with the bridge and what to do, `file` if `host.toml` cannot be read.
pub fn make(definition: &GuestDefinition, dirs: &Dirs) -> Result<Vec<OwnedFd>, Failure> {
    definition.nets.iter().filter_map(|net| make_one(net, dirs).transpose()).collect()
}

fn make_one(net: &NetDefinition, dirs: &Dirs) -> Result<Option<OwnedFd>, Failure> {
    let bridge = match &net.link {
        NetLink::Tap(_) => return Ok(None),
        NetLink::Bridge(bridge) => bridge.clone(),
        NetLink::Network(name) => bridge_of(&dirs.config.join("host.toml"), name)?,
    };
    tap_in_bridge(&bridge, net.mac, net.mtu).map(Some).map_err(|e| failure(&e))
}

fn failure(error: &BridgeError) -> Failure {
    let remedy = match error {
        BridgeError::Missing(bridge) => format!("make it: ip link add {bridge} type bridge"),
        BridgeError::NotBridge(_) => "name a bridge ('ip link show type bridge')".to_owned(),
        BridgeError::Permission => {
            "run it as root, or use a tap that was prepared for you: --net tap=NAME".to_owned()
        }
        BridgeError::Mtu { bridge, bridge_mtu, guest_mtu } => format!(
            "raise the bridge's (ip link set {bridge} mtu {guest_mtu}), or give the guest at most \
             {bridge_mtu}"
        ),
        BridgeError::Tap(_) | BridgeError::Host { .. } => {
            "mend what the message names and try again".to_owned()
        }
    };
    Failure::new(ErrorCode::BadNet, error.to_string(), remedy)
}
