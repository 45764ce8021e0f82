//! What a guest process does about what happens, as one pure function. The owner carries it out.
//!
//! | | running | paused | crashed | stopping | saving |
//! |---|---|---|---|---|---|
//! | measure writes | measure | measure | refuse | busy | busy |
//! | pause | pause | – | refuse | busy | busy |
//! | resume | – | resume | refuse | busy | busy |
//! | reset | rebuild, run | rebuild, stay paused | rebuild, run | busy | busy |
//! | stop | power button | resume, power button | end | busy | busy |
//! | stop now | end | end | end | end | give the save up, end |
//! | save | save | save | refuse | busy | busy |
//! | guest: reset | rebuild, run | rebuild, stay paused | – | end | – |
//! | guest: power-off | end | end | – | end | – |
//! | guest: crash | by `on_crash` | by `on_crash` | – | end | – |
//! | SIGTERM | by `on_host_stop` | by `on_host_stop` | end | – | later |
//! | caller gone | end | end | end | end | give the save up, end |
//! | deadline | – | – | – | end | – |
//! | move | begin | begin | refuse | busy | busy |
//!
//! While a guest is being moved and still here, measuring, pause, resume, save and another move are busy;
//! whatever resets, stops or ends it ends the move first. While it is being handed over it is
//! with the move: everything but a look is busy, and SIGTERM waits for the outcome. A guest that
//! another host has a better right to is held for an operator, and can only be ended.
//!
//! A guest without ACPI answers the power button by a reset or a triple fault, so these end it
//! while it is stopping.

use vmm::events::GuestEvent;

use crate::api::{ErrorCode, ExitHow};
use crate::config::{OnCrash, OnHostStop};

/// What the guest is doing, without what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its vCPUs run.
    Running,
    /// Stopped by its user.
    Paused,
    /// It crashed and stands still.
    Crashed,
    /// The power button was pressed; a deadline runs.
    Stopping,
    /// A save is being written; its vCPUs stand still.
    Saving,
    /// It is being handed to another host.
    Leaving,
    /// Another host has a better right; its memory is kept.
    Held,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Asked by a client: facts.
    Info,
    /// Asked by the daemon: how fast it writes to its memory.
    Measure,
    /// Asked by a client.
    Pause,
    /// Asked by a client.
    Resume,
    /// Asked by a client.
    Reset,
    /// Asked by a client. `now`: without the power button.
    Stop {
        /// Do not ask the guest.
        now: bool,
    },
    /// Asked by a client.
    Save {
        /// Let it run on.
        keep_running: bool,
    },
    /// Asked by a client: share of time, percent.
    Throttle(u8),
    /// Asked by the daemon: move it to another host.
    Move,
    /// Asked by the daemon: cancel that.
    MoveCancel,
    /// Asked by the daemon: what happens in a move.
    MoveFeed,
    /// Told by the daemon: a word of the other side.
    MoveHeard,
    /// Told by the guest.
    Guest(GuestEvent),
    /// SIGTERM.
    Terminate,
    /// The process that started `run --rm` is gone.
    CallerGone,
    /// The guest did not power off in time.
    Deadline,
}

/// What of the guest's definition matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one guest")]
pub struct Policy {
    /// After a crash.
    pub on_crash: OnCrash,
    /// On SIGTERM.
    pub on_host_stop: OnHostStop,
    /// It has a disk that it can write.
    pub writable_disk: bool,
    /// It crashed too often lately to be restarted once more.
    pub crash_loop: bool,
    /// It is being moved.
    pub moving: bool,
    /// It ends with the process that started it, which no move takes along.
    pub bound_to_caller: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with the facts as they are.
    Answer,
    /// Watch its writes for a moment.
    Measure,
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs run.
    Resume,
    /// Make a new machine with the same identity.
    Rebuild {
        /// And run it; else it stays paused.
        run: bool,
        /// Because it crashed.
        crashed: bool,
    },
    /// Press the power button and start the deadline, letting a paused guest run first.
    PowerButton,
    /// Save into the client's file.
    Save {
        /// Let it run on.
        keep_running: bool,
    },
    /// Save into the state directory and end. If that fails: as [`Action::PowerButton`].
    SaveAndEnd,
    /// Set the share.
    Throttle(u8),
    /// Begin to move it.
    Move,
    /// Cancel the move.
    CancelMove,
    /// Answer with the move's events.
    Feed,
    /// Tell the move what the other side says.
    Hear,
    /// Keep the crashed guest as it is.
    StandStill {
        /// Why it crashed.
        reason: String,
    },
    /// End.
    End {
        /// How, for the record.
        how: ExitHow,
        /// More, for people.
        detail: Option<String>,
    },
    /// Look at this again when the save is done.
    Later,
    /// Nothing.
    Ignore,
    /// Say no.
    Refuse(Refusal),
}

/// A no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code.
    pub code: ErrorCode,
    /// What is in the way.
    pub message: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const BUSY: Refusal = Refusal {
    code: ErrorCode::Busy,
    message: "another operation on this guest is in progress",
    remedy: "try again when it is done",
};
const MOVING: Refusal = Refusal {
    code: ErrorCode::Busy,
    message: "the guest is being moved",
    remedy: "wait for the outcome (migrate watch), or cancel the move first (migrate cancel)",
};
const LEAVING: Refusal = Refusal {
    code: ErrorCode::Busy,
    message: "the guest is being handed to another host",
    remedy: "wait for the outcome: migrate watch",
};
const HELD: Refusal = Refusal {
    code: ErrorCode::Superseded,
    message: "another host has a better right to the guest; its memory here is kept for you",
    remedy: "see where it runs; to give this memory up: migrate stop --kill",
};
const BOUND: Refusal = Refusal {
    code: ErrorCode::WrongState,
    message: "the guest ends with the command that started it (run --rm), so it cannot be moved",
    remedy: "start it without --rm",
};
const NOT_MOVING: Refusal = Refusal {
    code: ErrorCode::NotFound,
    message: "the guest is not being moved",
    remedy: "see what moves there were: migrate history",
};
const CRASHED: Refusal = Refusal {
    code: ErrorCode::WrongState,
    message: "the guest crashed and stands still",
    remedy: "reset it or stop it",
};
const WRITABLE: Refusal = Refusal {
    code: ErrorCode::WritableDisk,
    message: "the guest has a writable disk, which would change after the save",
    remedy: "save without --keep-running, or give the guest only read-only disks",
};
const BAD_SHARE: Refusal = Refusal {
    code: ErrorCode::Usage,
    message: "a CPU share is a percentage from 1 to 100",
    remedy: "give a number from 1 to 100",
};

fn end(how: ExitHow, detail: impl Into<Option<&'static str>>) -> Action {
    Action::End { how, detail: detail.into().map(str::to_owned) }
}

/// What to do about `input` in `phase`.
pub fn decide(phase: Phase, input: Input, policy: Policy) -> Action {
    match input {
        Input::Info => Action::Answer,
        Input::MoveFeed => Action::Feed,
        Input::MoveCancel | Input::MoveHeard if !policy.moving => Action::Refuse(NOT_MOVING),
        Input::MoveCancel => Action::CancelMove,
        Input::MoveHeard => Action::Hear,
        Input::Guest(event) => on_event(phase, event, policy),
        Input::Terminate => on_terminate(phase, policy),
        // A guest that is bound to a caller never leaves.
        Input::CallerGone => end(ExitHow::Killed, "its caller ended"),
        Input::Deadline if phase == Phase::Stopping => {
            end(ExitHow::Killed, "it did not power off in time")
        }
        Input::Deadline => Action::Ignore,
        Input::Stop { .. } if phase == Phase::Leaving => Action::Refuse(LEAVING),
        Input::Stop { now: true } => end(ExitHow::Killed, None),
        Input::Throttle(share) if !(1..=100).contains(&share) => Action::Refuse(BAD_SHARE),
        asked => match phase {
            Phase::Saving => Action::Refuse(BUSY),
            Phase::Leaving => Action::Refuse(LEAVING),
            Phase::Held => Action::Refuse(HELD),
            Phase::Stopping => while_stopping(&asked),
            Phase::Crashed => while_crashed(&asked),
            Phase::Running | Phase::Paused => normally(phase == Phase::Running, &asked, policy),
        },
    }
}

fn normally(running: bool, asked: &Input, policy: Policy) -> Action {
    match *asked {
        Input::Measure | Input::Pause | Input::Resume | Input::Save { .. } | Input::Move
            if policy.moving =>
        {
            Action::Refuse(MOVING)
        }
        Input::Measure => Action::Measure,
        Input::Move if policy.bound_to_caller => Action::Refuse(BOUND),
        Input::Move => Action::Move,
        Input::Pause if running => Action::Pause,
        Input::Resume if !running => Action::Resume,
        Input::Reset => Action::Rebuild { run: running, crashed: false },
        Input::Stop { .. } => Action::PowerButton,
        Input::Save { keep_running: true } if policy.writable_disk => Action::Refuse(WRITABLE),
        Input::Save { keep_running } => Action::Save { keep_running },
        Input::Throttle(share) => Action::Throttle(share),
        _ => Action::Answer,
    }
}

fn while_stopping(asked: &Input) -> Action {
    match *asked {
        Input::Throttle(share) => Action::Throttle(share),
        _ => Action::Refuse(BUSY),
    }
}

fn while_crashed(asked: &Input) -> Action {
    match asked {
        Input::Reset => Action::Rebuild { run: true, crashed: false },
        Input::Stop { .. } => end(ExitHow::Killed, "it had crashed"),
        _ => Action::Refuse(CRASHED),
    }
}

fn on_event(phase: Phase, event: GuestEvent, policy: Policy) -> Action {
    match (phase, event) {
        // A guest that stands still tells nothing; what still arrives is of before.
        (Phase::Crashed | Phase::Saving | Phase::Leaving | Phase::Held, _) => Action::Ignore,
        (_, GuestEvent::PowerOff) => end(ExitHow::PoweredOff, None),
        (Phase::Stopping, GuestEvent::Reset | GuestEvent::TripleFault { .. }) => {
            end(ExitHow::PoweredOff, "it answered the power button by a reset")
        }
        (Phase::Running, GuestEvent::Reset | GuestEvent::TripleFault { .. }) => {
            Action::Rebuild { run: true, crashed: false }
        }
        (Phase::Paused, GuestEvent::Reset | GuestEvent::TripleFault { .. }) => {
            Action::Rebuild { run: false, crashed: false }
        }
        (Phase::Stopping, GuestEvent::Crash { reason }) => {
            Action::End { how: ExitHow::Crashed, detail: Some(reason) }
        }
        (Phase::Running | Phase::Paused, GuestEvent::Crash { reason }) => match policy.on_crash {
            OnCrash::Keep => Action::StandStill { reason },
            OnCrash::Restart if !policy.crash_loop => Action::Rebuild { run: true, crashed: true },
            OnCrash::Restart | OnCrash::Stop => {
                Action::End { how: ExitHow::Crashed, detail: Some(reason) }
            }
        },
    }
}

fn on_terminate(phase: Phase, policy: Policy) -> Action {
    match (phase, policy.on_host_stop) {
        (Phase::Saving | Phase::Leaving, _) => Action::Later,
        (Phase::Held, _) => end(ExitHow::Killed, "the host asked; another host has the guest"),
        (_, OnHostStop::Kill) => end(ExitHow::Killed, "the host asked"),
        (Phase::Crashed, _) => end(ExitHow::Killed, "the host asked; it had crashed"),
        (Phase::Stopping, _) => Action::Ignore,
        (Phase::Running | Phase::Paused, OnHostStop::Shutdown) => Action::PowerButton,
        (Phase::Running | Phase::Paused, OnHostStop::Save) => Action::SaveAndEnd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase::{Crashed, Paused, Running, Saving, Stopping};

    const POLICY: Policy = Policy {
        on_crash: OnCrash::Stop,
        on_host_stop: OnHostStop::Shutdown,
        writable_disk: false,
        crash_loop: false,
        moving: false,
        bound_to_caller: false,
    };

    /// A word for each action, so that the table below can be read.
    fn word(action: &Action) -> &'static str {
        match action {
            Action::Answer => "answer",
            Action::Measure => "measure",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Rebuild { run: true, crashed: true } => "restart",
            Action::Rebuild { run: true, .. } => "rebuild+run",
            Action::Rebuild { run: false, .. } => "rebuild",
            Action::PowerButton => "button",
            Action::Save { keep_running: true } => "save+run",
            Action::Save { keep_running: false } => "save",
            Action::SaveAndEnd => "save+end",
            Action::Throttle(_) => "throttle",
            Action::StandStill { .. } => "stand",
            Action::End { how: ExitHow::PoweredOff, .. } => "end off",
            Action::End { how: ExitHow::Killed, .. } => "end killed",
            Action::End { how: ExitHow::Crashed, .. } => "end crashed",
            Action::End { .. } => "end other",
            Action::Later => "later",
            Action::Move => "move",
            Action::CancelMove => "cancel",
            Action::Feed => "feed",
            Action::Hear => "hear",
            Action::Refuse(r) if [MOVING, LEAVING].contains(r) => "busy",
            Action::Refuse(r) if *r == HELD => "held",
            Action::Refuse(r) if *r == NOT_MOVING => "not moving",
            Action::Ignore => "-",
            Action::Refuse(r) if *r == BUSY => "busy",
            Action::Refuse(r) if *r == CRASHED => "crashed",
            Action::Refuse(_) => "refuse",
        }
    }

    fn crash() -> Input {
        Input::Guest(GuestEvent::Crash { reason: "r".into() })
    }

    fn check(policy: Policy, input: &Input, wanted: [&str; 5]) {
        for (phase, wanted) in [Running, Paused, Crashed, Stopping, Saving].into_iter().zip(wanted)
        {
            let action = decide(phase, input.clone(), policy);
            assert_eq!(word(&action), wanted, "{input:?} while {phase:?}");
        }
    }

    #[test]
    fn the_table() {
        let fault = GuestEvent::TripleFault { vcpu: 1 };
        #[rustfmt::skip]
        let table: Vec<(Input, [&str; 5])> = vec![
            // while:                        running       paused        crashed       stopping      saving
            (Input::Info,                   ["answer",      "answer",     "answer",     "answer",     "answer"]),
            (Input::Measure,                ["measure",     "measure",    "crashed",    "busy",       "busy"]),
            (Input::Pause,                  ["pause",       "answer",     "crashed",    "busy",       "busy"]),
            (Input::Resume,                 ["answer",      "resume",     "crashed",    "busy",       "busy"]),
            (Input::Reset,                  ["rebuild+run", "rebuild",    "rebuild+run","busy",       "busy"]),
            (Input::Stop { now: false },    ["button",      "button",     "end killed", "busy",       "busy"]),
            (Input::Stop { now: true },     ["end killed",  "end killed", "end killed", "end killed", "end killed"]),
            (Input::Save { keep_running: false }, ["save",  "save",       "crashed",    "busy",       "busy"]),
            (Input::Save { keep_running: true }, ["save+run", "save+run", "crashed",    "busy",       "busy"]),
            (Input::Throttle(50),           ["throttle",    "throttle",   "crashed",    "throttle",   "busy"]),
            (Input::Throttle(0),            ["refuse",      "refuse",     "refuse",     "refuse",     "refuse"]),
            (Input::Throttle(101),          ["refuse",      "refuse",     "refuse",     "refuse",     "refuse"]),
            (Input::Guest(GuestEvent::Reset), ["rebuild+run", "rebuild",  "-",          "end off",    "-"]),
            (Input::Guest(fault),           ["rebuild+run", "rebuild",    "-",          "end off",    "-"]),
            (Input::Guest(GuestEvent::PowerOff), ["end off", "end off",   "-",          "end off",    "-"]),
            (crash(),                       ["end crashed", "end crashed","-",          "end crashed","-"]),
            (Input::Terminate,              ["button",      "button",     "end killed", "-",          "later"]),
            (Input::CallerGone,             ["end killed",  "end killed", "end killed", "end killed", "end killed"]),
            (Input::Deadline,               ["-",           "-",          "-",          "end killed", "-"]),
        ];
        for (input, wanted) in table {
            check(POLICY, &input, wanted);
        }
    }

    #[test]
    fn moves() {
        check(POLICY, &Input::Move, ["move", "move", "crashed", "busy", "busy"]);
        let bound = Policy { bound_to_caller: true, ..POLICY };
        check(bound, &Input::Move, ["refuse", "refuse", "crashed", "busy", "busy"]);
        check(POLICY, &Input::MoveCancel, ["not moving"; 5]);
        check(POLICY, &Input::MoveFeed, ["feed"; 5]);
        let moving = Policy { moving: true, ..POLICY };
        for input in [
            Input::Measure,
            Input::Pause,
            Input::Resume,
            Input::Save { keep_running: false },
            Input::Move,
        ] {
            check(moving, &input, ["busy", "busy", "crashed", "busy", "busy"]);
        }
        check(moving, &Input::MoveCancel, ["cancel"; 5]);
        let reset = ["rebuild+run", "rebuild", "rebuild+run", "busy", "busy"];
        check(moving, &Input::Reset, reset);
        #[rustfmt::skip]
        let table: [(Input, &str, &str); 7] = [
            // while:                        leaving  held
            (Input::Info,                   "answer", "answer"),
            (Input::Pause,                  "busy",   "held"),
            (Input::Stop { now: false },    "busy",   "held"),
            (Input::Stop { now: true },     "busy",   "end killed"),
            (Input::Terminate,              "later",  "end killed"),
            (Input::Guest(GuestEvent::PowerOff), "-", "-"),
            (Input::Deadline,               "-",      "-"),
        ];
        for (input, leaving, held) in table {
            let does = |phase| decide(phase, input.clone(), moving);
            assert_eq!(word(&does(Phase::Leaving)), leaving, "{input:?}");
            assert_eq!(word(&does(Phase::Held)), held, "{input:?}");
        }
    }

    #[test]
    fn policies() {
        let keep = Policy { on_crash: OnCrash::Keep, ..POLICY };
        check(keep, &crash(), ["stand", "stand", "-", "end crashed", "-"]);
        let restart = Policy { on_crash: OnCrash::Restart, ..POLICY };
        check(restart, &crash(), ["restart", "restart", "-", "end crashed", "-"]);
        let again = Policy { crash_loop: true, ..restart };
        check(again, &crash(), ["end crashed", "end crashed", "-", "end crashed", "-"]);
        let save = Policy { on_host_stop: OnHostStop::Save, ..POLICY };
        check(save, &Input::Terminate, ["save+end", "save+end", "end killed", "-", "later"]);
        let kill = Policy { on_host_stop: OnHostStop::Kill, ..POLICY };
        let killed = "end killed";
        check(kill, &Input::Terminate, [killed, killed, killed, killed, "later"]);
        let disk = Policy { writable_disk: true, ..POLICY };
        let keep_running = Input::Save { keep_running: true };
        check(disk, &keep_running, ["refuse", "refuse", "crashed", "busy", "busy"]);
        let save = Input::Save { keep_running: false };
        check(disk, &save, ["save", "save", "crashed", "busy", "busy"]);
    }
}
