//! CPU templates in files, and the features that `host.toml` hides from all guests of its host.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::cpu::{CpuModel, Leaf, Msr, features};

use super::networks::read_table;
use crate::api::{ErrorCode, Failure};

/// Longest template that is read, in bytes.
const FILE_MAX: u64 = 256 << 10;
/// Longest name of a template, in bytes.
const NAME_MAX: usize = 64;
/// Version of the document.
const SCHEMA: u32 = 1;
/// What kind of document it is.
const KIND: &str = "cpu-template";

/// The document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    r#type: String,
    name: String,
    #[serde(default)]
    hosts: Vec<String>,
    leaves: Vec<Leaf>,
    #[serde(default)]
    msrs: Vec<Msr>,
}

/// A CPU template in a file. People may edit it: what a host lacks of it is named when a guest
/// is started with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct TemplateFile {
    /// What guests that use it say of their CPU.
    pub name: String,
    /// The hosts that it is common to, if it was made of some.
    pub hosts: Vec<String>,
    /// What a guest is shown.
    pub model: CpuModel,
}

impl From<TemplateFile> for Document {
    fn from(file: TemplateFile) -> Self {
        let TemplateFile { name, hosts, model: CpuModel { leaves, msrs } } = file;
        Self { schema: SCHEMA, r#type: KIND.into(), name, hosts, leaves, msrs }
    }
}

impl TryFrom<Document> for TemplateFile {
    type Error = String;

    fn try_from(document: Document) -> Result<Self, String> {
        let Document { schema, r#type, name, hosts, leaves, msrs } = document;
        if r#type != KIND {
            return Err(format!("it is a {type} and no {KIND}"));
        }
        if schema != SCHEMA {
            return Err(format!("it is of version {schema}; this program reads {SCHEMA}"));
        }
        check_template_name(&name)?;
        let model = CpuModel { leaves, msrs }.checked().map_err(|e| e.to_string())?;
        Ok(Self { name, hosts, model })
    }
}

fn check_template_name(name: &str) -> Result<(), String> {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"+-_.".contains(&c);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
        return Err(format!(
            "its name '{}' is not one of up to {NAME_MAX} letters, digits and '+-_.'",
            name.escape_debug()
        ));
    }
    match vmm::vcpu::template::find(name) {
        Some(_) => Err(format!("its name '{name}' is that of a built-in template")),
        None => Ok(()),
    }
}

impl TemplateFile {
    /// A template of what `hosts` have in common, named after them.
    pub fn common_to(hosts: Vec<String>, model: CpuModel) -> Self {
        let joined = hosts.join("+");
        let fits = check_template_name(&joined).is_ok();
        let name = if fits { joined } else { format!("common-to-{}", hosts.len()) };
        Self { name, hosts, model }
    }

    /// Reads one.
    ///
    /// # Errors
    /// `not-found` or `file` if it cannot be read, `bad-definition` if it is no template.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        let cannot = |e: std::io::Error| {
            let code = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::File,
            };
            let message = format!("cannot read the CPU template {shown}: {e}");
            Failure::new(code, message, "make one: migrate host cpu -o FILE")
        };
        let bad = |why: &dyn std::fmt::Display| {
            let message = format!("{shown} is no CPU template: {why}");
            Failure::new(ErrorCode::BadDefinition, message, "make one: migrate host cpu -o FILE")
        };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(cannot)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
        if text.len() as u64 > FILE_MAX {
            return Err(bad(&format!("it is longer than {FILE_MAX} bytes")));
        }
        serde_json::from_str(&text).map_err(|e| bad(&e))
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

#[derive(Deserialize)]
struct HostFile {
    cpu: Option<Cpu>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cpu {
    #[serde(default)]
    mask: Vec<String>,
}

/// The features that the file at `host_toml` hides from all guests of this host.
///
/// # Errors
/// `file` if it cannot be read or understood, or names a feature that nobody knows.
pub fn hidden_features(host_toml: &Path) -> Result<Vec<String>, Failure> {
    let HostFile { cpu } = read_table(host_toml, "the CPU settings of this host")?;
    let mut mask = cpu.map(|c| c.mask).unwrap_or_default();
    for name in &mut mask {
        name.make_ascii_lowercase();
    }
    if let Some(unknown) = mask.iter().find(|name| !features::is_known(name)) {
        return Err(Failure::new(
            ErrorCode::File,
            format!(
                "{}: mask in [cpu] names '{}', which is no feature",
                host_toml.display(),
                unknown.escape_debug()
            ),
            "use the names of /proc/cpuinfo; migrate host cpu shows those of this host",
        ));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> TemplateFile {
        let model = CpuModel {
            leaves: vec![
                Leaf { eax: 7, ebx: 0x756e_6547, ..Leaf::blank(0, None) },
                Leaf { ecx: 1 << 25, ..Leaf::blank(1, None) },
                Leaf { ebx: u32::MAX, ..Leaf::blank(7, Some(0)) },
            ],
            msrs: vec![Msr { index: 0x10A, value: 1 << 62 | 1 }],
        };
        TemplateFile::common_to(vec!["a".into(), "b".into()], model)
    }

    #[test]
    fn a_template_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        std::fs::write(&path, template().text()).unwrap();
        assert_eq!(TemplateFile::read(&path).unwrap(), template());
        assert_eq!(template().name, "a+b");
        let many = (0..99).map(|n| format!("host{n}")).collect();
        assert_eq!(TemplateFile::common_to(many, CpuModel::default()).name, "common-to-99");
        // A host may be called as a built-in template is.
        let one = TemplateFile::common_to(vec!["host".into()], CpuModel::default());
        assert_eq!(one.name, "common-to-1");
        let gone = TemplateFile::read(&dir.path().join("none")).unwrap_err();
        assert_eq!(gone.0.code, ErrorCode::NotFound);
    }

    #[test]
    fn what_is_wrong_with_a_template_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        let good = template().text();
        let changes = [
            ("\"cpu-template\"", "\"cpu\"", "no cpu-template"),
            ("\"schema\": 1", "\"schema\": 2", "version 2"),
            ("\"a+b\"", "\"host\"", "built-in"),
            ("\"a+b\"", "\"a b\"", "letters"),
            ("\"0x10a\"", "\"0x10\"", "MSR 0x10"),
            ("\"0x7\"", "\"0x1\"", "twice"),
            ("\"0x1\"", "\"1\"", "0x1f"),
            ("\"0x1\"", "\"0x123456789\"", "32 bits"),
            ("\"leaves\"", "\"leafs\"", "leafs"),
        ];
        for (from, to, why) in changes {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            // A subleaf of 0 is the same question as none.
            std::fs::write(&path, text.replace("\"subleaf\": 0,", "")).unwrap();
            let error = TemplateFile::read(&path).unwrap_err();
            assert_eq!(error.0.code, ErrorCode::BadDefinition);
            assert!(error.0.message.contains(why), "{from} → {to}: {}", error.0.message);
        }
        for cut in 0..good.trim_end().len() {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(TemplateFile::read(&path).is_err(), "{cut}");
        }
        std::fs::write(&path, " ".repeat(300 << 10)).unwrap();
        assert!(TemplateFile::read(&path).unwrap_err().0.message.contains("longer"));
    }

    #[test]
    fn a_host_hides_what_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.toml");
        assert_eq!(hidden_features(&path).unwrap(), Vec::<String>::new());
        std::fs::write(&path, "name = 'h'\n[cpu]\nmask = ['AVX512F', 'sgx']\n").unwrap();
        assert_eq!(hidden_features(&path).unwrap(), ["avx512f", "sgx"]);
        for bad in ["[cpu]\nmask = ['avx5']", "[cpu]\nmusk = []", "cpu = 1"] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(hidden_features(&path).unwrap_err().0.code, ErrorCode::File, "{bad}");
        }
    }
}
