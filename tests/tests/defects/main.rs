//! What went wrong in the system that this one replaces, defect by defect: each must be impossible here.

mod breaker;
mod cost;
mod measurement;
mod routing;

use std::time::Duration;

use ext_registry_tests::{Database, Decision, Session, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// An extension `x` with these settings of its breaker.
async fn prepared(database: &Database<'_>, settings: &str) -> Session {
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 'x.v1', 100)")
        .await;
    if !settings.is_empty() {
        session
            .run(&format!(
                "update extension_health set {settings} where extension_id = 'x'"
            ))
            .await;
    }
    session
}

async fn calls(session: &Session, outcome: &str, times: usize) -> usize {
    session.call("x", &json!({}), outcome, times).await
}

/// A number of version v1 of x, as the view has it.
async fn measured(session: &Session, column: &str) -> Option<f64> {
    let sql =
        format!("select {column}::float8 from extension_version_health where extension_id = 'x' and version = 'v1'");
    session.query_one(&sql, &[]).await.expect("the version").get(0)
}

/// Waits until outcomes have left the window.
async fn window_is_empty(session: &Session) {
    eventually(SOON, async || match measured(session, "window_requests").await {
        Some(0.0) => Ok(()),
        left => Err(left),
    })
    .await;
}

/// Waits until the open time is over, and returns the first probe.
async fn first_probe(session: &Session) -> Decision {
    eventually(SOON, async || {
        let decision = session.select("x", &json!({})).await;
        if decision.reason == "probe" {
            Ok(decision)
        } else {
            Err(decision)
        }
    })
    .await
}
