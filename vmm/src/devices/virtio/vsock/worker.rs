//! The back half of the vsock device: moves packets between the queues and the [`Muxer`].

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use super::{EVENT, RECEIVE, TRANSMIT};
use crate::devices::virtio::ring::{Buffers, Ring, Used};
use crate::devices::virtio::thread::{FIRST_OWN_TOKEN, Worker};
use crate::devices::virtio::{DeviceError, Interrupt};
use crate::eventfd::EventFd;
use crate::memory::GuestRam;

const TIMER_TOKEN: u64 = FIRST_OWN_TOKEN;
/// The muxer's epoll tokens start here.
pub const FIRST_MUXER_TOKEN: u64 = FIRST_OWN_TOKEN + 1;
/// Most data of a packet: a whole receive buffer, on either side.
const MAX_DATA: usize = super::connection::BUFFER as usize;
/// Packets handled before other events get their turn.
const BUDGET: usize = 128;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// A queue and its notification, which we signal ourselves when the budget ran out.
#[derive(Debug)]
pub struct Slot {
    /// The queue.
    pub ring: Ring,
    /// Its notification.
    pub kick: EventFd,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts {
    /// Guest memory.
    pub ram: GuestRam,
    /// Line to the guest.
    pub interrupt: Interrupt,
    /// Number of the queue in each slot.
    pub roles: Vec<u16>,
    /// Packets to the guest.
    pub receive: Slot,
    /// Packets from the guest.
    pub transmit: Slot,
    /// Events to the guest.
    pub event: Slot,
    /// The host's side.
    pub muxer: Muxer,
    /// The guest must hear that its connections are gone.
    pub reset_due: bool,
}

/// See the module.
#[derive(Debug)]
pub struct VsockWorker {
    parts: Parts,
    timer: TimerFd,
    ticking: bool,
    /// One packet's data, in either direction.
    data: Box<[u8]>,
}

impl VsockWorker {
    /// A worker that has seen nothing yet.
    pub fn new(parts: Parts) -> Result<Self, DeviceError> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(|e| {
            DeviceError::Host { what: "cannot create a timer descriptor", source: e.into() }
        })?;
        let data = vec![0; MAX_DATA].into_boxed_slice();
        Ok(Self { parts, timer, ticking: false, data })
    }

    /// The queues by number.
    pub fn slots(&self) -> [&Slot; 3] {
        [&self.parts.receive, &self.parts.transmit, &self.parts.event]
    }

    /// Guest → host.
    fn transmit(&mut self) {
        let Parts { ram, interrupt, transmit, muxer, .. } = &mut self.parts;
        let mem = ram.mem();
        let now = Instant::now();
        let mut done = 0;
        while done < BUDGET {
            let Some(chain) = transmit.ring.pop(mem) else {
                if transmit.ring.arm(mem) {
                    continue;
                }
                break;
            };
            done += 1;
            let head = chain.head_index();
            let buffers = Buffers::readable(mem, chain).unwrap_or_default();
            let mut raw = [0; HEADER_LEN];
            if buffers.read(0, &mut raw) == HEADER_LEN {
                let header = Header::decode(&raw);
                let len = usize::try_from(header.len).unwrap_or(usize::MAX);
                let data = self.data.get_mut(..len).unwrap_or_default();
                if buffers.read(HEADER_LEN, data) == len {
                    muxer.guest_packet(&header, data, now);
                } else {
                    muxer.malformed(&header, now);
                }
            }
            transmit.ring.give_back(mem, &[Used { head, len: 0 }]);
        }
        transmit.ring.announce(mem, interrupt);
        if done == BUDGET {
            transmit.kick.signal();
        }
        self.fill();
    }

    /// Host → guest, as far as there are buffers.
    fn fill(&mut self) {
        let Parts { ram, interrupt, receive, muxer, .. } = &mut self.parts;
        let mem = ram.mem();
        let now = Instant::now();
        for turn in 0.. {
            if !muxer.has_packets() {
                break;
            }
            if turn == BUDGET {
                receive.kick.signal();
                break;
            }
            let Some(chain) = receive.ring.pop(mem) else {
                if receive.ring.arm(mem) {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let buffers = Buffers::writable(mem, chain).unwrap_or_default();
            let Some(room) = buffers.len().checked_sub(HEADER_LEN) else {
                receive.ring.give_back(mem, &[Used { head, len: 0 }]);
                continue;
            };
            let room = room.min(self.data.len());
            let Some(header) = muxer.next_packet(&mut self.data[..room], now) else {
                receive.ring.unpop(1);
                break;
            };
            let len = usize::try_from(header.len).unwrap_or(0).min(room);
            let written =
                buffers.write(0, &header.encode()) + buffers.write(HEADER_LEN, &self.data[..len]);
            let len = u32::try_from(written).unwrap_or(u32::MAX);
            receive.ring.give_back(mem, &[Used { head, len }]);
        }
        receive.ring.announce(mem, interrupt);
        self.tick();
    }

    /// Tells the guest once that its connections are gone.
    fn tell_reset(&mut self) {
        let Parts { ram, interrupt, event, reset_due, .. } = &mut self.parts;
        let mem = ram.mem();
        while *reset_due {
            let Some(chain) = event.ring.pop(mem) else {
                if event.ring.arm(mem) {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let buffers = Buffers::writable(mem, chain).unwrap_or_default();
            let len = buffers.write(0, &TRANSPORT_RESET);
            *reset_due = len < TRANSPORT_RESET.len();
            event.ring.give_back(mem, &[Used { head, len: u32::try_from(len).unwrap_or(0) }]);
        }
        event.ring.announce(mem, interrupt);
    }

    /// Starts the one-second timer if something has a deadline.
    fn tick(&mut self) {
        if self.ticking || !self.parts.muxer.needs_timer() {
            return;
        }
        let second = Expiration::OneShot(TimeSpec::seconds(1));
        match self.timer.set(second, TimerSetTimeFlags::empty()) {
            Ok(()) => self.ticking = true,
            Err(e) => tracing::warn!(error = %e, "cannot start the vsock timer"),
        }
    }
}

impl Worker for VsockWorker {
    fn attach(&mut self, events: &Arc<Epoll>) -> io::Result<()> {
        events.add(self.timer.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, TIMER_TOKEN))?;
        self.parts.muxer.attach(events);
        Ok(())
    }

    fn queue(&mut self, slot: usize) {
        match self.parts.roles.get(slot) {
            Some(&RECEIVE) => self.fill(),
            Some(&TRANSMIT) => self.transmit(),
            Some(&EVENT) => self.tell_reset(),
            _ => {}
        }
    }

    fn event(&mut self, token: u64, flags: EpollFlags) {
        let now = Instant::now();
        if token == TIMER_TOKEN {
            // Read it, or it stays ready.
            let _ = self.timer.wait();
            self.ticking = false;
            self.parts.muxer.expire(now);
        } else {
            self.parts.muxer.event(token, flags, now);
        }
        self.fill();
    }

    /// Nothing is ever in flight between two calls. Connections stay open, for a resume.
    fn drain(&mut self) {}
}
