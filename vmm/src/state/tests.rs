//! Golden bytes, and every way in which bytes from outside can be wrong.

use proptest::prelude::*;

use super::v1::*;
use super::*;

/// A vCPU, its KVM structures shortened: decoding does not look into them.
fn vcpu() -> VcpuState {
    VcpuState {
        mp_state: 3,
        regs: vec![1; 4],
        sregs: vec![2; 4],
        xsave: vec![3; 8],
        xcrs: vec![4; 4],
        debugregs: vec![5; 4],
        lapic: vec![6; 4],
        cpuid: vec![CpuidEntry { function: 1, index: 2, flags: 3, eax: 4, ebx: 5, ecx: 6, edx: 7 }],
        msrs: vec![MsrEntry { index: 0x10, value: 42 }],
        events: vec![7; 4],
        tsc_offset: Some(-5),
        tsc_khz: 2_000_000,
    }
}

/// Every kind of device.
fn virtio() -> Vec<MmioState> {
    let queue = QueueStateV1 {
        size: 256,
        ready: true,
        desc_table: 0x1000,
        avail_ring: 0x2000,
        used_ring: 0x3000,
        next_avail: 7,
        next_used: 6,
        event_idx: true,
    };
    let mmio = |device| MmioState {
        status: 15,
        device_features_sel: 1,
        driver_features_sel: 1,
        driver_features: 1 << 32,
        queue_sel: 1,
        interrupt_status: 1,
        config_generation: 2,
        queues: vec![queue.clone()],
        device,
    };
    vec![
        mmio(VirtioDeviceState::Block(BlockState {
            sectors: 2048,
            read_only: true,
            block_size: 512,
            serial: "disk".into(),
            writeback: true,
        })),
        mmio(VirtioDeviceState::Net(NetState { mac: [2; 6], mtu: 1500, offloads: 1 })),
        mmio(VirtioDeviceState::Console(ConsoleState {
            columns: 80,
            rows: 25,
            pending_input: b"x".to_vec(),
        })),
        mmio(VirtioDeviceState::Rng(RngState {})),
        mmio(VirtioDeviceState::Vsock(VsockState { cid: 3 })),
    ]
}

/// A small machine with every kind of device, every field different from its default.
fn sample() -> MachineState {
    MachineState {
        shape: Shape { memory_bytes: 64 << 20, vcpus: 1, cpu_template: "host".into() },
        clock: ClockState {
            kvmclock_ns: 1_234_567_890,
            realtime_ns: 1_700_000_000_000_000_000,
            host_tsc: 99,
            boot_id: [7; 16],
        },
        vcpus: vec![vcpu()],
        irqchips: [vec![8], vec![9], vec![10]],
        pit: vec![11],
        serial: SerialState {
            divisor_low: 1,
            divisor_high: 2,
            interrupt_enable: 3,
            interrupt_identification: 4,
            line_control: 5,
            line_status: 6,
            modem_control: 7,
            modem_status: 8,
            scratch: 9,
            input: b"in".to_vec(),
        },
        pm: PmState {
            pm1_status: 0x100,
            pm1_enable: 0x101,
            pm1_control: 1,
            gpe0_status: 1,
            gpe0_enable: 2,
        },
        vmgenid: VmGenIdState { id: [12; 16] },
        virtio: virtio(),
    }
}

/// `sample()` as version 1 was released. A change here breaks every saved guest: make a version
/// 2 instead.
const GOLDEN_V1: &str = include_str!("golden_v1.hex");

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            let _ = write!(out, "{byte:02x}");
        }
        out.push('\n');
    }
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|d| u8::try_from(d[0] * 16 + d[1]).unwrap()).collect()
}

#[test]
fn version_1_is_frozen() {
    assert_eq!(hex(&encode(&sample()).unwrap()), GOLDEN_V1);
    assert_eq!(decode(&unhex(GOLDEN_V1)).unwrap(), sample());
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = encode(&sample()).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bad).is_err(), "bit {bit} of byte {}", bit / 8);
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let good = encode(&sample()).unwrap();
    for len in 0..good.len() {
        assert!(decode(&good[..len]).is_err(), "{len} bytes");
    }
    let long = [good.as_slice(), &[0]].concat();
    assert!(matches!(decode(&long), Err(StateError::Length { .. })));
}

/// Puts `payload` behind a header that fits it.
fn wrap(version: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        version,
        payload_bytes: payload.len() as u64,
        payload_crc: crc32fast::hash(payload),
    };
    [&header.write(), payload].concat()
}

#[test]
fn other_versions_say_what_to_do() {
    let newer = decode(&wrap(VERSION + 1, &[])).unwrap_err();
    assert_eq!(newer, StateError::TooNew(VERSION + 1));
    assert!(newer.to_string().contains("use a newer one"), "{newer}");
    assert_eq!(decode(&wrap(0, &[])).unwrap_err(), StateError::TooOld(0));
}

#[test]
fn counts_are_bounded() {
    let mut many = sample();
    many.vcpus = vec![VcpuState::default(); 33];
    many.shape.vcpus = 33;
    assert!(matches!(
        decode(&encode(&many).unwrap()),
        Err(StateError::Count { what: "vCPUs", found: 33, limit: 32 })
    ));
    let mut odd = sample();
    odd.shape.vcpus = 2;
    assert!(matches!(decode(&encode(&odd).unwrap()), Err(StateError::Inconsistent(_))));
}

proptest! {
    /// A sender that computes checksums over anything it likes: an error or a checked state.
    #[test]
    fn hostile_payloads_never_panic(
        payload in prop::collection::vec(any::<u8>(), 0..600),
        at in any::<prop::sample::Index>(),
        mutate in any::<bool>(),
    ) {
        let mut bytes = payload;
        if mutate {
            let mut good = unhex(GOLDEN_V1)[HEADER_BYTES..].to_vec();
            let start = at.index(good.len());
            let end = (start + bytes.len().min(4)).min(good.len());
            good[start..end].copy_from_slice(&bytes[..end - start]);
            bytes = good;
        }
        if let Ok(state) = decode(&wrap(VERSION, &bytes)) {
            prop_assert!(state.vcpus.len() <= 32);
        }
    }
}
