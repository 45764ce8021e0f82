//! The conversation between the command that starts a guest and the new guest process.
//!
//! * The standard input of the new process is one end of a Unix stream socket pair, made by the
//!   process that starts it. Over it comes one message: the length of a JSON document (`u32`,
//!   little endian), the document ([`LaunchSpec`]), and with the first byte the descriptors that
//!   the document calls for, in this order: console output if `stdio_console`, then the saved
//!   file, open for reading, if `load` is there, then a tap for each interface of the definition
//!   that is in a bridge, in their order. Nothing else is ever sent.
//! * The new process answers on its standard output with one line of JSON, a [`LaunchReply`], and
//!   closes standard output. End of file without a line means that it died; the reason, if any,
//!   is on its standard error.
//! * With `die_with_parent` the process that made the socket pair must be the direct parent of
//!   the guest process: its end is the guest's end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::fds::{receive_with_fds, send_with_fds};
use super::{LaunchReply, LaunchSpec};

/// Longest accepted document, in bytes.
pub const SPEC_MAX: usize = 1 << 20;
/// Longest accepted answer, in bytes.
pub const REPLY_MAX: u64 = 4 << 20;

/// Why a launch message could not be sent or read.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The socket or pipe failed.
    #[error("the connection between the command and the guest process failed: {0}")]
    Io(#[from] io::Error),
    /// The document is not what was expected.
    #[error("the launch document is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// The document is too long.
    #[error("the launch document has {0} bytes; at most {SPEC_MAX} are accepted")]
    TooLong(u64),
    /// The descriptors do not fit the document.
    #[error("{got} descriptors came with the launch document, which calls for {wanted}")]
    Descriptors {
        /// As many came.
        got: usize,
        /// As many the document calls for.
        wanted: usize,
    },
    /// The other side ended before it said all.
    #[error("the other process ended in the middle of the launch message")]
    Ended,
}

/// The descriptors of a launch, borrowed by the sender.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaunchFds<'a> {
    /// Where console output goes as well; there if `stdio_console`.
    pub console: Option<BorrowedFd<'a>>,
    /// The saved file, open for reading, at its beginning; there if `load` is.
    pub load: Option<BorrowedFd<'a>>,
    /// Taps that were made for this launch, attached; one for each such interface.
    pub taps: &'a [OwnedFd],
}

/// The descriptors of a launch, owned by the receiver.
#[derive(Debug, Default)]
pub struct ReceivedFds {
    /// See [`LaunchFds::console`].
    pub console: Option<OwnedFd>,
    /// See [`LaunchFds::load`].
    pub load: Option<OwnedFd>,
    /// See [`LaunchFds::taps`].
    pub taps: Vec<OwnedFd>,
}

/// Sends `spec` and the descriptors that it calls for.
///
/// # Errors
/// [`LaunchError::Descriptors`] if `fds` does not fit `spec`; what the socket says.
pub fn send_launch(
    socket: &UnixStream,
    spec: &LaunchSpec,
    fds: LaunchFds<'_>,
) -> Result<(), LaunchError> {
    let fits = fds.console.is_some() == spec.stdio_console
        && fds.load.is_some() == spec.load.is_some()
        && fds.taps.len() == taps(spec);
    let single = [fds.console, fds.load].into_iter().flatten();
    let order: Vec<BorrowedFd<'_>> = single.chain(fds.taps.iter().map(AsFd::as_fd)).collect();
    if !fits {
        let got = order.len();
        return Err(LaunchError::Descriptors { got, wanted: wanted(spec) });
    }
    let json = serde_json::to_vec(spec)?;
    let too_long = LaunchError::TooLong(json.len() as u64);
    if json.len() > SPEC_MAX {
        return Err(too_long);
    }
    let mut bytes = u32::try_from(json.len()).map_err(|_| too_long)?.to_le_bytes().to_vec();
    bytes.extend_from_slice(&json);
    Ok(send_with_fds(socket, &bytes, &order)?)
}

/// Receives what [`send_launch`] sent.
///
/// # Errors
/// [`LaunchError`]; nothing is allocated for a length that was not checked.
pub fn receive_launch(socket: &UnixStream) -> Result<(LaunchSpec, ReceivedFds), LaunchError> {
    let mut length = [0; 4];
    let (n, fds) = receive_with_fds(&socket, &mut length)?;
    if n == 0 {
        return Err(LaunchError::Ended);
    }
    read_exact(socket, length.get_mut(n..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > SPEC_MAX {
        return Err(LaunchError::TooLong(length as u64));
    }
    let mut json = vec![0; length];
    read_exact(socket, &mut json)?;
    let spec: LaunchSpec = serde_json::from_slice(&json)?;
    let (got, wanted) = (fds.len(), wanted(&spec));
    if got != wanted {
        return Err(LaunchError::Descriptors { got, wanted });
    }
    let mut fds = fds.into_iter();
    let console = if spec.stdio_console { fds.next() } else { None };
    let load = if spec.load.is_some() { fds.next() } else { None };
    Ok((spec, ReceivedFds { console, load, taps: fds.collect() }))
}

/// Writes the answer of a new guest process as one line.
///
/// # Errors
/// What `output` says.
pub fn send_reply(mut output: impl Write, reply: &LaunchReply) -> Result<(), LaunchError> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    output.write_all(&line)?;
    Ok(output.flush()?)
}

/// Reads the answer of a new guest process.
///
/// # Errors
/// [`LaunchError::Ended`] if there is no whole line; what `input` says.
pub fn receive_reply(input: impl Read) -> Result<LaunchReply, LaunchError> {
    let mut line = Vec::new();
    BufReader::new(input.take(REPLY_MAX)).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(serde_json::from_slice(&line)?),
        _ => Err(LaunchError::Ended),
    }
}

fn wanted(spec: &LaunchSpec) -> usize {
    usize::from(spec.stdio_console) + usize::from(spec.load.is_some()) + taps(spec)
}

fn taps(spec: &LaunchSpec) -> usize {
    spec.definition.nets.iter().filter(|net| net.link.is_made()).count()
}

fn read_exact(mut socket: &UnixStream, buffer: &mut [u8]) -> Result<(), LaunchError> {
    socket.read_exact(buffer).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => LaunchError::Ended,
        _ => e.into(),
    })
}

/// Borrows what [`ReceivedFds`] owns.
impl ReceivedFds {
    /// The same descriptors, borrowed.
    pub fn borrow(&self) -> LaunchFds<'_> {
        LaunchFds {
            console: self.console.as_ref().map(AsFd::as_fd),
            load: self.load.as_ref().map(AsFd::as_fd),
            taps: &self.taps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ClockChoice, ErrorBody, ErrorCode, LoadSpec};
    use crate::config::{Dirs, GuestDefinition, NetDefinition, NetLink, OnCrash, OnHostStop};
    use std::fs::File;

    fn spec(console: bool, load: bool) -> LaunchSpec {
        LaunchSpec {
            definition: GuestDefinition {
                name: "one".into(),
                uuid: uuid::Uuid::from_u128(7),
                memory_bytes: 16 << 20,
                huge_pages: false,
                cpus: 1,
                cpu_template: "host".into(),
                cpu: None,
                dirty_ring: false,
                kernel: None,
                initrd: None,
                cmdline: "x".repeat(300_000),
                guest: Some("scribbler:".into()),
                acpi: true,
                disks: vec![],
                nets: vec![],
                virtio_console: false,
                rng: false,
                vsock_cid: None,
                console_file: None,
                on_crash: OnCrash::Stop,
                on_host_stop: OnHostStop::Shutdown,
            },
            dirs: Dirs { config: "/c".into(), run: "/r".into(), state: "/s".into() },
            load: load.then_some(LoadSpec { clone: false, clock: ClockChoice::Auto }),
            die_with_parent: false,
            stdio_console: console,
            start_paused: false,
            receive: None,
        }
    }

    /// With one interface whose tap is passed and one whose tap is there.
    fn netted(console: bool, load: bool) -> LaunchSpec {
        let mut spec = spec(console, load);
        for link in [NetLink::Tap("t".into()), NetLink::Bridge("b".into())] {
            spec.definition.nets.push(NetDefinition { link, mac: [2; 6], mtu: None });
        }
        spec
    }

    fn marked(mark: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(mark.as_bytes()).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn mark(fd: Option<OwnedFd>) -> Option<String> {
        fd.map(|fd| io::read_to_string(File::from(fd)).unwrap())
    }

    #[test]
    fn every_combination_of_descriptors_arrives_in_its_place() {
        for (console, load) in [(false, false), (true, false), (false, true), (true, true)] {
            let (a, b) = UnixStream::pair().unwrap();
            let sent = netted(console, load);
            let sender = std::thread::spawn(move || {
                let (c, l) = (marked("console"), marked("load"));
                let fds = LaunchFds {
                    console: console.then(|| c.as_fd()),
                    load: load.then(|| l.as_fd()),
                    taps: &[marked("tap").into()],
                };
                send_launch(&a, &netted(console, load), fds).unwrap();
            });
            let (got, fds) = receive_launch(&b).unwrap();
            sender.join().unwrap();
            assert_eq!(got.definition, sent.definition);
            assert_eq!(mark(fds.console), console.then(|| "console".to_string()));
            assert_eq!(mark(fds.load), load.then(|| "load".to_string()));
            let taps: Vec<_> = fds.taps.into_iter().map(|t| mark(Some(t)).unwrap()).collect();
            assert_eq!(taps, ["tap"]);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let no = LaunchFds::default();
        assert!(matches!(
            send_launch(&a, &spec(true, true), no),
            Err(LaunchError::Descriptors { got: 0, wanted: 2 })
        ));
        (&a).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive_launch(&b), Err(LaunchError::TooLong(_))));
        (&a).write_all(&[9, 0, 0, 0, b'{']).unwrap();
        drop(a);
        assert!(matches!(receive_launch(&b), Err(LaunchError::Ended)));
    }

    #[test]
    fn a_reply_is_one_whole_line() {
        let mut bytes = Vec::new();
        let body = ErrorBody {
            code: ErrorCode::Busy,
            message: "m\nn".into(),
            remedy: "r".into(),
            retryable: true,
            guest_state: None,
        };
        send_reply(&mut bytes, &LaunchReply::Failed(body)).unwrap();
        let reply = receive_reply(bytes.as_slice()).unwrap();
        assert!(matches!(reply, LaunchReply::Failed(b) if b.message == "m\nn"));
        for cut in 0..bytes.len() {
            assert!(receive_reply(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn damaged_documents_are_refused_or_others() {
        let mut small = netted(true, true);
        small.definition.cmdline = "x".into();
        crate::guest::testing::hostile_json(&small);
        crate::guest::testing::hostile_json(&LaunchReply::Failed(ErrorBody {
            code: ErrorCode::Busy,
            message: "m\nn".into(),
            remedy: "r".into(),
            retryable: true,
            guest_state: None,
        }));
    }
}
