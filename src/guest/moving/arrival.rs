//! Receives a guest: a session of the engine on a thread of its own, and meanwhile a small loop
//! that answers for a guest that is not there yet. When it has come, the owner takes over.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::failpoint;
use migrate_engine::handover::term::HostId;
use migrate_engine::port::{ReadUnits, Receiver};
use migrate_engine::session::edge::Outside;
use migrate_engine::session::report::Side;
use migrate_engine::session::target::{self, Arrived, Expected, Outcome};
use migrate_engine::session::{Command, SystemClock};
use migrate_engine::wire::{AttemptId, GuestId, MoveId};
use tokio::sync::mpsc;

use super::departure::{UnderWay, WORDS};
use super::feed::Feed;
use super::landed::{LandedPaused, LandedRunning, Landing};
use super::link::End;
use super::report::About;
use super::rights::ProcessRights;
use super::tell::Teller;
use crate::api::moving::{MoveEvent, MoveOptions, MoveOutcome, MovePhase, MoveReport, ReceiveSpec};
use crate::api::{ErrorCode, Failure, GuestState};
use crate::config::GuestDefinition;
use crate::guest::decide::Input;
use crate::guest::facts::{Facts, Now};
use crate::guest::inbox::{Answer, Command as Wish, Event, Inbox, Request, Sources};
use crate::guest::journal::SharedJournal;
use crate::guest::machine::{MachineReceiver, PausedMachine};

/// All that an arrival needs of its process.
pub struct Arrival<R: MachineReceiver> {
    /// The daemon's order.
    pub spec: ReceiveSpec,
    /// The guest.
    pub definition: GuestDefinition,
    /// Bound as the order says.
    pub sockets: Vec<UdpSocket>,
    /// The empty machine and the disks here.
    pub landing: Landing<R>,
    /// The guest's journal here.
    pub journal: SharedJournal,
    /// Directory of its marks.
    pub marks: PathBuf,
    /// Where the end is told.
    pub inbox: Inbox<R::Paused>,
}

/// What came of it.
pub enum Landed<P: PausedMachine> {
    /// The guest is here and runs.
    Running(P::Running),
    /// It is here and stands still, as its user wants or because it could not be let run.
    Paused(P),
    /// It is not here and will not come.
    NotTaken(String),
    /// Another host has a better right: the memory waits for an operator.
    Held(P),
}

/// Begins to wait for the source.
///
/// # Errors
/// The order is malformed, or no thread can be had.
pub fn begin<R: MachineReceiver>(arrival: Arrival<R>) -> Result<UnderWay, Failure> {
    let end = End::new(&arrival.spec.end, None)?;
    let expected = expected(&arrival)?;
    let (move_id, to) = (arrival.spec.move_id, arrival.spec.to.name.clone());
    let limiter = end.limiter();
    UnderWay::start(move_id, to, limiter, |told, feed| run(arrival, end, expected, told, feed))
}

fn expected<R: MachineReceiver>(arrival: &Arrival<R>) -> Result<Expected, Failure> {
    let Arrival { spec, definition, landing, journal, .. } = arrival;
    Ok(Expected {
        move_id: MoveId(spec.move_id.into_bytes()),
        attempt: AttemptId(spec.attempt.into_bytes()),
        guest: GuestId(definition.uuid.into_bytes()),
        name: definition.name.clone(),
        definition: super::definition_bytes(definition)?,
        layout: ReadUnits::layout(&Receiver::ram(landing)),
        program: super::PROGRAM.into(),
        host: journal.whose().host,
        from: HostId(spec.from.id.as_u128()),
        highest: journal.ledger().highest(),
        began_unix_ms: super::unix_ms(),
    })
}

async fn run<R: MachineReceiver>(
    arrival: Arrival<R>,
    end: End,
    expected: Expected,
    commands: mpsc::Receiver<Command>,
    feed: Feed,
) {
    let Arrival { spec, definition, sockets, landing, journal, marks, inbox } = arrival;
    let about = Arc::new(About {
        move_id: spec.move_id,
        guest: definition.name.clone(),
        uuid: definition.uuid,
        from: spec.from.clone(),
        to: spec.to.clone(),
        started: Timestamp::now(),
        options: MoveOptions::default(),
        memory_bytes: definition.memory_bytes,
    });
    let teller = Arc::new(Teller::new(feed.clone(), Arc::clone(&about)));
    teller.phase(MovePhase::Connecting);
    let (mut commands, patience) = (commands, Duration::from_millis(spec.patience_ms));
    let link = tokio::select! {
        link = end.accept(sockets, patience) => link,
        why = given_up(&mut commands) => {
            let next = "start the move again when it suits";
            Err(Failure::new(ErrorCode::Cancelled, why, next))
        }
    };
    let link = match link {
        Ok(link) => link,
        Err(failure) => {
            inbox.landed(Landed::NotTaken(failure.to_string())).await;
            feed.tell(&MoveEvent::Result(Box::new(nobody_came(&about, failure))));
            return;
        }
    };
    let (events, heard) = mpsc::unbounded_channel();
    let (messages, carried) = mpsc::channel(WORDS);
    let outside = Outside { commands, events, messages };
    let rights =
        ProcessRights::new(journal, Arc::clone(&landing.disks), marks, spec.from.name.clone());
    let rights = failpoint::rights(Side::Target, rights);
    let telling = {
        let teller = Arc::clone(&teller);
        tokio::spawn(async move { tokio::join!(teller.events(heard), teller.words(carried)) })
    };
    let (outcome, _rights) =
        target::run(link, expected, landing, rights, SystemClock::new(), outside).await;
    let _ = telling.await;
    let (landed, report) = match outcome {
        Outcome::Arrived { guest, report } => {
            let landed = match guest {
                Arrived::Running(LandedRunning { machine, .. }) => Landed::Running(machine),
                Arrived::Paused(LandedPaused(machine)) => Landed::Paused(machine),
                Arrived::Stuck { guest: LandedPaused(machine), why } => {
                    tracing::error!(MOVE = %about.move_id, GUEST = %about.guest, why,
                        "the guest came, but could not be let run: it stands still");
                    Landed::Paused(machine)
                }
            };
            (landed, report)
        }
        Outcome::NotTaken { text, report, .. } => (Landed::NotTaken(text), report),
        Outcome::Superseded { guest: LandedPaused(machine), report } => {
            (Landed::Held(machine), report)
        }
    };
    inbox.landed(landed).await;
    feed.tell(&MoveEvent::Result(Box::new(about.ended(&report, Timestamp::now()))));
}

/// Somebody says that nobody will come.
pub(super) async fn given_up(commands: &mut mpsc::Receiver<Command>) -> String {
    loop {
        match commands.recv().await {
            Some(Command::Cancel(why) | Command::PeerGone(why) | Command::GuestEnded(why)) => {
                return why;
            }
            // One that nobody answers is answered with that.
            Some(Command::Heard(_) | Command::Claim(_)) => {}
            None => std::future::pending().await,
        }
    }
}

fn nobody_came(about: &About, failure: Failure) -> MoveReport {
    MoveReport {
        ended: Some(Timestamp::now()),
        outcome: Some(MoveOutcome::Kept),
        error: Some(*failure.0),
        ..about.blank(MovePhase::Ended)
    }
}

/// Answers for the guest until it has come, or will not come.
pub fn attend<P: PausedMachine>(
    sources: &mut Sources<P>,
    facts: &Facts,
    coming: &UnderWay,
) -> Landed<P> {
    loop {
        match sources.wait(None) {
            Event::Landed(landed, ack) => {
                let _ = ack.send(());
                return landed;
            }
            Event::Request(request) => answer(request, facts, coming),
            Event::Terminate => coming.tell(Command::Cancel("the host stops".into())),
            // Nothing of the guest is here that could say or do anything.
            Event::Guest(_)
            | Event::SaveDone(_)
            | Event::CallerGone
            | Event::Deadline
            | Event::Lease(_)
            | Event::MoveOver(..) => {}
        }
    }
}

fn answer(request: Request, facts: &Facts, coming: &UnderWay) {
    let request = match request {
        Request { command: Wish::Claim(claim), reply } => {
            return super::claim::pass(&claim, coming, reply);
        }
        other => other,
    };
    let answer = match request.command.input() {
        Input::Info => Ok(Answer::Info(Box::new(facts.info(Now {
            state: GuestState::Arriving,
            memory_used_bytes: 0,
            cpu_share_percent: 100,
            resets: 0,
            crash: None,
            disk_tracking: Vec::new(),
        })))),
        Input::MoveFeed => Ok(Answer::Feed(coming.feed.clone())),
        Input::MoveCancel => Ok(Answer::Cancelled(coming.cancel("cancelled"))),
        Input::MoveHeard => {
            match request.command {
                Wish::Heard(message) => coming.tell(Command::Heard(message)),
                Wish::PeerGone(why) => coming.tell(Command::PeerGone(why)),
                _ => {}
            }
            Ok(Answer::Done)
        }
        Input::Stop { .. } => {
            coming.tell(Command::Cancel("stopped at the destination".into()));
            Err(busy("the move is being cancelled"))
        }
        _ => Err(busy("the guest is not here yet: it arrives from another host")),
    };
    request.reply.send(answer.map_err(|f| f.with_state(GuestState::Arriving)));
}

fn busy(message: &str) -> Failure {
    Failure::new(ErrorCode::Busy, message, "watch it: migrate watch").retryable()
}
