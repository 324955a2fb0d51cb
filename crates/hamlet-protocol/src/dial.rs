//! Dialling a peer, again and again: full jitter, slow after refusals, at once after a change.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::{Expect, LocalIdentity, ProvenPeer, Role, TrustTable};
use hamlet_runtime::{Backoff, Shutdown, Spawner};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::body::Body;

use crate::dialect::v1alpha2::PATH;
use crate::link::{Connection, Link, LinkConfig};
use crate::session::{PeerClass, StreamEnd};
use crate::stream::Outbound;
use crate::transport::{self, SpawnExecutor};

/// First delay before dialling again; full jitter.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay towards a Hamlet agent.
const CAP_HELLO: Duration = Duration::from_secs(4);
/// Longest delay towards anyone else.
const CAP_FOREIGN: Duration = Duration::from_secs(60);
/// Delay after a refusal: a slow probe (threat T28).
const CAP_REFUSED: Duration = Duration::from_secs(60);
/// A stream that lived so long counts as healthy.
const HEALTHY: Duration = Duration::from_secs(30);

/// Why a dial failed; the text says at which step.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot reach {0}: {1}")]
    Connect(String, String),
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
    #[error("HTTP/2 with {0} failed: {1}")]
    Http(String, String),
    #[error("{0} is not trusted: {1}")]
    Untrusted(String, String),
}

impl DialError {
    /// As the end of a stream: what we refuse is a refusal, all else is a peer that is down.
    fn end(&self) -> StreamEnd {
        let code = match self {
            DialError::Untrusted(..) => Code::Unauthenticated,
            _ => Code::Unavailable,
        };
        StreamEnd::new(code, self.to_string())
    }
}

/// Whether a new configuration makes it worth dialling at once.
fn redials(old: &LinkConfig, new: &LinkConfig) -> bool {
    old.address != new.address
        || old.context != new.context
        || old.paused != new.paused
        || old.extensions_required != new.extensions_required
        || old.import.is_some() != new.import.is_some()
}

/// Keeps a link's own stream up for as long as the peer has an address and hasn't dialled us.
#[derive(Debug)]
pub struct Dialler {
    link: Arc<Link>,
    identity: Arc<LocalIdentity>,
    trust: Arc<TrustTable>,
    spawner: Spawner,
}

impl Dialler {
    /// A dialler for one link.
    pub fn new(
        link: Arc<Link>,
        identity: Arc<LocalIdentity>,
        trust: Arc<TrustTable>,
        spawner: Spawner,
    ) -> Dialler {
        Dialler { link, identity, trust, spawner }
    }

    /// Runs until the link or the agent shuts down.
    pub async fn run(self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(FIRST, CAP_FOREIGN);
        let mut changed = self.link.changed();
        let mut first = true;
        let mut last = self.link.config();
        'dialling: while !shutdown.has_begun() {
            let config = self.link.config();
            if redials(&last, &config) {
                first = true;
                backoff.reset();
            }
            last = config.clone();
            let Some(address) =
                config.address.clone().filter(|_| !config.paused && self.link.active().is_none())
            else {
                if shutdown.or_begun(changed.changed()).await.is_none() {
                    break 'dialling;
                }
                continue 'dialling;
            };
            if !std::mem::take(&mut first) {
                let delay = backoff.next_delay();
                if !self.wait(delay, &config, &shutdown).await {
                    // A new configuration is tried at once.
                    first = !Arc::ptr_eq(&config, &self.link.config());
                    continue 'dialling;
                }
            }
            self.link.set_connection(Connection::Connecting, None);
            let started = self.link.context().clock.now();
            // Not dropped when shutdown begins: the stream has to say goodbye and let its connection go.
            let (end, class, proven) = self.attempt(&address, &shutdown).await;
            if shutdown.has_begun() {
                break 'dialling;
            }
            let lived = self.link.context().clock.now().saturating_sub(started);
            if proven || lived >= HEALTHY {
                backoff.reset();
            }
            self.note(&end, class, &mut backoff);
        }
    }

    /// Waits before the next attempt; `false` if the peer has dialled us or the configuration
    /// changed meanwhile, so look again.
    async fn wait(&self, delay: Duration, config: &LinkConfig, shutdown: &Shutdown) -> bool {
        let next = Some(self.link.context().clock.now() + delay);
        let status = self.link.status().connection;
        let waiting = match status {
            Connection::Refused { .. } => Connection::Refused { next_attempt: next },
            _ => Connection::Down { next_attempt: next },
        };
        self.link.set_connection(waiting, None);
        let mut changed = self.link.changed();
        changed.mark_unchanged();
        let mut trust = self.trust.changed();
        trust.mark_unchanged();
        let mut over = std::pin::pin!(tokio::time::sleep(delay));
        'waiting: loop {
            tokio::select! {
                () = over.as_mut() => return true,
                _ = trust.changed() => return true,
                () = shutdown.begun() => return false,
                _ = changed.changed() => {}
            }
            if self.link.active().is_some() || redials(config, &self.link.config()) {
                break 'waiting false;
            }
        }
    }

    fn note(&self, end: &StreamEnd, class: PeerClass, backoff: &mut Backoff) {
        let refusal = end.is_refusal();
        backoff.set_cap(match (refusal, class) {
            (true, _) => CAP_REFUSED,
            (false, PeerClass::Foreign) => CAP_FOREIGN,
            (false, _) => CAP_HELLO,
        });
        if refusal {
            while backoff.attempts() < 5 {
                backoff.next_delay();
            }
        }
        if self.link.active().is_some() || self.link.config().paused {
            return;
        }
        let connection = if refusal {
            Connection::Refused { next_attempt: None }
        } else {
            Connection::Down { next_attempt: None }
        };
        // The same again is no news.
        if self.link.status().last_error.as_ref() == Some(&end.message) {
            tracing::debug!(peer = %self.link.peer(), reason = %end.message, "not connected");
        } else {
            tracing::info!(peer = %self.link.peer(), reason = %end.message, "not connected");
        }
        self.link.set_connection(connection, Some(end.message.clone()));
    }

    /// One connection and its stream, to its end. Also says what the peer was and whether the
    /// stream was healthy.
    async fn attempt(&self, address: &str, shutdown: &Shutdown) -> (StreamEnd, PeerClass, bool) {
        let unknown = |end| (end, PeerClass::Unknown, false);
        let connected = match shutdown.or_begun(self.connect(address)).await {
            Some(Ok(connected)) => connected,
            Some(Err(error)) => return unknown(error.end()),
            None => return unknown(StreamEnd::new(Code::Unavailable, "the agent is stopping")),
        };
        let (sender, proven) = connected;
        let (cell, views) = match self.link.open(true, &proven).await {
            Ok(opened) => opened,
            Err(end) => return unknown(end),
        };
        let codec = self.link.config().codec();
        let origin = http::Uri::builder().scheme("https").authority(address).path_and_query("/").build();
        let origin = match origin {
            Ok(origin) => origin,
            Err(error) => {
                return unknown(StreamEnd::new(Code::InvalidArgument, format!("{address}: {error}")));
            }
        };
        let mut grpc = tonic::client::Grpc::with_origin(Transport(sender), origin)
            .max_decoding_message_size(transport::MESSAGE_HARD_BYTES);
        let outbound = Outbound::new(cell.clone()).without_status();
        let path = http::uri::PathAndQuery::from_static(PATH);
        let calling = grpc.streaming(tonic::Request::new(outbound), path, codec);
        // Some servers send headers only with their first message; what we say goes out
        // meanwhile, so this is no deadlock, only a wait.
        let opening = async {
            let called = calling.await;
            called.map(tonic::Response::into_inner).map_err(|s| StreamEnd::new(s.code(), describe(&s)))
        };
        let end = cell.run(opening, views, self.link.shutdown().clone()).await;
        let class = cell.look(|s| s.class().clone());
        let healthy = cell.look(|s| s.owner.as_ref().is_some_and(|o| o.stats().proof.is_some()));
        cell.end(end.clone());
        self.link.close(&cell, &end);
        (end, class, healthy)
    }

    async fn connect(&self, address: &str) -> Result<(SendRequest<Body>, ProvenPeer), DialError> {
        let peer: &PeerName = self.link.peer();
        let connect = tokio::time::timeout(transport::HANDSHAKE_DEADLINE, TcpStream::connect(address));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(DialError::Connect(address.to_owned(), error.to_string())),
            Err(_) => return Err(DialError::Connect(address.to_owned(), "no answer within 5 s".to_owned())),
        };
        let tls_error = |text: String| DialError::Tls(address.to_owned(), text);
        let untrusted = |text: String| DialError::Untrusted(address.to_owned(), text);
        transport::tune(&stream).map_err(|e| tls_error(e.to_string()))?;
        let trusted = self.trust.peer(peer);
        let domain =
            trusted.ok_or_else(|| untrusted("the peer has no trust bundle".to_owned()))?.trust_domain.clone();
        let config = hamlet_identity::agent_client_config(&self.identity, &self.trust, peer);
        let name = hamlet_identity::agent_server_name(&domain);
        let handshake = TlsConnector::from(config).connect(name, stream);
        let tls = match tokio::time::timeout(transport::HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                let ours = hamlet_identity::refusal_in(&error).map(ToString::to_string);
                return Err(ours.map_or_else(|| tls_error(transport::chain(&error)), untrusted));
            }
            Err(_) => return Err(tls_error("no complete handshake within 5 s".to_owned())),
        };
        let certificates = tls.get_ref().1.peer_certificates();
        let proven =
            hamlet_identity::proven_server(&self.trust, certificates, Role::Agent, Expect::Peer(peer))
                .map_err(|e| untrusted(e.to_string()))?;
        let certificates: Vec<_> = certificates.unwrap_or_default().to_vec();
        let mut builder = hyper::client::conn::http2::Builder::new(SpawnExecutor(self.spawner.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(transport::WINDOW_BYTES)
            .initial_connection_window_size(transport::WINDOW_BYTES)
            .max_send_buf_size(transport::SEND_BUFFER_BYTES)
            .max_header_list_size(transport::HEADERS_BYTES)
            .keep_alive_interval(transport::CLIENT_PING)
            .keep_alive_timeout(transport::PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let (sender, connection) = builder
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|e| DialError::Http(address.to_owned(), transport::chain(&e)))?;
        let (trust, link) = (self.trust.clone(), self.link.clone());
        self.spawner.spawn(format!("dial/{peer}"), async move {
            let mut changed = trust.changed();
            tokio::pin!(connection);
            'driving: loop {
                tokio::select! {
                    _ = &mut connection => break 'driving,
                    Ok(()) = changed.changed() => {
                        let expect = Expect::Peer(link.peer());
                        if let Err(error) = hamlet_identity::proven_server(&trust, Some(&certificates), Role::Agent, expect) {
                            tracing::warn!(peer = %link.peer(), %error, "a connection is no longer trusted; closed");
                            // Dropping the connection alone would let its streams go on.
                            link.end_stream(StreamEnd::new(Code::Unauthenticated, error.to_string()));
                            break 'driving;
                        }
                    }
                    () = link.shutdown().forced() => break 'driving,
                }
            }
        });
        Ok((sender, proven))
    }
}

/// A failed call in words: TLS 1.3 tells a client that its certificate was refused only on the
/// first read, so that possibility is named.
fn describe(status: &tonic::Status) -> String {
    let text = if status.message().is_empty() {
        format!("{:?}", status.code())
    } else {
        status.message().to_owned()
    };
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled => {
            format!(
                "the connection closed before the first answer ({text}); if it repeats, the peer may not trust our certificate: see its log"
            )
        }
        _ => text,
    }
}

/// One HTTP/2 connection as tonic wants it.
struct Transport(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Transport {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
