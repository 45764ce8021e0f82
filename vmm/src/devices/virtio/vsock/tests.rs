//! The device between a test's driver and real Unix sockets.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::packet::{HEADER_LEN, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_SEND, STREAM, op};
use super::*;
use crate::devices::virtio::testkit::{Buf, PATIENCE, Rig};

const CID: u64 = 42;
const EVENT_IDX: u64 = 1 << 29;
const ALLOC: u32 = 256 << 10;

/// A device, its driver, and the directory of its sockets.
struct Guest {
    dir: Arc<tempfile::TempDir>,
    rig: Rig,
    device: VsockDevice,
    posted: BTreeMap<u16, Buf>,
    /// Two buffers of transmit memory, used in turn.
    out: u64,
    inbox: VecDeque<(Header, Vec<u8>)>,
}

fn spec(dir: &tempfile::TempDir) -> VsockSpec {
    let path = dir.path().join("v");
    let _ = std::fs::remove_file(&path);
    VsockSpec { cid: CID, listener: UnixListener::bind(&path).unwrap(), path }
}

impl Guest {
    fn new() -> Self {
        Self::with_buffers(64, 4096)
    }

    fn with_buffers(count: usize, len: u32) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut rig = Rig::new(&QUEUE_SIZES);
        let mut device = VsockDevice::new(spec(&dir)).unwrap();
        device.activate(rig.activation(EVENT_IDX)).unwrap();
        device.resume();
        let out = rig.arena.take(1 << 20, 4096);
        let mut guest =
            Self { dir, rig, device, posted: BTreeMap::new(), out, inbox: VecDeque::new() };
        for _ in 0..count {
            let buf = guest.rig.inp(len);
            guest.post(buf);
        }
        guest
    }

    fn post(&mut self, buf: Buf) {
        let head = self.rig.send(RECEIVE.into(), &[buf]);
        self.posted.insert(head, buf);
    }

    /// Sends one packet and waits until the device has taken it.
    fn send(&mut self, header: &Header, data: &[u8]) {
        let raw = [&header.encode()[..], data].concat();
        self.rig.queues[1].put(self.out, &raw);
        // Descriptors have no meaning: cut it anywhere.
        let cut = (raw.len() / 3).min(20) as u64;
        let rest = u32::try_from(raw.len()).unwrap() - cut as u32;
        let bufs = [Buf::Out(self.out, cut as u32), Buf::Out(self.out + cut, rest)];
        self.rig.send(TRANSMIT.into(), &bufs);
        self.rig.queues[1].wait_used(1);
    }

    fn poll(&mut self) {
        // All heads first: a buffer that is posted again may get the head of one still to come.
        let used = self.rig.queues[0].take_used();
        let bufs: Vec<_> =
            used.iter().map(|(head, len)| (self.posted.remove(head).unwrap(), *len)).collect();
        for (buf, len) in bufs {
            let mut bytes = self.rig.bytes(buf);
            bytes.truncate(len as usize);
            let header = Header::decode(bytes[..HEADER_LEN].try_into().unwrap());
            let data = bytes.split_off(HEADER_LEN);
            assert_eq!(header.len as usize, data.len());
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            self.inbox.push_back((header, data));
            self.post(buf);
        }
    }

    /// The next packet from the device.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            self.poll();
            if let Some(packet) = self.inbox.pop_front() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet came");
            std::thread::yield_now();
        }
    }

    fn next_op(&mut self, op: u16) -> Header {
        let (header, data) = self.next();
        assert_eq!((header.op, data.len()), (op, 0), "{header:?}");
        header
    }

    /// A host program's listener for `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    /// A host program that calls.
    fn call(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        stream
    }

    /// The guest calls; returns its end and the host program's.
    fn dial(&mut self, from: u32, listener: &UnixListener, to: u32) -> (End, UnixStream) {
        let end = End { guest: from, host: to, sent: 0, read: 0, room: 0 };
        self.send(&end.header(op::REQUEST), &[]);
        let response = self.next_op(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port, response.kind), (to, from, STREAM));
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (End { room: response.buf_alloc, ..end }, stream)
    }
}

/// The guest's end of a connection. `room` is the device's buffer plus what it forwarded.
#[derive(Clone, Copy, Debug)]
struct End {
    guest: u32,
    host: u32,
    sent: u32,
    read: u32,
    room: u32,
}

impl End {
    fn header(&self, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest,
            dst_port: self.host,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: ALLOC,
            fwd_cnt: self.read,
        }
    }

    fn write(&mut self, guest: &mut Guest, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        self.sent += len;
        guest.send(&Header { len, ..self.header(op::RW) }, data);
    }

    fn shutdown(&self, guest: &mut Guest, flags: u32) {
        guest.send(&Header { flags, ..self.header(op::SHUTDOWN) }, &[]);
    }

    fn learn(&mut self, header: &Header) {
        self.room = header.fwd_cnt.wrapping_add(header.buf_alloc);
    }
}

fn to_end(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2) | 1;
    let mut next = || {
        x = x.wrapping_mul(0x915F_77F5).wrapping_add(0x1234_5677);
        (x >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn the_guest_calls() {
    let mut guest = Guest::new();
    let listener = guest.listen(5000);
    let (mut end, mut stream) = guest.dial(1234, &listener, 5000);
    end.write(&mut guest, b"ping");
    let mut four = [0; 4];
    stream.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"ping");
    stream.write_all(b"pong!").unwrap();
    let (header, data) = guest.next();
    assert_eq!((header.op, &data[..]), (op::RW, &b"pong!"[..]));
    // The guest is done sending, the host program answers and closes.
    end.shutdown(&mut guest, SHUTDOWN_SEND);
    assert_eq!(to_end(&mut stream), b"");
    stream.write_all(b"last").unwrap();
    assert_eq!(guest.next().1, b"last");
    drop(stream);
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags |= guest.next_op(op::SHUTDOWN).flags;
    }
    guest.send(&end.header(op::RST), &[]);
    // Its ports are free again.
    guest.dial(1234, &listener, 5000);
    assert!(guest.rig.irqfd.clear());
}

#[test]
fn the_guest_closes_first() {
    let mut guest = Guest::new();
    let listener = guest.listen(7);
    let (mut end, mut stream) = guest.dial(1, &listener, 7);
    end.write(&mut guest, b"bye");
    end.shutdown(&mut guest, SHUTDOWN_BOTH);
    guest.next_op(op::RST);
    assert_eq!(to_end(&mut stream), b"bye");
    // A reset ends it at once, too.
    let (mut end, mut stream) = guest.dial(1, &listener, 7);
    end.write(&mut guest, b"gone");
    guest.send(&end.header(op::RST), &[]);
    assert_eq!(to_end(&mut stream), b"gone");
    // The host program finishes first; the guest goes on until it has said all.
    let (mut end, mut stream) = guest.dial(1, &listener, 7);
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next_op(op::SHUTDOWN).flags, SHUTDOWN_SEND);
    end.write(&mut guest, b"more");
    end.shutdown(&mut guest, SHUTDOWN_BOTH);
    guest.next_op(op::RST);
    assert_eq!(to_end(&mut stream), b"more");
}

#[test]
fn the_host_calls() {
    let mut guest = Guest::new();
    let mut stream = guest.call(80);
    // What follows the greeting already belongs to the guest.
    stream.write_all(b"early").unwrap();
    let request = guest.next_op(op::REQUEST);
    assert_eq!(request.dst_port, 80);
    let end = End { guest: 80, host: request.src_port, sent: 0, read: 0, room: 0 };
    guest.send(&end.header(op::RESPONSE), &[]);
    let line = format!("OK {}\n", request.src_port);
    let mut answer = vec![0; line.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, line.as_bytes());
    assert_eq!(guest.next().1, b"early");
    // A guest that refuses: the host program sees the end.
    let mut refused = guest.call(81);
    let request = guest.next_op(op::REQUEST);
    let end = End { guest: 81, host: request.src_port, sent: 0, read: 0, room: 0 };
    guest.send(&end.header(op::RST), &[]);
    assert_eq!(to_end(&mut refused), b"");
}

#[test]
fn nobody_is_there() {
    let mut guest = Guest::new();
    let end = End { guest: 9, host: 99, sent: 0, read: 0, room: 0 };
    for op in [op::REQUEST, op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, 77] {
        guest.send(&end.header(op), &[]);
        let reset = guest.next_op(3);
        assert_eq!((reset.src_port, reset.dst_port), (99, 9));
    }
    let listener = guest.listen(5);
    let seqpacket = Header { kind: 2, ..End { host: 5, ..end }.header(op::REQUEST) };
    guest.send(&seqpacket, &[]);
    assert_eq!(guest.next_op(op::RST).kind, 2);
    guest.send(&Header { src_cid: 3, ..End { host: 5, ..end }.header(op::REQUEST) }, &[]);
    guest.send(&end.header(op::RST), &[]);
    // Neither was answered: the next answer belongs to the next question.
    guest.dial(9, &listener, 5);
}

#[test]
fn many_connections_keep_their_bytes_apart() {
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let mut all: Vec<_> = (0..200).map(|port| guest.dial(port, &listener, 6)).collect();
    for (end, stream) in &mut all {
        end.write(&mut guest, &noise(end.guest, 700));
        stream.write_all(&noise(end.guest + 1000, 900)).unwrap();
    }
    let mut got: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    while got.values().map(Vec::len).sum::<usize>() < 200 * 900 {
        let (header, data) = guest.next();
        got.entry(header.dst_port).or_default().extend(data);
    }
    for (end, stream) in &mut all {
        assert!(got[&end.guest] == noise(end.guest + 1000, 900));
        let mut bytes = vec![0; 700];
        stream.read_exact(&mut bytes).unwrap();
        assert!(bytes == noise(end.guest, 700));
    }
}

#[test]
fn the_table_is_bounded() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    if hard < 4096 {
        eprintln!("SKIPPED: only {hard} descriptors are allowed");
        return;
    }
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let most = u32::try_from(MAX_CONNECTIONS).unwrap();
    let all: Vec<_> = (0..most).map(|port| guest.dial(port, &listener, 6)).collect();
    let one_more = End { guest: most, host: 6, sent: 0, read: 0, room: 0 };
    guest.send(&one_more.header(op::REQUEST), &[]);
    guest.next_op(op::RST);
    // A host program waits until somebody goes.
    let _waits = guest.call(80);
    guest.send(&all[17].0.header(op::RST), &[]);
    guest.next_op(op::REQUEST);
}

/// The guest's side of a transfer in both directions at once.
fn exchange(guest: &mut Guest, end: &mut End, out: &[u8], total: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut told = 0;
    let start = Instant::now();
    let mut next = 0;
    while got.len() < total || next < out.len() {
        assert!(start.elapsed() < 6 * PATIENCE, "stalled at {} in, {next} out", got.len());
        guest.poll();
        while let Some((header, data)) = guest.inbox.pop_front() {
            assert!(matches!(header.op, op::RW | op::CREDIT_UPDATE | op::CREDIT_REQUEST));
            end.learn(&header);
            got.extend(data);
        }
        end.read = u32::try_from(got.len()).unwrap();
        if end.read - told > ALLOC / 2 {
            told = end.read;
            guest.send(&end.header(op::CREDIT_UPDATE), &[]);
        }
        let room = (end.room - end.sent) as usize;
        let n = room.min(out.len() - next).min(30_000);
        if n > 0 {
            end.write(guest, &out[next..next + n]);
            next += n;
        }
    }
    got
}

#[test]
fn big_transfers_arrive_whole() {
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let (mut end, stream) = guest.dial(1, &listener, 6);
    let (up, down) = (noise(1, 6 << 20), noise(2, 5 << 20));
    let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
    let (expected, sent) = (up.clone(), down.clone());
    let sending = std::thread::spawn(move || to.write_all(&sent).map(|()| to).unwrap());
    let reads = std::thread::spawn(move || {
        let mut bytes = vec![0; expected.len()];
        from.read_exact(&mut bytes).unwrap();
        bytes == expected
    });
    let got = exchange(&mut guest, &mut end, &up, down.len());
    assert!(got == down);
    assert!(reads.join().unwrap());
    drop(sending.join().unwrap());
}

#[test]
fn a_slow_host_program_stops_the_guest_and_nobody_else() {
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let (mut end, mut slow) = guest.dial(1, &listener, 6);
    let (mut other, mut quick) = guest.dial(2, &listener, 6);
    let mut sent = Vec::new();
    // Until both the socket and the device's buffer are full.
    loop {
        guest.poll();
        while let Some((header, _)) = guest.inbox.pop_front() {
            end.learn(&header);
        }
        let n = (end.room - end.sent).min(20_000);
        if n == 0 {
            break;
        }
        let data = noise(end.sent, n as usize);
        end.write(&mut guest, &data);
        sent.extend(data);
    }
    assert!(sent.len() >= connection::BUFFER as usize);
    other.write(&mut guest, b"not slow");
    let mut eight = [0; 8];
    quick.read_exact(&mut eight).unwrap();
    assert_eq!(&eight, b"not slow");
    // It reads at last: all of it is there, and the guest may go on.
    let mut bytes = vec![0; sent.len()];
    slow.read_exact(&mut bytes).unwrap();
    assert!(bytes == sent);
    end.learn(&guest.next_op(op::CREDIT_UPDATE));
    assert!(end.room - end.sent >= connection::BUFFER / 2);
    // One that does not stop when told is reset.
    while guest.inbox.is_empty() || guest.inbox[0].0.op != op::RST {
        guest.inbox.clear();
        end.write(&mut guest, &noise(0, 20_000));
        guest.poll();
        std::thread::yield_now();
    }
}

#[test]
fn packets_wait_while_the_guest_has_no_buffers() {
    let mut guest = Guest::with_buffers(0, 0);
    let streams: Vec<_> = (0..20).map(|port| guest.call(port)).collect();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.rig.queues[0].take_used(), []);
    // The first is too small for any packet and comes back empty.
    let (tiny, good) = (guest.rig.inp(43), guest.rig.inp(44));
    guest.rig.send(0, &[tiny]);
    assert_eq!(guest.rig.queues[0].wait_used(1)[0].1, 0);
    guest.post(good);
    let mut ports: Vec<u32> = (0..20).map(|_| guest.next_op(op::REQUEST).dst_port).collect();
    ports.sort_unstable();
    assert_eq!(ports, (0..20).collect::<Vec<_>>());
    drop(streams);
}

/// Saves the device and brings it back in place, with its queues.
fn reborn(guest: &mut Guest) {
    guest.device.drain().unwrap();
    let VirtioDeviceState::Vsock(state) = guest.device.save() else { unreachable!() };
    assert_eq!(state.cid, CID);
    let queues = guest.device.queues();
    guest.device = VsockDevice::restore(spec(&guest.dir), &state).unwrap();
    let mut activation = guest.rig.activation(EVENT_IDX);
    for (active, (index, state)) in activation.queues.iter_mut().zip(queues) {
        assert_eq!(active.index, index);
        active.queue = state.try_into().unwrap();
    }
    guest.device.activate(activation).unwrap();
}

#[test]
fn connections_end_with_a_save_and_the_guest_is_told() {
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let (mut end, mut stream) = guest.dial(1, &listener, 6);
    end.write(&mut guest, b"before");
    for round in 0..3 {
        reborn(&mut guest);
        assert_eq!(guest.rig.queues[2].take_used(), [], "parked");
        guest.device.resume();
        // The buffer for the event may be there before or come after.
        let event = guest.rig.inp(4);
        guest.rig.queues[0].put(if let Buf::In(gpa, _) = event { gpa } else { 0 }, &[9; 4]);
        if round == 1 {
            guest.device.drain().unwrap();
        }
        guest.rig.send(2, &[event]);
        guest.device.resume();
        assert_eq!(guest.rig.queues[2].wait_used(1)[0].1, 4);
        assert_eq!(guest.rig.bytes(event), [0; 4]);
        // Only once.
        let another = guest.rig.inp(4);
        guest.rig.send(2, &[another]);
        end.write(&mut guest, b"stale");
        guest.next_op(op::RST);
        assert_eq!(guest.rig.queues[2].take_used(), []);
        // Take that buffer back for the next round: the rings are laid anew by the driver.
        let (again, mut fresh) = guest.dial(1, &listener, 6);
        end = again;
        fresh.write_all(b"after").unwrap();
        assert_eq!(guest.next().1, b"after");
        if round == 0 {
            assert_eq!(to_end(&mut stream), b"before");
        }
        if round < 2 {
            // The waiting event buffer is used by the next round's reset.
            reborn(&mut guest);
            guest.device.resume();
            assert_eq!(guest.rig.queues[2].wait_used(1)[0].1, 4);
        }
    }
}

#[test]
fn connections_survive_a_pause() {
    let mut guest = Guest::new();
    let listener = guest.listen(6);
    let (mut end, mut stream) = guest.dial(1, &listener, 6);
    guest.device.drain().unwrap();
    let before = guest.device.queues();
    guest.rig.irqfd.clear();
    let status = guest.rig.status.swap(0, Ordering::SeqCst);
    assert!(status <= 1);
    stream.write_all(b"meanwhile").unwrap();
    for word in 0..64 {
        guest.rig.ram.own_writes()[0].take(word);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.device.queues(), before);
    assert_eq!(guest.rig.status.load(Ordering::SeqCst), 0);
    assert!((0..64).all(|w| guest.rig.ram.own_writes()[0].peek(w) == 0));
    guest.device.resume();
    assert_eq!(guest.next().1, b"meanwhile");
    assert!((0..64).any(|w| guest.rig.ram.own_writes()[0].peek(w) != 0), "writes are tracked");
    end.write(&mut guest, b"and on");
    let mut six = [0; 6];
    stream.read_exact(&mut six).unwrap();
    // A driver that resets the device ends them.
    guest.device.reset();
    assert_eq!(to_end(&mut stream), b"");
}

#[test]
fn descriptions_and_states_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    for cid in [0, 2, u64::from(u32::MAX), 1 << 40] {
        let refused = VsockDevice::new(VsockSpec { cid, ..spec(&dir) }).err().unwrap();
        assert!(refused.to_string().contains(&format!("cid {cid} is out of range")), "{refused}");
    }
    let long = PathBuf::from("/".repeat(97));
    assert!(VsockDevice::new(VsockSpec { path: long, ..spec(&dir) }).is_err());
    let other = VsockDevice::restore(spec(&dir), &VsockState { cid: 9 }).err().unwrap();
    assert!(other.to_string().contains("cid is 9 in the state and 42"), "{other}");
    let device = VsockDevice::new(spec(&dir)).unwrap();
    let mut config = [7; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

type Packets = Vec<(u16, u16, u32, u32, u32, usize, bool)>;

fn hostile(packets: &Packets) {
    let mut guest = Guest::new();
    let listener = guest.listen(5);
    listener.set_nonblocking(true).unwrap();
    let mut streams = Vec::new();
    for (op, kind, port, credit, flags, len, honest) in packets {
        let end = End { guest: port % 3, host: 5, sent: 0, read: *credit, room: 0 };
        let len = len % 70_000;
        let claimed = if *honest { u32::try_from(len).unwrap() } else { *credit };
        let header = Header {
            len: claimed,
            kind: if kind % 8 == 0 { *kind } else { STREAM },
            flags: *flags,
            buf_alloc: credit.rotate_left(7),
            ..end.header(op % 9)
        };
        guest.send(&header, &vec![0xAB; len]);
        if let Ok((stream, _)) = listener.accept() {
            streams.push(stream);
        }
        for stream in &mut streams {
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(&[1; 500]);
            let _: io::Result<usize> = stream.read(&mut [0; 5000]);
        }
        guest.poll();
        guest.inbox.clear();
    }
    streams.clear();
    while listener.accept().is_ok() {}
    listener.set_nonblocking(false).unwrap();
    // Whatever it was, a well-behaved connection works.
    let end = End { guest: 1000, host: 5, sent: 0, read: 0, room: 0 };
    guest.send(&end.header(op::REQUEST), &[]);
    while guest.next().0.dst_port != 1000 {}
    guest.device.drain().unwrap();
}

type Chains = Vec<Vec<(bool, u64, u32)>>;

fn hostile_chains(chains: &Chains) {
    let mut guest = Guest::with_buffers(0, 0);
    for chain in chains {
        let bufs: Vec<Buf> = chain
            .iter()
            .map(|(inp, gpa, len)| {
                let (gpa, len) = ((8 << 20) + gpa % (12 << 20), len % 70_000);
                if *inp { Buf::In(gpa, len) } else { Buf::Out(gpa, len) }
            })
            .collect();
        guest.rig.queues.iter_mut().for_each(|q| {
            q.submit(&bufs).unwrap();
        });
    }
    let calls: Vec<_> = (0..4).map(|port| guest.call(port)).collect();
    guest.rig.kicks.iter().for_each(crate::eventfd::EventFd::signal);
    guest.rig.queues[1].wait_used(chains.len());
    guest.device.drain().unwrap();
    drop(calls);
    // Rings that make no sense, too.
    for queue in &mut guest.rig.queues {
        queue.publish(u16::MAX);
        queue.put(queue.avail + 2, &0x7000_u16.to_le_bytes());
    }
    guest.device.resume();
    guest.rig.kicks.iter().for_each(crate::eventfd::EventFd::signal);
    guest.device.drain().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn survives_any_packets(packets in prop::collection::vec(
        (any::<u16>(), any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), any::<usize>(), any::<bool>()),
        0..40,
    )) {
        hostile(&packets);
    }

    #[test]
    fn survives_any_chain(chains in prop::collection::vec(
        prop::collection::vec((any::<bool>(), any::<u64>(), any::<u32>()), 1..4),
        0..5,
    )) {
        hostile_chains(&chains);
    }
}
