//! A network between two hosts of this machine that can be cut, in both directions or in one:
//! each host is reached at an address of ours, and datagrams are handed on between sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest datagram on loopback.
const DATAGRAM: usize = 65_536;
/// A path that nobody used for so long is forgotten.
const IDLE: Duration = Duration::from_secs(45);

/// What is cut, shared with whoever cuts.
#[derive(Debug, Default)]
pub struct Cuts {
    /// Nothing comes to that host.
    to: [AtomicBool; 2],
    end: AtomicBool,
}

impl Cuts {
    /// Cuts or heals what goes to each of the hosts.
    pub fn set(&self, to: [bool; 2]) {
        for (cut, wanted) in self.to.iter().zip(to) {
            cut.store(wanted, Ordering::SeqCst);
        }
    }
}

/// Runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    pub cuts: Arc<Cuts>,
    thread: Option<JoinHandle<()>>,
}

/// A socket of the relay, and where what it gets goes.
struct Hop {
    socket: UdpSocket,
    /// The host that what comes in here is for.
    host: usize,
    kind: Kind,
    used: Instant,
}

enum Kind {
    /// The host's address as others know it; behind it its real one.
    Front(SocketAddr),
    /// One peer's path through a front: answers of the host come in here.
    Back { front: usize, peer: SocketAddr },
}

impl Relay {
    /// Carries what comes to `front:port` to `back:port`, for both hosts and all their ports.
    pub fn start(hosts: [(Ipv4Addr, Ipv4Addr); 2], ports: &[Vec<u16>; 2]) -> io::Result<Self> {
        let mut hops = Vec::new();
        for (host, ports) in ports.iter().enumerate() {
            let (front, back) = hosts[host];
            for port in ports {
                let socket = UdpSocket::bind((front, *port))?;
                socket.set_nonblocking(true)?;
                let kind = Kind::Front(SocketAddr::from((back, *port)));
                hops.push(Hop { socket, host, kind, used: Instant::now() });
            }
        }
        let cuts = Arc::new(Cuts::default());
        let shared = Arc::clone(&cuts);
        let thread = std::thread::spawn(move || carry(hops, &shared));
        Ok(Self { cuts, thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cuts.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(mut hops: Vec<Hop>, cuts: &Cuts) {
    let fronts = hops.len();
    let mut paths: BTreeMap<(usize, SocketAddr), usize> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM];
    while !cuts.end.load(Ordering::SeqCst) {
        let ready: Vec<usize> = {
            let mut fds: Vec<PollFd<'_>> =
                hops.iter().map(|h| PollFd::new(h.socket.as_fd(), PollFlags::POLLIN)).collect();
            let wait = PollTimeout::from(50_u8);
            if poll(&mut fds, wait).is_err() {
                continue;
            }
            let any = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            fds.iter().enumerate().filter(|(_, fd)| any(fd)).map(|(at, _)| at).collect()
        };
        if ready.is_empty() && hops.len() > fronts + 64 {
            forget(&mut hops, fronts, &mut paths);
            continue;
        }
        for at in ready {
            drain(&mut hops, at, &mut paths, cuts, &mut buffer);
        }
    }
}

/// Hands on what a socket has got, a bounded number of datagrams.
fn drain(
    hops: &mut Vec<Hop>,
    at: usize,
    paths: &mut BTreeMap<(usize, SocketAddr), usize>,
    cuts: &Cuts,
    buffer: &mut [u8],
) {
    for _ in 0..64 {
        // What went wrong with a datagram before is of no interest.
        let Ok((len, from)) = hops[at].socket.recv_from(buffer) else { return };
        let host = hops[at].host;
        if cuts.to[host].load(Ordering::SeqCst) {
            continue;
        }
        let data = &buffer[..len];
        match hops[at].kind {
            Kind::Front(real) => {
                let key = (at, from);
                let back = if let Some(back) = paths.get(&key) {
                    *back
                } else {
                    let Some(hop) = path(at, from, 1 - host) else { return };
                    hops.push(hop);
                    paths.insert(key, hops.len() - 1);
                    hops.len() - 1
                };
                hops[back].used = Instant::now();
                let _ = hops[back].socket.send_to(data, real);
            }
            Kind::Back { front, peer } => {
                let _ = hops[front].socket.send_to(data, peer);
            }
        }
    }
}

/// A new path of a peer through a front. What comes back on it is for the peer's host.
fn path(front: usize, peer: SocketAddr, host: usize) -> Option<Hop> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    socket.set_nonblocking(true).ok()?;
    let kind = Kind::Back { front, peer };
    Some(Hop { socket, host, kind, used: Instant::now() })
}

fn forget(hops: &mut Vec<Hop>, fronts: usize, paths: &mut BTreeMap<(usize, SocketAddr), usize>) {
    let mut at = 0;
    hops.retain(|hop| {
        at += 1;
        at <= fronts || hop.used.elapsed() < IDLE
    });
    paths.clear();
    for (at, hop) in hops.iter().enumerate() {
        if let Kind::Back { front, peer } = hop.kind {
            paths.insert((front, peer), at);
        }
    }
}
