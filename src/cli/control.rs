//! Commands that look at a guest or push its buttons.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use super::args::{LsArgs, StopArgs, ThrottleArgs};
use super::{Done, OK, Session};
use crate::api::client::{CHANGE_DEADLINE, CallError, GuestClient, LOOK_DEADLINE};
use crate::api::{ErrorCode, ExitHow, ExitRecord, Failure, GuestInfo, GuestState, StopHow};
use crate::host::exits;
use crate::host::leftover::{Life, life};
use crate::host::registry::{self, describe, locate, wait_gone};
use crate::show;

/// How long a guest may take to power off, if nothing is said.
pub const STOP_DEADLINE: Duration = Duration::from_secs(90);
/// How long the process of a guest that ended may take to clear up.
pub const GONE_DEADLINE: Duration = Duration::from_secs(30);

/// `ls`
pub fn ls(session: &Session, args: &LsArgs) -> Done {
    let listing = registry::list(&session.dirs, args.all)?;
    let words = show::table::listing(&listing, jiff::Timestamp::now(), session.out.style);
    if session.out.json {
        session.out.result(&listing, "")?;
    } else {
        session.out.print(&words)?;
    }
    Ok(OK)
}

/// `show`
pub fn show(session: &Session, name: &str) -> Done {
    let out = session.out;
    let client = match locate(&session.dirs, name) {
        Ok(client) => client,
        Err(absent) if stopped(&absent) => {
            let record = exits::latest(&session.dirs, name).ok().flatten().ok_or(absent)?;
            out.result(&record, &show::guest::ended_page(&record))?;
            return Ok(OK);
        }
        Err(other) => return Err(other),
    };
    let deadline = session.global.timeout.unwrap_or(LOOK_DEADLINE);
    let info = client.info(deadline).map_err(|e| client.failure(e))?;
    if out.json {
        out.result(&info, "")?;
    } else {
        out.print(&show::guest::page(&info, jiff::Timestamp::now(), out.style))?;
    }
    Ok(OK)
}

fn stopped(failure: &Failure) -> bool {
    failure.0.guest_state == Some(GuestState::Stopped)
}

/// `pause`
pub fn pause(session: &Session, name: &str) -> Done {
    change(session, name, GuestClient::pause)
}

/// `resume`
pub fn resume(session: &Session, name: &str) -> Done {
    change(session, name, GuestClient::resume)
}

/// `reset`
pub fn reset(session: &Session, name: &str) -> Done {
    change(session, name, GuestClient::reset)
}

/// `throttle`
pub fn throttle(session: &Session, args: &ThrottleArgs) -> Done {
    change(session, &args.guest.guest, |client, deadline| client.throttle(args.percent, deadline))
}

fn change(
    session: &Session,
    name: &str,
    call: impl FnOnce(&GuestClient, Duration) -> Result<GuestInfo, CallError>,
) -> Done {
    let client = locate(&session.dirs, name)?;
    let deadline = session.global.timeout.unwrap_or(CHANGE_DEADLINE);
    let info = call(&client, deadline).map_err(|e| client.failure(e))?;
    session.out.result(&info, &show::guest::sentence(&info))?;
    Ok(OK)
}

/// The result of `stop`.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    schema: u32,
    name: &'a str,
    how: ExitHow,
    /// It did not run when it was asked to stop.
    already_stopped: bool,
}

/// `stop`
pub fn stop(session: &Session, args: &StopArgs) -> Done {
    let name = args.guest.guest.as_str();
    let client = match locate(&session.dirs, name) {
        Ok(client) => client,
        Err(absent) if stopped(&absent) => {
            let record = exits::latest(&session.dirs, name).ok().flatten();
            let how = record.map_or(ExitHow::Died, |r| r.how);
            let document = Outcome { schema: 1, name, how, already_stopped: true };
            session.out.result(&document, &format!("{name} is stopped already"))?;
            return Ok(OK);
        }
        Err(other) => return Err(other),
    };
    let deadline = session.global.timeout.unwrap_or(STOP_DEADLINE);
    let deadline = if args.kill { Duration::ZERO } else { deadline };
    if !args.kill {
        session
            .out
            .progress(&format!("{name}: power button pressed, up to {} s …", deadline.as_secs()));
    }
    let how = end(session, &client, deadline, args.kill)?;
    let document = Outcome { schema: 1, name, how, already_stopped: false };
    session.out.result(&document, &format!("{name} is stopped: it {}", describe(how)))?;
    Ok(OK)
}

/// Ends the guest and waits until nothing of it is left.
fn end(
    session: &Session,
    client: &GuestClient,
    deadline: Duration,
    by_force: bool,
) -> Result<ExitHow, Failure> {
    match client.stop(deadline) {
        Ok(result) => {
            let record = wait_gone(&session.dirs, client, GONE_DEADLINE)?;
            let from_answer = match result.how {
                StopHow::PoweredOff => ExitHow::PoweredOff,
                StopHow::Killed => ExitHow::Killed,
            };
            Ok(record.map_or(from_answer, |r| r.how))
        }
        Err(CallError::Lost(_) | CallError::Connect(_)) if ends_soon(client) => {
            let record = wait_gone(&session.dirs, client, GONE_DEADLINE)?;
            Ok(record.map_or(ExitHow::Died, |r| r.how))
        }
        Err(CallError::Lost(_) | CallError::Connect(_) | CallError::Late(_)) if by_force => {
            kill_process(session, client)
        }
        Err(error) => Err(client.failure(error)),
    }
}

/// Whether a guest whose connection broke is gone within a moment.
fn ends_soon(client: &GuestClient) -> bool {
    (0..100).any(|_| {
        let gone = !matches!(life(client.paths()), Ok(Life::Alive));
        if !gone {
            std::thread::sleep(Duration::from_millis(10));
        }
        gone
    })
}

/// Kills a guest process that does not answer.
fn kill_process(session: &Session, client: &GuestClient) -> Result<ExitHow, Failure> {
    let name = client.name();
    let cannot = |why: String| {
        let log = session.dirs.guest_log(name);
        Failure::new(
            ErrorCode::Unreachable,
            format!("guest '{name}' does not answer and its process cannot be killed: {why}"),
            format!(
                "find the process that holds {} and read {}",
                client.paths().lock().display(),
                log.display()
            ),
        )
    };
    // The file lies in the directory whose lock is held, so it was written by the holder, and the
    // process id in it is the holder's, which cannot be reused while it lives.
    let bytes = fs::read(client.paths().info()).map_err(|e| cannot(e.to_string()))?;
    let info: GuestInfo = serde_json::from_slice(&bytes).map_err(|e| cannot(e.to_string()))?;
    if !matches!(life(client.paths()), Ok(Life::Alive)) {
        return Ok(
            wait_gone(&session.dirs, client, GONE_DEADLINE)?.map_or(ExitHow::Died, |r| r.how)
        );
    }
    let pid = i32::try_from(info.pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| cannot(format!("{} is not a process id", info.pid)))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|e| cannot(e.to_string()))?;
    let record = wait_gone(&session.dirs, client, GONE_DEADLINE)?;
    if let Some(record) = record {
        let detail = Some("its process did not answer; stop --kill ended it".to_owned());
        let record = ExitRecord { how: ExitHow::Killed, detail, ..record };
        exits::write(&session.dirs, &record).map_err(|e| cannot(e.to_string()))?;
    }
    Ok(ExitHow::Killed)
}

/// `rm`
pub fn rm(session: &Session, name: &str) -> Done {
    #[derive(Serialize)]
    struct Removed<'a> {
        schema: u32,
        name: &'a str,
        records: usize,
    }
    match locate(&session.dirs, name) {
        Ok(client) => {
            let state = client.info(LOOK_DEADLINE).map_or(GuestState::Running, |i| i.state);
            return Err(Failure::new(
                ErrorCode::WrongState,
                format!("guest '{name}' has a process; rm removes the records of ended guests"),
                format!("stop it first: migrate stop {name}"),
            )
            .with_state(state));
        }
        Err(absent) if stopped(&absent) => {}
        // Its records go; where it went is not forgotten, it stands in the journal.
        Err(left) if left.0.code == ErrorCode::MovedAway => {
            if exits::latest(&session.dirs, name).ok().flatten().is_none() {
                return Err(left);
            }
        }
        Err(other) => return Err(other),
    }
    let file = |e: std::io::Error| {
        Failure::new(
            ErrorCode::File,
            format!("cannot remove the records of '{name}': {e}"),
            format!("check {}", session.dirs.exits().display()),
        )
    };
    let records = exits::remove(&session.dirs, name).map_err(file)?;
    exits::prune(&session.dirs, SystemTime::now()).map_err(file)?;
    let plural = if records == 1 { "" } else { "s" };
    let words = format!("{name}: {records} record{plural} removed");
    session.out.result(&Removed { schema: 1, name, records }, &words)?;
    Ok(OK)
}
