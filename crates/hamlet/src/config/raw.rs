//! The documents as written, read into types, each value with its place. What the walk has reported
//! is absent here; defaults come from the schema's table.
//!
//! Not here: anything that needs more than one value; that is [`super::check`].
//!
//! Invariant: reading reports nothing and never fails.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use hamlet_core::{
    AddressRange, CallerForm, DnsLabel, Fqdn, NameSuffix, PortRange, Protocol, ServiceName, SpiffeId,
    TrustDomain,
};
use hamlet_identity::Lenience;

use super::endpoint::EndpointUrl;
use super::model::{
    Extensions, Follow, HoldTime, LogFormat, LogLevel, PeerAddress, Profile, Resync, Version,
};
use super::problem::Mark;
use super::scalar::{
    Advertised, Backend, Bytes, CertFingerprint, Listen, MessageBytes, Pool, Positive, Scalar, Ttl,
    WorkloadSocket,
};
use super::schema::{METADATA, Need, Object, Shape};
use super::tree::{Node, Value};
use super::walk::Head;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) mark: Mark,
    /// `Kind/name spec.key`.
    pub(super) path: String,
}

/// Reads the keys of one mapping along the table.
struct Reader<'n> {
    object: &'static Object,
    node: Option<&'n Node>,
    mark: Mark,
    path: String,
}

impl<'n> Reader<'n> {
    fn at<T>(&self, value: T, mark: Mark, key: &str) -> At<T> {
        At { value, mark, path: format!("{}.{key}", self.path) }
    }

    fn default_text(&self, key: &str) -> Option<&'static str> {
        let field = self.object.field(key);
        debug_assert!(field.is_some(), "the table has no key {key}");
        match field?.need {
            Need::Default(text) => Some(text),
            _ => None,
        }
    }

    fn node(&self, key: &str) -> Option<&'n Node> {
        let node = &self.node?.get(key)?.node;
        (!matches!(node.value, Value::Null | Value::Refused)).then_some(node)
    }

    /// One value, or its default.
    fn get<T: Scalar>(&self, key: &str) -> Option<At<T>> {
        match self.node(key) {
            Some(node) => {
                let Value::Scalar { text, .. } = &node.value else { return None };
                Some(self.at(T::read(text).ok()?, node.mark, key))
            }
            None => Some(self.at(T::read(self.default_text(key)?).ok()?, self.mark, key)),
        }
    }

    fn value<T: Scalar>(&self, key: &str) -> Option<T> {
        self.get(key).map(|at| at.value)
    }

    /// Whether the key is written.
    fn written(&self, key: &str) -> Option<Mark> {
        self.node?.get(key).map(|e| e.mark)
    }

    fn inner(&self, key: &str) -> Reader<'n> {
        let object = match self.object.field(key).map(|f| &f.shape) {
            Some(Shape::Object(object)) => object,
            _ => {
                debug_assert!(false, "the table has no mapping {key}");
                self.object
            }
        };
        let mark = self.written(key).unwrap_or(self.mark);
        Reader { object, node: self.node(key), mark, path: format!("{}.{key}", self.path) }
    }

    fn items(&self, key: &str) -> &'n [Node] {
        match self.node(key).map(|n| &n.value) {
            Some(Value::List(items)) => items,
            _ => &[],
        }
    }

    /// A list of values; the default's words if it isn't written.
    fn list<T: Scalar>(&self, key: &str) -> Vec<At<T>> {
        if self.written(key).is_none() {
            let words = self.default_text(key).into_iter().flat_map(|text| text.split(' '));
            return words.filter_map(|w| T::read(w).ok()).map(|v| self.at(v, self.mark, key)).collect();
        }
        let read = |(i, node): (usize, &Node)| {
            let Value::Scalar { text, .. } = &node.value else { return None };
            Some(self.at(T::read(text).ok()?, node.mark, &format!("{key}[{i}]")))
        };
        self.items(key).iter().enumerate().filter_map(read).collect()
    }

    fn values<T: Scalar>(&self, key: &str) -> Vec<T> {
        self.list(key).into_iter().map(|at| at.value).collect()
    }

    fn map<T: Scalar>(&self, key: &str) -> Vec<(String, T)> {
        let Some(Value::Map(entries)) = self.node(key).map(|n| &n.value) else { return Vec::new() };
        let read = |text: &str| T::read(text).ok();
        let pairs = entries.iter().filter_map(|e| match &e.node.value {
            Value::Scalar { text, .. } => Some((e.key.clone(), read(text)?)),
            _ => None,
        });
        pairs.collect()
    }

    /// A list of mappings.
    fn inners(&self, key: &str) -> Vec<Reader<'n>> {
        let object = match self.object.field(key).map(|f| &f.shape) {
            Some(Shape::List { item: Shape::Object(object) | Shape::TextOr(_, object), .. }) => *object,
            _ => {
                debug_assert!(false, "the table has no list of mappings {key}");
                self.object
            }
        };
        let reader = |(i, node): (usize, &'n Node)| Reader {
            object,
            node: Some(node),
            mark: node.mark,
            path: format!("{}.{key}[{i}]", self.path),
        };
        self.items(key).iter().enumerate().map(reader).collect()
    }
}

/// One document.
#[derive(Debug)]
pub(super) enum Document {
    Mesh(Box<Mesh>),
    Peer(Box<Peer>),
    Publication(Box<Publication>),
    Import(Box<Import>),
    Service(Box<Service>),
}

/// What every document has.
#[derive(Debug)]
pub(super) struct Meta {
    /// `Kind/name`.
    pub(super) label: String,
    pub(super) kind: &'static str,
    pub(super) name: Option<At<String>>,
    /// Its first key.
    pub(super) mark: Mark,
    /// Its `spec`.
    pub(super) spec: Mark,
    pub(super) labels: Vec<(String, String)>,
}

impl Document {
    pub(super) fn meta(&self) -> &Meta {
        match self {
            Document::Mesh(d) => &d.meta,
            Document::Peer(d) => &d.meta,
            Document::Publication(d) => &d.meta,
            Document::Import(d) => &d.meta,
            Document::Service(d) => &d.meta,
        }
    }
}

/// Reads one document that the walk knows.
pub(super) fn read(head: Head, node: &Node) -> Document {
    let section = |object, key: &str| Reader {
        object,
        node: node.get(key).map(|e| &e.node),
        mark: node.get(key).map_or(head.mark, |e| e.mark),
        path: format!("{} {key}", head.label),
    };
    let metadata = section(&METADATA, "metadata");
    let spec = section(&head.kind.spec, "spec");
    let name =
        head.name.map(|(text, mark)| At { value: text, mark, path: format!("{} metadata.name", head.label) });
    let labels = metadata.map("labels");
    let meta =
        Meta { label: head.label, kind: head.kind.name, name, mark: head.mark, spec: spec.mark, labels };
    match head.kind.name {
        "Mesh" => Document::Mesh(Box::new(Mesh::read(meta, &spec))),
        "Peer" => Document::Peer(Box::new(Peer::read(meta, &spec))),
        "Publication" => Document::Publication(Box::new(Publication::read(meta, &spec))),
        "Import" => Document::Import(Box::new(Import::read(meta, &spec))),
        _ => Document::Service(Box::new(Service::read(meta, &spec))),
    }
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) cert: Option<At<PathBuf>>,
    pub(super) key: Option<At<PathBuf>>,
}

impl Pair {
    fn read(r: &Reader) -> Pair {
        Pair { cert: r.get("cert"), key: r.get("key") }
    }
}

/// `spec.identity`: files, or the built-in authority.
#[derive(Debug)]
pub(super) struct RawIdentity {
    pub(super) mark: Mark,
    /// `Kind/name spec.identity`.
    pub(super) path: String,
    pub(super) agent: Option<Pair>,
    pub(super) gateway: Option<Pair>,
    pub(super) ca: Option<Pair>,
    pub(super) bundle: Option<At<PathBuf>>,
    pub(super) authority: Option<RawAuthority>,
    pub(super) workload_api: Option<RawWorkloadApi>,
}

/// `identity.workloadApi`.
#[derive(Debug)]
pub(super) struct RawWorkloadApi {
    pub(super) mark: Mark,
    /// `Kind/name spec.identity.workloadApi`.
    pub(super) path: String,
    pub(super) socket: Option<At<WorkloadSocket>>,
    pub(super) agent: RawSvid,
    pub(super) gateway: RawSvid,
}

/// Which identity of a Workload API is meant.
#[derive(Debug)]
pub(super) struct RawSvid {
    /// Where it stands, if it does.
    pub(super) written: Option<Mark>,
    pub(super) id: Option<At<SpiffeId>>,
    pub(super) hint: Option<At<String>>,
    /// Whether one of the two is written, right or wrong.
    pub(super) says: bool,
}

impl RawWorkloadApi {
    fn read(mark: Mark, r: &Reader) -> RawWorkloadApi {
        let svid = |key: &str| {
            let svid = r.inner(key);
            let says = svid.written("spiffeId").or(svid.written("hint")).is_some();
            RawSvid { written: r.written(key), id: svid.get("spiffeId"), hint: svid.get("hint"), says }
        };
        let path = r.path.clone();
        RawWorkloadApi { mark, path, socket: r.get("socket"), agent: svid("agent"), gateway: svid("gateway") }
    }
}

#[derive(Debug)]
pub(super) struct RawAuthority {
    pub(super) mark: Mark,
    /// `Kind/name spec.identity.authority`.
    pub(super) path: String,
    pub(super) folder: Option<At<PathBuf>>,
    pub(super) hosts: Vec<At<Fqdn>>,
    pub(super) leaf_life: Option<Positive>,
    pub(super) issuing_life: Option<Positive>,
    pub(super) root_life: Option<Positive>,
    pub(super) overlap: Option<Duration>,
}

impl RawIdentity {
    fn read(r: &Reader) -> RawIdentity {
        let pair = |key| r.written(key).map(|_| Pair::read(&r.inner(key)));
        RawIdentity {
            mark: r.mark,
            path: r.path.clone(),
            agent: pair("agent"),
            gateway: pair("gateway"),
            ca: pair("ca"),
            bundle: r.get("bundle"),
            authority: r.written("authority").map(|mark| RawAuthority::read(mark, &r.inner("authority"))),
            workload_api: r
                .written("workloadApi")
                .map(|mark| RawWorkloadApi::read(mark, &r.inner("workloadApi"))),
        }
    }
}

impl RawAuthority {
    fn read(mark: Mark, r: &Reader) -> RawAuthority {
        RawAuthority {
            mark,
            path: r.path.clone(),
            folder: r.get("folder"),
            hosts: r.list("hosts"),
            leaf_life: r.value("leafLife"),
            issuing_life: r.value("issuingLife"),
            root_life: r.value("rootLife"),
            overlap: r.value("overlap"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) meta: Meta,
    pub(super) trust_domain: Option<At<TrustDomain>>,
    pub(super) identity: RawIdentity,
    pub(super) bundle_endpoint: Option<RawServed>,
    pub(super) bundle_wait: Option<Positive>,
    /// In the order agent, ingress, egressHttp, dns, admin.
    pub(super) listen: [Option<At<Listen>>; 5],
    pub(super) advertise: Vec<(At<Advertised>, Vec<String>)>,
    /// Whether `advertise.ingress` is written, right or wrong.
    pub(super) advertise_written: bool,
    pub(super) data: Option<At<PathBuf>>,
    pub(super) socket: Option<At<PathBuf>>,
    pub(super) pool: Option<Pool>,
    pub(super) listeners: Option<u64>,
    pub(super) connect_timeout: Option<Positive>,
    pub(super) idle_timeout: Option<Positive>,
    pub(super) drain: Option<Duration>,
    pub(super) ttl: Option<Ttl>,
    pub(super) zones: Vec<(Option<At<NameSuffix>>, Option<bool>)>,
    pub(super) brake_percent: Option<u64>,
    pub(super) brake_floor: Option<u64>,
    pub(super) brake_wait: Option<Duration>,
    pub(super) limits: RawLimits,
    pub(super) log_level: Option<LogLevel>,
    pub(super) log_format: Option<LogFormat>,
}

#[derive(Debug)]
pub(super) struct RawLimits {
    pub(super) peers: Option<u64>,
    pub(super) services_per_peer: Option<u64>,
    pub(super) bytes_per_peer: Option<Bytes>,
    pub(super) message_bytes: Option<MessageBytes>,
    pub(super) connections_per_peer: Option<u64>,
    pub(super) streams_per_minute: Option<u64>,
    pub(super) control_frames: Option<u64>,
    pub(super) silent_per_prefix: Option<u64>,
    pub(super) stream_life: Option<Positive>,
}

impl Mesh {
    fn read(meta: Meta, spec: &Reader) -> Mesh {
        let listen = spec.inner("listen");
        let egress = spec.inner("egress");
        let dns = spec.inner("dns");
        let brake = spec.inner("brake");
        let limits = spec.inner("limits");
        let log = spec.inner("log");
        let zone = |z: Reader| (z.get("suffix"), z.value("exclusive"));
        Mesh {
            meta,
            trust_domain: spec.get("trustDomain"),
            identity: RawIdentity::read(&spec.inner("identity")),
            bundle_endpoint: spec.written("bundleEndpoint").map(|mark| {
                let served = spec.inner("bundleEndpoint");
                RawServed {
                    listen: served.get("listen"),
                    profile: served.get("profile"),
                    pair: Pair::read(&served),
                    refresh_hint: served.get("refreshHint"),
                    mark,
                }
            }),
            bundle_wait: spec.value("bundleWait"),
            listen: ["agent", "ingress", "egressHttp", "dns", "admin"].map(|key| listen.get(key)),
            advertise: advertised(&spec.inner("advertise")),
            advertise_written: spec.inner("advertise").written("ingress").is_some(),
            data: spec.get("data"),
            socket: spec.get("socket"),
            pool: egress.value("pool"),
            listeners: egress.value("listeners"),
            connect_timeout: egress.value("connectTimeout"),
            idle_timeout: egress.value("idleTimeout"),
            drain: egress.value("drain"),
            ttl: dns.value("ttl"),
            zones: dns.inners("zones").into_iter().map(zone).collect(),
            brake_percent: brake.value("percent"),
            brake_floor: brake.value("floor"),
            brake_wait: brake.value("wait"),
            limits: RawLimits {
                peers: limits.value("peers"),
                services_per_peer: limits.value("servicesPerPeer"),
                bytes_per_peer: limits.value("bytesPerPeer"),
                message_bytes: limits.value("messageBytes"),
                connections_per_peer: limits.value("connectionsPerPeer"),
                streams_per_minute: limits.value("streamsPerMinute"),
                control_frames: limits.value("controlFrames"),
                silent_per_prefix: limits.value("silentPerPrefix"),
                stream_life: limits.value("streamLife"),
            },
            log_level: log.value("level"),
            log_format: log.value("format"),
        }
    }
}

/// Each ingress point in its short or long form.
fn advertised(advertise: &Reader) -> Vec<(At<Advertised>, Vec<String>)> {
    let mut out = Vec::new();
    for (i, item) in advertise.inners("ingress").into_iter().enumerate() {
        match item.node.map(|n| &n.value) {
            Some(Value::Scalar { text, .. }) => {
                if let Ok(value) = Advertised::read(text) {
                    out.push((advertise.at(value, item.mark, &format!("ingress[{i}]")), Vec::new()));
                }
            }
            _ => {
                if let Some(at) = item.get("address") {
                    out.push((at, item.values("labels")));
                }
            }
        }
    }
    out
}

/// `trust.endpoint` of a Peer.
#[derive(Debug)]
pub(super) struct RawEndpoint {
    pub(super) url: Option<At<EndpointUrl>>,
    pub(super) profile: Option<At<Profile>>,
    pub(super) id: Option<At<SpiffeId>>,
    pub(super) ca_file: Option<At<PathBuf>>,
    pub(super) refresh: Option<Positive>,
}

impl RawEndpoint {
    fn read(r: &Reader) -> RawEndpoint {
        RawEndpoint {
            url: r.get("url"),
            profile: r.get("profile"),
            id: r.get("endpointSpiffeId"),
            ca_file: r.get("caFile"),
            refresh: r.value("refresh"),
        }
    }
}

/// `bundleEndpoint` of the Mesh.
#[derive(Debug)]
pub(super) struct RawServed {
    pub(super) listen: Option<At<Listen>>,
    pub(super) profile: Option<At<Profile>>,
    pub(super) pair: Pair,
    pub(super) refresh_hint: Option<At<Positive>>,
    pub(super) mark: Mark,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) meta: Meta,
    pub(super) address: Option<PeerAddress>,
    pub(super) trust_domain: Option<At<TrustDomain>>,
    pub(super) bundle: Option<At<PathBuf>>,
    /// Whether the Workload API says it.
    pub(super) workload_api: Option<At<bool>>,
    /// Where `trust` stands, if it is a mapping that names neither a bundle nor an endpoint, nor the
    /// Workload API.
    pub(super) proves_nothing: Option<Mark>,
    pub(super) endpoint: Option<RawEndpoint>,
    pub(super) follow: Option<At<Follow>>,
    pub(super) agent_ids: Vec<At<SpiffeId>>,
    pub(super) gateway_ids: Vec<At<SpiffeId>>,
    /// Where `agentIds` and `gatewayIds` stand, if they do, right or wrong.
    pub(super) ids_written: [Option<Mark>; 2],
    /// Where `identity` stands, if it does.
    pub(super) identity: Option<Mark>,
    pub(super) dns: Vec<At<Fqdn>>,
    pub(super) fingerprints: Vec<At<CertFingerprint>>,
    /// Whether `dns` and `fingerprint` are written at all, right or wrong.
    pub(super) foreign_written: [bool; 2],
    /// Where `crl` stands without a `file`, if it does.
    pub(super) crl_fileless: Option<Mark>,
    pub(super) crl: Option<At<PathBuf>>,
    pub(super) crl_stale: Option<Lenience>,
    pub(super) crl_unlisted: Option<Lenience>,
    pub(super) publish: Option<bool>,
    pub(super) import: Option<bool>,
    pub(super) context: Option<At<PathBuf>>,
    pub(super) hold_time: Option<HoldTime>,
    pub(super) resync: Option<Resync>,
    pub(super) refused_hold: Option<Duration>,
    pub(super) guard_percent: Option<u64>,
    pub(super) guard_floor: Option<u64>,
    pub(super) guard_wait: Option<Duration>,
    pub(super) version: Option<Version>,
    pub(super) extensions: Option<At<Extensions>>,
    pub(super) window: Option<u64>,
    pub(super) paused: Option<bool>,
    pub(super) quota_services: Option<u64>,
    pub(super) quota_bytes: Option<Bytes>,
}

impl Peer {
    fn read(meta: Meta, spec: &Reader) -> Peer {
        let guard = spec.inner("guard");
        let trust = spec.inner("trust");
        let quotas = spec.inner("quotas");
        let identity = spec.inner("identity");
        let crl = spec.inner("crl");
        Peer {
            meta,
            address: spec.value("address"),
            trust_domain: spec.get("trustDomain"),
            bundle: trust.get("bundle"),
            workload_api: trust.get("workloadApi"),
            proves_nothing: spec
                .node("trust")
                .filter(|n| matches!(n.value, Value::Map(_)))
                .filter(|n| n.get("bundle").is_none() && n.get("endpoint").is_none())
                .filter(|_| trust.value("workloadApi") != Some(true))
                .and(spec.written("trust")),
            endpoint: trust.written("endpoint").map(|_| RawEndpoint::read(&trust.inner("endpoint"))),
            follow: trust.get("follow"),
            agent_ids: spec.list("agentIds"),
            gateway_ids: spec.list("gatewayIds"),
            ids_written: ["agentIds", "gatewayIds"].map(|key| spec.written(key)),
            identity: spec.written("identity"),
            dns: identity.list("dns"),
            fingerprints: identity.list("fingerprint"),
            foreign_written: ["dns", "fingerprint"].map(|key| identity.written(key).is_some()),
            crl_fileless: spec.written("crl").filter(|_| crl.written("file").is_none()),
            crl: crl.get("file"),
            crl_stale: crl.value("stale"),
            crl_unlisted: crl.value("unlisted"),
            publish: spec.value("publish"),
            import: spec.value("import"),
            context: spec.inner("context").get("file"),
            hold_time: spec.value("holdTime"),
            resync: spec.value("resync"),
            refused_hold: spec.value("refusedHold"),
            guard_percent: guard.value("percent"),
            guard_floor: guard.value("floor"),
            guard_wait: guard.value("wait"),
            version: spec.value("version"),
            extensions: spec.get("extensions"),
            window: spec.value("window"),
            paused: spec.value("paused"),
            quota_services: quotas.value("services"),
            quota_bytes: quotas.value("bytes"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Publication {
    pub(super) meta: Meta,
    /// Where `services` stands, if it does.
    pub(super) services: Option<Mark>,
    pub(super) names: Vec<At<ServiceName>>,
    pub(super) labels: Vec<(String, String)>,
    pub(super) labels_mark: Option<Mark>,
    /// Whether a selector is written at all, right or wrong.
    pub(super) selects: bool,
    pub(super) all: Option<bool>,
    pub(super) peers: Vec<At<DnsLabel>>,
}

impl Publication {
    fn read(meta: Meta, spec: &Reader) -> Publication {
        let services = spec.inner("services");
        let labels: Vec<(String, String)> = services.map("labels");
        let all = services.value("all");
        // A selector that is written but wrong has been reported; it isn't missing as well.
        let wrong_labels =
            services.node("labels").is_some_and(|n| !matches!(&n.value, Value::Map(e) if e.is_empty()));
        let selects = services.written("names").is_some() || wrong_labels || all != Some(false);
        Publication {
            meta,
            services: spec.node("services").and(spec.written("services")),
            names: services.list("names"),
            labels,
            labels_mark: services.written("labels"),
            selects,
            all,
            peers: spec.list("peers"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Import {
    pub(super) meta: Meta,
    pub(super) peer: Option<At<DnsLabel>>,
    pub(super) suffixes: Vec<At<NameSuffix>>,
    pub(super) allow_broad: Option<bool>,
    pub(super) sans: Vec<At<SpiffeId>>,
    pub(super) ranges: Vec<At<AddressRange>>,
    pub(super) endpoint_ports: Vec<PortRange>,
    pub(super) ports: Vec<(String, NonZeroU16)>,
}

impl Import {
    fn read(meta: Meta, spec: &Reader) -> Import {
        let names = spec.inner("names");
        let endpoints = spec.inner("endpoints");
        Import {
            meta,
            peer: spec.get("peer"),
            suffixes: names.list("suffixes"),
            allow_broad: names.value("allowBroad"),
            sans: spec.list("sans"),
            ranges: endpoints.list("ranges"),
            endpoint_ports: endpoints.values("ports"),
            ports: spec.map("ports"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Service {
    pub(super) meta: Meta,
    pub(super) fqdn: Option<At<Fqdn>>,
    pub(super) description: Option<String>,
    pub(super) tags: Vec<String>,
    /// Where `instances` stands, if it does.
    pub(super) instances_mark: Option<Mark>,
    pub(super) instances: Vec<ServiceInstance>,
    /// The short form, if any of its keys is written: its first key's name and place.
    pub(super) short: Option<(&'static str, Mark)>,
    pub(super) single: ServiceInstance,
}

#[derive(Debug)]
pub(super) struct ServiceInstance {
    /// `Service/x spec.instances[0]` or `Service/x spec`.
    pub(super) path: String,
    pub(super) mark: Mark,
    /// Whether `protocol` and `backends` are written, right or wrong.
    pub(super) has_protocol: bool,
    pub(super) has_backends: bool,
    /// Whether `id` is written, right or wrong.
    pub(super) has_id: bool,
    pub(super) has_port: bool,
    pub(super) id: Option<At<DnsLabel>>,
    pub(super) protocol: Option<At<Protocol>>,
    pub(super) port: Option<At<NonZeroU16>>,
    pub(super) backends: Vec<SocketAddr>,
    pub(super) caller: Option<At<CallerForm>>,
}

impl ServiceInstance {
    fn read(r: &Reader, short: bool) -> ServiceInstance {
        let backends: Vec<Backend> = r.values("backends");
        ServiceInstance {
            path: r.path.clone(),
            mark: r.mark,
            has_protocol: r.written("protocol").is_some(),
            has_backends: r.written("backends").is_some(),
            has_id: !short && r.written("id").is_some(),
            has_port: r.written("port").is_some(),
            id: if short { None } else { r.get("id") },
            protocol: r.get("protocol"),
            port: r.get("port"),
            backends: backends.into_iter().map(|b| b.0).collect(),
            caller: r.get("caller"),
        }
    }
}

impl Service {
    fn read(meta: Meta, spec: &Reader) -> Service {
        let written = |key: &'static str| spec.written(key).map(|mark| (key, mark));
        Service {
            meta,
            fqdn: spec.get("fqdn"),
            description: spec.value("description"),
            tags: spec.values("tags"),
            instances_mark: spec.written("instances"),
            instances: spec.inners("instances").iter().map(|r| ServiceInstance::read(r, false)).collect(),
            short: ["protocol", "port", "backends", "caller"].into_iter().find_map(written),
            single: ServiceInstance::read(spec, true),
        }
    }
}
