//! CPUs of hosts, in words.

use super::columns::align;
use super::style::{Style, safe};
use crate::api::cpu::{ComparedHost, CpuComparison};

/// The table of `host cpu`, and below it what each host has beyond the others.
pub fn comparison(compared: &CpuComparison, style: Style) -> String {
    let head = ["HOST", "CPU", "FAMILY", "ADDRESSES", "TSC", "FEATURES", "BEYOND"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(compared.hosts.iter().map(row));
    let mut text = align(&rows, |_, column, cell| match (column, cell) {
        (6, "0") => style.green(cell),
        (6, _) => style.yellow(cell),
        _ => cell.to_owned(),
    });
    for host in &compared.hosts {
        let name = safe(&host.name);
        if !host.beyond.is_empty() {
            text.extend([&*name, " has beyond the others: ", &list(&host.beyond), "\n"]);
        }
        if !host.cpu.hidden.is_empty() {
            text.extend([&*name, " hides from its guests: ", &list(&host.cpu.hidden), "\n"]);
        }
    }
    let many = compared.hosts.len() > 1;
    if many && compared.hosts.iter().all(|h| h.beyond.is_empty()) {
        text.push_str("All have the same: guests need no template to move between them.\n");
    }
    for problem in &compared.problems {
        let (message, remedy) = (safe(&problem.message), safe(&problem.remedy));
        text.extend([&*style.red(&message), "\n  next:  ", &remedy, "\n"]);
    }
    text
}

fn row(host: &ComparedHost) -> [String; 7] {
    let cpu = &host.cpu;
    let brand = if cpu.brand.is_empty() { &cpu.vendor } else { &cpu.brand };
    let scaled = if cpu.tsc_scaling { ", scales" } else { "" };
    [
        safe(&host.name),
        safe(brand),
        format!("{}/{}/{}", cpu.family, cpu.model, cpu.stepping),
        format!("{}/{} bits", cpu.physical_bits, cpu.linear_bits),
        format!("{}.{:03} MHz{scaled}", cpu.tsc_khz / 1000, cpu.tsc_khz % 1000),
        cpu.features.len().to_string(),
        host.beyond.len().to_string(),
    ]
}

fn list(names: &[String]) -> String {
    safe(&names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cpu::HostCpu;
    use crate::config::TemplateFile;
    use vmm::cpu::CpuModel;

    fn host(name: &str, beyond: &[&str]) -> ComparedHost {
        let cpu = HostCpu {
            schema: 1,
            vendor: "GenuineIntel".into(),
            family: 6,
            model: 106,
            stepping: 6,
            brand: "Xeon\u{1b}[2J".into(),
            physical_bits: 46,
            linear_bits: 57,
            xsave_bytes: 4096,
            tsc_khz: 2_100_007,
            tsc_scaling: false,
            software_kvm: false,
            hidden: vec![],
            features: vec!["aes".into(), "avx".into()],
            shown: CpuModel::default(),
        };
        let beyond = beyond.iter().map(|b| (*b).to_owned()).collect();
        ComparedHost { name: name.into(), cpu, beyond }
    }

    #[test]
    fn what_each_has_beyond_the_others_is_named() {
        let mut compared = CpuComparison {
            schema: 1,
            hosts: vec![host("a", &["avx512f", "avx512bw"]), host("b", &[])],
            common: vec![],
            template: TemplateFile::common_to(vec![], CpuModel::default()),
            problems: vec![],
        };
        let text = comparison(&compared, Style::PLAIN);
        assert!(text.contains("a has beyond the others: avx512f, avx512bw\n"), "{text}");
        assert!(text.contains("6/106/6") && text.contains("2100.007 MHz"), "{text}");
        assert!(!text.contains("b has") && !text.contains('\u{1b}'), "{text}");
        compared.hosts.remove(0);
        compared.hosts.push(host("c", &[]));
        assert!(comparison(&compared, Style::PLAIN).contains("no template"));
    }
}
