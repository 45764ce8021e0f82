//! The daemon's socket: who may connect.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use crate::api::{ErrorCode, Failure};
use crate::config::SOCKET_PATH_MAX;
use crate::guest::peer;

/// Group whose members may use the system instance: they are as good as root.
const GROUP: &str = "migrate";

/// The socket, bound.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Members of the group may connect, as the socket's mode says.
    group: bool,
}

/// Binds the socket at `path`, whose lock we hold: 0660 for the group `migrate` in the system
/// instance if that group exists, else 0600.
///
/// # Errors
/// `file` if that fails.
pub fn bind(path: &Path, system: bool) -> Result<Listener, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::new(
            ErrorCode::File,
            format!("cannot make the daemon's socket {}: {e}", path.display()),
            "check the runtime directory: migrate help files",
        )
    };
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(failed(&format!("its path has {length} bytes, at most {SOCKET_PATH_MAX}")));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(&e)),
        _ => {}
    }
    let group = if system { nix::unistd::Group::from_name(GROUP).ok().flatten() } else { None };
    let made = || {
        // Nobody gets in before the mode is right.
        let beside = path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let socket = UnixListener::bind(&beside)?;
        let mode = if let Some(group) = &group {
            nix::unistd::chown(&beside, None, Some(group.gid))?;
            // The directory is the owner's; the group must reach the socket in it.
            if let Some(parent) = path.parent() {
                nix::unistd::chown(parent, None, Some(group.gid))?;
                fs::set_permissions(parent, Permissions::from_mode(0o710))?;
            }
            0o660
        } else {
            0o600
        };
        fs::set_permissions(&beside, Permissions::from_mode(mode))?;
        fs::rename(&beside, path)?;
        Ok::<_, io::Error>(socket)
    };
    let socket = made().map_err(|e| failed(&e))?;
    Ok(Listener { socket, group: group.is_some() })
}

impl axum::serve::Listener for Listener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                // The kernel has checked the mode already: whoever comes through may.
                Ok((socket, address)) if self.group || peer::may_command(&socket) => {
                    return (socket, address);
                }
                Ok(_) => tracing::warn!("another user's connection to the daemon was refused"),
                Err(error) => {
                    tracing::warn!(%error, "the daemon cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
