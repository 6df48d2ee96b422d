//! Large registries: 100,000 extensions, 1,000 versions, a rule with 10,000 tenants, 10,000 instances. Costs are compared with
//! those of a small registry in the same run, within bounds that only another order of growth exceeds; they are printed.

use std::time::{Duration, Instant};

use ext_registry_tests::process::anonymous_kb;
use ext_registry_tests::{Database, Postgres, Session};
use serde_json::json;

/// What a session may take at most, in kB.
const SESSION_KB: i64 = 64 * 1024;

/// `cost(id, context, n)`: microseconds for a decision and its report, the least of five times `n`.
const COST: &str = "
    create function cost(id text, context jsonb, n integer) returns double precision language plpgsql as $$
    declare
        began timestamptz;
        took double precision;
        least double precision := 'infinity';
    begin
        for round in 1 .. 5 loop
            began := clock_timestamp();
            for turn in 1 .. n loop
                perform ext_report((ext_select(id, context)).ticket, 'success', 1);
            end loop;
            took := extract(epoch from clock_timestamp() - began) * 1e6 / n;
            least := least(least, took);
        end loop;
        return least;
    end $$";

async fn prepared(database: &Database<'_>) -> Session {
    let session = database.connect().await;
    session.run(COST).await;
    session
        .run(
            r#"insert into extensions (id, type, subject) values ('one', 'pre', 'one.v1');
               insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
               values ('one', 'v2', 'one.v2', 100, 0, '{"tenant_id": ["t1"]}');
               insert into extension_instances (extension_id, instance_id, subject) values ('one', 'a', 'one.v2')"#,
        )
        .await;
    session
}

async fn cost(session: &Session, id: &str, tenant: &str, times: i32) -> f64 {
    session
        .query_one("select cost($1, $2, $3)", &[&id, &json!({"tenant_id": tenant}), &times])
        .await
        .expect("a cost")
        .get(0)
}

#[track_caller]
fn assert_times(what: &str, cost: f64, of_one: f64, most: f64) {
    let times = cost / of_one;
    println!("{what}: {cost:.1} us, {times:.1} x {of_one:.1} us");
    assert!(
        times < most,
        "{what} costs {times:.1} times as much, {cost:.1} us instead of {of_one:.1} us"
    );
}

/// The least time of `rounds` tries, in microseconds.
async fn least(rounds: usize, mut run: impl AsyncFnMut(usize) -> Duration) -> f64 {
    let mut least = Duration::MAX;
    for round in 0..rounds {
        least = least.min(run(round).await);
    }
    least.as_secs_f64() * 1e6
}

async fn first_decision(database: &Database<'_>, id: &str) -> Duration {
    let session = database.connect().await;
    let began = Instant::now();
    session.run(&format!("select * from ext_select('{id}')")).await;
    began.elapsed()
}

async fn timed(session: &Session, sql: &str) -> Duration {
    let began = Instant::now();
    session.run(sql).await;
    began.elapsed()
}

#[tokio::test]
async fn a_hundred_thousand_extensions() {
    const MANY: i64 = 100_000;
    let cluster = Postgres::start(&[
        // Fewer places than extensions in use: those without one are decided all the same.
        "ext_registry.max_targets = 4096",
        "max_wal_size = '4GB'",
    ]);
    let (small, large) = (cluster.database(), cluster.database());
    let (one, session) = (prepared(&small).await, prepared(&large).await);
    let began = Instant::now();
    session
        .run(
            "insert into extensions (id, type, subject, config)
             select 'e' || n, (array['pre', 'validator', 'provider', 'post'])[1 + n % 4], 'e' || n, '{\"n\": 0}'
             from generate_series(1, 100000) n;
             analyze",
        )
        .await;
    println!("100,000 rows inserted: {:.1} s", began.elapsed().as_secs_f64());

    // A new session's first decision, each time of another extension.
    let of_one = least(7, async |_| first_decision(&small, "one").await).await;
    let first = least(7, async |round| {
        first_decision(&large, &format!("e{}", 999 * (round + 1))).await
    })
    .await;
    assert_times("first decision of a new session among 100,000", first, of_one, 20.0);

    // Warm: as among one. (Both with versions, rules and instances.)
    let of_one = cost(&one, "one", "t1", 2000).await;
    let among = cost(&session, "one", "t1", 2000).await;
    assert_times("a call, warm, among 100,000", among, of_one, 5.0);

    // After one UPDATE elsewhere a session reads what has changed and nothing else: a thousand decisions of a thousand
    // extensions take as long as before.
    let editor = large.connect().await;
    let thousand = "select count(*) filter (where d.allowed)::text
                    from ext_select_many(array(select 'e' || n from generate_series(1, 1000) n), array_fill('{}'::jsonb, array[1000])) d";
    assert_eq!(session.one(thousand, &[]).await, "1000");
    let usual = least(10, async |_| timed(&session, thousand).await).await;
    let after = least(10, async |round| {
        editor
            .run(&format!(
                "update extensions set config = '{{\"n\": {round}}}' where id = 'e{}'",
                100 * round + 1
            ))
            .await;
        timed(&session, thousand).await
    })
    .await;
    assert_times("1,000 decisions after an UPDATE of one of 100,000", after, usual, 5.0);
    assert_eq!(session.select("e901", &json!({})).await.config, Some(json!({"n": 9})));
    // And a decision on what has changed is no worse than the first one ever.
    let changed = least(10, async |round| {
        editor
            .run(&format!(
                "update extensions set config = '{{\"n\": -{round}}}' where id = 'e501'"
            ))
            .await;
        timed(&session, "select * from ext_select('e501')").await
    })
    .await;
    assert_times("the decision on what has changed", changed, first, 10.0);

    // A session remembers what it has used, within bounds.
    let user = large.connect().await;
    let pid = user.backend_pid().await;
    user.run("select * from ext_select('e1')").await;
    let before = anonymous_kb(pid);
    let used = async |from: i64, to: i64| {
        let sql = "select count(*) filter (where (ext_select('e' || n)).allowed)::text from generate_series($1::bigint, $2) n";
        assert_eq!(user.one(sql, &[&from, &to]).await, (to - from + 1).to_string());
        anonymous_kb(pid) - before
    };
    let twenty_thousand = used(1, 20_000).await;
    let again = used(1, 20_000).await;
    let all = used(20_001, MANY).await;
    println!(
        "a session that has used 20,000: {twenty_thousand} kB more, used again: {again} kB; all 100,000: {all} kB"
    );
    assert!(twenty_thousand < SESSION_KB, "{twenty_thousand} kB for 20,000");
    assert!(again < SESSION_KB, "{again} kB for the same 20,000 again");
    assert!(all < SESSION_KB, "{all} kB for 100,000");

    // What people look at still answers, and what asks for one row does not read all.
    session.run("set statement_timeout = '30s'").await;
    for (sql, wanted) in [
        ("select total from ext_registry_status()", MANY + 1),
        (
            "select (extensions_by_type ->> 'post')::bigint from ext_registry_status()",
            MANY / 4,
        ),
        ("select count(circuit_breaker_state) from extension_health", MANY + 1),
        ("select count(*) from extension_version_health", MANY + 2),
        ("select total::bigint from ext_health_summary()", MANY + 1),
        ("select count(*) from ext_health_all()", MANY + 1),
        ("select count(*) from ext_top", MANY + 1),
        ("select count(*) from ext_advice()", 0),
        (
            "select count(*) from ext_restore('e77', now()) d where d ->> 'id' = 'e77'",
            1,
        ),
        ("select count(*) from ext_lookup_by_type('post')", MANY / 4),
        (
            "select jsonb_array_length(ext_export() -> 'extensions')::bigint",
            MANY + 1,
        ),
    ] {
        let began = Instant::now();
        let answer: i64 = session
            .query_one(sql, &[])
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .get(0);
        println!("{sql}: {answer} in {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(answer, wanted, "{sql}");
    }
    for sql in [
        "select * from extension_health where extension_id = 'one'",
        "select * from extension_version_health where extension_id = 'one'",
        "select * from extension_instance_health where extension_id = 'one'",
        "select * from ext_lookup('one')",
        "select * from ext_health('one')",
        "select * from ext_versions('one')",
        "select * from ext_explain('one')",
        "select ext_breaker_reset('one')",
        "update extension_health set slow_call_ms = 5 where extension_id = 'one'",
        "update extensions set timeout_ms = 77 where id = 'one'",
    ] {
        let of_one = least(10, async |_| timed(&one, sql).await).await;
        let among = least(10, async |_| timed(&session, sql).await).await;
        assert_times(sql, among, of_one, 20.0);
    }

    // Shared memory was full all the while: so much the status says, and the log, once a minute.
    let untracked: i64 = session
        .query_one("select untracked_targets from ext_registry_status()", &[])
        .await
        .expect("the status")
        .get(0);
    assert!(untracked > 0, "4096 places for 100,000 extensions");
    let warnings = cluster.log().matches("raise ext_registry.max_targets").count() as u64;
    let minutes = began.elapsed().as_secs() / 60;
    assert!(
        (1..=minutes + 1).contains(&warnings),
        "{warnings} warnings in {minutes} minutes"
    );
}

#[tokio::test]
async fn a_thousand_versions_and_ten_thousand_tenants() {
    let database = Postgres::shared().database();
    let session = prepared(&database).await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('versions', 'pre', 's'), ('tenants', 'pre', 's');
             insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
             select 'versions', 'v' || n, 's' || n, 100, 0, jsonb_build_object('tenant_id', array['t' || n])
             from generate_series(2, 1001) n;
             insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules)
             select 'tenants', 'v2', 's2', 100, 0, jsonb_build_object('tenant_id', array_agg('t' || n))
             from generate_series(1, 10000) n",
        )
        .await;
    // Everybody gets what is theirs.
    let wrong = "select count(*)::text || ' ' || count(*) filter (where d.subject is distinct from case when n between 2 and 1001 then 's' || n else 's' end)
                 from generate_series(0, 1100) n, lateral ext_select('versions', jsonb_build_object('tenant_id', 't' || n)) d";
    assert_eq!(session.one(wrong, &[]).await, "1101 0");
    let wrong = "select count(*)::text || ' ' || count(*) filter (where d.version <> case when n between 1 and 10000 then 'v2' else 'v1' end)
                 from generate_series(0, 10100) n, lateral ext_select('tenants', jsonb_build_object('tenant_id', 't' || n)) d";
    assert_eq!(session.one(wrong, &[]).await, "10101 0");

    let of_one = cost(&session, "one", "t1", 2000).await;
    // Among tenants by a hash, whether first, last or none of them; versions are looked at one by one.
    for tenant in ["t1", "t5000", "t10000", "nobody"] {
        let among = cost(&session, "tenants", tenant, 2000).await;
        assert_times(
            &format!("a call of {tenant} by a rule with 10,000 tenants"),
            among,
            of_one,
            20.0,
        );
    }
    for tenant in ["t1001", "t500", "t2", "nobody"] {
        let among = cost(&session, "versions", tenant, 200).await;
        assert_times(
            &format!("a call of {tenant} among 1,000 versions"),
            among,
            of_one,
            200.0,
        );
    }
    let first = least(5, async |_| first_decision(&database, "tenants").await).await;
    let of_one = least(5, async |_| first_decision(&database, "one").await).await;
    println!("first decision of a session by a rule with 10,000 tenants: {first:.0} us, with one: {of_one:.0} us");

    let explained = "select count(*)::text || ' ' || count(*) filter (where verdict = 'chosen')
                     from ext_explain('versions', '{\"tenant_id\": \"t700\"}') where stage = 'version'";
    assert_eq!(session.one(explained, &[]).await, "1001 1");
    let shown =
        "select count(circuit_breaker_state)::text from extension_version_health where extension_id = 'versions'";
    assert_eq!(session.one(shown, &[]).await, "1001");
    // The breaker of one among a thousand.
    session
        .call("versions", &json!({"tenant_id": "t700"}), "error", 5)
        .await;
    let open = "select open_versions::text from extension_health where extension_id = 'versions'";
    assert_eq!(session.one(open, &[]).await, "{v700}");
    assert_eq!(
        session.select_for("versions", "t700").await.reason,
        "extension_circuit_open"
    );
    assert_eq!(session.select_for("versions", "t701").await.reason, "ok");
}

#[tokio::test]
async fn ten_thousand_instances() {
    const MANY: i64 = 10_000;
    let cluster = Postgres::start(&["ext_registry.max_targets = 16384"]);
    let database = cluster.database();
    let session = prepared(&database).await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 's');
             insert into extension_instances (extension_id, instance_id, subject, weight)
             select 'x', 'i' || n, 's', 1 + n % 11 from generate_series(1, 10000) n;
             set statement_timeout = '30s'",
        )
        .await;
    let began = Instant::now();
    session.select("x", &json!({})).await;
    println!(
        "the first decision of a cycle over 10,000 instances: {:.0} ms",
        began.elapsed().as_secs_f64() * 1e3
    );

    // Turns of the cycle, each reported: who had how many.
    session
        .run("create table picks (instance_id text, n bigint); create index on picks (instance_id)")
        .await;
    let turns = async |from: i64, to: i64| {
        let sql = "with called as materialized (
                       select d.instance_id, ext_report(d.ticket, 'success', 1)
                       from generate_series($1::bigint, $2) n, lateral ext_select('x', jsonb_build_object('n', n)) d
                   )
                   insert into picks select instance_id, count(*) from called group by 1";
        session.execute(sql, &[&from, &to]).await.expect("decisions");
    };
    // The distance from the share after so many turns, for the one that is farthest from it.
    let farthest = async |turns: i64| -> f64 {
        let sql = "with shares as (
                       select instance_id, weight::float8 * $1 / sum(weight) over () as share from extension_instances
                       where extension_id = 'x'
                   ), picked as (select instance_id, sum(n)::float8 as picked from picks group by 1)
                   select max(abs(coalesce(picked, 0) - share)) from shares left join picked using (instance_id)";
        session
            .query_one(sql, &[&(turns as f64)])
            .await
            .expect("a distance")
            .get(0)
    };
    let cycle: i64 = session
        .query_one(
            "select sum(weight) from extension_instances where extension_id = 'x'",
            &[],
        )
        .await
        .expect("a sum")
        .get(0);
    // (One turn was taken already.)
    session
        .run("insert into picks select instance_id, 1 from extension_instance_health where extension_id = 'x' and in_flight = 1")
        .await;
    let mut done = 1;
    for end in [100, 5_000, 17_777, 40_000, cycle] {
        turns(done + 1, end).await;
        done = end;
        let off = farthest(done).await;
        println!("{done} turns of a cycle of {cycle}: the farthest is {off:.3} picks from its share");
        assert!(off <= 1.0, "{off} picks off after {done} turns");
    }
    assert!(farthest(cycle).await < 1e-6, "a whole cycle is exact");

    // What was tried is avoided, while there is another.
    for (tried, calls) in [(3, 500), (9_999, 3)] {
        let avoiding = format!(
            "with tried as (select array_agg('i' || i) as list from generate_series(1, {tried}) i)
             select count(*)::text from tried, generate_series(1, {calls}) n,
                 lateral ext_select('x', jsonb_build_object('n', n), tried.list) d
             where d.allowed and d.instance_id <> all (tried.list)"
        );
        let began = Instant::now();
        assert_eq!(session.one(&avoiding, &[]).await, calls.to_string(), "{tried} tried");
        let each = began.elapsed().as_secs_f64() * 1e3 / f64::from(calls);
        println!("a decision that avoids {tried} of 10,000 instances: {each:.2} ms");
    }
    let of_one = cost(&session, "one", "t1", 1000).await;
    let among = cost(&session, "x", "t1", 1000).await;
    assert_times("a call among 10,000 instances", among, of_one, 20.0);

    for (balancing, most) in [
        ("round_robin", 20.0),
        ("least_latency", 20.0),
        ("consistent_hash", 100_000.0),
    ] {
        session
            .run(&format!(
                "update extensions set balancing = '{balancing}', hash_key = 'tenant_id' where id = 'x'"
            ))
            .await;
        let among = cost(&session, "x", "t1", 20).await;
        assert_times(
            &format!("a call among 10,000 instances, {balancing}"),
            among,
            of_one,
            most,
        );
    }
    let explained = "select count(*)::text from ext_explain('x', '{\"tenant_id\": \"t\"}') where stage = 'instance'";
    assert_eq!(session.one(explained, &[]).await, MANY.to_string());
    let shown = "select count(*)::text from extension_instance_health where extension_id = 'x'";
    assert_eq!(session.one(shown, &[]).await, MANY.to_string());
}
