//! The record at the beginning of a sidecar: whose map it is, which epoch it has reached, and
//! which regions are hot. Bytes in, bytes out.
//!
//! It is the log of hot regions, too: there are two slots, written in turn, and each holds all of
//! it under one checksum. So a write that is torn leaves the record before it, an entry of the
//! log is one write of a few KiB, and nothing is ever replayed or compacted.

use super::regions::Regions;
use crate::unit::Layout;

/// First bytes of a slot.
const MAGIC: &[u8; 8] = b"MIGRTRCK";
/// Version of the whole sidecar.
pub const VERSION: u32 = 1;
/// Bytes before the regions.
const FIXED: usize = 168;
/// Slots, written in turn.
pub const SLOTS: usize = 2;
/// A slot is a multiple of this.
pub const SLOT_UNIT: u64 = 4096;
/// Units of a region of a disk: 256 MiB in units of 64 KiB. Going hot costs a durable write
/// before the guest's; a disk that is written from end to end at 1 GiB/s then waits for four in a
/// second, less than one hundredth of its time. Smaller regions would cost more of that, larger
/// ones more reading after a power loss.
pub const REGION_UNITS: u32 = 4096;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// No slot is whole.
    #[error("no whole record is in it")]
    Damaged,
    /// A later version of this program.
    #[error("it has version {0}, and this program knows {VERSION}")]
    Version(u32),
}

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the disk; the last unit may reach beyond.
    pub bytes: u64,
    /// Bytes of a unit.
    pub unit_size: u32,
    /// Units of a region, at least 1.
    pub region_units: u32,
}

impl Shape {
    /// Its units; `None` if there is no such layout.
    pub fn layout(&self) -> Option<Layout> {
        Layout::new(self.unit_size, self.bytes.div_ceil(u64::from(self.unit_size.max(1)))).ok()
    }

    /// Its regions.
    pub fn regions(&self) -> u64 {
        self.layout().map_or(0, |l| l.units().div_ceil(u64::from(self.region_units.max(1))))
    }

    /// Bytes of a slot of its record.
    pub fn slot_bytes(&self) -> u64 {
        (FIXED as u64 + self.regions().div_ceil(8) + 4).next_multiple_of(SLOT_UNIT)
    }
}

/// How an image looked, as far as the host tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Modification time in ns since 1970, and inode; nothing of a block device.
    pub file: Option<(i64, u64)>,
    /// Checksum over samples of its content.
    pub samples: u32,
}

/// Why a map begins anew, with everything counted as changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fresh {
    /// There was none.
    New = 0,
    /// The sidecar was damaged.
    Damaged = 1,
    /// The sidecar could not be written at some time.
    Unwritable = 2,
    /// The image is another file.
    Replaced = 3,
    /// The image is smaller.
    Shrunk = 4,
    /// The image was written to by others.
    Edited = 5,
    /// The image went back in time.
    Reverted = 6,
    /// The guest came from another host, and no map with it.
    Elsewhere = 7,
    /// The last epoch was reached.
    UsedUp = 8,
}

impl Fresh {
    pub(super) fn from_code(code: u32) -> Option<Self> {
        use Fresh::{
            Damaged, Edited, Elsewhere, New, Replaced, Reverted, Shrunk, Unwritable, UsedUp,
        };
        [New, Damaged, Unwritable, Replaced, Shrunk, Edited, Reverted, Elsewhere, UsedUp]
            .into_iter()
            .find(|fresh| *fresh as u32 == code)
    }

    /// What people are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::New => "changes were not recorded before",
            Self::Damaged => "the record of changes was lost or damaged",
            Self::Unwritable => "the record of changes could not be written",
            Self::Replaced => "the image was replaced by another file",
            Self::Shrunk => "the image became smaller",
            Self::Edited => "the image was written to while its guest did not run here",
            Self::Reverted => "the image was put back to an earlier state",
            Self::Elsewhere => "the guest came from another host",
            Self::UsedUp => "the record of changes began anew, as it does after 4 billion backups",
        }
    }
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Counts records; the higher one is the newer.
    pub sequence: u64,
    /// Identity of the disk.
    pub disk: u128,
    /// Counts the maps of this disk; stamps of one mean nothing to another.
    pub generation: u64,
    /// Why this generation began.
    pub fresh: Fresh,
    /// Division.
    pub shape: Shape,
    /// No stamp is later than this epoch, on the disk as in memory.
    pub epoch: u32,
    /// The boot of the host in which the map was last opened.
    pub boot: u128,
    /// Nothing was written since the image looked like `look`, and the map is durable.
    pub clean: bool,
    /// How the image looked when it was opened or, if `clean`, closed.
    pub look: Look,
    /// Last own write, in ns since 1970. A running map has a later one in its live words.
    pub written: u64,
    /// Regions whose stamps may not be durable.
    pub hot: Regions,
}

impl Head {
    /// The first record of a map of which nobody knows anything.
    pub fn first(disk: u128, generation: u64, fresh: Fresh, shape: Shape, look: Look) -> Self {
        Self {
            sequence: 1,
            disk,
            generation,
            fresh,
            shape,
            epoch: 1,
            boot: 0,
            clean: true,
            look,
            written: 0,
            hot: Regions::empty(shape.regions()),
        }
    }
}

/// The bytes of a slot, [`Shape::slot_bytes`] long.
pub fn encode(head: &Head) -> Vec<u8> {
    let len = usize::try_from(head.shape.slot_bytes()).unwrap_or(usize::MAX);
    let (modified, inode) = head.look.file.unwrap_or_default();
    let mut slot = Vec::with_capacity(len);
    slot.extend_from_slice(MAGIC);
    for word in [VERSION, u32::from(head.clean), head.fresh as u32, head.epoch] {
        slot.extend_from_slice(&word.to_le_bytes());
    }
    for word in [head.sequence, head.generation, head.shape.bytes] {
        slot.extend_from_slice(&word.to_le_bytes());
    }
    slot.extend_from_slice(&head.disk.to_le_bytes());
    slot.extend_from_slice(&head.boot.to_le_bytes());
    for word in [
        head.shape.unit_size,
        head.shape.region_units,
        u32::from(head.look.file.is_some()),
        head.look.samples,
    ] {
        slot.extend_from_slice(&word.to_le_bytes());
    }
    slot.extend_from_slice(&modified.to_le_bytes());
    for word in [inode, head.written] {
        slot.extend_from_slice(&word.to_le_bytes());
    }
    slot.resize(FIXED, 0);
    slot.extend_from_slice(head.hot.bytes());
    let crc = crc32fast::hash(&slot);
    slot.extend_from_slice(&crc.to_le_bytes());
    slot.resize(len, 0);
    slot
}

/// Reads `N` bytes; zeros beyond the end.
fn number<const N: usize>(slot: &[u8], at: usize) -> [u8; N] {
    slot.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// The record in a slot; `None` if it is torn or blank.
fn decode(slot: &[u8]) -> Result<Option<Head>, HeadError> {
    if !slot.starts_with(MAGIC) {
        return Ok(None);
    }
    let u32_at = |at| u32::from_le_bytes(number(slot, at));
    let u64_at = |at| u64::from_le_bytes(number(slot, at));
    let u128_at = |at| u128::from_le_bytes(number(slot, at));
    let version = u32_at(8);
    if version != VERSION {
        // A later version says so even where its checksum lies elsewhere.
        return Err(HeadError::Version(version));
    }
    let shape = Shape { bytes: u64_at(40), unit_size: u32_at(80), region_units: u32_at(84) };
    let regions = shape.regions();
    let Ok(end) = usize::try_from(FIXED as u64 + regions.div_ceil(8)) else { return Ok(None) };
    let (Some(body), Some(bits)) = (slot.get(..end), slot.get(FIXED..end)) else {
        return Ok(None);
    };
    if shape.layout().is_none() || u32_at(end) != crc32fast::hash(body) {
        return Ok(None);
    }
    let (Some(hot), Some(fresh)) =
        (Regions::from_bytes(bits, regions), Fresh::from_code(u32_at(16)))
    else {
        return Ok(None);
    };
    let file = (i64::from_le_bytes(number(slot, 96)), u64_at(104));
    Ok(Some(Head {
        sequence: u64_at(24),
        disk: u128_at(48),
        generation: u64_at(32),
        fresh,
        shape,
        epoch: u32_at(20),
        boot: u128_at(64),
        clean: u32_at(12) == 1,
        look: Look { file: (u32_at(88) == 1).then_some(file), samples: u32_at(92) },
        written: u64_at(112),
        hot,
    }))
}

/// The newest record of two slots, and the slot to write the next one into.
///
/// # Errors
/// [`HeadError`].
pub fn newest(slots: [&[u8]; SLOTS]) -> Result<(Head, usize), HeadError> {
    let [first, second] = slots;
    match (decode(first)?, decode(second)?) {
        (None, None) => Err(HeadError::Damaged),
        (Some(a), Some(b)) if b.sequence > a.sequence => Ok((b, 0)),
        (Some(a), _) => Ok((a, 1)),
        (None, Some(b)) => Ok((b, 0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> Head {
        let shape = Shape { bytes: 10 << 20, unit_size: 1 << 16, region_units: 8 };
        let look = Look { file: Some((-5, 77)), samples: 0xAB };
        let mut hot = Regions::empty(20);
        hot.insert(3);
        hot.insert(19);
        Head {
            epoch: 9,
            boot: 12,
            clean: false,
            written: 1234,
            hot,
            ..Head::first(0x0102, 4, Fresh::Edited, shape, look)
        }
    }

    #[test]
    fn golden_bytes() {
        let slot = encode(&head());
        let mut golden = Vec::from(*b"MIGRTRCK");
        golden.extend([1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0]);
        golden.extend([1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0, 0, 160, 0, 0, 0, 0, 0]);
        golden.extend([2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0xAB, 0, 0, 0]);
        golden.extend([0xFB, 255, 255, 255, 255, 255, 255, 255, 77, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0xD2, 4, 0, 0, 0, 0, 0, 0]);
        golden.resize(FIXED, 0);
        golden.extend([8, 0, 8]);
        assert_eq!(slot[..FIXED + 3], golden[..]);
        assert_eq!(slot.len(), 4096);
        assert_eq!(newest([&slot, &[]]), Ok((head(), 1)));
    }

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let old = head();
        let current = Head { sequence: 2, epoch: 10, ..head() };
        let next = Head { sequence: 3, epoch: 11, ..head() };
        let (first, second, fresh) = (encode(&old), encode(&current), encode(&next));
        for cut in 0..=FIXED + 8 {
            for front in [true, false] {
                let mut torn = if front { first.clone() } else { fresh.clone() };
                torn[..cut].copy_from_slice(&if front { &fresh } else { &first }[..cut]);
                let expected = if torn == fresh { &next } else { &current };
                assert_eq!(newest([&torn, &second]).unwrap().0, *expected, "{cut} {front}");
            }
        }
    }

    #[test]
    fn every_damaged_byte_is_seen() {
        let good = encode(&head());
        for at in 0..FIXED + 7 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(newest([&bad, &[]]).is_err(), "byte {at}");
        }
        let mut later = good;
        later[8] = 2;
        assert_eq!(newest([&later, &[]]), Err(HeadError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(mut a in proptest::collection::vec(any::<u8>(), 0..400), b in proptest::collection::vec(any::<u8>(), 0..400), real: bool) {
            if real {
                let good = encode(&head());
                a.iter_mut().zip(good).take(80).for_each(|(to, from)| *to = from);
            }
            let _ = newest([&a, &b]);
        }
    }
}
