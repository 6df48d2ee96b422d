//! `pg_upgrade` from one major to another: decisions, counts and open breakers are there afterwards.
//!
//! Both are wheels of about the same time: a minor release of one may write what the other's of a year before cannot read.

use std::time::Duration;

use ext_registry_tests::whole::{fill, state};
use ext_registry_tests::{Postgres, eventually, places};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const OLD: u32 = 16;
const NEW: u32 = 18;

#[tokio::test]
async fn pg_upgrade_keeps_the_registry_and_what_it_has_learnt() {
    let cluster = Postgres::start_of(&places::pg_bin_of(OLD), &[]);
    cluster.make_database("app");
    fill(&cluster, "app", "upgraded");
    let session = cluster.connect("app").await;
    assert_eq!(session.call("pii_guard", &json!({}), "success", 40).await, 40);
    assert_eq!(
        session.call("mask_pii", &json!({}), "error", 7).await,
        5,
        "then its breaker is open"
    );
    assert_eq!(session.breaker("mask_pii").await, "open");
    let version = "select current_setting('server_version_num')::int / 10000";
    assert_eq!(
        session.one(&format!("select ({version})::text"), &[]).await,
        OLD.to_string()
    );
    let before = state(&cluster, "app", "upgraded");
    drop(session);

    let cluster = cluster.upgrade(&places::pg_bin_of(NEW));
    let session = cluster.connect("app").await;
    assert_eq!(
        session.one(&format!("select ({version})::text"), &[]).await,
        NEW.to_string()
    );
    assert_eq!(session.counts("pii_guard").await, (40, 0));
    assert_eq!(session.counts("mask_pii").await, (0, 5));
    let decision = session.select("mask_pii", &json!({})).await;
    assert_eq!(
        (decision.allowed, decision.reason.as_str()),
        (false, "extension_circuit_open")
    );
    assert_eq!(state(&cluster, "app", "upgraded"), before);

    // It goes on from there.
    assert_eq!(session.call("pii_guard", &json!({}), "success", 2).await, 2);
    assert_eq!(session.counts("pii_guard").await, (42, 0));
    let well =
        "select concat_ws(' ', worker_alive, triggers_intact, version = library_version) from ext_registry_status()";
    eventually(SOON, async || match session.one(well, &[]).await.as_str() {
        "t t t" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let log = cluster.log();
    let amiss: Vec<&str> = log
        .lines()
        .filter(|line| {
            ["ERROR", "FATAL", "PANIC", "WARNING"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect();
    assert!(amiss.is_empty(), "{amiss:#?}");
}
