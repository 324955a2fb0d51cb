//! `cargo xtask bench ack`: one message in flight, acknowledged when it is admitted and visible,
//! next to the Go peer, a bare ping-pong over the same TLS, and the disk's fdatasync.

use clap::Args;
use serde_json::json;

use super::agent::write_identities;
use super::figure::Figure;
use super::ground::{Ground, Outcome, RunOptions};
use super::peers::{GO, Peers};
use super::syncing::{self, Cores, DISK, PING, Plan};

/// What ours has to be better than the Go peer by.
const GOAL_GO: f64 = 3.0;
/// What share of the disk's limit a durable acknowledgement has to reach.
const GOAL_DISK: f64 = 0.8;
/// The most that the Go peer can hold, less a few.
const SERVICES: u32 = 4_000;

/// One message in flight: ours, the Go peer, and the limits of TLS and disk
///
/// The initial state of 4,000 services of 480 bytes over v1alpha1, which has one unanswered message,
/// all ends on one processor. A message counts when the service is admitted and visible; durable ones when they
/// are on disk as well. The limits: 500 bytes there and back over the same TLS, and records of
/// 600 bytes written into a file of their size and made durable by fdatasync.
///
/// Examples:
///   cargo xtask bench ack
///   cargo xtask bench ack --quick --without-go
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AckOptions {
    #[command(flatten)]
    pub(super) run: RunOptions,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
enum Part {
    Disk,
    Ping,
    Durable,
    Memory,
    Go,
}

/// One round's order; after it comes the same backwards.
const ORDER: [Part; 5] = [Part::Disk, Part::Durable, Part::Ping, Part::Memory, Part::Go];

#[derive(Debug, Default)]
struct Taken {
    disk: Vec<f64>,
    ping: Vec<f64>,
    ping_cpu: Vec<f64>,
    durable: Vec<f64>,
    memory: Vec<f64>,
    memory_cpu: Vec<f64>,
    go: Vec<f64>,
}

/// Runs it.
pub(super) fn run(options: &AckOptions) -> anyhow::Result<Outcome> {
    let mut ground = Ground::new(&options.run)?;
    let peers = Peers::find(&mut ground, false)?;
    write_identities(ground.folder(), 0)?;
    let mut taken = Taken::default();
    let services = ground.pick(2_000, SERVICES);
    for round in 0..ground.rounds() {
        ground.settle(round, "disk, durable, ping-pong, memory, the Go peer, and back");
        for part in ORDER.into_iter().chain(ORDER.into_iter().rev()) {
            if !ground.is_late() {
                taken.measure(part, &mut ground, &peers, services)?;
            }
        }
    }
    let (quick, rate) = (ground.quick(), "messages/s");
    let mut figures = Vec::new();
    let memory = || Figure::alone("one in flight, memory", rate, taken.memory.clone());
    let durable = || Figure::alone("one in flight, durable", rate, taken.durable.clone());
    if peers.has_go() {
        figures.push(memory().beside(GO, taken.go.clone(), false).with_goal(GOAL_GO, quick));
    }
    figures.push(durable().beside(DISK, taken.disk.clone(), false).with_goal(GOAL_DISK, quick));
    figures.push(memory().beside(PING, taken.ping.clone(), false));
    if peers.has_go() {
        figures.push(durable().beside(GO, taken.go.clone(), false));
    }
    let cpu = Figure::alone("CPU of both ends a message, memory", "us", taken.memory_cpu.clone());
    figures.push(cpu.beside(PING, taken.ping_cpu.clone(), true));
    let settings = json!({"services": services, "service_bytes": 480, "cores": "one for all ends"});
    Ok(ground.outcome("ack", settings, figures))
}

impl Taken {
    fn measure(
        &mut self,
        part: Part,
        ground: &mut Ground,
        peers: &Peers,
        services: u32,
    ) -> anyhow::Result<()> {
        let millis = ground.pick(500, 2_000);
        let plan = |durable| Plan { services, rtt_ms: 0, durable, one_in_flight: true, cores: Cores::One };
        let each = f64::from(services);
        match part {
            Part::Disk => self.disk.push(syncing::disk(ground, millis)?),
            Part::Ping => {
                let (rate, cpu) = syncing::ping(ground, millis)?;
                self.ping.push(rate);
                self.ping_cpu.push(cpu);
            }
            Part::Durable => self.durable.push(each / syncing::ours(ground, plan(true))?.seconds),
            Part::Memory => {
                let taken = syncing::ours(ground, plan(false))?;
                self.memory.push(each / taken.seconds);
                self.memory_cpu.push(taken.cpu_us / each);
            }
            Part::Go if peers.has_go() => {
                self.go.push(each / syncing::go(ground, peers, services, 0)?);
            }
            Part::Go => {}
        }
        Ok(())
    }
}
