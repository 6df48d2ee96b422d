//! One call of one extension: decide, send, wait, retry, report.
//!
//! Promises: every ticket is reported exactly once; a retry is a fresh decision that avoids the instances already tried;
//! nothing is waited for past the deadline, which runs from receipt.

mod attempt;
mod recording;

use std::rc::Rc;

use bytes::Bytes;
use ext_registry_core::outcome::Outcome;

use super::budget::{Budget, backoff_max_us};
use super::codes::{Code, Failure};
use super::contract::{self, Kind};
use super::mux::AttemptToken;
use super::refusal::{not_found, refusal, refusal_label, shown};
use super::request::Ids;
use super::slab::Token;
use super::text::Digits;
use super::trace::Recording;
use super::wheel::Timer;
use super::{Client, Decision, Due, MOST_RETRIES, Machine, Question, Report, Target, Undecided};
use crate::transport::Headers;

/// Whom a call is for.
#[derive(Debug)]
pub enum Parent {
    /// A caller on NATS.
    Client(Client),
    /// An item of a pipeline.
    Route {
        /// The pipeline.
        token: Token,
        /// Which of its items.
        item: usize,
    },
}

/// A call to make.
#[derive(Debug)]
pub struct CallSpec {
    /// The extension.
    pub extension_id: Rc<str>,
    /// Whom it is for.
    pub parent: Parent,
    /// Who and what for.
    pub ids: Rc<Ids>,
    /// The message.
    pub payload: Bytes,
    /// The merged metadata.
    pub metadata: Bytes,
    /// What the decision looks at.
    pub context: Bytes,
    /// Laid over the registered configuration.
    pub config: Option<Bytes>,
    /// The end of the whole, where one was set.
    pub deadline_us: Option<u64>,
    /// Shortens the registered timeout, in ms.
    pub timeout_ms: Option<u32>,
    /// Replaces the registered number of retries.
    pub retry: Option<u32>,
    /// The type it must be.
    pub kind: Option<Kind>,
    /// Whether only to look who would serve.
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Deciding,
    Waiting {
        ticket: i64,
        local: bool,
        sent_us: u64,
        /// When the ticket may be gone.
        lapses_us: u64,
        cut: bool,
    },
    Backoff,
}

/// What served, or would have.
#[derive(Debug, Clone)]
struct Served {
    kind: Option<Kind>,
    version: Rc<str>,
    instance_id: Option<Rc<str>>,
}

/// A call under way.
pub struct Call {
    spec: CallSpec,
    state: State,
    timer: Timer,
    deadline_us: u64,
    number: u64,
    sent: u8,
    attempts: u8,
    avoid: Vec<Rc<str>>,
    target: Served,
    failure: Option<Failure>,
    /// The report of a second or later attempt, kept until it is known whether it was the last.
    held: Option<Report>,
    latency_us: u64,
    /// What will be told of it, where it is recorded.
    recording: Option<Box<Recording>>,
}

impl Call {
    /// Whether it only looks who would serve.
    pub fn is_dry_run(&self) -> bool {
        self.spec.dry_run
    }
}

/// How a call ended.
#[derive(Debug)]
pub enum Done {
    /// With a reply of the right shape.
    Reply {
        /// Its bytes.
        body: Bytes,
        /// Its parts.
        reply: contract::Reply,
    },
    /// As a dry run.
    Preview(Decision),
    /// Without.
    Failed(Failure),
}

/// A call that has ended.
#[derive(Debug)]
pub struct Finished {
    /// The extension.
    pub extension_id: Rc<str>,
    /// The version last tried; empty where none was.
    pub version: Rc<str>,
    /// The instance last tried.
    pub instance_id: Option<Rc<str>>,
    /// Attempts sent.
    pub sent: u8,
    /// Time of the last attempt, in microseconds.
    pub latency_us: u64,
    /// How it ended.
    pub done: Done,
}

impl Finished {
    /// What the caller is told beside the reply.
    pub fn headers(&self) -> Headers {
        let mut headers = Headers::roomy();
        if !self.version.is_empty() {
            headers.push("Ext-Version", &self.version);
        }
        if let Some(instance) = &self.instance_id {
            headers.push("Ext-Instance", instance);
        }
        if self.sent > 0 {
            headers.push("Ext-Attempts", Digits::of(u64::from(self.sent)).as_str());
            headers.push("Ext-Latency-Ms", Digits::thousandths(self.latency_us).as_str());
        }
        headers
    }

    /// Adds what is known of the call to a failure.
    fn detail(&self, mut failure: Failure) -> Failure {
        failure = failure.with("extension_id", shown(&self.extension_id));
        if self.sent > 0 {
            failure = failure.with("version", &*self.version).with("attempts", self.sent);
            if let Some(instance) = &self.instance_id {
                failure = failure.with("instance_id", &**instance);
            }
        }
        failure
    }
}

impl Machine {
    /// Begins a call; `None` where it was refused at once (its parent has been told).
    pub(crate) fn start_call(&mut self, spec: CallSpec, now: u64) -> Option<Token> {
        let cap = self.settings.max_per_extension;
        let extension = self.extension(&spec.extension_id);
        extension.in_flight += 1;
        let refusal = if extension.in_flight > cap {
            Some(Failure::new(
                Code::Overloaded,
                "too many calls of this extension are in flight",
            ))
        } else if ext_registry_core::ident::check_id("id", &spec.extension_id).is_err() {
            Some(not_found(&spec.extension_id))
        } else {
            None
        };
        if let Some(failure) = refusal {
            if failure.code == Code::ExtensionNotFound {
                self.metrics.refused("extension_not_found");
            }
            self.release_extension(&spec.extension_id);
            let failure = failure.with("extension_id", shown(&spec.extension_id));
            let finished = Finished {
                extension_id: Rc::clone(&spec.extension_id),
                version: Rc::default(),
                instance_id: None,
                sent: 0,
                latency_us: 0,
                done: Done::Failed(failure),
            };
            self.deliver(spec.parent, finished, now);
            return None;
        }
        if let Some(budget) = &mut extension.budget {
            budget.call(now);
        }
        let deadline_us = spec.deadline_us.unwrap_or(u64::MAX);
        let decide_by = (now + self.settings.decide_timeout_us).min(deadline_us);
        let number = self.random.u64(..);
        let recording = self.recording(&spec, now);
        let token = self.calls.insert(Call {
            spec,
            state: State::Deciding,
            timer: Timer::NEVER,
            deadline_us,
            number,
            sent: 0,
            attempts: 1,
            avoid: Vec::new(),
            target: Served {
                kind: None,
                version: Rc::default(),
                instance_id: None,
            },
            failure: None,
            held: None,
            latency_us: 0,
            recording,
        });
        let timer = self.wheel.set(decide_by, Due::Call(token));
        if let Some(call) = self.calls.get_mut(token) {
            call.timer = timer;
        }
        self.ask_for(token);
        Some(token)
    }

    fn question(&self, token: Token) -> Option<Question> {
        let call = self.calls.get(token)?;
        Some(Question {
            token: AttemptToken {
                call: token,
                attempt: call.sent,
            },
            extension_id: Rc::clone(&call.spec.extension_id),
            context: call.spec.context.clone(),
            avoid: call.avoid.clone(),
        })
    }

    fn ask_for(&mut self, token: Token) {
        if let Some(question) = self.question(token) {
            let preview = self.is_preview(&question);
            self.ask(question, preview);
        }
    }

    /// Whether a question's call still wants an answer.
    pub(crate) fn is_waiting(&self, token: AttemptToken) -> bool {
        self.calls
            .get(token.call)
            .is_some_and(|call| call.sent == token.attempt && call.state == State::Deciding)
    }

    /// Whether an attempt of it that was sent until then waits for its reply.
    pub(crate) fn is_out_since(&self, token: Token, until_us: u64) -> bool {
        self.calls
            .get(token)
            .is_some_and(|call| matches!(call.state, State::Waiting { sent_us, .. } if sent_us <= until_us))
    }

    fn set_timer(&mut self, token: Token, at_us: u64) {
        if let Some(call) = self.calls.get_mut(token) {
            self.wheel.cancel(call.timer);
            call.timer = self.wheel.set(at_us, Due::Call(token));
        }
    }

    /// An answer to a question. A ticket that nobody waits for is given back.
    pub fn on_decision(&mut self, question: &Question, answer: Result<Decision, Undecided>, now: u64) {
        let (token, id) = (question.token, &question.extension_id);
        if !self.is_waiting(token) {
            if let Ok(decision) = answer
                && self.give_back(id, &decision, now)
            {
                self.metrics.refused("cancelled");
            }
            return;
        }
        let Some(call) = self.calls.get(token.call) else { return };
        if now >= call.deadline_us {
            if let Ok(decision) = answer {
                self.give_back(id, &decision, now);
            }
            self.past_deadline(token.call, now);
            return;
        }
        match answer {
            Ok(decision) if !decision.allowed => self.refused(token.call, &decision, now),
            Ok(decision) if call.spec.dry_run => {
                let kind = decision.kind;
                if let Some(call) = self.calls.get_mut(token.call) {
                    call.target = served(&decision);
                }
                match self.wrong_kind(token.call, kind) {
                    Some(failure) => self.undecided(token.call, failure, now),
                    None => self.finish(token.call, Done::Preview(decision), now),
                }
            }
            Ok(decision) => self.allowed(token.call, &decision, now),
            Err(undecided) => {
                let failure = match undecided {
                    Undecided::Unavailable => {
                        Failure::new(Code::RegistryUnavailable, "the registry does not answer in time")
                    }
                    Undecided::Refused(why) => {
                        Failure::new(Code::InvalidRequest, format!("the registry refuses the context: {why}"))
                    }
                    Undecided::Internal(why) => Failure::new(Code::Internal, why),
                };
                self.undecided(token.call, failure, now);
            }
        }
    }

    /// Reports a ticket that nobody will use, where there is one.
    fn give_back(&mut self, id: &Rc<str>, decision: &Decision, now: u64) -> bool {
        let is_one = decision.ticket != 0 || decision.local;
        if is_one {
            let report = Report {
                ticket: decision.ticket,
                outcome: Outcome::Cancelled,
                latency_us: 0,
                retries: 0,
                local: decision.local,
                lapses_us: now + decision.good_for_us(),
                target: target(id, served(decision)),
            };
            self.report(report, now);
        }
        is_one
    }

    /// No decision for this attempt: the code of the last attempt that was sent, if there was one.
    fn undecided(&mut self, token: Token, failure: Failure, now: u64) {
        let Some(call) = self.calls.get_mut(token) else { return };
        let failure = if let Some(last) = call.failure.take() {
            last
        } else {
            self.metrics.refused(failure.code.as_str());
            Failure {
                counted: true,
                ..failure
            }
        };
        self.finish(token, Done::Failed(failure), now);
    }

    fn refused(&mut self, token: Token, decision: &Decision, now: u64) {
        self.metrics.refused(refusal_label(&decision.reason));
        let Some(call) = self.calls.get_mut(token) else { return };
        if call.target.kind.is_none() {
            call.target.kind = decision.kind;
        }
        let failure = match call.failure.take() {
            Some(last) => last,
            None => refusal(&call.spec.extension_id, decision),
        };
        self.finish(token, Done::Failed(failure), now);
    }

    /// The failure for an extension of another type than the policy's place for it.
    fn wrong_kind(&self, token: Token, kind: Option<Kind>) -> Option<Failure> {
        let call = self.calls.get(token)?;
        let wanted = call.spec.kind?;
        if kind == Some(wanted) {
            return None;
        }
        let is = kind.map_or("of no known type", Kind::as_str);
        Some(Failure::new(
            Code::InvalidRequest,
            format!(
                "{} is {is}, the policy uses it as {}",
                call.spec.extension_id,
                wanted.as_str()
            ),
        ))
    }

    fn allowed(&mut self, token: Token, decision: &Decision, now: u64) {
        let wrong = self.wrong_kind(token, decision.kind);
        let (share, per_second, max_call) = (
            self.settings.retry_share,
            self.settings.retry_per_second,
            self.settings.max_call_us,
        );
        let Some(call) = self.calls.get_mut(token) else { return };
        let id = Rc::clone(&call.spec.extension_id);
        let first = call.target.kind.is_none();
        call.target = served(decision);
        let timeout_us = u64::from(decision.timeout_ms.min(call.spec.timeout_ms.unwrap_or(u32::MAX))) * 1000;
        if first {
            let retries = call.spec.retry.unwrap_or(decision.retry).min(MOST_RETRIES);
            call.attempts = retries as u8 + 1;
            if call.spec.deadline_us.is_none() {
                let waits: u64 = (1..=retries).map(backoff_max_us).sum();
                // One slot of the wheel more per attempt, so that the last attempt ends by its own timeout.
                let need = (timeout_us + 5_000) * (u64::from(retries) + 1) + waits;
                call.deadline_us = now + need.min(max_call);
            }
        }
        let (Some(kind), Some(subject)) = (decision.kind, decision.subject.clone()) else {
            self.give_back(&id, decision, now);
            self.undecided(
                token,
                Failure::new(Code::Internal, "the registry gave no type or subject"),
                now,
            );
            return;
        };
        if let Some(failure) = wrong {
            self.give_back(&id, decision, now);
            self.undecided(token, failure, now);
            return;
        }
        let metrics = std::sync::Arc::clone(&self.metrics);
        let extension = self.extension(&id);
        if extension.budget.is_none() {
            let mut budget = Budget::new(share, per_second);
            budget.call(now);
            extension.budget = Some(budget);
        }
        if extension.metrics.is_none() {
            extension.metrics = Some(metrics.extension(&id, kind.as_str()));
        }
        if decision.instance_id.is_some() || kind == Kind::Provider {
            let facts = self.facts(&id, now);
            if let (Some(instance), Some(m)) = (&decision.instance_id, &mut self.extension(&id).metrics) {
                m.selected(instance, &facts.balancing);
            }
        }
        self.send_attempt(token, decision, kind, &subject, timeout_us, now);
    }

    /// A call's timer.
    pub(crate) fn call_due(&mut self, token: Token, now: u64) {
        let Some(call) = self.calls.get(token) else { return };
        let id = &call.spec.extension_id;
        match call.state {
            State::Deciding if now >= call.deadline_us => self.past_deadline(token, now),
            State::Deciding if self.settings.second_opinion => {
                let by = (now + self.settings.decide_timeout_us).min(call.deadline_us);
                let question = self.question(token);
                self.overdue.extend(question);
                self.set_timer(token, by);
            }
            State::Deciding => {
                let failure = Failure::new(Code::RegistryUnavailable, "the registry does not answer in time");
                self.undecided(token, failure, now);
            }
            State::Waiting { cut: true, .. } => {
                let failure = Failure::new(
                    Code::DeadlineExceeded,
                    format!("the deadline passed while {id} was working"),
                );
                self.attempt_failed(
                    token,
                    Outcome::Cancelled,
                    failure.with("reason", "deadline"),
                    false,
                    now,
                );
            }
            State::Waiting { sent_us, .. } => {
                let waited = now.saturating_sub(sent_us) / 1000;
                let failure = Failure::new(
                    Code::ExtensionTimeout,
                    format!("{id} did not answer within {waited} ms"),
                )
                .with("reason", "timeout")
                .with("waited_ms", waited);
                let retry = self.may_repeat(token, now);
                self.attempt_failed(token, Outcome::Timeout, failure, retry, now);
            }
            State::Backoff => {
                let decide_by = (now + self.settings.decide_timeout_us).min(call.deadline_us);
                if let Some(call) = self.calls.get_mut(token) {
                    call.state = State::Deciding;
                    if let Some(recording) = &mut call.recording {
                        recording.asked_us = now;
                    }
                }
                self.set_timer(token, decide_by);
                self.ask_for(token);
            }
        }
    }

    fn past_deadline(&mut self, token: Token, now: u64) {
        self.undecided(
            token,
            Failure::new(Code::DeadlineExceeded, "the deadline passed before a decision"),
            now,
        );
    }

    /// Gives a call up; its parent is not told.
    pub(crate) fn cancel_call(&mut self, token: Token, now: u64) {
        self.attempt_ended(token, Outcome::Cancelled, None, now);
        self.record_call(token, None, now);
        if let Some(parent) = self.take_call(token, now).map(|(parent, _)| parent)
            && let Parent::Client(client) = parent
        {
            self.finished(&client, true, now);
        }
    }

    /// Gives a call up and tells its parent why.
    pub(crate) fn give_up(&mut self, token: Token, failure: Failure, now: u64) {
        self.attempt_ended(token, Outcome::Cancelled, None, now);
        self.finish(token, Done::Failed(failure), now);
    }

    fn finish(&mut self, token: Token, done: Done, now: u64) {
        let failure = match &done {
            Done::Failed(failure) => Some(failure),
            _ => None,
        };
        self.record_call(token, failure, now);
        if let Some((parent, mut finished)) = self.take_call(token, now) {
            finished.done = match done {
                Done::Failed(failure) => Done::Failed(finished.detail(failure)),
                done => done,
            };
            self.deliver(parent, finished, now);
        }
    }

    fn take_call(&mut self, token: Token, now: u64) -> Option<(Parent, Finished)> {
        let call = self.calls.remove(token)?;
        self.wheel.cancel(call.timer);
        if let Some(mut held) = call.held {
            held.retries = u32::from(call.sent).saturating_sub(1);
            self.report(held, now);
        }
        let id = call.spec.extension_id;
        if call.sent > 0
            && let Some(metrics) = &mut self.extension(&id).metrics
        {
            metrics.call(u32::from(call.sent) - 1);
        }
        self.release_extension(&id);
        let finished = Finished {
            extension_id: id,
            version: call.target.version,
            instance_id: call.target.instance_id,
            sent: call.sent,
            latency_us: call.latency_us,
            done: Done::Failed(Failure::new(Code::Internal, "unfinished")),
        };
        Some((call.spec.parent, finished))
    }
}

fn target(id: &Rc<str>, served: Served) -> Target {
    Target {
        extension_id: Rc::clone(id),
        version: served.version,
        instance_id: served.instance_id,
    }
}

fn served(decision: &Decision) -> Served {
    Served {
        kind: decision.kind,
        version: Rc::from(decision.version.as_deref().unwrap_or_default()),
        instance_id: decision.instance_id.as_deref().map(Rc::from),
    }
}
