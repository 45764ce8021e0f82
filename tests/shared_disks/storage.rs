//! Storage that several hosts mount, each with a page cache of its own: one directory of files in
//! memory behind as many FUSE mounts as there are hosts. It carries locks between them, as a
//! cluster file system does, and lets each host cache what it has read for ever.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, Session, TimeOrNow, WriteFlags,
};

/// What a host may cache, it caches for longer than any test.
const FOR_EVER: Duration = Duration::from_hours(1);
/// What it may not: names, which hosts must agree on.
const NEVER: Duration = Duration::ZERO;

#[derive(Default)]
struct Store {
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, (Vec<u8>, u16)>,
    /// First byte, last byte, holder; all exclusive.
    locks: Vec<(u64, u64, Holder)>,
    made: u64,
}

/// An open file of some host.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Holder {
    inode: u64,
    handle: u64,
}

/// The storage itself.
#[derive(Clone, Default)]
pub struct Storage(Arc<Mutex<Store>>, Arc<AtomicU64>);

/// A host's mount. Dropping it unmounts.
pub struct Mount {
    path: PathBuf,
    _session: BackgroundSession,
}

impl Mount {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Storage {
    /// Mounts it at `path`. Says so if that is not possible here.
    pub fn mount(&self, path: PathBuf) -> Option<Mount> {
        std::fs::create_dir(&path).unwrap();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("migrate-test".into())];
        let session = Session::new(self.clone(), &path, &config).and_then(Session::spawn);
        match session {
            Ok(session) => Some(Mount { path, _session: session }),
            Err(e) => {
                eprintln!("SKIPPED: no file system can be mounted ({e}): run this test as root");
                None
            }
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap()
    }

    fn handle(&self) -> FileHandle {
        FileHandle(self.1.fetch_add(1, Ordering::Relaxed))
    }
}

impl Store {
    fn attr(&self, inode: u64) -> Option<FileAttr> {
        let (kind, size, perm) = match self.files.get(&inode) {
            _ if inode == INodeNo::ROOT.0 => (FileType::Directory, 0, 0o755),
            Some((data, perm)) => (FileType::RegularFile, data.len() as u64, *perm),
            None => return None,
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

impl Filesystem for Storage {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let locks = config.add_capabilities(InitFlags::FUSE_POSIX_LOCKS);
        locks.map_err(|_| std::io::Error::other("this kernel's FUSE carries no locks"))
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let store = self.store();
        match store.names.get(&text(name)).and_then(|inode| store.attr(*inode)) {
            Some(attr) => reply.entry_with_ttls(&FOR_EVER, &NEVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.store().attr(inode.0) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut store = self.store();
        if let Some((data, perm)) = store.files.get_mut(&inode.0) {
            if let Some(size) = size {
                data.resize(usize::try_from(size).unwrap(), 0);
            }
            if let Some(mode) = mode {
                *perm = u16::try_from(mode & 0o7777).unwrap();
            }
        }
        match store.attr(inode.0) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.handle(), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut store = self.store();
        store.made += 1;
        let inode = INodeNo::ROOT.0 + store.made;
        store.files.insert(inode, (Vec::new(), u16::try_from(mode & 0o7777).unwrap()));
        store.names.insert(text(name), inode);
        let attr = store.attr(inode).unwrap();
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        reply.created(&FOR_EVER, &attr, Generation(0), self.handle(), flags);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let store = self.store();
        let Some((data, _)) = store.files.get(&inode.0) else { return reply.error(Errno::ENOENT) };
        let from = usize::try_from(offset).unwrap().min(data.len());
        let to = data.len().min(from + size as usize);
        reply.data(&data[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut store = self.store();
        let Some((data, _)) = store.files.get_mut(&inode.0) else {
            return reply.error(Errno::ENOENT);
        };
        let from = usize::try_from(offset).unwrap();
        data.resize(data.len().max(from + bytes.len()), 0);
        data[from..from + bytes.len()].copy_from_slice(bytes);
        reply.written(u32::try_from(bytes.len()).unwrap());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut store = self.store();
        let Some(inode) = store.names.remove(&text(name)) else {
            return reply.error(Errno::ENOENT);
        };
        store.names.insert(text(new), inode);
        reply.ok();
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.store().names.remove(&text(name)) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setlk(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut store = self.store();
        let holder = Holder { inode: inode.0, handle: handle.0 };
        let overlaps = |(a, b, _): &(u64, u64, Holder)| *a <= end && start <= *b;
        let other = |l: &(u64, u64, Holder)| l.2.inode == inode.0 && l.2 != holder;
        if kind != libc::F_UNLCK && store.locks.iter().any(|l| other(l) && overlaps(l)) {
            return reply.error(Errno::EAGAIN);
        }
        store.locks.retain(|l| !(l.2 == holder && overlaps(l)));
        if kind != libc::F_UNLCK {
            store.locks.push((start, end, holder));
        }
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.store().locks.retain(|l| l.2.handle != handle.0);
        reply.ok();
    }
}
