use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::{QueueState, QueueT};

use super::*;
use crate::devices::virtio::testkit::{Arena, DriverQueue, ram};
use crate::state::v1::{QueueStateV1, RngState, VirtioDeviceState};

const DEVICE_FEATURE: u64 = 1 << 3 | 1 << 40;
const SIZES: [u16; 2] = [8, 4];

/// What happened to the fake device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Activate { features: u64, queues: Vec<u16> },
    Resume,
    Drain,
    Reset,
    Config(u32, Vec<u8>),
}

#[derive(Default)]
struct Fake {
    calls: Arc<Mutex<Vec<Call>>>,
    live: Vec<(u16, QueueState)>,
    interrupt: Option<Interrupt>,
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURE
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.fill(u8::try_from(offset & 0xFF).unwrap());
    }
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.calls.lock().unwrap().push(Call::Config(offset, data.to_vec()));
    }
    fn activate(&mut self, a: Activation) -> Result<(), DeviceError> {
        assert!(self.live.is_empty() && self.interrupt.is_none(), "activated twice");
        let queues: Vec<_> = a.queues.iter().map(|q| q.index).collect();
        for q in &a.queues {
            assert!(q.queue.is_valid(a.ram.mem()));
        }
        if queues.is_empty() {
            return Err(DeviceError::MissingQueue(0));
        }
        self.live = a.queues.iter().map(|q| (q.index, q.queue.state())).collect();
        self.interrupt = Some(a.interrupt);
        self.calls.lock().unwrap().push(Call::Activate { features: a.features, queues });
        Ok(())
    }
    fn reset(&mut self) {
        self.live.clear();
        self.interrupt = None;
        self.calls.lock().unwrap().push(Call::Reset);
    }
    fn drain(&mut self) -> Result<(), DeviceError> {
        self.calls.lock().unwrap().push(Call::Drain);
        Ok(())
    }
    fn resume(&mut self) {
        self.calls.lock().unwrap().push(Call::Resume);
    }
    fn queues(&self) -> Vec<(u16, QueueState)> {
        self.live.clone()
    }
    fn save(&self) -> VirtioDeviceState {
        VirtioDeviceState::Rng(RngState {})
    }
}

struct Bench {
    transport: MmioTransport,
    calls: Arc<Mutex<Vec<Call>>>,
    irqfd: EventFd,
    rings: Vec<DriverQueue>,
    ram: GuestRam,
}

impl Bench {
    fn new() -> Self {
        let ram = ram();
        let mut arena = Arena::new(&ram, 0);
        let rings = SIZES.iter().map(|s| DriverQueue::new(&ram, &mut arena, *s)).collect();
        let (fake, irqfd) = (Fake::default(), EventFd::new().unwrap());
        let calls = fake.calls.clone();
        let transport = MmioTransport::new(Box::new(fake), ram.clone(), irqfd.clone()).unwrap();
        Self { transport, calls, irqfd, rings, ram }
    }

    fn r(&mut self, offset: u32) -> u32 {
        let mut word = [0xAA; 4];
        self.transport.read(offset.into(), &mut word);
        u32::from_le_bytes(word)
    }

    fn w(&mut self, offset: u32, value: u32) {
        self.transport.write(offset.into(), &value.to_le_bytes());
    }

    fn status(&mut self) -> u32 {
        self.r(reg::VIRTIO_MMIO_STATUS)
    }

    fn add_status(&mut self, bit: u32) -> u32 {
        let status = self.status() | bit;
        self.w(reg::VIRTIO_MMIO_STATUS, status);
        self.status()
    }

    fn features(&mut self, features: u64) {
        for (sel, half) in [(0, features & 0xFFFF_FFFF), (1, features >> 32)] {
            self.w(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, sel);
            self.w(reg::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
    }

    fn lay_out(&mut self, n: usize) {
        let q = &self.rings[n];
        let (size, parts) = (q.size, [q.desc, q.avail, q.used]);
        self.w(reg::VIRTIO_MMIO_QUEUE_SEL, u32::try_from(n).unwrap());
        self.w(reg::VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (at, reg) in parts.into_iter().zip([0x80, 0x90, 0xA0]) {
            self.w(reg, u32::try_from(at & 0xFFFF_FFFF).unwrap());
            self.w(reg + 4, u32::try_from(at >> 32).unwrap());
        }
        self.w(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn turn_on(&mut self, features: u64) {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.features(features);
        assert_eq!(self.add_status(FEATURES_OK), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.lay_out(0);
        self.lay_out(1);
        assert_eq!(self.add_status(DRIVER_OK), 15);
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

#[test]
fn a_driver_turns_the_device_on_and_resets_it() {
    let mut b = Bench::new();
    assert_eq!((b.r(0), b.r(4), b.r(8)), (u32::from_le_bytes(*b"virt"), 2, 42));
    let mut offered = 0;
    for sel in [0, 1] {
        b.w(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, sel);
        offered |= u64::from(b.r(reg::VIRTIO_MMIO_DEVICE_FEATURES)) << (32 * sel);
    }
    assert_eq!(offered, DEVICE_FEATURE | 1 << 32 | 1 << 29 | 1 << 28);
    b.w(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(b.r(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    let features = 1 << 32 | 1 << 29 | 1 << 3;
    b.turn_on(features);
    let expected = [Call::Activate { features, queues: vec![0, 1] }, Call::Resume];
    assert_eq!(b.take_calls(), expected);

    // A notification that no ioeventfd caught.
    b.w(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
    b.w(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 7);
    let kicked: Vec<_> = b.transport.notify_fds().iter().map(EventFd::clear).collect();
    assert_eq!(kicked, [false, true]);

    // Interrupts are told, and acknowledged bit by bit.
    b.transport.interrupt.used_ring();
    b.transport.interrupt.config_change();
    assert!(b.irqfd.clear());
    assert_eq!(
        (b.r(reg::VIRTIO_MMIO_INTERRUPT_STATUS), b.r(reg::VIRTIO_MMIO_CONFIG_GENERATION)),
        (3, 1)
    );
    b.w(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(b.r(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);

    b.w(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(b.take_calls(), [Call::Reset]);
    assert_eq!((b.status(), b.r(reg::VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    assert_eq!(b.r(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    b.turn_on(features);
    assert_eq!(b.take_calls(), expected);
}

#[test]
fn features_are_refused_if_not_offered_or_without_version_1() {
    for features in [0, 1 << 29, 1 << 32 | 1 << 4, u64::MAX] {
        let mut b = Bench::new();
        b.add_status(ACKNOWLEDGE);
        b.add_status(DRIVER);
        b.features(features);
        assert_eq!(b.add_status(FEATURES_OK), ACKNOWLEDGE | DRIVER, "{features:#x}");
        // A second try with less is the driver's right.
        b.features(1 << 32);
        assert_eq!(b.add_status(FEATURES_OK), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }
}

#[test]
fn what_comes_out_of_turn_is_ignored() {
    let mut b = Bench::new();
    b.lay_out(0);
    assert_eq!(b.r(reg::VIRTIO_MMIO_QUEUE_READY), 0, "no queue before FEATURES_OK");
    for bit in [DRIVER, FEATURES_OK, DRIVER_OK] {
        assert_eq!(b.add_status(bit), 0, "steps are taken in order");
    }
    b.features(1 << 32);
    b.transport.write(0x100, &[1]);
    b.add_status(ACKNOWLEDGE);
    b.add_status(DRIVER);
    assert_eq!(b.add_status(FEATURES_OK), 3, "features came before DRIVER");
    b.transport.write(0x105, &[1]);
    b.features(1 << 32);
    b.add_status(FEATURES_OK);
    b.features(u64::MAX);
    b.w(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(b.status(), 11, "bits are not taken back");
    b.lay_out(0);
    b.w(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0xDEAD);
    b.w(reg::VIRTIO_MMIO_QUEUE_NUM, 1);
    b.add_status(DRIVER_OK);
    b.w(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(b.r(reg::VIRTIO_MMIO_QUEUE_READY), 1, "a running queue stays");
    let on = Call::Activate { features: 1 << 32, queues: vec![0] };
    assert_eq!(b.take_calls(), [Call::Config(5, vec![1]), on, Call::Resume]);
    // Only whole, aligned words are registers.
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (0x70, 2), (0x48, 4), (0xFC, 8)] {
        let mut data = vec![0xAA; len];
        b.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{offset:#x}, {len}");
        b.transport.write(offset, &data);
    }
    assert_eq!(b.status(), 15);
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    type Spoil = fn(&mut Bench);
    let spoilers: [Spoil; 4] = [
        |_| {},
        |b| {
            b.lay_out(0);
            b.w(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
            b.w(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            // Queue 1 lies at 0, which is RAM; now its used ring leaves RAM.
            b.w(reg::VIRTIO_MMIO_QUEUE_READY, 0);
            b.w(reg::VIRTIO_MMIO_QUEUE_USED_HIGH, 0xFFFF_FFFF);
            b.w(reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0xFFFF_FFFC);
            b.w(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        },
        |b| {
            b.w(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 8);
            b.w(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        },
        |b| {
            let end = u32::try_from(b.ram.bytes()).unwrap();
            b.w(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, end - 20);
            b.w(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        },
    ];
    for (i, spoil) in spoilers.into_iter().enumerate() {
        let mut b = Bench::new();
        b.add_status(ACKNOWLEDGE);
        b.add_status(DRIVER);
        b.features(1 << 32);
        b.add_status(FEATURES_OK);
        spoil(&mut b);
        assert_eq!(b.add_status(DRIVER_OK), 15 | NEEDS_RESET, "{i}");
        assert_eq!(b.r(reg::VIRTIO_MMIO_INTERRUPT_STATUS), CONFIG_CHANGE);
        assert!(b.irqfd.clear());
        assert_eq!(b.take_calls(), []);
        b.transport.drain().unwrap();
        let state = b.transport.save();
        assert!(restore(&b, &state).is_ok(), "{i}");
        b.transport.resume();
        b.w(reg::VIRTIO_MMIO_STATUS, 0);
        b.take_calls();
        b.turn_on(1 << 32);
    }
}

fn restore(b: &Bench, state: &MmioState) -> Result<(MmioTransport, EventFd), DeviceError> {
    let irqfd = EventFd::new().unwrap();
    let fake = Box::new(Fake::default());
    MmioTransport::restore(fake, b.ram.clone(), irqfd.clone(), state).map(|t| (t, irqfd))
}

#[test]
fn a_restored_device_is_parked_and_repeats_its_interrupt() {
    let mut b = Bench::new();
    b.turn_on(1 << 32 | 1 << 29);
    b.transport.interrupt.used_ring();
    b.transport.drain().unwrap();
    let mut state = b.transport.save();
    state.queues[0].next_avail = 77;
    state.queues[1].next_used = 65535;
    let (fake, irqfd) = (Fake::default(), EventFd::new().unwrap());
    let calls = fake.calls.clone();
    let mut new =
        MmioTransport::restore(Box::new(fake), b.ram.clone(), irqfd.clone(), &state).unwrap();
    let on = Call::Activate { features: 1 << 32 | 1 << 29, queues: vec![0, 1] };
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), [on]);
    assert!(!irqfd.clear());
    assert_eq!(new.save(), state);
    new.resume();
    assert_eq!(*calls.lock().unwrap(), [Call::Resume]);
    assert!(irqfd.clear(), "what the guest has not acknowledged is signalled again");
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    type Spoil = fn(&mut MmioState);
    let spoilers: [(&str, Spoil); 10] = [
        ("status", |s| s.status = DRIVER_OK),
        ("status", |s| s.status |= 1 << 5),
        ("features", |s| s.driver_features |= 1 << 5),
        ("features", |s| s.driver_features = 1 << 29),
        ("interrupt", |s| s.interrupt_status = 4),
        ("queues", |s| s.queues.push(QueueStateV1::default())),
        ("size", |s| s.queues[0].size = 16),
        ("size", |s| s.queues[1].size = 0),
        ("event_idx", |s| s.queues[1].event_idx = false),
        ("guest memory", |s| s.queues[1].used_ring = u64::MAX - 3),
    ];
    let mut b = Bench::new();
    b.turn_on(1 << 32 | 1 << 29);
    b.transport.drain().unwrap();
    let good = b.transport.save();
    assert!(restore(&b, &good).is_ok());
    for (word, spoil) in spoilers {
        let mut state = good.clone();
        spoil(&mut state);
        let Err(DeviceError::State { reason, .. }) = restore(&b, &state) else {
            panic!("accepted: {state:?}");
        };
        assert!(reason.contains(word), "{word}: {reason}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Word(u32, u32),
    Step(u32),
    Features(u64),
    LayOut(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let register = prop_oneof![(0u32..0x44).prop_map(|r| r * 4), 0u32..0x140, any::<u32>()];
    let value = prop_oneof![0u32..20, any::<u32>(), Just(u32::MAX)];
    prop_oneof![
        1 => (0u64..0x1100, 0usize..9).prop_map(|(o, l)| Op::Read(o, l)),
        1 => (any::<u64>(), 0usize..9).prop_map(|(o, l)| Op::Read(o, l)),
        1 => (0u64..0x1100, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(o, d)| Op::Write(o, d)),
        8 => (register, value).prop_map(|(r, v)| Op::Word(r, v)),
        8 => (0u32..4).prop_map(|s| Op::Step(STEPS[s as usize])),
        2 => prop_oneof![Just(1u64 << 32), Just(1u64 << 32 | 1 << 29)].prop_map(Op::Features),
        4 => (0usize..2).prop_map(Op::LayOut),
    ]
}

fn hostile_state() -> impl Strategy<Value = MmioState> {
    let queue = (
        prop_oneof![Just(4u16), Just(8), any::<u16>()],
        any::<bool>(),
        prop::array::uniform3(prop_oneof![0u64..(20 << 20), any::<u64>()]),
        any::<(u16, u16, bool)>(),
    )
        .prop_map(|(size, ready, at, (next_avail, next_used, event_idx))| QueueStateV1 {
            size,
            ready,
            desc_table: at[0] & !15,
            avail_ring: at[1] & !1,
            used_ring: at[2] & !3,
            next_avail,
            next_used,
            event_idx,
        });
    let status = prop_oneof![4 => Just(15u32), 1 => 0u32..256, 1 => any::<u32>()];
    let features = prop_oneof![Just(1u64 << 32), Just(1u64 << 32 | 1 << 29), any::<u64>()];
    (status, features, prop::collection::vec(queue, 1..4), any::<(u32, u32, u32, u32)>(), 0u32..5)
        .prop_map(|(status, driver_features, queues, (a, b, c, d), interrupt_status)| MmioState {
            status,
            device_features_sel: a,
            driver_features_sel: b,
            driver_features,
            queue_sel: c,
            interrupt_status,
            config_generation: d,
            queues,
            device: VirtioDeviceState::Rng(RngState {}),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No access panics, and whatever state a driver brings about is saved and restored exactly:
    /// the new transport saves the same and answers every register alike.
    #[test]
    fn any_accesses_then_save_and_restore(ops in prop::collection::vec(op(), 0..80)) {
        let mut b = Bench::new();
        for op in ops {
            match op {
                Op::Read(offset, len) => b.transport.read(offset, &mut vec![0; len]),
                Op::Write(offset, data) => b.transport.write(offset, &data),
                Op::Word(offset, value) => b.w(offset, value),
                Op::Step(bit) => { b.add_status(bit); }
                Op::Features(features) => b.features(features),
                Op::LayOut(n) => b.lay_out(n),
            }
        }
        b.transport.drain().unwrap();
        let state = b.transport.save();
        let (mut new, _) = restore(&b, &state).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(new.save(), state);
        for offset in (0..0x110).step_by(4) {
            let (mut old_word, mut new_word) = ([0; 4], [0; 4]);
            b.transport.read(offset, &mut old_word);
            new.read(offset, &mut new_word);
            prop_assert_eq!(old_word, new_word, "register {:#x}", offset);
        }
    }

    /// A state from outside is refused or restored as it is, and never panics.
    #[test]
    fn any_saved_state(state in hostile_state()) {
        let b = Bench::new();
        if let Ok((new, _)) = restore(&b, &state) {
            prop_assert_eq!(new.save(), state);
        }
    }
}
