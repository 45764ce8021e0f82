use proptest::prelude::*;

use super::*;

/// Value of an `.equ` of the guest's source that is one literal.
fn equ(name: &str) -> u64 {
    let line = include_str!("guest/defs.s")
        .lines()
        .find(|l| l.starts_with(&format!(".equ {name},")))
        .unwrap_or_else(|| panic!("no {name}"));
    let text = line.split(',').nth(1).unwrap().split('#').next().unwrap().trim();
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

#[test]
fn the_guest_uses_the_same_numbers() {
    for (name, value) in [
        ("SC_LOAD", LOAD),
        ("SC_HEADER", CONTROL),
        ("SC_CPUS", CONTROL + CPU_BLOCKS as u64),
        ("SC_BSS_END", BSS_END),
        ("SC_PAGES", PAGES),
        ("SC_HOLE", LOW_END),
        ("SC_MAX_CPUS", u64::from(MAX_CPUS)),
        ("LOG_ENTRIES", LOG_ENTRIES),
        ("K_HEADER", HEADER_MAGIC),
        ("R_SIZE", REGION_LEN as u64),
    ] {
        assert_eq!(equ(name), value, "{name}");
    }
    assert_eq!(1 << equ("SC_CPU_SHIFT"), CPU_BLOCK_LEN);
    let offsets: &[(&str, usize)] = &[
        ("H_MAGIC", header::MAGIC),
        ("H_LAYOUT", header::LAYOUT),
        ("H_CPUS", header::CPUS),
        ("H_SEED", header::SEED),
        ("H_NRAND", header::NRAND),
        ("H_WS_PAGES", header::WS_PAGES),
        ("H_DATA_PAGES", header::DATA_PAGES),
        ("H_BASE_PFN", header::BASE_PFN),
        ("H_LOW_PAGES", header::LOW_PAGES),
        ("H_GO", header::GO),
        ("H_REPORTED", header::REPORTED),
        ("H_BEATS", header::BEATS),
        ("R_BASE", cpu::R_BASE),
        ("R_N", cpu::R_N),
        ("R_A", cpu::R_A),
        ("R_STEPS", cpu::R_STEPS),
        ("C_PHASE", cpu::PHASE),
        ("C_PAGES", cpu::PAGES),
        ("C_ERRORS", cpu::ERRORS),
        ("C_BACK", cpu::BACK),
        ("C_LOG_COUNT", cpu::LOG_COUNT),
        ("C_LOG_BASE", cpu::LOG_BASE),
    ];
    for (name, offset) in offsets {
        assert_eq!(equ(name), *offset as u64, "{name}");
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn area() -> Vec<u8> {
    let mut bytes = vec![0; CONTROL_LEN];
    for (at, value) in [
        (header::MAGIC, HEADER_MAGIC),
        (header::LAYOUT, 1),
        (header::CPUS, 1),
        (header::SEED, 1),
        (header::NRAND, 508),
        (header::WS_PAGES, 10),
        (header::DATA_PAGES, 2),
        (header::BASE_PFN, 0x400),
        (header::LOW_PAGES, 8),
    ] {
        put(&mut bytes, at, value);
    }
    let block = CPU_BLOCKS;
    put(&mut bytes, block + cpu::R_N, 10);
    put(&mut bytes, block + cpu::R_A, 1);
    put(&mut bytes, block + cpu::R_STEPS, 23);
    put(&mut bytes, block + 2 * REGION_LEN + cpu::R_BASE, 10);
    put(&mut bytes, block + 2 * REGION_LEN + cpu::R_N, 2);
    put(&mut bytes, block + 2 * REGION_LEN + cpu::R_A, 1);
    bytes
}

#[test]
fn expected_versions_and_places() {
    let control = Control::parse(&area()).unwrap();
    let expected = control.expected();
    let high = HIGH_START / 4096;
    assert_eq!(expected.len(), 12);
    assert_eq!(expected[2], (0x402, 3));
    assert_eq!(expected[3], (0x403, 2));
    assert_eq!(expected[8], (high, 2));
    assert_eq!(expected[11], (high + 3, 0));
    assert_eq!(control.in_progress(), [0x403]);
    assert_eq!(control.model, PageModel::new(1, 0));
}

#[test]
fn what_was_rewritten_includes_the_page_under_way() {
    let earlier = Control::parse(&area()).unwrap();
    let mut bytes = area();
    put(&mut bytes, CPU_BLOCKS + cpu::R_STEPS, 25);
    let later = Control::parse(&bytes).unwrap();
    assert_eq!(later.rewritten_since(&earlier), [0x403, 0x404, 0x405]);
}

#[test]
fn nonsense_is_refused() {
    assert_eq!(Control::parse(&[]), Err(ControlError::Short(0)));
    assert_eq!(Control::parse(&vec![0; CONTROL_LEN]), Err(ControlError::NotReady));
    for (at, value) in
        [(header::LAYOUT, 2), (header::CPUS, 33), (header::NRAND, 509), (CPU_BLOCKS + 0x120, 9)]
    {
        let mut bytes = area();
        put(&mut bytes, at, value);
        assert!(matches!(Control::parse(&bytes), Err(ControlError::Invalid(_))));
    }
}

#[test]
fn the_log_ring_tells_when_it_lost_entries() {
    let mut bytes = area();
    put(&mut bytes, CPU_BLOCKS + cpu::LOG_COUNT, LOG_ENTRIES + 2);
    put(&mut bytes, CPU_BLOCKS + cpu::LOG_BASE, PAGES);
    let cpu = Control::parse(&bytes).unwrap().cpus.remove(0);
    assert!(cpu.log_entries(1, 5).is_none());
    let last: Vec<u64> = cpu.log_entries(LOG_ENTRIES - 1, LOG_ENTRIES + 1).unwrap().collect();
    assert_eq!(last, [PAGES + (LOG_ENTRIES - 1) * 8, PAGES]);
    assert!(cpu.log_entries(5, LOG_ENTRIES + 3).is_none());
}

proptest! {
    /// A guest writes there what it likes, also while it is read.
    #[test]
    fn any_area_is_refused_or_read(
        words in prop::collection::vec((0..CONTROL_LEN / 8, any::<u64>(), 0..64u32), 0..40),
        cut in 0..CONTROL_LEN,
    ) {
        let mut bytes = area();
        for (at, value, small) in words {
            put(&mut bytes, at * 8, value >> small);
        }
        if let Ok(control) = Control::parse(&bytes) {
            prop_assert!((1..=MAX_CPUS as usize).contains(&control.cpus.len()));
        }
        prop_assert_eq!(Control::parse(&bytes[..cut]), Err(ControlError::Short(cut)));
    }
}
