//! NATS as the event loop sees it: messages come in, messages go out, nothing ever waits.
//!
//! This is the only module that knows which client library carries the bytes. A [`Transport`] is one connection to one server.
//! It is never mended: when it is lost it stays lost, and whoever has it opens another. The library would mend it, and then
//! send what it had queued, long after the callers have given up.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Client, Event, ReconnectToServer, ServerAddr, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

mod connect;
mod denied;
mod leave;
mod message;
mod settings;

pub use async_nats::Subject;
pub use connect::{TransportError, client};
pub use denied::{Denials, Denied};
pub use message::{Channel, Headers, Inbound, Outbound};
pub use settings::NatsSettings;

/// Most messages that wait for room in the client's queue.
const MAX_WAITING: usize = 65_536;
/// What the server has said is known after this time.
const EVENTS: Duration = Duration::from_millis(10);
/// Where nobody ever listens: the library is sent there instead of mending a connection.
const NOWHERE: &str = "nats://127.0.0.1:0";

#[derive(Default)]
struct Seen {
    slow: AtomicU64,
    lame_duck: AtomicBool,
    denials: Denials,
}

/// A subscription to make.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is for.
    pub channel: Channel,
    /// To what.
    pub subject: String,
    /// In which queue group, if any.
    pub group: Option<&'static str>,
}

/// What is known of the servers beside the settings.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Addresses that a server has told.
    pub told: Vec<String>,
    /// The id of a server that is about to stop.
    pub stopping: Option<String>,
}

struct Subscription {
    channel: Channel,
    subject: String,
    subscriber: Subscriber,
    /// How many messages have come.
    taken: u64,
    /// No more will.
    ended: bool,
    leaving: leave::Leaving,
}

/// A connection with its subscriptions.
pub struct Transport {
    client: Client,
    subscriptions: Vec<Subscription>,
    waiting: VecDeque<Outbound>,
    seen: Arc<Seen>,
    first: usize,
    /// The last look did not take all that had come.
    backlog: bool,
    /// When the next step of leaving is due; 0 before the first.
    leave_us: u64,
    told: Vec<String>,
    since: Instant,
}

impl Transport {
    /// Connects to one of the servers; waits until the connection stands.
    pub async fn connect(settings: &NatsSettings, known: &Known) -> Result<Self, TransportError> {
        let mut servers = settings.servers.clone();
        servers.extend(
            known
                .told
                .iter()
                .filter(|told| !settings.servers.contains(told))
                .cloned(),
        );
        fastrand::shuffle(&mut servers);
        let mut failed: Vec<(String, String)> = Vec::new();
        for server in servers {
            match Self::connect_to(settings, &server).await {
                Ok(transport)
                    if known.stopping.as_deref() == Some(transport.client.server_info().server_id.as_str()) =>
                {
                    failed.push((server, "it is about to stop (lame duck mode)".to_owned()));
                }
                Ok(transport) => return Ok(transport),
                Err(TransportError::Connect(server, why)) => failed.push((server, why)),
                Err(error) => return Err(error),
            }
        }
        // The servers' reasons, each once.
        let (mut servers, mut reasons): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for (server, why) in failed {
            servers.push(server);
            if !reasons.contains(&why) {
                reasons.push(why);
            }
        }
        Err(TransportError::Connect(servers.join(","), reasons.join("; ")))
    }

    async fn connect_to(settings: &NatsSettings, server: &str) -> Result<Self, TransportError> {
        let address = |text: &str| {
            text.parse::<ServerAddr>()
                .map_err(|e| TransportError::Connect(text.to_owned(), format!("this is no address: {e}")))
        };
        let (there, nowhere) = (address(server)?, address(NOWHERE)?);
        let (seen, since) = (Arc::new(Seen::default()), Instant::now());
        let noted = Arc::clone(&seen);
        let servers = [there.clone(), nowhere.clone()];
        let options = connect::options(settings)
            .await?
            .ignore_discovered_servers()
            .max_reconnects(1)
            .reconnect_to_server_callback(move |pool, _| {
                let lost = pool.iter().any(|server| server.did_connect);
                let addr = if lost { nowhere.clone() } else { there.clone() };
                let delay = Some(Duration::ZERO);
                std::future::ready(Some(ReconnectToServer { addr, delay }))
            })
            .event_callback(move |event| {
                match event {
                    Event::Connected => tracing::info!("NATS connected"),
                    Event::Disconnected => tracing::warn!("NATS disconnected"),
                    Event::SlowConsumer(_) => {
                        noted.slow.fetch_add(1, Ordering::Relaxed);
                    }
                    Event::LameDuckMode => {
                        noted.lame_duck.store(true, Ordering::Relaxed);
                        tracing::warn!("NATS server is about to stop (lame duck mode)");
                    }
                    Event::ServerError(error) => noted.denials.note(&error),
                    // Of its futile attempts to reconnect.
                    other => tracing::debug!(event = %other, "NATS"),
                }
                std::future::ready(())
            });
        let client = options
            .connect(&servers[..])
            .await
            .map_err(|e| TransportError::Connect(server.to_owned(), connect::explained(&e, settings)))?;
        let info = client.server_info();
        let told = info.connect_urls.iter().map(|url| connect::told_address(url, settings));
        Ok(Self {
            told: told.collect(),
            client,
            subscriptions: Vec::new(),
            waiting: VecDeque::new(),
            seen,
            first: 0,
            backlog: false,
            leave_us: 0,
            since,
        })
    }

    /// An inbox prefix that nobody else has.
    pub fn unique_inbox(&self) -> String {
        self.client.new_inbox()
    }

    /// Subscribes, in a queue group or alone.
    pub async fn subscribe(&mut self, wanted: Wanted) -> Result<(), TransportError> {
        let Wanted {
            channel,
            subject,
            group,
        } = wanted;
        let refused = |e: async_nats::SubscribeError| TransportError::Subscribe(subject.clone(), e.to_string());
        let subscriber = match group {
            Some(group) => self
                .client
                .queue_subscribe(subject.clone(), group.to_owned())
                .await
                .map_err(refused)?,
            None => self.client.subscribe(subject.clone()).await.map_err(refused)?,
        };
        self.subscriptions.push(Subscription {
            channel,
            subject,
            subscriber,
            taken: 0,
            ended: false,
            leaving: leave::Leaving::default(),
        });
        Ok(())
    }

    /// Waits until the server has read everything sent so far, subscriptions too: until a message of ours has come back. (The client's own
    /// flush ends when the bytes are written.)
    pub async fn flush(&self) -> bool {
        let there_and_back = async {
            let subject = self.client.new_inbox();
            let mut back = self.client.subscribe(subject.clone()).await.ok()?;
            self.client.publish(subject, Bytes::new()).await.ok()?;
            self.client.flush().await.ok()?;
            back.next().await
        };
        if let Ok(Some(_)) = tokio::time::timeout(Duration::from_secs(2), there_and_back).await {
            return true;
        }
        // Who may publish answers only does not get its own message.
        let written = tokio::time::timeout(Duration::from_secs(5), self.client.flush());
        matches!(written.await, Ok(Ok(())))
    }

    /// Whether the server has said that what this connection cannot do without is denied; to be asked after a flush.
    pub async fn denied(&self) -> Option<TransportError> {
        // The library hands on what the server says by a task of its own, which may be behind.
        tokio::time::sleep(EVENTS).await;
        let needed = |subject: &str| {
            let of = |one: &&Subscription| one.subject == subject;
            self.subscriptions
                .iter()
                .find(of)
                .is_some_and(|one| one.channel.is_needed())
        };
        let denied = self.seen.denials.since(
            self.since,
            |denied| matches!(denied, Denied::Subscribe(subject) if needed(subject)),
        )?;
        Some(TransportError::Denied(denied))
    }

    /// Takes messages that have come, at most `most`, fairly between subscriptions. Ready when there was one.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, out: &mut Vec<Inbound>, most: usize) -> Poll<()> {
        let before = out.len();
        let count = self.subscriptions.len();
        self.first = (self.first + 1) % count.max(1);
        for i in 0..count {
            let subscription = &mut self.subscriptions[(self.first + i) % count];
            while out.len() - before < most {
                let message = match Pin::new(&mut subscription.subscriber).poll_next(cx) {
                    Poll::Ready(Some(message)) => message,
                    Poll::Ready(None) => {
                        subscription.ended = true;
                        break;
                    }
                    Poll::Pending => break,
                };
                subscription.taken += 1;
                out.push(Inbound {
                    channel: subscription.channel,
                    subject: message.subject,
                    reply: message.reply,
                    payload: message.payload,
                    no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
                    headers: message.headers,
                });
            }
        }
        self.backlog = out.len() - before >= most;
        if out.len() > before {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Sends, or keeps the message until there is room; gives it back where too many are kept already. Without a connection
    /// only what wants no reply is kept: nobody can reply to the rest.
    pub fn send(&mut self, message: Outbound) -> Option<Outbound> {
        let connected = self.connected();
        if connected && self.waiting.is_empty() && self.try_send(&message) {
            return None;
        }
        if !connected && message.reply.is_some() {
            return Some(message);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Some(message);
        }
        self.waiting.push_back(message);
        None
    }

    /// Sends what was kept, as far as there is room; drops what has expired. Returns how many still wait.
    pub fn send_waiting(&mut self, now_us: u64) -> usize {
        while let Some(message) = self.waiting.pop_front() {
            if message.expires_us <= now_us {
                continue;
            }
            if !self.connected() || !self.try_send(&message) {
                self.waiting.push_front(message);
                break;
            }
        }
        self.waiting.len()
    }

    /// Takes what another connection has kept. Where that one is lost, what wants a reply is dropped: its sender has been told of
    /// the loss.
    pub fn take_over(&mut self, other: &mut Self) {
        let lost = !other.connected();
        let kept = std::mem::take(&mut other.waiting);
        self.waiting
            .extend(kept.into_iter().filter(|message| !lost || message.reply.is_none()));
    }

    /// One try; the client's queue takes the message at once or not at all.
    fn try_send(&self, message: &Outbound) -> bool {
        let (subject, payload, headers) = (message.subject.clone(), message.payload.clone(), message.headers.map());
        let sent = match message.reply.clone() {
            Some(reply) => self
                .client
                .publish_with_reply_and_headers(subject, reply, headers, payload)
                .now_or_never(),
            None => self
                .client
                .publish_with_headers(subject, headers, payload)
                .now_or_never(),
        };
        match sent {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                tracing::error!(subject = %message.subject, %error, "cannot publish");
                true // trying again would not help
            }
            None => false,
        }
    }

    /// Whether the connection stands.
    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Whether the connection is lost and all that had come by it is taken.
    pub fn is_spent(&self) -> bool {
        !self.connected() && !self.backlog
    }

    /// How often, since the last time this was asked, the client dropped messages because the loop was too slow.
    pub fn take_slow_consumer(&self) -> u64 {
        self.seen.slow.swap(0, Ordering::Relaxed)
    }

    /// Whether the server is about to stop.
    pub fn is_lame_duck(&self) -> bool {
        self.seen.lame_duck.load(Ordering::Relaxed)
    }

    /// What a successor of this connection should know.
    pub fn known(&self) -> Known {
        Known {
            told: self.told.clone(),
            stopping: self.is_lame_duck().then(|| self.client.server_info().server_id),
        }
    }

    /// The server, for people.
    pub fn server(&self) -> String {
        let info = self.client.server_info();
        format!("{}:{} ({})", info.host, info.port, info.server_name)
    }

    /// The largest message the server takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }
}
