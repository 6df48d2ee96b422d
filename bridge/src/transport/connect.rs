//! How a connection is made: addresses, logins, TLS; and what is said where it cannot be.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event};

use super::denied::{Denials, Denied};
use super::settings::NatsSettings;

/// Why NATS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection.
    #[error("cannot connect to NATS at {0}: {1}")]
    Connect(String, String),
    /// No subscription.
    #[error("cannot subscribe to {0}: {1}")]
    Subscribe(String, String),
    /// No permission for a subscription.
    #[error("{0}")]
    Denied(Denied),
    /// Bad credentials file, certificate or key.
    #[error("{0}")]
    Settings(String),
}

/// The first part of every connection: addresses, credentials, TLS.
pub(super) async fn options(settings: &NatsSettings) -> Result<ConnectOptions, TransportError> {
    let mut options = ConnectOptions::new()
        .name("ext-bridge")
        .custom_inbox_prefix(&settings.inbox_prefix)
        .ping_interval(Duration::from_secs(20))
        .connection_timeout(Duration::from_secs(5))
        .subscription_capacity(65_536)
        .client_capacity(8192);
    if let Some(path) = &settings.creds {
        options = options
            .credentials_file(path)
            .await
            .map_err(|e| TransportError::Settings(format!("cannot read the credentials {}: {e}", path.display())))?;
    }
    if let Some(token) = &settings.token {
        options = options.token(token.clone());
    }
    if let (Some(user), Some(password)) = (&settings.user, &settings.password) {
        options = options.user_and_password(user.clone(), password.clone());
    }
    if let Some(seed) = &settings.nkey_seed {
        options = options.nkey(seed.clone());
    }
    if let Some(path) = &settings.tls_ca {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) {
        options = options
            .add_client_certificate(cert.clone(), key.clone())
            .require_tls(true);
    }
    if settings.tls_first {
        options = options.tls_first();
    }
    Ok(options)
}

/// A plain client that reconnects by itself, for commands and what is published now and then; and what it is denied.
pub async fn client(settings: &NatsSettings) -> Result<(Client, Arc<Denials>), TransportError> {
    let denials = Arc::new(Denials::default());
    let noted = Arc::clone(&denials);
    let options = options(settings)
        .await?
        .reconnect_delay_callback(|attempts| {
            let full = 50_u64 << attempts.min(6);
            Duration::from_millis(full / 2 + fastrand::u64(0..=full / 2))
        })
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                noted.note(&error);
            }
            std::future::ready(())
        });
    let client = options
        .connect(settings.servers.as_slice())
        .await
        .map_err(|e| TransportError::Connect(settings.shown(), explained(&e, settings)))?;
    Ok((client, denials))
}

/// Whether TLS is asked for.
fn by_tls(settings: &NatsSettings) -> bool {
    settings.by_tls() || settings.servers.iter().any(|server| server.starts_with("tls://"))
}

/// An address that a server told, with the scheme of those that were set.
pub(super) fn told_address(address: &str, settings: &NatsSettings) -> String {
    let scheme = if by_tls(settings) { "tls" } else { "nats" };
    format!("{scheme}://{address}")
}

/// The error in one line, and what can be done about it.
pub(super) fn explained(error: &ConnectError, settings: &NatsSettings) -> String {
    let (mut text, mut source) = (error.kind().to_string(), error.source());
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = if more.contains(&text) {
                more
            } else {
                format!("{text}: {more}")
            };
        }
        source = inner.source();
    }
    let text = text.replace(['\r', '\n'], " ");
    let no_login =
        settings.user.is_none() && settings.token.is_none() && settings.creds.is_none() && settings.nkey_seed.is_none();
    let remedy = match error.kind() {
        ConnectErrorKind::AuthorizationViolation if no_login => {
            "the server asks for a login; give --nats-user and --nats-password, --nats-token, --nats-nkey-seed or --nats-creds"
        }
        ConnectErrorKind::AuthorizationViolation => {
            "the server does not accept this login; is it the server's, and not expired?"
        }
        ConnectErrorKind::Authentication => "the key of --nats-nkey-seed or --nats-creds cannot sign",
        // The latter where another authority has the same name.
        _ if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
            "no authority that is trusted here has signed the server's certificate; name the authority's with --nats-tls-ca"
        }
        _ if text.contains("NotValidForName") || text.contains("not valid for name") => {
            "the server's certificate is for another name; address the server by a name in its certificate"
        }
        _ if text.contains("alert: UnknownCA") || text.contains("alert: BadCertificate") => {
            "the server does not accept the certificate of --nats-tls-cert; is it signed by the authority that the server trusts?"
        }
        _ if text.contains("certificate expired") || text.contains("Expired") => {
            "a certificate has expired: the server's, or that of --nats-tls-cert; is the clock right?"
        }
        _ if text.contains("CertificateRequired") => {
            "the server asks for a certificate; give --nats-tls-cert and --nats-tls-key"
        }
        _ if text.contains("InvalidContentType") || (by_tls(settings) && text.to_lowercase().contains("eof")) => {
            "what is there does not speak TLS; is tls {} in the server's configuration? Without TLS the address begins with nats://, \
             and there is no --nats-tls-ca"
        }
        ConnectErrorKind::Io if text.contains("refused") => "is the server running, and is this its port?",
        _ => return text,
    };
    format!("{text}: {remedy}")
}
