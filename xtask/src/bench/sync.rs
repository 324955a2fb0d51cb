//! `cargo xtask bench sync`: the initial sync of a whole catalogue, as two agents do it by
//! themselves, over lines of different round trips.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{GO, Peers};
use super::syncing::{self, Cores, Plan};

/// What ours has to be better than the Go peer by.
const GOAL_GO: f64 = 10.0;
/// The most that the Go peer can hold, less a few.
const GO_SERVICES: u32 = 4_000;
/// So many are enough to see its rate over a slow line.
const GO_SERVICES_FAR: u32 = 60;
/// The largest catalogue, and the most seconds that it may take by round trip in milliseconds.
const LARGEST: u32 = 100_000;
/// See [`LARGEST`].
const GOAL_SECONDS: [(u64, f64); 2] = [(0, 2.0), (50, 10.0)];

/// Initial sync of 4,000, 10,000 and 100,000 services at a round trip of 0, 10 and 50 ms
///
/// Owner and consumer as processes of their own with a processor each, mTLS over loopback, services
/// of 480 bytes, the catalogue only; the consumer keeps them on disk. A sync counts from the first
/// dial, handshake included, until the last service is in force. Next to the Go peer all ends have
/// one processor, which is the best for one message in flight.
///
/// Examples:
///   cargo xtask bench sync
///   cargo xtask bench sync --services 100000 --rtt 50
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SyncOptions {
    /// How many services; may be repeated [default: 4000, 10000 and 100000]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=250_000))]
    pub(super) services: Vec<u32>,
    /// Round trip in milliseconds; may be repeated [default: 0, 10 and 50]
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1_000))]
    pub(super) rtt: Vec<u64>,
    #[command(flatten)]
    pub(super) run: RunOptions,
}

#[derive(Debug, Default)]
struct Taken {
    seconds: Vec<f64>,
    proof_ms: Vec<f64>,
    owner_peak: Vec<f64>,
    consumer_peak: Vec<f64>,
}

#[derive(Debug, Default)]
struct BesideGo {
    durable: Vec<f64>,
    memory: Vec<f64>,
    go: Vec<f64>,
    far: Vec<f64>,
    go_far: Vec<f64>,
}

/// Runs it.
pub(super) fn run(options: &SyncOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    let or =
        |given: &[u32], default: &[u32]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
    let sizes = or(&options.services, ground.pick(&[4_000, 20_000], &[4_000, 10_000, LARGEST]));
    let rtts = if options.rtt.is_empty() { vec![0, 10, 50] } else { options.rtt.clone() };
    let beside_go = options.services.is_empty() || sizes.contains(&GO_SERVICES);
    let peers = if beside_go { Peers::find(&mut ground, false)? } else { Peers::default() };
    write_identities(ground.folder(), 0)?;
    let mut taken: BTreeMap<(u32, u64), Taken> = BTreeMap::new();
    let (mut go, mut rtt_ms) = (BesideGo::default(), BTreeMap::<u64, Vec<f64>>::new());
    for round in 0..ground.rounds() {
        ground.settle(round, "beside the Go peer, and back; each catalogue over each line");
        if beside_go {
            go.measure(&mut ground, &peers, &rtts)?;
        }
        for rtt in rtts.iter().filter(|rtt| **rtt > 0) {
            rtt_ms.entry(*rtt).or_default().push(syncing::measured_rtt(&ground, *rtt)?);
        }
        for services in &sizes {
            for rtt in &rtts {
                if ground.is_late() {
                    continue;
                }
                let plan = Plan {
                    services: *services,
                    rtt_ms: *rtt,
                    durable: true,
                    one_in_flight: false,
                    cores: Cores::Two,
                };
                let sync = syncing::ours(&mut ground, plan)?;
                let taken = taken.entry((*services, *rtt)).or_default();
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                taken.seconds.push(sync.seconds);
                taken.proof_ms.push(sync.proof_seconds * 1000.0);
                taken.owner_peak.push(mib(sync.peaks.0));
                taken.consumer_peak.push(mib(sync.peaks.1));
            }
        }
    }
    let mut figures = go.figures(peers.has_go(), ground.quick());
    figures.extend(taken.into_iter().flat_map(|(what, taken)| taken.figures(what, ground.quick())));
    for (rtt, measured) in rtt_ms {
        figures.push(Figure::alone(&format!("round trip of the line set to {rtt} ms"), "ms", measured));
    }
    let settings = json!({"services": sizes, "rtt_ms": rtts, "service_bytes": 480});
    Ok(ground.outcome("sync", settings, figures))
}

impl BesideGo {
    fn measure(&mut self, ground: &mut Ground, peers: &Peers, rtts: &[u64]) -> anyhow::Result<()> {
        let near = |durable| Plan {
            services: GO_SERVICES,
            rtt_ms: 0,
            durable,
            one_in_flight: false,
            cores: Cores::One,
        };
        // There and back.
        for part in [0, 1, 2, 2, 1, 0] {
            match part {
                0 => self.durable.push(syncing::ours(ground, near(true))?.seconds),
                1 => self.memory.push(syncing::ours(ground, near(false))?.seconds),
                _ if peers.has_go() => self.go.push(syncing::go(ground, peers, GO_SERVICES, 0)?),
                _ => {}
            }
        }
        if let Some(far) = rtts.iter().copied().filter(|rtt| *rtt >= 50).max()
            && peers.has_go()
        {
            let ours = syncing::ours(ground, Plan { rtt_ms: far, ..near(true) })?;
            self.far.push(f64::from(GO_SERVICES) / ours.seconds);
            let go = syncing::go(ground, peers, GO_SERVICES_FAR, far)?;
            self.go_far.push(f64::from(GO_SERVICES_FAR) / go);
        }
        Ok(())
    }

    fn figures(self, with_go: bool, quick: bool) -> Vec<Figure> {
        if !with_go || self.go.is_empty() {
            return Vec::new();
        }
        let beside = |name: &str, ours| Figure::alone(name, "s", ours).beside(GO, self.go.clone(), true);
        let mut figures = vec![
            beside("4,000 services, memory, one processor", self.memory).with_goal(GOAL_GO, quick),
            beside("4,000 services, durable, one processor", self.durable).with_goal(GOAL_GO, quick),
        ];
        if !self.far.is_empty() {
            let far = Figure::alone("services a second over the slowest line, durable", "1/s", self.far);
            figures.push(far.beside(GO, self.go_far, false));
        }
        figures
    }
}

impl Taken {
    fn figures(self, (services, rtt): (u32, u64), quick: bool) -> Vec<Figure> {
        let name = format!("{services} services, durable, {rtt} ms");
        let mut time = Figure::alone(&name, "s", self.seconds);
        if let Some((_, most)) = GOAL_SECONDS.iter().find(|(r, _)| services == LARGEST && *r == rtt) {
            time = time.at_most(*most, quick);
        }
        vec![
            time,
            Figure::alone(&format!("{name}: from then to the proof"), "ms", self.proof_ms),
            Figure::alone(&format!("{name}: consumer's peak memory"), "MiB", self.consumer_peak),
            Figure::alone(&format!("{name}: owner's peak memory"), "MiB", self.owner_peak),
        ]
    }
}
