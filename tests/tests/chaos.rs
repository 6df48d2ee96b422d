//! Sessions that decide, report twice or never, roll back and are cancelled, while the registry is edited under them:
//! afterwards nothing is under way, nothing is held, and the server has not noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ext_registry_tests::{Postgres, Session, eventually};
use futures_util::future::try_join_all;

const SOON: Duration = Duration::from_secs(20);

/// `xorshift64*`.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n
    }

    fn of<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values[self.below(values.len() as u64) as usize]
    }
}

const OUTCOMES: &[&str] = &[
    "success",
    "success",
    "success",
    "error",
    "timeout",
    "no_responders",
    "invalid_response",
    "cancelled",
    "caller_error",
];
const IDS: &[&str] = &["x", "y", "z", "nobody"];
const EDITS: &[&str] = &[
    "delete from extensions where id = 'z'",
    "insert into extensions (id, type, subject, timeout_ms) values ('z', 'post', 'z.v1', 10) on conflict do nothing",
    "update extensions set id = 'tmp' where id = 'x'; update extensions set id = 'x' where id = 'y'; update extensions set id = 'y' where id = 'tmp'",
    "insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v2', 'x.v2', 10, 0) on conflict do nothing",
    r#"update extension_versions set routing_rules = '{"tenant_id": "t"}'"#,
    "update extension_versions set rollout_percent = 100 - rollout_percent / 2",
    "delete from extension_versions where version = 'v2'",
    "insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1'), ('x', 'b', 'x.v1') on conflict do nothing",
    "update extension_instances set weight = 1 + (weight + 37) % 100, draining = not draining",
    "delete from extension_instances",
    "update extension_health set circuit_breaker_timeout_seconds = 1, half_open_max_requests = 2",
    "update extension_health set breaker_mode = case breaker_mode when 'auto' then 'metrics_only' else 'auto' end",
    "update extension_health set circuit_breaker_state = 'closed'",
    "select ext_reload()",
    "truncate extension_versions",
];

async fn call(session: &Session, random: &mut Random) -> Result<(), tokio_postgres::Error> {
    let (id, outcome) = (random.of(IDS), random.of(OUTCOMES));
    let report = format!("select ext_report(ticket, '{outcome}', 1)");
    let decide = format!(
        "ext_select('{id}', '{{\"tenant_id\": \"t\", \"request_id\": \"{}\"}}')",
        random.below(100)
    );
    let many = "ext_select_many(array_fill('x'::text, array[20]) || 'y'::text, array_fill('{}'::jsonb, array[21]))";
    let sql = match random.below(10) {
        0 => format!("select ticket from {decide}"),
        1 => format!("with d as materialized (select ticket from {decide}) select ext_report(ticket, '{outcome}', 1), ext_report(ticket, 'error', 1) from d"),
        2 => format!(
            "with d as materialized (select array_agg(ticket) filter (where ordinality % 3 > 0) as t from {many})
             select ext_report_many(t, array_fill('{outcome}'::text, array[14]), array_fill(1::float8, array[14]), array_fill(0, array[14])) from d"
        ),
        3 => format!("begin; {report} from {decide}; savepoint s; {report} from {decide}; rollback to s; select {decide}; rollback"),
        4 => "begin; set local statement_timeout = '2ms'; select count(*) from generate_series(1, 1000) n, ext_select('x', jsonb_build_object('n', n)); rollback".to_owned(),
        5 => format!("select ext_report('{id}', '{outcome}', 1)"),
        6 => format!("select * from ext_explain('{id}'); select * from extension_health; select * from extension_instance_health"),
        7 => format!("begin; select {decide}; select 1 / 0"),
        _ => format!("{report} from {decide}"),
    };
    session.batch_execute(&sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_left_behind() {
    const CALLERS: usize = 8;
    const EDITORS: usize = 2;
    const TIME: Duration = Duration::from_secs(4);
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos() as u64
    };
    let seed = std::env::var("CHAOS_SEED").map_or_else(|_| clock(), |text| text.parse().expect("a number"));
    println!("CHAOS_SEED={seed}");

    let cluster = Postgres::start(&["ext_registry.flush_interval = '50ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 'x.v1', 10), ('y', 'post', 'y.v1', 10)")
        .await;
    let started = session.one("select pg_postmaster_start_time()::text", &[]).await;
    let over = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for number in 0..CALLERS + EDITORS {
        let session = database.connect().await;
        let (over, done) = (Arc::clone(&over), Arc::clone(&done));
        let mut random = Random((seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        tasks.push(tokio::spawn(async move {
            while !over.load(Relaxed) {
                let result = if number < CALLERS {
                    call(&session, &mut random).await
                } else {
                    let end = random.of(&[
                        "commit",
                        "rollback",
                        "savepoint s; select ext_select('x'); rollback to s; commit",
                    ]);
                    let edit = format!("begin; {}; {end}", random.of(EDITS));
                    session.batch_execute(&edit).await
                };
                done.fetch_add(1, Relaxed);
                if let Err(error) = result {
                    let error = error.as_db_error().expect("the session lives on").clone();
                    // What is to be expected: unknown ids, cancelled and divided statements, editors in each other's way.
                    let expected = [
                        "42704", "57014", "22012", "22023", "22004", "40P01", "40001", "23505", "23503",
                    ];
                    assert!(expected.contains(&error.code().code()), "{error:?}");
                    assert!(
                        !error.detail().is_some_and(|detail| detail.contains(".rs:")),
                        "{error:?}"
                    );
                    // (Which may meet the timeout as well.)
                    while session.batch_execute("rollback").await.is_err() {}
                }
            }
        }));
    }
    tokio::time::sleep(TIME).await;
    over.store(true, Relaxed);
    try_join_all(tasks).await.expect("no task panics");
    println!("{} things done", done.load(Relaxed));
    assert!(done.load(Relaxed) > 500, "{} things done", done.load(Relaxed));

    // Calls that nobody reports end with their time, 10 ms and a second.
    let held = "select concat_ws(' ',
                    (select in_flight_used from ext_registry_status()),
                    (select coalesce(sum(in_flight + half_open_requests_count), 0) from extension_version_health),
                    (select coalesce(sum(in_flight), 0) from extension_instance_health))";
    eventually(SOON, async || match session.one(held, &[]).await.as_str() {
        "0 0 0" => Ok(()),
        held => Err(held.to_owned()),
    })
    .await;
    assert_eq!(
        session.one("select pg_postmaster_start_time()::text", &[]).await,
        started
    );
    let log = cluster.log();
    for trace in [
        "panicked",
        "PANIC",
        "terminated by signal",
        "cannot write live state",
        "XX000",
    ] {
        assert!(!log.contains(trace), "the log has \"{trace}\":\n{log}");
    }
    // And all is as usual.
    session
        .run("delete from extensions; insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    assert_eq!(session.call("x", &serde_json::json!({}), "success", 10).await, 10);
    assert_eq!(session.counts("x").await, (10, 0));
}
