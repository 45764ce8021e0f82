//! When to renew a certificate.

use std::time::Duration;

use super::Moment;

/// How long a host's certificate is valid.
pub const HOST_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// How long a site's own CA is valid.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Certificates are valid from this long before they are made: clocks of one site differ a bit.
pub const BACKDATED: Duration = Duration::from_hours(1);

/// What to do about a certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before this moment.
    At(Moment),
    /// Renew now: two thirds of its life are over.
    Now,
    /// It has run out. A peer will refuse it: the host must join again.
    TooLate,
    /// It is not valid yet: this host's clock, or that of the CA when it signed, is wrong.
    ClockWrong,
}

/// Whether a certificate valid in `not_before ..= not_after` is to be renewed at `now`.
pub fn decide(not_before: Moment, not_after: Moment, now: Moment) -> Renewal {
    let due = Moment(not_before.0.saturating_add(not_after.since(not_before).as_secs() / 3 * 2));
    match now {
        _ if now < not_before => Renewal::ClockWrong,
        _ if now > not_after => Renewal::TooLate,
        _ if now >= due => Renewal::Now,
        _ => Renewal::At(due),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewed_after_two_thirds() {
        let decide = |now| decide(Moment(1000), Moment(4000), Moment(now));
        assert_eq!(decide(999), Renewal::ClockWrong);
        assert_eq!(decide(1000), Renewal::At(Moment(3000)));
        assert_eq!(decide(2999), Renewal::At(Moment(3000)));
        assert_eq!(decide(3000), Renewal::Now);
        assert_eq!(decide(4000), Renewal::Now);
        assert_eq!(decide(4001), Renewal::TooLate);
    }
}
