//! The SQL of the replaced system's documents runs here as written, and means what those documents say.

use std::time::Duration;

use ext_registry_tests::{Database, Decision, Postgres, Session};
use serde_json::json;
use tokio_postgres::error::DbError;

const REPORT: &str = include_str!("../seeds/report.sql");
const REPORT_SCHEMA: &str = include_str!("../seeds/report_schema.sql");
const REPORT_COLUMNS: &str = include_str!("../seeds/report_columns.sql");
const RUNBOOK: &str = include_str!("../seeds/runbook.sql");

const EXTENSION: &str = "normalize_text";
const NORMALIZE_TEXT: &str = "insert into extensions (id, type, subject, timeout_ms, retry)
    values ('normalize_text', 'pre', 'beamline.ext.pre.normalize_text.v1', 100, 0)";

/// The paragraphs of a file, without those that are comments only.
fn paragraphs(file: &'static str) -> Vec<&'static str> {
    file.split("\n\n")
        .map(str::trim)
        .filter(|part| part.lines().any(|line| !line.starts_with("--")))
        .collect()
}

fn statements(file: &'static str) -> Vec<&'static str> {
    let statements = paragraphs(file);
    assert!(
        statements.iter().all(|statement| statement.ends_with(';')),
        "one statement a paragraph"
    );
    statements
}

/// A session in which the extension's row is there and nothing else.
async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session.run(NORMALIZE_TEXT).await;
    session
}

/// The version that serves, or why none does.
fn served(decision: &Decision) -> &str {
    if decision.allowed {
        decision.version()
    } else {
        &decision.reason
    }
}

#[tokio::test]
async fn report_versions_by_tenant_and_instances_by_weight() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let [versions, instances] = statements(REPORT)[..] else {
        panic!("two statements")
    };

    session.run(versions).await;
    for (tenant, version, timeout) in [("tenant1", "v2", 80), ("tenant2", "v2", 80), ("tenant3", "v1", 100)] {
        let decision = session.select_for(EXTENSION, tenant).await;
        assert_eq!(
            (served(&decision), decision.timeout_ms),
            (version, Some(timeout)),
            "{tenant}"
        );
        let subject = format!("beamline.ext.pre.normalize_text.{version}");
        assert_eq!(decision.subject.as_deref(), Some(subject.as_str()), "{tenant}");
    }

    session.run(instances).await;
    let mut picks = [0_i32; 2];
    for pick in 1..=300 {
        let decision = session.select_for(EXTENSION, "tenant3").await;
        match decision.instance() {
            "instance-1" => picks[0] += 1,
            "instance-2" => picks[1] += 1,
            other => panic!("instance {other}"),
        }
        assert!(
            (f64::from(picks[0]) - f64::from(pick) * 2.0 / 3.0).abs() <= 1.0,
            "{picks:?} of {pick}"
        );
    }
    // The instances listen where v1 listens: v2 keeps its own subject.
    let decision = session.select_for(EXTENSION, "tenant1").await;
    assert_eq!((decision.version(), decision.instance()), ("v2", "-"));
    assert_eq!(decision.subject.as_deref(), Some("beamline.ext.pre.normalize_text.v2"));
}

#[tokio::test]
async fn report_circuit_opens_after_five_failures() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    for statement in statements(REPORT) {
        session.run(statement).await;
    }
    assert_eq!(session.call(EXTENSION, &json!({}), "error", 5).await, 5);
    assert_eq!(session.breaker(EXTENSION).await, "open");
    assert_eq!(
        served(&session.select(EXTENSION, &json!({})).await),
        "extension_circuit_open"
    );
}

#[tokio::test]
async fn runbook_statements_run_and_take_effect() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;

    let disabled = ["extension_disabled"; 3];
    let v1 = ["v1"; 3];
    // What premium_tenant, standard_tenant and any other get after each statement.
    let expected = [
        ("disable", disabled),
        ("enable", v1),
        ("timeout", v1),
        ("retry", v1),
        ("config", v1),
        ("insert v2", ["v2", "v1", "v1"]),
        ("more tenants", ["v2", "v2", "v1"]),
        ("v2 for all", ["v2", "v2", "v2"]),
        ("roll back", v1),
        ("disable v2", v1),
        ("disable", disabled),
        ("enable", v1),
        ("look", v1),
        ("timeout", v1),
        ("reset", v1),
        ("timeout", v1),
        ("disable", disabled),
        ("timeout", disabled),
        ("look at health", disabled),
    ];
    let statements = statements(RUNBOOK);
    assert_eq!(statements.len(), expected.len());
    for (statement, (step, wanted)) in statements.into_iter().zip(expected) {
        session.run(statement).await;
        let notices = session.take_notices();
        if step == "disable v2" {
            // It matches no row: the runbook means extension_versions, and is told so.
            let told = |notice: &DbError| notice.hint().is_some_and(|hint| hint.contains("extension_versions"));
            assert!(notices.iter().any(told), "{notices:?}");
        }
        let mut got = Vec::new();
        for tenant in ["premium_tenant", "standard_tenant", "another"] {
            let decision = session.select_for(EXTENSION, tenant).await;
            got.push(served(&decision).to_owned());
        }
        assert_eq!(got, wanted, "after: {step}");
    }
    let row = session
        .query_one("select timeout_ms, retry, config->>'max_length' from extensions", &[])
        .await
        .expect("one row");
    assert_eq!((row.get(0), row.get(1), row.get(2)), (200, 1, Some("1000")));
}

#[tokio::test]
async fn runbook_reset_closes_the_breaker_at_commit() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let other = database.connect().await;
    let reset = statements(RUNBOOK)
        .into_iter()
        .find(|statement| statement.contains("circuit_breaker_state = 'closed'"))
        .expect("the runbook resets a breaker");
    session.call(EXTENSION, &json!({}), "timeout", 5).await;
    assert_eq!(other.breaker(EXTENSION).await, "open");

    session.run("begin").await;
    session.run(reset).await;
    session.run("rollback").await;
    assert_eq!(session.breaker(EXTENSION).await, "open");
    assert_eq!(
        served(&session.select(EXTENSION, &json!({})).await),
        "extension_circuit_open"
    );

    session.run("begin").await;
    session.run(reset).await;
    assert_eq!(
        served(&other.select(EXTENSION, &json!({})).await),
        "extension_circuit_open",
        "not committed yet"
    );
    session.run("commit").await;
    assert_eq!(served(&other.select(EXTENSION, &json!({})).await), "v1");
    assert_eq!(session.breaker(EXTENSION).await, "closed");
    assert_eq!(session.counts(EXTENSION).await, (0, 5), "counts stay");

    // The window is cleared: four more failures do not open it, a fifth does.
    for (failures, state) in [(4, "closed"), (1, "open")] {
        for _ in 0..failures {
            let decision = session.select(EXTENSION, &json!({})).await;
            session.report(decision.ticket, "error", Duration::from_millis(3)).await;
        }
        assert_eq!(session.breaker(EXTENSION).await, state);
    }
}

#[tokio::test]
async fn tables_have_the_columns_of_the_report() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session.run("create schema seed; set search_path = seed, public").await;
    for statement in statements(REPORT_SCHEMA) {
        session.run(statement).await;
    }
    for (number, columns) in paragraphs(REPORT_COLUMNS).into_iter().enumerate() {
        session
            .run(&format!(
                "create table health_{number} ({})",
                columns.trim_end_matches(',')
            ))
            .await;
    }

    // Each column of theirs beside ours. Measured and configured numbers became double precision.
    let differing = "
        with theirs as (
            select
                case when relname ~ '^health_' then 'extension_health' else relname::text end as relation,
                a.attname, format_type(a.atttypid, a.atttypmod) as type,
                pg_get_expr(d.adbin, d.adrelid) as default_value, relname ~ '^health_' as view
            from pg_class c
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
            left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
            where c.relnamespace = 'seed'::regnamespace and c.relkind = 'r'
        ), ours as (
            select
                c.relname::text as relation, a.attname, format_type(a.atttypid, a.atttypmod) as type,
                pg_get_expr(d.adbin, d.adrelid) as default_value
            from pg_class c
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
            left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v')
        )
        select
            count(*)::int as columns,
            array_agg(format('%s.%s: %s default %s, here %s default %s', relation, attname, theirs.type,
                theirs.default_value, ours.type, ours.default_value)) filter (where
                ours.type is null
                or ours.type <> case
                    when attname = 'latency_sum' or attname ~ 'latency_ms$' then 'double precision'
                    else regexp_replace(theirs.type, '^numeric.*', 'numeric') end
                or not view and theirs.default_value is distinct from ours.default_value
            ) as differing
        from theirs left join ours using (relation, attname)";
    let row = session.query_one(differing, &[]).await.expect("both catalogues");
    assert_eq!(row.get::<_, i32>("columns"), 10 + 7 + 4 + 6);
    assert_eq!(row.get::<_, Option<Vec<String>>>("differing"), None);

    // The settings of an extension that has none of its own are the report's defaults.
    session.run("set search_path = public").await;
    session.run(NORMALIZE_TEXT).await;
    let settings = "
        select format('%s %s %s %s', circuit_breaker_error_rate_threshold, circuit_breaker_window_seconds,
            half_open_max_requests, half_open_requests_count)
        from extension_health";
    assert_eq!(session.one(settings, &[]).await, "0.5 60 3 0");
}
