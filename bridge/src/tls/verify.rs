//! Whether the server's certificate will do. Signatures of the handshake are always verified.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Whom to trust.
#[derive(Debug)]
pub enum Trust {
    /// `prefer`, `require`: protects from listeners, not from impostors.
    Anyone,
    /// `verify-ca`, `verify-full`.
    Signed {
        /// Those whose signature counts.
        store: RootCertStore,
        /// The same as they stand in the file. A self-signed certificate of the server that is listed there is trusted as
        /// it is, as OpenSSL does; webpki alone refuses authorities as servers.
        listed: Vec<CertificateDer<'static>>,
        /// The certificate must be made out to the host.
        name: bool,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(trust: Trust, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { trust, algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Trust::Signed { store, listed, name } = &self.trust {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            if !listed.contains(end_entity) {
                let all = self.algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&certificate, store, intermediates, now, all)?;
            }
            if *name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
