//! Features by name, as `/proc/cpuinfo` and the kernel's sources call them, and what needs what.
//! A name may stand for several bits: AMD repeats some of leaf 1.

use std::collections::BTreeSet;

use super::Register::{self, Eax, Ebx, Ecx, Edx};
use super::{ARCH_CAPABILITIES, CpuModel};

/// Leaf, subleaf, register.
type Place = (u32, u32, Register);

/// Named bits of each register.
const NAMES: &[(Place, &[(u32, &str)])] = &[
    (
        (1, 0, Edx),
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
            (28, "ht"),
        ],
    ),
    (
        (1, 0, Ecx),
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (3, "monitor"),
            (5, "vmx"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    ),
    ((6, 0, Eax), &[(2, "arat")]),
    (
        (7, 0, Ebx),
        &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (2, "sgx"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (6, "fdp_excptn_only"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (13, "zero_fcs_fds"),
            (14, "mpx"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (25, "intel_pt"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        (7, 0, Ecx),
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (7, "shstk"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (24, "bus_lock_detect"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
            (30, "sgx_lc"),
        ],
    ),
    (
        (7, 0, Edx),
        &[
            (1, "sgx_keys"),
            (2, "avx512_4vnniw"),
            (3, "avx512_4fmaps"),
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (9, "srbds_ctrl"),
            (10, "md_clear"),
            (14, "serialize"),
            (16, "tsxldtrk"),
            (20, "ibt"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "spec_ctrl"),
            (27, "intel_stibp"),
            (28, "flush_l1d"),
            (29, "arch_capabilities"),
            (31, "spec_ctrl_ssbd"),
        ],
    ),
    (
        (7, 1, Eax),
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (7, "cmpccxadd"),
            (10, "fzrm"),
            (11, "fsrs"),
            (12, "fsrc"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
            (26, "lam"),
        ],
    ),
    (
        (7, 1, Edx),
        &[
            (4, "avx_vnni_int8"),
            (5, "avx_ne_convert"),
            (8, "amx_complex"),
            (10, "avx_vnni_int16"),
            (14, "prefetchiti"),
            (19, "avx10"),
        ],
    ),
    (
        (7, 2, Edx),
        &[
            (0, "intel_psfd"),
            (1, "ipred_ctrl"),
            (2, "rrsba_ctrl"),
            (3, "ddpd_u"),
            (4, "bhi_ctrl"),
            (5, "mcdt_no"),
        ],
    ),
    (
        (0xD, 0, Eax),
        &[
            (2, "avx_state"),
            (5, "avx512_state"),
            (6, "avx512_state"),
            (7, "avx512_state"),
            (9, "pku_state"),
            (17, "amx_state"),
            (18, "amx_state"),
        ],
    ),
    ((0xD, 1, Eax), &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")]),
    (
        (0x4000_0001, 0, Eax),
        &[
            (0, "kvmclock_old"),
            (1, "kvm_nopiodelay"),
            (2, "kvm_mmu"),
            (3, "kvmclock"),
            (4, "kvm_asyncpf"),
            (5, "kvm_steal_time"),
            (6, "kvm_pv_eoi"),
            (7, "kvm_pv_unhalt"),
            (9, "kvm_pv_tlb_flush"),
            (10, "kvm_asyncpf_vmexit"),
            (11, "kvm_pv_ipi"),
            (12, "kvm_poll_control"),
            (13, "kvm_pv_sched_yield"),
            (14, "kvm_asyncpf_int"),
            (15, "kvm_msi_ext_dest_id"),
            (16, "kvm_hc_map_gpa_range"),
            (17, "kvm_migration_control"),
            (24, "kvmclock_stable"),
        ],
    ),
    (
        (0x8000_0001, 0, Ecx),
        &[
            (0, "lahf_lm"),
            (1, "cmp_legacy"),
            (2, "svm"),
            (4, "cr8_legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (9, "osvw"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
            (22, "topoext"),
            (23, "perfctr_core"),
        ],
    ),
    (
        (0x8000_0001, 0, Edx),
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "syscall"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (20, "nx"),
            (22, "mmxext"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "fxsr_opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
            (30, "3dnowext"),
            (31, "3dnow"),
        ],
    ),
    ((0x8000_0007, 0, Edx), &[(8, "constant_tsc")]),
    (
        (0x8000_0008, 0, Ebx),
        &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "amd_ibpb"),
            (14, "amd_ibrs"),
            (15, "amd_stibp"),
            (17, "amd_stibp_always_on"),
            (24, "amd_ssbd"),
            (25, "virt_ssbd"),
            (26, "amd_ssb_no"),
            (28, "amd_psfd"),
            (29, "btc_no"),
            (30, "amd_ibpb_ret"),
        ],
    ),
    (
        (0x8000_0021, 0, Eax),
        &[
            (0, "no_nested_data_bp"),
            (2, "lfence_rdtsc"),
            (6, "null_sel_clr_base"),
            (8, "autoibrs"),
            (9, "no_smm_ctl_msr"),
        ],
    ),
    ((0x8000_0021, 0, Ecx), &[(1, "tsa_sq_no"), (2, "tsa_l1_no")]),
];

/// Named bits of `IA32_ARCH_CAPABILITIES`.
const CAPABILITIES: &[(u32, &str)] = &[
    (0, "rdcl_no"),
    (1, "ibrs_all"),
    (2, "rsba"),
    (3, "skip_l1dfl_vmentry"),
    (4, "ssb_no"),
    (5, "mds_no"),
    (6, "pschange_mc_no"),
    (7, "tsx_ctrl_msr"),
    (8, "taa_no"),
    (13, "sbdr_ssdp_no"),
    (14, "fbsdp_no"),
    (15, "psdp_no"),
    (17, "fb_clear"),
    (18, "fb_clear_ctrl"),
    (19, "rrsba"),
    (20, "bhi_no"),
    (21, "xapic_disable_status"),
    (24, "pbrsb_no"),
    (26, "gds_no"),
    (27, "rfds_no"),
    (28, "rfds_clear"),
    (62, "its_no"),
];

/// What cannot be without something else.
const NEEDS: &[(&str, &str)] = &[
    ("sse", "fxsr"),
    ("sse2", "sse"),
    ("pni", "sse2"),
    ("ssse3", "pni"),
    ("sse4_1", "ssse3"),
    ("sse4_2", "sse4_1"),
    ("aes", "sse2"),
    ("pclmulqdq", "sse2"),
    ("sha_ni", "sse2"),
    ("gfni", "sse2"),
    ("sse4a", "pni"),
    ("invpcid", "pcid"),
    ("xsaveopt", "xsave"),
    ("xsavec", "xsave"),
    ("xgetbv1", "xsave"),
    ("xsaves", "xsavec"),
    ("xfd", "xsave"),
    ("xsaveerptr", "xsave"),
    ("pku", "xsave"),
    ("avx", "xsave"),
    ("amx_tile", "xsave"),
    ("fma", "avx"),
    ("f16c", "avx"),
    ("avx2", "avx"),
    ("xop", "avx"),
    ("fma4", "avx"),
    ("vaes", "avx"),
    ("vpclmulqdq", "avx"),
    ("sm3", "avx"),
    ("avx_vnni", "avx2"),
    ("avx_ifma", "avx2"),
    ("avx_vnni_int8", "avx2"),
    ("avx_vnni_int16", "avx2"),
    ("avx_ne_convert", "avx2"),
    ("sha512", "avx2"),
    ("sm4", "avx2"),
    ("avx512f", "avx2"),
    ("avx10", "avx512f"),
    ("avx512dq", "avx512f"),
    ("avx512ifma", "avx512f"),
    ("avx512pf", "avx512f"),
    ("avx512er", "avx512f"),
    ("avx512cd", "avx512f"),
    ("avx512bw", "avx512f"),
    ("avx512vl", "avx512f"),
    ("avx512_vnni", "avx512f"),
    ("avx512_vpopcntdq", "avx512f"),
    ("avx512_4vnniw", "avx512f"),
    ("avx512_4fmaps", "avx512f"),
    ("avx512_vp2intersect", "avx512f"),
    ("avx512vbmi", "avx512bw"),
    ("avx512_vbmi2", "avx512bw"),
    ("avx512_bitalg", "avx512bw"),
    ("avx512_bf16", "avx512bw"),
    ("avx512_fp16", "avx512bw"),
    ("amx_bf16", "amx_tile"),
    ("amx_int8", "amx_tile"),
    ("amx_fp16", "amx_tile"),
    ("amx_complex", "amx_tile"),
    ("sgx_lc", "sgx"),
    ("sgx_keys", "sgx"),
];

/// Components of the extended state, and the feature that is there through each.
const COMPONENTS: &[(u32, &str)] = &[
    (2, "avx"),
    (3, "mpx"),
    (4, "mpx"),
    (5, "avx512f"),
    (6, "avx512f"),
    (7, "avx512f"),
    (9, "pku"),
    (11, "shstk"),
    (12, "shstk"),
    (17, "amx_tile"),
    (18, "amx_tile"),
];

/// What a bit is called; its place if it has no name.
pub fn name(leaf: u32, subleaf: u32, register: Register, bit: u32) -> String {
    let known = named(leaf, subleaf, register).and_then(|bits| bits.iter().find(|b| b.0 == bit));
    known.map_or_else(
        || {
            let register = format!("{register:?}").to_lowercase();
            format!("cpuid:{leaf:#x}.{subleaf}.{register}.{bit}")
        },
        |(_, name)| (*name).to_owned(),
    )
}

fn named(leaf: u32, subleaf: u32, register: Register) -> Option<&'static [(u32, &'static str)]> {
    NAMES.iter().find(|(place, _)| *place == (leaf, subleaf, register)).map(|(_, bits)| *bits)
}

/// What a bit of `IA32_ARCH_CAPABILITIES` is called.
pub fn capability(bit: u32) -> String {
    let known = CAPABILITIES.iter().find(|(b, _)| *b == bit);
    known.map_or_else(|| format!("arch_capabilities:{bit}"), |(_, name)| (*name).to_owned())
}

/// The bits that a name stands for. Also takes the places that [`name`] makes up.
fn places(name: &str) -> Vec<(Place, u32)> {
    let bits =
        NAMES.iter().flat_map(|(place, bits)| bits.iter().map(|(bit, n)| (*place, *bit, *n)));
    let mut found: Vec<_> =
        bits.filter(|(_, _, n)| *n == name).map(|(place, bit, _)| (place, bit)).collect();
    found.extend(by_place(name));
    found
}

fn by_place(name: &str) -> Option<(Place, u32)> {
    let mut parts = name.strip_prefix("cpuid:0x")?.split('.');
    let leaf = u32::from_str_radix(parts.next()?, 16).ok()?;
    let subleaf = parts.next()?.parse().ok()?;
    let register = match parts.next()? {
        "eax" => Eax,
        "ebx" => Ebx,
        "ecx" => Ecx,
        "edx" => Edx,
        _ => return None,
    };
    let bit = parts.next()?.parse().ok().filter(|bit| *bit < 32)?;
    parts.next().is_none().then_some(((leaf, subleaf, register), bit))
}

fn capability_bit(name: &str) -> Option<u32> {
    CAPABILITIES.iter().find(|(_, n)| *n == name).map(|(bit, _)| *bit)
}

/// Whether a feature goes by this name.
pub fn is_known(name: &str) -> bool {
    !places(name).is_empty() || capability_bit(name).is_some()
}

/// The names of all features that a model has, sorted.
pub fn names(model: &CpuModel) -> Vec<String> {
    let mut out = BTreeSet::new();
    for ((leaf, subleaf, register), bits) in NAMES {
        let value = model.register(*leaf, *subleaf, *register);
        out.extend(bits.iter().filter(|(bit, _)| value & (1 << bit) != 0).map(|(_, n)| *n));
    }
    let value = model.msr(ARCH_CAPABILITIES);
    out.extend(CAPABILITIES.iter().filter(|(bit, _)| value & (1 << bit) != 0).map(|(_, n)| *n));
    out.into_iter().map(str::to_owned).collect()
}

/// Takes features away, with everything that cannot be without them. Names that nobody knows take
/// nothing away.
pub fn hide(model: &mut CpuModel, hidden: &[String]) {
    let mut gone: BTreeSet<&str> = hidden.iter().map(String::as_str).collect();
    while let Some((name, _)) =
        NEEDS.iter().find(|(name, need)| gone.contains(need) && !gone.contains(name))
    {
        gone.insert(name);
    }
    for name in &gone {
        for ((leaf, subleaf, register), bit) in places(name) {
            clear(model, (leaf, subleaf, register), bit);
        }
        if let Some(bit) = capability_bit(name) {
            model.msrs.iter_mut().for_each(|m| m.value &= !(1 << bit));
        }
    }
    let unused = COMPONENTS.iter().filter(|(_, feature)| gone.contains(feature));
    let unused: Vec<u32> = unused.map(|(component, _)| *component).collect();
    remove_components(model, &unused);
}

fn clear(model: &mut CpuModel, (leaf, subleaf, register): Place, bit: u32) {
    for leaf in model.leaves.iter_mut().filter(|l| l.place() == (leaf, subleaf)) {
        *leaf.get_mut(register) &= !(1 << bit);
    }
}

/// Takes components of the extended state away, with the features that are there through them.
pub fn drop_components(model: &mut CpuModel, lost: &[u32]) {
    let features = COMPONENTS.iter().filter(|(component, _)| lost.contains(component));
    let features: Vec<String> = features.map(|(_, feature)| (*feature).to_owned()).collect();
    if !features.is_empty() {
        hide(model, &features);
    }
    remove_components(model, lost);
}

fn remove_components(model: &mut CpuModel, components: &[u32]) {
    for component in components {
        clear(model, (0xD, 0, Eax), *component);
        clear(model, (0xD, 1, Ecx), *component);
    }
    model.leaves.retain(|l| l.leaf != 0xD || !components.contains(&l.place().1));
}

/// Leaf 0xD says how much room the state needs: `legacy` bytes, and up to the end of the last
/// component. (Where KVM knows the guest's XCR0, it puts the room for that into EBX.)
pub fn resize_state(model: &mut CpuModel, legacy: u32) {
    let enabled = model.register(0xD, 0, Eax);
    let components = (2..32).filter(|n| enabled & (1 << n) != 0);
    let ends = components.filter_map(|n| model.leaf(0xD, n)).map(|l| l.eax.saturating_add(l.ebx));
    let size = ends.fold(legacy, u32::max);
    for leaf in model.leaves.iter_mut().filter(|l| l.place() == (0xD, 0)) {
        (leaf.ebx, leaf.ecx) = (size, size);
    }
}
