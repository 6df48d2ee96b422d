//! The way to NATS, and whether silence on it means anything.
//!
//! Promise: [`Line::held`] is true only when the connection stood from the beginning of a round to its end, no reconnection
//! in between or shortly before, and when a message made its way to a service and back at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use tokio::time::Instant;

use crate::serve::micro;
use crate::transport::{self, Denials, Denied, NatsSettings, TransportError};

/// How long the message at the end may take.
const THERE_AND_BACK: Duration = Duration::from_secs(2);
/// The least and the most time that services are given to come back after a connection was made.
const GRACE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// A connection to NATS.
pub struct Line {
    /// The connection.
    pub client: Client,
    denials: Arc<Denials>,
    connects: u64,
    since: Instant,
    bad: bool,
}

/// The line at the beginning of a round.
pub struct Watch {
    connects: u64,
    stood: bool,
    begin: std::time::Instant,
}

impl Line {
    /// Connects.
    pub async fn open(settings: &NatsSettings) -> Result<Self, TransportError> {
        let (client, denials) = transport::client(settings).await?;
        Ok(Self {
            client,
            denials,
            connects: 0,
            since: Instant::now(),
            bad: false,
        })
    }

    fn stands(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// To be asked about at the end of the round. Rounds come each `every`: services get some ten of them to come back.
    pub fn watch(&mut self, every: Duration) -> Watch {
        let connects = self.connects();
        if connects != self.connects {
            self.connects = connects;
            self.since = Instant::now();
        }
        let grace = (every * 10).clamp(GRACE.0, GRACE.1);
        Watch {
            connects,
            stood: self.stands() && self.since.elapsed() >= grace,
            begin: std::time::Instant::now(),
        }
    }

    /// Whether NATS has refused a message to this subject since then.
    pub fn is_denied(&self, subject: &str, since: std::time::Instant) -> bool {
        let of = |denied: &Denied| matches!(denied, Denied::Publish(other) if other == subject);
        self.denials.since(since, of).is_some()
    }

    /// Whether the line was good all the time. Bridges are services themselves, so somebody answers: at least this one.
    pub async fn held(&mut self, watch: &Watch) -> bool {
        if !watch.stood || !self.stands() {
            return false;
        }
        // Who may not ask gets no answers.
        if self.is_denied("$SRV.INFO", watch.begin) {
            return false;
        }
        let ping = format!("$SRV.PING.{}", micro::NAME);
        let request = async_nats::Request::new().timeout(Some(THERE_AND_BACK));
        let answer = self.client.send_request(ping, request).await;
        match &answer {
            Err(error) if !self.bad => {
                tracing::warn!(%error, "not even a bridge answers $SRV.PING.ext-bridge: nothing is held against services");
            }
            Ok(_) if self.bad => tracing::info!("bridges answer $SRV.PING.ext-bridge again"),
            _ => {}
        }
        self.bad = answer.is_err();
        answer.is_ok() && self.stands() && self.connects() == watch.connects
    }
}
