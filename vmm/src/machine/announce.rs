//! Says again and again for about a second where the guest is now. It sends nothing itself and
//! decides only about time; whether the machine may be heard is the card's matter.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::devices::virtio::net::{Announced, Announcer};

/// Waits before each announcement, in milliseconds: the first at once, then rarer and rarer, for
/// frames get lost while switches and links settle.
const GAPS_MS: [u64; 6] = [0, 50, 150, 250, 350, 450];

/// Announces on all cards, on a thread of its own that ends by itself, early if the cards are
/// gone.
pub fn start(announcers: Arc<[Announcer]>) -> io::Result<()> {
    if announcers.is_empty() {
        return Ok(());
    }
    let work = move || run(&announcers);
    std::thread::Builder::new().name("announce".into()).spawn(work).map(drop)
}

fn run(announcers: &[Announcer]) {
    for gap in GAPS_MS {
        std::thread::sleep(Duration::from_millis(gap));
        let mut gone = true;
        for announcer in announcers {
            match announcer.announce() {
                Ok(said) => gone &= said == Announced::Gone,
                Err(error) => {
                    gone = false;
                    tracing::warn!(%error, "an announcement to the network was not sent");
                }
            }
        }
        if gone {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_backs_off_and_ends() {
        assert!(GAPS_MS.is_sorted() && GAPS_MS[0] == 0);
        assert!((1000..2000).contains(&GAPS_MS.iter().sum::<u64>()));
    }
}
