//! `resolve`: shows what every host knows of a guest in doubt, has the operator name the host that
//! is fenced, and passes the word on. What speaks against it is found by the daemon and by the
//! guest's process.

use std::io::{self, IsTerminal, Write};

use super::args::moving::ResolveArgs;
use super::{Done, OK, Session};
use crate::api::client::block_on;
use crate::api::resolve::{ResolveRequest, Standing, Wish};
use crate::api::{ErrorCode, Failure};
use crate::show::{doubt, guest};

/// `resolve`
pub fn resolve(session: &Session, args: &ResolveArgs) -> Done {
    let (client, out) = (session.daemon(), session.out);
    let wish = match (args.run_here, args.give_up) {
        (true, _) => Some(Wish::RunHere),
        (_, true) => Some(Wish::GiveUp),
        _ => None,
    };
    let look = || block_on(client.standing(&args.guest)).map_err(|e| client.failure(e));
    let Some(wish) = wish else {
        let standing = look()?;
        let mut words = doubt::standing(&standing, out.style);
        words.push_str(&choices(&standing));
        if out.json {
            out.result(&standing, "")?;
        } else {
            out.print(&words)?;
        }
        return Ok(OK);
    };
    let mut fenced = args.fenced.clone();
    let asks = match wish {
        Wish::RunHere => fenced.is_none(),
        Wish::GiveUp => !session.global.yes,
    };
    if asks {
        let standing = look()?;
        out.progress(doubt::standing(&standing, out.style).trim_end());
        let typed = ask(&standing, wish)?;
        fenced = (wish == Wish::RunHere).then_some(typed);
    }
    let lose_later_work = args.lose_later_work;
    let request = ResolveRequest { wish, fenced, lose_later_work, by: user() };
    let resolved =
        block_on(client.resolve(&args.guest, &request)).map_err(|e| client.failure(e))?;
    let name = &resolved.before.here.name;
    let words = match &resolved.guest {
        Some(info) => format!("{}; it runs on this host now", guest::sentence(info)),
        None => format!("{name}: this host has let go of it"),
    };
    out.result(&resolved, &words)?;
    Ok(OK)
}

/// Has the operator type what cannot be typed by accident: the name of the fenced host, or of the
/// guest that is given up.
fn ask(standing: &Standing, wish: Wish) -> Result<String, Failure> {
    let here = &standing.here;
    let other = here.other.as_ref().map_or("", |h| h.name.as_str());
    let (what, wanted, flag) = match wish {
        Wish::RunHere => (
            format!(
                "If {other} can still run {}, or write to its disks, there will be two of it.\n\
                 Type the name of the host that is off and stays off: ",
                here.name
            ),
            other,
            format!("--fenced {other}"),
        ),
        Wish::GiveUp => {
            let loses = if standing.memory { ", and its memory here is lost" } else { "" };
            let what = format!("This host lets go of {}{loses}.\nType its name: ", here.name);
            (what, here.name.as_str(), "--yes".to_owned())
        }
    };
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let why = "this needs an operator's word, and nobody is at a terminal";
        return Err(Failure::new(ErrorCode::Usage, why, format!("say it: {flag}")));
    }
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{what}");
    let _ = stderr.flush();
    let mut answer = String::new();
    let no_answer = |e: io::Error| {
        Failure::new(ErrorCode::Usage, format!("no answer: {e}"), format!("say it: {flag}"))
    };
    io::stdin().read_line(&mut answer).map_err(no_answer)?;
    let answer = answer.trim();
    if answer == wanted {
        return Ok(answer.to_owned());
    }
    let what = format!("'{answer}' is not '{wanted}': nothing was done");
    Err(Failure::new(ErrorCode::Usage, what, "say it again"))
}

fn choices(standing: &Standing) -> String {
    let (here, other) = (&standing.here, &standing.here.other);
    let Some(other) = other else { return String::new() };
    let (guest, other) = (&here.name, &other.name);
    format!(
        "If {other} is gone for good:\n  migrate resolve {guest} --run-here   to run it here; {other} \
         must be off, and stay off\n  migrate resolve {guest} --give-up    to let go of it here\n"
    )
}

/// Who types, for the record.
fn user() -> String {
    let uid = nix::unistd::getuid();
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    name.map_or_else(|| format!("user {uid}"), |name| format!("{name} (uid {uid})"))
}
