//! Frames of the data lanes, version 1: units with content, zeros, and the end of a round.
//!
//! The same unit must always travel on one lane within what the receiver has not acknowledged; a
//! frame's round and number are there to check it. This module only checks a frame in itself.

use super::bytes::{Reader, crc32, limited};
use super::field::Field;
use super::{Version, WireError};
use crate::codec::Batch;
use crate::codec::batch::{MAX_BATCH_BYTES, MAX_BATCH_UNITS};
use crate::codec::block::{Codec, CodecError, decode, encode, encoded_bound};
use crate::unit::{Layout, Run, UnitError, UnitIndex};

/// Bytes before the body.
pub const DATA_HEADER: usize = 28;
/// Most runs in a frame of zeros.
pub const MAX_ZERO_RUNS: usize = 1024;
/// Most bytes of a body: a batch that did not shrink, and its runs.
pub const MAX_DATA_BODY: usize = MAX_BATCH_BYTES + 1 + RUN_BYTES * MAX_BATCH_UNITS;
/// Bytes of a run in a frame of units.
const RUN_BYTES: usize = 9;

const UNITS: u8 = 1;
const ZEROS: u8 = 2;
const ROUND_END: u8 = 3;

/// Where a frame belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the region in the layout.
    pub region: u16,
    /// The round.
    pub round: u32,
    /// Number of the frame on its lane, from 0.
    pub sequence: u64,
}

/// Why a frame cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame of nothing.
    #[error("a frame needs at least one unit")]
    Empty,
    /// Units out of order.
    #[error("units of a frame must ascend: send those so far before going back")]
    Order,
    /// Too many runs.
    #[error("{0} runs are more than a frame of zeros holds ({MAX_ZERO_RUNS})")]
    TooMany(usize),
    /// The payload.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// How a batch was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its codec.
    pub codec: Codec,
    /// Bytes of its payload, to compare with the batch's.
    pub payload: usize,
}

/// Writes a frame of `batch` to `out`, which is cleared first. LZ4 only happens where `wanted` and
/// where it pays.
///
/// # Errors
/// [`FrameError`] if the batch is empty or its units do not ascend.
pub fn put_units(
    _: Version,
    place: Place,
    batch: &Batch,
    wanted: Codec,
    out: &mut Vec<u8>,
) -> Result<Sent, FrameError> {
    let (runs, count) = runs_of(batch.units())?;
    out.clear();
    out.resize(DATA_HEADER, 0);
    count.put(out);
    for (first, count) in &runs[..usize::from(count)] {
        first.put(out);
        count.put(out);
    }
    let at = out.len();
    let (codec, payload) = match wanted {
        Codec::Raw => {
            out.extend_from_slice(batch.raw());
            (Codec::Raw, batch.raw().len())
        }
        Codec::Lz4 => {
            out.resize(at + encoded_bound(batch.raw().len()), 0);
            encode(wanted, batch.raw(), &mut out[at..])?
        }
    };
    out.truncate(at + payload);
    finish(UNITS, codec as u8, place, batch.raw().len(), out);
    Ok(Sent { codec, payload })
}

/// The runs of ascending `units`, and how many there are.
fn runs_of(units: &[UnitIndex]) -> Result<([(u64, u8); MAX_BATCH_UNITS], u8), FrameError> {
    let mut runs = [(0u64, 0u8); MAX_BATCH_UNITS];
    let mut used = 0u8;
    for unit in units.iter().map(|u| u.get()) {
        let last = used.checked_sub(1).and_then(|n| runs.get_mut(usize::from(n)));
        match last {
            Some((first, count)) if *first + u64::from(*count) == unit => *count += 1,
            Some((first, count)) if *first + u64::from(*count) > unit => {
                return Err(FrameError::Order);
            }
            _ => {
                let next = runs.get_mut(usize::from(used));
                *next.ok_or(FrameError::TooMany(units.len()))? = (unit, 1);
                used += 1;
            }
        }
    }
    if used == 0 { Err(FrameError::Empty) } else { Ok((runs, used)) }
}

/// Writes a frame of zero units to `out`, which is cleared first.
///
/// # Errors
/// [`FrameError`] if there are no runs, too many, or they do not ascend.
pub fn put_zeros(
    _: Version,
    place: Place,
    runs: &[Run],
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    if runs.is_empty() {
        return Err(FrameError::Empty);
    }
    if runs.len() > MAX_ZERO_RUNS {
        return Err(FrameError::TooMany(runs.len()));
    }
    if runs.windows(2).any(|pair| pair[1].first().get() < pair[0].end()) {
        return Err(FrameError::Order);
    }
    // A run of 2^32 units, which a layout can have, is sent as two.
    let parts = || runs.iter().flat_map(|run| run.parts(u32::MAX.into()));
    let count = parts().count();
    let count = u16::try_from(count).ok().filter(|c| usize::from(*c) <= MAX_ZERO_RUNS);
    out.clear();
    out.resize(DATA_HEADER, 0);
    count.ok_or(FrameError::TooMany(runs.len()))?.put(out);
    for run in parts() {
        run.first().get().put(out);
        u32::try_from(run.count()).unwrap_or(u32::MAX).put(out);
    }
    finish(ZEROS, 0, place, 0, out);
    Ok(())
}

/// Writes the mark behind the last frame of a round on a lane to `out`, which is cleared first.
pub fn put_round_end(_: Version, place: Place, units: u64, zeros: u64, out: &mut Vec<u8>) {
    out.clear();
    out.resize(DATA_HEADER, 0);
    units.put(out);
    zeros.put(out);
    finish(ROUND_END, 0, place, 0, out);
}

/// Fills in the header of the frame in `out`.
fn finish(kind: u8, codec: u8, place: Place, raw_len: usize, out: &mut [u8]) {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let (header, body) = out.split_at_mut(DATA_HEADER);
    header[..4].copy_from_slice(&number(body.len()));
    header[4] = kind;
    header[5] = codec;
    header[6..8].copy_from_slice(&place.region.to_le_bytes());
    header[8..12].copy_from_slice(&place.round.to_le_bytes());
    header[12..20].copy_from_slice(&place.sequence.to_le_bytes());
    header[20..24].copy_from_slice(&number(raw_len));
    let crc = crc32(&header[..24], body);
    header[24..].copy_from_slice(&crc.to_le_bytes());
}

/// What stands before the body of a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    head: [u8; 24],
    crc: u32,
    kind: u8,
    codec: Codec,
    /// Where the frame belongs.
    pub place: Place,
    raw_len: usize,
    len: usize,
}

impl DataHeader {
    /// Reads it, and checks it in itself. Read [`body_len`](Self::body_len) bytes then.
    ///
    /// # Errors
    /// [`WireError`] says what is wrong.
    pub fn decode(_: Version, bytes: &[u8; DATA_HEADER]) -> Result<Self, WireError> {
        const WHAT: &str = "a data header";
        let mut from = Reader::new(bytes);
        let head = from.array(WHAT)?;
        let crc = from.u32(WHAT)?;
        let mut from = Reader::new(&head);
        let len = from.u32(WHAT)?;
        let kind = from.u8(WHAT)?;
        let codec = from.u8(WHAT)?;
        let place =
            Place { region: from.u16(WHAT)?, round: from.u32(WHAT)?, sequence: from.u64(WHAT)? };
        let raw_len = from.u32(WHAT)?;
        if !(UNITS..=ROUND_END).contains(&kind) {
            return Err(WireError::Unknown { what: "a data frame of kind", found: kind.into() });
        }
        let codec = Codec::try_from(codec)
            .map_err(|found| WireError::Unknown { what: "codec", found: found.into() })?;
        if kind != UNITS && (codec != Codec::Raw || raw_len != 0) {
            return Err(WireError::Invalid("a data frame without units has a codec or a length"));
        }
        let len = limited("a data frame", len.into(), MAX_DATA_BODY as u64)?;
        let raw_len = limited("a batch", raw_len.into(), MAX_BATCH_BYTES as u64)?;
        Ok(Self { head, crc, kind, codec, place, raw_len, len })
    }

    /// Bytes of the body that follows, at most [`MAX_DATA_BODY`].
    pub fn body_len(&self) -> usize {
        self.len
    }
}

/// A run of units as a peer names it. It need not lie in any layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawRun {
    /// First unit.
    pub first: u64,
    /// Number of units, at least 1.
    pub count: u32,
}

impl RawRun {
    /// The run as one of `layout`.
    ///
    /// # Errors
    /// [`UnitError::Outside`] if it does not lie there.
    pub fn run(&self, layout: &Layout) -> Result<Run, UnitError> {
        layout.run(self.first, self.count.into())
    }
}

/// Units with content, still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units<'a> {
    /// Checked: not empty, ascending, at most a batch together.
    runs: &'a [[u8; RUN_BYTES]],
    codec: Codec,
    raw_len: usize,
    payload: &'a [u8],
}

/// Why units of a frame cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// They are not in the layout.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Their content has not the length that their number requires.
    #[error("{units} units need {need} bytes of content, {found} are announced")]
    Length {
        /// Number of units.
        units: u64,
        /// What they need.
        need: u64,
        /// What is announced.
        found: usize,
    },
    /// The payload.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl<'a> Units<'a> {
    /// Where the content belongs, in its order.
    pub fn runs(&self) -> impl Iterator<Item = RawRun> + use<'a> {
        self.runs.iter().map(raw_run)
    }

    /// How the content is encoded.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// The encoded content.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Decodes the content into `scratch`, of at least [`MAX_BATCH_BYTES`] or the batch's own
    /// length, and hands `place` each run of `layout` with its content. Nothing is placed unless
    /// everything is right.
    ///
    /// # Errors
    /// [`UnpackError`] if the frame does not fit the layout or does not decode.
    pub fn unpack(
        &self,
        layout: &Layout,
        scratch: &mut [u8],
        mut place: impl FnMut(Run, &[u8]),
    ) -> Result<(), UnpackError> {
        let mut runs = [layout.whole(); MAX_BATCH_UNITS];
        let mut units = 0;
        for (run, raw) in runs.iter_mut().zip(self.runs()) {
            *run = raw.run(layout)?;
            units += run.count();
        }
        let (need, found) = (layout.bytes_of(units), self.raw_len);
        if need != found as u64 {
            return Err(UnpackError::Length { units, need, found });
        }
        let have = scratch.len();
        let mut content: &mut [u8] =
            scratch.get_mut(..found).ok_or(CodecError::Buffer { have, need: found })?;
        decode(self.codec, self.payload, content)?;
        for run in runs.into_iter().take(self.runs.len()) {
            let len = usize::try_from(layout.bytes_of(run.count())).unwrap_or(usize::MAX);
            let Some((head, rest)) = content.split_at_mut_checked(len) else { break };
            place(run, head);
            content = rest;
        }
        Ok(())
    }
}

/// A data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFrame<'a> {
    /// Units with content.
    Units(Units<'a>),
    /// Units that are zero.
    Zeros(Vec<RawRun>),
    /// No more frames of this round on this lane.
    RoundEnd {
        /// Units with content that went over this lane in this round.
        units: u64,
        /// Units of zeros.
        zeros: u64,
    },
}

impl<'a> DataFrame<'a> {
    /// Reads the body behind `header`.
    ///
    /// # Errors
    /// [`WireError`] says what is wrong.
    pub fn decode(_: Version, header: &DataHeader, body: &'a [u8]) -> Result<Self, WireError> {
        if body.len() != header.len {
            return Err(WireError::Short("a data frame"));
        }
        if crc32(&header.head, body) != header.crc {
            return Err(WireError::Checksum);
        }
        let mut from = Reader::new(body);
        let frame = match header.kind {
            UNITS => return units(header, from).map(Self::Units),
            ZEROS => Self::Zeros(zeros(&mut from)?),
            _ => Self::RoundEnd {
                units: from.u64("the end of a round")?,
                zeros: from.u64("the end of a round")?,
            },
        };
        from.end()?;
        Ok(frame)
    }
}

/// A run of a frame of units.
fn raw_run(bytes: &[u8; RUN_BYTES]) -> RawRun {
    let [first @ .., count] = *bytes;
    RawRun { first: u64::from_le_bytes(first), count: count.into() }
}

fn units<'a>(header: &DataHeader, mut from: Reader<'a>) -> Result<Units<'a>, WireError> {
    const WHAT: &str = "the runs of a batch";
    let used = limited("a number of runs", from.u8(WHAT)?.into(), MAX_BATCH_UNITS as u64)?;
    let (runs, _) = from.bytes(used * RUN_BYTES, WHAT)?.as_chunks::<RUN_BYTES>();
    let (mut end, mut count) = (0, 0);
    for run in runs.iter().map(raw_run) {
        end = after(end, run)?;
        count += u64::from(run.count);
    }
    if runs.is_empty() {
        return Err(WireError::Invalid("a batch without units"));
    }
    limited("a number of units", count, MAX_BATCH_UNITS as u64)?;
    let payload = from.rest();
    if payload.len() > header.raw_len {
        return Err(WireError::Invalid("a batch is longer encoded than decoded"));
    }
    Ok(Units { runs, codec: header.codec, raw_len: header.raw_len, payload })
}

fn zeros(from: &mut Reader<'_>) -> Result<Vec<RawRun>, WireError> {
    const WHAT: &str = "runs of zeros";
    let used = limited("a number of runs", from.u16(WHAT)?.into(), MAX_ZERO_RUNS as u64)?;
    if used == 0 {
        return Err(WireError::Invalid("a frame of zeros without runs"));
    }
    let mut runs = Vec::new();
    let mut end = 0;
    for _ in 0..used {
        let run = RawRun { first: from.u64(WHAT)?, count: from.u32(WHAT)? };
        end = after(end, run)?;
        runs.push(run);
    }
    Ok(runs)
}

/// The end of `run`, which must not begin before `end`.
fn after(end: u64, run: RawRun) -> Result<u64, WireError> {
    let bad = WireError::Invalid("runs are empty, overlap, or do not ascend");
    if run.count == 0 || run.first < end {
        return Err(bad);
    }
    run.first.checked_add(run.count.into()).ok_or(bad)
}
