//! What Rust code may say where: `unsafe`, effects in pure modules, unfinished code, printing.

use std::ops::Range;

use crate::policy::{IMPURE_NAMES, IMPURE_PATHS, PURE, PURE_TO_COME, SILENT, UNSAFE_FILES};
use crate::scan::{self, Source};
use crate::tree::Tree;

/// How many lines above it the reason of an `unsafe` may begin.
const SAFETY_DISTANCE: usize = 12;

/// A Rust file, scanned.
pub struct RustFile<'a> {
    /// Path from the root of the repository.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Code and comments.
    pub source: Source,
    /// Nothing in it is part of a product.
    pub test_only: bool,
}

impl RustFile<'_> {
    /// How many lines `part` of the code touches.
    pub fn lines_in(&self, part: &Range<usize>) -> usize {
        self.source.code[part.clone()].lines().count()
    }

    /// The code that goes into a product.
    fn product_code(&self) -> String {
        if self.test_only { String::new() } else { self.source.product_code() }
    }
}

/// All Rust files of `tree`.
pub fn rust_files(tree: &Tree) -> Vec<RustFile<'_>> {
    let is_rust = |path: &str| path.strip_suffix(".rs").is_some();
    let mut files: Vec<RustFile> = tree
        .files()
        .filter(|f| is_rust(&f.path))
        .filter_map(|f| Some((f.path.as_str(), f.text()?)))
        .map(|(path, text)| {
            let test_only = path.split('/').any(|part| matches!(part, "tests" | "benches"));
            RustFile { path, text, source: Source::new(text), test_only }
        })
        .collect();
    let modules: Vec<String> = files.iter().flat_map(test_modules).collect();
    for file in &mut files {
        let belongs = |m: &String| {
            file.path.strip_prefix(m.as_str()).is_some_and(|r| r == ".rs" || r.starts_with('/'))
        };
        file.test_only |= modules.iter().any(belongs);
    }
    files
}

/// Modules in files of their own that `file` declares for tests only, as paths without `.rs`.
fn test_modules(file: &RustFile<'_>) -> Vec<String> {
    let stem = file.path.trim_end_matches(".rs");
    let (parent, name) = stem.rsplit_once('/').unwrap_or(("", stem));
    let dir = if matches!(name, "mod" | "lib" | "main") { parent } else { stem };
    let declared = |part: Range<usize>| {
        let item = file.source.code[part].trim_end().strip_suffix(';')?;
        let (head, module) = item.trim_end().rsplit_once(char::is_whitespace)?;
        head.trim_end().ends_with("mod").then(|| format!("{dir}/{module}"))
    };
    file.source.test_parts().into_iter().filter_map(declared).collect()
}

/// `unsafe` outside the files that are named for it, and names that no longer need it.
pub fn unsafe_files(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let uses: Vec<(&str, usize)> = rust_files(tree)
        .iter()
        .filter_map(|f| {
            let at = scan::words(&f.source.code, "unsafe").next()?;
            Some((f.path, scan::line_of(&f.source.code, at)))
        })
        .collect();
    for &(path, line) in &uses {
        if !UNSAFE_FILES.iter().any(|&(listed, _)| listed == path) {
            findings.push(format!(
                "{path}:{line}: unsafe code: use a safe wrapper, move it into a file of \
                 UNSAFE_FILES in tests/tidy/policy.rs, or add this file there with its reason"
            ));
        }
        if path.starts_with("migrate/") {
            findings.push(format!("{path}:{line}: unsafe code in the engine, which needs none"));
        }
    }
    for &(listed, _) in UNSAFE_FILES {
        if !uses.iter().any(|&(path, _)| path == listed) {
            findings.push(format!(
                "{listed}: no unsafe code (any more): take it out of UNSAFE_FILES in \
                 tests/tidy/policy.rs"
            ));
        }
    }
    findings
}

/// Each `unsafe` block, impl, function or extern block without a comment that says why it is
/// sound (`SAFETY:`) or what the caller must see to (`# Safety`).
pub fn safety_comments(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust_files(tree) {
        let code = &file.source.code;
        let comments: Vec<&str> = file.source.comments.lines().collect();
        for at in scan::words(code, "unsafe") {
            let next = code[at + "unsafe".len()..].trim_start();
            let pointer = next.strip_prefix("fn").is_some_and(|n| n.trim_start().starts_with('('));
            let line = scan::line_of(code, at);
            let near = &comments[line.saturating_sub(1 + SAFETY_DISTANCE)..line];
            let said = near.iter().any(|c| c.contains("SAFETY:") || c.contains("# Safety"));
            if !said && !pointer {
                findings.push(format!(
                    "{}:{line}: unsafe without a reason: put `// SAFETY: …` above it",
                    file.path
                ));
            }
        }
    }
    findings
}

/// Clocks, files, sockets, threads and randomness in modules that must be functions of their
/// arguments.
pub fn purity(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let pure = |path: &str| {
        let mut all = PURE.iter().chain(PURE_TO_COME);
        tree.files().any(|f| f.path == path && all.any(|p| f.belongs_to(p)))
    };
    for file in rust_files(tree).iter().filter(|f| pure(f.path)) {
        for (line, path) in scan::paths(&file.product_code()) {
            if let Some(what) = impure(&path) {
                findings.push(format!(
                    "{}:{line}: `{what}` in a pure module: take the value as an argument, or do \
                     this at the edge",
                    file.path
                ));
            }
        }
    }
    findings
}

/// What in `path` reaches outside.
fn impure(path: &str) -> Option<&'static str> {
    let below = |ban: &&&str| {
        let rest = path.strip_prefix(**ban);
        rest.is_some_and(|r| r.starts_with("::") || (r.is_empty() && ban.contains("::")))
    };
    let by_path = IMPURE_PATHS.iter().find(below);
    by_path.or_else(|| IMPURE_NAMES.iter().find(|n| path.split("::").any(|s| s == **n))).copied()
}

/// Entries of the list of pure modules that stand for nothing, or stand in the wrong half.
pub fn purity_list(tree: &Tree) -> Vec<String> {
    let exists = |entry: &&&str| tree.files().any(|f| f.belongs_to(entry));
    let gone = PURE
        .iter()
        .filter(|e| !exists(e))
        .map(|e| format!("{e}: is not there (any more): correct PURE in tests/tidy/policy.rs"));
    let come = PURE_TO_COME.iter().filter(exists).map(|e| {
        format!("{e}: exists now: move it from PURE_TO_COME to PURE in tests/tidy/policy.rs")
    });
    gone.chain(come).collect()
}

/// Macros that stand for work not done, or that were left from a debugging session.
pub fn unfinished(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust_files(tree) {
        for name in ["todo", "unimplemented", "dbg"] {
            for line in macro_lines(&file.source.code, name) {
                findings.push(format!("{}:{line}: `{name}!`: finish it or remove it", file.path));
            }
        }
    }
    findings
}

/// Library code that writes to stdout or stderr.
pub fn prints(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let silent = |path: &str| SILENT.iter().any(|dir| path.starts_with(dir));
    for file in rust_files(tree).iter().filter(|f| silent(f.path)) {
        for name in ["print", "println", "eprint", "eprintln"] {
            for line in macro_lines(&file.product_code(), name) {
                findings.push(format!(
                    "{}:{line}: `{name}!` in a library: return it, or use `tracing`",
                    file.path
                ));
            }
        }
    }
    findings
}

fn macro_lines(code: &str, name: &str) -> Vec<usize> {
    let called = |at: &usize| code[at + name.len()..].trim_start().starts_with('!');
    scan::words(code, name).filter(called).map(|at| scan::line_of(code, at)).collect()
}

/// `#[ignore]` without a reason.
pub fn ignored_tests(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust_files(tree) {
        let code = &file.source.code;
        for at in scan::words(code, "ignore") {
            let before = code[..at].trim_end();
            let after = code[at + "ignore".len()..].trim_start();
            let plain = before.ends_with("#[") && after.starts_with(']');
            let conditional = before.ends_with(',') && after.starts_with(")]");
            if plain || conditional {
                findings.push(format!(
                    "{}:{}: ignored without a reason: `#[ignore = \"…\"]`",
                    file.path,
                    scan::line_of(code, at)
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: fn(&Tree) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&Tree::planted(&[(path, text)])).iter().filter(|f| f.starts_with(path)).count()
    }

    #[test]
    fn unsafe_in_any_other_file_is_found() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(found(unsafe_files, "vmm/src/new.rs", text), 1);
        assert_eq!(found(unsafe_files, "migrate/src/new.rs", text), 2);
        assert_eq!(found(unsafe_files, UNSAFE_FILES[0].0, text), 0);
        let text = "#![deny(unsafe_code)] // unsafe\nfn f() { \"unsafe\" }";
        assert_eq!(found(unsafe_files, "vmm/src/new.rs", text), 0);
    }

    #[test]
    fn stale_entries_for_unsafe_are_found() {
        assert_eq!(found(unsafe_files, UNSAFE_FILES[0].0, "fn f() {}"), 1);
    }

    #[test]
    fn unsafe_without_reason_is_found() {
        for bad in ["unsafe { f() }", "unsafe impl Send for X {}", "pub unsafe fn f() {}"] {
            assert_eq!(found(safety_comments, "a.rs", bad), 1, "{bad}");
            let good = format!("// SAFETY: because\n{bad}");
            assert_eq!(found(safety_comments, "a.rs", &good), 0, "{good}");
            let far = format!("// SAFETY: because\n{}{bad}", "x;\n".repeat(SAFETY_DISTANCE));
            assert_eq!(found(safety_comments, "a.rs", &far), 1, "{far}");
            let literal = format!("let x = \"SAFETY: no\"; {bad}");
            assert_eq!(found(safety_comments, "a.rs", &literal), 1, "{literal}");
        }
        assert_eq!(found(safety_comments, "a.rs", "/// # Safety\nunsafe fn f() {}"), 0);
        assert_eq!(found(safety_comments, "a.rs", "type F = unsafe fn(u8);"), 0);
    }

    #[test]
    fn effects_in_pure_modules_are_found() {
        for bad in [
            "use std::time::Instant;",
            "use std::time::{Duration, SystemTime};",
            "use std::{collections::{BTreeMap, HashMap}, fmt};",
            "use std::fs;",
            "fn f() { std::net::lookup() }",
            "fn f() { tokio::spawn(x) }",
            "fn f() { rand :: random() }",
        ] {
            assert_eq!(found(purity, "vmm/src/state/v2.rs", bad), 1, "{bad}");
            assert_eq!(found(purity, "migrate/src/unit.rs", bad), 1, "{bad}");
            assert_eq!(found(purity, "migrate/src/pump/send.rs", bad), 0, "{bad}");
            assert_eq!(found(purity, "migrate/src/united.rs", bad), 0, "{bad}");
            let test = format!("#[cfg(test)]\nmod tests {{ {bad} }}");
            assert_eq!(found(purity, "migrate/src/wire/mod.rs", &test), 0, "{test}");
        }
        let good = "use std::time::Duration; use std::io::Read; fn f(rand: u8) { rand + libc }";
        assert_eq!(found(purity, "vmm/src/state/v2.rs", good), 0);
    }

    #[test]
    fn stale_list_of_pure_modules_is_found() {
        assert_eq!(purity_list(&Tree::planted(&[])).len(), PURE.len());
        for entry in PURE_TO_COME {
            assert_eq!(found(purity_list, entry, ""), 1, "{entry}");
        }
    }

    #[test]
    fn unfinished_code_is_found() {
        for bad in ["todo!()", "unimplemented! (\"x\")", "dbg!(x)"] {
            assert_eq!(found(unfinished, "tests/a.rs", bad), 1, "{bad}");
        }
        assert_eq!(found(unfinished, "a.rs", "// todo!()\nlet todo = !x; mytodo!()"), 0);
    }

    #[test]
    fn printing_libraries_are_found() {
        let text = "fn f() { println!(\"x\") }\n#[cfg(test)]\nfn g() { eprintln!(\"x\") }";
        assert_eq!(found(prints, "vmm/src/a.rs", text), 1);
        assert_eq!(found(prints, "src/a.rs", text), 0);
    }

    #[test]
    fn tests_ignored_without_reason_are_found() {
        assert_eq!(found(ignored_tests, "a.rs", "#[ignore]"), 1);
        assert_eq!(found(ignored_tests, "a.rs", "#[cfg_attr(miri, ignore)]"), 1);
        assert_eq!(found(ignored_tests, "a.rs", "#[ignore = \"slow\"] f(ignore)"), 0);
    }

    #[test]
    fn files_of_test_modules_are_test_code() {
        let tree = Tree::planted(&[
            ("vmm/src/lib.rs", "#[cfg(test)]\npub(crate) mod kit;\nmod real;"),
            ("vmm/src/kit/deep.rs", ""),
            ("vmm/src/real.rs", "#[cfg(test)]\nmod tests;"),
            ("vmm/src/real/tests.rs", ""),
        ]);
        let test_only: Vec<&str> =
            rust_files(&tree).iter().filter(|f| f.test_only).map(|f| f.path).collect();
        assert_eq!(test_only, ["vmm/src/kit/deep.rs", "vmm/src/real/tests.rs"]);
    }
}
