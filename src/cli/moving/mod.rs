//! Commands about moves. A command asks the daemon and shows what it hears; it moves nothing, and
//! its end ends no move.

pub mod display;
pub mod follow;
mod past;
mod plan;

pub use past::{cancel, history, report, watch};

use std::collections::VecDeque;
use std::io::{self, IsTerminal};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use uuid::Uuid;

use self::display::{Display, Row};
use self::follow::{Followed, Wish, follow};
use super::args::moving::MoveArgs;
use super::output::Output;
use super::{Done, OK, Session};
use crate::api::client::{block_on, runtime};
use crate::api::daemon_client::DaemonClient;
use crate::api::host::MoveRequest;
use crate::api::moving::{MoveEvent, MoveOptions, MoveOutcome, MoveReport};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestState};
use crate::show::style::Style;
use crate::show::{failure, outcome};

/// Exit code if only some of several guests were moved.
const PART_DONE: u8 = 3;

/// `move`
pub fn start(session: &Session, args: &MoveArgs) -> Done {
    let client = session.daemon();
    let guests = which(&client, args)?;
    let Some(guests) = guests.filter(|g| !g.is_empty()) else {
        let document = Summary::default();
        session.out.result(&document, "There is no guest to move.")?;
        return Ok(OK);
    };
    let several = args.all || guests.len() > 1;
    let requests: Vec<MoveRequest> =
        guests.into_iter().map(|guest| request(session, args, guest)).collect();
    if args.dry_run {
        return plan::show(session, &client, &requests);
    }
    if args.guests.is_empty() && !args.all && !plan::agreed(session, &client, &requests)? {
        return Err(Failure::new(
            ErrorCode::Interrupted,
            "nothing was moved",
            "name guests, or give --all",
        ));
    }
    if args.detach {
        return detached(session, &client, args, &requests);
    }
    let display = Display::new(session.out, several);
    let ends = runtime().map_err(|e| unexpected(&e))?.block_on(run_all(
        &client,
        &display,
        requests,
        usize::from(args.parallel),
    ))?;
    drop(display);
    conclude(session.out, several, &ends)
}

/// This command cannot do its part; nothing is said of any guest.
pub fn unexpected(e: &io::Error) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("this command cannot run: {e}"), "try again")
}

/// The guests that are meant; an error if nothing says which.
fn which(client: &DaemonClient, args: &MoveArgs) -> Result<Option<Vec<String>>, Failure> {
    if !args.guests.is_empty() {
        let mut guests = args.guests.clone();
        guests.sort();
        guests.dedup();
        return Ok(Some(guests));
    }
    let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
    if !args.all && !terminal {
        return Err(Failure::new(
            ErrorCode::Usage,
            "nothing says which guests are to be moved",
            "name guests or give --all",
        ));
    }
    let list = block_on(client.guests()).map_err(|e| client.failure(e))?;
    let here =
        |state| !matches!(state, GuestState::Leaving | GuestState::Arriving | GuestState::Stopped);
    Ok(Some(list.guests.into_iter().filter(|g| here(g.state)).map(|g| g.name).collect()))
}

fn request(session: &Session, args: &MoveArgs, guest: String) -> MoveRequest {
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let defaults = MoveOptions::default();
    let options = MoveOptions {
        max_downtime_ms: ms(args.max_downtime),
        on_stall: args.on_stall.into(),
        timeout_ms: session.global.timeout.map_or(defaults.timeout_ms, ms),
        bandwidth_bytes_per_s: args.bandwidth,
        lanes: None,
    };
    MoveRequest { guest, to: args.to.clone(), options, wait: args.wait }
}

/// Begins all moves and leaves them to the daemon.
fn detached(
    session: &Session,
    client: &DaemonClient,
    args: &MoveArgs,
    requests: &[MoveRequest],
) -> Done {
    #[derive(Serialize)]
    struct Begun<'a> {
        schema: u32,
        r#type: &'static str,
        guest: &'a str,
        move_id: Uuid,
    }
    if requests.len() > usize::from(args.parallel) {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!(
                "--detach begins all {} moves at once, and --parallel allows {}",
                requests.len(),
                args.parallel
            ),
            format!("leave out --detach, or give --parallel {}", requests.len()),
        ));
    }
    let mut failed = Vec::new();
    for request in requests {
        let guest = request.guest.as_str();
        match block_on(client.begin(request)).map_err(|e| client.failure(e)) {
            Ok(begun) => {
                let id = begun.move_id;
                let document = Begun { schema: 1, r#type: "begun", guest, move_id: id };
                let short = outcome::short(id);
                let words = format!("{guest}: move {short} has begun; see: migrate watch {guest}");
                session.out.result(&document, &words)?;
            }
            Err(failure) if failure.0.code == ErrorCode::AlreadyThere => {
                single(session.out, &End { guest: guest.to_owned(), how: already(request) })?;
            }
            Err(failure) if requests.len() == 1 => return Err(failure),
            Err(failure) => {
                session.out.failure(&failure);
                failed.push(failure.0.code.exit_code());
            }
        }
    }
    Ok(code_of_all(requests.len(), &failed, false))
}

/// How a guest's move ended, as far as this command knows.
#[derive(Debug)]
pub struct End {
    guest: String,
    /// How.
    pub how: How,
}

/// See [`End`].
#[derive(Debug)]
pub enum How {
    /// With an outcome.
    Ended(Box<MoveReport>),
    /// The guest was on this host already.
    Already(String),
    /// It was not begun, or is not seen any more.
    Failed(Failure),
    /// The user does not watch it any more.
    Left(Option<Uuid>),
}

impl End {
    fn exit_code(&self) -> u8 {
        match &self.how {
            How::Ended(report) => report.exit_code(),
            How::Already(_) => OK,
            How::Failed(failure) => failure.0.code.exit_code(),
            How::Left(_) => ErrorCode::Interrupted.exit_code(),
        }
    }
}

/// Moves so many at a time. Ctrl-C cancels those that go on and begins no more; a second one
/// leaves them alone. A lost terminal changes nothing. Answers how each ended, and whether there
/// was a Ctrl-C.
///
/// # Errors
/// `unexpected` if this process cannot do its part.
pub async fn run_all(
    client: &DaemonClient,
    display: &Display,
    requests: Vec<MoveRequest>,
    parallel: usize,
) -> Result<(Vec<End>, bool), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| unexpected(&e))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| unexpected(&e))?;
    let (wish, wishes) = channel::channel(Wish::Follow);
    let mut queue = VecDeque::from(requests);
    let mut ends = Vec::new();
    let mut going = JoinSet::new();
    loop {
        while going.len() < parallel.max(1)
            && *wish.borrow() == Wish::Follow
            && let Some(request) = queue.pop_front()
        {
            let row = display.row(&request.guest, &request.to, &request.options);
            going.spawn(one(client.clone(), request, row, wishes.clone()));
        }
        tokio::select! {
            joined = going.join_next() => match joined {
                Some(Ok(end)) => ends.push(end),
                Some(Err(e)) => {
                    return Err(Failure::new(ErrorCode::Unexpected, e.to_string(), "migrate history"));
                }
                None => break,
            },
            Some(()) = interrupt.recv() => {
                let next = if *wish.borrow() == Wish::Follow { Wish::Cancel } else { Wish::Leave };
                wish.send_replace(next);
            }
            Some(()) = hangup.recv() => {}
        }
    }
    let interrupted = *wish.borrow() > Wish::Follow;
    ends.extend(queue.into_iter().map(|r| End { guest: r.guest, how: How::Left(None) }));
    Ok((ends, interrupted))
}

async fn one(
    client: DaemonClient,
    request: MoveRequest,
    mut row: Row,
    mut wishes: channel::Receiver<Wish>,
) -> End {
    let guest = request.guest.clone();
    let begun = tokio::select! {
        begun = client.begin(&request) => begun,
        // Only waiting for another operation can be given up: nothing has begun.
        () = interrupted(&mut wishes), if request.wait => {
            return End { guest, how: How::Left(None) };
        }
    };
    let how = match begun {
        Err(error) => match client.failure(error) {
            failure if failure.0.code == ErrorCode::AlreadyThere => already(&request),
            failure => How::Failed(failure),
        },
        Ok(begun) => match follow(&client, begun.move_id, &mut row, &mut wishes).await {
            Ok(Followed::Ended(report)) => How::Ended(report),
            Ok(Followed::Left) => How::Left(Some(begun.move_id)),
            Err(failure) => How::Failed(failure),
        },
    };
    End { guest, how }
}

fn already(request: &MoveRequest) -> How {
    How::Already(request.to.clone())
}

async fn interrupted(wishes: &mut channel::Receiver<Wish>) {
    if wishes.wait_for(|wish| *wish > Wish::Follow).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The last document if there are several guests.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    schema: u32,
    r#type: &'static str,
    moved: usize,
    failed: usize,
    /// Guests that were there already: neither moved nor failed.
    #[serde(skip_serializing_if = "is_zero")]
    already_there: usize,
    guests: Vec<Line<'a>>,
}

impl Default for Summary<'_> {
    fn default() -> Self {
        let (moved, failed, already_there) = (0, 0, 0);
        Self { schema: 1, r#type: "result", moved, failed, already_there, guests: Vec::new() }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde passes")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The last document of one guest that has no report.
#[derive(Debug, Serialize)]
struct Single<'a> {
    schema: u32,
    r#type: &'static str,
    #[serde(flatten)]
    line: Line<'a>,
}

/// Tells how it ended for one guest that has no report: in a document, or in a line.
fn single(out: Output, end: &End) -> Result<(), Failure> {
    let guest = &end.guest;
    let document = Single { schema: 1, r#type: "result", line: line(end) };
    match &end.how {
        How::Already(to) => out.result(&document, &format!("{guest} is on {to} already")),
        _ if out.json => out.result(&document, ""),
        How::Left(Some(id)) => {
            let next = format!("see: migrate watch {guest}; stop it: migrate cancel {guest}");
            out.progress(&format!("{guest}: its move {id} goes on; {next}"));
            Ok(())
        }
        _ => {
            out.progress(&format!("{guest}: was not begun"));
            Ok(())
        }
    }
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    guest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    move_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<MoveOutcome>,
    /// It was on the host to which it was to be moved.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    already_there: bool,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorBody>,
}

/// Says how it ended, and gives the exit code.
fn conclude(out: Output, several: bool, (ends, interrupted): &(Vec<End>, bool)) -> Done {
    let style = Style::of(&io::stderr());
    for end in ends {
        match &end.how {
            // With --json the events have said it.
            _ if out.json && several => {}
            How::Ended(_) if out.json => {}
            How::Ended(report) => tell(out, report)?,
            How::Failed(failure) if out.json => out.failure(failure),
            How::Failed(failure) => eprint(&failure::lines(failure, style)),
            How::Left(_) | How::Already(_) => single(out, end)?,
        }
    }
    let codes: Vec<u8> = ends.iter().map(End::exit_code).filter(|code| *code != OK).collect();
    if several {
        let already_there = ends.iter().filter(|e| matches!(e.how, How::Already(_))).count();
        let (moved, failed) = (ends.len() - codes.len() - already_there, codes.len());
        let guests = ends.iter().map(line).collect();
        let document = Summary { moved, failed, already_there, guests, ..Summary::default() };
        let there = if already_there > 0 {
            format!(", {already_there} there already")
        } else {
            String::new()
        };
        out.result(&document, &format!("{moved} of {} moved{there}", ends.len()))?;
    }
    Ok(code_of_all(ends.len(), &codes, *interrupted))
}

fn line(end: &End) -> Line<'_> {
    let blank = Line {
        guest: end.guest.as_str(),
        move_id: None,
        outcome: None,
        already_there: false,
        exit_code: end.exit_code(),
        error: None,
    };
    match &end.how {
        How::Ended(report) => Line {
            move_id: Some(report.move_id),
            outcome: report.outcome,
            error: report.error.as_ref(),
            ..blank
        },
        How::Already(_) => Line { already_there: true, ..blank },
        How::Failed(failure) => Line { error: Some(&failure.0), ..blank },
        How::Left(id) => {
            Line { move_id: *id, exit_code: ErrorCode::Interrupted.exit_code(), ..blank }
        }
    }
}

/// Tells people the outcome of one move.
fn tell(out: Output, report: &MoveReport) -> Result<(), Failure> {
    if report.exit_code() == OK {
        return out.result(report, &outcome::moved(report, out.style));
    }
    eprint(&outcome::not_moved(report, Style::of(&io::stderr())));
    Ok(())
}

fn eprint(words: &str) {
    use std::io::Write;
    // Nobody may be there to read it; the exit code tells too.
    let _ = io::stderr().write_all(words.as_bytes());
}

/// One exit code for all: that of the failures if they agree and nothing succeeded.
fn code_of_all(all: usize, failures: &[u8], interrupted: bool) -> u8 {
    match failures {
        _ if interrupted => ErrorCode::Interrupted.exit_code(),
        [] => OK,
        _ if failures.contains(&ErrorCode::InDoubt.exit_code()) => ErrorCode::InDoubt.exit_code(),
        [first, rest @ ..] if failures.len() == all && rest.iter().all(|c| c == first) => *first,
        _ => PART_DONE,
    }
}

/// The last event of a move as JSON, outside of a stream of events.
fn result_document(report: &MoveReport) -> MoveEvent {
    MoveEvent::Result(Box::new(report.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_for_all() {
        assert_eq!(code_of_all(2, &[], false), OK);
        assert_eq!(code_of_all(1, &[5], false), 5);
        assert_eq!(code_of_all(2, &[5], false), PART_DONE);
        assert_eq!(code_of_all(2, &[4, 4], false), 4);
        assert_eq!(code_of_all(2, &[4, 5], false), PART_DONE);
        assert_eq!(code_of_all(3, &[4, 6], false), 6, "a doubt is never hidden");
        assert_eq!(code_of_all(1, &[], true), 130);
    }
}
