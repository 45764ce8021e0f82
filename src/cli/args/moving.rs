//! The command line of moves.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::api::moving::OnStall;
use crate::config::{parse_duration, parse_name};

use super::super::values::{parse_host, parse_rate};

/// `move`
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a command line")]
pub struct MoveArgs {
    /// Guests to move
    #[arg(value_name = "GUEST", value_parser = parse_name)]
    pub guests: Vec<String>,
    /// Host to move to
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub to: String,
    /// Move all guests that have a process here
    #[arg(long, conflicts_with = "guests")]
    pub all: bool,
    /// Only say whether it would work and how long it would take
    #[arg(long, conflicts_with_all = ["detach", "wait"])]
    pub dry_run: bool,
    /// Moves at a time
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub parallel: u8,
    /// Longest predicted time for which a guest may stand still
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub max_downtime: Duration,
    /// What to do when a guest writes faster than its memory gets across
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = StallArg::Wait)]
    pub on_stall: StallArg,
    /// Limit of what is sent, over all moves: 1Gbit, 100MB (per second)
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub bandwidth: Option<u64>,
    /// Return when the moves have begun
    #[arg(long)]
    pub detach: bool,
    /// If another operation on a guest goes on, wait until it is over
    #[arg(long)]
    pub wait: bool,
}

/// [`OnStall`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StallArg {
    /// Go on until it changes, or the time is up
    Wait,
    /// Switch all the same, however long the guest stands still
    Pause,
    /// Give up
    Cancel,
}

impl From<StallArg> for OnStall {
    fn from(arg: StallArg) -> Self {
        match arg {
            StallArg::Wait => Self::Wait,
            StallArg::Pause => Self::Pause,
            StallArg::Cancel => Self::Cancel,
        }
    }
}

/// A move, by its guest or its id.
#[derive(Clone, Debug, Args)]
pub struct WhichArgs {
    /// A guest (its latest move), or the id of a move or the beginning of one
    #[arg(value_name = "GUEST|ID")]
    pub which: String,
}

/// `watch`
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// A guest (its latest move), or the id of a move; all that go on if absent
    #[arg(value_name = "GUEST|ID")]
    pub which: Option<String>,
}

/// `history`
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// Only moves of this guest
    #[arg(value_name = "GUEST", value_parser = parse_name)]
    pub guest: Option<String>,
    /// Show at most so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    pub limit: u32,
}

/// `resolve`
#[derive(Clone, Debug, Args)]
pub struct ResolveArgs {
    /// Name or uuid of the guest
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// Let the guest run on this host
    #[arg(long, conflicts_with = "give_up")]
    pub run_here: bool,
    /// Let go of this host's claim to the guest, and of the memory that is held for it
    #[arg(long)]
    pub give_up: bool,
    /// The host that is off and stays off, or cannot reach the guest's disks; asked for on a
    /// terminal
    #[arg(long, value_name = "HOST", value_parser = parse_host, requires = "run_here",
          conflicts_with = "give_up")]
    pub fenced: Option<String>,
    /// Go back to the moment of the switch, although the other host may have run the guest since
    #[arg(long, requires = "run_here", conflicts_with = "give_up")]
    pub lose_later_work: bool,
}

/// `demo`
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// RAM of the guest
    #[arg(long, short, value_name = "SIZE", default_value = "256M",
          value_parser = crate::config::parse_size)]
    pub memory: u64,
    /// Leave the two hosts and the guest as they are, and say how to use and to remove them
    #[arg(long)]
    pub keep: bool,
    /// End and remove what --keep left
    #[arg(long, value_name = "DIR", conflicts_with_all = ["keep", "memory"])]
    pub remove: Option<PathBuf>,
}
