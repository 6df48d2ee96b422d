//! A call arrives on NATS, Postgres decides, a service answers, the outcome moves breaker and percentiles.

use std::time::{Duration, Instant};

use ext_registry_tests::{
    Bridge, Caller, Database, Nats, Postgres, Services, Session, bridge, eventually, http, python,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// Everything a test of this file needs, with the fixtures loaded.
struct System {
    bridge: Bridge,
    services: Services,
    caller: Caller,
    session: Session,
    database: Database<'static>,
    nats: Nats,
}

impl System {
    async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    async fn start_with(instances: &[&str], flags: &[&str]) -> Self {
        let nats = Nats::start();
        let database = Postgres::shared().database();
        database.load_fixtures();
        let services = Services::start(&nats, instances).await;
        let bridge = Bridge::start(&nats, &database, flags);
        let session = database.connect().await;
        // The tests judge behaviour, not speed: a busy machine must not turn answers into timeouts.
        session.run("update extensions set timeout_ms = 5000").await;
        let caller = Caller::new(&nats).await;
        Self {
            bridge,
            services,
            caller,
            session,
            database,
            nats,
        }
    }

    /// Waits until so many successes and failures are counted; reports travel behind the replies.
    async fn counts_become(&self, extension: &str, successes: i64, failures: i64) {
        eventually(SOON, async || {
            let counts = self.session.counts(extension).await;
            if counts == (successes, failures) {
                Ok(())
            } else {
                Err(counts)
            }
        })
        .await;
    }

    async fn breaker_becomes(&self, extension: &str, wanted: &str) {
        eventually(SOON, async || {
            let state = self.session.breaker(extension).await;
            if state == wanted { Ok(()) } else { Err(state) }
        })
        .await;
    }
}

fn text(text: &str) -> Value {
    json!({ "payload": { "text": text } })
}

#[tokio::test]
async fn five_hundred_concurrent_invokes_are_five_hundred_outcomes() {
    let system = System::start().await;
    let calls = (0..500).map(|number| {
        let caller = system.caller.clone();
        async move {
            let reply = caller
                .invoke("normalize_text", &text(&format!(" Hello {number} ")))
                .await;
            assert_eq!(reply.error(), None);
            assert_eq!(reply.body["payload"]["text"], format!("hello {number}"));
            assert_eq!(
                (reply.header("Ext-Version"), reply.header("Ext-Attempts")),
                (Some("v1"), Some("1"))
            );
        }
    });
    join_all(calls).await;
    system.counts_become("normalize_text", 500, 0).await;
    assert_eq!(system.services.served("normalize_text").await, 500);
    let health = "select format('%s %s', latency_samples, p50_latency_ms > 0 and p50_latency_ms <= p95_latency_ms
                  and p95_latency_ms <= p99_latency_ms) from extension_health where extension_id = 'normalize_text'";
    assert_eq!(system.session.one(health, &[]).await, "500 t");
    let series = r#"router_extension_invocation_total{extension_id="normalize_text",status="success",type="pre"}"#;
    assert_eq!(system.bridge.metric(series), Some(500.0));
}

#[tokio::test]
async fn a_message_goes_through_the_pipeline() {
    let system = System::start().await;
    let request = |text: &str| {
        json!({
            "tenant_id": "default", "policy_id": "full", "request_id": "r-1",
            "message": { "message_id": "m-1", "message_type": "chat", "payload": text },
        })
    };
    let reply = system.caller.route(&request("  Where IS my order?  ")).await;
    assert_eq!(reply.error(), None, "{reply:?}");
    assert_eq!(reply.body["ok"], true);
    assert_eq!(reply.body["message"]["payload"], "echo: where is my order?");
    assert_eq!(reply.body["message"]["message_id"], "m-1");
    assert_eq!(reply.body["decision"]["provider_id"], "test_provider");
    let executed = reply.body["executed_extensions"].as_array().expect("a list");
    let ids: Vec<_> = executed
        .iter()
        .map(|item| item["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, ["normalize_text", "pii_guard", "test_provider", "mask_pii"]);
    assert!(
        executed
            .iter()
            .all(|item| item["version"] == "v1" && item["attempts"] == 1),
        "{executed:?}"
    );
    assert_eq!(reply.body["metadata"]["normalized_by"], "v1");

    let blocked = system.caller.route(&request("my card is 4111 1111 1111 1111")).await;
    assert_eq!(blocked.error(), Some(("validator_blocked", 403)), "{blocked:?}");
    assert!(
        !blocked.body.to_string().contains("4111"),
        "bodies stay out of errors: {blocked:?}"
    );
    // A rejection is a success of the validator, and ends the pipeline.
    system.counts_become("pii_guard", 2, 0).await;
    system.counts_become("test_provider", 1, 0).await;

    let unknown = system
        .caller
        .route(&json!({"tenant_id": "default", "policy_id": "none", "message": {}}))
        .await;
    assert_eq!(unknown.error(), Some(("policy_not_found", 404)));
}

#[tokio::test]
async fn a_service_of_another_language_serves() {
    const SERVICE: &str = r#"
import asyncio, json, sys
import nats, nats.micro

async def main():
    client = await nats.connect(sys.argv[1])
    service = await nats.micro.add_service(client, name="shout", version="1.0.0")

    async def shout(request):
        body = json.loads(request.data)
        if body["payload"].get("text") is None:
            await request.respond_error(code="422", description="no text")
            return
        answer = {"payload": {"text": body["payload"]["text"].upper()}, "metadata": {"tenant": body["tenant_id"]}}
        await request.respond(json.dumps(answer).encode())

    await service.add_endpoint(name="shout", subject="beamline.ext.pre.shout.v1", handler=shout)
    await client.flush()
    print("ready")
    await asyncio.Event().wait()

asyncio.run(main())
"#;
    let system = System::start().await;
    let _service = python::Program::start(SERVICE, &[&system.nats.url()]);
    system
        .session
        .run(r#"select ext_register('{"id": "shout", "type": "pre", "subject": "beamline.ext.pre.shout.v1"}')"#)
        .await;
    let mut request = text("quiet");
    request["tenant_id"] = json!("acme");
    let reply = system.caller.invoke("shout", &request).await;
    assert_eq!(reply.error(), None, "{reply:?}");
    // Byte for byte what the service sent, blanks of its own included.
    let sent = r#"{"payload": {"text": "QUIET"}, "metadata": {"tenant": "acme"}}"#;
    assert_eq!(String::from_utf8_lossy(&reply.bytes), sent);

    let reply = system.caller.invoke("shout", &json!({ "payload": {} })).await;
    assert_eq!(
        reply.error(),
        Some(("extension_error", 502)),
        "its error header: {reply:?}"
    );
    system.counts_become("shout", 1, 1).await;
}

#[tokio::test]
async fn a_second_version_is_rolled_out_and_back_by_sql() {
    let system = System::start().await;
    let version = async |tenant: &str| {
        let request = json!({ "tenant_id": tenant, "payload": { "text": " A   B " } });
        let reply = system.caller.invoke("normalize_text", &request).await;
        assert_eq!(reply.error(), None, "{reply:?}");
        (
            reply.header("Ext-Version").expect("a version").to_owned(),
            reply.body["payload"]["text"].clone(),
        )
    };
    let v1 = ("v1".to_owned(), json!("a   b"));
    let v2 = ("v2".to_owned(), json!("a b"));
    assert_eq!(version("premium").await, v1);
    system
        .session
        .run(
            r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
            ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 5000, 0, '{"tenant_id": ["premium"]}')"#,
        )
        .await;
    // Committed: the very next call sees it.
    assert_eq!(
        (version("premium").await, version("basic").await),
        (v2.clone(), v1.clone())
    );
    system
        .session
        .run("update extension_versions set routing_rules = '{}'")
        .await;
    assert_eq!(version("basic").await, v2);
    system
        .session
        .run(r#"update extension_versions set routing_rules = '{"tenant_id": []}'"#)
        .await;
    assert_eq!(version("premium").await, v1);
    system
        .session
        .run("begin; update extension_versions set routing_rules = '{}'")
        .await;
    assert_eq!(version("premium").await, v1, "not committed");
    system.session.run("rollback").await;
}

#[tokio::test]
async fn instances_share_by_weight_and_retries_avoid_a_dead_one() {
    let system = System::start_with(&["a", "b"], &[]).await;
    system
        .session
        .run(
            "insert into extension_instances (extension_id, instance_id, subject, weight, version) values
             ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.v1.a', 100, 'v1'),
             ('normalize_text', 'b', 'beamline.ext.pre.normalize_text.v1.b', 50, 'v1')",
        )
        .await;
    for _ in 0..30 {
        assert_eq!(system.caller.invoke("normalize_text", &text("x")).await.error(), None);
    }
    let served = async |target: &str| system.services.served(target).await;
    assert_eq!(
        (served("normalize_text.v1.a").await, served("normalize_text.v1.b").await),
        (20, 10)
    );

    // Where nobody listens the next attempt goes to the other instance; the caller notices nothing.
    system
        .session
        .run("update extension_instances set subject = 'beamline.nobody' where instance_id = 'b'")
        .await;
    system
        .session
        .run("update extensions set retry = 1 where id = 'normalize_text'")
        .await;
    for _ in 0..6 {
        let reply = system.caller.invoke("normalize_text", &text("x")).await;
        assert_eq!(
            (reply.error(), reply.header("Ext-Instance")),
            (None, Some("a")),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn a_failing_service_opens_the_breaker_and_recovers_through_half_open() {
    let system = System::start().await;
    let guard = async || system.caller.invoke("pii_guard", &text("hello")).await;
    let settings = "update extension_health set circuit_breaker_timeout_seconds = 1 where extension_id = 'pii_guard'";
    system.session.run(settings).await;
    assert_eq!(guard().await.error(), None);

    system.services.set("pii_guard", "error").await;
    // With the success before, four of five outcomes: more than half of enough.
    for _ in 0..4 {
        assert_eq!(guard().await.error(), Some(("extension_error", 502)));
    }
    system.breaker_becomes("pii_guard", "open").await;
    let served = system.services.served("pii_guard").await;
    let refused = guard().await;
    assert_eq!(refused.error(), Some(("extension_unavailable", 503)), "{refused:?}");
    assert_eq!(
        system.services.served("pii_guard").await,
        served,
        "a refused call reaches nobody"
    );
    assert_eq!(system.session.breaker("test_provider").await, "closed");

    // A probe that fails opens it again.
    eventually(SOON, async || match guard().await.error() {
        Some(("extension_error", 502)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    system.breaker_becomes("pii_guard", "open").await;

    system.services.set("pii_guard", "ok").await;
    eventually(SOON, async || match guard().await.error() {
        None => Ok(()),
        Some(error) => Err(format!("{error:?}")),
    })
    .await;
    for _ in 0..2 {
        guard().await;
    }
    system.breaker_becomes("pii_guard", "closed").await;
    assert_eq!(guard().await.error(), None);

    let path = "select string_agg(to_state, ' ' order by id) from extension_breaker_events";
    eventually(SOON, async || {
        let path = system.session.one(path, &[]).await;
        if path == "open half_open open half_open closed" {
            Ok(())
        } else {
            Err(path)
        }
    })
    .await;
}

#[tokio::test]
async fn each_misbehaviour_has_its_outcome() {
    let system = System::start().await;
    system
        .session
        .run("update extensions set timeout_ms = 1000 where id = 'normalize_text'")
        .await;
    // The breaker is not what is looked at.
    system
        .session
        .run("update extension_health set breaker_mode = 'metrics_only'")
        .await;
    let cases = [
        ("ok", None, "success"),
        ("twice", None, "success"),
        ("error", Some(("extension_error", 502)), "error"),
        ("service_error", Some(("extension_error", 502)), "error"),
        ("garbage", Some(("extension_error", 502)), "invalid_response"),
        ("hang", Some(("extension_timeout", 504)), "timeout"),
    ];
    let count = async |outcome: &str| {
        let sql =
            format!("select {outcome}_count::text from extension_version_health where extension_id = 'normalize_text'");
        system.session.one(&sql, &[]).await.parse::<i64>().expect("a count")
    };
    for (mode, error, outcome) in cases {
        system.services.set("normalize_text", mode).await;
        let before = count(outcome).await;
        let reply = system.caller.invoke("normalize_text", &text("x")).await;
        assert_eq!(reply.error(), error, "{mode}: {reply:?}");
        eventually(SOON, async || {
            let now = count(outcome).await;
            if now == before + 1 {
                Ok(())
            } else {
                Err((mode, before, now))
            }
        })
        .await;
    }

    // An answer that comes too late is a timeout, and belongs to no later call.
    system
        .services
        .slow_down("normalize_text", Duration::from_millis(1200))
        .await;
    let reply = system.caller.invoke("normalize_text", &text("late")).await;
    assert_eq!(reply.error(), Some(("extension_timeout", 504)));
    system.services.set("normalize_text", "ok").await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        let reply = system.caller.invoke("normalize_text", &text("ON TIME")).await;
        assert_eq!(reply.body["payload"]["text"], "on time", "{reply:?}");
    }

    system
        .session
        .run("update extensions set subject = 'beamline.nobody' where id = 'normalize_text'")
        .await;
    let before = count("no_responders").await;
    let reply = system.caller.invoke("normalize_text", &text("x")).await;
    assert_eq!(reply.error(), Some(("extension_unavailable", 503)), "{reply:?}");
    eventually(SOON, async || {
        let now = count("no_responders").await;
        if now == before + 1 { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn a_restarted_nats_server_wedges_nothing() {
    let mut system = System::start().await;
    assert_eq!(system.caller.invoke("normalize_text", &text("x")).await.error(), None);
    system.nats.stop();
    eventually(SOON, async || match system.bridge.readiness() {
        503 => Ok(()),
        status => Err(status),
    })
    .await;
    system.nats.start_again();
    eventually(SOON, async || match system.bridge.readiness() {
        200 => Ok(()),
        status => Err(status),
    })
    .await;
    // Caller and services have come back too, each in its own time.
    eventually(SOON, async || {
        let reply = system
            .caller
            .client()
            .request("demo.control.normalize_text", "{}".into())
            .await;
        reply.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(system.caller.invoke("normalize_text", &text("x")).await.error(), None);
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let mut system = System::start().await;
    system
        .services
        .slow_down("normalize_text", Duration::from_millis(600))
        .await;
    let caller = system.caller.clone();
    let call = tokio::spawn(async move { caller.invoke("normalize_text", &text("SLOW")).await });
    eventually(SOON, async || match system.services.served("normalize_text").await {
        1 => Ok(()),
        count => Err(count),
    })
    .await;
    // The runtime keeps the call going while this thread waits for the end of the bridge.
    let status = tokio::task::spawn_blocking(move || (system.bridge.terminate(), system))
        .await
        .expect("no panic");
    let (status, system) = status;
    assert_eq!(status.code(), Some(0), "{status}");
    let reply = call.await.expect("no panic");
    assert_eq!(reply.error(), None, "{reply:?}");
    assert_eq!(
        system.session.counts("normalize_text").await,
        (1, 0),
        "reported before the end"
    );
}

#[tokio::test]
async fn without_postgres_the_fixtures_decide() {
    let nats = Nats::start();
    let _services = Services::start(&nats, &[]).await;
    let bridge = Bridge::start_on_fixtures(&nats, &[]);
    let caller = Caller::new(&nats).await;
    let request = json!({ "tenant_id": "default", "policy_id": "full", "message": { "payload": " HELLO " } });
    let reply = caller.route(&request).await;
    assert_eq!(
        (reply.error(), &reply.body["message"]["payload"]),
        (None, &json!("echo: hello")),
        "{reply:?}"
    );
    assert_eq!(
        caller.invoke("nobody", &text("x")).await.error(),
        Some(("extension_not_found", 404))
    );
    assert_eq!(bridge.readiness(), 200);
}

#[tokio::test]
async fn the_commands_of_the_bridge() {
    let system = System::start().await;
    let run = |arguments: &[&str], stdin: &str| {
        let output = bridge::run(&system.nats, &system.database, arguments, stdin);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (output.status.success(), text)
    };
    let (good, text) = run(&["check"], "");
    assert!(good, "{text}");
    for line in ["normalize_text", "pii_guard", "mask_pii", "test_provider"] {
        assert!(text.contains(line), "{line} is not in: {text}");
    }
    let (good, text) = run(&["invoke", "nobody", "--payload", "-"], "{}");
    assert!(!good && text.contains("extension_not_found"), "{text}");

    assert_eq!(http::get(system.bridge.http(), "/healthz").expect("it listens").0, 200);
    let metrics = system.bridge.metrics();
    let gauge = r#"router_extension_circuit_breaker_state{extension_id="pii_guard",state="closed"} 0"#;
    assert!(metrics.contains(gauge), "{metrics}");
}
