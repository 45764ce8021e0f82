//! Writes the test guest as an ELF file for other VMMs, or prints its parameters.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    if let Some(path) = std::env::args_os().nth(1) {
        return std::fs::write(path, vmm::scribbler::elf());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "usage: scribbler_elf FILE\n\nparameters of the guest:")?;
    for doc in vmm::scribbler::PARAMS {
        writeln!(out, "  {:9} {} [{}]", doc.key, doc.meaning, doc.default)?;
        writeln!(out, "            {}", doc.allowed)?;
    }
    Ok(())
}
