//! How many entries of the audit others can cause: who is nobody, or a peer, could otherwise fill the
//! files and push out what matters.
//!
//! Pure: time comes in. Invariants: what an operator, a file or the agent itself does is never held; of
//! what is held nothing but its text is lost, since it is counted, and told when the hour is over.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::audit::{Action, Actor, Draft};

/// How long entries of the audit that others cause are counted together.
pub(super) const AUDIT_WINDOW: Duration = Duration::from_secs(3600);
/// Most entries of one kind and reason that strangers cause in an hour before they are only counted.
pub(super) const AUDIT_STRANGERS: u64 = 10;
/// Most entries of one kind and reason that one peer causes in an hour before they are only counted.
pub(super) const AUDIT_PEER: u64 = 30;
/// Most kinds that are counted apart; further ones are counted by what was done alone.
pub(super) const AUDIT_KINDS_MAX: usize = 256;

/// What is counted together.
type Kind = (Action, Option<String>, Option<String>);

struct Window {
    since: Duration,
    passed: u64,
    held: u64,
    last: Option<Draft>,
}

/// The windows that are open.
#[derive(Default)]
pub(super) struct Limiter {
    windows: BTreeMap<Kind, Window>,
}

impl Limiter {
    /// The entry, if it may be written now.
    pub(super) fn admit(&mut self, draft: Draft, now: Duration) -> Option<Draft> {
        let (peer, most) = match &draft.actor {
            Actor::Stranger { .. } => (None, AUDIT_STRANGERS),
            Actor::Peer { name, .. } => (Some(name.clone()), AUDIT_PEER),
            _ => return Some(draft),
        };
        let mut kind = (draft.action, peer, draft.subject.reason.clone());
        if self.windows.len() >= AUDIT_KINDS_MAX && !self.windows.contains_key(&kind) {
            kind = (draft.action, None, None);
        }
        let fresh = || Window { since: now, passed: 0, held: 0, last: None };
        let window = self.windows.entry(kind).or_insert_with(fresh);
        if window.passed < most {
            window.passed += 1;
            return Some(draft);
        }
        window.held = window.held.saturating_add(draft.times);
        window.last = Some(draft);
        None
    }

    /// What was held in windows that have ended: the last of each kind, with how many they were.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Draft> {
        let mut out = vec![];
        self.windows.retain(|_, window| {
            let open = now.saturating_sub(window.since) < AUDIT_WINDOW;
            if !open {
                out.extend(window.take());
            }
            open
        });
        out
    }

    /// The same of all windows, for the end.
    pub(super) fn rest(&mut self) -> Vec<Draft> {
        let windows = std::mem::take(&mut self.windows);
        windows.into_values().filter_map(|mut window| window.take()).collect()
    }
}

impl Window {
    fn take(&mut self) -> Option<Draft> {
        let last = self.last.take()?;
        Some(Draft { times: std::mem::take(&mut self.held), ..last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(actor: Actor, reason: &str) -> Draft {
        let mut draft = Draft::new(Duration::ZERO, actor, Action::PeeringRefused);
        draft.subject.reason = Some(reason.to_owned());
        draft
    }

    fn stranger(n: u64) -> Actor {
        Actor::Stranger { address: Some(format!("192.0.2.{n}")) }
    }

    #[test]
    fn a_stranger_causes_a_few_entries_an_hour_and_then_a_number_and_an_operator_is_never_held() {
        let (mut limiter, now) = (Limiter::default(), Duration::from_secs(7));
        let passed = (0..500).filter(|n| limiter.admit(draft(stranger(n % 250), "proof"), now).is_some());
        assert_eq!(passed.count() as u64, AUDIT_STRANGERS, "whatever the address");
        assert!(limiter.admit(draft(stranger(1), "used"), now).is_some(), "another reason counts by itself");
        assert!(
            (0..500).all(|_| limiter.admit(draft(Actor::Operator { uid: None }, "proof"), now).is_some())
        );
        assert!(limiter.due(now + AUDIT_WINDOW - Duration::from_millis(1)).is_empty());
        let due = limiter.due(now + AUDIT_WINDOW);
        assert_eq!(due.iter().map(|d| d.times).collect::<Vec<_>>(), [500 - AUDIT_STRANGERS]);
        assert!(limiter.admit(draft(stranger(1), "proof"), now + AUDIT_WINDOW).is_some(), "a new hour");
        assert!(limiter.rest().is_empty(), "nothing was held since");
    }

    #[test]
    fn one_peer_doesnt_use_up_what_another_may_say_and_kinds_are_bounded() {
        let (mut limiter, now) = (Limiter::default(), Duration::ZERO);
        let peer = |name: &str| Actor::Peer { name: name.into(), channel: "stream".into() };
        let loud = (0..100).filter(|_| limiter.admit(draft(peer("loud"), "stale"), now).is_some()).count();
        assert_eq!(loud as u64, AUDIT_PEER);
        assert!(limiter.admit(draft(peer("calm"), "stale"), now).is_some());
        let admitted = (0..10_000u64)
            .filter(|n| limiter.admit(draft(peer("loud"), &format!("reason-{n}")), now).is_some())
            .count();
        assert!(admitted <= AUDIT_KINDS_MAX + AUDIT_PEER as usize, "{admitted}");
        assert!(limiter.windows.len() <= AUDIT_KINDS_MAX + 1);
        let held: u64 = limiter.rest().iter().map(|d| d.times).sum();
        assert_eq!(held, 100 - AUDIT_PEER + 10_000 - admitted as u64, "none goes uncounted");
    }
}
