//! TLS for the exchange of trust between strangers (extensions text, section 8): the listener's
//! configuration that takes any client, and the dialler's that trusts a pinned root.
//!
//! What a stranger proves here is the possession of a key, and nothing else. Whether its
//! certificate is one of the bundle that it brings is decided by [`verify_peer_chain`] like
//! everywhere, with that bundle alone ([`proven_by`]). Invariants: TLS 1.3 only, an ALPN of its
//! own, no tickets, no early data; a table made here holds one claimed peer and is never shared.

use std::sync::Arc;

use hamlet_core::{PeerName, SpiffeId, TrustDomain};
use hamlet_runtime::Clock;
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::bundle::TrustBundle;
use crate::local::LocalIdentity;
use crate::refused::VerifyError;
use crate::tls::provider;
use crate::trust::{PeerTrust, ProvenPeer, Role, TrustError, TrustTable, fingerprint_of};
use crate::verifier::{tls12, tls13, whole_chain};
use crate::verify::{CHAIN_MAX, Expect, Usage, verify_peer_chain};

/// ALPN of the exchange.
pub const ALPN: &[u8] = b"hamlet-peering/1";
/// The exporter's label; its context is the invitation's id.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-hamlet-peering-1";
/// The name of the claimed peer in a table of its own. It is never shown.
const CLAIMED: &str = "claimed";

/// A mesh as it introduces itself; nothing of it is believed yet.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The CAs that it says are its own, of its trust domain.
    pub bundle: Arc<TrustBundle>,
    /// The exact ids that it says its agents have.
    pub agent_ids: Vec<SpiffeId>,
}

/// Why a chain is not that of the mesh which it is claimed to be of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClaimError {
    #[error(
        "the agent that answers doesn't present the root which the token pins; is it another agent, or has its \
         CA changed since? Ask for a new token"
    )]
    NotPinned,
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("its bundle can't be used")]
    Bundle,
}

impl From<ClaimError> for rustls::Error {
    fn from(error: ClaimError) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// What went wrong in a handshake with a pinned root, if that was it.
pub fn claim_error_in(error: &std::io::Error) -> Option<ClaimError> {
    let rustls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = rustls else { return None };
    other.0.downcast_ref::<ClaimError>().cloned()
}

/// Checks a chain (leaf first) against nothing but a claim.
///
/// # Errors
/// [`ClaimError`].
pub fn proven_by(
    claim: &Claim,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    clock: &Arc<dyn Clock>,
) -> Result<ProvenPeer, ClaimError> {
    let peer = PeerName::parse(CLAIMED).map_err(|_| ClaimError::Bundle)?;
    let table = TrustTable::new(clock.clone());
    table.replace(vec![PeerTrust {
        peer: peer.clone(),
        trust_domain: claim.bundle.trust_domain().clone(),
        bundle: claim.bundle.clone(),
        agent_ids: claim.agent_ids.clone(),
        gateway_ids: vec![],
        foreign: None,
        revoked: None,
        given_lists: None,
    }])?;
    // Roots are sent along here; a path doesn't need them.
    let roots = claim.bundle.fingerprints();
    let path: Vec<CertificateDer<'_>> = chain
        .iter()
        .enumerate()
        .filter(|(at, der)| *at == 0 || !roots.contains(&fingerprint_of(der)))
        .map(|(_, der)| CertificateDer::from(der.as_ref()))
        .collect();
    Ok(verify_peer_chain(&table, &path, Role::Agent, usage, Expect::Peer(&peer))?)
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo); `None` if it can't be read.
pub fn key_fingerprint(der: &[u8]) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}

/// Whether a ClientHello asks for the exchange and for nothing else.
pub fn offers_peering(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ALPN) && offered.next().is_none())
}

/// For the agent's listener while invitations are open: any client that proves the possession of
/// its key. Our roots are sent along, so that one of them can be pinned by its hash.
pub fn server_config(
    identity: &Arc<LocalIdentity>,
    roots: Vec<CertificateDer<'static>>,
) -> Arc<ServerConfig> {
    let presenting = Arc::new(Presenting { identity: identity.clone(), roots });
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider is ours and has TLS 1.3 suites")
        .with_client_cert_verifier(Arc::new(AnyPossessor))
        .with_cert_resolver(presenting);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// What a token says of the agent to be dialled.
#[derive(Debug, Clone)]
pub struct Pinned {
    /// SHA-256 of its roots; one of them must be in the chain and prove it.
    pub roots: Vec<[u8; 32]>,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its exact id.
    pub agent_id: SpiffeId,
}

/// For dialling the agent that a token names.
pub fn client_config(
    identity: &Arc<LocalIdentity>,
    pinned: Pinned,
    clock: Arc<dyn Clock>,
) -> Arc<ClientConfig> {
    let presenting = Arc::new(Presenting { identity: identity.clone(), roots: vec![] });
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider is ours and has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { pinned, clock }))
        .with_client_cert_resolver(presenting);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// Presents our leaf as it is at the handshake, and our roots after it.
#[derive(Debug)]
struct Presenting {
    identity: Arc<LocalIdentity>,
    roots: Vec<CertificateDer<'static>>,
}

impl Presenting {
    /// Nothing while our identity can't be used.
    fn chain(&self) -> Option<Arc<CertifiedKey>> {
        let own = self.identity.certified_key()?;
        let mut chain = own.cert.clone();
        chain.extend(self.roots.iter().filter(|root| !own.cert.contains(root)).cloned());
        // While roots rotate there are more than a chain may have; the one that proves us is first.
        chain.truncate(CHAIN_MAX);
        Some(Arc::new(CertifiedKey::new(chain, own.key.clone())))
    }
}

impl ResolvesServerCert for Presenting {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.chain()
    }
}

impl ResolvesClientCert for Presenting {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.chain()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes any client certificate: whose it is can be judged only when its bundle has come. That the
/// client has the key is checked by its signature.
#[derive(Debug)]
struct AnyPossessor;

impl ClientCertVerifier for AnyPossessor {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime, // judged with the bundle, by the agent's clock
    ) -> Result<ClientCertVerified, rustls::Error> {
        if intermediates.len() >= CHAIN_MAX {
            return Err(VerifyError::ChainTooLong(intermediates.len() + 1).into());
        }
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

/// Takes the one agent that the token names.
struct PinnedVerifier {
    pinned: Pinned,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for PinnedVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedVerifier").field("pinned", &self.pinned).finish_non_exhaustive()
    }
}

impl PinnedVerifier {
    fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), ClaimError> {
        // A leaf is no root, whatever its hash.
        let is_pinned = |der: &&CertificateDer<'_>| self.pinned.roots.contains(&fingerprint_of(der));
        let roots: Vec<_> = chain.iter().skip(1).filter(is_pinned).collect();
        if roots.is_empty() {
            return Err(ClaimError::NotPinned);
        }
        let ders = roots.iter().map(|root| root.as_ref().to_vec().into()).collect();
        let bundle = bundle_of(self.pinned.trust_domain.clone(), ders)?;
        let claim = Claim { bundle: Arc::new(bundle), agent_ids: vec![self.pinned.agent_id.clone()] };
        proven_by(&claim, chain, Usage::Server, &self.clock)?;
        Ok(())
    }
}

/// A bundle of exactly these roots.
///
/// # Errors
/// [`ClaimError::Bundle`].
pub fn bundle_of(
    domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
) -> Result<TrustBundle, ClaimError> {
    TrustBundle::from_pem(domain, to_pem(&roots).as_bytes()).map_err(|_| ClaimError::Bundle)
}

/// Certificates as PEM.
pub fn to_pem(ders: &[CertificateDer<'_>]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let encode =
        |der: &CertificateDer<'_>| pem::encode_config(&Pem::new("CERTIFICATE", der.as_ref()), config);
    ders.iter().map(encode).collect()
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // the id counts
        _ocsp_response: &[u8],
        _now: UnixTime, // the agent's clock counts
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(&whole_chain(end_entity, intermediates))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;

    #[test]
    fn pem_of_any_length_is_read_back() {
        for length in [0, 1, 2, 3, 47, 48, 49, 200] {
            let der = CertificateDer::from((0..length).map(|i| i as u8).collect::<Vec<_>>());
            let pem = to_pem(std::slice::from_ref(&der));
            let back: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
            assert_eq!(back, [der]);
        }
    }
}
