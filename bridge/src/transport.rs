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
use async_nats::{Client, ConnectOptions, Event, HeaderMap, HeaderName, HeaderValue, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};

pub use async_nats::Subject;

use crate::config::NatsSettings;

/// What a subscription is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `<prefix>.invoke.*`
    Invoke,
    /// `<prefix>.route`
    Route,
    /// `<prefix>.admin.*`
    Admin,
    /// The inbox.
    Reply,
    /// `$SRV.>` of the micro service.
    Micro,
}

/// A message that came.
#[derive(Debug)]
pub struct Inbound {
    /// By which subscription.
    pub channel: Channel,
    /// Its subject.
    pub subject: Subject,
    /// Where to answer.
    pub reply: Option<Subject>,
    /// Its body.
    pub payload: Bytes,
    /// Whether NATS says that nobody listens on the subject that was asked.
    pub no_responders: bool,
    headers: Option<HeaderMap>,
}

impl Inbound {
    /// A message without headers.
    #[cfg(test)]
    pub fn new(channel: Channel, subject: &str, reply: Option<&str>, payload: Bytes) -> Self {
        let (subject, reply) = (Subject::from(subject), reply.map(Subject::from));
        Self {
            channel,
            subject,
            reply,
            payload,
            no_responders: false,
            headers: None,
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(HeaderValue::as_str)
    }
}

/// Headers of an outgoing message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Headers {
    values: String,
    /// Names, and where in `values` each value ends.
    ends: Vec<(&'static str, usize)>,
}

impl Headers {
    /// Without headers, with room for the usual ones.
    pub fn roomy() -> Self {
        Self {
            values: String::with_capacity(128),
            ends: Vec::with_capacity(6),
        }
    }

    /// Adds a header. Line breaks in a value become spaces.
    pub fn push(&mut self, name: &'static str, value: &str) {
        if value.contains(['\r', '\n']) {
            self.values
                .extend(value.chars().map(|c| if matches!(c, '\r' | '\n') { ' ' } else { c }));
        } else {
            self.values.push_str(value);
        }
        self.ends.push((name, self.values.len()));
    }

    /// The names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, end)| {
            let value = &self.values[start..end];
            start = end;
            (name, value)
        })
    }

    fn map(&self) -> HeaderMap {
        self.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from(value)))
            .collect()
    }
}

/// A message to send.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Where to.
    pub subject: Subject,
    /// Where the answer shall go.
    pub reply: Option<Subject>,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
    /// Not sent after this time, in microseconds since the loop began.
    pub expires_us: u64,
}

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
        .connect(settings.servers())
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
            .connect(settings.servers())
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
