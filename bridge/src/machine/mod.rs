//! The bridge's logic without its connections: messages, decisions and the time go in, messages, questions and reports come
//! out. It never waits and never does I/O, so all of it can be tested under simulated time.
//!
//! Every call is an entry of a table with a state and one timer ([`call`]); a pipeline is an entry whose calls are calls
//! ([`route`]). Time is in microseconds since the loop began.

pub mod budget;
pub mod call;
pub mod codes;
pub mod contract;
#[cfg(any(test, feature = "hostile"))]
pub mod hostile;
pub mod json;
pub mod limits;
pub mod mux;
pub mod policies;
pub mod refusal;
pub mod request;
pub mod route;
pub mod slab;
#[cfg(test)]
mod tests;
pub mod text;
pub mod trace;
pub mod wheel;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ext_registry_core::outcome::Outcome;
use serde_json::json;

use crate::metrics::{ExtensionMetrics, Metrics};
use crate::transport::{Headers, Inbound, Outbound, Subject};
use budget::Budget;
use call::{Call, CallSpec, Finished, Parent};
use codes::{Code, Failure};
use limits::Limits;
use mux::{AttemptToken, Inbox};
use policies::{Policies, PolicyKey};
use request::{Asked, Request};
use route::Route;
use slab::{Slab, Token};
use trace::{Incoming, Recorded};
use wheel::Wheel;

/// What the machine is set to.
#[derive(Debug, Clone)]
pub struct MachineSettings {
    /// Bounds of messages.
    pub limits: Limits,
    /// Most requests in flight.
    pub max_in_flight: usize,
    /// Most calls in flight of one extension.
    pub max_per_extension: u32,
    /// Most bytes of requests in flight.
    pub max_bytes: usize,
    /// The longest a call may take where the caller sets no deadline, in microseconds.
    pub max_call_us: u64,
    /// The longest wait for a decision, in microseconds.
    pub decide_timeout_us: u64,
    /// The share of the traces beginning here that are recorded; without, no span is.
    pub record: Option<f64>,
    /// Whether somebody else is asked then; without, the call has failed.
    pub second_opinion: bool,
    /// Retries as a share of calls.
    pub retry_share: f64,
    /// Retries per second that are always allowed.
    pub retry_per_second: f64,
    /// The age from which a policy is read again, in microseconds.
    pub policy_max_age_us: u64,
}

/// A question to the registry: which version and instance may serve.
#[derive(Debug, Clone)]
pub struct Question {
    /// The attempt it is for.
    pub token: AttemptToken,
    /// The extension.
    pub extension_id: Rc<str>,
    /// JSON text that `jsonb` can hold.
    pub context: Bytes,
    /// Instances already tried.
    pub avoid: Vec<Rc<str>>,
}

/// The registry's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Whether it may be called.
    pub allowed: bool,
    /// Why, or why not.
    pub reason: String,
    /// When to ask again, in ms.
    pub retry_after_ms: Option<i64>,
    /// The extension's type.
    pub kind: Option<contract::Kind>,
    /// The version chosen.
    pub version: Option<String>,
    /// The instance chosen.
    pub instance_id: Option<String>,
    /// Where it listens.
    pub subject: Option<String>,
    /// Time one attempt may take, in ms.
    pub timeout_ms: u32,
    /// Attempts after the first.
    pub retry: u32,
    /// The registered configuration: a JSON object.
    pub config: Bytes,
    /// Names the attempt in the report; 0 has none.
    pub ticket: i64,
    /// Whether the bridge decided itself.
    pub local: bool,
}

impl Decision {
    /// How long its ticket is good for at least, in microseconds: Postgres keeps it for what all attempts may take and a second
    /// more, of which the answer may have been half a second on its way.
    fn good_for_us(&self) -> u64 {
        let retries = self.retry.min(MOST_RETRIES);
        let backoff: u64 = (1..=retries).map(budget::backoff_max_us).sum();
        u64::from(self.timeout_ms) * 1_000 * (u64::from(retries) + 1) + backoff + 500_000
    }
}

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// The registry does not answer.
    Unavailable,
    /// The registry refuses the question; says why.
    Refused(String),
    /// Something that cannot be.
    Internal(&'static str),
}

/// Who was called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The extension.
    pub extension_id: Rc<str>,
    /// The version; empty where the registry named none.
    pub version: Rc<str>,
    /// The instance, if there was one.
    pub instance_id: Option<Rc<str>>,
}

/// The outcome of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From the decision.
    pub ticket: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// The time it took, in microseconds.
    pub latency_us: u64,
    /// 0 but on a call's last report.
    pub retries: u32,
    /// Whether the bridge decided itself.
    pub local: bool,
    /// From when on Postgres may have given its ticket away, in microseconds.
    pub lapses_us: u64,
    /// Who was called.
    pub target: Target,
}

/// Where an answer goes.
#[derive(Debug, Clone)]
pub enum ReplyTo {
    /// To a subject of NATS; without, nobody waits for it.
    Nats(Option<Subject>),
    /// To somebody in this process, under the number he gave.
    Inside(u64),
}

/// A request from within this process: like one that came by NATS, but for the way of the answer.
#[derive(Debug)]
pub struct InsideRequest {
    /// What is asked for.
    pub asked: Asked,
    /// The extension; of a pipeline empty.
    pub extension_id: String,
    /// The body, as it would come by NATS.
    pub body: Bytes,
}

/// The answer to a request from within: the body, or why there is none.
pub type InsideAnswer = Result<Bytes, Failure>;

/// Who asked.
#[derive(Debug)]
pub struct Client {
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// When the request came.
    pub received_us: u64,
    /// Its size, in bytes.
    pub bytes: usize,
    /// What it asked for.
    pub asked: Asked,
}

/// What is known of an extension that is or was called.
#[derive(Default)]
pub(crate) struct Extension {
    in_flight: u32,
    budget: Option<Budget>,
    metrics: Option<ExtensionMetrics>,
}

/// What the registry says about extensions beside decisions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// A timed-out call may be repeated.
    pub idempotent: bool,
    /// How instances are chosen.
    pub balancing: String,
}

/// A success waits so long for others to be reported with, in microseconds: each batch wakes a process of Postgres.
const COMPANY_US: u64 = 1_000;
/// So many need not wait.
const COMPANY: usize = 64;

/// Outcomes on their way to whoever decided.
#[derive(Default)]
struct Reports {
    to_postgres: VecDeque<Report>,
    local: Vec<Report>,
    /// When the outcomes for Postgres leave.
    leave_us: Option<u64>,
}

impl Reports {
    /// Without a ticket Postgres has nothing to report to. What may open a circuit breaker does not wait.
    fn push(&mut self, report: Report, now: u64) {
        if report.local {
            self.local.push(report);
        } else if report.ticket != 0 {
            let waits = report.outcome == Outcome::Success && self.to_postgres.len() < COMPANY;
            let leave = if waits { now + COMPANY_US } else { now };
            self.leave_us = Some(self.leave_us.map_or(leave, |at| at.min(leave)));
            self.to_postgres.push_back(report);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Call(Token),
    Route(Token),
}

/// Counts for `$SRV.STATS`.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndpointStats {
    /// Requests taken.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Time spent on them, in microseconds.
    pub processing_us: u64,
}

/// See the module.
pub struct Machine {
    pub(crate) settings: MachineSettings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) calls: Slab<Call>,
    pub(crate) routes: Slab<Route>,
    pub(crate) wheel: Wheel<Due>,
    pub(crate) random: fastrand::Rng,
    inbox: Inbox,
    extensions: HashMap<Rc<str>, Extension>,
    facts: HashMap<Rc<str>, (Facts, u64)>,
    wanted_facts: Vec<Rc<str>>,
    pub(crate) policies: Policies,
    connected: bool,
    draining: bool,
    bytes: usize,
    max_payload: usize,
    outbound: Vec<Outbound>,
    inside: Vec<(u64, InsideAnswer)>,
    questions: VecDeque<Question>,
    previews: VecDeque<Question>,
    overdue: Vec<Question>,
    overdue_policies: Vec<PolicyKey>,
    reports: Reports,
    recorded: Vec<Recorded>,
    due: Vec<Due>,
    /// Counts of invoke and route.
    pub stats: [EndpointStats; 2],
}

/// A call is tried again so often at most.
const MOST_RETRIES: u32 = 10;
/// Facts are asked for again after this time, in microseconds.
const FACTS_AGE_US: u64 = 5_000_000;

impl Machine {
    /// A machine that answers under an inbox.
    pub fn new(settings: MachineSettings, inbox: Inbox, metrics: Arc<Metrics>, seed: u64) -> Self {
        let policies = Policies::new(settings.policy_max_age_us);
        Self {
            settings,
            metrics,
            calls: Slab::default(),
            routes: Slab::default(),
            wheel: Wheel::default(),
            random: fastrand::Rng::with_seed(seed),
            inbox,
            extensions: HashMap::new(),
            facts: HashMap::new(),
            wanted_facts: Vec::new(),
            policies,
            connected: true,
            draining: false,
            bytes: 0,
            max_payload: 1 << 20,
            outbound: Vec::new(),
            inside: Vec::new(),
            questions: VecDeque::new(),
            previews: VecDeque::new(),
            overdue: Vec::new(),
            overdue_policies: Vec::new(),
            reports: Reports::default(),
            recorded: Vec::new(),
            due: Vec::new(),
            stats: [EndpointStats::default(); 2],
        }
    }

    /// Requests and pipelines under way.
    pub fn in_flight(&self) -> usize {
        self.calls.len() + self.routes.len()
    }

    /// Bytes of requests under way.
    pub fn bytes_in_flight(&self) -> usize {
        self.bytes
    }

    /// The largest message that NATS takes, in bytes.
    pub fn set_max_payload(&mut self, bytes: usize) {
        self.max_payload = bytes;
    }

    /// Goes by other settings from now on. Calls under way keep the deadlines they have.
    pub fn set(&mut self, mut settings: MachineSettings) {
        for extension in self.extensions.values_mut() {
            if let Some(budget) = &mut extension.budget {
                budget.set(settings.retry_share, settings.retry_per_second);
            }
        }
        self.policies.set_max_age(settings.policy_max_age_us);
        settings.second_opinion = self.settings.second_opinion;
        settings.record = settings.record.filter(|_| self.settings.record.is_some());
        self.settings = settings;
    }

    /// A request came in.
    pub fn on_request(&mut self, asked: Asked, message: &Inbound, now: u64) {
        let id = message.subject.rsplit('.').next().unwrap_or_default();
        let reply = ReplyTo::Nats(message.reply.clone());
        let trace = Incoming {
            parent: message.header("traceparent"),
            state: message.header("tracestate"),
        };
        self.take(asked, id, reply, &message.payload, trace, now);
    }

    /// A request from within this process; its answer is given under `number`.
    pub fn on_inside(&mut self, request: &InsideRequest, number: u64, now: u64) {
        let reply = ReplyTo::Inside(number);
        self.take(
            request.asked,
            &request.extension_id,
            reply,
            &request.body,
            Incoming::default(),
            now,
        );
    }

    fn take(&mut self, asked: Asked, id: &str, reply: ReplyTo, body: &Bytes, trace: Incoming<'_>, now: u64) {
        self.stats[asked as usize].requests += 1;
        let bytes = body.len();
        let client = Client {
            reply,
            received_us: now,
            bytes,
            asked,
        };
        let refused = if self.draining {
            Some("the bridge is shutting down")
        } else if self.in_flight() >= self.settings.max_in_flight {
            Some("too many requests are in flight")
        } else if self.bytes + bytes > self.settings.max_bytes {
            Some("too many bytes are in flight")
        } else {
            None
        };
        self.bytes += bytes;
        if let Some(why) = refused {
            self.answer_failure(&client, &Failure::new(Code::Overloaded, why), now);
            return;
        }
        let mut limits = self.settings.limits;
        limits.message_bytes = limits.message_bytes.min(self.max_payload.saturating_sub(16 << 10));
        match Request::parse(asked, body, trace, self.settings.record, &limits, &mut self.random) {
            Err(failure) => self.answer_failure(&client, &failure, now),
            Ok(request) => match asked {
                Asked::Invoke => self.invoke(Rc::from(id), request, client, now),
                Asked::Route => self.begin_route(request, client, now),
            },
        }
    }

    fn invoke(&mut self, extension_id: Rc<str>, request: Request, client: Client, now: u64) {
        let explicit = request.timeout_ms.map(|ms| now.saturating_add(ms.saturating_mul(1000)));
        self.start_call(
            CallSpec {
                extension_id,
                parent: Parent::Client(client),
                ids: request.ids,
                payload: request.payload,
                metadata: request.metadata,
                context: request.context,
                config: request.config,
                deadline_us: explicit,
                timeout_ms: None,
                retry: None,
                kind: None,
                dry_run: request.dry_run,
            },
            now,
        );
    }

    /// A reply came in.
    pub fn on_reply(&mut self, message: &Inbound, now: u64) {
        match self.inbox.token(&message.subject) {
            Some(token) => self.call_replied(token, message, now),
            None => self.metrics.late_replies.inc(),
        }
    }

    /// The time has come to look at the timers.
    pub fn on_time(&mut self, now: u64) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now, &mut due);
        for entry in due.drain(..) {
            match entry {
                Due::Call(token) => self.call_due(token, now),
                Due::Route(token) => self.route_due(token, now),
            }
        }
        self.due = due;
    }

    /// When the next timer may be due.
    pub fn next_time(&self) -> Option<u64> {
        self.wheel.next_us()
    }

    /// The connection to NATS was lost or came back.
    pub fn on_connection(&mut self, connected: bool, now: u64) {
        let lost = self.connected && !connected;
        self.connected = connected;
        if lost {
            for token in self.calls.tokens() {
                self.call_lost(token, now);
            }
        }
    }

    /// A connection that is no longer the one in use was lost: so are the attempts that went by it, those sent until `until_us`.
    pub fn on_old_connection_lost(&mut self, until_us: u64, now: u64) {
        for token in self.calls.tokens() {
            if self.is_out_since(token, until_us) {
                self.call_lost(token, now);
            }
        }
    }

    /// Whether an attempt that was sent until then still waits for its reply.
    pub fn waits_for_replies_until(&self, until_us: u64) -> bool {
        self.calls
            .tokens()
            .into_iter()
            .any(|token| self.is_out_since(token, until_us))
    }

    /// From now on replies are asked for under this inbox. Those under the former ones of the same loop still count.
    pub fn move_to(&mut self, inbox: Inbox) {
        self.inbox = inbox;
    }

    /// A message could not be handed to NATS.
    pub fn on_unsent(&mut self, message: &Outbound, now: u64) {
        if let Some(token) = message.reply.as_ref().and_then(|reply| self.inbox.token(reply)) {
            self.attempt_lost(token, now);
        }
    }

    /// From now on nothing new is taken.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Gives up what is still under way.
    pub fn abandon(&mut self, now: u64) {
        let failure = || Failure::new(Code::Overloaded, "the bridge is shutting down");
        for token in self.routes.tokens() {
            self.fail_route(token, failure(), now);
        }
        for token in self.calls.tokens() {
            self.give_up(token, failure(), now);
        }
    }

    /// Takes the messages to send.
    pub fn take_outbound(&mut self) -> std::vec::Drain<'_, Outbound> {
        self.outbound.drain(..)
    }

    /// Takes the answers for this process.
    pub fn take_inside(&mut self) -> std::vec::Drain<'_, (u64, InsideAnswer)> {
        self.inside.drain(..)
    }

    /// Takes questions for a batch; those whose call is gone are dropped. Previews are questions without side effects.
    pub fn take_questions(&mut self, previews: bool, most: usize) -> Vec<Question> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let queue = if previews {
                &mut self.previews
            } else {
                &mut self.questions
            };
            let Some(question) = queue.pop_front() else { break };
            if self.is_waiting(question.token) {
                taken.push(question);
            }
        }
        taken
    }

    /// Takes the questions that have waited for too long, where somebody else is asked then.
    pub fn take_overdue(&mut self) -> Vec<Question> {
        let mut overdue = std::mem::take(&mut self.overdue);
        overdue.retain(|question| self.is_waiting(question.token));
        overdue
    }

    /// Takes the policies that have been waited for too long.
    pub fn take_overdue_policies(&mut self) -> Vec<PolicyKey> {
        std::mem::take(&mut self.overdue_policies)
    }

    /// Whether a question is for a call that only looks who would serve.
    pub fn is_preview(&self, question: &Question) -> bool {
        self.calls.get(question.token.call).is_some_and(call::Call::is_dry_run)
    }

    /// Questions whose batch was lost with its connection are asked again, first.
    pub fn ask_again(&mut self, questions: Vec<Question>) {
        for question in questions.into_iter().rev() {
            if self.is_waiting(question.token) {
                if self.is_preview(&question) {
                    self.previews.push_front(question);
                } else {
                    self.questions.push_front(question);
                }
            }
        }
    }

    /// When it is time to report to Postgres.
    pub fn reports_due(&self) -> Option<u64> {
        self.reports.leave_us
    }

    /// Takes outcomes to report to Postgres.
    pub fn take_reports(&mut self, most: usize) -> Vec<Report> {
        let count = most.min(self.reports.to_postgres.len());
        if count == self.reports.to_postgres.len() {
            self.reports.leave_us = None;
        }
        self.reports.to_postgres.drain(..count).collect()
    }

    /// Takes the outcomes of what the bridge decided itself.
    pub fn take_local_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports.local)
    }

    /// Takes the spans that have ended.
    pub fn take_recorded(&mut self) -> std::vec::Drain<'_, Recorded> {
        self.recorded.drain(..)
    }

    /// How many outcomes wait to be reported.
    pub fn reports_waiting(&self) -> usize {
        self.reports.to_postgres.len() + self.reports.local.len()
    }

    /// Takes the ids of extensions whose facts are wanted.
    pub fn take_wanted_facts(&mut self) -> Vec<Rc<str>> {
        std::mem::take(&mut self.wanted_facts)
    }

    /// Facts came.
    pub fn on_facts(&mut self, id: &str, facts: Facts, now: u64) {
        self.facts.insert(Rc::from(id), (facts, now));
    }

    /// What is known of an extension; asks for it where that is nothing or old.
    pub(crate) fn facts(&mut self, id: &Rc<str>, now: u64) -> Facts {
        let known = self.facts.get(id);
        if known.is_none_or(|(_, at)| now.saturating_sub(*at) > FACTS_AGE_US) && !self.wanted_facts.contains(id) {
            self.wanted_facts.push(Rc::clone(id));
        }
        self.facts.get(id).map(|(facts, _)| facts.clone()).unwrap_or_default()
    }

    pub(crate) fn report(&mut self, report: Report, now: u64) {
        self.reports.push(report, now);
    }

    pub(crate) fn send(&mut self, message: Outbound) {
        self.outbound.push(message);
    }

    pub(crate) fn ask(&mut self, question: Question, preview: bool) {
        if preview {
            self.previews.push_back(question);
        } else {
            self.questions.push_back(question);
        }
    }

    pub(crate) fn extension(&mut self, id: &Rc<str>) -> &mut Extension {
        if !self.extensions.contains_key(id) {
            self.extensions.insert(Rc::clone(id), Extension::default());
        }
        self.extensions
            .get_mut(id)
            .unwrap_or_else(|| unreachable!("it was put there"))
    }

    /// Forgets an extension that nobody calls and that was never found in the registry.
    pub(crate) fn release_extension(&mut self, id: &Rc<str>) {
        if let Some(extension) = self.extensions.get_mut(id) {
            extension.in_flight = extension.in_flight.saturating_sub(1);
            if extension.in_flight == 0 && extension.metrics.is_none() {
                self.extensions.remove(id);
            }
        }
    }

    fn finished(&mut self, client: &Client, failed: bool, now: u64) {
        self.bytes = self.bytes.saturating_sub(client.bytes);
        let stats = &mut self.stats[client.asked as usize];
        stats.errors += u64::from(failed);
        stats.processing_us += now.saturating_sub(client.received_us);
    }

    /// Answers a caller and forgets it.
    pub(crate) fn answer(&mut self, client: &Client, payload: Bytes, headers: Headers, now: u64) {
        self.finished(client, false, now);
        match &client.reply {
            ReplyTo::Inside(number) => self.inside.push((*number, Ok(payload))),
            ReplyTo::Nats(subject) => self.reply(subject.as_ref(), payload, headers, now),
        }
    }

    /// Tells a caller that its request was refused or failed.
    pub(crate) fn answer_failure(&mut self, client: &Client, failure: &Failure, now: u64) {
        self.answer_failure_with(client, failure, Headers::default(), now);
    }

    pub(crate) fn answer_failure_with(&mut self, client: &Client, failure: &Failure, mut headers: Headers, now: u64) {
        self.finished(client, true, now);
        self.metrics.replies(failure.code.as_str());
        let refusal = matches!(
            failure.code,
            Code::Overloaded | Code::InvalidRequest | Code::PolicyNotFound
        );
        if refusal && !failure.counted {
            self.metrics.refused(failure.code.as_str());
        }
        headers.push("Nats-Service-Error", &failure.message);
        headers.push("Nats-Service-Error-Code", &failure.code.number().to_string());
        match &client.reply {
            ReplyTo::Inside(number) => self.inside.push((*number, Err(failure.clone()))),
            ReplyTo::Nats(subject) => self.reply(subject.as_ref(), failure.body().into(), headers, now),
        }
    }

    fn reply(&mut self, subject: Option<&Subject>, payload: Bytes, headers: Headers, now: u64) {
        let Some(subject) = subject.cloned() else { return };
        let (payload, headers) = if payload.len() > self.max_payload.saturating_sub(4096) {
            let failure = Failure::new(Code::Internal, "the reply is larger than NATS takes");
            let mut headers = Headers::default();
            headers.push("Nats-Service-Error", &failure.message);
            headers.push("Nats-Service-Error-Code", &failure.code.number().to_string());
            (failure.body().into(), headers)
        } else {
            (payload, headers)
        };
        self.send(Outbound {
            subject,
            reply: None,
            headers,
            payload,
            expires_us: now + self.settings.max_call_us,
        });
    }

    /// A call of a caller or of a pipeline has ended.
    pub(crate) fn deliver(&mut self, parent: Parent, finished: Finished, now: u64) {
        match parent {
            Parent::Route { token, item } => self.route_call_done(token, item, finished, now),
            Parent::Client(client) => {
                let headers = finished.headers();
                match finished.done {
                    call::Done::Reply { body, .. } => {
                        self.metrics.replies_ok.inc();
                        self.answer(&client, body, headers, now);
                    }
                    call::Done::Preview(decision) => {
                        self.metrics.replies_ok.inc();
                        let body = json!({"ok": true, "dry_run": true, "decision": {
                            "extension_id": &*finished.extension_id, "type": decision.kind.map(contract::Kind::as_str),
                            "version": decision.version, "instance_id": decision.instance_id, "subject": decision.subject,
                            "timeout_ms": decision.timeout_ms, "retry": decision.retry, "reason": decision.reason}});
                        self.answer(&client, body.to_string().into(), headers, now);
                    }
                    call::Done::Failed(failure) => self.answer_failure_with(&client, &failure, headers, now),
                }
            }
        }
    }
}
