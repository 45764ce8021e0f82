//! What cannot be run: the error says what, where and how to mend it, and nothing is left behind.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::support::{Home, Namespace, Ran, kvm, names_in, pid_of};

/// `run` of a scribbler with more words; it must be refused.
#[track_caller]
fn refused(home: &Home, more: &[&str], code: &str, wanted: &[&str]) -> Value {
    let guest = ["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"];
    refused_run(home, &[&guest[..], more].concat(), code, wanted)
}

/// A command that must be refused.
#[track_caller]
fn refused_run(home: &Home, words: &[&str], code: &str, wanted: &[&str]) -> Value {
    let error = home.json(words).refused(code, wanted);
    home.assert_untouched();
    error
}

/// A command line that is wrong.
#[track_caller]
fn usage(home: &Home, words: &[&str], wanted: &str) {
    let ran = home.json(words);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains(wanted), "{wanted}: {ran:?}");
    assert!(!home.path().join("run").exists(), "{ran:?}");
}

#[test]
fn numbers_out_of_range() {
    let home = Home::new();
    let memory = |size: &str, code: &str, wanted: &[&str]| {
        let run = ["run", "a", "--guest", "scribbler", "--memory", size];
        refused_run(&home, &run, code, wanted)
    };
    memory("33554433", "bad-definition", &["33554433", "4096"]);
    memory("8M", "bad-definition", &["16"]);
    memory("0", "bad-definition", &["16"]);
    memory("2T", "bad-definition", &["1"]);
    if kvm() {
        memory("1T", "no-memory", &["1048576 MiB", "this host has"]);
    }
    for cpus in ["0", "33", "4294967295"] {
        refused(&home, &["--cpus", cpus], "bad-definition", &["32", cpus]);
    }
    refused(&home, &["--vsock-cid", "2"], "bad-definition", &["vsock_cid", "3"]);
    let home = Home::new();
    usage(&home, &["run", "--memory", "lots"], "'lots' is not a size");
    usage(&home, &["run", "--memory", "99999999T"], "too large");
    usage(&home, &["run", "--cpus=-1"], "--cpus");
    usage(&home, &["run", "--cpus", "two"], "two");
}

#[test]
fn names_that_are_none() {
    let home = Home::new();
    let long = "a".repeat(64);
    for name in ["A", "a_b", "../a", ".", "-a", "a/b", "ä", "", "a b", &long] {
        let ran = home.text(&["run", "--json", "--guest", "scribbler", "--", name]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains("a-z, 0-9"), "{ran:?}");
    }
    let toml = home.file_text("a.toml");
    fs::write(&toml, "name = '../../a'\nguest = 'scribbler'\n").unwrap();
    refused_run(&home, &["run", "--file", &toml], "bad-definition", &["../../a"]);
}

#[test]
fn scribblers_that_cannot_be() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let guest = |guest: &str, wanted: &[&str]| {
        let run = ["run", "a", "--memory", "32M", "--guest", guest];
        refused_run(&home, &run, "bad-definition", wanted);
    };
    guest("scribbler:colour=red", &["colour"]);
    guest("scribbler:ws=much", &["ws", "much"]);
    guest("scribbler:ws=64M", &["16384 pages"]);
    guest("scribbler:pattern=zigzag", &["zigzag"]);
    guest("scribbler:hb=1us", &["hb"]);
    guest("painter", &["painter"]);
    for more in [["--initrd", "/etc/hostname"], ["--cmdline", "quiet"]] {
        refused(&home, &more, "bad-definition", &["built-in"]);
    }
    let nothing = home.json(&["run", "a"]);
    nothing.refused("bad-definition", &["neither a kernel nor"]);
    home.assert_untouched();
}

#[test]
fn definitions_with_mistakes_are_told_with_their_line() {
    let home = Home::new();
    let toml = home.file_text("guest.toml");
    for (text, wanted) in [
        ("guest = 'scribbler'\nmemroy = '1G'\n", &["line 2", "memroy"][..]),
        ("guest = 'scribbler'\ncpus = 'two'\n", &["line 2"]),
        ("guest = 'scribbler'\n[[disk]]\npath = 'x'\nro = true\n", &["line 4", "ro"]),
        ("guest = [", &["line 1"]),
        ("guest = 'scribbler'\nmemory = 32\n", &["line 2"]),
        ("guest = 'scribbler'\non_crash = 'dance'\n", &["line 2", "dance"]),
    ] {
        fs::write(&toml, text).unwrap();
        let words = [&[toml.as_str()], wanted].concat();
        refused_run(&home, &["run", "a", "--file", &toml], "bad-definition", &words);
    }
    let missing = home.json(&["run", "a", "--file", &home.file_text("none.toml")]);
    assert_eq!(
        (missing.code, missing.json()["error"]["code"].as_str()),
        (Some(7), Some("not-found"))
    );
    fs::write(&toml, [0xff, 0xfe, 0]).unwrap();
    refused_run(&home, &["run", "a", "--file", &toml], "file", &[&toml]);
    home.assert_untouched();
}

/// Where an ELF program header table begins, and what an entry has where (ELF-64).
const PHOFF: usize = 0x20;
const PH_MEMSZ: usize = 0x28;

#[test]
fn kernels_that_are_none() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let kernel = home.file_text("vmlinux");
    let run = |code: &str, wanted: &[&str]| {
        let run = ["run", "a", "--memory", "32M", "--kernel", &kernel];
        refused_run(&home, &run, code, wanted);
    };
    run("file", &["kernel", &kernel]);
    fs::create_dir(&kernel).unwrap();
    run("bad-kernel", &[]);
    fs::remove_dir(&kernel).unwrap();
    for content in [&b""[..], b"x", b"This is a text.\n", &vec![0; 1 << 16], &vec![0x7f; 100_000]] {
        fs::write(&kernel, content).unwrap();
        run("bad-kernel", &["bzImage", "ELF"]);
    }

    let elf = vmm::scribbler::elf();
    for length in [4, 63, 64, 100, 200, elf.len() / 2, elf.len() - 4096] {
        fs::write(&kernel, &elf[..length]).unwrap();
        run("bad-kernel", &[]);
    }
    let mut large = elf.clone();
    let phoff = usize::try_from(u64::from_le_bytes(large[PHOFF..PHOFF + 8].try_into().unwrap()));
    let memsz = phoff.unwrap() + PH_MEMSZ;
    large[memsz..memsz + 8].copy_from_slice(&(64_u64 << 20).to_le_bytes());
    fs::write(&kernel, &large).unwrap();
    run("bad-kernel", &["memory"]);

    // A bzImage (boot protocol 2.15, four setup sectors) that ends early, and one that is whole
    // and does not fit.
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    fs::write(&kernel, &image[..0x202]).unwrap();
    run("bad-kernel", &[]);
    fs::write(&kernel, &image).unwrap();
    File::options().write(true).open(&kernel).unwrap().set_len(48 << 20).unwrap();
    run("bad-kernel", &[]);
}

#[test]
fn boot_files_that_do_not_fit() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let kernel = home.file_text("vmlinux");
    fs::write(&kernel, vmm::scribbler::elf()).unwrap();
    let base = ["run", "a", "--memory", "32M", "--kernel", &kernel];
    let run = |more: &[&str], code: &str, wanted: &[&str]| {
        refused_run(&home, &[&base[..], more].concat(), code, wanted);
    };
    let long = "x".repeat(100_000);
    run(&["--cmdline", &long], "bad-kernel", &["command line", "100000"]);
    run(&["--initrd", "/nonexistent/initrd"], "file", &["initrd", "/nonexistent/initrd"]);
    let initrd = home.file_text("initrd");
    File::create(&initrd).unwrap().set_len(64 << 20).unwrap();
    run(&["--initrd", &initrd], "bad-kernel", &["init"]);
    run(&["--cpu-template", "i486"], "bad-definition", &["i486"]);
}

#[test]
fn a_name_that_is_taken() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let guest = ["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"];
    let first = home.done(&guest);
    let error = home.json(&guest).refused("name-taken", &["'a'"]);
    assert_eq!(error["guest_state"], "running");
    assert_eq!(home.done(&["show", "a"])["pid"], first["pid"]);
    // Two at once: one of them has it.
    let both: Vec<_> = (0..2)
        .map(|_| {
            home.spawn(&["run", "b", "--guest", "scribbler:ws=4M", "--memory", "32M", "--json"])
        })
        .collect();
    let both: Vec<_> = both.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    let mut codes: Vec<_> = both.iter().map(|o| o.status.code()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(4)], "{both:?}");
    for name in ["a", "b"] {
        home.console(name).verify_clean(1024);
        home.done(&["stop", name]);
    }
    home.assert_no_guest();
}

#[test]
fn an_instance_that_cannot_be_used() {
    let home = Home::new();
    let run = |path: &Path| {
        let mut command = home.command(&["run", "a", "--guest", "scribbler", "--json"]);
        crate::support::run(command.env("MIGRATE_HOME", path))
    };
    let long = home.path().join("x".repeat(90));
    let error = run(&long).refused("bad-definition", &["console.sock", "107"]);
    assert!(error["remedy"].as_str().unwrap().contains("MIGRATE_HOME"), "{error}");
    run(Path::new("/proc/nothing")).refused("file", &["/proc/nothing"]);
    run(Path::new("/dev/null")).refused("file", &["/dev/null"]);
    let open = home.path().join("open");
    fs::create_dir_all(open.join("run")).unwrap();
    fs::set_permissions(open.join("run"), fs::Permissions::from_mode(0o777)).unwrap();
    run(&open).refused("file", &["open/run", "others may write"]);
    assert_eq!(names_in(&open.join("run")), [""; 0]);
    home.assert_untouched();
}

#[test]
fn a_tap_that_is_missing_or_taken() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    refused(&home, &["--net", "tap=missing0"], "bad-net", &["missing0"]);
    refused(&home, &["--net", "tap=lo"], "bad-net", &["lo"]);
    refused(
        &home,
        &["--net", "tap=a-name-that-is-too-long"],
        "bad-definition",
        &["a-name-that-is-too-long"],
    );
    usage(&Home::new(), &["run", "--net", "tap=x,mac=1:2"], "'1:2' is not a MAC address");
}

/// A command in the network of process `pid`.
fn in_network_of(pid: i32, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).args(words);
    command
}

/// A process that ends with the test.
struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_tap_has_one_guest_and_is_free_after_it() {
    if !kvm() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    let tap = ["--guest", "scribbler:ws=4M", "--memory", "32M", "--net", "tap=t0"];
    let first = namespace.with_tap("t0").json(&home, &[&["run", "a"], &tap[..]].concat()).done();
    let there = |words: &[&str]| {
        let migrate = [&[env!("CARGO_BIN_EXE_migrate"), "--json"], words].concat();
        crate::support::run(home.surround(&mut in_network_of(pid_of(&first), &migrate)))
    };
    there(&[&["run", "b"], &tap[..]].concat()).refused("bad-net", &["t0"]);
    assert_eq!(names_in(&home.dirs().guests()), ["a"]);
    // Something that stays in that network while the guest is away.
    let keeper = Keeper(in_network_of(pid_of(&first), &["sleep", "1000"]).spawn().unwrap());
    let keeper_pid = i32::try_from(keeper.0.id()).unwrap();
    crate::support::eventually("a process in the network", || {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        (of(keeper_pid) == of(pid_of(&first))).then_some(())
    });
    let there = |words: &[&str]| {
        let migrate = [&[env!("CARGO_BIN_EXE_migrate"), "--json"], words].concat();
        crate::support::run(home.surround(&mut in_network_of(keeper_pid, &migrate)))
    };
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    // Where there is no such tap it cannot continue.
    home.json(&["load", &file]).refused("bad-net", &["t0"]);
    home.assert_no_guest();
    let loaded = there(&["load", &file]);
    let clone = there(&["load", &file, "--as", "c"]);
    home.console("a").verify_clean(1024);
    home.done(&["stop", "a"]);
    let mac = |info: &Value| info["definition"]["nets"][0]["mac"].clone();
    assert_eq!(mac(&loaded.done()), mac(&first));
    clone.refused("bad-net", &["t0"]);
    home.assert_no_guest();
}

fn run_scribbler(namespace: &Namespace, home: &Home) -> Ran {
    namespace.json(home, &["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"])
}

#[test]
fn a_host_without_kvm() {
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    // A /dev that has all that is needed but the one.
    let bare = namespace
        .clone()
        .with("mount -t tmpfs none \"$MIGRATE_HOME\"; mkdir \"$MIGRATE_HOME/dev\"")
        .with("cd \"$MIGRATE_HOME/dev\"; mknod -m 666 null c 1 3; mknod -m 666 urandom c 1 9")
        .with("mount --bind . /dev; cd /");
    let error = run_scribbler(&bare, &home).refused("kvm-missing", &["/dev/kvm"]);
    assert!(error["remedy"].as_str().unwrap().contains("kvm_intel"), "{error}");
    // Something else in its place.
    let null = namespace.clone().with("mount --bind /dev/null /dev/kvm");
    let ran = run_scribbler(&null, &home);
    assert!(!ran.json()["error"]["message"].as_str().unwrap().is_empty(), "{ran:?}");
    assert!(ran.stdout.contains("kvm") || ran.stdout.contains("KVM"), "{ran:?}");
    assert_ne!(ran.code, Some(0));
    // A node without a driver.
    let dead = namespace.with_kvm_node("10 254", "root", "600");
    run_scribbler(&dead, &home).refused("kvm-missing", &["/dev/kvm"]);
    home.assert_untouched();
}

#[test]
fn a_user_who_may_not_use_kvm() {
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    let theirs = namespace
        .with("mount -t tmpfs -o mode=777 none \"$MIGRATE_HOME\"")
        .with_kvm_node("10 232", "root:root", "600")
        .for_nobody(&[]);
    let error = run_scribbler(&theirs, &home).refused("kvm-permission", &["/dev/kvm", "kvm"]);
    assert!(error["remedy"].as_str().unwrap().contains("group"), "{error}");
    home.assert_untouched();
}

#[test]
fn a_state_directory_that_is_full_or_read_only() {
    if !kvm() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    let full = namespace
        .clone()
        .with("mount -t tmpfs -o size=64k none \"$MIGRATE_HOME\"")
        .with("head -c 1M /dev/zero > \"$MIGRATE_HOME/full\" || true")
        .with("mkdir -p -m 700 \"$MIGRATE_HOME/run\"");
    let ran = run_scribbler(&full, &home);
    ran.refused("file", &["No space left"]);
    let read_only = namespace
        .with("mount -t tmpfs none \"$MIGRATE_HOME\"")
        .with("mount -o remount,ro \"$MIGRATE_HOME\"");
    run_scribbler(&read_only, &home).refused("file", &["Read-only file system"]);
    home.assert_untouched();
}

#[test]
fn a_disk_that_is_full_at_the_save() {
    if !kvm() {
        return;
    }
    let Some(namespace) = Namespace::new() else { return };
    let home = Home::new();
    home.done(&["run", "a", "--guest", "scribbler:ws=4M", "--memory", "32M"]);
    home.console("a").until_text("SCRIBBLER-READY");
    // The guest's process writes through a descriptor from in there.
    let small = home.file_text("small");
    fs::create_dir(&small).unwrap();
    let target = format!("{small}/a.save");
    let namespace = namespace.with(&format!("mount -t tmpfs -o size=1M none {small}"));
    let words = ["-c", "\"$0\" save a --to \"$1\" --json; code=$?; ls -A \"$2\" >&2; exit $code"];
    let words = [&words[..], &[env!("CARGO_BIN_EXE_migrate"), &target, &small]].concat();
    let ran = crate::support::run(&mut namespace.command(&home, "sh", &words));
    let error = ran.json()["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("No space left"), "{ran:?}");
    assert!(matches!(ran.code, Some(4 | 5)), "{ran:?}");
    assert_eq!(error["guest_state"], json!("running"), "it is said where the guest is");
    assert!(!ran.stderr.contains("a.save"), "nothing is left there: {ran:?}");
    assert_eq!(home.done(&["show", "a"])["state"], "running");
    home.console("a").verify_clean(1024);
    // And a good place still works.
    let file = home.file_text("a.save");
    home.done(&["save", "a", "--to", &file]);
    home.done(&["load", &file]);
    home.console("a").verify_clean(1024);
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}
