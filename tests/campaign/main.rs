//! The kill campaign: moves between real processes, each with a fault at a named place, judged
//! from outside. It needs a build with the feature `fail-points`.
//!
//! The short form runs with the other tests: a sample of the cells, by a seed that is printed and
//! taken back in `CAMPAIGN_SEED`. The long one is `scripts/soak/kills`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "milliseconds of a run")]

#[path = "../support/mod.rs"]
mod support;

mod cells;
mod host;
mod ledger;
mod pair;
mod relay;
mod trial;
mod witness;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use migrate::failpoint::points::{POINTS, Party};

use crate::cells::Cell;
use crate::host::Failed;
use crate::ledger::Ledger;
use crate::pair::Pair;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_move_in_which_nothing_goes_wrong_passes_every_place() {
    if !support::kvm() {
        return;
    }
    let mut pair = Pair::new().unwrap();
    let guest = pair.guest().unwrap();
    let generation = pair.plan([vec![], vec![]]).unwrap();
    let to = pair.hosts[1 - guest.at].name.clone();
    let order = serde_json::json!({"guest": guest.name, "to": to});
    let begun = pair.hosts[guest.at].post("/v1/moves", &order).unwrap();
    let id = begun["move_id"].as_str().unwrap().to_owned();
    let reported = |p: &mut Pair| p.passed_by(generation, guest.at, "daemon.answered.Report");
    assert!(pair.look_until(Duration::from_mins(1), reported), "the move ends");
    assert_eq!(pair.report(guest.at, &id).unwrap()["outcome"], "moved");
    let mut found: BTreeSet<(Party, String)> = BTreeSet::new();
    for (at, host) in pair.hosts.iter().enumerate() {
        for passed in host.passed(generation) {
            let daemon = if at == guest.at { Party::SourceDaemon } else { Party::TargetDaemon };
            let party = match passed.place.split('.').next() {
                Some("source") => Party::Source,
                Some("target") => Party::Target,
                _ => daemon,
            };
            found.insert((party, passed.place));
        }
    }
    let missing: Vec<_> = POINTS
        .iter()
        .filter(|(party, place)| !found.contains(&(*party, (*place).into())))
        .collect();
    assert!(missing.is_empty(), "never passed: {missing:?}; passed: {found:?}");
    pair.verify(1 - guest.at).unwrap();
    assert_eq!(pair.witness.findings(), [""; 0]);
}

/// Elsewhere a test says that no other build has this in it: here is what it looks for.
#[test]
fn this_build_of_the_program_has_the_places() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_migrate")).unwrap();
    let name = b"MIGRATE_FAIL_POINTS";
    assert!(program.windows(name.len()).any(|word| word == name));
}

/// What a campaign may use.
struct Limits {
    pairs: usize,
    runs: usize,
    time: Duration,
    /// Where evidence of failures goes.
    keep: Option<PathBuf>,
}

/// Runs cells on several pairs at a time, those with the fewest runs first.
fn campaign(ledger: &Ledger, limits: &Limits) {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..limits.pairs {
            scope.spawn(|| {
                let mut pair: Option<Pair> = None;
                while began.elapsed() < limits.time && ledger.runs() < limits.runs {
                    let (cell, seed) = ledger.next();
                    let run_began = Instant::now();
                    let ended = one(&mut pair, cell, seed);
                    if let Err(why) = &ended {
                        eprintln!("FAILED: {cell} seed {seed}: {why}");
                        keep(&mut pair, limits, cell, seed, why);
                    }
                    ledger.note(cell, seed, run_began.elapsed().as_millis(), &ended);
                    let runs = ledger.runs();
                    if runs.is_multiple_of(50) {
                        let failures = ledger.failures().len();
                        println!("[{:?}] {runs} runs, {failures} failed", began.elapsed());
                    }
                }
            });
        }
    });
}

fn one(pair: &mut Option<Pair>, cell: Cell, seed: u64) -> Result<trial::Done, Failed> {
    let there = match pair {
        Some(there) => there,
        None => pair.insert(Pair::new()?),
    };
    trial::run(there, cell, seed)
}

/// Keeps what tells why it failed, and ends the pair: the next run has a new one.
fn keep(pair: &mut Option<Pair>, limits: &Limits, cell: Cell, seed: u64, why: &str) {
    if let (Some(dir), Some(pair)) = (&limits.keep, &*pair) {
        let dir = dir.join(format!("{}-{seed}", cell.to_string().replace('/', "-")));
        for host in &pair.hosts {
            host.keep(&dir.join(&host.name));
        }
        let text = format!("{cell} seed {seed}\n{why}\n{}\n", pair.witness.summary());
        let _ = std::fs::write(dir.join("why"), text);
    }
    *pair = None;
}

#[test]
fn a_sample_of_the_cells() {
    if !support::kvm() {
        return;
    }
    let seed = variable("CAMPAIGN_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("CAMPAIGN_SEED={seed}");
    let ledger = Ledger::open(None, Cell::all(), seed).unwrap();
    let time = Duration::from_secs(100);
    let keep = variable("CAMPAIGN_KEEP");
    campaign(&ledger, &Limits { pairs: 3, runs: 150, time, keep });
    let failures = ledger.failures();
    println!("{} runs", ledger.runs());
    assert!(failures.is_empty(), "CAMPAIGN_SEED={seed}: {failures:#?}");
}

#[test]
#[ignore = "takes hours: scripts/soak/kills"]
fn all_cells_for_a_long_time() {
    assert!(support::kvm(), "a soak needs KVM");
    let ledger: PathBuf = variable("CAMPAIGN_LEDGER").expect("CAMPAIGN_LEDGER names a file");
    let seed = variable("CAMPAIGN_SEED").unwrap_or(1);
    let only: Option<String> = variable("CAMPAIGN_ONLY");
    let wanted = |c: &Cell| only.as_ref().is_none_or(|o| c.to_string().contains(o));
    let cells: Vec<Cell> = Cell::all().into_iter().filter(wanted).collect();
    println!("{} cells, CAMPAIGN_SEED={seed}", cells.len());
    let keep = Some(ledger.with_extension("evidence"));
    let ledger = Ledger::open(Some(&ledger), cells, seed).unwrap();
    let limits = Limits {
        pairs: variable("CAMPAIGN_PAIRS").unwrap_or(3),
        runs: variable("CAMPAIGN_RUNS").unwrap_or(10_000),
        time: Duration::from_secs(variable("CAMPAIGN_SECONDS").unwrap_or(4 * 3600)),
        keep,
    };
    campaign(&ledger, &limits);
    println!("{}", ledger.table());
    let failures = ledger.failures();
    assert!(failures.is_empty(), "{} runs failed: {failures:#?}", failures.len());
}
