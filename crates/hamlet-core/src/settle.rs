//! When a foreign owner's silence about a service means that it is gone (extensions text, section
//! 5). Such an owner never says that its state is whole, and may lose events without knowing.
//!
//! A *pass* is one stream's repetition of the state, complete when it repeated most of what we
//! hold and then fell silent for long. Only what two complete passes on two streams, a while
//! apart, left out is gone; or what one left out, and nothing mentioned for a day. An owner that
//! repeats little or nothing is never believed: what we hold stays, unconfirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Share of what we held that a complete pass repeats, in percent.
pub const REPEATED_PERCENT: usize = 70;
/// Between the completions of the two passes.
pub const PASSES_APART: Duration = Duration::from_secs(300);
/// A pass is complete after so long a silence, or ten times the longest gap in it.
pub const QUIET_MIN: Duration = Duration::from_secs(30);
/// See [`QUIET_MIN`].
pub const QUIET_GAPS: u32 = 10;
/// What one pass left out goes after this, if no second pass was possible.
pub const UNCONFIRMED_MAX: Duration = Duration::from_secs(24 * 3600);
/// First wait before a new pass after the owner overflowed; doubles up to a day.
pub const OVERFLOW_WAIT: Duration = Duration::from_secs(600);
const OVERFLOW_WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct Pass {
    stream: u64,
    /// Keys held when it began, and how many of them were repeated.
    held: usize,
    repeated: usize,
    seen: BTreeSet<Arc<str>>,
    began: Duration,
    last: Option<Duration>,
    longest_gap: Duration,
    complete: bool,
}

impl Pass {
    fn is_complete(&self, now: Duration) -> bool {
        let Some(last) = self.last else { return false };
        let quiet = QUIET_MIN.max(self.longest_gap * QUIET_GAPS);
        let enough = self.repeated * 100 >= self.held * REPEATED_PERCENT;
        enough && now.saturating_sub(last) >= quiet
    }
}

/// What a pass left out.
#[derive(Debug, Clone, Copy)]
struct Absent {
    since: Duration,
    stream: u64,
}

/// What is known of one foreign owner's silence, over all of its streams. Times are of the
/// running process.
#[derive(Debug, Default)]
pub struct Settle {
    pass: Option<Pass>,
    absent: BTreeMap<Arc<str>, Absent>,
    confirmed: Option<Duration>,
    began: Option<Duration>,
    overflow_until: Duration,
    overflow_wait: Option<Duration>,
}

impl Settle {
    /// Nothing is known.
    pub fn new() -> Settle {
        Settle::default()
    }

    /// A stream begins, while `held` keys are held.
    pub fn begin(&mut self, stream: u64, held: usize, now: Duration) {
        self.began.get_or_insert(now);
        self.pass = Some(Pass {
            stream,
            held,
            repeated: 0,
            seen: BTreeSet::new(),
            began: now,
            last: None,
            longest_gap: Duration::ZERO,
            complete: false,
        });
    }

    /// The stream of the present pass, if there is one.
    pub fn stream(&self) -> Option<u64> {
        self.pass.as_ref().map(|p| p.stream)
    }

    /// The owner offers a key; `was_held` says whether we held it before. Keys that we don't hold
    /// afterwards need not be told: what isn't held can't go.
    pub fn offered(&mut self, key: &Arc<str>, was_held: bool, now: Duration) {
        self.absent.remove(key);
        let Some(pass) = &mut self.pass else { return };
        if pass.seen.insert(key.clone()) {
            pass.repeated += usize::from(was_held);
        }
        if !pass.complete {
            pass.longest_gap = pass.longest_gap.max(now.saturating_sub(pass.last.unwrap_or(now)));
            pass.last = Some(now);
        }
    }

    /// The owner deletes a key.
    pub fn deleted(&mut self, key: &str) {
        self.absent.remove(key);
        if let Some(pass) = &mut self.pass {
            pass.seen.remove(key);
        }
    }

    /// The stream ended. An unfinished pass counts for nothing; after an overflow at the owner no
    /// new pass is wanted for a while.
    pub fn ended(&mut self, overflow: bool, now: Duration) {
        self.pass = None;
        if overflow {
            let wait = self.overflow_wait.map_or(OVERFLOW_WAIT, |w| (w * 2).min(OVERFLOW_WAIT_MAX));
            self.overflow_wait = Some(wait);
            self.overflow_until = now + wait;
        }
    }

    /// Looks at the time. `held` are the keys held now; returned are those that are gone.
    pub fn due<'a>(&mut self, held: impl Iterator<Item = &'a Arc<str>>, now: Duration) -> Vec<Arc<str>> {
        let mut gone = vec![];
        if let Some(pass) = self.pass.as_mut().filter(|p| !p.complete && p.is_complete(now)) {
            pass.complete = true;
            self.confirmed = Some(now);
            self.overflow_wait = None;
            let mut absent = BTreeMap::new();
            for key in held.filter(|k| !pass.seen.contains(*k)) {
                match self.absent.get(key) {
                    Some(first)
                        if first.stream != pass.stream && now.saturating_sub(first.since) >= PASSES_APART =>
                    {
                        gone.push(key.clone());
                    }
                    Some(first) => drop(absent.insert(key.clone(), *first)),
                    None => drop(absent.insert(key.clone(), Absent { since: now, stream: pass.stream })),
                }
            }
            // What isn't held any more needs no second pass.
            self.absent = absent;
        }
        let late = |a: &Absent| now.saturating_sub(a.since) >= UNCONFIRMED_MAX;
        let overdue: Vec<Arc<str>> =
            self.absent.iter().filter(|(_, a)| late(a)).map(|(k, _)| k.clone()).collect();
        self.absent.retain(|_, a| !late(a));
        gone.extend(overdue);
        gone
    }

    /// Whether a new stream would tell us something: a second pass is due, or the state wasn't
    /// repeated for `every`.
    pub fn wants_stream(&self, every: Duration, now: Duration) -> bool {
        let Some(pass) = self.pass.as_ref().filter(|p| p.complete) else { return false };
        let second = self.absent.values().any(|a| now.saturating_sub(a.since) >= PASSES_APART);
        now >= self.overflow_until && (second || now.saturating_sub(pass.began) >= every)
    }

    /// Until when no new stream is wanted because the owner overflowed.
    pub fn overflow_until(&self, now: Duration) -> Option<Duration> {
        Some(self.overflow_until).filter(|until| *until > now)
    }

    /// How many keys one pass left out.
    pub fn absent(&self) -> usize {
        self.absent.len()
    }

    /// For how long nothing has confirmed what we hold; `None` before the first stream.
    pub fn unconfirmed_for(&self, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.confirmed.or(self.began)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: fn(u64) -> Duration = Duration::from_secs;

    fn keys(n: usize) -> Vec<Arc<str>> {
        (0..n).map(|i| Arc::from(format!("k{i:02}"))).collect()
    }

    struct Owner {
        settle: Settle,
        held: Vec<Arc<str>>,
        stream: u64,
    }

    impl Owner {
        fn new(held: usize) -> Owner {
            Owner { settle: Settle::new(), held: keys(held), stream: 0 }
        }

        /// A stream that repeats all but `missing` at `at`, looked at a while after.
        fn pass(&mut self, missing: &[usize], at: Duration) -> Vec<Arc<str>> {
            self.stream += 1;
            self.settle.ended(false, at);
            self.settle.begin(self.stream, self.held.len(), at);
            for (i, key) in self.held.clone().iter().enumerate().filter(|(i, _)| !missing.contains(i)) {
                self.settle.offered(key, true, at + Duration::from_millis(i as u64));
            }
            self.look(at + T(31))
        }

        fn look(&mut self, now: Duration) -> Vec<Arc<str>> {
            self.settle.due(self.held.iter(), now)
        }
    }

    #[test]
    fn what_two_passes_on_two_streams_left_out_is_gone() {
        let mut owner = Owner::new(10);
        assert!(owner.pass(&[3], T(0)).is_empty(), "one pass proves nothing");
        assert_eq!(owner.settle.absent(), 1);
        assert!(!owner.settle.wants_stream(T(1_000_000), T(300)));
        assert!(owner.settle.wants_stream(T(1_000_000), T(331)), "a second pass is due");
        assert_eq!(owner.pass(&[3], T(400)), [owner.held[3].clone()]);
    }

    #[test]
    fn two_passes_must_lie_apart_and_agree() {
        let mut owner = Owner::new(10);
        assert!(owner.pass(&[3], T(0)).is_empty());
        assert!(owner.pass(&[3], T(60)).is_empty(), "too soon after the first");
        assert!(owner.pass(&[4], T(500)).is_empty(), "another one is missing now");
        assert!(owner.pass(&[3], T(1_000)).is_empty(), "it was offered meanwhile");
    }

    #[test]
    fn an_owner_that_repeats_little_or_nothing_is_never_believed() {
        for missing in [vec![0, 1, 2, 3], (0..10).collect()] {
            let mut owner = Owner::new(10);
            for round in 0..5 {
                assert!(owner.pass(&missing, T(1_000 * round)).is_empty());
            }
            assert!(owner.look(T(10 * 24 * 3_600)).is_empty());
            assert_eq!(owner.settle.absent(), 0);
            assert!(owner.settle.unconfirmed_for(T(5_000)).unwrap() >= T(5_000));
            let mut benign = Owner::new(10);
            benign.pass(&missing[..3.min(missing.len())], T(0));
            assert_eq!(benign.settle.absent(), 3);
        }
    }

    #[test]
    fn one_live_event_after_an_empty_state_takes_nothing_away() {
        let mut owner = Owner::new(10);
        owner.settle.begin(1, 10, T(0));
        owner.settle.offered(&Arc::from("k00"), true, T(5));
        assert!(owner.look(T(3_600)).is_empty());
        assert_eq!(owner.settle.absent(), 0);
    }

    #[test]
    fn silence_is_measured_by_the_longest_gap() {
        let mut owner = Owner::new(2);
        owner.settle.begin(1, 2, T(0));
        owner.settle.offered(&Arc::from("k00"), true, T(0));
        owner.settle.offered(&Arc::from("k01"), true, T(20));
        owner.look(T(100));
        assert!(owner.settle.unconfirmed_for(T(100)).is_some_and(|u| u == T(100)), "not complete yet");
        owner.look(T(220));
        assert_eq!(owner.settle.unconfirmed_for(T(220)), Some(T(0)));
    }

    #[test]
    fn a_broken_pass_counts_for_nothing() {
        let mut owner = Owner::new(10);
        owner.settle.begin(1, 10, T(0));
        owner.held.clone().iter().take(9).for_each(|k| owner.settle.offered(k, true, T(1)));
        owner.settle.ended(false, T(2));
        assert!(owner.look(T(600)).is_empty());
        assert_eq!(owner.settle.absent(), 0);
    }

    #[test]
    fn without_a_second_pass_a_day_must_go_by() {
        let mut owner = Owner::new(10);
        owner.pass(&[3], T(0));
        assert!(owner.look(T(23 * 3_600)).is_empty());
        assert_eq!(owner.look(T(24 * 3_600 + 31)), [owner.held[3].clone()]);
        let mut mentioned = Owner::new(10);
        mentioned.pass(&[3], T(0));
        mentioned.settle.offered(&Arc::from("k03"), true, T(3_600));
        assert!(mentioned.look(T(25 * 3_600)).is_empty());
    }

    #[test]
    fn an_overflow_at_the_owner_defers_the_next_stream_ever_longer() {
        let mut owner = Owner::new(10);
        owner.pass(&[3], T(0));
        owner.settle.ended(true, T(100));
        assert_eq!(owner.settle.overflow_until(T(100)), Some(T(700)));
        owner.settle.ended(true, T(800));
        assert_eq!(owner.settle.overflow_until(T(800)), Some(T(2_000)));
        owner.pass(&[3], T(1_000));
        assert!(!owner.settle.wants_stream(T(60), T(1_999)));
        assert!(owner.settle.wants_stream(T(60), T(2_000)));
    }
}
