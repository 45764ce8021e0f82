//! Tests of the tracker: replayed crashes, mutants, threads.

#![expect(clippy::needless_range_loop, reason = "units number several lists at once")]

mod mutants;
mod play;
mod sim;
mod threads;

use self::play::play;

/// Runs until so many cuts were tried.
fn cuts(at_least: u64, first_seed: u64) {
    let (mut tried, mut seed) = (0, first_seed);
    while tried < at_least {
        match play(seed, 2000, None) {
            Ok(cuts) => tried += cuts,
            Err(error) => panic!("{error}; again with MIGRATE_SEED={seed}"),
        }
        seed += 1;
    }
    println!("{tried} cuts, seeds {first_seed} to {}", seed - 1);
}

fn seed() -> u64 {
    std::env::var("MIGRATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

#[test]
fn no_cut_leaves_a_change_out() {
    cuts(20_000, seed());
}

#[test]
#[ignore = "takes minutes: 2 million cuts"]
fn no_cut_of_very_many_leaves_a_change_out() {
    cuts(2_000_000, seed());
}
