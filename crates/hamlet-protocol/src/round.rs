//! How an owner goes about one round: compare roots, go down the digest tree where they differ,
//! and decide what is repeated (extensions text, section 4). Sans-IO; *hardened to untrusted peer*:
//! the hashes it keeps are at most those of the finest level.
//!
//! Of a fresh stream the first comparison and placing are one step under the view's lock, and
//! nothing is sent before what is repeated is known; on a live one the place stays, so nothing that
//! is behind it is lost. Each later step looks only at what differed in the one before: what was
//! equal then can differ now only by changes above the place.

use std::time::Duration;

use hamlet_core::digest::{CUT_BYTES, Level, Scope};
use hamlet_core::durable::Hash32;
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::view::Subscription;
use tonic::Code;

use crate::session::{StreamEnd, Violation};
use crate::wire::hamlet::federation::v1 as ext;

/// A fresh stream waits so long for our sources to be read once, so that what is merely unread
/// isn't repeated.
pub const READY_WAIT: Duration = Duration::from_secs(10);
/// A replica that is behind what the consumer has heard waits so long to catch up.
pub const REPLICA_WAIT: Duration = Duration::from_secs(10);
/// The consumer's hashes of each step must have come within this; else everything is repeated.
pub const BUCKETS_WAIT: Duration = Duration::from_secs(10);

/// What a round leads to next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing yet; whether changes may be sent meanwhile.
    Wait { may_send: bool },
    /// Ask for the consumer's hashes of the children of these nodes.
    Ask(Scope),
    /// Both hold the same; nothing is repeated.
    Equal,
    /// What lies in the scope is repeated.
    Scope(Scope),
    /// Everything is repeated.
    All,
}

#[derive(Debug)]
enum Stage {
    Comparing,
    /// For the hashes of these nodes.
    Asked {
        at: Duration,
        among: Scope,
        hashes: Vec<u8>,
        complete: bool,
    },
}

/// One round, until what it repeats is decided.
#[derive(Debug)]
pub(crate) struct OwnerRound {
    held: ext::Held,
    fresh: bool,
    since: Duration,
    stage: Stage,
}

impl OwnerRound {
    /// The first round of a stream.
    pub(crate) fn fresh(held: &ext::Held, now: Duration) -> OwnerRound {
        OwnerRound { held: kept(held), fresh: true, since: now, stage: Stage::Comparing }
    }

    /// A round on a live stream.
    pub(crate) fn live(held: &ext::Held, now: Duration) -> OwnerRound {
        OwnerRound { held: kept(held), fresh: false, since: now, stage: Stage::Comparing }
    }

    pub(crate) fn number(&self) -> u32 {
        self.held.round
    }

    /// Whether nothing else is sent before it is decided what the round repeats.
    pub(crate) fn holds(&self) -> bool {
        self.fresh
    }

    /// Whether hashes that were asked for are still to come.
    pub(crate) fn awaits(&self) -> bool {
        matches!(self.stage, Stage::Asked { complete: false, .. })
    }

    /// When to look again although nothing happened.
    pub(crate) fn wake_at(&self) -> Duration {
        match &self.stage {
            Stage::Comparing => self.since + READY_WAIT,
            Stage::Asked { at, .. } => *at + BUCKETS_WAIT,
        }
    }

    /// Takes the round as far as it goes now.
    pub(crate) fn step(
        &mut self,
        sub: &mut Subscription,
        log_id: &[u8],
        now: Duration,
    ) -> Result<Step, StreamEnd> {
        match &self.stage {
            Stage::Comparing => self.compare(sub, log_id, now),
            Stage::Asked { among, hashes, complete: true, .. } => {
                let moves = match self.fresh {
                    true => SeededBug::EachStepMovesCursor,
                    false => SeededBug::LiveRoundMovesCursor,
                };
                let scope = match is_on(moves) {
                    true => sub.place_differing(among, hashes),
                    false => sub.differing(among, hashes),
                };
                Ok(self.descend(sub, scope, now))
            }
            Stage::Asked { at, .. } if now.saturating_sub(*at) >= BUCKETS_WAIT => Ok(all(sub)),
            Stage::Asked { .. } => Ok(Step::Wait { may_send: !self.fresh }),
        }
    }

    fn compare(&mut self, sub: &mut Subscription, log_id: &[u8], now: Duration) -> Result<Step, StreamEnd> {
        let waited = now.saturating_sub(self.since);
        // Every change of ours would be older than what the consumer has.
        let lags = self.held.log_id == log_id && sub.view().head() < self.held.revision;
        if lags && !is_on(SeededBug::LaggingReplica) {
            if waited < REPLICA_WAIT {
                return Ok(Step::Wait { may_send: !self.fresh });
            }
            let text = "this replica is behind what the consumer has heard; connect to another one";
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        let unread = !sub.view().is_ready() && !is_on(SeededBug::EmptyBookmark);
        if unread && waited < READY_WAIT {
            return Ok(Step::Wait { may_send: !self.fresh });
        }
        let root: Option<Hash32> = self.held.root[..].try_into().ok();
        if self.held.full {
            return Ok(all(sub));
        }
        let equal = root.is_some_and(|root| match self.fresh {
            true => sub.resume(&root),
            false => sub.view().is_ready() && sub.view().summary().root == root,
        });
        if equal {
            return Ok(Step::Equal);
        }
        if root.is_none() || self.held.count == 0 || self.held.digest_version != 1 {
            return Ok(all(sub));
        }
        let among = Scope::whole(Level::One);
        let scope = match self.fresh || is_on(SeededBug::LiveRoundMovesCursor) {
            true => sub.place_differing(&among, &self.held.hashes),
            false => sub.differing(&among, &self.held.hashes),
        };
        // Whoever says no hashes, or not all of them, is told everything.
        Ok(self.descend(sub, scope, now))
    }

    /// One step down into what differs, or the end of it.
    fn descend(&mut self, sub: &mut Subscription, scope: Option<Scope>, now: Duration) -> Step {
        let Some(scope) = scope else { return all(sub) };
        let finest = Level::for_count(self.held.count);
        let below = scope.children().filter(|_| scope.level() < finest && scope.count() > 0);
        let Some(among) = below else {
            sub.repeat_scope(scope.clone());
            return Step::Scope(scope);
        };
        self.stage = Stage::Asked { at: now, among, hashes: vec![], complete: false };
        Step::Ask(scope)
    }

    /// Takes some of the consumer's hashes.
    pub(crate) fn buckets(&mut self, buckets: &ext::Buckets) -> Result<(), Violation> {
        let Stage::Asked { among, hashes, complete, .. } = &mut self.stage else {
            return Err(Violation::Buckets);
        };
        let same = buckets.round == self.held.round && buckets.level == among.level().number();
        let follows = buckets.first as usize * CUT_BYTES == hashes.len() && !buckets.hashes.is_empty();
        let whole = among.count() as usize * CUT_BYTES;
        let total = hashes.len() + buckets.hashes.len();
        let fits = total <= whole && buckets.last == (total == whole);
        if *complete || !same || !follows || !fits {
            return Err(Violation::Buckets);
        }
        hashes.extend_from_slice(&buckets.hashes);
        *complete = buckets.last;
        Ok(())
    }
}

/// A fresh subscription may have been placed by an earlier step; from here it goes before everything.
fn all(sub: &mut Subscription) -> Step {
    sub.restart();
    Step::All
}

/// What is kept of a peer's word: only what has a bound.
fn kept(held: &ext::Held) -> ext::Held {
    let bounded = |bytes: &bytes::Bytes, max: usize| match bytes.len() <= max {
        true => bytes::Bytes::copy_from_slice(bytes),
        false => bytes::Bytes::new(),
    };
    ext::Held {
        round: held.round,
        digest_version: held.digest_version,
        type_url: String::new(),
        root: bounded(&held.root, 32),
        count: held.count,
        log_id: bounded(&held.log_id, 16),
        revision: held.revision,
        hashes: bounded(&held.hashes, Level::One.nodes() * CUT_BYTES),
        full: held.full,
    }
}
