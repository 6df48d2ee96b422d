//! Spans on their way to an OpenTelemetry collector, by OTLP over gRPC.
//!
//! Promises: no call waits for a collector. Spans are handed over through a bounded queue; what finds it full is dropped and
//! counted, and so is what the collector does not take. Headers, timeout and attributes of the process come from the variables
//! `OTEL_*`.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Event, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::ClientTlsConfig;

use crate::exit::{self, Exit};
use crate::machine::contract::Kind;
use crate::machine::trace::{Attempt, Recorded, What};
use crate::metrics::Metrics;

/// Most spans that wait.
const WAITING: usize = 4096;
/// Most spans in one message.
const BATCH: usize = 512;
/// A span waits at most so long for others.
const LINGER: Duration = Duration::from_secs(1);
/// What is still there at the end is given so long.
const FAREWELL: Duration = Duration::from_secs(5);
/// Between two lines about a collector that does not answer.
const QUIET: Duration = Duration::from_mins(1);

/// A span, with the times of its loop turned into those of the clock.
pub struct Ended {
    /// What was recorded; its times are in microseconds since the loop began.
    pub span: Recorded,
    /// When the loop began.
    pub loop_began: SystemTime,
}

/// The way to the collector.
pub struct Spans {
    /// Where loops hand spans over.
    pub queue: mpsc::Sender<Ended>,
    task: JoinHandle<()>,
}

impl Spans {
    /// Opens the way to the collector at `endpoint`; it is connected to when there is something to send.
    pub fn start(endpoint: &str, metrics: std::sync::Arc<Metrics>) -> Result<Self, Exit> {
        let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        for protocol in protocols.iter().filter_map(|name| std::env::var(name).ok()) {
            if protocol != "grpc" {
                tracing::warn!(protocol, endpoint, "spans go by OTLP over gRPC, whatever OTEL_* say");
            }
        }
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint);
        if endpoint.starts_with("https:") {
            builder = builder.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let mut exporter = builder
            .build()
            .map_err(|e| Exit::new(exit::Kind::Config, format!("otlp-endpoint: \"{endpoint}\": {e}")))?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("ext-bridge");
        }
        exporter.set_resource(&resource.build());
        let (queue, ended) = mpsc::channel(WAITING);
        let task = tokio::spawn(export(exporter, endpoint.to_owned(), ended, metrics));
        Ok(Self { queue, task })
    }

    /// Waits until what loops have handed over is sent, once the loops have ended. Not for long.
    pub async fn end(self) {
        drop(self.queue);
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            tracing::warn!("the last spans did not reach the collector");
        }
    }
}

async fn export(
    exporter: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    ended: mpsc::Receiver<Ended>,
    metrics: std::sync::Arc<Metrics>,
) {
    let scope = InstrumentationScope::builder("ext-bridge")
        .with_version(env!("CARGO_PKG_VERSION"))
        .build();
    let batches = ReceiverStream::new(ended).chunks_timeout(BATCH, LINGER);
    tokio::pin!(batches);
    let mut silent_since: Option<tokio::time::Instant> = None;
    let mut told: Option<tokio::time::Instant> = None;
    while let Some(batch) = batches.next().await {
        let count = batch.len() as u64;
        let batch = batch.iter().map(|ended| span(ended, &scope)).collect();
        match exporter.export(batch).await {
            Ok(()) => {
                metrics.spans("exported", count);
                if silent_since.take().is_some() {
                    tracing::info!(endpoint, "spans are taken again");
                    told = None;
                }
            }
            Err(error) => {
                metrics.spans("failed", count);
                silent_since.get_or_insert_with(tokio::time::Instant::now);
                if told.is_none_or(|at| at.elapsed() > QUIET) {
                    told = Some(tokio::time::Instant::now());
                    tracing::warn!(endpoint, %error, "the collector does not take spans; calls go on");
                }
            }
        }
    }
}

/// As the exporter wants it.
fn span(ended: &Ended, scope: &InstrumentationScope) -> SpanData {
    let Ended { span, loop_began } = ended;
    let time = |us: u64| *loop_began + Duration::from_micros(us);
    let state = span.state.as_deref().and_then(|state| state.parse::<TraceState>().ok());
    let mut attributes: Vec<KeyValue> = Vec::with_capacity(12);
    let mut events = SpanEvents::default();
    let mut put = |key: &'static str, value: Option<&str>| {
        attributes.extend(value.map(|value| KeyValue::new(key, value.to_owned())));
    };
    put("tenant.id", span.tenant_id.as_deref());
    put("policy.id", span.policy_id.as_deref());
    put("request.id", span.request_id.as_deref());
    put("error.type", span.failure.as_ref().map(|(code, _)| *code));
    let (name, span_kind) = match &span.what {
        What::Route { provider } => {
            put("provider.id", provider.as_deref());
            ("router.route", SpanKind::Server)
        }
        What::Invoke {
            extension_id,
            kind,
            recording,
        } => {
            let last = recording.attempts.last();
            put("extension.id", Some(extension_id));
            put("extension.type", kind.map(Kind::as_str));
            put(
                "extension.status",
                Some(last.map_or("not_sent", |last| last.outcome.as_str())),
            );
            put("extension.version", last.map(|last| last.version.as_str()));
            put("extension.instance", last.and_then(|last| last.instance_id.as_deref()));
            if let Some(last) = last {
                put("extension.subject", Some(&recording.subject));
                put(
                    "lookup.source",
                    Some(if recording.local { "bridge" } else { "database" }),
                );
                let retries = recording.attempts.len() as i64 - 1;
                attributes.push(KeyValue::new("extension.retries_used", retries));
                attributes.push(KeyValue::new("extension.latency_ms", ms(last.latency_us)));
                attributes.push(KeyValue::new("lookup.latency_ms", ms(recording.decide_us)));
            }
            // One attempt is the span itself; of several, each is told.
            if recording.attempts.len() > 1 {
                events.events = recording
                    .attempts
                    .iter()
                    .map(|attempt| event(attempt, time(attempt.ended_us)))
                    .collect();
            }
            ("router.extension.invoke", SpanKind::Client)
        }
    };
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(span.trace),
            SpanId::from(span.span),
            TraceFlags::SAMPLED,
            false,
            state.unwrap_or_default(),
        ),
        parent_span_id: SpanId::from(span.parent),
        parent_span_is_remote: span.parent_is_remote,
        span_kind,
        name: name.into(),
        start_time: time(span.times_us.0),
        end_time: time(span.times_us.1),
        attributes,
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status: span
            .failure
            .as_ref()
            .map_or(Status::Unset, |(_, message)| Status::error(message.clone())),
        instrumentation_scope: scope.clone(),
    }
}

fn event(attempt: &Attempt, ended: SystemTime) -> Event {
    let mut attributes = vec![
        KeyValue::new("extension.status", attempt.outcome.as_str()),
        KeyValue::new("extension.version", attempt.version.clone()),
        KeyValue::new("extension.latency_ms", ms(attempt.latency_us)),
    ];
    let instance = attempt.instance_id.clone();
    attributes.extend(instance.map(|instance| KeyValue::new("extension.instance", instance)));
    Event::new("attempt", ended, attributes, 0)
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}
