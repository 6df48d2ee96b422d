//! How to reach NATS.

use std::path::PathBuf;

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// Addresses, separated by commas.
    pub url: String,
    /// A `.creds` file.
    pub creds: Option<PathBuf>,
    /// A user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<String>,
    /// A token.
    pub token: Option<String>,
    /// The seed of an nkey.
    pub nkey_seed: Option<String>,
    /// Certificates to trust.
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
}

impl NatsSettings {
    /// The addresses one by one.
    pub fn servers(&self) -> Vec<String> {
        self.url
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// The addresses without user and password.
    pub fn shown(&self) -> String {
        let hide = |server: &String| match (server.split_once("://"), server.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            (None, Some((_, host))) => host.to_owned(),
            _ => server.clone(),
        };
        self.servers().iter().map(hide).collect::<Vec<_>>().join(",")
    }
}
