//! The processes around the bridge: a service, a relay to compare with, and somebody who calls.

use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_nats::Client;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// The request, about 300 bytes; an `invoke` of the bridge, and what the relay hands on.
const REQUEST: &str = r#"{"tenant_id":"t2","trace_id":"0af7651916cd43dd8448eb211c80319c","request_id":"r-0123456789","payload":{"message_id":"m-0123456789","message_type":"chat","payload":"The quick brown fox jumps over the lazy dog, again and again."},"metadata":{"channel":"web","language":"en","session_id":"s-0123456789"}}"#;
/// The answer, of the shape of a pre-processor's.
const REPLY: &str = r#"{"payload":{"message_id":"m-0123456789","message_type":"chat","payload":"the quick brown fox jumps over the lazy dog, again and again."},"metadata":{"normalized":true}}"#;

/// What came of calling for a while.
pub struct Measured {
    pub calls: u64,
    pub errors: u64,
    pub rate: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Measured {
    pub fn to_json(&self) -> Value {
        json!({
            "calls": self.calls, "errors": self.errors, "rate": self.rate, "p50_us": self.p50_us, "p99_us": self.p99_us,
        })
    }

    pub fn from_json(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).expect("what to_json gave");
        let number = |key: &str| value[key].as_f64().expect("a number");
        Self {
            calls: number("calls") as u64,
            errors: number("errors") as u64,
            rate: number("rate"),
            p50_us: number("p50_us"),
            p99_us: number("p99_us"),
        }
    }
}

async fn connect(url: &str) -> Client {
    async_nats::ConnectOptions::new()
        .client_capacity(65_536)
        .connect(url)
        .await
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Tells the one who waits that the subscription is known to the server.
async fn ready(client: &Client) {
    client.flush().await.expect("connected");
    println!("ready");
    std::io::stdout().flush().expect("standard output");
}

/// Answers every request at once.
pub async fn echo(url: &str, subject: &str) {
    let client = connect(url).await;
    let mut requests = client.subscribe(subject.to_owned()).await.expect("connected");
    ready(&client).await;
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, REPLY.into()).await.expect("connected");
        }
    }
}

/// Hands every request on and its reply back.
pub async fn relay(url: &str, subject: &str, to: &str) {
    let client = connect(url).await;
    let mut requests = client.subscribe(subject.to_owned()).await.expect("connected");
    ready(&client).await;
    while let Some(request) = requests.next().await {
        let (client, to) = (client.clone(), to.to_owned());
        tokio::spawn(async move {
            if let (Some(reply), Ok(answer)) = (request.reply, client.request(to, request.payload).await) {
                client.publish(reply, answer.payload).await.expect("connected");
            }
        });
    }
}

/// Keeps so many requests in flight for so long. The first tenth of the time only warms up.
pub async fn calls(url: &str, subject: &str, in_flight: usize, length: Duration) -> Measured {
    let client = connect(url).await;
    let subject: Rc<str> = subject.into();
    let start = Instant::now();
    let (from, until) = (start + length / 10, start + length);
    let callers = tokio::task::LocalSet::new();
    let handles: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, subject) = (client.clone(), Rc::clone(&subject));
            callers.spawn_local(async move {
                let (mut latencies, mut errors) = (Vec::new(), 0_u64);
                loop {
                    let sent = Instant::now();
                    if sent >= until {
                        return (latencies, errors);
                    }
                    let reply = client.request(subject.to_string(), REQUEST.into()).await;
                    let good = reply.is_ok_and(|reply| reply.payload == REPLY);
                    if sent >= from {
                        latencies.push(sent.elapsed().as_secs_f64() * 1e6);
                        errors += u64::from(!good);
                    }
                }
            })
        })
        .collect();
    let (mut latencies, mut errors) = (Vec::new(), 0);
    callers
        .run_until(async {
            for handle in handles {
                let (more, failed) = handle.await.expect("no panic");
                latencies.extend(more);
                errors += failed;
            }
        })
        .await;
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| latencies[((latencies.len() - 1) as f64 * quantile) as usize];
    Measured {
        calls: latencies.len() as u64,
        errors,
        rate: latencies.len() as f64 / (until - from).as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
    }
}
