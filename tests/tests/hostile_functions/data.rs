//! Hostile contexts, ids and rows.

use std::time::Duration;

use ext_registry_tests::Postgres;
use ext_registry_tests::process::anonymous_kb;
use serde_json::{Value, json};

use crate::{Random, complaint, prepared};

#[tokio::test]
async fn what_is_asked_for_in_vain_is_not_kept() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let pid = session.backend_pid().await;
    session.run("select ext_select('x')").await;
    let before = anonymous_kb(pid);
    for sql in [
        "select ext_select(n || repeat('x', 1000000)) from generate_series(1, 200) n",
        "select ext_select('x', jsonb_build_object('tenant_id', repeat('x', 1000000) || n)) from generate_series(1, 200) n",
        "select ext_select('x', avoid => array[repeat('x', 1000000) || n]) from generate_series(1, 200) n",
        "select ext_lookup(n || repeat('x', 1000000)) from generate_series(1, 200) n",
        "select ext_select('unknown' || n) from generate_series(1, 50000) n",
    ] {
        session.run(sql).await;
        let grown = anonymous_kb(pid) - before;
        assert!(grown < 30_000, "{grown} kB more after {sql}");
    }
}

/// An object of many keys of all lengths, some of them the ones asked for, with objects within.
fn context(random: &mut Random, scalars: &[Value], keys: &[&str], depth: usize) -> Value {
    let mut object = serde_json::Map::new();
    for _ in 0..random.below(50) {
        let name = "kqxyz"[..=random.below(4)].repeat(1 + random.below(12)) + &random.below(50).to_string();
        let value = match random.below(10) {
            0 => json!([1, "two", {"three": 3}]),
            1 if depth > 0 => context(random, scalars, keys, depth - 1),
            _ => random.of(scalars).clone(),
        };
        object.insert(name, value);
    }
    for key in keys {
        if random.below(2) == 0 {
            object.insert((*key).to_owned(), random.of(scalars).clone());
        }
    }
    if depth > 0 && random.below(3) > 0 {
        object.insert("deep".to_owned(), context(random, scalars, keys, depth - 1));
    }
    Value::Object(object)
}

#[tokio::test]
async fn contexts_are_read_as_postgres_reads_them() {
    const CONTEXTS: usize = 3000;
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let mut random = Random::new();
    let scalars = [
        json!("found"),
        json!("lost"),
        json!(""),
        json!("\u{1F980}\u{ffff}\\\"'"),
        json!(12.5),
        json!(-7),
        json!(0),
        json!(1_234_567_890_123_456_789_i64),
        json!(0.000_012),
        json!(true),
        json!(false),
        Value::Null,
    ];
    let keys = [
        "n",
        "needle",
        "need",
        "needles",
        "\u{1F980}",
        "a",
        "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "deep",
        "",
        " ",
    ];
    // The rule, and what Postgres itself says to it.
    let rules = [
        (json!({"needle": "found"}), "c -> 'needle' = '\"found\"'"),
        (json!({"needle": 12.5}), "c -> 'needle' = '12.50'"),
        (json!({"needle": [-7, 0, true]}), "c -> 'needle' in ('-7', '0', 'true')"),
        (
            json!({"needle": 1_234_567_890_123_456_789_i64}),
            "c -> 'needle' = '1234567890123456789'",
        ),
        (json!({"needle": 0.000_012}), "c -> 'needle' = '0.000012'"),
        (json!({"needle": null}), "coalesce(c -> 'needle', 'null') = 'null'"),
        (
            json!({"needle": "\u{1F980}\u{ffff}\\\"'"}),
            "c ->> 'needle' = E'\\U0001F980\\uFFFF\\\\\"''' and jsonb_typeof(c -> 'needle') = 'string'",
        ),
        (json!({"deep.needle": "found"}), "c #> '{deep,needle}' = '\"found\"'"),
        (
            json!({"deep.deep.needle": {"exists": true}}),
            "coalesce(c #> '{deep,deep,needle}', 'null') <> 'null'",
        ),
        (
            json!({"needle": {"gte": -7, "lt": 12.5}}),
            "jsonb_typeof(c -> 'needle') = 'number' and (c ->> 'needle')::numeric >= -7 and (c ->> 'needle')::numeric < 12.5",
        ),
    ];

    let contexts: Vec<Value> = (0..CONTEXTS)
        .map(|_| context(&mut random, &scalars, &keys, 2))
        .collect();

    session.run("create table contexts (n bigint, c jsonb)").await;
    session
        .execute(
            "insert into contexts select n, c from unnest($1::jsonb[]) with ordinality u(c, n)",
            &[&contexts],
        )
        .await
        .expect("a table of our own");
    for (rule, truth) in rules {
        session
            .execute("update extension_versions set routing_rules = $1", &[&rule])
            .await
            .unwrap_or_else(|error| panic!("{rule}: {error}"));
        let sql = format!(
            "select c.c::text, d.version, count(*) over ()
             from (select array_agg(c order by n) as list, array_agg('x'::text) as ids from contexts) a,
                 ext_select_many(a.ids, a.list) d
             join contexts c on c.n = d.ordinality
             where (d.version = 'v2') is distinct from coalesce({truth}, false) limit 1"
        );
        let wrong = session
            .query(&sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        if let Some(row) = wrong.first() {
            let (context, version, number): (String, String, i64) = (row.get(0), row.get(1), row.get(2));
            panic!("{rule}: {number} of {CONTEXTS} contexts are decided wrongly, such as to {version}: {context}");
        }
        let matching = format!("select count(*) from contexts where {truth}");
        let matching: i64 = session.query_one(&matching, &[]).await.expect("a count").get(0);
        assert!(
            matching > 20 && matching < CONTEXTS as i64,
            "{rule}: {matching} match, which tests little"
        );
    }
}

#[tokio::test]
async fn rows_that_got_past_the_checks_do_no_harm() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    // As a replica, a restore or an older release may have them.
    session
        .run(
            "do $$
             declare
                 c record;
             begin
                 for c in
                     select conrelid::regclass as relation, conname from pg_constraint
                     where contype = 'c' and conrelid in ('extensions'::regclass, 'extension_versions'::regclass,
                         'extension_instances'::regclass, 'extension_health_settings'::regclass)
                 loop
                     execute format('alter table %s drop constraint %I', c.relation, c.conname);
                 end loop;
             end $$",
        )
        .await;
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let rules = [
        "[]",
        "3",
        r#"{"tenant_id": {"like": "t"}}"#,
        r#"{"tenant_id": {"regex": "("}}"#,
        r#"{"tenant_id": 1e400}"#,
        &format!(r#"{{"tenant_id": {deep}}}"#),
    ];
    for rule in rules {
        session.take_notices();
        session
            .execute(
                "update extension_versions set routing_rules = $1::text::jsonb",
                &[&rule],
            )
            .await
            .expect("no check is left");
        let decision = session.select_for("x", "t").await;
        assert_eq!(
            (decision.version(), decision.reason.as_str()),
            ("v1", "ok"),
            "{rule:.60}: it never matches"
        );
        let notices = session.take_notices();
        assert!(
            notices
                .iter()
                .any(|notice| notice.severity() == "WARNING" && notice.message().contains("v2")),
            "{rule:.60}: {notices:?}"
        );
    }
    session.run("update extension_versions set routing_rules = '{}'").await;
    for change in [
        "update extension_versions set timeout_ms = -5, retry = -2147483648",
        "update extension_versions set timeout_ms = 2147483647, retry = 2147483647",
        "update extension_versions set rollout_percent = 999.99",
        "update extension_versions set rollout_percent = -1",
        "update extension_versions set rollout_percent = 'NaN'",
        "update extension_versions set circuit_breaker_window_seconds = -1, circuit_breaker_timeout_seconds = 2147483647",
        "update extension_versions set half_open_max_requests = 2147483647, breaker_mode = 'ajar'",
        "update extension_versions set circuit_breaker_error_rate_threshold = 'NaN', slow_call_ms = 'Infinity'",
        "update extension_versions set subject = '', version = ''",
        "update extension_instances set weight = -7",
        "update extension_instances set weight = 2147483647, health_status = 'sick'",
        "update extension_instances set version = 'nowhere', subject = ''",
        "update extensions set timeout_ms = 0, balancing = 'random', hash_key = ''",
        "update extensions set balancing = 'consistent_hash', hash_key = repeat('x', 255)",
        "update extensions set metadata = '[]', config = '3'",
        r#"update extensions set metadata = '{"allowed_tenants": {"t": 1}}'"#,
        "update extensions set type = 'filter', version = ''",
        "insert into extension_health_settings (extension_id, circuit_breaker_failure_threshold, slow_call_ms, half_open_max_requests)
         values ('x', -1, 'NaN', -1)",
        "update extension_health_settings set circuit_breaker_failure_min_rate = -1, circuit_breaker_window_seconds = 2147483647",
    ] {
        session.run(change).await;
        for tenant in ["t", "u"] {
            let decision = session.select_for("x", tenant).await;
            if decision.allowed {
                session.report(decision.ticket, "success", Duration::from_millis(1)).await;
            }
        }
        for sql in [
            "select ext_report('x', 'error', 1) from generate_series(1, 20)",
            "select * from ext_explain('x')",
            "select * from extension_health",
            "select * from extension_version_health",
            "select * from extension_instance_health",
            "select ext_lookup('x'), ext_versions('x'), ext_instances('x'), ext_export()",
            "select ext_breaker_reset('x')",
        ] {
            if let Err(error) = session.batch_execute(sql).await {
                let error = error.as_db_error().unwrap_or_else(|| panic!("{change}; {sql}: the session ended"));
                assert_eq!(complaint("", error), None, "{change}; {sql}: {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let cluster = Postgres::shared();
    let admin = cluster.connect("postgres").await;
    for (encoding, accepted) in [("LATIN1", false), ("SQL_ASCII", true)] {
        let name = format!("encoded_{}", encoding.to_lowercase());
        admin
            .run(&format!(
                "create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'"
            ))
            .await;
        let session = cluster.connect(&name).await;
        if accepted {
            session
                .run("create extension ext_registry; select ext_select('x')")
                .await;
        } else {
            let error = session.error_of("create extension ext_registry").await;
            assert_eq!(error.code().code(), "0A000", "{error:?}");
            assert!(
                error.message().contains(encoding) && error.hint().is_some(),
                "{error:?}"
            );
        }
        drop(session);
        admin.run(&format!("drop database {name} with (force)")).await;
    }
}

#[tokio::test]
async fn errors_of_others_stay_as_they_are() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    session
        .run(
            "create table parents (id int primary key); create table children (id int references parents);
             create procedure have_one() language plpgsql as $$ begin insert into children values (1); end $$",
        )
        .await;
    // Statements that the library may stand beside, and what their errors bring along.
    for (sql, code) in [
        ("create table parents ()", "42P07"),
        ("insert into children values (1)", "23503"),
        ("call have_one()", "23503"),
        ("do $$ begin insert into children values (1); end $$", "23503"),
        ("explain analyze insert into children values (1)", "23503"),
        ("create table third as select nothing from parents", "42703"),
        (
            "alter table parents add constraint positive check (id > 0), add constraint positive check (id > 1)",
            "42710",
        ),
    ] {
        let error = session.error_of(sql).await;
        assert_eq!(error.code().code(), code, "{error:?}");
        assert_eq!(complaint("", &error), None, "{sql}: {error:?}");
        match code {
            "23503" => assert_eq!(
                (error.schema(), error.table(), error.constraint()),
                (Some("public"), Some("children"), Some("children_id_fkey")),
                "{sql}: {error:?}"
            ),
            "42703" => assert!(error.position().is_some(), "{sql}: {error:?}"),
            _ => {}
        }
        if sql.contains("have_one") || sql.starts_with("do") {
            assert!(
                error
                    .where_()
                    .is_some_and(|context| context.contains("insert into children")),
                "{sql}: {error:?}"
            );
        }
    }

    // Errors of Postgres in the middle of a decision.
    let locker = database.connect().await;
    locker
        .run("begin; update extensions set config = '{\"n\": 1}'; lock table extension_versions in access exclusive mode")
        .await;
    let waiting = database.connect().await;
    waiting.run("set lock_timeout = '50ms'").await;
    let error = waiting.error_of("select ext_select('x')").await;
    assert_eq!(
        (error.code().code(), complaint("", &error)),
        ("55P03", None),
        "{error:?}"
    );
    waiting
        .run("set lock_timeout = 0; set statement_timeout = '50ms'")
        .await;
    let error = waiting.error_of("select ext_select('x')").await;
    // (57014 is what is wanted here.)
    assert_eq!((error.code().code(), error.detail()), ("57014", None), "{error:?}");
    locker.run("rollback").await;
    waiting.run("set statement_timeout = 0").await;
    assert_eq!(
        waiting.select("x", &json!({})).await.reason,
        "ok",
        "and the session goes on"
    );
}

#[tokio::test]
async fn a_server_that_has_not_loaded_the_library_says_so() {
    let cluster = Postgres::start(&["shared_preload_libraries = ''"]);
    let session = cluster.connect("postgres").await;
    let error = session.error_of("create extension ext_registry").await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    for text in [Some(error.message()), error.hint()] {
        assert!(
            text.is_some_and(|text| text.contains("shared_preload_libraries")),
            "{error:?}"
        );
    }
}
