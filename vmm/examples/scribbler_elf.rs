//! Writes the test guest as an ELF file for other VMMs, checks a dump of its RAM, or prints its
//! parameters.

use std::collections::BTreeSet;
use std::io::{Error, Result, Write as _};

use vmm::scribbler::layout::{CONTROL, CONTROL_LEN, Control};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", path] => std::fs::write(path, vmm::scribbler::elf()),
        ["check", path] => check(&std::fs::read(path)?),
        _ => help(),
    }
}

/// `ram` is guest memory from address 0, taken while the guest was paused.
fn check(ram: &[u8]) -> Result<()> {
    let start = usize::try_from(CONTROL).map_err(Error::other)?;
    let area = ram.get(start..start + CONTROL_LEN).ok_or_else(|| Error::other("too short"))?;
    let control = Control::parse(area).map_err(Error::other)?;
    let in_progress: BTreeSet<u64> = control.in_progress().into_iter().collect();
    let (mut right, mut wrong, mut open, mut beyond) = (0_u64, 0_u64, 0_u64, 0_u64);
    for (gfn, version) in control.expected() {
        let at = usize::try_from(gfn * 4096).map_err(Error::other)?;
        match ram.get(at..at + 4096) {
            None => beyond += 1,
            Some(page) if control.model.check(gfn, version, page).is_none() => right += 1,
            Some(_) if in_progress.contains(&gfn) => open += 1,
            Some(_) => wrong += 1,
        }
    }
    let steps: u64 = control.cpus.iter().map(|cpu| cpu.pages).sum();
    let text = format!(
        "right={right} wrong={wrong} half-written={open} beyond={beyond} rewrites={steps} cpus={}",
        control.cpus.len()
    );
    if wrong == 0 && right > 0 {
        writeln!(std::io::stdout(), "RAM ok {text}")
    } else {
        Err(Error::other(format!("RAM BAD {text}")))
    }
}

fn help() -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "usage: scribbler_elf write FILE | check RAM-DUMP\n\nthe guest's parameters:")?;
    for doc in vmm::scribbler::PARAMS {
        writeln!(out, "  {:9} {} [{}]", doc.key, doc.meaning, doc.default)?;
        writeln!(out, "            {}", doc.allowed)?;
    }
    Ok(())
}
