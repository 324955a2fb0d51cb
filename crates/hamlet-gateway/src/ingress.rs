//! Ingress: one TLS port for other meshes. *Hardened to untrusted peer* (threats T15, T17, T18).
//!
//! Order, and nothing is skipped: whole ClientHello, SNI to a route, a handshake slot, mTLS, the
//! client proven again outside of the handshake, the service published to that peer; only then a
//! connection slot and a backend. Everything up to there has one deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use hamlet_core::{CallerForm, Fqdn, SpiffeId};
use hamlet_identity::{HelloError, ProvenPeer, Role, SilentPlace, hello_name, proven_client, read_hello};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use crate::gateway::{Open, Shared};
use crate::guard::{Change, Cut, Guard, Life, Standing, StandingFn};
use crate::metrics::{ListenerKind, Outcome};
use crate::routes::IngressRoute;
use crate::splice::{Activity, Ended, splice};
use crate::{bind, ingress_http, proxy_v2};

/// A client that was let in.
pub(crate) struct Admitted {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) from: SocketAddr,
    pub(crate) sni: Fqdn,
    pub(crate) route: Arc<IngressRoute>,
    pub(crate) proven: ProvenPeer,
    /// The id that it proved.
    pub(crate) caller: SpiffeId,
    pub(crate) guard: Guard,
    pub(crate) open: Arc<Open>,
}

/// Why a connection was closed before it was let in.
struct Refused {
    outcome: Outcome,
    error: String,
    /// Where TLS has told the client, who may not have read it yet.
    told: Option<TcpStream>,
}

impl Refused {
    fn new(outcome: Outcome, error: impl ToString) -> Refused {
        Refused { outcome, error: error.to_string(), told: None }
    }
}

/// Accepts until the shutdown begins. Live connections go on until they end or are forced.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let stop = shared.spawner.shutdown();
    'accepting: while let Some((stream, from)) = bind::accept(&listener, &stop).await {
        let place = shared.silent.enter(from.ip());
        let Ok(local) = stream.local_addr() else { continue 'accepting };
        let connection = connection(shared.clone(), stream, from, local, place);
        shared.spawner.spawn("gateway/ingress/connection", connection);
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    local: SocketAddr,
    place: SilentPlace,
) {
    let limit = shared.config.limits.handshake;
    let admitted = tokio::time::timeout(limit, admit(&shared, stream, from, place)).await;
    let refused = || Err(Refused::new(Outcome::HandshakeTimeout, format!("no handshake within {limit:?}")));
    let (outcome, told) = match admitted.unwrap_or_else(|_| refused()) {
        Ok(admitted) => {
            let (peer, service) = (admitted.proven.peer.clone(), admitted.route.service.clone());
            let outcome = serve(&shared, admitted, local).await;
            tracing::debug!(%from, %peer, %service, outcome = outcome.as_str(), "ingress connection ended");
            (outcome, None)
        }
        Err(Refused { outcome, error, told }) => {
            tracing::debug!(%from, outcome = outcome.as_str(), %error, "ingress connection refused");
            (outcome, told)
        }
    };
    shared.metrics.ended(ListenerKind::Ingress, outcome);
    if let Some(stream) = told {
        let stop = shared.spawner.shutdown();
        stop.or_begun(shared.lingering.close(stream, from.ip())).await;
    }
}

async fn admit(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    from: SocketAddr,
    place: SilentPlace,
) -> Result<Admitted, Refused> {
    let Some(hello) = place.keep(read_hello(&mut stream)).await else {
        return Err(Refused::new(Outcome::Evicted, "the oldest silent socket made room"));
    };
    let hello = hello.map_err(|error| match error {
        HelloError::Closed => Refused::new(Outcome::HelloClosed, error),
        HelloError::TooLong | HelloError::NotTls(_) => Refused::new(Outcome::NotTls, error),
    })?;
    let asked = hello.client_hello().server_name().unwrap_or_default().to_owned();
    let Some(sni) = hello_name(&hello) else {
        return Err(Refused::new(Outcome::NoSni, format!("no SNI that is a name: {asked:?}")));
    };
    if shared.ingress.load().route(&sni).is_none() {
        return Err(Refused::new(Outcome::UnknownSni, format!("nothing is served as {sni}")));
    }
    let overloaded = || Refused::new(Outcome::Overloaded, "a limit is reached");
    let waiting = shared.handshakes_waiting.try_acquire().map_err(|_| overloaded())?;
    let slot = shared.handshakes.acquire().await.map_err(|_| overloaded())?;
    let stream = StartHandshake::from_parts(hello, stream)
        .into_stream(shared.tls.clone())
        .into_fallible()
        .await
        .map_err(|(error, stream)| Refused {
            told: Some(stream),
            ..Refused::new(Outcome::HandshakeFailed, error)
        })?;
    drop((slot, waiting));
    prove(shared, stream, from, sni)
}

/// After the handshake: the client again, by the trust of now, and the route of now.
fn prove(
    shared: &Arc<Shared>,
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    sni: Fqdn,
) -> Result<Admitted, Refused> {
    let changes = shared.ingress_changes();
    let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let proven = proven_client(&shared.trust, Some(&chain), Role::Gateway)
        .map_err(|error| Refused::new(Outcome::HandshakeFailed, error))?;
    // Gateways prove SPIFFE ids only: that is what the service behind is told.
    let Some(caller) = proven.id.spiffe().cloned() else {
        return Err(Refused::new(Outcome::HandshakeFailed, format!("{} proves no SPIFFE id", proven.peer)));
    };
    let table = shared.ingress.load();
    let Some(route) = table.route(&sni).cloned() else {
        return Err(Refused::new(Outcome::UnknownSni, format!("nothing is served as {sni} any more")));
    };
    if !route.allowed.contains(&proven.peer) {
        tracing::info!(peer = %proven.peer, service = %route.service, "refused: not published to this peer");
        return Err(Refused::new(Outcome::NotPublished, format!("not published to {}", proven.peer)));
    }
    let Some(open) = shared.open(ListenerKind::Ingress) else {
        return Err(Refused::new(Outcome::Overloaded, "too many connections"));
    };
    let standing: StandingFn = {
        let (shared, proven, route, sni) = (shared.clone(), proven.clone(), route.clone(), sni.clone());
        Arc::new(move |change| match change {
            Change::Trust => match proven_client(&shared.trust, Some(&chain), Role::Gateway) {
                Ok(now) if now.peer == proven.peer => Standing::Good,
                _ => Standing::Unproven,
            },
            Change::Routes if shared.ingress.load().stands(&sni, &route.service, &proven.peer) => {
                Standing::Good
            }
            Change::Routes => Standing::Withdrawn,
        })
    };
    let drain = shared.config.drain;
    let life = Life::accepted(&*shared.clock, &proven, drain);
    let guard = Guard::new(changes, drain, life, &shared.spawner.shutdown(), standing);
    Ok(Admitted { stream, from, sni, route, proven, caller, guard, open })
}

async fn serve(shared: &Arc<Shared>, admitted: Admitted, local: SocketAddr) -> Outcome {
    let guard = admitted.guard.clone();
    let outcome = match admitted.route.instance.caller {
        CallerForm::HttpHeader => guard.run(ingress_http::serve(shared.clone(), admitted)).await,
        CallerForm::ProxyV2 => {
            let header = proxy_v2::header(admitted.from, local, &admitted.caller);
            guard.run(bytes(shared, admitted, header)).await
        }
        CallerForm::None => guard.run(bytes(shared, admitted, Vec::new())).await,
    };
    outcome.unwrap_or_else(|cut| match cut {
        Cut::Drained => Outcome::Drained,
        Cut::Unproven => Outcome::Unproven,
        Cut::Expired => Outcome::Expired,
    })
}

/// The service's bytes as they are, after `header`.
async fn bytes(shared: &Arc<Shared>, admitted: Admitted, header: Vec<u8>) -> Outcome {
    use crate::splice::Reset;
    let Admitted { stream, sni, route, open, .. } = admitted;
    let Some(mut backend) = backend(shared, &sni, &route).await else {
        stream.reset();
        return Outcome::Unreachable;
    };
    if backend.write_all(&header).await.is_err() {
        stream.reset();
        return Outcome::Broken;
    }
    let (received, sent) = shared.metrics.bytes(ListenerKind::Ingress);
    let activity = Activity::new(received, sent);
    let ended = splice(stream, backend, activity, shared.config.idle_timeout).await;
    drop(open);
    ended.outcome()
}

impl Ended {
    /// As the metrics call it.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Ended::Done => Outcome::Served,
            Ended::Idle => Outcome::Idle,
            Ended::Failed(error) => {
                tracing::debug!(%error, "connection failed");
                Outcome::Broken
            }
        }
    }
}

/// Connects to the first backend of `route` that answers, taking turns.
pub(crate) async fn backend(shared: &Shared, sni: &Fqdn, route: &IngressRoute) -> Option<TcpStream> {
    for target in shared.backends.order(sni, &route.instance.backends) {
        let connecting = tokio::time::timeout(shared.config.connect_timeout, TcpStream::connect(target));
        match connecting.await {
            Ok(Ok(stream)) => {
                shared.backends.worked(sni, target);
                bind::tune(&stream);
                return Some(stream);
            }
            Ok(Err(error)) => {
                tracing::debug!(service = %route.service, backend = %target, %error, "backend failed");
            }
            Err(_) => {
                tracing::debug!(service = %route.service, backend = %target, "backend did not answer in time");
            }
        }
        shared.backends.failed(sni, target);
    }
    tracing::info!(service = %route.service, "no backend can be reached: check the Service's backends");
    None
}
