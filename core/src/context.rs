//! The facts of a request that rules look at.
//!
//! A context is a JSON object. The core reads it through [`Context`], so that Postgres can offer its raw `jsonb` and the
//! bridge its parsed JSON without a copy.

use std::borrow::Cow;

use crate::decimal::Decimal;

/// One value of a context, borrowed from it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// JSON null.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number as text, as JSON writes it.
    Number(Cow<'a, str>),
    /// A string.
    Str(Cow<'a, str>),
    /// An array or an object: no rule compares them as a whole.
    Composite,
}

impl Value<'_> {
    /// The text under which a value is hashed: equal for equal values. `None` for null and composites, which are no keys.
    pub fn key_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Null | Self::Composite => None,
            Self::Bool(true) => Some(Cow::Borrowed("true")),
            Self::Bool(false) => Some(Cow::Borrowed("false")),
            Self::Number(text) => {
                Some(Decimal::parse(text).map_or_else(|| Cow::Borrowed(&**text), |n| Cow::Owned(n.canonical())))
            }
            Self::Str(text) => Some(Cow::Borrowed(text)),
        }
    }
}

/// A JSON object of request facts.
pub trait Context {
    /// The value under a key of the object itself.
    fn get(&self, key: &str) -> Option<Value<'_>>;

    /// The value at a path of keys through nested objects.
    fn get_path(&self, path: &[Box<str>]) -> Option<Value<'_>>;
}

/// The context without facts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Empty;

impl Context for Empty {
    fn get(&self, _key: &str) -> Option<Value<'_>> {
        None
    }

    fn get_path(&self, _path: &[Box<str>]) -> Option<Value<'_>> {
        None
    }
}

impl Context for serde_json::Map<String, serde_json::Value> {
    fn get(&self, key: &str) -> Option<Value<'_>> {
        serde_json::Map::get(self, key).map(Into::into)
    }

    fn get_path(&self, path: &[Box<str>]) -> Option<Value<'_>> {
        let (first, rest) = path.split_first()?;
        let mut value = serde_json::Map::get(self, &**first)?;
        for key in rest {
            value = value.as_object()?.get(&**key)?;
        }
        Some(value.into())
    }
}

impl<'a> From<&'a serde_json::Value> for Value<'a> {
    fn from(value: &'a serde_json::Value) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(b) => Self::Bool(*b),
            serde_json::Value::Number(n) => Self::Number(Cow::Owned(n.to_string())),
            serde_json::Value::String(s) => Self::Str(Cow::Borrowed(s)),
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => Self::Composite,
        }
    }
}
