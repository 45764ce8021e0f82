//! virtio-vsock (virtio 1.2, 5.10): sockets between guest and host, the host's side being Unix
//! sockets (see `host` for how the two find each other).
//!
//! Connections do not survive a save: after a restore the guest is told so by a transport reset
//! event, as soon as its driver offers a buffer for it, and both sides connect anew.
//!
//! Bytes are copied once on their way through a buffer here. Only stream sockets are offered.

mod connection;
mod host;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;
mod worker;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::QueueState;

pub use muxer::MAX_CONNECTIONS;

use self::muxer::Muxer;
use self::worker::{FIRST_MUXER_TOKEN, Slot, VsockWorker};
use super::ring::{Ring, read_config};
use super::thread::DeviceThread;
use super::{Activation, DeviceError, VirtioDevice};
use crate::state::v1::{VirtioDeviceState, VsockState};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Least context id of a guest; smaller ones have fixed meanings.
const MIN_CID: u64 = 3;
/// Longest path of a Unix socket, without its final NUL.
const MAX_SOCKET_PATH: usize = 107;
/// Longest `_<port>`.
const MAX_SUFFIX: usize = 11;

/// What a vsock device is made of.
#[derive(Debug)]
pub struct VsockSpec {
    /// The guest's context id, 3 to 2³²−2.
    pub cid: u64,
    /// Where host programs call.
    pub listener: UnixListener,
    /// Host programs listen at `<path>_<port>` for calls from the guest. At most 96 bytes.
    pub path: PathBuf,
}

impl VsockSpec {
    fn check(&self) -> Result<(), DeviceError> {
        let refuse = |reason| Err(DeviceError::Spec { device: "vsock", reason });
        let most = u64::from(u32::MAX) - 1;
        if !(MIN_CID..=most).contains(&self.cid) {
            return refuse(format!("cid {} is out of range: give {MIN_CID} to {most}", self.cid));
        }
        let length = self.path.as_os_str().as_bytes().len();
        if length + MAX_SUFFIX > MAX_SOCKET_PATH {
            return refuse(format!(
                "the socket path has {length} bytes, at most {} are possible: {}",
                MAX_SOCKET_PATH - MAX_SUFFIX,
                self.path.display()
            ));
        }
        let failed = |source| DeviceError::Host {
            what: "cannot make the vsock listener non-blocking",
            source,
        };
        self.listener.set_nonblocking(true).map_err(failed)
    }
}

/// A vsock device.
pub struct VsockDevice {
    cid: u64,
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// The guest may believe in connections that are gone.
    reset_due: bool,
    active: Option<DeviceThread<VsockWorker>>,
}

impl VsockDevice {
    /// A device that no driver has found yet.
    pub fn new(spec: VsockSpec) -> Result<Self, DeviceError> {
        spec.check()?;
        Ok(Self {
            cid: spec.cid,
            listener: Arc::new(spec.listener),
            path: spec.path,
            reset_due: false,
            active: None,
        })
    }

    /// The device as it was saved, without its connections.
    pub fn restore(spec: VsockSpec, state: &VsockState) -> Result<Self, DeviceError> {
        if spec.cid != state.cid {
            let reason =
                format!("cid is {} in the state and {} in the description", state.cid, spec.cid);
            return Err(DeviceError::State { device: "vsock", reason });
        }
        let mut device = Self::new(spec)?;
        device.reset_due = true;
        Ok(device)
    }

    fn muxer(&self) -> Muxer {
        // Ports need not be secret, only different from those before the save.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = now.subsec_nanos() ^ u32::try_from(now.as_secs() & 0xFFFF_FFFF).unwrap_or(0);
        Muxer::new(self.cid, self.listener.clone(), self.path.clone(), FIRST_MUXER_TOKEN, seed)
    }
}

impl VirtioDevice for VsockDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    /// Without any, stream sockets are what there is (5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        read_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.reset();
        let Activation { ram, mut queues, interrupt, .. } = activation;
        queues.retain(|q| q.index <= EVENT);
        let kicks = queues.iter().map(|q| q.kick.clone()).collect();
        let mut slots = [const { None }; QUEUE_SIZES.len()];
        let mut roles = Vec::with_capacity(queues.len());
        for active in queues {
            let (index, kick) = (active.index, active.kick.clone());
            roles.push(index);
            slots[usize::from(index)] = Some(Slot { ring: Ring::new(active, ram.mem()), kick });
        }
        let [receive, transmit, event] = slots;
        let worker = VsockWorker::new(worker::Parts {
            ram,
            interrupt,
            roles,
            receive: receive.ok_or(DeviceError::MissingQueue(RECEIVE))?,
            transmit: transmit.ok_or(DeviceError::MissingQueue(TRANSMIT))?,
            event: event.ok_or(DeviceError::MissingQueue(EVENT))?,
            muxer: self.muxer(),
            reset_due: self.reset_due,
        })?;
        self.active = Some(DeviceThread::start("vsock", worker, kicks)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(thread) = self.active.take() {
            // The driver forgot its connections with its rings.
            self.reset_due = false;
            drop(thread);
        }
    }

    fn drain(&mut self) -> Result<(), DeviceError> {
        self.active.as_ref().map_or(Ok(()), DeviceThread::park)
    }

    fn resume(&mut self) {
        if let Some(thread) = &self.active {
            thread.resume();
        }
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let Some(thread) = &self.active else { return Vec::new() };
        let worker = thread.worker();
        worker.slots().map(|slot| slot.ring.state()).to_vec()
    }

    fn save(&self) -> VirtioDeviceState {
        VirtioDeviceState::Vsock(VsockState { cid: self.cid })
    }
}
