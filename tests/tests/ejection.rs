//! Instances that fail in a row are left out for everybody, within the cap, and what happened to them is written down.

use std::collections::BTreeMap;
use std::time::Duration;

use ext_registry_tests::{Database, Postgres, Session, Shutdown, eventually};
use futures_util::future::join_all;
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

/// An extension `x` with so many instances, whose breaker does not act.
async fn prepared(database: &Database<'_>, instances: usize) -> Session {
    let session = database.connect().await;
    fill(&session, instances).await;
    session
}

async fn fill(session: &Session, instances: usize) {
    session
        .run(&format!(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
             insert into extension_instances (extension_id, instance_id, subject, weight)
             select 'x', 'i' || n, 'x.v1', 100 from generate_series(1, {instances}) n;
             update extension_health set breaker_mode = 'metrics_only' where extension_id = 'x'"
        ))
        .await;
}

/// Calls, of which those to the named instances end so; how many each got.
async fn calls(session: &Session, bad: &[&str], outcome: &str, times: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let decision = session.select("x", &json!({})).await;
        let ended = if bad.contains(&decision.instance()) {
            outcome
        } else {
            "success"
        };
        session.report(decision.ticket, ended, Duration::from_millis(3)).await;
        *counts.entry(decision.instance().to_owned()).or_default() += 1;
    }
    counts
}

async fn ejected(session: &Session) -> Vec<String> {
    let rows = session
        .query(
            "select instance_id::text from extension_instance_health
             where extension_id = 'x' and ejected_until > now() and not eligible and effective_weight = 0 order by 1",
            &[],
        )
        .await
        .expect("the view");
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn five_failures_in_a_row_eject_for_everybody() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 3).await;
    let other = database.connect().await;
    calls(&other, &[], "", 3).await;
    assert_eq!(calls(&session, &["i2"], "timeout", 60).await["i2"], 5);
    assert_eq!(ejected(&session).await, ["i2"]);
    assert!(!calls(&other, &[], "", 30).await.contains_key("i2"), "another session");
    let seconds: f64 = value(&session, "select extract(epoch from ejected_until - clock_timestamp())::float8 from extension_instance_health where instance_id = 'i2'")
        .await;
    assert!((20.0..=33.0).contains(&seconds), "{seconds}");

    let said: String = value(
        &session,
        "select string_agg(format('%s %s', verdict, detail), '; ') from ext_explain('x') where candidate = 'i2'",
    )
    .await;
    assert!(said.starts_with("skipped ejected for"), "{said}");
    let event = eventually(SOON, async || {
        session
            .query_opt(
                "select version::text, from_state::text, to_state::text, reason, failures from extension_breaker_events
                 where extension_id = 'x' and instance_id = 'i2'",
                &[],
            )
            .await
            .expect("the table")
            .ok_or("not written")
    })
    .await;
    assert_eq!(
        (event.get(0), event.get(1), event.get(2), event.get(3), event.get(4)),
        ("", "eligible", "ejected", "consecutive_failures", 5_i64)
    );
    eventually(SOON, async || {
        let log = database.cluster().log();
        let line = "instance \"i2\" of \"x\": eligible -> ejected (consecutive_failures, 5 failures in a row)";
        if log.contains(line) { Ok(()) } else { Err("no line") }
    })
    .await;
}

#[tokio::test]
async fn two_no_responders_in_a_row_eject_and_null_switches_it_off() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 2).await;
    assert_eq!(calls(&session, &["i1"], "no_responders", 30).await["i1"], 2);
    session
        .run("update extension_health set ejection_consecutive_failures = null where extension_id = 'x'")
        .await;
    assert_eq!(ejected(&session).await, [""; 0]);
    assert_eq!(calls(&session, &["i1"], "no_responders", 30).await["i1"], 15);
}

#[tokio::test]
async fn the_cap_is_read_from_the_settings() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 4).await;
    let all = ["i1", "i2", "i3", "i4"];
    for (percent, expected) in [(0, 0), (25, 1), (100, 3)] {
        session
            .run(&format!(
                "delete from extensions; {}",
                "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
                 insert into extension_instances (extension_id, instance_id, subject) select 'x', 'i' || n, 'x.v1' from generate_series(1, 4) n;"
            ))
            .await;
        session
            .run(&format!(
                "update extension_health set breaker_mode = 'metrics_only', max_ejection_percent = {percent} where extension_id = 'x'"
            ))
            .await;
        calls(&session, &all, "error", 60).await;
        assert_eq!(ejected(&session).await.len(), expected, "{percent} %");
    }
}

#[tokio::test]
async fn a_settings_change_that_is_undone_ejects_nobody() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 2).await;
    session
        .run("update extension_health set max_ejection_percent = 0 where extension_id = 'x'")
        .await;
    calls(&session, &["i1"], "error", 30).await;
    assert_eq!(ejected(&session).await, [""; 0]);
    session
        .run("begin; update extension_health set max_ejection_percent = 100 where extension_id = 'x'")
        .await;
    assert!(
        !calls(&session, &[], "", 4).await.contains_key("i1"),
        "this transaction decides by its own settings"
    );
    session.run("rollback").await;
    let other = database.connect().await;
    assert_eq!(ejected(&other).await, [""; 0]);
}

/// Sixteen sessions at once report failures of every instance: never more than half of them are out, at no moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_of_failures_never_exceeds_the_cap() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 6).await;
    let sessions = join_all((0..16).map(|_| database.connect())).await;
    let work = sessions.iter().enumerate().map(async |(number, worker)| {
        let mut most = 0;
        for turn in 0..40 {
            let decision = worker.select("x", &json!({})).await;
            assert_eq!(decision.reason, "ok", "somebody is always eligible");
            worker.report(decision.ticket, "error", Duration::from_millis(1)).await;
            if (turn + number) % 8 == 0 {
                most = most.max(ejected(worker).await.len());
            }
        }
        most
    });
    let most = join_all(work).await.into_iter().max().unwrap_or_default();
    assert!(most <= 3, "{most} of 6 at once");
    assert_eq!(ejected(&session).await.len(), 3, "as many as may");
}

#[tokio::test]
async fn an_ejection_survives_a_restart() {
    let mut cluster = Postgres::start(&[]);
    cluster.make_database("app");
    let session = cluster.connect("app").await;
    fill(&session, 2).await;
    calls(&session, &["i1"], "error", 20).await;
    let until =
        "select extract(epoch from ejected_until)::float8 from extension_instance_health where instance_id = 'i1'";
    let before: f64 = value(&session, until).await;
    drop(session);
    cluster.restart(Shutdown::Fast);
    let session = cluster.connect("app").await;
    assert_eq!(ejected(&session).await, ["i1"], "shown before anybody has asked");
    let after: f64 = value(&session, until).await;
    assert!((before - after).abs() < 0.5, "{before} {after}");
    assert!(!calls(&session, &[], "", 10).await.contains_key("i1"));
}

#[tokio::test]
async fn what_is_not_committed_reaches_nobodys_reports() {
    let database = Postgres::shared().database();
    let session = prepared(&database, 2).await;
    let other = database.connect().await;
    let mut tickets = Vec::new();
    for _ in 0..10 {
        let decision = other.select("x", &json!({})).await;
        if decision.instance() == "i1" {
            tickets.push(decision.ticket);
        }
    }
    session
        .run("begin; update extension_health set ejection_consecutive_failures = null where extension_id = 'x'")
        .await;
    session.select("x", &json!({})).await;
    // By what is committed these are five in a row, whatever is tried elsewhere.
    assert_eq!(tickets.len(), 5);
    for ticket in tickets {
        other.report(ticket, "error", Duration::from_millis(1)).await;
    }
    session.run("rollback").await;
    assert_eq!(ejected(&other).await, ["i1"]);
}
