//! `deploy/nats/permissions.conf`: with it all of the bridge works, and nobody can do what another is for.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap};
use ext_registry_tests::{Bridge, Nats, Postgres, eventually, places, wait_until};
use futures_util::StreamExt;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const USERS: [(&str, &str); 4] = [
    ("EXT_BRIDGE_PASSWORD", "b"),
    ("GATEWAY_PASSWORD", "g"),
    ("SERVICE_PASSWORD", "s"),
    ("OPERATOR_PASSWORD", "o"),
];

fn guarded() -> Nats {
    let file = places::root().join("deploy/nats/permissions.conf");
    // An include is relative to the file that has it.
    let up = "../".repeat(32);
    Nats::start_configured(
        &format!("include \"{up}{}\"\n", &file.display().to_string()[1..]),
        &USERS,
    )
}

/// Connects as a user, whose password is the first letter of his name.
async fn connect(nats: &Nats, user: &str) -> Client {
    ConnectOptions::with_user_and_password(user.to_owned(), user[..1].to_owned())
        .custom_inbox_prefix(format!("_INBOX.{user}"))
        .connect(nats.url())
        .await
        .expect("nats-server answers")
}

/// A service that speaks NATS micro as far as health checks want it.
async fn serve(client: Client, subject: &'static str) {
    let mut requests = client.subscribe(subject).await.expect("subscribed");
    let mut info = client.subscribe("$SRV.INFO").await.expect("subscribed");
    client.flush().await.expect("a connection");
    let about = json!({"type": "io.nats.micro.v1.info_response", "name": "x", "id": "1", "version": "1.0.0", "metadata": {},
        "endpoints": [{"name": "e", "subject": subject, "queue_group": "q", "metadata": {}}]});
    tokio::spawn(async move {
        loop {
            let (request, answer) = tokio::select! {
                request = requests.next() => (request, "{\"payload\": {\"served\": true}}".to_owned()),
                request = info.next() => (request, about.to_string()),
            };
            let Some(reply) = request.and_then(|request| request.reply) else {
                return;
            };
            client.publish(reply, answer.into()).await.expect("sent");
        }
    });
}

async fn ask(client: &Client, subject: &str, body: &Value) -> Value {
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", "secret");
    let subject = format!("beamline.bridge.v1.{subject}");
    let reply = client
        .request_with_headers(subject, headers, body.to_string().into())
        .await;
    serde_json::from_slice(&reply.expect("an answer").payload).expect("JSON")
}

fn violations(nats: &Nats) -> Vec<String> {
    let log = nats.log();
    let lines = log.lines().filter(|line| line.to_lowercase().contains("violation"));
    lines.map(str::to_owned).collect()
}

/// Waits until the server has refused this.
async fn refused(nats: &Nats, what: &str) {
    eventually(SOON, async || {
        let violations = violations(nats);
        let is_there = violations.iter().any(|line| line.contains(what));
        if is_there {
            Ok(())
        } else {
            Err((what.to_owned(), violations))
        }
    })
    .await;
}

#[tokio::test]
async fn everything_works_with_these_rights_and_nothing_is_refused() {
    let nats = guarded();
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject, metadata) values
                   ('x', 'pre', 'beamline.ext.pre.x.v1', '{"discover_subject_prefix": "beamline.ext.pre.x"}');
               insert into extension_policies (tenant_id, policy_id, document)
               values ('t', 'p', '{"version": "1.0", "pre": [{"id": "x", "mode": "required"}]}')"#,
        )
        .await;
    serve(connect(&nats, "service").await, "beamline.ext.pre.x.v1.a").await;
    let (gateway, operator) = (connect(&nats, "gateway").await, connect(&nats, "operator").await);
    let mut events = operator
        .subscribe("beamline.bridge.v1.events")
        .await
        .expect("subscribed");
    operator.flush().await.expect("a connection");
    let flags = ["--nats-user", "bridge", "--nats-password", "b", "--api-key", "secret"];
    let habits = [
        "--discover",
        "--discover-interval",
        "200ms",
        "--probe-interval",
        "200ms",
    ];
    let bridge = Bridge::start(&nats, &database, &[&flags[..], &habits].concat());

    // It registers, and is found well.
    let health = "select coalesce(string_agg(subject || ' ' || health_status, ','), '') from extension_instances";
    eventually(SOON, async || {
        let now = session.one(health, &[]).await;
        if now == "beamline.ext.pre.x.v1.a healthy" {
            Ok(())
        } else {
            Err((now, bridge.log(), nats.log()))
        }
    })
    .await;
    let reply = ask(&gateway, "invoke.x", &json!({"payload": {}})).await;
    assert_eq!(reply["payload"]["served"], true, "{reply}");
    let message = json!({"tenant_id": "t", "policy_id": "p", "message": {"payload": "m"}});
    let reply = ask(&gateway, "route", &message).await;
    assert_eq!(reply["ok"], true, "{reply}");
    for op in ["get_extension_health", "get_circuit_breaker_states", "reload"] {
        let reply = ask(&operator, &format!("admin.{op}"), &json!({})).await;
        assert!(reply.get("error").is_none(), "{op}: {reply}");
    }
    let request = operator
        .request("$SRV.PING.ext-bridge", "".into())
        .await
        .expect("an answer");
    assert!(String::from_utf8_lossy(&request.payload).contains("io.nats.micro.v1.ping_response"));
    session.run("update extensions set retry = 1").await;
    let event = tokio::time::timeout(SOON, events.next())
        .await
        .expect("an event")
        .expect("a message");
    assert!(
        String::from_utf8_lossy(&event.payload).contains("\"type\""),
        "{event:?}"
    );
    assert_eq!(violations(&nats), [""; 0]);
    assert!(!bridge.log().to_lowercase().contains("violation"), "{}", bridge.log());
}

#[tokio::test]
async fn nobody_can_do_what_another_is_for() {
    let nats = guarded();
    let bridge = Bridge::start_on_fixtures(&nats, &["--nats-user", "bridge", "--nats-password", "b"]);
    assert_eq!(bridge.readiness(), 200);
    let publish = [
        ("gateway", "beamline.bridge.v1.admin.reload"),
        ("gateway", "beamline.ext.pre.normalize_text.v1"),
        ("gateway", "beamline.bridge.v1.events"),
        ("service", "beamline.bridge.v1.invoke.normalize_text"),
        ("service", "beamline.bridge.v1.admin.reload"),
        ("service", "_INBOX.gateway.stolen"),
        ("operator", "beamline.bridge.v1.invoke.normalize_text"),
        ("operator", "beamline.ext.pre.normalize_text.v1"),
        ("bridge", "beamline.bridge.v1.admin.reload"),
        ("bridge", "beamline.bridge.v1.invoke.normalize_text"),
    ];
    let subscribe = [
        ("gateway", "_INBOX.operator.>"),
        ("gateway", "beamline.bridge.v1.invoke.*"),
        ("service", "_INBOX.>"),
        ("service", "beamline.bridge.v1.>"),
        ("operator", "_INBOX.gateway.>"),
        ("operator", "beamline.ext.>"),
        ("bridge", "_INBOX.gateway.>"),
        // Outside the queue group: to listen in.
        ("bridge", "beamline.bridge.v1.invoke.*"),
    ];
    for (user, subject) in publish {
        let client = connect(&nats, user).await;
        client.publish(subject, "{}".into()).await.expect("handed over");
        client.flush().await.expect("a connection");
        refused(
            &nats,
            &format!("user:{user}\" - Publish Violation - Subject \"{subject}\""),
        )
        .await;
    }
    for (user, subject) in subscribe {
        let client = connect(&nats, user).await;
        let _subscriber = client.subscribe(subject).await.expect("handed over");
        client.flush().await.expect("a connection");
        refused(
            &nats,
            &format!("user:{user}\" - Subscription Violation - Subject \"{subject}\""),
        )
        .await;
    }
    assert_eq!(
        violations(&nats).len(),
        publish.len() + subscribe.len(),
        "{:#?}",
        violations(&nats)
    );
}

#[tokio::test]
async fn a_bridge_without_a_right_names_the_subject() {
    let nats = guarded();
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 'elsewhere.x', 200)")
        .await;
    let bridge = Bridge::start(&nats, &database, &["--nats-user", "bridge", "--nats-password", "b"]);
    let gateway = connect(&nats, "gateway").await;
    let reply = ask(&gateway, "invoke.x", &json!({"payload": {}})).await;
    assert_eq!(reply["error"]["code"], "extension_timeout", "{reply}");
    wait_until("the bridge says what it may not do", SOON, || {
        let log = bridge.log();
        log.lines().any(|line| {
            line.contains("WARN")
                && line.to_lowercase().contains("permissions violation")
                && line.contains("elsewhere.x")
        })
    });
}
