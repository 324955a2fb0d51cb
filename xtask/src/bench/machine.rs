//! The machine under a bench: what it is, how idle it was, and what processes cost. Linux only;
//! where `/proc` doesn't say, the answer is empty or zero, never an error.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_getcpuclockid};
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
    /// Rounds that began although the machine was busy with something else.
    busy_rounds: usize,
    versions: Versions,
}

#[derive(Debug, Serialize)]
struct Versions {
    hamlet: &'static str,
    build: &'static str,
    /// What we were compared with, as it names itself.
    peers: Vec<String>,
}

impl Machine {
    /// Describes it.
    pub(super) fn describe(over: Shares, busy_rounds: usize, peers: Vec<String>) -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpu: model.trim_start_matches([' ', '\t', ':']).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            idle: over.idle,
            steal: over.steal,
            busy_rounds,
            versions: Versions {
                hamlet: env!("CARGO_PKG_VERSION"),
                build: if cfg!(debug_assertions) { "debug" } else { "release" },
                peers,
            },
        }
    }

    /// What we were compared with.
    pub(super) fn peers(&self) -> &[String] {
        &self.versions.peers
    }

    /// One line for people.
    pub(super) fn line(&self) -> String {
        format!(
            "{} x {}, Linux {}; over the run {:.0} % idle, {:.1} % stolen, {} rounds began busy; {} build",
            self.cpus,
            self.cpu,
            self.kernel,
            self.idle * 100.0,
            self.steal * 100.0,
            self.busy_rounds,
            self.versions.build
        )
    }
}

/// What a process has cost so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Cost {
    /// Processor time, user and system, in microseconds.
    pub(super) cpu_us: u64,
    /// Resident memory, in bytes.
    pub(super) rss: u64,
    /// Most resident memory so far, in bytes.
    pub(super) peak: u64,
    /// Bytes on the heap, by the allocator's own count; 0 where only the process itself could say.
    pub(super) heap: u64,
}

impl Cost {
    /// Of this process, as of now.
    pub(super) fn now() -> Cost {
        Cost { heap: crate::heap_bytes(), ..Cost::of(std::process::id()) }
    }

    /// Of a process of ours; zero when it is gone.
    pub(super) fn of(pid: u32) -> Cost {
        let process = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
        let time = clock_getcpuclockid(process).and_then(ClockId::now);
        let micros = |t: TimeSpec| {
            let (seconds, nanos) = (u64::try_from(t.tv_sec()), u64::try_from(t.tv_nsec()));
            seconds.unwrap_or(0) * 1_000_000 + nanos.unwrap_or(0) / 1_000
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let bytes = |field: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(field));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        Cost { cpu_us: time.map_or(0, micros), rss: bytes("VmRSS:"), peak: bytes("VmHWM:"), heap: 0 }
    }
}

/// Two processors for a system under test and its load; the same one where there is only one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpus {
    /// For what is measured: the last one, because the first ones serve most interrupts.
    pub(super) measured: usize,
    /// For what drives it.
    pub(super) load: usize,
}

impl Cpus {
    /// Of those that this process may use.
    pub(super) fn choose() -> Cpus {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut usable = (0..CpuSet::count()).rev().filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let measured = usable.next().unwrap_or(0);
        Cpus { measured, load: usable.next().unwrap_or(measured) }
    }
}

/// Runs `start` on one processor, so that a process started by it stays there.
pub(super) fn started_on<T>(cpu: Option<usize>, start: impl FnOnce() -> T) -> anyhow::Result<T> {
    let Some(cpu) = cpu else { return Ok(start()) };
    let before = sched_getaffinity(Pid::from_raw(0))?;
    pin_to(cpu)?;
    let started = start();
    sched_setaffinity(Pid::from_raw(0), &before)?;
    Ok(started)
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
        let cost = Cost::now();
        assert!(cost.rss > 0 && cost.peak >= cost.rss && cost.heap > 0 && cost.cpu_us > 0);
        assert_eq!(Cost::of(u32::MAX).rss, 0);
    }
}
