//! Certificates as the CA would have made them at another time, so that no clock need be changed;
//! and what the tests ask of a host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrate_engine::transport::identity::{Authority, HostKey, HostName, Moment};
use serde_json::Value;

use crate::site::{Host, join};
use crate::support::{Ran, eventually, run};

pub const DAY: Duration = Duration::from_hours(24);

pub fn now() -> Moment {
    Moment(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// The site's CA, from the files of its host.
pub fn authority(of: &Host) -> Authority {
    let text = |name: &str| fs::read_to_string(of.home.dirs().config.join(name)).unwrap();
    Authority::from_pem(&text("ca.crt"), &text("ca.key")).unwrap()
}

/// Gives `host` a certificate for `name` that `authority` signed at `signed`.
pub fn certify(host: &Host, authority: &Authority, name: &str, signed: Moment) {
    let name: HostName = name.parse().unwrap();
    let key = HostKey::generate().unwrap();
    let chain = authority.sign(&key.request_pem(&name).unwrap(), &name, signed).unwrap();
    let path = host.home.dirs().config.join("host.pem");
    fs::write(path, format!("{}{chain}", key.pem())).unwrap();
}

/// A site of hosts with these names, the first with the CA, all daemons running.
pub fn site_of(names: &[&str]) -> Vec<Host> {
    let mut hosts: Vec<Host> = names.iter().map(|name| Host::new(name)).collect();
    hosts[0].home.done(&["host", "init", "--name", names[0]]);
    hosts[0].start_daemon();
    for at in 1..hosts.len() {
        join(&hosts[0], &hosts[at]);
        hosts[at].start_daemon();
    }
    hosts
}

/// What `host check` says, with its exit code.
pub fn check(from: &Host, to: &str) -> (Option<i32>, Value) {
    let ran = run(&mut from.home.command(&["host", "check", to, "--json"]));
    (ran.code, ran.json())
}

/// One line of a check.
#[track_caller]
pub fn line<'a>(check: &'a Value, what: &str) -> &'a Value {
    let lines = check["lines"].as_array().unwrap_or_else(|| panic!("{check}"));
    lines.iter().find(|l| l["what"] == what).unwrap_or_else(|| panic!("no '{what}': {check}"))
}

/// The names of the hosts in a host's file, whoever asks for them.
pub fn knows(host: &Host, name: &str) -> bool {
    let path = host.home.dirs().state.join("hosts.json");
    let hosts: Value =
        serde_json::from_slice(&fs::read(path).unwrap_or_default()).unwrap_or_default();
    hosts.as_array().is_some_and(|all| all.iter().any(|h| h["name"] == name))
}

/// Waits until a host's log has all these words in a line.
#[track_caller]
pub fn until_logged(host: &Host, words: &[&str]) {
    eventually(&format!("{} logs {words:?}", host.name), || {
        let found = |line: &str| words.iter().all(|word| line.contains(word));
        host.log().lines().any(found).then_some(())
    });
}

/// The message and the code of a failure.
#[track_caller]
pub fn error(ran: &Ran) -> (String, String) {
    let document: Value = serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap();
    let error = if document["error"].is_null() { &document } else { &document["error"] };
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

/// Has a daemon read its identity again.
pub fn reload(host: &Host) {
    let mut socket = UnixStream::connect(host.home.dirs().daemon_socket()).unwrap();
    socket
        .write_all(b"POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
