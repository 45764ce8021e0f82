//! A tiny virtio driver for tests: it lays split rings into a [`GuestRam`], submits chains of
//! any shape, and reads what the device returned. Two ways to reach a device: hand it an
//! [`Activation`] ([`Rig`]), or drive it through its registers (see the transport's tests).
//!
//! Waiting is bounded by [`PATIENCE`], so a device that lost a request fails its test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::MmioTransport;
use super::{Activation, ActiveQueue, Interrupt};
use crate::config::MemoryConfig;
use crate::devices::bus::BusDevice;
use crate::eventfd::EventFd;
use crate::memory::GuestRam;

/// Longest wait for a device before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;

/// 16 MiB of guest RAM.
pub fn ram() -> GuestRam {
    GuestRam::new(&MemoryConfig::new(16 << 20, false).unwrap()).unwrap()
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buf {
    /// The device reads it.
    Out(u64, u32),
    /// The device writes it.
    In(u64, u32),
}

impl Buf {
    fn parts(self) -> (u64, u32, u16) {
        match self {
            Self::Out(gpa, len) => (gpa, len, 0),
            Self::In(gpa, len) => (gpa, len, DESC_F_WRITE),
        }
    }
}

/// Hands out guest memory, never the same twice. It leaves the first MiB alone.
#[derive(Debug)]
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// Everything in `ram` from `start` (at least 1 MiB) on.
    pub fn new(ram: &GuestRam, start: u64) -> Self {
        Self { next: start.max(1 << 20), end: ram.ranges()[0].len }
    }

    /// `len` bytes at a multiple of `align`.
    pub fn take(&mut self, len: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + len;
        assert!(self.next <= self.end, "the test's arena is used up");
        at
    }
}

/// The driver's end of one split queue (virtio 1.2, 2.7).
#[derive(Debug)]
pub struct DriverQueue {
    ram: GuestRam,
    /// Entries.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Of the available ring.
    pub avail: u64,
    /// Of the used ring.
    pub used: u64,
    free: Vec<u16>,
    chains: BTreeMap<u16, Vec<u16>>,
    avail_idx: u16,
    /// `avail_idx` when the last decision about a notification was made.
    decided: u16,
    seen: u16,
}

impl DriverQueue {
    /// Rings of `size` entries, in memory from `arena`.
    pub fn new(ram: &GuestRam, arena: &mut Arena, size: u16) -> Self {
        let n = u64::from(size);
        Self {
            ram: ram.clone(),
            size,
            desc: arena.take(16 * n, 16),
            avail: arena.take(6 + 2 * n, 2),
            used: arena.take(6 + 8 * n, 4),
            free: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            avail_idx: 0,
            decided: 0,
            seen: 0,
        }
    }

    /// The device's end, as the transport would hand it over.
    pub fn device_end(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.desc)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// Descriptors not in use.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn write_desc(&self, table: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&gpa.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &raw);
    }

    /// Lays out a chain and makes it available; `None` if too few descriptors are free.
    /// It does not notify. Returns the head, by which the device names the chain when used.
    pub fn submit(&mut self, bufs: &[Buf]) -> Option<u16> {
        assert!(!bufs.is_empty());
        if self.free.len() < bufs.len() {
            return None;
        }
        let ids = self.free.split_off(self.free.len() - bufs.len());
        for (i, buf) in bufs.iter().enumerate() {
            let (gpa, len, flags) = buf.parts();
            let next = ids.get(i + 1).copied();
            let flags = flags | if next.is_some() { DESC_F_NEXT } else { 0 };
            self.write_desc(self.desc, ids[i], gpa, len, flags, next.unwrap_or(0));
        }
        let head = ids[0];
        self.chains.insert(head, ids);
        self.publish(head);
        Some(head)
    }

    /// As `submit`, with the chain in an indirect table at `table` (16 bytes for each buffer).
    pub fn submit_indirect(&mut self, table: u64, bufs: &[Buf]) -> Option<u16> {
        let head = self.free.pop()?;
        for (i, buf) in bufs.iter().enumerate() {
            let (gpa, len, flags) = buf.parts();
            let last = i + 1 == bufs.len();
            let (index, next) = (u16::try_from(i).unwrap(), u16::try_from(i + 1).unwrap());
            let flags = flags | if last { 0 } else { DESC_F_NEXT };
            self.write_desc(table, index, gpa, len, flags, if last { 0 } else { next });
        }
        let len = u32::try_from(16 * bufs.len()).unwrap();
        self.write_desc(self.desc, head, table, len, DESC_F_INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.publish(head);
        Some(head)
    }

    /// Makes `head` available without laying anything out (for hostile tests).
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.put(self.avail + 4 + 2 * slot, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.ram
            .mem()
            .store(self.avail_idx.to_le(), GuestAddress(self.avail + 2), Ordering::SeqCst)
            .unwrap();
    }

    /// Whether the device asked to be notified of what was submitted since the last call: a
    /// driver stays silent otherwise (virtio 1.2, 2.7.10), and so must a test that is to find a
    /// device that forgets to ask.
    pub fn wants_notification(&mut self, event_idx: bool) -> bool {
        fence(Ordering::SeqCst);
        let (new, old) = (self.avail_idx, self.decided);
        self.decided = new;
        let load = |at| -> u16 { self.ram.mem().load(GuestAddress(at), Ordering::SeqCst).unwrap() };
        if event_idx {
            let event = u16::from_le(load(self.used + 4 + 8 * u64::from(self.size)));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(load(self.used)) & 1 == 0
        }
    }

    /// Chains that the device used since the last call: head and bytes written.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let idx: u16 = self.ram.mem().load(GuestAddress(self.used + 2), Ordering::SeqCst).unwrap();
        let mut out = Vec::new();
        while self.seen != u16::from_le(idx) {
            let slot = u64::from(self.seen % self.size);
            let mut raw = [0; 8];
            self.get(self.used + 4 + 8 * slot, &mut raw);
            let head = u32::from_le_bytes(raw[..4].try_into().unwrap());
            let len = u32::from_le_bytes(raw[4..].try_into().unwrap());
            let head = u16::try_from(head).unwrap();
            if let Some(ids) = self.chains.remove(&head) {
                self.free.extend(ids);
            }
            out.push((head, len));
            self.seen = self.seen.wrapping_add(1);
        }
        out
    }

    /// Waits until at least `n` chains were used.
    pub fn wait_used(&mut self, n: usize) -> Vec<(u16, u32)> {
        let start = Instant::now();
        let mut out = Vec::new();
        while out.len() < n {
            out.extend(self.take_used());
            assert!(start.elapsed() < PATIENCE, "the device used {} of {n} chains", out.len());
            std::thread::sleep(Duration::from_micros(50));
        }
        out
    }

    /// Asks for an interrupt once the device used entry `at` (`VIRTIO_F_RING_EVENT_IDX`).
    pub fn set_used_event(&self, at: u16) {
        let addr = self.avail + 4 + 2 * u64::from(self.size);
        self.ram.mem().store(at.to_le(), GuestAddress(addr), Ordering::SeqCst).unwrap();
    }

    /// Sets or clears `VIRTQ_AVAIL_F_NO_INTERRUPT`.
    pub fn set_no_interrupt(&self, on: bool) {
        self.ram
            .mem()
            .store(u16::from(on).to_le(), GuestAddress(self.avail), Ordering::SeqCst)
            .unwrap();
    }

    /// Chains submitted and not yet used.
    pub fn in_flight(&self) -> usize {
        self.chains.len()
    }

    /// Writes guest memory.
    pub fn put(&self, gpa: u64, data: &[u8]) {
        self.ram.mem().write_slice(data, GuestAddress(gpa)).unwrap();
    }

    /// Reads guest memory.
    pub fn get(&self, gpa: u64, data: &mut [u8]) {
        self.ram.mem().read_slice(data, GuestAddress(gpa)).unwrap();
    }
}

/// Turns a device on through its registers, as a driver does, with the first queues on `rings`.
/// `features` are those to accept; `VIRTIO_F_VERSION_1` is added.
pub fn turn_on(transport: &mut MmioTransport, features: u64, rings: &[DriverQueue]) {
    let mut w = |offset: u64, value: u64| {
        let low = u32::try_from(value & 0xFFFF_FFFF).unwrap();
        transport.write(offset, &low.to_le_bytes());
    };
    let features = features | 1 << 32;
    w(0x70, 1);
    w(0x70, 3);
    for (sel, half) in [(0, features), (1, features >> 32)] {
        w(0x24, sel);
        w(0x20, half);
    }
    w(0x70, 11);
    for (n, q) in rings.iter().enumerate() {
        w(0x30, n as u64);
        w(0x38, q.size.into());
        for (at, register) in [(q.desc, 0x80), (q.avail, 0x90), (q.used, 0xA0)] {
            w(register, at);
            w(register + 4, at >> 32);
        }
        w(0x44, 1);
    }
    w(0x70, 15);
    let mut status = [0; 4];
    transport.read(0x70, &mut status);
    assert_eq!(status, [15, 0, 0, 0], "the device refused to turn on");
}

/// Queues, memory and interrupt of one device that is activated by hand, without a transport.
#[derive(Debug)]
pub struct Rig {
    /// Guest memory, 16 MiB.
    pub ram: GuestRam,
    /// What is left of it.
    pub arena: Arena,
    /// The driver's ends.
    pub queues: Vec<DriverQueue>,
    /// Notifications, by queue.
    pub kicks: Vec<EventFd>,
    /// Signalled by the device's interrupt.
    pub irqfd: EventFd,
    /// `InterruptStatus` as the transport would hold it.
    pub status: Arc<AtomicU32>,
    event_idx: AtomicBool,
}

impl Rig {
    /// A driver with one queue for each size.
    pub fn new(sizes: &[u16]) -> Self {
        let ram = ram();
        let mut arena = Arena::new(&ram, 0);
        let queues = sizes.iter().map(|s| DriverQueue::new(&ram, &mut arena, *s)).collect();
        let kicks = sizes.iter().map(|_| EventFd::new().unwrap()).collect();
        let irqfd = EventFd::new().unwrap();
        let (status, event_idx) = (Arc::default(), AtomicBool::new(false));
        Self { ram, arena, queues, kicks, irqfd, status, event_idx }
    }

    /// What a device gets with `features` agreed on (`VIRTIO_F_RING_EVENT_IDX` is honoured).
    pub fn activation(&self, features: u64) -> Activation {
        let event_idx = features & (1 << 29) != 0;
        self.event_idx.store(event_idx, Ordering::SeqCst);
        let queues = self.queues.iter().zip(&self.kicks).enumerate();
        Activation {
            ram: self.ram.clone(),
            queues: queues
                .map(|(i, (q, kick))| ActiveQueue {
                    index: u16::try_from(i).unwrap(),
                    queue: q.device_end(event_idx),
                    kick: kick.clone(),
                })
                .collect(),
            interrupt: Interrupt::new(self.status.clone(), self.irqfd.clone()),
            features,
        }
    }

    /// Submits to queue `q` and notifies if the device asked for it.
    pub fn send(&mut self, q: usize, bufs: &[Buf]) -> u16 {
        let head = self.queues[q].submit(bufs).expect("no free descriptors");
        self.notify(q);
        head
    }

    /// Notifies of what was submitted to queue `q`, if the device asked for it.
    pub fn notify(&mut self, q: usize) {
        if self.queues[q].wants_notification(self.event_idx.load(Ordering::SeqCst)) {
            self.kicks[q].signal();
        }
    }

    /// Puts `data` into fresh guest memory for the device to read.
    pub fn out(&mut self, data: &[u8]) -> Buf {
        let gpa = self.arena.take(data.len() as u64, 1);
        self.queues[0].put(gpa, data);
        Buf::Out(gpa, u32::try_from(data.len()).unwrap())
    }

    /// Fresh guest memory for the device to write.
    pub fn inp(&mut self, len: u32) -> Buf {
        Buf::In(self.arena.take(u64::from(len), 1), len)
    }

    /// The content of a buffer.
    pub fn bytes(&self, buf: Buf) -> Vec<u8> {
        let (gpa, len, _) = buf.parts();
        let mut data = vec![0; len as usize];
        self.queues[0].get(gpa, &mut data);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_reach_the_device_and_come_back() {
        let mut rig = Rig::new(&[8]);
        let (a, b) = (rig.out(b"hello"), rig.inp(3));
        let table = rig.arena.take(32, 16);
        let h1 = rig.send(0, &[a, b]);
        let h2 = rig.queues[0].submit_indirect(table, &[a, b]).unwrap();
        let mut queue = rig.queues[0].device_end(false);
        let mem = rig.ram.mem();
        for (head, written) in [(h1, 3), (h2, 0)] {
            let chain = queue.pop_descriptor_chain(mem).unwrap();
            assert_eq!(chain.head_index(), head);
            let bufs: Vec<_> = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
            let (Buf::Out(ga, la), Buf::In(gb, lb)) = (a, b) else { unreachable!() };
            assert_eq!(bufs, [(ga, la, false), (gb, lb, true)]);
            queue.add_used(mem, head, written).unwrap();
        }
        assert_eq!(rig.queues[0].wait_used(2), [(h1, 3), (h2, 0)]);
        assert_eq!(rig.queues[0].free(), 8);
    }
}
