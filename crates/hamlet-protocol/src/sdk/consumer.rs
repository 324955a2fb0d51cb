//! The consumer's end: what peers offer and the judge admits, kept in a store, read and watched.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::durable::{ImportStore, LoadedPeer};
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::ImportLimits;
use hamlet_core::{FederatedService, PeerName, Rejection};
use tokio::sync::watch;

use crate::bundles::{HeardBundle, NotInForce, StreamBundle};
use crate::importer::{ImportSettings, RESYNC_EVERY};
use crate::link::{LinkConfig, LinkStatus};
use crate::sdk::events::{ConsumerEvent, Events};
use crate::sdk::identity::{Identity, Peer};
use crate::sdk::judge::JudgeFn;
use crate::sdk::node::{Node, Plan, StartError};
use crate::sdk::owner::Owner;
use crate::sdk::resource::Resource;
use crate::sdk::store::MemoryStore;

/// How long entries outlive a lost peer unless the builder says otherwise; the agent's default.
pub const HOLD: Duration = Duration::from_secs(24 * 3600);

/// Says how a consumer is to start.
#[must_use = "a consumer starts with start()"]
pub struct ConsumerBuilder<R: Resource = FederatedService> {
    plan: Plan<R>,
    settings: ImportSettings<JudgeFn<R>>,
}

impl<R: Resource> ConsumerBuilder<R> {
    /// Adds a peer to import from.
    pub fn peer(mut self, peer: Peer) -> Self {
        self.plan.peers.push(peer);
        self
    }

    /// Listens for peers that dial us, for example on `127.0.0.1:7443`; port 0 takes any free one.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.plan.listen = Some(address.into());
        self
    }

    /// Says our SPIFFE bundle to peers that are Hamlet, now and whenever `source` has another one: so
    /// their trust follows when our CAs change. What they say of it is told to observers.
    pub fn bundle(mut self, source: watch::Receiver<Option<StreamBundle>>) -> Self {
        self.plan.bundles.source = Some(source);
        self
    }

    /// Decides about the SPIFFE bundles that peers say of themselves; without it they are told that
    /// their bundle is not followed here. It must be quick, and changes no trust by itself: the
    /// bundle counts only for the trust domain that the peer proves, and only over a certificate that
    /// the old and the new bundle prove ([`hamlet_identity::proven_agent_under`]).
    pub fn on_bundle(
        mut self,
        handler: impl Fn(&PeerName, &HeardBundle) -> Result<(), NotInForce> + Send + Sync + 'static,
    ) -> Self {
        self.plan.bundles.handler = Some(Arc::new(handler));
        self
    }

    /// Name and version of the program, as peers show it.
    pub fn program(mut self, program: impl Into<String>) -> Self {
        self.plan.program = program.into();
        self
    }

    /// Decides on every entry; without a judge everything that decodes is admitted. It is asked
    /// before the entry is acknowledged, under locks: it must be quick, and neither block nor call
    /// the consumer. It must decide alike on the same entry: after a restart it is asked again about
    /// what the store kept.
    pub fn judge(
        mut self,
        judge: impl Fn(&str, &R) -> Result<(), Rejection> + Send + Sync + 'static,
    ) -> Self {
        self.settings.rules = Some(Arc::new(judge));
        self
    }

    /// Keeps imports in a store of your own; `loaded` is what it kept, by peer. An entry is
    /// acknowledged when the store says it is durable. `hamlet-store` has one on disk.
    pub fn store(mut self, store: Arc<dyn ImportStore>, loaded: BTreeMap<PeerName, LoadedPeer>) -> Self {
        self.plan.store = store;
        self.plan.loaded = loaded;
        self
    }

    /// Keeps imports in memory, together with what an earlier consumer left there.
    pub fn memory(self, store: &Arc<MemoryStore>) -> Self {
        let loaded = store.load();
        self.store(store.clone(), loaded)
    }

    /// What one peer may make us hold; over it entries are refused.
    pub fn limits(mut self, limits: ImportLimits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// The brake on mass withdrawals: by default, at most 30 % of a peer's entries, and always ten,
    /// go within an hour; the rest is withheld for ten minutes.
    pub fn guard(mut self, guard: GuardSettings) -> Self {
        self.settings.guard = guard;
        self
    }

    /// How long entries outlive a lost peer; `None` is for ever.
    pub fn hold(mut self, hold: Option<Duration>) -> Self {
        self.settings.hold = hold;
        self
    }

    fn planned(self) -> Plan<R> {
        Plan { import: Some(self.settings), ..self.plan }
    }

    /// Starts. What the store kept is there when this returns.
    ///
    /// # Errors
    /// What is missing or can't be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(self) -> Result<Consumer<R>, StartError> {
        Ok(Consumer { node: self.planned().start().await? })
    }

    /// Starts both ends of one type over the same streams, for a program that offers to its peers
    /// and imports from them. A program with one identity must not start an [`Owner`] and a
    /// [`Consumer`] towards the same peer on their own: there is one stream with a peer.
    ///
    /// # Errors
    /// What is missing or can't be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start_both(self) -> Result<(Owner<R>, Consumer<R>), StartError> {
        let node = Plan { ready: false, ..self.planned() }.start().await?;
        Ok((Owner { node: node.clone() }, Consumer { node }))
    }
}

impl ConsumerBuilder<FederatedService> {
    /// Admits what the agent would admit under these rules: names within suffixes, ids within trust
    /// domains, addresses within ranges. Who holds which name is not decided here.
    pub fn import_rules(self, rules: ImportRules) -> Self {
        self.judge(move |_, service| rules.admit(service).map(drop))
    }
}

/// One entry that is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<R> {
    /// Who offers it.
    pub peer: PeerName,
    /// Its key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Arc<R>,
}

/// Imports resources from peers. Dropping the last handle ends the streams.
pub struct Consumer<R: Resource = FederatedService> {
    node: Arc<Node<R>>,
}

impl<R: Resource> std::fmt::Debug for Consumer<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("node", &self.node).finish()
    }
}

impl<R: Resource> Consumer<R> {
    /// A consumer that proves to be `identity`.
    pub fn builder(identity: Identity) -> ConsumerBuilder<R> {
        let settings: ImportSettings<JudgeFn<R>> = ImportSettings {
            rules: Some(Arc::new(|_, _| Ok(()))),
            limits: ImportLimits::default(),
            guard: GuardSettings::default(),
            hold: Some(HOLD),
            resync: Some(RESYNC_EVERY),
        };
        ConsumerBuilder { plan: Plan::new(identity, true), settings }
    }

    /// The value of a peer's entry, if it is in force.
    pub fn get(&self, peer: &str, key: &str) -> Option<Arc<R>> {
        self.node.catalogue.read(|slices| slices.get(peer)?.get(key).cloned())
    }

    /// Everything in force at one instant, by peer and key.
    pub fn entries(&self) -> Vec<Entry<R>> {
        self.node.catalogue.read(|slices| {
            let slices = slices.iter();
            let entries = slices.flat_map(|(peer, slice)| slice.iter().map(move |entry| (peer, entry)));
            let entry = |(peer, (key, value)): (&PeerName, (&Arc<str>, &Arc<R>))| Entry {
                peer: peer.clone(),
                key: key.clone(),
                value: value.clone(),
            };
            entries.map(entry).collect()
        })
    }

    /// How many entries are in force.
    pub fn len(&self) -> usize {
        self.node.catalogue.read(|slices| slices.values().map(BTreeMap::len).sum())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that happens from now on. Watch first and then look at the entries: then nothing is
    /// missed, and what is seen twice is the same.
    pub fn watch(&self) -> Events<ConsumerEvent<R>> {
        Events::new(self.node.observed.consumer.subscribe())
    }

    /// Decides otherwise from now on, also on what is there: entries come and go accordingly, and
    /// owners that are Hamlet are told.
    pub async fn set_judge(&self, judge: impl Fn(&str, &R) -> Result<(), Rejection> + Send + Sync + 'static) {
        let rules: Arc<JudgeFn<R>> = Arc::new(judge);
        for link in self.node.links.load_full().values() {
            let config = link.config();
            let import = config.import.clone();
            let import = import.map(|i| ImportSettings { rules: Some(rules.clone()), ..i });
            link.configure(LinkConfig { import, ..(*config).clone() }).await;
        }
    }

    /// How each peer is doing, with the entries that are refused, as the agent's
    /// `hamlet describe peer` shows it.
    pub fn status(&self) -> Vec<LinkStatus> {
        self.node.status()
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.node.address
    }

    /// Says goodbye to all peers, finishes what is being stored, and waits until everything has
    /// ended: at most ten seconds.
    pub async fn stop(self) {
        self.node.stop().await;
    }
}
