//! From local services and publications to views and ingress routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hamlet_core::offers::{IngressOffer, PublicationInputs};
use hamlet_core::publication::PublicationPolicy;
use hamlet_core::{Fqdn, LocalService, PeerName};
use hamlet_gateway::IngressTable;

use super::Agent;
use crate::config::Config;

impl Agent {
    /// Makes the local catalogue, the names it takes, every peer's view and the ingress routes
    /// what the configuration says.
    pub(super) fn refresh_local(&self, config: &Config) {
        let services: BTreeMap<_, _> = config.services.iter().map(|s| (s.name.clone(), s.clone())).collect();
        self.source.replace(services);
        let services = self.local.snapshot();
        self.leases.set_local(local_names(&services));
        let policy = published(config);
        let peers: BTreeSet<PeerName> = config.peers.keys().cloned().collect();
        let ingress = IngressOffer {
            endpoints: config.mesh.advertise.clone(),
            sans: vec![self.gateway_identity.spiffe_id()],
        };
        // Routes first: a peer may call as soon as it hears of a service.
        let routed = services.iter().map(|s| (s.clone(), policy.peers_of(s)));
        self.gateway.set_ingress(IngressTable::build(routed));
        self.publications.refresh(PublicationInputs {
            services: &services,
            ingress: &ingress,
            policy: &policy,
            peers: &peers,
            ready: true,
        });
        self.bump();
    }
}

/// The publications, without the peers that we don't publish to.
pub(super) fn published(config: &Config) -> PublicationPolicy {
    let mut policy = config.publication_policy();
    let to = |peer: &PeerName| config.peers.get(peer).is_some_and(|p| p.publish);
    for rule in &mut policy.rules {
        rule.peers.retain(to);
    }
    policy
}

fn local_names(services: &[Arc<LocalService>]) -> BTreeSet<Fqdn> {
    services
        .iter()
        .flat_map(|s| std::iter::once(s.fqdn.clone()).chain(s.instances.iter().map(|i| i.sni.clone())))
        .collect()
}
