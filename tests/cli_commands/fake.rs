//! A stand-in for a guest process: a runtime directory with a held lock, and a socket that speaks
//! HTTP, written without the program's own client or server.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use migrate::api::fds::{ACK, receive_with_fds};
use migrate::config::{Dirs, GuestPaths};
use migrate::guest::lockfile::LockFile;
use serde_json::{Value, json};

const UUID: &str = "00000000-0000-4000-8000-000000000001";

/// What a guest process says of itself.
pub fn info(name: &str, pid: u32) -> Value {
    json!({
        "schema": 1, "name": name, "uuid": UUID, "state": "running", "term": 3, "pid": pid,
        "version": "9.8.7", "started": "2026-01-01T00:00:00Z", "memory_bytes": 134_217_728_u64,
        "memory_used_bytes": 1_048_576, "cpus": 2, "cpu_ms": 5, "cpu_template": "host",
        "cpu_share_percent": 100,
        "definition": {
            "name": name, "uuid": UUID, "memory_bytes": 134_217_728_u64, "huge_pages": false,
            "cpus": 2, "cpu_template": "host", "dirty_ring": false, "kernel": null, "initrd": null,
            "cmdline": "", "guest": "scribbler", "acpi": true, "disks": [], "nets": [],
            "virtio_console": false, "rng": false, "vsock_cid": null, "on_crash": "stop",
            "on_host_stop": "shutdown"
        },
        "console": "/somewhere/console.sock", "resets": 0
    })
}

/// What the stand-in does with a request.
pub enum Answer {
    Say(u16, Value),
    /// Leave no trace, then answer.
    Vanish(Value),
    /// Close the connection without a word.
    HangUp,
    /// Never answer.
    Silence,
}

/// A guest process that is none.
pub struct Fake {
    pub paths: GuestPaths,
    /// Method, path and body of each request.
    requests: Arc<Mutex<Vec<String>>>,
    pub lock: Arc<Mutex<Option<LockFile>>>,
}

impl Fake {
    /// Answers the requests with `answers`, one after the other.
    pub fn start(home: &Path, name: &str, answers: Vec<Answer>) -> Self {
        Self::start_as(home, name, 1, answers)
    }

    pub fn start_as(home: &Path, name: &str, pid: u32, answers: Vec<Answer>) -> Self {
        let dirs = Dirs::below(home);
        dirs.prepare().unwrap();
        let paths = dirs.guest(name);
        fs::create_dir(paths.dir()).unwrap();
        let lock = Arc::new(Mutex::new(LockFile::take(&paths.lock()).unwrap()));
        fs::write(paths.info(), info(name, pid).to_string()).unwrap();
        let listener = UnixListener::bind(paths.api()).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let fake = Self { paths, requests, lock };
        let (paths, requests, lock) =
            (fake.paths.clone(), fake.requests.clone(), fake.lock.clone());
        thread::spawn(move || {
            let mut answers = VecDeque::from(answers);
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                requests.lock().unwrap().push(read_request(&stream));
                match answers.pop_front().expect("no more requests than expected") {
                    Answer::Say(status, body) => say(&mut stream, status, &body),
                    Answer::Vanish(body) => {
                        fs::remove_dir_all(paths.dir()).unwrap();
                        lock.lock().unwrap().take();
                        say(&mut stream, 200, &body);
                    }
                    Answer::HangUp => {}
                    Answer::Silence => silent.push(stream),
                }
            }
        });
        fake
    }

    /// The process dies; what it made stays.
    pub fn die(&self) {
        self.lock.lock().unwrap().take();
        fs::remove_file(self.paths.api()).unwrap();
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

pub fn read_request(stream: &UnixStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let what = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim().to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if header.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    format!("{what} {}", String::from_utf8(body).unwrap()).trim().to_owned()
}

pub fn say(stream: &mut UnixStream, status: u16, body: &Value) {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
    // A client that has given up is no failure of the test.
    let _ = stream.write_all((head + &body).as_bytes());
}

/// Takes one descriptor on `fd.sock` and writes `content` into it.
pub fn take_descriptor(paths: &GuestPaths, content: &'static str) -> thread::JoinHandle<String> {
    let listener = UnixListener::bind(paths.fd()).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut token = [0; 100];
        let (n, fds) = receive_with_fds(&stream, &mut token).unwrap();
        let [fd] = <[_; 1]>::try_from(fds).unwrap();
        fs::File::from(fd).write_all(content.as_bytes()).unwrap();
        stream.write_all(&[ACK]).unwrap();
        String::from_utf8(token[..n].to_vec()).unwrap()
    })
}
