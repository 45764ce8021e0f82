//! Watches the consoles of both hosts from outside, in a thread of its own, and notes when
//! heartbeats come. It knows nothing of the move, asks nobody, and believes no report.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm::scribbler::report::{Event, Parser, Status};

/// How often a console that is not there yet is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// Which host's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The host that the guest comes from.
    Source,
    /// The host that it moves to.
    Target,
}

/// What was seen of heartbeats, in time since the observer's beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beats {
    /// Heartbeats seen.
    pub count: u64,
    /// The last one at the source.
    source: Option<Duration>,
    /// The first one at the target that came after it.
    target: Option<Duration>,
    /// The last one, wherever.
    last: Option<Duration>,
    /// The longest gap before the move: how it is without one.
    pub usual: Duration,
    /// The longest gap while memory was copied.
    pub copying: Duration,
    /// The move was asked for.
    asked: bool,
}

impl Beats {
    /// Heartbeats came out of the console of `side` at `at`.
    pub fn seen(&mut self, side: Side, count: u64, at: Duration) {
        // A console that is new shows first what it has kept: that says nothing of now.
        match (side, self.source, self.target) {
            (Side::Target, _, None) => self.target = Some(at),
            (Side::Source, _, _) => {
                // It still beats here: what the target's console showed before was no beginning.
                (self.source, self.target) = (Some(at), None);
                let gap = self.last.map(|last| at.saturating_sub(last)).unwrap_or_default();
                let longest = if self.asked { &mut self.copying } else { &mut self.usual };
                *longest = gap.max(*longest);
            }
            (Side::Target, _, Some(_)) => {}
        }
        self.count += count;
        self.last = Some(at);
    }

    /// From the last heartbeat at the source to the first at the target.
    pub fn blackout(&self) -> Option<Duration> {
        Some(self.target?.saturating_sub(self.source?))
    }
}

/// What the observer has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Heartbeats.
    pub beats: Beats,
    /// The last status of the guest.
    pub status: Option<Status>,
    /// The verdict of the last sweep: whether all is well, pages looked at, errors ever.
    pub verdict: Option<(bool, u64, u64)>,
    /// Something that the guest complains of.
    pub complaint: Option<String>,
}

/// A running observer; dropping it ends it.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Watches the console at `source`, and the one at `target` as soon as it is there.
    ///
    /// # Errors
    /// That of connecting to the source.
    pub fn start(source: &Path, target: PathBuf, tag: char) -> io::Result<Self> {
        let source = Console::connect(source, Side::Source, tag)?;
        let (seen, stop) =
            (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (seen_too, stop_too) = (seen.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("observer".into()).spawn(move || {
            watch(source, &target, tag, &seen_too, &stop_too);
        })?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on gaps are those of a guest that is being moved.
    pub fn move_begins(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).beats.asked = true;
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Presses a key on the console at `path`.
///
/// # Errors
/// That of the socket.
pub fn press(path: &Path, key: u8) -> io::Result<()> {
    UnixStream::connect(path)?.write_all(&[key])
}

struct Console {
    stream: UnixStream,
    side: Side,
    parser: Parser,
}

impl Console {
    fn connect(path: &Path, side: Side, tag: char) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, side, parser: Parser::new(tag) })
    }

    /// Reads what is there; `false` when the console is closed.
    fn read(&mut self, begin: Instant, seen: &Mutex<Seen>) -> bool {
        let mut buffer = [0; 16 << 10];
        let bytes = match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            Err(e) => {
                return matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        };
        let at = begin.elapsed();
        let events = self.parser.feed(bytes);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            match event {
                Event::Heartbeats(count) => seen.beats.seen(self.side, count, at),
                Event::Status(status) => seen.status = Some(status),
                Event::VerifyOk(sweep) => seen.verdict = Some((true, sweep.pages, sweep.errors)),
                Event::VerifyBad(sweep) => seen.verdict = Some((false, sweep.pages, sweep.errors)),
                Event::Error(text) | Event::Exception(text) => seen.complaint = Some(text),
                Event::Mismatch(m) => seen.complaint = Some(format!("page {} is wrong", m.page)),
                _ => {}
            }
        }
        true
    }
}

fn watch(source: Console, target: &Path, tag: char, seen: &Mutex<Seen>, stop: &AtomicBool) {
    let begin = Instant::now();
    let mut consoles = vec![source];
    let mut target_met = false;
    while !stop.load(Ordering::Acquire) {
        if !target_met && let Ok(console) = Console::connect(target, Side::Target, tag) {
            consoles.push(console);
            target_met = true;
        }
        let ready: Vec<bool> = {
            let mut fds: Vec<PollFd<'_>> = consoles
                .iter()
                .map(|console| PollFd::new(console.stream.as_fd(), PollFlags::POLLIN))
                .collect();
            let wait = if target_met { Duration::from_millis(50) } else { LOOK };
            let _ = poll(&mut fds, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
        };
        let mut ready = ready.into_iter();
        let mut target_lost = false;
        consoles.retain_mut(|console| {
            let open = !ready.next().unwrap_or(false) || console.read(begin, seen);
            target_lost |= !open && console.side == Side::Target;
            open
        });
        // A receiver whose attempt failed may be followed by another.
        target_met &= !target_lost;
        if consoles.is_empty() {
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_blackout_is_from_the_last_here_to_the_first_there() {
        let mut beats = Beats::default();
        for at in [10, 20, 32, 40] {
            beats.seen(Side::Source, 1, ms(at));
        }
        beats.asked = true;
        beats.seen(Side::Source, 1, ms(60));
        assert_eq!(beats.blackout(), None);
        for at in [75, 85, 196] {
            beats.seen(Side::Target, 1, ms(at));
        }
        assert_eq!((beats.blackout(), beats.count), (Some(ms(15)), 8));
        assert_eq!((beats.usual, beats.copying), (ms(12), ms(20)));
    }

    #[test]
    fn what_a_new_console_has_kept_is_no_heartbeat_of_now() {
        let mut beats = Beats::default();
        beats.seen(Side::Source, 1, ms(10));
        beats.seen(Side::Target, 500, ms(15));
        beats.seen(Side::Source, 1, ms(20));
        beats.seen(Side::Target, 1, ms(50));
        assert_eq!(beats.blackout(), Some(ms(30)));
    }

    #[test]
    fn two_consoles_are_watched_and_one_may_come_late() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let source = UnixListener::bind(&a).unwrap();
        let observer = Observer::start(&a, b.clone(), '.').unwrap();
        let (mut here, _) = source.accept().unwrap();
        here.write_all(
            b"..\nS t=1 rounds=0 pages=0 errors=0 sweep=0 clk_back=0 regs=0 hb=2 gap=1\n",
        )
        .unwrap();
        let wait = |what: &dyn Fn(&Seen) -> bool| {
            for _ in 0..2000 {
                if what(&observer.seen()) {
                    return observer.seen();
                }
                std::thread::sleep(ms(5));
            }
            panic!("not seen: {:?}", observer.seen());
        };
        wait(&|s| s.beats.count == 2 && s.status.is_some());
        drop(here);
        let target = UnixListener::bind(&b).unwrap();
        let (mut there, _) = target.accept().unwrap();
        there.write_all(b"...\nVERIFY ok pages=7 errors=0 sweep=1\n").unwrap();
        let seen = wait(&|s| s.verdict.is_some());
        assert_eq!((seen.verdict, seen.beats.count), (Some((true, 7, 0)), 5));
        assert!(seen.beats.blackout().is_some());
    }
}
