//! Moves that go on or are over: `watch`, `cancel`, `history`, `report`.

use uuid::Uuid;

use super::super::args::moving::{HistoryArgs, WatchArgs, WhichArgs};
use super::super::{Done, OK, Session};
use super::display::Display;
use super::follow::{self, Followed, Wish};
use super::{End, How, conclude, result_document, tell, unexpected};
use crate::api::client::{block_on, runtime};
use crate::api::daemon_client::DaemonClient;
use crate::api::host::MoveList;
use crate::api::moving::{MoveOutcome, MoveReport};
use crate::api::{ErrorCode, Failure};
use crate::show;

/// Moves that are looked through for the beginning of an id.
const SEARCH: u32 = 1000;
/// Fewest digits that can be the beginning of an id.
const ID_DIGITS: usize = 6;

/// `history`
pub fn history(session: &Session, args: &HistoryArgs) -> Done {
    let client = session.daemon();
    let list = block_on(client.moves(args.guest.as_deref(), args.limit));
    let list = list.map_err(|e| client.failure(e))?;
    let words = show::outcome::history(&list.moves, jiff::Timestamp::now(), session.out.style);
    if session.out.json {
        session.out.result(&MoveList { schema: 1, moves: list.moves }, "")?;
    } else {
        session.out.print(&words)?;
    }
    Ok(OK)
}

/// `report`
pub fn report(session: &Session, args: &WhichArgs) -> Done {
    let client = session.daemon();
    let found = find(&client, &args.which)?;
    // A list may leave things out.
    let report = block_on(client.report(found)).map_err(|e| client.failure(e))?;
    if session.out.json {
        session.out.result(&report, "")?;
    } else {
        session.out.print(&show::report::page(&report, session.out.style))?;
    }
    Ok(OK)
}

/// `watch`
pub fn watch(session: &Session, args: &WatchArgs) -> Done {
    let client = session.daemon();
    let ids = if let Some(which) = &args.which {
        vec![find(&client, which)?]
    } else {
        let list = block_on(client.moves(None, SEARCH)).map_err(|e| client.failure(e))?;
        list.moves.iter().filter(|m| m.outcome.is_none()).map(|m| m.move_id).collect()
    };
    if ids.is_empty() {
        session.out.result(&MoveList { schema: 1, moves: vec![] }, "No move goes on.")?;
        return Ok(OK);
    }
    see_through(session, &client, ids)
}

/// `cancel`: waits for the outcome. Done if the guest stays; if it is too late, the outcome tells.
pub fn cancel(session: &Session, args: &WhichArgs) -> Done {
    let client = session.daemon();
    let id = find(&client, &args.which)?;
    let now = block_on(client.report(id)).map_err(|e| client.failure(e))?;
    if now.outcome.is_some() {
        return cancelled(session, &now);
    }
    let display = Display::new(session.out, false);
    let mut row = display.row(&now.guest, &now.to.name, &now.options);
    row.without_result();
    let (_wish, mut wishes) = tokio::sync::watch::channel(Wish::Cancel);
    let followed = block_on(async { Ok(follow::follow(&client, id, &mut row, &mut wishes).await) });
    drop(row);
    match followed.map_err(|e| client.failure(e))?? {
        Followed::Ended(report) => cancelled(session, &report),
        Followed::Left => Ok(ErrorCode::Interrupted.exit_code()),
    }
}

/// How a cancellation ended, by the outcome of its move. One document tells it all.
fn cancelled(session: &Session, report: &MoveReport) -> Done {
    let out = session.out;
    let (guest, from) = (&report.guest, &report.from.name);
    let late = (report.outcome == Some(MoveOutcome::Moved)).then(|| {
        Failure::new(
            ErrorCode::WrongState,
            format!("it is too late: {guest} was moved to {}", report.to.name),
            format!("move it back, there: migrate move {guest} --to {from}"),
        )
    });
    let code = match (report.outcome, &late) {
        (Some(MoveOutcome::Kept), _) => OK,
        (_, Some(late)) => late.0.code.exit_code(),
        _ => report.exit_code(),
    };
    if out.json {
        let error = late.map(|late| *late.0).or_else(|| report.error.clone());
        out.result(&result_document(&MoveReport { error, ..report.clone() }), "")?;
        return Ok(code);
    }
    match (report.outcome, late) {
        (_, Some(late)) => return Err(late),
        (Some(MoveOutcome::Kept), _) => {
            out.result(report, &format!("{guest} was not moved; it runs on {from}, as before"))?;
        }
        _ => tell(out, report)?,
    }
    Ok(code)
}

/// Follows moves to their outcomes. Ctrl-C leaves them alone.
fn see_through(session: &Session, client: &DaemonClient, ids: Vec<Uuid>) -> Done {
    let several = ids.len() > 1;
    let display = Display::new(session.out, several);
    let ends = runtime().map_err(|e| unexpected(&e))?.block_on(async {
        let (wish, wishes) = tokio::sync::watch::channel(Wish::Follow);
        let mut going = tokio::task::JoinSet::new();
        for id in ids {
            let (client, display, mut wishes) = (client.clone(), display.clone(), wishes.clone());
            going.spawn(async move {
                let report = match client.report(id).await {
                    Ok(report) => report,
                    Err(e) => {
                        return End { guest: id.to_string(), how: How::Failed(client.failure(e)) };
                    }
                };
                let mut row = display.row(&report.guest, &report.to.name, &report.options);
                let how = match follow::follow(&client, id, &mut row, &mut wishes).await {
                    Ok(Followed::Ended(report)) => How::Ended(report),
                    Ok(Followed::Left) => How::Left(Some(id)),
                    Err(failure) => How::Failed(failure),
                };
                End { guest: report.guest, how }
            });
        }
        let mut ends = Vec::new();
        loop {
            tokio::select! {
                joined = going.join_next() => match joined {
                    Some(Ok(end)) => ends.push(end),
                    Some(Err(_)) => {}
                    None => return ends,
                },
                Ok(()) = tokio::signal::ctrl_c() => {
                    wish.send_replace(Wish::Leave);
                }
            }
        }
    });
    drop(display);
    conclude(session.out, several, &(ends, false))
}

/// The move that is meant: by its id, by its guest (the latest), or by the beginning of its id.
fn find(client: &DaemonClient, which: &str) -> Result<Uuid, Failure> {
    if let Ok(id) = which.parse() {
        return Ok(id);
    }
    let moves = |guest: Option<&str>, limit| {
        block_on(client.moves(guest, limit)).map_err(|e| client.failure(e)).map(|list| list.moves)
    };
    if crate::config::check_name(which).is_ok()
        && let Some(latest) = moves(Some(which), 1)?.first()
    {
        return Ok(latest.move_id);
    }
    let digits: String = which.chars().filter(|c| *c != '-').collect();
    let like_id = digits.len() >= ID_DIGITS && digits.chars().all(|c| c.is_ascii_hexdigit());
    let all = if like_id { moves(None, SEARCH)? } else { Vec::new() };
    let digits = digits.to_ascii_lowercase();
    let mut begins = all.iter().filter(|m| m.move_id.simple().to_string().starts_with(&digits));
    match (begins.next(), begins.next()) {
        (Some(one), None) => Ok(one.move_id),
        (Some(_), Some(_)) => Err(Failure::new(
            ErrorCode::NotFound,
            format!("the ids of several moves begin with '{which}'"),
            "give more of it: migrate history --json",
        )),
        (None, _) => Err(Failure::new(
            ErrorCode::NotFound,
            format!("no move of a guest '{which}' is known here, and none with such an id"),
            "see the moves there were: migrate history",
        )),
    }
}
