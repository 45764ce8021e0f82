//! A real Linux in our machine: it boots, uses its devices, and goes on in other machines in the
//! middle of disk I/O and timers.
//!
//! Booting takes long where ring 0 is emulated, so one guest is booted and saved, and every test
//! that is not about booting wakes a copy of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::linux::{Boot, Linux, Saved, images};
use common::{Shape, kvm, within};
use vmm::devices::console::Position;
use vmm::events::GuestEvent;
use vmm::kvm::Kvm;
use vmm::machine::ClockMode;

const MOUNT: &str = "guest.disk=ext4 guest.ip=10.0.2.15/24";

/// The guest with one vCPU, booted once and woken for each test.
fn woken() -> Option<(Kvm, Linux)> {
    static SAVED: OnceLock<Saved> = OnceLock::new();
    let (kvm, images) = (kvm()?, images()?);
    let how = Boot { extra: MOUNT, ..Boot::ACPI };
    let saved = SAVED.get_or_init(|| Linux::boot(&kvm, &images, Shape::new(128, 1), how).save());
    let linux = saved.wake(&kvm);
    Some((kvm, linux))
}

#[test]
fn all_devices_work() {
    let Some((_kvm, mut linux)) = woken() else { return };
    linux.run("grep -q '^/dev/vda /mnt ext4' /proc/mounts");
    assert!(linux.run("copycheck - /mnt/file 42 4").contains("COPY-OK"));
    linux.run("fstrim /mnt");
    linux.run("grep -q virtio /sys/devices/virtual/misc/hw_random/rng_current");
    linux.run("head -c 64 /dev/hwrng > /tmp/random");
    assert_eq!(linux.run("stat -c %s /tmp/random").trim(), "64");
    linux.run("head -c 64 /dev/zero > /tmp/zeros");
    linux.run("! cmp /tmp/random /tmp/zeros");
    let mut hvc = linux.hvc().subscribe(Position::Scrollback);
    linux.run("echo from the guest > /dev/hvc0");
    hvc.wait_for(b"from the guest", within(60)).unwrap();
    linux.hvc().send_input(b"from the host\n");
    assert!(linux.run("head -n 1 /dev/hvc0").contains("from the host"));
    if linux.has_network() {
        linux.run("ping -c 2 -W 60 10.0.2.2");
    }
    assert_eq!(linux.host.events.try_next(), None);
}

/// Programs that take turns keep their registers: a guest kernel that saves too few of them fails
/// this within a few rounds (`scripts/guest/README.md` says how that came about).
#[test]
fn programs_run_beside_each_other() {
    let Some((_kvm, mut linux)) = woken() else { return };
    linux.run("head -c 640 /dev/hwrng > /tmp/random");
    linux.enter("tick 10 100000 > /tmp/ticks &");
    for _ in 0..8 {
        linux.run("head -c 64 /tmp/random | od | grep -q '[1-9]'");
    }
    linux.run("! grep BACKWARDS /tmp/ticks");
}

#[test]
fn boots_without_acpi() {
    let (Some(kvm), Some(images)) = (kvm(), images()) else { return };
    let extra = format!("acpi=off guest.off=reset {MOUNT}");
    let how = Boot { acpi: false, extra: &extra, ..Boot::ACPI };
    let mut linux = Linux::boot(&kvm, &images, Shape::new(128, 1), how);
    assert!(linux.run("copycheck - /mnt/file 1 4").contains("COPY-OK"));
    linux.run("echo from the guest > /dev/hvc0");
    if linux.has_network() {
        linux.run("ping -c 1 -W 60 10.0.2.2");
    }
    linux.enter("poweroff");
    assert_eq!(linux.event("GUEST-POWEROFF"), Some(GuestEvent::Reset));
}

#[test]
fn two_processors() {
    let (Some(kvm), Some(images)) = (kvm(), images()) else { return };
    let mut linux = Linux::boot(&kvm, &images, Shape::new(128, 2), Boot::ACPI);
    assert_eq!(linux.run("nproc").trim(), "2");
    let info = linux.run("cat /proc/cpuinfo");
    for (field, wanted) in
        [("physical id", ["0", "0"]), ("core id", ["0", "1"]), ("siblings", ["2", "2"])]
    {
        let values: Vec<&str> = info
            .lines()
            .filter_map(|l| l.strip_prefix(field)?.trim_start().strip_prefix(": "))
            .collect();
        assert_eq!(values, wanted, "{field} in:\n{info}");
    }
    linux.enter("memcheck 8 1 6 50 & memcheck 8 2 6 50 & wait; echo all-done");
    linux.wait("MEM-FILLED");
    for _ in 0..4 {
        linux = linux.moved(&kvm, Duration::ZERO, ClockMode::Account).0;
        std::thread::sleep(Duration::from_millis(200));
    }
    let output = linux.wait("all-done");
    assert_eq!(output.matches("MEM-OK 6").count(), 2, "{output}");
    assert!(!output.contains("MEM-BAD"), "{output}");
    linux.enter("reboot");
    assert_eq!(linux.event("GUEST-REBOOT"), Some(GuestEvent::Reset));
}

#[test]
fn goes_on_elsewhere_in_the_middle_of_everything() {
    let Some((kvm, mut linux)) = woken() else { return };
    linux.enter("tick 10 200; echo ticks-ended");
    linux.wait("TICK 5 ");
    linux = moved_often(&kvm, linux, "ticks-ended");
    let ticks = linux.wait("ticks-ended");
    assert!(ticks.contains("TICK 200 ") && !ticks.contains("BACKWARDS"), "{ticks}");

    linux.enter("copycheck /mnt/a /mnt/b 7 8; echo copy-ended");
    linux.wait("FILL 4");
    linux = moved_often(&kvm, linux, "COPY-");
    let output = linux.wait("copy-ended");
    assert!(output.contains("COPY-OK"), "{output}");
    linux.run("cmp /mnt/a /mnt/b");
    if linux.has_network() {
        linux.run("ping -c 1 -W 60 10.0.2.2");
    }
}

/// Moves the guest three to twelve times, until it says `end`.
fn moved_often(kvm: &Kvm, mut linux: Linux, end: &str) -> Linux {
    for number in 0..12 {
        if number >= 3 && linux.said(end) {
            break;
        }
        linux = linux.moved(kvm, Duration::from_millis(50), ClockMode::Account).0;
        std::thread::sleep(Duration::from_millis(150));
    }
    linux
}

/// A guest's clocks, with the moments of the host before and after they were read.
struct Reading {
    before: Instant,
    after: Instant,
    mono: Duration,
    real: Duration,
}

fn read_clocks(linux: &mut Linux) -> Reading {
    let before = Instant::now();
    let line = linux.run("tick 0 1");
    let after = Instant::now();
    let value = |name: &str| {
        let at = line.find(name).unwrap() + name.len();
        let digits = line[at..].split_whitespace().next().unwrap();
        Duration::from_nanos(digits.parse().unwrap())
    };
    Reading { before, after, mono: value("mono="), real: value("real=") }
}

/// Whatever the load: what passed for the guest lies between what can have passed outside.
#[test]
fn a_pause_is_accounted_or_left_out() {
    const PAUSE: Duration = Duration::from_secs(3);
    /// Of the two clocks' rates, and of the moments of saving and restoring.
    const SLACK: Duration = Duration::from_millis(200);
    let Some((kvm, mut linux)) = woken() else { return };
    for mode in [ClockMode::Account, ClockMode::Freeze] {
        let first = read_clocks(&mut linux);
        let (moved, stood_still) = linux.moved(&kvm, PAUSE, mode);
        linux = moved;
        let second = read_clocks(&mut linux);
        let least = second.before - first.after;
        let most = second.after - first.before;
        let (least, most) = match mode {
            ClockMode::Account => (least, most),
            ClockMode::Freeze => (Duration::ZERO, most.checked_sub(stood_still).unwrap()),
        };
        for (name, before, after) in
            [("mono", first.mono, second.mono), ("real", first.real, second.real)]
        {
            let passed = after.checked_sub(before).expect("time went back");
            assert!(
                least <= passed + SLACK && passed <= most + SLACK,
                "{mode:?} {name}: {passed:?} passed, not {least:?} to {most:?}"
            );
        }
    }
}

#[test]
fn the_power_button_switches_off() {
    let Some((_kvm, mut linux)) = woken() else { return };
    linux.running().controls().press_power_button();
    assert_eq!(linux.event("GUEST-POWEROFF"), Some(GuestEvent::PowerOff));
}

#[test]
fn a_reboot_is_a_reset() {
    let Some((_kvm, mut linux)) = woken() else { return };
    linux.enter("reboot");
    assert_eq!(linux.event("GUEST-REBOOT"), Some(GuestEvent::Reset));
}

#[test]
fn a_new_generation_reseeds_the_random_numbers() {
    let Some((_kvm, mut linux)) = woken() else { return };
    linux.run("dmesg > /tmp/log");
    linux.run("! grep 'virtual machine fork' /tmp/log");
    linux.running().controls().change_generation([7; 16]).unwrap();
    let reseeded = "grep 'reseeded due to virtual machine fork' /tmp/log";
    linux.run(&format!("until dmesg > /tmp/log; {reseeded}; do sleep 1; done"));
}

#[test]
#[ignore = "takes a minute and only measures"]
fn idle_processor_time() {
    let Some((_kvm, linux)) = woken() else { return };
    let used = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
        fields.map(|f| f.parse::<u64>().unwrap()).sum::<u64>()
    };
    std::thread::sleep(Duration::from_secs(5));
    let (start, before) = (Instant::now(), used());
    std::thread::sleep(Duration::from_mins(1));
    let ticks = used() - before;
    println!("idle: {ticks} ticks of 10 ms in {:?}", start.elapsed());
    drop(linux);
}

#[test]
#[ignore = "unpacking takes many minutes where ring 0 is emulated"]
fn a_compressed_kernel_boots() {
    let (Some(kvm), Some(images)) = (kvm(), images()) else { return };
    let how = Boot { kernel: "bzImage", patience: 3600, ..Boot::ACPI };
    let start = Instant::now();
    let mut linux = Linux::boot(&kvm, &images, Shape::new(128, 1), how);
    println!("ready after {:?}", start.elapsed());
    linux.run("true");
}
