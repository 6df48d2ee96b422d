//! Each trap that stops bridges of this kind: what is slow, stuck, lost or bad stays alone with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::{Client, Message};
use ext_registry_tests::process::Directory;
use ext_registry_tests::proxy::Flow;
use ext_registry_tests::{Bridge, Caller, Database, Nats, Postgres, Proxy, Services, Session, eventually, wait_until};
use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(40);
/// What waits for a decision to the end waits longer than this.
const A_WAIT: Duration = Duration::from_millis(240);
/// An extension whose service answers, and one that tests make hang.
const WELL: &str = "normalize_text";
const SICK: &str = "pii_guard";
/// What the bridge's connections for decisions and for outcomes have said, and no other.
const DECISIONS: &str = "ext_select_many";
const OUTCOMES: &str = "ext_report_many";

struct System {
    nats: Nats,
    database: Database<'static>,
    session: Session,
    services: Services,
    caller: Caller,
}

impl System {
    async fn start() -> Self {
        let nats = Nats::start();
        let database = Postgres::shared().database();
        database.load_fixtures();
        let session = database.connect().await;
        // Breakers must not hide what is tested, nor a busy machine turn answers into timeouts.
        session
            .run(
                "update extensions set timeout_ms = 5000, retry = 0;
                 update extension_health set breaker_mode = 'metrics_only'",
            )
            .await;
        let services = Services::start(&nats, &[]).await;
        let caller = Caller::new(&nats).await;
        Self {
            nats,
            database,
            session,
            services,
            caller,
        }
    }

    /// A bridge whose way to Postgres can be held up, with its connections for decisions and outcomes made.
    async fn bridge_by_proxy(&self, flags: &[&str]) -> (Bridge, Proxy) {
        let proxy = Proxy::to(self.database.cluster().port());
        let port = proxy.port().to_string();
        let bridge = Bridge::start(&self.nats, &self.database, &[&["--db-port", &port], flags].concat());
        assert_eq!(self.call(WELL, &text()).await.code, "ok");
        self.counted(&bridge, WELL, 1).await;
        (bridge, proxy)
    }

    async fn call(&self, extension: &str, request: &Value) -> Call {
        call(&self.caller, extension, request).await
    }

    /// So many calls at the same time.
    async fn calls(&self, extension: &str, request: &Value, count: usize) -> Vec<Call> {
        join_all((0..count).map(|_| self.call(extension, request))).await
    }

    /// Waits until Postgres has counted exactly this many successes, in live state and in the history, and the bridge holds
    /// nothing back that would come later.
    async fn counted(&self, bridge: &Bridge, extension: &str, successes: u64) {
        let sql = "select format('%s successes, %s failures, %s in history', h.success_count, h.failure_count,
                       (select coalesce(sum(m.success), 0) from extension_metrics m
                        where m.extension_id = h.extension_id and m.instance_id = ''))
                   from extension_health h where h.extension_id = $1";
        let wanted = format!("{successes} successes, 0 failures, {successes} in history");
        eventually(SOON, async || {
            let (now, pending) = (self.session.one(sql, &[&extension]).await, pending(bridge));
            if now == wanted && pending == 0 {
                Ok(())
            } else {
                Err(format!("{now}, not {wanted}; {pending} pending\n{}", bridge.log()))
            }
        })
        .await;
        assert_eq!(self.session.one(sql, &[&extension]).await, wanted);
        assert_eq!(bridge.metric("ext_bridge_reports_lost_total"), Some(0.0));
    }

    /// Waits until no decision waits for its outcome.
    async fn nothing_under_way(&self) {
        let sql = "select coalesce(sum(in_flight), 0)::text from extension_version_health";
        eventually(SOON, async || match self.session.one(sql, &[]).await.as_str() {
            "0" => Ok(()),
            held => Err(held.to_owned()),
        })
        .await;
    }

    /// Changes the registry and locks it at once, before any session has read the change: whoever decides next has to wait.
    /// Until the session is rolled back or gone.
    async fn lock_changed_registry(&self) -> Session {
        let (editor, holder) = (self.database.connect().await, self.database.connect().await);
        editor
            .run("begin; update extensions set timeout_ms = timeout_ms + 1")
            .await;
        let waits = "select count(*)::text from pg_locks where mode = 'AccessExclusiveLock' and not granted
                     and relation = 'extensions'::regclass";
        let lock = holder.run("begin; lock table extensions in access exclusive mode");
        let commit = async {
            eventually(SOON, async || match self.session.one(waits, &[]).await.as_str() {
                "1" => Ok(()),
                other => Err(other.to_owned()),
            })
            .await;
            editor.run("commit").await;
        };
        tokio::join!(lock, commit);
        holder
    }
}

fn text() -> Value {
    json!({ "payload": { "text": " Hello " } })
}

/// A series that counts, whatever its labels; 0 where there is none.
fn count(bridge: &Bridge, series: &str) -> u64 {
    let metrics = bridge.metrics();
    let values = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(series)?.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().expect("a number") as u64).sum()
}

/// Outcomes that the bridge does not know to be on disk.
fn pending(bridge: &Bridge) -> u64 {
    count(bridge, "ext_bridge_reports_pending{")
}

/// Batches of decisions that Postgres refused or was too busy for.
fn refused_batches(bridge: &Bridge) -> u64 {
    count(bridge, r#"ext_bridge_batch_failures_total{kind="decide"}"#)
}

fn reconnects(bridge: &Bridge) -> u64 {
    count(bridge, r#"ext_bridge_reconnects_total{to="postgres"}"#)
}

/// Waits for that as long as it says.
async fn holds_within(time: Duration, condition: impl Fn() -> bool) -> Result<(), Duration> {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(time, wait).await.map_err(|_| time)
}

fn in_flight(bridge: &Bridge, event_loop: u64) -> u64 {
    count(bridge, &format!(r#"ext_bridge_in_flight{{loop="{event_loop}"}}"#))
}

/// What a call came to, and how long it took.
#[derive(Clone, Debug)]
struct Call {
    code: String,
    took: Duration,
}

async fn call(caller: &Caller, extension: &str, request: &Value) -> Call {
    let began = Instant::now();
    let reply = caller.invoke(extension, request).await;
    Call {
        code: reply.error().map_or("ok", |(code, _)| code).to_owned(),
        took: began.elapsed(),
    }
}

fn by_code(calls: &[Call]) -> HashMap<&str, usize> {
    let mut count = HashMap::new();
    for call in calls {
        *count.entry(call.code.as_str()).or_default() += 1;
    }
    count
}

#[track_caller]
fn none_took_longer(calls: &[Call], most: Duration) {
    let longest = calls.iter().max_by_key(|call| call.took).expect("calls");
    assert!(longest.took < most, "{longest:?}, not {most:?}");
}

/// Callers that call without a pause, until they are stopped.
struct Load {
    over: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    callers: JoinSet<Vec<Call>>,
}

impl Load {
    fn start(caller: &Caller, callers: usize) -> Self {
        let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut set = JoinSet::new();
        for _ in 0..callers {
            let (over, made, caller) = (Arc::clone(&over), Arc::clone(&made), caller.clone());
            set.spawn(async move {
                let mut calls = Vec::new();
                while !over.load(Relaxed) {
                    calls.push(call(&caller, WELL, &text()).await);
                    made.fetch_add(1, Relaxed);
                }
                calls
            });
        }
        Self {
            over,
            made,
            callers: set,
        }
    }

    async fn more(&self, calls: u64) {
        let wanted = self.made.load(Relaxed) + calls;
        eventually(SOON, async || match self.made.load(Relaxed) {
            made if made >= wanted => Ok(()),
            made => Err(made),
        })
        .await;
    }

    async fn end(self) -> Vec<Call> {
        self.over.store(true, Relaxed);
        self.callers.join_all().await.concat()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_has_to_wait_is_waited_for_until_its_timeout_and_no_longer() {
    let system = System::start().await;
    let bridge = Bridge::start(&system.nats, &system.database, &[]);
    assert_eq!(system.call(WELL, &text()).await.code, "ok");

    let lock = system.lock_changed_registry().await;
    let load = Load::start(&system.caller, 16);
    wait_until("batches have waited", SOON, || refused_batches(&bridge) >= 8);
    // What needs no decision does not wait for one.
    let unknown = json!({"tenant_id": "default", "policy_id": "none", "message": {}});
    assert_eq!(
        system.caller.route(&unknown).await.error(),
        Some(("policy_not_found", 404))
    );
    assert_eq!(system.call(WELL, &json!({})).await.code, "invalid_request");
    let held = load.end().await;
    assert_eq!(by_code(&held), HashMap::from([("registry_unavailable", held.len())]));
    none_took_longer(&held, Duration::from_secs(1));
    assert!(held.iter().all(|call| call.took >= A_WAIT), "{held:?}");
    // A deadline that is nearer counts.
    let hurried = system.calls(WELL, &json!({"payload": {}, "timeout_ms": 100}), 20).await;
    assert_eq!(by_code(&hurried), HashMap::from([("deadline_exceeded", 20)]));

    lock.run("rollback").await;
    eventually(SOON, async || match system.call(WELL, &text()).await.code.as_str() {
        "ok" => Ok(()),
        code => Err(code.to_owned()),
    })
    .await;
    let after = system.calls(WELL, &text(), 100).await;
    assert_eq!(by_code(&after), HashMap::from([("ok", 100)]));
    system.counted(&bridge, WELL, 102).await;
    system.nothing_under_way().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_that_does_not_come_is_waited_for_until_its_timeout_and_its_ticket_given_back() {
    let system = System::start().await;
    let (bridge, proxy) = system.bridge_by_proxy(&[]).await;
    for flow in [Flow::Held, Flow::AnswersHeld] {
        proxy.set(DECISIONS, flow);
        for _ in 0..4 {
            let held = system.calls(WELL, &text(), 50).await;
            assert_eq!(by_code(&held), HashMap::from([("registry_unavailable", 50)]));
            assert!(held.iter().all(|call| call.took >= A_WAIT), "{held:?}");
            none_took_longer(&held, Duration::from_secs(1));
        }
        proxy.set(DECISIONS, Flow::Open);
        eventually(SOON, async || match system.call(WELL, &text()).await.code.as_str() {
            "ok" => Ok(()),
            code => Err(code.to_owned()),
        })
        .await;
    }
    // Postgres has decided some of them after all: nobody has made those calls.
    let cancelled = "select sum(cancelled)::text from extension_metrics where instance_id = ''";
    eventually(SOON, async || match system.session.one(cancelled, &[]).await.as_str() {
        "0" => Err("none is counted as given back"),
        _ => Ok(()),
    })
    .await;
    system.nothing_under_way().await;
    system.counted(&bridge, WELL, 3).await;
    assert_eq!(system.services.served(WELL).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_somebody_else_can_decide_a_slow_decision_holds_up_its_batch_alone() {
    const CALLERS: usize = 16;
    let system = System::start().await;
    let state = Directory::new("state-", None);
    let image = state.path().join("image");
    let bridge = Bridge::start_auto(
        &system.nats,
        system.database.cluster(),
        system.database.name(),
        &["--image", image.to_str().expect("UTF-8")],
    );
    eventually(SOON, async || {
        bridge
            .metric("ext_bridge_image_age_seconds")
            .ok_or_else(|| bridge.log())
    })
    .await;
    assert_eq!(system.call(WELL, &text()).await.code, "ok");

    let lock = system.lock_changed_registry().await;
    let (load, began) = (Load::start(&system.caller, CALLERS), Instant::now());
    wait_until("batches have waited", SOON, || refused_batches(&bridge) >= 6);
    load.more(100).await;
    let calls = load.end().await;
    let (elapsed, batches) = (began.elapsed(), refused_batches(&bridge) as usize);
    lock.run("rollback").await;

    assert_eq!(by_code(&calls), HashMap::from([("ok", calls.len())]));
    none_took_longer(&calls, Duration::from_millis(1_500));
    let slow: Vec<Duration> = calls
        .iter()
        .map(|call| call.took)
        .filter(|took| *took >= A_WAIT)
        .collect();
    let share = slow.iter().sum::<Duration>().as_secs_f64() / (elapsed.as_secs_f64() * CALLERS as f64);
    println!(
        "{} calls, {} of them slow ({share:.2} of {elapsed:?}), {batches} batches",
        calls.len(),
        slow.len()
    );
    // Of each batch that waited those in it, and one caller has one call at a time.
    assert!(!slow.is_empty() && slow.len() <= CALLERS * batches, "{}", slow.len());
    // In between Postgres is left alone for a second.
    assert!(share < 0.4, "{share}");
    assert!(calls.len() > 10 * slow.len(), "{} of {}", slow.len(), calls.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_run_from_receipt_also_while_a_decision_is_waited_for() {
    let system = System::start().await;
    let (bridge, proxy) = system.bridge_by_proxy(&["--decide-timeout", "20s"]).await;

    // Nothing comes, and nobody can tell why.
    proxy.set(DECISIONS, Flow::Held);
    let calls = system
        .calls(WELL, &json!({"payload": {"text": "x"}, "timeout_ms": 400}), 50)
        .await;
    assert_eq!(by_code(&calls), HashMap::from([("deadline_exceeded", 50)]));
    assert!(
        calls.iter().all(|call| call.took >= Duration::from_millis(395)),
        "{calls:?}"
    );
    none_took_longer(&calls, Duration::from_secs(1));
    proxy.set(DECISIONS, Flow::Open);

    // What the wait for the decision took, the service no longer has.
    system.services.slow_down(WELL, Duration::from_secs(2)).await;
    proxy.set(DECISIONS, Flow::AnswersHeld);
    let thaw = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        proxy.set(DECISIONS, Flow::Open);
    };
    let request = json!({"payload": {"text": "x"}, "timeout_ms": 1_500});
    let (calls, ()) = tokio::join!(system.calls(WELL, &request, 50), thaw);
    assert_eq!(by_code(&calls), HashMap::from([("deadline_exceeded", 50)]));
    none_took_longer(&calls, Duration::from_millis(2_200));
    eventually(SOON, async || match system.services.served(WELL).await {
        51 => Ok(()),
        other => Err(other),
    })
    .await;

    // Of what came too late nothing is under way, and it is nobody's success or failure.
    system.nothing_under_way().await;
    system.counted(&bridge, WELL, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_report_stops_no_decision() {
    const CALLS: u64 = 2_000;
    let system = System::start().await;
    let (bridge, proxy) = system.bridge_by_proxy(&[]).await;

    for (round, flow) in [(1, Flow::Held), (2, Flow::AnswersHeld)] {
        proxy.set(OUTCOMES, flow);
        let before = system.session.counts(WELL).await.0;
        for _ in 0..CALLS / 100 {
            let calls = system.calls(WELL, &text(), 100).await;
            assert_eq!(by_code(&calls), HashMap::from([("ok", 100)]));
            none_took_longer(&calls, Duration::from_secs(3));
        }
        wait_until("outcomes are kept", SOON, || pending(&bridge) >= CALLS);
        if flow == Flow::Held {
            assert_eq!(system.session.counts(WELL).await, (before, 0));
        }
        assert_eq!(bridge.readiness(), 200);
        proxy.set(OUTCOMES, Flow::Open);
        system.counted(&bridge, WELL, 1 + round * CALLS).await;
    }
    assert_eq!(reconnects(&bridge), 0, "it was the same connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_for_outcomes_that_hangs_for_good_is_replaced_and_each_outcome_counted_once() {
    let system = System::start().await;
    let (bridge, proxy) = system.bridge_by_proxy(&[]).await;
    // Postgres hears everything, the bridge nothing.
    proxy.set(OUTCOMES, Flow::AnswersHeld);
    let load = Load::start(&system.caller, 8);
    load.more(500).await;
    wait_until("it is given up", SOON, || bridge.log().contains("is given up"));
    load.more(500).await;
    let calls = load.end().await;
    assert_eq!(by_code(&calls), HashMap::from([("ok", calls.len())]));
    system.counted(&bridge, WELL, 1 + calls.len() as u64).await;
    assert_eq!(system.services.served(WELL).await, 1 + calls.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_whose_answer_was_lost_is_sent_again_and_counted_once() {
    const ROUNDS: u64 = 5;
    let system = System::start().await;
    let (bridge, proxy) = system.bridge_by_proxy(&[]).await;
    let mut made = 1;
    for _ in 0..ROUNDS {
        proxy.set(OUTCOMES, Flow::AnswersHeld);
        let calls = system.calls(WELL, &text(), 200).await;
        assert_eq!(by_code(&calls), HashMap::from([("ok", 200)]));
        // Postgres has counted of them, and the bridge has not heard of it.
        eventually(SOON, async || match system.session.counts(WELL).await.0 {
            counted if counted > made => Ok(()),
            counted => Err(counted),
        })
        .await;
        made += 200;
        wait_until("outcomes are kept", SOON, || pending(&bridge) > 0);
        proxy.set(OUTCOMES, Flow::Cut);
        // Whether nothing was applied the second time because it had been the first time, the next decision tells.
        eventually(SOON, async || {
            made += 1;
            assert_eq!(system.call(WELL, &text()).await.code, "ok");
            holds_within(Duration::from_secs(3), || pending(&bridge) == 0).await
        })
        .await;
        system.counted(&bridge, WELL, made as u64).await;
    }
    assert_eq!(reconnects(&bridge), ROUNDS);
    assert_eq!(system.services.served(WELL).await, made as u64);
}

/// No context that the bridge lets through is refused by the extension. So a function around its own does, and takes its time.
const WRAPPED: &str = "alter function ext_select_many rename to wrapped;
    create function ext_select_many(ids text[], contexts jsonb[], avoid jsonb default null) returns setof ext_decision_item
    language plpgsql as $$
    begin
        if exists (select from unnest(contexts) c where c ? 'poison') then
            raise 'poison' using errcode = 'invalid_parameter_value';
        end if;
        perform pg_sleep(0.002);
        return query select * from wrapped(ids, contexts, avoid);
    end $$";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_item_does_not_fail_its_batch() {
    const CALLS: usize = 300;
    let system = System::start().await;
    system.session.run(WRAPPED).await;
    let bridge = Bridge::start(&system.nats, &system.database, &["--decide-timeout", "20s"]);

    let calls = join_all((0..CALLS).map(async |number| {
        let (extension, context) = match number % 100 {
            50 => (WELL, json!({"poison": number})),
            90 => ("unknown_one", json!({})),
            _ => (WELL, json!({"number": number})),
        };
        let request = json!({"payload": {"text": "x"}, "context": context});
        (number % 100, system.call(extension, &request).await.code)
    }))
    .await;
    for (kind, code) in &calls {
        let wanted = match kind {
            50 => "invalid_request",
            90 => "extension_not_found",
            _ => "ok",
        };
        assert_eq!(code, wanted, "{kind}");
    }
    let well = calls.iter().filter(|(_, code)| code == "ok").count() as u64;
    assert_eq!(system.services.served(WELL).await, well);
    system.counted(&bridge, WELL, well).await;
    system.nothing_under_way().await;
    // The bad ones were in batches with others: those were refused before the bad ones were alone, and no others.
    let (refused, bad) = (refused_batches(&bridge), CALLS as u64 / 100);
    assert!(refused > bad && refused <= 2 * bad, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_extension_cannot_use_up_all_places() {
    const CALLS: usize = 5_000;
    const PLACES: usize = 4_096;
    let system = System::start().await;
    system.services.set(SICK, "hang").await;
    let patient = format!("update extensions set timeout_ms = 20000 where id = '{SICK}'");
    system.session.run(&patient).await;
    let bridge = Bridge::start(&system.nats, &system.database, &["--decide-timeout", "5s"]);

    let mut hanging = JoinSet::new();
    for _ in 0..CALLS {
        let caller = system.caller.clone();
        hanging.spawn(async move { call(&caller, SICK, &text()).await });
    }
    // What is over the cap is told so while the others wait.
    let mut calls = Vec::new();
    while calls.len() < CALLS - PLACES {
        calls.push(hanging.join_next().await.expect("there are more").expect("no panic"));
    }
    assert_eq!(by_code(&calls), HashMap::from([("overloaded", CALLS - PLACES)]));
    eventually(SOON, async || match system.services.served(SICK).await {
        4_096 => Ok(()),
        served => Err(served),
    })
    .await;
    wait_until("all places are taken", SOON, || in_flight(&bridge, 0) == PLACES as u64);

    // Others do not notice.
    let well = system.calls(WELL, &text(), 500).await;
    assert_eq!(by_code(&well), HashMap::from([("ok", 500)]));
    none_took_longer(&well, Duration::from_secs(5));
    let more = system.calls(SICK, &text(), 50).await;
    assert_eq!(by_code(&more), HashMap::from([("overloaded", 50)]));
    none_took_longer(&more, Duration::from_secs(2));
    // The gauge is set now and then; once a place is free it never says this again.
    wait_until("all happened while they were taken", SOON, || {
        in_flight(&bridge, 0) == PLACES as u64
    });

    let ended = hanging.join_all().await;
    assert_eq!(by_code(&ended), HashMap::from([("extension_timeout", PLACES)]));
    system.services.set(SICK, "ok").await;
    assert_eq!(system.call(SICK, &text()).await.code, "ok");
    eventually(SOON, async || match system.session.counts(SICK).await {
        (1, 4_096) => Ok(()),
        counts => Err(counts),
    })
    .await;
}

/// Requests sent without a wait for their answers, and every reply that comes.
struct Volley {
    client: Client,
    inbox: String,
    sent: u64,
    replies: Arc<Mutex<HashMap<u64, Vec<String>>>>,
}

impl Volley {
    async fn new(nats: &Nats) -> Self {
        let client = nats.connect().await;
        let inbox = client.new_inbox();
        let mut incoming = client.subscribe(format!("{inbox}.*")).await.expect("subscribed");
        client.flush().await.expect("flushed");
        let replies = Arc::new(Mutex::new(HashMap::<u64, Vec<String>>::new()));
        let all = Arc::clone(&replies);
        tokio::spawn(async move {
            while let Some(message) = incoming.next().await {
                let number = message.subject.rsplit('.').next().expect("a token");
                let number = number.parse().expect("ours");
                all.lock()
                    .expect("no panic")
                    .entry(number)
                    .or_default()
                    .push(code(&message));
            }
        });
        Self {
            client,
            inbox,
            sent: 0,
            replies,
        }
    }

    async fn send(&mut self, extension: &str, count: u64) {
        let subject = format!("beamline.bridge.v1.invoke.{extension}");
        for _ in 0..count {
            self.sent += 1;
            let reply = format!("{}.{}", self.inbox, self.sent);
            let body = text().to_string();
            self.client
                .publish_with_reply(subject.clone(), reply, body.into())
                .await
                .expect("it is connected");
        }
        self.client.flush().await.expect("it is connected");
    }

    fn answered(&self) -> u64 {
        self.replies.lock().expect("no panic").len() as u64
    }

    /// Waits until each has its reply; how many there were of each code.
    async fn end(&self) -> HashMap<String, u64> {
        eventually(SOON, async || match self.answered() {
            all if all == self.sent => Ok(()),
            some => Err(some),
        })
        .await;
        let replies = self.replies.lock().expect("no panic");
        let mut codes = HashMap::new();
        for (number, replies) in replies.iter() {
            assert_eq!(replies.len(), 1, "{number}: {replies:?}");
            *codes.entry(replies[0].clone()).or_default() += 1;
        }
        codes
    }
}

fn code(message: &Message) -> String {
    let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
    if body["ok"] == false {
        return body["error"]["code"].as_str().expect("a code").to_owned();
    }
    "ok".to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_loops_answer_each_call_once_and_share_their_caps() {
    const CALLS: u64 = 5_000;
    const PLACES: u64 = 300;
    let system = System::start().await;
    let flags = [
        "--loops",
        "3",
        "--max-in-flight-per-extension",
        "300",
        "--decide-timeout",
        "5s",
    ];
    let bridge = Bridge::start(&system.nats, &system.database, &flags);

    // Each loop takes a third of the places, and no more.
    system.services.set(SICK, "hang").await;
    let mut hanging = Volley::new(&system.nats).await;
    hanging.send(SICK, 3 * PLACES).await;
    wait_until("all places are taken", SOON, || {
        (0..3).all(|event_loop| in_flight(&bridge, event_loop) == PLACES / 3)
    });
    let codes = hanging.end().await;
    let wanted = [("extension_timeout", PLACES), ("overloaded", 2 * PLACES)];
    assert_eq!(codes, wanted.map(|(code, count)| (code.to_owned(), count)).into());
    assert_eq!(system.services.served(SICK).await, PLACES);

    let mut volley = Volley::new(&system.nats).await;
    // Fewer at a time than one loop takes, who may get them all.
    while volley.sent < CALLS {
        volley.send(WELL, 50).await;
        eventually(SOON, async || match volley.sent - volley.answered() {
            0..=50 => Ok(()),
            under_way => Err(under_way),
        })
        .await;
    }
    assert_eq!(volley.end().await, HashMap::from([("ok".to_owned(), CALLS)]));
    system.counted(&bridge, WELL, CALLS).await;
    assert_eq!(system.services.served(WELL).await, CALLS);
    assert_eq!(count(&bridge, "ext_bridge_late_replies_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_server_that_stops_and_no_other_calls_go_on_to_its_end_and_after_its_return() {
    let mut system = System::start().await;
    let bridge = Bridge::start(&system.nats, &system.database, &[]);
    let load = Load::start(&system.caller, 8);
    load.more(200).await;
    system.nats.signal(Signal::SIGUSR2);
    wait_until("the bridge has heard of it", SOON, || {
        bridge.log().contains("lame duck")
    });
    // It does not let anybody in any more, and those who are there stay until they are sent away.
    load.more(500).await;
    let calls = load.end().await;
    assert_eq!(
        by_code(&calls),
        HashMap::from([("ok", calls.len())]),
        "{}",
        bridge.log()
    );
    assert_eq!(bridge.readiness(), 200);

    system.nats.stop();
    wait_until("the bridge is not ready", SOON, || bridge.readiness() == 503);
    system.nats.start_again();
    wait_until("the bridge is ready", SOON, || bridge.readiness() == 200);
    let caller = Caller::new(&system.nats).await;
    // The services come back in their own time.
    let mut made = calls.len() as u64;
    eventually(SOON, async || match call(&caller, WELL, &text()).await.code.as_str() {
        "ok" => Ok(()),
        code => Err(code.to_owned()),
    })
    .await;
    for _ in 0..100 {
        assert_eq!(call(&caller, WELL, &text()).await.code, "ok");
    }
    made += 101;
    assert_eq!(system.services.served(WELL).await, made);
}

/// Memory of a process, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("Linux");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// Not with the others, for it takes minutes: `SOAK_CALLS=1000000 cargo test -p ext_registry_tests --test traps -- --ignored
/// --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; SOAK_CALLS (1,000,000) says how many calls"]
async fn memory_stays_flat_over_a_million_calls_that_time_out() {
    const UNDER_WAY: u64 = 2_000;
    let calls: u64 = std::env::var("SOAK_CALLS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let step = calls / 10;
    let system = System::start().await;
    let quick = format!("update extensions set timeout_ms = 50 where id = '{SICK}'");
    system.session.run(&quick).await;
    let bridge = Bridge::start(&system.nats, &system.database, &["--decide-timeout", "5s"]);
    // It is subscribed to, and never answered.
    system.services.set(SICK, "hang").await;

    let began = Instant::now();
    let (mut made, mut measured) = (0, Vec::new());
    while made < calls {
        // Their replies are kept; not so many at a time that it matters.
        let mut volley = Volley::new(&system.nats).await;
        while volley.sent < step {
            volley.send(SICK, 200).await;
            eventually(SOON, async || match volley.sent - volley.answered() {
                0..UNDER_WAY => Ok(()),
                under_way => Err(under_way),
            })
            .await;
        }
        let codes = volley.end().await;
        assert_eq!(codes, HashMap::from([("extension_timeout".to_owned(), step)]));
        made += step;
        measured.push(memory(bridge.pid()));
        println!(
            "{made} calls, {} KiB, {:?}",
            measured.last().expect("just put there"),
            began.elapsed()
        );
    }
    let (first, last) = (measured[0], measured[measured.len() - 1]);
    assert!(last < first + first / 10 + 1_024, "{measured:?}");
    eventually(SOON, async || match system.session.counts(SICK).await {
        (0, failures) if failures as u64 == made => Ok(()),
        counts => Err(counts),
    })
    .await;
}
