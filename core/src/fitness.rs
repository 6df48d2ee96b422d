//! Which instances of an extension are fit to be chosen just now: ejections judged where whole pools are known.
//!
//! A report only makes an instance suspect ([`crate::ejection`]). The next decision works out a [`Fitness`] for the extension: it ejects
//! those suspects whose pools can spare them, notes who has come back, and keeps the result until something happens or a time is over. So
//! a decision usually costs one comparison, and nothing at all is worked out while every instance is well.
//!
//! Promise: an ejection never takes the last eligible instance of any version, and never brings more than
//! [`Settings::max_percent`](crate::ejection::Settings::max_percent) of a version's instances out at once. The host lets one session at a
//! time judge an extension, so that two of them cannot each eject one too many.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use crate::balance::Schedule;
use crate::compile::{Compiled, Pool};
use crate::ejection::{Move, RAMP_STEPS, Standing};
use crate::target::Target;

/// Suspects that no pool can spare are looked at again after this time.
const AGAIN_US: u64 = 1_000_000;
/// Of so many instances and more a judgement holds for a while, whatever happens: in an outage of thousands of them sessions would do
/// nothing else.
const MANY: usize = 256;
/// For this long per instance.
const HELD_US: u64 = 20;

/// Where the instances of one extension stand, and what follows for its pools.
#[derive(Debug)]
pub struct Fitness {
    /// Until when this holds, unless an instance becomes suspect or moves.
    pub until_us: u64,
    calm: bool,
    standings: Box<[Standing]>,
    rosters: Box<[OnceCell<Roster>]>,
}

/// Who may be chosen for one version, and how often.
#[derive(Debug)]
pub struct Roster {
    /// Positions in [`Compiled::instances`].
    pub eligible: Box<[u32]>,
    /// The cycle over them.
    pub schedule: Option<Schedule>,
}

/// Whether a judgement takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effects {
    /// Suspects are ejected, returns are noted.
    Apply,
    /// What would be is worked out, nothing is written.
    Pretend,
}

impl Fitness {
    /// Works it out. `instance` gives the live state of the instance at a place, where it has any; `moved` is told of every ejection and
    /// return that took effect.
    pub fn judge<'a>(
        extension: &Compiled,
        instance: impl Fn(usize) -> Option<&'a Target>,
        now_us: u64,
        random: u64,
        effects: Effects,
        mut moved: impl FnMut(usize, Move),
    ) -> Self {
        let mut standings = vec![Standing::Fit; extension.instances.len()].into_boxed_slice();
        let mut until_us = u64::MAX;
        if extension.ejection.after.is_some() {
            let mut suspects = Vec::new();
            for (place, standing) in standings.iter_mut().enumerate() {
                let Some(target) = instance(place) else { continue };
                if effects == Effects::Apply
                    && let Some(back) = target.ejection.come_back(now_us)
                {
                    moved(place, back);
                }
                *standing = target.ejection.standing(now_us);
                if !matches!(standing, Standing::Ejected { .. }) && target.ejection.is_suspect() {
                    suspects.push((place, target));
                }
            }
            for (place, target) in suspects {
                if !can_spare(extension, place, &standings) {
                    until_us = until_us.min(now_us + AGAIN_US);
                } else if effects == Effects::Apply {
                    if let Some(out) = target.ejection.eject(now_us, random.rotate_left(place as u32)) {
                        moved(place, out);
                    }
                    standings[place] = target.ejection.standing(now_us);
                } else {
                    let until_us = now_us + AGAIN_US;
                    standings[place] = Standing::Ejected { until_us };
                }
            }
        }
        for standing in &standings {
            match standing {
                Standing::Fit => {}
                Standing::Ejected { until_us: end } => until_us = until_us.min(*end),
                Standing::Returning { next_us, .. } => until_us = until_us.min(*next_us),
            }
        }
        Self {
            until_us,
            calm: standings.iter().all(|standing| *standing == Standing::Fit),
            standings,
            rosters: extension.versions.iter().map(|_| OnceCell::new()).collect(),
        }
    }

    /// Whether every instance is fit: pools are as they were compiled.
    pub fn is_calm(&self) -> bool {
        self.calm
    }

    /// Where an instance stands.
    pub fn standing(&self, place: usize) -> Standing {
        self.standings.get(place).copied().unwrap_or(Standing::Fit)
    }

    /// How many tenths of its weight an instance gets.
    pub fn tenths(&self, place: usize) -> u32 {
        match self.standing(place) {
            Standing::Fit => RAMP_STEPS,
            Standing::Returning { tenths, .. } => tenths,
            Standing::Ejected { .. } => 0,
        }
    }

    /// Who may be chosen for the version at this place of [`Compiled::versions`].
    pub fn roster(&self, extension: &Compiled, version: usize) -> &Roster {
        self.rosters[version].get_or_init(|| self.make_roster(extension, &extension.versions[version].pool))
    }

    fn make_roster(&self, extension: &Compiled, pool: &Pool) -> Roster {
        let eligible: Box<[u32]> = pool
            .eligible
            .iter()
            .copied()
            .filter(|place| self.tenths(*place as usize) > 0)
            .collect();
        let schedule = extension
            .balancing
            .takes_turns()
            .then(|| extension.schedule_of(&eligible, |place| self.tenths(place as usize)))
            .flatten();
        Roster { eligible, schedule }
    }
}

/// What one session remembers of an extension's fitness.
///
/// The host counts, per extension, what may change it (an instance that becomes suspect, an ejection, a return); what was worked out at one
/// count holds until the count changes or a time is over.
#[derive(Debug)]
pub struct Remembered {
    count: Cell<u64>,
    held_until_us: Cell<u64>,
    until_us: Cell<u64>,
    fitness: RefCell<Option<Rc<Fitness>>>,
}

impl Default for Remembered {
    fn default() -> Self {
        Self {
            count: Cell::new(0),
            held_until_us: Cell::new(0),
            until_us: Cell::new(0),
            fitness: RefCell::new(None),
        }
    }
}

impl Remembered {
    /// Whether what is remembered still holds.
    #[inline]
    pub fn holds(&self, count: u64, now_us: u64) -> bool {
        now_us < self.until_us.get() && (self.count.get() == count || now_us < self.held_until_us.get())
    }

    /// What is remembered; `None` if every instance is fit.
    #[inline]
    pub fn get(&self) -> Option<Rc<Fitness>> {
        self.fitness.borrow().clone()
    }

    /// Remembers what was worked out at a count.
    pub fn keep(&self, count: u64, fitness: Fitness, now_us: u64) -> Option<Rc<Fitness>> {
        let instances = fitness.standings.len();
        let held_us = if instances < MANY {
            0
        } else {
            instances as u64 * HELD_US
        };
        self.held_until_us.set(now_us + held_us);
        self.count.set(count);
        self.until_us.set(fitness.until_us);
        let fitness = (!fitness.is_calm()).then(|| Rc::new(fitness));
        self.fitness.replace(fitness.clone());
        fitness
    }
}

/// Whether every version that an instance serves keeps an eligible instance and stays within the cap without it.
fn can_spare(extension: &Compiled, place: usize, standings: &[Standing]) -> bool {
    let is_out = |place: &&u32| matches!(standings[**place as usize], Standing::Ejected { .. });
    let pools = extension.versions.iter().filter(|version| version.enabled);
    let mut serves = false;
    for pool in pools.map(|version| &version.pool) {
        if pool.eligible.binary_search(&(place as u32)).is_err() {
            continue;
        }
        serves = true;
        let (all, out) = (pool.eligible.len(), pool.eligible.iter().filter(is_out).count() + 1);
        if out >= all || out * 100 > all * extension.ejection.max_percent as usize {
            return false;
        }
    }
    serves
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker;
    use crate::ejection::Settings;
    use crate::model::{Balancing, ExtensionRow, Health, InstanceRow, Kind, Tenants};
    use crate::outcome::Outcome;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;
    const NOW: u64 = 1_800_000_000 * SECOND;
    const MIDDLE: u64 = 1 << 63;

    /// An extension of one version with these instances.
    fn extension(weights: &[u32], max_percent: u32) -> Compiled {
        let instance = |(number, weight): (usize, &u32)| InstanceRow {
            instance_id: format!("i{number:03}"),
            subject: "s".to_owned(),
            weight: *weight,
            enabled: true,
            health: Health::Healthy,
            version: None,
            draining: false,
            metadata: Box::default(),
        };
        Compiled::new(ExtensionRow {
            id: "x".to_owned(),
            uid: 1,
            kind: Kind::Pre,
            subject: "s".to_owned(),
            timeout_ms: 100,
            retry: 0,
            enabled: true,
            version: "v1".to_owned(),
            config: Box::default(),
            metadata: Box::default(),
            tenants: Tenants::All,
            balancing: Balancing::WeightedRoundRobin,
            hash_key: None,
            settings: breaker::Settings::default(),
            ejection: Settings {
                max_percent,
                ..Settings::default()
            },
            versions: Vec::new(),
            instances: weights.iter().enumerate().map(instance).collect(),
        })
    }

    fn fail(targets: &[Target], places: &[usize], now_us: u64) {
        for place in places {
            (0..5).for_each(|_| {
                targets[*place].ejection.note(Outcome::Error, now_us);
            });
        }
    }

    fn targets(number: usize) -> Vec<Target> {
        std::iter::repeat_with(Target::default).take(number).collect()
    }

    fn judge(extension: &Compiled, targets: &[Target], now_us: u64, effects: Effects) -> (Fitness, Vec<(usize, Move)>) {
        let mut moves = Vec::new();
        let fitness = Fitness::judge(
            extension,
            |place| targets.get(place),
            now_us,
            MIDDLE,
            effects,
            |place, moved| moves.push((place, moved)),
        );
        (fitness, moves)
    }

    fn out(fitness: &Fitness, number: usize) -> Vec<usize> {
        (0..number).filter(|place| fitness.tenths(*place) == 0).collect()
    }

    #[test]
    fn a_suspect_is_ejected_where_it_can_be_spared() {
        let (extension, targets) = (extension(&[100, 100, 100, 100], 50), targets(4));
        let (fitness, _) = judge(&extension, &targets, NOW, Effects::Apply);
        assert!(fitness.is_calm() && fitness.until_us == u64::MAX);
        fail(&targets, &[0, 1, 2], NOW);
        let (fitness, moves) = judge(&extension, &targets, NOW, Effects::Apply);
        assert_eq!(out(&fitness, 4), [0, 1], "half of four");
        assert_eq!(moves.len(), 2);
        assert_eq!(fitness.until_us, NOW + AGAIN_US, "the third is looked at again");
        assert_eq!(*fitness.roster(&extension, extension.own()).eligible, [2, 3]);
        // When the first two are back, the third has its turn.
        let back = NOW + 31 * SECOND;
        let (fitness, moves) = judge(&extension, &targets, back, Effects::Apply);
        assert_eq!(out(&fitness, 4), [2]);
        assert_eq!(moves.len(), 3, "{moves:?}");
        assert_eq!((fitness.tenths(0), fitness.tenths(3)), (2, 10));
    }

    #[test]
    fn the_last_one_stays_whatever_the_cap() {
        for (number, percent, expected) in [(1, 100, 0), (2, 100, 1), (2, 50, 1), (2, 49, 0), (3, 50, 1), (5, 10, 0)] {
            let weights = vec![100; number];
            let (extension, targets) = (extension(&weights, percent), targets(number));
            fail(&targets, &(0..number).collect::<Vec<_>>(), NOW);
            let (fitness, _) = judge(&extension, &targets, NOW, Effects::Apply);
            assert_eq!(out(&fitness, number).len(), expected, "{number} at {percent} %");
        }
    }

    #[test]
    fn pretending_changes_nothing() {
        let (extension, targets) = (extension(&[100, 100], 50), targets(2));
        fail(&targets, &[1], NOW);
        let before = targets[1].ejection.words();
        let (fitness, moves) = judge(&extension, &targets, NOW, Effects::Pretend);
        assert_eq!(out(&fitness, 2), [1]);
        assert!(moves.is_empty());
        assert_eq!(targets[1].ejection.words(), before);
    }

    #[test]
    fn the_weight_comes_back_through_a_ramp() {
        let (extension, targets) = (extension(&[100, 100], 50), targets(2));
        fail(&targets, &[0], NOW);
        judge(&extension, &targets, NOW, Effects::Apply);
        let shares: Vec<usize> = (0..10)
            .map(|second| {
                let (fitness, _) = judge(&extension, &targets, NOW + (30 + second) * SECOND, Effects::Apply);
                let roster = fitness.roster(&extension, extension.own());
                let schedule = roster.schedule.as_ref().unwrap();
                (0..1100)
                    .filter(|turn| roster.eligible[schedule.pick(*turn)] == 0)
                    .count()
            })
            .collect();
        assert_eq!(shares[0], 100, "one to ten");
        assert_eq!(shares[9], 550);
        assert!(shares.is_sorted(), "{shares:?}");
    }

    #[test]
    fn switched_off_everybody_is_fit() {
        let (mut extension, targets) = (extension(&[100, 100], 50), targets(2));
        fail(&targets, &[0], NOW);
        judge(&extension, &targets, NOW, Effects::Apply);
        extension.ejection.after = None;
        let (fitness, _) = judge(&extension, &targets, NOW, Effects::Apply);
        assert!(fitness.is_calm());
    }

    #[test]
    fn what_is_remembered_holds_until_something_happens() {
        let judged = |number: usize| {
            let (extension, targets) = (extension(&vec![10; number], 50), targets(number));
            judge(&extension, &targets, NOW, Effects::Apply).0
        };
        let few = Remembered::default();
        assert!(!few.holds(0, NOW));
        assert!(few.keep(4, judged(3), NOW).is_none(), "calm");
        assert!(few.holds(4, NOW + 1000 * SECOND) && !few.holds(6, NOW));
        let many = Remembered::default();
        many.keep(4, judged(1000), NOW);
        assert!(
            many.holds(6, NOW + 19_999) && !many.holds(6, NOW + 20_000),
            "20 ms for a thousand"
        );
    }

    proptest! {
        /// Random failures, successes and times: the cap holds, and somebody is always left.
        #[test]
        fn the_cap_holds_in_any_life(
            number in 1usize..12,
            percent in 0u32..=100,
            steps in prop::collection::vec((0usize..12, 0usize..4, 0u64..40), 1..150),
        ) {
            let (extension, targets) = (extension(&vec![10; number], percent), targets(number));
            let mut now = NOW;
            for (place, outcome, seconds) in steps {
                now += seconds * SECOND;
                let outcome = [Outcome::Error, Outcome::Timeout, Outcome::NoResponders, Outcome::Success][outcome];
                for _ in 0..3 {
                    targets[place % number].ejection.note(outcome, now);
                }
                let (fitness, _) = judge(&extension, &targets, now, Effects::Apply);
                let out = out(&fitness, number).len();
                prop_assert!(out < number.max(1), "{out} of {number}");
                prop_assert!(out * 100 <= number * percent as usize, "{out} of {number} at {percent} %");
                prop_assert!(fitness.until_us > now);
                prop_assert!(!fitness.roster(&extension, extension.own()).eligible.is_empty());
            }
        }
    }
}
