//! The 16550 on COM1: `vm-superio`'s registers between the bus and a [`ConsolePort`].
//!
//! Output goes to the console from the guest's own thread. Input waits in the console and is fed
//! whenever the FIFO has room: when it comes, and when the guest reads. While parked (before the
//! first `resume`, and after `drain`) the device takes no input and raises no interrupt.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::{self, NoEvents};
use vm_superio::{Serial as Uart, Trigger};

use super::bus::BusDevice;
use super::console::{ConsolePort, InputListener};
use crate::eventfd::EventFd;
use crate::memory::layout::SERIAL_PORTS;
use crate::state::v1::SerialState;

/// Bytes of received data that the device holds.
const FIFO: usize = 64;
/// Offsets of the registers that open room for input.
const DATA: u64 = 0;
const MODEM_CONTROL: u64 = 4;
/// Modem control: what is sent comes back, and nothing is received.
const LOOPBACK: u8 = 1 << 4;
/// Interrupt enable: received data, transmitter empty.
const ENABLE_RECEIVED: u8 = 1;
/// Every bit of interrupt enable.
const ENABLE: u8 = 0x0F;
/// Interrupt identification: nothing, transmitter empty, received data.
const NO_INTERRUPT: u8 = 1;
const PENDING: u8 = 0b110;
/// Line status: data waits; the transmitter is empty, which it always is.
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Modem status: clear to send, data set ready, carrier. They never change.
const MODEM_STATUS: u8 = 0xB0;

/// A saved state that the device cannot have been in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("saved state of the serial port: {what}; the saved state is damaged, use another")]
pub struct BadSerialState {
    what: String,
}

/// The interrupt line: an irqfd, and whether it may be used now.
#[derive(Clone, Debug)]
struct Irq {
    fd: EventFd,
    /// While set, an interrupt is remembered by the registers only.
    parked: Arc<AtomicBool>,
}

impl Irq {
    fn parked(fd: EventFd) -> Self {
        Self { fd, parked: Arc::new(AtomicBool::new(true)) }
    }
}

impl Trigger for Irq {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        if !self.parked.load(Ordering::Acquire) {
            self.fd.signal();
        }
        Ok(())
    }
}

/// The console as the UART's output.
#[derive(Debug)]
struct Output(ConsolePort);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port.
pub struct Serial {
    uart: Uart<Irq, NoEvents, Output>,
    port: ConsolePort,
    irq: Irq,
    loopback: bool,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial").field("state", &self.uart.state()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A port after a reset, parked. `irq` becomes the irqfd of COM1's line.
    pub fn new(port: ConsolePort, irq: EventFd) -> Arc<Mutex<Self>> {
        let irq = Irq::parked(irq);
        let uart = Uart::with_events(irq.clone(), NoEvents, Output(port.clone()));
        Self::connect(Self { uart, port, irq, loopback: false })
    }

    /// A port as it was saved, parked.
    pub fn restore(
        state: &SerialState,
        port: ConsolePort,
        irq: EventFd,
    ) -> Result<Arc<Mutex<Self>>, BadSerialState> {
        validate(state)?;
        let irq = Irq::parked(irq);
        let loopback = state.modem_control & LOOPBACK != 0;
        let output = Output(port.clone());
        let uart = Uart::from_state(&to_uart(state), irq.clone(), NoEvents, output)
            .map_err(|e| BadSerialState { what: e.to_string() })?;
        Ok(Self::connect(Self { uart, port, irq, loopback }))
    }

    /// Has the console tell the device of input.
    fn connect(self) -> Arc<Mutex<Self>> {
        let port = self.port.clone();
        let device = Arc::new(Mutex::new(self));
        let listener: std::sync::Weak<Mutex<Self>> = Arc::downgrade(&device);
        port.on_input(listener);
        device
    }

    /// Parks the device: no input is taken and no interrupt raised until [`resume`](Self::resume).
    /// Nothing is ever in flight.
    pub fn drain(&mut self) {
        self.irq.parked.store(true, Ordering::Release);
    }

    /// Lets the device work. A pending interrupt is raised again, in case it was lost with the
    /// interrupt controllers' old state.
    pub fn resume(&mut self) {
        self.irq.parked.store(false, Ordering::Release);
        let state = self.uart.state();
        let received = !state.in_buffer.is_empty() && state.interrupt_enable & ENABLE_RECEIVED != 0;
        if received || state.interrupt_identification & PENDING != 0 {
            self.irq.fd.signal();
        }
        self.feed();
    }

    /// The state to save. Input that still waits in the console is not part of it.
    pub fn save(&self) -> SerialState {
        let s = self.uart.state();
        SerialState {
            divisor_low: s.baud_divisor_low,
            divisor_high: s.baud_divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            input: s.in_buffer,
        }
    }

    /// Moves input from the console to the FIFO, as much as there is room for.
    fn feed(&mut self) {
        let room = self.uart.fifo_capacity();
        if room == 0 || self.loopback || self.irq.parked.load(Ordering::Acquire) {
            return;
        }
        let input = self.port.take(room);
        if !input.is_empty() {
            // It fits, there is no loopback, and the interrupt cannot fail.
            let _ = self.uart.enqueue_raw_bytes(&input);
        }
    }
}

impl InputListener for Mutex<Serial> {
    fn input_ready(&self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).feed();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = match register(at) {
                Some(register) => self.uart.read(register),
                None => 0xFF,
            };
            if at == DATA {
                self.feed();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            let Some(register) = register(at) else { return };
            // Neither the console nor the interrupt can fail.
            let _ = self.uart.write(register, *byte);
            if at == MODEM_CONTROL {
                self.loopback = byte & LOOPBACK != 0;
                self.feed();
            }
        }
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|r| u16::from(*r) < SERIAL_PORTS)
}

fn validate(state: &SerialState) -> Result<(), BadSerialState> {
    let bad = |what: String| Err(BadSerialState { what });
    if state.input.len() > FIFO {
        return bad(format!("{} bytes of input, but at most {FIFO} fit", state.input.len()));
    }
    if state.interrupt_enable & !ENABLE != 0 {
        return bad(format!("interrupt enable is {:#x}", state.interrupt_enable));
    }
    let id = state.interrupt_identification;
    if id != NO_INTERRUPT && (id & !PENDING != 0 || id == 0) {
        return bad(format!("interrupt identification is {id:#x}"));
    }
    let ready = if state.input.is_empty() { 0 } else { DATA_READY };
    if state.line_status != TRANSMITTER_EMPTY | ready {
        return bad(format!("line status is {:#x}", state.line_status));
    }
    if state.modem_status != MODEM_STATUS {
        return bad(format!("modem status is {:#x}", state.modem_status));
    }
    Ok(())
}

fn to_uart(s: &SerialState) -> serial::SerialState {
    serial::SerialState {
        baud_divisor_low: s.divisor_low,
        baud_divisor_high: s.divisor_high,
        interrupt_enable: s.interrupt_enable,
        interrupt_identification: s.interrupt_identification,
        line_control: s.line_control,
        line_status: s.line_status,
        modem_control: s.modem_control,
        modem_status: s.modem_status,
        scratch: s.scratch,
        in_buffer: s.input.clone(),
    }
}

#[cfg(test)]
mod tests;
