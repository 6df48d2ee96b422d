//! Services that speak NATS micro become instances by themselves, and go when they are no longer there.
//!
//! Only under a prefix that a person has set, `metadata.discover_subject_prefix` of an extension. An endpoint whose subject
//! is the prefix, or begins with it and a dot, becomes a row of `extension_instances`, marked `{"discovered": true}`.
//!
//! Promises: rows without that mark are never written; rows with it are not changed, so what a person sets on them (weight,
//! enabled, draining) stays while the service lives. At most [`MOST`] of an extension. A row goes when its service was
//! missing from [`MISSES`] rounds in a row with a good line to NATS, or [`MISSES_OF_ALL`] where no service at all answered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ext_registry_core::ident::{check_id, check_subject, check_version, shorten};
use serde_json::{Value as Json, json};
use tokio_postgres::types::{Json as Jsonb, ToSql};

use super::HealthError;
use super::roll_call::{Endpoint, RollCall, Service};
use crate::metrics::Metrics;
use crate::pg::Direct;

/// Most discovered instances of one extension.
const MOST: usize = 100;
/// Rounds that a service may be missing from.
const MISSES: u32 = 3;
/// The same, where no service at all answers: that is more likely a fault of the way to them.
const MISSES_OF_ALL: u32 = 10;
/// Refusals that are remembered, each to be told once.
const MOST_TOLD: usize = 1000;

/// Where an extension lets services register.
#[derive(Debug, Clone)]
pub struct Rule {
    extension_id: String,
    prefix: String,
    /// The names of its versions.
    versions: Vec<String>,
}

/// A discovered instance as it is registered.
#[derive(Debug, Clone)]
pub struct Row {
    extension_id: String,
    instance_id: String,
    subject: String,
}

/// What is registered.
pub struct Registered {
    rules: Vec<Rule>,
    rows: Vec<Row>,
}

/// What discovery needs to know of the registry.
pub async fn read(direct: &Direct) -> Result<Registered, HealthError> {
    let mut rules = Vec::new();
    let sql = direct.sql(include_str!("../../queries/discover_prefixes.sql"));
    for row in direct.client.query(&sql, &[]).await? {
        rules.push(Rule {
            extension_id: row.try_get(0)?,
            prefix: row.try_get(1)?,
            versions: row.try_get(2)?,
        });
    }
    let mut rows = Vec::new();
    let sql = direct.sql(include_str!("../../queries/discovered.sql"));
    for row in direct.client.query(&sql, &[]).await? {
        rows.push(Row {
            extension_id: row.try_get(0)?,
            instance_id: row.try_get(1)?,
            subject: row.try_get(2)?,
        });
    }
    Ok(Registered { rules, rows })
}

/// An instance that a service asks for.
#[derive(Debug, Clone, PartialEq)]
struct Offer {
    extension_id: String,
    instance_id: String,
    subject: String,
    version: Option<String>,
    weight: i32,
    metadata: Json,
}

/// What is below a prefix: `Some("")` for the prefix itself, `None` where it is none.
fn below<'a>(subject: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = subject.strip_prefix(prefix)?;
    if rest.is_empty() {
        Some("")
    } else {
        rest.strip_prefix('.')
    }
}

/// The last token at or below the end of the prefix that looks like a version: `v2`.
fn version_in<'a>(prefix: &'a str, rest: &'a str) -> Option<&'a str> {
    let last = prefix.rsplit('.').next();
    rest.rsplit('.').chain(last).find(|token| {
        token
            .strip_prefix('v')
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

impl Offer {
    /// What an endpoint under the prefix of a rule asks for, or why it is refused.
    fn of(rule: &Rule, service: &Service, endpoint: &Endpoint) -> Result<Self, String> {
        let subject = &endpoint.subject;
        check_subject("subject", subject).map_err(|error| error.to_string())?;
        let rest = below(subject, &rule.prefix).unwrap_or_default();
        // One service may have several endpoints here.
        let instance_id = match rest {
            "" => service.id.clone(),
            rest => format!("{}-{}", service.id, rest.replace('.', "-")),
        };
        check_id("instance_id", &instance_id).map_err(|error| error.to_string())?;
        let version = match service.fact(endpoint, "version") {
            Some(Json::String(version)) => Some(version.as_str()),
            Some(other) => {
                return Err(format!(
                    "invalid version {}: it is no text",
                    shorten(&other.to_string())
                ));
            }
            None => version_in(&rule.prefix, rest),
        };
        if let Some(version) = version
            && !rule.versions.iter().any(|known| known == version)
        {
            return Err(format!("version \"{}\" is not registered", shorten(version)));
        }
        let weight = match service.fact(endpoint, "weight") {
            None => Some(100),
            Some(Json::String(text)) => text.parse().ok(),
            Some(other) => other.as_i64(),
        };
        let weight = weight
            .filter(|weight| (0..=100).contains(weight))
            .ok_or("invalid weight: it is no number between 0 and 100")?;
        let mut metadata = json!({"discovered": true, "service_name": service.name, "service_id": service.id});
        if let Some(version) = service
            .version
            .as_deref()
            .filter(|v| check_version("version", v).is_ok())
        {
            metadata["service_version"] = version.into();
        }
        Ok(Self {
            extension_id: rule.extension_id.clone(),
            instance_id,
            subject: subject.clone(),
            version: version.map(str::to_owned),
            weight: weight as i32,
            metadata,
        })
    }
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    register: Vec<Offer>,
    remove: Vec<Row>,
}

/// The state of the discovery of this bridge.
pub struct Discovery {
    metrics: Arc<Metrics>,
    /// How many rounds the service of a row has been missing.
    misses: HashMap<(String, String), u32>,
    told: HashSet<String>,
}

impl Discovery {
    /// Nothing is known yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            misses: HashMap::new(),
            told: HashSet::new(),
        }
    }

    /// Misses are counted anew.
    pub fn forgive(&mut self) {
        self.misses.clear();
    }

    /// Says once that something is refused.
    fn refuse(&mut self, extension: &str, service: &str, subject: &str, why: &str) {
        let (service, subject) = (shorten(service), shorten(subject));
        if self.told.len() < MOST_TOLD && self.told.insert(format!("{extension} {service} {subject} {why}")) {
            self.metrics.discovered.with_label_values(&["refused"]).inc();
            tracing::warn!(extension_id = extension, ?service, ?subject, why, "not registered");
        }
    }

    /// What services ask for, under the longest prefix that fits. Endpoints under none are nobody's business.
    fn offers(&mut self, rules: &[Rule], services: &[Service]) -> Vec<Offer> {
        let mut valid = Vec::new();
        for rule in rules {
            match check_subject("discover_subject_prefix", &rule.prefix) {
                Ok(()) => valid.push(rule),
                Err(error) => self.refuse(&rule.extension_id, "", &rule.prefix, &error.to_string()),
            }
        }
        let mut offers = Vec::new();
        let mut taken = HashSet::new();
        for service in services {
            for endpoint in service.endpoints() {
                let fits = || {
                    valid
                        .iter()
                        .filter(|rule| below(&endpoint.subject, &rule.prefix).is_some())
                };
                let longest = fits().map(|rule| rule.prefix.len()).max();
                for rule in fits().filter(|rule| Some(rule.prefix.len()) == longest) {
                    match Offer::of(rule, service, endpoint) {
                        Ok(offer) => {
                            if taken.insert((offer.extension_id.clone(), offer.instance_id.clone())) {
                                offers.push(offer);
                            }
                        }
                        Err(why) => self.refuse(&rule.extension_id, &service.id, &endpoint.subject, &why),
                    }
                }
            }
        }
        offers
    }

    /// What a round comes to. `held`: who is missing is not there.
    pub fn plan(&mut self, registered: &Registered, roll_call: &RollCall, held: bool) -> Plan {
        let offers = self.offers(&registered.rules, &roll_call.services);
        let here: HashMap<(&str, &str), &str> = offers
            .iter()
            .map(|offer| {
                (
                    (offer.extension_id.as_str(), offer.instance_id.as_str()),
                    offer.subject.as_str(),
                )
            })
            .collect();
        let allowed = if roll_call.services.is_empty() {
            MISSES_OF_ALL
        } else {
            MISSES
        };
        let mut plan = Plan::default();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        let mut kept = HashSet::new();
        let mut misses = HashMap::new();
        for row in &registered.rows {
            let key = (row.extension_id.as_str(), row.instance_id.as_str());
            let owned = (row.extension_id.clone(), row.instance_id.clone());
            let remove = if let Some(subject) = here.get(&key) {
                *subject != row.subject
            } else {
                let count = self.misses.get(&owned).copied().unwrap_or(0) + u32::from(held);
                misses.insert(owned, count);
                held && count >= allowed
            };
            if remove {
                plan.remove.push(row.clone());
            } else {
                kept.insert(key);
                *counts.entry(&row.extension_id).or_default() += 1;
            }
        }
        self.misses = misses;
        let mut full = Vec::new();
        for offer in &offers {
            if kept.contains(&(offer.extension_id.as_str(), offer.instance_id.as_str())) {
                continue;
            }
            let count = counts.entry(&offer.extension_id).or_default();
            if *count >= MOST {
                full.push(offer.extension_id.clone());
                continue;
            }
            *count += 1;
            plan.register.push(offer.clone());
        }
        for extension in full {
            self.refuse(
                &extension,
                "",
                "",
                "the extension has its most discovered instances, 100",
            );
        }
        plan
    }

    /// Does it.
    pub async fn write(&self, direct: &Direct, plan: &Plan) -> Result<(), HealthError> {
        let count = |action: &str, n: usize| self.metrics.discovered.with_label_values(&[action]).inc_by(n as u64);
        if !plan.remove.is_empty() {
            let column = |of: fn(&Row) -> &str| plan.remove.iter().map(of).collect::<Vec<_>>();
            let (extensions, instances) = (column(|r| &r.extension_id), column(|r| &r.instance_id));
            let subjects = column(|r| &r.subject);
            let params: [&(dyn ToSql + Sync); 3] = [&extensions, &instances, &subjects];
            let sql = direct.sql(include_str!("../../queries/remove_discovered.sql"));
            let rows = direct.client.query(&sql, &params).await?;
            count("removed", rows.len());
            for row in &rows {
                let (extension_id, instance_id): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
                tracing::info!(
                    extension_id,
                    instance_id,
                    "the service is gone, its instance is removed"
                );
            }
        }
        if !plan.register.is_empty() {
            let column = |of: fn(&Offer) -> &str| plan.register.iter().map(of).collect::<Vec<_>>();
            let (extensions, instances) = (column(|o| &o.extension_id), column(|o| &o.instance_id));
            let subjects = column(|o| &o.subject);
            let versions: Vec<Option<&str>> = plan.register.iter().map(|o| o.version.as_deref()).collect();
            let weights: Vec<i32> = plan.register.iter().map(|o| o.weight).collect();
            let metadata: Vec<Jsonb<&Json>> = plan.register.iter().map(|o| Jsonb(&o.metadata)).collect();
            let params: [&(dyn ToSql + Sync); 6] = [&extensions, &instances, &subjects, &versions, &weights, &metadata];
            let sql = direct.sql(include_str!("../../queries/register_discovered.sql"));
            let rows = direct.client.query(&sql, &params).await?;
            count("registered", rows.len());
            for row in &rows {
                let (extension_id, instance_id): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
                let subject: &str = row.try_get(2)?;
                tracing::info!(extension_id, instance_id, subject, "a service is registered");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(extension: &str, prefix: &str) -> Rule {
        Rule {
            extension_id: extension.to_owned(),
            prefix: prefix.to_owned(),
            versions: vec!["v1".to_owned(), "v2".to_owned()],
        }
    }

    fn roll_call(services: &[Json]) -> RollCall {
        let read = |json: &Json| Service::read(json.to_string().as_bytes()).unwrap();
        RollCall {
            services: services.iter().map(read).collect(),
            cut_short: false,
        }
    }

    fn service(id: &str, subjects: &[&str]) -> Json {
        let endpoints: Vec<Json> = subjects.iter().map(|subject| json!({ "subject": subject })).collect();
        json!({"name": "n", "id": id, "version": "1.2.3", "endpoints": endpoints})
    }

    fn discovery() -> Discovery {
        Discovery::new(Metrics::new(false))
    }

    fn offered(rules: &[Rule], services: &[Json]) -> Vec<String> {
        discovery()
            .offers(rules, &roll_call(services).services)
            .iter()
            .map(|o| {
                format!(
                    "{} {} {} {}",
                    o.extension_id,
                    o.instance_id,
                    o.version.as_deref().unwrap_or("-"),
                    o.weight
                )
            })
            .collect()
    }

    #[test]
    fn only_what_is_at_or_below_a_prefix() {
        let rules = [
            rule("a", "x.a"),
            rule("b", "x.a.b"),
            rule("c", "x.c.v1"),
            rule("bad", "y.*"),
        ];
        let subjects = [
            "x.a",
            "x.a.i",
            "x.ab",
            "x",
            "x.a.b",
            "x.a.b.v2.i",
            "x.c.v1.i",
            "x.d",
            "y.z",
            "x.a.*",
            "x.a.>",
            "x.a.",
            "x.a..i",
            "x.a.i j",
            "x.a.ä",
            "",
            "$x.a",
            "x.a.v3",
            "x.a.vv",
            "x.a.v",
        ];
        assert_eq!(
            offered(&rules, &[service("I", &subjects)]),
            [
                "a I - 100",
                "a I-i - 100",
                "b I - 100",
                "b I-v2-i v2 100",
                "c I-i v1 100",
                "a I-vv - 100",
                "a I-v - 100"
            ]
        );
        for id in ["", "a b", "a.b", "\u{0}", &"x".repeat(256)] {
            assert_eq!(offered(&rules, &[service(id, &["x.a"])]), [""; 0], "{id:?}");
        }
    }

    #[test]
    fn version_and_weight_are_the_endpoints_or_the_services() {
        let rules = [rule("a", "x")];
        let of = |service: Json, endpoint: Json| {
            offered(
                &rules,
                &[json!({"name": "n", "id": "I", "metadata": service,
                         "endpoints": [{"subject": "x.v1", "metadata": endpoint}]})],
            )
        };
        assert_eq!(of(json!(null), json!(null)), ["a I-v1 v1 100"]);
        assert_eq!(of(json!({"version": "v2", "weight": "7"}), json!({})), ["a I-v1 v2 7"]);
        assert_eq!(
            of(
                json!({"version": "v9", "weight": "x"}),
                json!({"version": "v1", "weight": 0})
            ),
            ["a I-v1 v1 0"]
        );
        for bad in [
            json!({"version": "v3"}),
            json!({"version": 1}),
            json!({"weight": "101"}),
            json!({"weight": -1}),
            json!({"weight": 1.5}),
            json!({"weight": "1e2"}),
            json!({"weight": null}),
        ] {
            assert_eq!(of(json!({}), bad.clone()), [""; 0], "{bad}");
        }
    }

    #[test]
    fn who_is_missing_goes_after_a_while() {
        let rows = |subject: &str| Registered {
            rules: vec![rule("a", "x")],
            rows: vec![Row {
                extension_id: "a".to_owned(),
                instance_id: "I-i".to_owned(),
                subject: subject.to_owned(),
            }],
        };
        let registered = rows("x.i");
        let (there, gone) = (roll_call(&[service("I", &["x.i"])]), roll_call(&[service("J", &["z"])]));
        let nobody = roll_call(&[]);
        let mut discovery = discovery();
        let mut removes = |roll_call: &RollCall, held: bool, rounds: usize| -> Vec<usize> {
            (0..rounds)
                .map(|_| discovery.plan(&registered, roll_call, held).remove.len())
                .collect()
        };
        assert_eq!(removes(&there, true, 2), [0, 0]);
        assert_eq!(removes(&gone, true, 2), [0, 0]);
        assert_eq!(removes(&there, true, 1), [0]);
        assert_eq!(removes(&gone, false, 20), [0; 20], "the line is bad");
        assert_eq!(removes(&gone, true, 3), [0, 0, 1]);
        assert_eq!(removes(&there, true, 1), [0]);
        assert_eq!(removes(&nobody, true, 10), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

        // Elsewhere by now: removed and registered anew.
        let plan = discovery.plan(&rows("x.j"), &there, false);
        assert_eq!((plan.remove.len(), plan.register.len()), (1, 1));
        // Its prefix is gone.
        let without = Registered {
            rules: Vec::new(),
            ..rows("x.i")
        };
        let removed: Vec<usize> = (0..3)
            .map(|_| discovery.plan(&without, &there, true).remove.len())
            .collect();
        assert_eq!(removed, [0, 0, 1]);
    }

    #[test]
    fn an_extension_has_at_most_so_many() {
        let services: Vec<Json> = (0..MOST + 50).map(|n| service(&format!("I{n}"), &["x.i"])).collect();
        let registered = Registered {
            rules: vec![rule("a", "x")],
            rows: (0..60)
                .map(|n| Row {
                    extension_id: "a".to_owned(),
                    instance_id: format!("I{n}-i"),
                    subject: "x.i".to_owned(),
                })
                .collect(),
        };
        let plan = discovery().plan(&registered, &roll_call(&services), true);
        assert_eq!((plan.register.len(), plan.remove.len()), (MOST - 60, 0));
    }
}
