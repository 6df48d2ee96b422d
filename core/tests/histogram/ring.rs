//! The live ring: layout, quantiles, time, tags, concurrent recorders.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use ext_registry_core::histogram::{
    BUCKETS, Counts, MAX_CELL, MAX_US, MinuteSnapshot, OUTCOMES, SUB_WINDOWS, highest, index_of, lowest,
    representative, us_from_ms,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{NOW, QUANTILES, TOLERANCE, close, config, exact, ring, samples, summary};

#[test]
fn layout() {
    assert_eq!(
        (index_of(0), lowest(0), index_of(MAX_US), index_of(u64::MAX)),
        (0, 0, BUCKETS - 1, BUCKETS - 1)
    );
    assert_eq!(highest(BUCKETS - 1), MAX_US);
    for index in 0..BUCKETS {
        assert_eq!((index_of(lowest(index)), index_of(highest(index))), (index, index));
        assert!(
            index == 0 || lowest(index) == highest(index - 1) + 1,
            "bucket {index} leaves a gap"
        );
        assert!(
            index >= 128 || lowest(index) == highest(index),
            "bucket {index} is not exact"
        );
        for end in [lowest(index), highest(index)] {
            assert!(
                close(representative(index), end as f64, TOLERANCE),
                "bucket {index}: {end}"
            );
        }
    }
}

#[test]
fn milliseconds() {
    for ms in [f64::NAN, -0.001, f64::NEG_INFINITY] {
        assert_eq!(us_from_ms(ms), None);
    }
    for (ms, us) in [
        (0.0, 0),
        (-0.0, 0),
        (0.001, 1),
        (1.2344, 1234),
        (3e5, MAX_US),
        (f64::INFINITY, MAX_US),
    ] {
        assert_eq!(us_from_ms(ms), Some(us));
    }
}

#[test]
fn empty() {
    let ring = ring();
    let counts = summary(&ring, NOW);
    assert_eq!(
        (counts.total(), counts.quantile(0.5), counts.mean_ms(), counts.max_ms()),
        (0, None, None, None)
    );
    assert_eq!(counts.oldest_minute(), None);
    assert!(ring.minute_snapshot(NOW).is_empty() && ring.minute_snapshot(0).is_empty());
}

#[test]
fn five_minutes_and_no_more() {
    let ring = ring();
    for minute in NOW..NOW + 5 {
        ring.record(minute, 1000 * (minute - NOW + 1));
    }
    assert_eq!(
        (summary(&ring, NOW + 4).total(), summary(&ring, NOW + 4).oldest_minute()),
        (5, Some(NOW))
    );
    assert_eq!(
        (summary(&ring, NOW + 6).total(), summary(&ring, NOW + 6).oldest_minute()),
        (3, Some(NOW + 2))
    );
    assert_eq!(summary(&ring, NOW + 2).total(), 3, "minutes to come are left out");
    assert_eq!(summary(&ring, NOW + 9).total(), 0);
    ring.record(NOW + 5, 7);
    assert!(ring.minute_snapshot(NOW).is_empty());
    assert_eq!(summary(&ring, NOW + 5).max_ms(), Some(5.0));
    // An outcome alone is no latency.
    ring.count_outcome(NOW + 20, 7, 1);
    assert_eq!(
        (
            summary(&ring, NOW + 20).oldest_minute(),
            ring.minute_snapshot(NOW + 20).outcomes[7]
        ),
        (None, 1)
    );
}

/// A cell that is written once and then left alone while its slot moves on must never count again, however often
/// the slot's 8-bit tag comes round and however long the pauses are.
#[test]
fn old_cells_never_come_back() {
    for step in [5, 10, 1280, 1280 * 256, 5 * 255] {
        let ring = ring();
        (0..BUCKETS).for_each(|index| ring.record(NOW, lowest(index)));
        ring.count_outcome(NOW, 1, 9);
        for round in 1..=1000 {
            let minute = NOW + round * step;
            ring.count_outcome(minute, 0, 1);
            let snapshot = ring.minute_snapshot(minute);
            assert_eq!(snapshot.buckets, [], "step {step}, round {round}");
            assert_eq!((snapshot.sum_us, snapshot.max_us, snapshot.outcomes[1]), (0, 0, 0));
        }
    }
}

#[test]
fn every_reset_empties() {
    let ring = ring();
    for round in 0..1000 {
        ring.record(NOW, 1000);
        ring.record(NOW + 1, lowest(round));
        ring.count_outcome(NOW, 3, 2);
        assert_eq!(
            (summary(&ring, NOW + 1).total(), ring.minute_snapshot(NOW).outcomes[3]),
            (2, 2)
        );
        ring.reset();
        assert_eq!(summary(&ring, NOW + 1).total(), 0);
        assert!(ring.minute_snapshot(NOW).is_empty() && ring.minute_snapshot(NOW + 1).is_empty());
    }
}

#[test]
fn late_recordings_and_clocks_set_back() {
    let ring = ring();
    ring.record(NOW + 5, 10);
    ring.record(NOW, 20);
    ring.count_outcome(NOW, 1, 1);
    let snapshot = ring.minute_snapshot(NOW + 5);
    assert_eq!(
        (snapshot.samples(), snapshot.outcomes[1]),
        (2, 1),
        "one lap late: counted in the later minute"
    );
    ring.record(NOW - 60, 30);
    assert_eq!(summary(&ring, NOW - 60).total(), 1, "an hour back: the clock was set");
    for round in 1..300 {
        ring.record(NOW - 60 * round, 30);
        assert_eq!(summary(&ring, NOW - 60 * round).total(), if round == 1 { 2 } else { 1 });
    }
}

#[test]
fn saturation() {
    let ring = ring();
    let near = MinuteSnapshot {
        buckets: vec![(index_of(900) as u16, MAX_CELL - 5)],
        ..MinuteSnapshot::default()
    };
    assert!(ring.load_minute(NOW, &near));
    (0..100).for_each(|_| ring.record(NOW, 900));
    ring.record(NOW, 901);
    assert_eq!(
        ring.minute_snapshot(NOW).buckets,
        [(index_of(900) as u16, MAX_CELL), (index_of(901) as u16, 1)][..1]
    );
}

#[test]
fn a_cell_counts_every_step_past_its_middle() {
    let ring = ring();
    let start = MAX_CELL / 2 - 1000;
    let bucket = index_of(900) as u16;
    ring.load_minute(
        NOW,
        &MinuteSnapshot {
            buckets: vec![(bucket, start)],
            ..MinuteSnapshot::default()
        },
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| ring.record(NOW, 900)));
        }
    });
    assert_eq!(ring.minute_snapshot(NOW).buckets, [(bucket, start + 4000)]);
}

#[test]
fn load_minute_refuses_what_is_over_and_ignores_unknown_buckets() {
    let ring = ring();
    let snapshot = MinuteSnapshot {
        buckets: vec![(3, 4), (u16::MAX, 9)],
        sum_us: 12,
        max_us: u64::MAX,
        outcomes: [2; OUTCOMES],
    };
    ring.record(NOW, 1);
    assert!(!ring.load_minute(NOW - 5, &snapshot) && !ring.load_minute(NOW - 500, &snapshot));
    assert!(ring.load_minute(NOW, &snapshot) && ring.load_minute(NOW + 1, &snapshot));
    let loaded = ring.minute_snapshot(NOW);
    assert_eq!(
        loaded,
        MinuteSnapshot {
            buckets: vec![(1, 1), (3, 4)],
            sum_us: 13,
            max_us: MAX_US,
            ..snapshot
        }
    );
}

/// Eight recorders across a change of minute, each with its own idea of when it happens, and slots that move on
/// while they record.
#[test]
fn nothing_is_lost_between_recorders() {
    const RECORDERS: u64 = 8;
    const ROUNDS: u64 = 40;
    const EACH: u64 = 2000;
    let ring = ring();
    let barrier = Barrier::new(RECORDERS as usize);
    let value = |recorder: u64, i: u64| (recorder * 7919 + i * 104_729) % 2_000_000;
    for round in 0..ROUNDS {
        let minute = NOW + round;
        thread::scope(|scope| {
            for recorder in 0..RECORDERS {
                let (ring, barrier) = (&ring, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for i in 0..EACH {
                        let late = u64::from(i * RECORDERS > EACH * (recorder + 1));
                        ring.record(minute + late, value(recorder, i));
                        ring.count_outcome(minute + late, (i % 9) as usize, 1 + (i % 3) as u32);
                    }
                });
            }
        });
        let ended = ring.minute_snapshot(minute);
        let begun = ring.minute_snapshot(minute + 1);
        let expected: BTreeMap<usize, u64> = (0..RECORDERS)
            .flat_map(|r| (0..EACH).map(move |i| index_of(value(r, i))))
            .fold(BTreeMap::new(), |mut map, index| {
                *map.entry(index).or_default() += 1;
                map
            });
        let mut both = BTreeMap::<usize, u64>::new();
        for (index, count) in ended.buckets.iter().chain(&begun.buckets) {
            *both.entry(usize::from(*index)).or_default() += u64::from(*count);
        }
        assert_eq!(both, expected);
        let sum: u64 = (0..RECORDERS).flat_map(|r| (0..EACH).map(move |i| value(r, i))).sum();
        assert_eq!(ended.sum_us + begun.sum_us, sum);
        let outcomes: u64 = ended.outcomes.iter().chain(&begun.outcomes).sum();
        assert_eq!(outcomes, RECORDERS * (0..EACH).map(|i| 1 + i % 3).sum::<u64>());
        ring.reset();
    }
}

/// A reader beside recorders, resets and movements sees whole tags only: never more than was recorded, and a
/// quantile that was recorded.
#[test]
fn readers_see_only_what_was_recorded() {
    let ring = ring();
    thread::scope(|scope| {
        let recorders: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for i in 0..300_000_u64 {
                        ring.record(NOW + i / 100, 5000 + i % 50);
                        if i % 1000 == 0 {
                            ring.reset();
                        }
                    }
                })
            })
            .collect();
        let mut counts = Counts::default();
        let mut minute = NOW;
        while !recorders.iter().all(thread::ScopedJoinHandle::is_finished) {
            ring.summary(minute, &mut counts);
            assert!(counts.total() <= 900_000);
            for q in [0.5, 1.0] {
                assert!(
                    counts.quantile(q).is_none_or(|ms| (4.96..=5.1).contains(&ms)),
                    "{counts:?}"
                );
            }
            minute = NOW + (minute + 1 - NOW) % 600;
        }
    });
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn quantiles_of_the_ring((mut samples, spread) in (samples(), 1..=5_u64)) {
        let ring = ring();
        for (i, &us) in samples.iter().enumerate() {
            ring.record(NOW + i as u64 % spread, us);
        }
        let counts = summary(&ring, NOW + spread - 1);
        let sum: u64 = samples.iter().sum();
        samples.sort_unstable();
        prop_assert_eq!(counts.total(), samples.len() as u64);
        prop_assert!(close(counts.mean_ms().unwrap(), sum as f64 / 1e3 / samples.len() as f64, 1e-12));
        prop_assert_eq!(counts.max_ms(), Some(*samples.last().unwrap() as f64 / 1e3));
        prop_assert_eq!(counts.quantile(1.0), counts.max_ms());
        for q in QUANTILES {
            let (estimate, exact) = (counts.quantile(q).unwrap(), exact(&samples, q));
            prop_assert!(close(estimate, exact, TOLERANCE), "{q}: {estimate}, exactly {exact}");
        }
    }


    #[test]
    fn merging_is_addition(a in samples(), b in samples(), c in samples()) {
        let counts = |samples: &[&Vec<u64>]| {
            let ring = ring();
            samples.iter().copied().flatten().for_each(|&us| ring.record(NOW, us));
            summary(&ring, NOW)
        };
        let sum = |parts: &[&Counts]| parts.iter().fold(Counts::default(), |mut sum, part| { sum.merge(part); sum });
        let (x, y, z) = (counts(&[&a]), counts(&[&b]), counts(&[&c]));
        prop_assert_eq!(&sum(&[&x, &y, &z]), &counts(&[&a, &b, &c]));
        prop_assert_eq!(&sum(&[&z, &sum(&[&y, &x])]), &counts(&[&a, &b, &c]));
    }

    #[test]
    fn snapshots_round_trip(samples in samples(), outcomes: [u32; OUTCOMES]) {
        let (one, other) = (ring(), ring());
        for &us in &samples {
            one.record(NOW, us);
        }
        outcomes.iter().enumerate().for_each(|(which, &n)| one.count_outcome(NOW, which, n));
        let snapshot = one.minute_snapshot(NOW);
        prop_assert_eq!(snapshot.outcomes, outcomes.map(u64::from));
        prop_assert!(other.load_minute(NOW, &snapshot));
        prop_assert_eq!(&other.minute_snapshot(NOW), &snapshot);
        prop_assert_eq!(summary(&one, NOW), summary(&other, NOW));
        other.load_minute(NOW, &snapshot);
        prop_assert_eq!(summary(&other, NOW).total(), 2 * samples.len() as u64);
    }

    /// The ring against a plain map of minutes, with any jumps of time.
    #[test]
    fn ring_follows_a_model(steps in vec((0..2000_u64, 0..=MAX_US, 0..OUTCOMES), 1..300)) {
        let ring = ring();
        let mut model = BTreeMap::<u64, (Vec<u64>, [u64; OUTCOMES])>::new();
        let mut now = NOW;
        for (jump, us, which) in steps {
            now += if jump < 1900 { jump % 4 / 3 } else { jump };
            ring.record(now, us);
            ring.count_outcome(now, which, 2);
            let minute = model.entry(now).or_default();
            minute.0.push(us);
            minute.1[which] += 2;
        }
        let window = now - (SUB_WINDOWS as u64 - 1)..=now;
        let last: Vec<_> = model.range(window.clone()).collect();
        let counts = summary(&ring, now);
        prop_assert_eq!(counts.total(), last.iter().map(|(_, m)| m.0.len() as u64).sum::<u64>());
        prop_assert_eq!(counts.oldest_minute(), last.first().map(|(minute, _)| **minute));
        for minute in window {
            let snapshot = ring.minute_snapshot(minute);
            let (mut samples, outcomes) = model.get(&minute).cloned().unwrap_or_default();
            samples.sort_unstable();
            let recorded = snapshot.buckets.iter().flat_map(|&(i, n)| vec![usize::from(i); n as usize]);
            prop_assert_eq!(recorded.collect::<Vec<_>>(), samples.iter().map(|&us| index_of(us)).collect::<Vec<_>>());
            prop_assert_eq!((snapshot.sum_us, snapshot.outcomes), (samples.iter().sum(), outcomes));
            prop_assert_eq!(snapshot.max_us, samples.last().copied().unwrap_or(0));
        }
    }

}
