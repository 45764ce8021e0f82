use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// 1 GiB/s, 30 ms of fixed costs, 300 ms allowed.
fn costs() -> Costs {
    Costs {
        offer: ms(5),
        stop: ms(2),
        save: ms(3),
        restore: ms(15),
        storage: ms(4),
        arbiter: ms(0),
        round_trip: ms(2),
        state_bytes: MIB,
    }
}

fn inputs(left: u64, dirty_rate: u64, rounds: &[Round]) -> Inputs<'_> {
    Inputs {
        rate: Some(Rate { low: 1000 * MIB, usual: 1200 * MIB }),
        left: left * MIB,
        dirty_rate: dirty_rate * MIB,
        costs: Some(costs()),
        untried: false,
        rounds,
        elapsed: ms(3000),
        limits: Limits { max_downtime: ms(300), timeout: ms(1_800_000) },
    }
}

/// Rounds that left so many MiB.
fn rounds(left: &[u64]) -> Vec<Round> {
    left.iter().map(|l| Round { sent: MIB, left: l * MIB, took: ms(100) }).collect()
}

#[test]
fn the_blackout_is_the_sum_of_its_parts() {
    let rounds = rounds(&[100]);
    let inputs = inputs(100, 0, &rounds);
    let prediction = decide(&inputs).prediction.unwrap();
    assert_eq!(
        prediction.blackout,
        Parts {
            stop: ms(5),
            memory: ms(100),
            state: ms(1),
            restore: ms(15),
            outside: ms(4),
            network: ms(5),
        }
    );
    assert_eq!(prediction.blackout.total(), ms(130));
    // (100 + 1) MiB at 1200 MiB/s.
    assert_eq!(prediction.usual.as_micros(), 29_000 + 83_333 + 833);
    // One more round of 83 + 2 ms leaves nothing.
    assert_eq!(prediction.total.unwrap().as_millis(), 3000 + 85 + 5 + 30);
}

#[test]
fn decisions() {
    use Decision::{CannotFit, KeepCopying, Stalled, Switch};
    // (left and dirty rate in MiB and MiB/s, what rounds left, decision)
    let table: &[(u64, u64, &[u64], Decision)] = &[
        // Before the end of the first pass.
        (4000, 100, &[], KeepCopying),
        (0, 0, &[], KeepCopying),
        // It fits, and one more round makes it better.
        (200, 100, &[200], KeepCopying),
        (100, 500, &[1000, 100], KeepCopying),
        // It fits, and it does not get better.
        (2, 100, &[200, 2], Switch),
        (0, 0, &[0], Switch),
        (0, 0, &[100, 0, 0], Switch),
        (100, 1100, &[1000, 100], Switch),
        // The model hopes for more, the last round says otherwise.
        (200, 100, &[205, 200], Switch),
        // Too long, but shrinking.
        (1000, 500, &[2000, 1000], KeepCopying),
        (1000, 500, &[1000], KeepCopying),
        // Once flat may be chance, unless the guest writes faster than the link carries.
        (1000, 500, &[1000, 1000], KeepCopying),
        (1000, 1000, &[1000, 1000], Stalled),
        (1000, 2000, &[900, 1000], Stalled),
        (1000, 500, &[1000, 950, 1000], Stalled),
        (1000, 500, &[1000, 1000, 500, 480], KeepCopying),
    ];
    for (left, dirty, left_before, expected) in table {
        let rounds = rounds(left_before);
        let advice = decide(&inputs(*left, *dirty, &rounds));
        assert_eq!(advice.decision, *expected, "{left} {dirty} {left_before:?}: {}", advice.why);
    }
    let rounds = rounds(&[100]);
    let mut slow = inputs(100, 0, &rounds);
    slow.costs = Some(Costs { restore: ms(290), ..costs() });
    let advice = decide(&slow);
    assert_eq!(advice.decision, CannotFit { settled: false });
    let flat = Inputs { left: 0, ..slow };
    assert_eq!(decide(&flat).decision, CannotFit { settled: true });
    assert_eq!(decide(&Inputs { rounds: &[], ..slow }).decision, CannotFit { settled: false });
    let Why::CannotFit { part: "restoring the state", .. } = advice.why else {
        panic!("{}", advice.why)
    };
}

#[test]
fn time_and_missing_numbers() {
    let rounds = rounds(&[200]);
    let normal = inputs(200, 100, &rounds);
    assert_eq!(decide(&normal).decision, Decision::KeepCopying);
    let ready = Inputs { left: 0, ..normal };
    assert_eq!(decide(&ready).decision, Decision::Switch);
    let untried = decide(&Inputs { untried: true, ..ready });
    assert_eq!(untried.decision, Decision::KeepCopying);
    assert!(matches!(untried.why, Why::Untried { .. }));
    let late = Inputs { elapsed: ms(1_799_900), ..normal };
    assert_eq!(decide(&late).decision, Decision::Switch);
    assert!(matches!(decide(&late).why, Why::TimeRunsOut { .. }));
    let over = Inputs { elapsed: ms(1_800_000), ..normal };
    assert_eq!(decide(&over).decision, Decision::GiveUp);
    assert_eq!(decide(&Inputs { rate: None, ..normal }).why, Why::NotMeasured);
    assert_eq!(decide(&Inputs { costs: None, ..normal }).why, Why::NotRehearsed);
    // A link that stands still may come back, before and after the first pass.
    let dead = Inputs { rate: Some(Rate { low: 0, usual: 0 }), ..normal };
    assert_eq!(decide(&dead).decision, Decision::Stalled);
    assert_eq!(decide(&dead).prediction.unwrap().total, None);
    assert_eq!(decide(&Inputs { rounds: &[], ..dead }).decision, Decision::KeepCopying);
    // So slow that the state alone takes too long.
    let slow = Inputs { rate: Some(Rate { low: MIB, usual: MIB }), left: 0, ..normal };
    let Why::CannotFit { part: "sending the state", .. } = decide(&slow).why else {
        panic!("{}", decide(&slow).why)
    };
    assert_eq!(decide(&slow).decision, Decision::Stalled);
}

fn some_rounds() -> impl Strategy<Value = Vec<Round>> {
    let round = (0..8000 * MIB, 0..8000 * MIB, 0..10_000u64).prop_map(|(sent, left, took)| Round {
        sent,
        left,
        took: ms(took),
    });
    prop::collection::vec(round, 0..6)
}

prop_compose! {
    fn any_inputs()(
        low in 0..2000 * MIB, more in 0..500 * MIB, dirty_rate in 0..3000 * MIB,
        times in prop::array::uniform7(0..100u64), state_bytes in 0..4 * MIB,
        limit in 1..2000u64, elapsed in 0..2_000_000u64, wild in 0..20u32,
    ) -> Inputs<'static> {
        let [offer, stop, save, restore, storage, arbiter, round_trip] = times.map(ms);
        let costs =
            Costs { offer, stop, save, restore, storage, arbiter, round_trip, state_bytes };
        let extreme = wild == 0;
        Inputs {
            rate: Some(Rate { low, usual: if extreme { u64::MAX } else { low + more } }),
            left: 0,
            dirty_rate: if extreme { u64::MAX } else { dirty_rate },
            costs: Some(costs),
            untried: false,
            rounds: &[],
            elapsed: ms(elapsed),
            limits: Limits { max_downtime: ms(limit), timeout: ms(1_800_000) },
        }
    }
}

/// The blackout that is promised.
fn promise(inputs: &Inputs<'_>) -> Option<Duration> {
    decide(inputs).prediction.map(|p| p.blackout.total())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_switch_keeps_the_promise(inputs in any_inputs(), rounds in some_rounds(), left: u64) {
        for left in [left, left % (4000 * MIB), 0] {
            let inputs = Inputs { left, rounds: &rounds, ..inputs };
            let advice = decide(&inputs);
            prop_assert!(!advice.why.to_string().is_empty());
            if advice.decision == Decision::Switch {
                let predicted = advice.prediction.unwrap().blackout.total();
                prop_assert!(predicted <= inputs.limits.max_downtime);
                prop_assert!(!rounds.is_empty());
            }
        }
    }

    #[test]
    fn better_numbers_never_lengthen_the_blackout(
        inputs in any_inputs(), left in 0..4000 * MIB, more in 0..1000 * MIB, less in 0..100u64,
    ) {
        let inputs = Inputs { left, ..inputs };
        let (rate, costs) = (inputs.rate.unwrap(), inputs.costs.unwrap());
        let faster = Rate { low: rate.low + more, usual: rate.usual.saturating_add(more) };
        let better = [
            Inputs { rate: Some(faster), ..inputs },
            Inputs { left: left.saturating_sub(more), ..inputs },
            Inputs { dirty_rate: inputs.dirty_rate.saturating_sub(more), ..inputs },
            Inputs {
                costs: Some(Costs { restore: costs.restore.saturating_sub(ms(less)), ..costs }),
                ..inputs
            },
        ];
        for better in better {
            prop_assert!(promise(&better) <= promise(&inputs));
        }
    }

    #[test]
    fn a_higher_ceiling_never_delays_the_switch(
        inputs in any_inputs(), rounds in some_rounds(), left in 0..500 * MIB, more in 0..1000u64,
    ) {
        let inputs = Inputs { left, rounds: &rounds, ..inputs };
        if decide(&inputs).decision == Decision::Switch {
            let mut higher = inputs;
            higher.limits.max_downtime += ms(more);
            prop_assert_eq!(decide(&higher).decision, Decision::Switch);
        }
    }

    /// A guest that writes at a steady rate below that of the link is handed over, in a number of
    /// rounds that the logarithm of its memory bounds, if it fits at all.
    #[test]
    fn a_move_that_can_end_ends(
        rate in 100..2000u64, part in 0..80u64, memory in 1..64_000u64, limit in 60..2000u64,
    ) {
        let (rate, limit) = (rate * MIB, ms(limit));
        let dirty_rate = rate / 100 * part;
        let (mut left, mut elapsed, mut rounds) = (memory * MIB, Duration::ZERO, Vec::new());
        for _ in 0..200 {
            let inputs = Inputs {
                rate: Some(Rate { low: rate, usual: rate }),
                left,
                dirty_rate,
                costs: Some(costs()),
                untried: rounds.len() < 3,
                rounds: &rounds,
                elapsed,
                limits: Limits { max_downtime: limit, timeout: Duration::from_secs(1_000_000) },
            };
            match decide(&inputs).decision {
                Decision::Switch => return Ok(()),
                Decision::KeepCopying => {}
                other => prop_assert!(false, "{:?}", other),
            }
            let took = time_for(left, rate) + ms(2);
            let next = bytes_in(took, dirty_rate).min(memory * MIB);
            rounds.push(Round { sent: left, left: next, took });
            elapsed += took;
            left = next;
        }
        prop_assert!(false, "200 rounds");
    }
}

#[test]
fn a_move_is_foreseen_as_it_is_decided_on_the_way() {
    let rate = Rate { low: 400 * MIB, usual: 500 * MIB };
    let seen = |dirty_rate, limit| foresee(rate, dirty_rate, costs(), 1000 * MIB, ms(limit));
    let quiet = seen(0, 300).unwrap();
    assert!(quiet.total > ms(2000) && quiet.total < ms(2300), "{quiet:?}");
    assert!(quiet.blackout < quiet.total && quiet.blackout <= ms(300));
    let writing = seen(250 * MIB, 300).unwrap();
    assert!(writing.total > quiet.total && writing.blackout >= quiet.blackout, "{writing:?}");
    // It is the total that a decision at the beginning foresees.
    let inputs = Inputs {
        rate: Some(rate),
        left: 1000 * MIB,
        dirty_rate: 250 * MIB,
        costs: Some(costs()),
        untried: false,
        rounds: &[],
        elapsed: Duration::ZERO,
        limits: Limits { max_downtime: ms(300), timeout: Duration::from_secs(1000) },
    };
    assert_eq!(decide(&inputs).prediction.unwrap().total, Some(writing.total));
    assert_eq!(seen(900 * MIB, 300), None, "it writes faster than the link carries");
}
