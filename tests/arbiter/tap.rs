//! A relay between hosts and their etcd that sees a word go by and acts just before it is passed
//! on: so a test meets the very moment in which a right is asked for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

type Act = Box<dyn FnOnce() + Send>;
type Trap = Arc<Mutex<Option<(Vec<u8>, Act)>>>;

/// The relay. It ends with the test program.
pub struct Tap {
    port: u16,
    trap: Trap,
}

impl Tap {
    /// In front of the server at this port.
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let trap = Trap::default();
        let set = Arc::clone(&trap);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { continue };
                let trap = Arc::clone(&set);
                thread::spawn(move || pump(from, to, Some(&trap)));
                thread::spawn(move || pump(server, client, None));
            }
        });
        Self { port, trap }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Acts once, before bytes with this word in them go on to the server.
    pub fn when(&self, word: &str, act: impl FnOnce() + Send + 'static) {
        *self.trap.lock().unwrap() = Some((word.as_bytes().to_vec(), Box::new(act)));
    }

    /// It has acted.
    pub fn has_sprung(&self) -> bool {
        self.trap.lock().unwrap().is_none()
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, trap: Option<&Trap>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 {
            break;
        }
        if let Some(trap) = trap {
            let mut set = trap.lock().unwrap();
            let sees = |(word, _): &(Vec<u8>, Act)| {
                buffer[..n].windows(word.len()).any(|part| part == word.as_slice())
            };
            if set.as_ref().is_some_and(sees)
                && let Some((_, act)) = set.take()
            {
                act();
            }
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
