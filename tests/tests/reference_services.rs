//! The reference services keep the contract between the bridge and a service, and misbehave when told to.

use std::time::{Duration, Instant};

use async_nats::RequestErrorKind;
use ext_registry_tests::{Nats, Services};
use futures_util::StreamExt;
use serde_json::{Value, json};

async fn ask(client: &async_nats::Client, subject: &str, request: Value) -> Value {
    let reply = client
        .request(subject.to_owned(), request.to_string().into())
        .await
        .expect("an answer");
    serde_json::from_slice(&reply.payload).expect("JSON")
}

#[tokio::test]
async fn each_type_answers_by_the_contract() {
    let nats = Nats::start();
    let _services = Services::start(&nats, &[]).await;
    let client = nats.connect().await;

    let reply = ask(
        &client,
        "beamline.ext.pre.normalize_text.v1",
        json!({"payload": {"message_id": "M1", "payload": "  Hello  WORLD "}, "config": {}}),
    )
    .await;
    assert_eq!(reply["payload"], json!({"message_id": "M1", "payload": "hello  world"}));
    let reply = ask(
        &client,
        "beamline.ext.pre.normalize_text.v2",
        json!({"payload": {"text": "  Hello  WORLD "}, "config": {"max_length": 7}}),
    )
    .await;
    assert_eq!(reply["payload"], json!({"text": "hello w"}));

    let guard = |text: &str| {
        ask(
            &client,
            "beamline.ext.validate.pii_guard.v1",
            json!({"payload": {"text": text}}),
        )
    };
    assert_eq!(
        guard("the order 4111 1111 1111 1112 is late").await,
        json!({"status": "ok"})
    );
    assert_eq!(
        guard("write to Ann.Lee@example.org, card 4111 1111 1111 1111").await,
        json!({"status": "reject", "reason": "pii_detected", "details": {"kinds": ["email", "card"]}})
    );

    let mask = |version: &str, text: &str| {
        let subject = format!("beamline.ext.post.mask_pii.{version}");
        let (client, text) = (client.clone(), text.to_owned());
        async move { ask(&client, &subject, json!({"payload": {"payload": text}})).await["payload"]["payload"].clone() }
    };
    assert_eq!(mask("v1", "a@b.org 4111111111111111 12").await, "[email] [card] 12");
    assert_eq!(mask("v2", "4111-1111-1111-1111").await, "[card ..1111]");

    let reply = ask(
        &client,
        "beamline.provider.test_provider.v1",
        json!({"provider_id": "test_provider", "prompt": "one two"}),
    )
    .await;
    assert_eq!(reply["provider_id"], "test_provider");
    assert_eq!(reply["output"], "echo: one two");
    assert_eq!(
        reply["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5})
    );

    let reply = ask(&client, "beamline.ext.pre.normalize_text.v1", json!({"payload": 1})).await;
    assert_eq!(reply["error"]["code"], "PROCESSING_ERROR");
}

#[tokio::test]
async fn they_are_micro_services() {
    let nats = Nats::start();
    let _services = Services::start(&nats, &[]).await;
    let client = nats.connect().await;
    let reply = ask(&client, "$SRV.PING.pii_guard", json!({})).await;
    assert_eq!(reply["name"], "pii_guard");
    assert_eq!(reply["type"], "io.nats.micro.v1.ping_response");
}

#[tokio::test]
async fn they_misbehave_by_version_and_instance() {
    let nats = Nats::start();
    let services = Services::start(&nats, &["a", "b"]).await;
    let client = nats.connect().await;
    let subject = "beamline.ext.validate.pii_guard.v1";
    let request = || {
        async_nats::Request::new()
            .payload("{\"payload\":{}}".into())
            .timeout(Some(Duration::from_secs(5)))
    };
    let send = |subject: String| client.send_request(subject, request());
    let body = |message: async_nats::Message| String::from_utf8_lossy(&message.payload).into_owned();

    services.set("pii_guard.v1.a", "error").await;
    let reply = body(send(format!("{subject}.a")).await.expect("an answer"));
    assert!(reply.contains("\"error\""), "{reply}");
    assert_eq!(
        body(send(format!("{subject}.b")).await.expect("an answer")),
        r#"{"status":"ok"}"#
    );

    services.set("pii_guard.v1", "garbage").await;
    for name in ["", ".a", ".b"] {
        let reply = body(send(format!("{subject}{name}")).await.expect("an answer"));
        assert!(serde_json::from_str::<Value>(&reply).is_err(), "{reply}");
    }
    let reply = body(
        send("beamline.ext.validate.pii_guard.v2".to_owned())
            .await
            .expect("an answer"),
    );
    assert_eq!(reply, r#"{"status":"ok"}"#);

    services.set("pii_guard", "service_error").await;
    let reply = send(subject.to_owned()).await.expect("an answer");
    let headers = reply.headers.expect("headers");
    assert_eq!(
        headers
            .get("Nats-Service-Error-Code")
            .map(async_nats::HeaderValue::as_str),
        Some("500")
    );

    services.set("pii_guard", "hang").await;
    let short = request().timeout(Some(Duration::from_millis(100)));
    let error = client.send_request(subject, short).await.expect_err("no answer");
    assert_eq!(error.kind(), RequestErrorKind::TimedOut);

    services.slow_down("pii_guard", Duration::from_millis(120)).await;
    let start = Instant::now();
    send(subject.to_owned()).await.expect("an answer");
    assert!(start.elapsed() >= Duration::from_millis(120));

    services.set("pii_guard", "twice").await;
    let mut inbox = client.subscribe("answers").await.expect("connected");
    client
        .publish_with_reply(subject, "answers", "{\"payload\":{}}".into())
        .await
        .expect("connected");
    for _ in 0..2 {
        assert_eq!(body(inbox.next().await.expect("an answer")), r#"{"status":"ok"}"#);
    }

    assert_eq!(services.served("pii_guard.v1.b").await, 2);
    assert_eq!(services.served("pii_guard.v1").await, 9);
    assert_eq!(services.served("pii_guard").await, 10);

    let error = send(format!("{subject}.nobody")).await.expect_err("nobody listens");
    assert_eq!(error.kind(), RequestErrorKind::NoResponders);
}
