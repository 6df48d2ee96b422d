//! What transactions mean for the registry: a decision sees exactly what has committed, plus what its own transaction has
//! changed, under every isolation level, however that transaction ends.

use std::time::Duration;

use ext_registry_tests::{Database, Postgres, Session, eventually};
use serde_json::json;

/// What every test of visibility starts from: x with its own row and a version for tenant t, each with an instance.
const BASE: &str = r#"
    alter table extensions drop column if exists note;
    alter table extension_versions drop column if exists note;
    alter table extension_instances drop column if exists note;
    alter table extension_health_settings drop column if exists note;
    delete from extensions;
    insert into extensions (id, type, subject, timeout_ms, config) values ('x', 'pre', 'x.v1', 100, '{"n": 0}');
    insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
    values ('x', 'v2', 'x.v2', 200, 2, '{"tenant_id": "t"}');
    insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1');
    insert into extension_health_settings (extension_id, slow_call_ms) values ('x', 50)"#;

/// Changes of the registry, each of which a decision shows.
const EDITS: &[&str] = &[
    r#"update extensions set config = '{"n": 1}' where id = 'x'"#,
    "update extensions set enabled = false where id = 'x'",
    r#"update extensions set metadata = '{"allowed_tenants": []}' where id = 'x'"#,
    "insert into extensions (id, type, subject) values ('y', 'post', 'y.v1')",
    "delete from extensions where id = 'x'",
    "update extensions set id = 'y' where id = 'x'",
    "insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v3', 'x.v3', 300, 3)",
    "update extension_versions set routing_rules = '{}' where id = 'x'",
    "update extension_versions set circuit_breaker_window_seconds = 7, breaker_mode = 'forced_open' where id = 'x'",
    "delete from extension_versions where id = 'x'",
    "insert into extension_instances (extension_id, instance_id, subject) values ('x', 'b', 'x.v2')",
    "update extension_instances set draining = true",
    "delete from extension_instances",
    "update extension_health set breaker_mode = 'forced_open' where extension_id = 'x'",
    r#"select ext_register('{"id": "x", "type": "pre", "subject": "x.v9", "versions": []}')"#,
    r#"select ext_import('{"extensions": [{"id": "y", "type": "pre", "subject": "y.v1"}]}')"#,
    "truncate extension_versions",
    "truncate extensions cascade",
    // The other ways to write a row.
    "copy extension_instances (extension_id, instance_id, subject) from program 'echo x,b,x.v2' (format csv)",
    r#"insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1'), ('y', 'pre', 'y.v1')
       on conflict (id) do update set config = '{"n": 2}'"#,
    "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v9'), ('y', 'pre', 'y.v1') on conflict do nothing",
    "merge into extension_versions v using (values ('v2'), ('v3')) n (name) on (v.id, v.version) = ('x', n.name)
     when matched then update set timeout_ms = 444
     when not matched then insert (id, version, subject, timeout_ms, retry) values ('x', n.name, 'x.v3', 300, 3)",
    "merge into extension_instances i using (values ('a')) n (name) on i.instance_id = n.name when matched then delete",
    "update extensions e set config = jsonb_build_object('n', v.timeout_ms) from extension_versions v where v.id = e.id",
    "delete from extension_versions v using extensions e where v.id = e.id",
    "with gone as (delete from extension_versions returning *)
     insert into extension_versions (id, version, subject, timeout_ms, retry) select id, 'v7', subject, timeout_ms, retry from gone",
    r#"do $do$
       begin
           update extensions set config = '{"n": 3}';
           begin
               update extensions set config = '{"n": 4}';
               perform 1 / 0;
           exception when division_by_zero then
               update extension_versions set retry = 4;
           end;
       end $do$"#,
    // With what changes the table itself.
    "alter table extension_versions add column note text default 'new'; update extension_versions set retry = 5",
    r#"alter table extensions add column note text default clock_timestamp(); update extensions set config = '{"n": 5}'"#,
];

/// Whether it changes rows without the help of foreign keys and triggers, which a replica goes without.
fn is_of_rows(edit: &str) -> bool {
    !["extension_health ", "from extensions", "set id", "cascade"]
        .iter()
        .any(|other| edit.contains(other))
}

/// What a session's decisions show: for anybody and for tenant t, and of an extension that there may be.
async fn look(session: &Session) -> String {
    let sql = r#"select string_agg(concat_ws(' ', d.extension_id, d.reason, d.version, d.instance_id, d.subject,
                     d.timeout_ms, d.retry, d.config, d.epoch), '; ' order by d.ordinality)
                 from ext_select_many(array['x', 'x', 'y'], array['{}', '{"tenant_id": "t"}', '{}']::jsonb[]) d"#;
    session.one(sql, &[]).await
}

/// Sessions of every kind, the long transactions with a snapshot that stays.
async fn readers(database: &Database<'_>) -> Vec<(&'static str, Session)> {
    let kinds = [
        "",
        "begin isolation level read committed",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
        "begin isolation level repeatable read read only",
        "begin isolation level serializable read only",
    ];
    let mut readers = Vec::new();
    for kind in kinds {
        let session = database.connect().await;
        if !kind.is_empty() {
            session.run(kind).await;
            session.run("select count(*) from pg_class").await;
        }
        readers.push((kind, session));
    }
    readers
}

async fn assert_all_see(readers: &[(&str, Session)], wanted: &str, when: &str) {
    for (kind, reader) in readers {
        assert_eq!(look(reader).await, wanted, "{when}, by a session in `{kind}`");
    }
}

/// The same while somebody may hold a lock on a whole table: whose caches are reset just then (by many changes of catalogs, in
/// other databases too) has to read it anew, and waits like anybody.
async fn assert_all_see_or_wait(readers: &[(&str, Session)], other: &Session, wanted: &str, when: &str) {
    for (kind, reader) in readers {
        if let Ok(seen) = tokio::time::timeout(Duration::from_secs(10), look(reader)).await {
            assert_eq!(seen, wanted, "{when}, by a session in `{kind}`");
            continue;
        }
        let waiting = "select count(*)::text from pg_locks l join pg_stat_activity a using (pid)
                       where a.datname = current_database() and l.locktype = 'relation' and not l.granted";
        assert_ne!(
            other.one(waiting, &[]).await,
            "0",
            "{when}: no answer to a session in `{kind}`"
        );
    }
}

async fn writer(database: &Database<'_>) -> (Session, String) {
    let writer = database.connect().await;
    writer.run(BASE).await;
    let base = look(&writer).await;
    (writer, base)
}

#[tokio::test]
async fn own_changes_are_seen_at_once_and_by_others_from_commit_on() {
    let database = Postgres::shared().database();
    let (writer, _) = writer(&database).await;
    let other = database.connect().await;
    let readers = readers(&database).await;
    // How a transaction may begin and end. `!` is done by another session. (Names of prepared ones are the cluster's.)
    let ways: &[(&str, &[&str])] = &[
        ("begin", &["commit"]),
        ("begin isolation level repeatable read", &["commit"]),
        ("begin isolation level serializable", &["commit"]),
        ("begin; savepoint s", &["release s", "commit"]),
        ("begin; savepoint s; savepoint t", &["release t", "commit"]),
        (
            "begin; savepoint s; update extensions set config = '{\"n\": 7}'; rollback to s",
            &["commit"],
        ),
        ("begin; set local session_replication_role = replica", &["commit"]),
        (
            "begin isolation level serializable; savepoint s",
            &["release s", "prepare transaction 'kept'", "!commit prepared 'kept'"],
        ),
        ("begin", &["prepare transaction 'kept'", "!commit prepared 'kept'"]),
        (
            "begin; savepoint s",
            &["release s", "prepare transaction 'kept'", "!commit prepared 'kept'"],
        ),
    ];
    for (begin, end) in ways {
        for edit in EDITS {
            if begin.contains("replica") && !is_of_rows(edit) {
                continue;
            }
            writer.run(BASE).await;
            let base = look(&writer).await;
            assert_all_see(&readers, &base, "before").await;

            writer.run(begin).await;
            writer.run(edit).await;
            let edited = look(&writer).await;
            assert_ne!(edited, base, "{begin}; {edit}: own changes");
            for statement in *end {
                assert_all_see_or_wait(&readers, &other, &base, &format!("{begin}; {edit}: before {statement}")).await;
                match statement.strip_prefix('!') {
                    Some(statement) => other.run(statement).await,
                    None => writer.run(statement).await,
                }
                // (What a prepared transaction has locked nobody can read, except who knows it already.)
                if statement.starts_with("prepare") && !edit.starts_with("truncate") && !edit.starts_with("alter") {
                    assert_eq!(look(&writer).await, base, "{begin}; {edit}; {statement}: prepared");
                }
            }
            assert_all_see(&readers, &edited, &format!("{begin}; {edit}; {end:?}")).await;
            assert_eq!(look(&writer).await, edited, "{begin}; {edit}; {end:?}: by who did it");
            assert_eq!(look(&other).await, edited, "{begin}; {edit}; {end:?}: by another");
        }
    }
}

#[tokio::test]
async fn what_is_undone_leaves_nothing() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let other = database.connect().await;
    let readers = readers(&database).await;
    let ways: &[(&str, &[&str])] = &[
        ("begin", &["rollback"]),
        ("begin isolation level serializable", &["rollback"]),
        ("begin; savepoint s", &["rollback to s", "commit"]),
        ("begin; savepoint s", &["release s", "rollback"]),
        (
            "begin; savepoint s; savepoint t",
            &["release t", "rollback to s", "commit"],
        ),
        (
            "begin; savepoint s; savepoint t",
            &["rollback to t", "release s", "commit"],
        ),
        ("begin", &["rollback and chain", "commit"]),
        (
            "begin",
            &["prepare transaction 'undone'", "!rollback prepared 'undone'"],
        ),
        ("begin; set local session_replication_role = replica", &["rollback"]),
        (
            "begin isolation level repeatable read; savepoint s",
            &[
                "rollback to s",
                "prepare transaction 'undone'",
                "!commit prepared 'undone'",
            ],
        ),
    ];
    for (begin, end) in ways {
        for edit in EDITS {
            if begin.contains("replica") && !is_of_rows(edit) {
                continue;
            }
            writer.run(begin).await;
            writer.run(edit).await;
            assert_ne!(look(&writer).await, base, "{begin}; {edit}: own changes");
            for statement in *end {
                match statement.strip_prefix('!') {
                    Some(statement) => other.run(statement).await,
                    None => writer.run(statement).await,
                }
                if !statement.starts_with("release") && !statement.starts_with("prepare") {
                    assert_eq!(look(&writer).await, base, "{begin}; {edit}; {statement}");
                }
                assert_all_see_or_wait(&readers, &other, &base, &format!("{begin}; {edit}; {statement}")).await;
            }
            assert_eq!(look(&writer).await, base, "{begin}; {edit}; {end:?}");
        }
    }

    // An exception that is caught, with decisions before, within and after.
    for edit in EDITS {
        let seen = writer
            .query_one("select txid_current()::text", &[])
            .await
            .map(|row| row.get::<_, String>(0))
            .expect("a transaction");
        writer
            .run(&format!(
                "create or replace function pg_temp.attempt() returns void language plpgsql as $function$
                 begin
                     perform from ext_select('x');
                     begin
                         execute $edit${edit}$edit$;
                         perform from ext_select_many(array['x', 'y'], array['{{}}', '{{}}']::jsonb[]);
                         raise exception 'undo {seen}';
                     exception when raise_exception then
                         null;
                     end;
                 end $function$"
            ))
            .await;
        writer.run("begin; select pg_temp.attempt()").await;
        assert_eq!(look(&writer).await, base, "{edit}: after the exception block");
        writer.run("commit").await;
        assert_eq!(look(&writer).await, base, "{edit}: after its transaction");
        assert_all_see(&readers, &base, edit).await;
    }

    // A statement that fails takes its transaction along.
    for edit in EDITS {
        writer
            .error_of(&format!("begin; {edit}; select ext_select('x'); select 1/0"))
            .await;
        writer.run("rollback").await;
        assert_eq!(look(&writer).await, base, "{edit}: after a failed statement");
        assert_all_see(&readers, &base, edit).await;
    }
}

#[tokio::test]
async fn an_error_of_a_later_trigger_or_at_commit_leaves_nothing() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let reader = database.connect().await;
    writer
        .run(
            "create function look_and_fail() returns trigger language plpgsql as $$
             begin
                 perform ext_select('x');
                 if current_setting('test.fail', true) = 'yes' then raise exception 'no'; end if;
                 return null;
             end $$;
             create trigger zz after update on extensions for each row execute function look_and_fail();
             create constraint trigger deferred after update on extension_versions
                 deferrable initially deferred for each row execute function look_and_fail();
             set test.fail = 'yes'",
        )
        .await;
    let update = r#"update extensions set config = '{"n": 5}'"#;
    writer.error_of(update).await;
    assert_eq!(look(&writer).await, base);
    writer.run("begin; savepoint s").await;
    writer.error_of(update).await;
    writer.run("rollback to s").await;
    assert_eq!(look(&writer).await, base);
    writer.run("commit").await;
    assert_eq!(look(&writer).await, base);

    writer
        .run("begin; update extension_versions set timeout_ms = 999")
        .await;
    assert_ne!(look(&writer).await, base);
    writer.error_of("commit").await;
    assert_eq!(look(&writer).await, base);
    assert_eq!(look(&reader).await, base);
}

#[tokio::test]
async fn what_a_deferred_trigger_changes_counts_from_its_commit_on() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let other = database.connect().await;
    let readers = readers(&database).await;
    writer
        .run(
            "create table orders (n integer);
             create function apply() returns trigger language plpgsql as $$
             begin
                 update extensions set config = jsonb_build_object('n', new.n);
                 perform ext_select('x');
                 if new.n < 0 then raise exception 'no'; end if;
                 return null;
             end $$;
             create constraint trigger later after insert on orders deferrable initially deferred
                 for each row execute function apply()",
        )
        .await;
    for (number, end) in [
        (1, "commit"),
        (2, "set constraints all immediate; commit"),
        (3, "prepare transaction 'deferred'"),
    ] {
        let before = look(&writer).await;
        writer
            .run(&format!("begin; insert into orders values ({number})"))
            .await;
        assert_eq!(look(&writer).await, before, "{end}: not yet");
        writer.run(end).await;
        if end.starts_with("prepare") {
            assert_all_see(&readers, &before, end).await;
            other.run("commit prepared 'deferred'").await;
        }
        let after = look(&writer).await;
        assert!(after.contains(&format!("{{\"n\": {number}}}")), "{end}: {after}");
        assert_all_see(&readers, &after, end).await;
    }
    // One that fails at the end takes all along, what it has changed itself too.
    let before = look(&writer).await;
    assert_ne!(before, base);
    writer.run("begin; insert into orders values (-1)").await;
    writer.error_of("commit").await;
    assert_eq!(look(&writer).await, before);
    assert_all_see(&readers, &before, "a trigger that fails at commit").await;
}

#[tokio::test]
async fn a_cursor_decides_when_it_is_read() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let reader = database.connect().await;
    let declare = "declare c cursor for select (select string_agg(concat_ws(' ', d.extension_id, d.reason, d.version, d.instance_id,
                       d.subject, d.timeout_ms, d.retry, d.config, d.epoch), '; ' order by d.ordinality)
                       from ext_select_many(array['x', 'x', 'y'], array['{}', jsonb_build_object('tenant_id', 't', 'n', n), '{}']::jsonb[]) d)
                   from generate_series(1, 100) n";
    for isolation in ["read committed", "repeatable read", "serializable"] {
        writer.run(BASE).await;
        reader
            .run(&format!("begin isolation level {isolation}; {declare}"))
            .await;
        let next = async || reader.one("fetch c", &[]).await;
        assert_eq!(next().await, base, "{isolation}");
        // What others commit meanwhile,
        writer.run(r#"begin; update extensions set config = '{"n": 1}'"#).await;
        assert_eq!(next().await, base, "{isolation}");
        writer.run("commit").await;
        let committed = look(&writer).await;
        assert_ne!(committed, base);
        assert_eq!(next().await, committed, "{isolation}");
        // what it changes itself (where it may: its snapshot has seen the row that others have changed),
        reader
            .run("savepoint s; update extension_versions set timeout_ms = 201")
            .await;
        let own = look(&reader).await;
        assert_ne!(own, committed);
        assert_eq!(next().await, own, "{isolation}");
        // and undoes again.
        reader.run("rollback to s").await;
        assert_eq!(next().await, committed, "{isolation}");
        reader.run("close c; commit").await;
        assert_eq!(look(&reader).await, committed, "{isolation}");
    }

    // Held beyond its transaction it keeps what was decided at its end, whatever comes later.
    writer.run(BASE).await;
    reader
        .run(&format!(
            "begin; {}; commit",
            declare.replace("cursor", "cursor with hold")
        ))
        .await;
    writer.run("delete from extensions").await;
    assert_eq!(reader.one("fetch c", &[]).await, base);
    assert_eq!(look(&reader).await, look(&writer).await);
}

/// What a DBA does to tables: no row changes, so no decision does, and the next change is seen as ever.
#[tokio::test]
async fn maintenance_changes_no_decision() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    writer.run("set statement_timeout = '20s'").await;
    let readers = readers(&database).await;
    let mut statements: Vec<String> = vec![
        "reindex schema public".into(),
        "analyze".into(),
        "vacuum".into(),
        "vacuum freeze".into(),
    ];
    for table in [
        "extensions",
        "extension_versions",
        "extension_instances",
        "extension_health_settings",
        "extension_breaker_resets",
    ] {
        statements.extend([
            format!("vacuum full {table}"),
            format!("cluster {table} using {table}_pkey"),
            format!("reindex table {table}"),
            format!("alter table {table} add column note text"),
            format!("alter table {table} add column drawn double precision default random()"),
            format!("update {table} set note = 'x'"),
            format!("alter table {table} drop column drawn"),
            format!("vacuum full {table}"),
            format!("alter table {table} set (fillfactor = 50)"),
            format!("create index noted on {table} (note)"),
            format!("alter table {table} drop column note"),
            format!("create statistics of_{table} on (1 + 1) from {table}"),
            format!("comment on table {table} is 'ours'"),
        ]);
    }
    let mut number = 0;
    for statement in &statements {
        assert_all_see(&readers, &base, &format!("before {statement}")).await;
        if statement.starts_with("update") {
            writer
                .run(&format!("begin; {statement}; select ext_select('x'); commit"))
                .await;
        } else {
            writer.run(statement).await;
        }
        assert_all_see(&readers, &base, statement).await;
        assert_eq!(look(&writer).await, base, "{statement}");
        let newcomer = database.connect().await;
        assert_eq!(look(&newcomer).await, base, "{statement}: by a new session");
        // And what is edited afterwards is seen, by those who have old snapshots too.
        number += 1;
        writer
            .run(&format!(
                "update extension_versions set timeout_ms = 1000 + {number}; update extension_instances set subject = 'x.i{number}';
                 update extensions set config = '{{\"n\": {number}}}'"
            ))
            .await;
        let edited = look(&writer).await;
        assert!(
            edited.contains(&format!(" {} ", 1000 + number)) && edited.contains(&format!("x.i{number}")),
            "{edited}"
        );
        assert_all_see(&readers, &edited, &format!("edited after {statement}")).await;
        writer
            .run(
                "update extension_versions set timeout_ms = 200; update extension_instances set subject = 'x.v1';
                 update extensions set config = '{\"n\": 0}'",
            )
            .await;
    }
    // What waits for all old snapshots to go.
    for (_, reader) in &readers {
        reader.run("commit").await;
    }
    for table in ["extensions", "extension_versions", "extension_instances"] {
        writer.run(&format!("reindex table concurrently {table}")).await;
        assert_all_see(&readers, &base, &format!("reindex table concurrently {table}")).await;
    }
}

/// A session that has to read a table which another has locked waits, and then sees what has been committed meanwhile.
async fn assert_waits_and_sees(changes: &[&str]) {
    let database = Postgres::shared().database();
    let (writer, _) = writer(&database).await;
    for change in changes {
        for isolation in ["read committed", "repeatable read", "serializable"] {
            writer.run(BASE).await;
            let newcomer = database.connect().await;
            newcomer
                .run(&format!(
                    "begin isolation level {isolation}; select count(*) from pg_class"
                ))
                .await;
            let pid = newcomer.backend_pid().await;
            writer.run(&format!("begin; {change}")).await;
            let wanted = look(&writer).await;
            let commit = async {
                let waits = "select coalesce(wait_event_type, '-') from pg_stat_activity where pid = $1";
                eventually(Duration::from_secs(20), async || {
                    match writer.one(waits, &[&pid]).await.as_str() {
                        "Lock" => Ok(()),
                        other => Err(other.to_owned()),
                    }
                })
                .await;
                writer.run("commit").await;
            };
            let (seen, ()) = futures_util::future::join(look(&newcomer), commit).await;
            let next = look(&newcomer).await;
            assert_eq!(
                [seen, next],
                [wanted.clone(), wanted],
                "{change}: by a decision in {isolation} that had to wait for it, and by the next one"
            );
            newcomer.run("commit").await;
        }
    }
}

#[tokio::test]
async fn who_waits_for_a_truncate_sees_what_came_after_it() {
    assert_waits_and_sees(&[
        "truncate extension_versions",
        "truncate extension_instances; insert into extension_instances (extension_id, instance_id, subject) values ('x', 'b', 'x.v2')",
        "truncate extension_versions; insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v3', 'x.v3', 1000, 1)",
        r#"truncate extensions cascade; insert into extensions (id, type, subject, config) values ('x', 'pre', 'x.v1', '{"n": 8}')"#,
        "lock table extensions, extension_versions, extension_instances; update extensions set timeout_ms = 888",
    ])
    .await;
}

#[tokio::test]
async fn who_waits_for_a_rewritten_table_sees_its_rows() {
    assert_waits_and_sees(&[
        "alter table extension_versions add column note double precision default random()",
        "alter table extension_instances add column note double precision default random()",
        "alter table extension_health_settings add column note double precision default random()",
        "alter table extensions add column note double precision default random()",
        "cluster extension_versions using extension_versions_pkey",
    ])
    .await;
}

#[tokio::test]
async fn triggers_of_users_decide_by_the_new_row() {
    let database = Postgres::shared().database();
    let (writer, _) = writer(&database).await;
    writer
        .run(
            "create table seen (at text, n text);
             create function look() returns trigger language plpgsql as $$
             begin
                 insert into seen select tg_when || ' ' || tg_level, d.config ->> 'n' from ext_select('x') d;
                 return new;
             end $$;
             create trigger aaa_before before update on extensions for each row execute function look();
             create trigger aaa_after after update on extensions for each row execute function look();
             create trigger aaa_statement after update on extensions for each statement execute function look()",
        )
        .await;
    writer.run(r#"update extensions set config = '{"n": 1}'"#).await;
    let seen = "select string_agg(at || ' ' || n, ', ' order by ctid) from seen";
    assert_eq!(
        writer.one(seen, &[]).await,
        "BEFORE ROW 0, AFTER ROW 1, AFTER STATEMENT 1"
    );
    assert_eq!(writer.select("x", &json!({})).await.config, Some(json!({"n": 1})));
}

#[tokio::test]
async fn a_change_and_a_decision_within_one_function() {
    let database = Postgres::shared().database();
    let (writer, _) = writer(&database).await;
    writer
        .run(
            r"create function steps() returns text language plpgsql as $$
               declare
                   seen text := '';
               begin
                   for n in 1 .. 5 loop
                       update extensions set config = jsonb_build_object('n', n);
                       seen := seen || (select d.config ->> 'n' from ext_select('x') d);
                       begin
                           update extensions set config = jsonb_build_object('n', -n);
                           seen := seen || (select d.config ->> 'n' from ext_select('x') d);
                           raise exception 'undo';
                       exception when raise_exception then
                           seen := seen || (select d.config ->> 'n' from ext_select('x') d) || ' ';
                       end;
                   end loop;
                   return seen;
               end $$",
        )
        .await;
    assert_eq!(writer.one("select steps()", &[]).await, "1-11 2-22 3-33 4-44 5-55 ");
}

#[tokio::test]
async fn many_extensions_in_one_command() {
    const MANY: i64 = 1000;
    let database = Postgres::shared().database();
    let writer = database.connect().await;
    let reader = database.connect().await;
    let insert = "insert into extensions (id, type, subject, config)
                  select 'e' || n, 'pre', 's', '{\"n\": 0}' from generate_series(1, 1000) n";
    writer.run(insert).await;
    let sum = "select sum((d.config ->> 'n')::int)::bigint
               from ext_select_many(array(select 'e' || n from generate_series(1, 1000) n),
                   array(select '{}'::jsonb from generate_series(1, 1000))) d";
    let look = async |session: &Session| {
        session
            .query_one(sum, &[])
            .await
            .expect("decisions")
            .get::<_, Option<i64>>(0)
    };
    assert_eq!((look(&writer).await, look(&reader).await), (Some(0), Some(0)));

    let update = |n: i64| format!("update extensions set config = '{{\"n\": {n}}}'");
    writer.run(&format!("begin; {}; savepoint s", update(1))).await;
    assert_eq!((look(&writer).await, look(&reader).await), (Some(MANY), Some(0)));
    writer.run(&update(2)).await;
    assert_eq!(look(&writer).await, Some(2 * MANY));
    writer.run("rollback to s").await;
    assert_eq!((look(&writer).await, look(&reader).await), (Some(MANY), Some(0)));
    writer.run("commit").await;
    assert_eq!((look(&writer).await, look(&reader).await), (Some(MANY), Some(MANY)));
    // One by one in one transaction, then all at once, undone.
    writer
        .run(
            "begin;
             do $$ begin for i in 1 .. 600 loop
                 update extensions set config = '{\"n\": 3}' where id = 'e' || i;
             end loop; end $$",
        )
        .await;
    assert_eq!(look(&writer).await, Some(600 * 3 + 400));
    writer.run("delete from extensions").await;
    assert_eq!((look(&writer).await, look(&reader).await), (None, Some(MANY)));
    writer.run("rollback").await;
    assert_eq!((look(&writer).await, look(&reader).await), (Some(MANY), Some(MANY)));
}

#[tokio::test]
async fn parallel_workers_see_what_their_leader_has_changed() {
    let database = Postgres::shared().database();
    let (writer, _) = writer(&database).await;
    writer
        .run(
            "create table calls as select n from generate_series(1, 3000) n; analyze calls;
             alter table calls set (parallel_workers = 2);
             set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0;
             set parallel_leader_participation = off;
             -- It has had two names.
             select set_config(name, 'on', false) from pg_settings
             where name in ('force_parallel_mode', 'debug_parallel_query')",
        )
        .await;
    let query =
        "select count(*)::text from calls c where (ext_select('x', jsonb_build_object('n', c.n))).config ->> 'n' = '3'";
    let plan = writer
        .query(&format!("explain {query}"), &[])
        .await
        .expect("a plan")
        .iter()
        .map(|row| row.get::<_, String>(0))
        .collect::<String>();
    assert!(plan.contains("Parallel Seq Scan"), "{plan}");
    for isolation in ["read committed", "repeatable read", "serializable"] {
        writer
            .run(&format!(
                r#"begin isolation level {isolation}; update extensions set config = '{{"n": 3}}'"#
            ))
            .await;
        assert_eq!(writer.one(query, &[]).await, "3000", "{isolation}");
        writer.run("rollback").await;
        assert_eq!(writer.one(query, &[]).await, "0", "{isolation}");
    }
}

#[tokio::test]
async fn the_extension_dropped_and_created_in_one_session() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let reader = database.connect().await;
    assert_eq!(look(&reader).await, base);
    let renew = "drop extension ext_registry; create extension ext_registry";
    let nothing = "x extension_not_found 0; x extension_not_found 0; y extension_not_found 0";

    writer.run(&format!("begin; {renew}")).await;
    assert_eq!(look(&writer).await, nothing);
    writer
        .run("insert into extensions (id, type, subject) values ('y', 'pre', 'fresh')")
        .await;
    assert!(look(&writer).await.contains("y ok v1 fresh"));
    writer.run("rollback").await;
    assert_eq!(look(&writer).await, base);
    assert_eq!(look(&reader).await, base);

    writer.run("begin; savepoint s; drop extension ext_registry").await;
    writer.error_of("select ext_select('x')").await;
    writer.run("rollback to s").await;
    assert_eq!(look(&writer).await, base);
    writer.run("commit").await;

    writer.run(renew).await;
    assert_eq!(look(&writer).await, nothing);
    assert_eq!(look(&reader).await, nothing);
    writer.run(BASE).await;
    let again = look(&writer).await;
    assert_eq!(again, base, "the same configuration, epochs included");
    assert_eq!(look(&reader).await, base);
    assert_eq!(writer.counts("x").await, (0, 0));

    // In another schema, found by another search_path.
    writer
        .run("drop extension ext_registry; create schema reg; create extension ext_registry schema reg; set search_path = reg")
        .await;
    writer.run(BASE).await;
    assert_eq!(look(&writer).await, base);
    reader.run("set search_path = reg").await;
    assert_eq!(look(&reader).await, base);
    writer.run("set search_path = pg_catalog").await;
    let qualified = "select reason from reg.ext_select('x')";
    assert_eq!(writer.one(qualified, &[]).await, "ok", "with any search_path");
}

#[tokio::test]
async fn reload_makes_every_session_read_anew() {
    let database = Postgres::shared().database();
    let (writer, base) = writer(&database).await;
    let readers = readers(&database).await;
    assert_all_see(&readers, &base, "before").await;
    // Rows that get in past the triggers, as a restore with --disable-triggers does it.
    let behind = |n: i32| {
        format!(
            "alter table extensions disable trigger user;
             update extensions set config = '{{\"n\": {n}}}';
             alter table extensions enable trigger user;
             alter table extensions enable always trigger \"!invalidate\", enable always trigger \"!invalidate_truncate\""
        )
    };
    writer.run(&behind(1)).await;
    let reloaded = writer
        .one(
            "select concat_ws(' ', extensions, versions, instances, policies) from ext_reload()",
            &[],
        )
        .await;
    assert_eq!(reloaded, "1 1 1 0");
    let anew = look(&writer).await;
    assert_ne!(anew, base);
    assert_all_see(&readers, &anew, "reloaded").await;

    // It acts at commit, in this transaction at once.
    writer.run("begin").await;
    writer.run(&behind(2)).await;
    writer.run("select ext_reload()").await;
    assert!(look(&writer).await.contains(r#"{"n": 2}"#));
    writer.run("commit").await;
    let anew = look(&writer).await;
    assert!(anew.contains(r#"{"n": 2}"#));
    assert_all_see(&readers, &anew, "reloaded").await;
    let intact = "select triggers_intact::text from ext_registry_status()";
    assert_eq!(writer.one(intact, &[]).await, "true");
}
