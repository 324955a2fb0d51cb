//! Many seeds, over several threads; and the seeded bugs, each until it is found.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hamlet_core::seeded::SeededBug;
use parking_lot::Mutex;

use crate::model::Violation;
use crate::run::run_seed;
use crate::tally::Tally;

/// Which seeds to play.
#[derive(Debug, Clone, Copy)]
pub struct Campaign {
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// Over how many threads.
    pub threads: usize,
}

/// What came of a campaign.
#[derive(Debug, Default)]
pub struct Report {
    /// Seeds without a broken invariant.
    pub passed: u64,
    /// The others, in order.
    pub failed: Vec<(u64, Violation)>,
    /// What happened in all of them.
    pub tally: Tally,
    /// Simulated time.
    pub lived: Duration,
}

/// How a seeded bug fared.
#[derive(Debug)]
pub struct MutantReport {
    /// The bug.
    pub bug: SeededBug,
    /// How many seeds it took, and what it broke; `None` if it was not found.
    pub found: Option<(u64, Violation)>,
}

impl Campaign {
    /// Plays all seeds without a seeded bug.
    ///
    /// # Errors
    /// If a runtime or thread can't be made.
    pub fn run(&self) -> std::io::Result<Report> {
        let report = Mutex::new(Report::default());
        self.each(|seed| {
            let outcome = run_seed(seed, None, false)?;
            let mut report = report.lock();
            report.tally.merge(&outcome.tally);
            report.lived += outcome.lived;
            match outcome.violation {
                Some(violation) => report.failed.push((seed, violation)),
                None => report.passed += 1,
            }
            Ok(true)
        })?;
        let mut report = report.into_inner();
        report.failed.sort_by_key(|(seed, _)| *seed);
        Ok(report)
    }

    /// Plays seeds with a bug until an invariant breaks. A panic is not a find.
    ///
    /// # Errors
    /// If a runtime or thread can't be made.
    pub fn hunt(&self, bug: SeededBug) -> std::io::Result<MutantReport> {
        let found: Mutex<Option<(u64, Violation)>> = Mutex::new(None);
        self.each(|seed| {
            let outcome = run_seed(seed, Some(bug), false)?;
            let Some(violation) = outcome.violation.filter(|v| v.invariant != "panic") else {
                return Ok(true);
            };
            // What breaks without the bug as well was not the bug.
            if run_seed(seed, None, false)?.violation.is_some() {
                return Ok(true);
            }
            let mut found = found.lock();
            let nth = seed.wrapping_sub(self.first) + 1;
            if found.as_ref().is_none_or(|(before, _)| nth < *before) {
                *found = Some((nth, violation));
            }
            Ok(false)
        })?;
        Ok(MutantReport { bug, found: found.into_inner() })
    }

    /// Plays each seed in turn until one says that it is enough.
    fn each(&self, play: impl Fn(u64) -> std::io::Result<bool> + Sync) -> std::io::Result<()> {
        let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let work = || -> std::io::Result<()> {
            while !over.load(Ordering::Relaxed) {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                if nth >= self.seeds {
                    break;
                }
                if !play(self.first.wrapping_add(nth))? {
                    over.store(true, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads.max(1)).map(|_| scope.spawn(work)).collect();
            let mut outcome = Ok(());
            for thread in threads {
                let ended =
                    thread.join().unwrap_or_else(|_| Err(std::io::Error::other("a simulation panicked")));
                outcome = outcome.and(ended);
            }
            outcome
        })
    }
}
