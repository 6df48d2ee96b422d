//! SIGHUP: what is read again, what is not, and that nobody notices but by what was asked for.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use ext_registry_tests::postgres::must_succeed;
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, eventually, http, places, ports, wait_until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A settings file that changes.
struct File {
    directory: Directory,
    path: PathBuf,
}

impl File {
    fn new(text: &str) -> Self {
        let directory = Directory::new("settings-", None);
        let path = directory.path().join("ext-bridge.toml");
        std::fs::write(&path, text).expect("our own directory");
        Self { directory, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// Writes it anew and has it read; returns when that is done, with what was logged about it.
    fn change(&self, bridge: &Bridge, text: &str) -> String {
        std::fs::write(&self.path, text).expect("our own directory");
        read_again(bridge)
    }
}

fn read_again(bridge: &Bridge) -> String {
    let before = bridge.log().len();
    bridge.hang_up();
    let mut log = String::new();
    wait_until("the settings are read again", SOON, || {
        bridge.log()[before..].clone_into(&mut log);
        log.contains("the settings were read again") || log.contains("stay as they were")
    });
    log
}

async fn admin(caller: &Caller, key: &str) -> Value {
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", key);
    let subject = "beamline.bridge.v1.admin.get_extension_health";
    let answer = caller.client().request_with_headers(subject, headers, "".into()).await;
    serde_json::from_slice(&answer.expect("it answers").payload).expect("JSON")
}

#[tokio::test]
async fn what_can_change_does_and_what_cannot_is_named() {
    let nats = Nats::start();
    let file = File::new("api-key = \"first\"\nlog-level = \"warn\"\n");
    let bridge = Bridge::start_on_fixtures(&nats, &["--config", file.path(), "--max-batch", "7"]);
    let caller = Caller::new(&nats).await;
    let services = Services::start(&nats, &["a"]).await;
    assert!(admin(&caller, "first").await["health"].is_object());
    assert!(
        !bridge.log().contains("started"),
        "info is not logged: {}",
        bridge.log()
    );

    let log = file.change(
        &bridge,
        "api-key = \"second\"\nlog-level = \"info\"\nmax-batch = 9\nmax-metadata-bytes = 1024\nretry-budget = 0.5\n\
         prefix = \"other\"\nloops = 2\nlog-format = \"json\"\nhttp-addr = \"127.0.0.1:1\"\nsource = \"database\"\n",
    );
    // Set by flags or variables, so these have not changed: prefix, loops and the format have.
    let restart: BTreeSet<&str> = log.lines().filter(|line| line.contains("needs a restart")).collect();
    let named: Vec<&str> = ["prefix", "log-format", "loops"]
        .into_iter()
        .filter(|key| {
            restart
                .iter()
                .any(|line| line.ends_with(&format!("{key}: needs a restart")))
        })
        .collect();
    assert_eq!((named.len(), restart.len()), (3, 3), "{log}");
    assert!(log.contains("read again") && !log.contains("second"), "{log}");
    assert_eq!(admin(&caller, "first").await["error"]["code"], "unauthorized");
    assert!(admin(&caller, "second").await["health"].is_object());
    let long = json!({"payload": {"text": "x"}, "metadata": {"long": "x".repeat(2000)}});
    assert_eq!(
        caller.invoke("normalize_text", &long).await.error(),
        Some(("invalid_request", 400))
    );
    let short = json!({"payload": {"text": "x"}});
    assert_eq!(caller.invoke("normalize_text", &short).await.error(), None);

    // A file that cannot be: one line, and everything stays.
    for (text, named) in [
        (
            "api-key = \"third\"\nmax-batsh = 1\n",
            "line 2: there is no key \"max-batsh\"; did you mean \"max-batch\"?",
        ),
        (
            "api-key = \"third\"\nlog-level = \"loud\"\n",
            "log-level: \"loud\" is not error, warn",
        ),
        ("api-key = third", "line 1"),
    ] {
        let log = file.change(&bridge, text);
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{log}");
        assert!(errors[0].contains(named) && !log.contains("third"), "{named}: {log}");
        assert!(admin(&caller, "second").await["health"].is_object());
    }
    assert_eq!(caller.invoke("normalize_text", &short).await.error(), None);
    file.change(&bridge, "log-level = \"info\"\n");
    assert_eq!(
        admin(&caller, "second").await["error"]["code"],
        "unauthorized",
        "no key, nobody"
    );
    drop(services);
}

#[tokio::test]
async fn fixtures_are_read_again() {
    let nats = Nats::start();
    let file = File::new("");
    let fixtures = file.directory.path().join("fixtures");
    copy(&places::root().join("fixtures"), &fixtures);
    let folder = fixtures.to_str().expect("UTF-8").to_owned();
    let bridge = Bridge::start_on_fixtures(&nats, &["--fixtures", &folder]);
    let caller = Caller::new(&nats).await;
    let services = Services::start(&nats, &["a"]).await;
    let call = async || {
        caller
            .invoke("normalize_text", &json!({"payload": {"text": "x"}}))
            .await
    };
    assert_eq!(call().await.error(), None);

    let path = fixtures.join("extensions/normalize_text.json");
    let good = std::fs::read_to_string(&path).expect("a fixture");
    std::fs::write(&path, "{").expect("our own directory");
    let log = read_again(&bridge);
    assert!(
        log.contains("ERROR") && log.contains("normalize_text.json: not valid JSON"),
        "{log}"
    );
    assert_eq!(call().await.error(), None, "the old ones stay");

    let mut document: Value = serde_json::from_str(&good).expect("JSON");
    document["enabled"] = json!(false);
    std::fs::write(&path, document.to_string()).expect("our own directory");
    read_again(&bridge);
    eventually(SOON, async || match call().await.error() {
        Some(("extension_unavailable", 503)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    drop(services);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("our own directory");
    for entry in std::fs::read_dir(from).expect("the fixtures").filter_map(Result::ok) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("our own directory");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_gets_a_new_login_while_calls_go_on() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let second = format!("{}_second", database.name());
    let sql = format!("create role {second} login; select ext_grant('{second}', 'bridge')");
    for statement in sql.split(';') {
        must_succeed(&database.cluster().psql(database.name(), statement));
    }
    let file = File::new("");
    let bridge = Bridge::start(&nats, &database, &["--config", file.path(), "--loops", "2"]);
    let services = Services::start(&nats, &["a"]).await;
    let session = database.connect().await;
    // The variables of the harness count before the file; the address before them.
    let address = |user: &str| {
        format!(
            "db-url = \"host=127.0.0.1 port={} dbname={} user={user}\"\n",
            database.cluster().port(),
            database.name()
        )
    };

    let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let caller = Caller::new(&nats).await;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let (caller, over, made) = (caller.clone(), Arc::clone(&over), Arc::clone(&made));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let reply = caller
                        .invoke("normalize_text", &json!({"payload": {"text": "x"}}))
                        .await;
                    assert_eq!(reply.error(), None);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let users = async || {
        let sql = "select coalesce(string_agg(distinct usename, ','), '') from pg_stat_activity
                   where application_name = 'ext-bridge' and datname = current_database()";
        session.one(sql, &[]).await
    };
    let first = users().await;
    assert!(!first.is_empty() && first != second, "{first}");
    let log = file.change(&bridge, &address(&second));
    assert!(
        log.contains("changed=\"db-url\"") || log.contains("changed=db-url"),
        "{log}"
    );
    eventually(SOON, async || match users().await {
        all if all == second => Ok(()),
        other => Err(other),
    })
    .await;

    // A login that is not let in: it is said, and the old connections go on.
    file.change(&bridge, &address("nobody_at_all"));
    wait_until("it is said", SOON, || {
        bridge.log().contains("role \"nobody_at_all\" does not exist")
    });
    let before = made.load(Ordering::Relaxed);
    wait_until("calls go on", SOON, || made.load(Ordering::Relaxed) > before + 100);
    file.change(&bridge, &address(&first));
    eventually(SOON, async || match users().await {
        all if all == first => Ok(()),
        other => Err(other),
    })
    .await;
    over.store(true, Ordering::Relaxed);
    for call in calls {
        call.await.expect("no call fails");
    }
    // Every call is counted once, whichever connection its report took.
    let made = made.load(Ordering::Relaxed).to_string();
    eventually(SOON, async || {
        let sql = "select success_count::text from ext_health('normalize_text')";
        let counted = session.one(sql, &[]).await;
        if counted == made {
            Ok(())
        } else {
            Err(format!("{counted} of {made}"))
        }
    })
    .await;
    let lost = bridge.metric("ext_bridge_reports_lost_total");
    assert!(lost.is_some_and(|lost| lost < 0.5), "{lost:?}");
    drop(services);
}

#[tokio::test]
async fn every_line_of_a_json_log_is_an_object_without_bodies_or_secrets() {
    let nats = Nats::start_with(&["--auth", "t0ken-of-nats"]);
    let url = format!("nats://t0ken-of-nats@127.0.0.1:{}", nats.port());
    let file = File::new("api-key = \"k3y-of-admin\"\n");
    let flags = [
        "--config",
        file.path(),
        "--nats-url",
        &url,
        "--log-format",
        "json",
        "--log-level",
        "debug,async_nats=info",
    ];
    let mut bridge = Bridge::launch_on_fixtures(&nats, &flags, &[]).ready();
    let login = async_nats::ConnectOptions::with_token("t0ken-of-nats".to_owned());
    let client = login.connect(nats.url()).await.expect("it answers");
    for subject in ["invoke.normalize_text", "route", "invoke.no_such_thing", "admin.reload"] {
        for body in [
            r#"{"payload": {"text": "b0dy-of-a-call"}, "timeout_ms": 100}"#,
            "b0dy-of-a-call",
        ] {
            let subject = format!("beamline.bridge.v1.{subject}");
            let _answer_or_none = client.request(subject, body.into()).await;
        }
    }
    file.change(&bridge, "api-key = \"k3y-of-admin-2\"\nprefix = \"other\"\n");
    file.change(&bridge, "api-key = \"k3y-of-admin-2\"\nprefx = \"other\"\n");
    assert_eq!(bridge.terminate().code(), Some(0));
    let log = bridge.log();
    for secret in ["t0ken-of-nats", "k3y-of-admin", "b0dy-of-a-call"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
    let mut messages = Vec::new();
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        assert!(entry["fields"]["message"].is_string(), "{line}");
        messages.push(entry["fields"]["message"].as_str().unwrap_or_default().to_owned());
    }
    for wanted in [
        "started",
        "prefix: needs a restart",
        "the settings were read again",
        "draining",
        "stopped",
    ] {
        assert!(
            messages.iter().any(|message| message == wanted),
            "{wanted}: {messages:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_gets_a_new_login_while_calls_go_on() {
    let watch = ports::free();
    let conf = format!(
        r#"http: "127.0.0.1:{watch}"
        no_auth_user: guest
        authorization {{ users = [
            {{user: guest, password: guest}}, {{user: first, password: one}}, {{user: second, password: two}}
        ] }}"#
    );
    let nats = Nats::start_configured(&conf, &[]);
    // How many connections of the bridge each of the two users has.
    let logins = || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, watch));
        let (_, body) = http::get(address, "/connz?auth=1").expect("nats-server listens");
        let found: Value = serde_json::from_str(&body).expect("JSON");
        let connections = found["connections"].as_array().cloned().unwrap_or_default();
        let of = |user: &str| connections.iter().filter(|c| c["authorized_user"] == user).count();
        (of("first"), of("second"))
    };
    let file = File::new("nats-user = \"first\"\nnats-password = \"one\"\n");
    let flags = ["--config", file.path(), "--loops", "2"];
    let bridge = Bridge::start_on_fixtures(&nats, &flags);
    let services = Services::start(&nats, &["a"]).await;
    let caller = Caller::new(&nats).await;
    assert_eq!(logins(), (2, 0));
    let (over, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let (caller, over, made) = (caller.clone(), Arc::clone(&over), Arc::clone(&made));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let body = json!({"payload": {"text": "x"}});
                    assert_eq!(caller.invoke("normalize_text", &body).await.error(), None);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let go_on = || {
        let before = made.load(Ordering::Relaxed);
        wait_until("calls go on", SOON, || made.load(Ordering::Relaxed) > before + 100);
    };
    go_on();

    // Refused: it is said, without the password, and the connections that stand serve.
    let log = file.change(&bridge, "nats-user = \"second\"\nnats-password = \"wr0ng\"\n");
    assert!(
        log.contains("the way to NATS stays as it was") && !log.contains("wr0ng"),
        "{log}"
    );
    assert_eq!(logins(), (2, 0));
    go_on();

    file.change(&bridge, "nats-user = \"second\"\nnats-password = \"two\"\n");
    wait_until("the old connections are gone", SOON, || logins() == (0, 2));
    go_on();
    over.store(true, Ordering::Relaxed);
    for call in calls {
        call.await.expect("no call fails");
    }
    assert_eq!(
        services.served("normalize_text").await,
        made.load(Ordering::Relaxed) as u64,
        "each was made once"
    );
    assert_eq!(bridge.readiness(), 200);
}
