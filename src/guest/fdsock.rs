//! Descriptors that clients handed over on `fd.sock`, until a request takes them.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use super::peer;
use crate::api::fds::{ACK, TOKEN_MAX, receive_with_fds};

/// Descriptors at a time.
const MOST: usize = 8;
/// A descriptor that no request took is dropped after this.
const KEEP: Duration = Duration::from_mins(1);
/// A client has this long for its one message.
const PATIENCE: Duration = Duration::from_secs(5);

/// The descriptors. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Descriptors(Arc<Mutex<HashMap<String, (OwnedFd, Instant)>>>);

impl Descriptors {
    /// Takes the descriptor that came under `token`.
    pub fn take(&self, token: &str) -> Option<OwnedFd> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(token).map(|(fd, _)| fd)
    }

    /// Keeps a descriptor; `false` if there is no room.
    fn keep(&self, token: String, fd: OwnedFd) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, (_, since)| since.elapsed() < KEEP);
        if held.len() >= MOST && !held.contains_key(&token) {
            return false;
        }
        held.insert(token, (fd, Instant::now()));
        true
    }

    /// Serves `fd.sock` for ever.
    pub async fn serve(self, listener: UnixListener) {
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                // Out of descriptors, most likely: give others time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let held = self.clone();
            tokio::spawn(async move {
                let served = tokio::time::timeout(PATIENCE, held.serve_one(socket)).await;
                if !matches!(served, Ok(Ok(()))) {
                    tracing::warn!("a client of fd.sock was refused or gave up");
                }
            });
        }
    }

    async fn serve_one(&self, mut socket: UnixStream) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::PermissionDenied);
        if !peer::may_command(&socket) {
            return Err(refused());
        }
        let mut token = [0; TOKEN_MAX];
        let (length, fds) =
            socket.async_io(Interest::READABLE, || receive_with_fds(&socket, &mut token)).await?;
        let token = token.get(..length).and_then(|t| std::str::from_utf8(t).ok());
        let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| refused())?;
        match token {
            Some(token) if !token.is_empty() && self.keep(token.to_owned(), fd) => {
                socket.write_all(&[ACK]).await
            }
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn there_is_room_for_a_few() {
        let held = Descriptors::default();
        let fd = || OwnedFd::from(tempfile::tempfile().unwrap());
        for i in 0..MOST {
            assert!(held.keep(i.to_string(), fd()));
        }
        assert!(!held.keep("more".into(), fd()));
        assert!(held.keep("0".into(), fd()));
        assert!(held.take("3").is_some());
        assert!(held.take("3").is_none());
        assert!(held.keep("more".into(), fd()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_hands_over_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fd.sock");
        let held = Descriptors::default();
        let server = tokio::spawn(held.clone().serve(UnixListener::bind(&path).unwrap()));
        let sent = std::thread::spawn(move || {
            let file = tempfile::tempfile().unwrap();
            crate::api::fds::hand_over_fd(&path, "token", file.as_fd())
        });
        while !sent.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sent.join().unwrap().unwrap();
        assert!(held.take("token").is_some());
        server.abort();
    }
}
