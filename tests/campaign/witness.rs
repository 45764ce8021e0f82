//! The outside witness. It reads the serial console of every process that may run the guest, one
//! connection to each, and nothing else. The guest numbers its heartbeats in its own memory: two
//! processes that both ran it from one state have said the same numbers, and one that ran from an
//! older state has gone back.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The heartbeat.
const BEAT: u8 = b'.';

/// What one process said.
pub struct Stream {
    /// Whose: 0 or 1.
    pub host: usize,
    socket: UnixStream,
    line: Vec<u8>,
    in_line: bool,
    /// Heartbeats since the last number, or from the beginning.
    beats: u64,
    /// First and last number, once one is known.
    pub numbers: Option<(u64, u64)>,
    /// Verdicts of the guest on its memory.
    pub verdicts: Vec<String>,
    /// Something that no guest that is well says.
    pub trouble: Vec<String>,
    pub closed: bool,
    inode: u64,
}

impl Stream {
    fn read(&mut self) {
        let mut buffer = [0; 16_384];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return self.closed = true,
                Ok(len) => buffer[..len].iter().for_each(|byte| self.take(*byte)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.closed = true,
            }
        }
    }

    /// Lines begin and end with a line feed; heartbeats stand between them.
    fn take(&mut self, byte: u8) {
        match (self.in_line, byte) {
            (true, b'\n') if !self.line.is_empty() => {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                self.in_line = false;
                self.said(&line);
            }
            (true, BEAT) if self.line.is_empty() => {
                self.in_line = false;
                self.beat();
            }
            (_, b'\n') => self.in_line = true,
            (true, byte) => self.line.push(byte),
            (false, BEAT) => self.beat(),
            // It began in the middle of a line.
            (false, byte) => {
                self.in_line = true;
                self.line.push(byte);
            }
        }
    }

    fn beat(&mut self) {
        match &mut self.numbers {
            Some((_, last)) => *last += 1,
            None => self.beats += 1,
        }
    }

    fn said(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("S t=") {
            let words: BTreeMap<&str, &str> =
                rest.split(' ').filter_map(|word| word.split_once('=')).collect();
            let number = |key| words.get(key).and_then(|n| n.parse::<u64>().ok());
            let Some(number_now) = number("hb") else {
                // The process was killed, or began, in the middle of it.
                return;
            };
            if number("errors").is_some_and(|n| n > 0) {
                self.trouble.push(format!("the guest found errors: {line}"));
            }
            match self.numbers {
                None => {
                    let first = (number_now + 1).saturating_sub(self.beats);
                    self.numbers = Some((first, number_now));
                }
                Some((_, last)) if last != number_now => {
                    let what = "heard to the number";
                    self.trouble.push(format!("{what} {last}, and then the guest says: {line}"));
                }
                Some(_) => {}
            }
        } else if line.starts_with("VERIFY ") {
            self.verdicts.push(line.to_owned());
        } else if line.starts_with("MISMATCH") || line.starts_with("SCRIBBLER-E") {
            self.trouble.push(line.to_owned());
        }
    }

    /// Has the guest look at all its memory.
    pub fn press_verify(&mut self) -> bool {
        self.socket.write_all(b"v").is_ok()
    }

    fn name(&self) -> String {
        let numbers = self.numbers.map_or("no number".to_owned(), |(a, b)| format!("{a}..={b}"));
        format!("host {}: {numbers}", self.host)
    }
}

/// Hears one guest, wherever it is.
#[derive(Default)]
pub struct Witness {
    pub streams: Vec<Stream>,
}

impl Witness {
    /// Connects to whatever is new, and reads whatever was said.
    pub fn look(&mut self, consoles: [&Path; 2]) {
        for (host, path) in consoles.into_iter().enumerate() {
            let Ok(found) = std::fs::metadata(path) else { continue };
            let inode = found.ino();
            let known = |s: &Stream| s.host == host && s.inode == inode && !s.closed;
            if self.streams.iter().any(known) {
                continue;
            }
            let Ok(socket) = UnixStream::connect(path) else { continue };
            if socket.set_nonblocking(true).is_err() {
                continue;
            }
            self.streams.push(Stream {
                host,
                socket,
                line: Vec::new(),
                in_line: false,
                beats: 0,
                numbers: None,
                verdicts: Vec::new(),
                trouble: Vec::new(),
                closed: false,
                inode,
            });
        }
        self.streams.iter_mut().filter(|s| !s.closed).for_each(Stream::read);
    }

    /// The process that is heard at a host.
    pub fn at(&mut self, host: usize) -> Option<&mut Stream> {
        self.streams.iter_mut().rev().find(|s| s.host == host && !s.closed)
    }

    /// What must not be.
    pub fn findings(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for stream in &self.streams {
            found.extend(stream.trouble.iter().map(|t| format!("{}: {t}", stream.name())));
        }
        let heard: Vec<(&Stream, u64, u64)> =
            self.streams.iter().filter_map(|s| s.numbers.map(|(a, b)| (s, a, b))).collect();
        for (at, (one, first, last)) in heard.iter().enumerate() {
            for (two, other_first, other_last) in &heard[at + 1..] {
                if first <= other_last
                    && other_first <= last
                    && first <= last
                    && other_first <= other_last
                {
                    let (one, two) = (one.name(), two.name());
                    found.push(format!("DOUBLE RUN: {one} and {two} said the same heartbeats"));
                }
            }
        }
        found
    }

    /// What is known of what was heard, for people.
    pub fn summary(&self) -> String {
        self.streams.iter().map(Stream::name).collect::<Vec<_>>().join("; ")
    }

    /// Forgets what cannot speak any more, but for the last ones.
    pub fn forget(&mut self) {
        while self.streams.len() > 6 && self.streams[0].closed {
            self.streams.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(host: usize, said: &str) -> Stream {
        let (socket, mut theirs) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        theirs.write_all(said.as_bytes()).unwrap();
        let (line, beats) = (Vec::new(), 0);
        let mut stream = Stream {
            host,
            socket,
            line,
            in_line: false,
            beats,
            numbers: None,
            verdicts: Vec::new(),
            trouble: Vec::new(),
            closed: false,
            inode: 0,
        };
        stream.read();
        stream
    }

    fn findings(streams: Vec<Stream>) -> Vec<String> {
        Witness { streams }.findings()
    }

    #[test]
    fn numbers_go_on_from_process_to_process() {
        let one = stream(0, "..\nS t=1 errors=0 hb=12\n...");
        assert_eq!(one.numbers, Some((11, 15)));
        let two = stream(1, ".\nS t=2 errors=0 hb=16\n\nVERIFY ok pages=3 errors=0 sweep=1\n..");
        assert_eq!((two.numbers, two.verdicts.len()), (Some((16, 18)), 1));
        assert_eq!(findings(vec![one, two]), [""; 0]);
    }

    #[test]
    fn a_number_that_two_said_is_a_double_run_and_so_is_one_that_went_back() {
        let one = || stream(0, "..\nS t=1 errors=0 hb=12\n...");
        let forked = stream(1, ".\nS t=2 errors=0 hb=15\n.");
        assert!(findings(vec![one(), forked])[0].starts_with("DOUBLE RUN"));
        let older = stream(1, "..\nS t=0 errors=0 hb=3\n..........");
        assert!(findings(vec![one(), older])[0].starts_with("DOUBLE RUN"));
    }

    #[test]
    fn a_number_that_is_missing_within_a_process_is_noticed() {
        let one = stream(0, "\nS t=1 errors=0 hb=12\n..\nS t=2 errors=0 hb=15\n");
        assert_eq!(findings(vec![one]).len(), 1);
        let bad = stream(0, "\nS t=1 errors=2 hb=12\n..\nMISMATCH page=1\n");
        assert_eq!(findings(vec![bad]).len(), 2);
    }
}
