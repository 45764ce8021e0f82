//! Confinement of the guest process, before anything from the guest or a saved state is looked
//! at: no new privileges, no capabilities, Landlock for files and networks, seccomp for system
//! calls. It must be called while the process has one thread; later threads inherit it.
//!
//! A call that is not allowed fails with `EPERM`; it does not kill. The call does not happen
//! either way, and a guest must not be lost because a new libc prefers another call.
//!
//! Landlock is used as far as the kernel has it, and what it has is logged. There is no switch
//! to turn any of this off.

mod syscalls;

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};

use super::sys;
use crate::config::{Dirs, GuestPaths};

/// The newest Landlock whose rights are known here.
const KNOWN: ABI = ABI::V6;

/// Why the process could not be confined. The guest must not run then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Landlock.
    #[error("Landlock refuses the rules: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A directory of the rules is missing.
    #[error("a directory that the guest process needs cannot be opened: {0}")]
    Path(#[from] landlock::PathFdError),
    /// Seccomp.
    #[error("the filter of system calls cannot be installed: {0}")]
    Seccomp(String),
    /// Capabilities or privileges.
    #[error("privileges cannot be given up: {0}")]
    Privileges(#[from] std::io::Error),
}

/// What the process may still reach by name.
#[derive(Debug)]
pub struct Reach {
    rules: Vec<(PathBuf, BitFlags<AccessFs>)>,
}

impl Reach {
    /// What every guest process needs: its runtime directory, its journal and its marks,
    /// to remove what tracks its disks, and to leave files among the exits. `saves`: a directory to save to on SIGTERM.
    pub fn new(
        dirs: &Dirs,
        paths: &GuestPaths,
        (journal, marks, tracking): (PathBuf, PathBuf, PathBuf),
        saves: Option<PathBuf>,
    ) -> Self {
        let own = make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeSock | RemoveFile | RemoveDir
        });
        let records = make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile
        });
        let leave = make_bitflags!(AccessFs::{ WriteFile | Truncate | MakeReg });
        // Removing a directory needs a right on its parent. It removes empty ones only.
        let remove = make_bitflags!(AccessFs::{ RemoveDir });
        let mut rules = vec![
            (paths.dir().to_owned(), own),
            (dirs.guests(), remove),
            (dirs.exits(), leave),
            (PathBuf::from("/proc/sys/kernel/random/boot_id"), AccessFs::ReadFile.into()),
        ];
        rules.extend(journal.parent().map(|parent| (parent.to_owned(), remove)));
        rules.push((journal, records));
        rules.push((marks, records));
        // A map of changes that cannot be written any more must not be found again.
        if tracking.exists() {
            rules.push((tracking, make_bitflags!(AccessFs::{ ReadDir | RemoveFile })));
        }
        rules.extend(saves.map(|dir| (dir, records)));
        Self { rules }
    }
}

/// Confines the process. There is no way back.
///
/// # Errors
/// [`ConfineError`]; the process may be confined in part.
pub fn confine(reach: &Reach) -> Result<(), ConfineError> {
    nix::sys::prctl::set_no_new_privs().map_err(std::io::Error::from)?;
    sys::drop_capabilities()?;
    restrict_files(reach)?;
    syscalls::restrict().map_err(|e| ConfineError::Seccomp(e.to_string()))
}

fn restrict_files(reach: &Reach) -> Result<(), ConfineError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for (path, access) in &reach.rules {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, *access))?;
    }
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            tracing::warn!("this kernel's Landlock is old: the guest process is confined in part");
        }
        RulesetStatus::NotEnforced => {
            tracing::warn!("this kernel has no Landlock: files are guarded by seccomp alone");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
