//! Calls queued in SQL are made by a bridge; what happens in the registry is published; pipelines are tried without effects.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use ext_registry_tests::{Bridge, Caller, Database, Nats, Postgres, Services, Session, eventually, places};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

struct System {
    services: Services,
    session: Session,
    database: Database<'static>,
    nats: Nats,
}

impl System {
    /// Everything but a bridge.
    async fn start() -> Self {
        let nats = Nats::start();
        let database = Postgres::shared().database();
        database.load_fixtures();
        let services = Services::start(&nats, &[]).await;
        let session = database.connect().await;
        session.run("update extensions set timeout_ms = 5000").await;
        Self {
            services,
            session,
            database,
            nats,
        }
    }

    fn bridge(&self, flags: &[&str]) -> Bridge {
        Bridge::start(&self.nats, &self.database, flags)
    }

    /// Queues a call; committed on return.
    async fn ask(&self, extension: &str, payload: &Value) -> i64 {
        self.session
            .query_one("select ext_invoke($1, $2)", &[&extension, payload])
            .await
            .expect("a registered extension")
            .get(0)
    }

    /// State, result, error and attempts, once there is an end.
    async fn end(&self, id: i64) -> (String, Value, Value, i32) {
        let sql = "select state, result, error, attempts from ext_invoke_result($1, '20 s')";
        let row = self.session.query_one(sql, &[&id]).await.expect("our own call");
        let json = |column| row.get::<_, Option<Value>>(column).unwrap_or(Value::Null);
        (row.get(0), json(1), json(2), row.get(3))
    }
}

#[tokio::test]
async fn a_call_queued_in_sql_is_made_and_its_result_read() {
    let system = System::start().await;
    let bridge = system.bridge(&[]);
    let id = system.ask("normalize_text", &json!({ "text": "  Hello " })).await;
    let (state, result, error, attempts) = system.end(id).await;
    assert_eq!((state.as_str(), attempts), ("done", 1), "{error}");
    assert_eq!(result["payload"]["text"], "hello");
    // It counts like any other.
    eventually(SOON, async || match system.session.counts("normalize_text").await {
        (1, 0) => Ok(()),
        counts => Err(counts),
    })
    .await;

    // The procedure does all of it, whatever the isolation level.
    for level in ["read committed", "repeatable read", "serializable"] {
        system
            .session
            .run(&format!("set default_transaction_isolation = '{level}'"))
            .await;
        let call = r#"call ext_invoke_wait('normalize_text', '{"text": " AGAIN "}')"#;
        let row = system.session.query_one(call, &[]).await.expect("a result");
        assert_eq!(row.get::<_, Value>(0)["payload"]["text"], "again", "{level}");
    }

    // Not committed, not made; rolled back, never made.
    system.session.run("reset default_transaction_isolation").await;
    let served = system.services.served("normalize_text").await;
    system
        .session
        .run("begin; select ext_invoke('normalize_text', '{}'); rollback")
        .await;
    let id = system.ask("normalize_text", &json!({ "text": "last" })).await;
    assert_eq!(system.end(id).await.0, "done");
    assert_eq!(system.services.served("normalize_text").await, served + 1);
    let taken = r#"ext_bridge_queued_calls_total{state="done"}"#;
    assert_eq!(bridge.metric(taken), Some(5.0));
}

#[tokio::test]
async fn what_fails_gives_the_error_that_callers_on_nats_get() {
    let system = System::start().await;
    system
        .session
        .run(
            r#"update extensions set metadata = '{"allowed_tenants": ["acme"]}' where id = 'mask_pii';
               update extension_health set breaker_mode = 'metrics_only'"#,
        )
        .await;
    let _bridge = system.bridge(&[]);
    system.services.set("pii_guard", "error").await;
    let id = system.ask("pii_guard", &json!({ "text": "x" })).await;
    let (state, result, error, _) = system.end(id).await;
    assert_eq!((state.as_str(), &result), ("failed", &Value::Null));
    assert_eq!(error["code"], "extension_error", "{error}");
    assert_eq!(error["details"]["extension_id"], "pii_guard");
    system.services.set("pii_guard", "hang").await;
    system
        .session
        .run("update extensions set timeout_ms = 50, retry = 0 where id = 'pii_guard'")
        .await;
    let failed = system
        .session
        .error_of(r#"call ext_invoke_wait('pii_guard', '{"text": "x"}')"#)
        .await;
    assert_eq!(failed.code().code(), "38000", "{failed:?}");
    let error: Value = serde_json::from_str(failed.detail().expect("the error")).expect("JSON");
    assert_eq!(error["code"], "extension_timeout");

    // The context decides, and names the tenant.
    let asked = async |context: Value| {
        let sql = "select ext_invoke('mask_pii', '{\"payload\": \"x\"}', $1)";
        let row = system.session.query_one(sql, &[&context]).await.expect("queued");
        system.end(row.get(0)).await
    };
    let (_, _, error, _) = asked(json!({ "tenant_id": "other" })).await;
    assert_eq!(error["code"], "tenant_not_allowed", "{error}");
    let (state, _, error, _) = asked(json!({ "tenant_id": "acme" })).await;
    assert_eq!(state, "done", "{error}");

    // One that cannot be read does not keep others from being made.
    let deep = format!("{}{}", "[".repeat(50), "]".repeat(50));
    let sql = format!(
        "with asked as (
             insert into extension_invocations (extension_id, payload)
             select 'normalize_text', case n when 2 then '{{\"a\": {deep}}}' else '{{\"text\": \"A\"}}' end::jsonb
             from generate_series(1, 3) n returning id)
         select array_agg(id order by id) from asked"
    );
    let ids: Vec<i64> = system.session.query_one(&sql, &[]).await.expect("queued").get(0);
    let mut ends = Vec::new();
    for id in ids {
        let (state, _, error, _) = system.end(id).await;
        ends.push((state, error["code"].clone()));
    }
    let done = ("done".to_owned(), Value::Null);
    assert_eq!(
        ends,
        [done.clone(), ("failed".to_owned(), json!("invalid_request")), done]
    );
}

#[tokio::test]
async fn two_bridges_make_each_call_once() {
    let system = System::start().await;
    let bridges = [system.bridge(&[]), system.bridge(&["--loops", "2"])];
    system
        .session
        .run("select ext_invoke('normalize_text', jsonb_build_object('text', n)) from generate_series(1, 500) n")
        .await;
    let sql = "select count(*) filter (where state = 'done' and attempts = 1)::text from extension_invocations";
    eventually(SOON, async || match system.session.one(sql, &[]).await.as_str() {
        "500" => Ok(()),
        count => Err(count.to_owned()),
    })
    .await;
    assert_eq!(system.services.served("normalize_text").await, 500);
    let each: Vec<f64> = bridges
        .iter()
        .map(|bridge| {
            bridge
                .metric(r#"ext_bridge_queued_calls_total{state="done"}"#)
                .unwrap_or_default()
        })
        .collect();
    assert!((each[0] + each[1] - 500.0).abs() < 0.5, "{each:?}");
}

#[tokio::test]
async fn what_a_killed_bridge_held_another_takes_over() {
    let system = System::start().await;
    system.services.set("normalize_text", "hang").await;
    // A lease outlasts the longest call.
    let short = ["--max-call", "1s"];
    let mut first = system.bridge(&short);
    let id = system.ask("normalize_text", &json!({ "text": "A" })).await;
    eventually(SOON, async || match system.services.served("normalize_text").await {
        0 => Err("not made yet"),
        _ => Ok(()),
    })
    .await;
    first.kill();
    system.services.set("normalize_text", "ok").await;
    let lease = system
        .session
        .one("select leased_until::text from extension_invocations", &[])
        .await;
    let _second = system.bridge(&short);
    let (state, result, error, attempts) = system.end(id).await;
    assert_eq!((state.as_str(), attempts), ("done", 2), "{error}");
    let after = "select (finished_at > $1::text::timestamptz)::text from extension_invocations";
    assert_eq!(system.session.one(after, &[&lease]).await, "true", "not before {lease}");
    assert_eq!(result["payload"]["text"], "a");
}

#[tokio::test]
async fn a_bridge_that_ends_writes_what_it_made_and_leaves_the_rest() {
    let system = System::start().await;
    system
        .services
        .slow_down("normalize_text", Duration::from_millis(300))
        .await;
    let mut bridge = system.bridge(&[]);
    system
        .session
        .run(r#"select ext_invoke('normalize_text', '{"text": "A"}') from generate_series(1, 600)"#)
        .await;
    eventually(SOON, async || match system.services.served("normalize_text").await {
        0 => Err("not made yet"),
        _ => Ok(()),
    })
    .await;
    assert!(bridge.terminate().success(), "{}", bridge.log());
    let sql =
        "select format('%s %s', count(*) filter (where state = 'done'), count(*) filter (where state = 'running'))
               from extension_invocations";
    let (done, running): (u64, u64) = {
        let text = system.session.one(sql, &[]).await;
        let (done, running) = text.split_once(' ').expect("two numbers");
        (done.parse().expect("a number"), running.parse().expect("a number"))
    };
    assert_eq!(
        (done, running),
        (system.services.served("normalize_text").await, 0),
        "{}",
        bridge.log()
    );
    assert!(done < 600);
    system.services.set("normalize_text", "ok").await;
    let _other = system.bridge(&[]);
    let sql =
        "select format('%s %s', count(*) filter (where state = 'done'), max(attempts)) from extension_invocations";
    eventually(SOON, async || match system.session.one(sql, &[]).await.as_str() {
        "600 1" => Ok(()),
        state => Err(state.to_owned()),
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_loses_no_result() {
    let system = System::start().await;
    system
        .services
        .slow_down("normalize_text", Duration::from_millis(500))
        .await;
    let _bridge = system.bridge(&[]);
    system
        .session
        .run(r#"select ext_invoke('normalize_text', '{"text": "A"}') from generate_series(1, 20)"#)
        .await;
    eventually(SOON, async || match system.services.served("normalize_text").await {
        20 => Ok(()),
        served => Err(served),
    })
    .await;
    let sql = "select pg_terminate_backend(pid) from pg_stat_activity
               where application_name = 'ext-bridge' and datname = current_database()";
    system.session.run(sql).await;
    let sql = "select count(*) filter (where state = 'done' and attempts = 1)::text from extension_invocations";
    eventually(SOON, async || match system.session.one(sql, &[]).await.as_str() {
        "20" => Ok(()),
        count => Err(count.to_owned()),
    })
    .await;
    assert_eq!(
        system.services.served("normalize_text").await,
        20,
        "none was made again"
    );
    // And it listens and looks again.
    let id = system.ask("normalize_text", &json!({ "text": "B" })).await;
    assert_eq!(system.end(id).await.0, "done");
}

#[tokio::test]
async fn old_calls_are_gone() {
    let cluster = Postgres::start(&["ext_registry.launcher_naptime = '100ms'"]);
    let database = cluster.database();
    let session = database.connect().await;
    session
        .run(
            r#"insert into extension_invocations (extension_id, payload, asked_at)
               values ('x', '{"old": 1}', now() - interval '61 min'), ('x', '{"old": 0}', now() - interval '59 min')"#,
        )
        .await;
    let worker = "select worker_pid::text from ext_registry_status()";
    let pid = eventually(SOON, async || match session.one(worker, &[]).await.as_str() {
        "NULL" => Err("no worker"),
        pid => Ok(pid.to_owned()),
    })
    .await;
    // A worker cleans up when it starts, and every minute.
    session.run(&format!("select pg_terminate_backend({pid})")).await;
    eventually(SOON, async || {
        let left = session
            .one(
                "select string_agg(payload ->> 'old', ' ') from extension_invocations",
                &[],
            )
            .await;
        if left == "0" { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test]
async fn a_dump_restores_without_an_error_and_without_calls() {
    let system = System::start().await;
    system.ask("normalize_text", &json!({ "secret": "ZAQ" })).await;
    let cluster = system.database.cluster();
    let mut command = Command::new(places::pg_program("pg_dump"));
    for (name, value) in cluster.psql_command(system.database.name()).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let dump = command.output().expect("pg_dump can be started");
    assert!(dump.status.success() && dump.stderr.is_empty(), "{dump:?}");
    assert!(!String::from_utf8_lossy(&dump.stdout).contains("ZAQ"));
    let copy = cluster.database_without_extension();
    let mut restore = cluster
        .psql_command(copy.name())
        .args(["-q", "-v", "ON_ERROR_STOP=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("psql can be started");
    restore
        .stdin
        .take()
        .expect("a pipe")
        .write_all(&dump.stdout)
        .expect("psql reads to the end");
    assert!(restore.wait().expect("our own child").success());
    let policies =
        "select string_agg(polname || ' ' || pg_get_expr(polqual, polrelid), E'\\n' order by polname) from pg_policy";
    assert_eq!(copy.run(policies), system.database.run(policies));
    assert!(copy.run(policies).contains("own"));
    assert_eq!(copy.run("select count(*) from extension_invocations"), "0");
}

/// The events published until `enough` says so, by type.
async fn events(
    subscriber: &mut async_nats::Subscriber,
    mut enough: impl FnMut(&[(String, Value)]) -> bool,
) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    let take = |message: async_nats::Message| {
        let event: Value = serde_json::from_slice(&message.payload).expect("JSON");
        (
            event["type"].as_str().expect("a type").to_owned(),
            event["data"].clone(),
        )
    };
    let work = async {
        while !enough(&seen) {
            seen.push(take(subscriber.next().await.expect("a subscription")));
        }
    };
    let in_time = tokio::time::timeout(SOON, work).await.is_ok();
    assert!(in_time, "not enough: {seen:#?}");
    while let Some(Some(message)) = subscriber.next().now_or_never() {
        seen.push(take(message));
    }
    seen
}

#[tokio::test]
async fn events_are_published_once_by_one_bridge_of_three() {
    let system = System::start().await;
    let client = system.nats.connect().await;
    let mut subscriber = client
        .subscribe("beamline.bridge.v1.events")
        .await
        .expect("a subscription");
    client.flush().await.expect("a server");
    let mut bridges: Vec<Bridge> = (0..3).map(|_| system.bridge(&[])).collect();
    let leaders = |bridges: &[Bridge]| -> Vec<usize> {
        let leads = |bridge: &Bridge| bridge.log().contains("publishes the events");
        (0..bridges.len()).filter(|n| leads(&bridges[*n])).collect()
    };
    let leader = eventually(SOON, async || match leaders(&bridges)[..] {
        [leader] => Ok(leader),
        ref leaders => Err(leaders.to_vec()),
    })
    .await;

    // A transaction that is older and commits later; one that is open all the time.
    let (late, open) = (system.database.connect().await, system.database.connect().await);
    open.run("begin; select pg_current_xact_id()").await;
    late.run(
        "begin; insert into extensions (id, type, subject) values ('late', 'pre', 's.late');
         savepoint one; update extensions set timeout_ms = 77 where id = 'late'",
    )
    .await;
    system
        .session
        .run("insert into extensions (id, type, subject) values ('early', 'pre', 's.early')")
        .await;
    let of = |seen: &[(String, Value)], id: &str| {
        let mut kinds: Vec<String> = seen
            .iter()
            .filter(|(_, data)| data["extension_id"] == id)
            .map(|(kind, data)| format!("{kind} {}", data["action"].as_str().unwrap_or_default()))
            .collect();
        kinds.sort();
        kinds
    };
    let mut seen = events(&mut subscriber, |seen| !of(seen, "early").is_empty()).await;
    assert_eq!(of(&seen, "late"), [""; 0]);
    late.run("commit").await;
    seen.extend(events(&mut subscriber, |seen| of(seen, "late").len() >= 2).await);
    system
        .session
        .run("delete from extensions where id = 'early'; insert into extension_instances (extension_id, instance_id, subject) values ('late', 'i', 's')")
        .await;
    for _ in 0..5 {
        system
            .session
            .run("select ext_report('normalize_text', 'error', 1)")
            .await;
    }
    seen.extend(
        events(&mut subscriber, |seen| {
            seen.iter().any(|(kind, _)| kind == "circuit_state_updated") && of(seen, "late").len() == 1
        })
        .await,
    );
    let moved: Vec<&Value> = seen
        .iter()
        .filter(|(kind, _)| kind == "circuit_state_updated")
        .map(|(_, data)| data)
        .collect();
    assert_eq!(
        (moved.len(), &moved[0]["extension_id"], &moved[0]["to_state"]),
        (1, &json!("normalize_text"), &json!("open")),
        "{moved:?}"
    );
    assert_eq!(
        of(&seen, "early"),
        ["extension_created create", "extension_deleted delete"]
    );
    assert_eq!(
        of(&seen, "late"),
        [
            "extension_created create",
            "extension_updated create",
            "extension_updated update"
        ]
    );

    // The leader goes; another goes on where it was. While a transaction is open, it could not tell what had been published.
    open.run("commit").await;
    let written = "select (transaction_id > (select max(transaction_id) from extension_audit_log))::text from extension_publications";
    eventually(SOON, async || match system.session.one(written, &[]).await.as_str() {
        "true" => Ok(()),
        _ => Err(system
            .session
            .one("select p::text from extension_publications p", &[])
            .await),
    })
    .await;
    bridges[leader].kill();
    for n in 0..20 {
        system
            .session
            .run(&format!(
                "update extensions set timeout_ms = {} where id = 'late'",
                1000 + n
            ))
            .await;
    }
    let after = events(&mut subscriber, |seen| of(seen, "late").len() >= 20).await;
    seen.extend(after);
    let mut ids = BTreeMap::<String, usize>::new();
    for (_, data) in &seen {
        *ids.entry(data["id"].to_string()).or_default() += 1;
    }
    let twice: Vec<_> = ids.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(of(&seen, "late").len(), 23);
}

#[tokio::test]
async fn a_pipeline_is_tried_without_effects() {
    let system = System::start().await;
    let _bridge = system.bridge(&["--api-key", "secret"]);
    let caller = Caller::new(&system.nats).await;
    let admin = async |op: &str, key: &str, body: Value| -> Value {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", key);
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(body.to_string().into())
            .timeout(Some(SOON));
        let message = caller
            .client()
            .send_request(format!("beamline.bridge.v1.admin.{op}"), request)
            .await
            .expect("an answer");
        serde_json::from_slice(&message.payload).expect("JSON")
    };
    let request = json!({"tenant_id": "default", "policy_id": "full", "payload": "Where IS it?", "dry_run": true});
    let refused = admin("dry_run_pipeline", "wrong", request.clone()).await;
    assert_eq!(refused["error"]["code"], "unauthorized");
    let answer = admin("dry_run_pipeline", "secret", request.clone()).await;
    assert_eq!(answer["ok"], true, "{answer}");
    let result = &answer["result"];
    assert_eq!(result["decision"]["provider_id"], "test_provider");
    assert_eq!(
        (&result["provider_selected"], &result["blocked_by"]),
        (&json!("test_provider"), &Value::Null)
    );
    assert_eq!(result["final_payload"], "Where IS it?", "nothing was called");
    assert_eq!(result["post_processors_executed"], json!(["mask_pii"]));
    let executed: Vec<_> = result["executed_extensions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| format!("{} {} {}", item["id"], item["version"], item["status"]).replace('"', ""))
        .collect();
    assert_eq!(
        executed,
        [
            "normalize_text v1 dry_run",
            "pii_guard v1 dry_run",
            "test_provider v1 dry_run",
            "mask_pii v1 dry_run"
        ]
    );
    assert_eq!(system.services.served("normalize_text").await, 0);
    assert_eq!(system.services.served("test_provider").await, 0);

    // What refuses is named.
    system
        .session
        .run("update extensions set enabled = false where id = 'pii_guard'")
        .await;
    let blocked = admin("dry_run_pipeline", "secret", request.clone()).await;
    assert_eq!(
        (
            &blocked["ok"],
            &blocked["error"]["code"],
            &blocked["error"]["details"]["blocked_by"]
        ),
        (&json!(false), &json!("validator_blocked"), &json!("pii_guard")),
        "{blocked}"
    );
    for (missing, code) in [
        ("payload", "invalid_request"),
        ("policy_id", "invalid_request"),
        ("tenant_id", "invalid_request"),
    ] {
        let mut request = request.clone();
        request.as_object_mut().expect("an object").remove(missing);
        assert_eq!(
            admin("dry_run_pipeline", "secret", request).await["error"]["code"],
            code
        );
    }
    let mut unknown = request;
    unknown["policy_id"] = json!("none");
    assert_eq!(
        admin("dry_run_pipeline", "secret", unknown).await["error"]["code"],
        "policy_not_found"
    );

    // The other operations, in their shapes.
    let health = admin("get_extension_health", "secret", json!({})).await;
    assert_eq!(
        health["health"]["normalize_text"]["circuit_breaker_state"], "closed",
        "{health}"
    );
    for key in [
        "extension_id",
        "status",
        "success_rate",
        "success_count",
        "failure_count",
        "avg_latency_ms",
        "p50_latency_ms",
        "p95_latency_ms",
        "p99_latency_ms",
        "last_latency_ms",
        "latency_samples",
        "last_success",
        "last_failure",
        "circuit_breaker_opened_at",
        "updated_at",
    ] {
        assert!(health["health"]["normalize_text"].get(key).is_some(), "{key}: {health}");
    }
    let states = admin("get_circuit_breaker_states", "secret", json!({})).await;
    assert_eq!(states["states"]["pii_guard"]["state"], "closed", "{states}");
    let full = json!({"tenant_id": "default", "policy_id": "full"});
    let complexity = admin("get_pipeline_complexity", "secret", full).await;
    assert_eq!(
        (&complexity["total_extensions"], &complexity["complexity_level"]),
        (&json!(3), &json!("medium")),
        "{complexity}"
    );
    assert_eq!(admin("reload", "secret", json!({})).await["ok"], true);
}
