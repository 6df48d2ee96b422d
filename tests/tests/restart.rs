//! What is counted and decided survives Postgres being stopped, and being killed.

use std::time::{Duration, Instant};

use ext_registry_tests::{Postgres, Session, Shutdown, eventually};
use serde_json::json;

const DATABASE: &str = "app";
const SOON: Duration = Duration::from_secs(20);

async fn prepared(cluster: &Postgres) -> Session {
    cluster.make_database(DATABASE);
    let session = cluster.connect(DATABASE).await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('good', 'pre', 'good.v1'), ('bad', 'post', 'bad.v1');
             insert into extension_instances (extension_id, instance_id, subject, weight)
             values ('good', 'a', 'good.v1', 60), ('good', 'b', 'good.v1', 40)",
        )
        .await;
    session
}

/// All that is measured and decided, as one text per row. What is under way does not outlive a restart, and the refusals
/// that the test itself asks for are left out.
async fn health(session: &Session) -> Vec<String> {
    let mut rows = Vec::new();
    for view in [
        "extension_health",
        "extension_version_health",
        "extension_instance_health",
    ] {
        let sql = format!(
            "select (to_jsonb(v) - '{{in_flight, retry_after_ms, updated_at, circuit_open_count}}'::text[])::text
             from {view} v order by 1"
        );
        for row in session.query(&sql, &[]).await.expect("the view") {
            rows.push(format!("{view}: {}", row.get::<_, String>(0)));
        }
    }
    rows
}

#[tokio::test]
async fn everything_survives_a_fast_restart() {
    let mut cluster = Postgres::start(&[]);
    let session = prepared(&cluster).await;
    // A spread of latencies, so that the percentiles differ.
    for number in 0..300 {
        let decision = session.select("good", &json!({})).await;
        let outcome = if number % 150 == 0 { "error" } else { "success" };
        session
            .report(decision.ticket, outcome, Duration::from_micros(900 + number * number))
            .await;
    }
    session.call("bad", &json!({}), "timeout", 5).await;
    assert_eq!(session.breaker("bad").await, "open");
    let before = health(&session).await;
    assert!(before.len() >= 6, "{before:?}");
    let order = session.select("good", &json!({})).await;

    for round in 0..2 {
        cluster.restart(Shutdown::Fast);
        let session = cluster.connect(DATABASE).await;
        // The worker loads what was saved as soon as it has started.
        eventually(SOON, async || {
            let after = health(&session).await;
            let differing: Vec<_> = after
                .iter()
                .zip(&before)
                .filter(|(after, before)| after != before)
                .collect();
            if after.len() == before.len() && differing.is_empty() {
                Ok(())
            } else {
                Err(format!("restart {round}: {differing:#?}"))
            }
        })
        .await;
        let refused = session.select("bad", &json!({})).await;
        assert_eq!(
            (refused.allowed, refused.reason.as_str()),
            (false, "extension_circuit_open")
        );
        let wait = refused.retry_after_ms.expect("how long");
        assert!((1..=66_000).contains(&wait), "{wait} ms");
        // A ticket from before the restart credits nobody.
        session.report(order.ticket, "error", Duration::from_millis(1)).await;
        let decision = session.select("good", &json!({})).await;
        assert_eq!(
            (decision.allowed, decision.epoch),
            (true, order.epoch),
            "the same configuration, the same epoch"
        );
        assert_eq!(health(&session).await, before);
    }
}

#[tokio::test]
async fn turns_go_on_after_a_restart() {
    let mut cluster = Postgres::start(&[]);
    drop(prepared(&cluster).await);
    let mut picked = [0; 2];
    for round in 0..5 {
        if round > 0 {
            cluster.restart(Shutdown::Fast);
        }
        let session = cluster.connect(DATABASE).await;
        for _ in 0..50 {
            picked[usize::from(session.select("good", &json!({})).await.instance() == "b")] += 1;
        }
        // 60/40: each restart may cost a pick, no more.
        let total: i32 = picked.iter().sum();
        assert!(
            (picked[0] * 10 - total * 6).abs() <= 10 * (round + 1),
            "{picked:?} after {round} restarts"
        );
    }
}

#[tokio::test]
async fn a_killed_backend_loses_at_most_a_second_of_counts() {
    const BOUND: Duration = Duration::from_secs(1);
    let cluster = Postgres::start(&["ext_registry.flush_interval = '1s'"]);
    let session = prepared(&cluster).await;
    session.call("bad", &json!({}), "error", 5).await;
    let stored = "select count(*)::text from extension_breaker_events where to_state = 'open'";
    eventually(SOON, async || match session.one(stored, &[]).await.as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;

    // Reports under way in another session, each with the time at which it was acknowledged.
    let reporter = cluster.connect(DATABASE).await;
    let reports = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        while reporter
            .execute("select ext_report('good', 'success', 2.5)", &[])
            .await
            .is_ok()
        {
            acknowledged.push(Instant::now());
        }
        acknowledged
    });
    let enough = Instant::now() + Duration::from_millis(2_500);
    eventually(SOON, async || {
        if Instant::now() < enough {
            Err("under load")
        } else {
            Ok(())
        }
    })
    .await;
    let killed = Instant::now();
    // The victim: a session without work, as any other that the kernel takes.
    let idle = cluster.connect(DATABASE).await;
    cluster.kill_backend(idle.backend_pid().await).await;
    let acknowledged = reports.await.expect("no panic");

    let session = cluster.connect(DATABASE).await;
    let least = acknowledged.iter().filter(|at| **at + BOUND < killed).count() as i64;
    let most = acknowledged.len() as i64 + 1;
    assert!(
        least > 100,
        "{least} of {} reports are old enough to judge by",
        acknowledged.len()
    );
    let counted = eventually(SOON, async || {
        let (successes, failures) = session.counts("good").await;
        if successes > 0 {
            Ok((successes, failures))
        } else {
            Err("not loaded yet")
        }
    })
    .await;
    assert!(
        (least..=most).contains(&counted.0) && counted.1 == 0,
        "{counted:?} of {least} to {most}"
    );

    // The registry is whole, the breaker as it was, the worker back.
    assert_eq!(session.one("select count(*)::text from extensions", &[]).await, "2");
    assert_eq!(session.breaker("bad").await, "open");
    assert_eq!(session.select("bad", &json!({})).await.reason, "extension_circuit_open");
    eventually(SOON, async || {
        match session
            .one("select worker_alive::text from ext_registry_status()", &[])
            .await
            .as_str()
        {
            "true" => Ok(()),
            _ => Err("no worker"),
        }
    })
    .await;
}
