//! The guest's machine code, assembled into this binary's read-only data.
#![allow(unsafe_code)]

core::arch::global_asm!(
    ".pushsection .rodata.scribbler, \"a\", @progbits",
    ".balign 16",
    include_str!("guest/defs.s"),
    include_str!("guest/boot.s"),
    include_str!("guest/setup.s"),
    include_str!("guest/cmdline.s"),
    include_str!("guest/work.s"),
    include_str!("guest/run.s"),
    include_str!("guest/console.s"),
    include_str!("guest/serial.s"),
    include_str!("guest/tables.s"),
    ".globl scribbler_image_start",
    ".hidden scribbler_image_start",
    ".globl scribbler_image_end",
    ".hidden scribbler_image_end",
    ".popsection",
    options(raw)
);

// SAFETY: the assembler block above defines both; only their addresses are taken.
unsafe extern "C" {
    static scribbler_image_start: u8;
    static scribbler_image_end: u8;
}

/// The bytes to be loaded at [`super::layout::LOAD`].
pub fn image() -> &'static [u8] {
    let start = &raw const scribbler_image_start;
    let end = &raw const scribbler_image_end;
    // SAFETY: both symbols bound one piece of read-only data that the assembler block above
    // emits, in this order; it is never written and lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
