//! The card on real taps, each in a network namespace of its own that dies with the test's
//! thread. Needs root (`CAP_SYS_ADMIN`); says so loudly where it is missing.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use proptest::prelude::*;

use super::*;
use crate::devices::tap::{HEADER_LEN, MAX_FRAME, TapError};
use crate::devices::virtio::testkit::{Buf, PATIENCE, Rig};
use crate::eventfd::EventFd;

const NAME: &str = "tap-test";
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
/// "Local experimental" `EtherType`: nothing else in the namespace sends it.
const OURS: [u8; 2] = [0x88, 0xB5];
const EVENT_IDX: u64 = 1 << 29;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// Runs `test` in a fresh network namespace with the tap `NAME` in it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: no network namespace ({e}): run this test as root");
            return;
        }
        // Best effort: other frames are told apart by their type anyway.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        ip(&format!("tuntap add {NAME} mode tap"));
        test();
    };
    let done = std::thread::spawn(body).join();
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The host's side of the tap: a packet socket.
struct Wire {
    socket: OwnedFd,
    to: LinkAddr,
}

impl Wire {
    fn new() -> Self {
        let all = SockProtocol::EthAll;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
        let to = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|i| i.interface_name == NAME)
            .find_map(|i| i.address?.as_link_addr().copied())
            .unwrap();
        Self { socket, to }
    }

    fn send(&self, frame: &[u8]) {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.to, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// The next frame from the guest, of type `kind`.
    fn receive(&self, kind: [u8; 2]) -> Vec<u8> {
        let start = Instant::now();
        let mut frame = vec![0; 70_000];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(n) if frame[12..14] == kind && frame[6..12] == MAC => {
                    frame.truncate(n);
                    return frame;
                }
                Ok(_) => {}
                Err(nix::Error::EAGAIN) => std::thread::sleep(Duration::from_micros(100)),
                Err(e) => panic!("{e}"),
            }
            assert!(start.elapsed() < PATIENCE, "no frame came");
        }
    }
}

/// A frame of `len` bytes whose content follows from `seed`.
fn frame(to: [u8; 6], from: [u8; 6], seed: u32, len: usize) -> Vec<u8> {
    let mut out = [&to[..], &from[..], &OURS, &seed.to_le_bytes()].concat();
    let mut x = seed | 1;
    while out.len() < len {
        x = x.wrapping_mul(0x915F_77F5).wrapping_add(1);
        out.extend(x.to_be_bytes());
    }
    out.truncate(len);
    out
}

fn from_guest(seed: u32, len: usize) -> Vec<u8> {
    frame([0xFF; 6], MAC, seed, len)
}

fn to_guest(seed: u32, len: usize) -> Vec<u8> {
    frame(MAC, [2; 6], seed, len)
}

/// Opens the tap. The children of tests that run beside this one hold a copy of each descriptor
/// for the moment between fork and exec.
fn open() -> Tap {
    let start = Instant::now();
    loop {
        match Tap::open(NAME) {
            Err(TapError::Busy(_)) if start.elapsed() < PATIENCE => std::thread::yield_now(),
            tap => return tap.unwrap(),
        }
    }
}

fn spec() -> NetSpec {
    let tap = open();
    // Down and up after the carrier came: otherwise the kernel lets frames through only when it
    // gets round to noticing the carrier, up to a second later.
    ip(&format!("link set {NAME} down"));
    ip(&format!("link set {NAME} up mtu 9000"));
    NetSpec { tap, mac: MAC, mtu: Some(9000) }
}

fn rig() -> Rig {
    Rig::new(&QUEUE_SIZES)
}

fn start(device: &mut NetDevice, rig: &Rig, features: u64) {
    device.activate(rig.activation(features)).unwrap();
    device.resume();
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_LEN][..], frame].concat()
}

/// Receives frames from used buffers, as a driver does, and skips what is not ours.
struct Driver {
    posted: std::collections::BTreeMap<u16, Buf>,
    frames: Vec<Vec<u8>>,
    spread: Vec<u16>,
}

impl Driver {
    fn new() -> Self {
        Self { posted: std::collections::BTreeMap::new(), frames: vec![], spread: vec![] }
    }

    fn post(&mut self, rig: &mut Rig, count: usize, len: u32) {
        for _ in 0..count {
            let buf = rig.inp(len);
            self.posted.insert(rig.queues[0].submit(&[buf]).unwrap(), buf);
        }
        rig.notify(0);
    }

    /// Collects until `n` frames of ours are there.
    fn collect(&mut self, rig: &mut Rig, n: usize) {
        let start = Instant::now();
        while self.frames.len() < n {
            assert!(start.elapsed() < PATIENCE, "{} of {n} frames came", self.frames.len());
            let mut used = rig.queues[0].take_used().into_iter();
            while let Some((head, len)) = used.next() {
                let mut whole = self.content(rig, head, len);
                let buffers = u16::from_le_bytes([whole[10], whole[11]]);
                // The driver must find all of a frame's buffers at once.
                for _ in 1..buffers {
                    let (head, len) = used.next().unwrap();
                    whole.extend(self.content(rig, head, len));
                }
                if whole[HEADER_LEN + 12..HEADER_LEN + 14] == OURS {
                    self.frames.push(whole.split_off(HEADER_LEN));
                    self.spread.push(buffers);
                }
            }
        }
    }

    fn content(&mut self, rig: &Rig, head: u16, len: u32) -> Vec<u8> {
        let buf = self.posted.remove(&head).unwrap();
        let mut bytes = rig.bytes(buf);
        bytes.truncate(len as usize);
        bytes
    }
}

#[test]
fn frames_pass_both_ways_unchanged() {
    for features in [0, MERGEABLE, EVENT_IDX | MERGEABLE] {
        in_namespace(move || {
            let wire = Wire::new();
            let mut device = NetDevice::new(spec()).unwrap();
            let mut rig = rig();
            let mut driver = Driver::new();
            driver.post(&mut rig, 40, 9100);
            start(&mut device, &rig, features);
            let sizes = [60, 61, 100, 1514, 4096, 9014];
            for (seed, len) in (0_u32..).zip(sizes) {
                let sent = from_guest(seed, len);
                let whole = with_header(&sent);
                let (a, b) = whole.split_at(len / 3 + 1);
                let bufs = [rig.out(a), rig.out(b)];
                rig.send(1, &bufs);
                assert_eq!(wire.receive(OURS), sent);
                wire.send(&to_guest(seed, len));
            }
            driver.collect(&mut rig, sizes.len());
            for (seed, len) in (0_u32..).zip(sizes) {
                assert_eq!(driver.frames[seed as usize], to_guest(seed, len));
            }
            rig.queues[1].wait_used(sizes.len());
            assert!(rig.irqfd.clear());
            let stats = device.stats();
            assert_eq!((stats.sent, stats.send_dropped), (6, 0));
            assert!(stats.received >= 6);
            assert_eq!(stats.receive_dropped, 0);
        });
    }
}

#[test]
fn a_long_frame_is_spread_over_small_buffers() {
    in_namespace(|| {
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut rig = rig();
        let mut driver = Driver::new();
        driver.post(&mut rig, 5, 300);
        start(&mut device, &rig, MERGEABLE | EVENT_IDX);
        wire.send(&to_guest(1, 4000));
        wire.send(&to_guest(2, 60));
        // Five buffers are too few for the first frame: it waits, whole, for more.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(rig.queues[0].take_used(), []);
        driver.post(&mut rig, 9, 300);
        driver.post(&mut rig, 3, 300);
        driver.collect(&mut rig, 2);
        assert_eq!(driver.frames, [to_guest(1, 4000), to_guest(2, 60)]);
        assert_eq!(driver.spread, [4012_u16.div_ceil(300), 1]);
    });
}

#[test]
fn frames_wait_while_the_guest_has_no_buffers() {
    in_namespace(|| {
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut rig = rig();
        let mut driver = Driver::new();
        start(&mut device, &rig, EVENT_IDX);
        for seed in 0..200 {
            wire.send(&to_guest(seed, 80));
        }
        for round in 1..=20 {
            driver.post(&mut rig, 10, 200);
            driver.collect(&mut rig, round * 10);
        }
        let expected: Vec<_> = (0..200).map(|seed| to_guest(seed, 80)).collect();
        assert_eq!(driver.frames, expected);
        assert_eq!(device.stats().receive_dropped, 0);
    });
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    in_namespace(|| {
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut rig = rig();
        let mut driver = Driver::new();
        driver.post(&mut rig, 2, 200);
        start(&mut device, &rig, 0);
        wire.send(&to_guest(1, 1000));
        wire.send(&to_guest(2, 100));
        driver.collect(&mut rig, 1);
        assert_eq!(driver.frames, [to_guest(2, 100)]);
        assert_eq!(device.stats().receive_dropped, 1);
        // Without a whole header, without a frame, too long, and not in memory.
        let long = rig.inp(u32::try_from(MAX_FRAME).unwrap() + 1);
        let Buf::In(gpa, len) = long else { unreachable!() };
        let (short, bare) = (rig.out(&[0; 11]), rig.out(&[0; HEADER_LEN + 13]));
        for buf in [short, bare, Buf::Out(gpa, len), Buf::Out(1 << 40, 100)] {
            rig.send(1, &[buf]);
        }
        rig.queues[1].wait_used(4);
        let good = rig.out(&with_header(&from_guest(9, 64)));
        rig.send(1, &[good]);
        assert_eq!(wire.receive(OURS), from_guest(9, 64));
        assert_eq!((device.stats().sent, device.stats().send_dropped), (1, 4));
    });
}

/// Moves the device and its queues into a new one, as save and restore do.
/// The tap is passed on, so that no carrier is lost.
fn reborn(mut device: NetDevice, rig: &Rig, features: u64) -> NetDevice {
    let tap = Tap::from_fd(device.tap.as_fd().try_clone_to_owned().unwrap()).unwrap();
    device.drain().unwrap();
    let VirtioDeviceState::Net(state) = device.save() else { unreachable!() };
    let queues = device.queues();
    assert_eq!(queues.len(), 3);
    drop(device);
    let spec = NetSpec { tap, mac: MAC, mtu: Some(9000) };
    let mut device = NetDevice::restore(spec, &state).unwrap();
    let mut activation = rig.activation(features);
    for (active, (index, state)) in activation.queues.iter_mut().zip(queues) {
        assert_eq!(active.index, index);
        active.queue = state.try_into().unwrap();
    }
    device.activate(activation).unwrap();
    let VirtioDeviceState::Net(again) = device.save() else { unreachable!() };
    assert_eq!(again, state);
    device
}

#[test]
fn goes_on_where_it_was_saved() {
    in_namespace(|| {
        let features = MERGEABLE | EVENT_IDX | device_features();
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut rig = rig();
        let mut driver = Driver::new();
        driver.post(&mut rig, 200, 200);
        start(&mut device, &rig, features);
        let mut expected = Vec::new();
        for seed in 0..60 {
            let buf = rig.out(&with_header(&from_guest(seed, 90)));
            rig.queues[1].submit(&[buf]).unwrap();
            // Often nobody notifies: a restored device must look by itself.
            if seed % 3 == 0 {
                rig.kicks[1].signal();
            }
            wire.send(&to_guest(seed, 90));
            expected.push(to_guest(seed, 90));
            if seed % 10 == 5 {
                device = reborn(device, &rig, features);
                device.resume();
            }
        }
        rig.kicks[1].signal();
        for seed in 0..60 {
            assert_eq!(wire.receive(OURS), from_guest(seed, 90), "frame {seed}");
        }
        driver.collect(&mut rig, expected.len());
        assert_eq!(driver.frames, expected);
    });
}

/// All but what would let the tap hand us segments instead of frames.
fn device_features() -> u64 {
    [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE]
        .iter()
        .fold(0, |all, bit| all | 1 << bit)
}

#[test]
fn a_parked_device_touches_nothing() {
    in_namespace(|| {
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut rig = rig();
        let mut driver = Driver::new();
        driver.post(&mut rig, 20, 200);
        start(&mut device, &rig, device_features());
        device.drain().unwrap();
        rig.irqfd.clear();
        let status = rig.status.swap(0, Ordering::SeqCst);
        assert!(status <= 1);
        let before = device.queues();
        wire.send(&to_guest(1, 90));
        let buf = rig.out(&with_header(&from_guest(1, 90)));
        rig.queues[1].submit(&[buf]).unwrap();
        // 16 MiB are 64 words of 64 pages.
        for word in 0..64 {
            rig.ram.own_writes()[0].take(word);
        }
        rig.kicks[1].signal();
        assert_eq!(device.announcer().announce().unwrap(), Announced::Still);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(device.queues(), before);
        assert_eq!(rig.status.load(Ordering::SeqCst), 0);
        assert!(!rig.irqfd.clear());
        assert!((0..64).all(|w| rig.ram.own_writes()[0].peek(w) == 0));
        device.resume();
        driver.collect(&mut rig, 1);
        assert_eq!(wire.receive(OURS), from_guest(1, 90));
        // What was received is in the dirty set.
        assert!((0..64).any(|w| rig.ram.own_writes()[0].peek(w) != 0));
        assert_eq!(device.announcer().announce().unwrap(), Announced::Sent);
        assert_eq!(rig.status.load(Ordering::SeqCst) & 2, 2, "the guest is asked");
    });
}

fn status(device: &NetDevice) -> u16 {
    let mut field = [0; 2];
    device.read_config(6, &mut field);
    u16::from_le_bytes(field)
}

fn command(rig: &mut Rig, bytes: &[u8]) -> u8 {
    let (out, ack) = (rig.out(bytes), rig.inp(1));
    rig.send(2, &[out, ack]);
    rig.queues[2].wait_used(1);
    rig.bytes(ack)[0]
}

#[test]
fn announces_and_takes_commands() {
    in_namespace(|| {
        let wire = Wire::new();
        let mut device = NetDevice::new(spec()).unwrap();
        let mut config = [0xEE; 14];
        device.read_config(0, &mut config);
        assert_eq!(config, [0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0x28, 0x23, 0, 0]);
        assert_eq!(device.features() & (1 << VIRTIO_NET_F_MTU), 1 << VIRTIO_NET_F_MTU);
        let mut rig = rig();
        start(&mut device, &rig, device_features());
        assert_eq!(status(&device), 1);
        device.announcer().announce().unwrap();
        let rarp = wire.receive([0x80, 0x35]);
        assert_eq!(rarp.len(), 60);
        assert_eq!(rarp[..6], [0xFF; 6]);
        assert_eq!((&rarp[14..22], &rarp[22..28]), (&[0, 1, 8, 0, 6, 4, 0, 3][..], &MAC[..]));
        assert_eq!(status(&device), 3);
        assert_eq!(rig.status.load(Ordering::SeqCst) & 2, 2);
        assert_eq!(command(&mut rig, &[3, 0]), 0);
        assert_eq!(status(&device), 1);
        assert_eq!(command(&mut rig, &[0, 0, 1]), 0);
        assert_eq!(command(&mut rig, &[0x77, 0, 1]), 1);
        // A driver that does not know announcements is left alone.
        device.reset();
        start(&mut device, &Rig::new(&QUEUE_SIZES), 0);
        device.announcer().announce().unwrap();
        assert_eq!(status(&device), 1);
    });
}

#[test]
fn a_removed_tap_pulls_the_cable() {
    in_namespace(|| {
        let mut device = NetDevice::new(spec()).unwrap();
        let rig = rig();
        start(&mut device, &rig, device_features());
        ip(&format!("link del {NAME}"));
        let start = Instant::now();
        while status(&device) != 0 || !rig.irqfd.clear() {
            assert!(start.elapsed() < PATIENCE, "the link is still up");
            std::thread::yield_now();
        }
        device.drain().unwrap();
    });
}

#[test]
fn taps_are_checked() {
    in_namespace(|| {
        let text = |e: TapError| e.to_string();
        let missing = text(Tap::open("nope").unwrap_err());
        assert!(
            missing.contains("tap nope does not exist: create it with `ip tuntap"),
            "{missing}"
        );
        for name in ["", "sixteen-letters!", "a b", "a/b"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name}");
        }
        assert!(matches!(Tap::open("lo"), Err(TapError::NotTap(_))));
        ip("tuntap add many mode tap multi_queue");
        assert!(matches!(Tap::open("many"), Err(TapError::NotTap(_))));
        let tap = open();
        assert_eq!(tap.name(), NAME);
        let busy = text(Tap::open(NAME).unwrap_err());
        assert!(busy.contains("in use by another process"), "{busy}");
        let again = tap.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(Tap::from_fd(again).unwrap().name(), NAME);
        let null = fs::File::open("/dev/null").unwrap();
        assert!(matches!(Tap::from_fd(null.into()), Err(TapError::Host { .. })));
        let plain = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        ip("tuntap add plain mode tap");
        let flags = libc::IFF_TAP | libc::IFF_NO_PI;
        crate::devices::tap_ioctl::attach(&plain, "plain", flags).unwrap();
        let refused = text(Tap::from_fd(plain.into()).unwrap_err());
        assert!(refused.contains("tap plain has flags 0x"), "{refused}");
    });
}

#[test]
fn descriptions_and_states_are_checked() {
    in_namespace(|| {
        let tap = open;
        for mac in [[0; 6], [0xFF; 6], [1, 0, 0, 0, 0, 1]] {
            assert!(NetDevice::new(NetSpec { tap: tap(), mac, mtu: None }).is_err());
        }
        assert!(NetDevice::new(NetSpec { tap: tap(), mac: MAC, mtu: Some(67) }).is_err());
        let refused =
            |state: NetState| NetDevice::restore(spec(), &state).err().unwrap().to_string();
        let good = NetState { mac: MAC, mtu: 9000, offloads: 7 };
        assert!(NetDevice::restore(spec(), &good).is_ok());
        let other = refused(NetState { mac: [2; 6], ..good.clone() });
        assert!(other.contains("02:02:02:02:02:02 in the state and 52:54:00:01:02:03"), "{other}");
        let other = refused(NetState { mtu: 0, ..good.clone() });
        assert!(other.contains("mtu is 0 in the state and 9000"), "{other}");
        let other = refused(NetState { offloads: 0x108, ..good });
        assert!(other.contains("0x108"), "{other}");
    });
}

#[test]
fn offloads_follow_the_driver() {
    let bits = |list: &[u32]| list.iter().fold(0_u64, |all, bit| all | 1 << bit);
    assert_eq!(offloads(bits(&[VIRTIO_NET_F_GUEST_TSO4])), 0, "segments need checksums");
    assert_eq!(offloads(bits(&[VIRTIO_NET_F_GUEST_CSUM])), 1);
    let all = [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6];
    assert_eq!(offloads(bits(&all)), 7);
    assert_eq!(offloads(bits(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4])), 0);
    in_namespace(move || {
        let mut device = NetDevice::new(spec()).unwrap();
        start(&mut device, &rig(), bits(&all));
        let VirtioDeviceState::Net(state) = device.save() else { unreachable!() };
        assert_eq!(state.offloads, 7, "the kernel took them");
    });
}

type Chains = Vec<Vec<(bool, u64, u32)>>;

fn hostile(chains: &Chains) {
    let mut device = NetDevice::new(spec()).unwrap();
    let mut rig = rig();
    for chain in chains {
        let above = 8 << 20;
        let bufs: Vec<Buf> = chain
            .iter()
            .map(|(inp, gpa, len)| {
                let (gpa, len) = (above + gpa % (12 << 20), len % 70_000);
                if *inp { Buf::In(gpa, len) } else { Buf::Out(gpa, len) }
            })
            .collect();
        for queue in &mut rig.queues {
            queue.submit(&bufs).unwrap();
        }
    }
    let wire = Wire::new();
    for seed in 0..8 {
        wire.send(&to_guest(seed, 3000));
    }
    start(&mut device, &rig, MERGEABLE | EVENT_IDX);
    let good = rig.out(&with_header(&from_guest(1, 90)));
    rig.send(1, &[good]);
    rig.kicks[2].signal();
    rig.queues[1].wait_used(chains.len() + 1);
    rig.queues[2].wait_used(chains.len());
    device.drain().unwrap();
}

#[test]
fn survives_any_chain() {
    in_namespace(|| {
        let chain = prop::collection::vec((any::<bool>(), any::<u64>(), any::<u32>()), 1..4);
        let chains = prop::collection::vec(chain, 0..16);
        proptest!(ProptestConfig::with_cases(48), |(chains in chains)| hostile(&chains));
    });
}

#[test]
fn survives_rings_that_make_no_sense() {
    in_namespace(|| {
        for head in [256, 257, u16::MAX] {
            let mut device = NetDevice::new(spec()).unwrap();
            let mut rig = rig();
            rig.queues.iter_mut().for_each(|q| q.publish(head));
            start(&mut device, &rig, MERGEABLE | EVENT_IDX);
            device.drain().unwrap();
            device.resume();
            // An available index far ahead of what the ring can hold.
            for queue in &mut rig.queues {
                queue.put(queue.avail + 2, &0x7000_u16.to_le_bytes());
            }
            rig.kicks.iter().for_each(EventFd::signal);
            device.drain().unwrap();
        }
    });
}
