//! ACPI fixed hardware (ACPI 6.5, 4.8.3 and 4.8.4): power button, sleep control, one general
//! purpose event, reset register. [`crate::boot`] describes it to the guest.
//!
//! The SCI is level triggered: its line is high exactly while an enabled status bit is set.

use std::fmt;

use super::bus::BusDevice;
use crate::events::{EventSink, GuestEvent};
use crate::memory::layout::{
    ACPI_GPE_GENERATION, ACPI_GPE0_PORT, ACPI_PM_PORT, ACPI_PM_PORTS, ACPI_PM1_CONTROL_PORT,
    ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_SLEEP_TYPE_OFF,
};
use crate::state::v1::PmState;

/// A level-triggered interrupt line.
pub trait IrqLine: Send {
    /// Drives the line high or low. Setting the level that it has does nothing.
    fn set(&self, level: bool);
}

/// PM1 status and enable: power button.
const POWER_BUTTON: u16 = 1 << 8;
/// Bits of PM1 enable that exist: timer, global lock, power and sleep button, RTC.
const PM1_ENABLE: u16 = 1 | 1 << 5 | POWER_BUTTON | 1 << 9 | 1 << 10;
/// PM1 control: in ACPI mode. Always set: there is no other mode.
const SCI_ENABLED: u16 = 1;
/// Bits of PM1 control that hold what is written: bus master reload, sleep type.
const PM1_CONTROL: u16 = 1 << 1 | 7 << 10;
/// PM1 control, written only: go to sleep.
const SLEEP_ENABLE: u16 = 1 << 13;
/// The general purpose event of the generation id.
const GENERATION: u8 = 1 << ACPI_GPE_GENERATION;

const PM1_STATUS_AT: u64 = 0;
const PM1_ENABLE_AT: u64 = 2;
const PM1_CONTROL_AT: u64 = (ACPI_PM1_CONTROL_PORT - ACPI_PM_PORT) as u64;
const GPE0_STATUS_AT: u64 = (ACPI_GPE0_PORT - ACPI_PM_PORT) as u64;
const GPE0_ENABLE_AT: u64 = GPE0_STATUS_AT + 1;
const RESET_AT: u64 = (ACPI_RESET_PORT - ACPI_PM_PORT) as u64;

/// A saved state that the device cannot have been in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "saved state of the ACPI hardware: {register} is {value:#x}, which has bits that it cannot \
     have; the saved state is damaged, use another"
)]
pub struct BadPmState {
    register: &'static str,
    value: u16,
}

/// The registers, and who hears of them.
pub struct AcpiPm {
    state: PmState,
    line: Box<dyn IrqLine>,
    events: EventSink,
}

impl fmt::Debug for AcpiPm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPm").field("state", &self.state).finish_non_exhaustive()
    }
}

impl AcpiPm {
    /// The hardware after a reset.
    pub fn new(line: Box<dyn IrqLine>, events: EventSink) -> Self {
        let state = PmState { pm1_control: SCI_ENABLED, ..PmState::default() };
        let pm = Self { state, line, events };
        pm.drive();
        pm
    }

    /// The hardware as it was saved. The line is driven at once; call [`drive`](Self::drive) again
    /// if the interrupt controllers are restored later.
    pub fn restore(
        state: &PmState,
        line: Box<dyn IrqLine>,
        events: EventSink,
    ) -> Result<Self, BadPmState> {
        let check = |register, value: u16, allowed: u16| {
            if value & !allowed == 0 { Ok(()) } else { Err(BadPmState { register, value }) }
        };
        check("PM1 status", state.pm1_status, POWER_BUTTON)?;
        check("PM1 enable", state.pm1_enable, PM1_ENABLE)?;
        check("PM1 control", state.pm1_control, SCI_ENABLED | PM1_CONTROL)?;
        check("PM1 control without SCI_EN", !state.pm1_control & SCI_ENABLED, 0)?;
        check("GPE0 status", state.gpe0_status.into(), GENERATION.into())?;
        check("GPE0 enable", state.gpe0_enable.into(), GENERATION.into())?;
        let pm = Self { state: state.clone(), line, events };
        pm.drive();
        Ok(pm)
    }

    /// The state to save.
    pub fn save(&self) -> PmState {
        self.state.clone()
    }

    /// Presses the power button. `false` if the guest does not listen: it will see the press when
    /// it starts to.
    pub fn press_power_button(&mut self) -> bool {
        self.state.pm1_status |= POWER_BUTTON;
        self.drive();
        self.state.pm1_enable & POWER_BUTTON != 0
    }

    /// Tells the guest that the VM generation id changed.
    pub fn signal_generation_change(&mut self) {
        self.state.gpe0_status |= GENERATION;
        self.drive();
    }

    /// Sets the SCI line to what the registers say.
    pub fn drive(&self) {
        let PmState { pm1_status, pm1_enable, gpe0_status, gpe0_enable, .. } = self.state;
        self.line.set(pm1_status & pm1_enable != 0 || gpe0_status & gpe0_enable != 0);
    }

    fn read_byte(&self, offset: u64) -> u8 {
        let s = &self.state;
        let word = |base: u64, value: u16| value.to_le_bytes()[usize::from(offset != base)];
        match offset {
            0..=1 => word(PM1_STATUS_AT, s.pm1_status),
            2..=3 => word(PM1_ENABLE_AT, s.pm1_enable),
            4..=5 => word(PM1_CONTROL_AT, s.pm1_control),
            GPE0_STATUS_AT => s.gpe0_status,
            GPE0_ENABLE_AT => s.gpe0_enable,
            _ => 0,
        }
    }

    fn write_byte(&mut self, offset: u64, value: u8) {
        let s = &mut self.state;
        // The byte in its place in a word, and the bits of the word that it covers.
        let (shift, word) =
            if offset.is_multiple_of(2) { (0, value.into()) } else { (8, u16::from(value) << 8) };
        let covers = 0xFF << shift;
        match offset {
            0..=1 => s.pm1_status &= !word, // writing one clears
            2..=3 => s.pm1_enable = (s.pm1_enable & !covers) | (word & PM1_ENABLE),
            4..=5 => {
                s.pm1_control = (s.pm1_control & !covers) | (word & PM1_CONTROL) | SCI_ENABLED;
                let off = u16::from(ACPI_SLEEP_TYPE_OFF) << 10;
                if word & SLEEP_ENABLE != 0 && s.pm1_control & (7 << 10) == off {
                    self.events.send(GuestEvent::PowerOff);
                }
            }
            GPE0_STATUS_AT => s.gpe0_status &= !value,
            GPE0_ENABLE_AT => s.gpe0_enable = value & GENERATION,
            RESET_AT if value == ACPI_RESET_VALUE => self.events.send(GuestEvent::Reset),
            _ => {}
        }
    }
}

impl BusDevice for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.read_byte(at);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..u64::from(ACPI_PM_PORTS)).zip(data) {
            self.write_byte(at, *byte);
        }
        self.drive();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EventSource, channel_pair};
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Clone, Default)]
    struct Line(Arc<AtomicBool>);

    impl IrqLine for Line {
        fn set(&self, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }

    impl Line {
        fn high(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    fn device() -> (AcpiPm, Line, EventSource) {
        let (line, (sink, source)) = (Line::default(), channel_pair().unwrap());
        (AcpiPm::new(Box::new(line.clone()), sink), line, source)
    }

    fn word(pm: &mut AcpiPm, at: u64) -> u16 {
        let mut b = [0; 2];
        pm.read(at, &mut b);
        u16::from_le_bytes(b)
    }

    #[test]
    fn power_button_raises_the_sci_until_it_is_acknowledged() {
        let (mut pm, line, _) = device();
        assert_eq!(word(&mut pm, 4), 1, "in ACPI mode");
        assert!(!pm.press_power_button(), "nobody listens yet");
        assert!(!line.high());
        pm.write(2, &0x0120u16.to_le_bytes());
        assert!(line.high(), "enabling shows what is pending");
        assert_eq!(word(&mut pm, 0), 0x100);
        pm.write(0, &0x100u16.to_le_bytes());
        assert!(!line.high());
        assert!(pm.press_power_button());
        assert!(line.high());
        pm.write(2, &[0, 0]);
        assert!(!line.high(), "disabled");
    }

    #[test]
    fn generation_event_uses_its_own_registers() {
        let (mut pm, line, _) = device();
        pm.write(9, &[0xFF]);
        pm.signal_generation_change();
        assert!(line.high());
        assert_eq!(word(&mut pm, 8), 0x0101);
        pm.write(8, &[1]);
        assert!(!line.high());
        assert_eq!(word(&mut pm, 8), 0x0100);
    }

    #[test]
    fn sleep_and_reset_are_reported() {
        let (mut pm, _, events) = device();
        pm.write(4, &(5u16 << 10).to_le_bytes());
        assert_eq!(events.try_next(), None, "the type alone does nothing");
        pm.write(4, &(1u16 << 13 | 3 << 10).to_le_bytes());
        assert_eq!(events.try_next(), None, "not S5");
        pm.write(4, &(1u16 << 13 | 5 << 10).to_le_bytes());
        assert_eq!(events.try_next(), Some(GuestEvent::PowerOff));
        assert_eq!(word(&mut pm, 4), 5 << 10 | 1, "sleep enable reads as zero");
        pm.write(5, &[1 << 5 | 5 << 2]);
        assert_eq!(events.try_next(), Some(GuestEvent::PowerOff), "also by the byte");
        pm.write(15, &[2]);
        assert_eq!(events.try_next(), None);
        pm.write(15, &[1]);
        assert_eq!(events.try_next(), Some(GuestEvent::Reset));
    }

    #[test]
    fn impossible_states_are_refused() {
        let good = device().0.save();
        let bad = [
            PmState { pm1_status: 0x200, ..good.clone() },
            PmState { pm1_enable: 0x8000, ..good.clone() },
            PmState { pm1_control: 0, ..good.clone() },
            PmState { pm1_control: 1 | 1 << 13, ..good.clone() },
            PmState { gpe0_status: 2, ..good.clone() },
            PmState { gpe0_enable: 0x80, ..good.clone() },
        ];
        for state in bad {
            let sink = channel_pair().unwrap().0;
            assert!(AcpiPm::restore(&state, Box::new(Line::default()), sink).is_err(), "{state:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64, Vec<u8>),
        Press,
        Generation,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (0u64..18, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(o, d)| Op::Write(o, d)),
            1 => Just(Op::Press),
            1 => Just(Op::Generation),
        ]
    }

    proptest! {
        /// Whatever a guest does, the state is one that restores to itself, and the line says what
        /// the registers say.
        #[test]
        fn any_access_leaves_a_state_that_restores(ops in prop::collection::vec(op(), 0..60)) {
            let (mut pm, line, _events) = device();
            for op in ops {
                match op {
                    Op::Write(at, data) => pm.write(at, &data),
                    Op::Press => drop(pm.press_power_button()),
                    Op::Generation => pm.signal_generation_change(),
                }
                let mut all = [0; 16];
                pm.read(0, &mut all);
                let pending = (0..2).any(|i| all[i] & all[i + 2] != 0) || all[8] & all[9] != 0;
                prop_assert_eq!(line.high(), pending);
                let saved = pm.save();
                let (line, sink) = (Line::default(), channel_pair().unwrap().0);
                let restored = AcpiPm::restore(&saved, Box::new(line.clone()), sink).unwrap();
                prop_assert_eq!(restored.save(), saved);
                prop_assert_eq!(line.high(), pending);
            }
        }
    }
}
