//! Which of several targets to try first: in turn, those that failed lately last.
//!
//! Only an order: no target is ever left out, and forgetting everything costs nothing but
//! fairness. Bounded by `REMEMBERED_TARGETS`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::Fqdn;
use hamlet_runtime::Clock;
use parking_lot::Mutex;

use crate::limits::{FAILED_LAST, REMEMBERED_TARGETS};

#[derive(Default)]
struct Memory {
    turns: HashMap<Fqdn, usize>,
    failed: HashMap<(Fqdn, SocketAddr), Duration>,
}

/// Remembers turns and failures by the name they were for.
pub(crate) struct Picker {
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
}

impl Picker {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Picker {
        Picker { clock, memory: Mutex::default() }
    }

    /// `all` in the order to try them for `name`.
    pub(crate) fn order(&self, name: &Fqdn, all: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut memory = self.memory.lock();
        if memory.turns.len() >= REMEMBERED_TARGETS && !memory.turns.contains_key(name) {
            memory.turns.clear();
        }
        let turn = memory.turns.entry(name.clone()).or_default();
        let start = *turn % all.len().max(1);
        *turn = turn.wrapping_add(1);
        let mut order: Vec<_> = all[start..].iter().chain(&all[..start]).copied().collect();
        let now = self.clock.now();
        let lately = |target: &SocketAddr| {
            let at = memory.failed.get(&(name.clone(), *target)).copied();
            at.filter(|at| now.saturating_sub(*at) < FAILED_LAST)
        };
        // Sorting is stable: those that didn't fail keep their turn, the longest-ago failure
        // comes first among the others.
        order.sort_by_cached_key(lately);
        order
    }

    pub(crate) fn failed(&self, name: &Fqdn, target: SocketAddr) {
        let now = self.clock.now();
        let mut memory = self.memory.lock();
        if memory.failed.len() >= REMEMBERED_TARGETS {
            memory.failed.retain(|_, at| now.saturating_sub(*at) < FAILED_LAST);
        }
        if memory.failed.len() < REMEMBERED_TARGETS {
            memory.failed.insert((name.clone(), target), now);
        }
    }

    pub(crate) fn worked(&self, name: &Fqdn, target: SocketAddr) {
        self.memory.lock().failed.remove(&(name.clone(), target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_runtime::ManualClock;

    #[test]
    fn targets_take_turns_and_one_that_failed_comes_last_for_a_while() {
        let clock = ManualClock::at(Duration::ZERO);
        let picker = Picker::new(clock.clone());
        let name = Fqdn::parse("ledger.acme.example").unwrap();
        let [a, b, c]: [SocketAddr; 3] =
            ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"].map(|t| t.parse().unwrap());
        let all = [a, b, c];
        assert_eq!(picker.order(&name, &all), [a, b, c]);
        assert_eq!(picker.order(&name, &all), [b, c, a]);
        let other = Fqdn::parse("other.acme.example").unwrap();
        assert_eq!(picker.order(&other, &all), [a, b, c], "each name has turns of its own");
        picker.failed(&name, a);
        assert_eq!(picker.order(&name, &all), [c, b, a]);
        assert_eq!(picker.order(&name, &all), [b, c, a]);
        clock.advance(FAILED_LAST);
        assert_eq!(picker.order(&name, &all)[0], b);
        assert_eq!(picker.order(&name, &all)[0], c);
        assert_eq!(picker.order(&name, &all)[0], a);
        assert!(picker.order(&name, &[]).is_empty());
    }
}
