//! `<prefix>.events`: what happens in the registry, as `{type, data}`, from one bridge of all.
//!
//! | type | what |
//! |---|---|
//! | `extension_created`, `extension_deleted` | a row of `extensions` came or went |
//! | `extension_updated` | one was changed, or one of its versions, instances or settings came, went or was changed |
//! | `circuit_state_updated` | a circuit breaker moved |
//! | `extension_health_updated` | an instance was ejected or taken back |
//!
//! `data` names the extension and has the `id` of what happened; the header `Nats-Msg-Id` has it too.
//!
//! Promises: the bridge that leads publishes nothing twice. How far it is, it writes into the database after the server has
//! taken the messages, so the next one loses nothing; what had been sent but not written down by then comes twice. Changes
//! come as they are committed, also those of transactions that began long before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use tokio_postgres::types::ToSql;

use super::leader::{End, Lead, key_of};
use super::reload::Live;
use crate::config::Source;
use crate::pg::{Databases, Direct, PgError, RawJsonb};
use crate::transport::{self, TransportError};

/// How often to look.
const LOOK: Duration = Duration::from_millis(500);
/// Most events of a kind at once.
const BATCH: i64 = 500;
/// Most changes that are remembered because an older transaction is still open; then it is waited for.
const MOST_REMEMBERED: usize = 10_000;
/// What is older is not read again.
const NEWS: Duration = Duration::from_hours(1);
/// The longest wait for Postgres or NATS.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum EventsError {
    #[error(transparent)]
    Postgres(#[from] PgError),
    #[error(transparent)]
    Nats(#[from] TransportError),
    #[error("NATS does not take the events: {0}")]
    Unpublished(String),
}

impl From<tokio_postgres::Error> for EventsError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(PgError::Postgres(error))
    }
}

/// Publishes while this bridge leads, for as long as the process runs. Without Postgres there is nothing to publish.
pub async fn serve(live: Live, databases: Databases, source: Source) {
    if source == Source::Fixtures {
        return;
    }
    let mut failures = 0_u32;
    loop {
        let error = match follow_and_lead(&live, &databases, &mut failures).await {
            Ok(End::Standby) => "the database is a standby".to_owned(),
            Ok(End::Moved) => continue,
            Err(error) => error.to_string(),
        };
        if failures == 0 {
            tracing::warn!(error, "events cannot be published");
        } else {
            tracing::debug!(error, "events cannot be published");
        }
        failures += 1;
        let full = 100_u64 << failures.min(8);
        tokio::time::sleep(Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))).await;
    }
}

/// On one connection, until an error.
async fn follow_and_lead(live: &Live, databases: &Databases, failures: &mut u32) -> Result<End, EventsError> {
    let settings = Arc::clone(&live.borrow());
    let direct = Direct::open(databases).await?;
    let standby = direct
        .client
        .query_one("select pg_catalog.pg_is_in_recovery()", &[])
        .await?;
    if standby.try_get(0)? {
        return Ok(End::Standby);
    }
    let subject = format!("{}.events", settings.prefix);
    let mut lead = Lead::new(key_of(&subject));
    while !in_time(async { Ok(lead.try_to(&direct.client).await?) }).await? {
        *failures = 0;
        if direct.is_outdated(databases) {
            return Ok(End::Moved);
        }
        tokio::time::sleep(LOOK).await;
    }
    let mut publisher = Publisher {
        nats: transport::client(&settings.nats).await?.0,
        subject,
        event_id: 0,
        horizon: 0,
        published: HashMap::new(),
        pass: None,
        direct,
    };
    in_time(publisher.resume()).await?;
    tracing::info!(subject = publisher.subject, "this bridge publishes the events");
    loop {
        let more = in_time(publisher.turn()).await?;
        *failures = 0;
        if publisher.direct.is_outdated(databases) || live.borrow().nats != settings.nats {
            return Ok(End::Moved);
        }
        if !more {
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, EventsError>>) -> Result<T, EventsError> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or(Err(EventsError::Postgres(PgError::TimedOut)))
}

/// The lead's state. Its position is `event_id` and `horizon`, as in the table.
struct Publisher {
    direct: Direct,
    nats: async_nats::Client,
    subject: String,
    /// Moves of breakers up to this one are published.
    event_id: i64,
    /// Changes by older transactions are published.
    horizon: u64,
    /// Published changes by transactions that are not older: their transaction, and when that was.
    published: HashMap<String, (u64, Instant)>,
    pass: Option<Pass>,
}

/// One reading of the audit log, from the horizon to its end, in pages. Transactions end in another order than they begin, so
/// the next one begins where nothing can be missing: at the oldest transaction that was open when this one began.
struct Pass {
    /// That transaction.
    horizon: u64,
    /// The last change that was read: its transaction, time and id.
    after: (u64, String, String),
}

impl Publisher {
    /// Goes on where the last one stopped.
    async fn resume(&mut self) -> Result<(), EventsError> {
        let sql = self.direct.sql(include_str!("../queries/published.sql"));
        let row = self.direct.client.query_one(&sql, &[&self.subject]).await?;
        self.event_id = row.try_get(0)?;
        self.horizon = number(row.try_get(1)?);
        Ok(())
    }

    /// Publishes what is new; says whether there may be more.
    async fn turn(&mut self) -> Result<bool, EventsError> {
        let client = &self.direct.client;
        let sql = self.direct.sql(include_str!("../queries/breaker_events.sql"));
        let moves = client.query(&sql, &[&self.event_id, &BATCH]).await?;
        for row in &moves {
            let (id, data): (i64, RawJsonb) = (row.try_get(0)?, row.try_get(1)?);
            let kind = if row.try_get(2)? {
                "extension_health_updated"
            } else {
                "circuit_state_updated"
            };
            self.publish(kind, &data, &format!("breaker-{id}")).await?;
            self.event_id = id;
        }

        let (changes, read) = self.changes().await?;
        if !moves.is_empty() || changes > 0 {
            self.nats
                .flush()
                .await
                .map_err(|e| EventsError::Unpublished(e.to_string()))?;
        }
        let remembered = self.published.len();
        let horizon = self.horizon;
        self.published
            .retain(|_, (transaction, at)| *transaction >= horizon && at.elapsed() < NEWS);
        if !moves.is_empty() || changes > 0 || self.published.len() < remembered {
            let sql = self.direct.sql(include_str!("../queries/save_published.sql"));
            let params: [&(dyn ToSql + Sync); 3] = [&self.subject, &self.event_id, &horizon.to_string()];
            self.direct.client.execute(&sql, &params).await?;
        }
        Ok(!read || moves.len() as i64 == BATCH)
    }

    /// A page of changes; says how many were published, and whether the reading has come to its end.
    async fn changes(&mut self) -> Result<(usize, bool), EventsError> {
        let mut pass = if let Some(pass) = self.pass.take() {
            pass
        } else {
            let sql = include_str!("../queries/horizon.sql");
            let row = self.direct.client.query_one(sql, &[]).await?;
            Pass {
                horizon: number(row.try_get(0)?),
                after: (self.horizon, "-infinity".to_owned(), uuid::Uuid::nil().to_string()),
            }
        };
        // Too much to remember: what the open transactions hold up has to wait for them.
        let full = self.published.len() >= MOST_REMEMBERED;
        let below = if full { pass.horizon } else { u64::MAX }.to_string();
        let (transaction, at, id) = &pass.after;
        let params: [&(dyn ToSql + Sync); 5] = [&transaction.to_string(), at, id, &below, &BATCH];
        let sql = self.direct.sql(include_str!("../queries/registry_changes.sql"));
        let rows = self.direct.client.query(&sql, &params).await?;
        let mut count = 0;
        for row in &rows {
            let (id, transaction): (String, u64) = (row.try_get(0)?, number(row.try_get(1)?));
            let (data, kind): (RawJsonb, &str) = (row.try_get(3)?, row.try_get(4)?);
            if !self.published.contains_key(&id) {
                self.publish(kind, &data, &format!("change-{id}")).await?;
                count += 1;
                if transaction >= pass.horizon {
                    self.published.insert(id.clone(), (transaction, Instant::now()));
                }
            }
            pass.after = (transaction, row.try_get(2)?, id);
        }
        let read = (rows.len() as i64) < BATCH;
        let published = if read {
            pass.horizon
        } else {
            pass.horizon.min(pass.after.0)
        };
        self.horizon = self.horizon.max(published);
        if !read {
            self.pass = Some(pass);
        }
        Ok((count, read))
    }

    async fn publish(&self, kind: &str, data: &RawJsonb, id: &str) -> Result<(), EventsError> {
        let mut body = Vec::with_capacity(data.0.len() + 64);
        body.extend_from_slice(format!("{{\"type\":\"{kind}\",\"data\":").as_bytes());
        body.extend_from_slice(&data.0);
        body.push(b'}');
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        self.nats
            .publish_with_headers(self.subject.clone(), headers, body.into())
            .await
            .map_err(|e| EventsError::Unpublished(e.to_string()))
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}
