//! `deploy/nats/permissions.conf`: enough for everything that each user is there for, and nothing else.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerError};
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, bridge, eventually, micro, places, wait_until};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

const SOON: Duration = Duration::from_secs(30);
const USERS: [&str; 4] = ["bridge", "gateway", "operator", "service"];

fn inbox(user: &str) -> String {
    match user {
        "bridge" => "_INBOX.bridge".to_owned(),
        _ => format!("_INBOX.callers.{user}"),
    }
}

fn text() -> String {
    std::fs::read_to_string(places::root().join("deploy/nats/permissions.conf")).expect("it is there")
}

/// A server with these lines as its configuration; each user's password is `of-<user>`.
fn server(configuration: &str) -> Nats {
    let variables = USERS.map(|user| (format!("NATS_{}_PASSWORD", user.to_uppercase()), format!("of-{user}")));
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Nats::start_configured(configuration, &variables)
}

/// A server that includes the very file.
fn with_the_file(place: &str) -> Nats {
    // It is looked for from the folder of the file that includes it.
    let up = "../".repeat(30);
    let file = places::root().join("deploy/nats/permissions.conf");
    let end = "}".repeat(place.matches('{').count() + 1);
    server(&format!("{place} {{ include \"{up}{}\" {end}", file.display()))
}

/// A server with other permissions: the file with some lines of it, which have to be there, replaced.
fn with_changes(changes: &[(&str, &str)]) -> Nats {
    let mut text = text();
    for (old, new) in changes {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    server(&format!("authorization {{ {text} }}"))
}

/// A client of one of the users, and what the server has refused to it.
struct User {
    client: Client,
    refused: Arc<Mutex<Vec<String>>>,
}

impl User {
    async fn connect(nats: &Nats, user: &str) -> Self {
        let refused = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&refused);
        let client = ConnectOptions::with_user_and_password(user.to_owned(), format!("of-{user}"))
            .custom_inbox_prefix(inbox(user))
            .event_callback(move |event| {
                if let Event::ServerError(ServerError::Other(text)) = event {
                    noted.lock().expect("nobody panics").push(text);
                }
                std::future::ready(())
            })
            .connect(nats.url())
            .await
            .expect("the user is let in");
        Self { client, refused }
    }

    /// Waits until the server has refused just this, the first thing that it refuses.
    async fn is_refused(&self, what: &str) {
        eventually(SOON, async || {
            let refused = self.refused.lock().expect("nobody panics").clone();
            if refused.is_empty() {
                Err(what.to_owned())
            } else {
                Ok(())
            }
        })
        .await;
        let refused = std::mem::take(&mut *self.refused.lock().expect("nobody panics"));
        assert_eq!(refused.len(), 1, "{what}: {refused:?}");
        assert!(
            refused[0].starts_with(&format!("Permissions Violation for {what}")),
            "{what}: {refused:?}"
        );
    }
}

/// The flags of a command as one of the users.
fn flags<'a>(user: &'a str, password: &'a str, inbox: &'a str) -> [&'a str; 6] {
    [
        "--nats-user",
        user,
        "--nats-password",
        password,
        "--nats-inbox-prefix",
        inbox,
    ]
}

/// Answers the provider's requests by what comes through the channel; tells when one has come.
async fn provider(nats: &Nats) -> (mpsc::UnboundedReceiver<oneshot::Sender<()>>, User) {
    let service = User::connect(nats, "service").await;
    let mut requests = service
        .client
        .queue_subscribe("beamline.provider.p.v1", "p".to_owned())
        .await
        .expect("a subscription");
    service.client.flush().await.expect("a server");
    let (tell, told) = mpsc::unbounded_channel();
    let client = service.client.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let (go, gone) = oneshot::channel();
            if tell.send(go).is_err() {
                return;
            }
            let _ = gone.await; // dropped is as good
            let answer = json!({"provider_id": "p", "output": "said", "usage": {}}).to_string();
            let reply = request.reply.expect("a request");
            client.publish(reply, answer.into()).await.expect("a connection");
        }
    });
    (told, service)
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_do_what_they_are_there_for() {
    let nats = with_the_file("authorization");
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject, timeout_ms, metadata) values
                   ('x', 'pre', 'beamline.ext.pre.x.v1', 5000, '{"discover_subject_prefix": "beamline.ext.pre.x"}'),
                   ('p', 'provider', 'beamline.provider.p.v1', 20000, '{}');
               insert into extension_instances (extension_id, instance_id, subject, weight, metadata)
               values ('x', 'asked', 'beamline.ext.pre.x.v1', 100, '{"health_subject": "beamline.ext.pre.x.health"}');
               insert into extension_policies (tenant_id, policy_id, document)
               values ('t', 'both', '{"pre": [{"id": "x"}], "providers": ["p"]}')"#,
        )
        .await;
    let login = format!("nats://service:of-service@127.0.0.1:{}", nats.port());
    let subjects = [
        "beamline.ext.pre.x.v1",
        "beamline.ext.pre.x.v1.here",
        "beamline.ext.pre.x.health",
    ];
    let _x = micro::service_at(&login, "x", &subjects);
    let (mut asked, _service) = provider(&nats).await;

    let directory = Directory::new("settings-", None);
    let file = directory.path().join("ext-bridge.toml");
    std::fs::write(&file, "").expect("our own directory");
    let own = inbox("bridge");
    let mut all: Vec<&str> = flags("bridge", "of-bridge", &own).to_vec();
    all.extend([
        "--config",
        file.to_str().expect("UTF-8"),
        "--loops",
        "2",
        "--api-key",
        "k",
    ]);
    all.extend([
        "--probe-interval",
        "200ms",
        "--discover",
        "--discover-interval",
        "200ms",
    ]);
    let bridge = Bridge::start(&nats, &database, &all);
    let gateway = User::connect(&nats, "gateway").await;
    let operator = User::connect(&nats, "operator").await;
    let (calls, admin) = (Caller::by(gateway.client.clone()), Caller::by(operator.client.clone()));

    // Calls.
    let reply = calls.invoke("x", &json!({"payload": {}})).await;
    assert_eq!(
        (reply.error(), &reply.body["payload"]["by"]),
        (None, &json!("x")),
        "{}",
        reply.body
    );
    let request = json!({"tenant_id": "t", "policy_id": "both", "message": {"payload": "hello"}});
    let routed = tokio::spawn({
        let calls = calls.clone();
        async move { calls.route(&request).await }
    });
    let go = asked.recv().await.expect("a request");
    // While it is under way the bridge moves to other connections; the reply goes by one of these. What changes is nothing that
    // this server asks for.
    std::fs::write(&file, "nats-token = \"any\"\n").expect("our own directory");
    bridge.hang_up();
    wait_until("both loops move", SOON, || {
        bridge.log().matches("has taken over").count() == 2
    });
    go.send(()).expect("the service waits");
    let reply = routed.await.expect("it does not panic");
    assert_eq!(reply.error(), None, "{}", reply.body);

    // Health checks and services that register themselves.
    eventually(SOON, async || {
        let sql = "select coalesce(string_agg(subject || ' ' || health_status, ', ' order by subject, instance_id), '')
                   from extension_instances";
        let now = session.one(sql, &[]).await;
        let here = now.contains("beamline.ext.pre.x.v1 healthy") && now.contains("beamline.ext.pre.x.v1.here healthy");
        if here { Ok(()) } else { Err(now) }
    })
    .await;
    let instances = "select count(*)::text from extension_instances where health_status <> 'healthy'";
    eventually(SOON, async || match session.one(instances, &[]).await.as_str() {
        "0" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;

    // Admin operations, events, the micro service.
    let mut events = operator
        .client
        .subscribe("beamline.bridge.v1.events")
        .await
        .expect("a subscription");
    operator.client.flush().await.expect("a server");
    let with_key = async |op: &str, body: Value| -> Value {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "k");
        let subject = format!("beamline.bridge.v1.admin.{op}");
        let body = body.to_string().into();
        let answer = operator.client.request_with_headers(subject, headers, body).await;
        serde_json::from_slice(&answer.expect("it answers").payload).expect("JSON")
    };
    assert!(with_key("get_extension_health", json!({})).await["health"].is_object());
    for op in ["get_circuit_breaker_states", "reload"] {
        let answer = with_key(op, json!({})).await;
        assert!(answer.is_object() && answer["error"].is_null(), "{op}: {answer}");
    }
    let info = admin.send("$SRV.INFO.ext-bridge", Vec::new()).await;
    assert_eq!(info.body["name"], "ext-bridge");
    session
        .run("update extensions set timeout_ms = 4000 where id = 'x'")
        .await;
    let event = tokio::time::timeout(SOON, events.next())
        .await
        .expect("an event")
        .expect("a connection");
    let event: Value = serde_json::from_slice(&event.payload).expect("JSON");
    assert!(event["type"].is_string(), "{event}");

    // The commands.
    let output = bridge::run(
        &nats,
        &database,
        &[&["check"][..], &flags("bridge", "of-bridge", &own)].concat(),
        "",
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("beamline.provider.p.v1 (p) has a listener"), "{said}");
    assert!(!said.contains("FAIL"), "{said}");
    let caller = inbox("gateway");
    let command = [&["invoke", "x"][..], &flags("gateway", "of-gateway", &caller)].concat();
    let output = bridge::run(&nats, &database, &command, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    assert!(!bridge.log().contains("may not"), "{}", bridge.log());
    assert!(!nats.log().contains("iolation"), "{}", nats.log());
}

#[tokio::test]
async fn nobody_can_do_what_the_others_are_there_for() {
    // Within an account, for a change.
    let nats = with_the_file("accounts { APP");
    let all = [
        ("gateway", "Publish", "beamline.bridge.v1.admin.reload"),
        ("gateway", "Publish", "beamline.bridge.v1.events"),
        ("gateway", "Publish", "beamline.ext.pre.x.v1"),
        ("gateway", "Publish", "$SRV.PING"),
        ("gateway", "Publish", "_INBOX.callers.operator.a"),
        ("gateway", "Subscription", "_INBOX.>"),
        ("gateway", "Subscription", "_INBOX.callers.*.*"),
        ("gateway", "Subscription", "_INBOX.callers.gateway-2.>"),
        ("gateway", "Subscription", "_INBOX.bridge.>"),
        ("gateway", "Subscription", "beamline.bridge.v1.events"),
        ("gateway", "Subscription", "beamline.bridge.v1.invoke.*"),
        ("gateway", "Subscription", ">"),
        ("service", "Publish", "beamline.bridge.v1.invoke.x"),
        ("service", "Publish", "beamline.bridge.v1.route"),
        ("service", "Publish", "beamline.bridge.v1.admin.reload"),
        ("service", "Publish", "beamline.bridge.v1.events"),
        ("service", "Publish", "beamline.ext.pre.x.v1"),
        ("service", "Publish", "_INBOX.bridge.a"),
        ("service", "Subscription", "_INBOX.>"),
        ("service", "Subscription", "_INBOX.bridge.*"),
        ("service", "Subscription", "beamline.bridge.v1.>"),
        ("operator", "Publish", "beamline.bridge.v1.invoke.x"),
        ("operator", "Publish", "beamline.bridge.v1.route"),
        ("operator", "Publish", "beamline.bridge.v1.events"),
        ("operator", "Publish", "beamline.provider.p.v1"),
        ("operator", "Subscription", "_INBOX.callers.gateway.>"),
        ("operator", "Subscription", "beamline.ext.>"),
        // Only as one of its group would it get calls; and nobody reads along.
        ("bridge", "Subscription", "beamline.bridge.v1.invoke.*"),
        ("bridge", "Subscription", "_INBOX.callers.>"),
        ("bridge", "Publish", "beamline.bridge.v1.admin.reload"),
        ("bridge", "Publish", "beamline.bridge.v1.invoke.x"),
    ];
    for user in USERS {
        let one = User::connect(&nats, user).await;
        let its_own = all.iter().filter(|(of, ..)| *of == user);
        for &(_, what, subject) in its_own {
            if what == "Publish" {
                one.client.publish(subject, "".into()).await.expect("a connection");
            } else {
                // Kept: its end would be one more line to the server.
                std::mem::forget(one.client.subscribe(subject).await.expect("a connection"));
            }
            one.is_refused(&format!("{what} to \"{subject}\"")).await;
        }
    }
    // Who does not say which inbox is its own gets no reply, and is told so.
    let client = ConnectOptions::with_user_and_password("gateway".to_owned(), "of-gateway".to_owned());
    let client = client.connect(nats.url()).await.expect("the user is let in");
    let request = async_nats::Request::new().timeout(Some(Duration::from_millis(200)));
    assert!(client.send_request("beamline.bridge.v1.route", request).await.is_err());
    assert!(nats.log().contains("Subscription Violation"), "{}", nats.log());
}

/// How often the log has a line with all of these.
fn lines(log: &str, parts: &[&str]) -> usize {
    log.lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .count()
}

#[tokio::test]
async fn a_bridge_that_may_not_ask_an_extension_says_so() {
    let nats = with_changes(&[(
        "\"beamline.ext.>\"\n        \"beamline.provider.>\"",
        "\"beamline.provider.>\"",
    )]);
    let own = inbox("bridge");
    let bridge = Bridge::start_on_fixtures(&nats, &flags("bridge", "of-bridge", &own));
    let service = User::connect(&nats, "service").await;
    let _requests = service
        .client
        .subscribe("beamline.ext.>")
        .await
        .expect("a subscription");
    service.client.flush().await.expect("a server");
    let calls = Caller::by(User::connect(&nats, "gateway").await.client);
    for _ in 0..2 {
        let begin = Instant::now();
        let reply = calls
            .invoke("normalize_text", &json!({"payload": {"text": "x"}, "timeout_ms": 300}))
            .await;
        assert!(matches!(reply.error(), Some((_, 504))), "{}", reply.body);
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
    let subject = "beamline.ext.pre.normalize_text.v1";
    let (log, parts) = (
        bridge.log(),
        [
            "WARN",
            "this user of NATS may not publish to",
            subject,
            "give it the permission",
        ],
    );
    assert_eq!(lines(&log, &parts), 1, "once for all: {log}");
}

#[test]
fn a_bridge_that_would_never_hear_of_anything_does_not_start() {
    let (own, others) = (inbox("bridge"), "_INBOX.callers.gateway");
    for (changes, inbox, named) in [
        (
            &[("\"beamline.bridge.v1.invoke.* ext-bridge\"\n", "")][..],
            own.as_str(),
            "beamline.bridge.v1.invoke.*",
        ),
        (
            &[("\"beamline.bridge.v1.route ext-bridge\"\n", "")],
            &own,
            "beamline.bridge.v1.route",
        ),
        (&[], "_INBOX", "by --nats-inbox-prefix"),
        (&[], others, others),
    ] {
        let nats = with_changes(changes);
        let (code, said) = Bridge::refuses_on_fixtures(&nats, &flags("bridge", "of-bridge", inbox));
        assert_eq!(code, Some(3), "{named}: {said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("ext-bridge: this user of NATS may not subscribe to "),
            "{named}: {said}"
        );
        assert!(last.contains(named), "{named}: {said}");
    }
    // What is less is said, and the rest goes on.
    let nats = with_changes(&[
        ("\"beamline.bridge.v1.admin.* ext-bridge\"\n", ""),
        ("\"$SRV.INFO\", ", ""),
    ]);
    let bridge = Bridge::start_on_fixtures(&nats, &flags("bridge", "of-bridge", &own));
    let log = bridge.log();
    for subject in ["beamline.bridge.v1.admin.dry_run_pipeline", "$SRV.INFO;"] {
        assert_eq!(lines(&log, &["WARN", "may not subscribe to", subject]), 1, "{log}");
    }
}

#[tokio::test]
async fn a_bridge_that_may_not_ask_services_holds_nothing_against_them() {
    let nats = with_changes(&[
        // Its last place is where it publishes.
        ("\"$SRV.INFO\"\n        \"$SRV.PING.>\"", "\"$SRV.PING.>\""),
        ("\"beamline.bridge.v1.events\"\n        # --probe", "# --probe"),
    ]);
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extensions (id, type, subject, metadata) values
                   ('x', 'pre', 'beamline.ext.pre.x.v1', '{"discover_subject_prefix": "beamline.ext.pre.x"}');
               insert into extension_instances (extension_id, instance_id, subject, metadata) values
                   ('x', 'named', 'beamline.ext.pre.x.named', '{"service_name": "x"}'),
                   ('x', 'asked', 'beamline.ext.pre.x.asked', '{"health_subject": "health.x"}'),
                   ('x', 'found', 'beamline.ext.pre.x.found', '{"discovered": true, "service_id": "I"}')"#,
        )
        .await;
    let own = inbox("bridge");
    let mut all: Vec<&str> = flags("bridge", "of-bridge", &own).to_vec();
    all.extend([
        "--probe-interval",
        "200ms",
        "--discover",
        "--discover-interval",
        "200ms",
    ]);
    let bridge = Bridge::start(&nats, &database, &all);
    for (result, least) in [("inconclusive", 20.0), ("unknown", 10.0)] {
        let series = format!("ext_bridge_probes_total{{result=\"{result}\"}}");
        eventually(SOON, async || match bridge.metric(&series) {
            Some(count) if count >= least => Ok(()),
            other => Err(format!("{result}: {other:?}")),
        })
        .await;
    }
    let failed = bridge.metric("ext_bridge_probes_total{result=\"failed\"}");
    assert!(failed.is_none_or(|failed| failed < 0.5), "{failed:?}");
    let sql =
        "select string_agg(instance_id || ' ' || health_status, ', ' order by instance_id) from extension_instances";
    assert_eq!(
        session.one(sql, &[]).await,
        "asked unknown, found unknown, named unknown"
    );
    session
        .run("update extensions set timeout_ms = 4000 where id = 'x'")
        .await;
    for subject in ["$SRV.INFO;", "health.x;", "beamline.bridge.v1.events;"] {
        wait_until(&format!("{subject} is named"), SOON, || {
            lines(&bridge.log(), &["WARN", "may not publish to", subject]) == 1
        });
    }
}

#[test]
fn the_commands_say_what_is_denied_and_do_not_wait_for_it() {
    let nats = with_changes(&[(
        "\"beamline.ext.>\"\n        \"beamline.provider.>\"",
        "\"beamline.ext.>\"",
    )]);
    let cluster = Postgres::shared();
    let fixtures = places::root().join("fixtures").display().to_string();
    let (gateway, own) = (inbox("gateway"), inbox("bridge"));
    let run = |command: &[&str], flags: &[&str]| {
        let begin = Instant::now();
        let more = ["--source", "fixtures", "--fixtures", &fixtures];
        let output = bridge::run_on(&nats, cluster, "none", &[command, flags, &more].concat(), "");
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{command:?}: {:?}",
            begin.elapsed()
        );
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said)
    };
    // There is one that answers.
    let _bridge = Bridge::start_on_fixtures(&nats, &flags("bridge", "of-bridge", &own));
    let invoke = ["invoke", "normalize_text"];
    for (user, password, inbox, named) in [
        ("gateway", "of-gateway", "_INBOX", "subscribe to _INBOX."),
        (
            "service",
            "of-service",
            "_INBOX.callers.service",
            // Neither the one nor the other; either is said.
            " to ",
        ),
        (
            "operator",
            "of-operator",
            "_INBOX.callers.operator",
            "publish to beamline.bridge.v1.invoke.normalize_text",
        ),
    ] {
        let (code, said) = run(&invoke, &flags(user, password, inbox));
        assert_eq!((code, said.lines().count()), (Some(3), 1), "{user}: {said}");
        assert!(
            said.starts_with("ext-bridge: no reply: this user of NATS may not "),
            "{user}: {said}"
        );
        assert!(said.contains(named), "{user}: {said}");
    }
    let (code, said) = run(&["check"], &flags("bridge", "of-bridge", &own));
    assert_eq!(code, Some(1), "{said}");
    let provider = ["FAIL", "subject: beamline.provider.test_provider", "may not publish to"];
    assert!(lines(&said, &provider) > 0, "{said}");
    let (code, said) = run(&["check"], &flags("bridge", "of-bridge", &gateway));
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(
        lines(&said, &["FAIL  nats: ", "may not subscribe to", &gateway]),
        1,
        "{said}"
    );
}
