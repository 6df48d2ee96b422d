//! Which Postgres is meant, and where what is kept of it lies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

use super::conninfo::{self, Ssl};
use super::options::Options;
use super::{environment, pgpass, wrong};
use crate::exit::{Exit, Kind};
use crate::pg::Database;
use crate::tls::{Mode, Roots, Tls};

/// Names a registry: hosts, ports and database.
pub fn registry_name(database: &tokio_postgres::Config) -> String {
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
pub(super) fn database(all: &Options) -> Result<Database, Exit> {
    at("db-url", all)
}

/// The standby that decides, if one is named: what its address does not say is as for Postgres itself.
pub(super) fn nearby(all: &Options, postgres: &tokio_postgres::Config) -> Result<Option<Database>, Exit> {
    let Some(url) = all.decide_url.clone().filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = Options {
        db_url: Some(url),
        db_host: None,
        db_port: None,
        db_name: postgres.get_dbname().map(str::to_owned),
        db_user: postgres.get_user().map(str::to_owned),
        db_password: postgres.get_password().map(text),
        ..all.clone()
    };
    let nearby = at("decide-url", &all)?;
    Ok(Some(Database {
        standby: true,
        ..nearby
    }))
}

fn at(key: &str, all: &Options) -> Result<Database, Exit> {
    let (url, ssl) = match all.db_url.as_deref().map(conninfo::split) {
        Some((url, ssl)) => (Some(url), ssl),
        None => (None, Ssl::default()),
    };
    let mut config = match url {
        Some(url) => url
            .parse::<tokio_postgres::Config>()
            .map_err(|e| Exit::new(Kind::Config, format!("{key} is not a Postgres address: {e}")))?,
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
                Some(Host::Tcp(host)) => host.clone(),
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
    let tls = tls(all, ssl, &config)?;
    config.ssl_mode(match tls.mode {
        Mode::Disable => SslMode::Disable,
        Mode::Prefer => SslMode::Prefer,
        Mode::Require | Mode::VerifyCa | Mode::VerifyFull => SslMode::Require,
    });
    config
        .application_name("ext-bridge")
        .connect_timeout(Duration::from_secs(5))
        .tcp_user_timeout(Duration::from_secs(20))
        .keepalives_idle(Duration::from_secs(20));
    Ok(Database {
        config,
        tls,
        standby: false,
    })
}

/// How the way is protected: as libpq has it, but that `prefer` never verifies. Sockets of this machine need no TLS.
fn tls(all: &Options, address: Ssl, config: &tokio_postgres::Config) -> Result<Tls, Exit> {
    let path = |first: Option<String>, second: &Option<PathBuf>| first.map(PathBuf::from).or_else(|| second.clone());
    let roots = path(address.root, &all.db_sslrootcert);
    let system = roots.as_deref() == Some(Path::new("system"));
    let named = address.mode.as_ref().or(all.db_sslmode.as_ref());
    let mut mode = match named.map(String::as_str) {
        None if system => Mode::VerifyFull,
        None | Some("prefer" | "allow") => Mode::Prefer,
        Some("disable") => Mode::Disable,
        Some("require") => Mode::Require,
        Some("verify-ca") => Mode::VerifyCa,
        Some("verify-full") => Mode::VerifyFull,
        Some(other) => {
            return Err(wrong(
                "db-sslmode",
                other,
                "disable, prefer, require, verify-ca or verify-full",
            ));
        }
    };
    if system && mode != Mode::VerifyFull {
        // Anybody gets a certificate by one of these; only the name says whose it is.
        let why = "db-sslrootcert: \"system\" needs db-sslmode verify-full";
        return Err(Exit::new(Kind::Config, why));
    }
    if config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
        mode = Mode::Disable;
    }
    if mode == Mode::Disable {
        return Ok(Tls {
            mode,
            roots: None,
            identity: None,
        });
    }
    let usual = |name: &str| {
        let home = environment(&["HOME"])?;
        Some(PathBuf::from(home).join(".postgresql").join(name)).filter(|path| path.exists())
    };
    let roots = match roots {
        Some(_) if system => Some(Roots::System),
        Some(file) => Some(Roots::File(file)),
        None => usual("root.crt").map(Roots::File),
    };
    if mode == Mode::Require && roots.is_some() {
        mode = Mode::VerifyCa;
    }
    if matches!(mode, Mode::VerifyCa | Mode::VerifyFull) && roots.is_none() {
        let why = "db-sslmode: nobody is trusted; name a file by db-sslrootcert, or \"system\" with verify-full";
        return Err(Exit::new(Kind::Config, why));
    }
    let cert = path(address.cert, &all.db_sslcert).or_else(|| usual("postgresql.crt"));
    let key = path(address.key, &all.db_sslkey).or_else(|| usual("postgresql.key"));
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) => {
            return Err(Exit::new(
                Kind::Config,
                "db-sslcert: its key is missing; name it by db-sslkey",
            ));
        }
        (None, _) => None,
    };
    let tls = Tls { mode, roots, identity };
    tls.connector().map_err(|e| Exit::new(Kind::Config, e.to_string()))?;
    Ok(tls)
}
