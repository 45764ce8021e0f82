//! The host's sockets: which connection a packet, a descriptor or a deadline belongs to.
//!
//! Rules of flow and shutdown are in [`super::connection`]; this joins them to Unix sockets.
//! Connections take turns, one packet each. A socket is watched only for what can be used now,
//! so that neither a guest without buffers nor a host program that hung up keeps the thread busy.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::connection::{Connection, Ends, Reaction};
use super::host::{self, Greeting, HostSocket, Progress};
use super::packet::{HOST_CID, Header, STREAM, op};

/// Most connections at a time, half-open and closing ones included.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most resets that wait for a guest without buffers; more are dropped, and the guest's own
/// timeout takes their place.
const MAX_RESETS: usize = 256;
/// How long a host program may take to say where it wants to go.
const GREETING_TIME: Duration = Duration::from_secs(10);
/// How long a guest may take to answer a request.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How long a closed connection may take to go away: the guest's reset, or the last bytes to a
/// slow host program.
const CLOSING_TIME: Duration = Duration::from_secs(30);
/// Ports from here on are given to host programs.
const FIRST_HOST_PORT: u32 = 1 << 30;

#[derive(Debug)]
enum Stage {
    /// A host program has not said yet which port it wants.
    Greeting(Greeting),
    /// There is a connection.
    Linked(Connection),
}

#[derive(Debug)]
struct Entry {
    socket: HostSocket,
    stage: Stage,
    /// What the socket is watched for; `None` if it is not.
    watched: Option<EpollFlags>,
    /// There is something to read, or the end.
    readable: bool,
    /// The host program has closed its socket for good.
    hung_up: bool,
    /// It is in `turns`.
    queued: bool,
    deadline: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    listener: Arc<UnixListener>,
    path: PathBuf,
    epoll: Option<Arc<Epoll>>,
    /// By number; the epoll token is the number too. Numbers are never used again, so an event
    /// for a connection that is gone finds nothing.
    entries: BTreeMap<u64, Entry>,
    numbers: BTreeMap<Ends, u64>,
    turns: VecDeque<u64>,
    resets: VecDeque<Header>,
    next_number: u64,
    next_port: u32,
    listener_token: u64,
    listening: bool,
}

impl Muxer {
    /// No connections. `first_token` and what follows are the muxer's epoll tokens;
    /// `port_seed` spreads the ports of host programs, so that those of a restored device do not
    /// meet connections that the guest still believes in.
    pub fn new(
        guest_cid: u64,
        listener: Arc<UnixListener>,
        path: PathBuf,
        first_token: u64,
        port_seed: u32,
    ) -> Self {
        Self {
            guest_cid,
            listener,
            path,
            epoll: None,
            entries: BTreeMap::new(),
            numbers: BTreeMap::new(),
            turns: VecDeque::new(),
            resets: VecDeque::new(),
            next_number: first_token + 1,
            next_port: FIRST_HOST_PORT | port_seed & (FIRST_HOST_PORT - 1),
            listener_token: first_token,
            listening: false,
        }
    }

    /// Watches the listener.
    pub fn attach(&mut self, epoll: &Arc<Epoll>) {
        self.epoll = Some(epoll.clone());
        self.listen(true);
    }

    /// Watches the listener, or leaves callers in its backlog.
    fn listen(&mut self, on: bool) {
        let Some(epoll) = &self.epoll else { return };
        if on == self.listening {
            return;
        }
        let event = EpollEvent::new(EpollFlags::EPOLLIN, self.listener_token);
        let listener = self.listener.as_fd();
        let done = if on { epoll.add(listener, event) } else { epoll.delete(listener) };
        match done {
            Ok(()) => self.listening = on,
            Err(e) => tracing::warn!(error = %e, on, "cannot watch the vsock listener"),
        }
    }

    /// Something has a deadline, or is to be tried again: call `expire` once a second.
    pub fn needs_timer(&self) -> bool {
        !self.listening || self.entries.values().any(|e| e.deadline.is_some())
    }

    /// A packet waits for the guest, or may be made.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.turns.is_empty()
    }

    /// Connections, half-open and closing ones included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a packet from the guest; `data` is its content.
    pub fn guest_packet(&mut self, header: &Header, data: &[u8], now: Instant) {
        if header.src_cid != self.guest_cid {
            // Not from this guest: an answer could reach nobody.
            return;
        }
        let ends = Ends { host_port: header.dst_port, guest_port: header.src_port };
        let known = self.numbers.get(&ends).copied();
        let ours = header.kind == STREAM && header.dst_cid == HOST_CID;
        match known.filter(|_| ours) {
            Some(number) => {
                let Some(entry) = self.entries.get_mut(&number) else { return };
                entry.packet(header, data);
                self.settle(number, now);
            }
            None if ours && header.op == op::REQUEST => self.guest_request(header, now),
            None if header.op == op::RST => {}
            None => self.refuse(header),
        }
    }

    /// A packet that is no packet: whatever connection it names has lost bytes.
    pub fn malformed(&mut self, header: &Header, now: Instant) {
        let ends = Ends { host_port: header.dst_port, guest_port: header.src_port };
        let number = self.numbers.get(&ends).copied().filter(|_| header.src_cid == self.guest_cid);
        if let Some((number, entry)) = number.and_then(|n| self.entries.get_mut(&n).map(|e| (n, e)))
        {
            if let Stage::Linked(connection) = &mut entry.stage {
                connection.abort();
            }
            self.settle(number, now);
        }
    }

    fn refuse(&mut self, header: &Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(header.reset());
        }
    }

    /// The guest calls port P: the host program listens at `<path>_P`.
    fn guest_request(&mut self, header: &Header, now: Instant) {
        if self.entries.len() >= MAX_CONNECTIONS {
            return self.refuse(header);
        }
        match HostSocket::connect(&host::path_of(&self.path, header.dst_port)) {
            Ok(socket) => {
                let connection = Connection::accepted(header);
                let number = self.insert(socket, Stage::Linked(connection), None);
                self.settle(number, now);
            }
            Err(e) => {
                tracing::debug!(port = header.dst_port, error = %e, "nobody takes the guest's vsock call");
                self.refuse(header);
            }
        }
    }

    fn insert(&mut self, socket: HostSocket, stage: Stage, deadline: Option<Instant>) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        if let Stage::Linked(connection) = &stage {
            self.numbers.insert(connection.ends(), number);
        }
        let entry = Entry {
            socket,
            stage,
            watched: None,
            readable: false,
            hung_up: false,
            queued: false,
            deadline,
        };
        self.entries.insert(number, entry);
        number
    }

    /// A descriptor is ready.
    pub fn event(&mut self, token: u64, flags: EpollFlags, now: Instant) {
        if token == self.listener_token {
            return self.accept(now);
        }
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.readable |= flags.contains(EpollFlags::EPOLLIN);
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            entry.hang_up();
        }
        if matches!(entry.stage, Stage::Greeting(_)) {
            self.greet(token, now);
        }
        self.settle(token, now);
    }

    fn accept(&mut self, now: Instant) {
        while self.entries.len() < MAX_CONNECTIONS {
            match HostSocket::accept(&self.listener) {
                Ok(Some(socket)) => {
                    let deadline = Some(now + GREETING_TIME);
                    let number =
                        self.insert(socket, Stage::Greeting(Greeting::default()), deadline);
                    self.greet(number, now);
                    self.settle(number, now);
                }
                Ok(None) => return,
                Err(e) => {
                    // Out of descriptors or memory: the callers wait in the backlog.
                    tracing::warn!(error = %e, "cannot accept a vsock call; trying again");
                    break;
                }
            }
        }
        self.listen(false);
    }

    /// Reads what a host program wants, and asks the guest for it.
    fn greet(&mut self, number: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let Stage::Greeting(greeting) = &mut entry.stage else { return };
        entry.readable = false;
        let guest_port = match entry.socket.greeting(greeting) {
            Progress::Done(port) => port,
            Progress::Wait => return,
            Progress::Failed => return self.remove(number),
        };
        let Some(ends) = self.free_ends(guest_port) else { return self.remove(number) };
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.stage = Stage::Linked(Connection::requested(ends, self.guest_cid));
            entry.deadline = Some(now + ANSWER_TIME);
            self.numbers.insert(ends, number);
        }
    }

    /// A host port that no connection to `guest_port` has.
    fn free_ends(&mut self, guest_port: u32) -> Option<Ends> {
        for _ in 0..=MAX_CONNECTIONS {
            let ends = Ends { host_port: self.next_port, guest_port };
            self.next_port =
                FIRST_HOST_PORT | self.next_port.wrapping_add(1) & (FIRST_HOST_PORT - 1);
            if !self.numbers.contains_key(&ends) {
                return Some(ends);
            }
        }
        None
    }

    /// The next packet for the guest and, in `data`, its content. A connection that has nothing
    /// after all gives up its turn; `None` means that nothing is left.
    pub fn next_packet(&mut self, data: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(number) = self.turns.pop_front() {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            entry.queued = false;
            let packet = entry.next_packet(data);
            // Back to the end of the queue, if it has more.
            self.settle(number, now);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Ends what took too long and tries again what failed.
    pub fn expire(&mut self, now: Instant) {
        let late = |e: &Entry| e.deadline.is_some_and(|d| d <= now);
        let expired: Vec<u64> =
            self.entries.iter().filter(|(_, e)| late(e)).map(|(number, _)| *number).collect();
        for number in expired {
            let Some(entry) = self.entries.get_mut(&number) else { continue };
            entry.deadline = None;
            match &mut entry.stage {
                Stage::Linked(connection) if !connection.is_over() => {
                    connection.abort();
                    self.settle(number, now);
                }
                _ => self.remove(number),
            }
        }
        self.listen(self.entries.len() < MAX_CONNECTIONS);
    }

    /// After anything happened to a connection: moves bytes to the host program, and works out
    /// what the connection waits for now.
    fn settle(&mut self, number: u64, now: Instant) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let Stage::Linked(connection) = &mut entry.stage else {
            return self.watch(number, Some(EpollFlags::EPOLLIN));
        };
        entry.socket.deliver(connection);
        if connection.is_over() {
            // The guest may use the ports again, while the last bytes go to the host program.
            let ends = connection.ends();
            if self.numbers.get(&ends) == Some(&number) {
                self.numbers.remove(&ends);
            }
            if connection.for_host().0.is_empty() {
                return self.remove(number);
            }
        }
        let closing = connection.is_over() || connection.awaits_reset();
        if closing && entry.deadline.is_none() {
            entry.deadline = Some(now + CLOSING_TIME);
        } else if !closing && !connection.is_requested() {
            entry.deadline = None;
        }
        if !entry.queued && entry.has_packets() {
            entry.queued = true;
            self.turns.push_back(number);
        }
        let wanted = entry.interest();
        self.watch(number, wanted);
    }

    fn watch(&mut self, number: u64, wanted: Option<EpollFlags>) {
        let Some((entry, epoll)) = self.entries.get_mut(&number).zip(self.epoll.as_ref()) else {
            return;
        };
        if entry.watched == wanted {
            return;
        }
        let fd = entry.socket.as_fd();
        let done = match (entry.watched, wanted) {
            (None, Some(flags)) => epoll.add(fd, EpollEvent::new(flags, number)),
            (Some(_), Some(flags)) => epoll.modify(fd, &mut EpollEvent::new(flags, number)),
            (_, None) => epoll.delete(fd),
        };
        entry.watched = wanted;
        if let Err(e) = done {
            tracing::warn!(error = %e, "cannot watch a vsock connection; it is dropped");
            self.remove(number);
        }
    }

    /// Closes the socket, which also ends its watch.
    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        if let Stage::Linked(connection) = &entry.stage {
            let ends = connection.ends();
            if self.numbers.get(&ends) == Some(&number) {
                self.numbers.remove(&ends);
            }
        }
        drop(entry);
        self.listen(true);
    }
}

impl Entry {
    fn packet(&mut self, header: &Header, data: &[u8]) {
        let Stage::Linked(connection) = &mut self.stage else { return };
        if connection.packet(header, data) == Reaction::Established {
            self.deadline = None;
            if self.socket.welcome(connection.ends().host_port).is_err() {
                connection.abort();
            }
        }
        if connection.guest_stopped_receiving() {
            self.socket.shut_read();
            if self.hung_up {
                // Nobody reads to the end any more.
                connection.host_finished_sending();
            }
        }
    }

    /// The host program has closed its socket. What it sent before may still be there to read.
    fn hang_up(&mut self) {
        self.hung_up = true;
        match &mut self.stage {
            Stage::Greeting(_) => self.readable = true,
            Stage::Linked(connection) if connection.is_requested() => connection.abort(),
            Stage::Linked(connection) => {
                connection.host_stopped_receiving();
                if connection.guest_stopped_receiving() {
                    connection.host_finished_sending();
                }
            }
        }
    }

    fn has_packets(&self) -> bool {
        match &self.stage {
            Stage::Greeting(_) => false,
            Stage::Linked(c) => c.has_control() || self.readable && c.may_send() > 0,
        }
    }

    /// A control packet, or data read from the host program.
    fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        let Stage::Linked(connection) = &mut self.stage else { return None };
        if let Some(packet) = connection.control() {
            return Some(packet);
        }
        let room = connection.may_send().min(data.len());
        if !self.readable || room == 0 {
            return None;
        }
        match self.socket.read(&mut data[..room]) {
            Ok(Some(0)) => {
                self.readable = false;
                connection.host_finished_sending();
                if self.hung_up {
                    connection.host_stopped_receiving();
                }
                connection.control()
            }
            Ok(Some(n)) => Some(connection.data_packet(u32::try_from(n).unwrap_or(u32::MAX))),
            Ok(None) => {
                self.readable = false;
                None
            }
            Err(e) => {
                // The program died with bytes unread.
                tracing::debug!(error = %e, "a vsock host program is gone");
                self.readable = false;
                connection.host_finished_sending();
                connection.host_stopped_receiving();
                connection.control()
            }
        }
    }

    /// What to watch the socket for. Even an empty set reports a hang-up, for ever: so a socket
    /// that hung up is watched only while an event leads to a read or write.
    fn interest(&self) -> Option<EpollFlags> {
        let Stage::Linked(c) = &self.stage else { return Some(EpollFlags::EPOLLIN) };
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, !self.readable && c.may_send() > 0);
        flags.set(EpollFlags::EPOLLOUT, !c.for_host().0.is_empty());
        (!flags.is_empty() || !self.hung_up).then_some(flags)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::packet::SHUTDOWN_BOTH;
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const CID: u64 = 7;

    struct Lab {
        muxer: Muxer,
        epoll: Arc<Epoll>,
        dir: tempfile::TempDir,
        start: Instant,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("vsock");
            let listener = UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let mut muxer = Muxer::new(CID, Arc::new(listener), path, 100, 0);
            // Most tests do not wait on it but say what is ready.
            let flags = nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC;
            let epoll = Arc::new(Epoll::new(flags).unwrap());
            muxer.attach(&epoll);
            Self { muxer, epoll, dir, start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn call(&mut self, greeting: &str) -> UnixStream {
            let mut stream = UnixStream::connect(self.dir.path().join("vsock")).unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
            self.muxer.event(100, EpollFlags::EPOLLIN, self.at(0));
            stream
        }

        fn next(&mut self) -> Option<Header> {
            let now = self.at(0);
            self.muxer.next_packet(&mut [0; 4096], now)
        }

        fn answer(&mut self, to: &Header, op: u16) {
            let answer = Header { op, buf_alloc: 4096, ..to.reset() };
            let now = self.at(0);
            self.muxer.guest_packet(&answer, &[], now);
        }
    }

    #[test]
    fn half_open_connections_end_in_time() {
        let mut lab = Lab::new();
        let mut silent = lab.call("CONN");
        let mut unanswered = lab.call("CONNECT 80\n");
        let request = lab.next().unwrap();
        assert_eq!((request.op, request.dst_cid, request.dst_port), (op::REQUEST, CID, 80));
        assert_eq!(lab.muxer.len(), 2);
        lab.muxer.expire(lab.at(4));
        assert_eq!((lab.muxer.len(), lab.next()), (2, None));
        lab.muxer.expire(lab.at(6));
        assert_eq!(lab.next().unwrap().op, op::RST, "the guest must not answer later");
        assert_eq!(unanswered.read(&mut [0]).unwrap(), 0);
        assert_eq!(lab.muxer.len(), 1);
        lab.muxer.expire(lab.at(11));
        assert_eq!(silent.read(&mut [0]).unwrap(), 0);
        assert_eq!(lab.muxer.len(), 0);
        assert!(!lab.muxer.needs_timer());
    }

    #[test]
    fn answered_connections_stay_and_closed_ones_do_not() {
        let mut lab = Lab::new();
        let mut stream = lab.call("CONNECT 80\n");
        let request = lab.next().unwrap();
        lab.answer(&request, op::RESPONSE);
        let mut line = [0; 14];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, *b"OK 1073741824\n");
        lab.muxer.expire(lab.at(10_000));
        assert_eq!((lab.muxer.len(), lab.next()), (1, None));
        assert!(!lab.muxer.needs_timer());
        // The host program goes; the guest is told and then owes a reset, but never sends it.
        drop(stream);
        let number = *lab.muxer.entries.keys().next().unwrap();
        lab.muxer.event(number, EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP, lab.at(0));
        let mut flags = 0;
        while let Some(packet) = lab.next() {
            assert_eq!(packet.op, op::SHUTDOWN);
            flags = packet.flags;
        }
        assert_eq!(flags, SHUTDOWN_BOTH);
        lab.muxer.expire(lab.at(29));
        assert_eq!(lab.muxer.len(), 1);
        lab.muxer.expire(lab.at(31));
        assert_eq!(lab.next().unwrap().op, op::RST);
        assert_eq!(lab.muxer.len(), 0);
    }

    #[test]
    fn a_caller_that_gives_up_is_taken_back() {
        let mut lab = Lab::new();
        drop(lab.call("CONNECT 80\n"));
        assert_eq!(lab.next().unwrap().op, op::REQUEST);
        let number = *lab.muxer.entries.keys().next().unwrap();
        lab.muxer.event(number, EpollFlags::EPOLLHUP, lab.at(0));
        assert_eq!(lab.next().unwrap().op, op::RST);
        assert_eq!(lab.muxer.len(), 0);
        drop(lab.call("GET / HTTP/1.1\n"));
        assert_eq!((lab.muxer.len(), lab.next()), (0, None));
    }

    #[test]
    fn connections_take_turns() {
        let mut lab = Lab::new();
        let mut streams: Vec<_> = (0..3).map(|_| lab.call("CONNECT 9\n")).collect();
        let requests: Vec<_> = (0..3).map(|_| lab.next().unwrap()).collect();
        let ports: Vec<_> = requests.iter().map(|r| r.src_port).collect();
        for (stream, request) in streams.iter_mut().zip(&requests) {
            lab.answer(request, op::RESPONSE);
            stream.write_all(&[1; 1000]).unwrap();
        }
        let numbers: Vec<u64> = lab.muxer.entries.keys().copied().collect();
        for number in numbers {
            lab.muxer.event(number, EpollFlags::EPOLLIN, lab.at(0));
        }
        let now = lab.at(0);
        let mut order = Vec::new();
        while let Some(packet) = lab.muxer.next_packet(&mut [0; 400], now) {
            order.push((packet.src_port, packet.len));
        }
        let expected: Vec<_> =
            [400, 400, 200].iter().flat_map(|len| ports.iter().map(move |p| (*p, *len))).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn resets_for_a_guest_without_buffers_are_bounded() {
        let mut lab = Lab::new();
        let stray =
            Header { src_cid: CID, dst_cid: 2, kind: STREAM, op: op::RW, ..Header::default() };
        for src_port in 0..1000 {
            let now = lab.at(0);
            lab.muxer.guest_packet(&Header { src_port, ..stray }, &[], now);
        }
        let resets: Vec<_> = std::iter::from_fn(|| lab.next()).collect();
        assert_eq!(resets.len(), MAX_RESETS);
        assert!(resets.iter().all(|r| r.op == op::RST && r.dst_cid == CID));
        // Neither a reset nor somebody else's packet is answered.
        for header in [Header { op: op::RST, ..stray }, Header { src_cid: 8, ..stray }] {
            lab.muxer.guest_packet(&header, &[], Instant::now());
        }
        assert_eq!(lab.next(), None);
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        HostWrites(u16),
        HostReads(u16),
        HostFinishes,
        HostStopsReading,
        HostCloses,
        GuestSends(u16, u32),
        GuestTakes(u8),
    }

    fn acts() -> impl Strategy<Value = Act> {
        prop_oneof![
            any::<u16>().prop_map(Act::HostWrites),
            any::<u16>().prop_map(Act::HostReads),
            Just(Act::HostFinishes),
            Just(Act::HostStopsReading),
            Just(Act::HostCloses),
            (0_u16..9, any::<u32>()).prop_map(|(op, n)| Act::GuestSends(op, n)),
            any::<u8>().prop_map(Act::GuestTakes),
        ]
    }

    impl Lab {
        /// Handles what is ready until nothing is; the number of events, which must be small.
        fn quiet(&mut self) -> usize {
            for turn in 0..50 {
                let mut events = [EpollEvent::empty(); 8];
                let n = self.epoll.wait(&mut events, 0_u8).unwrap();
                if n == 0 {
                    return turn;
                }
                for event in &events[..n] {
                    let now = self.at(0);
                    self.muxer.event(event.data(), event.events(), now);
                }
            }
            usize::MAX
        }

        fn act(&mut self, act: Act, host: &mut Option<UnixStream>, ends: &Header) {
            let now = self.at(0);
            match (act, host.as_mut()) {
                (Act::HostWrites(n), Some(s)) => drop(s.write(&vec![1; n.into()])),
                (Act::HostReads(n), Some(s)) => drop(s.read(&mut vec![0; n.into()])),
                (Act::HostFinishes, Some(s)) => drop(s.shutdown(std::net::Shutdown::Write)),
                (Act::HostStopsReading, Some(s)) => drop(s.shutdown(std::net::Shutdown::Read)),
                (Act::HostCloses, _) => *host = None,
                (Act::GuestSends(op, n), _) => {
                    let data = vec![0; if op == op::RW { n as usize % 70_000 } else { 0 }];
                    let packet = Header { op, flags: n, buf_alloc: n % 5000, ..*ends };
                    self.muxer.guest_packet(&packet, &data, now);
                }
                (Act::GuestTakes(n), _) => {
                    for _ in 0..n % 8 {
                        self.muxer.next_packet(&mut [0; 999], now);
                    }
                }
                (_, None) => {}
            }
        }
    }

    proptest! {
        /// Whatever the two sides do, and whether or not the guest has buffers, the thread goes
        /// to sleep again; and when the time is up nothing is left behind.
        #[test]
        fn never_spins_and_never_leaks(steps in prop::collection::vec(acts(), 0..30)) {
            let mut lab = Lab::new();
            let mut stream = lab.call("CONNECT 80\n");
            stream.set_nonblocking(true).unwrap();
            let ends = lab.next().unwrap().reset();
            lab.answer(&ends.reset(), op::RESPONSE);
            stream.read_exact(&mut [0; 14]).unwrap();
            let mut host = Some(stream);
            prop_assert!(lab.quiet() < 50);
            for step in steps {
                lab.act(step, &mut host, &ends);
                prop_assert!(lab.quiet() < 50, "after {:?}", step);
            }
            drop(host);
            prop_assert!(lab.quiet() < 50);
            while lab.next().is_some() {}
            lab.act(Act::GuestSends(op::CREDIT_UPDATE, 4999), &mut None, &ends);
            for seconds in [0, 100, 200] {
                while { lab.quiet(); lab.next().is_some() } {
                    lab.act(Act::GuestSends(op::RST, 0), &mut None, &ends);
                }
                lab.muxer.expire(lab.at(seconds));
            }
            prop_assert_eq!((lab.muxer.len(), lab.muxer.numbers.len()), (0, 0));
        }
    }
}
