//! One session with another daemon: questions out, questions in. Bounded in every direction: so
//! many questions of a peer are worked on at a time, so many of ours wait for their answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use migrate_engine::transport::identity::{HostName, Rights};
use migrate_engine::transport::link::{
    Close, CloseCode, Control, Ended, FrameReceiver, FrameSender, LinkHandle,
};
use migrate_engine::transport::quic::ConnectError;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, oneshot};

use super::proto::{Ask, BadFrame, Frame, Hello, VERSIONS, common_version, raw, shown, unraw};
use crate::api::{ErrorBody, ErrorCode, Failure};

/// How long a peer may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer may take that is not said otherwise.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Questions of one peer that are worked on at a time; more are refused.
const AT_A_TIME: usize = 32;

type Answer = Result<Box<RawValue>, Failure>;

/// Another daemon, with which there is a session.
#[derive(Debug)]
pub struct Peer {
    /// Its name, from its certificate; of a stranger the one that it wants.
    pub name: HostName,
    /// What it says of itself.
    pub hello: Hello,
    /// Its address.
    pub address: SocketAddr,
    /// What it may do here.
    pub rights: Rights,
    sender: FrameSender,
    handle: LinkHandle,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
}

/// Our questions that have no answer yet.
#[derive(Debug, Default)]
struct Waiting {
    answers: BTreeMap<u64, oneshot::Sender<Answer>>,
    over: bool,
}

/// What answers a peer's questions.
pub trait Answerer: Send + Sync + 'static {
    /// Answers one.
    fn answer(&self, peer: &Arc<Peer>, ask: Ask) -> impl Future<Output = Answer> + Send;
}

/// Both hellos, and a version in common. Ends the session if there is none.
///
/// # Errors
/// `no-common-version`, or why the peer cannot be understood.
pub async fn greet(
    control: &mut Control,
    handle: &LinkHandle,
    ours: &Hello,
) -> Result<Hello, Failure> {
    let refuse = |code, failure: Failure| {
        handle.close(Close::new(code, failure.to_string()));
        failure
    };
    let frame =
        Frame::Hello(Box::new(ours.clone())).encode().map_err(|e| broken(&e.to_string()))?;
    control.sender.send(frame.into()).await.map_err(|e| lost(&e.to_string()))?;
    let first = tokio::time::timeout(HELLO_DEADLINE, control.receiver.recv()).await;
    let first = first.map_err(|_| lost("it did not say hello in time"))?;
    let bytes = match first {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(lost("it ended the session")),
        Err(ended) => return Err(of_ended(&ended)),
    };
    let hello = match Frame::decode(&bytes) {
        Ok(Frame::Hello(hello)) => *hello,
        Ok(_) => return Err(refuse(CloseCode::Protocol, broken("it did not say hello first"))),
        Err(e) => return Err(refuse(CloseCode::Protocol, broken(&e.to_string()))),
    };
    common_version(VERSIONS, &hello).map_err(|failure| refuse(CloseCode::Refused, failure))?;
    Ok(hello)
}

impl Peer {
    /// A peer that has been greeted.
    pub fn new(
        name: HostName,
        hello: Hello,
        address: SocketAddr,
        rights: Rights,
        sender: FrameSender,
        handle: LinkHandle,
    ) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let (waiting, next) = (Mutex::default(), AtomicU64::new(1));
        Self { name, hello, address, rights, sender, handle, waiting, next }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The peer's own words if it refused; `unreachable` if the session ended or the answer did
    /// not come in time.
    pub async fn ask<R: DeserializeOwned>(
        &self,
        ask: &Ask,
        deadline: Duration,
    ) -> Result<R, Failure> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = Frame::Ask { id, ask: raw(ask)? };
        let frame = frame.encode().map_err(|e| broken(&e.to_string()))?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.over {
                return Err(self.named(&lost("the session has ended")));
            }
            waiting.answers.insert(id, sender);
        }
        let _forget = Forget { peer: self, id };
        let answered = async {
            self.sender.send(frame.into()).await.map_err(|e| lost(&e.to_string()))?;
            receiver.await.map_err(|_| lost("the session ended"))?
        };
        let late = || lost(&format!("no answer within {} s", deadline.as_secs()));
        let answer = tokio::time::timeout(deadline, answered).await.unwrap_or_else(|_| Err(late()));
        let answer = answer.map_err(|failure| self.named(&failure))?;
        unraw(&answer).map_err(|e| self.named(&broken(&format!("its answer cannot be read: {e}"))))
    }

    /// Puts the peer's name before what happened between it and us.
    fn named(&self, failure: &Failure) -> Failure {
        let mut failure = failure.clone();
        if failure.0.code == ErrorCode::Unreachable || failure.0.code == ErrorCode::HostRefused {
            failure.0.message = format!("host '{}': {}", self.name, failure.0.message);
        }
        failure
    }

    /// Ends the session.
    pub fn close(&self, code: CloseCode, why: &str) {
        self.handle.close(Close::new(code, why));
    }

    /// Whether the session has ended.
    pub fn is_over(&self) -> bool {
        self.handle.has_ended().is_some()
    }

    /// Smoothed round trip.
    pub fn rtt(&self) -> Duration {
        self.handle.stats().control.rtt
    }

    fn answered(&self, id: u64, answer: Answer) {
        if let Some(waiting) = self.waiting().answers.remove(&id) {
            let _nobody_waits = waiting.send(answer);
        }
    }

    /// Serves the session until it ends: gives answers out, and has questions answered.
    pub async fn serve(self: Arc<Self>, receiver: FrameReceiver, answerer: Arc<impl Answerer>) {
        let why = self.listen(receiver, answerer).await;
        tracing::debug!(peer = %self.name, why, "a session with a daemon has ended");
        let answers = {
            let mut waiting = self.waiting();
            waiting.over = true;
            std::mem::take(&mut waiting.answers)
        };
        for (_, waiting) in answers {
            let _nobody_waits = waiting.send(Err(lost(&why)));
        }
    }

    async fn listen(
        self: &Arc<Self>,
        mut receiver: FrameReceiver,
        answerer: Arc<impl Answerer>,
    ) -> String {
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let bytes = tokio::select! {
                Some(_) = tasks.join_next() => continue,
                frame = receiver.recv() => match frame {
                    Ok(Some(bytes)) => bytes,
                    Ok(None) => return "the peer ended the session".into(),
                    Err(ended) => return of_ended(&ended).to_string(),
                },
            };
            let frame = match Frame::decode(&bytes) {
                Ok(frame) => frame,
                Err(e) => return self.broke(&e),
            };
            match frame {
                Frame::Ask { id, ask } => {
                    let Ok(permit) = room.clone().try_acquire_owned() else {
                        let busy =
                            Failure::new(ErrorCode::Busy, "too many questions at a time", "");
                        // Waits for the peer to read, as it must.
                        self.say(id, Err(busy.retryable())).await;
                        continue;
                    };
                    let (peer, answerer) = (Arc::clone(self), Arc::clone(&answerer));
                    tasks.spawn(async move {
                        let answer = match unraw::<Ask>(&ask) {
                            Ok(ask) => answerer.answer(&peer, ask).await,
                            Err(e) => Err(unknown_question(&e)),
                        };
                        peer.say(id, answer).await;
                        drop(permit);
                    });
                }
                Frame::Answer { id, answer } => self.answered(id, Ok(answer)),
                Frame::Refusal { id, error } => self.answered(id, Err(Failure(clean(error)))),
                Frame::Hello(_) => {
                    let why = "a second hello";
                    self.close(CloseCode::Protocol, why);
                    return why.into();
                }
            }
        }
    }

    fn broke(&self, bad: &BadFrame) -> String {
        let why = bad.to_string();
        tracing::warn!(peer = %self.name, why, "a daemon broke the protocol");
        self.close(CloseCode::Protocol, &why);
        why
    }

    async fn say(&self, id: u64, answer: Answer) {
        let frame = match answer {
            Ok(answer) => Frame::Answer { id, answer },
            Err(failure) => Frame::Refusal { id, error: failure.0 },
        };
        match frame.encode() {
            Ok(bytes) => drop(self.sender.send(bytes.into()).await),
            Err(e) => {
                let error = broken(&e.to_string()).0;
                if let Ok(bytes) = (Frame::Refusal { id, error }).encode() {
                    let _session_over = self.sender.send(bytes.into()).await;
                }
            }
        }
    }
}

/// Forgets a question whose asker has gone.
struct Forget<'a> {
    peer: &'a Peer,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.peer.waiting().answers.remove(&self.id);
    }
}

/// A refusal as a peer says it, fit to be shown.
fn clean(mut error: Box<ErrorBody>) -> Box<ErrorBody> {
    let shorten = |text: &str| text.chars().filter(|c| !c.is_control()).take(2000).collect();
    error.message = shorten(&error.message);
    error.remedy = shorten(&error.remedy);
    error
}

fn unknown_question(detail: &str) -> Failure {
    Failure::new(
        ErrorCode::NoCommonVersion,
        format!("this release of migrate does not know that question: {}", shown(detail)),
        "bring both hosts to the same or to neighbouring releases of migrate",
    )
}

fn lost(why: &str) -> Failure {
    Failure::new(
        ErrorCode::Unreachable,
        format!("the connection between the daemons failed: {why}"),
        "see whether its daemon runs: migrate host check",
    )
    .retryable()
}

fn broken(why: &str) -> Failure {
    Failure::new(
        ErrorCode::HostRefused,
        format!("the daemons do not understand each other: {why}"),
        "compare the releases on both hosts: migrate --version",
    )
}

fn of_ended(ended: &Ended) -> Failure {
    match ended {
        Ended::Peer(close) if close.code == CloseCode::Refused => Failure::new(
            ErrorCode::HostRefused,
            format!("the other host ended the session: {close}"),
            "see its log, and: migrate host check",
        ),
        other => lost(&other.to_string()),
    }
}

/// What a connection that was not made means.
pub fn not_connected(name: &str, error: &ConnectError) -> Failure {
    let (code, remedy) = match error {
        ConnectError::Refused { .. } | ConnectError::RefusedByPeer { .. } => {
            (ErrorCode::HostRefused, "see who belongs to the site: migrate host ls, on both hosts")
        }
        ConnectError::NoCommonProtocol { .. } => {
            (ErrorCode::NoCommonVersion, "compare the releases on both hosts: migrate --version")
        }
        _ => (ErrorCode::Unreachable, "start its daemon and open its UDP port: migrate host check"),
    };
    let failure = Failure::new(code, format!("host '{name}': {error}"), remedy);
    if code == ErrorCode::Unreachable { failure.retryable() } else { failure }
}
