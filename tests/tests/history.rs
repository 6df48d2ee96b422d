//! What was measured, over spans of time: percentiles, histograms, series, resets, and what was gathered elsewhere.

use std::time::Duration;

use ext_registry_tests::{Database, Postgres, Session, Shutdown, eventually};
use serde_json::json;
use tokio_postgres::types::FromSqlOwned;

const SOON: Duration = Duration::from_secs(20);

/// The one value of a query.
async fn value<T: FromSqlOwned>(session: &Session, sql: &str) -> T {
    let row = session
        .query_one(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    row.get(0)
}

async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
             insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
             values ('x', 'v2', 'x.v2', 100, 0, '{\"tenant_id\": \"t2\"}');
             insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1')",
        )
        .await;
    session
}

async fn number(session: &Session, sql: &str) -> Option<f64> {
    value(session, &format!("select ({sql})::float8")).await
}

fn near(value: Option<f64>, expected: f64) -> bool {
    value.is_some_and(|value| (value / expected - 1.0).abs() <= 0.01)
}

#[tokio::test]
async fn percentiles_by_version_instance_and_time() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    assert_eq!(number(&session, "ext_latency('x', 0.5)").await, None, "no data is NULL");
    session
        .run(
            "select ext_report('x', 'success', n, instance_id => 'a') from generate_series(1, 100) n;
             select ext_report('x', 'success', 1000 + n, version => 'v2') from generate_series(1, 100) n",
        )
        .await;
    for (sql, expected) in [
        ("ext_latency('x', 0.5)", 100.0),
        ("ext_latency('x', 0.25)", 50.0),
        ("ext_latency('x', 1)", 1100.0),
        ("ext_latency('x', 0.5, version => 'v2')", 1050.0),
        ("ext_latency('x', 0.5, instance_id => 'a')", 50.0),
        ("ext_latency('x', 0.5, '7 days', 'v1')", 50.0),
    ] {
        let value = number(&session, sql).await;
        assert!(near(value, expected), "{sql}: {value:?}, not {expected}");
    }
    // What live state no longer speaks for is read from the table, and only that: nothing counts twice.
    session
        .run(
            "insert into extension_metrics (minute, extension_id, version, success, latency)
             select date_trunc('minute', now()) - interval '30 min', 'x', 'v1', 200, hdr_agg(5000) from generate_series(1, 200)",
        )
        .await;
    assert!(near(number(&session, "ext_latency('x', 0.9, '1 hour')").await, 5000.0));
    assert!(near(number(&session, "ext_latency('x', 0.5, '10 min')").await, 100.0));
    eventually(SOON, async || {
        let written: i64 = value(&session, "select coalesce(sum(success), 0)::bigint from extension_metrics where minute > now() - interval '10 min' and instance_id = ''").await;
        if written == 200 { Ok(()) } else { Err(written) }
    })
    .await;
    let requests: i64 = value(
        &session,
        "select sum(requests)::bigint from ext_history('x', '1 hour', '5 min')",
    )
    .await;
    assert_eq!(requests, 400, "each once, live or written");
    let rows: i64 = value(&session, "select count(*) from ext_history('x', '1 hour', '5 min')").await;
    assert!((12..=13).contains(&rows), "{rows}");
    let shown: i64 = value(
        &session,
        "select sum(count)::bigint from ext_latency_histogram('x', '1 hour')",
    )
    .await;
    assert_eq!(shown, 400);
    let bars: i64 = value(
        &session,
        "select max(length(bar))::bigint from ext_latency_histogram('x')",
    )
    .await;
    assert_eq!(bars, 50);
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused_by_value() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    for (sql, code, part) in [
        ("select ext_latency('y', 0.5)", "42704", "\"y\""),
        ("select ext_latency(null, 0.5)", "42704", "NULL"),
        ("select ext_latency('x', 0.5, '-1 min')", "22023", "-00:01:00"),
        ("select ext_latency('x', 0.5, null)", "22023", "NULL"),
        ("select ext_latency('x', 0.5, '5 min', 'v1', 'a')", "22023", "\"a\""),
        ("select ext_history('x', '1 hour', '30 s')", "22023", "00:00:30"),
        ("select ext_history('x', '100 years', '1 min')", "22023", "100 years"),
        ("select ext_stats_reset('y')", "42704", "\"y\""),
        ("select hdr_agg(-1)", "22023", "-1"),
        ("select hdr_agg('NaN')", "22023", "NaN"),
        ("select ext_report_merge('[]')", "22023", "an object"),
        ("select ext_report_merge(null)", "22023", "NULL"),
        (
            "select ext_report_merge('{\"reporter\": \"me\", \"seq\": 1}')",
            "22023",
            "me",
        ),
    ] {
        // The quantile is looked at only where there is data.
        session.run("select ext_report('x', 'success', 1)").await;
        let error = session.query(sql, &[]).await.expect_err(sql);
        let error = error.as_db_error().expect(sql);
        assert_eq!(error.code().code(), code, "{sql}: {error}");
        assert!(error.message().contains(part), "{sql}: {error}");
        assert!(error.hint().is_some(), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_reset_of_statistics_leaves_breakers_alone() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    session.call("x", &json!({}), "error", 5).await;
    session.call("x", &json!({"tenant_id": "t2"}), "success", 7).await;
    assert_eq!(session.breaker("x").await, "open");
    assert_eq!(session.counts("x").await, (7, 5));
    session.run("begin; select ext_stats_reset('x'); rollback").await;
    let row = session
        .query_one(
            "select success_count, failure_count, p95_latency_ms, last_failure, circuit_breaker_state::text from extension_health", &[])
        .await
        .expect("the view");
    assert_eq!(
        (row.get(0), row.get(1)),
        (0_i64, 0_i64),
        "statistics are no part of the transaction"
    );
    assert_eq!(row.get::<_, Option<f64>>(2), None);
    assert_eq!(row.get::<_, Option<std::time::SystemTime>>(3), None);
    assert_eq!(row.get::<_, String>(4), "open");
    session.call("x", &json!({"tenant_id": "t2"}), "success", 2).await;
    assert_eq!(session.counts("x").await, (2, 0));
}

#[tokio::test]
async fn outcomes_gathered_elsewhere_are_added_once() {
    let mut cluster = Postgres::start(&[]);
    cluster.make_database("app");
    let session = cluster.connect("app").await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
             insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1')",
        )
        .await;
    session.call("x", &json!({}), "success", 3).await;
    let now: i64 = value(&session, "select extract(epoch from now())::bigint").await;
    let latency: String = value(&session, "select hdr_agg(40)::text from generate_series(1, 10)").await;
    let document = |seq: i64| {
        json!({"reporter": "6f1c9a52-7d7e-4c34-9a53-0d8a6b1f2c3e", "seq": seq, "targets": [
            {"extension_id": "x", "version": "v1", "instance_id": "a", "at": now,
             "outcomes": {"success": 4, "timeout": 6}, "retries": 2, "latency": latency},
            {"extension_id": "x", "version": "v1", "at": now - 3600, "outcomes": {"error": 50}, "latency": latency},
            {"extension_id": "gone", "version": "v1", "at": now, "outcomes": {"success": 1}},
        ]})
    };
    let merge = async |seq: i64| {
        let row = session
            .query_one("select * from ext_report_merge($1)", &[&document(seq)])
            .await
            .expect("a good document");
        (row.get::<_, i32>(0), row.get::<_, i32>(1))
    };
    assert_eq!(merge(1).await, (3, 1));
    assert_eq!(merge(1).await, (0, 4), "a document that comes twice counts once");
    assert_eq!(session.counts("x").await, (7, 56));
    assert_eq!(session.breaker("x").await, "closed", "never into breakers");
    let history: i64 = value(
        &session,
        "select sum(requests)::bigint from ext_history('x', '2 hours')",
    )
    .await;
    assert_eq!(history, 3 + 10 + 50);
    assert_eq!(merge(2).await, (3, 1));
    // An instance that has gone meanwhile takes nothing from its version.
    let gone = json!({"targets": [
        {"extension_id": "x", "version": "v1", "instance_id": "b", "at": now, "outcomes": {"success": 2}},
        {"extension_id": "x", "version": "v9", "instance_id": "a", "at": now, "outcomes": {"error": 1}},
    ]});
    let row = session
        .query_one("select * from ext_report_merge($1)", &[&gone])
        .await
        .expect("a good document");
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (2, 2));
    assert_eq!(session.counts("x").await, (13, 112));
    let old: i64 = value(
        &session,
        "select error from extension_metrics where minute < now() - interval '30 min'",
    )
    .await;
    assert_eq!(old, 100, "added to what is written");
    drop(session);
    cluster.restart(Shutdown::Fast);
    let session = cluster.connect("app").await;
    assert_eq!(session.counts("x").await, (13, 112));
    let row = session
        .query_one("select * from ext_report_merge($1)", &[&document(2)])
        .await
        .expect("a good document");
    assert_eq!(row.get::<_, i32>(0), 0, "also after a restart");
}

#[tokio::test]
async fn outcomes_of_a_minute_that_is_written_already_reach_the_history() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let written = async |wanted: i64| {
        eventually(SOON, async || {
            let sql = "select coalesce(sum(success), 0)::bigint from extension_metrics where version = 'v1'";
            let written: i64 = value(&session, sql).await;
            if written == wanted { Ok(()) } else { Err(written) }
        })
        .await;
    };
    session.call("x", &json!({}), "success", 1).await;
    written(1).await;
    let now: i64 = value(&session, "select extract(epoch from now())::bigint").await;
    for (round, ago) in [60, 120, 60, 180].into_iter().enumerate() {
        let document = json!({"targets": [
            {"extension_id": "x", "version": "v1", "at": now - ago, "outcomes": {"success": 10}},
        ]});
        session
            .execute("select ext_report_merge($1)", &[&document])
            .await
            .expect("a good document");
        written(1 + 10 * (round as i64 + 1)).await;
    }
}

#[tokio::test]
async fn aggregates_work_in_parallel_and_over_windows() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            "create table samples as select n, (n % 1000)::float8 as ms from generate_series(1, 200000) n;
             analyze samples;
             set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
             set max_parallel_workers_per_gather = 3",
        )
        .await;
    let plan: Vec<String> = session
        .query("explain select hdr_agg(ms) from samples", &[])
        .await
        .expect("a plan")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(plan.iter().any(|line| line.contains("Partial Aggregate")), "{plan:?}");
    let parallel: String = value(&session, "select hdr_agg(ms)::text from samples").await;
    session.run("set max_parallel_workers_per_gather = 0").await;
    let alone: String = value(&session, "select hdr_agg(ms)::text from samples").await;
    assert_eq!(parallel, alone);
    let merged: String = value(
        &session,
        "select hdr_merge(h)::text from (select hdr_agg(ms) h from samples group by n % 7) parts",
    )
    .await;
    assert_eq!(merged, alone, "merging is addition");
    let running: i64 = value(&session, "select max(hdr_count(h)) from (select hdr_agg(ms) over (order by n rows 9 preceding) h from samples where n <= 100) w").await;
    assert_eq!(running, 10);
    let filtered: Option<String> = value(&session, "select hdr_agg(ms) filter (where false)::text from samples").await;
    assert_eq!(filtered, None);
}
