//! What the commands need of the daemon's own code: its service, and the files of an identity.

use super::args::DaemonArgs;
use super::args::host::{InitArgs, JoinArgs};
use super::{Done, Session};
use crate::api::{ErrorCode, Failure};

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

fn absent() -> Failure {
    Failure::new(ErrorCode::Unexpected, "this program was built without its daemon", "")
}

/// `daemon`
pub fn daemon(_session: &Session, _args: &DaemonArgs) -> Done {
    Err(absent())
}

/// `host init`
pub fn init(_session: &Session, _args: &InitArgs) -> Result<Made, Failure> {
    Err(absent())
}

/// `host join`
pub fn join(_session: &Session, _args: &JoinArgs) -> Result<Made, Failure> {
    Err(absent())
}
