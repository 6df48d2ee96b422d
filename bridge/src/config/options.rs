//! The flags, which are also the keys of the file.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Deserializer};

/// A length of time such as `250ms`, `30s`, `5m`, `24h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => {
                return Err(format!(
                    "\"{text}\" is not a length of time such as 250ms, 30s, 5m or 24h"
                ));
            }
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| format!("\"{text}\" is not a length of time such as 250ms, 30s, 5m or 24h"))?;
        Ok(Self(Duration::from_millis(number.saturating_mul(unit))))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

macro_rules! options {
    ($( $(#[$meta:meta])* $name:ident : $type:ty, )*) => {
        /// Flags, variables and keys of the file. What is not set is `None`.
        #[derive(Debug, Clone, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Options {
            /// Settings file (TOML); its keys are the names of the flags
            #[arg(long, global = true, env = "EXT_BRIDGE_CONFIG", value_name = "FILE")]
            #[serde(skip)]
            pub config: Option<PathBuf>,
            $( $(#[$meta])* pub $name: Option<$type>, )*
        }

        impl Options {
            /// The names of the keys, as fields.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($name)),*];

            /// The keys that are not set alike.
            pub fn differing(&self, other: &Self) -> Vec<&'static str> {
                let all = [$((stringify!($name), self.$name != other.$name)),*];
                all.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
            }

            /// Fills what is not set from `other`.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { config: self.config.or(other.config), $( $name: self.$name.or(other.$name), )* }
            }
        }
    };
}

options! {
    /// Where decisions come from: database (Postgres only), fixtures (no Postgres), or auto (Postgres, in its absence the image kept of it, else the fixtures) [default: auto]
    #[arg(long, global = true, env = "EXT_BRIDGE_SOURCE", value_name = "SOURCE")]
    source: String,
    /// Folder with extensions/*.json and policies/<tenant>/<policy>.json [default: fixtures]
    #[arg(long, global = true, env = "EXT_BRIDGE_FIXTURES", value_name = "DIR")]
    fixtures: PathBuf,
    /// File of the last known good image of the registry, for source auto [default: one for each database under $STATE_DIRECTORY, $XDG_STATE_HOME/ext-bridge or ~/.local/state/ext-bridge]
    #[arg(long, global = true, env = "EXT_BRIDGE_IMAGE", value_name = "FILE")]
    image: PathBuf,
    /// Age from which the image no longer decides [default: 24h]
    #[arg(long, global = true, env = "EXT_BRIDGE_IMAGE_MAX_AGE", value_name = "TIME")]
    image_max_age: Span,
    /// First part of every subject [default: beamline.bridge.v1]
    #[arg(long, global = true, env = "EXT_BRIDGE_PREFIX", value_name = "SUBJECT")]
    prefix: String,
    /// text or json [default: text]
    #[arg(long, global = true, env = "EXT_BRIDGE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: String,
    /// error, warn, info, debug, trace, or a filter such as ext_bridge=debug [default: info]
    #[arg(long, global = true, env = "EXT_BRIDGE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: String,

    /// Addresses of NATS, separated by commas, with user:password@ or token@ where needed; also NATS_URL [default: nats://127.0.0.1:4222]
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_URL", value_name = "URL", help_heading = "NATS", hide_env_values = true)]
    nats_url: String,
    /// Credentials file (.creds)
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_CREDS", value_name = "FILE", help_heading = "NATS")]
    nats_creds: PathBuf,
    /// User; with --nats-password
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_USER", value_name = "USER", help_heading = "NATS")]
    nats_user: String,
    /// Password (better in the environment or the file: flags can be seen by others on the machine)
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_PASSWORD", value_name = "SECRET", help_heading = "NATS", hide_env_values = true)]
    nats_password: String,
    /// Token
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_TOKEN", value_name = "SECRET", help_heading = "NATS", hide_env_values = true)]
    nats_token: String,
    /// Seed of an nkey
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_NKEY_SEED", value_name = "SECRET", help_heading = "NATS", hide_env_values = true)]
    nats_nkey_seed: String,
    /// Certificates to trust (PEM); makes TLS required
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_TLS_CA", value_name = "FILE", help_heading = "NATS")]
    nats_tls_ca: PathBuf,
    /// Client certificate (PEM)
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_TLS_CERT", value_name = "FILE", help_heading = "NATS")]
    nats_tls_cert: PathBuf,
    /// Key of the client certificate (PEM)
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_TLS_KEY", value_name = "FILE", help_heading = "NATS")]
    nats_tls_key: PathBuf,
    /// Begin with TLS, for a server with handshake_first; makes TLS required
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_TLS_FIRST", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "NATS")]
    nats_tls_first: bool,
    /// First part of the subjects that replies come by, where permissions depend on it [default: _INBOX]
    #[arg(long, global = true, env = "EXT_BRIDGE_NATS_INBOX_PREFIX", value_name = "SUBJECT", help_heading = "NATS")]
    nats_inbox_prefix: String,

    /// Postgres as a URL or key=value list; what it names is not taken from the other flags
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_URL", value_name = "URL", help_heading = "Postgres", hide_env_values = true)]
    db_url: String,
    /// A standby nearby that decides in the place of Postgres, as a URL or key=value list; login and TLS as far as it names none are those of Postgres. Its breakers are its own; outcomes also go to Postgres, into the history
    #[arg(long, global = true, env = "EXT_BRIDGE_DECIDE_URL", value_name = "URL", help_heading = "Postgres", hide_env_values = true)]
    decide_url: String,
    /// Host or socket directory; also EXTENSION_REGISTRY_DB_HOST, PGHOST [default: localhost]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_HOST", value_name = "HOST", help_heading = "Postgres")]
    db_host: String,
    /// Port; also EXTENSION_REGISTRY_DB_PORT, PGPORT [default: 5432]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_PORT", value_name = "PORT", help_heading = "Postgres")]
    db_port: u16,
    /// Database; also EXTENSION_REGISTRY_DB_NAME, PGDATABASE [default: beamline]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_NAME", value_name = "NAME", help_heading = "Postgres")]
    db_name: String,
    /// User; also EXTENSION_REGISTRY_DB_USER, PGUSER [default: beamline]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_USER", value_name = "USER", help_heading = "Postgres")]
    db_user: String,
    /// Password; also EXTENSION_REGISTRY_DB_PASSWORD, PGPASSWORD, PGPASSFILE
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_PASSWORD", value_name = "SECRET", help_heading = "Postgres", hide_env_values = true)]
    db_password: String,
    /// disable, prefer, require, verify-ca or verify-full; also PGSSLMODE [default: prefer]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_SSLMODE", value_name = "MODE", help_heading = "Postgres")]
    db_sslmode: String,
    /// Certificates to trust (PEM), or "system"; also PGSSLROOTCERT [default: ~/.postgresql/root.crt]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_SSLROOTCERT", value_name = "FILE", help_heading = "Postgres")]
    db_sslrootcert: PathBuf,
    /// Client certificate (PEM); also PGSSLCERT [default: ~/.postgresql/postgresql.crt]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_SSLCERT", value_name = "FILE", help_heading = "Postgres")]
    db_sslcert: PathBuf,
    /// Key of the client certificate (PEM); also PGSSLKEY [default: ~/.postgresql/postgresql.key]
    #[arg(long, global = true, env = "EXT_BRIDGE_DB_SSLKEY", value_name = "FILE", help_heading = "Postgres")]
    db_sslkey: PathBuf,

    /// Where /metrics, /healthz and /readyz are served [default: 127.0.0.1:9464]
    #[arg(long, global = true, env = "EXT_BRIDGE_HTTP_ADDR", value_name = "ADDRESS", help_heading = "Endpoints")]
    http_addr: String,
    /// Where gRPC is served [default: 127.0.0.1:9000]
    #[arg(long, global = true, env = "EXT_BRIDGE_GRPC_ADDR", value_name = "ADDRESS", help_heading = "Endpoints")]
    grpc_addr: String,
    /// Key that admin operations must bring as x-api-key; without one they are refused
    #[arg(long, global = true, env = "EXT_BRIDGE_API_KEY", value_name = "SECRET", help_heading = "Endpoints", hide_env_values = true)]
    api_key: String,
    /// Collector that spans of calls are sent to, by OTLP over gRPC; also OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT [default: none, no spans]
    #[arg(long, global = true, env = "EXT_BRIDGE_OTLP_ENDPOINT", value_name = "URL", help_heading = "Endpoints")]
    otlp_endpoint: String,
    /// Share of the traces beginning here that are recorded; traces that come along are recorded where their sender wants that [default: 1]
    #[arg(long, global = true, env = "EXT_BRIDGE_OTLP_SHARE", value_name = "SHARE", help_heading = "Endpoints")]
    otlp_share: f64,
    /// Label invocations with tenant_id
    #[arg(long, global = true, env = "EXT_BRIDGE_METRICS_TENANT_LABEL", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Endpoints")]
    metrics_tenant_label: bool,

    /// Event loops, each with its own thread and connections [default: 1]
    #[arg(long, global = true, env = "EXT_BRIDGE_LOOPS", value_name = "N", help_heading = "Serving")]
    loops: usize,
    /// Longest call where the caller sets no deadline [default: 30s]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_CALL", value_name = "TIME", help_heading = "Serving")]
    max_call: Span,
    /// Longest wait for a decision of Postgres; then the call fails, or, with source auto, the image decides [default: 250ms]
    #[arg(long, global = true, env = "EXT_BRIDGE_DECIDE_TIMEOUT", value_name = "TIME", help_heading = "Serving")]
    decide_timeout: Span,
    /// Longest wait for calls under way after SIGTERM [default: 30s]
    #[arg(long, global = true, env = "EXT_BRIDGE_DRAIN_TIMEOUT", value_name = "TIME", help_heading = "Serving")]
    drain_timeout: Span,
    /// Age from which a policy is read again [default: 1s]
    #[arg(long, global = true, env = "EXT_BRIDGE_POLICY_MAX_AGE", value_name = "TIME", help_heading = "Serving")]
    policy_max_age: Span,
    /// Retries as a share of calls, per extension [default: 0.2]
    #[arg(long, global = true, env = "EXT_BRIDGE_RETRY_BUDGET", value_name = "SHARE", help_heading = "Serving")]
    retry_budget: f64,
    /// Retries per second that are always allowed, per extension [default: 3]
    #[arg(long, global = true, env = "EXT_BRIDGE_RETRY_BUDGET_PER_SECOND", value_name = "N", help_heading = "Serving")]
    retry_budget_per_second: f64,
    /// Most questions in one batch to Postgres [default: 256]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_BATCH", value_name = "N", help_heading = "Serving")]
    max_batch: usize,
    /// Ask each instance this often whether it is well, and write its health_status; one of the bridges on a database does it [default: not at all]
    #[arg(long, global = true, env = "EXT_BRIDGE_PROBE_INTERVAL", value_name = "TIME", help_heading = "Serving")]
    probe_interval: Span,
    /// Register services that speak NATS micro as instances, under an extension's metadata.discover_subject_prefix, and remove them when they are gone
    #[arg(long, global = true, env = "EXT_BRIDGE_DISCOVER", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Serving")]
    discover: bool,
    /// How often to look for such services [default: 10s]
    #[arg(long, global = true, env = "EXT_BRIDGE_DISCOVER_INTERVAL", value_name = "TIME", help_heading = "Serving")]
    discover_interval: Span,

    /// Requests in flight [default: 16384]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_IN_FLIGHT", value_name = "N", help_heading = "Limits")]
    max_in_flight: usize,
    /// Calls in flight of one extension [default: 4096]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_IN_FLIGHT_PER_EXTENSION", value_name = "N", help_heading = "Limits")]
    max_in_flight_per_extension: usize,
    /// Bytes of requests in flight [default: 268435456]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_IN_FLIGHT_BYTES", value_name = "BYTES", help_heading = "Limits")]
    max_in_flight_bytes: usize,
    /// One encoded request; never more than NATS's max_payload less 16 KiB [default: 1048576]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_MESSAGE_BYTES", value_name = "BYTES", help_heading = "Limits")]
    max_message_bytes: usize,
    /// Metadata of a request, and its context [default: 65536]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_METADATA_BYTES", value_name = "BYTES", help_heading = "Limits")]
    max_metadata_bytes: usize,
    /// A service's reply [default: 1048576]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_REPLY_BYTES", value_name = "BYTES", help_heading = "Limits")]
    max_reply_bytes: usize,
    /// Depth of a request's JSON [default: 10]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_JSON_DEPTH", value_name = "N", help_heading = "Limits")]
    max_json_depth: usize,
    /// Items of an array in a request [default: 1000]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_ARRAY_ITEMS", value_name = "N", help_heading = "Limits")]
    max_array_items: u32,
    /// Properties of an object in a request [default: 50]
    #[arg(long, global = true, env = "EXT_BRIDGE_MAX_OBJECT_PROPERTIES", value_name = "N", help_heading = "Limits")]
    max_object_properties: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        assert_eq!("250ms".parse::<Span>().unwrap().0, Duration::from_millis(250));
        assert_eq!("2h".parse::<Span>().unwrap().0, Duration::from_hours(2));
        for bad in ["", "5", "s", "-1s", "1.5s", "1d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_set_first_counts() {
        let first = Options {
            prefix: Some("a".to_owned()),
            ..Options::default()
        };
        let second = Options {
            prefix: Some("b".to_owned()),
            loops: Some(2),
            ..Options::default()
        };
        let both = first.or(second);
        assert_eq!((both.prefix.as_deref(), both.loops), (Some("a"), Some(2)));
    }
}
