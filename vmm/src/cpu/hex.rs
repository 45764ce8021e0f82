//! Numbers in files as people write them: `"0x0000000d"`. Read back in any length.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

fn parse<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let digits = text.strip_prefix("0x").filter(|d| !d.starts_with('+'));
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| D::Error::custom(format!("'{text}' is not a number like 0x1f")))
}

fn parse_word<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let number = parse(from)?;
    u32::try_from(number).map_err(|_| D::Error::custom(format!("{number:#x} has over 32 bits")))
}

/// 32 bits, as long as needed.
pub mod short {
    use super::{Deserializer, Serializer};

    /// Writes one.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    pub fn serialize<S: Serializer>(number: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:#x}"))
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        super::parse_word(from)
    }
}

/// 32 bits in full.
pub mod word {
    use super::{Deserializer, Serializer};

    /// Writes one.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    pub fn serialize<S: Serializer>(number: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:#010x}"))
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        super::parse_word(from)
    }
}

/// 64 bits in full.
pub mod long {
    use super::{Deserializer, Serializer};

    /// Writes one.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    pub fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:#018x}"))
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::parse(from)
    }
}
