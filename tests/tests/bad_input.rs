//! What is wrong is refused when it is written or when it arrives, named, with nothing stored and nobody's breaker touched.

use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, eventually};
use serde_json::{Value, json};

/// Each statement fails with that SQLSTATE and a message (or its detail) that holds the text, which names the value or key.
/// All come with a HINT.
const STATEMENTS: &[(&str, &str, &str)] = &[
    // Names and subjects
    (
        "insert into extensions (id, type, subject) values ('a b', 'pre', 's')",
        "23514",
        "a b",
    ),
    (
        "insert into extensions (id, type, subject) values ('', 'pre', 's')",
        "23514",
        "id",
    ),
    (
        "insert into extensions (id, type, subject) values ('größe', 'pre', 's')",
        "23514",
        "größe",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'filter', 's')",
        "23514",
        "filter",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', 'a..b')",
        "23514",
        "a..b",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', 'a.*')",
        "23514",
        "a.*",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', 'a.>')",
        "23514",
        "a.>",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', 'a b')",
        "23514",
        "a b",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', '$SYS.x')",
        "23514",
        "$SYS.x",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', '_INBOX.x')",
        "23514",
        "_INBOX.x",
    ),
    (
        "insert into extensions (id, type, subject) values ('y', 'pre', '')",
        "23514",
        "subject",
    ),
    ("update extensions set version = 'v 1'", "23514", "v 1"),
    // Numbers
    ("update extensions set timeout_ms = 9", "23514", "9"),
    ("update extensions set timeout_ms = 300001", "23514", "300001"),
    ("update extensions set retry = 11", "23514", "11"),
    ("update extensions set retry = -1", "23514", "-1"),
    ("update extension_instances set weight = 101", "23514", "101"),
    ("update extension_instances set health_status = 'sick'", "23514", "sick"),
    (
        "update extension_versions set rollout_percent = 100.01",
        "23514",
        "100.01",
    ),
    ("update extension_versions set rollout_percent = -1", "23514", "-1"),
    ("update extensions set balancing = 'random'", "23514", "random"),
    ("update extensions set config = '[1]'", "23514", "config"),
    // Rules
    ("update extension_versions set routing_rules = '[]'", "23514", "object"),
    (
        r#"update extension_versions set routing_rules = '{"a": {"like": "x%"}}'"#,
        "23514",
        "like",
    ),
    (
        r#"update extension_versions set routing_rules = '{"a": {"regex": "("}}'"#,
        "23514",
        "(",
    ),
    (
        r#"update extension_versions set routing_rules = '{"a": {"gt": true}}'"#,
        "23514",
        "gt",
    ),
    (
        r#"update extension_versions set routing_rules = '{"a": {"semver": "newish"}}'"#,
        "23514",
        "newish",
    ),
    // Settings, through the view as people do
    (
        "update extension_health set circuit_breaker_error_rate_threshold = 1.5",
        "23514",
        "1.5",
    ),
    (
        "update extension_health set circuit_breaker_window_seconds = 0",
        "23514",
        "0",
    ),
    (
        "update extension_health set circuit_breaker_window_seconds = 3601",
        "23514",
        "3601",
    ),
    (
        "update extension_health set half_open_max_requests = 101",
        "23514",
        "101",
    ),
    ("update extension_health set breaker_mode = 'ajar'", "23514", "ajar"),
    // Policies
    (
        "insert into extension_policies values ('t', 'p', '[]')",
        "23514",
        "object",
    ),
    (
        r#"insert into extension_policies values ('t', 'p', '{"prae": []}')"#,
        "23514",
        "prae",
    ),
    (
        r#"insert into extension_policies values ('t', 'p', '{"pre": [{"id": "a", "mode": "maybe"}]}')"#,
        "23514",
        "maybe",
    ),
    (
        r#"insert into extension_policies values ('t', 'p', '{"validators": [{"id": "a", "on_fail": "shout"}]}')"#,
        "23514",
        "shout",
    ),
    (
        r#"insert into extension_policies values ('t', 'p', '{"pre": [{"id":"a"},{"id":"b"},{"id":"c"},{"id":"d"},{"id":"e"},{"id":"f"}]}')"#,
        "23514",
        "pre",
    ),
    (
        r#"insert into extension_policies values ('t', 'p', '{"providers": [{"name": "a", "weight": -1}]}')"#,
        "23514",
        "-1",
    ),
    // Documents
    (
        r#"select ext_register('{"id": "y", "type": "pre"}')"#,
        "22023",
        "subject",
    ),
    (
        r#"select ext_register('{"id": "y", "type": "pre", "subject": "s", "timeout": 5}')"#,
        "22023",
        "timeout",
    ),
    (
        r#"select ext_import('{"extensions": [{"id": "y", "type": "pre", "subject": "s"}, {"id": "z z", "type": "pre", "subject": "s"}]}')"#,
        "22023",
        "z z",
    ),
    // Decisions and reports
    ("select ext_select('x', '3')", "22023", "object"),
    (
        "select ext_select_many(array['x'], array['{}', '{}']::jsonb[])",
        "22023",
        "2",
    ),
    ("select ext_report('x', 'splendid', 1)", "22023", "splendid"),
    ("select ext_report('nobody', 'success', 1)", "42704", "nobody"),
    ("select ext_report('x', 'success', 'NaN')", "22023", "NaN"),
    ("select ext_report('x', 'success', -0.5)", "22023", "-0.5"),
    ("select ext_report('x', 'success', null)", "22023", "latency"),
    (
        "select ext_report_many(array[1, 2], array['success'], array[1.0, 2.0], array[0, 0])",
        "22023",
        "1",
    ),
    (
        "select ext_report_many(array[1, 2], array['success', 'fine'], array[1.0, 2.0], array[0, 0])",
        "22023",
        "fine",
    ),
    // What is measured is not written
    (
        "update extension_health set success_count = 0",
        "55000",
        "success_count",
    ),
    (
        "update extension_health set circuit_breaker_state = 'open'",
        "22023",
        "open",
    ),
    (
        "insert into extension_health (extension_id) values ('x')",
        "55000",
        "extension_health",
    ),
    ("delete from extension_health", "55000", "extension_health"),
];

#[tokio::test]
async fn statements_are_refused_by_name_and_store_nothing() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run(
            "insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1');
             insert into extension_versions (id, version, subject, timeout_ms, retry) values ('x', 'v2', 'x.v2', 100, 0);
             insert into extension_instances (extension_id, instance_id, subject) values ('x', 'a', 'x.v1')",
        )
        .await;
    let state = "select jsonb_build_array(ext_export(), (select jsonb_agg(to_jsonb(h)) from extension_health h),
                 (select count(*) from extension_policies))::text";
    let before = session.one(state, &[]).await;

    let mut amiss = Vec::new();
    for (statement, code, text) in STATEMENTS {
        let error = session.error_of(statement).await;
        let named = error.message().contains(text) || error.detail().is_some_and(|detail| detail.contains(text));
        let hinted = error.hint().is_some_and(|hint| !hint.is_empty());
        if error.code().code() != *code || !named || !hinted {
            amiss.push(format!(
                "{statement}\n    wanted {code} naming {text}, with a hint; got {error:?}"
            ));
        }
    }
    assert!(
        amiss.is_empty(),
        "{} of {}:\n{}",
        amiss.len(),
        STATEMENTS.len(),
        amiss.join("\n")
    );
    assert_eq!(session.one(state, &[]).await, before);
}

#[tokio::test]
async fn one_bad_report_in_a_batch_applies_none() {
    let database = Postgres::shared().database();
    let session = database.connect().await;
    session
        .run("insert into extensions (id, type, subject) values ('x', 'pre', 'x.v1')")
        .await;
    let tickets = [
        session.select("x", &json!({})).await.ticket,
        session.select("x", &json!({})).await.ticket,
    ];
    let report = "select applied from ext_report_many($1, $2, array[1.0, 2.0], array[0, 0])";
    let bad = session
        .query_one(report, &[&&tickets[..], &vec!["success", "fine"]])
        .await;
    assert!(bad.is_err(), "{bad:?}");
    assert_eq!(session.counts("x").await, (0, 0));
    let good = session
        .query_one(report, &[&&tickets[..], &vec!["success", "error"]])
        .await
        .expect("both are good");
    assert_eq!(good.get::<_, i32>(0), 2, "the tickets are still good");
    assert_eq!(session.counts("x").await, (1, 1));
}

#[tokio::test]
async fn requests_are_refused_before_anything_is_decided() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let services = Services::start(&nats, &[]).await;
    let _bridge = Bridge::start(&nats, &database, &[]);
    let caller = Caller::new(&nats).await;
    let session = database.connect().await;
    let invoke = "beamline.bridge.v1.invoke.normalize_text";
    let route = "beamline.bridge.v1.route";

    let nested = |depth: usize| format!("{{\"payload\":{}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let many = |count: usize| json!({ "payload": { "list": vec![0; count] } }).to_string();
    let wide = |count: usize| {
        let object: serde_json::Map<String, Value> = (0..count).map(|n| (format!("k{n}"), json!(n))).collect();
        json!({ "payload": object }).to_string()
    };
    let refused = [
        (invoke, "not json".to_owned()),
        (invoke, String::new()),
        (invoke, "[1]".to_owned()),
        (invoke, "{}".to_owned()),
        (invoke, r#"{"payload": "text"}"#.to_owned()),
        (invoke, r#"{"payload": {}, "tenant_id": 7}"#.to_owned()),
        (invoke, r#"{"payload": {}, "timeout_ms": "soon"}"#.to_owned()),
        (invoke, r#"{"payload": {}, "metadata": []}"#.to_owned()),
        (invoke, r#"{"payload": {}"#.to_owned()),
        (invoke, nested(12)),
        (invoke, many(1001)),
        (invoke, wide(51)),
        (
            invoke,
            json!({ "payload": {}, "metadata": { "big": "x".repeat(70_000) } }).to_string(),
        ),
        (route, r#"{"tenant_id": "default", "policy_id": "full"}"#.to_owned()),
        (route, r#"{"policy_id": "full", "message": {}}"#.to_owned()),
        (
            route,
            r#"{"tenant_id": "default", "policy_id": "full", "message": "hello"}"#.to_owned(),
        ),
    ];
    for (subject, body) in refused {
        let reply = caller.send(subject, body.clone().into_bytes()).await;
        let shown: String = body.chars().take(80).collect();
        assert_eq!(
            reply.error(),
            Some(("invalid_request", 400)),
            "{subject} {shown}: {reply:?}"
        );
    }
    let reply = caller.send(invoke, vec![b'{', 0xff, b'}']).await;
    assert_eq!(reply.error(), Some(("invalid_request", 400)), "not UTF-8: {reply:?}");
    // A subject that is no id was never registered.
    let reply = caller
        .send("beamline.bridge.v1.invoke.no_such", br#"{"payload": {}}"#.to_vec())
        .await;
    assert_eq!(reply.error(), Some(("extension_not_found", 404)));

    // At the limits, and just within, it works; and this call is the only one that counts.
    let reply = caller.send(invoke, many(1000).into_bytes()).await;
    assert_eq!(reply.error(), None, "{reply:?}");
    eventually(std::time::Duration::from_secs(10), async || {
        let counts = session.counts("normalize_text").await;
        if counts == (1, 0) { Ok(()) } else { Err(counts) }
    })
    .await;
    assert_eq!(services.served("normalize_text").await, 1);
    let closed = "select bool_and(circuit_breaker_state = 'closed' and failure_count = 0)::text from extension_health";
    assert_eq!(session.one(closed, &[]).await, "true");
}
