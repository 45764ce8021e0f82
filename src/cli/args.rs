//! The command line: types only. Every text here is shown by `--help`.

pub mod host;
pub mod moving;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::api::ClockChoice;
use crate::config::{DiskFile, Instance, NetFile, parse_duration, parse_name, parse_size};

use self::host::HostArgs;
use self::moving::{DemoArgs, HistoryArgs, MoveArgs, ResolveArgs, WatchArgs, WhichArgs};
use super::values::{WaitFor, parse_disk, parse_net, parse_percent, parse_wait_for};

/// Run, pause, save and move KVM guests.
#[derive(Debug, Parser)]
#[command(
    name = "migrate",
    version,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    override_usage = "migrate [OPTIONS] <COMMAND>\n       migrate [OPTIONS] [GUEST]... --to <HOST>",
    after_help = "First steps: migrate demo\n\
                  More: migrate help quickstart; all topics: migrate help"
)]
pub struct Cli {
    /// Options that mean the same everywhere.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that mean the same everywhere.
#[derive(Clone, Debug, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct Global {
    /// Print results and errors as JSON on stdout
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print results only, no progress
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Answer every question with yes
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub yes: bool,
    /// Give up after this long (90s, 5m)
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration,
          help_heading = "Global options")]
    pub timeout: Option<Duration>,
    /// Work on the system's guests (the default for root)
    #[arg(long, global = true, conflicts_with = "user", help_heading = "Global options")]
    pub system: bool,
    /// Work on your own guests (the default for others)
    #[arg(long, global = true, help_heading = "Global options")]
    pub user: bool,
}

impl Global {
    /// The instance that is asked for.
    pub fn instance(&self) -> Instance {
        match (self.system, self.user) {
            (true, _) => Instance::System,
            (_, true) => Instance::User,
            _ => Instance::Auto,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a new guest
    Run(Box<RunArgs>),
    /// Start a guest defined in guests/NAME.toml of the configuration directory
    Start(StartArgs),
    /// List guests
    Ls(LsArgs),
    /// Show everything about a guest
    Show(GuestArg),
    /// Connect to a guest's serial console
    Console(GuestArg),
    /// Stop a guest's vCPUs; memory and devices are held
    Pause(GuestArg),
    /// Let a paused guest run on
    Resume(GuestArg),
    /// Press a guest's reset button
    Reset(GuestArg),
    /// Press a guest's power button, and end it if that does not help
    Stop(StopArgs),
    /// Save a guest to a file and end it
    Save(SaveArgs),
    /// Continue a saved guest
    Load(LoadArgs),
    /// Remove the records of guests that ended
    Rm(GuestArg),
    /// Move guests to another host while they run (short form: migrate [GUEST]... --to HOST)
    Move(Box<MoveArgs>),
    /// Follow moves that go on
    Watch(WatchArgs),
    /// Cancel a move and wait for its outcome
    Cancel(WhichArgs),
    /// List moves, the latest first
    History(HistoryArgs),
    /// Show everything about a move
    Report(WhichArgs),
    /// Say where a guest shall be whose other host is gone for good
    Resolve(ResolveArgs),
    /// The hosts that guests are moved between
    Host(HostArgs),
    /// Run the service of this host
    Daemon(DaemonArgs),
    /// See a live move between two hosts that are made for it on this machine
    Demo(DemoArgs),
    /// Limit the share of time that a guest's vCPUs may run
    #[command(hide = true)]
    Throttle(ThrottleArgs),
    /// Show what CPU templates there are, or what one takes away
    #[command(name = "cpu-template")]
    CpuTemplate(CpuTemplateArgs),
    /// Print a completion script for your shell
    Completions(CompletionsArgs),
    /// Explain a topic or a command
    Help(HelpArgs),
    /// The process of one guest; started by the commands above
    #[command(hide = true, name = "guest-process")]
    GuestProcess,
    /// Print completions of a command line
    #[command(hide = true, name = "complete-words")]
    CompleteWords(CompleteWordsArgs),
}

/// A CPU template to look at.
#[derive(Debug, Args)]
pub struct CpuTemplateArgs {
    /// Name of the template, or @FILE with one; all that are built in are listed if absent
    #[arg(value_name = "NAME|@FILE")]
    pub name: Option<String>,
}

/// One guest.
#[derive(Debug, Args)]
pub struct GuestArg {
    /// Name of the guest
    #[arg(value_name = "GUEST", value_parser = parse_name)]
    pub guest: String,
}

/// How `run` and `start` behave once the guest is there.
#[derive(Clone, Debug, Default, Args)]
pub struct ReadyArgs {
    /// Return when this appears on the console: console:TEXT[,TIME], for example
    /// console:login:,2m (default time 60s)
    #[arg(long, value_name = "WHAT", value_parser = parse_wait_for)]
    pub wait_for: Option<WaitFor>,
    /// Leave the guest paused
    #[arg(long)]
    pub paused: bool,
}

/// `run`
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct RunArgs {
    /// Name of the guest; made up if absent
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,
    /// Read the definition from a TOML file; flags win over it
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Run a built-in guest: scribbler[:KEY=VALUE,...] (migrate help scribbler)
    #[arg(long, value_name = "GUEST", help_heading = "What to run")]
    pub guest: Option<String>,
    /// Kernel image (bzImage or PVH ELF)
    #[arg(long, value_name = "FILE", help_heading = "What to run", conflicts_with = "guest")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "What to run")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", help_heading = "What to run", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// RAM, for example 512M or 2G
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size, help_heading = "Machine")]
    pub memory: Option<u64>,
    /// Number of vCPUs (1 to 32)
    #[arg(long, short, value_name = "N", help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// RAM on huge pages of 2M
    #[arg(long, help_heading = "Machine")]
    pub huge_pages: bool,
    /// CPU template: a name (migrate cpu-template), or @FILE with one that 'host cpu' made
    #[arg(long, value_name = "NAME|@FILE", help_heading = "Machine")]
    pub cpu_template: Option<String>,
    /// Track dirty pages with per-vCPU rings instead of the log
    #[arg(long, help_heading = "Machine")]
    pub dirty_ring: bool,
    /// No ACPI tables
    #[arg(long, help_heading = "Machine")]
    pub no_acpi: bool,
    /// A disk: PATH[,ro][,shared][,cache=none|writeback][,serial=TEXT]; may be repeated
    #[arg(long = "disk", value_name = "DISK", value_parser = parse_disk, help_heading = "Devices")]
    pub disks: Vec<DiskFile>,
    /// A network interface: tap=NAME, bridge=NAME or network=NAME, then [,mac=MAC][,mtu=N]; may be
    /// repeated
    #[arg(long = "net", value_name = "NET", value_parser = parse_net, help_heading = "Devices")]
    pub nets: Vec<NetFile>,
    /// A virtio console (hvc0) beside the serial port
    #[arg(long, help_heading = "Devices")]
    pub virtio_console: bool,
    /// A virtio socket with this context id (3 or more)
    #[arg(long, value_name = "CID", help_heading = "Devices")]
    pub vsock_cid: Option<u32>,
    /// Append the serial console's output to this file as well
    #[arg(long, value_name = "FILE", help_heading = "Devices")]
    pub console_file: Option<PathBuf>,
    /// Stay in the foreground, show the console, end the guest with this command
    #[arg(long)]
    pub rm: bool,
    /// With --rm: connect the keyboard to the console (leave with Ctrl-])
    #[arg(long, short, requires = "rm", conflicts_with_all = ["json", "duration"])]
    pub interactive: bool,
    /// With --rm: end the guest after this long; a scribbler verifies its memory first
    #[arg(long, requires = "rm", value_name = "TIME", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// What happens once the guest is there.
    #[command(flatten)]
    pub ready: ReadyArgs,
}

/// `start`
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Name of the guest
    #[arg(value_name = "NAME", value_parser = parse_name)]
    pub name: String,
    /// What happens once the guest is there.
    #[command(flatten)]
    pub ready: ReadyArgs,
}

/// `ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Also guests that ended in the last 14 days
    #[arg(long, short)]
    pub all: bool,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Which guest.
    #[command(flatten)]
    pub guest: GuestArg,
    /// End it at once, without asking the guest
    #[arg(long)]
    pub kill: bool,
}

/// `save`
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Which guest.
    #[command(flatten)]
    pub guest: GuestArg,
    /// File to write; it must not exist
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Let the guest run on (only without writable disks)
    #[arg(long)]
    pub keep_running: bool,
}

/// `load`
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// File that 'save' wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Make a clone of this name, with a new identity
    #[arg(long = "as", value_name = "NAME", value_parser = parse_name)]
    pub clone_as: Option<String>,
    /// What the guest's clocks do about the time since the save
    #[arg(long, value_enum, default_value_t = ClockArg::Auto)]
    pub clock: ClockArg,
    /// What happens once the guest is there.
    #[command(flatten)]
    pub ready: ReadyArgs,
}

/// [`ClockChoice`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClockArg {
    /// 'account' for pauses up to an hour, else 'freeze'
    Auto,
    /// The clocks jump forward by the time that passed
    Account,
    /// The clocks continue from the moment of the save
    Freeze,
}

impl From<ClockArg> for ClockChoice {
    fn from(arg: ClockArg) -> Self {
        match arg {
            ClockArg::Auto => Self::Auto,
            ClockArg::Account => Self::Account,
            ClockArg::Freeze => Self::Freeze,
        }
    }
}

/// `throttle`
#[derive(Debug, Args)]
pub struct ThrottleArgs {
    /// Which guest.
    #[command(flatten)]
    pub guest: GuestArg,
    /// Share of time, 1 to 100; 100 is unthrottled
    #[arg(value_name = "PERCENT", value_parser = parse_percent)]
    pub percent: u8,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Your shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells that completions are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `daemon`
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// End when the process that started it ends
    #[arg(long, hide = true)]
    pub end_with_parent: bool,
}

/// `help`
#[derive(Debug, Args)]
pub struct HelpArgs {
    /// A topic (listed by 'migrate help') or a command
    #[arg(value_name = "TOPIC")]
    pub topic: Option<String>,
}

/// `complete-words`
#[derive(Debug, Args)]
pub struct CompleteWordsArgs {
    /// The words so far, without the program's name; the last is the one to complete
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}
