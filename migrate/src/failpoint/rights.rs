//! Rights of a session with a place before and after each step. It changes no step.

use crate::port::Rights;
use crate::session::report::Side;

/// `rights`, as they are.
#[cfg(not(feature = "fail-points"))]
pub fn rights<D: Rights>(_side: Side, rights: D) -> D {
    rights
}

/// `rights`, with a place before and after each step of this side.
#[cfg(feature = "fail-points")]
pub fn rights<D: Rights>(side: Side, rights: D) -> impl Rights {
    watched::Watched { side, rights }
}

#[cfg(feature = "fail-points")]
mod watched {
    use std::io;

    use super::super::{at, kind, side};
    use crate::handover::journal::{Mark, Record};
    use crate::handover::proof::Durable;
    use crate::handover::term::{Beside, Term};
    use crate::port::{Lock, Rights};
    use crate::session::report::Side;

    /// Rights that are watched.
    pub(super) struct Watched<D> {
        pub(super) side: Side,
        pub(super) rights: D,
    }

    /// Why a step did not succeed.
    #[derive(Debug, thiserror::Error)]
    pub(super) enum Failed<E> {
        /// A test wants it so.
        #[error("{0} (a fail point)")]
        Wanted(#[from] io::Error),
        /// It is so.
        #[error("{0}")]
        Real(E),
    }

    impl<D: Rights> Watched<D> {
        fn step<T>(
            &mut self,
            name: &str,
            work: impl FnOnce(&mut D) -> Result<T, D::Error>,
        ) -> Result<T, Failed<D::Error>> {
            let place = |when| format!("{}.{name}.{when}", side(self.side));
            at(|| place("before")).written()?;
            let done = work(&mut self.rights).map_err(Failed::Real)?;
            at(|| format!("{}.{name}.after", side(self.side))).written()?;
            Ok(done)
        }

        fn plain_step(&mut self, name: &str, work: impl FnOnce(&mut D)) {
            let _ = at(|| format!("{}.{name}.before", side(self.side)));
            work(&mut self.rights);
            let _ = at(|| format!("{}.{name}.after", side(self.side)));
        }
    }

    impl<D: Rights> Durable for Watched<D> {
        type Error = Failed<D::Error>;

        fn record(&mut self, record: Record) -> Result<(), Self::Error> {
            self.step(&format!("record.{}", kind(&record)), |rights| rights.record(record))
        }

        fn mark(&mut self, mark: Mark) -> Result<(), Self::Error> {
            self.step(&format!("mark.{}", kind(&mark)), |rights| rights.mark(mark))
        }

        fn stamp(&mut self, term: Term) -> Result<(), Self::Error> {
            self.step("stamp.owner", |rights| rights.stamp(term))
        }
    }

    impl<D: Rights> Rights for Watched<D> {
        fn beside(&mut self) -> Result<Beside, Self::Error> {
            self.step("beside", Rights::beside)
        }

        fn stamp_offer(&mut self, term: Term) -> Result<(), Self::Error> {
            self.step("stamp.offer", |rights| rights.stamp_offer(term))
        }

        fn take_owner(&mut self) -> Result<Lock, Self::Error> {
            self.step("take.owner", Rights::take_owner)
        }

        fn drop_owner(&mut self) {
            self.plain_step("drop.owner", Rights::drop_owner);
        }

        fn take_next(&mut self) -> Result<Lock, Self::Error> {
            self.step("take.next", Rights::take_next)
        }

        fn drop_next(&mut self) {
            self.plain_step("drop.next", Rights::drop_next);
        }
    }
}
