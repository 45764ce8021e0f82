//! The program of a host on which guests that arrive do not fit. It is `migrate`, but for its guest
//! processes: they find on this host, or in the state that their guest's source sent, what a file
//! `oddity` in the instance's directory says. Without that file they are as any other.
//!
//! A part of the tests, and of nothing else: `migrate` itself contains none of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's part may fail by panicking")]

mod kernel;
mod state;

use std::fs;
use std::process::ExitCode;

use migrate::adapter::VmmHost;
use migrate::api::Failure;
use migrate::config::GuestDefinition;
use migrate::guest::disks::tracks::Tracks;
use migrate::guest::disks::{Asked, DiskSet};
use migrate::guest::machine::{Fill, MachineReceiver, MakeMachine, Restore};
use migrate::guest::process::{OpenMachine, OpenedMachine, Passed, process_main};
use migrate::guest::runtime::RuntimeDir;
use migrate::guest::save::SavedDisk;
use migrate::guest::server::WaitConsole;
use migrate::host::spawn;
use migrate_engine::port::Rehearsal;
use vmm::events::EventSink;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == spawn::SUBCOMMAND) {
        return process_main(&OddHost);
    }
    migrate::logging::start(std::env::args_os());
    migrate::cli::main(std::env::args_os())
}

/// What is odd: a word, and what it needs to be done.
#[derive(Clone, Debug, Default)]
struct Oddity {
    word: String,
    value: String,
}

impl Oddity {
    /// As the file in a directory above says.
    fn of(dir: &RuntimeDir) -> Self {
        let mut files = dir.paths().dir().ancestors().map(|dir| dir.join("oddity"));
        let text = files.find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let (word, value) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        Self { word: word.to_owned(), value: value.to_owned() }
    }

    fn number(&self) -> u64 {
        self.value.parse().expect("the oddity's number")
    }
}

struct OddHost;

impl OpenMachine for OddHost {
    type Opened = OddOpened;

    fn open(
        &self,
        definition: &GuestDefinition,
        dir: &RuntimeDir,
        mut passed: Passed,
        events: EventSink,
    ) -> Result<OddOpened, Failure> {
        let oddity = Oddity::of(dir);
        let mut definition = definition.clone();
        match oddity.word.as_str() {
            // Nothing was set aside for them here.
            "huge-pages" => definition.huge_pages = true,
            "template" => definition.cpu_template.clone_from(&oddity.value),
            "hide" => passed.hidden.push(oddity.value.clone()),
            "capability" => kernel::without_capability(oddity.number()),
            "call" => kernel::refuse_call(&oddity.value),
            "limit" => kernel::limit(&oddity.value),
            _ => {}
        }
        let opened = VmmHost.open(&definition, dir, passed, events)?;
        Ok(OddOpened { opened, oddity })
    }
}

type Opened = <VmmHost as OpenMachine>::Opened;
type Machines = <Opened as OpenedMachine>::Machines;
type Receiver = <Machines as MakeMachine>::Receiver;
type Paused = <Machines as MakeMachine>::Paused;

struct OddOpened {
    opened: Opened,
    oddity: Oddity,
}

impl OpenedMachine for OddOpened {
    type Machines = OddMachines;

    fn claim_disks(&self, asked: Asked) -> Result<DiskSet, Failure> {
        self.opened.claim_disks(asked)
    }

    fn disks(&mut self) -> Vec<SavedDisk> {
        self.opened.disks()
    }

    fn start(self, tracks: &Tracks) -> Result<(OddMachines, WaitConsole), Failure> {
        let Self { opened, oddity } = self;
        let (machines, wait) = opened.start(tracks)?;
        Ok((OddMachines { machines, oddity }, wait))
    }
}

struct OddMachines {
    machines: Machines,
    oddity: Oddity,
}

impl MakeMachine for OddMachines {
    type Paused = Paused;
    type Receiver = OddReceiver;

    fn receiver(&mut self) -> Result<OddReceiver, Failure> {
        let receiver = self.machines.receiver()?;
        Ok(OddReceiver { receiver, oddity: self.oddity.clone() })
    }

    fn boot(&mut self) -> Result<Paused, Failure> {
        self.machines.boot()
    }

    fn restore(
        &mut self,
        state: &[u8],
        how: Restore,
        fill: &mut Fill<'_>,
    ) -> Result<(Paused, std::time::Duration), Failure> {
        self.machines.restore(state, how, fill)
    }
}

struct OddReceiver {
    receiver: Receiver,
    oddity: Oddity,
}

impl OddReceiver {
    fn changed(oddity: &Oddity, state: &[u8]) -> Vec<u8> {
        match oddity.word.as_str() {
            "state" => state::changed(&oddity.value, state),
            _ => state.to_vec(),
        }
    }
}

impl MachineReceiver for OddReceiver {
    type Paused = Paused;
    type Ram = <Receiver as MachineReceiver>::Ram;

    fn ram(&self) -> Self::Ram {
        self.receiver.ram()
    }

    fn rehearse(&mut self, state: &[u8]) -> Rehearsal {
        self.receiver.rehearse(&Self::changed(&self.oddity, state))
    }

    /// What the rehearsal misses would be found here, when the guest stands still.
    fn restore(self, state: &[u8]) -> Result<Paused, Failure> {
        self.receiver.restore(&Self::changed(&self.oddity, state))
    }
}
