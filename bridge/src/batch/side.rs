//! Policies and facts: questions that few calls ask, on a connection of their own.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::FuturesUnordered;
use tokio_postgres::Row;

use crate::machine::policies::{Found, PolicyKey};
use crate::machine::{Facts, Machine};
use crate::pg::{Conn, Fault, RawJsonb, describe, fault};

enum Asked {
    Policies(Vec<PolicyKey>),
    Facts,
}

struct Answered {
    asked: Asked,
    rows: Result<Vec<Row>, tokio_postgres::Error>,
    conn: Arc<Conn>,
}

type Pending = Pin<Box<dyn Future<Output = Answered>>>;

/// Questions under way.
#[derive(Default)]
pub struct Side {
    pending: FuturesUnordered<Pending>,
    unavailable: Vec<PolicyKey>,
    /// When the oldest of the questions that are under way was asked, in microseconds.
    since: Option<u64>,
}

impl Side {
    /// Since when answers have been waited for, in microseconds.
    pub fn unanswered_since(&self) -> Option<u64> {
        self.since
    }

    /// Takes the policies that could not be read.
    pub fn take_unavailable(&mut self) -> Vec<PolicyKey> {
        std::mem::take(&mut self.unavailable)
    }

    /// Asks for policies.
    pub fn policies(&mut self, conn: Arc<Conn>, keys: Vec<PolicyKey>, now: u64) {
        self.since.get_or_insert(now);
        self.pending.push(Box::pin(async move {
            let tenants: Vec<&str> = keys.iter().map(|key| key.0.as_str()).collect();
            let ids: Vec<&str> = keys.iter().map(|key| key.1.as_str()).collect();
            let rows = conn.client.query(&conn.main, &[&tenants, &ids]).await;
            Answered {
                asked: Asked::Policies(keys),
                rows,
                conn,
            }
        }));
    }

    /// Asks for facts.
    pub fn facts(&mut self, conn: Arc<Conn>, ids: &[Rc<str>], now: u64) {
        self.since.get_or_insert(now);
        let ids: Vec<String> = ids.iter().map(std::string::ToString::to_string).collect();
        self.pending.push(Box::pin(async move {
            let rows = match &conn.facts {
                Some(statement) => conn.client.query(statement, &[&ids]).await,
                None => Ok(Vec::new()),
            };
            Answered {
                asked: Asked::Facts,
                rows,
                conn,
            }
        }));
    }

    /// Hands answers to the machine. Ready when there was one.
    pub fn poll(&mut self, cx: &mut Context<'_>, machine: &mut Machine, now: u64) -> Poll<()> {
        let mut any = Poll::Pending;
        while let Poll::Ready(Some(answered)) = Pin::new(&mut self.pending).poll_next(cx) {
            any = Poll::Ready(());
            self.since = if self.pending.is_empty() { None } else { Some(now) };
            if let Err(error) = &answered.rows {
                tracing::warn!(error = describe(error), "policies or facts cannot be read");
                if fault(error) == Fault::Stale {
                    answered.conn.reset();
                }
            }
            match answered.asked {
                Asked::Policies(keys) => {
                    for key in keys {
                        match answered.rows.as_deref() {
                            Ok(rows) => machine.on_policy(&key, &found(&key, rows), now),
                            Err(_) => self.unavailable.push(key),
                        }
                    }
                }
                Asked::Facts => {
                    for row in answered.rows.unwrap_or_default() {
                        if let (Ok(id), Ok(idempotent), Ok(balancing)) =
                            (row.try_get::<_, &str>(0), row.try_get(1), row.try_get(2))
                        {
                            machine.on_facts(id, Facts { idempotent, balancing }, now);
                        }
                    }
                }
            }
        }
        any
    }
}

fn found(key: &PolicyKey, rows: &[Row]) -> Found {
    let matches = |row: &&Row| {
        row.try_get::<_, &str>(0).is_ok_and(|t| t == key.0) && row.try_get::<_, &str>(1).is_ok_and(|p| p == key.1)
    };
    let Some(row) = rows.iter().find(matches) else {
        return Found::Nothing;
    };
    if !row.try_get::<_, bool>(2).unwrap_or(false) {
        return Found::Nothing;
    }
    let document = row.try_get::<_, RawJsonb>(3).map_err(|e| describe(&e));
    match document.and_then(|raw| serde_json::from_slice(&raw.0).map_err(|e| e.to_string())) {
        Ok(json) => Found::parsed(&json),
        Err(why) => Found::Broken(why),
    }
}
