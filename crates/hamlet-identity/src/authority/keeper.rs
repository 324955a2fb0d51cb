//! Keeps an authority going: looks when something is due, has new leaves presented, tries again
//! what failed.
//!
//! It decides nothing (that is [`super::plan`]). Invariant: a failed look changes nothing of what is
//! presented, is told once in the log and until it is mended in the status, and is tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::{Backoff, Shutdown, Spawner};
use parking_lot::Mutex;

use super::plan::{ClockWatch, Planned};
use super::state::LeafRole;
use super::{Authority, AuthorityError};
use crate::local::LocalIdentity;
use crate::refused::time_text;

/// Longest time between two looks: what an operator changed with `hamlet ca` is taken over within
/// it.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(100);
/// First delay after a failed look.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest delay after failed looks, and at most this share of a leaf's life.
const RETRY_CAP: Duration = Duration::from_secs(60);
const SHARE_OF_LIFE: u32 = 20;

/// How it has gone so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Steps that were done.
    pub steps: u64,
    /// Looks that failed.
    pub failures: u64,
    /// What the last look failed with.
    pub error: Option<String>,
    /// Whether the clock is believed.
    pub settled: bool,
}

/// The task that keeps one authority going.
pub struct AuthorityKeeper {
    authority: Arc<Authority>,
    identities: BTreeMap<LeafRole, Arc<LocalIdentity>>,
    clocks: Mutex<ClockWatch>,
    kept: Mutex<Kept>,
}

impl std::fmt::Debug for AuthorityKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityKeeper").field("kept", &self.kept.lock()).finish_non_exhaustive()
    }
}

impl AuthorityKeeper {
    /// For `authority`, whose leaves are presented by `identities`.
    pub fn new(
        authority: Arc<Authority>,
        identities: BTreeMap<LeafRole, Arc<LocalIdentity>>,
    ) -> Arc<AuthorityKeeper> {
        let kept = Kept { settled: true, ..Kept::default() };
        let (clocks, kept) = (Mutex::default(), Mutex::new(kept));
        Arc::new(AuthorityKeeper { authority, identities, clocks, kept })
    }

    /// The authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// How it has gone so far.
    pub fn kept(&self) -> Kept {
        self.kept.lock().clone()
    }

    /// Looks once and has what is new presented. Blocking.
    pub fn look(&self) -> Result<Vec<Planned>, AuthorityError> {
        let clock = &self.authority.settings().clock;
        let settled = self.clocks.lock().look(clock.now(), clock.wall());
        let outcome = self.authority.look(settled);
        let mut kept = self.kept.lock();
        if kept.settled != settled {
            match settled {
                true => tracing::info!("the wall clock is believed again"),
                false => {
                    tracing::warn!("the wall clock has stepped; nothing is renewed until it keeps still")
                }
            }
            kept.settled = settled;
        }
        let error = outcome.as_ref().err().map(ToString::to_string);
        match &outcome {
            Ok(done) => {
                kept.steps += done.len() as u64;
                for planned in done {
                    tracing::info!(step = %planned.step, why = planned.why, "authority");
                }
            }
            Err(error) => {
                kept.failures += 1;
                // The same again is no news.
                if kept.error.as_ref() != Some(&error.to_string()) {
                    tracing::error!(%error, "the authority can't do what is due; what it made before stays in use");
                }
            }
        }
        kept.error.clone_from(&error);
        drop(kept);
        for (role, identity) in &self.identities {
            // Whoever made the new leaf: this look, one of `hamlet ca`, or a look that failed later.
            match identity.reload() {
                Ok(true) => {
                    let until = time_text(&identity.not_after());
                    tracing::info!(%role, %until, "a new leaf is presented");
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%role, %error, "the leaf could not be taken over"),
            }
            identity.note_renewal(error.clone());
        }
        outcome
    }

    /// How long until the next look that has something to do, and at most [`LOOK_EVERY`].
    fn next_look(&self) -> Duration {
        let wall = self.authority.settings().clock.wall();
        let state = self.authority.seen();
        let planned = state.and_then(|state| self.authority.schedule(&state).into_iter().next());
        let due = planned.map_or(LOOK_EVERY, |planned| planned.at.saturating_sub(wall));
        due.clamp(LOOK_MIN, LOOK_EVERY)
    }

    /// Looks until `shutdown` begins.
    pub async fn run(self: Arc<Self>, spawner: Spawner, shutdown: Shutdown) {
        let life = self.authority.settings().lives.leaf;
        let retry =
            || Backoff::new(RETRY_FIRST.min(life / SHARE_OF_LIFE), RETRY_CAP.min(life / SHARE_OF_LIFE));
        let mut backoff = retry();
        'looking: loop {
            let keeper = self.clone();
            // Files are written and synced.
            let looked = spawner.spawn_blocking(move || keeper.look()).await;
            let wait = match looked {
                Ok(Ok(_)) => {
                    backoff = retry();
                    // A clock that isn't believed leaves due things undone: no hurry then.
                    if self.kept.lock().settled { self.next_look() } else { LOOK_EVERY }
                }
                Ok(Err(_)) => backoff.next_delay().max(LOOK_MIN),
                Err(_) => break 'looking,
            };
            if shutdown.or_begun(tokio::time::sleep(wait)).await.is_none() {
                break 'looking;
            }
        }
    }
}
