//! virtio-net on a tap (virtio 1.2, 5.1): one pair of queues and a control queue.
//!
//! The device never makes or configures taps, and never looks into frames.

mod ctrl;
mod gather;
mod link;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_queue::QueueState;

pub use link::{Announced, Announcer, NetStats};

use self::link::{Counters, Link};
use self::worker::{NetWorker, Role, Slot};
use super::ring::Ring;
use super::thread::DeviceThread;
use super::{Activation, ActiveQueue, DeviceError, VirtioDevice};
use crate::devices::tap::Tap;
use crate::state::v1::{NetState, VirtioDeviceState};

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const CONTROL: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
/// Least MTU that a driver must cope with (IPv4).
const MIN_MTU: u16 = 68;

const TUN_F_CSUM: u32 = libc::TUN_F_CSUM;
const TUN_F_TSO4: u32 = libc::TUN_F_TSO4;
const TUN_F_TSO6: u32 = libc::TUN_F_TSO6;

/// Features that every card offers.
const FEATURES: [u32; 12] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// What a network card is made of.
#[derive(Debug)]
pub struct NetSpec {
    /// The host's end.
    pub tap: Tap,
    /// The guest's address: unicast and not zero.
    pub mac: [u8; 6],
    /// MTU that the guest is told, 68 to 65535 bytes.
    pub mtu: Option<u16>,
}

impl NetSpec {
    fn check(&self) -> Result<(), DeviceError> {
        let refuse = |reason| Err(DeviceError::Spec { device: "net", reason });
        if self.mac == [0; 6] || self.mac[0] & 1 != 0 {
            let mac = text(self.mac);
            return refuse(format!("mac {mac} is no unicast address: give one like 52:54:00:…"));
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU => {
                refuse(format!("mtu {mtu} is too small: give {MIN_MTU} to 65535"))
            }
            _ => Ok(()),
        }
    }
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// A network card.
pub struct NetDevice {
    tap: Arc<Tap>,
    mac: [u8; 6],
    /// 0 for none, as in the saved state.
    mtu: u16,
    offloads: u32,
    link: Arc<Link>,
    counters: Arc<Counters>,
    active: Option<DeviceThread<NetWorker>>,
}

impl NetDevice {
    /// A card that no driver has found yet.
    pub fn new(spec: NetSpec) -> Result<Self, DeviceError> {
        spec.check()?;
        Ok(Self {
            tap: Arc::new(spec.tap),
            mac: spec.mac,
            mtu: spec.mtu.unwrap_or(0),
            offloads: 0,
            link: Arc::new(Link::new()),
            counters: Arc::default(),
            active: None,
        })
    }

    /// The card as it was saved, on a tap of this host. The tap's offloads follow from the
    /// driver's features when the transport activates it.
    pub fn restore(spec: NetSpec, state: &NetState) -> Result<Self, DeviceError> {
        let refuse = |reason| Err(DeviceError::State { device: "net", reason });
        if spec.mac != state.mac {
            let (saved, given) = (text(state.mac), text(spec.mac));
            return refuse(format!("mac is {saved} in the state and {given} in the description"));
        }
        if spec.mtu.unwrap_or(0) != state.mtu {
            let given = spec.mtu.unwrap_or(0);
            let saved = state.mtu;
            return refuse(format!(
                "mtu is {saved} in the state and {given} in the description (0 is none)"
            ));
        }
        let known = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        if state.offloads & !known != 0 {
            let saved = state.offloads;
            return refuse(format!("offloads are {saved:#x} in the state, known are {known:#x}"));
        }
        let mut device = Self::new(spec)?;
        device.offloads = state.offloads;
        Ok(device)
    }

    /// A handle that tells the network where the guest is.
    pub fn announcer(&self) -> Announcer {
        let (tap, link) = (Arc::downgrade(&self.tap), Arc::downgrade(&self.link));
        Announcer { tap, mac: self.mac, link }
    }

    /// Frames so far.
    pub fn stats(&self) -> NetStats {
        self.counters.read()
    }

    fn set_offloads(&mut self, flags: u32) -> Result<(), DeviceError> {
        self.tap.set_offloads(flags).map_err(|source| DeviceError::Host {
            what: "cannot set the offloads of the tap",
            source,
        })?;
        self.offloads = flags;
        Ok(())
    }

    fn worker(&self, activation: Activation) -> Result<NetWorker, DeviceError> {
        let Activation { ram, queues, interrupt, features } = activation;
        let (mut receive, mut send, mut control) = (None, None, None);
        let mut roles = Vec::with_capacity(queues.len());
        for active in queues {
            let kick = active.kick.clone();
            let (place, role) = match active.index {
                RECEIVE => (&mut receive, Role::Receive),
                SEND => (&mut send, Role::Send),
                _ => (&mut control, Role::Control),
            };
            *place = Some(Slot { ring: Ring::new(active, ram.mem()), kick });
            roles.push(role);
        }
        Ok(NetWorker {
            interrupt,
            tap: self.tap.clone(),
            link: self.link.clone(),
            counters: self.counters.clone(),
            roles,
            receive: receive.ok_or(DeviceError::MissingQueue(RECEIVE))?,
            send: send.ok_or(DeviceError::MissingQueue(SEND))?,
            control,
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            frame: worker::bounce_buffer(),
            held: 0,
            watch: None,
            events: None,
            ram,
        })
    }
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

/// What the tap may hand us, given what the driver takes (virtio 1.2, 5.1.3.1: segmentation
/// needs checksums).
fn offloads(features: u64) -> u32 {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let tso = [(VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6)];
    let wanted = tso.iter().filter(|(bit, _)| has(features, *bit));
    wanted.fold(TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

fn guest_announces(features: u64) -> bool {
    [VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ]
        .iter()
        .all(|bit| has(features, *bit))
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu == 0 { 0 } else { 1 << VIRTIO_NET_F_MTU };
        FEATURES.iter().fold(mtu, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `virtio_net_config` (5.1.4): address, status, pairs of queues, MTU.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&self.link.status().to_le_bytes());
        config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        super::ring::read_config(&config, offset, data);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), DeviceError> {
        self.reset();
        activation.queues.retain(|q: &ActiveQueue| q.index <= CONTROL);
        let features = activation.features;
        let interrupt = activation.interrupt.clone();
        let kicks = activation.queues.iter().map(|q| q.kick.clone()).collect();
        let worker = self.worker(activation)?;
        self.set_offloads(offloads(features))?;
        let name = format!("net-{}", self.tap.name());
        self.active = Some(DeviceThread::start(&name, worker, kicks)?);
        self.link.connect(interrupt, guest_announces(features));
        Ok(())
    }

    fn reset(&mut self) {
        if self.active.take().is_some() {
            self.link.disconnect();
            // What comes until the next driver must suit any driver.
            if let Err(e) = self.set_offloads(0) {
                tracing::warn!(tap = self.tap.name(), error = %e, "a reset card keeps its offloads");
            }
        }
    }

    fn drain(&mut self) -> Result<(), DeviceError> {
        self.link.park();
        self.active.as_ref().map_or(Ok(()), DeviceThread::park)
    }

    fn resume(&mut self) {
        self.link.run(self.active.is_some());
        if let Some(thread) = &self.active {
            thread.resume();
        }
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let Some(thread) = &self.active else { return Vec::new() };
        let worker = thread.worker();
        let control = worker.control.as_ref();
        let slots = [Some(&worker.receive), Some(&worker.send), control];
        slots.into_iter().flatten().map(|slot| slot.ring.state()).collect()
    }

    fn save(&self) -> VirtioDeviceState {
        VirtioDeviceState::Net(NetState { mac: self.mac, mtu: self.mtu, offloads: self.offloads })
    }
}
