//! The shared HTTP listener of egress: routes by Host or `:authority` to imported names, for
//! hosts where per-service listeners can't be had. HTTP/1.1, and HTTP/2 with prior knowledge.
//!
//! It is no forward proxy (threat T24): it never connects to anything but the endpoints of
//! programmed routes, whatever a request says, and refuses CONNECT.

use std::collections::HashMap;
use std::sync::Arc;

use hamlet_core::{Protocol, rejection::one_line};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use crate::bind;
use crate::dial::{DialError, EndpointError, dial};
use crate::exchange::{Connect, Line, Onward, Pool, forward, open};
use crate::gateway::{Open, Shared};
use crate::headers::{Body, answer, request_authority, split_authority};
use crate::http_server::{self, Tasks};
use crate::ingress_http::spawn_tunnel;
use crate::limits::{HTTP_IDLE_TIME, HTTP_POOLS};
use crate::metrics::{ListenerKind, Outcome};
use crate::routes::{EgressRoute, EgressTable};
use crate::splice::{Activity, Reset};

/// Longest piece of a request's text in our answers.
const SHOWN: usize = 300;

/// Idle upstream connections by route; a changed route has a new pool.
#[derive(Default)]
struct Pools {
    closed: bool,
    by_route: HashMap<Arc<EgressRoute>, Arc<Pool>>,
}

struct Proxy {
    shared: Arc<Shared>,
    pools: Mutex<Pools>,
}

/// Serves until the shutdown begins.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let stop = shared.spawner.shutdown();
    let proxy = Arc::new(Proxy { shared: shared.clone(), pools: Mutex::default() });
    shared.spawner.spawn("gateway/egress-http/sweep", sweep(proxy.clone()));
    'accepting: while let Some((client, _)) = bind::accept(&listener, &stop).await {
        let Some(open) = shared.open(ListenerKind::EgressHttp) else {
            client.reset();
            shared.metrics.ended(ListenerKind::EgressHttp, Outcome::Overloaded);
            continue 'accepting;
        };
        let proxy = proxy.clone();
        shared.spawner.spawn("gateway/egress-http/connection", async move {
            let outcome = proxy.serve(client, open).await;
            proxy.shared.metrics.ended(ListenerKind::EgressHttp, outcome);
        });
    }
    proxy.close();
}

/// Closes upstream connections that waited too long, also those of routes nobody uses any more.
async fn sweep(proxy: Arc<Proxy>) {
    let stop = proxy.shared.spawner.shutdown();
    while stop.or_begun(tokio::time::sleep(HTTP_IDLE_TIME / 2)).await.is_some() {
        proxy.pools.lock().by_route.retain(|_, pool| pool.sweep());
    }
}

/// The route for a requested name and port, or the answer to give.
fn route(table: &EgressTable, authority: Option<&str>) -> Result<Arc<EgressRoute>, Box<Response<Body>>> {
    let Some(authority) = authority else {
        let text = "the request has no single Host: send the service's name as Host".to_owned();
        return Err(answer(StatusCode::BAD_REQUEST, "bad-host", text).into());
    };
    let (name, port) = match split_authority(authority) {
        Some((name, port)) => (Some(name), port),
        None => (None, None),
    };
    let routes = name.as_ref().map_or(&[][..], |name| table.named(name));
    if routes.is_empty() {
        let text = format!(
            "no imported service is called {}. This listener routes by Host to imported services only: see \
             `hamlet get services` for their names, and `hamlet describe` for one that should be here",
            one_line(authority, SHOWN)
        );
        return Err(answer(StatusCode::NOT_FOUND, "unknown-host", text).into());
    }
    let http = || routes.iter().filter(|r| r.protocol.is_http());
    let named_port = http().find(|r| Some(r.port.get()) == port);
    named_port.or_else(|| http().next()).cloned().ok_or_else(|| {
        let first = &routes[0];
        let at = first.listen.map_or("its own address".to_owned(), |at| at.to_string());
        let text = format!("{} speaks {}, not HTTP: connect to {at}", first.name, first.protocol);
        answer(StatusCode::NOT_FOUND, "not-http", text).into()
    })
}

impl Proxy {
    async fn serve(self: &Arc<Self>, client: TcpStream, open: Arc<Open>) -> Outcome {
        let shared = &self.shared;
        let (received, sent) = shared.metrics.bytes(ListenerKind::EgressHttp);
        let tasks = Tasks { spawner: shared.spawner.clone(), name: "gateway/egress-http/request" };
        let proxy = self.clone();
        let respond = move |request| {
            let (proxy, open) = (proxy.clone(), open.clone());
            async move {
                let response = proxy.respond(request, open).await;
                proxy.shared.metrics.responded(ListenerKind::EgressHttp, response.status());
                response
            }
        };
        let activity = Activity::new(received, sent);
        let (idle, stop) = (shared.config.idle_timeout, shared.spawner.shutdown());
        http_server::serve(client, tasks, activity, idle, stop, respond).await
    }

    async fn respond(self: &Arc<Self>, request: Request<Incoming>, open: Arc<Open>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let text = "this is no forward proxy: send requests to imported names with Host set".to_owned();
            return answer(StatusCode::METHOD_NOT_ALLOWED, "connect-refused", text);
        }
        let authority = request_authority(&request);
        let route = match route(&self.shared.egress.load(), authority.as_deref()) {
            Ok(route) => route,
            Err(answer) => return *answer,
        };
        let http2 = speaks_http2(&route);
        let onward = Onward { http2, authority: route.authority.clone(), fields: Vec::new() };
        let pool = self.pool(&route);
        let dialler = Dialler { shared: self.shared.clone(), route };
        let join = |tunnel| {
            let (received, sent) = self.shared.metrics.bytes(ListenerKind::EgressHttp);
            spawn_tunnel(&self.shared, tunnel, open, Activity::new(received, sent));
        };
        forward(request, onward, &pool, &dialler, join).await
    }

    fn pool(&self, route: &Arc<EgressRoute>) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.by_route.get(route) {
            return pool.clone();
        }
        if pools.by_route.len() >= HTTP_POOLS {
            pools.by_route.retain(|_, pool| pool.sweep());
        }
        let pool = Arc::new(Pool::new(self.shared.clock.clone()));
        if pools.closed {
            pool.close();
        } else if pools.by_route.len() < HTTP_POOLS {
            pools.by_route.insert(route.clone(), pool.clone());
        }
        pool
    }

    /// Nothing is kept for reuse from now on, so that idle connections don't hold up the end.
    fn close(&self) {
        let mut pools = self.pools.lock();
        pools.closed = true;
        for (_, pool) in pools.by_route.drain() {
            pool.close();
        }
    }
}

fn speaks_http2(route: &EgressRoute) -> bool {
    matches!(route.protocol, Protocol::Http2 | Protocol::Grpc)
}

/// Opens connections for one route.
struct Dialler {
    shared: Arc<Shared>,
    route: Arc<EgressRoute>,
}

impl Connect for Dialler {
    async fn connect(&self) -> Result<Line, Response<Body>> {
        let upstream = dial(&self.shared, &self.route).await.map_err(|error| {
            tracing::info!(
                peer = %self.route.id.owner, service = %self.route.id.name, %error, "egress request failed"
            );
            refusal(&self.route, &error)
        })?;
        let tasks = Tasks { spawner: self.shared.spawner.clone(), name: "gateway/egress-http/upstream" };
        let http2 = speaks_http2(&self.route);
        let opened = open(upstream.stream, http2, tasks, upstream.guard.clone()).await;
        let (line, drive) = opened.map_err(|error| {
            let text = format!("{} does not speak HTTP: {error}", self.route.name);
            answer(StatusCode::BAD_GATEWAY, "upstream-failed", text)
        })?;
        self.shared.spawner.spawn("gateway/egress-http/upstream", async move {
            let _ = upstream.guard.run(drive).await;
        });
        Ok(line)
    }
}

fn refusal(route: &EgressRoute, error: &DialError) -> Response<Body> {
    let (status, code) = match error {
        DialError::NoEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"),
        DialError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
        DialError::Failed { error: EndpointError::Identity(_), .. } => {
            (StatusCode::BAD_GATEWAY, "upstream-identity")
        }
        DialError::Failed { error: EndpointError::Connect(_), .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "upstream-unreachable")
        }
        DialError::Failed { .. } => (StatusCode::BAD_GATEWAY, "upstream-failed"),
    };
    answer(status, code, format!("{} of {}: {error}", route.name, route.id.owner))
}
