//! `cpu-template`: what a guest sees of the host's CPU, by name.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use vmm::vcpu::template::{Mask, TEMPLATES, Template, find};

use super::{Done, OK, Session};
use crate::api::{ErrorCode, Failure};
use crate::config::TemplateFile;

#[derive(Serialize)]
struct Listing {
    schema: u32,
    templates: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    about: String,
    removes: Vec<Removed>,
    /// Features that one in a file shows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shows: Vec<String>,
}

#[derive(Serialize)]
struct Removed {
    leaf: String,
    register: String,
    bits: String,
    what: &'static str,
}

/// `cpu-template [NAME|@FILE]`
pub fn show(session: &Session, name: Option<&str>) -> Done {
    if let Some(path) = name.and_then(|name| name.strip_prefix('@')) {
        return show_file(session, Path::new(path));
    }
    let chosen: Vec<&Template> = match name {
        None => TEMPLATES.iter().collect(),
        Some(name) => vec![find(name).ok_or_else(|| unknown(name))?],
    };
    let mut words = String::new();
    for template in &chosen {
        let _ = writeln!(words, "{:10}  {}", template.name, template.about);
        for mask in template.masks.iter().filter(|_| name.is_some()) {
            let removed = removed(mask);
            let _ = writeln!(
                words,
                "  leaf {:8} {} without bits {}: {}",
                removed.leaf, removed.register, removed.bits, removed.what
            );
        }
    }
    if name.is_some() {
        words.push_str(
            "Topology leaves always describe one package with a core for each vCPU. Performance\n\
             counters and the invariant TSC are never shown. KVM itself hides what it cannot give.\n",
        );
    }
    let templates = chosen.iter().map(|t| Entry {
        name: t.name.to_owned(),
        about: t.about.to_owned(),
        removes: t.masks.iter().map(removed).collect(),
        shows: Vec::new(),
    });
    session.out.result(&Listing { schema: 1, templates: templates.collect() }, &words)?;
    Ok(OK)
}

fn show_file(session: &Session, path: &Path) -> Done {
    let TemplateFile { name, hosts, model } = TemplateFile::read(path)?;
    let shows = vmm::cpu::features::names(&model);
    let about = match hosts.as_slice() {
        [] => "of a file".to_owned(),
        hosts => format!("what {} have in common", hosts.join(", ")),
    };
    let about = crate::show::style::safe(&about);
    let words = format!("{name}  {about}\n  {}", shows.join(" "));
    let entry = Entry { name, about, removes: Vec::new(), shows };
    session.out.result(&Listing { schema: 1, templates: vec![entry] }, &words)?;
    Ok(OK)
}

fn removed(mask: &Mask) -> Removed {
    Removed {
        leaf: format!("{:#x}.{}", mask.function, mask.index),
        register: format!("{:?}", mask.register).to_lowercase(),
        bits: format!("{:#010x}", !mask.keep),
        what: mask.what,
    }
}

fn unknown(name: &str) -> Failure {
    let names: Vec<_> = TEMPLATES.iter().map(|t| t.name).collect();
    Failure::new(
        ErrorCode::Usage,
        format!("there is no CPU template '{name}'"),
        format!("templates are {}", names.join(", ")),
    )
}
