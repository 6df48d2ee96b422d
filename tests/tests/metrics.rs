//! `/metrics`: every outcome is counted once and under its own name; what describes the registry comes from one bridge, or,
//! without Postgres, from each; docs/metrics.md names what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Scrape, Services, Session, Shutdown, eventually, places};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// Metrics of which one bridge of all shows the series.
const REGISTRY: [&str; 6] = [
    "router_extension_circuit_breaker_opened_total",
    "router_extension_circuit_breaker_state",
    "router_extension_health_latency_p95_ms",
    "router_extension_health_success_rate",
    "router_extension_instance_health",
    "router_extension_registry_extensions_total",
];

/// What promtool has against names that existing dashboards and alerts use. Nothing else may be amiss.
const ALLOWED: [&str; 3] = [
    r#"router_extension_registry_extensions_total non-counter metrics should not have "_total" suffix"#,
    "router_extension_invocation_latency_ms metric names should not contain abbreviated units",
    "router_extension_health_latency_p95_ms metric names should not contain abbreviated units",
];

/// `promtool check metrics`: what it has against a scrape.
fn complaints(metrics: &str) -> BTreeSet<String> {
    let mut child = Command::new(places::tool("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool can be started");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(metrics.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = child.wait_with_output().expect("our own child");
    // 3: it has complaints about style. Anything but that and 0 is an error.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said)
        .expect("UTF-8")
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Expected series, by labels.
fn series<const N: usize>(expected: [(&'static str, f64); N]) -> BTreeMap<&'static str, f64> {
    BTreeMap::from(expected)
}

/// Scrapes until `probe` finds nothing amiss.
async fn scraped<E: std::fmt::Debug>(bridge: &Bridge, probe: impl Fn(&Scrape) -> Result<(), E>) -> Scrape {
    eventually(SOON, async || {
        let scrape = bridge.scrape();
        probe(&scrape).map(|()| scrape)
    })
    .await
}

/// Scrapes until a series has this value.
async fn becomes(bridge: &Bridge, series: &str, value: f64) -> Scrape {
    scraped(bridge, |scrape| match scrape.get(series) {
        got if got == Some(value) => Ok(()),
        got => Err(got),
    })
    .await
}

/// Extensions whose calls end in one way each, beside the fixtures; `a` names the second set of reference services.
const REGISTER: &str = r#"
    insert into extensions (id, type, subject, timeout_ms, retry, enabled, metadata) values
        ('absent', 'pre', 'nobody.listens', 5000, 0, true, '{}'),
        ('breaks', 'validator', 'beamline.ext.validate.pii_guard.v1.a', 5000, 0, true, '{}'),
        ('cut', 'post', 'beamline.ext.post.mask_pii.v1.a', 5000, 0, true, '{}'),
        ('garbled', 'provider', 'beamline.provider.test_provider.v1.a', 5000, 0, true, '{}'),
        ('off', 'pre', 'nobody.listens', 5000, 0, false, '{}'),
        ('private', 'pre', 'nobody.listens', 5000, 0, true, '{"allowed_tenants": ["t1"]}'),
        ('slow', 'post', 'beamline.ext.post.mask_pii.v1.a', 50, 1, true, '{}');
    insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
        ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 5000, 0, '{"tenant_id": ["t2"]}');
    insert into extension_instances (extension_id, instance_id, subject, version, health_status) values
        ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.v1.a', 'v1', 'degraded');
    update extensions set timeout_ms = 5000 where id = 'normalize_text';
    update extension_health set breaker_mode = 'metrics_only' where extension_id not in ('breaks');
"#;

#[tokio::test]
async fn every_outcome_is_counted_once_and_under_its_own_name() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    database.run(REGISTER);
    let session = database.connect().await;
    let services = Services::start(&nats, &["a"]).await;
    services.set("pii_guard.v1.a", "error").await;
    services.set("mask_pii.v1.a", "hang").await;
    services.set("test_provider.v1.a", "garbage").await;
    let bridge = Bridge::start(&nats, &database, &[]);
    let caller = Caller::new(&nats).await;
    let call = async |id: &str, more: Value| {
        let mut request = json!({ "payload": { "text": "x" } });
        let members = more.as_object().expect("an object").clone();
        request.as_object_mut().expect("an object").extend(members);
        let reply = caller.invoke(id, &request).await;
        reply.error().map_or("ok", |(code, _)| code).to_owned().leak() as &str
    };
    let first = bridge.scrape();
    let names: BTreeSet<_> = first.types.keys().cloned().collect();

    for _ in 0..3 {
        assert_eq!(call("normalize_text", json!({})).await, "ok");
    }
    for _ in 0..2 {
        assert_eq!(call("normalize_text", json!({"tenant_id": "t2"})).await, "ok");
    }
    assert_eq!(call("absent", json!({})).await, "extension_unavailable");
    assert_eq!(call("garbled", json!({})).await, "extension_error");
    // A deadline that leaves time for both attempts on a busy machine.
    assert_eq!(call("slow", json!({"timeout_ms": 10_000})).await, "extension_timeout");
    assert_eq!(call("cut", json!({"timeout_ms": 100})).await, "deadline_exceeded");
    for _ in 0..5 {
        assert_eq!(call("breaks", json!({})).await, "extension_error");
    }
    // Reports travel behind the replies.
    eventually(SOON, async || match session.breaker("breaks").await.as_str() {
        "open" => Ok(()),
        state => Err(state.to_owned()),
    })
    .await;
    for _ in 0..2 {
        assert_eq!(call("breaks", json!({})).await, "extension_unavailable");
    }
    assert_eq!(call("off", json!({})).await, "extension_unavailable");
    assert_eq!(call("private", json!({"tenant_id": "t2"})).await, "tenant_not_allowed");
    for unknown in ["no_such_thing", r#"a{b="c"}"#] {
        assert_eq!(call(unknown, json!({})).await, "extension_not_found");
    }
    assert_eq!(call("normalize_text", json!({"payload": 1})).await, "invalid_request");
    assert_eq!(call("no_such_thing", json!({"payload": null})).await, "invalid_request");
    assert_eq!(
        call("normalize_text", json!({"context": {"key": "\u{0}"}})).await,
        "invalid_request"
    );
    let route = json!({"tenant_id": "default", "policy_id": "no_such_policy", "message": {}});
    assert_eq!(caller.route(&route).await.error(), Some(("policy_not_found", 404)));

    // What a bridge has counted is there at once; what Postgres knows is a second old at most.
    let now = scraped(&bridge, |scrape| {
        let rates = scrape.by_labels("router_extension_health_success_rate").len();
        let opened = scrape.counted("router_extension_circuit_breaker_opened_total").len();
        if (rates, opened) == (5, 1) {
            Ok(())
        } else {
            Err((rates, opened))
        }
    })
    .await;
    assert_eq!(
        now.types.keys().cloned().collect::<BTreeSet<_>>(),
        names,
        "from the start"
    );
    assert_eq!(
        now.counted("router_extension_invocation_total"),
        series([
            (r#"extension_id="absent",status="error",type="pre""#, 1.0),
            (r#"extension_id="breaks",status="error",type="validator""#, 5.0),
            (r#"extension_id="garbled",status="error",type="provider""#, 1.0),
            (r#"extension_id="normalize_text",status="success",type="pre""#, 5.0),
            (r#"extension_id="slow",status="timeout",type="post""#, 2.0),
        ])
    );
    assert_eq!(
        now.counted("router_extension_version_invocation_total"),
        series([
            (r#"extension_id="absent",status="error",version="v1""#, 1.0),
            (r#"extension_id="breaks",status="error",version="v1""#, 5.0),
            (r#"extension_id="garbled",status="error",version="v1""#, 1.0),
            (r#"extension_id="normalize_text",status="success",version="v1""#, 3.0),
            (r#"extension_id="normalize_text",status="success",version="v2""#, 2.0),
            (r#"extension_id="slow",status="timeout",version="v1""#, 2.0),
        ])
    );
    assert_eq!(
        now.counted("router_extension_invocation_latency_ms_count"),
        series([
            (r#"extension_id="absent",type="pre""#, 1.0),
            (r#"extension_id="breaks",type="validator""#, 5.0),
            (r#"extension_id="garbled",type="provider""#, 1.0),
            (r#"extension_id="normalize_text",type="pre""#, 5.0),
            (r#"extension_id="slow",type="post""#, 2.0),
        ])
    );
    assert_eq!(
        now.counted("router_extension_retries_total"),
        series([
            (r#"extension_id="absent",retry_count="0""#, 1.0),
            (r#"extension_id="breaks",retry_count="0""#, 5.0),
            (r#"extension_id="cut",retry_count="0""#, 1.0),
            (r#"extension_id="garbled",retry_count="0""#, 1.0),
            (r#"extension_id="normalize_text",retry_count="0""#, 5.0),
            (r#"extension_id="slow",retry_count="1""#, 1.0),
        ])
    );
    assert_eq!(
        now.counted("router_extension_load_balancer_selection_total"),
        series([(
            r#"algorithm="weighted_round_robin",extension_id="normalize_text",instance_id="a""#,
            3.0
        )])
    );
    assert_eq!(
        now.counted("ext_bridge_refused_total"),
        series([
            (r#"reason="cancelled""#, 1.0),
            (r#"reason="extension_circuit_open""#, 2.0),
            (r#"reason="extension_disabled""#, 1.0),
            (r#"reason="extension_not_found""#, 2.0),
            (r#"reason="invalid_request""#, 3.0),
            (r#"reason="policy_not_found""#, 1.0),
            (r#"reason="tenant_not_allowed""#, 1.0),
        ])
    );
    assert_eq!(
        now.counted("ext_bridge_replies_total"),
        series([
            (r#"code="deadline_exceeded""#, 1.0),
            (r#"code="extension_error""#, 6.0),
            (r#"code="extension_not_found""#, 2.0),
            (r#"code="extension_timeout""#, 1.0),
            (r#"code="extension_unavailable""#, 4.0),
            (r#"code="invalid_request""#, 3.0),
            (r#"code="ok""#, 5.0),
            (r#"code="policy_not_found""#, 1.0),
            (r#"code="tenant_not_allowed""#, 1.0),
        ])
    );
    // The buckets of the dashboards. Both timeouts of 50 ms lie in one of those above it, whatever the machine is busy with.
    let buckets: Vec<(&str, f64)> = ["10", "25", "50", "100", "200", "500", "1000", "+Inf"]
        .map(|le| {
            let of = format!(
                r#"router_extension_invocation_latency_ms_bucket{{extension_id="slow",type="post",le="{le}"}}"#
            );
            (le, now.get(&of).expect("a bucket"))
        })
        .to_vec();
    assert_eq!(buckets[..2], [("10", 0.0), ("25", 0.0)]);
    assert_eq!(buckets[7], ("+Inf", 2.0));
    let all = now.by_labels("router_extension_invocation_latency_ms_bucket");
    assert_eq!(all.len() % buckets.len(), 0, "and no others: {all:#?}");

    // The registry.
    assert_eq!(
        now.by_labels("router_extension_registry_extensions_total"),
        series([
            (r#"source="database",type="post""#, 3.0),
            (r#"source="database",type="pre""#, 4.0),
            (r#"source="database",type="provider""#, 2.0),
            (r#"source="database",type="validator""#, 2.0),
        ])
    );
    let states = now.by_labels("router_extension_circuit_breaker_state");
    assert_eq!(states.len(), 11, "one for each extension: {states:#?}");
    let state = |labels: &str| states.get(labels).copied();
    assert_eq!(state(r#"extension_id="breaks",state="open""#), Some(2.0));
    assert_eq!(state(r#"extension_id="slow",state="closed""#), Some(0.0));
    assert_eq!(
        now.counted("router_extension_circuit_breaker_opened_total"),
        series([(r#"extension_id="breaks""#, 1.0)])
    );
    assert_eq!(
        now.by_labels("router_extension_health_success_rate"),
        series([
            (r#"extension_id="absent""#, 0.0),
            (r#"extension_id="breaks""#, 0.0),
            (r#"extension_id="garbled""#, 0.0),
            (r#"extension_id="normalize_text""#, 1.0),
            (r#"extension_id="slow""#, 0.0),
        ])
    );
    let latencies = now.by_labels("router_extension_health_latency_p95_ms");
    let timed = ["breaks", "garbled", "normalize_text", "slow"].map(|id| format!("extension_id=\"{id}\""));
    assert!(latencies.keys().eq(&timed), "nobody answered the others: {latencies:?}");
    assert!(latencies[timed[3].as_str()] >= 50.0, "{latencies:?}");
    assert_eq!(
        now.by_labels("router_extension_instance_health"),
        series([(
            r#"extension_id="normalize_text",health_status="degraded",instance_id="a""#,
            1.0
        )])
    );

    let described = described();
    let shown: BTreeMap<&str, &str> = now.types.iter().map(|(name, kind)| (&**name, &**kind)).collect();
    let page: BTreeMap<&str, &str> = described.iter().map(|(name, (kind, _))| (&**name, &**kind)).collect();
    assert_eq!(shown, page, "docs/metrics.md names what there is, and nothing else");
    for (name, labels) in labels_of(&now) {
        assert_eq!(described[&name].1, labels, "labels of {name} in docs/metrics.md");
    }

    let page = std::fs::read_to_string(places::root().join("docs/metrics.md")).expect("docs/metrics.md");
    for labels in now.by_labels("ext_bridge_refused_total").into_keys() {
        let reason = labels.trim_start_matches("reason=").trim_matches('"');
        assert!(
            page.contains(&format!("`{reason}`")),
            "{reason} is not in docs/metrics.md"
        );
    }

    let text = bridge.metrics();
    for never in ["no_such_thing", "a{b", "t1", "t2", "no_such_policy"] {
        assert!(!text.contains(never), "{never}:\n{text}");
    }
    assert_eq!(complaints(&text), ALLOWED.map(str::to_owned).into());
}

/// Type and labels of the metrics in docs/metrics.md, by name.
fn described() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = places::root().join("docs/metrics.md");
    let page = std::fs::read_to_string(path).expect("docs/metrics.md");
    let mut described = BTreeMap::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = row.split_once("` |").expect(row);
        let mut cells = rest.split('|').map(str::trim);
        let kind = cells.next().expect("a type").to_owned();
        // What is in backquotes, but for what is there on request only.
        let labels = cells.next().expect("labels").split(';').next().expect("one part");
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let before = described.insert(name.to_owned(), (kind, labels));
        assert_eq!(before, None, "{name} twice");
    }
    assert!(described.len() > 40, "{}", described.len());
    described
}

/// The labels that the series of each metric have.
fn labels_of(scrape: &Scrape) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for series in scrape.series.keys() {
        let metric = scrape.metric_of(series).expect("a metric");
        let names = found.entry(metric.to_owned()).or_default();
        if let Some((_, labels)) = series.split_once('{') {
            let names_of = labels.trim_end_matches('}').split("\",");
            let of = |label: &str| label.split('=').next().expect("a name").to_owned();
            names.extend(names_of.map(of).filter(|name| name != "le"));
        }
    }
    found
}

#[test]
fn the_queries_of_the_page_are_promql_over_what_there_is() {
    let path = places::root().join("docs/metrics.md");
    let page = std::fs::read_to_string(path).expect("docs/metrics.md");
    let queries: Vec<&str> = page
        .split("```promql\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a block ends"))
        .collect();
    assert!(queries.len() >= 10, "{}", queries.len());
    let described = described();
    let mut rules = String::from("groups:\n- name: page\n  rules:\n");
    for (n, query) in queries.iter().enumerate() {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for metric in words.filter(|word| word.starts_with("router_") || word.starts_with("ext_bridge_")) {
            let parts = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|part| metric.strip_suffix(part));
            let known = std::iter::once(metric)
                .chain(parts)
                .any(|name| described.contains_key(name));
            assert!(known, "{metric} is not on the page: {query}");
        }
        let query = serde_json::to_string(query).expect("a string");
        rules.extend(["  - record: q", &n.to_string(), "\n    expr: ", &query, "\n"]);
    }
    let folder = Directory::new("rules-", None);
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).expect("our own directory");
    let mut promtool = Command::new(places::tool("promtool"));
    let output = promtool
        .args(["check", "rules"])
        .arg(&file)
        .output()
        .expect("promtool can be started");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn tenants_are_a_label_where_one_asks_for_it() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    database.run("update extensions set timeout_ms = 5000");
    let _services = Services::start(&nats, &[]).await;
    let bridge = Bridge::start(&nats, &database, &["--metrics-tenant-label"]);
    let caller = Caller::new(&nats).await;
    for request in [json!({"payload": {}, "tenant_id": "t1"}), json!({"payload": {}})] {
        assert_eq!(caller.invoke("normalize_text", &request).await.error(), None);
    }
    let scrape = bridge.scrape();
    assert_eq!(
        scrape.by_labels("router_extension_invocation_total"),
        series([
            (
                r#"extension_id="normalize_text",status="success",tenant_id="",type="pre""#,
                1.0
            ),
            (
                r#"extension_id="normalize_text",status="success",tenant_id="t1",type="pre""#,
                1.0
            ),
        ])
    );
    let elsewhere = |series: &&String| series.contains("tenant_id") && !series.contains("invocation_total");
    assert_eq!(scrape.series.keys().find(elsewhere), None);
}

/// Whether a bridge shows series that describe the registry; `Err` with those that it shows where it shows some of them.
fn shows_registry(scrape: &Scrape) -> Result<bool, Vec<&str>> {
    let shown: Vec<&str> = REGISTRY
        .into_iter()
        .filter(|name| !scrape.by_labels(name).is_empty())
        .collect();
    match (shown.len(), scrape.get("ext_bridge_registry_series")) {
        (0, Some(0.0)) => Ok(false),
        // No calls, so no rates.
        (4.., Some(1.0)) => Ok(true),
        _ => Err(shown),
    }
}

#[tokio::test]
async fn one_bridge_shows_the_registry_and_another_takes_over() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    database.run(
        "insert into extension_instances (extension_id, instance_id, subject)
         values ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.v1')",
    );
    let mut bridges: Vec<Bridge> = (0..3).map(|_| Bridge::start(&nats, &database, &[])).collect();
    let leaders = |bridges: &[Bridge]| -> Vec<usize> {
        let shows = |bridge: &Bridge| shows_registry(&bridge.scrape()).unwrap_or_else(|shown| panic!("only {shown:?}"));
        (0..bridges.len()).filter(|n| shows(&bridges[*n])).collect()
    };
    let one_leader = async |bridges: &[Bridge]| {
        eventually(SOON, async || match leaders(bridges)[..] {
            [one] => Ok(one),
            [] => Err("nobody"),
            _ => panic!("several"),
        })
        .await
    };
    let first = one_leader(&bridges).await;
    for _ in 0..5 {
        assert_eq!(leaders(&bridges), [first], "it stays");
    }
    bridges.remove(first).kill();
    one_leader(&bridges).await;

    // One that loses its session, not its life, shows nothing that may be old.
    let session = database.connect().await;
    let ended = session
        .one(
            "select count(pg_terminate_backend(pid))::text from pg_locks
             where locktype = 'advisory' and granted and classid = x'6578745f'::int and objid = x'62726467'::int
                 and database = (select oid from pg_database where datname = current_database())",
            &[],
        )
        .await;
    assert_eq!(ended, "1", "one holds the lead");
    let second = eventually(SOON, async || match leaders(&bridges)[..] {
        [one] => Ok(one),
        // It has not been told yet.
        ref others => Err(others.to_vec()),
    })
    .await;
    assert_eq!(leaders(&bridges), [second]);
    bridges.remove(second).kill();
    one_leader(&bridges).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_not_shown_and_openings_are_counted_on() {
    const DATABASE: &str = "app";
    let nats = Nats::start();
    let mut cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    let open = async |session: &Session| {
        let decision = session.call("x", &json!({}), "error", 5).await;
        assert_eq!((decision, session.breaker("x").await.as_str()), (5, "open"));
    };
    let session = cluster.connect(DATABASE).await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    open(&session).await;
    session.run("select ext_breaker_reset('x')").await;
    let history = "select count(*)::text from extension_breaker_events where to_state = 'open'";
    eventually(SOON, async || match session.one(history, &[]).await.as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
    let bridge = Bridge::start_on(&nats, &cluster, DATABASE, &[]);
    let opened = r#"router_extension_circuit_breaker_opened_total{extension_id="x"}"#;
    becomes(&bridge, opened, 0.0).await;
    open(&session).await;
    becomes(&bridge, opened, 1.0).await;

    // Neither a lost session nor a restart counts anew what is in the history.
    session
        .run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'ext-bridge'")
        .await;
    scraped(&bridge, |scrape| match scrape.get(opened) {
        None => Err(()),
        times => {
            assert_eq!(times, Some(1.0));
            Ok(())
        }
    })
    .await;

    drop(session);
    cluster.stop(Shutdown::Fast);
    let gone = scraped(&bridge, |scrape| match shows_registry(scrape) {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for name in REGISTRY {
        assert!(gone.types.contains_key(name), "{name} keeps its TYPE");
    }
    scraped(&bridge, |scrape| {
        let failed = scrape.get(r#"router_extension_registry_sync_total{status="error"}"#);
        failed.filter(|n| *n >= 1.0).ok_or_else(|| bridge.log()).map(drop)
    })
    .await;
    cluster.start_again();
    becomes(&bridge, opened, 1.0).await;
    let session = cluster.connect(DATABASE).await;
    session.run("select ext_breaker_reset('x')").await;
    open(&session).await;
    becomes(&bridge, opened, 2.0).await;

    // One that goes takes its series with it.
    session.run("delete from extensions where id = 'x'").await;
    scraped(&bridge, |scrape| {
        let left: Vec<_> = scrape.series.keys().filter(|series| series.contains("\"x\"")).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn series_that_postgres_does_not_bring_up_to_date_go() {
    const DATABASE: &str = "app";
    let nats = Nats::start();
    let cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    let session = cluster.connect(DATABASE).await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    let bridge = Bridge::start_on(&nats, &cluster, DATABASE, &[]);
    let registered = r#"router_extension_registry_extensions_total{source="database",type="pre"}"#;
    becomes(&bridge, registered, 1.0).await;
    // Nothing is closed, and nothing is answered.
    let all = [cluster.backends(), vec![cluster.pid()]].concat();
    let send = |signal: Signal| {
        for pid in &all {
            // Workers come and go.
            let _ = kill(Pid::from_raw(i32::try_from(*pid).expect("a pid")), signal);
        }
    };
    send(Signal::SIGSTOP);
    scraped(&bridge, |scrape| match scrape.get(registered) {
        None => Ok(()),
        old => Err(old),
    })
    .await;
    send(Signal::SIGCONT);
    becomes(&bridge, registered, 1.0).await;
}

#[tokio::test]
async fn what_is_under_way_can_be_seen_beside_its_limit() {
    let nats = Nats::start();
    let services = Services::start(&nats, &[]).await;
    services.set("test_provider", "hang").await;
    let flags = [
        "--loops",
        "2",
        "--max-in-flight",
        "8",
        "--max-in-flight-per-extension",
        "4",
    ];
    let bridge = Bridge::start_on_fixtures(&nats, &[&flags[..], &["--max-in-flight-bytes", "2000000"]].concat());
    let caller = Caller::new(&nats).await;
    let both = |name: &str, of: &Scrape| of.by_labels(name).values().copied().reduce(|a, b| a + b);
    let idle = scraped(&bridge, |scrape| {
        let loops = scrape.by_labels("ext_bridge_in_flight").len();
        if loops == 2 { Ok(()) } else { Err(loops) }
    })
    .await;
    assert_eq!(
        idle.by_labels("ext_bridge_in_flight_limit"),
        series([(r#"loop="0""#, 4.0), (r#"loop="1""#, 4.0)])
    );
    assert_eq!(both("ext_bridge_in_flight_limit_bytes", &idle), Some(2e6));
    assert_eq!(both("ext_bridge_in_flight", &idle), Some(0.0));

    // Loops take calls as the server deals them: two each may wait, so one of five is too many.
    let request = json!({"payload": {"payload": "x"}, "timeout_ms": 3000});
    let calls = (0..5).map(|_| {
        let (caller, request) = (caller.clone(), request.clone());
        tokio::spawn(async move {
            let reply = caller.invoke("test_provider", &request).await;
            reply.error().map(|(code, _)| code.to_owned())
        })
    });
    let calls: Vec<_> = calls.collect();
    scraped(&bridge, |scrape| {
        let busy = both("ext_bridge_in_flight", scrape);
        let refused = scrape.get(r#"ext_bridge_refused_total{reason="overloaded"}"#);
        match (busy, refused) {
            (Some(busy), Some(refused)) if busy >= 2.0 && busy + refused >= 5.0 && refused >= 1.0 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let bytes = both("ext_bridge_in_flight_bytes", &bridge.scrape());
    assert!(bytes.is_some_and(|bytes| bytes > 0.0), "{bytes:?}");
    for call in calls {
        let code = call.await.expect("it answers").expect("nobody serves");
        assert!(["overloaded", "deadline_exceeded"].contains(&code.as_str()), "{code}");
    }
    scraped(&bridge, |scrape| match both("ext_bridge_in_flight", scrape) {
        Some(0.0) => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn on_fixtures_each_bridge_shows_its_own_view() {
    let nats = Nats::start();
    let folder = Directory::new("fixtures-", None);
    std::fs::create_dir(folder.path().join("extensions")).expect("our own directory");
    let write = |document: &Value| {
        let name = document["id"].as_str().expect("an id");
        let path = folder.path().join(format!("extensions/{name}.json"));
        std::fs::write(path, document.to_string()).expect("our own directory");
    };
    let subject = "beamline.ext.pre.normalize_text.v1";
    write(
        &json!({"id": "normalize_text", "type": "pre", "subject": subject, "timeout_ms": 5000,
        "instances": [{"instance_id": "a", "subject": format!("{subject}.a"), "health_status": "degraded"}]}),
    );
    write(
        &json!({"id": "pii_guard", "type": "validator", "subject": "beamline.ext.validate.pii_guard.v1", "timeout_ms": 5000}),
    );
    write(
        &json!({"id": "mask_pii", "type": "post", "subject": "nobody.listens", "health": {"breaker_mode": "forced_open"}}),
    );
    let services = Services::start(&nats, &["a"]).await;
    services.set("pii_guard", "error").await;
    let fixtures = folder.path().to_str().expect("UTF-8");
    let bridges = [1, 2].map(|_| Bridge::start_on_fixtures(&nats, &["--fixtures", fixtures]));
    let caller = Caller::new(&nats).await;
    for bridge in &bridges {
        assert_eq!(
            bridge.scrape().by_labels("router_extension_circuit_breaker_state"),
            series([
                (r#"extension_id="mask_pii",state="open""#, 2.0),
                (r#"extension_id="normalize_text",state="closed""#, 0.0),
                (r#"extension_id="pii_guard",state="closed""#, 0.0),
            ]),
            "before the first call"
        );
    }

    // Whichever of the two takes a call; then one alone, until its breaker is open.
    assert_eq!(
        caller.invoke("normalize_text", &json!({"payload": {}})).await.error(),
        None
    );
    let total = |series: &str| {
        bridges
            .iter()
            .filter_map(|bridge| bridge.metric(series))
            .reduce(|a, b| a + b)
    };
    let calls = r#"router_extension_invocation_total{extension_id="normalize_text",status="success",type="pre"}"#;
    assert_eq!(total(calls), Some(1.0));
    let rate = r#"router_extension_health_success_rate{extension_id="normalize_text"}"#;
    assert_eq!(total(rate), Some(1.0));
    let [one, mut other] = bridges;
    other.terminate();
    let mut errors = 0;
    while caller.invoke("pii_guard", &json!({"payload": {}})).await.error() == Some(("extension_error", 502)) {
        errors += 1;
        assert!(errors <= 5, "the breaker opens");
    }
    let now = one.scrape();
    assert_eq!(
        now.by_labels("router_extension_circuit_breaker_state"),
        series([
            (r#"extension_id="mask_pii",state="open""#, 2.0),
            (r#"extension_id="normalize_text",state="closed""#, 0.0),
            (r#"extension_id="pii_guard",state="open""#, 2.0),
        ])
    );
    assert_eq!(
        now.by_labels("router_extension_circuit_breaker_opened_total"),
        series([
            (r#"extension_id="mask_pii""#, 0.0),
            (r#"extension_id="normalize_text""#, 0.0),
            (r#"extension_id="pii_guard""#, 1.0),
        ])
    );
    assert_eq!(
        now.by_labels("router_extension_registry_extensions_total"),
        series([
            (r#"source="fixtures",type="post""#, 1.0),
            (r#"source="fixtures",type="pre""#, 1.0),
            (r#"source="fixtures",type="validator""#, 1.0),
        ])
    );
    assert_eq!(
        now.by_labels("router_extension_instance_health"),
        series([(
            r#"extension_id="normalize_text",health_status="degraded",instance_id="a""#,
            1.0
        )])
    );
    let rate = r#"router_extension_health_success_rate{extension_id="pii_guard"}"#;
    assert_eq!(now.get(rate), Some(0.0));
    assert!(now.by_labels("router_extension_health_latency_p95_ms")[r#"extension_id="pii_guard""#] > 0.0);
    assert_eq!(
        now.by_labels("ext_bridge_source"),
        series([
            (r#"source="database""#, 0.0),
            (r#"source="fixtures""#, 1.0),
            (r#"source="image""#, 0.0)
        ])
    );
    assert_eq!(
        now.counted("router_extension_registry_sync_total"),
        series([(r#"status="success""#, 1.0)])
    );
    assert!(one.log().contains("Extension Registry synced"), "{}", one.log());

    // Read again: with one more, then with one that cannot be read.
    let sync = |status: &str| format!("router_extension_registry_sync_total{{status=\"{status}\"}}");
    write(&json!({"id": "late", "type": "pre", "subject": "nobody.listens"}));
    one.hang_up();
    becomes(&one, &sync("success"), 2.0).await;
    let pre = r#"router_extension_registry_extensions_total{source="fixtures",type="pre"}"#;
    becomes(&one, pre, 2.0).await;
    write(&json!({"id": "late", "type": "no_type", "subject": "nobody.listens"}));
    one.hang_up();
    let now = becomes(&one, &sync("error"), 1.0).await;
    assert_eq!(now.get(&sync("success")), Some(2.0));
}

#[tokio::test]
async fn a_breaker_that_postgres_had_open_is_shown_open_when_it_is_gone() {
    const DATABASE: &str = "app";
    let nats = Nats::start();
    let mut cluster = Postgres::start(&[]);
    cluster.make_database(DATABASE);
    let session = cluster.connect(DATABASE).await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    session.call("x", &json!({}), "error", 5).await;
    let bridge = Bridge::start_auto(&nats, &cluster, DATABASE, &[]);
    // The image has been kept, and what was open with it.
    scraped(&bridge, |scrape| {
        scrape.get("ext_bridge_image_age_seconds").map(drop).ok_or(())
    })
    .await;
    drop(session);
    cluster.stop(Shutdown::Fast);
    let image = r#"router_extension_registry_extensions_total{source="image",type="pre"}"#;
    let now = scraped(&bridge, |scrape| {
        scrape.get(image).map(drop).ok_or_else(|| bridge.log())
    })
    .await;
    assert_eq!(
        now.by_labels("router_extension_circuit_breaker_state"),
        series([(r#"extension_id="x",state="open""#, 2.0)])
    );
    assert_eq!(
        now.get("ext_bridge_registry_series"),
        Some(0.0),
        "its own view is nobody else's"
    );
}
