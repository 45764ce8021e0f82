//! Whether a disk can stay where it is while its guest moves: facts in, the obstacle out.

use std::path::PathBuf;

use crate::api::{ErrorCode, Failure};
use crate::config::Cache;

/// What there is to know about an open disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    /// The disk.
    pub path: PathBuf,
    /// The guest cannot write it.
    pub read_only: bool,
    /// Its user says that other hosts reach the same image at the same path.
    pub shared: bool,
    /// Host cache.
    pub cache: Cache,
    /// A block device, not a file.
    pub block_device: bool,
    /// Type of its file system, as `statfs` names it.
    pub file_system: i64,
    /// The record beside it bypasses the page cache; `None` without a record.
    pub record_direct: Option<bool>,
}

/// GFS2 and OCFS2 (`linux/magic.h`) and Ceph: their page caches are coherent between hosts, the
/// file system itself calls back what a host has cached.
const COHERENT: [i64; 3] = [0x0116_1970, 0x7461_636F, 0x00C3_6400];

/// Why a disk keeps its guest on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Only this host has it.
    Local,
    /// Locks of a block device end at this host.
    BlockDevice,
    /// The other host could read what it has cached, or this one keep back what it has.
    WriteBack,
    /// The record beside it would pass through caches.
    CachedRecord,
}

/// What keeps a guest with this disk here, if anything.
pub fn obstacle(disk: &DiskFacts) -> Option<Obstacle> {
    if disk.read_only {
        // Never written, so there is nothing to hand over; the target compares the content.
        return None;
    }
    let coherent = COHERENT.contains(&disk.file_system);
    match disk {
        d if d.shared && d.block_device => Some(Obstacle::BlockDevice),
        d if !d.shared => Some(Obstacle::Local),
        d if d.cache == Cache::Writeback && !coherent => Some(Obstacle::WriteBack),
        d if d.record_direct != Some(true) && !coherent => Some(Obstacle::CachedRecord),
        _ => None,
    }
}

impl Obstacle {
    /// As people and scripts see it.
    pub fn failure(self, disk: &DiskFacts) -> Failure {
        let path = disk.path.display();
        let (message, remedy) = match self {
            Self::Local => (
                format!("disk {path} is on this host only, so its guest cannot move"),
                "if other hosts reach the same image at the same path, say so: --disk PATH,shared \
                 (shared = true in a file) and start the guest again; else put it on storage that \
                 all hosts mount"
                    .to_owned(),
            ),
            Self::BlockDevice => (
                format!(
                    "disk {path} is a block device: its locks do not reach other hosts, so two \
                     hosts could write to it"
                ),
                "use an image file on NFSv4 or a cluster file system".to_owned(),
            ),
            Self::WriteBack => (
                format!(
                    "disk {path} has cache=writeback on a file system that does not keep the \
                     hosts' caches coherent: the other host could read old data"
                ),
                "start the guest with cache=none on this disk, or put it on GFS2, OCFS2 or CephFS"
                    .to_owned(),
            ),
            Self::CachedRecord => (
                format!(
                    "the file system of disk {path} has no direct I/O, so hosts could see each \
                     other's records too late"
                ),
                "put the disk on a file system with direct I/O, for example NFSv4".to_owned(),
            ),
        };
        let code = match self {
            Self::Local => ErrorCode::LocalDisk,
            Self::BlockDevice | Self::WriteBack | Self::CachedRecord => ErrorCode::WritableDisk,
        };
        Failure::new(code, message, remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFS: i64 = 0x6969;
    const CEPH: i64 = 0x00C3_6400;

    fn disk() -> DiskFacts {
        DiskFacts {
            path: "/srv/a.img".into(),
            read_only: false,
            shared: true,
            cache: Cache::None,
            block_device: false,
            file_system: NFS,
            record_direct: Some(true),
        }
    }

    #[test]
    fn each_obstacle_and_what_lifts_it() {
        use Obstacle::{BlockDevice, CachedRecord, Local, WriteBack};
        let cached = |file_system| DiskFacts { cache: Cache::Writeback, file_system, ..disk() };
        let indirect = DiskFacts { record_direct: Some(false), ..disk() };
        let local = DiskFacts { shared: false, record_direct: None, ..disk() };
        for (disk, expected) in [
            (disk(), None),
            (local.clone(), Some(Local)),
            (DiskFacts { read_only: true, ..local }, None),
            (DiskFacts { block_device: true, record_direct: None, ..disk() }, Some(BlockDevice)),
            (cached(NFS), Some(WriteBack)),
            (cached(CEPH), None),
            (indirect.clone(), Some(CachedRecord)),
            (DiskFacts { file_system: CEPH, ..indirect }, None),
        ] {
            assert_eq!(obstacle(&disk), expected, "{disk:?}");
            if let Some(obstacle) = expected {
                let failure = obstacle.failure(&disk).0;
                assert!(failure.message.contains("/srv/a.img") && !failure.remedy.is_empty());
                assert_eq!(failure.code == ErrorCode::LocalDisk, obstacle == Local);
            }
        }
    }
}
