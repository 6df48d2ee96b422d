//! `pg_dump` and `pg_restore`: in every way to use them a registry comes back that decides the same, without an error line.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::{Database, Postgres, eventually, places};

const SOON: Duration = Duration::from_secs(30);

/// A registry with something of everything that a DBA owns, and grants to `role`.
fn fill(database: &Database<'_>, role: &str) {
    database.load_fixtures();
    database.run(&format!(
        r#"insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules, rollout_percent)
           values ('normalize_text', 'v2', 'svc.v2', 80, 1, '{{"tenant_id": ["t1"]}}', 100),
                  ('normalize_text', 'v10', 'svc.v10', 90, 0, '{{"environment": "stage"}}', 50);
           insert into extension_instances (extension_id, instance_id, subject, weight, health_status)
           values ('pii_guard', 'a', 'svc.a', 67, 'healthy'), ('pii_guard', 'b', 'svc.b', 33, 'degraded');
           update extension_health set circuit_breaker_failure_threshold = 7 where extension_id = 'mask_pii';
           update extensions set enabled = false where id = 'test_provider';
           create role {role} login;
           select ext_grant('{role}', 'operator')"#
    ));
}

/// What must be the same afterwards: documents, decisions, the log, grants.
fn state(database: &Database<'_>, role: &str) -> String {
    database.run(&format!(
        r#"select ext_export() - 'exported_at';
           select extension_id, version, instance_id, subject, timeout_ms, retry, allowed, reason
           from ext_preview(
               (select array_agg(id order by n, id) from extensions, generate_series(1, 12) n),
               (select array_agg(jsonb_build_object('tenant_id', 't' || n % 3, 'environment', (array['prod', 'stage'])[n % 2 + 1])
                   order by n, id) from extensions, generate_series(1, 12) n));
           select count(*), max(changed_at) from extension_audit_log;
           select has_column_privilege('{role}', 'extensions', 'config', 'update'),
               has_function_privilege('{role}', 'ext_select(text, jsonb, text[])', 'execute');
           select * from extension_health_settings order by 1;
           select id, created_at, updated_at, uid from extensions order by 1"#
    ))
}

fn program(name: &str, database: &Database<'_>) -> Command {
    let mut command = Command::new(places::pg_program(name));
    for (name, value) in database.cluster().psql_command(database.name()).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn silent(output: &Output) {
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn dump(database: &Database<'_>, arguments: &[&str], file: &Path) {
    let mut command = program("pg_dump", database);
    let output = command.args(arguments).arg("-f").arg(file).output();
    silent(&output.expect("pg_dump can be started"));
}

fn load(database: &Database<'_>, file: &Path) {
    let mut command = database.cluster().psql_command(database.name());
    command
        .args(["-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
        .arg(file);
    silent(&command.output().expect("psql can be started"));
}

#[tokio::test]
async fn a_restored_registry_decides_the_same() {
    let cluster = Postgres::shared();
    let database = cluster.database();
    let role = format!("dumped_{}", database.name());
    fill(&database, &role);
    let before = state(&database, &role);
    assert!(before.contains("v10") && before.contains("t|t"), "{before}");
    let directory = Directory::new("dump-", None);
    let file = |name: &str| directory.path().join(name);

    let whole = file("whole.sql");
    dump(&database, &[], &whole);
    let copy = cluster.database_without_extension();
    load(&copy, &whole);
    assert_eq!(state(&copy, &role), before, "pg_dump | psql");

    let of_it = file("extension.sql");
    dump(&database, &["--extension=ext_registry"], &of_it);
    let copy = cluster.database_without_extension();
    load(&copy, &of_it);
    assert_eq!(state(&copy, &role), before, "pg_dump --extension");

    let (schema, data) = (file("schema.sql"), file("data.sql"));
    dump(&database, &["--schema-only"], &schema);
    dump(&database, &["--data-only"], &data);
    let copy = cluster.database_without_extension();
    load(&copy, &schema);
    assert_eq!(copy.run("select count(*) from extensions"), "0");
    load(&copy, &data);
    assert_eq!(state(&copy, &role), before, "the schema, then the data");

    let archive = file("archive");
    dump(&database, &["-Fc"], &archive);
    for arguments in [&["--exit-on-error"][..], &["--exit-on-error", "--single-transaction"]] {
        let copy = cluster.database_without_extension();
        let mut restore = program("pg_restore", &copy);
        restore.args(arguments).args(["-d", copy.name()]).arg(&archive);
        silent(&restore.output().expect("pg_restore can be started"));
        assert_eq!(state(&copy, &role), before, "pg_restore {arguments:?}");
    }
    // Over what is there: dropped and made again.
    let clean = file("clean.sql");
    dump(&database, &["--clean", "--if-exists"], &clean);
    load(&copy, &clean);
    assert_eq!(state(&copy, &role), before, "pg_dump --clean");
}

#[tokio::test]
async fn what_a_restore_with_disabled_triggers_leaves_is_told_and_repaired() {
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let role = format!("dumped_{}", database.name());
    fill(&database, &role);
    let before = state(&database, &role);
    let directory = Directory::new("dump-", None);
    let data = directory.path().join("data.sql");
    dump(&database, &["--data-only", "--disable-triggers"], &data);

    let copy = cluster.database_without_extension();
    copy.run("create extension ext_registry");
    let amiss = "select not triggers_intact from ext_registry_status()";
    assert_eq!(copy.run(amiss), "f");
    assert_eq!(copy.run("select * from ext_repair()"), "", "nothing to do");
    load(&copy, &data);
    assert_eq!(copy.run(amiss), "t");
    eventually(SOON, async || {
        let log = cluster.log();
        let told = ["triggers are not enabled as they must be", "ext_repair();"];
        match told.iter().all(|part| log.contains(part)) {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    let repaired = copy.run("select relation, trigger, was from ext_repair()");
    assert!(repaired.contains("extensions|!invalidate|origin"), "{repaired}");
    assert_eq!(copy.run(amiss), "f");
    assert_eq!(copy.run("select * from ext_repair()"), "");
    assert_eq!(state(&copy, &role), before);

    // Switched off by hand, and then changed: no session knows until it is repaired.
    let session = copy.connect().await;
    let disabled = "select reason from ext_preview(array['pii_guard'], array['{}'::jsonb])";
    assert_eq!(session.one(disabled, &[]).await, "ok");
    copy.run(
        "alter table extensions disable trigger all; update extensions set enabled = false where id = 'pii_guard'",
    );
    assert!(copy.run("select was from ext_repair()").contains("disabled"));
    assert_eq!(session.one(disabled, &[]).await, "extension_disabled");

    // One that is gone cannot be made up.
    copy.run(r#"drop trigger "!invalidate" on extension_instances"#);
    let error = session.error_of("select * from ext_repair()").await;
    assert_eq!(
        (error.code().code(), error.message()),
        (
            "42704",
            "trigger \"!invalidate\" of public.extension_instances is missing"
        )
    );
    assert!(error.hint().is_some_and(|hint| hint.contains("CREATE EXTENSION")));
}
