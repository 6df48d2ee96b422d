//! The four extensions of `fixtures/`, served over NATS by the contract between the bridge and a service: one of each
//! type, small enough to start a real one from.
//!
//! Each is served as `v1` and `v2`, on its subject by convention and, for every `--instance NAME`, on `<subject>.NAME`.
//! They are NATS micro services too: `$SRV.PING.normalize_text` is answered.
//!
//! To see what happens when a service misbehaves, tell it to, at `demo.control.<extension>[.vN[.<instance>]]`:
//!
//! ```json
//! {"mode": "hang"}
//! ```
//!
//! | mode | what it does |
//! |---|---|
//! | `ok` | answers as it should |
//! | `error` | answers with an `error` in the body |
//! | `service_error` | answers with the error headers of NATS micro services |
//! | `hang` | never answers |
//! | `slow` | answers as it should, after `"ms"` more milliseconds |
//! | `garbage` | answers with something that is not JSON |
//! | `twice` | answers as it should, two times |
//!
//! A setting replaces those of all versions and instances beneath it. The reply, also to `{}`, which sets nothing, tells
//! how many requests have arrived: `{"ok": true, "served": 12}`.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_nats::service::{Request, ServiceExt, error::Error as ServiceError};
use clap::Parser;
use futures_util::StreamExt;
use regex::Regex;
use serde_json::{Value, json};

/// Serves the example extensions, and misbehaves on request.
#[derive(Parser)]
struct Arguments {
    /// The NATS server.
    #[arg(long, env = "NATS_URL", default_value = "nats://127.0.0.1:4222")]
    nats_url: String,
    /// An instance to serve beside the version's own subject, on `<subject>.<NAME>`; may be given several times.
    #[arg(long = "instance", value_name = "NAME")]
    instances: Vec<String>,
}

/// What a service does with a request, given it and the version it was sent to.
type Answer = fn(&Value, &str) -> Result<Value, String>;

/// Extension, the part of the subject that stands for its type, and what it does.
const EXTENSIONS: [(&str, &str, Answer); 4] = [
    ("normalize_text", "beamline.ext.pre", normalize_text),
    ("pii_guard", "beamline.ext.validate", pii_guard),
    ("mask_pii", "beamline.ext.post", mask_pii),
    ("test_provider", "beamline.provider", test_provider),
];
const VERSIONS: [(&str, &str); 2] = [("v1", "1.0.0"), ("v2", "2.0.0")];
const CONTROL: &str = "demo.control";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments = Arguments::parse();
    let client = async_nats::connect(&arguments.nats_url).await?;
    let switchboard = Arc::new(Switchboard::default());

    let mut services = Vec::new();
    for (extension, prefix, answer) in EXTENSIONS {
        for (version, number) in VERSIONS {
            let service = client.service_builder().start(extension, number).await?;
            let own = (
                format!("{extension}.{version}"),
                format!("{prefix}.{extension}.{version}"),
            );
            let instances = arguments
                .instances
                .iter()
                .map(|name| (format!("{}.{name}", own.0), format!("{}.{name}", own.1)));
            for (target, subject) in std::iter::once(own.clone()).chain(instances) {
                switchboard.add(&target);
                let mut requests = service.endpoint(&subject).await?;
                let (client, switchboard) = (client.clone(), Arc::clone(&switchboard));
                tokio::spawn(async move {
                    while let Some(request) = requests.next().await {
                        let behaviour = switchboard.arrived(&target);
                        tokio::spawn(serve(client.clone(), request, behaviour, answer, version));
                    }
                });
            }
            services.push(service);
        }
    }

    let mut control = client.subscribe(format!("{CONTROL}.>")).await?;
    // A round trip: the server knows of all subscriptions when its answer is here.
    client.flush().await?;
    println!("ready");
    while let Some(message) = control.next().await {
        let target = message.subject.trim_start_matches(CONTROL).trim_start_matches('.');
        let answer = match switchboard.set(target, &message.payload) {
            Ok(served) => json!({ "ok": true, "served": served }),
            Err(error) => json!({ "ok": false, "error": error }),
        };
        println!("{target} {} -> {answer}", String::from_utf8_lossy(&message.payload));
        if let Some(reply) = message.reply {
            client.publish(reply, answer.to_string().into()).await?;
        }
    }
    Ok(())
}

/// How a target behaves at present.
#[derive(Clone, Copy, Default)]
enum Behaviour {
    #[default]
    Ok,
    Error,
    ServiceError,
    Hang,
    Slow(Duration),
    Garbage,
    Twice,
}

/// What each target was told to do, and how many requests it got. A target is `<extension>[.vN[.<instance>]]`.
#[derive(Default)]
struct Switchboard {
    behaviours: Mutex<HashMap<String, Behaviour>>,
    served: Mutex<HashMap<String, u64>>,
}

impl Switchboard {
    /// Makes a target known that requests can arrive at.
    fn add(&self, target: &str) {
        self.served.lock().unwrap().insert(target.to_owned(), 0);
    }

    /// Counts a request; how it is to be treated: by the closest setting.
    fn arrived(&self, target: &str) -> Behaviour {
        *self.served.lock().unwrap().get_mut(target).expect("added at start") += 1;
        let behaviours = self.behaviours.lock().unwrap();
        std::iter::successors(Some(target), |name| name.rsplit_once('.').map(|(parent, _)| parent))
            .find_map(|name| behaviours.get(name).copied())
            .unwrap_or_default()
    }

    /// Carries out a control message; the requests so far at `target` and beneath.
    fn set(&self, target: &str, message: &[u8]) -> Result<u64, String> {
        let beneath = |name: &str| {
            name.strip_prefix(target)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let served: Vec<u64> = self
            .served
            .lock()
            .unwrap()
            .iter()
            .filter(|(name, _)| beneath(name))
            .map(|(_, count)| *count)
            .collect();
        if served.is_empty() {
            return Err(format!("unknown target '{target}'"));
        }
        let message: Value = serde_json::from_slice(message).map_err(|error| error.to_string())?;
        if let Some(mode) = message.get("mode") {
            let behaviour = match mode.as_str() {
                Some("ok") => Behaviour::Ok,
                Some("error") => Behaviour::Error,
                Some("service_error") => Behaviour::ServiceError,
                Some("hang") => Behaviour::Hang,
                Some("slow") => {
                    let ms = message
                        .get("ms")
                        .and_then(Value::as_u64)
                        .ok_or("'slow' needs \"ms\", a whole number")?;
                    Behaviour::Slow(Duration::from_millis(ms))
                }
                Some("garbage") => Behaviour::Garbage,
                Some("twice") => Behaviour::Twice,
                _ => return Err(format!("unknown mode {mode}")),
            };
            let mut behaviours = self.behaviours.lock().unwrap();
            behaviours.retain(|name, _| !beneath(name));
            behaviours.insert(target.to_owned(), behaviour);
        }
        Ok(served.iter().sum())
    }
}

async fn serve(client: async_nats::Client, request: Request, behaviour: Behaviour, answer: Answer, version: &str) {
    let body = serde_json::from_slice(&request.message.payload)
        .map_err(|error| format!("not JSON: {error}"))
        .and_then(|body: Value| answer(&body, version))
        // An error of ours in the form that every type of extension shares.
        .unwrap_or_else(|message| json!({ "error": { "code": "PROCESSING_ERROR", "message": message } }));
    let result = match behaviour {
        Behaviour::Ok => request.respond(Ok(body.to_string().into())).await,
        Behaviour::Error => {
            let body = json!({ "error": { "code": "PROCESSING_ERROR", "message": "failing as told" } });
            request.respond(Ok(body.to_string().into())).await
        }
        Behaviour::ServiceError => {
            request
                .respond(Err(ServiceError {
                    status: "failing as told".to_owned(),
                    code: 500,
                }))
                .await
        }
        Behaviour::Hang => Ok(()),
        Behaviour::Slow(wait) => {
            tokio::time::sleep(wait).await;
            request.respond(Ok(body.to_string().into())).await
        }
        Behaviour::Garbage => request.respond(Ok("<html>502 Bad Gateway</html>".into())).await,
        Behaviour::Twice => {
            if let Some(reply) = request.message.reply.clone() {
                // The first, beside the one that the micro service answers and counts.
                let _ = client.publish(reply, body.to_string().into()).await;
            }
            request.respond(Ok(body.to_string().into())).await
        }
    };
    if let Err(error) = result {
        eprintln!("no answer sent on {}: {error}", request.message.subject);
    }
}

/// pre: trims the text and lower-cases it; `v2` also makes runs of white space one blank. `config.max_length` cuts it.
fn normalize_text(request: &Value, version: &str) -> Result<Value, String> {
    let max_length = match request.pointer("/config/max_length") {
        None => usize::MAX,
        Some(number) => number.as_u64().ok_or("config.max_length is no whole number")? as usize,
    };
    let mut payload = payload_of(request)?.clone();
    change_text(&mut payload, &|text| {
        let text = text.trim().to_lowercase();
        let text = if version == "v2" {
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        } else {
            text
        };
        text.chars().take(max_length).collect()
    });
    Ok(json!({ "payload": payload, "metadata": { "normalized_by": version } }))
}

/// validator: rejects texts with e-mail addresses or card numbers, saying which kinds, never what they are.
fn pii_guard(request: &Value, _version: &str) -> Result<Value, String> {
    let text = payload_of(request)?.to_string();
    let mut found = Vec::new();
    if EMAIL.is_match(&text) {
        found.push("email");
    }
    if CARD.find_iter(&text).any(|number| is_card(number.as_str())) {
        found.push("card");
    }
    if found.is_empty() {
        return Ok(json!({ "status": "ok" }));
    }
    Ok(json!({ "status": "reject", "reason": "pii_detected", "details": { "kinds": found } }))
}

/// post: masks e-mail addresses and card numbers; `v2` leaves a card's last four digits.
fn mask_pii(request: &Value, version: &str) -> Result<Value, String> {
    let mut payload = payload_of(request)?.clone();
    change_text(&mut payload, &|text| {
        let text = EMAIL.replace_all(text, "[email]");
        CARD.replace_all(&text, |number: &regex::Captures<'_>| {
            let number = &number[0];
            if !is_card(number) {
                return number.to_owned();
            }
            if version == "v2" {
                format!("[card ..{}]", &number[number.len() - 4..])
            } else {
                "[card]".to_owned()
            }
        })
        .into_owned()
    });
    Ok(json!({ "payload": payload, "metadata": { "masked_by": version } }))
}

/// provider: answers with its prompt; a token is a word.
fn test_provider(request: &Value, version: &str) -> Result<Value, String> {
    let provider = request
        .get("provider_id")
        .and_then(Value::as_str)
        .ok_or("provider_id is missing")?;
    let prompt = match request.get("prompt").ok_or("prompt is missing")? {
        Value::String(prompt) => prompt.clone(),
        other => other.to_string(),
    };
    let tokens = prompt.split_whitespace().count();
    Ok(json!({
        "provider_id": provider,
        "output": format!("echo: {prompt}"),
        "usage": { "prompt_tokens": tokens, "completion_tokens": tokens + 1, "total_tokens": 2 * tokens + 1 },
        "metadata": { "provided_by": version },
    }))
}

static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}").unwrap());
/// 13 to 19 digits, the first twelve in groups of four or not.
static CARD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b(?:[0-9]{4}[ -]?){3}[0-9]{1,7}\b").unwrap());

/// Whether the digits pass the check of Luhn (ISO/IEC 7812-1), as card numbers do.
fn is_card(number: &str) -> bool {
    let digits: Vec<u32> = number.chars().filter_map(|character| character.to_digit(10)).collect();
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            if place % 2 == 0 {
                *digit
            } else {
                digit * 2 - u32::from(*digit > 4) * 9
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

fn payload_of(request: &Value) -> Result<&Value, String> {
    request
        .get("payload")
        .filter(|payload| payload.is_object())
        .ok_or_else(|| "payload is missing or no object".into())
}

/// Changes the texts of a message: what its keys `text` and `payload` hold.
fn change_text(payload: &mut Value, change: &dyn Fn(&str) -> String) {
    for key in ["text", "payload"] {
        match payload.get_mut(key) {
            Some(Value::String(text)) => *text = change(text),
            Some(inner @ Value::Object(_)) => change_text(inner, change),
            _ => {}
        }
    }
}
