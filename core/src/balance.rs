//! Exact, smooth weighted round robin.
//!
//! A [`Schedule`] is one cycle of picks, worked out once; all sessions share one turn counter and look their turn up. Any interleaving
//! of sessions therefore walks the same sequence, and over any prefix of it each member is within one pick of its share.
//!
//! Short cycles follow nginx's smooth weighted round robin (each turn every member gains its weight, the richest is picked and pays the
//! total: 5/1/1 gives a a b a c a a). Where that would leave a member more than one pick off, and for long cycles, the quota
//! method is used: among the members that may be picked without exceeding their upper quota, the one whose next pick is due first
//! (R. Tijdeman, "The chairman assignment problem", 1980), whose deviation is below one for any weights.
//!
//! Among many members those of equal weight form a class: the cycle is one of classes, and within a class members take turns. A member is then
//! off by less than its part of the class's deviation plus that of the turns, 1/k + (k-1)/k for k of them: below one again, with a cycle
//! whose length depends on the weights there are and not on the number of members.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Longest cycle kept as it is; longer ones are scaled down by largest remainder.
pub const MAX_CYCLE: u64 = 1 << 16;
/// Up to this many (members x picks) nginx's method is tried first.
const SMOOTH_EFFORT: u64 = 1 << 18;
/// From this many members on they are put into classes.
const MANY: usize = 64;

/// Weighted round robin over members `0..n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    cycle: Box<[u32]>,
    /// Empty: the cycle is one of members. Otherwise it is one of classes.
    classes: Box<[Class]>,
    /// Of each pick of a cycle of classes: how many of its class come before it.
    before: Box<[u32]>,
}

/// Members of equal weight.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Class {
    members: Box<[u32]>,
    /// Picks of the class in one cycle.
    picks: u64,
}

impl Schedule {
    /// The cycle for these weights; a zero weight is never picked. `None` if there is nothing to pick.
    pub fn new(weights: &[u32]) -> Option<Self> {
        let reduced = reduce(weights.iter().map(|&w| u64::from(w)))?;
        let total: u64 = reduced.iter().sum();
        if total * reduced.len() as u64 <= SMOOTH_EFFORT
            && let Some(cycle) = smooth(&reduced, total)
        {
            return Some(Self::of_members(cycle));
        }
        if weights.len() < MANY {
            return Some(Self::of_members(quota(&reduced, total)));
        }
        Self::of_classes(weights)
    }

    fn of_members(cycle: Box<[u32]>) -> Self {
        Self {
            cycle,
            classes: Box::default(),
            before: Box::default(),
        }
    }

    fn of_classes(weights: &[u32]) -> Option<Self> {
        let mut by_weight: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (member, weight) in (0u32..).zip(weights).filter(|(_, weight)| **weight > 0) {
            by_weight.entry(*weight).or_default().push(member);
        }
        let of_classes = by_weight
            .iter()
            .map(|(weight, members)| u64::from(*weight) * members.len() as u64);
        let reduced = reduce(of_classes)?;
        let cycle = quota(&reduced, reduced.iter().sum());
        let mut picks = vec![0; reduced.len()];
        let mut count = |class: &u32| {
            let picks = &mut picks[*class as usize];
            *picks += 1;
            *picks as u32 - 1
        };
        let before = cycle.iter().map(&mut count).collect();
        let class = |(members, picks): (Vec<u32>, u64)| Class {
            members: members.into(),
            picks,
        };
        Some(Self {
            cycle,
            classes: by_weight.into_values().zip(picks).map(class).collect(),
            before,
        })
    }

    /// The member whose turn it is.
    pub fn pick(&self, turn: u64) -> usize {
        let length = self.cycle.len() as u64;
        // Cycles of one and of powers of two spare the division.
        let place = if length.is_power_of_two() {
            turn & (length - 1)
        } else {
            turn % length
        };
        let picked = self.cycle[place as usize] as usize;
        match self.classes.get(picked) {
            None => picked,
            Some(class) => {
                let before = (turn / length)
                    .wrapping_mul(class.picks)
                    .wrapping_add(self.before[place as usize].into());
                class.members[(before % class.members.len() as u64) as usize] as usize
            }
        }
    }

    /// Picks in one cycle.
    pub fn len(&self) -> usize {
        self.cycle.len()
    }

    /// Never: a schedule has at least one pick.
    pub fn is_empty(&self) -> bool {
        self.cycle.is_empty()
    }
}

/// Weights divided by their greatest common divisor, and scaled to [`MAX_CYCLE`] picks where they have more.
fn reduce(weights: impl Iterator<Item = u64> + Clone) -> Option<Vec<u64>> {
    let divisor = weights.clone().fold(0, gcd);
    if divisor == 0 {
        return None;
    }
    let reduced: Vec<u64> = weights.map(|w| w / divisor).collect();
    let total: u64 = reduced.iter().sum();
    if total <= MAX_CYCLE {
        return Some(reduced);
    }
    // Largest remainder; no member with a weight loses all of its picks.
    let mut scaled: Vec<u64> = reduced
        .iter()
        .map(|&w| if w == 0 { 0 } else { (w * MAX_CYCLE / total).max(1) })
        .collect();
    let mut missing = MAX_CYCLE.saturating_sub(scaled.iter().sum());
    let mut by_remainder: Vec<usize> = (0..reduced.len()).filter(|&i| reduced[i] > 0).collect();
    by_remainder.sort_by_key(|&i| Reverse(reduced[i] * MAX_CYCLE % total));
    for i in by_remainder {
        if missing == 0 {
            break;
        }
        scaled[i] += 1;
        missing -= 1;
    }
    Some(scaled)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// nginx's cycle, or `None` where it strays from a share by a pick or more.
fn smooth(weights: &[u64], total: u64) -> Option<Box<[u32]>> {
    let total = total as i64;
    let mut current = vec![0i64; weights.len()];
    let mut cycle = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = None;
        for (i, &weight) in weights.iter().enumerate() {
            current[i] += weight as i64;
            if weight > 0 && best.is_none_or(|b: usize| current[i] > current[b]) {
                best = Some(i);
            }
        }
        let best = best?;
        current[best] -= total;
        // `current[i]` is (share - count) x total after each turn.
        if current.iter().any(|c| c.abs() >= total) {
            return None;
        }
        cycle.push(best as u32);
    }
    Some(cycle.into())
}

/// Tijdeman's cycle. With `n` members and `b = 1 - 1/(2n-2)`, a member with `c` picks may be picked at turn `t` once its share has
/// reached `c + 1 - b`, and must be picked before its share exceeds `c + b`; of those that may, the one whose turn runs out first is.
fn quota(weights: &[u64], total: u64) -> Box<[u32]> {
    let members = weights.iter().filter(|&&w| w > 0).count() as u128;
    if members == 1 {
        let only = weights.iter().position(|&w| w > 0).unwrap_or(0) as u32;
        return vec![only; total as usize].into();
    }
    // Everything times (2n - 2), to stay in integers: b becomes 2n - 3.
    let (scale, b, total) = (2 * members - 2, 2 * members - 3, u128::from(total));
    let release = |i: usize, c: u128| ((c * scale + scale - b) * total).div_ceil(u128::from(weights[i]) * scale);
    let deadline = |i: usize, c: u128| (c * scale + b) * total / (u128::from(weights[i]) * scale);
    let mut counts = vec![0u128; weights.len()];
    let mut waiting: BinaryHeap<Reverse<(u128, usize)>> = (0..weights.len())
        .filter(|&i| weights[i] > 0)
        .map(|i| Reverse((release(i, 0), i)))
        .collect();
    let mut ready: BTreeSet<(u128, usize)> = BTreeSet::new();
    let mut cycle = Vec::with_capacity(total as usize);
    for turn in 1..=total {
        while waiting.peek().is_some_and(|Reverse((at, _))| *at <= turn) {
            let Some(Reverse((_, i))) = waiting.pop() else { break };
            ready.insert((deadline(i, counts[i]), i));
        }
        // Some member is always ready (Tijdeman's theorem); scaled cycles of many members may end a pick early.
        let Some((_, i)) = ready.pop_first() else { continue };
        cycle.push(i as u32);
        counts[i] += 1;
        waiting.push(Reverse((release(i, counts[i]), i)));
    }
    cycle.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The greatest distance of a member from its share over all prefixes, in picks.
    fn deviation(weights: &[u32], turns: usize, pick: impl Fn(u64) -> usize) -> f64 {
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        let mut counts = vec![0f64; weights.len()];
        let mut worst = 0f64;
        for turn in 0..turns {
            counts[pick(turn as u64)] += 1.0;
            for (i, &w) in weights.iter().enumerate() {
                worst = worst.max((counts[i] - (turn as f64 + 1.0) * f64::from(w) / total).abs());
            }
        }
        worst
    }

    #[test]
    fn five_one_one_is_smooth() {
        let schedule = Schedule::new(&[5, 1, 1]).unwrap();
        let picks: Vec<usize> = (0..7).map(|turn| schedule.pick(turn)).collect();
        assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn the_cycle_is_as_short_as_it_can_be() {
        assert_eq!(Schedule::new(&[100, 50]).unwrap().len(), 3);
        assert_eq!(Schedule::new(&[100, 100, 100, 100]).unwrap().len(), 4);
        assert_eq!(Schedule::new(&[0, 7]).unwrap().len(), 1);
        assert_eq!(Schedule::new(&[0, 0]), None);
        assert_eq!(Schedule::new(&[]), None);
    }

    #[test]
    fn long_cycles_stay_bounded() {
        let weights: Vec<u32> = (0..10_000).map(|i| 1 + i * 37 % 199).collect();
        let schedule = Schedule::new(&weights).unwrap();
        assert!(schedule.len() as u64 <= MAX_CYCLE + weights.len() as u64);
        // Shares of a scaled cycle are those of classes: nobody drifts away from its own.
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        let mut counts = vec![0u64; weights.len()];
        (0..5 * total).for_each(|turn| counts[schedule.pick(turn)] += 1);
        for (count, weight) in counts.into_iter().zip(weights) {
            assert!(count.abs_diff(5 * u64::from(weight)) <= 2, "{count} for 5 x {weight}");
        }
    }

    #[test]
    fn many_of_few_weights_have_a_short_cycle() {
        let weights: Vec<u32> = (0..10_000).map(|i| [50, 100, 100][i % 3]).collect();
        assert!(Schedule::new(&weights).unwrap().len() < 10_000);
        assert_eq!(Schedule::new(&vec![100; 10_000]).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn within_one_of_the_share(weights in prop::collection::vec(0u32..=200, 1..12)) {
            if let Some(schedule) = Schedule::new(&weights) {
                let worst = deviation(&weights, 2 * schedule.len(), |turn| schedule.pick(turn));
                prop_assert!(worst < 1.0, "{worst}");
            }
        }

        #[test]
        fn within_one_among_many_too(kinds in prop::collection::vec(0u32..=200, 1..6), number in 64usize..300, seed: u64) {
            let pick = |n: u64| (seed.wrapping_mul(n + 1).rotate_left(n as u32 % 64) >> 7) as usize % kinds.len();
            let weights: Vec<u32> = (0..number as u64).map(|n| kinds[pick(n)]).collect();
            if let Some(schedule) = Schedule::new(&weights) {
                let worst = deviation(&weights, 3000, |turn| schedule.pick(turn));
                prop_assert!(worst < 1.0, "{worst}");
            }
        }

        #[test]
        fn the_quota_method_too(weights in prop::collection::vec(1u32..=60, 1..40)) {
            let reduced = reduce(weights.iter().map(|&w| u64::from(w))).unwrap();
            let cycle = quota(&reduced, reduced.iter().sum());
            prop_assert_eq!(cycle.len() as u64, reduced.iter().sum::<u64>());
            let worst = deviation(&weights, 2 * cycle.len(), |turn| cycle[turn as usize % cycle.len()] as usize);
            prop_assert!(worst < 1.0, "{worst}");
        }
    }
}
