//! The simulated world: meshes with their services, disks, clocks and processes, and what is
//! between them. Only here and in the script is it known what is wrong at a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hamlet_core::lease::NameLeases;
use hamlet_core::offers::PublicationInputs;
use hamlet_core::publication::{PublicationPolicy, PublicationRule};
use hamlet_core::{LocalService, PeerName, ServiceName, SpiffeId};
use hamlet_identity::{ProvenPeer, Role};
use hamlet_protocol::bundles::BundleExchange;
use hamlet_protocol::dialect::Secret;
use hamlet_protocol::dialect::offered::Offered;
use hamlet_protocol::importer::{ImportSettings, ImportedCatalogue};
use hamlet_protocol::link::{Link, LinkConfig, LinkContext};
use hamlet_runtime::{Clock, Executor, Shutdown, Spawner, Supervisor};
use hamlet_store::{Store, StoreOptions};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::SimClock;
use crate::disk::SimDisk;
use crate::draw::Draw;
use crate::foreign::Foreign;
use crate::model::{Model, Policy, Shared, WayId};
use crate::services::{Service, agent_id, encoder, ingress, peer_name, revision_seen, rules};
use crate::store::{Below, Pace, Shelf, SpyStore};
use crate::truth::{Key, MeshId, set_mark};
use crate::wire::Conn;

/// The context value that all meshes share.
pub(crate) const CONTEXT: &str = "shared";

/// Handles to one world.
pub(crate) type Sim = Shared<World>;

/// What the owner's views were made from at one moment, to be told again to a replica.
#[derive(Clone)]
struct Told {
    services: Vec<Arc<LocalService>>,
    policy: PublicationPolicy,
    ready: bool,
    sets: Sets,
}

/// A mesh, whether a process of it runs or not.
pub(crate) struct Mesh {
    pub(crate) name: &'static str,
    pub(crate) id: SpiffeId,
    pub(crate) peers: Vec<MeshId>,
    pub(crate) dials: Vec<MeshId>,
    pub(crate) services: BTreeMap<Key, Service>,
    pub(crate) hidden: BTreeSet<(Key, MeshId)>,
    /// Peers to which nothing at all is published.
    pub(crate) shut: BTreeSet<MeshId>,
    /// Services that a source hasn't told yet.
    pub(crate) unread: Option<BTreeSet<Key>>,
    pub(crate) disk: SimDisk,
    shelf: Arc<Shelf>,
    /// Whether it has the real store.
    pub(crate) real: bool,
    pub(crate) pace: Arc<Pace>,
    pub(crate) jumps: Arc<AtomicI64>,
    pub(crate) process: Option<Process>,
    /// A peer that isn't a Hamlet agent.
    pub(crate) foreign: Option<Shared<Foreign>>,
    log: u8,
    told: Vec<Told>,
}

/// A running agent.
pub(crate) struct Process {
    pub(crate) number: u64,
    /// Taken when it stops.
    supervisor: Option<Supervisor>,
    shutdown: Shutdown,
    publications: Arc<Offered>,
    catalogue: ImportedCatalogue,
    seen: watch::Receiver<u64>,
    pub(crate) links: BTreeMap<MeshId, Arc<Link>>,
    pub(crate) spawner: Spawner,
    store: Option<Arc<Store>>,
    /// What it knows to offer to each peer.
    pub(crate) sets: Shared<Sets>,
    /// How much of what was told a replica has heard; `None` if all.
    pub(crate) lag: Option<usize>,
}

/// A number for the set that is known to be offered to each peer; `None` while it isn't known.
pub(crate) type Sets = BTreeMap<MeshId, Option<u128>>;

/// What is between two meshes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Net {
    pub(crate) up: bool,
    pub(crate) delay: Duration,
}

/// Everything.
pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) model: Shared<Model>,
    pub(crate) draw: Draw,
    pub(crate) meshes: Vec<Mesh>,
    pub(crate) nets: BTreeMap<(MeshId, MeshId), Net>,
    pub(crate) conns: Vec<Arc<Conn>>,
    /// The parent of what belongs to no mesh.
    pub(crate) spawner: Spawner,
    /// Polls every task of every process.
    executor: Arc<dyn Executor>,
    pub(crate) revision: u64,
    /// How many unanswered changes a foreign peer may have.
    pub(crate) foreign_window: usize,
    numbers: u64,
}

/// The two ends of a pair in order.
pub(crate) fn pair(a: MeshId, b: MeshId) -> (MeshId, MeshId) {
    (a.min(b), a.max(b))
}

impl World {
    pub(crate) fn new(
        model: Shared<Model>,
        draw: Draw,
        executor: Arc<dyn Executor>,
        spawner: Spawner,
        start: Instant,
    ) -> World {
        World {
            start,
            model,
            draw,
            meshes: vec![],
            nets: BTreeMap::new(),
            conns: vec![],
            spawner,
            executor,
            revision: 0,
            foreign_window: 1,
            numbers: 0,
        }
    }

    /// A number that nothing else has.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn add_mesh(&mut self, name: &'static str, real: bool) -> MeshId {
        self.meshes.push(Mesh {
            name,
            id: agent_id(name),
            peers: vec![],
            dials: vec![],
            services: BTreeMap::new(),
            hidden: BTreeSet::new(),
            shut: BTreeSet::new(),
            unread: None,
            disk: SimDisk::default(),
            shelf: Arc::default(),
            real,
            pace: Arc::default(),
            jumps: Arc::new(AtomicI64::new(0)),
            process: None,
            foreign: None,
            log: 0,
            told: vec![],
        });
        self.meshes.len() - 1
    }

    /// The live connections of a mesh, or between two.
    pub(crate) fn conns_of(&self, mesh: MeshId, other: Option<MeshId>) -> Vec<Arc<Conn>> {
        let of = |c: &&Arc<Conn>| c.joins(mesh) && other.is_none_or(|o| c.joins(o));
        self.conns.iter().filter(of).cloned().collect()
    }

    /// What a mesh means to offer to a peer.
    fn wanted(&self, owner: MeshId, consumer: MeshId) -> BTreeMap<Key, crate::truth::Meant> {
        let mesh = &self.meshes[owner];
        if mesh.shut.contains(&consumer) {
            return BTreeMap::new();
        }
        let shown = mesh.services.iter().filter(|(k, _)| !mesh.hidden.contains(&((*k).clone(), consumer)));
        shown.map(|(k, s)| (k.clone(), s.meant.clone())).collect()
    }

    /// Tells everybody what a mesh offers: first the model, then the mesh's process.
    pub(crate) fn tell(&mut self, owner: MeshId) {
        for consumer in self.meshes[owner].peers.clone() {
            let wanted = self.wanted(owner, consumer);
            let changed = self.model.lock().offer((owner, consumer), wanted);
            for conn in &self.conns {
                if conn.joins(owner) && conn.joins(consumer) {
                    conn.stream(owner).lock().note_dirty(&changed);
                }
            }
        }
        if let Some(foreign) = &self.meshes[owner].foreign {
            let all = self.meshes[owner].services.iter();
            foreign.lock().publish(all.map(|(k, s)| (k.clone(), s.meant.value.clone())).collect());
            return;
        }
        let told = self.told(owner);
        let names = self.meshes_names(owner);
        let mesh = &mut self.meshes[owner];
        mesh.told.push(told.clone());
        if let Some(process) = &mut mesh.process
            && process.lag.is_none()
        {
            process.refresh(mesh.name, &told, &names);
        }
    }

    fn meshes_names(&self, owner: MeshId) -> BTreeSet<PeerName> {
        self.meshes[owner].peers.iter().map(|p| peer_name(self.meshes[*p].name)).collect()
    }

    fn told(&self, owner: MeshId) -> Told {
        let mesh = &self.meshes[owner];
        let unread = |key: &Key| mesh.unread.as_ref().is_some_and(|u| u.contains(key));
        let read: BTreeMap<&Key, &Service> = mesh.services.iter().filter(|(k, _)| !unread(k)).collect();
        let ready = mesh.unread.is_none();
        let mut alike = BTreeSet::new();
        let mut rules = vec![];
        let mut sets = BTreeMap::new();
        for &peer in &mesh.peers {
            let name = peer_name(self.meshes[peer].name);
            let hides = mesh.hidden.iter().any(|(_, p)| *p == peer);
            if mesh.shut.contains(&peer) {
            } else if hides {
                let shown = read.keys().filter(|k| !mesh.hidden.contains(&((**k).clone(), peer)));
                let names: BTreeSet<ServiceName> = shown.filter_map(|k| ServiceName::parse(k).ok()).collect();
                rules.push(rule(format!("for-{name}"), names, false, [name].into()));
            } else {
                alike.insert(name);
            }
            let wanted = self.wanted(owner, peer);
            let set = set_mark(wanted.iter().map(|(k, m)| (k, &m.value)));
            sets.insert(peer, ready.then_some(set));
        }
        rules.push(rule("all".to_owned(), BTreeSet::new(), true, alike));
        let services = read.values().map(|s| s.local.clone()).collect();
        Told { services, policy: PublicationPolicy { rules }, ready, sets }
    }

    /// Looks at what the readers of a mesh see.
    pub(crate) fn observe(&mut self, consumer: MeshId) {
        let healthy: BTreeMap<MeshId, bool> =
            self.meshes[consumer].peers.iter().map(|p| (*p, self.is_healthy((*p, consumer)))).collect();
        let mesh = &mut self.meshes[consumer];
        let mut model = self.model.lock();
        if let Some(foreign) = &mesh.foreign {
            let foreign = foreign.lock();
            for &owner in &mesh.peers {
                let Some(way) = model.ways.get_mut(&(owner, consumer)) else { continue };
                way.set_health(healthy.get(&owner).copied().unwrap_or_default(), self.start.elapsed());
                let seen = way.revisions(foreign.imported());
                model.look((owner, consumer), Some(seen), false, foreign.is_connected());
            }
            return;
        }
        let Some(process) = &mut mesh.process else { return };
        let changed = process.seen.has_changed().unwrap_or(false);
        process.seen.mark_unchanged();
        for (&owner, link) in &process.links {
            let id = (owner, consumer);
            let up = link.active().is_some();
            if let Some(way) = model.ways.get_mut(&id) {
                way.set_health(healthy.get(&owner).copied().unwrap_or_default(), self.start.elapsed());
            }
            if !changed {
                let may_be = model.ways.get(&id).is_some_and(|w| w.may_be_expired());
                let expired = may_be && link.status().expired;
                model.look(id, None, expired, up);
                continue;
            }
            let peer = link.peer();
            let seen: BTreeMap<Key, u64> = process.catalogue.read(|slices| {
                let slice = slices.get(peer).into_iter().flatten();
                slice.map(|(k, s)| (k.clone(), revision_seen(&s.description))).collect()
            });
            let may_be = model.ways.get(&id).is_some_and(|w| w.may_be_expired());
            let expired = (seen.is_empty() || may_be) && link.status().expired;
            model.look(id, Some(seen), expired, up);
        }
    }

    /// Whether nothing at all is wrong between an owner and a consumer that could delay a change.
    fn is_healthy(&self, (owner, consumer): WayId) -> bool {
        let net = self.nets.get(&pair(owner, consumer));
        let calm = |m: MeshId| {
            let mesh = &self.meshes[m];
            let runs = mesh.process.as_ref().is_some_and(|p| p.lag.is_none() && p.is_up());
            let foreign = mesh.foreign.as_ref().is_some_and(|f| !f.lock().stalled);
            (runs && mesh.unread.is_none() || foreign) && mesh.is_disk_well()
        };
        let conn = self.conns.iter().rev().find(|c| c.joins(owner) && c.joins(consumer));
        net.is_some_and(|n| n.up && n.delay <= Duration::from_millis(30))
            && calm(owner)
            && calm(consumer)
            && conn.is_some_and(|c| c.is_well(self.start.elapsed()) && !c.stream(owner).lock().excused)
    }

    /// A mesh could not keep what it was told: a difference is no surprise on its present streams.
    pub(crate) fn excuse(&self, consumer: MeshId) {
        for conn in self.conns.iter().filter(|c| c.joins(consumer)) {
            conn.stream(conn.other(consumer)).lock().excuse();
        }
    }

    /// Takes a connection off the list.
    pub(crate) fn forget(&mut self, conn: &Arc<Conn>) {
        self.conns.retain(|c| !Arc::ptr_eq(c, conn));
    }

    /// Whom a peer's connection proves.
    pub(crate) fn proven(&self, peer: MeshId) -> ProvenPeer {
        let mesh = &self.meshes[peer];
        ProvenPeer {
            peer: peer_name(mesh.name),
            id: mesh.id.clone().into(),
            role: Role::Agent,
            fingerprint: [0; 32],
            not_after: Duration::MAX,
            chain: Arc::new([]),
        }
    }

    /// How a mesh is configured to meet a peer.
    pub(crate) fn link_config(&self, consumer: MeshId, owner: MeshId) -> LinkConfig {
        let name = self.meshes[owner].name;
        let model = self.model.lock();
        let import = model.ways.get(&(owner, consumer)).map(|way| settings(name, &way.policy));
        LinkConfig {
            address: self.meshes[consumer].dials.contains(&owner).then(|| format!("{name}.example:1")),
            version: None,
            context: Secret::new(CONTEXT),
            extensions_required: false,
            foreign_window: self.foreign_window,
            paused: false,
            import,
        }
    }
}

fn rule(name: String, names: BTreeSet<ServiceName>, all: bool, peers: BTreeSet<PeerName>) -> PublicationRule {
    PublicationRule { name, names, labels: BTreeMap::new(), all, peers }
}

fn settings(owner: &str, policy: &Policy) -> ImportSettings {
    ImportSettings {
        rules: policy.imports.then(|| rules(owner, policy.takes_aliens)),
        limits: policy.limits,
        guard: policy.guard,
        hold: policy.hold,
        resync: Some(Duration::from_secs(600)),
    }
}

impl Process {
    /// Whether it isn't about to end.
    pub(crate) fn is_up(&self) -> bool {
        self.supervisor.is_some()
    }
}

impl Mesh {
    /// Whether commits are quick and succeed.
    fn is_disk_well(&self) -> bool {
        self.disk.fault() == crate::disk::Fault::None
            && !self.pace.stalled.load(Ordering::Relaxed)
            && self.pace.slowest_ms.load(Ordering::Relaxed) <= 50
    }
}

impl Process {
    fn refresh(&mut self, name: &str, told: &Told, peers: &BTreeSet<PeerName>) {
        *self.sets.lock() = told.sets.clone();
        self.publications.refresh(PublicationInputs {
            services: &told.services,
            ingress: &ingress(name),
            policy: &told.policy,
            peers,
            ready: told.ready,
        });
    }
}

/// How a process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Birth {
    /// With a log of its own.
    New,
    /// As a replica that shares the log and has heard all but the last so many of its changes.
    Replica(usize),
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// It is told to stop, says goodbye and drains.
    Stop,
    /// It is killed; the page cache survives.
    Kill,
    /// The machine loses power: what was not synced is gone, and nobody is told.
    PowerCut,
}

/// Starts a mesh's agent.
pub(crate) async fn start(sim: &Sim, mesh: MeshId, birth: Birth) {
    let (context, configs, loaded, supervisor, store, number) = prepare(sim, mesh, birth);
    let shutdown = supervisor.spawner().shutdown();
    let mut links = BTreeMap::new();
    for (peer, config) in configs {
        let name = { peer_name(sim.lock().meshes[peer].name) };
        let peer_loaded = loaded.get(&name).cloned().unwrap_or_default();
        if let Ok(link) = Link::start(name, config, context.clone(), peer_loaded, shutdown.child()).await {
            links.insert(peer, link);
        }
    }
    let spawner = supervisor.spawner();
    let mut world = sim.lock();
    let process = Process {
        number,
        supervisor: Some(supervisor),
        shutdown,
        publications: context.publications.clone(),
        seen: context.catalogue.changed(),
        catalogue: context.catalogue.clone(),
        links,
        spawner: spawner.clone(),
        store,
        sets: Arc::default(),
        lag: None,
    };
    let names = world.meshes_names(mesh);
    let its = &mut world.meshes[mesh];
    its.process = Some(process);
    let dials = its.dials.clone();
    match birth {
        Birth::New => {
            its.told.clear();
            drop(names);
            world.tell(mesh);
        }
        Birth::Replica(behind) => {
            let upto = its.told.len().saturating_sub(behind).max(1);
            let told: Vec<Told> = its.told.iter().take(upto).cloned().collect();
            let lags = upto < its.told.len();
            if let Some(process) = &mut its.process {
                for told in &told {
                    process.refresh(its.name, told, &names);
                }
                process.lag = lags.then_some(upto);
            }
        }
    }
    if let Some(process) = &mut world.meshes[mesh].process {
        process.seen.mark_changed();
    }
    world.observe(mesh);
    drop(world);
    spawner.spawn("watch", watch_readers(sim.clone(), mesh, number));
    for peer in dials {
        spawner.spawn("dial", crate::wire::keep_dialling(sim.clone(), mesh, peer, number));
    }
}

type Prepared = (
    LinkContext,
    Vec<(MeshId, LinkConfig)>,
    BTreeMap<PeerName, hamlet_core::durable::LoadedPeer>,
    Supervisor,
    Option<Arc<Store>>,
    u64,
);

fn prepare(sim: &Sim, mesh: MeshId, birth: Birth) -> Prepared {
    let mut world = sim.lock();
    let number = world.number();
    let names: BTreeMap<PeerName, MeshId> =
        world.meshes[mesh].peers.iter().map(|p| (peer_name(world.meshes[*p].name), *p)).collect();
    let start = world.start;
    let draw = world.draw.fork();
    let (model, executor) = (world.model.clone(), world.executor.clone());
    let its = &mut world.meshes[mesh];
    its.disk.set_fault(crate::disk::Fault::None);
    its.pace.stalled.store(false, Ordering::Relaxed);
    if its.disk.lies() {
        // The process can't know that; what it reads has to be durable nevertheless.
        model.lock().tally.count("starts over dropped pages");
    }
    if birth == Birth::New {
        its.log = its.log.wrapping_add(1);
    }
    let (below, loaded, store) = if its.real {
        match Store::open_inline(Arc::new(its.disk.clone()), store_options()) {
            Ok(opened) => {
                if let Some(damage) = &opened.damage {
                    model
                        .lock()
                        .complain("I2", format!("mesh {mesh}: the store was found damaged: {damage:?}"));
                }
                (Below::Real(opened.store.clone()), opened.peers, Some(opened.store))
            }
            Err(error) => unreachable!("a sound disk: {error}"),
        }
    } else {
        let loaded = names.keys().map(|n| (n.clone(), its.shelf.load(n))).collect();
        (Below::Shelf(its.shelf.clone()), loaded, None)
    };
    for (name, peer) in &names {
        let records = loaded.get(name).map(|l| l.records.clone()).unwrap_or_default();
        model.lock().loaded((*peer, mesh), &records);
    }
    let supervisor = Supervisor::on(executor, Shutdown::new());
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(start, its.jumps.clone()));
    let context = LinkContext {
        our_id: {
            let id = its.id.clone();
            Arc::new(move || id.clone())
        },
        agent: "hamlet hardship".into(),
        instance: number,
        log_id: [its.log.wrapping_mul(16).wrapping_add(mesh as u8); 16],
        publications: Arc::new(Offered::encoded_by(encoder())),
        catalogue: ImportedCatalogue::new(),
        leases: NameLeases::new(),
        store: {
            let (disk, pace) = (its.disk.clone(), its.pace.clone());
            SpyStore::new(mesh, below, disk, pace, names, model, draw, Arc::downgrade(sim))
        },
        clock,
        spawner: supervisor.spawner(),
        bundles: BundleExchange::default(),
    };
    let configs = its.peers.clone();
    let configs = configs.into_iter().map(|p| (p, world.link_config(mesh, p))).collect();
    (context, configs, loaded, supervisor, store, number)
}

/// A journal so small that it is soon full, and checkpoints happen.
fn store_options() -> StoreOptions {
    StoreOptions { journal_segment_bytes: hamlet_store::SEGMENT_BYTES_MIN, ..StoreOptions::default() }
}

/// Tells the model what readers see, whenever it changes.
async fn watch_readers(sim: Sim, mesh: MeshId, number: u64) {
    let Some(mut seen) = sim.lock().meshes[mesh].process.as_ref().map(|p| p.catalogue.changed()) else {
        return;
    };
    loop {
        tokio::select! {
            biased;
            changed = seen.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let mut world = sim.lock();
        if world.meshes[mesh].process.as_ref().is_none_or(|p| p.number != number) {
            return;
        }
        world.observe(mesh);
    }
}

/// Ends a mesh's agent.
pub(crate) async fn stop(sim: &Sim, mesh: MeshId, death: Death) {
    let (supervisor, store) = {
        let mut world = sim.lock();
        world.observe(mesh);
        let Some(process) = &mut world.meshes[mesh].process else { return };
        let Some(supervisor) = process.supervisor.take() else { return };
        let (shutdown, store) = (process.shutdown.clone(), process.store.clone());
        if death != Death::Stop {
            world.meshes[mesh].process = None;
        }
        let conns = world.conns_of(mesh, None);
        if !world.meshes[mesh].is_disk_well() {
            world.model.lock().hold_unknown(mesh);
        }
        if death != Death::Stop {
            let mut draw = world.draw.fork();
            let its = &mut world.meshes[mesh];
            its.disk = its.disk.after(&mut draw, death == Death::Kill);
            shutdown.force();
        }
        match death {
            Death::Stop => conns.iter().for_each(|c| c.note_trouble(world.start.elapsed())),
            Death::Kill => conns.iter().for_each(|c| c.break_off()),
            Death::PowerCut => {
                for conn in conns {
                    conn.vanish(0);
                    let spawner = world.spawner.clone();
                    spawner.spawn("keepalive", async move {
                        tokio::time::sleep(Duration::from_secs(15)).await;
                        conn.break_off();
                    });
                }
            }
        }
        (supervisor, store)
    };
    let (drain, force) = match death {
        Death::Stop => (Duration::from_secs(2), Duration::from_secs(1)),
        _ => (Duration::ZERO, Duration::from_millis(1)),
    };
    supervisor.stop(drain, force).await;
    if death == Death::Stop {
        let mut world = sim.lock();
        // Until now readers could be looked at.
        world.meshes[mesh].process = None;
        // Whatever it had open is closed with the process.
        world.conns_of(mesh, None).iter().for_each(|c| c.break_off());
        drop(world);
        if let Some(store) = store {
            let _ = store.close();
        }
    }
}

/// A replica has caught up with its log.
pub(crate) fn catch_up(world: &mut World, mesh: MeshId) {
    let names = world.meshes_names(mesh);
    let its = &mut world.meshes[mesh];
    let Some(process) = &mut its.process else { return };
    let Some(upto) = process.lag.take() else { return };
    for told in its.told.iter().skip(upto) {
        process.refresh(its.name, told, &names);
    }
}

/// Wraps a world for all who share it.
pub(crate) fn share(world: World) -> Sim {
    Arc::new(Mutex::new(world))
}
