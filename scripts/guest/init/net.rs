//! Interface set-up with the classic requests: less code than netlink.

use std::io;
use std::os::fd::AsRawFd;

use crate::sys;

const SIOCADDRT: u64 = 0x890b;
const SIOCGIFFLAGS: u64 = 0x8913;
const SIOCSIFFLAGS: u64 = 0x8914;
const SIOCSIFADDR: u64 = 0x8916;
const SIOCSIFNETMASK: u64 = 0x891c;
const SIOCSIFMTU: u64 = 0x8922;
const AF_INET: u16 = 2;
const IFF_UP: u16 = 1;

/// `ADDRESS/PREFIX[,GATEWAY]`
pub fn parse(s: &str) -> Option<([u8; 4], u32, Option<[u8; 4]>)> {
    let (host, gateway) = match s.split_once(',') {
        Some((host, gateway)) => (host, Some(quad(gateway)?)),
        None => (s, None),
    };
    let (address, prefix) = host.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|p| *p <= 32)?;
    Some((quad(address)?, prefix, gateway))
}

fn quad(s: &str) -> Option<[u8; 4]> {
    s.parse::<std::net::Ipv4Addr>().ok().map(|a| a.octets())
}

fn with_socket(f: impl FnOnce(i32) -> io::Result<()>) -> io::Result<()> {
    f(sys::inet_socket()?.as_raw_fd())
}

/// `struct ifreq` with the name filled in.
fn ifreq(name: &str) -> [u8; 40] {
    let mut r = [0; 40];
    r[..name.len()].copy_from_slice(name.as_bytes());
    r
}

fn sockaddr(to: &mut [u8], address: [u8; 4]) {
    to[..2].copy_from_slice(&AF_INET.to_ne_bytes());
    to[4..8].copy_from_slice(&address);
}

pub fn address(name: &str, address: [u8; 4], prefix: u32) -> io::Result<()> {
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0).to_be_bytes();
    with_socket(|fd| {
        for (number, value) in [(SIOCSIFADDR, address), (SIOCSIFNETMASK, mask)] {
            let mut r = ifreq(name);
            sockaddr(&mut r[16..], value);
            sys::request(fd, number, &mut r)?;
        }
        let mut r = ifreq(name);
        sys::request(fd, SIOCGIFFLAGS, &mut r)?;
        let flags = u16::from_ne_bytes([r[16], r[17]]) | IFF_UP;
        r[16..18].copy_from_slice(&flags.to_ne_bytes());
        sys::request(fd, SIOCSIFFLAGS, &mut r)
    })
}

pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    let mut r = ifreq(name);
    r[16..20].copy_from_slice(&mtu.to_ne_bytes());
    with_socket(|fd| sys::request(fd, SIOCSIFMTU, &mut r))
}

pub fn default_route(gateway: [u8; 4]) -> io::Result<()> {
    const RTF_UP_GATEWAY: u16 = 3;
    // struct rtentry: destination, gateway and mask at 8, 24 and 40, flags at 56.
    let mut r = [0; 120];
    sockaddr(&mut r[8..], [0; 4]);
    sockaddr(&mut r[24..], gateway);
    sockaddr(&mut r[40..], [0; 4]);
    r[56..58].copy_from_slice(&RTF_UP_GATEWAY.to_ne_bytes());
    with_socket(|fd| sys::request(fd, SIOCADDRT, &mut r))
}
