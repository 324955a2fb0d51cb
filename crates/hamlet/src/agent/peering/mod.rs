//! Peering by token in the agent: what is remembered, and how it changes. The exchange is in
//! `hamlet-peering`, the operator's requests in [`actions`], the listener's side in [`exchange`].
//!
//! Invariant: a change of the ledger is durable before anybody sees it, and changes are made one
//! after the other.

mod actions;
mod exchange;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use hamlet_admin::metrics::PeeringMetrics;
use hamlet_core::PeerName;
use hamlet_identity::peering::{Claim, bundle_of, key_fingerprint, proven_by};
use hamlet_identity::{TrustBundle, Usage, Validity, fingerprint_of};
use hamlet_peering::channel::EXCHANGES_MAX;
use hamlet_peering::{
    AgentAddress, InvitationId, Known, Ledger, LedgerError, MeshDocument, WRONG_PROOFS_A_MINUTE,
};
use hamlet_runtime::Clock;
use hamlet_store::{FILE_NAME, Opened, Store, StoreOptions};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::Agent;
use super::bundles::{own_file, read_authorities};
use crate::config::{Config, IdentityConfig, made};

pub(super) use exchange::PeeringAnnex;

/// The document in the store that holds the invitations and the names of the peers made by token.
const INDEX: &str = "peering";
const MINUTE: Duration = Duration::from_secs(60);

/// What was read before the agent is put together.
#[derive(Default)]
pub(crate) struct Kept {
    /// The store, if there is one already.
    pub(super) opened: Option<Opened>,
    /// What it says of peerings.
    pub(super) ledger: Ledger,
}

impl Kept {
    /// Opens the store of a data folder if there is one, and reads the ledger. Blocks.
    pub(super) fn open(data: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<Kept> {
        if !data.join(FILE_NAME).exists() {
            return Ok(Kept::default());
        }
        let options = StoreOptions { clock: clock.clone(), ..StoreOptions::default() };
        let opened = Store::open(data, options)?;
        // Without it peers would be forgotten without a word, and their names free for others.
        let ledger = read_ledger(&opened.store).context("the peers made by token can't be read")?;
        Ok(Kept { opened: Some(opened), ledger })
    }
}

fn read_ledger(store: &Store) -> Result<Ledger, LedgerError> {
    let read = |name: &str| store.get_document(name).map_err(|e| LedgerError::Damaged(e.to_string()));
    let Some(index) = read(INDEX)? else { return Ok(Ledger::default()) };
    Ledger::read(&index, |peer| {
        let missing = || LedgerError::Damaged(format!("the document of peer {peer} is missing"));
        read(&document_name(peer))?.ok_or_else(missing)
    })
}

fn document_name(peer: &PeerName) -> String {
    format!("{INDEX}/{peer}")
}

/// What the agent holds of peerings.
pub(super) struct Peering {
    ledger: ArcSwap<Ledger>,
    /// Whoever changes the ledger.
    turn: Semaphore,
    /// Connections that exchange now.
    exchanges: Arc<Semaphore>,
    /// Wrong proofs in the minute that began then, by invitation.
    wrong: Mutex<BTreeMap<InvitationId, (Duration, u32)>>,
    /// How exchanges ended.
    pub(super) metrics: PeeringMetrics,
}

impl Peering {
    pub(super) fn new(ledger: Ledger) -> Peering {
        Peering {
            ledger: ArcSwap::from_pointee(ledger),
            turn: Semaphore::new(1),
            exchanges: Arc::new(Semaphore::new(EXCHANGES_MAX)),
            wrong: Mutex::default(),
            metrics: PeeringMetrics::default(),
        }
    }

    /// The ledger as it is now.
    pub(super) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.load_full()
    }

    /// Whether an invitation has had too many wrong proofs in this minute.
    fn is_busy(&self, id: &InvitationId, now: Duration) -> bool {
        let wrong = self.wrong.lock();
        wrong.get(id).is_some_and(|(since, count)| {
            now.saturating_sub(*since) < MINUTE && *count >= WRONG_PROOFS_A_MINUTE
        })
    }

    /// Counts a wrong proof.
    fn count_wrong(&self, id: &InvitationId, now: Duration) {
        let mut wrong = self.wrong.lock();
        // Only ids of the ledger come here, so there are never many.
        wrong.retain(|_, (since, _)| now.saturating_sub(*since) < MINUTE);
        wrong.entry(*id).or_insert((now, 0)).1 += 1;
    }
}

/// Why the ledger wasn't changed.
#[derive(Debug, thiserror::Error)]
enum ChangeError<E> {
    #[error("{0}")]
    Refused(E),
    #[error("the store doesn't take it: {0}; `hamlet status` shows its health")]
    Store(String),
}

impl Agent {
    /// Makes one change of the ledger durable and then visible. Nothing changes if it fails.
    async fn change_ledger<T, E>(
        &self,
        change: impl FnOnce(&mut Ledger) -> Result<T, E>,
    ) -> Result<T, ChangeError<E>> {
        let store_error = |e: &dyn std::fmt::Display| ChangeError::Store(e.to_string());
        let turn: SemaphorePermit<'_> = self.peering.turn.acquire().await.map_err(|e| store_error(&e))?;
        let before = self.peering.ledger();
        let mut after = (*before).clone();
        let outcome = change(&mut after).map_err(ChangeError::Refused)?;
        let index = after.index().map_err(|e| store_error(&e))?;
        let mut documents = vec![(INDEX.to_owned(), Some(index))];
        for (name, peer) in after.peers.iter().filter(|(name, peer)| before.peers.get(*name) != Some(peer)) {
            let bytes = Ledger::peer_bytes(peer).map_err(|e| store_error(&e))?;
            documents.push((document_name(name), Some(bytes)));
        }
        let gone = before.peers.keys().filter(|name| !after.peers.contains_key(*name));
        documents.extend(gone.map(|name| (document_name(name), None)));
        self.store.put_documents(documents).await.map_err(|e| store_error(&e))?;
        self.peering.ledger.store(Arc::new(after));
        drop(turn);
        self.bump();
        Ok(outcome)
    }

    /// Invitations that somebody may still use.
    pub(super) fn invitations_open(&self) -> u64 {
        let (ledger, now) = (self.peering.ledger(), self.clock.wall());
        ledger.invitations.iter().filter(|invitation| invitation.is_unused(now)).count() as u64
    }

    /// Writes the derived files and takes the configuration with the ledger as it is now; returns
    /// what stands in the way.
    async fn take_ledger(&self) -> Vec<String> {
        let (data, ledger) = (self.config().mesh.data.clone(), self.peering.ledger());
        let written = self.spawner.spawn_blocking(move || made::write(&data, ledger.peers.values())).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "the peers made by token can't be written into the data folder");
            return vec![format!("the data folder can't be written: {error}; check its owner and mode")];
        }
        match self.reload().await {
            Ok(_) => vec![],
            Err(problems) => problems.problems,
        }
    }

    /// Our roots: those that we publish, or where the configuration names none, the `ca.pem` beside
    /// the agent's certificate. One that proves our own certificate comes first; the newest of them,
    /// since an older one proves it only as long as it overlaps.
    fn own_roots(&self, config: &Config) -> Result<Vec<CertificateDer<'static>>, String> {
        let mesh = &config.mesh;
        let (read, shown, hint) = match (&mesh.identity, own_file(mesh)) {
            (IdentityConfig::Files(files), None) => {
                let file = files.agent.cert.with_file_name("ca.pem");
                let hint = "put our CA's certificates there, or name them in spec.identity.bundle";
                (read_authorities(mesh, &file)?.authorities, file.display().to_string(), hint)
            }
            (IdentityConfig::WorkloadApi(api), _) => {
                let hint = "see what the SPIRE server signs with (`spire-server bundle show`)";
                (self.own_authorities(mesh)?.authorities, format!("the bundle from {}", api.socket), hint)
            }
            (IdentityConfig::Files(_) | IdentityConfig::Authority(_), file) => {
                let shown = file.map(|file| file.display().to_string()).unwrap_or_default();
                let hint = "put our CA's certificates there, or name them in spec.identity.bundle";
                (self.own_authorities(mesh)?.authorities, shown, hint)
            }
        };
        let anchors = read.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let mut roots: Vec<CertificateDer<'static>> = anchors.iter().map(|a| a.der.clone()).collect();
        let proves = |root: &CertificateDer<'static>| {
            let bundle = bundle_of(config.mesh.trust_domain.clone(), vec![root.clone()]).ok();
            let agent_ids = vec![self.agent_identity.spiffe_id()];
            let claim = bundle.map(|bundle| Claim { bundle: Arc::new(bundle), agent_ids });
            let chain = self.agent_identity.chain();
            claim.is_some_and(|claim| proven_by(&claim, &chain, Usage::Server, &self.clock).is_ok())
        };
        let begins = |root: &CertificateDer<'_>| Validity::of(root).map(|valid| valid.not_before);
        roots.sort_by_key(|root| (!proves(root), Reverse(begins(root))));
        if !roots.first().is_some_and(proves) {
            return Err(format!("no certificate in {shown} proves our agent's certificate; {hint}"));
        }
        Ok(roots)
    }

    /// What we say of ourselves.
    fn own_document(&self, config: &Config, addresses: Vec<AgentAddress>) -> Result<Vec<u8>, String> {
        let roots = self.own_roots(config)?;
        let document = MeshDocument {
            trust_domain: config.mesh.trust_domain.clone(),
            // What we don't publish has no number: to a new peer it is the first version.
            sequence: self.published_sequence(&roots).unwrap_or(1),
            roots,
            agent_ids: vec![self.agent_identity.spiffe_id()],
            gateway_ids: vec![self.gateway_identity.spiffe_id()],
            addresses,
        };
        document.encode().map_err(|e| format!("what we would say of ourselves can't be used: {e}"))
    }

    /// Where we say that our agent is: as asked for, else where it listens, else there at the
    /// addresses that gateways are told.
    fn own_addresses(&self, config: &Config, asked: &[String]) -> Result<Vec<AgentAddress>, String> {
        if !asked.is_empty() {
            return asked.iter().map(|a| AgentAddress::parse(a).map_err(|e| e.to_string())).collect();
        }
        let Some(Ok(bound)) = self.agent_listener.lock().clone() else { return Ok(vec![]) };
        let told = config.mesh.advertise.iter().map(|e| e.socket_addr().ip());
        let ips: Vec<_> = match bound.ip().is_unspecified() {
            true => told.collect(),
            false => vec![bound.ip()],
        };
        let mut addresses: Vec<AgentAddress> = vec![];
        for ip in ips {
            let address = AgentAddress::parse(&SocketAddr::new(ip, bound.port()).to_string());
            addresses.extend(address.ok().filter(|a| !addresses.contains(a)));
        }
        addresses.truncate(hamlet_peering::ADDRESSES_MAX);
        Ok(addresses)
    }

    /// Whom we know: the peers in force, those made by token, and ourselves.
    fn known(&self, config: &Config) -> Result<Known, String> {
        let mut known = Known { own_domain: Some(config.mesh.trust_domain.clone()), ..Known::default() };
        let roots = self.own_roots(config)?;
        known.root_keys.extend(roots.iter().filter_map(|root| Some((key_fingerprint(root)?, None))));
        for peer in config.peers.values() {
            known.domains.insert(peer.trust_domain.clone(), peer.name.clone());
        }
        for peer in self.trust.peers() {
            let keys = peer.bundle.anchors().iter().filter_map(|a| key_fingerprint(&a.der));
            known.root_keys.extend(keys.map(|key| (key, Some(peer.peer.clone()))));
        }
        for peer in self.peering.ledger().peers.values() {
            known.domains.insert(peer.document.trust_domain.clone(), peer.name.clone());
            let keys = peer.document.roots.iter().filter_map(|root| key_fingerprint(root));
            known.root_keys.extend(keys.map(|key| (key, Some(peer.name.clone()))));
        }
        Ok(known)
    }

    /// Forgets removals that the last run didn't finish: the peer wasn't told, so it keeps to its
    /// hold time and shows "refused".
    pub(super) async fn finish_leaving(&self) {
        if self.peering.ledger().leaving.is_empty() {
            return;
        }
        let cleared =
            self.change_ledger(|ledger| Ok::<_, LedgerError>(std::mem::take(&mut ledger.leaving))).await;
        match cleared {
            Ok(left) => {
                for peer in left.keys() {
                    tracing::warn!(%peer, "a removed peer could not be told; it keeps to its hold time");
                }
            }
            Err(error) => tracing::error!(%error, "an unfinished removal stays on record"),
        }
    }
}

/// SHA-256 of certificates, as text.
pub(super) fn fingerprints(roots: &[CertificateDer<'_>]) -> Vec<String> {
    roots.iter().map(|root| crate::hex::hex(&fingerprint_of(root))).collect()
}
