//! What a source sends for the rehearsal: its state as it is now, and what lets the target see
//! whether the guest's disks are the same there. And the target's side of it.

use std::time::{Duration, Instant};

use migrate_engine::port::{self, Rehearsal};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::{ErrorCode, Failure};
use crate::guest::disks::DiskSet;
use crate::guest::fingerprint::{self, Fingerprint};
use crate::guest::save::SavedDisk;

/// Version of [`Trial`]'s layout.
const FORMAT: u16 = 1;

/// The document.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    format: u16,
    /// What the source wrote beside each shared disk.
    nonces: Vec<u128>,
    /// How its read-only disks look, in the order of the definition.
    read_only: Vec<Fingerprint>,
    /// The saved state.
    state: Vec<u8>,
}

/// Writes a new nonce beside each shared disk, which is timed, and says all with `state`.
///
/// # Errors
/// A disk cannot be read or written.
pub fn document(
    state: Vec<u8>,
    disks: &DiskSet,
    saved: &[SavedDisk],
) -> Result<port::Trial, Failure> {
    let nonces: Vec<u128> = (0..disks.shared()).map(|_| Uuid::new_v4().as_u128()).collect();
    let began = Instant::now();
    disks.write_nonces(&nonces).map_err(|e| e.failure())?;
    let storage = if nonces.is_empty() { Duration::ZERO } else { began.elapsed() };
    let read_only = prints(saved)?;
    let trial = Trial { format: FORMAT, nonces, read_only, state };
    let state = postcard::to_stdvec(&trial).map_err(|e| super::unexpected("the rehearsal", &e))?;
    Ok(port::Trial { state, save: Duration::ZERO, storage })
}

/// How the read-only ones of `disks` look.
fn prints(disks: &[SavedDisk]) -> Result<Vec<Fingerprint>, Failure> {
    let look = |disk: &SavedDisk| {
        fingerprint::take(&disk.file).map_err(|e| {
            let what = format!("disk {} cannot be read: {e}", disk.path.display());
            Failure::new(ErrorCode::BadDisk, what, "check the disk's health")
        })
    };
    disks.iter().filter(|d| !d.writable).map(look).collect()
}

/// Tries what [`document`] says: `disks` and `saved` are those of this host, `restore` tries the
/// state.
pub fn attempt(
    document: &[u8],
    disks: &DiskSet,
    saved: &[SavedDisk],
    restore: impl FnOnce(&[u8]) -> Rehearsal,
) -> Rehearsal {
    let found = match postcard::take_from_bytes::<Trial>(document) {
        Ok((trial, _)) if trial.format != FORMAT => {
            Err(format!("version {} of it is not known here", trial.format))
        }
        Ok((_, rest)) if !rest.is_empty() => Err(format!("{} bytes follow it", rest.len())),
        Ok((trial, _)) => Ok(trial),
        Err(error) => Err(error.to_string()),
    };
    let trial = match found {
        Ok(trial) => trial,
        Err(why) => {
            let what = format!("the source's state for the rehearsal cannot be read: {why}");
            let remedy = "use neighbouring releases of migrate on both hosts";
            let failure = Failure::new(ErrorCode::Incompatible, what, remedy);
            return Rehearsal { took: Duration::ZERO, problems: vec![said(&failure)] };
        }
    };
    let mut rehearsal = restore(&trial.state);
    let same = |here: Vec<Fingerprint>| disks.check_read_only(&here, &trial.read_only);
    let checks = [
        disks.check_nonces(&trial.nonces).map_err(|e| e.failure()),
        prints(saved).and_then(|here| same(here).map_err(|e| e.failure())),
    ];
    rehearsal.problems.extend(checks.into_iter().filter_map(Result::err).map(|e| said(&e)));
    rehearsal
}

fn said(failure: &Failure) -> String {
    format!("{}; {}", failure.0.message, failure.0.remedy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_state_arrives_and_anything_else_is_a_problem() {
        let disks = DiskSet::start(Uuid::nil(), &[]).unwrap();
        let good = document(vec![1, 2, 3], &disks, &[]).unwrap().state;
        let fine = |state: &[u8]| {
            assert_eq!(state, [1, 2, 3]);
            Rehearsal { took: Duration::from_millis(1), problems: vec![] }
        };
        assert_eq!(attempt(&good, &disks, &[], fine).problems, Vec::<String>::new());
        for cut in 0..good.len() {
            let rehearsal = attempt(&good[..cut], &disks, &[], |_| panic!("not a whole document"));
            assert_eq!(rehearsal.problems.len(), 1);
        }
    }

    proptest! {
        /// A source that sends anything it likes: problems, or a trial of some state.
        #[test]
        fn any_bytes_are_a_problem_or_a_state(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            state in prop::collection::vec(any::<u8>(), 0..40),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            more in prop::collection::vec(any::<u8>(), 1..4),
        ) {
            let disks = DiskSet::start(Uuid::nil(), &[]).unwrap();
            let good = document(state, &disks, &[]).unwrap().state;
            let seen = |document: &[u8]| {
                let mut tried = false;
                let rehearsal = attempt(document, &disks, &[], |state| {
                    tried = true;
                    // No more than was sent, whatever lengths it tells.
                    assert!(state.len() < document.len());
                    Rehearsal { took: Duration::ZERO, problems: vec![] }
                });
                assert!(tried || rehearsal.problems.len() == 1);
                tried
            };
            prop_assert!(seen(&good));
            prop_assert!(!seen(&[&good[..], &more[..]].concat()), "something follows");
            seen(&noise);
            let mut bad = good;
            for (at, value) in changes {
                let at = at.index(bad.len());
                bad[at] = value;
            }
            seen(&bad);
        }
    }
}
