//! The second brake on mass withdrawals, at the slice of a source: a folder that was emptied by
//! mistake, or a registry that lists half of what it has, must not take a mesh's services away from
//! its peers at once (decision 12). What is gone is served on for a while, and shown.
//!
//! It is not about sources that can't be read: those give an error, never a listing. Additions and
//! changes are never held back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use crate::guard::{Guard, GuardSettings};

/// How long withdrawals of a source are held back, unless configured otherwise.
pub const BRAKE_WAIT: Duration = Duration::from_secs(300);

/// The brake of one slice.
#[derive(Debug)]
pub struct SourceBrake<K> {
    guard: Guard,
    /// What is gone from the source and still served, and until when.
    withheld: BTreeMap<K, Duration>,
}

impl<K: Ord + Clone + Display> SourceBrake<K> {
    /// A brake that has seen nothing.
    pub fn new(settings: GuardSettings) -> SourceBrake<K> {
        SourceBrake { guard: Guard::new(settings), withheld: BTreeMap::new() }
    }

    /// Changes the settings; what is withheld keeps its time.
    pub fn set(&mut self, settings: GuardSettings) {
        self.guard.set(settings);
    }

    /// What is gone from the source and still served, and until when.
    pub fn withheld(&self) -> &BTreeMap<K, Duration> {
        &self.withheld
    }

    /// When the first of it goes.
    pub fn due(&self) -> Option<Duration> {
        self.withheld.values().min().copied()
    }

    /// Lets everything withheld go at the next [`admit`](Self::admit); returns how many that are.
    pub fn confirm(&mut self) -> usize {
        self.withheld.values_mut().for_each(|until| *until = Duration::ZERO);
        self.withheld.len()
    }

    /// What the slice is to hold, now that the source lists `listed` and the slice holds `in_force`:
    /// what is listed, and what is withheld. An entry that `is_replaced` by a listed one under
    /// another key is no withdrawal.
    pub fn admit<V>(
        &mut self,
        in_force: &BTreeMap<K, Arc<V>>,
        listed: BTreeMap<K, Arc<V>>,
        is_replaced: impl Fn(&V) -> bool,
        now: Duration,
    ) -> BTreeMap<K, Arc<V>> {
        for key in
            listed.keys().filter(|key| !in_force.contains_key(*key) || self.withheld.contains_key(*key))
        {
            self.guard.offered_again(&key.to_string());
        }
        let absent = |key: &K| !listed.contains_key(key);
        let gone = in_force.iter().filter(|(key, value)| absent(key) && !is_replaced(value));
        let gone: BTreeSet<&K> = gone.map(|(key, _)| key).collect();
        let before = std::mem::take(&mut self.withheld);
        let settings = self.guard.settings();
        let is_off = settings.percent >= 100 || settings.wait.is_zero();
        let fresh: Vec<&K> = gone.iter().copied().filter(|key| !before.contains_key(*key)).collect();
        let names: Vec<Arc<str>> = fresh.iter().map(|key| Arc::from(key.to_string())).collect();
        let empties = listed.is_empty() && in_force.len() >= 2 && !fresh.is_empty();
        // Asked in any case: it counts what goes, and keeps the hour's peak.
        let allowed = self.guard.allow(&names, in_force.len(), now);
        let holds = !is_off && !fresh.is_empty() && (empties || !allowed);
        if !is_off {
            let waiting = before.into_iter().filter(|(key, until)| gone.contains(key) && *until > now);
            self.withheld.extend(waiting);
        }
        if holds {
            self.withheld.extend(fresh.into_iter().map(|key| (key.clone(), now + settings.wait)));
        }
        let mut admitted = listed;
        for key in self.withheld.keys() {
            if let Some(value) = in_force.get(key) {
                admitted.insert(key.clone(), value.clone());
            }
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: fn(u64) -> Duration = Duration::from_secs;

    type Slice = BTreeMap<String, Arc<u32>>;

    fn slice(keys: std::ops::Range<u32>) -> Slice {
        keys.map(|i| (format!("k{i:03}"), Arc::new(i))).collect()
    }

    fn brake() -> SourceBrake<String> {
        SourceBrake::new(GuardSettings { wait: BRAKE_WAIT, ..GuardSettings::default() })
    }

    /// What is served after the source went from `from` to `to` at once.
    fn after(brake: &mut SourceBrake<String>, from: &Slice, to: Slice, now: Duration) -> Slice {
        brake.admit(from, to, |_| false, now)
    }

    #[test]
    fn what_is_held_back_and_what_is_not() {
        for (what, from, to, withheld) in [
            ("a slice of two is emptied", slice(0..2), slice(0..0), 2),
            ("a slice of one is emptied", slice(0..1), slice(0..0), 0),
            ("all but one of few go", slice(0..8), slice(0..1), 0),
            ("more than the floor and the share go", slice(0..20), slice(0..9), 11),
            ("as many as the floor go", slice(0..20), slice(0..10), 0),
            ("the share goes", slice(0..100), slice(0..70), 0),
            ("more than the share goes", slice(0..100), slice(0..69), 31),
            ("everything is another", slice(0..50), slice(50..100), 50),
            ("it grows", slice(0..50), slice(0..500), 0),
            ("the first listing", slice(0..0), slice(0..5), 0),
        ] {
            let mut brake = brake();
            let served = after(&mut brake, &from, to.clone(), T(0));
            assert_eq!(brake.withheld().len(), withheld, "{what}");
            assert_eq!(served.len(), to.len() + withheld, "{what}");
            assert!(to.keys().all(|key| served.contains_key(key)), "{what}: additions pass at once");
        }
    }

    #[test]
    fn it_goes_when_its_time_is_over_and_comes_back_when_it_is_listed_again() {
        let mut brake = brake();
        let all = slice(0..20);
        let served = after(&mut brake, &all, slice(0..0), T(100));
        assert_eq!((served.len(), brake.due()), (20, Some(T(400))));
        let served = after(&mut brake, &served, slice(0..5), T(200));
        assert_eq!((served.len(), brake.withheld().len()), (20, 15), "five are back, the rest waits on");
        assert_eq!(brake.due(), Some(T(400)), "since they were gone");
        let served = after(&mut brake, &served, slice(0..5), T(399));
        assert_eq!(served.len(), 20);
        let served = after(&mut brake, &served, slice(0..5), T(400));
        assert_eq!((served, brake.due()), (slice(0..5), None));
    }

    #[test]
    fn a_confirmation_lets_go_what_is_held_back_and_nothing_else() {
        let mut brake = brake();
        let served = after(&mut brake, &slice(0..20), slice(0..0), T(0));
        assert_eq!(brake.confirm(), 20);
        let served = after(&mut brake, &served, slice(0..0), T(1));
        assert!(served.is_empty());
        let served = after(&mut brake, &slice(0..20), slice(0..0), T(2));
        assert_eq!(served.len(), 20, "a later one is held back again");
    }

    #[test]
    fn withdrawals_one_by_one_count_over_the_hour() {
        let mut brake = brake();
        let mut served = slice(0..20);
        for i in 1..=10 {
            served = after(&mut brake, &served, slice(i..20), T(u64::from(i)));
            assert_eq!(served.len(), 20 - i as usize);
        }
        served = after(&mut brake, &served, slice(11..20), T(11));
        assert_eq!((served.len(), brake.withheld().len()), (10, 1));
        assert_eq!(after(&mut brake, &served, slice(11..20), T(311)).len(), 9);
    }

    #[test]
    fn a_renamed_entry_is_replaced_and_the_switch_lets_everything_go() {
        let mut brake = brake();
        let served = brake.admit(&slice(0..20), slice(20..40), |_| true, T(0));
        assert_eq!((served, brake.withheld().len()), (slice(20..40), 0));
        let served = after(&mut brake, &slice(0..20), slice(0..0), T(1));
        assert_eq!(served.len(), 20);
        brake.set(GuardSettings { percent: 100, ..GuardSettings::default() });
        assert!(after(&mut brake, &served, slice(0..0), T(2)).is_empty());
        brake.set(GuardSettings { wait: Duration::ZERO, ..GuardSettings::default() });
        assert!(after(&mut brake, &slice(0..20), slice(0..0), T(3)).is_empty());
    }
}
