//! `cargo xtask bench flood`: what silent sockets and strangers' handshakes do to an honest peer
//! that connects.

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Called, STRANGERS, Struck, System};
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{LIFETIME, Peers, Serving};
use super::process::End;

/// Most that the honest peer's connecting may take, p99, in milliseconds.
const GOAL_MS: f64 = 100.0;
/// Silent sockets.
const SILENT: usize = 5_000;
/// Most memory that they may cost the agent, in MiB.
const GOAL_MIB: f64 = 64.0;

/// 5,000 silent sockets and a flood of handshakes, and an honest peer that connects
///
/// In turn, there and back again, an honest peer connects alone, or beside 5,000 sockets from 1,250
/// networks that say nothing and come back when they are thrown out, and 16 strangers that shake
/// hands with a certificate nobody knows, one handshake after the other. Its connecting is measured
/// to the first byte of the answer. Loopback only; ends by itself.
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
    let (mut alone, mut beside, mut grown, mut rates) = (vec![], vec![], vec![], vec![]);
    for round in 0..ground.rounds() {
        ground.settle(round, "alone, beside the flood, and back");
        let order = if round % 2 == 0 { [false, true, true, false] } else { [true, false, false, true] };
        for flooded in order {
            let before = serving.cost().rss;
            let mut flood = None;
            if flooded {
                let silent = format!("--members={SILENT}");
                let arguments = [address.clone(), silent, LIFETIME.to_owned()];
                let mut end = End::start("flood", ground.folder(), Some(ground.cpus.load), &arguments)?;
                let _: Struck = end.line()?;
                until_open(&mut end)?;
                flood = Some(end);
            }
            let called: Called = caller.ask(&format!("call {calls}"))?;
            ground.check(called.failed == 0, || format!("{} honest calls had no answer", called.failed));
            let Some(mut flood) = flood else {
                alone.push(called.p99_ms);
                continue;
            };
            beside.push(called.p99_ms);
            grown.push(serving.cost().rss.saturating_sub(before) as f64 / f64::from(1 << 20));
            let struck: Struck = flood.ask("take")?;
            ground.check(struck.admitted == 0, || format!("{} strangers were let in", struck.admitted));
            ground.check(struck.evicted > 0 && struck.refused > 0, || format!("no flood: {struck:?}"));
            rates.push(struck.refused as f64 / (called.p50_ms * calls as f64 / 1000.0).max(0.001));
            flood.stop()?;
        }
    }
    caller.stop()?;
    serving.stop()?;
    let quick = ground.quick();
    let p99 = "connecting of an honest peer beside the flood, p99";
    let figures = vec![
        Figure::alone(p99, "ms", beside.clone()).at_most(GOAL_MS, quick),
        Figure::alone(p99, "ms", beside).beside("the same alone", alone, true),
        Figure::alone("the agent's resident memory: growth by the flood", "MiB", grown)
            .at_most(GOAL_MIB, quick),
        Figure::alone("handshakes of strangers refused meanwhile", "1/s", rates),
    ];
    let settings = json!({"silent": SILENT, "strangers": STRANGERS, "calls": calls});
    Ok(ground.outcome("flood", settings, figures))
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
