//! From a route to a proven connection: picks an endpoint, connects, does TLS 1.3 with the
//! route's SNI, and believes only the exact identities of the offer under its owner's bundle.
//!
//! It never connects to anything but an endpoint of the route, and never without TLS. An
//! endpoint that fails, or proves another identity, fails over to the next; the latter raises an
//! alarm (decision 24).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_identity::{Expect, ProvenPeer, Role, VerifyError, proven_server, refusal_in};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::gateway::Shared;
use crate::guard::{Change, Guard, Life, Standing};
use crate::limits::{DIAL_ATTEMPTS, DIAL_BUDGET, HANDSHAKE};
use crate::routes::EgressRoute;

/// A connection to the owner's ingress.
pub(crate) struct Upstream {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) guard: Guard,
}

/// Why one endpoint didn't do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    #[error("connecting failed: {0}")]
    Connect(io::Error),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("no TLS handshake within {HANDSHAKE:?}")]
    HandshakeTimeout,
    #[error("it proved another identity: {0}")]
    Identity(VerifyError),
    #[error("the SNI {0} of the offer can't be sent")]
    Sni(String),
}

/// Why no endpoint did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the owner offers no endpoint that our import policy admits")]
    NoEndpoint,
    #[error("no endpoint answered in time")]
    Timeout,
    #[error("no endpoint can be used; the last one, {endpoint}: {error}")]
    Failed { endpoint: SocketAddr, error: EndpointError },
}

/// Opens a connection for `route`.
pub(crate) async fn dial(shared: &Arc<Shared>, route: &Arc<EgressRoute>) -> Result<Upstream, DialError> {
    let endpoints = shared.upstreams.order(&route.name, &route.endpoints);
    if endpoints.is_empty() {
        return Err(DialError::NoEndpoint);
    }
    let attempts = try_each(shared, route, &endpoints);
    tokio::time::timeout(DIAL_BUDGET, attempts).await.unwrap_or(Err(DialError::Timeout))
}

async fn try_each(
    shared: &Arc<Shared>,
    route: &Arc<EgressRoute>,
    endpoints: &[SocketAddr],
) -> Result<Upstream, DialError> {
    let mut last = DialError::NoEndpoint;
    for &endpoint in endpoints.iter().take(DIAL_ATTEMPTS) {
        let error = match one(shared, route, endpoint).await {
            Ok(upstream) => {
                shared.upstreams.worked(&route.name, endpoint);
                return Ok(upstream);
            }
            Err(error) => error,
        };
        shared.upstreams.failed(&route.name, endpoint);
        if let EndpointError::Identity(_) = error {
            shared.metrics.identity_alarms.inc();
            tracing::warn!(
                peer = %route.id.owner, service = %route.id.name, %endpoint, %error,
                "an endpoint is not who its owner says; trying the next"
            );
        } else {
            tracing::debug!(peer = %route.id.owner, service = %route.id.name, %endpoint, %error, "endpoint failed");
        }
        last = match error {
            EndpointError::ConnectTimeout(_) | EndpointError::HandshakeTimeout => DialError::Timeout,
            error => DialError::Failed { endpoint, error },
        };
    }
    Err(last)
}

async fn one(
    shared: &Arc<Shared>,
    route: &Arc<EgressRoute>,
    endpoint: SocketAddr,
) -> Result<Upstream, EndpointError> {
    let name = ServerName::try_from(route.sni.as_str().to_owned());
    let name = name.map_err(|_| EndpointError::Sni(route.sni.to_string()))?;
    let limit = shared.config.connect_timeout;
    let tcp = match tokio::time::timeout(limit, TcpStream::connect(endpoint)).await {
        Ok(tcp) => tcp.map_err(EndpointError::Connect)?,
        Err(_) => return Err(EndpointError::ConnectTimeout(limit)),
    };
    crate::bind::tune(&tcp);
    let changes = shared.egress_changes();
    // Looked at before it is shown: a renewal in between only makes it shorter than it is.
    let ours = shared.identity.not_after();
    let tls = shared.clients.config(&route.id.owner, &route.sans);
    let handshake = TlsConnector::from(tls).connect(name, tcp);
    let stream = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(match refusal_in(&error) {
                Some(refusal) => EndpointError::Identity(refusal.clone()),
                None => EndpointError::Handshake(error),
            });
        }
        Err(_) => return Err(EndpointError::HandshakeTimeout),
    };
    let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let proven = prove(shared, route, &chain).map_err(EndpointError::Identity)?;
    shared.clients.proven(&route.id.owner, &route.sans, &proven);
    let drain = shared.config.drain;
    let life = Life::dialled(&*shared.clock, &proven, ours, drain);
    let standing = standing(shared, route, proven, chain);
    let guard = Guard::new(changes, drain, life, &shared.spawner.shutdown(), standing);
    Ok(Upstream { stream, guard })
}

fn prove(
    shared: &Shared,
    route: &EgressRoute,
    chain: &[CertificateDer<'static>],
) -> Result<ProvenPeer, VerifyError> {
    let expect = Expect::PeerSans(&route.id.owner, &route.sans);
    proven_server(&shared.trust, Some(chain), Role::Gateway, expect)
}

/// A connection is pinned to its owner and to the identity it proved (threat T10): it may stay
/// while the owner's trust still proves it and a route of the same service still names it.
fn standing(
    shared: &Arc<Shared>,
    route: &Arc<EgressRoute>,
    proven: ProvenPeer,
    chain: Vec<CertificateDer<'static>>,
) -> crate::guard::StandingFn {
    let (shared, route) = (shared.clone(), route.clone());
    Arc::new(move |change| match change {
        Change::Trust if prove(&shared, &route, &chain).is_ok() => Standing::Good,
        Change::Trust => Standing::Unproven,
        Change::Routes => match shared.egress.load().successor(&route) {
            None => Standing::Withdrawn,
            Some(now) if now.sans.iter().any(|san| proven.id == *san) => Standing::Good,
            Some(_) => Standing::Unproven,
        },
    })
}
