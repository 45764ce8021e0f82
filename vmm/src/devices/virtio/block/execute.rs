//! Carries out one checked request on the disk and tells what became of it. Knows nothing of
//! queues or threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backend::{DiskBackend, WriteObserver};
use super::request::{Action, ID_BYTES, IOERR, Limits, OK, Range, Request};
use crate::memory::Mem;

/// The disk with what belongs to it, shared by both halves of the device.
pub struct Disk {
    /// Where the data lies.
    pub backend: Arc<dyn DiskBackend>,
    /// Stands around every change.
    pub observer: Option<Arc<dyn WriteObserver>>,
    /// What requests are checked against.
    pub limits: Limits,
    /// The identity string, padded with zeroes.
    pub id: [u8; ID_BYTES],
    /// The driver lets writes be cached until a flush. It can change this at any time.
    pub writeback: AtomicBool,
    /// Requests that the disk failed.
    pub errors: Arc<AtomicU64>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status byte.
    pub status: u8,
    /// Bytes written from the start of what the device may write, the status not counted.
    pub written: u64,
}

impl Disk {
    /// Does what `request` asks. `durable`: the driver cannot flush, so each write must be on
    /// the disk when it completes.
    pub fn carry_out(&self, mem: &Mem, request: &Request, durable: bool) -> Outcome {
        if let Action::Refuse(status) = request.action {
            return Outcome { status, written: 0 };
        }
        match self.perform(mem, request, durable) {
            Ok(written) => Outcome { status: OK, written },
            Err(error) => {
                self.count_error(request, &error);
                Outcome { status: IOERR, written: 0 }
            }
        }
    }

    fn perform(&self, mem: &Mem, request: &Request, durable: bool) -> io::Result<u64> {
        match &request.action {
            Action::Read { offset } => {
                self.backend.read_at(&request.slices(mem)?, *offset)?;
                Ok(request.len)
            }
            Action::Write { offset } => {
                let slices = request.slices(mem)?;
                self.observed(*offset, request.len, || self.backend.write_at(&slices, *offset))?;
                self.settle(durable).map(|()| 0)
            }
            Action::Flush => self.backend.flush().map(|()| 0),
            Action::GetId => self.tell_id(mem, request),
            Action::Discard(ranges) => {
                self.each(ranges, durable, |r| self.backend.discard(r.offset, r.len))
            }
            Action::WriteZeroes(ranges) => self
                .each(ranges, durable, |r| self.backend.write_zeroes(r.offset, r.len, r.may_unmap)),
            Action::Refuse(_) => Ok(0),
        }
    }

    fn each(
        &self,
        ranges: &[Range],
        durable: bool,
        change: impl Fn(&Range) -> io::Result<()>,
    ) -> io::Result<u64> {
        for range in ranges {
            self.observed(range.offset, range.len, || change(range))?;
        }
        self.settle(durable).map(|()| 0)
    }

    fn observed(
        &self,
        offset: u64,
        len: u64,
        mut change: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        match &self.observer {
            Some(observer) if len > 0 => observer.around_write(offset, len, &mut change),
            _ => change(),
        }
    }

    /// Makes a write durable if the driver does not let it be cached.
    fn settle(&self, durable: bool) -> io::Result<()> {
        if durable || !self.writeback.load(Ordering::Relaxed) {
            self.backend.flush()
        } else {
            Ok(())
        }
    }

    fn tell_id(&self, mem: &Mem, request: &Request) -> io::Result<u64> {
        let mut told = 0;
        for slice in request.slices(mem)? {
            let n = slice.len().min(ID_BYTES - told);
            slice.copy_from(&self.id[told..told + n]);
            told += n;
        }
        Ok(told as u64)
    }

    /// Counts a failure, and logs the first, second, fourth, eighth, …: a guest that goes on
    /// asking cannot fill the log.
    fn count_error(&self, request: &Request, error: &io::Error) {
        let count = self.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if count.is_power_of_two() {
            let action = &request.action;
            tracing::warn!(?action, bytes = request.len, %error, count, "a disk request failed");
        }
    }
}
