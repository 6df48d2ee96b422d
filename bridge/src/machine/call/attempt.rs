//! One attempt of a call: sent, and ended by a reply, by its time, or by a lost connection.

use std::rc::Rc;

use ext_registry_core::outcome::Outcome;
use serde_json::Value as Json;

use super::{Done, State, target};
use crate::machine::budget::backoff_us;
use crate::machine::codes::{Code, Failure};
use crate::machine::contract::{self, Kind, Parts, Verdict};
use crate::machine::mux::AttemptToken;
use crate::machine::request::merged_config;
use crate::machine::slab::Token;
use crate::machine::text::{Digits, push_hex};
use crate::machine::{Decision, Machine, Report, trace};
use crate::transport::{Headers, Inbound, Outbound, Subject};

impl Machine {
    pub(super) fn send_attempt(
        &mut self,
        token: Token,
        decision: &Decision,
        kind: Kind,
        subject: &str,
        timeout_us: u64,
        now: u64,
    ) {
        let (connected, max_payload) = (self.connected, self.max_payload);
        let Some(call) = self.calls.get_mut(token) else { return };
        call.sent += 1;
        let expires_us = (now + timeout_us).min(call.deadline_us);
        let config = merged_config(&decision.config, call.spec.config.as_ref());
        let spec = &call.spec;
        let body = contract::request(
            kind,
            &Parts {
                trace_id: &spec.ids.trace_id,
                tenant_id: spec.ids.tenant_id.as_deref(),
                extension_id: &spec.extension_id,
                payload: &spec.payload,
                metadata: &spec.metadata,
                config: &config,
            },
        );
        if let Some(held) = call.held.take() {
            self.reports.push(held, now);
        }
        if let Some(recording) = &mut call.recording {
            recording.sent(subject, decision.local, now);
        }
        call.state = State::Waiting {
            ticket: decision.ticket,
            local: decision.local,
            sent_us: now,
            lapses_us: now + decision.good_for_us(),
            cut: now + timeout_us > call.deadline_us,
        };
        let attempt = AttemptToken {
            call: token,
            attempt: call.sent,
        };
        if body.len() > max_payload.saturating_sub(4096) {
            let failure = Failure::new(
                Code::InvalidRequest,
                "the request with its configuration is larger than NATS takes",
            );
            call.sent -= 1; // it was not
            let failure = Failure {
                counted: true,
                ..failure
            };
            self.attempt_failed(token, Outcome::CallerError, failure, false, now);
            return;
        }
        if !connected {
            self.attempt_lost(attempt, now);
            return;
        }
        let mut headers = Headers::roomy();
        let trace = &spec.ids.trace;
        let recorded = call.recording.as_ref().map(|recording| recording.span);
        headers.push("traceparent", &trace.header(recorded));
        if let Some(state) = trace.state() {
            headers.push("tracestate", state);
        }
        headers.push("Ext-Version", &call.target.version);
        if let Some(instance) = &call.target.instance_id {
            headers.push("Ext-Instance", instance);
        }
        let mut digits = Digits::of(u64::from(call.sent));
        headers.push("Ext-Attempt", digits.as_str());
        let mut number = String::with_capacity(16);
        push_hex(&mut number, u128::from(call.number), 16);
        headers.push("Ext-Call-Id", &number);
        digits = Digits::of((expires_us - now).div_ceil(1000));
        headers.push("Ext-Timeout-Ms", digits.as_str());
        let message = Outbound {
            subject: Subject::from(subject),
            reply: Some(Subject::from(self.inbox.subject(attempt))),
            headers,
            payload: body.into(),
            expires_us,
        };
        self.send(message);
        self.set_timer(token, expires_us);
    }

    /// A reply to an attempt; one that nobody waits for is only counted.
    pub(crate) fn call_replied(&mut self, token: AttemptToken, message: &Inbound, now: u64) {
        let waiting = self.calls.get(token.call).filter(|call| call.sent == token.attempt);
        let Some((kind, id)) = waiting.and_then(|call| match call.state {
            State::Waiting { .. } => Some((call.target.kind?, Rc::clone(&call.spec.extension_id))),
            _ => None,
        }) else {
            self.metrics.late_replies.inc();
            return;
        };
        if message.no_responders {
            let failure = Failure::new(Code::ExtensionUnavailable, format!("nobody listens for {id}"));
            self.attempt_failed(
                token.call,
                Outcome::NoResponders,
                failure.with("reason", "no_responders"),
                true,
                now,
            );
            return;
        }
        if let Some(code) = message.header("Nats-Service-Error-Code") {
            let failure = Failure::new(Code::ExtensionError, format!("{id} answered with an error"))
                .with("reason", "error")
                .with("service_code", code.parse::<u32>().map_or(Json::Null, Json::from));
            self.attempt_failed(token.call, Outcome::Error, failure, false, now);
            return;
        }
        let invalid = |why: &str| {
            Failure::new(Code::ExtensionError, format!("the reply of {id} is invalid: {why}"))
                .with("reason", "invalid_response")
        };
        if message.payload.len() > self.settings.limits.reply_bytes {
            let failure = invalid("it is too large").with("bytes", message.payload.len());
            self.attempt_failed(token.call, Outcome::InvalidResponse, failure, false, now);
            return;
        }
        match contract::judge(kind, &message.payload) {
            Verdict::Success(reply) => {
                self.attempt_ended(token.call, Outcome::Success, None, now);
                self.finish(
                    token.call,
                    Done::Reply {
                        body: message.payload.clone(),
                        reply,
                    },
                    now,
                );
            }
            Verdict::Error => {
                let failure = Failure::new(Code::ExtensionError, format!("{id} answered with an error"));
                self.attempt_failed(token.call, Outcome::Error, failure.with("reason", "error"), false, now);
            }
            Verdict::Invalid(why) => {
                self.attempt_failed(token.call, Outcome::InvalidResponse, invalid(why), false, now);
            }
        }
    }

    /// The connection was lost while a call was under way.
    pub(crate) fn call_lost(&mut self, token: Token, now: u64) {
        if let Some(call) = self.calls.get(token)
            && matches!(call.state, State::Waiting { .. })
        {
            let attempt = AttemptToken {
                call: token,
                attempt: call.sent,
            };
            self.attempt_lost(attempt, now);
        }
    }

    pub(crate) fn attempt_lost(&mut self, token: AttemptToken, now: u64) {
        let Some(call) = self.calls.get(token.call) else { return };
        if call.sent != token.attempt || !matches!(call.state, State::Waiting { .. }) {
            return;
        }
        let retry = self.may_repeat(token.call, now);
        let failure = Failure::new(Code::ExtensionUnavailable, "the connection to NATS was lost")
            .with("reason", "connection_lost");
        self.attempt_failed(token.call, Outcome::Cancelled, failure, retry, now);
    }

    /// Counts and reports the attempt that is under way. `last` is false where another will follow.
    pub(super) fn attempt_ended(&mut self, token: Token, outcome: Outcome, retry_at: Option<u64>, now: u64) {
        let Some(call) = self.calls.get_mut(token) else { return };
        let State::Waiting {
            ticket,
            local,
            sent_us,
            lapses_us,
            ..
        } = call.state
        else {
            return;
        };
        call.latency_us = now.saturating_sub(sent_us);
        let retries = if retry_at.is_some() {
            0
        } else {
            u32::from(call.sent).saturating_sub(1)
        };
        let report = Report {
            ticket,
            outcome,
            latency_us: call.latency_us,
            retries,
            local,
            lapses_us,
            target: target(&call.spec.extension_id, call.target.clone()),
        };
        call.state = State::Backoff;
        if let Some(recording) = &mut call.recording {
            recording.attempts.push(trace::Attempt {
                ended_us: now,
                latency_us: call.latency_us,
                outcome,
                version: call.target.version.to_string(),
                instance_id: call.target.instance_id.as_deref().map(str::to_owned),
            });
        }
        if retry_at.is_some() && call.sent > 1 {
            call.held = Some(report);
        } else {
            self.reports.push(report, now);
        }
        let id = Rc::clone(&call.spec.extension_id);
        let (version, latency_ms) = (call.target.version.clone(), call.latency_us as f64 / 1000.0);
        let tenant = call.spec.ids.tenant_id.clone();
        let status = match outcome {
            Outcome::Success => "success",
            Outcome::Timeout => "timeout",
            Outcome::Error | Outcome::NoResponders | Outcome::InvalidResponse => "error",
            Outcome::Cancelled | Outcome::CallerError => {
                self.metrics.refused(outcome.as_str());
                return;
            }
        };
        if let Some(metrics) = &mut self.extension(&id).metrics {
            metrics.attempt(&version, status, tenant.as_deref(), latency_ms);
        }
    }

    pub(super) fn attempt_failed(&mut self, token: Token, outcome: Outcome, failure: Failure, retry: bool, now: u64) {
        let Some(call) = self.calls.get(token) else { return };
        let id = Rc::clone(&call.spec.extension_id);
        let wait = backoff_us(u32::from(call.sent).max(1), &mut self.random);
        let in_time = now + wait < call.deadline_us;
        let more = retry && call.sent < call.attempts && in_time && !self.draining;
        let granted = more
            && self
                .extension(&id)
                .budget
                .as_mut()
                .is_some_and(|budget| budget.retry(now));
        if more && !granted {
            self.metrics.refused("retry_budget");
        }
        self.attempt_ended(token, outcome, granted.then_some(now + wait), now);
        if granted {
            if let Some(call) = self.calls.get_mut(token) {
                call.avoid.extend(call.target.instance_id.clone());
                call.failure = Some(failure);
            }
            self.set_timer(token, now + wait);
        } else {
            self.finish(token, Done::Failed(failure), now);
        }
    }

    /// Whether a call that may have run may run again.
    pub(super) fn may_repeat(&mut self, token: Token, now: u64) -> bool {
        let Some(call) = self.calls.get(token) else {
            return false;
        };
        if call.target.kind != Some(Kind::Provider) {
            return true;
        }
        let id = Rc::clone(&call.spec.extension_id);
        self.facts(&id, now).idempotent
    }
}
