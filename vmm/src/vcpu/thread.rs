//! A vCPU's thread: runs the guest, dispatches its exits, stops on request with nothing
//! unfinished, and reads its own registers for a save.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use vmm_sys_util::signal::Killable;

use super::kick::{self, RunPage};
use super::regs::{self, Abilities};
use crate::devices::bus::Bus;
use crate::events::{EventSink, GuestEvent};
use crate::kvm::Vm;
use crate::memory::ring::RingSet;
use crate::state::v1::{CpuidEntry, VcpuState};

/// Why a vCPU could not be made, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A part of a saved state was refused.
    #[error("KVM refused {call} ({values} in the saved state): {source}")]
    Refused {
        /// The ioctl.
        call: &'static str,
        /// What it was to set, as far as it tells something.
        values: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// More entries than KVM takes.
    #[error("more {0} than KVM takes")]
    TooMany(&'static str),
    /// A register that was readable before is not now.
    #[error("MSR {0:#x} cannot be read")]
    MsrRead(u32),
    /// A register of the saved state is refused here.
    #[error(
        "MSR {index:#x} cannot be set to {value:#x}{}: this host's CPU or KVM differs from the one the guest was saved on; use a CPU template that both have",
        .has.map(|h| format!(" (here it is {h:#x})")).unwrap_or_default()
    )]
    MsrWrite {
        /// Number of the register.
        index: u32,
        /// Wanted.
        value: u64,
        /// What it is here.
        has: Option<u64>,
    },
    /// A field of the saved state has the wrong size.
    #[error("saved vCPU field {field} has {found} bytes, this host needs {wanted}")]
    Field {
        /// The field.
        field: &'static str,
        /// In the state.
        found: usize,
        /// Here.
        wanted: usize,
    },
    /// The guest uses components of the extended state that this host has not.
    #[error(
        "{register} of the saved vCPU is {saved:#x}, this host's CPU or KVM has {here:#x}: use a host that has the same, or a CPU template that both have"
    )]
    Components {
        /// The register.
        register: &'static str,
        /// In the state.
        saved: u64,
        /// What it may have here.
        here: u64,
    },
    /// The TSC frequencies differ.
    #[error(
        "the guest's TSC runs at {state} kHz, this host's at {host} kHz: use a host of the same frequency"
    )]
    TscKhz {
        /// In the state.
        state: u32,
        /// Here.
        host: u32,
    },
    /// The thread could not be started or is gone.
    #[error("a vCPU's thread is gone")]
    ThreadGone,
}

impl VcpuError {
    /// Wraps a failed ioctl.
    pub fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Call { call, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// Wraps a failed ioctl that was to bring `values` back.
    pub fn refused(
        call: &'static str,
        values: impl FnOnce() -> String,
    ) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Refused {
            call,
            values: values(),
            source: io::Error::from_raw_os_error(e.errno()),
        }
    }
}

/// What answers a vCPU's exits.
pub struct Buses {
    /// Ports.
    pub pio: Bus,
    /// Memory outside RAM.
    pub mmio: Bus,
}

/// What a vCPU's thread works with.
pub struct VcpuParts {
    /// Its number.
    pub index: u32,
    /// The vCPU, with CPUID and registers set.
    pub fd: VcpuFd,
    /// The CPUID it was given.
    pub cpuid: Vec<CpuidEntry>,
    /// What it has.
    pub abilities: Arc<Abilities>,
    /// Who answers its exits.
    pub buses: Arc<Buses>,
    /// Whom to tell of resets and crashes.
    pub events: EventSink,
    /// The machine and its dirty rings, if it has them.
    pub rings: Option<(Vm, Arc<RingSet>)>,
}

enum Command {
    Run,
    Save(Sender<Result<VcpuState, VcpuError>>),
}

/// Shared between the thread and those who kick it.
#[derive(Debug, Default)]
struct Signals {
    stop: AtomicBool,
    /// Microseconds to sleep at the next kick (throttle).
    sleep_us: AtomicU64,
}

/// A vCPU's thread, seen from outside. Dropping it ends the thread.
#[derive(Debug)]
pub struct VcpuThread {
    signals: Arc<Signals>,
    commands: Option<Sender<Command>>,
    parked: Receiver<()>,
    join: Option<Arc<JoinHandle<()>>>,
}

/// Makes one vCPU sleep. Outlives the thread harmlessly.
#[derive(Clone, Debug)]
pub struct Kicker {
    signals: Arc<Signals>,
    join: std::sync::Weak<JoinHandle<()>>,
}

impl Kicker {
    /// Makes the vCPU sleep for `time`, starting now.
    pub fn sleep(&self, time: Duration) {
        if let Some(join) = self.join.upgrade() {
            let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            self.signals.sleep_us.store(us, Ordering::Release);
            kick_thread(&join);
        }
    }
}

fn kick_thread(join: &JoinHandle<()>) {
    // Fails only if the thread has ended, and then there is nobody to kick.
    let _ = join.kill(kick::signal());
    join.thread().unpark();
}

impl VcpuThread {
    /// Starts the thread; the vCPU does not run yet.
    pub fn start(parts: VcpuParts) -> Result<Self, VcpuError> {
        let signals = Arc::new(Signals::default());
        let (commands, inbox) = channel();
        let (parked_tx, parked) = channel();
        let name = format!("vcpu{}", parts.index);
        let body = Body { parts, signals: signals.clone(), inbox, parked: parked_tx };
        let join = std::thread::Builder::new()
            .name(name)
            .spawn(move || body.serve())
            .map_err(|source| VcpuError::Call { call: "a thread for the vCPU", source })?;
        Ok(Self { signals, commands: Some(commands), parked, join: Some(Arc::new(join)) })
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        let commands = self.commands.as_ref().ok_or(VcpuError::ThreadGone)?;
        commands.send(command).map_err(|_| VcpuError::ThreadGone)
    }

    /// Lets the vCPU run.
    pub fn run(&self) -> Result<(), VcpuError> {
        self.signals.stop.store(false, Ordering::Release);
        self.send(Command::Run)
    }

    /// Asks it to stop; [`VcpuThread::wait_parked`] waits for it.
    pub fn request_stop(&self) {
        self.signals.stop.store(true, Ordering::Release);
        if let Some(join) = &self.join {
            kick_thread(join);
        }
    }

    /// Waits until a vCPU that ran has stopped, with nothing unfinished.
    pub fn wait_parked(&self) -> Result<(), VcpuError> {
        self.parked.recv().map_err(|_| VcpuError::ThreadGone)
    }

    /// Asks a stopped vCPU for its state; it comes over the receiver.
    pub fn save(&self) -> Result<Receiver<Result<VcpuState, VcpuError>>, VcpuError> {
        let (reply, state) = channel();
        self.send(Command::Save(reply))?;
        Ok(state)
    }

    /// A handle that can make it sleep.
    pub fn kicker(&self) -> Kicker {
        let join = self.join.as_ref().map(Arc::downgrade).unwrap_or_default();
        Kicker { signals: self.signals.clone(), join }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.request_stop();
        self.commands = None;
        if let Some(mut join) = self.join.take() {
            // A kicker may hold the handle for the moment of a kick.
            loop {
                match Arc::try_unwrap(join) {
                    Ok(join) => {
                        let _ = join.join();
                        return;
                    }
                    Err(shared) => join = shared,
                }
                std::thread::yield_now();
            }
        }
    }
}

struct Body {
    parts: VcpuParts,
    signals: Arc<Signals>,
    inbox: Receiver<Command>,
    parked: Sender<()>,
}

/// What to do after an exit.
enum Next {
    Continue,
    /// `KVM_RUN` was left without an exit: nothing is unfinished.
    Interrupted,
    /// The guest is told nothing more until its owner decides.
    Halt(GuestEvent),
}

impl Body {
    fn serve(mut self) {
        let page = RunPage::register(&mut self.parts.fd);
        while let Ok(command) = self.inbox.recv() {
            match command {
                Command::Run => {
                    self.run(&page);
                    if self.parked.send(()).is_err() {
                        return;
                    }
                }
                Command::Save(reply) => {
                    let p = &self.parts;
                    let _ = reply.send(regs::save(&p.fd, &p.abilities, &p.cpuid));
                }
            }
        }
    }

    fn stopping(&self) -> bool {
        self.signals.stop.load(Ordering::Acquire)
    }

    /// Runs the guest until asked to stop.
    fn run(&mut self, page: &RunPage) {
        while !self.stopping() {
            match self.step(page) {
                Next::Continue => {}
                Next::Interrupted => self.sleep_if_throttled(),
                Next::Halt(event) => return self.halt(event),
            }
        }
        // KVM finishes the instruction of the last exit only at the next entry: enter again, to
        // return before the guest runs. An access that KVM splits takes several entries.
        page.set_immediate_exit(true);
        loop {
            match self.step(page) {
                Next::Continue => {}
                Next::Interrupted => break,
                Next::Halt(event) => return self.halt(event),
            }
        }
        page.set_immediate_exit(false);
    }

    /// Reports why the vCPU cannot go on and waits to be stopped.
    fn halt(&self, event: GuestEvent) {
        self.parts.events.send(event);
        while !self.stopping() {
            std::thread::park();
        }
    }

    /// Sleeps for as long as the throttle asked at its last kick, unless asked to stop.
    fn sleep_if_throttled(&self) {
        let us = self.signals.sleep_us.swap(0, Ordering::AcqRel);
        if us == 0 {
            return;
        }
        let until = Instant::now() + Duration::from_micros(us);
        while !self.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    /// Enters the guest once and handles the exit.
    fn step(&mut self, page: &RunPage) -> Next {
        let index = self.parts.index;
        let buses = &self.parts.buses;
        let crash = |reason: String| {
            Next::Halt(GuestEvent::Crash { reason: format!("vCPU {index}: {reason}") })
        };
        match self.parts.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                for access in data.chunks(page.port_access_size()) {
                    buses.pio.write(u64::from(port), access);
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                for access in data.chunks_mut(page.port_access_size()) {
                    buses.pio.read(u64::from(port), access);
                }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                buses.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                buses.mmio.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => return Next::Halt(GuestEvent::TripleFault { vcpu: index }),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Next::Halt(GuestEvent::PowerOff);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Next::Halt(GuestEvent::Reset);
            }
            Ok(VcpuExit::Intr) => return Next::Interrupted,
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => return self.relieve_rings(),
            Ok(other) => return crash(format!("the guest cannot go on: {other:?}")),
            Err(e) => match Errno::from_raw(e.errno()) {
                Errno::EINTR => {
                    page.set_immediate_exit(self.stopping());
                    return Next::Interrupted;
                }
                Errno::EAGAIN => {}
                errno => return crash(format!("KVM_RUN failed: {}", errno.desc())),
            },
        }
        Next::Continue
    }

    fn relieve_rings(&self) -> Next {
        let Some((vm, rings)) = &self.parts.rings else { return Next::Continue };
        match rings.relieve(vm) {
            Ok(()) => Next::Continue,
            Err(e) => Next::Halt(GuestEvent::Crash { reason: e.to_string() }),
        }
    }
}
