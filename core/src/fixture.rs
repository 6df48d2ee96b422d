//! The document of one extension: a file of `fixtures/extensions/`, and what `ext_register`, `ext_import` and `ext_export`
//! take and give.
//!
//! Owns the shape, the defaults and the bounds, which are those of the tables. Only `id`, `type` and `subject` are required;
//! unknown keys are refused by name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::fields::{DocumentError, Fields};
use crate::ident::{check_id, check_subject, check_version};
use crate::rules::RuleSet;

/// The types of extension.
pub const TYPES: [&str; 4] = ["pre", "validator", "provider", "post"];
/// The ways to choose an instance.
pub const BALANCING: [&str; 4] = [
    "weighted_round_robin",
    "round_robin",
    "consistent_hash",
    "least_latency",
];
/// The modes of a breaker.
pub const BREAKER_MODES: [&str; 4] = ["auto", "forced_open", "forced_closed", "metrics_only"];
/// What an instance can be declared to be.
pub const HEALTH_STATUSES: [&str; 4] = ["healthy", "degraded", "unhealthy", "unknown"];

/// Bounds of `timeout_ms`.
pub const TIMEOUT_MS: (i64, i64) = (10, 300_000);
/// Bounds of `retry`.
pub const RETRY: (i64, i64) = (0, 10);

/// One extension with its versions and instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Json")]
pub struct ExtensionDocument {
    /// Its id.
    pub id: String,
    /// One of [`TYPES`].
    #[serde(rename = "type")]
    pub kind: String,
    /// Where the version it names listens.
    pub subject: String,
    /// Time one attempt may take, in ms.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// Whether it may be called at all.
    pub enabled: bool,
    /// The version that this row itself is.
    pub version: String,
    /// Handed to the service with every call.
    pub config: Map<String, Json>,
    /// For the registry's own use: `allowed_tenants`, `idempotent`, ...
    pub metadata: Map<String, Json>,
    /// One of [`BALANCING`].
    pub balancing: String,
    /// The context key for `consistent_hash`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_key: Option<String>,
    /// Breaker and ejection settings.
    pub health: HealthDocument,
    /// Versions with their rules.
    pub versions: Vec<VersionDocument>,
    /// Instances with their weights.
    pub instances: Vec<InstanceDocument>,
}

/// Settings as in `extension_health_settings`. A key left out has its default; `null` switches that rule off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthDocument {
    /// Failures within the window that open the breaker.
    pub circuit_breaker_failure_threshold: Option<u32>,
    /// The count opens only at or above this error rate, 0-1.
    pub circuit_breaker_failure_min_rate: Option<f64>,
    /// The error rate that opens the breaker, 0-1.
    pub circuit_breaker_error_rate_threshold: Option<f64>,
    /// Below this many outcomes rates are not judged.
    pub circuit_breaker_minimum_requests: u32,
    /// Length of the window, in s.
    pub circuit_breaker_window_seconds: u32,
    /// Time open, in s.
    pub circuit_breaker_timeout_seconds: u32,
    /// A slower success counts as slow, in ms.
    pub slow_call_ms: Option<f64>,
    /// The rate of slow calls that opens the breaker, 0-1.
    pub slow_call_rate_threshold: Option<f64>,
    /// Probes at once, and successes needed to close.
    pub half_open_max_requests: u32,
    /// One of [`BREAKER_MODES`].
    pub breaker_mode: String,
    /// Failures in a row that eject an instance.
    pub ejection_consecutive_failures: Option<u32>,
    /// Never more than this share of instances is ejected, in percent.
    pub max_ejection_percent: u32,
}

impl Default for HealthDocument {
    fn default() -> Self {
        Self {
            circuit_breaker_failure_threshold: Some(5),
            circuit_breaker_failure_min_rate: Some(0.01),
            circuit_breaker_error_rate_threshold: Some(0.5),
            circuit_breaker_minimum_requests: 5,
            circuit_breaker_window_seconds: 60,
            circuit_breaker_timeout_seconds: 60,
            slow_call_ms: None,
            slow_call_rate_threshold: None,
            half_open_max_requests: 3,
            breaker_mode: "auto".to_owned(),
            ejection_consecutive_failures: Some(5),
            max_ejection_percent: 50,
        }
    }
}

/// A version's own breaker settings; `None` inherits the extension's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the settings of HealthDocument")]
pub struct BreakerOverrides {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_failure_threshold: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_failure_min_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_error_rate_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_minimum_requests: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_window_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker_timeout_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_call_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_call_rate_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open_max_requests: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker_mode: Option<String>,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VersionDocument {
    /// Its name.
    pub version: String,
    /// Where it listens.
    pub subject: String,
    /// Time one attempt may take, in ms; default: the extension's.
    pub timeout_ms: u32,
    /// Attempts after the first; default: the extension's.
    pub retry: u32,
    /// Handed to the service with every call.
    pub config: Map<String, Json>,
    /// For the registry's own use.
    pub metadata: Map<String, Json>,
    /// Which requests it serves.
    pub routing_rules: Json,
    /// Its share among the matching versions of equal specificity, 0-100.
    pub rollout_percent: f64,
    /// The context key that shares are spread by.
    pub rollout_key: String,
    /// Whether it may serve.
    pub enabled: bool,
    /// Its own breaker settings.
    #[serde(flatten)]
    pub breaker: BreakerOverrides,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceDocument {
    /// Its id.
    pub instance_id: String,
    /// Where it listens.
    pub subject: String,
    /// Its weight, 0-100.
    pub weight: u32,
    /// Whether it may serve.
    pub enabled: bool,
    /// One of [`HEALTH_STATUSES`].
    pub health_status: String,
    /// The version it serves; absent: bound by its subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Taking no new calls.
    pub draining: bool,
    /// For the registry's own use.
    pub metadata: Map<String, Json>,
}

impl TryFrom<Json> for ExtensionDocument {
    type Error = DocumentError;

    fn try_from(value: Json) -> Result<Self, DocumentError> {
        Self::parse(&value)
    }
}

impl ExtensionDocument {
    /// Reads and checks a document. The error names the key and the value.
    pub fn parse(value: &Json) -> Result<Self, DocumentError> {
        let mut fields = Fields::open("", value)?;
        let id = fields.required("id")?.to_owned();
        check_id("id", &id).map_err(|e| DocumentError::ident("id", &e))?;
        let kind = fields.one_of("type", &TYPES, "")?;
        if kind.is_empty() {
            return Err(fields.missing("type"));
        }
        let subject = subject(&mut fields)?;
        let timeout_ms = small(fields.integer("timeout_ms", TIMEOUT_MS.0, TIMEOUT_MS.1)?, 5000);
        let retry = small(fields.integer("retry", RETRY.0, RETRY.1)?, 0);
        let enabled = fields.boolean("enabled", true)?;
        let version = fields.string("version")?.unwrap_or("v1").to_owned();
        check_version("version", &version).map_err(|e| DocumentError::ident("version", &e))?;
        let config = fields.object("config")?;
        let metadata = fields.object("metadata")?;
        let balancing = fields
            .one_of("balancing", &BALANCING, "weighted_round_robin")?
            .to_owned();
        let hash_key = fields.string("hash_key")?.map(str::to_owned);
        let health = match fields.value("health") {
            None => HealthDocument::default(),
            Some(value) => HealthDocument::parse("health", value)?,
        };
        let versions = each(&mut fields, "versions", |path, value| {
            VersionDocument::parse(path, value, timeout_ms, retry)
        })?;
        let instances = each(&mut fields, "instances", InstanceDocument::parse)?;
        fields.finish()?;
        unique("versions", "version", versions.iter().map(|v| v.version.as_str()))?;
        unique(
            "instances",
            "instance_id",
            instances.iter().map(|i| i.instance_id.as_str()),
        )?;
        Ok(Self {
            id,
            kind: kind.to_owned(),
            subject,
            timeout_ms,
            retry,
            enabled,
            version,
            config,
            metadata,
            balancing,
            hash_key,
            health,
            versions,
            instances,
        })
    }
}

impl HealthDocument {
    fn parse(path: &str, value: &Json) -> Result<Self, DocumentError> {
        let mut fields = Fields::open(path, value)?;
        let d = Self::default();
        let parsed = Self {
            circuit_breaker_failure_threshold: nullable(
                &mut fields,
                "circuit_breaker_failure_threshold",
                d.circuit_breaker_failure_threshold,
                |f, key| whole(f, key, 1),
            )?,
            circuit_breaker_failure_min_rate: nullable(
                &mut fields,
                "circuit_breaker_failure_min_rate",
                d.circuit_breaker_failure_min_rate,
                rate,
            )?,
            circuit_breaker_error_rate_threshold: nullable(
                &mut fields,
                "circuit_breaker_error_rate_threshold",
                d.circuit_breaker_error_rate_threshold,
                rate,
            )?,
            circuit_breaker_minimum_requests: whole(&mut fields, "circuit_breaker_minimum_requests", 1)?
                .unwrap_or(d.circuit_breaker_minimum_requests),
            circuit_breaker_window_seconds: small(
                fields.integer("circuit_breaker_window_seconds", 1, 3600)?,
                d.circuit_breaker_window_seconds,
            ),
            circuit_breaker_timeout_seconds: small(
                fields.integer("circuit_breaker_timeout_seconds", 1, 86_400)?,
                d.circuit_breaker_timeout_seconds,
            ),
            slow_call_ms: fields.number("slow_call_ms", 0.001, 300_000.0)?,
            slow_call_rate_threshold: rate(&mut fields, "slow_call_rate_threshold")?,
            half_open_max_requests: small(
                fields.integer("half_open_max_requests", 1, 100)?,
                d.half_open_max_requests,
            ),
            breaker_mode: fields.one_of("breaker_mode", &BREAKER_MODES, "auto")?.to_owned(),
            ejection_consecutive_failures: nullable(
                &mut fields,
                "ejection_consecutive_failures",
                d.ejection_consecutive_failures,
                |f, key| whole(f, key, 1),
            )?,
            max_ejection_percent: small(fields.integer("max_ejection_percent", 0, 100)?, d.max_ejection_percent),
        };
        fields.finish()?;
        Ok(parsed)
    }
}

impl VersionDocument {
    fn parse(path: &str, value: &Json, timeout_ms: u32, retry: u32) -> Result<Self, DocumentError> {
        let mut fields = Fields::open(path, value)?;
        let version = fields.required("version")?.to_owned();
        check_version("version", &version).map_err(|e| DocumentError::ident(&fields.at("version"), &e))?;
        let routing_rules = match fields.value("routing_rules") {
            None => Json::Object(Map::new()),
            Some(rules) => {
                RuleSet::parse(rules).map_err(|e| DocumentError::rule(&fields.at("routing_rules"), &e))?;
                rules.clone()
            }
        };
        let parsed = Self {
            version,
            subject: subject(&mut fields)?,
            timeout_ms: small(fields.integer("timeout_ms", TIMEOUT_MS.0, TIMEOUT_MS.1)?, timeout_ms),
            retry: small(fields.integer("retry", RETRY.0, RETRY.1)?, retry),
            config: fields.object("config")?,
            metadata: fields.object("metadata")?,
            routing_rules,
            rollout_percent: fields.number("rollout_percent", 0.0, 100.0)?.unwrap_or(100.0),
            rollout_key: fields.string("rollout_key")?.unwrap_or("tenant_id").to_owned(),
            enabled: fields.boolean("enabled", true)?,
            breaker: BreakerOverrides {
                circuit_breaker_failure_threshold: whole(&mut fields, "circuit_breaker_failure_threshold", 1)?,
                circuit_breaker_failure_min_rate: rate(&mut fields, "circuit_breaker_failure_min_rate")?,
                circuit_breaker_error_rate_threshold: rate(&mut fields, "circuit_breaker_error_rate_threshold")?,
                circuit_breaker_minimum_requests: whole(&mut fields, "circuit_breaker_minimum_requests", 1)?,
                circuit_breaker_window_seconds: narrow(fields.integer("circuit_breaker_window_seconds", 1, 3600)?),
                circuit_breaker_timeout_seconds: narrow(fields.integer(
                    "circuit_breaker_timeout_seconds",
                    1,
                    86_400,
                )?),
                slow_call_ms: fields.number("slow_call_ms", 0.001, 300_000.0)?,
                slow_call_rate_threshold: rate(&mut fields, "slow_call_rate_threshold")?,
                half_open_max_requests: narrow(fields.integer("half_open_max_requests", 1, 100)?),
                breaker_mode: match fields.one_of("breaker_mode", &BREAKER_MODES, "")? {
                    "" => None,
                    mode => Some(mode.to_owned()),
                },
            },
        };
        fields.finish()?;
        Ok(parsed)
    }
}

impl InstanceDocument {
    fn parse(path: &str, value: &Json) -> Result<Self, DocumentError> {
        let mut fields = Fields::open(path, value)?;
        let instance_id = fields.required("instance_id")?.to_owned();
        check_id("instance_id", &instance_id).map_err(|e| DocumentError::ident(&fields.at("instance_id"), &e))?;
        let version = fields.string("version")?.map(str::to_owned);
        if let Some(version) = &version {
            check_version("version", version).map_err(|e| DocumentError::ident(&fields.at("version"), &e))?;
        }
        let parsed = Self {
            instance_id,
            subject: subject(&mut fields)?,
            weight: small(fields.integer("weight", 0, 100)?, 100),
            enabled: fields.boolean("enabled", true)?,
            health_status: fields.one_of("health_status", &HEALTH_STATUSES, "unknown")?.to_owned(),
            version,
            draining: fields.boolean("draining", false)?,
            metadata: fields.object("metadata")?,
        };
        fields.finish()?;
        Ok(parsed)
    }
}

fn subject(fields: &mut Fields<'_>) -> Result<String, DocumentError> {
    let value = fields.required("subject")?;
    check_subject("subject", value).map_err(|e| DocumentError::ident(&fields.at("subject"), &e))?;
    Ok(value.to_owned())
}

/// Bounded by [`Fields::integer`] to what a `u32` holds.
fn narrow(value: Option<i64>) -> Option<u32> {
    value.and_then(|n| u32::try_from(n).ok())
}

fn small(value: Option<i64>, default: u32) -> u32 {
    narrow(value).unwrap_or(default)
}

fn whole(fields: &mut Fields<'_>, key: &'static str, low: i64) -> Result<Option<u32>, DocumentError> {
    Ok(narrow(fields.integer(key, low, i64::from(i32::MAX))?))
}

fn rate(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<f64>, DocumentError> {
    fields.number(key, 0.0, 1.0)
}

/// A setting where a missing key means the default and `null` means off.
fn nullable<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: Option<T>,
    read: impl FnOnce(&mut Fields<'_>, &'static str) -> Result<Option<T>, DocumentError>,
) -> Result<Option<T>, DocumentError> {
    if fields.raw(key).is_some() {
        read(fields, key)
    } else {
        Ok(default)
    }
}

fn each<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    read: impl Fn(&str, &Json) -> Result<T, DocumentError>,
) -> Result<Vec<T>, DocumentError> {
    let path = fields.at(key);
    let items = fields.list(key, 100_000)?;
    items
        .iter()
        .enumerate()
        .map(|(i, item)| read(&format!("{path}[{i}]"), item))
        .collect()
}

fn unique<'a>(list: &str, key: &str, names: impl Iterator<Item = &'a str>) -> Result<(), DocumentError> {
    let mut seen = std::collections::HashSet::new();
    for (i, name) in names.enumerate() {
        if !seen.insert(name) {
            return Err(DocumentError::new(
                &format!("{list}[{i}].{key}"),
                format!("\"{name}\" is there twice"),
                "Keep one of the two.",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(value: &Json) -> String {
        ExtensionDocument::parse(value).unwrap_err().to_string()
    }

    #[test]
    fn three_keys_are_enough() {
        let doc = ExtensionDocument::parse(&json!({"id": "a", "type": "pre", "subject": "a.v1"})).unwrap();
        assert_eq!(
            (doc.timeout_ms, doc.retry, doc.enabled, doc.version.as_str()),
            (5000, 0, true, "v1")
        );
        assert_eq!(doc.health, HealthDocument::default());
    }

    #[test]
    fn null_switches_off_and_absent_is_the_default() {
        let doc = ExtensionDocument::parse(&json!({"id": "a", "type": "pre", "subject": "a.v1",
            "health": {"circuit_breaker_failure_threshold": null, "circuit_breaker_window_seconds": null}}))
        .unwrap();
        assert_eq!(doc.health.circuit_breaker_failure_threshold, None);
        assert_eq!(doc.health.circuit_breaker_error_rate_threshold, Some(0.5));
        assert_eq!(doc.health.circuit_breaker_window_seconds, 60);
    }

    #[test]
    fn errors_name_key_and_value() {
        let base = json!({"id": "a", "type": "pre", "subject": "a.v1"});
        let with = |key: &str, value: Json| {
            let mut doc = base.clone();
            doc[key] = value;
            refused(&doc)
        };
        assert_eq!(refused(&json!([])), "must be an object, not an array");
        assert_eq!(refused(&json!({"type": "pre"})), "id: is required");
        assert_eq!(
            with("timeout_ms", json!(9)),
            "timeout_ms: must be a whole number from 10 to 300000, not 9"
        );
        assert_eq!(with("type", json!("prae")), "type: \"prae\" is not allowed");
        assert_eq!(with("colour", json!("red")), "unknown key \"colour\"");
        assert!(with("subject", json!("a.*")).contains("a.*"));
        assert_eq!(
            with(
                "instances",
                json!([{"instance_id": "i", "subject": "a", "weight": 101}])
            ),
            "instances[0].weight: must be a whole number from 0 to 100, not 101"
        );
        assert!(
            with(
                "versions",
                json!([{"version": "v2", "subject": "b", "routing_rules": 5}])
            )
            .contains("versions[0]")
        );
        let twice = json!([{"version": "v2", "subject": "b"}, {"version": "v2", "subject": "c"}]);
        assert_eq!(with("versions", twice), "versions[1].version: \"v2\" is there twice");
    }

    #[test]
    fn what_is_written_reads_back() {
        let doc = ExtensionDocument::parse(&json!({"id": "a", "type": "provider", "subject": "a.v1", "hash_key": "k",
            "health": {"slow_call_ms": 1.5},
            "versions": [{"version": "v2", "subject": "b", "routing_rules": {"tenant_id": ["x"]}, "breaker_mode": "auto"}],
            "instances": [{"instance_id": "i", "subject": "b"}]}))
        .unwrap();
        let text = serde_json::to_string(&doc).unwrap();
        assert_eq!(serde_json::from_str::<ExtensionDocument>(&text).unwrap(), doc);
    }
}
