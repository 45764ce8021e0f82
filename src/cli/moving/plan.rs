//! Moves before they begin: dry runs, and the question whether to go on.

use std::io::{self, BufRead, Write};

use serde::Serialize;

use super::super::{Done, OK, Session};
use super::PART_DONE;
use crate::api::client::block_on;
use crate::api::daemon_client::DaemonClient;
use crate::api::host::{MovePlan, MoveRequest};
use crate::api::{ErrorCode, Failure};
use crate::show::outcome;
use crate::show::style::Style;

/// The document of a dry run.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the name of the field in the document")]
struct Plans<'a> {
    schema: u32,
    to: &'a str,
    possible: bool,
    plans: &'a [MovePlan],
}

/// `move --dry-run`
pub fn show(session: &Session, client: &DaemonClient, requests: &[MoveRequest]) -> Done {
    let plans = ask_all(client, requests)?;
    let to = requests.first().map_or("", |r| r.to.as_str());
    let bad: Vec<&MovePlan> = plans.iter().filter(|p| !p.possible).collect();
    let words: Vec<String> = plans.iter().map(|p| outcome::plan(p, session.out.style)).collect();
    let document = Plans { schema: 1, to, possible: bad.is_empty(), plans: &plans };
    if session.out.json {
        session.out.result(&document, "")?;
    } else {
        session.out.print(&words.join("\n"))?;
    }
    let first = bad.first().and_then(|p| p.problems.first()).map(|e| e.code.exit_code());
    Ok(match bad.len() {
        0 => OK,
        n if n < plans.len() => PART_DONE,
        _ => first.filter(|code| matches!(code, 7 | 8)).unwrap_or(4),
    })
}

fn ask_all(client: &DaemonClient, requests: &[MoveRequest]) -> Result<Vec<MovePlan>, Failure> {
    let one = |request| block_on(client.plan(request)).map_err(|e| client.failure(e));
    requests.iter().map(one).collect()
}

/// Shows what would be done and asks for it, on a terminal.
pub fn agreed(
    session: &Session,
    client: &DaemonClient,
    requests: &[MoveRequest],
) -> Result<bool, Failure> {
    let style = Style::of(&io::stderr());
    let mut stderr = io::stderr();
    for plan in ask_all(client, requests)? {
        let _ = writeln!(stderr, "{}", outcome::plan(&plan, style));
    }
    if session.global.yes {
        return Ok(true);
    }
    let count = requests.len();
    let plural = if count == 1 { "this guest" } else { "these guests" };
    let _ = write!(stderr, "Move {plural}? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|e| {
        Failure::new(ErrorCode::Usage, format!("no answer: {e}"), "give --yes, or name the guests")
    })?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
