//! A queue as a device works on it: take chains, give them back in batches, interrupt if the
//! driver asked for it.
//!
//! Nothing that the driver writes into the rings makes it panic, loop or reach outside guest
//! memory. A queue whose rings make no sense is *broken*: it yields nothing until the driver
//! resets the device.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::{ActiveQueue, Interrupt};
use crate::memory::Mem;
use crate::memory::own_writes::OwnWritesSlice;

/// Most pieces of host memory that one chain may lie in: what `writev` takes.
pub const MAX_SEGMENTS: usize = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// A chain that the driver made available.
pub type Chain<'a> = DescriptorChain<&'a Mem>;
/// A piece of guest memory whose writes are tracked.
pub type Segment<'a> = VolatileSlice<'a, OwnWritesSlice>;

/// A chain that goes back to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's head.
    pub head: u16,
    /// Bytes that the device wrote into it.
    pub len: u32,
}

/// The device's end of one queue.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    queue: Queue,
    /// Value of the used index up to which the driver was, or did not want to be, interrupted.
    announced: u16,
    broken: bool,
}

impl Ring {
    /// Takes the queue over. Whatever was used before has been announced.
    pub fn new(active: ActiveQueue, mem: &Mem) -> Self {
        let announced = active.queue.next_used();
        // The transport has checked this; but rings outside memory would make `pop` and `arm`
        // disagree for ever.
        let broken = active.queue.size() == 0 || !active.queue.is_valid(mem);
        Self { index: active.index, queue: active.queue, announced, broken }
    }

    /// Number and state, for a save.
    pub fn state(&self) -> (u16, QueueState) {
        (self.index, self.queue.state())
    }

    /// Entries of the rings.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next available chain.
    pub fn pop<'a>(&mut self, mem: &'a Mem) -> Option<Chain<'a>> {
        if self.broken {
            return None;
        }
        match self.queue.iter(mem).map(|mut chains| chains.next()) {
            Ok(chain) => chain,
            Err(e) => {
                self.give_up(&e);
                None
            }
        }
    }

    /// Puts the chains that were popped last back, as if they had not been looked at.
    pub fn unpop(&mut self, chains: u16) {
        for _ in 0..chains {
            self.queue.go_to_previous_position();
        }
    }

    /// Asks to be notified of the next chain; `true` if there is one already.
    pub fn arm(&mut self, mem: &Mem) -> bool {
        if self.broken {
            return false;
        }
        let armed = self.queue.enable_notification(mem);
        armed.unwrap_or_else(|e| {
            self.give_up(&e);
            false
        })
    }

    /// Gives chains back. The driver sees all of them or none: one that polls must not find half
    /// of a frame that is spread over several buffers.
    pub fn give_back(&mut self, mem: &Mem, used: &[Used]) {
        if used.is_empty() || self.broken {
            return;
        }
        if let Err(e) = self.publish(mem, used) {
            self.give_up(&e);
        }
    }

    /// Layout of the used ring: virtio 1.2, 2.7.8.
    fn publish(&mut self, mem: &Mem, used: &[Used]) -> Result<(), RingError> {
        let mut next = self.queue.next_used();
        for u in used {
            if u.head >= self.size() {
                return Err(RingError::Head(u.head));
            }
            let slot = u64::from(next.checked_rem(self.size()).unwrap_or(0));
            let at = self.queue.used_ring().checked_add(4 + 8 * slot).ok_or(RingError::Address)?;
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(u.head).to_le_bytes());
            element[4..].copy_from_slice(&u.len.to_le_bytes());
            mem.write_slice(&element, GuestAddress(at))?;
            next = next.wrapping_add(1);
        }
        let index = self.queue.used_ring().checked_add(2).ok_or(RingError::Address)?;
        mem.store(next.to_le(), GuestAddress(index), Ordering::Release)?;
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Interrupts the driver if it wants to hear of what was given back since the last call.
    pub fn announce(&mut self, mem: &Mem, interrupt: &Interrupt) {
        let (old, new) = (self.announced, self.queue.next_used());
        if old == new || self.broken {
            return;
        }
        self.announced = new;
        // The used index must be visible before the driver's wishes are read (2.7.7.2, 2.7.10).
        fence(Ordering::SeqCst);
        match self.wanted(mem, old, new) {
            Ok(true) => interrupt.used_ring(),
            Ok(false) => {}
            Err(e) => self.give_up(&e),
        }
    }

    fn wanted(&self, mem: &Mem, old: u16, new: u16) -> Result<bool, RingError> {
        let read = |offset: u64| -> Result<u16, RingError> {
            let at = self.queue.avail_ring().checked_add(offset).ok_or(RingError::Address)?;
            Ok(u16::from_le(mem.load(GuestAddress(at), Ordering::Relaxed)?))
        };
        if !self.queue.event_idx_enabled() {
            return Ok(read(0)? & NO_INTERRUPT == 0);
        }
        let event = read(4 + 2 * u64::from(self.size()))?;
        Ok(passed(old, new, event))
    }

    fn give_up(&mut self, why: &dyn std::fmt::Display) {
        self.broken = true;
        tracing::warn!(queue = self.index, %why, "the guest's virtqueue makes no sense; it is ignored");
    }
}

/// Whether entry `event` was used between the used indexes `old` and `new` (virtio 1.2, 2.7.10).
fn passed(old: u16, new: u16, event: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[derive(Debug, thiserror::Error)]
enum RingError {
    #[error("descriptor {0} is beyond the end of the table")]
    Head(u16),
    #[error("a ring leaves the address space")]
    Address,
    #[error(transparent)]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The device-readable or the device-writable part of a chain.
#[derive(Debug, Default)]
pub struct Buffers<'a> {
    segments: Vec<Segment<'a>>,
    len: usize,
}

impl<'a> Buffers<'a> {
    /// The part of `chain` that the device reads; `None` if it is not all in guest memory or lies
    /// in more than [`MAX_SEGMENTS`] pieces.
    pub fn readable(mem: &'a Mem, chain: Chain<'a>) -> Option<Self> {
        Self::collect(mem, chain, false)
    }

    /// The part of `chain` that the device writes; `None` as for [`Buffers::readable`].
    pub fn writable(mem: &'a Mem, chain: Chain<'a>) -> Option<Self> {
        Self::collect(mem, chain, true)
    }

    fn collect(mem: &'a Mem, chain: Chain<'a>, writable: bool) -> Option<Self> {
        let mut segments = Vec::new();
        let mut len = 0_usize;
        let access = if writable { Permissions::Write } else { Permissions::Read };
        for desc in chain.filter(|d| d.is_write_only() == writable) {
            let bytes = usize::try_from(desc.len()).ok()?;
            for segment in mem.get_slices(desc.addr(), bytes, access).ok()? {
                if segments.len() == MAX_SEGMENTS {
                    return None;
                }
                segments.push(segment.ok()?);
            }
            len = len.checked_add(bytes)?;
        }
        Some(Self { segments, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces, in order.
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// Copies from `offset` on into `to`; the number of bytes that were there.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        self.walk(offset, to.len(), |segment, at, done, n| {
            segment.read_slice(&mut to[done..done + n], at).is_ok()
        })
    }

    /// Copies `from` to `offset`; the number of bytes for which there was room.
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        self.walk(offset, from.len(), |segment, at, done, n| {
            segment.write_slice(&from[done..done + n], at).is_ok()
        })
    }

    /// Calls `copy(segment, offset in it, bytes done, bytes now)` until `count` bytes are done.
    fn walk(
        &self,
        mut offset: usize,
        count: usize,
        mut copy: impl FnMut(&Segment<'a>, usize, usize, usize) -> bool,
    ) -> usize {
        let mut done = 0;
        for segment in &self.segments {
            if offset >= segment.len() {
                offset -= segment.len();
                continue;
            }
            let n = (segment.len() - offset).min(count - done);
            if n == 0 || !copy(segment, offset, done, n) {
                break;
            }
            done += n;
            offset = 0;
        }
        done
    }
}

/// Reads `config` at `offset`; bytes beyond its end are zero.
pub fn read_config(config: &[u8], offset: u32, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|o| config.get(o..)).unwrap_or(&[]);
    let n = from.len().min(data.len());
    data[..n].copy_from_slice(&from[..n]);
    data[n..].fill(0);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::devices::virtio::testkit::{Buf, Rig};
    use proptest::prelude::*;
    use std::sync::atomic::Ordering;

    fn first_queue(rig: &Rig, event_idx: bool) -> Ring {
        let features = if event_idx { 1 << 29 } else { 0 };
        Ring::new(rig.activation(features).queues.remove(0), rig.ram.mem())
    }

    proptest! {
        /// Against counting: an interrupt is due if the entry named by the driver was used.
        #[test]
        fn passes_the_event_or_not(old: u16, used in 1_u16..=256, event: u16) {
            let new = old.wrapping_add(used);
            let model = (0..used).any(|i| old.wrapping_add(i) == event);
            prop_assert_eq!(passed(old, new, event), model);
        }

        /// Pieces of a chain are one run of bytes, whatever their sizes.
        #[test]
        fn buffers_are_one_run(sizes in prop::collection::vec(0_u32..50, 1..12), at in 0_usize..300, n in 0_usize..300) {
            let mut rig = Rig::new(&[16]);
            let bufs: Vec<Buf> = sizes.iter().map(|s| rig.inp(*s)).collect();
            rig.queues[0].submit(&bufs).unwrap();
            let mut first = first_queue(&rig, false);
            let mem = rig.ram.mem();
            let buffers = Buffers::writable(mem, first.pop(mem).unwrap()).unwrap();
            let total: usize = sizes.iter().map(|s| *s as usize).sum();
            prop_assert_eq!(buffers.len(), total);
            let data: Vec<u8> = (0_u8..=255).cycle().take(n).collect();
            let fits = n.min(total.saturating_sub(at));
            prop_assert_eq!(buffers.write(at, &data), fits);
            let mut back = vec![0; n];
            prop_assert_eq!(buffers.read(at, &mut back), fits);
            prop_assert_eq!(&back[..fits], &data[..fits]);
            let flat: Vec<u8> = bufs.iter().flat_map(|b| rig.bytes(*b)).collect();
            let end = at.min(total) + fits;
            prop_assert_eq!(&flat[at.min(total)..end], &data[..fits]);
            prop_assert!(flat[end..].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn interrupts_as_asked() {
        for event_idx in [false, true] {
            let mut rig = Rig::new(&[8]);
            let interrupt = rig.activation(0).interrupt;
            let mut first = first_queue(&rig, event_idx);
            let mut use_one = |rig: &mut Rig| {
                let buf = rig.inp(4);
                rig.queues[0].submit(&[buf]).unwrap();
                let head = first.pop(rig.ram.mem()).unwrap().head_index();
                first.give_back(rig.ram.mem(), &[Used { head, len: 4 }]);
                first.announce(rig.ram.mem(), &interrupt);
                first.announce(rig.ram.mem(), &interrupt);
                rig.status.swap(0, Ordering::SeqCst)
            };
            assert_eq!(use_one(&mut rig), 1);
            rig.queues[0].set_used_event(3);
            rig.queues[0].set_no_interrupt(true);
            assert_eq!(use_one(&mut rig), 0);
            assert_eq!(use_one(&mut rig), 0);
            rig.queues[0].set_no_interrupt(false);
            assert_eq!(use_one(&mut rig), 1);
            assert_eq!(use_one(&mut rig), u32::from(!event_idx));
            assert_eq!(rig.queues[0].take_used().len(), 5);
        }
    }

    #[test]
    fn a_queue_that_makes_no_sense_yields_nothing() {
        let rig = Rig::new(&[8]);
        let mem = rig.ram.clone();
        let mut far = first_queue(&rig, true);
        rig.queues[0].put(rig.queues[0].avail + 2, &9_u16.to_le_bytes());
        assert!(far.pop(mem.mem()).is_none());
        assert!(!far.arm(mem.mem()), "or a loop of pop and arm would never end");
        let rig = Rig::new(&[8]);
        let mut bad = first_queue(&rig, true);
        bad.give_back(rig.ram.mem(), &[Used { head: 8, len: 0 }]);
        assert_eq!(bad.state().1.next_used, 0);
        let mut activation = rig.activation(0);
        activation.queues[0].queue.try_set_used_ring_address(GuestAddress(1 << 40)).unwrap();
        let mut outside = Ring::new(activation.queues.remove(0), rig.ram.mem());
        assert!(outside.pop(rig.ram.mem()).is_none());
        // A chain in more pieces than a system call takes.
        let mut rig = Rig::new(&[8]);
        let (table, other) = (rig.arena.take(16 * 1025, 16), rig.arena.take(16 * 1024, 16));
        let bufs = vec![Buf::Out(1 << 20, 1); 1025];
        rig.queues[0].submit_indirect(table, &bufs).unwrap();
        rig.queues[0].submit_indirect(other, &bufs[1..]).unwrap();
        let mut first = first_queue(&rig, false);
        let mem = rig.ram.mem();
        assert!(Buffers::readable(mem, first.pop(mem).unwrap()).is_none());
        assert_eq!(Buffers::readable(mem, first.pop(mem).unwrap()).unwrap().len(), 1024);
    }
}
