//! Guest time across a save and a restore.
//!
//! Guest time never goes back. `Account` lets it jump forward by the time that passed, as a
//! guest that was merely paused would see; `Freeze` continues at the moment of the save, for
//! files that are loaded much later. The method is that of the kernel's
//! Documentation/virt/kvm/devices/vcpu.rst (`KVM_VCPU_TSC_OFFSET`).

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use nix::time::{ClockId, clock_gettime};

use crate::kvm::{KvmError, Vm, ioctls};
use crate::state::v1::ClockState;

/// Longest pause that is believed: ten years.
const LONGEST_PAUSE_NS: u64 = 10 * 365 * 24 * 3600 * 1_000_000_000;

/// What guest time does about the pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// Jumps forward by the time that passed.
    Account,
    /// Continues where it was.
    Freeze,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReport {
    /// Time that the guest's clocks were put forward, nanoseconds.
    pub accounted_ns: u64,
    /// The pause was implausible (the host's clock went back, or jumped by years), so none of it
    /// was accounted for.
    pub implausible: bool,
}

/// This boot of this host, or zeroes if the kernel does not tell.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse_uuid(text.trim()).unwrap_or_default()
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32).map(u128::to_be_bytes)
}

/// Reads kvmclock, wall clock and TSC at one instant.
pub fn sample(vm: &Vm, boot_id: [u8; 16]) -> Result<ClockState, KvmError> {
    let clock = vm.fd().get_clock().map_err(KvmError::call("KVM_GET_CLOCK"))?;
    let both = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    let (realtime_ns, host_tsc) = if clock.flags & both == both {
        (clock.realtime, clock.host_tsc)
    } else {
        // Older kernels: a few microseconds apart, which is within what NTP does.
        (wall_clock_ns(), ioctls::host_tsc())
    };
    Ok(ClockState { kvmclock_ns: clock.clock, realtime_ns, host_tsc, boot_id })
}

fn wall_clock_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME);
    now.map_or(0, |t| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000) + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}

/// Sets kvmclock to continue from `clock` at the value that the plan says.
pub fn set_kvmclock(vm: &Vm, ns: u64) -> Result<(), KvmError> {
    let data = kvm_clock_data { clock: ns, ..Default::default() };
    vm.fd().set_clock(&data).map_err(KvmError::call("KVM_SET_CLOCK"))
}

/// What to set, worked out from the saved clock and the host's clocks now. Pure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// kvmclock, nanoseconds.
    pub kvmclock_ns: u64,
    /// What to add to each vCPU's saved TSC offset.
    pub offset_delta: i64,
    /// For the report.
    pub report: ClockReport,
}

/// Works out a restore at the instant `now` of a clock saved as `saved`; the guest's TSC runs at
/// `tsc_khz`.
pub fn plan(saved: &ClockState, now: &ClockState, tsc_khz: u32, mode: ClockMode) -> Plan {
    let same_boot = saved.boot_id == now.boot_id && saved.boot_id != [0; 16];
    let elapsed_ns = match mode {
        ClockMode::Freeze => Some(0),
        // The TSC is the better clock while it goes on; the wall clock may be set.
        ClockMode::Account if same_boot => now
            .host_tsc
            .checked_sub(saved.host_tsc)
            .map(|ticks| scale(ticks, 1_000_000, u64::from(tsc_khz).max(1))),
        ClockMode::Account => now.realtime_ns.checked_sub(saved.realtime_ns),
    };
    let plausible = elapsed_ns.filter(|ns| *ns <= LONGEST_PAUSE_NS);
    let elapsed = plausible.unwrap_or(0);
    // Guest TSC must be saved.host_tsc + offset + elapsed at the instant `now`.
    let ticks = scale(elapsed, u64::from(tsc_khz), 1_000_000);
    let exact = same_boot && mode == ClockMode::Account && plausible.is_some();
    let offset_delta = if exact {
        // The host's TSC went on by itself: nothing to add, nothing to round.
        0
    } else {
        saved.host_tsc.wrapping_add(ticks).wrapping_sub(now.host_tsc).cast_signed()
    };
    Plan {
        kvmclock_ns: saved.kvmclock_ns.saturating_add(elapsed),
        offset_delta,
        report: ClockReport { accounted_ns: elapsed, implausible: plausible.is_none() },
    }
}

/// `value * mul / div` without overflow on the way.
fn scale(value: u64, mul: u64, div: u64) -> u64 {
    let wide = u128::from(value) * u128::from(mul) / u128::from(div);
    u64::try_from(wide).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KHZ: u32 = 2_500_000;

    fn at(kvmclock_ns: u64, realtime_ns: u64, host_tsc: u64, boot: u8) -> ClockState {
        ClockState { kvmclock_ns, realtime_ns, host_tsc, boot_id: [boot; 16] }
    }

    #[test]
    fn same_boot_keeps_the_offset() {
        let plan = plan(&at(100, 0, 1_000, 1), &at(0, 9, 2_501_000, 1), KHZ, ClockMode::Account);
        assert_eq!(plan.offset_delta, 0);
        assert_eq!(plan.kvmclock_ns, 100 + 1_000_000);
    }

    #[test]
    fn a_wall_clock_that_went_back_is_reported_and_not_followed() {
        let plan = plan(&at(100, 500, 7, 1), &at(0, 400, 9, 2), KHZ, ClockMode::Account);
        assert_eq!((plan.kvmclock_ns, plan.report.implausible), (100, true));
    }

    proptest! {
        /// Guest TSC and kvmclock move by the same time, forward, whatever the hosts' TSCs are.
        #[test]
        fn both_clocks_agree(
            tsc0 in any::<u64>(), tsc1 in any::<u64>(), offset in any::<i64>(),
            clock in 0u64..1 << 60, real in 0u64..1 << 62, pause in 0u64..LONGEST_PAUSE_NS,
            freeze in any::<bool>(),
        ) {
            let mode = if freeze { ClockMode::Freeze } else { ClockMode::Account };
            let plan = plan(&at(clock, real, tsc0, 1), &at(0, real + pause, tsc1, 2), KHZ, mode);
            let wanted = if freeze { 0 } else { pause };
            prop_assert_eq!(plan.kvmclock_ns - clock, wanted);
            let before = tsc0.wrapping_add_signed(offset);
            let after = tsc1.wrapping_add_signed(offset.wrapping_add(plan.offset_delta));
            prop_assert_eq!(after.wrapping_sub(before), scale(wanted, u64::from(KHZ), 1_000_000));
        }
    }
}
