//! What a swarm has seen: who has which version of which service, and how late it came.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hamlet_runtime::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::bench::figure::quantile;
use crate::bench::lean::Delivery;

/// Most delays that are kept; further ones are only counted.
const DELAYS_MAX: usize = 1 << 20;
/// Most different errors that are kept.
const ERRORS_MAX: usize = 8;

/// One expected change has come.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Arrived {
    /// Consumers that don't have it.
    pub(in crate::bench) missing: usize,
    /// How late the last of the others acknowledged it, in microseconds.
    pub(in crate::bench) last_us: f64,
}

/// How the swarm compares with what was published.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Latest {
    /// Consumers times services.
    pub(in crate::bench) pairs: u64,
    /// Of them, those that are older than they should be: lost updates.
    pub(in crate::bench) behind: u64,
}

/// What was seen over some time.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Seen {
    /// Changes acknowledged.
    pub(in crate::bench) deliveries: u64,
    /// From publishing to acknowledging, in microseconds: the middle.
    pub(in crate::bench) p50_us: f64,
    /// The slowest hundredth.
    pub(in crate::bench) p99_us: f64,
    /// Consumers whose stream ended.
    pub(in crate::bench) broken: usize,
    /// Why, the first few.
    pub(in crate::bench) errors: Vec<String>,
}

#[derive(Debug)]
struct Expected {
    key: usize,
    version: u64,
    missing: usize,
    last_us: f64,
}

#[derive(Debug, Default)]
struct State {
    versions: Vec<Vec<u64>>,
    /// Services that each consumer has yet to see for the first time.
    unseen: Vec<usize>,
    complete: usize,
    joined: usize,
    broken: usize,
    errors: Vec<String>,
    deliveries: u64,
    delays_us: Vec<f64>,
    last_at: Duration,
    expected: Option<Expected>,
}

/// Shared by all consumers of a process.
#[derive(Debug)]
pub(super) struct Board {
    state: Mutex<State>,
    news: Notify,
    clock: SystemClock,
}

impl Board {
    /// Nothing seen yet of so many services by so many consumers.
    pub(super) fn new(members: usize, services: usize) -> Arc<Board> {
        let state = State {
            versions: vec![vec![0; services]; members],
            unseen: vec![services; members],
            ..State::default()
        };
        Arc::new(Board { state: Mutex::new(state), news: Notify::new(), clock: SystemClock::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A consumer acknowledges a change.
    pub(super) fn took(&self, member: usize, delivery: Delivery) {
        let now = self.clock.wall().as_nanos();
        let late_us = now.saturating_sub(delivery.at_nanos) as f64 / 1000.0;
        let mut guard = self.state();
        let state = &mut *guard;
        state.deliveries += 1;
        state.last_at = self.clock.now();
        if state.delays_us.len() < DELAYS_MAX {
            state.delays_us.push(late_us);
        }
        let Some(version) = state.versions.get_mut(member).and_then(|v| v.get_mut(delivery.key)) else {
            return;
        };
        let before = *version;
        // The last word counts, as for any consumer.
        *version = delivery.version;
        if before == 0 {
            state.unseen[member] -= 1;
            state.complete += usize::from(state.unseen[member] == 0);
        }
        let mut wake = state.complete == state.versions.len();
        if let Some(expected) = &mut state.expected
            && expected.key == delivery.key
            && before < expected.version
            && delivery.version >= expected.version
        {
            expected.missing -= 1;
            expected.last_us = expected.last_us.max(late_us);
            wake = expected.missing == 0;
        }
        drop(guard);
        if wake {
            self.news.notify_one();
        }
    }

    /// A consumer that won't acknowledge anything is there.
    pub(super) fn joined(&self) {
        self.state().joined += 1;
        self.news.notify_one();
    }

    /// A consumer's stream ended.
    pub(super) fn broke(&self, error: &str) {
        let mut state = self.state();
        state.broken += 1;
        if state.errors.len() < ERRORS_MAX && !state.errors.iter().any(|e| e == error) {
            state.errors.push(error.to_owned());
        }
        drop(state);
        self.news.notify_one();
    }

    /// Waits until everybody is there and, if they follow, has everything; else says what is wrong.
    pub(super) async fn until_joined(&self, following: bool, deadline: Duration) -> Option<String> {
        let until = self.clock.now() + deadline;
        'waiting: loop {
            {
                let state = self.state();
                let members = state.versions.len();
                let there = if following { state.complete } else { state.joined };
                if there >= members {
                    break 'waiting None;
                }
                if state.broken > 0 || self.clock.now() >= until {
                    break 'waiting Some(format!("{there} of {members}; {}", state.errors.join("; ")));
                }
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), self.news.notified()).await;
        }
    }

    /// That change is coming.
    pub(super) fn expect(&self, key: usize, version: u64) -> Arrived {
        let mut state = self.state();
        let missing = state.versions.iter().filter(|v| v.get(key).is_some_and(|v| *v < version)).count();
        state.expected = Some(Expected { key, version, missing, last_us: 0.0 });
        Arrived { missing, last_us: 0.0 }
    }

    /// Waits until everybody has it, or somebody is very late.
    pub(super) async fn arrived(&self, deadline: Duration) -> Arrived {
        let until = self.clock.now() + deadline;
        'waiting: loop {
            {
                let state = self.state();
                let (missing, last_us) = state.expected.as_ref().map_or((0, 0.0), |e| (e.missing, e.last_us));
                if missing == 0 || self.clock.now() >= until {
                    break 'waiting Arrived { missing, last_us };
                }
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), self.news.notified()).await;
        }
    }

    /// Waits until everybody has at least `version` of everything, or nothing has come for `quiet`.
    pub(super) async fn latest(&self, version: u64, quiet: Duration) -> Latest {
        let begun = self.clock.now();
        'waiting: loop {
            {
                let state = self.state();
                let all = state.versions.iter().flatten();
                let (pairs, behind) = (all.clone().count(), all.filter(|v| **v < version).count());
                if behind == 0 || self.clock.now() >= state.last_at.max(begun) + quiet {
                    break 'waiting Latest { pairs: pairs as u64, behind: behind as u64 };
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What was seen since the last time.
    pub(super) fn take(&self) -> Seen {
        let mut state = self.state();
        let delays = std::mem::take(&mut state.delays_us);
        Seen {
            deliveries: std::mem::take(&mut state.deliveries),
            p50_us: quantile(&delays, 0.5),
            p99_us: quantile(&delays, 0.99),
            broken: state.broken,
            errors: state.errors.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_missing_is_told_and_what_came_is_not() {
        let board = Board::new(2, 2);
        let took = |member, key, version| board.took(member, Delivery { key, version, at_nanos: 0 });
        for (member, key) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            took(member, key, 1);
        }
        assert_eq!(board.until_joined(true, Duration::ZERO).await, None);
        assert_eq!(board.expect(0, 2).missing, 2);
        took(0, 0, 2);
        took(0, 0, 2);
        took(0, 1, 2);
        assert_eq!(board.arrived(Duration::ZERO).await.missing, 1);
        let latest = board.latest(2, Duration::ZERO).await;
        assert_eq!((latest.pairs, latest.behind), (4, 2));
        took(1, 0, 2);
        took(1, 1, 3);
        assert_eq!(board.arrived(Duration::ZERO).await.missing, 0);
        assert_eq!(board.latest(2, Duration::ZERO).await.behind, 0);
        assert_eq!(board.take().deliveries, 9);
        assert_eq!(board.take().deliveries, 0);
        board.broke("gone");
        assert!(Board::new(1, 1).until_joined(true, Duration::ZERO).await.is_some());
    }
}
