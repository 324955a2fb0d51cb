//! Who we are, and whom we know: what a program says before it may talk.
//!
//! Nothing is trusted by default: a peer is believed for exactly the SPIFFE ids named, under its
//! own CA (decision of [`hamlet_identity`]).

use std::path::Path;
use std::sync::Arc;

use hamlet_core::{NameError, PeerName, SpiffeError, SpiffeId, TrustDomain};
use hamlet_identity::{
    BundleError, CertificateProvider, IdentityError, LocalIdentity, PeerTrust, TrustBundle,
};
use hamlet_runtime::SystemClock;

use crate::dialect::Secret;

/// The path of an agent's SPIFFE id unless a peer says another one: `hamlet init` issues it.
pub const AGENT_ID_PATH: &str = "hamlet/agent";

/// Our certificate and key: a SPIFFE X.509 certificate for server and client use. Clones share
/// it.
#[derive(Debug, Clone)]
pub struct Identity(pub(super) Arc<LocalIdentity>);

impl Identity {
    /// From PEM files, read again when they change: a renewed certificate needs no restart. The key
    /// must be readable by its owner only.
    ///
    /// # Errors
    /// What is wrong with the files, and what to do.
    pub fn from_files(cert: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Identity, IdentityError> {
        LocalIdentity::from_pem_files(cert.as_ref(), key.as_ref(), SystemClock::shared()).map(Identity)
    }

    /// From PEM in memory; it never changes.
    ///
    /// # Errors
    /// What is wrong with the certificate or key.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Identity, IdentityError> {
        LocalIdentity::from_pem(cert, key, SystemClock::shared()).map(Identity)
    }

    /// From anything that has certificates, asked again every few seconds.
    ///
    /// # Errors
    /// What the provider says, or what is wrong with its certificate or key.
    pub fn from_provider(provider: Arc<dyn CertificateProvider>) -> Result<Identity, IdentityError> {
        LocalIdentity::from_provider(provider, SystemClock::shared()).map(Identity)
    }

    /// The SPIFFE id that we prove to peers.
    pub fn id(&self) -> SpiffeId {
        self.0.spiffe_id()
    }
}

impl From<Arc<LocalIdentity>> for Identity {
    fn from(identity: Arc<LocalIdentity>) -> Identity {
        Identity(identity)
    }
}

/// A peer can't be described so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The name isn't one.
    #[error("{0:?} is no name of a peer: {1}")]
    Name(String, NameError),
    /// The trust domain or id isn't one.
    #[error("{0:?} is no SPIFFE trust domain or id: {1}")]
    Spiffe(String, SpiffeError),
    /// The bundle can't be used.
    #[error("the CA certificates of {0} can't be used: {1}")]
    Bundle(String, BundleError),
    /// The bundle can't be read.
    #[error("{0}: {1}; put the peer's CA certificates (PEM) there")]
    File(String, std::io::Error),
}

/// A peer as we know it: its name here, its trust, and where it is.
#[derive(Debug, Clone)]
pub struct Peer {
    pub(super) trust: PeerTrust,
    pub(super) address: Option<String>,
    pub(super) context: Secret,
}

impl Peer {
    /// A peer of a trust domain, with its CA certificates in PEM. It is believed as
    /// `spiffe://<trust domain>/hamlet/agent` unless [`with_id`](Self::with_id) says otherwise, and
    /// waited for unless [`at`](Self::at) says where it is.
    ///
    /// # Errors
    /// Which of the three isn't what it should be.
    pub fn new(name: &str, trust_domain: &str, ca_pem: &[u8]) -> Result<Peer, PeerError> {
        let peer = PeerName::parse(name).map_err(|e| PeerError::Name(name.to_owned(), e))?;
        let spiffe = |e| PeerError::Spiffe(trust_domain.to_owned(), e);
        let domain = TrustDomain::parse(trust_domain).map_err(spiffe)?;
        let bundle = TrustBundle::from_pem(domain.clone(), ca_pem)
            .map_err(|e| PeerError::Bundle(name.to_owned(), e))?;
        let id = domain.id(AGENT_ID_PATH).map_err(spiffe)?;
        let trust = PeerTrust::new(peer, Arc::new(bundle), vec![id], vec![]);
        Ok(Peer { trust, address: None, context: Secret::default() })
    }

    /// The same with the CA certificates in a file.
    ///
    /// # Errors
    /// The same, or that the file can't be read.
    pub fn from_file(name: &str, trust_domain: &str, ca: impl AsRef<Path>) -> Result<Peer, PeerError> {
        let path = ca.as_ref();
        let pem = std::fs::read(path).map_err(|e| PeerError::File(path.display().to_string(), e))?;
        Peer::new(name, trust_domain, &pem)
    }

    /// The exact SPIFFE id that it proves, instead of the usual one.
    ///
    /// # Errors
    /// It is no SPIFFE id. One outside the peer's trust domain is refused at the start.
    pub fn with_id(mut self, id: &str) -> Result<Peer, PeerError> {
        let id = SpiffeId::parse(id).map_err(|e| PeerError::Spiffe(id.to_owned(), e))?;
        self.trust.agent_ids = vec![id];
        Ok(self)
    }

    /// Where to dial it, `host:port`. Either side may dial; if both do, one stream is kept.
    pub fn at(mut self, address: impl Into<String>) -> Peer {
        self.address = Some(address.into());
        self
    }

    /// A secret text that both sides must show (v1alpha2's `context`), in addition to TLS.
    pub fn with_context(mut self, context: impl Into<String>) -> Peer {
        self.context = Secret::new(context);
        self
    }

    /// Its name.
    pub fn name(&self) -> &PeerName {
        &self.trust.peer
    }
}
