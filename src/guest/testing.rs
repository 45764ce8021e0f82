//! What several tests need.

use crate::config::{GuestDefinition, OnCrash, OnHostStop};

/// The smallest guest.
pub fn definition(name: &str) -> GuestDefinition {
    GuestDefinition {
        name: name.into(),
        uuid: uuid::Uuid::from_u128(7),
        memory_bytes: 16 << 20,
        huge_pages: false,
        cpus: 1,
        cpu_template: "host".into(),
        dirty_ring: false,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        guest: Some("scribbler:".into()),
        acpi: true,
        disks: vec![],
        nets: vec![],
        virtio_console: false,
        rng: false,
        vsock_cid: None,
        on_crash: OnCrash::Stop,
        on_host_stop: OnHostStop::Shutdown,
    }
}
