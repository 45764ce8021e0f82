//! Guests whose owner is in doubt, and an operator who says that a host is fenced.
//!
//! Every joined host is asked first, whatever the operator says; what they say, what the operator
//! said and what came of it is kept. Who decides is whoever holds the guest's journal: the process
//! that has its memory, a new process that would start it from its disks, or, to give up what a
//! dead process left, the place of that process.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use migrate_engine::handover::claim;
use migrate_engine::handover::term::{HostId, Stamp, Term};
use migrate_engine::port::{self, Unanswered};
use migrate_engine::wire::GuestId;
use serde::Serialize;
use uuid::Uuid;

use super::keeper::Speaker;
use super::peer::{Answer, Request};
use super::{Daemon, inbound, unexpected};
use crate::api::resolve::{
    Asked, Claim, Doubt, Doubtful, ResolveRequest, Resolved, Right, Standing, Wish, Word,
};
use crate::api::{ErrorBody, ErrorCode, Failure, GuestInfo, LaunchSpec};
use crate::arbiter::{Shared, silent, within};
use crate::guest::journal::record::Record;
use crate::host::{doubt, persistent, spawn};

/// How long another host, the arbiter or a guest process may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a guest may take to be built.
const BUILD: Duration = Duration::from_mins(1);
/// For so long nobody else takes the guest's journal.
pub const WAY: Duration = Duration::from_mins(1);

/// A right that was taken at the arbiter for an operator's word.
struct Taken {
    guest: GuestId,
    before: Option<Stamp>,
    want: Stamp,
}

impl Taken {
    /// The word was refused by the process after all: what stood there before stands again.
    async fn give_back(self, arbiter: &dyn Shared) {
        let Self { guest, before, want } = self;
        let Some(before) = before else { return };
        if let Err(failure) = arbiter_says(arbiter.swap(guest, Some(want), before)).await {
            tracing::error!(%failure, "the arbiter keeps a right that was taken in vain");
        }
    }
}

/// The arbiter's answer, or that there is none.
async fn arbiter_says(answer: port::Answer<'_>) -> Result<Option<Stamp>, Failure> {
    within(PATIENCE, answer).await.map_err(|why| silent(&why))
}

/// All of it, as it is kept.
#[derive(Serialize)]
struct OnRecord<'a> {
    schema: u32,
    at: Timestamp,
    asked: &'a ResolveRequest,
    known: &'a Standing,
    /// Why it was refused; nothing if it was done.
    refused: Option<&'a ErrorBody>,
}

/// What can be said against an operator's word from what is known already.
fn against(request: &ResolveRequest, known: &Standing) -> Result<(), Failure> {
    let Doubtful { name, other, .. } = &known.here;
    let Some(other) = other else {
        let what = format!("nothing is in doubt: {}", known.here.known);
        return Err(Failure::new(ErrorCode::WrongState, what, known.here.next.clone()));
    };
    if request.wish == Wish::GiveUp {
        return Ok(());
    }
    match &request.fenced {
        Some(fenced) if *fenced == other.name => {}
        fenced => {
            let said = fenced.as_ref().map_or(String::new(), |f| format!(", not '{f}'"));
            return Err(Failure::new(
                ErrorCode::Usage,
                format!("the host that could run guest '{name}' is '{}'{said}", other.name),
                format!(
                    "make sure that it is off and stays off, then say so: --fenced {}",
                    other.name
                ),
            ));
        }
    }
    // What the others say is weighed by whoever holds the journal, and knows what the disks say.
    let its_word = known.hosts.iter().find(|h| h.host == other.name);
    let its_word = its_word.and_then(|h| h.answer.as_ref().ok());
    if its_word.is_some_and(|word| word.owns.is_some()) {
        return Err(Failure::new(
            ErrorCode::Superseded,
            format!("host '{}' answers, and says that it has guest '{name}'", other.name),
            format!("look there: migrate show {name}"),
        ));
    }
    if its_word.is_some() {
        return Err(Failure::new(
            ErrorCode::WrongState,
            format!("host '{}' answers, so it is not fenced", other.name),
            "it settles by itself, within seconds; see: migrate show GUEST on both",
        )
        .retryable());
    }
    Ok(())
}

/// The highest right that a host says it has, and a host that is silent and not the fenced one.
fn weigh(known: &Standing, ids: &[(String, Uuid)]) -> (Option<Right>, Option<Uuid>) {
    let id = |name: &str| ids.iter().find(|(host, _)| host == name).map(|(_, id)| *id);
    let owner = |asked: &Asked| {
        let term = asked.answer.as_ref().ok()?.owns?;
        // One that was never heard of is still somebody.
        Some(Right { term, host: id(&asked.host).unwrap_or_default() })
    };
    let other = known.here.other.as_ref().map(|h| h.name.as_str());
    let silent = |asked: &&Asked| asked.answer.is_err() && Some(asked.host.as_str()) != other;
    let silent = known.hosts.iter().find(silent).map(|a| id(&a.host).unwrap_or_default());
    (known.hosts.iter().filter_map(owner).max(), silent)
}

/// The failure with the names of hosts in place of their ids.
fn named(mut failure: Failure, ids: &[(String, Uuid)]) -> Failure {
    for (name, id) in ids {
        let digits = format!("{:032x}", id.as_u128());
        failure.0.message = failure.0.message.replace(&digits, name);
    }
    failure
}

impl Daemon {
    /// What this host says of a guest to another.
    pub(super) fn word(&self, guest: Uuid) -> Result<Word, Failure> {
        Ok(doubt::word(&self.dirs, guest)?)
    }

    /// Asks all joined hosts at once.
    async fn ask_all(self: &Arc<Self>, guest: Uuid) -> Result<Vec<Asked>, Failure> {
        let mut tasks = tokio::task::JoinSet::new();
        for host in self.files.hosts()? {
            let (daemon, host) = (Arc::clone(self), host.name.to_string());
            tasks.spawn(async move {
                let told = daemon.ask_within(PATIENCE, &host, Request::Word { guest }).await;
                let answer = told.and_then(|told| match told.answer {
                    Answer::Word(word) => Ok(word),
                    _ => Err(unexpected("the other daemon", &"it answered something else")),
                });
                Asked { host, answer: answer.map_err(|f| *f.0) }
            });
        }
        let mut hosts = Vec::new();
        while let Some(done) = tasks.join_next().await {
            hosts.push(done.map_err(|e| unexpected("asking a host", &e))?);
        }
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        Ok(hosts)
    }

    /// Everything that is known of a guest, here and elsewhere.
    ///
    /// # Errors
    /// `not-found`: this host has no journal of such a guest.
    pub(super) async fn standing(self: &Arc<Self>, which: &str) -> Result<Standing, Failure> {
        Ok(self.look(which).await?.1)
    }

    async fn look(self: &Arc<Self>, which: &str) -> Result<(Record, Standing), Failure> {
        let record = doubt::find(&self.dirs, which).ok_or_else(|| {
            let what = format!("this host has no journal of a guest '{which}'");
            Failure::new(ErrorCode::NotFound, what, "see the guests there are: migrate ls -a")
        })?;
        let hosts = self.ask_all(record.uuid).await?;
        let here = doubt::doubtful(&record);
        let memory = here.doubt.is_some() && self.process_of(record.uuid).await.is_some();
        Ok((record, Standing { schema: 1, here, memory, hosts }))
    }

    /// Does what an operator wants, unless something speaks against it.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        which: &str,
        request: ResolveRequest,
    ) -> Result<Resolved, Failure> {
        let (record, known) = self.look(which).await?;
        let done = self.try_to_resolve(&record, &request, &known).await;
        let refused = done.as_ref().err().map(|f| &*f.0);
        tracing::warn!(
            GUEST = record.name,
            by = request.by,
            wish = ?request.wish,
            fenced = request.fenced,
            lose_later_work = request.lose_later_work,
            refused = refused.map(|body| body.message.as_str()),
            "an operator's word"
        );
        let all =
            OnRecord { schema: 1, at: Timestamp::now(), asked: &request, known: &known, refused };
        if let Err(error) = self.keep_word(record.uuid, &all) {
            tracing::error!(GUEST = record.name, %error, "an operator's word is not on record");
        }
        Ok(Resolved { schema: 1, guest: done?.map(Box::new), before: known })
    }

    fn keep_word(&self, guest: Uuid, all: &OnRecord<'_>) -> std::io::Result<()> {
        let dir = self.dirs.state.join("resolved");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{guest}.jsonl"));
        let mut file = fs::File::options().create(true).append(true).mode(0o600).open(path)?;
        file.write_all(format!("{}\n", serde_json::to_string(all)?).as_bytes())?;
        file.sync_all()
    }

    async fn try_to_resolve(
        self: &Arc<Self>,
        record: &Record,
        request: &ResolveRequest,
        known: &Standing,
    ) -> Result<Option<GuestInfo>, Failure> {
        against(request, known)?;
        let words = known.hosts.iter().filter_map(|h| h.answer.as_ref().ok());
        let ids: Vec<(String, Uuid)> = self
            .files
            .hosts()?
            .into_iter()
            .filter_map(|h| Some((h.name.to_string(), h.id?)))
            .collect();
        let (owned_by, silent) = weigh(known, &ids);
        let other = known.here.other.as_ref().map_or("", |h| &h.name);
        let wish = match request.wish {
            Wish::RunHere => format!("run here, as {other} is fenced"),
            Wish::GiveUp => "give up".to_owned(),
        };
        let claim = Claim {
            wish: request.wish,
            elsewhere: words.map(|w| w.term).max().unwrap_or(0),
            owned_by,
            silent,
            lose_later_work: request.lose_later_work,
            note: format!("{} said at {:.0}: {wish}", request.by, Timestamp::now()),
            fenced: known.here.other.as_ref().map(|h| h.id).filter(|_| request.fenced.is_some()),
        };
        let done = match &self.arbiter {
            // A process that starts from the disks asks the arbiter itself, last of all.
            Some(arbiter) if known.memory && request.wish == Wish::RunHere => {
                let taken = self.take_at_arbiter(&**arbiter, known).await?;
                let done = self.pass_on(record, request, claim).await;
                if done.is_err() {
                    taken.give_back(&**arbiter).await;
                }
                done
            }
            _ => self.pass_on(record, request, claim).await,
        };
        done.map_err(|failure| named(failure, &ids))
    }

    /// Takes the right at the arbiter to let memory run on that a process holds here.
    async fn take_at_arbiter(
        &self,
        arbiter: &dyn Shared,
        known: &Standing,
    ) -> Result<Taken, Failure> {
        let Doubtful { uuid, name, doubt, other, term, .. } = &known.here;
        let guest = GuestId(uuid.into_bytes());
        let host = |id: Uuid| HostId(id.as_u128());
        let hosts = (host(self.id), host(other.as_ref().map(|h| h.id).unwrap_or_default()));
        let receiving = *doubt == Some(Doubt::Receiving);
        let refused = |why: claim::Refused| {
            let message = format!("guest '{name}' may not run here: {why}");
            Failure::new(ErrorCode::Superseded, message, "see: migrate help arbiter")
        };
        let before = arbiter_says(arbiter.read(guest)).await?;
        let want = claim::run_memory(before, hosts, Term::new(*term), receiving);
        let want = want.map_err(refused)?;
        match arbiter_says(arbiter.swap(guest, before, want)).await? {
            Some(now) if now == want => Ok(Taken { guest, before, want }),
            Some(other) => Err(refused(claim::Refused::Elsewhere(other))),
            None => Err(silent(&Unanswered("it forgot the guest while it was asked".into()))),
        }
    }

    /// Has the word weighed by whoever holds the journal.
    async fn pass_on(
        self: &Arc<Self>,
        record: &Record,
        request: &ResolveRequest,
        claim: Claim,
    ) -> Result<Option<GuestInfo>, Failure> {
        let guest = record.uuid;
        match self.speaker(guest)? {
            Speaker::Process => {
                let client = self.process_of(guest).await.ok_or_else(|| {
                    let what = "the guest's process does not answer, and is not dead";
                    let remedy = format!("end it: migrate stop {} --kill", record.name);
                    Failure::new(ErrorCode::Unreachable, what, remedy)
                })?;
                let claimed = client.claim(&claim).await.map_err(|e| client.failure(e))?;
                match claimed.term {
                    None => Ok(None),
                    Some(_) => Ok(client.info_async(PATIENCE).await.ok()),
                }
            }
            Speaker::Us(acting) if request.wish == Wish::GiveUp => {
                acting.lock().await.give_up(&claim.note, record.peer.as_deref())?;
                self.settled(guest);
                Ok(None)
            }
            Speaker::Us(acting) => {
                drop(acting);
                self.places.make_way(guest);
                let started = self.start_claimed(record, claim).await;
                self.places.way_is_free(guest);
                started.map(Some)
            }
        }
    }

    /// Starts a guest from its disks, by an operator's word.
    async fn start_claimed(&self, record: &Record, claim: Claim) -> Result<GuestInfo, Failure> {
        let (guest, name) = (record.uuid, &record.name);
        let definition = self.definition_of(guest, name).ok_or_else(|| {
            let path = self.dirs.definition(name);
            Failure::new(
                ErrorCode::NotFound,
                format!("it is not known here what guest '{name}' is made of"),
                format!("write {} with its uuid, {guest}, and say it again", path.display()),
            )
        })?;
        let claim = Some(claim);
        let spec = LaunchSpec { claim, ..persistent::launch_spec(&self.dirs, definition) };
        let launch = move || spawn::launch(&spec, None, Some(BUILD));
        let launched = tokio::task::spawn_blocking(launch).await;
        let launched = launched.map_err(|e| unexpected("the start of a guest", &e))??;
        self.settled(guest);
        inbound::reap(launched.child);
        Ok(launched.info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::moving::HostRef;

    fn known(hosts: Vec<Asked>) -> Standing {
        let here = Doubtful {
            schema: 1,
            name: "web1".into(),
            uuid: Uuid::nil(),
            doubt: Some(Doubt::Offered),
            other: Some(HostRef { id: Uuid::from_u128(2), name: "beta".into() }),
            since: Timestamp::UNIX_EPOCH,
            term: 3,
            known: String::new(),
            next: String::new(),
        };
        Standing { schema: 1, here, memory: false, hosts }
    }

    fn request(wish: Wish, fenced: Option<&str>) -> ResolveRequest {
        let fenced = fenced.map(str::to_owned);
        ResolveRequest { wish, fenced, lose_later_work: false, by: "root".into() }
    }

    #[test]
    fn an_operators_word_is_not_taken_against_what_is_known() {
        let says = |host: &str, owns: bool| Asked {
            host: host.into(),
            answer: Ok(Word { owns: owns.then_some(7), ..Word::default() }),
        };
        let silent = |host: &str| {
            let failure = Failure::new(ErrorCode::Unreachable, "it does not answer", "");
            Asked { host: host.into(), answer: Err(*failure.0) }
        };
        let run = |fenced, hosts| {
            let request = request(Wish::RunHere, fenced);
            against(&request, &known(hosts)).map_err(|f| f.0.code)
        };
        let fenced = Some("beta");
        assert_eq!(run(fenced, vec![silent("beta"), says("gamma", false)]), Ok(()));
        assert_eq!(run(fenced, vec![]), Ok(()), "it was removed from the site");
        assert_eq!(run(None, vec![silent("beta")]), Err(ErrorCode::Usage));
        assert_eq!(run(Some("gamma"), vec![silent("beta")]), Err(ErrorCode::Usage));
        assert_eq!(run(fenced, vec![says("beta", false)]), Err(ErrorCode::WrongState));
        assert_eq!(run(fenced, vec![says("beta", true)]), Err(ErrorCode::Superseded));
        // Others are weighed by whoever holds the journal.
        let elsewhere = vec![silent("beta"), says("gamma", true)];
        assert_eq!(run(fenced, elsewhere.clone()), Ok(()));
        let ids =
            [("beta".to_owned(), Uuid::from_u128(2)), ("gamma".to_owned(), Uuid::from_u128(3))];
        let gamma = Uuid::from_u128(3);
        let right = Some(Right { term: 7, host: gamma });
        assert_eq!(weigh(&known(elsewhere.clone()), &ids), (right, None));
        let nobody = vec![silent("beta"), silent("gamma")];
        assert_eq!(weigh(&known(nobody), &ids), (None, Some(gamma)), "not the fenced one");
        let text = Failure::new(ErrorCode::InDoubt, format!("host {:032x} is", 3), "");
        assert_eq!(named(text, &ids).0.message, "host gamma is");
        let give_up = request(Wish::GiveUp, None);
        assert!(against(&give_up, &known(elsewhere)).is_ok(), "that only takes away");
        let settled =
            Standing { here: Doubtful { other: None, ..known(vec![]).here }, ..known(vec![]) };
        assert_eq!(against(&give_up, &settled).unwrap_err().0.code, ErrorCode::WrongState);
    }
}
