//! What the source says: the opening, rounds, the rehearsal, words of the hand-over.

use std::time::Instant;

use bytes::Bytes;

use super::super::Event;
use super::super::edge::Clock;
use super::super::report::{Reason, Side, Step};
use super::super::wait::blocking;
use super::super::words::from_wire;
use super::session::{Done, Hold, Pumping, Session, Stage};
use crate::codec::DigestKey;
use crate::failpoint;
use crate::handover::effect::Input;
use crate::handover::message::{Body, Message, SourceSays, ToTarget};
use crate::handover::target::State;
use crate::port::{Receiver, Rehearsal, Rights, WriteUnits};
use crate::pump::{RecvError, TalkError, Target as Pump};
use crate::transport::link::{CloseCode, Ended};
use crate::wire::control::{MAX_NAME, Note, RefuseCode, Region, RegionKind};
use crate::wire::hello::{Hello, OPENING_HEADER, OpeningHeader, Reply};
use crate::wire::{Message as Wire, Text, WireError};

impl<R: Receiver, D: Rights, C: Clock> Session<R, D, C> {
    pub(super) async fn frame(&mut self, frame: Bytes) {
        if self.stage == Stage::Hello {
            match read_hello(&frame) {
                Ok(hello) => self.hello(&hello).await,
                Err(why) => self.broken(why.to_string()),
            }
            return;
        }
        match self.line.message(&frame) {
            Ok(message) if failpoint::message(Side::Target, "hear", &message).is_lost() => {}
            Ok(message) => self.heard(message).await,
            Err(why) => self.broken(why.to_string()),
        }
    }

    async fn hello(&mut self, hello: &Hello) {
        let (reply, version) = Reply::to(hello, &self.expected.program);
        self.line.send(reply.encode().into()).await;
        self.log.report.peer = hello.program.to_string();
        match (version, &reply) {
            (Some(version), _) => {
                self.line.set_version(version);
                self.stage = Stage::Offer;
            }
            (None, Reply::Refused { text, .. }) => {
                self.end_attempt(Reason::NoCommonVersion, text.to_string());
            }
            (None, Reply::Chosen { .. }) => {}
        }
    }

    async fn heard(&mut self, message: Wire) {
        self.peer.ended |= matches!(message, Wire::Refuse { .. } | Wire::Cancel { .. });
        match (self.stage, message) {
            (Stage::Offer, Wire::Offer { attempt, move_id, guest, name, lanes, definition }) => {
                let expected = &self.expected;
                let same = attempt == expected.attempt
                    && move_id == expected.move_id
                    && guest == expected.guest
                    && name == Text::<MAX_NAME>::clipped(&expected.name)
                    && definition.as_slice() == expected.definition;
                if !same {
                    let why = "the source offers another guest or attempt than its host announced";
                    return self.refuse(why).await;
                }
                if usize::from(lanes) != self.lanes.len() {
                    let why = "the source offers other data lanes than it has opened";
                    return self.refuse(why).await;
                }
                self.stage = Stage::Layout;
            }
            (Stage::Layout, Wire::Layout { regions, digest_key }) => {
                self.layout(regions.as_slice(), digest_key).await;
            }
            (_, Wire::Cancel { text }) => {
                self.end_attempt(Reason::Cancelled, format!("the source ended the move: {text}"));
            }
            (_, Wire::Refuse { text, .. }) => {
                self.end_attempt(Reason::Refused, format!("the source refused: {text}"));
            }
            (_, Wire::Ping { nonce }) => self.line.say(&Wire::Pong { nonce }).await,
            (Stage::Open, message) => self.in_the_middle(message),
            (_, message) => {
                let why = format!("{} does not belong in the opening", message.name());
                self.refuse(&why).await;
            }
        }
    }

    fn in_the_middle(&mut self, message: Wire) {
        match message {
            Wire::RoundStart { .. } | Wire::RoundDone { .. } | Wire::AskSums { .. } => {
                self.line.pass(message);
            }
            Wire::Rehearse { state } => self.rehearse(state.into_vec()),
            // It stands behind the rounds that were said before it.
            Wire::LastPiece { switch, .. } if self.waits_for(switch) => {
                self.log.black(Instant::now());
                self.line.pass(message);
            }
            _ => {
                if let Some(word) = from_wire(&message) {
                    (self.repeats, self.peer.around) = (0, false);
                    self.word(word);
                }
            }
        }
    }

    fn waits_for(&self, switch: crate::handover::term::Switch) -> bool {
        matches!(self.machine.state(), State::Receiving { switch: ours, ended: false } if *ours == switch)
    }

    /// A word of the hand-over, on the link or around it.
    pub(super) fn word(&mut self, word: Message) {
        if self.machine.switch() == Some(&word.switch) {
            match word.body {
                Body::ToTarget(ToTarget::Says(SourceSays::Ceded)) => {
                    self.log.step(Step::CommitHeard);
                }
                Body::ToTarget(ToTarget::Says(SourceSays::Withdrawn)) => self.peer.ended = true,
                _ => {}
            }
        }
        self.inputs.push_back(Input::Heard(word));
    }

    async fn refuse(&mut self, why: &str) {
        let (code, text) = (RefuseCode::PROTOCOL, Note::clipped(why));
        self.line.say(&Wire::Refuse { code, text }).await;
        self.end_attempt(Reason::NotAnnounced, why);
    }

    async fn layout(&mut self, regions: &[Region], key: [u8; 32]) {
        let Hold::Empty(receiver) = &self.hold else { return };
        let (ram, wanted) = (receiver.ram(), self.expected.layout);
        let offered = match regions {
            [Region { kind: RegionKind::Ram, .. }] => regions[0].layout().ok(),
            _ => None,
        };
        if offered != Some(wanted) || WriteUnits::layout(&ram) != wanted {
            let why = "the source's memory is laid out otherwise than its host announced";
            return self.refuse(why).await;
        }
        let mut pump = Pump::new(self.line.version(), 0, ram, DigestKey::new(key));
        let lanes = std::mem::take(&mut self.lanes);
        let count = u8::try_from(lanes.len()).unwrap_or(u8::MAX);
        if let Err(why) = pump.attach(lanes, self.line.handle().clone()).await {
            return self.refuse(&why.to_string()).await;
        }
        self.event(Event::Filling(pump.live()));
        self.stage = Stage::Open;
        self.tell_phase();
        let talk = self.line.pump_talk();
        self.converse(Box::new((pump, talk)));
        let attempt = self.expected.attempt;
        self.line.say(&Wire::Accept { attempt, lanes: count }).await;
    }

    /// Talks about rounds, beside everything else.
    fn converse(&mut self, pumping: Pumping<R>) {
        self.pump_away = true;
        self.jobs.start(async move {
            let mut pumping = pumping;
            let (pump, talk) = &mut *pumping;
            let said = pump.converse(talk).await;
            Done::Conversed(pumping, said)
        });
    }

    pub(super) async fn done(&mut self, done: Done<R>) {
        match done {
            Done::Conversed(pumping, said) => {
                self.pump_away = false;
                self.conversed(pumping, said).await;
            }
            Done::Rehearsed(receiver, tried) => {
                self.hold = Hold::Empty(receiver);
                self.rehearsed(tried).await;
            }
            Done::Restored(restored, took) => self.restored(restored, took).await,
            Done::Later(input) => self.inputs.push_back(input),
            Done::OpeningOver if self.stage != Stage::Open => {
                self.end_attempt(Reason::LinkLost, "the source did not say in time what it wants");
            }
            Done::OpeningOver => {}
            Done::PeerSilent(why) => self.link_is_gone(&why),
        }
    }

    async fn conversed(&mut self, mut pumping: Pumping<R>, said: Result<Wire, RecvError>) {
        match said {
            Ok(Wire::LastPiece { switch, paused, state }) => {
                self.verified = pumping.0.is_verified();
                self.log.report.digest_agreed = Some(self.verified);
                // Nothing of a guest that runs may be overwritten.
                pumping.0.seal();
                self.state = Some(state);
                self.pump = Some(pumping);
                let piece = ToTarget::LastPiece { paused };
                self.inputs.push_back(Input::Heard(Message::to_target(switch, piece)));
            }
            Ok(_) => self.converse(pumping),
            Err(why) => {
                if why.is_cut() {
                    self.link_is_gone(&why.to_string());
                } else {
                    self.broken(why.to_string());
                }
                // Its lanes have ended when this returns.
                pumping.0.detach().await;
                self.pump = Some(pumping);
                self.inputs.push_back(Input::StreamsEnded);
            }
        }
    }

    /// The peer broke the protocol. It hears why with the end of the link.
    fn broken(&mut self, why: String) {
        if self.line.is_up() {
            self.line.drop_link(CloseCode::Protocol, &why);
            self.event(Event::LinkLost(why.clone()));
            self.inputs.push_back(Input::LinkLost);
        }
        self.end_attempt(Reason::Protocol, why);
    }

    /// Nothing more comes on the link.
    pub(super) fn link_failed(&mut self, why: &TalkError) {
        match why {
            _ if why.is_cut() && self.stage == Stage::Open => self.link_is_gone(&why.to_string()),
            TalkError::Wire(_) => self.broken(why.to_string()),
            TalkError::Ended(Ended::Peer(_)) | TalkError::Finished => {
                self.link_is_gone(&why.to_string());
                self.end_attempt(Reason::PeerGone, why.to_string());
            }
            _ => {
                self.link_is_gone(&why.to_string());
                self.end_attempt(Reason::LinkLost, why.to_string());
            }
        }
    }

    fn link_is_gone(&mut self, why: &str) {
        if self.line.is_up() {
            self.line.drop_link(CloseCode::Failed, why);
            self.event(Event::LinkLost(why.to_owned()));
            self.log.note(format!("the link ended: {why}"));
            self.inputs.push_back(Input::LinkLost);
        }
    }

    /// Tries a state. One at a time: a source that does not wait for the answer gets none.
    fn rehearse(&mut self, state: Vec<u8>) {
        let hold = self.hold.take();
        let Hold::Empty(mut receiver) = hold else {
            self.hold = hold;
            return;
        };
        self.jobs.start(async move {
            let (receiver, tried) = blocking(move || {
                let tried = receiver.rehearse(&state);
                (receiver, tried)
            })
            .await;
            Done::Rehearsed(receiver, tried)
        });
    }

    async fn rehearsed(&mut self, tried: Result<Rehearsal, R::Error>) {
        let (took, problems) = match tried {
            Ok(trial) => (trial.took, trial.problems),
            Err(why) => (std::time::Duration::ZERO, vec![format!("the trial failed: {why}")]),
        };
        let restore_us = super::super::record::micros(took);
        let fits = problems.is_empty();
        if !fits {
            self.log.cause(Reason::Incompatible, problems.join("; "));
        }
        let notes: Vec<Note> = problems.iter().map(|p| Note::clipped(p)).collect();
        let most = crate::wire::control::MAX_PROBLEMS.min(notes.len());
        let told = notes[..most].to_vec().try_into().unwrap_or_default();
        self.line.say(&Wire::Rehearsed { restore_us, problems: told }).await;
        self.event(Event::Rehearsed { restore_us, problems });
        self.inputs.push_back(Input::Rehearsed(fits));
    }
}

fn read_hello(frame: &Bytes) -> Result<Hello, WireError> {
    let (header, body) =
        frame.split_first_chunk::<OPENING_HEADER>().ok_or(WireError::Short("the opening"))?;
    Hello::decode(&OpeningHeader::decode(header)?, body)
}
