//! Saved state: a header that can be read on its own, and one frozen tree of plain data for each
//! version. Bytes from outside are untrusted: lengths and checksums come first, then a bounded
//! decode, then a check of every count. It never touches KVM or a file.
//!
//! ```text
//! offset  bytes  field (little endian)
//!      0      8  magic "MIGSTATE"
//!      8      4  version
//!     12      4  zero
//!     16      8  bytes of the payload
//!     24      4  CRC-32 of the payload
//!     28      4  CRC-32 of the 28 bytes before
//!     32         payload: `postcard` of the version's tree
//! ```

pub mod v1;

use v1::MachineState;

use crate::config::MAX_VCPUS;
use crate::memory::layout::VIRTIO_SLOTS;

/// First bytes of a saved state.
pub const MAGIC: [u8; 8] = *b"MIGSTATE";
/// The version that is written.
pub const VERSION: u32 = 1;
/// The oldest version that is read.
pub const OLDEST: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Largest payload: 32 vCPUs with AMX tiles and every device take a small part of it.
pub const MAX_PAYLOAD: u64 = 16 << 20;
/// Most MSRs and CPUID leaves of a vCPU.
const MAX_ENTRIES: usize = 256;

/// Why bytes are not a state that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not a saved state at all.
    #[error("this is not a saved machine state (it does not begin with MIGSTATE)")]
    Magic,
    /// The end is missing, or there is something behind it.
    #[error(
        "the machine state is {found} bytes long but should be {wanted}: the copy is incomplete"
    )]
    Length {
        /// Bytes at hand.
        found: u64,
        /// Bytes that the header tells.
        wanted: u64,
    },
    /// The header is damaged.
    #[error(
        "the header of the machine state is damaged (checksum {found:#010x}, should be {wanted:#010x})"
    )]
    HeaderChecksum {
        /// Computed.
        found: u32,
        /// Recorded.
        wanted: u32,
    },
    /// The payload is damaged.
    #[error("the machine state is damaged (checksum {found:#010x}, should be {wanted:#010x})")]
    Checksum {
        /// Computed.
        found: u32,
        /// Recorded.
        wanted: u32,
    },
    /// From a newer program.
    #[error(
        "the machine state has version {0}, this program reads up to {VERSION}: use a newer one"
    )]
    TooNew(u32),
    /// From a program too old.
    #[error(
        "the machine state has version {0}, this program reads from {OLDEST} on: load it with an older one, and save it again"
    )]
    TooOld(u32),
    /// Larger than any state can be.
    #[error("the machine state claims {0} bytes, more than any machine has")]
    TooLarge(u64),
    /// The payload is not what its version says.
    #[error("the machine state cannot be decoded: {0}")]
    Decode(String),
    /// A count is out of range.
    #[error("the machine state has {found} {what}, at most {limit} are possible")]
    Count {
        /// What is counted.
        what: &'static str,
        /// Found.
        found: usize,
        /// Limit.
        limit: usize,
    },
    /// Two parts of it contradict each other.
    #[error("the machine state contradicts itself: {0}")]
    Inconsistent(String),
}

/// The header, read on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the payload.
    pub version: u32,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Header {
    /// Reads a header from the first [`HEADER_BYTES`] of `bytes`.
    pub fn read(bytes: &[u8]) -> Result<Self, StateError> {
        if bytes.len() < MAGIC.len() || bytes[..MAGIC.len()] != MAGIC {
            return Err(StateError::Magic);
        }
        if bytes.len() < HEADER_BYTES {
            return Err(StateError::Length {
                found: bytes.len() as u64,
                wanted: HEADER_BYTES as u64,
            });
        }
        let (found, wanted) = (crc32fast::hash(&bytes[..28]), le32(bytes, 28));
        if found != wanted {
            return Err(StateError::HeaderChecksum { found, wanted });
        }
        let header = Self {
            version: le32(bytes, 8),
            payload_bytes: le64(bytes, 16),
            payload_crc: le32(bytes, 24),
        };
        match header.version {
            v if v > VERSION => Err(StateError::TooNew(v)),
            v if v < OLDEST => Err(StateError::TooOld(v)),
            _ if header.payload_bytes > MAX_PAYLOAD => {
                Err(StateError::TooLarge(header.payload_bytes))
            }
            _ => Ok(header),
        }
    }

    fn write(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[16..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }
}

/// Encodes a state, header and all.
pub fn encode(state: &MachineState) -> Result<Vec<u8>, StateError> {
    let decode_error = |e: postcard::Error| StateError::Decode(e.to_string());
    let mut out = vec![0; HEADER_BYTES];
    out = postcard::to_extend(state, out).map_err(decode_error)?;
    let payload = &out[HEADER_BYTES..];
    let header = Header {
        version: VERSION,
        payload_bytes: payload.len() as u64,
        payload_crc: crc32fast::hash(payload),
    };
    out[..HEADER_BYTES].copy_from_slice(&header.write());
    Ok(out)
}

/// Decodes and checks a state. Any error leaves nothing behind.
pub fn decode(bytes: &[u8]) -> Result<MachineState, StateError> {
    let header = Header::read(bytes)?;
    let payload = &bytes[HEADER_BYTES..];
    if payload.len() as u64 != header.payload_bytes {
        return Err(StateError::Length {
            found: bytes.len() as u64,
            wanted: header.payload_bytes + HEADER_BYTES as u64,
        });
    }
    let found = crc32fast::hash(payload);
    if found != header.payload_crc {
        return Err(StateError::Checksum { found, wanted: header.payload_crc });
    }
    let (state, rest): (MachineState, &[u8]) =
        postcard::take_from_bytes(payload).map_err(|e| StateError::Decode(why(&e)))?;
    if !rest.is_empty() {
        return Err(StateError::Decode(format!("{} bytes too many", rest.len())));
    }
    check(&state)?;
    Ok(state)
}

/// What a failed decode says.
fn why(error: &postcard::Error) -> String {
    match error {
        // An enum's number that has no meaning.
        postcard::Error::SerdeDeCustom => {
            "a part of it is of a kind that this program does not know".into()
        }
        postcard::Error::DeserializeUnexpectedEnd => "its end is missing".into(),
        other => other.to_string(),
    }
}

/// Checks counts. What a count leaves open is checked by whoever restores that part.
fn check(state: &MachineState) -> Result<(), StateError> {
    let limit = |what, found: usize, limit: usize| {
        if found > limit { Err(StateError::Count { what, found, limit }) } else { Ok(()) }
    };
    limit("vCPUs", state.vcpus.len(), MAX_VCPUS as usize)?;
    limit("virtio devices", state.virtio.len(), VIRTIO_SLOTS)?;
    for vcpu in &state.vcpus {
        limit("MSRs", vcpu.msrs.len(), MAX_ENTRIES)?;
        limit("CPUID leaves", vcpu.cpuid.len(), MAX_ENTRIES)?;
    }
    if state.vcpus.len() != state.shape.vcpus as usize {
        return Err(StateError::Inconsistent(format!(
            "it is of {} vCPUs but holds {}",
            state.shape.vcpus,
            state.vcpus.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
