//! Settings: flags, environment, one TOML file, defaults, in this order of precedence.
//!
//! Every flag has a variable `EXT_BRIDGE_<FLAG>` and a key of the same name in the file. Variables of the system this one
//! replaces (`EXTENSION_REGISTRY_*`, `NATS_URL`) and of Postgres (`PG*`) count as environment, after `EXT_BRIDGE_*`.

mod conninfo;
mod database;
mod file;
mod names;
mod nats;
mod options;
mod pgpass;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use database::{database, default_image, nearby};

pub use database::registry_name;
pub use names::unknown_variables;
pub use options::{Options, Span};

use crate::exit::{Exit, Kind};
use crate::logging::Logging;
use crate::machine::MachineSettings;
use crate::machine::limits::{Limits, MAX_DEPTH};
use crate::pg::Database;
use crate::transport::NatsSettings;

/// Where decisions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Database,
    Fixtures,
    Auto,
}

impl Source {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Fixtures => "fixtures",
            Self::Auto => "auto",
        }
    }
}

/// All settings, resolved.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What was set, wherever it was set.
    pub options: Box<Options>,
    /// Where decisions come from.
    pub source: Source,
    /// The folder with `extensions/` and `policies/`.
    pub fixtures: PathBuf,
    /// The file of the last known good image; `None` where there is no place for one.
    pub image: Option<PathBuf>,
    /// The age from which it no longer decides.
    pub image_max_age: Duration,
    /// The log.
    pub logging: Logging,
    /// The first part of every subject.
    pub prefix: String,
    /// NATS.
    pub nats: NatsSettings,
    /// Postgres.
    pub database: Database,
    /// The standby that decides in its place.
    pub decide: Option<Database>,
    /// HTTP.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// Allows admin operations.
    pub api_key: Option<String>,
    /// Event loops.
    pub loops: usize,
    /// The machine's.
    pub machine: MachineSettings,
    /// Most questions in one batch.
    pub batch: usize,
    /// How long calls under way may take after SIGTERM.
    pub drain_timeout: Duration,
    /// The collector that spans go to.
    pub otlp_endpoint: Option<String>,
    /// Whether invocations carry `tenant_id` in `/metrics`.
    pub metrics_tenant_label: bool,
    /// How often instances are asked whether they are well.
    pub probe_interval: Option<Duration>,
    /// How often services that register themselves are looked for.
    pub discover: Option<Duration>,
}

fn wrong(key: &str, value: impl std::fmt::Display, wanted: &str) -> Exit {
    Exit::new(Kind::Config, format!("{key}: \"{value}\" is not {wanted}"))
}

fn bounded<T: PartialOrd + Copy + std::fmt::Display>(key: &str, value: T, low: T, high: T) -> Result<T, Exit> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(wrong(key, value, &format!("between {low} and {high}")))
    }
}

/// A collector's address names a scheme and a host; what else there may be is of OTLP over HTTP.
fn check_collector(at: &str) -> Result<(), Exit> {
    let host = at.strip_prefix("http://").or_else(|| at.strip_prefix("https://"));
    let sound = at
        .parse::<tonic::transport::Uri>()
        .is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    if host.is_none() || !sound {
        return Err(wrong("otlp-endpoint", at, "an address such as http://127.0.0.1:4317"));
    }
    Ok(())
}

/// How often services may be looked at.
fn often(key: &str, span: Span) -> Result<Duration, Exit> {
    let ms = bounded(&format!("{key} in ms"), span.0.as_millis() as u64, 100, 3_600_000)?;
    Ok(Duration::from_millis(ms))
}

/// The first of these variables that is set and not empty.
fn environment(names: &[&str]) -> Option<String> {
    names
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A part of an address with its `%41` read. What is none stays as it is.
fn unescaped(text: &str) -> String {
    percent_encoding::percent_decode_str(text)
        .decode_utf8_lossy()
        .into_owned()
}

impl Settings {
    /// Whether requests can be read on their way to NATS.
    pub fn nats_is_exposed(&self) -> bool {
        !self.nats.by_tls() && self.nats.servers.iter().any(|server| nats::is_exposed(server))
    }

    /// Resolves the settings from the flags and `EXT_BRIDGE_*` (which clap has merged), the rest of the environment, the file.
    pub fn resolve(flags: Options) -> Result<Self, Exit> {
        let file = match &flags.config {
            Some(path) => file::read(path)?,
            None => Options::default(),
        };
        let env = Options {
            source: environment(&["EXTENSION_REGISTRY_SOURCE"]),
            otlp_endpoint: environment(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]),
            nats_url: environment(&["NATS_URL"]),
            db_host: environment(&["EXTENSION_REGISTRY_DB_HOST", "PGHOST"]),
            db_port: match environment(&["EXTENSION_REGISTRY_DB_PORT", "PGPORT"]) {
                Some(text) => Some(text.parse().map_err(|_| wrong("database port", &text, "a port"))?),
                None => None,
            },
            db_name: environment(&["EXTENSION_REGISTRY_DB_NAME", "PGDATABASE"]),
            db_user: environment(&["EXTENSION_REGISTRY_DB_USER", "PGUSER"]),
            db_password: environment(&["EXTENSION_REGISTRY_DB_PASSWORD", "PGPASSWORD"]),
            db_sslmode: environment(&["PGSSLMODE"]),
            db_sslrootcert: environment(&["PGSSLROOTCERT"]).map(PathBuf::from),
            db_sslcert: environment(&["PGSSLCERT"]).map(PathBuf::from),
            db_sslkey: environment(&["PGSSLKEY"]).map(PathBuf::from),
            ..Options::default()
        };
        let all = flags.or(env).or(file);
        let source = match all.source.as_deref().unwrap_or("auto") {
            "database" => Source::Database,
            "fixtures" => Source::Fixtures,
            "auto" => Source::Auto,
            other => return Err(wrong("source", other, "database, fixtures or auto")),
        };
        let prefix = all.prefix.clone().unwrap_or_else(|| "beamline.bridge.v1".to_owned());
        ext_registry_core::ident::check_subject("prefix", &prefix)
            .map_err(|e| Exit::new(Kind::Config, e.to_string()))?;
        let address = |key: &str, value: &Option<String>, default: &str| {
            let text = value.clone().unwrap_or_else(|| default.to_owned());
            let text = text.replace("localhost:", "127.0.0.1:");
            text.parse::<SocketAddr>()
                .map_err(|_| wrong(key, &text, "an address such as 127.0.0.1:9464"))
        };
        let limits = Limits {
            message_bytes: bounded(
                "max-message-bytes",
                all.max_message_bytes.unwrap_or(1 << 20),
                1024,
                64 << 20,
            )?,
            metadata_bytes: bounded(
                "max-metadata-bytes",
                all.max_metadata_bytes.unwrap_or(64 << 10),
                1024,
                64 << 20,
            )?,
            reply_bytes: bounded(
                "max-reply-bytes",
                all.max_reply_bytes.unwrap_or(1 << 20),
                1024,
                64 << 20,
            )?,
            depth: bounded("max-json-depth", all.max_json_depth.unwrap_or(10), 2, MAX_DEPTH)?,
            array_items: bounded("max-array-items", all.max_array_items.unwrap_or(1000), 1, 1_000_000)?,
            properties: bounded(
                "max-object-properties",
                all.max_object_properties.unwrap_or(50),
                1,
                1_000_000,
            )?,
        };
        let otlp_endpoint = all.otlp_endpoint.clone().filter(|at| !at.is_empty());
        if let Some(at) = &otlp_endpoint {
            check_collector(at)?;
        }
        let loops = bounded("loops", all.loops.unwrap_or(1), 1, 64)?;
        let us = |span: Option<Span>, default_ms: u64| span.map_or(default_ms * 1000, |s| s.0.as_micros() as u64);
        let share = |whole: usize| whole.div_ceil(loops);
        let machine = MachineSettings {
            limits,
            max_in_flight: share(bounded(
                "max-in-flight",
                all.max_in_flight.unwrap_or(16_384),
                1,
                1_000_000,
            )?),
            max_per_extension: share(bounded(
                "max-in-flight-per-extension",
                all.max_in_flight_per_extension.unwrap_or(4096),
                1,
                1_000_000,
            )?) as u32,
            max_bytes: share(bounded(
                "max-in-flight-bytes",
                all.max_in_flight_bytes.unwrap_or(256 << 20),
                1 << 20,
                usize::MAX,
            )?),
            max_call_us: bounded("max-call in us", us(all.max_call, 30_000), 10_000, 3_600_000_000)?,
            decide_timeout_us: bounded("decide-timeout in us", us(all.decide_timeout, 250), 1_000, 60_000_000)?,
            retry_share: bounded("retry-budget", all.retry_budget.unwrap_or(0.2), 0.0, 10.0)?,
            retry_per_second: bounded(
                "retry-budget-per-second",
                all.retry_budget_per_second.unwrap_or(3.0),
                0.0,
                1e6,
            )? / loops as f64,
            policy_max_age_us: us(all.policy_max_age, 1000),
            record: {
                let share = bounded("otlp-share", all.otlp_share.unwrap_or(1.0), 0.0, 1.0)?;
                otlp_endpoint.is_some().then_some(share)
            },
            second_opinion: false,
        };
        let database = database(&all)?;
        let http = address("http-addr", &all.http_addr, "127.0.0.1:9464")?;
        let grpc = address("grpc-addr", &all.grpc_addr, "127.0.0.1:9000")?;
        if http == grpc && http.port() != 0 {
            return Err(wrong("grpc-addr", grpc, "another address than that of http-addr"));
        }
        Ok(Self {
            source,
            fixtures: all.fixtures.clone().unwrap_or_else(|| PathBuf::from("fixtures")),
            image: all
                .image
                .clone()
                .or_else(|| default_image(&registry_name(&database.config))),
            image_max_age: all.image_max_age.map_or(Duration::from_hours(24), |age| age.0),
            logging: Logging::from(all.log_level.as_deref(), all.log_format.as_deref())?,
            prefix,
            nats: nats::nats(&all)?,
            decide: nearby(&all, &database.config)?,
            database,
            http,
            grpc,
            api_key: all.api_key.clone().filter(|key| !key.is_empty()),
            loops,
            machine,
            batch: bounded("max-batch", all.max_batch.unwrap_or(256), 1, 10_000)?,
            drain_timeout: all.drain_timeout.map_or(Duration::from_secs(30), |s| s.0),
            otlp_endpoint,
            metrics_tenant_label: all.metrics_tenant_label.unwrap_or(false),
            probe_interval: all
                .probe_interval
                .map(|span| often("probe-interval", span))
                .transpose()?,
            discover: {
                let every = all
                    .discover_interval
                    .map(|span| often("discover-interval", span))
                    .transpose()?;
                let every = every.unwrap_or(Duration::from_secs(10));
                all.discover.unwrap_or(false).then_some(every)
            },
            options: Box::new(all),
        })
    }
}
