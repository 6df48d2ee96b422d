//! The registry as this bridge sees it itself, for operators while Postgres does not answer: what its image says is registered,
//! and what its own calls came to.

use std::collections::BTreeMap;

use ext_registry_core::breaker::State;
use ext_registry_core::engine::Engine;
use ext_registry_core::hdr::Hdr;
use ext_registry_core::histogram::SUB_WINDOWS;
use ext_registry_core::outcome::{Outcome, Verdict};
use ext_registry_core::target::{COUNTERS, minute};
use serde_json::{Value as Json, json};

use crate::image::Image;

/// One extension.
#[derive(Debug, Clone)]
pub struct View {
    /// Its type.
    pub kind: String,
    /// Whether it may be called.
    pub enabled: bool,
    /// The version that its row itself is.
    pub version: String,
    /// The breaker that refuses most among those of its versions.
    pub breaker: State,
    /// Outcomes since the image decides.
    pub counts: [u64; COUNTERS],
    /// Outcomes of the last minutes.
    pub recent: [u64; COUNTERS],
    /// Latencies of the last minutes.
    pub latency: Hdr,
    /// Its instances with their declared health.
    pub instances: Vec<(String, String)>,
}

/// Extensions by id.
pub type Views = BTreeMap<String, View>;

/// The extensions of an image, with what an engine over it has seen at `now_us` (microseconds since 1970).
pub fn of_engine(image: &Image, engine: &Engine, now_us: u64) -> Views {
    let view = |id: &str| {
        let document = image.extension(id)?;
        let targets = engine.version_targets(id);
        let uncalled = targets.is_empty();
        let mut view = View {
            kind: document.kind.clone(),
            enabled: document.enabled,
            version: document.version.clone(),
            breaker: if uncalled && document.health.breaker_mode == "forced_open" {
                State::Open
            } else {
                State::Closed
            },
            counts: [0; COUNTERS],
            recent: [0; COUNTERS],
            latency: Hdr::new(),
            instances: (document.instances.iter())
                .map(|instance| (instance.instance_id.clone(), instance.health_status.clone()))
                .collect(),
        };
        for target in targets {
            let state = target.breaker.view(&target.settings.load(), now_us).state;
            if rank(state) > rank(view.breaker) {
                view.breaker = state;
            }
            add(&mut view.counts, &target.counts());
            for ago in 0..SUB_WINDOWS as u64 {
                let snapshot = target.latency.minute_snapshot(minute(now_us).saturating_sub(ago));
                add(&mut view.recent, &snapshot.outcomes);
                view.latency.merge(&Hdr::from_snapshot(&snapshot));
            }
        }
        Some((id.to_owned(), view))
    };
    image.extensions().filter_map(|extension| view(&extension.id)).collect()
}

/// Adds what another loop has seen.
pub fn merge(all: &mut Views, other: Views) {
    for (id, view) in other {
        match all.get_mut(&id) {
            None => {
                all.insert(id, view);
            }
            Some(known) => {
                if rank(view.breaker) > rank(known.breaker) {
                    known.breaker = view.breaker;
                }
                add(&mut known.counts, &view.counts);
                add(&mut known.recent, &view.recent);
                known.latency.merge(&view.latency);
            }
        }
    }
}

/// 0 closed, 1 half_open, 2 open: as in the metrics.
pub const fn rank(state: State) -> i64 {
    match state {
        State::Closed => 0,
        State::HalfOpen => 1,
        State::Open => 2,
    }
}

fn add(sums: &mut [u64; COUNTERS], more: &[u64; COUNTERS]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

fn of(counts: &[u64; COUNTERS], verdict: Verdict) -> u64 {
    let counted = Outcome::ALL.into_iter().filter(|outcome| outcome.verdict() == verdict);
    counted.map(|outcome| counts[outcome as usize]).sum()
}

impl View {
    /// Share of successes over the last minutes; none without calls.
    pub fn success_rate(&self) -> Option<f64> {
        let (good, bad) = (of(&self.recent, Verdict::Success), of(&self.recent, Verdict::Failure));
        (good + bad > 0).then(|| good as f64 / (good + bad) as f64)
    }

    /// As `get_extension_health` shows it.
    pub fn health(&self, id: &str) -> Json {
        let rate = self.success_rate();
        let status = match rate {
            None => "unknown",
            Some(rate) if rate >= 0.95 => "healthy",
            Some(rate) if rate >= 0.80 => "degraded",
            Some(_) => "unhealthy",
        };
        json!({
            "extension_id": id, "status": status, "success_rate": rate,
            "success_count": of(&self.counts, Verdict::Success), "failure_count": of(&self.counts, Verdict::Failure),
            "avg_latency_ms": self.latency.mean_ms(), "p50_latency_ms": self.latency.quantile(0.5),
            "p95_latency_ms": self.latency.quantile(0.95), "p99_latency_ms": self.latency.quantile(0.99),
            "latency_samples": self.latency.count(), "circuit_breaker_state": self.breaker.as_str(),
        })
    }

    /// As `get_circuit_breaker_states` shows it.
    pub fn breaker(&self, id: &str) -> Json {
        json!({
            "extension_id": id, "state": self.breaker.as_str(), "opened_at": null,
            "failure_count": of(&self.counts, Verdict::Failure), "error_rate": self.success_rate().map(|rate| 1.0 - rate),
        })
    }
}
