//! The control stream of a session's link: what goes out never makes the session wait, what comes
//! in is read by the session alone. A pump gets its own end of the conversation.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::report::Side;
use crate::failpoint;
use crate::failpoint::Fate;
use crate::pump::talk::message_of;
use crate::pump::{Talk, TalkError};
use crate::transport::link::{
    Close, CloseCode, Control, Ended, FrameReceiver, FrameSender, LinkHandle, LinkStats,
};
use crate::wire::{Message, Version};

/// Frames that wait for a link that does not take them. More are dropped: what matters is said
/// again.
const WAITING: usize = 32;
/// Messages that wait for a pump.
const INBOX: usize = 64;
/// How long an ended session holds a link for what it said last.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is known of the conversation with the other side.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    /// Its last word came around the link: so does the answer.
    pub(super) around: bool,
    /// It has said its last word: nothing more needs to reach it.
    pub(super) ended: bool,
}

/// A session's end of the control stream.
#[derive(Debug)]
pub(super) struct Line {
    side: Side,
    version: Version,
    sender: Arc<FrameSender>,
    receiver: FrameReceiver,
    handle: LinkHandle,
    waiting: VecDeque<Bytes>,
    inbox: Option<mpsc::Sender<Message>>,
    up: bool,
}

impl Line {
    pub(super) fn new(side: Side, control: Control, handle: LinkHandle) -> Self {
        let Control { sender, receiver } = control;
        let (sender, waiting) = (Arc::new(sender), VecDeque::new());
        let version = Version::V1;
        Self { side, version, sender, receiver, handle, waiting, inbox: None, up: true }
    }

    pub(super) fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn handle(&self) -> &LinkHandle {
        &self.handle
    }

    pub(super) fn stats(&self) -> LinkStats {
        self.handle.stats()
    }

    /// Whether anything can be said or heard.
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Most bytes of a message.
    pub(super) fn limit(&self) -> usize {
        self.sender.limit()
    }

    /// A pump's end. Messages that are its business go there by [`pass`](Self::pass).
    pub(super) fn pump_talk(&mut self) -> PumpTalk {
        let (inbox, heard) = mpsc::channel(INBOX);
        self.inbox = Some(inbox);
        let (sender, handle) = (Arc::clone(&self.sender), self.handle.clone());
        PumpTalk { side: self.side, version: self.version, sender, heard, handle }
    }

    /// Hands a message on to the pump. Nobody waits for one that finds no room: a peer that says
    /// so much out of turn is broken, and the pump finds that out by what is missing.
    pub(super) fn pass(&mut self, message: Message) {
        if let Some(inbox) = &self.inbox {
            let _ = inbox.try_send(message);
        }
    }

    /// Says it, now or as soon as there is room.
    pub(super) async fn say(&mut self, message: &Message) {
        let frame = Bytes::from(message.encode(self.version));
        for _ in 0..fate(self.side, message, &self.sender, &frame) {
            self.send(frame.clone()).await;
        }
    }

    /// The same for bytes of an opening.
    pub(super) async fn send(&mut self, frame: Bytes) {
        if !self.up {
            return;
        }
        if self.waiting.len() < WAITING {
            self.waiting.push_back(frame);
        }
        while let Some(first) = self.waiting.front().cloned() {
            let sent = tokio::select! {
                biased;
                // An error shows where frames are read.
                sent = tokio::task::unconstrained(self.sender.send(first)) => sent.is_ok(),
                () = std::future::ready(()) => return,
            };
            self.waiting.pop_front();
            if !sent {
                self.waiting.clear();
            }
        }
    }

    /// Sends on what waits, or hears the next frame. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Bytes, TalkError> {
        if !self.up {
            return std::future::pending().await;
        }
        loop {
            let first = self.waiting.front().cloned();
            tokio::select! {
                sent = send_some(&self.sender, first) => {
                    self.waiting.pop_front();
                    if !sent {
                        self.waiting.clear();
                    }
                }
                frame = self.receiver.recv() => return frame?.ok_or(TalkError::Finished),
            }
        }
    }

    /// Reads a message of the version agreed on.
    pub(super) fn message(&self, frame: &Bytes) -> Result<Message, TalkError> {
        Ok(message_of(self.version, frame)?)
    }

    /// The link is of no use any more.
    pub(super) fn drop_link(&mut self, code: CloseCode, why: &str) {
        self.up = false;
        self.inbox = None;
        self.waiting.clear();
        self.handle.close(Close::new(code, why));
    }

    /// Sends what waits, and returns when the peer has closed the link, or does not.
    pub(super) async fn farewell(&mut self, limit: Duration) {
        if !self.up {
            return;
        }
        self.inbox = None;
        let Self { sender, receiver, handle, waiting, .. } = self;
        let said = async {
            while let Some(frame) = waiting.pop_front() {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        // What it still says is not wanted, but must not keep it from closing.
        let heard = async { while let Ok(Some(_)) = receiver.recv().await {} };
        let last = async {
            tokio::select! {
                () = said => {}
                () = heard => {}
                _ = handle.ended() => {}
            }
        };
        let _ = tokio::time::timeout(limit, last).await;
        self.drop_link(CloseCode::Done, "the session has ended");
    }

    /// The same, while everything else goes on.
    pub(super) fn farewell_aside(mut self) {
        tokio::spawn(async move { self.farewell(FAREWELL).await });
    }
}

/// How often a message goes out now: once, unless a test has other plans.
fn fate(side: Side, message: &Message, sender: &Arc<FrameSender>, frame: &Bytes) -> usize {
    let fate = failpoint::message(side, "send", message);
    if let Fate::Later(time) = fate {
        let (sender, frame) = (Arc::clone(sender), frame.clone());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = sender.send(frame).await;
        });
    }
    fate.times()
}

async fn send_some(sender: &FrameSender, frame: Option<Bytes>) -> bool {
    match frame {
        Some(frame) => sender.send(frame).await.is_ok(),
        None => std::future::pending().await,
    }
}

/// A pump's end of the conversation.
#[derive(Debug)]
pub(super) struct PumpTalk {
    side: Side,
    version: Version,
    sender: Arc<FrameSender>,
    heard: mpsc::Receiver<Message>,
    handle: LinkHandle,
}

impl Talk for PumpTalk {
    async fn say(&mut self, message: &Message) -> Result<(), TalkError> {
        let frame = Bytes::from(message.encode(self.version));
        for _ in 0..fate(self.side, message, &self.sender, &frame) {
            self.sender.send(frame.clone()).await?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> Result<Message, TalkError> {
        match self.heard.recv().await {
            Some(message) => Ok(message),
            None => Err(self.handle.has_ended().map_or_else(
                || Ended::Lost("the session takes no more".into()).into(),
                TalkError::Ended,
            )),
        }
    }
}
