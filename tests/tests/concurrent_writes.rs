//! Many sessions that change the same things at once: nothing is lost, nothing happens twice, nobody gets an error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ext_registry_tests::{Database, Postgres, Session, eventually};
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

async fn connect(database: &Database<'_>, number: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..number {
        sessions.push(database.connect().await);
    }
    sessions
}

async fn registered(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reset_is_in_force_for_everybody_at_once_and_once() {
    const ROUNDS: usize = 60;
    let database = Postgres::shared().database();
    let session = registered(&database).await;
    let crowd = connect(&database, 16).await;
    for round in 0..ROUNDS {
        session
            .run("select ext_report('x', 'error', 1) from generate_series(1, 5)")
            .await;
        assert_eq!(
            session.select("x", &json!({})).await.reason,
            "extension_circuit_open",
            "round {round}"
        );
        session.run("select ext_breaker_reset('x')").await;
        // Whoever comes first applies it; nobody is refused who asks after COMMIT has returned.
        let reasons = join_all(
            crowd
                .iter()
                .map(async |session| session.select("x", &json!({})).await.reason),
        )
        .await;
        let reasons: BTreeSet<String> = reasons.into_iter().collect();
        assert_eq!(reasons, BTreeSet::from(["ok".to_owned()]), "round {round}");
    }
    // Each opening and each reset is one event.
    let events = "select concat_ws(' ', count(*) filter (where to_state = 'open'),
                      count(*) filter (where reason = 'reset'), count(*)) from extension_breaker_events";
    let wanted = format!("{ROUNDS} {ROUNDS} {}", 2 * ROUNDS);
    eventually(SOON, async || match session.one(events, &[]).await {
        events if events == wanted => Ok(()),
        events => Err(events),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settings_changed_at_once_do_not_undo_each_other() {
    let database = Postgres::shared().database();
    let session = registered(&database).await;
    let assignments = [
        "circuit_breaker_failure_threshold = 7",
        "circuit_breaker_failure_min_rate = 0.02",
        "circuit_breaker_error_rate_threshold = 0.25",
        "circuit_breaker_minimum_requests = 9",
        "circuit_breaker_window_seconds = 30",
        "circuit_breaker_timeout_seconds = 31",
        "slow_call_ms = 32",
        "half_open_max_requests = 4",
    ];
    for round in 0..10 {
        session.run("delete from extension_health_settings").await;
        let sessions = connect(&database, assignments.len()).await;
        join_all(sessions.iter().zip(assignments).map(async |(session, assignment)| {
            session
                .run(&format!(
                    "update extension_health set {assignment} where extension_id = 'x'"
                ))
                .await;
        }))
        .await;
        let all = assignments
            .join(" and ")
            .replace("circuit_breaker_error_rate_threshold = 0.25", "true");
        let all = format!("select (circuit_breaker_error_rate_threshold = 0.25 and {all})::text from extension_health");
        assert_eq!(session.one(&all, &[]).await, "true", "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn registering_with_an_epoch_loses_no_update() {
    const EACH: i64 = 8;
    let database = Postgres::shared().database();
    let session = registered(&database).await;
    session
        .run(r#"select ext_register('{"id": "x", "type": "pre", "subject": "x.v1", "config": {"n": 0}, "versions": [{"version": "v2", "subject": "x.v2", "config": {"n": 0}}]}')"#)
        .await;
    let sessions = connect(&database, 8).await;
    let tasks = sessions.into_iter().map(|session| {
        tokio::spawn(async move {
            let mut refused = 0;
            for _ in 0..EACH {
                // Read, add one, register if nobody has been faster; else again.
                loop {
                    let row = session
                        .query_one("select config, epoch from ext_lookup('x')", &[])
                        .await
                        .expect("it is registered");
                    let (config, epoch): (Value, i64) = (row.get(0), row.get(1));
                    let n = config["n"].as_i64().expect("a number") + 1;
                    let document = json!({
                        "id": "x", "type": "pre", "subject": "x.v1", "config": {"n": n},
                        "versions": [{"version": "v2", "subject": "x.v2", "config": {"n": n}}],
                    });
                    let Err(error) = session
                        .execute("select ext_register($1, $2)", &[&document, &epoch])
                        .await
                    else {
                        break;
                    };
                    let error = error.as_db_error().expect("an error of Postgres").clone();
                    assert!(["40001", "40P01"].contains(&error.code().code()), "{error:?}");
                    refused += 1;
                }
            }
            refused
        })
    });
    let refused: i32 = try_join_all(tasks).await.expect("no task panics").into_iter().sum();
    let wanted = 8 * EACH;
    let sql = "select concat_ws(' ', e.config ->> 'n', v.config ->> 'n') from extensions e join extension_versions v using (id)";
    assert_eq!(session.one(sql, &[]).await, format!("{wanted} {wanted}"));
    assert!(refused > 0, "nobody met anybody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reports_are_counted_once_each_whoever_sends_them() {
    const SESSIONS: usize = 8;
    const BATCHES: i64 = 20;
    let database = Postgres::shared().database();
    let session = registered(&database).await;
    let sessions: Vec<Arc<Session>> = connect(&database, SESSIONS).await.into_iter().map(Arc::new).collect();
    let report = "select applied from ext_report_many($1, array_fill('success'::text, array[10]), array_fill(5::float8, array[10]),
                  array_fill(0, array[10]), $2::text::uuid, $3)";
    for batch in 1..=BATCHES {
        let tickets: Vec<i64> = session
            .query(
                "select ticket from ext_select_many(array_fill('x'::text, array[10]), array_fill('{}'::jsonb, array[10]))",
                &[],
            )
            .await
            .expect("decisions")
            .iter()
            .map(|row| row.get(0))
            .collect();
        // The same batch by everybody, under one name or without.
        let reporter = (batch % 2 == 0).then_some("00000000-0000-4000-8000-000000000001");
        let number = reporter.map(|_| batch);
        let applied = join_all(sessions.iter().map(async |session| {
            let row = session.query_one(report, &[&tickets, &reporter, &number]).await;
            row.expect("an answer").get::<_, i32>(0)
        }))
        .await;
        assert_eq!(applied.iter().sum::<i32>(), 10, "batch {batch}: {applied:?}");
    }
    assert_eq!(session.counts("x").await, (10 * BATCHES, 0));
    let in_flight = "select in_flight::text from extension_version_health";
    assert_eq!(session.one(in_flight, &[]).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_comes_first_to_an_extension_shares_it_with_all() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    let crowd = connect(&database, 16).await;
    for round in 0..20 {
        // A fresh target each time: all sessions want a place for it at once.
        session
            .run(
                "delete from extensions;
                 insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
                 insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1')",
            )
            .await;
        let picked = join_all(crowd.iter().map(async |session| {
            let decision = session.select("x", &json!({})).await;
            session
                .report(decision.ticket, "success", Duration::from_millis(1))
                .await;
            decision.instance().to_owned()
        }))
        .await;
        let a = picked.iter().filter(|instance| *instance == "a").count();
        assert_eq!(
            (a, session.counts("x").await),
            (8, (16, 0)),
            "round {round}: {picked:?}"
        );
    }
}
