//! `sql/adopt_beamline.sql` takes over a database of the replaced registry, whole or not at all.

use std::process::Output;

use ext_registry_tests::{Database, Postgres, places};
use serde_json::json;

/// The replaced system's tables (its columns, defaults and checks), with its default rows and its documents' examples.
const BEFORE: &str = "
create table extensions (
    id varchar(255) primary key, type varchar(32) not null check (type in ('pre', 'validator', 'post', 'provider')),
    subject varchar(512) not null, timeout_ms integer not null default 5000 check (timeout_ms > 0),
    retry integer not null default 0 check (retry >= 0), enabled boolean not null default true,
    version varchar(32) not null default 'v1', config jsonb default '{}', metadata jsonb default '{}',
    created_at timestamptz default now(), updated_at timestamptz default now(),
    created_by varchar(255), updated_by varchar(255));
create index idx_extensions_type on extensions (type);
create table extension_versions (
    id varchar(255) not null references extensions (id) on delete cascade, version varchar(32) not null,
    subject varchar(512) not null, timeout_ms integer not null, retry integer not null, config jsonb default '{}',
    metadata jsonb default '{}', routing_rules jsonb default '{}', enabled boolean not null default true,
    created_at timestamptz default now(), created_by varchar(255), primary key (id, version));
create table extension_instances (
    extension_id varchar(255) not null references extensions (id) on delete cascade, instance_id varchar(255) not null,
    subject varchar(512) not null, weight integer default 100 check (weight between 0 and 100),
    enabled boolean not null default true,
    health_status varchar(32) default 'unknown' check (health_status in ('healthy', 'degraded', 'unhealthy', 'unknown')),
    last_health_check timestamptz, created_at timestamptz default now(), updated_at timestamptz default now(),
    primary key (extension_id, instance_id));
create table extension_health (
    extension_id varchar(255) primary key references extensions (id) on delete cascade,
    last_success timestamptz, last_failure timestamptz, success_count bigint default 0, failure_count bigint default 0,
    avg_latency_ms numeric(10,2), p50_latency_ms numeric(10,2), p95_latency_ms numeric(10,2), p99_latency_ms numeric(10,2),
    last_latency_ms integer, latency_samples bigint default 0, latency_sum bigint default 0,
    latency_samples_window_start timestamptz default now(),
    circuit_breaker_state varchar(32) default 'closed' check (circuit_breaker_state in ('closed', 'open', 'half_open')),
    circuit_breaker_opened_at timestamptz, circuit_breaker_failure_threshold integer default 5,
    circuit_breaker_error_rate_threshold numeric(5,2) default 0.5, circuit_breaker_window_seconds integer default 60,
    half_open_max_requests integer default 3, half_open_requests_count integer default 0, updated_at timestamptz default now());
create table extension_audit_log (
    id uuid primary key default gen_random_uuid(), extension_id varchar(255) not null references extensions (id) on delete cascade,
    action varchar(32) not null check (action in ('create', 'update', 'delete', 'enable', 'disable')),
    old_values jsonb, new_values jsonb, changed_by varchar(255), changed_at timestamptz default now());
insert into extensions (id, type, subject, timeout_ms, created_at, created_by) values
    ('normalize_text', 'pre', 'beamline.ext.pre.normalize_text.v1', 100, '2025-01-01', 'ada'),
    ('pii_guard', 'validator', 'beamline.ext.validate.pii_guard.v1', 200, '2025-01-02', null),
    ('mask_pii', 'post', 'beamline.ext.post.mask_pii.v1', 150, '2025-01-03', null);
insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, created_at) values
    ('normalize_text', 'v10', 'beamline.ext.pre.normalize_text.v10', 80, 1, '{\"tenant_id\": [\"t1\", \"t2\"]}', '2025-02-01'),
    ('normalize_text', 'v9', 'beamline.ext.pre.normalize_text.v9', 90, 0, '{\"environment\": \"prod\"}', '2025-02-02');
insert into extension_instances (extension_id, instance_id, subject, weight, health_status) values
    ('pii_guard', 'a', 'beamline.ext.validate.pii_guard.v1.a', 67, 'healthy'),
    ('pii_guard', 'b', 'beamline.ext.validate.pii_guard.v1.b', null, 'unknown');
insert into extension_health (extension_id, success_count, circuit_breaker_state, circuit_breaker_failure_threshold,
    circuit_breaker_window_seconds) values
    ('normalize_text', 17, 'closed', 5, 60), ('pii_guard', 3, 'open', 20, 120), ('mask_pii', 0, 'closed', null, null);
insert into extension_audit_log (extension_id, action, new_values, changed_by, changed_at) values
    ('normalize_text', 'create', '{\"id\": \"normalize_text\"}', 'ada', '2025-01-01');
create view dashboard as select id, circuit_breaker_state from extensions join extension_health on extension_id = id;
";

/// Runs the script as a DBA does.
fn adopt(database: &Database<'_>, arguments: &[&str]) -> Output {
    let mut command = database.cluster().psql_command(database.name());
    command
        .args(["-q", "-v", "VERBOSITY=default"])
        .args(arguments)
        .arg("-f")
        .arg(places::root().join("sql/adopt_beamline.sql"));
    command.output().expect("psql can be started")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn a_database_of_the_replaced_registry_is_taken_over() {
    let database = Postgres::shared().database_without_extension();
    database.run(BEFORE);
    let name = database.name();
    let auditor = format!("auditor_{name}");
    database.run(&format!(
        "create role {auditor}; grant select, update on extensions to {auditor}"
    ));
    let output = adopt(&database, &[]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for line in [
        "extensions: 3 rows",
        "extension_versions: 2 rows",
        "extension_instances: 2 rows",
        "extension_audit_log: 1 rows",
        "settings of breakers that are not the defaults: 1",
        "view dashboard goes on looking at the tables in beamline_before",
        "the circuit breaker of pii_guard was open; it begins closed here",
        "extension normalize_text: version v9 was made after v10 and was asked first",
        &format!("SELECT ext_grant('{auditor}', 'operator')"),
        "DROP SCHEMA \"beamline_before\" CASCADE",
    ] {
        assert!(said.contains(line), "{line} is missing in:\n{said}");
    }
    assert!(!said.contains("ERROR"), "{said}");

    let session = database.connect().await;
    let decision = session.select("normalize_text", &json!({"tenant_id": "t2"})).await;
    assert_eq!((decision.version(), decision.timeout_ms), ("v10", Some(80)));
    let decision = session.select("normalize_text", &json!({"environment": "prod"})).await;
    assert_eq!(decision.version(), "v9");
    assert_eq!(session.select("normalize_text", &json!({})).await.version(), "v1");
    assert!(session.select("pii_guard", &json!({})).await.allowed);
    let kept =
        "select concat_ws('|', created_by, created_at::date, timeout_ms) from extensions where id = 'normalize_text'";
    assert_eq!(session.one(kept, &[]).await, "ada|2025-01-01|100");
    let weights = "select string_agg(weight::text, ',' order by instance_id) from extension_instances";
    assert_eq!(session.one(weights, &[]).await, "67,100");
    let settings = "select concat_ws('|', circuit_breaker_failure_threshold, circuit_breaker_window_seconds, circuit_breaker_state)
        from extension_health where extension_id = 'pii_guard'";
    assert_eq!(session.one(settings, &[]).await, "20|120|closed");
    let log = "select string_agg(distinct changed_by, ',' order by changed_by) from extension_audit_log";
    assert_eq!(
        session.one(log, &[]).await,
        "ada,postgres",
        "the old entries and those of the move"
    );

    // Once is enough.
    let again = adopt(&database, &[]);
    assert!(!again.status.success());
    assert!(self::said(&again).contains("ext_registry is there already"));
    session
        .run(&format!(
            "drop view dashboard; drop schema beamline_before cascade; drop role {auditor}"
        ))
        .await;
    assert!(session.select("mask_pii", &json!({})).await.allowed);
}

#[tokio::test]
async fn rows_that_cannot_be_are_all_named_and_nothing_has_changed() {
    let database = Postgres::shared().database_without_extension();
    database.run(BEFORE);
    database.run(
        "insert into extensions (id, type, subject, timeout_ms) values ('slow', 'pre', 'svc.slow', 900000), ('bad id', 'pre', 'svc', 100);
         insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
         values ('slow', 'v2', 'svc', 100, 0, '{}'), ('mask_pii', 'v2', 'svc.*', 100, 0, '{}'),
                ('pii_guard', 'v3', 'svc', 100, 0, '{\"tenant_id\": {\"no_such_operator\": 1}}');
         update extension_health set circuit_breaker_window_seconds = 100000 where extension_id = 'mask_pii'",
    );
    let output = adopt(&database, &["-v", "aside=old"]);
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("6 rows of the replaced registry cannot be taken over"),
        "{said}"
    );
    for line in [
        "extensions slow v1: invalid timeout_ms",
        "900000",
        "extensions bad id v1: ",
        "extension_versions slow: there is no such extension, or its row is amiss itself",
        "extension_versions mask_pii v2: ",
        "extension_versions pii_guard v3: ",
        "extension_health mask_pii: invalid circuit_breaker_window_seconds",
        "Nothing has changed.",
    ] {
        assert!(said.contains(line), "{line} is missing in:\n{said}");
    }
    let untouched = "select concat_ws('|', (select count(*) from public.extensions), to_regnamespace('old'),
        (select count(*) from pg_extension where extname = 'ext_registry'))";
    assert_eq!(database.run(untouched).trim(), "5|0");
}

#[tokio::test]
async fn tables_elsewhere_and_with_fewer_columns() {
    let database = Postgres::shared().database_without_extension();
    // As the replaced system's report has them: no created_by, no audit log.
    database.run(&format!(
        "create schema reg; set search_path = reg; {BEFORE} drop view dashboard; drop table extension_audit_log;
         alter table extension_versions drop column created_by; alter table extension_instances drop column created_at"
    ));
    let nothing = adopt(&database, &[]);
    assert!(
        said(&nothing).contains("not a database of the replaced registry: public.extensions"),
        "{}",
        said(&nothing)
    );
    let output = adopt(&database, &["-v", "from=reg"]);
    assert!(output.status.success(), "{}", said(&output));
    let schema = "select extnamespace::regnamespace from pg_extension where extname = 'ext_registry'";
    assert_eq!(database.run(schema).trim(), "reg");
    let session = database.connect().await;
    session.run("set search_path = reg").await;
    assert_eq!(
        session
            .select("normalize_text", &json!({"tenant_id": "t1"}))
            .await
            .version(),
        "v10"
    );
}
