//! The port and memory bus: which device answers at an address. It knows nothing of devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A device that answers reads and writes of its window.
pub trait BusDevice: Send {
    /// Fills `data` from `offset` within the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` at `offset` within the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Two devices want the same address.
#[derive(Debug, thiserror::Error)]
#[error("devices overlap on the bus at {base:#x}, length {len:#x}")]
pub struct Overlap {
    base: u64,
    len: u64,
}

struct Window {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Windows by base address.
#[derive(Default)]
pub struct Bus {
    windows: BTreeMap<u64, Window>,
}

impl Bus {
    /// Puts `device` at `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let end = base.checked_add(len).ok_or(Overlap { base, len })?;
        let before = self.windows.range(..end).next_back();
        if len == 0 || before.is_some_and(|(b, w)| b + w.len > base) {
            return Err(Overlap { base, len });
        }
        self.windows.insert(base, Window { len, device });
        Ok(())
    }

    /// Reads; `false` if nothing answers there, and then `data` is all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
            return true;
        }
        data.fill(0xFF);
        false
    }

    /// Writes; `false` if nothing answers there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
            return true;
        }
        false
    }

    /// The device whose window holds the whole access.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (base, window) = self.windows.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(len as u64)?;
        (end <= window.len).then_some((offset, &*window.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn dispatches_and_refuses_overlaps() {
        let mut bus = Bus::default();
        let dev = Arc::new(Mutex::new(Echo(vec![])));
        bus.insert(0x10, 0x10, dev.clone()).unwrap();
        for (base, len) in [(0x10, 1), (0x1F, 1), (0x8, 9), (0, 0x40), (0x15, 0x20), (0x40, 0)] {
            assert!(bus.insert(base, len, dev.clone()).is_err(), "{base:#x}+{len:#x}");
        }
        bus.insert(0x20, 0x10, dev.clone()).unwrap();
        bus.insert(0x0, 0x10, dev.clone()).unwrap();
        let mut b = [0; 2];
        assert!(bus.read(0x12, &mut b));
        assert_eq!(b, [2, 2]);
        assert!(!bus.read(0x2F, &mut b), "crosses the end of the window");
        assert_eq!(b, [0xFF, 0xFF]);
        assert!(!bus.read(0x30, &mut b));
        assert!(bus.write(0x1F, &[7]));
        assert_eq!(dev.lock().unwrap().0, [(0xF, vec![7])]);
    }
}
