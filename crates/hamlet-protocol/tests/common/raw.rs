//! Peers that say anything: gRPC calls with hand-made frames, and HTTP/2 with hand-made frames.
//! They present whatever certificate they are given and believe anybody.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::channel::mpsc;
use hamlet_protocol::dialect::service::{TYPE_URL, encode};
use hamlet_protocol::dialect::v1alpha2::PATH;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_testkit::GENEROUS;
use hamlet_testkit::pki::TestLeaf;
use hamlet_testkit::tls::stranger_client;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::agent::CONTEXT;
use super::service;

/// What a call writes.
pub type Body = StreamBody<mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::convert::Infallible>>>;

/// A TLS connection to an agent, before anything is said on it.
pub async fn tls(to: SocketAddr, leaf: Option<&TestLeaf>) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to).await?;
    let name = "bank.example".to_owned().try_into().unwrap();
    TlsConnector::from(stranger_client(leaf, &[b"h2"])).connect(name, tcp).await
}

/// An HTTP/2 connection; dropping it closes the connection.
pub async fn connect(to: SocketAddr, leaf: &TestLeaf) -> std::io::Result<SendRequest<Body>> {
    let tls = tls(to, Some(leaf)).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    // The peer is no part of the agent: nobody supervises it.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(connection);
    Ok(sender)
}

/// A request that starts a stream, and where to write to it.
pub fn request(method: &str, path: &str, content_type: &str) -> (http::Request<Body>, Writer) {
    let (out, body) = mpsc::unbounded();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("https://bank.example{path}"))
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(StreamBody::new(body));
    (request.unwrap(), Writer(out))
}

/// The writing half of a call; dropping it ends our side.
pub struct Writer(mpsc::UnboundedSender<Result<Frame<Bytes>, std::convert::Infallible>>);

impl Writer {
    /// Bytes as they are.
    pub fn raw(&self, bytes: Bytes) {
        let _ = self.0.unbounded_send(Ok(Frame::data(bytes)));
    }

    /// One message in its gRPC frame.
    pub fn bytes(&self, message: &[u8]) {
        self.raw(framed(message));
    }

    /// One message.
    pub fn say(&self, message: pb::BidirectionalStream) {
        self.bytes(&message.encode_to_vec());
    }
}

/// A message in its gRPC frame.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// What came of a call.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// A message.
    Message(Box<pb::BidirectionalStream>),
    /// The stream ended with this gRPC status.
    Status(i32, String),
    /// It ended with this HTTP status.
    Http(u16),
    /// It broke.
    Broken(String),
}

/// One stream.
pub struct Call {
    /// Where to write.
    pub writer: Writer,
    headers: http::HeaderMap,
    http: u16,
    body: Incoming,
    buffer: BytesMut,
}

impl Call {
    /// Opens the stream that the protocol has, or says what came instead.
    pub async fn open(sender: &mut SendRequest<Body>) -> Result<Call, Heard> {
        let (request, writer) = request("POST", PATH, "application/grpc");
        Call::with(sender, request, writer).await
    }

    /// Opens a stream with any request.
    pub async fn with(
        sender: &mut SendRequest<Body>,
        request: http::Request<Body>,
        writer: Writer,
    ) -> Result<Call, Heard> {
        let broken = |e: hyper::Error| Heard::Broken(e.to_string());
        let response = async {
            sender.ready().await.map_err(broken)?;
            sender.send_request(request).await.map_err(broken)
        };
        let response = tokio::time::timeout(GENEROUS, response).await.expect("an answer in time")?;
        let (parts, body) = response.into_parts();
        let (headers, http) = (parts.headers, parts.status.as_u16());
        Ok(Call { writer, headers, http, body, buffer: BytesMut::new() })
    }

    /// Whether the headers that opened it ended it as well.
    pub fn ended_at_once(&self) -> bool {
        self.http != 200 || self.headers.contains_key("grpc-status")
    }

    /// The next message, or how the stream ended.
    pub async fn hear(&mut self) -> Heard {
        tokio::time::timeout(GENEROUS, self.next()).await.expect("something in time")
    }

    async fn next(&mut self) -> Heard {
        match self.next_bytes().await {
            Ok(bytes) => Heard::Message(Box::new(pb::BidirectionalStream::decode(bytes).expect("a message"))),
            Err(heard) => heard,
        }
    }

    /// The bytes of the next message of any kind, or how the stream ended.
    pub async fn hear_bytes(&mut self) -> Result<Bytes, Heard> {
        tokio::time::timeout(GENEROUS, self.next_bytes()).await.expect("something in time")
    }

    async fn next_bytes(&mut self) -> Result<Bytes, Heard> {
        if self.http != 200 {
            return Err(Heard::Http(self.http));
        }
        loop {
            if let Some(message) = self.message() {
                return Ok(message);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.put(data),
                    Err(frame) => self.headers.extend(frame.into_trailers().unwrap_or_default()),
                },
                Some(Err(error)) => return Err(Heard::Broken(error.to_string())),
                None => return Err(self.status()),
            }
        }
    }

    fn message(&mut self) -> Option<Bytes> {
        let header = self.buffer.get(..5)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(length).freeze())
    }

    fn status(&self) -> Heard {
        let text = |name: &str| self.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
        match text("grpc-status") {
            Some(code) => Heard::Status(code.parse().unwrap(), text("grpc-message").unwrap_or_default()),
            None => Heard::Broken("ended without a status".to_owned()),
        }
    }

    /// The code of the answer to `nonce`; everything else before it is passed over.
    pub async fn answer(&mut self, nonce: &str) -> Result<i32, Heard> {
        loop {
            match self.hear().await {
                Heard::Message(m) => match m.request.filter(|r| r.response_nonce == nonce) {
                    Some(request) => return Ok(request.status.expect("a status in every answer").code),
                    None => continue,
                },
                other => return Err(other),
            }
        }
    }

    /// The next change that the agent offers; answers are passed over.
    pub async fn offer(&mut self) -> pb::StreamResponse {
        loop {
            match self.hear().await {
                Heard::Message(m) => match m.response {
                    Some(response) => return response,
                    None => continue,
                },
                other => panic!("{other:?} instead of an offer"),
            }
        }
    }

    /// How the stream ends; messages before it are passed over.
    pub async fn end(&mut self) -> Heard {
        loop {
            match self.hear().await {
                Heard::Message(_) => continue,
                other => return other,
            }
        }
    }
}

/// The initial request of a foreign peer.
pub fn subscription() -> pb::BidirectionalStream {
    asks(pb::StreamRequest {
        resource_url: TYPE_URL.to_owned(),
        context: CONTEXT.to_owned(),
        ..pb::StreamRequest::default()
    })
}

/// A request alone.
pub fn asks(request: pb::StreamRequest) -> pb::BidirectionalStream {
    pb::BidirectionalStream { request: Some(request), response: None }
}

/// A change alone.
pub fn offers(response: pb::StreamResponse) -> pb::BidirectionalStream {
    pb::BidirectionalStream { request: None, response: Some(response) }
}

/// An answer to `nonce`.
pub fn answers(nonce: &str, status: Option<rpc::Status>) -> pb::BidirectionalStream {
    asks(pb::StreamRequest { response_nonce: nonce.to_owned(), status, ..pb::StreamRequest::default() })
}

/// A change that an agent takes: `name` of mesh `evil`.
pub fn upsert(name: &str, nonce: &str) -> pb::StreamResponse {
    let value = encode(&service("evil", name));
    pb::StreamResponse {
        nonce: nonce.to_owned(),
        resource_url: TYPE_URL.to_owned(),
        resource_id: name.to_owned(),
        resource: Some(Any { type_url: TYPE_URL.to_owned(), value }),
        operation: 1,
        context: CONTEXT.to_owned(),
        ..pb::StreamResponse::default()
    }
}

/// HTTP/2 in frames of our own making.
pub struct RawHttp2(TlsStream<TcpStream>);

/// One frame: type, flags, stream, payload.
pub type RawFrame = (u8, u8, u32, Vec<u8>);

/// Frame types of RFC 9113.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const PRIORITY: u8 = 2;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;
const INITIAL_WINDOW_SIZE: u16 = 4;

impl RawHttp2 {
    /// Connects and sends preface and settings: a window for each stream of `window` bytes.
    pub async fn connect(to: SocketAddr, leaf: &TestLeaf, window: u32) -> std::io::Result<RawHttp2> {
        let mut raw = RawHttp2(tls(to, Some(leaf)).await?);
        raw.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut settings = vec![];
        settings.put_u16(INITIAL_WINDOW_SIZE);
        settings.put_u32(window);
        raw.write(&frame(SETTINGS, 0, 0, &settings)).await?;
        raw.write(&frame(SETTINGS, 1, 0, &[])).await?;
        Ok(raw)
    }

    /// Writes frames.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// The next frame; `None` when the connection is closed.
    pub async fn read(&mut self) -> Option<RawFrame> {
        let frame = async {
            let mut header = [0; 9];
            self.0.read_exact(&mut header).await.ok()?;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            Some((header[3], header[4], stream, payload))
        };
        tokio::time::timeout(GENEROUS, frame).await.expect("a frame, or the end, in time")
    }

    /// Reads until a frame fits; `None` when the connection closed before.
    pub async fn until(&mut self, fits: impl Fn(&RawFrame) -> bool) -> Option<RawFrame> {
        loop {
            let frame = self.read().await?;
            if fits(&frame) {
                return Some(frame);
            }
        }
    }

    /// Whether nothing that fits comes within `time`. For what must not happen.
    pub async fn silent(&mut self, time: Duration, fits: impl Fn(&RawFrame) -> bool) -> bool {
        tokio::time::timeout(time, self.until(fits)).await.is_err()
    }
}

/// One frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes
}

/// The HEADERS frame of a call, with further headers; nothing is compressed.
pub fn call_headers(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "bank.example"),
        (":path", PATH),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = vec![];
    for (name, value) in usual.iter().chain(more) {
        block.put_u8(0);
        for text in [name, value] {
            put_length(text.len(), &mut block);
            block.put_slice(text.as_bytes());
        }
    }
    frame(HEADERS, 4, stream, &block)
}

/// An integer with a prefix of seven bits (RFC 7541, 5.1).
fn put_length(length: usize, block: &mut Vec<u8>) {
    if length < 127 {
        return block.put_u8(length as u8);
    }
    block.put_u8(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.put_u8((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.put_u8(rest as u8);
}
