//! TLS peers that present anything and believe anybody, and a handshake in memory.
//!
//! What is tested is the other side: these configurations must never leave a test.

use std::io;
use std::sync::Arc;

use hamlet_identity::provider;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::pki::TestLeaf;

/// A client that presents `leaf` (or no certificate) and believes any server.
pub fn stranger_client(leaf: Option<&TestLeaf>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAnybody));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_cert_resolver(presents(leaf)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// A client that speaks TLS 1.2 only, presents `leaf` and believes any server.
pub fn old_client(leaf: &TestLeaf) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("TLS 1.2")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAnybody))
        .with_client_cert_resolver(presents(leaf));
    Arc::new(config)
}

/// A server that presents `leaf` and takes any client certificate.
pub fn stranger_server(leaf: &TestLeaf, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(Arc::new(BelieveAnybody))
        .with_cert_resolver(presents(leaf));
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// Unchecked, so that a certificate that no library would load is presented as well.
fn presents(leaf: &TestLeaf) -> Arc<SingleCertAndKey> {
    let key = provider().key_provider.load_private_key(leaf.key()).expect("a private key");
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(leaf.chain.clone(), key)))
}

/// Both ends of a handshake in memory.
pub struct Handshake {
    /// The client's stream, or why it failed. It is only `Ok` once a byte of the server has come
    /// through: in TLS 1.3 a client learns of its refusal no sooner.
    pub client: io::Result<client::TlsStream<DuplexStream>>,
    /// The server's stream, or why it failed.
    pub server: io::Result<server::TlsStream<DuplexStream>>,
}

impl Handshake {
    /// Whether both ends are content.
    pub fn is_ok(&self) -> bool {
        self.client.is_ok() && self.server.is_ok()
    }
}

/// Does a handshake over a pipe in memory, the client asking for `name`.
pub async fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Handshake {
    const PIPE: usize = 64 * 1024;
    let (near, far) = tokio::io::duplex(PIPE);
    let name = ServerName::try_from(name.to_owned()).expect("a server name");
    let dial = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let accept = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_u8(b'!').await?;
        stream.flush().await?;
        Ok(stream)
    };
    let (client, server) = tokio::join!(dial, accept);
    Handshake { client, server }
}

/// Believes every certificate; a signature must still be the key's.
#[derive(Debug)]
struct BelieveAnybody;

impl ServerCertVerifier for BelieveAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for BelieveAnybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
