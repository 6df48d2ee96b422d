//! One extension as its rows or its document state it, before it is compiled.
//!
//! Owns the types of the configuration. Bounds are checked where rows and documents are written; what got in all the same
//! (restored, replicated) is compiled into something that never matches, with a warning.

use crate::breaker;
use crate::ejection;
use crate::rules::{RuleError, RuleSet};

/// What a service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Changes the message before it is answered.
    Pre,
    /// Says whether the message may pass.
    Validator,
    /// Answers.
    Provider,
    /// Changes the answer.
    Post,
}

impl Kind {
    /// Every kind by its name in SQL.
    pub const ALL: [(&'static str, Self); 4] = [
        ("pre", Self::Pre),
        ("validator", Self::Validator),
        ("provider", Self::Provider),
        ("post", Self::Post),
    ];

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(n, kind)| (n == name).then_some(kind))
    }

    /// The name of this kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Validator => "validator",
            Self::Provider => "provider",
            Self::Post => "post",
        }
    }
}

/// How an instance is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balancing {
    /// In turn, by weight: exact and smooth.
    #[default]
    WeightedRoundRobin,
    /// In turn, whatever the weight.
    RoundRobin,
    /// By a key of the context.
    ConsistentHash,
    /// The better of two random ones.
    LeastLatency,
}

impl Balancing {
    /// Every way by its name in SQL.
    pub const ALL: [(&'static str, Self); 4] = [
        ("weighted_round_robin", Self::WeightedRoundRobin),
        ("round_robin", Self::RoundRobin),
        ("consistent_hash", Self::ConsistentHash),
        ("least_latency", Self::LeastLatency),
    ];

    /// The way of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(n, way)| (n == name).then_some(way))
    }

    /// Whether instances take turns, so that a cycle is needed.
    pub const fn takes_turns(self) -> bool {
        matches!(self, Self::WeightedRoundRobin | Self::RoundRobin)
    }

    /// The name of this way.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::RoundRobin => "round_robin",
            Self::ConsistentHash => "consistent_hash",
            Self::LeastLatency => "least_latency",
        }
    }
}

/// Declared health of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Fit.
    Healthy,
    /// Gets half its weight.
    Degraded,
    /// Gets nothing while there is another.
    Unhealthy,
    /// Nobody looked; counts as fit.
    #[default]
    Unknown,
}

impl Health {
    /// The health of this name; anything else is unknown.
    pub fn from_name(name: &str) -> Self {
        match name {
            "healthy" => Self::Healthy,
            "degraded" => Self::Degraded,
            "unhealthy" => Self::Unhealthy,
            _ => Self::Unknown,
        }
    }

    /// The name of this health.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Unknown => "unknown",
        }
    }
}

/// Who may call: `metadata.allowed_tenants`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tenants {
    /// Everybody.
    #[default]
    All,
    /// These, sorted.
    Only(Box<[Box<str>]>),
    /// Nobody: the list is no list of strings.
    Nobody,
}

impl Tenants {
    /// Reads `allowed_tenants` out of an extension's metadata.
    pub fn from_metadata(metadata: &serde_json::Value) -> Self {
        let Some(allowed) = metadata.get("allowed_tenants") else {
            return Self::All;
        };
        let Some(list) = allowed.as_array() else {
            return Self::Nobody;
        };
        let names: Option<Vec<Box<str>>> = list.iter().map(|name| name.as_str().map(Into::into)).collect();
        names.map_or(Self::Nobody, |mut names| {
            names.sort_unstable();
            Self::Only(names.into())
        })
    }

    /// Whether this tenant may call.
    pub fn allow(&self, tenant: Option<&str>) -> bool {
        match (self, tenant) {
            (Self::All, _) => true,
            (Self::Only(names), Some(tenant)) => names.binary_search_by(|name| (**name).cmp(tenant)).is_ok(),
            (Self::Only(_), None) | (Self::Nobody, _) => false,
        }
    }
}

/// A version's own breaker settings; `None` inherits the extension's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Overrides {
    /// See [`breaker::Settings`].
    pub failure_threshold: Option<u32>,
    /// See [`breaker::Settings`].
    pub failure_min_rate: Option<f64>,
    /// See [`breaker::Settings`].
    pub error_rate_threshold: Option<f64>,
    /// See [`breaker::Settings`].
    pub minimum_requests: Option<u32>,
    /// See [`breaker::Settings`].
    pub window_us: Option<u64>,
    /// See [`breaker::Settings`].
    pub open_us: Option<u64>,
    /// See [`breaker::Settings`].
    pub slow_call_us: Option<u64>,
    /// See [`breaker::Settings`].
    pub slow_rate_threshold: Option<f64>,
    /// See [`breaker::Settings`].
    pub half_open_max: Option<u32>,
    /// See [`breaker::Settings`].
    pub mode: Option<breaker::Mode>,
}

impl Overrides {
    /// The settings with these laid over them.
    pub fn over(&self, base: breaker::Settings) -> breaker::Settings {
        breaker::Settings {
            failure_threshold: self.failure_threshold.or(base.failure_threshold),
            failure_min_rate: self.failure_min_rate.or(base.failure_min_rate),
            error_rate_threshold: self.error_rate_threshold.or(base.error_rate_threshold),
            minimum_requests: self.minimum_requests.unwrap_or(base.minimum_requests),
            window_us: self.window_us.unwrap_or(base.window_us),
            open_us: self.open_us.unwrap_or(base.open_us),
            slow_call_us: self.slow_call_us.or(base.slow_call_us),
            slow_rate_threshold: self.slow_rate_threshold.or(base.slow_rate_threshold),
            half_open_max: self.half_open_max.unwrap_or(base.half_open_max),
            mode: self.mode.unwrap_or(base.mode),
        }
    }
}

/// One version as its row states it.
#[derive(Debug)]
pub struct VersionRow {
    /// Its name.
    pub version: String,
    /// Where it listens.
    pub subject: String,
    /// Time one attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// Handed to the service; opaque here (the host's own encoding of JSON).
    pub config: Box<[u8]>,
    /// Opaque; part of the fingerprint only.
    pub metadata: Box<[u8]>,
    /// Which requests it serves.
    pub rules: Result<RuleSet, RuleError>,
    /// The rules in the host's encoding; part of the fingerprint only.
    pub rules_text: Box<[u8]>,
    /// Its share in hundredths of a percent: 0 to 10000.
    pub rollout: u32,
    /// The context key its share sticks to.
    pub rollout_key: Option<String>,
    /// Whether it may be chosen.
    pub enabled: bool,
    /// Its own breaker settings.
    pub overrides: Overrides,
}

/// One instance as its row states it.
#[derive(Debug, Clone)]
pub struct InstanceRow {
    /// Its id.
    pub instance_id: String,
    /// Where it listens.
    pub subject: String,
    /// 0-100.
    pub weight: u32,
    /// Whether it may be chosen.
    pub enabled: bool,
    /// Declared health.
    pub health: Health,
    /// The version it serves, if it says so.
    pub version: Option<String>,
    /// No new calls.
    pub draining: bool,
    /// Opaque; part of the fingerprint only.
    pub metadata: Box<[u8]>,
}

/// One extension as its rows state it.
#[derive(Debug)]
pub struct ExtensionRow {
    /// Its id.
    pub id: String,
    /// The identity its live state is kept under; survives a rename.
    pub uid: u64,
    /// What it does.
    pub kind: Kind,
    /// Where the version it names listens.
    pub subject: String,
    /// Time one attempt may take, in milliseconds.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// Whether it may be called at all.
    pub enabled: bool,
    /// The version this row itself is.
    pub version: String,
    /// Handed to the service; opaque here.
    pub config: Box<[u8]>,
    /// Opaque; part of the fingerprint only.
    pub metadata: Box<[u8]>,
    /// Who may call.
    pub tenants: Tenants,
    /// How an instance is chosen.
    pub balancing: Balancing,
    /// The context key for consistent hashing.
    pub hash_key: Option<String>,
    /// Breaker settings.
    pub settings: breaker::Settings,
    /// Settings of ejection.
    pub ejection: ejection::Settings,
    /// Its versions.
    pub versions: Vec<VersionRow>,
    /// Its instances.
    pub instances: Vec<InstanceRow>,
}
