//! Policies, read when a pipeline needs one and again when they have grown old.

use std::collections::HashMap;
use std::rc::Rc;

use ext_registry_core::policy::PolicyDocument;

use super::slab::Token;

/// Names a policy.
pub type PolicyKey = (String, String);

/// What the registry says about a policy.
#[derive(Debug, Clone)]
pub enum Found {
    /// It is there.
    Policy(Rc<PolicyDocument>),
    /// There is none, or it is disabled.
    Nothing,
    /// It cannot be read; says why.
    Broken(String),
    /// The registry does not answer.
    Unavailable,
}

impl Found {
    /// What a document says.
    pub fn parsed(document: &serde_json::Value) -> Self {
        match PolicyDocument::parse(document) {
            Ok(policy) => Self::Policy(Rc::new(policy)),
            Err(error) => Self::Broken(error.to_string()),
        }
    }
}

#[derive(Default)]
struct Entry {
    policy: Option<Rc<PolicyDocument>>,
    read_us: u64,
    asked: bool,
    waiting: Vec<Token>,
}

/// Most policies that are kept.
const MOST: usize = 10_000;

/// The policies in use.
pub struct Policies {
    entries: HashMap<PolicyKey, Entry>,
    wanted: Vec<PolicyKey>,
    max_age_us: u64,
}

impl Policies {
    /// Policies that are read again after `max_age_us`.
    pub fn new(max_age_us: u64) -> Self {
        Self {
            entries: HashMap::new(),
            wanted: Vec::new(),
            max_age_us,
        }
    }

    /// Another age from which policies are read again.
    pub fn set_max_age(&mut self, max_age_us: u64) {
        self.max_age_us = max_age_us;
    }

    /// The policy, if it is known and young enough; else `waiter` will be told. Past half its age it is read ahead.
    pub fn get(&mut self, key: &PolicyKey, waiter: Token, now: u64) -> Option<Rc<PolicyDocument>> {
        if self.entries.len() >= MOST && !self.entries.contains_key(key) {
            self.entries.retain(|_, entry| entry.asked || !entry.waiting.is_empty());
        }
        let entry = self.entries.entry(key.clone()).or_default();
        let age = now.saturating_sub(entry.read_us);
        let fresh = entry.policy.clone().filter(|_| age <= self.max_age_us);
        if !entry.asked && (fresh.is_none() || age > self.max_age_us / 2) {
            entry.asked = true;
            self.wanted.push(key.clone());
        }
        if fresh.is_none() {
            entry.waiting.push(waiter);
        }
        fresh
    }

    /// All are read again before they are used again.
    pub fn grow_old(&mut self) {
        self.entries.retain(|_, entry| entry.asked || !entry.waiting.is_empty());
        for entry in self.entries.values_mut() {
            entry.policy = None;
        }
    }

    /// Takes the keys to read.
    pub fn take_wanted(&mut self) -> Vec<PolicyKey> {
        std::mem::take(&mut self.wanted)
    }

    /// What was read; gives who waited for it. Nothing but a policy is kept.
    pub fn found(&mut self, key: &PolicyKey, found: &Found, now: u64) -> Vec<Token> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Vec::new();
        };
        entry.asked = false;
        let waiting = std::mem::take(&mut entry.waiting);
        match found {
            Found::Policy(policy) => {
                entry.policy = Some(Rc::clone(policy));
                entry.read_us = now;
            }
            Found::Unavailable => {}
            Found::Nothing | Found::Broken(_) => {
                self.entries.remove(key);
            }
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_once_ahead_of_time_and_again_when_old() {
        let mut policies = Policies::new(1_000_000);
        let key = ("t".to_owned(), "p".to_owned());
        let (first, second) = (
            Token {
                index: 1,
                generation: 0,
            },
            Token {
                index: 2,
                generation: 0,
            },
        );
        assert!(policies.get(&key, first, 0).is_none());
        assert!(policies.get(&key, second, 10).is_none());
        assert_eq!(policies.take_wanted(), std::slice::from_ref(&key));
        let policy = Found::Policy(Rc::new(PolicyDocument::default()));
        assert_eq!(policies.found(&key, &policy, 100), [first, second]);
        assert!(policies.get(&key, first, 200).is_some() && policies.take_wanted().is_empty());
        assert!(policies.get(&key, first, 600_000).is_some() && policies.take_wanted().len() == 1);
        policies.grow_old();
        assert!(policies.get(&key, first, 600_100).is_none());
        assert_eq!(policies.found(&key, &policy, 600_200), [first]);
        assert!(policies.get(&key, first, 600_300).is_some());
        assert!(policies.get(&key, first, 1_700_000).is_none());
        assert_eq!(policies.found(&key, &Found::Nothing, 1_300_000), [first]);
        assert!(policies.get(&key, first, 1_300_001).is_none());
    }
}
