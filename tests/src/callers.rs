//! Many calls at once, and an account of each: that it ended once, and how.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, Message, StatusCode};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::Nats;

const PREFIX: &str = "beamline.bridge.v1";
/// Of each call, and how long its caller waits.
const DEADLINE_MS: u64 = 3_000;
const PATIENCE: Duration = Duration::from_secs(6);

/// Callers of one client, and every reply that came to them.
#[derive(Debug)]
pub struct Callers {
    client: Client,
    inbox: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>>>,
    replies: Mutex<HashMap<u64, u32>>,
    outcomes: Mutex<HashMap<String, u64>>,
}

impl Callers {
    /// Over a connection of its own.
    pub async fn new(nats: &Nats) -> Arc<Self> {
        let client = nats.connect().await;
        let inbox = client.new_inbox();
        let this = Arc::new(Self {
            inbox,
            client: client.clone(),
            next: AtomicU64::default(),
            waiting: Mutex::default(),
            replies: Mutex::default(),
            outcomes: Mutex::default(),
        });
        let mut replies = client.subscribe(format!("{}.*", this.inbox)).await.expect("subscribed");
        client.flush().await.expect("flushed");
        let own = Arc::clone(&this);
        tokio::spawn(async move {
            while let Some(message) = replies.next().await {
                let number: u64 = message
                    .subject
                    .rsplit('.')
                    .next()
                    .expect("a token")
                    .parse()
                    .expect("ours");
                *own.replies.lock().expect("no panic").entry(number).or_default() += 1;
                if let Some(waiting) = own.waiting.lock().expect("no panic").remove(&number) {
                    let _ = waiting.send(message);
                }
            }
        });
        this
    }

    /// One call of an extension; notes how it ended, once.
    pub async fn invoke(&self, extension: &str) {
        let number = self.next.load(Relaxed);
        let body = json!({"payload": {"text": format!("Call {number}")}, "timeout_ms": DEADLINE_MS});
        self.send(&format!("{PREFIX}.invoke.{extension}"), &body).await;
    }

    /// Sends a request and awaits its reply; notes how it ended, once.
    pub async fn send(&self, subject: &str, body: &Value) {
        let number = self.next.fetch_add(1, Relaxed);
        let (tell, told) = oneshot::channel();
        self.waiting.lock().expect("no panic").insert(number, tell);
        let reply = format!("{}.{number}", self.inbox);
        self.client
            .publish_with_reply(subject.to_owned(), reply, body.to_string().into())
            .await
            .expect("published");
        let outcome = match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(message)) => outcome(&message),
            _ => "no reply".to_owned(),
        };
        *self.outcomes.lock().expect("no panic").entry(outcome).or_default() += 1;
    }

    /// So many at a time, one after the other, until `over`.
    pub async fn load(self: &Arc<Self>, extension: &'static str, many: usize, over: &Arc<AtomicBool>) {
        let tasks = (0..many).map(|_| {
            let (this, over) = (Arc::clone(self), Arc::clone(over));
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    this.invoke(extension).await;
                }
            })
        });
        for task in join_all(tasks).await {
            task.expect("no panic");
        }
    }

    /// How many were made.
    pub fn calls(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// How those ended that have: `ok`, an error's code, `nobody listens` or `no reply`.
    pub fn outcomes(&self) -> HashMap<String, u64> {
        self.outcomes.lock().expect("no panic").clone()
    }

    /// Each call had one outcome, none two replies.
    #[track_caller]
    pub fn each_ended_once(&self) {
        let outcomes = self.outcomes();
        assert_eq!(outcomes.values().sum::<u64>(), self.calls(), "{outcomes:?}");
        let replies = self.replies.lock().expect("no panic");
        let twice: Vec<_> = replies.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "replies by call: {twice:?}");
        let silent = outcomes.get("no reply").copied().unwrap_or(0);
        assert_eq!(replies.len() as u64 + silent, self.calls(), "{outcomes:?}");
    }
}

fn outcome(message: &Message) -> String {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return "nobody listens".to_owned();
    }
    let body: Value = serde_json::from_slice(&message.payload).expect("JSON");
    if body["ok"] == false {
        return body["error"]["code"].as_str().expect("a code").to_owned();
    }
    "ok".to_owned()
}
