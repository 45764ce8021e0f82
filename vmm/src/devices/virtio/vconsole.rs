//! virtio-console (virtio 1.2, 5.3): one port, without the multiport control queues.
//!
//! What the guest prints goes to the host's [`ConsolePort`] at once; what the host types waits
//! there until the guest offers buffers. A save takes along what the guest has not read yet.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::QueueState;

use super::ring::{Buffers, Ring, Used, read_config};
use super::thread::{DeviceThread, FIRST_OWN_TOKEN, Worker};
use super::{Activation, DeviceError, Interrupt, VirtioDevice};
use crate::devices::console::ConsolePort;
use crate::eventfd::EventFd;
use crate::memory::GuestRam;
use crate::state::v1::{ConsoleState, VirtioDeviceState};

/// Most input that a save takes along, in bytes.
pub const MAX_PENDING: usize = 64 << 10;

/// `VIRTIO_CONSOLE_F_SIZE` (5.3.3).
const F_SIZE: u64 = 1;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
const INPUT_TOKEN: u64 = FIRST_OWN_TOKEN;
/// Chains handled before other events get their turn.
const BUDGET: usize = 64;
/// Bytes moved at once.
const CHUNK: usize = 4096;
/// Most bytes taken out of one chain. Real drivers send a page at most; a chain that names the
/// same memory a thousand times must not hold up the thread.
const MAX_OUTPUT: usize = 1 << 20;

/// The console device.
pub struct ConsoleDevice {
    port: ConsolePort,
    columns: u16,
    rows: u16,
    /// Input for the next driver; while a driver is on, its worker has it.
    pending: VecDeque<u8>,
    active: Option<DeviceThread<ConsoleWorker>>,
}

impl ConsoleDevice {
    /// A console on `port`. `size` is columns and rows, if the guest is to be told.
    pub fn new(port: ConsolePort, size: Option<(u16, u16)>) -> Self {
        let (columns, rows) = size.unwrap_or((0, 0));
        Self { port, columns, rows, pending: VecDeque::new(), active: None }
    }

    /// The console as it was saved, on a port of this host. It keeps the saved size.
    pub fn restore(port: ConsolePort, state: &ConsoleState) -> Result<Self, DeviceError> {
        let refuse = |reason| Err(DeviceError::State { device: "console", reason });
        if state.pending_input.len() > MAX_PENDING {
            let n = state.pending_input.len();
            return refuse(format!(
                "pending_input has {n} bytes, at most {MAX_PENDING} are possible"
            ));
        }
        if (state.columns == 0) != (state.rows == 0) {
            let (columns, rows) = (state.columns, state.rows);
            return refuse(format!("columns are {columns} and rows {rows}: both or neither are 0"));
        }
        let pending = state.pending_input.iter().copied().collect();
        Ok(Self { port, columns: state.columns, rows: state.rows, pending, active: None })
    }
}

impl VirtioDevice for ConsoleDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        if self.columns == 0 { 0 } else { F_SIZE }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `virtio_console_config` (5.3.4): columns, rows, number of ports, emergency write.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..2].copy_from_slice(&self.columns.to_le_bytes());
        config[2..4].copy_from_slice(&self.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1_u32.to_le_bytes());
        read_config(&config, offset, data);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.reset();
        let Activation { ram, mut queues, interrupt, .. } = activation;
        queues.retain(|q| q.index <= TRANSMIT);
        let kicks: Vec<_> = queues.iter().map(|q| q.kick.clone()).collect();
        let mut kicks_of = kicks.iter().cloned();
        let mut rings = queues.into_iter().map(|q| (q.index, Ring::new(q, ram.mem())));
        // By rising number: two queues can only be these two.
        let mut next = |index| {
            let ring = rings.next().filter(|(i, _)| *i == index).map(|(_, ring)| ring);
            ring.zip(kicks_of.next()).ok_or(DeviceError::MissingQueue(index))
        };
        let (receive, _) = next(RECEIVE)?;
        let (transmit, again) = next(TRANSMIT)?;
        let pending = std::mem::take(&mut self.pending);
        let port = self.port.clone();
        let ready = port.input_ready();
        let worker = ConsoleWorker {
            receive,
            transmit,
            again,
            ram: ram.clone(),
            interrupt,
            pending,
            port,
            ready,
        };
        self.active = Some(DeviceThread::start("console", worker, kicks)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn drain(&mut self) -> Result<(), DeviceError> {
        self.active.as_ref().map_or(Ok(()), DeviceThread::park)
    }

    fn resume(&mut self) {
        if let Some(thread) = &self.active {
            thread.resume();
        }
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        let Some(thread) = &self.active else { return Vec::new() };
        let worker = thread.worker();
        vec![worker.receive.state(), worker.transmit.state()]
    }

    fn save(&self) -> VirtioDeviceState {
        let pending_input = match &self.active {
            Some(thread) => thread.worker().pending.iter().copied().collect(),
            None => self.pending.iter().copied().collect(),
        };
        let (columns, rows) = (self.columns, self.rows);
        VirtioDeviceState::Console(ConsoleState { columns, rows, pending_input })
    }
}

struct ConsoleWorker {
    ram: GuestRam,
    interrupt: Interrupt,
    receive: Ring,
    transmit: Ring,
    /// Notification of the transmit queue, for when the budget ran out.
    again: EventFd,
    port: ConsolePort,
    ready: EventFd,
    /// Input that left the port and has not reached the guest.
    pending: VecDeque<u8>,
}

impl ConsoleWorker {
    /// Port → guest, as far as there are buffers.
    fn feed(&mut self) {
        let mem = self.ram.mem();
        for turn in 0.. {
            if self.pending.is_empty() {
                self.pending.extend(self.port.take(CHUNK));
            }
            if self.pending.is_empty() {
                break;
            }
            if turn == BUDGET {
                self.ready.signal();
                break;
            }
            let Some(chain) = self.receive.pop(mem) else {
                if self.receive.arm(mem) {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let buffers = Buffers::writable(mem, chain).unwrap_or_default();
            let from = self.pending.make_contiguous();
            let written = buffers.write(0, from);
            self.pending.drain(..written);
            let len = u32::try_from(written).unwrap_or(u32::MAX);
            self.receive.give_back(mem, &[Used { head, len }]);
        }
        self.receive.announce(mem, &self.interrupt);
    }

    /// Guest → port.
    fn print(&mut self) {
        let mem = self.ram.mem();
        let mut chunk = [0; CHUNK];
        let mut done = 0;
        while done < BUDGET {
            let Some(chain) = self.transmit.pop(mem) else {
                if self.transmit.arm(mem) {
                    continue;
                }
                break;
            };
            done += 1;
            let head = chain.head_index();
            let buffers = Buffers::readable(mem, chain).unwrap_or_default();
            let mut offset = 0;
            while offset < MAX_OUTPUT {
                let n = buffers.read(offset, &mut chunk);
                if n == 0 {
                    break;
                }
                self.port.write(&chunk[..n]);
                offset += n;
            }
            self.transmit.give_back(mem, &[Used { head, len: 0 }]);
        }
        self.transmit.announce(mem, &self.interrupt);
        if done == BUDGET {
            self.again.signal();
        }
    }
}

impl Worker for ConsoleWorker {
    fn attach(&mut self, events: &Arc<Epoll>) -> io::Result<()> {
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, INPUT_TOKEN);
        Ok(events.add(self.ready.as_fd(), readable)?)
    }

    fn queue(&mut self, slot: usize) {
        if slot == usize::from(RECEIVE) { self.feed() } else { self.print() }
    }

    fn event(&mut self, _: u64, _: EpollFlags) {
        self.ready.clear();
        self.feed();
    }

    /// What was typed so far belongs to the guest and moves with it.
    fn drain(&mut self) {
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        self.pending.extend(self.port.take(room));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::devices::console::{Console, ConsoleConfig, Position};
    use crate::devices::virtio::testkit::{Buf, PATIENCE, Rig};
    use proptest::prelude::*;
    use std::time::Instant;

    fn open() -> Console {
        Console::new(ConsoleConfig::default()).unwrap()
    }

    /// What the guest printed, `n` bytes of it.
    fn printed(console: &Console, n: usize) -> Vec<u8> {
        let mut reader = console.subscribe(Position::Scrollback);
        let mut all = Vec::new();
        while all.len() < n {
            all.extend(reader.read(Instant::now() + PATIENCE).unwrap());
        }
        all
    }

    fn start(device: &mut ConsoleDevice, rig: &Rig) {
        device.activate(rig.activation(0)).unwrap();
        device.resume();
    }

    #[test]
    fn prints_and_reads() {
        let console = open();
        let mut rig = Rig::new(&[64, 64]);
        let mut device = ConsoleDevice::new(console.port(), Some((80, 25)));
        let mut config = [9; 14];
        device.read_config(0, &mut config);
        assert_eq!(config, [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device.features(), 1);
        start(&mut device, &rig);
        let (a, b) = (rig.out(b"hello "), rig.out(b"world"));
        rig.send(1, &[a, b]);
        rig.queues[1].wait_used(1);
        assert_eq!(printed(&console, 11), b"hello world");
        let (first, second) = (rig.inp(3), rig.inp(8));
        rig.send(0, &[first]);
        rig.send(0, &[second]);
        console.send_input(b"typed");
        let used: Vec<u32> = rig.queues[0].wait_used(2).iter().map(|u| u.1).collect();
        assert_eq!(used, [3, 2]);
        assert_eq!((rig.bytes(first), &rig.bytes(second)[..2]), (b"typ".to_vec(), &b"ed"[..]));
        assert!(rig.irqfd.clear());
    }

    #[test]
    fn typed_input_survives_a_save() {
        let console = open();
        let mut rig = Rig::new(&[64, 64]);
        let mut device = ConsoleDevice::new(console.port(), None);
        start(&mut device, &rig);
        let text: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(console.send_input(&text), text.len());
        let taken = rig.inp(10);
        rig.send(0, &[taken]);
        rig.queues[0].wait_used(1);
        device.drain().unwrap();
        assert_eq!(console.port().take(1), []);
        let VirtioDeviceState::Console(state) = device.save() else { unreachable!() };
        assert_eq!(state.pending_input, text[10..]);
        let queues = device.queues();
        assert_eq!(queues[0].1.next_used, 1);
        drop(device);

        let console = open();
        let mut device = ConsoleDevice::restore(console.port(), &state).unwrap();
        let rest = rig.inp(4000);
        rig.queues[0].submit(&[rest]).unwrap();
        let mut activation = rig.activation(0);
        for (active, (index, state)) in activation.queues.iter_mut().zip(queues) {
            assert_eq!(active.index, index);
            active.queue = state.try_into().unwrap();
        }
        device.activate(activation).unwrap();
        assert!(matches!(device.save(), VirtioDeviceState::Console(s) if s == state));
        device.resume();
        // The first buffer was used before: the ring goes on where it stood.
        assert_eq!(rig.queues[0].wait_used(1)[0].1, 3990);
        assert_eq!(rig.bytes(rest)[..3990], text[10..]);
    }

    #[test]
    fn refuses_what_it_never_saved() {
        let state = |n, columns| ConsoleState { columns, rows: 0, pending_input: vec![0; n] };
        let refused =
            ConsoleDevice::restore(open().port(), &state(MAX_PENDING + 1, 0)).err().unwrap();
        assert!(refused.to_string().contains("65537 bytes, at most 65536"), "{refused}");
        let refused = ConsoleDevice::restore(open().port(), &state(0, 80)).err().unwrap();
        assert!(refused.to_string().contains("columns are 80 and rows 0"), "{refused}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Chains of any shape: no panic, and a good chain after them still works.
        #[test]
        fn survives_any_chain(
            chains in prop::collection::vec(
                prop::collection::vec((any::<bool>(), 0_u64..20 << 20, any::<u32>()), 1..4), 0..12),
        ) {
            let console = open();
            let mut rig = Rig::new(&[64, 64]);
            let mut device = ConsoleDevice::new(console.port(), None);
            // Rings and test data lie below; hostile buffers above.
            let above = 8 << 20;
            for chain in &chains {
                let bufs: Vec<Buf> = chain.iter()
                    .map(|(inp, gpa, len)| {
                        let len = len % (1 << 16);
                        if *inp { Buf::In(above + gpa, len) } else { Buf::Out(above + gpa, len) }
                    })
                    .collect();
                rig.queues[0].submit(&bufs).unwrap();
                rig.queues[1].submit(&bufs).unwrap();
            }
            console.send_input(&[7; 1000]);
            start(&mut device, &rig);
            let good = rig.out(b"still here");
            rig.send(1, &[good]);
            rig.queues[1].wait_used(chains.len() + 1);
            let mut reader = console.subscribe(Position::Scrollback);
            prop_assert!(reader.wait_for(b"still here", Instant::now() + PATIENCE).is_ok());
        }
    }
}
