//! A guest's serial console, read from outside as any terminal program would.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// The heartbeat of a scribbler.
const BEAT: u8 = b'.';

/// A connection to a console.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    heard: Vec<u8>,
    closed: bool,
    beats: usize,
}

impl Console {
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path)
            .unwrap_or_else(|e| panic!("the console {}: {e}", path.display()));
        Self { stream, heard: Vec::new(), closed: false, beats: 0 }
    }

    /// Everything heard so far, scrollback included, without the heartbeats.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }

    /// Heartbeats heard so far.
    pub fn beats(&self) -> usize {
        self.beats
    }

    /// Whether the guest's process closed the console.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Listens once, for at most `time`; whether something was said.
    pub fn listen(&mut self, time: Duration) -> bool {
        let mut buffer = [0; 4096];
        self.stream.set_read_timeout(Some(time)).expect("a time of listening");
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.closed = true;
                false
            }
            Ok(n) => {
                let words = buffer[..n].iter().filter(|b| **b != BEAT);
                let before = self.heard.len();
                self.heard.extend(words);
                self.beats += n - (self.heard.len() - before);
                true
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {
                self.closed = true;
                false
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(e) => panic!("the console: {e}"),
        }
    }

    /// Listens until `found` finds something in the text.
    #[track_caller]
    pub fn until<T>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = found(self) {
                return result;
            }
            assert!(!self.closed, "the console closed before {what}: {}", self.text());
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}: {}", self.text());
            self.listen(Duration::from_millis(100));
        }
    }

    /// Listens until `text` was said.
    #[track_caller]
    pub fn until_text(&mut self, text: &str) {
        self.until(text, |c| c.text().contains(text).then_some(()));
    }

    /// Listens until the guest has beaten another `count` times.
    #[track_caller]
    pub fn until_beats(&mut self, count: usize) {
        let before = self.beats();
        self.until("heartbeats", |c| (c.beats() >= before + count).then_some(()));
    }

    /// Listens until nothing was said for `time`.
    #[track_caller]
    pub fn until_silent(&mut self, time: Duration) {
        let end = Instant::now() + PATIENCE;
        while self.listen(time) {
            assert!(Instant::now() < end, "it is never silent");
        }
    }

    pub fn press(&mut self, keys: &[u8]) {
        self.stream.write_all(keys).expect("the console takes keys");
    }

    /// Has a scribbler verify all its memory; answers its verdict.
    #[track_caller]
    pub fn verify(&mut self) -> String {
        // A guest that sets up its serial port drops what was typed before.
        self.until("a sign of life", |c| {
            let text = c.text();
            (text.contains("SCRIBBLER-READY") || text.contains("\nS t=")).then_some(())
        });
        // Older verdicts may still be in the scrollback.
        while self.listen(Duration::from_millis(1)) {}
        let old = sweeps(&self.text()).len();
        self.press(b"v");
        let end = |c: &Self| sweeps(&c.text()).get(old).cloned();
        self.until("a verdict", end)
    }

    /// As [`Self::verify`], which must find nothing wrong on all `pages`.
    #[track_caller]
    pub fn verify_clean(&mut self, pages: u64) {
        let verdict = self.verify();
        let wanted = format!("VERIFY ok pages={pages} errors=0 ");
        assert!(verdict.starts_with(&wanted), "{verdict}");
        assert!(!self.text().contains("MISMATCH"), "{}", self.text());
    }
}

/// The whole lines that are verdicts.
fn sweeps(text: &str) -> Vec<String> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter(|l| l.starts_with("VERIFY ")).map(str::to_owned).collect()
}
