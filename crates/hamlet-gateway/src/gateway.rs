//! The handle of the data plane: starts its listeners, takes new route tables, shows its state.
//!
//! It decides nothing. Tables are swapped whole; readers see the old one or the new one.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_identity::{
    GatewayClients, Lingering, LocalIdentity, STRANGERS_BACKLOG, SilentSockets, SniMinter, TrustTable,
    gateway_server_config,
};
use hamlet_runtime::{Clock, Spawner};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::bind;
use crate::egress::{EgressStatus, Listeners};
use crate::guard::Changes;
use crate::limits::{HANDSHAKES_WAITING, Limits};
use crate::metrics::{GatewayMetrics, GatewayStats, ListenerKind};
use crate::pick::Picker;
use crate::routes::{EgressTable, IngressTable};
use crate::{egress, egress_http, ingress};

/// How long a listener that came late waits before it tries its port again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// How a gateway listens and how patient it is.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where other meshes reach us by mTLS; `None` serves nothing to them.
    pub ingress: Option<SocketAddr>,
    /// The shared HTTP listener for our workloads, which routes by Host name; `None` for none.
    pub egress_http: Option<SocketAddr>,
    /// For one connection to a backend or to an owner's endpoint.
    pub connect_timeout: Duration,
    /// A connection without a byte for this long is closed (at most half as long again).
    pub idle_timeout: Duration,
    /// How long a connection lives on after its route was withdrawn (decision 24).
    pub drain: Duration,
    /// Bounds.
    pub limits: Limits,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            ingress: None,
            egress_http: None,
            connect_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(3600),
            drain: Duration::from_secs(30),
            limits: Limits::default(),
        }
    }
}

/// Why the gateway can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener could not be bound.
    #[error("the {listener} listener: {reason}: {remedy}")]
    Bind {
        /// Which listener, as the configuration calls it.
        listener: &'static str,
        /// What the system said.
        reason: String,
        /// What to do.
        remedy: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A value that is swapped whole, and a generation to wait on.
pub(crate) struct Swapped<T> {
    value: ArcSwap<T>,
    generation: watch::Sender<u64>,
}

impl<T: Default> Default for Swapped<T> {
    fn default() -> Self {
        Swapped { value: ArcSwap::default(), generation: watch::Sender::new(0) }
    }
}

impl<T> Swapped<T> {
    pub(crate) fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    fn store(&self, value: T) {
        self.value.store(Arc::new(value));
        self.generation.send_modify(|g| *g += 1);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}

/// What all tasks of the gateway share.
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) identity: Arc<LocalIdentity>,
    /// What egress dials with.
    pub(crate) clients: GatewayClients,
    pub(crate) trust: Arc<TrustTable>,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) spawner: Spawner,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: GatewayMetrics,
    pub(crate) ingress: Swapped<IngressTable>,
    pub(crate) egress: Swapped<EgressTable>,
    pub(crate) listeners: Listeners,
    pub(crate) silent: SilentSockets,
    /// Clients whose handshake failed, until they have read why.
    pub(crate) lingering: Lingering,
    /// Handshakes that run, and those that run or wait.
    pub(crate) handshakes: Semaphore,
    pub(crate) handshakes_waiting: Semaphore,
    pub(crate) ingress_slots: Arc<Semaphore>,
    pub(crate) egress_slots: Arc<Semaphore>,
    /// Order of local backends, and of other meshes' endpoints.
    pub(crate) backends: Picker,
    pub(crate) upstreams: Picker,
}

/// A live connection: its slot and its place in the metrics. Shared by its parts.
pub(crate) struct Open {
    _slot: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Shared {
    /// A slot for a connection of `listener`; `None` if the limit is reached.
    pub(crate) fn open(&self, listener: ListenerKind) -> Option<Arc<Open>> {
        let slots = match listener {
            ListenerKind::Ingress => &self.ingress_slots,
            ListenerKind::Egress | ListenerKind::EgressHttp => &self.egress_slots,
        };
        let slot = slots.clone().try_acquire_owned().ok()?;
        let gauge = self.metrics.open(listener);
        gauge.inc();
        Some(Arc::new(Open { _slot: slot, gauge }))
    }

    pub(crate) fn ingress_changes(&self) -> Changes {
        Changes { trust: self.trust.changed(), routes: self.ingress.subscribe() }
    }

    pub(crate) fn egress_changes(&self) -> Changes {
        Changes { trust: self.trust.changed(), routes: self.egress.subscribe() }
    }
}

/// Where ingress listens, once it does.
#[derive(Default)]
struct Ingress {
    at: OnceLock<SocketAddr>,
    error: Mutex<Option<String>>,
}

/// A running gateway. Its tasks belong to the supervisor and stop with it; dropping the handle
/// stops nothing.
pub struct Gateway {
    shared: Arc<Shared>,
    ingress: Arc<Ingress>,
    egress_http: Option<SocketAddr>,
}

impl Gateway {
    /// Binds the listeners and starts serving, with no routes yet. `minter` mints a leaf for each
    /// SNI where the CA is local. Ingress is bound once `identity` is usable, and not before.
    pub async fn start(
        config: GatewayConfig,
        identity: Arc<LocalIdentity>,
        minter: Option<Arc<SniMinter>>,
        trust: Arc<TrustTable>,
        spawner: Spawner,
        clock: Arc<dyn Clock>,
    ) -> Result<Gateway, StartError> {
        let (at, usable) = (config.ingress, identity.unusable().is_none());
        let ingress = at.filter(|_| usable).map(|at| bound("ingress", at, STRANGERS_BACKLOG)).transpose()?;
        let egress_http = config.egress_http.map(|at| bound("egress HTTP", at, bind::BACKLOG)).transpose()?;
        let limits = &config.limits;
        let shared = Arc::new(Shared {
            tls: gateway_server_config(&identity, minter, &trust),
            silent: SilentSockets::new(limits.silent_sockets, limits.silent_per_prefix),
            lingering: Lingering::default(),
            handshakes: slots(limits.handshakes.max(1)),
            handshakes_waiting: slots(limits.handshakes.max(1).saturating_add(HANDSHAKES_WAITING)),
            ingress_slots: Arc::new(slots(limits.ingress_connections)),
            egress_slots: Arc::new(slots(limits.egress_connections)),
            backends: Picker::new(clock.clone()),
            upstreams: Picker::new(clock.clone()),
            ingress: Swapped::default(),
            egress: Swapped::default(),
            listeners: Listeners::default(),
            metrics: GatewayMetrics::default(),
            config,
            clients: GatewayClients::new(identity.clone(), trust.clone()),
            identity,
            trust,
            spawner: spawner.clone(),
            clock,
        });
        let gateway = Gateway {
            ingress: Arc::default(),
            egress_http: egress_http.as_ref().map(|(_, at)| *at),
            shared: shared.clone(),
        };
        if let Some((listener, at)) = ingress {
            let _ = gateway.ingress.at.set(at);
            spawner.spawn("gateway/ingress", ingress::run(shared.clone(), listener));
        } else if let Some(at) = at {
            let waiting = wait_for_identity(shared.clone(), at, gateway.ingress.clone());
            spawner.spawn("gateway/ingress", waiting);
        }
        if let Some((listener, _)) = egress_http {
            spawner.spawn("gateway/egress-http", egress_http::run(shared.clone(), listener));
        }
        spawner.spawn("gateway/egress", egress::run(shared));
        Ok(gateway)
    }

    /// Where ingress listens, with the port that port 0 became.
    pub fn ingress_addr(&self) -> Option<SocketAddr> {
        self.ingress.at.get().copied()
    }

    /// Why ingress doesn't listen although it is configured to, and what to do.
    pub fn ingress_problem(&self) -> Option<String> {
        if self.shared.config.ingress.is_none() || self.ingress_addr().is_some() {
            return None;
        }
        let bind = self.ingress.error.lock().clone();
        let starting = || "it starts at this moment".to_owned();
        Some(self.shared.identity.unusable().or(bind).unwrap_or_else(starting))
    }

    /// Where the shared HTTP listener listens.
    pub fn egress_http_addr(&self) -> Option<SocketAddr> {
        self.egress_http
    }

    /// Replaces what ingress serves. Connections whose route still stands are left alone, others
    /// drain.
    pub fn set_ingress(&self, table: IngressTable) {
        for name in table.conflicts() {
            tracing::warn!(%name, "two services claim this name: the first is served; rename the other");
        }
        self.shared.ingress.store(table);
    }

    /// Replaces where egress sends; listeners follow shortly ([`Gateway::egress_changed`]).
    pub fn set_egress(&self, table: EgressTable) {
        for name in table.conflicts() {
            tracing::warn!(%name, "two imports claim this name: the first is served; narrow one Import");
        }
        self.shared.egress.store(table);
    }

    /// The state of every egress name, in the order of the table.
    pub fn egress_status(&self) -> Vec<EgressStatus> {
        self.shared.listeners.status(&self.shared.egress.load(), self.egress_http.is_some())
    }

    /// Ticks after every change of [`Gateway::egress_status`].
    pub fn egress_changed(&self) -> watch::Receiver<u64> {
        self.shared.listeners.subscribe()
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> GatewayStats {
        self.shared.metrics.snapshot()
    }

    /// The metrics, to be registered once.
    pub fn metrics(&self) -> &GatewayMetrics {
        &self.shared.metrics
    }
}

fn slots(most: usize) -> Semaphore {
    Semaphore::new(most.min(Semaphore::MAX_PERMITS))
}

fn bound(
    listener: &'static str,
    at: SocketAddr,
    backlog: u32,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let open = || {
        let socket = bind::listen(at, backlog)?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    };
    open().map_err(|source: io::Error| {
        let problem = bind::explain(at, &source);
        let port = at.port();
        // The usual remedy is for a service's port, which others chose; this one is ours to change.
        let remedy = match source.kind() {
            io::ErrorKind::AddrInUse => format!(
                "another program listens on port {port} (see `ss -ltnp 'sport = :{port}'`): stop it, or choose \
                 another address in spec.listen of the Mesh"
            ),
            _ => problem.remedy,
        };
        StartError::Bind { listener, reason: problem.reason, remedy, source }
    })
}

/// Binds ingress as soon as there is something to prove; until then nobody is answered there.
async fn wait_for_identity(shared: Arc<Shared>, at: SocketAddr, ingress: Arc<Ingress>) {
    let shutdown = shared.spawner.shutdown();
    let mut changed = shared.identity.changed();
    while shared.identity.unusable().is_some() {
        if !matches!(shutdown.or_begun(changed.changed()).await, Some(Ok(()))) {
            return;
        }
    }
    let listener = 'binding: loop {
        match bound("ingress", at, STRANGERS_BACKLOG) {
            Ok((listener, at)) => {
                tracing::info!(listener = "ingress", address = %at, "listening");
                let _ = ingress.at.set(at);
                break 'binding listener;
            }
            Err(error) => {
                let text = Some(error.to_string());
                let before = std::mem::replace(&mut *ingress.error.lock(), text.clone());
                if before != text {
                    tracing::error!(%error, "ingress does not listen; tried again");
                }
            }
        }
        if shutdown.or_begun(tokio::time::sleep(BIND_AGAIN)).await.is_none() {
            return;
        }
    };
    ingress::run(shared, listener).await;
}
