//! `host cpu`: what the hosts' CPUs have in common, and a template of it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::args::host::CpuArgs;
use super::{Done, OK, Session};
use crate::api::client::block_on;
use crate::api::cpu::CompareRequest;
use crate::api::{ErrorCode, Failure};
use crate::config::TemplateFile;
use crate::show;

/// `host cpu [HOST…] [-o FILE]`
pub fn cpu(session: &Session, args: &CpuArgs) -> Done {
    let client = session.daemon();
    let request = CompareRequest { hosts: args.hosts.clone() };
    let compared = block_on(client.compare_cpus(&request)).map_err(|e| client.failure(e))?;
    if let Some(path) = &args.output {
        write(path, &compared.template, session.global.yes)?;
    }
    if session.out.json {
        session.out.result(&compared, "")?;
        return Ok(OK);
    }
    let mut words = show::cpu::comparison(&compared, session.out.style);
    let next = match &args.output {
        Some(path) => format!(
            "The template is in {0}. Start guests with it: {1} --cpu-template @{0}\n",
            path.display(),
            session.command("run ...")
        ),
        None if compared.hosts.iter().any(|h| !h.beyond.is_empty()) => {
            let names: Vec<&str> = compared.hosts.iter().map(|h| h.name.as_str()).collect();
            let command = session.command(&format!("host cpu {} -o FILE", names.join(" ")));
            format!("A template of what they have in common: {command}\n")
        }
        None => String::new(),
    };
    words.push_str(&next);
    session.out.print(words.trim_end())?;
    Ok(OK)
}

/// Writes the template so that the file is there whole or not at all.
fn write(path: &Path, template: &TemplateFile, replace: bool) -> Result<(), Failure> {
    if path.exists() && !replace {
        let message = format!("{} exists already", path.display());
        return Err(Failure::new(ErrorCode::File, message, "name another file, or give --yes"));
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = write_new(&new, &template.text()).and_then(|()| fs::rename(&new, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&new);
        let message = format!("cannot write {}: {e}", path.display());
        Failure::new(ErrorCode::File, message, "check the directory and its permissions")
    })
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
