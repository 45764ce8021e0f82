//! How fast one core tests for zeros, digests, compresses and stamps. Run it in release:
//! `cargo run --release -p migrate-engine --example codec_speed`.

use std::hint::black_box;
use std::time::Instant;

use migrate_engine::codec::block::{Codec, decode, encode, encoded_bound};
use migrate_engine::codec::{Batch, Class, DigestKey, classify, is_zero};
use migrate_engine::track::{Epoch, EpochMap, UnitSet};
use migrate_engine::unit::Layout;
use migrate_engine::wire::data::{Place, put_units};
use migrate_engine::wire::{DataFrame, DataHeader, Version};

const PAGE: usize = 4096;
const TOTAL: usize = 64 << 20;

/// Best of five runs of `work` over `bytes` bytes, in GB/s.
fn best(name: &str, bytes: usize, mut work: impl FnMut()) {
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let speed = bytes as f64 / least / 1e9;
    let speed = if bytes == 0 { String::new() } else { format!("{speed:8.2} GB/s") };
    println!("{name:44} {:10.3} ms {speed}", least * 1e3);
}

/// Half noise, half text, as memory of programs looks to LZ4.
fn mixed() -> Vec<u8> {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random.to_be_bytes()[0]
    };
    let words: Vec<[u8; 8]> = (0..256).map(|_| std::array::from_fn(|_| next())).collect();
    let mut bytes = Vec::with_capacity(TOTAL);
    while bytes.len() < TOTAL {
        if (bytes.len() / 64) % 2 == 0 {
            bytes.extend((0..64).map(|_| next()));
        } else {
            (0..8).for_each(|_| bytes.extend(words[usize::from(next() % 32)]));
        }
    }
    bytes
}

fn pages(name: &str, data: &[u8], mut work: impl FnMut(usize, &[u8])) {
    best(&format!("{name}, from memory"), data.len(), || {
        data.chunks(PAGE).enumerate().for_each(|(n, page)| work(n, page));
    });
    let hot = &data[..16 * PAGE];
    best(&format!("{name}, cache-hot"), data.len(), || {
        for _ in 0..data.len() / hot.len() {
            hot.chunks(PAGE).enumerate().for_each(|(n, page)| work(n, page));
        }
    });
}

fn codec(data: &[u8]) {
    for batch in [PAGE, 16 * PAGE] {
        let mut out = vec![0; encoded_bound(batch)];
        let mut blocks = Vec::new();
        best(&format!("lz4 encode, {batch} bytes"), data.len(), || {
            blocks.clear();
            for raw in data.chunks(batch) {
                let Ok((codec, len)) = encode(Codec::Lz4, raw, &mut out) else { return };
                blocks.push((codec, out[..len].to_vec()));
            }
        });
        let encoded: usize = blocks.iter().map(|(_, b)| b.len()).sum();
        println!("    {} % of the size", encoded * 100 / data.len());
        best(&format!("lz4 decode, {batch} bytes"), data.len(), || {
            for (codec, block) in &blocks {
                black_box(decode(*codec, block, &mut out[..batch]).is_ok());
            }
        });
    }
}

/// From a page in memory to a frame, and from the frame to a page in memory, with all checks.
fn frames(data: &[u8]) {
    let Ok(layout) = Layout::of_bytes(4096, data.len() as u64) else { return };
    let (version, key) = (Version::V1, DigestKey::new([42; 32]));
    let mut frames: Vec<Vec<u8>> = vec![Vec::new(); data.len() / (16 * PAGE)];
    let mut batch = Batch::new(&layout);
    best("frame: copy, zero test, digest, checksum", data.len(), || {
        let batches = layout.whole().parts(16).zip(&mut frames).zip(data.chunks(16 * PAGE));
        for ((run, frame), content) in batches {
            batch.clear();
            for (unit, page) in run.iter().zip(content.chunks(PAGE)) {
                let Ok(slot) = batch.slot() else { return };
                slot.copy_from_slice(page);
                let (class, _) = classify(&key, unit, slot, None);
                if class == Class::Data {
                    let _ = batch.keep(unit);
                }
            }
            let place = Place { region: 0, round: 0, sequence: 0 };
            let _ = put_units(version, place, &batch, Codec::Raw, frame);
        }
    });
    let (mut scratch, mut memory) = (vec![0; 1 << 20], vec![0; data.len()]);
    best("place: checksum, copy, digest, copy", data.len(), || {
        for frame in &frames {
            let Some((header, body)) = frame.split_first_chunk() else { return };
            let Ok(header) = DataHeader::decode(version, header) else { return };
            let Ok(DataFrame::Units(units)) = DataFrame::decode(version, &header, body) else {
                return;
            };
            let placed = units.unpack(&layout, &mut scratch, |run, content| {
                for (unit, page) in run.iter().zip(content.chunks(PAGE)) {
                    black_box(key.digest(unit, page));
                }
                let at = usize::try_from(layout.offset(run.first())).unwrap_or(0);
                memory[at..at + content.len()].copy_from_slice(content);
            });
            black_box(placed.is_ok());
        }
    });
    assert!(memory == data, "pages arrive as they were");
}

fn tracking() {
    let Ok(layout) = Layout::new(4096, 16 << 20) else { return };
    let map = EpochMap::in_memory(layout);
    println!("64 GiB of pages:");
    best("  stamp all of it", 0, || {
        let _ = map.bump();
        map.stamp(layout.whole());
    });
    let _ = map.bump();
    best("  stamp 100,000 single pages", 0, || {
        for n in 0..100_000 {
            let Ok(run) = layout.run(n * 7919 % layout.units(), 1) else { return };
            map.stamp(run);
        }
    });
    let base = map.bump().unwrap_or(Epoch::BEFORE_ALL);
    best("  nothing changed since", 0, || {
        black_box(map.is_unchanged_since(base));
    });
    best("  changed since: 100,000 pages", 0, || {
        black_box(map.changed_since(Epoch::from_number(base.get() - 1)).len());
    });
    best("  take all runs of a full set, 16 at a time", 0, || {
        let (mut set, mut cursor) =
            (UnitSet::full(&layout), migrate_engine::track::Cursor::default());
        while let Some(run) = set.take_run(&mut cursor, 16) {
            black_box(run);
        }
    });
}

fn main() {
    let data = mixed();
    // Written, or it would be the kernel's one page of zeros everywhere.
    let zeros: Vec<u8> = (0..TOTAL).map(|_| black_box(0)).collect();
    pages("zero test of zeros", &zeros, |_, page| {
        black_box(is_zero(page));
    });
    let key = DigestKey::new([42; 32]);
    let Ok(layout) = Layout::new(4096, 1 << 20) else { return };
    pages("digest", &data, |n, page| {
        if let Ok(unit) = layout.unit(n as u64) {
            black_box(key.digest(unit, page));
        }
    });
    codec(&data);
    frames(&data);
    tracking();
}
