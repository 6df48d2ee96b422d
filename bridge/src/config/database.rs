//! Which Postgres is meant, and where what is kept of it lies.

use std::path::PathBuf;
use std::time::Duration;

use super::options::Options;
use super::{environment, pgpass, wrong};
use crate::exit::{Exit, Kind};

/// Names a registry: hosts, ports and database.
pub fn registry_name(database: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let hosts = database.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let ports = database.get_ports().iter().map(u16::to_string);
    format!(
        "{}:{}/{}",
        hosts.collect::<Vec<_>>().join(","),
        ports.collect::<Vec<_>>().join(","),
        database.get_dbname().unwrap_or_default()
    )
}

/// Where the image of a registry is kept: one file for each, so that bridges of several do not disturb each other.
pub(super) fn default_image(registry: &str) -> Option<PathBuf> {
    let folder = match (environment(&["STATE_DIRECTORY"]), environment(&["XDG_STATE_HOME"])) {
        // systemd separates several by colons.
        (Some(folders), _) => PathBuf::from(folders.split(':').next().unwrap_or_default()),
        (None, Some(folder)) => PathBuf::from(folder).join("ext-bridge"),
        (None, None) => PathBuf::from(environment(&["HOME"])?).join(".local/state/ext-bridge"),
    };
    Some(folder.join(format!(
        "{:016x}.image",
        xxhash_rust::xxh3::xxh3_64(registry.as_bytes())
    )))
}

/// How to reach Postgres: the address, then what it does not name from the other settings, then a password file.
pub(super) fn database(all: &Options) -> Result<tokio_postgres::Config, Exit> {
    let mut config = match &all.db_url {
        Some(url) => url
            .parse::<tokio_postgres::Config>()
            .map_err(|e| Exit::new(Kind::Config, format!("db-url is not a Postgres address: {e}")))?,
        None => tokio_postgres::Config::new(),
    };
    if config.get_hosts().is_empty() {
        config.host(all.db_host.as_deref().unwrap_or("localhost"));
    }
    if config.get_ports().is_empty() {
        config.port(all.db_port.unwrap_or(5432));
    }
    if config.get_dbname().is_none() {
        config.dbname(all.db_name.as_deref().unwrap_or("beamline"));
    }
    if config.get_user().is_none() {
        config.user(all.db_user.as_deref().unwrap_or("beamline"));
    }
    if config.get_password().is_none() {
        let password = all.db_password.clone().or_else(|| {
            let host = match config.get_hosts().first() {
                Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
                _ => "localhost".to_owned(),
            };
            let port = config.get_ports().first().copied().unwrap_or(5432);
            pgpass::look_up(
                &host,
                port,
                config.get_dbname().unwrap_or_default(),
                config.get_user().unwrap_or_default(),
            )
        });
        if let Some(password) = password {
            config.password(password);
        }
    }
    match all.db_sslmode.as_deref() {
        None | Some("disable" | "allow" | "prefer") => config.ssl_mode(tokio_postgres::config::SslMode::Disable),
        Some(mode @ ("require" | "verify-ca" | "verify-full")) => {
            return Err(Exit::new(
                Kind::Config,
                format!("db-sslmode: \"{mode}\" is not available in this version"),
            ));
        }
        Some(other) => {
            return Err(wrong(
                "db-sslmode",
                other,
                "disable, prefer, require, verify-ca or verify-full",
            ));
        }
    };
    config
        .application_name("ext-bridge")
        .connect_timeout(Duration::from_secs(5))
        .tcp_user_timeout(Duration::from_secs(20))
        .keepalives_idle(Duration::from_secs(20));
    Ok(config)
}
