//! `cargo xtask hardship`: builds the simulation as a program of its own and runs it. It isn't
//! linked here: it switches in the seeded bugs, and cargo would give them to whatever is built
//! beside it.

use std::process::Command;

use anyhow::Context;
use clap::Args;

use crate::tree;

/// Plays seeds of the hardship simulation, and hunts the seeded bugs
///
/// Meshes with the real sessions, stores and policies in a world where links, disks, clocks and
/// processes fail, judged by a model after every step. Prints what happened for each 1,000 seeds,
/// and of a failing seed its last events; the same seed tells the same story.
///
/// Examples:
///   cargo xtask hardship --seeds 5000
///   cargo xtask hardship --seed 1234
///   cargo xtask hardship --mutant all --seeds 2000
///   cargo xtask hardship --mutant never-sweep --seed 2
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct HardshipOptions {
    /// How many seeds [default: 5000; with --seed alone, that one with every event]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// A seeded bug by name, `all`, or `none`: how many seeds it takes to find it
    #[arg(long)]
    mutant: Option<String>,
    /// Over how many threads [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

/// Runs it.
pub(crate) fn run(options: &HardshipOptions) -> anyhow::Result<bool> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--release", "--quiet", "--package", "hamlet-hardship", "--"]);
    let numbers =
        [("--seeds", options.seeds), ("--seed", options.seed), ("--threads", options.threads.map(u64::from))];
    for (flag, value) in numbers {
        if let Some(value) = value {
            command.args([flag.to_owned(), value.to_string()]);
        }
    }
    if let Some(mutant) = &options.mutant {
        command.args(["--mutant", mutant]);
    }
    let status = command.current_dir(tree::root()).status().context("cargo doesn't start; is it in PATH?")?;
    Ok(status.success())
}
