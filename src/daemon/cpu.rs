//! CPUs of hosts: what this one can show a guest, what several have in common, and whether a guest
//! that is to come finds its own here. It asks KVM anew each time: settings may have changed.

use std::sync::Arc;
use std::time::Duration;

use vmm::cpu::compat::{Lack, lack, missing, same_frequency};
use vmm::cpu::{CpuModel, ModelError, Shown, baseline, features, host};
use vmm::kvm::Backend;

use super::peer::{Answer, Request};
use super::{Daemon, unexpected};
use crate::adapter;
use crate::api::client::GuestClient;
use crate::api::cpu::{CompareRequest, ComparedHost, CpuComparison, HostCpu};
use crate::api::host::CheckLine;
use crate::api::{ErrorBody, ErrorCode, Failure};
use crate::config::{TemplateFile, hidden_features};

/// How long another host may take to answer; less than who asks us waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most hosts that are compared at once.
const HOSTS_MAX: usize = 256;
/// Longest text of a peer that is kept, in characters.
const TEXT_MAX: usize = 128;
/// Most features of a peer that are kept.
const FEATURES_MAX: usize = 1024;

impl Daemon {
    /// This host's CPU.
    ///
    /// # Errors
    /// KVM cannot be used, or `host.toml` is wrong.
    pub(super) async fn host_cpu(&self) -> Result<HostCpu, Failure> {
        let settings = self.dirs.config.join("host.toml");
        let look = move || {
            let hidden = hidden_features(&settings)?;
            Ok(described(adapter::host_cpu(hidden.clone())?, hidden))
        };
        tokio::task::spawn_blocking(look).await.map_err(|e| unexpected("the CPU", &e))?
    }

    /// The CPU of another host, or of this one.
    async fn cpu_of(&self, name: &str) -> Result<HostCpu, Failure> {
        if self.host_ref().name == name {
            return self.host_cpu().await;
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(name, Request::Cpu)).await;
        let told = asked.unwrap_or_else(|_| {
            let message =
                format!("host '{name}' did not tell of its CPU within {} s", PATIENCE.as_secs());
            let remedy = format!("see what is wrong: migrate host check {name}");
            Err(Failure::new(ErrorCode::Unreachable, message, remedy).retryable())
        });
        match told?.answer {
            Answer::Cpu(cpu) => checked(*cpu).map_err(|e| {
                unexpected(&format!("host '{name}' described its CPU in a way that is wrong"), &e)
            }),
            _ => Err(unexpected("the other daemon", &"it answered something else")),
        }
    }

    /// Whether a guest finds here what it is shown.
    ///
    /// # Errors
    /// `cpu-mismatch` names all that is missing.
    pub(super) async fn has_cpu(&self, guest: &Shown) -> Result<(), Failure> {
        let here = self.host_cpu().await?;
        let guest_model = guest.model.clone().checked().map_err(|e| {
            let what = format!("the guest's CPU cannot be understood: {e}");
            Failure::new(ErrorCode::Incompatible, what, "use neighbouring releases of migrate")
        })?;
        let name = self.host_ref().name;
        if let Some(lack) = lack(&guest_model, &here.shown) {
            let message = match &lack {
                Lack::Features(names) => format!(
                    "the CPU or KVM of host '{name}' lacks {}, which the guest was shown",
                    names.join(", ")
                ),
                Lack::Vendor(..) => format!("host '{name}': {lack}"),
            };
            return Err(Failure::new(ErrorCode::CpuMismatch, message, lack.remedy()));
        }
        if guest.tsc_khz != 0 && !same_frequency(guest.tsc_khz, here.tsc_khz) {
            return Err(tsc(&name, guest.tsc_khz, here.tsc_khz));
        }
        Ok(())
    }
}

fn tsc(name: &str, guest_khz: u32, khz: u32) -> Failure {
    let message =
        format!("the guest's TSC runs at {guest_khz} kHz, that of host '{name}' at {khz} kHz");
    Failure::new(ErrorCode::CpuMismatch, message, "use a host with the same TSC frequency")
}

/// The CPU of a guest here, if its process is one that tells.
pub async fn of_guest(client: &GuestClient) -> Option<Shown> {
    match client.cpu().await {
        Ok(cpu) => Some(cpu.shown),
        Err(error) => {
            tracing::debug!(GUEST = client.name(), %error, "a guest does not tell of its CPU");
            None
        }
    }
}

fn described(cpu: host::HostCpu, hidden: Vec<String>) -> HostCpu {
    let (family, model, stepping) = cpu.model.signature();
    let (physical_bits, linear_bits) = cpu.model.address_bits();
    HostCpu {
        schema: 1,
        vendor: cpu.model.vendor(),
        family,
        model,
        stepping,
        brand: cpu.brand,
        physical_bits,
        linear_bits,
        xsave_bytes: cpu.xsave_bytes,
        tsc_khz: cpu.tsc_khz,
        tsc_scaling: cpu.tsc_scaling,
        software_kvm: cpu.backend == Backend::Software,
        hidden,
        features: features::names(&cpu.model),
        shown: cpu.model,
    }
}

/// What a peer said, in bounds. What follows from the model is worked out here, not believed.
fn checked(cpu: HostCpu) -> Result<HostCpu, ModelError> {
    let clip = |text: String| text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    let shown = cpu.shown.checked()?;
    let (family, model, stepping) = shown.signature();
    let (physical_bits, linear_bits) = shown.address_bits();
    Ok(HostCpu {
        schema: 1,
        vendor: shown.vendor(),
        family,
        model,
        stepping,
        brand: clip(cpu.brand),
        physical_bits,
        linear_bits,
        hidden: cpu.hidden.into_iter().take(FEATURES_MAX).map(clip).collect(),
        features: features::names(&shown),
        shown,
        ..cpu
    })
}

/// What hosts have in common.
///
/// # Errors
/// One does not answer, or nothing can be common to them.
pub async fn compare(
    daemon: &Arc<Daemon>,
    request: CompareRequest,
) -> Result<CpuComparison, Failure> {
    let mut names = request.hosts;
    if names.is_empty() {
        names = daemon.all_hosts()?.into_iter().map(|h| h.name.to_string()).collect();
        if names.is_empty() {
            names.push(daemon.host_ref().name);
        }
        names.sort();
    }
    let mut once = Vec::new();
    names.retain(|name| {
        !once.contains(name) && {
            once.push(name.clone());
            true
        }
    });
    if names.len() > HOSTS_MAX {
        let message = format!("{} hosts are more than are compared at once", names.len());
        return Err(Failure::new(ErrorCode::Usage, message, format!("name up to {HOSTS_MAX}")));
    }
    // Each has its time; together they take no longer than one.
    let asked = names.iter().map(|name| daemon.cpu_of(name));
    let mut hosts = Vec::new();
    for (name, cpu) in names.iter().zip(futures_util::future::join_all(asked).await) {
        hosts.push((name.clone(), cpu?));
    }
    compared(hosts)
}

fn compared(hosts: Vec<(String, HostCpu)>) -> Result<CpuComparison, Failure> {
    let models: Vec<&CpuModel> = hosts.iter().map(|(_, cpu)| &cpu.shown).collect();
    let model = baseline::common(&models).map_err(|e| {
        let remedy = "compare hosts of one vendor: guests cannot move between the others";
        Failure::new(ErrorCode::CpuMismatch, e.to_string(), remedy)
    })?;
    let problems = problems(&hosts);
    let names = hosts.iter().map(|(name, _)| name.clone()).collect();
    let compared = hosts.into_iter().map(|(name, cpu)| {
        let beyond = missing(&cpu.shown, &model);
        ComparedHost { name, cpu, beyond }
    });
    Ok(CpuComparison {
        schema: 1,
        hosts: compared.collect(),
        common: features::names(&model),
        template: TemplateFile::common_to(names, model),
        problems,
    })
}

/// What no template mends: TSCs of different frequencies.
fn problems(hosts: &[(String, HostCpu)]) -> Vec<ErrorBody> {
    let Some(((first, cpu), rest)) = hosts.split_first() else { return Vec::new() };
    let others = rest.iter().filter(|(_, other)| !same_frequency(cpu.tsc_khz, other.tsc_khz));
    let problem = |(name, other): &(String, HostCpu)| {
        let message = format!(
            "the TSC runs at {} kHz on '{first}' and at {} kHz on '{name}': guests cannot move \
             between them",
            cpu.tsc_khz, other.tsc_khz
        );
        let remedy = "move guests between hosts with the same TSC frequency";
        *Failure::new(ErrorCode::CpuMismatch, message, remedy).0
    };
    others.map(problem).collect()
}

/// A line of `host check`: whether guests that are shown all of this host's CPU could go there.
pub async fn check(daemon: &Daemon, host: &str) -> CheckLine {
    let line = |ok, found: String, remedy: Option<String>| CheckLine {
        what: "CPU".into(),
        ok,
        found,
        remedy,
    };
    let failed = |f: Failure| line(false, f.0.message.clone(), Some(f.0.remedy.clone()));
    let here = match daemon.host_cpu().await {
        Ok(here) => here,
        Err(failure) => return failed(failure),
    };
    let there = match daemon.cpu_of(host).await {
        Ok(there) => there,
        Err(failure) => return failed(failure),
    };
    match lack(&here.shown, &there.shown) {
        Some(Lack::Vendor(here, there)) => {
            let found = format!("{there} there, {here} here: no guest can go there");
            line(false, found, Some("use a host of the same vendor".into()))
        }
        Some(Lack::Features(names)) => line(
            false,
            format!("lacks {}, which guests are shown here", names.join(", ")),
            Some(format!(
                "start guests with what both have: migrate host cpu {} {host} -o FILE, then run \
                 with --cpu-template @FILE",
                daemon.host_ref().name
            )),
        ),
        None if !same_frequency(here.tsc_khz, there.tsc_khz) => {
            let failure = tsc(host, here.tsc_khz, there.tsc_khz);
            failed(failure)
        }
        None => line(true, "has all that guests are shown here".into(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::cpu::{Leaf, MAX_LEAVES, Register};

    fn host(ecx: u32, khz: u32) -> HostCpu {
        let leaves = vec![Leaf::blank(0, None), Leaf { ecx, ..Leaf::blank(1, None) }];
        let model = CpuModel { leaves, msrs: vec![] };
        let cpu = host::HostCpu {
            model,
            brand: "b".into(),
            tsc_khz: khz,
            tsc_scaling: false,
            xsave_bytes: 4096,
            backend: Backend::Hardware,
        };
        described(cpu, vec![])
    }

    #[test]
    fn hosts_are_compared_by_name_and_frequency() {
        let hosts =
            [("a", host(1 << 25 | 1, 2_000_000)), ("b", host(1 << 25 | 1 << 23, 3_000_000))];
        let compared = compared(hosts.map(|(n, h)| (n.to_owned(), h)).into()).unwrap();
        assert_eq!(compared.common, ["aes"]);
        assert_eq!(compared.hosts[0].beyond, ["pni"]);
        assert_eq!(compared.hosts[1].beyond, ["popcnt"]);
        assert_eq!(compared.template.model.register(1, 0, Register::Ecx), 1 << 25);
        assert_eq!((compared.template.name.as_str(), compared.problems.len()), ("a+b", 1));
        assert!(compared.problems[0].message.contains("3000000 kHz on 'b'"));
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_not_believed() {
        let mut cpu = host(1, 1);
        cpu.brand = format!("\u{1b}[31m{}", "x".repeat(10_000));
        cpu.features = vec!["everything".into()];
        let seen = checked(cpu.clone()).unwrap();
        assert!(seen.brand.len() <= TEXT_MAX && !seen.brand.contains('\u{1b}'));
        assert_eq!(seen.features, ["pni"]);
        cpu.shown.leaves = vec![Leaf::blank(0, None); MAX_LEAVES + 1];
        assert!(checked(cpu).is_err());
    }
}
