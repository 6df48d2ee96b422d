//! The machine under simulated time: what goes in is written down, what comes out is looked at.

use std::rc::Rc;

use bytes::Bytes;
use ext_registry_core::outcome::Outcome;
use ext_registry_core::policy::PolicyDocument;
use serde_json::{Value as Json, json};

use super::codes::Code;
use super::contract::Kind;
use super::limits::Limits;
use super::mux::Inbox;
use super::policies::Found;
use super::request::Asked;
use super::trace::{Recorded, What};
use super::{
    COMPANY, COMPANY_US, Decision, Facts, InsideRequest, Machine, MachineSettings, Question, Report, Undecided,
};
use crate::metrics::Metrics;
use crate::transport::{Channel, Inbound, Outbound};

const MS: u64 = 1000;

fn settings() -> MachineSettings {
    MachineSettings {
        limits: Limits::default(),
        max_in_flight: 100,
        max_per_extension: 50,
        max_bytes: 1 << 20,
        max_call_us: 30_000 * MS,
        decide_timeout_us: 250 * MS,
        record: None,
        second_opinion: false,
        retry_share: 0.2,
        retry_per_second: 100.0,
        policy_max_age_us: 1000 * MS,
    }
}

/// A machine with its time, answering its own questions.
struct World {
    machine: Machine,
    now: u64,
    tickets: i64,
    reports: Vec<Report>,
}

fn pre(timeout_ms: u32, retry: u32) -> Decision {
    Decision {
        allowed: true,
        reason: "ok".to_owned(),
        retry_after_ms: None,
        kind: Some(Kind::Pre),
        version: Some("v1".to_owned()),
        instance_id: None,
        subject: Some("svc".to_owned()),
        timeout_ms,
        retry,
        config: Bytes::from_static(b"{}"),
        ticket: 0,
        local: false,
    }
}

fn refused(reason: &str) -> Decision {
    Decision {
        allowed: false,
        reason: reason.to_owned(),
        subject: None,
        ..pre(100, 0)
    }
}

impl World {
    fn new() -> Self {
        Self::with(settings())
    }

    fn with(settings: MachineSettings) -> Self {
        let machine = Machine::new(settings, Inbox::new("_INBOX.t"), Metrics::new(false), 7);
        Self {
            machine,
            now: 0,
            tickets: 0,
            reports: Vec::new(),
        }
    }

    fn request(&mut self, asked: Asked, subject: &str, body: &Json) {
        let message = Inbound::new(Channel::Invoke, subject, Some("caller"), body.to_string().into());
        self.machine.on_request(asked, &message, self.now);
    }

    fn invoke(&mut self, body: &Json) {
        self.request(Asked::Invoke, "p.invoke.ext", body);
    }

    fn questions(&mut self) -> Vec<Question> {
        self.machine.take_questions(false, 1000)
    }

    /// Answers all questions with the same decision, each with a ticket of its own if it is allowed.
    fn decide(&mut self, decision: &Decision) -> usize {
        let questions = self.questions();
        for question in &questions {
            self.answer(question, decision.clone());
        }
        questions.len()
    }

    fn answer(&mut self, question: &Question, mut decision: Decision) {
        if decision.allowed {
            self.tickets += 1;
            decision.ticket = self.tickets;
        }
        self.machine.on_decision(question, Ok(decision), self.now);
    }

    fn sent(&mut self) -> Vec<Outbound> {
        self.machine.take_outbound().collect()
    }

    /// The attempt that was sent.
    fn attempt(&mut self) -> Outbound {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    fn reply_to(&mut self, attempt: &Outbound, body: &str) {
        let subject = attempt.reply.clone().unwrap();
        let message = Inbound::new(Channel::Reply, &subject, None, body.to_owned().into());
        self.machine.on_reply(&message, self.now);
    }

    fn no_responders(&mut self, attempt: &Outbound) {
        let mut message = Inbound::new(Channel::Reply, &attempt.reply.clone().unwrap(), None, Bytes::new());
        message.no_responders = true;
        self.machine.on_reply(&message, self.now);
    }

    /// Lets time pass, a millisecond at a time.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += MS;
            self.machine.on_time(self.now);
        }
    }

    fn reports(&mut self) -> Vec<(i64, Outcome, u32)> {
        let new = self.machine.take_reports(1000);
        self.reports.extend(new.iter().cloned());
        new.iter().map(|r| (r.ticket, r.outcome, r.retries)).collect()
    }

    /// The code of the only reply, or `ok`.
    fn code(&mut self) -> String {
        let reply = self.attempt();
        assert_eq!(reply.subject.as_str(), "caller");
        let body: Json = serde_json::from_slice(&reply.payload).unwrap();
        body["error"]["code"].as_str().unwrap_or("ok").to_owned()
    }

    fn idle(&self) {
        assert_eq!(
            (
                self.machine.in_flight(),
                self.machine.bytes_in_flight(),
                self.machine.wheel.len()
            ),
            (0, 0, 0)
        );
    }
}

#[test]
fn one_call() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {"a": 1}, "tenant_id": "t"}));
    assert_eq!(world.decide(&pre(100, 0)), 1);
    let attempt = world.attempt();
    assert_eq!(attempt.subject.as_str(), "svc");
    let names: Vec<&str> = attempt.headers.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "traceparent",
            "Ext-Version",
            "Ext-Attempt",
            "Ext-Call-Id",
            "Ext-Timeout-Ms"
        ]
    );
    world.pass(7);
    world.reply_to(&attempt, r#"{"payload": {"b":2} , "x":1}"#);
    let reply = world.attempt();
    assert_eq!(reply.payload.as_ref(), br#"{"payload": {"b":2} , "x":1}"#);
    assert!(reply.headers.iter().any(|h| h == ("Ext-Attempts", "1")));
    assert_eq!(world.reports(), [(1, Outcome::Success, 0)]);
    assert_eq!(world.reports[0].latency_us, 7 * MS);
    world.idle();
}

#[test]
fn a_success_waits_for_company_and_what_may_open_a_breaker_does_not() {
    let mut world = World::new();
    let end = |world: &mut World, reply: &str| {
        world.invoke(&json!({"payload": {}}));
        world.decide(&pre(100, 0));
        let attempt = world.attempt();
        world.reply_to(&attempt, reply);
        world.attempt();
        world.machine.reports_due()
    };
    let first = world.now;
    assert_eq!(end(&mut world, "{}"), Some(first + COMPANY_US));
    world.now += COMPANY_US / 2;
    assert_eq!(
        end(&mut world, "{}"),
        Some(first + COMPANY_US),
        "the first one waits no longer"
    );
    let now = world.now;
    assert_eq!(end(&mut world, r#"{"error": "no"}"#), Some(now));
    assert_eq!(world.reports().len(), 3);
    assert_eq!(world.machine.reports_due(), None);
    for count in 1..=COMPANY {
        assert_eq!(end(&mut world, "{}"), Some(now + COMPANY_US), "{count}");
    }
    assert_eq!(end(&mut world, "{}"), Some(now), "that is company enough");
    assert_eq!(world.machine.take_reports(COMPANY).len(), COMPANY);
    assert_eq!(world.machine.reports_due(), Some(now), "the rest follows at once");
}

#[test]
fn a_request_from_within_is_like_any_other_but_for_the_way_of_its_answer() {
    let mut world = World::new();
    let request = |id: &str| InsideRequest {
        asked: Asked::Invoke,
        extension_id: id.to_owned(),
        body: Bytes::from_static(br#"{"payload": {"a": 1}}"#),
    };
    world.machine.on_inside(&request("ext"), 5, world.now);
    world.decide(&pre(100, 0));
    let attempt = world.attempt();
    world.reply_to(&attempt, r#"{"payload": {"b": 2}}"#);
    world.machine.on_inside(&request("not an id"), 6, world.now);
    world.machine.drain();
    world.machine.on_inside(&request("ext"), 7, world.now);
    let answers: Vec<_> = world
        .machine
        .take_inside()
        .map(|(number, answer)| (number, answer.map_err(|failure| failure.code)))
        .collect();
    let body = Bytes::from_static(br#"{"payload": {"b": 2}}"#);
    assert_eq!(
        answers,
        [
            (5, Ok(body)),
            (6, Err(Code::ExtensionNotFound)),
            (7, Err(Code::Overloaded))
        ]
    );
    assert!(world.sent().is_empty());
    assert_eq!(world.reports(), [(1, Outcome::Success, 0)]);
    world.idle();
}

#[test]
fn retries_avoid_what_was_tried_and_count_on_the_last_report() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}}));
    let decision = |instance: &str| Decision {
        instance_id: Some(instance.to_owned()),
        ..pre(100, 2)
    };
    world.decide(&decision("i1"));
    world.attempt();
    world.pass(101);
    assert_eq!(world.reports(), [(1, Outcome::Timeout, 0)]);
    assert!(world.questions().is_empty(), "the wait has not ended");
    world.pass(101);
    let question = world.questions().remove(0);
    assert_eq!(question.avoid, [Rc::from("i1")]);
    world.answer(&question, decision("i2"));
    let second = world.attempt();
    assert!(second.headers.iter().any(|h| h == ("Ext-Attempt", "2")));
    world.pass(101);
    assert!(
        world.reports().is_empty(),
        "kept until it is known whether it was the last"
    );
    world.pass(201);
    let question = world.questions().remove(0);
    assert_eq!(question.avoid, [Rc::from("i1"), Rc::from("i2")]);
    world.answer(&question, decision("i3"));
    let third = world.attempt();
    world.reply_to(&third, "{}");
    assert_eq!(world.code(), "ok");
    assert_eq!(world.reports(), [(2, Outcome::Timeout, 0), (3, Outcome::Success, 2)]);
    world.reply_to(&second, "{}");
    assert!(
        world.sent().is_empty() && world.reports().is_empty(),
        "late replies are nothing"
    );
    world.idle();
}

#[test]
fn a_refused_retry_answers_with_the_last_attempt() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}}));
    world.decide(&pre(100, 3));
    world.attempt();
    world.pass(202);
    world.decide(&pre(100, 3));
    world.attempt();
    world.pass(302);
    world.decide(&refused("extension_circuit_open"));
    assert_eq!(world.code(), "extension_timeout");
    assert_eq!(world.reports(), [(1, Outcome::Timeout, 0), (2, Outcome::Timeout, 1)]);
    world.idle();
}

#[test]
fn errors_and_garbage_are_not_repeated() {
    for (body, outcome) in [
        (r#"{"error":"x"}"#, Outcome::Error),
        ("nonsense", Outcome::InvalidResponse),
        ("", Outcome::InvalidResponse),
    ] {
        let mut world = World::new();
        world.invoke(&json!({"payload": {}}));
        world.decide(&pre(100, 3));
        let attempt = world.attempt();
        world.reply_to(&attempt, body);
        assert_eq!(world.code(), "extension_error");
        assert_eq!(world.reports(), [(1, outcome, 0)]);
        world.idle();
    }
}

#[test]
fn a_provider_is_repeated_only_where_nothing_ran_or_it_says_so() {
    let provider = || Decision {
        kind: Some(Kind::Provider),
        ..pre(100, 1)
    };
    let asked_again = |idempotent: bool, nobody: bool| {
        let mut world = World::new();
        world.machine.on_facts(
            "ext",
            Facts {
                idempotent,
                balancing: String::new(),
            },
            0,
        );
        world.invoke(&json!({"payload": {}}));
        world.decide(&provider());
        let attempt = world.attempt();
        if nobody {
            world.no_responders(&attempt);
        } else {
            world.pass(101);
        }
        world.pass(101);
        !world.questions().is_empty()
    };
    assert!(!asked_again(false, false));
    assert!(asked_again(true, false));
    assert!(asked_again(false, true));
}

#[test]
fn the_deadline_runs_from_receipt_and_blames_nobody() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}, "timeout_ms": 50}));
    world.pass(30);
    world.decide(&pre(1000, 5));
    let attempt = world.attempt();
    assert!(attempt.headers.iter().any(|h| h == ("Ext-Timeout-Ms", "20")));
    world.pass(20);
    assert_eq!(world.code(), "deadline_exceeded");
    assert_eq!(world.reports(), [(1, Outcome::Cancelled, 0)]);
    world.idle();
}

#[test]
fn a_decision_that_comes_too_late_gives_its_ticket_back() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}}));
    let question = world.questions().remove(0);
    world.pass(251);
    assert_eq!(world.code(), "registry_unavailable");
    world.answer(&question, pre(100, 0));
    assert!(world.sent().is_empty());
    assert_eq!(world.reports(), [(1, Outcome::Cancelled, 0)]);
    world.idle();
}

#[test]
fn questions_without_a_batch_are_dropped_when_their_call_is_gone() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}, "timeout_ms": 10}));
    world.pass(11);
    assert_eq!(world.code(), "deadline_exceeded");
    assert!(world.questions().is_empty());
    world.idle();
}

#[test]
fn refusals_have_their_codes() {
    for (reason, code) in [
        ("extension_not_found", "extension_not_found"),
        ("extension_disabled", "extension_unavailable"),
        ("tenant_not_allowed", "tenant_not_allowed"),
        ("no_version", "extension_unavailable"),
        ("extension_circuit_open", "extension_unavailable"),
    ] {
        let mut world = World::new();
        world.invoke(&json!({"payload": {}}));
        world.decide(&refused(reason));
        assert_eq!(world.code(), code);
        assert!(world.reports().is_empty());
        world.idle();
    }
    for (undecided, code) in [
        (Undecided::Unavailable, "registry_unavailable"),
        (Undecided::Refused("x".to_owned()), "invalid_request"),
        (Undecided::Internal("x"), "internal"),
    ] {
        let mut world = World::new();
        world.invoke(&json!({"payload": {}}));
        let question = world.questions().remove(0);
        world.machine.on_decision(&question, Err(undecided), 0);
        assert_eq!(world.code(), code);
        world.idle();
    }
}

#[test]
fn caps_refuse_at_once_and_before_deciding() {
    let mut world = World::with(MachineSettings {
        max_in_flight: 3,
        max_per_extension: 2,
        max_bytes: 1000,
        ..settings()
    });
    world.invoke(&json!({"payload": {}}));
    world.invoke(&json!({"payload": {}}));
    world.invoke(&json!({"payload": {}}));
    assert_eq!(world.code(), "overloaded", "per extension");
    world.request(
        Asked::Invoke,
        "p.invoke.other",
        &json!({"payload": {"a": "x".repeat(1000)}}),
    );
    assert_eq!(world.code(), "overloaded", "bytes");
    world.request(Asked::Invoke, "p.invoke.other", &json!({"payload": {}}));
    world.request(Asked::Invoke, "p.invoke.third", &json!({"payload": {}}));
    assert_eq!(world.code(), "overloaded", "count");
    assert_eq!(world.decide(&refused("no_version")), 3);
    world.sent();
    world.idle();
}

#[test]
fn a_lost_connection_ends_attempts_without_blame() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}}));
    world.decide(&pre(1000, 1));
    world.attempt();
    world.machine.on_connection(false, world.now);
    assert_eq!(world.reports(), [(1, Outcome::Cancelled, 0)]);
    world.machine.on_connection(true, world.now);
    world.pass(101);
    world.decide(&pre(1000, 1));
    let attempt = world.attempt();
    world.reply_to(&attempt, "{}");
    assert_eq!(world.code(), "ok");
    assert_eq!(world.reports(), [(2, Outcome::Success, 1)]);
    world.idle();
}

#[test]
fn abandoning_reports_everything_once() {
    let mut world = World::new();
    world.invoke(&json!({"payload": {}}));
    world.invoke(&json!({"payload": {}}));
    let questions = world.questions();
    world.answer(&questions[0], pre(1000, 1));
    world.sent();
    world.machine.drain();
    world.invoke(&json!({"payload": {}}));
    assert_eq!(world.code(), "overloaded");
    world.machine.abandon(world.now);
    assert_eq!(world.sent().len(), 2);
    world.answer(&questions[1], pre(1000, 1));
    assert_eq!(
        world.reports(),
        [(1, Outcome::Cancelled, 0), (2, Outcome::Cancelled, 0)]
    );
    world.idle();
}

fn route(world: &mut World, policy: &Json, message: &Json) {
    let body = json!({"tenant_id": "t", "policy_id": "p", "message": message, "metadata": {"m": 1}});
    world.request(Asked::Route, "p.route", &body);
    let keys = world.machine.policies.take_wanted();
    assert_eq!(keys.len(), 1);
    let found = Found::Policy(Rc::new(PolicyDocument::parse(policy).unwrap()));
    world.machine.on_policy(&keys[0], &found, world.now);
}

/// Answers the questions of one stage by the ids' types: `pre`, `val*`, `prov*`, `post`.
fn stage(world: &mut World) -> Vec<(String, Outbound)> {
    let mut sent = Vec::new();
    for question in world.questions() {
        let id = question.extension_id.to_string();
        let kind = match &id[..3] {
            "val" => Kind::Validator,
            "pro" => Kind::Provider,
            "pos" => Kind::Post,
            _ => Kind::Pre,
        };
        world.answer(
            &question,
            Decision {
                kind: Some(kind),
                ..pre(100, 0)
            },
        );
        sent.extend(world.sent().into_iter().map(|message| (id.clone(), message)));
    }
    sent
}

fn body(message: &Outbound) -> Json {
    serde_json::from_slice(&message.payload).unwrap()
}

#[test]
fn a_pipeline() {
    let mut world = World::new();
    let policy = json!({"pre": [{"id": "pre", "config": {"c": 1}}], "validators": [{"id": "val1"}, {"id": "val2"}],
                        "providers": ["prov"], "post": [{"id": "post"}]});
    route(&mut world, &policy, &json!({"payload": "hi"}));
    let pre = stage(&mut world).remove(0).1;
    assert_eq!(body(&pre)["config"], json!({"c": 1}));
    world.reply_to(&pre, r#"{"payload":"HI","metadata":{"tenant_id":"evil","lang":"en"}}"#);
    let validators = stage(&mut world);
    assert_eq!(validators.len(), 2, "side by side");
    assert_eq!(body(&validators[0].1)["payload"], json!({"payload": "HI"}));
    for (_, message) in &validators {
        world.reply_to(message, r#"{"status":"ok"}"#);
    }
    let provider = stage(&mut world).remove(0).1;
    assert_eq!(body(&provider)["prompt"], "HI");
    assert_eq!(body(&provider)["context"], json!({"m": 1, "lang": "en"}));
    world.reply_to(&provider, r#"{"output":{"text":"answer"},"usage":{"n":1}}"#);
    let post = stage(&mut world).remove(0).1;
    assert_eq!(body(&post)["payload"], json!({"payload": {"text": "answer"}}));
    world.reply_to(&post, r#"{"payload":{"payload":"masked"}}"#);
    let reply = body(&world.attempt());
    assert_eq!(reply["message"], json!({"payload": "masked"}));
    assert_eq!(reply["metadata"], json!({"m": 1, "lang": "en", "usage": {"n": 1}}));
    assert_eq!(reply["decision"], json!({"provider_id": "prov", "reason": "weighted"}));
    let ran: Vec<&str> = reply["executed_extensions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["id"].as_str().unwrap())
        .collect();
    assert_eq!(ran, ["pre", "val1", "val2", "prov", "post"]);
    assert_eq!(world.reports().len(), 5);
    world.idle();
}

#[test]
fn a_blocking_validator_ends_it_and_cancels_the_others() {
    let mut world = World::new();
    route(
        &mut world,
        &json!({"validators": [{"id": "val1"}, {"id": "val2"}], "providers": ["prov"]}),
        &json!({}),
    );
    let sent = stage(&mut world);
    world.reply_to(&sent[1].1, r#"{"status":"reject","reason":"pii","details":{"n":1}}"#);
    let reply = body(&world.attempt());
    assert_eq!(reply["error"]["code"], "validator_blocked");
    assert_eq!(reply["error"]["details"]["reason"], "pii");
    assert_eq!(reply["error"]["details"]["details"], json!({"n": 1}));
    assert_eq!(world.reports(), [(2, Outcome::Success, 0), (1, Outcome::Cancelled, 0)]);
    world.idle();
}

#[test]
fn what_is_optional_may_fail() {
    let mut world = World::new();
    let policy =
        json!({"pre": [{"id": "pre"}], "validators": [{"id": "val", "on_fail": "warn"}], "post": [{"id": "post"}]});
    route(&mut world, &policy, &json!({"payload": 1}));
    for answer in [r#"{"error":1}"#, r#"{"status":"reject"}"#, "garbage"] {
        let message = stage(&mut world).remove(0).1;
        world.reply_to(&message, answer);
    }
    let reply = body(&world.attempt());
    assert_eq!(
        (&reply["ok"], &reply["message"]),
        (&json!(true), &json!({"payload": 1}))
    );
    let status: Vec<&str> = reply["executed_extensions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["status"].as_str().unwrap())
        .collect();
    assert_eq!(status, ["error", "warn", "error"]);
    world.idle();
}

#[test]
fn what_is_required_may_not() {
    for (policy, code) in [
        (
            json!({"pre": [{"id": "pre", "mode": "required"}]}),
            "pre_processor_failed",
        ),
        (
            json!({"post": [{"id": "post", "mode": "required"}]}),
            "post_processor_failed",
        ),
        (json!({"validators": [{"id": "val"}]}), "validator_blocked"),
        (json!({"providers": ["prov"]}), "extension_error"),
    ] {
        let mut world = World::new();
        route(&mut world, &policy, &json!({}));
        let message = stage(&mut world).remove(0).1;
        world.reply_to(&message, "garbage");
        assert_eq!(world.code(), code);
        world.idle();
    }
}

#[test]
fn conditions_leave_items_out() {
    let mut world = World::new();
    let policy = json!({"pre": [{"id": "pre", "when": {"m": 2}}], "validators": [{"id": "val", "when": {"tenant_id": "x"}}],
                        "post": [{"id": "post", "when": {"m": 1}}]});
    route(&mut world, &policy, &json!({}));
    let sent = stage(&mut world);
    assert_eq!(sent[0].0, "post");
    world.reply_to(&sent[0].1, "{}");
    let reply = body(&world.attempt());
    let ran: Vec<(&str, &str)> = reply["executed_extensions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["id"].as_str().unwrap(), e["status"].as_str().unwrap()))
        .collect();
    assert_eq!(ran, [("val", "skipped"), ("post", "ok")]);
    world.idle();
}

#[test]
fn fallbacks() {
    let mut world = World::new();
    let policy =
        json!({"providers": ["prov1"], "fallbacks": [{"when": {"status": ["timeout", "5xx"]}, "to": "prov2"}]});
    route(&mut world, &policy, &json!({"payload": "x"}));
    assert_eq!(stage(&mut world)[0].0, "prov1");
    world.pass(101);
    let second = stage(&mut world).remove(0);
    assert_eq!(second.0, "prov2");
    world.reply_to(&second.1, r#"{"output":"y"}"#);
    let reply = body(&world.attempt());
    assert_eq!(reply["decision"], json!({"provider_id": "prov2", "reason": "fallback"}));
    world.idle();
}

#[test]
fn one_deadline_for_the_whole() {
    let mut world = World::new();
    let request = json!({"tenant_id": "t", "policy_id": "p", "message": {}, "timeout_ms": 50});
    world.request(Asked::Route, "p.route", &request);
    let key = world.machine.policies.take_wanted().remove(0);
    let policy = PolicyDocument::parse(&json!({"pre": [{"id": "pre"}, {"id": "pre2"}]})).unwrap();
    world.machine.on_policy(&key, &Found::Policy(Rc::new(policy)), 0);
    let first = stage(&mut world).remove(0).1;
    world.pass(40);
    world.reply_to(&first, "{}");
    stage(&mut world);
    world.pass(11);
    assert_eq!(world.code(), "deadline_exceeded");
    assert_eq!(world.reports(), [(1, Outcome::Success, 0), (2, Outcome::Cancelled, 0)]);
    world.idle();
}

#[test]
fn a_session_keeps_its_provider() {
    let policy = json!({"providers": ["prov1", "prov2", "prov3"], "sticky": {"session_key": "session"}});
    let mut chosen = std::collections::HashMap::new();
    for round in 0..60 {
        let mut world = World::new();
        let session = format!("s{}", round % 20);
        let request = json!({"tenant_id": "t", "policy_id": "p", "message": {}, "context": {"session": session}});
        world.request(Asked::Route, "p.route", &request);
        let key = world.machine.policies.take_wanted().remove(0);
        world.machine.on_policy(
            &key,
            &Found::Policy(Rc::new(PolicyDocument::parse(&policy).unwrap())),
            0,
        );
        let provider = stage(&mut world).remove(0).0;
        assert_eq!(*chosen.entry(session).or_insert_with(|| provider.clone()), provider);
    }
    let different: std::collections::HashSet<_> = chosen.values().collect();
    assert!(different.len() > 1);
}

#[test]
fn any_order_of_events_reports_every_ticket_once() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        let mut attempts: Vec<Outbound> = Vec::new();
        let mut waiting: Vec<Question> = Vec::new();
        for _ in 0..400 {
            match random.u8(0..8) {
                0 | 1 => {
                    let timeout = random.u64(5..400);
                    world.invoke(&json!({"payload": {}, "timeout_ms": timeout}));
                }
                2 => waiting.extend(world.questions()),
                3 if !waiting.is_empty() => {
                    let question = waiting.swap_remove(random.usize(0..waiting.len()));
                    world.answer(&question, pre(random.u32(10..100), random.u32(0..3)));
                }
                4 | 5 if !attempts.is_empty() => {
                    let attempt = attempts[random.usize(0..attempts.len())].clone();
                    match random.u8(0..4) {
                        0 => world.no_responders(&attempt),
                        1 => world.reply_to(&attempt, "garbage"),
                        _ => world.reply_to(&attempt, "{}"),
                    }
                }
                6 if random.u8(0..10) == 0 => {
                    let now = world.now;
                    world.machine.on_connection(false, now);
                    world.machine.on_connection(true, now);
                }
                _ => world.pass(random.u64(0..20)),
            }
            attempts.extend(world.sent().into_iter().filter(|message| message.reply.is_some()));
            world.reports();
        }
        for question in waiting {
            world.answer(&question, pre(10, 0));
        }
        let now = world.now;
        world.machine.abandon(now);
        world.reports();
        let mut tickets: Vec<i64> = world.reports.iter().map(|r| r.ticket).collect();
        tickets.sort_unstable();
        assert_eq!(tickets, (1..=world.tickets).collect::<Vec<_>>(), "seed {seed}");
        world.idle();
    }
}

#[test]
fn a_late_decision_is_made_elsewhere_and_its_ticket_given_back() {
    let mut world = World::with(MachineSettings {
        second_opinion: true,
        ..settings()
    });
    world.invoke(&json!({"payload": {}}));
    let asked = world.questions().remove(0);
    world.pass(240);
    assert!(world.machine.take_overdue().is_empty());
    world.pass(20);
    let overdue = world.machine.take_overdue();
    assert_eq!(overdue.len(), 1);
    assert!(world.sent().is_empty(), "the caller is not told yet");
    let local = Decision {
        ticket: 7,
        local: true,
        ..pre(100, 0)
    };
    world.machine.on_decision(&overdue[0], Ok(local), world.now);
    let attempt = world.attempt();
    // Postgres answers after all: nobody waits for it.
    world.answer(&asked, pre(100, 0));
    assert!(world.sent().is_empty());
    assert_eq!(world.reports(), [(1, Outcome::Cancelled, 0)]);
    world.reply_to(&attempt, "{}");
    assert_eq!(world.code(), "ok");
    assert!(
        world.reports().is_empty(),
        "Postgres is not told of what it did not decide"
    );
    let local = world.machine.take_local_reports();
    assert_eq!(
        (
            local[0].ticket,
            local[0].outcome,
            &*local[0].target.extension_id,
            &*local[0].target.version
        ),
        (7, Outcome::Success, "ext", "v1")
    );
    world.idle();
}

#[test]
fn a_decision_that_is_late_everywhere_ends_with_the_deadline() {
    let mut world = World::with(MachineSettings {
        second_opinion: true,
        ..settings()
    });
    world.invoke(&json!({"payload": {}, "timeout_ms": 600}));
    world.questions();
    world.pass(590);
    assert!(world.sent().is_empty());
    world.pass(20);
    assert_eq!(world.code(), "deadline_exceeded");
    world.idle();
}

#[test]
fn a_late_policy_is_read_elsewhere() {
    let mut world = World::with(MachineSettings {
        second_opinion: true,
        ..settings()
    });
    let body = json!({"tenant_id": "t", "policy_id": "p", "message": {"payload": "x"}, "timeout_ms": 2000});
    world.request(Asked::Route, "p.route", &body);
    assert_eq!(world.machine.policies.take_wanted().len(), 1);
    world.pass(260);
    let key = ("t".to_owned(), "p".to_owned());
    assert_eq!(world.machine.take_overdue_policies(), std::slice::from_ref(&key));
    assert!(world.sent().is_empty());
    let policy = PolicyDocument::parse(&json!({"pre": [{"id": "a"}], "providers": ["b"]})).unwrap();
    world
        .machine
        .on_policy(&key, &Found::Policy(Rc::new(policy)), world.now);
    assert_eq!(&*world.questions()[0].extension_id, "a");
    world.pass(1800);
    assert_eq!(world.code(), "deadline_exceeded");
    world.idle();
}

#[test]
fn a_pipeline_is_recorded_as_one_tree_of_spans() {
    let mut world = World::with(MachineSettings {
        record: Some(1.0),
        ..settings()
    });
    let policy = json!({"pre": [{"id": "pre", "retry": 1}], "providers": ["prov"]});
    route(&mut world, &policy, &json!({"a": 1}));
    let (_, first) = stage(&mut world).remove(0);
    world.pass(106); // it does not answer in its 100 ms
    world.pass(200); // the backoff
    let (_, second) = stage(&mut world).remove(0);
    let header = |message: &Outbound| {
        let mut headers = message.headers.iter();
        headers
            .find(|(name, _)| *name == "traceparent")
            .map(|(_, value)| value.to_owned())
            .unwrap()
    };
    assert_eq!(header(&first), header(&second), "both are attempts of the same call");
    world.reply_to(&second, "{}");
    let (_, provider) = stage(&mut world).remove(0);
    world.reply_to(&provider, r#"{"error": "no"}"#);
    world.sent();
    let spans: Vec<Recorded> = world.machine.take_recorded().collect();
    let [pre, prov, route] = spans.as_slice() else {
        panic!("{spans:?}")
    };
    assert!(matches!(&route.what, What::Route { provider } if provider.as_deref() == Some("prov")));
    assert_eq!(
        (route.parent, route.parent_is_remote, route.tenant_id.as_deref()),
        (0, false, Some("t"))
    );
    for (span, sent) in [(pre, &first), (prov, &provider)] {
        assert_eq!((span.trace, span.parent), (route.trace, route.span));
        assert_eq!(header(sent), format!("00-{:032x}-{:016x}-01", span.trace, span.span));
    }
    let outcomes = |span: &Recorded| -> Vec<Outcome> {
        let What::Invoke { recording, .. } = &span.what else {
            panic!("{span:?}")
        };
        recording.attempts.iter().map(|attempt| attempt.outcome).collect()
    };
    assert_eq!(outcomes(pre), [Outcome::Timeout, Outcome::Success]);
    assert_eq!(outcomes(prov), [Outcome::Error]);
    let codes = [pre, prov, route].map(|span| span.failure.as_ref().map(|(code, _)| *code));
    assert_eq!(codes, [None, Some("extension_error"), Some("extension_error")]);
    world.idle();
}

/// How often something was refused, by reason, where it was.
fn refusals(world: &World) -> Vec<(String, f64)> {
    let metrics = world.machine.metrics.render();
    let of = |line: &str| {
        let (reason, count) = line
            .strip_prefix(r#"ext_bridge_refused_total{reason=""#)?
            .split_once(r#""} "#)?;
        Some((reason.to_owned(), count.parse::<f64>().ok()?))
    };
    metrics
        .lines()
        .filter_map(of)
        .filter(|(_, count)| *count > 0.0)
        .collect()
}

#[test]
fn a_refused_call_is_counted_once() {
    // Of another type than the policy's place for it, and its ticket given back.
    for policy in [
        json!({"pre": [{"id": "val", "mode": "required"}]}),
        json!({"providers": ["pre"]}),
    ] {
        let mut world = World::new();
        route(&mut world, &policy, &json!({}));
        assert!(
            stage(&mut world)
                .iter()
                .all(|(_, message)| message.subject.as_str() == "caller")
        );
        assert_eq!(refusals(&world), [("invalid_request".to_owned(), 1.0)], "{policy}");
        assert_eq!(world.reports(), [(1, Outcome::Cancelled, 0)]);
        world.idle();
    }
    // Too large with its configuration: never sent, so neither an attempt nor a retry.
    let mut world = World::new();
    world.machine.set_max_payload(20_000);
    world.invoke(&json!({"payload": {"a": "x".repeat(3_000)}}));
    let decision = Decision {
        config: format!(r#"{{"b": "{}"}}"#, "x".repeat(15_000)).into(),
        ..pre(100, 3)
    };
    world.decide(&decision);
    assert_eq!(world.code(), "invalid_request");
    assert_eq!(refusals(&world), [("caller_error".to_owned(), 1.0)]);
    assert!(
        !world
            .machine
            .metrics
            .render()
            .contains("router_extension_retries_total{")
    );
    assert_eq!(world.reports(), [(1, Outcome::CallerError, 0)]);
    world.idle();
}
