//! The brake on mass withdrawals (threat T9): a truncated state, or a flood of deletions, must
//! not empty a mesh. Sweeps and explicit deletions count alike, over a sliding hour against that
//! hour's peak.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The window over which withdrawals are counted.
pub const WINDOW: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_secs(60);

/// When the guard holds withdrawals back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardSettings {
    /// Share of the hour's peak that may go within the hour, in percent; 100 switches the guard off.
    pub percent: u8,
    /// So many may always go.
    pub floor: usize,
    /// How long withheld entries stay in force unless the owner offers them again.
    pub wait: Duration,
}

impl Default for GuardSettings {
    fn default() -> Self {
        GuardSettings { percent: 30, floor: 10, wait: Duration::from_secs(600) }
    }
}

/// Counts what was withdrawn. A key that is offered again no longer counts, so that a service
/// which merely flaps is not held back.
#[derive(Debug)]
pub struct Guard {
    settings: GuardSettings,
    withdrawn: BTreeMap<Arc<str>, Duration>,
    // (start of the minute, highest number in force seen in it)
    peaks: VecDeque<(Duration, usize)>,
}

impl Guard {
    /// A guard that has seen nothing.
    pub fn new(settings: GuardSettings) -> Guard {
        Guard { settings, withdrawn: BTreeMap::new(), peaks: VecDeque::new() }
    }

    /// The settings in use.
    pub fn settings(&self) -> GuardSettings {
        self.settings
    }

    /// Changes the settings; what was counted stays.
    pub fn set(&mut self, settings: GuardSettings) {
        self.settings = settings;
    }

    /// Notes how many entries are in force now.
    pub fn observe(&mut self, in_force: usize, now: Duration) {
        let from = now.saturating_sub(WINDOW);
        self.withdrawn.retain(|_, at| *at >= from);
        while self.peaks.front().is_some_and(|(at, _)| *at + STEP < from) {
            self.peaks.pop_front();
        }
        match self.peaks.back_mut() {
            Some((at, peak)) if now.saturating_sub(*at) < STEP => *peak = (*peak).max(in_force),
            _ => self.peaks.push_back((now, in_force)),
        }
    }

    /// Whether `keys` may all be withdrawn now, with `in_force` entries before it. If so they
    /// are counted; if not, all of them are to be withheld.
    pub fn allow(&mut self, keys: &[Arc<str>], in_force: usize, now: Duration) -> bool {
        self.observe(in_force, now);
        if self.settings.percent >= 100 {
            return true;
        }
        let peak = self.peaks.iter().map(|(_, p)| *p).max().unwrap_or(in_force);
        let limit = self.settings.floor.max(peak * usize::from(self.settings.percent) / 100);
        let new = keys.iter().filter(|k| !self.withdrawn.contains_key(*k)).count();
        if self.withdrawn.len() + new > limit {
            return false;
        }
        self.withdrawn.extend(keys.iter().map(|k| (k.clone(), now)));
        true
    }

    /// The owner offers `key` again.
    pub fn offered_again(&mut self, key: &str) {
        self.withdrawn.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(from: usize, to: usize) -> Vec<Arc<str>> {
        (from..to).map(|i| Arc::from(format!("k{i}"))).collect()
    }
    const T: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_sweep_over_the_share_is_withheld_whole_and_one_below_it_passes() {
        let mut guard = Guard::new(GuardSettings::default());
        assert!(!guard.allow(&keys(0, 31), 100, T(0)));
        assert!(guard.allow(&keys(0, 30), 100, T(0)));
    }

    #[test]
    fn deletions_one_by_one_count_like_a_sweep_against_the_hours_peak() {
        let mut guard = Guard::new(GuardSettings::default());
        for i in 0..30 {
            assert!(guard.allow(&keys(i, i + 1), 100 - i, T(60 * i as u64)), "{i}");
        }
        assert!(!guard.allow(&keys(30, 31), 70, T(60 * 30)));
        assert!(guard.allow(&keys(30, 31), 70, T(3601)), "the first of them is an hour ago");
    }

    #[test]
    fn a_few_may_always_go_and_a_flapping_key_counts_once() {
        let mut guard = Guard::new(GuardSettings::default());
        assert!(guard.allow(&keys(0, 10), 10, T(0)));
        assert!(!guard.allow(&keys(10, 11), 1, T(0)));
        guard.offered_again("k3");
        assert!(guard.allow(&keys(3, 4), 1, T(1)));
    }
}
