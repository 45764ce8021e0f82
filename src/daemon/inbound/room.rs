//! What is promised to guests that arrive: memory, vCPUs, names, disks, ports. Decisions only;
//! whoever asks has the one [`Room`] to itself, so that two moves that come together cannot share
//! the last of anything. It starts nothing and reads nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::config::GuestDefinition;

/// Memory that a guest process needs beside its guest's RAM, bytes.
const OVERHEAD: u64 = 64 << 20;
/// Memory that is left to the host itself, unless `host.toml` says otherwise, bytes.
const HOSTS_OWN: u64 = 256 << 20;
/// Attempts that were given up before they were asked for, as far as they are remembered.
const REMEMBERED: usize = 64;

/// What guests may have of a host, as its `host.toml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// RAM of all guests together, bytes.
    pub memory: Option<u64>,
    /// vCPUs of all guests together.
    pub vcpus: Option<u32>,
    /// Guests.
    pub guests: Option<u32>,
    /// Memory that is left to the host itself, bytes.
    pub host_memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: None, vcpus: None, guests: None, host_memory: HOSTS_OWN }
    }
}

/// What a guest that arrives needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The move.
    pub move_id: Uuid,
    /// The host that it comes from.
    pub from: Uuid,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Its RAM, bytes.
    pub memory: u64,
    /// Its vCPUs.
    pub cpus: u32,
    /// Disks that it writes.
    pub disks: Vec<PathBuf>,
    /// UDP ports that its receiver needs.
    pub ports: usize,
}

impl Claim {
    /// What `guest` needs that comes from the host `from`, with a receiver on `ports` ports.
    pub fn of(move_id: Uuid, from: Uuid, guest: &GuestDefinition, ports: usize) -> Self {
        Self {
            move_id,
            from,
            name: guest.name.clone(),
            uuid: guest.uuid,
            memory: guest.memory_bytes,
            cpus: guest.cpus,
            disks: writable(guest),
            ports,
        }
    }

    fn with_overhead(&self) -> u64 {
        self.memory.saturating_add(OVERHEAD)
    }
}

/// Disks that `guest` writes.
pub fn writable(guest: &GuestDefinition) -> Vec<PathBuf> {
    guest.disks.iter().filter(|d| !d.read_only).map(|d| d.path.clone()).collect()
}

/// A guest that has a process here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// Its identity; not known of one that is just starting.
    pub uuid: Option<Uuid>,
    /// Its RAM, bytes.
    pub memory: u64,
    /// As much of it as it has not touched yet, and may at any time, bytes.
    pub untouched: u64,
    /// Its vCPUs.
    pub cpus: u32,
    /// Disks that it writes.
    pub disks: Vec<PathBuf>,
}

/// The host, as it is at this moment.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Memory that could be had now, bytes.
    pub available: u64,
    /// As much of the promised memory as its receivers have in use already, bytes.
    pub filled: u64,
    /// Guests that have a process.
    pub guests: Vec<Present>,
    /// UDP ports of receivers that nobody else has.
    pub ports: Vec<u16>,
}

/// A promise.
#[derive(Debug)]
struct Held {
    claim: Claim,
    ports: Vec<u16>,
    /// The receiver, once it is there.
    pid: Option<u32>,
    /// The source's side has said that nobody comes.
    given_up: bool,
}

/// Promises that hold, by attempt.
#[derive(Debug, Default)]
pub struct Room {
    limits: Limits,
    held: BTreeMap<Uuid, Held>,
    /// Given up before they were asked for: the question may come late.
    unwanted: VecDeque<Uuid>,
}

impl Room {
    /// Of a host with these limits. Nothing is promised.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Number of guests that are expected.
    pub fn expected(&self) -> usize {
        self.held.len()
    }

    /// Ports that are promised.
    pub fn ports(&self) -> Vec<u16> {
        self.held.values().flat_map(|h| h.ports.iter().copied()).collect()
    }

    /// Memory that is promised, bytes.
    pub fn promised(&self) -> u64 {
        self.held.values().fold(0, |sum, h| sum.saturating_add(h.claim.with_overhead()))
    }

    /// The receivers that are there, and what is promised to each.
    pub fn receivers(&self) -> Vec<(u32, u64)> {
        self.held.values().filter_map(|h| Some((h.pid?, h.claim.with_overhead()))).collect()
    }

    /// Memory that is left for guests, bytes.
    pub fn left(&self, host: &Host) -> u64 {
        let by_limit = self.limits.memory.map(|limit| limit.saturating_sub(self.used(host).memory));
        self.by_memory(host).saturating_sub(OVERHEAD).min(by_limit.unwrap_or(u64::MAX))
    }

    /// By what the host can give: what its guests may still touch is not there for others.
    fn by_memory(&self, host: &Host) -> u64 {
        let untouched = self.others(host).fold(0_u64, |sum, g| sum.saturating_add(g.untouched));
        let there = host.available.saturating_add(host.filled);
        let kept =
            untouched.saturating_add(self.promised()).saturating_add(self.limits.host_memory);
        there.saturating_sub(kept)
    }

    /// Guests here without those to whom a promise still holds: these count with it.
    fn others<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a Present> {
        let promised = |g: &Present| self.held.values().any(|h| Some(h.claim.uuid) == g.uuid);
        // One that arrives has a process, and says nothing of itself yet.
        let arrives = |g: &Present| self.held.values().any(|h| h.claim.name == g.name);
        host.guests.iter().filter(move |g| !(promised(g) || g.uuid.is_none() && arrives(g)))
    }

    fn used(&self, host: &Host) -> Used {
        let mut used = Used { promised: self.held.len(), ..Used::default() };
        for guest in self.others(host) {
            used.memory = used.memory.saturating_add(guest.memory);
            used.cpus = used.cpus.saturating_add(guest.cpus);
            used.present += 1;
        }
        for Held { claim, .. } in self.held.values() {
            used.memory = used.memory.saturating_add(claim.memory);
            used.cpus = used.cpus.saturating_add(claim.cpus);
        }
        used
    }

    /// Everything that is in the way of `claim`; empty if nothing is.
    pub fn problems(&self, claim: &Claim, host: &Host) -> Vec<Failure> {
        let used = self.used(host);
        let problems = [
            self.name_or_identity(claim, host),
            self.disk(claim, host),
            self.too_many(&used),
            self.too_many_cpus(claim, &used),
            self.too_much_memory(claim, &used),
            self.not_enough_memory(claim, host),
        ];
        problems.into_iter().flatten().collect()
    }

    /// Promises everything that `claim` needs to `attempt`; answers the ports.
    ///
    /// # Errors
    /// The first of [`Self::problems`], or that no ports are left; nothing is promised then.
    pub fn reserve(
        &mut self,
        attempt: Uuid,
        claim: Claim,
        host: &Host,
    ) -> Result<Vec<u16>, Failure> {
        if self.unwanted.contains(&attempt) {
            let what = "the source has given this attempt up already";
            return Err(Failure::new(ErrorCode::Cancelled, what, "start the move again"));
        }
        if let Some(problem) = self.problems(&claim, host).into_iter().next() {
            return Err(problem);
        }
        let taken: BTreeSet<u16> = self.ports().into_iter().collect();
        let free = host.ports.iter().filter(|p| !taken.contains(p));
        let ports: Vec<u16> = free.copied().take(claim.ports).collect();
        if ports.len() < claim.ports {
            let what = format!(
                "the guest's data needs {} UDP ports at the destination, and {} are free",
                claim.ports,
                ports.len()
            );
            let remedy =
                "try again when another move is over, or widen data_ports in its host.toml";
            return Err(Failure::new(ErrorCode::NoRoom, what, remedy).retryable());
        }
        let held = Held { claim, ports: ports.clone(), pid: None, given_up: false };
        self.held.insert(attempt, held);
        Ok(ports)
    }

    /// Promises what is there already: `claim` has its receiver, and its ports.
    pub fn hold(&mut self, attempt: Uuid, claim: Claim, pid: u32) {
        let held = Held { claim, ports: Vec::new(), pid: Some(pid), given_up: false };
        self.held.insert(attempt, held);
    }

    /// The receiver of `attempt` is there. Says whether it is still wanted.
    pub fn started(&mut self, attempt: Uuid, pid: u32) -> bool {
        let Some(held) = self.held.get_mut(&attempt) else { return false };
        held.pid = Some(pid);
        !held.given_up
    }

    /// The guest of `attempt` does not come. Answers its claim, if something is promised to it.
    pub fn give_up(&mut self, attempt: Uuid) -> Option<&Claim> {
        if let Some(held) = self.held.get_mut(&attempt) {
            held.given_up = true;
            return Some(&held.claim);
        }
        self.unwanted.push_back(attempt);
        if self.unwanted.len() > REMEMBERED {
            self.unwanted.pop_front();
        }
        None
    }

    /// Whether something is promised to `attempt`.
    pub fn holds(&self, attempt: Uuid) -> bool {
        self.held.contains_key(&attempt)
    }

    /// An attempt before `attempt` that its own source has given up by asking for this one: a host
    /// gives a guest away in one move at a time. Whether it can be ended is not decided here.
    pub fn left_behind(&self, attempt: Uuid, claim: &Claim) -> Option<Uuid> {
        let same = |h: &Held| h.claim.uuid == claim.uuid && h.claim.from == claim.from;
        self.held.iter().find(|(id, h)| **id != attempt && same(h)).map(|(id, _)| *id)
    }

    /// The promise to `attempt` is over. Without effect if there is none.
    pub fn release(&mut self, attempt: Uuid) {
        self.held.remove(&attempt);
    }

    fn name_or_identity(&self, claim: &Claim, host: &Host) -> Option<Failure> {
        let name = &claim.name;
        if self.held.values().any(|h| h.claim.uuid == claim.uuid) {
            let what = format!("guest '{name}' is arriving there already");
            return Some(
                Failure::new(ErrorCode::Busy, what, "watch it: migrate watch").retryable(),
            );
        }
        if host.guests.iter().any(|g| g.uuid == Some(claim.uuid)) {
            return Some(Failure::new(
                ErrorCode::AlreadyRunning,
                format!("the destination has a guest with the identity of '{name}' already"),
                "see it there: migrate ls; a copy needs an identity of its own",
            ));
        }
        let arrives = self.held.values().any(|h| h.claim.name == *name);
        let here = host.guests.iter().any(|g| g.name == *name);
        let why = match (arrives, here) {
            (true, _) => "is arriving there just now",
            (_, true) => "runs on the destination already",
            _ => return None,
        };
        Some(Failure::new(
            ErrorCode::NameTaken,
            format!("another guest '{name}' {why}"),
            "rename or remove one of the two",
        ))
    }

    fn disk(&self, claim: &Claim, host: &Host) -> Option<Failure> {
        let promised = self.held.values().flat_map(|h| &h.claim.disks);
        let used: BTreeSet<_> = host.guests.iter().flat_map(|g| &g.disks).chain(promised).collect();
        let disk = claim.disks.iter().find(|disk| used.contains(disk))?;
        Some(Failure::new(
            ErrorCode::DiskLocked,
            format!("another guest at the destination has the disk {}", disk.display()),
            "give each guest a disk of its own",
        ))
    }

    fn too_many(&self, used: &Used) -> Option<Failure> {
        let limit = self.limits.guests?;
        let after = used.present.saturating_add(used.promised).saturating_add(1);
        let fits = u32::try_from(after).is_ok_and(|after| after <= limit);
        (!fits).then(|| no_room(&format!("the destination takes {limit} guests"), used, ""))
    }

    fn too_many_cpus(&self, claim: &Claim, used: &Used) -> Option<Failure> {
        let limit = self.limits.vcpus?;
        let fits = used.cpus.saturating_add(claim.cpus) <= limit;
        let left = limit.saturating_sub(used.cpus);
        let then = format!("; {left} vCPUs are left, and this guest has {}", claim.cpus);
        let what = format!("the destination gives its guests {limit} vCPUs");
        (!fits).then(|| no_room(&what, used, &then))
    }

    fn too_much_memory(&self, claim: &Claim, used: &Used) -> Option<Failure> {
        let limit = self.limits.memory?;
        let left = limit.saturating_sub(used.memory);
        let then = format!(
            "; {} MiB are left, and this guest has {} MiB",
            left >> 20,
            claim.memory.div_ceil(1 << 20)
        );
        let what = format!("the destination gives its guests {} MiB of memory", limit >> 20);
        (claim.memory > left).then(|| no_room(&what, used, &then))
    }

    fn not_enough_memory(&self, claim: &Claim, host: &Host) -> Option<Failure> {
        let (needed, left) = (claim.with_overhead(), self.by_memory(host));
        if needed <= left {
            return None;
        }
        let untouched = self.others(host).fold(0_u64, |sum, g| sum.saturating_add(g.untouched));
        let promised = self.promised().saturating_sub(host.filled);
        Some(Failure::new(
            ErrorCode::NoRoom,
            format!(
                "the destination has {} MiB of memory left for guests, and this one needs {} MiB \
                 (of {} MiB available, its guests may still touch {} MiB, {} MiB are promised to \
                 others that arrive, and {} MiB are the host's own)",
                left >> 20,
                needed.div_ceil(1 << 20),
                host.available >> 20,
                untouched >> 20,
                promised >> 20,
                self.limits.host_memory >> 20
            ),
            "free memory there, or move it to another host",
        ))
    }
}

/// What guests have of the host, those that arrive included.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    memory: u64,
    cpus: u32,
    present: usize,
    promised: usize,
}

fn no_room(what: &str, used: &Used, then: &str) -> Failure {
    let Used { memory, cpus, present, promised } = *used;
    Failure::new(
        ErrorCode::NoRoom,
        format!(
            "{what} (host.toml); {present} run there and {promised} arrive, with {} MiB and {cpus} \
             vCPUs together{then}",
            memory >> 20
        ),
        "move or stop a guest there, raise its limits, or choose another host",
    )
}

#[cfg(test)]
#[path = "room/tests.rs"]
mod tests;
