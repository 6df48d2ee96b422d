//! What transactions mean for live state: outcomes, turns and breakers are not transactional, a caller that rolls back has
//! still called; a reset is, as are renames, which keep the state, and new rows, which start afresh.

use std::time::Duration;

use ext_registry_tests::{Database, Postgres, Session, Shutdown, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// Sessions in transactions that have begun before, each with a snapshot that stays.
async fn readers(database: &Database<'_>) -> Vec<(&'static str, Session)> {
    let mut readers = Vec::new();
    for level in ["read committed", "repeatable read", "serializable"] {
        let session = database.connect().await;
        session
            .run(&format!("begin isolation level {level}; select count(*) from pg_class"))
            .await;
        readers.push((level, session));
    }
    readers
}

/// `x` without versions, whose breaker is open after five errors.
async fn opened(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run("delete from extensions; insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(session.breaker("x").await, "open");
    session
}

/// The state that the view shows, and what a decision gets.
async fn stand(session: &Session) -> (String, String) {
    (session.breaker("x").await, session.select("x", &json!({})).await.reason)
}

const RESET: &str = "UPDATE extension_health SET circuit_breaker_state = 'closed', circuit_breaker_opened_at = NULL
                     WHERE extension_id = 'x'";

fn is(state: &str, reason: &str) -> (String, String) {
    (state.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn a_reset_takes_place_at_commit() {
    let database = Postgres::shared().database();
    let other = database.connect().await;
    let readers = readers(&database).await;
    let ways: &[(&str, &[&str])] = &[
        ("", &[]),
        ("begin", &["commit"]),
        ("begin isolation level serializable", &["commit"]),
        ("begin; savepoint s", &["release s", "commit"]),
        (
            "begin",
            &["prepare transaction 'reset kept'", "!commit prepared 'reset kept'"],
        ),
    ];
    for (begin, end) in ways {
        let session = opened(&database).await;
        session.run(begin).await;
        session.run(RESET).await;
        for statement in *end {
            // Its own view shows what will be; calls are refused until it is, for everybody.
            if !statement.starts_with('!') {
                assert_eq!(stand(&session).await, is("closed", "extension_circuit_open"), "{begin}");
            }
            assert_eq!(stand(&other).await, is("open", "extension_circuit_open"), "{begin}");
            match statement.strip_prefix('!') {
                Some(statement) => other.run(statement).await,
                None => session.run(statement).await,
            }
        }
        // Whoever comes first applies it, whatever its transaction.
        for (kind, reader) in &readers {
            let reason = reader.select("x", &json!({})).await.reason;
            assert_eq!(reason, "ok", "{begin} {end:?}, by a session in `{kind}`");
        }
        assert_eq!(stand(&session).await, is("closed", "ok"), "{begin} {end:?}");
        assert_eq!(stand(&other).await, is("closed", "ok"), "{begin} {end:?}");
        assert_eq!(session.counts("x").await, (0, 5), "counts stay");
        // The window is cleared: four more errors open nothing, the fifth does.
        session.call("x", &json!({}), "error", 4).await;
        assert_eq!(stand(&session).await, is("closed", "ok"), "{begin} {end:?}");
        session.call("x", &json!({}), "error", 1).await;
        assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    }
    let session = opened(&database).await;
    session.run("select ext_breaker_reset('x')").await;
    assert_eq!(stand(&other).await, is("closed", "ok"), "by the function");
}

#[tokio::test]
async fn a_reset_that_is_undone_leaves_everything_as_it_was() {
    let database = Postgres::shared().database();
    let session = opened(&database).await;
    let other = database.connect().await;
    let retry_after = "select retry_after_ms::text from extension_version_health";
    let before = session
        .one("select circuit_breaker_opened_at::text from extension_health", &[])
        .await;
    for (begin, end) in [
        ("begin", "rollback"),
        ("begin; savepoint s", "rollback to s; commit"),
        ("begin; savepoint s", "release s; rollback"),
        (
            "begin",
            "prepare transaction 'reset undone'; rollback prepared 'reset undone'",
        ),
    ] {
        session.run(begin).await;
        session.run(RESET).await;
        assert_eq!(session.breaker("x").await, "closed", "{begin}");
        for statement in end.split("; ") {
            session.run(statement).await;
        }
        assert_eq!(
            stand(&session).await,
            is("open", "extension_circuit_open"),
            "{begin} {end}"
        );
        assert_eq!(
            stand(&other).await,
            is("open", "extension_circuit_open"),
            "{begin} {end}"
        );
    }
    let opened_at = session
        .one("select circuit_breaker_opened_at::text from extension_health", &[])
        .await;
    assert_eq!(opened_at[..19], before[..19], "the opening is the same one");
    assert_ne!(session.one(retry_after, &[]).await, "NULL");
    // And it can still be reset.
    session.run(RESET).await;
    assert_eq!(stand(&other).await, is("closed", "ok"));
}

#[tokio::test]
async fn a_reset_is_for_all_versions_or_for_one() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
                   ('x', 'v1', 'x.v1', 100, 0, '{}'), ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": "t"}')"#,
        )
        .await;
    let open_both = async || {
        for version in ["v1", "v2"] {
            let sql = format!("select ext_report('x', 'error', 1, version => '{version}') from generate_series(1, 5)");
            session.run(&sql).await;
        }
    };
    let open = "select open_versions::text from extension_health";
    open_both().await;
    assert_eq!(session.one(open, &[]).await, "{v1,v2}");
    session.run("select ext_breaker_reset('x', 'v2')").await;
    assert_eq!(session.one(open, &[]).await, "{v1}");
    open_both().await;
    session.run(RESET).await;
    assert_eq!(session.one(open, &[]).await, "{}");
    // Resets of one version after one of all, and the reverse, each count.
    for reset in [
        "select ext_breaker_reset('x', 'v2'); select ext_breaker_reset('x', 'v1')",
        RESET,
    ] {
        open_both().await;
        session.run(reset).await;
        assert_eq!(session.one(open, &[]).await, "{}", "{reset}");
    }
}

#[tokio::test]
async fn a_reset_before_a_restart_is_not_forgotten() {
    let mut cluster = Postgres::start(&[]);
    cluster.make_database("app");
    let session = cluster.connect("app").await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session.call("x", &json!({}), "error", 5).await;
    let saved = "select count(*)::text from extension_target_state where breaker_state = 'open'";
    eventually(SOON, async || match session.one(saved, &[]).await.as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    // Committed, and nobody has looked at it since.
    session.run(RESET).await;
    cluster.restart(Shutdown::Immediate);
    let session = cluster.connect("app").await;
    assert_eq!(stand(&session).await, is("closed", "ok"));
    // It is applied once: what opens later stays open.
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    cluster.restart(Shutdown::Fast);
    let session = cluster.connect("app").await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    session.run(RESET).await;
    assert_eq!(stand(&session).await, is("closed", "ok"));
}

#[tokio::test]
async fn outcomes_turns_and_breakers_are_not_transactional() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
             insert into extension_instances (extension_id, instance_id, subject)
             values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1')",
        )
        .await;

    // Turns: a rolled back caller has had its.
    let mut picked = Vec::new();
    for end in ["rollback", "commit", "rollback to s; rollback", "rollback"] {
        session.run("begin; savepoint s").await;
        picked.push(session.select("x", &json!({})).await.instance().to_owned());
        session.run(end).await;
    }
    assert!(picked[0] != picked[1] && picked[..2] == picked[2..], "{picked:?}");

    // Outcomes: counted, whatever becomes of the transaction; a ticket outlives it.
    session.run("begin").await;
    let kept = session.select("x", &json!({})).await;
    session.call("x", &json!({}), "success", 3).await;
    session.run("savepoint s").await;
    session.call("x", &json!({}), "success", 2).await;
    session.run("rollback to s; rollback").await;
    assert_eq!(session.counts("x").await, (5, 0));
    let other = database.connect().await;
    other.report(kept.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(session.counts("x").await, (6, 0));

    // Breakers: opened by calls that a rolled back transaction has made, for everybody.
    session.run("begin").await;
    session.call("x", &json!({}), "error", 10).await;
    session.run("rollback").await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    assert_eq!(stand(&other).await, is("open", "extension_circuit_open"));

    // And all of that in a transaction that may write nothing.
    session.run("select ext_breaker_reset('x')").await;
    session.run("begin isolation level serializable read only").await;
    session.call("x", &json!({}), "success", 4).await;
    session.run("commit").await;
    assert_eq!(session.counts("x").await.0, 10);
}

#[tokio::test]
async fn an_extension_that_is_never_committed_leaves_nothing() {
    let cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run("begin; insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session.call("x", &json!({}), "success", 3).await;
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    let ticket = {
        session.run("select ext_breaker_reset('x')").await;
        session.select("x", &json!({})).await.ticket
    };
    session.run("rollback").await;
    assert_eq!(session.select("x", &json!({})).await.reason, "extension_not_found");
    session.report(ticket, "success", Duration::from_millis(1)).await;

    // The worker goes on, and knows nothing of it.
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    assert_eq!(
        (stand(&session).await, session.counts("x").await),
        (is("closed", "ok"), (0, 0))
    );
    session.call("x", &json!({}), "success", 1).await;
    let stored = "select concat_ws(' ', (select count(*) from extension_target_state),
                      (select sum(success) from extension_metrics), (select count(*) from extension_breaker_events))";
    eventually(SOON, async || match session.one(stored, &[]).await.as_str() {
        "1 1 0" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let log = cluster.log();
    assert!(!log.contains("ERROR") && !log.contains("cannot write"), "{log}");
}

/// Counts, state and latency of x or whatever it is called now.
async fn state(session: &Session, id: &str) -> String {
    let sql = "select concat_ws(' ', success_count, failure_count, circuit_breaker_state, latency_samples, latency_sum,
                   p50_latency_ms, open_versions) from extension_health where extension_id = $1";
    session.one(sql, &[&id]).await
}

#[tokio::test]
async fn a_rename_keeps_the_state_and_a_new_row_starts_afresh() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    let other = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1'), ('z', 'pre', 'z.v1');
             insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1')",
        )
        .await;
    session.call("x", &json!({}), "success", 4).await;
    let kept = session.select("x", &json!({})).await.ticket;
    session.call("x", &json!({}), "timeout", 5).await;
    session.call("z", &json!({}), "success", 1).await;
    let (x, z) = (state(&session, "x").await, state(&session, "z").await);
    assert!(x.starts_with("4 4 open 8"), "{x}");
    let fresh = "0 0 closed 0 {}";

    session
        .run("begin; update extensions set id = 'y' where id = 'x'")
        .await;
    assert_eq!(state(&session, "y").await, x, "at once, for who renames");
    assert_eq!(state(&other, "x").await, x);
    session.run("rollback").await;
    assert_eq!(state(&session, "x").await, x);

    session.run("update extensions set id = 'y' where id = 'x'").await;
    for reader in [&session, &other] {
        assert_eq!(state(reader, "y").await, x);
        assert_eq!(reader.select("y", &json!({})).await.reason, "extension_circuit_open");
        assert_eq!(reader.select("x", &json!({})).await.reason, "extension_not_found");
    }
    let instance = "select success_count::text from extension_instance_health where extension_id = 'y'";
    assert_eq!(session.one(instance, &[]).await, "4", "instances keep theirs");
    // The report of a call from before finds its target under the new name.
    other.report(kept, "success", Duration::from_millis(7)).await;
    assert!(state(&session, "y").await.starts_with("5 4 open 9"));
    let y = state(&session, "y").await;

    // Whoever takes the old name is somebody else.
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    assert_eq!(
        (state(&other, "x").await.as_str(), state(&other, "y").await),
        (fresh, y.clone())
    );
    session.run("delete from extensions where id = 'x'").await;

    // Two change names.
    session
        .run(
            "begin;
             update extensions set id = 'tmp' where id = 'y';
             update extensions set id = 'y' where id = 'z';
             update extensions set id = 'z' where id = 'tmp';
             commit",
        )
        .await;
    assert_eq!((state(&other, "z").await, state(&other, "y").await), (y.clone(), z));

    // Deleted and created again: afresh, in one transaction or in two; if it is undone, as it was.
    let renew =
        "delete from extensions where id = 'z'; insert into extensions (id, type, subject) values ('z', 'pre', 'z.v1')";
    session.run(&format!("begin; {renew}")).await;
    assert_eq!(state(&session, "z").await, fresh);
    assert_eq!(state(&other, "z").await, y);
    session.run("rollback").await;
    assert_eq!((state(&session, "z").await, state(&other, "z").await), (y.clone(), y));
    session.run(renew).await;
    assert_eq!(
        (state(&session, "z").await.as_str(), state(&other, "z").await.as_str()),
        (fresh, fresh)
    );
    assert_eq!(other.select("z", &json!({})).await.reason, "ok");
}

#[tokio::test]
async fn rows_restored_into_a_new_extension_start_afresh() {
    // The worker is about to write all the time: what it has of the old extension must not get into the new one.
    let cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = opened(&database).await;
    for _ in 0..2 {
        session.run(RESET).await;
        session.call("x", &json!({}), "error", 5).await;
    }
    assert_eq!(session.counts("x").await, (0, 15));
    // As `pg_dump --clean | psql` does it: the rows are the same to the last column.
    session
        .run(
            "create table kept as select * from extensions;
             drop extension ext_registry; create extension ext_registry;
             insert into extensions select * from kept",
        )
        .await;
    assert_eq!(stand(&session).await, is("closed", "ok"));
    assert_eq!(session.counts("x").await, (0, 0));
    // Resets count from the beginning there, and take place.
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    session.run(RESET).await;
    assert_eq!(stand(&session).await, is("closed", "ok"));
}

/// Counts wait for the flush interval, here a minute; a breaker that moves does not.
#[tokio::test]
async fn a_transition_is_on_disk_long_before_the_counts_are() {
    let mut cluster = Postgres::start(&["ext_registry.flush_interval = '60s'"]);
    cluster.make_database("app");
    let session = cluster.connect("app").await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1'), ('y', 'pre', 'y.v1')")
        .await;
    let alive = "select worker_alive::text from ext_registry_status()";
    eventually(SOON, async || match session.one(alive, &[]).await.as_str() {
        "true" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    session.call("y", &json!({}), "success", 10).await;
    session.call("x", &json!({}), "error", 5).await;
    let began = std::time::Instant::now();
    let written = "select concat_ws(' ', (select count(*) from extension_breaker_events where to_state = 'open'),
                       (select count(*) from extension_target_state where breaker_state = 'open'))";
    // Within 100 ms where nobody else is at work; here, within a small part of the interval.
    eventually(Duration::from_secs(6), async || {
        match session.one(written, &[]).await.as_str() {
            "1 1" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    println!("written after {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    cluster.restart(Shutdown::Immediate);
    let session = cluster.connect("app").await;
    assert_eq!(stand(&session).await, is("open", "extension_circuit_open"));
    // Counts belong to the batches of reports that are written with them: a bridge that sends those again has them counted once.
    assert_eq!(session.counts("x").await, (0, 0), "they wait for the interval");
    // A clean stop writes down what there is, however long the interval.
    session.call("y", &json!({}), "success", 7).await;
    let before = session.counts("y").await;
    cluster.restart(Shutdown::Fast);
    let session = cluster.connect("app").await;
    assert_eq!(session.counts("y").await, before);
}
