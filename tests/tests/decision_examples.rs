//! The worked examples of the decision: which version, which instance, when the breaker refuses, and what is said about it.

use std::collections::BTreeMap;
use std::time::Duration;

use ext_registry_tests::{Database, Decision, Postgres, Session, eventually};
use serde_json::{Value, json};

/// An extension `x` of version v1 at `x.v1`.
async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms, retry) values ('x', 'pre', 'x.v1', 100, 0)")
        .await;
    session
}

/// Rows of `extension_versions`: name, rules, share.
async fn versions(session: &Session, rows: &[(&str, &str, f64)]) {
    session.run("delete from extension_versions").await;
    for (version, rules, percent) in rows {
        session
            .run(&format!(
                "insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, rollout_percent)
                 values ('x', '{version}', 'x.{version}', 80, 1, '{rules}', {percent})"
            ))
            .await;
    }
}

/// Rows of `extension_instances` on x.v1: name, weight, declared health.
async fn instances(session: &Session, rows: &[(&str, i32, &str)]) {
    session.run("delete from extension_instances").await;
    for (instance, weight, health) in rows {
        session
            .run(&format!(
                "insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
                 values ('x', '{instance}', 'x.v1', {weight}, '{health}')"
            ))
            .await;
    }
}

/// Breaker settings of `x`.
async fn settings(session: &Session, assignments: &str) {
    session
        .run(&format!(
            "update extension_health set {assignments} where extension_id = 'x'"
        ))
        .await;
}

/// How often each instance or version was chosen.
async fn picks(session: &Session, number: usize, name: impl Fn(&Decision) -> &str) -> BTreeMap<String, usize> {
    let mut picks = BTreeMap::new();
    for _ in 0..number {
        let decision = session.select("x", &json!({})).await;
        *picks.entry(name(&decision).to_owned()).or_default() += 1;
    }
    picks
}

fn counted<const N: usize>(picks: [(&str, usize); N]) -> BTreeMap<String, usize> {
    picks
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
}

#[tokio::test]
async fn the_three_examples_of_the_seeds() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let cases = [
        (r#"{"tenant_id":["tenant1","tenant2"]}"#, ["v2", "v2", "v1"]),
        ("{}", ["v2", "v2", "v2"]),
        (r#"{"tenant_id":[]}"#, ["v1", "v1", "v1"]),
    ];
    for (rules, expected) in cases {
        versions(&session, &[("v1", "{}", 100.0), ("v2", rules, 100.0)]).await;
        for (tenant, version) in ["tenant1", "tenant2", "tenant3"].into_iter().zip(expected) {
            let decision = session.select_for("x", tenant).await;
            assert_eq!(
                (decision.version(), decision.reason.as_str()),
                (version, "ok"),
                "{rules} {tenant}"
            );
        }
    }
}

/// Versions with their rules.
type Rows = &'static [(&'static str, &'static str)];

#[tokio::test]
async fn more_keys_win_then_the_higher_version() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let cases: [(Rows, Value, &str); 8] = [
        (&[("v9", "{}"), ("v10", "{}")], json!({}), "v10"),
        (&[("1.9.2", "{}"), ("1.10.0", "{}")], json!({}), "1.10.0"),
        (&[("v2", r#"{"a":1}"#), ("v3", "{}")], json!({"a": 1}), "v2"),
        (
            &[("v2", r#"{"a":1,"b":2}"#), ("v3", r#"{"a":1}"#)],
            json!({"a": 1, "b": 2}),
            "v2",
        ),
        (&[("v2", r#"{"a":null}"#)], json!({"a": null}), "v2"),
        (&[("v2", r#"{"a":null}"#)], json!({"a": 1}), "v1"),
        (&[("v2", r#"{"a.b":["c"]}"#)], json!({"a": {"b": "c"}}), "v2"),
        // A canary does not leak: its row is no last resort.
        (&[("v2", r#"{"a":1}"#)], json!({}), "v1"),
    ];
    for (rows, context, expected) in cases {
        let rows: Vec<_> = rows.iter().map(|(version, rules)| (*version, *rules, 100.0)).collect();
        versions(&session, &rows).await;
        assert_eq!(
            session.select("x", &context).await.version(),
            expected,
            "{rows:?} {context}"
        );
    }
}

#[tokio::test]
async fn operators_of_rules() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let cases = [
        (r#"{"a":{"in":["b","c"]}}"#, json!({"a": "c"}), json!({"a": "d"})),
        (r#"{"a":{"not_in":["b"]}}"#, json!({"a": "c"}), json!({"a": "b"})),
        (r#"{"a":{"ne":"b"}}"#, json!({"a": "c"}), json!({"a": "b"})),
        (
            r#"{"a":{"prefix":"eu-","suffix":"-1"}}"#,
            json!({"a": "eu-west-1"}),
            json!({"a": "eu-west-2"}),
        ),
        (
            r#"{"a":{"regex":"^t[0-9]+$"}}"#,
            json!({"a": "t12"}),
            json!({"a": "t12x"}),
        ),
        (r#"{"a":{"exists":true}}"#, json!({"a": 0}), json!({"b": 0})),
        (r#"{"a":{"gte":3,"lt":5}}"#, json!({"a": 3}), json!({"a": 5})),
        (
            r#"{"a":{"semver":">=1.2, <2"}}"#,
            json!({"a": "1.10.0"}),
            json!({"a": "2.0.0"}),
        ),
    ];
    for (rules, matching, other) in cases {
        versions(&session, &[("v2", rules, 100.0)]).await;
        assert_eq!(
            session.select("x", &matching).await.version(),
            "v2",
            "{rules} {matching}"
        );
        assert_eq!(session.select("x", &other).await.version(), "v1", "{rules} {other}");
    }
}

#[tokio::test]
async fn shares_are_sticky_and_moderate() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let keys: Vec<String> = (0..4000).map(|number| format!("tenant{number}")).collect();
    let assign = async || {
        let contexts: Vec<Value> = keys.iter().map(|key| json!({ "tenant_id": key })).collect();
        let ids = vec!["x"; keys.len()];
        let sql = "select version from ext_select_many($1, $2) order by ordinality";
        let rows = session.query(sql, &[&ids, &contexts]).await.expect("decisions");
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    let share = |assigned: &[String], version: &str| {
        100.0 * assigned.iter().filter(|chosen| *chosen == version).count() as f64 / assigned.len() as f64
    };

    versions(&session, &[("v1", "{}", 100.0), ("v2", "{}", 10.0)]).await;
    let first = assign().await;
    // Four standard deviations of a share of 10 % among 4000 keys are 1.9 %.
    assert!(
        (share(&first, "v2") - 10.0).abs() < 1.9,
        "v2 has {} %",
        share(&first, "v2")
    );
    assert!(first.iter().all(|version| ["v1", "v2"].contains(&version.as_str())));
    assert_eq!(assign().await, first, "the same key always gets the same answer");

    session
        .run("update extension_versions set rollout_percent = 25 where version = 'v2'")
        .await;
    let raised = assign().await;
    assert!(
        (share(&raised, "v2") - 25.0).abs() < 2.8,
        "v2 has {} %",
        share(&raised, "v2")
    );
    let lost = first
        .iter()
        .zip(&raised)
        .filter(|(before, after)| *before == "v2" && *after != "v2")
        .count();
    assert_eq!(lost, 0, "raising a share moves no key away from that version");

    versions(&session, &[("v1", "{}", 100.0), ("v2", "{}", 10.0), ("v3", "{}", 10.0)]).await;
    let canaries = assign().await;
    for version in ["v2", "v3"] {
        assert!(
            (share(&canaries, version) - 10.0).abs() < 1.9,
            "{version} has {} %",
            share(&canaries, version)
        );
    }
    assert!(
        (share(&canaries, "v1") - 80.0).abs() < 2.6,
        "v1 has {} %",
        share(&canaries, "v1")
    );
}

#[tokio::test]
async fn refusals_are_rows_with_a_reason() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let reason = async |context: Value| {
        let decision = session.select("x", &context).await;
        assert_eq!(decision.allowed, decision.version.is_some(), "{decision:?}");
        decision.reason
    };

    let unknown = session.select("nobody", &json!({})).await;
    assert_eq!(
        (unknown.allowed, unknown.reason.as_str(), unknown.ticket),
        (false, "extension_not_found", 0)
    );
    let null = session.one("select reason from ext_select(null)", &[]).await;
    assert_eq!(null, "extension_not_found");

    assert_eq!(reason(json!({})).await, "ok");
    for (tenants, tenant, expected) in [
        (r#"["a", "b"]"#, json!({"tenant_id": "b"}), "ok"),
        (r#"["a", "b"]"#, json!({"tenant_id": "c"}), "tenant_not_allowed"),
        (r#"["a", "b"]"#, json!({}), "tenant_not_allowed"),
        (r#""a""#, json!({"tenant_id": "a"}), "tenant_not_allowed"),
    ] {
        session
            .run(&format!(
                r#"update extensions set metadata = '{{"allowed_tenants": {tenants}}}'"#
            ))
            .await;
        assert_eq!(reason(tenant).await, expected, "{tenants}");
    }
    session.run("update extensions set metadata = '{}'").await;

    // A row of the version that the extension itself names lends it its `enabled`.
    versions(&session, &[("v1", r#"{"tenant_id":"a"}"#, 100.0)]).await;
    session.run("update extension_versions set enabled = false").await;
    assert_eq!(reason(json!({})).await, "no_version");

    session.run("update extensions set enabled = false").await;
    assert_eq!(reason(json!({})).await, "extension_disabled");

    let error = session.error_of("select ext_select('x', '[1]')").await;
    assert_eq!(error.code().code(), "22023", "a context that is no object: {error}");
}

#[tokio::test]
async fn weighted_round_robin_is_exact_and_smooth() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    instances(
        &session,
        &[("a", 50, "healthy"), ("b", 10, "unknown"), ("c", 10, "healthy")],
    )
    .await;

    // nginx's 5/1/1: b and c never follow each other within a round, and each prefix is within 1 of its share.
    let (mut a, mut order) = (0.0_f64, String::new());
    for pick in 1..=70 {
        let decision = session.select("x", &json!({})).await;
        order += decision.instance();
        a += f64::from(u8::from(decision.instance() == "a"));
        assert!((a - f64::from(pick) * 5.0 / 7.0).abs() <= 1.0, "{order}");
    }
    for rare in ["b", "c"] {
        assert_eq!(order.matches(rare).count(), 10, "{order}");
        assert!(!order.contains(&rare.repeat(2)), "{order}");
    }

    // Eight sessions at once share one cycle.
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(database.connect().await);
    }
    let shares = sessions.iter().map(|session| picks(session, 70, Decision::instance));
    for share in futures_util::future::join_all(shares).await {
        for (instance, count) in share {
            *total.entry(instance).or_default() += count;
        }
    }
    assert_eq!(total, counted([("a", 400), ("b", 80), ("c", 80)]));
}

#[tokio::test]
async fn instances_by_health() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;

    instances(
        &session,
        &[("a", 100, "healthy"), ("b", 100, "degraded"), ("c", 100, "unhealthy")],
    )
    .await;
    assert_eq!(
        picks(&session, 30, Decision::instance).await,
        counted([("a", 20), ("b", 10)])
    );

    let avoiding = "select instance_id from ext_select('x', '{}', array['a'])";
    assert_eq!(session.one(avoiding, &[]).await, "b");
    // Not chosen while another is eligible; the last one is.
    let avoiding = "select instance_id from ext_select('x', '{}', array['a', 'b'])";
    assert_ne!(session.one(avoiding, &[]).await, "c");

    instances(&session, &[("a", 100, "unhealthy"), ("b", 0, "healthy")]).await;
    let decision = session.select("x", &json!({})).await;
    assert_eq!(
        (decision.allowed, decision.reason.as_str()),
        (true, "panic"),
        "{decision:?}"
    );
    assert!(["a", "b"].contains(&decision.instance()), "{decision:?}");

    session
        .run("update extension_instances set draining = true where instance_id = 'a'")
        .await;
    assert_eq!(
        session.select("x", &json!({})).await.instance(),
        "b",
        "draining ones get nothing, not even in a panic"
    );

    session.run("update extension_instances set enabled = false").await;
    let decision = session.select("x", &json!({})).await;
    assert_eq!(
        (
            decision.allowed,
            decision.reason.as_str(),
            decision.subject.as_deref(),
            decision.instance()
        ),
        (true, "no_instances", Some("x.v1"), "-")
    );
}

#[tokio::test]
async fn breaker_opens_by_rate_over_enough_calls_only() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    // Only the rate counts here: half of at least ten.
    settings(
        &session,
        "circuit_breaker_failure_threshold = null, circuit_breaker_minimum_requests = 10",
    )
    .await;
    session.call("x", &json!({}), "error", 4).await;
    session.call("x", &json!({}), "success", 5).await;
    assert_eq!(
        session.breaker("x").await,
        "closed",
        "nine outcomes are too few to judge"
    );
    session.call("x", &json!({}), "timeout", 1).await;
    assert_eq!(session.breaker("x").await, "open", "five of ten");
    let decision = session.select("x", &json!({})).await;
    assert_eq!(
        (decision.allowed, decision.reason.as_str()),
        (false, "extension_circuit_open")
    );
    let wait = decision.retry_after_ms.expect("how long");
    assert!(
        (50_000..=66_000).contains(&wait),
        "60 s, jittered by a tenth: {wait} ms"
    );
}

#[tokio::test]
async fn five_failures_among_many_calls_are_none() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    session.call("x", &json!({}), "success", 995).await;
    session.call("x", &json!({}), "error", 9).await;
    assert_eq!(session.breaker("x").await, "closed", "9 of 1004 is below 1 %");
    session.call("x", &json!({}), "error", 2).await;
    assert_eq!(session.breaker("x").await, "open", "11 of 1006 is not");
}

#[tokio::test]
async fn neutral_outcomes_and_refusals_count_in_no_breaker() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    for outcome in ["cancelled", "caller_error"] {
        session.call("x", &json!({}), outcome, 20).await;
    }
    assert_eq!(
        (session.breaker("x").await.as_str(), session.counts("x").await),
        ("closed", (0, 0))
    );
    for outcome in ["error", "timeout", "no_responders", "invalid_response", "error"] {
        session.call("x", &json!({}), outcome, 1).await;
    }
    assert_eq!(
        (session.breaker("x").await.as_str(), session.counts("x").await),
        ("open", (0, 5))
    );
    assert_eq!(session.call("x", &json!({}), "error", 10).await, 0);
    assert_eq!(session.counts("x").await, (0, 5));
    let refused = "select circuit_open_count::text from extension_version_health where extension_id = 'x'";
    assert_eq!(session.one(refused, &[]).await, "10");
}

/// Decides until a probe is let through; its decision.
async fn first_probe(session: &Session) -> Decision {
    eventually(Duration::from_secs(15), async || {
        let decision = session.select("x", &json!({})).await;
        if decision.reason == "probe" {
            Ok(decision)
        } else {
            Err(decision)
        }
    })
    .await
}

#[tokio::test]
async fn breaker_recovers_through_half_open() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    settings(&session, "circuit_breaker_timeout_seconds = 1").await;
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(session.breaker("x").await, "open");

    let mut probes = vec![first_probe(&session).await];
    assert_eq!(session.breaker("x").await, "half_open");
    for _ in 0..2 {
        let decision = session.select("x", &json!({})).await;
        assert_eq!(decision.reason, "probe");
        probes.push(decision);
    }
    let fourth = session.select("x", &json!({})).await;
    assert_eq!(
        (fourth.allowed, fourth.reason.as_str()),
        (false, "extension_circuit_open"),
        "three at once"
    );
    assert!(fourth.retry_after_ms.is_some_and(|wait| wait >= 1), "{fourth:?}");
    let leases = "select half_open_requests_count::text from extension_health";
    assert_eq!(session.one(leases, &[]).await, "3");

    for (number, probe) in probes.iter().enumerate() {
        assert_eq!(session.breaker("x").await, "half_open", "after {number} successes");
        session.report(probe.ticket, "success", Duration::from_millis(3)).await;
    }
    assert_eq!(session.breaker("x").await, "closed");
    assert_eq!(session.select("x", &json!({})).await.reason, "ok");

    // The window is cleared: the first failure after recovery opens nothing.
    session.call("x", &json!({}), "error", 4).await;
    assert_eq!(session.breaker("x").await, "closed");

    let events = "select from_state || '>' || to_state from extension_breaker_events order by id";
    eventually(Duration::from_secs(5), async || {
        let rows = session.query(events, &[]).await.expect("the events");
        let events: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        if events == ["closed>open", "open>half_open", "half_open>closed"] {
            Ok(())
        } else {
            Err(events)
        }
    })
    .await;
}

#[tokio::test]
async fn a_failed_probe_opens_again_and_a_lost_one_wedges_nothing() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    settings(
        &session,
        "circuit_breaker_timeout_seconds = 1, half_open_max_requests = 1",
    )
    .await;
    session.call("x", &json!({}), "error", 5).await;
    let probe = first_probe(&session).await;
    session.report(probe.ticket, "error", Duration::from_millis(3)).await;
    assert_eq!(session.breaker("x").await, "open");
    // Twice as long this time: 2 s, jittered by a tenth.
    let wait = session.select("x", &json!({})).await.retry_after_ms.expect("how long");
    assert!((1_101..=2_200).contains(&wait), "{wait} ms");

    // This probe is never reported: its lease ends after timeout + 1 s, and another is let through.
    let lost = first_probe(&session).await;
    assert!(!session.select("x", &json!({})).await.allowed);
    let next = first_probe(&session).await;
    assert_ne!(lost.ticket, next.ticket);
    session.report(lost.ticket, "error", Duration::from_millis(3)).await;
    assert_eq!(
        session.breaker("x").await,
        "half_open",
        "a report after its lease changes no state"
    );
    session.report(next.ticket, "success", Duration::from_millis(3)).await;
    assert_eq!(session.breaker("x").await, "closed");
}

#[tokio::test]
async fn a_refused_version_falls_through_to_the_next_matching_one() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    versions(&session, &[("v2", "{}", 100.0), ("v3", r#"{"tenant_id":"a"}"#, 100.0)]).await;
    let tenant = json!({"tenant_id": "a"});
    session.call("x", &tenant, "error", 5).await;
    let decision = session.select("x", &tenant).await;
    assert_eq!(
        (decision.version(), decision.reason.as_str()),
        ("v2", "fallback_version")
    );
    let open = "select open_versions::text from extension_health";
    assert_eq!(
        (
            session.breaker("x").await.as_str(),
            session.one(open, &[]).await.as_str()
        ),
        ("open", "{v3}")
    );
    assert_eq!(
        session.select("x", &json!({})).await.reason,
        "ok",
        "v2 serves others as before"
    );

    // Both open: never the extension's own row beneath them.
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(session.select("x", &tenant).await.reason, "extension_circuit_open");
}

#[tokio::test]
async fn a_ticket_counts_once() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let stale = || async {
        let sql = "select stale_reports::text from ext_registry_status()";
        session.one(sql, &[]).await.parse::<i64>().expect("a count")
    };
    let before = stale().await;
    let decision = session.select("x", &json!({})).await;
    for _ in 0..3 {
        session
            .report(decision.ticket, "success", Duration::from_millis(3))
            .await;
    }
    session.report(0, "error", Duration::from_millis(3)).await;
    assert_eq!(session.counts("x").await, (1, 0));
    assert!(stale().await >= before + 3, "two repetitions and ticket 0");
}

#[tokio::test]
async fn reports_without_a_ticket_go_to_the_version_an_empty_context_gets() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    versions(&session, &[("v1", "{}", 100.0), ("v2", r#"{"tenant_id":"a"}"#, 100.0)]).await;
    session.run("select ext_report('x', 'success', 12.5)").await;
    session
        .run("select ext_report('x', 'error', 12.5, version => 'v2')")
        .await;
    let sql = "select string_agg(format('%s %s %s', version, success_count, failure_count), ', ' order by version)
               from extension_version_health where extension_id = 'x'";
    assert_eq!(session.one(sql, &[]).await, "v1 1 0, v2 0 1");
    assert_eq!(
        session
            .error_of("select ext_report('nobody', 'success', 1)")
            .await
            .code()
            .code(),
        "42704"
    );
    assert_eq!(
        session
            .error_of("select ext_report('x', 'splendid', 1)")
            .await
            .code()
            .code(),
        "22023"
    );
}

#[tokio::test]
async fn explaining_changes_nothing() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    settings(
        &session,
        "circuit_breaker_timeout_seconds = 1, half_open_max_requests = 1",
    )
    .await;
    instances(&session, &[("a", 50, "healthy"), ("b", 50, "healthy")]).await;
    let first = session.select("x", &json!({})).await;
    for _ in 0..5 {
        let rows = session
            .query("select * from ext_explain('x')", &[])
            .await
            .expect("an explanation");
        assert!(
            rows.iter()
                .any(|row| row.get::<_, Option<&str>>("candidate") == Some("a")),
            "each instance is named"
        );
    }
    let second = session.select("x", &json!({})).await;
    assert_ne!(first.instance(), second.instance(), "the turn is as it was");

    session.call("x", &json!({}), "error", 5).await;
    // Nobody decides, so it stays open when its time is over, and the one probe is still to be had.
    eventually(Duration::from_secs(5), async || {
        let sql = "select string_agg(verdict || ' ' || coalesce(detail, ''), '; ') from ext_explain('x')";
        let text = session.one(sql, &[]).await;
        let opened = "select extract(epoch from now() - circuit_breaker_opened_at)::float8 from extension_health";
        let age: f64 = session.query_one(opened, &[]).await.expect("one row").get(0);
        if age > 1.2 { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(session.select("x", &json!({})).await.reason, "probe");
}
