//! Is a map still the map of its image? What was recorded and how the image looks now go in, the
//! verdict comes out.
//!
//! A map that was closed knows exactly how its image looked, so any difference is foreign. After
//! a kill or a power loss the image differs from what was recorded because of the guest's own
//! writes; then it is foreign if it was modified later than the last own write can have been:
//!
//! * after a kill, that is [`KILL_GRACE`] after the last own write, which the live words hold
//!   exactly;
//! * after a power loss the live words may be as old as the host's write-back lets them be, so it
//!   is [`POWER_GRACE`] after them, and before this boot.
//!
//! An edit inside these margins is not told from an own write. Neither is one that keeps size,
//! time and inode and misses all samples, nor one that is made together with a growth and misses
//! the samples; a block device has no time, so there only size and samples speak, and after a
//! kill the size alone.

use super::head::{Fresh, Head, Look, Shape};

/// How long after its announcement a write may set the image's time, in ns. A killed process
/// leaves no record of when it died.
pub const KILL_GRACE: u64 = 100_000_000;
/// How old the live words may be after a power loss, in ns: they are synced every half minute.
pub const POWER_GRACE: u64 = 120_000_000_000;

/// This host and the image now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// This boot of the host.
    pub boot: u128,
    /// When it began, in ns since 1970.
    pub boot_began: u64,
    /// The division of a map that would be made now.
    pub shape: Shape,
    /// The image. The samples are those of the part that was recorded, [`Head::shape`], or of
    /// all if it is smaller.
    pub look: Look,
}

/// What a map is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says exactly what changed.
    Exact,
    /// It says what changed, once hot regions are counted as changed.
    PowerLoss,
    /// It says what changed below the old end.
    Grown,
    /// Nothing.
    Fresh(Fresh),
}

/// Judges a map. `written` and `void` are those of its live words.
pub fn judge(head: &Head, written: u64, void: Option<Fresh>, now: &Now) -> Verdict {
    let (then, shape) = (head.shape, now.shape);
    if let Some(why) = void {
        return Verdict::Fresh(why);
    }
    if (then.unit_size, then.region_units) != (shape.unit_size, shape.region_units) {
        return Verdict::Fresh(Fresh::Damaged);
    }
    let inode = |look: &Look| look.file.map(|(_, inode)| inode);
    if inode(&head.look) != inode(&now.look) {
        return Verdict::Fresh(Fresh::Replaced);
    }
    if shape.bytes < then.bytes {
        return Verdict::Fresh(Fresh::Shrunk);
    }
    let foreign = if head.clean { after_close(head, now) } else { after_crash(head, written, now) };
    match foreign {
        Some(fresh) => Verdict::Fresh(fresh),
        None if shape.bytes > then.bytes => Verdict::Grown,
        None if head.clean || head.boot == now.boot => Verdict::Exact,
        None => Verdict::PowerLoss,
    }
}

fn after_close(head: &Head, now: &Now) -> Option<Fresh> {
    let time = |look: &Look| look.file.map(|(modified, _)| modified);
    if time(&now.look) < time(&head.look) {
        return Some(Fresh::Reverted);
    }
    // Growing sets the time, whoever does it.
    let grown = now.shape.bytes > head.shape.bytes;
    let later = time(&now.look) != time(&head.look) && !grown;
    (later || now.look.samples != head.look.samples).then_some(Fresh::Edited)
}

fn after_crash(head: &Head, written: u64, now: &Now) -> Option<Fresh> {
    if now.shape.bytes != head.shape.bytes {
        return Some(Fresh::Edited);
    }
    let (Some((then, _)), Some((modified, _))) = (head.look.file, now.look.file) else {
        return None;
    };
    if modified < then {
        return Some(Fresh::Reverted);
    }
    let written = written.max(head.written);
    let limit = if head.boot == now.boot {
        written.saturating_add(KILL_GRACE)
    } else {
        written.saturating_add(POWER_GRACE).min(now.boot_began)
    };
    let late = u64::try_from(modified).is_ok_and(|m| m > limit);
    (late && modified != then).then_some(Fresh::Edited)
}

#[cfg(test)]
mod tests {
    use super::super::regions::Regions;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn shape(bytes: u64) -> Shape {
        Shape { bytes, unit_size: 1 << 16, region_units: 4096 }
    }

    fn look(seconds: i64) -> Look {
        Look { file: Some((seconds * 1_000_000_000, 5)), samples: 1 }
    }

    fn head(clean: bool) -> Head {
        let first = Head::first(1, 1, Fresh::New, shape(1 << 20), look(1000));
        Head { clean, boot: 7, written: 900 * SECOND, hot: Regions::empty(1), ..first }
    }

    fn now() -> Now {
        Now { boot: 7, boot_began: 500 * SECOND, shape: shape(1 << 20), look: look(1000) }
    }

    #[test]
    fn a_closed_map_sees_every_difference() {
        let judged = |now: &Now| judge(&head(true), 0, None, now);
        let with = |look| Now { look, ..now() };
        assert_eq!(judged(&now()), Verdict::Exact);
        assert_eq!(judged(&Now { boot: 8, ..now() }), Verdict::Exact);
        assert_eq!(judged(&with(look(1001))), Verdict::Fresh(Fresh::Edited));
        assert_eq!(judged(&with(look(999))), Verdict::Fresh(Fresh::Reverted));
        let other = Look { samples: 2, ..look(1000) };
        assert_eq!(judged(&with(other)), Verdict::Fresh(Fresh::Edited));
        let inode = Look { file: Some((1000 * 1_000_000_000, 6)), ..look(1000) };
        assert_eq!(judged(&with(inode)), Verdict::Fresh(Fresh::Replaced));
        let device = Look { file: None, ..look(1000) };
        assert_eq!(judged(&with(device)), Verdict::Fresh(Fresh::Replaced));
    }

    #[test]
    fn size() {
        let sized = |bytes, look| Now { shape: shape(bytes), look, ..now() };
        let judged = |clean, now: &Now| judge(&head(clean), 2000 * SECOND, None, now);
        assert_eq!(judged(true, &sized(1 << 19, look(1001))), Verdict::Fresh(Fresh::Shrunk));
        assert_eq!(judged(true, &sized(2 << 20, look(1001))), Verdict::Grown);
        let edited = Look { samples: 3, ..look(1001) };
        assert_eq!(judged(true, &sized(2 << 20, edited)), Verdict::Fresh(Fresh::Edited));
        // Growth after a kill cannot be told from an edit.
        assert_eq!(judged(false, &sized(2 << 20, look(1001))), Verdict::Fresh(Fresh::Edited));
        let units = Shape { unit_size: 1 << 12, ..shape(1 << 20) };
        assert_eq!(judged(true, &Now { shape: units, ..now() }), Verdict::Fresh(Fresh::Damaged));
    }

    #[test]
    fn after_a_kill_only_later_writes_are_foreign() {
        let at = |seconds| Now { look: Look { samples: 9, ..look(seconds) }, ..now() };
        let judged = |written, now: &Now| judge(&head(false), written, None, now);
        assert_eq!(judged(1500 * SECOND, &at(1500)), Verdict::Exact);
        assert_eq!(judged(1500 * SECOND - KILL_GRACE, &at(1500)), Verdict::Exact);
        let early = judged(1500 * SECOND - KILL_GRACE - 1, &at(1500));
        assert_eq!(early, Verdict::Fresh(Fresh::Edited));
        assert_eq!(judged(1500 * SECOND, &at(999)), Verdict::Fresh(Fresh::Reverted));
        // Nothing was written at all.
        assert_eq!(judged(0, &at(1000)), Verdict::Exact);
        assert_eq!(
            judge(&head(false), 1500 * SECOND, Some(Fresh::Elsewhere), &at(1500)),
            Verdict::Fresh(Fresh::Elsewhere)
        );
    }

    #[test]
    fn after_a_power_loss_the_boot_is_a_limit_as_well() {
        let boot = |began, seconds| Now {
            boot: 8,
            boot_began: began * SECOND,
            look: Look { samples: 9, ..look(seconds) },
            ..now()
        };
        let judged = |now: &Now| judge(&head(false), 1500 * SECOND, None, now);
        assert_eq!(judged(&boot(3000, 1500)), Verdict::PowerLoss);
        assert_eq!(judged(&boot(3000, 1620)), Verdict::PowerLoss);
        assert_eq!(judged(&boot(3000, 1621)), Verdict::Fresh(Fresh::Edited));
        assert_eq!(judged(&boot(1600, 1601)), Verdict::Fresh(Fresh::Edited));
        // A time that is older than the last own write is what a power loss may leave.
        assert_eq!(judged(&boot(3000, 1001)), Verdict::PowerLoss);
    }
}
