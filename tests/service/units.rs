//! What `systemd-analyze verify` says of the units, and what must stand in them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::run;

const UNITS: [(&str, &str, &str); 2] = [
    ("scripts/systemd/migrate.service", "--system", "/usr/local/bin/migrate"),
    ("scripts/systemd/user/migrate.service", "--user", "%h/.cargo/bin/migrate"),
];

/// Whether systemd's programs are there. Says so if not.
pub fn installed() -> bool {
    let there = Command::new("systemd-analyze").arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: systemd is not installed: scripts/ci-deps");
    }
    there
}

/// What the verification says of a unit, whose program is the one that was built.
#[track_caller]
fn verify(text: &str, instance: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("migrate.service");
    fs::write(&unit, text).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", instance]).arg(&unit);
    command.env("XDG_RUNTIME_DIR", dir.path());
    let ran = run(&mut command);
    (ran.code, ran.stderr)
}

fn unit(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    if !installed() {
        return;
    }
    for (path, instance, program) in UNITS {
        let text = unit(path).replace(program, env!("CARGO_BIN_EXE_migrate"));
        let (code, said) = verify(&text, instance);
        // It reads other units of this machine too, which are none of ours.
        let ours: Vec<_> = said.lines().filter(|l| l.contains("migrate.service")).collect();
        assert_eq!((code, ours), (Some(0), vec![]), "{path}: {said}");
        // The check is one that can fail.
        let (_, said) = verify(&text.replace("Type=notify", "Type=notfiy"), instance);
        assert!(said.contains("migrate.service"), "a wrong unit passes: {said}");
    }
}

#[test]
fn units_set_up_nothing_that_guests_would_inherit() {
    for (path, _, _) in UNITS {
        let text = unit(path);
        let keys = text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('='));
        for (key, _) in keys {
            let inherited = ["Protect", "Private", "Restrict", "SystemCall", "Lock", "Memory"];
            assert!(!inherited.iter().any(|word| key.starts_with(word)), "{path}: {key}");
        }
        for line in ["Type=notify", "KillMode=process", "NoNewPrivileges=yes"] {
            assert!(text.lines().any(|l| l == line), "{path}: no {line}");
        }
    }
}
