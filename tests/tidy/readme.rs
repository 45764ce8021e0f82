//! The README tells the truth about the tree. Its checked parts stand between HTML comments:
//! `<!-- code-map -->` … `<!-- /code-map -->`, the same for `heavy-dependencies`, and
//! `<!-- test-command -->` before a fenced block, which `.ci/run` executes.

use std::collections::BTreeSet;

use crate::layering::Lock;
use crate::policy::HEAVY;
use crate::tree::Tree;

/// Directories whose files and directories are each a line of the code map.
const MAPPED: &[&str] = &["src", "vmm/src", "migrate/src"];

/// Paths of the code map that do not exist, and modules that it leaves out.
pub fn code_map(tree: &Tree) -> Vec<String> {
    let named = match first_column(tree, "code-map") {
        Ok(named) => named,
        Err(finding) => return vec![finding],
    };
    let mut findings: Vec<String> = named
        .iter()
        .filter(|path| !tree.exists(path))
        .map(|path| format!("README.md: code map: `{path}` does not exist: correct its line"))
        .collect();
    for module in modules(tree).difference(&named) {
        findings.push(format!("README.md: code map: add a line for `{module}`"));
    }
    findings
}

/// The direct children of [`MAPPED`], directories with a final `/`.
fn modules(tree: &Tree) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for dir in MAPPED {
        for file in tree.files() {
            let rest = file.path.strip_prefix(dir).and_then(|r| r.strip_prefix('/'));
            match rest.and_then(|r| r.split_once('/')).map(|(child, _)| child) {
                Some(child) => found.insert(format!("{dir}/{child}/")),
                None => rest.is_some() && found.insert(file.path.clone()),
            };
        }
    }
    found
}

/// Dependencies with many crates below them whose purpose the README does not say, and lines for
/// what is no dependency.
pub fn heavy_dependencies(tree: &Tree) -> Vec<String> {
    let named = match first_column(tree, "heavy-dependencies") {
        Ok(named) => named,
        Err(finding) => return vec![finding],
    };
    let manifest = tree.text("Cargo.toml").and_then(|t| t.parse::<toml::Table>().ok());
    let direct = manifest
        .as_ref()
        .and_then(|m| m.get("workspace")?.get("dependencies")?.as_table())
        .filter(|d| !d.is_empty());
    let (Some(direct), Some(lock)) = (direct, Lock::read(tree)) else {
        return vec!["Cargo.toml, Cargo.lock: no [workspace.dependencies] found".to_owned()];
    };
    let mut findings = Vec::new();
    for (name, value) in direct {
        let weight = lock.below(name).len();
        let own = value.get("path").is_some();
        if weight >= HEAVY && !own && !named.contains(name) {
            findings.push(format!(
                "README.md: `{name}` brings {weight} crates: say in the table of heavy \
                 dependencies what it is there for, or do without it"
            ));
        }
    }
    for name in named.iter().filter(|n| !direct.contains_key(*n) || !lock.has(n)) {
        findings.push(format!("README.md: heavy dependencies: `{name}` is none: remove its line"));
    }
    findings
}

/// A test command that `.ci/run` could not find, or could mistake.
pub fn test_command(tree: &Tree) -> Vec<String> {
    let text = tree.text("README.md").unwrap_or_default();
    let markers = text.lines().filter(|l| l.trim() == "<!-- test-command -->").count();
    let mut after = text.lines().skip_while(|l| l.trim() != "<!-- test-command -->").skip(1);
    let fence = after.next().is_some_and(|l| l.starts_with("```"));
    let command: Vec<&str> = after.take_while(|l| !l.starts_with("```")).collect();
    let some = command.iter().any(|l| !l.trim().is_empty());
    if markers == 1 && fence && some {
        return Vec::new();
    }
    vec![
        "README.md: the test command must stand once, as a fenced block right below a line \
         `<!-- test-command -->`"
            .to_owned(),
    ]
}

/// What stands in backquotes in the first column of the table in part `name` of the README.
fn first_column(tree: &Tree, name: &str) -> Result<BTreeSet<String>, String> {
    let part = tree.text("README.md").and_then(|text| {
        let (_, rest) = text.split_once(&format!("<!-- {name} -->"))?;
        rest.split_once(&format!("<!-- /{name} -->")).map(|(part, _)| part)
    });
    let rows = part.unwrap_or_default().lines().filter_map(|l| l.trim().strip_prefix('|'));
    let cells = rows.filter_map(|row| row.split('|').next());
    let found: BTreeSet<String> =
        cells.flat_map(|c| c.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    if found.is_empty() {
        return Err(format!("README.md: no table between <!-- {name} --> and <!-- /{name} -->"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "<!-- code-map -->\n| `src/main.rs`, `vmm/src/boot/` | `no` |\n\
                       <!-- /code-map -->\n| `other` |";

    #[test]
    fn wrong_code_maps_are_found() {
        let right = [("README.md", MAP), ("src/main.rs", ""), ("vmm/src/boot/mod.rs", "")];
        assert_eq!(code_map(&Tree::planted(&right)), [""; 0]);

        let gone = code_map(&Tree::planted(&right[..2]));
        assert_eq!(gone.len(), 1, "{gone:?}");
        assert!(gone[0].contains("`vmm/src/boot/` does not exist"), "{gone:?}");

        let new = ("vmm/src/new/mod.rs", "");
        let left_out = code_map(&Tree::planted(&[right[0], right[1], right[2], new]));
        assert_eq!(left_out.len(), 1, "{left_out:?}");
        assert!(left_out[0].contains("add a line for `vmm/src/new/`"), "{left_out:?}");

        assert_eq!(code_map(&Tree::planted(&right[1..])).len(), 1);
    }

    #[test]
    fn unexplained_weight_is_found() {
        use std::fmt::Write;
        let mut lock = "[[package]]\nname = \"light\"\n".to_owned();
        let below: Vec<String> = (0..HEAVY).map(|i| format!("\"b{i}\"")).collect();
        let _ = write!(lock, "[[package]]\nname = \"big\"\ndependencies = [{}]\n", below.join(","));
        let manifest = "[workspace.dependencies]\nbig = \"1\"\nlight = \"1\"";
        let with = |names: &str| {
            let readme = format!(
                "<!-- heavy-dependencies -->\n| {names} | x |\n<!-- /heavy-dependencies -->"
            );
            heavy_dependencies(&Tree::planted(&[
                ("README.md", &readme),
                ("Cargo.toml", manifest),
                ("Cargo.lock", &lock),
            ]))
        };
        assert_eq!(with("`big`"), [""; 0]);
        assert_eq!(with("`light`").len(), 1);
        assert_eq!(with("`big`, `gone`").len(), 1);
        assert_eq!(with("nothing").len(), 1);
    }

    #[test]
    fn hidden_test_commands_are_found() {
        let found = |text| test_command(&Tree::planted(&[("README.md", text)])).len();
        assert_eq!(found("<!-- test-command -->\n```sh\nscripts/test\n```\n"), 0);
        for bad in [
            "",
            "```sh\nscripts/test\n```\n",
            "<!-- test-command -->\n\n```sh\nscripts/test\n```\n",
            "<!-- test-command -->\n```sh\n```\nx\n",
            "<!-- test-command -->\n```sh\na\n```\n<!-- test-command -->\n```sh\nb\n```\n",
        ] {
            assert_eq!(found(bad), 1, "{bad}");
        }
    }
}
