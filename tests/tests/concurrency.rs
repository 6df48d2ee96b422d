//! Many sessions at once: registry edits racing decisions, a crowd before a half-open breaker, one cycle of turns for all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use ext_registry_tests::{Database, Postgres, Session, eventually};
use futures_util::future::{join_all, try_join_all};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

/// How long races run: 10 s, or as many seconds as `RACE_SECONDS` says.
fn race_time() -> Duration {
    let seconds = std::env::var("RACE_SECONDS").map_or(10, |text| text.parse().expect("RACE_SECONDS is a number"));
    Duration::from_secs(seconds)
}

async fn connect(database: &Database<'_>, number: usize) -> Vec<Session> {
    let mut sessions = Vec::new();
    for _ in 0..number {
        sessions.push(database.connect().await);
    }
    sessions
}

/// Runs one task a session, truly at once, and returns what they return.
async fn at_once<T, F>(sessions: Vec<Session>, work: impl Fn(usize, Session) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks = sessions
        .into_iter()
        .enumerate()
        .map(|(number, session)| tokio::spawn(work(number, session)));
    try_join_all(tasks).await.expect("no task panics")
}

const CONTESTED: usize = 4;

/// What is known of the edits of one extension. Numbers rise from edit to edit; those of edits that are undone are odd.
#[derive(Default)]
struct Edits {
    last: AtomicI64,
    /// The highest number whose COMMIT has returned.
    committed: AtomicI64,
    done: AtomicI64,
}

impl Edits {
    fn next(&self, kept: bool) -> i64 {
        // Called by whoever has the row locked, so nobody else draws a number of this extension meanwhile.
        let next = self.last.load(SeqCst) + 1;
        let next = if (next % 2 == 0) == kept { next } else { next + 1 };
        self.last.store(next, SeqCst);
        next
    }

    fn keep(&self, number: i64) {
        self.committed.fetch_max(number, SeqCst);
        self.done.fetch_add(1, SeqCst);
    }
}

#[derive(Default)]
struct Race {
    edits: [Edits; CONTESTED],
    over: AtomicBool,
    decisions: AtomicUsize,
}

impl Race {
    fn is_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    fn floors(&self) -> [i64; CONTESTED] {
        std::array::from_fn(|which| self.edits[which].committed.load(SeqCst))
    }

    /// Judges decisions, one for each extension, that began when `floors` had been committed.
    #[track_caller]
    fn judge(&self, floors: [i64; CONTESTED], seen: &[[i64; 3]], whose: &str) {
        assert_eq!(seen.len(), CONTESTED);
        for (which, parts) in seen.iter().enumerate() {
            let [number, ..] = *parts;
            assert!(
                parts.iter().all(|part| *part == number),
                "half an edit of x{which}, by {whose}: {parts:?} after {}",
                floors[which]
            );
            assert!(
                number % 2 == 0,
                "dirty: {number} of x{which} was never committed, by {whose}"
            );
            assert!(
                number >= floors[which],
                "stale: {number} of x{which} after the COMMIT of {} had returned, by {whose}",
                floors[which]
            );
        }
        self.decisions.fetch_add(seen.len(), SeqCst);
    }
}

/// Changes all tables that a decision reads, to one number.
fn edit(which: usize, number: i64) -> String {
    let timeout = 10 + number % 290_000;
    format!(
        "update extension_instances set subject = 'x.i{number}' where extension_id = 'x{which}';
         update extensions set retry = retry, metadata = '{{\"n\": {number}}}', subject = 'x.e{number}' where id = 'x{which}';
         update extension_versions set config = '{{\"n\": {number}}}', timeout_ms = {timeout} where id = 'x{which}'"
    )
}

/// The numbers that the parts of a decision show: the version's config, its timeout, the instance's subject. None is -1.
fn parts(row: &tokio_postgres::Row) -> [i64; 3] {
    ["config", "timeout", "instance"].map(|name| row.get::<_, Option<i64>>(name).unwrap_or(-1))
}

const COLUMNS: &str = "(config ->> 'n')::bigint as config, substring(subject from '^x.i([0-9]+)$')::bigint as instance,
     case when (config ->> 'n')::bigint % 290000 = timeout_ms - 10 then (config ->> 'n')::bigint else -timeout_ms end as timeout";

/// Who changes the registry, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    Commits,
    /// In two phases, the second now and then by another session.
    Prepares,
    RollsBack,
    UsesSavepoints,
    /// REPEATABLE READ and SERIALIZABLE.
    HasOldSnapshots,
    Truncates,
    /// VACUUM FULL, CLUSTER, ALTER TABLE.
    Maintains,
}

async fn write(race: &Race, session: &Session, other: &Session, kind: Writer, turn: usize) {
    match kind {
        Writer::HasOldSnapshots => return write_by_an_old_snapshot(race, session, turn).await,
        Writer::Truncates => return truncate(race, session, turn).await,
        Writer::Maintains => return maintain(session, turn).await,
        _ => {}
    }
    let which = (turn + kind as usize) % CONTESTED;
    let edits = &race.edits[which];
    session
        .run(&format!(
            "begin; select from extensions where id = 'x{which}' for update"
        ))
        .await;
    // What the transaction itself decides by.
    let own = async |number: i64| {
        let sql = format!("select {COLUMNS} from ext_select('x{which}')");
        let row = session.query_one(&sql, &[]).await.expect("a decision");
        assert_eq!(parts(&row), [number; 3], "own changes");
    };
    match kind {
        Writer::Commits => {
            let number = edits.next(true);
            session.run(&edit(which, number)).await;
            session.run("commit").await;
            edits.keep(number);
        }
        Writer::Prepares => {
            let number = edits.next(true);
            session.run(&edit(which, number)).await;
            own(number).await;
            let name = format!("edit{which}");
            session.run(&format!("prepare transaction '{name}'")).await;
            let ends = if turn.is_multiple_of(3) { other } else { session };
            ends.run(&format!("commit prepared '{name}'")).await;
            edits.keep(number);
        }
        Writer::RollsBack => {
            let number = edits.next(false);
            session.run(&edit(which, number)).await;
            own(number).await;
            let end = if turn.is_multiple_of(3) {
                format!("prepare transaction 'undo{which}'; rollback prepared 'undo{which}'")
            } else {
                "rollback".to_owned()
            };
            for statement in end.split("; ") {
                session.run(statement).await;
            }
        }
        _ => {
            let undone = edits.next(false);
            session.run(&format!("savepoint s; {}", edit(which, undone))).await;
            own(undone).await;
            session.run("rollback to s").await;
            let number = edits.next(true);
            session
                .run(&format!("savepoint t; {}; release t", edit(which, number)))
                .await;
            own(number).await;
            session.run("commit").await;
            edits.keep(number);
        }
    }
}

/// REPEATABLE READ and SERIALIZABLE writers, who may come too late: then everything is undone.
async fn write_by_an_old_snapshot(race: &Race, session: &Session, turn: usize) {
    let which = turn % CONTESTED;
    let edits = &race.edits[which];
    let isolation = ["repeatable read", "serializable"][turn / CONTESTED % 2];
    let lock = format!("begin isolation level {isolation}; select from extensions where id = 'x{which}' for update");
    if too_late(session.batch_execute(&lock).await) {
        return session.run("rollback").await;
    }
    let kept = turn.is_multiple_of(2);
    let number = edits.next(kept);
    if too_late(session.batch_execute(&edit(which, number)).await) {
        return session.run("rollback").await;
    }
    let row = session
        .query_one(&format!("select {COLUMNS} from ext_select('x{which}')"), &[])
        .await
        .expect("a decision");
    assert_eq!(parts(&row), [number; 3], "own changes in {isolation}");
    if kept {
        session.run("commit").await;
        edits.keep(number);
    } else {
        session.run("rollback").await;
    }
}

/// Whether the transaction has to be tried again. Any other error fails the test.
fn too_late(result: Result<(), tokio_postgres::Error>) -> bool {
    match result {
        Ok(()) => false,
        Err(error) => {
            let code = error.code().map(|code| code.code().to_owned());
            assert!(matches!(code.as_deref(), Some("40001" | "40P01")), "{error:?}");
            true
        }
    }
}

/// Empties versions and instances of all, and fills them again; undone now and then.
async fn truncate(race: &Race, session: &Session, turn: usize) {
    let kept = !turn.is_multiple_of(3);
    session
        .run("begin; select from extensions order by id for update")
        .await;
    let truncated = session
        .batch_execute("truncate extension_instances, extension_versions")
        .await;
    if too_late(truncated) {
        return session.run("rollback").await;
    }
    // Nothing is left to decide by but the rows themselves, for this transaction alone.
    let none = session
        .one(
            "select string_agg(subject, ' ' order by subject)::text from ext_select_many(array['x0', 'x1', 'x2', 'x3'],
                   array['{}', '{}', '{}', '{}']::jsonb[])",
            &[],
        )
        .await;
    assert!(
        none.split(' ').count() == CONTESTED && none.split(' ').all(|subject| subject.starts_with("x.e")),
        "{none}"
    );
    let numbers: [i64; CONTESTED] = std::array::from_fn(|which| race.edits[which].next(kept));
    for (which, number) in numbers.iter().enumerate() {
        session
            .run(&format!(
                "insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x{which}', 'v2', 'x.v2', 10, 0);
                 insert into extension_instances (extension_id, instance_id, subject, version) values ('x{which}', 'a', 'x.i', 'v2');
                 {}",
                edit(which, *number)
            ))
            .await;
    }
    if kept {
        session.run("commit").await;
        for (edits, number) in race.edits.iter().zip(numbers) {
            edits.keep(number);
        }
    } else {
        session.run("rollback").await;
    }
}

/// What a DBA does to tables. No row changes; the new column has the table rewritten.
async fn maintain(session: &Session, turn: usize) {
    let table = ["extensions", "extension_versions", "extension_instances"][turn % 3];
    let statements = [
        format!("vacuum full {table}"),
        format!("alter table {table} add column note double precision default random()"),
        format!("cluster {table} using {table}_pkey"),
        format!("alter table {table} drop column note"),
        format!("analyze {table}"),
    ];
    for statement in statements {
        // Against two others a deadlock is possible; whoever is chosen tries again.
        while too_late(session.batch_execute(&statement).await) {}
    }
}

async fn read(race: &Race, session: &Session, kind: usize) {
    let long = [
        "",
        "",
        "begin isolation level read committed",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
    ][kind % 5];
    let many = format!(
        "select {COLUMNS} from ext_select_many(array['x0', 'x1', 'x2', 'x3'], array['{{}}', '{{}}', '{{}}', '{{}}']::jsonb[])
         order by ordinality"
    );
    let one = session
        .prepare(&format!("select {COLUMNS} from ext_select($1)"))
        .await
        .expect("a statement");
    let many = session.prepare(&many).await.expect("a statement");
    while race.is_on() {
        if !long.is_empty() {
            session.run(long).await;
            session.run("select count(*) from pg_class").await;
        }
        for _ in 0..50 {
            let floors = race.floors();
            let rows = if kind.is_multiple_of(2) {
                session.query(&many, &[]).await.expect("decisions")
            } else {
                let mut rows = Vec::new();
                for which in 0..CONTESTED {
                    rows.push(
                        session
                            .query_one(&one, &[&format!("x{which}")])
                            .await
                            .expect("a decision"),
                    );
                }
                rows
            };
            let seen: Vec<_> = rows.iter().map(parts).collect();
            race.judge(floors, &seen, &format!("reader {kind} in `{long}`"));
        }
        if !long.is_empty() {
            session.run("commit").await;
        }
    }
}

/// 16 sessions at once: these writers, and readers of every kind.
async fn race(writers: &'static [Writer]) {
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject, metadata)
             select 'x' || n, 'pre', 'x.e0', '{\"n\": 0}' from generate_series(0, 3) n;
             insert into extension_versions (id, version, subject, timeout_ms, retry, config)
             select id, 'v2', 'x.v2', 10, 0, '{\"n\": 0}' from extensions;
             insert into extension_instances (extension_id, instance_id, subject, version)
             select id, 'a', 'x.i0', 'v2' from extensions",
        )
        .await;
    let race = Arc::new(Race::default());
    // And one that commits what others have prepared.
    let other = Arc::new(database.connect().await);
    let sessions = connect(&database, 16).await;
    let over = Arc::clone(&race);
    let clock = tokio::spawn(async move {
        tokio::time::sleep(race_time()).await;
        over.over.store(true, SeqCst);
    });
    at_once(sessions, |number, session| {
        let (race, other) = (Arc::clone(&race), Arc::clone(&other));
        async move {
            if let Some(writer) = writers.get(number) {
                for turn in 0.. {
                    if !race.is_on() {
                        break;
                    }
                    write(&race, &session, &other, *writer, turn).await;
                }
            } else {
                read(&race, &session, number - writers.len()).await;
            }
        }
    })
    .await;
    clock.await.expect("the clock");
    let (decisions, edits): (usize, i64) = (
        race.decisions.load(SeqCst),
        race.edits.iter().map(|edits| edits.done.load(SeqCst)).sum(),
    );
    println!("{decisions} decisions against {edits} edits");
    assert!(
        decisions > 1000 && edits > 50,
        "{decisions} decisions, {edits} edits: no race"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn edits_race_decisions_without_a_stale_or_dirty_one() {
    race(&[
        Writer::Commits,
        Writer::Prepares,
        Writer::RollsBack,
        Writer::UsesSavepoints,
        Writer::HasOldSnapshots,
        Writer::Truncates,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn edits_and_maintenance_race_decisions() {
    race(&[
        Writer::Commits,
        Writer::Prepares,
        Writer::RollsBack,
        Writer::HasOldSnapshots,
        Writer::UsesSavepoints,
        Writer::Maintains,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn truncates_and_maintenance_race_decisions() {
    race(&[
        Writer::Commits,
        Writer::Prepares,
        Writer::UsesSavepoints,
        Writer::HasOldSnapshots,
        Writer::Truncates,
        Writer::Maintains,
    ])
    .await;
}

/// An extension x whose breaker is open and probes after a second, three at once.
async fn half_opened(database: &Database<'_>, session: &Session) {
    session
        .run(
            "insert into extensions (id, type, subject, timeout_ms) values ('x', 'pre', 'x.v1', 30000);
             update extension_health set circuit_breaker_timeout_seconds = 1 where extension_id = 'x'",
        )
        .await;
    open_until_probes_are_due(database, session).await;
}

/// Opens the breaker and waits until its time is over, without a decision.
async fn open_until_probes_are_due(database: &Database<'_>, session: &Session) {
    session.call("x", &json!({}), "error", 5).await;
    assert_eq!(session.breaker("x").await, "open", "in {}", database.name());
    eventually(SOON, async || {
        let sql = "select coalesce(retry_after_ms, 0)::text from extension_version_health where extension_id = 'x'";
        match session.one(sql, &[]).await.as_str() {
            "0" | "1" => Ok(()),
            left => Err(left.to_owned()),
        }
    })
    .await;
}

/// Every session asks several times, all at once; the tickets of the probes.
async fn storm(sessions: &[Session]) -> Vec<i64> {
    let asked = join_all(sessions.iter().map(async |session| {
        let mut probes = Vec::new();
        for _ in 0..3 {
            let decision = session.select("x", &json!({})).await;
            if decision.allowed {
                assert_eq!(decision.reason, "probe", "{decision:?}");
                probes.push(decision.ticket);
            } else {
                assert_eq!(decision.reason, "extension_circuit_open", "{decision:?}");
                assert!(decision.retry_after_ms.is_some_and(|ms| ms >= 1), "{decision:?}");
            }
        }
        probes
    }));
    asked.await.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_before_a_half_open_breaker_gets_three_probes() {
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let session = database.connect().await;
    let crowd = connect(&database, 64).await;
    half_opened(&database, &session).await;

    let mut probes = storm(&crowd).await;
    assert_eq!(probes.len(), 3, "of 64 sessions at once");
    let leases = "select half_open_requests_count::text from extension_health";
    assert_eq!(session.one(leases, &[]).await, "3");

    // A success frees no place for a further probe: three in all are needed, and three are sent.
    for left in [2, 1] {
        let probe = probes.pop().expect("a probe");
        session.report(probe, "success", Duration::from_millis(1)).await;
        assert_eq!(session.breaker("x").await, "half_open", "{left} to come");
        assert_eq!(storm(&crowd).await, [0_i64; 0], "{left} to come");
    }
    // A call that was given up does: its place is free again, for one.
    let probe = probes.pop().expect("the last probe");
    session.report(probe, "cancelled", Duration::from_millis(1)).await;
    let again = storm(&crowd).await;
    assert_eq!(again.len(), 1, "the place of the one given up");
    session.report(again[0], "success", Duration::from_millis(1)).await;
    assert_eq!(session.breaker("x").await, "closed");

    // One failure among them opens it again; what the others report then changes nothing.
    open_until_probes_are_due(&database, &session).await;
    let probes = storm(&crowd).await;
    assert_eq!(probes.len(), 3);
    for (probe, outcome) in probes.iter().zip(["success", "error", "success"]) {
        session.report(*probe, outcome, Duration::from_millis(1)).await;
    }
    assert_eq!(session.breaker("x").await, "open");
}

/// Sessions decide and report as they like; whenever it is half-open, no more than three calls are under way, and every
/// closing has three successes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_crowd_exceeds_the_probes() {
    const PROBES: i64 = 3;
    const CYCLES: usize = 3;
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let session = database.connect().await;
    half_opened(&database, &session).await;
    let live = Arc::new(AtomicI64::new(0));
    let most = Arc::new(AtomicI64::new(0));
    let good = Arc::new(AtomicI64::new(0));
    let crowd = connect(&database, 64).await;
    let mut crowd = crowd.into_iter().map(Arc::new).collect::<Vec<_>>();
    for cycle in 0..CYCLES {
        let successes = Arc::new(AtomicI64::new(0));
        let tasks = crowd.iter().enumerate().map(|(number, session)| {
            let (session, live, most) = (Arc::clone(session), Arc::clone(&live), Arc::clone(&most));
            let (successes, good) = (Arc::clone(&successes), Arc::clone(&good));
            tokio::spawn(async move {
                let deadline = Instant::now() + SOON;
                for turn in 0.. {
                    assert!(Instant::now() < deadline, "cycle {cycle}: still not closed");
                    let decision = session.select("x", &json!({})).await;
                    if decision.reason == "ok" {
                        session
                            .report(decision.ticket, "success", Duration::from_millis(1))
                            .await;
                        return;
                    }
                    if decision.reason != "probe" {
                        continue;
                    }
                    most.fetch_max(live.fetch_add(1, SeqCst) + 1, SeqCst);
                    tokio::task::yield_now().await;
                    live.fetch_sub(1, SeqCst);
                    // Some give up, so that places are taken again and again.
                    let outcome = if (number + turn) % 3 == 0 {
                        "success"
                    } else {
                        "cancelled"
                    };
                    if outcome == "success" {
                        successes.fetch_add(1, SeqCst);
                        good.fetch_add(1, SeqCst);
                    }
                    session.report(decision.ticket, outcome, Duration::from_millis(1)).await;
                }
            })
        });
        try_join_all(tasks).await.expect("no task panics");
        assert_eq!(
            successes.load(SeqCst),
            PROBES,
            "cycle {cycle}: successes until it closed"
        );
        if cycle + 1 < CYCLES {
            session.run("select ext_breaker_reset('x')").await;
            open_until_probes_are_due(&database, &session).await;
        }
    }
    assert!(most.load(SeqCst) <= PROBES, "{} probes at once", most.load(SeqCst));
    crowd.clear();

    // Each transition happened once.
    let events = "select string_agg(left(from_state, 1) || left(to_state, 1) , ' ' order by id)
                  from extension_breaker_events where reason <> 'reset'";
    let wanted = ["co oh hc"; CYCLES].join(" ");
    eventually(SOON, async || {
        let events = session.one(events, &[]).await;
        if events == wanted { Ok(()) } else { Err(events) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_share_one_exact_cycle() {
    const EACH: usize = 97;
    let cluster = Postgres::start(&[]);
    let database = cluster.database();
    let session = database.connect().await;
    for (number, weights) in [&[50, 30, 20][..], &[7, 3, 1], &[100, 100, 100], &[1, 1, 1, 1], &[99, 1]]
        .into_iter()
        .enumerate()
    {
        let id = format!("x{number}");
        session
            .run(&format!(
                "insert into extensions (id, type, subject) values ('{id}', 'pre', 's')"
            ))
            .await;
        for (instance, weight) in weights.iter().enumerate() {
            session
                .run(&format!(
                    "insert into extension_instances (extension_id, instance_id, subject, weight)
                     values ('{id}', 'i{instance}', 's', {weight})"
                ))
                .await;
        }
        let picked = at_once(connect(&database, 8).await, |_, session| {
            let id = id.clone();
            async move {
                let mut picked = BTreeMap::<String, usize>::new();
                for _ in 0..EACH {
                    let decision = session.select(&id, &json!({})).await;
                    *picked.entry(decision.instance().to_owned()).or_default() += 1;
                }
                picked
            }
        })
        .await;
        let total: i32 = weights.iter().sum();
        for (instance, weight) in weights.iter().enumerate() {
            let name = format!("i{instance}");
            let count: usize = picked
                .iter()
                .map(|picked| picked.get(&name).copied().unwrap_or(0))
                .sum();
            let share = (8 * EACH) as f64 * f64::from(*weight) / f64::from(total);
            assert!(
                (count as f64 - share).abs() <= 1.0,
                "{weights:?}: {count} of {name}, its share is {share}"
            );
        }
    }
}

#[tokio::test]
async fn changes_do_not_restart_the_cycle() {
    const CHANGES: i32 = 60;
    let database = Postgres::shared().database();
    let sessions = connect(&database, 4).await;
    sessions[0]
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 's');
             insert into extension_instances (extension_id, instance_id, subject)
             select 'x', 'i' || n, 's' from generate_series(0, 2) n",
        )
        .await;
    let mut picked = [0_i32; 3];
    for change in 0..CHANGES {
        // All three stay equal; what else the weight is changes.
        sessions[0]
            .run(&format!("update extension_instances set weight = {}", 40 + change))
            .await;
        // One pick in each session, of which each has read the change anew.
        for session in &sessions {
            let decision = session.select("x", &json!({})).await;
            picked[decision.instance()[1..].parse::<usize>().expect("a number")] += 1;
        }
    }
    let share = CHANGES * 4 / 3;
    assert!(
        picked.iter().all(|count| (count - share).abs() <= share / 5),
        "{picked:?}, each should have about {share}"
    );
}
