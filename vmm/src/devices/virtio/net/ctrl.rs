//! Commands of the control queue (virtio 1.2, 5.1.6.5), decided without effects.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST,
};

/// `VIRTIO_NET_OK` and `VIRTIO_NET_ERR`, bytes on this queue.
const OK: u8 = 0;
/// See `OK`.
const ERR: u8 = 1;

/// Bytes of a command that are looked at: class, command, first byte of its data.
pub const COMMAND_LEN: usize = 3;

/// What to do about a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing, but it is fine.
    Accept,
    /// The guest has announced itself: take the request back.
    AnnounceDone,
    /// The device does not know it.
    Refuse,
}

impl Verdict {
    /// The byte that the driver reads.
    pub fn ack(self) -> u8 {
        match self {
            Self::Accept | Self::AnnounceDone => OK,
            Self::Refuse => ERR,
        }
    }
}

/// Decides on `class, command, data…`. Receive modes and address tables are accepted without
/// effect: filtering is best effort (5.1.6.5.1, 5.1.6.5.2) and the tap passes everything.
pub fn decide(command: &[u8]) -> Verdict {
    let [class, command, data @ ..] = command else { return Verdict::Refuse };
    match (u32::from(*class), u32::from(*command), data) {
        (VIRTIO_NET_CTRL_RX, 0..=VIRTIO_NET_CTRL_RX_NOBCAST, [0 | 1, ..])
        | (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, _) => Verdict::Accept,
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, _) => Verdict::AnnounceDone,
        _ => Verdict::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_receive_modes_and_the_announcement() {
        for mode in 0..6 {
            assert_eq!(decide(&[0, mode, 1]), Verdict::Accept);
        }
        assert_eq!(decide(&[0, 6, 1]), Verdict::Refuse);
        assert_eq!(decide(&[0, 0, 2]), Verdict::Refuse);
        assert_eq!(decide(&[0, 0]), Verdict::Refuse);
        assert_eq!(decide(&[1, 0]), Verdict::Accept);
        assert_eq!(decide(&[1, 1, 0]), Verdict::Refuse, "the address does not change");
        assert_eq!(decide(&[3, 0]), Verdict::AnnounceDone);
        assert_eq!(decide(&[3]), Verdict::Refuse);
        assert_eq!(decide(&[]), Verdict::Refuse);
        assert_eq!((Verdict::Accept.ack(), Verdict::Refuse.ack()), (0, 1));
    }
}
