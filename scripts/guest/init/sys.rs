//! The few system calls that std does not offer, and everything else that is unsafe.

use std::ffi::{CString, c_char, c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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

// SAFETY: declared as in the C library for x86-64 Linux, where `long` and `size_t` have 64 bits.
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

/// Descriptor that a call has just made, or its error.
fn owned(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: callers pass what made the descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// Makes a command start with all signals unblocked and, if asked, in a session with its
/// standard input as terminal.
pub fn start_clean(command: &mut Command, terminal: bool) {
    let set = SignalSet([u64::MAX; 16]);
    // SAFETY: what runs after the fork is async-signal-safe and allocates nothing; `set` has the
    // C library's size. A failure leaves a shell without job control.
    unsafe {
        command.pre_exec(move || {
            sigprocmask(SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            if terminal {
                setsid();
                ioctl(0, TIOCSCTTY, 0);
            }
            Ok(())
        });
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
pub fn signal_fd(signals: &[c_int]) -> io::Result<OwnedFd> {
    let set = set_of(signals);
    // SAFETY: `set` has the C library's size and outlives both calls.
    unsafe {
        check(sigprocmask(SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        owned(signalfd(-1, &raw const set, SFD_CLOEXEC))
    }
}

/// Waits until one of the first eight descriptors is readable; their bits are set.
pub fn readable<F: AsRawFd>(fds: &[Option<F>]) -> u8 {
    let mut polled: [PollFd; 8] =
        std::array::from_fn(|_| PollFd { fd: -1, events: POLLIN, revents: 0 });
    for (slot, fd) in polled.iter_mut().zip(fds) {
        slot.fd = fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    }
    // SAFETY: eight initialised entries; those with descriptor -1 are ignored.
    unsafe { poll(polled.as_mut_ptr(), 8, -1) };
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

pub fn inet_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    owned(unsafe { socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0) })
}

/// An interface or route request; the kernel reads and writes at most `N` bytes
/// of it, because callers only use structures of that size.
pub fn request<const N: usize>(fd: RawFd, number: c_ulong, data: &mut [u8; N]) -> io::Result<()> {
    // SAFETY: `data` outlives the call and is as large as the request's structure.
    check(unsafe { ioctl(fd, number, data.as_mut_ptr()) })?;
    Ok(())
}

/// Drops the page cache of a file, so that reading it goes to the device.
pub fn forget_cache(fd: RawFd) {
    // SAFETY: no memory is passed.
    unsafe { posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) };
}

/// Integers, viewed as their bytes.
pub fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: plain integers without padding; the borrow goes on.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
