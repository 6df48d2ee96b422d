//! NATS as the event loop sees it: messages come in, messages go out, nothing ever waits.
//!
//! This is the only module that knows which client library carries the bytes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectOptions, Event, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

mod message;
mod settings;

pub use async_nats::Subject;
pub use message::{Channel, Headers, Inbound, Outbound};
pub use settings::NatsSettings;

/// Most messages that wait for room in the client's queue.
const MAX_WAITING: usize = 65_536;

#[derive(Default)]
struct Counts {
    slow: AtomicU64,
    connects: AtomicU64,
    lame_duck: AtomicU64,
}

/// A connection with its subscriptions.
pub struct Transport {
    client: Client,
    subscriptions: Vec<(Channel, Subscriber)>,
    waiting: VecDeque<Outbound>,
    counts: Arc<Counts>,
    first: usize,
}

/// Why NATS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("cannot connect to NATS at {0}: {1}")]
    Connect(String, String),
    /// No subscription.
    #[error("cannot subscribe to {0}: {1}")]
    Subscribe(String, String),
    /// Bad credentials file, certificate or key.
    #[error("{0}")]
    Settings(String),
}

/// The first part of every connection: addresses, credentials, TLS.
pub async fn options(settings: &NatsSettings) -> Result<ConnectOptions, TransportError> {
    let mut options = ConnectOptions::new()
        .name("ext-bridge")
        .ping_interval(Duration::from_secs(20))
        .connection_timeout(Duration::from_secs(5))
        .subscription_capacity(65_536)
        .client_capacity(8192)
        .reconnect_delay_callback(|attempts| {
            let full = 50_u64 << attempts.min(6);
            Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))
        });
    if let Some(path) = &settings.creds {
        options = options
            .credentials_file(path)
            .await
            .map_err(|e| TransportError::Settings(format!("cannot read the credentials {}: {e}", path.display())))?;
    }
    if let Some(token) = &settings.token {
        options = options.token(token.clone());
    }
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(seed) = &settings.nkey_seed {
        options = options.nkey(seed.clone());
    }
    if let Some(path) = &settings.tls_ca {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) {
        options = options
            .add_client_certificate(cert.clone(), key.clone())
            .require_tls(true);
    }
    Ok(options)
}

/// A plain client, for commands.
pub async fn client(settings: &NatsSettings) -> Result<Client, TransportError> {
    let options = options(settings).await?;
    options
        .connect(settings.servers.as_slice())
        .await
        .map_err(|e| TransportError::Connect(settings.shown(), e.to_string()))
}

impl Transport {
    /// Connects; waits until the connection stands.
    pub async fn connect(settings: &NatsSettings) -> Result<Self, TransportError> {
        let counts = Arc::new(Counts::default());
        let seen = Arc::clone(&counts);
        let options = options(settings).await?.event_callback(move |event| {
            let seen = Arc::clone(&seen);
            async move {
                match event {
                    Event::Connected => {
                        seen.connects.fetch_add(1, Ordering::Relaxed);
                        tracing::info!("NATS connected");
                    }
                    Event::Disconnected => tracing::warn!("NATS disconnected"),
                    Event::SlowConsumer(_) => {
                        seen.slow.fetch_add(1, Ordering::Relaxed);
                    }
                    Event::LameDuckMode => {
                        seen.lame_duck.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!("NATS server is about to stop (lame duck mode)");
                    }
                    other => tracing::warn!(event = %other, "NATS"),
                }
            }
        });
        let client = options
            .connect(settings.servers.as_slice())
            .await
            .map_err(|e| TransportError::Connect(settings.shown(), e.to_string()))?;
        Ok(Self {
            client,
            subscriptions: Vec::new(),
            waiting: VecDeque::new(),
            counts,
            first: 0,
        })
    }

    /// An inbox prefix that nobody else has.
    pub fn unique_inbox(&self) -> String {
        self.client.new_inbox()
    }

    /// Subscribes, in a queue group or alone.
    pub async fn subscribe(
        &mut self,
        channel: Channel,
        subject: String,
        group: Option<&str>,
    ) -> Result<(), TransportError> {
        let refused = |e: async_nats::SubscribeError| TransportError::Subscribe(subject.clone(), e.to_string());
        let subscriber = match group {
            Some(group) => self
                .client
                .queue_subscribe(subject.clone(), group.to_owned())
                .await
                .map_err(refused)?,
            None => self.client.subscribe(subject.clone()).await.map_err(refused)?,
        };
        self.subscriptions.push((channel, subscriber));
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

    /// Takes messages that have come, at most `most`, fairly between subscriptions. Ready when there was one.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>, out: &mut Vec<Inbound>, most: usize) -> Poll<()> {
        let before = out.len();
        let count = self.subscriptions.len();
        self.first = (self.first + 1) % count.max(1);
        for i in 0..count {
            let (channel, subscriber) = &mut self.subscriptions[(self.first + i) % count];
            while out.len() - before < most {
                let Poll::Ready(Some(message)) = Pin::new(&mut *subscriber).poll_next(cx) else {
                    break;
                };
                out.push(Inbound {
                    channel: *channel,
                    subject: message.subject,
                    reply: message.reply,
                    payload: message.payload,
                    no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
                    headers: message.headers,
                });
            }
        }
        if out.len() > before {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    /// Sends, or keeps the message until there is room; gives it back where too many are kept already.
    pub fn send(&mut self, message: Outbound) -> Option<Outbound> {
        if self.waiting.is_empty() && self.try_send(&message) {
            return None;
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

    /// How often the connection was made.
    pub fn connects(&self) -> u64 {
        self.counts.connects.load(Ordering::Relaxed)
    }

    /// How often the client dropped messages because the loop was too slow.
    pub fn slow_consumer(&self) -> u64 {
        self.counts.slow.load(Ordering::Relaxed)
    }

    /// The largest message the server takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Leaves everything but the inbox; what the server had already sent still comes. Does not wait.
    pub fn leave_now(&mut self) {
        for (channel, subscriber) in &mut self.subscriptions {
            if *channel != Channel::Reply && subscriber.drain().now_or_never().is_none() {
                tracing::warn!(?channel, "cannot leave a subscription: the queue to NATS is full");
            }
        }
    }
}
