//! A guest, a place for one, and rights that write down what was done to them, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::handover::journal::{Illegal, Ledger, Mark, Record};
use crate::handover::message::{Message, from_ledger};
use crate::handover::proof::Durable;
use crate::handover::term::{Beside, BootId, HostId, Millis, Stamp, Switch, Term};
use crate::port::{Lock, NotPaused, PausedGuest, Receiver, Rehearsal, Rights, RunningGuest, Trial};
use crate::pump::fake::{Log, Ram, Writer};
use crate::session::Clock;

/// What happened in a test, on both sides, in order.
#[derive(Debug, Default)]
pub(super) struct Diary(Mutex<Vec<String>>);

impl Diary {
    pub(super) fn write(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Where a line stands.
    pub(super) fn at(&self, line: &str) -> Option<usize> {
        self.lines().iter().position(|l| l == line)
    }

    /// That these lines stand there in this order.
    pub(super) fn in_order(&self, lines: &[&str]) {
        let places: Vec<_> = lines.iter().map(|l| self.at(l)).collect();
        assert!(places.is_sorted() && !places.contains(&None), "{lines:?} in {:?}", self.lines());
    }
}

#[derive(Debug, thiserror::Error)]
#[error("planned to fail")]
pub(super) struct Planned;

/// What fails, and how often.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<VecDeque<(String, u32)>>);

impl Faults {
    pub(super) fn plan(&self, step: &str, times: u32) {
        self.0.lock().unwrap().push_back((step.into(), times));
    }

    fn strikes(&self, step: &str) -> bool {
        let mut planned = self.0.lock().unwrap();
        let found = planned.iter_mut().find(|(s, times)| s == step && *times > 0);
        found.is_some_and(|(_, times)| {
            *times -= 1;
            true
        })
    }
}

/// What the two hosts of a test share.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) diary: Diary,
    pub(super) faults: Faults,
    disk: Mutex<Disk>,
    /// Guests that run now.
    running: Mutex<i32>,
    /// What stands in the journals, as the daemons see it.
    ledgers: Mutex<Vec<Ledger>>,
}

#[derive(Debug)]
struct Disk {
    owner: Option<HostId>,
    next: Option<HostId>,
    beside: Beside,
}

impl Default for Disk {
    fn default() -> Self {
        Self { owner: None, next: None, beside: Beside::NOTHING }
    }
}

impl World {
    /// Does a step, unless it is planned to fail.
    fn step(&self, step: String) -> Result<(), Planned> {
        if self.faults.strikes(&step) {
            self.diary.write(format!("{step} fails"));
            return Err(Planned);
        }
        self.diary.write(step);
        Ok(())
    }

    fn runs(&self, by: i32) {
        let mut running = self.running.lock().unwrap();
        *running += by;
        assert!(*running <= 1, "two guests run: {:?}", self.diary.lines());
    }

    /// What the daemon of `host` answers when its guest's process has ended.
    pub(super) fn answer(&self, host: HostId, heard: &Message) -> Option<Message> {
        let ledgers = self.ledgers.lock().unwrap();
        from_ledger(ledgers.iter().find(|l| l.host() == host)?, heard)
    }

    /// The switch that `host` has promised to take part in.
    pub(super) fn offered_to(&self, host: HostId) -> Option<Switch> {
        let ledgers = self.ledgers.lock().unwrap();
        match ledgers.iter().find(|l| l.host() == host)?.now()? {
            Record::Receiving(switch) => Some(*switch),
            _ => None,
        }
    }

    /// Another host takes the guest, by an operator's word.
    pub(super) fn supersede(&self, owner: Stamp) {
        self.disk.lock().unwrap().beside.owner = owner;
    }

    /// A host is gone, and with it its locks.
    pub(super) fn host_dies(&self, host: HostId) {
        let mut disk = self.disk.lock().unwrap();
        let disk = &mut *disk;
        for holder in [&mut disk.owner, &mut disk.next] {
            if *holder == Some(host) {
                *holder = None;
            }
        }
    }

    pub(super) fn beside(&self) -> Beside {
        self.disk.lock().unwrap().beside
    }
}

/// A guest that writes to its memory while it runs.
pub(super) struct Guest {
    pub(super) ram: Ram,
    pub(super) side: &'static str,
    pub(super) world: Arc<World>,
    pub(super) seed: u64,
    /// `None`: its user paused it.
    writer: Option<Writer>,
}

/// The same, standing still.
pub(super) struct Still {
    ram: Ram,
    side: &'static str,
    world: Arc<World>,
    seed: u64,
    by_user: bool,
}

impl Guest {
    pub(super) fn start(side: &'static str, ram: &Ram, world: &Arc<World>, seed: u64) -> Self {
        world.runs(1);
        let writer = Some(Writer::start(ram, seed));
        Self { ram: Arc::clone(ram), side, world: Arc::clone(world), seed, writer }
    }

    pub(super) fn paused_by_user(ram: &Ram, world: &Arc<World>, seed: u64) -> Self {
        let (ram, world) = (Arc::clone(ram), Arc::clone(world));
        Self { ram, side: "S", world, seed, writer: None }
    }

    pub(super) fn runs(&self) -> bool {
        self.writer.is_some()
    }

    fn stop(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.pause();
            self.world.runs(-1);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
    }
}

impl RunningGuest for Guest {
    type Paused = Still;
    type Ram = Ram;
    type Log = Log;
    type Error = Planned;

    fn ram(&self) -> Ram {
        Arc::clone(&self.ram)
    }

    fn start_log(&self) -> Result<Log, Planned> {
        self.world.step(format!("{} starts the log", self.side))?;
        Ok(Log::start(&self.ram, self.seed.is_multiple_of(2)))
    }

    fn rehearsal_state(&mut self) -> Result<Trial, Planned> {
        self.world.step(format!("{} saves for a trial", self.side))?;
        Ok(Trial { state: b"trial".to_vec(), ..Trial::default() })
    }

    fn pause(mut self) -> Result<Still, NotPaused<Self, Planned>> {
        if self.world.faults.strikes("S ends") {
            self.stop();
            return Err(NotPaused::Ended);
        }
        if let Err(why) = self.world.step(format!("{} pauses", self.side)) {
            return Err(NotPaused::Failed(self, why));
        }
        let by_user = self.writer.is_none();
        self.stop();
        let (ram, side, seed) = (Arc::clone(&self.ram), self.side, self.seed);
        Ok(Still { ram, side, world: Arc::clone(&self.world), seed, by_user })
    }
}

impl PausedGuest for Still {
    type Running = Guest;
    type Error = Planned;

    fn save(&mut self) -> Result<Vec<u8>, Planned> {
        self.world.step(format!("{} saves", self.side))?;
        // Saving writes guest memory.
        self.ram.store(0, &[self.seed; 64]);
        Ok(b"state".to_vec())
    }

    fn resume(self) -> Result<Guest, (Self, Planned)> {
        if let Err(why) = self.world.step(format!("{} runs", self.side)) {
            return Err((self, why));
        }
        if self.by_user {
            return Ok(Guest::paused_by_user(&self.ram, &self.world, self.seed));
        }
        Ok(Guest::start(self.side, &self.ram, &self.world, self.seed ^ 0x4d))
    }

    fn stop_time(&self) -> Duration {
        Duration::ZERO
    }

    fn retire(self) {
        self.world.diary.write(format!("{} is freed", self.side));
    }
}

/// A place for a guest at the target.
pub(super) struct Place {
    pub(super) ram: Ram,
    /// Memory of the source's guest: what must be here when it is restored.
    pub(super) source: Ram,
    pub(super) world: Arc<World>,
    pub(super) problems: Vec<String>,
}

impl Receiver for Place {
    type Ram = Ram;
    type Paused = Still;
    type Error = Planned;

    fn ram(&self) -> Ram {
        Arc::clone(&self.ram)
    }

    fn rehearse(&mut self, state: &[u8]) -> Result<Rehearsal, Planned> {
        self.world.step("T rehearses".into())?;
        assert_eq!(state, b"trial");
        let took = Duration::from_micros(300);
        Ok(Rehearsal { took, problems: self.problems.clone() })
    }

    fn restore(self, state: &[u8]) -> Result<Still, Planned> {
        self.world.step("T restores".into())?;
        assert_eq!(state, b"state");
        assert_eq!(self.source.differing(&self.ram), Vec::<u64>::new(), "memory differs");
        let (ram, world) = (self.ram, self.world);
        Ok(Still { ram, side: "T", world, seed: 3, by_user: false })
    }
}

/// Rights with a journal in memory, on one shared disk.
pub(super) struct Paper {
    pub(super) side: &'static str,
    pub(super) host: HostId,
    pub(super) ledger: Ledger,
    pub(super) world: Arc<World>,
}

const BOOT: BootId = BootId(1);

#[derive(Debug, thiserror::Error)]
pub(super) enum PaperError {
    #[error(transparent)]
    Planned(#[from] Planned),
    #[error(transparent)]
    Illegal(#[from] Illegal),
}

impl Paper {
    /// The source's: it owns the guest since term 1.
    pub(super) fn source(host: HostId, world: &Arc<World>) -> Self {
        let ledger = Ledger::new(host, BOOT);
        let term = Term::FIRST;
        let ledger = ledger.apply(Record::Owner { term }, BOOT).unwrap();
        let mut disk = world.disk.lock().unwrap();
        disk.owner = Some(host);
        disk.beside.owner = Stamp { term, host };
        drop(disk);
        Self { side: "S", host, ledger, world: Arc::clone(world) }
    }

    pub(super) fn target(host: HostId, world: &Arc<World>) -> Self {
        Self { side: "T", host, ledger: Ledger::new(host, BOOT), world: Arc::clone(world) }
    }

    fn lock(
        &mut self,
        what: &str,
        which: fn(&mut Disk) -> &mut Option<HostId>,
    ) -> Result<Lock, PaperError> {
        let mut disk = self.world.disk.lock().unwrap();
        let holder = which(&mut disk);
        if holder.is_some_and(|h| h != self.host) {
            self.world.diary.write(format!("{} finds {what} taken", self.side));
            return Ok(Lock::Busy);
        }
        self.world.step(format!("{} takes {what}", self.side))?;
        *holder = Some(self.host);
        Ok(Lock::Taken(disk.beside))
    }

    fn unlock(&mut self, what: &str, which: fn(&mut Disk) -> &mut Option<HostId>) {
        let mut disk = self.world.disk.lock().unwrap();
        let holder = which(&mut disk);
        if *holder == Some(self.host) {
            *holder = None;
            self.world.diary.write(format!("{} drops {what}", self.side));
        }
    }
}

impl Durable for Paper {
    type Error = PaperError;

    fn record(&mut self, record: Record) -> Result<(), PaperError> {
        let text = format!("{record:?}");
        let name = text.split([' ', '(']).next().unwrap_or_default();
        self.world.step(format!("{} records {name}", self.side))?;
        self.ledger = self.ledger.apply(record, BOOT)?;
        let mut ledgers = self.world.ledgers.lock().unwrap();
        ledgers.retain(|l| l.host() != self.host);
        ledgers.push(self.ledger.clone());
        Ok(())
    }

    fn mark(&mut self, mark: Mark) -> Result<(), PaperError> {
        let name = if matches!(mark, Mark::Ceded(_)) { "ceded" } else { "ran" };
        Ok(self.world.step(format!("{} marks {name}", self.side))?)
    }

    fn stamp(&mut self, term: Term) -> Result<(), PaperError> {
        self.world.step(format!("{} stamps", self.side))?;
        self.world.disk.lock().unwrap().beside.owner = Stamp { term, host: self.host };
        Ok(())
    }
}

impl Rights for Paper {
    fn beside(&mut self) -> Result<Beside, PaperError> {
        self.world.step(format!("{} reads", self.side))?;
        Ok(self.world.beside())
    }

    fn stamp_offer(&mut self, term: Term) -> Result<(), PaperError> {
        self.world.step(format!("{} stamps the offer", self.side))?;
        self.world.disk.lock().unwrap().beside.offered = term;
        Ok(())
    }

    fn take_owner(&mut self) -> Result<Lock, PaperError> {
        self.lock("OWNER", |d| &mut d.owner)
    }

    fn drop_owner(&mut self) {
        self.unlock("OWNER", |d| &mut d.owner);
    }

    fn take_next(&mut self) -> Result<Lock, PaperError> {
        self.lock("NEXT", |d| &mut d.next)
    }

    fn drop_next(&mut self) {
        self.unlock("NEXT", |d| &mut d.next);
    }

    fn known(&self) -> Option<(Ledger, bool)> {
        Some((self.ledger.clone(), true))
    }
}

/// A clock that runs faster than that of the host.
#[derive(Clone, Copy)]
pub(super) struct Fast {
    pub(super) began: tokio::time::Instant,
    pub(super) times: u64,
}

impl Clock for Fast {
    fn now(&self) -> Millis {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap();
        Millis(micros * self.times / 1000)
    }

    async fn sleep_until(&self, moment: Millis) {
        let wait = moment.0.saturating_sub(self.now().0);
        tokio::time::sleep(Duration::from_micros(wait * 1000 / self.times)).await;
    }
}
