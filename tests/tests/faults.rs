//! What the machine does to Postgres: a full disk, a clock that steps, no connection left. Each costs what it must, and nothing else.

use std::time::Duration;

use ext_registry_tests::postgres::must_succeed;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, Session, Shutdown, Surroundings, eventually};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);
const DATABASE: &str = "app";
const IDS: i64 = 400;

async fn status(session: &Session, column: &str) -> String {
    session
        .one(&format!("select {column}::text from ext_registry_status()"), &[])
        .await
}

/// Waits until a query says this.
async fn becomes(session: &Session, sql: &str, wanted: &str) {
    eventually(SOON, async || {
        let now = session.one(sql, &[]).await;
        if now == wanted {
            Ok(())
        } else {
            Err(format!("{now}, not {wanted}"))
        }
    })
    .await;
}

/// One call of each extension whose id begins with this; all are allowed but `x1`.
async fn call_each(session: &Session, initial: &str) {
    let sql = "select count(ext_report(d.ticket, 'success', 5))::text from extensions e, ext_select(e.id) d
               where e.id like $1 and e.id <> 'x1' and d.allowed";
    let called = session.one(sql, &[&format!("{initial}%")]).await;
    assert_eq!(called, (IDS - 1).to_string());
}

/// Fills the disk of the table `filler`.
async fn fill_disk(session: &Session) {
    session
        .run(
            "create unlogged table filler (content text);
             do $$
             begin
                 loop
                     insert into filler select repeat('x', 500) from generate_series(1, 1000);
                 end loop;
             exception when disk_full then
                 raise notice 'full';
             end
             $$",
        )
        .await;
    assert_eq!(session.take_notices().len(), 1, "the disk is full");
}

/// What is on disk: successes of all, and transitions.
const WRITTEN: &str = "select (select coalesce(sum(success), 0) from extension_metrics where instance_id = '') || ' '
                           || (select count(*) from extension_breaker_events)";

#[tokio::test]
async fn a_full_disk_delays_what_is_written_and_loses_none_of_it() {
    let mut cluster = Postgres::start_in(
        Surroundings::with_small_disk(48),
        &["ext_registry.flush_interval = '100ms'"],
    );
    let disk = cluster.small_disk();
    must_succeed(&cluster.psql(
        "postgres",
        &format!("create tablespace small location '{}'", disk.display()),
    ));
    must_succeed(&cluster.psql("postgres", &format!("create database {DATABASE} tablespace small")));
    let session = cluster.connect(DATABASE).await;
    session
        .run(&format!(
            "create extension ext_registry;
             insert into extensions (id, type, subject) select 'x' || n, 'pre', 'x' from generate_series(1, {IDS}) n;
             insert into extensions (id, type, subject) select 'y' || n, 'pre', 'y' from generate_series(2, {IDS}) n"
        ))
        .await;
    becomes(&session, "select worker_alive::text from ext_registry_status()", "true").await;
    let worker = status(&session, "worker_pid").await;

    fill_disk(&session).await;

    // Calls go on, are counted, and open breakers; what is to be written waits.
    assert_eq!(session.call("x1", &json!({}), "error", 9).await, 5);
    for round in 1..=3 {
        call_each(&session, "x").await;
        let counted = session
            .one("select sum(success_count)::text from extension_health", &[])
            .await;
        assert_eq!(counted, (round * (IDS - 1)).to_string());
    }
    eventually(SOON, async || {
        let lag: f64 = status(&session, "flush_lag_ms").await.parse().expect("a number");
        // So many attempts have failed by then, and been told once.
        if lag > 4_000.0 { Ok(()) } else { Err(lag) }
    })
    .await;
    call_each(&session, "x").await;
    assert_eq!(session.breaker("x1").await, "open");
    assert_eq!(status(&session, "worker_pid").await, worker, "it lives on");
    let log = cluster.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("cannot write live state down"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("No space left on device"), "{told:?}");

    // Whoever changes the registry is told, and nothing is half changed.
    let refused = session
        .error_of(&format!(
            "update extensions set config = jsonb_build_object('filler', repeat(md5(id), 100)) where id <> 'x{IDS}'"
        ))
        .await;
    assert_eq!(refused.code().code(), "53100", "{refused:?}");
    let changed = session
        .one("select count(*)::text from extensions where config <> '{}'", &[])
        .await;
    assert_eq!(changed, "0");

    // With space again all of it is written, and survives a crash.
    session.run("drop table filler").await;
    let all = format!("{} 1", 4 * (IDS - 1));
    becomes(&session, WRITTEN, &all).await;
    eventually(SOON, async || {
        let lag: f64 = status(&session, "flush_lag_ms").await.parse().expect("a number");
        if lag < 1_000.0 { Ok(()) } else { Err(lag) }
    })
    .await;
    assert_eq!(status(&session, "worker_pid").await, worker);
    let fallen = session.backend_pid().await;
    drop(session);
    cluster.kill_backend(fallen).await;
    let session = cluster.connect(DATABASE).await;
    assert_eq!(session.breaker("x1").await, "open");
    becomes(
        &session,
        "select sum(success_count)::text from extension_health",
        &(4 * (IDS - 1)).to_string(),
    )
    .await;

    // A shutdown does not wait for space.
    fill_disk(&session).await;
    call_each(&session, "y").await;
    eventually(SOON, async || {
        let told = cluster.log().matches("cannot write live state down").count();
        // Another worker, another warning.
        if told == 2 { Ok(()) } else { Err(told) }
    })
    .await;
    drop(session);
    cluster.stop(Shutdown::Fast);
}

#[tokio::test]
async fn a_clock_that_steps_back_an_hour_moves_no_breaker_and_no_window() {
    const HOUR: i64 = 3600;
    let cluster = Postgres::start_in(Surroundings::with_clock(), &["ext_registry.flush_interval = '100ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) select 'x' || n, 'pre', 'x' from generate_series(1, 3) n;
             update extension_health set circuit_breaker_timeout_seconds = 2;
             create table clock as select clock_timestamp() as at",
        )
        .await;
    assert_eq!(session.call("x1", &json!({}), "error", 9).await, 5);
    assert_eq!(session.call("x2", &json!({}), "error", 4).await, 4);
    assert_eq!(session.call("x3", &json!({}), "success", 30).await, 30);
    let successes = "select sum(success)::text from extension_metrics where extension_id = 'x3' and instance_id = ''";
    becomes(&session, successes, "30").await;

    cluster.surroundings().step_clock(-HOUR);
    let seen = session
        .one(
            "select (clock_timestamp() < at - interval '59 min')::text from clock",
            &[],
        )
        .await;
    assert_eq!(seen, "true", "the clock of the server has stepped");
    // Still open, for as long as it was to be: not for an hour more.
    let refused = session.select("x1", &json!({})).await;
    assert_eq!(refused.reason, "extension_circuit_open");
    assert!(refused.retry_after_ms.expect("how long") <= 2_200, "{refused:?}");
    // The four failures before the step and one after it are five within a minute.
    assert_eq!(session.call("x2", &json!({}), "error", 9).await, 1);
    assert_eq!(session.breaker("x2").await, "open");
    eventually(SOON, async || {
        let decision = session.select("x1", &json!({})).await;
        if decision.allowed {
            session
                .report(decision.ticket, "success", Duration::from_millis(1))
                .await;
        }
        match session.breaker("x1").await.as_str() {
            "closed" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;

    // Written on, and nothing twice: the minute in which the clock stepped stays one.
    assert_eq!(session.call("x3", &json!({}), "success", 12).await, 12);
    let total = "select success_count || ' ' || success_rate from extension_health where extension_id = 'x3'";
    assert_eq!(session.one(total, &[]).await, "42 1");
    becomes(&session, successes, "42").await;
    let lag: f64 = status(&session, "flush_lag_ms").await.parse().expect("a number");
    assert!((0.0..5_000.0).contains(&lag), "{lag} ms");
    let events = "select count(*)::text from extension_breaker_events where at > clock_timestamp()";
    let ahead: i64 = session.one(events, &[]).await.parse().expect("a number");
    assert!(ahead <= 2, "those of before the step, at most: {ahead}");

    // And forward again.
    cluster.surroundings().step_clock(0);
    assert_eq!(session.call("x3", &json!({}), "success", 5).await, 5);
    assert_eq!(session.one(total, &[]).await, "47 1");
    becomes(&session, successes, "47").await;
    assert_eq!(session.breaker("x2").await.as_str(), "open");
    let log = cluster.log();
    for trace in ["panicked", "cannot write live state", "ERROR"] {
        assert!(!log.contains(trace), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_no_connection_left_a_bridge_decides_on_its_own_and_counts_afterwards() {
    const ID: &str = "normalize_text";
    let cluster = Postgres::start(&["max_connections = 14", "superuser_reserved_connections = 4"]);
    cluster.make_database(DATABASE);
    let administrator = cluster.connect(DATABASE).await;
    administrator
        .execute("select ext_import($1)", &[&ext_registry_tests::registry::fixtures()])
        .await
        .expect("the fixtures are good");
    administrator
        .run("update extensions set timeout_ms = 5000; create role crowd login")
        .await;
    let nats = Nats::start();
    let services = Services::start(&nats, &[]).await;
    let caller = Caller::new(&nats).await;
    let bridge = Bridge::start_auto(&nats, &cluster, DATABASE, &[]);
    let source = async |wanted: &str| {
        eventually(SOON, async || {
            let ready = bridge.readyz();
            if ready["source"] == wanted {
                Ok(())
            } else {
                Err(format!("{ready}\n{}", bridge.log()))
            }
        })
        .await;
    };
    let calls = async |count: u64| {
        for _ in 0..count {
            let reply = caller.invoke(ID, &json!({"payload": {"text": "x"}})).await;
            assert_eq!(reply.error(), None);
        }
    };
    source("database").await;
    calls(20).await;
    eventually(SOON, async || {
        bridge
            .metric("ext_bridge_image_age_seconds")
            .ok_or_else(|| bridge.log())
    })
    .await;

    // A crowd takes what there is; then the bridge loses its connections, and finds no place to come back to.
    let mut crowd = Vec::new();
    let full = eventually(SOON, async || {
        administrator
            .run("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'bridge'")
            .await;
        for _ in 0..14 {
            match cluster.try_connect_as("crowd", DATABASE).await {
                Ok(session) => crowd.push(session),
                Err(error) => {
                    let error = error.as_db_error().expect("Postgres says so").clone();
                    let left: i64 = administrator
                        .one(
                            "select count(*)::text from pg_stat_activity where usename = 'bridge'",
                            &[],
                        )
                        .await
                        .parse()
                        .expect("a number");
                    return if left == 0 {
                        Ok(error)
                    } else {
                        Err(format!("{left} left: {error}"))
                    };
                }
            }
        }
        Err("room for all".to_owned())
    })
    .await;
    assert_eq!(full.code().code(), "53300", "{full:?}");
    source("image").await;
    calls(50).await;
    let log = bridge.log();
    assert!(
        log.lines()
            .any(|line| line.contains("no connection to Postgres") && line.contains(full.message())),
        "{log}"
    );
    assert_eq!(bridge.readiness(), 200);

    // As soon as there is room, Postgres decides, and has all of it.
    drop(crowd);
    source("database").await;
    calls(10).await;
    assert_eq!(services.served(ID).await, 80);
    becomes(
        &administrator,
        "select format('%s %s', success_count, failure_count) from extension_health where extension_id = 'normalize_text'",
        "80 0",
    )
    .await;
}
