//! What a loop does now and then, and its end: stuck connections, gauges, the drain.

use std::task::Context;

use super::{EventLoop, standing};
use crate::pg::{Conn, Role};

/// Outcomes may take this long to reach Postgres after the last call of a drain, in microseconds.
const FLUSH_US: u64 = 5_000_000;
/// A connection that has not answered for so long, statement timeouts notwithstanding, is given up, in microseconds.
const STUCK_US: u64 = 5_000_000;
/// The same where statements may take longer.
const REPORT_STUCK_US: u64 = 15_000_000;
/// A change of the source has lasted after so long, in microseconds.
const LASTING_US: u64 = 1_000_000;

impl EventLoop {
    /// Gives up connections that have stopped answering; their links make new ones.
    pub(super) fn give_up_stuck(&self, now: u64) {
        let Some(links) = &self.links else { return };
        let stuck = |since: Option<u64>, most: u64| since.is_some_and(|since| now.saturating_sub(since) > most);
        let give_up = |conn: &Conn, role: Role| {
            tracing::warn!(
                role = role.as_str(),
                "a connection to Postgres does not answer, and is given up"
            );
            conn.reset();
        };
        if let Some(conn) = standing(&links.decide)
            && stuck(self.decider.unanswered_since(conn.id), STUCK_US)
        {
            give_up(&conn, Role::Decide);
        }
        if let Some(conn) = standing(&links.side)
            && (stuck(self.decider.unanswered_since(conn.id), STUCK_US)
                || stuck(self.side.unanswered_since(), STUCK_US))
        {
            give_up(&conn, Role::Side);
        }
        if let Some(conn) = standing(&links.report)
            && stuck(self.reporter.unanswered_since(conn.id), REPORT_STUCK_US)
        {
            give_up(&conn, Role::Report);
        }
        if let Some(conn) = standing(links.by_name())
            && stuck(self.gatherer.unanswered_since(), REPORT_STUCK_US)
        {
            let role = if links.merge.is_some() {
                Role::Merge
            } else {
                Role::Report
            };
            give_up(&conn, role);
        }
    }

    pub(super) fn tend(&mut self, now: u64) {
        if now.saturating_sub(self.tended_us) < 100_000 {
            return;
        }
        self.tended_us = now;
        self.give_up_stuck(now);
        if self.told != self.decides && now.saturating_sub(self.changed_us) >= LASTING_US {
            self.tell_who_decides(now);
        }
        let labels = &[self.label.as_str()];
        self.metrics
            .in_flight
            .with_label_values(labels)
            .set(self.machine.in_flight() as i64);
        self.metrics
            .in_flight_bytes
            .with_label_values(labels)
            .set(self.machine.bytes_in_flight() as i64);
        self.metrics
            .in_flight_limit
            .with_label_values(labels)
            .set(self.machine.settings.max_in_flight as i64);
        self.metrics
            .in_flight_bytes_limit
            .with_label_values(labels)
            .set(self.machine.settings.max_bytes as i64);
        let gathered = self.gatherer.outcomes();
        self.metrics
            .reports_gathered
            .with_label_values(labels)
            .set(gathered as i64);
        let pending = self.reporter.outcomes() + self.machine.reports_waiting() + gathered as usize;
        self.metrics
            .reports_pending
            .with_label_values(labels)
            .set(pending as i64);
        self.metrics.dropped.inc_by(self.transport.take_slow_consumer());
    }

    pub(super) fn drained(&mut self, now: u64, cx: &mut Context<'_>) -> bool {
        let Some(drain) = &mut self.draining else { return false };
        if !drain.left {
            // Until the queue groups are left, what comes is served.
            if !self.transport.leave(now) && now < drain.until_us {
                return false;
            }
            drain.left = true;
            self.machine.drain();
        }
        let idle = self.machine.in_flight() == 0;
        if !idle && now >= drain.until_us && !drain.abandoned {
            drain.abandoned = true;
            self.machine.abandon(now);
            self.send(now);
            self.ask(cx);
        }
        if self.machine.in_flight() > 0 {
            return false;
        }
        let reported = self.machine.reports_waiting() == 0
            && (self.links.is_none() || (self.reporter.all_applied() && self.gatherer.is_empty()));
        let Some(drain) = &mut self.draining else { return false };
        let idle_us = *drain.idle_us.get_or_insert(now);
        // What was never asked cannot hold a ticket; what is being asked may.
        if reported && self.decider.under_way() == 0 {
            return true;
        }
        let late = now >= idle_us + FLUSH_US;
        if late {
            let lost = self.gatherer.outcomes() + self.reporter.outcomes() as u64;
            if lost > 0 {
                self.metrics.reports_lost.inc_by(lost);
                tracing::warn!(outcomes = lost, "Postgres did not take the last outcomes");
            }
        }
        late
    }
}
