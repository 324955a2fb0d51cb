//! From local services and publications to views and ingress routes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::brake::SourceBrake;
use hamlet_core::offers::{IngressOffer, PublicationInputs};
use hamlet_core::publication::PublicationPolicy;
use hamlet_core::{Fqdn, LocalService, PeerName, ServiceName};
use hamlet_gateway::IngressTable;

use super::Agent;
use super::state::{FILE_SOURCE, LocalCatalogue};
use crate::config::Config;

impl Agent {
    /// Makes the local catalogue, the names it takes, every peer's view and the ingress routes
    /// what the configuration says, but for withdrawals that the brake holds back.
    pub(super) fn refresh_local(&self) {
        // One at a time, and each with the configuration as it is then: the last one is right.
        let mut brake = self.brake.lock();
        let config = &*self.config();
        self.source.replace(admitted(&mut brake, config, &self.local, self.clock.now()));
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

    /// Lets go what the brake has held back for long enough.
    pub(super) fn release_withdrawals(&self) {
        let now = self.clock.now();
        if self.brake.lock().due().is_some_and(|due| due <= now) {
            tracing::warn!(source = FILE_SOURCE, "withheld services are withdrawn now");
            self.refresh_local();
        }
    }

    /// Lets go everything that the brake holds back; returns how many services.
    pub(super) fn confirm_withdrawals(&self) -> usize {
        let services = self.brake.lock().confirm();
        if services > 0 {
            tracing::warn!(source = FILE_SOURCE, services, "withheld services are withdrawn, as confirmed");
            self.refresh_local();
        }
        services
    }
}

/// What the file source's slice is to hold.
fn admitted(
    brake: &mut SourceBrake<ServiceName>,
    config: &Config,
    local: &LocalCatalogue,
    now: Duration,
) -> BTreeMap<ServiceName, Arc<LocalService>> {
    let listed: BTreeMap<_, _> = config.services.iter().map(|s| (s.name.clone(), s.clone())).collect();
    let in_force = local.read(|slices| slices.get(FILE_SOURCE).cloned()).unwrap_or_default();
    // A renamed service is no withdrawal: its name in DNS belongs to another one now.
    let names = local_names(&config.services);
    let replaced = |s: &LocalService| names_of(s).any(|name| names.contains(name));
    let before = brake.withheld().len();
    brake.set(config.mesh.brake);
    let services = brake.admit(&in_force, listed, replaced, now);
    let withheld = brake.withheld().len();
    if withheld > before {
        let wait = config.mesh.brake.wait.as_secs();
        tracing::warn!(
            source = FILE_SOURCE,
            services = withheld,
            wait,
            "many services are gone from the files at once; they are served on for a while: put them back, or \
             let them go with `hamlet reload --confirm-withdrawals`"
        );
    }
    services
}

fn names_of(service: &LocalService) -> impl Iterator<Item = &Fqdn> {
    std::iter::once(&service.fqdn).chain(service.instances.iter().map(|i| &i.sni))
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
    services.iter().flat_map(|s| names_of(s)).cloned().collect()
}
