//! Whom we know already: what a new peer must not be, or speak for. Pure.

use std::collections::BTreeMap;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::peering;

use crate::document::MeshDocument;
use crate::refusal::Refusal;

/// Trust domains and root keys that are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Our own trust domain.
    pub own_domain: Option<TrustDomain>,
    /// The peers' trust domains.
    pub domains: BTreeMap<TrustDomain, PeerName>,
    /// SHA-256 of root public keys, with whose they are; `None` is ourselves.
    pub root_keys: BTreeMap<[u8; 32], Option<PeerName>>,
}

impl Known {
    /// Whether a mesh with this document may become a peer. What belongs to `except` is no
    /// hindrance: it is the same mesh again.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, document: &MeshDocument, except: Option<&PeerName>) -> Result<(), Refusal> {
        if self.own_domain.as_ref() == Some(&document.trust_domain) {
            return Err(Refusal::OwnDomain);
        }
        if self.domains.get(&document.trust_domain).is_some_and(|peer| Some(peer) != except) {
            return Err(Refusal::KnownDomain);
        }
        for root in &document.roots {
            let key = peering::key_fingerprint(root).ok_or(Refusal::Malformed)?;
            if self
                .root_keys
                .get(&key)
                .is_some_and(|owner| owner.as_ref().is_none_or(|peer| Some(peer) != except))
            {
                return Err(Refusal::KnownRoot);
            }
        }
        Ok(())
    }
}
