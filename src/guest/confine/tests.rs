//! A confined process has no way back, so each test runs this test binary again, as a process of
//! its own that confines itself and tells what it can still do.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use super::*;

const ROOT: &str = "MIGRATE_TEST_CONFINE_ROOT";

fn dirs(root: &Path) -> Dirs {
    Dirs { config: root.join("config"), run: root.join("run"), state: root.join("state") }
}

/// The confined process; without the variable it is an empty test.
#[test]
fn confined_child() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let root = Path::new(&root);
    let dirs = dirs(root);
    let paths = dirs.guest("one");
    let journal = dirs.journal(&uuid::Uuid::nil());
    let marks = dirs.marks(&uuid::Uuid::nil());
    let tracking = dirs.tracking(&uuid::Uuid::nil());
    for dir in [paths.dir(), &journal, &marks, &tracking, &dirs.exits(), &dirs.guests().join("two")]
    {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(root.join("secret"), "s").unwrap();
    fs::write(dirs.exits().join("other"), "o").unwrap();
    let held = File::open(root.join("secret")).unwrap();
    confine(&Reach::new(&dirs, &paths, (journal.clone(), marks.clone(), tracking), None)).unwrap();
    let mut can = Vec::new();
    let mut try_it = |what: &str, worked: bool| {
        if worked {
            can.push(what.to_owned());
        }
    };
    try_it("write its own directory", fs::write(paths.dir().join("f"), "x").is_ok());
    try_it("write its journal", fs::write(journal.join("record"), "x").is_ok());
    try_it("set a mark", fs::write(marks.join("m"), "x").is_ok());
    try_it("leave an exit record", fs::write(dirs.exits().join("mine"), "x").is_ok());
    try_it("start a thread", std::thread::Builder::new().spawn(|| ()).is_ok());
    try_it("use what it holds", held.metadata().is_ok());
    try_it("read the boot id", fs::read("/proc/sys/kernel/random/boot_id").is_ok());
    let pair = UnixStream::pair();
    try_it("make a socket pair", pair.is_ok());
    try_it("read another file", File::open(root.join("secret")).is_ok());
    try_it("read a system file", File::open("/etc/passwd").is_ok());
    try_it("list another directory", fs::read_dir(root).is_ok());
    try_it("remove another's record", fs::remove_file(dirs.exits().join("other")).is_ok());
    let writable = OpenOptions::new().write(true).open(root.join("secret"));
    try_it("write another file", writable.is_ok());
    try_it("start a program", Command::new("/bin/true").spawn().is_ok());
    try_it("listen on TCP", TcpListener::bind("127.0.0.1:0").is_ok());
    try_it("send by UDP", UdpSocket::bind("127.0.0.1:0").is_ok());
    try_it("open KVM again", File::open("/dev/kvm").is_ok());
    try_it("signal its parent", nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok());
    try_it("leave its directory", {
        fs::remove_file(paths.dir().join("f")).is_ok() && fs::remove_dir(paths.dir()).is_ok()
    });
    // Its standard output is that of the test harness; files are allowed in the journal.
    fs::write(journal.join("record"), can.join("\n")).unwrap();
}

#[test]
fn a_confined_process_can_do_its_work_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "guest::confine::tests::confined_child", "--test-threads=1"])
        .env(ROOT, root.path())
        .output()
        .unwrap();
    let journal = dirs(root.path()).journal(&uuid::Uuid::nil()).join("record");
    let can = fs::read_to_string(journal)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)));
    let can: BTreeSet<_> = can.lines().collect();
    let wanted = BTreeSet::from([
        "write its own directory",
        "write its journal",
        "leave an exit record",
        "set a mark",
        "send by UDP",
        "start a thread",
        "use what it holds",
        "read the boot id",
        "make a socket pair",
        "leave its directory",
    ]);
    assert_eq!(can, wanted);
}
