//! The machine under a bench: what it is, how idle it was, and what processes cost. Linux only;
//! where `/proc` doesn't say, the answer is empty or zero, never an error.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Ticks of all processors since the machine started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ticks {
    idle: u64,
    steal: u64,
    total: u64,
}

/// Shares of an interval, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Shares {
    /// Nothing ran.
    pub(super) idle: f64,
    /// Another guest ran.
    pub(super) steal: f64,
}

impl Ticks {
    /// As of now.
    pub(super) fn now() -> Ticks {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Ticks::parse(stat.lines().next().unwrap_or_default())
    }

    fn parse(line: &str) -> Ticks {
        let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
        let at = |i: usize| fields.get(i).copied().unwrap_or(0);
        // Guest time (from the ninth on) is counted in user time already.
        Ticks { idle: at(3) + at(4), steal: at(7), total: fields.iter().take(8).sum() }
    }

    /// From `before` to this.
    pub(super) fn since(self, before: Ticks) -> Shares {
        let total = self.total.saturating_sub(before.total).max(1) as f64;
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / total;
        Shares { idle: share(self.idle, before.idle), steal: share(self.steal, before.steal) }
    }
}

/// What the bench ran on, as it stands in the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    cpus: usize,
    kernel: String,
    idle: f64,
    steal: f64,
    /// Pairs that began although the machine was busy with something else.
    busy_pairs: usize,
    versions: Versions,
}

#[derive(Debug, Serialize)]
struct Versions {
    hamlet: &'static str,
    build: &'static str,
}

impl Machine {
    /// Describes it.
    pub(super) fn describe(over: Shares, busy_pairs: usize) -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            idle: over.idle,
            steal: over.steal,
            busy_pairs,
            versions: Versions {
                hamlet: env!("CARGO_PKG_VERSION"),
                build: if cfg!(debug_assertions) { "debug" } else { "release" },
            },
        }
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        format!(
            "{} x {}, Linux {}; over the run {:.0} % idle, {:.1} % stolen; {} build",
            self.cpus,
            self.cpu,
            self.kernel,
            self.idle * 100.0,
            self.steal * 100.0,
            self.versions.build
        )
    }
}

/// What this process has cost so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Processor time, user and system, in microseconds.
    pub(super) cpu_us: u64,
    /// Resident memory, in bytes.
    pub(super) rss: u64,
}

impl Cost {
    /// As of now.
    pub(super) fn now() -> Cost {
        let micros = |t: nix::sys::time::TimeVal| {
            u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_usec()).unwrap_or(0)
        };
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let cpu_us = usage.map_or(0, |u| micros(u.user_time()) + micros(u.system_time()));
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        Cost { cpu_us, rss: kib.unwrap_or(0) * 1024 }
    }
}

/// The last processor that this process may use: the first ones serve most interrupts.
pub(super) fn last_cpu() -> Option<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
}

/// Keeps this process, and the threads it will start, on one processor.
pub(super) fn pin_to(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
}

/// Waits until the machine is idle for `look`, at most `tries` times; whether it was.
pub(super) fn quiet(look: Duration, tries: usize) -> bool {
    const IDLE_ENOUGH: f64 = 0.9;
    (0..tries).any(|_| {
        let before = Ticks::now();
        std::thread::sleep(look);
        Ticks::now().since(before).idle >= IDLE_ENOUGH
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_steal_are_shares_of_all_ticks() {
        let before = Ticks::parse("cpu  100 0 100 800 0 0 0 0 0 0");
        let after = Ticks::parse("cpu  150 0 100 850 50 0 0 50 7 0");
        assert_eq!(after.since(before), Shares { idle: 0.5, steal: 0.25 });
        assert_eq!(Ticks::parse("").since(Ticks::default()), Shares::default());
        assert!(Cost::now().rss > 0);
    }
}
