//! The state on its way: damaged, of another release, of another machine, of other devices.

use crate::catalogue::{Cell, DISK_BYTES, MEMORY_MIB, Pair, odd};
use crate::support::kvm;

const RELEASES: &str = "neighbouring releases";

/// One that the rehearsal refuses.
fn state(change: &str, parts: [&str; 4]) -> Cell {
    odd(&format!("state {change}"), "incompatible", parts)
}

#[test]
fn damaged_or_of_another_release() {
    if !kvm() {
        return;
    }
    let cells = vec![
        state("newer", ["version", "version 2", "up to 1", "use a newer one"]),
        state("older", ["version", "version 0", "from 1 on", "with an older one"]),
        state("magic", ["saved machine state", "not a saved", "MIGSTATE", RELEASES]),
        state("truncated", ["machine state", "bytes long", "should be", RELEASES]),
        state("payload", ["machine state is damaged", "checksum", "should be", RELEASES]),
        state("header", ["header", "checksum", "should be", RELEASES]),
        state("too-large", ["bytes", "1099511627776", "more than any machine", RELEASES]),
        state("section", ["cannot be decoded", "16 bytes", "too many", RELEASES]),
        state("unknown-device", ["cannot be decoded", "a part of it", "not know", RELEASES]),
        state("contradiction", ["vCPUs", "of 2 vCPUs", "holds 1", RELEASES]),
        state("msrs", ["MSRs", "300", "256", RELEASES]),
        state("leaves", ["CPUID leaves", "300", "256", RELEASES]),
    ];
    Pair::new(&[]).try_all("states: damaged or of another release", cells);
}

#[test]
fn of_another_machine_or_other_devices() {
    if !kvm() {
        return;
    }
    let (memory, doubled) = ((MEMORY_MIB << 20).to_string(), (MEMORY_MIB << 21).to_string());
    let (sectors, more) = ((DISK_BYTES / 512).to_string(), (DISK_BYTES / 256).to_string());
    let same = "same definition";
    let cells = vec![
        state("memory", ["memory (bytes)", &doubled, &memory, RELEASES]),
        state("vcpus", ["vCPUs", "vCPUs 3", "has 2", RELEASES]),
        state("missing-device", ["virtio devices", "devices 4", "has 5", RELEASES]),
        state("device-order", ["slot 2", "there: entropy source", "virtio console", same]),
        state("feature-bits", ["features", "0x4000100000000", "offers 0x1", same]),
        state("disk-feature", ["disk in slot 0", "features 0x100001000", "offers", same]),
        state("device-status", ["entropy source in slot 3", "status 0x4", "none that", same]),
        state("queue-count", ["queues", "0 queues saved", "1 here", same]),
        state("queue-size", ["queue 0", "size 4096", "up to", same]),
        state("queue-address", ["descriptor table", "0x10000000000", "not in guest", same]),
        state("disk-size", ["size in sectors", &more, &sectors, "same disk"]),
        state("disk-read-only", ["read-only flag", "true", "false", "same disk"]),
        state("disk-serial", ["serial", "another", "data", "same disk"]),
        state("disk-block", ["block size", "8192", "512", "same disk"]),
        state("vsock-cid", ["cid", "43", "42", same]),
        state("console-input", ["pending_input", "1048576", "at most", same]),
        state("console-size", ["columns", "80", "rows 0", same]),
        state("serial", ["serial port", "65", "64", same]),
        state("pm", ["PM1 control", "0x4000", "", same]),
        state("irqchip-size", ["interrupt controller", "100 bytes", "520 bytes", RELEASES]),
        state("irqchip-order", ["interrupt controller", "2", "0", RELEASES]),
        state("pit-size", ["timer chip", "10 bytes", "112 bytes", RELEASES]),
    ];
    Pair::new(&[]).try_all("states: of another machine or other devices", cells);
}
