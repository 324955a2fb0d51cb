//! Watches over a live connection: it stays while its peer is proven and its route stands.
//!
//! A withdrawn route drains for the configured time, and a route that returns ends the drain; a
//! peer that is no longer proven is cut at once (decision 24, threats T10 and T19), and so is a
//! connection when the first certificate that proved it ends (T20), after it was told to finish. Any
//! other change of routes or trust leaves the connection alone.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hamlet_identity::ProvenPeer;
use hamlet_runtime::{Clock, Shutdown};
use tokio::sync::watch;
use tokio::time::Instant;

/// One in so many parts of what is left of a connection's certificates, at most, is kept for
/// finishing what was begun.
const KEPT_FOR_DRAIN: u32 = 10;

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Trust,
    Routes,
}

/// How a connection stands after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// Its route is gone: drain.
    Withdrawn,
    /// Its peer is not proven any more: cut.
    Unproven,
}

/// Why a connection was ended from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Drained,
    Unproven,
    Expired,
}

/// Decides, after a change, whether a connection may stay.
pub(crate) type StandingFn = Arc<dyn Fn(Change) -> Standing + Send + Sync>;

/// Changes from now on. Take it first, check second: a change in between is then seen.
#[derive(Clone)]
pub(crate) struct Changes {
    pub(crate) trust: watch::Receiver<u64>,
    pub(crate) routes: watch::Receiver<u64>,
}

/// How long a connection may live: read from the wall clock once, when it was proven, and counted in
/// running time from then on, so that a clock that steps cuts nothing (threat T22).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    /// When nothing new is begun on it.
    full: Option<Instant>,
    /// When it is cut.
    ends: Option<Instant>,
}

impl Life {
    /// Of an accepted connection, for as long as the client's certificates; it finishes for at most
    /// `drain` before.
    pub(crate) fn accepted(clock: &dyn Clock, proven: &ProvenPeer, drain: Duration) -> Life {
        let left = proven.not_after.saturating_sub(clock.wall());
        Life::of(left, left.saturating_sub(drain.min(left / KEPT_FOR_DRAIN)))
    }

    /// Of a dialled connection. Our own certificates end at `ours` since the epoch, and the other
    /// side cuts it then: requests stop going there before it finishes on that account, so that
    /// none meets a closing connection.
    pub(crate) fn dialled(clock: &dyn Clock, proven: &ProvenPeer, ours: Duration, drain: Duration) -> Life {
        let left = |until: Duration| until.saturating_sub(clock.wall());
        let (theirs, first) = (left(proven.not_after), left(proven.not_after.min(ours)));
        let kept = 2 * drain.min(first / KEPT_FOR_DRAIN);
        Life::of(theirs, first.saturating_sub(kept))
    }

    fn of(ends: Duration, full: Duration) -> Life {
        let now = Instant::now();
        Life { full: now.checked_add(full), ends: now.checked_add(ends) }
    }
}

/// Waits for `at`; for ever if it can't be told how far off that is.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The guard of one connection. A clone guards a further part of the same connection.
#[derive(Clone)]
pub(crate) struct Guard {
    changes: Changes,
    drain: Duration,
    life: Life,
    standing: StandingFn,
    /// Begins when the connection should finish what it does; follows the program's shutdown.
    pub(crate) draining: Shutdown,
}

impl Guard {
    pub(crate) fn new(
        changes: Changes,
        drain: Duration,
        life: Life,
        shutdown: &Shutdown,
        standing: StandingFn,
    ) -> Guard {
        Guard { changes, drain, life, standing, draining: shutdown.child() }
    }

    /// Whether something new may be begun on the connection.
    pub(crate) fn is_open(&self) -> bool {
        self.life.full.is_none_or(|full| Instant::now() < full)
    }

    /// Runs `work` as long as the connection may stay.
    pub(crate) async fn run<T>(mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let standing = self.standing.clone();
        let mut work = pin!(work);
        let mut end = pin!(tokio::time::sleep(self.drain));
        let (mut full, mut over) = (pin!(reached(self.life.full)), pin!(reached(self.life.ends)));
        let mut is_full = false;
        let (mut trusted, mut routed) = (Standing::Good, Standing::Good);
        'guarded: loop {
            let change = tokio::select! {
                biased;
                () = next(&mut self.changes.trust) => Change::Trust,
                () = next(&mut self.changes.routes) => Change::Routes,
                () = end.as_mut(), if routed == Standing::Withdrawn => return Err(Cut::Drained),
                () = over.as_mut() => return Err(Cut::Expired),
                () = full.as_mut(), if !is_full => {
                    is_full = true;
                    self.draining.begin();
                    continue 'guarded;
                }
                out = work.as_mut() => return Ok(out),
            };
            match change {
                Change::Trust => trusted = standing(change),
                Change::Routes => {
                    let before = std::mem::replace(&mut routed, standing(change));
                    if before == routed {
                        continue 'guarded;
                    }
                    end.as_mut().reset(tokio::time::Instant::now() + self.drain);
                    if routed == Standing::Withdrawn {
                        self.draining.begin();
                    }
                }
            }
            if trusted != Standing::Good || routed == Standing::Unproven {
                return Err(Cut::Unproven);
            }
        }
    }
}

async fn next(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        // The sender lives as long as the gateway: nothing more will change.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    type Rig = (watch::Sender<u64>, watch::Sender<u64>, Arc<Mutex<Standing>>, Guard);

    fn rig() -> Rig {
        rig_for(Life { full: None, ends: None })
    }

    fn rig_for(life: Life) -> Rig {
        let (trust, routes) = (watch::Sender::new(0), watch::Sender::new(0));
        let standing = Arc::new(Mutex::new(Standing::Good));
        let look = standing.clone();
        let changes = Changes { trust: trust.subscribe(), routes: routes.subscribe() };
        let drain = Duration::from_secs(30);
        let guard = Guard::new(changes, drain, life, &Shutdown::new(), Arc::new(move |_| *look.lock()));
        (trust, routes, standing, guard)
    }

    #[tokio::test(start_paused = true)]
    async fn a_withdrawn_route_drains_and_one_that_returns_is_left_alone() {
        let (trust, routes, standing, guard) = rig();
        let mut run = pin!(guard.clone().run(std::future::pending::<()>()));
        let second = Duration::from_secs(1);
        routes.send_modify(|g| *g += 1);
        trust.send_modify(|g| *g += 1);
        assert!(tokio::time::timeout(second * 100, &mut run).await.is_err(), "it still stands");
        *standing.lock() = Standing::Withdrawn;
        routes.send_modify(|g| *g += 1);
        assert!(tokio::time::timeout(second * 29, &mut run).await.is_err());
        assert!(guard.draining.has_begun());
        *standing.lock() = Standing::Good;
        routes.send_modify(|g| *g += 1);
        assert!(tokio::time::timeout(second * 100, &mut run).await.is_err(), "the route returned");
        *standing.lock() = Standing::Withdrawn;
        routes.send_modify(|g| *g += 1);
        assert_eq!(tokio::time::timeout(second * 31, &mut run).await, Ok(Err(Cut::Drained)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_no_longer_proven_is_cut_at_once() {
        let (trust, _routes, standing, guard) = rig();
        *standing.lock() = Standing::Unproven;
        let mut run = pin!(guard.run(std::future::pending::<()>()));
        assert!(tokio::time::timeout(Duration::from_secs(100), &mut run).await.is_err());
        trust.send_modify(|g| *g += 1);
        assert_eq!(run.await, Err(Cut::Unproven));
    }

    fn proven(not_after: Duration) -> ProvenPeer {
        let id = hamlet_core::SpiffeId::parse("spiffe://globex.example/hamlet/gateway").unwrap();
        ProvenPeer {
            peer: hamlet_core::PeerName::parse("globex").unwrap(),
            id: hamlet_identity::ProvenId::Spiffe(id),
            role: hamlet_identity::Role::Gateway,
            fingerprint: [0; 32],
            not_after,
            chain: [].into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_finishes_and_is_cut_when_its_certificates_end_whatever_the_wall_clock_does() {
        const HOUR: Duration = Duration::from_secs(3600);
        const DRAIN: Duration = Duration::from_secs(30);
        let (begin, second) = (HOUR * 24 * 365, Duration::from_secs(1));
        let clock = hamlet_runtime::ManualClock::at(begin);
        // A life of seconds, as in tests of rotation, keeps most of its time for calls.
        for (ours, theirs, full, ends) in [
            (None, HOUR, HOUR - DRAIN, HOUR),
            (Some(2 * HOUR), HOUR, HOUR - 2 * DRAIN, HOUR),
            (Some(HOUR / 2), HOUR, HOUR / 2 - 2 * DRAIN, HOUR),
            (None, 10 * second, 9 * second, 10 * second),
        ] {
            let began = Instant::now();
            clock.set_wall(begin);
            let theirs = proven(begin + theirs);
            let life = match ours {
                None => Life::accepted(&*clock, &theirs, DRAIN),
                Some(ours) => Life::dialled(&*clock, &theirs, begin + ours, DRAIN),
            };
            let (_trust, _routes, _, guard) = rig_for(life);
            clock.set_wall(begin + 100 * HOUR);
            let mut run = pin!(guard.clone().run(std::future::pending::<()>()));
            assert!(tokio::time::timeout(full - second / 2, &mut run).await.is_err());
            assert!(guard.is_open() && !guard.draining.has_begun());
            assert!(tokio::time::timeout(second * 3 / 4, &mut run).await.is_err());
            assert!(!guard.is_open() && guard.draining.has_begun(), "it finishes what was begun");
            assert_eq!(run.await, Err(Cut::Expired));
            let lived = began.elapsed();
            assert!(lived >= ends && lived < ends + second / 10, "{lived:?}");
        }
    }
}
