//! The bytes of a [`Ledger`], version 1. All numbers little-endian:
//!
//! ```text
//! 0   8  magic "hando\0r1"
//! 8   4  length of the body, bytes
//! 12  4  CRC-32 (IEEE) of the body
//! 16     body: host u128, boot u128, highest u64,
//!              record: tag u8 (0 none, 1 owner, 2 offered, 3 receiving, 4 withdrawn, 5 ceded,
//!                      6 moved, 7 tombstone), then for 1 the term u64, for 2..=7 the switch:
//!                      id u128, before u64, term u64, from u128, to u128
//!              past: count u8 (at most 32), each: id u128, end u8
//!                      (1 withdrawn, 2 ceded, 3 ran, 4 never ran)
//! ```
//!
//! There is one encoding of each ledger, and [`decode`] accepts nothing else.

use super::journal::{Ended, Ledger, PAST, Record};
use super::term::{BootId, HostId, Switch, SwitchId, Term};

const MAGIC: [u8; 8] = *b"hando\0r1";
const HEADER: usize = 16;
/// Longest encoding, in bytes.
pub const MAX_BYTES: usize = HEADER + 16 + 16 + 8 + 1 + 64 + 1 + PAST * 17;

/// Why bytes are not a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They do not begin as a ledger of this version does.
    #[error("this is not a hand-over journal of version 1")]
    Magic,
    /// They were cut off, or something follows.
    #[error("the hand-over journal has not the length that it states")]
    Length,
    /// They were changed.
    #[error("the hand-over journal does not match its checksum")]
    Checksum,
    /// Whole, but no ledger that this program writes.
    #[error("the hand-over journal has an unknown {0}")]
    Unknown(&'static str),
}

/// The bytes of `ledger`, at most [`MAX_BYTES`].
pub fn encode(ledger: &Ledger) -> Vec<u8> {
    let mut body = Vec::with_capacity(MAX_BYTES);
    body.extend(ledger.host().0.to_le_bytes());
    body.extend(ledger.boot().0.to_le_bytes());
    body.extend(ledger.highest().get().to_le_bytes());
    put_record(&mut body, ledger.now());
    let past = ledger.past();
    body.push(u8::try_from(past.len()).unwrap_or(u8::MAX));
    for (id, how) in past {
        body.extend(id.0.to_le_bytes());
        body.push(match how {
            Ended::Withdrawn => 1,
            Ended::Ceded => 2,
            Ended::Ran => 3,
            Ended::NeverRan => 4,
        });
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.append(&mut body);
    bytes
}

fn put_record(body: &mut Vec<u8>, record: Option<&Record>) {
    let (tag, switch) = match record {
        None => return body.push(0),
        Some(Record::Owner { term }) => {
            body.push(1);
            return body.extend(term.get().to_le_bytes());
        }
        Some(Record::Offered(s)) => (2, s),
        Some(Record::Receiving(s)) => (3, s),
        Some(Record::Withdrawn(s)) => (4, s),
        Some(Record::Ceded(s)) => (5, s),
        Some(Record::Moved(s)) => (6, s),
        Some(Record::Tombstone(s)) => (7, s),
    };
    body.push(tag);
    body.extend(switch.id.0.to_le_bytes());
    body.extend(switch.before.get().to_le_bytes());
    body.extend(switch.term.get().to_le_bytes());
    body.extend(switch.from.0.to_le_bytes());
    body.extend(switch.to.0.to_le_bytes());
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Length)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u128(&mut self) -> Result<u128, DecodeError> {
        self.take().map(u128::from_le_bytes)
    }

    fn term(&mut self) -> Result<Term, DecodeError> {
        self.take().map(|b| Term::new(u64::from_le_bytes(b)))
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[b]| b)
    }

    fn switch(&mut self) -> Result<Switch, DecodeError> {
        Ok(Switch {
            id: SwitchId(self.u128()?),
            before: self.term()?,
            term: self.term()?,
            from: HostId(self.u128()?),
            to: HostId(self.u128()?),
        })
    }

    fn record(&mut self) -> Result<Option<Record>, DecodeError> {
        Ok(Some(match self.byte()? {
            0 => return Ok(None),
            1 => Record::Owner { term: self.term()? },
            2 => Record::Offered(self.switch()?),
            3 => Record::Receiving(self.switch()?),
            4 => Record::Withdrawn(self.switch()?),
            5 => Record::Ceded(self.switch()?),
            6 => Record::Moved(self.switch()?),
            7 => Record::Tombstone(self.switch()?),
            _ => return Err(DecodeError::Unknown("record")),
        }))
    }

    fn past(&mut self) -> Result<Vec<(SwitchId, Ended)>, DecodeError> {
        let count = usize::from(self.byte()?);
        if count > PAST {
            return Err(DecodeError::Unknown("number of settled switches"));
        }
        (0..count)
            .map(|_| {
                let id = SwitchId(self.u128()?);
                let how = match self.byte()? {
                    1 => Ended::Withdrawn,
                    2 => Ended::Ceded,
                    3 => Ended::Ran,
                    4 => Ended::NeverRan,
                    _ => return Err(DecodeError::Unknown("end of a switch")),
                };
                Ok((id, how))
            })
            .collect()
    }
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`DecodeError`] for every other input.
pub fn decode(bytes: &[u8]) -> Result<Ledger, DecodeError> {
    let mut head = Rest(bytes);
    if head.take() != Ok(MAGIC) {
        return Err(DecodeError::Magic);
    }
    let length = u32::from_le_bytes(head.take()?);
    let sum = u32::from_le_bytes(head.take()?);
    let body = head.0;
    if bytes.len() > MAX_BYTES || u32::try_from(body.len()) != Ok(length) {
        return Err(DecodeError::Length);
    }
    if crc32fast::hash(body) != sum {
        return Err(DecodeError::Checksum);
    }
    let mut rest = Rest(body);
    let whose = (HostId(rest.u128()?), BootId(rest.u128()?));
    let highest = rest.term()?;
    let now = rest.record()?;
    // The terms grow from here: one that stood higher would be given out twice.
    if now.is_some_and(|record| record.term() > highest) {
        return Err(DecodeError::Unknown("order of terms"));
    }
    let past = rest.past()?;
    if !rest.0.is_empty() {
        return Err(DecodeError::Length);
    }
    Ok(Ledger::from_parts(whose, highest, now, past))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Ledger {
        let (host, boot) = (HostId(0xa), BootId(0xb));
        let switch = |n: u64| Switch {
            id: SwitchId(u128::from(n) + 0x100),
            before: Term::new(n - 1),
            term: Term::new(n),
            from: host,
            to: HostId(0xc),
        };
        [
            Record::Owner { term: Term::FIRST },
            Record::Offered(switch(2)),
            Record::Withdrawn(switch(2)),
            Record::Offered(switch(3)),
        ]
        .into_iter()
        .fold(Ledger::new(host, boot), |l, r| l.apply(r, boot).unwrap())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, b| format!("{text}{b:02x}"))
    }

    /// As it lies on disks. It must never change.
    const GOLDEN: &str = concat!(
        "68616e646f007231",                 // magic
        "7b000000",                         // 123 bytes
        "7e1a3409",                         // its CRC-32
        "0a000000000000000000000000000000", // host
        "0b000000000000000000000000000000", // boot
        "0300000000000000",                 // highest
        "02",                               // offered
        "03010000000000000000000000000000", // switch
        "0200000000000000",                 // before
        "0300000000000000",                 // term
        "0a000000000000000000000000000000", // from
        "0c000000000000000000000000000000", // to
        "01",                               // one settled
        "02010000000000000000000000000000", // switch
        "01",                               // withdrawn
    );

    #[test]
    fn golden_bytes() {
        assert_eq!(hex(&encode(&example())), GOLDEN);
        assert_eq!(decode(&encode(&example())), Ok(example()));
        assert!(encode(&example()).len() <= MAX_BYTES);
    }

    #[test]
    fn every_record_survives() {
        let (host, boot) = (HostId(1), BootId(2));
        let (before, term) = (Term::new(4), Term::new(5));
        let switch = Switch { id: SwitchId(3), before, term, from: host, to: HostId(6) };
        let records = [
            None,
            Some(Record::Owner { term }),
            Some(Record::Offered(switch)),
            Some(Record::Receiving(switch)),
            Some(Record::Withdrawn(switch)),
            Some(Record::Ceded(switch)),
            Some(Record::Moved(switch)),
            Some(Record::Tombstone(switch)),
        ];
        let ends = [Ended::Withdrawn, Ended::Ceded, Ended::Ran, Ended::NeverRan];
        let past: Vec<_> = (0..PAST).map(|n| (SwitchId(n as u128), ends[n % ends.len()])).collect();
        for now in records {
            let ledger = Ledger::from_parts((host, boot), term, now, past.clone());
            assert_eq!(decode(&encode(&ledger)), Ok(ledger));
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let good = encode(&example());
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            for change in 1..=255u8 {
                let mut bad = good.clone();
                bad[at] ^= change;
                assert!(decode(&bad).is_err(), "byte {at} xor {change:#x}");
            }
        }
        assert_eq!(decode(&[good.as_slice(), &[0]].concat()), Err(DecodeError::Length));
    }

    /// A header that fits any body.
    fn sealed(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        let sum = crc32fast::hash(body).to_le_bytes();
        [&MAGIC, &length[..], &sum, body].concat()
    }

    fn any_switch(term: Term) -> impl Strategy<Value = Switch> {
        (any::<(u128, u64, u128, u128)>(), 0..=term.get()).prop_map(
            move |((id, _, from, to), before)| Switch {
                id: SwitchId(id),
                before: Term::new(before),
                term,
                from: HostId(from),
                to: HostId(to),
            },
        )
    }

    fn any_record(highest: Term) -> impl Strategy<Value = Option<Record>> {
        let term = (0..=highest.get()).prop_map(Term::new);
        (0..8u8, term.clone().prop_flat_map(any_switch), term).prop_map(|(kind, s, term)| {
            Some(match kind {
                0 => return None,
                1 => Record::Owner { term },
                2 => Record::Offered(s),
                3 => Record::Receiving(s),
                4 => Record::Withdrawn(s),
                5 => Record::Ceded(s),
                6 => Record::Moved(s),
                _ => Record::Tombstone(s),
            })
        })
    }

    fn any_ledger() -> impl Strategy<Value = Ledger> {
        let end = prop_oneof![
            Just(Ended::Withdrawn),
            Just(Ended::Ceded),
            Just(Ended::Ran),
            Just(Ended::NeverRan),
        ];
        let past = prop::collection::vec((any::<u128>().prop_map(SwitchId), end), 0..=PAST);
        let highest = any::<u64>().prop_map(Term::new);
        let now = highest.prop_flat_map(|h| (Just(h), any_record(h)));
        (any::<(u128, u128)>(), now, past).prop_map(|((host, boot), (highest, now), past)| {
            Ledger::from_parts((HostId(host), BootId(boot)), highest, now, past)
        })
    }

    /// What decodes is the one encoding of what it says.
    fn refused_or_canonical(bytes: &[u8]) {
        if let Ok(ledger) = decode(bytes) {
            assert_eq!(encode(&ledger), bytes);
            assert!(ledger.past().len() <= PAST);
            assert!(ledger.now().is_none_or(|record| record.term() <= ledger.highest()));
        }
    }

    #[test]
    fn a_term_above_the_highest_is_refused() {
        let whose = (HostId(1), BootId(2));
        let owner = Some(Record::Owner { term: Term::new(8) });
        let ledger = Ledger::from_parts(whose, Term::new(7), owner, Vec::new());
        assert_eq!(decode(&encode(&ledger)), Err(DecodeError::Unknown("order of terms")));
    }

    proptest! {
        #[test]
        fn any_ledger_comes_back_and_only_whole(ledger in any_ledger()) {
            let good = encode(&ledger);
            prop_assert!(good.len() <= MAX_BYTES);
            prop_assert_eq!(decode(&good), Ok(ledger));
            for cut in 0..good.len() {
                prop_assert!(decode(&good[..cut]).is_err(), "cut at {}", cut);
            }
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(decode(&bad).is_err(), "bit {}", bit);
            }
        }

        /// A writer that computes checksums over anything it likes.
        #[test]
        fn any_body_is_refused_or_means_one_thing(
            body in prop::collection::vec(any::<u8>(), 0..2 * MAX_BYTES),
            ledger in any_ledger(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            refused_or_canonical(&body);
            refused_or_canonical(&sealed(&body));
            let mut body = encode(&ledger).split_off(HEADER);
            for (at, value) in changes {
                let at = at.index(body.len());
                body[at] = value;
            }
            refused_or_canonical(&sealed(&body));
        }
    }
}
