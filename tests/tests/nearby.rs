//! `--decide-url`: a standby nearby decides and keeps the breakers of its region; the primary keeps the history.

use std::time::Duration;

use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, Session, Shutdown, bridge, eventually, registry};
use serde_json::json;

const SOON: Duration = Duration::from_secs(40);
const DATABASE: &str = "app";

/// Attempts in the history of a database, by outcome: successes, errors, refusals by an open breaker.
async fn history(session: &Session, extension: &str) -> String {
    let sql =
        "select format('%s %s %s', coalesce(sum(success), 0), coalesce(sum(error), 0), coalesce(sum(circuit_open), 0))
               from extension_metrics where extension_id = $1 and instance_id = ''";
    session.one(sql, &[&extension]).await
}

async fn becomes(session: &Session, extension: &str, wanted: &str) {
    eventually(SOON, async || {
        let found = history(session, extension).await;
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test]
async fn a_standby_decides_and_the_primary_counts() {
    let nats = Nats::start();
    let primary = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    primary.make_database(DATABASE);
    let writer = primary.connect(DATABASE).await;
    writer
        .execute("select ext_import($1)", &[&registry::fixtures()])
        .await
        .expect("the fixtures are good");
    writer.run("update extensions set timeout_ms = 5000").await;
    let mut standby = primary.standby(&["max_standby_streaming_delay = -1", "hot_standby_feedback = on"]);
    let reader = standby.connect(DATABASE).await;
    writer.await_replay(&reader).await;
    let services = Services::start(&nats, &[]).await;
    let caller = Caller::new(&nats).await;
    // User and database are those of the primary.
    let url = format!("postgres://127.0.0.1:{}", standby.port());
    let flags = ["--decide-url", url.as_str()];
    let bridge = Bridge::start_on(&nats, &primary, DATABASE, &flags);
    let checked = bridge::run_on(&nats, &primary, DATABASE, &["check", "--decide-url", &url], "");
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.contains("ok    decide-url: a standby, ext_registry"),
        "{checked}"
    );

    let call = async |extension: &str| caller.invoke(extension, &json!({ "payload": { "text": "x" } })).await;
    for _ in 0..30 {
        assert_eq!(call("normalize_text").await.error(), None);
    }
    becomes(&writer, "normalize_text", "30 0 0").await;
    // Live state is where the decisions are.
    eventually(SOON, async || match reader.counts("normalize_text").await {
        (30, 0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    // The breaker of the region opens; the primary knows of the outcomes, and has its own breaker.
    services.set("pii_guard", "error").await;
    for _ in 0..5 {
        call("pii_guard").await;
    }
    eventually(SOON, async || match reader.breaker("pii_guard").await.as_str() {
        "open" => Ok(()),
        state => Err(state.to_owned()),
    })
    .await;
    assert_eq!(call("pii_guard").await.error(), Some(("extension_unavailable", 503)));
    assert_eq!(writer.breaker("pii_guard").await, "closed");
    becomes(&writer, "pii_guard", "0 5 1").await;
    // What a standby has applied is not kept for it.
    eventually(SOON, async || {
        match bridge.metric("ext_bridge_reports_pending{loop=\"0\"}") {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    // The primary cannot decide for it. When the standby is back everything goes on, and nothing was counted twice.
    drop(reader);
    standby.stop(Shutdown::Fast);
    eventually(SOON, async || match call("normalize_text").await.error() {
        Some(("registry_unavailable", 503)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    standby.start_again();
    eventually(SOON, async || match call("normalize_text").await.error() {
        None => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for _ in 0..10 {
        assert_eq!(call("normalize_text").await.error(), None);
    }
    becomes(&writer, "normalize_text", "41 0 0").await;
    drop(bridge);
}

/// Who writes its own history would have each outcome twice.
#[tokio::test]
async fn a_primary_is_refused_also_one_that_was_a_standby() {
    let nats = Nats::start();
    let primary = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    primary.make_database(DATABASE);
    let writer = primary.connect(DATABASE).await;
    writer
        .execute("select ext_import($1)", &[&registry::fixtures()])
        .await
        .expect("the fixtures are good");
    let url = format!("postgres://127.0.0.1:{}", primary.port());
    let checked = bridge::run_on(&nats, &primary, DATABASE, &["check", "--decide-url", &url], "");
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.contains("FAIL  decide-url: decide-url names no standby"),
        "{checked}"
    );

    let standby = primary.standby(&["ext_registry.flush_interval = '50ms'"]);
    let reader = standby.connect(DATABASE).await;
    writer.await_replay(&reader).await;
    let _services = Services::start(&nats, &[]).await;
    let caller = Caller::new(&nats).await;
    let url = format!("postgres://127.0.0.1:{}", standby.port());
    let bridge = Bridge::start_on(&nats, &primary, DATABASE, &["--decide-url", url.as_str()]);
    let call = async || {
        let reply = caller
            .invoke("normalize_text", &json!({ "payload": { "text": "x" } }))
            .await;
        reply.error().map(|(code, _)| code.to_owned())
    };
    assert_eq!(call().await, None);
    reader.run("select pg_promote()").await;
    eventually(SOON, async || match call().await {
        Some(code) if code == "registry_unavailable" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(bridge.log().contains("was promoted"), "{}", bridge.log());
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    let nats = Nats::start();
    let (code, said) = Bridge::refuses_on_fixtures(&nats, &["--decide-url", "postgres://a:b:c"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("decide-url is not a Postgres address"), "{said}");
}
