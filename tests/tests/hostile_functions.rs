//! Every function of the extension, called with what nobody would pass: it answers or says what is wrong, with an SQLSTATE
//! and a hint. It never panics, never takes the server down, and leaves nothing behind.
//!
//! Functions are taken from the catalog, so a new one is covered from its first day; a new type of argument needs its
//! values in [`values`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ext_registry_tests::{Database, Postgres, Session, eventually};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_postgres::error::DbError;

const SOON: Duration = Duration::from_secs(20);

/// `xorshift64*`, seeded by the clock or by `HOSTILE_SEED`; the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_nanos() as u64
        };
        let seed = std::env::var("HOSTILE_SEED").map_or_else(|_| clock(), |text| text.parse().expect("a number"));
        println!("HOSTILE_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn strings() -> Vec<String> {
    let mut strings: Vec<String> = [
        "",
        " ",
        "x",
        "v1",
        "success",
        "viewer",
        "closed",
        "a\nb\tc\rd\u{7}e",
        "\u{ffff}",
        "\u{1F980}\u{202e}\u{0301}",
        "\\",
        "\\x00\\",
        "%s %n %1$s {} {0} :x $1 \"q\" `'",
        "'; drop table extensions; --",
        "NaN",
        "-",
        "..",
        "$SYS.>",
        "HISTFAAAA",
    ]
    .map(str::to_owned)
    .to_vec();
    strings.push("x".repeat(1_000_000));
    strings.push("\u{1F980}".repeat(250_000));
    strings.push("[".repeat(100_000));
    strings.push("9".repeat(400));
    strings
}

fn documents() -> Vec<String> {
    let mut documents: Vec<String> = [
        "{}",
        "[]",
        "null",
        "true",
        "1e400",
        "-1e-400",
        "\"\\uffff\"",
        r#"{"": null}"#,
        r#"{"a": 1e400, "b": -123456789012345678901234567890.5, "c": 0.1, "d": 1e-300}"#,
        r#"{"tenant_id": ["t"], "a.b.c": null, "..": 1}"#,
        r#"{"a": {"regex": "(((((x{1000}){1000}){1000})))"}}"#,
        r#"{"a": {"regex": "(?i)\\p{L}+(", "in": []}}"#,
        r#"{"a": {"semver": "99999999999999999999.0.0"}}"#,
        r#"{"a": {"gt": "x", "unheard_of": {}}}"#,
        r#"{"id": "x", "type": "pre", "subject": "s"}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 1e400}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "timeout_ms": 99999999999999999999}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "retry": -1.5, "enabled": "maybe"}"#,
        r#"{"id": "\\", "type": "'", "subject": "\uffff"}"#,
        r#"{"id": {}, "type": [], "subject": null}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "config": null, "metadata": {"allowed_tenants": [1, null, {}]}}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [null], "instances": [[]], "health": []}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [{}, 1], "instances": [{"instance_id": 7}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "versions": [{"version": "v1", "subject": "s", "rollout_percent": 1e400}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "instances": [{"instance_id": "i", "subject": "s", "weight": 1e10}]}"#,
        r#"{"id": "x", "type": "pre", "subject": "s", "health": {"slow_call_ms": 1e400, "breaker_mode": 1}}"#,
        r#"{"extensions": [1, null, []], "policies": [{}]}"#,
        r#"{"extensions": {}, "policies": [{"tenant_id": null, "policy_id": {}, "document": 1}]}"#,
        r#"{"policies": [{"tenant_id": "t", "policy_id": "p", "document": {"pre": [1], "providers": {}}}]}"#,
        r#"{"pre": [{"id": "x"}], "validators": [{"id": ""}], "providers": [{"name": 1, "weight": 1e400}]}"#,
        r#"[["a", null, 1, {}], null, {}, 7]"#,
    ]
    .map(str::to_owned)
    .to_vec();
    documents.push(format!("{}{}", "[".repeat(1000), "]".repeat(1000)));
    documents.push(format!("{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000)));
    documents.push(format!(
        "{{\"id\": \"x\", \"config\": {}{}}}",
        "[".repeat(300),
        "]".repeat(300)
    ));
    documents.push(json!({ "id": "x".repeat(1_000_000), "type": "pre", "subject": "s" }).to_string());
    let wide: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), json!(n))).collect();
    documents.push(Value::Object(wide).to_string());
    documents
}

/// Values of a type as SQL expressions, the harmless ones first.
fn values(kind: &str, hdr: &[String]) -> Vec<String> {
    if let Some(element) = kind.strip_suffix("[]") {
        let elements = values(element, hdr);
        let (good, other) = (&elements[0], &elements[elements.len() / 2]);
        let mut arrays = vec![
            format!("array[{good}]"),
            format!("null::{kind}"),
            format!("'{{}}'::{kind}"),
            format!("array[null]::{kind}"),
            format!("array[{good}, null, {other}]"),
            format!("array[[{good}, {good}], [{other}, null]]"),
            format!("array_fill({good}, array[1000])"),
            format!("array_fill(null::{element}, array[10000])"),
            format!("array_fill({good}, array[2], array[-5])"),
            format!("array_fill({good}, array[1, 1, 1, 1, 1, 1])"),
        ];
        arrays.extend(
            elements
                .iter()
                .filter(|value| value.len() < 10_000)
                .map(|value| format!("array[{value}]")),
        );
        return arrays;
    }
    let typed = |values: &[&str]| {
        values
            .iter()
            .map(|value| format!("{value}::{kind}"))
            .collect::<Vec<_>>()
    };
    let mut found = match kind {
        "text" | "name" | "cstring" | "character varying" => strings()
            .iter()
            .map(|text| format!("{}::{kind}", quoted(text)))
            .collect(),
        "jsonb" => documents()
            .iter()
            .map(|text| format!("{}::{kind}", quoted(text)))
            .collect(),
        "boolean" => typed(&["true", "false"]),
        "smallint" => typed(&["1", "0", "'-32768'", "32767"]),
        "integer" => typed(&["1", "0", "'-1'", "'-2147483648'", "2147483647"]),
        "bigint" => typed(&[
            "1",
            "0",
            "'-1'",
            "'-9223372036854775808'",
            "9223372036854775807",
            "281474976710657",
        ]),
        "double precision" => typed(&[
            "1",
            "0",
            "'-0'",
            "0.95",
            "1.0000001",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e308",
            "'-1e308'",
            "5e-324",
        ]),
        "numeric" => typed(&["1", "0", "'NaN'", "'Infinity'", "1e1000", "'-1e-1000'"]),
        "uuid" => typed(&[
            "gen_random_uuid()",
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        ]),
        "regclass" => typed(&[
            "'extensions'",
            "'extension_health'",
            "'extensions_pkey'",
            "0::oid",
            "4294967295::oid",
        ]),
        "regrole" => typed(&["'bridge'", "0::oid", "4294967295::oid", "'pg_monitor'"]),
        "timestamp with time zone" => typed(&[
            "now()",
            "'infinity'",
            "'-infinity'",
            "'4714-11-24 BC'",
            "'294276-12-31'",
        ]),
        "interval" => typed(&[
            "'5 min'",
            "'0'",
            "'-1 s'",
            "'178000000 years'",
            "'-178000000 years'",
            "'0.000001 s'",
        ]),
        "hdr" => hdr.iter().map(|text| format!("{}::hdr", quoted(text))).collect(),
        other => panic!("no values for arguments of type {other}: add some"),
    };
    found.push(format!("null::{kind}"));
    found
}

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
            ("doc", "jsonb") => r#"'{"id": "x", "type": "pre", "subject": "s"}'::jsonb"#,
            _ => return None,
        };
        Some(value)
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

/// What is wrong with an error, if anything is.
fn complaint(function: &str, error: &DbError) -> Option<&'static str> {
    let mut text = error.message().to_owned();
    for part in [error.detail(), error.hint(), error.where_()].into_iter().flatten() {
        text += "\n";
        text += part;
    }
    let ours = matches!(error.routine(), Some("ext_registry" | "exec_stmt_raise"));
    let rust = [
        "panicked",
        "internal error",
        "backtrace",
        "Option::unwrap",
        ".rs:",
        "rust_begin_unwind",
    ];
    if rust.iter().any(|trace| text.contains(trace)) {
        Some("shows the inside of the program")
    } else if error.code().code() == "XX000" {
        Some("has no SQLSTATE of its own")
    } else if error.code().code() == "57014" {
        Some("takes too long")
    } else if ours && error.hint().is_none_or(str::is_empty) {
        Some("has no hint")
    } else if ours && text.len() > 5_000 && !function.starts_with('_') {
        // (The inner ones are given what to say by their callers.)
        Some("is longer than anybody reads")
    } else {
        None
    }
}

fn shown(text: &str) -> String {
    text.chars().take(300).collect()
}

async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
               values ('x', 'v2', 'x.v2', 100, 0, '{"tenant_id": ["t"]}');
               insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1')"#,
        )
        .await;
    session
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

/// Resident memory of a backend in kB.
fn memory_kb(pid: i32) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of this machine");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test]
async fn what_is_asked_for_in_vain_is_not_kept() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    let pid = session.backend_pid().await;
    session.run("select ext_select('x')").await;
    let before = memory_kb(pid);
    for sql in [
        "select ext_select(n || repeat('x', 1000000)) from generate_series(1, 200) n",
        "select ext_select('x', jsonb_build_object('tenant_id', repeat('x', 1000000) || n)) from generate_series(1, 200) n",
        "select ext_select('x', avoid => array[repeat('x', 1000000) || n]) from generate_series(1, 200) n",
        "select ext_lookup(n || repeat('x', 1000000)) from generate_series(1, 200) n",
        "select ext_select('unknown' || n) from generate_series(1, 50000) n",
    ] {
        session.run(sql).await;
        let grown = memory_kb(pid) - before;
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
    const CONTEXTS: usize = 1000;
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
            "select * from extension_health, extension_version_health, extension_instance_health",
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
