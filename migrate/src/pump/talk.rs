//! Messages on the control stream: one frame each. What they mean is for others.

use std::future::Future;

use bytes::Bytes;

use crate::transport::link::{Control, Ended, SendError};
use crate::wire::control::{CONTROL_HEADER, ControlHeader};
use crate::wire::{Message, Version, WireError};

/// Why a message could not be said or heard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TalkError {
    /// It could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The link ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The peer ended its side of the control stream.
    #[error("the peer ended the conversation in the middle")]
    Finished,
    /// The peer sent what is no message.
    #[error("the peer sent a control message that cannot be read: {0}")]
    Wire(#[from] WireError),
}

impl TalkError {
    /// Whether a new link could go on where this one ended.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Ended(Ended::Lost(_)) | Self::Send(SendError::Ended(Ended::Lost(_))))
    }
}

/// A conversation with the peer. A session that has other things to say implements it with a
/// queue, and hands on only what belongs here.
pub trait Talk: Send {
    /// Says `message`; it is queued when this returns.
    fn say(&mut self, message: &Message) -> impl Future<Output = Result<(), TalkError>> + Send;

    /// The next message. Must be safe to cancel: no message is lost.
    fn hear(&mut self) -> impl Future<Output = Result<Message, TalkError>> + Send;
}

/// Reads the message in a frame.
pub fn message_of(version: Version, frame: &Bytes) -> Result<Message, WireError> {
    let (header, body) =
        frame.split_first_chunk::<CONTROL_HEADER>().ok_or(WireError::Short("a control header"))?;
    let header = ControlHeader::decode(version, header)?;
    if let Some(more) = body.len().checked_sub(header.body_len()).filter(|more| *more > 0) {
        return Err(WireError::Trailing(more));
    }
    Message::decode(version, &header, body)
}

/// Both directions of a link's control stream, in version 1.
impl Talk for Control {
    async fn say(&mut self, message: &Message) -> Result<(), TalkError> {
        Ok(self.sender.send(message.encode(Version::V1).into()).await?)
    }

    async fn hear(&mut self) -> Result<Message, TalkError> {
        let frame = self.receiver.recv().await?.ok_or(TalkError::Finished)?;
        Ok(message_of(Version::V1, &frame)?)
    }
}
