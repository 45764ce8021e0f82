use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const UNITS: u64 = 200;

fn layout() -> Layout {
    Layout::new(4096, UNITS).unwrap()
}

/// What is done to a set and to its stupid model.
#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    Remove(u64, u64),
    Word(u64, u64),
    Union(Vec<u64>),
    Subtract(Vec<u64>),
    Take(u64),
    TakeMany(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let some = prop::collection::vec(0..UNITS, 0..30);
    prop_oneof![
        (0..UNITS, 1..UNITS).prop_map(|(f, c)| Step::Insert(f, c)),
        (0..UNITS, 1..UNITS).prop_map(|(f, c)| Step::Remove(f, c)),
        (0..300u64, any::<u64>()).prop_map(|(f, w)| Step::Word(f, w)),
        (0..5u64, any::<u64>()).prop_map(|(f, w)| Step::Word(f * 64, w)),
        some.clone().prop_map(Step::Union),
        some.prop_map(Step::Subtract),
        (0..70u64).prop_map(Step::Take),
        (0..150u64).prop_map(Step::TakeMany),
    ]
}

fn set_of(units: &[u64]) -> UnitSet {
    let mut set = UnitSet::empty(&layout());
    for &unit in units {
        set.insert_run(layout().run(unit, 1).unwrap());
    }
    set
}

fn take(model: &mut BTreeSet<u64>, cursor: &mut u64, max: u64) -> Option<(u64, u64)> {
    let first = *model.range(*cursor..).next().or_else(|| model.first())?;
    let mut count = 0;
    while count < max.max(1) && model.remove(&(first + count)) {
        count += 1;
    }
    *cursor = first + count;
    Some((first, count))
}

fn apply(set: &mut UnitSet, model: &mut BTreeSet<u64>, at: (&mut Cursor, &mut u64), step: Step) {
    let (cursor, model_cursor) = at;
    match step {
        Step::Insert(first, count) | Step::Remove(first, count) => {
            let Ok(run) = layout().run(first, count) else { return };
            if matches!(step, Step::Insert(..)) {
                set.insert_run(run);
                model.extend(run.range());
            } else {
                set.remove_run(run);
                model.retain(|u| !run.range().contains(u));
            }
        }
        Step::Word(first, word) => {
            let units: Vec<u64> =
                (0..64).filter(|b| word >> b & 1 == 1).map(|b| first + b).collect();
            let valid = first % 64 == 0 && units.iter().all(|&u| u < UNITS);
            assert_eq!(set.insert_word(first, word).is_ok(), valid);
            if valid {
                model.extend(units);
            }
        }
        Step::Union(units) => {
            set.union(&set_of(&units)).unwrap();
            model.extend(units);
        }
        Step::Subtract(units) => {
            set.subtract(&set_of(&units)).unwrap();
            model.retain(|u| !units.contains(u));
        }
        Step::Take(max) => {
            let run = set.take_run(cursor, max).map(|r| (r.first().get(), r.count()));
            assert_eq!(run, take(model, model_cursor, max));
        }
        Step::TakeMany(max) => {
            let mut runs = Vec::new();
            let before = model.len() as u64;
            assert_eq!(set.take_runs(cursor, max, &mut runs), max.min(before));
            for run in runs {
                assert!(run.range().all(|u| model.remove(&u)));
                *model_cursor = run.end();
            }
        }
    }
}

proptest! {
    #[test]
    fn behaves_like_a_tree_of_numbers(steps in prop::collection::vec(step(), 1..40)) {
        let (mut set, mut model) = (UnitSet::empty(&layout()), BTreeSet::new());
        let (mut cursor, mut model_cursor) = (Cursor::default(), 0);
        for step in steps {
            apply(&mut set, &mut model, (&mut cursor, &mut model_cursor), step);
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            for unit in layout().whole().iter() {
                prop_assert_eq!(set.contains(unit), model.contains(&unit.get()));
            }
            let units: Vec<u64> = set.runs().flat_map(|r| r.range()).collect();
            prop_assert_eq!(&units, &model.iter().copied().collect::<Vec<_>>());
            // Runs are as long as they get.
            prop_assert!(set.runs().all(|r| !model.contains(&r.end())));
        }
    }
}

#[test]
fn a_full_set_ends_where_its_layout_ends() {
    for units in [1, 63, 64, 65, 128, 1000] {
        let layout = Layout::new(4096, units).unwrap();
        let set = UnitSet::full(&layout);
        assert_eq!(set.len(), units);
        assert_eq!(set.runs().collect::<Vec<_>>(), [layout.whole()]);
    }
}

#[test]
fn sets_of_different_layouts_do_not_mix() {
    let mut set = UnitSet::empty(&layout());
    let other = UnitSet::full(&Layout::new(4096, UNITS + 1).unwrap());
    assert_eq!(set.union(&other), Err(SetError::Size(UNITS, UNITS + 1)));
    assert_eq!(set.subtract(&other), Err(SetError::Size(UNITS, UNITS + 1)));
    assert!(set.is_empty());
}

#[test]
fn every_unit_gets_its_turn() {
    // Unit 0 becomes dirty again after each run; the others still come.
    let mut set = UnitSet::full(&layout());
    let mut cursor = Cursor::default();
    let mut seen = BTreeSet::new();
    for _ in 0..UNITS {
        seen.extend(set.take_run(&mut cursor, 1).unwrap().range());
        set.insert_run(layout().run(0, 1).unwrap());
    }
    assert_eq!(seen.len() as u64, UNITS);
}
