//! Versions that fewer requests reach than their row asks for, by rules and shares alone: what [`crate::decide`] would make of them
//! while every breaker is closed.

use std::collections::HashMap;

use crate::compile::Compiled;

/// Why fewer requests reach a version than its row asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortfall<'a> {
    /// No request matches its rules, because of this key.
    Never {
        /// The key that no value satisfies.
        key: &'a str,
    },
    /// Higher versions with the same rules leave it less than its share.
    Share {
        /// What it gets, in hundredths of a percent.
        gets: u32,
        /// The version that takes most, a place in [`Compiled::versions`].
        taken_by: usize,
        /// What that one takes, in hundredths of a percent.
        taken: u32,
    },
}

/// What versions with the same rules have taken so far.
#[derive(Default)]
struct Taken {
    all: u32,
    /// The version that took most, and how much.
    most: Option<(usize, u32)>,
}

impl Compiled {
    /// The versions, as places in [`Compiled::versions`], that get less than they ask for. A whole share asks for nothing: below
    /// another whole one such a version is what calls fall back to.
    pub fn shortfalls(&self) -> Vec<(usize, Shortfall<'_>)> {
        let mut found = Vec::new();
        for level in &self.levels {
            let mut by_rules: HashMap<u64, Taken> = HashMap::new();
            for place in level.places.clone() {
                let version = &self.versions[place];
                let Ok(rules) = &version.rules else { continue };
                if !version.enabled {
                    continue;
                }
                if let Some(key) = rules.never_matches() {
                    found.push((place, Shortfall::Never { key }));
                    continue;
                }
                let taken = by_rules.entry(version.rules_print).or_default();
                let gets = version.rollout.min(10_000 - taken.all);
                if let Some((taken_by, most)) = taken.most
                    && gets < version.rollout
                    && version.rollout < 10_000
                {
                    let taken = most;
                    found.push((place, Shortfall::Share { gets, taken_by, taken }));
                }
                taken.all += gets;
                if gets > taken.most.map_or(0, |(_, most)| most) {
                    taken.most = Some((place, gets));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::engine::Engine;
    use crate::fixture::ExtensionDocument;

    fn engine(versions: &[Json]) -> Engine {
        let document = json!({"id": "e", "type": "pre", "subject": "e", "version": "v0", "versions": versions});
        let document = ExtensionDocument::parse(&document).unwrap();
        Engine::new(&[document], 100_000, 7).unwrap()
    }

    fn version(name: &str, percent: f64, rules: &Json) -> Json {
        json!({"version": name, "subject": "e", "rollout_percent": percent, "routing_rules": rules})
    }

    fn shortfalls(versions: &[Json]) -> Vec<String> {
        let engine = engine(versions);
        let compiled = engine.extension("e").unwrap();
        let name = |place: usize| &compiled.versions[place].name;
        let tell = |(place, shortfall)| match shortfall {
            Shortfall::Never { key } => format!("{} never by {key}", name(place)),
            Shortfall::Share { gets, taken_by, taken } => {
                format!("{} gets {gets}, {} {taken}", name(place), name(taken_by))
            }
        };
        compiled.shortfalls().into_iter().map(tell).collect()
    }

    #[test]
    fn a_share_that_others_have_taken() {
        for (versions, expected) in [
            (&[("v1", 100.0), ("v2", 10.0)][..], &[][..]),
            (&[("v1", 100.0), ("v2", 100.0)], &[]),
            (&[("v2", 100.0), ("v1", 10.0)], &["v1 gets 0, v2 10000"]),
            (&[("v3", 30.0), ("v2", 60.0), ("v1", 50.5)], &["v1 gets 1000, v2 6000"]),
            (&[("v2", 0.0), ("v1", 50.0)], &[]),
        ] {
            let rows: Vec<Json> = versions
                .iter()
                .map(|(name, percent)| version(name, *percent, &json!({})))
                .collect();
            assert_eq!(shortfalls(&rows), expected, "{versions:?}");
        }
    }

    #[test]
    fn other_rules_take_nothing_and_nobody_matches_a_contradiction() {
        let rows = [
            version("v4", 80.0, &json!({"a": {"gt": 5, "lt": 3}})),
            version("v3", 80.0, &json!({"a": []})),
            version("v2", 80.0, &json!({"a": 1})),
            version("v1", 80.0, &json!({"a": 2})),
        ];
        assert_eq!(shortfalls(&rows), ["v4 never by a", "v3 never by a"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// What is told here is what the decision does.
        #[test]
        fn shares_are_those_of_the_decision(percents in prop::collection::vec(0u32..=99, 1..5)) {
            const KEYS: u32 = 4_000;
            let rows: Vec<Json> =
                percents.iter().enumerate().map(|(n, percent)| version(&format!("v{}", n + 1), f64::from(*percent), &json!({}))).collect();
            let mut engine = engine(&rows);
            let mut came: HashMap<String, u32> = HashMap::new();
            for key in 0..KEYS {
                let context = json!({"tenant_id": format!("t{key}")});
                let decision = engine.select("e", context.as_object().unwrap(), &[], 1_000_000);
                *came.entry(decision.version.unwrap()).or_default() += 1;
            }
            let compiled = engine.extension("e").unwrap();
            let shortfalls: HashMap<usize, u32> = compiled.shortfalls().into_iter().map(|(place, shortfall)| match shortfall {
                Shortfall::Share { gets, .. } => (place, gets),
                Shortfall::Never { .. } => unreachable!("no rules"),
            }).collect();
            for (place, version) in compiled.versions.iter().enumerate().take(compiled.own()) {
                let expected = f64::from(shortfalls.get(&place).copied().unwrap_or(version.rollout)) / 10_000.0;
                let share = f64::from(came.get(&*version.name).copied().unwrap_or(0)) / f64::from(KEYS);
                prop_assert!((share - expected).abs() < 0.04, "{} got {share}, not {expected}", version.name);
            }
        }
    }
}
