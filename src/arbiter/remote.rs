//! An arbiter behind an agent: a socket to it, which may be replaced by one to another agent. One
//! question at a time; an answer to an older one is not taken for that to a newer one.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Mutex, PoisonError};

use migrate_engine::handover::term::Stamp;
use migrate_engine::port::{Answer, Arbiter, Stands, Unanswered};
use migrate_engine::wire::GuestId;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::words::{Asked, Lines, Told, What, line};

/// The agent of one guest.
#[derive(Debug)]
pub struct Remote {
    /// Came since the last question.
    fresh: Mutex<Option<StdStream>>,
    line: tokio::sync::Mutex<Option<Line>>,
}

#[derive(Debug)]
struct Line {
    stream: UnixStream,
    lines: Lines,
    /// Number of the last question.
    last: u64,
    /// A question is not sent in whole.
    torn: bool,
}

impl Remote {
    /// The agent at the other end of `socket`.
    pub fn new(socket: StdStream) -> Self {
        Self { fresh: Mutex::new(Some(socket)), line: tokio::sync::Mutex::default() }
    }

    /// From the next question on another agent is asked.
    pub fn replace(&self, socket: StdStream) {
        *self.fresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    async fn ask(&self, what: What) -> Stands {
        let gone = |why: &dyn std::fmt::Display| {
            Unanswered(format!("the process that asks it for this guest is gone ({why})"))
        };
        let mut held = self.line.lock().await;
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(socket) = fresh {
            *held = Some(Line::new(socket).map_err(|e| gone(&e))?);
        }
        let Some(line) = held.as_mut() else { return Err(gone(&"another one is awaited")) };
        match line.ask(what).await {
            Ok(told) => told.stands(),
            Err(error) => {
                *held = None;
                Err(gone(&error))
            }
        }
    }
}

impl Line {
    fn new(socket: StdStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let stream = UnixStream::from_std(socket)?;
        Ok(Self { stream, lines: Lines::default(), last: 0, torn: false })
    }

    async fn ask(&mut self, what: What) -> io::Result<Told> {
        if self.torn {
            return Err(io::Error::other("it did not take a question in"));
        }
        self.last += 1;
        let asked = line(&Asked { id: self.last, what })?;
        self.torn = true;
        self.stream.write_all(&asked).await?;
        self.torn = false;
        loop {
            let told: Option<Told> = self.lines.next(&mut self.stream).await?;
            let told = told.ok_or(io::ErrorKind::UnexpectedEof)?;
            if told.id == self.last {
                return Ok(told);
            }
        }
    }
}

impl Arbiter for Remote {
    /// The agent knows no other guest than its own.
    fn read(&self, _guest: GuestId) -> Answer<'_> {
        Box::pin(self.ask(What::Read))
    }

    fn swap(&self, _guest: GuestId, expect: Option<Stamp>, want: Stamp) -> Answer<'_> {
        Box::pin(self.ask(What::swap(expect, want)))
    }
}
