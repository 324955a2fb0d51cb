//! Agents without gateway, names or configuration: the protocol with real sockets, real mTLS and
//! a store of choice. What is left out isn't measured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use hamlet_core::durable::{ImportStore, LoadedPeer};
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::ImportLimits;
use hamlet_core::lease::NameLeases;
use hamlet_core::offers::{IngressOffer, PublicationInputs, offer_of};
use hamlet_core::publication::{PublicationPolicy, PublicationRule};
use hamlet_core::{
    AddressRange, CallerForm, DnsLabel, Endpoint, EndpointAddress, Fqdn, LocalInstance, LocalService,
    NameSuffix, PeerName, PortRange, Protocol, ServiceName, TrustDomain,
};
use hamlet_identity::{LocalIdentity, PeerTrust, TrustBundle, TrustTable};
use hamlet_protocol::bundles::BundleExchange;
use hamlet_protocol::dial::Dialler;
use hamlet_protocol::dialect::offered::Offered;
use hamlet_protocol::dialect::service::encode;
use hamlet_protocol::dialect::{Dialect, Secret};
use hamlet_protocol::importer::{ImportSettings, ImportedCatalogue};
use hamlet_protocol::link::{Link, LinkConfig, LinkContext};
use hamlet_protocol::server::{AgentServer, Links, ServerContext};
use hamlet_runtime::{Clock, Shutdown, Spawner, Supervisor, SystemClock};
use hamlet_testkit::pki::{LeafSpec, TestCa};

/// The two meshes; each is the other's peer.
pub(super) const OWNER: &str = "owner";
/// See [`OWNER`].
pub(super) const CONSUMER: &str = "consumer";
/// The owner's certificate for clients that look at DNS names.
pub(super) const OWNER_BY_NAME: &str = "owner-by-name";
/// Port of the ingress that the owner tells of; nobody calls it.
const INGRESS_PORT: u16 = 7444;
/// Size that a service is filled up to, in encoded bytes.
pub(super) const SERVICE_BYTES: usize = 480;
/// Unanswered changes that a peer on v1alpha2 may have that is no Hamlet agent, as `spec.window` says.
/// The lean consumers answer each change at once.
pub(super) const WINDOW: usize = 64;

/// The mesh of one of many consumers.
pub(super) fn member(i: usize) -> String {
    format!("member-{i:04}")
}

/// Writes the certificates of both meshes, and of so many further consumers, into `folder`.
pub(super) fn write_identities(folder: &Path, members: usize) -> anyhow::Result<()> {
    let meshes = [OWNER.to_owned(), CONSUMER.to_owned()].into_iter().chain((0..members).map(member));
    for mesh in meshes {
        let ca = TestCa::new(&format!("{mesh}.example"));
        std::fs::write(folder.join(format!("{mesh}-ca.pem")), ca.pem())?;
        ca.agent().write(folder, &mesh);
        if mesh == OWNER {
            let mut by_name = LeafSpec::of(ca.agent_id().as_str());
            by_name.dns = vec!["localhost".to_owned()];
            ca.leaf(by_name).write(folder, OWNER_BY_NAME);
        }
    }
    Ok(())
}

/// Who we are, and that we believe the peers.
pub(super) struct Identities {
    /// Ours.
    pub(super) identity: Arc<LocalIdentity>,
    /// The peers'.
    pub(super) trust: Arc<TrustTable>,
}

impl Identities {
    /// Reads what [`write_identities`] wrote.
    pub(super) fn read(folder: &Path, own: &str, peers: &[String]) -> anyhow::Result<Identities> {
        let pem = |end: &str| folder.join(format!("{own}.{end}"));
        let identity = LocalIdentity::from_pem_files(&pem("pem"), &pem("key"), SystemClock::shared())?;
        let believed = |peer: &String| -> anyhow::Result<PeerTrust> {
            let trust_domain = TrustDomain::parse(&format!("{peer}.example"))?;
            let bundle = std::fs::read(folder.join(format!("{peer}-ca.pem")))?;
            let (agent, gateway) = (trust_domain.id("agent")?, trust_domain.id("gateway")?);
            let bundle = Arc::new(TrustBundle::from_pem(trust_domain, &bundle)?);
            Ok(PeerTrust::new(PeerName::parse(peer)?, bundle, vec![agent], vec![gateway]))
        };
        let trust = TrustTable::new(SystemClock::shared());
        trust.replace(peers.iter().map(believed).collect::<anyhow::Result<Vec<_>>>()?)?;
        Ok(Identities { identity, trust })
    }
}

/// What an agent needs to start.
pub(super) struct AgentSpec<'a> {
    /// Its mesh.
    pub(super) own: &'a str,
    /// The other meshes.
    pub(super) peers: Vec<String>,
    /// Where the certificates are.
    pub(super) folder: &'a Path,
    /// Where the (only) peer is; `None` imports nothing.
    pub(super) address: Option<SocketAddr>,
    /// What outlives the agent, and what it kept of each peer.
    pub(super) store: Arc<dyn ImportStore>,
    /// See `store`.
    pub(super) loaded: BTreeMap<PeerName, LoadedPeer>,
    /// Most services to import.
    pub(super) services: usize,
    /// Speaks v1alpha1 only, which has one unanswered message.
    pub(super) one_in_flight: bool,
}

/// One agent.
pub(super) struct Agent {
    /// Its links, in the order of the peers.
    pub(super) links: Vec<Arc<Link>>,
    /// What it imported.
    pub(super) catalogue: ImportedCatalogue,
    /// Time.
    pub(super) clock: Arc<dyn Clock>,
    publications: Arc<Offered>,
    ingress: IngressOffer,
    services: Vec<Arc<LocalService>>,
    identities: Identities,
    spawner: Spawner,
    shutdown: Shutdown,
    supervisor: Supervisor,
}

impl Agent {
    /// Starts one that neither listens nor dials yet.
    pub(super) async fn start(mut spec: AgentSpec<'_>) -> anyhow::Result<Agent> {
        let identities = Identities::read(spec.folder, spec.own, &spec.peers)?;
        let clock = SystemClock::shared();
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let publications = Arc::new(Offered::new());
        let catalogue = ImportedCatalogue::new();
        let context = LinkContext {
            our_id: {
                let identity = identities.identity.clone();
                Arc::new(move || identity.spiffe_id())
            },
            agent: "hamlet bench".into(),
            instance: u64::from(std::process::id()),
            log_id: u128::from(std::process::id()).to_be_bytes(),
            publications: publications.clone(),
            catalogue: catalogue.clone(),
            leases: NameLeases::new(),
            store: spec.store.clone(),
            clock: clock.clone(),
            spawner: spawner.clone(),
            bundles: BundleExchange::default(),
        };
        let mut links = Vec::new();
        for peer in &spec.peers {
            let import = spec.address.map(|_| settings(peer, spec.services)).transpose()?;
            let config = LinkConfig {
                address: spec.address.map(|a| a.to_string()),
                version: spec.one_in_flight.then_some(Dialect::V1alpha1),
                context: Secret::new(""),
                extensions_required: false,
                foreign_window: WINDOW,
                paused: false,
                import,
            };
            let peer = PeerName::parse(peer)?;
            let loaded = spec.loaded.remove(&peer).unwrap_or_default();
            links.push(Link::start(peer, config, context.clone(), loaded, shutdown.child()).await?);
        }
        let (ingress, services) = (ingress()?, Vec::new());
        Ok(Agent {
            links,
            catalogue,
            clock,
            publications,
            ingress,
            services,
            identities,
            spawner,
            shutdown,
            supervisor,
        })
    }

    /// The only peer, or the first one.
    pub(super) fn link(&self) -> &Arc<Link> {
        &self.links[0]
    }

    /// What `services` services look like at `version`, from `first` on; what comes after them
    /// stays. Returns the encoded size of the last one.
    pub(super) fn set(&mut self, first: usize, count: usize, version: u64) -> anyhow::Result<usize> {
        // The first version is the same in every process, so that a restart changes nothing.
        let at = if version == 1 { 0 } else { self.clock.wall().as_nanos() };
        for i in first..first + count {
            let service = service(i, &marker(i, version, at), &self.ingress)?;
            match self.services.get_mut(i) {
                Some(place) => *place = service,
                None => self.services.push(service),
            }
        }
        self.publish();
        Ok(self.services.last().map_or(0, |s| encode(&offer_of(s, &self.ingress)).len()))
    }

    /// Offers what there is to all peers.
    pub(super) fn publish(&self) {
        let peers: BTreeSet<PeerName> = self.links.iter().map(|l| l.peer().clone()).collect();
        let rule = PublicationRule {
            name: "all".into(),
            names: BTreeSet::new(),
            labels: BTreeMap::new(),
            all: true,
            peers: peers.clone(),
        };
        self.publications.refresh(PublicationInputs {
            services: &self.services,
            ingress: &self.ingress,
            policy: &PublicationPolicy { rules: vec![rule] },
            peers: &peers,
            ready: true,
        });
    }

    /// Accepts the peers on `address`.
    pub(super) async fn listen(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let server = AgentServer::bind(address).await?;
        let address = server.local_addr();
        let links = self.links.iter().map(|l| (l.peer().clone(), l.clone()));
        let links: Links = Arc::new(ArcSwap::from_pointee(links.collect()));
        let context = ServerContext {
            links,
            trust: self.identities.trust.clone(),
            identity: self.identities.identity.clone(),
            clock: self.clock.clone(),
            spawner: self.spawner.clone(),
        };
        self.spawner.spawn("server", server.run(context, self.shutdown.clone()));
        Ok(address)
    }

    /// Dials the peers from here on.
    pub(super) fn dial(&self) {
        let Identities { identity, trust } = &self.identities;
        for link in &self.links {
            let dialler = Dialler::new(link.clone(), identity.clone(), trust.clone(), self.spawner.clone());
            self.spawner.spawn("dial", dialler.run(self.shutdown.clone()));
        }
    }

    /// Stops all of it.
    pub(super) async fn stop(self) {
        self.supervisor.stop(Duration::from_secs(2), Duration::from_secs(2)).await;
    }
}

fn settings(peer: &str, services: usize) -> anyhow::Result<ImportSettings> {
    let trust_domain = TrustDomain::parse(&format!("{peer}.example"))?;
    let rules = ImportRules {
        peer: PeerName::parse(peer)?,
        suffixes: vec![NameSuffix::parse(trust_domain.as_str())?],
        sans: vec![trust_domain.id("gateway")?],
        ranges: vec![AddressRange::parse("127.0.0.0/8")?],
        endpoint_ports: vec![PortRange::parse(&INGRESS_PORT.to_string())?],
        service_ports: BTreeMap::new(),
        trust_domain,
    };
    let limits = ImportLimits {
        services: services.max(1),
        bytes: (services as u64 + 1) * 4 * SERVICE_BYTES as u64,
        ..ImportLimits::default()
    };
    let hold = Some(Duration::from_secs(3600));
    Ok(ImportSettings {
        rules: Some(Arc::new(rules)),
        limits,
        guard: GuardSettings::default(),
        hold,
        resync: None,
    })
}

fn ingress() -> anyhow::Result<IngressOffer> {
    let endpoint = Endpoint {
        address: EndpointAddress::parse("127.0.0.1")?,
        port: NonZeroU16::new(INGRESS_PORT).context("a port")?,
        labels: vec![],
        description: String::new(),
    };
    let gateway = TrustDomain::parse(&format!("{OWNER}.example"))?.id("gateway")?;
    Ok(IngressOffer { endpoints: vec![endpoint], sans: vec![gateway] })
}

/// What the lean consumers read: key, version, and when it was published, in nanoseconds.
pub(super) fn marker(key: usize, version: u64, at_nanos: u128) -> String {
    format!("#{key}:{version}:{at_nanos}#")
}

/// A service filled up to [`SERVICE_BYTES`] by its description, which begins with `text`.
fn service(i: usize, text: &str, ingress: &IngressOffer) -> anyhow::Result<Arc<LocalService>> {
    let name = format!("service-{i:06}");
    let fqdn = Fqdn::parse(&format!("{name}.{OWNER}.example"))?;
    let http = DnsLabel::parse("http")?;
    let mut service = LocalService {
        name: ServiceName::parse(&name)?,
        description: String::new(),
        tags: vec!["bench".to_owned(), "payments".to_owned()],
        labels: [("team".to_owned(), "payments".to_owned()), ("tier".to_owned(), "backend".to_owned())]
            .into(),
        instances: vec![LocalInstance {
            protocol: Protocol::Http,
            port: NonZeroU16::new(80).context("a port")?,
            sni: fqdn.child(&http)?,
            id: http,
            backends: vec![],
            caller: CallerForm::None,
        }],
        fqdn,
    };
    let bare = encode(&offer_of(&service, ingress)).len();
    // Tag and length of the description take three bytes.
    let filled = SERVICE_BYTES.saturating_sub(bare + 3);
    service.description = format!("{text:x<filled$}");
    Ok(Arc::new(service))
}
