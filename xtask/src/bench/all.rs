//! `cargo xtask bench all`: every bench, one JSON file, and the page of figures in the
//! documentation.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

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
/// With --only the page and the file keep what they say of the other benches.
///
/// Examples:
///   cargo xtask bench all --json bench/results/all.json
///   cargo xtask bench all --only fanout,idle --json bench/results/all.json
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AllOptions {
    #[command(flatten)]
    run: RunOptions,
    /// Write the page here instead
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Run only these, one or several, by name
    #[arg(long, value_name = "BENCH", value_delimiter = ',', value_parser = PossibleValuesParser::new(NAMES))]
    only: Vec<String>,
}

/// All benches, in the order of the page.
const NAMES: [&str; 7] = ["ack", "sync", "resume", "fanout", "slow-neighbour", "idle", "flood"];

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
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    for (name, bench) in benches.into_iter().filter(|(name, _)| wanted(name)) {
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
            write_json(file, &report(before(file, options)?.as_deref(), &outcomes)?)?;
        }
    }
    if !run.quick {
        let page = options.page.clone().unwrap_or_else(|| tree::root().join(PAGE));
        let text = render(before(&page, options)?.as_deref(), &outcomes);
        std::fs::write(&page, text).with_context(|| format!("can't write {}", page.display()))?;
        say(&format!("wrote {}", page.display()));
    }
    Ok(tally.finish())
}

/// What a file says before a run of some benches; nothing if it isn't there or all are run.
fn before(file: &Path, options: &AllOptions) -> anyhow::Result<Option<String>> {
    if options.only.is_empty() || !file.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(Some(text))
}

/// What goes into the file: what was measured now, and of the other benches what it said before.
fn report(before: Option<&str>, outcomes: &[Outcome]) -> anyhow::Result<Value> {
    let before: Value = before.map_or(Ok(Value::Null), serde_json::from_str).context("not our JSON file")?;
    let mut benches = Vec::new();
    for name in NAMES {
        let now = outcomes.iter().find(|outcome| outcome.bench == name).map(serde_json::to_value);
        let then = before["benches"].as_array().into_iter().flatten().find(|b| b["bench"] == name);
        benches.extend(now.transpose()?.or_else(|| then.cloned()));
    }
    Ok(json!({ "benches": benches }))
}

/// The page, in Markdown; the sections of benches that were not run are those of `before`.
fn render(before: Option<&str>, outcomes: &[Outcome]) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench all`; what each bench does and compares is in\n\
         [bench/README.md](../../bench/README.md). Values are medians of all samples, \"up to\" is the upper end of\n\
         their 95 % interval, \"at least\" the lower end of the ratio's (bootstrap). A ratio above 1 is in our favour.\n\
         A figure is met if that end of its interval reaches the goal. Ratios count; times are of this machine\n\
         and day.\n",
    );
    for name in NAMES {
        let heading = format!("\n## `{name}`\n");
        if let Some(outcome) = outcomes.iter().find(|outcome| outcome.bench == name) {
            page.push_str(&heading);
            page.push_str(&section(outcome));
        } else if let Some((_, rest)) = before.and_then(|text| text.split_once(&heading)) {
            page.push_str(&heading);
            page.push_str(rest.split_once("\n## ").map_or(rest, |(section, _)| section));
        }
    }
    page
}

/// What the page says of one bench.
fn section(outcome: &Outcome) -> String {
    let mut text = format!("\n{}\n\n", outcome.machine.line());
    let peers = outcome.machine.peers();
    if !peers.is_empty() {
        let _ = write!(text, "Compared with: {}.\n\n", peers.join("; "));
    }
    text.push_str("| figure | ours | up to | next to | its | ratio | at least | goal | |\n");
    text.push_str("|---|---:|---:|---|---:|---:|---:|---:|---|\n");
    outcome.figures.iter().for_each(|figure| text.push_str(&row(figure)));
    let _ = writeln!(text, "\nConditions that held: {}.", outcome.checks);
    for failure in &outcome.failures {
        let _ = writeln!(text, "- Failed: {failure}");
    }
    text
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
    fn a_run_of_some_benches_keeps_what_is_known_of_the_others() {
        let before = "# Old\n\n## `ack`\n\nold ack\n\n## `idle`\n\nold idle\n\n## `gone`\n\nold\n";
        let page = render(Some(before), &[]);
        assert!(page.ends_with("\n## `ack`\n\nold ack\n\n## `idle`\n\nold idle\n"), "{page}");
        let file = r#"{"benches": [{"bench": "idle", "quick": false}, {"bench": "gone"}]}"#;
        assert_eq!(report(Some(file), &[]).unwrap(), json!({"benches": [{"bench": "idle", "quick": false}]}));
        assert_eq!(report(None, &[]).unwrap(), json!({"benches": []}));
    }

    #[test]
    fn a_row_says_what_was_asked_and_whether_it_is_met() {
        let figure = Figure::alone("rate", "1/s", vec![9.0; 3]).beside("limit", vec![10.0; 3], false);
        let met = row(&figure.with_goal(0.8, false));
        assert_eq!(met, "| rate | 9.00 1/s | 9.00 | limit | 10.0 1/s | 0.90 | 0.90 | at least 0.8 | met |\n");
        let missed = row(&Figure::alone("time", "s", vec![3.0]).at_most(2.0, false));
        assert_eq!(missed, "| time | 3.00 s | 3.00 |  |  |  |  | at most 2.00 s | **missed** |\n");
    }
}
