//! What is allowed where. The rules read these tables; change a table when a decision changes,
//! and say why in the commit.

/// Most lines of a file outside its tests, comments and blank lines included.
pub const FILE_LINES: usize = 500;

/// Most lines of code between the braces of a function, without comments and blank lines.
pub const FUNCTION_LINES: usize = 70;

/// Most bytes of a file in the repository.
pub const FILE_BYTES: usize = 1 << 20;

/// From so many crates below it in `Cargo.lock` a dependency is heavy: the README says what it
/// is there for.
pub const HEAVY: usize = 15;

/// What a crate of the workspace must not reach, directly or through others. A name that ends in
/// `-*` stands for all names that begin so.
pub struct Layer {
    /// Directory of the crate, empty for the root package.
    pub dir: &'static str,
    /// Name of its package.
    pub package: &'static str,
    /// Packages below which it must not stand.
    pub forbidden: &'static [&'static str],
    /// The decision behind it.
    pub why: &'static str,
}

/// The dependency direction: root → `vmm`, root → `migrate`, nothing else.
pub const LAYERS: &[Layer] = &[
    Layer {
        dir: "vmm",
        package: "vmm",
        forbidden: &["migrate", "migrate-engine", "tokio", "tokio-*", "quinn", "quinn-*", "rustls"],
        why: "vmm is synchronous and knows nothing of migration; join the two in the root package",
    },
    Layer {
        dir: "migrate",
        package: "migrate-engine",
        forbidden: &[
            "migrate",
            "vmm",
            "kvm-*",
            "vm-memory",
            "vm-superio",
            "vmm-*",
            "virtio-*",
            "linux-loader",
        ],
        why: "the engine knows nothing of KVM; put an adapter into the root package",
    },
];

/// Files that may contain `unsafe`, each for its reason. Nothing in `migrate/` ever stands here.
pub const UNSAFE_FILES: &[(&str, &str)] = &[
    (
        "scripts/guest/init/sys.rs",
        "system calls of the test guest's first process, without libc crates",
    ),
    ("src/api/fds.rs", "takes over descriptors that came over a socket"),
    ("src/guest/disks/mapping.rs", "the map of a disk's changes is memory shared with a file"),
    ("src/guest/sys.rs", "process-wide system calls that no safe crate wraps"),
    ("vmm/src/devices/tap_ioctl.rs", "ioctls of a tap and of its bridge, which no crate wraps"),
    ("vmm/src/devices/virtio/block/sys.rs", "vectored disk I/O on guest memory, disk ioctls"),
    ("vmm/src/devices/virtio/net/gather.rs", "vectored tap I/O on guest memory"),
    ("vmm/src/eventfd.rs", "lends the descriptor of a foreign type that has no AsFd"),
    ("vmm/src/kvm/ioctls.rs", "the KVM ioctls that kvm-ioctls does not wrap"),
    ("vmm/src/kvm/vm.rs", "memory slots point KVM at mapped guest memory"),
    ("vmm/src/memory/ring.rs", "dirty rings are memory shared with KVM"),
    ("vmm/src/scribbler/image.rs", "bounds of an assembled section"),
    ("vmm/src/vcpu/kick.rs", "the kvm_run page, written from a signal handler"),
];

/// Files or directories whose results depend on their arguments alone.
pub const PURE: &[&str] = &[
    "migrate/src/codec",
    "migrate/src/converge",
    "migrate/src/handover",
    "migrate/src/port",
    "migrate/src/track",
    "migrate/src/transport/frame.rs",
    "migrate/src/transport/identity/moment.rs",
    "migrate/src/transport/identity/name.rs",
    "migrate/src/transport/identity/refusal.rs",
    "migrate/src/transport/identity/renewal.rs",
    "migrate/src/transport/identity/site.rs",
    "migrate/src/transport/meter.rs",
    "migrate/src/unit",
    "migrate/src/wire",
    "src/daemon/inbound/room.rs",
    "src/daemon/identity/roster.rs",
    "src/daemon/peer.rs",
    "src/guest/decide.rs",
    "src/guest/disks/check.rs",
    "src/guest/disks/record.rs",
    "src/guest/journal/record.rs",
    "src/guest/journal/rules.rs",
    "src/show/columns.rs",
    "src/show/cpu.rs",
    "src/show/hosts.rs",
    "src/show/outcome.rs",
    "src/show/progress.rs",
    "src/show/report.rs",
    "vmm/src/boot/map.rs",
    "vmm/src/config.rs",
    "vmm/src/cpu/baseline.rs",
    "vmm/src/cpu/compat.rs",
    "vmm/src/cpu/features.rs",
    "vmm/src/cpu/hex.rs",
    "vmm/src/cpu/names.rs",
    "vmm/src/cpu/rules.rs",
    "vmm/src/memory/layout.rs",
    "vmm/src/scribbler/model.rs",
    "vmm/src/scribbler/params.rs",
    "vmm/src/scribbler/report.rs",
    "vmm/src/state",
    "vmm/src/vcpu/template.rs",
];

/// Modules that will be pure. One that exists belongs into [`PURE`]; until then it is checked
/// from here, so that none is born impure.
pub const PURE_TO_COME: &[&str] = &[];

/// Paths that a pure module must not name, with everything below them.
pub const IMPURE_PATHS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "std::os::unix::net",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "tokio",
    "nix",
    "libc",
    "rand",
    "getrandom",
    "uuid::Uuid::new_v4",
    "uuid::Uuid::now_v7",
];

/// Names that a pure module must not use, wherever they come from. `Duration` is fine: it is
/// plain data. Hash containers are not: their order differs from run to run.
pub const IMPURE_NAMES: &[&str] =
    &["Instant", "SystemTime", "UNIX_EPOCH", "HashMap", "HashSet", "RandomState"];

/// Directories of library code, which never writes to stdout or stderr: stdout is the command's
/// result, and everything else goes through `tracing`.
pub const SILENT: &[&str] = &["vmm/src/", "migrate/src/"];

/// Text that belongs to one machine or one network. Written in pieces, or this file would find
/// itself.
pub const FOREIGN: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine; use a path relative to the repository"),
    (concat!("/fa", "rm/"), "a path of one machine; use a path relative to the repository"),
    (concat!("/tmp/", "wt-"), "a path of one machine; use a path relative to the repository"),
    (concat!("arti", "factory"), "a package registry; the user's own settings choose it"),
    (concat!("index.", "crates.io"), "a package registry; the user's own settings choose it"),
    (concat!("static.", "crates.io"), "a package registry; the user's own settings choose it"),
];
