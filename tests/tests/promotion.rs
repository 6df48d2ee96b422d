//! A standby follows the primary's breakers; promoted, it goes on from what the primary had written.

use std::time::Duration;

use ext_registry_tests::{Postgres, Session, Shutdown, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const DATABASE: &str = "app";

async fn pair() -> (Postgres, Postgres) {
    let primary = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    primary.make_database(DATABASE);
    primary
        .connect(DATABASE)
        .await
        .run("insert into extensions (id, type, subject) select id, 'pre', id from unnest(array['x', 'y']) id")
        .await;
    let standby = primary.standby(&["ext_registry.flush_interval = '50ms'"]);
    (primary, standby)
}

async fn becomes(session: &Session, id: &str, state: &str) {
    eventually(SOON, async || {
        let now = session.breaker(id).await;
        if now == state { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn breakers_of_a_standby_are_the_stricter_of_both() {
    let (primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    let anybody = json!({});
    assert_eq!(reader.call("x", &anybody, "success", 3).await, 3);

    // Opened on the primary: refused on the standby, whose counts stay its own.
    assert_eq!(writer.call("x", &anybody, "error", 9).await, 5);
    eventually(SOON, async || {
        let decision = reader.select("x", &anybody).await;
        reader
            .report(decision.ticket, "success", Duration::from_millis(1))
            .await;
        if decision.reason == "extension_circuit_open" {
            Ok(decision)
        } else {
            Err(decision.reason)
        }
    })
    .await;
    becomes(&reader, "x", "open").await;
    assert_eq!(reader.counts("x").await.1, 0);

    // Reset on the primary: closed on both.
    writer.run("select ext_breaker_reset('x')").await;
    becomes(&reader, "x", "closed").await;
    assert!(reader.select("x", &anybody).await.allowed);

    // Opened by what the standby saw: the primary's closed one changes nothing.
    assert_eq!(reader.call("y", &anybody, "error", 9).await, 5);
    writer.call("y", &anybody, "success", 5).await;
    writer
        .run("update extensions set timeout_ms = 4000 where id = 'y'")
        .await;
    eventually(SOON, async || {
        let patience: i32 = reader
            .query_one("select timeout_ms from extensions where id = 'y'", &[])
            .await
            .expect("a row")
            .get(0);
        if patience == 4000 { Ok(()) } else { Err(patience) }
    })
    .await;
    assert_eq!(reader.breaker("y").await, "open");
    assert_eq!(writer.breaker("y").await, "closed");
    assert_eq!(reader.select("y", &anybody).await.reason, "extension_circuit_open");
}

#[tokio::test]
async fn a_promoted_standby_continues_the_primarys_history() {
    let (mut primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    let anybody = json!({});
    writer.call("x", &anybody, "success", 30).await;
    writer.call("y", &anybody, "error", 5).await;
    becomes(&reader, "y", "open").await;
    // What is written is replayed before the primary ends.
    eventually(SOON, async || {
        let written = reader
            .one(
                "select coalesce(sum(success + error), 0)::text from extension_metrics",
                &[],
            )
            .await;
        if written == "35" { Ok(()) } else { Err(written) }
    })
    .await;
    assert_eq!(reader.call("x", &anybody, "success", 7).await, 7);
    assert_eq!(reader.counts("x").await, (7, 0), "its own");
    drop(writer);
    primary.stop(Shutdown::Fast);

    reader.run("select pg_promote()").await;
    eventually(SOON, async || {
        let log = standby.log();
        if log.contains("ext_registry: promoted") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(reader.counts("x").await, (30, 0), "the primary's");
    assert_eq!(reader.breaker("y").await, "open");
    assert_eq!(reader.call("x", &anybody, "success", 3).await, 3);
    assert_eq!(reader.counts("x").await, (33, 0));
    eventually(SOON, async || {
        let written = reader
            .one(
                "select sum(success)::text from extension_metrics where extension_id = 'x'",
                &[],
            )
            .await;
        if written == "33" { Ok(()) } else { Err(written) }
    })
    .await;
    reader.run("update extensions set enabled = false where id = 'x'").await;
    assert_eq!(reader.select("x", &anybody).await.reason, "extension_disabled");
}
