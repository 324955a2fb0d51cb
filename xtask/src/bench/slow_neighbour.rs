//! `cargo xtask bench slow-neighbour`: what one stalled and one hostile consumer do to the other 98
//! and to the owner's memory.

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Behaviour, Latest, Seen, System};
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{Peers, Serving};
use super::process::End;

/// Most that the others' p99 may grow, in percent.
const GOAL_PERCENT: f64 = 15.0;
/// Most that the owner's memory may grow, in MiB.
const GOAL_MIB: f64 = 2.0;
/// Those who behave.
const GOOD: usize = 98;
/// Pairs of a full run.
const PAIRS: usize = 20;
/// Services in the catalogue.
const SERVICES: usize = 100;
/// Changes a second.
const RATE: u64 = 200;
/// Milliseconds without any delivery after which what isn't there is lost.
const LOST_AFTER: u64 = 2_000;

/// 1 stalled and 1 hostile consumer among 100
///
/// 98 consumers follow 200 changes a second. In turn, there and back again, they do so alone, or
/// beside one that subscribed and never reads again and one that opens calls and resets them, sends
/// garbage, and comes back ten milliseconds after it was thrown out. One owner for all pairs.
///
/// Examples:
///   cargo xtask bench slow-neighbour
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SlowNeighbourOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// One half of a pair.
#[derive(Debug, Clone, Copy)]
struct Half {
    p99_ms: f64,
    rss_mib: f64,
}

/// Runs it.
pub(super) fn run(options: &SlowNeighbourOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    write_identities(ground.folder(), GOOD + 2)?;
    let peers = Peers::default();
    let mut serving = Serving::start(&ground, &peers, System::Hamlet, SERVICES, GOOD + 2)?;
    let (mut swarm, _) = serving.swarm(&ground, 0, GOOD, Behaviour::Good)?;
    let mut version = 2;
    // Warms up.
    half(&mut ground, &mut serving, &mut swarm, &mut version, false)?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for pair in 0..ground.pick(4, PAIRS) {
        if pair % 4 == 0 {
            ground.settle(pair / 4, "four pairs: alone and beside the neighbours, and back");
        }
        let order = if pair % 2 == 0 { [false, true] } else { [true, false] };
        for with in order {
            let half = half(&mut ground, &mut serving, &mut swarm, &mut version, with)?;
            if with { beside.push(half) } else { alone.push(half) }
        }
    }
    swarm.stop()?;
    serving.stop()?;
    let quick = ground.quick();
    let pairs = || alone.iter().zip(&beside);
    let change = pairs().map(|(a, b)| (b.p99_ms / a.p99_ms - 1.0) * 100.0).collect();
    let grown = pairs().map(|(a, b)| b.rss_mib - a.rss_mib).collect();
    let p99 = |halves: &[Half]| halves.iter().map(|h| h.p99_ms).collect::<Vec<_>>();
    let figures = vec![
        Figure::alone("the others' p99: change by the neighbours", "%", change).at_most(GOAL_PERCENT, quick),
        Figure::alone("the others' p99, beside the neighbours", "ms", p99(&beside)).beside(
            "the same alone",
            p99(&alone),
            true,
        ),
        Figure::alone("owner's resident memory: growth by the neighbours", "MiB", grown)
            .at_most(GOAL_MIB, quick),
    ];
    let settings = json!({"good": GOOD, "stalled": 1, "hostile": 1, "changes_a_second": RATE});
    Ok(ground.outcome("slow-neighbour", settings, figures))
}

fn half(
    ground: &mut Ground,
    serving: &mut Serving,
    swarm: &mut End,
    version: &mut u64,
    with: bool,
) -> anyhow::Result<Half> {
    let mut neighbours = Vec::new();
    if with {
        neighbours.push(serving.swarm(ground, GOOD, 1, Behaviour::Stalled)?.0);
        neighbours.push(serving.swarm(ground, GOOD + 1, 1, Behaviour::Hostile)?.0);
    }
    let _: Seen = swarm.ask("take")?;
    serving.rate(RATE, ground.pick(1_000, 4_000), *version)?;
    let changed = serving.changed()?;
    let latest: Latest = swarm.ask(&format!("latest {} {LOST_AFTER}", changed.version))?;
    let seen: Seen = swarm.ask("take")?;
    let rss_mib = serving.cost().rss as f64 / f64::from(1 << 20);
    *version = changed.version + 1;
    ground.check(latest.behind == 0 && seen.broken == 0, || {
        let beside = if with { "beside the neighbours" } else { "alone" };
        format!("{} updates lost, {} streams broken, {beside}", latest.behind, seen.broken)
    });
    for neighbour in neighbours {
        neighbour.stop()?;
    }
    Ok(Half { p99_ms: seen.p99_us / 1000.0, rss_mib })
}
