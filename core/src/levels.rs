//! Versions of equal specificity, and how to find the few of many that may match.
//!
//! A level is tried version by version. Where it has many versions that each want one of some strings under the same key (a version a tenant, say),
//! they are indexed by these strings, so that a decision looks at those that name its value and at those that do not use the key. The
//! index only leaves out versions that cannot match: what it gives is tried as ever, in the same order.

use std::collections::HashMap;
use std::ops::Range;

use crate::context::{Context, Value};
use crate::rules::{RuleError, RuleSet};

/// Below this many versions a level is not indexed: trying them costs less.
const MANY: usize = 16;

/// The rules of versions in the order in which they are tried; an error never matches.
type Rules<'a> = [&'a Result<RuleSet, RuleError>];

/// The number of keys of a version's rules.
pub fn specificity(rules: &Result<RuleSet, RuleError>) -> usize {
    rules.as_ref().map_or(0, RuleSet::specificity)
}

/// Versions of equal specificity.
#[derive(Debug)]
pub struct Level {
    /// Where they lie among the versions.
    pub places: Range<usize>,
    index: Option<Index>,
}

/// Versions by the strings that they want under one key.
#[derive(Debug)]
struct Index {
    key: Box<str>,
    by_string: HashMap<Box<str>, Box<[u32]>>,
    /// Those that may match whatever the key's value is.
    others: Box<[u32]>,
}

impl Level {
    /// The levels of versions that lie in the order in which they are tried.
    pub fn of(versions: &Rules<'_>) -> Box<[Self]> {
        let mut start = 0;
        versions
            .chunk_by(|a, b| specificity(a) == specificity(b))
            .map(|level| {
                let places = start..start + level.len();
                start = places.end;
                Self {
                    index: Index::of(versions, places.clone()),
                    places,
                }
            })
            .collect()
    }

    /// Those of them that may match, in order; `None`: any of them may.
    pub fn candidates<C: Context + ?Sized>(&self, context: &C) -> Option<Vec<usize>> {
        let index = self.index.as_ref()?;
        let named = match context.get(&index.key) {
            Some(Value::Str(value)) => index.by_string.get(&*value).map_or(&[][..], |places| places),
            _ => &[],
        };
        let mut places: Vec<usize> = named.iter().chain(&index.others).map(|place| *place as usize).collect();
        places.sort_unstable();
        Some(places)
    }
}

impl Index {
    /// An index by the key that most of these versions use.
    fn of(versions: &Rules<'_>, places: Range<usize>) -> Option<Self> {
        if places.len() < MANY {
            return None;
        }
        let rules = |place: usize| versions[place].as_ref().ok();
        let keys = |rules: &RuleSet| rules.string_keys().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
        let mut uses: HashMap<String, usize> = HashMap::new();
        for key in places.clone().filter_map(rules).flat_map(keys) {
            *uses.entry(key).or_default() += 1;
        }
        // Equally many: the first by name, so that every session has the same.
        let (key, uses) = uses
            .into_iter()
            .max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)))?;
        if uses * 2 < places.len() {
            return None;
        }
        let mut by_string: HashMap<Box<str>, Vec<u32>> = HashMap::new();
        let mut others = Vec::new();
        for place in places {
            let Some(rules) = rules(place) else { continue };
            match rules.string_keys().find(|(known, _)| *known == key) {
                None => others.push(place as u32),
                Some((_, strings)) => {
                    for string in strings {
                        by_string.entry(string.into()).or_default().push(place as u32);
                    }
                }
            }
        }
        Some(Self {
            key: key.into(),
            by_string: by_string
                .into_iter()
                .map(|(string, places)| (string, places.into()))
                .collect(),
            others: others.into(),
        })
    }
}
