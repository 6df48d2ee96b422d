//! `ALTER EXTENSION ext_registry UPDATE` from every release that is kept in `sql/upgrade`, with rows in it: the same decisions
//! and counts, a catalogue like that of a fresh install, and every regress test as on one.

use std::collections::BTreeSet;

use ext_registry_tests::whole::{fill, state};
use ext_registry_tests::{Database, Postgres, places, regress};
use serde_json::json;

const UPDATE: &str = "alter extension ext_registry update";

/// The releases of `sql/upgrade`: its install scripts.
fn releases() -> Vec<String> {
    let releases: Vec<String> = std::fs::read_dir(places::root().join("sql/upgrade"))
        .expect("sql/upgrade")
        .filter_map(|entry| {
            let name = entry.expect("a readable folder").file_name().into_string().ok()?;
            let version = name.strip_prefix("ext_registry--")?.strip_suffix(".sql")?;
            (!version.contains("--")).then(|| version.to_owned())
        })
        .collect();
    assert!(!releases.is_empty(), "sql/upgrade keeps no release");
    releases
}

/// Everything that belongs to the extension, one line an object, with all that a user can see of it.
fn catalogue(database: &Database<'_>) -> BTreeSet<String> {
    let lines = database.run(
        r"
        with member as (
            select d.classid, d.objid
            from pg_depend d
            join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
            where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e'
        )
        select replace(line, chr(10), ' ') from (
            select concat_ws(' ', 'object', (pg_identify_object(m.classid, m.objid, 0)).identity,
                obj_description(m.objid, m.classid::regclass::name)) as line
            from member m
            union all
            select concat_ws(' ', 'function', p.oid::regprocedure, p.proacl::text, pg_get_function_result(p.oid),
                case when p.prokind <> 'a' then pg_get_functiondef(p.oid) end)
            from member m join pg_proc p on m.classid = 'pg_proc'::regclass and p.oid = m.objid
            union all
            select concat_ws(' ', 'relation', c.oid::regclass, c.relkind, c.relacl::text, c.reloptions::text,
                case when c.relkind = 'v' then pg_get_viewdef(c.oid) end)
            from member m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid
            union all
            select concat_ws(' ', 'column', c.oid::regclass, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                a.attidentity, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum), a.attacl::text)
            from member m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
            union all
            select concat_ws(' ', 'constraint', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))
            from member m join pg_constraint c on m.classid = 'pg_class'::regclass and c.conrelid = m.objid
            union all
            select concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid))
            from member m join pg_index i on m.classid = 'pg_class'::regclass and i.indrelid = m.objid
            union all
            select concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), t.tgenabled)
            from member m join pg_trigger t on m.classid = 'pg_class'::regclass and t.tgrelid = m.objid and not t.tgisinternal
            union all
            select concat_ws(' ', 'dumped', c.oid::regclass, x.condition)
            from pg_extension e, unnest(e.extconfig, e.extcondition) x(relation, condition)
            join pg_class c on c.oid = x.relation
            where e.extname = 'ext_registry'
        ) l",
    );
    lines.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[tokio::test]
async fn an_update_keeps_rows_decisions_and_counts() {
    let cluster = Postgres::shared();
    for release in releases() {
        let database = cluster.database_of_release(&release);
        let role = format!("updated_{}", database.name());
        fill(cluster, database.name(), &role);
        let session = database.connect().await;
        assert_eq!(session.call("pii_guard", &json!({}), "success", 40).await, 40);
        assert_eq!(session.call("mask_pii", &json!({}), "error", 7).await, 5);
        let before = state(cluster, database.name(), &role);

        database.run(UPDATE);
        // In the session that was there before, too.
        assert_eq!(session.counts("pii_guard").await, (40, 0));
        assert_eq!(session.breaker("mask_pii").await, "open");
        assert_eq!(state(cluster, database.name(), &role), before, "from {release}");
        assert_eq!(session.call("pii_guard", &json!({}), "success", 2).await, 2);
        assert_eq!(session.counts("pii_guard").await, (42, 0));
        let well = "select concat_ws(' ', triggers_intact, version = library_version) from ext_registry_status()";
        assert_eq!(session.one(well, &[]).await, "t t");
        // What an update adds is given to who has a level.
        let given = format!("select has_function_privilege('{role}', 'ext_policy_uses(text)', 'execute')::text");
        assert_eq!(session.one(&given, &[]).await, "true");
    }
}

#[test]
fn an_updated_catalogue_is_that_of_a_fresh_install() {
    let cluster = Postgres::shared();
    let fresh = catalogue(&cluster.database());
    assert!(fresh.len() > 500, "{} lines", fresh.len());
    for release in releases() {
        let database = cluster.database_of_release(&release);
        assert_ne!(catalogue(&database), fresh, "{release} is no other release");
        database.run(UPDATE);
        let updated = catalogue(&database);
        let lacks: Vec<_> = fresh.difference(&updated).collect();
        let beyond: Vec<_> = updated.difference(&fresh).collect();
        assert!(
            lacks.is_empty() && beyond.is_empty(),
            "from {release}: lacks {lacks:#?}, and has {beyond:#?}"
        );
    }
}

#[test]
fn an_updated_registry_passes_every_regress_test() {
    for release in releases() {
        for file in regress::files() {
            let database = Postgres::shared().database_of_release(&release);
            database.run(UPDATE);
            let printed = regress::print(&file, &database);
            if let Some(difference) = regress::difference(&file, &printed) {
                panic!("after an update from {release}:\n{difference}");
            }
        }
    }
}
