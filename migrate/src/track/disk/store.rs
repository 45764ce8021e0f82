//! What a tracker needs of the place where its map lives: memory that outlives the process, and
//! two ways to make things durable. It opens and maps nothing itself.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::head::Fresh;

/// A sidecar that is open and mapped. Whoever has it is the only one who writes to it.
pub trait Sidecar {
    /// The stamps, one per unit: memory that is shared with the file.
    type Stamps: AsRef<[AtomicU32]>;

    /// The stamps.
    fn stamps(&self) -> Self::Stamps;
    /// The live words, shared with the file as well.
    fn live(&self) -> &Live;
    /// Writes a slot of the record, 0 or 1; returns when it is durable. Called by one thread at a
    /// time.
    ///
    /// # Errors
    /// The slot holds the old bytes, the new ones, or a mixture.
    fn write_head(&self, slot: usize, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what stamps and live words held when it was called.
    ///
    /// # Errors
    /// Any part of it may be durable or not.
    fn sync(&self) -> io::Result<()>;
    /// The sidecar cannot be written any more: makes sure, as far as possible, that nobody finds
    /// it again and believes it.
    fn abandon(&self);
}

/// Words that change with every write and are exact after a kill.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Live {
    written: AtomicU64,
    /// Code of a [`Fresh`] and 1; 0 for none.
    void: AtomicU64,
}

impl Live {
    /// Time of the last own write, in ns since 1970; 0 if there was none.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Sets that time.
    pub fn set_written(&self, now: u64) {
        self.written.store(now, Ordering::Relaxed);
    }

    /// Why the map is worth nothing any more, if so.
    pub fn void(&self) -> Option<Fresh> {
        let code = self.void.load(Ordering::Relaxed).checked_sub(1)?;
        // What is no reason was written by nobody.
        Some(u32::try_from(code).ok().and_then(Fresh::from_code).unwrap_or(Fresh::Damaged))
    }

    /// The map is worth nothing from now on, or something again.
    pub fn set_void(&self, why: Option<Fresh>) {
        self.void.store(why.map_or(0, |fresh| fresh as u64 + 1), Ordering::Relaxed);
    }
}
