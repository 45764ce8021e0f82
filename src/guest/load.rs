//! Whether a saved file may continue as the guest that is asked for. Decisions only: files are
//! read and locks are held by the caller.

use std::time::Duration;

use jiff::Timestamp;

use super::fingerprint::{Fingerprint, compare};
use migrate_engine::handover::journal::Ledger;
use migrate_engine::handover::term::{Beside, Term};
use migrate_engine::handover::{gate, resolve};

use super::journal::record::Record;
use super::journal::{Whose, rules};
use super::savefile::Metadata;
use crate::api::resolve::Claim;
use crate::api::{ClockChoice, ErrorCode, Failure, LoadSpec};
use crate::config::GuestDefinition;

/// Pauses up to this are accounted for by `auto`.
const SHORT: Duration = Duration::from_hours(1);

/// The right to start: a term, and the save that it continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The term.
    pub term: u64,
    /// The save that the term's owner was started from.
    pub origin: Option<uuid::Uuid>,
    /// A file knows one of this guest's terms.
    pub saved_ever: bool,
    /// The guest lives on from a moment from which it lived on before, here or elsewhere, or is a
    /// clone: it must be told.
    pub new_generation: bool,
    /// An operator's word, kept in the journal.
    pub claimed: Option<String>,
}

/// What a start is decided from: the last record of the guest's journal, if there is one, and what
/// stands beside its shared disks. The caller holds the journal's lock and the disks'.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The journal's record.
    pub last: Option<&'a Record>,
    /// Whose journal it is.
    pub whose: &'a Whose,
    /// Beside the disks.
    pub beside: Beside,
}

impl Known<'_> {
    /// The first term that this host may start the guest under.
    fn term(&self) -> Result<Term, Failure> {
        let blank = Ledger::new(self.whose.host, self.whose.boot);
        let ledger = self.last.map_or(&blank, |r| &r.ledger);
        gate::start(ledger, &self.beside).map_err(|refused| self.refused(refused))
    }

    /// The first term for a guest that continues from a file that its owner saved in term `saved`.
    /// Whoever has the file has that owner's right, on whichever host: an owner beside the disks
    /// who is not newer is the file's own past. A newer one has run the guest since.
    fn term_after_save(&self, saved: u64) -> Result<Term, Failure> {
        let Beside { owner, offered } = self.beside;
        if owner.term.get() > saved {
            return self.term();
        }
        let beside = Beside { offered: offered.max(owner.term), ..Beside::NOTHING };
        Self { beside, ..*self }.term()
    }

    fn refused(&self, refused: gate::Refused) -> Failure {
        let name = &self.whose.name;
        let peer = self.last.and_then(|r| r.peer.as_deref()).unwrap_or("another host");
        let at = |word| self.last.map(|r| format!(" {word} {:.0}", r.since)).unwrap_or_default();
        let (on, since) = (at("on"), at("since"));
        let (code, message, remedy) = match refused {
            gate::Refused::Moved { .. } => (
                ErrorCode::MovedAway,
                format!("guest '{name}' was moved to {peer}{on}"),
                format!(
                    "it runs or starts there; see: migrate report {name}; if {peer} is gone for \
                     good: migrate resolve {name}"
                ),
            ),
            gate::Refused::InDoubt { .. } => (
                ErrorCode::InDoubt,
                format!("whether guest '{name}' is here or on {peer} is not settled{since}"),
                format!(
                    "it will be as soon as that host answers: start its daemon and this one; if \
                     it is gone for good: migrate resolve {name}"
                ),
            ),
            gate::Refused::NeverHere { .. } => (
                ErrorCode::MovedAway,
                format!("guest '{name}' never ran here: its move from {peer} did not succeed"),
                format!("it runs or starts on {peer}"),
            ),
            gate::Refused::Superseded { host, term } => (
                ErrorCode::Superseded,
                format!(
                    "its disks say that host {host} has run guest '{name}' since, in term {term}"
                ),
                "start it on that host".into(),
            ),
        };
        Failure::new(code, message, remedy)
    }
}

/// The right to start without a file.
///
/// # Errors
/// `moved-away`, `in-doubt` or `superseded`: the guest is not this host's.
pub fn grant_start(known: &Known<'_>) -> Result<Grant, Failure> {
    let saved_ever = known.last.is_some_and(|r| r.saved_ever);
    let term = known.term()?.get();
    Ok(Grant { term, origin: None, saved_ever, new_generation: false, claimed: None })
}

/// The right to start from the disks by an operator's word. `shared`: the guest has disks beside
/// which terms stand.
///
/// # Errors
/// What is known that speaks against it.
pub fn grant_claim(known: &Known<'_>, claim: &Claim, shared: bool) -> Result<Grant, Failure> {
    let blank = Ledger::new(known.whose.host, known.whose.boot);
    let facts = resolve::Facts {
        ledger: known.last.map_or(&blank, |r| &r.ledger),
        beside: shared.then_some(known.beside),
        memory: resolve::Memory::Gone,
        elsewhere: Term::new(claim.elsewhere),
        runs_at: None,
        owned_by: claim.owner(),
        silent: claim.silent(),
    };
    let wish = resolve::Wish::RunHere { lose_later_work: claim.lose_later_work };
    let peer = known.last.and_then(|r| r.peer.as_deref());
    match resolve::resolve(wish, &facts).map_err(|no| refused_claim(&no, peer))? {
        resolve::Plan::Run { term, .. } => Ok(Grant {
            term: term.get(),
            origin: None,
            saved_ever: known.last.is_some_and(|r| r.saved_ever),
            new_generation: false,
            claimed: Some(claim.note.clone()),
        }),
        resolve::Plan::GiveUp(_) => Err(refused_claim(&resolve::Refused::NoClaim, peer)),
    }
}

/// Why an operator's wish is not granted, as people and scripts see it.
pub fn refused_claim(refused: &resolve::Refused, peer: Option<&str>) -> Failure {
    use resolve::Refused;
    let other = peer.unwrap_or("the other host");
    let (code, remedy) = match refused {
        Refused::Settled => (ErrorCode::WrongState, "start it: migrate start, run or load".into()),
        Refused::NoClaim => (ErrorCode::WrongState, "nothing is to be done here".into()),
        Refused::RunsAt(_) | Refused::HigherTerm { .. } => {
            (ErrorCode::Superseded, "look there: migrate show GUEST".into())
        }
        Refused::OldMemory(_) => (
            ErrorCode::Superseded,
            "migrate resolve GUEST --give-up, then: migrate resolve GUEST --run-here".into(),
        ),
        Refused::MayLoseWork(_) => (
            ErrorCode::InDoubt,
            format!("bring {other} back; or accept the loss: --lose-later-work"),
        ),
        Refused::Confirmed(_) => {
            (ErrorCode::Superseded, format!("repair {other}, or load a saved file as a clone"))
        }
        Refused::MayHaveRun(_) => (
            ErrorCode::InDoubt,
            format!("bring {other} back; or: migrate resolve GUEST --run-here"),
        ),
        Refused::Silent(_) => (
            ErrorCode::InDoubt,
            "start that host's daemon; if it is gone for good: migrate host remove HOST".into(),
        ),
    };
    // The daemon puts names in the place of ids.
    Failure::new(code, refused.to_string(), remedy)
}

/// Whether a guest may come here from another host: only if it is not this host's.
///
/// # Errors
/// `already-running` or `in-doubt`.
pub fn may_receive(known: &Known<'_>) -> Result<(), Failure> {
    use migrate_engine::handover::journal::Record as Step;
    let name = &known.whose.name;
    match known.last.and_then(|r| r.ledger.now()) {
        None | Some(Step::Ceded(_) | Step::Moved(_) | Step::Tombstone(_)) => Ok(()),
        Some(Step::Owner { .. } | Step::Withdrawn(_)) => Err(Failure::new(
            ErrorCode::AlreadyRunning,
            format!("guest '{name}' belongs to this host already, where it is stopped"),
            "one of the two hosts must give it up: see migrate show on both",
        )),
        Some(Step::Offered(_) | Step::Receiving(_)) => Err(Failure::new(
            ErrorCode::InDoubt,
            format!("an earlier move of guest '{name}' is not settled on this host"),
            "it will be as soon as the other host answers: start its daemon",
        )),
    }
}

/// The right to continue from a file. `known` is of the guest `asked.uuid`.
///
/// # Errors
/// As [`grant_start`]; and `superseded`, `bad-definition` or `writable-disk`, with what to do
/// instead.
pub fn grant_load(
    load: &LoadSpec,
    asked: &GuestDefinition,
    file: &Metadata,
    known: &Known<'_>,
) -> Result<Grant, Failure> {
    check_same_machine(asked, &file.definition)?;
    if load.clone {
        if asked.uuid == file.definition.uuid {
            let why = "a clone needs a uuid of its own";
            return Err(Failure::new(ErrorCode::BadDefinition, why, "load it with --as NAME"));
        }
        if let Some(disk) = asked.disks.iter().find(|d| !d.read_only) {
            return Err(Failure::new(
                ErrorCode::WritableDisk,
                format!("disk {} is writable: two guests cannot share it", disk.path.display()),
                "clone only guests whose disks are all read-only",
            ));
        }
        return Ok(Grant { new_generation: true, ..grant_start(known)? });
    }
    if asked.uuid != file.definition.uuid {
        let why = format!("the file is of guest {}, not {}", file.definition.uuid, asked.uuid);
        return Err(Failure::new(ErrorCode::BadDefinition, why, "load it with --as NAME"));
    }
    let lowest = known.term_after_save(file.term)?.get();
    let last = known.last;
    let term = rules::term_of_load(last, &file.identity()).map_err(|superseded| {
        Failure::new(
            ErrorCode::Superseded,
            superseded.to_string(),
            "use a newer file, or load this one as a clone: --as NAME",
        )
    })?;
    let again = last.is_some_and(|r| r.origin == Some(file.save));
    let new_generation = again || file.kept_running;
    let term = term.max(lowest);
    Ok(Grant { term, origin: Some(file.save), saved_ever: true, new_generation, claimed: None })
}

/// What the guest sees must be as it was; what only the host sees may differ.
fn check_same_machine(asked: &GuestDefinition, saved: &GuestDefinition) -> Result<(), Failure> {
    let differs = |what: &str, then: String, now: String| {
        if then == now {
            return Ok(());
        }
        Err(Failure::new(
            ErrorCode::BadDefinition,
            format!("the saved guest has {what} {then}, the definition says {now}"),
            "load it with the definition that is in the file",
        ))
    };
    differs("memory (bytes)", saved.memory_bytes.to_string(), asked.memory_bytes.to_string())?;
    differs("CPUs", saved.cpus.to_string(), asked.cpus.to_string())?;
    differs("the CPU template", saved.cpu_template.clone(), asked.cpu_template.clone())?;
    if saved.cpu != asked.cpu {
        differs("a CPU template with", "one content".into(), "another".into())?;
    }
    differs("ACPI", saved.acpi.to_string(), asked.acpi.to_string())?;
    let disks = |d: &GuestDefinition| {
        let one = |d: &crate::config::DiskDefinition| {
            format!("{} {}", d.serial, if d.read_only { "read-only" } else { "writable" })
        };
        d.disks.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    differs("the disks", format!("[{}]", disks(saved)), format!("[{}]", disks(asked)))?;
    let nets = |d: &GuestDefinition| d.nets.iter().map(|n| n.mtu).collect::<Vec<_>>();
    differs("interfaces with MTUs", format!("{:?}", nets(saved)), format!("{:?}", nets(asked)))?;
    let others = |d: &GuestDefinition| {
        format!("virtio console {}, rng {}, vsock {:?}", d.virtio_console, d.rng, d.vsock_cid)
    };
    differs("devices:", others(saved), others(asked))
}

/// Whether the disks are as the guest left them.
///
/// # Errors
/// `disk-changed` names disk, field and both values.
pub fn check_disks(
    asked: &GuestDefinition,
    file: &Metadata,
    now: &[Fingerprint],
    this_host: &str,
) -> Result<(), Failure> {
    if file.disks.len() != now.len() {
        let why = "the file does not say how the guest's disks looked";
        return Err(Failure::new(ErrorCode::BadStateFile, why, "save the guest again"));
    }
    let same_host = file.host == this_host;
    for ((disk, then), now) in asked.disks.iter().zip(&file.disks).zip(now) {
        compare(&disk.path, then, now, same_host).map_err(|changed| {
            Failure::new(
                ErrorCode::DiskChanged,
                changed.to_string(),
                "restore the disk as it was at the save, or start the guest from its disk",
            )
        })?;
    }
    Ok(())
}

/// Whether the clocks are put forward by the time that passed since `saved`.
pub fn account_for_pause(choice: ClockChoice, saved: Timestamp, now: Timestamp) -> bool {
    match choice {
        ClockChoice::Account => true,
        ClockChoice::Freeze => false,
        ClockChoice::Auto => {
            Duration::try_from(now.duration_since(saved)).is_ok_and(|pause| pause <= SHORT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Cache, DiskDefinition, NetDefinition, NetLink};
    use crate::guest::testing::definition;
    use uuid::Uuid;

    fn metadata() -> Metadata {
        let mut definition = definition("one");
        definition.disks.push(DiskDefinition {
            path: "/d".into(),
            read_only: false,
            shared: false,
            cache: Cache::None,
            serial: "s".into(),
        });
        definition.nets.push(NetDefinition {
            link: NetLink::Tap("t".into()),
            mac: [2; 6],
            mtu: None,
        });
        Metadata {
            definition,
            term: 3,
            save: Uuid::from_u128(77),
            created: Timestamp::UNIX_EPOCH,
            program: "0.1.0".into(),
            host: "h1".into(),
            disks: vec![],
            kept_running: false,
        }
    }

    fn whose() -> Whose {
        use migrate_engine::handover::term::{BootId, HostId};
        let (host, boot) = (HostId(1), BootId(2));
        let (name, host_name) = ("one".into(), "h1".into());
        Whose { uuid: Uuid::from_u128(7), name, host_name, host, boot }
    }

    fn grant_load(
        load: &LoadSpec,
        asked: &GuestDefinition,
        file: &Metadata,
        last: Option<&Record>,
    ) -> Result<Grant, Failure> {
        let known = Known { last, whose: &whose(), beside: Beside::NOTHING };
        super::grant_load(load, asked, file, &known)
    }

    #[test]
    fn a_guest_that_went_does_not_start_here() {
        use migrate_engine::handover::journal::Record as Step;
        use migrate_engine::handover::term::{HostId, Switch, SwitchId};
        let whose = whose();
        let (before, term) = (Term::new(1), Term::new(2));
        let to = HostId(9);
        let switch = Switch { id: SwitchId(5), before, term, from: whose.host, to };
        let mut record = whose.blank(Timestamp::UNIX_EPOCH);
        for (step, wanted) in [
            (Step::Owner { term: before }, None),
            (Step::Offered(switch), Some(ErrorCode::InDoubt)),
            (Step::Ceded(switch), Some(ErrorCode::MovedAway)),
            (Step::Moved(switch), Some(ErrorCode::MovedAway)),
        ] {
            let peer = Some("h9".to_owned());
            record = record.after(step, whose.boot, peer, Timestamp::UNIX_EPOCH).unwrap();
            let known = Known { last: Some(&record), whose: &whose, beside: Beside::NOTHING };
            let refused = grant_start(&known).err();
            assert_eq!(refused.as_ref().map(|f| f.0.code), wanted);
            if let Some(failure) = refused {
                assert!(failure.to_string().contains("h9"), "{failure}");
                let same = LoadSpec { clone: false, clock: ClockChoice::Auto };
                let file = Metadata { term: 9, ..metadata() };
                let asked = file.definition.clone();
                let loaded = super::grant_load(&same, &asked, &file, &known);
                assert_eq!(code(loaded), failure.0.code, "also not from a file");
            }
        }
    }

    #[test]
    fn a_file_carries_the_right_of_its_owner_to_another_host() {
        use migrate_engine::handover::term::{HostId, Stamp};
        let (file, whose) = (metadata(), whose());
        let same = LoadSpec { clone: false, clock: ClockChoice::Auto };
        let load = |owner: u64, host: u128, offered: u64| {
            let owner = Stamp { term: Term::new(owner), host: HostId(host) };
            let beside = Beside { owner, offered: Term::new(offered) };
            let known = Known { last: None, whose: &whose, beside };
            super::grant_load(&same, &file.definition, &file, &known).map(|grant| grant.term)
        };
        // It was saved in term 3.
        assert_eq!(load(3, 9, 3).ok(), Some(4));
        assert_eq!(load(2, 9, 6).ok(), Some(7), "above every offer");
        assert_eq!(load(4, 9, 4).unwrap_err().0.code, ErrorCode::Superseded, "it ran on there");
        let owner = Stamp { term: Term::new(3), host: HostId(9) };
        let beside = Beside { owner, offered: Term::NONE };
        let known = Known { last: None, whose: &whose, beside };
        assert_eq!(code(grant_start(&known)), ErrorCode::Superseded, "without the file");
    }

    fn code(result: Result<Grant, Failure>) -> ErrorCode {
        result.unwrap_err().0.code
    }

    #[test]
    fn identity_and_machine_must_fit() {
        let file = metadata();
        let same = LoadSpec { clone: false, clock: ClockChoice::Auto };
        let clone = LoadSpec { clone: true, clock: ClockChoice::Auto };
        let asked = file.definition.clone();
        let grant = grant_load(&same, &asked, &file, None).unwrap();
        let origin = Some(file.save);
        let wanted =
            Grant { term: 4, origin, saved_ever: true, new_generation: false, claimed: None };
        assert_eq!(grant, wanted);
        // A second time from the same file is a step back in time.
        let ended = Record {
            origin,
            saved_ever: true,
            ledger: crate::guest::journal::record::owned(4),
            ..whose().blank(Timestamp::UNIX_EPOCH)
        };
        let again = grant_load(&same, &asked, &file, Some(&ended)).unwrap();
        assert_eq!((again.term, again.new_generation), (5, true));

        let mut other = asked.clone();
        other.uuid = Uuid::from_u128(8);
        assert_eq!(code(grant_load(&same, &other, &file, None)), ErrorCode::BadDefinition);
        assert_eq!(code(grant_load(&clone, &asked, &file, None)), ErrorCode::BadDefinition);
        assert_eq!(code(grant_load(&clone, &other, &file, None)), ErrorCode::WritableDisk);

        let mut file = file;
        file.definition.disks[0].read_only = true;
        other.disks[0].read_only = true;
        let grant = grant_load(&clone, &other, &file, None).unwrap();
        let wanted =
            Grant { term: 1, origin: None, saved_ever: false, new_generation: true, claimed: None };
        assert_eq!(grant, wanted);
    }

    #[test]
    fn what_the_guest_sees_may_not_change_what_the_host_sees_may() {
        let file = metadata();
        let same = LoadSpec { clone: false, clock: ClockChoice::Auto };
        let changed = |change: fn(&mut GuestDefinition)| {
            let mut asked = file.definition.clone();
            change(&mut asked);
            grant_load(&same, &asked, &file, None).map_err(|f| f.0.code)
        };
        let seen: [fn(&mut GuestDefinition); 9] = [
            |d| d.memory_bytes *= 2,
            |d| d.cpus = 2,
            |d| d.cpu_template = "x".into(),
            |d| d.cpu = Some(vmm::cpu::CpuModel::default()),
            |d| d.acpi = false,
            |d| d.disks.clear(),
            |d| d.disks[0].serial = "t".into(),
            |d| d.nets[0].mtu = Some(9000),
            |d| d.vsock_cid = Some(3),
        ];
        for (i, change) in seen.into_iter().enumerate() {
            assert_eq!(changed(change), Err(ErrorCode::BadDefinition), "{i}");
        }
        let unseen: [fn(&mut GuestDefinition); 4] = [
            |d| d.name = "two".into(),
            |d| d.disks[0].path = "/elsewhere".into(),
            |d| d.nets[0].link = NetLink::Bridge("u".into()),
            |d| d.huge_pages = true,
        ];
        for change in unseen {
            assert!(changed(change).is_ok());
        }
    }

    #[test]
    fn clocks() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let auto = |s: i64| account_for_pause(ClockChoice::Auto, at(1000), at(1000 + s));
        assert!(auto(0) && auto(3600));
        assert!(!auto(3601) && !auto(-1));
        assert!(account_for_pause(ClockChoice::Account, at(0), at(1 << 30)));
        assert!(!account_for_pause(ClockChoice::Freeze, at(0), at(1)));
    }
}
