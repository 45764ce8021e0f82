//! A cell, how it is tried, and the table of all that were.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use vmm::devices::virtio::block::DiskLock;

use crate::site::{Host, Site, last};
use crate::support::{Console, Home, Ran, run};

/// Pages that a guest here checks.
const PAGES: u64 = 1024;
/// Its memory.
pub const MEMORY_MIB: u64 = 32;
/// Bytes of its disks.
pub const DISK_BYTES: u64 = 1 << 20;

/// Takes an injection back.
pub type Undo = Box<dyn FnOnce(&mut Pair)>;

/// One thing that is wrong.
pub struct Cell {
    /// What is injected.
    pub name: String,
    /// What the refusal must name: the field,
    pub field: String,
    /// its value where the guest is, or in its state,
    pub here: String,
    /// its value at the destination,
    pub there: String,
    /// and what to do.
    pub remedy: String,
    /// The stable code.
    pub code: &'static str,
    /// Injects it.
    pub inject: Box<dyn Fn(&mut Pair) -> Undo>,
}

/// A cell whose destination finds what the word says (`host/main.rs`).
pub fn odd(oddity: &str, code: &'static str, parts: [&str; 4]) -> Cell {
    let word = oddity.to_owned();
    cell(oddity, code, parts, move |pair| pair.odd(&word))
}

/// A cell that is injected like this.
pub fn cell(
    name: &str,
    code: &'static str,
    [field, here, there, remedy]: [&str; 4],
    inject: impl Fn(&mut Pair) -> Undo + 'static,
) -> Cell {
    Cell {
        name: name.to_owned(),
        field: field.to_owned(),
        here: here.to_owned(),
        there: there.to_owned(),
        remedy: remedy.to_owned(),
        code,
        inject: Box::new(inject),
    }
}

/// Two hosts: alpha, which has the guest, and beta, on which something is wrong.
pub struct Pair {
    pub site: Site,
    /// The guest's disk that both write, and the one that both only read.
    pub disk: PathBuf,
    pub read_only: PathBuf,
    console: Console,
    /// Of the disks: they belong to neither host.
    _storage: TempDir,
}

impl Pair {
    /// With the guest `web1`, which has every kind of device, and these words more.
    #[track_caller]
    pub fn new(words: &[&str]) -> Self {
        Self::prepared(words, |_| ())
    }

    /// The same, with hosts that are prepared for the guest.
    #[track_caller]
    pub fn prepared(words: &[&str], prepare: impl FnOnce(&Site)) -> Self {
        let odd = Path::new(env!("CARGO_BIN_EXE_migrate")).with_file_name("examples/odd_host");
        let enter = ["unshare", "--mount", "--propagation", "private"].map(str::to_owned).to_vec();
        let enter = if has_views() { enter } else { Vec::new() };
        let home = Home::entered(enter).with(odd);
        let site = Site::of(Host::new("alpha"), Host::of("beta", home));
        prepare(&site);
        let a = &site.a.home;
        let storage = tempfile::tempdir().unwrap();
        let (disk, read_only) = (storage.path().join("data.img"), storage.path().join("ro.img"));
        for path in [&disk, &read_only] {
            File::create(path).unwrap().set_len(DISK_BYTES).unwrap();
        }
        let definition = a.file_text("web1.toml");
        fs::write(&definition, "rng = true\nvirtio_console = true\nvsock_cid = 42\n").unwrap();
        let shared = format!("{},shared,serial=data", disk.display());
        let plain = format!("{},ro,serial=ro", read_only.display());
        let memory = format!("{MEMORY_MIB}M");
        let usual = ["--file", &definition, "--memory", &memory, "--cpus", "2"];
        let disks = ["--disk", &shared, "--disk", &plain];
        site.a.scribbler("web1", "ws=4M,hb=5ms", &[&usual[..], &disks, words].concat());
        let console = a.console("web1");
        Self { site, disk, read_only, console, _storage: storage }
    }

    pub fn beta(&self) -> &Home {
        &self.site.b.home
    }

    /// Has guest processes of beta find what the word says.
    pub fn odd(&self, word: &str) -> Undo {
        let file = self.beta().path().join("oddity");
        fs::write(&file, word).unwrap();
        Box::new(move |_| fs::remove_file(file).unwrap())
    }

    /// Runs lines of shell where beta sees its files, and `undo` to take it back. `$0` is beta's
    /// home; a directory that only it sees is `$0/files`.
    #[track_caller]
    pub fn view(&self, set: &str, undo: &str) -> Undo {
        let daemon = self.site.b.daemon_pid().to_string();
        let (home, undo) = (self.beta().path().to_owned(), undo.to_owned());
        fs::create_dir_all(home.join("files")).unwrap();
        let shell = move |script: &str| {
            let mut command = Command::new("nsenter");
            command.args(["--mount", "--target", &daemon, "sh", "-euc", script]).arg(&home);
            let ran = run(&mut command);
            assert_eq!(ran.code, Some(0), "{script}: {ran:?}");
        };
        shell(set);
        Box::new(move |_| shell(&undo))
    }

    /// Starts beta's daemon anew. What only it sees is gone.
    #[track_caller]
    pub fn restart(&mut self) {
        self.site.b.end_daemon(Signal::SIGTERM);
        self.site.b.start_daemon();
    }

    /// Tries all cells, and then that a guest which nothing is wrong with moves.
    #[track_caller]
    pub fn try_all(mut self, title: &str, cells: Vec<Cell>) {
        self.try_each(title, cells);
        // Everything that was wrong is over: nothing of it is remembered.
        self.site.a.moves("web1", &self.site.b);
        self.site.b.assert_runs("web1").verify_clean(PAGES);
        self.site.a.assert_empty();
    }

    /// Tries all cells.
    #[track_caller]
    pub fn try_each(&mut self, title: &str, cells: Vec<Cell>) {
        let mut rows = Vec::new();
        let mut wrong = Vec::new();
        for cell in cells {
            let (message, complaints) = self.try_one(&cell);
            wrong.extend(complaints.into_iter().map(|c| format!("{}: {c}", cell.name)));
            rows.push((cell, message));
        }
        print_table(title, &rows);
        assert!(wrong.is_empty(), "{title}:\n{}", wrong.join("\n"));
    }

    /// Answers what was said, and what of it is not as it must be.
    fn try_one(&mut self, cell: &Cell) -> (String, Vec<String>) {
        let undo = (cell.inject)(&mut *self);
        let words = ["--max-downtime", "5s", "--timeout", "60s"];
        let ran = self.site.a.tries("web1", "beta", &words);
        undo(self);
        assert_ne!(ran.code, Some(0), "{}: it moved", cell.name);
        let (message, mut wrong) = refusal(cell, &ran);
        self.console.until_beats(4);
        self.console.verify_clean(PAGES);
        if self.site.a.home.done(&["show", "web1"])["state"] != "running" {
            wrong.push("the guest does not run".into());
        }
        self.site.b.assert_empty();
        let file = File::options().read(true).write(true).open(&self.disk).unwrap();
        if DiskLock::new(&file, &self.disk, false).unwrap().peek_next().is_err() {
            wrong.push("NEXT of the disk is still locked".into());
        }
        (message, wrong)
    }
}

/// Whether beta can see other files than alpha. Says so if not.
pub fn has_views() -> bool {
    let works = Command::new("unshare").args(["--mount", "true"]).status();
    nix::unistd::geteuid().is_root() && works.is_ok_and(|s| s.success())
}

fn refusal(cell: &Cell, ran: &Ran) -> (String, Vec<String>) {
    let last = last(ran);
    let error = &last["error"];
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    let (message, remedy) = (text("message"), text("remedy"));
    let all = format!("{message}; {remedy}");
    let mut wrong = Vec::new();
    let mut must = |good: bool, what: String| {
        if !good {
            wrong.push(what);
        }
    };
    must(text("code") == cell.code, format!("the code is {}: {all}", text("code")));
    // Refused before anything was sent, or by the rehearsal.
    let begun = message.starts_with("the guest was not moved to beta: ");
    let exit = if begun { 5 } else { 4 };
    must(ran.code == Some(exit), format!("it ended with {:?}: {all}", ran.code));
    must(all.contains("beta") || all.contains("the destination"), format!("which host? {all}"));
    must(!remedy.is_empty(), format!("no remedy: {all}"));
    for part in [&cell.field, &cell.here, &cell.there, &cell.remedy] {
        must(all.contains(part.as_str()), format!("'{part}' is not in: {all}"));
    }
    // It never stood still.
    must(last["downtime_ms"].is_null(), format!("it stood still: {last}"));
    let steps = last["timeline"].as_array().map_or(0, Vec::len);
    must(steps == 0, format!("steps of a switch: {last}"));
    let phases = last["phases"].as_array().cloned().unwrap_or_default();
    let late = |phase: &Value| ["stopped", "in-doubt", "ceded"].iter().any(|p| phase[0] == *p);
    must(!phases.iter().any(late), format!("it was stopped: {last}"));
    must(last["outcome"].is_null() || last["outcome"] == "kept", format!("{last}"));
    (all, wrong)
}

fn print_table(title: &str, rows: &[(Cell, String)]) {
    println!("\n{title}: {} cells", rows.len());
    println!("| injected | field | where the guest is | at the destination | said |");
    println!("|---|---|---|---|---|");
    for (Cell { name, field, here, there, .. }, message) in rows {
        println!("| {name} | {field} | {here} | {there} | {message} |");
    }
}
