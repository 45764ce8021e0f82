//! The socket of systemd's journal, which takes fields that one can search by. Each write is one
//! entry. A journal that does not take it in time loses it: nobody waits for his own log.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Where it is.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Time for an entry to be taken.
const PATIENCE: Duration = Duration::from_millis(100);

/// The journal.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// Opens it.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }
}

/// Hands one entry over.
#[derive(Debug)]
pub struct Entry<'a>(&'a UnixDatagram);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry(&self.0)
    }
}

impl Write for Entry<'_> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0.send(entry)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_datagram_and_a_full_journal_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(Journal::open(&path).is_err());
        let reader = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path).unwrap();
        journal.make_writer().write_all(b"MESSAGE=a\nMOVE=b\n").unwrap();
        let mut bytes = [0; 100];
        let len = reader.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"MESSAGE=a\nMOVE=b\n");
        // Nobody reads: some are taken, and then there is an error and not a wait.
        let failed = (0..100_000).find_map(|_| journal.make_writer().write_all(b"x").err());
        assert_eq!(failed.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
