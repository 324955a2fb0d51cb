//! Our own certificate, the agent's or the gateway's, with hot reload.
//!
//! It watches nothing itself ([`crate::watch`] does). Invariant: what is presented is always a
//! whole, matching pair of certificate and key that keeps the same rules as a peer's; a bad new
//! pair leaves the last good one in place. Where there never was a good one, nothing is presented:
//! no handshake succeeds, and what would listen waits ([`LocalIdentity::unusable`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hamlet_core::{SpiffeId, TrustDomain};
use hamlet_runtime::Clock;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::ca::PemPair;
use crate::files::{FileError, read_key, read_public};
use crate::inspect::inspect;
use crate::refused::{VerifyError, time_text};
use crate::tls::provider;
use crate::verify::{CHAIN_MAX, Usage, check_leaf};

/// Why a certificate and its key can't be our identity.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("{cert} has no certificate; put the leaf in it (PEM), then its intermediates")]
    NoCertificate { cert: String },
    #[error(
        "{cert} has more than {CHAIN_MAX} certificates; keep the leaf and its intermediates, without the root"
    )]
    ChainTooLong { cert: String },
    #[error("{file} can't be read as PEM: {error}; write it again")]
    Pem { file: String, error: String },
    #[error("{key} has no usable private key: {error}; use an unencrypted PKCS#8, SEC1 or PKCS#1 key in PEM")]
    Key { key: String, error: String },
    #[error("{key} is not the key of the certificate in {cert}; replace both files together")]
    Mismatch { cert: String, key: String },
    #[error("{cert} can't be our identity: {error}")]
    Leaf { cert: String, error: VerifyError },
    #[error("the certificate in {cert} expired at {}; renew it", time_text(.not_after))]
    Expired { cert: String, not_after: Duration },
    #[error(
        "{cert} proves {id}, which is outside our trust domain {domain}; issue a certificate of {domain}"
    )]
    OtherDomain { cert: String, id: SpiffeId, domain: TrustDomain },
}

struct Current {
    key: Arc<CertifiedKey>,
    id: SpiffeId,
    dns_names: Vec<String>,
    not_after: Duration,
    /// Of the two files, to tell a change from a touch.
    stamp: [u8; 32],
}

/// Why a [`CertificateProvider`] has no certificate to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {remedy}")]
pub struct ProviderError {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    pub remedy: String,
}

impl ProviderError {
    /// What is wrong, and what to do.
    pub fn new(error: impl Into<String>, remedy: impl Into<String>) -> ProviderError {
        ProviderError { error: error.into(), remedy: remedy.into() }
    }
}

/// Where an identity comes from that isn't in files: a secret store, an agent of one's own, an API.
pub trait CertificateProvider: Send + Sync + 'static {
    /// The chain (leaf first) and its key, as they are now. Asked again every
    /// [`POLL`](crate::watch::POLL) or sooner, on an async thread: answer from memory, and fetch
    /// elsewhere.
    ///
    /// # Errors
    /// Why there is none; the last good pair stays in use.
    fn current(&self) -> Result<PemPair, ProviderError>;
}

enum Origin {
    Files { cert: PathBuf, key: PathBuf },
    Provider(Arc<dyn CertificateProvider>),
    Memory,
}

/// One leaf certificate with its key: what we present in handshakes.
pub struct LocalIdentity {
    origin: Origin,
    clock: Arc<dyn Clock>,
    /// What is presented; empty if there never was anything usable.
    current: ArcSwapOption<Current>,
    /// The id to speak of while there is none.
    expected: SpiffeId,
    /// The only trust domain that our id may be of, where that is known.
    domain: Option<TrustDomain>,
    last_error: Mutex<Option<String>>,
    /// Why whoever renews it could not.
    renewal_error: Mutex<Option<String>>,
    generation: watch::Sender<u64>,
}

impl fmt::Debug for LocalIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalIdentity").field("id", &self.spiffe_id()).finish_non_exhaustive()
    }
}

impl LocalIdentity {
    /// Loads a certificate chain (leaf first) and its key. An expired leaf is loaded with a
    /// warning, so that a restarted agent can serve what it knows; peers will refuse it.
    pub fn from_pem_files(
        cert: &Path,
        key: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<LocalIdentity>, IdentityError> {
        let origin = Origin::Files { cert: cert.to_owned(), key: key.to_owned() };
        let (cert_pem, key_pem) = (read_public(cert)?, read_key(key)?);
        LocalIdentity::load(origin, &cert_pem, &key_pem, clock)
    }

    /// Loads what proves an id of the trust domain of `expected`, or waits for it: a pair that is
    /// missing, unreadable, mismatched, of another trust domain or expired is not used, and is read
    /// again by [`Self::reload`]. Until then [`Self::unusable`] says why.
    pub fn from_pem_files_or_wait(
        cert: &Path,
        key: &Path,
        expected: SpiffeId,
        clock: Arc<dyn Clock>,
    ) -> Arc<LocalIdentity> {
        let origin = Origin::Files { cert: cert.to_owned(), key: key.to_owned() };
        LocalIdentity::waiting(origin, expected, clock)
    }

    /// The same from a provider: takes what it has when it has it.
    pub fn from_provider_or_wait(
        provider: Arc<dyn CertificateProvider>,
        expected: SpiffeId,
        clock: Arc<dyn Clock>,
    ) -> Arc<LocalIdentity> {
        LocalIdentity::waiting(Origin::Provider(provider), expected, clock)
    }

    fn waiting(origin: Origin, expected: SpiffeId, clock: Arc<dyn Clock>) -> Arc<LocalIdentity> {
        let domain = Some(expected.trust_domain().clone());
        let identity = Arc::new(LocalIdentity::empty(origin, expected, domain, clock));
        if let Err(error) = identity.reload() {
            tracing::error!(id = %identity.expected, %error, "this identity can't be used; what needs it doesn't start");
        }
        identity
    }

    fn empty(
        origin: Origin,
        expected: SpiffeId,
        domain: Option<TrustDomain>,
        clock: Arc<dyn Clock>,
    ) -> LocalIdentity {
        LocalIdentity {
            origin,
            clock,
            current: ArcSwapOption::empty(),
            expected,
            domain,
            last_error: Mutex::new(None),
            renewal_error: Mutex::new(None),
            generation: watch::Sender::new(0),
        }
    }

    /// The same from memory; there is nothing to reload then.
    pub fn from_pem(
        cert_pem: &[u8],
        key_pem: &[u8],
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<LocalIdentity>, IdentityError> {
        LocalIdentity::load(Origin::Memory, cert_pem, key_pem, clock)
    }

    /// The same from a provider, which a reload asks again.
    pub fn from_provider(
        provider: Arc<dyn CertificateProvider>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<LocalIdentity>, IdentityError> {
        let pair = provider.current()?;
        LocalIdentity::load(Origin::Provider(provider), pair.cert.as_bytes(), pair.key.as_bytes(), clock)
    }

    fn load(
        origin: Origin,
        cert_pem: &[u8],
        key_pem: &[u8],
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<LocalIdentity>, IdentityError> {
        let current = read_pair(&origin, cert_pem, key_pem)?;
        if current.not_after < clock.wall() {
            let until = time_text(&current.not_after);
            tracing::warn!(id = %current.id, %until, "our certificate has expired; peers will refuse it: renew it");
        }
        let identity = LocalIdentity::empty(origin, current.id.clone(), None, clock);
        identity.current.store(Some(Arc::new(current)));
        Ok(Arc::new(identity))
    }

    /// Reads the files again. `Ok(true)` if a new pair is now presented. On error (also a
    /// half-written pair, or a leaf that has expired already) the last good one stays and the
    /// error is kept in [`Self::last_error`].
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let result = self.try_reload();
        *self.last_error.lock() = result.as_ref().err().map(ToString::to_string);
        if matches!(result, Ok(true)) {
            self.generation.send_modify(|generation| *generation += 1);
        }
        result
    }

    /// As [`Self::reload`], but an error is only returned, and leaves no trace: for files that
    /// somebody may be replacing at the moment.
    pub(crate) fn reload_if_good(&self) -> Result<bool, IdentityError> {
        let new = self.try_reload()?;
        *self.last_error.lock() = None;
        if new {
            self.generation.send_modify(|generation| *generation += 1);
        }
        Ok(new)
    }

    fn try_reload(&self) -> Result<bool, IdentityError> {
        let (cert_pem, key_pem) = match &self.origin {
            Origin::Files { cert, key } => (read_public(cert)?, read_key(key)?),
            Origin::Provider(provider) => {
                let pair = provider.current()?;
                (pair.cert.into_bytes(), pair.key.into_bytes())
            }
            Origin::Memory => return Ok(false),
        };
        let old = self.current.load();
        if old.as_ref().is_some_and(|old| stamp(&cert_pem, &key_pem) == old.stamp) {
            return Ok(false);
        }
        let new = read_pair(&self.origin, &cert_pem, &key_pem)?;
        if new.not_after < self.clock.wall() {
            return Err(IdentityError::Expired { cert: cert_name(&self.origin), not_after: new.not_after });
        }
        if let Some(domain) = self.domain.as_ref().filter(|domain| *domain != new.id.trust_domain()) {
            let (cert, id, domain) = (cert_name(&self.origin), new.id, domain.clone());
            return Err(IdentityError::OtherDomain { cert, id, domain });
        }
        if let Some(old) = old.as_ref().filter(|old| old.id != new.id) {
            tracing::warn!(old = %old.id, new = %new.id, "our id changed; peers must list the new one");
        }
        self.current.store(Some(Arc::new(new)));
        Ok(true)
    }

    /// Why nothing is presented, if nothing is: what needs this identity must not start.
    pub fn unusable(&self) -> Option<String> {
        let none = self.current.load().is_none();
        none.then(|| self.last_error().unwrap_or_else(|| "it was not read yet; try again".to_owned()))
    }

    /// The id we prove, or are to prove.
    pub fn spiffe_id(&self) -> SpiffeId {
        self.look(|current| current.id.clone()).unwrap_or_else(|| self.expected.clone())
    }

    /// DNS SANs of the leaf.
    pub fn dns_names(&self) -> Vec<String> {
        self.look(|current| current.dns_names.clone()).unwrap_or_default()
    }

    /// End of the validity of our chain, since the epoch; zero if there is none.
    pub fn not_after(&self) -> Duration {
        self.look(|current| current.not_after).unwrap_or_default()
    }

    /// The chain we present, leaf first; empty if there is none.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.look(|current| current.key.cert.clone()).unwrap_or_default()
    }

    /// SHA-256 of our leaf.
    pub fn fingerprint(&self) -> [u8; 32] {
        let chain = self.chain();
        Sha256::digest(chain.first().map(AsRef::as_ref).unwrap_or_default()).into()
    }

    fn look<R>(&self, f: impl FnOnce(&Current) -> R) -> Option<R> {
        self.current.load().as_deref().map(f)
    }

    /// Notes whether the last renewal failed, and why; shown by [`Self::last_error`].
    pub fn note_renewal(&self, error: Option<String>) {
        *self.renewal_error.lock() = error;
    }

    /// What the last reload or renewal failed with; `None` after a good one.
    pub fn last_error(&self) -> Option<String> {
        let reload = self.last_error.lock().clone();
        reload.or_else(|| self.renewal_error.lock().clone())
    }

    /// Bumped whenever a new pair is presented.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    pub(crate) fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        self.look(|current| current.key.clone())
    }

    /// The folders to watch and the files in them.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match &self.origin {
            Origin::Files { cert, key } => vec![cert.clone(), key.clone()],
            Origin::Provider(_) | Origin::Memory => Vec::new(),
        }
    }
}

fn cert_name(origin: &Origin) -> String {
    match origin {
        Origin::Files { cert, .. } => cert.display().to_string(),
        Origin::Provider(_) => "the provider's certificate".to_owned(),
        Origin::Memory => "the given certificate".to_owned(),
    }
}

fn key_name(origin: &Origin) -> String {
    match origin {
        Origin::Files { key, .. } => key.display().to_string(),
        Origin::Provider(_) => "the provider's key".to_owned(),
        Origin::Memory => "the given key".to_owned(),
    }
}

fn stamp(cert_pem: &[u8], key_pem: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((cert_pem.len() as u64).to_be_bytes());
    hash.update(cert_pem);
    hash.update(key_pem);
    hash.finalize().into()
}

/// Whether a certificate chain and a key in PEM can be an identity of ours.
pub(crate) fn usable_pair(cert_pem: &[u8], key_pem: &[u8]) -> Result<(), IdentityError> {
    read_pair(&Origin::Memory, cert_pem, key_pem).map(|_| ())
}

fn read_pair(origin: &Origin, cert_pem: &[u8], key_pem: &[u8]) -> Result<Current, IdentityError> {
    let (cert, key) = (cert_name(origin), key_name(origin));
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    for section in CertificateDer::pem_slice_iter(cert_pem) {
        let error =
            |e: rustls_pki_types::pem::Error| IdentityError::Pem { file: cert.clone(), error: e.to_string() };
        chain.push(section.map_err(error)?);
        if chain.len() > CHAIN_MAX {
            return Err(IdentityError::ChainTooLong { cert });
        }
    }
    let first = chain.first().ok_or(IdentityError::NoCertificate { cert: cert.clone() })?;
    let bad = |error| IdentityError::Leaf { cert: cert.clone(), error };
    let malformed = |at, reason| bad(VerifyError::Malformed { at, reason });
    let leaf = inspect(first).map_err(|reason| malformed(1, reason))?;
    let id = check_leaf(&leaf, &[Usage::Client, Usage::Server]).map_err(bad)?;
    let mut not_after = leaf.not_after;
    for (index, above) in chain.iter().enumerate().skip(1) {
        let above = inspect(above).map_err(|reason| malformed(index + 1, reason))?;
        not_after = not_after.min(above.not_after);
    }
    let no_key = |error: String| IdentityError::Key { key: key.clone(), error };
    // The parser's error is not shown: it could quote what it read.
    let private = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|_| no_key("no private key found in it".to_owned()))?;
    let signer = provider()
        .key_provider
        .load_private_key(private)
        .map_err(|_| no_key("unknown kind of key".to_owned()))?;
    let certified = CertifiedKey::new(chain, signer);
    certified.keys_match().map_err(|_| IdentityError::Mismatch { cert: cert.clone(), key: key.clone() })?;
    Ok(Current {
        key: Arc::new(certified),
        id,
        dns_names: leaf.dns,
        not_after,
        stamp: stamp(cert_pem, key_pem),
    })
}
