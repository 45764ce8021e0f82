//! The state in which the boot CPU starts.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::linux64::{CODE_SELECTOR, DATA_SELECTOR, GDT_LIMIT, TSS_SELECTOR};
use crate::memory::layout;

/// How the kernel expects to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Xen's PVH ABI: 32-bit protected mode, paging off, `ebx` = start info.
    Pvh,
    /// Linux's 64-bit boot protocol: long mode, low 4 GiB mapped to themselves, `rsi` = zero page.
    Linux64,
}

/// Where and how the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How.
    pub protocol: Protocol,
    /// Guest-physical entry point.
    pub rip: u64,
    /// Guest-physical address of the start info or zero page.
    pub arg: u64,
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 2;

const CODE: u8 = 0xB;
const DATA: u8 = 0x3;
const BUSY_TSS: u8 = 0xB;

impl Entry {
    /// General registers.
    pub fn regs(&self) -> kvm_regs {
        let mut regs = kvm_regs {
            rip: self.rip,
            rsp: layout::BOOT_STACK,
            rflags: RFLAGS,
            ..Default::default()
        };
        match self.protocol {
            Protocol::Pvh => regs.rbx = self.arg,
            Protocol::Linux64 => regs.rsi = self.arg,
        }
        regs
    }

    /// Segments and control registers, laid over those of a fresh vCPU.
    pub fn sregs(&self, base: kvm_sregs) -> kvm_sregs {
        match self.protocol {
            Protocol::Pvh => protected_mode(&base),
            Protocol::Linux64 => long_mode(&base),
        }
    }
}

/// A flat segment of 4 GiB.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_,
        limit: 0xFFFF_FFFF,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

/// The TSS that both protocols need to find in TR: base 0, limit 0x67.
fn tss(selector: u16) -> kvm_segment {
    kvm_segment { selector, type_: BUSY_TSS, limit: 0x67, present: 1, ..Default::default() }
}

fn with_data(base: &kvm_sregs, data: kvm_segment) -> kvm_sregs {
    let mut sregs = *base;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
    sregs
}

/// Xen `public/arch-x86/hvm/start_info.h`. The kernel loads a GDT of its own before it loads a
/// segment register, so there is none in memory.
fn protected_mode(base: &kvm_sregs) -> kvm_sregs {
    let mut sregs = with_data(base, flat(0x10, DATA));
    sregs.cs = flat(0x08, CODE);
    sregs.tr = tss(0x18);
    sregs.gdt = kvm_dtable::default();
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    sregs
}

fn long_mode(base: &kvm_sregs) -> kvm_sregs {
    let mut sregs = with_data(base, flat(DATA_SELECTOR, DATA));
    sregs.cs = kvm_segment { l: 1, db: 0, ..flat(CODE_SELECTOR, CODE) };
    sregs.tr = tss(TSS_SELECTOR);
    sregs.gdt = kvm_dtable { base: layout::BOOT_GDT, limit: GDT_LIMIT, ..Default::default() };
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::BOOT_PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    sregs
}

#[cfg(test)]
mod tests {
    use super::super::linux64::GDT;
    use super::*;

    fn entry(protocol: Protocol) -> Entry {
        Entry { protocol, rip: 0x10_0200, arg: 0x7000 }
    }

    #[test]
    fn arguments_are_in_the_registers_of_the_protocol() {
        let pvh = entry(Protocol::Pvh).regs();
        assert_eq!((pvh.rip, pvh.rbx, pvh.rsi, pvh.rflags), (0x10_0200, 0x7000, 0, 2));
        let linux = entry(Protocol::Linux64).regs();
        assert_eq!((linux.rip, linux.rbx, linux.rsi, linux.rflags), (0x10_0200, 0, 0x7000, 2));
    }

    /// The descriptors in memory must say what the segment registers say.
    #[test]
    fn gdt_agrees_with_the_segment_registers() {
        let sregs = entry(Protocol::Linux64).sregs(kvm_sregs::default());
        for segment in [sregs.cs, sregs.ds, sregs.ss, sregs.es, sregs.tr] {
            let d = GDT[usize::from(segment.selector) / 8];
            assert_eq!((d >> 40 & 0xF) as u8, segment.type_);
            assert_eq!((d >> 44 & 1) as u8, segment.s);
            assert_eq!((d >> 45 & 3) as u8, segment.dpl);
            assert_eq!((d >> 47 & 1) as u8, segment.present);
            assert_eq!((d >> 53 & 1) as u8, segment.l);
            assert_eq!((d >> 54 & 1) as u8, segment.db);
            assert_eq!((d >> 55 & 1) as u8, segment.g);
            let limit = (d & 0xFFFF) | (d >> 32 & 0xF_0000);
            let bytes = if segment.g == 1 { limit << 12 | 0xFFF } else { limit };
            assert_eq!(bytes, u64::from(segment.limit));
        }
        assert_eq!(usize::from(sregs.gdt.limit), GDT.len() * 8 - 1);
    }

    #[test]
    fn pvh_starts_without_paging() {
        let sregs = entry(Protocol::Pvh).sregs(kvm_sregs {
            cr4: 1,
            efer: 1,
            apic_base: 7,
            ..Default::default()
        });
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!(sregs.apic_base, 7, "the rest stays as it was");
    }
}
