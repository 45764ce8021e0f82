//! What configuration space, device thread and owner share: link status, announcements, counts.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::devices::tap::{HEADER_LEN, Tap};
use crate::devices::virtio::Interrupt;

/// `VIRTIO_NET_S_LINK_UP` (virtio 1.2, 5.1.4).
const LINK_UP: u16 = 1;
/// `VIRTIO_NET_S_ANNOUNCE`.
const ANNOUNCE: u16 = 2;

/// Frames, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// From the guest to the tap.
    pub sent: u64,
    /// From the guest, dropped: malformed, too long, or refused by the tap.
    pub send_dropped: u64,
    /// From the tap to the guest.
    pub received: u64,
    /// From the tap, dropped: too long for the guest's buffers.
    pub receive_dropped: u64,
}

/// Shared counters behind [`NetStats`].
#[derive(Debug, Default)]
pub struct Counters {
    /// See [`NetStats::sent`].
    pub sent: AtomicU64,
    /// See [`NetStats::send_dropped`].
    pub send_dropped: AtomicU64,
    /// See [`NetStats::received`].
    pub received: AtomicU64,
    /// See [`NetStats::receive_dropped`].
    pub receive_dropped: AtomicU64,
}

impl Counters {
    /// The counts.
    pub fn read(&self) -> NetStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        NetStats {
            sent: get(&self.sent),
            send_dropped: get(&self.send_dropped),
            received: get(&self.received),
            receive_dropped: get(&self.receive_dropped),
        }
    }
}

/// What the machine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    /// It stands still.
    #[default]
    Still,
    /// It runs, without a driver of this card.
    Driverless,
    /// It runs, and its driver may be interrupted.
    Driven,
}

/// Who may interrupt the guest about its configuration, and when.
#[derive(Debug, Default)]
struct Gate {
    interrupt: Option<Interrupt>,
    activity: Activity,
    /// The guest has not heard of the last change.
    due: bool,
    /// `VIRTIO_NET_F_GUEST_ANNOUNCE` is in force.
    guest_announces: bool,
}

/// The link as the guest sees it.
#[derive(Debug)]
pub struct Link {
    status: AtomicU16,
    gate: Mutex<Gate>,
}

impl Link {
    /// An unplugged driver, a link that is up.
    pub fn new() -> Self {
        Self { status: AtomicU16::new(LINK_UP), gate: Mutex::default() }
    }

    /// The `status` field of the configuration space.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver is on, the device parked.
    pub fn connect(&self, interrupt: Interrupt, guest_announces: bool) {
        let mut gate = self.gate();
        gate.interrupt = Some(interrupt);
        gate.guest_announces = guest_announces;
    }

    /// The driver is off.
    pub fn disconnect(&self) {
        let mut gate = self.gate();
        let activity = match gate.activity {
            Activity::Still => Activity::Still,
            Activity::Driverless | Activity::Driven => Activity::Driverless,
        };
        *gate = Gate { activity, ..Gate::default() };
        self.status.fetch_and(!ANNOUNCE, Ordering::SeqCst);
    }

    /// The machine runs: announcements may go out. With a driver the guest is
    /// interrupted from now on; first about what it missed.
    pub fn run(&self, driver: bool) {
        let mut gate = self.gate();
        gate.activity = if driver { Activity::Driven } else { Activity::Driverless };
        if driver && std::mem::take(&mut gate.due) {
            Self::tell(&mut gate);
        }
    }

    /// From now on the guest is not interrupted and no announcement goes out; none is under way
    /// when this returns.
    pub fn park(&self) {
        self.gate().activity = Activity::Still;
    }

    /// Calls `send` and asks the guest to announce itself, if it knows how. Does neither where
    /// the machine stands still.
    fn announce(&self, send: impl FnOnce() -> io::Result<()>) -> io::Result<Announced> {
        let mut gate = self.gate();
        if gate.activity == Activity::Still {
            return Ok(Announced::Still);
        }
        if gate.guest_announces {
            self.status.fetch_or(ANNOUNCE, Ordering::SeqCst);
            Self::tell(&mut gate);
        }
        // Under the gate, so that nothing goes out once the machine is parked.
        send().map(|()| Announced::Sent)
    }

    /// The guest has announced itself.
    pub fn announced(&self) {
        self.status.fetch_and(!ANNOUNCE, Ordering::SeqCst);
    }

    /// The tap is gone.
    pub fn down(&self) {
        self.status.fetch_and(!LINK_UP, Ordering::SeqCst);
        Self::tell(&mut self.gate());
    }

    fn tell(gate: &mut Gate) {
        match &gate.interrupt {
            Some(interrupt) if gate.activity == Activity::Driven => interrupt.config_change(),
            _ => gate.due = true,
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It went out.
    Sent,
    /// The machine stands still: nothing was sent.
    Still,
    /// The card is gone.
    Gone,
}

/// Tells the network where the guest is now. Cheap to clone; keeps neither card nor tap alive.
#[derive(Clone, Debug)]
pub struct Announcer {
    pub(super) tap: Weak<Tap>,
    pub(super) mac: [u8; 6],
    pub(super) link: Weak<Link>,
}

impl Announcer {
    /// Sends a RARP broadcast from the guest's address through the tap, so that switches learn
    /// the new place at once, and asks the guest to announce itself, which also refreshes
    /// neighbours' tables. Frames get lost, so say it again after a while. The error is that of
    /// the RARP; the guest is asked in any case.
    ///
    /// # Errors
    /// What the tap says, `WouldBlock` if its queue is full.
    pub fn announce(&self) -> io::Result<Announced> {
        let (Some(tap), Some(link)) = (self.tap.upgrade(), self.link.upgrade()) else {
            return Ok(Announced::Gone);
        };
        link.announce(|| tap.send(&rarp(self.mac)).map(|_| ()))
    }
}

/// A "reverse request" for `mac` itself (RFC 903), with a zero virtio-net header before it and
/// padded to the least length of Ethernet.
fn rarp(mac: [u8; 6]) -> [u8; HEADER_LEN + 60] {
    let mut out = [0; HEADER_LEN + 60];
    let frame = &mut out[HEADER_LEN..];
    frame[..6].fill(0xFF);
    frame[6..12].copy_from_slice(&mac);
    // EtherType RARP; hardware Ethernet, protocol IPv4, lengths 6 and 4, operation 3.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_rarp() {
        let golden = [
            // virtio-net header
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // to everybody, from the guest, RARP
            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x52, 0x54, 0, 1, 2, 3, 0x80, 0x35,
            // Ethernet, IPv4, 6 and 4 bytes, "request reverse"
            0, 1, 8, 0, 6, 4, 0, 3, // who says it, about whom
            0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0, 0x52, 0x54, 0, 1, 2, 3, 0, 0, 0, 0,
        ];
        let frame = rarp([0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[..golden.len()], golden);
        assert!(frame[golden.len()..].iter().all(|b| *b == 0));
    }

    #[test]
    fn only_a_running_machine_announces() {
        let link = Link::new();
        let said = |link: &Link| link.announce(|| Ok(())).unwrap();
        assert_eq!(said(&link), Announced::Still);
        link.run(false);
        assert_eq!(said(&link), Announced::Sent, "also before a driver is there");
        link.disconnect();
        assert_eq!(said(&link), Announced::Sent, "a reset driver changes nothing");
        assert_eq!(link.status(), LINK_UP, "no driver was asked");
        link.park();
        assert_eq!(said(&link), Announced::Still);
    }
}
