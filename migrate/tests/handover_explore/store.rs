//! Worlds in few bytes: each part of a world that is new gets a number, and a world is the numbers
//! of its parts. Exact; nothing is only hashed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::rc::Rc;

use crate::world::{Host, PLACES, Packet, Rest, World};

/// The numbers of a world's parts.
pub type Key = [u32; PLACES + 2];

/// Fast, and no defence against anybody.
#[derive(Default)]
pub struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.mix(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    fn write_u128(&mut self, n: u128) {
        let bytes = n.to_le_bytes();
        self.write(&bytes);
    }
}

type Fast = BuildHasherDefault<Mixer>;

/// Numbers for values.
struct Numbered<T> {
    numbers: HashMap<Rc<T>, u32, Fast>,
    values: Vec<Rc<T>>,
}

impl<T: Eq + Hash> Numbered<T> {
    fn new() -> Self {
        Self { numbers: HashMap::default(), values: vec![] }
    }

    fn number(&mut self, value: &Rc<T>) -> u32 {
        if let Some(known) = self.numbers.get(value) {
            return *known;
        }
        let fresh = u32::try_from(self.values.len()).unwrap();
        self.numbers.insert(Rc::clone(value), fresh);
        self.values.push(Rc::clone(value));
        fresh
    }

    fn find(&self, value: &Rc<T>) -> Option<u32> {
        self.numbers.get(value).copied()
    }

    fn value(&self, number: u32) -> &Rc<T> {
        &self.values[number as usize]
    }
}

/// All parts and all worlds that were seen.
pub struct Store {
    hosts: Numbered<Host>,
    nets: Numbered<Vec<Packet>>,
    rests: Numbered<Rest>,
    worlds: Vec<Key>,
    /// Open addressing: numbers of worlds plus one.
    table: Vec<u32>,
}

impl Store {
    pub fn new() -> Self {
        Self {
            hosts: Numbered::new(),
            nets: Numbered::new(),
            rests: Numbered::new(),
            worlds: vec![],
            table: vec![0; 1 << 12],
        }
    }

    pub fn len(&self) -> usize {
        self.worlds.len()
    }

    pub fn world(&self, number: usize) -> World {
        let key = self.worlds[number];
        World {
            hosts: std::array::from_fn(|at| Rc::clone(self.hosts.value(key[at]))),
            net: Rc::clone(self.nets.value(key[PLACES])),
            rest: Rc::clone(self.rests.value(key[PLACES + 1])),
        }
    }

    /// The number of a world, and whether it is new. Most of its parts are those of `before`.
    pub fn number(&mut self, world: &World, before: usize) -> (usize, bool) {
        let old = self.worlds.get(before).copied();
        let mut key = [0; PLACES + 2];
        for at in 0..PLACES {
            key[at] = match old {
                Some(old) if Rc::ptr_eq(self.hosts.value(old[at]), &world.hosts[at]) => old[at],
                _ => self.hosts.number(&world.hosts[at]),
            };
        }
        key[PLACES] = match old {
            Some(old) if Rc::ptr_eq(self.nets.value(old[PLACES]), &world.net) => old[PLACES],
            _ => self.nets.number(&world.net),
        };
        key[PLACES + 1] = match old {
            Some(old) if Rc::ptr_eq(self.rests.value(old[PLACES + 1]), &world.rest) => {
                old[PLACES + 1]
            }
            _ => self.rests.number(&world.rest),
        };
        self.insert(key)
    }

    /// The number of a world that was seen.
    pub fn find(&self, world: &World) -> Option<usize> {
        let mut key = [0; PLACES + 2];
        for (place, host) in key.iter_mut().zip(&world.hosts) {
            *place = self.hosts.find(host)?;
        }
        key[PLACES] = self.nets.find(&world.net)?;
        key[PLACES + 1] = self.rests.find(&world.rest)?;
        let slot = self.slot(&key);
        (self.table[slot] as usize).checked_sub(1)
    }

    /// Where `key` stands in the table, or would.
    fn slot(&self, key: &Key) -> usize {
        let mut mixer = Mixer::default();
        for n in key {
            mixer.write_u32(*n);
        }
        let mask = self.table.len() - 1;
        let mut slot = usize::try_from(mixer.finish() & mask as u64).unwrap();
        while self.table[slot] != 0 && self.worlds[self.table[slot] as usize - 1] != *key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, key: Key) -> (usize, bool) {
        let slot = self.slot(&key);
        if let Some(known) = (self.table[slot] as usize).checked_sub(1) {
            return (known, false);
        }
        let number = self.worlds.len();
        self.worlds.push(key);
        self.table[slot] = u32::try_from(number + 1).unwrap();
        if self.worlds.len() * 2 > self.table.len() {
            self.table = vec![0; self.table.len() * 2];
            for number in 0..self.worlds.len() {
                let slot = self.slot(&self.worlds[number]);
                self.table[slot] = u32::try_from(number + 1).unwrap();
            }
        }
        (number, true)
    }
}
