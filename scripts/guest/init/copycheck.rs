//! Checks that files and disks hold what was written.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crate::{MIB, Outcome, number, pattern, say, sys};

const BLOCK: usize = 256 << 10;
const SYNC_EVERY: u64 = 4;

/// A block on a page boundary, as direct I/O wants it.
#[repr(C, align(4096))]
struct Block([u64; BLOCK / 8]);

impl Block {
    fn new() -> Box<Self> {
        Box::new(Self([0; BLOCK / 8]))
    }

    fn bytes(&mut self) -> &mut [u8] {
        sys::bytes_of(&mut self.0)
    }
}

/// Opens for direct I/O where the file system has it: less copying in the kernel, and
/// reading back really asks the device.
fn open_direct(path: &str, options: &OpenOptions) -> Result<File, String> {
    options
        .clone()
        .custom_flags(sys::O_DIRECT)
        .open(path)
        .or_else(|_| options.open(path))
        .map_err(|e| format!("{path}: {e}"))
}

/// `copycheck SRC DST SEED MB`: fills SRC from the seed, copies it to DST, then reads
/// DST back. With SRC `-` the blocks go to DST without the detour.
pub fn run(args: &[String]) -> Outcome {
    const USAGE: &str = "usage: copycheck SRC|- DST SEED MB";
    let [src, dst] = [0, 1].map(|i| args.get(i).map(String::as_str));
    let (Some(src), Some(dst)) = (src, dst) else { return Err(USAGE.into()) };
    let seed = number(args, 2, None, USAGE)?;
    let megabytes = number(args, 3, None, USAGE)?;
    match copy(src, dst, seed, megabytes) {
        Ok(crc) => {
            say(&format!("COPY-OK {crc:08x}"));
            Ok(())
        }
        Err(e) => {
            say(&format!("COPY-BAD {e}"));
            Err(e)
        }
    }
}

fn copy(src: &str, dst: &str, seed: u64, megabytes: u64) -> Result<u32, String> {
    let mut block = Block::new();
    if src == "-" {
        transfer(None, dst, seed, megabytes, "COPY", &mut block)?;
    } else {
        transfer(None, src, seed, megabytes, "FILL", &mut block)?;
        transfer(Some(src), dst, seed, megabytes, "COPY", &mut block)?;
    }
    let mut file = open_direct(dst, OpenOptions::new().read(true))?;
    sys::forget_cache(file.as_raw_fd());
    let table = crc_table();
    let mut crc = !0;
    for mb in 0..megabytes {
        for i in 0..(MIB / BLOCK) as u64 {
            file.read_exact(block.bytes()).map_err(|e| format!("{dst} at {mb} MiB: {e}"))?;
            verify(dst, seed, mb * (MIB / BLOCK) as u64 + i, &block)?;
            crc = block
                .bytes()
                .iter()
                .fold(crc, |c: u32, b| table[usize::from(c.to_le_bytes()[0] ^ b)] ^ (c >> 8));
        }
        if (mb + 1) % SYNC_EVERY == 0 {
            say(&format!("VERIFY {}", mb + 1));
        }
    }
    Ok(!crc)
}

fn verify(path: &str, seed: u64, index: u64, block: &Block) -> Outcome {
    for (i, page) in (0..).zip(block.0.chunks(512)) {
        if let Some(word) = pattern::differs(seed, index << 16 | i, page) {
            let at = index * BLOCK as u64 + i * 4096 + word as u64 * 8;
            return Err(format!("{path} at byte {at}: value {:#x}", page[word]));
        }
    }
    Ok(())
}

/// Writes `to`, from the file `from` or straight from the seed.
fn transfer(
    from: Option<&str>,
    to: &str,
    seed: u64,
    megabytes: u64,
    word: &str,
    block: &mut Block,
) -> Outcome {
    let mut source = from.map(|f| open_direct(f, OpenOptions::new().read(true))).transpose()?;
    let mut options = OpenOptions::new();
    // A block device cannot be created or cut off.
    options.write(true).create(true).truncate(!to.starts_with("/dev/"));
    let mut target = open_direct(to, &options)?;
    target.seek(SeekFrom::Start(0)).map_err(|e| format!("{to}: {e}"))?;
    for mb in 0..megabytes {
        for i in 0..(MIB / BLOCK) as u64 {
            let index = mb * (MIB / BLOCK) as u64 + i;
            if let (Some(source), Some(from)) = (&mut source, from) {
                source.read_exact(block.bytes()).map_err(|e| format!("{from}: {e}"))?;
                verify(from, seed, index, block)?;
            } else {
                for (p, page) in (0..).zip(block.0.chunks_mut(512)) {
                    pattern::fill(seed, index << 16 | p, page);
                }
            }
            target.write_all(block.bytes()).map_err(|e| format!("{to} at {mb} MiB: {e}"))?;
        }
        if (mb + 1) % SYNC_EVERY == 0 || mb + 1 == megabytes {
            target.sync_data().map_err(|e| format!("{to}: {e}"))?;
            say(&format!("{word} {}", mb + 1));
        }
    }
    Ok(())
}

fn crc_table() -> [u32; 256] {
    std::array::from_fn(|i| {
        (0..8).fold(i as u32, |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}
