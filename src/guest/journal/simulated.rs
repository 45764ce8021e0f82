//! A disk that keeps only what it must. After a power loss of it
//! * bytes that were written since the last sync of their file are there or not, sector by sector;
//!   a sector that is not there holds zeros, or what somebody else once wrote there, or ends the
//!   file;
//! * entries of a directory that changed since its last sync are as before or as after, one by
//!   one: a rename may have made the new name without removing the old one;
//! * what was synced is there, except that a sync that failed has done nothing, and has forgotten
//!   the bytes that it should have written: the next one does not write them either.
//!
//! Every system call is counted. The disk can be told to fail at one, before or after its effect,
//! or to lose power there: then every later call fails, as its caller is no more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::files::Files;

/// Bytes that are written whole or not at all.
pub const SECTOR: usize = 96;

/// What goes wrong at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails before it.
    Crash,
    /// The process is killed before it: nothing is lost, and nobody goes on.
    Kill,
    /// It fails, and has done nothing.
    Fails(i32),
    /// It fails, and has done everything, or some of a write.
    FailsLate(i32),
    /// A write takes only some of the bytes.
    Short,
}

/// A system call that is left out or done otherwise, to see whether anybody notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A record is not synced.
    NoFileSync,
    /// A directory is not synced.
    NoDirSync,
    /// A record gets its name first, and is synced then.
    RenameFirst,
    /// A record is written over the old one.
    InPlace,
    /// The way to a new journal is not synced.
    NoWay,
    /// A leftover is written over, not removed.
    Reused,
    /// What a journal finds is believed without a sync.
    Believed,
}

type Inode = usize;

#[derive(Clone, Debug, Default)]
struct Content {
    /// What is read now.
    now: Vec<u8>,
    /// What is on the platter for sure.
    synced: Vec<u8>,
    /// A part of it was forgotten by a sync that failed.
    forgotten: bool,
}

#[derive(Clone, Debug, Default)]
struct Entries {
    now: BTreeMap<String, Inode>,
    synced: BTreeMap<String, Inode>,
    /// Since then, in order: a name, and what it leads to.
    changes: Vec<(String, Option<Inode>)>,
}

impl Entries {
    fn change(&mut self, name: &str, to: Option<Inode>) {
        match to {
            Some(inode) => self.now.insert(name.to_owned(), inode),
            None => self.now.remove(name),
        };
        self.changes.push((name.to_owned(), to));
    }
}

#[derive(Clone, Debug)]
enum Node {
    File(Content),
    Dir(Entries),
}

/// The disk, and the power that feeds it.
#[derive(Clone, Debug)]
struct State {
    nodes: Vec<Node>,
    locks: BTreeSet<PathBuf>,
    calls: usize,
    at: usize,
    fault: Option<Fault>,
    mutant: Option<Mutant>,
    /// The mutant's unfinished business.
    unsynced: Vec<Inode>,
    /// This process has given a record its name.
    renamed: bool,
    /// Nobody calls any more.
    dead: bool,
    said: Vec<String>,
}

/// The root's directory.
const ROOT: Inode = 0;

/// A disk.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<State>>);

/// A lock on it.
#[derive(Debug)]
pub struct Lock(Disk, PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.state().locks.remove(&self.1);
    }
}

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    inode: Inode,
    /// It was made by whoever holds it.
    made: bool,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::of(vec![Node::Dir(Entries::default())])
    }

    fn of(nodes: Vec<Node>) -> Self {
        Self(Arc::new(Mutex::new(State {
            nodes,
            locks: BTreeSet::new(),
            calls: 0,
            at: 0,
            fault: None,
            mutant: None,
            unsynced: Vec::new(),
            renamed: false,
            dead: false,
            said: Vec::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Does this call otherwise, always.
    pub fn with(self, mutant: Option<Mutant>) -> Self {
        self.state().mutant = mutant;
        self
    }

    /// Fails so, `calls` calls from now. Nothing else was planned.
    pub fn plan(&self, calls: usize, fault: Fault) {
        let mut state = self.state();
        (state.at, state.fault) = (state.calls + calls, Some(fault));
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// Whether the fault that was planned has come.
    pub fn failed(&self) -> bool {
        let state = self.state();
        state.fault.is_some() && state.calls > state.at
    }

    /// Nobody calls any more: power or process are gone.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// All calls, for people.
    pub fn said(&self) -> Vec<String> {
        self.state().said.clone()
    }

    /// The process is gone, and with it its locks; the disk lives on.
    pub fn next_process(&self) -> Self {
        let State { nodes, mutant, said, .. } = self.state().clone();
        let next = Self::of(nodes).with(mutant);
        next.state().said = said;
        next
    }

    /// All disks that there may be after a power loss now, as far as they differ at `path`.
    pub fn survivors(&self, path: &Path) -> Vec<Self> {
        let (nodes, mutant, said) = {
            let state = self.state();
            (state.nodes.clone(), state.mutant, state.said.clone())
        };
        let mut disks = vec![nodes];
        // Directories from the root on: what is in a lost one does not matter, and is synced with
        // the rest below.
        for inode in 0..disks[0].len() {
            if let Node::Dir(_) = disks[0][inode] {
                disks = disks.iter().flat_map(|nodes| entries_after_loss(nodes, inode)).collect();
            }
        }
        let contents = disks.iter().flat_map(|nodes| {
            let mut nodes = nodes.clone();
            let wanted = find(&nodes, path);
            for (inode, node) in nodes.iter_mut().enumerate() {
                // Of the others one that is torn will do.
                if let Node::File(content) = node
                    && Some(inode) != wanted
                {
                    let torn = contents_after_loss(content).pop().unwrap_or_default();
                    *content = synced(torn);
                }
            }
            match wanted.map(|inode| (inode, nodes[inode].clone())) {
                Some((inode, Node::File(content))) => contents_after_loss(&content)
                    .into_iter()
                    .map(|bytes| {
                        let mut nodes = nodes.clone();
                        nodes[inode] = Node::File(synced(bytes));
                        nodes
                    })
                    .collect(),
                _ => vec![nodes],
            }
        });
        let disk = |nodes| {
            let disk = Self::of(nodes).with(mutant);
            disk.state().said.clone_from(&said);
            disk
        };
        contents.map(disk).collect()
    }
}

fn synced(bytes: Vec<u8>) -> Content {
    Content { now: bytes.clone(), synced: bytes, forgotten: false }
}

fn find(nodes: &[Node], path: &Path) -> Option<Inode> {
    let mut inode = ROOT;
    for part in path.strip_prefix("/").ok()? {
        let Node::Dir(entries) = nodes.get(inode)? else { return None };
        inode = *entries.now.get(part.to_str()?)?;
    }
    Some(inode)
}

/// The same disk, with each possible state of this directory.
fn entries_after_loss(nodes: &[Node], inode: Inode) -> Vec<Vec<Node>> {
    let Node::Dir(entries) = &nodes[inode] else { return vec![nodes.to_vec()] };
    assert!(entries.changes.len() < 16, "too many states: {entries:?}");
    let mut all = BTreeSet::new();
    for chosen in 0u32..1 << entries.changes.len() {
        let mut left = entries.synced.clone();
        for (at, (name, to)) in entries.changes.iter().enumerate() {
            if chosen & (1 << at) != 0 {
                match to {
                    Some(inode) => left.insert(name.clone(), *inode),
                    None => left.remove(name),
                };
            }
        }
        all.insert(left);
    }
    let with = |left: BTreeMap<String, Inode>| {
        let mut nodes = nodes.to_vec();
        nodes[inode] = Node::Dir(Entries { now: left.clone(), synced: left, changes: vec![] });
        nodes
    };
    all.into_iter().map(with).collect()
}

/// What there may be of a file.
fn contents_after_loss(content: &Content) -> Vec<Vec<u8>> {
    let Content { now, synced, .. } = content;
    if now == synced {
        return vec![now.clone()];
    }
    let sectors = now.len().max(synced.len()).div_ceil(SECTOR);
    assert!(sectors < 12, "too many states");
    let mut all = BTreeSet::from([synced.clone()]);
    for chosen in 0u32..1 << sectors {
        for fill in [0, b'}'] {
            let byte = |at: usize| {
                let new = chosen & (1 << (at / SECTOR)) != 0;
                let from = if new { now } else { synced };
                from.get(at).copied().unwrap_or(fill)
            };
            // Its new size may be there or not.
            for size in [now.len(), synced.len(), now.len().min(SECTOR)] {
                all.insert((0..size).map(byte).collect());
            }
        }
    }
    // Storage with other sectors: cut anywhere.
    all.extend((0..=now.len()).step_by(7).map(|cut| now[..cut].to_vec()));
    all.into_iter().collect()
}

/// What to do with a call.
enum Go {
    On,
    Late(i32),
    Short,
}

impl State {
    /// Counts a call, and says what goes wrong with it.
    fn call(&mut self, what: &str) -> io::Result<Go> {
        if self.dead {
            return Err(errno(libc::EIO));
        }
        let hit = (self.calls == self.at).then_some(self.fault).flatten();
        self.calls += 1;
        let said = hit.map_or_else(|| what.to_owned(), |fault| format!("{what}: {fault:?}"));
        self.said.push(said);
        match hit {
            None => Ok(Go::On),
            Some(Fault::Crash | Fault::Kill) => {
                self.dead = true;
                Err(errno(libc::EIO))
            }
            Some(Fault::Fails(number)) => {
                if what.starts_with("sync") {
                    // Whoever syncs next hears nothing of it.
                    let inode = what.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
                    if let Some(Node::File(content)) = inode.and_then(|i| self.nodes.get_mut(i)) {
                        content.forgotten = true;
                    }
                }
                Err(errno(number))
            }
            Some(Fault::FailsLate(number)) => Ok(Go::Late(number)),
            Some(Fault::Short) => Ok(Go::Short),
        }
    }

    fn dir(&mut self, path: &Path) -> io::Result<&mut Entries> {
        let inode = find(&self.nodes, path).ok_or(errno(libc::ENOENT))?;
        match self.nodes.get_mut(inode) {
            Some(Node::Dir(entries)) => Ok(entries),
            _ => Err(errno(libc::ENOTDIR)),
        }
    }

    /// The directory that an entry stands in, and its name.
    fn above<'a>(&mut self, path: &'a Path) -> io::Result<(&mut Entries, &'a str)> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(errno(libc::EINVAL))?;
        Ok((self.dir(path.parent().unwrap_or(Path::new("/")))?, name))
    }

    fn make(&mut self, path: &Path, node: Node) -> io::Result<Inode> {
        let inode = self.nodes.len();
        let (above, name) = self.above(path)?;
        if above.now.contains_key(name) {
            return Err(errno(libc::EEXIST));
        }
        above.change(name, Some(inode));
        self.nodes.push(node);
        Ok(inode)
    }

    fn really_sync(&mut self, inode: Inode) {
        match self.nodes.get_mut(inode) {
            Some(Node::File(content)) if !content.forgotten => {
                content.synced.clone_from(&content.now);
            }
            Some(Node::Dir(entries)) => {
                entries.synced.clone_from(&entries.now);
                entries.changes.clear();
            }
            _ => {}
        }
    }

    fn sync(&mut self, handle: &Handle) {
        let Handle { inode, made } = *handle;
        let is_dir = matches!(self.nodes.get(inode), Some(Node::Dir(_)));
        // A journal's own directory, as against those on the way to it.
        let own = matches!(self.nodes.get(inode), Some(Node::Dir(e)) if e.now.contains_key("lock"));
        match self.mutant {
            Some(Mutant::NoFileSync) if !is_dir => {}
            Some(Mutant::NoDirSync) if own => {}
            Some(Mutant::NoWay) if is_dir && !own => {}
            Some(Mutant::Believed) if own && !self.renamed => {}
            Some(Mutant::RenameFirst) if made => self.unsynced.push(inode),
            _ => {
                for late in std::mem::take(&mut self.unsynced) {
                    self.really_sync(late);
                }
                self.really_sync(inode);
            }
        }
    }

    /// The path that a call is really about.
    fn path(&self, path: &Path) -> PathBuf {
        if self.mutant == Some(Mutant::InPlace) && path.ends_with("record.new") {
            return path.with_file_name("record");
        }
        path.to_owned()
    }
}

impl Disk {
    fn call(&self, what: &str) -> io::Result<(MutexGuard<'_, State>, Go)> {
        let mut state = self.state();
        let go = state.call(what)?;
        Ok((state, go))
    }
}

/// A call that has done what it should may fail all the same.
fn after<T>(go: &Go, done: T) -> io::Result<T> {
    match go {
        Go::Late(number) => Err(errno(*number)),
        _ => Ok(done),
    }
}

impl Files for Disk {
    type Handle = Handle;
    type Lock = Lock;

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, go) = self.call(&format!("mkdir {}", path.display()))?;
        state.make(path, Node::Dir(Entries::default()))?;
        after(&go, ())
    }

    fn open(&self, path: &Path) -> io::Result<Handle> {
        let (state, go) = self.call(&format!("open {}", path.display()))?;
        let inode = find(&state.nodes, path).ok_or(errno(libc::ENOENT))?;
        after(&go, Handle { inode, made: false })
    }

    fn create(&self, path: &Path) -> io::Result<Handle> {
        let (mut state, go) = self.call(&format!("create {}", path.display()))?;
        let path = state.path(path);
        let there = find(&state.nodes, &path);
        let reuses = matches!(state.mutant, Some(Mutant::InPlace | Mutant::Reused));
        let inode = match there {
            Some(inode) if reuses => {
                if let Some(Node::File(content)) = state.nodes.get_mut(inode) {
                    content.now.clear();
                }
                inode
            }
            _ => state.make(&path, Node::File(Content::default()))?,
        };
        after(&go, Handle { inode, made: true })
    }

    fn write(&self, file: &Handle, bytes: &[u8]) -> io::Result<usize> {
        let (mut state, go) = self.call(&format!("write {} bytes", bytes.len()))?;
        let written = if matches!(go, Go::On) { bytes.len() } else { bytes.len().div_ceil(2) };
        match state.nodes.get_mut(file.inode) {
            Some(Node::File(content)) => content.now.extend_from_slice(&bytes[..written]),
            _ => return Err(errno(libc::EBADF)),
        }
        after(&go, written)
    }

    fn read(&self, file: &Handle, limit: u64) -> io::Result<Vec<u8>> {
        let (state, go) = self.call("read")?;
        let Some(Node::File(content)) = state.nodes.get(file.inode) else {
            return Err(errno(libc::EBADF));
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(content.now.len());
        after(&go, content.now[..limit].to_vec())
    }

    fn sync(&self, handle: &Handle) -> io::Result<()> {
        let (mut state, go) = self.call(&format!("sync {}", handle.inode))?;
        state.sync(handle);
        after(&go, ())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, go) = self.call(&format!("rename to {}", to.display()))?;
        let from = state.path(from);
        state.renamed = true;
        let inode = find(&state.nodes, &from).ok_or(errno(libc::ENOENT))?;
        if from != to {
            let (above, name) = state.above(to)?;
            above.change(name, Some(inode));
            let (above, name) = state.above(&from)?;
            above.change(name, None);
        }
        after(&go, ())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (mut state, go) = self.call(&format!("remove {}", path.display()))?;
        if state.mutant == Some(Mutant::InPlace) {
            return Ok(());
        }
        if state.mutant == Some(Mutant::Reused) && path.ends_with("record.new") {
            return Ok(());
        }
        let (above, name) = state.above(path)?;
        if !above.now.contains_key(name) {
            return Err(errno(libc::ENOENT));
        }
        above.change(name, None);
        after(&go, ())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, go) = self.call(&format!("rmdir {}", path.display()))?;
        if !state.dir(path)?.now.is_empty() {
            return Err(errno(libc::ENOTEMPTY));
        }
        let (above, name) = state.above(path)?;
        above.change(name, None);
        after(&go, ())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let (mut state, go) = self.call(&format!("lock {}", path.display()))?;
        if find(&state.nodes, path).is_none() {
            state.make(path, Node::File(Content::default()))?;
        }
        after(&go, ())?;
        let taken = state.locks.insert(path.to_owned());
        drop(state);
        Ok(taken.then(|| Lock(self.clone(), path.to_owned())))
    }
}
