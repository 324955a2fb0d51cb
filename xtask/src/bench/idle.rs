//! `cargo xtask bench idle`: what one connected idle consumer costs its owner in memory.

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Behaviour, Seen, System};
use super::figure::{Figure, GoalIs};
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{GO, Peers, Serving};

/// Most resident memory for each consumer, in KiB.
const GOAL_KIB: f64 = 48.0;
/// The stretch.
const STRETCH_KIB: f64 = 32.0;
/// Services in the shared view.
const SERVICES: usize = 100;
/// Services whose memory in the shared view is stated.
const VIEW_SERVICES: usize = 100_000;
/// How long consumers are left alone before memory is read.
const IDLE_MILLIS: u64 = 2_000;

/// The owner's memory for each of 1,000 connected idle consumers
///
/// Read before the first connects (its peers are configured then) and two seconds after the last
/// has everything: resident memory, and the heap by the allocator's own count. The shared view,
/// which all consumers of one policy have in common, is stated apart.
///
/// Examples:
///   cargo xtask bench idle
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct IdleOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// Samples of one system, in KiB.
#[derive(Debug, Default)]
struct Taken {
    resident: Vec<f64>,
    heap: Vec<f64>,
}

/// Runs it.
pub(super) fn run(options: &IdleOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    let peers = Peers::find(&mut ground, false)?;
    let members = ground.pick(200, 1_000);
    write_identities(ground.folder(), members)?;
    let (mut ours, mut go) = (Taken::default(), Taken::default());
    let (mut peer_kib, mut view) = (Vec::new(), Vec::new());
    for round in 0..ground.rounds() {
        ground.settle(round, "ours, the Go peer, and back");
        let there = peers.systems();
        let back: Vec<System> = if ground.quick() { vec![] } else { there.iter().rev().copied().collect() };
        for system in there.into_iter().chain(back) {
            let taken = if system == System::Hamlet { &mut ours } else { &mut go };
            measure(&mut ground, &peers, system, members, taken)?;
        }
        peer_kib.push(configured(&ground, &peers, members)?);
        view.push(view_bytes(&ground, &peers)?);
    }
    let quick = ground.quick();
    let resident = Figure::alone("resident for each idle consumer", "KiB", ours.resident.clone());
    let heap = Figure::alone("heap for each idle consumer", "KiB", ours.heap.clone());
    let mut figures = vec![resident.at_most(GOAL_KIB, quick)];
    let stretch = Figure::alone("the same, the stretch", "KiB", ours.resident.clone());
    figures.push(Figure { goal: Some(STRETCH_KIB), goal_is: Some(GoalIs::ValueAtMost), ..stretch });
    figures.push(heap);
    if peers.has_go() {
        let beside = Figure::alone("resident for each idle consumer", "KiB", ours.resident);
        figures.push(beside.beside(GO, go.resident, true));
        figures
            .push(Figure::alone("heap for each idle consumer", "KiB", ours.heap).beside(GO, go.heap, true));
    }
    figures.push(Figure::alone("heap for each configured peer that isn't connected", "KiB", peer_kib));
    figures.push(Figure::alone("heap for each service of the shared view", "B", view));
    let settings = json!({"consumers": members, "services": SERVICES, "view_services": VIEW_SERVICES});
    Ok(ground.outcome("idle", settings, figures))
}

fn measure(
    ground: &mut Ground,
    peers: &Peers,
    system: System,
    members: usize,
    taken: &mut Taken,
) -> anyhow::Result<()> {
    let mut serving = Serving::start(ground, peers, system, SERVICES, members)?;
    let before = serving.own_cost()?;
    let (mut swarm, _) = serving.swarm(ground, 0, members, Behaviour::Good)?;
    std::thread::sleep(std::time::Duration::from_millis(IDLE_MILLIS));
    let after = serving.own_cost()?;
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1024.0 / members as f64;
    taken.resident.push(each(before.rss, after.rss));
    taken.heap.push(each(before.heap, after.heap));
    let seen: Seen = swarm.ask("take")?;
    ground.check(seen.broken == 0, || {
        format!("{system:?}: {} idle consumers lost their stream: {}", seen.broken, seen.errors.join("; "))
    });
    swarm.stop()?;
    serving.stop()
}

/// Heap of a peer that is configured and has never connected, in KiB.
fn configured(ground: &Ground, peers: &Peers, members: usize) -> anyhow::Result<f64> {
    let mut heap = Vec::new();
    for members in [1, members] {
        let mut serving = Serving::start(ground, peers, System::Hamlet, SERVICES, members)?;
        heap.push(serving.own_cost()?.heap);
        serving.stop()?;
    }
    Ok(heap[1].saturating_sub(heap[0]) as f64 / 1024.0 / (members - 1) as f64)
}

/// Heap of a service in the view, its source's copy included, in bytes.
fn view_bytes(ground: &Ground, peers: &Peers) -> anyhow::Result<f64> {
    let mut heap = Vec::new();
    for services in [SERVICES, VIEW_SERVICES] {
        let mut serving = Serving::start(ground, peers, System::Hamlet, services, 1)?;
        heap.push(serving.own_cost()?.heap);
        serving.stop()?;
    }
    Ok(heap[1].saturating_sub(heap[0]) as f64 / (VIEW_SERVICES - SERVICES) as f64)
}
