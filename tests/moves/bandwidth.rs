//! What a move really puts on the wire, counted by a socket that sees every packet and knows nothing
//! of moves.

use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestamp};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::site::{PORTS, Site};
use crate::support::kvm;

/// Puts this thread, and what it starts, into a network of its own. Says so if it cannot.
fn alone() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root || unshare(CloneFlags::CLONE_NEWNET).is_err() {
        eprintln!("SKIPPED: no network namespace can be made: run this test as root");
        return false;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.expect("ip is installed").success());
    true
}

/// UDP payload to some ports of this network: when it arrived, in microseconds, and its bytes.
type Seen = Vec<(i64, u64)>;

/// Listens to the loopback interface until `end`.
fn watch(ports: std::ops::RangeInclusive<u16>, end: Arc<AtomicBool>) -> JoinHandle<Seen> {
    let (family, kind) = (AddressFamily::Packet, SockType::Datagram);
    let fd = socket(family, kind, SockFlag::empty(), SockProtocol::EthAll).unwrap();
    setsockopt(&fd, RcvBufForce, &(64 << 20)).unwrap();
    setsockopt(&fd, ReceiveTimestamp, &true).unwrap();
    setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(100)).unwrap();
    std::thread::spawn(move || {
        let mut seen = Seen::new();
        while !end.load(Ordering::Relaxed) {
            let mut head = [0_u8; 64];
            let mut control = nix::cmsg_space!(TimeVal);
            let mut buffers = [std::io::IoSliceMut::new(&mut head)];
            // With this flag the length is the packet's, however little of it is read.
            let flags = MsgFlags::MSG_TRUNC;
            let got = recvmsg::<LinkAddr>(fd.as_raw_fd(), &mut buffers, Some(&mut control), flags);
            let (bytes, at, kind) = match got {
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => panic!("{errno}"),
                Ok(got) => {
                    let stamp = got.cmsgs().unwrap().find_map(|c| match c {
                        ControlMessageOwned::ScmTimestamp(at) => Some(at),
                        _ => None,
                    });
                    (got.bytes, stamp.expect("a time"), got.address.expect("a kind").pkttype())
                }
            };
            // Each packet is seen twice here: as it goes, and as it comes.
            let comes = u32::from(kind) == u32::from(libc::PACKET_HOST);
            let udp = head[0] >> 4 == 4 && head[9] == 17;
            let header = usize::from(head[0] & 15) * 4;
            let port = u16::from_be_bytes([head[header + 2], head[header + 3]]);
            if comes && udp && ports.contains(&port) {
                let payload = u64::try_from(bytes - header - 8).unwrap();
                seen.push((at.num_microseconds(), payload));
            }
        }
        seen
    })
}

const SECOND: i64 = 1_000_000;

/// Bytes in each two seconds that begin with a packet from `from` on and end before `to`: the
/// least and the most.
fn in_two_seconds(seen: &Seen, from: i64, to: i64) -> (u64, u64) {
    let (mut least, mut most) = (u64::MAX, 0);
    let (mut end, mut sum) = (0, 0);
    for (at, bytes) in seen {
        while end < seen.len() && seen[end].0 < at + 2 * SECOND {
            sum += seen[end].1;
            end += 1;
        }
        if *at >= from && at + 2 * SECOND <= to {
            (least, most) = (least.min(sum), most.max(sum));
        }
        sum -= bytes;
    }
    (least, most)
}

// 8 MB in each second, and 5 %.
const MOST: u64 = 16_800_000;
const LEAST: u64 = 15_200_000;

/// Sees what `work` puts on the wire to `site.b`: in all, and that the limit held in any two
/// seconds and was used in those between `from` and `to` microseconds.
#[track_caller]
fn assert_limited(site: &Site, (from, to): (i64, i64), work: impl FnOnce()) -> u64 {
    let end = Arc::new(AtomicBool::new(false));
    let watching = watch(site.b.port + 1..=site.b.port + PORTS - 1, Arc::clone(&end));
    work();
    end.store(true, Ordering::Relaxed);
    let seen = watching.join().unwrap();
    let (begin, end) = (seen.first().unwrap().0, seen.last().unwrap().0);
    let sum: u64 = seen.iter().map(|(_, bytes)| bytes).sum();
    let (_, most) = in_two_seconds(&seen, begin, end);
    let (least, _) = in_two_seconds(&seen, begin + from, begin + to);
    println!("{least} to {most} bytes in two seconds, {sum} in {} ms", (end - begin) / 1000);
    assert!(most <= MOST, "{most} bytes in two seconds");
    assert!(least >= LEAST, "{least} bytes in two seconds");
    sum
}

#[test]
fn the_limit_holds_in_any_two_seconds() {
    if !kvm() || !alone() {
        return;
    }
    let site = Site::new();
    // 56 MiB that do not compress: more than seven seconds.
    let kind = "ws=8M,data=48M,rate=500,hb=5ms,poll=5ms";
    site.a.scribbler("web1", kind, &["--memory", "96M", "--cpus", "1"]);
    // The first pass, when there is always something to send; not its very beginning.
    let sum = assert_limited(&site, (SECOND, 13 * SECOND / 2), || {
        let words = ["--bandwidth", "8MB", "--max-downtime", "5s"];
        let id = site.a.begin("web1", &site.b, &words);
        assert_eq!(site.a.until_ended(&id)["outcome"], "moved");
    });
    assert!(sum > 56 << 20, "{sum} bytes: not everything was seen");
    site.b.assert_runs("web1").verify_clean((48 + 8) * 256);
}

#[test]
fn moves_beside_each_other_share_one_limit() {
    if !kvm() || !alone() {
        return;
    }
    let site = Site::new();
    let kind = "ws=4M,data=24M,rate=200,hb=5ms,poll=5ms";
    for guest in ["web1", "web2"] {
        site.a.scribbler(guest, kind, &["--memory", "64M", "--cpus", "1"]);
    }
    let sum = assert_limited(&site, (SECOND, 6 * SECOND), || {
        let words = ["--parallel", "2", "--bandwidth", "8MB", "--max-downtime", "5s"];
        let moved = site
            .a
            .home
            .json(&[&["move", "web1", "web2", "--to", &site.b.name], &words[..]].concat());
        assert_eq!(moved.code, Some(0), "{moved:?}");
    });
    assert!(sum > 56 << 20, "{sum} bytes: not everything was seen");
    for guest in ["web1", "web2"] {
        site.b.assert_runs(guest).verify_clean((24 + 4) * 256);
    }
}
