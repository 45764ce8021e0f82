//! The bytes of the record that stands beside a shared disk: whose disk it is, who owns that guest
//! since which term, the highest term that was ever offered, and a nonce.
//!
//! Terms count the rights to one guest. Another guest may use the disk later; its terms begin
//! above those that stand there, so that whoever comes back to an old right sees that it is gone.
//!
//! The file has two slots of 4096 bytes, all numbers little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `MIGRTERM` |
//! | 8..12 | version, 1 |
//! | 12..16 | zero |
//! | 16..24 | sequence number of this write |
//! | 24..32 | owner's term, 0 for none |
//! | 32..48 | owner's host |
//! | 48..56 | highest offered term |
//! | 56..72 | nonce, 0 for none |
//! | 72..88 | the guest's UUID as a number, 0 for none |
//! | 88..92 | CRC-32 (IEEE) of bytes 0..88 |
//! | 92..4096 | zero |
//!
//! A write goes into the slot that does not hold the newest record, so a write that was torn
//! leaves the one before it: what was not acknowledged may be lost, what was acknowledged not.

use migrate_engine::handover::term::{Beside, HostId, Stamp, Term};

/// Bytes of a slot: what direct I/O can write anywhere.
pub const SLOT_BYTES: usize = 4096;
/// Slots of a file.
pub const SLOTS: usize = 2;

const MAGIC: &[u8; 8] = b"MIGRTERM";
const VERSION: u32 = 1;
/// Bytes under the checksum.
const BODY: usize = 88;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Grows with every write.
    pub sequence: u64,
    /// The guest that the terms are of; 0 before the first.
    pub guest: u128,
    /// Terms.
    pub beside: Beside,
    /// What the last source wrote to see whether a target reads the same storage; 0 for none.
    pub nonce: u128,
}

/// Why there is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// No slot holds a whole record.
    #[error("it holds no whole record")]
    Damaged,
    /// A slot is of a newer program.
    #[error("it is of version {0}, and this program reads version {VERSION}")]
    Version(u32),
}

/// A change that its writer has no right to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// It would go back in time.
    #[error("term {ours} is not newer than term {}, which host {} owns", found.term, found.host)]
    Older {
        /// What was to be written.
        ours: Term,
        /// What stands there.
        found: Stamp,
    },
    /// Another guest has used the disk since.
    #[error("the disk belongs to another guest now, in term {term}")]
    OtherGuest {
        /// The highest term that stands there.
        term: Term,
    },
}

impl Record {
    /// A new file's first.
    pub const FIRST: Self = Self { sequence: 1, guest: 0, beside: Beside::NOTHING, nonce: 0 };

    /// What stands there for `guest`, which holds or wants to keep a right from before: if another
    /// guest used the disk since, that counts as a better right of no host.
    pub fn for_guest(&self, guest: u128) -> Beside {
        if guest == self.guest || self.beside.highest() == Term::NONE {
            return self.beside;
        }
        let owner = Stamp { term: self.beside.highest(), host: HostId(0) };
        Beside { owner, ..self.beside }
    }

    /// What stands there for a start of `guest`, with both locks held: the terms of another guest
    /// say nothing about who may start this one, but its own must be above them.
    pub fn for_start(&self, guest: u128) -> Beside {
        if guest == self.guest {
            return self.beside;
        }
        Beside { offered: self.beside.highest(), ..Beside::NOTHING }
    }

    /// The record after an offer of `term`. An older offer changes nothing but the sequence.
    ///
    /// # Errors
    /// [`Stale::OtherGuest`].
    pub fn offered(self, guest: u128, term: Term) -> Result<Self, Stale> {
        self.must_be_of(guest)?;
        let offered = self.beside.offered.max(term);
        Ok(self.next(Self { beside: Beside { offered, ..self.beside }, ..self }))
    }

    /// The record after `owner` took over, or started `guest` on a disk of another.
    ///
    /// # Errors
    /// [`Stale`] if a newer owner stands there, or another one of the same term.
    pub fn owned(self, guest: u128, owner: Stamp) -> Result<Self, Stale> {
        let found = self.beside.owner;
        if guest != self.guest && owner.term <= self.beside.highest() {
            return Err(Stale::OtherGuest { term: self.beside.highest() });
        }
        if found.term > owner.term || (guest == self.guest && self.beside.supersedes(owner)) {
            return Err(Stale::Older { ours: owner.term, found });
        }
        Ok(self.next(Self { guest, beside: Beside { owner, ..self.beside }, ..self }))
    }

    /// The record with this nonce.
    ///
    /// # Errors
    /// [`Stale::OtherGuest`].
    pub fn with_nonce(self, guest: u128, nonce: u128) -> Result<Self, Stale> {
        self.must_be_of(guest)?;
        Ok(self.next(Self { nonce, ..self }))
    }

    fn must_be_of(&self, guest: u128) -> Result<(), Stale> {
        if guest == self.guest {
            return Ok(());
        }
        Err(Stale::OtherGuest { term: self.beside.highest() })
    }

    fn next(self, changed: Self) -> Self {
        Self { sequence: self.sequence.wrapping_add(1), ..changed }
    }
}

/// The bytes of a slot.
pub fn encode(record: &Record) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let mut body = Vec::with_capacity(BODY + 4);
    body.extend_from_slice(MAGIC);
    body.extend_from_slice(&VERSION.to_le_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&record.sequence.to_le_bytes());
    body.extend_from_slice(&record.beside.owner.term.get().to_le_bytes());
    body.extend_from_slice(&record.beside.owner.host.0.to_le_bytes());
    body.extend_from_slice(&record.beside.offered.get().to_le_bytes());
    body.extend_from_slice(&record.nonce.to_le_bytes());
    body.extend_from_slice(&record.guest.to_le_bytes());
    let crc = crc32fast::hash(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    for (to, from) in slot.iter_mut().zip(body) {
        *to = from;
    }
    slot
}

/// The record in a slot; `None` if it is torn or blank.
fn decode(slot: &[u8]) -> Result<Option<Record>, Unreadable> {
    let Some((body, rest)) = slot.split_at_checked(BODY) else { return Ok(None) };
    let whole = rest.first_chunk().is_some_and(|c| u32::from_le_bytes(*c) == crc32fast::hash(body));
    if !whole || !body.starts_with(MAGIC) {
        return Ok(None);
    }
    let (u64_at, u128_at) = (number::<8>(body), number::<16>(body));
    let version = u32::from_le_bytes(number::<4>(body)(8));
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let term = |at| Term::new(u64::from_le_bytes(u64_at(at)));
    let owner = Stamp { term: term(24), host: HostId(u128::from_le_bytes(u128_at(32))) };
    Ok(Some(Record {
        sequence: u64::from_le_bytes(u64_at(16)),
        guest: u128::from_le_bytes(u128_at(72)),
        beside: Beside { owner, offered: term(48) },
        nonce: u128::from_le_bytes(u128_at(56)),
    }))
}

/// Reads `N` bytes of `body`; zeros beyond its end.
fn number<const N: usize>(body: &[u8]) -> impl Fn(usize) -> [u8; N] {
    move |at| {
        let found = body.get(at..).and_then(<[u8]>::first_chunk).copied();
        found.unwrap_or([0; N])
    }
}

/// The newest record of a file, and the slot to write the next one into.
///
/// # Errors
/// [`Unreadable`].
pub fn newest(slots: [&[u8]; SLOTS]) -> Result<(Record, usize), Unreadable> {
    let [first, second] = slots;
    match (decode(first)?, decode(second)?) {
        (None, None) => Err(Unreadable::Damaged),
        (Some(a), Some(b)) if b.sequence > a.sequence => Ok((b, 0)),
        (Some(a), _) => Ok((a, 1)),
        (None, Some(b)) => Ok((b, 0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(term: u64, host: u128) -> Stamp {
        Stamp { term: Term::new(term), host: HostId(host) }
    }

    const GUEST: u128 = 0xA0;

    fn record(sequence: u64, owner: Stamp, offered: u64, nonce: u128) -> Record {
        let beside = Beside { owner, offered: Term::new(offered) };
        Record { sequence, guest: GUEST, beside, nonce }
    }

    #[test]
    fn golden_bytes() {
        let slot = encode(&record(2, stamp(7, 0x0102), 9, 0x55));
        let mut golden = Vec::from(*b"MIGRTERM\x01\0\0\0\0\0\0\0");
        golden.extend([2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[..88], golden[..]);
        assert_eq!(u32::from_le_bytes(slot[88..92].try_into().unwrap()), GOLDEN_CRC);
        assert!(slot[92..].iter().all(|b| *b == 0));
    }

    /// Of the bytes above, computed by another program.
    const GOLDEN_CRC: u32 = 0xf6de_d0f3;

    #[test]
    fn a_torn_write_leaves_the_record_before_it() {
        let old = record(1, stamp(3, 1), 3, 0);
        let current = old.offered(GUEST, Term::new(4)).unwrap();
        let next = current.owned(GUEST, stamp(4, 2)).unwrap();
        let (first, second, fresh) = (encode(&old), encode(&current), encode(&next));
        assert_eq!(newest([&first, &second]).unwrap(), (current, 0));
        for cut in 0..=SLOT_BYTES {
            // The front arrived or the back did.
            for front in [true, false] {
                let mut torn = if front { first } else { fresh };
                torn[..cut].copy_from_slice(&if front { fresh } else { first }[..cut]);
                let expected = if torn == fresh { next } else { current };
                assert_eq!(newest([&torn, &second]).unwrap().0, expected, "{cut} {front}");
            }
            // A slot that lost its end.
            assert!(newest([&first, &second[..cut]]).is_ok());
        }
    }

    #[test]
    fn every_damaged_byte_is_seen() {
        let good = encode(&record(5, stamp(3, 1), 3, 9));
        for at in 0..BODY + 4 {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert_eq!(newest([&bad, &[0; SLOT_BYTES]]), Err(Unreadable::Damaged), "byte {at}");
        }
        assert_eq!(newest([&[], &[]]), Err(Unreadable::Damaged));
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut slot = encode(&Record::FIRST);
        slot[8] = 2;
        let crc = crc32fast::hash(&slot[..BODY]).to_le_bytes();
        slot[BODY..BODY + 4].copy_from_slice(&crc);
        assert_eq!(newest([&slot, &encode(&Record::FIRST)]), Err(Unreadable::Version(2)));
    }

    #[test]
    fn owners_never_go_back() {
        let now = record(1, stamp(5, 1), 6, 0);
        let owned = |stamp| now.owned(GUEST, stamp).map(|r| r.beside.owner);
        assert_eq!(owned(stamp(5, 1)), Ok(stamp(5, 1)), "said again");
        assert_eq!(owned(stamp(6, 2)), Ok(stamp(6, 2)));
        for late in [stamp(5, 2), stamp(4, 1), stamp(4, 2)] {
            let stale = Stale::Older { ours: late.term, found: stamp(5, 1) };
            assert_eq!(owned(late), Err(stale), "{late:?}");
        }
        assert_eq!(now.offered(GUEST, Term::new(2)).unwrap().beside.offered, Term::new(6));
    }

    #[test]
    fn another_guests_disk() {
        let (now, other) = (record(1, stamp(5, 1), 6, 0), GUEST + 1);
        // It may start here, on any host, in a term above all that stand there.
        assert_eq!(now.for_start(other), Beside { offered: Term::new(6), ..Beside::NOTHING });
        assert_eq!(now.for_start(GUEST), now.beside);
        let stale = Stale::OtherGuest { term: Term::new(6) };
        assert_eq!(now.owned(other, stamp(6, 1)), Err(stale));
        let taken = now.owned(other, stamp(7, 2)).unwrap();
        // The old one's rights are gone, on every host and in every term it may have offered.
        let beside = taken.for_guest(GUEST);
        assert!(beside.supersedes(stamp(5, 1)) && beside.supersedes(stamp(6, 2)));
        assert!(taken.for_guest(other) == taken.beside && !taken.beside.supersedes(stamp(7, 2)));
        let stale = Stale::OtherGuest { term: Term::new(7) };
        assert_eq!(taken.offered(GUEST, Term::new(8)), Err(stale));
        assert_eq!(taken.with_nonce(GUEST, 1), Err(stale));
        assert_eq!(taken.owned(GUEST, stamp(6, 1)), Err(stale));
        // Nobody's disk is in nobody's way.
        assert_eq!(Record::FIRST.for_guest(GUEST), Beside::NOTHING);
        assert!(Record::FIRST.owned(GUEST, stamp(1, 1)).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seq in 0u64..u64::MAX, term: u64, host: u128, offered: u64, nonce: u128) {
            let record = record(seq, stamp(term, host), offered, nonce);
            prop_assert_eq!(newest([&encode(&record), &[]]), Ok((record, 1)));
        }

        #[test]
        fn any_bytes_are_refused_or_read(a in proptest::collection::vec(any::<u8>(), 0..200), b in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = newest([&a, &b]);
        }
    }
}
