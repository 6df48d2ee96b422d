//! gRPC as operators use it: the call of the replaced system's runbook with its own tool, health, reflection.
#![cfg(target_arch = "x86_64")] // what scripts/requirements/grpcurl.txt has

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, Shutdown, eventually, python};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// As it stands in the runbook.
const CALL: &str = r#"grpcurl -plaintext -H "x-api-key: YOUR_API_KEY" \
  -d '{}' \
  localhost:9000 beamline.flow.v1.RouterAdmin/GetValidatorsHealth"#;

/// What a command does in which `grpcurl` is ours.
fn typed(command: &str) -> Output {
    let tool = python::interpreter("grpcurl");
    let folder = tool.parent().expect("a path").display();
    Command::new("bash")
        .arg("-c")
        .arg(format!("PATH={folder}:$PATH; {command}"))
        .output()
        .expect("bash can be started")
}

/// The runbook's call of this bridge with this key: what it prints, or what it is refused with.
fn validators(bridge: &Bridge, key: &str) -> Result<Value, String> {
    let address = format!("localhost:{}", bridge.grpc().port());
    let output = typed(&CALL.replace("localhost:9000", &address).replace("YOUR_API_KEY", key));
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("it prints JSON"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Name, status, breaker and version of each entry, in order of their names, the daemon's own first.
fn states(answer: &Value) -> Vec<[&str; 4]> {
    let entries = answer["validators"].as_array().expect("a list");
    let word = |value: &'_ Value| value.as_str().unwrap_or("-").to_owned().leak() as &str;
    let state = |entry: &Value| {
        let details = &entry["details"];
        [
            &entry["name"],
            &entry["status"],
            &details["circuit_breaker_state"],
            &details["version"],
        ]
        .map(word)
    };
    let mut states: Vec<_> = entries.iter().map(state).collect();
    states[1..].sort_unstable();
    states
}

fn now_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_millis()
}

fn health(address: SocketAddr, service: &str) -> String {
    let request = json!({ "service": service });
    let output = typed(&format!(
        "grpcurl -plaintext -d '{request}' {address} grpc.health.v1.Health/Check"
    ));
    let said = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    String::from_utf8(said).expect("UTF-8")
}

#[tokio::test]
async fn the_runbooks_call_tells_the_truth_of_each_validator() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    database.run(
        "insert into extensions (id, type, subject, enabled, version) values
             ('broken', 'validator', 'beamline.ext.validate.broken.v3', true, 'v3'),
             ('off', 'validator', 'beamline.ext.validate.off.v1', false, 'v1'),
             ('trying', 'validator', 'beamline.ext.validate.trying.v1', true, 'v1');
         update extension_health set circuit_breaker_timeout_seconds = 1 where extension_id = 'trying'",
    );
    let session = database.connect().await;
    let bridge = Bridge::start(&nats, &database, &["--api-key", "secret"]);
    session.call("pii_guard", &json!({}), "success", 3).await;
    session.call("pii_guard", &json!({}), "error", 1).await;
    session.call("broken", &json!({}), "timeout", 5).await;
    session.call("trying", &json!({}), "error", 5).await;
    eventually(SOON, async || {
        session.select("trying", &json!({})).await;
        match session.breaker("trying").await.as_str() {
            "half_open" => Ok(()),
            state => Err(state.to_owned()),
        }
    })
    .await;

    let before = now_ms();
    let answer = validators(&bridge, "secret").expect("the key fits");
    assert_eq!(
        states(&answer),
        [
            ["grpc_health", "serving", "-", "-"],
            ["broken", "not_serving", "open", "v3"],
            ["off", "disabled", "closed", "v1"],
            ["pii_guard", "serving", "closed", "v1"],
            ["trying", "recovering", "half_open", "v1"],
        ]
    );
    for entry in answer["validators"].as_array().expect("a list") {
        // JSON of protocol buffers has 64-bit numbers as strings.
        let at: u128 = entry["timestamp_ms"]
            .as_str()
            .expect("a number")
            .parse()
            .expect("a number");
        assert!((before..=now_ms()).contains(&at), "{entry}");
        let details = &entry["details"];
        match entry["name"].as_str() {
            Some("pii_guard") => {
                assert_eq!(details["success_rate"], "0.7500");
                assert_eq!(details["p95_latency_ms"], "7.000");
            }
            Some("off" | "grpc_health") => assert_eq!(details["success_rate"], Value::Null, "no calls, no rate"),
            _ => assert_eq!(details["success_rate"], "0.0000"),
        }
    }

    for key in ["wrong", "", "secretly", "secre"] {
        let refused = validators(&bridge, key).expect_err("the key does not fit");
        assert!(refused.contains("Code: Unauthenticated"), "{key}: {refused}");
        assert!(!refused.contains("pii_guard"), "{refused}");
    }
    let refused = r#"ext_bridge_refused_total{reason="unauthorized"}"#;
    assert_eq!(bridge.metric(refused), Some(4.0));
    let without = CALL.replace("-H \"x-api-key: YOUR_API_KEY\"", "");
    let output = typed(&without.replace("localhost:9000", &bridge.grpc().to_string()));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Code: Unauthenticated"),
        "{output:?}"
    );
    // Where no key is configured, none fits.
    let keyless = Bridge::start(&nats, &database, &[]);
    for key in ["", "secret"] {
        let refused = validators(&keyless, key).expect_err("there is none");
        assert!(refused.contains("Code: Unauthenticated"), "{key}: {refused}");
    }
}

#[tokio::test]
async fn without_postgres_it_is_what_the_bridge_has_seen_itself() {
    let nats = Nats::start();
    let folder = Directory::new("fixtures-", None);
    let extensions = folder.path().join("extensions");
    std::fs::create_dir(&extensions).expect("our own directory");
    let subject = "beamline.ext.validate.pii_guard";
    for document in [
        json!({"id": "healthy", "type": "validator", "subject": format!("{subject}.v1"), "timeout_ms": 5000}),
        json!({"id": "broken", "type": "validator", "subject": format!("{subject}.v2"), "version": "v2", "timeout_ms": 5000}),
        json!({"id": "off", "type": "validator", "subject": "nobody.listens", "enabled": false}),
        json!({"id": "no_validator", "type": "pre", "subject": "nobody.listens"}),
    ] {
        let name = document["id"].as_str().expect("an id");
        std::fs::write(extensions.join(format!("{name}.json")), document.to_string()).expect("our own directory");
    }
    let services = Services::start(&nats, &[]).await;
    services.set("pii_guard.v2", "error").await;
    let fixtures = folder.path().to_str().expect("UTF-8");
    let bridge = Bridge::start_on_fixtures(&nats, &["--fixtures", fixtures, "--api-key", "secret"]);
    let mut expected = vec![
        ["grpc_health", "serving", "-", "-"],
        ["broken", "serving", "closed", "v2"],
        ["healthy", "serving", "closed", "v1"],
        ["off", "disabled", "closed", "v1"],
    ];
    let answer = validators(&bridge, "secret").expect("the key fits");
    assert_eq!(states(&answer), expected, "before the first call");

    let caller = Caller::new(&nats).await;
    assert_eq!(caller.invoke("healthy", &json!({"payload": {}})).await.error(), None);
    for _ in 0..5 {
        let reply = caller.invoke("broken", &json!({"payload": {}})).await;
        assert_eq!(reply.error(), Some(("extension_error", 502)));
    }
    expected[1] = ["broken", "not_serving", "open", "v2"];
    let answer = validators(&bridge, "secret").expect("the key fits");
    assert_eq!(states(&answer), expected);
    let rate = |name: &str| {
        let entries = answer["validators"].as_array().expect("a list");
        let entry = entries.iter().find(|entry| entry["name"] == name).expect("an entry");
        entry["details"]["success_rate"].clone()
    };
    assert_eq!(
        [rate("healthy"), rate("broken"), rate("off")],
        [json!("1.0000"), json!("0.0000"), json!(null)]
    );
    let refused = validators(&bridge, "wrong").expect_err("the key does not fit");
    assert!(refused.contains("Code: Unauthenticated"), "{refused}");
}

#[tokio::test]
async fn health_says_whether_calls_are_served() {
    const DATABASE: &str = "app";
    let nats = Nats::start();
    let mut cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    let bridge = Bridge::start_on(&nats, &cluster, DATABASE, &["--api-key", "secret"]);
    let services = ["", "beamline.flow.v1.RouterAdmin"];
    let becomes = async |status: &str| {
        for service in services {
            eventually(SOON, async || {
                let said = health(bridge.grpc(), service);
                if said.contains(&format!("\"{status}\"")) {
                    Ok(())
                } else {
                    Err(said)
                }
            })
            .await;
        }
    };
    becomes("SERVING").await;
    assert!(health(bridge.grpc(), "no.such.Service").contains("Code: NotFound"));
    cluster.stop(Shutdown::Fast);
    becomes("NOT_SERVING").await;
    // Nobody knows: that is not an answer without validators.
    let refused = validators(&bridge, "secret").expect_err("nobody decides");
    assert!(refused.contains("Code: Unavailable"), "{refused}");
    cluster.start_again();
    becomes("SERVING").await;
    let answer = validators(&bridge, "secret").expect("it answers again");
    assert_eq!(states(&answer), [["grpc_health", "serving", "-", "-"]]);
}

#[test]
fn reflection_describes_the_services_in_both_versions() {
    // A client of the newer version: grpcurl speaks the older one.
    const CLIENT: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
for version in ["v1", "v1alpha"]:
    ask = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    # list_services = "", file_containing_symbol = the service
    symbol = b"beamline.flow.v1.RouterAdmin"
    requests = [b"\x3a\x00", b"\x22" + bytes([len(symbol)]) + symbol]
    for answer in ask(iter(requests), timeout=10):
        print(version, answer)
"#;
    let nats = Nats::start();
    let bridge = Bridge::start_on_fixtures(&nats, &[]);
    let printed = python::run("grpcio", CLIENT, &[&bridge.grpc().to_string()]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4, "{printed}");
    for (version, answers) in ["v1 ", "v1alpha "].iter().zip(lines.chunks(2)) {
        assert!(answers.iter().all(|line| line.starts_with(version)), "{printed}");
        for service in ["beamline.flow.v1.RouterAdmin", "grpc.health.v1.Health"] {
            assert!(answers[0].contains(service), "{service}: {printed}");
        }
        for part in ["GetValidatorsHealth", "timestamp_ms", "tenant_id"] {
            assert!(answers[1].contains(part), "{part}: {printed}");
        }
    }
    let output = typed(&format!(
        "grpcurl -plaintext {} describe beamline.flow.v1.ValidatorStatus",
        bridge.grpc()
    ));
    let described = String::from_utf8_lossy(&output.stdout).into_owned();
    for field in [
        "string name = 1;",
        "string status = 2;",
        r#"int64 timestamp_ms = 3 [json_name = "timestamp_ms"];"#,
        "map<string, string> details = 4;",
    ] {
        assert!(described.contains(field), "{field}: {output:?}");
    }
}
