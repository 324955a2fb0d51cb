//! What the authority does next, and when: a pure function of what is on disk, the lives that are
//! configured and the wall clock.
//!
//! It does nothing itself. Invariants: a step that was done is not due again at the same moment (a
//! plan always comes to rest); the bundle holds a root before anything comes from it and for as
//! long as a leaf of it can live; nothing is due while the clock can't be believed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::state::{Leaf, LeafRole, ROOTS_MAX, Root, State};
use crate::verify::NOT_BEFORE_SKEW;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Default life of our agent's and gateway's leaves.
pub const LEAF_LIFE: Duration = DAY;
/// Default life of the intermediate that signs leaves.
pub const ISSUING_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());
/// Default life of a root.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// Default time between a new root's appearance in the bundle and its first leaf.
pub const OVERLAP: Duration = Duration::from_secs(7 * DAY.as_secs());
/// Shortest life of a leaf: below it renewal has no room.
pub const LEAF_LIFE_MIN: Duration = Duration::from_secs(3);
/// A wall clock that moves so much against the running time has stepped (decision 24).
pub const CLOCK_STEP: Duration = NOT_BEFORE_SKEW;
/// How long a clock that stepped has to keep still before it is believed.
pub const CLOCK_SETTLES: Duration = Duration::from_secs(60);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// Our own leaves, and those for each SNI.
    pub leaf: Duration,
    /// The intermediate that signs them.
    pub issuing: Duration,
    /// A root.
    pub root: Duration,
    /// How long peers have to learn of a new root before anything comes from it.
    pub overlap: Duration,
}

impl Default for Lives {
    fn default() -> Lives {
        Lives { leaf: LEAF_LIFE, issuing: ISSUING_LIFE, root: ROOT_LIFE, overlap: OVERLAP }
    }
}

/// Lives that don't fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LivesError {
    #[error("a leaf's life of {0:?} leaves no time to renew it; choose {LEAF_LIFE_MIN:?} or more")]
    Leaf(Duration),
    #[error(
        "the issuing CA's life of {issuing:?} is less than three times a leaf's {leaf:?}; choose more for it, or less for leaves"
    )]
    Issuing { issuing: Duration, leaf: Duration },
    #[error(
        "a root's life of {root:?} is less than three times the issuing CA's {issuing:?}; choose more for it"
    )]
    Root { root: Duration, issuing: Duration },
    #[error("the overlap of {overlap:?} is more than a sixth of a root's life of {root:?}; choose less")]
    Overlap { overlap: Duration, root: Duration },
}

impl Lives {
    /// Whether they leave room for renewals.
    pub fn check(&self) -> Result<(), LivesError> {
        let Lives { leaf, issuing, root, overlap } = *self;
        if leaf < LEAF_LIFE_MIN {
            return Err(LivesError::Leaf(leaf));
        }
        if issuing < leaf * 3 {
            return Err(LivesError::Issuing { issuing, leaf });
        }
        if root < issuing * 3 {
            return Err(LivesError::Root { root, issuing });
        }
        if overlap > root / 6 {
            return Err(LivesError::Overlap { overlap, root });
        }
        Ok(())
    }
}

/// What a leaf has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its SPIFFE id.
    pub id: String,
    /// Its DNS names.
    pub names: Vec<String>,
}

/// One thing to do. In the order in which they are done if several are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A new root into the bundle.
    StageRoot,
    /// From now on everything new comes from the staged root; the one before it begins to leave.
    IssueFromStaged,
    /// A new CA that signs leaves, from the root that issues.
    RenewIssuing,
    /// A new leaf.
    RenewLeaf(LeafRole),
    /// A root of which no leaf lives leaves the bundle.
    DropRoot(u64),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::IssueFromStaged => f.write_str("issue from the new root"),
            Step::RenewIssuing => f.write_str("renew the issuing CA"),
            Step::RenewLeaf(role) => write!(f, "renew the {role}'s leaf"),
            Step::StageRoot => f.write_str("stage a new root"),
            Step::DropRoot(number) => write!(f, "take root {number} out of the bundle"),
        }
    }
}

/// A step and its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub step: Step,
    /// When, since the epoch; the past and zero are "now".
    pub at: Duration,
    /// Why then.
    pub why: &'static str,
}

/// Everything that is planned, soonest first; steps of the same moment in the order of [`Step`].
pub fn schedule(
    state: &State,
    lives: &Lives,
    wanted: &BTreeMap<LeafRole, Wanted>,
    now: Duration,
) -> Vec<Planned> {
    let mut out = Vec::new();
    let mut plan = |step, at, why| out.push(Planned { step, at, why });
    let Some(active) = state.active() else { return Vec::new() };
    match state.staged() {
        Some((root, _)) if secs(root.not_after_s) <= now => {
            plan(Step::DropRoot(root.number), Duration::ZERO, "it expired before it issued anything");
        }
        Some((_, at)) => plan(Step::IssueFromStaged, at, "the overlap ends"),
        None if state.roots.len() < ROOTS_MAX => {
            let (made, end) = (secs(active.made_s), secs(active.not_after_s));
            let at = (made + (end.saturating_sub(made)) * 2 / 3)
                .min(end.saturating_sub(lives.overlap + lives.issuing));
            plan(Step::StageRoot, at, "two thirds of the root's life are over");
        }
        None => {}
    }
    if let Some((at, why)) = issuing_due(state, active, lives, now) {
        plan(Step::RenewIssuing, at, why);
    }
    for (role, wanted) in wanted {
        if let Some((at, why)) = leaf_due(state, active, state.leaves.get(role), wanted, lives, now) {
            plan(Step::RenewLeaf(*role), at, why);
        }
    }
    for (root, at) in state.leaving() {
        // Not while one of our own leaves goes back to it: that one is due, and comes first.
        if state.leaves.values().all(|leaf| leaf.root != root.number) {
            plan(Step::DropRoot(root.number), at, "no leaf of it can live any more");
        }
    }
    out.sort_by_key(|planned| (planned.at.max(now), planned.step));
    out
}

/// The first step that is due and not among `failed`; none while the clock can't be believed.
pub fn due(
    state: &State,
    lives: &Lives,
    wanted: &BTreeMap<LeafRole, Wanted>,
    now: Duration,
    settled: bool,
    failed: &[Step],
) -> Option<Planned> {
    // What we don't have at all is made whatever the clock says.
    let missing = |step: &Step| match step {
        Step::RenewIssuing => state.issuing.is_none(),
        Step::RenewLeaf(role) => !state.leaves.contains_key(role),
        _ => false,
    };
    let mut planned = schedule(state, lives, wanted, now).into_iter().take_while(|planned| planned.at <= now);
    planned.find(|planned| !failed.contains(&planned.step) && (settled || missing(&planned.step)))
}

/// When a staged root begins to issue, if it is staged now.
pub fn issue_at(active: &Root, lives: &Lives, now: Duration) -> Duration {
    let latest = secs(active.not_after_s).saturating_sub(lives.leaf);
    (now + lives.overlap).min(latest).max(now)
}

/// When the last leaf of the root that issues has died, if another one issues from now on.
pub fn gone_at(state: &State, lives: &Lives, now: Duration) -> Duration {
    let longest = state.issuing.as_ref().map_or(lives.leaf, |i| secs(i.leaf_life_s).max(lives.leaf));
    // A clock that was ahead once has made leaves that live longer than they should.
    let ours = state.leaves.values().map(|leaf| secs(leaf.not_after_s)).max().unwrap_or_default();
    let latest = state.active().map_or(Duration::MAX, |root| secs(root.not_after_s)).max(now);
    (now + longest).max(ours).min(latest)
}

/// Two thirds of a life, less a jitter of up to a tenth of it that the seed decides: the same after
/// a restart, another for each certificate.
pub fn renew_at(made: Duration, end: Duration, seed: &str) -> Duration {
    let life = end.saturating_sub(made);
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(seed));
    let share = f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX);
    made + life * 2 / 3 - (life / 10).mul_f64(share)
}

fn issuing_due(
    state: &State,
    active: &Root,
    lives: &Lives,
    now: Duration,
) -> Option<(Duration, &'static str)> {
    let Some(issuing) = &state.issuing else { return Some((Duration::ZERO, "there is none")) };
    let (made, end, root_end) = (secs(issuing.made_s), secs(issuing.not_after_s), secs(active.not_after_s));
    if secs(issuing.leaf_life_s) < whole(lives.leaf) {
        return Some((Duration::ZERO, "leaves are to live longer than it was made for"));
    }
    if issuing.is_root() {
        return None;
    }
    if ahead(made, now) {
        return Some((Duration::ZERO, "it was made when the clock was ahead"));
    }
    // Capped by the root's own end: a new one would end at the same moment.
    let at = renew_at(made, end, &issuing.sha256).min(end.saturating_sub(lives.leaf));
    (end < root_end).then_some((at, "two thirds of its life are over"))
}

fn leaf_due(
    state: &State,
    active: &Root,
    leaf: Option<&Leaf>,
    wanted: &Wanted,
    lives: &Lives,
    now: Duration,
) -> Option<(Duration, &'static str)> {
    let issuing_end = state.issuing.as_ref().map_or(Duration::MAX, |issuing| secs(issuing.not_after_s));
    if issuing_end <= now {
        // Nothing to sign it with: the next root or issuing CA comes first.
        return None;
    }
    let Some(leaf) = leaf else { return Some((Duration::ZERO, "there is none")) };
    if leaf.root != active.number {
        return Some((Duration::ZERO, "it is of the root before"));
    }
    if leaf.id != wanted.id || leaf.names != wanted.names {
        return Some((Duration::ZERO, "it says something else"));
    }
    let (made, end) = (secs(leaf.made_s), secs(leaf.not_after_s));
    if ahead(made, now) {
        return Some((Duration::ZERO, "it was made when the clock was ahead"));
    }
    if end.saturating_sub(made) > whole(lives.leaf) {
        return Some((Duration::ZERO, "leaves are to live shorter now"));
    }
    let at = renew_at(made, end, &leaf.sha256);
    // Capped by the CA's own end: a new one would end at the same moment.
    (end < issuing_end).then_some((at, "two thirds of its life are over"))
}

/// Whether what was made then isn't valid yet by today's clock.
fn ahead(made: Duration, now: Duration) -> bool {
    made.saturating_sub(NOT_BEFORE_SKEW) > now
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn whole(at: Duration) -> Duration {
    Duration::from_secs(at.as_secs())
}

/// Tells a clock that stepped from time that passed (decision 24).
#[derive(Debug, Default)]
pub struct ClockWatch {
    last: Option<(Duration, Duration)>,
    /// Running time at which it is believed again.
    believed_at: Duration,
}

impl ClockWatch {
    /// Looks at both clocks; `true` if the wall clock can be believed.
    pub fn look(&mut self, now: Duration, wall: Duration) -> bool {
        if let Some((last_now, last_wall)) = self.last {
            let expected = last_wall + now.saturating_sub(last_now);
            if wall.abs_diff(expected) > CLOCK_STEP {
                self.believed_at = now + CLOCK_SETTLES;
            }
        }
        self.last = Some((now, wall));
        now >= self.believed_at
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
