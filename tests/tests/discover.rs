//! Services that speak NATS micro become instances by themselves, where they may, and go with their process.

use std::time::Duration;

use ext_registry_tests::{Bridge, Caller, Database, Nats, Postgres, Session, eventually, micro};
use futures_util::StreamExt;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const FLAGS: [&str; 3] = ["--discover", "--discover-interval", "200ms"];

/// A registry with `x`, under whose prefix `s.x` services may register, and `y`, where none may.
async fn registry() -> (Database<'static>, Session) {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject, metadata) values
                   ('x', 'pre', 's.x', '{"discover_subject_prefix": "s.x"}'), ('y', 'pre', 's.y', '{}');
               insert into extension_instances (extension_id, instance_id, subject, weight)
               values ('x', 'written', 's.x.written', 0), ('y', 'written', 's.y.written', 100)"#,
        )
        .await;
    (database, session)
}

/// The subjects of the rows that were discovered.
async fn discovered(session: &Session) -> String {
    let sql = r#"select coalesce(string_agg(extension_id || ' ' || subject || ' ' || coalesce(version, '-') || ' ' || weight || ' '
                     || (metadata ->> 'service_name'), ', ' order by subject), '')
                 from extension_instances where metadata @> '{"discovered": true}'"#;
    session.one(sql, &[]).await
}

async fn become_(session: &Session, wanted: &str) {
    eventually(SOON, async || {
        let now = discovered(session).await;
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn a_service_registers_serves_and_goes() {
    let nats = Nats::start();
    let (database, session) = registry().await;
    let _one = micro::service(&nats, "one", &["s.x.v1.one", "s.y.one", "s.x.v7.one"]);
    let two = micro::service(&nats, "two", &["s.x.v1.two"]);
    let bridge = Bridge::start(&nats, &database, &FLAGS);
    become_(&session, "x s.x.v1.one v1 100 one, x s.x.v1.two v1 100 two").await;
    assert!(
        bridge.log().contains(r#"version \"v7\" is not registered"#) || bridge.log().contains("v7"),
        "{}",
        bridge.log()
    );

    // Both serve.
    let caller = Caller::new(&nats).await;
    let mut by = Vec::new();
    for _ in 0..4 {
        let reply = caller.invoke("x", &json!({ "payload": {} })).await;
        by.push(reply.body["payload"]["by"].as_str().unwrap_or_default().to_owned());
    }
    by.sort();
    assert_eq!(by, ["one", "one", "two", "two"]);

    // What a person sets on such a row stays.
    session
        .run("update extension_instances set weight = 7 where subject = 's.x.v1.one'")
        .await;
    drop(two);
    become_(&session, "x s.x.v1.one v1 7 one").await;
    let reply = caller.invoke("x", &json!({ "payload": {} })).await;
    assert_eq!(reply.body["payload"]["by"], "one");
    let metric = |action: &str| bridge.metric(&format!("ext_bridge_discovered_total{{action=\"{action}\"}}"));
    assert_eq!(
        (metric("registered"), metric("removed"), metric("refused")),
        (Some(2.0), Some(1.0), Some(1.0))
    );

    // Where the prefix is taken away they go, and rows that people wrote do not.
    session
        .run("update extensions set metadata = '{}' where id = 'x'")
        .await;
    become_(&session, "").await;
    let written = "select count(*)::text from extension_instances where instance_id = 'written'";
    assert_eq!(session.one(written, &[]).await, "2");
}

#[tokio::test]
async fn nats_or_a_bridge_may_go_without_a_loss() {
    let mut nats = Nats::start();
    let (database, session) = registry().await;
    let _one = micro::service(&nats, "one", &["s.x.one"]);
    let mut bridges = [
        Bridge::start(&nats, &database, &FLAGS),
        Bridge::start(&nats, &database, &FLAGS),
    ];
    become_(&session, "x s.x.one - 100 one").await;
    let row = "select xmin::text || created_at from extension_instances where subject = 's.x.one'";
    let before = session.one(row, &[]).await;
    nats.stop();
    nats.start_again();
    let leads = |bridge: &Bridge| bridge.log().contains("this bridge does the discovery of services");
    let leader = usize::from(leads(&bridges[1]));
    bridges[leader].kill();
    eventually(SOON, async || {
        if leads(&bridges[1 - leader]) {
            Ok(())
        } else {
            Err("no lead")
        }
    })
    .await;
    // A second service is seen, so the new lead has made rounds.
    let _two = micro::service(&nats, "two", &["s.x.two"]);
    become_(&session, "x s.x.one - 100 one, x s.x.two - 100 two").await;
    assert_eq!(session.one(row, &[]).await, before);
}

#[tokio::test]
async fn hostile_answers_register_nothing_and_break_nothing() {
    let nats = Nats::start();
    let (database, session) = registry().await;
    let client = nats.connect().await;
    let mut questions = client.subscribe("$SRV.INFO").await.expect("a subscription");
    client.flush().await.expect("a server");
    let info = |id: &str, endpoints: Value| {
        json!({"type": "io.nats.micro.v1.info_response", "name": "evil", "id": id, "version": "1.0.0", "endpoints": endpoints})
            .to_string()
            .into_bytes()
    };
    let many: Vec<Value> = (0..10_000)
        .map(|n| json!({"name": "e", "subject": format!("s.x.{n}")}))
        .collect();
    let answers = [
        Vec::new(),
        b"\xff\x00garbage".to_vec(),
        "[".repeat(100_000).into_bytes(),
        info(
            "a",
            json!([{"subject": "s.x.*"}, {"subject": "s.x.>"}, {"subject": "s.x..b"}, {"subject": "s.x.a b"}]),
        ),
        info(
            "b",
            json!([{"subject": "s.y"}, {"subject": "s.xx"}, {"subject": "s"}, {"subject": "_INBOX.s.x"}]),
        ),
        info("c", Value::Array(many)),
        info("d.d", json!([{"subject": "s.x.d"}])),
        info("e'; drop table extensions; --", json!([{"subject": "s.x.e"}])),
        info("f", json!([{"subject": "s.x.f", "metadata": {"weight": "1000"}}])),
        info("g", json!([{"subject": "s.x.g", "metadata": {"version": "\u{0}"}}])),
        info(&"h".repeat(300), json!([{"subject": "s.x.h"}])),
        info("i", json!([{"subject": "s.x.v9"}])),
    ];
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            let reply = question.reply.expect("a reply subject");
            for answer in &answers {
                client
                    .publish(reply.clone(), answer.clone().into())
                    .await
                    .expect("a connection");
            }
        }
    });
    let bridge = Bridge::start(
        &nats,
        &database,
        &[
            "--discover",
            "--discover-interval",
            "200ms",
            "--probe-interval",
            "200ms",
        ],
    );
    // An honest one among them.
    let _one = micro::service(&nats, "one", &["s.x.one"]);
    become_(&session, "x s.x.one - 100 one").await;
    let refused = r#"ext_bridge_discovered_total{action="refused"}"#;
    eventually(SOON, async || match bridge.metric(refused) {
        Some(count) if count >= 8.0 => Ok(()),
        other => Err(other),
    })
    .await;
    let healthy = r#"ext_bridge_probes_total{result="healthy"}"#;
    eventually(SOON, async || match bridge.metric(healthy) {
        Some(count) if count >= 3.0 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(discovered(&session).await, "x s.x.one - 100 one");
    assert_eq!(bridge.readiness(), 200);
}

#[tokio::test]
async fn a_bridge_may_write_no_other_instances() {
    let (database, _session) = registry().await;
    let bridge = database.connect_as("bridge").await;
    for sql in [
        "delete from extension_instances",
        "insert into extension_instances (extension_id, instance_id, subject) values ('x', 'i', 's.x.i')",
        "update extension_instances set subject = 's.evil'",
        r#"update extension_instances set metadata = '{"discovered": true}'"#,
    ] {
        let error = bridge.error_of(sql).await;
        assert_eq!(error.code().code(), "42501", "{sql}: {error:?}");
    }
    bridge
        .run(
            r#"insert into extension_instances (extension_id, instance_id, subject, metadata)
               values ('x', 'i', 's.x.i', '{"discovered": true}');
               delete from extension_instances where instance_id = 'i'"#,
        )
        .await;
}
