//! Peers as configured: whom we trust, and one link each, reconciled like any other state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_identity::{CRL_BYTES_MAX, GivenLists, PeerTrust, RevocationLists, TrustBundle, TrustTable};
use hamlet_peering::Ledger;
use hamlet_protocol::dial::Dialler;
use hamlet_protocol::dialect::{Dialect, Secret};
use hamlet_protocol::importer::{COMMIT_DEADLINE, ImportSettings};
use hamlet_protocol::link::{Link, LinkConfig};

use super::Agent;
use super::bundles::PeerBundles;
use crate::config::{Config, CrlFile, Extensions, HoldTime, PeerConfig, Resync, Version};

/// Puts the peers' bundles in force; returns the peers that are not talked to, and why. One whose
/// bundle can't be used isn't trusted at all. One whose context value can't be read only gets no
/// streams: without the value it would come in unasked. One made by token whose words nobody has
/// confirmed isn't trusted either.
pub(super) fn trust_of(
    config: &Config,
    ledger: &Ledger,
    bundles: &PeerBundles,
    trust: &TrustTable,
) -> BTreeMap<PeerName, String> {
    let mut distrusted = BTreeMap::new();
    let mut peers = vec![];
    for peer in config.peers.values() {
        if ledger.peers.get(&peer.name).is_some_and(|made| !made.confirmed) {
            let why = format!(
                "the words are not confirmed: compare them, then `hamlet peer confirm {}`",
                peer.name
            );
            distrusted.insert(peer.name.clone(), why);
            continue;
        }
        if let Some(Err(error)) = peer.context.as_ref().map(|file| file.read()) {
            tracing::error!(peer = %peer.name, %error, "the context value can't be read; the peer gets no streams");
            distrusted.insert(peer.name.clone(), format!("the context value can't be read: {error}"));
        }
        let bundle = bundles.of(peer, ledger.peers.get(&peer.name));
        match bundle.and_then(|bundle| trusted(peer, bundle, bundles.given_lists(peer))) {
            Ok(trust) => peers.push(trust),
            Err(why) => {
                tracing::error!(peer = %peer.name, %why, "this peer is not trusted");
                distrusted.insert(peer.name.clone(), why);
            }
        }
    }
    if let Err(error) = trust.replace(peers) {
        // The configuration check excludes this; if it happens, nobody new is trusted.
        tracing::error!(%error, "the trust table was not changed");
    }
    distrusted
}

/// What proves a peer: this bundle, the lists that came with it, and what its files say. A file of
/// revocation lists that can't be read leaves the peer without trust: nobody knows whom it would revoke.
pub(crate) fn trusted(
    peer: &PeerConfig,
    bundle: TrustBundle,
    given: Option<Arc<GivenLists>>,
) -> Result<PeerTrust, String> {
    let (agents, gateways) = (peer.agent_ids.clone(), peer.gateway_ids.clone());
    let mut trust = PeerTrust::new(peer.name.clone(), Arc::new(bundle), agents, gateways);
    trust.given_lists = given;
    trust.foreign.clone_from(&peer.identity);
    trust.revoked = peer.crl.as_ref().map(revoked).transpose()?.map(Arc::new);
    Ok(trust)
}

/// The peer's revocation lists.
pub(crate) fn revoked(crl: &CrlFile) -> Result<RevocationLists, String> {
    let path = crl.path.display();
    let bytes = read_up_to(&crl.path, CRL_BYTES_MAX)
        .map_err(|e| format!("{path}: {e}; put the revocation lists of the peer's CAs there"))?;
    RevocationLists::read(&bytes, crl.policy).map_err(|e| format!("{path}: {e}"))
}

/// The file's bytes, at most one more than `most`: who reads them says that it's too many.
pub(super) fn read_up_to(path: &Path, most: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Agent {
    /// Puts what proves the peers now in force. Callers don't overtake each other.
    pub(super) fn believe(&self) {
        let mut distrusted = self.distrusted.lock();
        *distrusted = trust_of(&self.config(), &self.peering.ledger(), &self.bundles, &self.trust);
        self.audit_roots();
    }

    /// What a link is to do, as configured.
    fn link_config(config: &Config, peer: &PeerConfig, distrusted: Option<&String>) -> LinkConfig {
        let rules = config.imports.get(&peer.name).filter(|_| peer.import).map(|i| Arc::new(i.rules.clone()));
        let (context, unread) = match peer.context.as_ref().map(|file| file.read()) {
            None => (Secret::default(), false),
            Some(Ok(secret)) => (Secret::new(secret.expose()), false),
            Some(Err(_)) => (Secret::default(), true),
        };
        LinkConfig {
            // Without trust or secret there is nobody to dial.
            address: peer.address.as_ref().filter(|_| distrusted.is_none()).map(ToString::to_string),
            version: match peer.version {
                Version::Auto => None,
                Version::V1alpha1 => Some(Dialect::V1alpha1),
                Version::V1alpha2 => Some(Dialect::V1alpha2),
            },
            context,
            extensions_required: peer.extensions == Extensions::Required,
            foreign_window: peer.window,
            paused: peer.paused || unread,
            import: Some(ImportSettings {
                rules,
                limits: peer.limits,
                guard: peer.guard,
                resync: match peer.resync {
                    Resync::Every(every) => Some(every),
                    Resync::Never => None,
                },
                hold: match peer.hold_time {
                    HoldTime::For(hold) => Some(hold),
                    HoldTime::Forever => None,
                },
            }),
        }
    }

    /// Makes the first links, from what the store kept, and forgets peers that are configured no
    /// more.
    pub(super) async fn start_peers(self: &Arc<Agent>) {
        let config = self.config();
        self.refresh_local();
        self.reconcile_links(&config).await;
        let unknown: Vec<PeerName> = std::mem::take(&mut *self.kept.lock()).into_keys().collect();
        for peer in unknown {
            use hamlet_core::durable::ImportStore;
            tracing::info!(%peer, "forgetting the imports of a peer that is configured no more");
            // In its place by the order of the store already; a disk that hangs must not keep us from starting.
            match tokio::time::timeout(COMMIT_DEADLINE, self.store.forget_peer(&peer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%peer, %error, "could not forget a removed peer's imports"),
                Err(_) => {
                    tracing::error!(%peer, "the disk does not take that a removed peer's imports are gone")
                }
            }
        }
    }

    /// One link for each configured peer, with its present configuration; none for others.
    pub(super) async fn reconcile_links(&self, config: &Config) {
        let distrusted = self.distrusted.lock().clone();
        let mut links: BTreeMap<PeerName, Arc<Link>> = (**self.links.load()).clone();
        let gone: Vec<PeerName> = links.keys().filter(|p| !config.peers.contains_key(*p)).cloned().collect();
        for peer in gone {
            if let Some(link) = links.remove(&peer) {
                self.links.store(Arc::new(links.clone()));
                link.remove().await;
                let _ = self.imported.remove_slice(&peer);
                tracing::info!(%peer, "peer removed");
            }
        }
        for peer in config.peers.values() {
            let link_config = Agent::link_config(config, peer, distrusted.get(&peer.name));
            tracing::debug!(peer = %peer.name, config = ?link_config, "peer configured");
            if let Some(link) = links.get(&peer.name) {
                link.configure(link_config).await;
                continue;
            }
            let kept = self.kept.lock().remove(&peer.name).unwrap_or_default();
            let shutdown = self.spawner.shutdown().child();
            let context = self.link_context.clone();
            match Link::start(peer.name.clone(), link_config, context, kept, shutdown).await {
                Ok(link) => {
                    links.insert(peer.name.clone(), link);
                }
                Err(error) => tracing::error!(peer = %peer.name, %error, "the peer's link could not start"),
            }
        }
        let before: BTreeSet<PeerName> = self.links.load().keys().cloned().collect();
        self.links.store(Arc::new(links.clone()));
        // At the start, dialling waits until the listeners are there.
        if self.trigger.lock().is_some() {
            for link in links.values().filter(|l| !before.contains(l.peer())) {
                self.start_dialler(link);
            }
        }
        self.bump();
    }

    /// Lets every link dial.
    pub(super) fn start_dialling(self: &Arc<Agent>) {
        for link in self.links() {
            self.start_dialler(&link);
        }
        let agent = self.clone();
        let shutdown = self.spawner.shutdown();
        self.spawner.spawn("status", async move { agent.watch_status(shutdown).await });
    }

    fn start_dialler(&self, link: &Arc<Link>) {
        let (identity, trust) = (self.agent_identity.clone(), self.trust.clone());
        let dialler = Dialler::new(link.clone(), identity, trust, self.spawner.clone())
            .limited(self.connection_limits.clone());
        self.spawner.spawn(format!("dialler/{}", link.peer()), dialler.run(link.shutdown().clone()));
    }
}
