//! The guests of this instance: who has a process, what it says, and what is left of others.
//! The truth is the runtime directory and the locks in it; nothing is cached.

use std::fs;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use migrate_engine::handover::journal::Record as Step;
use serde::Serialize;
use uuid::Uuid;

use super::leftover::{self, Life};
use super::{doubt, exits};
use crate::api::client::{CallError, GuestClient, runtime};
use crate::api::resolve::Doubtful;
use crate::api::{ErrorCode, ExitHow, ExitRecord, Failure, GuestInfo, GuestState};
use crate::config::{Dirs, check_name};
use crate::guest::journal::{self, record::Record};

/// How long `ls` waits for each guest process.
const LIST_DEADLINE: Duration = Duration::from_secs(2);

/// A guest in a list.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Entry {
    /// Its process answered.
    Known(Box<GuestInfo>),
    /// There is no answer.
    Silent {
        /// Name.
        name: String,
        /// Why.
        state: Silence,
    },
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Silence {
    /// The process lives and does not answer.
    Unreachable,
    /// The process was killed; what it left has been cleared up now.
    Gone,
}

/// What `ls` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    /// Version of this document.
    pub schema: u32,
    /// Guests, by name.
    pub guests: Vec<Entry>,
    /// Guests that ended, latest first (`ls -a`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Vec<ExitRecord>>,
    /// Guests that do not run here, and whose owner is in doubt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub in_doubt: Vec<Doubtful>,
}

fn unreadable(dirs: &Dirs, e: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::File,
        format!(
            "cannot use the instance's directories {} and {}: {e}",
            dirs.run.display(),
            dirs.state.display()
        ),
        "check that they are yours: 'migrate help files'",
    )
}

/// Names of the guests that have a runtime directory.
///
/// # Errors
/// `file` if the directory cannot be read; a missing one is empty.
pub fn names(dirs: &Dirs) -> Result<Vec<String>, Failure> {
    let entries = match fs::read_dir(dirs.guests()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(dirs, &e)),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Lists all guests, asking their processes side by side; clears up after killed ones.
///
/// # Errors
/// `file` if the instance's directories cannot be read.
pub fn list(dirs: &Dirs, with_ended: bool) -> Result<Listing, Failure> {
    let clients: Vec<GuestClient> =
        names(dirs)?.into_iter().map(|name| client(dirs, &name)).collect();
    let mut guests = Vec::new();
    for (client, answer) in ask_all(clients).map_err(|e| unreadable(dirs, &e))? {
        match answer {
            Ok(info) => guests.push(Entry::Known(Box::new(info))),
            Err(error) => guests.extend(silent(dirs, &client, &error)),
        }
    }
    let ended = if with_ended {
        if let Err(e) = exits::prune(dirs, SystemTime::now()) {
            tracing::warn!("cannot remove old exit records: {e}");
        }
        Some(exits::read_all(dirs).map_err(|e| unreadable(dirs, &e))?)
    } else {
        None
    };
    let runs = |uuid: Uuid| {
        let running = |entry: &Entry| {
            matches!(entry, Entry::Known(i)
            if i.uuid == uuid && !matches!(i.state, GuestState::Leaving | GuestState::Arriving))
        };
        guests.iter().any(running)
    };
    let in_doubt = doubt::all(dirs).into_iter().filter(|d| !runs(d.uuid)).collect();
    Ok(Listing { schema: 1, guests, ended, in_doubt })
}

fn client(dirs: &Dirs, name: &str) -> GuestClient {
    GuestClient::new(name, dirs.guest(name))
}

type Answer = (GuestClient, Result<GuestInfo, CallError>);

fn ask_all(clients: Vec<GuestClient>) -> io::Result<Vec<Answer>> {
    runtime()?.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for client in clients {
            tasks.spawn(async move {
                let answer = client.info_async(LIST_DEADLINE).await;
                (client, answer)
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = tasks.join_next().await {
            answers.push(answer.map_err(io::Error::other)?);
        }
        answers.sort_by(|(a, _), (b, _)| a.name().cmp(b.name()));
        Ok(answers)
    })
}

/// What to show of a guest whose process did not answer.
fn silent(dirs: &Dirs, client: &GuestClient, error: &CallError) -> Option<Entry> {
    let name = client.name().to_owned();
    let state = match leftover::life(client.paths()) {
        Ok(Life::Absent) => return None,
        Ok(Life::Dead(claim)) => {
            if let Err(e) = leftover::clean(dirs, client.paths(), claim) {
                tracing::warn!(GUEST = name, "cannot clear up: {e}");
            }
            Silence::Gone
        }
        Ok(Life::Alive) => Silence::Unreachable,
        Err(e) => {
            tracing::warn!(GUEST = name, "{error}; its lock cannot be looked at: {e}");
            Silence::Unreachable
        }
    };
    Some(Entry::Silent { name, state })
}

/// Finds the guest `name`, which must have a process.
///
/// # Errors
/// `usage` for a malformed name; `moved-away` with where it went; else `not-found` with what is
/// known of its end.
pub fn locate(dirs: &Dirs, name: &str) -> Result<GuestClient, Failure> {
    check_name(name)
        .map_err(|e| Failure::new(ErrorCode::Usage, e, "see the guests there are: migrate ls"))?;
    let client = client(dirs, name);
    match leftover::life(client.paths()).map_err(|e| unreadable(dirs, &e))? {
        Life::Alive => return Ok(client),
        Life::Dead(claim) => {
            leftover::clean(dirs, client.paths(), claim).map_err(|e| unreadable(dirs, &e))?;
        }
        Life::Absent => {}
    }
    let ended = exits::latest(dirs, name).map_err(|e| unreadable(dirs, &e))?;
    let left = left(dirs, name, ended.as_ref());
    Err(left.map_or_else(|| absent(dirs, name, ended.as_ref()), |record| moved_away(name, &record)))
}

/// The journal of the guest that was called `name` here, if that guest has left this host.
fn left(dirs: &Dirs, name: &str, ended: Option<&ExitRecord>) -> Option<Record> {
    let gone = |record: &Record| {
        let now = record.ledger.now();
        record.name == name && matches!(now, Some(Step::Ceded(_) | Step::Moved(_)))
    };
    // The latest of that name is meant. Records of ends are kept for a shorter time than journals.
    if let Some(ended) = ended {
        return journal::read(&dirs.journal(&ended.uuid)).ok().flatten().filter(gone);
    }
    doubt::records(dirs).into_iter().filter(gone).max_by_key(|record| record.since)
}

fn moved_away(name: &str, record: &Record) -> Failure {
    let to = record.peer.as_deref().unwrap_or("another host");
    Failure::new(
        ErrorCode::MovedAway,
        format!("guest '{name}' is not here: it was moved to {to} at {:.0}", record.since),
        format!("use it there, on {to}: migrate show {name}; how it went: migrate report {name}"),
    )
}

fn absent(dirs: &Dirs, name: &str, ended: Option<&ExitRecord>) -> Failure {
    let next = if dirs.definition(name).exists() {
        format!("start it: migrate start {name}")
    } else {
        "see the guests there are: migrate ls -a".to_owned()
    };
    let Some(record) = ended else {
        return Failure::new(ErrorCode::NotFound, format!("there is no guest '{name}'"), next);
    };
    let detail = record.detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
    let message = format!(
        "guest '{name}' does not run: it {} at {:.0}{detail}",
        describe(record.how),
        record.ended,
    );
    Failure::new(ErrorCode::NotFound, message, next).with_state(GuestState::Stopped)
}

/// How a guest ended, as the end of a sentence that begins with "it".
pub fn describe(how: ExitHow) -> &'static str {
    match how {
        ExitHow::PoweredOff => "powered off",
        ExitHow::Killed => "was killed",
        ExitHow::Saved => "was saved to a file",
        ExitHow::Moved => "was moved",
        ExitHow::Crashed => "crashed",
        ExitHow::Died => "died",
    }
}

/// Waits until the process of a guest that was ended is gone, its leftovers with it.
/// Answers the record of its end.
///
/// # Errors
/// `timeout` if it is still there after `limit`.
pub fn wait_gone(
    dirs: &Dirs,
    client: &GuestClient,
    limit: Duration,
) -> Result<Option<ExitRecord>, Failure> {
    let start = Instant::now();
    loop {
        match leftover::life(client.paths()).map_err(|e| unreadable(dirs, &e))? {
            Life::Absent => {
                return exits::latest(dirs, client.name()).map_err(|e| unreadable(dirs, &e));
            }
            Life::Dead(claim) => {
                return leftover::clean(dirs, client.paths(), claim)
                    .map_err(|e| unreadable(dirs, &e));
            }
            Life::Alive if start.elapsed() >= limit => {
                let name = client.name();
                let seconds = limit.as_secs();
                return Err(Failure::new(
                    ErrorCode::Timeout,
                    format!("the process of guest '{name}' is still there after {seconds} s"),
                    format!("end it: migrate stop {name} --kill"),
                ));
            }
            Life::Alive => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
