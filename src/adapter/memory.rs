//! How much memory a guest process can have at most: what the host has, and what the control
//! groups and limits of the process leave it. Reads files; decides nothing about guests.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// What a process needs of its address space beside guest memory, bytes: its program, stacks, and
/// what the allocator sets aside for threads.
const OWN_ADDRESSES: u64 = 256 << 20;

/// Who sets a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The host's memory itself.
    Host,
    /// The control group with this file.
    Group(PathBuf),
    /// The limit of the process's address space.
    Addresses,
}

/// The most that a guest's memory can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Bytes.
    pub bytes: u64,
    /// Who says so.
    pub by: By,
}

/// The least of all bounds; `None` if nothing is known.
pub fn bound() -> Option<Bound> {
    let host = meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
        .map(|bytes| Bound { bytes, by: By::Host });
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = limits(Path::new(GROUPS), &own).into_iter();
    let groups = files.filter_map(|file| {
        let bytes = limit(&fs::read_to_string(&file).ok()?)?;
        Some(Bound { bytes, by: By::Group(file) })
    });
    let addresses = getrlimit(Resource::RLIMIT_AS)
        .ok()
        .map(|(soft, _)| Bound { bytes: soft.saturating_sub(OWN_ADDRESSES), by: By::Addresses });
    // Of equal ones the first is named, and the host's own is the plainest.
    host.into_iter().chain(groups).chain(addresses).min_by_key(|bound| bound.bytes)
}

/// A field of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// A limit; none if it is `max`.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The files that may limit the memory of a process whose `/proc/self/cgroup` is `own`: of its
/// group and of all groups above, in both versions of control groups. In a container the path may
/// be that of the host outside, and then only the upper ones exist.
fn limits(groups: &Path, own: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = if controllers.is_empty() {
            (groups.to_owned(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (groups.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        // A path that leads out of what is to be seen here.
        let path = if path.split('/').any(|part| part == "..") { "" } else { path };
        let below = root.join(path.trim_start_matches('/'));
        let above = below.ancestors().take_while(|dir| dir.starts_with(&root));
        files.extend(above.map(|dir| dir.join(name)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:       24684092 kB\nMemFree:        1 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(24_684_092 * 1024));
        assert_eq!(meminfo(text, "HugePages_Free:"), None);
        assert!(bound().is_some());
    }

    #[test]
    fn every_group_above_counts() {
        let own = "9:name=systemd:/x\n4:memory:/a/b\n2:cpu,memory2:/z\n0::/u.slice/g\n";
        let files: Vec<_> = limits(Path::new("/g"), own)
            .into_iter()
            .map(|f| f.to_str().unwrap().to_owned())
            .collect();
        let wanted = [
            "/g/memory/a/b/memory.limit_in_bytes",
            "/g/memory/a/memory.limit_in_bytes",
            "/g/memory/memory.limit_in_bytes",
            "/g/u.slice/g/memory.max",
            "/g/u.slice/memory.max",
            "/g/memory.max",
        ];
        assert_eq!(files, wanted);
        assert_eq!(limits(Path::new("/g"), "nonsense\n1:2\n"), [""; 0].map(PathBuf::from));
        assert_eq!((limit("max\n"), limit("16777216\n")), (None, Some(1 << 24)));
        assert_eq!(limits(Path::new("/g"), "0::/../x\n"), [PathBuf::from("/g/memory.max")]);
    }
}
