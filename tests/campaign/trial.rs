//! One run: a move, the fault of a cell in it, and then the truth about what is left.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use migrate::failpoint::Fate;
use migrate::failpoint::plan::{Action, Rule};
use migrate::failpoint::points::{Party, Point};
use migrate_engine::handover::journal::Record as Step;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::cells::{Cell, Fault, First, Seed};
use crate::host::{Failed, signal};
use crate::pair::{Guest, Pair};

/// Nothing takes so long until it is settled.
const SETTLED: Duration = Duration::from_secs(100);
/// What a process leaves that dies after its move is cleared up by whoever looks: after this time
/// somebody does.
const ALONE: Duration = Duration::from_secs(2);
/// A place that was not passed by then is not passed.
const REACHED: Duration = Duration::from_secs(15);

/// How a run ended in which all was as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// `moved`, `kept`, `none`: what the move's report says.
    pub outcome: String,
    /// Whether the fault struck: a process may not be there yet, or not any more.
    pub struck: bool,
    /// From the end of the fault until all was settled.
    pub settled: Duration,
}

/// A move that goes on.
pub struct Trial<'a> {
    pair: &'a mut Pair,
    cell: Cell,
    seed: Seed,
    guest: Guest,
    generation: u64,
    /// What the daemon answered who was asked to move it.
    begun: Receiver<Result<Value, Failed>>,
    move_id: Option<String>,
    /// The order was refused, or its answer was lost.
    unanswered: Option<Failed>,
    killed: Vec<Party>,
    /// What had been passed at the target when a process was killed.
    prepared: bool,
}

/// One run of a cell.
pub fn run(pair: &mut Pair, cell: Cell, seed: u64) -> Result<Done, Failed> {
    let mut trial = Trial::begin(pair, cell, Seed(seed))?;
    let struck = trial.strike()?;
    let began = Instant::now();
    let outcome = trial.settle()?;
    let settled = began.elapsed();
    let struck = struck && (cell.holds() || trial.was_harmed());
    trial.judge(&outcome)?;
    Ok(Done { outcome, struck, settled })
}

impl<'a> Trial<'a> {
    fn begin(pair: &'a mut Pair, cell: Cell, mut seed: Seed) -> Result<Self, Failed> {
        let guest = pair.guest()?;
        let mut rules = [Vec::new(), Vec::new()];
        if let Some(((party, place), dies)) = cell.first.at() {
            let lost = Action::Fate(Fate::Drop);
            let (nth, action) = if dies.is_some() { (Some(1), Action::Hold) } else { (None, lost) };
            let rule = Rule { place: place.to_owned(), nth, action };
            rules[host_of(party, guest.at)].push(rule);
        }
        rules[host_of(cell.point.0, guest.at)].push(cell.rule(&mut seed));
        let generation = pair.plan(rules)?;
        let options = json!({"max_downtime_ms": 150, "on_stall": "pause", "timeout_ms": 10_000});
        let to = &pair.hosts[1 - guest.at].name;
        let order = json!({"guest": guest.name, "to": to, "options": options});
        let (sender, begun) = channel();
        let ask = pair.hosts[guest.at].poster("/v1/moves", &order);
        std::thread::spawn(move || sender.send(ask()));
        let (move_id, unanswered, killed) = (None, None, Vec::new());
        let prepared = false;
        Ok(Self {
            pair,
            cell,
            seed,
            guest,
            generation,
            begun,
            move_id,
            unanswered,
            killed,
            prepared,
        })
    }

    fn passed(&self, host: usize, place: &str, what: &str) -> bool {
        let passed = self.pair.hosts[host].passed(self.generation);
        passed.iter().any(|p| p.place == place && (what.is_empty() || p.what == what))
    }

    fn was_harmed(&self) -> bool {
        let (party, place) = self.cell.point;
        self.passed(host_of(party, self.guest.at), place, "harmed")
    }

    /// Waits until somebody stands at the place.
    fn reach(&mut self, (party, place): Point) -> Result<bool, Failed> {
        let host = host_of(party, self.guest.at);
        let reached = self.pair.look_until(REACHED, |pair| pair.held_at(host, place));
        if !reached {
            self.pair.release()?;
        }
        Ok(reached)
    }

    /// What goes wrong first.
    ///
    /// A word that an earlier move left may have stood at the place of the fault, and kept this one
    /// from coming so far: then it does not happen.
    fn first(&mut self) -> Result<bool, Failed> {
        let Some((point, Some(dies))) = self.cell.first.at() else { return Ok(true) };
        if !self.reach(point)? {
            return Ok(false);
        }
        self.prepared = self.passed(1 - self.guest.at, "target.send.Prepared", "");
        let rest = self.cell.rule(&mut self.seed);
        let Some(pid) = self.pid_of(dies) else { return Err("nobody to kill first".into()) };
        self.killed.push(dies);
        signal(pid, Signal::SIGKILL);
        let mut rules = [Vec::new(), Vec::new()];
        rules[host_of(self.cell.point.0, self.guest.at)].push(rest);
        self.pair.same_plan(rules)?;
        Ok(true)
    }

    /// Waits until somebody stands at the place, does the fault, and lets go.
    fn strike(&mut self) -> Result<bool, Failed> {
        if !self.first()? {
            return Ok(false);
        }
        if !self.cell.holds() {
            return Ok(true);
        }
        if !self.reach(self.cell.point)? {
            // After harm there is more than one way.
            let first = self.cell.first != First::Nothing;
            let why = || format!("{} was not passed", self.cell.point.1);
            return if first { Ok(false) } else { Err(why()) };
        }
        self.prepared |= self.passed(1 - self.guest.at, "target.send.Prepared", "");
        let pause = self.seed.pause();
        let struck = match self.cell.fault {
            Fault::Kill(party) => self.kill(party),
            Fault::Stop(party) => self.stop(party, pause),
            Fault::Cut => self.cut([true, true], pause),
            Fault::CutToTarget => self.cut(only_to(1 - self.guest.at), pause),
            Fault::CutToSource => self.cut(only_to(self.guest.at), pause),
            _ => Ok(true),
        };
        self.pair.release()?;
        struck
    }

    fn pid_of(&self, party: Party) -> Option<i32> {
        let (source, target) =
            (&self.pair.hosts[self.guest.at], &self.pair.hosts[1 - self.guest.at]);
        match party {
            Party::Source => source.others().contains(&self.guest.pid).then_some(self.guest.pid),
            Party::Target => target.others().first().copied(),
            Party::SourceDaemon => Some(source.daemon_pid()),
            Party::TargetDaemon => Some(target.daemon_pid()),
        }
    }

    fn kill(&mut self, party: Party) -> Result<bool, Failed> {
        let Some(pid) = self.pid_of(party) else { return Ok(false) };
        self.killed.push(party);
        let host = host_of(party, self.guest.at);
        if matches!(party, Party::SourceDaemon | Party::TargetDaemon) {
            self.pair.hosts[host].end_daemon(Signal::SIGKILL);
            self.pair.release()?;
            // As a service manager would.
            self.pair.look_until(Duration::from_millis(self.seed.below(400)), |_| false);
            self.pair.hosts[host].start_daemon()?;
        } else {
            signal(pid, Signal::SIGKILL);
        }
        Ok(true)
    }

    fn stop(&mut self, party: Party, pause: Duration) -> Result<bool, Failed> {
        let Some(pid) = self.pid_of(party) else { return Ok(false) };
        signal(pid, Signal::SIGSTOP);
        self.pair.release()?;
        self.pair.look_until(pause, |_| false);
        signal(pid, Signal::SIGCONT);
        Ok(true)
    }

    fn cut(&mut self, to: [bool; 2], pause: Duration) -> Result<bool, Failed> {
        self.pair.relay.cuts.set(to);
        self.pair.release()?;
        self.pair.look_until(pause, |_| false);
        self.pair.relay.cuts.set([false, false]);
        Ok(true)
    }

    /// Waits until nothing goes on any more anywhere; answers what became of the move.
    fn settle(&mut self) -> Result<String, Failed> {
        let began = Instant::now();
        let end = began + SETTLED;
        let mut listed = false;
        loop {
            self.pair.look();
            let why = match self.unsettled() {
                Ok(outcome) => return Ok(outcome),
                Err(why) => why,
            };
            if !listed && began.elapsed() > ALONE && self.told() {
                // It died alone, after the move: whoever looks at the guests clears up.
                self.pair.hosts.iter().try_for_each(|host| host.done(&["ls"]).map(drop))?;
                listed = true;
            }
            if Instant::now() > end {
                return Err(format!("not settled after {} s: {why}", SETTLED.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// Whether a process that was killed had said how the move ended.
    fn told(&self) -> bool {
        let told = |host: usize| self.passed(host, "daemon.hear.Result", "");
        self.killed.iter().any(|party| told(host_of(*party, self.guest.at)))
    }

    /// The outcome, or what is not settled yet.
    fn unsettled(&mut self) -> Result<String, Failed> {
        for host in &mut self.pair.hosts {
            if !host.daemon_lives() {
                return Err(format!("the daemon of {} is dead", host.name));
            }
        }
        let outcome = self.outcome()?;
        let uuid = self.guest.uuid;
        for host in &self.pair.hosts {
            if let Some(open) = host.open_moves().first() {
                return Err(format!("{} has an open move: {open}", host.name));
            }
            let now = host.record(uuid)?.and_then(|r| r.ledger.now().copied());
            if let Some(now @ (Step::Ceded(_) | Step::Offered(_) | Step::Receiving(_))) = now {
                return Err(format!("the journal of {} says {now:?}", host.name));
            }
        }
        let alive = |host: usize| self.pair.hosts[host].others();
        let (source, target) = (alive(self.guest.at), alive(1 - self.guest.at));
        let dirs = [0, 1].map(|host| self.pair.hosts[host].guests().len());
        if source.len() + target.len() > 1 || dirs[0] + dirs[1] != source.len() + target.len() {
            return Err(format!("processes {source:?} and {target:?}, directories {dirs:?}"));
        }
        Ok(outcome)
    }

    /// What the source's daemon says of the move.
    fn outcome(&mut self) -> Result<String, Failed> {
        match self.begun.try_recv() {
            Ok(Ok(answer)) => self.move_id = answer["move_id"].as_str().map(str::to_owned),
            Ok(Err(why)) => self.unanswered = Some(why),
            Err(_) => {}
        }
        if self.move_id.is_none() {
            if self.unanswered.is_none() {
                return Err("the order is not answered".into());
            }
            let path = format!("/v1/moves?guest={}&limit=20", self.guest.uuid);
            let list = self.pair.hosts[self.guest.at].get(&path)?;
            let ids = list["moves"].as_array().cloned().unwrap_or_default();
            let ids = ids.iter().filter_map(|m| m["move_id"].as_str().map(str::to_owned));
            self.move_id = ids.into_iter().find(|id| !self.pair.known_moves.contains(id));
        }
        let Some(id) = self.move_id.clone() else { return Ok("none".into()) };
        let report = self.pair.report(self.guest.at, &id)?;
        match report["outcome"].as_str() {
            None => Err(format!("the move goes on: {}", report["phase"])),
            Some("in-doubt") => Err(format!("the report says that it is in doubt: {report}")),
            Some(outcome) => {
                let outcome = outcome.to_owned();
                self.pair.known_moves.push(id);
                Ok(outcome)
            }
        }
    }

    /// Whether what is left is what must be.
    fn judge(&mut self, outcome: &str) -> Result<(), Failed> {
        let (source, target) = (self.guest.at, 1 - self.guest.at);
        let moved = outcome == "moved";
        let killed = |party| self.killed.contains(&party);
        let (owner, dead) =
            if moved { (target, killed(Party::Target)) } else { (source, killed(Party::Source)) };
        let at_owner = self.pair.hosts[owner].others();
        let elsewhere = self.pair.hosts[1 - owner].others();
        if !elsewhere.is_empty() || at_owner.len() != usize::from(!dead) {
            return Err(format!(
                "the report says {outcome}, and the processes are {at_owner:?} where the guest is \
                 said to be, {elsewhere:?} elsewhere"
            ));
        }
        self.not_lost(moved)?;
        for host in [source, target] {
            let record = self.pair.hosts[host].record(self.guest.uuid)?;
            let says_so = record.is_some_and(|r| r.ledger.owned().is_some());
            if says_so != (host == owner) {
                let name = &self.pair.hosts[host].name;
                return Err(format!("the report says {outcome}; {name} owns the guest: {says_so}"));
            }
        }
        self.same_word(outcome)?;
        if dead {
            self.pair.look();
            self.pair.guest = None;
        } else {
            self.pair.verify(owner)?;
            let pid = at_owner[0];
            self.pair.guest = Some(Guest { at: owner, pid, ..self.guest.clone() });
        }
        let findings = self.pair.witness.findings();
        self.pair.witness.forget();
        if findings.is_empty() { Ok(()) } else { Err(findings.join("\n")) }
    }

    /// No guest is lost as long as a process lives that has all of its memory.
    fn not_lost(&self, moved: bool) -> Result<(), Failed> {
        let killed = |party| self.killed.contains(&party);
        // Whoever has withdrawn may have run on: nobody else has the newest memory.
        let withdrawn = self.passed(self.guest.at, "source.record.Withdrawn.after", "");
        let prepared = self.prepared && !withdrawn && !killed(Party::Target);
        if !moved && killed(Party::Source) && prepared {
            return Err("LOST: the target was prepared, and the guest was not let run there".into());
        }
        let ran = self.passed(1 - self.guest.at, "target.mark.Ran.after", "");
        if moved && killed(Party::Target) && !killed(Party::Source) && !ran {
            return Err("LOST: the source had the memory, and did not take the guest back".into());
        }
        Ok(())
    }

    /// Both hosts say the same of the move, if the target's knows of it.
    fn same_word(&self, outcome: &str) -> Result<(), Failed> {
        let Some(id) = &self.move_id else { return Ok(()) };
        match self.pair.report(1 - self.guest.at, id) {
            Ok(report) if report["outcome"].as_str() != Some(outcome) => {
                Err(format!("the source says {outcome}, the target {}", report["outcome"]))
            }
            _ => Ok(()),
        }
    }
}

/// A cut of what goes to one host.
fn only_to(host: usize) -> [bool; 2] {
    [host == 0, host == 1]
}

/// Where a process is, of a guest that leaves `from`.
fn host_of(party: Party, from: usize) -> usize {
    match party {
        Party::Source | Party::SourceDaemon => from,
        Party::Target | Party::TargetDaemon => 1 - from,
    }
}
