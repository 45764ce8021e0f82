//! Baselines against a model that looks at one bit at a time, and what is missing.

use proptest::prelude::*;

use super::Register::{Eax, Ebx, Ecx, Edx};
use super::baseline::{NoBaseline, common, join};
use super::compat::{Lack, lack, missing};
use super::*;

/// Questions that hosts answer here: one of each kind of rule, and two without.
const ASKED: [(u32, Option<u32>); 21] = [
    (0, None),
    (1, None),
    (4, Some(0)),
    (6, None),
    (7, Some(0)),
    (7, Some(1)),
    (0xA, None),
    (0xB, Some(0)),
    (0xD, Some(0)),
    (0xD, Some(1)),
    (0xD, Some(2)),
    (0xD, Some(5)),
    (0xD, Some(6)),
    (0xD, Some(7)),
    (0xD, Some(9)),
    (0x4000_0001, None),
    (0x8000_0001, None),
    (0x8000_0002, None),
    (0x8000_0006, None),
    (0x8000_0008, None),
    (0x8000_00FF, None),
];

/// Few values, so that hosts often agree, and bits that are often set.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), Just(u32::MAX), Just(0x1234_5678), any::<u32>(), any::<u32>()]
}

fn host() -> impl Strategy<Value = CpuModel> {
    let leaf = proptest::option::weighted(0.9, (value(), value(), value(), value()));
    let capabilities = proptest::option::of(any::<u64>());
    (proptest::collection::vec(leaf, ASKED.len()), capabilities).prop_map(|(answers, value)| {
        let leaves = ASKED.iter().zip(answers).filter_map(|((leaf, subleaf), answer)| {
            let (eax, ebx, ecx, edx) = answer.or((*leaf == 0).then_some((7, 0, 0, 0)))?;
            let mut leaf = Leaf { leaf: *leaf, subleaf: *subleaf, eax, ebx, ecx, edx };
            if leaf.leaf == 0 {
                (leaf.ebx, leaf.ecx, leaf.edx) = (0x756E_6547, 0x6C65_746E, 0x4965_6E69);
            }
            Some(leaf)
        });
        let msrs = value.map(|value| Msr { index: ARCH_CAPABILITIES, value });
        CpuModel { leaves: leaves.collect(), msrs: msrs.into_iter().collect() }
    })
}

fn bit(model: &CpuModel, leaf: u32, subleaf: u32, register: Register, bit: u32) -> bool {
    model.register(leaf, subleaf, register) & (1 << bit) != 0
}

/// Registers whose bits are features, here: all hosts need each.
const FEATURES: [(u32, u32, Register); 11] = [
    (1, 0, Ecx),
    (1, 0, Edx),
    (7, 0, Ebx),
    (7, 0, Ecx),
    (7, 0, Edx),
    (7, 1, Eax),
    (0xD, 0, Eax),
    (0xD, 1, Eax),
    (0x4000_0001, 0, Eax),
    (0x8000_0001, 0, Ecx),
    (0x8000_0001, 0, Edx),
];

/// Bits that no guest is to be shown, by number.
const NEVER: [(u32, u32, Register, u32); 8] = [
    (1, 0, Ecx, 5),           // VMX
    (1, 0, Ecx, 27),          // OSXSAVE
    (7, 0, Ebx, 2),           // SGX
    (7, 0, Ecx, 30),          // SGX launch control
    (7, 0, Edx, 1),           // SGX keys
    (7, 0, Ecx, 4),           // OSPKE
    (0x8000_0001, 0, Ecx, 2), // SVM
    (0x8000_0007, 0, Edx, 8), // invariant TSC
];

/// Bits of leaf 7, EBX, that say that something is not there any more.
const GONE: [u32; 2] = [6, 13];

/// Components of the extended state, and the bits that are of no use without them (SDM, volume 1,
/// chapter 13).
type Need = (&'static [u32], &'static [(u32, u32, Register, &'static [u32])]);
const NEEDED: [Need; 6] = [
    (
        &[2],
        &[
            (1, 0, Ecx, &[12, 28, 29]),
            (7, 0, Ebx, &[5]),
            (7, 0, Ecx, &[9, 10]),
            (7, 1, Eax, &[0, 1, 2, 4, 23]),
            (0x8000_0001, 0, Ecx, &[11, 16]),
            (0xD, 0, Eax, &[2]),
        ],
    ),
    (
        &[2, 5, 6, 7],
        &[
            (7, 0, Ebx, &[16, 17, 21, 26, 27, 28, 30, 31]),
            (7, 0, Ecx, &[1, 6, 11, 12, 14]),
            (7, 0, Edx, &[2, 3, 8, 23]),
            (7, 1, Eax, &[5]),
            (0xD, 0, Eax, &[5, 6, 7]),
        ],
    ),
    (&[9], &[(7, 0, Ecx, &[3]), (0xD, 0, Eax, &[9])]),
    (&[3, 4], &[(7, 0, Ebx, &[14])]),
    (&[11, 12], &[(7, 0, Ecx, &[7])]),
    (&[17, 18], &[(7, 0, Edx, &[22, 24, 25]), (7, 1, Eax, &[21])]),
];

/// What a model without rules says of one feature bit.
fn stupid(hosts: &[CpuModel], leaf: u32, subleaf: u32, register: Register, n: u32) -> bool {
    let needed = |(_, bits): &&Need| {
        bits.iter().any(|b| (b.0, b.1, b.2) == (leaf, subleaf, register) && b.3.contains(&n))
    };
    let usable = |component: &u32| {
        hosts.iter().all(|h| bit(h, 0xD, 0, Eax, *component)) && alike(hosts, *component)
    };
    if NEEDED.iter().filter(needed).any(|(components, _)| !components.iter().all(usable)) {
        return false;
    }
    if hosts.iter().any(|h| h.leaf(leaf, subleaf).is_none()) {
        return false;
    }
    if NEVER.contains(&(leaf, subleaf, register, n)) {
        return false;
    }
    if (leaf, subleaf, register) == (7, 0, Ebx) && GONE.contains(&n) {
        return hosts.iter().any(|h| bit(h, leaf, subleaf, register, n));
    }
    hosts.iter().all(|h| bit(h, leaf, subleaf, register, n))
}

/// A component of the extended state is laid out alike everywhere.
fn alike(hosts: &[CpuModel], component: u32) -> bool {
    let first = hosts[0].leaf(0xD, component);
    let says = first.is_some_and(|l| l.eax | l.ebx | l.ecx | l.edx != 0);
    says && hosts.iter().all(|h| h.leaf(0xD, component) == first)
}

/// A host that really exists has the description of each component that it has.
fn whole(mut host: CpuModel) -> CpuModel {
    const DESCRIBED: u32 = 1 << 2 | 7 << 5 | 1 << 9 | 3;
    for leaf in &mut host.leaves {
        match leaf.place() {
            (0xD, 0) => leaf.eax &= DESCRIBED,
            (0xD, 1) => leaf.ecx = 0,
            (0xD, n) => {
                (leaf.eax, leaf.ebx) = (64 * (leaf.eax % 3 + 1), 576 + 256 * n);
                (leaf.ecx, leaf.edx) = (0, 0);
            }
            _ => {}
        }
    }
    host
}

proptest! {
    #[test]
    fn a_baseline_is_what_a_look_at_each_bit_says(
        hosts in proptest::collection::vec(host().prop_map(whole), 1..5),
    ) {
        let all: Vec<&CpuModel> = hosts.iter().collect();
        let base = common(&all).unwrap();
        for (leaf, subleaf, register) in FEATURES {
            for n in 0..32 {
                let here = bit(&base, leaf, subleaf, register, n);
                let said = stupid(&hosts, leaf, subleaf, register, n);
                prop_assert_eq!(here, said, "{:#x}.{} {:?} {}", leaf, subleaf, register, n);
            }
        }
        for n in 0..64 {
            let has = |h: &CpuModel| h.msr(ARCH_CAPABILITIES) & (1 << n) != 0;
            let said = match n {
                2 | 19 => hosts.iter().any(has),
                0 | 1 | 3..=8 | 13..=15 | 17 | 18 | 20 | 21 | 24 | 26..=28 | 62 => {
                    hosts.iter().all(has)
                }
                _ => false,
            };
            prop_assert_eq!(has(&base), said, "IA32_ARCH_CAPABILITIES {}", n);
        }
        // Numbers.
        let least = |f: &dyn Fn(&CpuModel) -> u32| hosts.iter().map(f).min().unwrap();
        if hosts.iter().all(|h| h.leaf(0x8000_0008, 0).is_some()) {
            let field = |h: &CpuModel, first: u32| h.register(0x8000_0008, 0, Eax) >> first & 0xFF;
            for first in [0, 8, 16] {
                prop_assert_eq!(field(&base, first), least(&|h| field(h, first)));
            }
        }
        prop_assert_eq!(base.register(0, 0, Eax), least(&|h| h.register(0, 0, Eax)));
        // What nobody has named is not there.
        prop_assert!(base.leaf(0xA, 0).is_none() && base.leaf(0x8000_00FF, 0).is_none());
        // No host lacks any of it.
        for host in &hosts {
            prop_assert_eq!(missing(&base, host), Vec::<String>::new());
        }
    }

    #[test]
    fn the_order_of_hosts_does_not_matter(a in host(), b in host(), c in host()) {
        let two = |a: &CpuModel, b: &CpuModel| join(a, b).unwrap();
        prop_assert_eq!(two(&a, &b), two(&b, &a));
        prop_assert_eq!(two(&two(&a, &b), &c), two(&a, &two(&b, &c)));
        let base = two(&a, &b);
        prop_assert_eq!(two(&base, &base), base.clone());
        // A host that is in it already changes nothing.
        prop_assert_eq!(two(&base, &a), base);
    }

    /// Nothing of what is missing is missing any more once it is hidden from the guest.
    #[test]
    fn what_is_hidden_is_not_missed(a in host().prop_map(whole), b in host().prop_map(whole)) {
        let names = missing(&a, &b);
        let mut less = a.clone();
        features::hide(&mut less, &names);
        let left = missing(&less, &b);
        let nameless = |name: &String| {
            name.contains("addresses") || name.contains("layout") || name.starts_with("no_")
                || name.ends_with("_state") || name.starts_with("arch_capabilities:")
        };
        prop_assert!(left.iter().all(nameless), "{:?}", left);
    }

    #[test]
    fn kvm_is_told_what_the_model_says(model in host()) {
        let back = CpuModel::from_entries(&model.entries(), model.msrs.clone());
        prop_assert_eq!(back, model);
    }
}

fn leaf(leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> Leaf {
    Leaf { leaf, subleaf, eax, ebx, ecx, edx }
}

fn model(leaves: &[Leaf]) -> CpuModel {
    CpuModel { leaves: leaves.to_vec(), msrs: vec![] }
}

#[test]
fn what_is_missing_is_named() {
    let promised = model(&[
        leaf(1, None, [0, 0, 1 << 25 | 1 << 28 | 1 << 31, 0]),
        leaf(0x8000_0001, None, [0, 0, 1 << 11 | 1 << 30, 0]),
    ]);
    let supported = model(&[leaf(1, None, [0, 0, 1 << 25, 0])]);
    let lack = lack(&promised, &supported).unwrap();
    let names = ["avx", "xop", "cpuid:0x80000001.0.ecx.30"].map(str::to_owned);
    assert_eq!(lack, Lack::Features(names.into()));
    assert!(lack.to_string().contains("avx") && lack.remedy().contains("--cpu-template"));
    assert!(features::is_known("cpuid:0x80000001.0.ecx.30"));
    assert!(!features::is_known("avx5") && !features::is_known("cpuid:0x1.0.ecx.32"));
}

#[test]
fn a_richer_host_lacks_nothing() {
    let some = model(&[leaf(1, None, [0, 0, 1 << 25, 0])]);
    let all = model(&[leaf(1, None, [0, 0, u32::MAX, 0])]);
    assert_eq!(lack(&some, &all), None);
    // What KVM provides everywhere, and what follows the guest's own settings.
    let provided = model(&[leaf(1, None, [0, 0, 1 << 21 | 1 << 24 | 1 << 27, 1 << 28])]);
    assert_eq!(lack(&provided, &model(&[leaf(1, None, [0; 4])])), None);
}

#[test]
fn another_vendor_is_refused() {
    let of = |name: &[u8; 4]| model(&[leaf(0, None, [0, u32::from_le_bytes(*name), 0, 0])]);
    let (intel, amd) = (of(b"Genu"), of(b"Auth"));
    assert!(matches!(lack(&amd, &intel), Some(Lack::Vendor(..))));
    assert_eq!(common(&[&amd, &intel]), Err(NoBaseline::Vendors("Auth".into(), "Genu".into())));
    assert_eq!(common(&[]), Err(NoBaseline::Nobody));
}

#[test]
fn weaknesses_count_in_their_own_direction() {
    let of = |value| CpuModel {
        leaves: vec![leaf(7, Some(0), [0, 0, 0, 1 << 29])],
        msrs: vec![Msr { index: ARCH_CAPABILITIES, value }],
    };
    let (weak, strong) = (of(1 << 2), of(1 | 1 << 5));
    assert_eq!(missing(&strong, &weak), ["rdcl_no", "mds_no", "no_rsba"]);
    assert_eq!(missing(&weak, &strong), Vec::<String>::new());
    assert_eq!(join(&weak, &strong).unwrap().msr(ARCH_CAPABILITIES), 1 << 2);
}

/// AVX-512 as on a host that has it.
fn wide() -> CpuModel {
    model(&[
        leaf(1, None, [0, 0, 1 << 26 | 1 << 28, 1 << 24]),
        leaf(7, Some(0), [0, 1 << 5 | 1 << 16 | 1 << 30, 1 << 6, 0]),
        leaf(0xD, Some(0), [0xE7, 2432, 2432, 0]),
        leaf(0xD, Some(2), [256, 576, 0, 0]),
        leaf(0xD, Some(5), [64, 832, 0, 0]),
        leaf(0xD, Some(6), [512, 896, 0, 0]),
        leaf(0xD, Some(7), [1024, 1408, 0, 0]),
    ])
}

#[test]
fn hiding_takes_along_what_cannot_be_without_it() {
    let mut host = wide();
    features::hide(&mut host, &["avx512f".into(), "no-such-thing".into()]);
    assert_eq!(host.register(7, 0, Ebx), 1 << 5, "AVX2 is left");
    assert_eq!((host.register(7, 0, Ecx), host.register(0xD, 0, Eax)), (0, 7));
    assert!(host.leaf(0xD, 2).is_some() && host.leaf(0xD, 6).is_none());
    assert_eq!(missing(&wide(), &host), ["avx512f", "avx512bw", "avx512_vbmi2", "avx512_state"]);
    assert_eq!(features::names(&host), ["avx", "avx2", "avx_state", "fxsr", "xsave"]);
    features::hide(&mut host, &["xsave".into()]);
    assert_eq!(features::names(&host), ["fxsr"]);
}

#[test]
fn room_for_the_state_follows_its_components() {
    let mut less = wide();
    features::hide(&mut less, &["avx512f".into()]);
    let base = join(&wide(), &less).unwrap();
    assert_eq!((base.register(0xD, 0, Eax), base.register(0xD, 0, Ecx)), (7, 832));
    // One that lies elsewhere on another host cannot be used, and what needs it neither.
    let mut other = wide();
    other.leaves.iter_mut().filter(|l| l.place() == (0xD, 6)).for_each(|l| l.ebx += 64);
    let base = join(&wide(), &other).unwrap();
    assert_eq!((base.register(7, 0, Ebx), base.register(0xD, 0, Eax)), (1 << 5, 7));
    assert_eq!(missing(&wide(), &other), ["the layout of CPUID 0xd.6"]);
}

#[test]
fn what_comes_from_outside_is_checked() {
    let good = model(&[leaf(1, None, [0; 4]), leaf(0, None, [0; 4])]);
    assert_eq!(good.clone().checked().unwrap().leaves[0].leaf, 0);
    let twice = model(&[leaf(0, None, [0; 4]), leaf(0, None, [1; 4]), leaf(1, None, [0; 4])]);
    assert!(matches!(twice.checked(), Err(ModelError::Twice(_))));
    assert_eq!(model(&[leaf(0, None, [0; 4])]).checked(), Err(ModelError::Missing(1)));
    let many = model(&vec![leaf(0, None, [0; 4]); MAX_LEAVES + 1]);
    assert!(matches!(many.checked(), Err(ModelError::TooMany { .. })));
    let msrs = vec![Msr { index: 0x10, value: 0 }];
    assert_eq!(CpuModel { msrs, ..good }.checked(), Err(ModelError::Register(0x10)));
}

#[test]
fn every_name_is_understood() {
    for leaf in [1, 6, 7, 0xD, 0x8000_0008, 0x8000_0021] {
        for register in Register::ALL {
            for n in 0..32 {
                let name = features::name(leaf, 0, register, n);
                assert!(features::is_known(&name), "{name}");
            }
        }
    }
}
