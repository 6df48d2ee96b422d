//! The document of a policy: which extensions a pipeline runs, in which order, and what their failures mean.
//!
//! Owns the shape and its bounds. The same check guards the table in Postgres and the files of fixtures, so it must be safe
//! on any JSON: it neither recurses nor panics, and every error names the key and the value.

use serde_json::{Map, Value as Json};

pub use crate::fields::DocumentError as PolicyError;
use crate::fields::Fields;
use crate::fixture::{RETRY, TIMEOUT_MS};
use crate::ident::{check_id, check_version, shorten};
use crate::rules::RuleSet;

/// Most items in one of `pre`, `validators`, `post`.
pub const MAX_STAGE_ITEMS: usize = 5;
/// Most items in those three together.
pub const MAX_ITEMS: usize = 10;
/// Most providers to choose from, and most fallback rules.
pub const MAX_PROVIDERS: usize = 50;

/// A pipeline: pre-processors in order, validators side by side, one provider, post-processors in order.
#[derive(Debug, Default)]
pub struct PolicyDocument {
    /// The document's own version, if it names one.
    pub version: Option<String>,
    /// Pre-processors, in order.
    pub pre: Vec<Processor>,
    /// Validators.
    pub validators: Vec<Validator>,
    /// Providers to choose from by weight.
    pub providers: Vec<Provider>,
    /// What to do when a provider fails; the first that matches.
    pub fallbacks: Vec<Fallback>,
    /// Post-processors, in order.
    pub post: Vec<Processor>,
    /// Whether and by what a session keeps its provider.
    pub sticky: Option<Sticky>,
}

/// What every item of a stage may say about its call.
#[derive(Debug, Default)]
pub struct Item {
    /// The extension's id.
    pub id: String,
    /// Laid over the registered config.
    pub config: Option<Map<String, Json>>,
    /// Shortens the registered timeout, in ms.
    pub timeout_ms: Option<u32>,
    /// Replaces the registered number of retries.
    pub retry: Option<u32>,
    /// The item runs only for requests that these rules match.
    pub when: Option<RuleSet>,
}

/// A pre- or post-processor.
#[derive(Debug)]
pub struct Processor {
    /// The call.
    pub item: Item,
    /// Whether its failure ends the request (`mode` is `required`).
    pub required: bool,
}

/// What a validator's refusal or failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFail {
    /// The request ends.
    Block,
    /// The request goes on, with a log line.
    Warn,
    /// The request goes on.
    Ignore,
}

/// A validator.
#[derive(Debug)]
pub struct Validator {
    /// The call.
    pub item: Item,
    /// What its refusal means.
    pub on_fail: OnFail,
}

/// A provider with its weight.
#[derive(Debug)]
pub struct Provider {
    /// The call; `id` is the document's `name`.
    pub item: Item,
    /// Share of the requests, relative to the others' weights.
    pub weight: u32,
}

/// What to do when a provider failed.
#[derive(Debug)]
pub struct Fallback {
    /// Matched against the context with `status` set to the failure's names.
    pub when: RuleSet,
    /// Tries of the same provider before going over.
    pub retry: u32,
    /// Time to wait between those tries.
    pub backoff: Backoff,
    /// The provider to go over to.
    pub to: String,
}

/// Time to wait before try `k` (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// How it grows.
    pub strategy: Strategy,
    /// The first wait, in ms.
    pub base_ms: u32,
    /// The longest wait, in ms.
    pub max_ms: u32,
    /// Whether it is spread.
    pub jitter: bool,
}

/// How a wait grows from try to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Strategy {
    Exponential,
    Linear,
    Fixed,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            strategy: Strategy::Exponential,
            base_ms: 100,
            max_ms: 5000,
            jitter: true,
        }
    }
}

impl Backoff {
    /// The wait before try `k`, in ms, without jitter.
    pub fn wait_ms(&self, k: u32) -> u32 {
        let k = k.max(1);
        let wait = match self.strategy {
            Strategy::Fixed => self.base_ms,
            Strategy::Linear => self.base_ms.saturating_mul(k),
            Strategy::Exponential => self
                .base_ms
                .saturating_mul(1_u32.checked_shl(k - 1).unwrap_or(u32::MAX)),
        };
        wait.min(self.max_ms)
    }
}

/// By which fact a session keeps its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// Whether it is on.
    pub enabled: bool,
    /// The context key.
    pub session_key: String,
    /// How long the document wants a session to be kept, in s.
    pub ttl_seconds: u32,
}

impl PolicyDocument {
    /// Reads and checks a document. The error names the key and the value.
    pub fn parse(value: &Json) -> Result<Self, PolicyError> {
        let (policy, problems) = Self::read(value);
        problems.0.into_iter().next().map_or(Ok(policy), Err)
    }

    /// All that is wrong with a document, [`PolicyDocument::parse`]'s error first: one for each item and each other key at most.
    pub fn problems(value: &Json) -> Vec<PolicyError> {
        Self::read(value).1.0
    }

    fn read(value: &Json) -> (Self, Problems) {
        let mut problems = Problems::default();
        let Some(mut fields) = problems.note(Fields::open("", value)) else {
            return (Self::default(), problems);
        };
        let version = problems.note(fields.string("version")).flatten().map(str::to_owned);
        if let Some(version) = &version {
            problems.note(check_version("version", version).map_err(|e| PolicyError::ident("version", &e)));
        }
        let policy = Self {
            version,
            pre: stage(&mut problems, &mut fields, "pre", MAX_STAGE_ITEMS, processor),
            validators: stage(&mut problems, &mut fields, "validators", MAX_STAGE_ITEMS, validator),
            providers: stage(&mut problems, &mut fields, "providers", MAX_PROVIDERS, provider),
            fallbacks: stage(&mut problems, &mut fields, "fallbacks", MAX_PROVIDERS, fallback),
            post: stage(&mut problems, &mut fields, "post", MAX_STAGE_ITEMS, processor),
            sticky: fields.value("sticky").and_then(|v| problems.note(sticky("sticky", v))),
        };
        problems.note(fields.finish());
        // What is said of all items together holds where each could be read.
        if problems.0.is_empty() {
            problems.note(policy.check_together());
        }
        (policy, problems)
    }

    fn check_together(&self) -> Result<(), PolicyError> {
        let items = self.pre.len() + self.validators.len() + self.post.len();
        if items > MAX_ITEMS {
            return Err(PolicyError::new(
                "",
                format!("pre, validators and post have {items} items together"),
                &format!("At most {MAX_ITEMS} are allowed together, and {MAX_STAGE_ITEMS} in one stage."),
            ));
        }
        for (i, provider) in self.providers.iter().enumerate() {
            if self.providers[..i]
                .iter()
                .any(|other| other.item.id == provider.item.id)
            {
                let name = shorten(&provider.item.id);
                return Err(PolicyError::new(
                    &format!("providers[{i}].name"),
                    format!("\"{name}\" is there twice"),
                    "Keep one of the two.",
                ));
            }
        }
        if !self.providers.is_empty() && self.providers.iter().all(|p| p.weight == 0) {
            return Err(PolicyError::new(
                "providers",
                "all weights are 0".to_owned(),
                "At least one must be above 0.",
            ));
        }
        Ok(())
    }

    /// The ids of all extensions that the pipeline may call, in order, each once.
    pub fn extension_ids(&self) -> Vec<&str> {
        let mut ids = Vec::new();
        let all = self
            .pre
            .iter()
            .map(|p| p.item.id.as_str())
            .chain(self.validators.iter().map(|v| v.item.id.as_str()))
            .chain(self.providers.iter().map(|p| p.item.id.as_str()))
            .chain(self.fallbacks.iter().map(|f| f.to.as_str()))
            .chain(self.post.iter().map(|p| p.item.id.as_str()));
        for id in all {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}

/// Errors gathered on the way.
#[derive(Debug, Default)]
struct Problems(Vec<PolicyError>);

impl Problems {
    /// What could be read; an error is kept.
    fn note<T>(&mut self, read: Result<T, PolicyError>) -> Option<T> {
        read.map_err(|error| self.0.push(error)).ok()
    }
}

fn stage<T>(
    problems: &mut Problems,
    fields: &mut Fields<'_>,
    key: &'static str,
    limit: usize,
    read: impl Fn(&str, &Json) -> Result<T, PolicyError>,
) -> Vec<T> {
    let items = problems.note(fields.list(key, limit)).unwrap_or_default();
    items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| problems.note(read(&format!("{key}[{i}]"), item)))
        .collect()
}

fn id(fields: &mut Fields<'_>, key: &'static str) -> Result<String, PolicyError> {
    let value = fields.required(key)?;
    check_id(key, value).map_err(|e| PolicyError::ident(&fields.at(key), &e))?;
    Ok(value.to_owned())
}

fn rules(path: &str, value: &Json) -> Result<RuleSet, PolicyError> {
    RuleSet::parse(value).map_err(|e| PolicyError::rule(path, &e))
}

/// Bounded by [`Fields::integer`] to what a `u32` holds.
fn narrow(value: Option<i64>) -> Option<u32> {
    value.and_then(|n| u32::try_from(n).ok())
}

fn item(fields: &mut Fields<'_>, key: &'static str) -> Result<Item, PolicyError> {
    Ok(Item {
        id: id(fields, key)?,
        config: match fields.value("config") {
            None => None,
            Some(Json::Object(map)) => Some(map.clone()),
            Some(other) => return Err(fields.wrong("config", other, "an object")),
        },
        timeout_ms: narrow(fields.integer("timeout_ms", TIMEOUT_MS.0, TIMEOUT_MS.1)?),
        retry: narrow(fields.integer("retry", RETRY.0, RETRY.1)?),
        when: match fields.value("when") {
            None => None,
            Some(value) => Some(rules(&fields.at("when"), value)?),
        },
    })
}

fn processor(path: &str, value: &Json) -> Result<Processor, PolicyError> {
    let mut fields = Fields::open(path, value)?;
    let item = item(&mut fields, "id")?;
    let required = fields.one_of("mode", &["required", "optional"], "optional")? == "required";
    fields.finish()?;
    Ok(Processor { item, required })
}

fn validator(path: &str, value: &Json) -> Result<Validator, PolicyError> {
    let mut fields = Fields::open(path, value)?;
    let item = item(&mut fields, "id")?;
    let on_fail = match fields.one_of("on_fail", &["block", "warn", "ignore"], "block")? {
        "warn" => OnFail::Warn,
        "ignore" => OnFail::Ignore,
        _ => OnFail::Block,
    };
    fields.finish()?;
    Ok(Validator { item, on_fail })
}

fn provider(path: &str, value: &Json) -> Result<Provider, PolicyError> {
    if let Json::String(name) = value {
        check_id("name", name).map_err(|e| PolicyError::ident(path, &e))?;
        return Ok(Provider {
            item: Item {
                id: name.clone(),
                ..Item::default()
            },
            weight: 100,
        });
    }
    let mut fields = Fields::open(path, value)?;
    let item = item(&mut fields, "name")?;
    let weight = narrow(fields.integer("weight", 0, 100)?).unwrap_or(100);
    fields.finish()?;
    Ok(Provider { item, weight })
}

fn fallback(path: &str, value: &Json) -> Result<Fallback, PolicyError> {
    let mut fields = Fields::open(path, value)?;
    let when = match fields.value("when") {
        None => return Err(fields.missing("when")),
        Some(value) => rules(&fields.at("when"), value)?,
    };
    let parsed = Fallback {
        when,
        retry: narrow(fields.integer("retry", RETRY.0, RETRY.1)?).unwrap_or(1),
        backoff: match fields.value("backoff") {
            None => Backoff::default(),
            Some(value) => backoff(&fields.at("backoff"), value)?,
        },
        to: id(&mut fields, "to")?,
    };
    fields.finish()?;
    Ok(parsed)
}

fn backoff(path: &str, value: &Json) -> Result<Backoff, PolicyError> {
    let mut fields = Fields::open(path, value)?;
    let default = Backoff::default();
    let parsed = Backoff {
        strategy: match fields.one_of("strategy", &["exponential", "linear", "fixed"], "exponential")? {
            "linear" => Strategy::Linear,
            "fixed" => Strategy::Fixed,
            _ => Strategy::Exponential,
        },
        base_ms: narrow(fields.integer("base_ms", 1, 10_000)?).unwrap_or(default.base_ms),
        max_ms: narrow(fields.integer("max_ms", 1, 60_000)?).unwrap_or(default.max_ms),
        jitter: fields.boolean("jitter", default.jitter)?,
    };
    fields.finish()?;
    Ok(parsed)
}

fn sticky(path: &str, value: &Json) -> Result<Sticky, PolicyError> {
    let mut fields = Fields::open(path, value)?;
    let enabled = fields.boolean("enabled", true)?;
    let session_key = fields.string("session_key")?.unwrap_or("session_id").to_owned();
    let seconds = narrow(fields.integer("ttl_seconds", 1, 86_400)?);
    let ttl = match fields.value("ttl") {
        None => None,
        Some(value) => match value.as_str().and_then(duration_seconds) {
            Some(seconds) => Some(seconds),
            None => {
                return Err(fields.wrong(
                    "ttl",
                    value,
                    "a time such as \"30s\", \"10m\" or \"2h\", at most 24 hours",
                ));
            }
        },
    };
    fields.finish()?;
    Ok(Sticky {
        enabled,
        session_key,
        ttl_seconds: seconds.or(ttl).unwrap_or(600),
    })
}

/// `30s`, `10m`, `2h`: 1 s to 24 h.
fn duration_seconds(text: &str) -> Option<u32> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = digits.parse::<u32>().ok()?.checked_mul(unit)?;
    (1..=86_400).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(value: &Json) -> String {
        PolicyDocument::parse(value).unwrap_err().to_string()
    }

    #[test]
    fn the_whole_shape() {
        let policy = PolicyDocument::parse(&json!({
            "version": "1.0",
            "pre": [{"id": "normalize_text", "mode": "required", "config": {"lowercase": true}, "timeout_ms": 50, "retry": 1,
                     "when": {"tenant_id": ["a", "b"]}}],
            "validators": [{"id": "pii_guard"}, {"id": "toxicity", "on_fail": "warn"}],
            "providers": [{"name": "p1", "weight": 70}, "p2"],
            "fallbacks": [{"when": {"status": ["timeout", "5xx"]}, "retry": 2, "to": "p2",
                           "backoff": {"strategy": "linear", "base_ms": 10}}],
            "post": [{"id": "mask_pii"}],
            "sticky": {"enabled": true, "session_key": "user_id", "ttl": "10m"}
        }))
        .unwrap();
        assert!(policy.pre[0].required && !policy.post[0].required);
        assert_eq!(policy.validators[0].on_fail, OnFail::Block);
        assert_eq!(policy.validators[1].on_fail, OnFail::Warn);
        assert_eq!((policy.providers[0].weight, policy.providers[1].weight), (70, 100));
        assert_eq!(policy.fallbacks[0].backoff.wait_ms(3), 30);
        assert_eq!(policy.sticky.as_ref().unwrap().ttl_seconds, 600);
        assert_eq!(
            policy.extension_ids(),
            ["normalize_text", "pii_guard", "toxicity", "p1", "p2", "mask_pii"]
        );
    }

    #[test]
    fn an_empty_policy_is_one() {
        assert!(PolicyDocument::parse(&json!({})).unwrap().extension_ids().is_empty());
    }

    #[test]
    fn errors_name_key_and_value() {
        assert_eq!(refused(&json!("x")), "must be an object, not \"x\"");
        assert_eq!(refused(&json!({"prae": []})), "unknown key \"prae\"");
        assert_eq!(refused(&json!({"pre": {}})), "pre: must be a list, not an object");
        assert_eq!(
            refused(&json!({"pre": [{"mode": "required"}]})),
            "pre[0].id: is required"
        );
        assert_eq!(
            refused(&json!({"pre": [{"id": "a", "mode": "must"}]})),
            "pre[0].mode: \"must\" is not allowed"
        );
        assert_eq!(
            refused(&json!({"pre": [{"id": "a", "on_fail": "block"}]})),
            "pre[0]: unknown key \"on_fail\""
        );
        assert!(refused(&json!({"validators": [{"id": "a b"}]})).contains("\"a b\""));
        assert!(
            refused(&json!({"validators": [{"id": "a", "when": {"x": {"like": 1}}}]})).contains("validators[0].when")
        );
        assert_eq!(
            refused(&json!({"providers": [{"name": "a", "weight": 0}]})),
            "providers: all weights are 0"
        );
        assert_eq!(
            refused(&json!({"providers": ["a", "a"]})),
            "providers[1].name: \"a\" is there twice"
        );
        assert_eq!(
            refused(&json!({"fallbacks": [{"to": "a"}]})),
            "fallbacks[0].when: is required"
        );
        assert!(refused(&json!({"sticky": {"ttl": "ten minutes"}})).contains("ten minutes"));
    }

    #[test]
    fn all_problems_are_told() {
        let document = json!({
            "pre": [{"id": "a", "mode": "must"}, {"id": "b"}, {"id": "c", "when": {"x": {"like": 1}}}],
            "providers": {},
            "sticky": {"ttl": "ten minutes"},
            "prae": 1,
        });
        let problems = PolicyDocument::problems(&document);
        let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["pre[0].mode", "pre[2].when", "providers", "sticky.ttl", ""]);
        assert_eq!(problems[0].to_string(), refused(&document));
        assert!(PolicyDocument::problems(&json!({"pre": [{"id": "a"}]})).is_empty());
        assert_eq!(PolicyDocument::problems(&json!({"providers": ["a", "a"]})).len(), 1);
    }

    #[test]
    fn limits() {
        let items = |n: usize| (0..n).map(|i| json!({"id": format!("e{i}")})).collect::<Vec<_>>();
        assert_eq!(refused(&json!({"pre": items(6)})), "pre: has 6 items");
        assert!(PolicyDocument::parse(&json!({"pre": items(5), "post": items(5)})).is_ok());
        assert!(
            refused(&json!({"pre": items(5), "validators": items(1), "post": items(5)})).contains("11 items together")
        );
    }

    #[test]
    fn waits_grow_and_stop() {
        let backoff = Backoff::default();
        assert_eq!(
            [1, 2, 3, 40, u32::MAX].map(|k| backoff.wait_ms(k)),
            [100, 200, 400, 5000, 5000]
        );
    }
}
