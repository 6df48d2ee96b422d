//! The services of `steady` and `flaky`, in the test's own process: they remember every attempt, and what they answered.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, HeaderValue, Message};
use ext_registry_tests::Nats;
use futures_util::StreamExt;

use crate::random::Random;

/// What an attempt was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Success,
    Twice,
    Error,
    Garbage,
    Late,
    None,
}

#[derive(Debug, Default)]
struct Seen {
    answers: BTreeMap<(&'static str, Answer), i64>,
    /// Hashes of inbox, call and number.
    attempts: HashSet<u64>,
    repeated: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Service {
    seen: Mutex<Seen>,
    random: Mutex<Random>,
    hasher: RandomState,
}

impl Service {
    /// Starts both, each at both nats-servers.
    pub async fn start(nats: &[Nats], seed: u64) -> Arc<Self> {
        let this = Arc::new(Self {
            seen: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            hasher: RandomState::new(),
        });
        for node in nats {
            for extension in ["steady", "flaky"] {
                let client = node.connect().await;
                let subject = format!("soak.{extension}");
                let mut requests = client
                    .queue_subscribe(subject, "soak".to_owned())
                    .await
                    .expect("subscribed");
                client.flush().await.expect("flushed");
                let own = Arc::clone(&this);
                tokio::spawn(async move {
                    while let Some(request) = requests.next().await {
                        let answer = own.note(extension, &request);
                        tokio::spawn(respond(client.clone(), request, answer));
                    }
                });
            }
        }
        this
    }

    fn note(&self, extension: &'static str, request: &Message) -> Answer {
        let answer = match extension {
            "steady" => Answer::Success,
            _ => match self.random.lock().expect("no panic").below(100) {
                0..8 => Answer::Error,
                8..12 => Answer::Garbage,
                12..16 => Answer::Late,
                16..20 => Answer::None,
                20..30 => Answer::Twice,
                _ => Answer::Success,
            },
        };
        let header = |name: &str| request.headers.as_ref()?.get(name).map(HeaderValue::as_str);
        let inbox = request.reply.as_ref().and_then(|reply| reply.split('.').nth(1));
        let attempt = self
            .hasher
            .hash_one((inbox, header("Ext-Call-Id"), header("Ext-Attempt")));
        let mut seen = self.seen.lock().expect("no panic");
        *seen.answers.entry((extension, answer)).or_default() += 1;
        if !seen.attempts.insert(attempt) {
            seen.repeated += 1;
        }
        answer
    }

    /// So many attempts of an extension came, and were answered in one of these ways.
    pub fn answered(&self, extension: &str, answers: &[Answer]) -> i64 {
        let seen = self.seen.lock().expect("no panic");
        let of =
            |(key, count): (&(&str, Answer), &i64)| (key.0 == extension && answers.contains(&key.1)).then_some(*count);
        seen.answers.iter().filter_map(of).sum()
    }

    /// So many attempts came a second time.
    pub fn repeated(&self) -> u64 {
        self.seen.lock().expect("no panic").repeated
    }
}

async fn respond(client: Client, request: Message, answer: Answer) {
    let Some(reply) = request.reply else { return };
    let (body, wait, times) = match answer {
        Answer::None => return,
        Answer::Success => ("{}", 8, 1),
        Answer::Twice => ("{}", 8, 2),
        Answer::Late => ("{}", 400, 1),
        Answer::Garbage => ("{", 8, 1),
        Answer::Error => (
            r#"{"error": {"code": "broken", "message": "as it was told to be"}}"#,
            8,
            1,
        ),
    };
    tokio::time::sleep(Duration::from_millis(wait)).await;
    for _ in 0..times {
        // Where the connection is gone, so is the caller.
        let _ = client.publish(reply.clone(), body.into()).await;
    }
}
