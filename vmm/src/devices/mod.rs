//! Devices: the bus they sit on, the legacy ones, and those on virtio-mmio.

pub mod bus;
pub mod tap;
mod tap_ioctl;
pub mod virtio;
