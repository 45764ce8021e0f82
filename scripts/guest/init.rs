//! First process of the test guest, and its test tools, as one static program that
//! looks at the name it was called by. On some hosts a page fault costs more than a
//! millisecond and a fork more than fifty, so it stays small, keeps to one thread
//! and reuses its buffers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The few system calls that std does not offer, and nothing else.
mod sys {
    use std::ffi::{CString, c_char, c_int, c_ulong};
    use std::io;
    use std::os::fd::RawFd;

    pub const SIGKILL: c_int = 9;
    pub const SIGUSR1: c_int = 10;
    pub const SIGUSR2: c_int = 12;
    pub const SIGTERM: c_int = 15;
    pub const SIGCHLD: c_int = 17;

    pub const CLOCK_REALTIME: c_int = 0;
    pub const CLOCK_MONOTONIC: c_int = 1;
    pub const CLOCK_BOOTTIME: c_int = 7;

    pub const O_DIRECT: c_int = 0o40000;
    pub const O_NOCTTY: c_int = 0o400;

    pub const POWER_OFF: c_int = 0x4321_fedc;
    pub const RESTART: c_int = 0x0123_4567;
    pub const HALT: c_int = 0xcdef_0123_u32.cast_signed();

    const TIOCSCTTY: c_ulong = 0x540e;
    const SIG_BLOCK: c_int = 0;
    const SIG_UNBLOCK: c_int = 1;
    const SFD_CLOEXEC: c_int = 0o2_000_000;
    const WNOHANG: c_int = 1;
    const MNT_DETACH: c_int = 2;
    const POLLIN: i16 = 1;
    const AF_INET: c_int = 2;
    const SOCK_DGRAM_CLOEXEC: c_int = 2 | 0o2_000_000;
    const POSIX_FADV_DONTNEED: c_int = 4;

    #[repr(C)]
    struct Timespec {
        sec: i64,
        nsec: i64,
    }

    #[repr(C)]
    struct SignalSet([u64; 16]);

    #[repr(C)]
    struct PollFd {
        fd: c_int,
        events: i16,
        revents: i16,
    }

    unsafe extern "C" {
        fn mount(
            src: *const c_char,
            dir: *const c_char,
            kind: *const c_char,
            flags: c_ulong,
            data: *const c_char,
        ) -> c_int;
        fn umount2(dir: *const c_char, flags: c_int) -> c_int;
        fn reboot(how: c_int) -> c_int;
        fn sync();
        fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
        fn tcdrain(fd: c_int) -> c_int;
        fn setsid() -> c_int;
        fn kill(pid: c_int, signal: c_int) -> c_int;
        fn waitpid(pid: c_int, status: *mut c_int, flags: c_int) -> c_int;
        fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
        fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
        fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
        fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
        fn sethostname(name: *const c_char, len: usize) -> c_int;
        fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn posix_fadvise(fd: c_int, start: i64, len: i64, advice: c_int) -> c_int;
    }

    fn check(result: c_int) -> io::Result<c_int> {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn text(s: &str) -> io::Result<CString> {
        CString::new(s).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    }

    pub fn mount_at(src: &str, dir: &str, kind: &str, data: &str) -> io::Result<()> {
        let (src, dir, kind, data) = (text(src)?, text(dir)?, text(kind)?, text(data)?);
        // SAFETY: four terminated strings that outlive the call.
        check(unsafe { mount(src.as_ptr(), dir.as_ptr(), kind.as_ptr(), 0, data.as_ptr()) })?;
        Ok(())
    }

    /// Unmounts, lazily if somebody still uses it.
    pub fn unmount(dir: &str) -> io::Result<()> {
        let dir = text(dir)?;
        // SAFETY: a terminated string that outlives both calls.
        let result = unsafe {
            match umount2(dir.as_ptr(), 0) {
                0 => 0,
                _ => umount2(dir.as_ptr(), MNT_DETACH),
            }
        };
        check(result)?;
        Ok(())
    }

    pub fn sync_all() {
        // SAFETY: no arguments, cannot fail.
        unsafe { sync() }
    }

    pub fn restart(how: c_int) -> io::Error {
        // SAFETY: no memory is passed; on success it does not return.
        unsafe { reboot(how) };
        io::Error::last_os_error()
    }

    pub fn drain(fd: RawFd) {
        // SAFETY: no memory is passed; anything but a terminal fails harmlessly.
        unsafe { tcdrain(fd) };
    }

    /// Starts a session with standard input as its terminal. Async-signal-safe.
    pub fn own_terminal() {
        // SAFETY: no memory is passed; failure leaves a shell without job control.
        unsafe {
            setsid();
            ioctl(0, TIOCSCTTY, 0);
        }
    }

    /// Switches the echo of a terminal off.
    pub fn no_echo(fd: RawFd) -> io::Result<()> {
        const TCGETS: c_ulong = 0x5401;
        const TCSETS: c_ulong = 0x5402;
        const LOCAL_FLAGS: usize = 12;
        const ECHO: u8 = 0o10;
        // Room for the kernel's `struct termios`.
        let mut settings = [0; 64];
        request(fd, TCGETS, &mut settings)?;
        settings[LOCAL_FLAGS] &= !ECHO;
        request(fd, TCSETS, &mut settings)
    }

    pub fn signal(pid: i32, number: c_int) -> io::Result<()> {
        // SAFETY: no memory is passed.
        check(unsafe { kill(pid, number) })?;
        Ok(())
    }

    /// One child that ended, and its wait status.
    pub fn reap() -> Option<(i32, c_int)> {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { waitpid(-1, &raw mut status, WNOHANG) };
        (pid > 0).then_some((pid, status))
    }

    fn set_of(signals: &[c_int]) -> SignalSet {
        let mut set = SignalSet([0; 16]);
        for s in signals {
            set.0[0] |= 1 << (s - 1);
        }
        set
    }

    /// Blocks `signals` and returns a descriptor to read them from.
    pub fn signal_fd(signals: &[c_int]) -> io::Result<RawFd> {
        let set = set_of(signals);
        // SAFETY: `set` has the C library's size and outlives both calls.
        unsafe {
            check(sigprocmask(SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
            check(signalfd(-1, &raw const set, SFD_CLOEXEC))
        }
    }

    /// Async-signal-safe, for use between fork and exec.
    pub fn unblock_all() {
        let set = SignalSet([u64::MAX; 16]);
        // SAFETY: `set` has the C library's size and outlives the call.
        unsafe { sigprocmask(SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
    }

    /// Waits until one of at most eight descriptors is readable; their bits are set.
    pub fn readable(fds: &[RawFd], timeout_ms: c_int) -> u8 {
        let mut polled: [PollFd; 8] =
            std::array::from_fn(|_| PollFd { fd: -1, events: POLLIN, revents: 0 });
        for (slot, fd) in polled.iter_mut().zip(fds) {
            slot.fd = *fd;
        }
        // SAFETY: eight initialised entries; those with descriptor -1 are ignored.
        unsafe { poll(polled.as_mut_ptr(), 8, timeout_ms) };
        (0..8).filter(|i| polled[*i].revents != 0).fold(0, |bits, i| bits | 1 << i)
    }

    /// Nanoseconds of a clock.
    pub fn clock(which: c_int) -> i64 {
        let mut t = Timespec { sec: 0, nsec: 0 };
        // SAFETY: `t` outlives the call.
        unsafe { clock_gettime(which, &raw mut t) };
        t.sec * 1_000_000_000 + t.nsec
    }

    pub fn set_hostname(name: &str) -> io::Result<()> {
        // SAFETY: pointer and length of one live string.
        check(unsafe { sethostname(name.as_ptr().cast(), name.len()) })?;
        Ok(())
    }

    pub fn inet_socket() -> io::Result<RawFd> {
        // SAFETY: no memory is passed.
        check(unsafe { socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0) })
    }

    /// An interface or route request; the kernel reads and writes at most `N` bytes
    /// of it, because callers only use structures of that size.
    pub fn request<const N: usize>(
        fd: RawFd,
        number: c_ulong,
        data: &mut [u8; N],
    ) -> io::Result<()> {
        // SAFETY: `data` outlives the call and is as large as the request's structure.
        check(unsafe { ioctl(fd, number, data.as_mut_ptr()) })?;
        Ok(())
    }

    /// Drops the page cache of a file, so that reading it goes to the device.
    pub fn forget_cache(fd: RawFd) {
        // SAFETY: no memory is passed.
        unsafe { posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) };
    }
}

type Outcome = Result<(), String>;

fn main() {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    let args: Vec<String> = args.collect();
    let name = Path::new(&name).file_name().and_then(|n| n.to_str()).unwrap_or("init");
    let outcome = match name {
        "tick" => tick(&args),
        "copycheck" => copycheck(&args),
        "memcheck" => memcheck(&args),
        "poweroff" => ask_init(sys::SIGUSR2),
        "reboot" => ask_init(sys::SIGTERM),
        "halt" => ask_init(sys::SIGUSR1),
        _ if std::process::id() == 1 => Init::start().serve(),
        other => Err(format!("{other}: not a tool of this program")),
    };
    if let Err(e) = outcome {
        eprintln!("{name}: {e}");
        std::process::exit(1);
    }
}

fn ask_init(signal: i32) -> Outcome {
    sys::signal(1, signal).map_err(|e| e.to_string())
}

// ---------------------------------------------------------------- init

/// What ends the guest.
#[derive(Clone, Copy, PartialEq)]
enum End {
    PowerOff,
    Reboot,
    Halt,
}

#[derive(Default)]
struct Parameters {
    ip: Option<String>,
    mtu: Option<u32>,
    disk: Option<String>,
    run: Option<String>,
    then: Option<String>,
    hostname: Option<String>,
    shell: Option<String>,
    off: Option<String>,
}

/// Splits like the kernel does: white space separates, double quotes protect it.
fn split_command_line(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `%20` and the like; a `%` without two hexadecimal digits stands for itself.
fn unescape(s: &str) -> String {
    let bytes = s.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = (bytes[i] == b'%')
            .then(|| s.get(i + 1..i + 3))
            .flatten()
            .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|h| u8::from_str_radix(h, 16).ok());
        out.push(code.unwrap_or(bytes[i]));
        i += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Parameters {
    fn parse(line: &str) -> Self {
        let mut p = Self::default();
        for word in split_command_line(line) {
            let Some((key, value)) =
                word.strip_prefix("guest.").and_then(|rest| rest.split_once('='))
            else {
                continue;
            };
            let value = unescape(value);
            match key {
                "ip" => p.ip = Some(value),
                "mtu" => p.mtu = value.parse().ok(),
                "disk" => p.disk = Some(value),
                "run" => p.run = Some(value),
                "then" => p.then = Some(value),
                "hostname" => p.hostname = Some(value),
                "shell" => p.shell = Some(value),
                "off" => p.off = Some(value),
                other => say(&format!("GUEST-WARN unknown parameter guest.{other}")),
            }
        }
        p
    }
}

/// One line to the console in one write.
fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    text.push_str(line);
    text.push('\n');
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stdout().flush();
}

fn warn_if(what: &str, result: io::Result<()>) {
    if let Err(e) = result {
        say(&format!("GUEST-WARN {what}: {e}"));
    }
}

fn uptime_ms() -> i64 {
    sys::clock(sys::CLOCK_MONOTONIC) / 1_000_000
}

struct Init {
    parameters: Parameters,
    console: String,
    /// The signal descriptor, then the input devices.
    fds: Vec<RawFd>,
    runner: Option<i32>,
    shell: Option<i32>,
}

impl Init {
    fn start() -> Self {
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
        for (key, value) in [
            ("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"),
            ("HOME", "/root"),
            ("TERM", "linux"),
            ("PS1", if parameters.shell.as_deref() == Some("plain") { "" } else { "guest# " }),
        ] {
            // SAFETY: this process has one thread.
            unsafe { std::env::set_var(key, value) };
        }
        let _ = std::env::set_current_dir("/root");

        let signals = [sys::SIGCHLD, sys::SIGTERM, sys::SIGUSR1, sys::SIGUSR2];
        let mut fds = vec![sys::signal_fd(&signals).unwrap_or(-1)];
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
                if self.parameters.shell.as_deref() == Some("plain") {
                    warn_if("echo", sys::no_echo(a.as_raw_fd()));
                }
                command.stdin(a).stdout(b).stderr(c);
            }
        } else {
            command.stdin(Stdio::null());
        }
        // SAFETY: both calls are async-signal-safe and allocate nothing.
        unsafe {
            command.pre_exec(move || {
                sys::unblock_all();
                if terminal {
                    sys::own_terminal();
                }
                Ok(())
            });
        }
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

    fn serve(mut self) -> Outcome {
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
            let ready = sys::readable(&self.fds, -1);
            for i in (0..self.fds.len()).filter(|i| ready & 1 << i != 0) {
                let end = if i == 0 { self.signalled() } else { self.pressed(i) };
                if let Some(end) = end {
                    self.end(end);
                }
            }
        }
    }

    fn signalled(&mut self) -> Option<End> {
        let mut record = [0; 128];
        read_fd(self.fds[0], &mut record);
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
        let got = read_fd(self.fds[i], &mut events);
        if got == 0 {
            self.fds[i] = -1;
        }
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
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
    }
}

/// Up to seven input devices; the kernel makes one for every ACPI button.
fn buttons() -> Vec<RawFd> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|e| File::open(e.path()).ok())
        .take(7)
        .map(std::os::fd::IntoRawFd::into_raw_fd)
        .collect()
}

/// Bytes read, zero on any error.
fn read_fd(fd: RawFd, buffer: &mut [u8]) -> usize {
    // SAFETY: init owns `fd` for good; ManuallyDrop keeps it open.
    let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    file.read(buffer).unwrap_or(0)
}

/// Interface set-up with the classic requests: less code than netlink.
mod net {
    use super::sys;
    use std::io;
    use std::os::fd::{FromRawFd, OwnedFd};

    const SIOCADDRT: u64 = 0x890b;
    const SIOCGIFFLAGS: u64 = 0x8913;
    const SIOCSIFFLAGS: u64 = 0x8914;
    const SIOCSIFADDR: u64 = 0x8916;
    const SIOCSIFNETMASK: u64 = 0x891c;
    const SIOCSIFMTU: u64 = 0x8922;
    const AF_INET: u16 = 2;
    const IFF_UP: u16 = 1;

    /// `ADDRESS/PREFIX[,GATEWAY]`
    pub fn parse(s: &str) -> Option<([u8; 4], u32, Option<[u8; 4]>)> {
        let (host, gateway) = match s.split_once(',') {
            Some((host, gateway)) => (host, Some(quad(gateway)?)),
            None => (s, None),
        };
        let (address, prefix) = host.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32)?;
        Some((quad(address)?, prefix, gateway))
    }

    fn quad(s: &str) -> Option<[u8; 4]> {
        s.parse::<std::net::Ipv4Addr>().ok().map(|a| a.octets())
    }

    fn with_socket(f: impl FnOnce(i32) -> io::Result<()>) -> io::Result<()> {
        let fd = sys::inet_socket()?;
        // SAFETY: a descriptor just opened and owned by nobody else; closed at return.
        let _owner = unsafe { OwnedFd::from_raw_fd(fd) };
        f(fd)
    }

    /// `struct ifreq` with the name filled in.
    fn ifreq(name: &str) -> [u8; 40] {
        let mut r = [0; 40];
        r[..name.len()].copy_from_slice(name.as_bytes());
        r
    }

    fn sockaddr(to: &mut [u8], address: [u8; 4]) {
        to[..2].copy_from_slice(&AF_INET.to_ne_bytes());
        to[4..8].copy_from_slice(&address);
    }

    pub fn address(name: &str, address: [u8; 4], prefix: u32) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0).to_be_bytes();
        with_socket(|fd| {
            for (number, value) in [(SIOCSIFADDR, address), (SIOCSIFNETMASK, mask)] {
                let mut r = ifreq(name);
                sockaddr(&mut r[16..], value);
                sys::request(fd, number, &mut r)?;
            }
            let mut r = ifreq(name);
            sys::request(fd, SIOCGIFFLAGS, &mut r)?;
            let flags = u16::from_ne_bytes([r[16], r[17]]) | IFF_UP;
            r[16..18].copy_from_slice(&flags.to_ne_bytes());
            sys::request(fd, SIOCSIFFLAGS, &mut r)
        })
    }

    pub fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
        let mut r = ifreq(name);
        r[16..20].copy_from_slice(&mtu.to_ne_bytes());
        with_socket(|fd| sys::request(fd, SIOCSIFMTU, &mut r))
    }

    pub fn default_route(gateway: [u8; 4]) -> io::Result<()> {
        const RTF_UP_GATEWAY: u16 = 3;
        // struct rtentry: destination, gateway and mask at 8, 24 and 40, flags at 56.
        let mut r = [0; 120];
        sockaddr(&mut r[8..], [0; 4]);
        sockaddr(&mut r[24..], gateway);
        sockaddr(&mut r[40..], [0; 4]);
        r[56..58].copy_from_slice(&RTF_UP_GATEWAY.to_ne_bytes());
        with_socket(|fd| sys::request(fd, SIOCADDRT, &mut r))
    }
}

// ---------------------------------------------------------------- tools

fn number(args: &[String], i: usize, default: Option<u64>, usage: &str) -> Result<u64, String> {
    match (args.get(i), default) {
        (Some(s), _) => s.parse().map_err(|_| format!("{s}: not a number; {usage}")),
        (None, Some(d)) => Ok(d),
        (None, None) => Err(usage.to_string()),
    }
}

/// `tick [MS] [COUNT]`: the three clocks, again and again.
fn tick(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: tick [MS] [COUNT]";
    const CLOCKS: [i32; 3] = [sys::CLOCK_MONOTONIC, sys::CLOCK_REALTIME, sys::CLOCK_BOOTTIME];
    let pause = std::time::Duration::from_millis(number(args, 0, Some(1000), USAGE)?);
    let count = number(args, 1, Some(0), USAGE)?;
    let mut last = [i64::MIN; 3];
    for n in 1.. {
        let now = CLOCKS.map(sys::clock);
        for ((name, before), after) in ["mono", "real", "boot"].iter().zip(last).zip(now) {
            if after < before {
                say(&format!("TICK-BACKWARDS {n} {name} {before} -> {after}"));
            }
        }
        last = now;
        say(&format!("TICK {n} mono={} real={} boot={}", now[0], now[1], now[2]));
        if n == count {
            break;
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

const MIB: usize = 1 << 20;

/// The words of block `index`: cheap, different everywhere, and reproducible.
fn pattern(seed: u64, index: u64, words: &mut [u64]) {
    let mut z = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    for w in words {
        z = z.wrapping_add(0xd134_2543_de82_ef95);
        *w = z ^ (z >> 29);
    }
}

/// First word of block `index` that differs.
fn differs(seed: u64, index: u64, words: &[u64]) -> Option<usize> {
    const STEP: usize = 512;
    let mut expected = [0; STEP];
    debug_assert!(words.len() <= STEP);
    let expected = &mut expected[..words.len()];
    pattern(seed, index, expected);
    if expected == words {
        return None;
    }
    expected.iter().zip(words).position(|(a, b)| a != b)
}

/// `memcheck MB SEED ROUNDS [PAUSE_MS]`: every round checks all pages and rewrites
/// them with the next pattern; zero rounds means for ever.
fn memcheck(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: memcheck MB SEED ROUNDS [PAUSE_MS]";
    const PAGE: usize = 512;
    let size = usize::try_from(number(args, 0, None, USAGE)?).map_err(|e| e.to_string())? * MIB;
    let seed = number(args, 1, None, USAGE)?;
    let rounds = number(args, 2, None, USAGE)?;
    let pause = std::time::Duration::from_millis(number(args, 3, Some(100), USAGE)?);

    // Fresh zero pages from the kernel, huge ones because init asked for them.
    let mut memory = vec![0; size / 8];
    let fill = |memory: &mut [u64], round: u64| {
        for (i, page) in (0..).zip(memory.chunks_mut(PAGE)) {
            pattern(seed.wrapping_add(round << 32), i, page);
        }
    };
    fill(&mut memory, 0);
    say(&format!("MEM-FILLED {} MiB", size / MIB));
    for round in 0.. {
        for (i, page) in (0..).zip(memory.chunks(PAGE)) {
            if let Some(word) = differs(seed.wrapping_add(round << 32), i, page) {
                say(&format!("MEM-BAD round={round} page={i} word={word} value={:#x}", page[word]));
                return Err("memory does not hold what was written".into());
            }
        }
        say(&format!("MEM-OK {}", round + 1));
        if round + 1 == rounds {
            break;
        }
        fill(&mut memory, round + 1);
        std::thread::sleep(pause);
    }
    Ok(())
}

const BLOCK: usize = 256 << 10;
const SYNC_EVERY: u64 = 4;

/// A block on a page boundary, as direct I/O wants it.
#[repr(C, align(4096))]
struct Block([u64; BLOCK / 8]);

impl Block {
    fn new() -> Box<Self> {
        Box::new(Self([0; BLOCK / 8]))
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: plain integers without padding, viewed as their bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), BLOCK) }
    }
}

/// Opens for direct I/O where the file system has it: less copying in the kernel, and
/// reading back really asks the device.
fn open_direct(path: &str, options: &OpenOptions) -> Result<File, String> {
    options
        .clone()
        .custom_flags(sys::O_DIRECT)
        .open(path)
        .or_else(|_| options.open(path))
        .map_err(|e| format!("{path}: {e}"))
}

/// `copycheck SRC DST SEED MB`: fills SRC from the seed, copies it to DST, then reads
/// DST back. With SRC `-` the blocks go to DST without the detour.
fn copycheck(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: copycheck SRC|- DST SEED MB";
    let [src, dst] = [0, 1].map(|i| args.get(i).map(String::as_str));
    let (Some(src), Some(dst)) = (src, dst) else { return Err(USAGE.into()) };
    let seed = number(args, 2, None, USAGE)?;
    let megabytes = number(args, 3, None, USAGE)?;
    match copy(src, dst, seed, megabytes) {
        Ok(crc) => {
            say(&format!("COPY-OK {crc:08x}"));
            Ok(())
        }
        Err(e) => {
            say(&format!("COPY-BAD {e}"));
            Err(e)
        }
    }
}

fn copy(src: &str, dst: &str, seed: u64, megabytes: u64) -> Result<u32, String> {
    let mut block = Block::new();
    if src == "-" {
        transfer(None, dst, seed, megabytes, "COPY", &mut block)?;
    } else {
        transfer(None, src, seed, megabytes, "FILL", &mut block)?;
        transfer(Some(src), dst, seed, megabytes, "COPY", &mut block)?;
    }
    let mut file = open_direct(dst, OpenOptions::new().read(true))?;
    sys::forget_cache(file.as_raw_fd());
    let table = crc_table();
    let mut crc = !0;
    for mb in 0..megabytes {
        for i in 0..(MIB / BLOCK) as u64 {
            file.read_exact(block.bytes()).map_err(|e| format!("{dst} at {mb} MiB: {e}"))?;
            verify(dst, seed, mb * (MIB / BLOCK) as u64 + i, &block)?;
            crc = block
                .bytes()
                .iter()
                .fold(crc, |c: u32, b| table[usize::from(c.to_le_bytes()[0] ^ b)] ^ (c >> 8));
        }
        if (mb + 1) % SYNC_EVERY == 0 {
            say(&format!("VERIFY {}", mb + 1));
        }
    }
    Ok(!crc)
}

fn verify(path: &str, seed: u64, index: u64, block: &Block) -> Outcome {
    for (i, page) in (0..).zip(block.0.chunks(512)) {
        if let Some(word) = differs(seed, index << 16 | i, page) {
            let at = index * BLOCK as u64 + i * 4096 + word as u64 * 8;
            return Err(format!("{path} at byte {at}: value {:#x}", page[word]));
        }
    }
    Ok(())
}

/// Writes `to`, from the file `from` or straight from the seed.
fn transfer(
    from: Option<&str>,
    to: &str,
    seed: u64,
    megabytes: u64,
    word: &str,
    block: &mut Block,
) -> Outcome {
    let mut source = from.map(|f| open_direct(f, OpenOptions::new().read(true))).transpose()?;
    let mut options = OpenOptions::new();
    // A block device cannot be created or cut off.
    options.write(true).create(true).truncate(!to.starts_with("/dev/"));
    let mut target = open_direct(to, &options)?;
    target.seek(SeekFrom::Start(0)).map_err(|e| format!("{to}: {e}"))?;
    for mb in 0..megabytes {
        for i in 0..(MIB / BLOCK) as u64 {
            let index = mb * (MIB / BLOCK) as u64 + i;
            if let (Some(source), Some(from)) = (&mut source, from) {
                source.read_exact(block.bytes()).map_err(|e| format!("{from}: {e}"))?;
                verify(from, seed, index, block)?;
            } else {
                for (p, page) in (0..).zip(block.0.chunks_mut(512)) {
                    pattern(seed, index << 16 | p, page);
                }
            }
            target.write_all(block.bytes()).map_err(|e| format!("{to} at {mb} MiB: {e}"))?;
        }
        if (mb + 1) % SYNC_EVERY == 0 || mb + 1 == megabytes {
            target.sync_data().map_err(|e| format!("{to}: {e}"))?;
            say(&format!("{word} {}", mb + 1));
        }
    }
    Ok(())
}

fn crc_table() -> [u32; 256] {
    std::array::from_fn(|i| {
        (0..8).fold(i as u32, |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}
