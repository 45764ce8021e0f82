//! A guest that takes seconds to copy: time enough to do something to it.

use crate::site::Site;
use crate::support::{eventually, pid_of};

/// At 8 MB/s a guest of this size copies for seconds.
pub const SLOW: [&str; 4] = ["--bandwidth", "8MB", "--max-downtime", "5s"];
/// What it writes to, of [`MEMORY`].
pub const KIND: &str = "ws=8M,data=24M,rate=500,hb=5ms,poll=5ms";
/// Its size.
pub const MEMORY: [&str; 4] = ["--memory", "64M", "--cpus", "2"];
/// Pages that it verifies.
pub const PAGES: u64 = (24 + 8) * 256;

/// The process on the second host that receives it.
#[track_caller]
pub fn receiver(site: &Site) -> i32 {
    eventually("a receiver", || {
        let shown = site.b.home.json(&["show", "web1"]);
        (shown.code == Some(0)).then(|| pid_of(&shown.json()))
    })
}
