//! The first process: sets the guest up, runs its command and shell, ends it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::parameters::Parameters;
use crate::{Outcome, net, say, sys};

/// What ends the guest.
#[derive(Clone, Copy, PartialEq)]
enum End {
    PowerOff,
    Reboot,
    Halt,
}

fn warn_if(what: &str, result: io::Result<()>) {
    if let Err(e) = result {
        say(&format!("GUEST-WARN {what}: {e}"));
    }
}

fn uptime_ms() -> i64 {
    sys::clock(sys::CLOCK_MONOTONIC) / 1_000_000
}

/// The state of process 1.
pub struct Init {
    parameters: Parameters,
    console: String,
    /// The signal descriptor, then the input devices; none once it failed.
    fds: Vec<Option<File>>,
    runner: Option<i32>,
    shell: Option<i32>,
}

impl Init {
    /// Mounts, sets up network and disk.
    pub fn start() -> Self {
        for dir in ["/proc", "/sys", "/dev", "/tmp", "/mnt"] {
            let _ = fs::create_dir(dir);
        }
        warn_if("/proc", sys::mount_at("proc", "/proc", "proc", ""));
        warn_if("/sys", sys::mount_at("sysfs", "/sys", "sysfs", ""));
        warn_if("/dev", sys::mount_at("dev", "/dev", "devtmpfs", ""));
        let _ = fs::create_dir("/dev/pts");
        warn_if("/dev/pts", sys::mount_at("devpts", "/dev/pts", "devpts", ""));
        warn_if("/tmp", sys::mount_at("tmp", "/tmp", "tmpfs", ""));

        // The console the kernel talks to, under its real name: /dev/console itself
        // cannot become a controlling terminal.
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let console = format!("/dev/{}", active.split_whitespace().last().unwrap_or("console"));

        // One huge page costs one fault instead of 512.
        warn_if(
            "transparent huge pages",
            fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "always"),
        );

        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let parameters = Parameters::parse(&line);
        let hostname = parameters.hostname.as_deref().unwrap_or("guest");
        warn_if("hostname", sys::set_hostname(hostname));
        let _ = std::env::set_current_dir("/root");

        let signals = [sys::SIGCHLD, sys::SIGTERM, sys::SIGUSR1, sys::SIGUSR2];
        let mut fds = vec![sys::signal_fd(&signals).ok().map(File::from)];
        fds.extend(buttons());

        let init = Self { parameters, console, fds, runner: None, shell: None };
        init.network();
        init.disk();
        init
    }

    fn network(&self) {
        let Parameters { ip, mtu, .. } = &self.parameters;
        if !Path::new("/sys/class/net/eth0").exists() {
            if ip.is_some() || mtu.is_some() {
                say("GUEST-WARN no network interface");
            }
            return;
        }
        if let Some(mtu) = mtu {
            warn_if("mtu", net::set_mtu("eth0", *mtu));
        }
        if let Some(ip) = ip {
            warn_if("lo", net::address("lo", [127, 0, 0, 1], 8));
            match net::parse(ip) {
                Some((address, prefix, gateway)) => {
                    warn_if("address", net::address("eth0", address, prefix));
                    if let Some(gateway) = gateway {
                        warn_if("gateway", net::default_route(gateway));
                    }
                }
                None => say(&format!("GUEST-WARN guest.ip={ip}: not ADDRESS/PREFIX[,GATEWAY]")),
            }
        }
    }

    fn disk(&self) {
        if let Some(kind) = &self.parameters.disk {
            warn_if("/dev/vda", sys::mount_at("/dev/vda", "/mnt", kind, ""));
        }
    }

    fn plain(&self) -> bool {
        self.parameters.shell.as_deref() == Some("plain")
    }

    fn spawn(&self, command: &mut Command, terminal: bool) -> Option<i32> {
        if terminal {
            let tty = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(sys::O_NOCTTY)
                .open(&self.console)
                .and_then(|tty| Ok((tty.try_clone()?, tty.try_clone()?, tty)));
            if let Ok((a, b, c)) = tty {
                // Without echo busybox reads whole lines instead of editing them, which
                // saves several system calls for every character.
                if self.plain() {
                    warn_if("echo", sys::no_echo(a.as_raw_fd()));
                }
                command.stdin(a).stdout(b).stderr(c);
            }
        } else {
            command.stdin(Stdio::null());
        }
        command.envs([
            ("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),
            ("HOME", "/root"),
            ("TERM", "linux"),
            ("PS1", if self.plain() { "" } else { "guest# " }),
        ]);
        sys::start_clean(command, terminal);
        match command.spawn() {
            // Children are reaped all together, orphans included.
            Ok(child) => i32::try_from(child.id()).ok(),
            Err(e) => {
                say(&format!("GUEST-WARN cannot start a process: {e}"));
                None
            }
        }
    }

    fn open_shell(&mut self) {
        if self.parameters.shell.as_deref() == Some("none") {
            return;
        }
        // The dash in front makes it a login shell, which reads /etc/profile.
        self.shell = self.spawn(Command::new("/bin/sh").arg0("-sh"), true);
    }

    fn ready(&mut self) {
        say(&format!("GUEST-READY uptime_ms={}", uptime_ms()));
        self.open_shell();
    }

    /// Runs until the machine is switched off.
    pub fn serve(mut self) -> Outcome {
        match self.parameters.run.take() {
            Some(run) => {
                say(&format!("GUEST-RUN uptime_ms={}", uptime_ms()));
                self.runner = self.spawn(Command::new("/bin/sh").args(["-c", &run]), false);
                if self.runner.is_none() {
                    self.ready();
                }
            }
            None => self.ready(),
        }
        loop {
            let ready = sys::readable(&self.fds);
            for i in (0..self.fds.len()).filter(|i| ready & 1 << i != 0) {
                let end = if i == 0 { self.signalled() } else { self.pressed(i) };
                if let Some(end) = end {
                    self.end(end);
                }
            }
        }
    }

    /// Bytes read from descriptor `i`; zero on an error, and then it is not read again.
    fn read(&mut self, i: usize, buffer: &mut [u8]) -> usize {
        let got = self.fds[i].as_mut().map_or(0, |f| f.read(buffer).unwrap_or(0));
        if got == 0 {
            self.fds[i] = None;
        }
        got
    }

    fn signalled(&mut self) -> Option<End> {
        let mut record = [0; 128];
        self.read(0, &mut record);
        match i32::from(record[0]) {
            sys::SIGTERM => return Some(End::Reboot),
            sys::SIGUSR1 => return Some(End::Halt),
            sys::SIGUSR2 => return Some(End::PowerOff),
            _ => {}
        }
        while let Some((pid, status)) = sys::reap() {
            if self.runner == Some(pid) {
                self.runner = None;
                let signal = status & 0x7f;
                let code = if signal == 0 { status >> 8 & 0xff } else { 128 + signal };
                say(&format!("GUEST-EXIT {code}"));
                match self.parameters.then.as_deref() {
                    Some("poweroff") => return Some(End::PowerOff),
                    Some("reboot") => return Some(End::Reboot),
                    None | Some("shell") => self.ready(),
                    Some(other) => {
                        say(&format!("GUEST-WARN guest.then={other}: poweroff, reboot or shell"));
                        self.ready();
                    }
                }
            } else if self.shell == Some(pid) {
                // A shell that cannot even start must not turn into a busy loop.
                std::thread::sleep(std::time::Duration::from_millis(100));
                self.open_shell();
            }
        }
        None
    }

    fn pressed(&mut self, i: usize) -> Option<End> {
        const EVENT: usize = 24;
        const EV_KEY: u16 = 1;
        const KEY_POWER: u16 = 116;
        let mut events = [0; 16 * EVENT];
        let got = self.read(i, &mut events);
        let half = |e: &[u8], at: usize| u16::from_ne_bytes([e[at], e[at + 1]]);
        events[..got]
            .chunks_exact(EVENT)
            .any(|e| half(e, 16) == EV_KEY && half(e, 18) == KEY_POWER && e[20] == 1)
            .then_some(End::PowerOff)
    }

    fn end(&self, how: End) -> ! {
        // Only what still holds the disk needs to go; nobody waits for good manners.
        let _ = sys::signal(-1, sys::SIGTERM);
        std::thread::sleep(std::time::Duration::from_millis(50));
        let _ = sys::signal(-1, sys::SIGKILL);
        sys::sync_all();
        if self.parameters.disk.is_some() {
            warn_if("/mnt", sys::unmount("/mnt"));
        }
        let (word, call) = match how {
            End::PowerOff => ("POWEROFF", sys::POWER_OFF),
            End::Reboot => ("REBOOT", sys::RESTART),
            End::Halt => ("HALT", sys::HALT),
        };
        // A prompt may stand on the line already.
        say(&format!("\nGUEST-{word}"));
        // What is still in the UART when the machine goes away is lost.
        sys::drain(1);
        std::thread::sleep(std::time::Duration::from_millis(100));
        // Without ACPI the kernel cannot switch off and would halt for ever.
        let by_reset = how == End::PowerOff && self.parameters.off.as_deref() == Some("reset");
        let failure = sys::restart(if by_reset { sys::RESTART } else { call });
        say(&format!("GUEST-WARN reboot: {failure}"));
        loop {
            std::thread::sleep(std::time::Duration::from_hours(1));
        }
    }
}

/// Up to seven input devices; the kernel makes one for every ACPI button.
fn buttons() -> Vec<Option<File>> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|e| File::open(e.path()).ok())
        .take(7)
        .map(Some)
        .collect()
}
