//! What the commands need of the daemon's own code: its service, and the files of an identity.

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::args::DaemonArgs;
use super::args::host::{InitArgs, JoinArgs};
use super::{Done, OK, Session};
use crate::api::{ErrorCode, Failure};
use crate::daemon::{self, joining};

/// This host's identity, as it was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Made {
    /// Version of this document.
    pub schema: u32,
    /// Name of this host in its site.
    pub name: String,
    /// It is the site's CA.
    pub ca: bool,
}

/// `daemon`
pub fn daemon(session: &Session, args: &DaemonArgs) -> Done {
    if args.end_with_parent {
        let bound = prctl::set_pdeathsig(Signal::SIGTERM);
        bound.map_err(|e| {
            Failure::new(
                ErrorCode::Unexpected,
                format!("cannot follow the caller: {e}"),
                "try again",
            )
        })?;
    }
    daemon::run(&session.dirs)?;
    Ok(OK)
}

/// `host init`
pub fn init(session: &Session, args: &InitArgs) -> Result<Made, Failure> {
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).map_err(|e| {
            let message = format!("cannot read {}: {e}", path.display());
            Failure::new(ErrorCode::File, message, "give a file in PEM format")
        })
    };
    let ca = match (&args.ca_cert, &args.ca_key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        _ => None,
    };
    let name = joining::init(&session.dirs, args.name.as_deref(), ca)?;
    Ok(Made { schema: 1, name: name.to_string(), ca: true })
}

/// `host join`
pub fn join(session: &Session, args: &JoinArgs) -> Result<Made, Failure> {
    let name = joining::join(&session.dirs, &args.invitation, args.name.as_deref())?;
    Ok(Made { schema: 1, name: name.to_string(), ca: false })
}
