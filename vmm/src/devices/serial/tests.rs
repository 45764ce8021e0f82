#![expect(clippy::cast_possible_truncation, reason = "patterns, and sizes that fit")]

use std::sync::MutexGuard;

use proptest::prelude::*;

use super::super::console::{Console, ConsoleConfig, Position};
use super::*;

type Device = Arc<Mutex<Serial>>;

struct Bench {
    console: Console,
    irq: EventFd,
    device: Device,
}

fn bench() -> Bench {
    let console = Console::new(ConsoleConfig::default()).unwrap();
    let irq = EventFd::new().unwrap();
    let device = Serial::new(console.port(), irq.clone());
    device.lock().unwrap().resume();
    Bench { console, irq, device }
}

impl Bench {
    fn uart(&self) -> MutexGuard<'_, Serial> {
        self.device.lock().unwrap()
    }
    fn write(&self, at: u64, value: u8) {
        self.uart().write(at, &[value]);
    }
    fn read(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.uart().read(at, &mut byte);
        byte[0]
    }
    /// What a guest that polls receives.
    fn receive(&self) -> Vec<u8> {
        let mut got = Vec::new();
        while self.read(5) & 1 != 0 {
            got.push(self.read(0));
        }
        got
    }
}

#[test]
fn output_reaches_the_console() {
    let b = bench();
    let mut reader = b.console.subscribe(Position::Now);
    b.write(0, b'o');
    b.uart().write(0, b"k");
    let now = std::time::Instant::now();
    assert_eq!(reader.read(now), Ok(b"ok".to_vec()));
    b.write(3, 0x80); // divisor latch: not output
    b.write(0, 1);
    assert!(reader.read(now).is_err());
}

#[test]
fn input_beyond_the_fifo_waits_and_is_not_lost() {
    let b = bench();
    b.write(1, ENABLE_RECEIVED);
    b.irq.clear();
    let all: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    assert_eq!(b.console.send_input(&all), 1000);
    assert!(b.irq.clear(), "the guest is interrupted");
    assert_eq!(b.uart().save().input.len(), FIFO);
    assert_eq!(b.receive(), all);
    assert_eq!(b.console.send_input(b"x"), 1);
    assert!(b.irq.clear(), "and again for what comes later");
    assert_eq!(b.receive(), b"x");
}

#[test]
fn loopback_holds_input_back() {
    let b = bench();
    let mut reader = b.console.subscribe(Position::Now);
    b.write(4, LOOPBACK);
    b.console.send_input(b"typed");
    b.write(0, b'L');
    assert_eq!(b.receive(), b"L");
    b.write(4, 0);
    assert_eq!(b.receive(), b"typed");
    assert!(reader.read(std::time::Instant::now()).is_err());
}

#[test]
fn parked_it_takes_no_input_and_raises_no_interrupt() {
    let b = bench();
    b.write(1, ENABLE_RECEIVED);
    b.uart().drain();
    b.irq.clear();
    let before = b.uart().save();
    b.console.send_input(b"typed");
    assert_eq!(b.uart().save(), before);
    assert!(!b.irq.clear());
    b.uart().resume();
    assert!(b.irq.clear());
    assert_eq!(b.receive(), b"typed");
}

/// The interrupt was raised, but the guest has not looked: it must hear of it where it goes on.
#[test]
fn a_pending_interrupt_is_raised_again_after_a_restore() {
    let b = bench();
    b.write(1, ENABLE_RECEIVED);
    b.console.send_input(b"typed");
    b.uart().drain();
    let saved = b.uart().save();
    let irq = EventFd::new().unwrap();
    let console = Console::new(ConsoleConfig::default()).unwrap();
    let device = Serial::restore(&saved, console.port(), irq.clone()).unwrap();
    assert!(!irq.clear(), "not before the machine runs");
    device.lock().unwrap().resume();
    assert!(irq.clear());
    let there = Bench { console, irq, device };
    assert_eq!(there.receive(), b"typed");
}

/// A reset makes a new device on the same console; input then goes to the new one.
#[test]
fn a_new_device_takes_over_the_console() {
    let b = bench();
    let new = Serial::new(b.console.port(), b.irq.clone());
    let b = Bench { device: new, ..b };
    b.console.send_input(b"typed");
    b.uart().resume();
    assert_eq!(b.receive(), b"typed");
}

#[test]
fn impossible_states_are_refused() {
    let good = bench().uart().save();
    let bad = [
        SerialState { input: vec![0; FIFO + 1], line_status: 0x61, ..good.clone() },
        SerialState { input: vec![0], ..good.clone() },
        SerialState { line_status: 0x61, ..good.clone() },
        SerialState { line_status: 0, ..good.clone() },
        SerialState { interrupt_enable: 0x10, ..good.clone() },
        SerialState { interrupt_identification: 0, ..good.clone() },
        SerialState { interrupt_identification: 3, ..good.clone() },
        SerialState { interrupt_identification: 0xC1, ..good.clone() },
        SerialState { modem_status: 0, ..good.clone() },
        SerialState::default(),
    ];
    let console = Console::new(ConsoleConfig::default()).unwrap();
    for state in bad {
        let irq = EventFd::new().unwrap();
        assert!(Serial::restore(&state, console.port(), irq).is_err(), "{state:?}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Input(Vec<u8>),
    Park,
    Resume,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..10, 0usize..9).prop_map(|(o, n)| Op::Read(o, n)),
        8 => (0u64..10, prop::collection::vec(any::<u8>(), 0..5)).prop_map(|(o, d)| Op::Write(o, d)),
        4 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Op::Input),
        1 => Just(Op::Park),
        1 => Just(Op::Resume),
    ]
}

proptest! {
    /// Whatever a guest does, the state is one that restores to itself.
    #[test]
    fn any_access_leaves_a_state_that_restores(ops in prop::collection::vec(op(), 0..60)) {
        let (b, other) = (bench(), Console::new(ConsoleConfig::default()).unwrap());
        for op in ops {
            match op {
                Op::Read(at, n) => b.uart().read(at, &mut vec![0; n]),
                Op::Write(at, data) => b.uart().write(at, &data),
                Op::Input(bytes) => drop(b.console.send_input(&bytes)),
                Op::Park => b.uart().drain(),
                Op::Resume => b.uart().resume(),
            }
            let saved = b.uart().save();
            let restored = Serial::restore(&saved, other.port(), EventFd::new().unwrap());
            prop_assert_eq!(restored.unwrap().lock().unwrap().save(), saved);
        }
    }
}
