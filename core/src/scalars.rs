//! The scalars of routing rules, looked up by value, and the error for a rule that may not enter the registry.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value as Json;
use thiserror::Error;

use crate::context::Value;
use crate::decimal::Decimal;
use crate::ident::shorten;

/// A rule set that may not enter the registry. `Display` names the key and the value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("routing rule{}: {message}", if .key.is_empty() { String::new() } else { format!(" for key \"{}\"", shorten(.key)) })]
pub struct RuleError {
    /// The key of the rule set that is wrong; empty where the whole is.
    pub key: String,
    message: String,
    hint: &'static str,
}

impl RuleError {
    pub(crate) fn new(key: &str, message: String, hint: &'static str) -> Self {
        Self {
            key: key.to_owned(),
            message,
            hint,
        }
    }

    /// For rules that the host cannot even read as JSON.
    pub fn unreadable(why: &str) -> Self {
        Self::new("", why.to_owned(), VALUE_HINT)
    }

    /// What a valid rule looks like.
    pub fn hint(&self) -> &'static str {
        self.hint
    }
}

const VALUE_HINT: &str =
    "A rule is a scalar (equality), a list of scalars (any of), null (absent), or an object of operators.";

/// A set of scalars of mixed types, looked up by value.
#[derive(Debug, Default)]
pub(crate) struct Scalars {
    /// Few strings are compared one by one, many are hashed.
    few: Box<[Box<str>]>,
    many: HashSet<Box<str>>,
    numbers: HashSet<Decimal>,
    booleans: [bool; 2],
    null: bool,
}

impl Scalars {
    /// Up to this many strings are compared one by one; a hash costs about as much.
    const FEW: usize = 6;

    pub(crate) fn parse(key: &str, list: &[Json]) -> Result<Self, RuleError> {
        let mut strings: HashSet<Box<str>> = HashSet::new();
        let mut scalars = Self::default();
        for item in list {
            match item {
                Json::Null => scalars.null = true,
                Json::Bool(b) => scalars.booleans[usize::from(*b)] = true,
                Json::String(s) => {
                    strings.insert(s.as_str().into());
                }
                Json::Number(n) => {
                    scalars.numbers.insert(decimal(key, n)?);
                }
                Json::Array(_) | Json::Object(_) => {
                    return Err(RuleError::new(key, format!("{} is no scalar", brief(item)), VALUE_HINT));
                }
            }
        }
        if strings.len() <= Self::FEW {
            let mut few: Vec<Box<str>> = strings.into_iter().collect();
            // In an order, so that every session takes as long.
            few.sort_unstable();
            scalars.few = few.into();
        } else {
            scalars.many = strings;
        }
        Ok(scalars)
    }

    pub(crate) fn contains(&self, value: &Value<'_>) -> bool {
        match value {
            Value::Str(s) if self.many.is_empty() => self.few.iter().any(|one| **one == **s),
            Value::Str(s) => self.many.contains(&**s),
            Value::Bool(b) => self.booleans[usize::from(*b)],
            Value::Null => self.null,
            Value::Number(_) if self.numbers.is_empty() => false,
            Value::Number(n) => Decimal::parse(n).is_some_and(|n| self.numbers.contains(&n)),
            Value::Composite => false,
        }
    }
}

impl Scalars {
    /// Whether one of them is like this.
    pub(crate) fn any(&self, mut is_so: impl FnMut(&Value<'_>) -> bool) -> bool {
        let mut strings = self.few.iter().chain(&self.many);
        let mut booleans = [false, true].into_iter().filter(|b| self.booleans[usize::from(*b)]);
        strings.any(|s| is_so(&Value::Str(Cow::Borrowed(s))))
            || booleans.any(|b| is_so(&Value::Bool(b)))
            || self
                .numbers
                .iter()
                .any(|n| is_so(&Value::Number(Cow::Owned(n.canonical()))))
            || (self.null && is_so(&Value::Null))
    }

    /// The strings, where there is nothing else.
    pub(crate) fn only_strings(&self) -> Option<impl Iterator<Item = &str>> {
        let others = self.null || self.booleans != [false; 2] || !self.numbers.is_empty();
        (!others).then(|| self.few.iter().chain(&self.many).map(|s| &**s))
    }
}

/// The number of a rule, exactly.
pub(crate) fn decimal(key: &str, number: &serde_json::Number) -> Result<Decimal, RuleError> {
    Decimal::parse(&number.to_string())
        .ok_or_else(|| RuleError::new(key, format!("the number {number} is out of range"), VALUE_HINT))
}

/// A value as an error message shows it.
pub(crate) fn brief(value: &Json) -> String {
    shorten(&value.to_string())
}
