//! Listening to all that passes an interface, from outside of whatever is tested.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, socket};

/// A socket that gets every frame at `interface` of the calling thread's network; it never blocks.
#[track_caller]
pub fn listen(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
    let mut interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let address: LinkAddr = interfaces
        .find_map(|i| {
            let address = *i.address?.as_link_addr()?;
            (i.interface_name == interface).then_some(address)
        })
        .unwrap();
    bind(socket.as_raw_fd(), &address).unwrap();
    socket
}
