//! Reads the plan at each place, notes that the place was passed, and does as planned. Everything
//! is opened at the beginning: a confined process opens nothing later.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use migrate_engine::failpoint::{Fate, install};

use super::plan::{Action, MAX, Plan};

/// Names the directory with `plan`, `log`, and perhaps `boot_id` and `skew_s`.
const VARIABLE: &str = "MIGRATE_FAIL_POINTS";
/// Variables that a guest process inherits.
pub const HANDED_ON: &[&str] = &[VARIABLE];
/// Time between two looks at the plan of a thread that waits.
const LOOK: Duration = Duration::from_micros(500);

struct Open {
    plan: File,
    log: File,
    boot_id: Option<String>,
    skew_s: i64,
    passed: Mutex<Passed>,
}

#[derive(Default)]
struct Passed {
    generation: u64,
    times: BTreeMap<String, u32>,
}

static OPEN: OnceLock<Option<Open>> = OnceLock::new();

fn opened() -> Option<&'static Open> {
    OPEN.get_or_init(|| {
        let dir = PathBuf::from(std::env::var_os(VARIABLE)?);
        let text = |name| fs::read_to_string(dir.join(name)).ok();
        Some(Open {
            plan: File::open(dir.join("plan")).ok()?,
            log: File::options().append(true).open(dir.join("log")).ok()?,
            boot_id: text("boot_id"),
            skew_s: text("skew_s").and_then(|t| t.trim().parse().ok()).unwrap_or(0),
            passed: Mutex::default(),
        })
    })
    .as_ref()
}

/// Opens what a test left for this process, if anything.
pub fn begin() {
    if opened().is_some() {
        install(pass);
    }
}

/// The boot id that this host shall have.
pub fn boot_id() -> Option<String> {
    opened()?.boot_id.clone()
}

/// Seconds by which this host's clock is ahead.
pub fn skew_s() -> i64 {
    opened().map_or(0, |open| open.skew_s)
}

impl Open {
    fn plan(&self) -> Plan {
        let mut bytes = [0; MAX];
        let len = self.plan.read_at(&mut bytes, 0).unwrap_or(0);
        Plan::parse(&String::from_utf8_lossy(&bytes[..len]))
    }

    /// How often the place was passed in this generation, with this time.
    fn count(&self, generation: u64, place: &str) -> u32 {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.generation != generation {
            *passed = Passed { generation, times: BTreeMap::new() };
        }
        let times = passed.times.entry(place.to_owned()).or_default();
        *times += 1;
        *times
    }

    fn note(&self, generation: u64, place: &str, time: u32, what: &str) {
        let line = format!("{generation} {} {place} {time} {what}\n", std::process::id());
        // In one piece: several processes write.
        let _ = (&self.log).write_all(line.as_bytes());
    }
}

fn pass(place: &str) -> Fate {
    let Some(open) = opened() else { return Fate::Pass };
    let plan = open.plan();
    let generation = plan.generation;
    if generation == 0 {
        return Fate::Pass;
    }
    let time = open.count(generation, place);
    match plan.action(place, time) {
        Action::Fate(fate) => {
            let what = if fate == Fate::Pass { "passed" } else { "harmed" };
            open.note(generation, place, time, what);
            fate
        }
        Action::Hold => {
            open.note(generation, place, time, "held");
            loop {
                std::thread::sleep(LOOK);
                let plan = open.plan();
                if plan.generation != generation || plan.action(place, time) != Action::Hold {
                    return Fate::Pass;
                }
            }
        }
    }
}
