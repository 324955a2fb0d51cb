//! Whom we believe: one entry a peer, swapped as a whole, shared by all TLS configurations.
//!
//! Holds no socket and no configuration document. Invariant: a trust domain, a DNS name and a
//! fingerprint belong to at most one peer, and an id listed for a peer lies in that peer's trust
//! domain.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::{Fqdn, PeerName, SpiffeId, TrustDomain};
use hamlet_runtime::Clock;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::bundle::TrustBundle;
use crate::crl::RevocationLists;
use crate::failures::RecentFailures;
use crate::workload::GivenLists;

/// Which of a mesh's two workloads a certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The agent: catalogue streams.
    Agent,
    /// The gateway: service traffic.
    Gateway,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Agent => "agent",
            Role::Gateway => "gateway",
        })
    }
}

/// SHA-256 of a certificate in DER.
pub type Fingerprint = [u8; 32];

/// What proves the agents of a peer that has no SPIFFE ids, instead of them. Its gateways prove
/// SPIFFE ids or are nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignIdentity {
    /// One of exactly these DNS names among the leaf's subject alternative names. No wildcard, and
    /// no look at the common name.
    Dns(Vec<Fqdn>),
    /// The leaf is one of exactly these certificates. One that stands in the peer's bundle itself
    /// needs no CA above it.
    Fingerprints(Vec<Fingerprint>),
}

/// What proves one peer. An empty list of ids means that nobody may play that role.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerTrust {
    /// The peer's name in our configuration.
    pub peer: PeerName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its CAs, for that trust domain.
    pub bundle: Arc<TrustBundle>,
    /// The exact ids of its agents; empty for a peer with a foreign identity.
    pub agent_ids: Vec<SpiffeId>,
    /// The exact ids of its gateways.
    pub gateway_ids: Vec<SpiffeId>,
    /// What its agents prove instead of ids.
    pub foreign: Option<ForeignIdentity>,
    /// What it has revoked; every chain of this peer is checked against it.
    pub revoked: Option<Arc<RevocationLists>>,
    /// The lists that came over the Workload API, which every chain is checked against as well.
    pub given_lists: Option<Arc<GivenLists>>,
}

impl PeerTrust {
    /// A peer that proves SPIFFE ids of its bundle's trust domain.
    pub fn new(
        peer: PeerName,
        bundle: Arc<TrustBundle>,
        agent_ids: Vec<SpiffeId>,
        gateway_ids: Vec<SpiffeId>,
    ) -> PeerTrust {
        let trust_domain = bundle.trust_domain().clone();
        PeerTrust {
            peer,
            trust_domain,
            bundle,
            agent_ids,
            gateway_ids,
            foreign: None,
            revoked: None,
            given_lists: None,
        }
    }

    /// The ids configured for `role`.
    pub fn ids(&self, role: Role) -> &[SpiffeId] {
        match role {
            Role::Agent => &self.agent_ids,
            Role::Gateway => &self.gateway_ids,
        }
    }

    /// What proves `role`, if it isn't SPIFFE ids.
    pub(crate) fn foreign(&self, role: Role) -> Option<&ForeignIdentity> {
        self.foreign.as_ref().filter(|_| role == Role::Agent)
    }
}

/// What in a certificate proved its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProvenId {
    /// Its SPIFFE id.
    Spiffe(SpiffeId),
    /// One of its DNS names, for a peer configured by name.
    Dns(Fqdn),
    /// The certificate itself, for a peer configured by fingerprint.
    Certificate(Fingerprint),
}

impl ProvenId {
    /// The SPIFFE id, if that was proven.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        match self {
            ProvenId::Spiffe(id) => Some(id),
            ProvenId::Dns(_) | ProvenId::Certificate(_) => None,
        }
    }
}

impl From<SpiffeId> for ProvenId {
    fn from(id: SpiffeId) -> ProvenId {
        ProvenId::Spiffe(id)
    }
}

impl PartialEq<SpiffeId> for ProvenId {
    fn eq(&self, id: &SpiffeId) -> bool {
        self.spiffe() == Some(id)
    }
}

impl fmt::Display for ProvenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProvenId::Spiffe(id) => write!(f, "{id}"),
            ProvenId::Dns(name) => write!(f, "dns:{name}"),
            ProvenId::Certificate(fingerprint) => f.write_str(&fingerprint_text(fingerprint)),
        }
    }
}

/// The fingerprint of a certificate.
pub fn fingerprint_of(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// A fingerprint as it is written in documents: `sha256:` and 64 digits.
pub fn fingerprint_text(fingerprint: &Fingerprint) -> String {
    let hex = fingerprint.iter().map(|b| format!("{b:02x}"));
    format!("sha256:{}", hex.collect::<String>())
}

/// A peer whose certificate chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenPeer {
    /// Its name in our configuration.
    pub peer: PeerName,
    /// What it proved.
    pub id: ProvenId,
    /// The role it proved it for.
    pub role: Role,
    /// SHA-256 of its certificate.
    pub fingerprint: Fingerprint,
    /// When the proof ends: the earliest end of validity in the chain, the CA included, since the
    /// epoch.
    pub not_after: Duration,
    /// What it presented, leaf first: trust may change, and then it is to be proven again.
    pub chain: Arc<[CertificateDer<'static>]>,
}

/// Why a set of peers can't be believed together. The table keeps its last state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrustError {
    #[error("peer {0} is there twice; give each peer a name of its own")]
    DuplicatePeer(PeerName),
    #[error(
        "trust domain {domain} belongs to peer {first} and to peer {second}; a trust domain has one owner: \
         make them one peer"
    )]
    DuplicateTrustDomain { domain: TrustDomain, first: PeerName, second: PeerName },
    #[error(
        "peer {peer} has our own trust domain {domain}; a peer is another mesh with its own trust domain"
    )]
    OwnTrustDomain { peer: PeerName, domain: TrustDomain },
    #[error("the {role} id {id} of peer {peer} is not in its trust domain {domain}; correct the id")]
    ForeignId { peer: PeerName, role: Role, id: SpiffeId, domain: TrustDomain },
    #[error("peer {peer} has trust domain {domain} but a bundle for {bundle}; load the bundle for {domain}")]
    ForeignBundle { peer: PeerName, domain: TrustDomain, bundle: TrustDomain },
    #[error("peer {0} has agent ids beside DNS names or fingerprints; keep what its agent really proves")]
    MixedIdentity(PeerName),
    #[error("{what} belongs to peer {first} and to peer {second}; it proves one peer only: remove one")]
    DuplicateIdentity { what: String, first: PeerName, second: PeerName },
}

#[derive(Debug, Default)]
struct Peers {
    by_name: BTreeMap<PeerName, Arc<PeerTrust>>,
    by_domain: BTreeMap<TrustDomain, Arc<PeerTrust>>,
    by_dns: BTreeMap<Fqdn, Arc<PeerTrust>>,
    by_fingerprint: BTreeMap<Fingerprint, Arc<PeerTrust>>,
}

/// All peers we believe. Readers see one whole state; a replaced state acts on the next check.
pub struct TrustTable {
    clock: Arc<dyn Clock>,
    peers: ArcSwap<Peers>,
    own: Mutex<Option<TrustDomain>>,
    generation: watch::Sender<u64>,
    failures: RecentFailures,
}

impl fmt::Debug for TrustTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers: Vec<PeerName> = self.peers.load().by_name.keys().cloned().collect();
        f.debug_struct("TrustTable").field("peers", &peers).finish_non_exhaustive()
    }
}

impl TrustTable {
    /// A table that believes nobody. Validity is judged by `clock`'s wall time.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<TrustTable> {
        Arc::new(TrustTable {
            clock,
            peers: ArcSwap::default(),
            own: Mutex::new(None),
            generation: watch::Sender::new(0),
            failures: RecentFailures::default(),
        })
    }

    /// Sets our own trust domain, which no peer may have. Judged at the next [`Self::replace`].
    pub fn set_own_trust_domain(&self, domain: TrustDomain) {
        *self.own.lock() = Some(domain);
    }

    /// Swaps in a new set of peers, whole or not at all. The set that is there already changes
    /// nothing: what a reload repeats is no reason to prove every connection again, nor to forget
    /// the gateways' tickets.
    pub fn replace(&self, peers: Vec<PeerTrust>) -> Result<(), TrustError> {
        // Held over the swap, so that two callers can't bump in another order than they swapped.
        let own = self.own.lock();
        let next = check(peers, own.as_ref())?;
        if next.by_name == self.peers.load().by_name {
            return Ok(());
        }
        self.peers.store(Arc::new(next));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// The peer of that name.
    pub fn peer(&self, name: &PeerName) -> Option<Arc<PeerTrust>> {
        self.peers.load().by_name.get(name).cloned()
    }

    /// The peer that owns that trust domain.
    pub fn peer_of_domain(&self, domain: &TrustDomain) -> Option<Arc<PeerTrust>> {
        self.peers.load().by_domain.get(domain).cloned()
    }

    /// The peer with that DNS name.
    pub(crate) fn peer_of_dns(&self, name: &Fqdn) -> Option<Arc<PeerTrust>> {
        self.peers.load().by_dns.get(name).cloned()
    }

    /// The peer with that certificate.
    pub(crate) fn peer_of_fingerprint(&self, fingerprint: &Fingerprint) -> Option<Arc<PeerTrust>> {
        self.peers.load().by_fingerprint.get(fingerprint).cloned()
    }

    /// All peers, by name.
    pub fn peers(&self) -> Vec<Arc<PeerTrust>> {
        self.peers.load().by_name.values().cloned().collect()
    }

    /// The generation, bumped at each replace after the new state is visible.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The present generation.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// The last refusals.
    pub fn failures(&self) -> &RecentFailures {
        &self.failures
    }

    /// Wall clock since the epoch.
    pub(crate) fn wall(&self) -> Duration {
        self.clock.wall()
    }
}

impl Peers {
    /// Makes a peer findable by its DNS names or fingerprints, which nobody else may have.
    fn add_foreign(&mut self, trust: &Arc<PeerTrust>) -> Result<(), TrustError> {
        let Some(foreign) = &trust.foreign else { return Ok(()) };
        if !trust.agent_ids.is_empty() {
            return Err(TrustError::MixedIdentity(trust.peer.clone()));
        }
        let taken = |what: String, first: &PeerTrust| {
            let (first, second) = (first.peer.clone(), trust.peer.clone());
            Err(TrustError::DuplicateIdentity { what, first, second })
        };
        match foreign {
            ForeignIdentity::Dns(names) => {
                for name in names {
                    if let Some(first) = self.by_dns.insert(name.clone(), trust.clone()) {
                        return taken(name.to_string(), &first);
                    }
                }
            }
            ForeignIdentity::Fingerprints(all) => {
                for fingerprint in all {
                    if let Some(first) = self.by_fingerprint.insert(*fingerprint, trust.clone()) {
                        return taken(fingerprint_text(fingerprint), &first);
                    }
                }
            }
        }
        Ok(())
    }
}

fn check(peers: Vec<PeerTrust>, own: Option<&TrustDomain>) -> Result<Peers, TrustError> {
    let mut next = Peers::default();
    for trust in peers {
        let (peer, domain) = (&trust.peer, &trust.trust_domain);
        if own == Some(domain) {
            return Err(TrustError::OwnTrustDomain { peer: peer.clone(), domain: domain.clone() });
        }
        if trust.bundle.trust_domain() != domain {
            return Err(TrustError::ForeignBundle {
                peer: peer.clone(),
                domain: domain.clone(),
                bundle: trust.bundle.trust_domain().clone(),
            });
        }
        for role in [Role::Agent, Role::Gateway] {
            if let Some(id) = trust.ids(role).iter().find(|id| id.trust_domain() != domain) {
                return Err(TrustError::ForeignId {
                    peer: peer.clone(),
                    role,
                    id: id.clone(),
                    domain: domain.clone(),
                });
            }
        }
        if let Some(first) = next.by_domain.get(domain) {
            return Err(TrustError::DuplicateTrustDomain {
                domain: domain.clone(),
                first: first.peer.clone(),
                second: peer.clone(),
            });
        }
        if next.by_name.contains_key(peer) {
            return Err(TrustError::DuplicatePeer(peer.clone()));
        }
        let trust = Arc::new(trust);
        next.add_foreign(&trust)?;
        next.by_domain.insert(trust.trust_domain.clone(), trust.clone());
        next.by_name.insert(trust.peer.clone(), trust);
    }
    Ok(next)
}
