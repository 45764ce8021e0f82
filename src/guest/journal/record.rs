//! The one record of a journal and its bytes: a header line with version, length and CRC-32 of
//! the body, then the body as JSON, so that a person can read it when all else fails.
//!
//! ```text
//! migrate-journal 1 0000000214 9d2c1a07\n
//! {"uuid":…,"name":…,…}\n
//! ```
//!
//! Who owns the guest stands in the [`Ledger`], which is written in its own bytes as hexadecimal
//! digits; `says` repeats it in words, for people only.

use jiff::Timestamp;
use migrate_engine::handover::encode as ledger;
use migrate_engine::handover::journal::{self as handover, Ledger};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version that is written, and the only one that is read so far.
pub const VERSION: u32 = 1;
/// Longest record that is read, in bytes.
pub const MAX_BYTES: usize = 64 << 10;
/// `migrate-journal `, version, length, CRC and their separators.
const MAGIC: &str = "migrate-journal";

/// Who last had the right to run a guest on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The guest.
    pub uuid: Uuid,
    /// Its name when this was written.
    pub name: String,
    /// Host that wrote this, as people call it.
    pub host: String,
    /// The other host of the switch that the ledger is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// When this was written.
    pub since: Timestamp,
    /// The saved file from which this term was started, if it was.
    pub origin: Option<Uuid>,
    /// A file may exist that knows one of this guest's terms. Such a journal is kept for ever:
    /// without it an old file could start the guest again.
    pub saved_ever: bool,
    /// What became of the term, if the ledger says that this host owns it.
    pub state: State,
    /// What `ledger` says, in words.
    pub says: String,
    /// Who owns the guest, as far as this host knows.
    #[serde(with = "digits")]
    pub ledger: Ledger,
}

impl Record {
    /// The term under which this host owns the guest, or the last that it knows of.
    pub fn term(&self) -> u64 {
        self.ledger.owned().map_or(self.ledger.highest(), |stamp| stamp.term).get()
    }

    /// The record after `step` of the ownership, which came to be at `since` with `peer` as the
    /// other side.
    ///
    /// # Errors
    /// The step does not follow from what is written.
    pub fn after(
        &self,
        step: handover::Record,
        boot: migrate_engine::handover::term::BootId,
        peer: Option<String>,
        since: Timestamp,
    ) -> Result<Self, handover::Illegal> {
        let ledger = self.ledger.apply(step, boot)?;
        Ok(Self {
            peer: peer.or_else(|| self.peer.clone()),
            since,
            state: State::Owner,
            says: says(&ledger),
            ledger,
            ..self.clone()
        })
    }
}

/// What a ledger says, in words.
pub fn says(ledger: &Ledger) -> String {
    use handover::Record::{Ceded, Moved, Offered, Owner, Receiving, Tombstone, Withdrawn};
    match ledger.now() {
        None => "nothing is known of the guest".into(),
        Some(Owner { term }) => format!("owned here in term {term}"),
        Some(Offered(s)) => format!("offered to host {} in term {}: not settled", s.to, s.term),
        Some(Receiving(s)) => format!("comes from host {} in term {}: not settled", s.from, s.term),
        Some(Withdrawn(s)) => format!("kept here in term {}", s.term),
        Some(Ceded(s)) => format!("given to host {} in term {}", s.to, s.term),
        Some(Moved(s)) => format!("moved to host {} in term {}", s.to, s.term),
        Some(Tombstone(s)) => format!("did not come from host {} in term {}", s.from, s.term),
    }
}

/// A ledger as hexadecimal digits.
mod digits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{Ledger, ledger};
    use crate::config::hex;

    pub fn serialize<S: Serializer>(value: &Ledger, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(&ledger::encode(value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ledger, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = hex::decode(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        ledger::decode(&bytes).map_err(D::Error::custom)
    }
}

/// What became of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A guest process runs it, as long as it holds the lock. If the lock is free it died.
    Owner,
    /// It ended.
    Stopped,
    /// It ended by a save; this file continues it.
    Saved {
        /// Identity of the save.
        save: Uuid,
    },
}

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than any record.
    #[error("it has {0} bytes, more than any record")]
    TooLong(usize),
    /// The header line is not whole.
    #[error("its header line is damaged")]
    Header,
    /// Written by another version.
    #[error("it was written by a program that uses journal version {0}; this one reads {VERSION}")]
    Version(u32),
    /// The body is not what was written.
    #[error("its content does not match its checksum")]
    Checksum,
    /// The body is whole, but not a record.
    #[error("its content is not a record: {0}")]
    Body(String),
}

fn header(version: u32, body: &[u8]) -> String {
    format!("{MAGIC} {version} {:010} {:08x}\n", body.len(), crc32fast::hash(body))
}

/// The bytes of `record`.
///
/// # Errors
/// [`RecordError::TooLong`] for a record that would not be read back.
pub fn encode(record: &Record) -> Result<Vec<u8>, RecordError> {
    let mut body =
        serde_json::to_vec(record).map_err(|error| RecordError::Body(error.to_string()))?;
    body.push(b'\n');
    let mut bytes = header(VERSION, &body).into_bytes();
    bytes.append(&mut body);
    if bytes.len() > MAX_BYTES { Err(RecordError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads what [`encode`] wrote. Any other bytes are an error.
///
/// # Errors
/// [`RecordError`] says what is wrong.
pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
    if bytes.len() > MAX_BYTES {
        return Err(RecordError::TooLong(bytes.len()));
    }
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(RecordError::Header)?;
    let (line, body) = bytes.split_at(end + 1);
    let text = std::str::from_utf8(line).map_err(|_| RecordError::Header)?;
    let mut words = text.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(RecordError::Header);
    }
    let version: u32 = words.next().and_then(|w| w.parse().ok()).ok_or(RecordError::Header)?;
    // Whoever writes this header for this body writes exactly this line: that compares length,
    // checksum and spelling at once.
    if text != header(version, body) {
        return Err(RecordError::Checksum);
    }
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    serde_json::from_slice(body).map_err(|error| RecordError::Body(error.to_string()))
}

#[cfg(test)]
pub(super) fn example() -> Record {
    Record {
        uuid: Uuid::from_u128(0x1234),
        name: "web".into(),
        host: "h1".into(),
        peer: None,
        since: Timestamp::from_second(1_700_000_000).unwrap(),
        origin: Some(Uuid::from_u128(5)),
        saved_ever: true,
        state: State::Saved { save: Uuid::from_u128(6) },
        says: says(&owned(7)),
        ledger: owned(7),
    }
}

/// The ledger of host 1 that owns its guest in `term`.
#[cfg(test)]
pub(crate) fn owned(term: u64) -> Ledger {
    use migrate_engine::handover::term::{BootId, HostId, Term};
    let (host, boot) = (HostId(1), BootId(2));
    let owner = handover::Record::Owner { term: Term::new(term) };
    Ledger::new(host, boot).apply(owner, boot).unwrap()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Version 1 as it lies on disks. It must never change.
    const GOLDEN: &str = concat!(
        "migrate-journal 1 0000000410 2f43d203\n",
        r#"{"uuid":"00000000-0000-0000-0000-000000001234","name":"web","host":"h1","#,
        r#""since":"2023-11-14T22:13:20Z","#,
        r#""origin":"00000000-0000-0000-0000-000000000005","saved_ever":true,"#,
        r#""state":{"saved":{"save":"00000000-0000-0000-0000-000000000006"}},"#,
        r#""says":"owned here in term 7","#,
        r#""ledger":"68616e646f0072313200000010cb3fb801000000000000000000000000000000"#,
        r#"02000000000000000000000000000000070000000000000001070000000000000000"}"#,
        "\n"
    );

    #[test]
    fn golden_bytes() {
        assert_eq!(String::from_utf8(encode(&example()).unwrap()).unwrap(), GOLDEN);
        assert_eq!(decode(GOLDEN.as_bytes()).unwrap(), example());
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_noticed() {
        let good = GOLDEN.as_bytes();
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            for change in 1..=255u8 {
                let mut bad = good.to_vec();
                bad[at] ^= change;
                assert!(decode(&bad).is_err(), "byte {at} xor {change:#x}");
            }
        }
        assert!(decode(&[good, b" "].concat()).is_err());
    }

    #[test]
    fn another_version_is_named() {
        let body = b"{}\n";
        let mut bytes = header(2, body).into_bytes();
        bytes.extend_from_slice(body);
        assert_eq!(decode(&bytes), Err(RecordError::Version(2)));
        assert!(decode(&vec![b'x'; MAX_BYTES + 1]).is_err());
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let state = prop_oneof![
            Just(State::Owner),
            Just(State::Stopped),
            any::<u128>().prop_map(|save| State::Saved { save: Uuid::from_u128(save) }),
        ];
        let since = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
        let texts = (any::<String>(), any::<String>(), any::<Option<String>>());
        let numbers = (any::<u128>(), any::<Option<u128>>(), 1..u64::MAX, any::<bool>());
        (texts, numbers, since, state).prop_map(|(texts, numbers, since, state)| Record {
            uuid: Uuid::from_u128(numbers.0),
            name: texts.0,
            host: texts.1,
            peer: texts.2,
            since: Timestamp::from_second(since).unwrap(),
            origin: numbers.1.map(Uuid::from_u128),
            saved_ever: numbers.3,
            state,
            says: says(&owned(numbers.2)),
            ledger: owned(numbers.2),
        })
    }

    /// What a program writes that computes lengths and checksums over anything it likes.
    fn sealed(body: &[u8]) -> Vec<u8> {
        [header(VERSION, body).as_bytes(), body].concat()
    }

    fn refused_or_read_again(bytes: &[u8]) {
        if let Ok(record) = decode(bytes) {
            assert_eq!(decode(&encode(&record).unwrap()), Ok(record));
        }
    }

    proptest! {
        #[test]
        fn any_record_comes_back_and_only_whole(
            record in any_record(), at: prop::sample::Index,
        ) {
            let good = encode(&record).unwrap();
            prop_assert!(good.len() <= MAX_BYTES);
            prop_assert_eq!(decode(&good), Ok(record));
            prop_assert!(decode(&good[..at.index(good.len())]).is_err());
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at.index(good.len())] ^= 1 << bit;
                prop_assert!(decode(&bad).is_err());
            }
        }

        #[test]
        fn any_body_is_refused_or_a_record(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            record in any_record(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        ) {
            refused_or_read_again(&bytes);
            refused_or_read_again(&sealed(&bytes));
            let good = encode(&record).unwrap();
            let start = good.iter().position(|b| *b == b'\n').unwrap() + 1;
            let mut body = good[start..].to_vec();
            for (at, value) in changes {
                let at = at.index(body.len());
                body[at] = value;
            }
            refused_or_read_again(&sealed(&body));
        }
    }

    #[test]
    fn what_would_not_be_read_back_is_not_written() {
        let long = Record { name: "x".repeat(MAX_BYTES), ..example() };
        assert!(matches!(encode(&long), Err(RecordError::TooLong(_))));
        // Deep nesting ends in an error, not at the end of the stack.
        let deep = "[".repeat(MAX_BYTES - 64);
        assert!(matches!(decode(&sealed(deep.as_bytes())), Err(RecordError::Body(_))));
    }
}
