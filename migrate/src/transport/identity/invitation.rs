//! Invitations: one line to paste on the host that is to join.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | version: 1 |
//! | 8 | last second (Unix, little-endian) |
//! | 16 | first half of the SHA-256 of the CA's certificate |
//! | 16 | one-time secret |
//! | … | address, `HOST:PORT` in ASCII |
//! | 4 | CRC-32 of all before (little-endian) |
//!
//! The text is `migrate-` and these bytes in base 32. The CRC finds every slip of up to four
//! neighbouring characters and all but one in four thousand million of the others; it protects
//! against typing, not against anybody.
//!
//! The CA's fingerprint makes the joining host sure whom it talks to before it says the secret,
//! and the secret makes the CA's host sure that it may sign. The CA's side keeps an [`Offer`],
//! which has only the secret's hash, and deletes it with the first success.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Fingerprint, IdentityError, Moment, base32};

const PREFIX: &str = "migrate-";
const VERSION: u8 = 1;
const FIXED: usize = 1 + 8 + 16 + 16;
const CHECK: usize = 4;
const ADDRESS_LIMIT: usize = 200;

/// The first half of a CA certificate's fingerprint: nobody can make a second certificate for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthorityPrint([u8; 16]);

impl AuthorityPrint {
    /// Whether a certificate in DER is the one meant.
    pub fn matches(&self, der: &[u8]) -> bool {
        Self::from(Fingerprint::of(der)) == *self
    }
}

impl From<Fingerprint> for AuthorityPrint {
    fn from(fingerprint: Fingerprint) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&fingerprint.0[..16]);
        Self(half)
    }
}

/// The one-time secret of an invitation. Does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// Takes a secret from the operating system.
    ///
    /// # Errors
    /// There is no randomness to be had.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut secret = [0; 16];
        rand::fill(&mut secret).map_err(|_| IdentityError::Make {
            what: "a secret",
            detail: "the operating system gives no randomness".into(),
        })?;
        Ok(Self(secret))
    }

    /// The secret, to be sent over a connection whose other end is proved to be the CA's host.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }
}

impl From<[u8; 16]> for Secret {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An invitation, as the joining host has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    address: String,
    authority: AuthorityPrint,
    secret: Secret,
    expires: Moment,
}

/// Why a line is not an invitation, or not one any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvitationError {
    /// It does not look like one.
    #[error("this is not an invitation: it begins with `{PREFIX}` and comes from `migrate host invite`")]
    NotOne,
    /// Damaged on the way.
    #[error("the invitation is damaged: a character is missing or wrong; copy the whole line again")]
    Damaged,
    /// From another version.
    #[error("the invitation has version {0}, this program knows {VERSION}: use the same release of migrate on both hosts")]
    Version(u8),
    /// The address in it cannot be one.
    #[error("the address `{0}` is not HOST:PORT")]
    Address(String),
    /// Too late.
    #[error("the invitation ran out on {expires}, and this host's clock says {now}: make a new one with `migrate host invite`, or set the clock")]
    Expired {
        /// Its last second.
        expires: Moment,
        /// The clock of the host that checked it.
        now: Moment,
    },
    /// The secret is not that of any open invitation.
    #[error("the invitation is not known here, or was used already: make a new one with `migrate host invite`")]
    Unknown,
}

impl Invitation {
    /// An invitation to the CA's host at `address` (`HOST:PORT`).
    ///
    /// # Errors
    /// The address is not `HOST:PORT`.
    pub fn new(
        address: &str,
        authority: Fingerprint,
        secret: Secret,
        expires: Moment,
    ) -> Result<Self, InvitationError> {
        check_address(address)?;
        let address = address.to_owned();
        Ok(Self { address, authority: authority.into(), secret, expires })
    }

    /// Where to connect: `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which CA must be there.
    pub fn authority(&self) -> AuthorityPrint {
        self.authority
    }

    /// What to say there.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Checks the time, before anything is connected.
    ///
    /// # Errors
    /// It has run out.
    pub fn check_time(&self, now: Moment) -> Result<(), InvitationError> {
        let expires = self.expires;
        if now > expires { Err(InvitationError::Expired { expires, now }) } else { Ok(()) }
    }

    /// What the CA's host keeps of it.
    pub fn offer(&self) -> Offer {
        Offer { secret_hash: hash(&self.secret), expires: self.expires }
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.extend(self.expires.0.to_le_bytes());
        bytes.extend(self.authority.0);
        bytes.extend(self.secret.0);
        bytes.extend(self.address.as_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", base32::encode(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(line: &str) -> Result<Self, InvitationError> {
        let text = line.trim().strip_prefix(PREFIX).ok_or(InvitationError::NotOne)?;
        if text.len() > (FIXED + ADDRESS_LIMIT + CHECK).div_ceil(5) * 8 {
            return Err(InvitationError::Damaged);
        }
        let bytes = base32::decode(text).ok_or(InvitationError::Damaged)?;
        let (body, check) = bytes.split_last_chunk::<CHECK>().ok_or(InvitationError::Damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*check) {
            return Err(InvitationError::Damaged);
        }
        let (version, body) = body.split_first().ok_or(InvitationError::Damaged)?;
        if *version != VERSION {
            return Err(InvitationError::Version(*version));
        }
        let (expires, body) = body.split_first_chunk::<8>().ok_or(InvitationError::Damaged)?;
        let (authority, body) = body.split_first_chunk::<16>().ok_or(InvitationError::Damaged)?;
        let (secret, address) = body.split_first_chunk::<16>().ok_or(InvitationError::Damaged)?;
        let address = std::str::from_utf8(address).map_err(|_| InvitationError::Damaged)?;
        check_address(address)?;
        Ok(Self {
            address: address.to_owned(),
            authority: AuthorityPrint(*authority),
            secret: Secret(*secret),
            expires: Moment(u64::from_le_bytes(*expires)),
        })
    }
}

/// An open invitation on the CA's side. Whoever reads it cannot use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    secret_hash: Fingerprint,
    expires: Moment,
}

impl Offer {
    /// Whether `secret` redeems this offer at `now`. One that did must be deleted at once.
    ///
    /// # Errors
    /// Another secret, or too late.
    pub fn redeem(&self, secret: &Secret, now: Moment) -> Result<(), InvitationError> {
        let same = constant_time::verify_slices_are_equal(&hash(secret).0, &self.secret_hash.0);
        same.map_err(|_| InvitationError::Unknown)?;
        let expires = self.expires;
        if now > expires { Err(InvitationError::Expired { expires, now }) } else { Ok(()) }
    }

    /// Whether nobody can redeem it any more.
    pub fn is_over(&self, now: Moment) -> bool {
        now > self.expires
    }
}

fn hash(secret: &Secret) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"migrate invitation secret v1\0");
    context.update(&secret.0);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    Fingerprint(out)
}

fn check_address(address: &str) -> Result<(), InvitationError> {
    let bad = || InvitationError::Address(address.chars().flat_map(char::escape_default).collect());
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]%_".contains(&b));
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() || !plain || port == 0 || address.len() > ADDRESS_LIMIT {
        return Err(bad());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXPIRES: Moment = Moment(1_800_000_000);

    fn invitation(address: &str) -> Invitation {
        let secret = Secret::from(*b"0123456789abcdef");
        Invitation::new(address, Fingerprint([7; 32]), secret, EXPIRES).unwrap()
    }

    #[test]
    fn golden_line() {
        let line = invitation("192.0.2.1:4433").to_string();
        // Version 1; computed with an independent program (Python's base64, zlib).
        assert_eq!(line, GOLDEN);
        assert_eq!(line.parse(), Ok(invitation("192.0.2.1:4433")));
    }

    const GOLDEN: &str = concat!(
        "migrate-aeanesllaaaaaaaha4dqobyha4dqobyha4dqobyhgaytemzugu3d",
        "oobzmfrggzdfmyytsmrogaxdelrrhi2dimztg6f4u5i"
    );

    #[test]
    fn redeemed_with_the_right_secret_in_time() {
        let offer = invitation("h:1").offer();
        let secret = Secret::from(*b"0123456789abcdef");
        assert_eq!(offer.redeem(&secret, EXPIRES), Ok(()));
        let late = Moment(EXPIRES.0 + 1);
        assert!(matches!(offer.redeem(&secret, late), Err(InvitationError::Expired { .. })));
        let other = Secret::from(*b"0123456789abcdeg");
        assert_eq!(offer.redeem(&other, EXPIRES), Err(InvitationError::Unknown));
        assert!(!serde_json::to_string(&offer).unwrap().contains("0123456789abcdef"));
        assert!(!format!("{:?}", invitation("h:1")).contains("48, 49"));
    }

    #[test]
    fn addresses() {
        for good in ["host1:4433", "192.0.2.1:1", "[2001:db8::1]:65535", "a.b-c.example:443"] {
            assert_eq!(invitation(good).to_string().parse(), Ok(invitation(good)));
        }
        for bad in ["", "host1", "host1:", ":1", "host1:0", "h:65536", "a b:1", "h\n:1", "ü:1"] {
            let secret = Secret::from([0; 16]);
            assert!(Invitation::new(bad, Fingerprint([0; 32]), secret, EXPIRES).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_slip_of_one_character_is_found(at in 0usize..70, with in "[a-z2-7]") {
            let line = invitation("host1.example:4433").to_string();
            let at = PREFIX.len() + at;
            let mut typo = line.clone();
            typo.replace_range(at..=at, &with);
            prop_assert_eq!(typo == line, typo.parse::<Invitation>().is_ok());
            let mut lost = line.clone();
            lost.remove(at);
            prop_assert!(lost.parse::<Invitation>().is_err());
            let swapped: String =
                [&line[..at], &line[at + 1..at + 2], &line[at..=at], &line[at + 2..]].concat();
            prop_assert_eq!(swapped == line, swapped.parse::<Invitation>().is_ok());
        }

        #[test]
        fn no_line_panics(line in "\\PC{0,300}", tail in "[a-z2-7]{0,300}") {
            let _ = line.parse::<Invitation>();
            let _ = format!("migrate-{tail}").parse::<Invitation>();
        }

        #[test]
        fn no_bytes_with_a_right_checksum_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            let _ = format!("migrate-{}", base32::encode(&bytes)).parse::<Invitation>();
        }
    }
}
