//! A guest whose move failed is as fast as before, by its own count: nothing of the move stays on.

use std::time::Duration;

use crate::site::Site;
use crate::support::{Console, kvm};

/// As fast as it can, and tells of it often.
const GUEST: &str = "ws=16M,data=16M,rate=max,status=200ms,hb=5ms,poll=5ms";
const MEMORY: [&str; 4] = ["--memory", "64M", "--cpus", "1"];
const PAGES: u64 = (16 + 16) * 256;

/// Pages a second between each two of a scribbler's whole status lines, by its own clock.
fn rates(console: &Console) -> Vec<u64> {
    let text = console.text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let field = |line: &str, key: &str| -> Option<u64> {
        line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok())
    };
    let lines = whole.lines().filter(|line| line.starts_with("S t="));
    let told: Vec<(u64, u64)> =
        lines.filter_map(|line| Some((field(line, "t=")?, field(line, "pages=")?))).collect();
    let rate = |pair: &[(u64, u64)]| {
        let (time, pages) = (pair[1].0.checked_sub(pair[0].0)?, pair[1].1.checked_sub(pair[0].1)?);
        (time > 0).then(|| pages * 1000 / time)
    };
    told.windows(2).filter_map(rate).collect()
}

/// Listens until the guest has told of `count` more times, and answers its median rate in them.
#[track_caller]
fn median(console: &mut Console, count: usize) -> u64 {
    // What was said before does not count.
    while console.listen(Duration::from_millis(1)) {}
    let before = rates(console).len();
    let mut new = console.until("status lines", |c| {
        let all = rates(c);
        // One lies between what was and what is now.
        (all.len() > before + count).then(|| all[before + 1..].to_vec())
    });
    new.sort_unstable();
    new[new.len() / 2]
}

/// Listens until its rate, over a second, is as wanted.
#[track_caller]
fn until_rate(console: &mut Console, what: &str, wanted: impl Fn(u64) -> bool) {
    for _ in 0..40 {
        if wanted(median(console, 5)) {
            return;
        }
    }
    panic!("its rate never was {what}: {:?}", rates(console));
}

#[test]
fn a_guest_whose_move_was_cancelled_is_as_fast_as_before() {
    if !kvm() {
        return;
    }
    let site = Site::new();
    site.a.scribbler("web1", GUEST, &MEMORY);
    let mut console = site.a.assert_runs("web1");
    let before = median(&mut console, 10);
    // The scale: a guest that may run for a tenth of the time is seen to be slow.
    let slow = |rate: u64| rate < before / 3;
    let fast = |rate: u64| rate > before / 2;
    site.a.home.done(&["throttle", "web1", "10"]);
    until_rate(&mut console, "that of a slow guest", slow);
    site.a.home.done(&["throttle", "web1", "100"]);
    until_rate(&mut console, "that of a fast guest again", fast);

    for _ in 0..3 {
        // The log can be switched on again each time: it was let go.
        let id = site.a.begin("web1", &site.b, &["--bandwidth", "8MB", "--max-downtime", "1ms"]);
        site.a.until_copying(&id);
        let cancelled = site.a.home.json(&["cancel", "web1"]);
        assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
        assert_eq!(site.a.until_ended(&id)["outcome"], "kept");
        until_rate(&mut console, "that of before the move", fast);
    }
    println!("{before} pages a second before, {} after", median(&mut console, 10));
    console.verify_clean(PAGES);
    site.b.assert_empty();
}
