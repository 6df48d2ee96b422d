//! A hot standby decides and shows, by what has been replayed and by what was reported to itself, and writes nothing.

use std::time::Duration;

use ext_registry_tests::{Postgres, Session, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);
const DATABASE: &str = "app";

const BASE: &str = r#"
    insert into extensions (id, type, subject, timeout_ms, config) values ('x', 'pre', 'x.v1', 100, '{"n": 0}');
    insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
    values ('x', 'v2', 'x.v2', 200, 2, '{"tenant_id": "t"}');
    insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1')"#;

/// What a session's decisions show, but for turns.
async fn look(session: &Session) -> String {
    let sql = r#"select string_agg(concat_ws(' ', d.extension_id, d.reason, d.version, d.timeout_ms, d.retry, d.config, d.epoch),
                     '; ' order by d.ordinality)
                 from ext_select_many(array['x', 'x', 'y'], array['{}', '{"tenant_id": "t"}', '{}']::jsonb[]) d"#;
    session.one(sql, &[]).await
}

/// Primary and standby, `x` registered and replayed.
async fn pair() -> (Postgres, Postgres) {
    let primary = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    primary.make_database(DATABASE);
    primary.connect(DATABASE).await.run(BASE).await;
    // Nobody's snapshot is too old: a session of the standby is never ended for what it looks at.
    let standby = primary.standby(&["max_standby_streaming_delay = -1", "hot_standby_feedback = on"]);
    (primary, standby)
}

#[tokio::test]
async fn a_standby_decides_by_what_has_been_replayed() {
    let (primary, standby) = pair().await;
    let writer = primary.connect(DATABASE).await;
    let other = primary.connect(DATABASE).await;
    let mut readers = Vec::new();
    for kind in ["", "begin", "begin isolation level repeatable read"] {
        let session = standby.connect(DATABASE).await;
        if !kind.is_empty() {
            session.run(kind).await;
            session.run("select 1").await;
        }
        readers.push((kind, session));
    }
    writer.await_replay(&readers[0].1).await;
    let changes: &[&[&str]] = &[
        &[r#"update extensions set config = '{"n": 1}'"#],
        &[
            "begin",
            "update extension_versions set timeout_ms = 333",
            "savepoint s",
            "delete from extensions",
            "rollback to s",
            "commit",
        ],
        &[
            "begin",
            "insert into extensions (id, type, subject) values ('y', 'post', 'y.v1')",
            "prepare transaction 'standby'",
            "!commit prepared 'standby'",
        ],
        &["update extensions set id = 'z' where id = 'y'"],
        &["update extension_health set breaker_mode = 'forced_open' where extension_id = 'x'"],
        &["update extension_health set breaker_mode = 'auto' where extension_id = 'x'"],
        &["truncate extension_versions"],
        &[
            "alter table extension_versions add column note text",
            "vacuum full extension_versions",
            "reindex table extensions",
        ],
        &["begin", "truncate extensions cascade", BASE, "commit"],
        &["delete from extensions"],
        &[BASE],
    ];
    for change in changes {
        let before = look(&writer).await;
        for statement in *change {
            match statement.strip_prefix('!') {
                Some(statement) => other.run(statement).await,
                None => writer.run(statement).await,
            }
            if statement.starts_with("prepare") {
                writer.await_replay(&readers[0].1).await;
                for (kind, reader) in &readers {
                    assert_eq!(look(reader).await, before, "prepared, by a session in `{kind}`");
                }
            }
        }
        let changed = look(&writer).await;
        writer.await_replay(&readers[0].1).await;
        for (kind, reader) in &readers {
            assert_eq!(look(reader).await, changed, "{change:?}, by a session in `{kind}`");
        }
        // What is undone is not seen, however far the replay is.
        writer.run(r#"begin; update extensions set config = '{"n": -1}'; savepoint s; update extensions set timeout_ms = 9999; rollback"#).await;
        writer.await_replay(&readers[0].1).await;
        for (kind, reader) in &readers {
            assert_eq!(
                look(reader).await,
                changed,
                "undone after {change:?}, by a session in `{kind}`"
            );
        }
    }

    // The extension itself dropped and made again.
    writer
        .run("drop extension ext_registry; create extension ext_registry; insert into extensions (id, type, subject) values ('y', 'pre', 'fresh')")
        .await;
    writer.await_replay(&readers[0].1).await;
    let fresh = look(&writer).await;
    assert!(fresh.contains("y ok v1"), "{fresh}");
    assert_eq!(look(&readers[0].1).await, fresh);
}

async fn numbers(session: &Session) -> (i64, i64) {
    session.counts("x").await
}

#[tokio::test]
async fn turns_counts_and_breakers_of_a_standby_are_its_own_or_stricter() {
    let (primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    writer.await_replay(&reader).await;
    let anybody = json!({});

    // Turns: exact among the sessions of the standby, whatever the primary does.
    let mut picked = [0, 0];
    for _ in 0..20 {
        writer.select("x", &anybody).await;
        let decision = reader.select("x", &anybody).await;
        picked[usize::from(decision.instance() == "b")] += 1;
        reader
            .report(decision.ticket, "success", Duration::from_millis(5))
            .await;
    }
    assert_eq!(picked, [10, 10]);
    assert_eq!(
        (numbers(&reader).await, numbers(&writer).await),
        ((20, 0), (0, 0)),
        "each its own"
    );

    // It opens by what was reported to the standby; the primary knows nothing of it.
    assert_eq!(reader.call("x", &anybody, "error", 20).await, 5);
    assert_eq!(reader.call("x", &anybody, "timeout", 20).await, 0);
    assert_eq!(reader.breaker("x").await, "open");
    assert_eq!(writer.breaker("x").await, "closed");
    assert_eq!(writer.select("x", &anybody).await.reason, "ok");

    // A reset is a change of the registry: once replayed, it is applied here too.
    writer.run("select ext_breaker_reset('x')").await;
    writer.await_replay(&reader).await;
    assert_eq!(reader.select("x", &anybody).await.reason, "ok");
    assert_eq!(reader.breaker("x").await, "closed");
}

#[tokio::test]
async fn a_standby_refuses_what_the_primary_refuses() {
    let (primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    writer.await_replay(&reader).await;
    let anybody = json!({});
    assert_eq!(reader.select("x", &anybody).await.reason, "ok");
    writer.call("x", &anybody, "error", 5).await;
    assert_eq!(writer.breaker("x").await, "open");
    let becomes = async |wanted: &str| {
        eventually(SOON, async || {
            let reason = reader.select("x", &anybody).await.reason;
            if reason == wanted { Ok(()) } else { Err(reason) }
        })
        .await;
    };
    becomes("extension_circuit_open").await;
    assert_eq!(reader.breaker("x").await, "open");
    writer.run("select ext_breaker_reset('x')").await;
    becomes("ok").await;
}

#[tokio::test]
async fn a_standby_shows_its_own_counts() {
    let (primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    writer.call("x", &json!({}), "success", 30).await;
    let saved = "select count(*)::text from extension_target_state";
    eventually(SOON, async || match writer.one(saved, &[]).await.as_str() {
        "0" => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    writer.await_replay(&reader).await;
    reader.call("x", &json!({}), "success", 1).await;
    assert_eq!(numbers(&reader).await, (1, 0));
}

#[tokio::test]
async fn a_standby_shows_everything_and_writes_nothing() {
    let (primary, standby) = pair().await;
    let (writer, reader) = (primary.connect(DATABASE).await, standby.connect(DATABASE).await);
    writer.call("x", &json!({}), "success", 30).await;
    let flushed = "select count(*)::text from extension_metrics where success > 0";
    eventually(SOON, async || match writer.one(flushed, &[]).await.as_str() {
        "0" => Err("not yet"),
        _ => Ok(()),
    })
    .await;
    writer.await_replay(&reader).await;
    let status = "select is_standby::text || ' ' || total || ' ' || triggers_intact from ext_registry_status()";
    assert_eq!(reader.one(status, &[]).await, "true 1 true");
    assert_eq!(writer.one(status, &[]).await, "false 1 true");

    let ticket = reader.select("x", &json!({})).await.ticket;
    let is_there = async |statement: &str| {
        let head = statement.split('(').next().unwrap_or_default();
        let name = head.rsplit(' ').next().unwrap_or_default();
        let sql = "select exists (select from pg_proc where proname = $1::text)::text";
        let there = reader.one(sql, &[&name]).await == "true";
        if !there {
            println!("{name} is not there yet");
        }
        there
    };
    for query in [
        "select * from extension_health",
        "select * from extension_version_health",
        "select * from extension_instance_health",
        "select * from extension_breaker_events",
        "select * from extension_metrics",
        "select * from extension_audit_log",
        "select * from ext_registry_status()",
        "select * from ext_explain('x')",
        "select * from ext_preview(array['x'], array['{}']::jsonb[])",
        "select * from ext_select_many(array['x', 'y', null], array['{}', '{}', null]::jsonb[])",
        "select * from ext_lookup('x')",
        "select * from ext_lookup_by_type('pre')",
        "select * from ext_versions('x')",
        "select * from ext_instances('x')",
        "select * from ext_health('x')",
        "select * from ext_health_all()",
        "select * from ext_health_summary()",
        "select * from ext_latency('x', 0.95)",
        "select * from ext_latency_histogram('x')",
        "select * from ext_history('x', '1 h', '1 min')",
        "select * from ext_policy_uses('x')",
        "select ext_export()",
        "select ext_report('x', 'success', 1)",
        "select * from ext_report_many(array[0]::bigint[], array['success'], array[1.0]::float8[], array[0])",
    ] {
        if query.contains("ext_") && !query.contains("extension_") && !is_there(query).await {
            continue;
        }
        for begin in ["begin", "begin isolation level repeatable read", "begin read only"] {
            reader.run(begin).await;
            reader.run(query).await;
            reader.run("commit").await;
        }
    }
    reader.report(ticket, "success", Duration::from_millis(1)).await;
    // What was reported here counts here, and nothing else.
    assert!(numbers(&reader).await.0 >= 4);

    // What would write says that it cannot, and how it would be said anywhere else.
    for statement in [
        "update extensions set enabled = false",
        "update extension_health set circuit_breaker_state = 'closed' where extension_id = 'x'",
        "select ext_breaker_reset('x')",
        "select ext_breaker_force('x', 'forced_open')",
        r#"select ext_register('{"id": "z", "type": "pre", "subject": "z"}')"#,
        "select ext_grant('bridge', 'viewer')",
        "select ext_invoke('x', '{}')",
    ] {
        if statement.starts_with("select") && !is_there(statement).await {
            continue;
        }
        let error = reader.error_of(statement).await;
        assert_eq!(error.code().code(), "25006", "{statement}: {error}");
    }

    // Many flush intervals later: as if nobody had called.
    let written =
        "select concat_ws(' ', (select count(*) from extension_metrics), (select sum(success) from extension_metrics),
                       (select count(*) from extension_breaker_events), (select count(*) from extension_target_state),
                       (select count(*) from extension_audit_log))";
    let before = writer.one(written, &[]).await;
    reader.call("x", &json!({}), "error", 5).await;
    assert_eq!(reader.breaker("x").await, "open");
    let flush = "select worker_last_flush::text from ext_registry_status()";
    for _ in 0..3 {
        let last = writer.one(flush, &[]).await;
        eventually(SOON, async || match writer.one(flush, &[]).await {
            next if next > last => Ok(()),
            next => Err(next),
        })
        .await;
    }
    writer.await_replay(&reader).await;
    assert_eq!(writer.one(written, &[]).await, before);
    assert_eq!(reader.one(written, &[]).await, before);
    assert_eq!(numbers(&writer).await, (30, 0));
    let log = standby.log();
    for trace in [
        "ERROR:  cannot execute",
        "cannot write",
        "PANIC",
        "terminated by signal",
    ] {
        let complaints: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(trace) && !line.contains("ext_registry_tests"))
            .collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

#[tokio::test]
async fn the_worker_does_not_wait_for_a_synchronous_standby() {
    let primary = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    primary.make_database(DATABASE);
    let session = primary.connect(DATABASE).await;
    session.run(BASE).await;
    session.call("x", &json!({}), "success", 1).await;
    let flush = "select worker_last_flush::text from ext_registry_status()";
    eventually(SOON, async || match session.one(flush, &[]).await.as_str() {
        "NULL" => Err("no flush yet"),
        _ => Ok(()),
    })
    .await;
    // From now on a commit waits for somebody who never comes.
    session
        .run("alter system set synchronous_standby_names = 'nobody'")
        .await;
    session.run("select pg_reload_conf()").await;
    eventually(SOON, async || {
        match session.one("show synchronous_standby_names", &[]).await.as_str() {
            "nobody" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    session.call("x", &json!({}), "error", 10).await;
    let written = "select count(*)::text from extension_breaker_events where to_state = 'open'";
    eventually(SOON, async || match session.one(written, &[]).await.as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let last = session.one(flush, &[]).await;
    eventually(SOON, async || match session.one(flush, &[]).await {
        next if next > last => Ok(()),
        next => Err(next),
    })
    .await;
    // (So that dropping the cluster waits for nobody either.)
    session.run("alter system reset synchronous_standby_names").await;
    session.run("select pg_reload_conf()").await;
}
