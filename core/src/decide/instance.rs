//! The choice of an instance, once the version is chosen.

use std::collections::HashSet;

use super::{Reason, Search, Witness, found};
use crate::balance::Schedule;
use crate::compile::{Compiled, Pool};
use crate::context::Context;
use crate::decide::Live;
use crate::ejection::{RAMP_STEPS, Standing};
use crate::fitness::{Effects, Fitness};
use crate::model::Balancing;
use crate::rendezvous;
use crate::target::{Target, Turn};

/// Up to so many instances a cycle is worked out for one decision; among more of them the cycle of all is walked until it meets one that is
/// left.
const FEW: usize = 64;

/// Those among whom one is chosen.
struct Candidates<'a> {
    /// Positions in [`Compiled::instances`].
    places: &'a [u32],
    /// The cycle over them.
    schedule: Option<&'a Schedule>,
    turn: Turn,
}

impl<C: Context + ?Sized, L: Live> Search<'_, '_, C, L> {
    /// Chooses an instance of the version at this place.
    pub(super) fn instance<W: Witness>(
        &self,
        version: usize,
        target: Option<&Target>,
        witness: &mut W,
    ) -> (Option<usize>, Reason) {
        let extension = self.extension;
        let pool = &extension.versions[version].pool;
        if pool.members.is_empty() {
            return (None, Reason::Ok);
        }
        let effects = if W::EFFECTS { Effects::Apply } else { Effects::Pretend };
        let fitness = self.live.fitness(self.request.now_us, self.request.random, effects);
        let fitness = fitness.as_deref();
        let turns = extension.balancing.takes_turns();
        let (candidates, reason) = match fitness.map(|fitness| fitness.roster(extension, version)) {
            None if !pool.eligible.is_empty() => {
                let candidates = Candidates {
                    places: &pool.eligible,
                    schedule: turns.then(|| pool.schedule(extension)).flatten(),
                    turn: Turn::Whole,
                };
                (candidates, Reason::Ok)
            }
            Some(roster) if !roster.eligible.is_empty() => {
                let candidates = Candidates {
                    places: &roster.eligible,
                    schedule: roster.schedule.as_ref(),
                    turn: Turn::Whole,
                };
                (candidates, Reason::Ok)
            }
            _ if !pool.reserve.is_empty() => {
                let candidates = Candidates {
                    places: &pool.reserve,
                    schedule: turns.then(|| pool.reserve_schedule(extension)).flatten(),
                    turn: Turn::Narrowed,
                };
                (candidates, Reason::Panic)
            }
            _ => {
                self.explain_instances(pool, fitness, None, witness);
                return (None, Reason::NoInstances);
            }
        };
        let chosen = if self.request.avoid.is_empty() {
            self.pick::<W>(version, &candidates, fitness, target)
        } else {
            self.pick_untried::<W>(version, &candidates, fitness, target)
        };
        self.explain_instances(pool, fitness, Some(chosen), witness);
        (Some(chosen as usize), reason)
    }

    fn is_avoided(&self, place: u32) -> bool {
        let id = &*self.extension.instances[place as usize].id;
        self.request.avoid.contains(&id)
    }

    /// Those of them that have not been tried yet.
    fn untried(&self, places: &[u32]) -> Vec<u32> {
        let avoid = self.request.avoid;
        if avoid.len() <= FEW {
            return places
                .iter()
                .copied()
                .filter(|place| !self.is_avoided(*place))
                .collect();
        }
        let avoid: HashSet<&str> = avoid.iter().copied().collect();
        let is_untried = |place: &u32| !avoid.contains(&*self.extension.instances[*place as usize].id);
        places.iter().copied().filter(is_untried).collect()
    }

    /// Chooses among those not tried yet, or among all where all have been.
    fn pick_untried<W: Witness>(
        &self,
        version: usize,
        candidates: &Candidates<'_>,
        fitness: Option<&Fitness>,
        target: Option<&Target>,
    ) -> u32 {
        let all = candidates.places;
        let untried = self.untried(all);
        if untried.is_empty() || untried.len() == all.len() {
            return self.pick::<W>(version, candidates, fitness, target);
        }
        let by_turns = self.extension.balancing.takes_turns();
        if by_turns
            && untried.len() > FEW
            && let Some(schedule) = candidates.schedule
        {
            for _ in 0..FEW {
                let place = all[schedule.pick(self.turn::<W>(version, target, Turn::Narrowed))];
                if !self.is_avoided(place) {
                    return place;
                }
                if target.is_none() {
                    break;
                }
            }
            return untried[(self.request.random % untried.len() as u64) as usize];
        }
        let schedule = by_turns
            .then(|| self.extension.schedule_of(&untried, |place| tenths(fitness, place)))
            .flatten();
        let narrowed = Candidates {
            places: &untried,
            schedule: schedule.as_ref(),
            turn: Turn::Narrowed,
        };
        self.pick::<W>(version, &narrowed, fitness, target)
    }

    fn turn<W: Witness>(&self, version: usize, target: Option<&Target>, which: Turn) -> u64 {
        match target {
            None => self.request.random,
            Some(target) if W::EFFECTS => target.take_turn(which),
            Some(target) => self
                .live
                .peek_turn(self.extension.versions[version].target, target, which),
        }
    }

    /// Chooses among these by the extension's way of balancing.
    fn pick<W: Witness>(
        &self,
        version: usize,
        candidates: &Candidates<'_>,
        fitness: Option<&Fitness>,
        target: Option<&Target>,
    ) -> u32 {
        let (extension, places) = (self.extension, candidates.places);
        match extension.balancing {
            Balancing::WeightedRoundRobin | Balancing::RoundRobin => {
                // One instance needs no turn, but the turns go on, so that a second one does not start at the first's.
                let turn = self.turn::<W>(version, target, candidates.turn);
                places[candidates.schedule.map_or(0, |schedule| schedule.pick(turn))]
            }
            _ if places.len() == 1 => places[0],
            Balancing::ConsistentHash => {
                let key = extension.hash_key.as_deref().unwrap_or("tenant_id");
                let key = self
                    .sticky_key(key)
                    .unwrap_or_else(|| self.request.random.to_string().into());
                let weight = |place: u32| (extension.instances[place as usize].weight * tenths(fitness, place)).max(1);
                let hash = |place: u32| rendezvous::seeded(extension.instances[place as usize].seed, &key);
                // Among equals the greatest hash has the least score.
                let first = weight(places[0]);
                if places.iter().all(|place| weight(*place) == first) {
                    return places
                        .iter()
                        .copied()
                        .max_by_key(|place| hash(*place))
                        .unwrap_or(places[0]);
                }
                let mut best = (f64::INFINITY, places[0]);
                for place in places {
                    let score = rendezvous::score(hash(*place), f64::from(weight(*place)));
                    if score < best.0 {
                        best = (score, *place);
                    }
                }
                best.1
            }
            Balancing::LeastLatency => self.better_of_two(places, fitness),
        }
    }

    /// Two random choices (Mitzenmacher 2001): the one with less latency x calls under way. One that is coming back is passed over as
    /// often as its weight is reduced.
    fn better_of_two(&self, places: &[u32], fitness: Option<&Fitness>) -> u32 {
        let (n, random) = (places.len() as u64, self.request.random);
        let first = random % n;
        let second = (first + 1 + (random >> 32) % (n - 1).max(1)) % n;
        let load = |place: u32| self.live.instance(place as usize).map_or(0, Target::load);
        let (a, b) = (places[first as usize], places[second as usize]);
        let (chosen, other) = if load(b) < load(a) { (b, a) } else { (a, b) };
        let dice = ((random >> 16) % u64::from(RAMP_STEPS)) as u32;
        if dice < tenths(fitness, chosen) { chosen } else { other }
    }

    fn explain_instances<W: Witness>(
        &self,
        pool: &Pool,
        fitness: Option<&Fitness>,
        chosen: Option<u32>,
        witness: &mut W,
    ) {
        if !W::WATCHES {
            return;
        }
        for place in &pool.members {
            let instance = &self.extension.instances[*place as usize];
            let standing = fitness.map_or(Standing::Fit, |fitness| fitness.standing(*place as usize));
            let out = match standing {
                Standing::Ejected { until_us } => {
                    let seconds = until_us.saturating_sub(self.request.now_us).div_ceil(1_000_000);
                    Some(format!("ejected for {seconds} s more: its calls failed in a row"))
                }
                Standing::Fit | Standing::Returning { .. } => None,
            };
            let out = instance.ineligible.map(ToOwned::to_owned).or(out);
            let (verdict, detail) = match out {
                Some(why) if Some(*place) == chosen => ("chosen", format!("{why}, but no instance is eligible")),
                Some(why) => ("skipped", why),
                None if Some(*place) == chosen => (
                    "chosen",
                    format!(
                        "{}, {}",
                        self.extension.balancing.as_str(),
                        share(self.extension, *place, standing)
                    ),
                ),
                None if self.is_avoided(*place) => ("skipped", "already tried".to_owned()),
                None => (
                    "not reached",
                    format!("eligible, {}, not its turn", share(self.extension, *place, standing)),
                ),
            };
            witness.see(|| found("instance", &instance.id, verdict, detail));
        }
    }
}

fn tenths(fitness: Option<&Fitness>, place: u32) -> u32 {
    // One that is out is asked only where nobody else is left.
    fitness.map_or(RAMP_STEPS, |fitness| fitness.tenths(place as usize).max(1))
}

/// What share an instance gets, in words.
fn share(extension: &Compiled, place: u32, standing: Standing) -> String {
    let weight = f64::from(extension.instances[place as usize].weight) / 2.0;
    match standing {
        Standing::Returning { tenths, .. } => {
            format!(
                "weight {weight}, of which {} % while it comes back from an ejection",
                tenths * 10
            )
        }
        Standing::Fit | Standing::Ejected { .. } => format!("weight {weight}"),
    }
}
