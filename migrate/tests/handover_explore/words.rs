//! Words in flight that can change nothing any more are forgotten, or there would be more worlds
//! than there are differences between them.

use migrate_engine::handover::daemon::Acting;
use migrate_engine::handover::journal::Record;
use migrate_engine::handover::message::{Body, SourceSays, ToSource, ToTarget};
use migrate_engine::handover::term::Switch;

use crate::world::{Host, Packet, Party, World, receiver, sender};

/// Whether nobody on `host` will ever again be about `switch`: its journal has settled it, and
/// never opens it again.
fn is_over(host: &Host, switch: &Switch) -> bool {
    let about = match &host.party {
        Party::Nobody => false,
        Party::Process(process) => process.switch().is_some_and(|s| s.id == switch.id),
        Party::Daemon(keeper, _) => *keeper.acting() != Acting::Settled,
    };
    let undecided = matches!(host.ledger.now(), Some(Record::Ceded(s)) if s.id == switch.id);
    !about && !undecided && host.ledger.ended(switch.id).is_some()
}

/// Whether whoever hears it may answer from the journal.
fn asks(packet: &Packet) -> bool {
    matches!(
        packet.message.body,
        Body::ToSource(ToSource::Ask)
            | Body::ToTarget(ToTarget::Probe(_) | ToTarget::Says(SourceSays::Ceded))
    )
}

impl World {
    pub fn forget_words(&mut self) {
        let idle = |p: &Packet| {
            let (message, hosts) = (&p.message, &self.hosts);
            is_over(&hosts[receiver(message)], &message.switch)
                && (!asks(p) || is_over(&hosts[sender(message)], &message.switch))
        };
        if self.net.iter().any(idle) {
            let kept = self.net.iter().filter(|p| !idle(p)).copied().collect();
            *self.net() = kept;
        }
    }
}
