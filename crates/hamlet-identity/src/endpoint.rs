//! TLS of SPIFFE bundle endpoints: serving ours, and asking others'. No sockets, no HTTP.
//!
//! Source: SPIFFE Federation, section 5. It is public: no client certificate is asked for or shown.
//! Invariants: `https_web` is judged by web authorities and the host's name alone, `https_spiffe` by
//! one trust domain's bundle and one exact id alone, and neither ever falls back to the other.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hamlet_core::SpiffeId;
use hamlet_runtime::Clock;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files::{FileError, read_key, read_public};
use crate::local::LocalIdentity;
use crate::tls::provider;
use crate::trust::{PeerTrust, Role, TrustError, TrustTable};
use crate::verifier::PeerServerVerifier;
use crate::verify::CHAIN_MAX;

const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Why TLS of a bundle endpoint can't be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EndpointTlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} has no certificate that can be read: {reason}; put the chain there as PEM, leaf first", .file.display())]
    NoCertificate { file: PathBuf, reason: String },
    #[error("{} has no private key that can be read; put the certificate's key there as PEM", .0.display())]
    NoKey(PathBuf),
    #[error("the key in {} is not that of the certificate in {}; issue both anew", .key.display(), .cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
    #[error(
        "this system has no web authorities ({0}); install the ca-certificates package, or name a file of \
         authorities for the endpoint"
    )]
    NoRoots(String),
    #[error("{} has no usable authority; put CA certificates there as PEM", .0.display())]
    EmptyRoots(PathBuf),
    #[error("the endpoint's trust can't be set up: {0}")]
    Trust(#[from] TrustError),
}

/// For asking an `https_web` endpoint: by the authorities in `roots`, or by those of the system.
pub fn web_endpoint_client(roots: Option<&Path>) -> Result<Arc<ClientConfig>, EndpointTlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        Some(path) => {
            let pem = read_public(path)?;
            store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
            if store.is_empty() {
                return Err(EndpointTlsError::EmptyRoots(path.to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
                return Err(EndpointTlsError::NoRoots(why));
            }
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider().clone())
        .build()
        .map_err(|e| EndpointTlsError::NoRoots(e.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider is ours and has suites for both")
        .with_webpki_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For asking an `https_spiffe` endpoint that must prove exactly `id`, by what proves the peer of its
/// trust domain alone: that peer's bundle, and what it has revoked. The name it is dialled by doesn't
/// matter.
pub fn spiffe_endpoint_client(
    proves: &PeerTrust,
    id: &SpiffeId,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, EndpointTlsError> {
    // A table of its own with the one entry, so that the one verification function decides.
    let trust = TrustTable::new(clock);
    let peer = proves.peer.clone();
    let mut only = PeerTrust::new(peer.clone(), proves.bundle.clone(), vec![id.clone()], Vec::new());
    only.revoked.clone_from(&proves.revoked);
    trust.replace(vec![only])?;
    let verifier = PeerServerVerifier { trust, role: Role::Agent, peer, sans: None };
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider is ours and has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// What our bundle endpoint proves.
#[derive(Debug, Clone)]
pub enum EndpointLeaf {
    /// `https_web`: a certificate for the host's name.
    Web(Arc<WebLeaf>),
    /// `https_spiffe`: our own id.
    Spiffe(Arc<LocalIdentity>),
}

impl ResolvesServerCert for EndpointLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(match self {
            EndpointLeaf::Web(leaf) => leaf.current.load_full(),
            EndpointLeaf::Spiffe(identity) => identity.certified_key()?,
        })
    }
}

/// For our own endpoint: anybody may ask, over TLS 1.3 or 1.2 as the standard says.
pub fn endpoint_server(leaf: EndpointLeaf) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider is ours and has suites for both")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaf));
    config.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Arc::new(config)
}

/// A web certificate and its key in files, read again on request.
pub struct WebLeaf {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl fmt::Debug for WebLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebLeaf").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl WebLeaf {
    /// Loads the chain (leaf first) and the key.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<WebLeaf>, EndpointTlsError> {
        let current = ArcSwap::from_pointee(read_web(cert, key)?);
        Ok(Arc::new(WebLeaf { cert: cert.to_owned(), key: key.to_owned(), current }))
    }

    /// Reads the files again; on error the last good pair stays.
    pub fn reload(&self) -> Result<(), EndpointTlsError> {
        self.current.store(Arc::new(read_web(&self.cert, &self.key)?));
        Ok(())
    }
}

fn read_web(cert: &Path, key: &Path) -> Result<CertifiedKey, EndpointTlsError> {
    let (cert_pem, key_pem) = (read_public(cert)?, read_key(key)?);
    let no = |reason: String| EndpointTlsError::NoCertificate { file: cert.to_owned(), reason };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(&cert_pem).take(CHAIN_MAX + 1).collect();
    let chain = chain.map_err(|e| no(e.to_string()))?;
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        return Err(no(format!("there are {} certificates, and 1 to {CHAIN_MAX} are possible", chain.len())));
    }
    // The parser's error is not shown: it could quote what it read.
    let no_key = || EndpointTlsError::NoKey(key.to_owned());
    let private = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| no_key())?;
    let signer = provider().key_provider.load_private_key(private).map_err(|_| no_key())?;
    let pair = CertifiedKey::new(chain, signer);
    match pair.keys_match() {
        Ok(()) => Ok(pair),
        Err(_) => Err(EndpointTlsError::Mismatch { cert: cert.to_owned(), key: key.to_owned() }),
    }
}
