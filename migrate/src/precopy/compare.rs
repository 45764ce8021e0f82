//! Where two tables of digests differ: sums of ever smaller parts are compared.

use super::{PrecopyError, hear, say};
use crate::port::{DirtyLog, ReadUnits};
use crate::pump::recv::equal_parts;
use crate::pump::{Cancel, Source, Talk};
use crate::unit::{Run, UnitIndex};
use crate::wire::Message;
use crate::wire::control::Span;

/// Parts that are compared at a time.
const PARTS: u16 = 64;

/// Units that are named at the most.
pub(super) const NAMED: usize = 32;

/// The first units whose digests differ, in order.
pub(super) async fn differing<T: Talk, R: ReadUnits, L: DirtyLog>(
    talk: &mut T,
    source: &mut Source<R, L>,
    cancel: &Cancel,
) -> Result<Vec<UnitIndex>, PrecopyError> {
    let mut units = Vec::new();
    let mut suspects = vec![source.layout().whole()];
    while let Some(run) = suspects.pop() {
        if run.count() == 1 {
            units.push(run.first());
            if units.len() >= NAMED {
                break;
            }
            continue;
        }
        let before = suspects.len();
        suspects.extend(unequal(talk, source, run, cancel).await?);
        // The next one to look at is the last.
        suspects[before..].reverse();
    }
    Ok(units)
}

/// The parts of `run` whose sums differ.
async fn unequal<T: Talk, R: ReadUnits, L: DirtyLog>(
    talk: &mut T,
    source: &mut Source<R, L>,
    run: Run,
    cancel: &Cancel,
) -> Result<Vec<Run>, PrecopyError> {
    let span = Span { region: source.region(), first: run.first().get(), count: run.count() };
    say(talk, &Message::AskSums { span, parts: PARTS }, cancel).await?;
    let parts: Vec<Run> = equal_parts(run, PARTS).collect();
    match hear(talk, cancel).await? {
        Message::AnswerSums { span: of, sums }
            if of == span && sums.as_slice().len() == parts.len() =>
        {
            let pairs = parts.into_iter().zip(sums.into_vec());
            Ok(pairs.filter(|(part, sum)| source.sum_of(*part) != *sum).map(|(p, _)| p).collect())
        }
        other => Err(PrecopyError::unexpected(&other)),
    }
}
