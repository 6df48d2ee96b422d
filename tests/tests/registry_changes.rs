//! The registry changes under a running bridge: it is told, and it can be told to look again.

use std::path::Path;
use std::time::Duration;

use async_nats::HeaderMap;
use ext_registry_tests::process::Directory;
use ext_registry_tests::{Bridge, Caller, Nats, Postgres, Services, Session, eventually, places, registry};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

const SOON: Duration = Duration::from_secs(30);
const SYNCS: &str = "router_extension_registry_sync_total{status=\"success\"}";

async fn reload(caller: &Caller) -> Value {
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", "secret");
    let request = async_nats::Request::new().headers(headers).timeout(Some(SOON));
    let subject = "beamline.bridge.v1.admin.reload";
    let answer = caller.client().send_request(subject, request).await.expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

fn syncs(bridge: &Bridge) -> f64 {
    bridge.metric(SYNCS).unwrap_or_default()
}

/// Begins a transaction in which the extension is another one.
async fn renew(session: &Session) {
    let renew = "do $$
         declare
             schema name := (select extnamespace::regnamespace from pg_extension where extname = 'ext_registry');
         begin
             drop extension ext_registry cascade;
             execute format('create extension ext_registry schema %I', schema);
             perform ext_grant('bridge', 'bridge');
         end $$";
    // Somebody who reads several tables may hold one that the DROP waits for and wait for one that it has: then Postgres ends
    // one of the two, and a person tries again.
    eventually(SOON, async || {
        session.run("begin").await;
        let Err(error) = session.batch_execute(renew).await else {
            return Ok(());
        };
        session.run("rollback").await;
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{error}");
        Err(error.to_string())
    })
    .await;
}

#[tokio::test]
async fn statements_are_prepared_anew_when_the_extension_is_another() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let _services = Services::start(&nats, &[]).await;
    let bridge = Bridge::start(&nats, &database, &[]);
    let caller = Caller::new(&nats).await;
    let call = async || {
        let reply = caller
            .invoke("normalize_text", &json!({ "payload": { "text": "x" } }))
            .await;
        reply.error().map(|(code, number)| (code.to_owned(), number))
    };
    assert_eq!(call().await, None);
    let session = database.connect().await;
    let fixtures = registry::fixtures();
    for _ in 0..2 {
        // As an update does that replaces functions: what was prepared points to what is gone.
        renew(&session).await;
        session
            .execute("select ext_import($1)", &[&fixtures])
            .await
            .expect("good fixtures");
        session.run("commit").await;
        assert_eq!(call().await, None, "{}", bridge.log());
    }
    let reports = async || session.counts("normalize_text").await;
    eventually(SOON, async || match reports().await {
        (1, 0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test]
async fn it_is_told_of_changes_and_looks_again_when_asked() {
    let nats = Nats::start();
    let database = Postgres::shared().database();
    database.load_fixtures();
    let _services = Services::start(&nats, &[]).await;
    let bridge = Bridge::start(&nats, &database, &["--api-key", "secret", "--policy-max-age", "1h"]);
    let caller = Caller::new(&nats).await;
    let session = database.connect().await;

    // A minute is too long for this test: NOTIFY it is.
    let synced = async |before: f64| {
        eventually(SOON, async || match syncs(&bridge) {
            now if now > before => Ok(()),
            now => Err(now),
        })
        .await;
    };
    synced(0.0).await;
    let before = syncs(&bridge);
    session
        .run("insert into extensions (id, type, subject) values ('another', 'pre', 'beamline.ext.pre.another.v1')")
        .await;
    synced(before).await;

    // A policy is read again after an hour, or when somebody says so.
    let route = json!({"tenant_id": "t", "policy_id": "p", "message": {"payload": "x"}, "dry_run": true});
    let executed = async || {
        let reply = caller.route(&route).await.body;
        reply["executed_extensions"].as_array().map_or(0, Vec::len)
    };
    let write = async |document: Value| {
        session
            .execute(
                "insert into extension_policies (tenant_id, policy_id, document) values ('t', 'p', $1)
                 on conflict (tenant_id, policy_id) do update set document = excluded.document",
                &[&document],
            )
            .await
            .expect("a good policy");
    };
    let provider = json!(["openai"]);
    let provider = registry::fixtures()["extensions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|extension| extension["type"] == "provider")
        .map_or(provider, |extension| json!([extension["id"]]));
    write(json!({"providers": provider})).await;
    assert_eq!(executed().await, 1);
    write(json!({"pre": [{"id": "normalize_text"}], "providers": provider})).await;
    assert_eq!(executed().await, 1, "it is an hour old at most");
    let before = syncs(&bridge);
    assert_eq!(reload(&caller).await, json!({"ok": true}));
    assert!(syncs(&bridge) > before);
    assert_eq!(executed().await, 2);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("our own directory");
    for entry in std::fs::read_dir(from).expect("the fixtures") {
        let entry = entry.expect("the fixtures");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("our own directory");
        }
    }
}

#[tokio::test]
async fn fixtures_are_read_again_when_asked() {
    let nats = Nats::start();
    let directory = Directory::new("fixtures-", None);
    copy(&places::root().join("fixtures"), directory.path());
    let folder = directory.path().to_str().expect("UTF-8");
    let _services = Services::start(&nats, &[]).await;
    let bridge = Bridge::start_on_fixtures(&nats, &["--fixtures", folder, "--api-key", "secret"]);
    let caller = Caller::new(&nats).await;
    let code = async || {
        let reply = caller.invoke("copied", &json!({ "payload": { "text": "x" } })).await;
        reply.error().map(|(code, _)| code.to_owned())
    };
    assert_eq!(code().await.as_deref(), Some("extension_not_found"));
    let extensions = directory.path().join("extensions");
    let text = std::fs::read_to_string(extensions.join("normalize_text.json")).expect("a fixture");
    let mut document: Value = serde_json::from_str(&text).expect("JSON");
    document["id"] = json!("copied");
    std::fs::write(extensions.join("copied.json"), document.to_string()).expect("our own directory");
    assert_eq!(reload(&caller).await, json!({"ok": true}));
    assert_eq!(code().await, None);

    // What cannot be used changes nothing, and is named.
    std::fs::write(extensions.join("broken.json"), "{").expect("our own directory");
    let answer = reload(&caller).await;
    assert_eq!(answer["error"]["code"], "registry_unavailable");
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("broken.json"), "{message}");
    assert_eq!(code().await, None);
    assert_eq!(bridge.readiness(), 200);
}
