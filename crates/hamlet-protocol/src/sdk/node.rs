//! What an owner and a consumer have in common: links, a listener if wanted, and who watches them.
//!
//! It is the agent without configuration documents, sources and sinks; each of its parts is the
//! agent's own. Invariant: everything it starts ends when the last handle is dropped.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::net::{AddrParseError, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::PeerName;
use hamlet_core::catalogue::SliceTaken;
use hamlet_core::durable::{ImportStore, LoadedPeer};
use hamlet_core::view::{VersionCounter, View};
use hamlet_identity::watch::IdentityWatch;
use hamlet_identity::{TrustError, TrustTable};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};

use crate::bundles::BundleExchange;
use crate::consumer::ProofVerdict;
use crate::dial::Dialler;
use crate::dialect::Dialect;
use crate::importer::{CatalogueOf, ImportSettings};
use crate::link::{Link, LinkConfig, LinkContext, LinkStatus};
use crate::sdk::bundles::{BundlePlan, BundleTask};
use crate::sdk::events::{ConsumerEvent, OwnerEvent};
use crate::sdk::identity::{Identity, Peer};
use crate::sdk::judge::{JudgeFn, Observed, OneView, ResourceJudge};
use crate::sdk::resource::Resource;
use crate::sdk::store::MemoryStore;
use crate::server::{AgentServer, BindError, Links, ServerContext};
use crate::session::{PeerClass, Stall};

/// How often a provider of certificates is asked, and files are looked at without an event.
const RELOAD_EVERY: Duration = Duration::from_secs(10);
/// How often a link is looked at for what isn't announced by itself.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long streams may take to end in order, and then are given to end at all.
const DRAIN: Duration = Duration::from_secs(5);

/// An owner or consumer could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Nobody to talk to.
    #[error("no peer is named; say with peer(..) whom to talk to")]
    NoPeers,
    /// Nobody could ever connect.
    #[error("neither listen(..) nor a peer's address is given; say where to meet")]
    Nowhere,
    /// The address to listen on isn't one.
    #[error("{0:?} is no address to listen on ({1}); write it as 127.0.0.1:7443 or [::]:7443")]
    Address(String, AddrParseError),
    /// The peers can't be believed together.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The address is taken, or isn't ours.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A peer is there twice.
    #[error(transparent)]
    Peer(#[from] SliceTaken),
}

/// All that is said before the start.
pub(super) struct Plan<R: Resource> {
    pub(super) identity: Identity,
    pub(super) peers: Vec<Peer>,
    pub(super) listen: Option<String>,
    pub(super) program: String,
    pub(super) import: Option<ImportSettings<JudgeFn<R>>>,
    pub(super) store: Arc<dyn ImportStore>,
    pub(super) loaded: BTreeMap<PeerName, LoadedPeer>,
    /// Whether all that is offered is there from the beginning.
    pub(super) ready: bool,
    /// Where our bundles are from, and who decides about those of peers.
    pub(super) bundles: BundlePlan,
}

impl<R: Resource> Plan<R> {
    pub(super) fn new(identity: Identity, ready: bool) -> Plan<R> {
        Plan {
            identity,
            peers: vec![],
            listen: None,
            program: format!("hamlet-protocol {}", env!("CARGO_PKG_VERSION")),
            import: None,
            store: MemoryStore::new(),
            loaded: BTreeMap::new(),
            ready,
            bundles: BundlePlan::default(),
        }
    }

    fn link_config(&self, peer: &Peer) -> LinkConfig<JudgeFn<R>> {
        LinkConfig {
            address: peer.address.clone(),
            version: Some(Dialect::V1alpha2),
            context: peer.context.clone(),
            extensions_required: false,
            foreign_window: 1,
            paused: false,
            import: self.import.clone(),
        }
    }

    pub(super) async fn start(mut self) -> Result<Arc<Node<R>>, StartError> {
        if self.peers.is_empty() {
            return Err(StartError::NoPeers);
        }
        if self.listen.is_none() && self.peers.iter().all(|p| p.address.is_none()) {
            return Err(StartError::Nowhere);
        }
        let clock = SystemClock::shared();
        let identity = self.identity.0.clone();
        let trust = TrustTable::new(clock.clone());
        trust.set_own_trust_domain(identity.spiffe_id().trust_domain().clone());
        trust.replace(self.peers.iter().map(|p| p.trust.clone()).collect())?;
        let server = match &self.listen {
            Some(text) => {
                let address = text.parse().map_err(|e| StartError::Address(text.clone(), e))?;
                Some(AgentServer::bind(address).await?)
            }
            None => None,
        };
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let view = View::new(<R as Resource>::TYPE_URL);
        view.set_ready(self.ready);
        let node = Arc::new(Node {
            links: Arc::new(ArcSwap::from_pointee(BTreeMap::new())),
            observed: Observed::new(),
            view: view.clone(),
            versions: VersionCounter::default(),
            catalogue: CatalogueOf::<ResourceJudge<R>>::new(),
            address: server.as_ref().map(AgentServer::local_addr),
            supervisor,
            shutdown: shutdown.clone(),
        });
        let exchange = BundleExchange::default();
        let context = LinkContext {
            our_id: {
                let identity = identity.clone();
                Arc::new(move || identity.spiffe_id())
            },
            agent: self.program.clone(),
            instance: rand::random(),
            // Versions count anew in each node, so each has a log of its own.
            log_id: rand::random(),
            publications: Arc::new(OneView::new(view)),
            catalogue: node.catalogue.clone(),
            leases: node.observed.clone(),
            store: self.store.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
            bundles: exchange.clone(),
        };
        let mut links = BTreeMap::new();
        for peer in &self.peers {
            let (name, config) = (peer.trust.peer.clone(), self.link_config(peer));
            let loaded = self.loaded.remove(&name).unwrap_or_default();
            let link = Link::start(name.clone(), config, context.clone(), loaded, shutdown.child()).await?;
            links.insert(name, link);
        }
        node.links.store(Arc::new(links));
        for (name, link) in node.links.load().iter() {
            let dialler = Dialler::new(link.clone(), identity.clone(), trust.clone(), spawner.clone());
            spawner.spawn(format!("dialler/{name}"), dialler.run(shutdown.clone()));
            let watching = watch_link(link.clone(), node.observed.clone(), clock.clone(), shutdown.clone());
            spawner.spawn(format!("observer/{name}"), watching);
        }
        let talk = BundleTask {
            plan: std::mem::take(&mut self.bundles),
            exchange,
            links: node.links.clone(),
            observed: node.observed.clone(),
            clock: clock.clone(),
        };
        spawner.spawn("bundles", talk.run(shutdown.clone()));
        let watch = IdentityWatch::new(vec![identity.clone()]).with_poll(RELOAD_EVERY);
        spawner.spawn("identity", watch.run(shutdown.clone()));
        if let Some(server) = server {
            let links = node.links.clone();
            let context = ServerContext { links, trust, identity, clock, spawner: spawner.clone() };
            spawner.spawn("listener", server.run(context, shutdown));
        }
        Ok(node)
    }
}

/// A running owner, consumer, or both.
pub(super) struct Node<R: Resource> {
    pub(super) links: Links<ResourceJudge<R>>,
    pub(super) observed: Observed<R>,
    pub(super) view: Arc<View>,
    pub(super) versions: VersionCounter,
    pub(super) catalogue: CatalogueOf<ResourceJudge<R>>,
    pub(super) address: Option<SocketAddr>,
    pub(super) supervisor: Supervisor,
    pub(super) shutdown: Shutdown,
}

impl<R: Resource> std::fmt::Debug for Node<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

impl<R: Resource> Node<R> {
    pub(super) fn status(&self) -> Vec<LinkStatus> {
        self.links.load().values().map(|link| link.status()).collect()
    }

    /// Says goodbye and waits until all tasks have ended.
    pub(super) async fn stop(&self) {
        for task in self.supervisor.stop(DRAIN, DRAIN).await {
            tracing::warn!(%task, "still running at the deadline; abandoned");
        }
    }
}

impl<R: Resource> Drop for Node<R> {
    fn drop(&mut self) {
        // The tasks say goodbye and end by themselves, as long as the runtime lives.
        self.shutdown.begin();
    }
}

/// Tells observers how a link is doing.
async fn watch_link<R: Resource>(
    link: Arc<Link<ResourceJudge<R>>>,
    observed: Observed<R>,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
) {
    let mut changed = link.changed();
    let mut seen = Seen::default();
    'watching: loop {
        seen.look(&link, &observed, clock.now());
        tokio::select! {
            () = shutdown.begun() => break 'watching,
            _ = changed.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// What was told of a link already.
#[derive(Debug, Default)]
struct Seen {
    stream: Option<u64>,
    /// Streams up to then: one may come and go between two looks.
    streams: u64,
    down: Option<String>,
    proven: Option<u64>,
    stalls: Vec<Discriminant<Stall>>,
}

impl Seen {
    fn look<R: Resource>(&mut self, link: &Link<ResourceJudge<R>>, observed: &Observed<R>, now: Duration) {
        let peer = link.peer();
        let Some(cell) = link.active() else { return self.look_down(link, observed) };
        let (spoken, stats, stalls) =
            cell.look(|s| (*s.class() != PeerClass::Unknown, s.consumer.stats(), s.stalls(now)));
        if !spoken {
            return;
        }
        if self.stream != Some(cell.id) {
            *self = Seen { stream: Some(cell.id), streams: link.streams(), ..Seen::default() };
        }
        let equal = matches!(stats.verdict, ProofVerdict::Equal(_)) && link.config().imports();
        let proven = equal.then_some(stats.proven_version);
        if proven != self.proven {
            self.proven = proven;
            if equal {
                let count = stats.owner_count.unwrap_or_default();
                observed.tell_consumer(ConsumerEvent::Proven { peer: peer.clone(), count });
            }
        }
        for stall in &stalls {
            if !self.stalls.contains(&discriminant(stall)) {
                observed.tell_owner(OwnerEvent::Stalled { peer: peer.clone(), stall: *stall });
                observed.tell_consumer(ConsumerEvent::Stalled { peer: peer.clone(), stall: *stall });
            }
        }
        self.stalls = stalls.iter().map(discriminant).collect();
    }

    fn look_down<R: Resource>(&mut self, link: &Link<ResourceJudge<R>>, observed: &Observed<R>) {
        let streams = link.streams();
        let was_up = self.stream.take().is_some() || streams != self.streams;
        self.streams = streams;
        let Some(reason) = link.last_error() else { return };
        if was_up || self.down.as_ref() != Some(&reason) {
            let peer = link.peer().clone();
            self.down = Some(reason.clone());
            observed.tell_owner(OwnerEvent::Down { peer: peer.clone(), reason: reason.clone() });
            observed.tell_consumer(ConsumerEvent::Down { peer, reason });
        }
    }
}
