//! The journal on a [`simulated`](super::simulated) disk: a power loss, a kill or an error at
//! every system call of every operation, and then again at every system call of the next process.
//! What a process finds must be
//! * the last record that was reported as durable, or one that was being written since;
//! * never nothing, and never an error, once there was a record that was reported as durable;
//! * what every later process finds, once somebody has taken the journal and seen it.

use std::path::{Path, PathBuf};

use super::record::{self, Record, State};
use super::simulated::{Disk, Fault, Mutant};
use super::*;

const HOME: &str = "/state";
const DIR: &str = "/state/journal/guest";

fn owner(term: u64) -> Record {
    let ledger = record::owned(term);
    let state = State::Owner;
    Record { ledger, origin: None, saved_ever: false, state, ..record::example() }
}

fn dir() -> PathBuf {
    PathBuf::from(DIR)
}

fn record_path() -> PathBuf {
    dir().join(RECORD)
}

/// What may be found, as terms; 0 for no record.
#[derive(Clone, Debug)]
struct May {
    durable: u64,
    tried: Vec<u64>,
}

impl May {
    const NOTHING: Self = Self { durable: 0, tried: Vec::new() };

    fn be(&self, term: u64) -> bool {
        self.durable == term || self.tried.contains(&term)
    }

    /// Somebody has seen it.
    fn only(term: u64) -> Self {
        Self { durable: term, tried: Vec::new() }
    }
}

/// A process takes the journal and writes records, each up to twice, until it is dead.
fn live(disk: &Disk, mut may: May, records: u64) -> Result<May, String> {
    let mut journal = match Journal::take_in(disk.clone(), &dir()) {
        Ok(journal) => journal,
        // It may fail, and then says nothing; but what it finds is never damaged.
        Err(JournalError::Io { .. }) if disk.failed() => return Ok(may),
        Err(error) => return Err(format!("taking it: {error}")),
    };
    let found = journal.last().map_or(0, Record::term);
    if !may.be(found) {
        return Err(format!("found {found}, but {may:?}"));
    }
    may = May::only(found);
    let mut term = found;
    for _ in 0..records {
        term += 1;
        for _ in 0..2 {
            may.tried.push(term);
            match journal.record(owner(term)) {
                Ok(()) => {
                    may = May::only(term);
                    break;
                }
                Err(JournalError::Io { .. }) if disk.failed() => {}
                Err(error) => return Err(format!("writing {term}: {error}")),
            }
        }
        if disk.is_dead() {
            break;
        }
    }
    // Its drop may remove an empty journal.
    drop(journal);
    Ok(may)
}

/// After what happened to `disk`, is everything as it may be? Looks at what a process would find
/// on each disk that there may be.
fn look(disk: &Disk, may: &May) -> Result<(), String> {
    let taken = |disk: &Disk, how: &str| {
        let journal = Journal::take_in(disk.clone(), &dir())
            .map_err(|error| format!("{how}: {error} although {may:?}\n{:#?}", disk.said()))?;
        let found = journal.last().map_or(0, Record::term);
        if may.be(found) {
            return Ok((journal, found));
        }
        Err(format!("{how}: found {found}, but {may:?}\n{:#?}", disk.said()))
    };
    // The process is gone, the host is not.
    let next = disk.next_process();
    let (journal, found) = taken(&next, "after a kill")?;
    // What it saw it may have told others.
    let lost = next.survivors(&record_path());
    drop(journal);
    for disk in lost {
        let (_, again) = taken(&disk, "after a kill, a look and a power loss")?;
        if again != found {
            return Err(format!("{found} was seen, then {again}\n{:#?}", disk.said()));
        }
    }
    for disk in disk.survivors(&record_path()) {
        taken(&disk, "after a power loss")?;
    }
    Ok(())
}

/// All that may go wrong at a call.
const FAULTS: [Fault; 8] = [
    Fault::Crash,
    Fault::Kill,
    Fault::Fails(libc::EIO),
    Fault::Fails(libc::ENOSPC),
    Fault::Fails(libc::EINTR),
    Fault::FailsLate(libc::EIO),
    Fault::FailsLate(libc::ENOSPC),
    Fault::Short,
];

fn home() -> Disk {
    let disk = Disk::new();
    disk.make_dir(Path::new(HOME)).unwrap();
    let root = disk.open(Path::new("/")).unwrap();
    disk.sync(&root).unwrap();
    disk.next_process()
}

/// How often `process` calls the system.
fn calls(disk: &Disk, may: &May) -> usize {
    let disk = disk.next_process();
    live(&disk, may.clone(), 2).unwrap();
    disk.calls()
}

/// Tries everything with one fault, and with a second one in the next process. The first defect
/// that is found, or the number of runs.
fn explore(mutant: Option<Mutant>, two: bool) -> Result<usize, String> {
    let mut runs = 0;
    // A new journal, and one that has a record.
    let new = home().with(mutant);
    let old = new.next_process();
    let may_old = live(&old, May::NOTHING, 1)?;
    for (start, may) in [(new, May::NOTHING), (old, may_old)] {
        for at in 0..=calls(&start, &may) {
            for fault in FAULTS {
                let disk = start.next_process();
                disk.plan(at, fault);
                let here = |e| format!("{mutant:?} {fault:?} at {at}: {e}");
                let may = live(&disk, may.clone(), 2).map_err(here)?;
                look(&disk, &may).map_err(here)?;
                runs += 1;
                if two && matches!(fault, Fault::Crash | Fault::Kill | Fault::FailsLate(libc::EIO))
                {
                    runs += again(&disk, &may, fault == Fault::Crash).map_err(here)?;
                }
            }
        }
    }
    Ok(runs)
}

/// The next process, with a fault of its own. After a power loss a few of the disks will do.
fn again(disk: &Disk, may: &May, lost: bool) -> Result<usize, String> {
    let mut runs = 0;
    let mut next = if lost { disk.survivors(&record_path()) } else { vec![disk.next_process()] };
    let step = next.len().div_ceil(3).max(1);
    next = next.into_iter().step_by(step).collect();
    for disk in next {
        for at in 0..=calls(&disk, may) {
            for fault in [Fault::Crash, Fault::Kill, Fault::FailsLate(libc::EIO)] {
                let disk = disk.next_process();
                disk.plan(at, fault);
                let may = live(&disk, may.clone(), 2)?;
                look(&disk, &may).map_err(|e| format!("then {fault:?} at {at}: {e}"))?;
                runs += 1;
            }
        }
    }
    Ok(runs)
}

#[test]
fn a_journal_survives_everything_at_every_call() {
    match explore(None, true) {
        Ok(runs) => {
            eprintln!("{runs} runs, each on all disks that there may be after it");
            assert!(runs > 1000, "only {runs} runs");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_wrong_order_is_found() {
    for mutant in [
        Mutant::NoFileSync,
        Mutant::NoDirSync,
        Mutant::RenameFirst,
        Mutant::InPlace,
        Mutant::NoWay,
        Mutant::Reused,
        Mutant::Believed,
    ] {
        assert!(explore(Some(mutant), true).is_err(), "{mutant:?} is not found");
    }
}

#[test]
fn a_withdrawal_follows_an_offer_whose_record_failed() {
    use handover::Record as Step;
    use migrate_engine::handover::term::{Switch, SwitchId, Term};
    let (host, boot) = (HostId(1), BootId(2));
    let name = || "one".to_owned();
    let whose = Whose { uuid: Uuid::nil(), name: name(), host_name: name(), host, boot };
    let (before, term) = (Term::new(1), Term::new(2));
    let switch = Switch { id: SwitchId(5), before, term, from: host, to: HostId(9) };
    for fault in [Fault::Fails(libc::ENOSPC), Fault::FailsLate(libc::EIO)] {
        for at in 0..6 {
            let disk = home();
            let mut journal = Journal::take_in(disk.clone(), &dir()).unwrap();
            let mut step = |step| journal.step(&whose, step, None, Timestamp::UNIX_EPOCH);
            step(Step::Owner { term: before }).unwrap();
            disk.plan(at, fault);
            let offered = step(Step::Offered(switch));
            // The first call removes a leftover, and there is none.
            assert!(offered.is_err() || at == 0, "{fault:?} at {at}");
            step(Step::Withdrawn(switch)).unwrap();
            let disks = disk.survivors(&record_path());
            for disk in disks {
                let journal = Journal::take_in(disk, &dir()).unwrap();
                let now = journal.last().unwrap().ledger.now().copied();
                assert_eq!(now, Some(Step::Withdrawn(switch)), "{fault:?} at {at}");
            }
        }
    }
}

#[test]
fn a_failed_step_is_written_again_when_it_is_repeated() {
    let disk = home();
    let mut journal = Journal::take_in(disk.clone(), &dir()).unwrap();
    journal.record(owner(1)).unwrap();
    // The last call of a record is the sync of the directory.
    let before = disk.calls();
    journal.record(owner(2)).unwrap();
    disk.plan(disk.calls() - before - 1, Fault::Fails(libc::EIO));
    assert!(journal.record(owner(3)).is_err());
    assert_eq!(journal.last().map(Record::term), Some(2), "not reported");
    journal.record(owner(3)).unwrap();
    for disk in disk.survivors(&record_path()) {
        assert_eq!(Journal::take_in(disk, &dir()).unwrap().last().map(Record::term), Some(3));
    }
}
