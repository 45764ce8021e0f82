//! What the commands need of the daemon's own code: its service, and the files of an identity.

use super::args::DaemonArgs;
use super::args::host::{InitArgs, JoinArgs};
use super::{Done, OK, Session};
use crate::api::Failure;
pub use crate::daemon::identity::Made;
use crate::daemon::identity::{self, OwnAuthority};

/// `daemon`
pub fn daemon(session: &Session, args: &DaemonArgs) -> Done {
    let options = crate::daemon::Options { end_with_parent: args.end_with_parent };
    crate::daemon::run(&session.dirs, &options)?;
    Ok(OK)
}

/// `host init`
pub fn init(session: &Session, args: &InitArgs) -> Result<Made, Failure> {
    let own = args.ca_cert.as_deref().zip(args.ca_key.as_deref());
    let own = own.map(|(certificate, key)| OwnAuthority { certificate, key });
    identity::init(&session.dirs, args.name.as_deref(), own)
}

/// `host join`
pub fn join(session: &Session, args: &JoinArgs) -> Result<Made, Failure> {
    identity::join(&session.dirs, &args.invitation, args.name.as_deref())
}
