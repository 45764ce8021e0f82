//! Invitations on the CA's host: made, kept without their secrets, used up by one host each.

use std::time::Duration;

use migrate_engine::transport::identity::invitation::{InvitationError, Offer, Secret};
use migrate_engine::transport::identity::renewal::BACKDATED;
use migrate_engine::transport::identity::{HostName, Invitation, Moment};

use super::{Files, bad, now};
use crate::api::{ErrorCode, Failure};

/// Most invitations that are open at a time.
const INVITATIONS: usize = 64;
/// An invitation that has run out is remembered for this long, to be named as such.
const REMEMBERED: Duration = Duration::from_hours(24);

impl Files {
    /// Makes an invitation to `address`, good for `valid`.
    ///
    /// # Errors
    /// This host is not the CA's; the address is none.
    pub fn invite(&self, address: &str, valid: Duration) -> Result<(Invitation, Moment), Failure> {
        let authority = self.authority()?.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoIdentity,
                "only the host that has the site's CA can invite",
                "make the invitation there, or a new site here: migrate host init",
            )
        })?;
        let usage = |e: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::Usage, e.to_string(), "give it: --address HOST:PORT")
        };
        let expires = now().plus(valid);
        let secret = Secret::generate().map_err(|e| bad(&e))?;
        let invitation = Invitation::new(address, authority.fingerprint(), secret, expires)
            .map_err(|e| usage(&e))?;
        let mut open = self.offers()?;
        if open.iter().filter(|offer| !offer.is_over(now())).count() >= INVITATIONS {
            let message = format!("{INVITATIONS} invitations are open, which is all there may be");
            return Err(Failure::new(ErrorCode::Busy, message, "use them, or wait for their end"));
        }
        open.push(invitation.offer());
        Self::write(&self.state.join("invitations.json"), &open)?;
        Ok((invitation, expires))
    }

    fn offers(&self) -> Result<Vec<Offer>, Failure> {
        let mut all: Vec<Offer> = Self::read(&self.state.join("invitations.json"))?;
        all.retain(|offer| !offer.is_over(now().minus(REMEMBERED)));
        Ok(all)
    }

    /// Signs the certificate of a host that knows the `secret` of an open invitation, which is
    /// used up by it. Also answers when its certificate counts as signed.
    ///
    /// # Errors
    /// No such invitation, or a request for something else.
    pub fn redeem(
        &self,
        secret: &Secret,
        name: &HostName,
        request: &str,
    ) -> Result<(String, Moment), Failure> {
        let mut open = self.offers()?;
        let refused = |e: &dyn std::fmt::Display| {
            Failure::new(
                ErrorCode::HostRefused,
                e.to_string(),
                "make a new one: migrate host invite",
            )
        };
        let mut last = None;
        let found = open.iter().position(|offer| match offer.redeem(secret, now()) {
            Ok(()) => true,
            Err(InvitationError::Unknown) => false,
            Err(e) => {
                last = Some(e);
                false
            }
        });
        let Some(at) = found else {
            return Err(refused(&last.unwrap_or(InvitationError::Unknown)));
        };
        let admitted = self.admit(name, request)?;
        open.remove(at);
        Self::write(&self.state.join("invitations.json"), &open)?;
        Ok(admitted)
    }

    /// Signs the certificate of a host that joins: later than it was removed, if it was.
    fn admit(&self, name: &HostName, request: &str) -> Result<(String, Moment), Failure> {
        let removed = self.roster()?.removed(name);
        let after = removed.map_or(now(), |at| now().max(Moment(at.0.saturating_add(1))));
        if after.since(now()) > BACKDATED {
            return Err(Failure::new(
                ErrorCode::HostRefused,
                format!("'{name}' was removed on {after}, which is to come"),
                "set the clock of the CA's host: timedatectl",
            ));
        }
        Ok((self.sign_at(name, request, after)?, after))
    }
}
