//! The operators of routing rules: `in`, `not_in`, `eq`, `ne`, `prefix`, `suffix`, `regex`, `exists`, `gt`, `gte`, `lt`, `lte`, `semver`.
//!
//! An absent value counts as null. `eq`, `ne`, `in`, `not_in` and `exists` look at any scalar; `prefix`, `suffix` and `regex` at strings;
//! the comparisons at numbers where the operand is a number and at strings (byte by byte) where it is a string; `semver` at strings.
//! A value of another type does not hold, except for the negations `ne` and `not_in`, which then do.

use std::cmp::Ordering;

use regex::{Regex, RegexBuilder};
use semver::{Version, VersionReq};
use serde_json::{Map, Value as Json};

use crate::context::Value;
use crate::decimal::Decimal;
use crate::scalars::{RuleError, Scalars, brief, decimal};

/// Largest compiled program of one regular expression, in bytes.
const REGEX_SIZE_LIMIT: usize = 256 * 1024;

const OPERATORS_HINT: &str =
    "Operators are in, not_in, eq, ne, prefix, suffix, regex, exists, gt, gte, lt, lte and semver.";

/// One compiled operator.
#[derive(Debug)]
pub(crate) enum Operator {
    In(Scalars),
    NotIn(Scalars),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Regex(Regex),
    Exists(bool),
    Compare(Comparison, Operand),
    Semver(VersionReq),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Comparison {
    Gt,
    Gte,
    Lt,
    Lte,
}

#[derive(Debug)]
pub(crate) enum Operand {
    Number(Decimal),
    Text(Box<str>),
}

/// Compiles the operators of one key.
pub(crate) fn parse(key: &str, object: &Map<String, Json>) -> Result<Box<[Operator]>, RuleError> {
    if object.is_empty() {
        return Err(RuleError::new(
            key,
            "an object without operators".to_owned(),
            OPERATORS_HINT,
        ));
    }
    object
        .iter()
        .map(|(name, operand)| Operator::parse(key, name, operand))
        .collect()
}

/// Whether no value at all can satisfy all of these, as far as lists, types and bounds tell.
pub(crate) fn contradict(operators: &[Operator]) -> bool {
    let all_hold = |value: &Value<'_>| operators.iter().all(|operator| operator.holds(value));
    for operator in operators {
        match operator {
            Operator::In(scalars) => return !scalars.any(all_hold),
            Operator::Exists(false) => return !all_hold(&Value::Null),
            _ => {}
        }
    }
    let numbers = operators.iter().any(Operator::wants_a_number);
    let strings = operators.iter().any(Operator::wants_a_string);
    numbers && strings
        || operators
            .iter()
            .any(|lower| operators.iter().any(|upper| lower.lies_above(upper)))
}

impl Operator {
    fn wants_a_number(&self) -> bool {
        matches!(self, Self::Compare(_, Operand::Number(_)))
    }

    fn wants_a_string(&self) -> bool {
        matches!(
            self,
            Self::Prefix(_) | Self::Suffix(_) | Self::Regex(_) | Self::Semver(_) | Self::Compare(_, Operand::Text(_))
        )
    }

    /// Whether a lower bound leaves nothing beneath an upper one.
    fn lies_above(&self, other: &Self) -> bool {
        let (Self::Compare(lower, low), Self::Compare(upper, high)) = (self, other) else {
            return false;
        };
        if !matches!(lower, Comparison::Gt | Comparison::Gte) || !matches!(upper, Comparison::Lt | Comparison::Lte) {
            return false;
        }
        let order = match (low, high) {
            (Operand::Number(low), Operand::Number(high)) => low.cmp(high),
            (Operand::Text(low), Operand::Text(high)) => low.cmp(high),
            _ => return false,
        };
        let both_include = matches!((lower, upper), (Comparison::Gte, Comparison::Lte));
        order == Ordering::Greater || order == Ordering::Equal && !both_include
    }

    fn parse(key: &str, name: &str, operand: &Json) -> Result<Self, RuleError> {
        let wrong = |expected: &str, hint| {
            RuleError::new(
                key,
                format!("operator {name} needs {expected}, not {}", brief(operand)),
                hint,
            )
        };
        let list = || {
            operand
                .as_array()
                .ok_or_else(|| wrong("a list of scalars", "Write a list such as [\"a\", \"b\"]."))
                .and_then(|list| Scalars::parse(key, list))
        };
        let one = || Scalars::parse(key, std::slice::from_ref(operand));
        let text = || {
            operand
                .as_str()
                .ok_or_else(|| wrong("a string", "Write a string in double quotes."))
        };
        let comparison = |comparison| match operand {
            Json::Number(n) => Ok(Self::Compare(comparison, Operand::Number(decimal(key, n)?))),
            Json::String(s) => Ok(Self::Compare(comparison, Operand::Text(s.as_str().into()))),
            _ => Err(wrong(
                "a number or a string",
                "Compare with a number, or with a string byte by byte.",
            )),
        };
        Ok(match name {
            "in" => Self::In(list()?),
            "not_in" => Self::NotIn(list()?),
            "eq" => Self::In(one()?),
            "ne" => Self::NotIn(one()?),
            "prefix" => Self::Prefix(text()?.into()),
            "suffix" => Self::Suffix(text()?.into()),
            "regex" => {
                let pattern = text()?;
                let compiled = RegexBuilder::new(pattern)
                    .size_limit(REGEX_SIZE_LIMIT)
                    .dfa_size_limit(REGEX_SIZE_LIMIT)
                    .build();
                Self::Regex(compiled.map_err(|error| {
                    let reason = error.to_string();
                    let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
                    RuleError::new(
                        key,
                        format!("bad regex {}: {reason}", brief(operand)),
                        "Use the syntax of Rust's regex crate; look-around and back-references are not supported.",
                    )
                })?)
            }
            "exists" => Self::Exists(
                operand
                    .as_bool()
                    .ok_or_else(|| wrong("true or false", "Write true or false without quotes."))?,
            ),
            "gt" => comparison(Comparison::Gt)?,
            "gte" => comparison(Comparison::Gte)?,
            "lt" => comparison(Comparison::Lt)?,
            "lte" => comparison(Comparison::Lte)?,
            "semver" => Self::Semver(VersionReq::parse(text()?).map_err(|error| {
                RuleError::new(
                    key,
                    format!("bad version requirement {}: {error}", brief(operand)),
                    "Write a requirement such as >=1.2, <2.",
                )
            })?),
            _ => {
                return Err(RuleError::new(
                    key,
                    format!("unknown operator {}", brief(&Json::from(name))),
                    OPERATORS_HINT,
                ));
            }
        })
    }

    pub(crate) fn holds(&self, value: &Value<'_>) -> bool {
        match (self, value) {
            (Self::In(scalars), value) => scalars.contains(value),
            (Self::NotIn(scalars), value) => !scalars.contains(value),
            (Self::Exists(wanted), value) => *wanted != matches!(value, Value::Null),
            (Self::Prefix(prefix), Value::Str(s)) => s.starts_with(&**prefix),
            (Self::Suffix(suffix), Value::Str(s)) => s.ends_with(&**suffix),
            (Self::Regex(regex), Value::Str(s)) => regex.is_match(s),
            (Self::Compare(comparison, Operand::Number(operand)), Value::Number(n)) => {
                Decimal::parse(n).is_some_and(|n| comparison.holds(n.cmp(operand)))
            }
            (Self::Compare(comparison, Operand::Text(operand)), Value::Str(s)) => {
                comparison.holds(s.as_ref().cmp(&**operand))
            }
            (Self::Semver(requirement), Value::Str(s)) => {
                lenient_version(s).is_some_and(|version| requirement.matches(&version))
            }
            _ => false,
        }
    }
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Gt => order == Ordering::Greater,
            Self::Gte => order != Ordering::Less,
            Self::Lt => order == Ordering::Less,
            Self::Lte => order != Ordering::Greater,
        }
    }
}

/// A version as people write it: a leading `v` and missing parts are forgiven (`v1.2` is 1.2.0).
fn lenient_version(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches(['v', 'V']);
    if let Ok(version) = Version::parse(text) {
        return Some(version);
    }
    let core_end = text.find(['-', '+']).unwrap_or(text.len());
    let missing = 2usize.checked_sub(text[..core_end].matches('.').count())?;
    Version::parse(&format!(
        "{}{}{}",
        &text[..core_end],
        ".0".repeat(missing),
        &text[core_end..]
    ))
    .ok()
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!(..) reads better than &json!(..)")]
mod tests {
    use crate::rules::RuleSet;
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    fn holds(operators: Json, value: Json) -> bool {
        let context = json!({"k": value});
        RuleSet::parse(&json!({"k": operators}))
            .unwrap()
            .matches(context.as_object().unwrap())
    }

    #[test]
    fn each_operator() {
        for (operators, yes, no) in [
            (json!({"in": ["a", 1]}), json!(1), json!("b")),
            (json!({"not_in": ["a"]}), json!("b"), json!("a")),
            (json!({"eq": "a"}), json!("a"), json!("b")),
            (json!({"ne": "a"}), json!(null), json!("a")),
            (json!({"prefix": "eu-"}), json!("eu-1"), json!("us-1")),
            (json!({"suffix": "-1"}), json!("eu-1"), json!("eu-2")),
            (json!({"regex": "^t[0-9]+$"}), json!("t12"), json!("tx")),
            (json!({"exists": true}), json!(0), json!(null)),
            (json!({"exists": false}), json!(null), json!(0)),
            (json!({"gt": 5}), json!(5.5), json!(5)),
            (json!({"gte": 5}), json!(5), json!("5")),
            (json!({"lt": "b"}), json!("a"), json!("b")),
            (json!({"lte": 1e3}), json!(1000), json!(1001)),
            (json!({"gte": 2, "lt": 4}), json!(3), json!(4)),
            (json!({"semver": ">=1.2, <2"}), json!("v1.9"), json!("2.0.0")),
        ] {
            assert!(holds(operators.clone(), yes.clone()), "{operators} {yes}");
            assert!(!holds(operators.clone(), no.clone()), "{operators} {no}");
        }
    }

    #[test]
    fn contradictions_are_seen() {
        for (operators, never) in [
            (json!({"in": []}), true),
            (json!({"in": ["a", 1], "not_in": [1, "a"]}), true),
            (json!({"in": ["a", "b"], "ne": "a"}), false),
            (json!({"eq": 3, "gt": 3}), true),
            (json!({"eq": 3, "gte": 3}), false),
            (json!({"exists": false, "prefix": "a"}), true),
            (json!({"exists": false, "ne": "a"}), false),
            (json!({"exists": true, "eq": null}), true),
            (json!({"gt": 5, "lt": 5.0}), true),
            (json!({"gte": 5, "lte": 5}), false),
            (json!({"gt": "b", "lte": "a"}), true),
            (json!({"gt": 1, "lt": "z"}), true),
            (json!({"gt": 1, "regex": "^a"}), true),
            (json!({"prefix": "eu", "suffix": "1"}), false),
        ] {
            let rules = RuleSet::parse(&json!({"k": operators})).unwrap();
            assert_eq!(rules.never_matches().is_some(), never, "{operators}");
        }
    }

    proptest! {
        #[test]
        fn what_contradicts_itself_never_holds(
            bounds in prop::collection::btree_map("gte?|lte?", 0..4i32, 1..4),
            list in prop::option::of(prop::collection::vec(0..4i32, 0..3)),
            without in prop::collection::vec(0..4i32, 0..3),
            value in 0..4i32,
        ) {
            let mut operators: serde_json::Map<String, Json> = bounds.into_iter().map(|(name, bound)| (name, json!(bound))).collect();
            operators.insert("not_in".to_owned(), json!(without));
            if let Some(list) = list {
                operators.insert("in".to_owned(), json!(list));
            }
            let rules = RuleSet::parse(&json!({"k": operators})).unwrap();
            prop_assert!(rules.never_matches().is_none() || !holds(Json::Object(operators), json!(value)));
        }
    }

    #[test]
    fn bad_operands_are_refused_by_name() {
        for (operators, part) in [
            (json!({"in": "a"}), "in"),
            (json!({"prefix": 1}), "prefix"),
            (json!({"regex": "("}), "regex"),
            (json!({"regex": "(a{1000}){1000}"}), "regex"),
            (json!({"exists": "yes"}), "exists"),
            (json!({"gt": true}), "gt"),
            (json!({"semver": "latest"}), "requirement"),
            (json!({"In": ["a"]}), "In"),
        ] {
            let error = RuleSet::parse(&json!({"tenant_id": operators})).unwrap_err();
            assert!(
                error.to_string().contains(part) && error.to_string().contains("tenant_id"),
                "{error}"
            );
        }
    }
}
