//! Mutual TLS as a good peer does it, and as a bad one does.
//!
//! It checks the other side's chain against the given roots, and its name only when one is asked
//! for: certificates between meshes name SPIFFE ids, not hosts.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

/// The name that is asked for when none was given.
const ANY_NAME: &str = "conformance.invalid";

/// Where our identity is, and whom we trust.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Our certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The roots of the implementation under test, PEM.
    pub ca: PathBuf,
    /// The DNS name its certificate must have; `None` checks the chain alone.
    pub server_name: Option<String>,
}

/// The files make no TLS identity.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TlsError {
    #[error("cannot use {path}: {reason}; give PEM files with --tls-cert, --tls-key and --tls-ca", path = path.display())]
    File { path: PathBuf, reason: String },
    #[error("the certificate, its key and the roots don't fit together: {0}")]
    Config(String),
    #[error("--server-name {0} is not a DNS name")]
    Name(String),
}

/// How we present ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// With the given certificate.
    Proper,
    /// Without a certificate (as a client).
    Nobody,
    /// With a certificate that no root has signed.
    Stranger,
    /// With the given certificate, over TLS 1.2 only.
    OldTls,
    /// With the given certificate, without naming a protocol.
    NoAlpn,
}

/// Everything TLS needs, loaded.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    stranger: (CertificateDer<'static>, PrivateKeyDer<'static>),
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    name: Option<ServerName<'static>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the files.
    pub fn load(files: &TlsFiles) -> Result<Identity, TlsError> {
        let config = |e: &dyn std::fmt::Display| TlsError::Config(e.to_string());
        let failed = |path: &PathBuf, reason: String| TlsError::File { path: path.clone(), reason };
        let certificates = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let found: Vec<_> = read.map_err(|e| failed(path, e.to_string()))?;
            if found.is_empty() { Err(failed(path, "no certificate in it".to_owned())) } else { Ok(found) }
        };
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| failed(&files.key, e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.ca)? {
            roots.add(root).map_err(|e| failed(&files.ca, e.to_string()))?;
        }
        let name = match &files.server_name {
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::Name(name.clone()))?),
            None => None,
        };
        let identity = Identity {
            chain: certificates(&files.cert)?,
            key,
            stranger: stranger().map_err(|e| config(&e))?,
            roots: Arc::new(roots),
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            name,
        };
        // What doesn't fit together should be said before the first case.
        identity.client(Face::Proper)?;
        identity.server(Face::Proper)?;
        Ok(identity)
    }

    /// The name to ask a server for.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, TlsError> {
        match &self.name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(ANY_NAME).map_err(|e| TlsError::Config(e.to_string())),
        }
    }

    fn versions(face: Face) -> Vec<&'static SupportedProtocolVersion> {
        match face {
            Face::OldTls => vec![&rustls::version::TLS12],
            _ => vec![&rustls::version::TLS13, &rustls::version::TLS12],
        }
    }

    fn presented(&self, face: Face) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        match face {
            Face::Stranger => (vec![self.stranger.0.clone()], self.stranger.1.clone_key()),
            _ => (self.chain.clone(), self.key.clone_key()),
        }
    }

    /// As the side that dials.
    pub(crate) fn client(&self, face: Face) -> Result<Arc<ClientConfig>, TlsError> {
        let failed = |e: rustls::Error| TlsError::Config(e.to_string());
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), self.provider.clone());
        let verifier = verifier.build().map_err(|e| TlsError::Config(e.to_string()))?;
        let verifier = Arc::new(ChainOnly { verifier, named: self.name.is_some() });
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&Identity::versions(face))
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match face {
            Face::Nobody => builder.with_no_client_auth(),
            _ => {
                let (chain, key) = self.presented(face);
                builder.with_client_auth_cert(chain, key).map_err(failed)?
            }
        };
        // A resumed session would hide what a fresh handshake shows.
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = if face == Face::NoAlpn { vec![] } else { vec![b"h2".to_vec()] };
        Ok(Arc::new(config))
    }

    /// As the side that accepts; it always demands a certificate.
    pub(crate) fn server(&self, face: Face) -> Result<Arc<ServerConfig>, TlsError> {
        let failed = |e: rustls::Error| TlsError::Config(e.to_string());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone());
        let verifier = verifier.build().map_err(|e| TlsError::Config(e.to_string()))?;
        let (chain, key) = self.presented(face);
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&Identity::versions(face))
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(failed)?;
        config.alpn_protocols = if face == Face::NoAlpn { vec![] } else { vec![b"h2".to_vec()] };
        Ok(Arc::new(config))
    }
}

/// A certificate that proves nothing to anybody.
fn stranger() -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    let names = vec!["stranger.invalid".to_owned()];
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((made.cert.der().clone(), key.into()))
}

/// Checks the chain, and the name only if one is wanted.
#[derive(Debug)]
struct ChainOnly {
    verifier: Arc<WebPkiServerVerifier>,
    named: bool,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged =
            self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let other_name = CertificateError::NotValidForName;
        match judged {
            Err(rustls::Error::InvalidCertificate(e))
                if !self.named
                    && (e == other_name || matches!(e, CertificateError::NotValidForNameContext { .. })) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
