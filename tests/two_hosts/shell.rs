//! The shell of a Linux guest on its console, wherever the guest is.

use std::time::{Duration, Instant};

use crate::site::Host;
use crate::support::{Console, eventually};

/// A guest whose kernel is emulated takes its time, and a busy host its own.
const PATIENCE: Duration = Duration::from_mins(5);

/// A guest's shell.
pub struct Shell {
    console: Console,
    /// Commands so far.
    marks: u32,
    /// How much of the console's text was looked at.
    seen: usize,
}

impl Shell {
    /// Waits until the guest, which is booting on `host`, has a shell.
    #[track_caller]
    pub fn booted(host: &Host, guest: &str) -> Self {
        let mut shell = Self { console: console(host, guest), marks: 0, seen: 0 };
        shell.wait("GUEST-READY");
        // Until the shell is there, the terminal echoes.
        shell.run("true");
        shell
    }

    /// The same shell, after its guest has gone to `host`.
    #[track_caller]
    pub fn moved(&mut self, host: &Host, guest: &str) {
        (self.console, self.seen) = (console(host, guest), 0);
    }

    /// Types a line.
    pub fn enter(&mut self, line: &str) {
        self.console.press(format!("{line}\n").as_bytes());
    }

    /// Runs a command that must succeed; answers its output, without dots, which are a heartbeat
    /// to [`Console`].
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        self.marks += 1;
        // The quotes keep an echo of what is typed from looking like the answer.
        self.enter(&format!("{command}; echo mark''{}= $?", self.marks));
        let output = self.wait(&format!("mark{}= ", self.marks));
        let status = self.wait("\n");
        assert_eq!(status.trim(), "0", "{command}: {output}");
        output
    }

    /// Waits for `text` behind what was waited for before; answers what stood between.
    #[track_caller]
    fn wait(&mut self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.console.text();
            if let Some(at) = said[self.seen..].find(text) {
                let between = said[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return between;
            }
            let waiting = Instant::now() < end && !self.console.closed();
            assert!(waiting, "not within {PATIENCE:?}: {text}: {said}");
            self.console.listen(Duration::from_millis(100));
        }
    }
}

#[track_caller]
fn console(host: &Host, guest: &str) -> Console {
    eventually("its console", || {
        host.home.dirs().guest(guest).console().exists().then(|| host.home.console(guest))
    })
}
