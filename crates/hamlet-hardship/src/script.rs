//! What happens to the world: hardship chosen by the seed, then calm, then the question whether
//! everything is as it should be.

mod plays;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;

use crate::draw::Draw;
use crate::model::Policy;
use crate::outage::{disk_trouble, heal_disk, leave_unread, process_trouble, read_all};
use crate::services::{Shape, service};
use crate::truth::{Key, MeshId};
use crate::wire::connect_again;
use crate::world::{Birth, Death, Net, Sim, World, catch_up, pair, start, stop};

/// Longest calm until everything must be as it should be.
const CALM: Duration = Duration::from_secs(1_200);

/// What a seed is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Play {
    /// Any hardship.
    Any,
    /// One consumer stands still, and the other must not notice.
    Neighbours,
    /// Rounds on live streams, over slow links, while services are hidden and shown again.
    Rounds,
    /// An owner that can't read because its own disk takes nothing.
    Paused,
}

/// The stage that a seed sets.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    steps: u64,
    services: u64,
    consumers: usize,
    foreign: bool,
    both_publish: bool,
    both_dial: bool,
    real: bool,
    fat: usize,
    hostile: bool,
    /// What happens instead of any hardship.
    play: Play,
    /// The quota is soon reached.
    small: bool,
    policy: Policy,
}

fn stage(draw: &mut Draw) -> Stage {
    let hostile = draw.chance(2);
    let play = match draw.below(100) {
        _ if hostile => Play::Any,
        0..3 => Play::Neighbours,
        3..9 => Play::Rounds,
        9..12 => Play::Paused,
        _ => Play::Any,
    };
    let neighbours = play == Play::Neighbours;
    let fat = if play == Play::Paused || play == Play::Any && draw.chance(12) { 58_000 } else { 0 };
    let services = match draw.below(10) {
        _ if hostile => 0,
        0 => 0,
        _ if play == Play::Paused => 40,
        1 => 30,
        _ => draw.between(3, 14),
    };
    let small = !hostile && play == Play::Any && fat == 0 && draw.chance(25);
    let limits = ImportLimits {
        services: if small { draw.between(3, 10) as usize } else { 20_000 },
        bytes: if small { draw.between(1_500, 4_000) } else { 64 << 20 },
        refused_hold: Duration::from_secs(draw.between(20, 120)),
        ..ImportLimits::default()
    };
    let guard = GuardSettings {
        percent: *draw.pick(&[30, 50, 20, 100]).unwrap_or(&30),
        floor: draw.between(1, 4) as usize,
        wait: Duration::from_secs(draw.between(20, 90)),
    };
    let hold = draw.chance(60).then(|| Duration::from_secs(draw.between(20, 90)));
    let policy = Policy { imports: true, takes_aliens: false, limits, guard, hold };
    Stage {
        steps: draw.between(8, 40),
        services,
        consumers: if hostile { 1 } else { draw.between(1, 2) as usize },
        foreign: neighbours || play == Play::Any && !hostile && draw.chance(40),
        both_publish: play == Play::Paused || draw.chance(40),
        both_dial: draw.chance(25),
        real: draw.chance(10),
        fat,
        hostile,
        play,
        small,
        policy,
    }
}

const NAMES: [&str; 3] = ["bank", "shop", "cafe"];
const FOREIGN: &str = "gopher";

/// Sets the stage and starts everybody.
async fn set_up(sim: &Sim, stage: &Stage) {
    {
        let mut world = sim.lock();
        for name in NAMES.iter().take(1 + stage.consumers) {
            let mesh = world.add_mesh(name, stage.real);
            let slowest = world.draw.between(0, 10);
            world.meshes[mesh].pace.slowest_ms.store(slowest, Ordering::Relaxed);
        }
        if stage.foreign {
            world.foreign_window = *world.draw.pick(&[1, 1, 5, 50]).unwrap_or(&1);
            let mesh = world.add_mesh(FOREIGN, false);
            world.meshes[mesh].foreign = Some(Arc::default());
        }
        let all = world.meshes.len();
        for other in 1..all {
            join(&mut world, stage, other);
        }
        for owner in 0..all {
            let publishes = owner == 0 || stage.both_publish || world.meshes[owner].foreign.is_some();
            let many = if publishes { world.draw.below(stage.services + 1) } else { 0 };
            for _ in 0..many {
                create(&mut world, stage, owner);
            }
        }
        for owner in 0..all {
            world.tell(owner);
        }
    }
    let all = sim.lock().meshes.len();
    for mesh in 0..all {
        if sim.lock().meshes[mesh].foreign.is_none() {
            start(sim, mesh, Birth::New).await;
        }
    }
}

/// Makes two meshes know each other.
fn join(world: &mut World, stage: &Stage, other: MeshId) {
    let foreign = world.meshes[other].foreign.is_some();
    world.meshes[0].peers.push(other);
    world.meshes[other].peers.push(0);
    let first_dials = foreign || world.draw.chance(50);
    if first_dials || stage.both_dial {
        world.meshes[0].dials.push(other);
    }
    if !foreign && (!first_dials || stage.both_dial) {
        world.meshes[other].dials.push(0);
    }
    let delay = Duration::from_millis(*world.draw.pick(&[0, 1, 5, 20]).unwrap_or(&1));
    world.nets.insert(pair(0, other), Net { up: true, delay });
    let simple = Policy {
        imports: true,
        takes_aliens: true,
        limits: ImportLimits::default(),
        guard: GuardSettings { percent: 100, ..GuardSettings::default() },
        hold: None,
    };
    let mut model = world.model.lock();
    model.add_way((0, other), if foreign { simple } else { stage.policy.clone() }, false, foreign);
    model.add_way((other, 0), stage.policy.clone(), foreign, false);
}

fn create(world: &mut World, stage: &Stage, owner: MeshId) {
    let taken = &world.meshes[owner].services;
    let free = (0..60).map(|n| Key::from(format!("s{n:02}"))).find(|k| !taken.contains_key(k));
    let Some(key) = free else { return };
    let fat = if stage.fat > 0 && world.draw.chance(70) { stage.fat } else { 0 };
    let shape = Shape { alien: world.draw.chance(10), fat, ..Shape::default() };
    change(world, owner, &key, shape);
}

/// Gives a service a new revision in this shape.
pub(crate) fn change(world: &mut World, owner: MeshId, key: &Key, shape: Shape) {
    world.revision += 1;
    let shape = Shape { revision: world.revision, ..shape };
    let made = service(world.meshes[owner].name, key, shape);
    world.meshes[owner].services.insert(key.clone(), made);
}

pub(crate) fn any_service(world: &mut World, owner: MeshId) -> Option<(Key, Shape)> {
    let World { draw, meshes, .. } = world;
    let keys: Vec<&Key> = meshes[owner].services.keys().collect();
    let key = (*draw.pick(&keys)?).clone();
    let shape = meshes[owner].services[&key].shape;
    Some((key, shape))
}

/// Something changes at an owner.
fn change_something(world: &mut World, stage: &Stage, owner: MeshId) {
    let kind = world.draw.below(100);
    match kind {
        _ if stage.small && kind < 25 => grow(world, owner),
        0..35 => {
            if let Some((key, shape)) = any_service(world, owner) {
                change(world, owner, &key, shape);
            }
        }
        35..55 => create(world, stage, owner),
        55..70 => {
            if let Some((key, _)) = any_service(world, owner) {
                world.meshes[owner].services.remove(&key);
            }
        }
        70..78 => {
            if let Some((key, shape)) = any_service(world, owner) {
                // It goes, comes back, and goes again, or not.
                world.meshes[owner].services.remove(&key);
                world.tell(owner);
                if world.draw.chance(80) {
                    change(world, owner, &key, shape);
                }
            }
        }
        78..86 => {
            if let Some((key, shape)) = any_service(world, owner) {
                change(world, owner, &key, Shape { alien: !shape.alien, ..shape });
            }
        }
        86..93 => grow(world, owner),
        _ => {
            if let Some((key, shape)) = any_service(world, owner) {
                // The bytes change, what readers see doesn't.
                world.revision += 1;
                let shape = Shape { raw: world.revision, ..shape };
                let made = service(world.meshes[owner].name, &key, shape);
                world.meshes[owner].services.insert(key, made);
            }
        }
    }
    world.tell(owner);
}

/// A service becomes larger.
fn grow(world: &mut World, owner: MeshId) {
    if let Some((key, shape)) = any_service(world, owner) {
        let more = world.draw.between(100, 1_500) as usize;
        let fat = (shape.fat + more).min(60_000);
        change(world, owner, &key, Shape { fat, ..shape });
    }
}

/// A mesh that publishes.
fn an_owner(world: &mut World, stage: &Stage) -> MeshId {
    let all = world.meshes.len() as u64;
    if world.draw.chance(65) {
        return 0;
    }
    let other = world.draw.below(all) as usize;
    let publishes = stage.both_publish || world.meshes[other].foreign.is_some();
    if publishes { other } else { 0 }
}

pub(crate) fn a_hamlet(world: &mut World) -> MeshId {
    let hamlets = world.meshes.iter().filter(|m| m.foreign.is_none()).count() as u64;
    world.draw.below(hamlets) as usize
}

/// The other end of some pair with mesh 0.
fn an_other(world: &mut World) -> MeshId {
    let all = world.meshes.len() as u64;
    world.draw.between(1, all - 1) as usize
}

/// Notes that something is wrong between two meshes, for everybody who measures.
pub(crate) fn trouble(world: &World, mesh: MeshId, other: Option<MeshId>) {
    let now = world.start.elapsed();
    world.conns_of(mesh, other).iter().for_each(|c| c.note_trouble(now));
}

pub(crate) fn happened(world: &World, what: &'static str, numbers: &[u64]) {
    let mut model = world.model.lock();
    model.tally.count(what);
    model.log(numbers, || format!("-- {what} {numbers:?}"));
}

/// After a while, something is put right.
pub(crate) fn later(sim: &Sim, after: Duration, put_right: impl FnOnce(&mut World) + Send + 'static) {
    let (spawner, sim) = { (sim.lock().spawner.clone(), sim.clone()) };
    spawner.spawn("later", async move {
        tokio::time::sleep(after).await;
        put_right(&mut sim.lock());
    });
}

async fn hardship(sim: &Sim, stage: &Stage) {
    let kind = sim.lock().draw.below(100);
    match kind {
        0..38 => {
            let mut world = sim.lock();
            let owner = an_owner(&mut world, stage);
            change_something(&mut world, stage, owner);
        }
        38..44 => burst(sim, stage).await,
        44..47 => churn(sim, stage).await,
        47..50 => mass_deletion(sim, stage),
        50..54 => publication(sim),
        54..59 => import(sim).await,
        59..65 => disk_trouble(sim).await,
        65..77 => link_trouble(sim),
        77..90 => process_trouble(sim, None).await,
        90..93 => unread(sim),
        93..95 => replica(sim).await,
        95..97 => second_stream(sim).await,
        97..98 => wall_jump(sim),
        _ => foreign_stall(sim),
    }
}

/// Many changes close together.
async fn burst(sim: &Sim, stage: &Stage) {
    let (owner, many) = {
        let mut world = sim.lock();
        let owner = an_owner(&mut world, stage);
        happened(&world, "bursts", &[31]);
        (owner, world.draw.between(3, 25))
    };
    for _ in 0..many {
        let pause = {
            let mut world = sim.lock();
            change_something(&mut world, stage, owner);
            world.draw.below(12)
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// All services are updated in turn, faster than they can be sent.
async fn churn(sim: &Sim, stage: &Stage) {
    let (owner, keys) = {
        let mut world = sim.lock();
        let owner = an_owner(&mut world, stage);
        happened(&world, "churns", &[32]);
        (owner, world.meshes[owner].services.keys().cloned().collect::<Vec<_>>())
    };
    let rounds = if stage.fat > 0 { 2 } else { 8 };
    let pause = sim.lock().draw.below(4);
    for _ in 0..rounds {
        for key in &keys {
            {
                let mut world = sim.lock();
                let Some(shape) = world.meshes[owner].services.get(key).map(|s| s.shape) else { continue };
                change(&mut world, owner, key, shape);
                world.tell(owner);
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

fn mass_deletion(sim: &Sim, stage: &Stage) {
    let mut world = sim.lock();
    let owner = an_owner(&mut world, stage);
    let keys: Vec<Key> = world.meshes[owner].services.keys().cloned().collect();
    let share = *world.draw.pick(&[100, 80, 50]).unwrap_or(&50);
    for key in keys {
        if world.draw.chance(share) {
            world.meshes[owner].services.remove(&key);
        }
    }
    happened(&world, "mass deletions", &[33]);
    world.tell(owner);
}

/// What is published to one consumer changes.
fn publication(sim: &Sim) {
    let mut world = sim.lock();
    let other = an_other(&mut world);
    happened(&world, "changes of publications", &[34, other as u64]);
    match world.draw.below(4) {
        0 => {
            let shut = &mut world.meshes[0].shut;
            if !shut.remove(&other) {
                shut.insert(other);
            }
        }
        1 => {
            world.meshes[0].hidden.retain(|(_, peer)| *peer != other);
            world.meshes[0].shut.remove(&other);
        }
        _ => {
            let keys: Vec<Key> = world.meshes[0].services.keys().cloned().collect();
            for key in keys {
                if world.draw.chance(30) {
                    world.meshes[0].hidden.insert((key, other));
                }
            }
        }
    }
    world.tell(0);
}

/// A consumer's import policy changes.
async fn import(sim: &Sim) {
    let (link, config, id, model) = {
        let mut world = sim.lock();
        let consumer = a_hamlet(&mut world);
        let owner = if consumer == 0 { an_other(&mut world) } else { 0 };
        let drops = world.draw.chance(20);
        let Some(link) = world.meshes[consumer].process.as_ref().and_then(|p| p.links.get(&owner).cloned())
        else {
            return;
        };
        let id = (owner, consumer);
        {
            let mut model = world.model.lock();
            let Some(mut policy) = model.ways.get(&id).map(|w| w.policy.clone()) else { return };
            if drops || !policy.imports {
                policy.imports = !policy.imports;
            } else {
                policy.takes_aliens = !policy.takes_aliens;
            }
            model.set_policy(id, policy);
        }
        for conn in world.conns_of(owner, Some(consumer)) {
            conn.stream(owner).lock().excuse();
        }
        trouble(&world, owner, Some(consumer));
        happened(&world, "changes of imports", &[35, owner as u64, consumer as u64]);
        (link, world.link_config(consumer, owner), id, world.model.clone())
    };
    // The disk may stand still: nobody waits for the operator.
    let spawner = sim.lock().spawner.clone();
    spawner.spawn("configure", async move {
        link.configure(config).await;
        model.lock().configured(id);
    });
    tokio::task::yield_now().await;
}

fn link_trouble(sim: &Sim) {
    let mut world = sim.lock();
    let other = an_other(&mut world);
    let kind = world.draw.below(6);
    let conns = world.conns_of(0, Some(other));
    trouble(&world, 0, Some(other));
    let last = Duration::from_millis(world.draw.between(100, 40_000));
    let writer = if world.draw.chance(50) { 0 } else { other };
    let name = match kind {
        0 => "slow links",
        1 => "link stalls",
        2 => "half-open links",
        3 => "partitions",
        4 => "both ways vanish",
        _ => "resets",
    };
    happened(&world, name, &[37, other as u64, kind, writer as u64]);
    match kind {
        0 => {
            let delay = Duration::from_millis(world.draw.between(20, 900));
            if let Some(net) = world.nets.get_mut(&pair(0, other)) {
                net.delay = delay;
            }
            conns.iter().for_each(|c| c.set_delay(delay));
        }
        1 => conns.iter().for_each(|c| c.pipe_of(writer).stall(true)),
        2 => {
            let more = world.draw.below(20) as u32;
            conns.iter().for_each(|c| {
                c.note_vanished();
                c.pipe_of(writer).vanish(more);
            });
        }
        3 => {
            if let Some(net) = world.nets.get_mut(&pair(0, other)) {
                net.up = false;
            }
            conns.iter().for_each(|c| c.break_off());
        }
        4 => conns.iter().for_each(|c| c.vanish(3)),
        _ => conns.iter().for_each(|c| c.break_off()),
    }
    drop(world);
    let last = if kind == 2 || kind == 4 { Duration::from_secs(60) } else { last };
    later(sim, last, move |world| {
        let now = world.start.elapsed();
        for conn in conns {
            conn.note_trouble(now);
            match kind {
                1 => conn.pipe_of(writer).stall(false),
                // What has vanished never comes: at some time even TCP gives up.
                2 | 4 => conn.break_off(),
                _ => {}
            }
        }
        heal_link(world, other);
    });
}

fn heal_link(world: &mut World, other: MeshId) {
    trouble(world, 0, Some(other));
    let delay = Duration::from_millis(world.draw.below(10));
    world.nets.insert(pair(0, other), Net { up: true, delay });
    world.conns_of(0, Some(other)).iter().for_each(|c| c.set_delay(delay));
}

fn unread(sim: &Sim) {
    let mesh = {
        let mut world = sim.lock();
        let mesh = a_hamlet(&mut world);
        leave_unread(&mut world, mesh);
        trouble(&world, mesh, None);
        world.tell(mesh);
        mesh
    };
    let after = Duration::from_millis(sim.lock().draw.between(100, 20_000));
    later(sim, after, move |world| read_all(world, mesh));
}

/// Another replica of the owner takes over; it may be behind.
async fn replica(sim: &Sim) {
    let behind = {
        let mut world = sim.lock();
        trouble(&world, 0, None);
        happened(&world, "replica switches", &[40]);
        world.draw.below(8) as usize
    };
    stop(sim, 0, Death::Kill).await;
    start(sim, 0, Birth::Replica(behind)).await;
    let after = Duration::from_millis(sim.lock().draw.between(500, 25_000));
    later(sim, after, move |world| {
        trouble(world, 0, None);
        catch_up(world, 0);
    });
}

/// A new connection comes while the old one still has data in flight.
async fn second_stream(sim: &Sim) {
    let (from, to) = {
        let mut world = sim.lock();
        let other = an_other(&mut world);
        let dials = world.meshes[0].dials.contains(&other);
        for conn in world.conns_of(0, Some(other)) {
            conn.note_trouble(world.start.elapsed());
            if world.draw.chance(60) {
                let writer = if world.draw.chance(50) { 0 } else { other };
                conn.pipe_of(writer).stall(true);
                let after = Duration::from_millis(world.draw.between(20, 8_000));
                let (spawner, conn) = (world.spawner.clone(), conn.clone());
                spawner.spawn("later", async move {
                    tokio::time::sleep(after).await;
                    conn.pipe_of(writer).stall(false);
                });
            }
        }
        if world.draw.chance(50) {
            // What the old stream brought is still on its way to the disk.
            let mesh = if world.draw.chance(50) { 0 } else { other };
            trouble(&world, mesh, None);
            world.meshes[mesh].pace.slowest_ms.store(1_500, Ordering::Relaxed);
            let (spawner, again) = (world.spawner.clone(), sim.clone());
            spawner.spawn("later", async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                heal_disk(&mut again.lock(), mesh);
            });
        }
        happened(&world, "second streams", &[41, other as u64]);
        let owner = if world.draw.chance(70) { 0 } else { other };
        for _ in 0..4 {
            if let Some((key, shape)) = any_service(&mut world, owner) {
                change(&mut world, owner, &key, shape);
                world.tell(owner);
            }
        }
        if dials { (0, other) } else { (other, 0) }
    };
    let pause = sim.lock().draw.below(400);
    tokio::time::sleep(Duration::from_millis(pause)).await;
    connect_again(sim, from, to);
}

fn wall_jump(sim: &Sim) {
    let mut world = sim.lock();
    let mesh = a_hamlet(&mut world);
    let seconds = *world.draw.pick(&[3_600, -3_600, 86_400 * 400, -600, 120]).unwrap_or(&0);
    world.meshes[mesh].jumps.fetch_add(seconds, Ordering::SeqCst);
    happened(&world, "wall clock jumps", &[42, mesh as u64]);
}

fn foreign_stall(sim: &Sim) {
    let mut world = sim.lock();
    let Some(at) = world.meshes.iter().position(|m| m.foreign.is_some()) else { return };
    let last = Duration::from_millis(world.draw.between(1_000, 60_000));
    trouble(&world, 0, Some(at));
    if let Some(foreign) = &world.meshes[at].foreign {
        foreign.lock().stalled = true;
    }
    happened(&world, "foreign peers stall", &[43]);
    drop(world);
    later(sim, last, move |world| heal_foreign(world, at));
}

fn heal_foreign(world: &mut World, at: MeshId) {
    if let Some(foreign) = &world.meshes[at].foreign {
        foreign.lock().stalled = false;
    }
    trouble(world, 0, Some(at));
}

/// Plays a seed to its end. The model knows what came of it.
pub(crate) async fn play(sim: &Sim) {
    let stage = { stage(&mut sim.lock().draw) };
    {
        let world = sim.lock();
        world.model.lock().log(&[30], || format!("{stage:?}"));
    }
    set_up(sim, &stage).await;
    if stage.hostile {
        crate::hostile::play(sim).await;
    } else if stage.play == Play::Neighbours {
        plays::neighbours(sim, &stage).await;
    } else if stage.play == Play::Rounds {
        plays::rounds(sim, &stage).await;
    } else if stage.play == Play::Paused {
        plays::paused(sim, &stage).await;
    } else {
        for _ in 0..stage.steps {
            hardship(sim, &stage).await;
            let pause = {
                let mut world = sim.lock();
                match world.draw.below(10) {
                    0..5 => world.draw.below(300),
                    5..9 => world.draw.between(300, 3_000),
                    _ => world.draw.between(3_000, 25_000),
                }
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if broken(sim) {
                return;
            }
        }
    }
    calm(sim).await;
}

fn broken(sim: &Sim) -> bool {
    sim.lock().model.lock().violation().is_some()
}

/// Everything is put right; then the world must settle.
async fn calm(sim: &Sim) {
    {
        let mut world = sim.lock();
        for mesh in 0..world.meshes.len() {
            heal_disk(&mut world, mesh);
            heal_foreign(&mut world, mesh);
            read_all(&mut world, mesh);
            catch_up(&mut world, mesh);
            if mesh > 0 {
                heal_link(&mut world, mesh);
            }
        }
        let model = world.model.clone();
        model.lock().log(&[44], || "-- calm".to_owned());
    }
    let began = tokio::time::Instant::now();
    let mut quiet = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        if broken(sim) {
            return;
        }
        let unsettled = {
            let mut world = sim.lock();
            for mesh in 0..world.meshes.len() {
                world.observe(mesh);
            }
            let model = world.model.clone();
            let unsettled = { model.lock().unsettled_way() };
            unsettled.or_else(|| unproven(&world))
        };
        match unsettled {
            None => quiet += 1,
            Some(what) if began.elapsed() > CALM => {
                let world = sim.lock();
                world.model.lock().complain("I3", format!("{what}, after {CALM:?} of calm"));
                return;
            }
            Some(_) => quiet = 0,
        }
        // Settled must stay settled for a while.
        if quiet >= 6 {
            return;
        }
    }
}

/// Between Hamlet agents being settled is also known to both.
fn unproven(world: &World) -> Option<String> {
    for (at, mesh) in world.meshes.iter().enumerate() {
        let Some(process) = &mesh.process else { continue };
        for (&peer, link) in &process.links {
            let model = world.model.lock();
            // Over the quota, or without an import at one end, there is nothing to prove.
            let comparable = |id| model.ways.get(&id).is_some_and(|w| w.policy.imports && w.fits());
            let both = comparable((at, peer)) && comparable((peer, at));
            drop(model);
            if both && world.meshes[peer].foreign.is_none() && !link.is_proven() {
                return Some(format!("mesh {at} can't say that it is in sync with {peer}"));
            }
        }
    }
    None
}
