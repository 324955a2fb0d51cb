//! `cargo xtask`: the project's own errands. Tidy checks, generated docs, benches, chaos, fuzzing,
//! hardship and attacks.
//!
//! Nothing here ships. Every errand that judges ends with one line `N passed, N failed`, and fails
//! when anything failed.

mod attacks;
mod bench;
mod chaos;
mod docs;
mod fuzz;
mod hardship;
mod report;
mod scratch;
mod tidy;
mod tree;

use std::alloc::System;
use std::process::ExitCode;

use cap::Cap;
use clap::{Parser, Subcommand};

/// Counts the bytes on the heap, for the benches; it limits nothing.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes on the heap now.
pub(crate) fn heap_bytes() -> u64 {
    HEAP.allocated() as u64
}

/// Errands of the Hamlet project: checks, generated documentation, measurements, chaos, fuzzing
///
/// Examples:
///   cargo xtask tidy
///   cargo xtask docs --check
///   cargo xtask bench sync --services 10000 --json sync.json
///   cargo xtask chaos --kills 200 --seed 7
///   cargo xtask fuzz all --seconds 10
///   cargo xtask hardship --seeds 5000
///   cargo xtask attacks --seconds 60
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    errand: Errand,
}

#[derive(Debug, Subcommand)]
enum Errand {
    Tidy(tidy::TidyOptions),
    Docs(docs::DocsOptions),
    #[command(subcommand)]
    Bench(bench::Bench),
    Chaos(chaos::ChaosOptions),
    Fuzz(fuzz::FuzzOptions),
    Attacks(attacks::AttackOptions),
    Hardship(hardship::HardshipOptions),
    /// One end of a bench, as a process of its own
    #[command(hide = true)]
    BenchEnd(bench::EndOptions),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().errand {
        Errand::Tidy(options) => tidy::run(&options),
        Errand::Docs(options) => docs::run(&options),
        Errand::Bench(bench) => bench::run(&bench),
        Errand::Chaos(options) => chaos::run(&options),
        Errand::Fuzz(options) => fuzz::run(&options),
        Errand::Attacks(options) => attacks::run(&options),
        Errand::Hardship(options) => hardship::run(&options),
        Errand::BenchEnd(options) => bench::run_end(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::complain(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
