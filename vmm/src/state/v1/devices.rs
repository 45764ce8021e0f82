//! State of the devices.

use serde::{Deserialize, Serialize};

/// A split virtqueue (virtio 1.2, 2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStateV1 {
    /// Size that the driver chose.
    pub size: u16,
    /// The driver made it ready.
    pub ready: bool,
    /// Guest-physical addresses of descriptor table, available ring, used ring.
    pub desc_table: u64,
    /// See `desc_table`.
    pub avail_ring: u64,
    /// See `desc_table`.
    pub used_ring: u64,
    /// Next entry of the available ring that the device will take.
    pub next_avail: u16,
    /// Next entry of the used ring that the device will fill.
    pub next_used: u16,
    /// `VIRTIO_F_RING_EVENT_IDX` is in force.
    pub event_idx: bool,
}

/// A virtio-mmio transport (virtio 1.2, 4.2) and the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// `Status` register.
    pub status: u32,
    /// `DeviceFeaturesSel` register.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel` register.
    pub driver_features_sel: u32,
    /// What the driver accepted so far.
    pub driver_features: u64,
    /// `QueueSel` register.
    pub queue_sel: u32,
    /// `InterruptStatus` register.
    pub interrupt_status: u32,
    /// `ConfigGeneration` register.
    pub config_generation: u32,
    /// Every queue of the device, also those not ready.
    pub queues: Vec<QueueStateV1>,
    /// The device.
    pub device: VirtioDeviceState,
}

/// State of one virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtioDeviceState {
    /// virtio-blk.
    Block(BlockState),
    /// virtio-net.
    Net(NetState),
    /// virtio-console.
    Console(ConsoleState),
    /// virtio-rng.
    Rng(RngState),
    /// virtio-vsock.
    Vsock(VsockState),
}

/// virtio-blk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Capacity in 512-byte sectors, as the guest knows it.
    pub sectors: u64,
    /// The guest sees a read-only disk.
    pub read_only: bool,
    /// Logical block size that the guest was told, in bytes.
    pub block_size: u32,
    /// Identity string that the guest was told.
    pub serial: String,
    /// Write cache mode that the driver chose (`writeback` field).
    pub writeback: bool,
}

/// virtio-net.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU that the guest was told; 0 for none.
    pub mtu: u16,
    /// Offload flags last set on the tap (`TUN_F_*`).
    pub offloads: u32,
}

/// virtio-console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Columns and rows that the guest was told; 0 for none.
    pub columns: u16,
    /// See `columns`.
    pub rows: u16,
    /// Input that came from the host and that the guest has no buffer for yet.
    pub pending_input: Vec<u8>,
}

/// virtio-rng. It has no state of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

/// virtio-vsock. Connections do not survive: the guest gets a transport reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Guest context id.
    pub cid: u64,
}

/// The 16550 on COM1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low and high.
    pub divisor_low: u8,
    /// See `divisor_low`.
    pub divisor_high: u8,
    /// Interrupt enable.
    pub interrupt_enable: u8,
    /// Interrupt identification.
    pub interrupt_identification: u8,
    /// Line control.
    pub line_control: u8,
    /// Line status.
    pub line_status: u8,
    /// Modem control.
    pub modem_control: u8,
    /// Modem status.
    pub modem_status: u8,
    /// Scratch.
    pub scratch: u8,
    /// Received bytes that the guest has not read, at most the FIFO's 64.
    pub input: Vec<u8>,
}

/// ACPI fixed hardware (ACPI 6.5, 4.8.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    /// PM1a status and enable.
    pub pm1_status: u16,
    /// See `pm1_status`.
    pub pm1_enable: u16,
    /// PM1a control.
    pub pm1_control: u16,
    /// GPE0 status and enable.
    pub gpe0_status: u8,
    /// See `gpe0_status`.
    pub gpe0_enable: u8,
}

/// VM generation id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenIdState {
    /// The id in guest memory.
    pub id: [u8; 16],
}
