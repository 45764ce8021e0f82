//! Before the point of doubt: every failure lets the guest run on.

use super::super::effect::{Effect, Input, Notice, Timer, Why};
use super::super::journal::Record;
use super::super::message::{Body, Message, TargetSays, ToSource, ToTarget};
use super::super::term::{Millis, Switch, Term};
use super::{LINK_MS, Next, Setup, State, again};

/// An abort is free here. It is recorded without waiting for it: otherwise the journal would read
/// like one in doubt after a reboot, months later.
fn abort(switch: Switch, why: Why, mut effects: Vec<Effect>) -> (State, Vec<Effect>) {
    effects.push(Effect::Record(Record::Withdrawn(switch)));
    effects.push(Effect::Report(Notice::Kept(why)));
    (State::Kept { switch: Some(switch), said: false }, effects)
}

/// An end before anything was recorded.
fn end(why: Why) -> (State, Vec<Effect>) {
    let effects = vec![Effect::EndAttempt, Effect::Report(Notice::Kept(why))];
    (State::Kept { switch: None, said: false }, effects)
}

/// Inputs that end an attempt wherever that is free.
fn ends(input: Input) -> Option<Why> {
    match input {
        Input::Cancel => Some(Why::Cancelled),
        Input::GuestEnded => Some(Why::GuestEnded),
        Input::CopyFailed => Some(Why::CopyFailed),
        Input::Timer(Timer::Link) => Some(Why::LinkLost),
        Input::Heard(Message { body: Body::ToSource(ToSource::Says(says, _)), .. }) => match says {
            TargetSays::Refuses(refusal) => Some(Why::Refused(refusal)),
            TargetSays::NeverRan => Some(Why::NeverRan),
            _ => None,
        },
        _ => None,
    }
}

/// The guest runs: copying, offering, offered. A pause that begins now lasts until `limit`.
pub(super) fn running(
    setup: &Setup,
    state: State,
    input: Input,
    now: Millis,
    limit: Millis,
) -> Next {
    if let Some(why) = ends(input) {
        return Some(match state {
            // The record may be on its way: the withdrawal follows it.
            State::Offered(switch) | State::Offering { switch, stamped: true } => {
                abort(switch, why, Vec::new())
            }
            _ => end(why),
        });
    }
    match (state, input) {
        // Streams move over to the link that came back; a late timer finds it there.
        (_, Input::LinkLost) => {
            Some((state, vec![Effect::SetTimer(Timer::Link, now.after(LINK_MS))]))
        }
        (_, Input::LinkBack) => {
            Some((state, vec![Effect::SetTimer(Timer::Link, Millis(u64::MAX))]))
        }
        (State::Copying, Input::Switch { id, beside, .. }) => {
            let term = Term::above(&[setup.highest, setup.owned, beside.highest()]);
            let Setup { owned: before, host: from, to, .. } = *setup;
            let switch = Switch { id, before, term, from, to };
            Some((State::Offering { switch, stamped: false }, vec![Effect::StampOffer(term)]))
        }
        (State::Offering { switch, stamped: false }, Input::OfferStamped) => {
            let record = Effect::Record(Record::Offered(switch));
            Some((State::Offering { switch, stamped: true }, vec![record]))
        }
        (State::Offering { stamped: false, .. }, Input::StampFailed) => Some(end(Why::Stamp)),
        (State::Offering { switch, .. }, Input::Recorded(r)) if r == Record::Offered(switch) => {
            Some((State::Offered(switch), offer(switch, now)))
        }
        (State::Offering { switch, .. }, Input::RecordFailed(_)) => {
            Some(abort(switch, Why::Journal, Vec::new()))
        }
        (State::Offered(switch), Input::Timer(Timer::Again)) => Some((state, offer(switch, now))),
        (State::Offered(switch), Input::Heard(message)) if is(&message, TargetSays::Ready) => {
            let limit = Effect::SetTimer(Timer::Deadline, limit);
            Some((State::Stopping { switch, sent: false }, vec![limit, Effect::Pause]))
        }
        _ => None,
    }
}

fn offer(switch: Switch, now: Millis) -> Vec<Effect> {
    vec![Effect::Send(Message::to_target(switch, ToTarget::Offer)), again(now)]
}

fn is(message: &Message, wanted: TargetSays) -> bool {
    matches!(message.body, Body::ToSource(ToSource::Says(says, _)) if says == wanted)
}

/// The guest is being stopped, or stands still; the target lacks at least the last piece, whose
/// answer is waited for until `limit`.
pub(super) fn stopping(
    setup: &Setup,
    switch: Switch,
    sent: bool,
    input: Input,
    limit: Millis,
) -> Next {
    let why = match input {
        Input::Timer(Timer::Deadline) => Some(Why::Deadline),
        Input::ArbiterSilent if sent => Some(Why::Arbiter),
        _ => ends(input),
    };
    if let Some(why) = why {
        let run_on = if why == Why::GuestEnded { vec![] } else { vec![Effect::Resume] };
        return Some(abort(switch, why, run_on));
    }
    match input {
        Input::Paused => Some((State::Stopping { switch, sent }, vec![Effect::LastRound])),
        // The arbiter is probed while an abort is still free.
        Input::LastRoundDone if setup.arbiter => {
            Some((State::Stopping { switch, sent: true }, vec![Effect::ReadArbiter]))
        }
        Input::Arbiter(stamp) if sent && switch.is_held(stamp) => Some(doubt(setup, switch, limit)),
        Input::Arbiter(_) if sent => Some(abort(switch, Why::Arbiter, vec![Effect::Resume])),
        Input::LastRoundDone => Some(doubt(setup, switch, limit)),
        _ => None,
    }
}

/// The point of doubt.
fn doubt(setup: &Setup, switch: Switch, limit: Millis) -> (State, Vec<Effect>) {
    let piece = ToTarget::LastPiece { paused: setup.paused };
    let limit = Effect::SetTimer(Timer::Deadline, limit);
    (State::InDoubt(switch), vec![limit, Effect::Send(Message::to_target(switch, piece))])
}
