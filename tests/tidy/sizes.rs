//! Files and functions stay short enough to be read in one sitting.

use crate::policy::{FILE_LINES, FUNCTION_LINES};
use crate::scan;
use crate::source::rust_files;
use crate::tree::Tree;

/// Files that are too long. Tests do not count: neither `#[cfg(test)]` items nor test files.
pub fn files(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust_files(tree).iter().filter(|f| !f.test_only) {
        let tests: usize = file.source.test_parts().iter().map(|p| file.lines_in(p)).sum();
        let lines = file.text.lines().count() - tests;
        if lines > FILE_LINES {
            findings.push(format!(
                "{}: {lines} lines outside tests, at most {FILE_LINES}: split it along its \
                 responsibilities",
                file.path
            ));
        }
    }
    findings
}

/// Functions that are too long, in tests too.
pub fn functions(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in rust_files(tree) {
        for f in scan::functions(&file.source.code) {
            if f.lines > FUNCTION_LINES {
                findings.push(format!(
                    "{}:{}: `{}` has {} lines of code, at most {FUNCTION_LINES}: give its steps \
                     names",
                    file.path, f.line, f.name, f.lines
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found() {
        let long = "x\n".repeat(FILE_LINES + 1);
        let tested = format!(
            "{}#[cfg(test)]\nmod tests {{\n{long}}}\n#[cfg(test)]\nmod kit;\n",
            "x\n".repeat(FILE_LINES)
        );
        let tree = Tree::planted(&[
            ("vmm/src/long.rs", &long),
            ("vmm/src/tested.rs", &tested),
            ("vmm/src/tested/kit.rs", &long),
            ("tests/long.rs", &long),
            ("vmm/src/long.s", &long),
        ]);
        let found = files(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("vmm/src/long.rs: 501 lines"), "{found:?}");
    }

    #[test]
    fn long_functions_are_found() {
        let body = |lines| format!("\nfn f() {{\n// c\n\n{}}}\n", "x;\n".repeat(lines));
        let fits = body(FUNCTION_LINES);
        let long = body(FUNCTION_LINES + 1);
        let tree = Tree::planted(&[("src/fits.rs", &fits), ("tests/long.rs", &long)]);
        let found = functions(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("tests/long.rs:2: `f` has 71 lines"), "{found:?}");
    }
}
