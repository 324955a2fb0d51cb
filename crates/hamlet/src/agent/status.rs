//! The agent as operators see it: read from the parts at the moment of asking, stored nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::Caller;
use hamlet_admin::api::{
    AgentStatus, ApiError, BundleSet, BundleSetError, ConfigStatus, CrlStatus, Event, ImportStatus,
    InstanceStatus, Origin, OwnBundle, PeerState, PeerStatus, PeeringAnswer, PeeringRequest, Programming,
    PublicationStatus, ReadyCheck, ReloadProblems, ReloadReport, ServiceStatus, SourceStatus, Standing,
    StoreStatus, TaskFailure, TaskStatus, TranscriptPage,
};
use hamlet_admin::metrics::Scrape;
use hamlet_admin::source::{BoxFuture, StateSource};
use hamlet_core::rejection::one_line;
use hamlet_core::{ImportedService, LocalService, PeerName};
use hamlet_gateway::{EgressState, EgressStatus};
use hamlet_identity::{Lenience, ListedCrl, PeerTrust};
use hamlet_protocol::link::{Connection, LinkStatus};
use hamlet_runtime::{Shutdown, TaskState};
use tokio::sync::watch;

use super::Agent;
use super::audit::operator;
use super::liveness::{age_of, fingerprint, import_progress, line, ms, peer_state, peer_status};
use super::policy::published;
use crate::audit::Action;
use crate::cli::version::BUILD;
use crate::config::Config;

/// Most names shown of what a source's brake holds back.
const WITHHELD_SHOWN: usize = 100;
/// Most refused handshakes shown of one peer.
const AUTH_FAILURES_SHOWN: usize = 5;
/// How often the links are looked at for watchers.
const LOOK: Duration = Duration::from_millis(500);

impl Agent {
    /// Wakes watchers when a link moved: sessions change without anybody being told.
    pub(super) async fn watch_status(self: Arc<Agent>, shutdown: Shutdown) {
        let mut last = String::new();
        let mut egress = self.gateway.egress_changed();
        'looking: loop {
            tokio::select! {
                () = shutdown.begun() => break 'looking,
                Ok(()) = egress.changed() => self.bump(),
                () = tokio::time::sleep(LOOK) => {
                    self.release_withdrawals();
                    let statuses = self.link_statuses();
                    // Seen in time, a state's age is right even if nobody asks.
                    for link in &statuses {
                        self.state_age(link, &peer_state(link));
                    }
                    let now = statuses.iter().map(fingerprint).collect();
                    if now != last {
                        last = now;
                        self.bump();
                    }
                }
            }
        }
    }

    /// How every link is doing now, in order of the peers' names.
    fn link_statuses(&self) -> Vec<LinkStatus> {
        self.links().iter().map(|l| l.status()).collect()
    }

    /// The same by name.
    fn links_by_peer(&self) -> BTreeMap<PeerName, LinkStatus> {
        self.link_statuses().into_iter().map(|l| (l.peer.clone(), l)).collect()
    }

    /// For how long a peer has been in that state. A link knows it of its connection; what is made of
    /// a live stream is remembered here.
    fn state_age(&self, link: &LinkStatus, state: &PeerState) -> u64 {
        if let PeerState::Stalled { age_ms, .. } = state {
            return *age_ms;
        }
        let mut standings = self.standings.lock();
        if link.connection != Connection::Up {
            standings.remove(&link.peer);
            return ms(link.age);
        }
        let word = state.word();
        let known = standings.entry(link.peer.clone()).or_insert((word, link.now));
        if known.0 != word {
            *known = (word, link.now);
        }
        age_of(known.1, link.now)
    }

    /// The file source, and what its brake holds back.
    pub(super) fn file_source(&self) -> SourceStatus {
        let now = self.clock.now();
        let brake = self.brake.lock();
        let withheld = brake.withheld();
        SourceStatus {
            name: super::state::FILE_SOURCE.to_owned(),
            services: self.source.len() as u64,
            withheld_total: withheld.len() as u64,
            withheld: withheld.keys().take(WITHHELD_SHOWN).map(ToString::to_string).collect(),
            wait_left_ms: brake.due().map(|due| ms(due.saturating_sub(now))),
        }
    }

    fn imported_status(
        &self,
        service: &ImportedService,
        link: Option<&LinkStatus>,
        egress: &[EgressStatus],
    ) -> ServiceStatus {
        let key = service.id.name.as_str();
        let standing = match link {
            Some(l) if l.withheld.iter().any(|k| k == key) => Standing::Withheld,
            Some(l) if l.refused.iter().any(|(k, _, older)| k == key && *older) => Standing::Older,
            Some(l) if l.connection != Connection::Up => Standing::Held,
            _ => Standing::Current,
        };
        let instances = service.instances.iter().map(|i| {
            let own = egress.iter().find(|e| e.name == i.fqdn && e.id == service.id);
            InstanceStatus {
                id: i.id.to_string(),
                fqdn: i.fqdn.to_string(),
                protocol: i.protocol.to_string(),
                port: i.port.map(Into::into),
                egress: own.and_then(|e| e.listen).map(|l| l.to_string()),
                backends: vec![],
                endpoints: i.endpoints.iter().map(ToString::to_string).collect(),
                programming: programming(i, own),
            }
        });
        let bare = egress.iter().filter(|e| e.name == service.fqdn && e.id == service.id);
        ServiceStatus {
            name: service.id.to_string(),
            fqdn: service.fqdn.to_string(),
            origin: Origin::Imported { peer: service.id.owner.to_string() },
            standing,
            description: one_line(&service.description, 512),
            tags: service.tags.iter().map(|t| one_line(t, 256)).collect(),
            labels: service.labels.iter().map(|(k, v)| (one_line(k, 64), one_line(v, 256))).collect(),
            egress: bare.filter_map(|e| e.listen).map(|at| at.to_string()).collect(),
            instances: instances.collect(),
            published_to: vec![],
            sans: service.sans.iter().map(ToString::to_string).collect(),
            conflicts: vec![],
        }
    }
}

fn programming(instance: &hamlet_core::ImportedInstance, own: Option<&EgressStatus>) -> Programming {
    if let Some(why) = &instance.not_programmed {
        let text = why.to_string();
        let (reason, remedy) = text.split_once(": ").unwrap_or((&text, "ask the owner"));
        return Programming::NotProgrammed { reason: reason.into(), remedy: remedy.into() };
    }
    match own.map(|e| &e.state) {
        Some(EgressState::Listening) => Programming::Programmed,
        Some(EgressState::SharedOnly { reason, remedy }) => {
            Programming::Shared { reason: reason.clone(), remedy: remedy.clone() }
        }
        Some(EgressState::NotListening { reason, remedy }) => {
            Programming::NotProgrammed { reason: reason.clone(), remedy: remedy.clone() }
        }
        Some(EgressState::Pending) | None => Programming::NotProgrammed {
            reason: "its listener is being set up".into(),
            remedy: "look again in a moment".into(),
        },
    }
}

fn local_status(service: &LocalService, config: &Config, withheld: bool) -> ServiceStatus {
    let instances = service.instances.iter().map(|i| InstanceStatus {
        id: i.id.to_string(),
        fqdn: i.sni.to_string(),
        protocol: i.protocol.to_string(),
        port: Some(i.port.get()),
        egress: None,
        backends: i.backends.iter().map(ToString::to_string).collect(),
        endpoints: config.mesh.advertise.iter().map(|e| e.socket_addr().to_string()).collect(),
        programming: Programming::Programmed,
    });
    ServiceStatus {
        name: service.name.to_string(),
        fqdn: service.fqdn.to_string(),
        origin: Origin::Local,
        standing: if withheld { Standing::Withheld } else { Standing::Current },
        description: service.description.clone(),
        tags: service.tags.clone(),
        labels: service.labels.clone(),
        egress: vec![],
        instances: instances.collect(),
        published_to: published(config).peers_of(service).iter().map(ToString::to_string).collect(),
        sans: vec![],
        conflicts: vec![],
    }
}

impl StateSource for Agent {
    fn agent(&self) -> AgentStatus {
        let config = self.config();
        let load = self.load.lock();
        let now = self.clock.now();
        let health = self.store.health();
        let tasks = self.spawner.tasks();
        let failed = tasks.iter().filter_map(|t| match &t.state {
            TaskState::Failed(error) => Some(TaskFailure { name: t.name.clone(), error: error.clone() }),
            TaskState::Running => None,
        });
        let failed: Vec<TaskFailure> = failed.collect();
        let message = health.error.as_ref().map(ToString::to_string).or_else(|| self.damage.clone());
        let entries = self.link_statuses().iter().map(|l| l.counts.heard).sum();
        AgentStatus {
            mesh: config.mesh.name.to_string(),
            trust_domain: config.mesh.trust_domain.to_string(),
            version: BUILD.version.to_owned(),
            pid: std::process::id(),
            uptime_ms: ms(now),
            config: ConfigStatus {
                path: self.path.display().to_string(),
                files: load.files as u64,
                loaded_ms: age_of(load.loaded_at, now),
                generation: load.generation,
                errors: load.errors.clone(),
                failed_ms: load.failed_at.map(|at| age_of(at, now)),
                warnings: load.warnings.clone(),
            },
            store: StoreStatus {
                path: config.mesh.data.display().to_string(),
                healthy: health.error.is_none(),
                message,
                entries,
                size_bytes: health.file_bytes,
            },
            tasks: TaskStatus { running: (tasks.len() - failed.len()) as u64, failed },
            listeners: self.listeners(),
            identities: self.identities(),
            authority: self.authority().map(|authority| self.with_missing(authority)),
            workload_api: self.workload_api(),
            ca_problem: self.ca_problem.clone(),
            sources: vec![self.file_source()],
            invitations_open: self.invitations_open(),
            audit: Some(self.audit.status()),
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let config = self.config();
        let distrusted = self.distrusted.lock().clone();
        let ledger = self.peering.ledger();
        let failures = self.trust.failures().list();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let links = self.link_statuses();
        let one = |l: &LinkStatus| {
            let configured = config.peers.get(&l.peer);
            let domain = configured.map(|p| p.trust_domain.to_string()).unwrap_or_default();
            let named = failures.iter().rev().filter(|f| !domain.is_empty() && f.text.contains(&domain));
            let mut peer =
                peer_status(l, configured.is_some_and(|p| p.publish), configured.is_some_and(|p| p.import));
            peer.state_age_ms = self.state_age(l, &peer.state);
            peer.document = ledger.peers.get(&l.peer).map(crate::config::made::document);
            if let Some(why) = distrusted.get(&l.peer) {
                peer.state = PeerState::Refused { reason: why.clone() };
            }
            let in_force = self.trust.peer(&l.peer).map(|t| t.bundle.clone());
            peer.bundle = configured
                .map(|p| self.bundles.status(p, ledger.peers.get(&l.peer), in_force.as_deref(), now, wall));
            if let Some(bundle) = &mut peer.bundle {
                bundle.ours = self.ours_at(&l.peer);
                bundle.changed = self.audit.roots_change(&l.peer);
            }
            peer.trust_domain.clone_from(&domain);
            peer.crl = self.trust.peer(&l.peer).and_then(|trust| crl_status(&trust, wall));
            peer.auth_failures = named
                .take(AUTH_FAILURES_SHOWN)
                .map(|f| Event { message: one_line(&f.text, 512), age_ms: ms(wall.saturating_sub(f.at)) })
                .collect();
            peer
        };
        links.iter().map(one).collect()
    }

    fn services(&self) -> Vec<ServiceStatus> {
        let config = self.config();
        let links = self.links_by_peer();
        let mut by_service: BTreeMap<_, Vec<EgressStatus>> = BTreeMap::new();
        for egress in self.gateway.egress_status() {
            by_service.entry(egress.id.clone()).or_default().push(egress);
        }
        let withheld: BTreeSet<_> = self.brake.lock().withheld().keys().cloned().collect();
        let local = self.local.snapshot();
        let imported = self.imported.snapshot();
        let imported = imported.iter().map(|s| {
            let egress = by_service.get(&s.id).map(Vec::as_slice).unwrap_or_default();
            self.imported_status(s, links.get(&s.id.owner), egress)
        });
        let local = local.iter().map(|s| local_status(s, &config, withheld.contains(&s.name)));
        local.chain(imported).collect()
    }

    fn publications(&self) -> Vec<PublicationStatus> {
        let config = self.config();
        let known: BTreeSet<_> = config.services.iter().map(|s| &s.name).collect();
        let one = |rule: &hamlet_core::publication::PublicationRule| PublicationStatus {
            name: rule.name.clone(),
            names: rule.names.iter().map(ToString::to_string).collect(),
            labels: rule.labels.clone(),
            peers: rule.peers.iter().map(ToString::to_string).collect(),
            services: config
                .services
                .iter()
                .filter(|s| rule.selects(s))
                .map(|s| s.name.to_string())
                .collect(),
            missing: rule.names.iter().filter(|n| !known.contains(n)).map(ToString::to_string).collect(),
        };
        config.publications.iter().map(one).collect()
    }

    fn imports(&self) -> Vec<ImportStatus> {
        let links = self.links_by_peer();
        let config = self.config();
        let one = |(peer, import): (&hamlet_core::PeerName, &crate::config::ImportConfig)| {
            let progress = links.get(peer).map(import_progress).unwrap_or_default();
            let rules = &import.rules;
            ImportStatus {
                name: import.name.clone(),
                peer: peer.to_string(),
                suffixes: rules.suffixes.iter().map(ToString::to_string).collect(),
                sans: rules.sans.iter().map(ToString::to_string).collect(),
                ranges: rules.ranges.iter().map(ToString::to_string).collect(),
                endpoint_ports: rules.endpoint_ports.iter().map(ToString::to_string).collect(),
                admitted: progress.in_force,
                refused_total: progress.refused_total,
                refused: progress.refused,
            }
        };
        config.imports.iter().map(one).collect()
    }

    fn own_bundle(&self) -> Result<OwnBundle, String> {
        let trust_domain = self.config().mesh.trust_domain.to_string();
        Ok(OwnBundle { trust_domain, jwks: self.own_jwks()? })
    }

    fn set_bundle(
        &self,
        caller: Caller,
        peer: &str,
        bytes: bytes::Bytes,
    ) -> BoxFuture<'_, Result<BundleSet, BundleSetError>> {
        let (peer, actor) = (peer.to_owned(), operator(caller));
        Box::pin(async move {
            let set = self.audit.asked_by(actor.clone(), self.override_bundle(&peer, &bytes)).await;
            self.audit.bundle_set(actor, &peer, &set);
            set
        })
    }

    fn readiness(&self) -> Vec<ReadyCheck> {
        let health = self.store.health();
        let store = match health.error {
            None => ReadyCheck::ok("store"),
            Some(error) => ReadyCheck::failed("store", error.to_string()),
        };
        let expired = self.identities().into_iter().find(|i| i.expires_in_s <= 0).and_then(|i| i.problem());
        let identity =
            expired.map_or_else(|| ReadyCheck::ok("identity"), |why| ReadyCheck::failed("identity", why));
        let running = if self.is_stopping() {
            ReadyCheck::failed("running", "the agent is stopping")
        } else {
            ReadyCheck::ok("running")
        };
        vec![ReadyCheck::ok("config"), store, identity, running]
    }

    fn reload(&self, caller: Caller) -> BoxFuture<'_, Result<ReloadReport, ReloadProblems>> {
        Box::pin(self.audit.asked_by(operator(caller), Agent::reload(self)))
    }

    fn confirm_withdrawals(&self, caller: Caller) -> u64 {
        let released = Agent::confirm_withdrawals(self) as u64;
        if released > 0 {
            let mut draft = self.audit.draft(operator(caller), Action::WithdrawalsConfirmed);
            draft.subject.count = Some(released);
            self.audit.record(draft);
        }
        released
    }

    fn transcript(&self, peer: &str, after: u64) -> Option<TranscriptPage> {
        let link = self.links().into_iter().find(|l| l.peer().as_str() == peer)?;
        let (entries, gone) = link.transcript(after);
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let entries = entries.into_iter().map(|e| line(e, now, wall)).collect();
        Some(TranscriptPage { peer: peer.to_owned(), gone, entries })
    }

    fn peering(
        &self,
        caller: Caller,
        request: PeeringRequest,
    ) -> BoxFuture<'_, Result<PeeringAnswer, ApiError>> {
        Box::pin(self.do_peering(caller, request))
    }

    fn metrics_text(&self) -> String {
        let (agent, peers, services) = (self.agent(), self.peers(), self.services());
        let readiness = self.readiness();
        self.metrics.render(Scrape {
            agent: &agent,
            peers: &peers,
            services: &services,
            readiness: &readiness,
        })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The lists of its file, and those that came with its bundle.
fn crl_status(trust: &PeerTrust, wall: Duration) -> Option<CrlStatus> {
    let file = trust.revoked.iter().flat_map(|lists| {
        let stale = lists.policy().stale;
        lists.listed().iter().map(move |list| (list, stale))
    });
    let given = trust.given_lists.iter().flat_map(|lists| {
        let stale = lists.stale();
        lists.listed().into_iter().map(move |list| (list, stale))
    });
    let all: Vec<(&ListedCrl, Lenience)> = file.chain(given).collect();
    let ends = all.iter().map(|(list, _)| list.next_update).min()?;
    let outdated = ends < wall;
    Some(CrlStatus {
        lists: all.len() as u64,
        revoked: all.iter().map(|(list, _)| list.revoked as u64).sum(),
        good_ms: (!outdated).then(|| ms(ends.saturating_sub(wall))),
        outdated_ms: outdated.then(|| ms(wall.saturating_sub(ends))),
        refuses: all.iter().any(|(list, stale)| list.next_update < wall && *stale == Lenience::Refuse),
    })
}
