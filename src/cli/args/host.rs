//! The command line of hosts and of the daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::config::parse_duration;

use super::super::values::parse_host;

/// `host`
#[derive(Clone, Debug, Args)]
pub struct HostArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: HostCommand,
}

/// What can be done with hosts.
#[derive(Clone, Debug, Subcommand)]
pub enum HostCommand {
    /// Make this host's key and certificate; the first host of a site is its CA
    Init(InitArgs),
    /// Print the line that a new host joins with
    Invite(InviteArgs),
    /// Join the site of the host that printed the line
    Join(JoinArgs),
    /// List the hosts of the site
    Ls,
    /// Show this host, or what another one says of itself
    Show(ShowArgs),
    /// Test both directions to a host, and say how to mend what is wrong
    Check(OtherHost),
    /// Compare the CPUs of hosts, and make a template of what they have in common
    Cpu(CpuArgs),
    /// Remove a host from the site: nobody trusts it any more
    Remove(OtherHost),
}

/// `host init`
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// Name of this host in the site; its hostname if absent
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub name: Option<String>,
    /// Certificate of a CA of your own (PEM), instead of one made now
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
}

/// `host invite`
#[derive(Clone, Debug, Args)]
pub struct InviteArgs {
    /// Address under which the new host reaches this one; the advertised one if absent
    #[arg(long, value_name = "HOST:PORT")]
    pub address: Option<String>,
    /// How long the line is good for
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    pub valid: Duration,
}

/// `host join`
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// The line that 'host invite' printed on the other host
    #[arg(value_name = "LINE")]
    pub invitation: String,
    /// Name of this host in the site; its hostname if absent
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub name: Option<String>,
}

/// `host show`
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Another host; this one if absent
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub host: Option<String>,
}

/// `host cpu`
#[derive(Clone, Debug, Args)]
pub struct CpuArgs {
    /// Hosts to compare; all of the site if absent
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub hosts: Vec<String>,
    /// Write a template for 'run --cpu-template @FILE' that all of them have
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Another host.
#[derive(Clone, Debug, Args)]
pub struct OtherHost {
    /// Its name
    #[arg(value_name = "HOST", value_parser = parse_host)]
    pub host: String,
}
