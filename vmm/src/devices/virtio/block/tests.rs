#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "test patterns and figures"
)]

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::backend::GuestSlice;
use super::*;
use crate::devices::bus::BusDevice;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testkit::{Buf, Rig, turn_on};
use crate::eventfd::EventFd;
use crate::memory::layout::PAGE_SIZE;

const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
const EVENT_IDX: u64 = 1 << 29;

/// A disk in a file of its own.
struct Image {
    _dir: TempDir,
    path: PathBuf,
}

impl Image {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Self { _dir: dir, path }
    }

    fn spec(&self, direct: bool) -> Option<BlockSpec> {
        let file = match open_disk(&self.path, false, direct) {
            Ok(file) => file,
            Err(DiskOpenError::DirectUnsupported(path)) => {
                eprintln!("SKIPPED: no direct I/O at {}", path.display());
                return None;
            }
            Err(e) => panic!("{e}"),
        };
        let serial = "disk-0".to_owned();
        let (read_only, discard, queues, observer) = (false, true, 1, None);
        Some(BlockSpec { file, read_only, direct, discard, serial, queues, observer })
    }
}

/// A device that is on, and its driver.
struct Bed {
    rig: Rig,
    block: Block,
}

impl Bed {
    fn new(mut block: Block, features: u64) -> Self {
        let rig = Rig::new(&[256]);
        block.activate(rig.activation(features)).unwrap();
        block.resume();
        Self { rig, block }
    }

    /// Lays `data` out in pieces that end at `cuts`, each at an odd place of memory.
    fn scatter_out(&mut self, data: &[u8], cuts: &[usize], odd: u64) -> Vec<Buf> {
        let mut bufs = Vec::new();
        for piece in cut(data.len(), cuts) {
            let gpa = self.rig.arena.take((piece.len() as u64) + odd, 512) + odd;
            self.rig.queues[0].put(gpa, &data[piece.clone()]);
            bufs.push(Buf::Out(gpa, u32::try_from(piece.len()).unwrap()));
        }
        bufs
    }

    fn scatter_in(&mut self, len: usize, cuts: &[usize], odd: u64) -> Vec<Buf> {
        let mut bufs = Vec::new();
        for piece in cut(len, cuts) {
            let gpa = self.rig.arena.take((piece.len() as u64) + odd, 512) + odd;
            self.rig.queues[0].put(gpa, &vec![0xEE; piece.len()]);
            bufs.push(Buf::In(gpa, u32::try_from(piece.len()).unwrap()));
        }
        bufs
    }

    /// One request with the buffers cut at will: status, data read, length reported.
    fn request(&mut self, r: &Req, shape: &Shape) -> (u8, Vec<u8>, u32) {
        let mut out = header(r.kind, r.sector).to_vec();
        out.extend(&r.data);
        let mut bufs = self.scatter_out(&out, &shape.out_cuts, shape.odd);
        let inp = self.scatter_in(r.read + 1, &shape.in_cuts, shape.odd);
        bufs.extend(&inp);
        if shape.indirect {
            let table = self.rig.arena.take(16 * bufs.len() as u64, 16);
            self.rig.queues[0].submit_indirect(table, &bufs).unwrap();
        } else {
            self.rig.queues[0].submit(&bufs).unwrap();
        }
        self.rig.notify(0);
        let (_, len) = self.rig.queues[0].wait_used(1)[0];
        let mut data: Vec<u8> = inp.iter().flat_map(|b| self.rig.bytes(*b)).collect();
        let status = data.pop().unwrap();
        (status, data, len)
    }

    fn plain(&mut self, r: &Req) -> (u8, Vec<u8>, u32) {
        self.request(r, &Shape::default())
    }
}

#[derive(Clone, Debug, Default)]
struct Req {
    kind: u32,
    sector: u64,
    data: Vec<u8>,
    read: usize,
}

/// How a request's bytes lie in memory.
#[derive(Clone, Debug, Default)]
struct Shape {
    out_cuts: Vec<usize>,
    in_cuts: Vec<usize>,
    odd: u64,
    indirect: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    let cuts = || prop::collection::vec(prop_oneof![0usize..40, any::<usize>()], 0..5);
    let odd = prop_oneof![Just(0u64), Just(512), 0u64..600];
    (cuts(), cuts(), odd, any::<bool>()).prop_map(|(out_cuts, in_cuts, odd, indirect)| Shape {
        out_cuts,
        in_cuts,
        odd,
        indirect,
    })
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut h = [0; 16];
    h[..4].copy_from_slice(&kind.to_le_bytes());
    h[8..].copy_from_slice(&sector.to_le_bytes());
    h
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// `0..len` in non-empty pieces that end at `cuts` (taken modulo the length).
fn cut(len: usize, cuts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut ends: Vec<_> = cuts.iter().map(|c| c % len.max(1)).chain([len]).collect();
    ends.sort_unstable();
    ends.dedup();
    let starts = [0].into_iter().chain(ends.clone());
    starts.zip(ends).filter(|(a, b)| a < b).map(|(a, b)| a..b).collect()
}

const BLOCKS: u64 = 24;
const BLOCK: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    Read { block: u64, blocks: u64 },
    Write { block: u64, blocks: u64, seed: u8 },
    Discard { block: u64, blocks: u64 },
    Zero { block: u64, blocks: u64, unmap: bool },
    Flush,
    GetId,
}

fn op() -> impl Strategy<Value = Op> {
    let area = || (0..BLOCKS + 1, 0..BLOCKS / 3);
    prop_oneof![
        4 => area().prop_map(|(block, blocks)| Op::Read { block, blocks }),
        4 => (area(), any::<u8>())
            .prop_map(|((block, blocks), seed)| Op::Write { block, blocks, seed }),
        1 => area().prop_map(|(block, blocks)| Op::Discard { block, blocks }),
        1 => (area(), any::<bool>())
            .prop_map(|((block, blocks), unmap)| Op::Zero { block, blocks, unmap }),
        1 => Just(Op::Flush),
        1 => Just(Op::GetId),
    ]
}

/// A disk as a plain vector; what was discarded may read as anything.
struct Model(Vec<Option<u8>>);

impl Model {
    /// What the device must answer: status and, for reads, the bytes.
    fn apply(&mut self, op: &Op) -> (Req, u8, Vec<Option<u8>>) {
        let sectors = BLOCK / 512;
        let bytes = |b: u64, n: u64| {
            let (from, to) = ((b * BLOCK) as usize, ((b + n) * BLOCK) as usize);
            (from..to, u8::from(b + n > BLOCKS))
        };
        match *op {
            Op::Read { block, blocks } => {
                let (at, status) = bytes(block, blocks);
                let r = Req { kind: 0, sector: block * sectors, read: at.len(), ..Req::default() };
                let untouched = vec![Some(0xEE); at.len()];
                (r, status, if status == 0 { self.0[at].to_vec() } else { untouched })
            }
            Op::Write { block, blocks, seed } => {
                let (at, status) = bytes(block, blocks);
                let data: Vec<u8> =
                    at.clone().map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
                if status == 0 {
                    self.0[at].copy_from_slice(&data.iter().map(|b| Some(*b)).collect::<Vec<_>>());
                }
                (Req { kind: 1, sector: block * sectors, data, read: 0 }, status, vec![])
            }
            Op::Discard { block, blocks } => {
                let (at, status) = bytes(block, blocks);
                if status == 0 {
                    self.0[at].fill(None);
                }
                let data = range(block * sectors, (blocks * sectors) as u32, 0);
                (Req { kind: 11, data, ..Req::default() }, status, vec![])
            }
            Op::Zero { block, blocks, unmap } => {
                let (at, status) = bytes(block, blocks);
                if status == 0 {
                    self.0[at].fill(Some(0));
                }
                let data = range(block * sectors, (blocks * sectors) as u32, unmap.into());
                (Req { kind: 13, data, ..Req::default() }, status, vec![])
            }
            Op::Flush => (Req { kind: 4, ..Req::default() }, 0, vec![]),
            Op::GetId => {
                let mut id = b"disk-0".map(Some).to_vec();
                id.resize(20, Some(0));
                (Req { kind: 8, read: 20, ..Req::default() }, 0, id)
            }
        }
    }
}

fn matches(found: &[u8], expected: &[Option<u8>]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(f, e)| e.is_none_or(|e| e == *f))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever the requests and however their buffers are cut, the disk does as a vector does.
    #[test]
    fn behaves_like_a_vector(
        direct in any::<bool>(),
        event_idx in any::<bool>(),
        ops in prop::collection::vec((op(), shape()), 1..25),
    ) {
        let image = Image::new(BLOCKS * BLOCK);
        let Some(spec) = image.spec(direct) else { return Ok(()) };
        let features = FLUSH | if event_idx { EVENT_IDX } else { 0 };
        let mut bed = Bed::new(Block::new(spec).unwrap(), features);
        let mut model = Model(vec![Some(0); (BLOCKS * BLOCK) as usize]);
        for (op, shape) in ops {
            let (request, status, data) = model.apply(&op);
            let (got_status, got, len) = bed.request(&request, &shape);
            prop_assert_eq!(got_status, status, "{:?}", op);
            prop_assert!(matches(&got, &data), "{:?}", op);
            let whole = u32::try_from(got.len()).unwrap() + 1;
            prop_assert_eq!(len, if status == 0 || got.is_empty() { whole } else { 0 });
        }
        drop(bed);
        prop_assert!(matches(&std::fs::read(&image.path).unwrap(), &model.0));
    }

    /// Random bytes for rings and descriptors: no panic, nothing beyond the disk, and after a
    /// reset the device works.
    #[test]
    fn survives_hostile_rings(
        descs in prop::collection::vec(
            (
                prop_oneof![3 => (1u64 << 20)..(1 << 21), 1 => any::<u64>()],
                prop_oneof![3 => 0u32..2000, 1 => any::<u32>()],
                0u16..8,
                prop_oneof![4 => 0u16..16, 1 => any::<u16>()],
            ),
            16,
        ),
        heads in prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 16),
        jump in prop_oneof![4 => 0u16..17, 1 => any::<u16>()],
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..20, any::<u64>()],
        event_idx in any::<bool>(),
    ) {
        let image = Image::new(BLOCK);
        let mut block = Block::new(image.spec(false).unwrap()).unwrap();
        let mut rig = Rig::new(&[16]);
        // Headers everywhere, so that some chains are requests.
        for i in 0..(1 << 20) / 512 {
            rig.queues[0].put((1 << 20) + 100_000 + i * 512, &header(kind, sector));
        }
        let q = &mut rig.queues[0];
        for (i, (gpa, len, flags, next)) in descs.iter().enumerate() {
            let gpa = if i % 2 == 0 { gpa & !511 } else { *gpa };
            q.write_desc(q.desc, i as u16, gpa, *len, *flags, *next);
        }
        for head in &heads {
            q.publish(*head);
        }
        let features = if event_idx { EVENT_IDX } else { 0 };
        block.activate(rig.activation(features)).unwrap();
        q_set_avail(&rig, jump);
        block.resume();
        rig.kicks[0].signal();
        block.drain().unwrap();
        block.resume();
        block.reset();
        prop_assert_eq!(std::fs::metadata(&image.path).unwrap().len(), BLOCK);
        let mut bed = Bed::new(block, 0);
        prop_assert_eq!(bed.plain(&Req { kind: 4, ..Req::default() }).0, 0);
    }

    /// Save and restore at any moment of the traffic: each request is done once, none is lost.
    #[test]
    fn moves_in_the_middle_of_traffic(
        event_idx in any::<bool>(),
        stops in prop::collection::vec(0usize..40, 1..4),
    ) {
        const REQUESTS: usize = 60;
        let image = Image::new(BLOCKS * BLOCK);
        let mut rig = Rig::new(&[64]);
        let features = FLUSH | if event_idx { EVENT_IDX } else { 0 };
        let count = Arc::new(Count::default());
        let spec = || BlockSpec { observer: Some(count.clone()), ..image.spec(false).unwrap() };
        let device = Box::new(Block::new(spec()).unwrap());
        let mut transport =
            MmioTransport::new(device, rig.ram.clone(), EventFd::new().unwrap()).unwrap();
        turn_on(&mut transport, features, &rig.queues);
        let (mut done, mut sent) = (Vec::new(), Vec::new());
        for i in 0..REQUESTS {
            let sector = i as u64;
            let head = rig.out(&header(1, sector));
            let data = rig.out(&[i as u8 + 1; 512]);
            let status = rig.inp(1);
            while rig.queues[0].free() < 3 {
                done.extend(rig.queues[0].wait_used(1));
            }
            rig.queues[0].put(match status { Buf::In(at, _) => at, Buf::Out(..) => 0 }, &[0xEE]);
            rig.queues[0].submit(&[head, data, status]).unwrap();
            sent.push(status);
            if rig.queues[0].wants_notification(event_idx) {
                transport.write(0x50, &[0; 4]);
            }
            if stops.contains(&i) {
                transport.drain().unwrap();
                let state = transport.save();
                drop(transport);
                let VirtioDeviceState::Block(own) = &state.device else { unreachable!() };
                let device = Block::restore(spec(), own).unwrap();
                transport = MmioTransport::restore(
                    Box::new(device),
                    rig.ram.clone(),
                    EventFd::new().unwrap(),
                    &state,
                )
                .unwrap();
                transport.resume();
            }
        }
        done.extend(rig.queues[0].wait_used(REQUESTS - done.len()));
        transport.drain().unwrap();
        prop_assert_eq!(done.len() + rig.queues[0].take_used().len(), REQUESTS);
        prop_assert_eq!(count.0.load(Ordering::SeqCst), REQUESTS as u64, "each was begun once");
        for status in sent {
            prop_assert_eq!(rig.bytes(status), [0]);
        }
        let disk = std::fs::read(&image.path).unwrap();
        for i in 0..REQUESTS {
            prop_assert!(disk[i * 512..][..512].iter().all(|b| *b == i as u8 + 1), "sector {}", i);
        }
    }
}

#[derive(Default)]
struct Count(AtomicU64);

impl WriteObserver for Count {
    fn around_write(
        &self,
        _: u64,
        _: u64,
        change: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        change()
    }
}

fn q_set_avail(rig: &Rig, jump: u16) {
    let q = &rig.queues[0];
    q.put(q.avail + 2, &jump.to_le_bytes());
}

#[test]
fn refuses_what_no_disk_can_do() {
    let image = Image::new(16 * 512);
    let mut bed = Bed::new(Block::new(image.spec(false).unwrap()).unwrap(), FLUSH);
    let cases: &[(u8, Req)] = &[
        (1, Req { sector: 16, read: 512, ..Req::default() }),
        (1, Req { sector: 15, read: 1024, ..Req::default() }),
        (1, Req { sector: u64::MAX, read: 512, ..Req::default() }),
        (1, Req { sector: u64::MAX / 512 + 1, read: 512, ..Req::default() }),
        (1, Req { read: 511, ..Req::default() }),
        (1, Req { kind: 1, data: vec![1; 513], ..Req::default() }),
        (1, Req { kind: 1, sector: 16, data: vec![1; 512], ..Req::default() }),
        (0, Req { sector: 16, ..Req::default() }),
        (2, Req { kind: 99, ..Req::default() }),
        (2, Req { kind: 14, data: range(0, 1, 0), ..Req::default() }),
        (1, Req { kind: 11, ..Req::default() }),
        (1, Req { kind: 11, data: range(0, 1, 0)[..15].to_vec(), ..Req::default() }),
        (2, Req { kind: 11, data: range(0, 1, 1), ..Req::default() }),
        (2, Req { kind: 13, data: range(0, 1, 2), ..Req::default() }),
        (1, Req { kind: 13, data: range(16, 1, 0), ..Req::default() }),
        (1, Req { kind: 13, data: range(u64::MAX, u32::MAX, 0), ..Req::default() }),
        (1, Req { kind: 13, data: range(0, 1, 0).repeat(17), ..Req::default() }),
    ];
    for (status, request) in cases {
        assert_eq!(bed.plain(request).0, *status, "{request:?}");
    }
    // A header that is too short, and a chain without a place for the status.
    let (short, status) = (bed.rig.out(&[0; 15]), bed.rig.inp(1));
    bed.rig.send(0, &[short, status]);
    bed.rig.queues[0].wait_used(1);
    assert_eq!(bed.rig.bytes(status), [1]);
    let head = bed.rig.send(0, &[short]);
    assert_eq!(bed.rig.queues[0].wait_used(1), [(head, 0)]);
    assert!(std::fs::read(&image.path).unwrap().iter().all(|b| *b == 0));
    assert_eq!(bed.block.errors().load(Ordering::Relaxed), 0, "the disk itself failed nothing");
}

#[test]
fn a_read_only_disk_is_never_written() {
    let image = Image::new(16 * 512);
    let file = open_disk(&image.path, true, false).unwrap();
    let spec = BlockSpec { file, read_only: true, ..image_spec() };
    let block = Block::new(spec).unwrap();
    assert_eq!(block.features() & (1 << 13 | 1 << 14 | 1 << 5), 1 << 5);
    let mut bed = Bed::new(block, 0);
    assert_eq!(bed.plain(&Req { kind: 1, data: vec![1; 512], ..Req::default() }).0, 1);
    assert_eq!(bed.plain(&Req { kind: 11, data: range(0, 1, 0), ..Req::default() }).0, 2);
    assert_eq!(bed.plain(&Req { read: 512, ..Req::default() }).0, 0);
}

/// Everything but the file.
fn image_spec() -> BlockSpec {
    BlockSpec {
        file: File::open("/dev/null").unwrap(),
        read_only: false,
        direct: false,
        discard: true,
        serial: "disk-0".into(),
        queues: 1,
        observer: None,
    }
}

#[test]
fn reads_mark_the_pages_they_fill() {
    for direct in [false, true] {
        let image = Image::new(BLOCKS * BLOCK);
        let Some(spec) = image.spec(direct) else { continue };
        let mut bed = Bed::new(Block::new(spec).unwrap(), 0);
        for odd in [0, 8] {
            let gpa = bed.rig.arena.take(10 * PAGE_SIZE, PAGE_SIZE) + odd;
            let header = bed.rig.out(&header(0, 0));
            let status = bed.rig.inp(1);
            let map = bed.rig.ram.own_writes()[0].clone();
            for word in 0..64 {
                map.take(word);
            }
            bed.rig.send(0, &[header, Buf::In(gpa, 5 * 4096), status]);
            bed.rig.queues[0].wait_used(1);
            let first = gpa / PAGE_SIZE;
            for page in first..first + 5 + u64::from(odd > 0) {
                assert!(map.dirty_at((page * PAGE_SIZE) as usize), "{direct} {odd} page {page}");
            }
            assert!(!map.dirty_at(((first + 6) * PAGE_SIZE) as usize));
        }
    }
}

/// Sees what is on the disk before and after each change.
struct Around {
    file: File,
    seen: Mutex<Vec<(u64, u64, u8, u8)>>,
}

impl WriteObserver for Around {
    fn around_write(
        &self,
        offset: u64,
        len: u64,
        change: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let byte = || {
            let mut byte = [0];
            self.file.read_exact_at(&mut byte, offset).unwrap();
            byte[0]
        };
        let before = byte();
        let result = change();
        self.seen.lock().unwrap().push((offset, len, before, byte()));
        result
    }
}

#[test]
fn the_observer_stands_around_every_change() {
    let image = Image::new(16 * 512);
    let observer =
        Arc::new(Around { file: File::open(&image.path).unwrap(), seen: Mutex::default() });
    let spec = BlockSpec { observer: Some(observer.clone()), ..image.spec(false).unwrap() };
    let mut bed = Bed::new(Block::new(spec).unwrap(), FLUSH);
    for request in [
        Req { kind: 1, sector: 2, data: vec![7; 1024], read: 0 },
        Req { kind: 0, sector: 2, read: 512, ..Req::default() },
        Req { kind: 1, sector: 99, data: vec![7; 512], read: 0 },
        Req { kind: 13, data: range(2, 1, 1), ..Req::default() },
        Req { kind: 11, data: [range(3, 1, 0), range(9, 4, 0)].concat(), ..Req::default() },
        Req { kind: 4, ..Req::default() },
    ] {
        bed.plain(&request);
    }
    let seen = observer.seen.lock().unwrap().clone();
    assert_eq!(
        seen,
        [(1024, 1024, 0, 7), (1024, 512, 7, 0), (1536, 512, 7, 0), (4608, 2048, 0, 0)]
    );
}

/// A disk whose requests wait until they are let through, and that can fail.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    begun: Mutex<usize>,
    flushes: AtomicU64,
    fail: AtomicBool,
}

impl Gate {
    fn pass(&self) -> io::Result<()> {
        *self.begun.lock().unwrap() += 1;
        self.changed.notify_all();
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.changed.wait(open).unwrap();
        }
        if self.fail.load(Ordering::SeqCst) { Err(io::Error::other("broken")) } else { Ok(()) }
    }

    fn set_open(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }
}

impl DiskBackend for Gate {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn block_size(&self) -> u32 {
        512
    }
    fn read_at(&self, _: &[GuestSlice<'_>], _: u64) -> io::Result<()> {
        self.pass()
    }
    fn write_at(&self, _: &[GuestSlice<'_>], _: u64) -> io::Result<()> {
        self.pass()
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

fn on_gate(gate: &Arc<Gate>) -> Block {
    Block::on(gate.clone(), false, true, "gate".into(), 1, None).unwrap()
}

#[test]
fn drain_completes_what_was_begun_and_gives_the_rest_back() {
    let gate = Arc::new(Gate::default());
    let mut bed = Bed::new(on_gate(&gate), FLUSH);
    let header = bed.rig.out(&header(0, 0));
    let statuses: Vec<_> = (0..20)
        .map(|_| {
            let (data, status) = (bed.rig.inp(512), bed.rig.inp(1));
            bed.rig.send(0, &[header, data, status]);
            status
        })
        .collect();
    let mut begun = gate.begun.lock().unwrap();
    while *begun < 2 {
        begun = gate.changed.wait(begun).unwrap();
    }
    drop(begun);
    assert!(bed.rig.queues[0].take_used().is_empty(), "nothing passed the gate");
    let opener = {
        let gate = gate.clone();
        std::thread::spawn(move || gate.set_open(true))
    };
    bed.block.drain().unwrap();
    opener.join().unwrap();
    let [(0, state)] = bed.block.queues()[..] else { panic!("one queue") };
    assert_eq!(state.next_avail, state.next_used, "what is not returned is on the queue");
    let returned = bed.rig.queues[0].take_used().len();
    assert_eq!(returned, usize::from(state.next_used));
    bed.block.resume();
    bed.rig.queues[0].wait_used(20 - returned);
    assert!(statuses.iter().all(|s| bed.rig.bytes(*s) == [0]));
}

#[test]
fn errors_of_the_disk_reach_the_guest_and_are_counted() {
    let gate = Arc::new(Gate::default());
    gate.set_open(true);
    gate.fail.store(true, Ordering::SeqCst);
    let mut bed = Bed::new(on_gate(&gate), FLUSH);
    for n in 1..=3 {
        assert_eq!(bed.plain(&Req { read: 512, ..Req::default() }).0, 1);
        assert_eq!(bed.block.errors().load(Ordering::Relaxed), n);
    }
    gate.fail.store(false, Ordering::SeqCst);
    assert_eq!(bed.plain(&Req { read: 512, ..Req::default() }).0, 0);
}

#[test]
fn writes_are_flushed_when_the_driver_wants_no_cache() {
    let write = Req { kind: 1, data: vec![1; 512], ..Req::default() };
    for (features, mode, flushes) in [(FLUSH, 1, 0), (FLUSH, 0, 1), (0, 1, 1)] {
        let gate = Arc::new(Gate::default());
        gate.set_open(true);
        let mut bed = Bed::new(on_gate(&gate), features);
        bed.block.write_config(32, &[mode]);
        let mut read_back = [9];
        bed.block.read_config(32, &mut read_back);
        assert_eq!(read_back, [mode]);
        assert_eq!(bed.plain(&write).0, 0);
        assert_eq!(gate.flushes.load(Ordering::SeqCst), flushes, "{features:#x} {mode}");
        bed.block.reset();
        bed.block.read_config(32, &mut read_back);
        assert_eq!(read_back, [1], "a reset brings the cache back");
    }
}

#[test]
fn interrupts_follow_the_drivers_wish() {
    let gate = Arc::new(Gate::default());
    gate.set_open(true);
    let mut bed = Bed::new(on_gate(&gate), FLUSH | EVENT_IDX);
    bed.rig.queues[0].set_used_event(2);
    let flush = Req { kind: 4, ..Req::default() };
    for expected in [false, false, true, false] {
        bed.plain(&flush);
        // Parking orders the check after the worker's decision.
        bed.block.drain().unwrap();
        bed.block.resume();
        assert_eq!(bed.rig.irqfd.clear(), expected);
    }
}

#[test]
fn a_restore_refuses_another_disk() {
    let image = Image::new(BLOCKS * BLOCK);
    let VirtioDeviceState::Block(good) = Block::new(image.spec(false).unwrap()).unwrap().save()
    else {
        unreachable!()
    };
    let sectors = good.sectors;
    assert_eq!(sectors, BLOCKS * 8);
    let cases = [
        ("size", BlockState { sectors: sectors + 1, ..good.clone() }),
        ("read-only", BlockState { read_only: true, ..good.clone() }),
        ("serial", BlockState { serial: "other".into(), ..good.clone() }),
        ("block size", BlockState { block_size: 256, ..good.clone() }),
        ("block size", BlockState { block_size: 1 << 30, ..good.clone() }),
        ("block size", BlockState { block_size: 1000, ..good.clone() }),
    ];
    for (word, state) in cases {
        let Err(e) = Block::restore(image.spec(false).unwrap(), &state) else {
            panic!("accepted {state:?}")
        };
        assert!(e.to_string().contains(word), "{e}");
    }
    let state = BlockState { block_size: 4096, writeback: false, ..good };
    let block = Block::restore(image.spec(false).unwrap(), &state).unwrap();
    assert_eq!(block.save(), VirtioDeviceState::Block(state));
}

#[test]
fn bad_specs_are_refused() {
    let image = Image::new(1024);
    for serial in ["123456789012345678901", "new\nline", "ü"] {
        let spec = BlockSpec { serial: serial.into(), ..image.spec(false).unwrap() };
        assert!(matches!(Block::new(spec), Err(BlockError::Serial(_))), "{serial}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        let spec = BlockSpec { queues, ..image.spec(false).unwrap() };
        assert!(matches!(Block::new(spec), Err(BlockError::Queues(_))));
    }
}

/// More pieces and more bytes than one system call takes, with odd lengths.
#[test]
fn long_vectors_arrive_whole() {
    let image = Image::new(32 << 20);
    let file = open_disk(&image.path, false, false).unwrap();
    let ram = crate::devices::virtio::testkit::ram();
    let lens: Vec<usize> = (0..2500).map(|i| (i * 7919) % 4001).collect();
    let slices = |mut at: u64| -> Vec<GuestSlice<'_>> {
        lens.iter()
            .map(|len| {
                let slice = ram.mem().get_slice(GuestAddress(at), *len).unwrap();
                at += *len as u64;
                slice
            })
            .collect()
    };
    let total: usize = lens.iter().sum();
    assert!(total > 4 << 20);
    let content: Vec<u8> = (0..total).map(|i| (i * 31 + i / 4096) as u8).collect();
    ram.mem().write_slice(&content, GuestAddress(1 << 20)).unwrap();
    sys::write_guest(&file, &slices(1 << 20), 777).unwrap();
    let mut found = vec![0; total];
    file.read_exact_at(&mut found, 777).unwrap();
    assert!(found == content);
    sys::read_guest(&file, &slices(8 << 20), 777).unwrap();
    ram.mem().read_slice(&mut found, GuestAddress(8 << 20)).unwrap();
    assert!(found == content);
    let beyond = sys::read_guest(&file, &slices(1 << 20), (32 << 20) - 100).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn unaligned_direct_requests_are_refused_unless_only_memory_is_unaligned() {
    let image = Image::new(BLOCKS * BLOCK);
    let Some(spec) = image.spec(true) else { return };
    let disk = RawDisk::new(spec.file, true).unwrap();
    let ram = crate::devices::virtio::testkit::ram();
    let slice = |at, len| ram.mem().get_slice(GuestAddress(at), len).unwrap();
    let block = disk.block_size() as usize;
    for (offset, len) in [(0, block - 1), (1, block), (block as u64 / 2, block)] {
        let bufs = [slice(1 << 20, len)];
        let kinds = [disk.read_at(&bufs, offset), disk.write_at(&bufs, offset)];
        assert!(kinds.into_iter().all(|r| r.unwrap_err().kind() == io::ErrorKind::InvalidInput));
    }
    // Larger than the buffer that it goes through, in two odd pieces.
    let content: Vec<u8> = (0..300u32 << 10).map(|i| (i * 13 + i / 512) as u8).collect();
    let image = Image::new(1 << 20);
    let Some(spec) = image.spec(true) else { return };
    let disk = RawDisk::new(spec.file, true).unwrap();
    ram.mem().write_slice(&content, GuestAddress((1 << 20) + 3)).unwrap();
    let pieces =
        |at: u64| [slice(at + 3, 100_001), slice(at + 3 + 100_001, content.len() - 100_001)];
    disk.write_at(&pieces(1 << 20), 4096).unwrap();
    assert!(std::fs::read(&image.path).unwrap()[4096..][..content.len()] == content);
    disk.read_at(&pieces(4 << 20), 4096).unwrap();
    let mut found = vec![0; content.len()];
    ram.mem().read_slice(&mut found, GuestAddress((4 << 20) + 3)).unwrap();
    assert!(found == content);
}

/// `cargo test --release -p vmm disk_speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn disk_speed() {
    const BYTES: u64 = 256 << 20;
    let image = Image::new(BYTES);
    let chunk: Vec<u8> = (0..1 << 20).map(|i: u32| i as u8).collect();
    let file = File::options().write(true).open(&image.path).unwrap();
    for i in 0..BYTES >> 20 {
        file.write_all_at(&chunk, i << 20).unwrap();
    }
    file.sync_all().unwrap();
    for (direct, depth, count) in
        [(true, 1, 10_000), (true, 32, 40_000), (false, 1, 40_000), (false, 32, 160_000)]
    {
        let Some(spec) = image.spec(direct) else { continue };
        let mut bed = Bed::new(Block::new(spec).unwrap(), FLUSH | EVENT_IDX);
        let slots: Vec<_> = (0..depth)
            .map(|_| {
                let header = bed.rig.arena.take(16, 16);
                let data = bed.rig.arena.take(4096, 4096);
                (header, [Buf::Out(header, 16), Buf::In(data, 4096), bed.rig.inp(1)])
            })
            .collect();
        let mut idle: Vec<usize> = (0..depth).collect();
        let mut by_head = std::collections::BTreeMap::new();
        let (mut sent, mut done, mut at) = (0u64, 0u64, 1u64);
        let start = std::time::Instant::now();
        while done < count {
            while let Some(slot) = idle.pop() {
                at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let sector = (at >> 33) % (BYTES / 4096) * 8;
                let (gpa, bufs) = slots[slot];
                bed.rig.queues[0].put(gpa, &header(0, sector));
                by_head.insert(bed.rig.send(0, &bufs), slot);
                sent += 1;
            }
            bed.rig.queues[0].set_used_event(u16::try_from(done & 0xFFFF).unwrap());
            let mut used = bed.rig.queues[0].take_used();
            if used.is_empty() {
                wait_readable(&bed.rig.irqfd);
                bed.rig.irqfd.clear();
                used = bed.rig.queues[0].take_used();
            }
            done += used.len() as u64;
            idle.extend(used.into_iter().filter_map(|(head, _)| by_head.remove(&head)));
        }
        let iops = done as f64 / start.elapsed().as_secs_f64();
        eprintln!("direct {direct}, depth {depth}: {iops:.0} IOPS of 4 KiB reads ({sent} sent)");
    }
}

/// How long a stopped guest waits for its disk, with 64 random reads or writes in the queue.
/// `cargo test --release -p vmm drain_time -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn drain_time() {
    const BYTES: u64 = 64 << 20;
    let image = Image::new(BYTES);
    std::fs::write(&image.path, vec![1; BYTES as usize]).unwrap();
    for kind in [0, 1] {
        let Some(spec) = image.spec(true) else { return };
        let mut bed = Bed::new(Block::new(spec).unwrap(), FLUSH);
        let (data, status) = (bed.rig.arena.take(4096, 4096), bed.rig.inp(1));
        let data = if kind == 0 { Buf::In(data, 4096) } else { Buf::Out(data, 4096) };
        let mut times = Vec::new();
        for round in 0..200u64 {
            for i in 0..64 {
                let header = bed.rig.arena.take(16, 16);
                let sector = (round * 64 + i) * 7919 % (BYTES / 4096) * 8;
                bed.rig.queues[0].put(header, &self::header(kind, sector));
                bed.rig.send(0, &[Buf::Out(header, 16), data, status]);
            }
            let start = std::time::Instant::now();
            bed.block.drain().unwrap();
            times.push(start.elapsed());
            bed.block.resume();
            while bed.rig.queues[0].in_flight() > 0 {
                bed.rig.queues[0].wait_used(1);
            }
        }
        times.sort_unstable();
        eprintln!("kind {kind}: drain median {:?}, p99 {:?}", times[100], times[198]);
    }
}

/// Two queues of four that the device offers, as a guest with two vCPUs would use them.
#[test]
fn queues_work_side_by_side() {
    let image = Image::new(64 * 512);
    let spec = BlockSpec { queues: 4, ..image.spec(false).unwrap() };
    let block = Block::new(spec).unwrap();
    assert_eq!(block.queue_sizes(), [256; 4]);
    assert_ne!(block.features() & 1 << blk::VIRTIO_BLK_F_MQ, 0);
    let mut rig = Rig::new(&[16, 16]);
    let mut transport =
        MmioTransport::new(Box::new(block), rig.ram.clone(), rig.irqfd.clone()).unwrap();
    turn_on(&mut transport, FLUSH, &rig.queues);
    for sector in 0..32u8 {
        let q = usize::from(sector % 2);
        let bufs = [rig.out(&header(1, sector.into())), rig.out(&[sector; 512]), rig.inp(1)];
        while rig.queues[q].free() < 3 {
            rig.queues[q].wait_used(1);
        }
        rig.queues[q].submit(&bufs).unwrap();
        transport.notify_fds()[q].signal();
        if sector == 20 {
            transport.drain().unwrap();
            transport.resume();
        }
    }
    for q in &mut rig.queues {
        q.wait_used(q.in_flight());
    }
    let disk = std::fs::read(&image.path).unwrap();
    assert!((0..32u8).all(|s| disk[usize::from(s) * 512..][..512] == [s; 512]));
    drop(transport);
    // The driver may leave out any queue but the first.
    let mut lone = Rig::new(&[16, 16]);
    let mut block = Block::new(image.spec(false).unwrap()).unwrap();
    lone.queues.remove(0);
    let mut activation = lone.activation(0);
    activation.queues[0].index = 1;
    assert!(matches!(block.activate(activation), Err(DeviceError::MissingQueue(0))));
}

fn wait_readable(fd: &EventFd) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(1000u16)).unwrap();
}
