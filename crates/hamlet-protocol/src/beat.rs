//! Signs of life inside a stream: a beat every few seconds that says how far both roles of its
//! sender are (extensions text, section 7). Three that don't come mean a dead peer.
//!
//! What is held against a peer runs only while we read, and is looked at twice: after a pause of
//! our own process the socket is read before anyone is blamed.

use std::time::Duration;

use crate::wire::hamlet::federation::v1 as ext;

/// How often we beat.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);
/// So many beats without any message end a stream.
pub const BEATS_MISSED: u32 = 3;
/// Bounds of the interval that a peer may choose.
const PEER_BEAT_MIN: Duration = Duration::from_secs(1);
const PEER_BEAT_MAX: Duration = Duration::from_secs(60);
/// Between finding a peer late and ending its stream.
pub const SECOND_LOOK: Duration = Duration::from_secs(1);

/// What the peer said in its last beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerBeat {
    /// Its number.
    pub seq: u64,
    /// Version of the newest change that the peer offers us.
    pub head: u64,
    /// Changes that it hasn't sent us yet.
    pub unsent: u64,
    /// Age of the oldest of them, as it said.
    pub oldest_unsent: Duration,
    /// Age of the oldest change of ours that it hasn't answered, as it said.
    pub oldest_uncommitted: Duration,
    /// When the beat came.
    pub at: Duration,
}

/// Says only at the second look, a while after the first, that something is so.
#[derive(Debug, Default)]
pub(crate) struct SecondLook(Option<Duration>);

impl SecondLook {
    pub(crate) fn confirms(&mut self, is_so: bool, now: Duration) -> bool {
        if !is_so {
            self.0 = None;
            return false;
        }
        now.saturating_sub(*self.0.get_or_insert(now)) >= SECOND_LOOK
    }

    /// When to look again.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.0.map(|first| first + SECOND_LOOK)
    }
}

/// The beats of one stream, both ways.
#[derive(Debug)]
pub(crate) struct Beats {
    next: Duration,
    seq: u64,
    peer_every: Option<Duration>,
    peer: Option<PeerBeat>,
    /// When anything came last, in the time that runs only while we read.
    sign: Duration,
    silent: SecondLook,
    /// A head of the peer that isn't proven yet, and since when.
    ahead: Option<(u64, Duration)>,
}

impl Beats {
    /// Between us and a peer whose hello says how often it beats; 0 is never.
    pub(crate) fn new(beat_ms: u32, now: Duration, judged: Duration) -> Beats {
        let every = Duration::from_millis(beat_ms.into());
        Beats {
            next: now + BEAT_EVERY,
            seq: 0,
            peer_every: (!every.is_zero()).then(|| every.clamp(PEER_BEAT_MIN, PEER_BEAT_MAX)),
            peer: None,
            sign: judged,
            silent: SecondLook::default(),
            ahead: None,
        }
    }

    pub(crate) fn peer(&self) -> Option<PeerBeat> {
        self.peer
    }

    /// Anything came.
    pub(crate) fn sign(&mut self, judged: Duration) {
        self.sign = judged;
    }

    pub(crate) fn received(&mut self, beat: &ext::Beat, proven: u64, now: Duration) {
        self.peer = Some(PeerBeat {
            seq: beat.seq,
            head: beat.head,
            unsent: beat.unsent,
            oldest_unsent: Duration::from_millis(beat.oldest_unsent_ms),
            oldest_uncommitted: Duration::from_millis(beat.oldest_uncommitted_ms),
            at: now,
        });
        if self.ahead.is_none_or(|(head, _)| head <= proven) {
            self.ahead = (beat.head > proven).then_some((beat.head, now));
        }
    }

    /// For how long the peer has had changes that no proof covers.
    pub(crate) fn ahead_for(&self, proven: u64, now: Duration) -> Option<Duration> {
        self.ahead.filter(|(head, _)| *head > proven).map(|(_, since)| now.saturating_sub(since))
    }

    /// Whether the peer is silent for too long; at the second look.
    pub(crate) fn is_silent(&mut self, now: Duration, judged: Duration) -> bool {
        let Some(every) = self.peer_every else { return false };
        let silent = judged.saturating_sub(self.sign) >= every * BEATS_MISSED;
        self.silent.confirms(silent, now)
    }

    /// The next beat, if it is due, with our own state to be filled in.
    pub(crate) fn due(&mut self, now: Duration) -> Option<ext::Beat> {
        if now < self.next {
            return None;
        }
        self.next = now + BEAT_EVERY;
        self.seq += 1;
        let echo_seq = self.peer.map_or(0, |p| p.seq);
        Some(ext::Beat { seq: self.seq, echo_seq, ..ext::Beat::default() })
    }

    /// When to look at the time again.
    /// For how long a beat of ours has waited for somebody to take it.
    pub(crate) fn waited(&self, now: Duration) -> Option<Duration> {
        now.checked_sub(self.next)
    }

    pub(crate) fn wake_at(&self) -> Duration {
        self.silent.due().map_or(self.next, |due| due.min(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_beat_that_is_not_taken_waits_from_when_it_was_due() {
        let mut beats = Beats::new(5_000, T(0), T(0));
        assert_eq!(beats.waited(T(4)), None);
        assert_eq!(beats.waited(T(36)), Some(T(31)));
        assert!(beats.due(T(36)).is_some());
        assert_eq!(beats.waited(T(40)), None);
    }

    #[test]
    fn three_missed_beats_are_silence_only_at_the_second_look() {
        let mut beats = Beats::new(5_000, T(0), T(0));
        assert!(!beats.is_silent(T(14), T(14)));
        assert!(!beats.is_silent(T(15), T(15)), "the first look");
        beats.sign(T(15));
        assert!(!beats.is_silent(T(16), T(16)), "something came");
        assert!(!beats.is_silent(T(31), T(31)));
        assert!(beats.is_silent(T(32), T(32)));
        assert!(!Beats::new(0, T(0), T(0)).is_silent(T(1_000), T(1_000)), "it said that it doesn't beat");
    }

    #[test]
    fn time_in_which_we_did_not_read_is_not_held_against_the_peer() {
        let mut beats = Beats::new(5_000, T(0), T(0));
        assert!(!beats.is_silent(T(60), T(5)));
        assert!(!beats.is_silent(T(62), T(7)));
    }

    #[test]
    fn a_head_counts_as_ahead_until_a_proof_reaches_it() {
        let mut beats = Beats::new(5_000, T(0), T(0));
        let beat = |head| ext::Beat { head, ..ext::Beat::default() };
        beats.received(&beat(7), 5, T(1));
        beats.received(&beat(9), 5, T(6));
        assert_eq!(beats.ahead_for(5, T(31)), Some(T(30)), "since the first of them");
        assert_eq!(beats.ahead_for(7, T(31)), None);
        beats.received(&beat(9), 7, T(31));
        assert_eq!(beats.ahead_for(7, T(32)), Some(T(1)));
    }
}
