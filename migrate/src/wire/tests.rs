use proptest::prelude::*;

use super::control::{CONTROL_HEADER, KINDS, MAX_DIGESTS, MAX_NAME, MAX_STATE};
use super::control::{Note, RefuseCode, Region, RegionKind, Span, max_body};
use super::data::{DATA_HEADER, FrameError, MAX_DATA_BODY, MAX_ZERO_RUNS, Place, RawRun, Units};
use super::data::{UnpackError, put_round_end, put_units, put_zeros};
use super::hello::{Hello, HelloText, OPENING_HEADER, OpeningHeader, Reply};
use super::switch::{REFUSALS, SOURCE_WORDS, TARGET_WORDS};
use super::*;
use crate::codec::batch::MAX_BATCH_BYTES;
use crate::codec::block::Codec;
use crate::codec::{Batch, Digest};
use crate::handover::message::{Refusal, SourceSays, TargetSays};
use crate::handover::term::{HostId, QuestionId, Switch, SwitchId, Term};
use crate::unit::Layout;

const V1: Version = Version::V1;

/// The frame called `name` among the golden ones.
fn golden(name: &str) -> Vec<u8> {
    let lines = include_str!("golden_v1.txt").lines().skip_while(|line| *line != name).skip(1);
    let hex: String = lines.take_while(|l| l.starts_with(' ')).map(str::trim).collect();
    assert!(!hex.is_empty(), "no golden bytes for {name}");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn decode_message(bytes: &[u8]) -> Result<Message, WireError> {
    let (header, body) =
        bytes.split_first_chunk::<CONTROL_HEADER>().ok_or(WireError::Short("the test's header"))?;
    Message::decode(V1, &ControlHeader::decode(V1, header)?, body)
}

fn decode_data(bytes: &[u8]) -> Result<(Place, DataFrame<'_>), WireError> {
    let (header, body) =
        bytes.split_first_chunk::<DATA_HEADER>().ok_or(WireError::Short("the test's header"))?;
    let header = DataHeader::decode(V1, header)?;
    Ok((header.place, DataFrame::decode(V1, &header, body)?))
}

fn opening(bytes: &[u8]) -> Result<(OpeningHeader, &[u8]), WireError> {
    let (header, body) =
        bytes.split_first_chunk::<OPENING_HEADER>().ok_or(WireError::Short("the test's header"))?;
    Ok((OpeningHeader::decode(header)?, body))
}

fn id(n: u8) -> [u8; 16] {
    std::array::from_fn(|i| n * 16 + u8::try_from(i).unwrap())
}

fn switch() -> Switch {
    let number = |n| u128::from_be_bytes(id(n));
    let (from, to) = (HostId(number(5)), HostId(number(6)));
    Switch { id: SwitchId(number(4)), before: Term::new(11), term: Term::new(12), from, to }
}

/// One message of each kind, those of the golden file.
fn examples() -> Vec<Message> {
    let (switch, attempt) = (switch(), AttemptId(id(2)));
    let digest = Digest(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let span = Span { region: 1, first: 4096, count: 1024 };
    let regions = vec![
        Region { kind: RegionKind::Ram, unit_size: 4096, units: 262_144 },
        Region { kind: RegionKind::Disk, unit_size: 65536, units: 160 },
    ];
    let blob = |bytes: &[u8]| bytes.to_vec().try_into().unwrap();
    let note = Note::clipped;
    let nonce = 0x1122_3344_5566_7788;
    vec![
        Message::Offer {
            move_id: MoveId(id(1)),
            attempt,
            guest: GuestId(id(3)),
            name: Text::clipped("web-1"),
            lanes: 4,
            definition: b"name = \"web-1\"".to_vec().try_into().unwrap(),
        },
        Message::Layout {
            regions: regions.try_into().unwrap(),
            digest_key: std::array::from_fn(|i| u8::try_from(i).unwrap()),
        },
        Message::Accept { attempt, lanes: 2 },
        Message::Refuse {
            code: RefuseCode::NO_ROOM,
            text: note("12 GiB of memory are needed, 3 GiB are free"),
        },
        Message::RoundStart { round: 7 },
        Message::RoundDone {
            round: 7,
            units: 1000,
            zeros: 24,
            sums: vec![digest, Digest(0)].try_into().unwrap(),
        },
        Message::RoundAck { round: 7, units: 1000, zeros: 24, sums: List::default() },
        Message::Rehearse { state: blob(&[1, 2, 3]) },
        Message::Rehearsed {
            restore_us: 4200,
            problems: vec![note("CPU feature avx512f is missing")].try_into().unwrap(),
        },
        Message::OfferSwitch { switch },
        Message::LastPiece { switch, paused: true, state: blob(&[9, 8]) },
        Message::FromSource { switch, says: SourceSays::Withdrawn },
        Message::Probe { switch, question: QuestionId(0x0102) },
        Message::Ask { switch },
        Message::FromTarget {
            switch,
            says: TargetSays::Refuses(Refusal::DiskTaken),
            question: None,
            text: note("disk vda is locked by host3"),
        },
        Message::Restored {
            switch: switch.id,
            restore_us: 5100,
            sums: vec![digest].try_into().unwrap(),
        },
        Message::Cancel { text: note("cancelled by käthe") },
        Message::Progress { round: 3, bytes: 1 << 40 },
        Message::Ping { nonce },
        Message::Pong { nonce },
        Message::AskSums { span, parts: 16 },
        Message::AnswerSums { span, sums: vec![Digest(1), digest].try_into().unwrap() },
        Message::Started { switch: switch.id, steps: vec![5100, 1 << 40].try_into().unwrap() },
    ]
}

#[test]
fn golden_messages() {
    let examples = examples();
    let kinds: Vec<u16> = examples.iter().map(Message::kind).collect();
    assert_eq!(kinds, KINDS, "every kind has an example");
    for message in examples {
        let bytes = golden(message.name());
        assert_eq!(message.encode(V1), bytes, "{}", message.name());
        assert_eq!(decode_message(&bytes), Ok(message));
    }
}

#[test]
fn golden_opening() {
    let hello = Hello::of_all_versions("migrate 0.1.0");
    assert_eq!(hello.encode(), golden("hello"));
    let bytes = golden("hello");
    let (header, body) = opening(&bytes).unwrap();
    assert_eq!(Hello::decode(&header, body), Ok(hello));
    let chosen = Reply::Chosen { version: 1, program: HelloText::clipped("migrate 0.1.0") };
    let refused =
        Reply::Refused { versions: vec![1].try_into().unwrap(), text: HelloText::clipped("no") };
    for (name, reply) in [("chosen", chosen), ("refused", refused)] {
        let bytes = golden(name);
        assert_eq!(reply.encode(), bytes);
        let (header, body) = opening(&bytes).unwrap();
        assert_eq!(Reply::decode(&header, body), Ok(reply));
    }
}

#[test]
fn versions_are_agreed_or_refused() {
    let hello = |versions: &[u16]| Hello {
        versions: versions.to_vec().try_into().unwrap(),
        program: HelloText::clipped("x"),
    };
    assert_eq!(hello(&[9, 1, 0]).choose(), Ok(V1));
    let (reply, version) = Reply::to(&hello(&[1]), "y");
    assert_eq!(version, Some(V1));
    assert!(matches!(reply, Reply::Chosen { version: 1, .. }));
    for (offered, said) in [(&[2, 3][..], "2, 3"), (&[], "none")] {
        let (reply, version) = Reply::to(&hello(offered), "y");
        assert_eq!(version, None);
        let Reply::Refused { text, .. } = reply else { panic!("{reply:?}") };
        let expected = format!(
            "no common protocol version: this host speaks {said}, the other 1; \
             upgrade the older one"
        );
        assert_eq!(text.as_str(), expected);
    }
}

/// A batch of units of 512 bytes, with content made of their numbers.
fn batch(units: &[u64], layout: &Layout) -> Batch {
    let mut batch = Batch::new(layout);
    for &n in units {
        batch.slot().unwrap().iter_mut().zip(0..).for_each(|(byte, i)| {
            *byte = u8::try_from((n * 7 + i) % 251).unwrap();
        });
        batch.keep(layout.unit(n).unwrap()).unwrap();
    }
    batch
}

fn unpacked(units: &Units<'_>, layout: &Layout) -> Result<Vec<(u64, Vec<u8>)>, UnpackError> {
    let mut scratch = vec![0; MAX_BATCH_BYTES];
    let mut found = Vec::new();
    units.unpack(layout, &mut scratch, |run, content| {
        let contents = content.chunks(layout.unit_len()).map(<[u8]>::to_vec);
        found.extend(run.range().zip(contents));
    })?;
    Ok(found)
}

#[test]
fn golden_data() {
    let layout = Layout::new(512, 100).unwrap();
    let mut out = Vec::new();
    let mut batch = Batch::new(&layout);
    for n in [5, 6, 9] {
        let slot = batch.slot().unwrap();
        slot.iter_mut().zip((0..=255).cycle()).for_each(|(byte, i)| *byte = i);
        batch.keep(layout.unit(n).unwrap()).unwrap();
    }
    let place = Place { region: 1, round: 7, sequence: 300 };
    put_units(V1, place, &batch, Codec::Raw, &mut out).unwrap();
    assert_eq!(out, golden("units-raw"));

    let layout = Layout::new(512, 1 << 32).unwrap();
    let runs = [layout.run(0, 16).unwrap(), layout.run(100, (1 << 32) - 100).unwrap()];
    let place = Place { region: 0, round: 7, sequence: 301 };
    put_zeros(V1, place, &runs, &mut out).unwrap();
    assert_eq!(out, golden("zeros"));
    let (found, frame) = decode_data(&out).unwrap();
    let DataFrame::Zeros(raw) = frame else { panic!("{frame:?}") };
    assert_eq!(found, place);
    assert_eq!(raw.iter().map(|r| r.run(&layout).unwrap()).collect::<Vec<_>>(), runs);

    put_round_end(V1, Place { sequence: 302, ..place }, 1000, 24, &mut out);
    assert_eq!(out, golden("round-end"));
}

#[test]
fn frames_that_make_no_sense_are_not_made() {
    let layout = Layout::new(512, 1 << 32).unwrap();
    let place = Place { region: 0, round: 0, sequence: 0 };
    let mut out = Vec::new();
    let mut put = |units: &[u64]| {
        put_units(V1, place, &batch(units, &layout), Codec::Raw, &mut out).map(drop)
    };
    assert_eq!(put(&[]), Err(FrameError::Empty));
    assert_eq!(put(&[5, 4]), Err(FrameError::Order));
    assert_eq!(put(&[5, 5]), Err(FrameError::Order));
    let run = |first, count| layout.run(first, count).unwrap();
    let mut put = |runs: &[crate::unit::Run]| put_zeros(V1, place, runs, &mut out);
    assert_eq!(put(&[]), Err(FrameError::Empty));
    assert_eq!(put(&[run(0, 2), run(1, 1)]), Err(FrameError::Order));
    let many: Vec<_> = (0..=MAX_ZERO_RUNS as u64).map(|n| run(2 * n, 1)).collect();
    assert_eq!(put(&many), Err(FrameError::TooMany(MAX_ZERO_RUNS + 1)));
    assert_eq!(put(&many[1..]), Ok(()));
    // More units than the count of a run can say.
    assert_eq!(put(&[layout.whole()]), Ok(()));
    let (_, frame) = decode_data(&out).unwrap();
    let parts = [RawRun { first: 0, count: u32::MAX }, RawRun { first: u32::MAX.into(), count: 1 }];
    assert_eq!(frame, DataFrame::Zeros(parts.to_vec()));
}

#[test]
fn the_largest_messages_fit_their_limits() {
    let text = "x".repeat(2000);
    let largest = [
        Message::Layout {
            regions: vec![Region { kind: RegionKind::Ram, unit_size: 1, units: 1 }; 64]
                .try_into()
                .unwrap(),
            digest_key: [0; 32],
        },
        Message::Offer {
            move_id: MoveId(id(1)),
            attempt: AttemptId(id(2)),
            guest: GuestId(id(3)),
            name: Text::clipped(&text),
            lanes: 1,
            definition: vec![0; 64 << 10].try_into().unwrap(),
        },
        Message::Rehearsed {
            restore_us: 0,
            problems: vec![Note::clipped(&text); 64].try_into().unwrap(),
        },
        Message::LastPiece {
            switch: switch(),
            paused: false,
            state: vec![0; MAX_STATE].try_into().unwrap(),
        },
        Message::Rehearse { state: vec![0; MAX_STATE].try_into().unwrap() },
        Message::AnswerSums {
            span: Span { region: 0, first: 0, count: 0 },
            sums: vec![Digest(0); MAX_DIGESTS].try_into().unwrap(),
        },
    ];
    for message in largest {
        assert_eq!(decode_message(&message.encode(V1)).as_ref(), Ok(&message));
    }
}

#[test]
fn limits_are_checked_before_the_body_is_read() {
    for &kind in KINDS {
        let header = |len: usize| {
            let mut header = [0; CONTROL_HEADER];
            header[..4].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
            header[4..6].copy_from_slice(&kind.to_le_bytes());
            ControlHeader::decode(V1, &header).map(|h| h.body_len())
        };
        let limit = max_body(kind);
        assert_eq!(header(limit), Ok(limit));
        assert!(matches!(header(limit + 1), Err(WireError::Limit { .. })), "kind {kind}");
        assert!(limit <= MAX_STATE + 128);
    }
    let mut header = [0; DATA_HEADER];
    header[4] = 1;
    header[..4].copy_from_slice(&u32::try_from(MAX_DATA_BODY + 1).unwrap().to_le_bytes());
    assert!(matches!(DataHeader::decode(V1, &header), Err(WireError::Limit { .. })));
    header[..4].copy_from_slice(&[0; 4]);
    header[20..24].copy_from_slice(&u32::try_from(MAX_BATCH_BYTES + 1).unwrap().to_le_bytes());
    assert!(matches!(DataHeader::decode(V1, &header), Err(WireError::Limit { .. })));
}

/// Replaces bytes, then makes the checksum right again, so that the decoder behind it is reached.
fn mutated(bytes: &[u8], changes: &[(prop::sample::Index, u8)], header: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..header - 4]);
    hasher.update(&bytes[header..]);
    let crc = hasher.finalize().to_le_bytes();
    bytes[header - 4..header].copy_from_slice(&crc);
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    let value = prop_oneof![any::<u8>(), Just(0), Just(0xFF)];
    prop::collection::vec((any::<prop::sample::Index>(), value), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_message(&bytes);
        let _ = decode_data(&bytes);
        if let Ok((header, body)) = opening(&bytes) {
            let _ = (Hello::decode(&header, body), Reply::decode(&header, body));
        }
    }

    #[test]
    fn a_damaged_message_is_refused_or_another_message(
        example: prop::sample::Index, changes in changes(), cut in 0..40usize,
    ) {
        let examples = examples();
        let bytes = examples[example.index(examples.len())].encode(V1);
        let bytes = mutated(&bytes, &changes, CONTROL_HEADER);
        // What decodes is what encodes to the same bytes: nothing is ignored or misread.
        if let Ok(message) = decode_message(&bytes) {
            prop_assert_eq!(message.encode(V1), bytes.clone());
        }
        if cut > 0 && cut < bytes.len() {
            prop_assert!(decode_message(&bytes[..bytes.len() - cut]).is_err());
        }
    }

    #[test]
    fn damage_without_a_new_checksum_is_seen(
        example: prop::sample::Index, at: prop::sample::Index, flip in 1..=255u8,
    ) {
        let examples = examples();
        let mut bytes = examples[example.index(examples.len())].encode(V1);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(decode_message(&bytes).is_err());
    }

    #[test]
    fn units_arrive_as_they_were(
        units in prop::collection::btree_set(0..60u64, 1..=16), lz4: bool, region: u16, round: u32,
        sequence: u64,
    ) {
        let layout = Layout::new(512, 60).unwrap();
        let units: Vec<u64> = units.into_iter().collect();
        let batch = batch(&units, &layout);
        let place = Place { region, round, sequence };
        let wanted = if lz4 { Codec::Lz4 } else { Codec::Raw };
        let mut out = vec![1, 2, 3];
        let sent = put_units(V1, place, &batch, wanted, &mut out).unwrap();
        let (found, frame) = decode_data(&out).unwrap();
        prop_assert_eq!(found, place);
        let DataFrame::Units(frame) = frame else { panic!("{frame:?}") };
        prop_assert_eq!((frame.codec(), frame.payload().len()), (sent.codec, sent.payload));
        let expected: Vec<(u64, Vec<u8>)> =
            units.iter().copied().zip(batch.raw().chunks(512).map(<[u8]>::to_vec)).collect();
        prop_assert_eq!(unpacked(&frame, &layout), Ok(expected));
        // A layout with other units or fewer of them does not take it.
        let last = *units.last().unwrap();
        let short = Layout::new(512, last.max(1)).unwrap();
        prop_assert_eq!(unpacked(&frame, &short).is_err(), last >= short.units());
        let other = Layout::new(1024, 60).unwrap();
        let refused = matches!(unpacked(&frame, &other), Err(UnpackError::Length { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn damaged_data_is_refused_or_stays_in_its_layout(
        units in prop::collection::btree_set(0..60u64, 1..=16), kind in 0..3u8, changes in changes(),
    ) {
        let layout = Layout::new(512, 60).unwrap();
        let units: Vec<u64> = units.into_iter().collect();
        let place = Place { region: 0, round: 1, sequence: 2 };
        let mut out = Vec::new();
        match kind {
            0 => drop(put_units(V1, place, &batch(&units, &layout), Codec::Lz4, &mut out).unwrap()),
            1 => {
                let runs: Vec<_> = units.iter().map(|u| layout.run(*u, 1).unwrap()).collect();
                put_zeros(V1, place, &runs, &mut out).unwrap();
            }
            _ => put_round_end(V1, place, 3, 4, &mut out),
        }
        match decode_data(&mutated(&out, &changes, DATA_HEADER)) {
            Ok((_, DataFrame::Units(frame))) => {
                if let Ok(found) = unpacked(&frame, &layout) {
                    prop_assert!(found.len() <= 16);
                    prop_assert!(found.iter().all(|(u, c)| *u < 60 && c.len() == 512));
                }
            }
            Ok((_, DataFrame::Zeros(runs))) => {
                for run in runs.iter().filter_map(|r| r.run(&layout).ok()) {
                    prop_assert!(run.end() <= 60);
                }
            }
            Ok((_, DataFrame::RoundEnd { .. })) | Err(_) => {}
        }
    }

    #[test]
    fn damaged_openings_are_refused_or_others(changes in changes(), which in 0..3usize) {
        let bytes = golden(["hello", "chosen", "refused"][which]);
        let mut bytes = mutated(&bytes, &changes, OPENING_HEADER);
        let crc = crc32fast::hash(&bytes[OPENING_HEADER..]).to_le_bytes();
        bytes[OPENING_HEADER - 4..OPENING_HEADER].copy_from_slice(&crc);
        if let Ok((header, body)) = opening(&bytes) {
            if let Ok(hello) = Hello::decode(&header, body) {
                prop_assert_eq!(hello.encode(), bytes.clone());
            }
            if let Ok(reply) = Reply::decode(&header, body) {
                prop_assert_eq!(reply.encode(), bytes);
            }
        }
    }
}

#[test]
fn every_word_of_a_switch_arrives() {
    let refusals = REFUSALS.iter().map(|r| TargetSays::Refuses(*r));
    let switch = switch();
    let question = Some(QuestionId(u128::MAX));
    let messages = TARGET_WORDS.into_iter().chain(refusals).map(|says| Message::FromTarget {
        switch,
        says,
        question,
        text: Note::default(),
    });
    let source = SOURCE_WORDS.iter().map(|says| Message::FromSource { switch, says: *says });
    let mut seen = Vec::new();
    for message in messages.chain(source) {
        let bytes = message.encode(V1);
        assert!(!seen.contains(&bytes));
        assert_eq!(decode_message(&bytes), Ok(message));
        seen.push(bytes);
    }
}

#[test]
fn a_name_fits() {
    assert_eq!(Text::<MAX_NAME>::clipped(&"a".repeat(63)).as_str().len(), 63);
}
