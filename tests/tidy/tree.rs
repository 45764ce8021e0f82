//! The files of the repository, as the rules see them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One file.
pub struct File {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    /// Content.
    pub bytes: Vec<u8>,
    /// Somebody may execute it.
    pub executable: bool,
}

impl File {
    /// The content, or `None` if it is not text.
    pub fn text(&self) -> Option<&str> {
        if self.bytes.contains(&0) { None } else { std::str::from_utf8(&self.bytes).ok() }
    }

    /// Whether this is `dir_or_file` or lies below it, given without `.rs`, with it, or as a
    /// directory.
    pub fn belongs_to(&self, dir_or_file: &str) -> bool {
        let Some(rest) = self.path.strip_prefix(dir_or_file) else { return false };
        rest.is_empty() || rest == ".rs" || rest.starts_with('/')
    }
}

/// A set of files, sorted by path.
pub struct Tree(Vec<File>);

impl Tree {
    /// The repository that this test belongs to: what git tracks or would add. Where git cannot
    /// answer (an unpacked archive), everything but build results and hidden directories.
    pub fn of_repository() -> Self {
        // Cargo and nextest set the variable for every test; it is right also for a test binary
        // that was moved here from another directory.
        let root = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut paths = listed_by_git(&root).unwrap_or_else(|| listed_by_walking(&root));
        paths.sort();
        let files: Vec<File> = paths.into_iter().filter_map(|p| load(&root, p)).collect();
        assert!(
            files.iter().any(|f| f.path == "Cargo.toml"),
            "no repository at {}",
            root.display()
        );
        Self(files)
    }

    /// Files that a test of a rule makes up.
    #[cfg(test)]
    pub fn planted(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File {
            path: path.to_owned(),
            bytes: text.as_bytes().to_vec(),
            executable: false,
        };
        Self(files.iter().map(file).collect())
    }

    /// For tests that need more than text.
    #[cfg(test)]
    pub fn of(files: Vec<File>) -> Self {
        Self(files)
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.0.iter()
    }

    /// The text of the file at `path`.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|f| f.path == path).and_then(File::text)
    }

    /// Whether a file is at `path`, or a directory with files.
    pub fn exists(&self, path: &str) -> bool {
        let dir = format!("{}/", path.trim_end_matches('/'));
        self.0.iter().any(|f| f.path == path || f.path.starts_with(&dir))
    }
}

fn listed_by_git(root: &Path) -> Option<Vec<String>> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .ok()
        .filter(|o| o.status.success())?;
    let text = String::from_utf8(list.stdout).ok()?;
    let paths: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
    (!paths.is_empty()).then_some(paths)
}

fn listed_by_walking(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            match entry.file_type() {
                Ok(kind) if !kind.is_dir() => found.push(path),
                Ok(_) if name == ".ci" || (name != "target" && !name.starts_with('.')) => {
                    dirs.push(path);
                }
                _ => {}
            }
        }
    }
    found
}

/// Loads a file; `None` for what is listed but deleted, and for symbolic links to directories.
fn load(root: &Path, path: String) -> Option<File> {
    let full = root.join(&path);
    let executable = fs::metadata(&full).is_ok_and(|m| m.permissions().mode() & 0o111 != 0);
    fs::read(full).ok().map(|bytes| File { path, bytes, executable })
}
