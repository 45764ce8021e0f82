//! The system calls of a guest process, and with which arguments.
//!
//! The list was made from what the parts of the process do and completed with strace of whole
//! lives (start, run, reset, save, load, stop). Where an argument decides about harm it is
//! checked: no processes (only threads), no executable memory, no sockets but Unix ones and, for
//! moves, UDP, no ioctls but those named, no signals but to itself.

use std::collections::BTreeMap;

use libc::{c_long, c_ulong};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use SeccompCmpArgLen::{Dword, Qword};
use SeccompCmpOp::{Eq, MaskedEq};

/// Allowed with any arguments.
const PLAIN: &[c_long] = &[
    // memory
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    // files; which ones is Landlock's matter
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_statx,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_getdents64,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fcntl,
    libc::SYS_dup,
    // events
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // sockets; which ones is decided where they are made
    libc::SYS_bind,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // threads and time
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getppid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_uname,
    // clone3 passes its flags in memory, where no filter can look: a second filter turns it
    // into ENOSYS, and libc then takes clone.
    libc::SYS_clone3,
];

/// KVM's ioctls: type 0xAE in bits 8 to 15 (linux/kvm.h).
const KVM_TYPE: u64 = 0xAE00;
/// Mask of an ioctl's type.
const TYPE_MASK: u64 = 0xFF00;
/// Other ioctls, in full.
const IOCTLS: &[c_ulong] = &[
    libc::FIONBIO as c_ulong,
    libc::FIOCLEX as c_ulong,
    libc::TUNGETIFF as c_ulong,
    libc::TUNSETOFFLOAD as c_ulong,
    libc::TUNSETVNETHDRSZ as c_ulong,
    libc::TUNSETVNETLE as c_ulong,
    // linux/fs.h: logical block size, size, discard, secure zero-out.
    0x1268,
    0x8008_1272,
    0x1277,
    0x127F,
];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn when(
    index: u8,
    len: SeccompCmpArgLen,
    op: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, Error> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(index, len, op, value)?])?)
}

/// `SOCK_TYPE_MASK` of the kernel: the type without its flags.
const SOCKET_TYPE: u64 = 0xf;

/// A UDP socket of `family`.
fn udp(family: u64) -> Result<SeccompRule, Error> {
    let datagram = libc::SOCK_DGRAM.unsigned_abs().into();
    Ok(SeccompRule::new(vec![
        SeccompCondition::new(0, Dword, Eq, family)?,
        SeccompCondition::new(1, Dword, MaskedEq(SOCKET_TYPE), datagram)?,
    ])?)
}

fn rules() -> Result<Rules, Error> {
    let mut rules: Rules = PLAIN.iter().map(|call| (*call, Vec::new())).collect();
    let exec = libc::PROT_EXEC.unsigned_abs().into();
    let no_exec = || when(2, Dword, MaskedEq(exec), 0);
    rules.insert(libc::SYS_mmap, vec![no_exec()?]);
    rules.insert(libc::SYS_mprotect, vec![no_exec()?]);
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    rules.insert(libc::SYS_clone, vec![when(0, Qword, MaskedEq(thread), thread)?]);
    let unix = libc::AF_UNIX.unsigned_abs().into();
    rules.insert(libc::SYS_socketpair, vec![when(0, Dword, Eq, unix)?]);
    let mut sockets = vec![when(0, Dword, Eq, unix)?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        sockets.push(udp(family.unsigned_abs().into())?);
    }
    rules.insert(libc::SYS_socket, sockets);
    let pid = std::process::id().into();
    rules.insert(libc::SYS_tgkill, vec![when(0, Dword, Eq, pid)?]);
    let name = libc::PR_SET_NAME.unsigned_abs().into();
    // Newer libraries name their mappings, and seccomp itself asks for no new privileges.
    let vma = libc::PR_SET_VMA.unsigned_abs().into();
    let privileges = libc::PR_SET_NO_NEW_PRIVS.unsigned_abs().into();
    let prctl = [name, vma, privileges].map(|v| when(0, Dword, Eq, v));
    rules.insert(libc::SYS_prctl, prctl.into_iter().collect::<Result<_, _>>()?);
    let mut ioctls = vec![when(1, Dword, MaskedEq(TYPE_MASK), KVM_TYPE)?];
    for request in IOCTLS {
        ioctls.push(when(1, Dword, Eq, *request)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    Ok(rules)
}

fn filter(
    rules: Rules,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// Installs the filters in every thread.
pub(super) fn restrict() -> Result<(), Error> {
    let errno = |e: i32| SeccompAction::Errno(e.unsigned_abs());
    let clone3 = [(libc::SYS_clone3, Vec::new())].into();
    let no_clone3 = filter(clone3, SeccompAction::Allow, errno(libc::ENOSYS))?;
    let allowed = filter(rules()?, errno(libc::EPERM), SeccompAction::Allow)?;
    // The allow-list last: it allows no further filter.
    apply_filter_all_threads(&no_clone3)?;
    apply_filter_all_threads(&allowed)
}
