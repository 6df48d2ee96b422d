//! Two databases of one cluster, each with the extension and with the same names in it, do not see each other.

use std::time::Duration;

use ext_registry_tests::{Postgres, Shutdown, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const FILL: &str = "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')";

#[tokio::test]
async fn databases_share_a_cluster_and_nothing_else() {
    let mut cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    for name in ["one", "other"] {
        cluster.make_database(name);
    }
    let (one, other) = (cluster.connect("one").await, cluster.connect("other").await);
    one.run(FILL).await;
    other.run(FILL).await;
    assert_eq!(one.call("x", &json!({}), "error", 9).await, 5);
    assert_eq!(other.call("x", &json!({}), "success", 12).await, 12);
    assert_eq!(
        (one.breaker("x").await.as_str(), one.counts("x").await),
        ("open", (0, 5))
    );
    assert_eq!(
        (other.breaker("x").await.as_str(), other.counts("x").await),
        ("closed", (12, 0))
    );

    // A ticket of one is none of the other's.
    let decision = other.select("x", &json!({})).await;
    other.run("update extensions set timeout_ms = 70 where id = 'x'").await;
    other.report(decision.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(one.counts("x").await, (0, 5));
    let workers = "select string_agg(distinct datname, ' ' order by datname) from pg_stat_activity
                   where backend_type = 'ext_registry worker' and datname in ('one', 'other')";
    eventually(SOON, async || match one.one(workers, &[]).await.as_str() {
        "one other" => Ok(()),
        workers => Err(workers.to_owned()),
    })
    .await;

    // Each finds its own again.
    drop((one, other));
    cluster.restart(Shutdown::Fast);
    let (one, other) = (cluster.connect("one").await, cluster.connect("other").await);
    assert_eq!(
        (one.breaker("x").await.as_str(), one.counts("x").await),
        ("open", (0, 5))
    );
    assert_eq!(
        (other.breaker("x").await.as_str(), other.counts("x").await),
        ("closed", (13, 0))
    );
    assert_eq!(one.select("x", &json!({})).await.reason, "extension_circuit_open");
    one.run("select ext_breaker_reset('x')").await;
    assert_eq!(other.call("x", &json!({}), "error", 9).await, 5);
    assert_eq!(
        (one.breaker("x").await.as_str(), other.breaker("x").await.as_str()),
        ("closed", "open")
    );

    // What one is dropped with is nothing to the other.
    drop(one);
    other.run("drop database one with (force)").await;
    assert_eq!(other.breaker("x").await, "open");
    assert_eq!(other.counts("x").await, (13, 5));
}
