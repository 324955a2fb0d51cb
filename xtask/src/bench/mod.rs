//! The benches. Each compares with a peer or a physical limit in the same run, writes its raw
//! samples, and ends with `N passed, N failed`. A ratio counts; an absolute time is context.

mod agent;
mod ends;
mod figure;
mod machine;
mod process;
mod sync;

use clap::Subcommand;

pub(crate) use ends::EndOptions;

/// Measure, next to a limit or a peer in the same run
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Sync(sync::SyncOptions),
}

/// Runs a bench.
pub(crate) fn run(bench: Bench) -> anyhow::Result<bool> {
    match bench {
        Bench::Sync(options) => sync::run(&options),
    }
}

/// Runs one end of a bench, in the process that the bench made for it.
pub(crate) fn run_end(options: &EndOptions) -> anyhow::Result<()> {
    ends::run(options)
}
