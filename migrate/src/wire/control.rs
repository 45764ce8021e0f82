//! Messages of the control stream, version 1.
//!
//! S is the guest process at the source, T the receiving one. The right to run a guest and the
//! order of these messages are the business of the hand-over's machines.

use super::bounded::{Blob, List, Text};
use super::bytes::{Reader, crc32, limited};
use super::field::Field;
use super::ids::{AttemptId, GuestId, MoveId};
use super::{Version, WireError};
use crate::codec::Digest;
use crate::handover::message::{SourceSays, TargetSays};
use crate::handover::term::{QuestionId, Switch, SwitchId};
use crate::unit::{self, Run, UnitError};

/// Bytes before the body.
pub const CONTROL_HEADER: usize = 12;
/// Most bytes of a saved state: 1,024 vCPUs with everything they can have.
pub const MAX_STATE: usize = 32 << 20;
/// Most bytes of a guest's definition.
pub const MAX_DEFINITION: usize = 64 << 10;
/// Most bytes of a guest's name.
pub const MAX_NAME: usize = 63;
/// Most bytes of a text for people.
pub const MAX_TEXT: usize = 1024;
/// Most regions of a guest: its memory and its disks.
pub const MAX_REGIONS: usize = 64;
/// Most lanes.
pub const MAX_LANES: u8 = 64;
/// Most problems that a rehearsal reports.
pub const MAX_PROBLEMS: usize = 64;
/// Most digests in an answer.
pub const MAX_DIGESTS: usize = 1024;
/// Most steps of a blackout.
pub const MAX_STEPS: usize = 16;
/// Most bytes of the body of a message without a state.
const MAX_BODY: usize = 128 << 10;

/// Text for people.
pub type Note = Text<MAX_TEXT>;
/// A saved state, which this crate does not look into.
pub type State = Blob<MAX_STATE>;
/// One digest for each region, in the order of the layout.
pub type Sums = List<Digest, MAX_REGIONS>;

/// What a region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RegionKind {
    /// Guest memory.
    Ram = 0,
    /// A disk.
    Disk = 1,
}

/// A region, as a peer describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it is.
    pub kind: RegionKind,
    /// Bytes of a unit.
    pub unit_size: u32,
    /// Number of units.
    pub units: u64,
}

impl Region {
    /// The region as a layout.
    ///
    /// # Errors
    /// [`UnitError`] if no such layout can be.
    pub fn layout(&self) -> Result<unit::Layout, UnitError> {
        unit::Layout::new(self.unit_size, self.units)
    }
}

impl Field for Region {
    fn put(&self, out: &mut Vec<u8>) {
        (self.kind as u8).put(out);
        self.unit_size.put(out);
        self.units.put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        let kind = match from.u8(what)? {
            0 => RegionKind::Ram,
            1 => RegionKind::Disk,
            found => {
                return Err(WireError::Unknown { what: "a kind of region", found: found.into() });
            }
        };
        Ok(Self { kind, unit_size: from.u32(what)?, units: from.u64(what)? })
    }
}

/// A range of units of a region, as a peer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the region in the layout.
    pub region: u16,
    /// First unit.
    pub first: u64,
    /// Number of units.
    pub count: u64,
}

impl Span {
    /// The range as a run of `layout`, that of its region.
    ///
    /// # Errors
    /// [`UnitError::Outside`] if it does not lie there.
    pub fn run(&self, layout: &unit::Layout) -> Result<Run, UnitError> {
        layout.run(self.first, self.count)
    }
}

impl Field for Span {
    fn put(&self, out: &mut Vec<u8>) {
        self.region.put(out);
        self.first.put(out);
        self.count.put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        Ok(Self { region: from.u16(what)?, first: from.u64(what)?, count: from.u64(what)? })
    }
}

/// Why something is refused, for programs. Newer peers may know more reasons; the text that comes
/// with it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefuseCode(pub u16);

impl RefuseCode {
    /// Not among those below.
    pub const OTHER: Self = Self(0);
    /// Too little memory, too few CPUs or no disk space.
    pub const NO_ROOM: Self = Self(1);
    /// A guest of that name or id is there.
    pub const NAME_TAKEN: Self = Self(2);
    /// A CPU feature or capability is missing.
    pub const INCOMPATIBLE: Self = Self(3);
    /// The sender has no right to it.
    pub const NOT_ALLOWED: Self = Self(4);
    /// A term that is not above every known one.
    pub const OLD_TERM: Self = Self(5);
    /// The disk is not there, not shared, or locked.
    pub const DISK: Self = Self(6);
    /// Another operation is in the way.
    pub const BUSY: Self = Self(7);
    /// The message makes no sense here.
    pub const PROTOCOL: Self = Self(8);
}

impl Field for RefuseCode {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(from: &mut Reader<'_>, what: &'static str) -> Result<Self, WireError> {
        from.u16(what).map(Self)
    }
}

/// Defines [`Message`] from a table: number, name and fields in their order on the wire.
macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $number:literal $name:ident { $( $(#[$field_doc:meta])* $field:ident: $type:ty, )* }
    )*) => {
        /// A message of the control stream.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $( $(#[$doc])* $name { $( $(#[$field_doc])* $field: $type, )* }, )*
        }

        impl Message {
            /// Its number on the wire.
            pub fn kind(&self) -> u16 {
                match self { $( Self::$name { .. } => $number, )* }
            }

            /// Its name, for logs.
            pub fn name(&self) -> &'static str {
                match self { $( Self::$name { .. } => stringify!($name), )* }
            }

            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $( Self::$name { $($field),* } => { $( $field.put(out); )* } )*
                }
            }

            fn take(kind: u16, from: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(match kind {
                    $( $number => Self::$name {
                        $( $field: Field::take(
                            from,
                            concat!(stringify!($field), " of ", stringify!($name)),
                        )?, )*
                    }, )*
                    _ => return Err(unknown_kind(kind)),
                })
            }
        }

        /// Every number that stands for a message.
        pub(super) const KINDS: &[u16] = &[$($number),*];
    };
}

messages! {
    /// S → T, first: what is to be moved.
    1 Offer {
        /// The move.
        move_id: MoveId,
        /// This attempt of it.
        attempt: AttemptId,
        /// The guest.
        guest: GuestId,
        /// Its name.
        name: Text<MAX_NAME>,
        /// Lanes that S would like, at most [`MAX_LANES`].
        lanes: u8,
        /// The guest's definition, which this crate does not look into.
        definition: Blob<MAX_DEFINITION>,
    }
    /// S → T, second: what the guest's memory and disks look like.
    2 Layout {
        /// The regions; their numbers are their places here.
        regions: List<Region, MAX_REGIONS>,
        /// Key of the digests, drawn for this move.
        digest_key: [u8; 32],
    }
    /// T → S: data may come.
    3 Accept {
        /// The attempt offered.
        attempt: AttemptId,
        /// Lanes to use, at most those asked for.
        lanes: u8,
    }
    /// Either side, instead of the answer that was asked for.
    4 Refuse {
        /// Why, for programs.
        code: RefuseCode,
        /// Why and what helps, for people.
        text: Note,
    }
    /// S → T: frames of this round will come.
    5 RoundStart {
        /// From 0, growing by 1.
        round: u32,
    }
    /// S → T: all frames of the round were sent. Each lane ends with its own mark.
    6 RoundDone {
        /// The round.
        round: u32,
        /// Units sent with content, over all lanes.
        units: u64,
        /// Units sent as zeros.
        zeros: u64,
        /// What the regions must add up to. Empty: not to be compared.
        sums: Sums,
    }
    /// T → S: everything of the round lies in its place.
    7 RoundAck {
        /// The round.
        round: u32,
        /// Units with content.
        units: u64,
        /// Units of zeros.
        zeros: u64,
        /// What the regions add up to. Empty if S gave none.
        sums: Sums,
    }
    /// S → T, while the guest runs: try this state without leaving a trace.
    8 Rehearse {
        /// A saved state.
        state: State,
    }
    /// T → S: how that went.
    9 Rehearsed {
        /// Time that restoring took, in microseconds.
        restore_us: u64,
        /// What would fail, each with its remedy. Empty: nothing.
        problems: List<Note, MAX_PROBLEMS>,
    }
    /// S → T: S has recorded `Offered`. Answered by [`TargetSays::Ready`] or a refusal.
    10 OfferSwitch {
        /// The switch.
        switch: Switch,
    }
    /// S → T: the last piece. Sending it is the point of doubt.
    11 LastPiece {
        /// The switch.
        switch: Switch,
        /// The guest's user had paused it: it arrives paused.
        paused: bool,
        /// The state of the stopped guest.
        state: State,
    }
    /// S's side → T's: where the switch stands. [`SourceSays::Ceded`] is the commit.
    12 FromSource {
        /// The switch.
        switch: Switch,
        /// The word.
        says: SourceSays,
    }
    /// S's daemon → T's side: where do you stand? Asked after S's death was proved.
    13 Probe {
        /// The switch.
        switch: Switch,
        /// To be repeated in the answer.
        question: QuestionId,
    }
    /// T's side → S's: where do you stand?
    14 Ask {
        /// The switch.
        switch: Switch,
    }
    /// T's side → S's: where the target stands.
    15 FromTarget {
        /// The switch.
        switch: Switch,
        /// The word.
        says: TargetSays,
        /// The question it answers.
        question: Option<QuestionId>,
        /// The cause, for people. May be empty.
        text: Note,
    }
    /// T → S, before the word that it is prepared, or that it is not: figures for the report.
    16 Restored {
        /// The switch.
        switch: SwitchId,
        /// Time that restoring took, in microseconds.
        restore_us: u64,
        /// What the regions add up to.
        sums: Sums,
    }
    /// Either side: the attempt ends here. Accepted until the point of doubt.
    17 Cancel {
        /// Why.
        text: Note,
    }
    /// T → S, now and then: how far T is.
    18 Progress {
        /// The round T works on.
        round: u32,
        /// Bytes of guest memory written in this attempt.
        bytes: u64,
    }
    /// Either side: answer with the same number.
    19 Ping {
        /// Any number.
        nonce: u64,
    }
    /// The answer.
    20 Pong {
        /// The number of the ping.
        nonce: u64,
    }
    /// Either side, when sums differ: the sums of equal parts of a span.
    21 AskSums {
        /// The span.
        span: Span,
        /// In how many parts, 1 to [`MAX_DIGESTS`].
        parts: u16,
    }
    /// The answer; the last part may be shorter.
    22 AnswerSums {
        /// The span.
        span: Span,
        /// Sums of its parts.
        sums: List<Digest, MAX_DIGESTS>,
    }
    /// T → S, when the guest runs there: figures for the report.
    23 Started {
        /// The switch.
        switch: SwitchId,
        /// When each step was done, in microseconds since the last piece was heard, in the order
        /// of the session's list of steps.
        steps: List<u64, MAX_STEPS>,
    }
}

const REHEARSE: u16 = 8;
const LAST_PIECE: u16 = 11;

fn unknown_kind(kind: u16) -> WireError {
    WireError::Unknown { what: "a message of kind", found: kind.into() }
}

/// Most bytes of the body of a message of that kind.
pub(super) fn max_body(kind: u16) -> usize {
    if matches!(kind, REHEARSE | LAST_PIECE) { MAX_STATE + 128 } else { MAX_BODY }
}

/// What stands before the body of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlHeader {
    head: [u8; 8],
    kind: u16,
    len: usize,
    crc: u32,
}

impl ControlHeader {
    /// Reads it, and checks kind and length. Read [`body_len`](Self::body_len) bytes then.
    ///
    /// # Errors
    /// [`WireError`] says what is wrong.
    pub fn decode(_: Version, bytes: &[u8; CONTROL_HEADER]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes);
        let head = from.array("a control header")?;
        let crc = from.u32("a control header")?;
        let mut from = Reader::new(&head);
        let len = from.u32("a control header")?;
        let kind = from.u16("a control header")?;
        if !KINDS.contains(&kind) {
            return Err(unknown_kind(kind));
        }
        if from.u16("a control header")? != 0 {
            return Err(WireError::Invalid("reserved bytes of a control header are not 0"));
        }
        let len = limited("a control message", len.into(), max_body(kind) as u64)?;
        Ok(Self { head, kind, len, crc })
    }

    /// Bytes of the body that follows: at most 128 KiB, with a state 32 MiB.
    pub fn body_len(&self) -> usize {
        self.len
    }
}

impl Message {
    /// The bytes to send, header and all.
    pub fn encode(&self, _: Version) -> Vec<u8> {
        let mut out = vec![0; CONTROL_HEADER];
        self.put(&mut out);
        // The types of the fields keep every body below its limit; a test holds them to it.
        let len = u32::try_from(out.len() - CONTROL_HEADER).unwrap_or(u32::MAX);
        let (header, body) = out.split_at_mut(CONTROL_HEADER);
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4..6].copy_from_slice(&self.kind().to_le_bytes());
        let crc = crc32(&header[..8], body);
        header[8..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the body behind `header`.
    ///
    /// # Errors
    /// [`WireError`] says what is wrong.
    pub fn decode(_: Version, header: &ControlHeader, body: &[u8]) -> Result<Self, WireError> {
        if body.len() != header.len {
            return Err(WireError::Short("a control message"));
        }
        if crc32(&header.head, body) != header.crc {
            return Err(WireError::Checksum);
        }
        let mut from = Reader::new(body);
        let message = Self::take(header.kind, &mut from)?;
        from.end()?;
        message.check()?;
        Ok(message)
    }

    /// Limits of single numbers.
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Offer { lanes, .. } | Self::Accept { lanes, .. } => {
                if *lanes == 0 {
                    return Err(WireError::Invalid("a move needs at least one lane"));
                }
                limited("a number of lanes", (*lanes).into(), MAX_LANES.into()).map(drop)
            }
            Self::AskSums { parts, .. } => {
                if *parts == 0 {
                    return Err(WireError::Invalid("a span cannot be divided in 0 parts"));
                }
                limited("a number of sums", (*parts).into(), MAX_DIGESTS as u64).map(drop)
            }
            _ => Ok(()),
        }
    }
}
