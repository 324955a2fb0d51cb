//! Ingress for services that are told their caller by header: a reverse proxy for HTTP/1.1 and
//! HTTP/2. *Hardened to untrusted peer* (threat T18).
//!
//! Invariants: a request whose authority isn't a name of the route that its SNI chose gets 421;
//! the caller's fields are written by us after everything under their prefix was removed.

use std::sync::Arc;

use http::header::HeaderValue;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::exchange::{Connect, Line, Onward, Pool, Tunnel, forward, open};
use crate::gateway::{Open, Shared};
use crate::guard::Guard;
use crate::headers::{Body, CALLER, CALLER_MESH, answer, authority_name, request_authority};
use crate::http_server::{self, Tasks};
use crate::ingress::{self, Admitted};
use crate::metrics::{ListenerKind, Outcome};
use crate::routes::IngressRoute;
use crate::splice::{Activity, Reset, splice};
use hamlet_core::{Fqdn, Protocol, SpiffeId};

/// One client connection.
struct Proxy {
    shared: Arc<Shared>,
    sni: Fqdn,
    route: Arc<IngressRoute>,
    caller: SpiffeId,
    guard: Guard,
    open: Arc<Open>,
    pool: Pool,
}

/// Serves the requests of one connection.
pub(crate) async fn serve(shared: Arc<Shared>, admitted: Admitted) -> Outcome {
    let Admitted { stream, sni, route, caller, guard, open, .. } = admitted;
    let (received, sent) = shared.metrics.bytes(ListenerKind::Ingress);
    let idle = shared.config.idle_timeout;
    let draining = guard.draining.clone();
    let tasks = Tasks { spawner: shared.spawner.clone(), name: "gateway/ingress/http" };
    let pool = Pool::new(shared.clock.clone());
    let proxy = Arc::new(Proxy { shared, sni, route, caller, guard, open, pool });
    let respond = move |request| {
        let proxy = proxy.clone();
        async move {
            let response = proxy.respond(request).await;
            proxy.shared.metrics.responded(ListenerKind::Ingress, response.status());
            response
        }
    };
    http_server::serve(stream, tasks, Activity::new(received, sent), idle, draining, respond).await
}

impl Proxy {
    async fn respond(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if request.method() == Method::CONNECT {
            let text = "this gateway is no forward proxy: send requests to the service's own name".to_owned();
            return answer(StatusCode::METHOD_NOT_ALLOWED, "connect-refused", text);
        }
        let authority = request_authority(&request);
        let ours = |a: &String| authority_name(a).is_some_and(|name| self.route.hosts.contains(&name));
        let Some(authority) = authority.filter(ours) else {
            let text = format!("this connection serves {} only: use that name in the URL", self.route.fqdn);
            return answer(StatusCode::MISDIRECTED_REQUEST, "misdirected", text);
        };
        let mut fields = Vec::new();
        // A SPIFFE id is printable ASCII, so both are header values.
        fields.extend(HeaderValue::from_str(self.caller.as_str()).ok().map(|id| (CALLER, id)));
        let mesh = HeaderValue::from_str(self.caller.trust_domain().as_str());
        fields.extend(mesh.ok().map(|mesh| (CALLER_MESH, mesh)));
        let http2 = matches!(self.route.instance.protocol, Protocol::Http2 | Protocol::Grpc);
        let onward = Onward { http2, authority, fields };
        forward(request, onward, &self.pool, self, |tunnel| self.join(tunnel)).await
    }

    fn join(&self, tunnel: Tunnel) {
        let (received, sent) = self.shared.metrics.bytes(ListenerKind::Ingress);
        spawn_tunnel(&self.shared, tunnel, self.open.clone(), Activity::new(received, sent));
    }
}

impl Connect for Arc<Proxy> {
    async fn connect(&self) -> Result<Line, Response<Body>> {
        // The backends of now: they may have moved since the connection was accepted.
        let route = self.shared.ingress.load().route(&self.sni).cloned();
        let route = route.filter(|r| r.service == self.route.service).unwrap_or_else(|| self.route.clone());
        let Some(stream) = ingress::backend(&self.shared, &self.sni, &route).await else {
            let text = format!("no backend of {} can be reached: ask its owner", self.route.fqdn);
            return Err(answer(StatusCode::SERVICE_UNAVAILABLE, "backend-unreachable", text));
        };
        let http2 = matches!(self.route.instance.protocol, Protocol::Http2 | Protocol::Grpc);
        let tasks = Tasks { spawner: self.shared.spawner.clone(), name: "gateway/ingress/backend" };
        let opened = open(stream, http2, tasks, self.guard.clone()).await;
        let (line, drive) = opened.map_err(|error| {
            let text = format!("the backend of {} does not speak HTTP: {error}", self.route.fqdn);
            answer(StatusCode::BAD_GATEWAY, "upstream-failed", text)
        })?;
        let guard = self.guard.clone();
        self.shared.spawner.spawn("gateway/ingress/backend", async move {
            let _ = guard.run(drive).await;
        });
        Ok(line)
    }
}

/// hyper hides the transport of an upgraded connection: the reset is left to its close.
impl Reset for TokioIo<hyper::upgrade::Upgraded> {
    fn reset(&self) {}
}

/// Joins the two ends of an upgraded connection in a task of its own.
pub(crate) fn spawn_tunnel(shared: &Arc<Shared>, tunnel: Tunnel, open: Arc<Open>, activity: Arc<Activity>) {
    let idle = shared.config.idle_timeout;
    let joined = async move {
        let work = async {
            let Ok((client, upstream)) = futures::future::try_join(tunnel.client, tunnel.upstream).await
            else {
                return;
            };
            splice(TokioIo::new(client), TokioIo::new(upstream), activity, idle).await.outcome();
        };
        let _ = tunnel.guard.run(work).await;
        drop(open);
    };
    shared.spawner.spawn("gateway/tunnel", joined);
}
