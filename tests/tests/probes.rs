//! Health checks: an instance that does not answer gets no more calls until it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ext_registry_tests::{Bridge, Caller, Database, Nats, Postgres, Session, eventually, micro};
use futures_util::StreamExt;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const FLAGS: [&str; 2] = ["--probe-interval", "200ms"];

/// A registry with one extension, `x`, with instances of these names and metadata on `s.<name>`.
async fn registry(instances: &[(&str, &str)]) -> (Database<'static>, Session) {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 's', 2000)")
        .await;
    for (name, metadata) in instances {
        let sql = format!(
            "insert into extension_instances (extension_id, instance_id, subject, metadata)
             values ('x', '{name}', 's.{name}', '{metadata}')"
        );
        session.run(&sql).await;
    }
    (database, session)
}

/// `a healthy, b unknown`
async fn statuses(session: &Session) -> String {
    let sql =
        "select string_agg(instance_id || ' ' || health_status, ', ' order by instance_id) from extension_instances";
    session.one(sql, &[]).await
}

async fn become_(session: &Session, wanted: &str) {
    eventually(SOON, async || {
        let now = statuses(session).await;
        if now == wanted { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Waits for so many more health checks with this result.
async fn more(bridge: &Bridge, result: &str, count: f64) {
    let series = format!("ext_bridge_probes_total{{result=\"{result}\"}}");
    let start = bridge.metric(&series).unwrap_or_default();
    eventually(SOON, async || match bridge.metric(&series).unwrap_or_default() {
        now if now >= start + count => Ok(()),
        now => Err(now - start),
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_hangs_gets_no_calls_until_it_answers() {
    let nats = Nats::start();
    let (database, session) = registry(&[("a", "{}"), ("b", "{}"), ("never", r#"{"y": 1}"#)]).await;
    session
        .run("update extension_instances set weight = 0 where instance_id = 'never'")
        .await;
    let _a = micro::service(&nats, "a", &["s.a"]);
    let b = micro::service(&nats, "b", &["s.b"]);
    let bridge = Bridge::start(&nats, &database, &FLAGS);
    let caller = Caller::new(&nats).await;
    become_(&session, "a healthy, b healthy, never unknown").await;

    b.freeze();
    become_(&session, "a healthy, b unhealthy, never unknown").await;
    for _ in 0..10 {
        let reply = caller.invoke("x", &json!({ "payload": {} })).await;
        assert_eq!(reply.body["payload"]["by"], "a", "{}", reply.body);
    }
    b.thaw();
    become_(&session, "a healthy, b healthy, never unknown").await;
    eventually(SOON, async || {
        let reply = caller.invoke("x", &json!({ "payload": {} })).await;
        if reply.body["payload"]["by"] == "b" {
            Ok(())
        } else {
            Err(reply.body)
        }
    })
    .await;

    // Nothing is written while nothing changes, and each change of a status is in the audit log once.
    let written = "select string_agg(instance_id || xmin::text, ' ' order by instance_id) from extension_instances";
    let before = session.one(written, &[]).await;
    more(&bridge, "healthy", 6.0).await;
    assert_eq!(session.one(written, &[]).await, before);
    let audited = "select string_agg(new_values ->> 'health_status', ' ' order by changed_at) from extension_audit_log
                   where action = 'update' and new_values ->> 'instance_id' = 'b'";
    assert_eq!(session.one(audited, &[]).await, "healthy unhealthy healthy");

    // Only what last_health_check says is old: written, without a word in the audit log.
    session
        .run("update extension_instances set last_health_check = now() - interval '6 min' where instance_id = 'a'")
        .await;
    let fresh =
        "select (last_health_check > now() - interval '1 min')::text from extension_instances where instance_id = 'a'";
    eventually(SOON, async || match session.one(fresh, &[]).await.as_str() {
        "true" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    assert_eq!(session.one(audited, &[]).await, "healthy unhealthy healthy");
}

#[tokio::test]
async fn a_health_subject_is_asked_and_who_opts_out_is_not() {
    let nats = Nats::start();
    let (database, session) = registry(&[
        ("asked", r#"{"health_subject": "h.asked"}"#),
        ("bad", r#"{"health_subject": "h.*"}"#),
        ("drained", r#"{"health_subject": "h.nobody"}"#),
        ("null", r#"{"health_subject": null}"#),
        ("off", r#"{"health_subject": false}"#),
        ("unheard", r#"{"health_subject": "h.nobody"}"#),
    ])
    .await;
    session
        .run("update extension_instances set draining = true where instance_id = 'drained'")
        .await;
    // It speaks micro, too; those that opt out are not asked all the same.
    let _service = micro::service(&nats, "x", &["s.null", "s.off", "s.asked"]);
    let well = Arc::new(AtomicBool::new(true));
    let client = nats.connect().await;
    let mut questions = client.subscribe("h.asked").await.expect("a subscription");
    client.flush().await.expect("a server");
    let says = Arc::clone(&well);
    tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            assert_eq!(&question.payload[..], b"{}");
            let answer = if says.load(Ordering::Relaxed) {
                "fine"
            } else {
                r#"{"status": "unhealthy"}"#
            };
            let reply = question.reply.expect("a reply subject");
            client.publish(reply, answer.into()).await.expect("a connection");
        }
    });
    let bridge = Bridge::start(&nats, &database, &FLAGS);
    let rest = "bad unknown, drained unknown, null unknown, off unknown, unheard unhealthy";
    become_(&session, &format!("asked healthy, {rest}")).await;
    well.store(false, Ordering::Relaxed);
    become_(&session, &format!("asked unhealthy, {rest}")).await;
    well.store(true, Ordering::Relaxed);
    become_(&session, &format!("asked healthy, {rest}")).await;
    assert_eq!(
        bridge.log().matches("the instance is not checked").count(),
        1,
        "{}",
        bridge.log()
    );

    // A row that somebody holds keeps no other from being written.
    let other = database.connect().await;
    other
        .run("begin; select from extension_instances where instance_id = 'unheard' for update")
        .await;
    session
        .run("update extension_instances set health_status = 'degraded' where instance_id = 'asked'")
        .await;
    well.store(false, Ordering::Relaxed);
    become_(&session, &format!("asked unhealthy, {rest}")).await;
}

#[tokio::test]
async fn silence_of_nats_is_not_held_against_services() {
    let mut nats = Nats::start();
    let (database, session) = registry(&[("a", "{}"), ("h", r#"{"health_subject": "s.a"}"#)]).await;
    let _a = micro::service(&nats, "a", &["s.a"]);
    let bridge = Bridge::start(&nats, &database, &FLAGS);
    let second = Bridge::start(&nats, &database, &FLAGS);
    become_(&session, "a healthy, h healthy").await;
    // One of the two does it.
    let leads = |bridge: &Bridge| bridge.log().matches("this bridge does the health checks").count();
    assert_eq!(leads(&bridge) + leads(&second), 1);
    let leader = if leads(&bridge) == 1 { &bridge } else { &second };

    nats.stop();
    more(leader, "inconclusive", 6.0).await;
    nats.start_again();
    more(leader, "healthy", 6.0).await;
    let changes = "select count(*)::text from extension_audit_log where new_values ->> 'health_status' = 'unhealthy'";
    assert_eq!(session.one(changes, &[]).await, "0");
    assert_eq!(statuses(&session).await, "a healthy, h healthy");
}
