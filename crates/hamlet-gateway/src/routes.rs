//! Route tables: what ingress serves and where egress sends, as values. Pure; built whole from
//! the catalogues and swapped atomically.
//!
//! Invariant: a name has one route. Where two services claim one, the first given wins, the
//! other is in `conflicts`, and nothing is ever served for both.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use hamlet_core::{
    DnsLabel, Fqdn, ImportedInstance, ImportedService, LocalInstance, LocalService, PeerName, Protocol,
    ServiceId, ServiceName, SpiffeId,
};

use crate::headers::authority_name;
use crate::pool::{AddressName, AddressPool};

/// Where ingress forwards one SNI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRoute {
    /// The published service.
    pub service: ServiceName,
    /// Its name.
    pub fqdn: Fqdn,
    /// How to reach it here.
    pub instance: LocalInstance,
    /// The peers it is published to; never empty.
    pub allowed: BTreeSet<PeerName>,
    /// The authorities that HTTP requests may carry (decision 19).
    pub hosts: Vec<Fqdn>,
}

/// All SNIs that ingress serves.
#[derive(Debug, Clone, Default)]
pub struct IngressTable {
    by_sni: HashMap<Fqdn, Arc<IngressRoute>>,
    conflicts: Vec<Fqdn>,
}

impl IngressTable {
    /// Routes for `services`, each with the peers it is published to. A service published to
    /// nobody has no route: the ingress doesn't even show a certificate for it.
    pub fn build(services: impl Iterator<Item = (Arc<LocalService>, BTreeSet<PeerName>)>) -> IngressTable {
        let mut table = IngressTable::default();
        for (service, allowed) in services.filter(|(_, allowed)| !allowed.is_empty()) {
            for (index, instance) in service.instances.iter().enumerate() {
                let mut hosts = vec![service.fqdn.clone(), instance.sni.clone()];
                hosts.extend(service.fqdn.child(&instance.id));
                let mut snis = hosts[1..].to_vec();
                if index == 0 {
                    snis.push(service.fqdn.clone());
                }
                hosts.dedup();
                let route = Arc::new(IngressRoute {
                    service: service.name.clone(),
                    fqdn: service.fqdn.clone(),
                    instance: instance.clone(),
                    allowed: allowed.clone(),
                    hosts,
                });
                for sni in snis {
                    table.claim(sni, &route);
                }
            }
        }
        table
    }

    fn claim(&mut self, sni: Fqdn, route: &Arc<IngressRoute>) {
        match self.by_sni.get(&sni) {
            None => {
                self.by_sni.insert(sni, route.clone());
            }
            Some(first) if first.service == route.service && first.instance.id == route.instance.id => {}
            Some(_) => self.conflicts.push(sni),
        }
    }

    /// The route of `sni`.
    pub fn route(&self, sni: &Fqdn) -> Option<&Arc<IngressRoute>> {
        self.by_sni.get(sni)
    }

    /// Whether `service` is still served under `sni` to `peer`.
    pub(crate) fn stands(&self, sni: &Fqdn, service: &ServiceName, peer: &PeerName) -> bool {
        self.route(sni).is_some_and(|r| r.service == *service && r.allowed.contains(peer))
    }

    /// Names that a second service or instance claimed in vain.
    pub fn conflicts(&self) -> &[Fqdn] {
        &self.conflicts
    }

    /// How many SNIs are served.
    pub fn len(&self) -> usize {
        self.by_sni.len()
    }

    /// Whether nothing is served.
    pub fn is_empty(&self) -> bool {
        self.by_sni.is_empty()
    }
}

/// Where egress sends one name and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressRoute {
    /// The name that workloads use: the service's fqdn or `<instance>.<fqdn>`.
    pub name: Fqdn,
    /// Whose service.
    pub id: ServiceId,
    /// Which instance of it.
    pub instance: DnsLabel,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port that workloads use.
    pub port: NonZeroU16,
    /// Our own listener for it; `None` when the address pool is exhausted.
    pub listen: Option<SocketAddr>,
    /// What we send as SNI.
    pub sni: Fqdn,
    /// The exact identities we accept, in the owner's trust domain; never empty.
    pub sans: Vec<SpiffeId>,
    /// The owner's ingress points.
    pub endpoints: Vec<SocketAddr>,
    /// The authority of HTTP requests sent on: the owner's HOSTNAME if it gave a valid one, else
    /// the service's fqdn (decision 19).
    pub authority: String,
}

/// All routes of egress.
#[derive(Debug, Clone, Default)]
pub struct EgressTable {
    routes: Vec<Arc<EgressRoute>>,
    by_name: HashMap<Fqdn, Vec<Arc<EgressRoute>>>,
    by_listen: HashMap<SocketAddr, Arc<EgressRoute>>,
    conflicts: Vec<Fqdn>,
}

impl EgressTable {
    /// Routes for every programmable instance of `imports`: under `<id>.<fqdn>`, and under the
    /// fqdn for the first instance of each port. Addresses come from `pool`, which must have
    /// been told the names ([`AddressName::wanted`]).
    pub fn build(imports: &[Arc<ImportedService>], pool: &AddressPool) -> EgressTable {
        let mut table = EgressTable::default();
        for service in imports.iter().filter(|s| !s.sans.is_empty()) {
            let mut ports = BTreeSet::new();
            for instance in &service.instances {
                let Some(port) = programmable(instance) else { continue };
                if ports.insert(port) {
                    table.add(route(service, instance, None, pool));
                }
                table.add(route(service, instance, Some(instance.id.clone()), pool));
            }
        }
        table
    }

    fn add(&mut self, route: Option<EgressRoute>) {
        let Some(route) = route.map(Arc::new) else { return };
        let of_name = self.by_name.entry(route.name.clone()).or_default();
        if of_name.iter().any(|r| r.id != route.id || r.port == route.port) {
            self.conflicts.push(route.name.clone());
            return;
        }
        of_name.push(route.clone());
        if let Some(listen) = route.listen {
            self.by_listen.insert(listen, route.clone());
        }
        self.routes.push(route);
    }

    /// All routes, in the order of the imports.
    pub fn routes(&self) -> &[Arc<EgressRoute>] {
        &self.routes
    }

    /// The routes of one name, at most one a port, all of one service.
    pub fn named(&self, name: &Fqdn) -> &[Arc<EgressRoute>] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// The route of the listener at `listen`.
    pub fn at(&self, listen: SocketAddr) -> Option<&Arc<EgressRoute>> {
        self.by_listen.get(&listen)
    }

    /// The route that took over from `old`: same name and port, same service of the same owner.
    pub(crate) fn successor(&self, old: &EgressRoute) -> Option<&Arc<EgressRoute>> {
        self.named(&old.name).iter().find(|r| r.port == old.port && r.id == old.id)
    }

    /// Names that a second service claimed in vain.
    pub fn conflicts(&self) -> &[Fqdn] {
        &self.conflicts
    }
}

/// The port of an instance that a route is possible for.
pub(crate) fn programmable(instance: &ImportedInstance) -> Option<NonZeroU16> {
    if instance.not_programmed.is_some() || instance.sni.is_none() {
        return None;
    }
    instance.port
}

fn route(
    service: &ImportedService,
    instance: &ImportedInstance,
    own_name: Option<DnsLabel>,
    pool: &AddressPool,
) -> Option<EgressRoute> {
    let port = programmable(instance)?;
    let sni = instance.sni.clone()?;
    let name = if own_name.is_some() { &instance.fqdn } else { &service.fqdn };
    let address = pool.address(&AddressName { id: service.id.clone(), instance: own_name }).ok();
    // HOSTNAME is the owner's text: only a name that parses goes into a request.
    let hostname = instance.hostname.as_deref().filter(|h| authority_name(h).is_some());
    Some(EgressRoute {
        name: name.clone(),
        id: service.id.clone(),
        instance: instance.id.clone(),
        protocol: instance.protocol,
        port,
        listen: address.map(|ip| SocketAddr::new(ip, port.get())),
        sni,
        sans: service.sans.clone(),
        endpoints: instance.endpoints.clone(),
        authority: hostname.unwrap_or(service.fqdn.as_str()).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    use hamlet_core::{AddressRange, CallerForm, NotProgrammed};

    fn fqdn(text: &str) -> Fqdn {
        Fqdn::parse(text).unwrap()
    }

    fn label(text: &str) -> DnsLabel {
        DnsLabel::parse(text).unwrap()
    }

    fn local(name: &str, fqdn_text: &str, instances: &[&str]) -> Arc<LocalService> {
        let instance = |id: &&str| LocalInstance {
            id: label(id),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
            sni: fqdn(fqdn_text).child(&label(id)).unwrap(),
            backends: vec![],
            caller: CallerForm::None,
        };
        Arc::new(LocalService {
            name: ServiceName::parse(name).unwrap(),
            fqdn: fqdn(fqdn_text),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            instances: instances.iter().map(instance).collect(),
        })
    }

    fn to(peers: &[&str]) -> BTreeSet<PeerName> {
        peers.iter().map(|p| label(p)).collect()
    }

    #[test]
    fn the_fqdn_is_the_first_instance_and_each_instance_has_its_name() {
        let ledger = local("ledger", "ledger.acme.example", &["web", "raw"]);
        let table = IngressTable::build([(ledger, to(&["globex"]))].into_iter());
        let instance = |sni: &str| table.route(&fqdn(sni)).map(|r| r.instance.id.to_string());
        assert_eq!(instance("ledger.acme.example").as_deref(), Some("web"));
        assert_eq!(instance("web.ledger.acme.example").as_deref(), Some("web"));
        assert_eq!(instance("raw.ledger.acme.example").as_deref(), Some("raw"));
        assert_eq!((table.len(), table.conflicts().len()), (3, 0));
        let hosts = &table.route(&fqdn("raw.ledger.acme.example")).unwrap().hosts;
        assert!(!hosts.contains(&fqdn("web.ledger.acme.example")), "each route has hosts of its own");
    }

    #[test]
    fn what_is_published_to_nobody_has_no_route_and_a_name_has_one_service() {
        let services = [
            (local("hidden", "hidden.acme.example", &["main"]), to(&[])),
            (local("first", "ledger.acme.example", &["main"]), to(&["globex"])),
            (local("second", "ledger.acme.example", &["main"]), to(&["initech"])),
        ];
        let table = IngressTable::build(services.into_iter());
        assert!(table.route(&fqdn("hidden.acme.example")).is_none());
        assert_eq!(table.route(&fqdn("ledger.acme.example")).unwrap().service.as_str(), "first");
        assert!(table.conflicts().contains(&fqdn("ledger.acme.example")));
        let (sni, globex) = (fqdn("ledger.acme.example"), label("globex"));
        assert!(table.stands(&sni, &ServiceName::parse("first").unwrap(), &globex));
        assert!(!table.stands(&sni, &ServiceName::parse("first").unwrap(), &label("initech")));
        assert!(!table.stands(&sni, &ServiceName::parse("second").unwrap(), &globex));
    }

    fn imported(owner: &str, name: &str, instances: &[(&str, Option<u16>)]) -> ImportedService {
        let instance = |(id, port): &(&str, Option<u16>)| ImportedInstance {
            id: label(id),
            fqdn: fqdn(name).child(&label(id)).unwrap(),
            protocol: Protocol::Http,
            port: port.and_then(NonZeroU16::new),
            sni: Some(fqdn(name)),
            hostname: None,
            endpoints: vec![],
            not_programmed: port.is_none().then_some(NotProgrammed::PortUnknown),
        };
        ImportedService {
            id: ServiceId { owner: label(owner), name: ServiceName::parse(name).unwrap() },
            fqdn: fqdn(name),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
            instances: instances.iter().map(instance).collect(),
        }
    }

    fn build(services: &[ImportedService]) -> EgressTable {
        let mut pool = AddressPool::new(AddressRange::parse("127.64.0.0/16").unwrap());
        pool.assign(&AddressName::wanted(services), Duration::ZERO);
        EgressTable::build(&services.iter().cloned().map(Arc::new).collect::<Vec<_>>(), &pool)
    }

    #[test]
    fn the_fqdn_has_a_route_for_each_port_and_every_programmable_instance_its_own() {
        let instances = [("lost", None), ("a", Some(80)), ("b", Some(80)), ("c", Some(81))];
        let table = build(&[imported("acme", "web.acme.example", &instances)]);
        let of = |name: &str| -> Vec<(String, u16)> {
            table.named(&fqdn(name)).iter().map(|r| (r.instance.to_string(), r.port.get())).collect()
        };
        assert_eq!(of("web.acme.example"), [("a".into(), 80), ("c".into(), 81)]);
        assert_eq!(of("b.web.acme.example"), [("b".into(), 80)]);
        assert_eq!(of("lost.web.acme.example"), []);
        let listens: BTreeSet<_> = table.routes().iter().map(|r| r.listen.unwrap()).collect();
        assert_eq!(listens.len(), 5, "each name and port has a listener of its own");
        let named = table.named(&fqdn("web.acme.example"));
        assert_eq!(named[0].listen.unwrap().ip(), named[1].listen.unwrap().ip());
        for route in table.routes() {
            assert_eq!(table.at(route.listen.unwrap()), Some(route));
        }
    }

    #[test]
    fn a_name_belongs_to_one_owner_and_a_service_without_sans_to_none() {
        let first = imported("acme", "web.acme.example", &[("a", Some(80))]);
        let second = imported("evil", "web.acme.example", &[("a", Some(81))]);
        let anyone =
            ImportedService { sans: vec![], ..imported("acme", "any.acme.example", &[("a", Some(80))]) };
        let table = build(&[first.clone(), second.clone(), anyone]);
        assert!(table.routes().iter().all(|r| r.id == first.id));
        let old = &table.routes()[0];
        assert!(build(&[first]).successor(old).is_some());
        assert!(build(&[second]).successor(old).is_none(), "another owner takes nothing over");
        assert_eq!(table.conflicts().len(), 2);
    }

    #[test]
    fn a_hostname_of_the_owner_is_sent_on_only_if_it_is_a_name() {
        for (hostname, authority) in [
            (None, "web.acme.example"),
            (Some("shop.acme.example:8080"), "shop.acme.example:8080"),
            (Some("evil\r\nx-hamlet-caller: me"), "web.acme.example"),
            (Some("169.254.169.254"), "web.acme.example"),
            (Some(""), "web.acme.example"),
        ] {
            let mut service = imported("acme", "web.acme.example", &[("a", Some(80))]);
            service.instances[0].hostname = hostname.map(str::to_owned);
            assert_eq!(build(&[service]).routes()[0].authority, authority, "{hostname:?}");
        }
    }
}
