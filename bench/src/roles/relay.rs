//! What a bridge would be without anything to do: a request to the service for every request, and its reply back. Written as
//! one does with the library, a task and a `request` per call.
//!
//! With headers it sends as many and as long ones as the bridge's contract demands, both ways. They cost everyone they pass;
//! what is left between this relay and the bridge is the bridge's own.

use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;

use super::SERVICE;
use crate::Failure;

const REQUEST_HEADERS: [(&str, &str); 6] = [
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("Ext-Version", "v2"),
    ("Ext-Instance", "a"),
    ("Ext-Attempt", "1"),
    ("Ext-Call-Id", "0190163d-8694-739b-aea5-966c26f8ad91"),
    ("Ext-Timeout-Ms", "5000"),
];
const REPLY_HEADERS: [(&str, &str); 4] = [
    ("Ext-Version", "v2"),
    ("Ext-Instance", "a"),
    ("Ext-Attempts", "1"),
    ("Ext-Latency-Ms", "0.123"),
];

pub async fn run(client: Client, prefix: &str, with_headers: bool) -> Result<(), Failure> {
    let mut requests = client.subscribe(format!("{prefix}*")).await?;
    super::say_ready(&client).await?;
    while let Some(request) = requests.next().await {
        let (client, prefix) = (client.clone(), prefix.len());
        tokio::spawn(async move {
            let subject = format!("{SERVICE}{}", &request.subject[prefix..]);
            let answer = if with_headers {
                client
                    .request_with_headers(subject, headers(&REQUEST_HEADERS), request.payload)
                    .await
            } else {
                client.request(subject, request.payload).await
            };
            // No answer, no reply: the caller counts it as an error.
            if let (Some(reply), Ok(answer)) = (request.reply, answer) {
                let _ = if with_headers {
                    client
                        .publish_with_headers(reply, headers(&REPLY_HEADERS), answer.payload)
                        .await
                } else {
                    client.publish(reply, answer.payload).await
                };
            }
        });
    }
    Ok(())
}

fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        headers.insert(*name, *value);
    }
    headers
}
