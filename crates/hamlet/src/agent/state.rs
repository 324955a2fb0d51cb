//! The agent's parts, held together. What each does with them is in the files beside this one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use hamlet_adapters::dns::{DnsCounters, Zone};
use hamlet_adapters::file::Trigger;
use hamlet_admin::metrics::MetricsText;
use hamlet_core::brake::SourceBrake;
use hamlet_core::catalogue::{Catalogue, SliceWriter};
use hamlet_core::durable::LoadedPeer;
use hamlet_core::lease::NameLeases;
use hamlet_core::{LocalService, PeerName, ServiceName};
use hamlet_gateway::{AddressPool, Gateway};
use hamlet_identity::{AuthorityKeeper, LocalIdentity, TrustTable, WorkloadApi};
use hamlet_protocol::bundles::BundleExchange;
use hamlet_protocol::dialect::offered::Offered;
use hamlet_protocol::importer::ImportedCatalogue;
use hamlet_protocol::limits::{ConnectionLimits, SharedLimits};
use hamlet_protocol::link::{Link, LinkContext};
use hamlet_protocol::server::Links;
use hamlet_runtime::{Clock, Shutdown, Spawner};
use hamlet_store::{Store, StoreOptions};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::audit::Audit;
use super::bundles::{OwnBundles, PeerBundles, StreamBundles};
use super::listeners::Entered;
use super::peering::{Kept, Peering};
use super::peers::trust_of;
use crate::cli::agent::AgentOptions;
use crate::cli::version::BUILD;
use crate::config::{Config, Loaded};

/// The document in the store that holds the egress addresses.
pub(super) const POOL_DOCUMENT: &str = "egress-addresses";

/// The slice of the services in our files.
pub(super) const FILE_SOURCE: &str = "file";

/// The local side's catalogue: a slice a source, entries by name.
pub(super) type LocalCatalogue = Catalogue<&'static str, ServiceName, LocalService>;

/// What became of the files' last reading.
#[derive(Debug, Default)]
pub(super) struct LoadState {
    pub(super) generation: u64,
    pub(super) files: usize,
    pub(super) loaded_at: Duration,
    pub(super) warnings: Vec<String>,
    pub(super) errors: Vec<String>,
    pub(super) rendered: String,
    pub(super) failed_at: Option<Duration>,
    pub(super) last_report: hamlet_admin::api::ReloadReport,
}

/// A running agent.
pub(crate) struct Agent {
    pub(super) path: PathBuf,
    pub(super) config: ArcSwap<Config>,
    pub(super) load: Mutex<LoadState>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) spawner: Spawner,
    pub(super) trust: Arc<TrustTable>,
    /// Peers whose trust can't be used, and why.
    pub(super) distrusted: Mutex<BTreeMap<PeerName, String>>,
    /// What is held of peers whose bundles are followed.
    pub(super) bundles: PeerBundles,
    /// What we publish of ourselves.
    pub(super) own: OwnBundles,
    /// What is said of both on streams.
    pub(super) streams: StreamBundles,
    pub(super) agent_identity: Arc<LocalIdentity>,
    pub(super) gateway_identity: Arc<LocalIdentity>,
    /// Renews both, if they are of our own authority.
    pub(super) keeper: Option<Arc<AuthorityKeeper>>,
    /// Gives both, and bundles, if they are of a Workload API.
    pub(super) workload_api: Option<Arc<WorkloadApi>>,
    /// Why the CA beside certificate files can't be used.
    pub(super) ca_problem: Option<String>,
    pub(super) gateway: Gateway,
    pub(super) store: Arc<Store>,
    /// Who changed what, for people who ask later.
    pub(super) audit: Arc<Audit>,
    /// Invitations, and the peers that tokens made.
    pub(super) peering: Peering,
    /// What the store kept of peers that have no link yet.
    pub(super) kept: Mutex<BTreeMap<PeerName, LoadedPeer>>,
    pub(super) damage: Option<String>,
    pub(super) local: LocalCatalogue,
    pub(super) source: SliceWriter<&'static str, ServiceName, LocalService>,
    /// What it holds back of the source's withdrawals. Held while local services are made what the
    /// files say.
    pub(super) brake: Mutex<SourceBrake<ServiceName>>,
    pub(super) publications: Arc<Offered>,
    /// The states of peers with a live stream, and since when.
    pub(super) standings: Mutex<BTreeMap<PeerName, (&'static str, Duration)>>,
    pub(super) imported: ImportedCatalogue,
    pub(super) leases: NameLeases,
    pub(super) links: Links,
    pub(super) pool: Mutex<AddressPool>,
    pub(super) zone: Arc<ArcSwap<Zone>>,
    pub(super) zone_serial: AtomicU64,
    pub(super) dns: Mutex<Option<Arc<DnsCounters>>>,
    /// Where the agent's listener is, once it is bound, or why it can't be.
    pub(super) agent_listener: Mutex<Option<Result<SocketAddr, String>>>,
    /// The listeners that don't wait for an identity.
    pub(super) listening: Mutex<Vec<(String, String)>>,
    pub(super) trigger: Mutex<Option<Trigger>>,
    pub(super) watching: Mutex<Option<Shutdown>>,
    pub(super) link_context: LinkContext,
    pub(super) connection_limits: SharedLimits,
    pub(super) metrics: MetricsText,
    pub(super) changed: watch::Sender<u64>,
    /// Moves when names, addresses or zones have to be computed anew.
    pub(super) sinks_due: watch::Sender<u64>,
    stopping: AtomicBool,
}

impl Agent {
    /// Opens the store and puts the parts together; nothing runs yet.
    pub(super) async fn open(
        options: &AgentOptions,
        clock: Arc<dyn Clock>,
        (loaded, kept): (Loaded, Kept),
        entered: Entered,
        spawner: Spawner,
    ) -> anyhow::Result<Arc<Agent>> {
        let mesh = loaded.config.mesh.clone();
        let store_options = StoreOptions { clock: clock.clone(), ..StoreOptions::default() };
        let folder = mesh.data.clone();
        let opened = match kept.opened {
            Some(opened) => opened,
            None => {
                let opened = spawner.spawn_blocking(move || Store::open(&folder, store_options)).await;
                opened.context("opening the store was interrupted")??
            }
        };
        // The store's lock is that of the whole data folder.
        let (data, times) = (mesh.data.clone(), clock.clone());
        let audit = spawner.spawn_blocking(move || Audit::open(&data, times)).await;
        let audit = audit.context("opening the audit was interrupted")?;
        let damage = opened.damage.map(|d| d.to_string());
        if let Some(damage) = &damage {
            tracing::error!(%damage, "the store was damaged; what is missing will be asked for again");
        }
        let bundles = PeerBundles::with(entered.workload_api.clone());
        bundles.load(&opened.store, &loaded.config, clock.now());
        let distrusted = trust_of(&loaded.config, &kept.ledger, &bundles, &entered.trust);
        let pool = load_pool(&opened.store, &loaded.config);
        // Versions count anew in each process, so each has a log of its own.
        let log_id: [u8; 16] = rand::random();
        let publications = Arc::new(Offered::new());
        let local = LocalCatalogue::new();
        let source = local.writer(FILE_SOURCE).context("the file source has its slice already")?;
        let brake = Mutex::new(SourceBrake::new(mesh.brake));
        let imported = ImportedCatalogue::new();
        let leases = NameLeases::new();
        let link_context = LinkContext {
            our_id: {
                let identity = entered.own.agent.clone();
                Arc::new(move || identity.spiffe_id())
            },
            agent: format!("hamlet {}", BUILD.version),
            instance: rand::random(),
            log_id,
            publications: publications.clone(),
            catalogue: imported.clone(),
            leases: leases.clone(),
            store: opened.store.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
            bundles: BundleExchange::default(),
        };
        let mut metrics = MetricsText::new(BUILD.version, BUILD.commit);
        entered.gateway.metrics().register(metrics.registry_mut());
        let peering = Peering::new(kept.ledger);
        peering.metrics.register(metrics.registry_mut());
        let load = LoadState {
            generation: 1,
            files: loaded.files,
            loaded_at: clock.now(),
            warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
            ..LoadState::default()
        };
        Ok(Arc::new(Agent {
            path: options.config.clone(),
            config: ArcSwap::from_pointee(loaded.config),
            load: Mutex::new(load),
            clock,
            spawner,
            trust: entered.trust,
            distrusted: Mutex::new(distrusted),
            bundles,
            own: OwnBundles::default(),
            streams: StreamBundles::default(),
            agent_identity: entered.own.agent,
            gateway_identity: entered.own.gateway,
            keeper: entered.own.keeper,
            workload_api: entered.workload_api,
            ca_problem: entered.own.ca_problem,
            gateway: entered.gateway,
            store: opened.store,
            audit,
            peering,
            kept: Mutex::new(opened.peers),
            damage,
            local,
            source,
            brake,
            publications,
            standings: Mutex::default(),
            imported,
            leases,
            links: Arc::new(ArcSwap::from_pointee(BTreeMap::new())),
            pool: Mutex::new(pool),
            zone: Arc::new(ArcSwap::from_pointee(Zone::empty())),
            zone_serial: AtomicU64::new(1),
            dns: Mutex::new(None),
            agent_listener: Mutex::new(None),
            listening: Mutex::new(vec![]),
            trigger: Mutex::new(None),
            watching: Mutex::new(None),
            link_context,
            connection_limits: Arc::new(ArcSwap::from_pointee(ConnectionLimits::from(&mesh.limits))),
            metrics,
            changed: watch::Sender::new(0),
            sinks_due: watch::Sender::new(0),
            stopping: AtomicBool::new(false),
        }))
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// The links, in order of the peers' names.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.links.load().values().cloned().collect()
    }

    /// Wakes watchers of the admin API.
    pub(super) fn bump(&self) {
        self.changed.send_modify(|v| *v += 1);
    }

    /// From now on the agent is not ready.
    pub(super) fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.bump();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Flushes and closes the store.
    pub(super) async fn close_store(&self) {
        let store = self.store.clone();
        match self.spawner.spawn_blocking(move || store.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "closing the store failed"),
            Err(_) => tracing::error!("closing the store was interrupted"),
        }
    }
}

/// The addresses given out so far; a damaged book begins anew, loudly, because addresses change.
fn load_pool(store: &Store, config: &Config) -> AddressPool {
    let range = config.mesh.egress.pool;
    let fresh = |why: String| {
        tracing::error!(%why, "egress addresses begin anew; names may get other addresses");
        AddressPool::new(range)
    };
    match store.get_document(POOL_DOCUMENT) {
        Ok(None) => AddressPool::new(range),
        Ok(Some(bytes)) => AddressPool::from_bytes(range, &bytes).unwrap_or_else(|e| fresh(e.to_string())),
        Err(error) => fresh(error.to_string()),
    }
}
