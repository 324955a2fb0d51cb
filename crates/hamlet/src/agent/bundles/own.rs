//! Our own bundle: the CAs of our trust domain, with a sequence that grows when they change.
//!
//! Where the CAs come from is [`own_authorities`]'s matter alone. Invariant: the sequence never goes
//! back, not even when the store is lost: it is at least the time of the change in seconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hamlet_core::rejection::one_line;
use hamlet_identity::authority::bundle_file;
use hamlet_identity::{Authorities, SpiffeBundle, TrustBundle, WebLeaf};
use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::super::Agent;
use super::read_file;
use crate::audit::Actor;
use crate::config::{IdentityConfig, MeshConfig};
use crate::hex::hex;

/// The document in the store with our sequence and what it stands for.
const OWN_DOCUMENT: &str = "own-bundle";

/// What we publish, and the web certificate with which we do.
pub(in crate::agent) struct OwnBundles {
    current: Mutex<Result<SpiffeBundle, String>>,
    /// Of an `https_web` endpoint.
    pub(super) web: Mutex<Option<Arc<WebLeaf>>>,
}

impl Default for OwnBundles {
    fn default() -> OwnBundles {
        let starting = Err("the agent is still starting; try again".to_owned());
        OwnBundles { current: Mutex::new(starting), web: Mutex::new(None) }
    }
}

/// The file with the CAs of our own trust domain: the authority's, `identity.bundle`, or the local CA's
/// certificate. A Workload API needs none.
pub(in crate::agent) fn own_file(mesh: &MeshConfig) -> Option<PathBuf> {
    match &mesh.identity {
        IdentityConfig::Authority(authority) => Some(bundle_file(&authority.folder)),
        IdentityConfig::WorkloadApi(_) => None,
        IdentityConfig::Files(files) => {
            files.bundle.clone().or_else(|| files.ca.as_ref().map(|ca| ca.cert.clone()))
        }
    }
}

/// What such a file says.
pub(in crate::agent) fn read_authorities(mesh: &MeshConfig, path: &Path) -> Result<SpiffeBundle, String> {
    let bytes = read_file(path, "our")?;
    SpiffeBundle::from_bytes(mesh.trust_domain.clone(), &bytes)
        .map_err(|e| format!("{}: {e}", path.display()))
}

/// The CAs of our own trust domain as the files say.
pub(crate) fn own_authorities(mesh: &MeshConfig) -> Result<SpiffeBundle, String> {
    if let IdentityConfig::WorkloadApi(api) = &mesh.identity {
        let why = "gives our CA certificates, and only to the agent: start it, and ask again";
        return Err(format!("the Workload API at {} {why}", api.socket));
    }
    let path = own_file(mesh).ok_or(
        "`identity` has neither `authority`, `bundle` nor `ca`, so our CA certificates are not known; name \
         their file in `identity.bundle`",
    )?;
    read_authorities(mesh, &path)
}

impl Agent {
    /// The CAs of our own trust domain, as the files or the Workload API say now.
    pub(in crate::agent) fn own_authorities(&self, mesh: &MeshConfig) -> Result<SpiffeBundle, String> {
        let Some(api) = &self.workload_api else { return own_authorities(mesh) };
        let domain = &mesh.trust_domain;
        match api.bundle(domain) {
            Some(Ok(bundle)) => Ok(SpiffeBundle::of((*bundle).clone())),
            Some(Err(why)) => Err(format!("our bundle from the Workload API: {why}")),
            None => Err(api.problem().unwrap_or_else(|| {
                let hint = "see whether it is that of our trust domain (spec.trustDomain)";
                format!("the Workload API at {} gives no bundle of {domain}; {hint}", api.endpoint())
            })),
        }
    }

    /// Looks at the files again. What can't be read leaves the last good one published.
    pub(in crate::agent) async fn refresh_own_bundle(&self) {
        let config = self.config();
        if let Some(Err(error)) = self.own.web.lock().as_ref().map(|leaf| leaf.reload()) {
            tracing::error!(%error, "the bundle endpoint's new certificate can't be used; the last good one stays");
        }
        let mut found = match self.own_authorities(&config.mesh) {
            Ok(found) => found,
            Err(why) => {
                let mut current = self.own.current.lock();
                if current.is_ok() {
                    tracing::error!(%why, "our own bundle can't be read; the last good one stays published");
                } else {
                    *current = Err(why);
                }
                return;
            }
        };
        let print = hex(&found.authorities.fingerprint());
        let kept = self.store.get_document(OWN_DOCUMENT).unwrap_or_else(|error| {
            tracing::error!(%error, "the sequence of our bundle was lost; it goes on from the time");
            None
        });
        let (sequence, known) = next_sequence(kept.as_deref(), &print, self.clock.wall().as_secs());
        let sequence = sequence.max(found.sequence.unwrap_or(0));
        if !known {
            let bytes = format!("{sequence} {print}").into_bytes();
            if let Err(error) = self.store.put_document(OWN_DOCUMENT, bytes).await {
                tracing::error!(%error, "the sequence of our bundle could not be kept");
            }
            tracing::info!(sequence, "our bundle");
        }
        found.sequence = Some(sequence);
        found.refresh_hint = config.mesh.bundle_endpoint.as_ref().map(|e| e.refresh_hint);
        let actor = match config.mesh.identity {
            IdentityConfig::Authority(_) => Actor::Authority,
            IdentityConfig::WorkloadApi(_) => Actor::WorkloadApi,
            IdentityConfig::Files(_) => Actor::Files,
        };
        self.audit.own_roots(&found, actor);
        *self.own.current.lock() = Ok(found);
        self.say_own_bundle();
    }

    /// The sequence that exactly these CAs are published with.
    pub(in crate::agent) fn published_sequence(&self, roots: &[CertificateDer<'static>]) -> Option<u64> {
        let domain = self.config().mesh.trust_domain.clone();
        let these = Authorities::Certificates(TrustBundle::from_ders(domain, roots.to_vec()).ok()?);
        let current = self.own.current.lock();
        let published = current.as_ref().ok()?;
        published.sequence.filter(|_| published.authorities.fingerprint() == these.fingerprint())
    }

    /// Our bundle, or why there is none.
    pub(super) fn own_bundle(&self) -> Result<SpiffeBundle, String> {
        self.own.current.lock().clone()
    }

    /// Our bundle as a JWK set, or why there is none.
    pub(in crate::agent) fn own_jwks(&self) -> Result<String, String> {
        let current = self.own.current.lock().clone();
        current.and_then(|bundle| bundle.to_jwks().map_err(|e| one_line(&e.to_string(), 1024)))
    }
}

/// The sequence for content `print`, and whether it is the one kept.
fn next_sequence(kept: Option<&[u8]>, print: &str, wall: u64) -> (u64, bool) {
    let kept = kept.and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|text| text.split_once(' '));
    match kept.and_then(|(sequence, of)| Some((sequence.parse::<u64>().ok()?, of))) {
        Some((sequence, of)) if of == print => (sequence, true),
        Some((sequence, _)) => (sequence.saturating_add(1).max(wall), false),
        None => (wall, false),
    }
}

#[cfg(test)]
mod tests {
    use super::next_sequence;

    #[test]
    fn the_sequence_grows_with_the_content_and_survives_a_lost_store_and_a_clock_that_went_back() {
        assert_eq!(next_sequence(None, "a", 100), (100, false));
        assert_eq!(next_sequence(Some(b"100 a"), "a", 500), (100, true));
        assert_eq!(next_sequence(Some(b"100 a"), "b", 500), (500, false));
        assert_eq!(next_sequence(Some(b"600 a"), "b", 500), (601, false));
        assert_eq!(next_sequence(Some(b"nonsense"), "b", 500), (500, false));
    }
}
