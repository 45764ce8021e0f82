//! The keyboard controller's one function that is left: resetting the machine.
//!
//! It has no keyboard, no state and no interrupt.

use super::bus::BusDevice;
use crate::events::{EventSink, GuestEvent};

/// Offset of the command and status port (0x64).
const COMMAND: u64 = 4;
/// Offset of system control port B (0x61), which lies within the window.
const CONTROL_B: u64 = 1;
/// Port B says that timer 2 has fired, so that nobody waits for a speaker tick.
const TIMER_2_OUT: u8 = 1 << 5;
/// Pulses the CPU's reset line.
const RESET: u8 = 0xFE;

/// The controller's ports. A reset is reported, not done: the guest runs on until its owner acts.
#[derive(Debug)]
pub struct I8042 {
    events: EventSink,
}

impl I8042 {
    /// A controller that reports resets to `events`.
    pub fn new(events: EventSink) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    /// Status and data read as zero: no output waits, and a command can be given at any time.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (CONTROL_B, Some(first)) = (offset, data.first_mut()) {
            *first = TIMER_2_OUT;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data.first() == Some(&RESET) {
            self.events.send(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::channel_pair;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_the_reset_command_resets(offset in 0u64..6, data in prop::collection::vec(any::<u8>(), 0..9)) {
            let (sink, source) = channel_pair().unwrap();
            let mut device = I8042::new(sink);
            device.write(offset, &data);
            let expected = (offset == 4 && data.first() == Some(&0xFE)).then_some(GuestEvent::Reset);
            prop_assert_eq!(source.try_next(), expected);
            let mut out = vec![0xAA; data.len()];
            device.read(offset, &mut out);
            prop_assert!(out.iter().skip(1).all(|b| *b == 0));
        }
    }

    #[test]
    fn reset_is_reported() {
        let (sink, source) = channel_pair().unwrap();
        I8042::new(sink).write(4, &[0xFE]);
        assert_eq!(source.try_next(), Some(GuestEvent::Reset));
    }
}
