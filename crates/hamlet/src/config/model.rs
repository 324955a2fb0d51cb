//! The checked configuration. A value of these types can't be wrong: every text has been parsed,
//! every reference resolved, every default filled in. Only [`super::check`] makes a [`Config`].
//!
//! Invariant: nothing here is read from a file except by [`SecretFile::read`]; paths are as the
//! document's folder resolves them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::ImportLimits;
use hamlet_core::publication::{PublicationPolicy, PublicationRule};
use hamlet_core::{
    AddressRange, Endpoint, Fqdn, LocalService, MeshName, NameSuffix, PeerName, SpiffeError, SpiffeId,
    TrustDomain,
};
use hamlet_identity::authority::plan::Lives;
use hamlet_identity::authority::state::LeafRole;
use hamlet_identity::{AuthoritySettings, ForeignIdentity, LeafSpec, Lenience, RevocationPolicy, SvidChoice};
use hamlet_protocol::frames::FrameLimits;
use hamlet_protocol::limits::ConnectionLimits;
use hamlet_runtime::Clock;

use super::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};

use super::endpoint::EndpointUrl;
pub use super::secret::{Secret, SecretError, SecretFile};

/// One agent's whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This agent.
    pub mesh: MeshConfig,
    /// The peers, by name.
    pub peers: BTreeMap<PeerName, PeerConfig>,
    /// What peers see of us, in order of the names.
    pub publications: Vec<PublicationRule>,
    /// What we accept, by peer.
    pub imports: BTreeMap<PeerName, ImportConfig>,
    /// The services declared by hand, in order of the names.
    pub services: Vec<Arc<LocalService>>,
}

impl Config {
    /// The publications as the policy that core evaluates.
    pub fn publication_policy(&self) -> PublicationPolicy {
        PublicationPolicy { rules: self.publications.clone() }
    }
}

/// This agent: the `Mesh` document.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshConfig {
    /// Our name.
    pub name: MeshName,
    /// Our trust domain; no peer has the same.
    pub trust_domain: TrustDomain,
    /// Where our certificates come from.
    pub identity: IdentityConfig,
    /// Where we listen.
    pub listen: Listeners,
    /// The ingress points that peers are told; not empty if there is a publication.
    pub advertise: Vec<Endpoint>,
    /// Where our own bundle is published.
    pub bundle_endpoint: Option<ServedEndpoint>,
    /// How long a CA that was announced on a stream waits before it is used.
    pub bundle_wait: Duration,
    /// The store's folder.
    pub data: PathBuf,
    /// The admin API's unix socket.
    pub socket: PathBuf,
    /// The way out.
    pub egress: EgressConfig,
    /// Answers for imported names.
    pub dns: DnsConfig,
    /// The brake on withdrawals of our own services.
    pub brake: GuardSettings,
    /// Limits.
    pub limits: Limits,
    /// Logging.
    pub log: LogConfig,
}

/// Where our certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityConfig {
    /// Somebody else puts files there.
    Files(IdentityFiles),
    /// We issue them ourselves.
    Authority(AuthorityConfig),
    /// A Workload API gives them.
    WorkloadApi(WorkloadApiConfig),
}

/// A Workload API, and which of its identities are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApiConfig {
    /// Where it is; [`hamlet_identity::WorkloadApi::new`] takes it.
    pub socket: String,
    /// The agent's.
    pub agent: SvidChoice,
    /// The gateways'.
    pub gateway: SvidChoice,
}

/// The built-in authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityConfig {
    /// Its folder.
    pub folder: PathBuf,
    /// DNS names in the agent's and the gateway's leaves.
    pub hosts: Vec<Fqdn>,
    /// How long things live; they fit each other.
    pub lives: Lives,
}

impl AuthorityConfig {
    /// What the authority of `domain` is to keep: one leaf for the agent, one for the gateways.
    pub fn settings(
        &self,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<AuthoritySettings, SpiffeError> {
        let leaf = |path| Ok(LeafSpec { id: domain.id(path)?, names: self.hosts.clone() });
        Ok(AuthoritySettings {
            folder: self.folder.clone(),
            domain: domain.clone(),
            lives: self.lives,
            leaves: [(LeafRole::Agent, leaf(AGENT_ID_PATH)?), (LeafRole::Gateway, leaf(GATEWAY_ID_PATH)?)]
                .into(),
            clock,
        })
    }
}

/// Where our certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The agent's pair.
    pub agent: PairFiles,
    /// The gateways' pair.
    pub gateway: PairFiles,
    /// A local CA that mints ingress certificates.
    pub ca: Option<PairFiles>,
    /// The CAs of our own trust domain, where they aren't that CA alone.
    pub bundle: Option<PathBuf>,
}

/// Our own bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedEndpoint {
    /// Where it listens; `None` is off.
    pub listen: Option<SocketAddr>,
    /// The web certificate with `https_web`; `None` with `https_spiffe`.
    pub web: Option<PairFiles>,
    /// What followers are told, whole seconds.
    pub refresh_hint: Duration,
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where we listen; `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listeners {
    /// Other agents.
    pub agent: Option<SocketAddr>,
    /// Other meshes' gateways.
    pub ingress: Option<SocketAddr>,
    /// Local HTTP workloads.
    pub egress_http: Option<SocketAddr>,
    /// Names, UDP and TCP.
    pub dns: Option<SocketAddr>,
    /// Health and metrics.
    pub admin: Option<SocketAddr>,
}

/// The way out to other meshes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressConfig {
    /// The pool of listener addresses: IPv4 loopback.
    pub pool: AddressRange,
    /// Most listeners.
    pub listeners: usize,
    /// How long one endpoint may take to accept.
    pub connect_timeout: Duration,
    /// After how long a silent connection is closed.
    pub idle_timeout: Duration,
    /// How long connections outlive their route.
    pub drain: Duration,
}

/// Answers for imported names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Time to live, whole seconds.
    pub ttl: Duration,
    /// Suffixes with a rule of their own.
    pub zones: Vec<ZoneConfig>,
}

/// One suffix of DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Names under it.
    pub suffix: NameSuffix,
    /// Whether nobody else answers for it.
    pub exclusive: bool,
}

/// Limits of the whole agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most peers.
    pub peers: usize,
    /// Most services of one peer, unless it has its own quota.
    pub services_per_peer: usize,
    /// Most bytes of one peer's offers, unless it has its own quota.
    pub bytes_per_peer: u64,
    /// Largest offer, in bytes.
    pub message_bytes: usize,
    /// Most connections of one peer to the agent's port.
    pub connections_per_peer: usize,
    /// Most streams that one connection may open in a minute.
    pub streams_per_minute: u32,
    /// How many HTTP/2 frames of a kind that carries nothing one connection may send at once.
    pub control_frames: u32,
    /// Most sockets of one /24 or /56 that have not sent a whole ClientHello.
    pub silent_per_prefix: usize,
    /// How long a stream to another Hamlet agent lives before it is renewed.
    pub stream_life: Duration,
}

impl From<&Limits> for ConnectionLimits {
    fn from(limits: &Limits) -> ConnectionLimits {
        let frames = FrameLimits { burst: limits.control_frames, ..FrameLimits::default() };
        ConnectionLimits {
            connections_per_peer: limits.connections_per_peer,
            streams_a_minute: limits.streams_per_minute,
            frames,
            silent_per_prefix: Some(limits.silent_per_prefix),
            stream_life: limits.stream_life,
        }
    }
}

/// Logging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// How much.
    pub level: LogLevel,
    /// In which form.
    pub format: LogFormat,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// All of them.
    pub const ALL: [LogLevel; 5] =
        [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

    /// As written, which is also what an `EnvFilter` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// In which form is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// An object a line.
    Json,
}

/// A file of revocation lists, and how they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is refused in doubt.
    pub policy: RevocationPolicy,
}

/// Another mesh's agent: a `Peer` document.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerConfig {
    /// Its name here.
    pub name: PeerName,
    /// Where its agent listens; `None`: we only accept.
    pub address: Option<PeerAddress>,
    /// Its trust domain; no other peer has the same, nor have we.
    pub trust_domain: TrustDomain,
    /// Its CA certificates, or the first ones if something is followed; without an endpoint it is there,
    /// unless `workload_api` is set.
    pub bundle: Option<PathBuf>,
    /// Whether our Workload API says what its CA certificates are; then there is one.
    pub workload_api: bool,
    /// Where its bundle is followed.
    pub endpoint: Option<FollowedEndpoint>,
    /// What else is followed; not with an endpoint, nor for a peer without ids.
    pub follow: Option<Follow>,
    /// Its agents' exact ids, in its trust domain; empty only if there is an identity.
    pub agent_ids: Vec<SpiffeId>,
    /// Its gateways' exact ids, in its trust domain; empty only if there is an identity.
    pub gateway_ids: Vec<SpiffeId>,
    /// What its agents prove instead of ids.
    pub identity: Option<ForeignIdentity>,
    /// What its CAs have revoked.
    pub crl: Option<CrlFile>,
    /// What an outdated list from our Workload API means.
    pub crl_stale: Lenience,
    /// Whether we publish to it.
    pub publish: bool,
    /// Whether we import from it.
    pub import: bool,
    /// The secret it asks for.
    pub context: Option<SecretFile>,
    /// How long its services outlive it.
    pub hold_time: HoldTime,
    /// How often it is asked for its whole state if it can't prove it.
    pub resync: Resync,
    /// The brake on mass withdrawals.
    pub guard: GuardSettings,
    /// Quotas and the refused hold; the mesh's limits where the peer has none of its own.
    pub limits: ImportLimits,
    /// How many unanswered changes it may have if it is no Hamlet agent.
    pub window: usize,
    /// Which version of the protocol is spoken with it.
    pub version: Version,
    /// Whether it must speak our extensions; not with [`Version::V1alpha1`], nor is there a context
    /// value then.
    pub extensions: Extensions,
    /// Keep it, but don't talk to it.
    pub paused: bool,
}

impl PeerConfig {
    /// Whether its bundle changes without a change of its files.
    pub fn follows(&self) -> bool {
        self.endpoint.is_some() || self.follow.is_some()
    }
}

/// What brings the bundles that follow the first one, if it is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// The peer's agent, on streams.
    Stream,
}

/// How a bundle endpoint proves itself (SPIFFE Federation, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// By the host name and a web authority.
    HttpsWeb,
    /// By a SPIFFE id.
    HttpsSpiffe,
}

impl Profile {
    /// As written.
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::HttpsWeb => "https_web",
            Profile::HttpsSpiffe => "https_spiffe",
        }
    }
}

/// How an endpoint that is followed has to prove itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointProof {
    /// The URL's host, by the authorities in this file or the system's.
    Web(Option<PathBuf>),
    /// Exactly this id, by the bundle of its trust domain.
    Spiffe(SpiffeId),
}

/// A peer's bundle endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FollowedEndpoint {
    /// Where it is.
    pub url: EndpointUrl,
    /// How it proves itself.
    pub proof: EndpointProof,
    /// How often it is asked, whatever the bundle says.
    pub refresh: Option<Duration>,
}

/// How long a lost peer's services stay in force (decision 14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldTime {
    /// This long, counted while we run and try; never zero.
    For(Duration),
    /// Until a person says otherwise.
    Forever,
}

/// How often an owner that can't prove what it offers is asked for its whole state again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resync {
    /// This often; at least the 5 minutes that have to lie between two states that are compared.
    Every(Duration),
    /// Not without a reason.
    Never,
}

/// Which version of the protocol is spoken with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that the peer knows.
    Auto,
    /// The first published one only.
    V1alpha1,
    /// The second published one only.
    V1alpha2,
}

/// Whether a peer must speak our extensions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extensions {
    /// Used if it has them.
    Auto,
    /// Refused without them.
    Required,
}

/// Where a peer's agent listens: a name or an IP, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    host: String,
    port: NonZeroU16,
}

impl PeerAddress {
    /// Reads `HOST:PORT`; an IPv6 address stands in brackets.
    pub fn parse(text: &str) -> Result<PeerAddress, String> {
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse::<NonZeroU16>().ok().filter(|_| digits);
        let port = port.ok_or("the port is not a number from 1 to 65535")?;
        let host = match host.strip_prefix('[').map(|h| h.strip_suffix(']')) {
            Some(Some(v6)) => match v6.parse::<IpAddr>() {
                Ok(IpAddr::V6(ip)) => ip.to_string(),
                _ => return Err("what stands in the brackets is not an IPv6 address".into()),
            },
            Some(None) => return Err("the closing bracket is missing".into()),
            None => match host.parse::<IpAddr>() {
                Ok(IpAddr::V4(ip)) => ip.to_string(),
                Ok(IpAddr::V6(_)) => return Err("an IPv6 address with a port stands in brackets".into()),
                // A host name may have one label; otherwise the rules of names are the same.
                Err(_) => NameSuffix::parse(host).map_err(|e| e.to_string())?.as_str().to_owned(),
            },
        };
        Ok(PeerAddress { host, port })
    }

    /// The name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.get()
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What we accept from one peer: an `Import` document.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportConfig {
    /// The document's name.
    pub name: String,
    /// The rules that core evaluates.
    pub rules: ImportRules,
}
