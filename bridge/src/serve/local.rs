//! Decisions without Postgres: the same core, over documents of a fixtures folder.

use std::path::Path;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ext_registry_core::engine::Engine;
use ext_registry_core::fixture::ExtensionDocument;

use crate::exit::{Exit, Kind as ExitKind};
use crate::fixtures::Fixtures;
use crate::machine::contract::Kind;
use crate::machine::policies::{Found, PolicyKey};
use crate::machine::{Decision, Facts, Machine, Question, Report, Undecided};

/// A registry on the heap, owned by one loop.
pub struct Local {
    engine: Engine,
    fixtures: Rc<Fixtures>,
    swept_us: u64,
}

fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_micros() as u64)
}

impl Local {
    /// Reads a folder.
    pub fn open(folder: &Path, capacity: usize) -> Result<Self, Exit> {
        let fixtures = Fixtures::read(folder)?;
        let documents: Vec<ExtensionDocument> = fixtures
            .extensions
            .iter()
            .map(|(_, document)| document.clone())
            .collect();
        let engine = Engine::new(&documents, capacity, fastrand::u64(..))
            .map_err(|e| Exit::new(ExitKind::Fixtures, e.to_string()))?;
        Ok(Self {
            engine,
            fixtures: Rc::new(fixtures),
            swept_us: 0,
        })
    }

    /// Registered extensions, as (type, number).
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        ["pre", "validator", "provider", "post"]
            .into_iter()
            .map(|kind| {
                (
                    kind,
                    self.fixtures.extensions.iter().filter(|(_, e)| e.kind == kind).count(),
                )
            })
            .collect()
    }

    /// Answers a question.
    pub fn answer(&mut self, question: &Question, preview: bool) -> Result<Decision, Undecided> {
        let Ok(context) = serde_json::from_slice(&question.context) else {
            return Err(Undecided::Refused("it cannot be read".to_owned()));
        };
        let avoid: Vec<&str> = question.avoid.iter().map(|id| &**id).collect();
        let now = unix_us();
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

    /// Logs what breakers did, and frees what nobody reported.
    pub fn tend(&mut self, now: u64) {
        for moved in self.engine.take_transitions() {
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

    /// A policy.
    pub fn policy(&self, key: &PolicyKey) -> Found {
        match self.fixtures.policies.get(key) {
            Some(policy) => Found::Policy(Rc::clone(policy)),
            None => Found::Nothing,
        }
    }

    /// Tells the machine what the documents say beside decisions.
    pub fn facts(&self, machine: &mut Machine, ids: &[Rc<str>], now: u64) {
        for (_, document) in self
            .fixtures
            .extensions
            .iter()
            .filter(|(_, d)| ids.iter().any(|id| **id == *d.id))
        {
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
