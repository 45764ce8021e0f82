//! What the other side says: the opening, figures, words of the hand-over.

use bytes::Bytes;

use super::super::Event;
use super::super::edge::Clock;
use super::super::report::{Reason, Side, Step, StepDone};
use super::super::wait::blocking;
use super::super::words::from_wire;
use super::copy::text_of;
use super::hold::Hold;
use super::session::{Done, Session, Stage};
use crate::failpoint;
use crate::handover::effect::Input;
use crate::handover::message::{Body, Message, Refusal, TargetSays, ToSource};
use crate::handover::term::SwitchId;
use crate::port::{ReadUnits, Rights, RunningGuest};
use crate::pump::TalkError;
use crate::transport::link::{CloseCode, Ended};
use crate::wire::control::{RefuseCode, Region, RegionKind};
use crate::wire::hello::{Hello, OPENING_HEADER, OpeningHeader, Reply};
use crate::wire::{Message as Wire, Text, Version, WireError};

impl<G: RunningGuest, D: Rights, C: Clock> Session<G, D, C> {
    /// Says hello.
    pub(super) async fn open(&mut self) {
        self.limit_time();
        let hello = Hello::of_all_versions(&self.plan.program);
        self.line.send(hello.encode().into()).await;
    }

    pub(super) async fn frame(&mut self, frame: Bytes) {
        if self.stage == Stage::Hello {
            match read_reply(&frame) {
                Ok(reply) => self.reply(reply).await,
                Err(why) => self.broken(&TalkError::Wire(why)),
            }
            return;
        }
        match self.line.message(&frame) {
            Ok(message) if failpoint::message(Side::Source, "hear", &message).is_lost() => {}
            Ok(message) => self.heard(message).await,
            Err(why) => self.broken(&why),
        }
    }

    async fn reply(&mut self, reply: Reply) {
        let (version, program) = match reply {
            Reply::Refused { text, .. } => {
                self.peer.ended = true;
                return self.fail(Reason::NoCommonVersion, text.to_string());
            }
            Reply::Chosen { version, program } => (version, program),
        };
        let Some(version) = Version::ALL.iter().copied().find(|v| v.number() == version) else {
            let why =
                format!("the other side chose protocol version {version}, which was not offered");
            return self.fail(Reason::NoCommonVersion, why);
        };
        self.log.report.peer = program.to_string();
        self.line.set_version(version);
        self.stage = Stage::Accept;
        if let Err(why) = self.offer().await {
            self.fail(Reason::CopyFailed, why);
        }
    }

    /// Says what is to be moved.
    async fn offer(&mut self) -> Result<(), String> {
        let plan = &self.plan;
        let lanes = self.lanes.as_ref().ok_or("the link has no data lanes")?.count();
        let lanes = u8::try_from(lanes).map_err(|_| "the link has too many data lanes")?;
        let definition = plan.definition.clone().try_into();
        let definition = definition.map_err(|e| format!("the guest's definition: {e}"))?;
        let Hold::Running(guest) = &self.hold else {
            return Err("the guest is not here (a defect of this program)".into());
        };
        let ram = guest.ram();
        let layout = ram.layout();
        let region = Region {
            kind: RegionKind::Ram,
            unit_size: u32::try_from(layout.unit_len()).map_err(|e| e.to_string())?,
            units: layout.units(),
        };
        let offer = Wire::Offer {
            move_id: plan.move_id,
            attempt: plan.attempt,
            guest: plan.guest,
            name: Text::clipped(&plan.name),
            lanes,
            definition,
        };
        let regions = vec![region].try_into().map_err(|e| format!("regions: {e}"))?;
        let layout = Wire::Layout { regions, digest_key: plan.digest_key };
        self.ram = Some(ram);
        self.line.say(&offer).await;
        self.line.say(&layout).await;
        Ok(())
    }

    async fn heard(&mut self, message: Wire) {
        if let Some(word) = from_wire(&message) {
            if let Wire::FromTarget { text, .. } = &message
                && !text.as_str().is_empty()
            {
                self.peer_says(word, text.as_str());
            }
            (self.repeats, self.peer.around) = (0, false);
            return self.word(word);
        }
        self.peer.ended |= matches!(message, Wire::Refuse { .. } | Wire::Cancel { .. });
        match message {
            Wire::Accept { attempt, lanes } if self.stage == Stage::Accept => {
                let count = self.lanes.as_ref().map_or(0, crate::pump::Lanes::count);
                if attempt != self.plan.attempt || usize::from(lanes) != count {
                    let why = "the target accepted another attempt, or other lanes, than offered";
                    return self.fail(Reason::Protocol, why);
                }
                self.stage = Stage::Open;
                self.tell_phase();
                self.start_log();
            }
            Wire::Refuse { code, text } => self.fail(reason_of(code), text_of("refused", &text)),
            Wire::Cancel { text } => {
                self.fail(Reason::Refused, text_of("the target ended the move", &text));
            }
            Wire::Rehearsed { restore_us, problems } => {
                self.rehearsed(restore_us, problems.as_slice());
            }
            Wire::Restored { switch, restore_us, .. } if self.is_ours(switch) => {
                self.log.note(format!("restoring took {restore_us} µs at the target"));
            }
            Wire::Started { switch, steps } if self.is_ours(switch) => {
                let named = Step::TARGET.into_iter().zip(steps.into_vec());
                let told = named.map(|(step, at_us)| StepDone { step, at_us });
                self.log.report.peer_blackout = told.collect();
            }
            Wire::Ping { nonce } => self.line.say(&Wire::Pong { nonce }).await,
            Wire::RoundAck { .. } | Wire::AnswerSums { .. } => self.line.pass(message),
            _ if self.stage != Stage::Open => {
                let why =
                    format!("the target said {} in the middle of the opening", message.name());
                self.fail(Reason::Protocol, why);
            }
            // Figures that are late, or of a newer program.
            _ => {}
        }
    }

    fn is_ours(&self, switch: SwitchId) -> bool {
        self.machine.switch().is_some_and(|ours| ours.id == switch)
    }

    /// The target says the cause of a word.
    fn peer_says(&mut self, word: Message, text: &str) {
        if let Body::ToSource(ToSource::Says(says, _)) = word.body
            && self.is_ours(word.switch.id)
        {
            match says {
                TargetSays::NeverRan => self.log.cause(Reason::NeverRan, text),
                TargetSays::Refuses(why) if self.is_free() => {
                    self.log.cause(reason_of_refusal(why), format!("at the destination, {text}"));
                }
                _ => {}
            }
        }
    }

    /// A word of the hand-over, on the link or around it.
    pub(super) fn word(&mut self, word: Message) {
        if let Body::ToSource(ToSource::Says(says, _)) = word.body
            && self.is_ours(word.switch.id)
        {
            match says {
                TargetSays::NeverRan | TargetSays::Refuses(_) => self.peer.ended = true,
                TargetSays::Prepared => self.log.step(Step::PreparedHeard),
                TargetSays::Ran { .. } => {
                    if self.log.done(Step::RanHeard).is_none() {
                        self.event(Event::Ran);
                    }
                    self.log.step(Step::RanHeard);
                }
                _ => {}
            }
        }
        self.inputs.push_back(Input::Heard(word));
    }

    /// The peer broke the protocol.
    fn broken(&mut self, why: &TalkError) {
        let text = why.to_string();
        self.line.drop_link(CloseCode::Protocol, &text);
        self.event(Event::LinkLost(text.clone()));
        self.fail(Reason::Protocol, text);
        self.inputs.push_back(Input::LinkLost);
    }

    /// Nothing more comes on the link.
    pub(super) fn link_failed(&mut self, why: &TalkError) {
        let text = why.to_string();
        self.line.drop_link(CloseCode::Failed, &text);
        self.event(Event::LinkLost(text.clone()));
        self.log.note(format!("the link ended: {text}"));
        let cut = why.is_cut() && self.stage == Stage::Open;
        if !cut {
            self.fail(reason_of_end(why), text);
        }
        self.inputs.push_back(Input::LinkLost);
    }

    pub(super) fn opening_over(&mut self) {
        if self.stage != Stage::Open {
            self.fail(Reason::LinkLost, "the target did not agree to the move in time");
        }
    }

    /// Puts the dirty log on, on a thread.
    fn start_log(&mut self) {
        let Hold::Running(guest) = self.hold.take() else {
            return self.fail(Reason::GuestFailed, "the guest is not here");
        };
        self.jobs.start(async move {
            let (guest, log) = blocking(move || {
                let log = guest.start_log();
                (guest, log)
            })
            .await;
            Done::Logged(guest, log)
        });
    }
}

fn read_reply(frame: &Bytes) -> Result<Reply, WireError> {
    let (header, body) =
        frame.split_first_chunk::<OPENING_HEADER>().ok_or(WireError::Short("the opening"))?;
    Reply::decode(&OpeningHeader::decode(header)?, body)
}

fn reason_of(code: RefuseCode) -> Reason {
    if code == RefuseCode::INCOMPATIBLE { Reason::Incompatible } else { Reason::Refused }
}

/// The reason of a refusal, where it is more than that.
pub(super) fn reason_of_refusal(why: Refusal) -> Reason {
    match why {
        Refusal::Journal => Reason::Journal,
        Refusal::Incompatible => Reason::Incompatible,
        Refusal::OldTerm
        | Refusal::Malformed
        | Refusal::DiskTaken
        | Refusal::DiskNewer
        | Refusal::NotWaiting => Reason::Refused,
    }
}

fn reason_of_end(why: &TalkError) -> Reason {
    match why {
        TalkError::Ended(Ended::Peer(close)) if close.code == CloseCode::Refused => Reason::Refused,
        TalkError::Ended(Ended::Lost(_)) => Reason::LinkLost,
        TalkError::Ended(Ended::Broken(_)) | TalkError::Wire(_) => Reason::Protocol,
        _ => Reason::PeerGone,
    }
}
