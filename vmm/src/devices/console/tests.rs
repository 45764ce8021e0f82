#![expect(clippy::cast_possible_truncation, reason = "patterns, and sizes that fit")]

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Longer than anything here takes; only a failure waits so long.
fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

fn on_socket(dir: &Path) -> (Console, ConsolePort) {
    let listener = Some(UnixListener::bind(dir.join("console")).unwrap());
    let console = Console::new(ConsoleConfig { listener, ..Default::default() }).unwrap();
    let port = console.port();
    (console, port)
}

fn client(dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(dir.join("console")).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream
}

fn expect(stream: &mut UnixStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes);
}

/// Waits until `n` bytes of input have come, and takes them.
fn take(port: &ConsolePort, n: usize) -> Vec<u8> {
    let (ready, deadline) = (port.input_ready(), soon());
    let mut got = Vec::new();
    while got.len() < n {
        assert!(Instant::now() < deadline, "{} of {n} bytes came", got.len());
        ready.clear();
        let new = port.take(n - got.len());
        if new.is_empty() {
            let mut fd = [nix::poll::PollFd::new(ready.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fd, 1000u16).unwrap();
        }
        got.extend(new);
    }
    got
}

#[test]
fn clients_get_the_scrollback_and_then_live_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (_console, port) = on_socket(dir.path());
    port.write(b"early ");
    let mut first = client(dir.path());
    expect(&mut first, b"early ");
    for byte in b"live" {
        port.write(&[*byte]);
    }
    expect(&mut first, b"live");
    expect(&mut client(dir.path()), b"early live");
    drop(first);
    port.write(b" more");
    expect(&mut client(dir.path()), b"early live more");
}

const LINES: u32 = 100_000;

/// A client that never reads: the guest goes on, the client loses the middle and is told.
#[test]
fn a_slow_client_loses_bytes_and_is_told_how_many() {
    let dir = tempfile::tempdir().unwrap();
    let (console, port) = on_socket(dir.path());
    let mut slow = client(dir.path());
    port.write(b"start\n");
    expect(&mut slow, b"start\n");
    let line = |i: u32| format!("line {i:08}\n").into_bytes();
    for i in 0..LINES {
        port.write(&line(i));
    }
    // The client wakes up, and the service sends it what is left.
    let last = line(LINES - 1);
    let mut got = Vec::new();
    let mut piece = vec![0; 65536];
    while !got.ends_with(&last) {
        let n = slow.read(&mut piece).unwrap();
        got.extend_from_slice(&piece[..n]);
    }
    drop((console, port));
    assert!(got.starts_with(&line(0)), "what fitted in the socket comes first");
    let all: Vec<u8> = (0..LINES).flat_map(line).collect();
    // Every stretch is true to the stream, and each gap is as long as it says.
    let (mut at, mut rest, mut gaps) = (0usize, &got[..], 0);
    while let Some(gap) = find(rest, b"\r\n[") {
        assert_eq!(rest[..gap], all[at..at + gap]);
        let end = gap + find(&rest[gap..], b"]\r\n").unwrap() + 3;
        let words = String::from_utf8(rest[gap + 3..end].to_vec()).unwrap();
        at += gap + words.split(' ').next().unwrap().parse::<usize>().unwrap();
        rest = &rest[end..];
        gaps += 1;
    }
    assert_eq!(rest, &all[at..]);
    assert!(gaps > 0, "it must have lost something");
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}

/// One byte a write to one that reads at once: nothing may be lost or reordered.
#[test]
fn a_client_that_keeps_up_gets_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (_console, port) = on_socket(dir.path());
    let mut stream = client(dir.path());
    port.write(b"!");
    expect(&mut stream, b"!");
    let all: Vec<u8> = (0..20_000u32).map(|i| ((i * 7) >> 2) as u8).collect();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 20_000];
        stream.read_exact(&mut got).unwrap();
        got
    });
    for byte in &all {
        port.write(&[*byte]);
    }
    assert_eq!(reader.join().unwrap(), all);
}

/// More than all queues hold: the client must wait, nothing is lost, also after it hangs up.
#[test]
fn input_is_held_back_and_never_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (_console, port) = on_socket(dir.path());
    let all: Vec<u8> = (0..1_000_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut stream = client(dir.path());
    let typed = all.clone();
    let typist = std::thread::spawn(move || stream.write_all(&typed).unwrap());
    let first = take(&port, 10);
    assert!(port.shared.input().room() <= INPUT_ROOM, "bounded");
    assert!(!typist.is_finished(), "the client waits for the guest");
    let mut got = first;
    got.extend(take(&port, all.len() - 10));
    assert_eq!(got, all);
    typist.join().unwrap();
}

#[test]
fn a_client_may_stop_typing_and_still_listen() {
    let dir = tempfile::tempdir().unwrap();
    let (_console, port) = on_socket(dir.path());
    let mut stream = client(dir.path());
    stream.write_all(b"command\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(take(&port, 8), b"command\n");
    port.write(b"answer");
    expect(&mut stream, b"answer");
}

#[test]
fn too_many_clients_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let (_console, port) = on_socket(dir.path());
    port.write(b"hello");
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| client(dir.path())).collect();
    for c in &mut clients {
        expect(c, b"hello");
    }
    assert_eq!(client(dir.path()).read(&mut [0; 5]).unwrap(), 0);
    clients.pop();
    // The place is free once the hang-up was seen.
    let deadline = soon();
    while client(dir.path()).read(&mut [0; 5]).unwrap() == 0 {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn dropping_the_console_disconnects_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let (console, port) = on_socket(dir.path());
    let other = console.clone();
    let mut stream = client(dir.path());
    port.write(b"bye");
    expect(&mut stream, b"bye");
    let mut reader = other.subscribe(Position::Now);
    drop(console);
    port.write(b".");
    expect(&mut stream, b".");
    assert_eq!(reader.read(soon()), Ok(b".".to_vec()), "one clone keeps it open");
    drop(other);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(reader.read(soon()), Err(Missed::Closed));
    assert!(UnixStream::connect(dir.path().join("console")).is_err(), "nobody listens");
    port.write(b"into the void");
}

struct Count(AtomicUsize);
impl InputListener for Count {
    fn input_ready(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_listener_is_called_until_it_is_gone() {
    let console = Console::new(ConsoleConfig::default()).unwrap();
    let port = console.port();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let weak: Weak<Count> = Arc::downgrade(&count);
    port.on_input(weak);
    assert_eq!(console.send_input(b"ab"), 2);
    assert_eq!(console.send_input(b""), 0);
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    drop(count);
    assert_eq!(console.send_input(&[0; INPUT_ROOM]), INPUT_ROOM - 2);
    assert_eq!(console.send_input(b"x"), 0, "full");
    assert_eq!(port.take(3), b"ab\0");
}

#[test]
fn file_and_log_get_everything() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(dir.path().join(name)).unwrap()
    };
    open("log").write_all(b"before\n").unwrap();
    let config = ConsoleConfig {
        file: Some(open("file")),
        log: Some(LogFiles { current: open("log"), previous: open("log.1") }),
        ..Default::default()
    };
    let console = Console::new(config).unwrap();
    let port = console.port();
    // Slower than the log would lose, as a guest is: a ring's worth, then wait for the log.
    let all: Vec<u8> = (0..3 * LOG_SIZE / 2).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut logged = 7;
    let deadline = soon();
    for piece in all.chunks(SCROLLBACK / 2) {
        port.write(piece);
        logged += piece.len() as u64;
        let sizes = || ["log", "log.1"].map(|n| open(n).metadata().unwrap().len());
        while sizes().iter().sum::<u64>() < logged {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
    drop(console);
    let read = |name: &str| {
        let (mut file, mut bytes) = (open(name), Vec::new());
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    assert_eq!(read("file"), all);
    let previous = read("log.1");
    assert_eq!(previous.len() as u64, LOG_SIZE);
    let both = [previous, read("log")].concat();
    assert_eq!(both, [&b"before\n"[..], &all].concat());
}

#[test]
fn a_full_pipe_does_not_block_the_guest() {
    let (read, write) = nix::unistd::pipe().unwrap();
    let config = ConsoleConfig { file: Some(File::from(write)), ..Default::default() };
    let console = Console::new(config).unwrap();
    let port = console.port();
    let all: Vec<u8> = (0..200_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    port.write(&all); // a pipe holds 64 KiB
    let mut got = vec![0; all.len()];
    File::from(read).read_exact(&mut got).unwrap();
    assert_eq!(got, all, "it fits in the scrollback, so nothing is lost");
    port.write(b"nobody reads this");
    port.write(b"nor this");
}

#[test]
fn waiting_finds_text_across_writes() {
    let console = Console::new(ConsoleConfig::default()).unwrap();
    let port = console.port();
    port.write(b"boot... log");
    let mut reader = console.subscribe(Position::Scrollback);
    let mut late = console.subscribe(Position::Now);
    let writer = std::thread::spawn(move || {
        for byte in b"in: shell" {
            port.write(&[*byte]);
        }
    });
    reader.wait_for(b"login: ", soon()).unwrap();
    reader.wait_for(b"", soon()).unwrap();
    reader.wait_for(b"shell", soon()).unwrap();
    assert_eq!(late.wait_for(b"login", Instant::now()), Err(Missed::Deadline));
    assert_eq!(reader.wait_for(b"x", Instant::now()), Err(Missed::Deadline));
    writer.join().unwrap();
    console.port().write(b"lon");
    assert_eq!(reader.wait_for(b"long", Instant::now()), Err(Missed::Deadline));
    console.port().write(b"g");
    reader.wait_for(b"long", soon()).unwrap();
}

proptest! {
    /// Against a search in everything that was written.
    #[test]
    fn waiting_finds_what_is_there(
        writes in prop::collection::vec(prop::collection::vec(b'a'..b'd', 0..5), 1..20),
        text in prop::collection::vec(b'a'..b'd', 1..4),
    ) {
        let console = Console::new(ConsoleConfig::default()).unwrap();
        let (port, mut reader) = (console.port(), console.subscribe(Position::Scrollback));
        let mut all: Vec<u8> = Vec::new();
        let mut from = 0;
        for write in writes {
            port.write(&write);
            all.extend(&write);
            let expected = find(&all[from..], &text);
            prop_assert_eq!(reader.wait_for(&text, Instant::now()).is_ok(), expected.is_some());
            if let Some(at) = expected {
                from += at + text.len();
            } else {
                // What a match could still begin in is not lost.
                from = from.max((all.len() + 1).saturating_sub(text.len()));
            }
        }
    }
}
