//! A kernel that has less, or gives less: by a filter of system calls, which answers in its place,
//! and by limits of the process.

use std::collections::BTreeMap;

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// `KVM_CHECK_EXTENSION`.
const CHECK_EXTENSION: u64 = 0xAE03;

/// The request of an ioctl without direction and size, which say nothing about what it is.
fn request(number: u64) -> SeccompCondition {
    let how = SeccompCmpOp::MaskedEq(0xFFFF);
    SeccompCondition::new(1, SeccompCmpArgLen::Dword, how, number).unwrap()
}

/// Ioctls that fulfil all of `conditions` answer with this error; with none if it is 0.
fn answer(conditions: Vec<SeccompCondition>, errno: u32) {
    let rule = SeccompRule::new(conditions).unwrap();
    let rules = BTreeMap::from([(libc::SYS_ioctl, vec![rule])]);
    let arch = TargetArch::x86_64;
    let (others, these) = (SeccompAction::Allow, SeccompAction::Errno(errno));
    let filter: BpfProgram =
        SeccompFilter::new(rules, others, these, arch).unwrap().try_into().unwrap();
    apply_filter(&filter).unwrap();
}

/// KVM says of this capability that it is not there.
pub fn without_capability(number: u64) {
    let which = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, number);
    answer(vec![request(CHECK_EXTENSION), which.unwrap()], 0);
}

/// An ioctl fails: its number in hexadecimal, and the error.
pub fn refuse_call(call_and_errno: &str) {
    let (call, errno) = call_and_errno.split_once(' ').expect("a number and an error");
    answer(vec![request(u64::from_str_radix(call, 16).unwrap())], errno.parse().unwrap());
}

/// A limit of the process: its name, and the value.
pub fn limit(name_and_value: &str) {
    let (name, value) = name_and_value.split_once(' ').expect("a name and a value");
    let resource = match name {
        "as" => Resource::RLIMIT_AS,
        "fsize" => Resource::RLIMIT_FSIZE,
        other => panic!("a limit {other}"),
    };
    let value = value.parse().unwrap();
    setrlimit(resource, value, value).unwrap();
}
