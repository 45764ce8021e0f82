//! What is promised to guests that arrive: memory, names, disks, ports. Pure; whoever asks holds
//! the one [`Room`] exclusively, so two moves cannot share the last of anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::config::GuestDefinition;

/// What a guest that arrives needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The move.
    pub move_id: Uuid,
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

/// A guest that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// Its identity, once it is known.
    pub uuid: Option<Uuid>,
    /// Disks that it writes.
    pub disks: Vec<PathBuf>,
}

/// The host, as it is at this moment.
#[derive(Clone, Debug)]
pub struct Host {
    /// Memory that new guests could have, bytes; what is promised here is not taken off yet.
    pub free: u64,
    /// Online CPUs.
    pub cpus: u32,
    /// Guests that have a process.
    pub guests: Vec<Present>,
    /// Ports of receivers.
    pub ports: RangeInclusive<u16>,
}

/// Promises that hold.
#[derive(Debug, Default)]
pub struct Room {
    held: BTreeMap<Uuid, Held>,
}

#[derive(Debug)]
struct Held {
    claim: Claim,
    ports: Vec<u16>,
}

impl Claim {
    /// What `guest` needs, with a receiver on `ports` ports.
    pub fn of(move_id: Uuid, guest: &GuestDefinition, ports: usize) -> Self {
        Self {
            move_id,
            name: guest.name.clone(),
            uuid: guest.uuid,
            memory: guest.memory_bytes,
            cpus: guest.cpus,
            disks: writable(guest),
            ports,
        }
    }
}

/// Disks that `guest` writes.
pub fn writable(guest: &GuestDefinition) -> Vec<PathBuf> {
    guest.disks.iter().filter(|d| !d.read_only).map(|d| d.path.clone()).collect()
}

impl Room {
    /// Everything that is in the way of `claim`; empty if nothing is.
    pub fn problems(&self, claim: &Claim, host: &Host) -> Vec<Failure> {
        let mut problems = Vec::new();
        problems.extend(self.name_or_identity(claim, host));
        problems.extend(self.disk(claim, host));
        let left = self.left(host);
        if claim.memory > left {
            problems.push(
                Failure::new(
                    ErrorCode::NoRoom,
                    format!(
                        "the guest needs {} MiB and the destination has {} MiB left for guests \
                         ({} MiB are promised to others that arrive)",
                        claim.memory >> 20,
                        left >> 20,
                        self.reserved() >> 20
                    ),
                    "stop or move guests there, or choose another host",
                )
                .retryable(),
            );
        }
        problems
    }

    /// Promises everything that `claim` needs to `attempt`; answers the ports. `avoid` are ports
    /// that somebody else was found to use.
    ///
    /// # Errors
    /// The first of [`Self::problems`], or that there are no ports left; nothing is promised then.
    pub fn reserve(
        &mut self,
        attempt: Uuid,
        claim: Claim,
        host: &Host,
        avoid: &BTreeSet<u16>,
    ) -> Result<Vec<u16>, Failure> {
        if let Some(problem) = self.problems(&claim, host).into_iter().next() {
            return Err(problem);
        }
        let taken: BTreeSet<u16> = self.held.values().flat_map(|h| h.ports.clone()).collect();
        let free = host.ports.clone().filter(|p| !taken.contains(p) && !avoid.contains(p));
        let ports: Vec<u16> = free.take(claim.ports).collect();
        if ports.len() < claim.ports {
            return Err(Failure::new(
                ErrorCode::NoRoom,
                format!(
                    "{} UDP ports are needed for the guest's data and {} of {}-{} are free there",
                    claim.ports,
                    ports.len(),
                    host.ports.start(),
                    host.ports.end()
                ),
                "wait for other moves, or widen data_ports in host.toml there",
            )
            .retryable());
        }
        self.held.insert(attempt, Held { claim, ports: ports.clone() });
        Ok(ports)
    }

    /// The promise to `attempt` is over. Without effect if there is none.
    pub fn release(&mut self, attempt: &Uuid) {
        self.held.remove(attempt);
    }

    /// Memory that is promised, bytes.
    pub fn reserved(&self) -> u64 {
        self.held.values().fold(0, |sum, held| sum.saturating_add(held.claim.memory))
    }

    /// Memory that is left for guests, bytes.
    pub fn left(&self, host: &Host) -> u64 {
        host.free.saturating_sub(self.reserved())
    }

    /// Names of guests that arrive.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.held.values().map(|held| held.claim.name.as_str())
    }

    fn name_or_identity(&self, claim: &Claim, host: &Host) -> Option<Failure> {
        let name = &claim.name;
        let arrives = self.held.values().any(|h| h.claim.uuid == claim.uuid);
        if arrives {
            let message = format!("guest '{name}' is arriving there already");
            return Some(
                Failure::new(ErrorCode::Busy, message, "watch it: migrate watch").retryable(),
            );
        }
        if host.guests.iter().any(|g| g.uuid == Some(claim.uuid)) {
            return Some(Failure::new(
                ErrorCode::AlreadyRunning,
                format!("the destination has a guest with the identity of '{name}' already"),
                "see it there: migrate ls; a copy needs an identity of its own",
            ));
        }
        let taken = self.held.values().any(|h| h.claim.name == *name)
            || host.guests.iter().any(|g| g.name == *name);
        taken.then(|| {
            Failure::new(
                ErrorCode::NameTaken,
                format!("the destination has another guest named '{name}'"),
                "end or rename one of the two",
            )
        })
    }

    fn disk(&self, claim: &Claim, host: &Host) -> Option<Failure> {
        let promised = self.held.values().flat_map(|h| &h.claim.disks);
        let used: BTreeSet<_> = host.guests.iter().flat_map(|g| &g.disks).chain(promised).collect();
        let disk = claim.disks.iter().find(|disk| used.contains(disk))?;
        Some(Failure::new(
            ErrorCode::DiskLocked,
            format!("the disk {} is in use by another guest at the destination", disk.display()),
            "give each guest a disk of its own",
        ))
    }
}

#[cfg(test)]
#[path = "room/tests.rs"]
mod tests;
