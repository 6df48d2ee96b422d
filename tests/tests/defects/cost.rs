//! What ran although it should not, and what calls and questions cost.

use ext_registry_tests::{Postgres, eventually};
use serde_json::json;

use crate::{SOON, calls, measured, prepared};

// 8. What was disabled ran, and a dry run wrote.

#[tokio::test]
async fn what_is_disabled_gets_no_call() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run(
            "insert into extension_versions (id, version, subject, timeout_ms, retry)
             values ('x', 'v2', 'x.v2', 100, 0), ('x', 'v1', 'x.v1', 100, 0);
             insert into extension_instances (extension_id, instance_id, subject)
             values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1'), ('x', 'c', 'x.v2')",
        )
        .await;
    let decide = async || session.select("x", &json!({})).await;
    session
        .run("update extension_instances set enabled = false where instance_id = 'c'")
        .await;
    let decision = decide().await;
    assert_eq!((decision.reason.as_str(), decision.instance()), ("no_instances", "-"));
    session
        .run("update extension_versions set enabled = false where version = 'v2'")
        .await;
    session
        .run("update extension_instances set enabled = false where instance_id = 'a'")
        .await;
    for _ in 0..10 {
        let decision = decide().await;
        assert_eq!((decision.version(), decision.instance()), ("v1", "b"));
    }
    session.run("update extension_versions set enabled = false").await;
    assert_eq!(decide().await.reason, "no_version");
    session.run("update extension_versions set enabled = true").await;
    // Whatever its breaker, its mode and its instances say.
    session
        .run("update extensions set enabled = false; update extension_health set breaker_mode = 'forced_closed'")
        .await;
    let decision = decide().await;
    assert_eq!(
        (decision.allowed, decision.reason.as_str(), decision.ticket),
        (false, "extension_disabled", 0)
    );
    let listed = session.one("select enabled::text from ext_lookup('x')", &[]).await;
    assert_eq!(listed, "false", "it is still registered");
}

#[tokio::test]
async fn explaining_leaves_no_trace() {
    let cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = prepared(&database, "circuit_breaker_timeout_seconds = 1").await;
    session
        .run(
            "insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1');
             insert into extensions (id, type, subject) values ('y', 'pre', 'y.v1')",
        )
        .await;
    let state = "select jsonb_build_array(
                     (select jsonb_agg(to_jsonb(v) - 'retry_after_ms') from extension_version_health v),
                     (select jsonb_agg(to_jsonb(i)) from extension_instance_health i),
                     (select jsonb_agg(to_jsonb(e)) from extension_breaker_events e),
                     (select jsonb_agg(to_jsonb(m) - 'latency') from extension_metrics m),
                     (select array[in_flight_used, stale_reports, untracked_targets] from ext_registry_status()))::text";
    // With a breaker that is closed, then open, then due to probe.
    for stage in ["closed", "open", "due"] {
        if stage == "open" {
            calls(&session, "error", 5).await;
        }
        if stage == "due" {
            eventually(SOON, async || {
                match measured(&session, "coalesce(retry_after_ms, 0)").await {
                    Some(left) if left <= 1.0 => Ok(()),
                    left => Err(left),
                }
            })
            .await;
        }
        // (What was counted before is written down first.)
        let written = "select count(*)::text from extension_breaker_events";
        let wanted = if stage == "closed" { "0" } else { "1" };
        eventually(SOON, async || match session.one(written, &[]).await {
            events if events == wanted => Ok(()),
            events => Err(events),
        })
        .await;
        let flushed = "select worker_last_flush::text from ext_registry_status()";
        let then = session.one("select clock_timestamp()::text", &[]).await;
        eventually(SOON, async || match session.one(flushed, &[]).await {
            at if at > then => Ok(()),
            at => Err(at),
        })
        .await;
        let before = session.one(state, &[]).await;
        session.run("begin read only").await;
        for _ in 0..20 {
            session
                .run("select * from ext_explain('x'); select * from ext_explain('y', '{\"tenant_id\": \"t\"}')")
                .await;
        }
        session.run("commit").await;
        assert_eq!(session.one(state, &[]).await, before, "{stage}");
    }
    // Its probe is still to be had, and the turn is the next one.
    assert_eq!(session.select("x", &json!({})).await.reason, "probe");
}

// 9. Eleven statements for one call, four of them updates of one hot row.

#[tokio::test]
async fn a_call_writes_no_row_and_waits_for_nobody() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    calls(&session, "success", 1).await;

    session.run("begin").await;
    let traces = "select concat_ws(' ', coalesce(pg_current_xact_id_if_assigned()::text, 'no xid'),
                      (select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_xact_user_tables),
                      (select count(*) from pg_locks l join pg_class c on c.oid = l.relation
                       where l.pid = pg_backend_pid() and c.relname like 'extension%'))";
    let before = session.one(traces, &[]).await;
    assert!(before.starts_with("no xid ") && before.ends_with(" 0"), "{before}");
    calls(&session, "success", 10).await;
    calls(&session, "error", 2).await;
    assert_eq!(session.one(traces, &[]).await, before);
    session.run("commit").await;

    // Somebody is changing the row, and everything around it, and does not come to an end.
    let editor = database.connect().await;
    editor
        .run(
            "begin; update extensions set timeout_ms = 9999; update extension_health set slow_call_ms = 5;
             lock table extensions, extension_versions, extension_instances in share row exclusive mode",
        )
        .await;
    session.run("set statement_timeout = '2s'").await;
    assert_eq!(calls(&session, "success", 20).await, 20);
    assert_eq!(session.counts("x").await, (31, 2));
    let newcomer = database.connect().await;
    newcomer.run("set statement_timeout = '2s'").await;
    assert_eq!(newcomer.select("x", &json!({})).await.timeout_ms, Some(100));
    editor.run("rollback").await;
}
