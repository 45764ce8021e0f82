//! The first 128 bytes of a saved file: what it is and where everything lies. Readable on its
//! own. All numbers are little endian.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 8 | magic `89 4D 49 47 53 41 56 0A` (`\x89MIGSAV\n`) |
//! | 8 | 4 | version |
//! | 12 | 4 | bytes of this header (128) |
//! | 16 | 8 | bytes of the file |
//! | 24 | 16 | identity of the save |
//! | 40 | 8, 8, 4 | metadata: offset, length, CRC-32 |
//! | 60 | 8, 8, 4 | machine state: offset, length, CRC-32 |
//! | 80 | 8, 8 | memory: offset (a multiple of 4096), length |
//! | 96 | 8, 8, 4 | table of memory blocks: offset, length, CRC-32 |
//! | 116 | 8 | bytes of guest RAM |
//! | 124 | 4 | CRC-32 of bytes 0 to 123 |

use uuid::Uuid;

use super::SaveFileError;

/// The version that is written.
pub const VERSION: u32 = 1;
/// The oldest version that is read.
pub const OLDEST: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 128;
/// First bytes of every saved file. The first is no text, the last a line end: a transfer that
/// mangles either is noticed at once.
pub const MAGIC: [u8; 8] = *b"\x89MIGSAV\n";
/// Alignment of the memory section.
pub const PAGE: u64 = 4096;
/// Longest metadata, in bytes.
pub const METADATA_MAX: u64 = 2 << 20;
/// Longest machine state, in bytes.
pub const STATE_MAX: u64 = 64 << 20;
/// Bytes of RAM that one entry of the table stands for.
pub const BLOCK: u64 = 1 << 20;
/// Bytes of one entry of the table.
pub const ENTRY_BYTES: u64 = 40;

/// A section with a checksum over all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// From the beginning of the file.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// CRC-32 of its bytes.
    pub crc: u32,
}

/// The header, with its sections checked to follow each other exactly and to fill the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Identity of the save.
    pub save: Uuid,
    /// JSON metadata.
    pub metadata: Section,
    /// Machine state.
    pub state: Section,
    /// Where memory begins.
    pub memory_offset: u64,
    /// Bytes of memory in the file.
    pub memory_length: u64,
    /// Table of memory blocks.
    pub table: Section,
    /// Bytes of guest RAM.
    pub ram_bytes: u64,
}

fn put(bytes: &mut [u8; HEADER_BYTES], at: usize, value: &[u8]) {
    if let Some(slot) = bytes.get_mut(at..at + value.len()) {
        slot.copy_from_slice(value);
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|s| s.try_into().ok());
    part.map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let part = bytes.get(at..at + 8).and_then(|s| s.try_into().ok());
    part.map_or(0, u64::from_le_bytes)
}

impl Header {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        put(&mut b, 0, &MAGIC);
        put(&mut b, 8, &VERSION.to_le_bytes());
        put(&mut b, 12, &128u32.to_le_bytes());
        put(&mut b, 16, &self.file_bytes.to_le_bytes());
        put(&mut b, 24, self.save.as_bytes());
        for (at, section) in [(40, self.metadata), (60, self.state), (96, self.table)] {
            put(&mut b, at, &section.offset.to_le_bytes());
            put(&mut b, at + 8, &section.length.to_le_bytes());
            put(&mut b, at + 16, &section.crc.to_le_bytes());
        }
        put(&mut b, 80, &self.memory_offset.to_le_bytes());
        put(&mut b, 88, &self.memory_length.to_le_bytes());
        put(&mut b, 116, &self.ram_bytes.to_le_bytes());
        let crc = crc32fast::hash(b.get(..124).unwrap_or_default());
        put(&mut b, 124, &crc.to_le_bytes());
        b
    }

    /// Reads and checks a header. `actual` is the file's real length.
    ///
    /// # Errors
    /// [`SaveFileError`] says what is wrong and where.
    pub fn decode(bytes: &[u8; HEADER_BYTES], actual: u64) -> Result<Self, SaveFileError> {
        if bytes.get(..8) != Some(MAGIC.as_slice()) {
            return Err(SaveFileError::NotOurs);
        }
        match u32_at(bytes, 8) {
            found if found > VERSION => return Err(SaveFileError::TooNew { found }),
            found if found < OLDEST => return Err(SaveFileError::TooOld { found }),
            _ => {}
        }
        if crc32fast::hash(bytes.get(..124).unwrap_or_default()) != u32_at(bytes, 124) {
            return Err(SaveFileError::damaged("header", 0, "its checksum does not match"));
        }
        let section = |at| Section {
            offset: u64_at(bytes, at),
            length: u64_at(bytes, at + 8),
            crc: u32_at(bytes, at + 16),
        };
        let save = bytes.get(24..40).and_then(|b| b.try_into().ok()).unwrap_or_default();
        let header = Self {
            file_bytes: u64_at(bytes, 16),
            save: Uuid::from_bytes(save),
            metadata: section(40),
            state: section(60),
            memory_offset: u64_at(bytes, 80),
            memory_length: u64_at(bytes, 88),
            table: section(96),
            ram_bytes: u64_at(bytes, 116),
        };
        if actual != header.file_bytes {
            return Err(SaveFileError::Length { wanted: header.file_bytes, actual });
        }
        header.check_layout(u32_at(bytes, 12))?;
        Ok(header)
    }

    /// There is one layout for given lengths; anything else is refused, so that no two sections
    /// overlap and no byte of the file is unaccounted for.
    fn check_layout(&self, header_bytes: u32) -> Result<(), SaveFileError> {
        let bad = |what: &str| SaveFileError::damaged("header", 0, what);
        let end = |s: &Section| s.offset.checked_add(s.length);
        if header_bytes as usize != HEADER_BYTES {
            return Err(bad("it has another length than version 1 has"));
        }
        if self.metadata.length > METADATA_MAX || self.state.length > STATE_MAX {
            return Err(bad("a section is longer than any section may be"));
        }
        if !self.ram_bytes.is_multiple_of(PAGE) || self.ram_bytes > vmm::config::MAX_MEMORY {
            return Err(bad("no guest has memory of that size"));
        }
        let blocks = self.ram_bytes.div_ceil(BLOCK);
        if !self.table.length.is_multiple_of(ENTRY_BYTES)
            || self.table.length / ENTRY_BYTES > blocks
            || !self.memory_length.is_multiple_of(PAGE)
            || self.memory_length > self.ram_bytes
        {
            return Err(bad("it lists more memory than the guest has"));
        }
        let contiguous = self.metadata.offset == HEADER_BYTES as u64
            && end(&self.metadata) == Some(self.state.offset)
            && end(&self.state).map(|e| e.next_multiple_of(PAGE)) == Some(self.memory_offset)
            && self.memory_offset.checked_add(self.memory_length) == Some(self.table.offset)
            && end(&self.table) == Some(self.file_bytes);
        if contiguous { Ok(()) } else { Err(bad("its sections do not fit together")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Header {
        Header {
            file_bytes: 4096 + 8192 + 40,
            save: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            metadata: Section { offset: 128, length: 100, crc: 0x1111_1111 },
            state: Section { offset: 228, length: 50, crc: 0x2222_2222 },
            memory_offset: 4096,
            memory_length: 8192,
            table: Section { offset: 12288, length: 40, crc: 0x3333_3333 },
            ram_bytes: 16 << 20,
        }
    }

    /// Version 1 as it lies in files. It must never change.
    #[test]
    fn golden_bytes() {
        let golden = concat!(
            "894d49475341560a010000008000000028300000000000000102030405060708",
            "090a0b0c0d0e0f108000000000000000640000000000000011111111e4000000",
            "0000000032000000000000002222222200100000000000000020000000000000",
            "00300000000000002800000000000000333333330000000100000000cd8e07c2",
        );
        let parsed: Vec<u8> = (0..256)
            .step_by(2)
            .map(|i| u8::from_str_radix(&golden[i..i + 2], 16).unwrap())
            .collect();
        assert_eq!(example().encode().as_slice(), parsed);
    }

    #[test]
    fn round_trip_and_every_changed_byte() {
        let good = example().encode();
        let length = example().file_bytes;
        assert_eq!(Header::decode(&good, length).unwrap(), example());
        for at in 0..HEADER_BYTES {
            for change in 1..=255 {
                let mut bad = good;
                bad[at] ^= change;
                assert!(Header::decode(&bad, length).is_err(), "byte {at} xor {change:#x}");
            }
        }
    }

    #[test]
    fn versions_are_named() {
        let mut bytes = example().encode();
        bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
        let error = Header::decode(&bytes, 0).unwrap_err();
        assert!(matches!(error, SaveFileError::TooNew { found: 7 }), "{error}");
        bytes[8..12].copy_from_slice(&0u32.to_le_bytes());
        assert!(matches!(Header::decode(&bytes, 0), Err(SaveFileError::TooOld { found: 0 })));
        assert!(matches!(Header::decode(&[0; 128], 128), Err(SaveFileError::NotOurs)));
    }

    /// Correctly checksummed headers that lie.
    #[test]
    fn layouts_that_do_not_fit_are_refused() {
        let lies: [fn(&mut Header); 9] = [
            |h| h.metadata.offset = 129,
            |h| h.state.offset = 0,
            |h| h.metadata.length = u64::MAX,
            |h| h.state.length = STATE_MAX + 1,
            |h| h.memory_offset = 8192,
            |h| h.memory_length = 1 << 40,
            |h| h.table.length = 39,
            |h| h.table.length = 40 << 32,
            |h| h.ram_bytes = !4095,
        ];
        for (i, lie) in lies.iter().enumerate() {
            let mut header = example();
            lie(&mut header);
            assert!(Header::decode(&header.encode(), header.file_bytes).is_err(), "lie {i}");
        }
    }
}
