//! Batches of questions to `ext_select_many` (or `ext_preview`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::FuturesUnordered;
use tokio_postgres::{Row, Statement};

use crate::machine::contract::Kind;
use crate::machine::json::push_string;
use crate::machine::{Decision, Question, Undecided};
use crate::pg::{Conn, Fault, RawJsonb, describe, fault};

/// What became of a batch.
pub struct Answered {
    /// The questions that were asked.
    pub questions: Vec<Question>,
    /// Their rows, or why there are none.
    pub rows: Result<Vec<Row>, tokio_postgres::Error>,
    conn: Arc<Conn>,
    alone: bool,
    preview: bool,
    number: u64,
}

type Pending = Pin<Box<dyn Future<Output = Answered>>>;

/// Batches under way.
#[derive(Default)]
pub struct Decider {
    pending: FuturesUnordered<Pending>,
    /// Of each batch under way its number, its connection, and when it left, in microseconds.
    sent: Vec<(u64, u64, u64)>,
    numbers: u64,
    /// The last connection whose statements no longer fitted, and how many there were without an answer in between.
    stale: (u64, u32),
}

/// So many connections in a row may have statements that do not fit before a question is given up.
const STALE: u32 = 2;

impl Decider {
    /// How many batches are under way.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// Since when the oldest unanswered batch of a connection has been waiting, in microseconds.
    pub fn unanswered_since(&self, conn: u64) -> Option<u64> {
        let waiting = self.sent.iter().filter(|(_, on, _)| *on == conn);
        waiting.map(|(_, _, since)| *since).min()
    }

    /// Asks. `alone` says that these questions had been in a batch that was refused.
    pub fn ask(&mut self, conn: Arc<Conn>, questions: Vec<Question>, preview: bool, alone: bool, now: u64) {
        self.numbers += 1;
        let number = self.numbers;
        self.sent.push((number, conn.id, now));
        self.pending.push(Box::pin(async move {
            let rows = match statement(&conn, preview) {
                Some(statement) => query(&conn, statement, &questions, preview).await,
                None => Ok(Vec::new()),
            };
            Answered {
                questions,
                rows,
                conn,
                alone,
                preview,
                number,
            }
        }));
    }

    /// The next answer.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answered>> {
        Pin::new(&mut self.pending).poll_next(cx)
    }

    /// Turns an answer into decisions; questions to ask again are given back.
    pub fn settle(
        &mut self,
        answered: Answered,
        now: u64,
        mut tell: impl FnMut(&Question, Result<Decision, Undecided>),
    ) -> Vec<Question> {
        let Answered {
            questions,
            rows,
            conn,
            alone,
            preview,
            number,
        } = answered;
        self.sent.retain(|(sent, _, _)| *sent != number);
        match rows {
            Ok(rows) => {
                self.stale = (0, 0);
                let mut told = vec![false; questions.len()];
                for row in &rows {
                    let Ok(ordinality) = row.try_get::<_, i64>(0) else {
                        continue;
                    };
                    let index = usize::try_from(ordinality - 1).unwrap_or(usize::MAX);
                    if let (Some(question), Some(told)) = (questions.get(index), told.get_mut(index)) {
                        tell(question, read(row));
                        *told = true;
                    }
                }
                let missing = if preview && conn.preview.is_none() {
                    "this version of the extension cannot preview decisions"
                } else {
                    "the registry gave no row"
                };
                for (question, told) in questions.iter().zip(told) {
                    if !told {
                        tell(question, Err(Undecided::Internal(missing)));
                    }
                }
                Vec::new()
            }
            Err(error) => match fault(&error) {
                Fault::Connection => questions,
                Fault::Data if !alone && questions.len() > 1 => {
                    for question in questions {
                        self.ask(Arc::clone(&conn), vec![question], preview, true, now);
                    }
                    Vec::new()
                }
                Fault::Data => {
                    let why = error
                        .as_db_error()
                        .map_or_else(|| describe(&error), |db| db.message().to_owned());
                    for question in &questions {
                        tell(question, Err(Undecided::Refused(why.clone())));
                    }
                    Vec::new()
                }
                Fault::Stale if self.may_ask_again(conn.id) => {
                    let error = describe(&error);
                    tracing::info!(error, "statements no longer fit the database, and are prepared anew");
                    conn.reset();
                    questions
                }
                kind @ (Fault::Busy | Fault::Stale) => {
                    tracing::warn!(error = describe(&error), "a batch of decisions failed");
                    for question in &questions {
                        tell(question, Err(Undecided::Unavailable));
                    }
                    if kind == Fault::Stale {
                        conn.reset();
                    }
                    Vec::new()
                }
            },
        }
    }
}

impl Decider {
    /// Statements of a connection do not fit: after an update of the extension those of the next one do, unless something is
    /// wrong for good.
    fn may_ask_again(&mut self, conn: u64) -> bool {
        if self.stale.0 != conn {
            self.stale = (conn, self.stale.1 + 1);
        }
        self.stale.1 <= STALE
    }
}

fn statement(conn: &Conn, preview: bool) -> Option<&Statement> {
    if preview {
        conn.preview.as_ref()
    } else {
        Some(&conn.main)
    }
}

async fn query(
    conn: &Conn,
    statement: &Statement,
    questions: &[Question],
    preview: bool,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let ids: Vec<&str> = questions.iter().map(|q| &*q.extension_id).collect();
    let contexts: Vec<RawJsonb> = questions.iter().map(|q| RawJsonb(q.context.clone())).collect();
    if preview {
        return conn.client.query(statement, &[&ids, &contexts]).await;
    }
    let avoid = avoid(questions).map(RawJsonb);
    conn.client.query(statement, &[&ids, &contexts, &avoid]).await
}

/// One list of instances per question; `None` where no question avoids any.
fn avoid(questions: &[Question]) -> Option<Bytes> {
    if questions.iter().all(|q| q.avoid.is_empty()) {
        return None;
    }
    let mut out = vec![b'['];
    for (i, question) in questions.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'[');
        for (j, instance) in question.avoid.iter().enumerate() {
            if j > 0 {
                out.push(b',');
            }
            push_string(&mut out, instance);
        }
        out.push(b']');
    }
    out.push(b']');
    Some(out.into())
}

fn read(row: &Row) -> Result<Decision, Undecided> {
    let read = || -> Result<Decision, tokio_postgres::Error> {
        Ok(Decision {
            allowed: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
            reason: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
            retry_after_ms: row.try_get::<_, Option<i32>>(3)?.map(i64::from),
            kind: row.try_get::<_, Option<&str>>(4)?.and_then(Kind::parse),
            version: row.try_get(5)?,
            instance_id: row.try_get(6)?,
            subject: row.try_get(7)?,
            timeout_ms: row
                .try_get::<_, Option<i32>>(8)?
                .map_or(5000, |ms| u32::try_from(ms).unwrap_or(0)),
            retry: row
                .try_get::<_, Option<i32>>(9)?
                .map_or(0, |n| u32::try_from(n).unwrap_or(0)),
            config: row
                .try_get::<_, Option<RawJsonb>>(10)?
                .map_or_else(|| Bytes::from_static(b"{}"), |config| config.0),
            ticket: row.try_get::<_, Option<i64>>(11)?.unwrap_or(0),
            local: false,
        })
    };
    read().map_err(|error| {
        tracing::error!(error = describe(&error), "a decision cannot be read");
        Undecided::Internal("a decision cannot be read")
    })
}
