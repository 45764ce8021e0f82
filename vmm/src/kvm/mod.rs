//! Opens KVM and says what it can do. Nobody else asks for capabilities.
//!
//! A capability that is missing is named, with what to do; an optional one is a field of
//! [`Capabilities`].

pub mod ioctls;
mod vm;

use std::ffi::c_ulong;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_EXT_CPUID,
    KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_MAX_VCPUS, KVM_CAP_MP_STATE, KVM_CAP_PIT_STATE2,
    KVM_CAP_PIT2, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_TSC_CONTROL,
    KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY, KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS,
    KVM_CAP_XSAVE, KVM_CAP_XSAVE2,
};
use nix::errno::Errno;

pub use vm::{LogMode, Vm};

/// The KVM API version that has been in force since Linux 2.6.22.
const API_VERSION: i32 = 12;
/// Where KVM lives.
pub const DEV_KVM: &str = "/dev/kvm";

/// Why KVM cannot be used. Each text says what is wrong and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device node.
    #[error(
        "{0} does not exist: load the module (modprobe kvm_intel or kvm_amd), enable virtualization in the firmware, or pass the device into this container"
    )]
    Missing(PathBuf),
    /// No permission.
    #[error(
        "no permission to open {0}: join its group (usermod -aG kvm USER, then log in again) or run as root"
    )]
    Permission(PathBuf),
    /// Some other failure to open it.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The device node.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// An unknown API.
    #[error("KVM speaks API version {0}, this program needs {API_VERSION}: use a Linux kernel")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("this host's KVM lacks {name} ({why}): use Linux 5.10 or newer with the full KVM")]
    Capability {
        /// Name of the capability in the kernel's headers.
        name: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// A call failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl KvmError {
    /// Wraps a failed ioctl.
    pub fn call(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::Call { call, source: std::io::Error::from_raw_os_error(e.errno()) }
    }
}

/// What must be there.
const REQUIRED: [(u32, &str, &str); 17] = [
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", "guest memory"),
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", "interrupt controllers"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD", "device interrupts"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", "device notifications"),
    (KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", "real-mode guests"),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real-mode guests"),
    (KVM_CAP_PIT2, "KVM_CAP_PIT2", "the timer chip"),
    (KVM_CAP_PIT_STATE2, "KVM_CAP_PIT_STATE2", "saving the timer chip"),
    (KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK", "guest time across a restore"),
    (KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", "CPU features"),
    (KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE", "saving vCPUs"),
    (KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS", "saving vCPUs"),
    (KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS", "saving vCPUs"),
    (KVM_CAP_XSAVE, "KVM_CAP_XSAVE", "saving vCPUs"),
    (KVM_CAP_XCRS, "KVM_CAP_XCRS", "saving vCPUs"),
    (KVM_CAP_GET_TSC_KHZ, "KVM_CAP_GET_TSC_KHZ", "guest time"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "stopping vCPUs"),
];

/// What may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Flags of `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`; 0 without it.
    pub manual_dirty_log: u32,
    /// Bytes of the largest dirty ring; 0 without rings.
    pub dirty_ring_bytes: u32,
    /// Bytes of a vCPU's extended state.
    pub xsave_bytes: usize,
    /// The TSC frequency of a guest can be set.
    pub tsc_control: bool,
    /// The LAPIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Most vCPUs of a machine.
    pub max_vcpus: u32,
}

/// What stands behind `/dev/kvm`, where it makes a difference to guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VMX or SVM.
    Hardware,
    /// No hardware virtualization: guest kernels are emulated (for example PVM).
    Software,
}

/// An open KVM. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Kvm {
    system: Arc<kvm_ioctls::Kvm>,
    caps: Capabilities,
    backend: Backend,
    hidden: Arc<[String]>,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks it.
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at(Path::new(DEV_KVM))
    }

    /// Opens another device node.
    pub fn open_at(path: &Path) -> Result<Self, KvmError> {
        let open = |e: kvm_ioctls::Error| match Errno::from_raw(e.errno()) {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => KvmError::Missing(path.into()),
            Errno::EACCES | Errno::EPERM => KvmError::Permission(path.into()),
            errno => KvmError::Open { path: path.into(), source: errno.into() },
        };
        let text = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| KvmError::Missing(path.into()))?;
        let kvm = kvm_ioctls::Kvm::new_with_path(&text).map_err(open)?;
        let version = kvm.get_api_version();
        if version < 0 {
            return Err(KvmError::Open { path: path.into(), source: Errno::ENOTTY.into() });
        }
        if version != API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        let caps = Capabilities::probe(|cap| kvm.check_extension_raw(c_ulong::from(cap)))?;
        Ok(Self { system: Arc::new(kvm), caps, backend: Backend::detect(), hidden: Arc::new([]) })
    }

    /// What this KVM can do beyond what is required.
    pub fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    /// What stands behind it.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The same KVM, which shows guests no feature of these names ([`crate::cpu::features`]).
    #[must_use]
    pub fn hiding(self, features: Vec<String>) -> Self {
        Self { hidden: features.into(), ..self }
    }

    /// Features that no guest is shown on this host.
    pub fn hidden(&self) -> &[String] {
        &self.hidden
    }

    /// The system descriptor.
    pub fn fd(&self) -> &kvm_ioctls::Kvm {
        &self.system
    }
}

impl Capabilities {
    /// Checks the required capabilities and reads the optional ones. `check` answers as
    /// `KVM_CHECK_EXTENSION` does.
    fn probe(check: impl Fn(u32) -> i32) -> Result<Self, KvmError> {
        for (cap, name, why) in REQUIRED {
            if check(cap) <= 0 {
                return Err(KvmError::Capability { name, why });
            }
        }
        let value = |cap| u32::try_from(check(cap)).unwrap_or(0);
        // The plain structure holds 4096 bytes; only newer kernels tell of more.
        let xsave_bytes = usize::try_from(check(KVM_CAP_XSAVE2)).unwrap_or(0).max(4096);
        Ok(Self {
            manual_dirty_log: value(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
            dirty_ring_bytes: value(KVM_CAP_DIRTY_LOG_RING),
            xsave_bytes,
            tsc_control: check(KVM_CAP_TSC_CONTROL) > 0,
            tsc_deadline: check(KVM_CAP_TSC_DEADLINE_TIMER) > 0,
            max_vcpus: value(KVM_CAP_MAX_VCPUS).max(1),
        })
    }
}

impl Backend {
    /// A CPU with neither VMX nor SVM cannot be running guest kernels natively.
    fn detect() -> Self {
        let vmx = std::arch::x86_64::__cpuid(1).ecx & (1 << 5) != 0;
        let amd = std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0001
            && std::arch::x86_64::__cpuid(0x8000_0001).ecx & (1 << 2) != 0;
        if vmx || amd { Self::Hardware } else { Self::Software }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_is_named() {
        for (missing, name, _) in REQUIRED {
            let error = Capabilities::probe(|cap| i32::from(cap != missing)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(Capabilities::probe(|_| 1).is_ok());
    }

    #[test]
    fn what_is_not_kvm_is_refused() {
        let missing = Kvm::open_at(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(missing, KvmError::Missing(_)), "{missing}");
        let other = Kvm::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(other, KvmError::Open { .. }), "{other}");
    }
}
