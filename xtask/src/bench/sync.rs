//! `cargo xtask bench sync`: the initial sync of many services, one message in flight, next to what
//! the machine can do at best: a bare ping-pong over the same TLS, and the disk's fdatasync.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use hamlet_runtime::{Clock, SystemClock};
use serde::Serialize;

use super::agent::write_identities;
use super::ends::{Counted, Ready, Synced};
use super::figure::{Figure, HEADINGS};
use super::machine::{Machine, Ticks, last_cpu, quiet};
use super::process::End;
use crate::report::{Table, Tally, say};
use crate::scratch::Scratch;
use crate::tree;

/// Rounds of a full run; each measures everything twice, there and back again (ABBA).
const ROUNDS: usize = 5;
/// A quick run doesn't measure the way back after this, so that it ends within a minute.
const QUICK_BUDGET: Duration = Duration::from_secs(15);
/// Longest sync of a quick run, in seconds: the slower one with a disk comes first.
const QUICK_DEADLINE: u64 = 40;
/// Longest sync of a full run, in seconds.
const DEADLINE: u64 = 200;
/// What the lower bound of a share has to reach: half of what the machine can do at best.
const GOAL: f64 = 0.5;
/// The two limits.
const DISK: &str = "fdatasync of 600 B appended";
/// See [`DISK`].
const PING: &str = "TLS ping-pong of 500 B";

/// Where the processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cores {
    /// Both ends, and those of the ping-pong, on one processor: wake-ups between processors would
    /// be the figure otherwise.
    One,
    /// Wherever the system puts them, with as many threads as an agent has.
    All,
}

/// Initial sync, one message in flight, next to the limits of disk and TLS
///
/// An owner and a consumer as processes of their own, mTLS over loopback, services of 480 bytes.
/// The consumer keeps each durably before it acknowledges it; the same without a disk; a bare
/// ping-pong over the same TLS configurations; appends of 600 bytes with fdatasync on the same
/// disk. All in turn, there and back again.
///
/// Examples:
///   cargo xtask bench sync
///   cargo xtask bench sync --services 1000 --quick
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SyncOptions {
    /// How many services
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    services: u32,
    /// A look within a minute; says of no figure that it is met
    #[arg(long)]
    quick: bool,
    /// Also write figures and raw samples to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where both ends run
    #[arg(long, value_enum, default_value_t = Cores::One)]
    cores: Cores,
    /// A folder on the disk to measure [default: cargo's target folder]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
enum Part {
    Disk,
    Ping,
    Durable,
    Memory,
}

/// One round's order; the second half is the first, backwards.
const ABBA: [Part; 8] = [
    Part::Disk,
    Part::Ping,
    Part::Durable,
    Part::Memory,
    Part::Memory,
    Part::Durable,
    Part::Ping,
    Part::Disk,
];

/// All samples, in the order they were taken.
#[derive(Debug, Default)]
struct Taken {
    disk: Vec<f64>,
    ping: Vec<f64>,
    ping_cpu: Vec<f64>,
    durable: Vec<f64>,
    memory: Vec<f64>,
    memory_cpu: Vec<f64>,
    proof_ms: Vec<f64>,
    rss_mib: Vec<f64>,
    rss_each: Vec<f64>,
    service_bytes: usize,
    /// Syncs that were not complete, in words.
    incomplete: Vec<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    bench: &'static str,
    services: u32,
    service_bytes: usize,
    quick: bool,
    cores: &'static str,
    machine: &'a Machine,
    figures: &'a [Figure],
}

/// Runs it.
pub(crate) fn run(options: &SyncOptions) -> anyhow::Result<bool> {
    let above = match &options.folder {
        Some(folder) => folder.clone(),
        None => tree::workspace()?.target_directory,
    };
    std::fs::create_dir_all(&above)?;
    let folder = Scratch::new(&above, "bench-sync-")?;
    write_identities(folder.path())?;
    let cpu = match options.cores {
        Cores::One => last_cpu(),
        Cores::All => None,
    };
    let clock = SystemClock::new();
    let before = Ticks::now();
    let mut taken = Taken::default();
    let mut busy = 0;
    for round in 0..if options.quick { 1 } else { ROUNDS } {
        let (look, tries) = if options.quick { (300, 1) } else { (2_000, 5) };
        busy += usize::from(!quiet(Duration::from_millis(look), tries));
        say(&format!("round {}: disk, ping-pong, durable, memory, and back", round + 1));
        for (i, part) in ABBA.into_iter().enumerate() {
            // A quick run measures the way back only if it is sure to end in time.
            if !(options.quick && i >= ABBA.len() / 2 && clock.now() > QUICK_BUDGET) {
                taken.measure(part, folder.path(), cpu, options)?;
            }
        }
    }
    let machine = Machine::describe(Ticks::now().since(before), busy);
    finish(options, taken, &machine)
}

impl Taken {
    fn measure(
        &mut self,
        part: Part,
        folder: &Path,
        cpu: Option<usize>,
        options: &SyncOptions,
    ) -> anyhow::Result<()> {
        let millis = if options.quick { 500 } else { 2_000 };
        match part {
            Part::Disk => {
                let mut end = End::start("disk", folder, cpu, &[format!("--millis={millis}")])?;
                let counted: Counted = end.line()?;
                self.disk.push(counted.count as f64 / counted.seconds);
            }
            Part::Ping => {
                let mut pong = End::start("pong", folder, cpu, &[])?;
                let Ready { address, .. } = pong.line()?;
                let arguments = [format!("--address={address}"), format!("--millis={millis}")];
                let ping: Counted = End::start("ping", folder, cpu, &arguments)?.line()?;
                let pong: Counted = pong.finish()?;
                self.ping.push(ping.count as f64 / ping.seconds);
                let each = |c: &Counted| c.cpu_us as f64 / c.count.max(1) as f64;
                self.ping_cpu.push(each(&ping) + each(&pong));
            }
            Part::Durable => self.sync(true, folder, cpu, options)?,
            Part::Memory => self.sync(false, folder, cpu, options)?,
        }
        Ok(())
    }

    fn sync(
        &mut self,
        durable: bool,
        folder: &Path,
        cpu: Option<usize>,
        options: &SyncOptions,
    ) -> anyhow::Result<()> {
        let services = options.services;
        let count = format!("--services={services}");
        let deadline = format!("--deadline={}", if options.quick { QUICK_DEADLINE } else { DEADLINE });
        let mut owner = End::start("owner", folder, cpu, &[count.clone(), deadline.clone()])?;
        let Ready { address, service_bytes } = owner.line()?;
        let keep = if durable { "--keep=durable" } else { "--keep=memory" };
        let arguments = [format!("--address={address}"), count, deadline, keep.to_owned()];
        let synced: Synced = End::start("consumer", folder, cpu, &arguments)?.line()?;
        let owner: Counted = owner.finish()?;
        let data = folder.join("data");
        if data.exists() {
            std::fs::remove_dir_all(&data).context("can't remove the consumer's data")?;
        }
        self.service_bytes = service_bytes;
        let each = f64::from(services);
        if synced.in_force != services as usize || synced.refused != 0 {
            self.incomplete.push(format!(
                "{} of {services} services in force, {} refused",
                synced.in_force, synced.refused
            ));
        }
        ensure!(synced.seconds > 0.0, "a sync took no time at all");
        let rate = each / synced.seconds;
        if durable {
            self.durable.push(rate);
            self.proof_ms.push(synced.proof_seconds * 1000.0);
            self.rss_mib.push(synced.after.rss as f64 / f64::from(1 << 20));
            self.rss_each.push(synced.after.rss.saturating_sub(synced.before.rss) as f64 / each);
        } else {
            self.memory.push(rate);
            let consumer = synced.after.cpu_us.saturating_sub(synced.before.cpu_us);
            self.memory_cpu.push((consumer + owner.cpu_us) as f64 / each);
        }
        Ok(())
    }

    fn figures(self, quick: bool) -> Vec<Figure> {
        let rate = "messages/s";
        vec![
            Figure::alone("sync, durable, one in flight", rate, self.durable.clone())
                .beside(DISK, self.disk, false)
                .with_goal(GOAL, quick),
            Figure::alone("sync, durable, one in flight", rate, self.durable).beside(
                PING,
                self.ping.clone(),
                false,
            ),
            Figure::alone("sync, memory, one in flight", rate, self.memory)
                .beside(PING, self.ping, false)
                .with_goal(GOAL, quick),
            Figure::alone("CPU of both ends a message, memory", "us", self.memory_cpu).beside(
                PING,
                self.ping_cpu,
                true,
            ),
            Figure::alone("last service to proof", "ms", self.proof_ms),
            Figure::alone("consumer's memory after it", "MiB", self.rss_mib),
            Figure::alone("consumer's memory a service", "B", self.rss_each),
        ]
    }
}

fn finish(options: &SyncOptions, taken: Taken, machine: &Machine) -> anyhow::Result<bool> {
    let service_bytes = taken.service_bytes;
    let mut tally = Tally::default();
    let syncs = taken.durable.len() + taken.memory.len();
    let (complete, incomplete) = (taken.incomplete.is_empty(), taken.incomplete.join("; "));
    let figures = taken.figures(options.quick);
    say(&machine.line());
    say(&format!("{} services of {service_bytes} B; {syncs} syncs; medians", options.services));
    let mut table = Table::new(&HEADINGS);
    figures.iter().for_each(|f| table.row(f.cells()));
    table.print();
    if let Some(file) = &options.json {
        let cores = match options.cores {
            Cores::One => "one",
            Cores::All => "all",
        };
        let report = Report {
            bench: "sync",
            services: options.services,
            service_bytes,
            quick: options.quick,
            cores,
            machine,
            figures: &figures,
        };
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
    }
    tally.check(complete && syncs > 0, &format!("every sync is complete: {incomplete}"));
    for figure in figures.iter().filter(|f| f.met.is_some()) {
        let peer = figure.peer.unwrap_or_default();
        tally
            .check(figure.met == Some(true), &format!("{}: its share of {peer} meets the goal", figure.name));
    }
    Ok(tally.finish())
}
