//! How to reach NATS.

use std::path::PathBuf;

/// How to reach NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsSettings {
    /// Addresses, without a login.
    pub servers: Vec<String>,
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
    /// The addresses, for people.
    pub fn shown(&self) -> String {
        self.servers.join(",")
    }
}
