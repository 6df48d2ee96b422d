//! Health checks of instances: what is asked, what an answer means, what is written.
//!
//! `metadata.health_subject` of an instance says how it is asked: a subject is sent `{}`; `false` or `null` is not at all.
//! Without it, it is healthy when a NATS micro service answers that is its own: the one that `metadata.service_id` or
//! `metadata.service_name` name, else one that says it listens on the instance's subject.
//!
//! Promises: two failures in a row make an instance unhealthy, one success makes it healthy, `degraded` stays as somebody
//! declared it while it answers. What was never seen to speak NATS micro, and does not claim to, is left alone. A row is
//! written when its status changes, else once in five minutes for the sake of `last_health_check`, which no cache looks at;
//! never when its status has changed meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::RequestErrorKind;
use ext_registry_core::ident::check_subject;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value as Json;
use tokio_postgres::types::ToSql;

use super::HealthError;
use super::line::Line;
use super::roll_call::RollCall;
use crate::metrics::Metrics;
use crate::pg::{Direct, RawJsonb};

/// Failures in a row that make an instance unhealthy.
const FAILURES: u32 = 2;
/// Most questions under way.
const AT_ONCE: usize = 64;
/// `last_health_check` is written anew when it is older, in seconds.
const REFRESH_SECONDS: f64 = 300.0;

/// How an instance is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Subject(String),
    Micro {
        id: Option<String>,
        name: Option<String>,
    },
    Nobody,
    /// Its metadata says something that cannot be.
    Wrong(String),
}

impl Way {
    fn of(metadata: &Json) -> Self {
        let text = |key: &str| metadata.get(key).and_then(Json::as_str).map(str::to_owned);
        match metadata.get("health_subject") {
            None => Self::Micro {
                id: text("service_id"),
                name: text("service_name"),
            },
            Some(Json::Null | Json::Bool(false)) => Self::Nobody,
            Some(Json::String(subject)) => {
                // A service's own `$SRV.PING.<name>.<id>` is a way to ask, too.
                let rest = subject.strip_prefix("$SRV.").unwrap_or(subject);
                match check_subject("health_subject", rest) {
                    Ok(()) => Self::Subject(subject.clone()),
                    Err(error) => Self::Wrong(error.to_string()),
                }
            }
            Some(other) => Self::Wrong(format!("health_subject {other} is neither a subject nor false")),
        }
    }
}

/// An instance that calls may go to.
#[allow(clippy::struct_field_names, reason = "the names of the columns")]
#[derive(Debug, Clone)]
pub struct Instance {
    extension_id: String,
    instance_id: String,
    subject: String,
    status: String,
    /// `last_health_check` is to be written anew.
    old: bool,
    way: Way,
}

impl Instance {
    /// Whether it is asked by `$SRV`.
    pub const fn speaks_micro(&self) -> bool {
        matches!(self.way, Way::Micro { .. })
    }

    fn key(&self) -> (String, String) {
        (self.extension_id.clone(), self.instance_id.clone())
    }
}

/// The instances that are enabled and not draining.
pub async fn read(direct: &Direct) -> Result<Vec<Instance>, HealthError> {
    let sql = direct.sql(include_str!("../../queries/probed.sql"));
    let rows = direct.client.query(&sql, &[&REFRESH_SECONDS]).await?;
    let mut instances = Vec::with_capacity(rows.len());
    for row in &rows {
        let metadata: RawJsonb = row.try_get(5)?;
        instances.push(Instance {
            extension_id: row.try_get(0)?,
            instance_id: row.try_get(1)?,
            subject: row.try_get(2)?,
            status: row.try_get(3)?,
            old: row.try_get(4)?,
            way: Way::of(&serde_json::from_slice(&metadata.0).unwrap_or_default()),
        });
    }
    Ok(instances)
}

/// What a question to a subject came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// Bad, none in time, or nobody listens.
    Bad,
    /// It could not be asked.
    NotAsked,
}

/// Asks the subjects that instances name, each once.
pub async fn ask(line: &Line, instances: &[Instance], patience: Duration) -> HashMap<String, Answer> {
    let subjects: HashSet<String> = instances
        .iter()
        .filter_map(|instance| match &instance.way {
            Way::Subject(subject) => Some(subject.clone()),
            _ => None,
        })
        .collect();
    let begin = std::time::Instant::now();
    let questions = subjects.into_iter().map(|subject| async move {
        let request = async_nats::Request::new().payload("{}".into()).timeout(Some(patience));
        let answer = match line.client.send_request(subject.clone(), request).await {
            Ok(message) => meaning(message.headers.as_ref(), &message.payload),
            Err(error) => match error.kind() {
                RequestErrorKind::TimedOut if line.is_denied(&subject, begin) => Answer::NotAsked,
                RequestErrorKind::TimedOut | RequestErrorKind::NoResponders => Answer::Bad,
                _ => Answer::NotAsked,
            },
        };
        (subject, answer)
    });
    stream::iter(questions).buffer_unordered(AT_ONCE).collect().await
}

/// Any reply will do that does not say otherwise.
fn meaning(headers: Option<&async_nats::HeaderMap>, payload: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Said {
        error: Option<IgnoredAny>,
        status: Option<Json>,
    }
    let refused = headers.is_some_and(|headers| {
        headers.get("Nats-Service-Error-Code").is_some() || headers.get("Nats-Service-Error").is_some()
    });
    // What is not such an object says nothing.
    let bad = serde_json::from_slice::<Said>(payload)
        .is_ok_and(|said| said.error.is_some() || said.status.is_some_and(|status| status == "unhealthy"));
    if refused || bad { Answer::Bad } else { Answer::Good }
}

/// The services of a roll call, by what instances know them by.
struct Present<'a> {
    ids: HashMap<&'a str, &'a str>,
    names: HashSet<&'a str>,
    subjects: HashSet<&'a str>,
}

impl<'a> Present<'a> {
    fn of(roll_call: &'a RollCall) -> Self {
        let services = &roll_call.services;
        let endpoints = services.iter().flat_map(super::roll_call::Service::endpoints);
        Self {
            ids: services.iter().map(|s| (s.id.as_str(), s.name.as_str())).collect(),
            names: services.iter().map(|service| service.name.as_str()).collect(),
            subjects: endpoints.map(|endpoint| endpoint.subject.as_str()).collect(),
        }
    }

    fn has(&self, id: Option<&str>, name: Option<&str>, subject: &str) -> bool {
        match (id, name) {
            (Some(id), name) => self
                .ids
                .get(id)
                .is_some_and(|found| name.is_none_or(|name| *found == name)),
            (None, Some(name)) => self.names.contains(name),
            (None, None) => self.subjects.contains(subject),
        }
    }
}

/// What is known of an instance from earlier rounds.
#[derive(Debug, Default)]
struct Known {
    /// The subject it had.
    subject: String,
    /// Failures in a row.
    failures: u32,
    /// It has answered as a micro service.
    micro: bool,
    /// What is wrong with its metadata was said.
    told: bool,
}

/// A row to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    extension_id: String,
    instance_id: String,
    was: String,
    status: &'static str,
}

/// The state of the health checks of this bridge.
pub struct Prober {
    metrics: Arc<Metrics>,
    known: HashMap<(String, String), Known>,
}

impl Prober {
    /// Nothing is known yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            known: HashMap::new(),
        }
    }

    /// Failures are counted anew.
    pub fn forgive(&mut self) {
        for known in self.known.values_mut() {
            known.failures = 0;
        }
    }

    /// What a round comes to. `held`: silence is to be taken for what it is.
    pub fn judge(
        &mut self,
        instances: &[Instance],
        answers: &HashMap<String, Answer>,
        roll_call: &RollCall,
        held: bool,
    ) -> Vec<Verdict> {
        let present = Present::of(roll_call);
        let mut verdicts = Vec::new();
        let mut before = std::mem::take(&mut self.known);
        for instance in instances {
            let mut known = before
                .remove(&instance.key())
                .filter(|known| known.subject == instance.subject)
                .unwrap_or_default();
            known.subject.clone_from(&instance.subject);
            let good = match &instance.way {
                Way::Nobody => continue,
                Way::Wrong(why) => {
                    if !known.told {
                        let Instance {
                            extension_id,
                            instance_id,
                            ..
                        } = instance;
                        tracing::warn!(extension_id, instance_id, why, "the instance is not checked");
                    }
                    known.told = true;
                    None
                }
                Way::Subject(subject) => match answers.get(subject) {
                    Some(Answer::Good) => Some(true),
                    Some(Answer::Bad) => Some(false),
                    _ => None,
                },
                Way::Micro { id, name } => {
                    let here = present.has(id.as_deref(), name.as_deref(), &instance.subject);
                    known.micro |= here;
                    let expected = known.micro || id.is_some() || name.is_some();
                    expected.then_some(here)
                }
            };
            let result = match good {
                Some(true) => "healthy",
                Some(false) if held => "failed",
                Some(false) => "inconclusive",
                None => "unknown",
            };
            self.metrics.probes.with_label_values(&[result]).inc();
            known.failures = match result {
                "healthy" => 0,
                "failed" => known.failures.saturating_add(1),
                _ => known.failures,
            };
            let status = match (result, instance.status.as_str()) {
                ("healthy", "degraded") => Some("degraded"),
                ("healthy", _) => Some("healthy"),
                ("failed", _) if known.failures >= FAILURES => Some("unhealthy"),
                _ => None,
            };
            if let Some(status) = status.filter(|status| instance.old || *status != instance.status) {
                verdicts.push(Verdict {
                    extension_id: instance.extension_id.clone(),
                    instance_id: instance.instance_id.clone(),
                    was: instance.status.clone(),
                    status,
                });
            }
            self.known.insert(instance.key(), known);
        }
        verdicts
    }

    /// Writes what a round came to. Rows that somebody else holds are left for the next round.
    pub async fn write(&self, direct: &Direct, verdicts: &[Verdict]) -> Result<(), HealthError> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let column = |of: fn(&Verdict) -> &str| verdicts.iter().map(of).collect::<Vec<_>>();
        let (extensions, instances) = (column(|v| &v.extension_id), column(|v| &v.instance_id));
        let (were, statuses) = (column(|v| &v.was), column(|v| v.status));
        let params: [&(dyn ToSql + Sync); 4] = [&extensions, &instances, &were, &statuses];
        let sql = direct.sql(include_str!("../../queries/save_probes.sql"));
        for row in direct.client.query(&sql, &params).await? {
            let (extension_id, instance_id): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            let (was, status): (&str, &str) = (row.try_get(2)?, row.try_get(3)?);
            if status == "unhealthy" && was != status {
                tracing::warn!(extension_id, instance_id, was, "instance is unhealthy");
            } else if was != status {
                tracing::info!(extension_id, instance_id, was, status, "instance answers");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::roll_call::Service;
    use super::*;

    fn instance(name: &str, status: &str, metadata: &Json) -> Instance {
        Instance {
            extension_id: "x".to_owned(),
            instance_id: name.to_owned(),
            subject: format!("s.{name}"),
            status: status.to_owned(),
            old: false,
            way: Way::of(metadata),
        }
    }

    fn roll_call(services: &[Json]) -> RollCall {
        let read = |json: &Json| Service::read(json.to_string().as_bytes()).unwrap();
        RollCall {
            services: services.iter().map(read).collect(),
            cut_short: false,
        }
    }

    fn listening(id: &str, subject: &str) -> Json {
        json!({"name": "n", "id": id, "endpoints": [{"subject": subject}]})
    }

    /// The status each round writes, `-` for none.
    fn rounds(instance: &mut Instance, rounds: &[(&RollCall, Option<Answer>, bool)]) -> Vec<&'static str> {
        let mut prober = Prober::new(Metrics::new(false));
        rounds
            .iter()
            .map(|(roll_call, answer, held)| {
                let answers = answer.map(|answer| ("h".to_owned(), answer)).into_iter().collect();
                let verdicts = prober.judge(std::slice::from_ref(instance), &answers, roll_call, *held);
                let status = verdicts.first().map_or("-", |verdict| verdict.status);
                if status != "-" {
                    instance.status = status.to_owned();
                }
                status
            })
            .collect()
    }

    #[test]
    fn metadata_says_how_to_ask() {
        let micro = |id: Option<&str>, name: Option<&str>| Way::Micro {
            id: id.map(str::to_owned),
            name: name.map(str::to_owned),
        };
        assert_eq!(Way::of(&json!({})), micro(None, None));
        assert_eq!(
            Way::of(&json!({"service_id": "i", "service_name": "n"})),
            micro(Some("i"), Some("n"))
        );
        for nobody in [json!(null), json!(false)] {
            assert_eq!(Way::of(&json!({ "health_subject": nobody })), Way::Nobody);
        }
        for subject in ["a.health", "$SRV.PING.a.b"] {
            assert_eq!(
                Way::of(&json!({ "health_subject": subject })),
                Way::Subject(subject.to_owned())
            );
        }
        for wrong in [
            json!(true),
            json!(5),
            json!(""),
            json!("a.*"),
            json!("$SYS.REQ"),
            json!("$SRV.>"),
            json!({}),
        ] {
            assert!(
                matches!(Way::of(&json!({ "health_subject": wrong })), Way::Wrong(_)),
                "{wrong}"
            );
        }
    }

    #[test]
    fn replies_mean_what_they_say() {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", "500");
        assert_eq!(meaning(Some(&headers), b"{}"), Answer::Bad);
        for good in [
            "",
            "pong",
            "{}",
            "[1]",
            r#"{"error":null,"status":"ok"}"#,
            r#"{"status":5}"#,
        ] {
            assert_eq!(meaning(None, good.as_bytes()), Answer::Good, "{good}");
        }
        for bad in [
            r#"{"error":"x"}"#,
            r#"{"error":{"code":5}}"#,
            r#"{"status":"unhealthy","x":1}"#,
        ] {
            assert_eq!(meaning(None, bad.as_bytes()), Answer::Bad, "{bad}");
        }
    }

    #[test]
    fn two_failures_in_a_row_and_one_success() {
        let (there, gone) = (roll_call(&[listening("I", "s.a")]), roll_call(&[]));
        let mut a = instance("a", "unknown", &json!({}));
        assert_eq!(
            rounds(
                &mut a,
                &[
                    (&gone, None, true),
                    (&gone, None, true),
                    (&gone, None, true),
                    (&there, None, true),
                    (&there, None, true),
                    (&gone, None, true),
                    (&there, None, true),
                    (&gone, None, true),
                    (&gone, None, true),
                    (&gone, None, true),
                    (&there, None, false),
                ]
            ),
            [
                "-",
                "-",
                "-",
                "healthy",
                "-",
                "-",
                "-",
                "-",
                "unhealthy",
                "-",
                "healthy"
            ]
        );
    }

    #[test]
    fn silence_on_a_bad_line_is_not_held_against_anybody() {
        let (there, gone) = (roll_call(&[listening("I", "s.a")]), roll_call(&[]));
        let mut a = instance("a", "healthy", &json!({}));
        let silent = (&gone, None, false);
        assert_eq!(
            rounds(&mut a, &[(&there, None, true), silent, silent, silent]),
            ["-"; 4]
        );
        let mut h = instance("a", "healthy", &json!({"health_subject": "h"}));
        let silent = (&gone, Some(Answer::Bad), false);
        let not_asked = (&gone, Some(Answer::NotAsked), true);
        assert_eq!(
            rounds(&mut h, &[silent, silent, silent, not_asked, not_asked]),
            ["-"; 5]
        );
        let bad = (&gone, Some(Answer::Bad), true);
        let good = (&gone, Some(Answer::Good), true);
        assert_eq!(rounds(&mut h, &[bad, bad, good]), ["-", "unhealthy", "healthy"]);
    }

    #[test]
    fn degraded_stays_while_it_answers() {
        let gone = roll_call(&[]);
        let mut h = instance("a", "degraded", &json!({"health_subject": "h"}));
        let (bad, good) = ((&gone, Some(Answer::Bad), true), (&gone, Some(Answer::Good), true));
        assert_eq!(
            rounds(&mut h, &[good, bad, bad, good]),
            ["-", "-", "unhealthy", "healthy"]
        );
    }

    #[test]
    fn services_are_known_by_id_name_or_subject() {
        let both = roll_call(&[listening("I", "s.a"), json!({"name": "m", "id": "J"})]);
        let present = Present::of(&both);
        for (id, name, subject, has) in [
            (Some("I"), None, "other", true),
            (Some("I"), Some("n"), "other", true),
            (Some("I"), Some("m"), "s.a", false),
            (Some("K"), None, "s.a", false),
            (None, Some("m"), "other", true),
            (None, Some("o"), "s.a", false),
            (None, None, "s.a", true),
            (None, None, "s", false),
        ] {
            assert_eq!(present.has(id, name, subject), has, "{id:?} {name:?} {subject}");
        }
        // Who says which service it is has said that it is one.
        let gone = roll_call(&[]);
        let mut stated = instance("a", "unknown", &json!({"service_id": "K"}));
        assert_eq!(
            rounds(&mut stated, &[(&gone, None, true), (&gone, None, true)]),
            ["-", "unhealthy"]
        );
    }
}
