//! `pg_dump` and `pg_restore`: in every way to use them a registry comes back that decides the same, without an error line.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::whole::{fill, state};
use ext_registry_tests::{Database, Postgres, eventually, places};

const SOON: Duration = Duration::from_secs(30);

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
    fill(cluster, database.name(), &role);
    let before = state(cluster, database.name(), &role);
    assert!(before.contains("v10") && before.contains("t|t"), "{before}");
    let directory = Directory::new("dump-", None);
    let file = |name: &str| directory.path().join(name);

    let whole = file("whole.sql");
    dump(&database, &[], &whole);
    let copy = cluster.database_without_extension();
    load(&copy, &whole);
    assert_eq!(state(cluster, copy.name(), &role), before, "pg_dump | psql");

    let of_it = file("extension.sql");
    dump(&database, &["--extension=ext_registry"], &of_it);
    let copy = cluster.database_without_extension();
    load(&copy, &of_it);
    assert_eq!(state(cluster, copy.name(), &role), before, "pg_dump --extension");

    let (schema, data) = (file("schema.sql"), file("data.sql"));
    dump(&database, &["--schema-only"], &schema);
    dump(&database, &["--data-only"], &data);
    let copy = cluster.database_without_extension();
    load(&copy, &schema);
    assert_eq!(copy.run("select count(*) from extensions"), "0");
    load(&copy, &data);
    assert_eq!(state(cluster, copy.name(), &role), before, "the schema, then the data");

    let archive = file("archive");
    dump(&database, &["-Fc"], &archive);
    for arguments in [&["--exit-on-error"][..], &["--exit-on-error", "--single-transaction"]] {
        let copy = cluster.database_without_extension();
        let mut restore = program("pg_restore", &copy);
        restore.args(arguments).args(["-d", copy.name()]).arg(&archive);
        silent(&restore.output().expect("pg_restore can be started"));
        assert_eq!(state(cluster, copy.name(), &role), before, "pg_restore {arguments:?}");
    }
    // Over what is there: dropped and made again.
    let clean = file("clean.sql");
    dump(&database, &["--clean", "--if-exists"], &clean);
    load(&copy, &clean);
    assert_eq!(state(cluster, copy.name(), &role), before, "pg_dump --clean");
}

#[tokio::test]
async fn what_a_restore_with_disabled_triggers_leaves_is_told_and_repaired() {
    let cluster = &Postgres::start(&[]);
    let database = cluster.database();
    let role = format!("dumped_{}", database.name());
    fill(cluster, database.name(), &role);
    let before = state(cluster, database.name(), &role);
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
        let all = told.iter().all(|part| log.contains(part));
        if all { Ok(()) } else { Err(log) }
    })
    .await;
    let repaired = copy.run("select relation, trigger, was from ext_repair()");
    assert!(repaired.contains("extensions|!invalidate|origin"), "{repaired}");
    assert_eq!(copy.run(amiss), "f");
    assert_eq!(copy.run("select * from ext_repair()"), "");
    assert_eq!(state(cluster, copy.name(), &role), before);

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
