//! What no message may ever do to the machine, one function for each shape that others write: requests for an extension and
//! for a pipeline, the replies of services, and the registry as a document. A function panics where a promise is broken. The
//! tests below throw bodies at them that were good before they were damaged; `fuzz/` throws whatever reaches more of the code.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use ext_registry_core::outcome::Outcome;
use ext_registry_core::policy::PolicyDocument;
use serde_json::value::RawValue;
use serde_json::{Value as Json, json};

use super::contract::{Kind, PROTECTED};
use super::limits::{Limits, check_jsonb};
use super::mux::Inbox;
use super::policies::Found;
use super::request::Asked;
use super::{Decision, Machine, MachineSettings, Report};
use crate::image::Image;
use crate::metrics::Metrics;
use crate::transport::{Channel, Inbound, Outbound};

/// Not the first moment of the process: sums of times must not run over.
const START_US: u64 = 60_000_000;

/// A machine, what it has reported, and how many tickets it was given.
struct World {
    machine: Machine,
    now: u64,
    tickets: i64,
    reports: Vec<Report>,
}

impl World {
    fn new() -> Self {
        let settings = MachineSettings {
            limits: Limits::default(),
            max_in_flight: 100,
            max_per_extension: 50,
            max_bytes: 8 << 20,
            max_call_us: 30_000_000,
            decide_timeout_us: 250_000,
            record: Some(0.5),
            second_opinion: false,
            retry_share: 0.2,
            retry_per_second: 100.0,
            policy_max_age_us: 1_000_000,
        };
        let mut machine = Machine::new(settings, Inbox::new("_INBOX.t"), Metrics::new(false), 7);
        machine.on_time(START_US);
        Self {
            machine,
            now: START_US,
            tickets: 0,
            reports: Vec::new(),
        }
    }

    /// Sends a request; its refusal, if it was refused at once: with nothing asked, reported or kept.
    fn request(&mut self, asked: Asked, body: &[u8]) -> Option<String> {
        let subject = match asked {
            Asked::Invoke => "p.invoke.ext",
            Asked::Route => "p.route",
        };
        let body = Bytes::copy_from_slice(body);
        let message = Inbound::new(Channel::Invoke, subject, Some("caller"), body);
        self.machine.on_request(asked, &message, self.now);
        let sent = self.sent();
        if sent.is_empty() {
            return None;
        }
        let code = only_refusal(&sent);
        assert!(self.machine.take_questions(false, 10).is_empty());
        assert!(self.machine.take_questions(true, 10).is_empty());
        assert!(self.machine.policies.take_wanted().is_empty());
        self.idle();
        Some(code)
    }

    fn sent(&mut self) -> Vec<Outbound> {
        let sent: Vec<Outbound> = self.machine.take_outbound().collect();
        for message in &sent {
            for (name, value) in message.headers.iter() {
                assert!(!value.contains(['\r', '\n']), "{name}: {value:?}");
            }
        }
        sent
    }

    /// Answers all questions, allowed, with the type that belongs to the extension; the attempts that were sent for it, and
    /// what else was.
    fn decide(&mut self) -> Vec<Outbound> {
        loop {
            let mut questions = self.machine.take_questions(false, 100);
            questions.extend(self.machine.take_questions(true, 100));
            if questions.is_empty() {
                return self.sent();
            }
            for question in questions {
                let preview = self.machine.is_preview(&question);
                context_is_sound(&question.context);
                self.tickets += i64::from(!preview);
                let kind = match question.extension_id.as_bytes()[0] {
                    b'v' => Kind::Validator,
                    b'p' => Kind::Provider,
                    b'z' => Kind::Post,
                    _ => Kind::Pre,
                };
                let decision = Decision {
                    allowed: true,
                    reason: "ok".to_owned(),
                    retry_after_ms: None,
                    kind: Some(kind),
                    version: Some("v1".to_owned()),
                    instance_id: None,
                    subject: Some("svc".to_owned()),
                    timeout_ms: 100,
                    retry: 0,
                    config: Bytes::from_static(br#"{"a":1}"#),
                    ticket: if preview { 0 } else { self.tickets },
                    local: false,
                };
                self.machine.on_decision(&question, Ok(decision), self.now);
            }
        }
    }

    fn reply_to(&mut self, attempt: &Outbound, body: &Bytes) {
        let subject = attempt.reply.clone().expect("an attempt");
        let message = Inbound::new(Channel::Reply, &subject, None, body.clone());
        self.machine.on_reply(&message, self.now);
    }

    fn reports(&mut self) -> Vec<(i64, Outcome)> {
        let new = self.machine.take_reports(1000);
        self.reports.extend(new.iter().cloned());
        new.iter().map(|report| (report.ticket, report.outcome)).collect()
    }

    /// Nothing is under way, and each ticket was reported once.
    fn idle(&mut self) {
        self.reports();
        let mut tickets: Vec<i64> = self.reports.iter().map(|report| report.ticket).collect();
        tickets.sort_unstable();
        assert_eq!(tickets, (1..=self.tickets).collect::<Vec<_>>());
        let machine = &self.machine;
        assert_eq!(
            (machine.in_flight(), machine.bytes_in_flight(), machine.wheel.len()),
            (0, 0, 0)
        );
    }
}

/// The code of the only message, which is a refusal as documented.
#[track_caller]
fn only_refusal(sent: &[Outbound]) -> String {
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].subject.as_str(), "caller");
    let body: Json = serde_json::from_slice(&sent[0].payload).expect("a refusal is JSON");
    assert_eq!(body["ok"], false, "{body}");
    let number = sent[0]
        .headers
        .iter()
        .find(|(name, _)| *name == "Nats-Service-Error-Code");
    let number: u16 = number.expect("a number").1.parse().expect("a number");
    let text = sent[0].headers.iter().find(|(name, _)| *name == "Nats-Service-Error");
    assert!(text.is_some_and(|(_, text)| !text.is_empty()));
    let code = body["error"]["code"].as_str().expect("a code");
    assert!(
        DOCUMENTED.contains(&(code, number)),
        "{code} {number} is not documented"
    );
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.len() < 2_000));
    code.to_owned()
}

/// Every code that a caller may see.
const DOCUMENTED: [(&str, u16); 15] = [
    ("extension_not_found", 404),
    ("policy_not_found", 404),
    ("extension_timeout", 504),
    ("deadline_exceeded", 504),
    ("extension_unavailable", 503),
    ("registry_unavailable", 503),
    ("overloaded", 503),
    ("extension_error", 502),
    ("validator_blocked", 403),
    ("tenant_not_allowed", 403),
    ("pre_processor_failed", 502),
    ("post_processor_failed", 502),
    ("invalid_request", 400),
    ("unauthorized", 401),
    ("internal", 500),
];

/// Whatever is asked, `jsonb` can hold the context, or a whole batch would fail with it; and who decides without Postgres can
/// read it, and so can the conditions of a pipeline, or they would look at nothing.
fn context_is_sound(context: &[u8]) {
    let context_here: Json = serde_json::from_slice(context).expect("JSON");
    assert!(context_here["trace_id"].is_string());
    check_jsonb(context).expect("jsonb can hold it");
}

/// An object's members, as they are written: numbers may be larger than any of ours.
struct Object(BTreeMap<String, Box<RawValue>>);

impl Object {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("null", |raw| raw.get())
    }

    fn is_object(&self, key: &str) -> bool {
        self.text(key).starts_with('{')
    }

    fn string(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.text(key)).ok()
    }
}

fn object(bytes: &[u8]) -> Option<Object> {
    serde_json::from_slice(bytes).ok().map(Object)
}

/// A request for an extension: one refusal and nothing else, or one call.
pub fn invoke(body: &[u8]) {
    let mut world = World::new();
    if let Some(code) = world.request(Asked::Invoke, body) {
        assert_eq!(code, "invalid_request");
        return;
    }
    let request = object(body).expect("what is taken is an object");
    assert!(request.is_object("payload"));
    let sent = world.decide();
    assert_eq!(sent.len(), 1, "{sent:?}");
    if request.text("dry_run") == "true" {
        let reply = object(&sent[0].payload).expect("JSON");
        assert_eq!((reply.text("ok"), reply.text("dry_run")), ("true", "true"));
        world.idle();
        return;
    }
    let attempt = object(&sent[0].payload).expect("what a service gets is an object");
    assert_eq!(attempt.text("payload"), request.text("payload"));
    let keys: Vec<&str> = attempt.0.keys().map(String::as_str).collect();
    assert_eq!(keys, ["config", "metadata", "payload", "tenant_id", "trace_id"]);
    assert!(attempt.is_object("config") && attempt.is_object("metadata") && attempt.string("trace_id").is_some());
    world.reply_to(&sent[0], &Bytes::from_static(b"{}"));
    let sent = world.sent();
    assert_eq!(
        (sent.len(), sent[0].subject.as_str(), sent[0].payload.as_ref()),
        (1, "caller", &b"{}"[..])
    );
    assert_eq!(world.reports(), [(1, Outcome::Success)]);
    world.idle();
}

/// A request for a pipeline: one refusal and nothing else, or one pipeline.
pub fn route(body: &[u8]) {
    let mut world = World::new();
    if let Some(code) = world.request(Asked::Route, body) {
        assert_eq!(code, "invalid_request");
        return;
    }
    let request = object(body).expect("what is taken is an object");
    assert!(request.is_object("message"));
    let wanted = world.machine.policies.take_wanted();
    assert_eq!(wanted.len(), 1);
    assert_eq!(
        (Some(wanted[0].0.clone()), Some(wanted[0].1.clone())),
        (request.string("tenant_id"), request.string("policy_id"))
    );
    let good = Bytes::from_static(br#"{"output":1}"#);
    play(&mut world, &wanted[0], &mut std::iter::repeat(good));
}

/// A policy with one item for each kind of end.
fn policy() -> Found {
    let document = json!({
        "pre": [{"id": "a_required", "mode": "required"}, {"id": "b_optional", "when": {"status": ["x", "ok"]}}],
        "validators": [{"id": "v_block"}, {"id": "v_warn", "on_fail": "warn"}],
        "providers": [{"name": "p_one", "weight": 1}],
        "fallbacks": [{"when": {"status": ["error"]}, "retry": 1, "to": "p_two"}],
        "post": [{"id": "z_optional"}, {"id": "z_required", "mode": "required"}],
    });
    Found::Policy(Rc::new(PolicyDocument::parse(&document).expect("a good policy")))
}

/// A pipeline from its policy to its end: each attempt gets the next reply. One answer, of the documented shape.
fn play(world: &mut World, key: &(String, String), replies: &mut dyn Iterator<Item = Bytes>) -> Option<Object> {
    let now = world.now;
    world.machine.on_policy(key, &policy(), now);
    let mut to_caller = Vec::new();
    loop {
        let sent = world.decide();
        if sent.is_empty() {
            if world.machine.in_flight() == 0 {
                break;
            }
            // A fallback waits before it tries again.
            world.now += 50_000;
            let now = world.now;
            world.machine.on_time(now);
            continue;
        }
        for message in sent {
            if message.reply.is_none() {
                to_caller.push(message);
                continue;
            }
            assert!(
                object(&message.payload).is_some(),
                "what a service gets is an object: {message:?}"
            );
            let reply = replies.next().unwrap_or_else(|| Bytes::from_static(b"{}"));
            world.reply_to(&message, &reply);
        }
    }
    world.idle();
    assert_eq!(to_caller.len(), 1, "{to_caller:?}");
    let body = object(&to_caller[0].payload).expect("an answer is an object");
    if body.text("ok") != "true" {
        only_refusal(&to_caller);
        return None;
    }
    assert!(body.is_object("message") && body.is_object("metadata") && body.is_object("decision"));
    let executed: Vec<Json> = serde_json::from_str(body.text("executed_extensions")).expect("a list");
    assert!(executed.iter().all(|item| item["id"].is_string()));
    Some(body)
}

const KINDS: [(&str, Kind); 4] = [
    ("pre", Kind::Pre),
    ("v", Kind::Validator),
    ("p", Kind::Provider),
    ("z", Kind::Post),
];

/// The reply of a service of each type: passed on as it is, or an error of the extension; counted once, also if it comes twice.
pub fn reply(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    for (id, kind) in KINDS {
        let mut world = World::new();
        let subject = format!("p.invoke.{id}");
        let request = Inbound::new(
            Channel::Invoke,
            &subject,
            Some("caller"),
            Bytes::from_static(br#"{"payload":{"payload":"x"}}"#),
        );
        world.machine.on_request(Asked::Invoke, &request, world.now);
        let attempt = world.decide().remove(0);
        world.reply_to(&attempt, &body);
        let sent = world.sent();
        let reports = world.reports();
        assert_eq!(reports.len(), 1);
        if reports[0].1 == Outcome::Success {
            let said = object(&body).expect("a success is an object");
            assert_eq!(said.text("error"), "null");
            assert!(kind != Kind::Provider || said.text("output") != "null");
            assert_eq!((sent.len(), &sent[0].payload), (1, &body));
            assert!(sent[0].headers.iter().all(|(name, _)| !name.starts_with("Nats-")));
        } else {
            assert!(matches!(reports[0].1, Outcome::Error | Outcome::InvalidResponse));
            assert_eq!(only_refusal(&sent), "extension_error");
            let text = String::from_utf8_lossy(&sent[0].payload);
            assert!(!text.contains("secret"), "bodies stay out of errors: {text}");
        }
        world.reply_to(&attempt, &body);
        assert!(world.sent().is_empty() && world.reports().is_empty());
        world.idle();
    }
}

/// The replies of a pipeline's services, one a line: one answer, in which the services have not written what is not theirs.
pub fn replies(lines: &[u8]) {
    let request = json!({
        "tenant_id": "t", "policy_id": "p", "request_id": "r", "trace_id": "x", "message": {"payload": "m", "k": 1},
        "metadata": {"status": "ok", "tenant_id": "t", "request_id": "r", "dry_run": false},
    });
    let mut world = World::new();
    assert_eq!(world.request(Asked::Route, request.to_string().as_bytes()), None);
    let key = world.machine.policies.take_wanted().remove(0);
    let mut replies = lines.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice);
    if let Some(answer) = play(&mut world, &key, &mut replies) {
        let metadata = object(answer.text("metadata").as_bytes()).expect("an object");
        for key in PROTECTED {
            let wanted = request["metadata"].get(key).map_or("null".to_owned(), Json::to_string);
            assert_eq!(metadata.text(key), wanted, "{key}");
        }
    }
}

/// Subjects under which no reply was asked for: nothing comes of them.
pub fn subject(bytes: &[u8]) {
    let subject = format!("_INBOX.t.{}", String::from_utf8_lossy(bytes));
    let mut world = World::new();
    assert_eq!(world.request(Asked::Invoke, br#"{"payload":{}}"#), None);
    let attempt = world.decide().remove(0);
    if attempt.reply.as_deref() == Some(&subject) {
        return;
    }
    let message = Inbound::new(Channel::Reply, &subject, None, Bytes::from_static(b"{}"));
    world.machine.on_reply(&message, world.now);
    assert!(world.sent().is_empty() && world.reports().is_empty());
    world.reply_to(&attempt, &Bytes::from_static(b"{}"));
    assert_eq!(world.sent().len(), 1);
    world.idle();
}

/// The registry as a document, from Postgres or from a file that was changed: refused, or of use, and then each extension is
/// either readable or known not to be.
pub fn image(bytes: &[u8]) {
    let Ok(image) = Image::parse(bytes) else { return };
    let document: Json = serde_json::from_slice(bytes).expect("what is taken is JSON");
    for extension in document["extensions"].as_array().expect("a list") {
        let id = extension["id"].as_str().unwrap_or_default();
        assert!(image.extension(id).is_some() || image.is_unreadable(id), "{extension}");
    }
    for policy in document["policies"].as_array().expect("a list") {
        let key = ["tenant_id", "policy_id"].map(|key| policy[key].as_str().unwrap_or_default().to_owned());
        let [tenant, id] = key;
        if let Some(document) = image.policy(&(tenant, id)) {
            assert!(matches!(Found::parsed(document), Found::Policy(_) | Found::Broken(_)));
        }
    }
}

/// A way in.
#[cfg(test)]
type Target = fn(&[u8]);

/// Every way in, by the name of its fuzz target and of its folder in `fuzz/corpus/`.
#[cfg(test)]
const TARGETS: [(&str, Target); 6] = [
    ("invoke", invoke),
    ("route", route),
    ("reply", reply),
    ("replies", replies),
    ("image", image),
    ("subject", subject),
];

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    /// Good ones first, then what would pass if one check were not there.
    const REQUESTS: [&str; 11] = [
        r#"{"payload":{"text":"x","n":[1,2.5e3,-0]},"tenant_id":"t","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","request_id":"r","policy_id":"p","metadata":{"a":"b"},"context":{"c":{"d":[true,null]}},"config":{"e":1},"timeout_ms":500,"dry_run":false}"#,
        r#"{"tenant_id":"t","policy_id":"p","message":{"payload":"x"},"metadata":{"status":"x"},"context":{},"timeout_ms":500}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","dry_run":true}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","timeout_ms":18446744073709551615}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","context":{"a":["\u0000"]}}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","metadata":{"\ud800":1}}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","context":{"a":1e99999,"b":[{"c":-0.1E+7}]}}"#,
        r#"{"payload":{},"message":{},"tenant_id":"t","policy_id":"p","metadata":{"status":"x"},"context":{"a":-1.5E+400}}"#,
        r#"{"payload":{},"message":{},"tenant_id":"\udc00\ud800","policy_id":"p"}"#,
        r#"[{},{},"t","x","r","p",{},{},{},500,false]"#,
        r#"{"payload":{"payload":{"payload":{}}},"message":{},"tenant_id":"t","policy_id":"p","payload":{}}"#,
    ];
    const REPLIES: [&str; 5] = [
        r#"{"payload":{"text":"secret"},"metadata":{"a":{"b":1},"tenant_id":"other","dry_run":true}}"#,
        r#"{"status":"reject","reason":"secret","details":{"a":1}}"#,
        r#"{"provider_id":"p","output":{"text":"secret"},"usage":{"n":1},"metadata":{"status":"x"}}"#,
        r#"{"error":{"code":"secret","message":"secret"}}"#,
        r#"{"payload":"text","output":"x","error":null,"metadata":{"tenant_id":"other","policy_id":"q","dry_run":true,"x":1}}"#,
    ];
    const FRAGMENTS: [&str; 40] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1e999",
        "1e99999",
        "18446744073709551615",
        "18446744073709551616",
        "0.5",
        "\\u0000",
        "\\ud800",
        "\\udc00\\ud800",
        "\"\\u0000\":1,",
        "\r\n",
        "\u{feff}",
        "\u{2028}",
        "\"payload\":",
        "\"message\":",
        "\"metadata\":",
        "\"context\":",
        "\"config\":",
        "\"timeout_ms\":",
        "\"dry_run\":",
        "\"tenant_id\":",
        "\"error\":",
        "\"output\":",
        "\"status\":",
        "\"usage\":",
        "{}",
        "[]",
        "\"\"",
    ];

    struct Damage(fastrand::Rng);

    impl Damage {
        fn place(&mut self, bytes: &[u8]) -> usize {
            self.0.usize(0..=bytes.len())
        }

        fn once(&mut self, bytes: &mut Vec<u8>) {
            let (a, b) = (self.place(bytes), self.place(bytes));
            let (from, to) = (a.min(b), a.max(b));
            match self.0.u8(0..9) {
                0 if from < bytes.len() => bytes[from] = self.0.u8(..),
                1 if from < bytes.len() => bytes[from] ^= 1 << self.0.u8(0..8),
                2 => drop(bytes.drain(from..to.min(from + 20))),
                3 => bytes.truncate(from),
                4 => {
                    let part = bytes[from..to.min(from + 60)].to_vec();
                    let place = self.place(bytes);
                    bytes.splice(place..place, part);
                }
                5 => {
                    // Whole values in the place of others.
                    let end = bytes[from..]
                        .iter()
                        .position(|b| matches!(b, b',' | b'}'))
                        .map_or(to, |at| from + at);
                    let start = bytes[..from].iter().rposition(|b| *b == b':').map_or(from, |at| at + 1);
                    let value = *self.0.choice(&FRAGMENTS).expect("some");
                    bytes.splice(start..end.max(start), value.bytes());
                }
                6 => {
                    let (open, close) = *self.0.choice(&[("{\"a\":", "}"), ("[", "]")]).expect("some");
                    let depth = self.0.usize(1..300);
                    let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                    bytes.splice(from..from, nested.into_bytes());
                }
                _ => {
                    let fragment = *self.0.choice(&FRAGMENTS).expect("some");
                    bytes.splice(from..from, fragment.bytes());
                }
            }
        }

        fn body(&mut self, good: &[&str]) -> Vec<u8> {
            let mut bytes = self.0.choice(good).expect("some").as_bytes().to_vec();
            for _ in 0..self.0.u8(0..5) {
                self.once(&mut bytes);
            }
            bytes
        }
    }

    /// Bodies that were good and are damaged, with what they are thrown at: so many, or HOSTILE_TIMES as many.
    fn throw(times: usize, mut make: impl FnMut(&mut Damage) -> Vec<u8>, at: impl Fn(&[u8])) {
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("after 1970")
                .as_nanos() as u64
        };
        let seed = std::env::var("HOSTILE_SEED").map_or_else(|_| clock(), |text| text.parse().expect("a number"));
        println!("HOSTILE_SEED={seed}");
        let more = std::env::var("HOSTILE_TIMES").map_or(1, |text| text.parse().expect("a number"));
        let mut damage = Damage(fastrand::Rng::with_seed(seed));
        for _ in 0..times * more {
            let body = make(&mut damage);
            let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| at(&body)));
            assert!(broken.is_ok(), "{:?}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn the_corpus_breaks_no_promise() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let mut files = 0;
            for entry in std::fs::read_dir(root.join(name)).expect("a folder for each target") {
                let path = entry.expect("a readable folder").path();
                let bytes = std::fs::read(&path).expect("a readable file");
                let kept = std::panic::catch_unwind(|| target(&bytes)).is_ok();
                assert!(kept, "{} breaks a promise", path.display());
                files += 1;
            }
            assert!(files >= 3, "{name} has only {files} files");
        }
    }

    #[test]
    fn no_request_for_an_extension_breaks_a_promise() {
        throw(2_000, |damage| damage.body(&REQUESTS), invoke);
    }

    #[test]
    fn no_request_for_a_pipeline_breaks_a_promise() {
        throw(2_000, |damage| damage.body(&REQUESTS), route);
    }

    #[test]
    fn no_reply_of_a_service_breaks_a_promise() {
        throw(1_000, |damage| damage.body(&REPLIES), reply);
    }

    #[test]
    fn no_replies_of_a_pipelines_services_break_a_promise() {
        let lines = |damage: &mut Damage| {
            // Most are good, or few pipelines would get far.
            let line = |_| match damage.0.u8(0..3) {
                0 => damage.body(&REPLIES),
                _ => REPLIES[4].as_bytes().to_vec(),
            };
            (0..8).map(line).collect::<Vec<_>>().join(&b'\n')
        };
        throw(600, lines, replies);
    }

    #[test]
    fn no_image_breaks_a_promise() {
        let good = [
            r#"{"extensions":[{"id":"a","type":"pre","subject":"s.a","versions":[{"version":"v2","subject":"s.b","rollout_percent":5,"routing_rules":{"tenant_id":["t"]}}],"instances":[{"instance_id":"i","subject":"s.i","weight":3}]},{"id":"b","type":"post","subject":"s"}],"policies":[{"tenant_id":"t","policy_id":"p","enabled":true,"document":{"pre":[{"id":"a"}]}}]}"#,
        ];
        assert!(Image::parse(good[0].as_bytes()).is_ok_and(|image| image.extension("a").is_some()));
        throw(2_000, |damage| damage.body(&good), image);
    }

    #[test]
    fn no_subject_breaks_a_promise() {
        let good = ["0.0", "1.1", "0000000000000000.1", "AAAA.AAAA", "a-b.c_d", ""];
        throw(400, |damage| damage.body(&good), subject);
    }
}
