//! Features by name, as `/proc/cpuinfo` and the kernel's sources call them, and what needs what.
//! A name may stand for several bits: AMD repeats some of leaf 1.

use std::collections::BTreeSet;

use super::Register::{self, Eax, Ebx, Ecx, Edx};
use super::names::{CAPABILITIES, NAMES, Place};
use super::{ARCH_CAPABILITIES, CpuModel};

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
