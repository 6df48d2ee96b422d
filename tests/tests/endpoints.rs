//! What operators' tools read from a bridge: metrics, health over HTTP and gRPC, the NATS micro service.

use std::time::Duration;

use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, eventually, http, python};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// The names that the replaced system's dashboards and alerts use, the planned ones too.
const METRICS: [(&str, &str); 12] = [
    ("router_extension_invocation_total", "counter"),
    ("router_extension_invocation_latency_ms", "histogram"),
    ("router_extension_retries_total", "counter"),
    ("router_extension_circuit_breaker_state", "gauge"),
    ("router_extension_circuit_breaker_opened_total", "counter"),
    ("router_extension_health_success_rate", "gauge"),
    ("router_extension_health_latency_p95_ms", "gauge"),
    ("router_extension_registry_extensions_total", "gauge"),
    ("router_extension_registry_sync_total", "counter"),
    ("router_extension_instance_health", "gauge"),
    ("router_extension_version_invocation_total", "counter"),
    ("router_extension_load_balancer_selection_total", "counter"),
];

#[tokio::test]
async fn metrics_have_the_names_labels_and_values_of_the_dashboards() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let services = Services::start(&nats, &["a"]).await;
    let bridge = Bridge::start(&nats, &database, &[]);
    let metrics = bridge.metrics();
    for (name, kind) in METRICS {
        assert!(
            metrics.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} before the first call:\n{metrics}"
        );
        assert!(
            metrics.contains(&format!("# HELP {name} ")),
            "{name} before the first call"
        );
    }

    let session = database.connect().await;
    session
        .run(
            "update extensions set timeout_ms = 5000;
             insert into extension_instances (extension_id, instance_id, subject, version, health_status)
             values ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.v1.a', 'v1', 'degraded')",
        )
        .await;
    let caller = Caller::new(&nats).await;
    let call = async |extension: &str| caller.invoke(extension, &json!({ "payload": { "text": "x" } })).await;
    for _ in 0..3 {
        assert_eq!(call("normalize_text").await.error(), None);
    }
    services.set("pii_guard", "error").await;
    for _ in 0..5 {
        call("pii_guard").await;
    }
    // Reports travel behind the replies: a call before the last of them has arrived would be one more.
    eventually(SOON, async || match session.breaker("pii_guard").await.as_str() {
        "open" => Ok(()),
        state => Err(state.to_owned()),
    })
    .await;
    // Refused: counted as such, not as an invocation. Unknown: never a label.
    assert_eq!(call("pii_guard").await.error(), Some(("extension_unavailable", 503)));
    assert_eq!(call("no_such_thing").await.error(), Some(("extension_not_found", 404)));

    let expected = [
        (
            r#"router_extension_invocation_total{extension_id="normalize_text",status="success",type="pre"}"#,
            3.0,
        ),
        (
            r#"router_extension_invocation_total{extension_id="pii_guard",status="error",type="validator"}"#,
            5.0,
        ),
        (
            r#"router_extension_invocation_latency_ms_count{extension_id="normalize_text",type="pre"}"#,
            3.0,
        ),
        (
            r#"router_extension_retries_total{extension_id="normalize_text",retry_count="0"}"#,
            3.0,
        ),
        (
            r#"router_extension_circuit_breaker_state{extension_id="pii_guard",state="open"}"#,
            2.0,
        ),
        (
            r#"router_extension_circuit_breaker_state{extension_id="normalize_text",state="closed"}"#,
            0.0,
        ),
        (
            r#"router_extension_circuit_breaker_opened_total{extension_id="pii_guard"}"#,
            1.0,
        ),
        (
            r#"router_extension_health_success_rate{extension_id="normalize_text"}"#,
            1.0,
        ),
        (r#"router_extension_health_success_rate{extension_id="pii_guard"}"#, 0.0),
        (
            r#"router_extension_registry_extensions_total{source="database",type="pre"}"#,
            1.0,
        ),
        (
            r#"router_extension_instance_health{extension_id="normalize_text",health_status="degraded",instance_id="a"}"#,
            1.0,
        ),
        (
            r#"router_extension_load_balancer_selection_total{algorithm="weighted_round_robin",extension_id="normalize_text",instance_id="a"}"#,
            3.0,
        ),
        (
            r#"router_extension_version_invocation_total{extension_id="normalize_text",status="success",version="v1"}"#,
            3.0,
        ),
    ];
    // Series that describe the registry are at most a second old.
    eventually(SOON, async || {
        let amiss: Vec<_> = expected
            .iter()
            .map(|(series, value)| (*series, *value, bridge.metric(series)))
            .filter(|(_, value, got)| *got != Some(*value))
            .collect();
        if amiss.is_empty() {
            Ok(())
        } else {
            Err(format!("{amiss:#?}"))
        }
    })
    .await;
    let metrics = bridge.metrics();
    for bucket in ["10", "25", "50", "100", "200", "500", "1000", "+Inf"] {
        let series = format!(
            r#"router_extension_invocation_latency_ms_bucket{{extension_id="normalize_text",type="pre",le="{bucket}"}}"#
        );
        assert!(metrics.contains(&series), "{series}:\n{metrics}");
    }
    assert!(!metrics.contains("no_such_thing"), "{metrics}");
    assert!(
        !metrics.contains(r#"router_extension_health_success_rate{extension_id="mask_pii"}"#),
        "no data, no series"
    );
}

#[tokio::test]
async fn grpc_health_and_the_validators_health_with_its_key() {
    const CLIENT: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
def call(method, metadata=()):
    try:
        return channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name.encode()
print(call("/grpc.health.v1.Health/Check"))
validators = "/beamline.flow.v1.RouterAdmin/GetValidatorsHealth"
print(call(validators))
print(call(validators, [("x-api-key", "wrong")]))
print(call(validators, [("x-api-key", "secret")]))
"#;
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let bridge = Bridge::start(&nats, &database, &["--api-key", "secret"]);
    let printed = python::run("grpcio", CLIENT, &[&bridge.grpc().to_string()]);
    let lines: Vec<&str> = printed.lines().collect();
    // Field 1, a varint: SERVING.
    assert_eq!(lines[0], r"b'\x08\x01'");
    assert_eq!(lines[1..3], ["b'UNAUTHENTICATED'"; 2]);
    for part in ["grpc_health", "serving", "pii_guard"] {
        assert!(lines[3].contains(part), "{part} is not in {}", lines[3]);
    }
}

#[tokio::test]
async fn it_is_a_micro_service_and_says_when_it_is_ready() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let bridge = Bridge::start(&nats, &database, &[]);
    let caller = Caller::new(&nats).await;
    let ping = caller.send("$SRV.PING.ext-bridge", Vec::new()).await;
    assert_eq!(
        (&ping.body["name"], &ping.body["type"]),
        (&json!("ext-bridge"), &json!("io.nats.micro.v1.ping_response"))
    );
    let info = caller.send("$SRV.INFO.ext-bridge", Vec::new()).await;
    let subjects: Vec<&Value> = info.body["endpoints"]
        .as_array()
        .expect("endpoints")
        .iter()
        .map(|endpoint| &endpoint["subject"])
        .collect();
    assert!(subjects.contains(&&json!("beamline.bridge.v1.route")), "{subjects:?}");

    assert_eq!(http::get(bridge.http(), "/healthz").expect("it listens").0, 200);
    assert_eq!(http::get(bridge.http(), "/nothing").expect("it listens").0, 404);
}
