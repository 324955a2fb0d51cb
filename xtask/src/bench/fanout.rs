//! `cargo xtask bench fanout`: one change to many consumers, and many changes to some, next to the
//! Go peer and etcd. What counts is the server's processor time for each delivery, and that nobody
//! misses anything.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Arrived, Behaviour, Changed, Latest, Seen, System};
use super::figure::{Figure, quantile};
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{ETCD, GO, Peers, Serving};

/// What the server's processor time for a delivery has to be better than the Go peer's by.
const GOAL_GO: f64 = 3.0;
/// And than etcd's.
const GOAL_ETCD: f64 = 2.0;
/// Services in the catalogue.
const SERVICES: usize = 100;
/// Changes a second of the second load.
const RATE: u64 = 1_000;
/// Consumers of the second load.
const RATE_MEMBERS: usize = 100;
/// Milliseconds without any delivery after which what isn't there is lost.
const LOST_AFTER: u64 = 2_000;

/// One change to 1, 100 and 1,000 consumers; 1,000 changes a second to 100
///
/// The server has one processor, the consumers (lean ones, all in one process, each with a
/// certificate, a connection and a stream of its own) the other. A change is published when the one
/// before it has been acknowledged by all. Ours, the Go peer and etcd in turn, there and back again.
///
/// Examples:
///   cargo xtask bench fanout
///   cargo xtask bench fanout --quick --without-go
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct FanoutOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// Samples of one system under one load.
#[derive(Debug, Default)]
struct Taken {
    cpu_us: Vec<f64>,
    last_p50_ms: Vec<f64>,
    last_p99_ms: Vec<f64>,
    a_second: Vec<f64>,
    lost: u64,
}

/// What is asked of a system at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// One change to so many, when the one before has arrived.
    Waves(usize),
    /// So many changes a second, whether they have arrived or not.
    Rate,
}

impl Load {
    fn members(self) -> usize {
        match self {
            Load::Waves(members) => members,
            Load::Rate => RATE_MEMBERS,
        }
    }

    fn name(self) -> String {
        match self {
            Load::Waves(members) => format!("one change to {members}"),
            Load::Rate => format!("{RATE} changes a second to {RATE_MEMBERS}"),
        }
    }
}

type Results = BTreeMap<(Load, usize), Taken>;

/// Runs it.
pub(super) fn run(options: &FanoutOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    let peers = Peers::find(&mut ground, true)?;
    let most = ground.pick(200, 1_000);
    write_identities(ground.folder(), most)?;
    let systems = peers.systems();
    let loads = [Load::Waves(1), Load::Waves(100), Load::Waves(most), Load::Rate];
    let mut results = Results::new();
    for round in 0..ground.rounds() {
        ground.settle(round, "each load: each system, and back");
        for load in loads {
            let there = systems.iter().enumerate();
            // A quick run doesn't go back.
            let back = there.clone().rev().skip(ground.pick(systems.len(), 0));
            for (at, system) in there.chain(back) {
                if ground.is_late() {
                    ground.check(false, || format!("no time left for {system:?}, {}", load.name()));
                    continue;
                }
                let taken = results.entry((load, at)).or_default();
                measure(&mut ground, &peers, *system, load, taken)?;
            }
        }
    }
    let figures = figures(&systems, &loads, results, ground.quick());
    let settings = json!({"services": SERVICES, "service_bytes": 480, "most_consumers": most});
    Ok(ground.outcome("fanout", settings, figures))
}

fn measure(
    ground: &mut Ground,
    peers: &Peers,
    system: System,
    load: Load,
    taken: &mut Taken,
) -> anyhow::Result<()> {
    let members = load.members();
    let mut serving = Serving::start(ground, peers, system, SERVICES, members)?;
    let (mut swarm, _) = serving.swarm(ground, 0, members, Behaviour::Good)?;
    let mut version = 1;
    let mut lasts = Vec::new();
    let waves = match load {
        Load::Waves(1) => ground.pick(100, 400),
        Load::Waves(100) => ground.pick(30, 80),
        Load::Waves(_) => ground.pick(15, 40),
        Load::Rate => 0,
    };
    // The first ones warm up: windows, allocators, the Go peer's heap.
    for _ in 0..waves / 4 {
        version += 1;
        wave(&mut serving, &mut swarm, version)?;
    }
    let _: Seen = swarm.ask("take")?;
    let before = serving.cost().cpu_us;
    let mut missing = 0;
    for _ in 0..waves {
        version += 1;
        let arrived = wave(&mut serving, &mut swarm, version)?;
        missing += arrived.missing as u64;
        lasts.push(arrived.last_us / 1000.0);
    }
    if load == Load::Rate {
        let millis = ground.pick(1_000, 3_000);
        serving.rate(RATE, millis, 2)?;
        let Changed { version, seconds, .. } = serving.changed()?;
        let latest: Latest = swarm.ask(&format!("latest {version} {LOST_AFTER}"))?;
        missing += latest.behind;
        let after = serving.cost().cpu_us;
        let seen: Seen = swarm.ask("take")?;
        taken.cpu_us.push((after - before) as f64 / seen.deliveries.max(1) as f64);
        taken.last_p50_ms.push(seen.p50_us / 1000.0);
        taken.last_p99_ms.push(seen.p99_us / 1000.0);
        taken.a_second.push(seen.deliveries as f64 / seconds);
        broken(ground, system, load, &seen);
    } else {
        let after = serving.cost().cpu_us;
        let seen: Seen = swarm.ask("take")?;
        taken.cpu_us.push((after - before) as f64 / seen.deliveries.max(1) as f64);
        taken.last_p50_ms.push(quantile(&lasts, 0.5));
        taken.last_p99_ms.push(quantile(&lasts, 0.99));
        broken(ground, system, load, &seen);
    }
    taken.lost += missing;
    if system == System::Hamlet {
        ground.check(missing == 0, || format!("{missing} updates lost, {}", load.name()));
    }
    swarm.stop()?;
    serving.stop()
}

fn broken(ground: &mut Ground, system: System, load: Load, seen: &Seen) {
    let Seen { broken, errors, .. } = seen;
    ground.check(*broken == 0, || {
        format!("{system:?}, {}: {broken} consumers lost their stream: {}", load.name(), errors.join("; "))
    });
}

/// One change, from publishing until the last acknowledgement.
fn wave(serving: &mut Serving, swarm: &mut super::process::End, version: u64) -> anyhow::Result<Arrived> {
    let _: Arrived = swarm.ask(&format!("expect 0 {version}"))?;
    serving.set(0, 1, version)?;
    swarm.ask("arrived")
}

fn figures(systems: &[System], loads: &[Load], mut results: Results, quick: bool) -> Vec<Figure> {
    let mut figures = Vec::new();
    for load in loads {
        let Some(ours) = results.remove(&(*load, 0)) else { continue };
        let name = load.name();
        let last = if *load == Load::Rate { "change to ACK" } else { "last ACK" };
        for (at, system) in systems.iter().enumerate().skip(1) {
            let Some(theirs) = results.remove(&(*load, at)) else { continue };
            let (peer, goal) = match system {
                System::Etcd => (ETCD, GOAL_ETCD),
                _ => (GO, GOAL_GO),
            };
            let beside = |what: &str, unit, ours: &[f64], theirs: Vec<f64>| {
                Figure::alone(&format!("{what}, {name}"), unit, ours.to_vec()).beside(peer, theirs, true)
            };
            let cpu = beside("server CPU a delivery", "us", &ours.cpu_us, theirs.cpu_us);
            figures.push(cpu.with_goal(goal, quick));
            figures.push(beside(&format!("{last} p50"), "ms", &ours.last_p50_ms, theirs.last_p50_ms));
            figures.push(beside(&format!("{last} p99"), "ms", &ours.last_p99_ms, theirs.last_p99_ms));
            if *load == Load::Rate {
                let what = format!("deliveries a second, {name}");
                let rate = Figure::alone(&what, "1/s", ours.a_second.clone());
                figures.push(rate.beside(peer, theirs.a_second, false));
            }
            let what = format!("updates lost, {name}");
            let lost = Figure::alone(&what, "updates", vec![ours.lost as f64]);
            figures.push(lost.next_to(peer, theirs.lost as f64));
        }
        if systems.len() == 1 {
            figures.push(Figure::alone(&format!("server CPU a delivery, {name}"), "us", ours.cpu_us));
            figures.push(Figure::alone(&format!("{last} p99, {name}"), "ms", ours.last_p99_ms));
        }
    }
    figures
}
