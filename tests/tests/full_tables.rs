//! Shared memory is sized at start. When a table in it is full, calls go on; what belongs to nobody any more is freed.

use std::time::Duration;

use ext_registry_tests::{Decision, Postgres, Session, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// The value of a column of `ext_registry_status()`.
async fn status(session: &Session, column: &str) -> i64 {
    let sql = format!("select {column}::text from ext_registry_status()");
    session.one(&sql, &[]).await.parse().expect("a number")
}

#[tokio::test]
async fn with_the_table_of_targets_full_calls_go_on() {
    const PLACES: i64 = 16;
    let cluster = Postgres::start(&["ext_registry.max_targets = 16", "ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) select 'x' || n, 'pre', 's' || n from generate_series(0, 39) n",
        )
        .await;
    session.call("x0", &json!({}), "error", 5).await;
    assert_eq!(session.breaker("x0").await, "open");

    // Forty targets in use, for sixteen places.
    let untracked = status(&session, "untracked_targets").await;
    for round in 0..3 {
        for number in 1..40 {
            let id = format!("x{number}");
            let decision = session.select(&id, &json!({})).await;
            assert_eq!(
                (decision.reason.as_str(), decision.subject.as_deref()),
                ("ok", Some(&*format!("s{number}"))),
                "round {round}"
            );
            session.report(decision.ticket, "error", Duration::from_millis(1)).await;
            assert_eq!(session.call(&id, &json!({}), "success", 2).await, 2, "round {round}");
        }
    }
    assert_eq!(status(&session, "targets_total").await, PLACES);
    assert_eq!(status(&session, "targets_used").await, PLACES);
    assert!(status(&session, "untracked_targets").await > untracked);

    // The open one has kept its place; those with one have counted, the others not.
    assert_eq!(session.select("x0", &json!({})).await.reason, "extension_circuit_open");
    let counts = "select count(*) filter (where success_count = 6 and failure_count = 3)::text || ' '
                      || count(*) filter (where success_count = 0 and failure_count = 0)::text
                  from extension_health where extension_id <> 'x0'";
    assert_eq!(session.one(counts, &[]).await, "15 24");
    // One without a place has no breaker.
    let lost = session
        .one(
            "select min(extension_id) from extension_health where success_count = 0 and extension_id <> 'x0'",
            &[],
        )
        .await;
    assert_eq!(session.call(&lost, &json!({}), "error", 50).await, 50);
    session
        .run(&format!(
            "select ext_report('{lost}', 'error', 1) from generate_series(1, 50)"
        ))
        .await;
    assert_eq!(session.breaker(&lost).await, "closed");

    // One warning, however many there were.
    let warnings = cluster
        .log()
        .lines()
        .filter(|line| line.contains("ext_registry.max_targets"))
        .count();
    assert_eq!(warnings, 1, "{}", cluster.log());

    // A place that is free is taken again.
    session.run("delete from extensions where id <> 'x0'").await;
    assert_eq!(session.select("x0", &json!({})).await.reason, "extension_circuit_open");
}

#[tokio::test]
async fn idle_targets_give_way_first() {
    let cluster = Postgres::start(&["ext_registry.max_targets = 16", "ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) select 'x' || n, 'pre', 's' || n from generate_series(0, 39) n",
        )
        .await;
    // Looking gives nobody a place.
    assert_eq!(
        session
            .one("select count(circuit_breaker_state)::text from extension_health", &[])
            .await,
        "40"
    );
    assert_eq!(status(&session, "targets_used").await, 0);
    for number in 0..16 {
        let outcome = if number == 7 { "error" } else { "success" };
        assert_eq!(session.call(&format!("x{number}"), &json!({}), outcome, 5).await, 5);
    }
    assert_eq!(status(&session, "targets_used").await, 16);
    assert_eq!(session.call("x20", &json!({}), "success", 3).await, 3);
    assert_eq!(session.counts("x20").await, (0, 0), "nobody is idle yet");
    assert!(status(&session, "untracked_targets").await >= 3);

    // After ten seconds without a call they give way, but for the open one, and nothing of theirs is lost.
    eventually(Duration::from_secs(40), async || {
        session.call("x20", &json!({}), "success", 1).await;
        let (successes, _) = session.counts("x20").await;
        if successes > 0 { Ok(()) } else { Err("no place yet") }
    })
    .await;
    for number in 21..35 {
        let id = format!("x{number}");
        assert_eq!(session.call(&id, &json!({}), "success", 2).await, 2);
        assert_eq!(session.counts(&id).await, (2, 0), "{id} has a place");
    }
    assert_eq!(status(&session, "targets_used").await, 16);
    assert_eq!(session.breaker("x7").await, "open");
    assert_eq!(session.counts("x3").await, (5, 0), "read from what was written down");
    assert_eq!(session.select("x7", &json!({})).await.reason, "extension_circuit_open");
}

#[tokio::test]
async fn with_the_table_of_calls_full_calls_go_on() {
    const ENTRIES: usize = 64;
    let cluster = Postgres::start(&["ext_registry.max_in_flight = 64"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 's', 300000), ('y', 'pre', 's', 300000)")
        .await;
    assert_eq!(status(&session, "in_flight_total").await, ENTRIES as i64);
    let tickets: Vec<i64> = {
        let mut tickets = Vec::new();
        for _ in 0..2 * ENTRIES {
            let decision = session.select("x", &json!({})).await;
            assert_eq!((decision.allowed, decision.reason.as_str()), (true, "ok"));
            tickets.push(decision.ticket);
        }
        tickets
    };
    let (issued, none): (Vec<i64>, Vec<i64>) = tickets.iter().partition(|ticket| **ticket != 0);
    assert_eq!(
        (issued.len(), none.len()),
        (ENTRIES, ENTRIES),
        "those that found no place have ticket 0"
    );
    assert_eq!(status(&session, "in_flight_used").await, ENTRIES as i64);
    let in_flight = "select in_flight::text from extension_version_health where extension_id = 'x'";
    assert_eq!(session.one(in_flight, &[]).await, "64", "nothing is counted for ever");

    // Without a ticket there is no report; the breaker learns nothing, and statistics neither.
    let stale = status(&session, "stale_reports").await;
    session.report(0, "error", Duration::from_millis(1)).await;
    assert_eq!(status(&session, "stale_reports").await, stale + 1);
    assert_eq!(session.counts("x").await, (0, 0));

    // A breaker that is half-open sends no more probes than it would otherwise.
    session
        .run("update extension_health set circuit_breaker_timeout_seconds = 1 where extension_id = 'y'")
        .await;
    session
        .run("select ext_report('y', 'error', 1) from generate_series(1, 5)")
        .await;
    eventually(SOON, async || {
        let decision = session.select("y", &json!({})).await;
        if decision.allowed { Ok(()) } else { Err(decision) }
    })
    .await;
    let mut probes = 1;
    for _ in 0..20 {
        probes += usize::from(session.select("y", &json!({})).await.allowed);
    }
    assert!(probes <= 3, "{probes} probes of a half-open breaker");

    // Places that are given back are used again.
    for ticket in &issued[..10] {
        session.report(*ticket, "success", Duration::from_millis(1)).await;
    }
    assert_eq!(session.counts("x").await, (10, 0));
    let again: Vec<Decision> = {
        let mut again = Vec::new();
        for _ in 0..10 {
            again.push(session.select("x", &json!({})).await);
        }
        again
    };
    assert!(
        again
            .iter()
            .all(|decision| decision.ticket != 0 && !issued.contains(&decision.ticket))
    );
}

#[tokio::test]
async fn places_of_what_is_dropped_are_freed() {
    let cluster = Postgres::start(&[
        "ext_registry.flush_interval = '50ms'",
        "ext_registry.launcher_naptime = '100ms'",
    ]);
    let kept = cluster.database();
    let session = kept.connect().await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 's')")
        .await;
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(status(&session, "targets_used").await, 1);
    let fill = async |other: &Session| {
        other
            .run("insert into extensions (id, type, subject, timeout_ms) select 'x' || n, 'pre', 's', 10 from generate_series(1, 5) n")
            .await;
        for number in 1..=5 {
            other.call(&format!("x{number}"), &json!({}), "success", 2).await;
        }
        // One with an open breaker, one with a call that nobody will report.
        other.call("x1", &json!({}), "error", 10).await;
        other.select("x2", &json!({})).await;
    };
    let one_is_left = async || {
        eventually(SOON, async || match status(&session, "targets_used").await {
            1 => Ok(()),
            used => Err(used),
        })
        .await;
    };
    // Dropped databases.
    for _ in 0..3 {
        let database = cluster.database();
        let other = database.connect().await;
        fill(&other).await;
        assert!(status(&session, "targets_used").await > 1);
    }
    one_is_left().await;
    // A dropped extension. (Its worker frees them, once it has begun.)
    let database = cluster.database();
    let other = database.connect().await;
    fill(&other).await;
    eventually(SOON, async || {
        match other
            .one("select worker_alive::text from ext_registry_status()", &[])
            .await
            .as_str()
        {
            "true" => Ok(()),
            _ => Err("no worker yet"),
        }
    })
    .await;
    other.run("drop extension ext_registry").await;
    one_is_left().await;
    assert_eq!(session.breaker("x").await, "open", "what is left is as it was");
}
