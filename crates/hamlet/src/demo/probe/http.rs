//! A workload's HTTP call: one connection, one request, to an address and with a Host of choice.

use std::net::SocketAddr;

use bytes::Bytes;
use hamlet_core::causes::with_causes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::in_time;

/// One call to make.
#[derive(Debug, Clone)]
pub(in crate::demo) struct Call<'a> {
    /// Where to connect.
    pub(in crate::demo) to: SocketAddr,
    /// The Host field.
    pub(in crate::demo) host: String,
    /// The path.
    pub(in crate::demo) path: &'a str,
    /// Further fields.
    pub(in crate::demo) fields: &'a [(&'a str, &'a str)],
}

/// What came back.
#[derive(Debug, Clone)]
pub(in crate::demo) struct Answer {
    /// The status code.
    pub(in crate::demo) status: u16,
    /// The gateway's error code, if a gateway answered.
    pub(in crate::demo) error: Option<String>,
    /// The body as text.
    pub(in crate::demo) body: String,
}

impl Answer {
    /// A text of the body, which is a JSON object when a workload answered.
    pub(in crate::demo) fn text(&self, key: &str) -> String {
        let value: Value = serde_json::from_str(&self.body).unwrap_or_default();
        value[key].as_str().unwrap_or_default().to_owned()
    }

    /// The answer in a line.
    pub(in crate::demo) fn shown(&self) -> String {
        format!("{} {}", self.status, self.body.trim())
    }
}

/// Makes the call and reads the whole answer.
pub(in crate::demo) async fn call(call: &Call<'_>) -> Result<Answer, String> {
    in_time(exchange(call, async |response| {
        let status = response.status().as_u16();
        let error = response.headers().get("x-hamlet-error");
        let error = error.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let body = response.into_body().collect().await.map_err(|e| with_causes(&e))?.to_bytes();
        Ok(Answer { status, error, body: String::from_utf8_lossy(&body).into_owned() })
    }))
    .await
}

/// Makes a call whose answer doesn't end by itself. Says on `begun` when its first bytes are
/// there, then waits for its end: the text says how the connection broke off, and an error is a
/// whole answer, or none in time.
pub(in crate::demo) async fn broken_off(
    call: &Call<'_>,
    begun: oneshot::Sender<()>,
) -> Result<String, String> {
    in_time(exchange(call, async |response| {
        if response.status().as_u16() != 200 {
            return Err(format!("answered {} before anything was broken", response.status()));
        }
        let mut begun = Some(begun);
        let mut body = response.into_body();
        loop {
            match body.frame().await {
                Some(Ok(_)) => drop(begun.take().map(|b| b.send(()))),
                Some(Err(error)) => return Ok(with_causes(&error)),
                None => return Err("the call ended as if the answer were whole".to_owned()),
            }
        }
    }))
    .await
}

async fn exchange<T>(
    call: &Call<'_>,
    read: impl AsyncFnOnce(http::Response<Incoming>) -> Result<T, String>,
) -> Result<T, String> {
    let stream = TcpStream::connect(call.to).await;
    let stream = stream.map_err(|e| format!("can't connect to {}: {e}", call.to))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| with_causes(&e))?;
    let mut request = Request::get(call.path).header("host", &call.host).header("connection", "close");
    for (name, value) in call.fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| with_causes(&e))?;
    let asking = async move {
        let response = sender.send_request(request).await.map_err(|e| with_causes(&e))?;
        read(response).await
    };
    // The connection ends once the sender is gone; what went wrong with it, the reader saw too.
    let (out, _) = futures::join!(asking, connection);
    out
}
