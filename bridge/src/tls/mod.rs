//! TLS to Postgres: the modes of libpq (`sslmode`) on rustls.
//!
//! Owns which certificates are trusted and whose name is asked for. Promises: the files are read when the settings are, so
//! that a bad one is known at once, and again for each connection, so that renewed ones are used without a restart; where
//! TLS is required nothing is sent before it is there; keys never appear in messages.

mod binding;
mod stream;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

pub use stream::{Connector, HandshakeError, Stream};
use verify::{Trust, Verifier};

/// What is asked of a connection; as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No TLS.
    Disable,
    /// TLS where the server has it and lets the role in by it, unverified.
    Prefer,
    /// TLS, unverified.
    Require,
    /// TLS, with a certificate by one that is trusted.
    VerifyCa,
    /// The same, made out to the host's name.
    VerifyFull,
}

/// Who is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system.
    System,
    /// Those in a file.
    File(PathBuf),
}

/// Settings of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// What is asked of a connection.
    pub mode: Mode,
    /// Needed where certificates are verified.
    pub roots: Option<Roots>,
    /// Files with the bridge's own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {what}")]
pub struct BadFile {
    setting: &'static str,
    what: String,
}

fn bad(setting: &'static str, path: &Path, why: impl std::fmt::Display) -> BadFile {
    BadFile {
        setting,
        what: format!("{}: {why}", path.display()),
    }
}

impl Tls {
    /// Reads the files.
    pub fn connector(&self) -> Result<Connector, BadFile> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = match (self.mode, &self.roots) {
            (Mode::Disable | Mode::Prefer | Mode::Require, _) => Trust::Anyone,
            (Mode::VerifyCa | Mode::VerifyFull, None) => {
                return Err(BadFile {
                    setting: "db-sslrootcert",
                    what: "is needed where certificates are verified".to_owned(),
                });
            }
            (Mode::VerifyCa | Mode::VerifyFull, Some(roots)) => {
                let (store, listed) = read_roots(roots)?;
                Trust::Signed {
                    store,
                    listed,
                    name: self.mode == Mode::VerifyFull,
                }
            }
        };
        let verifier = Verifier::new(trust, provider.signature_verification_algorithms);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap_or_else(|error| unreachable!("ring has ciphers for TLS 1.2 and 1.3: {error}"))
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.identity {
            Some((certificate, key)) if self.mode != Mode::Disable => {
                let chain = certificates("db-sslcert", certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("db-sslkey", key, pem(&e)))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|e| bad("db-sslkey", key, format!("does not go with db-sslcert: {e}")))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Connector::new(Arc::new(config)))
    }
}

fn pem(error: &rustls::pki_types::pem::Error) -> String {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "has nothing of the kind (in PEM, unencrypted)".to_owned(),
        _ => "is not PEM".to_owned(),
    }
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(bad(setting, path, "has no certificate (in PEM)")),
        Ok(found) => Ok(found),
        Err(error) => Err(bad(setting, path, pem(&error))),
    }
}

fn read_roots(roots: &Roots) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), BadFile> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(BadFile {
                    setting: "db-sslrootcert",
                    what: "the system has no certificates to trust; name a file".to_owned(),
                });
            }
            Ok((store, Vec::new()))
        }
        Roots::File(path) => {
            let listed = certificates("db-sslrootcert", path)?;
            let (_, unusable) = store.add_parsable_certificates(listed.iter().cloned());
            if unusable == listed.len() {
                return Err(bad("db-sslrootcert", path, "has no certificate that can be read"));
            }
            Ok((store, listed))
        }
    }
}
