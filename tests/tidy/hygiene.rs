//! What may lie in the repository: small text files that name no machine, and scripts that stop
//! at errors.

use crate::policy::{FILE_BYTES, FOREIGN};
use crate::tree::{File, Tree};

/// Paths of the machine or names of the network on which something was written.
pub fn foreign_names(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.files() {
        let text = file.text().unwrap_or_default();
        for (number, line) in text.lines().enumerate() {
            for &(name, why) in FOREIGN.iter().filter(|&&(name, _)| stands_alone(line, name)) {
                findings.push(format!("{}:{}: `{name}`: {why}", file.path, number + 1));
            }
        }
    }
    findings
}

/// Whether `name` is in `line`, and if it is a path, not as the tail of another one.
fn stands_alone(line: &str, name: &str) -> bool {
    let tail = |before: &str| {
        let part = |c: char| c.is_alphanumeric() || "._-/".contains(c);
        name.starts_with('/') && before.chars().next_back().is_some_and(part)
    };
    line.match_indices(name).any(|(at, _)| !tail(&line[..at]))
}

/// Files that are large, or are not text.
pub fn small_text(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.files() {
        if file.bytes.len() > FILE_BYTES {
            findings.push(format!(
                "{}: {} bytes, at most {FILE_BYTES}: generate it by a script",
                file.path,
                file.bytes.len()
            ));
        }
        if file.text().is_none() {
            findings.push(format!(
                "{}: not UTF-8 text: generate it by a script, or write it as hex",
                file.path
            ));
        }
    }
    findings
}

/// Scripts that go on after an error, or that cannot be executed.
pub fn scripts(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in tree.files() {
        let Some(text) = file.text() else { continue };
        let Some(shebang) = text.lines().next().and_then(|l| l.strip_prefix("#!/")) else {
            if has_extension(file, "sh") {
                findings.push(format!("{}: begin it with `#!/usr/bin/env bash`", file.path));
            }
            continue;
        };
        if !file.executable {
            findings.push(format!("{}: not executable: chmod +x", file.path));
        }
        let wanted: &[&str] = match shebang.split(['/', ' ']).next_back() {
            Some("bash") => &["set -euo pipefail", "set -Eeuo pipefail"],
            Some("sh" | "dash" | "ash") => &["set -eu"],
            _ => continue,
        };
        if !text.lines().any(|l| wanted.contains(&l.trim_end())) {
            findings.push(format!("{}: add a line `{}`", file.path, wanted[0]));
        }
    }
    findings
}

fn has_extension(file: &File, extension: &str) -> bool {
    file.path.rsplit_once('.').is_some_and(|(_, e)| e == extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_found() {
        let path = FOREIGN[0].0;
        let host = FOREIGN[3].0;
        let bad = format!("a\nread {path}x\nuse {host}.example\n");
        let found = foreign_names(&Tree::planted(&[("a.md", &bad)]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("a.md:2: "), "{found:?}");
        let fine = format!("net{path}queue https://example.org{path}x ..{path}");
        assert_eq!(foreign_names(&Tree::planted(&[("a.md", &fine)])), [""; 0]);
    }

    #[test]
    fn large_and_binary_files_are_found() {
        let file = |path: &str, bytes| File { path: path.to_owned(), bytes, executable: false };
        let tree = Tree::of(vec![
            file("fits", vec![b'x'; FILE_BYTES]),
            file("large", vec![b'x'; FILE_BYTES + 1]),
            file("zero", vec![b'x', 0]),
            file("latin", vec![0xE9, b'x']),
        ]);
        let found = small_text(&tree);
        let paths: Vec<&str> = found.iter().filter_map(|f| f.split(':').next()).collect();
        assert_eq!(paths, ["large", "zero", "latin"]);
    }

    #[test]
    fn careless_scripts_are_found() {
        let found = |path: &str, text: &str, executable| {
            let (path, bytes) = (path.to_owned(), text.as_bytes().to_vec());
            scripts(&Tree::of(vec![File { path, bytes, executable }])).len()
        };
        let good = "#!/usr/bin/env bash\n# why\nset -euo pipefail\n";
        assert_eq!(found("scripts/a", good, true), 0);
        assert_eq!(found("scripts/a", good, false), 1);
        assert_eq!(found("scripts/a", "#!/bin/bash\nset -e\n", true), 1);
        assert_eq!(found("scripts/a", "#!/bin/bash\n# set -euo pipefail\n", false), 2);
        assert_eq!(found("scripts/a", "#!/bin/sh\nset -eu\n", true), 0);
        assert_eq!(found("scripts/a", "#!/usr/bin/env python3\n", true), 0);
        assert_eq!(found("scripts/a.sh", "echo\n", true), 1);
        assert_eq!(found("src/a.rs", "#![allow(dead_code)]\n", false), 0);
    }
}
