//! The background processes: they come back when they are ended, and stand in nobody's way.

use std::time::{Duration, Instant};

use ext_registry_tests::{Database, Postgres, Session, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// The process id of the worker, once there is one.
async fn worker(session: &Session) -> i32 {
    eventually(SOON, async || {
        let pid = session
            .one("select worker_pid::text from ext_registry_status()", &[])
            .await;
        pid.parse().map_err(|_| "no worker")
    })
    .await
}

async fn registered(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session
}

/// Waits until what is counted has been written down.
async fn written(session: &Session, successes: i64) {
    eventually(SOON, async || {
        let sql = "select coalesce(sum(success), 0)::text from extension_metrics where version <> ''";
        let sum = session.one(sql, &[]).await;
        if sum == successes.to_string() { Ok(()) } else { Err(sum) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_ended_comes_back() {
    let cluster = Postgres::start(&[
        "ext_registry.flush_interval = '50ms'",
        "ext_registry.launcher_naptime = '100ms'",
    ]);
    let database = cluster.database();
    let session = registered(&database).await;
    session.call("x", &json!({}), "success", 3).await;
    written(&session, 3).await;

    let ended = worker(&session).await;
    session
        .execute("select pg_terminate_backend($1)", &[&ended])
        .await
        .expect("a superuser may");
    session.call("x", &json!({}), "success", 2).await;
    eventually(SOON, async || match worker(&session).await {
        pid if pid != ended => Ok(()),
        _ => Err("the old one"),
    })
    .await;
    written(&session, 5).await;

    // The launcher, too: it starts workers from then on.
    let launcher =
        "select coalesce(max(pid), 0)::text from pg_stat_activity where backend_type = 'ext_registry launcher'";
    let ended = session.one(launcher, &[]).await;
    session.run(&format!("select pg_terminate_backend({ended})")).await;
    eventually(SOON, async || {
        let pid = session.one(launcher, &[]).await;
        if pid != "0" && pid != ended { Ok(()) } else { Err(pid) }
    })
    .await;
    let other = cluster.database();
    let second = registered(&other).await;
    second.call("x", &json!({}), "success", 1).await;
    written(&second, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_are_dropped_renamed_and_copied_in_no_time() {
    const PATIENCE: Duration = Duration::from_secs(3);
    let cluster = Postgres::start(&[]);
    let kept = cluster.database();
    // Somebody who has reported, and stays.
    let busy = registered(&kept).await;
    busy.call("x", &json!({}), "success", 1).await;
    worker(&busy).await;
    let admin = cluster.connect("postgres").await;
    for statement in [
        "drop database victim",
        "drop database victim with (force)",
        "alter database victim rename to renamed; drop database renamed",
        "create database copy template victim; drop database copy; drop database victim",
    ] {
        cluster.make_database("victim");
        let session = cluster.connect("victim").await;
        session
            .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
            .await;
        session.call("x", &json!({}), "success", 1).await;
        worker(&session).await;
        if !statement.contains("force") {
            drop(session);
            eventually(SOON, async || {
                let sql = "select count(*)::text from pg_stat_activity where datname = 'victim' and backend_type = 'client backend'";
                match admin.one(sql, &[]).await.as_str() {
                    "0" => Ok(()),
                    left => Err(left.to_owned()),
                }
            })
            .await;
        }
        let begun = Instant::now();
        for statement in statement.split("; ") {
            admin.run(statement).await;
        }
        let took = begun.elapsed();
        assert!(took < PATIENCE, "{statement}: {took:?}");
    }
    assert_eq!(busy.counts("x").await, (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_without_the_right_ends_a_worker() {
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let session = registered(&database).await;
    session.run("create role anybody login").await;
    let pid = worker(&session).await;
    let anybody = cluster
        .try_connect_as("anybody", "postgres")
        .await
        .expect("it may log in");
    let name = database.name();
    for statement in [
        format!("drop database {name}"),
        format!("drop database {name} with (force)"),
        format!("alter database {name} rename to mine"),
        format!("alter database {name} set tablespace pg_default"),
        format!("alter database {name} connection limit 5"),
        format!("create database mine template {name}"),
        format!("select pg_terminate_backend({pid})"),
    ] {
        let error = anybody.error_of(&statement).await;
        assert_eq!(error.code().code(), "42501", "{statement}: {error:?}");
        assert_eq!(worker(&session).await, pid, "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_is_deleted() {
    let cluster = Postgres::start(&[
        "ext_registry.flush_interval = '50ms'",
        "ext_registry.launcher_naptime = '100ms'",
        "ext_registry.metrics_retention = '10min'",
    ]);
    let database = cluster.database();
    let session = registered(&database).await;
    session
        .run(
            "insert into extension_metrics (minute, extension_id, success)
             values (now() - interval '11 min', 'x', 1), (now() - interval '9 min', 'x', 1);
             insert into extension_breaker_events (at, extension_id, from_state, to_state)
             values (now() - interval '91 days', 'x', 'closed', 'open'), (now() - interval '89 days', 'x', 'closed', 'open');
             insert into extension_audit_log (extension_id, action, table_name, changed_at)
             values ('x', 'update', 'extensions', now() - interval '30 years')",
        )
        .await;
    // A worker cleans up when it starts, and every minute.
    let ended = worker(&session).await;
    session
        .execute("select pg_terminate_backend($1)", &[&ended])
        .await
        .expect("a superuser may");
    eventually(SOON, async || {
        let left = session
            .one(
                "select format('%s %s %s', (select count(*) from extension_metrics), (select count(*) from extension_breaker_events),
                     (select count(*) from extension_audit_log where changed_at < now() - interval '1 year'))",
                &[],
            )
            .await;
        if left == "1 1 1" { Ok(()) } else { Err(left) }
    })
    .await;
}
