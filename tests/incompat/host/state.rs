//! A guest's state as it might come from a source that differs: from another release, of another
//! machine, of another CPU, or damaged on its way.

use vmm::cpu::Register;
use vmm::state::v1::{CpuidEntry, MachineState, MsrEntry, VirtioDeviceState};
use vmm::state::{HEADER_BYTES, decode, encode};

/// Places in structures of KVM (include/uapi/asm/kvm.h).
const SREGS_CR4: usize = 248;
const DEBUGREGS_DR7: usize = 40;
const EVENTS_FLAGS: usize = 20;
const XCR0_VALUE: usize = 16;
const XSTATE_BV: usize = 512;
/// `FEATURES_OK` with all that comes before it, and `DRIVER_OK` after it.
const FEATURES_OK: u32 = 1 | 2 | 8;
const DRIVER_OK: u32 = FEATURES_OK | 4;
/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// The state with the change of that name.
pub fn changed(name: &str, state: &[u8]) -> Vec<u8> {
    let mut bytes = state.to_vec();
    if in_bytes(name, &mut bytes) {
        return bytes;
    }
    let mut state = decode(state).expect("what the source sent");
    assert!(
        in_shape(name, &mut state)
            || in_cpu(name, &mut state)
            || in_vcpu(name, &mut state)
            || in_chips(name, &mut state)
            || in_devices(name, &mut state),
        "no change is called {name}"
    );
    encode(&state).unwrap()
}

/// Writes the checksums anew, of the payload if `payload` and of the header.
fn mend(bytes: &mut [u8], payload: bool) {
    if payload {
        let len = (bytes.len() - HEADER_BYTES) as u64;
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let crc = crc32fast::hash(&bytes[HEADER_BYTES..]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
}

fn in_bytes(name: &str, bytes: &mut Vec<u8>) -> bool {
    match name {
        "newer" | "older" => {
            bytes[8] = if name == "newer" { 2 } else { 0 };
            mend(bytes, false);
        }
        "magic" => bytes[0] = b'X',
        "truncated" => bytes.truncate(bytes.len() - 100),
        "payload" => bytes[HEADER_BYTES + 50] ^= 4,
        "header" => bytes[20] ^= 4,
        "too-large" => {
            bytes[16..24].copy_from_slice(&(1_u64 << 40).to_le_bytes());
            mend(bytes, false);
        }
        "section" => {
            bytes.extend([7; 16]);
            mend(bytes, true);
        }
        "unknown-device" => {
            // Where the kind of the device in slot 3 stands: there two kinds differ first.
            let mut other = decode(bytes).unwrap();
            let Some(slot) = other.virtio.get_mut(3) else { panic!("too few devices") };
            slot.device = VirtioDeviceState::Vsock(vmm::state::v1::VsockState { cid: 3 });
            let other = encode(&other).unwrap();
            let pairs = bytes.iter().zip(&other).skip(HEADER_BYTES);
            let at = HEADER_BYTES + pairs.take_while(|(a, b)| a == b).count();
            bytes[at] = 9;
            mend(bytes, true);
        }
        _ => return false,
    }
    true
}

fn in_shape(name: &str, state: &mut MachineState) -> bool {
    match name {
        "memory" => state.shape.memory_bytes *= 2,
        "vcpus" => {
            state.shape.vcpus += 1;
            state.vcpus.extend(state.vcpus.first().cloned());
        }
        "contradiction" => drop(state.vcpus.pop()),
        "missing-device" => drop(state.virtio.pop()),
        "device-order" => state.virtio.swap(2, 3),
        "msrs" => {
            let all = (0..300).map(|index| MsrEntry { index, value: 0 });
            state.vcpus[0].msrs = all.collect();
        }
        "leaves" => {
            let all = (0..300).map(|function| CpuidEntry { function, ..CpuidEntry::default() });
            state.vcpus[0].cpuid = all.collect();
        }
        _ => return false,
    }
    true
}

/// A register of every vCPU's CPUID.
fn cpuid(state: &mut MachineState, place: (u32, u32), register: Register, set: impl Fn(&mut u32)) {
    let mut found = false;
    for entry in state.vcpus.iter_mut().flat_map(|vcpu| &mut vcpu.cpuid) {
        if (entry.function, entry.index) == place {
            found = true;
            set(match register {
                Register::Eax => &mut entry.eax,
                Register::Ebx => &mut entry.ebx,
                Register::Ecx => &mut entry.ecx,
                Register::Edx => &mut entry.edx,
            });
        }
    }
    assert!(found, "no leaf {place:x?}");
}

/// Sets a register that may not be there.
fn msr(state: &mut MachineState, index: u32, value: u64) {
    let msrs = &mut state.vcpus[0].msrs;
    msrs.retain(|m| m.index != index);
    msrs.push(MsrEntry { index, value });
}

fn in_cpu(name: &str, state: &mut MachineState) -> bool {
    match name {
        "vendor" => {
            for (register, text) in
                [(Register::Ebx, *b"Odd "), (Register::Edx, *b"CPU "), (Register::Ecx, *b"Inc.")]
            {
                cpuid(state, (0, 0), register, |r| *r = u32::from_le_bytes(text));
            }
        }
        "address-bits" => {
            cpuid(state, (0x8000_0008, 0), Register::Eax, |r| *r = (*r & !0xFF) | 0x3E);
        }
        "layout" => cpuid(state, (0xD, 2), Register::Ebx, |r| *r += 64),
        "kvm-leaf" => cpuid(state, (0x4000_0001, 0), Register::Eax, |r| *r |= 1 << 23),
        "second-vcpu" => {
            let leaves = &mut state.vcpus[1].cpuid;
            let leaf = leaves.iter_mut().find(|e| (e.function, e.index) == (0x4000_0001, 0));
            leaf.unwrap().eax |= 1 << 23;
        }
        "tsc" => state.vcpus.iter_mut().for_each(|vcpu| vcpu.tsc_khz *= 2),
        "msr-unknown" => msr(state, 0xDEAD, 7),
        "msr-reserved" => msr(state, 0x2FF, 0xFFFF_FFFF_0000_0C06),
        "msr-address" => msr(state, 0xC000_0082, 1 << 63),
        "msr-apic-base" => msr(state, 0x1B, u64::MAX),
        "msr-efer" => msr(state, 0xC000_0080, 1 << 62),
        _ => return false,
    }
    true
}

fn set_u64(bytes: &mut [u8], at: usize, change: impl Fn(u64) -> u64) {
    let place = &mut bytes[at..at + 8];
    let old = u64::from_le_bytes((&*place).try_into().unwrap());
    place.copy_from_slice(&change(old).to_le_bytes());
}

fn in_vcpu(name: &str, state: &mut MachineState) -> bool {
    let vcpu = &mut state.vcpus[0];
    match name {
        "xsave-longer" => vcpu.xsave.extend([1; 64]),
        "xsave-shorter" => vcpu.xsave.truncate(1024),
        "xsave-components" => set_u64(&mut vcpu.xsave, XSTATE_BV, |bits| bits | 1 << 40),
        "xcr0" => set_u64(&mut vcpu.xcrs, XCR0_VALUE, |bits| bits | 1 << 40),
        "xcrs" => vcpu.xcrs[0] = 200,
        "mp-state" => vcpu.mp_state = 99,
        "cr4" => set_u64(&mut vcpu.sregs, SREGS_CR4, |bits| bits | 1 << 62),
        "dr7" => set_u64(&mut vcpu.debugregs, DEBUGREGS_DR7, |bits| bits | 1 << 40),
        "events" => vcpu.events[EVENTS_FLAGS + 3] = 0x80,
        "regs-size" => vcpu.regs.truncate(100),
        "sregs-size" => vcpu.sregs.truncate(100),
        "lapic-size" => vcpu.lapic.truncate(512),
        _ => return false,
    }
    true
}

fn in_chips(name: &str, state: &mut MachineState) -> bool {
    match name {
        "irqchip-size" => state.irqchips[2].truncate(100),
        "irqchip-order" => state.irqchips.swap(0, 2),
        "pit-size" => state.pit.truncate(10),
        "serial" => state.serial.input = vec![b'x'; 65],
        "pm" => state.pm.pm1_control = 0x4000,
        _ => return false,
    }
    true
}

fn in_devices(name: &str, state: &mut MachineState) -> bool {
    match name {
        "feature-bits" => {
            state.virtio[3].status = FEATURES_OK;
            state.virtio[3].driver_features = VERSION_1 | 1 << 50;
            return true;
        }
        "disk-feature" => {
            // Several queues, which this release never offers.
            state.virtio[0].status = FEATURES_OK;
            state.virtio[0].driver_features = VERSION_1 | 1 << 12;
            return true;
        }
        "device-status" => state.virtio[3].status = 4,
        "queue-count" => drop(state.virtio[3].queues.pop()),
        "queue-size" => state.virtio[3].queues[0].size = 4096,
        "queue-address" => {
            state.virtio[3].status = DRIVER_OK;
            state.virtio[3].driver_features = VERSION_1;
            state.virtio[3].queues[0].ready = true;
            state.virtio[3].queues[0].desc_table = 1 << 40;
        }
        _ => return in_device_settings(name, state),
    }
    true
}

/// What the guest was told of its devices.
fn in_device_settings(name: &str, state: &mut MachineState) -> bool {
    for slot in &mut state.virtio {
        match (name, &mut slot.device) {
            ("disk-size", VirtioDeviceState::Block(disk)) => disk.sectors *= 2,
            ("disk-read-only", VirtioDeviceState::Block(disk)) => disk.read_only ^= true,
            ("disk-serial", VirtioDeviceState::Block(disk)) => disk.serial = "another".into(),
            ("disk-block", VirtioDeviceState::Block(disk)) => disk.block_size = 8192,
            ("vsock-cid", VirtioDeviceState::Vsock(vsock)) => vsock.cid += 1,
            ("console-input", VirtioDeviceState::Console(console)) => {
                console.pending_input = vec![b'x'; 1 << 20];
            }
            ("console-size", VirtioDeviceState::Console(console)) => console.columns = 80,
            ("mac", VirtioDeviceState::Net(net)) => net.mac[5] ^= 1,
            ("mtu", VirtioDeviceState::Net(net)) => net.mtu = 9000,
            ("offloads", VirtioDeviceState::Net(net)) => net.offloads = 1 << 30,
            _ => continue,
        }
        return true;
    }
    false
}
