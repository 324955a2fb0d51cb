//! Two agents in one process, with real sockets and mTLS: the whole protocol crate at work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;
use hamlet_core::lease::NameLeases;
use hamlet_core::offers::{IngressOffer, PublicationInputs, Publications};
use hamlet_core::publication::{PublicationPolicy, PublicationRule};
use hamlet_core::view::VersionCounter;
use hamlet_core::{CallerForm, DnsLabel, Fqdn, LocalInstance, LocalService, PeerName, Protocol, ServiceName};
use hamlet_protocol::dial::Dialler;
use hamlet_protocol::dialect::Secret;
use hamlet_protocol::dialect::service::{TYPE_URL, encode};
use hamlet_protocol::importer::{ImportSettings, ImportedCatalogue};
use hamlet_protocol::link::{Connection, Link, LinkConfig, LinkContext};
use hamlet_protocol::server::{AgentServer, Links, ServerContext};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::{TestCa, trust_table};
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::{GENEROUS, eventually};

mod common;
use common::{rules, service};

/// One mesh's agent, without gateway, names or configuration.
struct Agent {
    name: &'static str,
    ca: TestCa,
    store: Arc<MemoryStore>,
    publications: Arc<Publications>,
    catalogue: ImportedCatalogue,
    links: Links,
    supervisor: Supervisor,
    shutdown: Shutdown,
    clock: Arc<dyn Clock>,
    address: SocketAddr,
}

impl Agent {
    /// Starts an agent that knows one peer and listens on a free port.
    async fn start(name: &'static str, peer: &TestCa, peer_name: &str, address: Option<SocketAddr>) -> Agent {
        let ca = TestCa::new(&format!("{name}.example"));
        Agent::restart(name, ca, MemoryStore::new(), peer, peer_name, address).await
    }

    async fn restart(
        name: &'static str,
        ca: TestCa,
        store: Arc<MemoryStore>,
        peer_ca: &TestCa,
        peer_name: &str,
        address: Option<SocketAddr>,
    ) -> Agent {
        let clock = SystemClock::shared();
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let trust = trust_table(vec![peer_ca.trust_as(peer_name)]);
        let identity = ca.agent().identity();
        let publications = Arc::new(Publications::new(TYPE_URL, Arc::new(encode), VersionCounter::default()));
        let catalogue = ImportedCatalogue::new();
        let peer = PeerName::parse(peer_name).unwrap();
        let context = LinkContext {
            our_id: identity.spiffe_id(),
            agent: "hamlet test".into(),
            instance: 1,
            log_id: [7; 16],
            publications: publications.clone(),
            catalogue: catalogue.clone(),
            leases: NameLeases::new(),
            store: store.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
        };
        let import = ImportSettings {
            rules: Some(rules(peer_name)),
            limits: ImportLimits::default(),
            guard: GuardSettings::default(),
            hold: Some(Duration::from_secs(3600)),
        };
        let config = LinkConfig {
            address: address.map(|a| a.to_string()),
            context: Secret::new("shared between two"),
            extensions_required: false,
            paused: false,
            import: Some(import),
        };
        let loaded = store.load(&peer);
        let link = Link::start(peer.clone(), config, context, loaded, shutdown.child()).await.unwrap();
        let links: Links = Arc::new(ArcSwap::from_pointee([(peer, link.clone())].into()));
        let server = AgentServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let bound = server.local_addr();
        let server_context = ServerContext {
            links: links.clone(),
            trust: trust.clone(),
            identity: identity.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
        };
        spawner.spawn("server", server.run(server_context, shutdown.clone()));
        spawner.spawn("dial", Dialler::new(link, identity, trust, spawner.clone()).run(shutdown.clone()));
        Agent { name, ca, store, publications, catalogue, links, supervisor, shutdown, clock, address: bound }
    }

    fn publish(&self, to: &str, names: &[String]) {
        let services: Vec<Arc<LocalService>> = names.iter().map(|n| Arc::new(self.local(n))).collect();
        let peers: BTreeSet<PeerName> = [PeerName::parse(to).unwrap()].into();
        let rule = PublicationRule {
            name: "all".into(),
            names: BTreeSet::new(),
            labels: BTreeMap::new(),
            all: true,
            peers: peers.clone(),
        };
        let offered = service(self.name, "x");
        self.publications.refresh(PublicationInputs {
            services: &services,
            ingress: &IngressOffer { endpoints: offered.endpoints, sans: offered.sans },
            policy: &PublicationPolicy { rules: vec![rule] },
            peers: &peers,
            ready: true,
        });
    }

    fn local(&self, name: &str) -> LocalService {
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

    fn link(&self) -> Arc<Link> {
        self.links.load().values().next().unwrap().clone()
    }

    fn imports(&self) -> Vec<String> {
        self.catalogue.snapshot().iter().map(|s| s.fqdn.to_string()).collect()
    }

    async fn stop(self) -> (TestCa, Arc<MemoryStore>) {
        self.supervisor.stop(Duration::from_secs(5), Duration::from_secs(5)).await;
        (self.ca, self.store)
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// `shop` dials `bank`; both know each other.
async fn two() -> (Agent, Agent) {
    let shop_ca = TestCa::new("shop.example");
    let bank = Agent::start("bank", &shop_ca, "shop", None).await;
    let shop = Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", Some(bank.address)).await;
    (shop, bank)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_synchronise_both_ways_and_prove_it() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("both directions proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    assert_eq!(shop.imports(), ["ledger.bank.example", "rates.bank.example"]);
    assert_eq!(bank.imports(), ["cart.shop.example"]);

    bank.publish("shop", &names(&["ledger"]));
    eventually("the withdrawal arrives", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_consumer_serves_before_it_has_reached_the_owner_and_then_sweeps() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.imports().len() == 2 && shop.link().is_proven()).await;
    let bank_address = bank.address;
    let (shop_ca, shop_store) = shop.stop().await;
    bank.publish("shop", &names(&["ledger"]));
    let unreachable: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let shop = Agent::restart("shop", shop_ca, shop_store, &bank.ca, "bank", Some(unreachable)).await;
    assert_eq!(shop.imports(), ["ledger.bank.example", "rates.bank.example"]);
    let (shop_ca, shop_store) = shop.stop().await;
    let shop = Agent::restart("shop", shop_ca, shop_store, &bank.ca, "bank", Some(bank_address)).await;
    shop.publish("bank", &[]);
    eventually("swept", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_owner_leaves_the_imports_in_force_and_is_shown_down() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven()).await;
    bank.stop().await;
    eventually("down", GENEROUS, || matches!(shop.link().status().connection, Connection::Down { .. })).await;
    assert_eq!(shop.imports(), ["ledger.bank.example"]);
    assert!(shop.link().status().last_error.is_some());
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_services_federate_fully_and_a_change_among_them_arrives() {
    let (shop, bank) = two().await;
    let mut all: Vec<String> = (0..10_000).map(|i| format!("svc-{i:05}")).collect();
    bank.publish("shop", &all);
    shop.publish("bank", &[]);
    let minutes = Duration::from_secs(300);
    eventually("all are in force and proven", minutes, || shop.link().is_proven() && shop.imports().len() == 10_000)
        .await;
    assert_eq!(shop.link().status().counts.refused, 0);
    all[5_000] = "changed".to_owned();
    bank.publish("shop", &all);
    eventually("the change arrives", GENEROUS, || {
        let imports: BTreeSet<String> = shop.imports().into_iter().collect();
        imports.contains("changed.bank.example") && !imports.contains("svc-05000.bank.example")
    })
    .await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_dial_one_stream_is_left_and_both_directions_are_proven() {
    let shop_ca = TestCa::new("shop.example");
    let bank_ca = TestCa::new("bank.example");
    // Each needs the other's port before it is bound: bind one, then the other, then tell.
    let bank = Agent::restart("bank", bank_ca, MemoryStore::new(), &shop_ca, "shop", None).await;
    let shop = Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", Some(bank.address)).await;
    let told = LinkConfig { address: Some(shop.address.to_string()), ..(*bank.link().config()).clone() };
    bank.link().configure(told).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("both proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    let (a, b) = (shop.link().status(), bank.link().status());
    assert_ne!(a.dialled, b.dialled, "the same stream seen from both ends");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_peer_is_forgotten_and_its_names_are_gone() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven()).await;
    shop.link().remove().await;
    assert_eq!(shop.imports(), Vec::<String>::new());
    assert_eq!(shop.store.load(&PeerName::parse("bank").unwrap()), Default::default());
    assert!(shop.clock.now() > Duration::ZERO && !shop.shutdown.has_begun());
    shop.stop().await;
    bank.stop().await;
}
