//! OpenTelemetry: spans reach a collector, services are told where they belong, and a collector that is gone stops nothing.

use std::time::Duration;

use async_nats::HeaderMap;
use ext_registry_tests::python::Program;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, eventually, ports, wait_until};
use futures_util::StreamExt;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A collector: prints each span that it is sent as a line of JSON.
const COLLECTOR: &str = r#"
import json, sys, grpc
from concurrent import futures
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages, trace_service_pb2_grpc as service

def plain(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}

class Collector(service.TraceServiceServicer):
    def Export(self, request, context):
        for of_resource in request.resource_spans:
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    print("SPAN " + json.dumps({
                        "resource": plain(of_resource.resource.attributes), "scope": of_scope.scope.name,
                        "name": span.name, "kind": span.kind, "trace": span.trace_id.hex(), "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(), "state": span.trace_state,
                        "start": span.start_time_unix_nano, "end": span.end_time_unix_nano,
                        "attributes": plain(span.attributes), "status": [span.status.code, span.status.message],
                        "events": [[e.name, plain(e.attributes)] for e in span.events]}))
        return messages.ExportTraceServiceResponse()

server = grpc.server(futures.ThreadPoolExecutor(4))
service.add_TraceServiceServicer_to_server(Collector(), server)
assert server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
print("ready")
server.wait_for_termination()
"#;

struct Collector {
    program: Program,
    endpoint: String,
}

impl Collector {
    fn start() -> Self {
        Self::start_at(ports::free())
    }

    fn start_at(port: u16) -> Self {
        Self {
            program: Program::start_in("otlp", COLLECTOR, &[&port.to_string()]),
            endpoint: format!("http://127.0.0.1:{port}"),
        }
    }

    fn spans(&self) -> Vec<Value> {
        let log = self.program.log();
        let complete = log.rfind('\n').map_or("", |end| &log[..end]);
        let lines = complete.lines().filter_map(|line| line.strip_prefix("SPAN "));
        lines.map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits for so many; there may be no more.
    fn await_spans(&self, count: usize) -> Vec<Value> {
        wait_until("the spans reach the collector", SOON, || self.spans().len() >= count);
        let spans = self.spans();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }
}

fn incoming(flags: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-{SPAN}-{flags}"));
    headers.insert("tracestate", "vendor=1");
    headers
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_nanos() as u64
}

#[tokio::test]
async fn a_call_is_a_span_of_the_trace_it_came_with() {
    let nats = Nats::start();
    let collector = Collector::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let session = database.connect().await;
    session
        .run("update extensions set timeout_ms = 300, retry = 1 where id = 'normalize_text'")
        .await;
    let caller = Caller::new(&nats).await;
    // The first attempt gets no answer.
    let mut service = caller
        .client()
        .subscribe("beamline.ext.pre.normalize_text.v1")
        .await
        .expect("subscribed");
    caller.client().flush().await.expect("a connection");
    let bridge = Bridge::start(&nats, &database, &["--otlp-endpoint", &collector.endpoint]);
    let began = now_ns();
    let call = async |flags: &str| {
        let body = json!({"payload": {"text": "x"}, "tenant_id": "t1", "request_id": "r1"}).to_string();
        let subject = "beamline.bridge.v1.invoke.normalize_text";
        let reply = caller
            .client()
            .request_with_headers(subject, incoming(flags), body.into());
        reply.await.expect("an answer")
    };
    let serve = async |ignored: usize| {
        let mut told = Vec::new();
        for _ in 0..=ignored {
            let request = service.next().await.expect("a request");
            let headers = request.headers.expect("headers");
            assert_eq!(
                headers.get("tracestate").map(async_nats::HeaderValue::as_str),
                Some("vendor=1")
            );
            told.push((
                headers.get("traceparent").expect("a trace").to_string(),
                request.reply.expect("an inbox"),
            ));
        }
        let inbox = told[ignored].1.clone();
        caller.client().publish(inbox, "{}".into()).await.expect("sent");
        (told, service)
    };
    let (_, (told, mut service)) = tokio::join!(call("01"), serve(1));
    assert_eq!(told[0].0, told[1].0, "attempts of one call belong to one span");
    let span = &collector.await_spans(1)[0];
    let id = span["span"].as_str().expect("an id");
    assert_eq!(told[0].0, format!("00-{TRACE}-{id}-01"));
    assert_ne!(id, SPAN);
    assert_eq!(
        (
            &span["name"],
            &span["kind"],
            &span["trace"],
            &span["parent"],
            &span["state"]
        ),
        (
            &json!("router.extension.invoke"),
            &json!(3),
            &json!(TRACE),
            &json!(SPAN),
            &json!("vendor=1")
        )
    );
    assert_eq!(span["status"], json!([0, ""]));
    let attributes = &span["attributes"];
    for (key, value) in [
        ("extension.id", json!("normalize_text")),
        ("extension.type", json!("pre")),
        ("extension.subject", json!("beamline.ext.pre.normalize_text.v1")),
        ("extension.version", json!("v1")),
        ("extension.status", json!("success")),
        ("extension.retries_used", json!(1)),
        ("lookup.source", json!("database")),
        ("tenant.id", json!("t1")),
        ("request.id", json!("r1")),
    ] {
        assert_eq!(attributes[key], value, "{key}: {attributes}");
    }
    let statuses: Vec<&Value> = span["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|event| &event[1]["extension.status"])
        .collect();
    assert_eq!(statuses, ["timeout", "success"]);
    let (start, end) = (span["start"].as_u64().expect("ns"), span["end"].as_u64().expect("ns"));
    assert!(
        began <= start && start + 300_000_000 <= end && end <= now_ns(),
        "{began} {start} {end}"
    );
    assert_eq!(span["resource"]["service.name"], "ext-bridge");

    // Who began this trace does not want it recorded: it goes on as it came.
    let serve = async {
        let request = service.next().await.expect("a request");
        caller
            .client()
            .publish(request.reply.expect("an inbox"), "{}".into())
            .await
            .expect("sent");
        request
            .headers
            .expect("headers")
            .get("traceparent")
            .expect("a trace")
            .to_string()
    };
    let (_, told) = tokio::join!(call("00"), serve);
    assert_eq!(told, format!("00-{TRACE}-{SPAN}-00"));

    // A refusal is a span too; it is the next one.
    let reply = caller.invoke("no_such_thing", &json!({"payload": {}})).await;
    assert_eq!(reply.error(), Some(("extension_not_found", 404)));
    let span = &collector.await_spans(2)[1];
    assert_eq!((&span["parent"], &span["status"][0]), (&json!(""), &json!(2)), "{span}");
    assert_eq!(span["attributes"]["error.type"], "extension_not_found");
    assert_eq!(span["attributes"]["extension.status"], "not_sent");
    eventually(SOON, async || {
        match bridge.metric(r#"ext_bridge_spans_total{result="exported"}"#) {
            Some(2.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_pipeline_is_a_tree_and_the_end_of_the_bridge_loses_none_of_it() {
    let nats = Nats::start();
    let collector = Collector::start();
    let _services = Services::start(&nats, &[]).await;
    let mut bridge = Bridge::start_on_fixtures(&nats, &["--otlp-endpoint", &collector.endpoint]);
    let caller = Caller::new(&nats).await;
    let message = json!({"tenant_id": "default", "policy_id": "full", "message": {"payload": "hello"}});
    let reply = caller.route(&message).await;
    assert_eq!(reply.error(), None, "{reply:?}");
    // At once: the spans still wait for others.
    assert!(bridge.terminate().success());
    let spans = collector.spans();
    let root = spans
        .iter()
        .find(|span| span["name"] == "router.route")
        .unwrap_or_else(|| panic!("{spans:#?}"));
    assert_eq!((&root["kind"], &root["parent"]), (&json!(2), &json!("")));
    let mut called: Vec<&str> = Vec::new();
    for span in spans.iter().filter(|span| span["name"] == "router.extension.invoke") {
        assert_eq!((&span["trace"], &span["parent"]), (&root["trace"], &root["span"]));
        assert!(root["start"].as_u64() <= span["start"].as_u64() && span["end"].as_u64() <= root["end"].as_u64());
        assert_eq!(span["attributes"]["lookup.source"], "bridge");
        called.push(span["attributes"]["extension.id"].as_str().expect("an id"));
    }
    let executed = reply.body["executed_extensions"].as_array().expect("a list");
    let executed: Vec<&str> = executed
        .iter()
        .map(|entry| entry["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(called, executed);
    assert_eq!(spans.len(), called.len() + 1);
}

#[tokio::test]
async fn without_its_collector_calls_go_on() {
    let nats = Nats::start();
    let _services = Services::start(&nats, &[]).await;
    let port = ports::free();
    let endpoint = format!("http://127.0.0.1:{port}");
    let bridge = Bridge::start_on_fixtures(&nats, &["--otlp-endpoint", &endpoint]);
    let caller = Caller::new(&nats).await;
    let call = async || {
        caller
            .invoke("normalize_text", &json!({"payload": {"text": "x"}}))
            .await
    };
    assert_eq!(call().await.error(), None);
    wait_until("a failure is counted", SOON, || {
        bridge.metric(r#"ext_bridge_spans_total{result="failed"}"#) == Some(1.0)
    });
    assert_eq!(call().await.error(), None);
    wait_until("the next one as well", SOON, || {
        bridge.metric(r#"ext_bridge_spans_total{result="failed"}"#) == Some(2.0)
    });
    assert_eq!(
        bridge.log().matches("does not take spans").count(),
        1,
        "it is said once:\n{}",
        bridge.log()
    );
    let collector = Collector::start_at(port);
    assert_eq!(collector.endpoint, endpoint);
    assert_eq!(call().await.error(), None);
    wait_until("it is taken again", SOON, || {
        bridge.log().contains("spans are taken again")
    });
    assert_eq!(collector.spans().len(), 1);
}

#[test]
fn an_address_that_is_none_ends_the_start() {
    let nats = Nats::start();
    for address in [
        "collector",
        "collector:4317",
        "http://",
        "ftp://collector",
        "http://a b",
    ] {
        let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--otlp-endpoint", address]);
        assert_eq!(code, Some(2), "{address}: {said}");
        assert!(
            said.contains(&format!("otlp-endpoint: \"{address}\"")) && said.contains("http://127.0.0.1:4317"),
            "{address}: {said}"
        );
    }
    let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--otlp-share", "1.5"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("otlp-share: \"1.5\""), "{said}");
}
