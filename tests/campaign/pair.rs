//! Two hosts that trust each other, a network between them that can be cut, and a guest that goes
//! back and forth.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use migrate::failpoint::plan::{Plan, Rule};
use serde_json::Value;
use uuid::Uuid;

use crate::host::{Failed, Host, PORTS, within};
use crate::relay::Relay;
use crate::witness::Witness;

/// Seconds by which the clocks of the hosts are wrong.
const SKEW_S: [i64; 2] = [-40, 50];
/// A guest that is cheap to move, says its numbers all the time and answers at once.
const KIND: &str = "scribbler:ws=1M,data=2M,rate=300,hb=2ms,status=20ms,poll=5ms";
const PAGES: u64 = 3 << 8;

pub struct Pair {
    pub hosts: [Host; 2],
    pub relay: Relay,
    pub witness: Witness,
    /// The guest's name, if there is one.
    pub guest: Option<Guest>,
    /// Moves whose outcome was seen.
    pub known_moves: Vec<String>,
    guests: u32,
    generation: u64,
}

/// A guest that lives.
#[derive(Clone, Debug)]
pub struct Guest {
    pub name: String,
    pub uuid: Uuid,
    /// Where: 0 or 1.
    pub at: usize,
    pub pid: i32,
}

/// Addresses of loopback that nobody else here uses: fronts and backs of two hosts.
fn addresses() -> [(Ipv4Addr, Ipv4Addr); 2] {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let third = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let second = u8::try_from(pid % 120).unwrap_or(0) + 100;
    [1, 2].map(|host| {
        (Ipv4Addr::new(127, second, third, host), Ipv4Addr::new(127, second, third, host + 10))
    })
}

fn ports_free(addresses: &[(Ipv4Addr, Ipv4Addr); 2], first: u16) -> bool {
    let all = addresses.iter().flat_map(|(front, back)| [*front, *back]);
    let free = |ip| (first..first + PORTS).all(|port| UdpSocket::bind((ip, port)).is_ok());
    all.into_iter().all(free)
}

impl Pair {
    pub fn new() -> Result<Self, Failed> {
        let addresses = addresses();
        let first = (23_000..31_000).step_by(usize::from(PORTS));
        let first = first.into_iter().find(|port| ports_free(&addresses, *port));
        let first = first.ok_or("no free ports")?;
        let ports: Vec<u16> = (first..first + PORTS).collect();
        let relay = Relay::start(addresses, &[ports.clone(), ports]).map_err(|e| e.to_string())?;
        let host =
            |at: usize, name| Host::new(name, addresses[at], first, (Uuid::new_v4(), SKEW_S[at]));
        let (mut a, mut b) = (host(0, "alpha")?, host(1, "beta")?);
        a.done(&["host", "init", "--name", "alpha"])?;
        a.start_daemon()?;
        let invited = a.done(&["host", "invite"])?;
        let line = invited["invitation"].as_str().ok_or("no invitation")?;
        b.done(&["host", "join", line, "--name", "beta"])?;
        b.start_daemon()?;
        let (hosts, witness) = ([a, b], Witness::default());
        let (guest, known_moves) = (None, Vec::new());
        Ok(Self { hosts, relay, witness, guest, known_moves, guests: 0, generation: 0 })
    }

    /// Begins a new plan for both hosts.
    pub fn plan(&mut self, rules: [Vec<Rule>; 2]) -> Result<u64, Failed> {
        self.generation += 1;
        for (host, rules) in self.hosts.iter().zip(rules) {
            host.forget_passed();
            host.plan(&Plan { generation: self.generation, rules })?;
        }
        Ok(self.generation)
    }

    /// Lets go of whoever is held.
    pub fn release(&self) -> Result<(), Failed> {
        self.same_plan([Vec::new(), Vec::new()])
    }

    /// Other rules of the same plan: whoever is held by none of them goes on.
    pub fn same_plan(&self, rules: [Vec<Rule>; 2]) -> Result<(), Failed> {
        let generation = self.generation;
        let mut both = self.hosts.iter().zip(rules);
        both.try_for_each(|(host, rules)| host.plan(&Plan { generation, rules }))
    }

    /// Whether a process of a host stands at a place.
    pub fn held_at(&self, host: usize, place: &str) -> bool {
        let passed = self.hosts[host].passed(self.generation);
        passed.iter().any(|p| p.place == place && p.what == "held")
    }

    /// Whether a process of a host has passed a place.
    pub fn passed_by(&self, generation: u64, host: usize, place: &str) -> bool {
        self.hosts[host].passed(generation).iter().any(|p| p.place == place)
    }

    /// A guest, a new one if the last one is dead.
    pub fn guest(&mut self) -> Result<Guest, Failed> {
        if let Some(guest) = &self.guest {
            return Ok(guest.clone());
        }
        self.guests += 1;
        let (name, at) = (format!("g{}", self.guests), usize::from(self.guests.is_multiple_of(2)));
        let words = ["run", &name, "--guest", KIND, "--memory", "16M", "--cpus", "1"];
        let wait = ["--wait-for", "console:SCRIBBLER-READY,60s"];
        let info = self.hosts[at].done(&[&words[..], &wait].concat())?;
        let uuid = info["uuid"].as_str().and_then(|u| u.parse().ok()).ok_or("no uuid")?;
        let pid = info["pid"].as_i64().and_then(|p| p.try_into().ok()).ok_or("no pid")?;
        self.witness = Witness::default();
        let guest = Guest { name, uuid, at, pid };
        self.guest = Some(guest.clone());
        self.look();
        Ok(guest)
    }

    /// Hears what the guest has said since, wherever.
    pub fn look(&mut self) {
        let Some(guest) = &self.guest else { return };
        let console = |host: &Host| host.home.dirs().guest(&guest.name).console();
        let paths = [console(&self.hosts[0]), console(&self.hosts[1])];
        self.witness.look([Path::new(&paths[0]), Path::new(&paths[1])]);
    }

    /// Looks on until `done` or the time is over; whether it is done.
    pub fn look_until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        within(limit, || {
            self.look();
            done(self)
        })
    }

    /// The guest at `host` beats, and finds all its memory as it must be.
    pub fn verify(&mut self, host: usize) -> Result<(), Failed> {
        let limit = Duration::from_secs(30);
        let numbers = |pair: &mut Self| pair.witness.at(host).and_then(|s| s.numbers);
        self.look();
        let before = numbers(self).map_or(0, |(_, last)| last);
        let beats = |p: &mut Self| numbers(p).is_some_and(|(_, last)| last > before + 5);
        if !self.look_until(limit, beats) {
            return Err(format!("the guest does not beat: {}", self.witness.summary()));
        }
        let stream = self.witness.at(host).ok_or("nobody is heard")?;
        let old = stream.verdicts.len();
        if !stream.press_verify() {
            return Err("the console takes no key".into());
        }
        let verdict = |p: &mut Self| p.witness.at(host)?.verdicts.get(old).cloned();
        if !self.look_until(limit, |p| verdict(p).is_some()) {
            return Err("the guest gives no verdict on its memory".into());
        }
        let said = verdict(self).unwrap_or_default();
        if said.starts_with(&format!("VERIFY ok pages={PAGES} errors=0 ")) {
            return Ok(());
        }
        Err(format!("the guest has not all its memory: {said}"))
    }

    /// The report of a move, as a host has it.
    pub fn report(&self, host: usize, id: &str) -> Result<Value, Failed> {
        self.hosts[host].get(&format!("/v1/moves/{id}"))
    }
}
