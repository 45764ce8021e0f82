//! Which units were ever written to, asked as seldom as possible.
//!
//! "Touched" stays true and may be remembered. "Untouched" may not: a unit counts as untouched
//! only if it was asked for after its part of the log was cleared, so that a later touch shows in
//! the log.

use crate::port::ReadUnits;
use crate::pump::Cause;
use crate::unit::Run;

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) run: Run,
    /// Never written to: zero, and not to be read.
    pub(super) hole: bool,
}

/// The last run that was found touched.
#[derive(Debug, Default)]
pub(super) struct Touched {
    known: Option<Run>,
}

impl Touched {
    /// Divides `run`, whose log was cleared just now, and appends its parts to `pieces`.
    pub(super) fn divide<R: ReadUnits>(
        &mut self,
        ram: &R,
        run: Run,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Cause> {
        let mut rest = Some(run);
        while let Some(run) = rest {
            let at = run.first().get();
            let holds = |known: &Run| known.range().contains(&at);
            if !self.known.as_ref().is_some_and(holds) {
                self.known = ram.next_touched(at)?;
            }
            let (hole, len) = match self.known {
                Some(known) if holds(&known) => (false, known.end() - at),
                Some(next) if next.first().get() > at => (true, next.first().get() - at),
                _ => (true, run.count()),
            };
            let (head, tail) = run.split(len);
            pieces.push(Piece { run: head, hole });
            rest = tail;
        }
        Ok(())
    }
}
