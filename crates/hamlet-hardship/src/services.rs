//! The services of the simulated meshes, and what they look like on the wire.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use hamlet_core::import::ImportRules;
use hamlet_core::offers::{Encoder, IngressOffer, offer_of};
use hamlet_core::{
    AddressRange, CallerForm, DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, LocalInstance,
    LocalService, NameSuffix, PeerName, PortRange, Protocol, ServiceName, SpiffeId, TrustDomain,
};
use hamlet_protocol::dialect::service::encode;

use crate::truth::{Key, Meant};

/// Label that becomes a field which consumers ignore: the bytes differ, the service doesn't.
const RAW: &str = "raw";
/// Label that becomes so many ignored bytes.
const FAT: &str = "fat";
/// Zone of names that consumers usually refuse.
const ALIEN: &str = "alien.example";

/// A service of a mesh.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) local: Arc<LocalService>,
    pub(crate) meant: Meant,
    pub(crate) shape: Shape,
}

/// What a service is made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) revision: u64,
    pub(crate) alien: bool,
    pub(crate) raw: u64,
    pub(crate) fat: usize,
}

// Names made here are valid by construction: a failure is a mistake of the simulation.
fn made<T, E: std::fmt::Debug>(parsed: Result<T, E>) -> T {
    match parsed {
        Ok(value) => value,
        Err(error) => unreachable!("made by the simulation: {error:?}"),
    }
}

/// A mesh's name as its peers call it.
pub(crate) fn peer_name(mesh: &str) -> PeerName {
    made(PeerName::parse(mesh))
}

/// The id of a mesh's agent.
pub(crate) fn agent_id(mesh: &str) -> SpiffeId {
    made(SpiffeId::parse(&format!("spiffe://{mesh}.example/agent")))
}

/// Where peers reach a mesh's services.
pub(crate) fn ingress(mesh: &str) -> IngressOffer {
    let endpoint = Endpoint {
        address: made(EndpointAddress::parse("127.0.0.1")),
        port: NonZeroU16::MIN,
        labels: vec![],
        description: String::new(),
    };
    let san = made(SpiffeId::parse(&format!("spiffe://{mesh}.example/gateway")));
    IngressOffer { endpoints: vec![endpoint], sans: vec![san] }
}

/// What a consumer accepts from an owner.
pub(crate) fn rules(owner: &str, aliens: bool) -> Arc<ImportRules> {
    let mut suffixes = vec![made(NameSuffix::parse(&format!("{owner}.example")))];
    if aliens {
        suffixes.push(made(NameSuffix::parse(ALIEN)));
    }
    Arc::new(ImportRules {
        peer: peer_name(owner),
        trust_domain: made(TrustDomain::parse(&format!("{owner}.example"))),
        suffixes,
        sans: ingress(owner).sans,
        ranges: vec![made(AddressRange::parse("127.0.0.0/8"))],
        endpoint_ports: vec![made(PortRange::parse("1"))],
        service_ports: BTreeMap::new(),
    })
}

/// Writes a service as its owner does: what two labels say goes into fields that nobody reads.
pub(crate) fn encoder() -> Encoder {
    Arc::new(|service: &FederatedService| {
        let mut plain = service.clone();
        let raw = plain.labels.remove(RAW).and_then(|n| n.parse::<u64>().ok());
        let fat = plain.labels.remove(FAT).and_then(|n| n.parse::<usize>().ok());
        let mut out = BytesMut::from(&encode(&plain)[..]);
        if let Some(raw) = raw {
            prost::encoding::uint64::encode(2000, &raw, &mut out);
        }
        if let Some(fat) = fat {
            prost::encoding::encode_key(2001, prost::encoding::WireType::LengthDelimited, &mut out);
            prost::encoding::encode_varint(fat as u64, &mut out);
            out.put_bytes(b'f', fat);
        }
        out.freeze()
    })
}

/// A service of `mesh`.
pub(crate) fn service(mesh: &str, key: &Key, shape: Shape) -> Service {
    let zone = if shape.alien { format!("{mesh}.{ALIEN}") } else { format!("{mesh}.example") };
    let fqdn = made(Fqdn::parse(&format!("{key}.{zone}")));
    let id = made(DnsLabel::parse("http"));
    let mut labels = BTreeMap::new();
    if shape.raw > 0 {
        labels.insert(RAW.to_owned(), shape.raw.to_string());
    }
    if shape.fat > 0 {
        labels.insert(FAT.to_owned(), shape.fat.to_string());
    }
    let local = LocalService {
        name: made(ServiceName::parse(key)),
        description: shape.revision.to_string(),
        tags: vec![],
        labels,
        instances: vec![LocalInstance {
            sni: made(fqdn.child(&id)),
            id,
            protocol: Protocol::Http,
            port: made(NonZeroU16::try_from(80)),
            backends: vec![],
            caller: CallerForm::None,
        }],
        fqdn,
    };
    let value: Bytes = encoder()(&offer_of(&local, &ingress(mesh)));
    let meant = Meant { revision: shape.revision, value, alien: shape.alien };
    Service { local: Arc::new(local), meant, shape }
}

/// The revision that readers see of an imported service.
pub(crate) fn revision_seen(description: &str) -> u64 {
    description.parse().unwrap_or(0)
}
