//! One mesh's agent for tests: store, views, links, listener and diallers over real sockets and
//! mTLS, without gateway, names or configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;
use hamlet_core::lease::NameLeases;
use hamlet_core::offers::{IngressOffer, PublicationInputs};
use hamlet_core::publication::{PublicationPolicy, PublicationRule};
use hamlet_core::{CallerForm, DnsLabel, Fqdn, LocalInstance, LocalService, PeerName, Protocol, ServiceName};
use hamlet_identity::{LocalIdentity, TrustTable};
use hamlet_protocol::bundles::BundleExchange;
use hamlet_protocol::dial::Dialler;
use hamlet_protocol::dialect::offered::Offered;
use hamlet_protocol::dialect::{Dialect, Secret};
use hamlet_protocol::importer::{ImportSettings, ImportedCatalogue};
use hamlet_protocol::limits::SharedLimits;
use hamlet_protocol::link::{Link, LinkConfig, LinkContext};
use hamlet_protocol::server::{AgentServer, Links, ServerContext};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock, TaskState};
use hamlet_testkit::pki::{TestCa, TestLeaf, trust_table};
use hamlet_testkit::store::MemoryStore;

use super::{rules, service};

static LIVES: AtomicU64 = AtomicU64::new(1);

/// The context value that all agents of these tests share.
pub const CONTEXT: &str = "shared between two";

/// A peer as an agent knows it.
pub struct Known<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whom to believe.
    pub ca: &'a TestCa,
    /// Where to dial it.
    pub address: Option<SocketAddr>,
}

/// How it is met otherwise.
#[derive(Clone, Copy, Default)]
pub struct Manner {
    /// The only version to speak.
    pub version: Option<Dialect>,
    /// No context value: v1alpha1 has none.
    pub no_context: bool,
    /// Import nothing.
    pub no_import: bool,
}

/// A running agent.
pub struct Agent {
    /// Its mesh.
    pub name: &'static str,
    /// Its own CA.
    pub ca: TestCa,
    /// What it presents.
    pub leaf: TestLeaf,
    /// What outlives it.
    pub store: Arc<MemoryStore>,
    /// Its views.
    pub publications: Arc<Offered>,
    /// Its imports.
    pub catalogue: ImportedCatalogue,
    /// Whom it believes.
    pub trust: Arc<TrustTable>,
    /// Its links by peer.
    pub links: Links,
    /// Its tasks.
    pub supervisor: Supervisor,
    /// What ends it.
    pub shutdown: Shutdown,
    /// Its time.
    pub clock: Arc<dyn Clock>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What its connections may do.
    pub limits: SharedLimits,
}

impl Agent {
    /// Starts an agent that knows one peer and listens on a free port.
    pub async fn start(
        name: &'static str,
        peer: &TestCa,
        peer_name: &str,
        address: Option<SocketAddr>,
    ) -> Agent {
        let ca = TestCa::new(&format!("{name}.example"));
        Agent::restart(name, ca, MemoryStore::new(), peer, peer_name, address).await
    }

    /// The same with the CA and store of an earlier life.
    pub async fn restart(
        name: &'static str,
        ca: TestCa,
        store: Arc<MemoryStore>,
        peer_ca: &TestCa,
        peer_name: &str,
        address: Option<SocketAddr>,
    ) -> Agent {
        Agent::among(name, ca, store, &[Known { name: peer_name, ca: peer_ca, address }]).await
    }

    /// Starts an agent that knows several peers.
    pub async fn among(
        name: &'static str,
        ca: TestCa,
        store: Arc<MemoryStore>,
        peers: &[Known<'_>],
    ) -> Agent {
        Agent::mannered(name, ca, store, peers, Manner::default()).await
    }

    /// The same, meeting all of them in some manner.
    pub async fn mannered(
        name: &'static str,
        ca: TestCa,
        store: Arc<MemoryStore>,
        peers: &[Known<'_>],
        manner: Manner,
    ) -> Agent {
        let leaf = ca.agent();
        Agent::whole(name, ca, leaf.identity(), leaf, store, peers, manner).await
    }

    /// An agent that presents a leaf of its own.
    pub async fn presenting(
        name: &'static str,
        ca: TestCa,
        leaf: TestLeaf,
        store: Arc<MemoryStore>,
        peers: &[Known<'_>],
    ) -> Agent {
        Agent::whole(name, ca, leaf.identity(), leaf, store, peers, Manner::default()).await
    }

    /// An agent whose identity may change; `leaf` is what it begins with.
    pub async fn proving(
        identity: Arc<LocalIdentity>,
        leaf: TestLeaf,
        name: &'static str,
        ca: TestCa,
        peers: &[Known<'_>],
    ) -> Agent {
        Agent::whole(name, ca, identity, leaf, MemoryStore::new(), peers, Manner::default()).await
    }

    async fn whole(
        name: &'static str,
        ca: TestCa,
        identity: Arc<LocalIdentity>,
        leaf: TestLeaf,
        store: Arc<MemoryStore>,
        peers: &[Known<'_>],
        manner: Manner,
    ) -> Agent {
        let clock = SystemClock::shared();
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let trust = trust_table(peers.iter().map(|p| p.ca.trust_as(p.name)).collect());
        let publications = Arc::new(Offered::new());
        let catalogue = ImportedCatalogue::new();
        let context = LinkContext {
            our_id: {
                let identity = identity.clone();
                Arc::new(move || identity.spiffe_id())
            },
            agent: "hamlet test".into(),
            instance: 1,
            // Versions count anew in each life.
            log_id: u128::from(LIVES.fetch_add(1, Ordering::Relaxed)).to_be_bytes(),
            publications: publications.clone(),
            catalogue: catalogue.clone(),
            leases: NameLeases::new(),
            store: store.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
            bundles: BundleExchange::default(),
        };
        let limits = SharedLimits::default();
        let mut linked = BTreeMap::new();
        for known in peers {
            let peer = PeerName::parse(known.name).unwrap();
            let (config, loaded) = (link_config(known, manner), store.load(&peer));
            let link =
                Link::start(peer.clone(), config, context.clone(), loaded, shutdown.child()).await.unwrap();
            let dialler = Dialler::new(link.clone(), identity.clone(), trust.clone(), spawner.clone())
                .limited(limits.clone());
            spawner.spawn("dial", dialler.run(shutdown.clone()));
            linked.insert(peer, link);
        }
        let links: Links = Arc::new(ArcSwap::from_pointee(linked));
        let server = AgentServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap().limited(limits.clone());
        let address = server.local_addr();
        let server_context = ServerContext {
            links: links.clone(),
            trust: trust.clone(),
            identity,
            clock: clock.clone(),
            spawner: spawner.clone(),
        };
        spawner.spawn("server", server.run(server_context, shutdown.clone()));
        Agent {
            name,
            ca,
            leaf,
            store,
            publications,
            catalogue,
            trust,
            links,
            supervisor,
            shutdown,
            clock,
            address,
            limits,
        }
    }

    /// Publishes exactly `names` to one peer.
    pub fn publish(&self, to: &str, names: &[String]) {
        self.publish_to(&[to], names);
    }

    /// Publishes exactly `names` to several peers alike.
    pub fn publish_to(&self, to: &[&str], names: &[String]) {
        let services: Vec<LocalService> = names.iter().map(|n| self.local(n)).collect();
        self.publish_services(to, services);
    }

    /// Publishes exactly these services to several peers alike.
    pub fn publish_services(&self, to: &[&str], services: Vec<LocalService>) {
        let services: Vec<Arc<LocalService>> = services.into_iter().map(Arc::new).collect();
        let peers: BTreeSet<PeerName> = to.iter().map(|p| PeerName::parse(p).unwrap()).collect();
        let rule = PublicationRule {
            name: "all".into(),
            names: BTreeSet::new(),
            labels: BTreeMap::new(),
            all: true,
            peers: peers.clone(),
        };
        let like = service(self.name, "x");
        self.publications.refresh(PublicationInputs {
            services: &services,
            ingress: &IngressOffer { endpoints: like.endpoints, sans: like.sans },
            policy: &PublicationPolicy { rules: vec![rule] },
            peers: &peers,
            ready: true,
        });
    }

    /// A local service of this mesh, with one instance.
    pub fn local(&self, name: &str) -> LocalService {
        let fqdn = Fqdn::parse(&format!("{name}.{}.example", self.name)).unwrap();
        LocalService {
            name: ServiceName::parse(name).unwrap(),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            instances: vec![LocalInstance {
                id: DnsLabel::parse("http").unwrap(),
                protocol: Protocol::Http,
                port: 80.try_into().unwrap(),
                sni: fqdn.child(&DnsLabel::parse("http").unwrap()).unwrap(),
                backends: vec![],
                caller: CallerForm::None,
            }],
            fqdn,
        }
    }

    /// The link with the only peer, or the first of them.
    pub fn link(&self) -> Arc<Link> {
        self.links.load().values().next().unwrap().clone()
    }

    /// The link with one of several peers.
    pub fn link_with(&self, peer: &str) -> Arc<Link> {
        self.links.load()[&PeerName::parse(peer).unwrap()].clone()
    }

    /// All imported names, peer by peer.
    pub fn imports(&self) -> Vec<String> {
        self.catalogue.snapshot().iter().map(|s| s.fqdn.to_string()).collect()
    }

    /// Tasks that panicked or failed.
    pub fn failed_tasks(&self) -> Vec<String> {
        let tasks = self.supervisor.spawner().tasks();
        let failed = tasks.into_iter().filter(|t| t.state != TaskState::Running);
        failed.map(|t| format!("{}: {:?}", t.name, t.state)).collect()
    }

    /// Stops it and hands out what a next life needs.
    pub async fn stop(self) -> (TestCa, Arc<MemoryStore>) {
        self.supervisor.stop(Duration::from_secs(5), Duration::from_secs(5)).await;
        (self.ca, self.store)
    }
}

fn link_config(peer: &Known<'_>, manner: Manner) -> LinkConfig {
    let import = ImportSettings {
        rules: (!manner.no_import).then(|| rules(peer.name)),
        limits: ImportLimits::default(),
        guard: GuardSettings::default(),
        hold: Some(Duration::from_secs(3600)),
        resync: None,
    };
    LinkConfig {
        address: peer.address.map(|a| a.to_string()),
        version: manner.version,
        context: if manner.no_context { Secret::default() } else { Secret::new(CONTEXT) },
        extensions_required: false,
        foreign_window: 1,
        paused: false,
        import: Some(import),
    }
}

/// Owned texts.
pub fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}
