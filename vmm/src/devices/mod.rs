//! Devices: the bus they sit on, the legacy ones, and those on virtio-mmio.

pub mod acpi_pm;
pub mod bridge;
pub mod bus;
pub mod console;
pub mod i8042;
pub mod serial;
pub mod tap;
mod tap_ioctl;
pub mod virtio;
pub mod vmgenid;
