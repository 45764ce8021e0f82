//! The back half of the network card: moves frames between tap and queues.
//!
//! *Sending* goes straight from guest memory to the tap with one `writev`: no copy of ours.
//! *Receiving* goes through one bounce buffer: the length of a frame, and with it the number of
//! buffers that it needs, is known only after it was read. That costs one copy in cache and
//! saves looking at up to 64 KiB worth of buffers for every frame.
//!
//! *Back pressure.* While the guest offers no buffers the tap is not read, and the kernel's own
//! queue fills and drops, as a network card would. At most one frame is held here; a save loses
//! it, as any network may. A frame that the tap cannot take now stays in the queue until it can.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::ctrl::{self, COMMAND_LEN};
use super::gather;
use super::link::{Counters, Link};
use crate::devices::tap::{HEADER_LEN, MAX_FRAME, Tap};
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::ring::{Buffers, Ring, Used};
use crate::devices::virtio::thread::{FIRST_OWN_TOKEN, Worker};
use crate::eventfd::EventFd;
use crate::memory::GuestRam;

const TAP_TOKEN: u64 = FIRST_OWN_TOKEN;
/// Frames or commands handled before other events get their turn.
const BUDGET: usize = 128;
/// An Ethernet header.
const MIN_FRAME: usize = HEADER_LEN + 14;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// A queue that is in use, its place in `Activation::queues`, and its notification.
#[derive(Debug)]
pub struct Slot {
    /// The queue.
    pub ring: Ring,
    /// Signalled by ourselves when the budget ran out.
    pub kick: EventFd,
}

/// What a queue is for, by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames to the guest.
    Receive,
    /// Frames from the guest.
    Send,
    /// Commands.
    Control,
}

/// See the module.
#[derive(Debug)]
pub struct NetWorker {
    /// Guest memory.
    pub ram: GuestRam,
    /// Line to the guest.
    pub interrupt: Interrupt,
    /// The host's end.
    pub tap: Arc<Tap>,
    /// Shared with the front half.
    pub link: Arc<Link>,
    /// Shared with the front half.
    pub counters: Arc<Counters>,
    /// The use of each slot.
    pub roles: Vec<Role>,
    /// Frames to the guest.
    pub receive: Slot,
    /// Frames from the guest.
    pub send: Slot,
    /// Commands, if the driver uses them.
    pub control: Option<Slot>,
    /// `VIRTIO_NET_F_MRG_RXBUF` is in force.
    pub mergeable: bool,
    /// Bounce buffer, and the bytes in it that the guest has not got.
    pub frame: Box<[u8]>,
    /// See `frame`.
    pub held: usize,
    /// What the tap is watched for; `None` if it is gone.
    pub watch: Option<EpollFlags>,
    /// Set by `attach`.
    pub events: Option<Arc<Epoll>>,
}

/// A buffer for the longest frame, and one byte more to notice what is longer still.
pub fn bounce_buffer() -> Box<[u8]> {
    vec![0; MAX_FRAME + 1].into_boxed_slice()
}

/// Whether a frame reached the guest.
enum Delivery {
    Done,
    /// The guest's buffers, all of them, cannot hold it.
    TooLong,
    /// The guest has to offer more buffers first.
    NoRoom,
}

impl NetWorker {
    /// Tap → guest, until one of them has no more or the budget is used up.
    fn receive(&mut self) {
        let mut more = true;
        for _ in 0..BUDGET {
            if self.held == 0 {
                match self.next_frame() {
                    Some(len) => self.held = len,
                    None => break,
                }
            }
            match self.deliver() {
                Delivery::Done => count(&self.counters.received),
                Delivery::TooLong => count(&self.counters.receive_dropped),
                Delivery::NoRoom => {
                    more = false;
                    break;
                }
            }
            self.held = 0;
        }
        // Out of budget: a tap that is still readable wakes us again.
        self.want(EpollFlags::EPOLLIN, more);
        self.receive.ring.announce(self.ram.mem(), &self.interrupt);
    }

    /// Reads a frame; `None` if none waits or the tap is gone.
    fn next_frame(&mut self) -> Option<usize> {
        loop {
            self.watch?;
            match self.tap.receive(&mut self.frame) {
                Ok(len) if (MIN_FRAME..=MAX_FRAME).contains(&len) => return Some(len),
                Ok(_) => count(&self.counters.receive_dropped),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.lose_tap(&e),
            }
        }
    }

    /// Copies the held frame into as many buffers as it needs, or into none.
    fn deliver(&mut self) -> Delivery {
        let mem = self.ram.mem();
        let ring = &mut self.receive.ring;
        let most = if self.mergeable { ring.size() } else { 1 };
        let mut taken = Vec::new();
        let mut room = 0_usize;
        let mut chains = 0_u16;
        while room < self.held && chains < most {
            let Some(chain) = ring.pop(mem) else {
                // Armed before the chains go back, so that the next new one notifies.
                if ring.arm(mem) {
                    continue;
                }
                ring.unpop(chains);
                return Delivery::NoRoom;
            };
            chains += 1;
            let head = chain.head_index();
            // What is no memory has no room.
            let buffers = Buffers::writable(mem, chain).unwrap_or_default();
            room = room.saturating_add(buffers.len());
            taken.push((head, buffers));
        }
        if room < self.held {
            ring.unpop(chains);
            return Delivery::TooLong;
        }
        self.frame[NUM_BUFFERS..HEADER_LEN].copy_from_slice(&chains.to_le_bytes());
        let mut rest = &self.frame[..self.held];
        let mut used = Vec::with_capacity(taken.len());
        for (head, buffers) in &taken {
            let written = buffers.write(0, rest);
            rest = &rest[written..];
            used.push(Used { head: *head, len: u32::try_from(written).unwrap_or(u32::MAX) });
        }
        ring.give_back(mem, &used);
        Delivery::Done
    }

    /// Guest → tap, until there is no more, the tap is full, or the budget is used up.
    fn send(&mut self) {
        let mem = self.ram.mem();
        let ring = &mut self.send.ring;
        let mut used = Vec::with_capacity(BUDGET);
        let mut blocked = false;
        while used.len() < BUDGET {
            let Some(chain) = ring.pop(mem) else {
                if ring.arm(mem) {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let frame = Buffers::readable(mem, chain)
                .filter(|f| (MIN_FRAME..=MAX_FRAME).contains(&f.len()));
            let sent = match &frame {
                Some(frame) => gather::send(&self.tap, frame.segments()),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
            match sent {
                Ok(_) => count(&self.counters.sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.watch.is_some() => {
                    ring.unpop(1);
                    blocked = true;
                    break;
                }
                // Down, out of memory, or a header that the kernel refuses: a wire drops, too.
                Err(_) => count(&self.counters.send_dropped),
            }
            used.push(Used { head, len: 0 });
        }
        ring.give_back(mem, &used);
        ring.announce(mem, &self.interrupt);
        if used.len() == BUDGET {
            self.send.kick.signal();
        }
        self.want(EpollFlags::EPOLLOUT, blocked);
    }

    fn control(&mut self) {
        let Some(Slot { ring, kick }) = &mut self.control else { return };
        let mem = self.ram.mem();
        let mut done = 0;
        while done < BUDGET {
            let Some(chain) = ring.pop(mem) else {
                if ring.arm(mem) {
                    continue;
                }
                break;
            };
            done += 1;
            let head = chain.head_index();
            let mut command = [0; COMMAND_LEN];
            let length =
                Buffers::readable(mem, chain.clone()).map_or(0, |b| b.read(0, &mut command));
            let verdict = ctrl::decide(&command[..length]);
            if verdict == ctrl::Verdict::AnnounceDone {
                self.link.announced();
            }
            let answer = Buffers::writable(mem, chain);
            let len = answer.map_or(0, |b| b.write(0, &[verdict.ack()]));
            ring.give_back(mem, &[Used { head, len: u32::from(len != 0) }]);
        }
        ring.announce(mem, &self.interrupt);
        if done == BUDGET {
            kick.signal();
        }
    }

    /// Watches the tap for `flag`, or no longer.
    fn want(&mut self, flag: EpollFlags, on: bool) {
        let Some(now) = self.watch else { return };
        let mut wanted = now;
        wanted.set(flag, on);
        if wanted == now {
            return;
        }
        self.watch = Some(wanted);
        let modified = (self.events.as_ref())
            .map(|e| e.modify(self.tap.as_fd(), &mut EpollEvent::new(wanted, TAP_TOKEN)));
        if let Some(Err(e)) = modified {
            self.lose_tap(&e.into());
        }
    }

    /// The tap was removed on the host: the guest sees its cable pulled.
    fn lose_tap(&mut self, why: &io::Error) {
        if self.watch.take().is_none() {
            return;
        }
        tracing::warn!(tap = self.tap.name(), error = %why, "the tap is gone; the guest's link is down");
        if let Some(events) = &self.events {
            let _ = events.delete(self.tap.as_fd());
        }
        self.link.down();
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Worker for NetWorker {
    fn attach(&mut self, events: &Arc<Epoll>) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN;
        events.add(self.tap.as_fd(), EpollEvent::new(flags, TAP_TOKEN))?;
        self.watch = Some(flags);
        self.events = Some(events.clone());
        Ok(())
    }

    fn queue(&mut self, slot: usize) {
        match self.roles.get(slot) {
            Some(Role::Receive) => self.receive(),
            Some(Role::Send) => self.send(),
            Some(Role::Control) => self.control(),
            None => {}
        }
    }

    fn event(&mut self, token: u64, flags: EpollFlags) {
        if token != TAP_TOKEN {
            return;
        }
        if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            self.lose_tap(&io::Error::from_raw_os_error(libc::ENODEV));
            return;
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.send();
        }
        if flags.contains(EpollFlags::EPOLLIN) {
            self.receive();
        }
    }

    /// Nothing is ever in flight between two calls: what was taken has been given back and
    /// announced, and the held frame is in no queue.
    fn drain(&mut self) {}
}
