//! VM generation id (Microsoft, "Virtual Machine Generation ID"): 16 bytes of guest memory that
//! change when the guest becomes another one, and an ACPI event that says so.
//!
//! A guest that only moves or continues keeps its id; a clone gets a new one.

use vm_memory::{Bytes, GuestAddress};

use super::acpi_pm::AcpiPm;
use crate::memory::GuestRam;
use crate::memory::layout::VM_GENERATION_ID;
use crate::state::v1::VmGenIdState;

/// The id could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the VM generation id to guest memory at {VM_GENERATION_ID:#x}: {0}")]
pub struct WriteError(#[source] vm_memory::GuestMemoryError);

/// The id, here and in guest memory.
#[derive(Debug)]
pub struct VmGenId {
    ram: GuestRam,
    id: [u8; 16],
}

impl VmGenId {
    /// Writes `id` to the memory of a guest that boots.
    pub fn new(ram: GuestRam, id: [u8; 16]) -> Result<Self, WriteError> {
        let device = Self { ram, id };
        device.write()?;
        Ok(device)
    }

    /// The id of a guest whose memory already holds it. Memory is not touched: it may not be
    /// there yet.
    pub fn restore(state: &VmGenIdState, ram: GuestRam) -> Self {
        Self { ram, id: state.id }
    }

    /// The state to save.
    pub fn save(&self) -> VmGenIdState {
        VmGenIdState { id: self.id }
    }

    /// Makes the guest another one, and tells it through `pm`.
    pub fn change(&mut self, id: [u8; 16], pm: &mut AcpiPm) -> Result<(), WriteError> {
        self.id = id;
        self.write()?;
        pm.signal_generation_change();
        Ok(())
    }

    fn write(&self) -> Result<(), WriteError> {
        self.ram.mem().write_slice(&self.id, GuestAddress(VM_GENERATION_ID)).map_err(WriteError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemoryConfig;
    use crate::devices::acpi_pm::IrqLine;
    use crate::devices::bus::BusDevice;
    use crate::events::channel_pair;

    struct NoLine;
    impl IrqLine for NoLine {
        fn set(&self, _: bool) {}
    }

    fn in_memory(ram: &GuestRam) -> [u8; 16] {
        let mut id = [0; 16];
        ram.mem().read_slice(&mut id, GuestAddress(0xF_F000)).unwrap();
        id
    }

    #[test]
    fn id_is_written_at_boot_and_on_change_only() {
        let ram = GuestRam::new(&MemoryConfig::new(16 << 20, false).unwrap()).unwrap();
        let mut pm = AcpiPm::new(Box::new(NoLine), channel_pair().unwrap().0);
        let device = VmGenId::new(ram.clone(), [7; 16]).unwrap();
        assert_eq!(in_memory(&ram), [7; 16]);
        assert_ne!(ram.own_writes()[0].take(3) & 1 << (0xFF - 3 * 64), 0, "a tracked write");

        let mut device = VmGenId::restore(&VmGenIdState { id: [8; 16] }, device.ram);
        assert_eq!(in_memory(&ram), [7; 16]);
        assert_eq!(device.save(), VmGenIdState { id: [8; 16] });

        device.change([9; 16], &mut pm).unwrap();
        assert_eq!(in_memory(&ram), [9; 16]);
        assert_eq!(device.save(), VmGenIdState { id: [9; 16] });
        let mut gpe = [0];
        pm.read(8, &mut gpe);
        assert_eq!(gpe, [1], "the guest is told");
    }
}
