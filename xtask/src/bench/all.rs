//! `cargo xtask bench all`: every bench, one JSON file, and the page of figures in the
//! documentation.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::figure::{Figure, GoalIs, human};
use super::ground::{Outcome, RunOptions, write_json};
use super::{ack, fanout, flood, idle, resume, slow_neighbour, sync};
use crate::report::{Tally, say};
use crate::tree;

/// The page that a full run writes.
const PAGE: &str = "docs/reference/benchmarks.md";

/// Every bench, and the page of figures
///
/// A full run takes about half an hour and writes docs/reference/benchmarks.md; it should have the
/// machine for itself. With --quick each bench has a look within a minute, and no page is written.
///
/// Examples:
///   cargo xtask bench all --json bench/results/all.json
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AllOptions {
    #[command(flatten)]
    run: RunOptions,
    /// Write the page here instead
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    benches: &'a [Outcome],
}

/// Runs them all.
pub(super) fn run(options: &AllOptions) -> anyhow::Result<bool> {
    let run = &options.run;
    let mut outcomes = Vec::new();
    type Start = Box<dyn Fn() -> anyhow::Result<Outcome>>;
    let [a, b, c, d, e, f, g] = std::array::from_fn(|_| run.clone());
    let benches: [(&str, Start); 7] = [
        ("ack", Box::new(move || ack::run(&ack::AckOptions { run: a.clone() }))),
        (
            "sync",
            Box::new(move || sync::run(&sync::SyncOptions { services: vec![], rtt: vec![], run: b.clone() })),
        ),
        ("resume", Box::new(move || resume::run(&resume::ResumeOptions { run: c.clone() }))),
        ("fanout", Box::new(move || fanout::run(&fanout::FanoutOptions { run: d.clone() }))),
        (
            "slow-neighbour",
            Box::new(move || slow_neighbour::run(&slow_neighbour::SlowNeighbourOptions { run: e.clone() })),
        ),
        ("idle", Box::new(move || idle::run(&idle::IdleOptions { run: f.clone() }))),
        ("flood", Box::new(move || flood::run(&flood::FloodOptions { run: g.clone() }))),
    ];
    let mut tally = Tally::default();
    for (name, bench) in benches {
        say(&format!("=== {name}"));
        // One that can't run is a failure of that one, and the others still count.
        match bench() {
            Ok(outcome) => {
                outcome.print();
                outcome.count(&mut tally);
                outcomes.push(outcome);
            }
            Err(error) => tally.check(false, &format!("{name}: {error:#}")),
        }
        if let Some(file) = &run.json {
            write_json(file, &Report { benches: &outcomes })?;
        }
    }
    if !run.quick {
        let page = options.page.clone().unwrap_or_else(|| tree::root().join(PAGE));
        std::fs::write(&page, render(&outcomes))
            .with_context(|| format!("can't write {}", page.display()))?;
        say(&format!("wrote {}", page.display()));
    }
    Ok(tally.finish())
}

/// The page, in Markdown.
fn render(outcomes: &[Outcome]) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench all`; what each bench does and compares is in\n\
         [bench/README.md](../../bench/README.md). Values are medians of all samples, \"up to\" is the upper end of\n\
         their 95 % interval, \"at least\" the lower end of the ratio's (bootstrap). A ratio above 1 is in our favour.\n\
         A figure is met if that end of its interval reaches the goal. Ratios count; times are of this machine\n\
         and day.\n",
    );
    for outcome in outcomes {
        let _ = write!(page, "\n## `{}`\n\n{}\n\n", outcome.bench, outcome.machine.line());
        let peers = outcome.machine.peers();
        if !peers.is_empty() {
            let _ = write!(page, "Compared with: {}.\n\n", peers.join("; "));
        }
        page.push_str("| figure | ours | up to | next to | its | ratio | at least | goal | |\n");
        page.push_str("|---|---:|---:|---|---:|---:|---:|---:|---|\n");
        for figure in &outcome.figures {
            page.push_str(&row(figure));
        }
        let _ = writeln!(page, "\nConditions that held: {}.", outcome.checks);
        for failure in &outcome.failures {
            let _ = writeln!(page, "- Failed: {failure}");
        }
    }
    page
}

fn row(figure: &Figure) -> String {
    let unit = figure.unit;
    let of =
        |value: Option<f64>, unit: &str| value.map_or_else(String::new, |v| format!("{}{unit}", human(v)));
    let goal = match (figure.goal, figure.goal_is) {
        (Some(goal), Some(GoalIs::RatioAtLeast)) => format!("at least {goal}"),
        (Some(goal), _) => format!("at most {} {unit}", human(goal)),
        _ => String::new(),
    };
    let met = figure.met.map_or("", |met| if met { "met" } else { "**missed**" });
    let ratio = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.2}"));
    format!(
        "| {} | {} {unit} | {} | {} | {} | {} | {} | {goal} | {met} |\n",
        figure.name,
        human(figure.value),
        human(figure.value_high),
        figure.peer.unwrap_or_default(),
        of(figure.peer_value, &format!(" {unit}")),
        ratio(figure.ratio),
        ratio(figure.ratio_low),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_asked_and_whether_it_is_met() {
        let figure = Figure::alone("rate", "1/s", vec![9.0; 3]).beside("limit", vec![10.0; 3], false);
        let met = row(&figure.with_goal(0.8, false));
        assert_eq!(met, "| rate | 9.00 1/s | 9.00 | limit | 10.0 1/s | 0.90 | 0.90 | at least 0.8 | met |\n");
        let missed = row(&Figure::alone("time", "s", vec![3.0]).at_most(2.0, false));
        assert_eq!(missed, "| time | 3.00 s | 3.00 |  |  |  |  | at most 2.00 s | **missed** |\n");
    }
}
