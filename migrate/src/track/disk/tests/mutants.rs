//! Trackers that are wrong on purpose: each must be found out.

use super::play::play;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The write is submitted, then stamped.
    StampAfterSubmit,
    /// The write does not wait for the record that has its region as hot.
    NoLog,
    /// The record says cold before the map is synced.
    ColdBeforeSync,
    /// The record says cold and the map is not synced at all.
    NoSync,
    /// The next epoch opens before the record has it.
    EpochNotDurable,
    /// A base is taken while the image is not flushed.
    NoFlush,
    /// A base is taken while writes of its epoch are in flight.
    BaseBeforeSettled,
    /// A write that lands in a later epoch is not stamped again.
    NotStampedAgain,
    /// It is stamped again, and its region stays cold.
    StampedAgainCold,
    /// A write looks whether its region is hot, then stamps.
    LookBeforeStamp,
    /// Hot regions do not count as changed after a power loss.
    HotForgotten,
    /// The record is written over the only good one.
    OneSlot,
}

#[test]
fn every_mutant_is_found() {
    use Mutant::{
        BaseBeforeSettled, ColdBeforeSync, EpochNotDurable, HotForgotten, LookBeforeStamp, NoFlush,
        NoLog, NoSync, NotStampedAgain, OneSlot, StampAfterSubmit, StampedAgainCold,
    };
    let mut missed = Vec::new();
    for mutant in [
        StampAfterSubmit,
        NoLog,
        ColdBeforeSync,
        NoSync,
        EpochNotDurable,
        NoFlush,
        BaseBeforeSettled,
        NotStampedAgain,
        StampedAgainCold,
        LookBeforeStamp,
        HotForgotten,
        OneSlot,
    ] {
        // These lose the record itself, which is noticed when it is opened.
        let sign = if matches!(mutant, OneSlot | EpochNotDurable) { "" } else { ": not reported" };
        let find = |seed| play(seed, 600, Some(mutant)).err().filter(|e| e.ends_with(sign));
        let found = (0..300).find_map(find);
        println!("{mutant:?}: {}", found.as_deref().unwrap_or("NOT FOUND"));
        missed.extend(found.is_none().then_some(mutant));
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
