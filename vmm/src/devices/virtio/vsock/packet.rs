//! The packet header of virtio-vsock (virtio 1.2, 5.10.6) as plain data.
//!
//! It is read once into a value, so that the guest cannot change it after it was checked, and
//! wherever the driver puts it: descriptors have no meaning for the framing (2.7.4).

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// The host's context id.
pub const HOST_CID: u64 = 2;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const STREAM: u16 = 1;
/// Shutdown flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Shutdown flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both shutdown flags.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Operations (5.10.6).
pub mod op {
    /// Connect.
    pub const REQUEST: u16 = 1;
    /// Connected.
    pub const RESPONSE: u16 = 2;
    /// Refused, or gone.
    pub const RST: u16 = 3;
    /// No more in one or both directions.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Room in the sender's buffer.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a credit update.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Kind of socket.
    pub kind: u16,
    /// See [`op`].
    pub op: u16,
    /// For [`op::SHUTDOWN`].
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of it, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header. Any bytes are one.
    pub fn decode(raw: &[u8; HEADER_LEN]) -> Self {
        let mut at = raw.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut at)),
            dst_cid: u64::from_le_bytes(take(&mut at)),
            src_port: u32::from_le_bytes(take(&mut at)),
            dst_port: u32::from_le_bytes(take(&mut at)),
            len: u32::from_le_bytes(take(&mut at)),
            kind: u16::from_le_bytes(take(&mut at)),
            op: u16::from_le_bytes(take(&mut at)),
            flags: u32::from_le_bytes(take(&mut at)),
            buf_alloc: u32::from_le_bytes(take(&mut at)),
            fwd_cnt: u32::from_le_bytes(take(&mut at)),
        }
    }

    /// The header as it lies in memory.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        raw[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        raw[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        raw[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        raw[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        raw[24..28].copy_from_slice(&self.len.to_le_bytes());
        raw[28..30].copy_from_slice(&self.kind.to_le_bytes());
        raw[30..32].copy_from_slice(&self.op.to_le_bytes());
        raw[32..36].copy_from_slice(&self.flags.to_le_bytes());
        raw[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        raw[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        raw
    }

    /// The answer to a packet that belongs to no connection.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Takes the next `N` bytes; zeroes at the end, which a header's fixed length rules out.
fn take<const N: usize>(from: &mut &[u8]) -> [u8; N] {
    let Some((head, rest)) = from.split_first_chunk::<N>() else { return [0; N] };
    *from = rest;
    *head
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::devices::virtio::testkit::Rig;
    use proptest::prelude::*;
    use virtio_queue::QueueT;
    use virtio_vsock::packet::VsockPacket;

    #[test]
    fn layout_is_the_standards() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: 1,
            op: op::RW,
            flags: 0x4142_4344,
            buf_alloc: 0x5152_5354,
            fwd_cnt: 0x6162_6364,
        };
        let golden = [
            8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23,
            0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 1, 0, 5, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53,
            0x52, 0x51, 0x64, 0x63, 0x62, 0x61,
        ];
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(&golden), header);
    }

    proptest! {
        /// Against somebody else's reading of the standard. A header without data: with it the
        /// crate takes only some layouts of descriptors.
        #[test]
        fn agrees_with_the_crate(mut bytes in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
            bytes[24..28].fill(0);
            let ours = Header::decode(bytes.as_slice().try_into().unwrap());
            prop_assert_eq!(&ours.encode()[..], &bytes[..]);
            let mut rig = Rig::new(&[4]);
            let buf = rig.out(&bytes);
            rig.queues[0].submit(&[buf]).unwrap();
            let mem = rig.ram.mem();
            let mut chain = rig.queues[0].device_end(false).pop_descriptor_chain(mem).unwrap();
            let theirs = VsockPacket::from_tx_virtq_chain(mem, &mut chain, 0).unwrap();
            prop_assert_eq!((ours.src_cid, ours.dst_cid), (theirs.src_cid(), theirs.dst_cid()));
            prop_assert_eq!((ours.src_port, ours.dst_port), (theirs.src_port(), theirs.dst_port()));
            prop_assert_eq!((ours.kind, ours.op), (theirs.type_(), theirs.op()));
            prop_assert_eq!(ours.flags, theirs.flags());
            prop_assert_eq!((ours.buf_alloc, ours.fwd_cnt), (theirs.buf_alloc(), theirs.fwd_cnt()));
        }
    }
}
