//! Which crate may know of which.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::policy::{LAYERS, Layer};
use crate::tree::Tree;

/// Sections of a manifest, or of one of its targets, that name dependencies.
const SECTIONS: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];

/// Crates of the workspace that name a crate they must not know.
pub fn direct(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for layer in LAYERS {
        let path = manifest_of(layer.dir);
        let Some(manifest) = parse(tree, &path) else {
            findings.push(format!("{path}: missing or not TOML"));
            continue;
        };
        for (name, package, _) in dependencies(&manifest) {
            if forbids(layer, &name) || forbids(layer, &package) {
                findings.push(format!("{path}: depends on `{name}`: {}", layer.why));
            }
        }
    }
    findings
}

/// Crates of the workspace below which `Cargo.lock` has a crate they must not know, even if
/// through others.
pub fn transitive(tree: &Tree) -> Vec<String> {
    let Some(lock) = Lock::read(tree) else {
        return vec!["Cargo.lock: missing or not TOML".to_owned()];
    };
    let mut findings = Vec::new();
    for layer in LAYERS {
        let below = lock.below(layer.package);
        for name in below.keys().filter(|n| forbids(layer, n)) {
            findings.push(format!(
                "Cargo.lock: `{}` reaches `{name}` through {}: {}",
                layer.package,
                chain(&below, name).join(" → "),
                layer.why
            ));
        }
    }
    findings
}

/// Crates of the workspace that go without its lints, or give a version of their own.
pub fn shared_settings(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for dir in std::iter::once("").chain(LAYERS.iter().map(|l| l.dir)) {
        let path = manifest_of(dir);
        let Some(manifest) = parse(tree, &path) else {
            findings.push(format!("{path}: missing or not TOML"));
            continue;
        };
        let inherits = |v: Option<&Value>| {
            v.and_then(|v| v.get("workspace")).and_then(Value::as_bool) == Some(true)
        };
        if !inherits(manifest.get("lints")) {
            findings.push(format!("{path}: add `[lints]` with `workspace = true`"));
        }
        for (name, _, value) in dependencies(&manifest) {
            if !inherits(Some(&value)) {
                findings.push(format!(
                    "{path}: `{name}`: write `{name}.workspace = true` and give its version in \
                     [workspace.dependencies]"
                ));
            }
        }
    }
    findings
}

fn manifest_of(dir: &str) -> String {
    if dir.is_empty() { "Cargo.toml".to_owned() } else { format!("{dir}/Cargo.toml") }
}

fn parse(tree: &Tree, path: &str) -> Option<Table> {
    tree.text(path)?.parse().ok()
}

/// What `manifest` depends on: name, package and all that is said of it.
fn dependencies(manifest: &Table) -> Vec<(String, String, Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let targets = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut found = Vec::new();
    for table in std::iter::once(manifest).chain(targets) {
        for section in SECTIONS.iter().filter_map(|s| table.get(*s)?.as_table()) {
            for (name, value) in section {
                let package = value.get("package").and_then(Value::as_str).unwrap_or(name);
                found.push((name.clone(), package.to_owned(), value.clone()));
            }
        }
    }
    found
}

fn forbids(layer: &Layer, name: &str) -> bool {
    // A crate of another layer may lie below `vmm-*` or the like; its own name never counts.
    name != layer.package
        && layer.forbidden.iter().any(|ban| match ban.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *ban,
        })
}

/// Who depends on whom, by name; several versions of a crate count as one.
pub struct Lock(BTreeMap<String, BTreeSet<String>>);

impl Lock {
    /// Reads `Cargo.lock`.
    pub fn read(tree: &Tree) -> Option<Self> {
        let lock = parse(tree, "Cargo.lock")?;
        let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for package in lock.get("package")?.as_array()? {
            let below = packages.entry(package.get("name")?.as_str()?.to_owned()).or_default();
            let names = package.get("dependencies").and_then(Value::as_array);
            // "name", or "name version" where there are several.
            let names = names.into_iter().flatten().filter_map(Value::as_str);
            below.extend(names.filter_map(|n| n.split(' ').next()).map(str::to_owned));
        }
        Some(Self(packages))
    }

    /// Whether `package` is in it.
    pub fn has(&self, package: &str) -> bool {
        self.0.contains_key(package)
    }

    /// All packages below `package`, each with the one that names it.
    pub fn below(&self, package: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![package.to_owned()];
        while let Some(parent) = open.pop() {
            for name in self.0.get(&parent).into_iter().flatten() {
                if !found.contains_key(name) {
                    found.insert(name.clone(), parent.clone());
                    open.push(name.clone());
                }
            }
        }
        found
    }
}

/// The packages from the top down to `name`.
fn chain(below: &BTreeMap<String, String>, name: &str) -> Vec<String> {
    let mut up = vec![name.to_owned()];
    while let Some(parent) = below.get(&up[up.len() - 1]).filter(|p| !up.contains(p)) {
        up.push(parent.clone());
    }
    up.reverse();
    up
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINTS: &str = "[lints]\nworkspace = true\n";

    fn manifests(root: &str, vmm: &str, engine: &str) -> Tree {
        Tree::planted(&[
            ("Cargo.toml", &format!("{LINTS}{root}")),
            ("vmm/Cargo.toml", &format!("{LINTS}{vmm}")),
            ("migrate/Cargo.toml", &format!("{LINTS}{engine}")),
        ])
    }

    #[test]
    fn wrong_direction_is_found() {
        let fine = "[dependencies]\nserde.workspace = true\n";
        assert_eq!(direct(&manifests("", fine, fine)), [""; 0]);
        for bad in [
            "[dependencies]\ntokio.workspace = true",
            "[dev-dependencies]\ntokio = { workspace = true }",
            "[dependencies.quinn-proto]\nworkspace = true",
            "[target.'cfg(unix)'.dependencies]\nmigrate-engine.workspace = true",
            "[build-dependencies]\nt = { package = \"tokio-util\", workspace = true }",
        ] {
            assert_eq!(direct(&manifests("", bad, "")).len(), 1, "{bad}");
        }
        for bad in ["vmm", "kvm-ioctls", "kvm-bindings", "vm-memory", "vmm-sys-util"] {
            let engine = format!("[dependencies]\n{bad}.workspace = true");
            assert_eq!(direct(&manifests("", "", &engine)).len(), 1, "{bad}");
        }
        assert_eq!(direct(&Tree::planted(&[])).len(), LAYERS.len());
    }

    #[test]
    fn what_comes_in_through_others_is_found() {
        let lock = "[[package]]\nname = \"vmm\"\ndependencies = [\"a\"]\n\
                    [[package]]\nname = \"a\"\nversion = \"1\"\ndependencies = [\"b 2\", \"a\"]\n\
                    [[package]]\nname = \"b\"\nversion = \"1\"\n\
                    [[package]]\nname = \"b\"\nversion = \"2\"\ndependencies = [\"tokio\"]\n\
                    [[package]]\nname = \"tokio\"\n\
                    [[package]]\nname = \"migrate-engine\"\ndependencies = [\"tokio\"]\n";
        let found = transitive(&Tree::planted(&[("Cargo.lock", lock)]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("vmm → a → b → tokio"), "{found:?}");
        assert_eq!(transitive(&Tree::planted(&[])).len(), 1);
    }

    #[test]
    fn own_versions_and_lints_are_found() {
        let bad = "[dependencies]\nserde = \"1\"\nlibc = { version = \"0.2\" }\n";
        assert_eq!(shared_settings(&manifests(bad, "", "")).len(), 2);
        let tree = Tree::planted(&[("Cargo.toml", ""), ("vmm/Cargo.toml", LINTS)]);
        assert_eq!(shared_settings(&tree).len(), 2);
    }
}
