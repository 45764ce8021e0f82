//! What this host is like just now: its memory, and the guests that have a process. Reads files;
//! asks no guest process, and decides nothing.

use std::fs;
use std::io::Read;

use super::room::{Present, nets, writable};
use crate::api::GuestInfo;
use crate::config::{Dirs, GuestPaths};
use crate::host::leftover::{Life, life};
use crate::host::registry;

/// Longest description of a guest that is read, in bytes.
const INFO_MAX: u64 = 4 << 20;

/// Memory of this host, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// What could be had now.
    pub available: u64,
}

/// Reads `/proc/meminfo`.
pub fn memory() -> Memory {
    parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse(text: &str) -> Memory {
    Memory { total: field(text, "MemTotal:"), available: field(text, "MemAvailable:") }
}

/// A field in KiB, in bytes; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let kib = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()?.checked_mul(1024)).unwrap_or(0)
}

/// All guests that have a process; of one that is starting or arriving only the name is known.
pub fn guests(dirs: &Dirs) -> Vec<Present> {
    let names = registry::names(dirs).unwrap_or_default();
    let lives = |name: &String| matches!(life(&dirs.guest(name)), Ok(Life::Alive));
    names.into_iter().filter(lives).map(|name| present(dirs, name)).collect()
}

fn present(dirs: &Dirs, name: String) -> Present {
    let Some(info) = info(&dirs.guest(&name)) else {
        return Present { name, ..Present::default() };
    };
    Present {
        name,
        uuid: Some(info.uuid),
        memory: info.memory_bytes,
        untouched: if info.definition.huge_pages {
            // They were set aside before, and are not among what could be had.
            0
        } else {
            info.memory_bytes.saturating_sub(touched(info.pid))
        },
        cpus: info.cpus,
        disks: writable(&info.definition),
        nets: nets(&info.definition),
    }
}

/// The guest as its process described it when it was ready. `None`: it is not, or is gone.
pub fn info(paths: &GuestPaths) -> Option<GuestInfo> {
    let mut bytes = Vec::new();
    fs::File::open(paths.info()).ok()?.take(INFO_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Guest memory that a guest process has touched, bytes; 0 if it is gone.
pub fn touched(pid: u32) -> u64 {
    // Guest memory is a memfd; nothing else of the process is shared memory.
    field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(), "RssShmem:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_system_are_read() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    500 kB\n";
        assert_eq!(parse(text), Memory { total: 1000 << 10, available: 500 << 10 });
        assert_eq!(parse("nothing"), Memory::default());
        assert!(memory().total > memory().available && memory().available > 0);
        assert_eq!(field("RssFile:\t 5 kB\nRssShmem:\t 2 kB\n", "RssShmem:"), 2048);
        assert_eq!(touched(u32::MAX), 0);
    }
}
