//! From one connection to NATS to the next. A connection is never mended: a new one is opened with the same subscriptions and
//! an inbox of its own, and then takes over. That is so
//! - when the connection was lost,
//! - when its server is about to stop (lame duck mode): to another server, while the present one still serves,
//! - when somebody asks for it, with other settings ([`move_all`]): new credentials, certificates or addresses.
//!
//! From the takeover everything is sent by the new connection. The old one is still listened to: requests that were sent by it
//! are answered to its inbox, and it leaves its queue groups only when the cluster knows of the new subscriptions. It is dropped
//! when nobody waits for a reply by it, or when it is lost; so no call fails by a move.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Control, EventLoop, MESSAGES};
use crate::machine::mux::Inbox;
use crate::transport::{Channel, Inbound, Known, NatsSettings, Transport, TransportError, Wanted};

/// The rest of the cluster knows of a subscription after so long, in microseconds.
const KNOWN_US: u64 = 1_000_000;
/// What was on its way has come after so long, in microseconds.
const UNDER_WAY_US: u64 = 500_000;
/// A fleet does not move in the same instant: each waits for a part of this before it does, in milliseconds.
const SPREAD_MS: u64 = 500;

type Opened = Pin<Box<dyn Future<Output = Result<Transport, TransportError>> + Send>>;

/// A connection on its way.
struct Opening {
    opened: Opened,
    inbox: Inbox,
    /// Because the present one is lost.
    lost: bool,
    /// With these settings, for somebody who wants to know how it went.
    asked: Option<(NatsSettings, oneshot::Sender<Result<(), TransportError>>)>,
}

/// A connection that was in use.
struct Old {
    transport: Transport,
    /// Attempts sent until then went by it.
    until_us: u64,
    left_us: Option<u64>,
}

/// The connections beside the one in use.
pub(super) struct Moving {
    settings: NatsSettings,
    wanted: Vec<Wanted>,
    inbox: Inbox,
    opening: Option<Opening>,
    old: Vec<Old>,
    failures: u32,
    /// What was said last of why there is none.
    told: String,
}

impl Moving {
    pub(super) fn new(settings: NatsSettings, wanted: Vec<Wanted>, inbox: Inbox) -> Self {
        Self {
            settings,
            wanted,
            inbox,
            opening: None,
            old: Vec::new(),
            failures: 0,
            told: String::new(),
        }
    }

    /// Whether something is to be looked after soon.
    pub(super) fn is_busy(&self) -> bool {
        !self.old.is_empty()
    }
}

/// Subscribes; true when the server knows all of it.
pub(super) async fn subscribe(
    transport: &mut Transport,
    wanted: Vec<Wanted>,
    inbox: &Inbox,
) -> Result<bool, TransportError> {
    let replies = Wanted {
        channel: Channel::Reply,
        subject: inbox.wildcard(),
        group: None,
    };
    transport.subscribe(replies).await?;
    for one in wanted {
        transport.subscribe(one).await?;
    }
    let known = transport.flush().await;
    match transport.denied().await {
        Some(denied) => Err(denied),
        None => Ok(known),
    }
}

async fn open(
    settings: NatsSettings,
    known: Known,
    wanted: Vec<Wanted>,
    inbox: Inbox,
    pause: Duration,
) -> Result<Transport, TransportError> {
    tokio::time::sleep(pause).await;
    let mut transport = Transport::connect(&settings, &known).await?;
    if subscribe(&mut transport, wanted, &inbox).await? {
        return Ok(transport);
    }
    let why = "the server does not take the subscriptions in time".to_owned();
    Err(TransportError::Connect(transport.server(), why))
}

/// Moves all loops to connections with these settings; returns when they have. A loop that gets no such connection stays where
/// it is, with its settings, and the first error is returned.
pub async fn move_all(loops: &[mpsc::UnboundedSender<Control>], settings: &NatsSettings) -> Result<(), TransportError> {
    let mut moves = Vec::new();
    for one in loops {
        let (tell, told) = oneshot::channel();
        if one.send(Control::Move(Box::new(settings.clone()), tell)).is_ok() {
            moves.push(told);
        }
    }
    let mut result = Ok(());
    for told in moves {
        // A loop that has ended needs none.
        result = result.and(told.await.unwrap_or(Ok(())));
    }
    result
}

impl EventLoop {
    /// Begins to move to a connection with other settings.
    pub(super) fn move_to(&mut self, settings: NatsSettings, tell: oneshot::Sender<Result<(), TransportError>>) {
        self.moving.opening = None;
        let known = Known {
            told: Vec::new(),
            ..self.transport.known()
        };
        self.begin(settings.clone(), known, Duration::ZERO, Some((settings, tell)));
    }

    fn begin(
        &mut self,
        settings: NatsSettings,
        known: Known,
        pause: Duration,
        asked: Option<(NatsSettings, oneshot::Sender<Result<(), TransportError>>)>,
    ) {
        // Whoever is ending takes nothing new.
        let wanted = if self.draining.is_some() {
            Vec::new()
        } else {
            self.moving.wanted.clone()
        };
        let inbox = self.moving.inbox.next();
        self.moving.inbox = inbox.clone();
        self.moving.opening = Some(Opening {
            opened: Box::pin(open(settings, known, wanted, inbox.clone(), pause)),
            inbox,
            lost: !self.transport.connected(),
            asked,
        });
    }

    /// A drain has begun: what is on its way would subscribe again.
    pub(super) fn stop_moving(&mut self) {
        self.moving.opening = None;
    }

    /// Looks after the connections: takes over a new one, sees to it that one is on its way where it is needed.
    pub(super) fn watch_connection(&mut self, cx: &mut Context<'_>, now: u64) {
        let connected = self.transport.connected();
        if !connected {
            self.machine.on_connection(false, now);
            // It may wait for long, or for another server.
            if self
                .moving
                .opening
                .as_ref()
                .is_some_and(|o| !o.lost && o.asked.is_none())
            {
                self.moving.opening = None;
                self.moving.failures = 0;
            }
        }
        let wanted = !connected || (self.transport.is_lame_duck() && self.draining.is_none());
        if wanted && self.moving.opening.is_none() {
            let most = if connected && self.moving.failures == 0 {
                SPREAD_MS
            } else {
                50 << self.moving.failures.min(6)
            };
            let least = if connected { 0 } else { most / 2 };
            let pause = Duration::from_millis(fastrand::u64(least..=most));
            self.begin(self.moving.settings.clone(), self.transport.known(), pause, None);
        }
        if let Some(opening) = &mut self.moving.opening
            && let Poll::Ready(opened) = opening.opened.as_mut().poll(cx)
            && let Some(opening) = self.moving.opening.take()
        {
            match opened {
                Ok(transport) => self.take_over(transport, opening, now),
                Err(error) => self.not_opened(error, opening, now),
            }
            cx.waker().wake_by_ref();
        }
        let connected = self.transport.connected();
        if self.state.nats.swap(connected, Ordering::Relaxed) != connected {
            self.metrics.nats_connected.add(if connected { 1 } else { -1 });
        }
    }

    fn take_over(&mut self, mut transport: Transport, opening: Opening, now: u64) {
        if !self.transport.connected() {
            self.machine.on_connection(false, now);
        }
        transport.take_over(&mut self.transport);
        self.machine.move_to(opening.inbox);
        self.machine.set_max_payload(transport.max_payload());
        self.machine.on_connection(true, now);
        tracing::info!(
            server = transport.server(),
            event_loop = self.label.as_str(),
            "a new connection to NATS has taken over"
        );
        let old = std::mem::replace(&mut self.transport, transport);
        self.moving.old.push(Old {
            transport: old,
            until_us: now,
            left_us: None,
        });
        self.moving.failures = 0;
        self.moving.told.clear();
        self.metrics.reconnects.with_label_values(&["nats"]).inc();
        self.state.subscribed.store(true, Ordering::Relaxed);
        if let Some((settings, tell)) = opening.asked {
            self.moving.settings = settings;
            let _ = tell.send(Ok(())); // whoever asked may have gone
        }
    }

    fn not_opened(&mut self, error: TransportError, opening: Opening, now: u64) {
        if let Some((_, tell)) = opening.asked {
            let _ = tell.send(Err(error)); // whoever asked may have gone
            return;
        }
        self.moving.failures += 1;
        let why = error.to_string();
        if why == self.moving.told {
            return;
        }
        let (event_loop, lost) = (self.label.as_str(), !self.transport.connected());
        tracing::warn!(%error, event_loop, lost, at_ms = now / 1000, "no new connection to NATS; will be tried again");
        self.moving.told = why;
    }

    /// Takes what comes by the old connections, and lets them go.
    pub(super) fn take_old_messages(&mut self, cx: &mut Context<'_>, inbound: &mut Vec<Inbound>, now: u64) {
        let mut olds = std::mem::take(&mut self.moving.old);
        olds.retain_mut(|old| {
            let _ = old.transport.poll_receive(cx, inbound, MESSAGES);
            self.metrics.dropped.inc_by(old.transport.take_slow_consumer());
            if old.transport.is_spent() {
                self.machine.on_old_connection_lost(old.until_us, now);
                return false;
            }
            if now < old.until_us + KNOWN_US && self.draining.is_none() {
                return true;
            }
            if !old.transport.leave(now) {
                return true;
            }
            let left_us = *old.left_us.get_or_insert(now);
            let needed = now < left_us + UNDER_WAY_US || self.machine.waits_for_replies_until(old.until_us);
            if !needed {
                tracing::info!(
                    server = old.transport.server(),
                    event_loop = self.label.as_str(),
                    "the former connection to NATS is no longer needed"
                );
            }
            needed
        });
        self.moving.old = olds;
    }
}
