//! Our bundle endpoint: `GET /` over HTTPS, for anybody. *Hardened to untrusted peer.*
//!
//! It holds nothing but CA certificates. Invariants: no client certificate is asked for, one request a
//! connection, and connections, heads and times are bounded, so a flood delays followers and nothing
//! else of the agent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hamlet_identity::{EndpointLeaf, WebLeaf, endpoint_server};
use hamlet_runtime::Shutdown;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::super::Agent;
use crate::config::ServedEndpoint;

/// Most connections to the bundle endpoint at once; a further one waits to be accepted.
const ENDPOINT_CONNECTIONS: usize = 64;
/// Longest time of a connection to the bundle endpoint, handshake and answer included.
const ENDPOINT_TIME_MAX: Duration = Duration::from_secs(10);
/// Largest head of a request to the bundle endpoint, in bytes.
const ENDPOINT_HEAD_BYTES: usize = 8 * 1024;
/// After this long without a whole head a connection to the bundle endpoint is closed.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// The bound listener of our bundle endpoint.
pub(in crate::agent) struct BundleServer {
    listener: TcpListener,
    local: SocketAddr,
    acceptor: TlsAcceptor,
}

impl BundleServer {
    /// Reads the certificate and binds. Fails closed: without either there is no endpoint.
    pub(in crate::agent) async fn bind(
        agent: &Agent,
        address: SocketAddr,
        settings: &ServedEndpoint,
    ) -> anyhow::Result<BundleServer> {
        let leaf = match &settings.web {
            Some(pair) => {
                let leaf = WebLeaf::open(&pair.cert, &pair.key)
                    .context("the bundle endpoint's certificate (spec.bundleEndpoint) can't be used")?;
                *agent.own.web.lock() = Some(leaf.clone());
                EndpointLeaf::Web(leaf)
            }
            None => EndpointLeaf::Spiffe(agent.agent_identity.clone()),
        };
        let failed =
            || format!("can't listen on {address}; set spec.bundleEndpoint.listen to a free address");
        let listener = TcpListener::bind(address).await.with_context(failed)?;
        let local = listener.local_addr().with_context(failed)?;
        Ok(BundleServer { listener, local, acceptor: TlsAcceptor::from(endpoint_server(leaf)) })
    }

    /// Where it listens.
    pub(in crate::agent) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Accepts until `shutdown` begins.
    pub(in crate::agent) async fn run(self, agent: Arc<Agent>, shutdown: Shutdown) {
        let slots = Arc::new(Semaphore::new(ENDPOINT_CONNECTIONS));
        'accepting: while let Some(Ok(slot)) = shutdown.or_begun(slots.clone().acquire_owned()).await {
            let stream = match shutdown.or_begun(self.listener.accept()).await {
                None => break 'accepting,
                Some(Ok((stream, _))) => stream,
                Some(Err(error)) => {
                    // Out of files, most likely: wait for some to be closed instead of spinning.
                    tracing::warn!(%error, "the bundle endpoint can't accept a connection");
                    shutdown.or_begun(tokio::time::sleep(Duration::from_millis(100))).await;
                    continue 'accepting;
                }
            };
            let (agent, acceptor, shutdown) = (agent.clone(), self.acceptor.clone(), shutdown.clone());
            let spawner = agent.spawner.clone();
            spawner.spawn("bundle/connection", async move {
                let serving = tokio::time::timeout(ENDPOINT_TIME_MAX, serve(stream, acceptor, agent));
                let _ = shutdown.or_begun(serving).await;
                drop(slot);
            });
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, agent: Arc<Agent>) {
    let stream = match acceptor.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, "a handshake with the bundle endpoint failed"),
    };
    let answer = |request: http::Request<hyper::body::Incoming>| {
        let agent = agent.clone();
        async move {
            let found = answer(request.method(), request.uri().path(), || agent.own_jwks());
            Ok::<_, Infallible>(found)
        }
    };
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(ENDPOINT_HEAD_BYTES)
        .keep_alive(false);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await {
        tracing::debug!(%error, "a connection to the bundle endpoint ended early");
    }
}

/// The document at `/`, and nothing elsewhere.
fn answer(
    method: &Method,
    path: &str,
    document: impl FnOnce() -> Result<String, String>,
) -> Response<Full<Bytes>> {
    let status = match (path, method) {
        ("/", &Method::GET) => match document() {
            Ok(text) => {
                let mut found = Response::new(Full::new(Bytes::from(text)));
                let json = header::HeaderValue::from_static("application/json");
                found.headers_mut().insert(header::CONTENT_TYPE, json);
                return found;
            }
            Err(why) => {
                tracing::error!(%why, "our bundle was asked for, and there is none");
                StatusCode::SERVICE_UNAVAILABLE
            }
        },
        ("/", _) => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::NOT_FOUND,
    };
    let mut refusal = Response::new(Full::default());
    *refusal.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        refusal.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    }
    refusal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_get_of_the_root_is_answered_with_the_document() {
        let of = |method: Method, path: &str| answer(&method, path, || Ok("{}".to_owned())).status().as_u16();
        assert_eq!(of(Method::GET, "/"), 200);
        assert_eq!(of(Method::GET, "/bundle"), 404);
        assert_eq!(of(Method::HEAD, "/"), 405);
        assert_eq!(of(Method::POST, "/"), 405);
        assert_eq!(answer(&Method::GET, "/", || Err("none".to_owned())).status().as_u16(), 503);
    }
}
