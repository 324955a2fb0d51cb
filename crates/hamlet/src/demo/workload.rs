//! The demo's workload: a small HTTP server that says who it is and who it was told is calling. It
//! knows nothing of meshes; that is the point of it.
//!
//! `GET /stream` answers a line now and then and never ends, for calls that are in flight when
//! something breaks. Everything else is answered with one JSON object.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hamlet_runtime::{Shutdown, Supervisor};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at a time; further ones wait in the kernel.
const CONNECTIONS: usize = 256;
/// Time between two lines of `/stream`.
const LINE_EVERY: Duration = Duration::from_millis(100);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves until the process is killed.
pub(super) async fn serve(listen: SocketAddr, name: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let spawner = Supervisor::new(Shutdown::new()).spawner();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let name: Arc<str> = name.into();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
        let (stream, _) = listener.accept().await?;
        let name = name.clone();
        spawner.spawn_fallible("workload/connection", async move {
            let _place = place;
            let service = service_fn(move |request| {
                let name = name.clone();
                async move { Ok::<_, Infallible>(answer(&name, &request)) }
            });
            http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
        });
    }
}

fn answer(name: &str, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() == "/stream" {
        return Response::new(stream(name));
    }
    let text = describe(name, request.method().as_str(), request.uri().path(), request.headers());
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Who answers, what was asked, and what the fields say that only our own ingress may set.
fn describe(name: &str, method: &str, path: &str, headers: &HeaderMap) -> String {
    let all = |name: &str| {
        let values = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()));
        values.collect::<Vec<_>>().join(", ")
    };
    let similar = headers.keys().map(|k| k.as_str()).filter(|k| k.replace('_', "-").starts_with("x-hamlet-"));
    let fields: Vec<&str> = similar.collect();
    let answer = json!({
        "workload": name,
        "request": format!("{method} {path}"),
        "host": all(HOST.as_str()),
        "callerMesh": all("x-hamlet-caller-mesh"),
        "caller": all("x-hamlet-caller"),
        "fields": fields.join(" "),
    });
    format!("{answer:#}\n")
}

fn stream(name: &str) -> Body {
    let name = name.to_owned();
    let lines = futures::stream::iter(0_u64..).then(move |n| {
        let line = format!("{name}: line {n}\n");
        async move {
            if n > 0 {
                tokio::time::sleep(LINE_EVERY).await;
            }
            Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
        }
    });
    StreamBody::new(lines).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_the_workload_and_shows_every_field_about_the_caller() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("ledger.acme.example"));
        headers.insert("x-hamlet-caller-mesh", HeaderValue::from_static("globex.example"));
        headers.insert("x_hamlet_caller", HeaderValue::from_static("forged"));
        let text = describe("ledger", "GET", "/hello", &headers);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["workload"], "ledger");
        assert_eq!(value["request"], "GET /hello");
        assert_eq!(value["callerMesh"], "globex.example");
        assert_eq!(value["caller"], "");
        let mut fields: Vec<_> = value["fields"].as_str().unwrap().split(' ').collect();
        fields.sort_unstable();
        assert_eq!(fields, ["x-hamlet-caller-mesh", "x_hamlet_caller"]);
    }
}
