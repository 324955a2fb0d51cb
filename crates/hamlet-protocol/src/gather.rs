//! Gathers changes while they come fast: one frame, record and system call for several of them.
//!
//! It decides when a change of the view makes a stream's writer look, and holds no change itself.
//! Invariants: every change is followed by a look within [`GATHER_MAX`]; one that comes alone is
//! followed by a look at once; a look for another reason is never held back and takes along what is
//! there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Longest that a change waits for others, and only while changes come faster than the peer answers
/// them; a timer's millisecond may be added. A tenth of what istiod always waits.
pub const GATHER_MAX: Duration = Duration::from_millis(10);

/// With so many unanswered changes they come faster than they are answered. One may merely be
/// answered at this moment.
pub(crate) const BEHIND: usize = 2;

/// What a change of the view is followed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    /// The writer looks now.
    Look,
    /// The writer doesn't know yet that it is to look later.
    Later,
    /// It looks soon anyway.
    Expected,
}

/// When one stream's writer looks for changes.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// Whether `until` is set, for who only asks.
    gathering: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In running time: when the writer looks for what is gathered.
    until: Option<Duration>,
    /// When it looked last for what was gathered, if it was worth while.
    beat: Option<Duration>,
    /// It is looking for what was gathered, since then.
    looking: Option<Duration>,
    /// Changes handed out since the gathering began.
    handed: usize,
}

impl Gather {
    /// The view has changed; `behind` is whether the peer has [`BEHIND`] changes yet to answer.
    pub(crate) fn ring(&self, now: Duration, behind: bool) -> Ring {
        let mut state = self.state.lock();
        if state.until.is_some() {
            return Ring::Expected;
        }
        // As long as each look finds several, the beat is kept, however fast the peer answers.
        let next = state.beat.map(|last| last + GATHER_MAX).filter(|next| *next > now);
        let until = next.or(behind.then(|| now + GATHER_MAX));
        if until.is_none() {
            state.beat = None;
            return Ring::Look;
        }
        state.until = until;
        state.handed = 0;
        self.gathering.store(true, Ordering::SeqCst);
        Ring::Later
    }

    /// Whether a change that is there will be looked for later.
    pub(crate) fn is_gathering(&self) -> bool {
        self.gathering.load(Ordering::SeqCst)
    }

    /// When the writer is to look for what is gathered.
    pub(crate) fn until(&self) -> Option<Duration> {
        self.state.lock().until
    }

    /// The time has come, and the writer looks.
    pub(crate) fn over(&self, now: Duration) {
        let mut state = self.state.lock();
        state.until = None;
        state.looking = Some(now);
        self.gathering.store(false, Ordering::SeqCst);
    }

    /// The writer has looked and found a change, or no further one.
    pub(crate) fn looked(&self, found: bool) {
        let mut state = self.state.lock();
        if found {
            state.handed = state.handed.saturating_add(1);
        } else if let Some(since) = state.looking.take() {
            state.beat = (state.handed > 1).then_some(since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The writer looks and finds `changes`.
    fn look(gather: &Gather, changes: usize) {
        (0..changes).for_each(|_| gather.looked(true));
        gather.looked(false);
    }

    #[test]
    fn a_change_is_looked_for_at_once_when_those_before_it_are_answered() {
        let gather = Gather::default();
        for at in 0..100 {
            assert_eq!(gather.ring(ms(at), false), Ring::Look);
            look(&gather, 1);
        }
        assert!(!gather.is_gathering());
    }

    #[test]
    fn changes_that_overtake_the_answers_are_looked_for_together() {
        let gather = Gather::default();
        assert_eq!(gather.ring(ms(10), true), Ring::Later);
        assert_eq!(gather.until(), Some(ms(10) + GATHER_MAX));
        assert_eq!([gather.ring(ms(11), true), gather.ring(ms(19), false)], [Ring::Expected; 2]);
        gather.over(ms(20));
        assert!(!gather.is_gathering());
    }

    #[test]
    fn the_beat_is_kept_while_each_look_finds_several_although_all_is_answered() {
        let gather = Gather::default();
        assert_eq!(gather.ring(ms(10), true), Ring::Later);
        gather.over(ms(20));
        look(&gather, 2);
        assert_eq!(gather.ring(ms(21), false), Ring::Later);
        assert_eq!(gather.until(), Some(ms(30)));
        gather.over(ms(30));
        // One came alone: the next one needn't wait for company.
        look(&gather, 1);
        assert_eq!(gather.ring(ms(31), false), Ring::Look);
    }

    #[test]
    fn a_change_after_a_pause_does_not_wait() {
        let gather = Gather::default();
        assert_eq!(gather.ring(ms(10), true), Ring::Later);
        gather.over(ms(20));
        look(&gather, 5);
        assert_eq!(gather.ring(ms(30), false), Ring::Look);
        assert_eq!(gather.ring(ms(31), false), Ring::Look);
    }

    #[test]
    fn what_another_reason_took_along_counts_for_the_beat() {
        let gather = Gather::default();
        assert_eq!(gather.ring(ms(10), true), Ring::Later);
        look(&gather, 3);
        gather.over(ms(20));
        look(&gather, 0);
        assert_eq!(gather.ring(ms(22), false), Ring::Later);
    }
}
