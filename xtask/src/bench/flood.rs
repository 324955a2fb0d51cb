//! `cargo xtask bench flood`: what silent sockets and strangers' handshakes do to an honest peer
//! that connects.

use clap::Args;
use hamlet_runtime::{Clock, SystemClock};
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Called, Struck, System};
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{LIFETIME, Peers, Serving};
use super::process::End;

/// Most that the honest peer's connecting may take, p99, in milliseconds.
const GOAL_MS: f64 = 100.0;
/// Silent sockets.
const SILENT: usize = 5_000;
/// Handshakes of strangers that run at a time.
const STRANGERS: usize = 16;
/// Handshakes that run at a time, and that the other side abandons.
const ABANDONERS: usize = 48;
/// Most memory that they may cost the agent, in MiB.
const GOAL_MIB: f64 = 64.0;

/// 5,000 silent sockets and a flood of handshakes, and an honest peer that connects
///
/// In turn, there and back again, an honest peer connects alone; beside 5,000 sockets from 1,250
/// networks that say nothing and come back when they are thrown out; or beside those, 16 strangers
/// that shake hands with a certificate nobody knows, and 48 that only let the agent do its part of a
/// handshake, each from a network of its own and one handshake after the other. Its connecting is
/// measured to the first byte of the answer. Loopback only; ends by itself.
///
/// Examples:
///   cargo xtask bench flood
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct FloodOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// Runs it.
pub(super) fn run(options: &FloodOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    write_identities(ground.folder(), 1)?;
    let serving = Serving::start(&ground, &Peers::default(), System::Hamlet, 1, 1)?;
    let address = format!("--address={}", serving.address);
    let arguments = [address.clone(), LIFETIME.to_owned()];
    let mut caller = End::start("caller", ground.folder(), Some(ground.cpus.load), &arguments)?;
    let _: Called = caller.line()?;
    let calls = ground.pick(100, 400);
    // Warms up.
    let _: Called = caller.ask(&format!("call {calls}"))?;
    let (mut alone, mut silent, mut flooded) = (Seen::default(), Seen::default(), Seen::default());
    for round in 0..ground.rounds() {
        ground.settle(round, "alone, beside silent sockets, beside all of the flood, and back");
        for which in [0, 1, 2, 2, 1, 0] {
            let (seen, strangers) = match which {
                0 => (&mut alone, None),
                1 => (&mut silent, Some((0, 0))),
                _ => (&mut flooded, Some((STRANGERS, ABANDONERS))),
            };
            measure(&mut ground, &mut caller, &serving, strangers, calls, seen)?;
        }
    }
    caller.stop()?;
    serving.stop()?;
    let settings =
        json!({"silent": SILENT, "strangers": STRANGERS, "abandoners": ABANDONERS, "calls": calls});
    let figures = figures(alone, silent, flooded, ground.quick());
    Ok(ground.outcome("flood", settings, figures))
}

/// What was seen under one condition, a number for each time.
#[derive(Debug, Default)]
struct Seen {
    p50: Vec<f64>,
    p99: Vec<f64>,
    tcp: Vec<f64>,
    tls: Vec<f64>,
    grown: Vec<f64>,
    busy: Vec<f64>,
    refused: Vec<f64>,
    abandoned: Vec<f64>,
    evicted: Vec<f64>,
}

/// The honest calls, beside the silent sockets, so many strangers and so many abandoners; `None` alone.
fn measure(
    ground: &mut Ground,
    caller: &mut End,
    serving: &Serving,
    strangers: Option<(usize, usize)>,
    calls: u64,
    seen: &mut Seen,
) -> anyhow::Result<()> {
    let rss = serving.cost().rss;
    let mut flood = strangers.map(|count| open_flood(ground, serving, count)).transpose()?;
    let mut struck = || flood.as_mut().map(|f| f.ask::<Struck>("take")).transpose();
    let clock = SystemClock::new();
    let before = struck()?.unwrap_or_default();
    let (began, cpu) = (clock.now(), serving.cost().cpu_us);
    let called: Called = caller.ask(&format!("call {calls}"))?;
    let seconds = clock.now().saturating_sub(began).as_secs_f64().max(0.001);
    let (after, cost) = (struck()?.unwrap_or_default(), serving.cost());
    ground.check(called.failed == 0, || format!("{} honest calls had no answer", called.failed));
    ground.check(after.admitted == 0, || format!("{} strangers were let in", after.admitted));
    let (refused, evicted) = (after.refused - before.refused, after.evicted - before.evicted);
    ground.check(strangers.is_none() || evicted > 0, || format!("silent sockets were left alone: {after:?}"));
    let abandoned = after.abandoned - before.abandoned;
    let all_came = strangers.is_none_or(|(a, b)| (a == 0 || refused > 0) && (b == 0 || abandoned > 0));
    ground.check(all_came, || format!("no stranger came: {after:?}"));
    seen.p50.push(called.p50_ms);
    seen.p99.push(called.p99_ms);
    seen.tcp.push(called.tcp_p99_ms);
    seen.tls.push(called.tls_p99_ms);
    seen.grown.push(cost.rss.saturating_sub(rss) as f64 / f64::from(1 << 20));
    seen.busy.push(cost.cpu_us.saturating_sub(cpu) as f64 / 10_000.0 / seconds);
    seen.refused.push(refused as f64 / seconds);
    seen.abandoned.push(abandoned as f64 / seconds);
    seen.evicted.push(evicted as f64 / seconds);
    flood.map_or(Ok(()), End::stop)
}

/// The figures; the goals are for the whole flood.
fn figures(alone: Seen, silent: Seen, flooded: Seen, quick: bool) -> Vec<Figure> {
    let p99 = "connecting of an honest peer beside the flood, p99";
    let beside_silent = "connecting of an honest peer beside 5,000 silent sockets, p99";
    vec![
        Figure::alone(p99, "ms", flooded.p99.clone()).at_most(GOAL_MS, quick),
        Figure::alone(p99, "ms", flooded.p99).beside("the same alone", alone.p99.clone(), true),
        Figure::alone("of it, until TCP is connected, p99", "ms", flooded.tcp),
        Figure::alone("of it, until the client's TLS is done, p99", "ms", flooded.tls),
        Figure::alone("connecting of an honest peer beside the flood, median", "ms", flooded.p50).beside(
            "the same alone",
            alone.p50,
            true,
        ),
        Figure::alone(beside_silent, "ms", silent.p99).at_most(GOAL_MS, quick),
        Figure::alone("the agent's resident memory: growth by the flood", "MiB", flooded.grown)
            .at_most(GOAL_MIB, quick),
        Figure::alone("the same by silent sockets only", "MiB", silent.grown).at_most(GOAL_MIB, quick),
        Figure::alone("the agent's processor, beside silent sockets only", "%", silent.busy),
        Figure::alone("the agent's processor, beside the flood", "%", flooded.busy),
        Figure::alone("silent sockets evicted, beside silent sockets only", "1/s", silent.evicted),
        Figure::alone("silent sockets evicted, beside the flood", "1/s", flooded.evicted),
        Figure::alone("handshakes of strangers refused meanwhile", "1/s", flooded.refused),
        Figure::alone("handshakes begun and abandoned meanwhile", "1/s", flooded.abandoned),
    ]
}

/// Starts the strangers on the caller's processor, behind the caller: on a real network each has a
/// machine of its own, and what is measured is the agent, not the caller's wait for a processor.
fn open_flood(
    ground: &Ground,
    serving: &Serving,
    (strangers, abandoners): (usize, usize),
) -> anyhow::Result<End> {
    let arguments = [
        format!("--address={}", serving.address),
        format!("--members={SILENT}"),
        format!("--strangers={strangers}"),
        format!("--abandoners={abandoners}"),
        LIFETIME.to_owned(),
    ];
    let mut flood = End::start_behind("flood", ground.folder(), Some(ground.cpus.load), &arguments)?;
    let _: Struck = flood.line()?;
    until_open(&mut flood)?;
    Ok(flood)
}

/// Waits until all silent sockets were opened once.
fn until_open(flood: &mut End) -> anyhow::Result<()> {
    for _ in 0..600 {
        let struck: Struck = flood.ask("take")?;
        if struck.silent >= SILENT as u64 {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    anyhow::bail!("the silent sockets could not be opened; see `ulimit -n`")
}
