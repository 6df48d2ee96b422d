//! Bridges on a NATS cluster: what is lost when a server or a bridge is killed, that nothing is lost when a server stops in
//! order, and that nothing is sent late.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderValue, Message};
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Callers, Nats, Postgres, Services, Session, eventually, wait_until};
use futures_util::StreamExt;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A service that remembers each attempt that came: by the bridge's inbox, the call's id and the attempt's number.
#[derive(Default)]
struct Service {
    attempts: Mutex<Vec<(String, String, String)>>,
    texts: Mutex<Vec<String>>,
}

impl Service {
    async fn start(nats: &Nats, subject: &str) -> Arc<Self> {
        let client = nats.connect().await;
        let this = Arc::new(Self::default());
        let mut requests = client.subscribe(subject.to_owned()).await.expect("subscribed");
        client.flush().await.expect("flushed");
        let own = Arc::clone(&this);
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                own.note(&request);
                let client = client.clone();
                tokio::spawn(async move {
                    // Long enough for calls to be under way at any time.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let reply = request.reply.expect("a reply subject");
                    let _ = client.publish(reply, "{}".into()).await;
                });
            }
        });
        this
    }

    fn note(&self, request: &Message) {
        let header = |name: &str| {
            let headers = request.headers.as_ref().expect("headers");
            headers.get(name).map(HeaderValue::as_str).expect(name).to_owned()
        };
        let reply = request.reply.as_ref().expect("a reply subject");
        let inbox = reply.split('.').nth(1).expect("an inbox").to_owned();
        let attempt = (inbox, header("Ext-Call-Id"), header("Ext-Attempt"));
        self.attempts.lock().expect("no panic").push(attempt);
        let body: Value = serde_json::from_slice(&request.payload).expect("JSON");
        let text = body["payload"]["round"].as_str().unwrap_or_default().to_owned();
        self.texts.lock().expect("no panic").push(text);
    }

    /// Attempts by bridge. None came twice.
    #[track_caller]
    fn attempts(&self) -> HashMap<String, u64> {
        let attempts = self.attempts.lock().expect("no panic");
        let different: HashSet<_> = attempts.iter().collect();
        assert_eq!(different.len(), attempts.len(), "an attempt came twice");
        let mut by_bridge = HashMap::new();
        for (inbox, _, _) in attempts.iter() {
            *by_bridge.entry(inbox.clone()).or_default() += 1;
        }
        by_bridge
    }
}

/// Attempts that a bridge says it has sent and that have ended.
fn sent(bridge: &Bridge) -> i64 {
    let metrics = bridge.metrics();
    let series = metrics
        .lines()
        .filter(|line| line.starts_with("router_extension_invocation_total{"));
    series
        .map(|line| {
            line.rsplit(' ')
                .next()
                .expect("a value")
                .parse::<f64>()
                .expect("a number") as i64
        })
        .sum()
}

async fn counted(session: &Session) -> i64 {
    let (successes, failures) = session.counts("x").await;
    successes + failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_and_a_bridge_are_killed_and_each_call_is_counted_once() {
    const AT_ONCE: usize = 24;
    let mut nodes = Nats::cluster(3).await;
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject, timeout_ms, retry) values ('x', 'pre', 'x.v1', 2000, 2);
             update extension_health set breaker_mode = 'metrics_only'",
        )
        .await;
    // Each bridge knows one server, and hears of the others from that.
    let mut bridges: Vec<Bridge> = nodes.iter().map(|node| Bridge::start(node, &database, &[])).collect();
    let service = Service::start(&nodes[2], "x.v1").await;
    let callers = [Callers::new(&nodes[2]).await, Callers::new(&nodes[1]).await];
    let calls = || callers.iter().map(|callers| callers.calls()).sum::<u64>();

    // A server is killed.
    let over = Arc::new(AtomicBool::new(false));
    let load = || join_all(callers.iter().map(|callers| callers.load("x", AT_ONCE, &over)));
    let work = async {
        wait_for(|| calls() > 1_000).await;
        assert_eq!(service.attempts().len(), 3, "a bridge gets nothing");
        nodes[0].stop();
        let bridge = &bridges[0];
        wait_for(|| bridge.log().contains("has taken over")).await;
        let before = calls();
        wait_for(|| calls() > before + 1_000).await;
        over.store(true, Relaxed);
    };
    tokio::join!(load(), work);
    for callers in &callers {
        callers.each_ended_once();
        let outcomes = callers.outcomes();
        let silent = outcomes.get("no reply").copied().unwrap_or(0);
        // What the dead server had in its hands has no answer; the rest has.
        assert!(silent <= AT_ONCE as u64, "{outcomes:?}");
    }
    println!(
        "a server killed: {:?} {:?}",
        callers[0].outcomes(),
        callers[1].outcomes()
    );
    eventually(SOON, async || {
        let (counted, sent) = (counted(&session).await, bridges.iter().map(sent).sum::<i64>());
        let far = service.attempts().values().sum::<u64>();
        if counted == sent && sent > 0 {
            Ok(())
        } else {
            Err((counted, sent, far))
        }
    })
    .await;
    let all = service.attempts().values().sum::<u64>() as i64;
    let counted_before = counted(&session).await;
    // An attempt that was lost with the server is no one's fault, and counted as none; so may one be that had not arrived.
    assert!(
        (all - counted_before).abs() <= 2 * AT_ONCE as i64,
        "{all} {counted_before}"
    );
    assert!(bridges.iter().all(|bridge| bridge.readiness() == 200));

    // A bridge is killed.
    let by_bridge = service.attempts();
    let sent_before: Vec<i64> = bridges.iter().map(sent).collect();
    over.store(false, Relaxed);
    let work = async {
        let before = calls();
        wait_for(|| calls() > before + 1_000).await;
        bridges[1].kill();
        let before = calls();
        wait_for(|| calls() > before + 1_000).await;
        over.store(true, Relaxed);
    };
    tokio::join!(load(), work);
    for callers in &callers {
        callers.each_ended_once();
    }
    println!(
        "a bridge killed: {:?} {:?}",
        callers[0].outcomes(),
        callers[1].outcomes()
    );
    let survivors = [&bridges[0], &bridges[2]];
    let sent_by_survivors = || survivors.iter().map(|bridge| sent(bridge)).sum::<i64>();
    // What the killed bridge sent in this round: the service knows.
    let all = service.attempts().values().sum::<u64>() as i64 - by_bridge.values().sum::<u64>() as i64;
    let survived = sent_by_survivors() - sent_before[0] - sent_before[2];
    let of_killed = all - survived;
    assert!(of_killed > 200, "{of_killed} of {all}");
    let bound = 2 * AT_ONCE as i64 + 2 * 64;
    let reported = eventually(SOON, async || {
        let reported = counted(&session).await - counted_before - survived;
        if reported >= of_killed - bound {
            Ok(reported)
        } else {
            Err((reported, of_killed))
        }
    })
    .await;
    assert!(reported <= of_killed, "{reported} of {of_killed}");
    // Nothing follows.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(counted(&session).await - counted_before - survived, reported);
    println!("{of_killed} attempts by the killed bridge, {reported} of them counted");
}

/// A registry of one extension that may take its time: what is lost fails a call, a busy machine does not.
fn patient() -> Directory {
    let directory = Directory::new("fixtures-", None);
    let folder = directory.path().join("extensions");
    let extension = json!({"id": "normalize_text", "type": "pre", "subject": "beamline.ext.pre.normalize_text.v1",
        "timeout_ms": 30_000});
    std::fs::create_dir(&folder).expect("our own directory");
    std::fs::write(folder.join("normalize_text.json"), extension.to_string()).expect("our own directory");
    directory
}

async fn wait_for(condition: impl Fn() -> bool) {
    eventually(SOON, async || if condition() { Ok(()) } else { Err("not yet") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_in_order_costs_no_call() {
    let nodes = Nats::cluster(2).await;
    let services = Services::start(&nodes[1], &[]).await;
    let fixtures = patient();
    let bridge = Bridge::start_on_fixtures(&nodes[0], &["--fixtures", fixtures.path().to_str().expect("UTF-8")]);
    // Those at the server that stops have to go, too; until then they are served.
    let (staying, going) = (Callers::new(&nodes[1]).await, Callers::new(&nodes[0]).await);
    let (over, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let calls = || staying.calls() + going.calls();
    let said = |text: &'static str| bridge.log().contains(text);
    let work = async {
        wait_for(|| calls() > 500).await;
        nodes[0].signal(Signal::SIGUSR2);
        wait_for(|| said("lame duck")).await;
        wait_for(|| said("has taken over")).await;
        // The bridge leaves while calls still come by the old way.
        wait_for(|| said("the former connection to NATS is no longer needed")).await;
        let before = calls();
        wait_for(|| calls() > before + 200).await;
        gone.store(true, Relaxed);
    };
    let rest = async {
        wait_for(|| gone.load(Relaxed) && going.outcomes().values().sum::<u64>() == going.calls()).await;
        nodes[0].signal(Signal::SIGKILL);
        let before = staying.calls();
        wait_for(|| staying.calls() > before + 500).await;
        over.store(true, Relaxed);
    };
    let work = async {
        work.await;
        rest.await;
    };
    tokio::join!(
        staying.load("normalize_text", 8, &over),
        going.load("normalize_text", 8, &gone),
        work
    );
    for callers in [&staying, &going] {
        callers.each_ended_once();
        assert_eq!(
            callers.outcomes().keys().collect::<Vec<_>>(),
            ["ok"],
            "{}",
            bridge.log()
        );
    }
    assert_eq!(services.served("normalize_text").await, calls());
    assert_eq!(
        bridge.metric(r#"ext_bridge_reconnects_total{to="nats"}"#),
        Some(1.0),
        "{}",
        bridge.metrics()
    );
    println!("{} calls", calls());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_costs_no_call_where_another_bridge_serves() {
    let nats = Nats::start();
    let services = Services::start(&nats, &[]).await;
    let fixtures = patient();
    let flags = ["--fixtures", fixtures.path().to_str().expect("UTF-8")];
    let mut bridge = Bridge::start_on_fixtures(&nats, &flags);
    let other = Bridge::start_on_fixtures(&nats, &flags);
    let callers = Callers::new(&nats).await;
    let over = Arc::new(AtomicBool::new(false));
    let work = async {
        wait_for(|| callers.calls() > 500).await;
        let status = tokio::task::spawn_blocking(move || bridge.terminate())
            .await
            .expect("no panic");
        assert!(status.success());
        let before = callers.calls();
        wait_for(|| callers.calls() > before + 300).await;
        over.store(true, Relaxed);
    };
    tokio::join!(callers.load("normalize_text", 16, &over), work);
    callers.each_ended_once();
    assert_eq!(callers.outcomes().keys().collect::<Vec<_>>(), ["ok"]);
    assert_eq!(services.served("normalize_text").await, callers.calls());
    assert_eq!(other.readiness(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_for_nats_and_expired_is_not_sent() {
    const CALLS: i64 = 100;
    let mut nats = Nats::start();
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject, timeout_ms, retry) values ('x', 'pre', 'x.v1', 300, 0);
             update extension_health set breaker_mode = 'metrics_only'",
        )
        .await;
    let bridge = Bridge::start(&nats, &database, &[]);
    let service = Service::start(&nats, "x.v1").await;

    // The server takes nothing: what the bridge sends piles up behind the socket.
    nats.signal(Signal::SIGSTOP);
    let invoke = |round: &str, count: i64| {
        format!(
            "select ext_invoke('x', jsonb_build_object('round', '{round}', 'text', repeat('x', 400000)))
             from generate_series(1, {count})"
        )
    };
    session.run(&invoke("old", CALLS)).await;
    let finished = "select count(*)::text from extension_invocations where finished_at is not null";
    let becomes = async |wanted: i64| {
        eventually(SOON, async || match session.one(finished, &[]).await {
            count if count == wanted.to_string() => Ok(()),
            count => Err(count),
        })
        .await;
    };
    // The loop goes on: all of them end, by their time.
    becomes(CALLS).await;
    assert_eq!(bridge.readiness(), 200);
    assert!(
        bridge.metrics().contains("ext_bridge_nats_connected 1"),
        "{}",
        bridge.metrics()
    );

    // It is gone, which the bridge sees and says; calls fail at once, and the loop goes on.
    let before = service.texts.lock().expect("no panic").len();
    nats.stop();
    wait_until("the bridge is not ready", SOON, || bridge.readiness() == 503);
    assert!(
        bridge.readyz().to_string().contains("nats is not connected"),
        "{}",
        bridge.readyz()
    );
    assert!(bridge.metrics().contains("ext_bridge_nats_connected 0"));
    session.run(&invoke("away", 3)).await;
    becomes(CALLS + 3).await;

    nats.start_again();
    wait_until("the bridge is ready", SOON, || bridge.readiness() == 200);
    // The service's own client comes back in its own time.
    let mut rounds = 0;
    eventually(SOON, async || {
        session.run(&invoke("new", 1)).await;
        rounds += 1;
        becomes(CALLS + 3 + rounds).await;
        let came = service.texts.lock().expect("no panic").iter().any(|text| text == "new");
        if came {
            Ok(())
        } else {
            Err("the service has not heard of it")
        }
    })
    .await;
    let texts = service.texts.lock().expect("no panic");
    let late: Vec<_> = texts[before..].iter().filter(|text| *text != "new").collect();
    assert!(late.is_empty(), "sent late: {late:?}");
}
