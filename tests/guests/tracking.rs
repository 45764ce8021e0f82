//! The map of a disk's changes, as lives of its guest leave it. The guest does not write here:
//! what is looked at is whether the map is believed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Home, kvm, pid_of, wait_gone};

/// Identity, generation and reason of the only disk.
fn tracking(info: &Value) -> (String, u64, String) {
    let disks = info["disk_tracking"].as_array().unwrap();
    assert_eq!(disks.len(), 1, "the read-only one is not tracked: {info}");
    let disk = &disks[0];
    assert_eq!(disk.get("error"), None, "{disk}");
    assert!(disk["epoch"].as_u64().unwrap() >= 1, "{disk}");
    let text = |field: &str| disk[field].as_str().unwrap().to_owned();
    (text("disk"), disk["generation"].as_u64().unwrap(), text("began"))
}

#[test]
fn a_map_is_kept_over_lives_and_doubted_after_an_edit() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let definitions = home.path().join("config/guests");
    fs::create_dir_all(&definitions).unwrap();
    let (disk, other) = (home.file_text("disk"), home.file_text("other"));
    for image in [&disk, &other] {
        fs::write(image, vec![1; 1 << 20]).unwrap();
    }
    let text = format!(
        "memory = '32M'\nguest = 'scribbler:ws=4M'\n[[disk]]\npath = '{disk}'\n\
         [[disk]]\npath = '{other}'\nread_only = true\n"
    );
    fs::write(definitions.join("web.toml"), text).unwrap();
    let first = home.done(&["start", "web"]);
    let (id, generation, _) = tracking(&first);
    assert_eq!(generation, 1);
    let same = |info: &Value| {
        let (found, generation, _) = tracking(info);
        assert_eq!((&found, generation), (&id, 1), "{info}");
    };
    // A reset makes new devices on the same map.
    home.done(&["reset", "web"]);
    same(&home.done(&["show", "web"]));
    home.done(&["stop", "web"]);
    let second = home.done(&["start", "web"]);
    same(&second);
    let pid = pid_of(&second);
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_gone(pid);
    same(&home.done(&["start", "web"]));
    home.done(&["stop", "web"]);
    // Times of files have a grain.
    std::thread::sleep(Duration::from_millis(50));
    let image = OpenOptions::new().write(true).open(&disk).unwrap();
    image.write_all_at(&[7; 512], 300 << 10).unwrap();
    let edited = home.done(&["start", "web"]);
    let (found, generation, why) = tracking(&edited);
    assert_eq!((&found, generation), (&id, 2));
    assert!(why.contains("written to while its guest did not run"), "{why}");
    home.done(&["stop", "web"]);
    home.assert_no_guest();
}

#[test]
fn a_guest_runs_though_its_disk_cannot_be_tracked() {
    if !kvm() {
        return;
    }
    let home = Home::new();
    let disk = home.file_text("disk");
    fs::write(&disk, vec![1; 1 << 20]).unwrap();
    let toml = home.file_text("a.toml");
    let uuid = "5a5a0000-0000-4000-8000-000000000001";
    let text = format!("guest = 'scribbler:ws=4M'\nmemory = '32M'\nuuid = '{uuid}'\n");
    fs::write(&toml, text).unwrap();
    // Something else lies where the map would.
    let dir = home.dirs().tracking(&uuid.parse().unwrap());
    let guest = ["run", "a", "--file", &toml, "--disk", &disk];
    let run = home.done(&guest);
    let serial = run["disk_tracking"][0]["serial"].as_str().unwrap().to_owned();
    home.done(&["stop", "a"]);
    let map = dir.join(format!("{serial}.track"));
    fs::remove_file(&map).unwrap();
    fs::create_dir(&map).unwrap();
    fs::write(map.join("x"), "x").unwrap();
    let run = home.done(&guest);
    let disk = &run["disk_tracking"][0];
    assert!(disk["error"].is_string() && disk.get("disk").is_none(), "{disk}");
    home.done(&["stop", "a"]);
    home.assert_no_guest();
}
