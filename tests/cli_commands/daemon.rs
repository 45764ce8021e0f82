//! A stand-in for the host's daemon: it answers by a function of the request, also with a stream
//! of events, and is written without the program's own client or server.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::fake::{read_request, say};

pub const ID: &str = "3f2a0000-0000-4000-8000-00000000000a";
const UUID: &str = "00000000-0000-4000-8000-000000000001";

/// What it does with a request.
pub enum Reply {
    Say(u16, Value),
    /// These lines, the next piece whenever the function gives one; then the stream ends.
    Events(Box<dyn FnMut() -> Option<Value> + Send>),
}

/// Events that all are there at once.
pub fn events(lines: Vec<Value>) -> Reply {
    let mut lines = lines.into_iter();
    Reply::Events(Box::new(move || lines.next()))
}

/// A daemon that is none.
pub struct Daemon {
    requests: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    pub fn start(home: &Path, answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        fs::create_dir_all(home.join("run")).unwrap();
        let listener = UnixListener::bind(home.join("run/daemon.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen, answer) = (stream.unwrap(), seen.clone(), answer.clone());
                thread::spawn(move || {
                    let request = read_request(&stream);
                    seen.lock().unwrap().push(request.clone());
                    reply(stream, answer(&request));
                });
            }
        });
        Self { requests }
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Whether there was a request that begins so.
    pub fn was_asked(&self, begin: &str) -> bool {
        self.requests().iter().any(|r| r.starts_with(begin))
    }
}

fn reply(mut stream: UnixStream, reply: Reply) {
    match reply {
        Reply::Say(status, body) => say(&mut stream, status, &body),
        Reply::Events(mut next) => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            while let Some(value) = next() {
                let line = format!("{value}\n");
                // In two pieces: a line and a chunk are not the same.
                let (a, b) = line.split_at(line.len() / 2);
                for piece in [a, b] {
                    let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
                    if stream.write_all(chunk.as_bytes()).is_err() {
                        return;
                    }
                }
            }
            let _ = stream.write_all(b"0\r\n\r\n");
        }
    }
}

pub fn begun() -> Reply {
    Reply::Say(200, json!({"schema": 1, "move_id": ID}))
}

pub fn phase(phase: &str) -> Value {
    json!({"type": "phase", "move_id": ID, "guest": "web1", "phase": phase})
}

pub fn round(round: u32, dirty: u64) -> Value {
    json!({"type": "round", "round": round, "took_ms": 1500.0, "memory_bytes": 1 << 30,
           "frame_bytes": 1 << 29, "pages": 1000, "compressed_pages": 10, "zero_pages": 5,
           "same_pages": 1, "untouched_pages": 7, "dirty_bytes": dirty,
           "dirty_bytes_per_s": dirty, "bandwidth_bytes_per_s": 500 << 20,
           "predicted_downtime_ms": 40.5, "advice": "keep copying"})
}

/// A report; `outcome` is absent while it goes on.
pub fn report(outcome: Option<&str>, error: Option<Value>) -> Value {
    let mut report = json!({
        "schema": 1, "move_id": ID, "guest": "web1", "uuid": UUID,
        "from": {"id": UUID, "name": "host1"}, "to": {"id": UUID, "name": "host2"},
        "started": "2026-01-01T00:00:00Z", "phase": "ended",
        "options": {"max_downtime_ms": 300, "on_stall": "wait", "timeout_ms": 1_800_000},
        "total_ms": 2500.5, "phases": [["preparing", 100.0], ["copying", 2000.0], ["stopped", 40.0]],
        "rounds": [], "memory_bytes": 1 << 30, "frame_bytes": 1 << 29, "udp_bytes": 600 << 20,
        "predicted_downtime_ms": 40.5, "downtime_ms": 38.25, "timeline": [],
        "digest_equal": true, "audit_equal": true, "packets": [1000, 1],
    });
    if let Some(outcome) = outcome {
        report["outcome"] = json!(outcome);
        report["ended"] = json!("2026-01-01T00:00:03Z");
    }
    if let Some(error) = error {
        report["error"] = error;
    }
    report
}

pub fn result(report: Value) -> Value {
    let mut report = report;
    report["type"] = json!("result");
    report
}

/// Waits for something that must come.
pub fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if there() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not come");
}
