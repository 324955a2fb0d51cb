//! The command behind `cargo xtask hardship`; the bugs are seeded into this program and no other.

use std::process::ExitCode;

use clap::Parser;
use hamlet_core::seeded::SeededBug;
use hamlet_hardship::{Campaign, Tally, run_seed};

/// Plays seeds of the hardship simulation
#[derive(Debug, Parser)]
struct Options {
    /// How many seeds
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// Plays this one seed and prints every event; with `--seeds`, the first of them
    #[arg(long)]
    seed: Option<u64>,
    /// A seeded bug by name, `all`, or `none`
    #[arg(long)]
    mutant: Option<String>,
    /// Over how many threads
    #[arg(long)]
    threads: Option<usize>,
    /// Prints every event of the single seed
    #[arg(long)]
    log: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let good = match options.mutant.as_deref() {
        Some("all") => hunt(&options, SeededBug::ALL)?,
        Some("none") | None if options.log => replay(&options, None)?,
        Some("none") | None => campaign(&options)?,
        Some(name) => {
            let bug = SeededBug::ALL.iter().find(|b| b.name() == name);
            let known = SeededBug::ALL.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
            let bug = bug.ok_or_else(|| anyhow::anyhow!("no seeded bug is named {name}; there are {known}"))?;
            if options.log { replay(&options, Some(*bug))? } else { hunt(&options, &[*bug])? }
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn campaign_of(options: &Options) -> Campaign {
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    Campaign { first: options.seed.unwrap_or(0), seeds: options.seeds, threads }
}

/// One seed with every event.
fn replay(options: &Options, bug: Option<SeededBug>) -> anyhow::Result<bool> {
    let seed = options.seed.unwrap_or(0);
    let outcome = run_seed(seed, bug, true)?;
    outcome.log.iter().for_each(|line| println!("{line}"));
    println!("\nseed {seed}: {:.1} simulated seconds, story {:016x}", outcome.lived.as_secs_f64(), outcome.story);
    if let Some(violation) = &outcome.violation {
        println!("BROKEN {violation}");
    }
    let good = outcome.violation.is_none();
    println!("{} passed, {} failed", u8::from(good), u8::from(!good));
    Ok(good)
}

fn print_tally(tally: &Tally, seeds: u64) {
    println!("\n{:<36} {:>12} {:>14}", "what happened", "in all", "in 1,000 seeds");
    for (what, many) in tally.iter() {
        println!("{what:<36} {many:>12} {:>14}", many * 1_000 / seeds.max(1));
    }
}

fn campaign(options: &Options) -> anyhow::Result<bool> {
    let campaign = campaign_of(options);
    let report = campaign.run()?;
    print_tally(&report.tally, campaign.seeds);
    let days = report.lived.as_secs_f64() / 86_400.0;
    println!("\n{} seeds from {}, {days:.1} simulated days", campaign.seeds, campaign.first);
    for (seed, violation) in report.failed.iter().take(20) {
        println!("seed {seed}: {violation}\n  again: cargo xtask hardship --seed {seed} --log");
    }
    println!("{} passed, {} failed", report.passed, report.failed.len());
    Ok(report.failed.is_empty())
}

fn hunt(options: &Options, bugs: &[SeededBug]) -> anyhow::Result<bool> {
    let campaign = campaign_of(options);
    println!("{:<26} {:>8}  {:<8} {}", "seeded bug", "seeds", "breaks", "what was seen");
    let mut found = 0;
    for bug in bugs {
        let report = campaign.hunt(*bug)?;
        match report.found {
            Some((nth, violation)) => {
                found += 1;
                println!("{:<26} {nth:>8}  {:<8} {}", bug.name(), violation.invariant, violation.what);
            }
            None => println!("{:<26} {:>8}  NOT FOUND ({} expected)", bug.name(), campaign.seeds, bug.breaks()),
        }
    }
    println!("{found} passed, {} failed", bugs.len() - found);
    Ok(found == bugs.len())
}
