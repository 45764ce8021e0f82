//! The lab is what it was asked to be: measured with sockets and with ping, which know nothing of
//! it. Tolerances are those of a machine with two cores and other work.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

#[path = "../support/relay/model.rs"]
#[allow(dead_code, reason = "the tests of the model are what is wanted of it here")]
mod model;
mod quic;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/relay/words.rs"]
#[allow(dead_code, reason = "the tests of the language are what is wanted of it here")]
mod words;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use support::eventually;
use support::lab::{Host, Lab};

const MS: Duration = Duration::from_millis(1);

/// Round trips in milliseconds that ping reports, in order.
fn ping(lab: &Lab, from: Host, words: &[&str]) -> Vec<f64> {
    let output = lab.command(from, "ping", words).output().expect("ping is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let times = text.lines().filter_map(|l| l.split_once(" time=")?.1.split(' ').next());
    times.map(|t| t.parse().unwrap()).collect()
}

/// The shortest, which is the one that nothing else on this machine has made longer.
fn shortest(values: Vec<f64>) -> f64 {
    values.into_iter().min_by(f64::total_cmp).expect("something was measured")
}

/// Bytes a second that arrive over TCP from a to b within a time.
fn tcp_rate(lab: &Lab, time: Duration) -> f64 {
    let listener = lab.on(Host::B, || TcpListener::bind("10.77.0.2:0").unwrap());
    let address = listener.local_addr().unwrap();
    let mut sender = lab.on(Host::A, || TcpStream::connect(address).unwrap());
    let mut receiver = listener.accept().unwrap().0;
    let sending = thread::spawn(move || while sender.write_all(&[0; 8192]).is_ok() {});
    let mut buffer = vec![0; 1 << 18];
    let mut count = |until: Duration| {
        let (start, mut bytes) = (Instant::now(), 0_u32);
        while start.elapsed() < until {
            bytes += u32::try_from(receiver.read(&mut buffer).unwrap()).unwrap();
        }
        f64::from(bytes) / start.elapsed().as_secs_f64()
    };
    // Not the start, when its window is small.
    count(Duration::from_millis(500));
    let rate = count(time);
    drop(receiver);
    sending.join().unwrap();
    rate
}

/// Numbers of the datagrams that arrive of `count` sent from a to b.
fn datagrams(lab: &Lab, count: u32) -> Vec<u32> {
    let receiver = lab.on(Host::B, || UdpSocket::bind("10.77.0.2:0").unwrap());
    let address = receiver.local_addr().unwrap();
    // Room for all of them: on a busy machine we may come late.
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sender = lab.on(Host::A, || UdpSocket::bind("10.77.0.1:0").unwrap());
    let sending = thread::spawn(move || {
        for number in 0..count {
            sender.send_to(&number.to_be_bytes(), address).unwrap();
            // Slower than the relay, or its tap's queue (4096) would add to the losses.
            if number % 8 == 7 {
                thread::sleep(MS / 2);
            }
        }
    });
    let mut buffer = [0; 4];
    let mut arrived = Vec::new();
    while receiver.recv(&mut buffer).is_ok() {
        arrived.push(u32::from_be_bytes(buffer));
    }
    sending.join().unwrap();
    arrived
}

#[test]
fn delay_and_rate_are_what_was_asked_for() {
    let Some(lab) = Lab::up(&["--delay", "10ms", "--rate", "100mbit"]) else { return };
    let times = ping(&lab, Host::A, &["-c", "20", "-i", "0.05", "10.77.0.2"]);
    let time = shortest(times);
    assert!((20.0..26.0).contains(&time), "a round trip of {time} ms");
    // 100 Mbit/s with the headers of Ethernet, IP and TCP are 11.9 MB/s without. What waits in
    // queues at either end of the measurement adds to that.
    let rate = tcp_rate(&lab, Duration::from_secs(3));
    assert!((4e6..13.5e6).contains(&rate), "{rate} bytes a second");
}

#[test]
fn a_shaped_link_without_a_relay() {
    let Some(lab) = Lab::up(&["--rate", "100mbit", "--mtu", "9000"]) else { return };
    let rate = tcp_rate(&lab, Duration::from_secs(2));
    assert!((4e6..14e6).contains(&rate), "{rate} bytes a second");
    let whole = ping(&lab, Host::A, &["-c", "1", "-M", "do", "-s", "8972", "10.77.0.2"]);
    let too_long = ping(&lab, Host::A, &["-c", "1", "-M", "do", "-s", "8973", "10.77.0.2"]);
    assert_eq!((whole.len(), too_long.len()), (1, 0));
}

#[test]
fn losses_and_duplicates_are_what_was_asked_for() {
    const COUNT: u32 = 4000;
    let conditions = ["--loss", "10%", "--duplicate", "5%", "--reorder", "5%", "--hold", "3ms"];
    let Some(lab) = Lab::up(&[&["--seed", "1"], conditions.as_slice()].concat()) else { return };
    let arrived = datagrams(&lab, COUNT);
    let mut unique = arrived.clone();
    unique.sort_unstable();
    unique.dedup();
    let lost = COUNT - u32::try_from(unique.len()).unwrap();
    let twice = arrived.len() - unique.len();
    let overtaken = arrived.windows(2).filter(|w| w[0] > w[1]).count();
    // Expected are 400, 180 and about as many.
    assert!((280..560).contains(&lost), "{lost} lost");
    assert!((90..300).contains(&twice), "{twice} twice");
    assert!((60..400).contains(&overtaken), "{overtaken} overtaken");
    assert!(lab.counter("a-to-b", "lost") >= 280);
}

#[test]
fn a_cut_in_one_direction_and_its_end() {
    let Some(lab) = Lab::up(&["--relay"]) else { return };
    let heard =
        |count: &str| ping(&lab, Host::A, &["-c", count, "-i", "0.05", "-W", "1", "10.77.0.2"]);
    assert_eq!(heard("3").len(), 3);
    lab.done(&["cut", "b-to-a"]);
    assert_eq!(heard("3"), [0.0; 0]);
    // The other way still carried them there.
    assert_eq!(lab.counter("a-to-b", "while_cut"), 0);
    assert!(lab.counter("b-to-a", "while_cut") >= 3);
    lab.done(&["heal"]);
    assert_eq!(heard("3").len(), 3);
    lab.done(&["set", "delay=5ms"]);
    assert!(shortest(heard("5")) >= 10.0);
}

#[test]
fn guests_networks_are_joined_outside() {
    let Some(lab) = Lab::up(&[]) else { return };
    // The bridges need a moment until their ports are up.
    for (from, to) in
        [(Host::A, "10.78.0.2"), (Host::Outside, "10.78.0.1"), (Host::B, "10.78.0.254")]
    {
        eventually("the bridges are up", || {
            (ping(&lab, from, &["-c", "1", "-W", "1", to]).len() == 1).then_some(())
        });
    }
    assert_eq!(ping(&lab, Host::A, &["-c", "1", "fd00:77::2"]).len(), 1);
}

#[test]
fn down_removes_everything_and_touches_nothing_else() {
    let Some(lab) = Lab::up(&["--relay"]) else { return };
    let mut sleeper = lab.spawn(Host::B, "sleep", &["1000"]);
    let again = lab.script(&["up"]);
    assert_eq!(again.code, Some(1), "{again:?}");
    lab.done(&["down"]);
    assert!(sleeper.wait().is_ok_and(|s| !s.success()));
    assert_nothing_left(&lab);

    // A namespace of that name which somebody else made.
    let foreign = lab.namespace(Host::B);
    let ip = |verb: &str| Command::new("ip").args(["netns", verb, &foreign]).status().unwrap();
    assert!(ip("add").success());
    let refused = lab.script(&["up"]);
    lab.done(&["down"]);
    let there = fs::metadata(format!("/run/netns/{foreign}")).is_ok();
    let ours = fs::metadata(format!("/run/netns/{}", lab.namespace(Host::A))).is_ok();
    assert!(ip("del").success());
    assert!(refused.code == Some(1) && refused.stderr.contains("not of this lab"), "{refused:?}");
    assert!(there && !ours, "the foreign one stays, and nothing was begun");
}

#[test]
fn a_failed_up_leaves_nothing() {
    let Some(lab) = Lab::up(&[]) else { return };
    lab.done(&["down"]);
    let ran = lab.script(&["up", "--delay", "10ms", "--loss", "nonsense"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("nonsense"), "{ran:?}");
    assert_nothing_left(&lab);
}

#[track_caller]
fn assert_nothing_left(lab: &Lab) {
    for dir in ["/run/netns", "/run/migrate-lab"] {
        let left = support::names_in(dir.as_ref());
        assert!(!left.iter().any(|n| n.starts_with(lab.name())), "{dir}: {left:?}");
    }
}
