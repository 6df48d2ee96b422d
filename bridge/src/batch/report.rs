//! Batches of outcomes to `ext_report_many`.
//!
//! Promise: every outcome is applied once. A batch carries this reporter's name and a sequence number; Postgres applies a
//! number once. Batches are kept until Postgres says that they are on disk, and sent again, in order, on a new connection.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::FuturesUnordered;

use super::UNDER_WAY;
use crate::machine::Report;
use crate::metrics::Metrics;
use crate::pg::{Conn, Fault, describe, fault};

/// Most outcomes that are kept while Postgres is away.
const MOST_KEPT: usize = 1_000_000;

struct Batch {
    seq: i64,
    reports: Arc<Vec<Report>>,
    /// On which connection it was last sent.
    sent_on: u64,
    applied: bool,
    alone: bool,
}

struct Answered {
    seq: i64,
    conn: Arc<Conn>,
    result: Result<i64, tokio_postgres::Error>,
}

type Pending = Pin<Box<dyn Future<Output = Answered>>>;

/// Batches under way and kept.
pub struct Reporter {
    name: String,
    next_seq: i64,
    kept: VecDeque<Batch>,
    outcomes: usize,
    pending: FuturesUnordered<Pending>,
    metrics: Arc<Metrics>,
}

impl Reporter {
    /// A reporter with a name of its own.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            name: uuid::Uuid::new_v4().to_string(),
            next_seq: 1,
            kept: VecDeque::new(),
            outcomes: 0,
            pending: FuturesUnordered::new(),
            metrics,
        }
    }

    /// Outcomes not yet known to be on disk.
    pub fn outcomes(&self) -> usize {
        self.outcomes
    }

    /// Whether everything given has been applied.
    pub fn all_applied(&self) -> bool {
        self.pending.is_empty() && self.kept.iter().all(|batch| batch.applied)
    }

    /// Whether another batch may leave.
    pub fn has_room(&self) -> bool {
        self.pending.len() < UNDER_WAY
    }

    /// Takes outcomes over; they leave with the next [`Reporter::send`].
    pub fn add(&mut self, reports: Vec<Report>) {
        self.metrics
            .batch_size
            .with_label_values(&["report"])
            .observe(reports.len() as f64);
        self.keep(Arc::new(reports), false);
    }

    fn keep(&mut self, reports: Arc<Vec<Report>>, alone: bool) {
        self.outcomes += reports.len();
        self.kept.push_back(Batch {
            seq: self.next_seq,
            reports,
            sent_on: 0,
            applied: false,
            alone,
        });
        self.next_seq += 1;
        while self.outcomes > MOST_KEPT {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.outcomes -= oldest.reports.len();
            if !oldest.applied {
                self.metrics.reports_lost.inc_by(oldest.reports.len() as u64);
            }
        }
    }

    /// Sends what has not been sent on this connection, in order, as far as there is room.
    pub fn send(&mut self, conn: &Arc<Conn>) {
        for batch in &mut self.kept {
            if self.pending.len() >= UNDER_WAY {
                return;
            }
            if batch.sent_on != conn.id {
                batch.sent_on = conn.id;
                let (seq, reports, name, conn) = (
                    batch.seq,
                    Arc::clone(&batch.reports),
                    self.name.clone(),
                    Arc::clone(conn),
                );
                self.pending.push(Box::pin(async move {
                    let result = query(&conn, &reports, &name, seq).await;
                    Answered { seq, conn, result }
                }));
            }
        }
    }

    /// Takes answers in. Ready when there was one.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut any = Poll::Pending;
        while let Poll::Ready(Some(answered)) = Pin::new(&mut self.pending).poll_next(cx) {
            any = Poll::Ready(());
            self.settle(answered);
        }
        any
    }

    fn settle(&mut self, answered: Answered) {
        let Some(position) = self.kept.iter().position(|batch| batch.seq == answered.seq) else {
            return;
        };
        match answered.result {
            Ok(flushed) => {
                self.kept[position].applied = true;
                while let Some(batch) = self.kept.front() {
                    if !batch.applied || batch.seq > flushed {
                        break;
                    }
                    self.outcomes -= batch.reports.len();
                    self.kept.pop_front();
                }
            }
            Err(error) => {
                self.metrics.batch_failures.with_label_values(&["report"]).inc();
                let fault = fault(&error);
                if fault == Fault::Connection {
                    return; // sent again on the next connection
                }
                // Nothing of it was applied, but a later number may have been: it needs a new one.
                let Some(batch) = self.kept.remove(position) else {
                    return;
                };
                self.outcomes -= batch.reports.len();
                match fault {
                    Fault::Data if batch.alone => {
                        tracing::error!(error = describe(&error), "an outcome is refused");
                        self.metrics.reports_lost.inc();
                    }
                    Fault::Data => {
                        for report in batch.reports.iter() {
                            self.keep(Arc::new(vec![*report]), true);
                        }
                    }
                    _ => {
                        tracing::warn!(error = describe(&error), "a batch of reports failed");
                        self.keep(batch.reports, batch.alone);
                        answered.conn.reset();
                    }
                }
            }
        }
    }
}

async fn query(conn: &Conn, reports: &[Report], name: &str, seq: i64) -> Result<i64, tokio_postgres::Error> {
    let tickets: Vec<i64> = reports.iter().map(|r| r.ticket).collect();
    let outcomes: Vec<&str> = reports.iter().map(|r| r.outcome.as_str()).collect();
    let latencies: Vec<f64> = reports.iter().map(|r| r.latency_us as f64 / 1000.0).collect();
    let retries: Vec<i32> = reports.iter().map(|r| r.retries as i32).collect();
    let row = conn
        .client
        .query_one(&conn.main, &[&tickets, &outcomes, &latencies, &retries, &name, &seq])
        .await?;
    Ok(row.try_get::<_, Option<i64>>(1)?.unwrap_or(0))
}
