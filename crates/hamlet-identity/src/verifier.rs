//! The two rustls verifiers. They hand the presented chain to [`verify_peer_chain`] and pass its
//! verdict on; signatures are checked with the provider's algorithms. They decide nothing.
//!
//! TLS 1.2 signatures are always an error: the configurations don't offer it, and if one did the
//! handshake must fail.

use std::sync::Arc;

use hamlet_core::{PeerName, SpiffeId};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::refused::VerifyError;
use crate::tls::provider;
use crate::trust::{Role, TrustTable};
use crate::verify::{Expect, Usage, verify_peer_chain};

impl From<VerifyError> for rustls::Error {
    /// One alert for all rules: a stranger learns nothing from it. Our side keeps the whole text
    /// ([`crate::refusal_in`]).
    fn from(error: VerifyError) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Verifies clients of a listener: any configured peer, in one role.
#[derive(Debug)]
pub(crate) struct PeerClientVerifier {
    pub(crate) trust: Arc<TrustTable>,
    pub(crate) role: Role,
}

/// Verifies the server we dialled: one peer, its ids for the role or exact SANs.
#[derive(Debug)]
pub(crate) struct PeerServerVerifier {
    pub(crate) trust: Arc<TrustTable>,
    pub(crate) role: Role,
    pub(crate) peer: PeerName,
    /// `Some` at egress: the SANs of the offer.
    pub(crate) sans: Option<Vec<SpiffeId>>,
}

pub(crate) fn whole_chain<'a>(
    leaf: &'a CertificateDer<'_>,
    above: &'a [CertificateDer<'_>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(above).map(|der| CertificateDer::from(der.as_ref())).collect()
}

pub(crate) fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 signatures are not accepted; both sides must use TLS 1.3".to_owned())
}

pub(crate) fn tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = &provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
}

impl ClientCertVerifier for PeerClientVerifier {
    /// Empty: the names of our peers' CAs are not told to strangers.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime, // ours comes from the table's clock
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = whole_chain(end_entity, intermediates);
        verify_peer_chain(&self.trust, &chain, self.role, Usage::Client, Expect::AnyPeer)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // a route, not an identity: that is the SPIFFE id
        _ocsp_response: &[u8],
        _now: UnixTime, // ours comes from the table's clock
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = whole_chain(end_entity, intermediates);
        let expect = match &self.sans {
            Some(sans) => Expect::PeerSans(&self.peer, sans),
            None => Expect::Peer(&self.peer),
        };
        verify_peer_chain(&self.trust, &chain, self.role, Usage::Server, expect)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
