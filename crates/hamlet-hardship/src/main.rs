//! The command behind `cargo xtask hardship`; the bugs are seeded into this program and no other.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use hamlet_core::seeded::SeededBug;
use hamlet_hardship::{Campaign, Tally, run_seed};

/// Seeds of a campaign, unless told otherwise.
const SEEDS: u64 = 5_000;
/// Most failing seeds that are listed.
const LISTED: usize = 20;
/// Last events of the first failing seed that are printed.
const LAST_EVENTS: usize = 60;

/// Plays seeds of the hardship simulation
#[derive(Debug, Parser)]
struct Options {
    /// How many seeds [default: 5000; with --seed alone, that one with every event]
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// A seeded bug by name, `all`, or `none`
    #[arg(long)]
    mutant: Option<String>,
    /// Over how many threads [default: one for each processor]
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let alone = options.seed.filter(|_| options.seeds.is_none());
    let good = match (options.mutant.as_deref(), alone) {
        (Some("all"), _) => hunt(&options, SeededBug::ALL)?,
        (Some("none") | None, Some(seed)) => replay(seed, None, usize::MAX)?,
        (Some("none") | None, None) => campaign(&options)?,
        (Some(name), seed) => {
            let known = SeededBug::ALL.iter().map(|b| b.name()).collect::<Vec<_>>().join(", ");
            let bug = SeededBug::ALL.iter().find(|b| b.name() == name);
            let bug = bug.ok_or_else(|| anyhow!("no seeded bug is named {name}; there are {known}"))?;
            match seed {
                Some(seed) => replay(seed, Some(*bug), usize::MAX)?,
                None => hunt(&options, &[*bug])?,
            }
        }
    };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn campaign_of(options: &Options) -> Campaign {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    Campaign {
        first: options.seed.unwrap_or(0),
        seeds: options.seeds.unwrap_or(SEEDS),
        threads: options.threads.unwrap_or_else(all),
    }
}

/// One seed with its last events.
fn replay(seed: u64, bug: Option<SeededBug>, events: usize) -> anyhow::Result<bool> {
    let outcome = run_seed(seed, bug, true)?;
    let from = outcome.log.len().saturating_sub(events);
    outcome.log.iter().skip(from).for_each(|line| println!("{line}"));
    let seconds = outcome.lived.as_secs_f64();
    println!("\nseed {seed}: {seconds:.1} simulated seconds, story {:016x}", outcome.story);
    if let Some(violation) = &outcome.violation {
        println!("broken: {violation}");
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
    for (seed, violation) in report.failed.iter().take(LISTED) {
        println!("seed {seed}: {violation}\n  again: cargo xtask hardship --seed {seed}");
    }
    if let Some((seed, _)) = report.failed.first() {
        println!("\nThe last events of seed {seed}:");
        replay(*seed, None, LAST_EVENTS)?;
    }
    println!("{} passed, {} failed", report.passed, report.failed.len());
    Ok(report.failed.is_empty())
}

fn hunt(options: &Options, bugs: &[SeededBug]) -> anyhow::Result<bool> {
    let campaign = campaign_of(options);
    println!("{:<26} {:>8}  {:<8} what was seen", "seeded bug", "seeds", "broken");
    let mut found = 0;
    for bug in bugs {
        let report = campaign.hunt(*bug)?;
        match report.found {
            Some((nth, violation)) => {
                found += 1;
                println!("{:<26} {nth:>8}  {:<8} {}", bug.name(), violation.invariant, violation.what);
            }
            None => println!("{:<26} {:>8}  not found", bug.name(), campaign.seeds),
        }
    }
    println!("{found} passed, {} failed", bugs.len() - found);
    Ok(found == bugs.len())
}
