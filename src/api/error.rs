//! Errors as scripts and people meet them: a stable code, what happened, what to do next.

use serde::{Deserialize, Serialize};

use super::GuestState;

/// Stable names of failures. Scripts match on these; they are never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// A defect or an unforeseen failure of the host.
    Unexpected,
    /// The command line or a request is malformed.
    Usage,
    /// /dev/kvm is missing.
    KvmMissing,
    /// /dev/kvm may not be opened.
    KvmPermission,
    /// KVM lacks a capability that is needed.
    KvmCapability,
    /// The guest's definition is refused.
    BadDefinition,
    /// The kernel, initrd or command line is refused.
    BadKernel,
    /// The host has not enough memory.
    NoMemory,
    /// A disk cannot be used.
    BadDisk,
    /// A disk is in use by another guest.
    DiskLocked,
    /// A network interface cannot be used.
    BadNet,
    /// The name is taken.
    NameTaken,
    /// A guest with this identity runs already.
    AlreadyRunning,
    /// The guest was moved away or started since.
    Superseded,
    /// A disk changed since the save.
    DiskChanged,
    /// A state file is damaged or not one of ours.
    BadStateFile,
    /// A state file is of a version that this program does not read.
    StateVersion,
    /// This host's CPU lacks what the guest was promised.
    CpuMismatch,
    /// There is no such guest.
    NotFound,
    /// The guest process does not answer.
    Unreachable,
    /// Another operation is in progress.
    Busy,
    /// The guest is in the wrong state for this.
    WrongState,
    /// Writable disks forbid this.
    WritableDisk,
    /// A deadline passed.
    Timeout,
    /// The caller interrupted.
    Interrupted,
    /// The file to write exists already.
    FileExists,
    /// A file cannot be opened or written.
    File,
    /// This host has no identity yet.
    NoIdentity,
    /// The other host is not known here.
    UnknownHost,
    /// The other host refused this one, or is not who it should be.
    HostRefused,
    /// The two programs have no protocol version in common.
    NoCommonVersion,
    /// The destination has not enough memory or CPUs left.
    NoRoom,
    /// The guest cannot run at the destination as it is.
    Incompatible,
    /// A disk of the guest is not on storage that both hosts share.
    LocalDisk,
    /// The guest was moved to another host.
    MovedAway,
    /// The guest is where it is to be moved to. Nothing is left to do, so this is no failure to a
    /// script.
    AlreadyThere,
    /// Whose the guest is, is not settled.
    InDoubt,
    /// The move did not succeed; the guest runs where it was.
    MoveFailed,
    /// The move was cancelled; the guest runs where it was.
    Cancelled,
}

impl ErrorCode {
    /// The exit code that scripts see (0 already so, 1 unexpected, 2 usage, 4 refused before
    /// starting, 5 failed or timed out, 6 in doubt, 7 not found, 8 unreachable, 130 interrupted).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::AlreadyThere => 0,
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::Timeout | Self::MoveFailed | Self::Cancelled => 5,
            Self::InDoubt => 6,
            Self::NotFound => 7,
            Self::Unreachable => 8,
            Self::Interrupted => 130,
            _ => 4,
        }
    }
}

/// A failure, complete: what happened, where the guest is now, what to type next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable code.
    pub code: ErrorCode,
    /// What happened, in a sentence.
    pub message: String,
    /// What to do next.
    pub remedy: String,
    /// The same call may succeed later.
    pub retryable: bool,
    /// Where the guest is now, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_state: Option<GuestState>,
}

/// An [`ErrorBody`] as a Rust error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Failure(pub Box<ErrorBody>);

impl Failure {
    /// A failure that will not go away by itself.
    pub fn new(code: ErrorCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self(Box::new(ErrorBody {
            code,
            message: message.into(),
            remedy: remedy.into(),
            retryable: false,
            guest_state: None,
        }))
    }

    /// Says where the guest is now.
    #[must_use]
    pub fn with_state(mut self, state: GuestState) -> Self {
        self.0.guest_state = Some(state);
        self
    }

    /// Says that the same call may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }
}
