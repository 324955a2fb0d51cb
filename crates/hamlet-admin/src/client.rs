//! The typed client: one connection a request over the unix socket, every answer within a
//! deadline, every failure with a hint. Not a pool, and it holds no state between calls.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{
    AgentStatus, BundleSet, Confirmed, ErrorBody, ErrorCode, List, Listed, OwnBundle, PeeringAnswer,
    PeeringRequest, ReloadProblems, ReloadReport, StatusReport, TranscriptPage,
};
use crate::limits;

/// Why a call failed; each variant is one reaction.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers at {}", path.display())]
    NoAgent {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket exists but we may not open it.
    #[error("permission denied for {}: run this as the agent's user", path.display())]
    Denied {
        /// The socket's path.
        path: PathBuf,
    },
    /// No answer in time.
    #[error("the agent at {} gave no answer within {}", path.display(), seconds(*after))]
    TimedOut {
        /// The socket's path.
        path: PathBuf,
        /// How long we waited.
        after: Duration,
    },
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// Several things answer to that name.
    #[error("{message}")]
    Ambiguous {
        /// For people.
        message: String,
        /// Their names.
        candidates: Vec<String>,
    },
    /// The configuration can't be used; the last good one stays in force.
    #[error("the agent keeps its last good configuration: the new one has {} problem(s)", .0.problems.len())]
    Configuration(ReloadProblems),
    /// The agent refused the request.
    #[error("the agent refused the request: {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The connection broke in the middle.
    #[error("the agent closed the connection before it had answered: is it stopping?")]
    Closed,
    /// What answers is no agent, or one of another version.
    #[error("what answers at {} doesn't speak the admin API: {problem}", path.display())]
    NotAnAgent {
        /// The socket's path.
        path: PathBuf,
        /// What was wrong with the answer.
        problem: String,
    },
}

fn seconds(d: Duration) -> String {
    format!("{} s", d.as_secs_f64())
}

/// Speaks to the agent behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

type Conn = Pin<Box<Connection<TokioIo<UnixStream>, Full<Bytes>>>>;

/// Drives the connection while waiting for `work`: without a task there is nobody else to do so.
async fn drive<T>(conn: &mut Option<Conn>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        // The connection first: it feeds the work.
        if conn.as_mut().is_some_and(|c| c.as_mut().poll(cx).is_ready()) {
            *conn = None;
        }
        work.as_mut().poll(cx)
    })
    .await
}

impl Client {
    /// A client for the agent that listens at `socket`; each answer has to be complete within
    /// `timeout`.
    pub fn new(socket: impl Into<PathBuf>, timeout: Duration) -> Client {
        Client { socket: socket.into(), timeout }
    }

    /// Where it connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The agent.
    pub async fn agent(&self) -> Result<AgentStatus, ClientError> {
        self.get("/v1/agent").await
    }

    /// The whole in one answer.
    pub async fn status(&self) -> Result<StatusReport, ClientError> {
        self.get("/v1/status").await
    }

    /// All of one kind, ordered by name.
    pub async fn list<T: Listed>(&self) -> Result<List<T>, ClientError> {
        self.get(&format!("/v1/{}", T::KIND.plural())).await
    }

    /// The one with that name, or with that alias if no other has it.
    pub async fn one<T: Listed>(&self, name: &str) -> Result<T, ClientError> {
        if name.is_empty() || name.len() > limits::NAME_BYTES {
            let kind = T::KIND.singular();
            return Err(ClientError::NotFound(format!("a name of {} bytes names no {kind}", name.len())));
        }
        self.get(&format!("/v1/{}/{}", T::KIND.plural(), encode_segment(name))).await
    }

    /// Loads the configuration again; done when this returns.
    pub async fn reload(&self) -> Result<ReloadReport, ClientError> {
        let body = self.exchange(Method::POST, "/v1/reload").await?;
        self.parse(&body)
    }

    /// Lets go what the brake on withdrawals of a source holds back; returns how many entries.
    pub async fn confirm_withdrawals(&self) -> Result<u64, ClientError> {
        let body = self.exchange(Method::POST, "/v1/reload/confirm-withdrawals").await?;
        Ok(self.parse::<Confirmed>(&body)?.released)
    }

    /// Asks for something about peering by token; done when it returns.
    pub async fn peering(&self, request: &PeeringRequest) -> Result<PeeringAnswer, ClientError> {
        let content = serde_json::to_vec(request).map_err(|e| self.not_an_agent(e))?;
        let (status, body) = self.send(Method::POST, "/v1/peering", content.into()).await?;
        if status.is_success() { self.parse(&body) } else { Err(self.refusal(status, &body)) }
    }

    /// What was said on a peer's streams after entry number `after`.
    pub async fn transcript(&self, peer: &str, after: u64) -> Result<TranscriptPage, ClientError> {
        if peer.is_empty() || peer.len() > limits::NAME_BYTES {
            return Err(ClientError::NotFound(format!("a name of {} bytes names no peer", peer.len())));
        }
        self.get(&format!("/v1/transcript/{}?after={after}", encode_segment(peer))).await
    }

    /// Our own bundle.
    pub async fn own_bundle(&self) -> Result<OwnBundle, ClientError> {
        self.get("/v1/bundle").await
    }

    /// Puts a bundle of a peer in force by hand; kept when this returns.
    pub async fn set_bundle(&self, peer: &str, bytes: Vec<u8>) -> Result<BundleSet, ClientError> {
        if peer.is_empty() || peer.len() > limits::NAME_BYTES {
            return Err(ClientError::NotFound(format!("a name of {} bytes names no peer", peer.len())));
        }
        let path = format!("/v1/bundle/{}", encode_segment(peer));
        let (status, body) = self.send(Method::POST, &path, bytes.into()).await?;
        if status.is_success() { self.parse(&body) } else { Err(self.refusal(status, &body)) }
    }

    /// The text of `/readyz?verbose`, and whether the agent is ready.
    pub async fn ready(&self) -> Result<(bool, String), ClientError> {
        let (status, body) = self.raw(Method::GET, "/readyz?verbose").await?;
        Ok((status.is_success(), String::from_utf8_lossy(&body).into_owned()))
    }

    /// A stream of lists: one now, one after every change.
    pub async fn watch<T: Listed>(&self) -> Result<Watch<T>, ClientError> {
        let path = format!("/v1/watch/{}", T::KIND.plural());
        let (conn, response) = self.within(self.open(Method::GET, &path, Bytes::new())).await?;
        let mut conn = conn;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let text = self.within(read_all(&mut conn, &mut body)).await?;
            return Err(self.refusal(status, &text));
        }
        let socket = self.socket.clone();
        Ok(Watch { conn, body, buffer: BytesMut::new(), scanned: 0, socket, _kind: std::marker::PhantomData })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.exchange(Method::GET, path).await?;
        self.parse(&body)
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|e| self.not_an_agent(e))
    }

    fn not_an_agent(&self, problem: impl std::fmt::Display) -> ClientError {
        ClientError::NotAnAgent { path: self.socket.clone(), problem: problem.to_string() }
    }

    async fn exchange(&self, method: Method, path: &str) -> Result<Bytes, ClientError> {
        let (status, body) = self.raw(method, path).await?;
        if status.is_success() { Ok(body) } else { Err(self.refusal(status, &body)) }
    }

    async fn raw(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
        self.send(method, path, Bytes::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        self.within(async {
            let (mut conn, response) = self.open(method, path, content).await?;
            let status = response.status();
            let body = read_all(&mut conn, &mut response.into_body()).await?;
            Ok((status, body))
        })
        .await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(out) => out,
            Err(_) => Err(ClientError::TimedOut { path: self.socket.clone(), after: self.timeout }),
        }
    }

    /// Connects, sends the request and waits for the head of the answer.
    async fn open(
        &self,
        method: Method,
        path: &str,
        content: Bytes,
    ) -> Result<(Option<Conn>, http::Response<Incoming>), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.no_agent(source))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "hamlet")
            .body(Full::new(content))
            .map_err(|e| self.not_an_agent(e))?;
        let shaken: Result<(SendRequest<Full<Bytes>>, _), _> = handshake(TokioIo::new(stream)).await;
        let (mut sender, conn) = shaken.map_err(|e| self.broken(&e))?;
        let mut conn = Some(Box::pin(conn));
        let response = drive(&mut conn, sender.send_request(request)).await.map_err(|e| self.broken(&e))?;
        Ok((conn, response))
    }

    fn no_agent(&self, source: std::io::Error) -> ClientError {
        let path = self.socket.clone();
        match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Denied { path },
            _ => ClientError::NoAgent { path, source },
        }
    }

    fn broken(&self, error: &hyper::Error) -> ClientError {
        if error.is_parse() { self.not_an_agent(error) } else { ClientError::Closed }
    }

    /// An answer that is no success, as an error.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let Ok(ErrorBody { error }) = serde_json::from_slice(body) else {
            let message = hamlet_core::rejection::one_line(&String::from_utf8_lossy(body), 256);
            return ClientError::Refused { status: status.as_u16(), message };
        };
        match (error.code, error.problems) {
            (ErrorCode::NotFound, _) => ClientError::NotFound(error.message),
            (ErrorCode::Ambiguous, _) => {
                ClientError::Ambiguous { message: error.message, candidates: error.candidates }
            }
            (ErrorCode::Configuration, Some(problems)) => ClientError::Configuration(problems),
            _ => ClientError::Refused { status: status.as_u16(), message: error.message },
        }
    }
}

async fn read_all(conn: &mut Option<Conn>, body: &mut Incoming) -> Result<Bytes, ClientError> {
    let mut all = BytesMut::new();
    while let Some(frame) = drive(conn, body.frame()).await {
        let frame = frame.map_err(|_| ClientError::Closed)?;
        if let Ok(data) = frame.into_data() {
            if all.len() + data.len() > limits::ANSWER_BYTES {
                return Err(too_long());
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

fn too_long() -> ClientError {
    let message = format!("the answer is longer than {} bytes", limits::ANSWER_BYTES);
    ClientError::Refused { status: 200, message }
}

/// Percent-encodes everything but unreserved characters (RFC 3986, 2.3).
fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(b));
        } else {
            out += &format!("%{b:02X}");
        }
    }
    out
}

/// A stream of lists. It ends with [`ClientError::Closed`] when the agent stops.
pub struct Watch<T> {
    conn: Option<Conn>,
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    socket: PathBuf,
    _kind: std::marker::PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl<T: Listed> Watch<T> {
    /// The next list. Fails with [`ClientError::TimedOut`] when not even a sign of life came for
    /// three times as long as the agent promises one.
    pub async fn next(&mut self) -> Result<List<T>, ClientError> {
        let patience = limits::WATCH_BEAT * 3;
        loop {
            let fresh = self.buffer.iter().skip(self.scanned).position(|b| *b == b'\n');
            if let Some(offset) = fresh {
                let line = self.buffer.split_to(self.scanned + offset + 1);
                self.scanned = 0;
                if line.len() == 1 {
                    continue;
                }
                let path = self.socket.clone();
                return serde_json::from_slice(&line)
                    .map_err(|e| ClientError::NotAnAgent { path, problem: e.to_string() });
            }
            self.scanned = self.buffer.len();
            let frame = tokio::time::timeout(patience, drive(&mut self.conn, self.body.frame())).await;
            let Ok(frame) = frame else {
                return Err(ClientError::TimedOut { path: self.socket.clone(), after: patience });
            };
            let Some(Ok(frame)) = frame else { return Err(ClientError::Closed) };
            if let Ok(data) = frame.into_data() {
                if self.buffer.len() + data.len() > limits::ANSWER_BYTES {
                    return Err(too_long());
                }
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_slashes_and_signs_stays_one_segment() {
        assert_eq!(encode_segment("acme/led ger?#%"), "acme%2Fled%20ger%3F%23%25");
        assert_eq!(encode_segment("ledger.acme-1_~"), "ledger.acme-1_~");
    }
}
