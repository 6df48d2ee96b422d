//! The epoch of a decision: a fingerprint of the configuration it was made with, equal exactly where that is equal.

use ext_registry_tests::{Postgres, Session};
use serde_json::json;

async fn epoch(session: &Session) -> i64 {
    let decided = session.select("x", &json!({})).await.epoch.expect("an epoch");
    let listed = session.one("select epoch::text from ext_lookup('x')", &[]).await;
    assert_eq!(listed, decided.to_string(), "the one of ext_lookup");
    decided
}

const REGISTER: &str = "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
    insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v2', 'x.v2', 100, 0);
    insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v2')";

/// Another value that the column takes.
fn other_value(column: &str, kind: &str) -> String {
    match (column, kind) {
        ("type", _) => "'post'".to_owned(),
        ("balancing", _) => "'round_robin'".to_owned(),
        ("breaker_mode", _) => "'metrics_only'".to_owned(),
        ("health_status", _) => "'degraded'".to_owned(),
        ("weight", _) => "55".to_owned(),
        (_, "jsonb") => r#"'{"other": 1}'"#.to_owned(),
        (_, "boolean") => format!("not coalesce({column}, false)"),
        (_, "integer") => format!("coalesce({column}, 10) + 1"),
        (_, "numeric") => "33.33".to_owned(),
        (_, "double precision") => "0.77".to_owned(),
        _ => "'other'".to_owned(),
    }
}

#[tokio::test]
async fn every_setting_is_in_it_and_nothing_else() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session.run(REGISTER).await;
    let first = epoch(&session).await;
    session
        .run("insert into extension_health_settings (extension_id) values ('x')")
        .await;
    assert_eq!(epoch(&session).await, first, "a row of defaults is what no row is");

    let columns = session
        .query(
            "select table_name::text, column_name::text, data_type::text from information_schema.columns
             where table_schema = 'public'
                 and table_name in ('extensions', 'extension_versions', 'extension_instances', 'extension_health_settings')
                 and column_name not in ('id', 'extension_id', 'uid')
             order by table_name, ordinal_position",
            &[],
        )
        .await
        .expect("the catalog");
    assert!(columns.len() > 50, "{} columns", columns.len());
    let bookkeeping = [
        "created_at",
        "updated_at",
        "created_by",
        "updated_by",
        "last_health_check",
    ];
    let mut wrong = Vec::new();
    for row in &columns {
        let (table, column, kind): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let kept = bookkeeping.contains(&column.as_str());
        let value = if kind.starts_with("timestamp") {
            "now()".to_owned()
        } else {
            other_value(&column, &kind)
        };
        // (Names of instances are unique: one of the two.)
        let only = if column == "instance_id" {
            "where instance_id = 'a'"
        } else {
            ""
        };
        session
            .run(&format!("begin; update {table} set {column} = {value} {only}"))
            .await;
        if (epoch(&session).await == first) != kept {
            wrong.push(format!("{table}.{column}"));
        }
        session.run("rollback").await;
        assert_eq!(epoch(&session).await, first, "{table}.{column}: undone");
    }
    assert!(
        wrong.is_empty(),
        "should matter and do not, or the reverse: {}",
        wrong.join(", ")
    );
}

#[tokio::test]
async fn the_same_configuration_has_the_same_epoch_wherever_it_is() {
    let cluster = Postgres::shared();
    let (here, there) = (cluster.database(), cluster.database());
    let (first, second) = (here.connect().await, there.connect().await);
    first.run(REGISTER).await;
    let known = epoch(&first).await;
    // Written in another order, elsewhere, later, after a life as something else.
    second
        .run(
            "insert into extensions (id, type, subject, retry) values ('x', 'post', 'elsewhere', 3);
             insert into extension_instances (extension_id, instance_id, subject) values ('x', 'b', 'x.v2'), ('x', 'a', 'x.v1');
             insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v2', 'x.v2', 100, 0)",
        )
        .await;
    assert_ne!(epoch(&second).await, known);
    second
        .run("update extensions set type = 'pre', subject = 'x.v1', retry = 0")
        .await;
    assert_eq!(epoch(&second).await, known);
    // Live state has no part in it.
    second.call("x", &json!({}), "error", 20).await;
    second.run("select ext_breaker_reset('x')").await;
    assert_eq!(epoch(&second).await, known);
    // Exported and imported it is the same, too.
    let document = first.one("select ext_export()::text", &[]).await;
    second
        .execute("select ext_import($1::text::jsonb)", &[&document])
        .await
        .expect("an export can be imported");
    assert_eq!(epoch(&second).await, known);
}
