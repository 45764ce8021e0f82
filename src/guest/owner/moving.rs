//! The owner's part in a move: it lends its machine, takes it back, and hears the outcome.

use std::time::Instant;

use migrate_engine::port::Trial;
use migrate_engine::session::Command as Word;

use super::{Answer, Ending, ExitHow, Failure, MakeMachine, Owner, PausedMachine, Request, State};
use crate::api::ErrorCode;
use crate::guest::inbox::{Ack, Command};
use crate::guest::machine::RunningMachine;
use crate::guest::moving::departure::{self, Departure, Over};
use crate::guest::moving::lease::{Lease, Lent};
use crate::guest::moving::trial;

/// How long a session may take to tell the other side that its guest has ended.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(5);

fn not_here() -> Failure {
    Failure::new(ErrorCode::WrongState, "the guest has ended", "see how: migrate ls -a")
}

impl<M: MakeMachine> Owner<M> {
    /// Begins to move the guest.
    pub(super) fn begin_move(&mut self, request: Option<Request>) -> Option<Ending> {
        let Some(Request { command: Command::Move(start), reply }) = request else { return None };
        let begun = self.units().and_then(|ram| {
            let paused = matches!(self.state, State::Paused(_));
            departure::begin(Departure {
                start: *start,
                definition: self.facts.definition.clone(),
                ram,
                paused,
                inbox: self.inbox.clone(),
                journal: self.journal.clone(),
                disks: self.disk_set.clone(),
                marks: self.marks.clone(),
            })
        });
        reply.send(match begun {
            Ok(under_way) => {
                tracing::info!(MOVE = %under_way.move_id, GUEST = %self.facts.definition.name,
                    to = under_way.to, "the guest is being moved");
                self.moving = Some(under_way);
                Ok(Answer::Done)
            }
            Err(failure) => Err(failure.with_state(self.guest_state())),
        });
        None
    }

    fn units(&self) -> Result<<M::Paused as PausedMachine>::Ram, Failure> {
        let ram = match &self.state {
            State::Running(machine) => machine.units(),
            State::Paused(machine) => machine.units(),
            _ => return Err(not_here()),
        };
        ram.map_err(|e| super::apply::unexpected("the guest's memory is out of reach", &e))
    }

    /// Requests that are about a move.
    pub(super) fn about_move(&mut self, request: Option<Request>) -> Option<Ending> {
        let Request { command, reply } = request?;
        let moving = self.moving.as_ref();
        if let (Command::Claim(claim), Some(moving)) = (&command, moving) {
            crate::guest::moving::claim::pass(claim, moving, reply);
            return None;
        }
        reply.send(match (command, moving) {
            (Command::CancelMove, Some(moving)) => {
                Ok(Answer::Cancelled(moving.cancel("cancelled by its user")))
            }
            (Command::Heard(message), Some(moving)) => {
                moving.tell(Word::Heard(message));
                Ok(Answer::Done)
            }
            (Command::PeerGone(why), Some(moving)) => {
                moving.tell(Word::PeerGone(why));
                Ok(Answer::Done)
            }
            (Command::Bandwidth(rate), Some(moving)) => {
                moving.limiter.set_rate(rate);
                Ok(Answer::Done)
            }
            (Command::MoveFeed, Some(moving)) => Ok(Answer::Feed(moving.feed.clone())),
            (Command::MoveFeed, None) if self.last_feed.is_some() => {
                self.last_feed.clone().map(Answer::Feed).ok_or_else(not_here)
            }
            _ => {
                let message = "the guest is not being moved";
                let remedy = "see what moves there were: migrate history";
                Err(Failure::new(ErrorCode::NotFound, message, remedy))
            }
        });
        None
    }

    /// A move ends before anything else happens to the guest.
    pub(super) fn end_move(&mut self, why: &str) {
        if let Some(moving) = &self.moving {
            moving.tell(Word::GuestEnded(why.to_owned()));
        }
    }

    /// What a move wants of the machine.
    pub(super) fn lease(&mut self, lease: Lease<M::Paused>) -> Option<Ending> {
        match lease {
            Lease::StartLog(reply) => {
                let log = match &self.state {
                    State::Running(machine) => machine.start_log(),
                    State::Paused(machine) => machine.start_log(),
                    _ => Err(not_here()),
                };
                let _ = reply.send(log);
                None
            }
            Lease::RehearsalState(reply) => {
                let (state, ending) = self.rehearsal_state();
                let _ = reply.send(state);
                ending
            }
            Lease::Pause(reply) => {
                let lent = self.lend();
                if let Err(unsent) = reply.send(lent) {
                    // Nobody waits for it any more: it goes on.
                    return unsent.0.and_then(|lent| self.take_back(lent).err());
                }
                None
            }
            Lease::GiveBack(lent, reply) => match self.take_back(lent) {
                Ok(result) => {
                    let _ = reply.send(result);
                    None
                }
                Err(ending) => Some(ending),
            },
        }
    }

    /// The state at this moment. A guest that runs stands still for as long as reading it takes.
    fn rehearsal_state(&mut self) -> (Result<Trial, Failure>, Option<Ending>) {
        let ran = matches!(self.state, State::Running(_));
        if !ran && !matches!(self.state, State::Paused(_)) {
            return (Err(not_here()), None);
        }
        let began = Instant::now();
        self.pause_machine();
        let state = match &mut self.state {
            State::Paused(machine) => machine.save_state(),
            _ => Err(not_here()),
        };
        let save = began.elapsed();
        let resumed = if ran { self.resume_machine() } else { Ok(Ok(())) };
        let state = match resumed {
            Ok(Ok(())) => state,
            Ok(Err(failure)) => Err(failure),
            Err(ending) => return (Err(not_here()), Some(ending)),
        };
        let trial = state.and_then(|s| trial::document(s, &self.disk_set, &self.disks));
        (trial.map(|trial| Trial { save, ..trial }), None)
    }

    /// The machine, for the switch. `None`: the guest ends, or is being reset, just now.
    fn lend(&mut self) -> Option<Lent<M::Paused>> {
        let ran = match self.state {
            State::Running(_) => true,
            State::Paused(_) => false,
            _ => return None,
        };
        self.pause_machine();
        // What the guest did before it was stopped is carried out instead of the switch.
        if let Some(event) = self.sources.guest_event() {
            self.backlog.push_back(event);
            if ran {
                // It fails only as it would when the event is looked at.
                let _ = self.resume_machine();
            }
            return None;
        }
        match std::mem::replace(&mut self.state, State::Leaving) {
            State::Paused(machine) => Some(Lent { machine, ran }),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The machine comes back, and goes on as before.
    #[expect(clippy::type_complexity, reason = "what the lease's reply carries")]
    fn take_back(
        &mut self,
        lent: Lent<M::Paused>,
    ) -> Result<Result<(), (Lent<M::Paused>, Failure)>, Ending> {
        let Lent { machine, ran } = lent;
        self.state = State::Paused(machine);
        if !ran {
            return Ok(Ok(()));
        }
        match self.resume_machine()? {
            Ok(()) => Ok(Ok(())),
            Err(failure) => match std::mem::replace(&mut self.state, State::Leaving) {
                State::Paused(machine) => Ok(Err((Lent { machine, ran }, failure))),
                other => {
                    self.state = other;
                    Ok(Ok(()))
                }
            },
        }
    }

    /// A move ended, one way or the other.
    pub(super) fn move_over(&mut self, over: Over<M::Paused>, ack: Ack) -> Option<Ending> {
        let moving = self.moving.take();
        // A switch that was withdrawn has left the guest in a later term.
        self.facts.term = self.journal.ledger().highest().get().max(self.facts.term);
        let ending = match over {
            Over::Kept(None) if matches!(self.state, State::Leaving) => {
                let detail = Some("its machine was lost in a move".to_owned());
                Some(Ending::stopped(ExitHow::Crashed, detail))
            }
            Over::Kept(None) => None,
            Over::Kept(Some(lent)) => {
                self.state = State::Paused(lent.into_machine());
                None
            }
            Over::Moved => {
                if let Some(m) = &moving {
                    tracing::info!(MOVE = %m.move_id, to = m.to, "the guest has moved");
                }
                let to = moving.as_ref().map_or_else(String::new, |m| format!("to {}", m.to));
                Some(Ending::stopped(ExitHow::Moved, Some(to)))
            }
            Over::Held(held) => {
                self.state = State::Held { _guest: Box::new(held) };
                None
            }
        };
        if let Some(moving) = moving {
            self.last_feed = Some(moving.feed.clone());
            self.mover = Some(moving.thread);
        }
        let _ = ack.send(());
        ending
    }

    /// The guest ends while it is being moved: the other side is told.
    pub(super) fn finish_move(&mut self, why: &str) {
        let Some(moving) = self.moving.take() else { return };
        moving.tell(Word::GuestEnded(why.to_owned()));
        if self.sources.wait_for_move(FAREWELL).is_none() {
            tracing::warn!("the move did not end in time; the other side finds out by itself");
            return;
        }
        self.mover = Some(moving.thread);
    }
}
