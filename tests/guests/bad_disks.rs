//! Disks that cannot be used.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use crate::support::{Home, NOBODY, Namespace, kvm, names_in};

const GUEST: [&str; 6] = ["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"];

fn disk(home: &Home, name: &str, bytes: u64) -> String {
    let path = home.file_text(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[track_caller]
fn refused(home: &Home, disk: &str, wanted: &[&str]) {
    home.json(&[&GUEST[..], &["--disk", disk]].concat()).refused("bad-disk", wanted);
    home.assert_untouched();
}

#[test]
fn disks_that_are_none() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let missing = home.file_text("missing");
    refused(&home, &missing, &[&missing]);
    let odd = disk(&home, "odd", (1 << 20) + 100);
    refused(&home, &odd, &[&odd, "512"]);
    let empty = disk(&home, "empty", 0);
    refused(&home, &empty, &[&empty]);
    let directory = home.file_text("directory");
    fs::create_dir(&directory).unwrap();
    refused(&home, &directory, &[&directory]);
    refused(&home, "/dev/null", &["/dev/null"]);
    let pipe = home.file_text("pipe");
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&home, &pipe, &[&pipe]);
    let good = disk(&home, "good", 1 << 20);
    let twice = [&GUEST[..], &["--disk", &good, "--disk", &good]].concat();
    home.json(&twice).refused("bad-definition", &[&good, "twice"]);
    let serial = format!("{good},serial={}", "s".repeat(21));
    home.json(&[&GUEST[..], &["--disk", &serial]].concat()).refused("bad-definition", &["20"]);
    home.assert_untouched();
}

#[test]
fn a_disk_has_one_guest_or_only_readers() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let path = disk(&home, "disk", 1 << 20);
    let link = home.file_text("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let read_only = format!("{path},ro");
    let guest = |name: &'static str, disk: &str| {
        let guest = ["run", name, "--guest", "scribbler:ws=4M", "--memory", "32M", "--disk", disk];
        home.json(&guest)
    };
    guest("a", &path).done();
    for second in [&path, &link, &read_only] {
        guest("b", second).refused("disk-locked", &[second.strip_suffix(",ro").unwrap_or(second)]);
        assert_eq!(names_in(&home.dirs().guests()), ["a"]);
    }
    home.done(&["stop", "a"]);
    guest("a", &read_only).done();
    guest("b", &read_only).done();
    guest("c", &path).refused("disk-locked", &[&path]);
    for name in ["a", "b"] {
        home.done(&["stop", name]);
    }
    guest("c", &path).done();
    home.done(&["stop", "c"]);
    home.assert_no_guest();
}

#[test]
fn a_disk_that_may_not_be_written() {
    if !kvm() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    let path = disk(&home, "disk", 1 << 20);
    // By its file system, which root cannot overrule.
    let read_only = namespace
        .clone()
        .with("mount --bind \"$MIGRATE_HOME/files\" \"$MIGRATE_HOME/files\"")
        .with("mount -o remount,ro,bind \"$MIGRATE_HOME/files\"");
    let words = [&GUEST[..], &["--disk", &path]].concat();
    read_only.json(&home, &words).refused("bad-disk", &[&path]);
    home.assert_untouched();
    read_only.json(&home, &[&GUEST[..], &["--disk", &format!("{path},ro")]].concat()).done();
    home.done(&["stop", "a"]);
    home.assert_no_guest();

    // By its permissions.
    let home = Home::new();
    let path = disk(&home, "disk", 1 << 20);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let chown = format!("chown {NOBODY} \"$MIGRATE_HOME\"");
    let user = namespace.with(&chown).with_kvm_node("10 232", "root:root", "666").for_nobody(&[]);
    let words = [&GUEST[..], &["--disk", &path]].concat();
    user.json(&home, &words).refused("bad-disk", &[&path, "read-only for this user"]);
    home.assert_untouched();
}
