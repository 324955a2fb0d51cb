//! One gRPC stream from our end: raw bytes out, whatever comes back in, every wait bounded.
//!
//! It frames messages and reads trailers; what they mean is [`crate::speech`]. Reading happens
//! only while somebody listens, so a case can refuse to read.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::channel::mpsc;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use tokio::sync::oneshot;

use crate::speech::{Ask, Offer, Role, Said, Version};
use crate::wire::{Any, Status};

/// Longest message that we take, in bytes: twice what the protocol allows.
const MESSAGE_BYTES: usize = 8 << 20;
/// Most messages of one stream that are remembered for later questions.
const REMEMBERED: usize = 20_000;

/// What a call writes.
pub(crate) type Body = StreamBody<mpsc::UnboundedReceiver<Result<Frame<Bytes>, Infallible>>>;
type Opening = Pin<Box<dyn Future<Output = Result<http::Response<Incoming>, hyper::Error>> + Send>>;

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A message.
    Said(Box<Said>),
    /// The headers of the answer, before anything is in it.
    Headers,
    /// Bytes that are no message.
    Undecodable(String),
    /// The stream ended with this gRPC status.
    End(i32, String),
    /// It ended with this HTTP status instead.
    Http(u16),
    /// The other side's half ended without a status.
    Left,
    /// It broke: reset, or the connection was lost.
    Broken(String),
    /// Nothing came in time.
    Nothing,
}

impl std::fmt::Display for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Heard::Said(said) => match (&said.ask, &said.offer) {
                (_, Some(o)) => {
                    write!(f, "an offer (operation {}, nonce {:?})", o.operation, short(&o.nonce))
                }
                (Some(a), None) if a.is_initial() => write!(f, "an initial request"),
                (Some(a), None) => write!(f, "an answer to nonce {:?}", short(&a.nonce)),
                (None, None) => write!(f, "an empty message"),
            },
            Heard::Headers => write!(f, "headers"),
            Heard::Undecodable(text) => write!(f, "bytes that are {text}"),
            Heard::End(code, message) => write!(f, "the end with status {code} {:?}", short(message)),
            Heard::Http(status) => write!(f, "HTTP status {status}"),
            Heard::Left => write!(f, "the end of its half, without a status"),
            Heard::Broken(text) => write!(f, "a broken stream ({text})"),
            Heard::Nothing => write!(f, "nothing"),
        }
    }
}

/// A status message as it was before it was percent-encoded for a header.
fn unescaped(text: &str) -> String {
    let mut bytes = vec![];
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        let hex = rest.as_slice().get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest.nth(1);
            }
            None => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// At most 120 characters of a text that came from outside, none of which is a control.
pub(crate) fn short(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(121).collect();
    if clean.chars().count() > 120 { clean.chars().take(119).chain(['…']).collect() } else { clean }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        if !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
        source = inner.source();
    }
    short(&text)
}

/// How an offer was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Code 0.
    Ack(Ask),
    /// Another code.
    Nack(i32, String),
    /// With its nonce, but without a status.
    Bare,
    /// Something else came instead, or nothing.
    Not(Heard),
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Ack(_) => write!(f, "ACK"),
            Answer::Nack(code, message) => write!(f, "NACK {code} {:?}", short(message)),
            Answer::Bare => write!(f, "an answer without status"),
            Answer::Not(heard) => write!(f, "{heard}"),
        }
    }
}

enum Half {
    Opening(Opening),
    Open(Incoming),
    Over(Heard),
}

/// One stream.
pub struct Stream {
    version: Version,
    /// Who the other side is.
    them: Role,
    context: String,
    out: Option<mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>>,
    /// Sends our headers, if we accepted.
    head: Option<(oneshot::Sender<http::Response<Body>>, Body)>,
    half: Half,
    buffer: BytesMut,
    trailers: http::HeaderMap,
    saw_headers: bool,
    http: u16,
    heard: Vec<Said>,
    _sender: Option<SendRequest<Body>>,
}

/// Both ends of what a call writes.
pub(crate) fn body() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, Infallible>>, Body) {
    let (out, body) = mpsc::unbounded();
    (out, StreamBody::new(body))
}

/// A message in its gRPC frame.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

impl Stream {
    fn new(version: Version, them: Role, context: &str, half: Half) -> Stream {
        Stream {
            version,
            them,
            context: context.to_owned(),
            out: None,
            head: None,
            half,
            buffer: BytesMut::new(),
            trailers: http::HeaderMap::new(),
            saw_headers: false,
            http: 200,
            heard: vec![],
            _sender: None,
        }
    }

    /// A stream that we opened.
    pub(crate) fn dialled(
        version: Version,
        them: Role,
        context: &str,
        mut sender: SendRequest<Body>,
        request: http::Request<()>,
    ) -> Stream {
        let (out, body) = body();
        let mut calling = sender.clone();
        let request = request.map(|()| body);
        let opening = Box::pin(async move {
            calling.ready().await?;
            calling.send_request(request).await
        });
        let _ = &mut sender;
        let stream = Stream::new(version, them, context, Half::Opening(opening));
        Stream { out: Some(out), _sender: Some(sender), ..stream }
    }

    /// A stream that the other side opened; our headers go out with [`Stream::start`].
    pub(crate) fn accepted(
        version: Version,
        them: Role,
        context: &str,
        inbound: Incoming,
        head: oneshot::Sender<http::Response<Body>>,
    ) -> Stream {
        let (out, body) = body();
        let stream = Stream::new(version, them, context, Half::Open(inbound));
        Stream { out: Some(out), head: Some((head, body)), ..stream }
    }

    /// The version that is spoken.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Sends our headers now, if we accepted the stream and they aren't out yet.
    pub fn start(&mut self) {
        if let Some((head, body)) = self.head.take() {
            let mut response = http::Response::new(body);
            let grpc = http::HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            let _ = head.send(response);
        }
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: Bytes) {
        self.start();
        if let Some(out) = &self.out {
            let _ = out.unbounded_send(Ok(Frame::data(bytes)));
        }
    }

    /// Writes one message of any bytes.
    pub fn bytes(&mut self, message: &[u8]) {
        self.raw(framed(message));
    }

    /// Writes one message.
    pub fn say(&mut self, said: &Said) {
        self.bytes(&said.encode(self.version));
    }

    /// The initial request, not sent.
    pub fn initial(&self) -> Said {
        Said::ask(Ask { resource_url: self.version.type_url(), ..self.blank() })
    }

    fn blank(&self) -> Ask {
        Ask { context: self.context.clone(), ..Ask::default() }
    }

    /// An answer, not sent.
    pub fn answer(&self, nonce: &str, status: Option<Status>) -> Ask {
        Ask { resource_url: self.version.type_url(), nonce: nonce.to_owned(), status, ..self.blank() }
    }

    /// Acknowledges.
    pub fn ack(&mut self, offer: &Offer) {
        let ask = self.answer(&offer.nonce, Some(Status::default()));
        self.say(&Said::ask(ask));
    }

    /// Refuses.
    pub fn nack(&mut self, offer: &Offer, code: i32, message: &str) {
        let status = Status { code, message: message.to_owned(), details: vec![] };
        let ask = self.answer(&offer.nonce, Some(status));
        self.say(&Said::ask(ask));
    }

    /// An offer with this service, not sent.
    pub fn offer(&self, nonce: &str, key: &str, operation: i32, value: Vec<u8>) -> Offer {
        let url = self.version.type_url();
        Offer {
            nonce: nonce.to_owned(),
            resource_url: url.clone(),
            resource_id: key.to_owned(),
            resource: Some(Any { type_url: url, value }),
            operation,
            context: self.context.clone(),
        }
    }

    /// Ends our half without a status.
    pub fn half_close(&mut self) {
        self.start();
        self.out = None;
    }

    /// Ends the stream with a status; only if we accepted it.
    pub fn end(&mut self, code: i32, message: &'static str) {
        self.start();
        if let Some(out) = self.out.take() {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from(code));
            trailers.insert("grpc-message", http::HeaderValue::from_static(message));
            let _ = out.unbounded_send(Ok(Frame::trailers(trailers)));
        }
    }

    /// All messages so far.
    pub fn heard(&self) -> &[Said] {
        &self.heard
    }

    /// Whether the answer's headers have come.
    pub fn has_headers(&self) -> bool {
        self.saw_headers
    }

    /// The next thing that comes.
    pub async fn hear(&mut self, within: Duration) -> Heard {
        tokio::time::timeout(within, self.next()).await.unwrap_or(Heard::Nothing)
    }

    async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.message() {
                return heard;
            }
            match &mut self.half {
                Half::Over(how) => return how.clone(),
                Half::Opening(opening) => match opening.await {
                    Ok(response) => {
                        let (parts, inbound) = response.into_parts();
                        (self.http, self.trailers) = (parts.status.as_u16(), parts.headers);
                        self.half = Half::Open(inbound);
                        self.saw_headers = true;
                        return Heard::Headers;
                    }
                    Err(error) => self.half = Half::Over(Heard::Broken(chain(&error))),
                },
                Half::Open(inbound) => match inbound.frame().await {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => self.buffer.put(data),
                        Err(frame) => self.trailers.extend(frame.into_trailers().unwrap_or_default()),
                    },
                    Some(Err(error)) => self.half = Half::Over(Heard::Broken(chain(&error))),
                    None => self.half = Half::Over(self.status()),
                },
            }
        }
    }

    fn message(&mut self) -> Option<Heard> {
        let header = self.buffer.get(..5)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if header[0] != 0 || length > MESSAGE_BYTES {
            self.buffer.clear();
            self.half = Half::Over(Heard::Broken("we gave up reading".to_owned()));
            return Some(Heard::Undecodable("compressed, or larger than any message".to_owned()));
        }
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        let bytes = self.buffer.split_to(length);
        Some(match Said::decode(self.version, self.them, &bytes) {
            Ok(said) => {
                if self.heard.len() < REMEMBERED {
                    self.heard.push(said.clone());
                }
                Heard::Said(Box::new(said))
            }
            Err(text) => Heard::Undecodable(text),
        })
    }

    fn status(&self) -> Heard {
        let text = |name: &str| self.trailers.get(name).and_then(|v| v.to_str().ok());
        match text("grpc-status").and_then(|code| code.parse().ok()) {
            Some(code) => Heard::End(code, unescaped(text("grpc-message").unwrap_or_default())),
            None if self.http != 200 => Heard::Http(self.http),
            None => Heard::Left,
        }
    }

    /// The next offer; everything else that may come before it is passed over.
    pub async fn next_offer(&mut self, within: Duration) -> Result<Offer, Heard> {
        let wanted = async {
            loop {
                match self.next().await {
                    Heard::Headers => {}
                    Heard::Said(said) => {
                        if let Some(offer) = said.offer {
                            return Ok(offer);
                        }
                    }
                    other => return Err(other),
                }
            }
        };
        tokio::time::timeout(within, wanted).await.unwrap_or(Err(Heard::Nothing))
    }

    /// The next request of any kind; offers are passed over.
    pub async fn next_ask(&mut self, within: Duration) -> Result<Ask, Heard> {
        let wanted = async {
            loop {
                match self.next().await {
                    Heard::Headers => {}
                    Heard::Said(said) => {
                        if let Some(ask) = said.ask {
                            return Ok(ask);
                        }
                    }
                    other => return Err(other),
                }
            }
        };
        tokio::time::timeout(within, wanted).await.unwrap_or(Err(Heard::Nothing))
    }

    /// The answer to `nonce`; answers to other nonces are passed over.
    pub async fn answer_to(&mut self, nonce: &str, within: Duration) -> Answer {
        let wanted = async {
            loop {
                match self.next_ask(within).await {
                    // An initial request is no answer to an empty nonce.
                    Ok(ask) if ask.nonce != nonce || (ask.is_initial() && nonce.is_empty()) => {}
                    Ok(ask) => {
                        return match &ask.status {
                            None => Answer::Bare,
                            Some(s) if s.code == 0 => Answer::Ack(ask),
                            Some(s) => Answer::Nack(s.code, s.message.clone()),
                        };
                    }
                    Err(heard) => return Answer::Not(heard),
                }
            }
        };
        tokio::time::timeout(within, wanted).await.unwrap_or(Answer::Not(Heard::Nothing))
    }

    /// How it ends; what comes before is passed over.
    pub async fn ending(&mut self, within: Duration) -> Heard {
        let wanted = async {
            loop {
                match self.next().await {
                    Heard::Headers | Heard::Said(_) => {}
                    other => return other,
                }
            }
        };
        tokio::time::timeout(within, wanted).await.unwrap_or(Heard::Nothing)
    }
}
