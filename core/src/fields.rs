//! Reading a JSON object key by key, with errors that name the key and the value.
//!
//! Used for documents that people write by hand. Keys that nobody asked for are refused by name, so that a slip of the pen
//! never becomes a silent default. Safe on any input: it does not recurse.

use serde_json::{Map, Value as Json};
use thiserror::Error;

use crate::ident::{IdentError, shorten};
use crate::rules::RuleError;

/// A document that may not enter the registry. `Display` names the key and the value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{message}", if .path.is_empty() { String::new() } else { format!("{}: ", .path) })]
pub struct DocumentError {
    /// Where in the document, such as `pre[1].mode`; empty for the document itself.
    pub path: String,
    message: String,
    hint: String,
}

impl DocumentError {
    /// An error at a place, with what would do.
    pub fn new(path: &str, message: String, hint: &str) -> Self {
        Self {
            path: path.to_owned(),
            message,
            hint: hint.to_owned(),
        }
    }

    /// What a valid value looks like.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// From the check of a name.
    pub fn ident(path: &str, error: &IdentError) -> Self {
        Self::new(path, error.to_string(), error.hint())
    }

    /// From a rule set.
    pub fn rule(path: &str, error: &RuleError) -> Self {
        Self::new(path, error.to_string(), error.hint())
    }
}

/// A JSON value in an error message: its text, shortened.
pub(crate) fn show(value: &Json) -> String {
    match value {
        Json::Array(_) => "an array".to_owned(),
        Json::Object(_) => "an object".to_owned(),
        other => shorten(&other.to_string()),
    }
}

/// One object being read.
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Json>,
    seen: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The object at `path`, or an error that says what is there instead.
    pub(crate) fn open(path: &str, value: &'a Json) -> Result<Self, DocumentError> {
        match value {
            Json::Object(map) => Ok(Self {
                path: path.to_owned(),
                map,
                seen: Vec::new(),
            }),
            other => Err(DocumentError::new(
                path,
                format!("must be an object, not {}", show(other)),
                "Write a JSON object, such as {\"id\": \"normalize_text\"}.",
            )),
        }
    }

    /// The path of a key of this object.
    pub(crate) fn at(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The value of a key; absent and null are both `None`.
    pub(crate) fn value(&mut self, key: &'static str) -> Option<&'a Json> {
        self.raw(key).filter(|v| !v.is_null())
    }

    /// The value of a key, null included.
    pub(crate) fn raw(&mut self, key: &'static str) -> Option<&'a Json> {
        self.seen.push(key);
        self.map.get(key)
    }

    /// The error for a value that is not what it should be.
    pub(crate) fn wrong(&self, key: &str, value: &Json, wanted: &str) -> DocumentError {
        let message = format!("must be {wanted}, not {}", show(value));
        DocumentError::new(&self.at(key), message, &format!("Write {wanted} for {key}."))
    }

    /// The error for a key that must be there.
    pub(crate) fn missing(&self, key: &str) -> DocumentError {
        DocumentError::new(&self.at(key), "is required".to_owned(), &format!("Add the key {key}."))
    }

    /// A string.
    pub(crate) fn string(&mut self, key: &'static str) -> Result<Option<&'a str>, DocumentError> {
        match self.value(key) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    /// A string that must be there.
    pub(crate) fn required(&mut self, key: &'static str) -> Result<&'a str, DocumentError> {
        self.string(key)?.ok_or_else(|| self.missing(key))
    }

    /// One of a few words.
    pub(crate) fn one_of(
        &mut self,
        key: &'static str,
        allowed: &[&'static str],
        default: &'static str,
    ) -> Result<&'static str, DocumentError> {
        let Some(text) = self.string(key)? else {
            return Ok(default);
        };
        allowed.iter().copied().find(|word| *word == text).ok_or_else(|| {
            DocumentError::new(
                &self.at(key),
                format!("\"{}\" is not allowed", shorten(text)),
                &format!("Use one of: {}.", allowed.join(", ")),
            )
        })
    }

    /// A boolean.
    pub(crate) fn boolean(&mut self, key: &'static str, default: bool) -> Result<bool, DocumentError> {
        match self.value(key) {
            None => Ok(default),
            Some(Json::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    /// A whole number within bounds; absent and null are `None`.
    pub(crate) fn integer(&mut self, key: &'static str, low: i64, high: i64) -> Result<Option<i64>, DocumentError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_i64() {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(key, value, &format!("a whole number from {low} to {high}"))),
        }
    }

    /// A number within bounds; absent and null are `None`.
    pub(crate) fn number(&mut self, key: &'static str, low: f64, high: f64) -> Result<Option<f64>, DocumentError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ => Err(self.wrong(key, value, &format!("a number from {low} to {high}"))),
        }
    }

    /// An object; absent and null are empty.
    pub(crate) fn object(&mut self, key: &'static str) -> Result<Map<String, Json>, DocumentError> {
        match self.value(key) {
            None => Ok(Map::new()),
            Some(Json::Object(map)) => Ok(map.clone()),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// The items of a list, at most `limit`; absent and null are empty.
    pub(crate) fn list(&mut self, key: &'static str, limit: usize) -> Result<&'a [Json], DocumentError> {
        match self.value(key) {
            None => Ok(&[]),
            Some(Json::Array(items)) if items.len() <= limit => Ok(items),
            Some(Json::Array(items)) => Err(DocumentError::new(
                &self.at(key),
                format!("has {} items", items.len()),
                &format!("At most {limit} are allowed."),
            )),
            Some(other) => Err(self.wrong(key, other, "a list")),
        }
    }

    /// Refuses the keys that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), DocumentError> {
        match self.map.keys().find(|key| !self.seen.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(DocumentError::new(
                &self.path,
                format!("unknown key \"{}\"", shorten(key)),
                &format!("Known keys: {}.", self.seen.join(", ")),
            )),
        }
    }
}
