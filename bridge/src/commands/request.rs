//! `invoke` and `route`: one request through a running bridge; without one, through a bridge of this process.

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, RequestError, RequestErrorKind};
use clap::Args;
use serde_json::{Map, Value as Json};
use tokio::sync::watch;

use crate::config::{Settings, Source};
use crate::exit::{Exit, Kind};
use crate::metrics::Metrics;
use crate::serve::event_loop::{EventLoop, LoopState, Outlets, Sources};
use crate::serve::keeper::Keeper;
use crate::transport::{self, Denials, Denied};

#[derive(Debug, Args)]
struct Common {
    /// Tenant
    #[arg(long, alias = "tenant-id", value_name = "ID")]
    tenant: Option<String>,
    /// Facts for the decision: a JSON object
    #[arg(long, value_name = "JSON")]
    context: Option<String>,
    /// Metadata: a JSON object
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// Trace
    #[arg(long, value_name = "ID")]
    trace_id: Option<String>,
    /// Request
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Deadline of the whole, in ms
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Only show who would serve
    #[arg(long)]
    dry_run: bool,
}

/// Flags of `invoke`.
#[derive(Debug, Args)]
pub struct InvokeArgs {
    /// The extension
    id: String,
    /// The payload: a JSON object, @FILE, or - for standard input
    #[arg(long, value_name = "JSON", default_value = "{}")]
    payload: String,
    /// Laid over the registered configuration: a JSON object
    #[arg(long, value_name = "JSON")]
    config_json: Option<String>,
    /// Policy, as a fact for the decision
    #[arg(long, alias = "policy-id", value_name = "ID")]
    policy: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Flags of `route`.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// The policy
    policy: String,
    /// The message: a JSON object, @FILE, or - for standard input
    #[arg(long, alias = "payload", value_name = "JSON", default_value = "{}")]
    message: String,
    #[command(flatten)]
    common: Common,
}

fn json(what: &str, text: &str) -> Result<Json, Exit> {
    let read = |e: std::io::Error| Exit::new(Kind::Config, format!("--{what}: {e}"));
    let text = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(read)?,
        None if text == "-" => {
            let mut all = String::new();
            std::io::stdin().read_to_string(&mut all).map_err(read)?;
            all
        }
        None => text.to_owned(),
    };
    serde_json::from_str(&text).map_err(|e| Exit::new(Kind::Config, format!("--{what} is not valid JSON: {e}")))
}

impl Common {
    fn into_body(self, key: &str, main: Json) -> Result<Map<String, Json>, Exit> {
        let mut body = Map::new();
        body.insert(key.to_owned(), main);
        for (key, value) in [
            ("tenant_id", self.tenant),
            ("trace_id", self.trace_id),
            ("request_id", self.request_id),
        ] {
            if let Some(value) = value {
                body.insert(key.to_owned(), value.into());
            }
        }
        for (key, value) in [("context", self.context), ("metadata", self.metadata)] {
            if let Some(value) = value {
                body.insert(key.to_owned(), json(key, &value)?);
            }
        }
        if let Some(ms) = self.timeout_ms {
            body.insert("timeout_ms".to_owned(), ms.into());
        }
        if self.dry_run {
            body.insert("dry_run".to_owned(), true.into());
        }
        Ok(body)
    }
}

/// `ext-bridge invoke ID`.
pub async fn invoke(settings: Settings, args: InvokeArgs) -> Result<ExitCode, Exit> {
    ext_registry_core::ident::check_id("extension id", &args.id).map_err(|e| Exit::new(Kind::Config, e.to_string()))?;
    let mut body = args.common.into_body("payload", json("payload", &args.payload)?)?;
    if let Some(policy) = args.policy {
        body.insert("policy_id".to_owned(), policy.into());
    }
    if let Some(config) = args.config_json {
        body.insert("config".to_owned(), json("config-json", &config)?);
    }
    ask(settings, &format!("invoke.{}", args.id), body).await
}

/// `ext-bridge route POLICY`.
pub async fn route(settings: Settings, args: RouteArgs) -> Result<ExitCode, Exit> {
    let mut body = args.common.into_body("message", json("message", &args.message)?)?;
    body.insert("policy_id".to_owned(), args.policy.into());
    ask(settings, "route", body).await
}

async fn ask(settings: Settings, subject: &str, body: Map<String, Json>) -> Result<ExitCode, Exit> {
    let way = transport::client(&settings.nats)
        .await
        .map_err(|e| Exit::new(Kind::Nats, e.to_string()))?;
    let wait = Duration::from_micros(settings.machine.max_call_us) + Duration::from_secs(5);
    let body = Json::Object(body).to_string();
    let reply = match request(&way, format!("{}.{subject}", settings.prefix), &body, wait).await {
        Err(Failed::Request(error)) if error.kind() == RequestErrorKind::NoResponders => {
            here(settings, &way, subject, &body, wait).await?
        }
        other => other?,
    };
    let failed = reply
        .headers
        .as_ref()
        .is_some_and(|h| h.get("Nats-Service-Error-Code").is_some());
    match serde_json::from_slice::<Json>(&reply.payload) {
        Ok(json) => println!("{json:#}"),
        Err(_) => println!("{}", String::from_utf8_lossy(&reply.payload)),
    }
    Ok(if failed {
        ExitCode::from(Kind::Refused as u8)
    } else {
        ExitCode::SUCCESS
    })
}

/// A connection, and what is denied to it.
type Way = (Client, Arc<Denials>);

/// Why there is no reply.
enum Failed {
    Denied(Denied),
    Request(RequestError),
}

impl From<Failed> for Exit {
    fn from(failed: Failed) -> Self {
        let why = match failed {
            Failed::Denied(denied) => denied.to_string(),
            Failed::Request(error) => error.to_string(),
        };
        Self::new(Kind::Nats, format!("no reply: {why}"))
    }
}

/// Asks, and waits for the reply no longer than there may be one.
async fn request(
    (client, denials): &Way,
    subject: String,
    body: &str,
    wait: Duration,
) -> Result<async_nats::Message, Failed> {
    let begin = Instant::now();
    let request = async_nats::Request::new()
        .payload(body.to_owned().into())
        .headers(HeaderMap::new())
        .timeout(Some(wait));
    tokio::select! {
        reply = client.send_request(subject, request) => reply.map_err(Failed::Request),
        denied = denials.wait(begin, |_| true) => Err(Failed::Denied(denied)),
    }
}

/// Nobody serves: a loop of this process does, under a prefix of its own.
async fn here(
    mut settings: Settings,
    way: &Way,
    subject: &str,
    body: &str,
    wait: Duration,
) -> Result<async_nats::Message, Exit> {
    settings.prefix = format!("ext-bridge.{}", uuid::Uuid::new_v4().simple());
    settings.machine.decide_timeout_us = settings.machine.decide_timeout_us.max(5_000_000);
    let sources = match settings.source {
        Source::Fixtures => Sources::fixtures(crate::serve::local::fixtures(&settings.fixtures)?),
        Source::Database => {
            let found = crate::pg::connect(&settings.database).await;
            found
                .map_err(|e| Exit::new(Kind::Postgres, format!("no bridge is running, and {e}")))?
                .1
                .abort();
            Sources::database()
        }
        Source::Auto if crate::serve::postgres_answers(&settings).await => Sources::database(),
        Source::Auto => {
            let (_, kept) = Keeper::open(&settings);
            let fixtures = crate::serve::local::fixtures(&settings.fixtures);
            let image = kept.borrow().is_some();
            Sources {
                postgres: false,
                expected: false,
                kept: Some(kept),
                nearby: None,
                fixtures: watch::channel(if image { None } else { Some(fixtures?) }).1,
            }
        }
    };
    let nearby = settings.decide.clone().filter(|_| sources.postgres);
    let sources = Sources {
        nearby: nearby.map(|nearby| watch::channel(Arc::new(nearby)).1),
        ..sources
    };
    let (admin, _requests) = tokio::sync::mpsc::unbounded_channel();
    let (event_loop, handle) = EventLoop::start(
        &settings,
        0,
        watch::channel(Arc::new(settings.database.clone())).1,
        sources,
        Metrics::new(false),
        Arc::new(LoopState::default()),
        Outlets { admin, spans: None },
    )
    .await
    .map_err(|e| Exit::new(Kind::Nats, e.to_string()))?;
    let ended = async {
        let reply = request(way, format!("{}.{subject}", settings.prefix), body, wait).await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let _ = handle.send(crate::serve::event_loop::Control::Drain(Duration::from_secs(1), tell));
        let _ = told.await;
        reply
    };
    let (reply, ()) = tokio::join!(ended, event_loop.run());
    Ok(reply?)
}
