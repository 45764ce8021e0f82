//! What is done where: a cell is a place, a fault and the process that it strikes.

use std::fmt;
use std::time::Duration;

use migrate::failpoint::Fate;
use migrate::failpoint::plan::{Action, Rule};
use migrate::failpoint::points::{POINTS, Party, Point};

const PARTIES: [Party; 4] =
    [Party::Source, Party::Target, Party::SourceDaemon, Party::TargetDaemon];
/// The opening waits half a minute for a message that never comes, and QUIC loses none.
const OPENING: [&str; 3] = ["Offer", "Layout", "Accept"];

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The process is killed while another one stands at the place; a daemon comes back.
    Kill(Party),
    /// It stands still, and goes on with what it believed.
    Stop(Party),
    /// No datagram goes either way for a while.
    Cut,
    /// None comes to the target's host.
    CutToTarget,
    /// None comes to the source's host.
    CutToSource,
    /// The message is lost.
    Lost,
    /// It comes twice.
    Twice,
    /// It comes late, behind others.
    Late,
    /// The write fails: no room.
    NoSpace,
    /// The write fails: the disk is broken.
    DiskError,
}

/// What goes wrong before the fault of a cell: its place is passed only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum First {
    /// Nothing.
    Nothing,
    /// The target is prepared, and nobody hears it: the source withdraws.
    PreparedLost,
    /// The target dies when it was given the guest and before it ran: the source takes it back.
    TargetDies,
    /// The source dies after it gave the guest away: its daemon says so.
    SourceDiesCeded,
    /// The source dies in doubt, with a prepared target: its daemon decides.
    SourceDiesInDoubt,
    /// The source dies before the last piece: its daemon takes the guest, which is dead.
    SourceDiesOffered,
}

impl First {
    /// Where it happens, and who is killed there; without that its messages are lost.
    pub fn at(self) -> Option<(Point, Option<Party>)> {
        use Party::{Source, Target};
        Some(match self {
            Self::Nothing => return None,
            Self::PreparedLost => ((Target, "target.send.Prepared"), None),
            Self::TargetDies => ((Target, "target.mark.Ran.before"), Some(Target)),
            Self::SourceDiesCeded => ((Source, "source.send.Ceded"), Some(Source)),
            Self::SourceDiesInDoubt => ((Target, "target.send.Prepared"), Some(Source)),
            Self::SourceDiesOffered => ((Source, "source.send.LastPiece"), Some(Source)),
        })
    }

    /// Places that are passed after it.
    fn then(self) -> &'static [Point] {
        use Party::{Source, SourceDaemon, Target, TargetDaemon};
        match self {
            Self::Nothing => POINTS,
            Self::PreparedLost => &[
                (Target, "target.send.Ask"),
                (Source, "source.hear.Ask"),
                (Source, "source.record.Withdrawn.before"),
                (Source, "source.record.Withdrawn.after"),
                (Source, "source.stamp.owner.before"),
                (Source, "source.stamp.owner.after"),
                (Source, "source.resume.before"),
                (Source, "source.resume.after"),
                (Source, "source.send.Withdrawn"),
                (Target, "target.hear.Withdrawn"),
                (Target, "target.record.Tombstone.before"),
                (Target, "target.record.Tombstone.after"),
                (Target, "target.send.NeverRan"),
            ],
            Self::TargetDies => &[
                (TargetDaemon, "keeper.record.Tombstone.before"),
                (TargetDaemon, "keeper.record.Tombstone.after"),
                (TargetDaemon, "daemon.ask.ProcessGone"),
                (SourceDaemon, "daemon.asked.ProcessGone"),
                (SourceDaemon, "daemon.answer.ProcessGone"),
                (Source, "source.hear-around.NeverRan"),
                (Source, "source.take.owner.before"),
                (Source, "source.take.owner.after"),
                (Source, "source.record.Owner.before"),
                (Source, "source.record.Owner.after"),
                (Source, "source.stamp.owner.before"),
                (Source, "source.stamp.owner.after"),
                (Source, "source.resume.before"),
                (Source, "source.resume.after"),
            ],
            Self::SourceDiesCeded | Self::SourceDiesInDoubt => &[
                (SourceDaemon, "keeper.record.Ceded.before"),
                (SourceDaemon, "keeper.record.Ceded.after"),
                (SourceDaemon, "keeper.record.Moved.before"),
                (SourceDaemon, "keeper.record.Moved.after"),
                (SourceDaemon, "daemon.ask.ProcessGone"),
                (TargetDaemon, "daemon.asked.ProcessGone"),
                (SourceDaemon, "daemon.ask.Words"),
                (TargetDaemon, "daemon.asked.Words"),
                (Target, "target.hear-around.Ceded"),
                (Target, "target.mark.Ran.before"),
                (Target, "target.mark.Ran.after"),
                (Target, "target.record.Owner.after"),
            ],
            Self::SourceDiesOffered => &[
                (SourceDaemon, "keeper.record.Owner.before"),
                (SourceDaemon, "keeper.record.Owner.after"),
                (Target, "target.hear-around.Probe"),
                (Target, "target.send-around.NotPrepared"),
                (SourceDaemon, "daemon.ask.Words"),
                (TargetDaemon, "daemon.asked.Words"),
                (Target, "target.record.Tombstone.before"),
                (Target, "target.record.Tombstone.after"),
            ],
        }
    }
}

const FIRSTS: [First; 6] = [
    First::Nothing,
    First::PreparedLost,
    First::TargetDies,
    First::SourceDiesCeded,
    First::SourceDiesInDoubt,
    First::SourceDiesOffered,
];

/// A cell of the campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub first: First,
    pub point: Point,
    pub fault: Fault,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (party, place) = self.point;
        if self.first != First::Nothing {
            write!(f, "{:?}+", self.first)?;
        }
        write!(f, "{party:?}/{place}/{:?}", self.fault)
    }
}

/// Numbers that follow from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Seed(pub u64);

impl Seed {
    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }

    /// Milliseconds: mostly short, sometimes longer than anybody waits.
    pub fn pause(&mut self) -> Duration {
        let ms = match self.below(10) {
            0 => 3000,
            1..=3 => 800 + self.below(700),
            _ => 200 + self.below(300),
        };
        Duration::from_millis(ms)
    }
}

impl Cell {
    /// All cells.
    pub fn all() -> Vec<Self> {
        let faults = |point: &Point| {
            let kills = PARTIES.into_iter().map(Fault::Kill);
            let stops = PARTIES.into_iter().map(Fault::Stop);
            let cuts = [Fault::Cut, Fault::CutToTarget, Fault::CutToSource];
            let own = own(point.1);
            kills.chain(stops).chain(cuts).chain(own).collect::<Vec<_>>()
        };
        let cells = |first: First| {
            let dead = first.at().and_then(|(_, dead)| dead);
            let strikes_dead = move |fault: &Fault| {
                dead.is_some_and(|d| [Fault::Kill(d), Fault::Stop(d)].contains(fault))
            };
            let of = move |point: &Point| {
                let (point, faults) = (*point, faults(point));
                let faults = faults.into_iter().filter(move |f| !strikes_dead(f));
                faults.map(move |fault| Self { first, point, fault }).collect::<Vec<_>>()
            };
            first.then().iter().flat_map(of).collect::<Vec<_>>()
        };
        FIRSTS.into_iter().flat_map(cells).collect()
    }

    /// The rule that brings it about at the host of the place.
    pub fn rule(&self, seed: &mut Seed) -> Rule {
        let action = match self.fault {
            Fault::Lost => Action::Fate(Fate::Drop),
            Fault::Twice => Action::Fate(Fate::Twice),
            Fault::Late => Action::Fate(Fate::Later(Duration::from_millis(50 + seed.below(700)))),
            Fault::NoSpace => Action::Fate(Fate::Fail(libc::ENOSPC)),
            Fault::DiskError => Action::Fate(Fate::Fail(libc::EIO)),
            _ => Action::Hold,
        };
        Rule { place: self.point.1.to_owned(), nth: Some(1), action }
    }

    /// Whether somebody stands at the place until the fault is done.
    pub fn holds(&self) -> bool {
        matches!(
            self.fault,
            Fault::Kill(_) | Fault::Stop(_) | Fault::Cut | Fault::CutToTarget | Fault::CutToSource
        )
    }
}

/// Faults of the thing itself that happens at a place.
fn own(place: &str) -> Vec<Fault> {
    let opening = OPENING.iter().any(|o| place.ends_with(&format!(".{o}")));
    let sent = place.contains(".send.");
    let guest = !place.starts_with("daemon.");
    let written = [".record.", ".mark.", ".stamp.", ".take.", ".beside.", ".keep-move.before"];
    if sent && opening {
        vec![Fault::Twice]
    } else if sent {
        vec![Fault::Lost, Fault::Twice, Fault::Late]
    } else if guest && place.contains(".hear.") && !opening {
        vec![Fault::Lost]
    } else if place.contains(".asked.") {
        vec![Fault::Lost, Fault::Twice]
    } else if [".ask.", ".answered.", ".answer."].iter().any(|w| place.contains(w)) {
        vec![Fault::Lost]
    } else if written.iter().any(|w| place.contains(w)) {
        vec![Fault::NoSpace, Fault::DiskError]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_place_has_every_fault_of_a_process_and_of_the_network() {
        let all = Cell::all();
        let names: BTreeSet<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), all.len(), "no name twice");
        for point in POINTS {
            let of = |c: &&Cell| c.first == First::Nothing && c.point == *point && c.holds();
            let of = all.iter().filter(of).count();
            assert_eq!(of, 11, "{point:?}");
        }
        for (place, faults) in [
            ("source.send.LastPiece", 3),
            ("target.record.Receiving.after", 2),
            ("daemon.asked.Prepare", 2),
            ("source.send.Offer", 1),
            ("target.run.before", 0),
        ] {
            assert_eq!(own(place).len(), faults, "{place}");
        }
    }
}
