//! Dialling a peer, again and again: full jitter, slow after refusals, at once after a change. A
//! peer whose version isn't configured is asked for v1alpha2 first, and for the next version only
//! if it answers UNIMPLEMENTED: nothing else is a reason to speak an older one.

mod renewal;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_core::causes::with_causes;
use hamlet_core::imported::ServiceJudge;
use hamlet_identity::{CertificateRefused, Expect, LocalIdentity, ProvenPeer, Role, TrustTable};
use hamlet_runtime::{Backoff, Shutdown, Spawner, rarely};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::body::Body;

use self::renewal::Ended;
pub(crate) use self::renewal::Life;
use crate::dialect::Dialect;
use crate::dialect::v1alpha1::End;
use crate::frames::Side;
use crate::kind::LinkJudge;
use crate::limits::SharedLimits;
use crate::link::{Connection, Link, LinkConfig};
use crate::metered::{Gauge, Metered};
use crate::server::LAST_WORD_MAX;
use crate::session::{HELLO_WAIT, PeerClass, StreamEnd, StreamSession};
use crate::stream::{Outbound, StreamCell};
use crate::transport::{self, SpawnExecutor};

/// First delay before dialling again; full jitter.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay towards a Hamlet agent.
const CAP_HELLO: Duration = Duration::from_secs(4);
/// Longest delay towards anyone else.
const CAP_FOREIGN: Duration = Duration::from_secs(60);
/// Delay after a refusal: a slow probe (threat T28).
const CAP_REFUSED: Duration = Duration::from_secs(60);
/// Longest delay after the peer's TLS has refused our certificate. Shorter than after another refusal,
/// because its operators mend that and nothing tells us; the first delays are as ever, because a peer
/// that was just made, or whose roots rotate, may only be late.
const CAP_SHUT_OUT: Duration = Duration::from_secs(15);
/// A stream that lived so long counts as healthy.
const HEALTHY: Duration = Duration::from_secs(30);
/// First delay after an end that dialling again can only make worse: a whole state that doesn't
/// fit the peer's queue, or a message over the hard limit. Doubles to [`SLOW_CAP`].
pub const SLOW_FIRST: Duration = Duration::from_secs(120);
/// Longest of these delays.
pub const SLOW_CAP: Duration = Duration::from_secs(30 * 60);
/// What the Go server ends a stream with when its queue for us is full. Each such stream leaves a
/// dead consumer behind in it, which makes it skip updates to others.
const OVERFLOW: &str = "Discarding object due to overflow";

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
    #[error("{0} {1}")]
    Refused(String, CertificateRefused),
    #[error("our own certificate can't be used, so nobody is dialled: {0}")]
    OurIdentity(String),
}

/// A connection with a proven peer.
struct Connected {
    sender: SendRequest<Body>,
    proven: ProvenPeer,
    life: Life,
    gauge: Gauge,
}

/// Shortest time for one of several addresses.
const ADDRESS_SHARE_MIN: Duration = Duration::from_secs(1);

/// Tries addresses one after the other. Each has an equal share of `patience` to
/// connect in, and a second at least. The error is the one that says most.
async fn in_turn<T, F>(
    addresses: &[SocketAddr],
    patience: Duration,
    attempt: impl Fn(SocketAddr, Duration) -> F,
) -> Result<T, DialError>
where
    F: Future<Output = Result<T, DialError>>,
{
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let share = (patience / count).max(ADDRESS_SHARE_MIN);
    let mut worst: Option<DialError> = None;
    for at in addresses {
        match attempt(*at, share).await {
            Ok(connected) => return Ok(connected),
            Err(error) => {
                if worst.as_ref().is_none_or(|worst| worst.says() < error.says()) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or_else(|| DialError::Connect("it".to_owned(), "no address to dial".to_owned())))
}

impl DialError {
    /// How much it says of the peer: that somebody else answers is more than that nobody does.
    fn says(&self) -> u8 {
        match self {
            DialError::Connect(..) => 0,
            DialError::Tls(..) | DialError::Http(..) => 1,
            DialError::Untrusted(..) | DialError::Refused(..) | DialError::OurIdentity(_) => 2,
        }
    }

    /// As the end of a stream: what one side refuses is a refusal, all else is a peer that is down.
    fn end(&self) -> StreamEnd {
        match self {
            DialError::Untrusted(..) => StreamEnd::new(Code::Unauthenticated, self.to_string()),
            DialError::Refused(..) => StreamEnd::shut_out(self.to_string()),
            _ => StreamEnd::new(Code::Unavailable, self.to_string()),
        }
    }
}

/// How long to wait before the next attempt.
#[derive(Debug)]
struct Pace {
    backoff: Backoff,
    /// Ends in a row that dialling again can only make worse.
    slow: u32,
    due: Option<Duration>,
}

impl Pace {
    fn new() -> Pace {
        Pace { backoff: Backoff::new(FIRST, CAP_FOREIGN), slow: 0, due: None }
    }

    fn reset(&mut self) {
        *self = Pace::new();
    }

    fn next_delay(&mut self) -> Duration {
        self.due.take().unwrap_or_else(|| self.backoff.next_delay())
    }

    /// Learns from the end of a stream or attempt.
    fn ended(&mut self, end: &StreamEnd, class: &PeerClass) {
        let refusal = end.is_refusal() && !end.is_shut_out();
        self.backoff.set_cap(match class {
            _ if refusal => CAP_REFUSED,
            _ if end.is_shut_out() => CAP_SHUT_OUT,
            PeerClass::Foreign => CAP_FOREIGN,
            _ => CAP_HELLO,
        });
        if refusal {
            while self.backoff.attempts() < 5 {
                self.backoff.next_delay();
            }
        }
        if is_hopeless(end) {
            let wait = SLOW_FIRST.saturating_mul(1 << self.slow.min(8)).min(SLOW_CAP);
            self.slow += 1;
            self.due = Some(wait);
        }
    }

    /// A stream was healthy.
    fn healthy(&mut self) {
        self.backoff.reset();
        self.slow = 0;
    }
}

/// Whether dialling again can only make it worse.
fn is_hopeless(end: &StreamEnd) -> bool {
    end.code == Code::OutOfRange || end.message.contains(OVERFLOW)
}

/// Says what a known end means and why the next attempt is far away.
fn explained(end: StreamEnd) -> StreamEnd {
    if end.message.contains(OVERFLOW) {
        let text = format!(
            "the peer can't queue its whole state for us ({OVERFLOW}; the Go implementation holds 4096 messages); dialled again only after minutes, because each failed subscription makes it lose updates to others: have it offer fewer services"
        );
        return StreamEnd::new(end.code, text);
    }
    end
}

/// Whether a new configuration makes it worth dialling at once.
fn redials<R: ?Sized>(old: &LinkConfig<R>, new: &LinkConfig<R>) -> bool {
    old.address != new.address
        || old.version != new.version
        || old.context != new.context
        || old.paused != new.paused
        || old.extensions_required != new.extensions_required
        || old.import.is_some() != new.import.is_some()
}

/// Keeps a link's own stream up for as long as the peer has an address and hasn't dialled us.
#[derive(Debug)]
pub struct Dialler<J: LinkJudge = ServiceJudge> {
    link: Arc<Link<J>>,
    identity: Arc<LocalIdentity>,
    trust: Arc<TrustTable>,
    spawner: Spawner,
    /// Between our pings, in milliseconds: longer after the peer has complained of them.
    ping_ms: Arc<AtomicU64>,
    limits: SharedLimits,
}

impl<J: LinkJudge> Dialler<J> {
    /// A dialler for one link.
    pub fn new(
        link: Arc<Link<J>>,
        identity: Arc<LocalIdentity>,
        trust: Arc<TrustTable>,
        spawner: Spawner,
    ) -> Dialler<J> {
        let ping_ms = Arc::new(AtomicU64::new(transport::CLIENT_PING.as_millis() as u64));
        Dialler { link, identity, trust, spawner, ping_ms, limits: SharedLimits::default() }
    }

    /// Keeps to these limits, as they are when a connection is made, instead of the defaults.
    pub fn limited(self, limits: SharedLimits) -> Dialler<J> {
        Dialler { limits, ..self }
    }

    /// Runs until the link or the agent shuts down.
    pub async fn run(self, shutdown: Shutdown) {
        let mut pace = Pace::new();
        let mut changed = self.link.changed();
        let mut first = true;
        let mut last = self.link.config();
        'dialling: while !shutdown.has_begun() {
            let config = self.link.config();
            if redials(&last, &config) {
                first = true;
                pace.reset();
            }
            last = config.clone();
            let Some(address) = self.link.to_dial() else {
                if shutdown.or_begun(changed.changed()).await.is_none() {
                    break 'dialling;
                }
                continue 'dialling;
            };
            if !std::mem::take(&mut first) {
                let delay = pace.next_delay();
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
            if end.is_renewal() {
                first = true;
                continue 'dialling;
            }
            let lived = self.link.context().clock.now().saturating_sub(started);
            if proven || (lived >= HEALTHY && !is_hopeless(&end)) {
                pace.healthy();
            }
            pace.ended(&end, &class);
            self.note(&end);
        }
    }

    /// Waits before the next attempt; `false` if the peer has dialled us or the configuration
    /// changed meanwhile, so look again.
    async fn wait(&self, delay: Duration, config: &LinkConfig<J::Rules>, shutdown: &Shutdown) -> bool {
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
        let mut identity = self.identity.changed();
        identity.mark_unchanged();
        let mut over = std::pin::pin!(tokio::time::sleep(delay));
        'waiting: loop {
            tokio::select! {
                () = over.as_mut() => return true,
                _ = trust.changed() => return true,
                Ok(()) = identity.changed() => return true,
                () = shutdown.begun() => return false,
                _ = changed.changed() => {}
            }
            if self.link.to_dial().is_none() || redials(config, &self.link.config()) {
                break 'waiting false;
            }
        }
    }

    fn note(&self, end: &StreamEnd) {
        if self.link.to_dial().is_none() {
            return;
        }
        let connection = if end.is_refusal() {
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

    /// One connection's stream, to its end; a second stream on it in the next version if the peer
    /// doesn't know the first.
    async fn talk(&self, connected: Connected, address: &str) -> Ended {
        let unknown = |end| (end, PeerClass::Unknown, false);
        let Connected { sender, proven, gauge, .. } = connected;
        let (mut unknown_version, mut unwanted) = (None, None);
        for dialect in self.link.versions() {
            if let Err(why) = self.worth_dialling(dialect) {
                unwanted = Some((dialect, why));
                continue;
            }
            let (end, cell) = self.stream(dialect, sender.clone(), &proven, address, &gauge).await;
            let Some(cell) = cell else { return unknown(end) };
            let class = cell.look(|s| s.class().clone());
            let healthy = cell.look(|s| s.owner.as_ref().is_some_and(|o| o.stats().proof.is_some()));
            if end.code != Code::Unimplemented || cell.look(StreamSession::has_heard) {
                return (end, class, healthy);
            }
            unknown_version = Some((dialect, end));
        }
        let end = match (unknown_version, unwanted) {
            (Some((tried, end)), Some((other, why))) => {
                let said = end.message;
                let text =
                    format!("the peer doesn't know {tried} ({said}), and {other} is no way out: {why}");
                StreamEnd::new(Code::FailedPrecondition, text)
            }
            (Some((_, end)), None) => end,
            (None, Some((_, why))) => StreamEnd::new(Code::FailedPrecondition, why),
            (None, None) => StreamEnd::new(Code::Unavailable, "no version to speak; see spec.version"),
        };
        unknown(end)
    }

    /// Whether a version may be dialled, or why not.
    fn worth_dialling(&self, dialect: Dialect) -> Result<(), String> {
        let config = self.link.config();
        config.may_speak(dialect).map_err(|end| end.message)?;
        if dialect == Dialect::V1alpha1 && !config.imports() {
            return Err("there the importer dials, and we import nothing; the peer has to dial us".to_owned());
        }
        Ok(())
    }

    /// One stream, to its end.
    async fn stream(
        &self,
        dialect: Dialect,
        sender: SendRequest<Body>,
        proven: &ProvenPeer,
        address: &str,
        gauge: &Gauge,
    ) -> (StreamEnd, Option<Arc<StreamCell>>) {
        let (cell, views) = match self.link.open(dialect, true, proven).await {
            Ok(opened) => opened,
            Err(end) => return (end, None),
        };
        let config = self.link.config();
        let started = self.link.context().clock.now();
        let origin = http::Uri::builder().scheme("https").authority(address).path_and_query("/").build();
        let origin = match origin {
            Ok(origin) => origin,
            Err(error) => {
                let end = StreamEnd::new(Code::InvalidArgument, format!("{address}: {error}"));
                cell.end(end.clone());
                self.link.close(&cell, &end);
                return (end, None);
            }
        };
        let mut grpc = tonic::client::Grpc::with_origin(Transport(sender), origin)
            .max_decoding_message_size(transport::MESSAGE_HARD_BYTES);
        let outbound = Outbound::new(cell.clone()).without_status();
        let path = http::uri::PathAndQuery::from_static(dialect.path());
        let request = tonic::Request::new(outbound);
        // Some servers send headers only with their first message; what we say goes out
        // meanwhile, so this is no deadlock, only a wait.
        let opening = async {
            let calling = async {
                match dialect {
                    Dialect::V1alpha1 => grpc.streaming(request, path, config.v1_codec(End::Consumer)).await,
                    Dialect::V1alpha2 => grpc.streaming(request, path, config.v2_codec(J::TYPE_URL)).await,
                }
            };
            let gone = || Err(tonic::Status::unavailable("the connection ended before the first answer"));
            match gauge.while_connected(calling).await.unwrap_or_else(gone) {
                Ok(response) => {
                    self.link.pin(dialect);
                    Ok(Box::new(response.into_inner()))
                }
                Err(status) => {
                    let end = StreamEnd::new(status.code(), describe(&status));
                    Err(self.heard_out(end, gauge, address))
                }
            }
        };
        let end = explained(cell.run(opening, views, self.link.shutdown().clone()).await);
        let end = self.heard_out(end, gauge, address);
        let lived = self.link.context().clock.now().saturating_sub(started);
        // A server that sends its headers with the first service: that it hasn't said it doesn't
        // know the method has to do.
        if lived >= HELLO_WAIT && end.code != Code::Unimplemented {
            self.link.pin(dialect);
        }
        cell.end(end.clone());
        self.link.close(&cell, &end);
        (end, Some(cell))
    }

    /// The end of a stream as the connection has it, if that was refused by the peer's TLS or flooded:
    /// all that HTTP/2 can tell is that the connection is gone.
    fn heard_out(&self, end: StreamEnd, gauge: &Gauge, address: &str) -> StreamEnd {
        if end.is_refusal() || end.is_renewal() {
            return end;
        }
        if let Some(flood) = gauge.flood() {
            return StreamEnd::new(Code::ResourceExhausted, flood.to_string());
        }
        match gauge.refused() {
            Some(refused) => self.link.after_goodbye(DialError::Refused(address.to_owned(), refused).end()),
            None => end,
        }
    }

    /// Connects to the first of the name's addresses at which the peer answers.
    async fn connect(&self, address: &str) -> Result<Connected, DialError> {
        if let Some(why) = self.identity.unusable() {
            return Err(DialError::OurIdentity(why));
        }
        let unreachable = |why: String| DialError::Connect(address.to_owned(), why);
        let found = transport::resolve(address).await.map_err(unreachable)?;
        let attempt = |at: SocketAddr, patience: Duration| self.connect_at(address, at, patience);
        let in_turn = in_turn(&found, transport::HANDSHAKE_DEADLINE, attempt);
        let most = transport::HANDSHAKE_DEADLINE * 2;
        let late = || unreachable(format!("no handshake with any of its addresses within {most:?}"));
        tokio::time::timeout(most, in_turn).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connect_at(
        &self,
        address: &str,
        at: SocketAddr,
        patience: Duration,
    ) -> Result<Connected, DialError> {
        let peer: &PeerName = self.link.peer();
        let unreachable = |why: String| {
            let at = at.to_string();
            let named = if at == address { at } else { format!("{address} ({at})") };
            DialError::Connect(named, why)
        };
        let stream = match tokio::time::timeout(patience, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {patience:?}"))),
        };
        let tls_error = |text: String| DialError::Tls(address.to_owned(), text);
        let untrusted = |text: String| DialError::Untrusted(address.to_owned(), text);
        let refused = |by: CertificateRefused| DialError::Refused(address.to_owned(), by);
        transport::tune(&stream).map_err(|e| tls_error(e.to_string()))?;
        let trusted = self.trust.peer(peer);
        let trusted = trusted.ok_or_else(|| untrusted("the peer has no trust bundle".to_owned()))?;
        let config = hamlet_identity::agent_client_config(&self.identity, &self.trust, peer);
        // Looked at before it is shown: a renewal in between only makes it shorter than it is.
        let ours = self.identity.not_after();
        let name = hamlet_identity::peer_server_name(&trusted);
        let handshake = TlsConnector::from(config).connect(name, stream);
        let tls = match tokio::time::timeout(transport::HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                if let Some(ours) = hamlet_identity::refusal_in(&error) {
                    return Err(untrusted(ours.to_string()));
                }
                let theirs = CertificateRefused::found_in(&error).filter(|r| r.is_of_certificates_only());
                return Err(theirs.map_or_else(|| tls_error(with_causes(&error)), refused));
            }
            Err(_) => return Err(tls_error("no complete handshake within 5 s".to_owned())),
        };
        let certificates = tls.get_ref().1.peer_certificates();
        let proven =
            hamlet_identity::proven_server(&self.trust, certificates, Role::Agent, Expect::Peer(peer))
                .map_err(|e| untrusted(e.to_string()))?;
        let certificates: Vec<_> = certificates.unwrap_or_default().to_vec();
        let clock = self.link.context().clock.clone();
        let life = Life::new(&*clock, ours, proven.not_after);
        let mut builder = hyper::client::conn::http2::Builder::new(SpawnExecutor(self.spawner.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(transport::WINDOW_BYTES)
            .initial_connection_window_size(transport::WINDOW_BYTES)
            .max_send_buf_size(transport::SEND_BUFFER_BYTES)
            .max_header_list_size(transport::HEADERS_BYTES)
            .keep_alive_interval(Duration::from_millis(self.ping_ms.load(Ordering::Relaxed)))
            .keep_alive_timeout(transport::PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let (tls, gauge) =
            Metered::new(tls, self.limits.load().frames, Side::Dialled, self.link.context().clock.clone());
        let (sender, connection) = builder.handshake(TokioIo::new(tls)).await.map_err(|error| {
            let http = || DialError::Http(address.to_owned(), with_causes(&error));
            gauge.refused().map_or_else(http, refused)
        })?;
        let flood = gauge.clone();
        let (trust, link, ping_ms) = (self.trust.clone(), self.link.clone(), self.ping_ms.clone());
        self.spawner.spawn(format!("dial/{peer}"), async move {
            let mut changed = trust.changed();
            let mut leaving = false;
            let last_word = tokio::time::sleep(LAST_WORD_MAX);
            tokio::pin!(connection, last_word);
            'driving: loop {
                let trusted_anew = {
                let mut rare = rarely(async {
                    tokio::select! {
                        Ok(()) = changed.changed() => true,
                        () = link.shutdown().forced() => false,
                        () = last_word.as_mut(), if leaving => false,
                    }
                });
                tokio::select! {
                    biased;
                    ended = &mut connection => {
                        if ended.is_err_and(|error| transport::told_to_calm(&error)) {
                            let most = transport::CLIENT_PING_MAX.as_millis() as u64;
                            let next = most.min(ping_ms.load(Ordering::Relaxed) * 2);
                            ping_ms.store(next, Ordering::Relaxed);
                            tracing::info!(peer = %link.peer(), next_ms = next, "the peer wants fewer pings");
                        }
                        if let Some(flood) = flood.flood() {
                            link.count_flood();
                            tracing::warn!(peer = %link.peer(), error = %flood, "closed a connection");
                            link.end_stream(StreamEnd::new(Code::ResourceExhausted, flood.to_string()));
                        }
                        break 'driving;
                    }
                    happened = &mut rare => happened,
                }
                };
                if !trusted_anew {
                    break 'driving;
                }
                let expect = Expect::Peer(link.peer());
                if let Err(error) =
                    hamlet_identity::proven_server(&trust, Some(&certificates), Role::Agent, expect)
                {
                    if link.is_leaving() {
                        // We have removed the peer: the goodbye may still go out.
                        leaving = true;
                        last_word.as_mut().reset(tokio::time::Instant::now() + LAST_WORD_MAX);
                        continue 'driving;
                    }
                    tracing::warn!(peer = %link.peer(), %error, "a connection is no longer trusted; closed");
                    // Dropping the connection alone would let its streams go on.
                    link.end_stream(StreamEnd::new(Code::Unauthenticated, error.to_string()));
                    break 'driving;
                }
            }
        });
        Ok(Connected { sender, proven, life, gauge })
    }
}

/// A failed call in words. A peer that refuses our certificate says so in TLS ([`Dialler::heard_out`]);
/// one that closes without a word may mean the same, so that possibility is named.
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

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::AlertDescription;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn addresses_of_a_name_are_tried_in_turn_and_one_that_is_silent_takes_only_its_share() {
        const PATIENCE: Duration = Duration::from_secs(5);
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 7443));
        let named = || "agent.acme.example:7443".to_owned();
        // 1 refuses, 2 is silent, 3 is somebody else, 4 is the peer.
        let attempt = |at: SocketAddr, patience: Duration| async move {
            let SocketAddr::V4(v4) = at else { unreachable!() };
            match v4.ip().octets()[3] {
                1 => Err(DialError::Connect(named(), "refused".to_owned())),
                2 => {
                    tokio::time::sleep(patience).await;
                    Err(DialError::Connect(named(), "silent".to_owned()))
                }
                3 => Err(DialError::Untrusted(named(), "another id".to_owned())),
                n => Ok(n),
            }
        };
        let tried = |order: Vec<u8>| async move {
            let addresses: Vec<SocketAddr> = order.into_iter().map(at).collect();
            let began = tokio::time::Instant::now();
            (in_turn(&addresses, PATIENCE, attempt).await, began.elapsed())
        };
        assert!(matches!(tried(vec![4, 2]).await, (Ok(4), Duration::ZERO)), "nobody waits for the second");
        assert!(matches!(tried(vec![1, 3, 4]).await, (Ok(4), _)));
        let (silent_first, took) = tried(vec![2, 4]).await;
        assert!(silent_first.is_ok() && took == PATIENCE / 2, "{took:?}");
        let (_, took) = tried(vec![2; 8]).await;
        assert_eq!(took, ADDRESS_SHARE_MIN * 8);
        let (_, alone) = tried(vec![2]).await;
        assert_eq!(alone, PATIENCE);
        assert!(matches!(tried(vec![1, 3, 2]).await.0, Err(DialError::Untrusted(..))), "it says most");
        assert!(matches!(tried(vec![]).await.0, Err(DialError::Connect(..))));
    }

    #[test]
    fn an_end_that_dialling_makes_worse_is_answered_with_minutes_that_double() {
        let mut pace = Pace::new();
        let overflow = explained(StreamEnd::new(Code::Unavailable, OVERFLOW));
        assert!(overflow.message.contains(OVERFLOW) && overflow.message.contains("minutes"));
        let minutes: Vec<u64> = (0..7)
            .map(|_| {
                pace.ended(&overflow, &PeerClass::Foreign);
                pace.next_delay().as_secs() / 60
            })
            .collect();
        assert_eq!(minutes, [2, 4, 8, 16, 30, 30, 30]);
        pace.healthy();
        pace.ended(&StreamEnd::new(Code::OutOfRange, "over 4 MiB"), &PeerClass::Foreign);
        assert_eq!(pace.next_delay(), SLOW_FIRST);
        let lost = StreamEnd::new(Code::Unavailable, "lost");
        pace.healthy();
        pace.ended(&lost, &PeerClass::Foreign);
        assert!(pace.next_delay() <= CAP_FOREIGN, "an ordinary end is nothing of the kind");
        assert_eq!(explained(lost.clone()), lost);
    }

    #[test]
    fn a_refused_certificate_is_dialled_again_ever_more_slowly_but_never_only_each_minute() {
        let refused = CertificateRefused::by(AlertDescription::CertificateUnknown).unwrap();
        let shut_out = DialError::Refused("192.0.2.1:7443".to_owned(), refused).end();
        assert!(shut_out.is_refusal() && shut_out.is_shut_out());
        assert!(shut_out.message.starts_with("192.0.2.1:7443 refuses our certificate"), "{shut_out}");
        let within = |end: &StreamEnd, tries: u32| {
            let mut pace = Pace::new();
            for _ in 0..tries {
                pace.ended(end, &PeerClass::Unknown);
                pace.next_delay();
            }
            pace.ended(end, &PeerClass::Unknown);
            pace.backoff.next_with(1.0)
        };
        assert_eq!([0, 1, 2, 3, 4, 9].map(|n| within(&shut_out, n).as_secs()), [1, 2, 4, 8, 15, 15]);
        let refusal = StreamEnd::new(Code::Unauthenticated, "paused");
        assert!(!refusal.is_shut_out() && within(&refusal, 0) > CAP_SHUT_OUT, "what it says on a stream");
        let lost = StreamEnd::new(Code::Unavailable, "lost");
        assert_eq!(within(&lost, 9), CAP_HELLO);
    }
}
