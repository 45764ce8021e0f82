//! What was run, a line each, so that a campaign can be left and taken up again; and the table of
//! its cells.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::cells::{Cell, Seed};
use crate::host::Failed;
use crate::trial::Done;

/// The third parties of the switch there are.
pub const ARBITERS: [&str; 1] = ["none"];

#[derive(Default)]
struct Known {
    lines: Vec<Value>,
    /// Runs that were begun, by cell.
    begun: BTreeMap<String, u64>,
    file: Option<File>,
    seed: u64,
}

/// All runs of a campaign.
pub struct Ledger {
    known: Mutex<Known>,
    cells: Vec<Cell>,
}

impl Ledger {
    /// Of these cells, with what stands in the file already.
    pub fn open(path: Option<&Path>, cells: Vec<Cell>, seed: u64) -> Result<Self, Failed> {
        let mut known = Known { seed, ..Known::default() };
        if let Some(path) = path {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            // The last line may have been cut.
            known.lines = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
            for line in &known.lines {
                let cell = line["cell"].as_str().unwrap_or_default().to_owned();
                *known.begun.entry(cell).or_default() += 1;
            }
            // A campaign that goes on draws new numbers.
            known.seed = seed.wrapping_add(known.lines.len() as u64);
            let file = File::options().create(true).append(true).open(path);
            known.file = Some(file.map_err(|e| format!("{}: {e}", path.display()))?);
        }
        Ok(Self { known: Mutex::new(known), cells })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cell that was run the fewest times, with the seed of its run.
    pub fn next(&self) -> (Cell, u64) {
        let mut known = self.lock();
        let times = |known: &Known, c: &Cell| known.begun.get(&c.to_string()).copied().unwrap_or(0);
        let least = self.cells.iter().map(|c| times(&known, c)).min().unwrap_or(0);
        let fewest: Vec<Cell> =
            self.cells.iter().filter(|c| times(&known, c) == least).copied().collect();
        let mut seed = Seed(known.seed);
        known.seed = known.seed.wrapping_add(1);
        let at = usize::try_from(seed.below(fewest.len() as u64)).unwrap_or(0);
        *known.begun.entry(fewest[at].to_string()).or_default() += 1;
        (fewest[at], seed.below(u64::MAX))
    }

    /// A run has ended.
    pub fn note(&self, cell: Cell, seed: u64, ms: u128, ended: &Result<Done, Failed>) {
        let mut line = json!({
            "cell": cell.to_string(), "arbiter": ARBITERS[0], "seed": seed, "ms": ms as u64,
        });
        match ended {
            Ok(done) => {
                line["result"] = json!(if done.struck { "ok" } else { "nobody" });
                line["outcome"] = json!(done.outcome);
                line["settled_ms"] = json!(done.settled.as_millis() as u64);
            }
            Err(why) => {
                line["result"] = json!("FAILED");
                line["why"] = json!(why);
            }
        }
        let mut known = self.lock();
        if let Some(file) = &mut known.file {
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
        known.lines.push(line);
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.lock().lines.len()
    }

    /// What failed.
    pub fn failures(&self) -> Vec<String> {
        let known = self.lock();
        let failed = known.lines.iter().filter(|l| l["result"] == "FAILED");
        failed.map(|l| format!("{} seed {}: {}", l["cell"], l["seed"], l["why"])).collect()
    }

    /// The table of cells: a line for each place, a column for each fault. `-`: nobody was there
    /// to be struck.
    pub fn table(&self) -> String {
        let known = self.lock();
        let mut found: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
        for line in &known.lines {
            let counts = found.entry(line["cell"].as_str().unwrap_or_default()).or_default();
            match line["result"].as_str() {
                Some("ok") => counts.0 += 1,
                Some("nobody") => counts.1 += 1,
                _ => counts.2 += 1,
            }
        }
        let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for cell in &self.cells {
            let (ok, nobody, failed) =
                found.get(cell.to_string().as_str()).copied().unwrap_or_default();
            let fault = format!("{:?}", cell.fault).replace("Daemon", "D").replace(['(', ')'], "-");
            let count = match (ok, nobody, failed) {
                (0, 0, 0) => "EMPTY".to_owned(),
                (0, n, 0) => format!("-{n}"),
                (ok, _, 0) => ok.to_string(),
                (ok, _, failed) => format!("{ok}!{failed}"),
            };
            let place = format!("{:?} {}", cell.point.0, cell.point.1);
            rows.entry(place).or_default().push(format!("{}={count}", fault.trim_end_matches('-')));
        }
        let mut text = String::new();
        for (place, cells) in &rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{place}: {}", cells.join(" "));
        }
        text.push_str(&figures(&known.lines));
        text
    }
}

/// Sums, and how long it took until all was settled.
fn figures(lines: &[Value]) -> String {
    let mut by_fault: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines {
        let cell = line["cell"].as_str().unwrap_or_default();
        let fault = cell.rsplit('/').next().unwrap_or_default().to_owned();
        if line["result"] == "ok"
            && let Some(ms) = line["settled_ms"].as_u64()
        {
            by_fault.entry(fault).or_default().push(ms);
        }
        let outcome = line["outcome"].as_str().unwrap_or("failed").to_owned();
        *outcomes.entry(outcome).or_default() += 1;
    }
    let mut text = format!("{} runs: {outcomes:?}\n", lines.len());
    for (fault, mut ms) in by_fault {
        ms.sort_unstable();
        let (median, most) = (ms[ms.len() / 2], ms[ms.len() - 1]);
        let number = ms.len();
        let _ = writeln!(
            text,
            "{fault}: {number} runs, settled after {median} ms in the middle, {most} ms at most"
        );
    }
    text
}
