//! One connection as a state machine: packets and host events in, packets and host bytes out.
//! It owns no descriptor, reads no clock and moves no data of the host; [`super::muxer`] does.
//!
//! Flow control (virtio 1.2, 5.10.6.3): each side counts bytes modulo 2³² and never has more in
//! flight than the other's buffer holds. Whatever a guest claims about its buffer can only
//! starve or flood the guest itself; what it sends beyond ours resets the connection.

use std::collections::VecDeque;

use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};

/// Bytes that we hold for a host program that reads slowly; what the guest is told.
pub const BUFFER: u32 = 64 << 10;
/// The guest is told of free room when it knows of this much less than there is.
const UPDATE_AT: u32 = BUFFER / 4;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Port on the host.
    pub host_port: u32,
    /// Port in the guest.
    pub guest_port: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A host program asked; the guest has not answered.
    Requested,
    /// Data may flow.
    Open,
    /// Over: a reset is to be sent, was sent, or came.
    Over,
}

/// What a packet from the guest led to, besides packets in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing more.
    None,
    /// The guest accepted what the host program asked for.
    Established,
}

/// Control packets that wait to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one packet that may wait")]
struct Due {
    request: bool,
    response: bool,
    update: bool,
    ask: bool,
    reset: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    ends: Ends,
    guest_cid: u64,
    phase: Phase,
    due: Due,
    /// The guest's buffer, what it took out of it, and what we sent.
    guest_alloc: u32,
    guest_forwarded: u32,
    sent: u32,
    /// Shutdown flags that the guest sent.
    guest_shut: u32,
    /// Bytes for the host program, and how many were handed on in all.
    to_host: VecDeque<u8>,
    forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    told: u32,
    /// Shutdown flags that follow from the host program, and those that the guest was sent.
    host_shut: u32,
    host_shut_told: u32,
}

impl Connection {
    fn new(ends: Ends, guest_cid: u64, phase: Phase, due: Due) -> Self {
        Self {
            ends,
            guest_cid,
            phase,
            due,
            guest_alloc: 0,
            guest_forwarded: 0,
            sent: 0,
            guest_shut: 0,
            to_host: VecDeque::new(),
            forwarded: 0,
            told: 0,
            host_shut: 0,
            host_shut_told: 0,
        }
    }

    /// The guest's `request` is accepted.
    pub fn accepted(request: &Header) -> Self {
        let ends = Ends { host_port: request.dst_port, guest_port: request.src_port };
        let due = Due { response: true, ..Due::default() };
        let mut connection = Self::new(ends, request.src_cid, Phase::Open, due);
        connection.take_credit(request);
        connection
    }

    /// A host program wants to reach the guest.
    pub fn requested(ends: Ends, guest_cid: u64) -> Self {
        let due = Due { request: true, ..Due::default() };
        Self::new(ends, guest_cid, Phase::Requested, due)
    }

    /// Its two ends.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// Takes a packet of this connection. `data` is its content, `header.len` bytes.
    pub fn packet(&mut self, header: &Header, data: &[u8]) -> Reaction {
        if header.op == op::RST {
            self.end(false);
            return Reaction::None;
        }
        self.take_credit(header);
        match (self.phase, header.op) {
            (Phase::Requested, op::RESPONSE) => {
                self.phase = Phase::Open;
                return Reaction::Established;
            }
            (Phase::Open, op::RW) => self.data(data),
            (Phase::Open, op::SHUTDOWN) => {
                self.guest_shut |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shut == SHUTDOWN_BOTH {
                    // What the guest sent before it let go still reaches the host program.
                    self.end(true);
                }
            }
            (Phase::Open, op::CREDIT_UPDATE) => {}
            (Phase::Open, op::CREDIT_REQUEST) => self.due.update = true,
            _ => self.abort(),
        }
        Reaction::None
    }

    fn take_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
    }

    fn data(&mut self, data: &[u8]) {
        let room = (BUFFER as usize).saturating_sub(self.to_host.len());
        if self.guest_shut & SHUTDOWN_SEND != 0 || data.len() > room {
            return self.abort();
        }
        if self.host_shut & SHUTDOWN_RECEIVE == 0 {
            self.to_host.extend(data);
        } else {
            self.forward(data.len());
        }
    }

    /// No more packets but perhaps a reset. Bytes for the host program stay.
    fn end(&mut self, reset: bool) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            self.due = Due { reset, ..Due::default() };
        }
    }

    /// Resets the connection: the guest broke the rules, or did not answer in time.
    pub fn abort(&mut self) {
        self.end(true);
        self.to_host.clear();
    }

    /// Bytes for the host program, in order.
    pub fn for_host(&self) -> (&[u8], &[u8]) {
        self.to_host.as_slices()
    }

    /// The host program's socket took `n` of them.
    pub fn host_took(&mut self, n: usize) {
        let n = n.min(self.to_host.len());
        self.to_host.drain(..n);
        if self.to_host.is_empty() {
            // A thousand connections that were slow once do not keep 64 MiB.
            self.to_host = VecDeque::new();
        }
        self.forward(n);
    }

    fn forward(&mut self, n: usize) {
        // `n` is at most a buffer's size; the count wraps by design.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(n).unwrap_or(u32::MAX));
        if self.forwarded.wrapping_sub(self.told) >= UPDATE_AT && self.phase == Phase::Open {
            self.due.update = true;
        }
    }

    /// Bytes that may be read from the host program and sent to the guest now.
    pub fn may_send(&self) -> usize {
        let silent = self.phase != Phase::Open
            || self.due.response
            || self.host_shut & SHUTDOWN_SEND != 0
            || self.guest_shut & SHUTDOWN_RECEIVE != 0;
        if silent { 0 } else { self.credit() as usize }
    }

    fn credit(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// The header for `n` bytes from the host program, at most [`Connection::may_send`].
    pub fn data_packet(&mut self, n: u32) -> Header {
        self.sent = self.sent.wrapping_add(n);
        // The guest should say by itself when there is room; if it forgot, it is reminded once.
        self.due.ask = self.credit() == 0;
        Header { len: n, ..self.header(op::RW) }
    }

    /// The host program will send no more.
    pub fn host_finished_sending(&mut self) {
        self.host_shut |= SHUTDOWN_SEND;
    }

    /// The host program will receive no more: what comes for it is dropped.
    pub fn host_stopped_receiving(&mut self) {
        self.host_shut |= SHUTDOWN_RECEIVE;
        self.host_took(self.to_host.len());
    }

    /// A control packet waits.
    pub fn has_control(&self) -> bool {
        self.due != Due::default() || self.shutdown_due()
    }

    fn shutdown_due(&self) -> bool {
        self.phase == Phase::Open && self.host_shut & !self.host_shut_told != 0
    }

    /// The next control packet.
    pub fn control(&mut self) -> Option<Header> {
        let due = &mut self.due;
        let op = if std::mem::take(&mut due.reset) {
            return Some(Header { buf_alloc: 0, fwd_cnt: 0, ..self.header(op::RST) });
        } else if std::mem::take(&mut due.request) {
            op::REQUEST
        } else if std::mem::take(&mut due.response) {
            op::RESPONSE
        } else if std::mem::take(&mut due.update) {
            op::CREDIT_UPDATE
        } else if std::mem::take(&mut due.ask) {
            op::CREDIT_REQUEST
        } else if self.shutdown_due() {
            self.host_shut_told = self.host_shut;
            let flags = self.host_shut;
            return Some(Header { flags, ..self.header(op::SHUTDOWN) });
        } else {
            return None;
        };
        Some(self.header(op))
    }

    /// Every packet tells the guest how much room there is.
    fn header(&mut self, op: u16) -> Header {
        self.told = self.forwarded;
        self.due.update = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ends.host_port,
            dst_port: self.ends.guest_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }

    /// Nothing more goes to or comes from the guest. Bytes for the host program may be left.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over && !self.due.reset
    }

    /// The guest has not answered the request.
    pub fn is_requested(&self) -> bool {
        self.phase == Phase::Requested
    }

    /// Both ends of the host program are shut and the guest was told: it owes us a reset.
    pub fn awaits_reset(&self) -> bool {
        self.phase == Phase::Open && self.host_shut_told == SHUTDOWN_BOTH
    }

    /// The host program is to see the end of the stream: the guest sends no more, and all of it
    /// was handed on.
    pub fn guest_finished_sending(&self) -> bool {
        let finished = self.guest_shut & SHUTDOWN_SEND != 0 || self.phase == Phase::Over;
        finished && self.to_host.is_empty()
    }

    /// The host program may send no more.
    pub fn guest_stopped_receiving(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE != 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(buf_alloc: u32) -> Header {
        Header {
            src_cid: 5,
            dst_cid: HOST_CID,
            src_port: 1000,
            dst_port: 80,
            kind: STREAM,
            op: op::REQUEST,
            buf_alloc,
            ..Header::default()
        }
    }

    /// A guest and a host program that keep the rules, as plain byte streams.
    struct World {
        connection: Connection,
        guest_alloc: u32,
        guest_has: Vec<u8>,
        guest_read: u32,
        guest_sent: u32,
        known: Header,
        host_waits: VecDeque<u8>,
        host_has: Vec<u8>,
        guest_wrote: Vec<u8>,
        host_wrote: Vec<u8>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        GuestWrites(u16),
        GuestReads(u16),
        GuestTells,
        HostWrites(u16),
        HostTakes(u16),
        Pump(u16),
    }

    impl World {
        fn new(guest_alloc: u32) -> Self {
            Self {
                connection: Connection::accepted(&request(guest_alloc)),
                guest_alloc,
                guest_has: vec![],
                guest_read: 0,
                guest_sent: 0,
                known: Header::default(),
                host_waits: VecDeque::new(),
                host_has: vec![],
                guest_wrote: vec![],
                host_wrote: vec![],
            }
        }

        fn guest_header(&self, op: u16, len: u32) -> Header {
            let (buf_alloc, fwd_cnt) = (self.guest_alloc, self.guest_read);
            Header { len, op, buf_alloc, fwd_cnt, ..request(0) }
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::GuestWrites(n) => {
                    let in_flight = self.guest_sent - self.known.fwd_cnt;
                    let n = u32::from(n).min(self.known.buf_alloc - in_flight);
                    let data: Vec<u8> =
                        (0..n).map(|i| (self.guest_sent + i).to_le_bytes()[0] ^ 0x5A).collect();
                    self.guest_sent += n;
                    self.guest_wrote.extend(&data);
                    self.connection.packet(&self.guest_header(op::RW, n), &data);
                }
                Step::GuestReads(n) => {
                    let unread = u32::try_from(self.guest_has.len()).unwrap() - self.guest_read;
                    self.guest_read += unread.min(n.into());
                }
                Step::GuestTells => {
                    self.connection.packet(&self.guest_header(op::CREDIT_UPDATE, 0), &[]);
                }
                Step::HostWrites(n) => {
                    let from = self.host_wrote.len();
                    let data: Vec<u8> =
                        (0..usize::from(n)).map(|i| (from + i).to_le_bytes()[0]).collect();
                    self.host_wrote.extend(&data);
                    self.host_waits.extend(&data);
                }
                Step::HostTakes(n) => {
                    let bytes = self.connection.for_host().0;
                    let bytes = bytes[..bytes.len().min(n.into())].to_vec();
                    self.connection.host_took(bytes.len());
                    self.host_has.extend(bytes);
                }
                Step::Pump(room) => {
                    self.pump(room.into());
                }
            }
        }

        /// One packet for the guest, with at most `room` bytes of data.
        fn pump(&mut self, room: usize) -> bool {
            let packet = if let Some(packet) = self.connection.control() {
                packet
            } else {
                let n = self.connection.may_send().min(room).min(self.host_waits.len());
                if n == 0 {
                    return false;
                }
                self.guest_has.extend(self.host_waits.drain(..n));
                self.connection.data_packet(u32::try_from(n).unwrap())
            };
            assert_ne!(packet.op, op::RST);
            assert!(self.guest_has.len() - self.guest_read as usize <= self.guest_alloc as usize);
            self.known = packet;
            if packet.op == op::CREDIT_REQUEST {
                self.step(Step::GuestTells);
            }
            true
        }
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<u16>().prop_map(Step::GuestWrites),
            any::<u16>().prop_map(Step::GuestReads),
            Just(Step::GuestTells),
            any::<u16>().prop_map(Step::HostWrites),
            any::<u16>().prop_map(Step::HostTakes),
            (1..u16::MAX).prop_map(Step::Pump),
        ]
    }

    proptest! {
        /// Both streams arrive whole and in order, no buffer overflows, and nothing stalls.
        #[test]
        fn streams_are_streams(
            alloc in 1_u32..200_000,
            steps in prop::collection::vec(steps(), 0..120),
        ) {
            let mut world = World::new(alloc);
            for step in steps {
                world.step(step);
                prop_assert!(world.connection.to_host.len() <= BUFFER as usize);
                prop_assert!(world.host_wrote.starts_with(&world.guest_has));
                prop_assert!(world.guest_wrote.starts_with(&world.host_has));
            }
            // The guest has more to say, and everybody reads: all of it must get through.
            let goal = world.guest_wrote.len() + 300_000;
            for _ in 0..10_000_000_usize / alloc as usize + 10_000 {
                let left = goal - world.guest_wrote.len();
                world.step(Step::GuestWrites(u16::try_from(left).unwrap_or(u16::MAX)));
                world.step(Step::HostTakes(u16::MAX));
                world.step(Step::GuestReads(u16::MAX));
                world.step(Step::GuestTells);
                while world.pump(1 << 16) {}
                if world.host_has.len() == goal && world.host_waits.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(world.host_has.len(), goal);
            prop_assert!(world.host_has == world.guest_wrote);
            prop_assert!(world.guest_has == world.host_wrote);
        }

        /// Any packets at all: no panic, bounded memory, and after the end nothing but one reset.
        #[test]
        fn any_packets(packets in prop::collection::vec(
            (0_u16..9, any::<u32>(), any::<u32>(), any::<u32>(), 0_usize..70_000), 0..60)) {
            let mut connection = Connection::accepted(&request(1000));
            let data = vec![0; 70_000];
            let mut over = false;
            for (op, flags, buf_alloc, fwd_cnt, len) in packets {
                let header = Header { op, flags, buf_alloc, fwd_cnt, ..request(0) };
                connection.packet(&header, &data[..len]);
                prop_assert!(connection.to_host.len() <= BUFFER as usize);
                while let Some(packet) = connection.control() {
                    prop_assert!(!over, "{:?} after the end", packet);
                    over |= packet.op == op::RST;
                }
                over |= connection.is_over();
                let n = connection.may_send().min(70_000);
                prop_assert!(n == 0 || !over);
                if n > 0 {
                    connection.data_packet(u32::try_from(n).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_guest_that_overruns_the_buffer_is_reset() {
        let mut connection = Connection::accepted(&request(1000));
        assert_eq!(connection.control().unwrap().op, op::RESPONSE);
        let write = Header { op: op::RW, ..request(1000) };
        connection.packet(&write, &vec![1; BUFFER as usize]);
        assert!(!connection.has_control());
        connection.packet(&write, &[1]);
        let reset = connection.control().unwrap();
        assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, 80, 1000));
        assert!(connection.is_over());
        assert_eq!(connection.for_host().0, []);
    }

    #[test]
    fn a_guest_that_closes_leaves_its_last_bytes() {
        let mut connection = Connection::accepted(&request(1000));
        connection.control();
        connection.packet(&Header { op: op::RW, ..request(1000) }, b"bye");
        let shut = Header { op: op::SHUTDOWN, flags: SHUTDOWN_BOTH, ..request(1000) };
        connection.packet(&shut, &[]);
        assert_eq!(connection.control().unwrap().op, op::RST);
        assert!(connection.is_over() && !connection.guest_finished_sending());
        assert_eq!(connection.for_host().0, b"bye");
        connection.host_took(3);
        assert!(connection.guest_finished_sending());
        assert_eq!(connection.control(), None);
    }

    #[test]
    fn half_closed_either_way() {
        let mut connection = Connection::accepted(&request(1000));
        connection.control();
        let shut = Header { op: op::SHUTDOWN, flags: SHUTDOWN_SEND, ..request(1000) };
        connection.packet(&shut, &[]);
        assert!(connection.guest_finished_sending());
        assert_eq!(connection.may_send(), 1000, "the other direction goes on");
        connection.host_finished_sending();
        let told = connection.control().unwrap();
        assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
        assert_eq!((connection.may_send(), connection.control()), (0, None));
        connection.host_stopped_receiving();
        assert_eq!(connection.control().unwrap().flags, SHUTDOWN_BOTH);
        assert!(connection.awaits_reset());
        connection.packet(&Header { op: op::RST, ..request(0) }, &[]);
        assert!(connection.is_over());
    }
}
