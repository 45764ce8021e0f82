//! The scribbler: the built-in test guest.
//!
//! It dirties memory in a known way, checks every page before it rewrites it, and beats on the
//! serial port. Whoever moves it can tell from outside whether all its memory arrived and how
//! long it stood still. It works in ring 3, at native speed on every KVM backend; ring 0 only
//! boots, starts CPUs, and halts.
//!
//! # Booting it
//! [`elf`] is a PVH ELF for any VMM: `qemu-system-x86_64 -accel kvm -kernel scribbler.elf -append
//! "cpus=2 ws=64M" -smp 2 -serial stdio`. CPUs are the APIC ids 0 to `cpus - 1`. RAM comes from
//! the PVH memory map; RAM between 3 and 4 GiB is not used. [`layout`] tells what lies where.
//!
//! # Parameters
//! [`PARAMS`] lists them; [`Params`] parses `scribbler:ws=32M,rate=5000` and renders the command
//! line, where they stand separated by spaces. There only: `cpus=` (1 to 32, default 1), and
//! `pm=`, the port of the ACPI `PM1a` event block (power button; power off by S5).
//!
//! # Pages
//! A page's 512 words derive from (seed, guest page number, version): magic, number, version,
//! key, then a stream; see [`model`]. Each CPU owns a slice of the working set and visits it in a
//! full-period permutation: version `r` before its visit in round `r`, `r + 1` after it. What a
//! page must hold follows from the CPU's (round, position) alone, never from the page.
//! `pattern=hot` keeps two such regions a CPU. Twelve SSE registers hold known values that are
//! compared all the time (`regs`, and counted as errors): FPU state must arrive, too.
//!
//! # On the serial port
//! One byte (`tag`) per heartbeat; missed ones are not made up for. Lines begin and end with a
//! line feed: `SCRIBBLER-READY …` once filled, `S t=… errors=… gap=…` each second, `MISMATCH …`
//! for the first wrong page of each CPU, `VERIFY ok …` or `VERIFY BAD …` after a sweep over all
//! pages. Only `VERIFY ok` says that no error exists: `errors=0` in a status line covers no more
//! than the pages rewritten so far. `gap` is the longest time between two heartbeats in the
//! guest's own time. Input: `v` sweep, `s` status now, `q` power off. [`report`] parses it all.
//!
//! # Time
//! kvmclock if there is one, else the TSC. A clock that goes back is counted (`clk_back`). Time
//! missed in a pause is not caught up beyond 50 ms' worth of rewrites. Waits of 1 ms or more halt
//! the CPU; shorter ones spin, so `hb` below 1 ms or more than 1000 pages a second and CPU keep
//! it busy.

mod elf;
mod image;
pub mod layout;
pub mod model;
mod params;
pub mod report;

pub use elf::elf;
pub use params::{PARAMS, ParamDoc, ParamError, Params, Pattern, Rate};
