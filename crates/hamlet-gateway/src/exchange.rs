//! One HTTP request to an upstream and its response back: connections kept for reuse, versions
//! and authorities rewritten, WebSocket upgrades passed through (no others).
//!
//! It knows neither who the client is nor which upstream is right: [`Connect`] opens
//! connections, and each has the guard that may cut it. A request is sent a second time only if
//! nothing of it was sent, or if it is safe and without body.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hamlet_runtime::Clock;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::guard::Guard;
use crate::headers::{self, Body, answer};
use crate::http_server::Tasks;
use crate::limits::{HTTP_HEADER_BYTES, HTTP_IDLE, HTTP_IDLE_TIME};

/// Opens upstream connections; the error is the answer for the client.
pub(crate) trait Connect: Send + Sync {
    fn connect(&self) -> impl Future<Output = Result<Line, Response<Body>>> + Send;
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

/// An upstream connection, ready for requests.
pub(crate) struct Line {
    sender: Sender,
    guard: Guard,
}

enum SendError {
    /// Nothing was sent; here is the request.
    Unsent(Box<Request<Body>>),
    Failed(hyper::Error),
}

/// Starts HTTP on `stream`. The future drives the connection and must be run by the caller.
pub(crate) async fn open<S>(
    stream: S,
    http2: bool,
    tasks: Tasks,
    guard: Guard,
) -> Result<(Line, BoxFuture<'static, ()>), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    if http2 {
        let mut builder = http2::Builder::new(tasks);
        builder.timer(TokioTimer::new()).max_header_list_size(HTTP_HEADER_BYTES as u32);
        let (sender, connection) = builder.handshake(io).await?;
        let drive = connection.map(|out| failed(out.err())).boxed();
        return Ok((Line { sender: Sender::H2(sender), guard }, drive));
    }
    let mut builder = http1::Builder::new();
    let (sender, connection) = builder.max_buf_size(HTTP_HEADER_BYTES).handshake(io).await?;
    let drive = connection.with_upgrades().map(|out| failed(out.err())).boxed();
    Ok((Line { sender: Sender::H1(sender), guard }, drive))
}

fn failed(error: Option<hyper::Error>) {
    if let Some(error) = error {
        tracing::debug!(%error, "upstream HTTP connection failed");
    }
}

impl Line {
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        let ready = match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        };
        if !ready {
            return Err(SendError::Unsent(Box::new(request)));
        }
        let sent = match &mut self.sender {
            Sender::H1(sender) => sender.try_send_request(request).await,
            Sender::H2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| match error.take_message() {
            Some(request) => SendError::Unsent(Box::new(request)),
            None => SendError::Failed(error.into_error()),
        })
    }

    fn closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }

    /// Whether a request would be sent at once. An HTTP/1 line becomes ready again by itself
    /// when the response before was read to its end.
    fn ready(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_ready(),
            Sender::H2(sender) => sender.is_ready(),
        }
    }
}

#[derive(Default)]
struct Idle {
    lines: Vec<(Line, Duration)>,
    closed: bool,
}

impl Idle {
    fn sweep(&mut self, now: Duration) {
        self.lines.retain(|(line, since)| {
            !line.closed() && line.guard.is_open() && now.saturating_sub(*since) < HTTP_IDLE_TIME
        });
    }
}

/// Connections of one route that wait for their next request.
pub(crate) struct Pool {
    idle: Mutex<Idle>,
    clock: Arc<dyn Clock>,
}

impl Pool {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Pool {
        Pool { idle: Mutex::default(), clock }
    }

    fn take(&self) -> Option<Line> {
        let now = self.clock.now();
        let mut idle = self.idle.lock();
        idle.sweep(now);
        let at = idle.lines.iter().rposition(|(line, _)| line.ready())?;
        if let Sender::H2(sender) = &idle.lines[at].0.sender {
            // Requests share an HTTP/2 connection; it stays where it is.
            let shared = Line { sender: Sender::H2(sender.clone()), guard: idle.lines[at].0.guard.clone() };
            idle.lines[at].1 = now;
            return Some(shared);
        }
        Some(idle.lines.remove(at).0)
    }

    fn put(&self, line: Line) {
        let now = self.clock.now();
        let mut idle = self.idle.lock();
        let shared = matches!(line.sender, Sender::H2(_)) && !idle.lines.is_empty();
        if !shared && !idle.closed && idle.lines.len() < HTTP_IDLE {
            idle.lines.push((line, now));
        }
    }

    /// Closes what waited too long; says whether something still waits.
    pub(crate) fn sweep(&self) -> bool {
        let now = self.clock.now();
        let mut idle = self.idle.lock();
        idle.sweep(now);
        !idle.lines.is_empty()
    }

    /// Closes what waits and keeps nothing any more.
    pub(crate) fn close(&self) {
        let mut idle = self.idle.lock();
        idle.closed = true;
        idle.lines.clear();
    }
}

/// How a request is to be sent on.
pub(crate) struct Onward {
    /// HTTP/2 with prior knowledge, else HTTP/1.1.
    pub(crate) http2: bool,
    /// The authority that the upstream sees.
    pub(crate) authority: String,
    /// Fields of ours.
    pub(crate) fields: Vec<(HeaderName, HeaderValue)>,
}

/// An upgraded connection, to be joined by the caller in a task of its own.
pub(crate) struct Tunnel {
    pub(crate) client: OnUpgrade,
    pub(crate) upstream: OnUpgrade,
    pub(crate) guard: Guard,
}

/// Sends `request` on and returns the answer, ours where there is no other.
pub(crate) async fn forward<C: Connect>(
    mut request: Request<Incoming>,
    onward: Onward,
    pool: &Pool,
    connect: &C,
    tunnel: impl FnOnce(Tunnel),
) -> Response<Body> {
    let may_upgrade = !onward.http2 && request.version() == Version::HTTP_11;
    let upgrade = headers::upgrade_to(request.headers()).filter(|_| may_upgrade);
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let Some(request) = rewrite(request, onward, upgrade) else {
        let text = "the target of the request is not a path".to_owned();
        return answer(StatusCode::BAD_REQUEST, "bad-target", text);
    };
    let (mut response, guard) = match exchange(request, pool, connect).await {
        Ok(done) => done,
        Err(answer) => return answer,
    };
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let upgraded = headers::upgrade_to(response.headers());
    headers::strip_hop_by_hop(response.headers_mut());
    match (switching, client.zip(upgraded)) {
        (true, Some((client, to))) => {
            let upstream = hyper::upgrade::on(&mut response);
            tunnel(Tunnel { client, upstream, guard });
            let fields = response.headers_mut();
            fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            fields.insert(UPGRADE, to);
        }
        (true, None) => {
            let text = "the upstream changed protocols without being asked".to_owned();
            return answer(StatusCode::BAD_GATEWAY, "upstream-failed", text);
        }
        (false, _) => {}
    }
    *response.version_mut() = Version::HTTP_11;
    response.map(|body| body.boxed())
}

/// The request as the upstream gets it. `None` if its target is not a path.
fn rewrite(
    request: Request<Incoming>,
    onward: Onward,
    upgrade: Option<HeaderValue>,
) -> Option<Request<Body>> {
    let (mut parts, body) = request.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::strip_ours(&mut parts.headers);
    parts.headers.remove(HOST);
    let path = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    if onward.http2 {
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(onward.authority.parse().ok()?);
        parts.version = Version::HTTP_2;
    } else {
        parts.headers.insert(HOST, HeaderValue::try_from(onward.authority).ok()?);
        parts.version = Version::HTTP_11;
    }
    parts.uri = Uri::from_parts(uri).ok()?;
    parts.headers.extend(onward.fields);
    if let Some(to) = upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, to);
    }
    Some(Request::from_parts(parts, headers::request_body(body)))
}

async fn exchange<C: Connect>(
    mut request: Request<Body>,
    pool: &Pool,
    connect: &C,
) -> Result<(Response<Incoming>, Guard), Response<Body>> {
    let mut again = copy_if_safe(&request);
    'pooled: while let Some(mut line) = pool.take() {
        match line.send(request).await {
            Ok(response) => return Ok(kept(response, line, pool)),
            Err(SendError::Unsent(unsent)) => request = *unsent,
            // A connection that was closed while it waited looks like this.
            Err(SendError::Failed(error)) => match again.take() {
                Some(copy) => {
                    request = copy;
                    break 'pooled;
                }
                None => return Err(upstream_failed(&error)),
            },
        }
    }
    let mut line = connect.connect().await?;
    match line.send(request).await {
        Ok(response) => Ok(kept(response, line, pool)),
        Err(SendError::Failed(error)) => Err(upstream_failed(&error)),
        Err(SendError::Unsent(_)) => {
            let text = "the upstream closed the connection before the request was sent".to_owned();
            Err(answer(StatusCode::BAD_GATEWAY, "upstream-failed", text))
        }
    }
}

fn kept(response: Response<Incoming>, line: Line, pool: &Pool) -> (Response<Incoming>, Guard) {
    let guard = line.guard.clone();
    pool.put(line);
    (response, guard)
}

fn upstream_failed(error: &hyper::Error) -> Response<Body> {
    let text = format!(
        "the upstream failed while it answered ({error}); it may have seen the request. If the other mesh \
         refuses our gateway's certificate, it looks like this too: ask its operator"
    );
    answer(StatusCode::BAD_GATEWAY, "upstream-failed", text)
}

fn copy_if_safe(request: &Request<Body>) -> Option<Request<Body>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !safe || !request.body().is_end_stream() || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(headers::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
