//! Every function of the extension, called with every value in every place.
//!
//! Functions are taken from the catalog, so a new one is covered from its first day; a new type of argument needs its
//! values in [`values`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use ext_registry_tests::{Postgres, Session, eventually};
use futures_util::future::join_all;
use serde_json::json;

use crate::arguments::values;
use crate::{Random, complaint, prepared};

const SOON: Duration = Duration::from_secs(20);

/// A function of the extension.
#[derive(Debug)]
struct Function {
    name: String,
    /// Names and types of its arguments.
    arguments: Vec<(String, String)>,
    returns_rows: bool,
    kind: String,
}

impl Function {
    async fn all(session: &Session) -> Vec<Self> {
        let rows = session
            .query(
                "select p.oid::regproc::text, p.prokind::text, p.proretset or t.typtype = 'c' or t.oid = 'record'::regtype,
                     array(select coalesce(p.proargnames[a.n], '') from unnest(p.proargtypes) with ordinality a(kind, n) order by a.n),
                     array(select format_type(a.kind, null) from unnest(p.proargtypes) with ordinality a(kind, n) order by a.n)
                 from pg_proc p
                 join pg_depend d on (d.classid, d.objid, d.deptype) = ('pg_proc'::regclass, p.oid, 'e')
                 join pg_extension x on x.oid = d.refobjid and x.extname = 'ext_registry'
                 join pg_type t on t.oid = p.prorettype
                 where not 'internal'::regtype = any (p.proargtypes)
                 order by 1",
                &[],
            )
            .await
            .expect("the catalog");
        rows.iter()
            .map(|row| {
                let names: Vec<String> = row.get(3);
                let kinds: Vec<String> = row.get(4);
                Self {
                    name: row.get(0),
                    kind: row.get(1),
                    returns_rows: row.get(2),
                    arguments: names.into_iter().zip(kinds).collect(),
                }
            })
            .collect()
    }

    fn call(&self, arguments: &[&str]) -> String {
        let call = format!("{}({})", self.name, arguments.join(", "));
        match self.kind.as_str() {
            "p" => format!("call {call}"),
            "a" => format!("select {call} from generate_series(1, 3)"),
            _ if self.returns_rows => format!("select count(*) from {call}"),
            _ => format!("select {call}"),
        }
    }

    /// What would be right, where one can tell by the name.
    fn harmless(name: &str, kind: &str) -> Option<&'static str> {
        let value = match (name, kind) {
            ("id" | "extension_id", "text") => "'x'::text",
            ("outcome", "text") => "'success'::text",
            ("version", "text") => "'v1'::text",
            ("instance_id", "text") => "'a'::text",
            ("type", "text") => "'pre'::text",
            ("level", "text") => "'viewer'::text",
            ("outcomes", "text[]") => "array['success']",
            ("since" | "step" | "wait", "interval") => "'5 min'::interval",
            ("doc", "jsonb") => r#"'{"id": "x", "type": "pre", "subject": "s"}'::jsonb"#,
            _ => return None,
        };
        Some(value)
    }

    /// Calls of an aggregate over many different values at once, over none, and in all the places where one may stand.
    fn aggregations(&self, good: &[&str], pools: &[&Vec<String>]) -> Vec<String> {
        let Some(((_, kind), pool)) = self.arguments.first().zip(pools.first()) else {
            return Vec::new();
        };
        let values: Vec<&str> = pool
            .iter()
            .map(String::as_str)
            .filter(|value| value.len() < 10_000)
            .collect();
        let rows = format!("unnest(array[{}]) with ordinality u(value, n)", values.join(", "));
        let rest: String = good
            .iter()
            .skip(1)
            .fold(String::new(), |rest, value| rest + ", " + value);
        let name = &self.name;
        vec![
            format!("select {name}(value{rest}) from {rows} where value is not null"),
            format!("select {name}(value{rest}) from {rows}"),
            format!("select {name}(value{rest}) from {rows} where false"),
            format!("select {name}(value{rest}) filter (where n % 2 = 0) from {rows}"),
            format!("select {name}(value{rest} order by n desc) from {rows}"),
            format!("select {name}(value{rest}) from {rows} group by n % 3"),
            format!("select {name}(value{rest}) from {rows} group by rollup (n % 3, n % 2)"),
            format!("select {name}(value{rest}) over (order by n) from {rows}"),
            format!("select {name}(value{rest}) over (order by n rows between 2 preceding and 1 following) from {rows}"),
            format!("select {name}(null::{kind}{rest}) from generate_series(1, 1000)"),
            format!("select {name}({}{rest}) from generate_series(1, 100000)", good[0]),
            // By parallel workers, whose states are combined.
            format!(
                "set local force_parallel_mode = on; set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0;
                 set local min_parallel_table_scan_size = 0;
                 select {name}({}{rest}) from pg_attribute",
                good[0]
            ),
        ]
    }

    /// Calls with nothing but NULL; with each value in each place; and at random.
    fn calls(&self, pools: &BTreeMap<String, Vec<String>>, random: &mut Random) -> Vec<String> {
        let pools: Vec<&Vec<String>> = self.arguments.iter().map(|(_, kind)| &pools[kind]).collect();
        let good: Vec<&str> = self
            .arguments
            .iter()
            .zip(&pools)
            .map(|((name, kind), pool)| Self::harmless(name, kind).unwrap_or(&pool[0]))
            .collect();
        let nulls: Vec<String> = self.arguments.iter().map(|(_, kind)| format!("null::{kind}")).collect();
        let mut calls = vec![
            self.call(&good),
            self.call(&nulls.iter().map(String::as_str).collect::<Vec<_>>()),
        ];
        if self.kind == "f" {
            calls.push(format!("select {}({})", self.name, good.join(", ")));
            calls.push(format!(
                "select {}({}) from generate_series(1, 3)",
                self.name,
                good.join(", ")
            ));
        }
        if self.kind == "a" {
            calls.extend(self.aggregations(&good, &pools));
        }
        for (place, pool) in pools.iter().enumerate() {
            for value in *pool {
                let mut arguments = good.clone();
                arguments[place] = value;
                calls.push(self.call(&arguments));
            }
        }
        if pools.len() > 1 {
            for _ in 0..20 {
                let arguments: Vec<&str> = pools.iter().map(|pool| random.of(pool).as_str()).collect();
                calls.push(self.call(&arguments));
            }
        }
        calls
    }
}

fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_function_withstands_everything() {
    const SESSIONS: usize = 4;
    let cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = prepared(&database).await;
    session.call("x", &json!({}), "success", 20).await;
    let hdr = eventually(SOON, async || {
        let rows = session
            .query(
                "select latency::text from extension_metrics where hdr_count(latency) > 0",
                &[],
            )
            .await;
        let found: Vec<String> = rows.expect("the metrics").iter().map(|row| row.get(0)).collect();
        if found.is_empty() {
            Err("no histogram yet")
        } else {
            Ok(found)
        }
    })
    .await;
    let state = "select md5(ext_export()::text || (select count(*) from extension_audit_log)
                     || (select count(*) from extension_registry_grants)
                     || (select md5(string_agg(proacl::text, '' order by oid)) from pg_proc)) || pg_postmaster_start_time()";
    let before = session.one(state, &[]).await;

    let functions = Function::all(&session).await;
    assert!(functions.len() > 50, "{} functions", functions.len());
    // Of every kind there is something to call, once there is something of it.
    for kind in ["a", "p"] {
        let names: Vec<&str> = functions
            .iter()
            .filter(|function| function.kind == kind)
            .map(|f| f.name.as_str())
            .collect();
        println!("of kind {kind}: {names:?}");
    }
    let kinds = functions
        .iter()
        .flat_map(|function| &function.arguments)
        .map(|(_, kind)| kind.clone());
    let pools: BTreeMap<String, Vec<String>> = kinds.map(|kind| (kind.clone(), values(&kind, &hdr))).collect();
    let mut random = Random::new();
    let mut calls: Vec<(&str, String)> = Vec::new();
    for function in &functions {
        for call in function.calls(&pools, &mut random) {
            calls.push((&function.name, call));
        }
    }
    // Shuffled, so that what one leaves behind in a session meets all others.
    for last in (1..calls.len()).rev() {
        calls.swap(last, random.below(last + 1));
    }

    let shares = calls.chunks(calls.len().div_ceil(SESSIONS)).map(async |share| {
        let mut complaints: Vec<(String, String)> = Vec::new();
        let mut failed = 0;
        let mut session = database.connect().await;
        session.run("set statement_timeout = '20s'").await;
        for (name, call) in share {
            let Err(error) = session
                .batch_execute(&format!("begin; {call}; set constraints all immediate"))
                .await
            else {
                session.run("rollback").await;
                continue;
            };
            failed += 1;
            let Some(error) = error.as_db_error() else {
                complaints.push(((*name).to_owned(), format!("ends the session: {}", shown(call))));
                session = eventually(SOON, async || cluster.try_connect(database.name()).await).await;
                continue;
            };
            if let Some(complaint) = complaint(name, error) {
                let mut text = format!("{complaint}: {}\n    {}", shown(call), error.code().code());
                for part in [Some(error.message()), error.detail(), error.hint()]
                    .into_iter()
                    .flatten()
                {
                    write!(text, "\n    {}", shown(part)).expect("a string");
                }
                complaints.push(((*name).to_owned(), text));
            }
            session.run("rollback").await;
        }
        (complaints, failed)
    });
    let (mut complaints, mut failed) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (share, number) in join_all(shares).await {
        failed += number;
        for (name, complaint) in share {
            complaints.entry(name).or_default().push(complaint);
        }
    }
    println!(
        "{} calls of {} functions, {failed} of them refused",
        calls.len(),
        functions.len()
    );
    let told: Vec<String> = complaints
        .iter()
        .map(|(name, list)| format!("{name}: {} errors, such as one that {}", list.len(), list[0]))
        .collect();
    assert!(complaints.is_empty(), "{}", told.join("\n"));

    // The same server as before, with the same registry and rights, its worker at work.
    assert_eq!(session.one(state, &[]).await, before);
    assert_eq!(
        session
            .one("select worker_alive::text from ext_registry_status()", &[])
            .await,
        "true"
    );
    let log = cluster.log();
    for trace in ["terminated by signal", "panicked", "PANIC", "cannot write live state"] {
        assert!(!log.contains(trace), "the log has \"{trace}\"");
    }
}
