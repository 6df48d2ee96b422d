//! deploy/grafana/extensions.json: every query of every panel is asked of a real Prometheus that scrapes a real bridge under
//! load, and returns data, now and over time; so do the queries of its variables. That Prometheus also takes
//! deploy/prometheus/rules.yml.
//!
//! `DASHBOARD=accept cargo test -p ext_registry_tests --test dashboard` draws docs/dashboard.md anew, after two minutes of load.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ext_registry_tests::plot::{self, Line};
use ext_registry_tests::process::{Directory, Server};
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, eventually, http, places, ports};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Two scrapes, a second apart, make a rate.
const SOON: Duration = Duration::from_mins(1);

fn dashboard() -> Value {
    let text = std::fs::read_to_string(places::root().join("deploy/grafana/extensions.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("the dashboard is JSON")
}

/// Panel and query, the variables replaced as Grafana does for "All".
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query").replace("$extension", ".*");
            assert!(!query.contains('$'), "a variable that nobody knows: {query}");
            queries.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    queries
}

/// Everything but what may stand in a URL as it is.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// The lines of a query over the last so many seconds, named as the panel names them.
fn lines(address: SocketAddr, query: &str, legend: &str, seconds: u64) -> Vec<Line> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let (query, start) = (encoded(query), now - seconds);
    let data = ask(
        address,
        &format!("/api/v1/query_range?query={query}&start={start}&end={now}&step=1"),
    );
    let series = data["result"].as_array().expect("a list of series");
    let line = |series: &Value| {
        let mut name = legend.to_owned();
        for (label, value) in series["metric"].as_object().expect("labels") {
            // One bridge: where it listens says nothing.
            let value = if label == "instance" {
                "bridge"
            } else {
                value.as_str().expect("a text")
            };
            name = name.replace(&format!("{{{{{label}}}}}"), value);
        }
        let points = series["values"].as_array().expect("points").iter().filter_map(|point| {
            let value: f64 = point[1].as_str()?.parse().ok()?;
            value.is_finite().then_some((point[0].as_f64()?, value))
        });
        (name, points.collect())
    };
    series
        .iter()
        .map(line)
        .filter(|(_, points): &Line| !points.is_empty())
        .collect()
}

/// The name of a panel's picture.
fn picture(title: &str) -> String {
    let letters = title
        .to_lowercase()
        .replace(|letter: char| !letter.is_ascii_alphanumeric(), " ");
    letters.split_whitespace().collect::<Vec<_>>().join("-") + ".svg"
}

/// docs/dashboard.md: rows, panels, what they show, their pictures.
fn page(dashboard: &Value) -> String {
    let mut page = "# Dashboard\n\n[`deploy/grafana/extensions.json`](../deploy/grafana/extensions.json) for Grafana: *Dashboards*, *New*, \
        *Import*, and choose the Prometheus\nthat scrapes the bridges; or, for machines that are set up by files, \
        [`deploy/grafana/provisioning`](../deploy/grafana/provisioning).\n\nWhat each panel asks, drawn from two minutes of a bridge under \
        load, with services among them that hang and\nfail, in a real Prometheus; with rates over 15 s, where the dashboard has 5 \
        minutes. Drawn anew by `DASHBOARD=accept cargo test -p\next_registry_tests --test dashboard`. What the series are: \
        [metrics.md](metrics.md).\n"
        .to_owned();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        if panel["type"] == "row" {
            write!(page, "\n## {title}\n").expect("writing to a string");
        } else {
            let description = panel["description"].as_str().expect("a description");
            let picture = picture(title);
            write!(
                page,
                "\n### {title}\n\n{description}\n\n![{title}](dashboard/{picture})\n"
            )
            .expect("writing to a string");
        }
    }
    page
}

/// A picture for each panel.
fn draw(address: SocketAddr, dashboard: &Value, seconds: u64) {
    let folder = places::root().join("docs/dashboard");
    std::fs::create_dir_all(&folder).expect("docs can be written");
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        let mut all = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query").replace("$extension", ".*");
            let legend = target["legendFormat"].as_str().expect("a legend");
            all.extend(lines(address, &query.replace("[5m]", "[15s]"), legend, seconds));
        }
        // Of many, those that show something.
        if all.len() > 10 {
            all.retain(|(_, points)| points.iter().any(|(_, value)| *value > 0.0));
        }
        if panel["type"] != "row" {
            let unit = match panel["fieldConfig"]["defaults"]["unit"].as_str() {
                Some("reqps" | "ops") => "/s",
                Some("percent") => "%",
                Some("ms") => "ms",
                Some("bytes") => "B",
                Some("percentunit") => "cores",
                _ => "",
            };
            std::fs::write(folder.join(picture(title)), plot::svg(title, unit, &all)).expect("docs can be written");
        }
    }
    std::fs::write(places::root().join("docs/dashboard.md"), page(dashboard)).expect("docs can be written");
}

#[test]
fn the_page_shows_every_panel() {
    let dashboard = dashboard();
    let written = std::fs::read_to_string(places::root().join("docs/dashboard.md")).expect("docs/dashboard.md");
    assert_eq!(written, page(&dashboard), "draw it anew, see the head of this file");
    let mut pictures = 0;
    for line in written.lines().filter_map(|line| line.split_once("](dashboard/")) {
        let file = places::root().join("docs/dashboard").join(line.1.trim_end_matches(')'));
        let picture = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        // Two are the axes.
        assert!(
            picture.matches("<polyline").count() > 2,
            "{} shows no line",
            file.display()
        );
        pictures += 1;
    }
    let there = std::fs::read_dir(places::root().join("docs/dashboard"))
        .expect("pictures")
        .count();
    assert_eq!(
        (pictures > 20, there),
        (true, pictures),
        "a picture for each panel, and no other"
    );
}

/// What the API answers.
fn ask(address: SocketAddr, path: &str) -> Value {
    let (status, body) = http::get(address, path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(status, 200, "{path}: {body}");
    let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert_eq!(answer["status"], "success", "{path}: {body}");
    answer["data"].clone()
}

#[tokio::test]
async fn every_query_of_the_dashboard_returns_data() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    database.run(
        "insert into extensions (id, type, subject, timeout_ms, retry) values
            ('breaks', 'validator', 'beamline.ext.validate.pii_guard.v1.a', 5000, 0),
            ('hangs', 'post', 'beamline.ext.post.mask_pii.v1.a', 50, 1);
        insert into extension_versions (id, version, subject, timeout_ms, retry, routing_rules) values
            ('normalize_text', 'v2', 'beamline.ext.pre.normalize_text.v2', 5000, 0, '{\"tenant_id\": [\"t2\"]}');
        insert into extension_instances (extension_id, instance_id, subject, version, health_status) values
            ('normalize_text', 'a', 'beamline.ext.pre.normalize_text.v1.a', 'v1', 'degraded'),
            ('normalize_text', 'b', 'beamline.ext.pre.normalize_text.v1', 'v1', 'healthy');
        update extension_health set breaker_mode = 'metrics_only' where extension_id = 'hangs'",
    );
    let services = Services::start(&nats, &["a"]).await;
    services.set("pii_guard.v1.a", "error").await;
    services.set("mask_pii.v1.a", "hang").await;
    let bridge = Bridge::start(&nats, &database, &[]);
    let caller = Caller::new(&nats).await;

    let directory = Directory::new("prometheus-", None);
    let port = ports::free();
    let config = directory.path().join("prometheus.yml");
    std::fs::write(
        &config,
        format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: ['{}']\nscrape_configs:\n  - job_name: ext-bridge\n    static_configs: [{{ targets: ['{}'] }}]\n",
            places::root().join("deploy/prometheus/rules.yml").display(),
            bridge.http()
        ),
    )
    .expect("a file can be written");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut command = Command::new(places::tool("prometheus"));
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().join("data").display()
        ))
        .arg(format!("--web.listen-address={address}"));
    let mut prometheus = Server::start(
        "prometheus",
        &mut command,
        &directory.path().join("log"),
        Signal::SIGTERM,
    );
    prometheus.await_ready(SOON, |_| matches!(http::get(address, "/-/ready"), Ok((200, _))));

    let dashboard = dashboard();
    let queries = queries(&dashboard);
    assert!(queries.len() > 20, "{} queries", queries.len());
    eventually(SOON, async || {
        // Load, with everything in it that a panel shows.
        database.run("update extensions set metadata = jsonb_build_object('n', random()) where id = 'mask_pii'");
        for tenant in ["t1", "t2", "t3"] {
            // A deadline with time for a second attempt.
            let request = json!({"payload": {"text": "x"}, "tenant_id": tenant, "timeout_ms": 10_000});
            for id in ["normalize_text", "mask_pii", "breaks", "hangs", "no_such_thing"] {
                caller.invoke(id, &request).await;
            }
        }
        let without: Vec<_> = queries
            .iter()
            .filter(|(_, query)| {
                let data = ask(address, &format!("/api/v1/query?query={}", encoded(query)));
                let all = data["result"].as_array().expect("a list of series");
                // 0 / 0 is no data to who looks at it.
                !all.iter().any(|series| series["value"][1] != "NaN")
            })
            .collect();
        if without.is_empty() {
            Ok(())
        } else {
            Err(format!("{without:#?}"))
        }
    })
    .await;

    // Over time, too: as panels ask.
    for (title, query) in &queries {
        eventually(SOON, async || {
            let lines = lines(address, query, title, 60);
            let longest = lines.iter().map(|(_, points)| points.len()).max().unwrap_or(0);
            if longest >= 2 {
                Ok(())
            } else {
                Err(format!("{title}: {lines:?}"))
            }
        })
        .await;
    }
    // Whatever a panel falls back to where nothing is amiss: the breaker that has opened is seen.
    let open = queries
        .iter()
        .find(|(title, _)| title == "Open breakers")
        .expect("that panel");
    let data = ask(address, &format!("/api/v1/query?query={}", encoded(&open.1)));
    assert_eq!(data["result"][0]["value"][1], "1", "{data}");

    if std::env::var_os("DASHBOARD").is_some_and(|value| value == "accept") {
        const SECONDS: u64 = 120;
        let began = Instant::now();
        while began.elapsed().as_secs() < SECONDS {
            let request = json!({"payload": {"text": "x"}, "tenant_id": "t1", "timeout_ms": 10_000});
            let other = json!({"payload": {"text": "x"}, "tenant_id": "t2", "timeout_ms": 10_000});
            // The second half has twice the calls, and a service that recovers.
            let half = began.elapsed().as_secs() * 2 / SECONDS;
            if half == 1 {
                services.set("pii_guard.v1.a", "ok").await;
            }
            for _ in 0..=half {
                for id in ["normalize_text", "mask_pii", "breaks", "hangs"] {
                    tokio::join!(caller.invoke(id, &request), caller.invoke(id, &other));
                }
            }
            caller.invoke("no_such_thing", &request).await;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        draw(address, &dashboard, SECONDS);
    }

    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let Some(query) = variable["definition"].as_str() else {
            assert_eq!(variable["type"], "datasource", "{variable}");
            continue;
        };
        let (series, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.split_once(", "))
            .unwrap_or_else(|| panic!("{query}"));
        let values = ask(address, &format!("/api/v1/label/{label}/values?match[]={series}"));
        assert!(
            values.as_array().is_some_and(|values| values.len() > 3),
            "{query}: {values}"
        );
    }
    let rules = ask(address, "/api/v1/rules");
    for group in rules["groups"].as_array().expect("groups of rules") {
        for rule in group["rules"].as_array().expect("rules") {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
}

#[test]
fn panels_are_whole_and_do_not_overlap() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id comes twice");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        assert!(at("x") + at("w") <= 24, "{title} is wider than the page");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies over another");
            }
        }
        assert!(
            panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| text.len() > 20),
            "{title} does not say what it shows"
        );
    }
    let metrics = std::fs::read_to_string(places::root().join("docs/metrics.md")).expect("docs/metrics.md");
    for (title, query) in queries(&dashboard) {
        let words = query.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
        for name in words.filter(|word| {
            ["router_", "ext_bridge_", "process_"]
                .iter()
                .any(|head| word.starts_with(head))
        }) {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(
                metrics.contains(&format!("`{name}`")),
                "{title}: docs/metrics.md has no {name}"
            );
        }
    }
}
