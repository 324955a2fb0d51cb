//! From local services to views: what is offered, to whom, encoded once.
//!
//! Recomputed from what *is*: the caller is woken by a change and hands in the whole truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::name::PeerName;
use crate::publication::{PublicationPolicy, ViewKey};
use crate::seeded::{SeededBug, is_on};
use crate::service::{Endpoint, FederatedService, Instance, LocalService, ServiceName};
use crate::spiffe::SpiffeId;
use crate::view::{Offer, VersionCounter, View};

/// Encodes a service as one dialect's `Any.value`, deterministically.
pub type Encoder = Arc<dyn Fn(&FederatedService) -> Bytes + Send + Sync>;

/// The same for a dialect that can't say everything and has keys of its own: key and value, or
/// why the service can't be said.
pub type LossyEncoder = Arc<dyn Fn(&FederatedService) -> Result<(String, Bytes), String> + Send + Sync>;

/// Where peers reach our services, and as whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngressOffer {
    /// Our ingress points as peers see them.
    pub endpoints: Vec<Endpoint>,
    /// The ids our ingress proves.
    pub sans: Vec<SpiffeId>,
}

/// What a local service looks like to a peer.
pub fn offer_of(local: &LocalService, ingress: &IngressOffer) -> FederatedService {
    let instance = |i: &crate::service::LocalInstance| Instance {
        id: i.id.clone(),
        protocol: i.protocol,
        sni: Some(i.sni.clone()),
        hostname: None,
        port: Some(i.port),
        metadata: BTreeMap::new(),
        endpoint_selector: vec![],
        description: String::new(),
    };
    FederatedService {
        name: local.name.clone(),
        fqdn: local.fqdn.clone(),
        description: local.description.clone(),
        tags: local.tags.clone(),
        labels: local.labels.clone(),
        endpoints: ingress.endpoints.clone(),
        sans: ingress.sans.clone(),
        instances: local.instances.iter().map(instance).collect(),
    }
}

struct Group {
    key: ViewKey,
    peers: BTreeSet<PeerName>,
    view: Arc<View>,
}

/// An encoded service, or why the dialect can't say it.
type Encoded = Result<Arc<Offer>, Arc<str>>;

struct Inner {
    groups: Vec<Group>,
    offers: BTreeMap<ServiceName, (Arc<LocalService>, Encoded)>,
    ingress: IngressOffer,
    views: BTreeMap<PeerName, watch::Sender<Arc<View>>>,
    demand: Option<Demand>,
}

/// Which peers asked for a view, and what it would be made of; only where views are made on demand.
#[derive(Default)]
struct Demand {
    peers: BTreeSet<PeerName>,
    last: Option<LastInputs>,
}

#[derive(Clone)]
struct LastInputs {
    services: Vec<Arc<LocalService>>,
    ingress: IngressOffer,
    policy: PublicationPolicy,
    peers: BTreeSet<PeerName>,
    ready: bool,
}

impl LastInputs {
    fn of(inputs: PublicationInputs<'_>) -> LastInputs {
        LastInputs {
            services: inputs.services.to_vec(),
            ingress: inputs.ingress.clone(),
            policy: inputs.policy.clone(),
            peers: inputs.peers.clone(),
            ready: inputs.ready,
        }
    }

    fn inputs<'a>(&'a self, peers: &'a BTreeSet<PeerName>) -> PublicationInputs<'a> {
        let LastInputs { services, ingress, policy, ready, .. } = self;
        PublicationInputs { services, ingress, policy, peers, ready: *ready }
    }
}

/// All views of one dialect: one for each distinct policy result.
pub struct Publications {
    type_url: String,
    encode: LossyEncoder,
    versions: VersionCounter,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Publications {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publications").field("type_url", &self.type_url).finish_non_exhaustive()
    }
}

/// Everything that decides what peers should have.
#[derive(Debug, Clone, Copy)]
pub struct PublicationInputs<'a> {
    /// All local services.
    pub services: &'a [Arc<LocalService>],
    /// How peers reach them.
    pub ingress: &'a IngressOffer,
    /// Who may see what.
    pub policy: &'a PublicationPolicy,
    /// All peers that we publish to.
    pub peers: &'a BTreeSet<PeerName>,
    /// Whether every source was read, so that absence means absence.
    pub ready: bool,
}

impl Publications {
    /// No views yet; every peer gets one. Keys are the services' names.
    pub fn new(type_url: &str, encode: Encoder, versions: VersionCounter) -> Publications {
        let encode: LossyEncoder = Arc::new(move |s| Ok((s.name.as_str().to_owned(), encode(s))));
        Publications::with(type_url, encode, versions, None)
    }

    /// For a dialect that few peers speak: only who [asks](Self::demand) gets a view, and nothing
    /// is encoded before somebody does.
    pub fn on_demand(type_url: &str, encode: LossyEncoder, versions: VersionCounter) -> Publications {
        Publications::with(type_url, encode, versions, Some(Demand::default()))
    }

    fn with(
        type_url: &str,
        encode: LossyEncoder,
        versions: VersionCounter,
        demand: Option<Demand>,
    ) -> Publications {
        let inner = Inner {
            groups: vec![],
            offers: BTreeMap::new(),
            ingress: IngressOffer::default(),
            views: BTreeMap::new(),
            demand,
        };
        Publications { type_url: type_url.to_owned(), encode, versions, inner: Mutex::new(inner) }
    }

    /// Makes a view for a peer from now on, out of what was handed in last; the same as
    /// [`view`](Self::view) where every peer has one. `None` before the first
    /// [`refresh`](Self::refresh), or if we don't publish to the peer.
    pub fn demand(&self, peer: &PeerName) -> Option<watch::Receiver<Arc<View>>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(demand) = &mut inner.demand
            && demand.peers.insert(peer.clone())
            && let Some(last) = demand.last.clone()
        {
            let peers = demand.peers.intersection(&last.peers).cloned().collect();
            self.make_true(&mut inner, last.inputs(&peers));
        }
        inner.views.get(peer).map(watch::Sender::subscribe)
    }

    /// The services that policy makes visible to a peer with a view but that the dialect can't
    /// say, with the reasons; in order of the names.
    pub fn unsaid(&self, peer: &PeerName) -> Vec<(ServiceName, Arc<str>)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(group) = inner.groups.iter().find(|g| g.peers.contains(peer)) else { return vec![] };
        let selected = inner.offers.iter().filter(|(_, (service, _))| group.key.selects(service));
        let unsaid = selected.filter_map(|(name, (_, encoded))| Some((name, encoded.as_ref().err()?)));
        unsaid.map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// The peer's view, and its successor when a policy change moves the peer to another one.
    pub fn view(&self, peer: &PeerName) -> Option<watch::Receiver<Arc<View>>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.views.get(peer).map(watch::Sender::subscribe)
    }

    /// Number of distinct views.
    pub fn view_count(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).groups.len()
    }

    /// Makes all views true.
    pub fn refresh(&self, inputs: PublicationInputs<'_>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(demand) = &mut inner.demand else { return self.make_true(&mut inner, inputs) };
        demand.last = Some(LastInputs::of(inputs));
        // A peer that is gone has to ask again when it returns.
        demand.peers.retain(|peer| inputs.peers.contains(peer));
        let peers = demand.peers.clone();
        self.make_true(&mut inner, PublicationInputs { peers: &peers, ..inputs });
    }

    fn make_true(&self, inner: &mut Inner, inputs: PublicationInputs<'_>) {
        inner.regroup(inputs.policy, inputs.peers, &self.type_url);
        if inner.demand.is_some() && inner.groups.is_empty() {
            inner.offers.clear();
        } else {
            self.encode_offers(inner, inputs);
        }
        // First who has which view, then what is in it: a stream that is woken by a change of a view
        // must know by then that the view is no longer its own, and can't read it if it doesn't.
        let Inner { groups, views, .. } = inner;
        for group in groups {
            group.view.admit_only(group.peers.iter().map(PeerName::as_str));
            for peer in &group.peers {
                let sender =
                    views.entry(peer.clone()).or_insert_with(|| watch::Sender::new(group.view.clone()));
                sender.send_if_modified(|view| {
                    let moved = !Arc::ptr_eq(view, &group.view);
                    *view = group.view.clone();
                    moved
                });
            }
        }
        views.retain(|peer, _| inputs.peers.contains(peer));
        for group in &inner.groups {
            let selected = inputs.services.iter().filter(|s| group.key.selects(s));
            let wanted: BTreeMap<Arc<str>, Arc<Offer>> = selected
                .filter_map(|s| inner.offers.get(&s.name)?.1.as_ref().ok())
                .map(|offer| (offer.key.clone(), offer.clone()))
                .collect();
            group.view.set(&wanted, inputs.ready, &self.versions);
        }
    }

    /// Encodes what is new or changed; the rest keeps its bytes.
    fn encode_offers(&self, inner: &mut Inner, inputs: PublicationInputs<'_>) {
        let mut old = std::mem::take(&mut inner.offers);
        if inner.ingress != *inputs.ingress {
            inner.ingress = inputs.ingress.clone();
            old.clear();
        }
        for service in inputs.services {
            let kept = old.remove(&service.name).filter(|(s, _)| Arc::ptr_eq(s, service) || s == service);
            let entry = kept.unwrap_or_else(|| {
                let encoded = (self.encode)(&offer_of(service, inputs.ingress));
                let offer = encoded.map(|(key, value)| Arc::new(Offer::new(&self.type_url, &key, value)));
                (service.clone(), offer.map_err(Arc::from))
            });
            inner.offers.insert(service.name.clone(), entry);
        }
    }
}

impl Inner {
    /// Keeps each group's view where its peers still agree, forks it where they part, and lets
    /// new peers join a group with the same result. Groups never merge: positions of
    /// subscriptions are only comparable within one history.
    fn regroup(&mut self, policy: &PublicationPolicy, peers: &BTreeSet<PeerName>, type_url: &str) {
        let mut next: Vec<Group> = vec![];
        for group in std::mem::take(&mut self.groups) {
            let mut parts: BTreeMap<ViewKey, BTreeSet<PeerName>> = BTreeMap::new();
            for peer in group.peers.intersection(peers) {
                parts.entry(policy.view_key(peer)).or_default().insert(peer.clone());
            }
            let mut parts: Vec<_> = parts.into_iter().collect();
            parts.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
            for (i, (key, members)) in parts.into_iter().enumerate() {
                let moving = members.iter().map(|p| Arc::from(p.as_str())).collect();
                let view = match i {
                    0 => group.view.clone(),
                    _ if is_on(SeededBug::ViewSwap) => View::new(type_url),
                    _ => group.view.fork(&moving),
                };
                next.push(Group { key, peers: members, view });
            }
        }
        let placed: BTreeSet<PeerName> = next.iter().flat_map(|g| g.peers.iter().cloned()).collect();
        for peer in peers.difference(&placed) {
            let key = policy.view_key(peer);
            match next.iter_mut().find(|g| g.key == key) {
                Some(group) => {
                    group.peers.insert(peer.clone());
                }
                None => {
                    let view = View::new(type_url);
                    next.push(Group { key, peers: [peer.clone()].into(), view });
                }
            }
        }
        self.groups = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Fqdn;
    use crate::publication::PublicationRule;
    use crate::view::Next;

    fn service(name: &str) -> Arc<LocalService> {
        Arc::new(LocalService {
            name: ServiceName::parse(name).unwrap(),
            fqdn: Fqdn::parse(&format!("{name}.acme.example")).unwrap(),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            instances: vec![],
        })
    }

    fn policy(rules: &[(&[&str], &[&str])]) -> PublicationPolicy {
        let rule = |(names, peers): &(&[&str], &[&str])| PublicationRule {
            name: "p".into(),
            names: names.iter().map(|n| ServiceName::parse(n).unwrap()).collect(),
            labels: BTreeMap::new(),
            all: false,
            peers: peers.iter().map(|p| PeerName::parse(p).unwrap()).collect(),
        };
        PublicationPolicy { rules: rules.iter().map(rule).collect() }
    }

    struct Mesh {
        publications: Publications,
        services: Vec<Arc<LocalService>>,
        peers: BTreeSet<PeerName>,
    }

    impl Mesh {
        fn new() -> Mesh {
            let encode: Encoder = Arc::new(|s| Bytes::copy_from_slice(s.fqdn.as_str().as_bytes()));
            Mesh {
                publications: Publications::new("t", encode, VersionCounter::default()),
                services: ["a", "b", "c"].map(service).into(),
                peers: ["x", "y"].map(|p| PeerName::parse(p).unwrap()).into(),
            }
        }
        fn set(&self, policy: &PublicationPolicy) {
            self.publications.refresh(PublicationInputs {
                services: &self.services,
                ingress: &IngressOffer::default(),
                policy,
                peers: &self.peers,
                ready: true,
            });
        }
        fn view(&self, peer: &str) -> Arc<View> {
            self.publications.view(&PeerName::parse(peer).unwrap()).unwrap().borrow().clone()
        }
        fn keys(&self, peer: &str) -> Vec<String> {
            self.view(peer).live().iter().map(|(_, o)| o.key.to_string()).collect()
        }
    }

    #[test]
    fn peers_with_the_same_result_share_a_view_and_see_only_what_is_published() {
        let mesh = Mesh::new();
        mesh.set(&policy(&[(&["a"], &["x", "y"])]));
        assert!(Arc::ptr_eq(&mesh.view("x"), &mesh.view("y")));
        assert_eq!(mesh.keys("x"), ["a"]);
    }

    #[test]
    fn a_policy_change_that_parts_two_peers_reaches_each_as_changes() {
        let mesh = Mesh::new();
        mesh.set(&policy(&[(&["a", "b"], &["x", "y"])]));
        let mut x = mesh.view("x").subscribe("x");
        let mut y = mesh.view("y").subscribe("y");
        while let Next::Change(_) = x.take_next() {}
        while let Next::Change(_) = y.take_next() {}
        mesh.set(&policy(&[(&["a"], &["x"]), (&["b", "c"], &["y"])]));
        x.move_to(&mesh.view("x"));
        y.move_to(&mesh.view("y"));
        let drain = |s: &mut crate::view::Subscription| {
            let mut out = vec![];
            while let Next::Change(c) = s.take_next() {
                out.push(format!("{}{}", if c.deleted { "-" } else { "+" }, c.offer.key));
            }
            out
        };
        assert_eq!(drain(&mut x), ["-b"]);
        assert_eq!(drain(&mut y), ["-a", "+c"]);
    }

    #[test]
    fn a_stream_that_has_not_moved_yet_reads_nothing_from_a_view_that_is_others_by_now() {
        let mesh = Mesh::new();
        mesh.set(&policy(&[(&["a", "b"], &["x", "y"])]));
        let shared = mesh.view("x");
        let (mut x, mut y) = (shared.subscribe("x"), shared.subscribe("y"));
        while let Next::Change(_) = x.take_next() {}
        while let Next::Change(_) = y.take_next() {}
        // One of the two keeps the view, the other has to move; which one is no promise.
        mesh.set(&policy(&[(&["a", "c"], &["x"]), (&["b"], &["y"])]));
        let x_stays = Arc::ptr_eq(&mesh.view("x"), &shared);
        let (staying, leaving, left) = if x_stays { (&mut x, &mut y, "y") } else { (&mut y, &mut x, "x") };
        assert!(!Arc::ptr_eq(&mesh.view("x"), &mesh.view("y")));
        assert!(matches!(staying.take_next(), Next::Change(_)));
        assert_eq!((leaving.take_next(), leaving.bookmark()), (Next::AtHead, None));
        // One that was made for the view it had, a moment too late.
        let mut late = shared.subscribe(left);
        let root = shared.summary().root;
        assert_eq!((late.take_next(), late.resume(&root)), (Next::AtHead, false));
        leaving.move_to(&mesh.view(left));
        assert!(matches!(leaving.take_next(), Next::Change(_)));
    }

    #[test]
    fn a_dialect_on_demand_encodes_nothing_before_somebody_asks_and_names_what_it_cannot_say() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let encoded = Arc::new(AtomicUsize::new(0));
        let counted = encoded.clone();
        let encode: LossyEncoder = Arc::new(move |s| {
            counted.fetch_add(1, Ordering::SeqCst);
            let key = format!("id-of-{}", s.name);
            if s.name.as_str() == "b" { Err("no way".into()) } else { Ok((key, Bytes::new())) }
        });
        let publications = Publications::on_demand("t", encode, VersionCounter::default());
        let mesh = Mesh { publications, ..Mesh::new() };
        let x = PeerName::parse("x").unwrap();
        assert!(mesh.publications.demand(&x).is_none(), "nothing was handed in yet");
        // Handed in without x, so x has to ask again when it is there.
        let mesh = Mesh { peers: ["y"].map(|p| PeerName::parse(p).unwrap()).into(), ..mesh };
        mesh.set(&policy(&[(&["a", "b"], &["x", "y"])]));
        let mesh = Mesh { peers: ["x", "y"].map(|p| PeerName::parse(p).unwrap()).into(), ..mesh };
        mesh.set(&policy(&[(&["a", "b"], &["x", "y"])]));
        assert_eq!((encoded.load(Ordering::SeqCst), mesh.publications.view_count()), (0, 0));
        assert!(mesh.publications.demand(&x).is_some());
        assert_eq!(mesh.keys("x"), ["id-of-a"]);
        let unsaid: Vec<_> =
            mesh.publications.unsaid(&x).iter().map(|(n, why)| format!("{n}: {why}")).collect();
        assert_eq!(unsaid, ["b: no way"]);
        mesh.set(&policy(&[(&["a", "c"], &["x", "y"])]));
        assert_eq!(mesh.keys("x"), ["id-of-a", "id-of-c"], "it follows what is handed in later");
        assert_eq!(mesh.publications.unsaid(&x), []);
        let y = PeerName::parse("y").unwrap();
        assert!(mesh.publications.view(&y).is_none(), "who doesn't ask has none");
    }

    #[test]
    fn an_unchanged_service_keeps_its_encoded_bytes() {
        let mesh = Mesh::new();
        mesh.set(&policy(&[(&["a"], &["x"])]));
        let before = mesh.view("x").live();
        mesh.set(&policy(&[(&["a", "b"], &["x"])]));
        assert!(Arc::ptr_eq(&before[0].1, &mesh.view("x").live()[0].1));
        assert_eq!(mesh.keys("x"), ["a", "b"]);
    }
}
