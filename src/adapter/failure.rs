//! What went wrong in `vmm`, in the terms of the API: a stable code and what to do next.

use vmm::cpu::compat::Lack;
use vmm::devices::tap::TapError;
use vmm::devices::virtio::DeviceError;
use vmm::devices::virtio::block::DiskOpenError;
use vmm::kvm::KvmError;
use vmm::machine::MachineError;
use vmm::memory::dirty::DirtyError;
use vmm::state::StateError;
use vmm::vcpu::VcpuError;

use crate::api::{ErrorCode, Failure};

/// Where `vmm`'s message already says what to do.
const SEE_MESSAGE: &str = "mend what the message names and try again";

/// KVM cannot be used.
pub fn kvm(error: &KvmError) -> Failure {
    let (code, remedy) = match error {
        KvmError::Missing(_) => (
            ErrorCode::KvmMissing,
            "load kvm_intel or kvm_amd, or enable virtualization in the firmware",
        ),
        KvmError::Permission(_) => {
            (ErrorCode::KvmPermission, "add this user to the group kvm and log in again")
        }
        KvmError::Capability { .. } | KvmError::ApiVersion(_) => {
            (ErrorCode::KvmCapability, "use a newer kernel")
        }
        KvmError::Open { .. } => {
            (ErrorCode::KvmMissing, "see what stands at that path, and the kernel's log (dmesg)")
        }
        KvmError::Call { .. } => {
            (ErrorCode::Unexpected, "see the guest's log and the kernel's (dmesg)")
        }
    };
    Failure::new(code, error.to_string(), remedy)
}

/// The disk at `path` cannot be used.
pub fn disk(path: &std::path::Path, error: &DiskOpenError) -> Failure {
    let text = error.to_string();
    // What is found in an open file is told without its name.
    let shown = path.display().to_string();
    let text = if text.contains(&shown) { text } else { format!("disk {shown}: {text}") };
    let code = match error {
        DiskOpenError::Locked(_) => ErrorCode::DiskLocked,
        _ => ErrorCode::BadDisk,
    };
    Failure::new(code, text, SEE_MESSAGE)
}

/// A network interface cannot be used.
pub fn tap(error: &TapError) -> Failure {
    Failure::new(ErrorCode::BadNet, error.to_string(), SEE_MESSAGE)
}

/// The host's CPU cannot be what a guest knows.
pub fn cpu(lack: &Lack) -> Failure {
    Failure::new(ErrorCode::CpuMismatch, lack.to_string(), lack.remedy())
}

/// A machine could not be made.
pub fn machine(error: &MachineError) -> Failure {
    let code = match error {
        MachineError::Kvm(e) => return kvm(e),
        MachineError::Cpu(lack) => return cpu(lack),
        MachineError::State(e) => return state(e),
        MachineError::Ram(_) => ErrorCode::NoMemory,
        MachineError::Boot(_) => ErrorCode::BadKernel,
        MachineError::Vcpu {
            source: VcpuError::MsrWrite { .. } | VcpuError::TscKhz { .. },
            ..
        } => ErrorCode::CpuMismatch,
        MachineError::Template(_) | MachineError::TooManyVcpus { .. } => ErrorCode::BadDefinition,
        MachineError::Shape { .. }
        | MachineError::Fill(_)
        | MachineError::Device { source: DeviceError::State { .. }, .. } => ErrorCode::BadStateFile,
        MachineError::Device { device, .. } if device.starts_with("disk") => ErrorCode::BadDisk,
        MachineError::Device { device, .. } if device.starts_with("network") => ErrorCode::BadNet,
        _ => ErrorCode::Unexpected,
    };
    Failure::new(code, error.to_string(), SEE_MESSAGE)
}

/// A saved machine could not be brought back. What KVM or a device refuses then is the state.
pub fn restore(error: &MachineError) -> Failure {
    let mut failure = machine(error);
    let refused_state = matches!(
        error,
        MachineError::Vcpu { .. }
            | MachineError::Platform(_)
            | MachineError::Device { .. }
            | MachineError::Kvm(KvmError::Call {
                call: "KVM_SET_IRQCHIP" | "KVM_SET_PIT2" | "KVM_SET_CLOCK",
                ..
            })
    );
    if refused_state && failure.0.code == ErrorCode::Unexpected {
        failure.0.code = ErrorCode::BadStateFile;
        failure.0.remedy =
            "load it on a host like the one it was saved on; if it is one, the file is damaged"
                .into();
    }
    failure
}

/// A guest that arrives could not be made out of what its source sent. What is wrong lies in the
/// difference between two hosts, and that is where the remedy is.
pub fn trial(error: &MachineError) -> Failure {
    let mut failure = restore(error);
    let remedy = match error {
        MachineError::Shape { .. } | MachineError::State(StateError::Inconsistent(_)) => {
            "use neighbouring releases of migrate on both hosts; if they are, report this"
        }
        MachineError::State(_) | MachineError::Template(_) => {
            "use neighbouring releases of migrate on both hosts"
        }
        MachineError::Cpu(lack) => lack.remedy(),
        MachineError::Vcpu { source: VcpuError::TscKhz { .. }, .. } => {
            "use a host with the same TSC frequency"
        }
        MachineError::Vcpu { .. } => {
            "use a host with the same kind of CPU and kernel, or start the guest with what both \
             have: migrate host cpu -o FILE, then run it with --cpu-template @FILE"
        }
        MachineError::Device { device, source: DeviceError::Spec { .. } }
            if device.starts_with("disk") =>
        {
            "give the destination the same disk at the same path"
        }
        MachineError::Device { .. } | MachineError::Platform(_) => {
            "use neighbouring releases of migrate and the same definition on both hosts"
        }
        MachineError::TooManyVcpus { .. } => "use a host whose KVM has more vCPUs",
        MachineError::Ram(_) => "free memory on that host, or move the guest to another one",
        MachineError::Kvm(KvmError::Capability { .. } | KvmError::ApiVersion(_)) => {
            "use a newer kernel on that host"
        }
        MachineError::Kvm(_) => "see that host's kernel log (dmesg), or use another host",
        _ => return failure,
    };
    failure.0.remedy = remedy.into();
    if failure.0.code == ErrorCode::Unexpected {
        failure.0.code = ErrorCode::Incompatible;
    }
    failure
}

/// A saved machine could not be decoded.
pub fn state(error: &StateError) -> Failure {
    let code = match error {
        StateError::TooNew(_) | StateError::TooOld(_) => ErrorCode::StateVersion,
        _ => ErrorCode::BadStateFile,
    };
    Failure::new(code, error.to_string(), SEE_MESSAGE)
}

/// The dirty log cannot be used.
pub fn dirty(error: &DirtyError) -> Failure {
    let code = match error {
        DirtyError::InUse => ErrorCode::Busy,
        _ => ErrorCode::Unexpected,
    };
    Failure::new(code, error.to_string(), "try again when the other operation is over")
}

/// A definition is refused.
pub fn definition(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::BadDefinition, message, "correct the definition")
}

/// A file cannot be opened.
pub fn file(what: &str, path: &std::path::Path, error: &std::io::Error) -> Failure {
    let message = format!("cannot open {what} {}: {error}", path.display());
    Failure::new(ErrorCode::File, message, "correct the path or its permissions")
}

/// Something that should not fail did.
pub fn unexpected(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(ErrorCode::Unexpected, format!("{what}: {error}"), "see the guest's log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_kvm_refuses_is_not_an_unexpected_failure() {
        let vcpu = |source| MachineError::Vcpu { index: 1, source };
        let call = || VcpuError::Call {
            call: "KVM_SET_XSAVE",
            source: std::io::Error::from_raw_os_error(22),
        };
        let msr = VcpuError::MsrWrite { index: 0x180, value: 1, has: None };
        assert_eq!(restore(&vcpu(msr)).0.code, ErrorCode::CpuMismatch);
        assert_eq!(restore(&vcpu(call())).0.code, ErrorCode::BadStateFile);
        assert_eq!(machine(&vcpu(call())).0.code, ErrorCode::Unexpected);
        let source = DeviceError::State { device: "vsock", reason: "cid".into() };
        let vsock = MachineError::Device { device: "vsock in slot 2".into(), source };
        assert_eq!(restore(&vsock).0.code, ErrorCode::BadStateFile);
    }

    #[test]
    fn what_does_not_fit_has_a_remedy_between_hosts_and_not_in_a_file() {
        let call = |call| {
            MachineError::Kvm(KvmError::Call {
                call,
                source: std::io::Error::from_raw_os_error(12),
            })
        };
        let source = VcpuError::TscKhz { state: 2, host: 1 };
        for (error, remedy) in [
            (call("KVM_SET_CLOCK"), "dmesg"),
            (MachineError::Vcpu { index: 0, source }, "TSC frequency"),
            (MachineError::TooManyVcpus { wanted: 2, limit: 1 }, "more vCPUs"),
            (MachineError::State(StateError::TooNew(2)), "neighbouring releases"),
        ] {
            let failure = trial(&error).0;
            assert!(failure.remedy.contains(remedy), "{failure:?}");
            assert!(!failure.remedy.contains("file"), "{failure:?}");
            assert_ne!(failure.code, ErrorCode::Unexpected, "{failure:?}");
        }
    }
}
