use proptest::prelude::*;

use super::Rng;
use super::*;
use crate::devices::virtio::testkit::Rig;

/// 0, 1, 2, … so that a test can tell which bytes went where.
struct Counter(u8);

impl Read for Counter {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for b in buf.iter_mut() {
            *b = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(buf.len())
    }
}

#[test]
fn fills_buffers_in_order_and_no_more_than_the_limit() {
    let mut rig = Rig::new(&[16]);
    let mut rng = Rng::new(Counter(0));
    rng.activate(rig.activation(0)).unwrap();
    rng.resume();
    let (a, b, c) = (rig.inp(3), rig.out(b"?"), rig.inp(5000));
    let head = rig.send(0, &[a, b, c]);
    assert_eq!(rig.queues[0].wait_used(1), [(head, 5003)]);
    assert_eq!(rig.bytes(a), [0, 1, 2]);
    let expected: Vec<u8> = (0..=255).cycle().skip(3).take(5000).collect();
    assert_eq!(rig.bytes(c), expected);

    let big = rig.inp(100_000);
    let head = rig.send(0, &[big]);
    assert_eq!(rig.queues[0].wait_used(1), [(head, 65536)]);
    assert!(rig.bytes(big)[65536..].iter().all(|b| *b == 0));
    assert!(rig.irqfd.clear());
    rng.drain().unwrap();
    rig.send(0, &[a]);
    assert_eq!(rng.queues()[0].1.next_avail, 2, "a parked device takes nothing");
}

#[test]
fn the_hosts_numbers_differ() {
    let mut rig = Rig::new(&[16]);
    let mut rng = Rng::from_host().unwrap();
    rng.activate(rig.activation(1 << 29)).unwrap();
    rng.resume();
    let (a, b) = (rig.inp(32), rig.inp(32));
    rig.send(0, &[a]);
    rig.send(0, &[b]);
    rig.queues[0].wait_used(2);
    assert_ne!(rig.bytes(a), rig.bytes(b));
    assert_ne!(rig.bytes(a), [0; 32]);
}

proptest! {
    /// Random rings and descriptors: no panic, and a reset mends the device.
    #[test]
    fn survives_hostile_rings(
        descs in prop::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..20), 16),
        near in any::<bool>(),
        heads in prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 0..20),
    ) {
        let mut rig = Rig::new(&[16]);
        let q = &mut rig.queues[0];
        for (i, (gpa, len, flags, next)) in descs.into_iter().enumerate() {
            let gpa = if near { gpa % (17 << 20) } else { gpa };
            // Not over the rings themselves: what the guest wrecks there is its own affair.
            let gpa = if gpa < (2 << 20) { gpa + (2 << 20) } else { gpa };
            q.write_desc(q.desc, u16::try_from(i).unwrap(), gpa, len, flags, next);
        }
        for head in heads {
            q.publish(head);
        }
        let mut rng = Rng::new(Counter(0));
        rng.activate(rig.activation(0)).unwrap();
        rng.resume();
        rng.drain().unwrap();
        rng.reset();
        let mut rig = Rig::new(&[16]);
        rng.activate(rig.activation(0)).unwrap();
        rng.resume();
        let buf = rig.inp(8);
        let head = rig.send(0, &[buf]);
        prop_assert_eq!(rig.queues[0].wait_used(1), [(head, 8)]);
    }
}
