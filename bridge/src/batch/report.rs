//! Batches of outcomes to `ext_report_many`.
//!
//! Promise: every outcome is applied once. A batch carries this reporter's name and a sequence number; Postgres applies a
//! number once. Batches are kept until Postgres says that they are on disk, and sent again, in order, on a new connection.
//!
//! A restart makes Postgres forget tickets. The tickets of a batch are all from one life of its memory, so a batch is forgotten
//! as a whole: nothing of it is applied. Single tickets give way when their call has taken longer than it may; which ones
//! Postgres does not say, so what has waited here for so long is not reported by its ticket. What was forgotten is given back by
//! [`Reporter::take_forgotten`]. Where nothing is applied of a batch that had been sent before, it may have been applied then;
//! the life in which the next decision was made tells.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use ext_registry_core::tickets::boot_of;
use futures_util::Stream;
use futures_util::stream::FuturesUnordered;

use super::UNDER_WAY;
use crate::machine::Report;
use crate::metrics::Metrics;
use crate::pg::{Conn, Fault, describe, fault};

/// The number of a batch without outcomes, which only asks what is on disk.
const QUESTION: i64 = 0;
/// It is asked this often at most, in microseconds.
const PAUSE_US: u64 = 1_000_000;
/// Most outcomes that are kept while Postgres is away.
const MOST_KEPT: usize = 1_000_000;

/// Outcomes that go together.
#[derive(Clone)]
pub struct Outcomes {
    /// Their tickets are from one life of Postgres's memory.
    pub reports: Rc<Vec<Report>>,
    /// When they came, in minutes since 1970.
    pub minute: u64,
}

impl Outcomes {
    fn boot(&self) -> u64 {
        self.reports
            .first()
            .map_or(0, |report| boot_of(report.ticket.cast_unsigned()))
    }

    fn len(&self) -> usize {
        self.reports.len()
    }
}

struct Batch {
    seq: i64,
    outcomes: Outcomes,
    /// On which connection it was last sent, and when, in microseconds.
    sent_on: u64,
    sent_us: u64,
    /// It may have been applied without an answer.
    again: bool,
    applied: bool,
    /// Nothing of it was applied when it was sent again.
    doubtful: bool,
    alone: bool,
}

impl Batch {
    /// Whether it must be sent on this connection; notes that it is.
    fn leaves(&mut self, conn: u64, now: u64) -> bool {
        if self.sent_on == conn {
            return false;
        }
        self.again |= self.sent_on != 0;
        self.applied = false;
        self.sent_on = conn;
        self.sent_us = now;
        true
    }
}

struct Answered {
    seq: i64,
    conn: Arc<Conn>,
    /// How many were applied, and the last number on disk.
    result: Result<(i32, i64), tokio_postgres::Error>,
}

type Pending = Pin<Box<dyn Future<Output = Answered>>>;

/// Batches under way and kept.
pub struct Reporter {
    name: String,
    next_seq: i64,
    kept: VecDeque<Batch>,
    outcomes: usize,
    pending: FuturesUnordered<Pending>,
    /// The life in which the last decision was made.
    boot: u64,
    doubts: bool,
    asked_us: u64,
    forgotten: Vec<Outcomes>,
    /// What was applied needs no longer be kept.
    to_standby: bool,
    promoted: bool,
    metrics: Arc<Metrics>,
}

impl Reporter {
    /// A reporter with a name of its own. A standby writes nothing down: what it has applied it may lose, and somebody else
    /// keeps what must not be lost.
    pub fn new(to_standby: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            name: uuid::Uuid::new_v4().to_string(),
            next_seq: 1,
            kept: VecDeque::new(),
            outcomes: 0,
            pending: FuturesUnordered::new(),
            boot: 0,
            doubts: false,
            asked_us: 0,
            forgotten: Vec::new(),
            to_standby,
            promoted: false,
            metrics,
        }
    }

    /// Outcomes not yet known to be on disk.
    pub fn outcomes(&self) -> usize {
        self.outcomes
    }

    /// Whether everything given has been applied, and nothing is to be given back.
    pub fn all_applied(&self) -> bool {
        self.pending.is_empty() && self.forgotten.is_empty() && self.kept.iter().all(|batch| batch.applied)
    }

    /// Whether another batch may leave.
    pub fn has_room(&self) -> bool {
        self.pending.len() < UNDER_WAY
    }

    /// Takes outcomes over; they leave with the next [`Reporter::send`].
    pub fn add(&mut self, mut reports: Vec<Report>, minute: u64) {
        self.metrics
            .batch_size
            .with_label_values(&["report"])
            .observe(reports.len() as f64);
        while let Some(first) = reports.first() {
            let boot = boot_of(first.ticket.cast_unsigned());
            let other = |report: &Report| boot_of(report.ticket.cast_unsigned()) != boot;
            let rest = match reports.iter().position(other) {
                Some(place) => reports.split_off(place),
                None => Vec::new(),
            };
            let outcomes = Outcomes {
                reports: Rc::new(reports),
                minute,
            };
            self.keep(outcomes, false, false);
            reports = rest;
        }
    }

    fn keep(&mut self, outcomes: Outcomes, alone: bool, again: bool) {
        self.outcomes += outcomes.len();
        self.kept.push_back(Batch {
            seq: self.next_seq,
            outcomes,
            sent_on: 0,
            sent_us: 0,
            again,
            applied: false,
            doubtful: false,
            alone,
        });
        self.next_seq += 1;
        while self.outcomes > MOST_KEPT {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.outcomes -= oldest.outcomes.len();
            if !oldest.applied {
                self.metrics.reports_lost.inc_by(oldest.outcomes.len() as u64);
            }
        }
    }

    /// A decision was made, and gave this ticket.
    pub fn decided(&mut self, ticket: i64) {
        let boot = boot_of(ticket.cast_unsigned());
        if ticket == 0 || (boot == self.boot && !self.doubts) {
            return;
        }
        self.boot = boot;
        self.doubts = false;
        let mut place = 0;
        while place < self.kept.len() {
            if self.kept[place].doubtful && self.kept[place].outcomes.boot() != boot {
                self.forget(place);
            } else {
                self.kept[place].doubtful = false;
                place += 1;
            }
        }
    }

    fn forget(&mut self, place: usize) {
        if let Some(batch) = self.kept.remove(place) {
            self.outcomes -= batch.outcomes.len();
            self.forgotten.push(batch.outcomes);
        }
    }

    /// Whether what was a standby has turned out to be a primary by now.
    pub fn take_promoted(&mut self) -> bool {
        std::mem::take(&mut self.promoted)
    }

    /// Takes what Postgres no longer had a ticket for.
    pub fn take_forgotten(&mut self) -> Vec<Outcomes> {
        std::mem::take(&mut self.forgotten)
    }

    /// Since when the oldest unanswered batch of a connection has been waiting, in microseconds.
    pub fn unanswered_since(&self, conn: u64) -> Option<u64> {
        let waiting = self.kept.iter().filter(|batch| batch.sent_on == conn && !batch.applied);
        waiting.map(|batch| batch.sent_us).min()
    }

    /// Takes out of the batch at a place whose tickets may be gone. Of one that has been sent they may also have been applied.
    fn let_lapse(&mut self, place: usize, now: u64) {
        let batch = &mut self.kept[place];
        let has_lapsed = |report: &Report| report.lapses_us <= now;
        if batch.sent_on != 0 || batch.again || !batch.outcomes.reports.iter().any(has_lapsed) {
            return;
        }
        let (lapsed, rest): (Vec<Report>, Vec<Report>) = batch.outcomes.reports.iter().cloned().partition(has_lapsed);
        self.outcomes -= lapsed.len();
        batch.outcomes.reports = Rc::new(rest);
        // Beside a standby somebody else counts by name anyway.
        if !self.to_standby {
            self.forgotten.push(Outcomes {
                reports: Rc::new(lapsed),
                minute: batch.outcomes.minute,
            });
        }
    }

    /// Sends what has not been sent on this connection, in order, as far as there is room.
    pub fn send(&mut self, conn: &Arc<Conn>, now: u64) {
        let mut place = 0;
        while place < self.kept.len() && self.pending.len() < UNDER_WAY {
            self.let_lapse(place, now);
            let batch = &mut self.kept[place];
            if batch.outcomes.len() == 0 {
                self.kept.remove(place);
                continue;
            }
            place += 1;
            if batch.leaves(conn.id, now) {
                let (seq, reports, name, conn) = (
                    batch.seq,
                    Rc::clone(&batch.outcomes.reports),
                    self.name.clone(),
                    Arc::clone(conn),
                );
                self.pending.push(Box::pin(async move {
                    let result = query(&conn, &reports, &name, seq).await;
                    Answered { seq, conn, result }
                }));
            }
        }
        // With nothing more to send nothing would be heard of the last ones.
        if self.pending.is_empty() && !self.kept.is_empty() && now >= self.asked_us + PAUSE_US {
            self.asked_us = now;
            let (seq, name, conn) = (QUESTION, self.name.clone(), Arc::clone(conn));
            self.pending.push(Box::pin(async move {
                let result = query(&conn, &[], &name, seq).await;
                Answered { seq, conn, result }
            }));
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

    /// Postgres has taken a batch: so many of it were applied now, and this number is the last on disk.
    fn answered(&mut self, position: usize, applied: i32, flushed: i64) {
        if self.to_standby {
            // Only a primary writes anything down.
            self.promoted |= flushed > 0;
            if let Some(batch) = self.kept.remove(position) {
                self.outcomes -= batch.outcomes.len();
            }
            return;
        }
        let batch = &mut self.kept[position];
        batch.applied = true;
        if applied == 0 && batch.seq > flushed {
            if !batch.again || (self.boot != 0 && self.boot != batch.outcomes.boot()) {
                self.forget(position);
            } else {
                batch.doubtful = true;
                self.doubts = true;
            }
        }
        self.drop_flushed(flushed);
    }

    fn drop_flushed(&mut self, flushed: i64) {
        while let Some(batch) = self.kept.front() {
            if !batch.applied || batch.doubtful || batch.seq > flushed {
                break;
            }
            self.outcomes -= batch.outcomes.len();
            self.kept.pop_front();
        }
    }

    fn settle(&mut self, answered: Answered) {
        if answered.seq == QUESTION {
            if let Ok((_, flushed)) = answered.result {
                self.drop_flushed(flushed);
            }
            return;
        }
        let Some(position) = self.kept.iter().position(|batch| batch.seq == answered.seq) else {
            return;
        };
        match answered.result {
            Ok((applied, flushed)) => self.answered(position, applied, flushed),
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
                self.outcomes -= batch.outcomes.len();
                match fault {
                    Fault::Data if batch.alone => {
                        tracing::error!(error = describe(&error), "an outcome is refused");
                        self.metrics.reports_lost.inc();
                    }
                    Fault::Data => {
                        for report in batch.outcomes.reports.iter() {
                            let alone = Outcomes {
                                reports: Rc::new(vec![report.clone()]),
                                minute: batch.outcomes.minute,
                            };
                            self.keep(alone, true, batch.again);
                        }
                    }
                    _ => {
                        tracing::warn!(error = describe(&error), "a batch of reports failed");
                        self.keep(batch.outcomes, batch.alone, true);
                        answered.conn.reset();
                    }
                }
            }
        }
    }
}

async fn query(conn: &Conn, reports: &[Report], name: &str, seq: i64) -> Result<(i32, i64), tokio_postgres::Error> {
    let tickets: Vec<i64> = reports.iter().map(|r| r.ticket).collect();
    let outcomes: Vec<&str> = reports.iter().map(|r| r.outcome.as_str()).collect();
    let latencies: Vec<f64> = reports.iter().map(|r| r.latency_us as f64 / 1000.0).collect();
    let retries: Vec<i32> = reports.iter().map(|r| r.retries as i32).collect();
    let row = conn
        .client
        .query_one(&conn.main, &[&tickets, &outcomes, &latencies, &retries, &name, &seq])
        .await?;
    Ok((
        row.try_get::<_, Option<i32>>(0)?.unwrap_or(0),
        row.try_get::<_, Option<i64>>(1)?.unwrap_or(0),
    ))
}

#[cfg(test)]
mod tests {
    use ext_registry_core::outcome::Outcome;

    use super::*;
    use crate::machine::Target;

    /// A ticket of a life of Postgres's memory.
    fn ticket(boot: i64, n: i64) -> i64 {
        boot << 48 | n
    }

    fn report(ticket: i64) -> Report {
        Report {
            ticket,
            outcome: Outcome::Success,
            latency_us: 1,
            retries: 0,
            local: false,
            lapses_us: u64::MAX,
            target: Target {
                extension_id: Rc::from("x"),
                version: Rc::from("v1"),
                instance_id: None,
            },
        }
    }

    fn reporter(tickets: &[i64]) -> Reporter {
        let mut reporter = Reporter::new(false, Metrics::new(false));
        reporter.decided(ticket(1, 1));
        reporter.add(tickets.iter().copied().map(report).collect(), 9);
        reporter
    }

    fn send(reporter: &mut Reporter, conn: u64) {
        for batch in &mut reporter.kept {
            batch.leaves(conn, 0);
        }
    }

    fn forgotten(reporter: &mut Reporter) -> Vec<i64> {
        let outcomes = reporter.take_forgotten();
        assert!(outcomes.iter().all(|outcomes| outcomes.minute == 9));
        outcomes
            .iter()
            .flat_map(|outcomes| outcomes.reports.iter().map(|report| report.ticket))
            .collect()
    }

    #[test]
    fn a_batch_is_kept_until_it_is_on_disk() {
        let mut reporter = reporter(&[ticket(1, 1), ticket(1, 2)]);
        send(&mut reporter, 1);
        reporter.answered(0, 2, 0);
        assert!(reporter.all_applied());
        assert_eq!(reporter.outcomes(), 2);
        // The connection was lost, Postgres was not: a repetition.
        send(&mut reporter, 2);
        reporter.answered(0, 0, 1);
        assert_eq!((reporter.outcomes(), forgotten(&mut reporter).len()), (0, 0));
    }

    #[test]
    fn tickets_of_an_earlier_life_are_forgotten_as_a_whole() {
        // Never sent before the restart.
        let mut reporter = reporter(&[ticket(1, 1), ticket(1, 2), ticket(2, 3)]);
        send(&mut reporter, 1);
        reporter.answered(0, 0, 0);
        reporter.answered(0, 1, 0);
        assert_eq!(forgotten(&mut reporter), [ticket(1, 1), ticket(1, 2)]);
        assert_eq!(reporter.outcomes(), 1);
    }

    #[test]
    fn what_was_applied_and_lost_in_a_crash_is_forgotten_too() {
        for known_at_once in [true, false] {
            let mut reporter = reporter(&[ticket(1, 1)]);
            send(&mut reporter, 1);
            reporter.answered(0, 1, 0);
            if known_at_once {
                reporter.decided(ticket(2, 1));
            }
            send(&mut reporter, 2);
            reporter.answered(0, 0, 0);
            reporter.decided(ticket(2, 2));
            assert_eq!(forgotten(&mut reporter), [ticket(1, 1)], "{known_at_once}");
            assert_eq!(reporter.outcomes(), 0);
        }
    }

    #[test]
    fn a_repetition_that_is_not_on_disk_yet_is_none_lost() {
        let mut reporter = reporter(&[ticket(1, 1)]);
        send(&mut reporter, 1);
        send(&mut reporter, 2);
        reporter.answered(0, 0, 0);
        reporter.decided(ticket(1, 2));
        assert_eq!((forgotten(&mut reporter).len(), reporter.outcomes()), (0, 1));
        assert!(!reporter.doubts);
    }

    #[test]
    fn what_waited_too_long_for_its_ticket_is_given_back_unless_it_may_have_been_applied() {
        for (sent, standby) in [(false, false), (true, false), (false, true)] {
            let mut reporter = Reporter::new(standby, Metrics::new(false));
            let old = Report {
                lapses_us: 1_000,
                ..report(ticket(1, 1))
            };
            reporter.add(vec![old, report(ticket(1, 2))], 9);
            reporter.let_lapse(0, 999);
            assert_eq!(reporter.outcomes(), 2);
            if sent {
                send(&mut reporter, 1);
            }
            reporter.let_lapse(0, 1_000);
            let gone = usize::from(!sent);
            assert_eq!(reporter.outcomes(), 2 - gone);
            assert_eq!(reporter.kept[0].outcomes.len(), 2 - gone);
            let wanted: &[i64] = if sent || standby { &[] } else { &[ticket(1, 1)] };
            assert_eq!(forgotten(&mut reporter), wanted);
        }
    }

    #[test]
    fn what_had_been_written_down_is_not_forgotten() {
        let mut reporter = reporter(&[ticket(1, 1)]);
        send(&mut reporter, 1);
        reporter.decided(ticket(2, 1));
        send(&mut reporter, 2);
        // Postgres wrote it down and restarted before it answered.
        reporter.answered(0, 0, 1);
        assert_eq!((forgotten(&mut reporter).len(), reporter.outcomes()), (0, 0));
    }
}
