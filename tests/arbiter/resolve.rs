//! An operator's word on a guest whose other host is gone: the arbiter gives the right of a host that
//! is stated to be off, and nothing to that host when it returns.

use migrate_engine::handover::journal::Record;
use nix::sys::signal::Signal;

use crate::etcd::{Etcd, there};
use crate::moves::{GUEST, PAGES, id, site, stands, start};
use crate::rig::{dies_after, error, offer, reboot};
use crate::support::kvm;

#[test]
fn the_right_of_a_fenced_host_is_taken_and_stays_taken() {
    if !kvm() || !there() {
        return;
    }
    let etcd = Etcd::new();
    let mut site = site(&etcd.line(), &etcd.line());
    start(&site.a);
    site.a.home.done(&["stop", "web1"]);
    assert_eq!(stands(&etcd).unwrap().1, id(&site.a));
    // Both die in the middle of a move, and only its destination comes back.
    site.b.end_daemon(Signal::SIGKILL);
    site.a.end_daemon(Signal::SIGKILL);
    let switch = offer(&site.a, &site.b, GUEST);
    dies_after(&site.a, GUEST, "beta", &[Record::Offered(switch)]);
    dies_after(&site.b, GUEST, "alpha", &[Record::Receiving(switch)]);
    reboot(&mut site.b);
    let run = ["resolve", "web1", "--run-here", "--fenced", "alpha"];
    let no = error(&site.b.home, &run);
    assert_eq!(no["code"], "in-doubt", "{no}");
    assert_eq!(stands(&etcd).unwrap().1, id(&site.a), "nothing was taken in vain");
    let done = site.b.home.done(&[&run[..], &["--lose-later-work"]].concat());
    assert_eq!(done["guest"]["state"], "running");
    let (term, host) = stands(&etcd).unwrap();
    assert_eq!(host, id(&site.b));
    assert!(term > switch.term.get(), "{term}");
    site.b.assert_runs("web1");
    // The host that was said to be off is not let start it, whatever its journal says.
    reboot(&mut site.a);
    let no = error(&site.a.home, &["start", "web1"]);
    let code = no["code"].as_str().unwrap();
    assert!(["in-doubt", "moved-away", "superseded"].contains(&code), "{no}");
    site.b.assert_runs("web1").verify_clean(PAGES);
}
