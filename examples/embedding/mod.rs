//! What the examples share: two meshes with throw-away CAs in a folder, and something to offer. A
//! program of yours has certificates of its own and none of this.

// Each example uses its part.
#![allow(dead_code)]

use std::error::Error;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use hamlet_core::{
    AddressRange, DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, NameSuffix,
    PeerName, PortRange, Protocol, ServiceName, SpiffeId, TrustDomain,
};
use hamlet_identity::LocalCa;
use hamlet_identity::ca::{CA_CERT_FILE, CA_LIFETIME, LEAF_LIFETIME};
use hamlet_protocol::sdk::{AGENT_ID_PATH, Identity, ImportRules, Peer};
use hamlet_runtime::SystemClock;

/// Anything that goes wrong, told to the person at the terminal.
pub(crate) type Failure = Box<dyn Error>;

/// The folder given as argument, or none.
pub(crate) fn folder_argument() -> Option<PathBuf> {
    std::env::args_os().nth(1).map(PathBuf::from)
}

/// Makes the CAs and certificates of `bank` and `shop` in a folder, unless they are there.
pub(crate) fn make_certificates(folder: &Path) -> Result<(), Failure> {
    for mesh in ["bank", "shop"] {
        let folder = folder.join(mesh);
        if folder.join(CA_CERT_FILE).exists() {
            continue;
        }
        std::fs::create_dir_all(&folder)?;
        let domain = TrustDomain::parse(&format!("{mesh}.example"))?;
        let ca = LocalCa::create(&folder, &domain, CA_LIFETIME, SystemClock::shared())?;
        ca.issue_agent(&domain.id(AGENT_ID_PATH)?, &[], LEAF_LIFETIME)?.write(&folder, "agent")?;
    }
    Ok(())
}

/// A mesh's own certificate and key.
pub(crate) fn identity(folder: &Path, mesh: &str) -> Result<Identity, Failure> {
    let folder = folder.join(mesh);
    Ok(Identity::from_files(folder.join("agent.pem"), folder.join("agent.key"))?)
}

/// A mesh as its peer knows it: its CA certificate, and no key.
pub(crate) fn peer(folder: &Path, mesh: &str) -> Result<Peer, Failure> {
    Ok(Peer::from_file(mesh, &format!("{mesh}.example"), folder.join(mesh).join(CA_CERT_FILE))?)
}

/// Where the owner writes its address for the consumer.
pub(crate) fn address_file(folder: &Path) -> PathBuf {
    folder.join("bank").join("address")
}

/// A service of the bank, reached through its gateway.
pub(crate) fn service(name: &str) -> Result<FederatedService, Failure> {
    let fqdn = Fqdn::parse(&format!("{name}.bank.example"))?;
    let http = DnsLabel::parse("http")?;
    Ok(FederatedService {
        name: ServiceName::parse(name)?,
        description: format!("the bank's {name}"),
        tags: vec![],
        labels: [("tier".to_owned(), "public".to_owned())].into(),
        endpoints: vec![Endpoint {
            address: EndpointAddress::parse("127.0.0.1")?,
            port: NonZeroU16::new(7444).ok_or("a port")?,
            labels: vec![],
            description: String::new(),
        }],
        sans: vec![SpiffeId::parse("spiffe://bank.example/hamlet/gateway")?],
        instances: vec![Instance {
            id: http.clone(),
            protocol: Protocol::Http,
            sni: Some(fqdn.child(&http)?),
            hostname: None,
            port: NonZeroU16::new(80),
            metadata: Default::default(),
            endpoint_selector: vec![],
            description: String::new(),
        }],
        fqdn,
    })
}

/// What the shop takes from the bank: its own names, at its own gateway.
pub(crate) fn rules() -> Result<ImportRules, Failure> {
    Ok(ImportRules {
        peer: PeerName::parse("bank")?,
        trust_domain: TrustDomain::parse("bank.example")?,
        suffixes: vec![NameSuffix::parse("bank.example")?],
        sans: vec![SpiffeId::parse("spiffe://bank.example/hamlet/gateway")?],
        ranges: vec![AddressRange::parse("127.0.0.0/8")?],
        endpoint_ports: vec![PortRange::parse("7444")?],
        service_ports: Default::default(),
    })
}
