//! What random input must never do, one function for each way in. Shared by the fuzz targets (`fuzz_targets/`) and by
//! `core/tests/corpus.rs`, which runs the committed corpus through the same functions.
//!
//! A function panics where a promise is broken; input that is refused, with an error a person can read, keeps it.

use std::collections::HashSet;
use std::io::Write as _;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ext_registry_core::engine::Engine;
use ext_registry_core::fields::DocumentError;
use ext_registry_core::fixture::ExtensionDocument;
use ext_registry_core::hdr::Hdr;
use ext_registry_core::policy::{MAX_ITEMS, MAX_PROVIDERS, PolicyDocument};
use ext_registry_core::rules::{RuleError, RuleSet};
use serde_json::{Map, Value as Json, json};

const NOW: u64 = 1_800_000_000_000_000;

/// A way in.
pub type Target = fn(&[u8]);

/// Every way in, by the name of its target and of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 5] = [
    ("rules", rules),
    ("contexts", contexts),
    ("documents", documents),
    ("hdr", hdr),
    ("policy", policy),
];

fn read(bytes: &[u8]) -> Option<Json> {
    serde_json::from_slice(bytes).ok()
}

fn object(bytes: &[u8]) -> Option<Map<String, Json>> {
    match read(bytes)? {
        Json::Object(map) => Some(map),
        _ => None,
    }
}

#[track_caller]
fn is_readable(message: &str, hint: &str) {
    assert!(!message.is_empty() && !hint.is_empty(), "no message or no hint");
    assert!(
        message.len() + hint.len() < 2000,
        "longer than anybody reads: {message}"
    );
}

#[track_caller]
fn readable(error: &RuleError) {
    is_readable(&error.to_string(), error.hint());
}

#[track_caller]
fn readable_document(error: &DocumentError) {
    is_readable(&error.to_string(), error.hint());
}

/// The first line is a rule set, the rest the context of a request.
pub fn rules(bytes: &[u8]) {
    let (rules, context) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &b"{}"[..]),
    };
    let Some(rules) = read(rules) else { return };
    let context = object(context).unwrap_or_default();
    if rules.is_null() {
        // No rules, which in a document means the default.
        return;
    }
    let parsed = RuleSet::parse(&rules);
    // What guards the table guards the documents.
    let document = json!({
        "id": "x", "type": "pre", "subject": "s",
        "versions": [{"version": "v2", "subject": "s2", "routing_rules": rules}],
    });
    assert_eq!(parsed.is_ok(), ExtensionDocument::parse(&document).is_ok(), "{rules}");

    let Some(keys) = rules.as_object() else {
        readable(&parsed.expect_err("only objects are rule sets"));
        return;
    };
    // All keys or none: a set is as good as each of its keys, and names the one that is not.
    let each: Vec<(&String, Result<RuleSet, RuleError>)> = keys
        .iter()
        .map(|(key, value)| {
            (
                key,
                RuleSet::parse(&Json::Object(Map::from_iter([(key.clone(), value.clone())]))),
            )
        })
        .collect();
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            readable(&error);
            let named = each.iter().find(|(key, _)| **key == error.key).expect("it names a key");
            assert!(named.1.is_err(), "{} is refused in company only", error.key);
            return;
        }
    };
    assert_eq!(parsed.specificity(), keys.len());
    let all = each.iter().all(|(key, single)| {
        single
            .as_ref()
            .unwrap_or_else(|_| panic!("{key} is accepted in company only"))
            .matches(&context)
    });
    let matches = parsed.matches(&context);
    assert_eq!(matches, all, "{rules} against {context:?}");
    assert_eq!(matches, parsed.first_mismatch(&context).is_none());
    assert_eq!(
        matches,
        RuleSet::parse(&rules).is_ok_and(|again| again.matches(&context)),
        "the same once more"
    );
    assert!(!(matches && parsed.never_matches().is_some()), "{rules} never matches");
    if let Some(condition) = parsed.first_mismatch(&context) {
        let single = each
            .iter()
            .find(|(key, _)| *key == condition.key())
            .expect("a key of the set");
        assert!(
            !single.1.as_ref().is_ok_and(|single| single.matches(&context)),
            "{} holds",
            condition.key()
        );
    }
}

/// Pairs of rules of which exactly one holds, whatever the context.
fn opposites() -> &'static [(RuleSet, RuleSet)] {
    static PAIRS: OnceLock<Vec<(RuleSet, RuleSet)>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let keys = ["tenant_id", "plan", "n", "user.plan", "a.b.c"];
        let operands = [
            (json!({"exists": true}), json!({"exists": false})),
            (json!({"exists": true}), json!(null)),
            (json!({"eq": "a"}), json!({"ne": "a"})),
            (json!({"eq": 1.5}), json!({"ne": 1.5})),
            (json!({"eq": true}), json!({"ne": true})),
            (
                json!({"in": ["a", 1, false, null]}),
                json!({"not_in": ["a", 1, false, null]}),
            ),
            (json!(["a", 0]), json!({"not_in": ["a", 0]})),
            (json!("a"), json!({"ne": "a"})),
        ];
        let set = |key: &str, value: &Json| RuleSet::parse(&json!({key: value})).expect("a rule");
        keys.iter()
            .flat_map(|key| operands.iter().map(move |(a, b)| (set(key, a), set(key, b))))
            .collect()
    })
}

/// Rules of which the first holds only where the second does.
fn implications() -> &'static [(RuleSet, RuleSet)] {
    static PAIRS: OnceLock<Vec<(RuleSet, RuleSet)>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        let pairs = [
            (json!({"gt": 5}), json!({"gte": 5})),
            (json!({"gt": 5}), json!({"gt": 4.5})),
            (json!({"lt": -1e3}), json!({"lte": -1e3})),
            (json!({"lt": "b"}), json!({"lte": "b"})),
            (json!({"eq": 5}), json!({"gte": 5, "lte": 5})),
            (json!({"gte": 5, "lte": 5}), json!(5)),
            (
                json!({"eq": "ab"}),
                json!({"prefix": "a", "suffix": "b", "regex": "^ab$"}),
            ),
            (json!({"prefix": "ab"}), json!({"prefix": "a"})),
            (json!({"semver": "=1.2.3"}), json!({"semver": ">=1.2, <2"})),
            (json!([]), json!("nothing")),
            (json!({"regex": "."}), json!({"exists": true})),
        ];
        let set = |key: &str, value: &Json| RuleSet::parse(&json!({key: value})).expect("a rule");
        let keys = ["tenant_id", "plan", "n", "user.plan", "a.b.c"];
        keys.iter()
            .flat_map(|key| pairs.iter().map(move |(a, b)| (set(key, a), set(key, b))))
            .collect()
    })
}

fn registry() -> ExtensionDocument {
    let version = |name: &str, percent: f64, key: &str, rules: Json| json!({"version": name, "subject": format!("s.{name}"), "rollout_percent": percent, "rollout_key": key, "routing_rules": rules});
    let instances: Vec<Json> = (0..7)
        .map(|n| json!({"instance_id": format!("i{n}"), "subject": "s.any", "weight": 10 * n}))
        .collect();
    let document = json!({
        "id": "x", "type": "pre", "subject": "s.v1", "balancing": "consistent_hash", "hash_key": "user.plan",
        "versions": [
            version("v2", 10.0, "tenant_id", json!({})),
            version("v3", 33.33, "n", json!({})),
            version("v4", 100.0, "tenant_id", json!({"plan": {"regex": "^p", "not_in": ["pro"]}})),
            version("v5", 50.0, "a", json!({"tenant_id": {"exists": true}, "n": {"gt": 0}})),
        ],
        "instances": instances,
    });
    ExtensionDocument::parse(&document).expect("a document")
}

/// Any context against fixed rules and a fixed registry.
pub fn contexts(bytes: &[u8]) {
    let Some(context) = object(bytes) else { return };
    for (one, other) in opposites() {
        assert_ne!(
            one.matches(&context),
            other.matches(&context),
            "{one:?} and {other:?} for {context:?}"
        );
    }
    for (one, other) in implications() {
        assert!(
            !one.matches(&context) || other.matches(&context),
            "{one:?} without {other:?} for {context:?}"
        );
    }
    decides_the_same(&registry(), &context);
}

/// Two engines of different seeds decide alike, as their explanations say; but for requests that have no key to stick to.
fn decides_the_same(document: &ExtensionDocument, context: &Map<String, Json>) {
    let engine = |seed| Engine::new(std::slice::from_ref(document), 16, seed).expect("an accepted document");
    let mut one = engine(1);
    let (explained, findings) = one.explain(&document.id, context, NOW);
    assert!(!findings.is_empty());
    let decided = one.select(&document.id, context, &[], NOW);
    assert_eq!(decided.allowed, decided.reason.is_allowed());
    assert_eq!(decided.subject.is_some(), decided.allowed, "{decided:?}");
    assert!(decided.retry_after_ms.is_none_or(|ms| ms >= 1), "{decided:?}");
    assert_eq!(explained.epoch, decided.epoch);
    assert_eq!(engine(2).select(&document.id, context, &[], NOW).epoch, decided.epoch);
    let sticks = |key: &str| {
        context
            .get(key)
            .is_some_and(|value| value.is_string() || value.is_number() || value.is_boolean())
    };
    if document
        .versions
        .iter()
        .all(|version| version.rollout_percent >= 100.0 || sticks(&version.rollout_key))
    {
        let again = engine(2).select(&document.id, context, &[], NOW);
        assert_eq!(
            (&again.version, again.reason),
            (&decided.version, decided.reason),
            "for {context:?}"
        );
        assert_eq!(
            (&explained.version, explained.reason),
            (&decided.version, decided.reason),
            "for {context:?}"
        );
    }
}

/// The document of an extension.
pub fn documents(bytes: &[u8]) {
    let Some(value) = read(bytes) else { return };
    let document = match ExtensionDocument::parse(&value) {
        Ok(document) => document,
        Err(error) => return readable_document(&error),
    };
    // What is written out is what was read, and is accepted again.
    let written = serde_json::to_value(&document).expect("a document is JSON");
    let again = ExtensionDocument::parse(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!(again, document);
    // What is accepted can be decided by.
    let empty = Map::new();
    decides_the_same(&document, &empty);
    decides_the_same(&document, &document.config);
}

/// The first byte says how the rest is read: 0 the binary form, 1 the text, 2 what is packed in the text, else samples.
pub fn hdr(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    let hdr = match kind {
        0 => {
            let Ok(hdr) = Hdr::from_bytes(rest) else { return };
            assert_eq!(hdr.to_bytes(), rest, "one form for each histogram");
            hdr
        }
        1 => {
            let Some(hdr) = std::str::from_utf8(rest)
                .ok()
                .and_then(|text| Hdr::from_text(text).ok())
            else {
                return;
            };
            hdr
        }
        2 => match Hdr::from_text(&packed(rest)) {
            Ok(hdr) => hdr,
            Err(error) => return is_readable(&error.to_string(), "-"),
        },
        _ => {
            let mut hdr = Hdr::new();
            for sample in rest.chunks_exact(9) {
                let us = u64::from_le_bytes(*sample.first_chunk().expect("nine bytes"));
                hdr.record_n(us >> (sample[8] & 63), u64::from(sample[8]));
            }
            hdr
        }
    };
    let binary = Hdr::from_bytes(&hdr.to_bytes()).unwrap_or_else(|error| panic!("{error}: its binary form"));
    assert_eq!(binary, hdr, "the binary form");
    let text = hdr.to_text();
    let again = Hdr::from_text(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(again, hdr, "the text {text}");
    assert_eq!(again.to_text(), text);

    assert_eq!(hdr.is_empty(), hdr.count() == 0);
    let mut last = 0.0;
    for step in 0..=20 {
        let quantile = hdr.quantile(f64::from(step) / 20.0);
        assert_eq!(quantile.is_none(), hdr.is_empty());
        let quantile = quantile.unwrap_or(0.0);
        assert!((last..=310_000.0).contains(&quantile), "{quantile} after {last}");
        last = quantile;
    }
    // (Beyond 2^53 samples ranks and means are rounded.)
    let all: u128 = hdr.buckets().map(|bucket| u128::from(bucket.count)).sum();
    if all <= 1 << 53 {
        assert_eq!(u128::from(hdr.count()), all);
        assert_eq!(hdr.quantile(1.0), hdr.max_ms());
        let mean = hdr.mean_ms().unwrap_or(0.0);
        assert!(
            (0.0..=hdr.max_ms().unwrap_or(0.0) * (1.0 + 1e-12)).contains(&mean),
            "a mean of {mean}"
        );
    }
    let mut twice = hdr.clone();
    twice.merge(&hdr);
    assert_eq!(twice.count(), hdr.count().saturating_mul(2).min(i64::MAX as u64));
    assert_eq!(twice.max_ms(), hdr.max_ms());
}

/// An uncompressed encoding as it is written.
fn packed(encoded: &[u8]) -> String {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(encoded).expect("a Vec takes all bytes");
    let compressed = zlib.finish().expect("a Vec takes all bytes");
    let mut bytes = 0x1c84_9314_u32.to_be_bytes().to_vec();
    bytes.extend((compressed.len() as u32).to_be_bytes());
    bytes.extend(compressed);
    BASE64.encode(bytes)
}

/// The document of a policy.
pub fn policy(bytes: &[u8]) {
    let Some(value) = read(bytes) else { return };
    let document = match PolicyDocument::parse(&value) {
        Ok(document) => document,
        Err(error) => {
            assert_eq!(PolicyDocument::parse(&value).err(), Some(error.clone()));
            return readable_document(&error);
        }
    };
    let ids = document.extension_ids();
    assert!(ids.len() <= MAX_ITEMS + 2 * MAX_PROVIDERS, "{} ids", ids.len());
    assert_eq!(
        ids.iter().collect::<HashSet<_>>().len(),
        ids.len(),
        "each once: {ids:?}"
    );
    assert!(document.pre.len() + document.validators.len() + document.post.len() <= MAX_ITEMS);
    for fallback in &document.fallbacks {
        assert!(ids.contains(&fallback.to.as_str()), "{} may be called", fallback.to);
        let mut last = 0;
        for k in [0, 1, 2, 3, 31, 32, 64, u32::MAX] {
            let wait = fallback.backoff.wait_ms(k);
            assert!(wait >= last && wait <= fallback.backoff.max_ms, "{wait} after {last}");
            last = wait;
        }
    }
    let again = PolicyDocument::parse(&value).expect("as before");
    assert_eq!(again.extension_ids(), ids);
}
