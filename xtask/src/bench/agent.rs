//! Two agents without gateway, names or configuration: the protocol with real sockets, real mTLS
//! and a store of choice. What is left out isn't measured.

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
use hamlet_protocol::dial::Dialler;
use hamlet_protocol::dialect::Secret;
use hamlet_protocol::dialect::offered::Offered;
use hamlet_protocol::dialect::service::encode;
use hamlet_protocol::importer::{ImportSettings, ImportedCatalogue};
use hamlet_protocol::link::{Link, LinkConfig, LinkContext};
use hamlet_protocol::server::{AgentServer, Links, ServerContext};
use hamlet_runtime::{Clock, Shutdown, Spawner, Supervisor, SystemClock};
use hamlet_testkit::pki::TestCa;

/// The two meshes; each is the other's peer.
pub(super) const OWNER: &str = "owner";
/// See [`OWNER`].
pub(super) const CONSUMER: &str = "consumer";
/// Port of the ingress that the owner tells of; nobody calls it.
const INGRESS_PORT: u16 = 7444;
/// Size that a service is filled up to, in encoded bytes.
const SERVICE_BYTES: usize = 480;

/// Writes the certificates of both meshes into `folder`.
pub(super) fn write_identities(folder: &Path) -> anyhow::Result<()> {
    for mesh in [OWNER, CONSUMER] {
        let ca = TestCa::new(&format!("{mesh}.example"));
        std::fs::write(folder.join(format!("{mesh}-ca.pem")), ca.pem())?;
        ca.agent().write(folder, mesh);
    }
    Ok(())
}

/// Who we are, and that we believe the one peer.
pub(super) struct Identities {
    /// Ours.
    pub(super) identity: Arc<LocalIdentity>,
    /// The peer's.
    pub(super) trust: Arc<TrustTable>,
}

impl Identities {
    /// Reads what [`write_identities`] wrote.
    pub(super) fn read(folder: &Path, own: &str, peer: &str) -> anyhow::Result<Identities> {
        let pem = |end: &str| folder.join(format!("{own}.{end}"));
        let identity = LocalIdentity::from_pem_files(&pem("pem"), &pem("key"), SystemClock::shared())?;
        let trust_domain = TrustDomain::parse(&format!("{peer}.example"))?;
        let bundle = std::fs::read(folder.join(format!("{peer}-ca.pem")))?;
        let trust = TrustTable::new(SystemClock::shared());
        trust.replace(vec![PeerTrust {
            peer: PeerName::parse(peer)?,
            agent_ids: vec![trust_domain.id("agent")?],
            gateway_ids: vec![trust_domain.id("gateway")?],
            bundle: Arc::new(TrustBundle::from_pem(trust_domain.clone(), &bundle)?),
            trust_domain,
        }])?;
        Ok(Identities { identity, trust })
    }
}

/// One agent.
pub(super) struct Agent {
    /// Its only link.
    pub(super) link: Arc<Link>,
    /// What it imported.
    pub(super) catalogue: ImportedCatalogue,
    /// The other mesh.
    pub(super) peer: PeerName,
    /// Time.
    pub(super) clock: Arc<dyn Clock>,
    publications: Arc<Offered>,
    identities: Identities,
    spawner: Spawner,
    shutdown: Shutdown,
    supervisor: Supervisor,
}

impl Agent {
    /// Starts one that neither listens nor dials yet.
    pub(super) async fn start(
        own: &str,
        peer: &str,
        folder: &Path,
        address: Option<SocketAddr>,
        store: Arc<dyn ImportStore>,
        services: usize,
    ) -> anyhow::Result<Agent> {
        let identities = Identities::read(folder, own, peer)?;
        let clock = SystemClock::shared();
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        let spawner = supervisor.spawner();
        let publications = Arc::new(Offered::new());
        let catalogue = ImportedCatalogue::new();
        let context = LinkContext {
            our_id: identities.identity.spiffe_id(),
            agent: "hamlet bench".into(),
            instance: 1,
            log_id: u128::from(std::process::id()).to_be_bytes(),
            publications: publications.clone(),
            catalogue: catalogue.clone(),
            leases: NameLeases::new(),
            store,
            clock: clock.clone(),
            spawner: spawner.clone(),
        };
        let import = address.map(|_| settings(peer, services)).transpose()?;
        let config = LinkConfig {
            address: address.map(|a| a.to_string()),
            version: None,
            context: Secret::new(""),
            extensions_required: false,
            foreign_window: 1,
            paused: false,
            import,
        };
        let peer = PeerName::parse(peer)?;
        let link =
            Link::start(peer.clone(), config, context, LoadedPeer::default(), shutdown.child()).await?;
        Ok(Agent { link, catalogue, peer, clock, publications, identities, spawner, shutdown, supervisor })
    }

    /// Offers `count` services to the peer; returns the encoded size of one.
    pub(super) fn publish(&self, count: usize) -> anyhow::Result<usize> {
        let ingress = ingress()?;
        let services = (0..count).map(|i| service(i, &ingress)).collect::<anyhow::Result<Vec<_>>>()?;
        let peers: BTreeSet<PeerName> = [self.peer.clone()].into();
        let rule = PublicationRule {
            name: "all".into(),
            names: BTreeSet::new(),
            labels: BTreeMap::new(),
            all: true,
            peers: peers.clone(),
        };
        self.publications.refresh(PublicationInputs {
            services: &services,
            ingress: &ingress,
            policy: &PublicationPolicy { rules: vec![rule] },
            peers: &peers,
            ready: true,
        });
        Ok(services.first().map_or(0, |s| encode(&offer_of(s, &ingress)).len()))
    }

    /// Accepts the peer on a free port of loopback.
    pub(super) async fn listen(&self) -> anyhow::Result<SocketAddr> {
        let server = AgentServer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = server.local_addr();
        let links: Links = Arc::new(ArcSwap::from_pointee([(self.peer.clone(), self.link.clone())].into()));
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

    /// Dials the peer from here on.
    pub(super) fn dial(&self) {
        let Identities { identity, trust } = &self.identities;
        let dialler = Dialler::new(self.link.clone(), identity.clone(), trust.clone(), self.spawner.clone());
        self.spawner.spawn("dial", dialler.run(self.shutdown.clone()));
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

/// A service filled up to [`SERVICE_BYTES`] by its description.
fn service(i: usize, ingress: &IngressOffer) -> anyhow::Result<Arc<LocalService>> {
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
    service.description = "x".repeat(SERVICE_BYTES.saturating_sub(bare + 3));
    Ok(Arc::new(service))
}
