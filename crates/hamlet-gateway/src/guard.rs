//! Watches over a live connection: it stays while its peer is proven and its route stands.
//!
//! A withdrawn route drains for the configured time, and a route that returns ends the drain; a
//! peer that is no longer proven is cut at once (decision 24, threats T10 and T19). Any other
//! change of routes or trust leaves the connection alone.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::Shutdown;
use tokio::sync::watch;

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
}

/// Decides, after a change, whether a connection may stay.
pub(crate) type StandingFn = Arc<dyn Fn(Change) -> Standing + Send + Sync>;

/// Changes from now on. Take it first, check second: a change in between is then seen.
#[derive(Clone)]
pub(crate) struct Changes {
    pub(crate) trust: watch::Receiver<u64>,
    pub(crate) routes: watch::Receiver<u64>,
}

/// The guard of one connection. A clone guards a further part of the same connection.
#[derive(Clone)]
pub(crate) struct Guard {
    changes: Changes,
    drain: Duration,
    standing: StandingFn,
    /// Begins when the connection should finish what it does; follows the program's shutdown.
    pub(crate) draining: Shutdown,
}

impl Guard {
    pub(crate) fn new(changes: Changes, drain: Duration, shutdown: &Shutdown, standing: StandingFn) -> Guard {
        Guard { changes, drain, standing, draining: shutdown.child() }
    }

    /// Runs `work` as long as the connection may stay.
    pub(crate) async fn run<T>(mut self, work: impl Future<Output = T>) -> Result<T, Cut> {
        let standing = self.standing.clone();
        let mut work = pin!(work);
        let mut end = pin!(tokio::time::sleep(self.drain));
        let (mut trusted, mut routed) = (Standing::Good, Standing::Good);
        'guarded: loop {
            let change = tokio::select! {
                biased;
                () = next(&mut self.changes.trust) => Change::Trust,
                () = next(&mut self.changes.routes) => Change::Routes,
                () = end.as_mut(), if routed == Standing::Withdrawn => return Err(Cut::Drained),
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
        let (trust, routes) = (watch::Sender::new(0), watch::Sender::new(0));
        let standing = Arc::new(Mutex::new(Standing::Good));
        let look = standing.clone();
        let changes = Changes { trust: trust.subscribe(), routes: routes.subscribe() };
        let drain = Duration::from_secs(30);
        let guard = Guard::new(changes, drain, &Shutdown::new(), Arc::new(move |_| *look.lock()));
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
}
