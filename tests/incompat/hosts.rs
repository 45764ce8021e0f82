//! The destination itself: its kernel, its limits, its memory, its directories, who is there.

use std::fs;
use std::net::UdpSocket;

use serde_json::Value;

use crate::catalogue::{Cell, MEMORY_MIB, Pair, Undo, cell, has_views, odd};
use crate::site::PORTS;
use crate::support::kvm;

/// What its guest processes meet in the kernel, before they have begun to receive.
#[test]
fn kernels() {
    if !kvm() {
        return;
    }
    let newer = "newer kernel";
    let lacking = |number: u32, name: &str| {
        odd(&format!("capability {number}"), "kvm-capability", [name, "KVM", "lacks", newer])
    };
    let cells = vec![
        lacking(0, "KVM_CAP_IRQCHIP"),
        lacking(3, "KVM_CAP_USER_MEMORY"),
        lacking(55, "KVM_CAP_XSAVE"),
        lacking(56, "KVM_CAP_XCRS"),
        lacking(136, "KVM_CAP_IMMEDIATE_EXIT"),
        odd("capability 66", "bad-definition", ["vCPUs", "2 vCPUs", "(1)", "has more vCPUs"]),
        odd("template x86-64-v9", "bad-definition", ["template", "x86-64-v9", "host", RELEASES]),
        odd("huge-pages", "no-memory", ["memory", "33554432", "huge pages", "nr_hugepages"]),
        odd("limit fsize 1048576", "no-memory", ["memory", "33554432", "too large", "free"]),
        odd("limit as 285212672", "no-memory", ["address space", "32 MiB", "16 MiB", "raise"]),
        odd("call AE01 12", "incompatible", ["KVM_CREATE_VM", "", "Cannot allocate", "dmesg"]),
        odd("call AE46 12", "incompatible", ["KVM_SET_USER_MEMORY", "", "Cannot", "dmesg"]),
        odd("call AE60 17", "incompatible", ["KVM_CREATE_IRQCHIP", "", "File exists", "dmesg"]),
    ];
    Pair::new(&[]).try_all("hosts: kernels", cells);
}

const RELEASES: &str = "neighbouring releases";

/// The same with per-vCPU rings of dirty pages, which a kernel may not have.
#[test]
fn a_kernel_without_dirty_rings() {
    if !kvm() {
        return;
    }
    let ring = ["KVM_CAP_DIRTY_LOG_RING", "ring", "lacks", "newer kernel"];
    let cells = vec![odd("capability 192", "kvm-capability", ring)];
    Pair::new(&["--dirty-ring"]).try_all("hosts: dirty rings", cells);
}

/// `host.toml` has these lines more, and the daemon has read them.
fn limited(lines: &'static str, parts: [&str; 4]) -> Cell {
    let name = lines.trim().replace('\n', " ");
    cell(&name, "no-room", parts, move |pair| {
        pair.site.b.configure(lines);
        pair.restart();
        Box::new(|pair: &mut Pair| {
            pair.site.b.configure("");
            pair.restart();
        })
    })
}

#[test]
fn limits() {
    if !kvm() {
        return;
    }
    let (memory, raise) = (format!("{MEMORY_MIB} MiB"), "raise its limits");
    let cells = vec![
        limited("[limits]\nmemory = \"16M\"\n", ["memory", &memory, "16 MiB", raise]),
        limited("[limits]\nvcpus = 1\n", ["vCPUs", "has 2", "1 vCPUs", raise]),
        limited("[limits]\nguests = 0\n", ["guests", "", "takes 0 guests", raise]),
        cell(
            "all data ports in use",
            "no-room",
            ["UDP ports", "needs 2", "0 are free", "data_ports"],
            |pair| {
                let first = pair.site.b.port + 1;
                let bound = (first..first + PORTS - 1).map(|p| UdpSocket::bind(("127.0.0.1", p)));
                let bound: Vec<_> = bound.map(Result::unwrap).collect();
                Box::new(move |_| drop(bound))
            },
        ),
    ];
    Pair::new(&[]).try_all("hosts: limits", cells);
}

/// Beta sees other files than it has.
#[test]
fn other_views() {
    if !kvm() {
        return;
    }
    if !has_views() {
        eprintln!("SKIPPED: no mount namespace can be made: run this test as root");
        return;
    }
    let view = |name: &str, code, parts, set: &'static str, undo: &'static str| {
        cell(name, code, parts, move |pair| pair.view(set, undo))
    };
    let cells = vec![
        view(
            "little memory in the control group",
            "no-memory",
            ["control group", "32 MiB", "16 MiB", "raise that limit"],
            "mkdir -p $0/files/groups/memory; cd $0/files/groups; echo 16777216 > memory.max; \
             cp memory.max memory/memory.limit_in_bytes; mount --bind . /sys/fs/cgroup",
            "umount -l /sys/fs/cgroup",
        ),
        view(
            "little memory free",
            "no-room",
            ["memory left", "needs 96 MiB", "24 MiB", "free memory there"],
            "printf 'MemTotal: 8000000 kB\\nMemAvailable: 286720 kB\\n' > $0/files/meminfo; \
             mount --bind $0/files/meminfo /proc/meminfo",
            "umount -l /proc/meminfo",
        ),
        view(
            "no KVM",
            "kvm-missing",
            ["/dev/kvm", "", "does not exist", "kvm_intel"],
            "mknod $0/files/none c 10 250; mount --bind $0/files/none /dev/kvm",
            "umount -l /dev/kvm; rm $0/files/none",
        ),
        view(
            "something else in the place of KVM",
            "kvm-missing",
            ["/dev/kvm", "", "cannot open", "that path"],
            "mount --bind /dev/null /dev/kvm",
            "umount -l /dev/kvm",
        ),
        view(
            "the state directory cannot be written",
            "file",
            ["state", "", "Read-only file system", "can be written"],
            "mount --bind $0/state $0/state; mount -o remount,ro,bind $0/state",
            "umount -l $0/state",
        ),
        view(
            "the runtime directory cannot be written",
            "file",
            ["runtime directory", "", "Read-only file system", "check"],
            "mount --bind $0/run $0/run; mount -o remount,ro,bind $0/run",
            "umount -l $0/run",
        ),
    ];
    Pair::new(&[]).try_all("hosts: memory and directories", cells);
}

/// What a guest at beta says of itself, changed.
fn with_neighbour(pair: &Pair, name: &str, change: impl Fn(&mut Value, &Value)) -> Undo {
    pair.site.b.scribbler(name, "ws=4M", &["--memory", "16M"]);
    let ours = pair.site.a.home.done(&["show", "web1"]);
    let file = pair.beta().dirs().guest(name).info();
    let mut info: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut info, &ours);
    fs::write(&file, info.to_string()).unwrap();
    let name = name.to_owned();
    Box::new(move |pair| drop(pair.beta().done(&["stop", &name, "--kill"])))
}

#[test]
fn somebody_is_there() {
    if !kvm() {
        return;
    }
    let cells = vec![
        cell(
            "the name is taken",
            "name-taken",
            ["guest 'web1'", "another", "runs on the destination", "rename"],
            |pair| with_neighbour(pair, "web1", |_, _| ()),
        ),
        cell(
            "the identity is taken",
            "already-running",
            ["identity", "'web1'", "already", "migrate ls"],
            |pair| with_neighbour(pair, "other", |info, ours| info["uuid"] = ours["uuid"].clone()),
        ),
        cell(
            "another guest has the disk",
            "disk-locked",
            ["disk", "data.img", "another guest", "of its own"],
            |pair| {
                with_neighbour(pair, "other", |info, ours| {
                    info["definition"]["disks"] = ours["definition"]["disks"].clone();
                })
            },
        ),
        cell(
            "a damaged journal of the guest",
            "file",
            ["journal", "", "damaged", "backup"],
            |pair| {
                let uuid = pair.site.a.home.done(&["show", "web1"])["uuid"].clone();
                let uuid = uuid.as_str().unwrap().parse().unwrap();
                let dir = pair.beta().dirs().journal(&uuid);
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join("record"), "nothing of ours").unwrap();
                Box::new(move |_| fs::remove_dir_all(dir).unwrap())
            },
        ),
    ];
    Pair::new(&[]).try_all("hosts: somebody is there", cells);
}
