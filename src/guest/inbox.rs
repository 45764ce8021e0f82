//! The one queue of everything that the owner must look at, and how it waits.
//!
//! Clients and worker threads post messages; guest events, signals and the end of the caller are
//! descriptors. [`Sources::wait`] gives one event at a time, the most urgent first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use migrate_engine::handover::message::Message;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use tokio::sync::oneshot;
use vmm::eventfd::EventFd;
use vmm::events::{EventSource, GuestEvent};

use super::decide::Input;
use super::machine::PausedMachine;
use super::moving::arrival::Landed;
use super::moving::departure::Over;
use super::moving::feed::Feed;
use super::moving::lease::Lease;
use super::save::Done;
use crate::api::cpu::GuestCpu;
use crate::api::moving::MoveStart;
use crate::api::{DirtyRate, Failure, GuestInfo, SaveResult, StopResult};

/// A client's wish.
#[derive(Debug)]
pub enum Command {
    /// `GET guest`.
    Info,
    /// `GET cpu`.
    Cpu,
    /// `POST dirty-rate`.
    DirtyRate,
    /// `POST pause`.
    Pause,
    /// `POST resume`.
    Resume,
    /// `POST reset`.
    Reset,
    /// `POST stop`.
    Stop {
        /// Time to power off; zero: do not ask.
        deadline: Duration,
    },
    /// `POST save`.
    Save {
        /// Where to.
        file: std::fs::File,
        /// Let it run on.
        keep_running: bool,
    },
    /// `PUT throttle`: percent.
    Throttle(u8),
    /// `POST move`.
    Move(Box<MoveStart>),
    /// `POST move/cancel`.
    CancelMove,
    /// `GET move/events`.
    MoveFeed,
    /// `POST move/heard`.
    Heard(Message),
    /// `POST move/peer-gone`: why.
    PeerGone(String),
    /// `PUT move/bandwidth`: bytes per second.
    Bandwidth(Option<u64>),
}

impl Command {
    /// As [`super::decide::decide`] sees it.
    pub fn input(&self) -> Input {
        match self {
            Self::Info | Self::Cpu => Input::Info,
            Self::DirtyRate => Input::Measure,
            Self::Pause => Input::Pause,
            Self::Resume => Input::Resume,
            Self::Reset => Input::Reset,
            Self::Stop { deadline } => Input::Stop { now: deadline.is_zero() },
            Self::Save { keep_running, .. } => Input::Save { keep_running: *keep_running },
            Self::Throttle(share) => Input::Throttle(*share),
            Self::Move(_) => Input::Move,
            Self::CancelMove => Input::MoveCancel,
            Self::MoveFeed => Input::MoveFeed,
            Self::Heard(_) | Self::PeerGone(_) | Self::Bandwidth(_) => Input::MoveHeard,
        }
    }
}

/// What a client gets.
#[derive(Debug)]
pub enum Answer {
    /// Facts.
    Info(Box<GuestInfo>),
    /// The CPU it is shown.
    Cpu(Box<GuestCpu>),
    /// How fast it writes.
    DirtyRate(DirtyRate),
    /// How it ended.
    Stop(StopResult),
    /// What was saved.
    Save(SaveResult),
    /// It was done.
    Done,
    /// Whether a move is being cancelled; else it is too late.
    Cancelled(bool),
    /// What happens in a move.
    Feed(Feed),
}

/// Where a client waits for its answer. A client that went away is not an error.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Answer, Failure>>);

impl Reply {
    /// Answers.
    pub fn send(self, answer: Result<Answer, Failure>) {
        let _ = self.0.send(answer);
    }
}

/// A wish and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// The wish.
    pub command: Command,
    /// Where its answer goes.
    pub reply: Reply,
}

/// What is posted.
enum Post<P: PausedMachine> {
    Request(Request),
    SaveDone(Done<P>),
    Lease(Lease<P>),
    MoveOver(Over<P>, Ack),
    Landed(Landed<P>, Ack),
}

/// Tells the poster that its message was taken in.
pub type Ack = oneshot::Sender<()>;

/// Posts messages. Cloning shares the queue.
pub struct Inbox<P: PausedMachine> {
    sender: Sender<Post<P>>,
    wake: EventFd,
}

impl<P: PausedMachine> Clone for Inbox<P> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: self.wake.clone() }
    }
}

impl<P: PausedMachine> Inbox<P> {
    fn post(&self, message: Post<P>) {
        if self.sender.send(message).is_ok() {
            self.wake.signal();
        }
    }

    /// Posts a wish; the answer comes through the receiver, or an error if the guest is gone.
    pub fn request(&self, command: Command) -> oneshot::Receiver<Result<Answer, Failure>> {
        let (sender, receiver) = oneshot::channel();
        self.post(Post::Request(Request { command, reply: Reply(sender) }));
        receiver
    }

    /// Posts the end of a save.
    pub fn save_done(&self, done: Done<P>) {
        self.post(Post::SaveDone(done));
    }

    /// Posts a wish of a move that goes on; the answer comes by the wish's own way, or its end is
    /// dropped.
    pub fn lease(&self, lease: Lease<P>) {
        self.post(Post::Lease(lease));
    }

    /// Posts the end of a move, and waits until the owner knows.
    pub async fn move_over(&self, over: Over<P>) {
        let (ack, taken) = oneshot::channel();
        self.post(Post::MoveOver(over, ack));
        let _ = taken.await;
    }

    /// Posts what came of an arrival, and waits until somebody has taken it.
    pub async fn landed(&self, landed: Landed<P>) {
        let (ack, taken) = oneshot::channel();
        self.post(Post::Landed(landed, ack));
        let _ = taken.await;
    }
}

/// One thing that happened.
pub enum Event<P: PausedMachine> {
    /// A client wants something.
    Request(Request),
    /// A save ended.
    SaveDone(Done<P>),
    /// A move wants something.
    Lease(Lease<P>),
    /// A move ended.
    MoveOver(Over<P>, Ack),
    /// An arrival ended.
    Landed(Landed<P>, Ack),
    /// The guest did something.
    Guest(GuestEvent),
    /// SIGTERM or SIGINT.
    Terminate,
    /// The caller of `run --rm` is gone.
    CallerGone,
    /// The time given to `wait` has come.
    Deadline,
}

/// Everything that the owner waits for.
pub struct Sources<P: PausedMachine> {
    receiver: Receiver<Post<P>>,
    wake: EventFd,
    guest: EventSource,
    signals: Option<SignalFd>,
    /// Readable once the caller has ended; not looked at again after that.
    caller: Option<OwnedFd>,
}

/// A queue, and what else is waited for: signals that are blocked in every thread, and a pidfd
/// of the caller.
///
/// # Errors
/// The kernel refuses an event counter.
pub fn sources<P: PausedMachine>(
    guest: EventSource,
    signals: Option<SignalFd>,
    caller: Option<OwnedFd>,
) -> std::io::Result<(Inbox<P>, Sources<P>)> {
    let (sender, receiver) = channel();
    let wake = EventFd::new()?;
    let inbox = Inbox { sender, wake: wake.clone() };
    Ok((inbox, Sources { receiver, wake, guest, signals, caller }))
}

impl<P: PausedMachine> Sources<P> {
    /// The next event, the most urgent first.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Event<P> {
        loop {
            if let Some(event) = self.ready() {
                return event;
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return Event::Deadline;
            }
            self.sleep(left);
        }
    }

    /// The next guest event, if there is one.
    pub fn guest_event(&self) -> Option<GuestEvent> {
        self.guest.try_next()
    }

    /// The end of the save that is under way; `None` after `limit`.
    pub fn wait_for_save(&mut self, limit: Duration) -> Option<Done<P>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(Post::SaveDone(done)) => return Some(done),
                // Dropping the reply tells the client that the guest is gone.
                Ok(Post::Request(_) | Post::Lease(_) | Post::MoveOver(..) | Post::Landed(..)) => {}
                Err(_) => return None,
            }
        }
    }

    fn ready(&mut self) -> Option<Event<P>> {
        if self.caller.as_ref().is_some_and(|fd| is_readable(fd.as_fd())) {
            self.caller = None;
            return Some(Event::CallerGone);
        }
        if let Some(signals) = &self.signals
            && matches!(signals.read_signal(), Ok(Some(_)))
        {
            return Some(Event::Terminate);
        }
        if let Some(event) = self.guest.try_next() {
            return Some(Event::Guest(event));
        }
        // Clear first, so that a message that comes now wakes again.
        self.wake.clear();
        match self.receiver.try_recv().ok()? {
            Post::Request(request) => Some(Event::Request(request)),
            Post::SaveDone(done) => Some(Event::SaveDone(done)),
            Post::Lease(lease) => Some(Event::Lease(lease)),
            Post::MoveOver(over, ack) => Some(Event::MoveOver(over, ack)),
            Post::Landed(landed, ack) => Some(Event::Landed(landed, ack)),
        }
    }

    /// The end of the move that is under way; `None` after `limit`. What the move wants
    /// meanwhile it does not get.
    pub fn wait_for_move(&mut self, limit: Duration) -> Option<Over<P>> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(Post::MoveOver(over, ack)) => {
                    let _ = ack.send(());
                    return Some(over);
                }
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    fn sleep(&self, left: Option<Duration>) {
        let pollfd = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![pollfd(self.wake.as_fd()), pollfd(self.guest.as_fd())];
        fds.extend(self.signals.as_ref().map(|s| pollfd(s.as_fd())));
        fds.extend(self.caller.as_ref().map(|c| pollfd(c.as_fd())));
        // Rounded up, so that waking early does not turn into spinning.
        let timeout = left.map_or(PollTimeout::NONE, |l| {
            PollTimeout::try_from(l.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
        });
        if let Err(errno) = poll(&mut fds, timeout)
            && errno != Errno::EINTR
        {
            tracing::error!(%errno, "poll failed");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}
