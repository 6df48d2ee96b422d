//! Source `auto`: calls go on while Postgres is away, and what they came to is counted when it is back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::{
    Bridge, Caller, Nats, Postgres, Services, Session, Shutdown, bridge, eventually, places, registry,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const DATABASE: &str = "app";
const SOON: Duration = Duration::from_secs(40);
/// An extension nobody else in these tests calls.
const ID: &str = "normalize_text";

struct System {
    nats: Nats,
    cluster: Postgres,
    services: Services,
    caller: Caller,
    state: Directory,
}

impl System {
    async fn start() -> Self {
        let nats = Nats::start();
        let cluster = Postgres::start(&[]);
        cluster.make_database(DATABASE);
        let session = cluster.connect(DATABASE).await;
        session
            .execute("select ext_import($1)", &[&registry::fixtures()])
            .await
            .expect("the fixtures are good");
        session.run("update extensions set timeout_ms = 5000").await;
        let services = Services::start(&nats, &[]).await;
        let caller = Caller::new(&nats).await;
        Self {
            nats,
            cluster,
            services,
            caller,
            state: Directory::new("state-", None),
        }
    }

    fn image(&self) -> PathBuf {
        self.state.path().join("image")
    }

    /// A bridge that keeps its image in a file of the test's, and finds no fixtures.
    fn bridge(&self, flags: &[&str]) -> Bridge {
        let image = self.image();
        let mut all = vec!["--image", image.to_str().expect("UTF-8")];
        all.extend(flags);
        Bridge::launch_auto(&self.nats, &self.cluster, DATABASE, &all)
    }

    async fn ready_bridge(&self, flags: &[&str]) -> Bridge {
        let bridge = self.bridge(flags);
        becomes(&bridge, "database").await;
        // It has an image once it shows its age.
        eventually(SOON, async || {
            bridge
                .metric("ext_bridge_image_age_seconds")
                .ok_or_else(|| bridge.log())
        })
        .await;
        bridge
    }

    async fn invoke(&self) -> Option<(String, u16)> {
        // A bridge that has just started has sent its subscriptions; the server may not have read them yet. This is refused
        // before anything is decided.
        eventually(SOON, async || {
            let empty = self
                .caller
                .client()
                .request("beamline.bridge.v1.invoke.nothing", "".into())
                .await;
            empty.map(drop).map_err(|error| error.to_string())
        })
        .await;
        let reply = self.caller.invoke(ID, &json!({"payload": {"text": "x"}})).await;
        reply.error().map(|(code, number)| (code.to_owned(), number))
    }

    async fn session(&self) -> Session {
        eventually(SOON, async || {
            self.cluster
                .try_connect(DATABASE)
                .await
                .map_err(|error| error.to_string())
        })
        .await
    }
}

/// Waits until this source decides.
async fn becomes(bridge: &Bridge, source: &str) {
    eventually(SOON, async || {
        let ready = bridge.readyz();
        let reasons = match source {
            "none" => json!(["the source does not decide"]),
            _ => json!([]),
        };
        if ready["source"] == source && ready["reasons"] == reasons {
            Ok(())
        } else {
            Err(format!("{ready}\n{}", bridge.log()))
        }
    })
    .await;
}

/// Callers that call without a pause, until they are stopped.
struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    callers: JoinSet<Vec<String>>,
}

impl Load {
    fn start(caller: &Caller, callers: usize) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut set = JoinSet::new();
        for _ in 0..callers {
            let (stop, made, caller) = (Arc::clone(&stop), Arc::clone(&made), caller.clone());
            set.spawn(async move {
                let mut errors = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let reply = caller.invoke(ID, &json!({"payload": {"text": "x"}})).await;
                    if let Some(error) = reply.error() {
                        errors.push(format!("{error:?}"));
                    }
                    made.fetch_add(1, Ordering::Relaxed);
                }
                errors
            });
        }
        Self {
            stop,
            made,
            callers: set,
        }
    }

    /// Waits for so many more calls.
    async fn more(&self, calls: u64) {
        let wanted = self.made.load(Ordering::Relaxed) + calls;
        eventually(SOON, async || {
            let made = self.made.load(Ordering::Relaxed);
            if made >= wanted { Ok(()) } else { Err((made, wanted)) }
        })
        .await;
    }

    /// Ends it; the number of calls, of which none failed.
    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(errors) = self.callers.join_next().await {
            let errors = errors.expect("no panic");
            assert!(
                errors.is_empty(),
                "{} calls failed: {:?}",
                errors.len(),
                &errors[..errors.len().min(5)]
            );
        }
        self.made.load(Ordering::Relaxed)
    }
}

/// Waits until Postgres has counted exactly this many successes, in live state and in the history.
async fn counted(system: &System, bridge: &Bridge, attempts: u64) {
    let session = system.session().await;
    let sql = "select format('%s successes, %s failures, %s in history', h.success_count, h.failure_count,
                   (select sum(m.success) from extension_metrics m where m.extension_id = h.extension_id and m.instance_id = ''))
               from extension_health h where h.extension_id = $1";
    let wanted = format!("{attempts} successes, 0 failures, {attempts} in history");
    eventually(SOON, async || {
        let now = session.one(sql, &[&ID]).await;
        if now == wanted {
            Ok(())
        } else {
            Err(format!("{now}, not {wanted}\n{}", bridge.log()))
        }
    })
    .await;
    // What is still on its way would come within a flush or two.
    let pending = r#"ext_bridge_reports_pending{loop="0"}"#;
    eventually(SOON, async || match bridge.metric(pending) {
        Some(0.0) => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(session.one(sql, &[&ID]).await, wanted);
    assert_eq!(bridge.metric("ext_bridge_reports_lost_total"), Some(0.0));
}

async fn stopped_and_back(how: Shutdown) {
    let mut system = System::start().await;
    let bridge = system.ready_bridge(&[]).await;
    let load = Load::start(&system.caller, 16);
    load.more(300).await;
    system.cluster.stop(how);
    becomes(&bridge, "image").await;
    assert_eq!(bridge.metric(r#"ext_bridge_source{source="image"}"#), Some(1.0));
    assert_eq!(bridge.metric(r#"ext_bridge_source{source="database"}"#), Some(0.0));
    load.more(1000).await;
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    load.more(300).await;
    let calls = load.end().await;
    let attempts = system.services.served(ID).await;
    assert_eq!(attempts, calls, "no call was refused, none was tried twice");
    counted(&system, &bridge, attempts).await;
    let log = bridge.log();
    assert!(
        log.contains("the last known good image decides") && log.contains("Postgres decides"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_stops_under_load_and_everything_is_counted_once() {
    stopped_and_back(Shutdown::Fast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_crashes_under_load_and_everything_is_counted_once() {
    stopped_and_back(Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_postgres_fails_no_call() {
    let system = System::start().await;
    let bridge = system.ready_bridge(&[]).await;
    let load = Load::start(&system.caller, 8);
    load.more(100).await;
    let frozen = system.cluster.backends();
    let signal = |signal: Signal| {
        for pid in &frozen {
            // It may have ended, as workers do.
            let _ = kill(Pid::from_raw(*pid as i32), signal);
        }
    };
    signal(Signal::SIGSTOP);
    becomes(&bridge, "image").await;
    load.more(500).await;
    signal(Signal::SIGCONT);
    becomes(&bridge, "database").await;
    load.more(100).await;
    let calls = load.end().await;
    let attempts = system.services.served(ID).await;
    assert_eq!(attempts, calls);
    counted(&system, &bridge, attempts).await;
}

#[tokio::test]
async fn a_bridge_that_starts_without_postgres_serves_from_its_file() {
    let mut system = System::start().await;
    let mut first = system.ready_bridge(&[]).await;
    eventually(SOON, async || if system.image().exists() { Ok(()) } else { Err(()) }).await;
    // A change is in the file soon, too.
    let session = system.session().await;
    session
        .run("update extensions set config = '{\"later\": true}' where id = 'normalize_text'")
        .await;
    eventually(SOON, async || {
        let image = std::fs::read_to_string(system.image()).expect("it is there");
        if image.contains("later") { Ok(()) } else { Err(image) }
    })
    .await;
    first.terminate();
    drop(session);
    system.cluster.stop(Shutdown::Fast);

    let bridge = system.bridge(&[]);
    becomes(&bridge, "image").await;
    assert_eq!(system.invoke().await, None);
    let request = json!({"tenant_id": "default", "policy_id": "full", "message": {"payload": " HELLO "}});
    let reply = system.caller.route(&request).await;
    assert_eq!(reply.body["message"]["payload"], "echo: hello", "{reply:?}");
    let unknown = system.caller.invoke("nobody", &json!({"payload": {}})).await;
    assert_eq!(unknown.error(), Some(("extension_not_found", 404)));
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    counted(&system, &bridge, system.services.served(ID).await).await;
}

/// Rewrites the first line of an image.
fn rewrite(image: &Path, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(image).expect("an image");
    let (head, rest) = text.split_once('\n').expect("a first line");
    let mut head: Value = serde_json::from_str(head).expect("JSON");
    change(&mut head);
    std::fs::write(image, format!("{head}\n{rest}")).expect("it can be written");
}

#[tokio::test]
async fn an_image_that_is_too_old_damaged_or_foreign_is_not_used() {
    let mut system = System::start().await;
    let mut first = system.ready_bridge(&[]).await;
    eventually(SOON, async || if system.image().exists() { Ok(()) } else { Err(()) }).await;
    first.terminate();
    system.cluster.stop(Shutdown::Fast);
    let good = std::fs::read(system.image()).expect("an image");

    rewrite(&system.image(), |head| {
        let day = 24 * 3600 * 1000;
        head["good_ms"] = json!(head["good_ms"].as_i64().expect("a time") - day - 60_000);
    });
    let mut old = system.bridge(&[]);
    becomes(&old, "none").await;
    let refused = system.invoke().await;
    assert_eq!(refused, Some(("registry_unavailable".to_owned(), 503)));
    assert!(
        old.metric("ext_bridge_image_age_seconds")
            .is_some_and(|age| age > 86_400.0)
    );
    old.terminate();
    let mut allowed = system.bridge(&["--image-max-age", "48h"]);
    becomes(&allowed, "image").await;
    assert_eq!(system.invoke().await, None);
    allowed.terminate();

    for spoil in [good[..good.len() / 2].to_vec(), b"something else".to_vec(), Vec::new()] {
        std::fs::write(system.image(), &spoil).expect("it can be written");
        let mut bridge = system.bridge(&[]);
        becomes(&bridge, "none").await;
        assert_eq!(system.invoke().await, Some(("registry_unavailable".to_owned(), 503)));
        assert_eq!(
            bridge.log().matches("the image of the registry is ignored").count(),
            1,
            "{}",
            bridge.log()
        );
        assert_eq!(bridge.metric("ext_bridge_image_age_seconds"), None);
        bridge.terminate();
    }
    // With Postgres back it makes a good one again.
    std::fs::write(system.image(), b"something else").expect("it can be written");
    let bridge = system.bridge(&[]);
    becomes(&bridge, "none").await;
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    eventually(SOON, async || {
        let image = std::fs::read(system.image()).expect("it is there");
        if image.len() > 100 { Ok(()) } else { Err(image.len()) }
    })
    .await;
    assert_eq!(system.invoke().await, None);
}

#[tokio::test]
async fn with_source_database_such_a_call_fails() {
    let mut system = System::start().await;
    let bridge = Bridge::start_on(&system.nats, &system.cluster, DATABASE, &[]);
    assert_eq!(system.invoke().await, None);
    system.cluster.stop(Shutdown::Fast);
    becomes(&bridge, "none").await;
    assert_eq!(system.invoke().await, Some(("registry_unavailable".to_owned(), 503)));
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    assert_eq!(system.invoke().await, None);
    counted(&system, &bridge, 2).await;
}

#[tokio::test]
async fn a_breaker_that_is_open_stays_open_without_postgres() {
    let mut system = System::start().await;
    let bridge = system.ready_bridge(&[]).await;
    system.services.set("pii_guard", "error").await;
    let guard = async || {
        let reply = system
            .caller
            .invoke("pii_guard", &json!({"payload": {"text": "x"}}))
            .await;
        reply.error().map(|(code, _)| code.to_owned())
    };
    eventually(SOON, async || match guard().await.as_deref() {
        Some("extension_unavailable") => Ok(()),
        other => Err(other.map(str::to_owned)),
    })
    .await;
    let served = system.services.served("pii_guard").await;
    // The image is renewed every few seconds; its age shows when. The second time it has surely seen the breaker.
    let (mut last, mut renewed) = (f64::MAX, 0);
    eventually(SOON, async || {
        let age = bridge.metric("ext_bridge_image_age_seconds").expect("there is one");
        renewed += i32::from(age < last);
        last = age;
        if renewed > 2 { Ok(()) } else { Err(age) }
    })
    .await;
    system.cluster.stop(Shutdown::Fast);
    becomes(&bridge, "image").await;
    assert_eq!(guard().await.as_deref(), Some("extension_unavailable"));
    assert_eq!(
        system.services.served("pii_guard").await,
        served,
        "a refused call reaches nobody"
    );
}

#[tokio::test]
async fn without_an_image_the_fixtures_decide() {
    let mut system = System::start().await;
    system.cluster.stop(Shutdown::Fast);
    let fixtures = places::root().join("fixtures");
    let bridge = system.bridge(&["--fixtures", fixtures.to_str().expect("UTF-8")]);
    becomes(&bridge, "fixtures").await;
    assert_eq!(system.invoke().await, None);
    assert!(bridge.log().contains("falling back to fixtures"), "{}", bridge.log());
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    counted(&system, &bridge, 1).await;
}

#[tokio::test]
async fn operators_see_the_bridges_own_view_while_postgres_is_away() {
    let mut system = System::start().await;
    let bridge = system.ready_bridge(&["--api-key", "k"]).await;
    let admin = async |op: &str, body: Value| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("x-api-key", "k");
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(body.to_string().into())
            .timeout(Some(SOON));
        let subject = format!("beamline.bridge.v1.admin.{op}");
        let answer = system.caller.client().send_request(subject, request).await;
        serde_json::from_slice::<Value>(&answer.expect("an answer").payload).expect("JSON")
    };
    let policy = json!({"tenant_id": "default", "policy_id": "full"});
    let complexity = admin("get_pipeline_complexity", policy.clone()).await;
    assert_eq!(complexity["total_extensions"], 3, "{complexity}");
    system.cluster.stop(Shutdown::Fast);
    becomes(&bridge, "image").await;
    system.services.set("pii_guard", "error").await;
    let guard = json!({"payload": {"text": "x"}});
    for _ in 0..5 {
        let reply = system.caller.invoke("pii_guard", &guard).await;
        assert_eq!(reply.error(), Some(("extension_error", 502)), "{reply:?}");
    }
    assert_eq!(system.invoke().await, None);
    let states = admin("get_circuit_breaker_states", json!({})).await;
    assert_eq!(states["states"]["pii_guard"]["state"], "open", "{states}");
    assert_eq!(states["states"]["pii_guard"]["failure_count"], 5, "{states}");
    let health = admin("get_extension_health", json!({})).await;
    assert_eq!(health["health"]["normalize_text"]["status"], "healthy", "{health}");
    assert_eq!(health["health"]["normalize_text"]["success_count"], 1, "{health}");
    assert_eq!(admin("get_pipeline_complexity", policy).await, complexity);
    for series in [
        r#"router_extension_circuit_breaker_state{extension_id="pii_guard",state="open"} 2"#,
        r#"router_extension_health_success_rate{extension_id="normalize_text"} 1"#,
        r#"router_extension_registry_extensions_total{source="image",type="validator"} 1"#,
    ] {
        // Series are at most a second old.
        eventually(SOON, async || {
            let metrics = bridge.metrics();
            if metrics.contains(series) { Ok(()) } else { Err(metrics) }
        })
        .await;
    }
    // The commands know the image too.
    let image = system.image();
    let check = ["check", "--source", "auto", "--image", image.to_str().expect("UTF-8")];
    let output = bridge::run_on(&system.nats, &system.cluster, DATABASE, &check, "");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("ok    image: ") && text.contains("warn  postgres: "),
        "{text}"
    );
    assert!(text.contains("beamline.ext.pre.normalize_text.v1"), "{text}");

    // Failures that Postgres did not see are counted there, and open no breaker.
    system.cluster.start_again();
    becomes(&bridge, "database").await;
    let session = system.session().await;
    eventually(SOON, async || match session.counts("pii_guard").await {
        (0, 5) => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(session.breaker("pii_guard").await, "closed");
    let metrics = eventually(SOON, async || {
        let metrics = bridge.metrics();
        let closed = r#"router_extension_circuit_breaker_state{extension_id="pii_guard",state="closed"} 0"#;
        if metrics.contains(closed) {
            Ok(metrics)
        } else {
            Err(metrics)
        }
    })
    .await;
    assert!(!metrics.contains(r#"source="image",type"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_locked_fails_no_call() {
    let system = System::start().await;
    let bridge = system.ready_bridge(&[]).await;
    let session = system.session().await;
    // New sessions have to read the tables, and cannot.
    session
        .run("begin; lock table extensions in access exclusive mode")
        .await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ext-bridge'";
    session.run(end).await;
    let load = Load::start(&system.caller, 8);
    let busy = r#"ext_bridge_batch_failures_total{kind="decide"}"#;
    let here = r#"ext_bridge_fallback_decisions_total{source="image"}"#;
    eventually(SOON, async || match (bridge.metric(busy), bridge.metric(here)) {
        (Some(busy), Some(here)) if busy >= 2.0 && here >= 500.0 => Ok(()),
        other => Err(other),
    })
    .await;
    session.run("rollback").await;
    becomes(&bridge, "database").await;
    load.more(100).await;
    let calls = load.end().await;
    let attempts = system.services.served(ID).await;
    assert_eq!(attempts, calls);
    counted(&system, &bridge, attempts).await;
}
