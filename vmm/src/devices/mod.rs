//! Devices: the bus they sit on, the legacy ones, and those on virtio-mmio.

pub mod bus;
pub mod virtio;
