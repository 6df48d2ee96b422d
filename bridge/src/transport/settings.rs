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
    /// TLS begins before the server has said anything.
    pub tls_first: bool,
    /// First part of the subjects that replies come by.
    pub inbox_prefix: String,
    /// What the files held that are named here, as a hash: a new certificate may have the old name.
    pub files: u64,
}

impl NatsSettings {
    /// The addresses, for people.
    pub fn shown(&self) -> String {
        self.servers.join(",")
    }

    /// Whether every connection is by TLS, whatever the addresses say.
    pub fn by_tls(&self) -> bool {
        self.tls_first || self.tls_ca.is_some() || self.tls_cert.is_some()
    }
}
