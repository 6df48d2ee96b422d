//! Latencies and rates that were made up.

use std::time::Duration;

use ext_registry_tests::Postgres;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{measured, prepared};

// 3. Percentiles were moving averages of the last value in whole milliseconds with lost updates, the summary averaged
// percentiles, and no calls read as success rate 0.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn percentiles_are_those_of_what_was_reported() {
    const VALUES: i32 = 101;
    const SESSIONS: usize = 10;
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    // From 4 us to 55 ms, each a tenth more than the last.
    let value = |number: i32| 0.004 * 1.1_f64.powi(number - 1);
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(database.connect().await);
    }
    join_all(sessions.iter().map(async |session| {
        // In another order than that of their size.
        for number in (1..=VALUES).map(|number| (number * 37) % VALUES + 1) {
            let decision = session.select("x", &json!({})).await;
            session
                .report(decision.ticket, "success", Duration::from_secs_f64(value(number) / 1e3))
                .await;
        }
    }))
    .await;

    let total = SESSIONS as f64 * f64::from(VALUES);
    assert_eq!(session.counts("x").await, (total as i64, 0), "no update is lost");
    assert_eq!(measured(&session, "latency_samples").await, Some(total));
    let row = session
        .query_one(
            "select p50_latency_ms, p95_latency_ms, p99_latency_ms, avg_latency_ms, latency_sum / latency_samples, success_rate
             from extension_health",
            &[],
        )
        .await
        .expect("the view");
    let mean = (1..=VALUES).map(value).sum::<f64>() / f64::from(VALUES);
    // Of 1010 values the 505th, the 960th and the 1000th.
    for (column, wanted) in [value(51), value(96), value(100), mean, mean].into_iter().enumerate() {
        let got: f64 = row.get(column);
        // (Reports come in whole microseconds, which is much for the smallest.)
        assert!(
            (got / wanted - 1.0).abs() <= 0.0101,
            "column {column}: {got}, should be {wanted}"
        );
    }
    assert!((row.get::<_, f64>(5) - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn microseconds_are_seen() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run("select ext_report('x', 'success', 0.004) from generate_series(1, 9)")
        .await;
    for column in ["p50_latency_ms", "p99_latency_ms", "avg_latency_ms", "last_latency_ms"] {
        let got = measured(&session, column).await.expect("data");
        assert!((got - 0.004).abs() <= 0.000_04, "{column}: {got}");
    }
}

#[tokio::test]
async fn the_summary_merges_and_does_not_average() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    let summary = "select to_jsonb(s) from ext_health_summary() s";
    let summary = async || -> Value { session.query_one(summary, &[]).await.expect("the summary").get(0) };
    let nothing = summary().await;
    assert_eq!(nothing["total"], 0);
    for name in [
        "avg_success_rate",
        "avg_latency_ms",
        "p50_latency_ms",
        "p95_latency_ms",
        "avg_p95_latency_ms",
    ] {
        assert_eq!(nothing[name], Value::Null, "{name}: no data is no number");
    }

    session
        .run(
            "insert into extensions (id, type, subject) values ('fast', 'pre', 's'), ('slow', 'pre', 's'), ('idle', 'pre', 's');
             select ext_report('fast', 'success', 1) from generate_series(1, 990);
             select ext_report('slow', 'success', 1000) from generate_series(1, 5);
             select ext_report('slow', 'error', 1000) from generate_series(1, 5)",
        )
        .await;
    let merged = summary().await;
    let number = |name: &str| merged[name].as_f64().unwrap_or_else(|| panic!("{name} of {merged}"));
    let close = |got: f64, wanted: f64| (got / wanted - 1.0).abs() <= 0.01;
    assert!(
        close(number("p50_latency_ms"), 1.0) && close(number("p95_latency_ms"), 1.0),
        "{merged}"
    );
    assert!(close(number("avg_latency_ms"), (990.0 + 10_000.0) / 1000.0), "{merged}");
    assert!(
        close(number("avg_p95_latency_ms"), 500.5),
        "the old number, for old dashboards: {merged}"
    );
    assert!(close(number("avg_success_rate"), 0.75), "of those with data: {merged}");

    for view in ["extension_health", "extension_version_health"] {
        let sql = format!(
            "select concat(success_rate, avg_latency_ms, p50_latency_ms, p99_latency_ms) from {view} where extension_id = 'idle'"
        );
        assert_eq!(session.one(&sql, &[]).await, "", "{view}: no calls are no rate of 0");
    }
}
