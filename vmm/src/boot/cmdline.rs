//! The kernel command line: checked, and completed with the virtio devices where ACPI does not
//! name them. Pure.

use std::fmt::Write;

use super::BootError;
use crate::memory::layout::{self, CMDLINE_MAX, VIRTIO_GSIS};

/// A command line that any kernel takes, unless it is too long for that kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cmdline {
    /// With the final NUL.
    bytes: Vec<u8>,
    /// Bytes that were added to what the user gave.
    added: usize,
}

impl Cmdline {
    /// The bytes to write, the final NUL included.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Refuses a line that a kernel which takes `max` bytes (without NUL) would cut.
    pub(super) fn check_length(&self, max: usize) -> Result<(), BootError> {
        let length = self.bytes.len() - 1;
        if length > max {
            return Err(BootError::CmdlineTooLong { length, added: self.added, max });
        }
        Ok(())
    }
}

/// The command line for a machine with `slots` virtio devices that no table names.
pub(super) fn build(user: &str, slots: usize) -> Result<Cmdline, BootError> {
    if let Some((position, byte)) = user.bytes().enumerate().find(|(_, b)| *b == 0 || !b.is_ascii())
    {
        return Err(BootError::CmdlineByte { byte, position });
    }
    let mut devices = String::new();
    for (slot, gsi) in VIRTIO_GSIS.iter().enumerate().take(slots) {
        let base = layout::virtio_mmio_base(slot);
        // Writing to a string cannot fail.
        let _ = write!(devices, " virtio_mmio.device=4K@{base:#x}:{gsi}");
    }
    // What follows a lone "--" belongs to init; the kernel reads no parameters there.
    let (kernel, init) = user.split_at(init_arguments(user));
    let kernel = if devices.is_empty() { kernel } else { kernel.trim_end() };
    let gap = if devices.is_empty() || init.is_empty() { "" } else { " " };
    let line = format!("{kernel}{devices}{gap}{init}");
    let added = line.len().saturating_sub(user.len());
    let mut bytes = line.into_bytes();
    bytes.push(0);
    let cmdline = Cmdline { bytes, added };
    cmdline.check_length(CMDLINE_MAX - 1)?;
    Ok(cmdline)
}

/// Where a lone "--" outside double quotes starts, or the end.
fn init_arguments(line: &str) -> usize {
    let mut quoted = false;
    let mut word = 0;
    for (i, b) in line.bytes().enumerate() {
        match b {
            b'"' => quoted = !quoted,
            _ if b.is_ascii_whitespace() && !quoted => {
                if &line[word..i] == "--" {
                    return word;
                }
                word = i + 1;
            }
            _ => {}
        }
    }
    if !quoted && &line[word..] == "--" { word } else { line.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(user: &str, slots: usize) -> String {
        let mut bytes = build(user, slots).unwrap().bytes;
        assert_eq!(bytes.pop(), Some(0));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn nothing_is_added_for_acpi() {
        for user in ["", " console=ttyS0  -- a ", "--", "a\tb\n"] {
            assert_eq!(line(user, 0), user);
        }
    }

    #[test]
    fn devices_come_before_the_arguments_of_init() {
        let devices = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
        assert_eq!(line("quiet", 2), format!("quiet {devices}"));
        assert_eq!(line("", 2), format!(" {devices}"));
        assert_eq!(line("quiet -- -x", 2), format!("quiet {devices} -- -x"));
        assert_eq!(line("quiet --", 2), format!("quiet {devices} --"));
        assert_eq!(line("a=\"x -- y\" b", 2), format!("a=\"x -- y\" b {devices}"));
        assert_eq!(line("a--b --c", 2), format!("a--b --c {devices}"));
        assert!(line("", 16).ends_with("=4K@0xd000f000:23"));
    }

    #[test]
    fn length_is_bounded() {
        let longest = "x".repeat(CMDLINE_MAX - 1);
        assert_eq!(build(&longest, 0).unwrap().bytes.len(), CMDLINE_MAX);
        assert!(matches!(
            build(&longest, 1),
            Err(BootError::CmdlineTooLong { length: 4130, added: 35, max: 4095 })
        ));
        assert!(matches!(
            build(&"x".repeat(CMDLINE_MAX), 0),
            Err(BootError::CmdlineTooLong { length: 4096, added: 0, max: 4095 })
        ));
    }

    #[test]
    fn odd_bytes_are_named() {
        for (user, at, value) in [("a\0b", 1, 0), ("ab\u{e9}", 2, 0xC3)] {
            assert!(matches!(
                build(user, 0),
                Err(BootError::CmdlineByte { byte, position }) if byte == value && position == at
            ));
        }
    }
}
