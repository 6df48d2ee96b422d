//! Calls that went where they should not.

use std::collections::BTreeMap;

use ext_registry_tests::Postgres;
use serde_json::{Value, json};

use crate::prepared;

// 4. The instance was a hash of the second of the clock.

#[tokio::test]
async fn instances_share_by_weight_within_any_second() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    for weights in [
        &[100, 100, 100][..],
        &[25, 25, 25, 25],
        &[1, 1],
        &[60, 40],
        &[100, 0, 50],
        &[0, 0],
    ] {
        session.run("delete from extension_instances").await;
        for (number, weight) in weights.iter().enumerate() {
            session
                .run(&format!(
                    "insert into extension_instances (extension_id, instance_id, subject, weight)
                     values ('x', 'i{number}', 'x.v1', {weight})"
                ))
                .await;
        }
        // All at once: one statement, well within a second.
        let sql = "select d.instance_id, d.reason, count(*)
                   from ext_select_many(array_fill('x'::text, array[300]), array_fill('{}'::jsonb, array[300])) d
                   group by 1, 2";
        let rows = session.query(sql, &[]).await.expect("decisions");
        let picked: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(2))).collect();
        let reason: String = rows[0].get(1);
        let total: i32 = weights.iter().sum();
        if total == 0 {
            // Nobody is eligible, and nothing is divided by zero: the calls go somewhere all the same.
            assert_eq!((reason.as_str(), picked.values().sum::<i64>()), ("panic", 300));
            assert!(picked.len() == 2, "{picked:?}");
            continue;
        }
        assert_eq!(
            (rows.len(), reason.as_str()),
            (weights.iter().filter(|weight| **weight > 0).count(), "ok")
        );
        for (number, weight) in weights.iter().enumerate() {
            let count = picked.get(&format!("i{number}")).copied().unwrap_or(0);
            let share = 300.0 * f64::from(*weight) / f64::from(total);
            assert!((count as f64 - share).abs() <= 1.0, "{weights:?}: {picked:?}");
        }
    }
}

// 5. The subject of the routed version was overwritten, canaries leaked, and the documented roll-back did not roll back.

#[tokio::test]
async fn calls_go_to_the_subject_of_the_version_chosen() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run(
            r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
                   ('x', 'v1', 'x.v1', 100, 0, '{}'),
                   ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": "canary"}'),
                   ('x', 'v3', 'x.v3', 100, 0, '{"tenant_id": "own"}');
               insert into extension_instances (extension_id, instance_id, subject, version) values
                   ('x', 'a', 'x.v1', null), ('x', 'b', 'x.v1', null), ('x', 'c', 'x.v3.c', 'v3'), ('x', 'd', 'x.elsewhere', 'v4')"#,
        )
        .await;
    for _ in 0..10 {
        let canary = session.select_for("x", "canary").await;
        assert_eq!(
            (canary.version(), canary.subject.as_deref(), canary.instance()),
            ("v2", Some("x.v2"), "-")
        );
        let own = session.select_for("x", "own").await;
        assert_eq!(
            (own.version(), own.subject.as_deref(), own.instance()),
            ("v3", Some("x.v3.c"), "c")
        );
        let other = session.select_for("x", "other").await;
        assert_eq!((other.version(), other.subject.as_deref()), ("v1", Some("x.v1")));
        assert!(["a", "b"].contains(&other.instance()));
    }
}

#[tokio::test]
async fn restricted_canaries_do_not_leak() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run(
            r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
               values ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": ["canary"]}')"#,
        )
        .await;
    let seen = async |tenant: &str| {
        let decision = session.select_for("x", tenant).await;
        format!("{} {}", decision.version(), decision.reason)
    };
    assert_eq!(
        (seen("canary").await, seen("other").await),
        ("v2 ok".into(), "v1 ok".into())
    );
    assert_eq!(
        session.select("x", &json!({})).await.version(),
        "v1",
        "nor without a tenant"
    );

    // Not when v1 is out of service, and not when it is switched off.
    for _ in 0..5 {
        session.run("select ext_report('x', 'error', 1, version => 'v1')").await;
    }
    assert_eq!(seen("other").await, "v1 extension_circuit_open");
    assert_eq!(seen("canary").await, "v2 ok", "who is open to it is not concerned");
    session.run("select ext_breaker_reset('x')").await;
    session
        .run(
            r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, enabled)
               values ('x', 'v1', 'x.v1', 100, 0, '{"tenant_id": "nobody"}', false)"#,
        )
        .await;
    assert_eq!(
        (seen("other").await, seen("canary").await),
        ("- no_version".into(), "v2 ok".into())
    );
}

#[tokio::test]
async fn roll_back_rolls_back() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    let ways = [
        r#"update extension_versions set routing_rules = '{"tenant_id": []}' where version = 'v2'"#,
        "update extension_versions set enabled = false where id = 'x' and version = 'v2'",
        "update extension_versions set rollout_percent = 0 where version = 'v2'",
        "delete from extension_versions where version = 'v2'",
    ];
    for with_row in [false, true] {
        for way in ways {
            session
                .run(
                    "delete from extension_versions;
                     insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v2', 'x.v2', 100, 0)",
                )
                .await;
            if with_row {
                session
                    .run("insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v1', 'x.v1', 100, 0)")
                    .await;
            }
            for tenant in 0..20 {
                assert_eq!(session.select_for("x", &format!("t{tenant}")).await.version(), "v2");
            }
            session.run(way).await;
            for tenant in 0..20 {
                let decision = session.select_for("x", &format!("t{tenant}")).await;
                assert_eq!(
                    (decision.version(), decision.subject.as_deref()),
                    ("v1", Some("x.v1")),
                    "{way}"
                );
            }
        }
    }
}

// 7. The configuration never reached the extension, and an extension's metadata could stand in for the request's tenant.

#[tokio::test]
async fn the_configuration_reaches_the_call_unchanged() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run(
            "insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
              values ('x', 'v2', 'x.v2', 100, 0, '{\"tenant_id\": \"t\"}')",
        )
        .await;
    let configs = [
        "{}".to_owned(),
        r#"{"a": [1, 2.50, -1e300, 1e400, 12345678901234567890123456789.123], "b": {"": null, "\u0001": "\ud83e\udd80\uffff\\\""}}"#.to_owned(),
        format!(r#"{{"deep": {}{}, "long": "{}"}}"#, "[".repeat(600), "]".repeat(600), "x".repeat(100_000)),
    ];
    for config in configs {
        for (table, tenant, version) in [("extensions", "u", "v1"), ("extension_versions", "t", "v2")] {
            session
                .execute(
                    &format!("update {table} set config = $1::text::jsonb where id = 'x'"),
                    &[&config],
                )
                .await
                .unwrap_or_else(|error| panic!("{config:.80}: {error:?}"));
            let sql = "select concat(d.version, d.config::text = $1::text::jsonb::text)
                       from ext_select('x', jsonb_build_object('tenant_id', $2::text)) d";
            assert_eq!(
                session.one(sql, &[&config, &tenant]).await,
                format!("{version}t"),
                "{config:.80}"
            );
        }
    }
}

#[tokio::test]
async fn metadata_is_no_context() {
    let database = Postgres::shared().database();
    let session = prepared(&database, "").await;
    session
        .run(
            r#"update extensions set metadata = '{"tenant_id": "vip", "allowed_tenants": ["vip", "other"]}', config = '{"tenant_id": "vip"}';
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, metadata)
               values ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": "vip"}', '{"tenant_id": "vip"}')"#,
        )
        .await;
    let decided = async |context: Value| {
        let decision = session.select("x", &context).await;
        format!("{} {}", decision.version(), decision.reason)
    };
    assert_eq!(decided(json!({"tenant_id": "vip"})).await, "v2 ok");
    assert_eq!(decided(json!({"tenant_id": "other"})).await, "v1 ok");
    assert_eq!(
        decided(json!({"metadata": {"tenant_id": "vip"}})).await,
        "- tenant_not_allowed"
    );
    assert_eq!(decided(json!({"tenant_id": ["vip"]})).await, "- tenant_not_allowed");
}
