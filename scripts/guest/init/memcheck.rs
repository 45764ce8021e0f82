//! Checks that memory holds what was written.

use crate::{MIB, Outcome, number, pattern, say};

/// `memcheck MB SEED ROUNDS [PAUSE_MS]`: every round checks all pages and rewrites
/// them with the next pattern; zero rounds means for ever.
pub fn run(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: memcheck MB SEED ROUNDS [PAUSE_MS]";
    const PAGE: usize = 512;
    let size = usize::try_from(number(args, 0, None, USAGE)?).map_err(|e| e.to_string())? * MIB;
    let seed = number(args, 1, None, USAGE)?;
    let rounds = number(args, 2, None, USAGE)?;
    let pause = std::time::Duration::from_millis(number(args, 3, Some(100), USAGE)?);

    // Fresh zero pages from the kernel, huge ones because init asked for them.
    let mut memory = vec![0; size / 8];
    let fill = |memory: &mut [u64], round: u64| {
        for (i, page) in (0..).zip(memory.chunks_mut(PAGE)) {
            pattern::fill(seed.wrapping_add(round << 32), i, page);
        }
    };
    fill(&mut memory, 0);
    say(&format!("MEM-FILLED {} MiB", size / MIB));
    for round in 0.. {
        for (i, page) in (0..).zip(memory.chunks(PAGE)) {
            if let Some(word) = pattern::differs(seed.wrapping_add(round << 32), i, page) {
                say(&format!("MEM-BAD round={round} page={i} word={word} value={:#x}", page[word]));
                return Err("memory does not hold what was written".into());
            }
        }
        say(&format!("MEM-OK {}", round + 1));
        if round + 1 == rounds {
            break;
        }
        fill(&mut memory, round + 1);
        std::thread::sleep(pause);
    }
    Ok(())
}
