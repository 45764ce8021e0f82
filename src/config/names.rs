//! Names of guests and MAC addresses: how they are written, checked and made up.

use uuid::Uuid;

/// Longest name of a guest.
pub const NAME_MAX: usize = 63;

/// Checks a guest's name: `[a-z0-9][a-z0-9.-]{0,62}`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let rest_ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'.' || c == b'-';
    let first_ok =
        name.bytes().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if first_ok && name.len() <= NAME_MAX && name.bytes().all(rest_ok) {
        return Ok(());
    }
    Err(format!(
        "'{name}' is not a guest name: use 1 to {NAME_MAX} of a-z, 0-9, '.' and '-', beginning \
         with a letter or digit"
    ))
}

/// [`check_name`] in the form that clap wants.
///
/// # Errors
/// See [`check_name`].
pub fn parse_name(name: &str) -> Result<String, String> {
    check_name(name).map(|()| name.to_owned())
}

/// A name for a guest whose user gave none, such as `scribbler-3f2a`.
pub fn generate_name(kind: &str) -> String {
    let [a, b, ..] = *Uuid::new_v4().as_bytes();
    format!("{kind}-{a:02x}{b:02x}")
}

/// Parses a MAC address written as `52:54:00:12:34:56`.
///
/// # Errors
/// A sentence, for anything else and for a multicast or zero address.
pub fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bad = || format!("'{text}' is not a MAC address: write for example 52:54:00:12:34:56");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().ok_or_else(bad)?;
        if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(bad());
        }
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() {
        return Err(bad());
    }
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!(
            "'{text}' cannot be the address of an interface (it is {}): its first byte must be \
             even, for example 52:54:00:12:34:56",
            if mac[0] & 1 != 0 { "a group address" } else { "zero" }
        ));
    }
    Ok(mac)
}

/// Writes a MAC address as [`parse_mac`] reads it.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A locally administered address with the prefix `52:54:00`.
pub fn generate_mac() -> [u8; 6] {
    let [a, b, c, ..] = *Uuid::new_v4().as_bytes();
    [0x52, 0x54, 0, a, b, c]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for good in ["a", "0", "web.1-x", &"a".repeat(63), "scribbler-3f2a"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", ".", "..", "-a", ".a", "A", "a/b", "a b", "a_b", "ä", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name(&generate_name("scribbler")).unwrap();
    }

    #[test]
    fn macs() {
        assert_eq!(parse_mac("52:54:00:aB:01:ff"), Ok([0x52, 0x54, 0, 0xab, 1, 0xff]));
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5", "+1:00:00:00:00:00"]
        {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert!(parse_mac("01:00:5e:00:00:01").unwrap_err().contains("group"));
        assert!(parse_mac("00:00:00:00:00:00").unwrap_err().contains("zero"));
        assert_eq!(generate_mac()[..3], [0x52, 0x54, 0]);
    }

    proptest! {
        #[test]
        fn mac_text_round_trips(mut mac: [u8; 6]) {
            mac[0] &= 0xfe;
            mac[5] |= 1;
            prop_assert_eq!(parse_mac(&format_mac(mac)), Ok(mac));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = (check_name(&text), parse_mac(&text));
        }
    }
}
