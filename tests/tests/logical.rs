//! Logical replication, as docs/replication.md has it: a registry that follows another one, with live state of its own.

use std::time::Duration;

use ext_registry_tests::{Postgres, Session, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

const PAGE: &str = include_str!("../../docs/replication.md");

/// The first block of SQL in the page that has this in it.
fn block(with: &str) -> &'static str {
    let mut blocks = PAGE
        .split("```sql\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    blocks.find(|block| block.contains(with)).expect("the page has it")
}

async fn serves(session: &Session, context: &serde_json::Value, wanted: &str) {
    eventually(SOON, async || {
        let decision = session.select("x", context).await;
        let now = if decision.allowed {
            decision.version().to_owned()
        } else {
            decision.reason.clone()
        };
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn a_registry_follows_another_one() {
    let (here, there) = (Postgres::start(&["wal_level = logical"]), Postgres::start(&[]));
    here.make_database("app");
    there.make_database("app");
    let (publisher, subscriber) = (here.connect("app").await, there.connect("app").await);
    publisher
        .run(
            r#"insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
               values ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": ["t1"]}')"#,
        )
        .await;
    publisher.run(block("create publication")).await;
    let connection = format!("host=127.0.0.1 port={} dbname=app user=postgres", here.port());
    let subscribe = block("create subscription").replace("host=primary dbname=beamline user=replicator", &connection);
    assert!(subscribe.contains(&connection));
    // One by one, as psql sends them: a subscription is made outside of transactions.
    for statement in subscribe.split_inclusive(';').filter(|part| part.contains(';')) {
        subscriber.run(statement).await;
    }

    // A session that has decided before sees each change.
    let premium = json!({"tenant_id": "t1"});
    serves(&subscriber, &premium, "v2").await;
    publisher.run("update extension_versions set enabled = false").await;
    serves(&subscriber, &premium, "v1").await;
    publisher
        .run("update extension_health set breaker_mode = 'forced_open' where extension_id = 'x'")
        .await;
    serves(&subscriber, &premium, "extension_circuit_open").await;
    publisher
        .run("update extension_health set breaker_mode = 'auto' where extension_id = 'x'")
        .await;
    serves(&subscriber, &premium, "v1").await;

    // Live state is its own.
    publisher.call("x", &json!({}), "error", 5).await;
    assert_eq!(publisher.breaker("x").await, "open");
    assert_eq!(subscriber.breaker("x").await, "closed");
    publisher.run("delete from extensions").await;
    serves(&subscriber, &premium, "extension_not_found").await;
    let logged = "select count(*)::text from extension_audit_log";
    assert_eq!(subscriber.one(logged, &[]).await, "0", "the log is where people work");
    subscriber.run("drop subscription registry").await;
}
