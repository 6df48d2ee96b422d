//! Decisions without Postgres: the same core, over an image of the registry.
//!
//! Owned by one loop. An extension is compiled when it is first called, so that a change-over takes no time however large the
//! registry; breakers that were open in Postgres are open here.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ext_registry_core::breaker::State;
use ext_registry_core::engine::Engine;
use ext_registry_core::fixture::ExtensionDocument;

use super::views::{self, Views};
use crate::exit::{Exit, Kind as ExitKind};
use crate::fixtures::Fixtures;
use crate::image::{Image, OpenBreaker};
use crate::machine::contract::Kind;
use crate::machine::policies::{Found, PolicyKey};
use crate::machine::{Decision, Facts, Machine, Question, Report, Undecided};
use crate::metrics::Metrics;

/// A registry on the heap, owned by one loop.
pub struct Local {
    engine: Engine,
    image: Arc<Image>,
    open: Arc<Vec<OpenBreaker>>,
    /// Extensions that cannot be compiled.
    broken: HashSet<String>,
    swept_us: u64,
}

/// Microseconds since 1970.
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_micros() as u64)
}

/// Reads a folder of fixtures; all of it must be usable.
pub fn fixtures(folder: &Path) -> Result<Arc<Image>, Exit> {
    let wrong = |why: String| Exit::new(ExitKind::Fixtures, why);
    let fixtures = Fixtures::read(folder)?;
    let documents: Vec<ExtensionDocument> = fixtures
        .extensions
        .iter()
        .map(|(_, document)| document.clone())
        .collect();
    Engine::new(&documents, 1, 0).map_err(|e| wrong(e.to_string()))?;
    Image::of_fixtures(&fixtures).map(Arc::new).map_err(wrong)
}

impl Local {
    /// Over an image, with room for so many calls under way.
    pub fn over(image: Arc<Image>, open: Arc<Vec<OpenBreaker>>, capacity: usize) -> Self {
        let engine =
            Engine::new(&[], capacity, fastrand::u64(..)).unwrap_or_else(|_| unreachable!("nothing is registered yet"));
        Self {
            engine,
            image,
            open,
            broken: HashSet::new(),
            swept_us: 0,
        }
    }

    /// Whether it decides over this image.
    pub fn is_over(&self, image: &Arc<Image>) -> bool {
        Arc::ptr_eq(&self.image, image)
    }

    /// Makes an extension known to the engine.
    fn prepare(&mut self, id: &str, now_us: u64) -> Result<(), Undecided> {
        if self.engine.extension(id).is_some() {
            return Ok(());
        }
        let Some(document) = self.image.extension(id) else {
            return if self.image.is_unreadable(id) {
                Err(Undecided::Unavailable)
            } else {
                Ok(())
            };
        };
        if self.broken.contains(id) {
            return Err(Undecided::Unavailable);
        }
        if let Err(error) = self.engine.add(document) {
            tracing::warn!(extension_id = id, %error, "an extension is unavailable without Postgres");
            self.broken.insert(id.to_owned());
            return Err(Undecided::Unavailable);
        }
        for breaker in self.open.iter().filter(|breaker| breaker.extension_id == id) {
            self.engine.hold_open(id, &breaker.version, breaker.until_us, now_us);
        }
        Ok(())
    }

    /// Answers a question.
    pub fn answer(&mut self, question: &Question, preview: bool) -> Result<Decision, Undecided> {
        let Ok(context) = serde_json::from_slice(&question.context) else {
            return Err(Undecided::Refused("it cannot be read".to_owned()));
        };
        let avoid: Vec<&str> = question.avoid.iter().map(|id| &**id).collect();
        let now = unix_us();
        self.prepare(&question.extension_id, now)?;
        let decision = if preview {
            self.engine.explain(&question.extension_id, &context, now).0
        } else {
            self.engine.select(&question.extension_id, &context, &avoid, now)
        };
        Ok(Decision {
            allowed: decision.allowed,
            reason: decision.reason.as_str().to_owned(),
            retry_after_ms: decision.retry_after_ms.map(i64::from),
            kind: decision.kind.and_then(|kind| Kind::parse(kind.as_str())),
            version: decision.version,
            instance_id: decision.instance_id,
            subject: decision.subject,
            timeout_ms: decision.timeout_ms,
            retry: decision.retry,
            config: Bytes::from(decision.config),
            ticket: decision.ticket.cast_signed(),
            local: true,
        })
    }

    /// Takes an outcome.
    pub fn report(&mut self, report: &Report) {
        self.engine.report(
            report.ticket.cast_unsigned(),
            report.outcome,
            report.latency_us,
            report.retries,
            unix_us(),
        );
    }

    /// Logs and counts what breakers did, and frees what nobody reported.
    pub fn tend(&mut self, metrics: &Metrics, now: u64) {
        for moved in self.engine.take_transitions() {
            if moved.transition.to == State::Open {
                metrics.opened(&moved.extension_id, 1);
            }
            tracing::info!(
                extension_id = &*moved.extension_id,
                version = &*moved.version,
                transition = ?moved.transition,
                "a circuit breaker moved"
            );
        }
        if now.saturating_sub(self.swept_us) > 1_000_000 {
            self.swept_us = now;
            self.engine.sweep(unix_us());
        }
    }

    /// What operators may see of it.
    pub fn views(&self) -> Views {
        let now_us = unix_us();
        let mut views = views::of_engine(&self.image, &self.engine, now_us);
        // What Postgres had open the engine learns with the first call.
        let unseen = |breaker: &&OpenBreaker| self.engine.extension(&breaker.extension_id).is_none();
        for breaker in self.open.iter().filter(unseen) {
            if let Some(view) = views.get_mut(&breaker.extension_id) {
                view.breaker = State::Open;
            }
        }
        views
    }

    /// A policy.
    pub fn policy(&self, key: &PolicyKey) -> Found {
        self.image.policy(key).map_or(Found::Nothing, Found::parsed)
    }

    /// Tells the machine what the documents say beside decisions.
    pub fn facts(&self, machine: &mut Machine, ids: &[Rc<str>], now: u64) {
        for document in ids.iter().filter_map(|id| self.image.extension(id)) {
            let idempotent = document.metadata.get("idempotent") == Some(&serde_json::Value::Bool(true));
            machine.on_facts(
                &document.id,
                Facts {
                    idempotent,
                    balancing: document.balancing.clone(),
                },
                now,
            );
        }
    }
}
