//! What this host is like: memory, CPUs, and which guests have a process. Reads only; asks no
//! guest process anything.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use uuid::Uuid;

use super::inbound::room::{Present, writable};
use crate::api::GuestInfo;
use crate::config::Dirs;
use crate::host::leftover::{Life, life};
use crate::host::registry;

/// Memory that is left to the host itself, bytes.
const HOSTS_OWN: u64 = 256 << 20;
/// Longest description of a guest that is read, in bytes.
const INFO_MAX: u64 = 4 << 20;

/// Memory of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All, bytes.
    pub total: u64,
    /// What could be had now, bytes.
    pub available: u64,
}

/// Reads `/proc/meminfo`.
pub fn memory() -> Memory {
    fs::read_to_string("/proc/meminfo").map(|text| parse_memory(&text)).unwrap_or_default()
}

fn parse_memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().split(' ').next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Memory {
        total: field("MemTotal:").unwrap_or(0),
        available: field("MemAvailable:").unwrap_or(0),
    }
}

/// Online CPUs.
pub fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// A guest that has a process.
#[derive(Clone, Debug)]
pub struct Here {
    /// Its name.
    pub name: String,
    /// As it described itself when it was ready; a guest that is starting or arriving has not.
    pub info: Option<GuestInfo>,
}

/// All guests that have a process. Blocks on files.
pub fn guests(dirs: &Dirs) -> Vec<Here> {
    let names = registry::names(dirs).unwrap_or_default();
    let lives = |name: &String| matches!(life(&dirs.guest(name)), Ok(Life::Alive));
    names
        .into_iter()
        .filter(lives)
        .map(|name| Here { info: read_info(&dirs.guest(&name).info()), name })
        .collect()
}

fn read_info(path: &Path) -> Option<GuestInfo> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(INFO_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

impl Here {
    /// What it has that another guest cannot have.
    pub fn present(&self) -> Present {
        Present {
            name: self.name.clone(),
            uuid: self.uuid(),
            disks: self.info.as_ref().map(|i| writable(&i.definition)).unwrap_or_default(),
        }
    }

    /// Its identity.
    pub fn uuid(&self) -> Option<Uuid> {
        self.info.as_ref().map(|info| info.uuid)
    }
}

/// Memory that new guests could have, before promises to those that arrive: what the host could
/// give now, less what its guests may still touch, within the user's limit. `receivers` are
/// processes of guests that arrive: what they have filled already is part of their promise.
pub fn free_for_guests(guests: &[Here], receivers: &[u32], limit: Option<u64>) -> u64 {
    let known = || guests.iter().filter_map(|guest| guest.info.as_ref());
    let untouched: u64 =
        known().map(|info| info.memory_bytes.saturating_sub(resident(info.pid))).sum();
    let filled: u64 = receivers.iter().map(|pid| resident(*pid)).sum();
    let now = memory().available.saturating_add(filled);
    let by_memory = now.saturating_sub(untouched).saturating_sub(HOSTS_OWN);
    let all: u64 = known().map(|info| info.memory_bytes).sum();
    limit.map_or(by_memory, |limit| limit.saturating_sub(all).min(by_memory))
}

/// Memory that a process has in use, bytes.
fn resident(pid: u32) -> u64 {
    let pages = |text: io::Result<String>| text.ok()?.split(' ').nth(1)?.parse::<u64>().ok();
    pages(fs::read_to_string(format!("/proc/{pid}/statm"))).unwrap_or(0) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB\n";
        assert_eq!(parse_memory(text), Memory { total: 1000 << 10, available: 500 << 10 });
        assert_eq!(parse_memory("nothing"), Memory::default());
        assert!(memory().total > memory().available && memory().available > 0);
        assert!(resident(std::process::id()) > 0);
        assert!(cpus() > 0);
        assert_eq!(free_for_guests(&[], &[], Some(5)), 5);
    }
}
