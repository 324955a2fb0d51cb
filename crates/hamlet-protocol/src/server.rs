//! The agent's listener: mTLS, HTTP/2, one method of each protocol version. *Hardened to untrusted
//! peer.*
//!
//! A stranger ends at TLS, and costs a handshake only once its ClientHello is whole: silent
//! sockets are cheap, and the oldest gives way (threat T15). So are those that linger until a client
//! whose handshake failed has read why. A connection lives only as long as its
//! certificates, and as they are trusted: when the trust table changes, the chain is verified again.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_core::PeerName;
use hamlet_core::causes::with_causes;
use hamlet_core::imported::ServiceJudge;
use hamlet_identity::{
    Lingering, LocalIdentity, ProvenPeer, Role, SILENT_SOCKETS, STRANGERS_BACKLOG, SilentPlace,
    SilentSockets, TrustTable, read_hello,
};
use hamlet_runtime::{Clock, Shutdown, Spawner, rarely};
use hyper::body::Incoming as Body;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::StartHandshake;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::ClientHello;
use tokio_rustls::server::TlsStream;
use tonic::{Request, Response, Status, Streaming};

use crate::breach::{Breaches, is_breach};
use crate::dial::Life;
use crate::dialect::v1alpha1::End;
use crate::dialect::{Dialect, Incoming, Outgoing};
use crate::frames::Side;
use crate::kind::LinkJudge;
use crate::limits::{ConnectionLimits, SharedLimits};
use crate::link::Link;
use crate::metered::Metered;
use crate::stream::Outbound;
use crate::transport::{self, SpawnExecutor};

/// TLS handshakes computed at the same time; a slot is taken after a whole ClientHello.
const HANDSHAKES: usize = 64;
/// Whole ClientHellos that may wait for a handshake slot; the next one is closed.
const HANDSHAKES_WAITING: usize = 256;

/// Most streams that one connection may open in a minute (threat T14); the protocol needs one.
/// Beyond it the connection is closed.
pub const STREAMS_A_MINUTE: u32 = 16;
const MINUTE: Duration = Duration::from_secs(60);
/// A removed peer's connection ends at the latest so long after its trust has gone, whatever of the
/// goodbye has been written by then (extensions text, section 9).
pub(crate) const LAST_WORD_MAX: Duration = Duration::from_millis(800);

/// The links by peer, shared by listener and diallers; swapped when peers come and go.
pub type Links<J = ServiceJudge> = Arc<ArcSwap<BTreeMap<PeerName, Arc<Link<J>>>>>;

/// The agent could not listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for peers on {address}: {source}; choose another address in spec.listen.agent, or stop the program that has it"
)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Another protocol on the agent's port, for clients that ask for nothing else by ALPN. It is chosen
/// before the handshake, with a TLS configuration of its own, so nothing of the agent's is
/// reachable through it.
pub trait Annex: Send + Sync + 'static {
    /// What to do with this client; `None` if it doesn't ask for the protocol, or not now.
    fn admit(&self, hello: &ClientHello<'_>) -> Option<Admitted>;
}

/// Serves one connection of an [`Annex`], and bounds how long that takes.
pub type ServeAnnex =
    Box<dyn FnOnce(TlsStream<TcpStream>, SocketAddr) -> futures::future::BoxFuture<'static, ()> + Send>;

/// A client that an [`Annex`] takes.
pub struct Admitted {
    /// For the handshake.
    pub config: Arc<ServerConfig>,
    /// What comes after it.
    pub serve: ServeAnnex,
}

impl std::fmt::Debug for Admitted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admitted").finish_non_exhaustive()
    }
}

/// The listener for peers' agents.
pub struct AgentServer {
    listener: TcpListener,
    address: SocketAddr,
    limits: SharedLimits,
    annex: Option<Arc<dyn Annex>>,
}

impl std::fmt::Debug for AgentServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Strangers can't fill the log: so many refusals are logged in each ten seconds.
const REFUSALS_LOGGED: u64 = 10;

/// Logs refused connections, at a bounded rate; all of them are in the trust table's list.
#[derive(Debug, Default)]
struct RefusalLog {
    window: AtomicU64,
    logged: AtomicU64,
}

impl RefusalLog {
    fn warn(&self, remote: SocketAddr, error: &str) {
        let count = self.logged.fetch_add(1, Ordering::Relaxed);
        match count {
            0..REFUSALS_LOGGED => tracing::warn!(%remote, %error, "refused a connection to the agent port"),
            REFUSALS_LOGGED => tracing::warn!("further refusals are not logged for a while"),
            _ => {}
        }
    }

    /// Called with the running time now and then: a new window forgets the old one's count.
    fn tick(&self, now: std::time::Duration) {
        let window = now.as_secs() / 10;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.logged.store(0, Ordering::Relaxed);
        }
    }
}

/// What the listener needs of the rest.
pub struct ServerContext<J: LinkJudge = ServiceJudge> {
    /// The peers.
    pub links: Links<J>,
    /// Whom we trust.
    pub trust: Arc<TrustTable>,
    /// Who we are.
    pub identity: Arc<LocalIdentity>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Starts connection tasks.
    pub spawner: Spawner,
}

impl<J: LinkJudge> Clone for ServerContext<J> {
    fn clone(&self) -> Self {
        ServerContext {
            links: self.links.clone(),
            trust: self.trust.clone(),
            identity: self.identity.clone(),
            clock: self.clock.clone(),
            spawner: self.spawner.clone(),
        }
    }
}

impl<J: LinkJudge> std::fmt::Debug for ServerContext<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerContext").finish_non_exhaustive()
    }
}

impl AgentServer {
    /// Binds; port 0 takes any free one.
    pub async fn bind(address: SocketAddr) -> Result<AgentServer, BindError> {
        let listener = listen(address).map_err(|source| BindError { address, source })?;
        let address = listener.local_addr().map_err(|source| BindError { address, source })?;
        Ok(AgentServer { listener, address, limits: SharedLimits::default(), annex: None })
    }

    /// Keeps to these limits, as they are when a connection comes, instead of the defaults.
    pub fn limited(self, limits: SharedLimits) -> AgentServer {
        AgentServer { limits, ..self }
    }

    /// Serves another protocol beside, on the same port.
    pub fn with_annex(self, annex: Arc<dyn Annex>) -> AgentServer {
        AgentServer { annex: Some(annex), ..self }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until shutdown.
    pub async fn run<J: LinkJudge>(self, context: ServerContext<J>, shutdown: Shutdown) {
        let config = hamlet_identity::agent_server_config(&context.identity, &context.trust);
        let refusals = Arc::new(RefusalLog::default());
        let door = Arc::new(Door::new(self.annex));
        'accepting: loop {
            let Some(accepted) = shutdown.or_begun(self.listener.accept()).await else { break 'accepting };
            let (stream, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or a connection gone already: go on a little later.
                    tracing::warn!(%error, "accepting a peer's connection failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue 'accepting;
                }
            };
            refusals.tick(context.clock.now());
            let (context, config, shutdown) = (context.clone(), config.clone(), shutdown.clone());
            let limits = **self.limits.load();
            door.silent.set_per_prefix(limits.silent_per_prefix);
            let place = door.silent.enter(remote.ip());
            let (refusals, door) = (refusals.clone(), door.clone());
            context.spawner.clone().spawn("agent/connection", async move {
                // On the heap by itself: it is large, and gone once the connection is let in.
                let serving = Box::pin(async {
                    let letting_in = door.let_in(stream, remote, place, config, &context);
                    let let_in = tokio::time::timeout(transport::HANDSHAKE_DEADLINE, letting_in).await;
                    let late = || Err(Unwelcome::new("no complete TLS handshake within 5 s"));
                    match let_in.unwrap_or_else(|_| late()) {
                        Ok(Entered::Peer(tls, proven)) => {
                            serve(tls, proven, remote, limits, &door, &context, shutdown)
                        }
                        Ok(Entered::Annex(tls, serve)) => {
                            shutdown.or_begun(serve(tls, remote)).await;
                            None
                        }
                        Err(Unwelcome { why, told }) => {
                            refusals.warn(remote, &why);
                            if let Some(stream) = told {
                                shutdown.or_begun(door.lingering.close(stream, remote.ip())).await;
                            }
                            None
                        }
                    }
                });
                if let Some(serving) = serving.await {
                    serving.await;
                }
            });
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(STRANGERS_BACKLOG)
}

/// Who has come in.
enum Entered {
    /// A peer's agent.
    Peer(TlsStream<TcpStream>, ProvenPeer),
    /// A client of the annex; nothing else is open to it.
    Annex(TlsStream<TcpStream>, ServeAnnex),
}

/// Why a connection isn't let in.
struct Unwelcome {
    why: String,
    /// Where TLS has told the client, who may not have read it yet.
    told: Option<TcpStream>,
}

impl Unwelcome {
    fn new(why: impl ToString) -> Unwelcome {
        Unwelcome { why: why.to_string(), told: None }
    }
}

/// What stands before and around a handshake.
struct Door {
    annex: Option<Arc<dyn Annex>>,
    silent: SilentSockets,
    breaches: Breaches,
    lingering: Lingering,
    handshakes: Semaphore,
    waiting: Semaphore,
}

impl Door {
    fn new(annex: Option<Arc<dyn Annex>>) -> Door {
        Door {
            annex,
            silent: SilentSockets::new(SILENT_SOCKETS, None),
            breaches: Breaches::default(),
            lingering: Lingering::default(),
            handshakes: Semaphore::new(HANDSHAKES),
            waiting: Semaphore::new(HANDSHAKES_WAITING),
        }
    }

    /// From a socket to a proven peer; the caller sets the deadline for all of it.
    async fn let_in<J: LinkJudge>(
        &self,
        mut stream: TcpStream,
        remote: SocketAddr,
        place: SilentPlace,
        config: Arc<ServerConfig>,
        context: &ServerContext<J>,
    ) -> Result<Entered, Unwelcome> {
        transport::tune(&stream).map_err(Unwelcome::new)?;
        let Some(hello) = place.keep(read_hello(&mut stream)).await else {
            return Err(Unwelcome::new("the oldest socket without a ClientHello made room for another"));
        };
        let hello = hello.map_err(Unwelcome::new)?;
        let wait = self.breaches.wait(remote.ip(), context.clock.now()).map_err(Unwelcome::new)?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let overloaded = |_| Unwelcome::new("too many handshakes at once");
        let waiting = self.waiting.try_acquire().map_err(overloaded)?;
        let slot = self.handshakes.acquire().await.map_err(|_| Unwelcome::new("the agent is stopping"))?;
        let admitted = self.annex.as_ref().and_then(|annex| annex.admit(&hello.client_hello()));
        let (config, serve) = match admitted {
            Some(admitted) => (admitted.config, Some(admitted.serve)),
            None => (config, None),
        };
        let handshake = StartHandshake::from_parts(hello, stream).into_stream(config).into_fallible().await;
        drop((slot, waiting));
        let tls = handshake.map_err(|(error, stream)| {
            // Our own refusal says more than the TLS alert that it became.
            let ours = hamlet_identity::refusal_in(&error).map(ToString::to_string);
            Unwelcome { why: ours.unwrap_or_else(|| with_causes(&error)), told: Some(stream) }
        })?;
        if let Some(serve) = serve {
            return Ok(Entered::Annex(tls, serve));
        }
        // A client that offers no ALPN passes TLS; it doesn't speak HTTP/2.
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Unwelcome::new("the peer did not negotiate ALPN h2"));
        }
        let certificates = tls.get_ref().1.peer_certificates();
        let proven = hamlet_identity::proven_client(&context.trust, certificates, Role::Agent)
            .map_err(Unwelcome::new)?;
        Ok(Entered::Peer(tls, proven))
    }
}

/// Serves one connection to its end; `None` if it can't be. Not an `async fn`: those keep room for
/// their arguments as long as they run, and an idle connection is mostly its own size.
fn serve<J: LinkJudge>(
    tls: TlsStream<TcpStream>,
    proven: ProvenPeer,
    remote: SocketAddr,
    limits: ConnectionLimits,
    door: &Arc<Door>,
    context: &ServerContext<J>,
    shutdown: Shutdown,
) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let Some(link) = context.links.load().get(&proven.peer).cloned() else {
        tracing::warn!(%remote, peer = %proven.peer, "a trusted peer without a link");
        return None;
    };
    let Some(counted) = link.count_connection(limits.connections_per_peer) else {
        tracing::warn!(%remote, peer = %proven.peer, "too many connections of one peer; closed the newest");
        return None;
    };
    let certified = proven.peer.clone();
    let life = Life::new(&*context.clock, context.identity.not_after(), proven.not_after);
    let certificates = proven.chain.clone();
    let budget = Arc::new(StreamBudget::new(limits.streams_a_minute));
    let (tls, gauge) = Metered::new(tls, limits.frames, Side::Accepted, context.clock.clone());
    let rpc = Rpc {
        link: link.clone(),
        proven: Arc::new(proven),
        spawner: context.spawner.clone(),
        budget: budget.clone(),
    };
    // Boxed: HTTP/2 would keep the room of the opening for as long as the stream lives.
    let service = hyper::service::service_fn(move |request| Box::pin(rpc.clone().call(request)));
    let mut builder = hyper::server::conn::http2::Builder::new(SpawnExecutor(context.spawner.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(transport::STREAMS_MAX)
        .max_header_list_size(transport::HEADERS_BYTES)
        .max_send_buf_size(transport::SEND_BUFFER_BYTES)
        .initial_stream_window_size(transport::WINDOW_BYTES)
        .initial_connection_window_size(transport::WINDOW_BYTES)
        .max_pending_accept_reset_streams(16usize)
        .max_local_error_reset_streams(64usize)
        .keep_alive_interval(transport::SERVER_PING)
        .keep_alive_timeout(transport::PING_TIMEOUT);
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(tls), service));
    let (trust, clock, door) = (context.trust.clone(), context.clock.clone(), door.clone());
    let mut trust_changed = trust.changed();
    // Registered first, then checked again: trust may have shrunk since the handshake.
    if let Err(error) = hamlet_identity::proven_client(&trust, Some(&certificates), Role::Agent) {
        tracing::warn!(%remote, %error, "a connection is no longer trusted; closed");
        return None;
    }
    Some(Box::pin(async move {
        let _counted = counted;
        let (mut stopping, mut leaving) = (false, false);
        let mut last_word = Box::pin(tokio::time::sleep(LAST_WORD_MAX));
        'serving: loop {
            let going = !stopping;
            let rare = {
                let mut rare = rarely(async {
                    tokio::select! {
                        Ok(()) = trust_changed.changed() => Rare::Trust,
                        () = budget.overdrawn.notified() => Rare::Overdrawn,
                        // Who dialled has renewed before, if it could (dial/renewal.rs).
                        () = tokio::time::sleep(life.left(clock.now())) => Rare::Ended,
                        () = last_word.as_mut(), if leaving => Rare::Removed,
                        () = link.shutdown().forced() => Rare::Removed,
                        () = shutdown.begun(), if going => Rare::Stopping,
                    }
                });
                tokio::select! {
                    biased;
                    outcome = &mut connection => {
                        if let Some(flood) = gauge.flood() {
                            door.breaches.note(remote.ip(), clock.now());
                            link.count_flood();
                            tracing::warn!(%remote, peer = %certified, error = %flood, "closed a connection");
                        } else if let Err(error) = outcome {
                            if is_breach(&error) {
                                door.breaches.note(remote.ip(), clock.now());
                                link.count_flood();
                            }
                            tracing::debug!(%remote, error = %with_causes(&error), "a peer's connection broke");
                        }
                        break 'serving;
                    }
                    rare = &mut rare => rare,
                }
            };
            match rare {
                Rare::Trust => {
                    let again = hamlet_identity::proven_client(&trust, Some(&certificates), Role::Agent);
                    if let Err(error) = again {
                        if !link.is_leaving() {
                            tracing::warn!(%remote, %error, "a connection is no longer trusted; closed");
                            break 'serving;
                        }
                        // We have removed the peer: the goodbye may still go out.
                        leaving = true;
                        last_word.as_mut().reset(tokio::time::Instant::now() + LAST_WORD_MAX);
                    }
                }
                Rare::Removed => break 'serving,
                Rare::Overdrawn => {
                    door.breaches.note(remote.ip(), clock.now());
                    link.count_flood();
                    tracing::warn!(%remote, peer = %certified, "too many streams in a minute; closed the connection");
                    break 'serving;
                }
                Rare::Ended => {
                    tracing::info!(%remote, peer = %certified, "the certificates of a connection have ended; closed");
                    break 'serving;
                }
                Rare::Stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }))
}

/// What a connection's task waits for beside the connection.
enum Rare {
    /// The peer was removed, and has had its goodbye.
    Removed,
    Trust,
    Overdrawn,
    Ended,
    Stopping,
}

struct Rpc<J: LinkJudge> {
    link: Arc<Link<J>>,
    proven: Arc<ProvenPeer>,
    spawner: Spawner,
    budget: Arc<StreamBudget>,
}

impl<J: LinkJudge> Clone for Rpc<J> {
    fn clone(&self) -> Self {
        let Rpc { link, proven, spawner, budget } = self;
        Rpc { link: link.clone(), proven: proven.clone(), spawner: spawner.clone(), budget: budget.clone() }
    }
}

/// Counts the streams of one connection, whatever they ask for.
#[derive(Debug)]
struct StreamBudget {
    a_minute: u32,
    /// Begin of the minute that is counted, and how many were opened in it.
    minute: Mutex<(Duration, u32)>,
    overdrawn: Notify,
}

impl StreamBudget {
    fn new(a_minute: u32) -> StreamBudget {
        StreamBudget { a_minute, minute: Mutex::default(), overdrawn: Notify::new() }
    }

    /// Whether one more may be opened; if not, the connection is told to end.
    fn take(&self, now: Duration) -> bool {
        let mut minute = self.minute.lock();
        if now.saturating_sub(minute.0) >= MINUTE {
            *minute = (now, 0);
        }
        minute.1 = minute.1.saturating_add(1);
        let within = minute.1 <= self.a_minute;
        drop(minute);
        if !within {
            self.overdrawn.notify_one();
        }
        within
    }
}

/// What HTTP says to a request that isn't a gRPC call; `None` if it is one.
fn not_grpc(request: &http::Request<Body>) -> Option<http::Response<tonic::body::Body>> {
    let content_type = request.headers().get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    let status = if request.method() != http::Method::POST {
        http::StatusCode::METHOD_NOT_ALLOWED
    } else if !content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        http::StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else {
        return None;
    };
    let mut response = http::Response::new(tonic::body::Body::empty());
    *response.status_mut() = status;
    Some(response)
}

impl<J: LinkJudge> Rpc<J> {
    async fn call(
        self,
        request: http::Request<Body>,
    ) -> Result<http::Response<tonic::body::Body>, std::convert::Infallible> {
        if !self.budget.take(self.link.context().clock.now()) {
            let text = "more streams in a minute than one connection may open; connect again later";
            return Ok(Status::resource_exhausted(text).into_http());
        }
        let Some(dialect) = Dialect::of_path(request.uri().path()) else {
            let text = "this agent serves EstablishStream of federation.resourcediscovery.v1alpha2.DiscoveryService and federation.resourcediscovery.v1alpha1.DiscoveryService";
            return Ok(Status::unimplemented(text).into_http());
        };
        if let Some(refused) = not_grpc(&request) {
            return Ok(refused);
        }
        let config = self.link.config();
        let most = transport::MESSAGE_HARD_BYTES;
        let method = Establish { rpc: self, dialect };
        Ok(match dialect {
            Dialect::V1alpha1 => {
                let mut grpc = tonic::server::Grpc::new(config.v1_codec(End::Owner));
                grpc = grpc.max_decoding_message_size(most);
                grpc.streaming(method, request).await
            }
            Dialect::V1alpha2 => {
                let mut grpc = tonic::server::Grpc::new(config.v2_codec(J::TYPE_URL));
                grpc = grpc.max_decoding_message_size(most);
                grpc.streaming(method, request).await
            }
        })
    }

    async fn establish(
        self,
        dialect: Dialect,
        inbound: Streaming<Incoming>,
    ) -> Result<Response<Outbound>, Status> {
        let opened = self.link.open(dialect, false, &self.proven).await;
        let (cell, views) = opened.map_err(|end| Status::new(end.code, end.message))?;
        let (link, running) = (self.link, cell.clone());
        tracing::info!(peer = %link.peer(), stream = cell.id, version = %dialect, "stream accepted");
        self.spawner.spawn(format!("stream/{}", link.peer()), async move {
            let opening = std::future::ready(Ok(Box::new(inbound)));
            let end = running.run(opening, views, link.shutdown().clone()).await;
            link.close(&running, &end);
        });
        Ok(Response::new(Outbound::new(cell)))
    }
}

/// The method of one version.
struct Establish<J: LinkJudge> {
    rpc: Rpc<J>,
    dialect: Dialect,
}

impl<J: LinkJudge> tonic::server::StreamingService<Incoming> for Establish<J> {
    type Response = Outgoing;
    type ResponseStream = Outbound;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Outbound>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Incoming>>) -> Self::Future {
        Box::pin(self.rpc.clone().establish(self.dialect, request.into_inner()))
    }
}
