//! `cargo xtask bench resume`: what it costs two agents that know each other's set to go on, after
//! either of them was restarted, with nothing or little changed.

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::ends::{Changed, Passed, Ready, Synced};
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::process::End;
use super::syncing::{self, Cores, Plan};

/// Most bytes on the wire when nothing changed, the TLS handshake left out.
const GOAL_UNCHANGED: f64 = 10_000.0;
/// Most bytes on the wire when [`CHANGED`] services changed, all of them counted.
const GOAL_CHANGED: f64 = 500_000.0;
/// Services that change.
const CHANGED: usize = 100;
/// So that a bookmark's answer that is under way is counted too.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(200);

/// Going on where they were: bytes and time after a restart, with 0 and 100 of 100,000 changed
///
/// The consumer keeps its catalogue on disk. Each side is restarted in turn, with nothing changed
/// and with 100 services changed meanwhile, until both have proven that they hold the same set. A
/// proxy between them counts the bytes, both ways, TLS and HTTP/2 included.
///
/// Examples:
///   cargo xtask bench resume
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ResumeOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// Samples of one way to go on.
#[derive(Debug, Default)]
struct Taken {
    bytes: Vec<f64>,
    ms: Vec<f64>,
}

#[derive(Debug, Default)]
struct All {
    full: Taken,
    /// Consumer restarted, owner restarted; with nothing and with some changed.
    consumer: [Taken; 2],
    owner: [Taken; 2],
    handshake: Vec<f64>,
}

/// Runs it.
pub(super) fn run(options: &ResumeOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    write_identities(ground.folder(), 0)?;
    let services = ground.pick(20_000, 100_000);
    let mut all = All::default();
    for round in 0..ground.rounds() {
        ground.settle(round, "full sync, consumer restarted, owner restarted, each also with changes");
        all.round(&mut ground, services)?;
    }
    let quick = ground.quick();
    let figures = all.figures(quick);
    let settings = json!({"services": services, "changed": CHANGED, "service_bytes": 480});
    Ok(ground.outcome("resume", settings, figures))
}

impl All {
    fn round(&mut self, ground: &mut Ground, services: u32) -> anyhow::Result<()> {
        self.handshake.push(syncing::handshake_bytes(ground)? as f64);
        syncing::forget(ground)?;
        let plan = Plan { services, rtt_ms: 0, durable: true, one_in_flight: false, cores: Cores::Two };
        let (owner_cpu, consumer_cpu) = plan.cores.of(ground);
        let (mut owner, ready) = syncing::owner(ground, owner_cpu, services)?;
        let (mut line, Ready { address, .. }) = syncing::line(ground, ready.address, 0)?;
        let start = |ground: &Ground| syncing::consumer(ground, consumer_cpu, address, plan);

        let mut consumer = start(ground)?;
        let synced = consumer.line()?;
        self.full.note(ground, &mut line, &synced, services)?;

        // The owner is restarted first: it starts again with what it had at first.
        let (again, ready) = syncing::owner(ground, owner_cpu, services)?;
        let _: Passed = line.ask(&format!("to {}", ready.address))?;
        self.owner[0].restarted(ground, &mut line, &mut consumer, owner, services)?;
        owner = again;
        for changed in [0, 1] {
            consumer.stop()?;
            if changed == 1 {
                let _: Changed = owner.ask(&format!("set 0 {CHANGED} 2"))?;
            }
            std::thread::sleep(SETTLE);
            let _: Passed = line.ask("take")?;
            consumer = start(ground)?;
            let synced: Synced = consumer.line()?;
            let kept = synced.kept;
            ground.check(kept == services as usize, || format!("only {kept} were kept over a restart"));
            self.consumer[changed].note(ground, &mut line, &synced, services)?;
        }
        // Of the hundred, the new owner has half changed again, and half as they were at first.
        let (mut again, ready) = syncing::owner(ground, owner_cpu, services)?;
        let _: Changed = again.ask(&format!("set 0 {} 3", CHANGED / 2))?;
        let _: Passed = line.ask(&format!("to {}", ready.address))?;
        self.owner[1].restarted(ground, &mut line, &mut consumer, owner, services)?;
        consumer.stop()?;
        again.stop()?;
        line.stop()?;
        syncing::forget(ground)
    }

    fn figures(self, quick: bool) -> Vec<Figure> {
        let handshake = super::figure::median(&self.handshake);
        let mut figures = Vec::new();
        let restarts = [("consumer", self.consumer), ("owner", self.owner)];
        for (who, [unchanged, changed]) in restarts {
            let name = format!("{who} restarted, nothing changed");
            let bare = unchanged.bytes.iter().map(|b| (b - handshake).max(0.0)).collect();
            let bare = Figure::alone(&format!("{name}: bytes without the TLS handshake"), "B", bare);
            figures.push(bare.at_most(GOAL_UNCHANGED, quick));
            figures.push(Figure::alone(&format!("{name}: bytes in all"), "B", unchanged.bytes).beside(
                FULL,
                self.full.bytes.clone(),
                true,
            ));
            figures.push(Figure::alone(&format!("{name}: until the proof"), "ms", unchanged.ms).beside(
                FULL,
                self.full.ms.clone(),
                true,
            ));
            let name = format!("{who} restarted, {CHANGED} changed");
            let bytes = Figure::alone(&format!("{name}: bytes in all"), "B", changed.bytes.clone());
            figures.push(bytes.at_most(GOAL_CHANGED, quick));
            figures.push(Figure::alone(&format!("{name}: until the proof"), "ms", changed.ms).beside(
                FULL,
                self.full.ms.clone(),
                true,
            ));
        }
        figures.push(Figure::alone("TLS handshake and goodbye", "B", self.handshake));
        figures
    }
}

/// What resuming is compared with.
const FULL: &str = "a full sync";

impl Taken {
    /// Notes a sync or resume of a consumer that was started.
    fn note(
        &mut self,
        ground: &mut Ground,
        line: &mut End,
        synced: &Synced,
        services: u32,
    ) -> anyhow::Result<()> {
        std::thread::sleep(SETTLE);
        let passed: Passed = line.ask("take")?;
        let Synced { in_force, refused, .. } = *synced;
        ground.check(in_force == services as usize && refused == 0 && passed.connections == 1, || {
            let connections = passed.connections;
            format!("{in_force} of {services} in force, {refused} refused, {connections} connections")
        });
        self.bytes.push(passed.bytes as f64);
        self.ms.push((synced.seconds + synced.proof_seconds) * 1000.0);
        Ok(())
    }

    /// Ends the old owner and notes how the consumer goes on with the new one.
    fn restarted(
        &mut self,
        ground: &mut Ground,
        line: &mut End,
        consumer: &mut End,
        old: End,
        services: u32,
    ) -> anyhow::Result<()> {
        // Before, because the consumer comes back at once; so the goodbye is counted as well.
        let _: Passed = line.ask("take")?;
        old.stop()?;
        let synced = consumer.ask("proven")?;
        self.note(ground, line, &synced, services)
    }
}
