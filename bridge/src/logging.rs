//! The log: text or JSON on stderr, its level changeable while the process runs.
//!
//! Promises: one event is one line; the first line that cannot be written stops nothing; bodies and secrets are never fields.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload;

use crate::exit::{Exit, Kind};

/// How the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object in each line.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// A filter that can be; `None` where it is not set.
    pub level: Option<String>,
    /// How it looks.
    pub format: Format,
}

/// What a daemon logs by default; commands log errors only.
const SERVING: &str = "info,async_nats=error";

type Set = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The level of a log that has begun.
pub struct Levels {
    default: &'static str,
    set: Set,
}

impl Logging {
    /// From the settings; what cannot be is refused.
    pub fn from(level: Option<&str>, format: Option<&str>) -> Result<Self, Exit> {
        let format = match format {
            None | Some("text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => {
                let message = format!("log-format: \"{other}\" is not text or json");
                return Err(Exit::new(Kind::Config, message));
            }
        };
        if let Some(level) = level {
            filter(level)?;
        }
        Ok(Self {
            level: level.map(str::to_owned),
            format,
        })
    }

    /// Begins the log of the process.
    pub fn start(&self, serving: bool) -> Result<Levels, Exit> {
        let default = if serving { SERVING } else { "error" };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(self.level.as_deref().unwrap_or(default))?)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let set: Set = match self.format {
            Format::Text => {
                let log = log.with_filter_reloading();
                let handle = log.reload_handle();
                log.init();
                Box::new(move |filter| handle.reload(filter))
            }
            Format::Json => {
                let log = log.json().with_filter_reloading();
                let handle = log.reload_handle();
                log.init();
                Box::new(move |filter| handle.reload(filter))
            }
        };
        Ok(Levels { default, set })
    }
}

impl Levels {
    /// Logs from now on what these settings say.
    pub fn change(&self, logging: &Logging) -> Result<(), Exit> {
        let filter = filter(logging.level.as_deref().unwrap_or(self.default))?;
        (self.set)(filter).map_err(|e| Exit::new(Kind::Internal, format!("the log level cannot be changed: {e}")))
    }
}

/// Reads a filter. A word that is no level would be taken for the name of a module, and silence all others.
fn filter(text: &str) -> Result<EnvFilter, Exit> {
    let wrong = |part: &str| {
        let wanted = "error, warn, info, debug, trace, off or a filter such as info,ext_bridge=debug";
        Exit::new(Kind::Config, format!("log-level: \"{part}\" is not {wanted}"))
    };
    let parts = || text.split(',').map(str::trim);
    if let Some(part) = parts()
        .find(|part| part.is_empty() || (!part.contains(['=', '[', ']']) && part.parse::<LevelFilter>().is_err()))
    {
        return Err(wrong(part));
    }
    EnvFilter::try_new(text).map_err(|_| wrong(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,async_nats=error",
            "ext_bridge::serve=trace, warn",
            "[span]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "verbose", "info,loud", "ext_bridge=loud", "info,"] {
            let error = filter(bad).expect_err(bad);
            assert!(
                error.message.starts_with("log-level: \"") && error.kind == Kind::Config,
                "{error}"
            );
        }
        assert!(Logging::from(None, Some("xml")).is_err());
    }
}
