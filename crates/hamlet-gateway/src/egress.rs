//! Egress: for every imported name a TCP listener of its own, kept equal to the route table.
//!
//! Routes are looked up when a connection comes, so a change of endpoints or identities touches
//! no listener. A listener that can't be bound is a status with a remedy, tried again with
//! backoff; it never stops another (decision 18).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{DnsLabel, Fqdn, ServiceId};
use hamlet_runtime::{Backoff, Shutdown};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use crate::bind::{self, BindProblem};
use crate::dial::{DialError, EndpointError, dial};
use crate::gateway::Shared;
use crate::guard::Cut;
use crate::limits::BIND_RETRY;
use crate::metrics::{ListenerKind, Outcome};
use crate::routes::EgressTable;
use crate::splice::{Activity, Reset, splice};

/// The shortest wait before a bind is tried again.
const BIND_RETRY_FIRST: Duration = Duration::from_secs(1);
/// Never retry sooner, whatever the backoff draws.
const BIND_RETRY_FLOOR: Duration = Duration::from_millis(250);
/// Listeners bound between two chances for other tasks.
const BATCH: usize = 64;

/// How one egress name can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EgressState {
    /// A new route, its listener is about to be bound.
    Pending,
    /// By its own address and port.
    Listening,
    /// By the shared HTTP listener only.
    SharedOnly {
        /// Why it has no listener of its own.
        reason: String,
        /// What gives it one.
        remedy: String,
    },
    /// Not at all.
    NotListening {
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// One egress name and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressStatus {
    /// The name that workloads use.
    pub name: Fqdn,
    /// Whose service.
    pub id: ServiceId,
    /// Which instance.
    pub instance: DnsLabel,
    /// Its own address and port, if the pool had one.
    pub listen: Option<SocketAddr>,
    /// How it can be reached.
    pub state: EgressState,
}

#[derive(Debug, Clone)]
enum Own {
    Listening,
    Problem(BindProblem),
    /// More names than listeners.
    OverLimit(usize),
}

/// The states of all listeners, for status pages.
pub(crate) struct Listeners {
    own: Mutex<HashMap<SocketAddr, Own>>,
    changed: watch::Sender<u64>,
}

impl Default for Listeners {
    fn default() -> Self {
        Listeners { own: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Listeners {
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn status(&self, table: &EgressTable, shared_http: bool) -> Vec<EgressStatus> {
        let own = self.own.lock();
        let line = |route: &Arc<crate::routes::EgressRoute>| {
            let problem = match route.listen.map(|at| own.get(&at)) {
                Some(None) => return (route.clone(), EgressState::Pending),
                Some(Some(Own::Listening)) => return (route.clone(), EgressState::Listening),
                Some(Some(Own::Problem(problem))) => problem.clone(),
                Some(Some(Own::OverLimit(most))) => BindProblem {
                    reason: format!("all {most} egress listeners are in use"),
                    remedy: "raise the number of egress listeners and the limit on open files (`ulimit -n`, \
                             `LimitNOFILE=`), or narrow the Import"
                        .to_owned(),
                },
                None => BindProblem {
                    reason: "the egress address pool is exhausted".to_owned(),
                    remedy: "give the agent a larger pool".to_owned(),
                },
            };
            let BindProblem { reason, remedy } = problem;
            let state = if shared_http && route.protocol.is_http() {
                EgressState::SharedOnly { reason, remedy }
            } else {
                EgressState::NotListening { reason, remedy }
            };
            (route.clone(), state)
        };
        let lines = table.routes().iter().map(line);
        lines
            .map(|(route, state)| EgressStatus {
                name: route.name.clone(),
                id: route.id.clone(),
                instance: route.instance.clone(),
                listen: route.listen,
                state,
            })
            .collect()
    }
}

struct Live {
    stop: Shutdown,
    /// Completes when the listening socket is closed.
    closed: oneshot::Receiver<()>,
}

struct Failed {
    backoff: Backoff,
    retry_at: Duration,
    problem: BindProblem,
}

/// Keeps the listeners equal to the table.
struct Reconciler {
    shared: Arc<Shared>,
    live: HashMap<SocketAddr, Live>,
    failed: HashMap<SocketAddr, Failed>,
    most: usize,
}

/// Reconciles at every new table, and where a bind failed, until the shutdown begins.
pub(crate) async fn run(shared: Arc<Shared>) {
    let shutdown = shared.spawner.shutdown();
    let mut tables = shared.egress.subscribe();
    let most = shared.config.limits.egress_listeners.min(bind::listeners_possible());
    let mut reconciler = Reconciler { shared, live: HashMap::new(), failed: HashMap::new(), most };
    'reconciling: loop {
        tables.mark_unchanged();
        reconciler.reconcile().await;
        let retry = reconciler.next_retry();
        tokio::select! {
            biased;
            () = shutdown.begun() => break 'reconciling,
            changed = tables.changed() => if changed.is_err() { break 'reconciling },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

impl Reconciler {
    async fn reconcile(&mut self) {
        let table = self.shared.egress.load();
        let wanted: Vec<SocketAddr> = table.routes().iter().filter_map(|r| r.listen).collect();
        let set: HashSet<SocketAddr> = wanted.iter().copied().collect();
        self.stop_all_but(&set).await;
        self.failed.retain(|at, _| set.contains(at));
        for (index, &address) in wanted.iter().enumerate() {
            if self.live.len() < self.most && !self.live.contains_key(&address) {
                self.bind(address);
            }
            if index % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.publish(&wanted);
    }

    /// Stops listeners that are not wanted, and waits until their sockets are closed: their
    /// addresses may be bound again right after.
    async fn stop_all_but(&mut self, wanted: &HashSet<SocketAddr>) {
        let gone: Vec<SocketAddr> = self.live.keys().filter(|at| !wanted.contains(at)).copied().collect();
        let stopped: Vec<Live> = gone.iter().filter_map(|at| self.live.remove(at)).collect();
        for live in &stopped {
            live.stop.begin();
        }
        for live in stopped {
            let _ = live.closed.await;
        }
    }

    fn bind(&mut self, address: SocketAddr) {
        let now = self.shared.clock.now();
        if self.failed.get(&address).is_some_and(|f| f.retry_at > now) {
            return;
        }
        match bind::listen(address, bind::BACKLOG) {
            Ok(listener) => {
                self.failed.remove(&address);
                let stop = self.shared.spawner.shutdown().child();
                let (done, closed) = oneshot::channel();
                let accepting = accept(self.shared.clone(), listener, address, stop.clone(), done);
                self.shared.spawner.spawn(format!("gateway/egress/{address}"), accepting);
                self.live.insert(address, Live { stop, closed });
            }
            Err(error) => {
                let problem = bind::explain(address, &error);
                let failed = self.failed.entry(address).or_insert_with(|| {
                    tracing::warn!(%address, %error, remedy = %problem.remedy, "no egress listener");
                    let backoff = Backoff::new(BIND_RETRY_FIRST, BIND_RETRY);
                    Failed { backoff, retry_at: now, problem: problem.clone() }
                });
                failed.problem = problem;
                failed.retry_at = now + failed.backoff.next_delay().max(BIND_RETRY_FLOOR);
            }
        }
    }

    fn next_retry(&self) -> Option<Duration> {
        let first = self.failed.values().map(|f| f.retry_at).min()?;
        Some(first.saturating_sub(self.shared.clock.now()).clamp(BIND_RETRY_FLOOR, BIND_RETRY))
    }

    fn publish(&self, wanted: &[SocketAddr]) {
        let state = |at: &SocketAddr| {
            let own = match self.failed.get(at) {
                _ if self.live.contains_key(at) => Own::Listening,
                Some(failed) => Own::Problem(failed.problem.clone()),
                None => Own::OverLimit(self.most),
            };
            (*at, own)
        };
        let own: HashMap<_, _> = wanted.iter().map(state).collect();
        let metrics = &self.shared.metrics;
        metrics.egress_listening.set(i64::try_from(self.live.len()).unwrap_or(i64::MAX));
        let missing = self.shared.egress.load().routes().len().saturating_sub(self.live.len());
        metrics.egress_not_listening.set(i64::try_from(missing).unwrap_or(i64::MAX));
        *self.shared.listeners.own.lock() = own;
        self.shared.listeners.changed.send_modify(|g| *g += 1);
    }
}

/// Accepts for one address until told to stop.
async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    stop: Shutdown,
    closed: oneshot::Sender<()>,
) {
    'accepting: while let Some((client, _)) = bind::accept(&listener, &stop).await {
        let Some(open) = shared.open(ListenerKind::Egress) else {
            client.reset();
            shared.metrics.ended(ListenerKind::Egress, Outcome::Overloaded);
            continue 'accepting;
        };
        let served = shared.clone();
        shared.spawner.spawn("gateway/egress/connection", async move {
            let outcome = serve(&served, address, client).await;
            served.metrics.ended(ListenerKind::Egress, outcome);
            drop(open);
        });
    }
    drop(listener);
    let _ = closed.send(());
}

/// One workload's connection, to the route that its listener has now.
async fn serve(shared: &Arc<Shared>, address: SocketAddr, client: TcpStream) -> Outcome {
    let table = shared.egress.load();
    let Some(route) = table.at(address).cloned() else {
        client.reset();
        return Outcome::NoRoute;
    };
    drop(table);
    let upstream = match dial(shared, &route).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::info!(peer = %route.id.owner, service = %route.id.name, %error, "egress connection failed");
            client.reset();
            return error.outcome();
        }
    };
    let (received, sent) = shared.metrics.bytes(ListenerKind::Egress);
    let activity = Activity::new(received, sent);
    let copy = splice(client, upstream.stream, activity, shared.config.idle_timeout);
    match upstream.guard.run(copy).await {
        Ok(ended) => ended.outcome(),
        Err(Cut::Drained) => Outcome::Drained,
        Err(Cut::Unproven) => {
            tracing::warn!(peer = %route.id.owner, service = %route.id.name, "cut: the peer is no longer proven");
            Outcome::Unproven
        }
        Err(Cut::Expired) => Outcome::Expired,
    }
}

impl DialError {
    /// As the metrics call it.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            DialError::Failed { error: EndpointError::Identity(_), .. } => Outcome::Misidentified,
            _ => Outcome::Unreachable,
        }
    }
}
