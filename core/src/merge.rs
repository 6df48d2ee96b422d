//! Outcomes that were gathered where Postgres did not decide, per target and minute, on their way into the counts and the history.
//!
//! ```json
//! {"reporter": "6f1c…", "seq": 7, "targets": [
//!   {"extension_id": "normalize_text", "version": "v2", "instance_id": "a", "at": 1795648740,
//!    "outcomes": {"success": 98, "timeout": 2}, "retries": 2, "latency": "HISTFAAA…"}]}
//! ```
//!
//! `at` is any second of the minute, since the Unix epoch. The outcomes are those of [`Outcome`], and `circuit_open` for refusals. `latency`
//! is the text of an [`Hdr`]. With `reporter` (a uuid) and `seq` (1, 2, ...) a document that comes twice counts once.

use serde_json::Value as Json;

use crate::fields::{DocumentError, Fields};
use crate::hdr::Hdr;
use crate::histogram::OUTCOMES;
use crate::outcome::{CIRCUIT_OPEN, Outcome, RETRIES};

/// Most entries of one document.
const MAX_TARGETS: usize = 100_000;
/// Most that can be counted at once.
const MAX_COUNT: i64 = i64::MAX / 1_000_000;
/// 9999-12-31, in seconds since the Unix epoch.
const LATEST: i64 = 253_402_300_799;

/// A document read.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered {
    /// Who gathered it, and the number of this document among its own.
    pub reporter: Option<(String, u64)>,
    /// Per target and minute.
    pub targets: Vec<Entry>,
}

/// What one target saw in one minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The extension.
    pub extension_id: String,
    /// The version; `None`: the one that an empty context gets.
    pub version: Option<String>,
    /// The instance, if there was one.
    pub instance_id: Option<String>,
    /// Minutes since the Unix epoch.
    pub minute: u64,
    /// By the positions of the counters.
    pub outcomes: [u64; OUTCOMES],
    /// Latencies.
    pub latency: Hdr,
}

impl Gathered {
    /// Reads a document. Errors name the place and the value; nothing is guessed.
    pub fn parse(document: &Json) -> Result<Self, DocumentError> {
        let mut fields = Fields::open("", document)?;
        let reporter = fields.string("reporter")?;
        let seq = fields.integer("seq", 1, i64::MAX)?;
        let reporter = match (reporter, seq) {
            (Some(reporter), Some(seq)) => Some((reporter.to_owned(), seq as u64)),
            (None, None) => None,
            (Some(_), None) => return Err(fields.missing("seq")),
            (None, Some(_)) => return Err(fields.missing("reporter")),
        };
        let list = fields.list("targets", MAX_TARGETS)?;
        let targets = list
            .iter()
            .enumerate()
            .map(|(number, entry)| Entry::parse(&format!("targets[{number}]"), entry))
            .collect::<Result<_, _>>()?;
        fields.finish()?;
        Ok(Self { reporter, targets })
    }
}

impl Entry {
    fn parse(path: &str, document: &Json) -> Result<Self, DocumentError> {
        let mut fields = Fields::open(path, document)?;
        let extension_id = fields.required("extension_id")?.to_owned();
        let version = fields.string("version")?.map(ToOwned::to_owned);
        let instance_id = fields.string("instance_id")?.map(ToOwned::to_owned);
        let at = fields.integer("at", 0, LATEST)?.ok_or_else(|| fields.missing("at"))?;
        let mut outcomes = [0; OUTCOMES];
        if let Some(counts) = fields.value("outcomes") {
            let mut counts = Fields::open(&fields.at("outcomes"), counts)?;
            for outcome in Outcome::ALL {
                outcomes[outcome as usize] = counts.integer(outcome.as_str(), 0, MAX_COUNT)?.unwrap_or(0) as u64;
            }
            outcomes[CIRCUIT_OPEN] = counts.integer("circuit_open", 0, MAX_COUNT)?.unwrap_or(0) as u64;
            counts.finish()?;
        }
        outcomes[RETRIES] = fields.integer("retries", 0, MAX_COUNT)?.unwrap_or(0) as u64;
        let latency = match fields.string("latency")? {
            None => Hdr::new(),
            Some(text) => Hdr::from_text(text).map_err(|error| {
                DocumentError::new(
                    &fields.at("latency"),
                    error.to_string(),
                    "Write a histogram as the type hdr shows it: HdrHistogram V2 compressed base64.",
                )
            })?,
        };
        fields.finish()?;
        Ok(Self {
            extension_id,
            version,
            instance_id,
            minute: at as u64 / 60,
            outcomes,
            latency,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read() {
        let mut latency = Hdr::new();
        latency.record_us(1500);
        let read = Gathered::parse(&json!({
            "reporter": "r", "seq": 3,
            "targets": [
                {"extension_id": "x", "version": "v2", "instance_id": "a", "at": 121,
                 "outcomes": {"success": 4, "circuit_open": 2}, "retries": 1, "latency": latency.to_text()},
                {"extension_id": "y", "at": 0},
            ],
        }))
        .unwrap();
        assert_eq!(read.reporter, Some(("r".to_owned(), 3)));
        assert_eq!(read.targets[0].minute, 2);
        assert_eq!(read.targets[0].outcomes, [4, 0, 0, 0, 0, 0, 0, 2, 1]);
        assert_eq!(read.targets[0].latency, latency);
        assert_eq!((read.targets[1].version.clone(), read.targets[1].minute), (None, 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let entry = |more: Json| {
            let mut entry = json!({"extension_id": "x", "at": 60});
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "targets": [entry] })
        };
        for (document, part) in [
            (json!([]), "an object"),
            (json!({"seq": 1}), "reporter"),
            (json!({"reporter": "r"}), "seq"),
            (json!({"targets": [{"at": 1}]}), "targets[0].extension_id"),
            (json!({"targets": [{"extension_id": "x"}]}), "targets[0].at"),
            (
                entry(json!({"outcomes": {"success": -1}})),
                "targets[0].outcomes.success",
            ),
            (entry(json!({"outcomes": {"succes": 1}})), "succes"),
            (entry(json!({"latency": "x"})), "targets[0].latency"),
            (entry(json!({"at": "now"})), "targets[0].at"),
            (entry(json!({"more": 1})), "more"),
        ] {
            let error = Gathered::parse(&document).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.hint().is_empty());
        }
    }
}
