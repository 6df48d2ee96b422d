//! Breakers that opened for nothing, closed too early, or never again.

use std::time::Duration;

use ext_registry_tests::{Postgres, eventually};
use serde_json::json;

use crate::{SOON, calls, first_probe, measured, prepared, window_is_empty};

const QUICK: &str = "circuit_breaker_window_seconds = 1, circuit_breaker_timeout_seconds = 1";

// 1. The error rate was one over lifetime counts, failure counts were never reset, and there was no minimum volume.

#[tokio::test]
async fn failures_outside_the_window_do_not_count() {
    let database = Postgres::shared().database();
    let session = prepared(&database, QUICK).await;
    // Four failures each time, five open: never five within a second.
    for round in 1..=3 {
        assert_eq!(calls(&session, "error", 4).await, 4, "round {round}");
        assert_eq!(session.breaker("x").await, "closed", "round {round}");
        window_is_empty(&session).await;
    }
    assert_eq!(session.counts("x").await, (0, 12), "all of them are counted, though");
    calls(&session, "error", 5).await;
    assert_eq!(session.breaker("x").await, "open");
}

#[tokio::test]
async fn successes_outside_the_window_hide_no_outage() {
    let database = Postgres::shared().database();
    let settings = "circuit_breaker_window_seconds = 1, circuit_breaker_failure_threshold = null";
    let session = prepared(&database, settings).await;
    calls(&session, "success", 500).await;
    window_is_empty(&session).await;
    calls(&session, "timeout", 5).await;
    assert_eq!(
        session.breaker("x").await,
        "open",
        "five of the last five, whatever was before"
    );
}

#[tokio::test]
async fn one_failed_first_call_is_no_outage() {
    let database = Postgres::shared().database();
    for settings in [
        "",
        "circuit_breaker_failure_threshold = null",
        "circuit_breaker_error_rate_threshold = 0.01",
    ] {
        let session = prepared(&database, settings).await;
        for call in 1..=4 {
            assert_eq!(calls(&session, "error", 1).await, 1);
            assert_eq!(
                session.breaker("x").await,
                "closed",
                "{settings}: {call} of {call} failed"
            );
        }
        session.run("delete from extensions").await;
    }
}

#[tokio::test]
async fn the_first_failure_after_a_recovery_opens_nothing() {
    let database = Postgres::shared().database();
    let session = prepared(
        &database,
        "circuit_breaker_timeout_seconds = 1, half_open_max_requests = 1, circuit_breaker_window_seconds = 3600",
    )
    .await;
    calls(&session, "error", 5).await;
    let probe = first_probe(&session).await;
    session.report(probe.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(session.breaker("x").await, "closed");
    assert_eq!(
        measured(&session, "window_failures").await,
        Some(0.0),
        "the window was cleared"
    );
    for call in 1..=4 {
        calls(&session, "error", 1).await;
        assert_eq!(
            session.breaker("x").await,
            "closed",
            "{call} failures since it recovered"
        );
    }
    assert_eq!(session.counts("x").await, (1, 9), "and nothing has been forgotten");
}

// 2. Half-open closed after one success, its counter was not reset on re-entry, and it could refuse for ever.
// (That everyone passed at once: concurrency.rs.)

#[tokio::test]
async fn half_open_counts_from_the_beginning_each_time() {
    let database = Postgres::shared().database();
    let session = prepared(&database, QUICK).await;
    calls(&session, "error", 5).await;
    for round in 0..2 {
        // Two of three succeed, the third fails: open again, and what succeeded is worth nothing.
        let mut probes = vec![first_probe(&session).await];
        for _ in 0..2 {
            probes.push(session.select("x", &json!({})).await);
        }
        for (probe, outcome) in probes.iter().zip(["success", "success", "error"]) {
            assert_eq!(probe.reason, "probe", "round {round}");
            assert_eq!(
                session.breaker("x").await,
                "half_open",
                "round {round}, before the {outcome}"
            );
            session.report(probe.ticket, outcome, Duration::from_millis(1)).await;
        }
        assert_eq!(session.breaker("x").await, "open", "round {round}");
        if round == 0 {
            // The next time it would be 4 s.
            session.run("select ext_breaker_reset('x')").await;
            calls(&session, "error", 5).await;
        }
    }
    session.run("select ext_breaker_reset('x')").await;
    calls(&session, "error", 5).await;
    let first = first_probe(&session).await;
    session.report(first.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(session.breaker("x").await, "half_open", "one success is not enough");
    assert_eq!(calls(&session, "success", 2).await, 2);
    assert_eq!(session.breaker("x").await, "closed", "three are");
}

#[tokio::test]
async fn lost_probes_wedge_nothing() {
    let database = Postgres::shared().database();
    let session = prepared(
        &database,
        "circuit_breaker_timeout_seconds = 1, half_open_max_requests = 2",
    )
    .await;
    calls(&session, "error", 5).await;
    let lost = [first_probe(&session).await, session.select("x", &json!({})).await];
    let refused = session.select("x", &json!({})).await;
    let wait = refused.retry_after_ms.expect("how long");
    // Timeout, no retry, 1 s.
    assert!(!refused.allowed && (1..=1101).contains(&wait), "{refused:?}");
    assert_eq!(measured(&session, "half_open_requests_count").await, Some(2.0));
    let next = first_probe(&session).await;
    // The reports come after all: counted, and without effect on the breaker.
    for probe in &lost {
        session.report(probe.ticket, "error", Duration::from_millis(1)).await;
    }
    assert_eq!(
        (session.breaker("x").await.as_str(), session.counts("x").await),
        ("half_open", (0, 7))
    );
    session.report(next.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(calls(&session, "success", 1).await, 1);
    assert_eq!(session.breaker("x").await, "closed");
    eventually(SOON, async || match measured(&session, "in_flight").await {
        Some(0.0) => Ok(()),
        left => Err(left),
    })
    .await;
}

// 6. Faults of one caller tripped the breaker for everyone.

#[tokio::test]
async fn faults_of_callers_touch_nobodys_breaker() {
    let database = Postgres::shared().database();
    let session = prepared(
        &database,
        "circuit_breaker_timeout_seconds = 1, half_open_max_requests = 1",
    )
    .await;
    for outcome in ["caller_error", "cancelled"] {
        assert_eq!(calls(&session, outcome, 100).await, 100);
        session
            .run(&format!(
                "select ext_report('x', '{outcome}', 1) from generate_series(1, 100)"
            ))
            .await;
        assert_eq!(measured(&session, &format!("{outcome}_count")).await, Some(200.0));
    }
    assert_eq!(
        (session.breaker("x").await.as_str(), session.counts("x").await),
        ("closed", (0, 0))
    );
    assert_eq!(measured(&session, "window_requests").await, Some(0.0));
    assert_eq!(measured(&session, "latency_samples").await, Some(0.0));
    assert_eq!(measured(&session, "success_rate").await, None);

    // They do not thin out failures either.
    calls(&session, "error", 4).await;
    calls(&session, "caller_error", 100).await;
    calls(&session, "error", 1).await;
    assert_eq!(session.breaker("x").await, "open");

    // As probes they say nothing, and free their place.
    let mut probe = first_probe(&session).await;
    for outcome in ["caller_error", "cancelled", "caller_error"] {
        session.report(probe.ticket, outcome, Duration::from_millis(1)).await;
        assert_eq!(session.breaker("x").await, "half_open", "{outcome}");
        probe = session.select("x", &json!({})).await;
        assert_eq!(probe.reason, "probe", "after a {outcome}");
    }
    session.report(probe.ticket, "success", Duration::from_millis(1)).await;
    assert_eq!(session.breaker("x").await, "closed");
    // A reply of the wrong shape is the extension's fault.
    calls(&session, "invalid_response", 5).await;
    assert_eq!(session.breaker("x").await, "open");
}
