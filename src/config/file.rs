//! A guest as its user writes it: the TOML file and the flags of `run`. Everything may be left
//! out; [`GuestFile::finish`] fills in defaults, checks, and makes the canonical
//! [`GuestDefinition`]. Unknown keys are refused. Nothing here opens a device or a disk.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::cpu::TemplateFile;
use super::definition::{Cache, DiskDefinition, GuestDefinition, NetDefinition, NetLink};
use super::definition::{OnCrash, OnHostStop};
use super::names::{check_name, generate_mac, generate_name, parse_mac};
use super::units::parse_size;
use crate::api::{ErrorCode, Failure};

/// RAM of a guest that boots a kernel, if nothing is said.
pub const DEFAULT_MEMORY: u64 = 512 << 20;
/// RAM of a built-in guest, if nothing is said.
pub const DEFAULT_BUILTIN_MEMORY: u64 = 128 << 20;
/// CPU template, if nothing is said.
pub const DEFAULT_CPU_TEMPLATE: &str = "host";
/// Kernel command line, if nothing is said: the serial console, and a restart after a panic.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=1";
/// Longest definition file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Longest disk serial that virtio-blk can carry (virtio 1.2, 5.2.6.1).
const SERIAL_MAX: usize = 20;
/// Longest interface name (`IFNAMSIZ` less its end).
const IFNAME_MAX: usize = 15;

/// What a user wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestFile {
    /// Name.
    pub name: Option<String>,
    /// Identity.
    pub uuid: Option<Uuid>,
    /// RAM in bytes; written `"1G"`.
    #[serde(default, deserialize_with = "size")]
    pub memory: Option<u64>,
    /// RAM on huge pages.
    pub huge_pages: Option<bool>,
    /// vCPUs.
    pub cpus: Option<u32>,
    /// Name of a CPU template, or `@` and a file with one.
    pub cpu_template: Option<String>,
    /// Dirty pages through rings.
    pub dirty_ring: Option<bool>,
    /// Kernel image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: Option<String>,
    /// Built-in guest.
    pub guest: Option<String>,
    /// ACPI tables.
    pub acpi: Option<bool>,
    /// Disks.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskFile>,
    /// Network interfaces.
    #[serde(default, rename = "net")]
    pub nets: Vec<NetFile>,
    /// A virtio console.
    pub virtio_console: Option<bool>,
    /// An entropy source.
    pub rng: Option<bool>,
    /// Context id of a virtio socket.
    pub vsock_cid: Option<u32>,
    /// A file that serial output is appended to.
    pub console_file: Option<PathBuf>,
    /// What happens after a crash.
    pub on_crash: Option<OnCrash>,
    /// What SIGTERM does.
    pub on_host_stop: Option<OnHostStop>,
    /// The daemon starts it when its host has booted.
    pub autostart: Option<bool>,
}

/// `[[disk]]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFile {
    /// Raw image or block device.
    pub path: PathBuf,
    /// The guest cannot write it.
    #[serde(default)]
    pub read_only: bool,
    /// Other hosts reach the same image at the same path.
    #[serde(default)]
    pub shared: bool,
    /// Host cache.
    #[serde(default)]
    pub cache: Cache,
    /// Identity that the guest sees; `disk0`, `disk1`, … if absent.
    pub serial: Option<String>,
}

/// `[[net]]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetFile {
    /// Name of an existing tap.
    pub tap: Option<String>,
    /// Or the bridge in which a tap is made.
    pub bridge: Option<String>,
    /// Or the name that `host.toml` gives such a bridge.
    pub network: Option<String>,
    /// MAC address; made if absent.
    #[serde(default, deserialize_with = "mac")]
    pub mac: Option<[u8; 6]>,
    /// MTU that the guest is told.
    pub mtu: Option<u16>,
}

impl NetFile {
    /// What it is joined to.
    ///
    /// # Errors
    /// `bad-definition` unless exactly one of tap, bridge and network is given, with a name that
    /// can be one.
    pub fn link(&self) -> Result<NetLink, Failure> {
        let links = [
            self.tap.clone().map(NetLink::Tap),
            self.bridge.clone().map(NetLink::Bridge),
            self.network.clone().map(NetLink::Network),
        ];
        let mut given = links.into_iter().flatten();
        let (Some(link), None) = (given.next(), given.next()) else {
            return Err(refuse(
                "an interface is joined to exactly one of tap, bridge and network",
                "give one, for example bridge=br0",
            ));
        };
        let (NetLink::Tap(name) | NetLink::Bridge(name) | NetLink::Network(name)) = &link;
        let name_ok = |c: u8| c.is_ascii_graphic() && c != b'/' && c != b':';
        if name.is_empty() || name.len() > IFNAME_MAX || !name.bytes().all(name_ok) {
            return Err(refuse(
                format!("'{name}' is not the name of an interface or a network"),
                format!("give at most {IFNAME_MAX} characters without '/', ':' and blanks"),
            ));
        }
        Ok(link)
    }
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    parse_size(&text).map(Some).map_err(serde::de::Error::custom)
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[u8; 6]>, D::Error> {
    let text = String::deserialize(from)?;
    parse_mac(&text).map(Some).map_err(serde::de::Error::custom)
}

fn refuse(message: impl Into<String>, remedy: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::BadDefinition, message, remedy)
}

impl GuestFile {
    /// Reads a definition file. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// `file` if it cannot be read, `bad-definition` with line and key if it is malformed.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        use std::io::Read;
        let cannot = |e: std::io::Error| {
            let code = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::File,
            };
            let message = format!("cannot read the definition {}: {e}", path.display());
            Failure::new(code, message, "check the path and its permissions")
        };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
        if text.len() as u64 > FILE_MAX {
            return Err(refuse(
                format!("the definition {} is larger than a MiB", path.display()),
                "check the path: definitions are short TOML files",
            ));
        }
        let mut parsed = Self::parse(&text, &path.display().to_string())?;
        let absolute = std::path::absolute(path).map_err(cannot)?;
        parsed.rebase(absolute.parent().unwrap_or(Path::new("/")));
        Ok(parsed)
    }

    /// Parses the text of a definition; `whence` names it in errors.
    ///
    /// # Errors
    /// `bad-definition` with line and key.
    pub fn parse(text: &str, whence: &str) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|e| {
            let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
            let line = 1 + before.bytes().filter(|b| *b == b'\n').count();
            refuse(
                format!("{whence}, line {line}: {}", e.message().trim_end()),
                "correct the file; 'migrate help files' lists the keys",
            )
        })
    }

    /// Makes relative paths absolute, from `base`, which is absolute.
    pub fn rebase(&mut self, base: &Path) {
        let disks = self.disks.iter_mut().map(|d| &mut d.path);
        let single = [&mut self.kernel, &mut self.initrd, &mut self.console_file];
        for path in single.into_iter().flatten().chain(disks) {
            *path = base.join(&*path);
        }
        if let Some(template) = &mut self.cpu_template
            && let Some(path) = template.strip_prefix('@')
        {
            *template = format!("@{}", base.join(path).display());
        }
    }

    /// What `over` says, and where it says nothing what `self` says. Disks and interfaces of
    /// `over` come after those of `self`.
    #[must_use]
    pub fn overlaid(mut self, over: Self) -> Self {
        // A kernel on the command line replaces a built-in guest of the file, and vice versa.
        if over.kernel.is_some() {
            self.guest = None;
        } else if over.guest.is_some() {
            (self.kernel, self.initrd, self.cmdline) = (None, None, None);
        }
        self.disks.extend(over.disks);
        self.nets.extend(over.nets);
        Self {
            name: over.name.or(self.name),
            uuid: over.uuid.or(self.uuid),
            memory: over.memory.or(self.memory),
            huge_pages: over.huge_pages.or(self.huge_pages),
            cpus: over.cpus.or(self.cpus),
            cpu_template: over.cpu_template.or(self.cpu_template),
            dirty_ring: over.dirty_ring.or(self.dirty_ring),
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline: over.cmdline.or(self.cmdline),
            guest: over.guest.or(self.guest),
            acpi: over.acpi.or(self.acpi),
            disks: self.disks,
            nets: self.nets,
            virtio_console: over.virtio_console.or(self.virtio_console),
            rng: over.rng.or(self.rng),
            vsock_cid: over.vsock_cid.or(self.vsock_cid),
            console_file: over.console_file.or(self.console_file),
            on_crash: over.on_crash.or(self.on_crash),
            on_host_stop: over.on_host_stop.or(self.on_host_stop),
            autostart: over.autostart.or(self.autostart),
        }
    }

    /// Fills in what was left out and checks everything that can be checked without the host. Of
    /// other files it reads the CPU template, if that is one.
    ///
    /// # Errors
    /// `bad-definition`, with what is wrong and what would be right; `file` or `not-found` if the
    /// template cannot be read.
    pub fn finish(self) -> Result<GuestDefinition, Failure> {
        self.check_boot()?;
        let builtin = self.guest.is_some();
        let name = match self.name {
            Some(name) => name,
            None => generate_name(if builtin { "scribbler" } else { "guest" }),
        };
        check_name(&name).map_err(|e| refuse(e, "choose another name"))?;
        let default = if builtin { DEFAULT_BUILTIN_MEMORY } else { DEFAULT_MEMORY };
        let (memory_bytes, huge_pages) =
            (self.memory.unwrap_or(default), self.huge_pages.unwrap_or(false));
        let cpus = self.cpus.unwrap_or(1);
        check_size(memory_bytes, huge_pages, cpus)?;
        if self.vsock_cid.is_some_and(|cid| !(3..u32::MAX).contains(&cid)) {
            return Err(refuse("vsock_cid must be 3 or more", "ids below 3 are reserved"));
        }
        let template = self.cpu_template.unwrap_or_else(|| DEFAULT_CPU_TEMPLATE.to_owned());
        let (cpu_template, cpu) = match template.strip_prefix('@') {
            None => (template, None),
            Some(path) => {
                let file = TemplateFile::read(Path::new(path))?;
                (file.name, Some(file.model))
            }
        };
        let cmdline = match (self.cmdline, builtin) {
            (Some(cmdline), _) => cmdline,
            (None, true) => String::new(),
            (None, false) => DEFAULT_CMDLINE.to_owned(),
        };
        Ok(GuestDefinition {
            name,
            uuid: self.uuid.unwrap_or_else(Uuid::new_v4),
            memory_bytes,
            huge_pages,
            cpus,
            cpu_template,
            cpu,
            dirty_ring: self.dirty_ring.unwrap_or(false),
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline,
            guest: self.guest,
            acpi: self.acpi.unwrap_or(true),
            disks: finish_disks(self.disks)?,
            nets: finish_nets(self.nets)?,
            virtio_console: self.virtio_console.unwrap_or(false),
            rng: self.rng.unwrap_or(!builtin),
            vsock_cid: self.vsock_cid,
            console_file: self.console_file,
            on_crash: self.on_crash.unwrap_or_default(),
            on_host_stop: self.on_host_stop.unwrap_or_default(),
        })
    }

    fn check_boot(&self) -> Result<(), Failure> {
        match (&self.kernel, &self.guest) {
            (None, None) => Err(refuse(
                "nothing to run: neither a kernel nor a built-in guest is given",
                "add --kernel FILE, or --guest scribbler",
            )),
            (Some(_), Some(_)) => Err(refuse(
                "both a kernel and a built-in guest are given",
                "give one of kernel and guest",
            )),
            (None, Some(guest)) if guest.split(':').next() != Some("scribbler") => Err(refuse(
                format!("there is no built-in guest '{guest}'"),
                "the built-in guest is called scribbler ('migrate help scribbler')",
            )),
            (None, Some(_)) if self.initrd.is_some() => {
                Err(refuse("a built-in guest takes no initrd", "leave the initrd out"))
            }
            (None, Some(_)) if self.cmdline.is_some() => Err(refuse(
                "a built-in guest takes its parameters with its name, not as a command line",
                "write --guest scribbler:KEY=VALUE,…",
            )),
            _ => Ok(()),
        }
    }
}

fn check_size(memory_bytes: u64, huge_pages: bool, cpus: u32) -> Result<(), Failure> {
    let remedy = "'migrate help files' lists the limits";
    vmm::config::MemoryConfig::new(memory_bytes, huge_pages)
        .map_err(|e| refuse(e.to_string(), remedy))?;
    vmm::config::VcpuCount::try_from(cpus).map_err(|e| refuse(e.to_string(), remedy))?;
    Ok(())
}

fn finish_disks(disks: Vec<DiskFile>) -> Result<Vec<DiskDefinition>, Failure> {
    let mut done: Vec<DiskDefinition> = Vec::with_capacity(disks.len());
    for (index, disk) in disks.into_iter().enumerate() {
        let serial = disk.serial.unwrap_or_else(|| format!("disk{index}"));
        let shown = disk.path.display();
        if !disk.path.is_absolute() {
            return Err(refuse(
                format!("the disk path '{shown}' is not absolute"),
                "give an absolute path",
            ));
        }
        if serial.is_empty()
            || serial.len() > SERIAL_MAX
            || !serial.bytes().all(|c| c.is_ascii_graphic())
        {
            return Err(refuse(
                format!(
                    "the serial '{serial}' of disk {shown} is not 1 to {SERIAL_MAX} printable ASCII characters"
                ),
                "choose a shorter serial, or leave it out",
            ));
        }
        if done.iter().any(|d| d.serial == serial) {
            return Err(refuse(
                format!("two disks have the serial '{serial}'"),
                "give each disk a serial of its own, or none",
            ));
        }
        if done.iter().any(|d| d.path == disk.path) {
            return Err(refuse(format!("the disk {shown} is given twice"), "leave one out"));
        }
        let DiskFile { path, read_only, shared, cache, .. } = disk;
        done.push(DiskDefinition { path, read_only, shared, cache, serial });
    }
    Ok(done)
}

fn finish_nets(nets: Vec<NetFile>) -> Result<Vec<NetDefinition>, Failure> {
    let mut done: Vec<NetDefinition> = Vec::with_capacity(nets.len());
    for net in nets {
        let link = net.link()?;
        let NetFile { mac, mtu, .. } = net;
        if !link.is_made() && done.iter().any(|n| n.link == link) {
            return Err(refuse(format!("the {link} is given twice"), "leave one out"));
        }
        // 68: the least MTU of IPv4 (RFC 791), and virtio's least (virtio 1.2, 5.1.4.1).
        if mtu.is_some_and(|mtu| mtu < 68) {
            return Err(refuse(format!("the MTU of {link} is below 68"), "give 68 to 65535"));
        }
        let mac = mac.unwrap_or_else(generate_mac);
        if done.iter().any(|n| n.mac == mac) {
            return Err(refuse(
                format!("two interfaces have the MAC address of {link}"),
                "give each its own, or none",
            ));
        }
        done.push(NetDefinition { link, mac, mtu });
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finished(text: &str) -> Result<GuestDefinition, Failure> {
        let mut file = GuestFile::parse(text, "t.toml")?;
        file.rebase(Path::new("/base"));
        file.finish()
    }

    #[test]
    fn a_template_in_a_file_goes_into_the_definition() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"schema":1,"type":"cpu-template","name":"t1","leaves":[
            {"leaf":"0x0","eax":"0x1","ebx":"0x0","ecx":"0x0","edx":"0x0"},
            {"leaf":"0x1","eax":"0x2","ebx":"0x0","ecx":"0x0","edx":"0x0"}]}"#;
        std::fs::write(dir.path().join("t.json"), text).unwrap();
        let definition = |template: &str| {
            let text = format!("guest = 'scribbler'\ncpu_template = '{template}'");
            let mut file = GuestFile::parse(&text, "t.toml").unwrap();
            file.rebase(dir.path());
            file.finish()
        };
        let made = definition("@t.json").unwrap();
        assert_eq!(
            (made.cpu_template.as_str(), made.cpu.as_ref().unwrap().leaves.len()),
            ("t1", 2)
        );
        let json = serde_json::to_vec(&made).unwrap();
        assert_eq!(serde_json::from_slice::<GuestDefinition>(&json).unwrap(), made);
        assert_eq!(definition("@u.json").unwrap_err().0.code, ErrorCode::NotFound);
        assert_eq!(definition("x86-64-v2").unwrap().cpu, None);
    }

    #[test]
    fn a_full_file_becomes_its_canonical_definition() {
        let text = r#"
            name = "web1"
            uuid = "00000000-0000-4000-8000-000000000001"
            memory = "1G"
            huge_pages = true
            cpus = 2
            kernel = "vmlinux"
            initrd = "/boot/initrd"
            cmdline = "console=ttyS0 quiet"
            acpi = false
            rng = false
            virtio_console = true
            vsock_cid = 5
            console_file = "serial.log"
            on_crash = "restart"
            on_host_stop = "save"
            [[disk]]
            path = "root.img"
            shared = true
            [[disk]]
            path = "/data.img"
            read_only = true
            cache = "writeback"
            serial = "data"
            [[net]]
            tap = "tap0"
            mac = "52:54:00:12:34:56"
            mtu = 9000
            [[net]]
            network = "lan"
            mac = "52:54:00:12:34:57"
        "#;
        let json = serde_json::to_value(finished(text).unwrap()).unwrap();
        let golden = serde_json::json!({
            "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001",
            "memory_bytes": 1_073_741_824_u64, "huge_pages": true, "cpus": 2,
            "cpu_template": "host", "dirty_ring": false,
            "kernel": "/base/vmlinux", "initrd": "/boot/initrd",
            "cmdline": "console=ttyS0 quiet", "guest": null, "acpi": false,
            "disks": [
                {"path": "/base/root.img", "read_only": false, "shared": true, "cache": "none",
                 "serial": "disk0"},
                {"path": "/data.img", "read_only": true, "shared": false, "cache": "writeback",
                 "serial": "data"}
            ],
            "nets": [
                {"tap": "tap0", "mac": [0x52, 0x54, 0, 0x12, 0x34, 0x56], "mtu": 9000},
                {"network": "lan", "mac": [0x52, 0x54, 0, 0x12, 0x34, 0x57], "mtu": null}
            ],
            "virtio_console": true, "rng": false, "vsock_cid": 5,
            "console_file": "/base/serial.log",
            "on_crash": "restart", "on_host_stop": "save"
        });
        assert_eq!(json, golden);
        let back: GuestDefinition = serde_json::from_value(json).unwrap();
        assert_eq!(back, finished(text).unwrap());
    }

    #[test]
    fn defaults() {
        let linux = finished("kernel = 'k'").unwrap();
        assert_eq!((linux.memory_bytes, linux.cpus, linux.rng), (512 << 20, 1, true));
        assert_eq!(linux.cmdline, "console=ttyS0 panic=1");
        let scribbler = finished("guest = 'scribbler'\n[[net]]\ntap = 't'").unwrap();
        assert_eq!((scribbler.memory_bytes, scribbler.rng), (128 << 20, false));
        assert!(scribbler.name.starts_with("scribbler-"));
        assert_eq!(scribbler.nets[0].mac[..3], [0x52, 0x54, 0]);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let disk = "guest = 'scribbler'\n[[disk]]\npath = '/a'\n";
        let net = "guest = 'scribbler'\n[[net]]\ntap = 't'\n";
        for (text, needle) in [
            ("\nmemroy = '1G'".to_owned(), "t.toml, line 2: unknown field `memroy`"),
            ("memory = '1X'".to_owned(), "'1X' is not a size"),
            ("memory = 1024".to_owned(), "expected a string"),
            (format!("{disk}pth = 'x'"), "unknown field `pth`"),
            (format!("{disk}cache = 'x'"), "unknown variant `x`"),
            (format!("{disk}[[disk]]\npath = '/a'"), "given twice"),
            (format!("{disk}serial = 'disk1'\n[[disk]]\npath = '/b'"), "serial 'disk1'"),
            (format!("{disk}serial = '{}'", "x".repeat(21)), "1 to 20"),
            (format!("{net}mac = '1'"), "'1' is not a MAC"),
            (format!("{net}mtu = 67"), "below 68"),
            (format!("{net}[[net]]\ntap = 't'"), "given twice"),
            ("guest = 'scribbler'\n[[net]]\ntap = '0123456789abcdef'".to_owned(), "interface"),
            (format!("{net}bridge = 'b'"), "exactly one of"),
            ("guest = 'scribbler'\n[[net]]\nmtu = 1400".to_owned(), "exactly one of"),
            ("name = 'A'\nguest = 'scribbler'".to_owned(), "not a guest name"),
            ("guest = 'scrabbler'".to_owned(), "no built-in guest"),
            ("guest = 'scribbler'\nkernel = 'k'".to_owned(), "both a kernel"),
            ("guest = 'scribbler'\ninitrd = 'k'".to_owned(), "no initrd"),
            ("guest = 'scribbler'\nmemory = '1M'".to_owned(), "out of range"),
            ("guest = 'scribbler'\nmemory = '17000001'".to_owned(), "not a multiple"),
            ("guest = 'scribbler'\ncpus = 33".to_owned(), "33 vCPUs"),
            ("guest = 'scribbler'\nvsock_cid = 2".to_owned(), "vsock_cid"),
            (String::new(), "nothing to run"),
        ] {
            let failure = finished(&text).unwrap_err();
            assert_eq!(failure.0.code, ErrorCode::BadDefinition, "{text}");
            assert!(failure.0.message.contains(needle), "{text}: {}", failure.0.message);
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = GuestFile::parse("kernel = '/k'\ninitrd = '/i'\nmemory = '1G'\ncpus = 2", "f");
        let flags =
            GuestFile { guest: Some("scribbler".into()), cpus: Some(4), ..GuestFile::default() };
        let both = file.unwrap().overlaid(flags).finish().unwrap();
        assert_eq!((both.cpus, both.memory_bytes, both.kernel), (4, 1 << 30, None));
    }

    proptest! {
        #[test]
        fn hostile_text_is_refused_or_finished(text in "(?s).{0,200}") {
            let _ = finished(&text);
        }
    }
}
