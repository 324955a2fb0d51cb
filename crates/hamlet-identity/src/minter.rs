//! Leaves minted per SNI by the local CA, so that clients which check the host name accept the
//! ingress (decision 22). Cached, bounded, renewed before they expire.
//!
//! It doesn't decide which SNI is served: the ingress asks only for names it routes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hamlet_core::{Fqdn, SpiffeId};
use hamlet_runtime::Clock;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::sign::{CertifiedKey, SigningKey};

use crate::ca::{CaError, LocalCa, signing_key};
use crate::local::LocalIdentity;

/// Most minted leaves that are kept; the one that would be renewed first makes room.
pub const MINTED_MAX: usize = 4096;

/// The CA that signs leaves at the moment, if there is one; whoever renews it swaps the next one in.
pub type CurrentCa = Arc<ArcSwapOption<LocalCa>>;

struct Minted {
    ca: Arc<LocalCa>,
    leaf: Arc<CertifiedKey>,
    id: SpiffeId,
    renew_at: Duration,
}

/// Mints leaves with the gateway's id and one DNS SAN.
pub struct SniMinter {
    ca: CurrentCa,
    identity: Arc<LocalIdentity>,
    clock: Arc<dyn Clock>,
    /// One key for all leaves: they all prove the same id.
    key: KeyPair,
    signer: Arc<dyn SigningKey>,
    minted: Mutex<BTreeMap<Fqdn, Minted>>,
}

impl fmt::Debug for SniMinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SniMinter").field("ca", &self.ca.load()).finish_non_exhaustive()
    }
}

impl SniMinter {
    /// A minter of leaves with the id of `identity`, the gateway's, signed by `ca`.
    pub fn new(
        ca: Arc<LocalCa>,
        identity: Arc<LocalIdentity>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<SniMinter>, CaError> {
        SniMinter::following(Arc::new(ArcSwapOption::new(Some(ca))), identity, clock)
    }

    /// The same with a CA that is renewed: what the one before it signed is minted anew when it is
    /// asked for again.
    pub fn following(
        ca: CurrentCa,
        identity: Arc<LocalIdentity>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<SniMinter>, CaError> {
        let (id, domain) = (identity.spiffe_id(), ca.load().as_ref().map(|ca| ca.trust_domain().clone()));
        if let Some(domain) = domain.filter(|domain| domain != id.trust_domain()) {
            return Err(CaError::ForeignId { id, domain });
        }
        let key = KeyPair::generate()?;
        let signer = signing_key(&key)?;
        Ok(Arc::new(SniMinter { ca, identity, clock, key, signer, minted: Mutex::default() }))
    }

    /// The leaf for `sni`, minted now if there is none, or none that lasts.
    pub fn leaf(&self, sni: &Fqdn) -> Result<Arc<CertifiedKey>, CaError> {
        let (now, id) = (self.clock.wall(), self.identity.spiffe_id());
        let ca = self.ca.load_full().ok_or(CaError::Absent)?;
        if let Some(minted) = self.minted.lock().get(sni)
            && minted.renew_at > now
            && minted.id == id
            && Arc::ptr_eq(&minted.ca, &ca)
        {
            return Ok(minted.leaf.clone());
        }
        let (chain, until) = ca.issue_for_sni(&id, sni, &self.key)?;
        let leaf = Arc::new(CertifiedKey::new(chain, self.signer.clone()));
        // A third before its end; near the CA's own end that is at once, and each time.
        let renew_at = until.saturating_sub(ca.sni_life() / 3);
        let mut minted = self.minted.lock();
        if minted.len() >= MINTED_MAX && !minted.contains_key(sni) {
            let first = minted.iter().min_by_key(|(_, m)| m.renew_at).map(|(name, _)| name.clone());
            if let Some(first) = first {
                minted.remove(&first);
            }
        }
        minted.insert(sni.clone(), Minted { ca, leaf: leaf.clone(), id, renew_at });
        Ok(leaf)
    }

    /// How many leaves are kept.
    pub fn kept(&self) -> usize {
        self.minted.lock().len()
    }
}
