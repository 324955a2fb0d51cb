//! The services: as they run here, as they are offered, as they are imported.
//!
//! [`FederatedService`] is the superset of both wire versions and complete in itself.
//! No protobuf type comes this far.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::address::EndpointAddress;
use crate::name::{DnsLabel, Fqdn, PeerName};
use crate::spiffe::SpiffeId;

/// Limits of one service on the wire (threat T7).
pub mod limits {
    /// Largest encoded service we admit, in bytes.
    pub const MESSAGE_BYTES: usize = 64 * 1024;
    /// Most endpoints of one service.
    pub const ENDPOINTS: usize = 256;
    /// Most instances of one service.
    pub const INSTANCES: usize = 256;
    /// Most subject alternative names of one service.
    pub const SANS: usize = 32;
    /// Most labels or metadata entries of one map.
    pub const LABELS: usize = 64;
    /// Most tags, and most endpoint labels or selectors of one list.
    pub const TAGS: usize = 64;
    /// Longest map key, in bytes.
    pub const LABEL_KEY_BYTES: usize = 63;
    /// Longest map value, tag or selector, in bytes.
    pub const LABEL_VALUE_BYTES: usize = 256;
    /// Longest description, in bytes.
    pub const DESCRIPTION_BYTES: usize = 4096;
    /// Longest service name (wire key), in bytes.
    pub const NAME_BYTES: usize = 253;
}

/// The unique name of a service within its owner: 1 to 253 bytes of printable ASCII without
/// blanks. It is a key, not a DNS name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);

/// Why a text is not a service name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a service name has 1 to 253 characters of printable ASCII without blanks")]
pub struct ServiceNameError;

impl ServiceName {
    /// Checks `text`; no case folding, names are compared byte by byte.
    pub fn parse(text: &str) -> Result<ServiceName, ServiceNameError> {
        let fits = (1..=limits::NAME_BYTES).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(ServiceName(text.into()))
        } else {
            Err(ServiceNameError)
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;
    fn try_from(s: String) -> Result<Self, ServiceNameError> {
        ServiceName::parse(&s)
    }
}
impl From<ServiceName> for String {
    fn from(n: ServiceName) -> String {
        n.0.to_string()
    }
}

/// A service by owner and name; a name alone is unique only within its owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceId {
    /// The peer that offers it.
    pub owner: PeerName,
    /// Its name there.
    pub name: ServiceName,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// What an instance speaks (protocol text, 2.4); compared without case on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Protocol {
    Http,
    Https,
    Grpc,
    Http2,
    Mongo,
    Tcp,
    Tls,
    Mtls,
}

impl Protocol {
    /// All of them, in the order of the specification.
    pub const ALL: [Protocol; 8] = [
        Protocol::Http,
        Protocol::Https,
        Protocol::Grpc,
        Protocol::Http2,
        Protocol::Mongo,
        Protocol::Tcp,
        Protocol::Tls,
        Protocol::Mtls,
    ];

    /// Parses without regard to case.
    pub fn parse(text: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.as_str().eq_ignore_ascii_case(text))
    }

    /// The wire text.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "HTTP",
            Protocol::Https => "HTTPS",
            Protocol::Grpc => "GRPC",
            Protocol::Http2 => "HTTP2",
            Protocol::Mongo => "MONGO",
            Protocol::Tcp => "TCP",
            Protocol::Tls => "TLS",
            Protocol::Mtls => "MTLS",
        }
    }

    /// The port that consumers use when the owner doesn't name one (decision 1).
    pub fn default_port(self) -> Option<NonZeroU16> {
        let port = match self {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc => 80,
            Protocol::Https | Protocol::Tls => 443,
            Protocol::Mongo => 27017,
            Protocol::Tcp | Protocol::Mtls => return None,
        };
        NonZeroU16::new(port)
    }

    /// Whether requests carry a Host or authority that a gateway can route by.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One ingress point of an offer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it is. On the wire a text; here an IP.
    pub address: EndpointAddress,
    /// The ingress port (not the service's port).
    pub port: NonZeroU16,
    /// Labels that instances select endpoints by.
    pub labels: Vec<String>,
    /// For people.
    pub description: String,
}

impl Endpoint {
    /// Address and port to connect to.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.port.get())
    }
}

/// One way to speak to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its id; `<id>.<fqdn>` is its own name.
    pub id: DnsLabel,
    /// What it speaks.
    pub protocol: Protocol,
    /// The service name that the owner's ingress routes by (metadata `SNI`).
    pub sni: Option<Fqdn>,
    /// The host that a clear-text ingress routes by (metadata `HOSTNAME`).
    pub hostname: Option<String>,
    /// The service's own port (metadata `PORT`).
    pub port: Option<NonZeroU16>,
    /// All other metadata, as it came.
    pub metadata: BTreeMap<String, String>,
    /// Labels of the endpoints it belongs to; none matching means all (protocol text, 2.4).
    pub endpoint_selector: Vec<String>,
    /// For people.
    pub description: String,
}

/// One mesh's offer to another, complete in itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederatedService {
    /// Unique within the owner; the key on the wire.
    pub name: ServiceName,
    /// The name that consumers resolve.
    pub fqdn: Fqdn,
    /// For people.
    pub description: String,
    /// Free tags.
    pub tags: Vec<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// The owner's ingress points.
    pub endpoints: Vec<Endpoint>,
    /// Exact identities that the ingress may prove; never empty.
    pub sans: Vec<SpiffeId>,
    /// Ways to speak to it.
    pub instances: Vec<Instance>,
}

impl FederatedService {
    /// The endpoints that `instance` belongs to: those that carry one of its selector labels,
    /// or all if none does.
    pub fn endpoints_of<'a>(&'a self, instance: &'a Instance) -> Vec<&'a Endpoint> {
        let chosen: Vec<_> = self
            .endpoints
            .iter()
            .filter(|e| e.labels.iter().any(|l| instance.endpoint_selector.contains(l)))
            .collect();
        if chosen.is_empty() { self.endpoints.iter().collect() } else { chosen }
    }
}

/// How a backend learns who is calling (decision 20). Only what the ingress *proved* is told:
/// the peer's gateway id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallerForm {
    /// Not told.
    #[default]
    None,
    /// PROXY protocol v2 in front of the bytes, the proven id in TLV 0xE0.
    ProxyV2,
    /// Request header `x-hamlet-caller`; whatever the client sent under that name is removed.
    HttpHeader,
}

/// One way to reach a service as it runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalInstance {
    /// Its id.
    pub id: DnsLabel,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port that consumers will use.
    pub port: NonZeroU16,
    /// The name our ingress routes by: `<id>.<fqdn>`.
    pub sni: Fqdn,
    /// Where our ingress forwards to.
    pub backends: Vec<SocketAddr>,
    /// How the backend is told who calls.
    pub caller: CallerForm,
}

/// A service as it runs in this mesh: how our ingress reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalService {
    /// Unique in this mesh.
    pub name: ServiceName,
    /// The name we publish it under.
    pub fqdn: Fqdn,
    /// For people.
    pub description: String,
    /// Free tags.
    pub tags: Vec<String>,
    /// Labels; publications select by them.
    pub labels: BTreeMap<String, String>,
    /// Ways to reach it; at least one. The first also answers to the bare fqdn.
    pub instances: Vec<LocalInstance>,
}

/// Why an imported instance has no route although its offer was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum NotProgrammed {
    #[error("port unknown: the owner names none; set spec.ports in the Import")]
    PortUnknown,
    #[error(
        "clear text refused: the owner offers no SNI, and the gateway never opens plaintext to another mesh"
    )]
    ClearTextRefused,
}

/// One admitted instance, with everything a route needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedInstance {
    /// Its id at the owner.
    pub id: DnsLabel,
    /// `<id>.<fqdn>`, authorised like any other name.
    pub fqdn: Fqdn,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port that our workloads use; with `sni`, present if and only if a route is possible.
    pub port: Option<NonZeroU16>,
    /// What our egress sends as SNI.
    pub sni: Option<Fqdn>,
    /// The owner's HOSTNAME for HTTP, when it differs from the fqdn.
    pub hostname: Option<String>,
    /// The owner's ingress points for this instance, admitted by policy.
    pub endpoints: Vec<SocketAddr>,
    /// Why there is no route, if so.
    pub not_programmed: Option<NotProgrammed>,
}

/// An offer that we admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedService {
    /// Whose it is, and its name there.
    pub id: ServiceId,
    /// The name our workloads use.
    pub fqdn: Fqdn,
    /// For people.
    pub description: String,
    /// Free tags, as offered.
    pub tags: Vec<String>,
    /// Free labels, as offered.
    pub labels: BTreeMap<String, String>,
    /// Exact identities that the far gateway may prove; never empty, all in the peer's trust domain.
    pub sans: Vec<SpiffeId>,
    /// Its instances.
    pub instances: Vec<ImportedInstance>,
}

impl ImportedService {
    /// Every DNS name this import claims: the fqdn and each instance's.
    pub fn names(&self) -> impl Iterator<Item = &Fqdn> {
        std::iter::once(&self.fqdn).chain(self.instances.iter().map(|i| &i.fqdn))
    }
}
