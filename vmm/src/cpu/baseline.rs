//! What several hosts can all show a guest: a guest that is shown no more can run on each of
//! them. Part by part, as [`rules`](super::rules) says; commutative and associative, so it does
//! not matter in which order hosts are named or added.

use super::rules::{self, How};
use super::{ARCH_CAPABILITIES, CpuModel, Leaf, Msr, Register, features};

/// Name of a CPU whose hosts differ in theirs; fills three leaves with zeros.
const NAME: &[u8; 16] = b"Common baseline ";
/// Leaves of the CPU's name.
const NAME_LEAVES: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];
/// Bytes of extended state before the first component: legacy area and header.
const XSAVE_LEGACY: u32 = 576;

/// Hosts that nothing can be common to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBaseline {
    /// None were named.
    #[error("no host is named")]
    Nobody,
    /// CPUs of different vendors: a guest uses what only one has without asking.
    #[error("the hosts have CPUs of different vendors: {0} and {1}")]
    Vendors(String, String),
}

/// What `hosts` have in common.
///
/// # Errors
/// There is none, or they are of different vendors.
pub fn common(hosts: &[&CpuModel]) -> Result<CpuModel, NoBaseline> {
    let (first, rest) = hosts.split_first().ok_or(NoBaseline::Nobody)?;
    // With itself: what no guest is shown goes also if there is one host only.
    rest.iter().try_fold(join(first, first)?, |common, host| join(&common, host))
}

/// What two have in common.
///
/// # Errors
/// They are of different vendors.
pub fn join(a: &CpuModel, b: &CpuModel) -> Result<CpuModel, NoBaseline> {
    if a.vendor() != b.vendor() {
        return Err(NoBaseline::Vendors(a.vendor(), b.vendor()));
    }
    let leaves = a.leaves.iter().filter_map(|a| {
        let (leaf, subleaf) = a.place();
        let b = b.leaf(leaf, subleaf)?;
        join_leaf(a, b, rules::of(leaf, subleaf)?)
    });
    let mut model = CpuModel { leaves: leaves.collect(), msrs: Vec::new() };
    let named = |m: &CpuModel| NAME_LEAVES.map(|leaf| m.leaf(leaf, 0).copied());
    if named(a) != named(b) {
        rename(&mut model);
    }
    let value = rules::join_capabilities(a.msr(ARCH_CAPABILITIES), b.msr(ARCH_CAPABILITIES));
    if value != 0 {
        model.msrs.push(Msr { index: ARCH_CAPABILITIES, value });
    }
    lose_components(&mut model);
    Ok(model)
}

fn join_leaf(a: &Leaf, b: &Leaf, how: How) -> Option<Leaf> {
    let mut out = Leaf::blank(a.leaf, a.subleaf.and(b.subleaf));
    match how {
        How::Registers(rules) => {
            for (register, rule) in Register::ALL.into_iter().zip(rules) {
                *out.get_mut(register) = rule.join(a.get(register), b.get(register));
            }
        }
        How::Whole(mask) => {
            for (register, mask) in Register::ALL.into_iter().zip(mask) {
                let (a, b) = (a.get(register) & mask, b.get(register) & mask);
                if a != b {
                    return None;
                }
                *out.get_mut(register) = a;
            }
            // One that says nothing is as good as none.
            if Register::ALL.into_iter().all(|register| out.get(register) == 0) {
                return None;
            }
        }
    }
    Some(out)
}

fn rename(model: &mut CpuModel) {
    let (words, _) = NAME.as_chunks::<4>();
    for leaf in &mut model.leaves {
        if NAME_LEAVES.contains(&leaf.leaf) {
            *leaf = Leaf::blank(leaf.leaf, leaf.subleaf);
            if leaf.leaf == NAME_LEAVES[0] {
                for (register, word) in Register::ALL.into_iter().zip(words) {
                    *leaf.get_mut(register) = u32::from_le_bytes(*word);
                }
            }
        }
    }
}

/// A component of the extended state that is not there and laid out alike on all hosts cannot be
/// used on any, nor can the features that need it.
fn lose_components(model: &mut CpuModel) {
    let used = |leaf, register| model.register(0xD, leaf, register);
    let enabled = used(0, Register::Eax) | used(1, Register::Ecx);
    let usable = |n: u32| enabled & (1 << n) != 0 && model.leaf(0xD, n).is_some();
    let lost: Vec<u32> = (2..32).filter(|n| !usable(*n)).collect();
    features::drop_components(model, &lost);
    features::resize_state(model, XSAVE_LEGACY);
}
