//! Routing rules: which requests a version serves.
//!
//! A rule set is a JSON object; all of its keys must hold. It is parsed and refused when a row is written, and compiled once
//! per session; matching allocates nothing for strings and booleans.
//!
//! | value in the rule | holds when the context's value |
//! |---|---|
//! | scalar | equals it |
//! | list | equals one of it; `[]` never holds |
//! | `null` | is absent or null |
//! | object | satisfies every operator in it, see [`crate::operators`] |
//!
//! A key is a key of the context, or a dotted path into it where no key has that literal name.

use serde_json::{Map, Value as Json};

use crate::context::{Context, Value};
use crate::operators::{self, Operator};
pub use crate::scalars::RuleError;
use crate::scalars::{Scalars, brief};

/// A compiled rule set.
#[derive(Debug, Default)]
pub struct RuleSet {
    conditions: Box<[Condition]>,
}

/// One key of a rule set.
#[derive(Debug)]
pub struct Condition {
    key: Box<str>,
    /// The key split at its dots, where it has any.
    path: Option<Box<[Box<str>]>>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Never,
    Absent,
    AnyOf(Scalars),
    Operators(Box<[Operator]>),
}

impl RuleSet {
    /// Compiles a rule set. Errors name the key; nothing is guessed.
    pub fn parse(rules: &Json) -> Result<Self, RuleError> {
        let conditions = Self::object(rules)?
            .iter()
            .map(|(key, value)| Condition::parse(key, value))
            .collect::<Result<_, _>>()?;
        Ok(Self { conditions })
    }

    /// All that is wrong with a rule set, one error a key at most.
    pub fn problems(rules: &Json) -> Vec<RuleError> {
        match Self::object(rules) {
            Err(error) => vec![error],
            Ok(object) => object
                .iter()
                .filter_map(|(key, value)| Condition::parse(key, value).err())
                .collect(),
        }
    }

    fn object(rules: &Json) -> Result<&Map<String, Json>, RuleError> {
        rules.as_object().ok_or_else(|| {
            RuleError::new(
                "",
                format!("{} is not an object", brief(rules)),
                "Rules are a JSON object such as {\"tenant_id\": [\"t1\", \"t2\"]}; {} matches everything.",
            )
        })
    }

    /// The number of keys: more keys win over fewer.
    pub fn specificity(&self) -> usize {
        self.conditions.len()
    }

    /// Whether every key holds.
    pub fn matches<C: Context + ?Sized>(&self, context: &C) -> bool {
        self.first_mismatch(context).is_none()
    }

    /// The first condition that does not hold.
    pub fn first_mismatch<C: Context + ?Sized>(&self, context: &C) -> Option<&Condition> {
        self.conditions.iter().find(|condition| !condition.holds(context))
    }

    /// The keys for which the value must be one of some strings, and these.
    pub fn string_keys(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
        self.conditions
            .iter()
            .filter_map(|condition| match (&condition.path, &condition.test) {
                (None, Test::AnyOf(scalars)) => Some((&*condition.key, scalars.only_strings()?)),
                _ => None,
            })
    }

    /// The key, if there is one, that no value satisfies: its list is empty, or its operators contradict each other.
    pub fn never_matches(&self) -> Option<&str> {
        let never = |condition: &&Condition| match &condition.test {
            Test::Never => true,
            Test::Operators(operators) => operators::contradict(operators),
            Test::Absent | Test::AnyOf(_) => false,
        };
        self.conditions.iter().find(never).map(|condition| &*condition.key)
    }
}

impl Condition {
    fn parse(key: &str, value: &Json) -> Result<Self, RuleError> {
        if key.is_empty() {
            return Err(RuleError::new(
                key,
                "the key is empty".to_owned(),
                "Name a key of the context, such as tenant_id.",
            ));
        }
        let test = match value {
            Json::Null => Test::Absent,
            Json::Array(list) if list.is_empty() => Test::Never,
            Json::Array(list) => Test::AnyOf(Scalars::parse(key, list)?),
            Json::Object(object) => Test::Operators(operators::parse(key, object)?),
            scalar => Test::AnyOf(Scalars::parse(key, std::slice::from_ref(scalar))?),
        };
        let path = key.contains('.').then(|| key.split('.').map(Into::into).collect());
        Ok(Self {
            key: key.into(),
            path,
            test,
        })
    }

    /// The key as the rule set names it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value this condition looks at; `None` where the context has none.
    pub fn value<'c, C: Context + ?Sized>(&self, context: &'c C) -> Option<Value<'c>> {
        match &self.path {
            None => context.get(&self.key),
            Some(path) => context.get(&self.key).or_else(|| context.get_path(path)),
        }
    }

    fn holds<C: Context + ?Sized>(&self, context: &C) -> bool {
        match &self.test {
            Test::Never => false,
            Test::Absent => matches!(self.value(context), None | Some(Value::Null)),
            Test::AnyOf(scalars) => scalars.contains(&self.value(context).unwrap_or(Value::Null)),
            Test::Operators(operators) => {
                let value = self.value(context).unwrap_or(Value::Null);
                operators.iter().all(|operator| operator.holds(&value))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!(..) reads better than &json!(..)")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn holds(rules: Json, context: Json) -> bool {
        RuleSet::parse(&rules).unwrap().matches(context.as_object().unwrap())
    }

    #[test]
    fn the_four_forms() {
        assert!(holds(json!({}), json!({})));
        assert!(holds(json!({"t": "a"}), json!({"t": "a"})));
        assert!(!holds(json!({"t": "a"}), json!({"t": "b"})));
        assert!(!holds(json!({"t": "a"}), json!({})));
        assert!(holds(json!({"t": ["a", "b"]}), json!({"t": "b"})));
        assert!(!holds(json!({"t": []}), json!({"t": "a"})));
        assert!(!holds(json!({"t": []}), json!({})));
        assert!(holds(json!({"t": null}), json!({})));
        assert!(holds(json!({"t": null}), json!({"t": null})));
        assert!(!holds(json!({"t": null}), json!({"t": 0})));
        assert!(!holds(json!({"a": 1, "b": 2}), json!({"a": 1})));
        assert!(holds(json!({"a": 1, "b": true}), json!({"a": 1.0, "b": true})));
        assert!(!holds(json!({"a": 1}), json!({"a": "1"})));
        assert!(!holds(json!({"a": "x"}), json!({"a": ["x"]})));
    }

    #[test]
    fn a_literal_key_wins_over_a_path() {
        assert!(holds(json!({"user.plan": "pro"}), json!({"user": {"plan": "pro"}})));
        assert!(!holds(
            json!({"user.plan": "pro"}),
            json!({"user": {"plan": "pro"}, "user.plan": "free"})
        ));
        assert!(holds(json!({"a.b.c": 1}), json!({"a": {"b": {"c": 1}}})));
        assert!(!holds(json!({"a.b.c": 1}), json!({"a": {"b": 1}})));
    }

    #[test]
    fn what_is_refused_is_named() {
        for (rules, part) in [
            (json!([1]), "[1]"),
            (json!("x"), "\"x\""),
            (json!({"tenant_id": [["x"]]}), "tenant_id"),
            (json!({"tenant_id": {"like": "x"}}), "like"),
            (json!({"tenant_id": {}}), "tenant_id"),
            (json!({"": 1}), "empty"),
        ] {
            let error = RuleSet::parse(&rules).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn all_problems_are_told() {
        let problems = RuleSet::problems(&json!({"a": {"like": 1}, "b": 1, "c": {}, "d": []}));
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["a", "c"]);
        assert_eq!(RuleSet::problems(&json!([1])).len(), 1);
        assert!(RuleSet::problems(&json!({})).is_empty());
    }

    proptest! {
        #[test]
        fn a_list_is_any_of_its_scalars(list in prop::collection::vec("[a-f]{1,3}", 0..12), value in "[a-f]{1,3}") {
            let expected = list.contains(&value);
            prop_assert_eq!(holds(json!({"k": list}), json!({"k": value})), expected);
        }

        #[test]
        fn more_keys_never_match_more(a in "[ab]", b in "[ab]", x in "[ab]", y in "[ab]") {
            let context = json!({"k": x, "l": y});
            if holds(json!({"k": a, "l": b}), context.clone()) {
                let fewer = holds(json!({"k": a}), context);
                prop_assert!(fewer);
            }
        }
    }
}
