//! `host`: the hosts of the site. `init` and `join` write this host's identity; everything else is
//! asked of the daemon.

use serde::Serialize;

use super::args::host::{HostCommand, InitArgs, InviteArgs, JoinArgs};
use super::{Done, OK, Session, host_cpu, seam};
use crate::api::client::{CallError, block_on};
use crate::api::host::{InviteRequest, RemoveRequest};
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::show;

/// `host …`
pub fn host(session: &Session, command: &HostCommand) -> Done {
    match command {
        HostCommand::Init(args) => init(session, args),
        HostCommand::Invite(args) => invite(session, args),
        HostCommand::Join(args) => join(session, args),
        HostCommand::Ls => ls(session),
        HostCommand::Show(args) => match &args.host {
            None => this(session),
            Some(name) => other(session, name),
        },
        HostCommand::Check(args) => check(session, &args.host),
        HostCommand::Cpu(args) => host_cpu::cpu(session, args),
        HostCommand::Remove(args) => remove(session, &args.host),
    }
}

/// A daemon that runs reads the new identity; one that does not will at its start.
fn reload(session: &Session) -> Result<bool, Failure> {
    let client = session.daemon();
    match block_on(client.reload()) {
        Ok(_) => Ok(true),
        Err(CallError::Connect(_)) => Ok(false),
        Err(e) => Err(client.failure(e)),
    }
}

#[derive(Debug, Serialize)]
struct Made {
    #[serde(flatten)]
    made: seam::Made,
    /// The daemon runs, and has it already.
    daemon_running: bool,
}

fn start_daemon(session: &Session, running: bool) -> String {
    if running { String::new() } else { format!("start its daemon: {}\n", session.start_daemon()) }
}

fn init(session: &Session, args: &InitArgs) -> Done {
    let made = seam::init(session, args)?;
    let daemon_running = reload(session)?;
    let role = if made.ca { " and the CA of a new site" } else { "" };
    let words = format!(
        "This host is '{}'{role}.\n{}bring in another host: {}\n",
        made.name,
        start_daemon(session, daemon_running),
        session.command("host invite")
    );
    session.out.result(&Made { made, daemon_running }, &words)?;
    Ok(OK)
}

fn join(session: &Session, args: &JoinArgs) -> Done {
    let made = seam::join(session, args)?;
    let daemon_running = reload(session)?;
    let words = format!(
        "This host is '{}' and has joined the site.\n{}see the others: {}\n",
        made.name,
        start_daemon(session, daemon_running),
        session.command("host ls")
    );
    session.out.result(&Made { made, daemon_running }, &words)?;
    Ok(OK)
}

fn invite(session: &Session, args: &InviteArgs) -> Done {
    let client = session.daemon();
    let valid_ms = u64::try_from(args.valid.as_millis()).unwrap_or(u64::MAX);
    let request = InviteRequest { address: args.address.clone(), valid_ms };
    let invited = block_on(client.invite(&request)).map_err(|e| client.failure(e))?;
    if session.out.json {
        session.out.result(&invited, "")?;
    } else {
        // The line alone on stdout, so that it can be taken by a script.
        session.out.progress(&format!(
            "Paste this line on the new host: migrate host join LINE (good for one host, until \
             {:.0})",
            invited.expires
        ));
        session.out.print(&invited.invitation)?;
    }
    Ok(OK)
}

fn ls(session: &Session) -> Done {
    let client = session.daemon();
    let list = block_on(client.hosts()).map_err(|e| client.failure(e))?;
    if session.out.json {
        session.out.result(&list, "")?;
    } else {
        session.out.print(&show::hosts::listing(&list, session.out.style))?;
    }
    Ok(OK)
}

fn this(session: &Session) -> Done {
    let client = session.daemon();
    let info = block_on(client.host()).map_err(|e| client.failure(e))?;
    if session.out.json {
        session.out.result(&info, "")?;
    } else {
        session.out.print(&show::hosts::page(&info, session.out.style))?;
    }
    Ok(OK)
}

fn other(session: &Session, name: &str) -> Done {
    let client = session.daemon();
    let list = block_on(client.hosts()).map_err(|e| client.failure(e))?;
    let known = list.hosts.into_iter().find(|h| h.name == name).ok_or_else(|| unknown(name))?;
    let silent = || {
        Box::new(ErrorBody {
            code: ErrorCode::Unreachable,
            message: format!("host '{name}' has not said anything of itself"),
            remedy: format!("migrate host check {name}"),
            retryable: true,
            guest_state: None,
        })
    };
    let info = match (known.info, known.error) {
        (Some(info), _) => info,
        (None, error) => return Err(Failure(error.map_or_else(silent, Box::new))),
    };
    if session.out.json {
        session.out.result(&info, "")?;
    } else {
        session.out.print(&show::hosts::page(&info, session.out.style))?;
    }
    Ok(OK)
}

fn unknown(name: &str) -> Failure {
    Failure::new(
        ErrorCode::UnknownHost,
        format!("no host '{name}' is known here"),
        "see the hosts there are: migrate host ls",
    )
}

/// The exit code is 5 if something is wrong that would hinder a move; that of the refusal (8 for
/// no answer) if the host could not be asked.
fn check(session: &Session, name: &str) -> Done {
    let client = session.daemon();
    session.out.progress(&format!("Asking {name} …"));
    let check = block_on(client.check(name)).map_err(|e| client.failure(e))?;
    if session.out.json {
        session.out.result(&check, "")?;
    } else {
        session.out.print(&show::hosts::check(&check, session.out.style))?;
    }
    Ok(match check.error {
        Some(error) => error.code.exit_code(),
        None if check.ok => OK,
        None => 5,
    })
}

fn remove(session: &Session, name: &str) -> Done {
    let client = session.daemon();
    let request = RemoveRequest { name: name.to_owned() };
    let list = block_on(client.remove(&request)).map_err(|e| client.failure(e))?;
    session.out.result(&list, &show::hosts::removed(name, list.removal.as_ref()))?;
    // Part done: this host alone trusts it no more.
    Ok(if list.removal.is_some_and(|r| r.error.is_some()) { 3 } else { OK })
}
