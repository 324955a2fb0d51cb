//! One initial sync: an owner, a consumer, perhaps a line between them; and the bare limits.
//! Shared by the benches `ack`, `sync` and `resume`.

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::ends::{Counted, Passed, Ready, Synced};
use super::ground::Ground;
use super::machine::Cost;
use super::peers::Peers;
use super::process::End;

/// What a durable record is called in figures.
pub(super) const DISK: &str = "fdatasync of 600 B";
/// What a ping-pong is called in figures.
pub(super) const PING: &str = "TLS ping-pong of 500 B";
/// Longest sync, in seconds.
pub(super) const DEADLINE: u64 = 240;

/// Where both ends run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    /// Both on one processor: waking another one would be the figure otherwise.
    One,
    /// One processor each.
    Two,
}

impl Cores {
    /// The owner's and the consumer's.
    pub(super) fn of(self, ground: &Ground) -> (Option<usize>, Option<usize>) {
        let measured = Some(ground.cpus.measured);
        match self {
            Cores::One => (measured, measured),
            Cores::Two => (Some(ground.cpus.load), measured),
        }
    }
}

/// What one sync took.
#[derive(Debug)]
pub(super) struct Taken {
    /// From the first dial to the last service, in seconds.
    pub(super) seconds: f64,
    /// From then to the proof, in seconds.
    pub(super) proof_seconds: f64,
    /// Processor time of both ends, in microseconds.
    pub(super) cpu_us: f64,
    /// Most memory of the owner and of the consumer, in bytes.
    pub(super) peaks: (u64, u64),
}

/// How a sync of ours is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// How many services.
    pub(super) services: u32,
    /// Round trip of the line, in milliseconds; 0 leaves the proxy out.
    pub(super) rtt_ms: u64,
    /// Whether the consumer keeps them on disk.
    pub(super) durable: bool,
    /// Whether only one message may be unanswered.
    pub(super) one_in_flight: bool,
    /// Where the ends run.
    pub(super) cores: Cores,
}

/// Our owner with `services` services.
pub(super) fn owner(ground: &Ground, cpu: Option<usize>, services: u32) -> anyhow::Result<(End, Ready)> {
    let arguments = [format!("--services={services}"), format!("--deadline={DEADLINE}")];
    let mut owner = End::start("owner", ground.folder(), cpu, &arguments)?;
    let ready = owner.line()?;
    Ok((owner, ready))
}

/// Our consumer, dialling at once.
pub(super) fn consumer(
    ground: &Ground,
    cpu: Option<usize>,
    address: std::net::SocketAddr,
    plan: Plan,
) -> anyhow::Result<End> {
    let mut arguments = vec![
        format!("--services={}", plan.services),
        format!("--address={address}"),
        format!("--deadline={DEADLINE}"),
        format!("--keep={}", if plan.durable { "durable" } else { "memory" }),
    ];
    if plan.one_in_flight {
        arguments.push("--one-in-flight".to_owned());
    }
    End::start("consumer", ground.folder(), cpu, &arguments)
}

/// A line to `target` with that round trip.
pub(super) fn line(
    ground: &Ground,
    target: std::net::SocketAddr,
    rtt_ms: u64,
) -> anyhow::Result<(End, Ready)> {
    let arguments = [
        format!("--address={target}"),
        format!("--delay-us={}", rtt_ms * 500),
        format!("--deadline={DEADLINE}"),
    ];
    let mut proxy = End::start("proxy", ground.folder(), None, &arguments)?;
    let ready = proxy.line()?;
    Ok((proxy, ready))
}

/// One sync of ours from nothing.
pub(super) fn ours(ground: &mut Ground, plan: Plan) -> anyhow::Result<Taken> {
    forget(ground)?;
    let (owner_cpu, consumer_cpu) = plan.cores.of(ground);
    let (owner, ready) = owner(ground, owner_cpu, plan.services)?;
    let before = Cost::of(owner.pid()).cpu_us;
    let (mut address, mut proxy) = (ready.address, None);
    if plan.rtt_ms > 0 {
        let (end, ready) = line(ground, address, plan.rtt_ms)?;
        (address, proxy) = (ready.address, Some(end));
    }
    let mut consumer = consumer(ground, consumer_cpu, address, plan)?;
    let synced: Synced = consumer.line()?;
    let owner_cost = Cost::of(owner.pid());
    consumer.stop()?;
    owner.stop()?;
    proxy.map(End::stop).transpose()?;
    forget(ground)?;
    let Synced { in_force, refused, .. } = synced;
    ground.check(in_force == plan.services as usize && refused == 0, || {
        format!("{in_force} of {} services in force, {refused} refused", plan.services)
    });
    ensure!(synced.seconds > 0.0, "a sync took no time at all");
    let cpu = owner_cost.cpu_us.saturating_sub(before) + (synced.after.cpu_us - synced.before.cpu_us);
    Ok(Taken {
        seconds: synced.seconds,
        proof_seconds: synced.proof_seconds,
        cpu_us: cpu as f64,
        peaks: (owner_cost.peak, synced.after.peak),
    })
}

/// Removes what a consumer keeps.
pub(super) fn forget(ground: &Ground) -> anyhow::Result<()> {
    let data = ground.folder().join("data");
    if data.exists() {
        std::fs::remove_dir_all(&data).context("can't remove the consumer's data")?;
    }
    Ok(())
}

/// What the Go consumer says.
#[derive(Debug, Deserialize)]
struct GoSynced {
    seconds: f64,
    in_force: u32,
}

/// One sync of the Go peer, both of its ends on one processor; seconds.
pub(super) fn go(ground: &mut Ground, peers: &Peers, services: u32, rtt_ms: u64) -> anyhow::Result<f64> {
    let (cpu, _) = Cores::One.of(ground);
    let count = format!("--services={services}");
    let mut owner = peers.go_end("owner", ground.folder(), cpu, std::slice::from_ref(&count))?;
    let Ready { mut address, .. } = owner.line()?;
    let mut proxy = None;
    if rtt_ms > 0 {
        let (end, ready) = line(ground, address, rtt_ms)?;
        (address, proxy) = (ready.address, Some(end));
    }
    let arguments = [count, format!("--address={address}")];
    let mut consumer = peers.go_end("consumer", ground.folder(), cpu, &arguments)?;
    let GoSynced { seconds, in_force } = consumer.line()?;
    ground.check(in_force == services, || format!("the Go peer: {in_force} of {services} services"));
    consumer.stop()?;
    owner.stop()?;
    proxy.map(End::stop).transpose()?;
    Ok(seconds)
}

/// Pings a second over our TLS, both ends on one processor, and the processor time of one.
pub(super) fn ping(ground: &Ground, millis: u64) -> anyhow::Result<(f64, f64)> {
    let (cpu, _) = Cores::One.of(ground);
    let mut pong = End::start("pong", ground.folder(), cpu, &[])?;
    let Ready { address, .. } = pong.line()?;
    let arguments = [format!("--address={address}"), format!("--millis={millis}")];
    let ping: Counted = End::start("ping", ground.folder(), cpu, &arguments)?.line()?;
    let pong: Counted = pong.finish()?;
    let each = |c: &Counted| c.cpu_us as f64 / c.count.max(1) as f64;
    Ok((ping.count as f64 / ping.seconds, each(&ping) + each(&pong)))
}

/// Round trip over a line that should have `rtt_ms`, in milliseconds, as pings see it.
pub(super) fn measured_rtt(ground: &Ground, rtt_ms: u64) -> anyhow::Result<f64> {
    let mut pong = End::start("pong", ground.folder(), None, &[])?;
    let Ready { address, .. } = pong.line()?;
    let (proxy, ready) = line(ground, address, rtt_ms)?;
    let arguments = [format!("--address={}", ready.address), "--millis=500".into(), "--delay-us=1".into()];
    let ping: Counted = End::start("ping", ground.folder(), None, &arguments)?.line()?;
    let _: Counted = pong.finish()?;
    proxy.stop()?;
    Ok(ping.seconds * 1000.0 / ping.count.max(1) as f64)
}

/// Bytes of a TLS handshake and goodbye between the two meshes, both ways.
pub(super) fn handshake_bytes(ground: &Ground) -> anyhow::Result<u64> {
    let mut pong = End::start("pong", ground.folder(), None, &[])?;
    let Ready { address, .. } = pong.line()?;
    let (mut proxy, ready) = line(ground, address, 0)?;
    let arguments = [format!("--address={}", ready.address), "--millis=0".to_owned()];
    let mut ping = End::start("ping", ground.folder(), None, &arguments)?;
    let _: Counted = ping.line()?;
    ping.stop()?;
    let _: Counted = pong.finish()?;
    let passed: Passed = proxy.ask("take")?;
    proxy.stop()?;
    Ok(passed.bytes)
}

/// Records of 600 bytes made durable a second.
pub(super) fn disk(ground: &Ground, millis: u64) -> anyhow::Result<f64> {
    let (cpu, _) = Cores::One.of(ground);
    let counted: Counted =
        End::start("disk", ground.folder(), cpu, &[format!("--millis={millis}")])?.line()?;
    Ok(counted.count as f64 / counted.seconds)
}
