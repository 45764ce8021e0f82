//! What may be done to a machine whether it runs or stands still. It gives no right to run it.

use std::sync::{Arc, Mutex, PoisonError};

use super::announce;
use super::throttle::Throttle;
use crate::cpu::Shown;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::virtio::net::Announcer;
use crate::devices::vmgenid::VmGenId;

/// A handle for knobs and buttons. Outlives the machine harmlessly.
#[derive(Clone)]
pub struct Controls {
    throttle: Arc<Throttle>,
    pm: Arc<Mutex<AcpiPm>>,
    vmgenid: Arc<Mutex<VmGenId>>,
    announcers: Arc<[Announcer]>,
    cpu: Arc<Shown>,
}

impl std::fmt::Debug for Controls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controls").finish_non_exhaustive()
    }
}

impl Controls {
    pub(super) fn new(
        throttle: Arc<Throttle>,
        pm: Arc<Mutex<AcpiPm>>,
        vmgenid: Arc<Mutex<VmGenId>>,
        announcers: Arc<[Announcer]>,
        cpu: Arc<Shown>,
    ) -> Self {
        Self { throttle, pm, vmgenid, announcers, cpu }
    }

    /// The CPU that the guest has, as it is shown.
    pub fn cpu(&self) -> &Shown {
        &self.cpu
    }

    /// Share of time that each vCPU may run, in percent.
    pub fn cpu_share(&self) -> u8 {
        self.throttle.share()
    }

    /// Sets that share, 1 to 100.
    pub fn set_cpu_share(&self, percent: u8) -> std::io::Result<()> {
        self.throttle.set_share(percent)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.pm.lock().unwrap_or_else(PoisonError::into_inner).press_power_button();
    }

    /// Tells the networks on all its cards where the guest is now: at once and again for about a
    /// second, on a thread of its own. Call it after the `resume` in a new place. While the
    /// machine stands still nothing goes out.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn announce(&self) -> std::io::Result<()> {
        announce::start(self.announcers.clone())
    }

    /// Gives the guest a new generation id and tells it: it was cloned or went back in time.
    pub fn change_generation(&self, id: [u8; 16]) -> std::io::Result<()> {
        let mut vmgenid = self.vmgenid.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pm = self.pm.lock().unwrap_or_else(PoisonError::into_inner);
        vmgenid.change(id, &mut pm).map_err(std::io::Error::other)
    }
}
