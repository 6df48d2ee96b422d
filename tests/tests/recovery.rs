//! Point-in-time recovery: a mistake is made, and the registry brought back to what it was before.

use std::time::Duration;

use ext_registry_tests::process::{Directory, Unprivileged};
use ext_registry_tests::{Postgres, Session, eventually, whole};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = "app";
const ROLE: &str = "dba_role";

/// All that is counted, with breakers, as one text per row.
async fn health(session: &Session) -> Vec<String> {
    let sql = "select (to_jsonb(v) - '{in_flight, retry_after_ms, updated_at, circuit_open_count}'::text[])::text
               from extension_version_health v order by 1";
    let rows = session.query(sql, &[]).await.expect("the view");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Waits until so many outcomes, and so many transitions, are on disk.
async fn written(session: &Session, outcomes: &str, transitions: &str) {
    let sql = "select (select coalesce(sum(success + error), 0) from extension_metrics where instance_id = '') || ' '
                   || (select count(*) from extension_breaker_events)";
    eventually(SOON, async || {
        let now = session.one(sql, &[]).await;
        if now == format!("{outcomes} {transitions}") {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
}

#[tokio::test]
async fn a_registry_is_recovered_to_the_moment_before_a_mistake() {
    let archive = Directory::new("archive-", Unprivileged::needed());
    let cluster = Postgres::start(&[
        "ext_registry.flush_interval = '50ms'",
        "archive_mode = on",
        &format!("archive_command = 'cp %p {}/%f'", archive.path().display()),
    ]);
    cluster.make_database(DATABASE);
    let session = cluster.connect(DATABASE).await;
    // What the backup holds, and what only the WAL does.
    whole::fill(&cluster, DATABASE, ROLE);
    session.call("mask_pii", &json!({}), "success", 20).await;
    let backup = cluster.back_up(&[]);
    session.run("update extensions set timeout_ms = timeout_ms + 1").await;
    session.call("mask_pii", &json!({}), "success", 30).await;
    assert_eq!(session.call("pii_guard", &json!({}), "error", 9).await, 5);
    written(&session, "55", "1").await;
    let (before, health_before) = (whole::state(&cluster, DATABASE, ROLE), health(&session).await);
    let point = "select pg_create_restore_point('before the mistake')::text";
    session.one(point, &[]).await;

    // The mistake; and calls after it, which the recovered registry has not seen.
    session.run("delete from extensions where id <> 'mask_pii'").await;
    session.call("mask_pii", &json!({}), "success", 7).await;
    written(&session, "62", "1").await;
    let last = session.one("select pg_walfile_name(pg_switch_wal())", &[]).await;
    let archived = "select last_archived_wal from pg_stat_archiver";
    eventually(SOON, async || {
        let now = session.one(archived, &[]).await;
        if now >= last {
            Ok(())
        } else {
            Err(format!("{now}, not {last}"))
        }
    })
    .await;

    let recovered = backup.recover(&archive, "before the mistake", &["archive_mode = off"]);
    let session = recovered.connect(DATABASE).await;
    eventually(SOON, async || {
        match session.one("select pg_is_in_recovery()::text", &[]).await.as_str() {
            "false" => Ok(()),
            _ => Err(recovered.log()),
        }
    })
    .await;
    assert_eq!(whole::state(&recovered, DATABASE, ROLE), before);
    eventually(SOON, async || {
        let now = health(&session).await;
        if now == health_before {
            Ok(())
        } else {
            Err(format!("{now:#?}\nnot\n{health_before:#?}"))
        }
    })
    .await;
    assert_eq!(session.breaker("pii_guard").await, "open");
    assert_eq!(
        session.select("pii_guard", &json!({})).await.reason,
        "extension_circuit_open"
    );

    // It goes on from there.
    session.call("mask_pii", &json!({}), "success", 5).await;
    written(&session, "60", "1").await;
    assert_eq!(session.counts("mask_pii").await, (55, 0));
    session
        .run("update extensions set enabled = false where id = 'mask_pii'")
        .await;
    assert_eq!(
        session.select("mask_pii", &json!({})).await.reason,
        "extension_disabled"
    );
    let log = recovered.log();
    for trace in ["ERROR", "panicked", "cannot write"] {
        assert!(!log.contains(trace), "{log}");
    }
}
