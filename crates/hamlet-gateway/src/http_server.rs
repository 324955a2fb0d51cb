//! The HTTP/1.1 and HTTP/2 server of both HTTP-aware listeners, over a stream that is already
//! accepted and, at ingress, already proven. *Hardened to untrusted peer*: header time, header
//! size, streams and idle time are bounded. It routes nothing. A client that ends its side before
//! the answer is taken to have gone away.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::{Shutdown, Spawner};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::headers::Body;
use crate::limits::{HTTP_HEADER_BYTES, HTTP_HEADERS, HTTP_NEXT_REQUEST, HTTP_STREAMS};
use crate::metrics::Outcome;
use crate::splice::{Activity, Counted};

/// Starts hyper's tasks under our supervisor.
#[derive(Clone)]
pub(crate) struct Tasks {
    pub(crate) spawner: Spawner,
    pub(crate) name: &'static str,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawner.spawn(self.name, task);
    }
}

/// Serves one connection until it closes, is idle for too long, or has answered what was begun
/// when `draining` begins.
pub(crate) async fn serve<S, F>(
    stream: S,
    tasks: Tasks,
    activity: Arc<Activity>,
    idle: Duration,
    draining: Shutdown,
    respond: impl Fn(Request<Incoming>) -> F,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = auto::Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP_NEXT_REQUEST)
        .max_headers(HTTP_HEADERS)
        .max_buf_size(HTTP_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP_STREAMS)
        .max_header_list_size(HTTP_HEADER_BYTES as u32);
    let service = service_fn(move |request| {
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let io = TokioIo::new(Counted::new(stream, activity.clone()));
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
    let mut idle = pin!(activity.idle(idle));
    let mut told = false;
    'serving: loop {
        tokio::select! {
            out = connection.as_mut() => break 'serving match out {
                Ok(()) => Outcome::Served,
                Err(error) => {
                    tracing::debug!(%error, "HTTP connection failed");
                    Outcome::Broken
                }
            },
            () = idle.as_mut() => break 'serving Outcome::Idle,
            () = draining.begun(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
