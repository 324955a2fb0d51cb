//! What every bench stands on: its options, a folder, processors, quiet before each round, and the
//! report at the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hamlet_runtime::{Clock, SystemClock};
use serde::Serialize;
use serde_json::Value;

use super::figure::{Figure, HEADINGS};
use super::machine::{Cpus, Machine, Ticks, quiet};
use crate::report::{Table, Tally, say};
use crate::scratch::Scratch;
use crate::tree;

/// Rounds of a full run; each measures there and back again (ABBA).
pub(super) const ROUNDS: usize = 5;
/// A quick run begins nothing new after this, so that it ends within a minute.
const QUICK_BUDGET: Duration = Duration::from_secs(35);

/// Options of every bench.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunOptions {
    /// A look within a minute; says of no figure that it is met
    #[arg(long)]
    pub(super) quick: bool,
    /// Also write figures and raw samples to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// A folder on the disk to measure [default: cargo's target folder]
    #[arg(long, value_name = "FOLDER")]
    pub(super) folder: Option<PathBuf>,
    /// Leave the Go reference out (where Go or the module isn't to be had)
    #[arg(long)]
    pub(super) without_go: bool,
}

/// Where a bench runs.
pub(super) struct Ground {
    /// What was asked for.
    pub(super) options: RunOptions,
    /// Processors to use.
    pub(super) cpus: Cpus,
    scratch: Scratch,
    clock: SystemClock,
    begun: Option<Duration>,
    before: Ticks,
    busy: usize,
    /// What we are compared with, as it names itself.
    pub(super) peers: Vec<String>,
    failures: Vec<String>,
    checks: usize,
}

/// What a bench found.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// Its name.
    pub(super) bench: &'static str,
    /// Whether it was only a look.
    pub(super) quick: bool,
    /// What was varied, and how.
    pub(super) settings: Value,
    /// On what.
    pub(super) machine: Machine,
    /// The figures.
    pub(super) figures: Vec<Figure>,
    /// Conditions without a number that held.
    pub(super) checks: usize,
    /// Those that didn't, in words.
    pub(super) failures: Vec<String>,
}

impl Ground {
    /// A new folder for one bench.
    pub(super) fn new(options: &RunOptions) -> anyhow::Result<Ground> {
        let above = match &options.folder {
            Some(folder) => folder.clone(),
            None => tree::workspace()?.target_directory,
        };
        Ok(Ground {
            options: options.clone(),
            cpus: Cpus::choose(),
            scratch: Scratch::new(&above, "bench-")?,
            clock: SystemClock::new(),
            begun: None,
            before: Ticks::now(),
            busy: 0,
            peers: Vec::new(),
            failures: Vec::new(),
            checks: 0,
        })
    }

    /// The bench's own folder.
    pub(super) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Whether it is only a look.
    pub(super) fn quick(&self) -> bool {
        self.options.quick
    }

    /// How many rounds to run.
    pub(super) fn rounds(&self) -> usize {
        if self.quick() { 1 } else { ROUNDS }
    }

    /// One of two values: for a look, or for a full run.
    pub(super) fn pick<T>(&self, look: T, full: T) -> T {
        if self.quick() { look } else { full }
    }

    /// Waits for a quiet machine before a round.
    pub(super) fn settle(&mut self, round: usize, what: &str) {
        // Building peers and certificates doesn't count.
        self.begun.get_or_insert(self.clock.now());
        let (look, tries) = self.pick((300, 1), (2_000, 5));
        self.busy += usize::from(!quiet(Duration::from_millis(look), tries));
        say(&format!("round {}: {what}", round + 1));
    }

    /// Whether a quick run has no time left to begin something.
    pub(super) fn is_late(&self) -> bool {
        self.quick() && self.clock.now() > self.begun.unwrap_or_default() + QUICK_BUDGET
    }

    /// Notes a condition without a number.
    pub(super) fn check(&mut self, good: bool, what: impl FnOnce() -> String) {
        if good {
            self.checks += 1;
        } else if self.failures.len() < 100 {
            self.failures.push(what());
        }
    }

    /// All that was found.
    pub(super) fn outcome(self, bench: &'static str, settings: Value, figures: Vec<Figure>) -> Outcome {
        Outcome {
            bench,
            quick: self.options.quick,
            settings,
            machine: Machine::describe(Ticks::now().since(self.before), self.busy, self.peers),
            figures,
            checks: self.checks,
            failures: self.failures,
        }
    }
}

impl Outcome {
    /// Prints the table.
    pub(super) fn print(&self) {
        say(&self.machine.line());
        say(&format!("{}: {}", self.bench, self.settings));
        let mut table = Table::new(&HEADINGS);
        self.figures.iter().for_each(|f| table.row(f.cells()));
        table.print();
    }

    /// Counts its checks and goals; the failed ones are printed.
    pub(super) fn count(&self, tally: &mut Tally) {
        (0..self.checks).for_each(|_| tally.check(true, ""));
        self.failures.iter().for_each(|failure| tally.check(false, &format!("{}: {failure}", self.bench)));
        for figure in &self.figures {
            if let Some(met) = figure.met {
                tally.check(met, &format!("{}: {} misses its goal", self.bench, figure.title()));
            }
        }
    }

    /// Prints everything, writes the file that was asked for; whether all is good.
    pub(super) fn finish(&self, json: Option<&Path>) -> anyhow::Result<bool> {
        self.print();
        if let Some(file) = json {
            write_json(file, self)?;
        }
        let mut tally = Tally::default();
        self.count(&mut tally);
        Ok(tally.finish())
    }
}

/// Writes `report` as JSON for people to read too.
pub(super) fn write_json(file: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}
