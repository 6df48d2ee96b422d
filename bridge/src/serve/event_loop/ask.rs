//! The conversation with whoever decides: questions go out in batches, answers come back, outcomes follow.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::super::fallback::{Decides, Fallback};
use super::super::local::unix_us;
use super::{EventLoop, standing};
use crate::batch::UNDER_WAY;
use crate::batch::gather::Gatherer;
use crate::machine::policies::Found;
use crate::machine::{Decision, Question, Target, Undecided};

/// Most outcomes in one batch.
const REPORTS: usize = 1024;
/// After Postgres was too busy for a decision somebody else decides for so long, in microseconds.
const BUSY_US: u64 = 1_000_000;

impl EventLoop {
    pub(super) fn take_answers(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(answered)) = self.decider.poll(cx) {
            let now = self.began.elapsed().as_micros() as u64;
            if answered.rows.is_err() {
                self.metrics.batch_failures.with_label_values(&["decide"]).inc();
            }
            let (machine, declined, gatherer) = (&mut self.machine, &mut self.declined, &mut self.gatherer);
            let nearby = self.links.as_ref().is_some_and(|links| links.merge.is_some());
            let elsewhere = self.fallback.is_some();
            let mut ticket = 0;
            let again = self.decider.settle(answered, now, |question, answer| {
                if let Ok(decision) = &answer {
                    ticket = decision.ticket.max(ticket);
                }
                if nearby
                    && let Ok(decision) = &answer
                    && !machine.is_preview(question)
                {
                    gather_refusal(gatherer, question, decision);
                }
                if elsewhere && answer == Err(Undecided::Unavailable) {
                    declined.push(question.clone());
                } else {
                    machine.on_decision(question, answer, now);
                }
            });
            if !self.declined.is_empty() {
                self.busy_until_us = now + BUSY_US;
            }
            self.reporter.decided(ticket);
            self.machine.ask_again(again);
        }
        let now = self.now();
        let _ = self.reporter.poll(cx);
        if self.reporter.take_promoted()
            && let Some(links) = &self.links
        {
            tracing::warn!("the standby that decides was promoted, and is left");
            for conn in [&links.decide, &links.report, &links.side]
                .into_iter()
                .filter_map(standing)
            {
                conn.reset();
            }
        }
        let _ = self.gatherer.poll(cx, now);
        let _ = self.side.poll(cx, &mut self.machine, now);
    }

    pub(super) fn ask(&mut self, cx: &mut Context<'_>) {
        let now = self.now();
        self.pass_reports_on(now);
        let decide = self.links.as_ref().and_then(|links| standing(&links.decide));
        let side = self.links.as_ref().and_then(|links| standing(&links.side));
        let report = self.links.as_ref().and_then(|links| standing(&links.report));
        let by_name = self.links.as_ref().and_then(|links| standing(links.by_name()));
        let timeout_us = self.machine.settings.decide_timeout_us;
        let slow = |since: Option<u64>| since.is_some_and(|since| now.saturating_sub(since) >= timeout_us);
        let others = self.fallback.as_ref().map_or(Decides::Nobody, Fallback::decides);
        let somebody = others != Decides::Nobody;
        // Where somebody else can decide, nothing is sent behind a batch that is late.
        let busy = now < self.busy_until_us;
        let decide = decide.filter(|conn| !somebody || !(busy || slow(self.decider.unanswered_since(conn.id))));
        let side = side.filter(|_| !somebody || !slow(self.side.unanswered_since()));
        self.decided_by(if decide.is_some() { Decides::Database } else { others }, now);
        let mut began = false;
        let (here, side_here) = (somebody && decide.is_none(), somebody && side.is_none());
        if let Some(conn) = decide {
            while self.decider.under_way() < UNDER_WAY {
                let questions = self.machine.take_questions(false, self.batch);
                if questions.is_empty() {
                    break;
                }
                self.metrics
                    .batch_size
                    .with_label_values(&["decide"])
                    .observe(questions.len() as f64);
                self.decider.ask(Arc::clone(&conn), questions, false, false, now);
                began = true;
            }
        }
        if let Some(conn) = side {
            let previews = self.machine.take_questions(true, self.batch);
            if !previews.is_empty() {
                self.decider.ask(Arc::clone(&conn), previews, true, false, now);
                began = true;
            }
            let wanted = self.machine.policies.take_wanted();
            if !wanted.is_empty() {
                self.side.policies(Arc::clone(&conn), wanted, now);
                began = true;
            }
            let facts = self.machine.take_wanted_facts();
            if !facts.is_empty() {
                self.side.facts(conn, &facts, now);
                began = true;
            }
        }
        self.ask_here(here, side_here, now);
        if let Some(conn) = report {
            self.reporter.send(&conn, now);
            began |= !self.reporter.all_applied();
        }
        if let Some(conn) = by_name {
            began |= self.gatherer.send(&conn, now, self.draining.is_some());
        }
        if began {
            // A future does nothing before it is polled once.
            self.take_answers(cx);
        }
    }

    /// Outcomes go to whoever decided. What Postgres did not see is gathered for it.
    fn pass_reports_on(&mut self, now: u64) {
        let minute = unix_us() / 60_000_000;
        for report in self.machine.take_local_reports() {
            if let Some(engine) = self.fallback.as_mut().and_then(Fallback::last) {
                engine.report(&report);
            }
            if self.links.is_some() {
                self.gatherer.add(&report, minute);
            }
        }
        if self.machine.reports_due().is_some_and(|at| now >= at) && self.reporter.has_room() {
            let reports = self.machine.take_reports(REPORTS);
            if self.links.as_ref().is_some_and(|links| links.merge.is_some()) {
                // A standby writes no history: the primary does.
                for report in &reports {
                    self.gatherer.add(report, minute);
                }
            }
            self.reporter.add(reports, minute);
        }
        for outcomes in self.reporter.take_forgotten() {
            tracing::info!(
                outcomes = outcomes.reports.len(),
                "Postgres has forgotten these calls, or may have; their outcomes go to it by name"
            );
            for report in outcomes.reports.iter() {
                self.gatherer.add(report, outcomes.minute);
            }
        }
    }

    /// Answers without Postgres: all questions, or those that Postgres leaves too long or was too busy for.
    fn ask_here(&mut self, here: bool, side_here: bool, now: u64) {
        loop {
            let mut questions = std::mem::take(&mut self.declined);
            questions.extend(self.machine.take_overdue());
            if here {
                questions.extend(self.machine.take_questions(false, self.batch));
            }
            if side_here {
                questions.extend(self.machine.take_questions(true, self.batch));
            }
            let mut policies = self.machine.take_overdue_policies();
            policies.extend(self.side.take_unavailable());
            let mut facts = Vec::new();
            if side_here {
                policies.extend(self.machine.policies.take_wanted());
                facts = self.machine.take_wanted_facts();
            }
            if questions.is_empty() && policies.is_empty() && facts.is_empty() {
                break;
            }
            for question in questions {
                let answer = self.answer_here(&question, now);
                self.machine.on_decision(&question, answer, now);
            }
            let mut local = self.fallback.as_mut().and_then(|fallback| fallback.local(now));
            for key in policies {
                let found = local.as_ref().map_or(Found::Unavailable, |local| local.policy(&key));
                self.machine.on_policy(&key, &found, now);
            }
            if let Some(local) = &mut local {
                local.facts(&mut self.machine, &facts, now);
            }
        }
        if let Some(local) = self.fallback.as_mut().and_then(Fallback::last) {
            local.tend(&self.metrics, now);
        }
        self.send(now);
    }

    fn answer_here(&mut self, question: &Question, now: u64) -> Result<Decision, Undecided> {
        let Some(fallback) = &mut self.fallback else {
            return Err(Undecided::Unavailable);
        };
        let decides = fallback.decides();
        let preview = self.machine.is_preview(question);
        let answer = fallback
            .local(now)
            .ok_or(Undecided::Unavailable)
            .and_then(|local| local.answer(question, preview));
        if let Ok(decision) = &answer
            && self.links.is_some()
            && !preview
        {
            self.metrics.fallbacks.with_label_values(&[decides.as_str()]).inc();
            gather_refusal(&mut self.gatherer, question, decision);
        }
        answer
    }
}

/// A refusal by an open breaker belongs into the history; whoever refused has none.
fn gather_refusal(gatherer: &mut Gatherer, question: &Question, decision: &Decision) {
    if let (false, "extension_circuit_open", Some(version)) =
        (decision.allowed, decision.reason.as_str(), &decision.version)
    {
        let target = Target {
            extension_id: Rc::clone(&question.extension_id),
            version: Rc::from(version.as_str()),
            instance_id: None,
        };
        gatherer.refused(&target, unix_us() / 60_000_000);
    }
}
