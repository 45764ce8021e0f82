//! Watches the clocks.

use crate::{Outcome, number, say, sys};

/// `tick [MS] [COUNT]`: the three clocks, again and again.
pub fn run(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: tick [MS] [COUNT]";
    const CLOCKS: [i32; 3] = [sys::CLOCK_MONOTONIC, sys::CLOCK_REALTIME, sys::CLOCK_BOOTTIME];
    let pause = std::time::Duration::from_millis(number(args, 0, Some(1000), USAGE)?);
    let count = number(args, 1, Some(0), USAGE)?;
    let mut last = [i64::MIN; 3];
    for n in 1.. {
        let now = CLOCKS.map(sys::clock);
        for ((name, before), after) in ["mono", "real", "boot"].iter().zip(last).zip(now) {
            if after < before {
                say(&format!("TICK-BACKWARDS {n} {name} {before} -> {after}"));
            }
        }
        last = now;
        say(&format!("TICK {n} mono={} real={} boot={}", now[0], now[1], now[2]));
        if n == count {
            break;
        }
        std::thread::sleep(pause);
    }
    Ok(())
}
