//! `cpu-template`: what a guest sees of the host's CPU, by name.

use std::fmt::Write;

use serde::Serialize;
use vmm::vcpu::template::{Mask, TEMPLATES, Template, find};

use super::{Done, OK, Session};
use crate::api::{ErrorCode, Failure};

#[derive(Serialize)]
struct Listing {
    schema: u32,
    templates: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    about: &'static str,
    removes: Vec<Removed>,
}

#[derive(Serialize)]
struct Removed {
    leaf: String,
    register: String,
    bits: String,
    what: &'static str,
}

/// `cpu-template [NAME]`
pub fn show(session: &Session, name: Option<&str>) -> Done {
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
        name: t.name,
        about: t.about,
        removes: t.masks.iter().map(removed).collect(),
    });
    session.out.result(&Listing { schema: 1, templates: templates.collect() }, &words)?;
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
