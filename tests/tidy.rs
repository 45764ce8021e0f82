//! House rules that neither the compiler nor clippy checks: sizes, layering, purity, `unsafe`,
//! the README's promises, and what may lie in the repository at all.
//!
//! A text check over the files that git would commit. It builds nothing and opens no network.
//! Every rule is a function from a tree of files to a list of findings, and is itself tested with
//! a planted violation. What is allowed where stands in `tidy/policy.rs`.

#[path = "tidy/hygiene.rs"]
mod hygiene;
#[path = "tidy/layering.rs"]
mod layering;
#[path = "tidy/policy.rs"]
mod policy;
#[path = "tidy/readme.rs"]
mod readme;
#[path = "tidy/scan.rs"]
mod scan;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;

use tree::Tree;

/// Runs one rule over the whole repository.
fn check(rule: fn(&Tree) -> Vec<String>) {
    let tree = Tree::of_repository();
    let findings = rule(&tree);
    assert!(findings.is_empty(), "\n  {}\n", findings.join("\n  "));
}

#[test]
fn files_are_short() {
    check(sizes::files);
}

#[test]
fn functions_are_short() {
    check(sizes::functions);
}

#[test]
fn dependencies_point_one_way() {
    check(layering::direct);
}

#[test]
fn nothing_forbidden_comes_in_through_others() {
    check(layering::transitive);
}

#[test]
fn members_share_versions_and_lints() {
    check(layering::shared_settings);
}

#[test]
fn unsafe_stays_in_named_files() {
    check(source::unsafe_files);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    check(source::safety_comments);
}

#[test]
fn pure_modules_have_no_effects() {
    check(source::purity);
}

#[test]
fn list_of_pure_modules_is_up_to_date() {
    check(source::purity_list);
}

#[test]
fn no_unfinished_code() {
    check(source::unfinished);
}

#[test]
fn libraries_do_not_print() {
    check(source::prints);
}

#[test]
fn ignored_tests_say_why() {
    check(source::ignored_tests);
}

#[test]
fn readme_maps_the_code() {
    check(readme::code_map);
}

#[test]
fn readme_explains_heavy_dependencies() {
    check(readme::heavy_dependencies);
}

#[test]
fn readme_has_one_test_command() {
    check(readme::test_command);
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    check(hygiene::foreign_names);
}

#[test]
fn only_small_text_files() {
    check(hygiene::small_text);
}

#[test]
fn scripts_stop_at_errors() {
    check(hygiene::scripts);
}
