//! The benches. Each compares with a peer or a physical limit in the same run, writes its raw
//! samples, and ends with `N passed, N failed`. A ratio counts; an absolute time is context.

mod ack;
mod agent;
mod all;
mod ends;
mod fanout;
mod figure;
mod flood;
mod ground;
mod idle;
mod lean;
mod machine;
mod peers;
mod process;
mod resume;
mod slow_neighbour;
mod sync;
mod syncing;

use clap::Subcommand;

pub(crate) use ends::EndOptions;

/// Measure, next to a limit or a peer in the same run
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Ack(ack::AckOptions),
    Sync(sync::SyncOptions),
    Resume(resume::ResumeOptions),
    Fanout(fanout::FanoutOptions),
    SlowNeighbour(slow_neighbour::SlowNeighbourOptions),
    Idle(idle::IdleOptions),
    Flood(flood::FloodOptions),
    All(all::AllOptions),
}

/// Runs a bench.
pub(crate) fn run(bench: &Bench) -> anyhow::Result<bool> {
    let (outcome, run) = match bench {
        Bench::Ack(options) => (ack::run(options)?, &options.run),
        Bench::Sync(options) => (sync::run(options)?, &options.run),
        Bench::Resume(options) => (resume::run(options)?, &options.run),
        Bench::Fanout(options) => (fanout::run(options)?, &options.run),
        Bench::SlowNeighbour(options) => (slow_neighbour::run(options)?, &options.run),
        Bench::Idle(options) => (idle::run(options)?, &options.run),
        Bench::Flood(options) => (flood::run(options)?, &options.run),
        Bench::All(options) => return all::run(options),
    };
    outcome.finish(run.json.as_deref())
}

/// Runs one end of a bench, in the process that the bench made for it.
pub(crate) fn run_end(options: &EndOptions) -> anyhow::Result<()> {
    ends::run(options)
}
