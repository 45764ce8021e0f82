//! UDP sockets for bulk data, and the MTU of a path.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{getsockopt, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Buffer that each direction of a socket should have. With the usual 208 KiB a receiver drops
/// about 1 % of the packets even on loopback.
pub const BUFFER: usize = 4 << 20;

/// Smallest UDP payload that QUIC allows a path to have (RFC 9000, 14).
pub const MIN_PAYLOAD: u16 = 1200;
/// Largest payload used, on loopback. A UDP datagram holds 65,507.
pub const MAX_PAYLOAD: u16 = 65_000;
/// Payload of an Ethernet frame of 1500 bytes over IPv6.
pub const ETHERNET_PAYLOAD: u16 = 1452;

/// Something that works, but would work better with another setting of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    /// A socket buffer is smaller than it should be.
    SmallBuffer {
        /// `receive` or `send`.
        direction: &'static str,
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that the system granted.
        granted: usize,
        /// The kernel setting that limits it.
        setting: &'static str,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::SmallBuffer { direction, wanted, granted, setting } = self;
        write!(
            f,
            "the system grants a UDP {direction} buffer of {} KiB where {} KiB are wanted: \
             packets will be lost at high rates; set `{setting} = {wanted}` in \
             /etc/sysctl.d/60-migrate.conf and run `sysctl --system`",
            granted >> 10,
            wanted >> 10
        )
    }
}

/// Binds a UDP socket with large buffers. Port 0 lets the system choose.
///
/// # Errors
/// The system's error; buffers that stay small are not one, see the advice.
pub fn bind(address: SocketAddr) -> io::Result<(UdpSocket, Vec<Advice>)> {
    bind_with(address, BUFFER)
}

fn bind_with(address: SocketAddr, buffer: usize) -> io::Result<(UdpSocket, Vec<Advice>)> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let mut advice = Vec::new();
    // The FORCE variants need CAP_NET_ADMIN and pass the limit; the others are cut to it.
    if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
        socket.set_recv_buffer_size(buffer)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &buffer).is_err() {
        socket.set_send_buffer_size(buffer)?;
    }
    // Linux doubles what it is asked for, for its own book-keeping, and reports that.
    let granted = [
        ("receive", socket.recv_buffer_size()? / 2, "net.core.rmem_max"),
        ("send", socket.send_buffer_size()? / 2, "net.core.wmem_max"),
    ];
    for (direction, granted, setting) in granted {
        if granted < buffer {
            let wanted = buffer;
            advice.push(Advice::SmallBuffer { direction, wanted, granted, setting });
        }
    }
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok((socket.into(), advice))
}

/// The address to bind for talking to `peer`: `local`, or any of the same family.
pub fn any_port(peer: SocketAddr, local: Option<IpAddr>) -> SocketAddr {
    let any = if peer.is_ipv6() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    SocketAddr::new(local.unwrap_or(any), 0)
}

/// Largest UDP payload towards `peer`, as far as this host knows: from the route (with what path
/// MTU discovery found) for IPv4, from the interface for IPv6. Both ends must be told the same
/// or more: a receiver that allows less is never sent more.
///
/// # Errors
/// There is no route to the peer.
pub fn path_payload(peer: SocketAddr, local: Option<IpAddr>) -> io::Result<u16> {
    let socket = UdpSocket::bind(any_port(peer, local))?;
    socket.connect(peer)?;
    let mtu = if peer.is_ipv4() {
        getsockopt(&socket, sockopt::IpMtu).ok().and_then(|mtu| u32::try_from(mtu).ok())
    } else {
        interface_mtu(socket.local_addr()?.ip())
    };
    Ok(payload_of(mtu, peer.is_ipv6()))
}

/// UDP payload of a packet of `mtu` bytes, within what QUIC can use.
fn payload_of(mtu: Option<u32>, ipv6: bool) -> u16 {
    // IPv4 or IPv6 header without options, and the UDP header.
    let headers = if ipv6 { 40 + 8 } else { 20 + 8 };
    let payload = mtu.map_or(u32::from(ETHERNET_PAYLOAD), |mtu| mtu.saturating_sub(headers));
    u16::try_from(payload).unwrap_or(MAX_PAYLOAD).clamp(MIN_PAYLOAD, MAX_PAYLOAD)
}

/// MTU of the interface that has the address `ip`.
fn interface_mtu(ip: IpAddr) -> Option<u32> {
    let has_ip = |address: &nix::ifaddrs::InterfaceAddress| {
        let storage = address.address?;
        let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
        v4.or(v6).filter(|found| *found == ip)
    };
    let interface = getifaddrs().ok()?.find(|address| has_ip(address).is_some())?;
    let file = format!("/sys/class/net/{}/mtu", interface.interface_name);
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_fit_their_packets() {
        for (mtu, ipv6, payload) in [
            (Some(1500), false, 1472),
            (Some(1500), true, 1452),
            (Some(9000), false, 8972),
            (Some(9000), true, 8952),
            (Some(65_536), false, MAX_PAYLOAD),
            (Some(1280), true, 1232),
            (Some(68), false, MIN_PAYLOAD),
            (None, false, ETHERNET_PAYLOAD),
        ] {
            assert_eq!(payload_of(mtu, ipv6), payload);
        }
    }

    #[test]
    fn loopback_has_the_largest() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(path_payload(peer, None).unwrap(), MAX_PAYLOAD);
    }

    #[test]
    fn a_small_buffer_is_said_with_the_setting_to_change() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        // More than any system grants: the kernel's limit is half of what an int can hold.
        let (_socket, advice) = bind_with(loopback, 0x7fff_ffff).unwrap();
        let texts: Vec<String> = advice.iter().map(ToString::to_string).collect();
        assert_eq!(advice.len(), 2, "{texts:?}");
        assert!(texts[0].contains("net.core.rmem_max = 2147483647"), "{texts:?}");
        assert!(texts[1].contains("net.core.wmem_max"), "{texts:?}");
    }
}
