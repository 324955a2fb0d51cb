//! The agent as operators see it: read from the parts at the moment of asking, stored nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::{
    AgentStatus, ConfigStatus, Direction, Event, Flow, HelloStatus, IdentityStatus, ImportProgress,
    ImportStatus, InstanceStatus, ListenerStatus, Origin, PeerState, PeerStatus, Programming, Proof,
    PublicationStatus, PublishProgress, ReadyCheck, RefusedService, ReloadProblems, ReloadReport,
    ServiceStatus, Standing, StoreStatus, TaskFailure, TaskStatus, UnsaidService,
};
use hamlet_admin::metrics::Scrape;
use hamlet_admin::source::{BoxFuture, StateSource};
use hamlet_core::rejection::one_line;
use hamlet_core::{ImportedService, LocalService};
use hamlet_gateway::{EgressState, EgressStatus};
use hamlet_protocol::consumer::ProofVerdict;
use hamlet_protocol::link::{Connection, LinkStatus};
use hamlet_protocol::session::PeerClass;
use hamlet_runtime::{Shutdown, TaskState};
use tokio::sync::watch;

use super::Agent;
use super::policy::published;
use crate::cli::version::BUILD;
use crate::config::Config;

/// Work older than this in one direction is called stalled.
const STALLED: Duration = Duration::from_secs(30);
/// A batch at our own disk for longer than this is called stalled.
const STALLED_HERE: Duration = Duration::from_secs(10);
/// Most refusals shown of one peer.
const REFUSED_SHOWN: usize = 100;
/// How often the links are looked at for watchers.
const LOOK: Duration = Duration::from_millis(500);

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

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
                    let now = self.links().iter().map(|l| fingerprint(&l.status())).collect();
                    if now != last {
                        last = now;
                        self.bump();
                    }
                }
            }
        }
    }

    fn link_statuses(&self) -> Vec<LinkStatus> {
        self.links().iter().map(|l| l.status()).collect()
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

/// What of a link's state is news; ages are not.
fn fingerprint(l: &LinkStatus) -> String {
    let verdict = l.consumer.map(|c| std::mem::discriminant(&c.verdict));
    let stalled = l.oldest_unanswered.is_some_and(|age| age >= STALLED);
    format!(
        "{:?} {:?} {} {:?} {verdict:?} {:?} {} {} {} {} {stalled};",
        l.peer,
        l.version,
        l.unsaid.len(),
        std::mem::discriminant(&l.connection),
        l.counts,
        l.owner_proven,
        l.offered,
        l.behind == 0,
        l.refused.len()
    )
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

fn local_status(service: &LocalService, config: &Config) -> ServiceStatus {
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
        standing: Standing::Current,
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

fn age_of(at: Duration, now: Duration) -> u64 {
    ms(now.saturating_sub(at))
}

fn import_proof(l: &LinkStatus) -> Proof {
    if !l.imports {
        return Proof::None;
    }
    match l.consumer.map(|c| c.verdict) {
        Some(ProofVerdict::Equal(at)) => Proof::Equal { age_ms: age_of(at, l.now) },
        Some(ProofVerdict::Different(at)) => Proof::Different { age_ms: age_of(at, l.now) },
        Some(ProofVerdict::None) if matches!(l.class, PeerClass::Hello(_)) => Proof::Pending,
        _ => Proof::None,
    }
}

fn publish_proof(l: &LinkStatus) -> Proof {
    if !l.peer_imports {
        return Proof::None;
    }
    match l.owner.as_ref().and_then(|o| o.proof) {
        Some(p) if !p.equal => Proof::Different { age_ms: age_of(p.at, l.now) },
        Some(p) if l.owner_proven => Proof::Equal { age_ms: age_of(p.at, l.now) },
        _ if matches!(l.class, PeerClass::Hello(_)) => Proof::Pending,
        _ => Proof::None,
    }
}

/// The rule stands before the first colon of a refusal's text, the field before the second.
fn refusal(service: &str, text: &str, older: bool) -> RefusedService {
    let mut parts = text.splitn(3, ": ");
    let (rule, field, message) = (parts.next(), parts.next(), parts.next());
    let (rule, field, message) = match (rule, field, message) {
        (Some(r), Some(f), Some(m)) => (r, f, m),
        _ => ("", "", text),
    };
    RefusedService {
        service: one_line(service, 253),
        rule: rule.into(),
        field: field.into(),
        message: message.into(),
        older_in_force: older,
        age_ms: None,
    }
}

fn unsaid((service, reason): &(String, String)) -> UnsaidService {
    UnsaidService { service: one_line(service, 253), reason: one_line(reason, 512) }
}

/// How many of our services the peer refuses. On a new stream it repeats no answers, so then only
/// its proofs tell the number.
fn refused_by_peer(l: &LinkStatus) -> u64 {
    let told = |o: &hamlet_protocol::owner::OwnerStats| {
        (o.refused.len() as u64).max(o.proof.map_or(0, |proof| proof.refused))
    };
    l.owner.as_ref().map_or(0, told)
}

fn publish_progress(l: &LinkStatus) -> PublishProgress {
    let owner = l.owner.as_ref();
    let refused_total = refused_by_peer(l);
    let in_flight = l.in_flight;
    let refused = owner
        .map(|o| o.refused.iter().take(REFUSED_SHOWN).map(|(k, r)| refusal(k, &r.message, false)).collect());
    PublishProgress {
        offered: l.offered,
        acknowledged: owner.map_or(0, |_| l.offered.saturating_sub(l.behind).saturating_sub(refused_total)),
        refused_total,
        refused: refused.unwrap_or_default(),
        in_flight,
        oldest_unanswered_ms: l.oldest_unanswered.map(ms),
        proof: publish_proof(l),
        last_change_ms: None,
        unsaid_total: l.unsaid.len() as u64,
        unsaid: l.unsaid.iter().take(REFUSED_SHOWN).map(unsaid).collect(),
    }
}

fn import_progress(l: &LinkStatus) -> ImportProgress {
    let refused =
        l.refused.iter().take(REFUSED_SHOWN).map(|(k, text, older)| refusal(k, text, *older)).collect();
    ImportProgress {
        heard: l.counts.heard,
        in_force: if l.expired { 0 } else { l.counts.in_force },
        refused_total: l.counts.refused,
        refused,
        older_in_force: l.counts.older_in_force,
        withheld_total: l.counts.withheld,
        withheld: l.withheld.iter().take(REFUSED_SHOWN).map(|k| one_line(k, 253)).collect(),
        guard_left_ms: l.guard_left.map(ms),
        proof: import_proof(l),
        last_change_ms: l.consumer.and_then(|c| c.last_offer).map(|at| age_of(at, l.now)),
    }
}

fn peer_state(l: &LinkStatus) -> PeerState {
    let left = |at: &Option<Duration>| at.map(|at| ms(at.saturating_sub(l.now)));
    match &l.connection {
        Connection::Paused => PeerState::Paused,
        Connection::Waiting | Connection::Connecting => PeerState::Connecting,
        Connection::Down { next_attempt } => PeerState::Down {
            since_ms: ms(l.age),
            next_attempt_ms: left(next_attempt),
            hold_left_ms: l.hold_left.map(ms),
        },
        Connection::Refused { .. } => PeerState::Refused {
            reason: l.last_error.clone().unwrap_or_else(|| "no reason was given".into()),
        },
        Connection::Up => up_state(l),
    }
}

fn up_state(l: &LinkStatus) -> PeerState {
    if let Some(age) = l.oldest_unanswered.filter(|age| *age >= STALLED) {
        return PeerState::Stalled { flow: Flow::Publish, age_ms: ms(age) };
    }
    if let Some(age) = l.committing.filter(|age| *age >= STALLED_HERE) {
        return PeerState::Stalled { flow: Flow::Import, age_ms: ms(age) };
    }
    let import = import_proof(l);
    let publish = publish_proof(l);
    match l.class {
        PeerClass::Unknown => PeerState::Connecting,
        PeerClass::Foreign if l.behind > 0 || l.oldest_unanswered.is_some() => {
            PeerState::Syncing { received: l.offered.saturating_sub(l.behind), expected: Some(l.offered) }
        }
        PeerClass::Foreign => {
            let last = l.consumer.and_then(|c| c.last_offer).map(|at| age_of(at, l.now));
            PeerState::Quiet { since_ms: last.unwrap_or(ms(l.age)) }
        }
        PeerClass::Hello(_) => {
            let import_age = match import {
                Proof::Equal { age_ms } => Some(age_ms),
                _ if !l.imports => Some(0),
                _ => None,
            };
            let publish_age = match publish {
                Proof::Equal { age_ms } => Some(age_ms),
                _ if !l.peer_imports => Some(0),
                _ => None,
            };
            match (import_age, publish_age) {
                (Some(a), Some(b)) => PeerState::InSync {
                    proven_ms: a.max(b),
                    refused: l.counts.refused + refused_by_peer(l),
                    withheld: l.counts.withheld,
                    older_in_force: l.counts.older_in_force,
                },
                (None, _) => {
                    let consumer = l.consumer.as_ref();
                    PeerState::Syncing {
                        received: consumer.and_then(|c| c.round_seen).unwrap_or(l.counts.heard),
                        expected: consumer.and_then(|c| c.owner_count),
                    }
                }
                (_, None) => PeerState::Syncing {
                    received: l.offered.saturating_sub(l.behind),
                    expected: Some(l.offered),
                },
            }
        }
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
        let entries = self.links().iter().map(|l| l.status().counts.heard).sum();
        let listening = self.listening.lock().clone();
        let listeners =
            listening.into_iter().map(|(name, address)| ListenerStatus { name, address, error: None });
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
            listeners: listeners.collect(),
            identities: self.identities(),
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let config = self.config();
        let distrusted = self.distrusted.lock().clone();
        let failures = self.trust.failures().list();
        let wall = self.clock.wall();
        self.link_statuses()
            .iter()
            .map(|l| {
                let mut state = peer_state(l);
                if let Some(why) = distrusted.get(&l.peer) {
                    state = PeerState::Refused { reason: why.clone() };
                }
                let configured = config.peers.get(&l.peer);
                let domain = configured.map(|p| p.trust_domain.to_string()).unwrap_or_default();
                let named = failures.iter().rev().filter(|f| !domain.is_empty() && f.text.contains(&domain));
                PeerStatus {
                    name: l.peer.to_string(),
                    trust_domain: domain.clone(),
                    address: l.address.clone(),
                    direction: match (&l.connection, l.dialled) {
                        (Connection::Up, true) => Direction::Dialled,
                        (Connection::Up, false) => Direction::Accepted,
                        _ => Direction::None,
                    },
                    next_attempt_ms: match &l.connection {
                        Connection::Down { next_attempt } | Connection::Refused { next_attempt } => {
                            next_attempt.map(|at| ms(at.saturating_sub(l.now)))
                        }
                        _ => None,
                    },
                    state,
                    state_age_ms: ms(l.age),
                    version: l.version.map(|v| v.to_string()),
                    version_note: l.version_note.clone(),
                    hello: match &l.class {
                        PeerClass::Hello(h) => Some(HelloStatus {
                            agent: h.agent.clone(),
                            version: h.version.to_string(),
                            capabilities: vec![],
                        }),
                        _ => None,
                    },
                    publish: configured.filter(|p| p.publish).map(|_| publish_progress(l)),
                    import: configured.filter(|p| p.import).map(|_| import_progress(l)),
                    attempts: l.attempts,
                    floods: l.floods,
                    hold_left_ms: l.hold_left.map(ms),
                    last_error: l.last_error.clone().map(|message| Event { message, age_ms: ms(l.age) }),
                    auth_failures: named
                        .take(5)
                        .map(|f| Event {
                            message: one_line(&f.text, 512),
                            age_ms: ms(wall.saturating_sub(f.at)),
                        })
                        .collect(),
                }
            })
            .collect()
    }

    fn services(&self) -> Vec<ServiceStatus> {
        let config = self.config();
        let links: BTreeMap<_, _> = self.link_statuses().into_iter().map(|l| (l.peer.clone(), l)).collect();
        let mut by_service: BTreeMap<_, Vec<EgressStatus>> = BTreeMap::new();
        for egress in self.gateway.egress_status() {
            by_service.entry(egress.id.clone()).or_default().push(egress);
        }
        let local = self.local.snapshot();
        let imported = self.imported.snapshot();
        let imported = imported.iter().map(|s| {
            let egress = by_service.get(&s.id).map(Vec::as_slice).unwrap_or_default();
            self.imported_status(s, links.get(&s.id.owner), egress)
        });
        local.iter().map(|s| local_status(s, &config)).chain(imported).collect()
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
        let links: BTreeMap<_, _> = self.link_statuses().into_iter().map(|l| (l.peer.clone(), l)).collect();
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

    fn reload(&self) -> BoxFuture<'_, Result<ReloadReport, ReloadProblems>> {
        Box::pin(Agent::reload(self))
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

impl Agent {
    fn identities(&self) -> Vec<IdentityStatus> {
        let wall = self.clock.wall();
        let one = |(role, id): (&str, &Arc<hamlet_identity::LocalIdentity>)| {
            let not_after = id.not_after();
            let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
            IdentityStatus {
                role: role.to_owned(),
                id: id.spiffe_id().to_string(),
                not_after_s: not_after.as_secs(),
                expires_in_s: seconds(not_after) - seconds(wall),
                error: id.last_error(),
            }
        };
        [("agent", &self.agent_identity), ("gateway", &self.gateway_identity)].into_iter().map(one).collect()
    }
}
