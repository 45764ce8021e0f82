//! Opens everything that a definition names, before the process is confined. It interprets
//! nothing and starts no thread.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmm::boot::{BootSource, KernelImage};
use vmm::config::{DirtyTracking, MachineConfig, MemoryConfig, VcpuCount};
use vmm::devices::console::{Console, ConsoleConfig, LogFiles, Missed, OutputReader, Position};
use vmm::devices::tap::Tap;
use vmm::devices::virtio::block::open_disk;
use vmm::events::EventSink;
use vmm::kvm::Kvm;
use vmm::memory::layout::ACPI_PM_PORT;
use vmm::scribbler::{self, Params};

use super::failure;
use super::machine::VmmMachines;
use super::memory::{self, Bound, By};
use crate::api::{ErrorCode, Failure};
use crate::config::{Cache, DiskDefinition, GuestDefinition, GuestPaths, NetDefinition, NetLink};
use crate::guest::disks::track::DiskTrack;
use crate::guest::disks::tracks::{Cooler, Tracks};
use crate::guest::disks::{Asked, DiskSet, Part};
use crate::guest::process::{OpenMachine, OpenedMachine, Passed};
use crate::guest::runtime::RuntimeDir;
use crate::guest::save::SavedDisk;
use crate::guest::server::{WaitConsole, Waited};

/// This host, through `vmm`.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmmHost;

/// A disk, open.
#[derive(Debug)]
pub struct OpenDisk {
    pub definition: DiskDefinition,
    /// The guest's handle. Copies of it carry the locks that the guest's [`DiskSet`] takes.
    pub file: File,
}

/// A virtio socket's host side.
#[derive(Debug)]
pub struct OpenVsock {
    pub cid: u32,
    pub listener: UnixListener,
    pub path: PathBuf,
}

/// Everything that a guest is made of, open.
pub struct Opened {
    pub definition: GuestDefinition,
    pub kvm: Kvm,
    pub config: MachineConfig,
    pub boot: BootSource,
    pub disks: Vec<OpenDisk>,
    pub taps: Vec<Tap>,
    pub vsock: Option<OpenVsock>,
    pub random: Option<File>,
    pub events: EventSink,
    /// What stands around the writes of each disk; none before the start.
    pub tracks: Vec<Option<Arc<DiskTrack>>>,
    cooler: Option<Cooler>,
    console: ConsoleConfig,
    hvc: Option<ConsoleConfig>,
}

impl OpenMachine for VmmHost {
    type Opened = Opened;

    fn open(
        &self,
        definition: &GuestDefinition,
        dir: &RuntimeDir,
        passed: Passed,
        events: EventSink,
    ) -> Result<Opened, Failure> {
        let config = config(definition)?;
        let kvm = Kvm::open().map_err(|e| failure::kvm(&e))?.hiding(passed.hidden);
        check_memory(definition)?;
        let boot = boot_source(definition)?;
        let disks = definition.disks.iter().map(disk).collect::<Result<_, _>>()?;
        let taps = taps(definition, passed.taps)?;
        let paths = dir.paths();
        let random = definition.rng.then(|| open_read("the source of randomness", RANDOM));
        let vsock = definition.vsock_cid.map(|cid| -> Result<_, Failure> {
            let path = paths.vsock();
            Ok(OpenVsock { cid, listener: dir.bind(&path)?, path })
        });
        let hvc = definition.virtio_console.then(|| -> Result<_, Failure> {
            let listener = Some(dir.bind(&paths.hvc())?);
            Ok(ConsoleConfig { listener, ..ConsoleConfig::default() })
        });
        let console = ConsoleConfig {
            listener: Some(dir.bind(&paths.console())?),
            log: Some(log_files(paths)?),
            stdio: false,
            file: console_output(definition, passed.console)?,
        };
        Ok(Opened {
            definition: definition.clone(),
            kvm,
            config,
            boot,
            disks,
            taps,
            vsock: vsock.transpose()?,
            random: random.transpose()?,
            events,
            tracks: Vec::new(),
            cooler: None,
            console,
            hvc: hvc.transpose()?,
        })
    }
}

impl OpenedMachine for Opened {
    type Machines = VmmMachines;

    fn claim_disks(&self, asked: Asked) -> Result<DiskSet, Failure> {
        let disks = self.disks.iter();
        let parts: Vec<_> =
            disks.map(|OpenDisk { definition, file }| Part { definition, file }).collect();
        DiskSet::claim(asked, &parts).map_err(|e| e.failure())
    }

    fn disks(&mut self) -> Vec<SavedDisk> {
        let saved = |disk: &OpenDisk| {
            let path = disk.definition.path.clone();
            // Beside the guest's handle, which may bypass the cache and wants aligned reads.
            let file = File::open(&path).or_else(|_| disk.file.try_clone()).ok()?;
            Some(SavedDisk { path, file, writable: !disk.definition.read_only })
        };
        self.disks.iter().filter_map(saved).collect()
    }

    fn start(mut self, tracks: &Tracks) -> Result<(VmmMachines, WaitConsole), Failure> {
        let start = |config| {
            Console::new(config).map_err(|e| failure::unexpected("the console cannot start", &e))
        };
        let console = start(std::mem::take(&mut self.console))?;
        let hvc = self.hvc.take().map(start).transpose()?;
        self.tracks = tracks.of_disks().collect();
        let cooler = Cooler::start(tracks);
        self.cooler = Some(cooler.map_err(|e| failure::unexpected("disks cannot be tracked", &e))?);
        let waited = console.clone();
        let wait: WaitConsole = Arc::new(move |text, timeout, given_up| {
            wait_console(waited.subscribe(Position::Scrollback), text, timeout, given_up)
        });
        Ok((VmmMachines::new(self, console, hvc), wait))
    }
}

/// How often a wait for console output looks whether its client is still there.
const GIVE_UP_LOOK: Duration = Duration::from_millis(500);

/// Waits until `text` appears on a console, for `timeout` at most, or until it is given up.
fn wait_console(
    mut reader: OutputReader,
    text: &str,
    timeout: Duration,
    given_up: &AtomicBool,
) -> Waited {
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        match reader.wait_for(text.as_bytes(), Instant::now() + left.min(GIVE_UP_LOOK)) {
            Ok(()) => return Waited::Seen,
            Err(Missed::Closed) => return Waited::Gone,
            Err(Missed::Deadline) if left.is_zero() || given_up.load(Ordering::Relaxed) => {
                return Waited::Late;
            }
            Err(Missed::Deadline) => {}
        }
    }
}

/// Where random bytes come from.
const RANDOM: &str = "/dev/urandom";

fn config(definition: &GuestDefinition) -> Result<MachineConfig, Failure> {
    let refuse = |e: vmm::config::ConfigError| failure::definition(e.to_string());
    let tracking = if definition.dirty_ring { DirtyTracking::Ring } else { DirtyTracking::Log };
    Ok(MachineConfig {
        memory: MemoryConfig::new(definition.memory_bytes, definition.huge_pages)
            .map_err(refuse)?,
        vcpus: VcpuCount::try_from(definition.cpus).map_err(refuse)?,
        cpu_template: definition.cpu_template.clone(),
        cpu_model: definition.cpu.clone(),
        dirty_tracking: tracking,
        generation_id: *definition.uuid.as_bytes(),
    })
}

/// Guest RAM is only reserved as it is used, so a guest that can never fit would die late.
fn check_memory(definition: &GuestDefinition) -> Result<(), Failure> {
    let Some(Bound { bytes, by }) = memory::bound() else { return Ok(()) };
    if definition.memory_bytes <= bytes {
        return Ok(());
    }
    let (less, remedy) = match by {
        By::Host => ("this host has".to_owned(), "give it less memory or use a larger host"),
        By::Group(file) => (
            format!("the control group of its process may have ({})", file.display()),
            "give it less memory or raise that limit",
        ),
        By::Addresses => (
            "the limit of its process's address space leaves for it (ulimit -v)".to_owned(),
            "give it less memory or raise that limit",
        ),
    };
    let message = format!(
        "the guest's memory of {} MiB is more than {less}: {} MiB",
        definition.memory_bytes >> 20,
        bytes >> 20
    );
    Err(Failure::new(ErrorCode::NoMemory, message, remedy))
}

fn boot_source(definition: &GuestDefinition) -> Result<BootSource, Failure> {
    let initrd = definition.initrd.as_deref().map(|p| open_read("the initrd", p)).transpose()?;
    let (kernel, cmdline) = match (&definition.guest, &definition.kernel) {
        (Some(spec), None) => built_in(spec, definition)?,
        (None, Some(path)) => {
            (KernelImage::File(open_read("the kernel", path)?), definition.cmdline.clone())
        }
        (None, None) => {
            return Err(failure::definition("the guest has neither a kernel nor a built-in guest"));
        }
        (Some(_), Some(_)) => {
            return Err(failure::definition("a guest has a kernel or a built-in guest, not both"));
        }
    };
    Ok(BootSource { kernel, initrd, cmdline, acpi: definition.acpi })
}

fn built_in(spec: &str, definition: &GuestDefinition) -> Result<(KernelImage, String), Failure> {
    let refuse = |e: scribbler::ParamError| failure::definition(e.to_string());
    let params = Params::parse(spec).map_err(refuse)?;
    params.fits(definition.memory_bytes, definition.cpus).map_err(refuse)?;
    let cmdline = params.command_line(definition.cpus, Some(ACPI_PM_PORT));
    Ok((KernelImage::Bytes(scribbler::elf()), cmdline))
}

fn disk(definition: &DiskDefinition) -> Result<OpenDisk, Failure> {
    let direct = definition.cache == Cache::None;
    let file = open_disk(&definition.path, definition.read_only, direct)
        .map_err(|e| failure::disk(&definition.path, &e))?;
    Ok(OpenDisk { definition: definition.clone(), file })
}

fn open_read(what: &str, path: impl AsRef<Path>) -> Result<File, Failure> {
    File::open(&path).map_err(|e| failure::file(what, path.as_ref(), &e))
}

/// The tap of each interface: one that was `passed`, or an existing one.
fn taps(definition: &GuestDefinition, passed: Vec<OwnedFd>) -> Result<Vec<Tap>, Failure> {
    let mut passed = passed.into_iter();
    let tap = |net: &NetDefinition| match &net.link {
        NetLink::Tap(name) => Tap::open(name).map_err(|e| failure::tap(&e)),
        link => match passed.next() {
            Some(fd) => Tap::from_fd(fd).map_err(|e| failure::tap(&e)),
            None => Err(failure::unexpected("no tap came with the launch", link)),
        },
    };
    definition.nets.iter().map(tap).collect()
}

/// Where serial output goes beside socket and log: a passed descriptor, or a file that grows.
fn console_output(
    definition: &GuestDefinition,
    passed: Option<OwnedFd>,
) -> Result<Option<File>, Failure> {
    if let Some(passed) = passed {
        return Ok(Some(File::from(passed)));
    }
    let open = |path: &PathBuf| {
        let options = OpenOptions::new().append(true).create(true).mode(0o600).clone();
        options.open(path).map_err(|e| failure::file("the console's file", path, &e))
    };
    definition.console_file.as_ref().map(open).transpose()
}

fn log_files(paths: &GuestPaths) -> Result<LogFiles, Failure> {
    let open = |path: PathBuf| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failure::file("the console's log", &path, &e))
    };
    let current = paths.console_log();
    let previous = current.with_extension("log.1");
    Ok(LogFiles { current: open(current)?, previous: open(previous)? })
}
