//! Everything `/metrics` shows. Names and labels of the `router_extension_*` series are those that existing dashboards and
//! alerts use; `ext_bridge_*` is about the daemon itself.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Buckets of the latency histogram, in ms.
const LATENCY_BUCKETS: [f64; 7] = [10.0, 25.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
/// What became of an attempt that was sent.
const STATUSES: [&str; 3] = ["success", "error", "timeout"];
/// Why a call or an attempt was not made, or not waited for.
const REASONS: [&str; 16] = [
    "caller_error",
    "cancelled",
    "deadline_exceeded",
    "extension_circuit_open",
    "extension_disabled",
    "extension_not_found",
    "internal",
    "invalid_request",
    "no_version",
    "other",
    "overloaded",
    "policy_not_found",
    "registry_unavailable",
    "retry_budget",
    "tenant_not_allowed",
    "unauthorized",
];

/// A metric's name, help and type, to be shown also while it has no series.
struct Head {
    name: String,
    help: String,
    kind: &'static str,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    heads: Vec<Head>,
    tenant_label: bool,
    invocations: IntCounterVec,
    latency: HistogramVec,
    retries: IntCounterVec,
    versions: IntCounterVec,
    selections: IntCounterVec,
    /// Per extension: 0 closed, 1 half_open, 2 open, under its present state.
    pub breaker_state: IntGaugeVec,
    breaker_opened: IntCounterVec,
    /// Openings by extension since the start, shown or not.
    openings: Mutex<HashMap<String, u64>>,
    /// Share of successes over 5 minutes.
    pub success_rate: GaugeVec,
    /// 95th percentile over 5 minutes, in ms.
    pub latency_p95: GaugeVec,
    /// Registered extensions by source and type.
    pub extensions: IntGaugeVec,
    /// Reloads of the registry.
    pub syncs: IntCounterVec,
    /// 1 for the present status of an instance.
    pub instance_health: IntGaugeVec,
    refused: IntCounterVec,
    replies: IntCounterVec,
    /// Successful replies to callers.
    pub replies_ok: IntCounter,
    /// Replies that nobody waited for.
    pub late_replies: IntCounter,
    /// Requests and pipelines under way.
    pub in_flight: IntGaugeVec,
    /// The most there may be.
    pub in_flight_limit: IntGaugeVec,
    /// Bytes of requests under way.
    pub in_flight_bytes: IntGaugeVec,
    /// The most there may be.
    pub in_flight_bytes_limit: IntGaugeVec,
    /// Members of batches.
    pub batch_size: HistogramVec,
    /// Batches that failed or went unanswered.
    pub batch_failures: IntCounterVec,
    /// Outcomes that wait to be reported or to be flushed.
    pub reports_pending: IntGaugeVec,
    /// Those of them that a kill takes along.
    pub reports_gathered: IntGaugeVec,
    /// Outcomes that could not be kept.
    pub reports_lost: IntCounter,
    spans: IntCounterVec,
    /// Event loops by the source that decides for them.
    pub source: IntGaugeVec,
    /// Age of the last known good image, in seconds; absent without one.
    pub image_age: GaugeVec,
    /// Decisions that a source other than Postgres made in its place.
    pub fallbacks: IntCounterVec,
    /// Reconnections.
    pub reconnects: IntCounterVec,
    /// Whether NATS is connected.
    pub nats_connected: IntGauge,
    /// Whether Postgres is connected.
    pub postgres_connected: IntGauge,
    /// Messages that the client library dropped.
    pub dropped: IntCounter,
    /// Calls queued in SQL that this bridge has taken up, by what became of them.
    pub queued: IntCounterVec,
    /// Whether this bridge shows the series that describe the registry.
    pub leader: IntGauge,
    /// Health checks of instances.
    pub probes: IntCounterVec,
    /// Services that registered themselves, went, or may not.
    pub discovered: IntCounterVec,
}

struct Builder {
    registry: Registry,
    heads: Vec<Head>,
}

impl Builder {
    fn add<C: Collector + Clone + 'static>(&mut self, kind: &'static str, metric: prometheus::Result<C>) -> C {
        match metric.and_then(|metric| self.registry.register(Box::new(metric.clone())).map(|()| metric)) {
            Ok(metric) => {
                for desc in metric.desc() {
                    self.heads.push(Head {
                        name: desc.fq_name.clone(),
                        help: desc.help.clone(),
                        kind,
                    });
                }
                metric
            }
            Err(error) => unreachable!("a metric is declared wrongly: {error}"),
        }
    }

    fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add("counter", IntCounter::new(name, help))
    }

    fn counters(&mut self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add("counter", IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add("gauge", IntGauge::new(name, help))
    }

    fn gauges(&mut self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn floats(&mut self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add("gauge", GaugeVec::new(Opts::new(name, help), labels))
    }
}

impl Metrics {
    /// Registers everything. With `tenant_label`, invocations carry `tenant_id`.
    pub fn new(tenant_label: bool) -> Arc<Self> {
        let mut b = Builder {
            registry: Registry::new(),
            heads: Vec::new(),
        };
        let labels: &[&str] = if tenant_label {
            &["extension_id", "type", "status", "tenant_id"]
        } else {
            &["extension_id", "type", "status"]
        };
        let latency = HistogramOpts::new(
            "router_extension_invocation_latency_ms",
            "Latency of attempts in milliseconds, timeouts included",
        )
        .buckets(LATENCY_BUCKETS.to_vec());
        let sizes = HistogramOpts::new("ext_bridge_batch_size", "Members of a batch sent to Postgres")
            .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]);
        #[cfg(target_os = "linux")]
        if let Err(error) = b
            .registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        {
            tracing::warn!(%error, "no metrics of the process");
        }
        let replies = b.counters(
            "ext_bridge_replies_total",
            "Replies to callers by code, ok included",
            &["code"],
        );
        let metrics = Self {
            tenant_label,
            invocations: b.counters(
                "router_extension_invocation_total",
                "Attempts sent to extensions, by outcome",
                labels,
            ),
            latency: b.add("histogram", HistogramVec::new(latency, &["extension_id", "type"])),
            retries: b.counters(
                "router_extension_retries_total",
                "Calls by the number of retries they took",
                &["extension_id", "retry_count"],
            ),
            versions: b.counters(
                "router_extension_version_invocation_total",
                "Attempts sent to extensions, by version and outcome",
                &["extension_id", "version", "status"],
            ),
            selections: b.counters(
                "router_extension_load_balancer_selection_total",
                "Selections of instances",
                &["extension_id", "instance_id", "algorithm"],
            ),
            breaker_state: b.gauges(
                "router_extension_circuit_breaker_state",
                "Circuit breaker by its present state: 0 closed, 1 half_open, 2 open",
                &["extension_id", "state"],
            ),
            breaker_opened: b.counters(
                "router_extension_circuit_breaker_opened_total",
                "Openings of circuit breakers since the bridge started",
                &["extension_id"],
            ),
            openings: Mutex::default(),
            success_rate: b.floats(
                "router_extension_health_success_rate",
                "Share of successes over the last 5 minutes; absent without calls",
                &["extension_id"],
            ),
            latency_p95: b.floats(
                "router_extension_health_latency_p95_ms",
                "95th percentile of latency over the last 5 minutes in milliseconds; absent without calls",
                &["extension_id"],
            ),
            extensions: b.gauges(
                "router_extension_registry_extensions_total",
                "Registered extensions",
                &["source", "type"],
            ),
            syncs: b.counters(
                "router_extension_registry_sync_total",
                "Reloads of the registry",
                &["status"],
            ),
            instance_health: b.gauges(
                "router_extension_instance_health",
                "1 for the present health status of an instance",
                &["extension_id", "instance_id", "health_status"],
            ),
            refused: b.counters(
                "ext_bridge_refused_total",
                "Calls, attempts and admin operations that were refused, given up or not sent",
                &["reason"],
            ),
            late_replies: b.counter(
                "ext_bridge_late_replies_total",
                "Replies of services that nobody waited for any more",
            ),
            in_flight: b.gauges(
                "ext_bridge_in_flight",
                "Requests, pipelines and their calls under way",
                &["loop"],
            ),
            in_flight_limit: b.gauges(
                "ext_bridge_in_flight_limit",
                "The most requests, pipelines and their calls that may be under way; beyond it requests are refused as overloaded",
                &["loop"],
            ),
            in_flight_bytes: b.gauges("ext_bridge_in_flight_bytes", "Bytes of requests under way", &["loop"]),
            in_flight_bytes_limit: b.gauges(
                "ext_bridge_in_flight_limit_bytes",
                "The most bytes of requests that may be under way; beyond it requests are refused as overloaded",
                &["loop"],
            ),
            batch_size: b.add("histogram", HistogramVec::new(sizes, &["kind"])),
            batch_failures: b.counters(
                "ext_bridge_batch_failures_total",
                "Batches that failed or went unanswered",
                &["kind"],
            ),
            reports_pending: b.gauges(
                "ext_bridge_reports_pending",
                "Outcomes not yet applied or not yet flushed by Postgres",
                &["loop"],
            ),
            reports_gathered: b.gauges(
                "ext_bridge_reports_gathered",
                "Of the pending ones those gathered without Postgres or its tickets, in memory only: a kill loses them",
                &["loop"],
            ),
            reports_lost: b.counter(
                "ext_bridge_reports_lost_total",
                "Outcomes given up because too many were waiting",
            ),
            source: b.gauges(
                "ext_bridge_source",
                "Event loops by the source that decides for them now",
                &["source"],
            ),
            image_age: b.floats(
                "ext_bridge_image_age_seconds",
                "Time since Postgres last confirmed the kept image of the registry; absent without one",
                &[],
            ),
            fallbacks: b.counters(
                "ext_bridge_fallback_decisions_total",
                "Decisions made in the place of Postgres, by the source that made them",
                &["source"],
            ),
            reconnects: b.counters("ext_bridge_reconnects_total", "Reconnections", &["to"]),
            nats_connected: b.gauge("ext_bridge_nats_connected", "Connections to NATS that stand"),
            postgres_connected: b.gauge("ext_bridge_postgres_connected", "Connections to Postgres that stand"),
            dropped: b.counter(
                "ext_bridge_dropped_messages_total",
                "Messages dropped because the bridge was too slow",
            ),
            queued: b.counters(
                "ext_bridge_queued_calls_total",
                "Calls queued in SQL that this bridge took up: done, failed, given back, or taken over by another",
                &["state"],
            ),
            leader: b.gauge(
                "ext_bridge_registry_series",
                "1 where this bridge shows the series that describe the registry in Postgres, for all bridges",
            ),
            probes: b.counters(
                "ext_bridge_probes_total",
                "Health checks of instances by result: healthy, failed, unknown (no way to ask is known), inconclusive (silence that NATS may be to blame for)",
                &["result"],
            ),
            discovered: b.counters(
                "ext_bridge_discovered_total",
                "Services that speak NATS micro by what became of them: registered as an instance, removed, refused (told once)",
                &["action"],
            ),
            spans: b.counters(
                "ext_bridge_spans_total",
                "OpenTelemetry spans: exported, failed (the collector did not take them), dropped (it was too slow)",
                &["result"],
            ),
            replies_ok: replies.with_label_values(&["ok"]),
            replies,
            registry: Registry::new(),
            heads: Vec::new(),
        };
        let build = b.gauges("ext_bridge_build_info", "Version of the bridge", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.begin();
        Arc::new(Self {
            registry: b.registry,
            heads: b.heads,
            ..metrics
        })
    }

    /// Shows counters at 0 whose labels are known, so that a rate sees the first event too.
    fn begin(&self) {
        let begin = |counters: &IntCounterVec, words: &[&str]| {
            for word in words {
                counters.with_label_values(&[*word]);
            }
        };
        begin(&self.refused, &REASONS);
        begin(&self.syncs, &["success", "error"]);
        begin(&self.reconnects, &["nats", "postgres"]);
        begin(&self.batch_failures, &["decide", "report", "merge"]);
        begin(&self.fallbacks, &["image", "fixtures"]);
        begin(&self.queued, &["done", "failed", "given_back", "lost"]);
        begin(&self.probes, &["healthy", "failed", "unknown", "inconclusive"]);
        begin(&self.discovered, &["registered", "removed", "refused"]);
        for source in ["database", "image", "fixtures"] {
            self.source.with_label_values(&[source]);
        }
    }

    /// The text format, with HELP and TYPE also for metrics without series.
    pub fn render(&self) -> String {
        let families = self.registry.gather();
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut out) {
            tracing::error!(%error, "cannot encode the metrics");
        }
        let mut text = String::from_utf8(out).unwrap_or_default();
        for head in &self.heads {
            if !families.iter().any(|family| family.name() == head.name) {
                let Head { name, help, kind } = head;
                let _ = writeln!(
                    text,
                    "# HELP {name} {help}
# TYPE {name} {kind}"
                ); // a String takes anything
            }
        }
        text
    }

    /// Counts spans by what became of them.
    pub fn spans(&self, result: &'static str, count: u64) {
        self.spans.with_label_values(&[result]).inc_by(count);
    }

    /// Counts a refusal. Only fixed words may be reasons.
    pub fn refused(&self, reason: &'static str) {
        debug_assert!(REASONS.contains(&reason), "{reason} is a new reason");
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts a reply to a caller.
    pub fn replies(&self, code: &'static str) {
        self.replies.with_label_values(&[code]).inc();
    }

    /// Counts openings of an extension's breakers. [`Metrics::show_openings`] shows them.
    pub fn opened(&self, id: &str, times: u64) {
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        *openings.entry(id.to_owned()).or_default() += times;
    }

    /// Shows the openings of these extensions, and of no others.
    pub fn show_openings<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        self.breaker_opened.reset();
        for id in ids {
            let times = openings.get(id).copied().unwrap_or_default();
            self.breaker_opened.with_label_values(&[id]).inc_by(times);
        }
    }

    /// Shows none of the series that describe the registry.
    pub fn hide_registry(&self) {
        self.extensions.reset();
        self.breaker_state.reset();
        self.breaker_opened.reset();
        self.success_rate.reset();
        self.latency_p95.reset();
        self.instance_health.reset();
        self.leader.set(0);
    }

    /// The series of one registered extension.
    pub fn extension(self: &Arc<Self>, id: &str, kind: &str) -> ExtensionMetrics {
        let mut attempts = HashMap::new();
        if !self.tenant_label {
            let counter = |status| self.invocations.with_label_values(&[id, kind, status]);
            attempts.extend(STATUSES.map(|status| (status, counter(status))));
        }
        ExtensionMetrics {
            metrics: Arc::clone(self),
            id: id.to_owned(),
            kind: kind.to_owned(),
            latency: self.latency.with_label_values(&[id, kind]),
            attempts,
            versions: HashMap::new(),
            retries: Vec::new(),
            selections: HashMap::new(),
        }
    }
}

/// Handles of one extension's series, so that counting an attempt looks nothing up by label.
pub struct ExtensionMetrics {
    metrics: Arc<Metrics>,
    id: String,
    kind: String,
    latency: Histogram,
    attempts: HashMap<&'static str, IntCounter>,
    versions: HashMap<String, HashMap<&'static str, IntCounter>>,
    retries: Vec<IntCounter>,
    selections: HashMap<String, (String, IntCounter)>,
}

impl ExtensionMetrics {
    /// Counts an attempt that was sent.
    pub fn attempt(&mut self, version: &str, status: &'static str, tenant: Option<&str>, latency_ms: f64) {
        self.latency.observe(latency_ms);
        let all = &self.metrics;
        if all.tenant_label {
            all.invocations
                .with_label_values(&[&self.id, &self.kind, status, tenant.unwrap_or_default()])
                .inc();
        } else if let Some(counter) = self.attempts.get(status) {
            counter.inc();
        }
        if !self.versions.contains_key(version) {
            let counter = |status| all.versions.with_label_values(&[self.id.as_str(), version, status]);
            let counters = STATUSES.map(|status| (status, counter(status)));
            self.versions.insert(version.to_owned(), counters.into());
        }
        if let Some(counter) = self.versions.get(version).and_then(|counters| counters.get(status)) {
            counter.inc();
        }
    }

    /// Counts a call that has ended, by its retries.
    pub fn call(&mut self, retries: u32) {
        while self.retries.len() <= retries as usize {
            let count = self.retries.len().to_string();
            self.retries
                .push(self.metrics.retries.with_label_values(&[self.id.as_str(), &count]));
        }
        self.retries[retries as usize].inc();
    }

    /// Counts the selection of an instance. Unknown yet, the algorithm is the default one.
    pub fn selected(&mut self, instance: &str, algorithm: &str) {
        let algorithm = if algorithm.is_empty() {
            "weighted_round_robin"
        } else {
            algorithm
        };
        match self.selections.get(instance) {
            Some((known, counter)) if known == algorithm => counter.inc(),
            _ => {
                let counter = self
                    .metrics
                    .selections
                    .with_label_values(&[self.id.as_str(), instance, algorithm]);
                counter.inc();
                self.selections
                    .insert(instance.to_owned(), (algorithm.to_owned(), counter));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_before_anything_happened_and_once() {
        let metrics = Metrics::new(false);
        let names = [
            "router_extension_invocation_total",
            "router_extension_invocation_latency_ms",
            "router_extension_retries_total",
            "router_extension_circuit_breaker_state",
            "router_extension_circuit_breaker_opened_total",
            "router_extension_health_success_rate",
            "router_extension_health_latency_p95_ms",
            "router_extension_registry_extensions_total",
            "router_extension_registry_sync_total",
            "router_extension_instance_health",
            "router_extension_version_invocation_total",
            "router_extension_load_balancer_selection_total",
            "ext_bridge_refused_total",
            "ext_bridge_build_info",
        ];
        let check = |text: &str| {
            for name in names {
                for head in ["HELP", "TYPE"] {
                    assert_eq!(text.matches(&format!("# {head} {name} ")).count(), 1, "{head} {name}");
                }
            }
        };
        check(&metrics.render());
        let mut extension = metrics.extension("a", "pre");
        extension.attempt("v1", "success", None, 12.0);
        extension.call(1);
        extension.selected("i", "");
        let text = metrics.render();
        check(&text);
        assert!(text.contains(r#"router_extension_invocation_total{extension_id="a",status="success",type="pre"} 1"#));
        assert!(
            text.contains(r#"router_extension_invocation_latency_ms_bucket{extension_id="a",type="pre",le="10"} 0"#)
        );
        assert!(text.contains(r#"router_extension_retries_total{extension_id="a",retry_count="1"} 1"#));
    }

    #[test]
    fn openings_are_counted_for_all_and_shown_of_those_that_are_asked_for() {
        let metrics = Metrics::new(false);
        metrics.opened("a", 2);
        metrics.opened("gone", 1);
        let shown = |metrics: &Metrics| {
            let text = metrics.render();
            let series = text
                .lines()
                .filter(|line| line.starts_with("router_extension_circuit_breaker_opened_total"));
            series
                .map(|line| line.rsplit_once('{').unwrap().1.to_owned())
                .collect::<Vec<_>>()
        };
        assert!(shown(&metrics).is_empty());
        metrics.show_openings(["a", "b"].into_iter());
        assert_eq!(shown(&metrics), [r#"extension_id="a"} 2"#, r#"extension_id="b"} 0"#]);
        metrics.hide_registry();
        assert!(shown(&metrics).is_empty());
        metrics.opened("a", 1);
        metrics.show_openings(["a"].into_iter());
        assert_eq!(
            shown(&metrics),
            [r#"extension_id="a"} 3"#],
            "it goes on from where it was"
        );
    }
}
