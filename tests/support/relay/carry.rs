//! Carries frames from one tap to the other, each when the model says that it arrives. One
//! thread for a direction; it asks the model and never decides itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use vmm::devices::tap::{HEADER_LEN, Tap};

use super::model::{Fate, Path};

/// Frames taken in a row before those that are due are sent.
const BATCH: usize = 32;
/// Longest frame that the lab's links can carry, virtio-net header included.
const FRAME: usize = HEADER_LEN + 14 + 9216;
/// Bytes on the way; beyond that frames are dropped rather than memory used up.
const MOST_HELD: usize = 256 << 20;
/// How often a thread looks around when nothing happens.
const IDLE: Duration = Duration::from_secs(1);

/// A frame that is on its way. Ordered by time, then by arrival.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Duration,
    number: u64,
    frame: Vec<u8>,
}

/// One direction.
#[derive(Debug)]
pub struct Direction<'a> {
    from: &'a Tap,
    to: &'a Tap,
    path: &'a Mutex<Path>,
    start: Instant,
    held: BinaryHeap<Reverse<Due>>,
    held_bytes: usize,
    spare: Vec<Vec<u8>>,
    number: u64,
}

impl<'a> Direction<'a> {
    /// From one tap to the other, over `path`. Times of the path count from `start`.
    pub fn new(from: &'a Tap, to: &'a Tap, path: &'a Mutex<Path>, start: Instant) -> Self {
        let (held, spare) = (BinaryHeap::new(), Vec::new());
        Self { from, to, path, start, held, held_bytes: 0, spare, number: 0 }
    }

    /// Carries until a tap is gone.
    ///
    /// # Errors
    /// Why frames cannot be taken any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut frame = vec![0; FRAME];
        loop {
            self.wait()?;
            self.take(&mut frame)?;
            self.deliver();
        }
    }

    /// Until a frame comes, or one is due.
    fn wait(&self) -> io::Result<()> {
        let now = self.start.elapsed();
        let next = self.held.peek().map_or(IDLE, |Reverse(due)| due.at.saturating_sub(now));
        let mut fds = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(next)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        // An interface that is down: there is nothing to wait for but time.
        if fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Takes what came, a batch at most.
    fn take(&mut self, frame: &mut [u8]) -> io::Result<()> {
        for _ in 0..BATCH {
            let len = match self.from.receive(frame) {
                Ok(len) if len > HEADER_LEN => len,
                Ok(_) => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                // The interface is down, and may come up again.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => break,
                Err(e) => return Err(e),
            };
            let now = self.start.elapsed();
            let mut path = self.path.lock().unwrap_or_else(PoisonError::into_inner);
            let fate = path.admit(now, len - HEADER_LEN);
            drop(path);
            match fate {
                Fate::Arrives(at) => self.hold(at, &frame[..len]),
                Fate::ArrivesTwice(one, two) => {
                    self.hold(one, &frame[..len]);
                    self.hold(two, &frame[..len]);
                }
                Fate::Dropped | Fate::Lost | Fate::Cut => {}
            }
        }
        Ok(())
    }

    fn hold(&mut self, at: Duration, frame: &[u8]) {
        if self.held_bytes + frame.len() > MOST_HELD {
            return;
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(frame);
        self.held_bytes += frame.len();
        self.number += 1;
        self.held.push(Reverse(Due { at, number: self.number, frame: copy }));
    }

    /// Sends all that is due. A frame that the other side has no room for is lost, as on a wire.
    fn deliver(&mut self) {
        let now = self.start.elapsed();
        while self.held.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = self.held.pop() else { break };
            let _no_room = self.to.send(&due.frame);
            self.held_bytes -= due.frame.len();
            if self.spare.len() < 4096 {
                self.spare.push(due.frame);
            }
        }
    }
}
